"""The exact solver where classes ask for nearly opposite moves: right, or an honest refusal."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from ioi_helpers import lrqp, probing
from ioi_helpers.lrqp import exact, problem

LEAST_ANGLE = 1e-4
"""Radians between two constraints and a contradiction, down to which no problem is refused."""


def nearly_opposed(
    rng: np.random.Generator, least: float, most: float
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Four constraints in 2 to 4 dimensions, two of them opposed up to an angle between the two."""
    d = int(rng.integers(2, 5))
    rows = rng.normal(size=(4, d))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    angle = np.exp(rng.uniform(np.log(least), np.log(most)))
    one, other = rng.permutation(4)[:2]
    aside = rng.normal(size=d)
    aside -= aside @ rows[one] * rows[one]
    rows[other] = np.sin(angle) * aside / np.linalg.norm(aside) - np.cos(angle) * rows[one]
    return rows, rng.normal(size=4)


def least_violation(rows: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    """By how much the worst constraint of ``rows @ z >= wanted`` is missed at best."""
    m, d = rows.shape
    found = linprog(
        np.eye(d + 1)[d],
        A_ub=np.hstack([-rows, -np.ones((m, 1))]),
        b_ub=-wanted,
        bounds=[(None, None)] * d + [(0, None)],
    )
    assert found.status == 0
    return float(found.fun)


def intervene(
    rows: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any], **options: Any
) -> lrqp.Solution:
    """LRQP with these constraints: a class for each, beside the target, and a white covariance."""
    m, d = rows.shape
    probe = probing.Probe(
        torch.as_tensor(np.vstack([np.zeros(d), -rows])),
        torch.as_tensor(np.append(0.0, wanted)),
        tuple(range(m + 1)),
    )
    white = torch.eye(d, dtype=torch.float64)
    origin = torch.zeros(1, d, dtype=torch.float64)
    return lrqp.intervene(origin, probe, 0, white, log_alpha=0.0, **options)


def verdict(rows: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> str:
    """What the exact solver says of a problem: feasible (with a point), infeasible or refused."""
    try:
        found = intervene(rows, wanted)
    except lrqp.InfeasibleTarget:
        return "infeasible"
    except lrqp.NotOptimal as refusal:
        sentence = str(refusal)
    else:
        slack = rows @ found.x[0].numpy() - wanted
        assert slack.min() >= -1e-6 * max(1, np.abs(wanted).max())  # the tolerance
        assert found.multipliers.max() < 1e16
        return "feasible"
    assert "exact returned" in sentence
    assert "nearly opposite moves" in sentence
    assert "solver='exact'" not in sentence
    return "refused"


def agrees_with_linprog(n: int, least: float, seed: int) -> None:
    """Over one decade of angles."""
    rng = np.random.default_rng(seed)
    for number in range(n):
        rows, wanted = nearly_opposed(rng, least, 10 * least)
        said, missed = verdict(rows, wanted), least_violation(rows, wanted)
        assert not 1e-9 < missed < 1e-6, "linprog's own tolerance decides"
        right = ["feasible" if missed <= 1e-9 else "infeasible"]
        if least < 0.99 * LEAST_ANGLE:
            # Below, refusals are in order, and linprog errs as well: a point in hand is proof.
            right += ["refused", "feasible"]
        assert said in right, (number, missed)


DECADES = pytest.mark.parametrize("least", [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2])


@DECADES
def test_nearly_opposed_classes_are_judged_as_by_linear_programming(least: float) -> None:
    agrees_with_linprog(30, least, seed=0)


@pytest.mark.slow
@DECADES
def test_twenty_thousand_nearly_opposed_problems(least: float) -> None:
    agrees_with_linprog(2858, least, seed=1)


def test_most_are_solved_far_below_the_least_angle() -> None:
    """Refusing everything would pass the above."""
    rng = np.random.default_rng(2)
    said = [verdict(*nearly_opposed(rng, 1e-6, 1e-5)) for _ in range(60)]
    assert said.count("refused") <= 3


@pytest.mark.parametrize("angle", [1e-2, 1e-4, 1e-6])
def test_the_way_between_two_nearly_opposed_classes_is_found(angle: float) -> None:
    """Both are met only far out, at 1 / tan(angle / 2), where the optimum is known by hand."""
    half = angle / 2
    rows = np.array([[np.cos(half), np.sin(half)], [-np.cos(half), np.sin(half)], [0.0, -1.0]])
    found = intervene(rows, np.array([1.0, 1.0, -1e9]))
    np.testing.assert_allclose(found.x[0].numpy(), [0, 1 / np.sin(half)], rtol=1e-9, atol=1e-3)
    assert found.kkt.worst.max() < 1e-8
    with pytest.raises(lrqp.InfeasibleTarget, match="cannot be reached in 1 of 1 rows"):
        intervene(rows, np.array([1.0, 1.0, -0.5 / np.sin(half)]))


def test_several_narrow_ways_at_once_are_no_contradiction() -> None:
    """Pairs opposed but for a little of one common direction: far enough along it all are met."""
    rng = np.random.default_rng(4)
    said = []
    for _ in range(400):
        d, pairs = int(rng.integers(4, 9)), int(rng.integers(2, 5))
        common, rows = np.eye(d)[0], []
        for _ in range(pairs):
            one = np.append(0.0, rng.normal(size=d - 1))
            one /= np.linalg.norm(one)
            rows += [way * one + common * 10 ** rng.uniform(-7, -5) for way in (1, -1)]
        said.append(verdict(np.stack(rows), rng.normal(size=2 * pairs)))
    assert "infeasible" not in said
    assert said.count("feasible") > 100


def test_what_is_lost_in_rounding_is_refused_and_not_made_up() -> None:
    """At an angle of 1e-9 the multipliers would be 1e18."""
    rows = np.array([[1.0, 0.0], [-1.0, 1e-9], [-1.0, -1.0]])
    with pytest.raises(lrqp.NotOptimal, match="exact returned 1 of 1 rows") as refusal:
        intervene(rows, np.array([1.0, 1.0, -1.0]))
    assert "leave one of them out" in str(refusal.value)
    assert torch.isnan(refusal.value.solution.x).all()
    # Another solver's refusal still recommends the exact one.
    with pytest.raises(lrqp.NotOptimal, match="use solver='exact'"):
        intervene(np.eye(3), np.ones(3), solver="osqp", whiten=False, max_iter=1)


def test_contradictions_are_proven_exactly() -> None:
    """Opposed, or adding up to nothing, up to rounding; also with more of them than dimensions."""
    rng = np.random.default_rng(3)
    for _ in range(50):
        m, d = int(rng.integers(2, 6)), int(rng.integers(1, 8))
        rows = rng.normal(size=(m, d))
        against = -(rng.uniform(0.1, 1, size=m) @ rows)
        rows = np.vstack([rows, against])
        with pytest.raises(lrqp.InfeasibleTarget):
            intervene(rows, np.ones(m + 1))
        assert intervene(rows, -np.ones(m + 1)).kkt.worst.max() == 0


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        (
            [
                [-0.7853826782288184, 0.38231635525896723, -0.48683493428432945],
                [-0.013258584295576846, -0.4918599838966953, -0.8705733548550748],
                [0.013258584295579716, 0.4918599838966977, 0.8705733548550734],
                [0.7853826781622443, -0.3823163553241382, 0.4868349343405502],
            ],
            [-0.022864676638091275, 0.12321301797391603, -1.6774888817178892, 2.19555551846057],
        ),
        (
            [
                [0.9241532105718802, -0.05074717916142351, -0.3786364578284088],
                [-0.9241532105718838, 0.05074717916141168, 0.37863645782840166],
                [0.9241531724092286, -0.05074743081209001, -0.3786365172456705],
            ],
            [-0.17817044865005127, 0.4487900865217072, 2.685818761793414],
        ),
    ],
    ids=["asks for nothing", "is no sum of nothing"],
)
def test_where_the_search_stops_without_a_proof_nothing_is_called_infeasible(
    rows: list[list[float]], wanted: list[float]
) -> None:
    """Rounding may end the search; that the constraints contradict each other needs a proof.

    These do not: the point at which the first three are met to the letter meets the rest as well.
    """
    N, r = ([[Fraction(x) for x in row] for row in table] for table in (rows, [wanted]))
    whole = determinant(N[:3])
    replaced = (
        [[*row[:i], r[0][j], *row[i + 1 :]] for j, row in enumerate(N[:3])] for i in range(3)
    )
    point = [determinant(matrix) / whole for matrix in replaced]  # Cramer's rule
    for row, least in zip(N, r[0], strict=True):
        assert sum(a * z for a, z in zip(row, point, strict=True)) >= least
    normals, asked = (torch.tensor([table], dtype=torch.float64) for table in (rows, wanted))
    assert not exact.nearest_point(normals, asked)[1].any()


def determinant(m: list[list[Fraction]]) -> Fraction:
    """Of a 3 x 3 matrix, to the last digit."""
    triples = itertools.permutations(range(3))
    signs = (1, -1, -1, 1, 1, -1)
    terms = (s * m[0][a] * m[1][b] * m[2][c] for s, (a, b, c) in zip(signs, triples, strict=True))
    return sum(terms, Fraction(0))


@pytest.mark.parametrize("times", [1e-20, 1.0, 1e20])
def test_the_unit_of_activations_does_not_matter(times: float) -> None:
    """What counts as nothing is relative: variances may be 1e20 as well as 1e-20."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        weights = torch.randn(5, 6, generator=generator, dtype=torch.float64)
        x0 = torch.randn(3, 6, generator=generator, dtype=torch.float64)
        probe = probing.Probe(weights, torch.zeros(5, dtype=torch.float64), tuple(range(5)))
        white = torch.eye(6, dtype=torch.float64)
        found = lrqp.intervene(x0, probe, seed % 5, times * white)
        wanted = lrqp.intervene(x0, probe, seed % 5, white)
        torch.testing.assert_close(found.x, wanted.x, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.cost * times, wanted.cost, rtol=1e-9, atol=1e-9)


# --- the residuals ------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_a_negative_multiplier_is_measured_by_the_multipliers(unit: float) -> None:
    """Whatever the unit of activations, on which the multipliers' own size depends."""
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    x0 = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    probe = probing.Probe(weights, torch.zeros(3, dtype=torch.float64), (0, 1, 2))
    asked = lrqp.intervene(x0, probe, 0, unit * torch.eye(4, dtype=torch.float64)).problem
    multipliers = torch.tensor([[3.0, -1.0], [1.0, 1.0], [-2.0, -6.0]]).double() / unit
    judged = problem.judge(asked, asked.moved(multipliers), multipliers, "mine")
    torch.testing.assert_close(judged.kkt["dual"], torch.tensor([0.25, 0.0, 0.75]).double())
    # What a negative multiplier belongs to is refused even where all else is right.
    alone = lrqp.KKT(
        {
            name: values if name == "dual" else 0 * values
            for name, values in judged.kkt.residuals.items()
        }
    )
    with pytest.raises(lrqp.NotOptimal, match="mine returned 2 of 3 rows .0, 2.*dual residual"):
        problem.require_optimal(replace(judged, kkt=alone), 1e-6)
