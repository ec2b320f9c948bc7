"""Execute notebooks on a model and write pages to browse: `make run`.

    python -m notebooks.tools run [01 02 ...] [--out build]

Every notebook runs from a fresh kernel, on the model that IOI_MODEL names (ioi-mini unless set).
Executed copies go to build/notebooks, one page each and an index to build; their figures are
interactive and need no network. Each page is written as soon as its notebook has run, so that what
stops a run, a failing cell or Ctrl-C, costs no page that was there. A failing cell is named.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from tqdm import tqdm

from notebooks.tools.execution import REPOSITORY, CellFailed, Execution, execute, find_notebooks
from notebooks.tools.pages import Pages
from notebooks.tools.stored_outputs import MODEL, code_cells, read

# Figures come with every form they have: the pages draw the interactive one over the static one.
ALL_FORMS = {"IOI_STATIC_FIGURES": "1"}


def run(paths: list[Path], pages: Pages, model: str) -> list[Execution]:
    """Execute the notebooks at `paths` on `model`, each written to `pages` once it has run.

    Raises CellFailed at the first failing cell, having kept that notebook's copy as far as it came.
    """
    executions = []
    total = sum(len(code_cells(read(path))) for path in paths)
    with tqdm(total=total, unit="cell", dynamic_ncols=True) as bar:
        for path in paths:
            bar.set_description(path.stem)
            try:
                done = execute(path, {"IOI_MODEL": model, **ALL_FORMS}, on_cell=bar.update)
            except CellFailed as failure:
                pages.remove(path.stem)
                nbformat.write(failure.notebook, pages.copies / path.name)
                raise
            pages.write(done, model)
            executions.append(done)
    return executions


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
    parser = argparse.ArgumentParser(description="Execute notebooks and write pages to browse.")
    parser.add_argument("notebooks", nargs="*", help="numbers or names; all by default")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build", help="default: build")
    options = parser.parse_args(arguments)
    model = os.environ.get("IOI_MODEL") or MODEL
    try:
        paths = find_notebooks(options.notebooks)
        if not paths:
            raise ValueError("There are no notebooks in notebooks/ to run.")
        print(f"Running {len(paths)} notebook(s) on {model}, each from a fresh kernel.", flush=True)
        pages = Pages(options.out, [path.stem for path in find_notebooks()])
        executions = run(paths, pages, model)
    except (CellFailed, ValueError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nInterrupted. Pages built so far are kept: {options.out}", file=sys.stderr)
        return 130
    print(f"\n{table(executions)}\n\nOpen {pages.index.resolve()}")
    return 0
