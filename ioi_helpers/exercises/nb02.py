"""Checks for notebook 02, activation patching.

They expect `exercises.use(model=model, demo=demo, corrupted=corrupted, many=many)`: the demo's
prompts with their swapped counterparts, and a hundred unpaired generated prompts; exercise 02.7 is
given its `contexts` too. Every truth is recomputed on the model at hand, with hooks or sweeps, and
so is the value that each known mistake leads to there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ioi_helpers import heads, metrics
from ioi_helpers.dataset import ROLES, IOIDataset
from ioi_helpers.exercises.legacy import (
    Refused,
    Verdict,
    as_array,
    as_number,
    exercise,
    head_set,
    numeric,
    tensor_close,
)
from ioi_helpers.exercises.registry import Context
from ioi_helpers.patching import SweepResult, attribution_patch_sweep, patch_sweep

PERMUTATIONS = 10_000
LEVEL = 0.05  # of the permutation tests, before correction
ORDER_SHARE = 0.05  # of the clean logit difference that a head must move in 02.5
NAMES_SHARE = 0.25  # of that, which random names may move at most
NAME_ROLES = ("IO", "S1", "S2")


# --- what the checks measure ----------------------------------------------------------------------


def _middle(ctx: Context) -> int:
    """`block` in the notebook."""
    return int(ctx.model.cfg.n_layers) // 2


def _patch_stream(
    ctx: Context,
    layer: int,
    role: str | None,
    to: IOIDataset | None = None,
    source: IOIDataset | None = None,
    scored: IOIDataset | None = None,
) -> Float[Tensor, " batch"]:
    """Logit differences with the stream before a block replaced at a role (None: everywhere)."""
    base = ctx.corrupted if to is None else to
    other = ctx.demo if source is None else source
    demo = ctx.demo if scored is None else scored
    _, cache = ctx.model.run_with_cache(other.tokens)
    resid = cache["resid_pre", layer]

    def put_in(value: Tensor, hook: Any) -> Tensor:
        if role is None:
            return resid
        value = value.clone()
        rows, at = torch.arange(len(value)), ctx.demo.positions[role]
        value[rows, at] = resid[rows, at]
        return value

    hooks = [(f"blocks.{layer}.hook_resid_pre", put_in)]
    logits = ctx.model.run_with_hooks(base.tokens, fwd_hooks=hooks)
    return metrics.logit_diff(logits, demo, per_prompt=True)


def _by_role(ctx: Context, data: IOIDataset, other: IOIDataset, key: str) -> SweepResult:
    return ctx.once(
        f"stream by role, {key}",
        lambda: patch_sweep(ctx.model, data, other, "resid_pre", ("layer", "role"), progress=False),
    )


def _by_head(ctx: Context, data: IOIDataset, other: IOIDataset, key: str) -> SweepResult:
    return ctx.once(
        f"heads, {key}", lambda: patch_sweep(ctx.model, data, other, "z", progress=False)
    )


def _carrier(ctx: Context) -> tuple[int, int]:
    """The head whose z at END recovers most on the demo's prompts: `carrier` in the notebook."""

    def compute() -> tuple[int, int]:
        sweep = patch_sweep(
            ctx.model,
            ctx.demo,
            ctx.corrupted,
            "z",
            ("layer", "head", "role"),
            roles=("S2", "END"),
            progress=False,
        )
        return divmod(int(sweep.fraction()[..., 1].argmax()), int(ctx.model.cfg.n_heads))

    return ctx.once("carrier", compute)


def _a_prompt_each(answer: Any, truth: Float[Tensor, " batch"], near: float) -> Any:
    """The answer as a vector where it is a row or a column; a verdict where it is one number.

    Args:
        answer: What was given.
        truth: One value a prompt.
        near: How near a number must be to the mean of the truth to be taken for it.
    """
    try:
        given = as_array(answer)
    except Refused:  # what cannot be read is told so by the comparison
        return answer
    if given.size == 1 and len(truth) > 1:
        number, n = float(given.reshape(-1)[0]), len(truth)
        for what, value, around in (
            ("mean", float(truth.mean()), near),
            ("sum", float(truth.sum()), n * near),
        ):
            if abs(number - value) <= around:
                return Verdict(False, f"This is the {what} over prompts; give one number a prompt.")
        return Verdict(False, f"Give one number a prompt ({n}), not a single one.")
    return given.reshape(-1) if given.ndim == 2 and 1 in given.shape else answer


# --- 02.1 -----------------------------------------------------------------------------------------


@exercise("02.1", title="One patch of your own", difficulty="warm-up", minutes=5)
def _one_patch(answer: Any, ctx: Context) -> Verdict:
    layer = _middle(ctx)
    truth = ctx.once("02.1", lambda: _patch_stream(ctx, layer, "END"))
    clean = metrics.logit_diff(ctx.model(ctx.demo.tokens), ctx.demo).item()

    def corrupted() -> Float[Tensor, " batch"]:
        return metrics.logit_diff(ctx.model(ctx.corrupted.tokens), ctx.demo, per_prompt=True)

    broken = corrupted().mean().item()
    answer = _a_prompt_each(answer, truth, 0.01 * abs(clean - broken))
    if isinstance(answer, Verdict):
        return answer
    return tensor_close(
        answer,
        truth,
        axes=("prompt",),
        relative=0.003,
        absolute=1e-3,
        mistakes={
            "You patched S2; the task asks for END.": lambda: _patch_stream(ctx, layer, "S2"),
            "You patched the wrong way round: run the corrupted prompts, and put activations of "
            "the clean run in (denoising).": lambda: _patch_stream(
                ctx, layer, "END", to=ctx.demo, source=ctx.corrupted
            ),
            "These are scored with the corrupted prompts' answers. Score with `demo`, whose "
            "answers both runs are asked for.": lambda: _patch_stream(
                ctx, layer, "END", scored=ctx.corrupted
            ),
            "These are fractions recovered; the task asks for logit differences.": lambda: (
                (truth - broken) / (clean - broken)
            ),
            "These are changes from the corrupted run; the task asks for the logit differences of "
            "the patched one.": lambda: truth - corrupted(),
            "Nothing was patched: these are the logit differences of the corrupted run. Does your "
            "hook return the changed tensor, is it passed to run_with_hooks, and does it patch "
            "END?": corrupted,
            "You patched every position, which gives the clean run; patch END only.": lambda: (
                _patch_stream(ctx, layer, None)
            ),
            "You patched before the block above; `block` is the middle one.": lambda: _patch_stream(
                ctx, min(layer + 1, ctx.model.cfg.n_layers - 1), "END"
            ),
            "You patched before the block below; `block` is the middle one.": lambda: _patch_stream(
                ctx, max(layer - 1, 0), "END"
            ),
        },
        right="Each prompt was patched at its own END.",
    )


# --- 02.2 -----------------------------------------------------------------------------------------


def _handover_of(result: SweepResult) -> int:
    recovered = result.fraction()
    ahead = recovered[:, ROLES.index("END")] > recovered[:, ROLES.index("S2")]
    return int(ahead.int().argmax()) if bool(ahead.any()) else len(ahead)


@exercise("02.2", title="The handover", difficulty="easy", minutes=10)
def _handover(answer: Any, ctx: Context) -> Verdict:
    n_layers = int(ctx.model.cfg.n_layers)
    result = _by_role(ctx, ctx.many, ctx.many.swap_subject(), "many")
    truth = _handover_of(result)
    value = as_number(answer)
    if value != int(value):
        raise Refused("Give the number of a block (a whole number), not a fraction recovered.")
    chosen = int(value)
    if chosen == truth:
        if truth == n_layers:
            return Verdict(True, "END is ahead before no block.")
        at = result.fraction()[truth]
        s2, end = float(at[ROLES.index("S2")]), float(at[ROLES.index("END")])
        return Verdict(True, f"There S2 recovers {s2:.2f} and END {end:.2f}.")
    if not 0 <= chosen <= n_layers:
        return Verdict(False, f"Blocks are numbered from 0 to {n_layers - 1}.")
    if chosen == truth - 1:
        return Verdict(
            False,
            "Before that block S2 still recovers at least as much as END, on the generated prompts "
            "(`by_role`). Row i is the stream before block i; look for the first row in which END "
            "is ahead.",
        )
    demo = _by_role(ctx, ctx.demo, ctx.corrupted, "demo")
    if chosen == _handover_of(demo):
        return Verdict(
            False, "That is so on the demo's eight prompts; the task asks for the generated ones."
        )
    if chosen < truth:
        return Verdict(False, "Too early: before that block S2 recovers more than END.")
    return Verdict(False, "Too late: END is ahead before an earlier block already.")


# --- 02.3 -----------------------------------------------------------------------------------------


@exercise("02.3", title="How many heads survive?", difficulty="medium", minutes=10)
def _survivors(answer: Any, ctx: Context) -> Verdict:
    def pvalues(result: SweepResult, permutations: int = PERMUTATIONS) -> Tensor:
        return result.permutation_pvalue(n_permutations=permutations, seed=0)

    result = _by_head(ctx, ctx.many, ctx.many.swap_subject(), "many")
    p = ctx.once("02.3 p", lambda: pvalues(result))
    count = p.numel()
    threshold = LEVEL / count

    def below(values: Tensor, limit: float) -> int:
        return int((values < limit).sum())

    value = as_number(answer)
    # Another seed may move a head that lies close to the threshold across it.
    fewest, most = below(p, 0.75 * threshold), below(p, 1.33 * threshold)
    truth = below(p, threshold)
    if value == int(value) and (fewest <= value <= most):
        return Verdict(True, f"{truth} of {count} heads, each tested at {threshold:.5f}.")
    if 0 < value < 1:
        return Verdict(False, "Give the number of heads, not a share or a p-value.")
    small = _by_head(ctx, ctx.demo, ctx.corrupted, "demo")
    low, high = result.bootstrap_ci(of_effect=True, seed=0)
    return numeric(
        answer,
        truth,
        relative=0.0,
        absolute=0.5,
        mistakes={
            "These are the heads with p < 0.05, uncorrected. With so many tests some of them are "
            "chance: divide 0.05 by the number of tests.": lambda: below(p, LEVEL),
            "This is the count on the eight prompts of the demo, whose smallest possible p is "
            "2/256. Use `on_many`.": lambda: below(pvalues(small), threshold),
            "That is the number of heads that do NOT survive; count the others.": lambda: (
                count - truth
            ),
            "You divided by the number of layers or of heads a layer; every head of the model was "
            "tested.": lambda: below(p, LEVEL / ctx.model.cfg.n_heads),
            "You divided by the number of layers; every head of the model was tested.": lambda: (
                below(p, LEVEL / ctx.model.cfg.n_layers)
            ),
            "These are the heads whose 95 % interval leaves out zero: again a test at 5 % each, "
            "uncorrected.": lambda: int(((low > 0) | (high < 0)).sum()),
            "These are the heads that recover more than 5 %; the task asks for those whose effect "
            "is not zero, however small.": lambda: int((result.fraction().abs() > 0.05).sum()),
            "You left out heads whose patch makes things worse; that is an effect, too.": lambda: (
                int(((p < threshold) & (result.effect().mean(dim=-1) > 0).to(p.device)).sum())
            ),
        },
        hint="Count the entries of the p-values below 0.05 divided by the number of heads.",
    )


# --- 02.4 -----------------------------------------------------------------------------------------


@exercise("02.4", title="Noise one head", difficulty="medium", minutes=15)
def _noise_one_head(answer: Any, ctx: Context) -> Verdict:
    model, demo = ctx.model, ctx.demo
    layer, head = _carrier(ctx)
    abc = demo.abc(seed=0)
    clean = ctx.once("demo clean", lambda: metrics.logit_diff(model(demo.tokens), demo).item())

    def noised(
        role: str | None = "END",
        chosen: Any = head,
        to: IOIDataset = demo,
        source: IOIDataset = abc,
        scored: IOIDataset = demo,
        zero: bool = False,
    ) -> float:
        _, cache = model.run_with_cache(source.tokens)
        new = torch.zeros_like(cache["z", layer]) if zero else cache["z", layer]

        def put_in(z: Tensor, hook: Any) -> Tensor:
            z = z.clone()
            if role is None:
                z[:, :, chosen] = new[:, :, chosen]
            else:
                rows, at = torch.arange(len(demo)), demo.positions[role]
                z[rows, at, chosen] = new[rows, at, chosen]
            return z

        logits = model.run_with_hooks(
            to.tokens, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", put_in)]
        )
        return metrics.logit_diff(logits, scored).item()

    def base(data: IOIDataset) -> float:
        return metrics.logit_diff(model(data.tokens), demo).item()

    patched = ctx.once("02.4", noised)
    return numeric(
        answer,
        clean - patched,
        absolute=2e-3,
        mistakes={
            "This is the logit difference after the patch. How far did it fall from the clean one?"
            "": lambda: patched,
            "This is the change, patched minus clean; a drop is clean minus patched.": lambda: (
                patched - clean
            ),
            "You patched the head at S2; the task asks for END.": lambda: clean - noised("S2"),
            "The logit difference did not move: does your hook return the changed tensor, and is "
            "it passed to run_with_hooks?": 0.0,
            "The z came from another counterpart: use demo.abc(seed=0), not the swapped prompts."
            "": lambda: clean - noised(source=ctx.corrupted),
            "The z came from another counterpart: use demo.abc(seed=0), not random_names."
            "": lambda: clean - noised(source=demo.random_names(seed=0)),
            "The z came from another counterpart: use demo.abc(seed=0), not swap_order.": lambda: (
                clean - noised(source=demo.swap_order())
            ),
            "The z came from other ABC prompts: use seed=0.": lambda: (
                clean - noised(source=demo.abc(seed=1))
            ),
            "You patched the corrupted run; noising starts from the clean one, `demo`.": lambda: (
                clean - noised(to=ctx.corrupted)
            ),
            "This is a share of the clean logit difference; give logits.": lambda: (
                (clean - patched) / clean
            ),
            "You patched the wrong way round (clean activations into the ABC run): run `demo` and "
            "put the ABC run's z in.": lambda: noised(to=abc, source=demo) - base(abc),
            "You patched clean activations into the ABC run; the task is the other way round: run "
            "`demo` and put the ABC run's z in.": lambda: clean - noised(to=abc, source=demo),
            "You scored with the ABC prompts, which ask for other names: score with `demo`."
            "": lambda: clean - noised(scored=abc),
            "You set the head to zero; put in what it gives on the ABC prompts.": lambda: (
                clean - noised(zero=True)
            ),
            "You patched all heads of the layer: patch `head` only.": lambda: (
                clean - noised(chosen=slice(None))
            ),
            "You patched the head at all positions: patch END only.": lambda: clean - noised(None),
        },
        unit="logits",
        hint="Run the clean prompts, and replace one head's z at END.",
    )


# --- 02.5 -----------------------------------------------------------------------------------------


@exercise("02.5", title="Heads that carry the order", difficulty="medium", minutes=15)
def _carry_order(answer: Any, ctx: Context) -> Verdict:
    model, many = ctx.model, ctx.many

    def noise(other: IOIDataset, role: str = "END") -> SweepResult:
        return patch_sweep(
            model,
            many,
            other,
            "z",
            ("layer", "head", "role"),
            roles=(role,),
            direction="noising",
            progress=False,
        )

    order = ctx.once("order at END", lambda: noise(many.swap_order()))
    other = ctx.once("names at END", lambda: noise(many.random_names(seed=0)))
    clean = float(order.clean.mean())
    labels = heads.head_labels(model)

    def moves(result: SweepResult) -> Float[Tensor, "layer head"]:
        return result.effect().mean(dim=-1)[..., 0]

    by_order, by_name = moves(order), moves(other)

    def chosen(mask: Tensor) -> list[str]:
        return [labels[i] for i, yes in enumerate(mask.flatten().tolist()) if yes]

    large = by_order.abs() >= ORDER_SHARE * clean
    truth = chosen(large & (by_name.abs() < NAMES_SHARE * by_order.abs()))
    if isinstance(answer, (list, tuple, set)) and not answer and truth:
        return Verdict(False, "There are such heads on this model; the list is empty.")
    if not truth and not (isinstance(answer, (list, tuple, set)) and not answer):
        if isinstance(answer, str):
            raise Refused("Give a list of heads (an empty one if there are none), not text.")
        strong = chosen(by_name.abs() >= ORDER_SHARE * clean)
        verdict = head_set(
            answer,
            [],
            mistakes={
                "These heads change the logit difference under random_names; the question is "
                "which do so under swap_order and not there.": strong
            }
            if strong
            else None,
            shape=(by_order.shape[0], by_order.shape[1]),
        )
        if verdict.passed is False:
            return Verdict(
                False,
                f"{verdict.message} The first condition (5 % under swap_order) holds for "
                f"{int(large.sum())} heads on this model.",
            )
        return verdict
    swap = many.swap_subject()
    return head_set(
        answer,
        truth,
        mistakes={
            "These meet the first condition only: some of them react to random names as well."
            "": lambda: chosen(large),
            "These meet the second condition only: some of them hardly react to swap_order either."
            "": lambda: chosen(by_name.abs() < NAMES_SHARE * by_order.abs()),
            "You left out the absolute value: these are the heads whose change is positive."
            "": lambda: chosen(
                (by_order >= ORDER_SHARE * clean) & (by_name < NAMES_SHARE * by_order)
            ),
            "These are the heads that carry names: large under random_names. The task asks for "
            "the opposite.": lambda: chosen(
                (by_name.abs() >= ORDER_SHARE * clean)
                & (by_order.abs() < NAMES_SHARE * by_name.abs())
            ),
            "These are the heads that are large under swap_subject, which changes place and name "
            "at once; compare swap_order with random_names.": lambda: chosen(
                moves(noise(swap)).abs() >= ORDER_SHARE * clean
            ),
            "These are heads that matter at S2; the task asks for END.": lambda: chosen(
                moves(noise(many.swap_order(), "S2")).abs() >= ORDER_SHARE * clean
            ),
        },
        shape=(by_order.shape[0], by_order.shape[1]),
        hint="Both conditions are about sizes (absolute values) of the changes at END.",
        right="None: nothing here asks for the order." if not truth else "",
    )


# --- 02.6 -----------------------------------------------------------------------------------------


@exercise("02.6", title="Attribution patching by hand", difficulty="hard", minutes=25)
def _attribution(answer: Any, ctx: Context) -> Verdict:
    model, demo, corrupted = ctx.model, ctx.demo, ctx.corrupted
    layer, head = _carrier(ctx)

    def measured() -> dict[str, Tensor]:
        found = {}
        for run, data in (("corrupted", corrupted), ("clean", demo)):
            kept: list[Tensor] = []

            def ask(embedding: Tensor, hook: Any) -> Tensor:
                return embedding.detach().requires_grad_(True)

            def keep(z: Tensor, hook: Any, kept: list[Tensor] = kept) -> Tensor:
                kept.append(z)
                return z  # what a hook is given may be a reshaped copy, used only if returned

            with torch.enable_grad():
                hooks = [("hook_embed", ask), (f"blocks.{layer}.attn.hook_z", keep)]
                logits = model.run_with_hooks(data.tokens, fwd_hooks=hooks)
                total = metrics.logit_diff(logits, demo, per_prompt=True).sum()
                (gradient,) = torch.autograd.grad(total, kept[0])
            found[run] = kept[0].detach()[:, :, head]
            found[f"gradient, {run}"] = gradient[:, :, head]
        return found

    parts = ctx.once("02.6", measured)
    change = parts["clean"] - parts["corrupted"]
    gradient = parts["gradient, corrupted"]
    rows, end = torch.arange(len(demo)), demo.positions["END"]

    def estimate(size: Tensor, slope: Tensor) -> Tensor:
        return (size * slope).sum(dim=(1, 2))

    truth = estimate(change, gradient)

    def by_sweep() -> SweepResult:
        return ctx.once(
            "02.6 all heads",
            lambda: attribution_patch_sweep(model, demo, corrupted, progress=False),
        )

    answer = _a_prompt_each(answer, truth, 0.01 * abs(float(truth.mean())))
    if isinstance(answer, Verdict):
        return answer
    return tensor_close(
        answer,
        truth,
        axes=("prompt",),
        absolute=1e-4,
        mistakes={
            "This is divided by the number of prompts: take the gradient of the sum of the logit "
            "differences, not of their mean.": lambda: truth / len(demo),
            "Here the gradient of the clean run was used. The estimate starts from the run that "
            "is patched, the corrupted one.": lambda: estimate(change, parts["gradient, clean"]),
            "You multiplied the gradient with the clean z alone; take the corrupted z away first."
            "": lambda: estimate(parts["clean"], gradient),
            "You multiplied the gradient with the corrupted z; the change is clean minus "
            "corrupted.": lambda: estimate(parts["corrupted"], gradient),
            "This is the exact effect of the patch. The task asks for its linear estimate."
            "": lambda: (
                patch_sweep(model, demo, corrupted, "z", progress=False)
                .effect()[layer, head]
                .to(truth)
            ),
            "These are logit differences (baseline plus estimate); give the estimate alone."
            "": lambda: by_sweep().values[layer, head].to(truth),
            "Here all heads of the layer are summed: pick `head`.": lambda: (
                by_sweep().effect()[layer].sum(dim=0).to(truth)
            ),
            "This is what the change at S2 contributes; sum over all positions.": lambda: (
                change * gradient
            ).sum(dim=-1)[rows, demo.positions["S2"]],
            "This is another head of the layer; use `carrier`.": lambda: (
                by_sweep().effect()[layer, (head + 1) % model.cfg.n_heads].to(truth)
            ),
            "This is the change summed, without the gradient.": lambda: change.sum(dim=(1, 2)),
            "This is the gradient summed, without the change.": lambda: gradient.sum(dim=(1, 2)),
            "Here absolute values were summed; contributions of both signs must cancel.": lambda: (
                (change * gradient).abs().sum(dim=(1, 2))
            ),
            "This is what the change at END contributes; sum over all positions.": lambda: (
                change * gradient
            ).sum(dim=-1)[rows, end],
        },
        right="The same backward pass holds the estimate for every other head.",
    )


# --- 02.7 -----------------------------------------------------------------------------------------


def _share(
    outputs: Float[Tensor, "mention d_model"], groups: Int[Tensor, " mention"]
) -> tuple[float, float]:
    """Share of the variance explained by groups, and the same of the mean square."""
    fitted = torch.empty_like(outputs)
    for group in groups.unique():
        fitted[groups == group] = outputs[groups == group].mean(dim=0)
    left = (outputs - fitted).pow(2).sum()
    centred = (outputs - outputs.mean(dim=0)).pow(2).sum()
    return float(1 - left / centred), float(1 - left / outputs.pow(2).sum())


@exercise("02.7", title="Token or context?", difficulty="medium", minutes=20)
def _token_or_context(answer: Any, ctx: Context) -> Verdict:
    contexts: IOIDataset = ctx.contexts

    def mentions(layer: int = 0, name: str = "hook_mlp_out") -> Float[Tensor, "mention d_model"]:
        key = f"blocks.{layer}.{name}"
        _, cache = ctx.model.run_with_cache(contexts.tokens)
        return torch.cat([contexts.gather(cache[key], role) for role in NAME_ROLES])

    outputs = mentions()
    who = torch.cat([contexts.io_tokens, contexts.s_tokens, contexts.s_tokens])
    role = torch.arange(len(NAME_ROLES), device=who.device).repeat_interleave(len(contexts))
    truth, around_zero = _share(outputs, who)
    by_role = _share(outputs, role)[0]

    def one_role(which: int) -> Callable[[], float]:
        here = role == which
        return lambda: _share(outputs[here], who[here])[0]

    fitted = torch.stack([outputs[who == token].mean(dim=0) for token in who.tolist()])

    def ratio_of_lengths() -> float:
        return float((fitted.norm(dim=1) / outputs.norm(dim=1)).mean())

    def mean_of_shares() -> float:
        left = (outputs - fitted).pow(2).sum(dim=0)
        return float((1 - left / (outputs - outputs.mean(dim=0)).pow(2).sum(dim=0)).mean())

    return numeric(
        answer,
        truth,
        absolute=1e-3,
        mistakes={
            "This is the share that is left over; the share explained is 1 minus it.": 1 - truth,
            "The overall average was not taken away: this compares with the mean square, not with "
            "the variance.": around_zero,
            "This is the share of the mean square that is left over: take the overall average "
            "away, and subtract from 1.": 1 - around_zero,
            "This is what the role (IO, S1 or S2) explains; group by the name.": by_role,
            "This is the root of it: use squares.": truth**0.5,
            "This is per cent; give a share, between 0 and 1.": 100 * truth,
            "This is an average of one share for each dimension: sum over dimensions first, then "
            "divide.": mean_of_shares,
            "This is a ratio of lengths; the task asks for squares of distances.": ratio_of_lengths,
            "This is the second MLP; the first is block 0's.": lambda: _share(mentions(1), who)[0],
            "This is the residual stream after the block; use the MLP's output.": lambda: _share(
                mentions(0, "hook_resid_post"), who
            )[0],
            "These are the mentions at IO only; all three roles belong in.": one_role(0),
            "These are the mentions at S1 only; all three roles belong in.": one_role(1),
            "These are the mentions at S2 only; all three roles belong in.": one_role(2),
        },
        hint="One minus the squared distances from the names' averages over those from the mean.",
        right=f"The role (IO, S1 or S2) explains {by_role:.2f} of it.",
    )
