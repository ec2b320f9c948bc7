"""Execute notebooks on a model and write pages to browse: `make run`.

    python -m notebooks.tools run [01 02 ...] [--out build]

Every notebook runs from a fresh kernel, on the model that IOI_MODEL names (ioi-mini unless set).
Executed copies go to build/notebooks, and the course site with what they show to build/pages; a
notebook that was not run is there with its stored outputs. Figures are interactive and need no
network. What stops a run, a failing cell or Ctrl-C, costs no copy and no page that was there: the
next run shows all copies. A failing cell is named.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from tqdm import tqdm

from notebooks.tools.execution import (
    REPOSITORY,
    CellFailed,
    Execution,
    arguments_for,
    execute,
    find_notebooks,
)
from notebooks.tools.site.build import build
from notebooks.tools.site.outputs import RUN
from notebooks.tools.stored_outputs import MODEL, code_cells, read

# Figures come with every form they have: the pages draw the interactive one over the static one.
ALL_FORMS = {"IOI_STATIC_FIGURES": "1"}


def run(paths: list[Path], copies: Path, model: str) -> list[Execution]:
    """Execute the notebooks at `paths` on `model`; each copy is written once it has run.

    Raises CellFailed at the first failing cell, having kept that notebook's copy as far as it came.
    """
    copies.mkdir(parents=True, exist_ok=True)
    executions = []
    total = sum(len(code_cells(read(path))) for path in paths)
    with tqdm(total=total, unit="cell", dynamic_ncols=True) as bar:
        for path in paths:
            bar.set_description(path.stem)
            try:
                done = execute(path, {"IOI_MODEL": model, **ALL_FORMS}, on_cell=bar.update)
            except CellFailed as failure:
                nbformat.write(failure.notebook, copies / path.name)
                raise
            made = copy.deepcopy(done.notebook)
            made.metadata[RUN] = {"model": model, "seconds": done.seconds}
            nbformat.write(made, copies / path.name)
            executions.append(done)
    return executions


def finished(copies: Path, stems: Sequence[str]) -> dict[str, Path]:
    """The copies that ran to their end, by stem, of the notebooks `stems`; other files of the
    curriculum's kind, of notebooks that are gone, are removed."""
    found = {}
    for path in sorted(copies.glob("[0-9]*.ipynb")):
        if path.stem not in stems:
            path.unlink()
        elif RUN in read(path).metadata:
            found[path.stem] = path
    return found


def table(executions: list[Execution]) -> str:
    """The closing table: a line a notebook, and their sum."""
    rows = [(e.path.stem, f"{e.seconds:.1f}", str(e.cells), str(e.figures)) for e in executions]
    if len(rows) > 1:
        rows.append(
            (
                "together",
                f"{sum(e.seconds for e in executions):.1f}",
                str(sum(e.cells for e in executions)),
                str(sum(e.figures for e in executions)),
            )
        )
    width = max(len(row[0]) for row in [*rows, ("notebook",)])
    lines = [f"{'notebook':<{width}}  seconds  cells  figures"]
    lines += [f"{row[0]:<{width}}  {row[1]:>7}  {row[2]:>5}  {row[3]:>7}" for row in rows]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = arguments_for("Execute notebooks and write pages to browse.")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build", help="default: build")
    options = parser.parse_args(arguments)
    model = os.environ.get("IOI_MODEL") or MODEL
    copies, pages = options.out / "notebooks", options.out / "pages"
    try:
        paths = find_notebooks(options.notebooks)
        if not paths:
            raise ValueError("There are no notebooks in notebooks/ to run.")
        print(f"Running {len(paths)} notebook(s) on {model}, each from a fresh kernel.", flush=True)
        stopped = ""
        try:
            print(f"\n{table(run(paths, copies, model))}")
        except CellFailed as failure:
            stopped = str(failure)
            print(f"\n{stopped}", file=sys.stderr)
        print("\nMaking the pages.", flush=True)
        warnings = build(pages, finished(copies, [path.stem for path in find_notebooks()]))
    except KeyboardInterrupt:
        print(f"\nInterrupted. Notebooks executed so far are kept: {copies}", file=sys.stderr)
        return 130
    if warnings:
        print(warnings, file=sys.stderr)
    print(f"Open {(pages / 'index.html').resolve()}")
    return 1 if stopped else 0
