"""The same sweep by hooks: one run of the whole model a patch, for models of any architecture."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities import get_act_name

from ioi_helpers.edits import attend, pattern_reaches_run, require_reach
from ioi_helpers.patching.pair import Pair
from ioi_helpers.patching.request import STREAM_SITES, Cells
from ioi_helpers.patching.score import Scorer, Values
from ioi_helpers.runs import Hook, in_parts, logits_at_positions, progress_bar, prompts_at_once

# Where a patch of each site must show, in the same block; None: in the logits.
_SHOWS_AT: dict[str, str | None] = {
    "resid_pre": "resid_post",
    "resid_post": None,
    "attn_out": "resid_post",
    "mlp_out": "resid_post",
    "z": "attn_out",
    "q": "z",
    "k": "z",
    "v": "z",
}


@torch.no_grad()
def hooks_sweep(
    model: TransformerBridge,
    cells: Cells,
    pair: Pair,
    scorer: Scorer,
    memory: int,
    progress: bool,
) -> Values:
    """Run every cell's patch on every prompt.

    Raises:
        ValueError: The model lacks the site's hooks, or what they write does not reach the run.
    """
    patch, site = _Patch(model, cells.site), cells.site
    if pair.base_shift is not None or pair.source_shift is not None:
        require_reach(model, "hook_embed", get_act_name("resid_pre", 0))
    n_layers, cfg = model.cfg.n_layers, model.cfg
    width = max(pair.base_tokens.shape[1], pair.source_tokens.shape[1])
    per_position = cfg.n_heads * width if site == "pattern" else cfg.d_model
    kept = 2 * n_layers * width * per_position
    logits = 4 if scorer.needs_all_logits else 1
    at_once = prompts_at_once(model, width, memory, kept=kept, logits=logits)
    if scorer.needs_all_prompts:
        at_once = len(pair)
    parts = list(in_parts(pair.base_last, at_once, progress=False))
    results: list[Values] = []
    with progress_bar(f"patching {site}", show=progress, total=len(parts) * len(cells)) as bar:
        for rows in parts:
            here, score = pair.part(rows), scorer.part(rows).score
            base, source = patch.unpatched(here)
            patched = []
            for hooks in patch.hooks(cells, here):
                with model.hooks(fwd_hooks=[*_shift(here.base_shift), *hooks]):
                    logits_at_end = logits_at_positions(model, here.base_tokens, here.base_last)
                patched.append(score(logits_at_end))
                bar.update(1)
            results.append(Values(torch.stack(patched, dim=1), score(base), score(source)))
    order = torch.cat(parts).argsort()
    joined = [torch.cat(value, dim=-1) for value in zip(*results, strict=True)]
    return Values(*(value.index_select(-1, order.to(value.device)) for value in joined))


def require_site(model: TransformerBridge, site: str, *others: str) -> None:
    """Refuse a site that the model does not have, such as ``resid_mid`` in parallel blocks.

    Args:
        others: Sites without which it cannot be patched.

    Raises:
        ValueError: A hook is missing.
    """
    layers = range(model.cfg.n_layers)
    wanted = [get_act_name(name, layer) for name in (site, *others) for layer in layers]
    missing = [name for name in wanted if name not in model.hook_dict]
    if missing:
        raise ValueError(
            f"This model has no {missing[0]}, so {site} cannot be patched; see model.hook_dict."
        )


class _Patch:
    """Patches of one site in one model: which hooks make them, and with what."""

    def __init__(self, model: TransformerBridge, site: str) -> None:
        self.model, self.site = model, site
        layers = range(model.cfg.n_layers)
        # The middle of the stream cannot be edited at its own hook; the same change can be added to
        # attention's output. A pattern may come too late there, and is then edited through z.
        self.edited = "attn_out" if site == "resid_mid" else site
        require_site(model, site, self.edited)
        self.read = [get_act_name(site, layer) for layer in layers]
        self.too_late: set[int] = set()
        for layer in layers:
            name = partial(get_act_name, layer=layer)
            if site == "resid_mid":
                require_reach(model, name(self.edited), name(site))
            elif site == "pattern":
                require_reach(model, name("v"), name("z"))
                if not pattern_reaches_run(model, layer):
                    self.too_late.add(layer)
                    require_reach(model, name("z"), name("attn_out"))
            else:
                shows = _SHOWS_AT[site]
                require_reach(model, name(site), None if shows is None else name(shows))

    def unpatched(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Logits at END of base and source, whose activations are kept for the patches."""
        logits, self.source = self._keep(pair.source_tokens, pair.source_last, pair.source_shift)
        base_logits, self.base = self._keep(
            pair.base_tokens, pair.base_last, pair.base_shift, self.site == "resid_mid"
        )
        return base_logits, logits

    def _keep(
        self,
        tokens: Int[Tensor, "batch pos"],
        last: Int[Tensor, " batch"],
        shift: Tensor | None,
        keep: bool = True,
    ) -> tuple[Float[Tensor, "batch vocab"], dict[str, Tensor]]:
        kept: dict[str, Tensor] = {}

        def store(activation: Tensor, hook: Any, name: str) -> None:
            kept[name] = activation.clone()

        reading: list[Hook] = (
            [(name, partial(store, name=name)) for name in self.read] if keep else []
        )
        with self.model.hooks(fwd_hooks=[*_shift(shift), *reading]):
            logits = logits_at_positions(self.model, tokens, last)
        return logits, kept

    def hooks(self, cells: Cells, pair: Pair) -> Iterator[list[Hook]]:
        """For each cell the hooks that make its patch, after :meth:`unpatched`."""
        prompts = torch.arange(len(pair), device=pair.base_tokens.device)
        for cell in range(len(cells)):
            layer = int(cells.layer[cell])
            heads: Any = slice(None) if cells.head is None else int(cells.head[cell])
            to: Any = (slice(None), slice(None))
            came_from: Any = to
            if cells.option is not None:
                assert pair.base_at is not None
                assert pair.source_at is not None
                option = int(cells.option[cell])
                to, came_from = (
                    (prompts, pair.base_at[:, option]),
                    (prompts, pair.source_at[:, option]),
                )
            if self.site == "pattern":
                yield self._pattern(layer, heads, to)
            else:
                yield self._vectors(layer, heads, to, came_from)

    def _vectors(self, layer: int, heads: Any, to: Any, came_from: Any) -> list[Hook]:
        """At any site but the pattern."""
        name = get_act_name(self.site, layer)
        source = self.source[name]

        def patch(activation: Tensor, hook: Any) -> Tensor:
            activation = activation.clone()
            if self.site == "resid_mid":
                activation[to] += source[came_from] - self.base[name][to]
            elif self.site in STREAM_SITES:
                activation[to] = source[came_from]
            else:
                activation[(*to, heads)] = source[(*came_from, heads)]
            return activation

        return [(get_act_name(self.edited, layer), patch)]

    def _pattern(self, layer: int, heads: Any, to: Any) -> list[Hook]:
        """A row of attention, or all rows, of a head or all heads."""
        name = get_act_name("pattern", layer)
        source = self.source[name]
        prompts, at = to

        def patch(pattern: Float[Tensor, "batch head query key"], hook: Any) -> Tensor:
            pattern = pattern.clone()
            pattern[prompts, heads, at] = source[prompts, heads, at]
            return pattern

        if layer not in self.too_late:
            return [(name, patch)]
        values: list[Tensor] = []

        def remember(v: Float[Tensor, "batch pos head d_head"], hook: Any) -> None:
            values.append(v)

        def patch_z(z: Float[Tensor, "batch pos head d_head"], hook: Any) -> Tensor:
            z = z.clone()
            z[(*to, heads)] = attend(source, values.pop())[(*to, heads)].to(z.dtype)
            return z

        return [(get_act_name("v", layer), remember), (get_act_name("z", layer), patch_z)]


def _shift(shift: Float[Tensor, "batch pos d_model"] | None) -> list[Hook]:
    """Noise that is added to the embeddings."""
    if shift is None:
        return []

    def add(embedding: Float[Tensor, "batch pos d_model"], hook: Any) -> Tensor:
        return embedding + shift[:, : embedding.shape[1]]

    return [("hook_embed", add)]
