"""Activation patching: one activation at a time, for all layers and positions, roles or heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import forward
from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.patching.fast import fast_sweep
from ioi_helpers.patching.hooks import hooks_sweep, require_site
from ioi_helpers.patching.pair import NoisyEmbedding, Pair
from ioi_helpers.patching.request import Cells, Request
from ioi_helpers.patching.result import SweepResult, sweep_result
from ioi_helpers.patching.score import Metrics, Scorer, Values
from ioi_helpers.runs import DEFAULT_MEMORY, roles_to_use


def patch_sweep(
    model: TransformerBridge,
    clean: TwoAnswerData,
    corrupted: TwoAnswerData | NoisyEmbedding,
    site: str = "z",
    axes: Sequence[str] = ("layer", "head"),
    *,
    metric: Metrics | None = None,
    direction: Literal["denoising", "noising"] = "denoising",
    roles: Sequence[str] | None = None,
    engine: forward.Engine = "auto",
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> SweepResult:
    """Patch one activation at a time, for all layers and all positions, roles or heads.

    One patch of such a sweep, in plain TransformerLens::

        _, clean_cache = model.run_with_cache(clean.tokens)

        def patch(z, hook):                                    # z: [batch pos head d_head]
            z[:, :, 9] = clean_cache[hook.name][:, :, 9]
            return z

        logits = model.run_with_hooks(
            corrupted.tokens, fwd_hooks=[("blocks.9.attn.hook_z", patch)]
        )
        logit_diff(logits, clean, per_prompt=True)

    ``direction="denoising"`` (the default) runs the corrupted prompts and patches clean activations
    in: what is *enough* to bring the answer back? ``"noising"`` runs the clean prompts and patches
    corrupted activations in: what is *needed*? Where each prompt is the other's counterfactual, as
    on the demo's prompts with ``swap_subject()``, the two are the same runs, mirrored.

    Prompts may differ in length from row to row if the axes hold no ``"pos"``. A prompt and its
    counterfactual are of the same template and length as a rule; then position i of the one is
    position i of the other, and roles are the *clean* prompt's in both. Where some are not, only
    ``"role"`` can say what corresponds to what, and each run's activations are taken at its own
    roles.

    A patch at ``resid_mid`` reaches the MLP and the skip connection. (At that hook of
    TransformerLens 4.3 one that writes in place does too, as the two share a tensor; one that
    returns another tensor reaches the MLP only.)

    Args:
        model: Any model that TransformerBridge boots; those of :data:`forward.FAMILIES` are fast.
        clean: Prompts with the right answer. Their answers score both runs.
        corrupted: Their counterfactuals, row by row, such as ``clean.swap_subject()`` or
            ``clean.abc()``; or a :class:`NoisyEmbedding`.
        site: The residual stream before, in the middle of or after a block (``resid_pre``,
            ``resid_mid``, ``resid_post``), what attention or the MLP adds to it (``attn_out``,
            ``mlp_out``), or a head's ``z``, ``q``, ``k``, ``v`` or ``pattern``.
        axes: ``"layer"`` and, in any order, ``"head"`` (for the sites of a head) and one of
            ``"pos"`` and ``"role"``. What is not an axis is patched whole: ``("layer", "head")`` is
            a head at all positions. The position of a ``q``, ``z`` or ``pattern`` is that of the
            token that attends; of a ``k`` or ``v`` that of the token attended to.
        metric: Called as ``metric(logits [batch vocab] at END, clean, per_prompt=True)`` and
            returns one value a prompt, as those of :mod:`ioi_helpers.metrics` do; one that takes
            logits only, as TransformerLens' do, is given ``[batch 1 vocab]`` of all prompts.
            Several may be given as a list or under names of your own. ``None`` is the logit
            difference, which needs two columns of ``W_U`` only; others need all logits at END.
        direction: See above.
        roles: The roles of a ``"role"`` axis, in order; None is all that the prompts have.
        engine: ``"fast"`` refuses models that :mod:`ioi_helpers.forward` cannot run, ``"hooks"``
            runs the whole model once a patch, on any architecture, and ``"auto"`` does so where it
            must, with a printed notice.
        memory: Bytes that the sweep may use for activations; more prompts and patches than fit are
            done in parts, with the same result.
        progress: Show a progress bar where there is something to wait for.

    Returns:
        ``values`` is ``[*axes, batch]``, the metric of each prompt with each patch. Patches that
        cannot change anything, such as those before the first token that differs, hold the
        baseline.

    Raises:
        ValueError: Unknown site, axes, direction or role; ``clean`` and ``corrupted`` of different
            sizes; prompts of unequal length where the axes need equal ones; a role that a prompt
            lacks; datasets of which one has BOS and one has not, or of another tokenizer than the
            model's; prompts longer than the model's context; a metric that does not return one
            value a prompt; a model in training mode; or one on which an edit at the site does not
            reach the run.
    """
    request = Request.of(site, axes, direction, roles_to_use(clean, roles))
    if memory < 1:
        raise ValueError(f"memory must be a positive number of bytes, not {memory}.")
    pair = Pair.of(model, request, clean, corrupted)
    scorer = Scorer.of(metric, clean)
    cells = Cells.of(site, request.entries(model, clean))
    require_site(model, site)
    gpt = forward.weights_for(model, engine)
    if gpt is not None:
        values = fast_sweep(gpt, cells, pair, scorer, memory, progress)
    else:
        values = hooks_sweep(model, cells, pair, scorer, memory, progress)
    return assemble(model, request, scorer, values)


def assemble(
    model: TransformerBridge,
    request: Request,
    scorer: Scorer,
    values: Values,
    method: str = "activation patching",
) -> SweepResult:
    """What was asked and what was measured, as a result."""
    if not scorer.several:
        values = Values(*(value[0] for value in values))
    denoising = request.direction == "denoising"
    return sweep_result(
        values.patched,
        request.entries(model, scorer.data),
        clean=values.source if denoising else values.base,
        corrupted=values.base if denoising else values.source,
        direction=request.direction,
        pair_ids=scorer.data.pair_ids,
        method=method,
        site=request.site,
        metric_names=list(scorer.metrics),
        has_metric_axis=scorer.several,
    )
