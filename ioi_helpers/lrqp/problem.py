"""The intervention as a quadratic program, one for each activation, and how a solution is judged.

LRQP ("Intervening in the Residual Stream", the LRQP post) moves an activation x0 as little as
possible, in the Mahalanobis length of the activations' covariance S, so that a softmax probe
believes a class k at least alpha times as much as every other class l::

    minimise (x - x0)' S^-1 (x - x0)   subject to   log P[k | x] - log P[l | x] >= log alpha

The softmax's denominator cancels, so each constraint is linear in x, with normal a_l = w_k - w_l.
Write r for the shortfalls log alpha - log P[k | x0] + log P[l | x0]. The dual problem has only one
variable for each other class::

    minimise 1/2 mu' G mu - r' mu   over   mu >= 0,   with   G = A S A'

and x = x0 + S A' mu. The move is along S a, not along a: it stays where activations vary, and needs
no inverse of S, which may be singular. A solution is optimal exactly if it meets the
Karush-Kuhn-Tucker conditions, and that is what is checked: a solver's own word is not taken for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ioi_helpers.probing import Covariance, Probe


class NotOptimal(RuntimeError):
    """A solver's answer does not meet the optimality conditions, whatever the solver said.

    Attributes:
        solution: The refused answer, for looking at.
        rows: Which rows failed.
    """

    def __init__(self, message: str, solution: Solution, rows: list[int]) -> None:
        super().__init__(message)
        self.solution = solution
        self.rows = rows


class InfeasibleTarget(ValueError):
    """No move within the covariance's range makes the probe believe the target strongly enough.

    Attributes:
        rows: For which rows.
    """

    def __init__(self, message: str, rows: list[int]) -> None:
        super().__init__(message)
        self.rows = rows


@dataclass(frozen=True)
class Problem:
    """Quadratic programs, one a row, all with the same probe and covariance, in float64.

    Constraints are numbered by class: column l of a ``[batch class]`` tensor is the constraint
    "k rather than l", and the target's own column is no constraint.

    Attributes:
        x0: ``[batch d_model]``, the activations.
        probe: On the same device.
        target: ``[batch]``, row numbers of the probe's weights.
        log_alpha: ``[batch]``, the log odds wanted over every other class, in nats.
        covariance: On the same device.
        log_odds: ``[batch class]``, log P[target] - log P[class] at x0, in nats.
        reach: ``[class d_model]``, S w of each class.
        normals: ``[target class d_model]``, a_l for each target that occurs.
        gram: ``[target class class]``, G for each target that occurs.
        slot: ``[batch]``, which of those targets each row has.
    """

    x0: Float[Tensor, "batch d_model"]
    probe: Probe
    target: Int[Tensor, " batch"]
    log_alpha: Float[Tensor, " batch"]
    covariance: Covariance
    log_odds: Float[Tensor, "batch class"]
    reach: Float[Tensor, "class d_model"]
    normals: Float[Tensor, "target class d_model"]
    gram: Float[Tensor, "target class class"]
    slot: Int[Tensor, " batch"]

    @classmethod
    def build(
        cls,
        x0: Float[Tensor, "batch d_model"],
        logits: Float[Tensor, "batch class"],
        probe: Probe,
        target: Int[Tensor, " batch"],
        log_alpha: Float[Tensor, " batch"],
        covariance: Covariance,
    ) -> Problem:
        """Everything that all solvers need, computed once; ``logits`` are the probe's at x0."""
        log_odds = logits.gather(1, target[:, None]) - logits
        present, slot = torch.unique(target, return_inverse=True)
        normals = probe.weights[present][:, None] - probe.weights
        reach = probe.weights @ covariance.matrix
        gram = (reach[present][:, None] - reach) @ normals.transpose(1, 2)
        return cls(x0, probe, target, log_alpha, covariance, log_odds, reach, normals, gram, slot)

    @property
    def shortfall(self) -> Float[Tensor, "batch class"]:
        """How many nats each constraint lacks at x0; at most 0 where it holds already."""
        short = self.log_alpha[:, None] - self.log_odds
        return short.scatter(1, self.target[:, None], -torch.inf)

    def moved(self, multipliers: Float[Tensor, "batch class"]) -> Float[Tensor, "batch d_model"]:
        """x0 + S A' mu: the activations that belong to multipliers."""
        return plus_combination(
            self.x0, self.per_class(multipliers), self.reach[:-1] - self.reach[-1]
        )

    def per_class(
        self, multipliers: Float[Tensor, "batch class"]
    ) -> Float[Tensor, "batch class_but_the_last"]:
        """A' mu in terms of w_k - w_last, for every class k but the last.

        A' mu adds up to zero over the classes' weights (the target gains what the others lose), so
        the last class needs no coefficient; for two classes one number a row is left.
        """
        total = multipliers.sum(dim=-1, keepdim=True)
        return (-multipliers).scatter(1, self.target[:, None], total)[:, :-1]

    def take(self, rows: Int[Tensor, " rows"]) -> Problem:
        """Some of the rows, as a problem."""
        return Problem(
            self.x0[rows],
            self.probe,
            self.target[rows],
            self.log_alpha[rows],
            self.covariance,
            self.log_odds[rows],
            self.reach,
            self.normals,
            self.gram,
            self.slot[rows],
        )


def plus_combination(
    x: Float[Tensor, "batch d_model"],
    coefficients: Float[Tensor, "batch row"],
    rows: Float[Tensor, "row d_model"],
    sign: int = 1,
    out: Float[Tensor, "batch d_model"] | None = None,
) -> Float[Tensor, "batch d_model"]:
    """x plus (or minus) ``coefficients @ rows``."""
    if len(rows) == 1:  # an outer product, which a matrix product takes several times as long for
        return torch.addcmul(x, coefficients, rows, value=sign, out=out)
    return torch.addmm(x, coefficients, rows, alpha=sign, out=out)


@dataclass(frozen=True)
class KKT:
    """Residuals of the optimality conditions, each ``[batch]`` and free of units; 0 is optimal.

    Attributes:
        primal: Largest violation of a constraint, by the size of the log odds involved.
        dual: Most negative multiplier, by the largest.
        stationarity: Distance of the move from S A' mu, by the length of the move.
        complementarity: Multipliers of constraints that are not tight, by all multipliers.
        gap: Between the primal and the dual objective, by multipliers and log odds.
    """

    primal: Float[Tensor, " batch"]
    dual: Float[Tensor, " batch"]
    stationarity: Float[Tensor, " batch"]
    complementarity: Float[Tensor, " batch"]
    gap: Float[Tensor, " batch"]

    @property
    def worst(self) -> Float[Tensor, " batch"]:
        """The largest residual of each row; NaN counts as infinite."""
        everything = torch.stack(
            [self.primal, self.dual, self.stationarity, self.complementarity, self.gap]
        )
        return everything.nan_to_num(nan=torch.inf, posinf=torch.inf).amax(dim=0)

    def largest(self) -> dict[str, float]:
        """Each residual's largest value over the rows."""
        return {name: getattr(self, name).max().item() for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class Solution:
    """What came of an intervention. Float64, on the device of the activations.

    Attributes:
        x0, x: ``[batch d_model]``, the activations and the new ones.
        multipliers: ``[batch class]``, of the constraints "target rather than class"; 0 in the
            target's own column. How much cost a nat more of alpha would take, by half.
        cost: ``[batch]``, the objective: squared Mahalanobis length of the move.
        log_odds_before, log_odds: ``[batch class]``, log P[target] - log P[class] before and after,
            in nats; 0 in the target's own column.
        log_alpha: ``[batch]``, what was asked of them.
        target: The class asked of each row.
        classes: The probe's classes, the columns' names.
        kkt: Residuals of the optimality conditions.
        solver: Which solver found it.
    """

    x0: Float[Tensor, "batch d_model"]
    x: Float[Tensor, "batch d_model"]
    multipliers: Float[Tensor, "batch class"]
    cost: Float[Tensor, " batch"]
    log_odds_before: Float[Tensor, "batch class"]
    log_odds: Float[Tensor, "batch class"]
    log_alpha: Float[Tensor, " batch"]
    target: tuple[Any, ...]
    classes: tuple[Any, ...]
    kkt: KKT
    solver: str

    @property
    def move(self) -> Float[Tensor, "batch d_model"]:
        """``[batch d_model]``, x - x0."""
        return self.x - self.x0

    @property
    def moved(self) -> Bool[Tensor, " batch"]:
        """Whether a row moved at all: some constraint was not met from the start."""
        return self.active.any(dim=-1)

    @property
    def active(self) -> Bool[Tensor, "batch class"]:
        """Which constraints hold a row where it is (their multiplier is above zero)."""
        return self.multipliers > 1e-9 * self.multipliers.amax(dim=-1, keepdim=True).clamp_min(0)

    @property
    def length(self) -> Float[Tensor, " batch"]:
        """Mahalanobis length of the move, in standard deviations."""
        return self.cost.clamp_min(0).sqrt()

    def __str__(self) -> str:
        worst = self.kkt.worst.max().item()
        return (
            f"{self.solver}: {int(self.moved.sum())} of {len(self.x)} moved, mean length "
            f"{self.length.mean().item():.3g} standard deviations, largest residual {worst:.1e}"
        )


def judge(
    problem: Problem,
    x: Float[Tensor, "batch d_model"],
    multipliers: Float[Tensor, "batch class"],
    solver: str,
    cost: Float[Tensor, " batch"] | None = None,
) -> Solution:
    """Make a solution of activations and multipliers, with its residuals, measured from scratch.

    Args:
        cost: The move's squared Mahalanobis length. Left out, it is mu' A move, which equals it
            where the stationarity residual is zero.
    """
    probe = problem.probe
    is_target = torch.zeros_like(multipliers, dtype=torch.bool).scatter(
        1, problem.target[:, None], True
    )
    logits = probe.logits(x)
    # S A' mu anew from the definition, not with what the solution was made of.
    differences = (probe.weights[:-1] - probe.weights[-1]) @ problem.covariance.matrix
    move = x - problem.x0
    length = move.norm(dim=-1)
    rest = plus_combination(move, problem.per_class(multipliers), differences, -1, out=move)
    apart = rest.norm(dim=-1)

    log_odds = logits.gather(1, problem.target[:, None]) - logits
    slack = (log_odds - problem.log_alpha[:, None]).masked_fill(is_target, torch.inf)
    gained = log_odds - problem.log_odds
    if cost is None:
        cost = (multipliers * gained).sum(dim=-1)

    tiny = torch.finfo(x.dtype).tiny
    # Log odds are differences of numbers of about this size.
    scale = torch.maximum(problem.log_alpha.abs(), problem.log_odds.abs().amax(dim=-1))
    scale = scale.clamp_min(1.0)
    total = multipliers.abs().sum(dim=-1)
    # A ten-thousandth of the activations' own spread counts as not moving.
    spread = problem.covariance.matrix.diagonal().sum().sqrt()
    short = problem.shortfall.masked_fill(is_target, 0.0)
    pull = (problem.gram[problem.slot] @ multipliers[..., None])[..., 0]
    dual_objective = (multipliers * (2 * short - pull)).sum(dim=-1)
    kkt = KKT(
        primal=(-slack).amax(dim=-1).clamp_min(0) / scale,
        dual=(-multipliers).amax(dim=-1).clamp_min(0) / total.clamp_min(tiny),
        stationarity=apart / length.clamp_min(1e-4 * spread),
        complementarity=(multipliers * slack.masked_fill(is_target, 0.0)).abs().sum(dim=-1)
        / (total * scale).clamp_min(tiny),
        gap=(cost - dual_objective).abs() / torch.maximum(total * scale, cost).clamp_min(tiny),
    )
    return Solution(
        x0=problem.x0,
        x=x,
        multipliers=multipliers,
        cost=cost,
        log_odds_before=problem.log_odds,
        log_odds=log_odds,
        log_alpha=problem.log_alpha,
        target=tuple(probe.classes[code] for code in problem.target.tolist()),
        classes=probe.classes,
        kkt=kkt,
        solver=solver,
    )


def require_optimal(solution: Solution, tolerance: float) -> None:
    """Refuse a solution any of whose residuals is above the tolerance.

    Raises:
        NotOptimal: With the solution attached.
    """
    bad = (~(solution.kkt.worst <= tolerance)).nonzero()[:, 0].tolist()
    if bad:
        residuals = {
            name: getattr(solution.kkt, name)[bad].nan_to_num(nan=torch.inf).max().item()
            for name in solution.kkt.__dataclass_fields__
        }
        name = max(residuals, key=lambda key: residuals[key])
        raise NotOptimal(
            f"{solution.solver} returned {_rows(bad, len(solution.x))} that "
            f"{'is' if len(bad) == 1 else 'are'} not optimal ({name} residual "
            f"{residuals[name]:.1e}, tolerance {tolerance:.0e}); use solver='exact', or give this "
            "solver a better-scaled problem (whiten=True) and tighter tolerances.",
            solution,
            bad,
        )


def infeasible(problem: Problem, rows: Sequence[int]) -> InfeasibleTarget:
    """The error for rows whose target cannot be reached."""
    rows = list(rows)
    label = problem.probe.classes[int(problem.target[rows[0]])]
    return InfeasibleTarget(
        f"The target {label!r} cannot be reached in {_rows(rows, len(problem.x0))}: along the "
        "directions in which activations vary, this probe never prefers it to all other classes "
        "by so much; take a smaller alpha, another target, or a covariance of full rank.",
        rows,
    )


def _rows(rows: list[int], n: int) -> str:
    shown = ", ".join(str(row) for row in rows[:3]) + (", ..." if len(rows) > 3 else "")
    return f"{len(rows)} of {n} rows ({shown})"
