"""Residual probing: what can be read off the residual stream, and how far to trust the reading.

Pictures of activations (read with :func:`ioi_helpers.runs.activations_at`), logistic probes with an
honest evaluation, and the covariance that LRQP measures moves with. Follows "Intervening in the
Residual Stream" (the LRQP post). A linear view on purpose; for probes on a few neurons see
TransformerLens' ``tools.analysis.fit_sparse_probe``.
"""

from __future__ import annotations

from ioi_helpers.probing.activations import head_outputs
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
from ioi_helpers.probing.labels import labels_of
from ioi_helpers.probing.many import fit_probes
from ioi_helpers.probing.pictures import SVDProjection, eta_squared, svd_projection
from ioi_helpers.probing.probes import Probe, as_probe, class_counts, fit_probe

__all__ = [
    "HELD_OUT",
    "Covariance",
    "LeakedSplit",
    "Probe",
    "ProbeScore",
    "SVDProjection",
    "Split",
    "as_covariance",
    "as_probe",
    "check_split",
    "class_counts",
    "eta_squared",
    "evaluate_probe",
    "fit_covariance",
    "fit_probe",
    "fit_probes",
    "folds",
    "groups",
    "head_outputs",
    "labels_of",
    "probe_table",
    "split",
    "svd_projection",
]
