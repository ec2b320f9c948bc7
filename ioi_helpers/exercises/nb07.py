"""Checks for notebook 07, LRQP.

The exercises on toy data expect `toy=(probe, covariance, start, log_alpha)` and
`trio=(probe, covariance, starts, log_alpha)`, the others `model`, `train`, `test` (prompts with
orders) and `point`, the point at S2 that the notebook chose. Every truth is recomputed on the model
at hand, and so is the value that each known mistake leads to there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ioi_helpers import lrqp, metrics, probing, runs
from ioi_helpers.edits import attention_edit, edited, residual_edit
from ioi_helpers.exercises.legacy import (
    Refused,
    Verdict,
    as_array,
    as_number,
    exercise,
    numeric,
    tensor_close,
)
from ioi_helpers.exercises.registry import Context

OTHER = {"ABBA": "BABA", "BABA": "ABBA"}
LOG_ALPHA = 10.0  # nats, in exercise 07.2
WEAK = 0.1  # the C of exercise 07.6


# --- what the checks measure ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Training and test activations at S2, and what was fitted on the former."""

    x: Float[Tensor, "train d_model"]
    x0: Float[Tensor, "test d_model"]
    probe: probing.Probe
    covariance: probing.Covariance


def _place(ctx: Context, point: str) -> _Place:
    def compute() -> _Place:
        x = runs.activations_at(ctx.model, ctx.train, "S2", point)
        return _Place(
            x,
            runs.activations_at(ctx.model, ctx.test, "S2", point),
            probing.fit_probe(x, ctx.train.orders),
            probing.fit_covariance(x),
        )

    return ctx.once(f"place {point}", compute)


def _opposite(ctx: Context) -> list[str]:
    return [OTHER[order] for order in ctx.test.orders]


def _counterfactual(ctx: Context, point: str) -> Float[Tensor, "test d_model"]:
    """The activations that the counterfactual intervention puts in, as the notebook makes them."""

    def compute() -> Tensor:
        at = _place(ctx, point)
        return lrqp.intervene(
            at.x0, at.probe, _opposite(ctx), at.covariance, true=ctx.test.orders
        ).x

    return ctx.once(f"counterfactual {point}", compute)


def _normal(probe: probing.Probe, target: int) -> tuple[Tensor, Tensor]:
    """a and the difference of the biases, of a two-class probe, towards one class."""
    other = 1 - target
    return probe.weights[target] - probe.weights[other], probe.bias[target] - probe.bias[other]


def _share(answer: Any) -> float:
    """A share between 0 and 1. Raises Refused for anything else."""
    value = as_number(answer)
    if not 0 <= value <= 1:
        raise Refused("A share lies between 0 and 1: divide by the number of prompts.")
    return value


# --- 07.1 -----------------------------------------------------------------------------------------


@exercise("07.1", title="What a move costs", difficulty="warm-up", minutes=5)
def _what_a_move_costs(answer: Any, ctx: Context) -> Verdict:
    probe, covariance, start, log_alpha = ctx.toy
    a, bias = _normal(probe, probe.classes.index("B"))
    sigma = covariance.matrix
    lacks = log_alpha - bias - a @ start
    spread = (a @ sigma @ a).sqrt()
    # What the covariance was before it was shrunk, which leaves its trace as it is.
    flat = covariance.shrinkage * covariance.total_variance / len(a)
    counted = ((spread.square() - flat * (a @ a)) / (1 - covariance.shrinkage)).sqrt()
    unbiased = counted * math.sqrt(covariance.n / (covariance.n - 1))
    shrunk = "over the points. Use the notebook's Sigma, which is shrunk a little."
    return numeric(
        answer,
        float(lacks / spread),
        relative=1e-3,
        unit="standard deviations",
        mistakes={
            "This is the cost, the square of the length: take its root.": (lacks / spread) ** 2,
            "Divide by the standard deviation of a.x, which is the *root* of a' Sigma a.": lacks
            / spread**2,
            "The biases are missing: the log odds are a.x plus the difference of the biases.": (
                (log_alpha - a @ start) / spread
            ),
            "This reaches the decision boundary only: log alpha is missing.": (
                (-bias - a @ start) / spread
            ),
            "This is what the log odds lack, in nats. Divide by the standard deviation of a.x to "
            "get the length of the move.": lacks,
            "This is the Euclidean length of the shortest straight move, along a. The cost is "
            "measured with the covariance.": lacks / a.norm(),
            "This is the Euclidean length of the move; measure it in standard deviations.": (
                (sigma @ a).norm() * lacks / spread**2
            ),
            "This is the length of the straight move, along a. The cheapest one goes along Sigma a."
            "": covariance.length(a[None])[0] * lacks / (a @ a),
            f"You divided by the standard deviation of a.x as counted {shrunk}": lacks / unbiased,
            f"You divided by the standard deviation of a.x (with 1/n) as counted {shrunk}": lacks
            / counted,
        },
        hint="Divide what the log odds lack at the start by the root of a' Sigma a.",
        right="What is lacking, in units of how much it varies.",
    )


# --- 07.2 -----------------------------------------------------------------------------------------


@exercise("07.2", title="The closed form by hand", difficulty="easy", minutes=10)
def _closed_form(answer: Any, ctx: Context) -> Verdict:
    at = _place(ctx, ctx.point)
    targets = _opposite(ctx)

    def move(goal: list[str] = targets, **options: Any) -> Tensor:
        settings: dict[str, Any] = {"log_alpha": LOG_ALPHA} | options
        sigma = settings.pop("covariance", at.covariance)
        return lrqp.intervene(at.x0, at.probe, goal, sigma, **settings).x

    def from_formula(
        bias: bool = True, root: bool = False, sign: float = 1.0, inverse: bool = False
    ) -> Tensor:
        codes = at.probe.codes(targets, len(at.x0)).to(at.probe.weights.device)
        a = at.probe.weights[codes] - at.probe.weights[1 - codes]
        offset = at.probe.bias[codes] - at.probe.bias[1 - codes] if bias else 0.0
        x0 = at.x0.to(a)
        whitener = at.covariance.whitener
        slope = a @ (whitener.T @ whitener if inverse else at.covariance.matrix)
        size = (slope * a).sum(-1)
        lacks = (LOG_ALPHA - offset - (a * x0).sum(-1)).clamp_min(0)
        return x0 + sign * slope * (lacks / (size.sqrt() if root else size))[:, None]

    truth = ctx.once("closed form", move)
    return tensor_close(
        answer,
        truth,
        axes=("prompt", "d_model"),
        relative=1e-4,
        mistakes={
            "You moved along a. The cheapest move is along Sigma a.": lambda: move(
                covariance=torch.eye(at.x0.shape[1], dtype=torch.float64)
            ),
            "Here each prompt got the order that it has already (the control); the target is the "
            "other one.": lambda: move(list(ctx.test.orders)),
            "This uses the default alpha. The task asks for log alpha = 10 on every prompt."
            "": lambda: _counterfactual(ctx, ctx.point),
            "You put in alpha = 10. The task asks for *log* alpha = 10.": lambda: move(
                log_alpha=math.log(LOG_ALPHA)
            ),
            "Every prompt was sent to the same class. Each has its own target: the sign of a "
            "depends on the prompt.": lambda: move([at.probe.classes[1]] * len(targets)),
            "You multiplied a by the inverse of Sigma. The cheapest move is along Sigma a: it goes "
            "where activations vary.": lambda: from_formula(inverse=True),
            "The biases are missing: the log odds are a.x plus the difference of the biases."
            "": lambda: from_formula(bias=False),
            "The sign of the move is wrong: it has to raise the target's log odds.": lambda: (
                from_formula(sign=-1.0)
            ),
            "Divide by a' Sigma a, not by its root.": lambda: from_formula(root=True),
            "These are the moves; add the activations x0.": lambda: truth - at.x0.to(truth),
            "These are the activations as they were.": lambda: at.x0,
            "The log odds are right but the way is not the cheapest: use the notebook's "
            "`covariance`, of all training activations, not the one within classes.": lambda: move(
                covariance=probing.fit_covariance(at.x, ctx.train.orders)
            ),
            "The log odds are right but the way is not the cheapest: use the notebook's "
            "`covariance`, of the training activations, not of those of `test`.": lambda: move(
                covariance=probing.fit_covariance(at.x0)
            ),
        },
        hint="Check one prompt first: does the probe's log odds for the target come out as 10? If "
        "it does, is the move along Sigma a, with the notebook's `covariance`?",
        right="One line of algebra, as good as any solver.",
    )


# --- 07.3 -----------------------------------------------------------------------------------------


@exercise("07.3", title="The hook by hand", difficulty="medium", minutes=15)
def _hook_by_hand(answer: Any, ctx: Context) -> Verdict:
    model, test = ctx.model, ctx.test
    block, _ = runs.parse_point(ctx.point)
    point = f"L{block}.pre"
    new = _counterfactual(ctx, point)

    def mean(point: str = point, role: str | Tensor = "S2", values: Tensor = new) -> float:
        diffs = runs.logit_diffs(model, test, [residual_edit(test, role, point, values)])
        return float(diffs.mean())

    def everywhere() -> float:
        def fill(stream: Tensor, hook: Any) -> Tensor:
            return new.to(stream)[:, None].expand_as(stream)

        logits = model.run_with_hooks(
            test.tokens, fwd_hooks=[(f"blocks.{block}.hook_resid_pre", fill)]
        )
        return float(metrics.logit_diff(logits, test))

    def same_position() -> float:
        at = torch.full_like(test.positions["S2"], int(test.positions["S2"][0]))
        return mean(role=at)

    def last_column() -> float:
        with edited(model, residual_edit(test, "S2", point, new)):
            logits = model(test.tokens)[:, -1]
        return float(metrics.logit_diff(logits, test))

    def clean() -> float:
        return float(runs.logit_diffs(model, test).mean())

    def each() -> Tensor:
        return runs.logit_diffs(model, test, [residual_edit(test, "S2", point, new)])

    truth = ctx.once("hooked", mean)
    unused = abs(truth - ctx.once("clean", clean)) < 2e-3 * abs(truth)
    return numeric(
        answer,
        truth,
        relative=2e-3,
        absolute=2e-3,
        unit="logits",
        mistakes={
            "This is the clean run's mean: the hook changed nothing. Does it return the new "
            "stream, and is it at the right block?": clean,
            "You replaced the stream at END. The belief stands at S2.": lambda: mean(role="END"),
            "You replaced the stream at S1, where the name stands first; the belief stands at S2."
            "": lambda: mean(role="S1"),
            "You replaced the stream at every position; only S2 is meant.": everywhere,
            "You used the first prompt's S2 for all of them: S2 stands elsewhere in each prompt."
            "": same_position,
            "You edited *after* the block. At hook_resid_post the block's attention has already "
            "read the old stream.": lambda: mean(f"L{block}.post"),
            "You read the last column of the logits, which is padding in most rows; read END."
            "": last_column,
            "This puts in each prompt's activation as it was.": lambda: mean(
                values=_place(ctx, point).x0
            ),
            "This is the change from the clean run; the mean logit difference itself is asked for."
            "": lambda: truth - ctx.once("clean", clean),
            "This is the change from the clean run, with its sign turned; the mean logit "
            "difference itself is asked for.": lambda: ctx.once("clean", clean) - truth,
            "This is a median over the prompts; the mean is asked for.": lambda: each().median(),
            "This is the median over the prompts; the mean is asked for.": lambda: (
                each().double().quantile(0.5)
            ),
            "This is the sum over the prompts; the mean is asked for.": lambda: each().sum(),
        },
        hint="Check the hook's name, the positions, and that `new` replaces what is there.",
        right="Four lines of TransformerLens; the helper does the same."
        + " (Nothing changes on this model, so a hook that does nothing passes too.)" * unused,
    )


# --- 07.4 -----------------------------------------------------------------------------------------


@exercise("07.4", title="The answer moved by attention alone", difficulty="hard", minutes=20)
def _by_attention_alone(answer: Any, ctx: Context) -> Verdict:
    value = _share(answer)
    model, test = ctx.model, ctx.test
    movers = list(ctx.movers)
    injected = residual_edit(test, "S2", ctx.point, _counterfactual(ctx, ctx.point))

    def share(edits: list[Any]) -> float:
        return float((runs.logit_diffs(model, test, edits) < 0).double().mean())

    def patterns(edits: list[Any], chosen: list[str] = movers) -> list[Any]:
        found = runs.attention_patterns(model, test, chosen, "END", edits)
        return [attention_edit(test, "END", head, pattern) for head, pattern in found.items()]

    def neither() -> float:
        return 1 - share(patterns([injected]))

    truth = ctx.once("by attention alone", lambda: share(patterns([injected])))
    unmoved = truth == ctx.once("by no attention", lambda: share([]))
    return numeric(
        value,
        truth,
        absolute=1e-3,
        relative=1e-3,
        mistakes={
            "This is the share with the belief injected, and nothing done to attention.": lambda: (
                share([injected])
            ),
            "This is the share with the belief injected and the clean attention restored. Here it "
            "is the other way round: a clean stream, and the injected run's attention.": lambda: (
                share([injected, *patterns([])])
            ),
            "This is the share with the belief injected *and* its attention put in, or with the "
            "attention of more heads: leave the stream at S2 clean and take the name movers only."
            "": lambda: share([injected, *patterns([injected])]),
            "This is the share that keeps the right answer; the question is how many prefer S."
            "": neither,
            "No more answers turned than with the clean run's own patterns, which change nothing: "
            "were they read with the edit on, put in at END, and for all of `movers`?": lambda: (
                share(patterns([]))
            ),
        },
        hint="Read the patterns with the edit on, and run the model with the patterns alone.",
        right="Nothing in the stream at S2 was touched in this run."
        + " (No answer turns on this model, so a run that changes nothing passes too.)" * unmoved,
    )


# --- 07.5 -----------------------------------------------------------------------------------------


@exercise("07.5", title="The price of the straight way", difficulty="medium", minutes=15)
def _straight_way(answer: Any, ctx: Context) -> Verdict:
    at = _place(ctx, ctx.point)
    a, _ = _normal(at.probe, 1)
    sigma = at.covariance.matrix
    slope = sigma @ a
    inner = a @ slope
    ratio = (inner * at.covariance.length(a[None])[0].square()).sqrt() / (a @ a)
    return numeric(
        answer,
        float(ratio),
        relative=1e-3,
        mistakes={
            "That is the other way round: the straight way's length divided by LRQP's is at least "
            "1.": 1 / ratio,
            "This is the ratio of the costs, which are squares: take the root.": ratio**2,
            "This is a ratio of Euclidean lengths, in which the straight way is the shorter one. "
            "Measure both with the covariance.": inner / (slope.norm() * a.norm()),
            "This is a ratio of Euclidean lengths (and the wrong way round). Measure both with the "
            "covariance.": slope.norm() * a.norm() / inner,
            "This is the length of the vector a by that of Sigma a. Scale both first, so that they "
            "change the log odds by the same amount.": at.covariance.length(a[None])[0]
            / inner.sqrt(),
        },
        hint="Scale both moves to the same change of the log odds, then measure both with the "
        "covariance.",
        right="By the Cauchy-Schwarz inequality it can never be below 1.",
    )


# --- 07.6 -----------------------------------------------------------------------------------------


@exercise("07.6", title="A timid probe", difficulty="easy", minutes=10)
def _timid_probe(answer: Any, ctx: Context) -> Verdict:
    value = _share(answer)
    at = _place(ctx, ctx.point)

    def moves(C: float = WEAK, *, control: bool = True, train: bool = False) -> float:
        key = f"moves {C} {control} {train}"

        def compute() -> float:
            probe = probing.fit_probe(at.x, ctx.train.orders, C=C)
            data, values = (ctx.train, at.x) if train else (ctx.test, at.x0)
            goal = data.orders if control else [OTHER[order] for order in data.orders]
            found = lrqp.intervene(values, probe, goal, at.covariance, true=data.orders)
            return float(found.moved.double().mean())

        return ctx.once(key, compute)

    mistakes = {
        # The two can happen to be the same number, so each message allows for the other.
        "This is the share of prompts that are left where they are (or that for C = 1).": lambda: (
            1 - moves()
        ),
        "This is the share for C = 1, the probe that you had already; fit a new one with "
        "C = 0.1. (Or is it the share of prompts that are left where they are?)": lambda: moves(
            1.0
        ),
        "As many move under the counterfactual, or with a much more timid probe. The control's "
        "target is the order that the prompt has; the probe has C = 0.1 and is fitted on `x` as it "
        "is.": lambda: moves(control=False),
        "This is on the training prompts; the question is about `test`.": lambda: moves(train=True),
        "This is a share for C = 10; a small C means a strong penalty.": lambda: moves(10.0),
    }
    truth = moves()
    # Where a prompt's log odds are almost 10, it depends on the optimiser whether it moves.
    one_off = 1e-3 < abs(value - truth) <= 1.5 / len(ctx.test)
    if one_off and all(abs(value - wrong()) > 1e-3 for wrong in mistakes.values()):
        return Verdict(True, "Within one prompt, whose log odds must be almost exactly 10.")
    return numeric(
        value,
        truth,
        absolute=1e-3,
        relative=1e-3,
        mistakes=mistakes,
        hint="A prompt moves if `solution.moved` says so: its constraint was not met from the "
        "start.",
        right="These prompts move although nothing about them was to change.",
    )


# --- 07.7 -----------------------------------------------------------------------------------------


@exercise("07.7", title="Three classes without a solver", difficulty="hard", minutes=25)
def _three_classes(answer: Any, ctx: Context) -> Verdict:
    probe, covariance, starts, log_alpha = ctx.trio
    target = probe.classes.index("C")
    others = [code for code in range(3) if code != target]
    a = probe.weights[target] - probe.weights[others]
    offset = probe.bias[target] - probe.bias[others]
    sigma = covariance.matrix
    lacks = log_alpha - offset - starts @ a.T

    def worst_only() -> Tensor:
        size = (a @ sigma * a).sum(-1)
        alone = lacks.clamp_min(0) / size
        chosen = (lacks / size.sqrt()).argmax(-1)
        mu = torch.zeros_like(alone).scatter(1, chosen[:, None], alone.gather(1, chosen[:, None]))
        return starts + mu @ a @ sigma

    def one_by_one() -> Tensor:
        size = (a @ sigma * a).sum(-1)
        return starts + (lacks.clamp_min(0) / size) @ a @ sigma

    def both_tight() -> Tensor:
        return starts + torch.linalg.solve(a @ sigma @ a.T, lacks.T).T @ a @ sigma

    def clamped() -> Tensor:
        mu = torch.linalg.solve(a @ sigma @ a.T, lacks.T).T.clamp_min(0)
        return starts + mu @ a @ sigma

    def exact(matrix: Any = covariance, goal: str = "C", wanted: float = log_alpha) -> Tensor:
        return lrqp.intervene(starts, probe, goal, matrix, log_alpha=wanted).x

    given = as_array(answer)
    if given.shape == tuple(starts.T.shape) and given.shape != tuple(starts.shape):
        return Verdict(False, "The axes are swapped: one row for each start is asked for.")
    return tensor_close(
        answer,
        exact(),
        axes=("start", "coordinate"),
        relative=1e-5,
        mistakes={
            "The two constraints were met one by one and their moves added up. They pull in "
            "related directions, so this goes too far: solve for both multipliers together."
            "": one_by_one,
            "Only the worst constraint was met. Meeting one can leave the other unmet: check both "
            "at the new point.": worst_only,
            "Both constraints were made equalities everywhere. A multiplier came out negative: "
            "that constraint should be let go.": both_tight,
            "Negative multipliers were set to zero after solving for both. Then the other one has "
            "to be solved for again, alone.": clamped,
            "These are the nearest points in the Euclidean sense: use the covariance.": lambda: (
                exact(torch.eye(2, dtype=torch.float64))
            ),
            "These only reach the boundary of C: log alpha is missing.": lambda: exact(wanted=0.0),
            "These are the starts. Some of them have to move.": lambda: starts,
        },
        hint="For each start try: no constraint, the one, the other, both. Which of the four "
        "meets all KKT conditions?",
        right="Four cases, and the KKT conditions say which is true.",
    )
