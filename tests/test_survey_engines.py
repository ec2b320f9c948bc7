"""Surveys on several processes: the same numbers, and nothing lost when a process is killed.

`loky`, Dask and Ray, each with two workers on this machine; what is not installed is skipped.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pandas.testing import assert_frame_equal
from safetensors.torch import load_file, save_file

from ioi_helpers import survey
from ioi_helpers.bundled import bundled_folder
from tests.house import REPOSITORY
from tests.rewritten_models import as_gpt_neo, as_opt, as_stanford

pytestmark = pytest.mark.slow

COUNTED, DEADLY = "tests.survey_questions:counted", "tests.survey_questions:deadly"
DATA = {"few": {"n": 8, "seed": 3}}
NEEDS = {"loky": "joblib", "dask": "distributed", "ray": "ray"}


@pytest.fixture(params=list(NEEDS))
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An engine's name; workers can import what lies in tests/."""
    pytest.importorskip(NEEDS[request.param], reason=f"{request.param} is not installed")
    known = os.environ.get("PYTHONPATH")
    paths = [str(REPOSITORY), *([known] if known else [])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    yield request.param
    if request.param == "loky":  # the next test's workers are to be its own
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True)


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Bundled models, the same in other architectures, and two further steps of training."""
    folder = tmp_path_factory.mktemp("models")
    models = ["ioi-mini", "ioi-plain", "ioi-mini-no-head-dropout"]
    for form in (as_stanford, as_opt, as_gpt_neo):
        models.append(str(form(bundled_folder("ioi-plain"), folder / form.__name__)))
    for step in (1, 2):
        target = folder / f"step-{step}"
        as_stanford(bundled_folder("ioi-plain"), target)
        weights = load_file(target / "model.safetensors")
        generator = torch.Generator().manual_seed(step)
        for name, value in weights.items():
            noise = torch.randn(value.shape, generator=generator)
            weights[name] = value + 0.01 * value.std() * noise
        save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
        models.append(str(target))
    return models


def test_the_same_tables_as_in_one_process(backend: str, eight: list[str], tmp_path: Path) -> None:
    asked = survey.Survey.of(
        eight, {"few": {"n": 16, "seed": 3}}, ["behaviour", "head_attribution", "paths"]
    )
    one = survey.run(asked, tmp_path / "one", progress=False)
    two = survey.run(asked, tmp_path / "two", backend=backend, n_jobs=2, progress=False)
    assert len(one.tasks) == 24
    assert len(one.failures) == len(two.failures) == 0
    assert two.tasks["worker"].nunique() == 2
    assert two.tasks["file"].tolist() == one.tasks["file"].tolist()
    for label, table in one.tables.items():
        assert_frame_equal(two.table(label), table, rtol=1e-4, atol=1e-5)
    # Two calls for each worker at least, and here a call a model: none is loaded twice.
    assert two.tasks["seconds to load"].gt(0).sum() == 8


def test_a_dask_cluster_at_an_address(eight: list[str], tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="dask is not installed")
    asked = survey.Survey.of(eight[1:3], DATA, ["behaviour"])
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, dashboard_address=":0"
    ) as cluster:  # two threads: still one task at a time
        before = cluster.scheduler.allowed_failures
        found = survey.run(
            asked, tmp_path, backend="dask", address=cluster.scheduler_address, progress=False
        )
        assert cluster.scheduler.allowed_failures == before
    assert found.tasks["done"].all()
    assert len(found.failures) == 0


def with_deaths(log: Path, times: int) -> survey.Survey:
    questions: dict[str, dict[str, Any]] = {
        f"q{tag}": {"ask": COUNTED, "log": str(log), "tag": tag, "wait": 0.3} for tag in range(4)
    }
    questions["deadly"] = {"ask": DEADLY, "log": str(log), "times": times, "tag": 9}
    return survey.Survey.of(["ioi-plain", "ioi-mini"], DATA, questions)


@pytest.mark.parametrize("times", [1, 99], ids=["once", "always"])
def test_a_worker_that_is_killed_takes_no_answer_with_it(
    backend: str, times: int, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    asked = with_deaths(log, times)
    found = survey.run(asked, tmp_path / "out", backend=backend, n_jobs=2, progress=False)
    assert found.tasks["done"].all()
    notes = Counter(log.read_text().splitlines())
    # What was ended once is not begun again: each answer was found once.
    assert {note: n for note, n in notes.items() if note.startswith("ended") and n > 1} == {}
    assert sum(n for note, n in notes.items() if note.startswith("ended")) == 8
    dead = found.failures["question"].tolist()
    if times == 1:
        assert dead == []
        assert notes["begun deadly 9"] == 3  # two models, and the one that died again
    else:
        assert dead == ["deadly", "deadly"]
        assert found.failures["failure"].str.contains("died 2 times").all()
        assert notes["begun deadly 9"] == 4


def test_a_driver_that_is_killed_goes_on_where_it_was(backend: str, tmp_path: Path) -> None:
    """It and its workers are killed together, as when a machine goes down."""
    log, n = tmp_path / "log", 12
    questions = "".join(
        f'[questions.q{tag}]\nask = "{COUNTED}"\nlog = "{log}"\ntag = {tag}\nwait = 1.0\n'
        for tag in range(n)
    )
    (tmp_path / "s.toml").write_text(
        f'[[models]]\nname = "ioi-plain"\n[data.few]\nn = 8\n{questions}'
    )
    command = [sys.executable, "-m", "ioi_helpers.survey", str(tmp_path / "s.toml")]
    command += ["--out", str(tmp_path / "out"), "--backend", backend, "--jobs", "2"]
    driver = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0
    )
    answers = tmp_path / "out" / "answers"
    deadline = time.time() + 120
    while len(list(answers.glob("*.parquet"))) < 3 and time.time() < deadline:
        time.sleep(0.05)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    before: list[str] = []
    while (now := log.read_text().splitlines()) != before:  # until nobody is left
        before = now
        time.sleep(4)
    finished = len(list(answers.glob("*.parquet")))
    assert 3 <= finished < n
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"{n} tasks: {n} answered, 0 failed" in done.stdout
    again = Counter(log.read_text().splitlines()[len(before) :])
    assert sum(count for note, count in again.items() if note.startswith("ended")) == n - finished
    # Between the end of a question and its file on the disk lies a moment, for two workers.
    ended = {note for note in before if note.startswith("ended")}
    assert 0 <= len(ended) - finished <= 2
    assert sum(note in again for note in ended) == len(ended) - finished
