"""Tests that share costly set-up are run by one process, also where others stand idle."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from notebooks.tools.execution import REPOSITORY
from tests.sharing_out import group

SAMPLE = """
import os, pytest

@pytest.mark.parametrize("name", ["stub", "solution", "right1", "right2"])
@pytest.mark.parametrize("model", ["01.1-ioi-mini", "01.2-ioi-mini", "01.1-ioi-plain"])
def test_sample(model, name, request):
    with open(os.environ["SEEN"], "a") as file:
        file.write(f"{os.environ['PYTEST_XDIST_WORKER']} {request.node.nodeid}\\n")
"""


@pytest.mark.parametrize(
    ("node_id", "expected"),
    [
        ("tests/test_dataset.py::test_rows[10-a]", "tests/test_dataset.py"),
        ("notebooks/01_some.ipynb::Cell 3", "notebooks/01_some.ipynb"),
        ("tests/test_exercises.py::test_a[01.2-ioi-plain-a]", "a session: 01 on ioi-plain"),
        ("tests/test_exercises.py::test_a[01.2-ioi-mini-a]", "a session: 01 on ioi-mini"),
        ("tests/test_notebook_code.py::test_a[01, cell 3]", "a session: 01 on ioi-mini"),
        ("tests/test_notebooks.py::test_a[01_some]", "tests/test_notebooks.py: 01 on ioi-mini"),
    ],
)
def test_who_stays_together(node_id: str, expected: str) -> None:
    assert group(node_id) == expected


def test_a_group_is_run_by_one_process(tmp_path: Path) -> None:
    for name in ("test_exercises", "test_one", "test_other"):
        (tmp_path / f"{name}.py").write_text(SAMPLE)
    options = ["-p", "tests.sharing_out", "-p", "xdist", "-c", os.devnull]
    options += ["-n", "2", "--dist", "loadgroup", "--rootdir", str(tmp_path), str(tmp_path)]
    command = [sys.executable, "-m", "pytest", *options]
    quick = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "SEEN": str(tmp_path / "seen.txt")}
    subprocess.run(command, cwd=REPOSITORY, env=os.environ | quick, check=True, timeout=120)
    processes = defaultdict(set)
    for line in (tmp_path / "seen.txt").read_text().splitlines():
        process, test = line.split(" ", 1)
        processes[group(test)].add(process)
    assert len(processes) == 4 and all(len(those) == 1 for those in processes.values())
    assert set.union(*processes.values()) == {"gw0", "gw1"}
