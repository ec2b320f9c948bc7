"""What heads do according to their weights alone: what they copy, and what they read from others.

A head is two matrices (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits").
Its *OV circuit* ``W_V W_O`` says what it writes when it looks at something; its *QK circuit*
``W_Q W_K'`` says what it looks at. A later head's circuits may read what an earlier one writes;
a composition score says by how much.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.dataset.two_answers import gather_at_role
from ioi_helpers.heads.repeats import random_tokens
from ioi_helpers.runs import (
    DEFAULT_MEMORY,
    activations_at,
    progress_bar,
    prompts_at_once,
    require_data,
    require_model,
    widened,
)


@torch.no_grad()
def copying_scores(
    model: TransformerBridge,
    data: TwoAnswerData,
    *,
    negative: bool = False,
    top: int = 5,
    roles: Sequence[str] = ("IO", "S1", "S2"),
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> Float[Tensor, "layer head"]:
    """How often a head's OV circuit brings the name that it reads among the first answers.

    The state of a name after the first block stands for the name (in GPT-2 the first MLP finishes
    the embedding). Suppose that a head attends to it fully and that nothing else is written: is the
    name among the ``top`` tokens of the logits? For one name at position ``at`` of one prompt, in
    plain TransformerLens (folded weights)::

        _, cache = model.run_with_cache(tokens)
        attn = model.blocks[layer].attn
        name = model.blocks[layer].ln1(cache["resid_post", 0][:, at])
        written = (name @ attn.W_V[head] + attn.b_V[head]) @ attn.W_O[head]
        model.unembed(model.ln_final(written[:, None]))[0, 0].topk(5)

    With ``negative`` the head's output is taken with the opposite sign: a negative name mover
    scores high then, because it lowers the very name that it reads.

    Source: Wang et al. 2022, section 3.1, with BOS or without as ``data`` has it. GPT-2 small's
    name movers score above 0.95 each and heads on average below 0.2; its negative name movers 0.98
    with the opposite sign.

    Args:
        model: Any decoder. (Where a layer's output is normalised before it is added to the stream,
            as in Gemma 2, so is what the head alone writes.)
        data: Prompts whose names are copied; they may differ in length.
        negative: Turn the sign of what heads write.
        top: How far in front the name must be.
        roles: Where the names are read.
        memory, progress: As for :func:`~ioi_helpers.runs.run_in_batches`.

    Returns:
        ``[layer head]``, the share of names, from 0 to 1.

    Raises:
        ValueError: An unknown role or none, ``top`` outside the vocabulary, or as
            :func:`~ioi_helpers.runs.activations_at`.
    """
    if isinstance(roles, str) or not roles:
        raise ValueError(f'roles must list one or more roles, such as ("IO", "S1"), not {roles!r}.')
    if not 1 <= top < model.cfg.d_vocab:
        raise ValueError(f"top must be from 1 to {model.cfg.d_vocab - 1}, not {top}.")
    signs = (-1.0,) if negative else (1.0,)
    return _copied(model, data, roles, top, signs, memory, progress)[0]


def _copied(
    model: TransformerBridge,
    data: TwoAnswerData,
    roles: Sequence[str],
    top: int,
    signs: Sequence[float],
    memory: int,
    progress: bool,
) -> Float[Tensor, "sign layer head"]:
    """Share of names among the first ``top`` tokens, heads' output taken with each of the signs."""
    require_data(model, data)
    # The stream after block 0.
    hook = "blocks.1.hook_resid_pre" if model.cfg.n_layers > 1 else "blocks.0.hook_resid_post"
    found = [
        activations_at(model, data, role, hook, memory=memory, progress=progress) for role in roles
    ]
    states = torch.cat(found).to(model.W_U.dtype)
    names = torch.cat([gather_at_role(data, data.tokens, role) for role in roles]).to(states.device)
    n_heads = model.cfg.n_heads
    hits = torch.zeros(len(signs), model.cfg.n_layers, n_heads, device=states.device)
    at_once = prompts_at_once(model, 1, memory, logits=2 * n_heads)
    starts = range(0, len(states), at_once)
    total = len(starts) * len(model.blocks)
    with progress_bar("heads", show=progress, total=total) as bar:
        for start in starts:
            state, name = states[start : start + at_once], names[start : start + at_once]
            own_of = name.repeat(n_heads)[:, None]
            for layer, block in enumerate(model.blocks):
                attn = block.attn
                read = block.ln1(state[None])[0]
                value = torch.einsum("nm,hme->hne", read, _each_head(attn.W_V, n_heads))
                if attn.b_V is not None:
                    value = value + _each_head(attn.b_V, n_heads)[:, None]
                written = torch.einsum("hne,hem->hnm", value, attn.W_O).flatten(0, 1)
                if hasattr(block, "ln1_post"):
                    written = block.ln1_post(written[None])[0]
                for i, logits in enumerate(_logits_with_signs(model, written, signs)):
                    ahead = (logits > logits.gather(1, own_of)).sum(dim=-1)
                    hits[i, layer] += (ahead < top).unflatten(0, (n_heads, -1)).sum(dim=-1)
                bar.update(1)
    return hits / len(states)


def _each_head(weights: Float[Tensor, "kv_head *rest"], n_heads: int) -> Tensor:
    """One entry a head, also where groups of heads share keys and values."""
    return weights.repeat_interleave(n_heads // len(weights), dim=0)


def _logits_with_signs(
    model: TransformerBridge, written: Float[Tensor, "row d_model"], signs: Sequence[float]
) -> Iterator[Float[Tensor, "row vocab"]]:
    odd = bool((model.ln_final(written[None, :1]) == -model.ln_final(-written[None, :1])).all())
    logits: Tensor | None = None
    for sign in signs:
        if logits is not None and odd and sign == -1:
            # A folded LayerNorm has no bias, so all but the unembedding's turns its sign.
            yield 2 * model.b_U - logits
        else:
            logits = model.unembed(model.ln_final(sign * written[None]))[0]
            yield logits


@torch.no_grad()
def both_copying_scores(
    model: TransformerBridge,
    data: TwoAnswerData,
    top: int = 5,
    *,
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> Float[Tensor, "sign layer head"]:
    """:func:`copying_scores`, and those with ``negative=True``, at little more cost than one.

    Args: as for :func:`copying_scores`.

    Returns:
        ``[2 layer head]``: with the output as it is, and with the opposite sign.
    """
    return _copied(model, data, ("IO", "S1", "S2"), top, (1.0, -1.0), memory, progress)


@torch.no_grad()
def composition_scores(
    model: TransformerBridge, mode: Literal["Q", "K", "V"] | str
) -> Float[Tensor, "writer_layer writer_head reader_layer reader_head"]:
    """How much of what a later head reads can be what an earlier head writes, by the weights.

    The Frobenius norm of the two circuits' product over the product of their norms (Elhage et al.
    2021), for folded weights: ``"Q"`` for the reader's queries, ``"K"`` for its keys, ``"V"`` for
    its values. The same as TransformerLens' ``model.all_composition_scores(mode).scores``, which
    needs gigabytes at GPT-2 small's size; here the small factors are multiplied a layer at a time.

    Circuits that are turned against each other at random score about :func:`composition_chance`,
    so only what is clearly above says anything; and a score says that a head *can* read another,
    not that it does. Position embeddings that act inside attention (rotary, ALiBi) are left out.
    Heads that share keys and values have those of their group.

    Returns:
        From 0 to 1; 0 where the reader is not in a later layer than the writer.

    Raises:
        ValueError: ``mode`` is none of the three.
    """
    if mode not in ("Q", "K", "V"):
        raise ValueError(f"mode must be 'Q', 'K' or 'V', not {mode!r}.")
    n_layers, n_heads, blocks = model.cfg.n_layers, model.cfg.n_heads, model.blocks
    W_Q, W_K, W_V, W_O = (
        torch.stack([_each_head(widened(getattr(block.attn, name)), n_heads) for block in blocks])
        for name in ("W_Q", "W_K", "W_V", "W_O")
    )
    # Norms do not change when the outer factor of a circuit is replaced by its small triangular
    # one: |W_V W_O M| = |R W_O M| with W_V = Q R.
    writers = _triangular(W_V) @ W_O  # [layer head d_head d_model]
    into, out_of = {
        "Q": (W_Q, W_K),
        "K": (W_K, W_Q),
        "V": (W_V, W_O.mT),
    }[mode]
    readers = into @ _triangular(out_of).mT  # [layer head d_model d_head]
    sizes = [each.flatten(-2).norm(dim=-1) for each in (writers, readers)]
    scores = writers.new_zeros(n_layers, n_heads, n_layers, n_heads)
    for layer in range(n_layers - 1):
        later = readers[layer + 1 :].flatten(0, 1).transpose(0, 1).flatten(1)
        product = writers[layer].flatten(0, 1) @ later  # [head d_head, layer head d_head]
        blocks = product.unflatten(1, (n_layers - layer - 1, n_heads, -1)).unflatten(
            0, (n_heads, -1)
        )
        scores[layer, :, layer + 1 :] = blocks.square().sum(dim=(1, 4)).sqrt()
    norms = sizes[0][..., None, None] * sizes[1]
    return torch.where(norms > 0, scores / norms, torch.zeros_like(scores))


def _triangular(weights: Float[Tensor, "layer head rows d_head"]) -> Tensor:
    """A small square factor with the same products: ``R`` of ``weights = Q R``."""
    return torch.linalg.qr(weights, mode="r").R


def composition_chance(model: TransformerBridge) -> float:
    """The composition score of circuits that have nothing to do with each other: 1 / sqrt(d_model).

    For matrices turned at random against each other this is the root of the mean square, whatever
    their ranks. The baseline of Elhage et al. 2021, who estimate it by drawing matrices.
    """
    return float(model.cfg.d_model) ** -0.5


@torch.no_grad()
def positional_patterns(
    model: TransformerBridge, n_positions: int = 50
) -> Float[Tensor, "layer head query key"]:
    """Where heads would look if they saw nothing but positions.

    Every block reads the position embeddings ``W_pos`` alone, added to the mean token embedding,
    and attends to them in the model's own way (its LayerNorm, its scaling of scores, its window)::

        seen = (model.W_pos[:50] + model.W_E.mean(dim=0))[None]
        hooks = [(f"blocks.{i}.hook_resid_pre", lambda x, hook: seen) for i in range(n_layers)]
        with model.hooks(fwd_hooks=hooks):
            _, cache = model.run_with_cache(any_50_tokens[None])
        cache["pattern", layer][0, head]

    In block 0 what is left out is the token itself; in later blocks also all that was written
    before. A head that looks one token back here, as ``patterns.diagonal(-1, ...)`` says, needs
    nothing but its weights and the position embeddings to be a previous-token head.

    Args:
        model: A model with learned absolute positions, such as GPT-2.
        n_positions: How many positions, from the first one on.

    Returns:
        Attention: each row adds up to 1, and nothing looks ahead.

    Raises:
        ValueError: ``n_positions`` is below 2 or above the context, the model has no ``W_pos``, or
            it is in training mode.
    """
    require_model(model)
    if not 2 <= n_positions <= model.cfg.n_ctx:
        raise ValueError(
            f"n_positions must be from 2 to the context of {model.cfg.n_ctx}, not {n_positions}."
        )
    if model.cfg.positional_embedding_type != "standard":
        raise ValueError(
            "The model has no learned position embeddings (W_pos); use a model that has, such as "
            "GPT-2."
        )
    stream = (model.W_pos[:n_positions] + model.W_E.mean(dim=0))[None]
    return _patterns(model, stream)[:, 0]


def _patterns(
    model: TransformerBridge, stream: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "layer batch head query key"]:
    """The attention of every block when this is what it reads."""
    found: dict[int, Tensor] = {}

    def put(layer: int) -> Any:
        def hook_fn(x: Tensor, hook: Any) -> Tensor:
            return stream.to(x)

        return f"blocks.{layer}.hook_resid_pre", hook_fn

    def read(layer: int) -> Any:
        def hook_fn(pattern: Tensor, hook: Any) -> None:
            found[layer] = widened(pattern).to(stream.device)

        return f"blocks.{layer}.attn.hook_pattern", hook_fn

    layers = range(model.cfg.n_layers)
    # Which tokens does not matter: what is embedded is replaced before anything reads it.
    tokens = random_tokens(model, seeds=(0,), length=max(stream.shape[1], 3))[:, : stream.shape[1]]
    model.run_with_hooks(
        tokens.expand(len(stream), -1),
        fwd_hooks=[make(layer) for layer in layers for make in (put, read)],
        return_type=None,
        logits_to_keep=1,
    )
    return torch.stack([found[layer] for layer in layers])


@torch.no_grad()
def score_scales(model: TransformerBridge) -> Float[Tensor, " layer"]:
    """What each layer multiplies the products of queries and keys by before the softmax.

    1 / sqrt(d_head) in GPT-2. Stanford's replications divide by the layer's number (from 1) as
    well, and GPT-Neo multiplies by nothing; TransformerLens' ``cfg`` says neither. So the number is
    measured: where attention is the softmax of scaled products, a row's log-attentions differ by
    the scaled differences of its products ::

        pattern = cache["pattern", layer][0, head, query]
        products = cache["k", layer][0, :, head] @ cache["q", layer][0, query, head]
        (pattern[1] / pattern[0]).log() / (products[1] - products[0])

    Raises:
        ValueError: Attention is not the softmax of scaled products: positions act inside it
            (rotary, ALiBi), scores are capped, or heads share keys.
    """
    require_model(model)
    layers = range(model.cfg.n_layers)
    names = [f"blocks.{i}.attn.hook_{part}" for i in layers for part in ("q", "k", "pattern")]
    tokens = random_tokens(model, seeds=range(4), length=min(16, model.cfg.n_ctx))
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name in names)
    found = []
    for layer in layers:
        q, k, pattern = (
            cache[f"blocks.{layer}.attn.hook_{part}"].double() for part in ("q", "k", "pattern")
        )
        if q.shape != k.shape:
            raise ValueError("Heads of this model share keys; ask its attention patterns instead.")
        products = torch.einsum("bqhe,bkhe->bhqk", q, k)
        seen = pattern > 1e-3  # what is smaller has lost digits
        weights = seen.double() / seen.sum(dim=-1, keepdim=True)
        logs = pattern.clamp(min=1e-30).log()
        x, y = (part - (part * weights).sum(dim=-1, keepdim=True) for part in (products, logs))
        x, y = x[seen], y[seen]
        scale = (x @ y) / (x @ x)
        precision = 1e-3 if model.W_E.dtype in (torch.float32, torch.float64) else 0.1
        if not (y - scale * x).norm() <= precision * y.norm():
            raise ValueError(
                f"Attention in layer {layer} is not the softmax of scaled products of queries and "
                "keys, so there is no one number; ask its patterns instead."
            )
        found.append(scale)
    return torch.stack(found).to(model.W_E)
