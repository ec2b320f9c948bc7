"""The exact solver: the dual of LRQP has one variable for each other class, and few classes.

For two classes there is one variable and a formula, mu = max(0, r) / (a' S a). For more, all rows
are solved at once by the dual active-set method of Goldfarb and Idnani (1983): start without
constraints, take up the constraint that is violated most, and let go of those whose multiplier
would turn negative. Each step solves a system of at most K - 1 unknowns, whatever the width of the
model; the method ends after finitely many steps with the exact active set, or with a proof that the
constraints contradict each other.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ioi_helpers.lrqp.problem import Problem, infeasible


def solve_exact(problem: Problem) -> Float[Tensor, "batch other"]:
    """The multipliers of every row's optimum; :meth:`Problem.moved` turns them into activations.

    Raises:
        InfeasibleTarget: Rows that have no solution.
    """
    short, slot = problem.shortfall, problem.slot
    size = problem.gram.diagonal(dim1=1, dim2=2)  # [target other]
    # Constraints along which activations do not vary at all (up to rounding) cannot be moved along.
    least = 1e-12 * problem.covariance.total_variance
    flat = size <= least * problem.normals.square().sum(dim=-1)
    some_flat = bool(flat.any())
    if some_flat:
        stuck = (flat[slot] & (short > 0)).any(dim=-1)
        if bool(stuck.any()):
            raise infeasible(problem, stuck.nonzero()[:, 0].tolist())
    if short.shape[1] == 1:
        inverse = torch.where(flat, 0.0, 1 / size)
        return short.clamp_min(0) * inverse[slot]
    # In units of each constraint's own standard deviation G has a diagonal of ones.
    unit = torch.where(flat, 0.0, size.rsqrt())[slot]
    wanted = short * unit
    if some_flat:
        wanted = wanted.masked_fill(flat[slot], -torch.inf)
    multipliers = torch.zeros_like(short)
    rows = (wanted > 0).any(dim=-1).nonzero()[:, 0]
    if len(rows):
        gram = problem.gram[slot[rows]] * unit[rows, :, None] * unit[rows, None, :]
        found, contradictory = dual_active_set(gram, wanted[rows])
        if bool(contradictory.any()):
            raise infeasible(problem, rows[contradictory].tolist())
        multipliers[rows] = found * unit[rows]
    return multipliers


def dual_active_set(
    gram: Float[Tensor, "batch m m"], wanted: Float[Tensor, "batch m"]
) -> tuple[Float[Tensor, "batch m"], Bool[Tensor, " batch"]]:
    """Minimise 1/2 mu' G mu - r' mu over mu >= 0, for a batch of small problems.

    Args:
        gram: G, positive semi-definite with a diagonal of ones (or zeros, for columns not in use).
        wanted: r; -inf for constraints that are not there.

    Returns:
        The multipliers, and which rows have none because the dual is unbounded: their constraints
        contradict each other.
    """
    n, m = wanted.shape
    mu = torch.zeros_like(wanted)
    active = torch.zeros_like(wanted, dtype=torch.bool)
    # The constraint that a row is taking up at the moment, -1 for none.
    entering = torch.full((n,), -1, dtype=torch.long, device=wanted.device)
    contradictory = torch.zeros(n, dtype=torch.bool, device=wanted.device)
    size = wanted.clamp_min(0).amax(dim=-1).clamp_min(1.0)
    going = torch.arange(n, device=wanted.device)
    for _ in range(20 * m + 50):
        lacks = wanted[going] - (gram[going] @ mu[going][..., None])[..., 0]
        choose = entering[going] < 0
        worst, which = lacks.masked_fill(active[going], -torch.inf).max(dim=-1)
        done = choose & (worst <= 1e-12 * size[going])
        entering[going] = torch.where(choose, which, entering[going])
        going, lacks = going[~done], lacks[~done]
        if not len(going):
            break
        blocked = _step(gram, mu, active, entering, going, lacks)
        contradictory[going[blocked]] = True
        going = going[~blocked]
    return _polish(gram, wanted, mu, active), contradictory


def _step(
    gram: Tensor, mu: Tensor, active: Tensor, entering: Tensor, going: Tensor, lacks: Tensor
) -> Bool[Tensor, " going"]:
    """Raise each entering multiplier as far as it will go, in place; True where without bound."""
    each = torch.arange(len(going), device=going.device)
    new = entering[going]
    held = active[going]
    column = gram[going, :, new] * held
    # What the held multipliers must give way by, for their constraints to stay tight.
    give = _solve_held(gram[going], held, column)
    # What one unit of the new multiplier gains for its constraint: 0 if the held ones imply it.
    gain = gram[going, new, new] - (column * give).sum(dim=-1)
    dependent = gain <= 1e-11
    full = torch.where(dependent, torch.inf, lacks[each, new] / gain)
    room = torch.where(held & (give > 1e-13), mu[going] / give, torch.inf)
    partial, leaving = room.min(dim=-1)
    step = torch.minimum(full, partial)
    unbounded = torch.isinf(step)
    step = torch.where(unbounded, 0.0, step)

    updated = (mu[going] - step[:, None] * give).clamp_min(0)
    updated[each, new] = mu[going, new] + step
    takes = (full <= partial) & ~unbounded
    drops = ~takes & ~unbounded
    held = held.clone()
    held[each[takes], new[takes]] = True
    held[each[drops], leaving[drops]] = False
    updated[each[drops], leaving[drops]] = 0.0
    mu[going], active[going] = updated, held
    entering[going[takes]] = -1
    return unbounded


def _solve_held(
    gram: Float[Tensor, "batch m m"], held: Bool[Tensor, "batch m"], right: Float[Tensor, "batch m"]
) -> Float[Tensor, "batch m"]:
    """Solve G y = right on the rows and columns that are held; y is 0 elsewhere."""
    both = held[:, :, None] & held[:, None, :]
    system = torch.where(both, gram, torch.diag_embed((~held).to(gram.dtype)))
    solved, _ = torch.linalg.solve_ex(system, (right * held)[..., None])
    return solved[..., 0] * held


def _polish(
    gram: Tensor, wanted: Tensor, mu: Tensor, active: Int[Tensor, "batch m"]
) -> Float[Tensor, "batch m"]:
    """Multipliers from the final active set alone, without the rounding of the way there."""
    right = torch.where(active, wanted, 0.0)
    solved = _solve_held(gram, active, right)
    left = right - (gram @ solved[..., None])[..., 0] * active
    solved = solved + _solve_held(gram, active, left)
    sound = torch.isfinite(solved).all(dim=-1, keepdim=True) & (solved > -1e-9).all(
        dim=-1, keepdim=True
    )
    return torch.where(sound, solved.clamp_min(0), mu)
