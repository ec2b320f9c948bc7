"""Heads of two models matched by what they do, and how well heads match that have nothing to do.

Indices mean nothing across models: heads of a layer can change places without changing the model.
So heads are matched by their profiles, each with one of the other model, such that they have as
much in common as possible (`scipy.optimize.linear_sum_assignment`). A best match is *always* found,
so its overlap says nothing by itself: hold it against :func:`null_overlaps`, and against models
that have learned nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment


@dataclass(frozen=True)
class Match:
    """Heads of one model, each with its counterpart in another.

    Attributes:
        overlap: From 0 to 1: of all that heads do in either model, the share that matched heads do
            alike. 1 if the models differ in the names of heads alone.
        pairs: A row for each matched pair, those with most in common first: ``one`` and ``other``
            (names), ``shared`` (what the two do alike, as a share of all that a model's heads do;
            the column's sum is the overlap), ``does`` and ``other does`` (what each does in all),
            ``alike`` (shared, as a share of the mean of the two).
    """

    overlap: float
    pairs: pd.DataFrame = field(repr=False)

    def counterpart(self, head: str) -> str | None:
        """The head of the other model that one was matched with, if it was."""
        found = self.pairs.loc[self.pairs["one"] == head, "other"]
        return None if found.empty else str(found.iloc[0])


def shared_by_pairs(
    one: Float[np.ndarray, "head kind"], other: Float[np.ndarray, "other kind"]
) -> Float[np.ndarray, "head other"]:
    """What each head of one model has in common with each head of another.

    Kind by kind the smaller of the two sizes, where the signs agree; summed.
    """
    total = np.zeros((len(one), len(other)))
    for sign in (1, -1):
        a, b = np.clip(sign * one, 0, None), np.clip(sign * other, 0, None)
        total += np.minimum(a[:, None], b[None]).sum(axis=-1)
    return total


def match(one: pd.DataFrame, other: pd.DataFrame) -> Match:
    """Match the heads of two models by what they do.

    Args:
        one, other: Their profiles (:func:`~ioi_helpers.universality.profile`). The models may
            differ in shape; heads of the larger one are then left over.

    Raises:
        ValueError: The profiles have other columns.
    """
    if list(one.columns) != list(other.columns):
        raise ValueError("These profiles are of different kinds; make both by profile().")
    shared = shared_by_pairs(one.to_numpy(), other.to_numpy())
    rows, columns = linear_sum_assignment(shared, maximize=True)
    found = shared[rows, columns]
    does, others = one.abs().sum(axis=1).to_numpy(), other.abs().sum(axis=1).to_numpy()
    whole = (does[rows] + others[columns]) / 2
    pairs = pd.DataFrame(
        {
            "one": one.index[rows],
            "other": other.index[columns],
            "shared": found,
            "does": does[rows],
            "other does": others[columns],
            "alike": np.divide(found, whole, out=np.zeros_like(found), where=whole > 0),
        }
    )
    return Match(
        float(found.sum()), pairs.sort_values("shared", ascending=False, ignore_index=True)
    )


def null_overlaps(
    one: pd.DataFrame,
    other: pd.DataFrame,
    by: Literal["kinds", "heads"] = "kinds",
    draws: int = 200,
    seed: int = 0,
) -> Float[np.ndarray, " draw"]:
    """Overlaps of best matches after the other model's profiles were shuffled.

    Args:
        one, other: Profiles, as for :func:`match`.
        by: ``"kinds"``: what its heads do is called otherwise, the same for all of them. It keeps
            how specialised each head is, and *not* how much is done of each kind: two models that
            only share what is large in any model come further than it. ``"heads"``: each effect,
            whole (its columns are one number, split by where a head looks), is dealt out to its
            heads anew. It keeps how much is done of each kind and how few heads do it, and loses
            which heads do several: two models of one busy head each come no further than it.
        draws, seed: How many shuffles, and of which random numbers.

    Raises:
        ValueError: ``by`` is neither.
    """
    if by not in ("kinds", "heads"):
        raise ValueError(f"by must be 'kinds' or 'heads', not {by!r}.")
    rng = np.random.default_rng(seed)
    mine, theirs = one.to_numpy(), other.to_numpy()
    effects = [str(kind).partition(", from ")[0] for kind in other.columns]
    columns = [
        np.flatnonzero([name == what for name in effects]) for what in dict.fromkeys(effects)
    ]
    found = np.empty(draws)
    for i in range(draws):
        if by == "kinds":
            dealt = theirs[:, rng.permutation(theirs.shape[1])]
        else:
            # Dealt apart, columns of one effect would lose what the measurement itself ties
            # together, and models that learned nothing would have something beyond chance.
            dealt = np.empty_like(theirs)
            for whole in columns:
                dealt[:, whole] = theirs[rng.permutation(len(theirs))][:, whole]
        shared = shared_by_pairs(mine, dealt)
        found[i] = shared[linear_sum_assignment(shared, maximize=True)].sum()
    return found


def p_value(observed: float, null: Float[np.ndarray, " draw"]) -> float:
    """The share of draws that come as far, the observed one among them: never 0.

    (Phipson and Smyth 2010, "Permutation p-values should never be zero".)
    """
    return float((1 + (np.asarray(null) >= observed).sum()) / (1 + len(null)))


def beyond_chance(overlap: float, null: Float[np.ndarray, " draw"]) -> float:
    """An overlap on a scale on which chance is 0 and "the same" is 1.

    (overlap - mean of the null) / (1 - mean of the null), as Cohen's kappa and the adjusted Rand
    index do for other kinds of agreement. Negative where there is less than by chance.
    """
    expected = float(np.mean(null))
    return (overlap - expected) / (1 - expected)


def overlaps(profiles: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The overlap of each two models' heads: a table, models by models, 1 on its diagonal."""
    names = list(profiles)
    found = pd.DataFrame(np.eye(len(names)), index=names, columns=names)
    for i, a in enumerate(names):
        for b in names[:i]:
            found.loc[a, b] = found.loc[b, a] = match(profiles[a], profiles[b]).overlap
    return found
