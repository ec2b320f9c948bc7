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

Rowwise = Callable[[Float[Tensor, "rows width"]], Float[Tensor, "rows width"]]
Values = TypeVar("Values", Tensor, Tensor | Rowwise)


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
    """An edit at one position of each prompt; its fields hold a row for each, or name the place.

    Attributes:
        positions: ``[batch]``, where.
    """

    positions: Int[Tensor, " batch"]

    def take(self, rows: Int[Tensor, " rows"]) -> Self:
        """The edit for some of the prompts only."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(
            self, **{name: take(v, rows) for name, v in values.items() if not isinstance(v, str)}
        )


@dataclass(frozen=True)
class Replacement(RowwiseEdit):
    """An edit that puts other values in the place of those that are there.

    Attributes:
        new: ``[batch width]``, what to put there; or a function of what is there, which must treat
            every row alike, as it may be called for some of them only.
    """

    new: Float[Tensor, "batch width"] | Rowwise

    def require_width(self, width: int, says: str) -> None:
        """Refuse new values that are not so wide as what they replace; a function makes its own.

        Args:
            says: The sentence, with a place for the two widths.

        Raises:
            ValueError: They are not.
        """
        if isinstance(self.new, Tensor) and self.new.shape[1] != width:
            raise ValueError(says.format(self.new.shape[1], width))

    def values(
        self, there: Float[Tensor, "rows width"], rows: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows width"]:
        """What goes into some rows."""
        if isinstance(self.new, Tensor):
            # The dtype first: some devices have no float64.
            return self.new.to(there.dtype).to(there.device)[rows]
        return self.new(there)


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
