"""What probes read: activations as matrices, and what heads write at a role.

The residual stream itself is read by :func:`ioi_helpers.runs.activations_at`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.names import HeadLike, existing_head, head_name
from ioi_helpers.runs import (
    DEFAULT_MEMORY,
    POST_NORM_SCALE,
    Edit,
    activations_at,
    attention_weight,
    has_post_norm,
)


def head_outputs(
    model: TransformerBridge,
    data: TwoAnswerData,
    role: str,
    heads: Sequence[HeadLike],
    edits: Sequence[Edit] = (),
    *,
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> dict[str, Float[Tensor, "batch d_model"]]:
    """What heads write into the residual stream at a role: ``z @ W_O``, without the bias ``b_O``.

    Where all heads' outputs together are normalised before they are added to the stream, as in
    Gemma 2, each has its share, given that norm's scale in the run at hand.

    Args:
        heads: Such as ``["L7H3", "L8H6"]``.
        edits: Put on the model meanwhile, to see what the heads write after an intervention.
        model, data, role, memory, progress: As for :func:`~ioi_helpers.runs.activations_at`.

    Returns:
        head -> ``[batch d_model]``, of rank d_head.

    Raises:
        ValueError: As for :func:`~ioi_helpers.runs.activations_at`, or a head that the model does
            not have.
    """
    where = {head_name(*at): at for at in (existing_head(model, head) for head in heads)}
    hooks = {layer: f"blocks.{layer}.attn.hook_z" for layer, _ in where.values()}
    scales = {layer: POST_NORM_SCALE.format(layer) for layer in hooks if has_post_norm(model)}
    found = activations_at(
        model,
        data,
        role,
        [*hooks.values(), *scales.values()],
        edits=edits,
        memory=memory,
        progress=progress,
    )

    def output(layer: int, index: int) -> Float[Tensor, "batch d_model"]:
        of_head, block = found[hooks[layer]][:, index], model.blocks[layer]
        written = of_head @ block.attn.W_O[index].to(of_head)
        return written * attention_weight(block) / (found[scales[layer]] if scales else 1.0)

    return {head: output(*at) for head, at in where.items()}


def to_float64(values: Tensor) -> Tensor:
    """In float64, on the same device, or on the CPU where that has no float64 (Apple's MPS)."""
    return (values.cpu() if values.device.type == "mps" else values).to(torch.float64)


def require_activations(activations: Any) -> Float[Tensor, "batch d_model"]:
    """Activations as a finite float64 matrix without gradient, on the device they were on.

    Float64 lives on the CPU where the device (Apple's MPS) does not have it.

    Raises:
        ValueError: They are not ``[batch d_model]``, or hold NaN or infinity.
    """
    values = require_matrix(activations)
    # One pass, nothing allocated: a sum is finite only if all its terms are.
    if not math.isfinite(values.sum().item()):
        raise ValueError("The activations hold NaN or infinity.")
    return values


def require_matrix(activations: Any) -> Float[Tensor, "batch d_model"]:
    """As :func:`require_activations`, without looking at the values."""
    values = torch.as_tensor(activations).detach()
    if values.ndim != 2 or not values.numel():
        raise ValueError(
            f"Activations must be [batch, d_model], not of shape {tuple(values.shape)}; take them "
            "at one role and one point."
        )
    if values.is_complex():
        raise ValueError("Activations are real numbers, and these are complex.")
    return to_float64(values)
