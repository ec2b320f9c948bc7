"""A pytest plugin over nbval: numbers are compared as numbers, and no cell slips through.

nbval runs each notebook cell by cell in a fresh kernel and compares its outputs as text. This
plugin puts `compare.compare_outputs` in place of that comparison, runs the kernel on ioi-mini
whatever the environment says, and fails cells that nbval would pass over in silence: those never
executed and those that ask to be left out. notebooks/conftest.py loads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from unittest import mock

import pytest
from nbformat import NotebookNode
from nbval.plugin import IPyNbCell, IPyNbFile

from notebooks.tools.compare import compare_outputs
from notebooks.tools.execution import kernel_environment
from notebooks.tools.stored_outputs import COMPARED, tags

start_kernel = IPyNbFile.setup


def start_kernel_on_mini(self: IPyNbFile) -> None:
    """nbval's set-up of a notebook, with a kernel that runs on ioi-mini and this checkout."""
    with mock.patch.dict("os.environ", kernel_environment(COMPARED)):
        start_kernel(self)


def compare_with_tolerance(
    self: IPyNbCell,
    test: Sequence[NotebookNode],
    ref: Sequence[NotebookNode],
    skip_compare: Sequence[str] | None = None,
) -> bool:
    """nbval's comparison of a cell: whether fresh outputs `test` agree with the stored `ref`."""
    found = compare_outputs(ref, test, versions="versions" in tags(self.cell))
    # nbval shows these lines where a cell fails; it counts cells from 0, a reader's page from 1.
    self.comparison_traceback = [f"In [{self.cell.execution_count}]:", *found]
    return not found


def pytest_configure(config: pytest.Config) -> None:
    """Replace two methods of nbval's; its classes name themselves, so they cannot be derived."""
    IPyNbFile.setup = start_kernel_on_mini
    IPyNbCell.compare_outputs = compare_with_tolerance


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Refuse a cell that nbval would not compare."""
    if not isinstance(item, IPyNbCell):
        return
    if item.cell.execution_count is None:
        item.raise_cell_error("Cell was never executed, so nothing is compared; refresh outputs.")
    options = item.options
    if options["skip"] or options["check_exception"] or not options["check"]:
        item.raise_cell_error("Cell asks to be left out of the comparison; no cell may.")
