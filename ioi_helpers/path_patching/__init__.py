"""Path patching: which component tells which other one, exactly."""

from __future__ import annotations

from ioi_helpers.path_patching.language import FINAL, Receiver, ReceiverLike, every_input
from ioi_helpers.path_patching.sweep import direct_path_sweep, path_patch, path_sweep

__all__ = [
    "FINAL",
    "Receiver",
    "ReceiverLike",
    "direct_path_sweep",
    "every_input",
    "path_patch",
    "path_sweep",
]
