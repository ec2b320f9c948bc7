"""The exact solver: the dual of LRQP has one variable for each other class, and few classes.

For two classes there is one variable and a formula, mu = max(0, r) / (a' S a). For more, all rows
are solved at once by the dual active-set method of Goldfarb and Idnani (1983): start without
constraints, take up the constraint that is violated most, and let go of those whose multiplier
would turn negative. Each step solves a system of at most K - 1 unknowns, whatever the width of the
model; the method ends after finitely many steps with the exact active set, or with a proof that the
constraints contradict each other.

Two classes may ask for nearly opposite moves. Whether there is still a way between them, or none,
is then a matter of small differences, so what is small is measured against rounding, at the place:
constraints enter as normals and not as their inner products, which know an angle only by its
square, and a normal counts as a combination of others when what it has beyond them is within the
rounding of that combination, which grows with its coefficients.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ioi_helpers.lrqp.problem import Problem, infeasible, plus_combination

EPS = torch.finfo(torch.float64).eps

ROUNDING = 16.0
"""Results within so many times the bound of their rounding count as zero."""

APART = 1e-2
"""Unit normals that are each so far from combinations of those before them may be worked out from
their inner products: no more than four digits are lost."""


def solve_exact(
    problem: Problem,
) -> tuple[Float[Tensor, "batch d_model"], Float[Tensor, "batch other"]]:
    """Every row's optimum: the new activations, and the multipliers.

    Rows in which rounding hides the optimum get NaN, which no check of optimality accepts.

    Raises:
        InfeasibleTarget: Rows that have no solution.
    """
    short, slot = problem.shortfall, problem.slot
    size = problem.gram.diagonal(dim1=1, dim2=2)  # [target other]
    # Constraints along which activations do not vary at all (up to rounding) cannot be moved along.
    most = problem.covariance.total_variance * problem.normals.square().sum(dim=-1)
    flat = size <= 1e-12 * most
    some_flat = bool(flat.any())
    if some_flat:
        stuck = (flat[slot] & (short > 0)).any(dim=-1)
        if bool(stuck.any()):
            raise infeasible(problem, stuck.nonzero()[:, 0].tolist())
    if short.shape[1] == 1:
        inverse = torch.where(flat, 0.0, 1 / size)
        multipliers = short.clamp_min(0) * inverse[slot]
        return problem.moved(multipliers), multipliers
    # In units of each constraint's own standard deviation all normals have length 1.
    scale = torch.where(flat, 0.0, size.rsqrt())
    unit = scale[slot]
    wanted = short * unit
    if some_flat:
        wanted = wanted.masked_fill(flat[slot], -torch.inf)
    multipliers = torch.zeros_like(short)
    rows = (wanted > 0).any(dim=-1).nonzero()[:, 0]
    if not len(rows):
        return problem.moved(multipliers), multipliers
    normals, apart = _unit_normals(problem, scale)
    # A direction in which activations hardly vary has lost digits to those in which they do.
    noise = EPS * (short.shape[1] + most * scale.square())
    chosen = slot[rows]
    found, contradictory = nearest_point(normals[chosen], wanted[rows], noise[chosen])
    if bool(contradictory.any()):
        raise infeasible(problem, rows[contradictory].tolist())
    multipliers[rows] = found * unit[rows]
    x = problem.moved(multipliers)
    if not apart:
        x[rows], multipliers[rows] = _settled(
            problem.take(rows), x[rows], multipliers[rows], unit[rows]
        )
    return x, multipliers


def _settled(
    problem: Problem,
    x: Float[Tensor, "batch d_model"],
    multipliers: Float[Tensor, "batch other"],
    unit: Float[Tensor, "batch other"],
) -> tuple[Float[Tensor, "batch d_model"], Float[Tensor, "batch other"]]:
    """x moved on by what it still lacks of its active constraints, and the multipliers with it.

    Nearly opposed constraints have large multipliers that all but cancel in the move. Their
    rounding does not, and as they cannot hold what makes up for it, x does.
    """
    active = multipliers > 0
    gram = problem.gram[problem.slot] * unit[:, :, None] * unit[:, None, :]
    factors = _held(gram, active)
    for _ in range(3):
        left = (problem.log_alpha[:, None] - problem.log_odds_at(x)) * unit * active
        more = _times_inverse(factors, left) * unit
        x = plus_combination(x, problem.along(more), problem.reach)
        multipliers = multipliers + more
    return x, multipliers.clamp_min(0)


def _unit_normals(
    problem: Problem, scale: Float[Tensor, "target other"]
) -> tuple[Float[Tensor, "target other axis"], bool]:
    """Each target's whitened normals A L, of length 1 (or 0), along axes of their own span.

    Beside them whether all of them are well apart.
    """
    gram = problem.gram * scale[:, :, None] * scale[:, None, :]
    lower, failed = torch.linalg.cholesky_ex(gram)
    if not bool(failed.any()) and bool((lower.diagonal(dim1=1, dim2=2) > APART).all()):
        return lower, True
    # Nearly dependent, or more constraints than directions. The products have lost half of the
    # digits by which they differ, the normals have not.
    whitened = scale[:, :, None] * problem.normals @ problem.covariance.factor
    return torch.linalg.qr(whitened.mT, mode="r").R.mT, False


def nearest_point(
    normals: Float[Tensor, "batch m axis"],
    wanted: Float[Tensor, "batch m"],
    noise: Float[Tensor, "batch m"] | None = None,
) -> tuple[Float[Tensor, "batch m"], Bool[Tensor, " batch"]]:
    """The shortest z with N z >= r, for a batch of small problems, as z = N' mu.

    Args:
        normals: N, whose rows are of length 1 (or 0, for constraints that are not there).
        wanted: r; -inf for constraints that are not there.
        noise: Bound on the rounding in each row of N; by default that of its arithmetic.

    Returns:
        The multipliers mu >= 0 (NaN where rounding hides them), and which rows have none because
        their constraints contradict each other.
    """
    m = wanted.shape[1]
    noise = torch.full_like(wanted, m * EPS) if noise is None else noise
    size = wanted.amax(dim=-1).clamp_min(0)
    active = torch.zeros_like(wanted, dtype=torch.bool)
    proof = torch.zeros_like(wanted)
    gram = normals @ normals.mT
    search = _Search(normals, gram, wanted, noise, size)
    for _ in range(20 * m + 50):
        solved = search.choose()
        if bool(solved.any()):
            active[search.row[solved]] = search.active[solved]
            search.keep(~solved)
        if not len(search.row):
            break
        blocked = search.advance()
        if bool(blocked.any()):
            proof[search.row[blocked]] = search.mu[blocked]
            search.keep(~blocked)
    active[search.row] = search.active
    mu, z = _tight(normals, gram, wanted, active)
    # Whatever the way here, an answer meets its constraints and pulls at none of them; and a proof
    # is a sum of constraints that asks for something (r) in no direction at all (N).
    lacks = (wanted - _times(normals, z)).amax(dim=-1)
    sound = lacks <= 1e-9 * size + 1e3 * EPS * z.norm(dim=-1)
    sound &= mu.amin(dim=-1) >= -1e-9 * mu.amax(dim=-1)
    # Multipliers whose last digit is as large as what is asked for mean nothing any more.
    sound &= EPS * mu.abs().sum(dim=-1) <= 0.25 * size
    asked = torch.where(proof > 0, proof * wanted, 0.0).sum(dim=-1)
    direction = _times(normals.mT, proof).norm(dim=-1)
    proven = (asked > 0) & (direction <= 2 * ROUNDING * (proof * noise).sum(dim=-1))
    return mu.clamp_min(0).masked_fill(~sound[:, None], torch.nan), proven


class _Search:
    """The rows of a batch that are not solved yet, and where they stand."""

    def __init__(
        self, normals: Tensor, gram: Tensor, wanted: Tensor, noise: Tensor, size: Tensor
    ) -> None:
        self.normals, self.gram, self.wanted = normals, gram, wanted
        self.noise, self.near = noise, 1e-12 * size
        self.lacks = wanted
        self.row = torch.arange(len(wanted), device=wanted.device)
        self.mu = torch.zeros_like(wanted)
        self.z = normals.new_zeros(normals.shape[0], normals.shape[2])
        self.active = torch.zeros_like(wanted, dtype=torch.bool)
        # Of the inner products of the normals that are held; 0 elsewhere.
        self.inverse = normals.new_zeros(*wanted.shape, wanted.shape[1])
        # The constraint that a row is taking up at the moment, -1 for none.
        self.entering = torch.full_like(self.row, -1)

    def keep(self, rows: Bool[Tensor, " row"]) -> None:
        """Let go of all rows but these."""
        kept = rows.nonzero()[:, 0]
        for name, value in vars(self).items():
            setattr(self, name, value[kept])

    def choose(self) -> Bool[Tensor, " row"]:
        """Where no constraint is being taken up, let it be the worst; True where all are met."""
        self.lacks = self.wanted - _times(self.normals, self.z)
        worst, which = self.lacks.masked_fill(self.active, -torch.inf).max(dim=-1)
        near = self.near + ROUNDING * EPS * self.z.norm(dim=-1)
        free = self.entering < 0
        self.entering = torch.where(free, which, self.entering)
        return free & (worst <= near)

    def advance(self) -> Bool[Tensor, " row"]:
        """Raise each entering multiplier as far as it will go; True where that is without bound.

        There the multipliers become the direction in which they would grow.
        """
        each, new = torch.arange(len(self.row), device=self.row.device), self.entering
        # Split the new normal into a combination of the held ones, by which their multipliers must
        # give way for their constraints to stay tight, and what it has beyond them. Where that is
        # little, rounding has left some of the held ones in it, which is split off again.
        give = _times(self.inverse, self.gram[each, new])
        beyond = self.normals[each, new] - _times(self.normals.mT, give)
        gain = (beyond * beyond).sum(dim=-1)
        if bool((gain < APART**2).any()):
            for _ in range(2):
                more = _times(self.inverse, _times(self.normals, beyond))
                give, beyond = give + more, beyond - _times(self.normals.mT, more)
            gain = (beyond * beyond).sum(dim=-1)
        blur = ROUNDING * (self.noise[each, new] + (give.abs() * self.noise).sum(dim=-1))
        dependent = gain <= blur.square()
        full = torch.where(dependent, torch.inf, self.lacks[each, new].clamp_min(0) / gain)
        least = blur[:, None] * self.inverse.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
        room = torch.where(self.active & (give > least), self.mu / give, torch.inf)
        partial, leaving = room.min(dim=-1)
        step = torch.minimum(full, partial)
        unbounded = torch.isinf(step)
        step = torch.where(unbounded, 0.0, step)

        self.z = self.z + torch.where(dependent, 0.0, step)[:, None] * beyond
        change = -give
        change[each, new] = 1.0
        moved = self.mu + step[:, None] * change
        self.mu = torch.where(unbounded[:, None], change, moved).clamp_min(0)
        takes = (full <= partial) & ~unbounded
        self.inverse = self.inverse + _outer(change, torch.where(takes, 1 / gain, 0.0))
        self.active[each, new] |= takes
        self.entering = torch.where(takes, -1, new)
        drops = (~takes & ~unbounded).nonzero()[:, 0]
        if len(drops):
            out = leaving[drops]
            column = self.inverse[drops, out]
            self.inverse[drops] -= _outer(column, 1 / column.gather(1, out[:, None])[:, 0])
            self.inverse[drops, out] = 0.0
            self.inverse[drops, :, out] = 0.0
            self.active[drops, out] = False
            self.mu[drops, out] = 0.0
        return unbounded


def _tight(
    normals: Float[Tensor, "batch m axis"],
    gram: Float[Tensor, "batch m m"],
    wanted: Float[Tensor, "batch m"],
    active: Bool[Tensor, "batch m"],
) -> tuple[Float[Tensor, "batch m"], Float[Tensor, "batch axis"]]:
    """The multipliers, and the point, at which the active constraints are met exactly."""
    factors = _held(gram, active)
    wanted = torch.where(active, wanted, 0.0)
    mu, z = torch.zeros_like(wanted), normals.new_zeros(normals.shape[0], normals.shape[2])
    left = wanted
    for _ in range(3):
        more = _times_inverse(factors, left)
        mu, z = mu + more, z + _times(normals.mT, more)
        left = (wanted - _times(normals, z)) * active
        if not bool((left.abs() > 1e-14 * wanted.abs()).any()):
            break
    return mu, z


def _held(gram: Float[Tensor, "batch m m"], active: Bool[Tensor, "batch m"]) -> Any:
    """The factorised inner products of the active normals; the identity on the others."""
    both = active[:, :, None] & active[:, None, :]
    rest = torch.diag_embed((~active).to(gram.dtype))
    return torch.linalg.lu_factor_ex(torch.where(both, gram, rest))


def _times_inverse(factors: Any, right: Float[Tensor, "batch m"]) -> Float[Tensor, "batch m"]:
    return torch.linalg.lu_solve(factors.LU, factors.pivots, right[..., None])[..., 0]


def _times(
    matrix: Float[Tensor, "batch row column"], vector: Float[Tensor, "batch column"]
) -> Float[Tensor, "batch row"]:
    return (matrix @ vector[..., None])[..., 0]


def _outer(
    vector: Float[Tensor, "batch m"], factor: Float[Tensor, " batch"]
) -> Float[Tensor, "batch m m"]:
    return (vector * factor[:, None])[:, :, None] * vector[:, None, :]
