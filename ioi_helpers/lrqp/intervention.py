"""LRQP as one call: from activations, a probe, a target and a covariance to new activations.

And as an :class:`Intervention`, the form that it shares with its rivals, the baselines.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ioi_helpers.lrqp.backends import solve_qp
from ioi_helpers.lrqp.exact import solve_exact
from ioi_helpers.lrqp.problem import Problem, Solution, judge, require_optimal
from ioi_helpers.probing import Probe, as_covariance, as_probe
from ioi_helpers.probing.activations import require_matrix

LOG_ALPHA = 10.0
"""The least log odds that the LRQP post asks for, in nats: alpha is at least e^10."""
MOST_LOG_ALPHA = 1e100  # a cost is the square of a length, and float64 ends at 1e308


def intervene(
    x0: Float[Tensor, "batch d_model"],
    probe: Any,
    target: Any,
    covariance: Any,
    solver: str = "exact",
    *,
    alpha: float | Float[Tensor, " batch"] | None = None,
    log_alpha: float | Float[Tensor, " batch"] | None = None,
    true: Any = None,
    tolerance: float = 1e-6,
    whiten: bool = True,
    **solver_options: Any,
) -> Solution:
    """Move activations as little as possible so that a probe believes the target.

    Two classes, in plain PyTorch, for one activation that does not believe the target yet::

        a = w_target - w_other
        c = log_alpha - (b_target - b_other)
        x = x0 + S @ a * max(0, c - a @ x0) / (a @ S @ a)

    Args:
        x0: ``[batch d_model]``, or a single activation ``[d_model]``. Any device and dtype; the
            computation is in float64 there (on the CPU where the device has no float64).
        probe: A :class:`~ioi_helpers.probing.Probe`, or a fitted scikit-learn logistic regression,
            also in a pipeline with ``StandardScaler`` or ``PCA``.
        target: The class to believe, one for each row or one for all.
        covariance: Of activations at the same place, from training prompts: a
            :class:`~ioi_helpers.probing.Covariance`, a matrix, or a fitted scikit-learn estimator.
            If it is singular, moves stay in its range.
        solver: ``"exact"``, or a backend of the qpsolvers package such as ``"osqp"``.
        alpha: How many times as probable as any other class the target must be. By default, as in
            the LRQP post, max(P[true] / P[target], e^10): as sure of the new value as it was of the
            old one.
        log_alpha: The same as a logarithm, in nats, where alpha itself would be too large.
        true: The class that each row has in fact, for the default alpha; by default the one that
            the probe finds most probable.
        tolerance: Largest residual of the optimality conditions that is accepted.
        whiten: For qpsolvers backends: solve in whitened coordinates at tight tolerances, or
            (False) pass the problem on as it stands, with the solver's own defaults.
        solver_options: Passed to a qpsolvers backend.

    Returns:
        The :class:`Solution`, with the residuals of its optimality conditions.

    Raises:
        ValueError: Shapes that do not fit, a probe or covariance that is none, a single class, an
            unknown target or solver, an alpha that is not positive.
        InfeasibleTarget: The target cannot be reached within the covariance's range.
        NotOptimal: The solver's answer does not meet the optimality conditions. The answer is
            attached to the error.
    """
    values = torch.as_tensor(x0)
    values = require_matrix(values[None] if values.ndim == 1 else values)
    device = values.device
    found = as_probe(probe)
    if found.weights.shape[1] != values.shape[1]:
        raise ValueError(
            f"The probe was fitted on {found.weights.shape[1]} dimensions, but the activations "
            f"have {values.shape[1]}; take both at the same kind of place."
        )
    on_device = Probe(
        found.weights.to(device=device, dtype=torch.float64),
        found.bias.to(device=device, dtype=torch.float64),
        found.classes,
    )
    codes = on_device.codes(target, len(values)).to(device)
    if solver_options and solver == "exact":
        raise ValueError(f"solver='exact' takes no {', '.join(solver_options)}.")
    logits = on_device.logits(values)
    if not math.isfinite(logits.sum()):
        raise ValueError("The activations hold NaN or infinity, or are too large to compute with.")
    problem = Problem.build(
        values,
        logits,
        on_device,
        codes,
        _log_alpha(logits, on_device, codes, alpha, log_alpha, true),
        as_covariance(covariance, values.shape[1], device),
    )
    if solver == "exact":
        x, multipliers = solve_exact(problem)
        solution = judge(problem, x, multipliers, solver)
    else:
        x, multipliers, cost = solve_qp(problem, solver, whiten=whiten, **solver_options)
        solution = judge(problem, x, multipliers, solver, cost)
    require_optimal(solution, tolerance)
    return solution


def _log_alpha(
    logits: Tensor, probe: Probe, target: Tensor, alpha: Any, log_alpha: Any, true: Any
) -> Float[Tensor, " batch"]:
    if alpha is not None and log_alpha is not None:
        raise ValueError("Give either alpha or log_alpha, not both.")
    for name, given in (("alpha", alpha), ("log_alpha", log_alpha)):
        if isinstance(given, str | bytes):
            raise ValueError(f"{name} is a number, not the text {given!r}.")
    if alpha is not None:
        try:
            ratio = torch.as_tensor(alpha, dtype=torch.float64)
        except OverflowError:
            ratio = torch.tensor(torch.inf, dtype=torch.float64)
        if not bool(((ratio > 0) & torch.isfinite(ratio)).all()):
            raise ValueError(
                "alpha is a ratio of probabilities and must be positive and finite; for a very "
                "large one give log_alpha."
            )
        log_alpha = ratio.log()
    if log_alpha is not None:
        wanted = torch.as_tensor(log_alpha, dtype=torch.float64).to(logits.device)
        if wanted.shape not in ((), (len(logits),)) or not bool(torch.isfinite(wanted).all()):
            raise ValueError(
                f"alpha must be one finite number or one for each of the {len(logits)} rows, not "
                f"of shape {tuple(wanted.shape)}."
            )
        if bool((wanted.abs() > MOST_LOG_ALPHA).any()):
            raise ValueError(
                f"log_alpha is in nats, and {float(wanted.abs().max()):.0e} is more than can be "
                "computed with; log odds of activations are of the order of tens."
            )
        return wanted.expand(len(logits))
    old = (
        logits.argmax(dim=-1) if true is None else probe.codes(true, len(logits)).to(logits.device)
    )
    lead = logits.gather(1, old[:, None]) - logits.gather(1, target[:, None])
    return lead[:, 0].clamp_min(LOG_ALPHA)


@dataclass(frozen=True)
class Rows:
    """Activations that an intervention is to change, and what is known of each row.

    Attributes:
        x0: Activations of the prompts as they are.
        true: The class each has.
        target: The class each should have afterwards; equal to ``true`` for a control.
        counterfactual: Activations at the same place of prompts that do have the target.
    """

    x0: Float[Tensor, "batch d_model"]
    true: Sequence[Any] | None = None
    target: Sequence[Any] | None = None
    counterfactual: Float[Tensor, "batch d_model"] | None = None

    def classes(self) -> tuple[Sequence[Any], Sequence[Any]]:
        """``true`` and ``target``.

        Raises:
            ValueError: They were not given.
        """
        if self.true is None or self.target is None:
            raise ValueError(
                "This intervention asks which class each row has and which it should get; give "
                "true= and target=."
            )
        return self.true, self.target


class Intervention(ABC):
    """From activations, with the class that each has and the one it should get, to new ones.

    Called as ``intervention(x0, true=..., target=..., counterfactual=...)``; each takes what it
    needs of these (:class:`Rows`).
    """

    def __call__(
        self,
        x0: Float[Tensor, "batch d_model"],
        *,
        true: Sequence[Any] | None = None,
        target: Sequence[Any] | None = None,
        counterfactual: Float[Tensor, "batch d_model"] | None = None,
    ) -> Float[Tensor, "batch d_model"]:
        given = {"true": true, "target": target, "counterfactual": counterfactual}
        for name, rows in given.items():
            if rows is not None and len(rows) != len(x0):
                raise ValueError(
                    f"There are {len(x0)} activations, but {name} has {len(rows)} rows; give one "
                    "for each."
                )
        return self.moved(Rows(x0, true, target, counterfactual))

    @abstractmethod
    def moved(self, rows: Rows) -> Float[Tensor, "batch d_model"]:
        """The new activations."""


@dataclass(frozen=True)
class LRQP(Intervention):
    """The smallest move that makes the probe believe the target (:func:`intervene`).

    Attributes:
        probe, covariance: From training prompts.
        options: Further arguments of :func:`intervene`, such as ``{"alpha": 1e3}``.
    """

    probe: Any
    covariance: Any
    options: Mapping[str, Any] = field(default_factory=dict)

    def moved(self, rows: Rows) -> Float[Tensor, "batch d_model"]:
        true, target = rows.classes()
        return intervene(rows.x0, self.probe, target, self.covariance, true=true, **self.options).x
