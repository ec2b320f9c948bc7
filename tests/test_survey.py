"""A survey: what its tables hold, that it repeats nothing, what happens when something fails."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal

from ioi_helpers import IOIDataset, attribution, heads, load_model, metrics, runs, survey
from ioi_helpers.bundled import bundled_folder
from ioi_helpers.survey import engines, identity, running, tables
from ioi_helpers.survey.belief import belief
from ioi_helpers.survey.ledger import Ledger
from ioi_helpers.survey.tasks import Call, Places, Task, calls_of, tasks_of
from ioi_helpers.survey.workers import work
from tests import survey_questions

COUNTED = "tests.survey_questions:counted"
DATA = {"few": {"n": 12, "seed": 3}}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.touch()
    return path


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines()


def counting(log: Path, models: Any = ("ioi-plain",), tags: int = 2) -> survey.Survey:
    """A survey whose questions keep count."""
    questions = {f"q{tag}": {"ask": COUNTED, "log": str(log), "tag": tag} for tag in range(tags)}
    return survey.Survey.of(models, DATA, questions)


# --- what tables hold ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> survey.Results:
    questions: dict[str, dict[str, Any]] = {
        "behaviour": {},
        "head_attribution": {},
        "ablations": {"role": "END"},
        "patching": {"corrupted": "swap_order", "axes": ["layer", "role"], "site": "resid_pre"},
        "paths": {},
        "edges": {"inputs": ["q", "final"], "steps": 1},
        "circuit_scores": {},
        "lrqp": {"points": ["L2.mid"]},
        "repair": {"writers": 2},
        "responses": {"writers": 3},
        "belief": {},
        "head_table": {"sweep_prompts": 4, "seeds": [0], "length": 10, "data": ["few"]},
    }
    many = ("lrqp", "belief")
    asked = survey.Survey.of(
        ["ioi-plain"], {**DATA, "more": {"n": 60, "prefixes": "bundled"}},
        {k: {"data": "more" if k in many else "few"} | v for k, v in questions.items()},
    )  # fmt: skip
    return survey.run(asked, tmp_path_factory.mktemp("found"), progress=False)


def test_every_question_is_answered_and_says_what_its_columns_hold(found: survey.Results) -> None:
    assert set(found.tables) == set(survey.QUESTIONS)
    assert len(found.failures) == 0, found.failures["failure"].tolist()
    for label, table in found.tables.items():
        assert len(table) > 0
        about = table.attrs["columns"]
        assert set(about) == set(table), label
        assert all(about.values()), label
        errors = table[[name for name in table if str(name).endswith("error")]]
        assert label in ("head_table", "belief") or not errors.isna().any().any(), label
        assert table["failure"].isna().all()


def test_a_belief_is_followed_to_heads_that_can_have_heard_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Known:
        def of_class(self, name: str) -> list[str]:
            return ["L0H0", "L1H1", "L2H0", "L4H4"]

    monkeypatch.setattr(heads, "head_table", lambda *_, **__: None)
    monkeypatch.setattr(heads, "registry_of", lambda _: Known())
    model = load_model("ioi-mini", device="cpu", verbose=False)
    row = belief(model, IOIDataset.generate(model.tokenizer, 60, seed=3)).iloc[0]
    assert row["point"] == "L2.pre"
    assert row["S-inhibition heads"] == row["name movers"] == "L2H0, L4H4"


def test_numbers_are_those_of_the_helpers(found: survey.Results) -> None:
    model = load_model("ioi-plain", device="cpu", verbose=False)
    data = IOIDataset.generate(model.tokenizer, 12, seed=3)
    diffs = runs.logit_diffs(model, data)
    behaviour = found.table("behaviour").set_index("order")
    for order, expected in {
        "all": metrics.mean_and_stderr(diffs, data.pair_ids),
        **metrics.by_order(diffs, data),
    }.items():
        row = behaviour.loc[order]
        assert row["logit_diff"] == pytest.approx(expected.mean, abs=1e-5)
        assert row["logit_diff error"] == pytest.approx(expected.stderr, abs=1e-5)
        assert row["pairs"] == expected.n
    direct = attribution.head_attribution(model, data)
    ours = found.table("head_attribution")
    assert ours["name"].tolist() == list(direct.labels)
    assert ours["direct"].tolist() == pytest.approx(direct.values.flatten().tolist(), abs=1e-5)
    share = direct.values.flatten() / diffs.mean()
    assert ours["share"].tolist() == pytest.approx(share.tolist(), abs=1e-5)
    table = heads.head_table(
        model, data, sweep_prompts=4, seeds=(0,), length=10, progress=False
    ).reset_index()
    assert_frame_equal(
        found.table("head_table")[list(table)], table, check_dtype=False, rtol=1e-4, atol=1e-5
    )


def test_tables_are_files_that_say_the_same(found: survey.Results, tmp_path: Path) -> None:
    table = found.table("behaviour")
    tables.write(table, tmp_path / "t.parquet", {"survey": "s"}, tmp_path)
    again, record = tables.read(tmp_path / "t.parquet")
    assert_frame_equal(again, table, check_dtype=False)
    assert again.attrs == table.attrs
    assert record == {"survey": "s"}
    assert "logits" in again.attrs["columns"]["logit_diff"]


# --- nothing is repeated, nothing mixed ----------------------------------------------------------


def test_a_second_run_answers_nothing_again(log: Path, tmp_path: Path) -> None:
    first = survey.run(counting(log, ["ioi-plain", "ioi-mini"]), tmp_path / "out", progress=False)
    assert len(lines(log)) == 8
    assert first.tasks["seconds to load"].gt(0).sum() == 2  # each model once
    again = survey.run(counting(log, ["ioi-plain", "ioi-mini"]), tmp_path / "out", progress=False)
    assert len(lines(log)) == 8
    for label, table in first.tables.items():
        assert_frame_equal(again.table(label), table)
        kept, _ = tables.read(tmp_path / "out" / "survey" / f"{label}.parquet")
        assert_frame_equal(kept, table, check_dtype=False)
    more = survey.run(counting(log, ["ioi-plain"], tags=3), tmp_path / "out", progress=False)
    assert lines(log)[8:] == ["begun ioi-plain 2", "ended ioi-plain 2"]
    assert more.table("q0")["model"].tolist() == ["ioi-plain"]  # and no other survey's rows
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "answers", "survey", "unfinished",
    ]  # fmt: skip
    assert list((tmp_path / "out" / "unfinished").iterdir()) == []


def only_task(**changed: Any) -> Task:
    asked: dict[str, Any] = {
        "models": ["ioi-plain"], "data": {"d": {"n": 4}}, "questions": {"behaviour": {}},
    }  # fmt: skip
    (task,) = tasks_of(survey.Survey.of(**(asked | changed)))
    return task


@pytest.mark.parametrize(
    "changed",
    [
        {"models": ["ioi-mini"]},
        {"models": [{"name": "ioi-plain", "dtype": "float64"}]},
        {"data": {"d": {"n": 6}}},
        {"data": {"d": {"n": 4, "make": "paper"}}},
        {"questions": {"behaviour": {"ask": "head_attribution"}}},
        {"questions": {"behaviour": {"ask": "ablations", "how": "zero"}}},
        {"questions": {"behaviour": {"ask": "ablations"}}},
    ],
)
def test_what_an_answer_depends_on_is_in_its_name(changed: dict[str, Any]) -> None:
    assert only_task(**changed).digest != only_task().digest


@pytest.mark.parametrize(
    "changed",
    [
        {"models": [{"name": "ioi-plain", "device": "cpu", "dtype": torch.float32}]},
        {"data": {"other label": {"n": 4}}},
        {"questions": {"other label": {"ask": "behaviour"}}},
        {"name": "other"},
    ],
)
def test_labels_and_places_are_not(changed: dict[str, Any]) -> None:
    assert only_task(**changed).digest == only_task().digest


def test_the_version_and_the_source_of_a_question_are(
    monkeypatch: pytest.MonkeyPatch, log: Path
) -> None:
    def other(model: Any, data: Any, *, log: str) -> pd.DataFrame:
        return pd.DataFrame()

    mine = {"q": {"ask": survey_questions.counted, "log": str(log)}}
    before = only_task().digest, only_task(questions=mine).digest
    assert only_task(questions={"q": {"ask": other, "log": str(log)}}).digest != before[1]
    monkeypatch.setattr(identity, "__version__", "another")
    assert only_task().digest != before[0]


def test_a_folder_is_known_by_its_bytes(tmp_path: Path) -> None:
    shutil.copytree(bundled_folder("ioi-plain"), tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two = (only_task(models=[str(tmp_path / name)]).digest for name in ("one", "two"))
    assert one == two
    (tmp_path / "two" / "README.md").write_text("another card")
    assert only_task(models=[str(tmp_path / "two")]).digest == one
    weights = (tmp_path / "two" / "model.safetensors").read_bytes()
    (tmp_path / "two" / "model.safetensors").write_bytes(weights[:-1] + b"\x01")
    assert only_task(models=[str(tmp_path / "two")]).digest != one


def test_an_answer_is_whole_or_not_there(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = tables.parquet.write_table

    def broken(table: Any, file: Any) -> None:
        write(table, file)
        raise OSError("no space left")

    monkeypatch.setattr(tables.parquet, "write_table", broken)
    with pytest.raises(OSError, match="no space"):
        survey.run(counting(log), tmp_path / "out", progress=False)
    assert list((tmp_path / "out" / "answers").iterdir()) == []
    monkeypatch.undo()
    assert survey.run(counting(log), tmp_path / "out", progress=False).tasks["done"].all()


# --- what fails ----------------------------------------------------------------------------------


def test_a_failure_is_a_row_and_the_rest_goes_on(log: Path, tmp_path: Path) -> None:
    asked = survey.Survey.of(
        ["ioi-mini", "no/such-folder", "ioi-plain"], DATA,
        {"f": {"ask": "tests.survey_questions:failing", "log": str(log), "only": "mini"}},
    )  # fmt: skip
    result = survey.run(asked, tmp_path, progress=False)
    table = result.table("f").set_index("model")
    assert table.index.tolist() == ["ioi-plain", "ioi-mini", "no/such-folder"]
    assert table["whole"].isna().tolist() == [False, True, True]
    assert str(table["whole"].dtype) == "Int64"
    assert table["failure"]["ioi-mini"] == "RuntimeError: this question always fails"
    assert "ModelUnavailable" in table["failure"]["no/such-folder"]
    assert str(result).startswith("3 tasks: 1 answered, 2 failed")
    assert len(survey.run(asked, tmp_path, progress=False).failures) == 2
    assert len(lines(log)) == 2  # a failure is an answer ...
    survey.run(asked, tmp_path, progress=False, retry=True)
    assert len(lines(log)) == 3  # ... unless it is to be tried again


def test_a_model_that_is_offloaded_is_a_row_that_says_why(tmp_path: Path) -> None:
    """TransformerLens does not fold weights that accelerate keeps on disk."""
    here = {"name": str(bundled_folder("ioi-plain")), "device_map": {"": "cpu"}}
    away = {"name": "ioi-plain", "device_map": {"": "disk"}, "offload_folder": str(tmp_path)}
    asked = survey.Survey.of([here, away], DATA, ["behaviour"])
    table = survey.run(asked, tmp_path / "out", progress=False).table("behaviour")
    assert table["failure"].isna().tolist() == [True, True, True, False]
    assert "cannot fold" in table["failure"].iloc[-1]


class Dying:
    """In place of an engine whose workers die of certain tasks, and take all with them."""

    def __init__(self, deadly: set[str], times: int) -> None:
        self.deadly, self.times = deadly, times
        self.handed: list[list[str]] = []

    def __call__(self, calls: list[Call]) -> None:
        self.handed.append([task.question.label for call in calls for task in call.tasks])
        for call in calls:
            ledger = Ledger(call.places.run)
            for task in call.tasks:
                begun = ledger.begun(task)
                if task.question.label in self.deadly and begun < self.times:
                    ledger.begin(task)
                    raise engines.WorkersLost("a worker died")
            work(call)


@pytest.mark.parametrize(("times", "lost"), [(1, False), (2, True), (9, True)])
def test_what_a_worker_died_of_is_tried_again_alone(
    times: int, lost: bool, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = Dying({"q1"}, times)
    monkeypatch.setattr(running, "hand_out", dying)
    result = survey.run(counting(log, tags=3), tmp_path / "out", progress=False)
    assert dying.handed[0] == ["q0", "q1", "q2"]
    assert all(len(one) == 1 for one in dying.handed[1:] if "q1" in one)
    assert result.tasks["done"].all()
    failures = result.failures.set_index("question")["failure"].to_dict()
    assert set(failures) == ({"q1"} if lost else set())
    assert "died 2 times" in failures.get("q1", "died 2 times")
    assert sorted(lines(log)) == sorted(
        f"{what} ioi-plain {tag}" for what in ("begun", "ended") for tag in range(3)
        if tag != 1 or not lost
    )  # fmt: skip


def test_workers_that_never_begin_end_the_run(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(calls: list[Call]) -> None:
        raise engines.WorkersLost("at once")

    monkeypatch.setattr(running, "hand_out", dead)
    with pytest.raises(engines.WorkersLost, match="at once"):
        survey.run(counting(log), tmp_path, progress=False)
    monkeypatch.setattr(running, "hand_out", lambda calls: None)
    with pytest.raises(engines.WorkersLost, match="did not arrive"):
        survey.run(counting(log), tmp_path, progress=False)


def test_a_worker_that_does_not_see_the_folder_says_so(log: Path, tmp_path: Path) -> None:
    task = tasks_of(counting(log))[0]
    with pytest.raises(FileNotFoundError, match="all workers share"):
        work(Call((task,), Places(tmp_path, tmp_path / "elsewhere"), 2**30))


# --- who does what -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "tags", "workers", "sizes"),
    [
        (["ioi-mini", "ioi-plain"], 3, 1, [3, 3]),  # each model once
        (["ioi-mini", "ioi-plain"], 4, 2, [2, 2, 2, 2]),
        (["ioi-plain"], 3, 2, [1, 1, 1]),
        (["ioi-plain"], 3, 100, [1, 1, 1]),
    ],
)
def test_a_models_tasks_stay_together_unless_workers_would_idle(
    models: list[str], tags: int, workers: int, sizes: list[int], log: Path, tmp_path: Path
) -> None:
    tasks = tasks_of(counting(log, models, tags))
    calls = calls_of(tasks, Places(tmp_path, tmp_path), 1, workers)
    assert [len(call.tasks) for call in calls] == sizes
    assert [task for call in calls for task in call.tasks] == tasks
    assert all(len({task.weights for task in call.tasks}) == 1 for call in calls)


# --- asked in words ------------------------------------------------------------------------------

TOML = """
name = "named"

[[models]]
name = "EleutherAI/pythia-160m"
revisions = ["step0", "step1000"]
dtype = "float32"

[[models]]
name = "ioi-plain"

[data.few]
n = 4

[data.more]
make = "paper"
n = 6

[questions.behaviour]

[questions.heads]
ask = "head_table"
data = "few"
sweep_prompts = 4
"""


def test_a_file_says_the_same_as_python(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(TOML)
    assert survey.Survey.from_toml(tmp_path / "s.toml") == survey.Survey.of(
        models=[
            {"name": "EleutherAI/pythia-160m", "revision": "step0", "dtype": "float32"},
            {"name": "EleutherAI/pythia-160m", "revision": "step1000", "dtype": "float32"},
            "ioi-plain",
        ],
        data={"few": {"n": 4}, "more": {"make": "paper", "n": 6}},
        questions={
            "behaviour": {},
            "heads": {"ask": "head_table", "data": ["few"], "sweep_prompts": 4},
        },
        name="named",
    )


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ioi_helpers.survey.__main__ import main

    shutil.copytree(bundled_folder("ioi-plain"), tmp_path / "plain")
    (tmp_path / "s.toml").write_text(
        '[[models]]\nname = "./plain"\n[data.few]\nn = 4\n[questions.behaviour]\n'
        '[questions.circuit_scores]\ncircuit = "unheard of"\n'
    )
    arguments = [str(tmp_path / "s.toml"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--status"]) == 0
    assert "2 tasks, 0 done" in capsys.readouterr().out
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "1.0 GiB of activations" in said.replace("1 GiB", "1.0 GiB")
    assert "2 tasks: 1 answered, 1 failed" in said
    assert "circuit_scores of" in said
    assert main([*arguments, "--status"]) == 0
    assert "2 done before (1 of them failed)" in capsys.readouterr().out
    assert main([str(tmp_path / "none.toml")]) == 1
    assert "none.toml" in capsys.readouterr().err


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"models": "ioi-plain"}, "as a list"),
    ({"models": []}, "no models"),
    ({"models": [{}]}, "needs a name"),
    ({"models": ["ioi-plain", "ioi-plain"]}, "listed twice"),
    ({"models": [{"name": "a", "revision": "x", "revisions": ["y"]}]}, "not both"),
    ({"models": [{"name": "a", "revisions": "x"}]}, "a list"),
    ({"models": [{"name": "a", "verbose": True}]}, "verbose"),
    ({"data": {}}, "no data"),
    ({"data": {"d": {"m": 4}}}, "Prompts 'd' cannot be asked so"),
    ({"data": {"d": {"make": "up"}}}, "does not make prompts"),
    ({"data": {"d": {"make": "load", "file": "x"}}}, "one argument"),
    ({"data": {"../d": {"n": 4}}}, "file's name"),
    ({"data": "few"}, "as a table"),
    ({"name": "answers"}, "write over"),
    ({"questions": {"tasks": {"ask": "behaviour"}}}, "write over"),
    ({"questions": {}}, "no questions"),
    ({"questions": ["behavior"]}, "is no question"),
    ({"questions": {"behaviour": {"n": 4}}}, "Question 'behaviour' cannot be asked so"),
    ({"questions": {"behaviour": {"data": "e"}}}, "data has only d"),
    ({"questions": {"q": {"ask": "tests.survey_questions:none"}}}, "There is no"),
]


@pytest.mark.parametrize(("changed", "said"), WRONG)
def test_what_cannot_be_asked_is_refused(changed: dict[str, Any], said: str) -> None:
    asked: dict[str, Any] = {
        "models": ["ioi-plain"], "data": {"d": {"n": 4}}, "questions": ["behaviour"],
    }  # fmt: skip
    with pytest.raises(ValueError, match=said):
        survey.Survey.of(**(asked | changed))


@pytest.mark.parametrize(
    ("text", "said"), [("models = [", "no TOML"), ("[model]", "has a part 'model'")]
)
def test_a_file_that_is_none_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(ValueError, match=said):
        survey.Survey.from_toml(tmp_path / "s.toml")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"memory": 0}, "positive number of bytes"),
        ({"backend": "spark"}, "no back end 'spark'"),
        ({"backend": "loky", "address": "tcp://x"}, "have an address"),
        ({"n_jobs": 2}, "not for n_jobs to say"),
        ({"backend": "dask", "address": "tcp://x", "n_jobs": 2}, "not for n_jobs to say"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    settings: dict[str, Any], said: str, log: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        survey.run(counting(log), tmp_path, **settings)


def test_prompts_from_a_file_and_an_unknown_table(tmp_path: Path, log: Path) -> None:
    model = load_model("ioi-plain", device="cpu", verbose=False)
    IOIDataset.generate(model.tokenizer, 4).save(tmp_path / "prompts.safetensors")
    data = {"kept": {"make": "load", "path": str(tmp_path / "prompts.safetensors")}}
    asked = survey.Survey.of(["ioi-plain"], data, ["behaviour"])
    result = survey.run(asked, tmp_path / "out", progress=False)
    assert result.table("behaviour")["prompts"].tolist() == [4, 2, 2]
    with pytest.raises(ValueError, match="no question of this survey"):
        result.table("other")
    (tmp_path / "prompts.safetensors").unlink()
    with pytest.raises(ValueError, match="There is no file"):
        tasks_of(asked)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name, name=name)

    monkeypatch.setattr(engines.importlib, "import_module", missing)
    for backend in ("dask", "ray"):
        with pytest.raises(ValueError, match=rf"clone\[{backend}\]"):
            with engines.engine(backend):
                pass
