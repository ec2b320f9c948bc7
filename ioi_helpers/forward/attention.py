"""Attention: where each token looks, and what it takes from there."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ioi_helpers.forward.decoder import Block, Decoder
from ioi_helpers.forward.mlp import affine
from ioi_helpers.forward.norms import normalise
from ioi_helpers.forward.positions import turned
from ioi_helpers.forward.spans import Editor, Run, Spans


def read(
    gpt: Decoder,
    layer: int,
    x: Float[Tensor, "token d_model"],
    name: Literal["q", "k", "v"] | str,
    heads: list[int] | None = None,
) -> Float[Tensor, "token head d_head"]:
    """What heads read of a stream: q = N(x) W_Q + b_Q, and k and v likewise.

    Args:
        heads: Some of the heads; None is all. For k and v they are the groups that share one.
    """
    return project(gpt, layer, normalise(gpt.blocks[layer].ln1, x), name, heads)


def project(
    gpt: Decoder,
    layer: int,
    normed: Float[Tensor, "token d_model"],
    name: Literal["q", "k", "v"] | str,
    heads: list[int] | None = None,
) -> Float[Tensor, "token head d_head"]:
    """The same of a stream that is normalised already."""
    weight, bias = weights_of(gpt.blocks[layer], name)
    if heads is not None:
        weight = gpt.heads(weight)[:, heads].flatten(1)
        bias = None if bias is None else gpt.heads(bias)[heads].flatten()
    return gpt.heads(affine(bias, normed, weight))


def weights_of(
    block: Block, name: Literal["q", "k", "v"] | str
) -> tuple[Float[Tensor, "d_model head_x_d_head"], Float[Tensor, " head_x_d_head"] | None]:
    """The matrix and the bias of queries, keys or values."""
    return {
        "q": (block.W_Q, block.b_Q),
        "k": (block.W_K, block.b_K),
        "v": (block.W_V, block.b_V),
    }[name]


def attention_pattern(
    gpt: Decoder,
    layer: int,
    q: Float[Tensor, "query head d_head"],
    k: Float[Tensor, "token kv_head d_head"],
    queries: Spans,
    keys: Spans,
    earlier_k: Float[Tensor, "batch pos kv_head d_head"] | None = None,
) -> Float[Tensor, "query head key"]:
    """A = softmax(q k' * scale) for each query, with queries and keys normed and turned before.

    Args:
        q: Queries, at the positions of ``queries``.
        k: Keys, at the positions of ``keys``, whose rows are those of ``queries``.
        earlier_k: Keys of the unedited run, used before the first position of each row. May be
            left out where all rows start at position 0.

    Returns:
        Attention to the earlier positions 0, 1, ... (as many as the latest row start), followed by
        attention to the row's own positions. Zero where a key is out of sight.
    """
    block = gpt.blocks[layer]
    q = at_positions(gpt, layer, q, queries.pos, "q")
    k = at_positions(gpt, layer, k, keys.pos, "k")
    own = queries.flat(products(queries.by_row(q), keys.by_row(k)))
    own_pos = keys.first[queries.row, None] + torch.arange(keys.width, device=q.device)
    own = scores(block, own, out_of_sight(block, queries.pos[:, None] - own_pos))
    if earlier_k is None:
        return own.softmax(dim=-1)
    n_earlier = int(keys.first.max())
    before_pos = torch.arange(n_earlier, device=q.device)
    earlier_k = at_positions(gpt, layer, earlier_k[:, :n_earlier], before_pos, "k")
    by_prompt = queries.by_prompt(q, len(earlier_k))
    before = queries.flat_from_prompts(products(by_prompt, earlier_k))
    hidden = before_pos >= keys.first[queries.row, None]  # from there on keys are the row's own
    if block.window is not None:
        hidden |= out_of_sight(block, queries.pos[:, None] - before_pos)
    before = scores(block, before, hidden)
    return torch.cat([before, own], dim=-1).softmax(dim=-1)


def at_positions(
    gpt: Decoder,
    layer: int,
    x: Float[Tensor, "*any head d_head"],
    pos: Int[Tensor, "*any"],
    name: Literal["q", "k"],
) -> Float[Tensor, "*any head d_head"]:
    """Queries or keys as scores are made of them: normed and turned, where the model does so."""
    block = gpt.blocks[layer]
    norm = block.q_norm if name == "q" else block.k_norm
    return turned(gpt.rotary, x if norm is None else normalise(norm, x), pos)


def products(
    q: Float[Tensor, "row query head d_head"], k: Float[Tensor, "row key kv_head d_head"]
) -> Float[Tensor, "row query head key"]:
    """The product of each query with each key of its row, which several heads may share."""
    if q.shape[2] == k.shape[2]:
        return torch.einsum("rihd,rjhd->rihj", q, k)
    grouped = q.unflatten(2, (k.shape[2], -1))
    return torch.einsum("rihgd,rjhd->rihgj", grouped, k).flatten(2, 3)


def out_of_sight(
    block: Block, back: Int[Tensor, "*any query key"]
) -> Bool[Tensor, "*any query key"]:
    """Which keys a query does not see: those to come, and those behind its window.

    Args:
        back: How far back each key is; negative for one that is still to come.
    """
    hidden = back < 0
    return hidden if block.window is None else hidden | (back >= block.window)


def scores(
    block: Block,
    found: Float[Tensor, "*any query head key"],
    hidden: Bool[Tensor, "*any query key"],
) -> Float[Tensor, "*any query head key"]:
    """Products of queries and keys, scaled, capped, and -inf where a key is out of sight.

    Args:
        found: The products, which are changed in place.
        hidden: Which keys are out of sight.
    """
    found = found.mul_(block.score_scale)
    if block.score_cap is not None:
        found = block.score_cap * (found / block.score_cap).tanh()
    return found.masked_fill_(hidden[..., None, :], -torch.inf)


def attend(
    pattern: Float[Tensor, "query head key"],
    v: Float[Tensor, "token kv_head d_head"],
    queries: Spans,
    keys: Spans,
    earlier_v: Float[Tensor, "batch pos kv_head d_head"] | None = None,
) -> Float[Tensor, "query head d_head"]:
    """z = A v. The arguments are those of `attention_pattern`, with values in the keys' place."""
    own = queries.by_row(pattern[..., pattern.shape[-1] - keys.width :])
    z = queries.flat(mixed(own, keys.by_row(v)))
    if earlier_v is None:
        return z
    n_earlier = pattern.shape[-1] - keys.width
    before = queries.by_prompt(pattern[..., :n_earlier], len(earlier_v))
    return z + queries.flat_from_prompts(mixed(before, earlier_v[:, :n_earlier]))


def mixed(
    pattern: Float[Tensor, "row query head key"], v: Float[Tensor, "row key kv_head d_head"]
) -> Float[Tensor, "row query head d_head"]:
    """Each row's values mixed as attention says."""
    if pattern.shape[2] == v.shape[2]:
        return torch.einsum("rihj,rjhd->rihd", pattern, v)
    grouped = pattern.unflatten(2, (v.shape[2], -1))
    return torch.einsum("rihgj,rjhd->rihgd", grouped, v).flatten(2, 3)


def write(
    gpt: Decoder, layer: int, z: Float[Tensor, "token head d_head"]
) -> Float[Tensor, "token d_model"]:
    """What attention adds to the stream: z W_O + b_O, normed where the model does so."""
    block = gpt.blocks[layer]
    summed = affine(block.b_O, z.flatten(1), block.W_O)
    return summed if block.ln1_post is None else normalise(block.ln1_post, summed)


def change_of_write(
    gpt: Decoder,
    layer: int,
    z: Float[Tensor, "token head d_head"],
    change: Float[Tensor, "token d_model"],
) -> Float[Tensor, "token d_model"]:
    """By how much attention adds another vector to the stream if its heads write something more.

    The same as what the heads write, unless it is normalised before it is added.

    Args:
        z: What all heads have.
        change: What some of them write more, through W_O.
    """
    block = gpt.blocks[layer]
    if block.ln1_post is None:
        return change
    summed = affine(block.b_O, z.flatten(1), block.W_O)
    return normalise(block.ln1_post, summed + change) - normalise(block.ln1_post, summed)


def W_O_by_head(
    gpt: Decoder, layer: int, dtype: torch.dtype
) -> Float[Tensor, "head d_head d_model"]:
    """What each head's z is written through."""
    return gpt.blocks[layer].W_O.to(dtype).unflatten(0, (gpt.n_heads, -1))


def attention(
    gpt: Decoder,
    layer: int,
    x: Float[Tensor, "token d_model"],
    spans: Spans,
    base: Run | None = None,
    *,
    only_ends: bool = False,
    edit: Editor | None = None,
) -> dict[str, Tensor]:
    """The first half of a block, from the residual stream before it to that in its middle.

    Args:
        x: The stream entering the block, at the positions of ``spans``.
        base: The unedited run, whose keys and values stand for the positions before each row's
            first. May be left out where all rows start at position 0.
        only_ends: Compute queries, and what follows from them, at the last position of each row
            only.
        edit: Replaces values on their way, see :data:`Editor`.

    Returns:
        ``q``, ``k``, ``v``, ``z`` [token head d_head], ``attn_out``, ``resid_mid`` and, at the
        positions of these, ``resid_pre`` [token d_model].
    """
    normed = normalise(gpt.blocks[layer].ln1, x)
    queries = spans
    normed_queries = normed
    if only_ends:
        queries, x, normed_queries = spans.only_ends(), x[spans.ends], normed[spans.ends]

    def edited(site: str, value: Tensor, where: Spans) -> Tensor:
        return value if edit is None else edit(site, layer, value, where)

    q = edited("q", project(gpt, layer, normed_queries, "q"), queries)
    k = edited("k", project(gpt, layer, normed, "k"), spans)
    v = edited("v", project(gpt, layer, normed, "v"), spans)
    earlier_k, earlier_v = (None, None) if base is None else (base["k"][layer], base["v"][layer])
    pattern = attention_pattern(gpt, layer, q, k, queries, spans, earlier_k)
    z = edited("z", attend(pattern, v, queries, spans, earlier_v), queries)
    attn_out = edited("attn_out", write(gpt, layer, z), queries)
    x_mid = edited("resid_mid", x + attn_out, queries)
    return {
        "q": q, "k": k, "v": v, "z": z, "attn_out": attn_out, "resid_pre": x, "resid_mid": x_mid,
    }  # fmt: skip
