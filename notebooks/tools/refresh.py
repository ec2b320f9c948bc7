"""Refresh the outputs stored in notebooks: `make notebooks`.

    python -m notebooks.tools refresh [01 02 ...]

Each notebook is executed from a fresh kernel on ioi-mini. What is stored is stripped of all that
changes from run to run; every figure is stored with a static picture and its summary, which is also
its alternative text. A second run must agree with the first, or the notebook prints something that
chance decides. Of the budget card only what follows from the text is renewed (see `budgets`).
Nothing is written if anything is wrong.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from tqdm import tqdm

from notebooks.tools import CannotGoOn
from notebooks.tools.budgets import renew
from notebooks.tools.check import differences
from notebooks.tools.compare import (
    figure_summary,
    is_figure,
    is_progress_bar,
    joined,
    without_progress,
)
from notebooks.tools.execution import arguments_for, execute, find_notebooks
from notebooks.tools.site.outputs import title
from notebooks.tools.stored_outputs import MODEL, code_cells, machine_names, problems, read, tags


class CannotRefresh(CannotGoOn):
    """A notebook's fresh outputs are not fit to be stored; the message lists why."""


def refresh(path: Path) -> None:
    """Execute the notebook at `path` and store its outputs in place.

    Raises CellFailed or CannotRefresh, and then leaves the file as it was.
    """
    total = 2 * len(code_cells(read(path)))
    with tqdm(total=total, unit="cell", desc=path.stem, dynamic_ncols=True) as bar:
        static = {"IOI_MODEL": MODEL, "IOI_STATIC_FIGURES": "1"}
        fresh = cleaned(execute(path, static, on_cell=bar.update).notebook)
        again = execute(path, {"IOI_MODEL": MODEL}, on_cell=bar.update).notebook

    wrong = problems(fresh, machine_names())
    wrong += [
        f"cell [{number}] differs between two runs: {how}"
        for number, how in differences(fresh, again)
    ]
    try:
        renew(fresh)
    except ValueError as error:
        wrong.append(str(error))
    if wrong:
        listed = "\n  ".join(wrong)
        raise CannotRefresh(f"{path.name} is left as it was:\n  {listed}")
    nbformat.validate(fresh)
    nbformat.write(fresh, path)
    store_cover(fresh, path)


def cover(path: Path) -> Path:
    """Where the README finds the picture of the cell tagged `cover` in the notebook at `path`."""
    return path.parent / "covers" / f"{path.stem}.png"


def cover_picture(notebook: NotebookNode) -> bytes | None:
    """That picture, as it is stored."""
    for cell in code_cells(notebook):
        for output in cell.outputs if "cover" in tags(cell) else ():
            if "image/png" in output.get("data", {}):
                return base64.b64decode(output.data["image/png"])
    return None


def store_cover(notebook: NotebookNode, path: Path) -> None:
    """Write the picture of the cell tagged `cover`, if there is one, for the README."""
    picture = cover_picture(notebook)
    if picture is not None:
        cover(path).parent.mkdir(exist_ok=True)
        cover(path).write_bytes(picture)


def cleaned(notebook: NotebookNode) -> NotebookNode:
    """The notebook without what changes from run to run or machine to machine (in place)."""
    notebook.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
        **{k: v for k, v in notebook.metadata.items() if k == "colab"},
        title=title(notebook),  # what a page that nbconvert makes is called
    )
    for cell in notebook.cells:
        for volatile in ("execution", "collapsed", "scrolled", "jupyter"):
            cell.metadata.pop(volatile, None)
    for cell in code_cells(notebook):
        cell.outputs = _stored(cell.outputs)
    return notebook


def _stored(outputs: Sequence[NotebookNode]) -> list[NotebookNode]:
    """A cell's outputs as they are stored: streams merged, progress bars gone, figures static."""
    kept: list[NotebookNode] = []
    for output in outputs:
        if is_progress_bar(output):
            continue
        if output.get("name") == "stderr":
            output.text = without_progress(joined(output.text))
            if not output.text:
                continue
        last = kept[-1] if kept else None
        if output.output_type == "stream" and last and last.get("name") == output.name:
            last.text += output.text
            continue
        if is_figure(output) and "text/html" in output.data and len(output.data) > 2:
            # GitHub's viewer would show the HTML, without its scripts, rather than the picture.
            del output.data["text/html"]
        for form in ("image/png", "image/svg+xml"):
            if form in output.get("data", {}):
                output.metadata.setdefault(form, {})["alt"] = figure_summary(output) or ""
        kept.append(output)
    return kept


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = arguments_for("Refresh the outputs stored in notebooks.")
    options = parser.parse_args(arguments)
    for path in find_notebooks(options.notebooks):
        refresh(path)
        print(f"{path.name}: stored, {path.stat().st_size / 1e6:.2f} MB")
    return 0
