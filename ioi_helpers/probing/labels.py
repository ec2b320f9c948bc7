"""What a probe predicts: a variable's value in each prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ioi_helpers.dataset import IOIDataset


def labels_of(data: IOIDataset, variable: str) -> list[Any]:
    """The value of a variable in each prompt, for a probe to predict.

    Args:
        data: The prompts.
        variable: ``"order"`` (ABBA or BABA), ``"template"``, or of a role that is a name:
            ``"IO position"``, ``"S1 position"`` (which token of the prompt it is), ``"IO name"``,
            ``"S name"``.

    Raises:
        ValueError: There is no such variable.
    """
    made: dict[str, Any] = {
        "order": lambda: list(data.orders),
        "template": lambda: data.template_ids.tolist(),
        "IO position": lambda: data.positions["IO"].tolist(),
        "S1 position": lambda: data.positions["S1"].tolist(),
        "IO name": lambda: [names.IO for names in data.names],
        "S name": lambda: [names.S1 for names in data.names],
    }
    if variable not in made:
        raise ValueError(f"{variable!r} is not a variable; use one of {', '.join(made)}.")
    values: list[Any] = made[variable]()
    return values


def encode_labels(labels: Any, n: int) -> tuple[np.ndarray[Any, Any], tuple[Any, ...]]:
    """Labels as class numbers and the classes, sorted, as plain Python values.

    Raises:
        ValueError: Another number of labels than ``n``, more than one axis, or fractions.
    """
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.shape != (n,):
        raise ValueError(
            f"There are {n} activations, but labels of shape {values.shape}; give one label a row."
        )
    if values.dtype.kind == "f" and not np.array_equal(values, np.round(values)):
        raise ValueError("Labels are classes, not measurements; give text or whole numbers.")
    classes, codes = np.unique(values, return_inverse=True)
    return codes, tuple(classes.tolist())
