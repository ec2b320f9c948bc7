"""The MLP, and the affine map that all layers are made of."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ioi_helpers.forward.decoder import Decoder
from ioi_helpers.forward.norms import normalise

# The MLP's hidden layer is the largest tensor of all. It is made for this many tokens at a time,
# so that it stays in the processor's cache.
MLP_TOKENS = 512


def affine(
    bias: Float[Tensor, " out"] | None,
    x: Float[Tensor, "token in"],
    weight: Float[Tensor, "in out"],
) -> Float[Tensor, "token out"]:
    """x W + b, in the precision of x: float32 where the weights are of half precision.

    Activations are float32 at least, as sums of many terms in 16 bits would lose what a patch
    changes.
    """
    weight = weight.to(x.dtype)
    return x @ weight if bias is None else torch.addmm(bias.to(x.dtype), x, weight)


def mlp(
    gpt: Decoder, layer: int, x: Float[Tensor, "token d_model"]
) -> Float[Tensor, "token d_model"]:
    """The MLP's output, to be added to the stream: act(N(x) W_in + b_in) W_out + b_out.

    A gated one multiplies: act(N(x) W_gate + b_gate) * (N(x) W_in + b_in) in the bracket's place.

    Args:
        x: The stream that it reads (`Decoder.mlp_reads`).
    """
    block = gpt.blocks[layer]
    W_in, W_out = block.W_in.to(x.dtype), block.W_out.to(x.dtype)
    W_gate = None if block.W_gate is None else block.W_gate.to(x.dtype)
    out = []
    for part in x.split(MLP_TOKENS):
        normed = normalise(block.ln2, part)
        hidden = affine(block.b_in, normed, W_in)
        if W_gate is None:
            hidden = gpt.activation(hidden)
        else:
            hidden = gpt.activation(affine(block.b_gate, normed, W_gate)) * hidden
        out.append(affine(block.b_out, hidden, W_out))
    added = torch.cat(out)
    return added if block.ln2_post is None else normalise(block.ln2_post, added)
