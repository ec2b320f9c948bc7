"""What a survey asks: of which models, on which prompts, which questions. Nothing runs here.

Written in Python (:meth:`Survey.of`) or in a file (:meth:`Survey.from_toml`), in the same words.
"""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedTokenizerBase

from ioi_helpers.dataset import IOIDataset, TwoAnswerData
from ioi_helpers.survey.functions import function_named
from ioi_helpers.survey.questions import QUESTIONS

PLACEMENT = ("device", "device_map", "max_memory", "offload_folder", "n_devices")
"""Arguments of a model that say where it runs and do not change what it computes, to rounding."""

ModelLike = str | Mapping[str, Any]


@dataclass(frozen=True)
class AskedModel:
    """One model at one revision, and how it is loaded.

    Attributes:
        name: As :func:`~ioi_helpers.load_model` takes it: bundled, on the hub, or a folder.
        revision: Branch, tag or commit on the hub.
        arguments: Further ones of :func:`~ioi_helpers.load_model`: ``dtype``, ``device``,
            ``device_map`` and what ``TransformerBridge.boot_transformers`` takes.
    """

    name: str
    revision: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What it is called in messages: ``"gpt2"``, ``"EleutherAI/pythia-1b@step1000"``."""
        return self.name if self.revision is None else f"{self.name}@{self.revision}"

    @property
    def that_matter(self) -> dict[str, Any]:
        """The arguments that change what is computed: all but :data:`PLACEMENT`."""
        given = {key: value for key, value in self.arguments.items() if key not in PLACEMENT}
        return given | {"dtype": str(given.get("dtype", "float32")).removeprefix("torch.")}


@dataclass(frozen=True)
class AskedPrompts:
    """Prompts, as a recipe: they are made with each model's own tokenizer.

    Attributes:
        label: What they are called in the tables.
        make: ``"generate"``, ``"paper"`` or ``"demo"`` of :class:`~ioi_helpers.IOIDataset`,
            ``"load"`` (a file that it saved), or a function of yours, also as ``"module:name"``,
            that is called as ``make(tokenizer, **arguments)``.
        arguments: Of that; for ``"load"`` the ``path``.
    """

    label: str
    make: str | Callable[..., TwoAnswerData] = "generate"
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def of(self, tokenizer: PreTrainedTokenizerBase) -> TwoAnswerData:
        """The prompts for a model with this tokenizer."""
        if self.make == "load":
            return IOIDataset.load(self.arguments["path"], tokenizer)
        return self.function(tokenizer, **self.arguments)

    @property
    def function(self) -> Callable[..., TwoAnswerData]:
        """What makes them."""
        if self.make in MAKERS:
            made: Callable[..., TwoAnswerData] = getattr(IOIDataset, str(self.make))
            return made
        return function_named(self.make)


MAKERS = ("generate", "paper", "demo", "load")


@dataclass(frozen=True)
class AskedQuestion:
    """A question, with its arguments.

    Attributes:
        label: What its table is called.
        ask: One of :data:`~ioi_helpers.survey.QUESTIONS`, or a function of yours, also as
            ``"module:name"``, that is called as ``ask(model, data, **arguments)`` and returns a
            DataFrame.
        arguments: Of that.
        data: Labels of the prompts that it is asked on; None: on all.
    """

    label: str
    ask: str | Callable[..., Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    data: tuple[str, ...] | None = None

    @property
    def function(self) -> Callable[..., Any]:
        """What answers it."""
        if isinstance(self.ask, str) and self.ask in QUESTIONS:
            return QUESTIONS[self.ask]
        return function_named(self.ask)


@dataclass(frozen=True)
class Survey:
    """The same questions, on the same prompts, of many models.

    Attributes:
        name: The folder of its tables, beside the answers that surveys may share.
        models, data, questions: What it asks of what.
    """

    name: str
    models: tuple[AskedModel, ...]
    data: tuple[AskedPrompts, ...]
    questions: tuple[AskedQuestion, ...]

    @classmethod
    def of(
        cls,
        models: Iterable[ModelLike],
        data: Mapping[str, Mapping[str, Any]],
        questions: Sequence[str] | Mapping[str, Mapping[str, Any]],
        name: str = "survey",
    ) -> Self:
        """A survey in plain Python.

        ::

            Survey.of(
                models=["ioi-mini", {"name": "EleutherAI/pythia-160m",
                                     "revisions": ["step1000", "step143000"]}],
                data={"mixed": {"n": 100, "seed": 0}},
                questions={"behaviour": {}, "heads": {"ask": "head_table", "sweep_prompts": 12}},
            )

        Args:
            models: Names, or tables with a ``name`` and, if wanted, ``revision`` or ``revisions``
                (each is a model of its own) and arguments of :func:`~ioi_helpers.load_model`.
            data: Label -> arguments of ``IOIDataset.generate``, or of another ``make``.
            questions: Label -> arguments; ``ask`` says which question, where the label does not,
                and ``data`` on which prompts, if not on all. A list of names asks each as it is.
            name: Of the folder that its tables go to.

        Raises:
            ValueError: Something is missing, unknown or written twice.
        """
        if isinstance(models, str | Mapping):
            raise ValueError("Give models as a list, also where there is one: ['ioi-mini'].")
        for what, table in {"data": data, "questions": questions}.items():
            if isinstance(table, str) or (what == "data" and not isinstance(table, Mapping)):
                raise ValueError(f"Give {what} as a table: label -> arguments.")
        asked = [one for model in models for one in _models(model)]
        prompts = [_prompts(label, table) for label, table in data.items()]
        if not isinstance(questions, Mapping):
            questions = {label: {} for label in questions}
        listed = [_question(label, table) for label, table in questions.items()]
        for what, found in {"models": asked, "data": prompts, "questions": listed}.items():
            if not found:
                raise ValueError(f"The survey has no {what}; give at least one.")
        seen = [(one.name, one.revision, repr(sorted(one.that_matter.items()))) for one in asked]
        twice = next((one for one in seen if seen.count(one) > 1), None)
        if twice is not None:
            raise ValueError(f"The model {twice[0]!r} is listed twice; leave one out.")
        labels = [one.label for one in prompts]
        for question in listed:
            unknown = set(question.data or ()) - set(labels)
            if unknown:
                raise ValueError(
                    f"The question {question.label!r} is to be asked on {sorted(unknown)[0]!r}, "
                    f"but data has only {', '.join(labels)}."
                )
        for label in (name, *labels, *(one.label for one in listed)):
            if not label or not all(c.isalnum() or c in "-_ ." for c in label) or label[0] == ".":
                raise ValueError(
                    f"{label!r} cannot be a file's name; use letters, digits, '-', '_' and '.'."
                )
        if name in ("answers", "unfinished") or "tasks" in [one.label for one in listed]:
            raise ValueError(
                "A survey called 'answers' or 'unfinished', or a question called 'tasks', would "
                "write over other files of results; use another name."
            )
        return cls(name, tuple(asked), tuple(prompts), tuple(listed))

    @classmethod
    def from_toml(cls, path: str | PathLike[str]) -> Self:
        """A survey from a file: ``[[models]]``, ``[data.LABEL]``, ``[questions.LABEL]``.

        The words are those of :meth:`of`; folders and files are relative to the file's own.

        Raises:
            ValueError: As :meth:`of`; or the file is no TOML, or has other parts.
        """
        path = Path(path)
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path} is no TOML file ({error}).") from error
        unknown = set(tables) - {"name", "models", "data", "questions"}
        if unknown:
            raise ValueError(
                f"{path} has a part {sorted(unknown)[0]!r}; there are name, models, data and "
                "questions."
            )
        models = [_beside(path, one) for one in tables.get("models", [])]
        return cls.of(
            models, tables.get("data", {}), tables.get("questions", {}),
            tables.get("name", path.stem),
        )  # fmt: skip


def _beside(path: Path, model: ModelLike) -> ModelLike:
    """A model whose folder, if it is written as one (./...), is relative to the file."""
    table = dict(model) if isinstance(model, Mapping) else {"name": model}
    if str(table.get("name", "")).startswith("."):
        table["name"] = str((path.parent / table["name"]).resolve())
    return table


def _models(model: ModelLike) -> list[AskedModel]:
    table = {"name": str(model)} if isinstance(model, str | PathLike) else dict(model)
    name = table.pop("name", None)
    if not isinstance(name, str | PathLike) or not str(name):
        raise ValueError(f"A model needs a name, unlike {model!r}.")
    one, several = table.pop("revision", None), table.pop("revisions", None)
    if one is not None and several is not None:
        raise ValueError(f"Give {name!r} either revision or revisions, not both.")
    revisions = [one] if several is None else list(several)
    if isinstance(several, str) or not revisions:
        raise ValueError(f"revisions of {name!r} is a list of one or more.")
    if "verbose" in table:
        raise ValueError("verbose is no argument of a survey's models; leave it out.")
    return [AskedModel(str(name), revision, table) for revision in revisions]


def _prompts(label: str, table: Mapping[str, Any]) -> AskedPrompts:
    arguments = dict(table)
    made = AskedPrompts(label, arguments.pop("make", "generate"), arguments)
    if isinstance(made.make, str) and made.make not in MAKERS and ":" not in made.make:
        raise ValueError(
            f"{made.make!r} does not make prompts; use {', '.join(MAKERS)}, or module:name."
        )
    if made.make == "load":
        if set(arguments) != {"path"}:
            raise ValueError(f"Prompts {label!r} that are loaded have one argument, their path.")
    else:
        _require_arguments(made.function, 1, arguments, f"Prompts {label!r}")
    return made


def _question(label: str, table: Mapping[str, Any]) -> AskedQuestion:
    arguments = dict(table)
    ask, data = arguments.pop("ask", label), arguments.pop("data", None)
    if isinstance(ask, str) and ask not in QUESTIONS and ":" not in ask:
        raise ValueError(
            f"{ask!r} is no question; use one of {', '.join(QUESTIONS)}, or module:name."
        )
    if isinstance(data, str):
        data = [data]
    asked = AskedQuestion(label, ask, arguments, None if data is None else tuple(data))
    _require_arguments(asked.function, 2, arguments, f"Question {label!r}")
    return asked


def _require_arguments(
    function: Callable[..., Any], given: int, arguments: Mapping[str, Any], what: str
) -> None:
    """Refuse now what the call would refuse after a model was loaded."""
    try:
        inspect.signature(function).bind(*[None] * given, **arguments)
    except TypeError as error:
        raise ValueError(f"{what} cannot be asked so: {error}.") from None
