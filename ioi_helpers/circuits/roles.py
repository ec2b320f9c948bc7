"""A circuit run at its roles' tokens only: the same numbers as the whole run, several times sooner.

Where no head is kept, a token's stream is the same whatever the circuit is: its embedding, what
stands in for its heads, and MLPs. So the run with nothing kept is made once; of each circuit only
the tokens at which it has members are computed, which read all others' keys and values from there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ioi_helpers import forward
from ioi_helpers.graph import Node


@dataclass(frozen=True)
class Outside:
    """The run with nothing kept, over all prompts.

    Attributes:
        k, v: What its tokens offer to others, ``[layer batch pos head d_head]``.
        final: The final stream at END, ``[batch d_model]``.
    """

    k: Float[Tensor, "layer batch pos head d_head"]
    v: Float[Tensor, "layer batch pos head d_head"]
    final: Float[Tensor, "batch d_model"]

    def rows(self, rows: Int[Tensor, " rows"]) -> Outside:
        """That of some of the prompts."""
        return Outside(self.k[:, rows], self.v[:, rows], self.final[rows])


@torch.no_grad()
def final_stream(
    gpt: forward.GPT2,
    tokens: Int[Tensor, "batch pos"],
    at: dict[str, Int[Tensor, " batch"]],
    nodes: Iterable[Node],
    outside: Outside,
    z_outside: Float[Tensor, "layer batch pos head d_head"],
) -> Float[Tensor, "batch d_model"]:
    """The final stream at END with only these heads kept.

    Args:
        gpt: The weights.
        tokens: The prompts, right-padded.
        at: Where each role stands; no two at the same token.
        nodes: Heads at roles.
        outside: The run with nothing kept.
        z_outside: What stands in for each head.
    """
    kept = torch.zeros(gpt.n_layers, len(at), gpt.n_heads, dtype=torch.bool, device=gpt.device)
    number = {role: i for i, role in enumerate(at)}
    for node in nodes:
        assert node.role is not None and node.head is not None
        kept[node.layer, number[node.role], node.head] = True
    used = [i for i in range(len(at)) if kept[:, i].any()]
    if not used:
        return outside.final
    kept = kept[:, used]
    pos = torch.stack(list(at.values()), dim=1)[:, used]
    rows = torch.arange(len(tokens), device=tokens.device)[:, None]
    out_of_sight = torch.arange(tokens.shape[1], device=tokens.device) > pos[..., None]
    x = gpt.W_E[tokens[rows, pos]].to(gpt.dtype) + gpt.W_pos[pos]
    x = x.to(outside.final.dtype)
    for layer in range(gpt.n_layers):
        block = gpt.blocks[layer]
        z = z_outside[layer, rows, pos].to(x)
        heads = kept[layer].any(dim=0).nonzero()[:, 0]
        if len(heads):
            normed = forward.layer_norm(block.ln1, x.flatten(0, 1))

            def read(
                bias: Tensor, weight: Tensor, normed: Tensor = normed, heads: Tensor = heads
            ) -> Float[Tensor, "batch role head d_head"]:
                columns = weight.unflatten(1, (gpt.n_heads, -1))[:, heads].flatten(1)
                own = bias.unflatten(0, (gpt.n_heads, -1))[heads].flatten()
                found = forward.affine(own, normed, columns)
                return found.unflatten(0, pos.shape).unflatten(-1, (len(heads), -1))

            k, v = outside.k[layer][:, :, heads], outside.v[layer][:, :, heads]
            k[rows, pos] = read(block.b_K, block.W_K)
            v[rows, pos] = read(block.b_V, block.W_V)
            scores = torch.einsum("brhd,bjhd->brhj", read(block.b_Q, block.W_Q), k)
            scores.masked_fill_(out_of_sight[:, :, None], -torch.inf)
            pattern = (scores * block.score_scale).softmax(dim=-1)
            own = torch.einsum("brhj,bjhd->brhd", pattern, v)
            z[:, :, heads] = torch.where(kept[layer][:, heads, None], own, z[:, :, heads])
        x = x + forward.affine(block.b_O, z.flatten(0, 1).flatten(1), block.W_O).view_as(x)
        x = x + forward.mlp(gpt, layer, x.flatten(0, 1)).view_as(x)
    end = number["END"]
    return x[:, used.index(end)] if end in used else outside.final
