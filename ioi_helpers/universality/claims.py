"""Sentences of the notebooks as functions: does a model's survey bear one out?

A claim is measured on the tables of one model. It *holds*, it *does not*, or it *cannot be asked*:
whether name movers obey an injected belief cannot where there are none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import pandas as pd

from ioi_helpers.universality.counting import share_interval

Tables = Mapping[str, pd.DataFrame]
Measured = tuple[float, float] | None
"""A number and what it must reach; None where the question makes no sense."""

ERRORS = 2.0
"""So many standard errors, over pairs, from nothing."""


class _HasTables(Protocol):
    @property
    def tables(self) -> dict[str, pd.DataFrame]: ...


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


# --- notebooks 02 and 03 --------------------------------------------------------------------------


def _order_stands_at_s2(own: Tables) -> Measured:
    at = own["stream"][own["stream"]["role"] == "S2"]
    # -2 of the logit difference: answered as the other order would be.
    return _some(-0.5 * at.loc[at["layer"] > 0, "share"].min(), 0.75)


def _shortcut_at_end(own: Tables) -> Measured:
    table = own["heads"]
    first = table.loc[table["layer"] == 0, "END, other names"]
    return _some(-float(first.min()) / _logit_diff(own), 0.5) if _logit_diff(own) > 0 else None


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
    return None if row is None else _beyond(row, "made up for")


def _later_heads_step_in(own: Tables) -> Measured:
    row = _strongest(own)
    if row is None or row["later layers"] == 0:
        return None
    return _beyond(row, "by later heads")


def _mostly_later_heads(own: Tables) -> Measured:
    row = _strongest(own)
    if row is None or row["later layers"] == 0:
        return None
    return _some(row["by later heads"] - max(row["by later MLPs"], row["by LayerNorm"]), 0.0)


def _abba_repaired_better(own: Tables, label: str) -> Measured:
    if _strongest(own) is None:
        return None
    table = own[label]
    rows = table[(table["rank"] == 0) & (table["order"] == "ABBA less BABA")]
    return _beyond(rows.iloc[0], "made up for") if len(rows) else None


def _no_negative_mover(own: Tables) -> Measured:
    if own["heads"]["head class"].eq("-").all():
        return None
    return _some(-float(own["heads"]["head class"].str.contains("negative_name_mover").sum()), -0.5)


def _written_before_last(own: Tables) -> Measured:
    table = own["heads"]
    if _strongest(own) is None:
        return None
    last = table["layer"] == table["layer"].max()
    written = table["direct"].clip(lower=0)
    return _some(1 - float(written[last].sum() / written.sum()), 0.5)


def _orders_have_their_own(own: Tables) -> Measured:
    """Of what the most needed head of each order costs there: what the other order is spared."""
    table = own["without"]
    costs = table.pivot_table(index="name", columns="data", values="share")
    if not {"ABBA", "BABA"} <= set(costs):
        return None
    spared = []
    for order, other in (("ABBA", "BABA"), ("BABA", "ABBA")):
        most = costs[order].idxmin()
        if costs.loc[most, order] > -0.1:
            return None
        spared.append(1 - costs.loc[most, other] / costs.loc[most, order])
    return _some(min(spared), 0.5)


# --- notebook 07 ----------------------------------------------------------------------------------


def _place(own: Tables) -> pd.Series:
    """The place in the stream at S2 where LRQP turns most answers; the first of equals."""
    table = own["lrqp"].reset_index(drop=True)
    best: pd.Series = table.loc[table["flipped"].idxmax()]
    return best


def _readable(own: Tables) -> Measured:
    return _some(own["lrqp"]["probe accuracy"].max(), 0.95)


def _flips(own: Tables) -> Measured:
    row = _place(own)
    return _some(min(row["flipped ABBA"], row["flipped BABA"]), 0.9)


def _harmless(own: Tables) -> Measured:
    return _some(1 - _place(own)["control flipped"], 0.98)


def _known_not_used(own: Tables) -> Measured:
    if _flips(own) is None or not _holds(_flips(own)):
        return None
    table = own["lrqp"].reset_index(drop=True)
    later = table[table.index > table["flipped"].idxmax()]
    later = later[later["probe accuracy"] > 0.95]
    return _some(1 - later["flipped"].min(), 0.9) if len(later) else (0.0, 0.9)


def _belief(own: Tables) -> pd.Series | None:
    row = own["belief"].iloc[0]
    return row if row["flipped"] > 0.5 else None


def _reported(own: Tables) -> Measured:
    row = _belief(own)
    return None if row is None else _some(row["injected order reported"], 0.95)


def _movers_turn(own: Tables) -> Measured:
    row = _belief(own)
    if row is None:
        return None
    return _some(row["movers to S1, injected"] - row["movers to IO, injected"], 0.0)


def _looks_decide(own: Tables) -> Measured:
    row = _belief(own)
    if row is None:
        return None
    return _some(1 - row["flipped, movers' looks restored"] / row["flipped"], 0.5)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "order at S2", "02, section 1",
        "With S2's stream from the other order before some block but the first, the answer is at "
        "least three quarters of the way to the other name.",
        _order_stands_at_s2, planted="exchange at S2",
    ),
    Claim(
        "shortcut at END", "03, section 6",
        "Three other names in one head of the first block at END cost half of the answer.",
        _shortcut_at_end,
    ),
    Claim(
        "made up for", "05, section 2",
        "Part of what the strongest writer wrote is made up for when it is ablated at END.",
        _made_up_for,
    ),
    Claim(
        "later heads step in", "05, section 2",
        "Later heads give some of it back.",
        _later_heads_step_in,
    ),
    Claim(
        "mostly by later heads", "05, section 2",
        "They give back more than later MLPs and more than LayerNorm.",
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
        "The head at END that costs most in one order costs less than half as much in the other.",
        _orders_have_their_own,
    ),
    Claim(
        "no negative name mover", "05, section 7",
        "No head looks at IO and writes against it.",
        _no_negative_mover,
    ),
    Claim(
        "written before the last block", "05, section 10",
        "Most of what heads write for the answer is written before the last block.",
        _written_before_last,
    ),
    Claim(
        "order readable", "07, section 3",
        "A probe at S2 reads the order of held-out prompts at some place.",
        _readable, planted="order read-out",
    ),
    Claim(
        "injected order flips", "07, section 4",
        "LRQP with the other order turns nine answers of ten in either order at some place.",
        _flips, planted="exchange at S2",
    ),
    Claim(
        "control harmless", "07, section 4",
        "LRQP with the true order there turns none.",
        _harmless,
    ),
    Claim(
        "known later, not used", "07, section 3",
        "At a later place the probe reads the order still, and LRQP turns hardly an answer.",
        _known_not_used, planted="exchange at END",
    ),
    Claim(
        "belief reported", "07, section 5.1",
        "What S-inhibition heads write at END, summed, tells a probe the injected order.",
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
        _looks_decide,
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
        Columns ``model``, ``claim``, ``measured``, ``must exceed`` and ``verdict``: "holds", "does
        not hold" or "cannot be asked".
    """
    if models is None:
        models = list(dict.fromkeys(map(str, found.tables["behaviour"]["model"])))
    rows = []
    for model in models:
        own = of_model(found, model)
        failed = any(table["failure"].notna().any() for table in own.values())
        for claim in claims:
            measured = None if failed else claim.measure(own)
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
        A row a claim: ``holds`` and ``of`` (models that could be asked), ``not asked``, and
        ``at least`` and ``at most``, the exact 95 % interval for the share of all such models.
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


# --- shorthand ------------------------------------------------------------------------------------


def _logit_diff(own: Tables) -> float:
    table = own["behaviour"]
    return float(table.loc[table["order"] == "all", "logit_diff"].iloc[0])


def _some(value: float, least: float) -> Measured:
    value = float(value)
    return None if np.isnan(value) else (value, least)


def _beyond(row: pd.Series, column: str) -> Measured:
    return _some(row[column], ERRORS * row[f"{column} error"])


def _holds(measured: Measured) -> bool:
    return measured is not None and measured[0] > measured[1]
