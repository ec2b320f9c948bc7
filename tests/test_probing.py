"""Probes are judged on rows they could not have seen, and know what they claim to know."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.svm import LinearSVC
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import load_model, probing, runs
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.models import handbuilt
from ioi_helpers.probing import evaluation, many
from tests import random_models

NAMES = handbuilt.NAMES
WIDTH = 8  # of noise: fits are quick, and how often a band holds does not depend on it


@pytest.fixture(scope="module")
def data(built: TransformerBridge) -> IOIDataset:
    return IOIDataset.generate(built.tokenizer, 240, names=NAMES, prefixes="bundled", seed=1)


def clouds(n: int, d: int, k: int = 2, gap: float = 4.0, seed: int = 0) -> tuple[Tensor, list[int]]:
    """Classes in Gaussian clouds, `gap` standard deviations apart, balanced."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % k
    centres = gap * np.eye(max(d, k))[:k, :d]
    return torch.as_tensor(centres[labels] + rng.normal(size=(n, d))), labels.tolist()


def alone(n: int) -> dict[str, Tensor]:
    """Groups in which every row is its own."""
    return {"row": torch.arange(n)}


# --- activations --------------------------------------------------------------------------------


def test_head_outputs_and_bias_make_up_attention_out(
    built: TransformerBridge, data: IOIDataset
) -> None:
    few = data[:6]
    heads = [f"L2H{i}" for i in range(built.cfg.n_heads)]
    found = probing.head_outputs(built, few, "END", heads, memory=1)
    _, cache = built.run_with_cache(few.tokens)
    whole = few.gather(cache["attn_out", 2], "END")
    summed = torch.stack(list(found.values())).sum(0) + built.blocks[2].attn.b_O
    torch.testing.assert_close(summed, whole, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_dtype_runs(dtype: torch.dtype) -> None:
    models, data = random_models.in_dtype(dtype, 40)
    loose = {torch.float64: 1e-9, torch.bfloat16: 0.3, torch.float16: 0.05}[dtype]
    outputs = [probing.head_outputs(m, data[:8], "END", ["L4H1"])["L4H1"] for m in models]
    torch.testing.assert_close(outputs[0].double(), outputs[1].double(), atol=loose, rtol=loose)
    settings: dict[str, Any] = {"roles": ("S2",), "points": ["L3.pre"], "n_folds": 2, "C": 0.01}
    found, wanted = (probing.probe_table(m, data, **settings) for m in models)
    assert found.loss[0] == pytest.approx(wanted.loss[0], rel=loose)


def test_a_head_beyond_the_model_is_refused(built: TransformerBridge, data: IOIDataset) -> None:
    with pytest.raises(ValueError, match="There is no L0H4"):
        probing.head_outputs(built, data[:2], "S2", ["L0H4"])


# --- pictures -----------------------------------------------------------------------------------


def test_svd_projection_is_centred_orthonormal_and_explains_variance() -> None:
    values, labels = clouds(60, 8, gap=20.0)
    picture = probing.svd_projection(values, 3)
    assert picture.coordinates.mean(0).abs().max() < 1e-12
    torch.testing.assert_close(picture.components @ picture.components.T, torch.eye(3).double())
    torch.testing.assert_close(
        picture.explained,
        picture.coordinates.square().sum(0) / (values - values.mean(0)).square().sum(),
    )
    torch.testing.assert_close(picture.project(values), picture.coordinates)
    again = probing.svd_projection(-values.flip(0), 3)
    torch.testing.assert_close(again.components, picture.components)

    share = probing.eta_squared(picture.coordinates, labels)
    assert share[0] > 0.98  # the classes are the first component
    assert share[1:].max() < 0.2


def test_eta_squared_by_hand() -> None:
    coordinates = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 2.0], [6.0, 2.0]])
    # First axis: between 4 * 2^2 = 16 of 9+1+1+9 = 20; second: all of it.
    torch.testing.assert_close(
        probing.eta_squared(coordinates, ["a", "a", "b", "b"]), torch.tensor([0.8, 1.0])
    )


# --- probes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 3, 5])
def test_a_probe_is_scikit_learns(k: int) -> None:
    values, labels = clouds(90, 6, k, gap=1.5, seed=k)
    names = [f"class {label}" for label in labels]
    probe = probing.fit_probe(values, names, C=0.7)
    reference = LogisticRegression(C=0.7, tol=1e-10, max_iter=10_000).fit(values.numpy(), names)
    assert probe.classes == tuple(reference.classes_)
    np.testing.assert_allclose(
        probe.log_probs(values), reference.predict_log_proba(values.numpy()), atol=1e-4
    )
    assert probe.predict(values) == reference.predict(values.numpy()).tolist()
    assert probe.weights.mean(0).abs().max() < 1e-12


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize(
    "steps",
    [
        [StandardScaler()],
        [StandardScaler(with_mean=False)],
        [StandardScaler(with_std=False)],
        [PCA(4)],
        [StandardScaler(), PCA(4, whiten=True)],
        ["passthrough", StandardScaler()],
    ],
)
def test_a_pipeline_is_unfolded_to_raw_activations(k: int, steps: list[Any]) -> None:
    values, labels = clouds(80, 6, k, gap=2.0)
    values = values * torch.tensor([0.01, 1, 3, 50, 1, 2]) + torch.tensor([5.0, 0, 1, -90, 2, 0])
    pipeline = make_pipeline(*steps, LogisticRegression(max_iter=5000))
    pipeline.fit(values.numpy(), labels)
    probe = probing.as_probe(pipeline)
    np.testing.assert_allclose(
        probe.log_probs(values), pipeline.predict_log_proba(values.numpy()), atol=1e-9
    )


def test_standardize_fits_scaled_but_returns_raw_weights() -> None:
    values, labels = clouds(80, 5)
    values = values * torch.tensor([0.01, 1, 3, 50, 1]) + 7
    probe = probing.fit_probe(values, labels, standardize=True)
    assert probe.predict(values) == probe.estimator.predict(values.numpy()).tolist()
    scaled = (values - values.mean(0)) / values.std(0, unbiased=False)
    other = probing.fit_probe(scaled, labels)
    torch.testing.assert_close(probe.logits(values), other.logits(scaled), atol=1e-6, rtol=1e-6)


def test_labels_of_every_kind_and_float32_activations() -> None:
    values, labels = clouds(40, 4)
    as_text = ["BABA" if label else "ABBA" for label in labels]
    wanted = probing.fit_probe(values, labels).logits(values)
    for given_ in (torch.tensor(labels), np.array(labels), as_text, np.array(labels, dtype=float)):
        probe = probing.fit_probe(values.float(), given_)
        torch.testing.assert_close(probe.logits(values), wanted, atol=1e-4, rtol=1e-4)
    assert probing.fit_probe(values, as_text).classes == ("ABBA", "BABA")


def test_the_direction_is_where_the_log_odds_grow() -> None:
    values, labels = clouds(60, 4)
    probe = probing.fit_probe(values, labels)
    direction = probe.direction()
    assert direction.norm() == pytest.approx(1.0)
    steps = probe.logits(torch.stack([values[0], values[0] + direction]))
    gain = (steps[1, 1] - steps[1, 0]) - (steps[0, 1] - steps[0, 0])
    assert gain == pytest.approx((probe.weights[1] - probe.weights[0]).norm().item())
    with pytest.raises(ValueError, match="no single direction"):
        probing.fit_probe(*clouds(60, 4, 3)).direction()


def test_bad_probes_are_refused_in_a_sentence() -> None:
    values, labels = clouds(20, 3)
    with pytest.raises(ValueError, match="All 20 labels are 'ABBA'; a probe needs at least two"):
        probing.fit_probe(values, ["ABBA"] * 20)
    with pytest.raises(ValueError, match="labels of shape"):
        probing.fit_probe(values, labels[:-1])
    with pytest.raises(ValueError, match="not measurements"):
        probing.fit_probe(values, np.linspace(0, 1, 20))
    with pytest.raises(ValueError, match="at one role and one point"):
        probing.fit_probe(values[None], labels)
    with pytest.raises(ValueError, match="NaN or infinity"):
        probing.fit_probe(values * math.nan, labels)
    with pytest.raises(ValueError, match="C must be a positive number"):
        probing.fit_probe(values, labels, C=0)
    with pytest.raises(ValueError, match="LinearSVC is not a logistic regression"):
        probing.as_probe(LinearSVC().fit(values.numpy(), labels))
    with pytest.raises(ValueError, match="not fitted yet"):
        probing.as_probe(LogisticRegression())
    through = make_pipeline(MinMaxScaler(), LogisticRegression()).fit(values.numpy(), labels)
    with pytest.raises(ValueError, match="unfolded through MinMaxScaler"):
        probing.as_probe(through)


# --- covariance ---------------------------------------------------------------------------------


def test_the_covariance_is_ledoit_and_wolfs() -> None:
    values, labels = clouds(50, 12)
    fitted = probing.fit_covariance(values)
    reference = LedoitWolf().fit(values.numpy())
    np.testing.assert_allclose(fitted.matrix, reference.covariance_, atol=1e-12)
    assert fitted.shrinkage == pytest.approx(reference.shrinkage_)
    torch.testing.assert_close(fitted.mean, values.mean(0))

    pooled = probing.fit_covariance(values, labels, shrink=False)
    by_class = [np.cov(values[np.array(labels) == c].numpy().T) for c in (0, 1)]
    np.testing.assert_allclose(pooled.matrix, np.mean(by_class, axis=0), atol=1e-12)


def test_a_singular_covariance_has_its_rank_and_measures_within_its_range() -> None:
    values, _ = clouds(200, 6)
    values = values - values.mean(1, keepdim=True)  # a centred residual stream
    covariance = probing.fit_covariance(values, shrink=False)
    assert covariance.rank == 5
    torch.testing.assert_close(covariance.factor @ covariance.factor.T, covariance.matrix)
    # Within the sample, squared distances average the rank (with n - 1 in the denominator).
    squared = covariance.distance(values).square().mean().item()
    assert squared == pytest.approx(5 * 199 / 200)
    assert torch.isinf(covariance.length(torch.ones(1, 6, dtype=torch.float64)))
    assert probing.fit_covariance(values).rank == 6  # shrinking fills the missing direction


def test_what_is_no_covariance_is_refused() -> None:
    with pytest.raises(ValueError, match="not symmetric"):
        probing.as_covariance(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), 2)
    with pytest.raises(ValueError, match="negative eigenvalue"):
        probing.as_covariance(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), 2)
    with pytest.raises(ValueError, match="3 dimensions"):
        probing.as_covariance(torch.eye(2), 3)
    with pytest.raises(ValueError, match="NaN"):
        probing.as_covariance(torch.eye(2) * math.nan, 2)
    with pytest.raises(ValueError, match="more activations than classes"):
        probing.fit_covariance(torch.ones(1, 3))
    fitted = LedoitWolf().fit(clouds(20, 3)[0].numpy())
    assert probing.as_covariance(fitted, 3).rank == 3


# --- held-out evaluation ------------------------------------------------------------------------


def test_groups_hold_together_what_a_model_cannot_tell_apart(data: IOIDataset) -> None:
    found = probing.groups(data, "S2")
    read = data.positions["S2"].tolist()
    seen: dict[int, Any] = {}
    for row, tokens in enumerate(data.tokens.tolist()):
        text = tuple(tokens[: read[row] + 1])
        assert seen.setdefault(int(found["prompt"][row]), text) == text
    pairs = [frozenset((names.IO, names.S1)) for names in data.names]
    assert len(set(pairs)) == len(found["names"].unique())
    # Two rows of a pair are the same two names in the same template.
    for row in range(0, len(data), 2):
        assert found["names"][row] == found["names"][row + 1]
        assert found["template"][row] == found["template"][row + 1]
        assert found["prompt"][row] != found["prompt"][row + 1]


def test_templates_that_differ_only_later_are_one_template_at_s2(
    built: TransformerBridge,
) -> None:
    templates = [
        "When [B] and [A] got a [OBJECT] at the [PLACE], [B] decided to give it to [A]",
        "When [B] and [A] got a [OBJECT] at the [PLACE], [B] decided to give the [OBJECT] to [A]",
        "Then, [B] and [A] went to the [PLACE]. [B] gave a [OBJECT] to [A]",
    ]
    data = IOIDataset.generate(built.tokenizer, 60, names=NAMES, templates=templates)
    assert len(probing.groups(data, "END")["template"].unique()) == 3
    assert len(probing.groups(data, "S2")["template"].unique()) == 2
    with pytest.raises(ValueError, match="3 folds cannot be made of 2 groups by template"):
        probing.folds(probing.groups(data, "S2"), 3)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_folds_test_every_row_once_and_share_no_group(drawn: st.DataObject) -> None:
    n = drawn.draw(st.integers(20, 60))
    groups = {
        name: torch.tensor(drawn.draw(st.lists(st.integers(0, top), min_size=n, max_size=n)))
        for name, top in (("prompt", 200), ("template", 6))
    }
    n_groups = min(len(numbers.unique()) for numbers in groups.values())
    assume(n_groups >= 2)
    n_folds = drawn.draw(st.integers(2, n_groups))
    try:
        made = probing.folds(groups, n_folds, seed=drawn.draw(st.integers(0, 99)))
    except ValueError:  # so much is shared that holding it out leaves nothing to train on
        reject()
    tested = torch.cat([one.test for one in made])
    assert sorted(tested.tolist()) == list(range(n))
    for one in made:
        probing.check_split(one, groups)
        assert len(one.train) + len(one.test) + one.dropped == n
        for numbers in groups.values():
            assert not set(numbers[one.train].tolist()) & set(numbers[one.test].tolist())


def test_one_split_meets_its_share_and_shares_no_group(data: IOIDataset) -> None:
    groups = probing.groups(data, "S2")
    split = probing.split(groups, 0.3, seed=2)
    probing.check_split(split, groups)
    assert 0.2 < len(split.test) / len(data) < 0.4
    other = probing.split(groups, 0.3, seed=3)
    assert split.test.tolist() != other.test.tolist()
    assert probing.split(groups, 0.3, seed=2).test.tolist() == split.test.tolist()


@pytest.mark.parametrize("name", ["prompt", "names", "template", "row"])
def test_a_leaked_split_is_caught(data: IOIDataset, name: str) -> None:
    groups = probing.groups(data, "S2")
    split = probing.split(groups, 0.3)
    if name == "row":
        leaked = probing.Split(torch.cat([split.train, split.test[:1]]), split.test)
    else:
        # One training row gets the group of a test row.
        changed = groups[name].clone()
        changed[split.train[0]] = changed[split.test[0]]
        groups, leaked = {**groups, name: changed}, split
    with pytest.raises(probing.LeakedSplit, match=f"1 by {name}"):
        probing.check_split(leaked, groups)
    values, _ = clouds(len(data), 3)
    with pytest.raises(probing.LeakedSplit, match="would measure memory"):
        probing.evaluate_probe(values, data.orders, groups, splits=[leaked])


def test_the_same_prompt_on_both_sides_is_a_leak_that_random_labels_show() -> None:
    """Where groups are not given, the control task tells: only memory lifts it above chance."""
    prompts, labels = clouds(40, 60, gap=0.0, seed=5)
    values = torch.cat([prompts, prompts])
    twice = torch.arange(40).repeat(2)
    split = probing.Split(torch.arange(40), torch.arange(40, 80))
    with pytest.raises(probing.LeakedSplit):
        probing.evaluate_probe(values, labels * 2, {"prompt": twice}, splits=[split])
    # The same rows, with nothing said about prompts but the control's labels.
    fooled = probing.evaluate_probe(
        values,
        labels * 2,
        {"prompt": twice, "nothing": torch.arange(80)},
        splits=[split],
        hold_out=["nothing"],
    )
    assert fooled.accuracy.mean > 0.95
    assert fooled.control.mean > 0.95
    assert abs(fooled.selectivity) < 0.05


def test_random_labels_score_at_chance_and_real_ones_do_not(data: IOIDataset) -> None:
    values, labels = clouds(400, 10, gap=4.0)
    score = probing.evaluate_probe(values, labels, alone(400), n_controls=5)
    assert score.accuracy.mean > 0.95
    assert abs(score.control.mean - 0.5) < 3 * score.control.stderr + 0.02
    assert score.majority == pytest.approx(0.5, abs=0.05)
    assert score.selectivity > 0.4
    assert score.counts == {0: 200, 1: 200}
    assert 0 < score.loss < 0.2


def test_a_probe_of_noise_scores_at_chance_within_its_error() -> None:
    outside = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        values, labels = torch.as_tensor(rng.normal(size=(150, 20))), rng.integers(0, 2, 150)
        score = probing.evaluate_probe(values, labels, alone(150), seed=seed)
        outside += abs(score.accuracy.mean - 0.5) > 2 * score.accuracy.stderr
        assert score.train_accuracy > 0.6  # it learns its training rows by heart all the same
    assert outside <= 2


def test_the_band_for_chance_is_the_range_of_its_dealings() -> None:
    values, labels = clouds(120, 4, gap=0.0)
    score = probing.evaluate_probe(values, labels, alone(120), n_folds=3, n_controls=49)
    assert len(score.dealings) == 49
    assert score.chance == (min(score.dealings), max(score.dealings))
    more = probing.evaluate_probe(values, labels, alone(120), n_folds=3, n_controls=99)
    assert more.dealings[:49] == score.dealings
    assert more.chance == (sorted(more.dealings)[1], sorted(more.dealings)[-2])
    few = probing.evaluate_probe(values, labels, alone(120), n_folds=3)
    with pytest.raises(ValueError, match=r"3 dealings .* n_controls=49"):
        few.chance  # noqa: B018


def test_random_labels_are_dealt_to_pairs(data: IOIDataset) -> None:
    """Where pairs share the label and nearly the activation, prompts are not exchangeable."""
    twins = torch.randn(120, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = twins.repeat_interleave(2, dim=0)
    settings: dict[str, Any] = {"n_folds": 4, "hold_out": ("template",), "n_controls": 49}
    groups = probing.groups(data, "S2")
    by_pair = probing.evaluate_probe(values, data.orders, groups, deal_by=data.pair_ids, **settings)
    by_prompt = probing.evaluate_probe(values, data.orders, groups, **settings)
    assert np.std(by_pair.dealings) > 1.2 * np.std(by_prompt.dealings)
    with pytest.raises(ValueError, match=r"deal_by .* one label"):
        probing.evaluate_probe(
            values, data.orders, groups, deal_by=torch.zeros(240, dtype=torch.long), **settings
        )


def test_fewer_rows_than_dimensions_give_the_same_probe() -> None:
    values, labels = clouds(40, 60, gap=1.0)
    found = probing.fit_probe(values, labels)
    wanted = LogisticRegression(tol=1e-10, max_iter=10_000).fit(values.numpy(), labels)
    odds = found.logits(values).diff(dim=1)[:, 0].numpy()
    np.testing.assert_allclose(odds, wanted.decision_function(values.numpy()), atol=1e-3)


@pytest.mark.parametrize(("n", "d"), [(40, 60), (40, 25), (120, 8)])
@pytest.mark.parametrize(
    "settings",
    [{}, {"C": 1000.0}, {"C": 0.01, "standardize": True}, {"class_weight": "balanced"}],
)
def test_probes_fitted_together_are_those_fitted_one_by_one(
    n: int, d: int, settings: dict[str, Any]
) -> None:
    """And nearer to the optimum: as near as scikit-learn comes with a finer tolerance."""
    rng = np.random.default_rng(n + d)
    values = torch.as_tensor(rng.normal(size=(n, d)) * 5 + 3)
    labelings: list[Any] = [rng.integers(0, 3, n) > 0 for _ in range(6)]
    labelings += [np.where(labelings[0], "yes", "no")]  # of other names
    labelings += [rng.integers(0, 3, n)]  # of three classes
    together = probing.fit_probes(values, labelings, **settings)
    scaled = StandardScaler(with_std=settings.get("standardize", False)).fit_transform(values)
    for found, labels in zip(together, labelings, strict=True):
        assert found.classes == tuple(np.unique(labels).tolist())
        alone = probing.fit_probe(values, labels, **settings)
        odds = found.log_probs(values), alone.log_probs(values)
        torch.testing.assert_close(*odds, atol=1e-2, rtol=1e-3)
        if len(found.classes) > 2:
            continue
        wanted = LogisticRegression(
            C=settings.get("C", 1.0), class_weight=settings.get("class_weight"),
            solver="newton-cholesky", tol=1e-13, max_iter=1000,
        ).fit(scaled, labels)  # fmt: skip
        ours = found.logits(values).diff(dim=1)[:, 0].numpy()
        np.testing.assert_allclose(ours, wanted.decision_function(scaled), atol=1e-5, rtol=1e-5)


def test_what_does_not_reach_the_optimum_is_fitted_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    values, labels = clouds(30, 4)
    (wanted,) = probing.fit_probes(values, [labels])
    monkeypatch.setattr(many, "MOST_STEPS", 2)
    for found in probing.fit_probes(values, [labels, labels]):
        torch.testing.assert_close(found.weights, wanted.weights)
        assert found.estimator is not None


def test_probes_fitted_together_refuse_what_one_probe_refuses() -> None:
    values, labels = clouds(30, 4)
    with pytest.raises(ValueError, match="at least two classes"):
        probing.fit_probes(values, [labels, [1] * 30])
    with pytest.raises(ValueError, match="C must be a positive number"):
        probing.fit_probes(values, [labels, labels], C=0.0)
    with pytest.raises(ValueError, match="'balanced', not 'even'"):
        probing.fit_probes(values, [labels, labels], class_weight="even")
    assert probing.fit_probes(values, []) == []


@pytest.mark.parametrize("kinds", [2, 3])
def test_a_score_is_that_of_probes_fitted_one_by_one(
    kinds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row by row: what is held out, its predictions, its loss and every dealing."""
    values, labels = clouds(90, 50, k=kinds, gap=2.0)
    together = probing.evaluate_probe(values, labels, alone(90), n_controls=5)
    monkeypatch.setattr(
        evaluation,
        "fit_probes",
        lambda x, y, **given: [probing.fit_probe(x, o, **given) for o in y],
    )
    one_by_one = probing.evaluate_probe(values, labels, alone(90), n_controls=5)
    assert together.loss == pytest.approx(one_by_one.loss, rel=1e-4)
    assert replace(together, loss=0.0) == replace(one_by_one, loss=0.0)


@pytest.mark.slow
def test_on_pure_noise_the_band_of_notebook_06_holds_the_accuracy() -> None:
    """2,000 times noise for activations, with the notebook's prompts, folds and dealings."""
    tokenizer = load_model("ioi-mini", verbose=False).tokenizer
    data = IOIDataset.generate(tokenizer, 300, prefixes="bundled", seed=1)
    groups = probing.groups(data, "S2")
    noise = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        values = torch.as_tensor(noise.normal(size=(300, WIDTH)))
        score = probing.evaluate_probe(
            values, data.orders, groups, n_folds=4, n_controls=49, deal_by=data.pair_ids
        )
        inside += score.chance[0] <= score.accuracy.mean <= score.chance[1]
    assert 0.94 < inside / 2000 < 0.98, inside / 2000


def test_unequal_classes_show_in_the_baselines() -> None:
    rng = np.random.default_rng(0)
    labels = np.array(["rare"] * 30 + ["common"] * 270)
    score = probing.evaluate_probe(rng.normal(size=(300, 4)), labels, alone(300))
    assert score.majority == pytest.approx(0.9)
    assert score.accuracy.mean > 0.85  # by always saying "common"
    assert score.balanced_accuracy == pytest.approx(0.5, abs=0.05)
    assert score.counts == {"common": 270, "rare": 30}


def test_the_standard_error_counts_groups_not_rows() -> None:
    """Ten copies of a row are one observation."""
    values, labels = clouds(60, 3, gap=1.0)
    once = probing.evaluate_probe(values, labels, {"prompt": torch.arange(60)})
    copies = probing.evaluate_probe(
        values.repeat_interleave(10, 0),
        np.repeat(labels, 10),
        {"prompt": torch.arange(60).repeat_interleave(10)},
    )
    assert copies.accuracy.n == once.accuracy.n == 60
    assert copies.accuracy.stderr > 0.6 * once.accuracy.stderr


def test_no_mistake_is_not_an_error_of_zero() -> None:
    """20 groups without a mistake are seen in one of 20 tries at an accuracy of 0.05^(1/20)."""
    labels = [0, 0, 1, 1] * 10
    values = torch.tensor(labels, dtype=torch.float64)[:, None].repeat(1, 3)
    score = probing.evaluate_probe(values, labels, {"prompt": torch.arange(40) // 2})
    assert score.accuracy == (1, 0, 20)  # the numbers are what they are
    assert score.accuracy_and_error == "1.000 (95 %: above 0.861)"
    assert pytest.approx(0.05, rel=0.01) == 0.861**20
    assert str(score).startswith("held-out accuracy 1.000 (95 %: above 0.861), majority 0.400, ")
    other = replace(score, accuracy=score.control, control=score.accuracy._replace(mean=0.0))
    assert f"random labels {0:.3f} (95 %: below 0.139), training 1.000" in str(other)
    assert other.accuracy_and_error == f"{score.control.mean:.3f} ± {score.control.stderr:.3f}"


def test_scaling_is_fitted_on_training_rows_only() -> None:
    """A test row that is an outlier must not change the probe fitted without it."""
    values, labels = clouds(40, 3)
    wild = values.clone()
    wild[-1] = 1e6
    split = probing.Split(torch.arange(30), torch.arange(30, 40))
    tame, spoiled = (
        probing.evaluate_probe(each, labels, alone(40), splits=[split], standardize=True)
        for each in (values, wild)
    )
    assert tame.predicted[30:39] == spoiled.predicted[30:39]
    assert tame.train_accuracy == spoiled.train_accuracy


def test_evaluation_refuses_what_it_cannot_judge() -> None:
    values, labels = clouds(30, 3)
    with pytest.raises(ValueError, match="at least two classes"):
        probing.evaluate_probe(values, [1] * 30, alone(30))
    with pytest.raises(ValueError, match="not of these 30 rows"):
        probing.evaluate_probe(values, labels, alone(29))
    with pytest.raises(ValueError, match="n_controls must be at least 1"):
        probing.evaluate_probe(values, labels, alone(30), n_controls=0)
    with pytest.raises(ValueError, match="hold_out must name one or more of row, not template"):
        probing.evaluate_probe(values, labels, alone(30), hold_out=["template"])
    even = probing.Split(torch.arange(0, 20, 2), torch.arange(20, 30))
    with pytest.raises(ValueError, match="all of one class"):
        probing.evaluate_probe(values, labels, alone(30), splits=[even])
    with pytest.raises(ValueError, match="All rows are one group by template"):
        probing.split({"template": torch.zeros(5, dtype=torch.long)})


# --- on a circuit known by construction ----------------------------------------------------------


def test_the_order_is_read_where_it_was_built(built: TransformerBridge, data: IOIDataset) -> None:
    """L1's heads write the order at S2, and S-inhibition carries it to END in block 2."""
    table = probing.probe_table(
        built,
        data,
        roles=("S2", "END"),
        points=("L1.pre", "L1.mid", "L2.mid"),
        n_folds=3,
        n_controls=1,
    ).set_index(["role", "point"])
    accuracy = table["accuracy"]
    assert accuracy["S2", "L1.mid"] > 0.97
    assert accuracy["S2", "L2.mid"] > 0.97
    assert accuracy["S2", "L1.pre"] < 0.7
    assert accuracy["END", "L1.mid"] < 0.7
    assert accuracy["END", "L2.mid"] > 0.97
    assert (table["control"] - 0.5).abs().max() < 0.15
    assert (table["majority"] < 0.6).all()
    at = runs.activations_at_roles(built, data, ("S2", "END"), ("L1.mid", "L2.mid"))
    read = probing.probe_table(
        built, data, roles=["END"], points=["L2.mid"], activations=at, n_folds=3, n_controls=1
    )
    assert read.loc[0, "accuracy"] == accuracy["END", "L2.mid"]


def test_labels_of_the_other_variables(data: IOIDataset) -> None:
    assert probing.labels_of(data, "order") == data.orders
    assert probing.labels_of(data, "S name") == [names.S1 for names in data.names]
    assert probing.labels_of(data, "IO position") == data.positions["IO"].tolist()
    with pytest.raises(ValueError, match="'colour' is not a variable"):
        probing.labels_of(data, "colour")
