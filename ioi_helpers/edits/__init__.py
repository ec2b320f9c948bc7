"""Edits: put values into a run and see what follows."""

from __future__ import annotations

from ioi_helpers.edits.patterns import attend, pattern_reaches_run

__all__ = ["attend", "pattern_reaches_run"]
