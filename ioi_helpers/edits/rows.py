"""Where an edit acts: a position for each of the prompts that it was made for."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ioi_helpers.dataset import IOIDataset


def require_rows(new: Any, data: IOIDataset, what: str, width: str) -> None:
    """Refuse new values that are not one row a prompt.

    Args:
        what: What they are, for the message.
        width: The name of their second axis.
    """
    if isinstance(new, Tensor) and (new.ndim != 2 or len(new) != len(data)):
        raise ValueError(
            f"There are {len(data)} prompts, but new {what} of shape {tuple(new.shape)}; give "
            f"[batch, {width}], one row for each prompt."
        )


def take(values: Tensor, rows: Int[Tensor, " rows"]) -> Tensor:
    """Some of the rows.

    Raises:
        ValueError: There are not so many.
    """
    if len(rows) and int(rows.max()) >= len(values):
        raise ValueError(
            f"The edit was made for {len(values)} prompts, but there are at least "
            f"{int(rows.max()) + 1}; make it for the same prompts."
        )
    return values[rows.to(values.device)]


def present(
    positions: Int[Tensor, " batch"], activation: Float[Tensor, "batch pos *rest"]
) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]:
    """Rows, and positions in them, that a run holds; a run that stops before needs no edit.

    Raises:
        ValueError: The run is over another number of prompts.
    """
    if len(positions) != len(activation):
        raise ValueError(
            f"The edit was made for {len(positions)} prompts, but the run has {len(activation)}; "
            "run the model on the same prompts all at once, or give the edit as edits= to a "
            "function that runs them in parts."
        )
    positions = positions.to(activation.device)
    rows = (positions < activation.shape[1]).nonzero()[:, 0]
    return rows, positions[rows]


def arrived(seen: Tensor, wanted: Tensor, scale: Float[Tensor, ""]) -> bool:
    """Whether two values are equal up to the rounding of a sum of terms as large as ``scale``."""
    if not wanted.numel():
        return True
    allowed = 64 * torch.finfo(seen.dtype).eps * scale.to(seen.device).clamp_min(1e-30)
    return bool((seen.detach() - wanted.detach().to(seen.device)).abs().amax() <= allowed)
