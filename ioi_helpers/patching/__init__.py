"""Activation patching, exactly and many patches at once; and its linear approximation."""

from ioi_helpers.patching.result import SweepResult, cell_label, sweep_result
from ioi_helpers.patching.sweep import (
    AXES,
    DEFAULT_MEMORY,
    HEAD_SITES,
    SITES,
    STREAM_SITES,
    NoisyEmbedding,
    attribution_patch_sweep,
    patch_sweep,
)

__all__ = [
    "AXES",
    "DEFAULT_MEMORY",
    "HEAD_SITES",
    "SITES",
    "STREAM_SITES",
    "NoisyEmbedding",
    "SweepResult",
    "attribution_patch_sweep",
    "cell_label",
    "patch_sweep",
    "sweep_result",
]
