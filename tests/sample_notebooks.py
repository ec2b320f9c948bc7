"""Small notebooks made in memory, on which the notebook tools themselves are tested."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

PICTURE = "iVBORw0KGgo="
SETUP = 'print("ioi-mini, torch 2.13.0")'


def printed(text: str, name: str = "stdout") -> NotebookNode:
    """A stream output."""
    return nbformat.v4.new_output("stream", name=name, text=text)


def figure(summary: str | None = "Heat map: highest L9H9 1.52", **forms: Any) -> NotebookNode:
    """A stored figure: its summary and static picture, or other forms by name."""
    data = {"image/png": PICTURE} | {key.replace("_", "/"): forms[key] for key in forms}
    if summary is not None:
        data["text/plain"] = summary
    return nbformat.v4.new_output("display_data", data=data)


def code(
    source: str, outputs: Sequence[NotebookNode] = (), tags: Sequence[str] = (), **metadata: Any
) -> NotebookNode:
    """A code cell; `notebook` numbers it."""
    if tags:
        metadata["tags"] = list(tags)
    return nbformat.v4.new_code_cell(source, outputs=list(outputs), metadata=metadata)


def text(source: str, tags: Sequence[str] = ()) -> NotebookNode:
    """A Markdown cell."""
    return nbformat.v4.new_markdown_cell(source, metadata={"tags": list(tags)} if tags else {})


def notebook(*cells: NotebookNode, setup: str = SETUP) -> NotebookNode:
    """A notebook as if run top to bottom: a set-up cell, then `cells`."""
    first = code(setup, [printed("ioi-mini, torch 2.13.0\n")], ["versions"])
    made = nbformat.v4.new_notebook(
        cells=[first, *cells],
        metadata={
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
    )
    for place, cell in enumerate((c for c in made.cells if c.cell_type == "code"), start=1):
        cell.execution_count = place
    return made


def write(made: NotebookNode, path: Path) -> Path:
    """Write a notebook; returns its path."""
    nbformat.write(made, path)
    return path
