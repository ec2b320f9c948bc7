"""LRQP: put a belief into the residual stream by the smallest possible move and see what follows.

Logistic regression finds how a variable is written in activations; quadratic programming changes
what is written and as little else as it can ("Intervening in the Residual Stream", the LRQP post).
If the model then behaves as if the variable had the new value, the model uses it: a probe alone
cannot show that. Beside it stand the alternatives (steering, erasure, interchange, a random
direction, DAS) in one form, for comparison.
"""

from __future__ import annotations

from ioi_helpers.lrqp.comparators import (
    DAS,
    LRQP,
    InterchangeActivation,
    Intervention,
    LeaceErasure,
    MeanDifferenceSteering,
    ProbeMeanAblation,
    RandomDirection,
    compare,
    fit_das,
)
from ioi_helpers.lrqp.editing import (
    AtPoints,
    AttentionEdit,
    Edit,
    ResidualEdit,
    attention_patterns,
    edit,
    edited,
    logit_diffs,
    logits_at,
    next_token_kl,
    residual_hooks,
    run_edited,
    success_and_damage,
)
from ioi_helpers.lrqp.intervention import LOG_ALPHA, intervene
from ioi_helpers.lrqp.problem import KKT, InfeasibleTarget, NotOptimal, Problem, Solution

__all__ = [
    "DAS",
    "KKT",
    "LOG_ALPHA",
    "LRQP",
    "AtPoints",
    "AttentionEdit",
    "Edit",
    "InfeasibleTarget",
    "InterchangeActivation",
    "Intervention",
    "LeaceErasure",
    "MeanDifferenceSteering",
    "NotOptimal",
    "ProbeMeanAblation",
    "Problem",
    "RandomDirection",
    "ResidualEdit",
    "Solution",
    "attention_patterns",
    "compare",
    "edit",
    "edited",
    "fit_das",
    "intervene",
    "logit_diffs",
    "logits_at",
    "next_token_kl",
    "residual_hooks",
    "run_edited",
    "success_and_damage",
]
