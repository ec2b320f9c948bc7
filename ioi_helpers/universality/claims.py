"""Sentences of the notebooks as functions: does a model's survey bear one out?

A claim is measured on the tables of one model. It *holds*, it *does not*, or it *cannot be asked*:
whether name movers obey an injected belief cannot where there are none, and nothing can of a model
that does not do the task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import pandas as pd

from ioi_helpers.universality.counting import share_interval

Tables = Mapping[str, pd.DataFrame]
Measured = tuple[float, float] | None
"""A number and what it must reach; None where the question makes no sense."""

ERRORS = 2.0
"""What a claim must exceed, it must exceed by so many standard errors over pairs. Where two numbers
are taken from each other, their errors are added: that is the most that the error can be."""

RIGHT = 0.75
"""A model does the task where it is right on such a share of prompts."""

READ = 0.95
"""A probe reads the order where it is right on more than such a share of held-out prompts."""


class _HasTables(Protocol):
    @property
    def tables(self) -> dict[str, pd.DataFrame]: ...


class _HasModels(_HasTables, Protocol):
    @property
    def models(self) -> pd.DataFrame: ...


@dataclass(frozen=True)
class Claim:
    """A sentence that a model's survey can bear out.

    Attributes:
        name: Short.
        stands_in: The notebook whose claim it is, and the section.
        says: The sentence.
        measure: The tables of one model -> (measured, what it must exceed), or None where it
            cannot be asked.
        planted: The step of `ioi-mini`'s training that asks for it, if one does.
    """

    name: str
    stands_in: str
    says: str
    measure: Callable[[Tables], Measured]
    planted: str = ""


def of_model(found: _HasTables, model: str) -> dict[str, pd.DataFrame]:
    """Each question's rows of one model.

    Args:
        found: What a survey found: :func:`ioi_helpers.survey.run`, `.results` or `.shipped`.
        model: Its name, as in the column ``model``.

    Raises:
        ValueError: No table has such a model.
    """
    own = {label: table[table["model"] == model] for label, table in found.tables.items()}
    if all(table.empty for table in own.values()):
        known = sorted({str(name) for table in found.tables.values() for name in table["model"]})
        raise ValueError(f"No table has a model {model!r}; there are {', '.join(known)}.")
    return own


def does_the_task(own: Tables) -> bool:
    """Whether a model does the task, much as notebook 12 asks (there of pairs).

    IO above S on three quarters of the prompts, and a logit difference that lies :data:`ERRORS`
    standard errors above zero. Of one that does not, shares of the logit difference are shares of
    nothing.

    Args:
        own: Its tables (:func:`of_model`); read is ``behaviour``.
    """
    row = _behaviour(own)
    clear = row["logit_diff"] > ERRORS * row["logit_diff error"]
    return bool(clear and row["io_preferred"] >= RIGHT)


# --- notebooks 02 and 03 --------------------------------------------------------------------------


def _order_stands_at_s2(own: Tables) -> Measured:
    at = own["stream"][(own["stream"]["role"] == "S2") & (own["stream"]["layer"] > 0)]
    row = at.loc[at["share"].idxmin()]
    # -2 of the logit difference: answered as the other order would be.
    return _reaches(-0.5 * row["share"], 0.75, 0.5 * row["share error"])


def _shortcut_at_end(own: Tables) -> Measured:
    first = own["heads"][own["heads"]["layer"] == 0]
    row = first.loc[first["END, other names"].idxmin()]
    whole = _logit_diff(own)
    return _reaches(-row["END, other names"] / whole, 0.5, row["END, other names se"] / whole)


# --- notebook 05 ----------------------------------------------------------------------------------


def _strongest(own: Tables) -> pd.Series | None:
    """The strongest writer's row; None where it writes next to nothing."""
    table = own["repair"]
    row = table[(table["rank"] == 0) & (table["order"] == "all")].iloc[0]
    lost = -row["direct effect"]
    share = lost / _logit_diff(own)
    return row if lost > 4 * row["direct effect error"] and share > 0.05 else None


def _made_up_for(own: Tables) -> Measured:
    row = _strongest(own)
    return None if row is None else _beyond_nothing(row, "made up for")


def _later_heads_step_in(own: Tables) -> Measured:
    row = _strongest(own)
    if row is None or row["later layers"] == 0:
        return None
    return _beyond_nothing(row, "by later heads")


def _mostly_later_heads(own: Tables) -> Measured:
    row = _strongest(own)
    if row is None or not _holds(_later_heads_step_in(own)):
        return None
    most = max(("by later MLPs", "by LayerNorm"), key=lambda what: row[what])
    error = row["by later heads error"] + row[f"{most} error"]
    return _reaches(row["by later heads"] - row[most], 0.0, error)


def _abba_repaired_better(own: Tables, label: str) -> Measured:
    if _strongest(own) is None:
        return None
    table = own[label]
    rows = table[(table["rank"] == 0) & (table["order"] == "ABBA less BABA")]
    return _beyond_nothing(rows.iloc[0], "made up for") if len(rows) else None


def _no_negative_mover(own: Tables) -> Measured:
    if own["heads"]["head class"].eq("-").all():
        return None
    # What is asked of a class has its own errors: `ioi_helpers.heads.RULES`.
    found = own["heads"]["head class"].str.contains("negative_name_mover").sum()
    return _reaches(-float(found), -0.5)


def _written_before_last(own: Tables) -> Measured:
    table = own["heads"]
    if _strongest(own) is None:
        return None
    last = table["layer"] == table["layer"].max()
    written, errors = table["direct"].clip(lower=0), table["direct se"].where(table["direct"] > 0)
    late = float(written[last].sum() / written.sum())
    error = (late * errors[~last].sum() + (1 - late) * errors[last].sum()) / written.sum()
    return _reaches(1 - late, 0.5, error)


def _orders_have_their_own(own: Tables) -> Measured:
    """Of what the most needed head of each order costs there: what the other order is spared."""
    table = own["without"]
    columns = ["share", "share error"]
    costs = table.pivot_table(index="name", columns="data", values=columns)
    if not {"ABBA", "BABA"} <= set(costs["share"]):
        return None
    spared = []
    for order, other in (("ABBA", "BABA"), ("BABA", "ABBA")):
        row = costs.loc[costs["share", order].idxmin()]
        here, there = row["share", order], row["share", other]
        if here > -0.1:
            return None
        error = (row["share error", other] + abs(there / here) * row["share error", order]) / -here
        spared.append((1 - there / here, error))
    value, error = min(spared)
    return _reaches(value, 0.5, error)


# --- notebook 07 ----------------------------------------------------------------------------------


def _place(own: Tables) -> pd.Series:
    """The place in the stream at S2 where LRQP turns most answers; the first of equals."""
    table = own["lrqp"].reset_index(drop=True)
    best: pd.Series = table.loc[table["flipped"].idxmax()]
    return best


def _readable(own: Tables) -> Measured:
    table = own["lrqp"].reset_index(drop=True)
    return _at_least(table.loc[table["probe accuracy"].idxmax()], "probe accuracy", READ)


def _flips(own: Tables) -> Measured:
    table = own["lrqp"].reset_index(drop=True)
    place = table[["flipped ABBA", "flipped BABA"]].min(axis=1).idxmax()
    worse = min(("flipped ABBA", "flipped BABA"), key=lambda what: table.loc[place, what])
    return _at_least(table.loc[place], worse, 0.9)


def _harmless(own: Tables) -> Measured:
    row = _place(own)
    if not _holds(_at_least(row, "probe accuracy", READ)):
        return None
    return _reaches(1 - row["control flipped"], 0.98, row["control flipped error"])


def _known_not_used(own: Tables) -> Measured:
    if not _holds(_flips(own)):
        return None
    table = own["lrqp"].reset_index(drop=True)
    later = table[table.index > table["flipped"].idxmax()]
    later = later[later["probe accuracy"] - ERRORS * later["probe accuracy error"] > READ]
    if later.empty:
        return 0.0, 0.9
    row = later.loc[later["flipped"].idxmin()]
    return _reaches(1 - row["flipped"], 0.9, row["flipped error"])


def _belief(own: Tables) -> pd.Series | None:
    row = own["belief"].iloc[0]
    return row if row["flipped"] > 0.5 else None


def _reported(own: Tables) -> Measured:
    row = _belief(own)
    return None if row is None else _at_least(row, "injected order reported", READ)


def _movers_turn(own: Tables) -> Measured:
    row = _belief(own)
    if row is None:
        return None
    to_s1, to_io = "movers to S1, injected", "movers to IO, injected"
    return _reaches(row[to_s1] - row[to_io], 0.0, row[f"{to_s1} error"] + row[f"{to_io} error"])


def _looks_decide(own: Tables) -> Measured:
    row = _belief(own)
    if row is None:
        return None
    restored = "flipped, movers' looks restored"
    still = row[restored] / row["flipped"]
    error = (row[f"{restored} error"] + still * row["flipped error"]) / row["flipped"]
    return _reaches(1 - still, 0.5, error)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "order at S2", "02, section 1",
        "With S2's stream from the other order before some block but the first, the answer is at "
        "least three quarters of the way to the other name.",
        _order_stands_at_s2, planted="exchange at S2",
    ),
    Claim(
        "shortcut at END", "03, section 6",
        "Three other names in one head of the first block at END cost over half of the answer.",
        _shortcut_at_end,
    ),
    Claim(
        "made up for", "05, section 2",
        "Part of what the strongest writer wrote is made up for when its mean stands in at END.",
        _made_up_for, planted="head dropout",
    ),
    Claim(
        "later heads step in", "05, section 2",
        "Later heads, where there are any, give some of it back.",
        _later_heads_step_in, planted="head dropout",
    ),
    Claim(
        "mostly by later heads", "05, section 2",
        "Where they do, they give back more than later MLPs and more than LayerNorm.",
        _mostly_later_heads,
    ),
    Claim(
        "ABBA repaired better, zero", "05, section 9",
        "By zero ablation, a larger share is made up for with the prompts as ABBA than as BABA.",
        partial(_abba_repaired_better, label="repair_zero"),
    ),
    Claim(
        "ABBA repaired better, mean", "05, section 9",
        "The same by mean ablation.",
        partial(_abba_repaired_better, label="repair"),
    ),
    Claim(
        "orders have heads of their own", "05, section 8",
        "In either order the head at END that costs most costs less than half as much in the "
        "other.",
        _orders_have_their_own,
    ),
    Claim(
        "no negative name mover", "05, section 7",
        "Where heads have classes at all, none is a negative name mover (looks at IO with 0.25, "
        "takes 2 % of the answer away).",
        _no_negative_mover,
    ),
    Claim(
        "written before the last block", "05, section 10",
        "Most of what heads write for the answer is written before the last block.",
        _written_before_last,
    ),
    Claim(
        "order readable", "07, section 3",
        "A probe at S2 reads the order of 95 held-out prompts of 100 at some place.",
        _readable, planted="order read-out",
    ),
    Claim(
        "injected order flips", "07, section 4",
        "LRQP with the other order turns nine answers of ten in either order at some place.",
        _flips, planted="exchange at S2",
    ),
    Claim(
        "control harmless", "07, section 4",
        "Where LRQP turns most answers, and the order is readable there, LRQP with the true order "
        "turns under 2 %.",
        _harmless,
    ),
    Claim(
        "known later, not used", "07, section 3",
        "At a place after the one where LRQP turns most answers the probe reads the order still, "
        "and LRQP turns under one answer in ten.",
        _known_not_used, planted="exchange at END",
    ),
    Claim(
        "belief reported", "07, section 5.1",
        "What S-inhibition heads write at END, summed, tells a probe the injected order on 95 "
        "prompts of 100.",
        _reported,
    ),
    Claim(
        "name movers turn", "07, section 5.2",
        "With the injected order name movers look more at S1 than at IO.",
        _movers_turn,
    ),
    Claim(
        "looks decide", "07, section 5.3",
        "Putting the name movers' attention back undoes most flips.",
        _looks_decide, planted="exchange at END",
    ),
)  # fmt: skip
"""What notebooks conclude on the bundled models, as far as a survey's tables can tell."""


def judge(
    found: _HasTables, models: Sequence[str] | None = None, claims: Sequence[Claim] = CLAIMS
) -> pd.DataFrame:
    """Every claim on every model: a row for each two.

    Args:
        found: What a survey found, with the questions of ``survey.shipped("seeds")``.
        models: Which; None: all in the table ``behaviour``.
        claims: Which claims.

    Returns:
        Columns ``model``, ``claim``, ``measured``, ``must exceed`` (with :data:`ERRORS` errors) and
        ``verdict``: "holds", "does not hold" or "cannot be asked". The last is said of every claim
        where the model does not do the task (:func:`does_the_task`), and of a claim where a table
        that it reads is missing, empty or failed.
    """
    if models is None:
        models = list(dict.fromkeys(map(str, found.tables["behaviour"]["model"])))
    rows = []
    for model in models:
        own = _Answered(
            (label, table)
            for label, table in of_model(found, model).items()
            if len(table) and table["failure"].isna().all()
        )
        for claim in claims:
            measured = _measured(claim, own)
            verdict = "cannot be asked"
            if measured is not None:
                verdict = "holds" if _holds(measured) else "does not hold"
            value, least = measured if measured is not None else (math.nan, math.nan)
            rows.append((model, claim.name, value, least, verdict))
    return pd.DataFrame(rows, columns=["model", "claim", "measured", "must exceed", "verdict"])


def tally(judged: pd.DataFrame) -> pd.DataFrame:
    """How many of the judged models bear each claim out.

    Args:
        judged: Rows of :func:`judge`, of the models that are to be counted together.

    Returns:
        A row a claim: ``holds`` and ``of`` (models that could be asked), ``not asked`` (how many
        could not), and ``at least`` and ``at most``, the exact 95 % interval for the share of all
        models that could be asked.
    """
    rows = {}
    for claim, part in judged.groupby("claim", sort=False):
        k = int((part["verdict"] == "holds").sum())
        n = int((part["verdict"] != "cannot be asked").sum())
        low, high = share_interval(k, n) if n else (math.nan, math.nan)
        rows[claim] = {
            "holds": k, "of": n, "not asked": len(part) - n, "at least": low, "at most": high,
        }  # fmt: skip
    return pd.DataFrame(rows).T.astype({"holds": int, "of": int, "not asked": int})


def in_seeds(found: _HasModels, stands_in: str = "") -> pd.DataFrame:
    """For how many seeds of each recipe each claim holds, in words.

    Args:
        found: A shipped survey that has a table of models, as ``survey.shipped("seeds")``.
        stands_in: How the place begins where a claim stands ("05"); "": all claims.

    Returns:
        A row a claim, a column a recipe, of seeds that were trained whole and learned the task:
        "4 of 5 (new: 3 of 4)", where *new* leaves out the seed that the claims were read off and
        that ships (0). Those of which it cannot be asked are counted beside.
    """
    claims = [claim for claim in CLAIMS if claim.stands_in.startswith(stands_in)]
    models = found.models[found.models["learned"] & (found.models["without"] == "")]
    columns = {}
    for recipe, part in models.groupby("recipe", sort=False):
        judged = judge(found, list(part["model"]), claims)
        new = judged[judged["model"].isin(part["model"][part["seed"] != 0])]
        columns[recipe] = {
            claim.name: _in_words(
                judged["verdict"][judged["claim"] == claim.name],
                new["verdict"][new["claim"] == claim.name],
            )
            for claim in claims
        }
    return pd.DataFrame(columns, index=[claim.name for claim in claims])


def _in_words(verdicts: pd.Series[Any], new: pd.Series[Any]) -> str:
    """The verdicts on one claim, of all seeds and of the new ones, in words."""
    asked, new = (some[some != "cannot be asked"] for some in (verdicts, new))
    if asked.empty:
        return "cannot be asked"
    words = f"{(asked == 'holds').sum()} of {len(asked)}"
    if len(new):
        words += f" (new: {(new == 'holds').sum()} of {len(new)})"
    left = len(verdicts) - len(asked)
    return words + (f", {left} cannot be asked" if left else "")


# --- shorthand ------------------------------------------------------------------------------------


class _NoAnswerError(LookupError):
    """A claim reads a table that has no numbers of the model."""


class _Answered(dict[str, pd.DataFrame]):
    """The tables that have numbers of one model."""

    def __missing__(self, label: str) -> pd.DataFrame:
        raise _NoAnswerError(label)


def _measured(claim: Claim, own: Tables) -> Measured:
    try:
        return claim.measure(own) if does_the_task(own) else None
    except _NoAnswerError:
        return None


def _logit_diff(own: Tables) -> float:
    return float(_behaviour(own)["logit_diff"])


def _behaviour(own: Tables) -> pd.Series:
    table = own["behaviour"]
    row: pd.Series = table[table["order"] == "all"].iloc[0]
    return row


def _reaches(value: float, least: float, error: float = 0.0) -> Measured:
    value, least = float(value), float(least + ERRORS * error)
    return None if np.isnan(value) or np.isnan(least) else (value, least)


def _at_least(row: pd.Series, column: str, least: float) -> Measured:
    return _reaches(row[column], least, row[f"{column} error"])


def _beyond_nothing(row: pd.Series, column: str) -> Measured:
    return _at_least(row, column, 0.0)


def _holds(measured: Measured) -> bool:
    return measured is not None and measured[0] > measured[1]
