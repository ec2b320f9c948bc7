"""What must hold of every notebook in the repository, as read from its file.

nbval passes over a cell that was never executed, or that asks to be left out; here such a cell is
a mistake. No cell is exempt from the comparison: an exercise stub must show that it was not
attempted, and of the set-up cell only the version numbers are free. `problems` returns sentences
and never raises, so that one look shows everything that needs mending.
"""

from __future__ import annotations

import getpass
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from notebooks.tools.compare import (
    figure_summary,
    is_figure,
    is_progress_bar,
    joined,
    without_progress,
)

MODEL = "ioi-mini"  # what stored outputs were made on
# Where outputs are only compared, figures take part by their summary, and no picture is drawn.
COMPARED = {"IOI_MODEL": MODEL, "IOI_STATIC_FIGURES": "0"}
EXEMPTIONS = re.compile(
    r"NBVAL_\w+|PYTEST_VALIDATE_IGNORE_OUTPUT|^%%capture|nbval-[\w-]+|raises-exception"
    r"|skip-execution",
    re.MULTILINE,
)
FOLDERS = "home|Users|root|work|tmp|private|var|opt|usr|mnt|srv|content|workspace"
MACHINE_PATH = re.compile(rf"(?<![\w.:/<])/(?:{FOLDERS})/[\w.-]+|\b[A-Za-z]:\\+Users\\+\w+")
ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]{6,}")
NOT_ATTEMPTED = "not attempted yet"
SETUP_LINES = 6
STATIC_FORMS = ("image/svg+xml", "image/png")


def read(path: Path) -> NotebookNode:
    """A notebook file as nbformat's version 4."""
    return nbformat.read(path, as_version=4)


def tags(cell: NotebookNode) -> list[str]:
    """The tags in a cell's metadata."""
    return list(cell.metadata.get("tags", []))


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The notebook's code cells, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def problems(notebook: NotebookNode, names: Sequence[str] = ()) -> list[str]:
    """Everything that is wrong with a notebook's stored outputs; [] if nothing is.

    `names` are words that no output may hold, such as `machine_names()`.
    """
    found = []
    kernel = notebook.metadata.get("kernelspec", {}).get("name")
    if kernel != "python3":
        found.append(f"its kernel is {kernel!r}; it must be 'python3'")
    cells = code_cells(notebook)
    if not cells:
        found.append("it has no code cells")
    for place, cell in enumerate(cells, start=1):
        found += [
            f"code cell {place}: {sentence}" for sentence in _cell_problems(cell, place, names)
        ]
    setup = [place for place, cell in enumerate(cells, start=1) if "versions" in tags(cell)]
    if setup != [1]:
        found.append(f"the first code cell alone must carry the tag 'versions', not {setup}")
    elif len(cells[0].source.strip().splitlines()) > SETUP_LINES:
        found.append(f"its set-up cell is longer than {SETUP_LINES} lines")
    return found


def _cell_problems(cell: NotebookNode, place: int, names: Sequence[str]) -> list[str]:
    found = []
    if not cell.source.strip():
        return ["it is empty"]
    exempt = EXEMPTIONS.search(cell.source + "\n" + "\n".join(tags(cell)))
    if exempt:
        found.append(f"{exempt.group(0)} would keep it from being compared")
    if cell.execution_count is None:
        found.append("it was never executed, so nothing is compared")
    elif cell.execution_count != place:
        found.append(
            f"its execution count is {cell.execution_count}: "
            "the notebook was not run top to bottom on a fresh kernel"
        )
    for output in cell.outputs:
        found += _output_problems(output, names)
    if "exercise" in tags(cell) and NOT_ATTEMPTED not in _words(cell.outputs).lower():
        found.append(f"it is an exercise stub, but its output does not say '{NOT_ATTEMPTED}'")
    return found


def _output_problems(output: Any, names: Sequence[str]) -> list[str]:
    found = []
    if output.output_type == "error":
        found.append(f"an error is stored: {output.ename}: {output.evalue}")
    if output.get("name") == "stderr":
        found.append(f"it stores standard error: {without_progress(joined(output.text))[:200]!r}")
    if is_progress_bar(output):
        found.append("it stores a progress bar")
    if is_figure(output):
        if figure_summary(output) is None:
            found.append("a figure has no text summary (its text/plain form)")
        if not any(form in output.data for form in STATIC_FORMS):
            found.append("a figure has no static picture, so a page without JavaScript is empty")
    volatile = [("a machine's path", MACHINE_PATH), ("a memory address", ADDRESS)]
    volatile += [("a name", re.compile(rf"\b{re.escape(name)}\b")) for name in names]
    for what, pattern in volatile:
        match = pattern.search(_words([output]))
        if match:
            found.append(f"its output holds {what}: {match.group(0)!r}")
    return found


def machine_names() -> list[str]:
    """This machine's name and its user's, where they are not words that may stand in any text."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no entry
        user = ""
    ordinary = {"runner", "jovyan", "student", "teacher", "ubuntu", "debian", "localhost"}
    return [name for name in (user, platform.node()) if len(name) > 4 and name not in ordinary]


def _words(outputs: list[Any]) -> str:
    """All text in outputs, pictures in base64 apart."""
    texts = []
    for output in outputs:
        texts.append(joined(output.get("text", "")))
        for form, data in output.get("data", {}).items():
            if form not in ("image/png", "image/jpeg"):
                texts.append(joined(data) if isinstance(data, (str, list)) else str(data))
    return "\n".join(texts)
