"""Positions: learned ones are added to the embedding, rotary ones turn queries and keys."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ioi_helpers.forward.decoder import Decoder, Rotary
from ioi_helpers.forward.spans import Spans


def embed(
    gpt: Decoder, tokens: Int[Tensor, "batch pos"], spans: Spans
) -> Float[Tensor, "token d_model"]:
    """The residual stream that enters block 0, at the positions of ``spans``."""
    return embed_at(gpt, tokens[spans.at], spans.pos)


def embed_at(
    gpt: Decoder, tokens: Int[Tensor, "*any"], pos: Int[Tensor, "*any"]
) -> Float[Tensor, "*any d_model"]:
    """The residual stream that enters block 0, of tokens at positions."""
    x = embed_tokens(gpt, tokens)
    return x if gpt.W_pos is None else x + gpt.W_pos[pos]


def embed_tokens(gpt: Decoder, tokens: Int[Tensor, "*any"]) -> Float[Tensor, "*any d_model"]:
    """The part of it that the token alone decides."""
    x = gpt.W_E[tokens].to(gpt.dtype)
    return x if gpt.embed_scale == 1 else x * gpt.embed_scale


def turned(
    rotary: Rotary | None, x: Float[Tensor, "*any head d_head"], pos: Int[Tensor, "*any"]
) -> Float[Tensor, "*any head d_head"]:
    """Queries or keys with each pair of entries turned by its angle times the position.

    Entry i of the first half of those that are turned forms a pair with entry i of the second (Su
    et al. 2021, in GPT-NeoX's layout). The product of a query and a key then depends on how far
    apart they are, and on nothing else of their positions.
    """
    if rotary is None:
        return x
    n_pairs = len(rotary.frequencies)
    n_positions = int(pos.max()) + 1 if pos.numel() else 0
    every = torch.arange(n_positions, device=x.device, dtype=torch.float32)
    angles = every[:, None] * rotary.frequencies.to(x.device).float()
    cos, sin = (
        (part * rotary.scaling).to(x.dtype)[pos][..., None, :]
        for part in (angles.cos(), angles.sin())
    )
    first, second, rest = x.split([n_pairs, n_pairs, x.shape[-1] - 2 * n_pairs], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
