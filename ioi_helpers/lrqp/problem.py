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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
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


FEW = 16
"""Up to so many classes, constraints are made for every target, and not only for those asked for:
that takes less time than to find out which are."""


@dataclass(frozen=True)
class Problem:
    """Quadratic programs, one a row, all with the same probe and covariance, in float64.

    Each row has a constraint "target rather than l" for every class l but the target: the axis
    ``other``, in the order of the classes.

    Attributes:
        x0: ``[batch d_model]``, the activations.
        probe: On the same device.
        target: ``[batch]``, row numbers of the probe's weights.
        log_alpha: ``[batch]``, the log odds wanted over every other class, in nats.
        covariance: On the same device.
        slot: ``[batch]``, which of the targets below each row has.
        others: ``[target other]``, the classes l.
        normals: ``[target other d_model]``, a_l.
        reach: ``[class_but_the_last d_model]``, S (w - w_last).
        gram: ``[target other other]``, G.
        log_odds: ``[batch other]``, log P[target] - log P[l] at x0, in nats.
    """

    x0: Float[Tensor, "batch d_model"]
    probe: Probe
    target: Int[Tensor, " batch"]
    log_alpha: Float[Tensor, " batch"]
    covariance: Covariance
    slot: Int[Tensor, " batch"]
    others: Int[Tensor, "target other"]
    normals: Float[Tensor, "target other d_model"]
    reach: Float[Tensor, "class_but_the_last d_model"]
    gram: Float[Tensor, "target other other"]
    log_odds: Float[Tensor, "batch other"]

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
        classes = torch.arange(len(probe.weights), device=target.device)
        if len(classes) <= FEW:
            targets, slot = classes, target
        else:
            targets, slot = torch.unique(target, return_inverse=True)
        others = classes[:-1] + (classes[:-1] >= targets[:, None])
        reach = moves_of(probe, covariance)
        normals = probe.weights[targets][:, None] - probe.weights[others]
        against_last = torch.nn.functional.pad(reach, (0, 0, 0, 1))
        gram = (against_last[targets][:, None] - against_last[others]) @ normals.mT
        log_odds = _log_odds(logits, target, others[slot])
        return cls(
            x0,
            probe,
            target,
            log_alpha,
            covariance,
            slot,
            others,
            normals,
            reach,
            gram,
            log_odds,
        )

    @cached_property
    def shortfall(self) -> Float[Tensor, "batch other"]:
        """How many nats each constraint lacks at x0; at most 0 where it holds already."""
        return self.log_alpha[:, None] - self.log_odds

    def log_odds_at(self, x: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch other"]:
        """log P[target] - log P[l] at other activations, in nats."""
        return _log_odds(self.probe.logits(x), self.target, self.others[self.slot])

    def moved(self, multipliers: Float[Tensor, "batch other"]) -> Float[Tensor, "batch d_model"]:
        """x0 + S A' mu: the activations that belong to multipliers."""
        return plus_combination(self.x0, self.along(multipliers), self.reach)

    def along(
        self, multipliers: Float[Tensor, "batch other"]
    ) -> Float[Tensor, "batch class_but_the_last"]:
        """A' mu as a combination of w - w_last, for every class but the last.

        A' mu adds up to zero over the classes' weights (the target gains what the others lose), so
        the last class needs no coefficient; for two classes one number a row is left.
        """
        total = multipliers.sum(dim=-1, keepdim=True)
        return self.by_class(-multipliers).scatter(1, self.target[:, None], total)[:, :-1]

    def by_class(self, values: Float[Tensor, "batch other"]) -> Float[Tensor, "batch class"]:
        """One column for each class; 0 in the target's own."""
        columns = values.new_zeros(len(values), len(self.probe.weights))
        return columns.scatter(1, self.others[self.slot], values)

    def take(self, rows: Int[Tensor, " rows"]) -> Problem:
        """Some of the rows, as a problem."""
        per_row = ("x0", "target", "log_alpha", "slot", "log_odds")
        return replace(self, **{name: getattr(self, name)[rows] for name in per_row})


def moves_of(probe: Probe, covariance: Covariance) -> Float[Tensor, "class_but_the_last d_model"]:
    """S (w - w_last) of each class but the last: what moves are combinations of."""
    return (probe.weights[:-1] - probe.weights[-1]) @ covariance.matrix


def _log_odds(
    logits: Float[Tensor, "batch class"],
    target: Int[Tensor, " batch"],
    others: Int[Tensor, "batch other"],
) -> Float[Tensor, "batch other"]:
    return logits.gather(1, target[:, None]) - logits.gather(1, others)


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
    """Residuals of the optimality conditions, each free of units; 0 is optimal.

    Attributes:
        residuals: Each condition's, ``[batch]``:

            - ``primal``: largest violation of a constraint, by the size of the log odds involved;
            - ``dual``: most negative multiplier, by all multipliers;
            - ``stationarity``: distance of the move from S A' mu, by the length of the move;
            - ``complementarity``: multipliers of constraints that are not tight, by all
              multipliers;
            - ``gap``: between the primal and the dual objective, by multipliers and log odds.
    """

    residuals: Mapping[str, Float[Tensor, " batch"]]

    def __getitem__(self, condition: str) -> Float[Tensor, " batch"]:
        """One condition's residuals."""
        return self.residuals[condition]

    @cached_property
    def worst(self) -> Float[Tensor, " batch"]:
        """The largest residual of each row; NaN counts as infinite."""
        everything = torch.stack(list(self.residuals.values()))
        return everything.nan_to_num(nan=torch.inf, posinf=torch.inf).amax(dim=0)

    def largest(self) -> dict[str, float]:
        """Each residual's largest value over the rows."""
        return {name: values.max().item() for name, values in self.residuals.items()}


@dataclass(frozen=True)
class Solution:
    """What came of an intervention. Float64, on the device of the activations.

    Attributes:
        x: ``[batch d_model]``, the new activations.
        cost: ``[batch]``, the objective: squared Mahalanobis length of the move.
        kkt: Residuals of the optimality conditions.
        solver: Which solver found it.
        problem: What was solved.
    """

    x: Float[Tensor, "batch d_model"]
    cost: Float[Tensor, " batch"]
    kkt: KKT
    solver: str
    problem: Problem
    _multipliers: Float[Tensor, "batch other"]
    _log_odds: Float[Tensor, "batch other"]

    @property
    def x0(self) -> Float[Tensor, "batch d_model"]:
        """``[batch d_model]``, the activations as they were."""
        return self.problem.x0

    @property
    def classes(self) -> tuple[Any, ...]:
        """The probe's classes: the names of the columns below."""
        return self.problem.probe.classes

    @cached_property
    def target(self) -> tuple[Any, ...]:
        """The class asked of each row."""
        return tuple(self.classes[code] for code in self.problem.target.tolist())

    @property
    def log_alpha(self) -> Float[Tensor, " batch"]:
        """``[batch]``, the log odds asked for over every other class, in nats."""
        return self.problem.log_alpha

    @cached_property
    def log_odds_before(self) -> Float[Tensor, "batch class"]:
        """log P[target] - log P[class] before the move, in nats; 0 in the target's own column."""
        return self.problem.by_class(self.problem.log_odds)

    @cached_property
    def log_odds(self) -> Float[Tensor, "batch class"]:
        """The same after the move."""
        return self.problem.by_class(self._log_odds)

    @cached_property
    def multipliers(self) -> Float[Tensor, "batch class"]:
        """Of the constraints "target rather than class"; 0 in the target's own column.

        How much cost a nat more of log alpha would take, by half.
        """
        return self.problem.by_class(self._multipliers)

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


ROWS = 256
"""Moves are measured for so many rows at a time, so that the processor's cache holds them."""


def judge(
    problem: Problem,
    x: Float[Tensor, "batch d_model"],
    multipliers: Float[Tensor, "batch other"],
    solver: str,
    cost: Float[Tensor, " batch"] | None = None,
) -> Solution:
    """Make a solution of activations and multipliers, with its residuals, measured from scratch.

    Args:
        cost: The move's squared Mahalanobis length. Left out, it is mu' A move, which equals it
            where the stationarity residual is zero.
    """
    log_odds = problem.log_odds_at(x)
    slack = log_odds - problem.log_alpha[:, None]
    if cost is None:
        cost = (multipliers * (log_odds - problem.log_odds)).sum(dim=-1)
    length, apart = _moves(problem, x, multipliers)

    tiny = torch.finfo(x.dtype).tiny
    # Log odds are differences of numbers of about this size.
    scale = torch.maximum(problem.log_alpha.abs(), problem.log_odds.abs().amax(dim=-1))
    scale = scale.clamp_min(1.0)
    total = multipliers.abs().sum(dim=-1)
    scaled_total = (total * scale).clamp_min(tiny)
    # A ten-thousandth of the activations' own spread counts as not moving.
    still = 1e-4 * problem.covariance.total_variance**0.5
    dual_objective = 2 * (multipliers * problem.shortfall).sum(dim=-1)
    dual_objective -= _squared_length(problem, multipliers, 1e-9 * scaled_total)
    residuals = {
        "primal": slack.amin(dim=-1).clamp_max(0).neg() / scale,
        "dual": multipliers.amin(dim=-1).clamp_max(0).neg() / total.clamp_min(tiny),
        "stationarity": apart / length.clamp_min(still),
        "complementarity": (multipliers * slack).abs().sum(dim=-1) / scaled_total,
        "gap": (cost - dual_objective).abs() / torch.maximum(scaled_total, cost),
    }
    return Solution(x, cost, KKT(residuals), solver, problem, multipliers, log_odds)


def _moves(
    problem: Problem,
    x: Float[Tensor, "batch d_model"],
    multipliers: Float[Tensor, "batch other"],
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """The length of x - x0, and its distance from S A' mu."""
    # S A' mu anew from the definition, not with what the solution was made of.
    along, reach = problem.along(multipliers), moves_of(problem.probe, problem.covariance)
    length, apart = x.new_empty(len(x)), x.new_empty(len(x))
    scratch = torch.empty_like(x[:ROWS])
    for start in range(0, len(x), ROWS):
        rows = slice(start, start + ROWS)
        move = torch.sub(x[rows], problem.x0[rows], out=scratch[: len(x[rows])])
        torch.linalg.vector_norm(move, dim=-1, out=length[rows])
        rest = plus_combination(move, along[rows], reach, -1, out=move)
        torch.linalg.vector_norm(rest, dim=-1, out=apart[rows])
    return length, apart


def _squared_length(
    problem: Problem, multipliers: Float[Tensor, "batch other"], accuracy: Float[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """mu' G mu, the squared Mahalanobis length of S A' mu."""
    pull = (problem.gram[problem.slot] @ multipliers[..., None])[..., 0]
    found = (multipliers * pull).sum(dim=-1)
    if multipliers.shape[1] == 1:
        return found
    size = problem.gram.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()[problem.slot]
    rounding = torch.finfo(found.dtype).eps * (multipliers.abs() * size).sum(dim=-1).square()
    rough = (rounding > accuracy).nonzero()[:, 0]
    if len(rough):
        # Large multipliers of nearly opposed constraints cancel in A' mu: after that there is less
        # to round than before.
        along = problem.take(rough).along(multipliers[rough])
        differences = problem.probe.weights[:-1] - problem.probe.weights[-1]
        reach = moves_of(problem.probe, problem.covariance)
        found[rough] = ((along @ differences) * (along @ reach)).sum(dim=-1)
    return found


def require_optimal(solution: Solution, tolerance: float) -> None:
    """Refuse a solution any of whose residuals is above the tolerance.

    Raises:
        NotOptimal: With the solution attached.
    """
    good = solution.kkt.worst <= tolerance
    if not bool(good.all()):
        bad = (~good).nonzero()[:, 0].tolist()
        residuals = {
            name: values[bad].nan_to_num(nan=torch.inf).max().item()
            for name, values in solution.kkt.residuals.items()
        }
        name = max(residuals, key=lambda key: residuals[key])
        remedy = (
            "where classes ask for nearly opposite moves, rounding hides the optimum: leave one of "
            "them out of the probe, take another target, or shrink the covariance"
            if solution.solver == "exact"
            else "use solver='exact', or give this solver a better-scaled problem (whiten=True) "
            "and tighter tolerances"
        )
        raise NotOptimal(
            f"{solution.solver} returned {_rows(bad, len(solution.x))} that "
            f"{'is' if len(bad) == 1 else 'are'} not optimal ({name} residual "
            f"{residuals[name]:.1e}, tolerance {tolerance:.0e}); {remedy}.",
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
