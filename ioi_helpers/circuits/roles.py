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
        k, v: What its tokens offer to others, ``[layer batch pos kv_head d_head]``.
        final: The final stream at END, ``[batch d_model]``.
    """

    k: Float[Tensor, "layer batch pos kv_head d_head"]
    v: Float[Tensor, "layer batch pos kv_head d_head"]
    final: Float[Tensor, "batch d_model"]

    def rows(self, rows: Int[Tensor, " rows"]) -> Outside:
        """That of some of the prompts."""
        return Outside(self.k[:, rows], self.v[:, rows], self.final[rows])


@torch.no_grad()
def final_stream(
    gpt: forward.Decoder,
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
    every = torch.arange(tokens.shape[1], device=tokens.device)
    x = forward.embed_at(gpt, tokens[rows, pos], pos).to(outside.final.dtype)
    for layer in range(gpt.n_layers):
        block = gpt.blocks[layer]
        z = z_outside[layer, rows, pos].to(x)
        heads = kept[layer].any(dim=0).nonzero()[:, 0].tolist()
        if heads:
            shared = gpt.kv_heads(heads)
            normed = forward.normalise(block.ln1, x.flatten(0, 1))
            q, own_k, own_v = (
                forward.project(gpt, layer, normed, name, some).unflatten(0, pos.shape)
                for name, some in (("q", heads), ("k", shared), ("v", shared))
            )
            k, v = outside.k[layer][:, :, shared], outside.v[layer][:, :, shared]
            k[rows, pos], v[rows, pos] = own_k, own_v
            q = forward.at_positions(gpt, layer, q, pos, "q")
            k = forward.at_positions(gpt, layer, k, every, "k")
            hidden = forward.out_of_sight(block, pos[..., None] - every)
            pattern = forward.scores(block, forward.products(q, k), hidden).softmax(dim=-1)
            own = forward.mixed(pattern, v)
            z[:, :, heads] = torch.where(kept[layer][:, heads, None], own, z[:, :, heads])
        middle = x + forward.write(gpt, layer, z.flatten(0, 1)).view_as(x)
        stream = x if gpt.parallel else middle
        x = middle + forward.mlp(gpt, layer, stream.flatten(0, 1)).view_as(x)
    end = number["END"]
    return x[:, used.index(end)] if end in used else outside.final
