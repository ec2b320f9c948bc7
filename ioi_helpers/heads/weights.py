"""What heads do according to their weights alone: what they copy, and what they read from others.

A head is two matrices (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits").
Its *OV circuit* ``W_V W_O`` says what it writes when it looks at something; its *QK circuit*
``W_Q W_K'`` says what it looks at. A later head's circuits may read what an earlier one writes;
a composition score says by how much.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.models import refuse_too_long

if TYPE_CHECKING:
    from ioi_helpers.dataset import IOIDataset


@torch.no_grad()
def copying_scores(
    model: TransformerBridge,
    data: IOIDataset,
    *,
    negative: bool = False,
    top: int = 5,
    roles: Sequence[str] = ("IO", "S1", "S2"),
    batch_size: int = 128,
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
        model: A GPT-2-style model.
        data: Prompts whose names are copied; they may differ in length.
        negative: Turn the sign of what heads write.
        top: How far in front the name must be.
        roles: Where the names are read.
        batch_size: Prompts, and names, run at once.

    Returns:
        ``[layer head]``, the share of names, from 0 to 1.

    Raises:
        ValueError: An unknown role or none, ``top`` outside the vocabulary, ``batch_size`` below 1,
            or the model is in training mode.
    """
    if isinstance(roles, str) or not roles:
        raise ValueError(f'roles must list one or more roles, such as ("IO", "S1"), not {roles!r}.')
    if not 1 <= top < model.cfg.d_vocab:
        raise ValueError(f"top must be from 1 to {model.cfg.d_vocab - 1}, not {top}.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
    if model.training:
        raise ValueError("The model is in training mode, where dropout is random; call eval().")
    refuse_too_long(model, data.tokens)
    states, names = _named_states(model, data, roles, batch_size)
    return _copied(model, states, names, top, (-1.0,) if negative else (1.0,), batch_size)[0]


def _copied(
    model: TransformerBridge,
    states: Float[Tensor, "name d_model"],
    names: Int[Tensor, " name"],
    top: int,
    signs: Sequence[float],
    batch_size: int,
) -> Float[Tensor, "sign layer head"]:
    """Share of names among the first ``top`` tokens, heads' output taken with each of the signs."""
    n_heads = model.cfg.n_heads
    hits = torch.zeros(len(signs), model.cfg.n_layers, n_heads, device=states.device)
    starts = range(0, len(states), batch_size)
    with tqdm(total=len(starts) * len(model.blocks), desc="heads", leave=False, delay=5) as bar:
        for start in starts:
            state, name = states[start : start + batch_size], names[start : start + batch_size]
            own_of = name.repeat(n_heads)[:, None]
            for layer, block in enumerate(model.blocks):
                attn = block.attn
                read = block.ln1(state[None])[0]
                value = torch.einsum("nm,hme->hne", read, attn.W_V) + attn.b_V[:, None]
                written = torch.einsum("hne,hem->hnm", value, attn.W_O).flatten(0, 1)
                for i, logits in enumerate(_logits_with_signs(model, written, signs)):
                    ahead = (logits > logits.gather(1, own_of)).sum(dim=-1)
                    hits[i, layer] += (ahead < top).unflatten(0, (n_heads, -1)).sum(dim=-1)
                bar.update(1)
    return hits / len(states)


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
    model: TransformerBridge, data: IOIDataset, top: int = 5, batch_size: int = 128
) -> Float[Tensor, "sign layer head"]:
    """:func:`copying_scores`, and those with ``negative=True``, at little more cost than one."""
    states, names = _named_states(model, data, ("IO", "S1", "S2"), batch_size)
    return _copied(model, states, names, top, (1.0, -1.0), batch_size)


def _named_states(
    model: TransformerBridge, data: IOIDataset, roles: Sequence[str], batch_size: int
) -> tuple[Float[Tensor, "name d_model"], Int[Tensor, " name"]]:
    """The residual stream after block 0 at these roles of all prompts, and the tokens there."""
    hook = "blocks.1.hook_resid_pre" if model.cfg.n_layers > 1 else "blocks.0.hook_resid_post"
    states, names = [], []
    for start in range(0, len(data), batch_size):
        part = data[start : start + batch_size]
        tokens = part.tokens.to(model.cfg.device)
        _, cache = model.run_with_cache(
            tokens, names_filter=lambda name: name == hook, logits_to_keep=1
        )
        states += [part.gather(cache[hook], role) for role in roles]
        names += [part.gather(tokens, role) for role in roles]
    return torch.cat(states), torch.cat(names)


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
    not that it does.

    Returns:
        From 0 to 1; 0 where the reader is not in a later layer than the writer.

    Raises:
        ValueError: ``mode`` is none of the three.
    """
    if mode not in ("Q", "K", "V"):
        raise ValueError(f"mode must be 'Q', 'K' or 'V', not {mode!r}.")
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    # Norms do not change when the outer factor of a circuit is replaced by its small triangular
    # one: |W_V W_O M| = |R W_O M| with W_V = Q R.
    writers = _triangular(model.W_V) @ model.W_O  # [layer head d_head d_model]
    into, out_of = {
        "Q": (model.W_Q, model.W_K),
        "K": (model.W_K, model.W_Q),
        "V": (model.W_V, model.W_O.mT),
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
    return torch.linalg.qr(weights.float(), mode="r").R


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

    Each head's QK circuit is applied to the position embeddings ``W_pos`` alone, added to the mean
    token embedding, with LayerNorm as in a run::

        seen = model.blocks[layer].ln1((model.W_pos[:50] + model.W_E.mean(dim=0))[None])[0]
        queries = seen @ attn.W_Q[head] + attn.b_Q[head]
        keys = seen @ attn.W_K[head] + attn.b_K[head]
        scores = queries @ keys.T / model.cfg.d_head**0.5    # then mask what is ahead, and softmax

    In block 0 what is left out is the token itself; in later blocks also all that was written
    before. A head that looks one token back here, as ``patterns.diagonal(-1, ...)`` says, needs
    nothing but its weights and the position embeddings to be a previous-token head.

    Args:
        model: A GPT-2-style model (with learned absolute positions).
        n_positions: How many positions, from the first one on.

    Returns:
        Attention: each row adds up to 1, and nothing looks ahead.

    Raises:
        ValueError: ``n_positions`` is below 2 or above the context, or the model has no ``W_pos``.
    """
    if not 2 <= n_positions <= model.cfg.n_ctx:
        raise ValueError(
            f"n_positions must be from 2 to the context of {model.cfg.n_ctx}, not {n_positions}."
        )
    if model.cfg.positional_embedding_type != "standard":
        raise ValueError(
            "The model has no learned position embeddings (W_pos); this needs a GPT-2-style model."
        )
    stream = model.W_pos[:n_positions] + model.W_E.mean(dim=0)
    ahead = torch.ones(n_positions, n_positions, dtype=torch.bool, device=stream.device).triu(1)
    found = []
    for block in model.blocks:
        attn = block.attn
        seen = block.ln1(stream[None])[0]
        queries = torch.einsum("pm,hme->hpe", seen, attn.W_Q) + attn.b_Q[:, None]
        keys = torch.einsum("pm,hme->hpe", seen, attn.W_K) + attn.b_K[:, None]
        scores = queries @ keys.mT / model.cfg.d_head**0.5
        found.append(scores.masked_fill(ahead, -torch.inf).softmax(dim=-1))
    return torch.stack(found)
