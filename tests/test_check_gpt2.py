"""`make check-gpt2`: it says at once where weights are missing, and its report says what failed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from ioi_helpers import published
from notebooks.tools.execution import find_notebooks
from notebooks.tools.gpt2 import measurements, run, weights
from notebooks.tools.gpt2.measurements import FACTS
from notebooks.tools.gpt2.report import Report, Row, summary
from tests.house import REPOSITORY
from tests.sample_notebooks import code, notebook, printed, write

SKELETON = REPOSITORY.parent / "shared" / "gpt2-skeleton"
FEW = ("exploratory.average_logit_diff", "paper.signals", "edges.exact", "fact.copying_scores")


def command(*arguments: str, home: Path, limit: float = 600) -> subprocess.CompletedProcess[str]:
    """The command, with an empty cache and no hub."""
    return subprocess.run(
        [sys.executable, "-m", "notebooks.tools", "check-gpt2", *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"HF_HOME": str(home), "HF_ENDPOINT": "http://localhost:9"},
        capture_output=True,
        text=True,
        timeout=limit,
    )


def test_without_weights_it_says_so_in_one_sentence_and_at_once(tmp_path: Path) -> None:
    start = time.monotonic()
    done = command(home=tmp_path, limit=30)
    assert time.monotonic() - start < 10
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "the Hugging Face hub cannot be reached" in done.stderr
    assert "--weights FOLDER" in done.stderr


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "no folder with a model"),
        ({"config.json": '{"n_layer": 24}'}, "is not GPT-2 small"),
        ({"config.json": json.dumps(weights.SHAPE)}, "There are no weights"),
    ],
)
def test_a_folder_without_gpt2_is_refused(
    tmp_path: Path, files: dict[str, str], sentence: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(weights.NoWeights, match=sentence):
        weights.find(tmp_path)


def test_a_folder_is_found_as_if_it_were_the_cache(tmp_path: Path) -> None:
    folder = tmp_path / "gpt2"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(weights.SHAPE))
    (folder / "model.safetensors").write_text("weights")
    found = weights.find(folder)
    script = "from notebooks.tools.gpt2 import weights; print(weights.cached().read_text())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        env=os.environ | found.environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "weights\n", done.stderr
    weights.forget(found)
    assert not Path(found.environment["HF_HUB_CACHE"]).exists()
    assert (folder / "model.safetensors").exists()


class Found(run.Check):
    """A check whose measurements are given, so that nothing is loaded."""

    def __init__(self, report: Report, values: dict[str, Any]) -> None:
        super().__init__(report, "weights", "cpu", timeout=60)
        self.values = values
        self.measured: list[str] = []

    def _measured(self, name: str) -> dict[str, Any]:
        self.measured.append(name)
        value = self.values[name]
        if isinstance(value, Exception):
            raise value
        return run._furthest(name, value)


def test_each_row_says_what_was_found_and_published(tmp_path: Path) -> None:
    name = "exploratory.per_head_dla"
    entry = published.load(name)
    off = entry.values.copy()
    off[9, 6] += 0.25
    refused = "exploratory.head_z_patch"
    values = {
        name: off,
        refused: ValueError("nothing to recover\na fraction of"),
        "paper.logit_diff": published.load("paper.logit_diff").values + 0.1,
        "paper.signals": MemoryError("no memory"),
    }
    rows = Found(Report(tmp_path, {"weights": "none"}), values).run(
        [*values, "edges.exact"], [], again=False
    )
    by_name = {row.name: row for row in rows}
    assert by_name[name].where == " at L9H6"
    assert by_name[name].difference == pytest.approx(0.25)
    assert by_name[name].published == pytest.approx(entry.values[9, 6])
    assert by_name[refused].why == "nothing to recover a fraction of"
    assert summary(rows) == "1 pass, 2 fail, 1 error, 1 not measured"
    stored = json.loads((tmp_path / "report.json").read_text())
    assert [row["name"] for row in stored["rows"]] == [row.name for row in rows]
    for text in ((tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()):
        assert "1 pass, 2 fail, 1 error, 1 not measured" in text
        assert "at L9H6" in text
        assert entry.source in text
        assert "MemoryError: no memory" in text


def test_an_interrupted_check_goes_on(tmp_path: Path) -> None:
    names = ["paper.logit_diff", "paper.io_over_s", "paper.io_probability"]
    values: dict[str, Any] = {name: published.load(name).values for name in names}
    first = Found(Report(tmp_path, {}), {**values, names[1]: _Interrupt()})
    with pytest.raises(KeyboardInterrupt):
        first.run(names, [], again=False)
    second = Found(Report(tmp_path, {}), values)
    assert summary(second.run(names, [], again=False)) == "3 pass"
    assert second.measured == names[1:]
    third = Found(Report(tmp_path, {}), values)
    third.run(names[:1], [], again=True)
    assert third.measured == names[:1]
    fourth = Found(Report(tmp_path, {}), values)
    fourth.run(names, [], again=False)
    assert fourth.measured == []
    assert Report(tmp_path, {}).stored(names[0], "of another code") is None


class _Interrupt:
    """Interrupts whoever looks at it."""

    @property
    def shape(self) -> tuple[int, ...]:
        raise KeyboardInterrupt


def test_a_failing_cell_does_not_hide_what_follows(tmp_path: Path) -> None:
    shown = 'print("Checked on GPT-2 small: every value within 1 logits.")'
    wrong = 'print("DISAGREES with the published values: 1 against 2")'
    made = notebook(code("x = 1 / 0"), code("print(x)"), code(shown), code(wrong))
    path = write(made, tmp_path / "01_made.ipynb")
    report = Report(tmp_path / "out", {})
    (row,) = Found(report, {}).run([], [path], again=False)
    assert row.verdict == "fail"
    assert row.cells == [
        "cell [2]: ZeroDivisionError: division by zero",
        "1 cells lack what failed ones would have made",
    ]
    assert row.why.startswith("1 published results agree, 1 do not")
    assert row.peak_memory > 1e7
    path_again = write(notebook(code("print(1)", [printed("1\n")])), path)
    (row,) = Found(report, {}).run([], [path_again], again=False)
    assert row.verdict == "pass"


def test_what_is_meant_by_a_name() -> None:
    names, notebooks = run.chosen([], find_notebooks)
    assert set(names) == {*published.names(), *FACTS}
    assert notebooks == find_notebooks()
    names, notebooks = run.chosen(["05", "paper.signals", "edges"], find_notebooks)
    assert names == ["paper.signals", "edges.EAP", "edges.EAP-IG", "edges.exact"]
    assert [path.name[:2] for path in notebooks] == ["05"]
    assert run.chosen(["paper.signals"], find_notebooks)[1] == []
    with pytest.raises(ValueError, match="Neither a notebook nor a published entry"):
        run.chosen(["papers"], find_notebooks)


def test_patched_runs_serve_every_entry_also_where_a_fraction_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    swept: list[tuple[str, ...]] = []

    class Refused:
        def fraction(self) -> None:
            raise ValueError("nothing to recover")

    def patch_sweep(model: Any, clean: Any, corrupted: Any, site: str, axes: Any, **_: Any) -> Any:
        swept.append((site, *axes))
        return Refused()

    class Demo:
        def swap_subject(self) -> None: ...

    monkeypatch.setattr(measurements, "_demo", lambda model: Demo())
    monkeypatch.setattr(measurements.patching, "patch_sweep", patch_sweep)
    model = object()
    for name in ("exploratory.head_z_patch", "activation_patching.z"):
        with pytest.raises(ValueError, match="nothing to recover"):
            measurements.MEASUREMENTS[name](model)  # type: ignore[arg-type]
    assert swept == [("z", "layer", "head")]


def test_three_numbers_are_read_off_the_same_adversarial_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Papers:
        def adversarial(self, about: str, pairs: bool) -> str:
            return about

    ran: list[Any] = []

    def logits_at(model: Any, data: Any) -> Any:
        ran.append(data)
        return torch.zeros(1)

    model, plain = type("Model", (), {"tokenizer": None})(), Papers()
    monkeypatch.setattr(measurements.prompts, "papers", lambda tokenizer, n: plain)
    monkeypatch.setattr(measurements.runs, "logits_at", logits_at)
    for value in (1.0, 2.0):
        found = measurements.adversarial(model, lambda logits, data, value=value: value)
        assert found.tolist() == [value] * 3
    assert ran == [plain, "S", "IO"]


@pytest.mark.slow
@pytest.mark.skipif(not SKELETON.is_dir(), reason="GPT-2's tokenizer is not beside this checkout")
def test_at_the_true_shape_everything_fails_and_nothing_crashes(tmp_path: Path) -> None:
    folder = tmp_path / "random"
    GPT2LMHeadModel(GPT2Config.from_pretrained(SKELETON)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(SKELETON).save_pretrained(folder)
    out = tmp_path / "out"
    done = command(*FEW, "--weights", str(folder), "--out", str(out), home=tmp_path)
    assert done.returncode == 1, done.stderr
    rows = [Row(**row) for row in json.loads((out / "report.json").read_text())["rows"]]
    assert {row.name: row.verdict for row in rows} == {
        name: "not measured" if name == "edges.exact" else "fail" for name in FEW
    }
