"""LRQP through a general solver of quadratic programs, by way of the qpsolvers package.

The LRQP post used OSQP so. It iterates until its own tolerance is met, and its default tolerance is
loose for this problem: called directly, its answers range from right to several per cent off, and a
control intervention that should hardly move anything may move several times too far, while it
reports success. In whitened coordinates, z with x = x0 + L z and S = L L', the objective is
simply z'z; there, with tight tolerances and polishing, it is right. It is slow compared with
:mod:`ioi_helpers.lrqp.exact` all the same, as it solves one row at a time in as many unknowns as
the model is wide.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import qpsolvers
import scipy.sparse
import torch
from jaxtyping import Float
from torch import Tensor

from ioi_helpers.lrqp.exact import solve_exact
from ioi_helpers.lrqp.problem import Problem
from ioi_helpers.runs import progress_bar

# Settings at which a solver's answer passes the optimality check. Solvers that are not listed are
# exact by construction (active-set methods) or run on their defaults.
TIGHT: dict[str, dict[str, Any]] = {
    "osqp": {"eps_abs": 1e-9, "eps_rel": 1e-9, "max_iter": 100_000, "polishing": True},
    "proxqp": {"eps_abs": 1e-12, "eps_rel": 0.0},
    "clarabel": {"tol_gap_abs": 1e-12, "tol_gap_rel": 1e-12, "tol_feas": 1e-12},
    "scs": {"eps_abs": 1e-9, "eps_rel": 1e-9, "max_iters": 100_000},
    "piqp": {"eps_abs": 1e-10, "eps_rel": 1e-10},
    "highs": {},
}
_SPARSE = ("osqp", "clarabel", "scs", "highs", "qpalm")


def solve_qp(
    problem: Problem, solver: str, *, whiten: bool = True, **options: Any
) -> tuple[Float[Tensor, "batch d_model"], Float[Tensor, "batch other"], Float[Tensor, " batch"]]:
    """Solve each row with a qpsolvers backend.

    Args:
        problem: The rows.
        solver: A name from ``qpsolvers.available_solvers``.
        whiten: Solve for z in x = x0 + L z, at tight tolerances. False passes the problem on as it
            stands, with the inverse covariance and the solver's own defaults, as the post would
            have done.
        options: Passed to the solver, before the defaults above.

    Returns:
        The new activations, the multipliers, and the moves' squared Mahalanobis lengths.

    Raises:
        ValueError: The solver is not installed, or ``whiten=False`` with a singular covariance.
        InfeasibleTarget: The solver gave up and the exact solver proves that it had to.
    """
    if solver not in qpsolvers.available_solvers:
        raise ValueError(
            f"There is no solver {solver!r} here; use 'exact' or one of "
            f"{', '.join(qpsolvers.available_solvers)} (others come with 'pip install qpsolvers["
            f"{solver}]')."
        )
    covariance = problem.covariance
    if whiten:
        settings = {**TIGHT.get(solver, {}), **options}
        basis = covariance.factor.cpu().numpy()
        quadratic = np.eye(basis.shape[1])
    else:
        if covariance.rank < covariance.matrix.shape[0]:
            raise ValueError(
                f"The covariance is singular (rank {covariance.rank} of "
                f"{covariance.matrix.shape[0]}), so it has no inverse; use whiten=True, "
                "solver='exact', or shrink it."
            )
        settings = dict(options)
        whitener = covariance.whitener.cpu().numpy()
        basis = np.eye(covariance.matrix.shape[0])
        quadratic = whitener.T @ whitener
    cost_matrix = scipy.sparse.csc_matrix(quadratic) if solver in _SPARSE else quadratic

    constraints = problem.normals.cpu().numpy() @ basis  # [target other unknown]
    short = problem.shortfall.cpu().numpy()
    slots = problem.slot.tolist()
    # Whitened, the unknown is z, which is 0 where nothing moves. Directly it is x itself, and the
    # constraints are those of the post: A x >= c.
    start = np.zeros((len(short), basis.shape[1])) if whiten else problem.x0.cpu().numpy()
    found_at, multipliers = start.copy(), np.zeros_like(short)
    gave_up = []
    for row in progress_bar(solver, range(len(short))):
        if not (short[row] > 0).any():
            continue
        normals = constraints[slots[row]]
        program = qpsolvers.Problem(
            P=cost_matrix,
            q=-quadratic @ start[row] if not whiten else start[row],
            G=scipy.sparse.csc_matrix(-normals) if solver in _SPARSE else -normals,
            h=-(short[row] + normals @ start[row]),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a solver that gave up is dealt with below
            found = qpsolvers.solve_problem(program, solver=solver, **settings)
        if not found.found:
            gave_up.append(row)
        if found.x is None or found.z is None:
            found_at[row] = np.nan
            continue
        found_at[row] = found.x
        multipliers[row] = found.z
    if gave_up:
        # Either there is no solution, and this says so, or the optimality check refuses the rows.
        solve_exact(problem.take(torch.tensor(gave_up, device=problem.x0.device)))
    cost = np.square(found_at if whiten else (found_at - start) @ whitener.T).sum(axis=1)
    x = problem.x0.cpu().numpy() + found_at @ basis.T if whiten else found_at
    device = problem.x0.device
    return (
        torch.as_tensor(x, device=device),
        torch.as_tensor(multipliers, device=device),
        torch.as_tensor(cost, device=device),
    )
