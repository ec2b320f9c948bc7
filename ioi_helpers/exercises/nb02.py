"""Keys to the exercises of notebook 02, activation patching.

They expect `exercises.use(model=model, demo=demo, corrupted=corrupted, many=many)`: the demo's
prompts with their swapped counterparts, and fifty unpaired generated prompts; exercise 02.7 is
given its `contexts` too.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ioi_helpers import heads
from ioi_helpers.dataset import ROLES, IOIDataset
from ioi_helpers.exercises.forms import whole_number
from ioi_helpers.exercises.measure import Head, clean, error, hooked, putting, strongest
from ioi_helpers.exercises.registry import Context, exercise
from ioi_helpers.exercises.verdicts import Key, array, head_set, number, pick
from ioi_helpers.patching import SweepResult, attribution_patch_sweep, patch_sweep

PERMUTATIONS = 10_000
LEVEL = 0.05  # of the permutation tests, before correction
ORDER_SHARE = 0.05  # of the clean logit difference that a head must move in 02.5
NAMES_SHARE = 0.25  # of that, which random names may move at most
NAME_ROLES = ("IO", "S1", "S2")


# --- what the checks measure ----------------------------------------------------------------------


def _sweep(ctx: Context, data: IOIDataset, other: IOIDataset, *request: Any, **how: Any) -> Any:
    return patch_sweep(ctx.model, data, other, *request, progress=False, **how)


def _by_head(ctx: Context) -> SweepResult:
    """`by_head` in the notebook."""
    return ctx.once("by head", lambda: _sweep(ctx, ctx.demo, ctx.corrupted, "z"))


def _carrier(ctx: Context) -> Head:
    """The head whose z at END recovers most on the demo's prompts: `carrier` in the notebook."""

    def compute() -> Head:
        axes = ("layer", "head", "role")
        at_end = _sweep(ctx, ctx.demo, ctx.corrupted, "z", axes, roles=("END",))
        return strongest(at_end.fraction()[..., 0])

    return ctx.once("carrier", compute)


def _with(
    ctx: Context,
    name: str,
    role: str | None = "END",
    which: Any = slice(None),
    *,
    to: IOIDataset,
    source: IOIDataset,
    scored: IOIDataset | None = None,
    new: Any = None,
) -> Float[Tensor, " batch"]:
    """Logit differences with an activation of `source` put into the run on `to`."""
    if new is None:
        new = ctx.model.run_with_cache(source.tokens, names_filter=name)[1][name]
    change = putting(new, ctx.demo, role, which)
    return hooked(ctx.model, to, {name: change}, ctx.demo if scored is None else scored)


# --- 02.1 One patch of your own -------------------------------------------------------------------


@exercise("02.1")
def _one_patch(ctx: Context) -> Key:
    n_layers = int(ctx.model.cfg.n_layers)
    block = n_layers // 2

    def patched(role: str | None = "END", at: int = block, **how: Any) -> Tensor:
        how = {"to": ctx.corrupted, "source": ctx.demo} | how
        return _with(ctx, f"blocks.{min(max(at, 0), n_layers - 1)}.hook_resid_pre", role, **how)

    truth, before = patched(), hooked(ctx.model, ctx.corrupted, {}, ctx.demo)
    gap = clean(ctx, "demo").mean() - before.mean()
    _, cache = ctx.model.run_with_cache(ctx.corrupted.tokens)
    _, other = ctx.model.run_with_cache(ctx.demo.tokens)
    both = cache["resid_pre", block] + other["resid_pre", block]
    return array(
        truth,
        ("prompt",),
        relative=0.003,
        absolute=1e-3,
        mistakes={
            "patching S2, not END": patched("S2"),
            "patching the wrong way round. Run the corrupted prompts, and put activations of the "
            "clean run in (denoising)": patched(to=ctx.demo, source=ctx.corrupted),
            "scoring with the corrupted prompts' answers. Score with `demo`, whose answers both "
            "runs are asked for": patched(scored=ctx.corrupted),
            "taking fractions recovered, not logit differences": (truth - before.mean()) / gap,
            "taking changes from the corrupted run, not the patched run's logit differences": (
                truth - before
            ),
            "adding the clean stream to the corrupted one, not replacing it": patched(new=both),
            "running the corrupted prompts with nothing patched. Nothing was patched if the hook "
            "does not return the changed tensor, is not passed to run_with_hooks, or patches "
            "elsewhere than at END": before,
            "patching every position, which gives the clean run": patched(None),
            "patching before the block above; `block` is the middle one": patched(at=block + 1),
            "patching before the block below; `block` is the middle one": patched(at=block - 1),
        },
        right="Each prompt was patched at its own END.",
    )


# --- 02.2 The handover ----------------------------------------------------------------------------


@exercise("02.2")
def _handover(ctx: Context) -> Key:
    n_layers = int(ctx.model.cfg.n_layers)

    def recovered(data: IOIDataset, other: IOIDataset) -> tuple[list[float], list[float]]:
        fraction = _sweep(ctx, data, other, "resid_pre", ("layer", "role")).fraction()
        s2, end = (fraction[:, ROLES.index(role)].tolist() for role in ("S2", "END"))
        return s2, end

    def first(s2: list[float], end: list[float]) -> int:
        return next((i for i in range(n_layers) if end[i] > s2[i]), n_layers)

    s2, end = recovered(ctx.many, ctx.many.swap_subject())
    truth = first(s2, end)
    return pick(
        truth,
        lambda answer: whole_number(
            answer, "Give the number of a block (a whole number), not a fraction recovered."
        ),
        mistakes={
            "taking the last block before which S2 still recovers at least as much as END. Row i "
            "is the stream before block i; look for the first row in which END is ahead": truth - 1,
            "going by the demo's eight prompts, not the generated ones (`by_role`)": first(
                *recovered(ctx.demo, ctx.corrupted)
            ),
        },
        rules={
            f"Blocks are numbered from 0 to {n_layers - 1}.": lambda i: not 0 <= i <= n_layers,
            "Too early: before that block S2 recovers more than END.": lambda i: i < truth,
            "Too late: END is ahead before an earlier block already.": lambda i: i > truth,
        },
        right="END is ahead before no block."
        if truth == n_layers
        else f"There S2 recovers {s2[truth]:z.2f} and END {end[truth]:z.2f}.",
    )


# --- 02.3 How many heads survive? -----------------------------------------------------------------


@exercise("02.3")
def _survivors(ctx: Context) -> Key:
    result: SweepResult = _sweep(ctx, ctx.many, ctx.many.swap_subject(), "z")
    small = _by_head(ctx)

    def pvalues(of: SweepResult) -> Tensor:
        return of.permutation_pvalue(n_permutations=PERMUTATIONS, seed=0).cpu()

    def below(limit: float, values: Tensor) -> int:
        return int((values < limit).sum())

    p = pvalues(result)
    threshold = LEVEL / p.numel()
    truth = below(threshold, p)
    low, high = result.bootstrap_ci(of_effect=True, seed=0)
    helps = result.effect().mean(dim=-1).cpu() > 0
    pairs = len(ctx.demo.pair_ids.unique())
    # Another seed may move a head that lies close to the threshold across it.
    near = range(below(0.75 * threshold, p), below(1.33 * threshold, p) + 1)
    return pick(
        truth,
        lambda answer: whole_number(answer, "Give the number of heads, not a share or a p-value."),
        says="Your number is",
        also={
            f"Close: {n} with other permutations, {truth} with seed 0.": n
            for n in near
            if n != truth
        },
        mistakes={
            "testing at 0.05, uncorrected. With so many tests some of them are chance: divide 0.05 "
            "by the number of tests": below(LEVEL, p),
            "counting on the demo's eight prompts. They are "
            f"{pairs} pairs, whose smallest possible p is 2/{2**pairs}. Use `on_many`": below(
                threshold, pvalues(small)
            ),
            "counting the heads that do NOT survive": p.numel() - truth,
            "dividing by the number of heads a layer. Every head of the model was tested": below(
                LEVEL / ctx.model.cfg.n_heads, p
            ),
            "dividing by the number of layers. Every head of the model was tested": below(
                LEVEL / ctx.model.cfg.n_layers, p
            ),
            "counting the 95 % intervals that leave out zero, again tests at 5 % each, uncorrected"
            "": int(((low > 0) | (high < 0)).sum()),
            "counting heads that recover more than 5 %. The task asks for effects that are not "
            "zero, however small": int((result.fraction().abs() > 0.05).sum()),
            "leaving out heads whose patch makes things worse, which is an effect, too": int(
                ((p < threshold) & helps).sum()
            ),
        },
        hint="Count the entries of the p-values below 0.05 divided by the number of heads.",
        right=f"{truth} of {p.numel()} heads, each tested at {threshold:.5f}.",
    )


# --- 02.4 Noise one head --------------------------------------------------------------------------


@exercise("02.4")
def _noise_one_head(ctx: Context) -> Key:
    demo, abc = ctx.demo, ctx.demo.abc(seed=0)
    layer, head = _carrier(ctx)

    def noised(role: str | None = "END", which: Any = head, **how: Any) -> Tensor:
        how = {"to": demo, "source": abc} | how
        return _with(ctx, f"blocks.{layer}.attn.hook_z", role, which, **how)

    def drop(*place: Any, **how: Any) -> float:
        return float((before - noised(*place, **how)).mean())

    before = clean(ctx, "demo")
    whole, fall = float(before.mean()), drop()
    other_way = float(noised(to=abc, source=demo).mean())
    return number(
        fall,
        absolute=2e-3,
        error=error(before - noised(), demo),
        unit="logits",
        mistakes={
            "taking the logit difference after the patch, not its fall": whole - fall,
            "taking the change, patched minus clean; a drop is clean minus patched": -fall,
            "patching the head at S2, not at END": drop("S2"),
            "patching nothing. Does your hook return the changed tensor, and is it passed to "
            "run_with_hooks?": 0.0,
            "taking another counterpart, `corrupted`, not demo.abc(seed=0)": drop(
                source=ctx.corrupted
            ),
            "taking another counterpart, random_names, not demo.abc(seed=0)": drop(
                source=demo.random_names(seed=0)
            ),
            "taking another counterpart, swap_order, not demo.abc(seed=0)": drop(
                source=demo.swap_order()
            ),
            "taking the ABC prompts of seed=1, not those of seed=0": drop(source=demo.abc(seed=1)),
            "starting from the corrupted run; noising starts from the clean one, `demo`": drop(
                to=ctx.corrupted
            ),
            "taking a share of the clean logit difference, not logits": fall / whole,
            "patching the wrong way round. Run `demo` and put the ABC run's z in": other_way
            - float(hooked(ctx.model, abc, {}, demo).mean()),
            "patching clean activations into the ABC run. It is the other way round: run `demo` "
            "and put the ABC run's z in": whole - other_way,
            "scoring with the ABC prompts, which ask for other names": drop(scored=abc),
            "setting the head to zero, not to what it gives on the ABC prompts": drop(new=0.0),
            "patching all heads of the layer": drop("END", slice(None)),
            "patching the head at all positions, not at END only": drop(None),
        },
        hint="Run the clean prompts, and replace one head's z at END.",
        right=f"As against ABC, that head's message is worth {fall / whole:z.2f} of the answer.",
    )


# --- 02.5 Heads that carry the order --------------------------------------------------------------


@exercise("02.5")
def _carry_order(ctx: Context) -> Key:
    many: IOIDataset = ctx.many
    labels = heads.head_labels(ctx.model)

    def moves(other: IOIDataset, role: str = "END") -> Float[Tensor, "layer head"]:
        axes, how = ("layer", "head", "role"), {"roles": (role,), "direction": "noising"}
        return _sweep(ctx, many, other, "z", axes, **how).effect().mean(dim=-1)[..., 0].cpu()

    def chosen(mask: Tensor) -> list[str]:
        return [label for label, yes in zip(labels, mask.flatten().tolist()) if yes]

    signed, by_name = moves(many.swap_order()), moves(many.random_names(seed=0))
    by_order, names = signed.abs(), by_name.abs()
    least = ORDER_SHARE * float(hooked(ctx.model, many, {}).mean())
    large, few = by_order >= least, names < NAMES_SHARE * by_order
    truth = chosen(large & few)
    return head_set(
        truth,
        shape=(by_order.shape[0], by_order.shape[1]),
        mistakes={
            "asking for the first condition only. Some of these react to random names as well": (
                chosen(large)
            ),
            "asking for the second condition only. Some of these hardly react to swap_order": (
                chosen(few)
            ),
            "leaving out the absolute value, so that only positive changes count": chosen(
                (signed >= least) & (by_name < NAMES_SHARE * signed)
            ),
            "looking for heads that carry names, large under random_names. The task asks for the "
            "opposite": chosen((names >= least) & (by_order < NAMES_SHARE * names)),
            "looking for heads that are large under random_names": chosen(names >= least),
            "looking for heads that are large under swap_subject, which changes place and name at "
            "once. Compare swap_order with random_names": chosen(
                moves(many.swap_subject()).abs() >= least
            ),
            "looking at S2, not at END": chosen(moves(many.swap_order(), "S2").abs() >= least),
        },
        hint="Both conditions are about sizes (absolute values) of the changes at END. The first "
        f"(5 % under swap_order) holds for {int(large.sum())} heads on this model.",
        right="Under swap_order they move the answer by "
        + ", ".join(f"{signed.flatten()[labels.index(head)]:z.2f} ({head})" for head in truth)
        + " logits."
        if truth
        else "None: nothing here asks for the order.",
    )


# --- 02.6 Attribution patching by hand ------------------------------------------------------------


@exercise("02.6")
def _attribution(ctx: Context) -> Key:
    model, demo = ctx.model, ctx.demo
    layer, head = _carrier(ctx)
    name = f"blocks.{layer}.attn.hook_z"

    def measured(data: IOIDataset) -> tuple[Tensor, Tensor]:
        """The head's z, and the gradient of the summed logit differences there."""
        kept: list[Tensor] = []

        def keep(z: Tensor) -> Tensor:
            kept.append(z)
            return z  # what a hook is given may be a reshaped copy, used only if returned

        with torch.enable_grad():
            changes = {"hook_embed": lambda e: e.detach().requires_grad_(True), name: keep}
            total = hooked(model, data, changes, demo).sum()
            (gradient,) = torch.autograd.grad(total, kept[0])
        return kept[0].detach()[:, :, head], gradient[:, :, head]

    corrupted, gradient = measured(ctx.corrupted)
    z, gradient_of_clean = measured(demo)
    change = z - corrupted
    parts = (change * gradient).sum(dim=-1)
    rows, at = torch.arange(len(demo)), demo.positions
    truth = parts.sum(dim=-1)
    sweep = attribution_patch_sweep(model, demo, ctx.corrupted, progress=False)
    every_head = sweep.effect()[layer].to(truth)
    return array(
        truth,
        ("prompt",),
        absolute=1e-4,
        mistakes={
            "dividing by the number of prompts. Take the gradient of the sum of the logit "
            "differences, not of their mean": truth / len(demo),
            "taking the gradient of the clean run. The estimate starts from the run that is "
            "patched, the corrupted one": (change * gradient_of_clean).sum(dim=(1, 2)),
            "multiplying the gradient with the clean z alone. Take the corrupted z away first": (
                z * gradient
            ).sum(dim=(1, 2)),
            "multiplying the gradient with the corrupted z; the change is clean minus corrupted": (
                corrupted * gradient
            ).sum(dim=(1, 2)),
            "measuring the exact effect of the patch, not its linear estimate": _by_head(
                ctx
            ).effect()[layer, head],
            "adding the baseline to the estimate": sweep.values[layer, head],
            "adding up all heads of the layer": every_head.sum(dim=0),
            "taking another head of the layer than `carrier`": every_head[
                (head + 1) % model.cfg.n_heads
            ],
            "taking what the change at S2 contributes, not all positions": parts[rows, at["S2"]],
            "taking what the change at END contributes, not all positions": parts[rows, at["END"]],
            "adding up the change without the gradient": change.sum(dim=(1, 2)),
            "adding up the gradient without the change": gradient.sum(dim=(1, 2)),
            "adding up absolute values; contributions of both signs must cancel": (
                (change * gradient).abs().sum(dim=(1, 2))
            ),
        },
        right="The same backward pass holds the estimate for every other head.",
    )


# --- 02.7 Token or context? -----------------------------------------------------------------------


def _fitted(
    outputs: Float[Tensor, "mention d_model"], groups: Int[Tensor, " mention"]
) -> Float[Tensor, "mention d_model"]:
    """Each output's group's average."""
    fitted = torch.empty_like(outputs)
    for group in groups.unique():
        fitted[groups == group] = outputs[groups == group].mean(dim=0)
    return fitted


def _explained(outputs: Float[Tensor, "mention d_model"], groups: Int[Tensor, " mention"]) -> float:
    """Share of the variance explained by groups."""
    left = (outputs - _fitted(outputs, groups)).pow(2).sum()
    return float(1 - left / (outputs - outputs.mean(dim=0)).pow(2).sum())


@exercise("02.7")
def _token_or_context(ctx: Context) -> Key:
    contexts: IOIDataset = ctx.contexts
    _, cache = ctx.model.run_with_cache(contexts.tokens)

    def mentions(layer: int = 0, name: str = "hook_mlp_out") -> Float[Tensor, "mention d_model"]:
        values = cache[f"blocks.{layer}.{name}"]
        return torch.cat([contexts.gather(values, role) for role in NAME_ROLES])

    outputs = mentions()
    who = torch.cat([contexts.io_tokens, contexts.s_tokens, contexts.s_tokens])
    role = torch.arange(len(NAME_ROLES), device=who.device).repeat_interleave(len(contexts))
    truth, by_role = _explained(outputs, who), _explained(outputs, role)
    fitted = _fitted(outputs, who)
    centred = outputs - outputs.mean(dim=0)
    left = (outputs - fitted).pow(2).sum(dim=0)
    left_of_square = float(left.sum() / outputs.pow(2).sum())
    only = {name: role == i for i, name in enumerate(NAME_ROLES)}
    return number(
        truth,
        absolute=1e-3,
        mistakes={
            "taking the share that is left over; the share explained is 1 minus it": 1 - truth,
            "comparing with the mean square, not with the variance. The overall average was not "
            "taken away": 1 - left_of_square,
            "taking the share of the mean square that is left over. Take the overall average away, "
            "and subtract from 1": left_of_square,
            "grouping by the role (IO, S1 or S2), not by the name": by_role,
            "taking the root of it; use squares": truth**0.5,
            "giving it in per cent; a share lies between 0 and 1": 100 * truth,
            "averaging one share for each dimension. Sum over dimensions first, then divide": float(
                (1 - left / centred.pow(2).sum(dim=0)).mean()
            ),
            "dividing lengths; the task asks for squares of distances": float(
                (fitted.norm(dim=1) / outputs.norm(dim=1)).mean()
            ),
            "averaging cosines; the task asks for squares of distances": float(
                torch.cosine_similarity(fitted, outputs).mean()
            ),
            "taking the second MLP; the first is block 0's": _explained(mentions(1), who),
            "taking the residual stream after the block, not the MLP's output": _explained(
                mentions(0, "hook_resid_post"), who
            ),
        }
        | {
            f"taking the mentions at {name} only; all three roles belong in": _explained(
                outputs[here], who[here]
            )
            for name, here in only.items()
        },
        hint="One minus the squared distances from the names' averages over those from the mean.",
        right=f"The role (IO, S1 or S2) explains {by_role:z.2f} of it.",
    )
