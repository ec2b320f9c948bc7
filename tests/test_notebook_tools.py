"""`make run` and `make notebooks` on small notebooks: pages, stored outputs, failures named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from nbformat import NotebookNode

from notebooks.tools import refresh, run
from notebooks.tools.execution import NOTEBOOKS, CellFailed, execute, find_notebooks
from notebooks.tools.pages import heading, page
from notebooks.tools.stored_outputs import code_cells, problems, read, tags
from tests.sample_notebooks import PICTURE, SETUP, code, figure, notebook, printed, text, write

TITLE = text("# Who looks back?\n\n[![badge](a.svg)](b)\n\nWhich *heads* see [it](c.md)?")
PLOT = f"""\
import os
from tqdm.auto import tqdm
class Plot:
    def _repr_mimebundle_(self, include=None, exclude=None):
        data = {{"text/plain": "Heat map: L9H9 1.52",
                "application/vnd.plotly.v1+json": {{"data": [], "layout": {{}}}}}}
        if os.environ.get("IOI_STATIC_FIGURES") == "1":
            data["image/png"] = "{PICTURE}"
        return data
for _ in tqdm(range(2)):
    pass
Plot()"""


def sample() -> NotebookNode:
    """A notebook never run: prose, a budget cell, a figure and a number."""
    made = notebook(code(PLOT), code("print(1.5)"), setup=SETUP)
    made.cells[:0] = [TITLE, text("What it costs:", ["budget"])]
    for cell in code_cells(made):
        cell.outputs, cell.execution_count = [], None
        cell.metadata["execution"] = {"iopub.status.busy": "2026-01-01T00:00:00Z"}
    return made


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's file, refreshed."""
    path = write(sample(), tmp_path_factory.mktemp("refresh") / "01_sample.ipynb")
    refresh.refresh(path, models=["ioi-mini"])
    return path


def test_refreshed_outputs_are_sound(refreshed: Path) -> None:
    stored = read(refreshed)
    assert problems(stored) == []
    assert "execution" not in str([cell.metadata for cell in stored.cells])
    plot = code_cells(stored)[1].outputs
    assert [sorted(output.data) for output in plot] == [
        ["application/vnd.plotly.v1+json", "image/png", "text/plain"]
    ]
    assert plot[0].metadata["image/png"]["alt"] == "Heat map: L9H9 1.52"


def test_the_budget_card_is_written_once(refreshed: Path) -> None:
    card = next(cell.source for cell in read(refreshed).cells if "budget" in tags(cell))
    assert card.startswith("What it costs:")
    assert re.search(r"run on `ioi-mini` \| \d+ s on \d+ CPU cores?, \d\.\d GB", card)
    again = refresh.with_card(card, "| other |")
    assert again.count(refresh.CARD_BEGIN) == again.count(refresh.CARD_END) == 1
    assert "ioi-mini" not in again


def test_what_chance_decides_is_not_stored(tmp_path: Path) -> None:
    made = sample()
    made.cells[-1].source = "import random\nprint(random.random())"
    path = write(made, tmp_path / "01_chance.ipynb")
    before = path.read_text()
    with pytest.raises(refresh.CannotRefresh, match=r"cell \[3\] differs between two runs"):
        refresh.refresh(path, models=["ioi-mini"])
    assert path.read_text() == before


def test_an_unfit_output_is_not_stored(tmp_path: Path) -> None:
    made = sample()
    made.cells[-1].source = 'print("/".join(["", "home", "ada"]))'
    path = write(made, tmp_path / "01_path.ipynb")
    with pytest.raises(refresh.CannotRefresh, match="machine's path"):
        refresh.refresh(path, models=[])
    assert code_cells(read(path))[0].execution_count is None


def test_run_writes_copies_pages_and_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(sample(), tmp_path / "01_sample.ipynb")
    done = run.run([path], tmp_path / "build", "ioi-mini")
    assert [(e.cells, e.figures) for e in done] == [(3, 1)]
    assert done[0].peak_memory > 1e7
    assert re.search(r"01_sample +\d+\.\d +3 +1", run.table(done))
    assert code_cells(read(tmp_path / "build/notebooks/01_sample.ipynb"))[2].outputs
    assert "cell" in capsys.readouterr().err  # the progress bar

    index = (tmp_path / "build/index.html").read_text()
    assert '<a href="01_sample.html">Who looks back?</a>' in index
    assert "Which heads see it?" in index
    source = (tmp_path / "build/01_sample.html").read_text()
    for script in ("plotly.min.js", "circuitsvis.js", "figures.js"):
        assert source.count(f'<script src="{script}"></script>') == 1
        assert (tmp_path / "build" / script).stat().st_size > 100
    assert "require.min.js" not in source
    assert "Heat map: L9H9 1.52" in source
    assert f"base64,{PICTURE}" in source  # what a page without JavaScript shows


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\nraise ValueError('too short')", r"cell \[3\]: ValueError: too short\n.*raise"),
        ("import os\nos._exit(1)", r"cell \[3\]: the kernel died"),
    ],
)
def test_a_failing_cell_is_named(tmp_path: Path, source: str, message: str) -> None:
    path = write(notebook(code("a = 1"), code(source), code("b = 1")), tmp_path / "02_bad.ipynb")
    with pytest.raises(CellFailed, match=r"02_bad.ipynb, " + message) as failure:
        run.run([path], tmp_path / "build", "ioi-mini")
    assert len(str(failure.value)) < 200
    assert (tmp_path / "build/notebooks/02_bad.ipynb").exists()


def test_a_cell_that_takes_too_long(tmp_path: Path) -> None:
    path = write(notebook(code("import time\ntime.sleep(60)")), tmp_path / "03_slow.ipynb")
    with pytest.raises(CellFailed, match=r"cell \[2\]: it ran for more than 1 seconds"):
        execute(path, {}, timeout=1)


def test_notebooks_by_name() -> None:
    assert find_notebooks() == sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    with pytest.raises(ValueError, match="No notebook's name begins with '99'"):
        find_notebooks(["99"])


def test_links_between_notebooks_lead_to_pages() -> None:
    made = notebook(text("# A\n\nGo to [the next](02_next.ipynb#top), or [out](other.ipynb)."))
    source = page(made, ["01_this", "02_next"])
    assert 'href="02_next.html#top"' in source
    assert 'href="other.ipynb"' in source
    assert "<script src=" not in source.split("</main>")[0].split("<main>")[1]  # no figures


def test_a_notebook_without_title() -> None:
    assert heading(notebook(text("words"))) == ("untitled", "")


def test_reading_time_leaves_out_solutions() -> None:
    words = text("one two <b>three</b> [four](http://example.org/five)")
    hidden = text("a b c d e f g", ["solution"])
    assert refresh.reading_words(notebook(words, hidden)) == 4


def test_streams_are_merged_and_progress_dropped() -> None:
    bar = printed("\r100%|###| 3/3 [00:01<00:00]\n", "stderr")
    made = notebook(code("f()", [printed("a\n"), bar, printed("b\n")]))
    outputs = code_cells(refresh.cleaned(made))[1].outputs
    assert [(o.name, o.text) for o in outputs] == [("stdout", "a\nb\n")]


def test_scripts_are_not_stored_beside_a_picture() -> None:
    made = notebook(code("f()", [figure("Patterns", text_html="<script>draw()</script>")]))
    assert "text/html" not in code_cells(refresh.cleaned(made))[1].outputs[0].data
