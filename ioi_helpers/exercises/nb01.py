"""Checks for notebook 01, direct logit attribution.

They expect `exercises.use(model=model, demo=demo, many=many)`: the eight prompts of the demo, which
have one length, and a few hundred generated ones, which have not. Every truth is recomputed on the
model at hand, and so is the value that each known mistake leads to there.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ioi_helpers import attribution, heads, metrics
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.exercises.registry import Context, exercise
from ioi_helpers.exercises.verdicts import (
    Refused,
    Verdict,
    as_array,
    as_heads,
    as_number,
    numeric,
    tensor_close,
)

SAMPLE = 16  # prompts of `many` that exercise 01.1 is about
BATCH = 50  # prompts run at once
WANTED_SHARE = 0.8  # of the logit difference, in exercise 01.5


# --- what the checks measure ----------------------------------------------------------------------


def _many_logits(ctx: Context) -> Float[Tensor, "batch vocab"]:
    """Logits at END of every prompt of `many`."""

    def compute() -> Tensor:
        parts = (ctx.many[i : i + BATCH] for i in range(0, len(ctx.many), BATCH))
        return torch.cat([part.gather(ctx.model(part.tokens), "END") for part in parts])

    return ctx.once("many logits", compute)


def _demo_heads(ctx: Context) -> Float[Tensor, "layer head batch"]:
    return ctx.once(
        "demo heads",
        lambda: attribution.head_attribution(ctx.model, ctx.demo, per_prompt=True),
    )


def _many_heads(ctx: Context) -> Float[Tensor, "layer head batch"]:
    return ctx.once(
        "many heads",
        lambda: attribution.head_attribution(ctx.model, ctx.many, per_prompt=True),
    )


def _demo_logit_diff(ctx: Context) -> float:
    return ctx.once(
        "demo logit difference",
        lambda: float(metrics.logit_diff(ctx.model(ctx.demo.tokens), ctx.demo)),
    )


def _best_head(ctx: Context) -> tuple[int, int]:
    """The head of largest attribution on the demo's prompts: `best` in the notebook."""
    return _strongest(_demo_heads(ctx).mean(-1))


def _strongest(values: Float[Tensor, "layer head"]) -> tuple[int, int]:
    return divmod(int(values.argmax()), values.shape[1])


def _one_axis(answer: Any) -> Any:
    """The answer without axes of size one, as `keepdim=True` leaves them; else as it was."""
    try:
        given = as_array(answer)
    except Refused:
        return answer  # text, a stub, or something else that the check itself refuses
    flat = given.squeeze()
    return flat if given.ndim > 1 and flat.ndim == 1 else answer


def _at(data: IOIDataset, values: Tensor, positions: Tensor) -> Tensor:
    rows = torch.arange(len(data), device=values.device)
    return values[rows, positions.to(values.device)]


# --- 01.1 -----------------------------------------------------------------------------------------


@exercise("01.1", title="The logit difference of every prompt", difficulty="warm-up", minutes=5)
def _logit_difference(answer: Any, ctx: Context) -> Verdict:
    sample: IOIDataset = ctx.many[:SAMPLE]
    logits = ctx.once("sample logits", lambda: ctx.model(sample.tokens))
    end = sample.positions["END"]

    def read(values: Tensor, positions: Tensor) -> Tensor:
        return metrics.logit_diff(_at(sample, values, positions), sample, per_prompt=True)

    last_column = torch.full_like(end, sample.tokens.shape[1] - 1)
    return tensor_close(
        _one_axis(answer),
        read(logits, end),
        axes=("prompt",),
        absolute=1e-3,
        mistakes={
            "You read the last column of the tensor. The prompts differ in length and are padded "
            "on the right, so for most of them that is padding and not END.": lambda: read(
                logits, last_column
            ),
            "You read one position before END; the answer is predicted at END itself.": lambda: (
                read(logits, end - 1)
            ),
            "You read one position after END, where there is only padding (or nothing).": lambda: (
                read(logits, (end + 1).clamp(max=int(last_column[0])))
            ),
            "You read the logits at S2; the answer is predicted at END.": lambda: read(
                logits, sample.positions["S2"]
            ),
            "This is a difference of probabilities. Take the difference of the logits (or of "
            "the log-probabilities, which is the same).": lambda: read(logits.softmax(-1), end),
            "This is IO's logit alone: take S's logit away from it.": lambda: _at(
                sample, logits, end
            ).gather(1, sample.io_tokens.to(logits.device)[:, None])[:, 0],
        },
        right="Each prompt was read at its own END.",
    )


# --- 01.2 -----------------------------------------------------------------------------------------


@exercise("01.2", title="The hardest template", difficulty="easy", minutes=10)
def _hardest_template(answer: Any, ctx: Context) -> Verdict:
    many: IOIDataset = ctx.many
    groups = many.groups("template")
    diffs = metrics.logit_diff(_many_logits(ctx), many, per_prompt=True)
    by_template = {t: float(diffs[rows].mean()) for t, rows in groups.items()}
    hardest = min(by_template, key=by_template.__getitem__)
    chosen = _template_number(answer, many)
    if chosen == hardest:
        return Verdict(
            True, f"It reads: {many.templates[hardest]!r}. {_two_lowest(diffs, many, by_template)}"
        )
    if chosen == max(by_template, key=by_template.__getitem__):
        return Verdict(
            False,
            "That is the easiest template, the one with the largest mean logit difference.",
        )
    row = int(diffs.argmin())
    if chosen == int(many.template_ids[row]):
        return Verdict(
            False,
            "That is the template of the hardest single prompt. One prompt is no template: take "
            "the mean over all prompts of each.",
        )
    if chosen not in by_template:
        if chosen == row:
            return Verdict(
                False, "That is the number of the hardest prompt, not of a template (template_ids)."
            )
        return Verdict(False, f"Templates are numbered from 0 to {len(many.templates) - 1}.")
    probability = metrics.io_probability(_many_logits(ctx), many, per_prompt=True)
    least = min(groups, key=lambda t: float(probability[groups[t]].mean()))
    if chosen == least:
        return Verdict(
            False,
            "On that template IO's probability is lowest, but how hard the task is shows in the "
            "logit difference between IO and S.",
        )
    harder = sum(value < by_template[chosen] for value in by_template.values())
    return Verdict(False, f"On {harder} of the other templates the mean is lower still.")


def _two_lowest(
    diffs: Float[Tensor, " batch"], many: IOIDataset, by_template: dict[int, float]
) -> str:
    """The lowest mean and the runner-up's, each with its standard error over pairs of prompts."""
    groups = many.groups("template")
    first, second = sorted(by_template, key=by_template.__getitem__)[:2]
    lowest, runner_up = (
        metrics.mean_and_stderr(diffs[groups[t]], clusters=many.pair_ids[groups[t]])
        for t in (first, second)
    )
    return (
        f"Its mean is {lowest.mean:.2f} (standard error {lowest.stderr:.2f}); the runner-up is "
        f"template {second} with {runner_up.mean:.2f} ({runner_up.stderr:.2f})."
    )


def _template_number(answer: Any, many: IOIDataset) -> int:
    """A template's number from its number or its text. Raises Refused for anything else."""
    if isinstance(answer, (list, tuple)) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, str) and answer.strip().isdecimal():
        answer = int(answer)
    if isinstance(answer, str):
        wanted = " ".join(answer.split())
        found = [i for i, text in enumerate(many.templates) if " ".join(text.split()) == wanted]
        if not found:
            raise Refused("No template reads like this; give its number in many.templates.")
        return found[0]
    value = as_number(answer)
    if value != int(value):
        raise Refused(
            "Give the number of the template (a whole number), not its mean logit difference."
        )
    return int(value)


# --- 01.3 -----------------------------------------------------------------------------------------


@exercise("01.3", title="Where the answer is half made", difficulty="easy", minutes=10)
def _half_made(answer: Any, ctx: Context) -> Verdict:
    lens = ctx.once("lens", lambda: attribution.logit_lens(ctx.model, ctx.demo))
    labels, values = list(lens.labels), lens.values.tolist()
    if not isinstance(answer, str):
        raise Refused(
            f"Give the label of a state as the figure writes it, such as {labels[1]!r}, not "
            f"{'a number' if isinstance(answer, (int, float, Tensor)) else 'something else'}."
        )
    chosen = answer.strip()
    if chosen not in labels:
        raise Refused(
            f"{chosen!r} is no state of the residual stream; labels look like {labels[0]!r}, "
            f"{labels[1]!r} and {labels[-1]!r}."
        )
    half = values[-1] / 2
    below = [i for i, value in enumerate(values) if value <= half]
    truth = below[-1] + 1 if below else 0
    place = labels.index(chosen)
    if place == truth:
        return Verdict(True, "From there on it never falls back below half.")
    steps = [after - before for before, after in zip(values, values[1:])]
    if values[place] > half and place < truth:
        return Verdict(
            False,
            "More than half is there at that state, but later it falls back below half: the "
            "question asks for the state from which on it stays above.",
        )
    if place == len(labels) - 1:
        return Verdict(False, "That is the end of the model, where all of it is there. Look back.")
    if place == truth - 1:
        return Verdict(False, "One state too early: there it is not yet more than half.")
    if steps and place == 1 + max(range(len(steps)), key=steps.__getitem__):
        return Verdict(
            False,
            "That is where the largest single rise ends. The question is where the sum of all "
            "rises so far passes half.",
        )
    if place < truth and values[place] > 0:
        return Verdict(
            False,
            "There the logit difference is above zero, but it is less than half of the final one.",
        )
    if place < truth:
        return Verdict(False, "Too early: at that state less than half is there.")
    return Verdict(False, "Too late: it is above half at an earlier state already, and stays.")


# --- 01.4 -----------------------------------------------------------------------------------------


@exercise("01.4", title="One head's attribution by hand", difficulty="medium", minutes=15)
def _head_by_hand(answer: Any, ctx: Context) -> Verdict:
    model, demo = ctx.model, ctx.demo
    layer, head = _best_head(ctx)
    truth = _demo_heads(ctx)[layer, head]
    rows = torch.arange(len(demo))

    def cached() -> tuple[Tensor, Tensor]:
        names = (f"blocks.{layer}.attn.hook_z", "ln_final.hook_scale")
        _, cache = model.run_with_cache(demo.tokens, names_filter=lambda name: name in names)
        outputs = cache[names[0]][:, :, head] @ model.blocks[layer].attn.W_O[head]
        return outputs, cache[names[1]]

    def by_hand(role: str = "END", name: str = "both", scaled: bool = True) -> Tensor:
        outputs, scale = ctx.once("best head's outputs", cached)
        output, size = (_at(demo, t, demo.positions[role]) for t in (outputs, scale))
        io, s = (model.W_U[:, t.to(model.W_U.device)].T for t in (demo.io_tokens, demo.s_tokens))
        direction = {"both": io - s, "IO": io, "S": s, "sum": io + s}[name]
        return (output / size * direction).sum(-1) if scaled else (output * direction).sum(-1)

    def one_early() -> Tensor:
        outputs, scale = ctx.once("best head's outputs", cached)
        early = demo.positions["END"] - 1
        directions = attribution.logit_diff_directions(model, demo)
        return (_at(demo, outputs, early) / _at(demo, scale, early) * directions).sum(-1)

    def another_head() -> Tensor:
        return _demo_heads(ctx)[layer, (head + 1) % model.cfg.n_heads]

    one_number = _one_number(answer)
    if one_number is not None:
        total, mean = float(truth.sum()), float(truth.mean())
        margin = 0.01 * abs(mean)
        if abs(one_number - total) <= margin:
            return Verdict(False, "This is the sum over the prompts; give one number a prompt.")
        if abs(one_number - mean) <= margin:
            return Verdict(
                False, "This is the mean over the prompts; give one number a prompt, as a tensor."
            )
    return tensor_close(
        _one_axis(answer),
        truth,
        axes=("prompt",),
        absolute=1e-4,
        mistakes={
            "The final LayerNorm is missing: divide the head's output by ln_final's scale at END."
            "": lambda: by_hand(scaled=False),
            "The output was divided by the scale at another position; take ln_final's scale at "
            "END.": lambda: (
                _at(demo, ctx.once("best head's outputs", cached)[0], demo.positions["END"])
                / _at(demo, ctx.once("best head's outputs", cached)[1], demo.positions["S2"])
                * attribution.logit_diff_directions(model, demo)
            ).sum(-1),
            "This is what the head adds to IO's logit alone: use the direction of IO minus S."
            "": lambda: by_hand(name="IO"),
            "This is what the head adds to S's logit alone: use the direction of IO minus S."
            "": lambda: by_hand(name="S"),
            "Here the directions of IO and S were added: subtract S's.": lambda: by_hand(
                name="sum"
            ),
            "You read the head at another position: its direct effect on the answer is what it "
            "writes at END.": lambda: by_hand(role="S2"),
            "You read the head one position early: its direct effect on the answer is what it "
            "writes at END, not at another position.": one_early,
            "This is another head of the same layer: check the index into z and W_O.": another_head,
            "This is the mean over the prompts, repeated.": lambda: truth.mean().expand(len(rows)),
        },
        hint="Compare the four steps one by one with the cell that took the final residual stream.",
        right="The same four steps as for the whole residual stream, for one of its terms.",
    )


def _one_number(answer: Any) -> float | None:
    try:
        return as_number(answer)
    except Refused:
        return None


# --- 01.5 -----------------------------------------------------------------------------------------


@exercise("01.5", title="The smallest set of heads", difficulty="medium", minutes=15)
def _smallest_set(answer: Any, ctx: Context) -> Verdict:
    values = _many_heads(ctx).mean(-1)
    layers, n_heads = values.shape
    total = float(metrics.logit_diff(_many_logits(ctx), ctx.many))
    goal = WANTED_SHARE * total
    ranking = values.flatten().argsort(descending=True)
    running = values.flatten()[ranking].cumsum(0)
    enough = (running >= goal).nonzero()
    smallest = int(enough[0]) + 1 if len(enough) else 0

    given = as_heads(answer)
    absent = [h for h in given if not (0 <= h[0] < layers and 0 <= h[1] < n_heads)]
    if absent:
        return Verdict(
            False,
            f"There is no L{absent[0][0]}H{absent[0][1]} in this model: it has {layers} layers of "
            f"{n_heads} heads, counted from 0.",
        )
    if not smallest and not given:
        return Verdict(True, "No set of heads reaches it on this model: other parts write it.")
    if not given:
        return Verdict(False, "There is such a set on this model; an empty list reaches nothing.")
    chosen = {layer * n_heads + head for layer, head in given}
    reached = float(values.flatten()[list(chosen)].sum())
    if reached >= goal and len(chosen) == smallest:
        return Verdict(True, f"Together they write {reached:.2f} of {total:.2f} logits.")
    if len(chosen) == layers * n_heads:
        return Verdict(
            False,
            "These are all heads of the model. Rank them and add up from the top: how many are "
            "needed, if the sum gets there at all?",
        )
    best = set(ranking[: len(chosen)].tolist())
    if chosen != best and chosen == _few_on_demo(ctx):
        return Verdict(
            False,
            "This is the set for the few prompts of `demo`. Average the attributions over `many`, "
            "and compare with 80 % of the mean logit difference on `many`.",
        )
    negative = [i for i in chosen if values.flatten()[i] < 0]
    by_size = values.flatten().abs().argsort(descending=True)[: len(chosen)].tolist()
    if negative and chosen == set(by_size):
        return Verdict(
            False,
            "You ranked the heads by absolute value: your set holds heads that push towards S.",
        )
    if negative:
        return Verdict(
            False,
            f"Your set holds {len(negative)} head(s) with negative attribution, which take away "
            "from the sum.",
        )
    if reached < goal and chosen == best and smallest:
        return Verdict(
            False,
            "These are the strongest heads, but too few: their sum is below 80 % of the model's "
            "mean logit difference (80 % of what all heads write is another number).",
        )
    if reached < goal:
        return Verdict(
            False,
            "Their sum is below 80 % of the mean logit difference. Rank the heads of the whole "
            "model by their mean over `many`, and see how far all positive ones together get.",
        )
    if chosen == best:
        return Verdict(
            False,
            "They reach it, but the set is too large: a smaller one does too. Perhaps you stopped "
            "a step late, or compared with all that heads write instead of the logit difference.",
        )
    return Verdict(False, "They reach it, but a smaller set does too: take stronger heads.")


def _few_on_demo(ctx: Context) -> set[int]:
    """The answer that the eight prompts of the demo would give, as places in the flat map."""
    values = _demo_heads(ctx).mean(-1).flatten()
    ranking = values.argsort(descending=True)
    enough = (values[ranking].cumsum(0) >= WANTED_SHARE * _demo_logit_diff(ctx)).nonzero()
    return set(ranking[: int(enough[0]) + 1].tolist()) if len(enough) else set()


# --- 01.6 -----------------------------------------------------------------------------------------


@exercise("01.6", title="Does it write what it looks at?", difficulty="medium", minutes=15)
def _looks_and_writes(answer: Any, ctx: Context) -> Verdict:
    layer, head = _best_head(ctx)
    attention = ctx.once(
        "many attention",
        lambda: heads.attention_by_role(
            ctx.model, ctx.many, keys=("IO", "S1"), per_prompt=True
        ).cpu(),
    )
    direct = ctx.once("many heads on cpu", lambda: _many_heads(ctx).cpu())
    io_first = torch.tensor([order == "ABBA" for order in ctx.many.orders])
    sign = torch.where(io_first, 1.0, -1.0)

    def first(at: Tensor) -> Tensor:
        return torch.where(io_first, at[..., 0, :], at[..., 1, :])

    to_io, to_s1 = attention[layer, head]
    x, y = first(attention[layer, head]), sign * direct[layer, head]
    truth = _correlation(x, y)
    if not math.isfinite(truth):
        return Verdict(
            False, "On this model one of the two does not vary, so their correlation is undefined."
        )
    given = as_number(answer)
    if abs(given) > 1 + 1e-6:
        return Verdict(
            False, "A correlation lies between -1 and 1: divide by both standard deviations."
        )
    not_first = (
        "In one of the two you have the wrong name in front: both are about the name that is "
        "mentioned first, IO in ABBA prompts and S in BABA prompts. Look at the sign, too."
    )
    return numeric(
        given,
        truth,
        absolute=2e-3,
        relative=0.0,
        mistakes={
            "The attribution is still IO minus S on every prompt. In BABA prompts the name that is "
            "mentioned first is S, so there it counts with the other sign.": lambda: _correlation(
                x, direct[layer, head]
            ),
            "The attention is to IO on every prompt. In BABA prompts the name that is mentioned "
            "first is S.": lambda: _correlation(to_io, y),
            "This is about IO on every prompt, not about the name that is mentioned first."
            "": lambda: _correlation(to_io, direct[layer, head]),
            not_first: lambda: _correlation(torch.where(io_first, to_s1, to_io), y),
            "This is the correlation over heads, of their means. Take one head and correlate over "
            "prompts.": lambda: _correlation(
                first(attention).mean(-1).flatten(), (sign * direct).mean(-1).flatten()
            ),
            "This, too, is a correlation over heads. Take one head and correlate over prompts."
            "": lambda: _correlation(
                attention[:, :, 0].mean(-1).flatten(), direct.mean(-1).flatten()
            ),
            "This is a correlation of ranks (Spearman's); take Pearson's, of the values.": lambda: (
                _correlation(_ranks(x), _ranks(y))
            ),
            "This is a covariance: divide by both standard deviations.": lambda: float(
                torch.cov(torch.stack([x, y]))[0, 1]
            ),
            "You used the logit difference of the whole model instead of this head's part in it."
            "": lambda: _correlation(
                x,
                sign * metrics.logit_diff(_many_logits(ctx), ctx.many, per_prompt=True).cpu(),
            ),
        },
        hint="Check, prompt by prompt, which name comes first.",
        right=_what_it_writes(truth, [_correlation(x[of], y[of]) for of in (io_first, ~io_first)]),
    )


def _what_it_writes(correlation: float, within: list[float]) -> str:
    """What the correlation says, beside those within the ABBA and within the BABA prompts."""
    said = (
        f"Within ABBA prompts alone it is {within[0]:.2f}, within BABA prompts {within[1]:.2f}"
        if all(math.isfinite(value) for value in within)
        else "Within prompts of one order one of the two does not vary"
    )
    if abs(correlation) <= 0.8:
        return (
            "So this head's writing is only loosely tied to which of the two names it looks at. "
            f"{said}."
        )
    does = "it writes that name" if correlation > 0 else "it writes against that name"
    between = all(not abs(value) > 0.5 for value in within)
    end = ": the correlation is between the two kinds of prompts." if between else "."
    return f"On prompts where it looks at a name, {does}. {said}{end}"


def _correlation(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> float:
    return float(torch.corrcoef(torch.stack([x.double(), y.double()]))[0, 1])


def _ranks(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    return values.argsort().argsort().double()


# --- 01.7 -----------------------------------------------------------------------------------------


@exercise("01.7", title="Silence the strongest head", difficulty="hard", minutes=20)
def _silence(answer: Any, ctx: Context) -> Verdict:
    model, demo = ctx.model, ctx.demo
    layer, head = _best_head(ctx)

    def silenced(role: str | None = "END", only_head: int | None = head) -> float:
        def zero(z: Float[Tensor, "batch pos head d_head"], hook: Any) -> Tensor:
            z = z.clone()
            rows = torch.arange(len(z), device=z.device)
            positions = slice(None) if role is None else demo.positions[role].to(z.device)
            if only_head is None:
                z[rows, positions] = 0.0
            elif role is None:
                z[:, :, only_head] = 0.0
            else:
                z[rows, positions, only_head] = 0.0
            return z

        logits = model.run_with_hooks(
            demo.tokens, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", zero)]
        )
        return float(metrics.logit_diff(logits, demo))

    clean = _demo_logit_diff(ctx)
    after = ctx.once("silenced", silenced)
    margin = max(2e-3, 0.01 * abs(clean - after))

    def drop_of(**changed: Any) -> float:
        """The drop that a mistake leads to; NaN, which no answer equals, where it is about zero."""
        drop = clean - silenced(**changed)
        return drop if abs(drop) > 2 * margin else math.nan

    predicted = float(_demo_heads(ctx)[layer, head].mean())
    return numeric(
        answer,
        clean - after,
        relative=0.01,
        absolute=2e-3,
        unit="logits",
        mistakes={
            "This is the drop that direct logit attribution predicts. The question is what "
            "happens when the model runs without the head.": predicted,
            "This is the logit difference without the head. The question is by how much it fell."
            "": after,
            "This is what attribution says would be left. Run the model and see.": lambda: (
                clean - predicted
            ),
            "You silenced the head at all positions; only its output at END is to be zero."
            "": lambda: drop_of(role=None),
            "You silenced all heads of the layer; only one is to be zero.": lambda: drop_of(
                only_head=None
            ),
            "You silenced the head at S2 instead of END.": lambda: drop_of(role="S2"),
            "You silenced another head of that layer.": lambda: drop_of(
                only_head=(head + 1) % model.cfg.n_heads
            ),
            "Almost nothing has changed: does your hook return the changed z? Check the block, the "
            "position and the head index, too.": 0.0,
            "This is the fall as a share of the logit difference; give it in logits.": lambda: (
                (clean - after) / clean
            ),
        },
        right=f"Attribution had predicted {predicted:.2f} logits.",
    )
