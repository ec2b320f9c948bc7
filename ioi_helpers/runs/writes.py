"""What stands between what a layer computes and what it adds to the residual stream."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.runs.reading import widened

POST_NORM_SCALE = "blocks.{}.ln1_post.hook_scale"
"""By what a norm behind attention divides, in the run at hand."""


def has_post_norm(model: TransformerBridge) -> bool:
    """Whether what heads compute is normalised together before it is added, as in Gemma 2."""
    return hasattr(model.blocks[0], "ln1_post")


def residual_scale(block: Any) -> float:
    """By what a block multiplies what its attention and its MLP compute, before it adds them.

    1 but in Granite. The hooks ``hook_attn_out`` and ``hook_mlp_out`` have it in them.
    """
    return float(getattr(block, "residual_contribution_scale", 1.0))


def attention_weight(block: Any) -> Float[Tensor, " d_model"] | float:
    """What a block multiplies ``z @ W_O`` by, before it adds it: 1, or :func:`residual_scale`, or
    the weight of the norm behind attention, which also divides (:data:`POST_NORM_SCALE`)."""
    norm = getattr(block, "ln1_post", None)
    if norm is None:
        return residual_scale(block)
    return widened(norm.weight) + (1.0 if norm.uses_weight_offset else 0.0)
