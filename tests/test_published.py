"""Published numbers: faithful to their source, complete with labels, and compared as promised."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ioi_helpers import plotting, published
from ioi_helpers.heads import HEAD_CLASSES

SHARED = Path(__file__).parents[2] / "shared" / "reference"
GPT2 = SimpleNamespace(ioi_name="gpt2-small")
OTHER = SimpleNamespace(ioi_name="ioi-mini")


@pytest.mark.parametrize("name", published.names())
def test_every_entry_loads_with_labels_and_source(name: str) -> None:
    entry = published.load(name)
    assert entry.values.ndim == len(entry.axes)
    assert np.isfinite(entry.values).all()
    for axis, labels in entry.labels.items():
        assert len(labels) == entry.values.shape[entry.axes.index(axis)]
    # A commit or a paper, where the number can be looked up.
    assert re.search(r"TransformerLens|@[0-9a-f]{7}|arXiv:\d", entry.source)
    assert entry.unit
    assert entry.tolerance >= 0
    assert "BOS" in entry.setup or "weights only" in entry.setup
    assert entry.source in repr(entry)


@pytest.mark.parametrize("way", [1, -1], ids=["above", "below"])
@pytest.mark.parametrize("name", published.names())
def test_every_entry_agrees_with_itself_and_notices_a_change(name: str, way: int) -> None:
    entry = published.load(name)
    same = published.compare(name, entry.values, GPT2)
    assert same.agrees is True
    assert "Checked on GPT-2 small" in repr(same)
    within, changed = entry.values.copy(), entry.values.copy()
    within.flat[within.size // 2] += way * 0.99 * entry.tolerance
    assert published.compare(name, within, GPT2).agrees is True
    changed.flat[changed.size // 2] += way * (1.01 * entry.tolerance + 1e-9)
    other = published.compare(name, changed, GPT2)
    assert other.agrees is False
    assert "DISAGREES" in repr(other)


def test_other_models_are_shown_but_not_checked() -> None:
    yours = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    compared = published.compare("exploratory.per_head_dla", yours, OTHER)
    assert compared.agrees is None
    text = repr(compared)
    assert "Not checked" in text
    assert "[yours]\n  4 rows (layer) x 6 columns (head), logits" in text
    assert "[GPT-2 small, published]\n  12 rows (layer) x 12 columns (head), logits" in text
    assert "highest: L9H9 2.99; L9H6 1.38; L10H0 0.561" in text
    assert "Exploratory_Analysis_Demo" in text


@pytest.mark.parametrize("subject", [True, False])
def test_model_may_be_a_bool(subject: bool) -> None:
    compared = published.compare("exploratory.average_logit_diff", 3.552, subject)
    assert compared.agrees is (True if subject else None)


def test_single_numbers_make_a_table() -> None:
    compared = published.compare("exploratory.average_logit_diff", torch.tensor(2.5), OTHER)
    data, _ = compared._repr_mimebundle_()
    assert set(data) == {"text/plain", "text/html"}
    assert "yours: 2.50 logits\nGPT-2 small, published: 3.55 logits" in data["text/plain"]
    assert "<table>" in data["text/html"]
    assert "<script" not in data["text/html"]


def test_every_comparison_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plotting.STATIC_VARIABLE, "0")
    for name in published.names():
        entry = published.load(name)
        smaller = entry.values[tuple(slice(0, max(n - 1, 1)) for n in entry.values.shape)]
        for yours in (entry.values, smaller):
            data, _ = published.compare(name, yours, OTHER)._repr_mimebundle_()
            assert entry.title in data["text/plain"]


def test_own_labels_name_the_last_axis() -> None:
    compared = published.compare(
        "exploratory.residual_patch", np.eye(3), OTHER, labels=["IO", "S1", "S2"]
    )
    assert "layer 1, S1 1.00" in repr(compared)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: published.load("exploratory.per_head"), "exploratory.per_head_dla"),
        (lambda: published.load("nothing"), "paper.signals"),
        (lambda: published.compare("exploratory.per_head_dla", np.zeros(12), OTHER), "2 axes"),
        (lambda: published.compare("exploratory.per_head_dla", np.zeros((4, 6)), GPT2), "[12, 12]"),
    ],
)
def test_bad_input_is_refused(call: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        call()


def test_nan_never_agrees() -> None:
    values = published.load("exploratory.per_head_dla").values.copy()
    values[0, 0] = np.nan
    assert published.compare("exploratory.per_head_dla", values, GPT2).agrees is False


def test_identities_within_the_published_numbers() -> None:
    """Facts that hold between arrays, so that a slip in a name or an axis shows."""

    def values(name: str) -> np.ndarray:
        return published.load(name).values

    total = values("exploratory.average_logit_diff")
    assert abs(values("exploratory.per_layer_dla").sum() - total) < 1e-3
    assert abs(values("exploratory.logit_lens")[-1] - total) < 1e-3
    assert abs(values("exploratory.per_prompt_logit_diff").mean() - total) < 1e-3
    labels = published.load("exploratory.per_layer_dla").labels["component"]
    attention = [i for i, label in enumerate(labels) if label.endswith("attn_out")]
    by_layer = values("exploratory.per_layer_dla")[attention]
    assert np.abs(by_layer - values("exploratory.per_head_dla").sum(1)).max() < 6e-3  # biases
    assert (
        np.abs(values("exploratory.residual_patch") - values("activation_patching.resid_pre")).max()
        < 5e-5
    )
    for site in ("z", "v", "pattern"):
        gap = values(f"exploratory.head_{site}_patch") - values(f"activation_patching.{site}")
        assert np.abs(gap).max() < 5e-5
    attribution = values("attribution_patching.z_by_position").sum(-1)
    assert np.abs(attribution - values("attribution_patching.z")).max() < 1e-5
    for name in ("exploratory.attention", "attribution_patching.attention"):
        assert np.abs(values(name).sum(-1) - 1).max() < 1e-4
    effect = published.load("paper.direct_effect_on_logits")
    assert effect.labels["layer"] == ("7", "8", "9", "10", "11")
    assert effect.values[2, 9] == pytest.approx(-0.6725, abs=1e-3)


def test_shares_of_different_things_compare_in_logits() -> None:
    """One number in three units: L9H9's direct effect, by four sources that use other prompts."""
    effects = {}
    for name in (
        "paper.direct_effect_on_logits",
        "path_patching.to_logits",
        "path_patching.to_logits_n5000",
        "path_patching.to_logits_mlps_frozen",
    ):
        entry = published.load(name)
        layers = entry.labels.get("layer", tuple(map(str, range(12))))
        effects[name] = entry.in_logits()[layers.index("8") :]
    in_logits = [values[1, 9] for values in effects.values()]
    assert in_logits == pytest.approx([-2.394, -2.268, -2.335, -2.265], abs=2e-3)
    one, *others = (values.ravel() for values in effects.values())
    assert all(np.corrcoef(one, other)[0, 1] > 0.97 for other in others)
    with pytest.raises(ValueError, match="no share of logits"):
        published.load("paper.signals").in_logits()


def test_orders_and_templates_differ_in_the_published_cells() -> None:
    cells = published.load("circuit.faithfulness_by_template")
    rows = dict(zip(cells.labels["order and BOS"], cells.values, strict=True))
    assert cells.values.size == 60
    for bos in ("bos", "no_bos"):
        assert (rows[f"{bos}_BABA"] > rows[f"{bos}_ABBA"]).all()
    means = published.load("circuit.faithfulness_by_order")
    assert means.labels == {"order and BOS": cells.labels["order and BOS"]}
    assert means.values == pytest.approx(cells.values.mean(axis=1), abs=0.01)
    edges = published.load("edges.EAP-IG")
    assert edges.labels["edges"][:2] == ("30", "40")
    assert published.load("paper.adversarial_s_over_io").labels == {
        "prompts": ("p_IOI", "extra_S", "extra_IO")
    }


def test_score_tokens_are_those_of_the_seed() -> None:
    tokens = torch.randint(100, 20000, (2, 100), generator=torch.Generator().manual_seed(0))
    assert np.array_equal(published.load("exploratory.score_tokens").values, tokens.numpy())


def test_a_record_is_a_fresh_copy() -> None:
    published.record("ioi_paper.json")["baseline"].clear()
    assert published.record("ioi_paper.json")["baseline"]["n"] == 100000


def test_published_head_classes() -> None:
    heads = published.head_classes()
    assert len({h["head"] for h in heads}) == len(heads) == 26
    assert {h["head_class"] for h in heads} == set(HEAD_CLASSES)
    for head in heads:
        assert set(head) == {"head", "head_class", "position", "evidence"}
        assert head["position"] in {"S1+1", "S2", "END"}
        facts = [fact for fact in head["evidence"].values() if isinstance(fact, dict)]
        assert facts
        assert all(fact["source"] for fact in facts)
    found = {c: {h["head"] for h in heads if h["head_class"] == c} for c in HEAD_CLASSES}
    assert found["name_mover"] == {"L9H9", "L9H6", "L10H0"}
    assert found["previous_token"] == {"L2H2", "L4H11"}
    assert len(found["backup_name_mover"]) == 8


def _same(carried: Any, source: Any) -> bool:
    """Equal, floats to six significant digits."""
    if isinstance(source, float):
        return carried == pytest.approx(source, rel=1e-5, abs=0)
    if isinstance(source, list):
        return len(carried) == len(source) and all(map(_same, carried, source))
    if isinstance(source, dict):
        return carried.keys() == source.keys() and all(_same(carried[k], source[k]) for k in source)
    return carried == source


@pytest.mark.skipif(
    not SHARED.is_dir(), reason="the facts' source files are not beside this checkout"
)
@pytest.mark.parametrize(
    "file",
    [
        "exploratory.json",
        "ioi_paper.json",
        "activation_patching.json",
        "attribution_patching.json",
        "direct_logit_attribution.json",
        "direct_path_patching.json",
        "svd_circuits.json",
        "path_patching_arena.json",
        "path_patching_pyvene.json",
        "faithfulness_per_template_auto_circuit.json",
        "arena_circuit_evaluation.json",
        "eap_ig_ioi_faithfulness.json",
        "single_head_removals_gpt2.json",
        "name_mover_ablation_dla.json",
        "ioi_other_models_and_seeds.json",
        "pythia_410m_exploratory.json",
    ],
)
def test_carried_over_faithfully(file: str) -> None:
    source = json.loads((SHARED / file).read_text(encoding="utf-8"))
    carried = published.record(file)
    common = carried.keys() & source.keys() - {
        "attention_patterns_prompt0",
        "attention_patterns_8prompts",
    }
    assert len(common) >= min(8, len(carried))
    for key in common:
        assert _same(carried[key], source[key]), key
    if file == "exploratory.json":
        mine = dict(zip(*carried["attention_patterns_prompt0"].values()))
        for group in source["attention_patterns_prompt0"][:5]:
            for head, pattern in zip(group["heads"], group["attention"]):
                assert _same(mine[head], pattern)
    if file == "attribution_patching.json":
        mine = dict(zip(*carried["attention_patterns_8prompts"].values()))
        assert _same(mine, source["attention_patterns_8prompts"])
