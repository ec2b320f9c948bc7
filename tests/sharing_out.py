"""How `--dist loadgroup` shares tests out: what shares costly set-up is run by one process.

That is a file, or a notebook; of files that go from notebook to notebook, what belongs to one
notebook on one model (ioi-mini, where the test's name has none). pytest-xdist 3.8 has the mark
`xdist_group` for this, which under pytest 9.2 does nothing and says nothing (its issue 1386).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

IN_A_SESSION = ("test_exercises", "test_notebook_code")  # tests.notebook_sessions
BY_NOTEBOOK = (*IN_A_SESSION, "test_changed_numbers", "test_notebooks")


def group(node_id: str) -> str:
    """The name of the tests with which a test stays."""
    file, _, test = node_id.partition("::")
    number = re.search(r"\[(\d\d)[-_.,]", test)
    if not number or Path(file).stem not in BY_NOTEBOOK:
        return file
    named = re.search(r"ioi-\w+", test)
    model = named[0] if named else "ioi-mini"
    kind = "a session" if Path(file).stem in IN_A_SESSION else file
    return f"{kind}: {number[1]} on {model}"


class ByGroup(LoadScopeScheduling):
    """Each group is run by one process, in order; groups of many tests come first."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByGroup | None:
    """Take the place of pytest-xdist's own (tests/conftest.py loads this)."""
    return ByGroup(config, log) if config.getoption("dist") == "loadgroup" else None
