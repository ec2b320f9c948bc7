"""The plugin over nbval, end to end: pytest runs a notebook whose stored outputs are known."""

from __future__ import annotations

import os
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from notebooks.tools.execution import REPOSITORY
from tests.sample_notebooks import code, figure, notebook, printed, write

PLOT = """\
class Plot:
    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/plain": "Heat map: highest L9H9 1.520", "application/vnd.plotly.v1+json": {}}
Plot()"""
STDERR = 'import sys\nprint("1")\nprint("UserWarning", file=sys.stderr)'
PROGRESS = "from tqdm import tqdm\nfor _ in tqdm(range(3)):\n    pass\nprint(1)"


PASSING = {
    "equal": code("print(3.5519999)", [printed("3.5519999\n")]),
    "noise": code("print(3.5519999 + 1e-7)", [printed("3.5519999\n")]),
    "versions": code('print("torch 2.14.1+cpu")', [printed("torch 2.13.0\n")], ["versions"]),
    "figure": code(PLOT, [figure("Heat map: highest L9H9 1.521")]),
    "progress": code(PROGRESS, [printed("1\n")]),
    "model": code('import os\nprint(os.environ["IOI_MODEL"])', [printed("ioi-mini\n")]),
    "package": code("import ioi_helpers"),
    "no output": code("x = 1"),
}
FAILING = {
    "two per cent": (
        code("print(3.5519999 * 1.02)", [printed("3.5519999\n")]),
        "stored 3.5519999, now 3.62",
    ),
    "word": (code('print("L9H6")', [printed("L9H9\n")]), "the text differs"),
    "missing": (code("x = 1", [printed("1\n")]), "missing output"),
    "extra": (code("print(1)"), "extra output"),
    "error": (code("1/0"), "ZeroDivisionError"),
    "unrun": (code("print(2)"), "never executed"),
    "skipped": (code("# NBVAL_SKIP\nprint(1)", [printed("1\n")]), "left out"),
    "ignored": (code("# NBVAL_IGNORE_OUTPUT\nprint(1)", [printed("2\n")]), "left out"),
    "ignored by tag": (code("print(1)", [printed("2\n")], ["nbval-ignore-output"]), "left out"),
    "number in a figure": (
        code(PLOT, [figure("Heat map: highest L9H9 1.551")]),
        "stored 1.551, now 1.520",
    ),
    "figure without summary": (
        code(PLOT.replace("Heat map: highest L9H9 1.520", ""), [figure()]),
        "no text summary",
    ),
    "standard error": (code(STDERR, [printed("1\n")]), "wrote to standard error"),
    "word among versions": (
        code('print("ioi-plain, torch 2.13.0")', [printed("ioi-mini, torch 2.13.0")], ["versions"]),
        "the text differs",
    ),
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What pytest says of each sample cell: `passed`, or the text of its failure.

    All stand in one notebook, where nbval goes on after a cell that fails.
    """
    folder = tmp_path_factory.mktemp("samples")
    cells = [*PASSING.values(), *(cell for cell, _ in FAILING.values())]
    made = notebook(*cells)
    cells[[*PASSING, *FAILING].index("unrun")].execution_count = None
    write(made, folder / "samples.ipynb")
    # notebooks/conftest.py is what loads the plugin when pytest runs on the real notebooks.
    plugins = ["-p", "notebooks.conftest", "-p", "no:cacheprovider"]
    results = folder / "results.xml"
    options = ["--nbval", "--nbval-current-env", "--color=no", "-q", f"--junitxml={results}"]
    command = [sys.executable, "-m", "pytest", *plugins, *options, "-c", os.devnull, "--rootdir"]
    done = subprocess.run(
        [*command, folder, folder], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1, done.stdout + done.stderr
    verdicts = []
    for case in ElementTree.parse(results).iter("testcase"):
        failure = case.find("failure")
        verdicts.append("passed" if failure is None else failure.text or "")
    assert len(verdicts) == 1 + len(cells)
    return dict(zip([*PASSING, *FAILING], verdicts[1:]))


@pytest.mark.parametrize("name", PASSING)
def test_passes(report: dict[str, str], name: str) -> None:
    assert report[name] == "passed"


@pytest.mark.parametrize("name", FAILING)
def test_fails_and_says_why(report: dict[str, str], name: str) -> None:
    assert FAILING[name][1] in report[name]
