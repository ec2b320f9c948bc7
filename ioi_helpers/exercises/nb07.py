"""Keys to the exercises of notebook 07, LRQP.

The exercises on toy data expect `toy=(probe, covariance, start, log_alpha)` and
`trio=(probe, covariance, starts, log_alpha)`, the others `model`, `train`, `test` (prompts with
orders) and `point`, the point at S2 that the notebook chose; 07.4 is given its `movers` too.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ioi_helpers import lrqp, metrics, probing, runs
from ioi_helpers.edits import attention_edit, edited, residual_edit
from ioi_helpers.exercises.measure import (
    clean,
    counterfactual,
    error,
    hooked,
    normal,
    opposites,
    place,
    putting,
)
from ioi_helpers.exercises.registry import Context, exercise
from ioi_helpers.exercises.verdicts import Key, array, number

LOG_ALPHA = 10.0  # nats, in exercise 07.2
SHARE = (0.0, 1.0, "A share lies between 0 and 1: divide by the number of prompts.")


# --- 07.1 What a move costs -----------------------------------------------------------------------


@exercise("07.1")
def _what_a_move_costs(ctx: Context) -> Key:
    probe, covariance, start, log_alpha = ctx.toy
    a, bias = normal(probe, probe.classes.index("B"))
    sigma = covariance.matrix
    lacks = log_alpha - bias - a @ start
    spread = (a @ sigma @ a).sqrt()
    # What the covariance was before it was shrunk, which leaves its trace as it is.
    flat = covariance.shrinkage * covariance.total_variance / len(a)
    counted = ((spread.square() - flat * (a @ a)) / (1 - covariance.shrinkage)).sqrt()
    unbiased = counted * math.sqrt(covariance.n / (covariance.n - 1))
    return number(
        lacks / spread,
        relative=1e-3,
        unit="standard deviations",
        mistakes={
            "taking the cost, which is the square of the length": (lacks / spread) ** 2,
            "dividing by a' Sigma a. The standard deviation of a.x is its root": lacks / spread**2,
            "leaving out the biases. The log odds are a.x plus their difference": (
                (log_alpha - a @ start) / spread
            ),
            "reaching the decision boundary only, where log alpha is missing": (-bias - a @ start)
            / spread,
            "taking what the log odds lack, in nats. Divide by the standard deviation of a.x to "
            "get the length of the move": lacks,
            "taking the Euclidean length of the shortest straight move, along a. The cost is "
            "measured with the covariance": lacks / a.norm(),
            "taking the Euclidean length of the move, not its length in standard deviations": (
                (sigma @ a).norm() * lacks / spread**2
            ),
            "taking the length of the straight move, along a. The cheapest one goes along Sigma a"
            "": covariance.length(a[None])[0] * lacks / (a @ a),
            "dividing by the standard deviation of a.x as counted over the points. Use the "
            "notebook's Sigma, which is shrunk a little": lacks / unbiased,
            "dividing by the standard deviation of a.x (with 1/n) as counted over the points. Use "
            "the notebook's Sigma, which is shrunk a little": lacks / counted,
        },
        hint="Divide what the log odds lack at the start by the root of a' Sigma a.",
        right="What is lacking, in units of how much it varies.",
    )


# --- 07.2 The closed form by hand -----------------------------------------------------------------


@exercise("07.2")
def _closed_form(ctx: Context) -> Key:
    at, targets = place(ctx, ctx.point), opposites(ctx.test.orders)
    codes = at.probe.codes(targets, len(at.x0)).to(at.probe.weights.device)
    a = at.probe.weights[codes] - at.probe.weights[1 - codes]
    offset = at.probe.bias[codes] - at.probe.bias[1 - codes]
    x0 = at.x0.to(a)
    flat = torch.eye(x0.shape[1], dtype=torch.float64)
    # An n by n matrix is never inverted: the whitener is there.
    inverse = at.covariance.whitener.T @ at.covariance.whitener

    def solved(
        goal: list[str] = targets, sigma: Any = at.covariance, log_alpha: float = LOG_ALPHA
    ) -> Tensor:
        return lrqp.intervene(at.x0, at.probe, goal, sigma, log_alpha=log_alpha).x

    def by_hand(
        slope: Tensor = a @ at.covariance.matrix, bias: Any = offset, power: float = 1.0
    ) -> Tensor:
        size = (slope * a).sum(-1)
        lacks = (LOG_ALPHA - bias - (a * x0).sum(-1)).clamp_min(0)
        return x0 + slope * (lacks / size**power)[:, None]

    truth = solved()
    right_odds = (
        "another covariance; the log odds are right but the way is not the cheapest. Use the "
        "notebook's `covariance`"
    )
    return array(
        truth,
        ("prompt", "d_model"),
        relative=1e-4,
        mistakes={
            "moving along a, not along Sigma a": solved(sigma=flat),
            "giving each prompt the order that it has already (the control), not the other one": (
                solved(list(ctx.test.orders))
            ),
            "taking the default alpha, not log alpha = 10 on every prompt": counterfactual(
                ctx, ctx.point
            ),
            "putting in alpha = 10. The task asks for *log* alpha = 10": solved(
                log_alpha=math.log(LOG_ALPHA)
            ),
            "sending every prompt to the same class. Each has its own target: the sign of a "
            "depends on the prompt": solved([at.probe.classes[1]] * len(targets)),
            "multiplying a by the inverse of Sigma. The cheapest move is along Sigma a: it goes "
            "where activations vary": by_hand(a @ inverse),
            "leaving out the biases. The log odds are a.x plus their difference": by_hand(bias=0.0),
            "turning the sign of the move, which has to raise the target's log odds": 2 * x0
            - by_hand(),
            "dividing by the root of a' Sigma a. It is divided by itself, not by its root": by_hand(
                power=0.5
            ),
            "taking the moves alone; add the activations x0": truth - x0.to(truth),
            "leaving the activations as they were": x0,
            f"taking {right_odds}, of all training activations, not the one within classes": solved(
                sigma=probing.fit_covariance(at.x, ctx.train.orders)
            ),
            f"taking {right_odds}, of the training activations, not of those of `test`": solved(
                sigma=probing.fit_covariance(at.x0)
            ),
        },
        hint="Check one prompt first: does the probe's log odds for the target come out as 10? If "
        "it does, is the move along Sigma a, with the notebook's `covariance`?",
        right="One line of algebra, as good as any solver.",
    )


# --- 07.3 The hook by hand ------------------------------------------------------------------------


@exercise("07.3")
def _hook_by_hand(ctx: Context) -> Key:
    model, test = ctx.model, ctx.test
    block, _ = runs.parse_point(ctx.point)
    point = f"L{block}.pre"
    new = counterfactual(ctx, point)

    def each(
        point: str = point, role: str | Tensor = "S2", values: Tensor = new
    ) -> Float[Tensor, " prompt"]:
        return runs.logit_diffs(model, test, [residual_edit(test, role, point, values)])

    spread = new[:, None].expand(-1, test.tokens.shape[1], -1).float().to(test.tokens.device)
    fill = putting(spread, test, None)
    with edited(model, residual_edit(test, "S2", point, new)):
        last = metrics.logit_diff(model(test.tokens)[:, -1], test)
    s2 = test.positions["S2"]
    untouched, values = float(clean(ctx, "test").mean()), each()
    truth = float(values.mean())
    at = place(ctx, point)
    same = lrqp.intervene(
        at.x0, at.probe, test.orders, at.covariance, true=test.orders
    ).x  # the control
    control = float(each(values=same).mean())

    def every_s2(value: Tensor) -> Tensor:
        value = value.clone()
        value[:, s2] = new.to(value)
        return value

    right = "Four lines of TransformerLens; the helper does the same."
    if abs(control / untouched - 1) > 0.1:
        right += (
            f" (Before this block the control does harm too: it leaves {control:.2f} of "
            f"{untouched:.2f} logits. What is measured here is damage, and no belief.)"
        )
    return number(
        truth,
        relative=2e-3,
        absolute=2e-3,
        error=error(values, test),
        unit="logits",
        mistakes={
            "running the model with a hook that changed nothing. Does it return the new stream, "
            "and is it at the right block?": untouched,
            "replacing the stream at END. The belief stands at S2": each(role="END").mean(),
            "replacing the stream at S1, where the name stands first. The belief stands at S2": (
                each(role="S1").mean()
            ),
            "replacing the stream at every position, not at S2 only": hooked(
                model, test, {f"blocks.{block}.hook_resid_pre": fill}
            ).mean(),
            "taking the first prompt's S2 for all of them. It stands elsewhere in each prompt": (
                each(role=torch.full_like(s2, int(s2[0]))).mean()
            ),
            "editing *after* the block. At hook_resid_post its attention has already read the old "
            "stream": each(f"L{block}.post").mean(),
            "reading the last column of the logits, which is padding in most rows; read END": last,
            "putting in each prompt's activation as it was": each(
                values=place(ctx, point).x0
            ).mean(),
            "taking the change from the clean run, not the mean logit difference itself": truth
            - untouched,
            "taking the change from the clean run with its sign turned, not the mean logit "
            "difference itself": untouched - truth,
            "taking torch's median over the prompts, the lower of the middle two, not the mean": (
                values.median()
            ),
            "writing to `stream[:, s2]`, which is every prompt's S2 in each row. Index the rows as "
            "well: `stream[rows, s2]`": hooked(
                model, test, {f"blocks.{block}.hook_resid_pre": every_s2}
            ).mean(),
            "taking the share that prefers S, not the mean logit difference": (values < 0)
            .double()
            .mean(),
            "taking the median over the prompts, not the mean": values.double().quantile(0.5),
            "taking the sum over the prompts, not the mean": values.sum(),
        },
        hint="Check the hook's name, the positions, and that `new` replaces what is there.",
        right=right,
    )


# --- 07.4 The answer moved by attention alone -----------------------------------------------------


@exercise("07.4")
def _by_attention_alone(ctx: Context) -> Key:
    model, test = ctx.model, ctx.test
    injected = residual_edit(test, "S2", ctx.point, counterfactual(ctx, ctx.point))

    before = runs.logit_diffs(model, test)

    def share(edits: list[Any]) -> float:
        after = runs.logit_diffs(model, test, edits)
        return float(((before > 0) & (after < 0)).double().mean())

    def patterns(edits: list[Any]) -> list[Any]:
        found = runs.attention_patterns(model, test, list(ctx.movers), "END", edits)
        return [attention_edit(test, "END", head, pattern) for head, pattern in found.items()]

    truth, whole = share(patterns([injected])), share([injected])
    prefers_s = runs.logit_diffs(model, test, patterns([injected])) < 0
    right = "Nothing in the stream at S2 was touched in this run."
    if whole <= 1 / len(test):
        right += (
            f" On this model the edit at S2 itself flips {whole:.2f} of the answers: there is "
            "nothing that attention could carry, and this exercise cannot tell right from wrong."
        )
    return number(
        truth,
        absolute=1e-3,
        relative=1e-3,
        between=SHARE,
        mistakes={
            "leaving the belief injected, with nothing done to attention": whole,
            "counting all prompts on which S is preferred. An answer flips if the clean run has it "
            "right": prefers_s.double().mean(),
            "leaving the belief injected and restoring the clean attention. Here it is the other "
            "way round: a clean stream, and the injected run's attention": share(
                [injected, *patterns([])]
            ),
            "leaving the belief injected *and* putting its attention in, or the attention of more "
            "heads. Leave the stream at S2 clean and take the name movers only": share(
                [injected, *patterns([injected])]
            ),
            "taking the share of answers that do not flip": 1 - truth,
            "putting in the clean run's own patterns, which change nothing. Were they read with "
            "the edit on, put in at END, and for all of `movers`?": share(patterns([])),
        },
        hint="Read the patterns with the edit on, and run the model with the patterns alone.",
        right=right,
    )


# --- 07.5 Three classes without a solver ----------------------------------------------------------


@exercise("07.5")
def _three_classes(ctx: Context) -> Key:
    probe, covariance, starts, log_alpha = ctx.trio
    target = probe.classes.index("C")
    others = [code for code in range(3) if code != target]
    a = probe.weights[target] - probe.weights[others]
    offset = probe.bias[target] - probe.bias[others]
    sigma = covariance.matrix
    gram, sizes = a @ sigma @ a.T, (a @ sigma * a).sum(-1)
    lacks = log_alpha - offset - starts @ a.T
    alone = lacks.clamp_min(0) / sizes
    together = torch.linalg.solve(gram, lacks.T).T
    worst = (lacks / sizes.sqrt()).argmax(-1, keepdim=True)
    flat = torch.eye(2, dtype=torch.float64)

    def ends(mu: Float[Tensor, "start constraint"]) -> Float[Tensor, "start coordinate"]:
        return starts + mu @ a @ sigma

    def one_after_the_other(first: int) -> Float[Tensor, "start coordinate"]:
        x = starts
        for one in (first, 1 - first):
            short = (log_alpha - offset[one] - x @ a[one]).clamp_min(0)
            x = x + (short / sizes[one])[:, None] * (sigma @ a[one])
        return x

    def exact(
        matrix: Any = covariance, wanted: float | None = log_alpha, sign: int = 1
    ) -> Float[Tensor, "start coordinate"]:
        by = replace(probe, bias=sign * probe.bias)
        return lrqp.intervene(starts, by, "C", matrix, log_alpha=wanted).x

    truth = exact()
    return array(
        truth,
        ("start", "coordinate"),
        relative=1e-5,
        mistakes={
            "meeting the two constraints one by one and adding up the moves. They pull in related "
            "directions, so this goes too far: solve for both multipliers together": ends(alone),
            "meeting one constraint after the other. The second move can undo the first": (
                one_after_the_other(0)
            ),
            "meeting one constraint after the other, the second first. The second move can undo it"
            "": one_after_the_other(1),
            "meeting only the worst constraint. That can leave the other unmet: check both at the "
            "new point": ends(torch.zeros_like(alone).scatter(1, worst, alone.gather(1, worst))),
            "making both constraints equalities everywhere. A multiplier came out negative: that "
            "constraint should be let go": ends(together),
            "solving for both, with negative multipliers then set to zero. The other one has to be "
            "solved for again, alone": ends(together.clamp_min(0)),
            "taking the nearest points in the Euclidean sense, not by the covariance": exact(flat),
            "reaching only the boundary of C; log alpha is missing": exact(wanted=0.0),
            "leaving `log_alpha` at the default, not `trio_log_alpha`: log odds of 10 at least, or "
            "as large as the old class had": exact(wanted=None),
            "turning the sign of the biases. What is lacking is log alpha minus the log odds, of "
            "which they are part": exact(sign=-1),
            "taking the logarithm of `trio_log_alpha`, which is one already": exact(
                wanted=math.log(log_alpha)
            ),
            "taking the moves, not where they end": truth - starts,
            "leaving the starts where they are": starts,
        },
        hint="For each start try: no constraint, the one, the other, both. Which of the four "
        "meets all KKT conditions?",
        right="Four cases, and the KKT conditions say which is true.",
    )
