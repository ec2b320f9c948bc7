"""Keys to the exercises of notebook 01, direct logit attribution.

They expect `exercises.use(model=model, demo=demo, many=many)`: the eight prompts of the demo, which
have one length, and a few hundred generated ones, which have not.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ioi_helpers import attribution, heads, metrics, runs
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.exercises.forms import Heads, Refused, whole_number
from ioi_helpers.exercises.measure import (
    clean,
    correlation,
    error,
    head_writes,
    hooked,
    putting,
    strongest,
)
from ioi_helpers.exercises.registry import Context, exercise
from ioi_helpers.exercises.verdicts import Key, array, number, pick

SAMPLE = 16  # prompts of `many` that exercise 01.1 is about
WANTED_SHARE = 0.8  # of the logit difference, in exercise 01.5


# --- what the checks measure ----------------------------------------------------------------------


def _many_logits(ctx: Context) -> Float[Tensor, "batch vocab"]:
    """Logits at END of every prompt of `many`."""
    return ctx.once("many logits", lambda: runs.logits_at(ctx.model, ctx.many, progress=False))


def _many_diffs(ctx: Context) -> Float[Tensor, " batch"]:
    return metrics.logit_diff(_many_logits(ctx), ctx.many, per_prompt=True).cpu()


def _best_head(ctx: Context) -> tuple[int, int]:
    """The head of largest attribution on the demo's prompts: `best` in the notebook."""
    return strongest(head_writes(ctx, "demo").mean(-1))


def _at(values: Tensor, positions: Tensor) -> Tensor:
    rows = torch.arange(len(values), device=values.device)
    return values[rows, positions.to(values.device)]


# --- 01.1 The logit difference of every prompt ----------------------------------------------------


@exercise("01.1")
def _logit_difference(ctx: Context) -> Key:
    sample: IOIDataset = ctx.many[:SAMPLE]
    logits = ctx.model(sample.tokens)
    end = sample.positions["END"]
    beyond = torch.full_like(end, sample.tokens.shape[1] - 1)
    after = (end + 1).minimum(beyond)

    def read(positions: Tensor, values: Tensor = logits) -> Tensor:
        return metrics.logit_diff(_at(values, positions), sample, per_prompt=True)

    return array(
        read(end),
        ("prompt",),
        absolute=1e-3,
        mistakes={
            "reading the last column of the tensor. The prompts differ in length and are padded "
            "on the right, so for most of them that is padding and not END": read(beyond),
            "reading one position before END": read(end - 1),
            "reading one position after END, where there is only padding": read(after),
            "reading the logits at S2, where nothing is asked yet": read(sample.positions["S2"]),
            "subtracting probabilities, not logits": read(end, logits.softmax(-1)),
            "taking IO's logit without S's": _at(_at(logits, end), sample.io_tokens),
        },
        right="Each prompt was read at its own END.",
    )


# --- 01.2 The hardest template --------------------------------------------------------------------


@exercise("01.2")
def _hardest_template(ctx: Context) -> Key:
    many: IOIDataset = ctx.many
    diffs, pairs, groups = _many_diffs(ctx), many.pair_ids.cpu(), many.groups("template")
    found = {
        t: metrics.mean_and_stderr(diffs[rows.cpu()], clusters=pairs[rows.cpu()])
        for t, rows in groups.items()
    }
    hardest, *others = sorted(found, key=lambda t: found[t].mean)
    probability = metrics.io_probability(_many_logits(ctx), many, per_prompt=True)
    row = int(diffs.argmin())

    def says(t: int) -> str:
        return f"{t} with {found[t].mean:.2f} (standard error {found[t].stderr:.2f})"

    def ties(t: int) -> bool:
        errors = math.hypot(found[t].stderr, found[hardest].stderr)
        return found[t].mean - found[hardest].mean <= 2 * errors

    return pick(
        hardest,
        lambda answer: _template_number(answer, many),
        also={
            f"Template {says(t)} is within two errors of the lowest, template {says(hardest)}.": t
            for t in others
            if ties(t)
        },
        mistakes={
            "taking the largest mean logit difference, that of the easiest template": others[-1],
            "taking the template of the hardest single prompt. One prompt is no template: take the "
            "mean over all prompts of each": int(many.template_ids[row]),
            "taking the number of the hardest prompt (a template's is in template_ids)": row,
            "taking the template on which IO's probability is lowest. How hard the task is shows "
            "in the logit difference between IO and S": min(
                groups, key=lambda t: float(probability[groups[t]].mean())
            ),
        },
        rules={
            f"Templates are numbered from 0 to {max(found)}.": lambda t: t not in found,
        },
        hint="On another template the mean is lower still.",
        right=f"It reads: {many.templates[hardest]!r}. The lowest means are those of template "
        f"{says(hardest)} and of template {says(others[0])}.",
    )


def _template_number(answer: Any, many: IOIDataset) -> int:
    """A template's number from its number or its text. Raises Refused for anything else."""
    if isinstance(answer, str) and not answer.strip().isdecimal():
        wanted = " ".join(answer.split())
        found = [i for i, text in enumerate(many.templates) if " ".join(text.split()) == wanted]
        if not found:
            raise Refused("No template reads like this; give its number in many.templates.")
        return found[0]
    return whole_number(
        answer, "Give the number of the template (a whole number), not its mean logit difference."
    )


# --- 01.3 Where the answer is half made -----------------------------------------------------------


@exercise("01.3")
def _half_made(ctx: Context) -> Key:
    lens = attribution.logit_lens(ctx.model, ctx.demo)
    labels, values = list(lens.labels), lens.values.tolist()
    half = values[-1] / 2
    below = [i for i, value in enumerate(values) if value <= half]
    truth = below[-1] + 1 if below else 0
    rises = [after - before for before, after in zip(values, values[1:])]

    def read(answer: Any) -> int:
        if not isinstance(answer, str):
            raise Refused(
                f"Give the label of a state as the figure writes it, such as {labels[1]!r}."
            )
        state = answer.strip().lower()
        # The stream after a block is the one before the next.
        if state.endswith("_post") and state[: -len("_post")].isdecimal():
            state = f"{int(state[: -len('_post')]) + 1}_pre"
        if state not in labels:
            raise Refused(
                f"{answer.strip()!r} is no state in the figure; labels look like {labels[0]!r}, "
                f"{labels[1]!r} and {labels[-1]!r}."
            )
        return labels.index(state)

    return pick(
        truth,
        read,
        mistakes={
            "taking the end of the model, where all of it is there": len(labels) - 1,
            "stopping one state too early, where it is not yet more than half": truth - 1,
            "taking the end of the largest single rise. The question is where the sum of all rises "
            "so far passes half": 1 + max(range(len(rises)), key=rises.__getitem__),
        },
        rules={
            "More than half is there at that state, but later it falls back below half: the "
            "question asks for the state from which on it stays above.": lambda i: (
                i < truth and values[i] > half
            ),
            "There it is above zero, but less than half of the final one.": lambda i: (
                i < truth and values[i] > 0
            ),
            "Too early: at that state less than half is there.": lambda i: i < truth,
            "Too late: it is above half at an earlier state already, and stays.": lambda _: True,
        },
        right="From there on it never falls back below half.",
    )


# --- 01.4 One head's attribution by hand ----------------------------------------------------------


@exercise("01.4")
def _head_by_hand(ctx: Context) -> Key:
    model, demo = ctx.model, ctx.demo
    layer, head = _best_head(ctx)
    writes = head_writes(ctx, "demo")
    truth = writes[layer, head]
    names = (f"blocks.{layer}.attn.hook_z", "ln_final.hook_scale", f"blocks.{layer}.hook_attn_out")
    _, cache = model.run_with_cache(demo.tokens, names_filter=lambda name: name in names)
    z, scale, whole = (cache[name] for name in names)
    outputs = z[:, :, head] @ model.W_O[layer, head]
    io, s = (model.W_U[:, t.to(model.W_U.device)].T for t in (demo.io_tokens, demo.s_tokens))
    end, s2 = demo.positions["END"], demo.positions["S2"]

    def by_hand(
        at: Tensor = end, along: Tensor = io - s, by: Any = None, of: Tensor = outputs
    ) -> Float[Tensor, " prompt"]:
        return (_at(of, at) / (_at(scale, at) if by is None else by) * along).sum(-1)

    return array(
        truth,
        ("prompt",),
        absolute=1e-4,
        mistakes={
            "leaving out the final LayerNorm. Divide by ln_final's scale at END": by_hand(by=1.0),
            "dividing by ln_final's scale at another position than END": by_hand(by=_at(scale, s2)),
            "dividing by the mean scale, not each prompt's": by_hand(by=_at(scale, end).mean()),
            "sending the head's own output through ln_final. LayerNorm divides by the size of the "
            "whole stream, of which it is one term": by_hand(by=1.0, of=model.ln_final(outputs)),
            "taking IO's logit alone, without S's": by_hand(along=io),
            "taking S's logit alone, not IO's minus S's": by_hand(along=s),
            "adding the directions of IO and S": by_hand(along=io + s),
            "reading the head at another position (S2) than END, where it acts directly": by_hand(
                s2
            ),
            "reading the head at another position than END, one early": by_hand(end - 1),
            "taking another head of the layer. Check the index into z and W_O": writes[
                layer, (head + 1) % model.cfg.n_heads
            ],
            "taking the output of the whole layer": by_hand(of=whole),
            "adding the layer's bias, which belongs to no head": by_hand(
                of=outputs + model.b_O[layer]
            ),
            "repeating the mean over the prompts": truth.mean().expand(len(demo)),
        },
        hint="Compare the four steps one by one with the cell that took the final residual stream.",
        right="The same four steps as for the whole residual stream, for one of its terms.",
    )


# --- 01.5 The smallest set of heads ---------------------------------------------------------------


@exercise("01.5")
def _smallest_set(ctx: Context) -> Key:
    by_head = head_writes(ctx, "many").mean(-1)
    shape = (by_head.shape[0], by_head.shape[1])
    values = by_head.flatten()
    total = float(_many_diffs(ctx).mean())
    goal = WANTED_SHARE * total
    ranking = values.argsort(descending=True).tolist()
    smallest = _how_many(values, goal)
    on_demo = head_writes(ctx, "demo").mean(-1).flatten()
    enough = _how_many(on_demo, WANTED_SHARE * float(clean(ctx, "demo").mean()))
    few_on_demo = on_demo.argsort(descending=True)[:enough].tolist()

    def read(answer: Any) -> frozenset[int]:
        return frozenset(layer * shape[1] + head for layer, head in Heads(shape).read(answer))

    def reached(chosen: frozenset[int]) -> float:
        return float(values[list(chosen)].sum())

    def are_strongest(chosen: frozenset[int]) -> bool:
        return chosen == set(ranking[: len(chosen)])

    def by_size(chosen: frozenset[int]) -> bool:
        ranked = values.abs().argsort(descending=True)[: len(chosen)].tolist()
        return chosen == set(ranked) and not are_strongest(chosen)

    def is_smallest(chosen: frozenset[int]) -> bool:
        return len(chosen) == smallest and (not chosen or reached(chosen) >= goal)

    return pick(
        is_smallest,
        read,
        says="These heads are",
        mistakes={
            "taking all heads of the model. Rank them and add up from the top: how many are "
            "needed, if the sum gets there at all?": frozenset(ranking),
            "going by the few prompts of `demo`. Average the attributions over `many`, and compare "
            "with 80 % of the mean logit difference there": frozenset(few_on_demo) or None,
        },
        rules={
            "There is such a set on this model; an empty list reaches nothing.": lambda heads: (
                not heads
            ),
            "They are those of largest absolute value, and some push towards S.": by_size,
            "Your set holds heads with negative attribution, which take away from the sum.": (
                lambda heads: bool((values[list(heads)] < 0).any())
            ),
            "They are the strongest, but too few: their sum is below 80 % of the model's mean "
            "logit difference (80 % of what all heads write is another number).": lambda heads: (
                smallest > 0 and are_strongest(heads) and reached(heads) < goal
            ),
            "Their sum is below 80 % of the mean logit difference. Rank the heads of the whole "
            "model by their mean over `many`, and see how far all positive ones together get.": (
                lambda heads: reached(heads) < goal
            ),
            "They reach it, but the set is too large: a smaller one does too. Perhaps you stopped "
            "a step late, or compared with all that heads write.": are_strongest,
        },
        hint="They reach it, but a smaller set does too: take stronger heads.",
        right=lambda chosen: (
            f"Together they write {reached(chosen):.2f} of {total:.2f} logits."
            if smallest
            else "No set of heads reaches it on this model: other parts write it."
        ),
    )


def _how_many(values: Float[Tensor, " head"], goal: float) -> int:
    """How many of the largest values add up to the goal; 0 where no number does."""
    enough = (values.sort(descending=True).values.cumsum(0) >= goal).nonzero()
    return int(enough[0]) + 1 if len(enough) else 0


# --- 01.6 Does it write what it looks at? ---------------------------------------------------------


@exercise("01.6")
def _looks_and_writes(ctx: Context) -> Key:
    best = _best_head(ctx)
    looks = heads.attention_by_role(ctx.model, ctx.many, keys=("IO", "S1"), per_prompt=True).cpu()
    writes = head_writes(ctx, "many")
    io_first = torch.tensor([order == "ABBA" for order in ctx.many.orders])
    sign = torch.where(io_first, 1.0, -1.0)
    first = torch.where(io_first, looks[..., 0, :], looks[..., 1, :])
    second = torch.where(io_first, looks[..., 1, :], looks[..., 0, :])
    x, y, to_io = first[best], sign * writes[best], looks[best][0]
    truth = correlation(x, y)
    return number(
        truth if math.isfinite(truth) else 0.0,
        absolute=2e-3,
        relative=0.0,
        # A correlation of nothing varies by one over the root of the number of pairs.
        error=len(ctx.many.pair_ids.unique()) ** -0.5,
        between=(
            -1 - 1e-6,
            1 + 1e-6,
            "A correlation lies between -1 and 1: divide by both standard deviations.",
        ),
        mistakes={
            "counting the attribution as IO minus S on every prompt. In BABA prompts the name that "
            "is mentioned first is S: there it counts with the other sign": correlation(
                x, writes[best]
            ),
            "taking the attention to IO on every prompt. In BABA prompts the name that is "
            "mentioned first is S": correlation(to_io, y),
            "asking about IO on every prompt, not about the first name": correlation(
                to_io, writes[best]
            ),
            "having the wrong name in front in one of the two, or the wrong sign. The first name "
            "is IO in ABBA prompts and S in BABA prompts": correlation(second[best], y),
            "correlating the means of all heads for the first name, not one head's prompts": (
                correlation(first.mean(-1).flatten(), (sign * writes).mean(-1).flatten())
            ),
            "correlating the means of all heads, not one head's prompts": correlation(
                looks[:, :, 0].mean(-1).flatten(), writes.mean(-1).flatten()
            ),
            "correlating ranks (Spearman's), not values": correlation(
                x.argsort().argsort(), y.argsort().argsort()
            ),
            "taking a covariance. Divide by both standard deviations": float(
                torch.cov(torch.stack([x, y]))[0, 1]
            ),
            "taking the logit difference of the whole model, not this head's part": correlation(
                x, sign * _many_diffs(ctx)
            ),
        },
        hint="Check, prompt by prompt, which name comes first.",
        right=_what_it_writes(truth, [correlation(x[of], y[of]) for of in (io_first, ~io_first)]),
    )


def _what_it_writes(value: float, within: list[float]) -> str:
    """What the correlation says, beside those within the ABBA and within the BABA prompts."""
    if not math.isfinite(value):
        return "On this model one of the two does not vary, so no correlation is defined."
    said = (
        f"Within ABBA prompts alone it is {within[0]:.2f}, within BABA prompts {within[1]:.2f}"
        if all(math.isfinite(each) for each in within)
        else "Within prompts of one order one of the two does not vary"
    )
    if abs(value) <= 0.8:
        return (
            "So this head's writing is only loosely tied to which of the two names it looks at. "
            f"{said}."
        )
    does = "it writes that name" if value > 0 else "it writes against that name"
    between = all(not abs(each) > 0.5 for each in within)
    end = ": the correlation is between the two kinds of prompts." if between else "."
    return f"On prompts where it looks at a name, {does}. {said}{end}"


# --- 01.7 Zero-ablate the strongest head ----------------------------------------------------------


@exercise("01.7")
def _without_the_head(ctx: Context) -> Key:
    model, demo = ctx.model, ctx.demo
    layer, head = _best_head(ctx)
    name = f"blocks.{layer}.attn.hook_z"
    before = clean(ctx, "demo")

    def drops(role: str | None = "END", which: Any = head, new: Any = 0.0) -> Tensor:
        return before - hooked(model, demo, {name: putting(new, demo, role, which)})

    def drop(role: str | None = "END", which: Any = head, new: Any = 0.0) -> float:
        return float(drops(role, which, new).mean())

    _, cache = model.run_with_cache(demo.tokens, names_filter=name)
    whole, fall = float(before.mean()), drop()
    predicted = float(head_writes(ctx, "demo")[layer, head].mean())
    return number(
        fall,
        absolute=2e-3,
        error=error(drops(), demo),
        unit="logits",
        mistakes={
            "reading the drop that direct logit attribution predicts. Run the model without the "
            "head and see": predicted,
            "taking the logit difference without the head, not its fall": whole - fall,
            "subtracting what attribution predicts, which says what would be left": (
                whole - predicted
            ),
            "zero-ablating the head at all positions, not at END only": drop(None),
            "zero-ablating all heads of the layer": drop(which=slice(None)),
            "zero-ablating the head at S2, not at END": drop("S2"),
            "zero-ablating another head of that layer": drop(which=(head + 1) % model.cfg.n_heads),
            "putting in the head's mean output at END, not zero": drop(
                new=cache[name].mean(0).expand_as(cache[name])
            ),
            "changing almost nothing. Does your hook return the changed z? Check the block, the "
            "position and the head index, too": 0.0,
            "taking the fall as a share of the logit difference, not in logits": fall / whole,
        },
        right=f"Attribution had predicted {predicted:.2f} logits.",
    )
