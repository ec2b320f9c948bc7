"""The models that ship with the package: their weights, tokenizers and cards.

How they were made is in `training/` at the top of the repository, which is not installed.
"""

from __future__ import annotations

from pathlib import Path

BUNDLED = ("ioi-mini", "ioi-plain")
VARIANTS = ("ioi-mini-no-head-dropout",)
"""Models that ship for one comparison with `ioi-mini`: trained as it was but for one thing."""


def bundled_folder(name: str) -> Path:
    """The folder of a bundled model: weights, tokenizer, card (`README.md`).

    Raises:
        ValueError: ``name`` is not a bundled model.
    """
    shipped = (*BUNDLED, *VARIANTS)
    if name not in shipped:
        raise ValueError(f"{name!r} is not a bundled model; there are {', '.join(shipped)}.")
    return Path(__file__).parent / name
