"""What an answer depends on, and a digest of it: the name of the answer's file.

A model is known by its weights: a bundled one or a folder by the bytes of its files, one on the hub
by its commit. Where it runs, how much memory it may use and what things are called do not count.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from transformer_lens.tools.model_registry.registry_io import resolve_model_alias

from ioi_helpers import __version__
from ioi_helpers.bundled import BUNDLED, VARIANTS, bundled_folder
from ioi_helpers.models.sources import is_path
from ioi_helpers.survey.asked import MAKERS, AskedModel, AskedPrompts, AskedQuestion
from ioi_helpers.survey.functions import source_of
from ioi_helpers.survey.questions import QUESTIONS

IDLE_FILES = (".md", ".gitattributes", ".gitignore")
"""Ends of the names of files that have no part in what a model computes."""


def digest(content: Any) -> str:
    """SHA-256 of what JSON can hold, whatever the order of its keys.

    Raises:
        ValueError: It holds something else.
    """
    try:
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    except TypeError as error:
        raise ValueError(
            f"Arguments of a survey must be text, numbers, lists and tables ({error})."
        ) from error
    return hashlib.sha256(text.encode()).hexdigest()


def model_identity(model: AskedModel) -> dict[str, Any]:
    """What tells this model from others, as JSON can hold it.

    A model on the hub that can be found neither there nor in the cache is known by its name and
    revision alone, until it can.
    """
    name = model.name
    found: dict[str, Any]
    if name in (*BUNDLED, *VARIANTS):
        found = {"bundled": name, "files": files_digest(bundled_folder(name))}
    elif is_path(name):
        folder = Path(name).expanduser()
        found = {"files": files_digest(folder) if folder.is_dir() else f"none in {name}"}
    else:
        repository = resolve_model_alias(name) or name
        found = {"repository": repository, "commit": _commit(repository, model.revision)}
        if found["commit"] is None:
            found["revision"] = model.revision
    return found | {"arguments": model.that_matter}


def prompts_identity(prompts: AskedPrompts) -> dict[str, Any]:
    """What tells these prompts from others, given the model's tokenizer."""
    if prompts.make == "load":
        path = Path(prompts.arguments["path"])
        if not path.is_file():
            raise ValueError(f"There is no file {str(path)!r} with prompts {prompts.label!r}.")
        return {"file": file_digest(path)}
    return {"make": _function(prompts.make, MAKERS), "arguments": dict(prompts.arguments)}


def question_identity(question: AskedQuestion) -> dict[str, Any]:
    """What tells this question from others."""
    return {
        "ask": _function(question.ask, tuple(QUESTIONS)),
        "arguments": dict(question.arguments),
    }


def answer_identity(
    model: Mapping[str, Any], prompts: Mapping[str, Any], question: Mapping[str, Any]
) -> dict[str, Any]:
    """All that an answer depends on; its :func:`digest` is the answer's name."""
    return {"model": model, "prompts": prompts, "question": question, "version": __version__}


def _function(function: str | Callable[..., Any], ours: tuple[str, ...]) -> str:
    """One of ours by its name, any other by its name and source."""
    if isinstance(function, str) and function in ours:
        return function
    called = function if isinstance(function, str) else function.__qualname__
    return f"{called} {source_of(function)}"


def files_digest(folder: Path) -> str:
    """A digest of the names and bytes of the files in a model's folder, but for its card."""
    parts = [
        [path.relative_to(folder).as_posix(), file_digest(path)]
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(IDLE_FILES)
    ]
    return digest(parts)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _commit(repository: str, revision: str | None) -> str | None:
    """The commit that a revision is at: on the hub, else in its cache; None where it is unknown."""
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    try:
        url = hf_hub_url(repository, "config.json", revision=revision)
        return get_hf_file_metadata(url, timeout=10).commit_hash
    except Exception:
        # No network, no such model, not for this user: loading it will say which. What was loaded
        # before lies in the cache, below its commit.
        try:
            cached = try_to_load_from_cache(repository, "config.json", revision=revision)
        except ValueError:  # no name of a repository
            return None
        return Path(cached).parent.name if isinstance(cached, str) else None
