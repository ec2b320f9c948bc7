"""A whole run, or what of it can differ from another."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ioi_helpers.forward.attention import attention
from ioi_helpers.forward.decoder import Decoder
from ioi_helpers.forward.mlp import mlp
from ioi_helpers.forward.positions import embed
from ioi_helpers.forward.spans import BASE_SITES, BLOCK_SITES, Editor, Run, Spans


@torch.no_grad()
def run(
    gpt: Decoder,
    tokens: Int[Tensor, "batch pos"],
    last: Int[Tensor, " batch"],
    keep: Iterable[str] = BASE_SITES,
    *,
    base: Run | None = None,
    first: Int[Tensor, " batch"] | None = None,
    shift: Float[Tensor, "batch pos d_model"] | None = None,
    edit: Editor | None = None,
    blocks: int | None = None,
) -> Run:
    """Run the model and keep activations.

    Args:
        tokens: Prompts, right-padded.
        last: The last position of each prompt.
        keep: Which of :data:`SITES` to keep.
        base: A run over prompts that are the same before ``first``. It must have kept the sites
            that are kept here, and ``k`` and ``v``.
        first: The first position at which each prompt differs from that of ``base``; only from
            there on anything is computed. A prompt that does not differ has ``last`` or more.
        shift: Added to the embeddings.
        edit: Replaces values on their way, see :data:`Editor`. Edited values are what is kept.
        blocks: Run the first so many blocks only; the final stream is then the one behind them.
    """
    keep = tuple(dict.fromkeys(keep))
    prompts = torch.arange(len(tokens), device=tokens.device)
    start = torch.zeros_like(last) if first is None else torch.minimum(first, last)
    spans = Spans(prompts, start, last)
    kept: dict[str, list[Tensor]] = {site: [] for site in keep}

    def store(site: str, layer: int, value: Tensor) -> None:
        if site in kept:
            if base is None:
                full = value.new_zeros(*tokens.shape, *value.shape[1:])
            else:
                full = base[site][layer].clone()
            full[spans.at] = value
            kept[site].append(full)

    x = embed(gpt, tokens, spans)
    if shift is not None:
        x = x + shift[spans.at]
    n_blocks = gpt.n_layers if blocks is None else blocks
    for layer in range(n_blocks):
        if edit is not None:
            x = edit("resid_pre", layer, x, spans)
        store("resid_pre", layer, x)
        computed = attention(gpt, layer, x, spans, base, edit=edit)
        for site in BLOCK_SITES:
            store(site, layer, computed[site])
        mlp_out = mlp(gpt, layer, computed[gpt.mlp_reads])
        if edit is not None:
            mlp_out = edit("mlp_out", layer, mlp_out, spans)
        store("mlp_out", layer, mlp_out)
        x = computed["resid_mid"] + mlp_out
    store("resid_pre", n_blocks, x)
    return Run(last=last, kept=kept, final=x[spans.ends])
