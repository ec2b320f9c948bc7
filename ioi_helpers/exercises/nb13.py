"""Keys to the exercises of notebook 13, the same circuit elsewhere?

They expect `exercises.use(mine=mine, other=other, table=table, other_table=other_table)`: the
profiles of the model at hand and of another, and their head tables. Some checks are given what they
are about: the overlap and its nulls (13.2), two profiles (13.3), nine numbers (13.5).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from jaxtyping import Float
from scipy import stats

from ioi_helpers import universality
from ioi_helpers.exercises.registry import Context, exercise
from ioi_helpers.exercises.verdicts import Key, number
from ioi_helpers.universality.matching import shared_by_pairs

LEVEL: Final = 0.95
SEEDS: Final = 5


def _in_common(one: Float[np.ndarray, "head kind"], other: Float[np.ndarray, "head kind"]) -> float:
    return float(np.diag(shared_by_pairs(one, other)).sum())


# --- 13.1 By name ---------------------------------------------------------------------------------


@exercise("13.1")
def _by_name(ctx: Context) -> Key:
    both = ctx.mine.index.intersection(ctx.other.index)
    a, b = ctx.mine.loc[both].to_numpy(), ctx.other.loc[both].to_numpy()
    best = universality.match(ctx.mine, ctx.other).overlap
    return number(
        _in_common(a, b),
        relative=0.005,
        absolute=5e-4,
        mistakes={
            "taking the best assignment. Here each head goes with the one of its name": best,
            "leaving the signs out, so that opposite effects count as common": float(
                np.minimum(np.abs(a), np.abs(b)).sum()
            ),
            "taking the smaller of the numbers as they are, so that negative ones win": float(
                np.minimum(a, b).sum()
            ),
            "taking positive parts alone. What is needed is negative": _in_common(
                np.clip(a, 0, None), np.clip(b, 0, None)
            ),
            "taking negative parts alone": _in_common(np.clip(a, None, 0), np.clip(b, None, 0)),
            "multiplying the two, where the smaller is asked for": float((a * b).sum()),
            "correlating the profiles": float(np.corrcoef(a.ravel(), b.ravel())[0, 1]),
            "averaging over heads, where a sum is asked for": _in_common(a, b) / len(both),
            "matching heads by place in the list, whatever they are called": _in_common(
                *(
                    one.to_numpy()[: min(len(ctx.mine), len(ctx.other))]
                    for one in (ctx.mine, ctx.other)
                )
            )
            if list(both) != list(ctx.mine.index[: len(both)])
            else None,
            "subtracting it from 1, which is what they do not have in common": 1 - _in_common(a, b),
        },
        right=f"The best assignment has {best:.2f}.",
    )


# --- 13.2 By chance -------------------------------------------------------------------------------


@exercise("13.2")
def _by_chance(ctx: Context) -> Key:
    observed, null = float(ctx.observed), np.asarray(ctx.null, dtype=float)
    n, far = len(null), int((null >= observed).sum())
    z = (observed - null.mean()) / null.std()
    return number(
        universality.p_value(observed, null),
        absolute=1e-4,
        relative=1e-3,
        between=(0, 1, "p is a probability, between 0 and 1."),
        mistakes={
            "leaving out what was observed, which counts as one of the draws": far / n,
            "adding one above and not below": (far + 1) / n,
            "adding one below and not above": far / (n + 1),
            "counting the draws that come less far": (1 + int((null < observed).sum())) / (1 + n),
            "counting the draws that come less far, without the ones": float(
                (null < observed).mean()
            ),
            "taking the other null, in which effects are dealt anew": universality.p_value(
                observed, ctx.dealt
            ),
            "doubling it. Only an overlap that is large counts": 2 * (1 + far) / (1 + n),
            "counting draws, where a share is asked for": 1 + far,
            "taking the null for normal": float(stats.norm.sf(z)),
        },
        right=f"{far} of {n} draws come as far.",
    )


# --- 13.3 Beyond chance ---------------------------------------------------------------------------


@exercise("13.3")
def _beyond_chance(ctx: Context) -> Key:
    overlap = universality.match(ctx.one, ctx.another).overlap
    null = universality.null_overlaps(ctx.one, ctx.another, by="heads", draws=200, seed=0)
    kinds = universality.null_overlaps(ctx.one, ctx.another, by="kinds", draws=200, seed=0)
    mean = float(null.mean())
    return number(
        universality.beyond_chance(overlap, null),
        relative=0.01,
        absolute=1e-3,
        mistakes={
            "subtracting only. On the scale asked for, identity is 1": overlap - mean,
            "dividing by the null's mean": overlap / mean,
            "subtracting the null's mean and dividing by it": (overlap - mean) / mean,
            "dividing by the null's standard deviation. That is a z": (overlap - mean) / null.std(),
            "dividing by the null's standard deviation (n - 1). That is a z": (overlap - mean)
            / null.std(ddof=1),
            "taking the null in which kinds are permuted": universality.beyond_chance(
                overlap, kinds
            ),
            "taking the largest draw for the mean": (overlap - null.max()) / (1 - null.max()),
            "giving the overlap as it is": overlap,
            "giving what chance has": mean,
        },
        right=f"Of an overlap of {overlap:.2f}, chance has {mean:.2f}.",
    )


# --- 13.4 At END alone ----------------------------------------------------------------------------


@exercise("13.4")
def _at_end(ctx: Context) -> Key:
    end = [universality.profile(t, universality.AT_END) for t in (ctx.table, ctx.other_table)]
    whole = [universality.profile(t) for t in (ctx.table, ctx.other_table)]
    cut = [one[end[0].columns] for one in whole]
    match, kept = universality.match(*end), _kept(whole, end)
    names = end[0].index.intersection(end[1].index)
    rest = [what for what in universality.EFFECTS if what not in universality.AT_END]
    elsewhere = [universality.profile(t, rest) for t in (ctx.table, ctx.other_table)]
    return number(
        match.overlap,
        relative=0.005,
        absolute=5e-4,
        mistakes={
            "dropping columns, so that shares of all effects are left. They are of what is done at "
            "END": universality.match(*cut).overlap,
            "taking all effects": universality.match(*whole).overlap,
            "taking what is done elsewhere": universality.match(*elsewhere).overlap,
            "keeping the assignment of all effects. Heads are to be matched by END alone": (
                kept if abs(kept - match.overlap) > 2e-3 else None  # else it is the same one
            ),
            "matching by name": _in_common(*(one.loc[names].to_numpy() for one in end)),
            "taking what is beyond chance. The overlap itself is asked for": (
                universality.beyond_chance(
                    match.overlap, universality.null_overlaps(end[0], end[1], "heads", draws=200)
                )
            ),
            "subtracting it from 1": 1 - match.overlap,
        },
        right=f"With all effects it is {universality.match(*whole).overlap:.2f}.",
    )


def _kept(whole: list[Any], end: list[Any]) -> float:
    """The overlap at END of heads that were matched by all effects."""
    pairs = universality.match(*whole).pairs
    one, other = end[0].loc[pairs["one"]], end[1].loc[pairs["other"]]
    return _in_common(one.to_numpy(), other.to_numpy())


# --- 13.5 An interval over seeds ------------------------------------------------------------------


@exercise("13.5")
def _over_seeds(ctx: Context) -> Key:
    nine = np.asarray(ctx.nine, dtype=float)
    n, spread = len(nine), float(nine.std(ddof=1))
    error = spread / n**0.5
    t = float(stats.t.ppf((1 + LEVEL) / 2, n - 1))
    found = universality.mean_over_seeds(nine)
    return number(
        t * error,
        relative=0.005,
        absolute=1e-3,
        unit="logits",
        mistakes={
            "taking the normal distribution's 1.96": float(stats.norm.ppf((1 + LEVEL) / 2)) * error,
            "taking 2 errors": 2 * error,
            "giving the standard error. The interval reaches further": error,
            "giving the standard deviation": spread,
            "leaving out the root of n": t * spread,
            "dividing by n, not by its root": t * spread / n,
            "taking n degrees of freedom. One is spent on the mean": float(
                stats.t.ppf((1 + LEVEL) / 2, n)
            )
            * error,
            "taking the standard deviation with n, not n - 1": t * float(nine.std()) / n**0.5,
            "taking the 95 % point, which leaves 5 % above and 5 % below": float(
                stats.t.ppf(LEVEL, n - 1)
            )
            * error,
            "giving the whole width": 2 * t * error,
            "giving the mean": float(nine.mean()),
            "giving the lower end": found.low,
            "giving the upper end": found.high,
        },
        right=f"The interval is {found}.",
    )


# --- 13.6 Five of five ----------------------------------------------------------------------------


@exercise("13.6")
def _five_of_five(ctx: Context) -> Key:
    rare = 1 - LEVEL
    both_sides = universality.share_interval(SEEDS, SEEDS)[0]
    return number(
        rare ** (1 / SEEDS),
        relative=0.002,
        absolute=1e-3,
        between=(0, 1, "A share is between 0 and 1."),
        mistakes={
            "taking the power for the root": rare**SEEDS,
            "taking the power of 0.95": LEVEL**SEEDS,
            "taking the root of 0.95, the share with which five of five would be common": LEVEL
            ** (1 / SEEDS),
            "dividing one time in twenty among five seeds": 1 - rare / SEEDS,
            "giving what five of five estimates. It is the best guess, not the smallest": 1.0,
            "giving the smallest p of a sign test": 0.5**SEEDS,
            "giving the share of seeds in which it may fail. Asked for is that in which it holds": 1
            - rare ** (1 / SEEDS),
        },
        also={
            f"Right for one time in forty, as the exact two-sided interval has it; one in twenty "
            f"gives {rare ** (1 / SEEDS):.2f}.": both_sides,
        },
        right="So five of five still leaves room for almost half of all seeds to differ.",
    )
