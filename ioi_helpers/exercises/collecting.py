"""Check the answers of many students once more: `python -m ioi_helpers.exercises collect FOLDER`.

    python -m ioi_helpers.exercises collect FOLDER [--model NAME] [--table FILE]

FOLDER holds the files that students wrote with `exercises.export`, in folders of their own or not.
What each answer is held against is computed here, by running the notebooks of this installation,
once a model: no network is needed for the models that ship. **No code of a student's is run**:
records hold values, notebooks among what was handed in are not opened, and only models that ship,
or GPT-2 small from the local cache, are loaded because a record names them.

The table says who, which exercise, how many tries and whether the answer is right, and nothing
else. What looks like an accident is said beside it: a damaged file, another version, another model,
other prompts, two files of one name. It does not find out who cheats: whoever can write a file can
write any answer into it.
"""

from __future__ import annotations

import builtins
import contextlib
import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import matplotlib

import ioi_helpers
from ioi_helpers import exercises
from ioi_helpers.bundled import BUNDLED, VARIANTS
from ioi_helpers.exercises import records
from ioi_helpers.exercises.registry import Context
from ioi_helpers.exercises.session import Entry, Session, number, what_is_at_hand
from ioi_helpers.exercises.values import Damaged, from_json
from ioi_helpers.models.sources import gpt2_is_cached
from ioi_helpers.runs import progress_bar, without_progress_bars

NOTEBOOKS = Path(ioi_helpers.__file__).resolve().parents[1] / "notebooks"
VERDICTS = {True: "right", False: "wrong", None: "not checked"}
SAME_SUMS = 1e-3  # relative: sums over the same weights differ by precision and machine
MAGIC = re.compile(r"^(\s*)[%!].*$", re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """An answer and its verdict; `passed` is None where it could not be checked here."""

    who: str
    exercise: str
    tries: int
    passed: bool | None


@dataclass(frozen=True)
class Collected:
    """A table of answers, and sentences about what looks like an accident."""

    rows: list[Row]
    notices: list[str]

    def __str__(self) -> str:
        if not self.rows:
            return "No answers were found."
        return "\n\n".join(
            _block([row for row in self.rows if row.exercise[:2] == notebook])
            for notebook in dict.fromkeys(sorted(row.exercise[:2] for row in self.rows))
        )

    def write_csv(self, file: Path) -> None:
        """Write the table, one answer a row."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["who", "exercise", "tries", "verdict"])
        for row in self.rows:
            table.writerow([_no_formula(row.who), row.exercise, row.tries, VERDICTS[row.passed]])
        file.write_text(text.getvalue(), encoding="utf-8")


_Note = tuple["_Answer", str]


@dataclass(frozen=True, eq=False)
class _Answer:
    """An answer in a file."""

    who: str
    file: str
    id: str
    entry: Entry

    @property
    def model(self) -> str:
        return str(self.entry.checked_on["model"]["name"])


def collect(
    folder: str | Path, *, model: str | None = None, notebooks: str | Path | None = None
) -> Collected:
    """Check the answers in all records below a folder once more.

    Args:
        folder: Where the files are that students handed in; `.json` files below it are read.
        model: The model that the class was told to use: answers on another are not checked. By
            default each answer is checked on the model it was given on, where that ships with the
            package or is GPT-2 small and in the local cache.
        notebooks: The folder of the notebooks that the class was given or of those they were made
            from; by default those of this checkout. Their code is run.

    Raises:
        ValueError: There is no such folder, or no notebooks.
    """
    folder, notebooks = Path(folder), Path(notebooks or NOTEBOOKS)
    if not folder.is_dir():
        raise ValueError(f"There is no folder {str(folder)!r}.")
    if not any(notebooks.glob("[0-9][0-9]_*.ipynb")):
        raise ValueError(
            f"There are no notebooks in {str(notebooks)!r}, by which answers are checked; clone "
            "the repository, or give their folder (--notebooks)."
        )
    answers, notices = _read_all(folder)
    notes: list[_Note] = []
    to_check = []
    for name in sorted({answer.model for answer in answers}):
        of_model = [answer for answer in answers if answer.model == name]
        refusal = _refusal(name, model)
        if refusal:
            notes += [(answer, refusal) for answer in of_model]
            continue
        for notebook in sorted({answer.id[:2] for answer in of_model}):
            here = [answer for answer in of_model if answer.id[:2] == notebook]
            to_check.append((here, model or name, notebook))
    verdicts: dict[_Answer, bool | None] = {}
    for here, name, notebook in progress_bar("notebooks", to_check):
        found, said = _check_notebook(here, name, notebook, notebooks)
        verdicts |= found
        notes += said
    rows = [
        Row(answer.who, answer.id, len(answer.entry.tried), verdicts.get(answer))
        for answer in sorted(answers, key=lambda a: (a.who.casefold(), a.file, number(a.id)))
    ]
    return Collected(rows, notices + _by_file(notes))


def _read_all(folder: Path) -> tuple[list[_Answer], list[str]]:
    """Every answer in the records below a folder, and what is wrong with files."""
    notices, found = [], []
    for path in sorted(folder.rglob("*.json")):
        file = _plain(path.relative_to(folder).as_posix())
        if path.is_symlink() or not path.is_file():
            notices.append(f"{file} is no ordinary file and was left out.")
            continue
        try:
            found.append((file, records.read(path)))
        except Damaged as error:
            notices.append(f"{file} was left out, ask for it again: {error}.")
    names = [_plain(record.who) for _, record in found]
    answers = []
    for (file, record), who in zip(found, names):
        if names.count(who) > 1:
            notices.append(f"{file} is one of {names.count(who)} files of {who!r}.")
            who = f"{who} ({file})"
        answers += [_Answer(who, file, id, entry) for id, entry in record.entries.items()]
        versions = {str(entry.checked_on["version"]) for entry in record.entries.values()}
        for version in sorted(versions - {ioi_helpers.__version__}):
            notices.append(
                f"{file} was written with ioi_helpers {_plain(version)}, and is checked by "
                f"{ioi_helpers.__version__}: what is asked for may have changed."
            )
    return answers, notices


def _refusal(name: str, wanted: str | None) -> str:
    """Why answers that were given on a model cannot be checked here; "" if they can."""
    said = f"not checked, for they were given on {_plain(name) or 'a model without a name'}"
    if wanted is not None:
        # A folder or a hub name that the teacher gave goes by its last part in a record.
        return "" if name in (wanted, Path(wanted).name) else f"{said}, not on {wanted}"
    if name in (*BUNDLED, *VARIANTS) or (name == "gpt2-small" and gpt2_is_cached()):
        return ""
    if name == "gpt2-small":
        return f"{said}, whose weights are not in the local cache here"
    return f"{said}, which does not ship with the package; --model NAME loads it, if you trust it"


def _check_notebook(
    answers: list[_Answer], model: str, notebook: str, notebooks: Path
) -> tuple[dict[_Answer, bool | None], list[_Note]]:
    """Run a notebook and hold the answers against what it asks for, each where its stub stands."""
    verdicts: dict[_Answer, bool | None] = {}
    notes: list[_Note] = []
    found = sorted(notebooks.glob(f"{notebook}_*.ipynb"))

    def at_stub(id: str, _: Any, **things: Any) -> None:
        context = exercises._current.with_things(things)
        for answer in [answer for answer in answers if answer.id == id]:
            verdicts[answer], said = _verdict(answer, context)
            notes.extend((answer, sentence) for sentence in said)

    why = "there is no such exercise" if found else f"there is no notebook {notebook}"
    try:
        for path in found[:1]:
            _run_notebook(path, model, at_stub)
    except Exception as error:  # whatever a cell may raise: the other notebooks are checked still
        what = f"{type(error).__name__}: {_plain(str(error))}"
        why = f"notebook {notebook} stopped before it, on {model} ({what})"
    notes += [(answer, f"not checked: {why}") for answer in answers if answer not in verdicts]
    return verdicts, notes


def _verdict(answer: _Answer, context: Context) -> tuple[bool | None, list[str]]:
    """Whether an answer is right on what is at hand, and what was different when it was given."""
    here = context.once("what is at hand", lambda: what_is_at_hand(context.things))
    there = answer.entry.checked_on
    if not _alike(there["model"]["sums"], here["model"]["sums"]):
        return None, [f"not checked, for that {answer.model} has other weights than the one here"]
    notices = []
    other = sorted(
        name
        for name, text in here["prompts"].items()
        if there["prompts"].get(name) not in (None, text)
    )
    if other:
        told = f"answered on other prompts ({', '.join(other)}) than the notebook's"
        notices.append(f"{told}, and checked on the notebook's")
    try:
        given = from_json(answer.entry.answer)
        passed = bool(exercises.decide(given, context.key(answer.id)).passed)
    except Damaged as error:
        return None, [*notices, f"not checked: {error}"]
    except Exception as error:  # a record that somebody made by hand must not stop the others
        return None, [*notices, f"not checked: the check failed ({type(error).__name__})"]
    if passed != answer.entry.passed and not other:
        said = VERDICTS[answer.entry.passed]
        notices.append(f"{VERDICTS[passed]} here, {said} in the session that it was given in")
    return passed, notices


def _run_notebook(path: Path, model: str, at_stub: Any) -> None:
    """Run a notebook's cells in this process on a model; `at_stub` is its stubs' check."""
    cells = [
        (MAGIC.sub(r"\1pass", "".join(cell["source"])), cell.get("metadata", {}).get("tags", []))
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]
    with _as_a_kernel(model, path.parent) as namespace:
        for place, (source, tags) in enumerate(cells, start=1):
            code = compile(source, f"{path.name}, code cell {place}", "exec")
            if "exercise" not in tags:
                exec(code, namespace)
                continue
            package = namespace["exercises"]
            namespace["exercises"] = SimpleNamespace(check=at_stub)
            exec(code, namespace)
            namespace["exercises"] = package


@contextlib.contextmanager
def _as_a_kernel(model: str, folder: Path) -> Iterator[dict[str, Any]]:
    """A namespace like a kernel's; what is printed is lost, what checks are bound to comes back."""
    bound, session, backend = exercises._current, exercises._session, matplotlib.get_backend()
    exercises._session = Session()
    matplotlib.use("agg")
    nowhere = io.StringIO()
    try:
        with (
            mock.patch.dict(os.environ, {"IOI_MODEL": model}),
            contextlib.chdir(folder),
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
            without_progress_bars(),
        ):
            yield {
                "__name__": "__main__",
                "__builtins__": builtins,
                "display": lambda *_, **__: None,
            }
    finally:
        exercises._current, exercises._session = bound, session
        matplotlib.use(backend)


def _alike(one: Iterable[float], other: Iterable[float]) -> bool:
    one, other = list(one), list(other)
    close = (abs(a - b) <= SAME_SUMS * max(abs(a), abs(b)) for a, b in zip(one, other))
    return len(one) == len(other) and all(close)


def _by_file(notes: list[_Note]) -> list[str]:
    """A sentence for each file and what is to be said of answers in it."""
    found: dict[tuple[str, str], list[str]] = {}
    for answer, said in notes:
        found.setdefault((answer.file, said), []).append(answer.id)
    return [f"{file}, {', '.join(ids)}: {said}." for (file, said), ids in found.items()]


def _block(rows: list[Row]) -> str:
    """The answers to one notebook: a student a line, an exercise a column."""
    ids = sorted({row.exercise for row in rows}, key=number)
    table: dict[str, dict[str, str]] = {}
    for row in rows:
        table.setdefault(row.who, {})[row.exercise] = f"{VERDICTS[row.passed]} ({row.tries})"
    names = ["who (tries in brackets)", *table]
    width = max(len(name) for name in names)
    column = max(len(cell) for cells in table.values() for cell in cells.values())
    lines = [
        [names[0], *ids],
        *([who, *(cells.get(id, "-") for id in ids)] for who, cells in table.items()),
    ]
    return "\n".join(
        "  ".join([f"{line[0]:<{width}}", *(f"{cell:<{column}}" for cell in line[1:])]).rstrip()
        for line in lines
    )


def _plain(text: str) -> str:
    """A text of a student's on one line, without what a terminal might obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:100]


def _no_formula(text: str) -> str:
    """A text that a spreadsheet takes for a text."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def report(collected: Collected, table: Path) -> Mapping[str, int]:
    """Write and print what was collected; returns how many answers have which verdict."""
    collected.write_csv(table)
    print(collected)
    if collected.notices:
        print("\nLook at:")
        print("\n".join(f"- {notice}" for notice in collected.notices))
    counts = {
        said: sum(row.passed is passed for row in collected.rows)
        for passed, said in VERDICTS.items()
    }
    students = len({row.who for row in collected.rows})
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    print(
        f"\n{len(collected.rows)} answers, of {students} student{'s' * (students != 1)}: {said}. "
        f"Table: {table}\n"
        "What looks like an accident is named above; cheating is not found out."
    )
    return counts


def refuse_to_start_inside(folder: Path) -> None:
    """Raise ValueError where this was started among what students handed in."""
    if Path.cwd().resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            "Start this elsewhere, in your clone of the repository say: Python imports modules "
            "from the folder it is started in, and what lies in this one is your students'."
        )
