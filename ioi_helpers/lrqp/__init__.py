"""LRQP: put a belief into the residual stream by the smallest possible move and see what follows.

Logistic regression finds how a variable is written in activations; quadratic programming changes
what is written and as little else as it can ("Intervening in the Residual Stream", the LRQP post).
If the model then behaves as if the variable had the new value, the model uses it: a probe alone
cannot show that. Beside it stand its rivals, the *baselines* (steering, erasure, interchange, a
random direction, DAS), in one form, for comparison. What puts new activations into a run is
:mod:`ioi_helpers.edits`.
"""

from __future__ import annotations

from ioi_helpers.lrqp.baselines import (
    InterchangeActivation,
    LeaceErasure,
    MeanDifferenceSteering,
    ProbeMeanAblation,
    RandomDirection,
)
from ioi_helpers.lrqp.comparison import compare
from ioi_helpers.lrqp.das import DAS, fit_das
from ioi_helpers.lrqp.intervention import LOG_ALPHA, LRQP, Intervention, intervene
from ioi_helpers.lrqp.problem import KKT, InfeasibleTarget, NotOptimal, Problem, Solution

__all__ = [
    "DAS",
    "KKT",
    "LOG_ALPHA",
    "LRQP",
    "InfeasibleTarget",
    "InterchangeActivation",
    "Intervention",
    "LeaceErasure",
    "MeanDifferenceSteering",
    "NotOptimal",
    "ProbeMeanAblation",
    "Problem",
    "RandomDirection",
    "Solution",
    "compare",
    "fit_das",
    "intervene",
]
