"""A notebook executed once for all tests that ask what a reader has in it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from notebooks.tools.exercise_runs import NotebookSession


@lru_cache(maxsize=1)
def session(path: Path, model: str) -> NotebookSession:
    """The notebook on the model; the last one is kept, since its tests follow each other."""
    return NotebookSession(path, model)
