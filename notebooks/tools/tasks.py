"""Exercises as a notebook tells them: all that is known of one stands above its stub."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nbformat import NotebookNode

from notebooks.tools.stored_outputs import tags

DIFFICULTIES = ("warm-up", "easy", "medium", "hard")
FORM = "### Exercise 01.3 · Its title\n\n*Difficulty: easy · about 10 min*"
HEAD = re.compile(
    r"### Exercise (?P<id>\d\d\.\d+) · (?P<title>\S[^\n]*\S)\n\n"
    rf"\*Difficulty: (?P<difficulty>{'|'.join(DIFFICULTIES)}) · about (?P<minutes>\d+) min\*\n"
)


@dataclass(frozen=True)
class Task:
    """An exercise's number ("01.3") and what its reader is told of it."""

    identifier: str
    title: str
    difficulty: str
    minutes: int
    text: str


def read_task(markdown: str) -> Task:
    """The task in a Markdown cell. Raises ValueError unless it begins as `FORM` does."""
    head = HEAD.match(markdown)
    if head is None:
        told = markdown.split("\n", 1)[0]
        raise ValueError(f"An exercise begins {FORM!r}, with one of {DIFFICULTIES}; not {told!r}.")
    minutes = int(head["minutes"])
    return Task(head["id"], head["title"], head["difficulty"], minutes, markdown[head.end() :])


def tasks(notebook: NotebookNode) -> list[Task]:
    """The exercises of a notebook, in order: one above each cell tagged `exercise`."""
    cells = notebook.cells
    return [
        read_task(cells[place - 1].source if place else "")
        for place, cell in enumerate(cells)
        if "exercise" in tags(cell)
    ]
