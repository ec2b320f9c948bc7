"""Mechanistic interpretability of the Indirect Object Identification circuit, hands on.

Its rooms, what happens in each and which may import which stand in CONTRIBUTING.md, "The house".
"""

from __future__ import annotations

from typing import Any

__version__ = "0.2.0"
__all__ = ["IOIDataset", "load_model", "print_versions"]


def __getattr__(name: str) -> Any:
    # Importing TransformerLens takes seconds: only those who use a model pay for it.
    if name in ("load_model", "print_versions"):
        from ioi_helpers import models

        return getattr(models, name)
    if name == "IOIDataset":
        from ioi_helpers.dataset import IOIDataset

        return IOIDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
