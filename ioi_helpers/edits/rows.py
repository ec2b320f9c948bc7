"""Where an edit acts: a position for each of the prompts that it was made for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.runs import require_dataset, role_positions

Values = TypeVar("Values", Tensor, Tensor | Callable[[Tensor], Tensor])


def edited_positions(
    data: TwoAnswerData, role: str | Int[Tensor, " batch"], new: Any, what: str, width: str
) -> Int[Tensor, " batch"]:
    """Where an edit of a role acts in each prompt.

    Args:
        role: A role, or a position for each prompt.
        new: The new values, or something else that makes them.
        what: What they are, for the message.
        width: The name of their second axis.

    Raises:
        ValueError: No dataset, an unknown role, or new values that are not one row a prompt.
    """
    require_dataset(data)
    positions = role_positions(data, role)
    if not isinstance(new, Tensor) and not callable(new):
        raise ValueError(
            f"New {what} are a tensor or a function of what is there, not a {type(new).__name__}; "
            "torch.as_tensor makes one."
        )
    if isinstance(new, Tensor) and not bool(torch.isfinite(new).all()):
        raise ValueError(f"The new {what} hold NaN or infinity.")
    if isinstance(new, Tensor) and (new.ndim != 2 or len(new) != len(data)):
        raise ValueError(
            f"There are {len(data)} prompts, but new {what} of shape {tuple(new.shape)}; give "
            f"[batch, {width}], one row for each prompt."
        )
    return positions


def take(values: Values, rows: Int[Tensor, " rows"]) -> Values:
    """Some of the rows; a function of what is there serves for any.

    Raises:
        ValueError: There are not so many.
    """
    if not isinstance(values, Tensor):
        return values
    if len(rows) and int(rows.max()) >= len(values):
        raise ValueError(
            f"The edit was made for {len(values)} prompts, but there are at least "
            f"{int(rows.max()) + 1}; make it for the same prompts."
        )
    return values[rows.to(values.device)]


@dataclass(frozen=True)
class RowwiseEdit:
    """An edit whose fields hold a row for each prompt, all but the name of the place."""

    def take(self, rows: Int[Tensor, " rows"]) -> Self:
        """The edit for some of the prompts only."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(
            self, **{name: take(v, rows) for name, v in values.items() if not isinstance(v, str)}
        )


def refuse_width(new: Any, width: int, what: str) -> None:
    """Refuse new values that are not so wide as what they replace; a function makes its own.

    Args:
        what: Them and what they replace, with a place for the two widths.

    Raises:
        ValueError: They are not.
    """
    if isinstance(new, Tensor) and new.shape[1] != width:
        raise ValueError(what.format(new.shape[1], width))


def new_values(
    new: Tensor | Callable[[Tensor], Tensor], there: Float[Tensor, "rows width"], rows: Tensor
) -> Float[Tensor, "rows width"]:
    """What an edit puts in some rows: its own values for them, or a function of what is there."""
    if isinstance(new, Tensor):
        # The dtype first: some devices have no float64.
        return new.to(there.dtype).to(there.device)[rows]
    return new(there)


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
