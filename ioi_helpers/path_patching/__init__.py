"""Path patching: which component tells which other one, exactly and by gradients."""

from __future__ import annotations

from ioi_helpers.path_patching.edges import (
    correlation,
    edge_scores,
    edges_of,
    exact_edges,
    points_between,
    precision_at_k,
    recovered,
)
from ioi_helpers.path_patching.language import FINAL, Receiver, ReceiverLike, every_input
from ioi_helpers.path_patching.sweep import direct_path_sweep, path_patch, path_sweep

__all__ = [
    "FINAL",
    "Receiver",
    "ReceiverLike",
    "correlation",
    "direct_path_sweep",
    "edge_scores",
    "edges_of",
    "every_input",
    "exact_edges",
    "path_patch",
    "path_sweep",
    "points_between",
    "precision_at_k",
    "recovered",
]
