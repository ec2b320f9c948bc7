"""`make run`, `make check`, `make notebooks` and `make budgets` on small notebooks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from nbformat import NotebookNode

from ioi_helpers.bundled import bundled_folder
from notebooks.tools import __main__ as tools
from notebooks.tools import budgets, check, execution, refresh, run
from notebooks.tools.compare import compare_outputs, without_progress
from notebooks.tools.execution import NOTEBOOKS, CellFailed, execute, find_notebooks
from notebooks.tools.site.outputs import RUN
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
    refresh.refresh(path)
    return path


@pytest.fixture
def curriculum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the commands take for notebooks/, with 01 and 02 in it."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(execution, "NOTEBOOKS", folder)
    for name, number in (("01_one", 1.5), ("02_two", 2.5)):
        made = notebook(text(f"# {name}"), code(f"print({number})", [printed(f"{number}\n")]))
        write(made, folder / f"{name}.ipynb")
    return folder


def test_refreshed_outputs_are_sound(refreshed: Path) -> None:
    stored = read(refreshed)
    assert problems(stored) == []
    assert "execution" not in str([cell.metadata for cell in stored.cells])
    assert f"# {stored.metadata['title']}" == TITLE.source.splitlines()[0]
    plot = code_cells(stored)[1].outputs
    assert [sorted(output.data) for output in plot] == [
        ["application/vnd.plotly.v1+json", "image/png", "text/plain"]
    ]
    assert plot[0].metadata["image/png"]["alt"] == "Heat map: L9H9 1.52"


def test_the_budget_card_is_written_once(refreshed: Path) -> None:
    card = next(cell.source for cell in read(refreshed).cells if "budget" in tags(cell))
    assert card.startswith("What it costs:")
    assert "| to read | about 1 minute (8 words) |" in card
    again = budgets.with_card(card, ["| other |"])
    assert again.count(budgets.CARD_BEGIN) == again.count(budgets.CARD_END) == 1
    assert "to read" not in again


def test_seconds_change_only_when_they_are_measured(tmp_path: Path) -> None:
    path = write(sample(), tmp_path / "01_sample.ipynb")
    budgets.measure(path, ["ioi-mini"])
    measured = read(path)
    card = budgets.budget_cell(measured).source
    assert re.search(r"run on `ioi-mini` \| \d+ s on \d+ CPU cores?, \d\.\d GB", card)
    assert code_cells(measured)[0].execution_count is None  # outputs are left as they were

    lasting = card.replace("| to run on `ioi-mini` | ", "| to run on `ioi-mini` | 1234")
    budgets.budget_cell(measured).source = lasting
    measured.cells[0].source += " And who looks ahead?"
    budgets.renew(measured)
    renewed = budgets.budget_cell(measured).source
    assert "(12 words)" in renewed
    assert renewed.replace("(12 words)", "(8 words)") == lasting


def test_gpt2s_row_is_timed_on_a_model_in_its_shape_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(sample(), tmp_path / "01_sample.ipynb")
    budgets.measure(path, ["ioi-mini"])
    said = budgets.at_gpt2_shape(path, bundled_folder("ioi-mini"))  # any folder of a model
    assert re.match(r"\d+ s of processor time, \d\.\d GB; most of it \d+ s in '", said)
    row = r"\| to run on `gpt2-small` \| about \d+ s on one CPU core, \d\.\d GB of memory \(timed"
    card = budgets.budget_cell(read(path)).source
    assert len(re.findall(row, card)) == card.count("gpt2-small") == 1
    assert "run on `ioi-mini`" in card
    monkeypatch.setattr(
        budgets, "execute", lambda *_, **__: execution.Execution(path, None, 1, 1, ())
    )
    budgets.measure(path, ["ioi-mini"])
    assert len(re.findall(row, budgets.budget_cell(read(path)).source)) == 1


def test_nothing_is_measured_beside_other_work(
    curriculum: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 0 <= budgets.busy_cores(0.05) <= (os.cpu_count() or 1)
    monkeypatch.setattr(budgets, "busy_cores", lambda: 1.3)
    assert tools.main(["budgets", "01"]) == 1
    message = capsys.readouterr().err
    assert "keeps 1.3 cores" in message
    assert "01_one.ipynb is left as it was" in message


def test_what_chance_decides_is_not_stored(tmp_path: Path) -> None:
    made = sample()
    made.cells[-1].source = "import random\nprint(random.random())"
    path = write(made, tmp_path / "01_chance.ipynb")
    before = path.read_text()
    with pytest.raises(refresh.CannotRefresh, match=r"cell \[3\] differs between two runs"):
        refresh.refresh(path)
    assert path.read_text() == before


def test_an_unfit_output_is_not_stored(tmp_path: Path) -> None:
    made = sample()
    made.cells[-1].source = 'print("/".join(["", "home", "ada"]))'
    path = write(made, tmp_path / "01_path.ipynb")
    with pytest.raises(refresh.CannotRefresh, match="machine's path"):
        refresh.refresh(path)
    assert code_cells(read(path))[0].execution_count is None


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Path]]:
    """The copies of which pages were made, each time, in place of making them."""
    calls: list[dict[str, Path]] = []

    def build(out: Path, executed: dict[str, Path]) -> str:
        assert out.name == "pages"
        calls.append(executed)
        return ""

    monkeypatch.setattr(run, "build", build)
    return calls


def test_run_writes_copies_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(sample(), tmp_path / "01_sample.ipynb")
    done = run.run([path], tmp_path / "copies", "ioi-mini")
    assert [(e.cells, e.figures) for e in done] == [(3, 1)]
    assert done[0].peak_memory > 1e7
    assert re.search(r"01_sample +\d+\.\d +3 +1", run.table(done))
    made = read(tmp_path / "copies/01_sample.ipynb")
    assert "image/png" in code_cells(made)[1].outputs[-1].data
    assert made.metadata[RUN]["model"] == "ioi-mini" and made.metadata[RUN]["seconds"] > 0
    assert "cell" in capsys.readouterr().err  # the progress bar


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\nraise ValueError('too short')", r"cell \[2\]: ValueError: too short\n.*raise"),
        ("import os\nos._exit(1)", r"cell \[2\]: the kernel died"),
    ],
)
def test_a_failing_cell_is_named_and_what_ran_is_shown(
    source: str,
    message: str,
    curriculum: Path,
    built: list[dict[str, Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(notebook(code(source), code("b = 1")), curriculum / "02_two.ipynb")
    assert tools.main(["run", "--out", str(tmp_path / "build")]) == 1
    said = re.search(r"02_two.ipynb, " + message, capsys.readouterr().err)
    assert said and len(said[0]) < 200
    copies = tmp_path / "build/notebooks"
    assert built == [{"01_one": copies / "01_one.ipynb"}]
    assert (copies / "02_two.ipynb").exists()  # as far as it came


def test_one_notebook_is_renewed_and_the_others_stay(
    curriculum: Path, built: list[dict[str, Path]], tmp_path: Path
) -> None:
    build = tmp_path / "build"
    copies = build / "notebooks"
    copies.mkdir(parents=True)
    (copies / "mine.ipynb").write_text("a reader's own")
    write(notebook(), copies / "03_gone.ipynb")
    assert tools.main(["run", "--out", str(build)]) == 0
    assert not (copies / "03_gone.ipynb").exists()
    both = {name: copies / f"{name}.ipynb" for name in ("01_one", "02_two")}
    before = {name: path.stat().st_mtime_ns for name, path in both.items()}
    assert tools.main(["run", "02", "--out", str(build)]) == 0
    assert both["01_one"].stat().st_mtime_ns == before["01_one"]
    assert both["02_two"].stat().st_mtime_ns > before["02_two"]
    assert built == [both, both]
    assert (copies / "mine.ipynb").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C reaches processes in another way there")
def test_ctrl_c_ends_in_one_line_and_keeps_what_was_executed(
    curriculum: Path, tmp_path: Path
) -> None:
    build = tmp_path / "build"
    endless = notebook(code("open('began', 'w').close()\nwhile True: pass"))
    write(endless, curriculum / "02_two.ipynb")
    script = (
        "import pathlib, sys; from notebooks.tools import execution, run;"
        f"execution.NOTEBOOKS = pathlib.Path({str(curriculum)!r});"
        f"sys.exit(run.main(['--out', {str(build)!r}]))"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=NOTEBOOKS.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (curriculum / "began").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    said = without_progress(errors)
    assert said == f"Interrupted. Notebooks executed so far are kept: {build / 'notebooks'}"
    assert RUN in read(build / "notebooks/01_one.ipynb").metadata


def test_check_compares_and_stores_nothing(
    curriculum: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tools.main(["check"]) == 0
    assert capsys.readouterr().out == "01_one.ipynb: as stored\n02_two.ipynb: as stored\n"
    path = curriculum / "02_two.ipynb"
    path.write_text(path.read_text().replace("print(2.5)", "print(3.5)"))
    before = path.read_text()
    assert tools.main(["check", "02"]) == 1
    assert capsys.readouterr().out == ("02_two.ipynb:\n  cell [2]: printed: stored 2.5, now 3.5\n")
    path.write_text(path.read_text().replace("print(3.5)", "1 / 0"))
    assert tools.main(["check", "02"]) == 1
    assert "cell [2]: ZeroDivisionError" in capsys.readouterr().out
    assert path.read_text() == before.replace("print(3.5)", "1 / 0")


def test_a_gpu_that_is_not_there(
    curriculum: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert tools.main(["check", "01", "--device", "cuda"]) == 1
    assert "There is no CUDA device here" in capsys.readouterr().err


def test_a_loaded_model_may_name_another_device() -> None:
    told = "ioi-mini (6 layers, 6 heads, width 144, on {}): IOI_MODEL is set."
    on = {name: [printed(told.format(name))] for name in ("cpu", "cuda", "cuda:0")}
    assert compare_outputs(on["cpu"], on["cuda:0"], versions=True) == []
    assert compare_outputs(on["cpu"], on["cuda"]) == []  # a second model, in another cell


def test_every_command_is_there(
    curriculum: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tools.main([]) == tools.main(["bake"]) == 2
    listed = capsys.readouterr().err
    assert all(name in listed for name in tools.COMMANDS)
    for name in ("run", "check", "refresh", "budgets"):
        assert tools.main([name, "99"]) == 1
        assert "No notebook's name begins with '99'" in capsys.readouterr().err

    def interrupted(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "main", interrupted)
    assert tools.main(["check"]) == 130
    assert capsys.readouterr().err == "\nInterrupted.\n"


def test_a_notebook_reads_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = code("f()", [printed("a\nb\n"), figure("Heat map: L9H9 1.52")], ["exercise"])
    shown.metadata["exercise"] = {"id": "01.1", "minutes": 5}
    path = write(notebook(text("# Title"), shown), tmp_path / "01_a.ipynb")
    assert tools.main(["as_text", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "━━━ code versions"
    place = lines.index("━━━ markdown")
    assert lines[place : place + 9] == [
        "━━━ markdown",
        "# Title",
        "",
        '━━━ code exercise {"exercise": {"id": "01.1", "minutes": 5}}',
        "f()",
        "│ a",
        "│ b",
        "│ Heat map: L9H9 1.52",
        lines[place + 8],
    ]
    assert re.fullmatch(r"│ \[image/png [0-9a-f]{8}\]", lines[place + 8])


def test_git_shows_what_changed_in_a_notebook_and_nothing_else(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    path = tmp_path / "01_a.ipynb"
    picture = figure("Heat map: L9H9 1.52", image_png="A" * 100_000)
    write(notebook(text("# Title\n\nWords."), code("f()", [picture])), path)
    git("init", "-q")
    (tmp_path / ".gitattributes").write_text((NOTEBOOKS.parent / ".gitattributes").read_text())
    git("add", ".")
    git("commit", "-qm", "first")
    picture.data["image/png"] = "B" * 100_000
    write(notebook(text("# Title\n\nMore words."), code("f()", [picture])), path)
    program = f"PYTHONPATH={NOTEBOOKS.parent} {sys.executable} -m notebooks.tools as_text"
    git("config", "diff.notebook.textconv", program)
    changed = [line for line in git("diff").splitlines() if re.match(r"[-+](?!--|\+\+)", line)]
    assert changed[:2] == ["-Words.", "+More words."]
    assert len(changed) == 4
    assert all("image/png" in line for line in changed[2:])


def test_a_cell_that_takes_too_long(tmp_path: Path) -> None:
    path = write(notebook(code("import time\ntime.sleep(60)")), tmp_path / "03_slow.ipynb")
    with pytest.raises(CellFailed, match=r"cell \[2\]: it ran for more than 1 seconds"):
        execute(path, {}, timeout=1)


def test_notebooks_by_name() -> None:
    assert find_notebooks() == sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    with pytest.raises(ValueError, match="No notebook's name begins with '99'"):
        find_notebooks(["99"])


def test_reading_time_counts_prose_and_printed_sentences() -> None:
    words = text("one two <b>three</b> [four](http://example.org/five)\n```python\nx = 1\n```")
    hidden = text("a b c d e f g", ["solution"])
    said = code("f()", [printed("L0H1 alone writes 0.52 logits.\n"), printed("no", "stderr")])
    assert budgets.reading_words(notebook(words, hidden)) == 4
    assert budgets.reading_words(notebook(words, hidden, said)) == 4 + 4


def test_streams_are_merged_and_progress_dropped() -> None:
    bar = printed("\r100%|###| 3/3 [00:01<00:00]\n", "stderr")
    made = notebook(code("f()", [printed("a\n"), bar, printed("b\n")]))
    outputs = code_cells(refresh.cleaned(made))[1].outputs
    assert [(o.name, o.text) for o in outputs] == [("stdout", "a\nb\n")]


def test_scripts_are_not_stored_beside_a_picture() -> None:
    made = notebook(code("f()", [figure("Patterns", text_html="<script>draw()</script>")]))
    assert "text/html" not in code_cells(refresh.cleaned(made))[1].outputs[0].data
