"""Attribution patching: what a sweep would find, estimated from one gradient a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities import get_act_name

from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.forward import ENGINES, Engine
from ioi_helpers.patching.pair import NoisyEmbedding, Pair
from ioi_helpers.patching.request import Request
from ioi_helpers.patching.result import SweepResult
from ioi_helpers.patching.score import Metric, Scorer, Values
from ioi_helpers.patching.sweep import assemble
from ioi_helpers.runs import (
    DEFAULT_MEMORY,
    in_order,
    in_parts,
    known_hooks,
    logits_at_positions,
    progress_bar,
    prompts_at_once,
    roles_to_use,
)

ATTRIBUTION_SITES: tuple[str, ...] = ("z", "mlp_out")
"""What heads and MLPs write: the sites at which the estimate is of use."""


def attribution_patch_sweep(
    model: TransformerBridge,
    clean: TwoAnswerData,
    corrupted: TwoAnswerData,
    site: str = "z",
    axes: Sequence[str] = ("layer", "head"),
    *,
    metric: Metric | None = None,
    direction: Literal["denoising", "noising"] = "denoising",
    roles: Sequence[str] | None = None,
    engine: Engine = "auto",
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> SweepResult:
    """What `patch_sweep` finds, estimated from one gradient a prompt: attribution patching.

    To first order, replacing an activation a by a' changes the metric by (a' - a) times the
    metric's gradient at a, in the run that is patched (Nanda 2023, "Attribution patching";
    Kramar et al. 2024, "AtP*"). One forward and backward pass give all patches at once. The
    estimate is poor where the model is far from linear, above all for early layers, where LayerNorm
    and attention saturate: compare it with the exact sweep.

    One head of it, in plain TransformerLens and PyTorch, for prompts of one length::

        _, source = model.run_with_cache(clean.tokens)
        z = {}

        def keep(activation, hook):                            # [batch pos head d_head]
            z[hook.name] = activation
            return activation                                  # the run goes on from this tensor

        with model.hooks(fwd_hooks=[("blocks.9.attn.hook_z", keep)]):
            diffs = logit_diff(model(corrupted.tokens), clean, per_prompt=True)
        (name, here), = z.items()
        (gradient,) = torch.autograd.grad(diffs.sum(), here)
        effect = ((source[name] - here) * gradient)[:, :, 9].sum((-2, -1))

    (``load_model`` freezes parameters, which ends gradients; ``model.requires_grad_(True)`` first.)
    For a single prompt ``transformer_lens.tools.analysis.attribution_patch`` gives the same.

    Args:
        model: A model that TransformerBridge boots. Its parameters may be frozen.
        clean, corrupted, axes, direction, roles, memory, progress: As for `patch_sweep`; a prompt
            and its counterpart must correspond position by position.
        site: ``"z"`` or ``"mlp_out"``.
        metric: As for `patch_sweep`, and differentiable.
        engine: Taken so that all sweeps look alike. There is one way here, a gradient of the model
            itself, for a batch of prompts at once.

    Returns:
        ``values`` is the baseline plus the estimated effect, ``[*axes, batch]``; ``effect()`` is
        the estimate.

    Raises:
        ValueError: As for `patch_sweep`, or another site.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be 'auto', 'fast' or 'hooks', not {engine!r}.")
    request = Request.of(site, axes, direction, roles_to_use(clean, roles))
    if site not in ATTRIBUTION_SITES:
        raise ValueError(
            f"Attribution patching covers the sites {' and '.join(ATTRIBUTION_SITES)}, not "
            f"{site!r}; use patch_sweep for others."
        )
    pair = Pair.of(model, request, clean, corrupted)
    if pair.first is None or isinstance(corrupted, NoisyEmbedding):
        raise ValueError(
            "Attribution patching needs prompts whose counterparts correspond to them position by "
            "position; use a counterfactual such as swap_subject()."
        )
    scorer = Scorer.of(metric, clean)
    # A gradient needs every block's intermediate values at once, not one block's.
    width = int(pair.base_last.max()) + 1
    at_once = prompts_at_once(model, width, max(1, memory // model.cfg.n_layers))
    if scorer.needs_all_prompts:
        at_once = len(pair)
    effects, unpatched, order = [], [], []
    parts = list(in_parts(pair.base_last, at_once, progress=False))
    for rows in progress_bar("attribution", parts, show=progress):
        here = pair.part(rows.to(pair.base_last.device))
        part = scorer.part(rows)
        effect = _by_gradient(model, site, here, part)
        if here.base_at is None:
            effects.append(effect.sum(dim=1, keepdim=True))
        else:
            at = here.base_at.to(effect.device)
            effects.append(effect[torch.arange(len(at), device=at.device)[:, None], at])
        unpatched.append(_unpatched(model, here, part))
        order.append(rows)
    values = _values(request, in_order(effects, order), in_order(unpatched, order))
    return assemble(model, request, scorer, values, method="attribution patching")


def _values(
    request: Request,
    effect: Float[Tensor, "batch option layer head"],
    unpatched: Float[Tensor, "batch run metric"],
) -> Values:
    if "head" not in request.axes:
        effect = effect.sum(dim=-1, keepdim=True)
    dims = {"role": 1, "pos": 1, "layer": 2, "head": 3}
    wanted = [dims[axis] for axis in request.axes]
    spare = [dim for dim in (1, 2, 3) if dim not in wanted]  # of length 1
    cells = effect.permute(*wanted, *spare, 0).flatten(0, 2)  # [cell batch]
    base, source = unpatched.permute(1, 2, 0).to(effect)  # [metric batch]
    return Values(base[:, None] + cells, base, source)


@torch.no_grad()
def _unpatched(
    model: TransformerBridge, pair: Pair, scorer: Scorer
) -> Float[Tensor, "batch run metric"]:
    runs = ((pair.base_tokens, pair.base_last), (pair.source_tokens, pair.source_last))
    return torch.stack([scorer.score(logits_at_positions(model, *run)).T for run in runs], dim=1)


def _with_gradient(embedding: Tensor, hook: Any) -> Tensor:
    """Lets gradients reach the activations of a model whose parameters are frozen."""
    return embedding if embedding.requires_grad else embedding.detach().requires_grad_(True)


def _by_gradient(
    model: TransformerBridge, site: str, pair: Pair, scorer: Scorer
) -> Float[Tensor, "batch pos layer head"]:
    """Estimates for several prompts, whose runs do not depend on one another."""
    names = [get_act_name(site, layer) for layer in range(model.cfg.n_layers)]
    known_hooks(model, names)
    kept: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Any, name: str) -> Tensor:
        # Returned, so that the run goes on from this very tensor and not from what it is a view of.
        kept[name] = activation
        return activation

    hooks = [(name, partial(keep, name=name)) for name in names]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        logits_at_positions(model, pair.source_tokens, pair.source_last)
    source = dict(kept)
    with torch.enable_grad(), model.hooks(fwd_hooks=[("hook_embed", _with_gradient), *hooks]):
        score = scorer.score(logits_at_positions(model, pair.base_tokens, pair.base_last))
        gradients = torch.autograd.grad(score.sum(), [kept[name] for name in names])
    effects = [
        ((source[name] - kept[name].detach()) * gradient).sum(dim=-1)
        for name, gradient in zip(names, gradients, strict=True)
    ]
    effect = torch.stack(effects, dim=2)
    return effect if site == "z" else effect[..., None]
