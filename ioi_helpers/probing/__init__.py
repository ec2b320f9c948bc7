"""Residual probing: what can be read off the residual stream, and how far to trust the reading.

Activations at any role and point (``"L6.mid"``), pictures of them, logistic probes with an honest
evaluation, and the covariance that LRQP measures moves with. Follows "Intervening in the Residual
Stream" (the LRQP post). A linear view on purpose; for probes on a few neurons see TransformerLens'
``tools.analysis.fit_sparse_probe``.
"""

from __future__ import annotations

from ioi_helpers.probing.activations import (
    SVDProjection,
    activations_at,
    class_share,
    head_outputs,
    labels_of,
    parse_point,
    point_hook,
    residual_activations,
    residual_points,
    svd_projection,
)
from ioi_helpers.probing.covariance import Covariance, as_covariance, fit_covariance
from ioi_helpers.probing.evaluation import (
    HELD_OUT,
    LeakedSplit,
    ProbeScore,
    Split,
    check_split,
    evaluate_probe,
    folds,
    groups,
    probe_table,
    split,
)
from ioi_helpers.probing.probes import Probe, as_probe, class_counts, fit_probe

__all__ = [
    "HELD_OUT",
    "Covariance",
    "LeakedSplit",
    "Probe",
    "ProbeScore",
    "SVDProjection",
    "Split",
    "activations_at",
    "as_covariance",
    "as_probe",
    "check_split",
    "class_counts",
    "class_share",
    "evaluate_probe",
    "fit_covariance",
    "fit_probe",
    "folds",
    "groups",
    "head_outputs",
    "labels_of",
    "parse_point",
    "point_hook",
    "probe_table",
    "residual_activations",
    "residual_points",
    "split",
    "svd_projection",
]
