"""Keys to the exercises of notebook 08, what an intervention costs.

They expect `exercises.use(model=model, train=train, test=test, point=point)`, prompts with orders
and the point at S2 that the notebook chose, and 08.5 its `das` too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ioi_helpers import lrqp, probing, runs
from ioi_helpers.edits import residual_edit
from ioi_helpers.exercises.measure import clean, normal, opposites, place
from ioi_helpers.exercises.registry import Context, exercise
from ioi_helpers.exercises.verdicts import Key, number

WEAK = 0.1  # the C of exercise 08.3
DRAWS = 10  # of exercise 08.4
DEALINGS = 20  # of random labels, in 08.1
SHARE = (0.0, 1.0, "A share lies between 0 and 1: divide by the number of prompts.")


# --- what the checks measure ----------------------------------------------------------------------


def _apart(ctx: Context) -> Float[Tensor, " d_model"]:
    """`apart[0]` of the notebook: the second class mean of the training rows minus the first."""
    at = place(ctx, ctx.point)
    return _means_apart(at.x.double(), ctx.train.orders, at.probe.classes)


def _means_apart(
    x: Float[Tensor, "train d_model"], orders: Sequence[str], classes: Sequence[str]
) -> Float[Tensor, " d_model"]:
    means = [x[[o == c for o in orders]].mean(dim=0) for c in classes]
    return means[1] - means[0]


def _chance(ctx: Context) -> list[float]:
    """How far apart within classes the means are of labels dealt at random to pairs of prompts."""
    at, pairs = place(ctx, ctx.point), ctx.train.pair_ids.tolist()
    order_of = dict(zip(pairs, ctx.train.orders, strict=True))
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(DEALINGS):
        mixed = torch.randperm(len(order_of), generator=generator).tolist()
        dealt = [list(order_of.values())[i] for i in mixed]
        anew = dict(zip(order_of, dealt, strict=True))
        labels = [anew[pair] for pair in pairs]
        between = _means_apart(at.x.double(), labels, at.probe.classes)
        found.append(float(probing.fit_covariance(at.x, labels).length(between[None])[0]))
    return found


def _after(ctx: Context, new: Float[Tensor, "test d_model"]) -> Float[Tensor, " test"]:
    """Logit differences with other activations put in."""
    return runs.logit_diffs(ctx.model, ctx.test, [residual_edit(ctx.test, "S2", ctx.point, new)])


# --- 08.1 Never far apart -------------------------------------------------------------------------


@exercise("08.1")
def _never_far_apart(ctx: Context) -> Key:
    at, apart = place(ctx, ctx.point), _apart(ctx)[None]
    D = probing.fit_covariance(at.x, ctx.train.orders).length(apart)[0]
    truth = D / (1 + D**2 / 4).sqrt()
    right = "Below 2, as for any two classes of equal size."
    chance = ctx.once(f"means by chance {ctx.point}", lambda: _chance(ctx))
    if float(D) <= max(chance):
        right += (
            f" But here these are no classes: labels dealt at random to pairs of prompts lie "
            f"{min(chance):.2f} to {max(chance):.2f} apart within their classes, and D is {D:.2f}."
        )
    return number(
        truth,
        relative=1e-4,
        unit="standard deviations",
        mistakes={
            "giving D itself, the distance within classes": D,
            "giving the limit, which is reached for classes infinitely far apart only": 2.0,
            "leaving out the root": D / (1 + D**2 / 4),
            "giving the square, the cost": truth**2,
            "taking D squared without the 4. Each class lies D/2 from the middle": D
            / (1 + D**2).sqrt(),
            "measuring it with the covariance of all activations. The formula starts from D, and "
            "is exact for classes of equal size and no shrinkage": at.covariance.length(apart)[0],
            "measuring with a ruler, not with a covariance": apart.norm(),
        },
        hint="D is `within.length(apart)`; put it into the formula of section 2.1.",
        right=right,
    )


# --- 08.2 The price of the straight way -----------------------------------------------------------


@exercise("08.2")
def _straight_way(ctx: Context) -> Key:
    at = place(ctx, ctx.point)
    a, _ = normal(at.probe, 1)
    slope = at.covariance.matrix @ a
    inner, straight = a @ slope, at.covariance.length(a[None])[0]
    ratio = inner.sqrt() * straight / (a @ a)
    return number(
        ratio,
        relative=1e-3,
        mistakes={
            "dividing the other way round; the straight way's length by LRQP's is at least 1": 1
            / ratio,
            "dividing the costs, which are squares: take the root": ratio**2,
            "dividing Euclidean lengths, in which the straight way is shorter. Measure both with "
            "the covariance": inner / (slope.norm() * a.norm()),
            "dividing Euclidean lengths (and the wrong way round). Measure both with the covariance"
            "": slope.norm() * a.norm() / inner,
            "dividing the length of the vector a by that of Sigma a. Scale both first, so that "
            "they change the log odds by the same amount": straight / inner.sqrt(),
        },
        hint="Scale both moves to the same change of the log odds, then measure both with the "
        "covariance.",
        right="By the Cauchy-Schwarz inequality it can never be below 1.",
    )


# --- 08.3 A timid probe ---------------------------------------------------------------------------


@exercise("08.3")
def _timid_probe(ctx: Context) -> Key:
    at = place(ctx, ctx.point)

    def moves(C: float = WEAK, *, control: bool = True, train: bool = False) -> float:
        probe = probing.fit_probe(at.x, ctx.train.orders, C=C)
        data, values = (ctx.train, at.x) if train else (ctx.test, at.x0)
        goal = data.orders if control else opposites(data.orders)
        found = lrqp.intervene(values, probe, goal, at.covariance, true=data.orders)
        return float(found.moved.double().mean())

    truth = moves()
    return number(
        truth,
        absolute=1e-3,
        relative=1e-3,
        between=SHARE,
        close=(
            1.5 / len(ctx.test),
            f"Within one prompt of {truth:.3f}, which a fit to the end gives; a looser one may "
            "put a prompt whose log odds are near 10 on the other side.",
        ),
        mistakes={
            "counting the prompts that are left where they are": 1 - truth,
            "taking C = 1, the probe that you had already. Fit a new one with C = 0.1": moves(1.0),
            "moving to the counterfactual, or with a much more timid probe. The control's target "
            "is the order that the prompt has; the probe has C = 0.1 and is fitted on `x`": (
                moves(control=False)
            ),
            "counting the training prompts, not those of `test`": moves(train=True),
            "taking C = 10; a small C means a strong penalty": moves(10.0),
        },
        hint="A prompt moves if `solution.moved` says so: its constraint was not met from the "
        "start.",
        right="These prompts move although nothing about them was to change.",
    )


# --- 08.4 A placebo's error -----------------------------------------------------------------------


@exercise("08.4")
def _placebo_error(ctx: Context) -> Key:
    at, true = place(ctx, ctx.point), ctx.test.orders
    main, target = lrqp.LRQP(at.probe, at.covariance), opposites(true)

    def ten(covariance: probing.Covariance | None = None) -> Float[Tensor, "draw test"]:
        moves = [lrqp.RandomDirection(main, seed, covariance) for seed in range(DRAWS)]
        return torch.stack(
            [_after(ctx, move(at.x0.double(), true=true, target=target)) for move in moves]
        ).double()

    each = ten()
    means = each.mean(dim=1)
    flips = (each < 0).double().mean(dim=1)
    truth = means.std() / DRAWS**0.5
    return number(
        truth,
        relative=0.01,
        unit="logits",
        of_estimate="stderr",
        mistakes={
            "giving the standard deviation of the draws, not yet the error of their mean": (
                means.std()
            ),
            "dividing by n where n - 1 is due": means.std(correction=0) / DRAWS**0.5,
            "giving the mean itself, not its error": means.mean(),
            "giving 1.96 errors, half an interval of 95 %": 1.96 * truth,
            "taking all runs of all prompts as independent. The unit is the draw": each.std()
            / each.numel() ** 0.5,
            "taking the error over prompts of one draw, which knows nothing of other directions": (
                each[0].std() / each.shape[1] ** 0.5
            ),
            "taking the error over prompts of the mean over draws. The unit is the draw": each.mean(
                dim=0
            ).std()
            / each.shape[1] ** 0.5,
            "taking shares of flipped answers, not logit differences": flips.std() / DRAWS**0.5,
            "taking the placebo in the cloud, not the one with a ruler": ten(at.covariance)
            .mean(dim=1)
            .std()
            / DRAWS**0.5,
            "giving the variance of the mean. Take the root": truth**2,
        },
        hint="Ten means, one a seed from 0 to 9; their standard deviation divided by the root of "
        "ten.",
        right="An error over directions, which no number of prompts can tell.",
    )


# --- 08.5 Two halves of a move --------------------------------------------------------------------


@exercise("08.5")
def _two_halves(ctx: Context) -> Key:
    x0 = place(ctx, ctx.point).x0.double()
    v = ctx.das.basis[:, 0].double().to(x0.device)
    natural = runs.activations_at(ctx.model, ctx.test.swap_order(), "S2", ctx.point).double()
    unit = _apart(ctx) / _apart(ctx).norm()
    moves = ((natural - x0) @ v)[:, None] * v
    along = (moves @ unit)[:, None] * unit
    rest = moves - along
    other = v - (v @ unit) * unit
    other = other / other.norm()

    def moved(by: Float[Tensor, "test d_model"]) -> Tensor:
        return _after(ctx, x0 + by).mean()

    truth, untouched, whole = moved(rest), clean(ctx, "test").mean(), moved(moves)
    right = "Set it beside `along the means` and `DAS` in the table."
    if abs(float(whole - untouched)) < 0.1 * abs(float(untouched)):
        right += (
            f" The whole move leaves {whole:.2f} of {untouched:.2f} logits: neither half does any "
            "work on this model, and the answer is the clean run's whatever is moved here."
        )
    return number(
        truth,
        relative=2e-3,
        absolute=2e-3,
        unit="logits",
        mistakes={
            "adding the part along the difference of the means, the other half": moved(along),
            "adding the whole move of DAS": whole,
            "interchanging along the rest of v, which is not the rest of its move. Split the move "
            "that DAS makes": moved(((natural - x0) @ other)[:, None] * other),
            "turning the sign of the rest": moved(-rest),
            "adding all that is natural but the part along the means. Split the move that DAS "
            "makes": moved(natural - x0 - ((natural - x0) @ unit)[:, None] * unit),
            "projecting on a vector that is not of unit length": moved(
                moves - (moves @ _apart(ctx))[:, None] * _apart(ctx)
            ),
            "changing nothing": untouched,
            "taking the change from the clean run, not the mean logit difference itself": truth
            - untouched,
            "dividing by the clean run's logit difference": truth / untouched,
        },
        hint="The move of a row is ((natural - x0).v) v; the rest is that minus its part along u.",
        right=right,
    )
