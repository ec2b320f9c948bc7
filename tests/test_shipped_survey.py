"""The survey of seeds that ships: complete, described, true of the models that ship, made anew."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from ioi_helpers import IOIDataset, load_model, metrics, runs, survey
from ioi_helpers.bundled import BUNDLED, VARIANTS, bundled_folder
from ioi_helpers.survey import shipping, tables
from ioi_helpers.survey.identity import file_digest
from ioi_helpers.universality import CLAIMS
from ioi_helpers.universality.edges import AT_LEAST
from training import seeds
from training.train import RECIPES, STEPS


@pytest.fixture(scope="module")
def found() -> survey.Shipped:
    return survey.shipped("seeds")


def test_a_survey_that_does_not_ship_is_refused() -> None:
    assert survey.shipped_names() == ("seeds",)
    with pytest.raises(ValueError, match="'sedes' ships with this version; there is seeds"):
        survey.shipped("sedes")


def test_every_table_holds_every_model_and_says_what_its_columns_are(found: survey.Shipped) -> None:
    names = list(found.models["model"])
    assert len(set(names)) == len(names) and "seeds: " in str(found)
    assert set(found.models.attrs["columns"]) == set(found.models)
    for label in found.questions:
        table = found.table(label)
        about = table.attrs["columns"]
        assert set(table) == set(about) and all(about.values()), label
        there = list(dict.fromkeys(table["model"]))
        assert there == [name for name in names if name in there], label
        learned = found.models.loc[found.models["learned"], "model"]
        own = table[table["model"].isin(learned)]
        assert own["failure"].isna().all(), label
        # After the last block there is nobody who could respond.
        assert label == "responses" or set(own["model"]) == set(learned), label
    with pytest.raises(ValueError, match="is no question of this survey"):
        found.table("tasks")


def test_no_machine_is_named_and_the_tables_are_small() -> None:
    files = [path for path in seeds.SHIPPED.iterdir() if path.suffix == ".parquet"]
    assert {path.stem for path in files} == {
        shipping.OF_MODELS,
        *shipping.read_asked(seeds.SHIPPED)[1],
    }
    assert sum(path.stat().st_size for path in files) < 4_000_000
    for path in (*files, seeds.SHIPPED / "README.md"):
        assert not re.search(rb"/(tmp|home|work|root)/", path.read_bytes()), path.name


def test_the_models_are_those_that_their_weights_say(found: survey.Shipped) -> None:
    rows = found.models.set_index("model")
    for name in (*BUNDLED, *VARIANTS):
        row = rows.loc[f"{name}-seed-0"]
        assert row["sha256"] == file_digest(bundled_folder(name) / "model.safetensors")
        assert row["learned"] and row["trained"] and row["met"] <= row["asked"]
    assert not rows.loc[~rows["trained"], "learned"].any()
    assert (rows["trained"] == ~rows.index.str.contains("-untrained-")).all()
    card = (seeds.SHIPPED / "README.md").read_text(encoding="utf-8")
    assert card == seeds.markdown(found.models)


@pytest.mark.parametrize("name", BUNDLED)
def test_a_shipped_number_is_measured_again(name: str, found: survey.Shipped) -> None:
    model = load_model(name, device="cpu", verbose=False)
    data = IOIDataset.generate(model.tokenizer, **found.data["mixed"])
    diff = metrics.mean_and_stderr(runs.logit_diffs(model, data), data.pair_ids)
    table = found.table("behaviour")
    row = table[(table["model"] == f"{name}-seed-0") & (table["order"] == "all")].iloc[0]
    assert row["logit_diff"] == pytest.approx(diff.mean, abs=1e-4)
    assert row["logit_diff error"] == pytest.approx(diff.stderr, abs=1e-4)


def test_the_same_is_asked_of_other_models(found: survey.Shipped) -> None:
    asked = found.of(["ioi-plain", "./mine"], name="n")
    assert [one.name for one in asked.models] == ["ioi-plain", "./mine"]
    assert [one.label for one in asked.questions] == list(found.tables)
    assert asked.name == "n"


# --- training.seeds -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "told"),
    [
        ("ioi-plain-seed-2", ("ioi-plain", "", True, 2)),
        ("ioi-mini-no-head-dropout-seed-10", ("ioi-mini-no-head-dropout", "", True, 10)),
        ("ioi-mini-without-exchange-at-S2-seed-0", ("ioi-mini", "exchange at S2", True, 0)),
        ("ioi-plain-untrained-seed-4", ("ioi-plain", "", False, 4)),
        ("ioi-mini", ("ioi-mini", "", True, 0)),
        ("gpt2-seed-1", None),
        ("ioi-mini-without-sleep-seed-0", None),
        *(
            (f"ioi-mini-without-{step.replace(' ', '-')}-seed-1", ("ioi-mini", step, True, 1))
            for step in STEPS
        ),
        ("notes", None),
    ],
)
def test_models_are_told_by_their_names(folder: str, told: tuple[object, ...] | None) -> None:
    found = seeds.told_by_name(Path("models") / folder)
    if told is None:
        assert found is None
    else:
        assert found is not None
        assert (found.recipe, found.without, found.trained, found.seed) == told
        assert found.name == folder if "-seed-" in folder else found.name == f"{folder}-seed-0"


def test_what_a_claim_calls_planted_is_a_step_that_can_be_left_out() -> None:
    assert {claim.planted for claim in CLAIMS} - {""} <= set(STEPS)


def test_small_edges_do_not_ship_and_it_is_said(found: survey.Shipped) -> None:
    edges = found.table("edges")
    assert edges["share"].abs().min() >= AT_LEAST
    assert "less than 0.5% are left out" in edges.attrs["columns"]["share"]
    raw = edges[:2].assign(model="a", share=[0.1, -0.004])
    raw.attrs = {"columns": {"share": "of the logit difference"}}
    shipped = seeds.as_shipped("edges", raw, {"a": "A"})
    assert shipped["share"].tolist() == [pytest.approx(0.1)]
    assert "left out" in shipped.attrs["columns"]["share"]
    assert raw.attrs["columns"]["share"] == "of the logit difference"


def test_random_weights_are_of_the_shape_and_the_seed(tmp_path: Path) -> None:
    one = seeds.untrained("ioi-plain", 0, tmp_path / "a")
    same, other = (seeds.untrained("ioi-plain", seed, tmp_path / "b") for seed in (0, 1))
    weights = [file_digest(folder / "model.safetensors") for folder in (one, same, other)]
    assert weights[0] == weights[1] != weights[2]
    shape = json.loads((one / "config.json").read_text())
    assert shape["n_layer"] == RECIPES["ioi-plain"].layers
    found = seeds.found_in([tmp_path / "a", tmp_path / "b"])
    assert [m.name for m in found][-2:] == [
        "ioi-plain-untrained-seed-0",
        "ioi-plain-untrained-seed-1",
    ]
    assert len(found) == 5 and found[0].name == "ioi-mini-seed-0"


@pytest.mark.slow
def test_the_tables_are_made_by_one_command(tmp_path: Path, found: survey.Shipped) -> None:
    """Of one model in a folder; its numbers are those that ship, and asking twice asks nothing."""
    models = tmp_path / "models"
    shutil.copytree(bundled_folder("ioi-plain"), models / "ioi-plain-seed-0")
    one = seeds.told_by_name(models / "ioi-plain-seed-0")
    assert one is not None
    seeds.write([one], tmp_path / "out", tmp_path / "shipped")
    written = sorted(path.name for path in (tmp_path / "shipped").iterdir())
    for label in found.questions:
        table, _ = tables.read(tmp_path / "shipped" / f"{label}.parquet")
        mine = found.table(label)
        mine = mine[mine["model"] == "ioi-plain-seed-0"].reset_index(drop=True)
        numbers = list(mine.select_dtypes("number"))
        pd.testing.assert_frame_equal(
            table[numbers], mine[numbers], check_dtype=False, rtol=1e-2, atol=1e-3
        )
    again = seeds.write([one], tmp_path / "out", tmp_path / "shipped")
    assert again.tasks["done"].all()
    assert written == sorted(path.name for path in (tmp_path / "shipped").iterdir())
