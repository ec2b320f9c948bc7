"""Execute notebooks and compare with their stored outputs, storing nothing: `make check`.

    python -m notebooks.tools check [01 02 ...]

What `make test` asks of a notebook's outputs, but every difference of a notebook is listed, and a
cell that was edited since outputs were stored may be compared with those.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nbformat import NotebookNode
from tqdm import tqdm

from notebooks.tools.compare import compare_outputs
from notebooks.tools.execution import CellFailed, execute, find_notebooks
from notebooks.tools.stored_outputs import COMPARED, code_cells, read, tags


def differences(first: NotebookNode, second: NotebookNode) -> list[tuple[int, str]]:
    """Where two executions of a notebook print different things: a code cell's number, from 1,
    and a sentence."""
    return [
        (number, sentence)
        for number, (old, new) in enumerate(zip(code_cells(first), code_cells(second)), start=1)
        for sentence in compare_outputs(old.outputs, new.outputs, "versions" in tags(old))
    ]


def check(path: Path) -> list[str]:
    """What a fresh run of the notebook on ioi-mini prints otherwise than is stored, as sentences.

    Raises CellFailed.
    """
    stored = read(path)
    with tqdm(total=len(code_cells(stored)), unit="cell", desc=path.stem, leave=False) as bar:
        fresh = execute(path, COMPARED, on_cell=bar.update).notebook
    return [f"cell [{number}]: {how}" for number, how in differences(stored, fresh)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Compare fresh outputs with the stored ones.")
    parser.add_argument("notebooks", nargs="*", help="numbers or names; all by default")
    options = parser.parse_args(arguments)
    wrong = 0
    try:
        for path in find_notebooks(options.notebooks):
            try:
                found = check(path)
            except CellFailed as error:
                found = [str(error)]
            wrong += bool(found)
            print("\n  ".join([f"{path.name}:", *found] if found else [f"{path.name}: as stored"]))
    except ValueError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return int(wrong > 0)
