"""Activations on disk, with the prompts they are of."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

import torch
from jaxtyping import Float
from torch import Tensor

from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.dataset.files import read_file, write_file
from ioi_helpers.runs.guards import require_dataset

_TOKENS, _LENGTHS = "the prompts' tokens", "the prompts' lengths"


def save_activations(
    path: str | PathLike[str],
    activations: Mapping[str, Float[Tensor, "batch *rest"]],
    data: TwoAnswerData,
    **about: str,
) -> None:
    """Write activations into a safetensors file, beside the tokens of the prompts they are of.

    ::

        found = activations_at(model, data, "S2", residual_points(model))
        save_activations("s2.safetensors", found, data, model=model.ioi_name, role="S2")

    Args:
        path: The file; one that exists is replaced.
        activations: By name, such as a point's; a row a prompt.
        data: The prompts.
        about: What else should stand in the file, as text.

    Raises:
        ValueError: There is not one row for each prompt.
    """
    require_dataset(data)
    for name, values in activations.items():
        if len(values) != len(data):
            raise ValueError(
                f"The activations at {name} are of {len(values)} prompts, but there are "
                f"{len(data)}; give the prompts they were read from."
            )
    prompts = {_TOKENS: data.tokens, _LENGTHS: data.lengths}
    # Safetensors sorts by name; a dictionary's order is part of what it says.
    texts = {"order": list(activations), "about": about}
    write_file(path, "set of activations", {**activations, **prompts}, texts)


def load_activations(
    path: str | PathLike[str], data: TwoAnswerData
) -> dict[str, Float[Tensor, "batch *rest"]]:
    """Read what :func:`save_activations` wrote, on the CPU.

    Raises:
        ValueError: The file holds something else, or activations of other prompts than ``data``.
    """
    require_dataset(data)
    tensors, texts = read_file(path, "set of activations")
    tokens, lengths = tensors[_TOKENS], tensors[_LENGTHS]
    if not (torch.equal(lengths, data.lengths.cpu()) and torch.equal(tokens, data.tokens.cpu())):
        about = ", ".join(f"{name} {value}" for name, value in texts["about"].items())
        raise ValueError(
            f"{path} holds activations of other prompts ({len(lengths)} of them"
            f"{f'; {about}' if about else ''}); give the dataset they were read from."
        )
    return {name: tensors[name] for name in texts["order"]}
