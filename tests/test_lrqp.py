"""LRQP finds the optimum and says so honestly; edits reach what they claim to reach."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qpsolvers
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools import analysis

from ioi_helpers import lrqp, probing, runs
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.edits import residual_edit
from ioi_helpers.lrqp import exact, problem
from ioi_helpers.models import handbuilt, load_model
from tests import random_models

NAMES = handbuilt.NAMES
SLOW = settings(max_examples=40, deadline=None)


# --- problems -----------------------------------------------------------------------------------


def random_problem(
    k: int, d: int, rank: int, n: int, seed: int, decades: float = 2.0
) -> tuple[probing.Probe, Tensor, Tensor]:
    """A probe, a covariance of the given rank whose standard deviations span about `decades`
    orders of magnitude, and activations that it could be of."""
    generator = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    factor = normal(d, rank) * torch.logspace(0, -decades, rank, dtype=torch.float64)
    weights, bias = normal(k, d), normal(k)
    x0 = normal(n, rank) @ factor.T + normal(d)
    probe = probing.Probe(weights - weights.mean(0), bias - bias.mean(), tuple(range(k)))
    return probe, factor @ factor.T, x0


def relative(found: Tensor, wanted: Tensor) -> float:
    """Largest distance of rows, by the length of the row wanted."""
    size = wanted.norm(dim=-1).clamp_min(1e-9)
    return ((found - wanted).norm(dim=-1) / size).max().item()


@SLOW
@given(k=st.integers(2, 8), full=st.booleans(), seed=st.integers(0, 10_000))
def test_exact_agrees_with_whitened_osqp(k: int, full: bool, seed: int) -> None:
    d = 24
    probe, covariance, x0 = random_problem(k, d, d if full else k + 6, 3, seed)
    target = [(seed + row) % k for row in range(3)]
    found = lrqp.intervene(x0, probe, target, covariance)
    reference = lrqp.intervene(x0, probe, target, covariance, solver="osqp")
    assert relative(found.move, reference.move) < 1e-6
    torch.testing.assert_close(found.cost, reference.cost, rtol=1e-6, atol=1e-12)
    assert found.kkt.worst.max() < 1e-9
    assert reference.kkt.worst.max() < 1e-6


@SLOW
@given(k=st.integers(2, 8), seed=st.integers(0, 10_000), log_alpha=st.floats(-5, 50))
def test_the_optimality_conditions_hold_when_worked_out_by_hand(
    k: int, seed: int, log_alpha: float
) -> None:
    """In numpy, from the problem as the post states it, with the inverse covariance."""
    probe, covariance, x0 = random_problem(k, 10, 40, 2, seed, decades=0.5)
    target = seed % k
    found = lrqp.intervene(x0, probe, target, covariance, log_alpha=log_alpha)
    assert found.kkt.worst.max() < 1e-9
    weights, bias = probe.weights.numpy(), probe.bias.numpy()
    precision = np.linalg.inv(covariance.numpy())
    others = [label for label in range(k) if label != target]
    rows = weights[target] - weights[others]
    bound = log_alpha - (bias[target] - bias[others])
    for row in range(2):
        x, mu = found.x[row].numpy(), found.multipliers[row].numpy()[others]
        move = x - x0[row].numpy()
        slack = rows @ x - bound
        assert slack.min() > -1e-8
        assert mu.min() >= 0
        assert np.abs(mu * slack).max() < 1e-7 * max(1, mu.max())
        np.testing.assert_allclose(precision @ move, rows.T @ mu, atol=1e-6 * max(1, mu.max()))
        assert found.cost[row].item() == pytest.approx(move @ precision @ move, rel=1e-6, abs=1e-9)
        # Nothing nearer satisfies the constraints: any other feasible point costs more.
        other = x + np.random.default_rng(seed).normal(size=10) * 0.01
        if (rows @ other >= bound).all():
            away = other - x0[row].numpy()
            assert away @ precision @ away >= found.cost[row].item() * (1 - 1e-9)


@pytest.mark.parametrize("target", [11, [3, 19, 3]])
def test_many_classes(target: int | list[int]) -> None:
    """So many that constraints are made only for the targets that occur."""
    probe, covariance, x0 = random_problem(20, 30, 30, 3, seed=5)
    assert len(probe.classes) > problem.FEW
    found = lrqp.intervene(x0, probe, target, covariance)
    reference = lrqp.intervene(x0, probe, target, covariance, solver="osqp")
    assert relative(found.move, reference.move) < 1e-6
    assert found.kkt.worst.max() < 1e-9
    logits = probe.logits(found.x)
    own = torch.tensor(target if isinstance(target, list) else [target] * 3)[:, None]
    torch.testing.assert_close(found.log_odds, logits.gather(1, own) - logits)
    assert not found.multipliers.gather(1, own).any()


def test_two_classes_are_the_closed_form() -> None:
    probe, covariance, x0 = random_problem(2, 6, 6, 5, seed=3)
    found = lrqp.intervene(x0, probe, 1, covariance, log_alpha=7.0)
    a = probe.weights[1] - probe.weights[0]
    c = 7.0 - (probe.bias[1] - probe.bias[0])
    step = (c - x0 @ a).clamp_min(0) / (a @ covariance @ a)
    torch.testing.assert_close(found.x, x0 + step[:, None] * (covariance @ a))
    torch.testing.assert_close(found.log_odds[:, 0], found.log_odds_before[:, 0].clamp_min(7.0))
    # The move is along the covariance times the probe's direction, not along the direction.
    assert torch.cosine_similarity(found.move[0], a, dim=0) < 0.99


@SLOW
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10_000))
# Constraints at an angle of a few thousandths from contradicting each other.
@example(4, 2, 184)
@example(5, 3, 7892)
@example(5, 2, 5597)
def test_the_active_set_is_the_best_of_all(m: int, rank: int, seed: int) -> None:
    """Against every active set there is, dependent constraints and contradictions included."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(m, rank))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    gram, wanted = rows @ rows.T, rng.normal(size=m)
    best = None
    for size in range(min(m, rank) + 1):
        for held in map(list, itertools.combinations(range(m), size)):
            block = gram[np.ix_(held, held)]
            if size and np.linalg.cond(block) > 1e8:
                continue
            mu = np.zeros(m)
            mu[held] = np.linalg.solve(block, wanted[held]) if size else 0
            if mu.min(initial=0) > -1e-9 and (gram @ mu - wanted).min() > -1e-7:
                best = mu
    found, contradictory = exact.nearest_point(
        torch.as_tensor(rows)[None], torch.as_tensor(wanted)[None]
    )
    assert bool(contradictory[0]) == (best is None)
    if best is not None:
        # Multipliers need not be unique, but what they make of the activation is.
        np.testing.assert_allclose(found[0].numpy() @ rows, best @ rows, atol=1e-6)
        assert found.min() >= 0


@pytest.mark.parametrize("solver", sorted(qpsolvers.available_solvers))
@pytest.mark.parametrize("k", [2, 5])
def test_any_backend_by_name(solver: str, k: int) -> None:
    probe, covariance, x0 = random_problem(k, 12, 12, 3, seed=k)
    found = lrqp.intervene(x0, probe, 0, covariance)
    other = lrqp.intervene(x0, probe, 0, covariance, solver=solver, tolerance=1e-5)
    assert other.solver == solver
    assert relative(other.move, found.move) < 1e-4


@pytest.mark.parametrize("solver", ["exact", "osqp"])
def test_moves_stay_in_the_range_of_a_singular_covariance(solver: str) -> None:
    probe, _, x0 = random_problem(4, 9, 9, 6, seed=1)
    # A centred residual stream: its mean over dimensions is zero.
    covariance = torch.eye(9, dtype=torch.float64) - 1 / 9
    found = lrqp.intervene(x0, probe, 2, covariance, solver=solver)
    assert found.moved.all()
    assert found.move.sum(-1).abs().max() < 1e-9
    assert (found.log_odds[:, [0, 1, 3]] > found.log_alpha[:, None] - 1e-6).all()
    with pytest.raises(ValueError, match="singular .rank 8 of 9., so it has no inverse"):
        lrqp.intervene(x0, probe, 2, covariance, solver="osqp", whiten=False)


def test_direct_and_whitened_are_the_same_problem() -> None:
    probe, covariance, x0 = random_problem(3, 8, 8, 4, seed=2)
    tight = {"eps_abs": 1e-11, "eps_rel": 1e-11, "polishing": True, "max_iter": 200_000}
    direct = lrqp.intervene(x0, probe, 1, covariance, solver="osqp", whiten=False, **tight)
    assert relative(direct.move, lrqp.intervene(x0, probe, 1, covariance).move) < 1e-6


# --- what is refused ----------------------------------------------------------------------------


def test_a_sloppy_solver_is_refused_although_it_reports_success() -> None:
    probe, covariance, x0 = random_problem(2, 200, 200, 4, seed=0)
    with pytest.raises(lrqp.NotOptimal, match="osqp returned .* not optimal") as refusal:
        lrqp.intervene(x0, probe, 1, covariance, solver="osqp", whiten=False)
    answer = refusal.value.solution
    right = lrqp.intervene(x0, probe, 1, covariance)
    assert answer.kkt.worst[refusal.value.rows].min() > 1e-6
    assert relative(answer.move, right.move) > 1e-4
    # It can be looked at on request, with residuals that say what it is worth.
    shown = lrqp.intervene(
        x0, probe, 1, covariance, solver="osqp", whiten=False, tolerance=math.inf
    )
    torch.testing.assert_close(shown.move, answer.move)


@pytest.mark.parametrize("lie", ["stay", "overshoot", "sideways", "wrong multipliers", "nan"])
def test_a_solver_that_lies_is_found_out(monkeypatch: pytest.MonkeyPatch, lie: str) -> None:
    probe, covariance, x0 = random_problem(3, 8, 8, 3, seed=4)
    honest: Callable[..., Any] = qpsolvers.solve_problem

    def dishonest(program: Any, **settings: Any) -> Any:
        found = honest(program, **settings)
        if lie == "stay":
            found.x = np.zeros_like(found.x)
        elif lie == "overshoot":
            found.x = 1.01 * found.x
        elif lie == "sideways":
            found.x = found.x + 0.01
        elif lie == "wrong multipliers":
            found.z = 1.01 * found.z
        else:
            found.x = found.x * math.nan
        assert found.found
        return found

    monkeypatch.setattr(qpsolvers, "solve_problem", dishonest)
    with pytest.raises(lrqp.NotOptimal):
        lrqp.intervene(x0, probe, 1, covariance, solver="osqp")


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("part", ["multipliers", "moves", "gram"])
def test_the_exact_solver_is_not_taken_at_its_word_either(
    monkeypatch: pytest.MonkeyPatch, part: str, k: int
) -> None:
    probe, covariance, x0 = random_problem(k, 8, 8, 3, seed=4)
    right = lrqp.Problem.build

    def wrong(*arguments: Any) -> lrqp.Problem:
        built = right(*arguments)
        if part == "moves":
            return replace(built, reach=1.001 * built.reach)
        return replace(built, gram=1.001 * built.gram)

    def off(asked: lrqp.Problem) -> tuple[Tensor, Tensor]:
        multipliers = 1.001 * exact.solve_exact(asked)[1]
        return asked.moved(multipliers), multipliers

    if part == "multipliers":
        monkeypatch.setattr(lrqp.intervention, "solve_exact", off)
    else:
        monkeypatch.setattr(lrqp.Problem, "build", wrong)
    with pytest.raises(lrqp.NotOptimal, match="exact returned 3 of 3 rows"):
        lrqp.intervene(x0, probe, 1, covariance, log_alpha=30.0)


@pytest.mark.parametrize("solver", ["exact", "osqp"])
def test_an_infeasible_target_is_refused_in_a_sentence(solver: str) -> None:
    # The middle of three classes on a line is never the most probable by much.
    probe = probing.Probe(
        torch.tensor([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]).double(),
        torch.zeros(3).double(),
        ("left", "middle", "right"),
    )
    x0 = torch.randn(2, 2, generator=torch.Generator().manual_seed(0)).double()
    with pytest.raises(lrqp.InfeasibleTarget, match="'middle' cannot be reached in 2 of 2 rows"):
        lrqp.intervene(x0, probe, "middle", torch.eye(2), solver=solver)
    assert lrqp.intervene(x0, probe, "left", torch.eye(2), solver=solver).moved.all()
    # With little enough asked it can be.
    assert lrqp.intervene(x0, probe, "middle", torch.eye(2), log_alpha=-1).kkt.worst.max() < 1e-9
    # No variance along the probe's direction: nothing to move along.
    flat = torch.diag(torch.tensor([0.0, 1.0]))
    with pytest.raises(lrqp.InfeasibleTarget, match="'left' cannot be reached"):
        lrqp.intervene(x0, probe, "left", flat, solver=solver)


def test_bad_input_is_refused_in_a_sentence() -> None:
    probe, covariance, x0 = random_problem(3, 4, 4, 2, seed=0)
    call = partial(lrqp.intervene, x0, probe, 1, covariance)
    one_class = LogisticRegression()
    one_class.coef_, one_class.intercept_ = np.ones((1, 4)), np.zeros(1)
    one_class.classes_ = np.array(["ABBA"])
    for match, attempt in {
        "is not a class of this probe; it knows 0, 1, 2": lambda: lrqp.intervene(
            x0, probe, "ABBA", covariance
        ),
        "2 activations, but 3 labels": lambda: lrqp.intervene(x0, probe, [0, 1, 2], covariance),
        "probe was fitted on 4 dimensions, but the activations have 5": lambda: lrqp.intervene(
            torch.ones(2, 5), probe, 1, covariance
        ),
        "of shape .3, 3., but the activations have 4": lambda: lrqp.intervene(
            x0, probe, 1, torch.eye(3)
        ),
        "NaN or infinity": lambda: lrqp.intervene(x0 * math.nan, probe, 1, covariance),
        "must be positive and finite": lambda: call(alpha=0.0),
        "one finite number or one for each of the 2 rows": lambda: call(log_alpha=torch.ones(3)),
        "log_alpha is in nats, and 1e\\+200 is more": lambda: call(log_alpha=1e200),
        "either alpha or log_alpha": lambda: call(alpha=2.0, log_alpha=1.0),
        "There is no solver 'simplex' here; use 'exact' or one of": lambda: call(solver="simplex"),
        "'exact' takes no eps_abs": lambda: call(eps_abs=1e-9),
        "negative eigenvalue": lambda: lrqp.intervene(x0, probe, 1, -covariance),
        "A covariance is needed": lambda: lrqp.intervene(x0, probe, 1, None),
        "No classes were given": lambda: lrqp.intervene(x0, probe, None, covariance),
        "alpha is a number, not the text '10'": lambda: call(alpha="10"),  # type: ignore[arg-type]
        "for a very large one give log_alpha": lambda: call(alpha=10**400),
        "these are complex": lambda: lrqp.intervene(x0 + 1j, probe, 1, covariance),
        "LogisticRegression|two classes": lambda: lrqp.intervene(x0, one_class, 1, covariance),
    }.items():
        with pytest.raises(ValueError, match=match):
            attempt()


def test_baselines_refuse_what_does_not_fit() -> None:
    values = torch.randn(8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    true, target = ["A", "B"] * 4, ["B", "A"] * 4
    steering = lrqp.MeanDifferenceSteering.fit(values, true)
    leace = lrqp.LeaceErasure.fit(values, true)
    told: dict[str, Any] = {"true": true, "target": target}
    for match, attempt in {
        "nowhere to steer to": lambda: lrqp.MeanDifferenceSteering.fit(values, ["A"] * 8),
        "'X' is not a class .* 'A', 'B'": lambda: steering(values, true=true, target=["X"] * 8),
        "5 activations, but true has 8 rows": lambda: steering(values[:5], **told),
        "on 6 dimensions, but the activations have 4": lambda: steering(values[:, :4], **told),
        "have 4; take both": lambda: leace(values[:, :4]),
        "counterfactual has 3 rows": lambda: lrqp.InterchangeActivation()(
            values, **told, counterfactual=values[:3]
        ),
        "6 dimensions, but the moves 4": lambda: probing.fit_covariance(values).length(
            values[:, :4]
        ),
    }.items():
        with pytest.raises(ValueError, match=match):
            attempt()


def test_das_wants_both_orders(built: TransformerBridge) -> None:
    data = IOIDataset.generate(built.tokenizer, 4, order="ABBA", names=NAMES, seed=1)
    with pytest.raises(ValueError, match="All prompts are ABBA"):
        lrqp.fit_das(built, data, "S2", "L2.pre", epochs=1)


# --- alpha, classes, devices --------------------------------------------------------------------


def test_the_default_alpha_is_the_posts() -> None:
    probe, covariance, x0 = random_problem(2, 6, 6, 40, seed=7)
    x0 = 3 * x0
    true = probe.predict(x0)
    other = [1 - label for label in true]
    logits = probe.logits(x0)
    confidence = (logits[:, 0] - logits[:, 1]).abs()
    assert (confidence > 10).any()
    assert (confidence < 10).any()
    flipped = lrqp.intervene(x0, probe, other, covariance)
    torch.testing.assert_close(flipped.log_alpha, confidence.clamp_min(10))
    control = lrqp.intervene(x0, probe, true, covariance)
    assert (control.log_alpha == 10).all()
    # A control whose belief is strong enough already is left alone, exactly.
    assert control.moved.tolist() == (confidence < 10).tolist()
    assert not control.move[confidence >= 10].any()
    # Rows that the probe gets wrong: their true class is less probable than the target.
    told = lrqp.intervene(x0, probe, true, covariance, true=other)
    assert (told.log_alpha == 10).all()


def test_alpha_for_each_row_and_as_a_ratio() -> None:
    probe, covariance, x0 = random_problem(3, 6, 6, 3, seed=8)
    wanted = torch.tensor([1.0, 20.0, 300.0])
    found = lrqp.intervene(x0, probe, 2, covariance, log_alpha=wanted)
    torch.testing.assert_close(found.log_odds[:, :2].amin(-1), wanted.double())
    once = lrqp.intervene(x0, probe, 2, covariance, alpha=math.e**4)
    torch.testing.assert_close(once.log_odds[:, :2].amin(-1), torch.full((3,), 4.0).double())
    ratio = (probe.log_probs(once.x)[:, 2] - probe.log_probs(once.x)[:, :2].amax(-1)).exp()
    torch.testing.assert_close(ratio, torch.full((3,), math.e**4).double())
    assert once.length.mean() < found.length.mean()


def test_a_pipeline_means_the_same_as_its_unfolded_probe() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    values = (rng.normal(size=(120, 5)) + np.eye(5)[labels] * 2) * [0.01, 1, 5, 100, 1] + 3
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(values, labels)
    x = torch.as_tensor(values)
    covariance = probing.fit_covariance(x)
    found = lrqp.intervene(x[:6], pipeline, 1, covariance)
    log_probs = pipeline.predict_log_proba(found.x.numpy())
    lead = log_probs[:, 1] - np.delete(log_probs, 1, axis=1).max(axis=1)
    np.testing.assert_array_less(found.log_alpha.numpy() - 1e-6, lead)
    assert pipeline.predict(found.x.numpy()).tolist() == [1] * 6


def test_one_activation_float32_and_text_classes() -> None:
    probe, covariance, x0 = random_problem(2, 5, 5, 2, seed=9)
    named = probing.Probe(probe.weights, probe.bias, ("ABBA", "BABA"))
    found = lrqp.intervene(x0[0].float(), named, "BABA", covariance.float())
    assert found.x.shape == (1, 5)
    assert found.x.dtype == torch.float64
    assert found.target == ("BABA",)
    assert named.predict(found.x) == ["BABA"]
    torch.testing.assert_close(
        found.x, lrqp.intervene(x0, probe, 1, covariance).x[:1], rtol=1e-5, atol=1e-5
    )
    assert "1 of 1 moved" in str(found)


def test_the_batch_is_its_rows() -> None:
    probe, covariance, x0 = random_problem(6, 12, 8, 20, seed=10)
    target = [row % 6 for row in range(20)]
    together = lrqp.intervene(x0, probe, target, covariance)
    for row in range(20):
        alone = lrqp.intervene(x0[row], probe, target[row], covariance)
        torch.testing.assert_close(alone.x[0], together.x[row], rtol=1e-9, atol=1e-9)


def test_no_gradient_global_switch_or_input_is_touched() -> None:
    probe, covariance, x0 = random_problem(3, 5, 5, 4, seed=11)
    kept = x0.clone().requires_grad_()
    found = lrqp.intervene(kept, probe, 0, covariance)
    assert not found.x.requires_grad
    assert torch.is_grad_enabled()
    torch.testing.assert_close(kept.detach(), x0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("solver", ["exact", "osqp"])
def test_on_a_gpu(solver: str) -> None:
    probe, covariance, x0 = random_problem(5, 12, 12, 6, seed=12)
    wanted = lrqp.intervene(x0, probe, 3, covariance)
    found = lrqp.intervene(x0.cuda(), probe, 3, covariance, solver=solver)
    assert found.x.is_cuda
    assert relative(found.move.cpu(), wanted.move) < 1e-6


# --- realistic activations ----------------------------------------------------------------------


@pytest.mark.parametrize("k", range(2, 9))
@pytest.mark.parametrize("shrink", [True, False], ids=["full rank", "singular"])
def test_exact_agrees_with_osqp_on_a_transformers_activations(
    tmp_path: Path, k: int, shrink: bool
) -> None:
    model = random_models.boot(
        random_models.save(tmp_path)
    )  # centred: the sample covariance is singular
    data = (
        IOIDataset.generate(model.tokenizer, 160, names=NAMES[:k], prefixes="bundled", seed=k)
        if k > 2
        else IOIDataset.generate(model.tokenizer, 160, names=NAMES, seed=k)
    )
    labels = data.orders if k == 2 else probing.labels_of(data, "S name")
    x = runs.activations_at(model, data, "S2", "L1.mid")
    probe = probing.fit_probe(x[40:], labels[40:])
    covariance = probing.fit_covariance(x[40:], shrink=shrink)
    assert covariance.rank == x.shape[1] - (not shrink)
    target = [probe.classes[row % k] for row in range(6)]
    found = lrqp.intervene(x[:6], probe, target, covariance)
    reference = lrqp.intervene(x[:6], probe, target, covariance, solver="osqp")
    assert relative(found.move, reference.move) < 1e-6
    assert found.kkt.worst.max() < 1e-9
    assert probe.predict(found.x) == target


# --- a circuit known by construction ------------------------------------------------------------


@pytest.fixture(scope="module")
def prompts(built: TransformerBridge) -> IOIDataset:
    return IOIDataset.generate(built.tokenizer, 200, names=NAMES, prefixes="bundled", seed=4)


def other_order(data: IOIDataset) -> list[str]:
    return ["BABA" if order == "ABBA" else "ABBA" for order in data.orders]


@pytest.mark.parametrize(
    ("point", "used"), [("L2.pre", True), ("L2.mid", False), ("L3.mid", False)]
)
def test_lrqp_flips_the_answer_where_the_order_is_used_and_nowhere_else(
    built: TransformerBridge, prompts: IOIDataset, point: str, used: bool
) -> None:
    split = probing.split(probing.groups(prompts, "S2"), 0.3)
    train, data = prompts[split.train], prompts[split.test]
    x = runs.activations_at(built, train, "S2", point)
    probe = probing.fit_probe(x, train.orders)
    covariance = probing.fit_covariance(x)
    x0 = runs.activations_at(built, data, "S2", point)
    clean = runs.logit_diffs(built, data)
    said = probe.predict(x0)
    assert np.mean([a == b for a, b in zip(said, data.orders, strict=True)]) > 0.95

    flip = lrqp.intervene(x0, probe, other_order(data), covariance, true=data.orders)
    control = lrqp.intervene(x0, probe, data.orders, covariance, true=data.orders)
    flipped = runs.logit_diffs(built, data, [residual_edit(data, "S2", point, flip.x)])
    kept = runs.logit_diffs(built, data, [residual_edit(data, "S2", point, control.x)])
    assert kept.mean().item() == pytest.approx(clean.mean().item(), rel=0.05)
    if used:
        assert (flipped < 0).float().mean() > 0.9
    else:
        torch.testing.assert_close(flipped, clean, atol=0.05, rtol=0.05)


# --- the bundled models ------------------------------------------------------------------------


def known_and_used(name: str, points: list[str]) -> dict[str, tuple[float, float, float, float]]:
    """point -> held-out probe accuracy, share flipped, mean logit difference of the control run,
    and the clean one, on prompts with prefixes whose names and templates were held out."""
    model = load_model(name, device="cpu", verbose=False)
    data = IOIDataset.generate(model.tokenizer, 240, prefixes="bundled", seed=0)
    split = probing.split(probing.groups(data, "S2"), 0.3)
    train, test = data[split.train], data[split.test]
    x = runs.activations_at(model, train, "S2", points)
    x0 = runs.activations_at(model, test, "S2", points)
    clean = runs.logit_diffs(model, test).mean().item()
    found = {}
    for point in points:
        probe = probing.fit_probe(x[point], train.orders)
        covariance = probing.fit_covariance(x[point])
        said = probe.predict(x0[point])
        accuracy = np.mean([a == b for a, b in zip(said, test.orders, strict=True)]).item()
        diffs = []
        for target in (other_order(test), test.orders):
            solution = lrqp.intervene(x0[point], probe, target, covariance, true=test.orders)
            assert solution.kkt.worst.max() < 1e-9
            edit = residual_edit(test, "S2", point, solution.x)
            diffs.append(runs.logit_diffs(model, test, [edit]))
        flipped = (diffs[0] < 0).float().mean().item()
        found[point] = (accuracy, flipped, diffs[1].mean().item(), clean)
    return found


def test_ioi_mini_uses_the_order_at_s2_and_later_only_knows_it() -> None:
    found = known_and_used("ioi-mini", ["L2.pre", "L4.pre"])
    for point, (accuracy, flipped, control, clean) in found.items():
        assert accuracy > 0.95
        assert control == pytest.approx(clean, rel=0.02)
        assert flipped > 0.95 if point == "L2.pre" else flipped < 0.05


def test_ioi_plain_does_not_use_s2_at_all() -> None:
    """The control: the same behaviour by another circuit, where LRQP at S2 must fail."""
    found = known_and_used("ioi-plain", ["L1.mid", "L3.pre"])
    assert all(flipped < 0.05 for _, flipped, _, _ in found.values())


# --- comparators --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cloud() -> tuple[Tensor, list[str], probing.Probe, probing.Covariance]:
    rng = np.random.default_rng(0)
    labels = ["ABBA" if row % 2 else "BABA" for row in range(200)]
    shape = rng.normal(size=(6, 6))
    values = rng.normal(size=(200, 6)) @ shape
    values[::2] += 3 * shape[0]
    x = torch.as_tensor(values)
    return x, labels, probing.fit_probe(x, labels), probing.fit_covariance(x)


def swapped(labels: list[str]) -> list[str]:
    return ["BABA" if label == "ABBA" else "ABBA" for label in labels]


def test_every_comparator_has_the_same_form(
    cloud: tuple[Tensor, list[str], probing.Probe, probing.Covariance],
) -> None:
    x, labels, probe, covariance = cloud
    main = lrqp.LRQP(probe, covariance)
    basis = analysis.mean_difference_basis(x, labels)
    for intervention in (
        main,
        lrqp.MeanDifferenceSteering.fit(x, labels),
        lrqp.ProbeMeanAblation.fit(x, probe),
        lrqp.LeaceErasure.fit(x, labels),
        lrqp.InterchangeActivation(),
        lrqp.InterchangeActivation(basis),
        lrqp.RandomDirection(main),
        lrqp.RandomDirection(main, covariance=covariance),
        lrqp.DAS(basis, (), "L1.mid"),
    ):
        kept = x[:8].clone()
        new = intervention(kept, true=labels[:8], target=swapped(labels[:8]), counterfactual=x[1:9])
        assert new.shape == (8, 6)
        assert torch.isfinite(new).all()
        assert torch.equal(kept, x[:8])
        assert (new - kept).abs().max() > 0.01


def test_steering_and_interchange_leave_controls_alone(
    cloud: tuple[Tensor, list[str], probing.Probe, probing.Covariance],
) -> None:
    x, labels, _, _ = cloud
    for intervention in (
        lrqp.MeanDifferenceSteering.fit(x, labels),
        lrqp.InterchangeActivation(),
    ):
        new = intervention(x[:6], true=labels[:6], target=labels[:6], counterfactual=x[1:7])
        torch.testing.assert_close(new, x[:6])
    steer = lrqp.MeanDifferenceSteering.fit(x, labels)
    new = steer(x, true=labels, target=swapped(labels))
    is_abba = torch.tensor([label == "ABBA" for label in labels])
    torch.testing.assert_close(new[is_abba].mean(0), x[~is_abba].mean(0))
    with pytest.raises(ValueError, match="needs the counterfactual's activations"):
        lrqp.InterchangeActivation()(x, true=labels, target=labels)


def test_erasures_leave_nothing_to_read(
    cloud: tuple[Tensor, list[str], probing.Probe, probing.Covariance],
) -> None:
    x, labels, probe, _ = cloud
    is_abba = torch.tensor([label == "ABBA" for label in labels])
    erased = lrqp.LeaceErasure.fit(x, labels)(x)
    gap = (erased[is_abba].mean(0) - erased[~is_abba].mean(0)).norm()
    assert gap < 1e-6 * (x[is_abba].mean(0) - x[~is_abba].mean(0)).norm()
    again = probing.fit_probe(erased, labels)
    assert np.mean([a == b for a, b in zip(again.predict(erased), labels, strict=True)]) < 0.6

    ablated = lrqp.ProbeMeanAblation.fit(x, probe)(x)
    odds = probe.logits(ablated)
    assert (odds - odds[0]).abs().max() < 1e-4
    with pytest.raises(ValueError, match="no variable to erase"):
        lrqp.LeaceErasure.fit(x, ["ABBA"] * 200)


def test_the_placebo_moves_as_far(
    cloud: tuple[Tensor, list[str], probing.Probe, probing.Covariance],
) -> None:
    x, labels, probe, covariance = cloud
    main = lrqp.LRQP(probe, covariance)
    arguments: dict[str, Any] = {"true": labels, "target": swapped(labels)}
    wanted = main(x, **arguments) - x
    move = lrqp.RandomDirection(main, seed=1)(x, **arguments) - x
    torch.testing.assert_close(move.norm(dim=-1), wanted.norm(dim=-1))
    assert torch.linalg.matrix_rank(move, rtol=1e-5) == 1
    natural = lrqp.RandomDirection(main, seed=1, covariance=covariance)
    move = natural(x, **arguments) - x
    torch.testing.assert_close(covariance.length(move), covariance.length(wanted))
    assert torch.linalg.matrix_rank(move) == 6
    torch.testing.assert_close(natural(x, **arguments), natural(x, **arguments))
    # An eigenvector's sign is the linear algebra's choice, which differs between machines.
    values, vectors = covariance._eigen
    turned = replace(covariance)
    turned.__dict__["_eigen"] = values, vectors * torch.tensor([1.0, -1.0]).repeat(3).to(vectors)
    other = lrqp.RandomDirection(main, seed=1, covariance=turned)
    torch.testing.assert_close(other(x, **arguments) - x, move)


def test_das_learns_the_order_at_s2_in_the_middle_of_a_block(
    built: TransformerBridge, prompts: IOIDataset
) -> None:

    def hooks_on(model: TransformerBridge) -> int:
        return sum(len(point.fwd_hooks) for point in model.hook_dict.values())

    flags = [parameter.requires_grad for parameter in built.parameters()]
    before = hooks_on(built)
    das = lrqp.fit_das(
        built, prompts[:80], "S2", "L1.mid", epochs=4, batch_size=16, lr=0.05, seed=0
    )
    assert [parameter.requires_grad for parameter in built.parameters()] == flags
    assert hooks_on(built) == before
    assert das.losses[-1] < 0.5 * das.losses[0]
    data = prompts[80:120]
    new = das(
        runs.activations_at(built, data, "S2", "L1.mid"),
        true=data.orders,
        target=other_order(data),
        counterfactual=runs.activations_at(built, data.swap_order(), "S2", "L1.mid"),
    )
    diffs = runs.logit_diffs(built, data, [residual_edit(data, "S2", "L1.mid", new)])
    assert (diffs < 0).float().mean() > 0.9
    with pytest.raises(ValueError, match="80 prompts but 8 sources"):
        lrqp.fit_das(built, prompts[:80], "S2", "L1.mid", source=prompts[:8])


def test_the_comparison_shows_success_against_damage(
    built: TransformerBridge, prompts: IOIDataset
) -> None:
    split = probing.split(probing.groups(prompts, "S2"), 0.2)
    train, data = prompts[split.train], prompts[split.test]
    x = runs.activations_at(built, train, "S2", "L2.pre")
    probe, covariance = probing.fit_probe(x, train.orders), probing.fit_covariance(x)
    main = lrqp.LRQP(probe, covariance)
    table = lrqp.compare(
        built,
        data,
        "S2",
        "L2.pre",
        {
            "LRQP": main,
            "interchange": lrqp.InterchangeActivation(),
            "placebo": lrqp.RandomDirection(main),
            "natural": lrqp.RandomDirection(main, covariance=covariance),
        },
        true=data.orders,
        target=other_order(data),
        counterfactual=data.swap_order(),
        probe=probe,
        covariance=covariance,
    ).set_index("intervention")
    assert table.index.tolist() == ["none", "LRQP", "interchange", "placebo", "natural"]
    clean = runs.logit_diffs(built, data)
    assert table.logit_diff["none"] == pytest.approx(clean.mean().item(), abs=1e-5)
    assert table.norm["none"] == table.kl_here["none"] == table.kl_after["none"] == 0
    assert table.flipped["interchange"] == 1.0
    assert table.flipped["LRQP"] > 0.9
    assert table.flipped["natural"] < 0.1
    assert table.length["natural"] == pytest.approx(table.length["LRQP"], rel=1e-6)
    assert table.norm["placebo"] == pytest.approx(table.norm["LRQP"], rel=1e-4)
    assert table.belief["LRQP"] == 1.0
    x0 = runs.activations_at(built, data, "S2", "L2.pre")
    solution = lrqp.intervene(x0, probe, other_order(data), covariance, true=data.orders)
    assert table.length["LRQP"] == pytest.approx(solution.length.mean().item(), rel=1e-6)
    with pytest.raises(ValueError, match="but 3 true"):
        lrqp.compare(built, data, "S2", "L2.pre", {}, true=["ABBA"] * 3, target=data.orders)


def test_the_comparisons_damage_is_what_plain_hooks_find() -> None:
    """At the role itself, and at the tokens after it and before END: neither of the two counts."""
    model = load_model("ioi-mini")
    data = IOIDataset.generate(model.tokenizer, 6, prefixes="bundled", seed=8)
    new = torch.randn(6, model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    table = lrqp.compare(
        model, data, "S2", "L2.pre", {"noise": Noise(new)}, true=data.orders, target=data.orders
    ).set_index("intervention")
    here, after, at_end = [], [], []
    for row, (s2, end) in enumerate(zip(data.positions["S2"], data.positions["END"], strict=True)):
        tokens = data.tokens[row : row + 1, : end + 1]

        def put(stream: Tensor, hook: Any, s2: Tensor = s2, row: int = row) -> Tensor:
            return stream.index_copy(1, s2[None], new[row][None, None])

        with torch.no_grad():
            clean = model(tokens)[0].log_softmax(-1)
            edited = model.run_with_hooks(tokens, fwd_hooks=[("blocks.2.hook_resid_pre", put)])[0]
        kl = (clean.exp() * (clean - edited.log_softmax(-1))).sum(-1)
        here.append(kl[s2])
        after += kl[s2 + 1 : end]
        at_end.append(kl[end])
    means = [torch.stack(part).mean().item() for part in (here, after, at_end)]
    assert table.kl_here["noise"] == pytest.approx(means[0], rel=1e-3)
    assert table.kl_after["noise"] == pytest.approx(means[1], rel=1e-3)
    with_role = torch.stack([*here, *after]).mean().item()
    for other in (means[2], with_role):  # what would be easy to mistake for either
        assert abs(other - means[0]) > 0.05 * means[0]
        assert abs(other - means[1]) > 0.05 * means[1]


@dataclass(frozen=True)
class Noise:
    """An intervention that puts in what it was made with."""

    new: Tensor

    def __call__(self, x0: Tensor, **_: Any) -> Tensor:
        return self.new.to(x0)


def test_what_the_clean_run_has_wrong_does_not_flip(
    built: TransformerBridge, prompts: IOIDataset
) -> None:
    """An edit that does nothing flips nothing, where the clean run prefers S too."""
    asked = prompts.abc()
    assert (runs.logit_diffs(built, asked) < 0).any()
    same = {"same": Noise(runs.activations_at(built, asked, "S2", "L2.pre"))}
    settings: dict[str, Any] = {"true": asked.orders, "target": asked.orders}
    table = lrqp.compare(built, asked, "S2", "L2.pre", same, **settings)
    assert (table.flipped == 0).all() and (table.flipped_ABBA == 0).all()


def test_the_comparison_of_a_single_prompt_has_no_errors(
    built: TransformerBridge, prompts: IOIDataset
) -> None:
    data = prompts[:1]
    interchange = {"interchange": lrqp.InterchangeActivation()}
    settings: dict[str, Any] = {"true": data.orders, "target": other_order(data)}
    settings["counterfactual"] = data.swap_order()
    table = lrqp.compare(built, data, "S2", "L2.pre", interchange, **settings)
    assert table.stderr.isna().all() and table.flipped_stderr.isna().all()
    assert table.flipped.tolist() == [0.0, 1.0]
    assert table.drop(columns=["stderr", "flipped_stderr"]).notna().all(axis=None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_dtype_runs(dtype: torch.dtype) -> None:
    rows = []
    models, data = random_models.in_dtype(dtype, 48)
    train, test = data[:40], data[40:]
    for model in models:
        x = runs.activations_at(model, train, "S2", "L2.pre")
        probe = probing.fit_probe(x, train.orders, C=0.01)
        covariance = probing.fit_covariance(x)
        interventions: dict[str, lrqp.Intervention] = {
            "LRQP": lrqp.LRQP(probe, covariance),
            "steering": lrqp.MeanDifferenceSteering.fit(x, train.orders),
            "erasure": lrqp.LeaceErasure.fit(x, train.orders),
            "ablation": lrqp.ProbeMeanAblation.fit(x, probe),
            "interchange": lrqp.InterchangeActivation(),
            "DAS": lrqp.fit_das(model, train[:16], "S2", "L2.pre", epochs=1, batch_size=8),
        }
        table = lrqp.compare(
            model,
            test,
            "S2",
            "L2.pre",
            interventions,
            true=test.orders,
            target=other_order(test),
            counterfactual=test.swap_order(),
            probe=probe,
            covariance=covariance,
        )
        rows.append(table.set_index("intervention").astype(float))
    loose = {torch.float64: 1e-9, torch.bfloat16: 0.2, torch.float16: 0.1}[dtype]
    for column in ("logit_diff", "norm", "length", "kl_here"):
        a, b = (table[column].to_numpy() for table in rows)
        np.testing.assert_allclose(a, b, rtol=loose, atol=loose, err_msg=column)


def test_nothing_here_warns(
    cloud: tuple[Tensor, list[str], probing.Probe, probing.Covariance],
) -> None:
    x, labels, probe, covariance = cloud
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probing.fit_probe(x, labels)
        lrqp.intervene(x, probe, "ABBA", covariance)
        lrqp.intervene(x[:3], probe, "ABBA", covariance, solver="osqp")
