"""Who tells whom, by head class: edges of two models compare where their heads do not."""

from __future__ import annotations

import numpy as np
import pandas as pd

OTHER = "other heads"

AT_LEAST = 0.005
"""Edges of a smaller share of the logit difference do not ship, and are left out of sums."""


def edges_by_class(
    edges: pd.DataFrame, heads: pd.DataFrame, at_least: float = AT_LEAST
) -> pd.DataFrame:
    """The edges of one model, summed over senders and receivers of a class.

    Args:
        edges: The model's rows of a survey's table of edges, which has a ``share``: the effect as a
            share of the model's own logit difference.
        heads: The model's head table; a head with two classes counts under the first.
        at_least: Edges of a smaller share are left out, as they are of the tables that ship: else
            sums of a survey of your own would hold what those do not.

    Returns:
        A row for each class of sender and input of a class of receiver that occur, largest first:
        ``sender`` (a head class, "other heads", "MLPs" or "embedding"), ``receiver`` (such as "q of
        name_mover", "MLPs" or "final stream", from which logits are
        read), ``share`` (the sum), ``edges`` (how many).

    Raises:
        ValueError: A table lacks a column, or has several models.
    """
    for table, column in ((edges, "share"), (heads, "head class")):
        if column not in table:
            raise ValueError(f"A table has no column {column!r}; take the edges and heads of one.")
    own = heads.set_index("name") if "name" in heads else heads
    if not own.index.is_unique:
        raise ValueError("These are tables of several models; take those of one model.")
    classes = {
        str(name): OTHER if text == "-" else str(text).split(", ")[0]
        for name, text in own["head class"].items()
    }
    edges = edges[edges["share"].abs() >= at_least]
    summed = pd.DataFrame(
        {
            "sender": [_sender(str(name), classes) for name in edges["sender"]],
            "receiver": [_receiver(str(name), classes) for name in edges["receiver"]],
            "share": edges["share"].to_numpy(dtype=float),
        }
    )
    found = summed.groupby(["sender", "receiver"], as_index=False)["share"].agg(["sum", "size"])
    found = found.rename(columns={"sum": "share", "size": "edges"})
    return found.sort_values("share", key=abs, ascending=False, ignore_index=True)


def shared_effect(one: pd.DataFrame, other: pd.DataFrame) -> float:
    """How much of two models' edges by class is the same: 0 to 1.

    Row by row the smaller of the two sizes where the signs agree, and the larger, or both where
    they do not; the sum of the former over that of the latter.

    Args:
        one, other: Of :func:`edges_by_class`.
    """
    a, b = (table.set_index(["sender", "receiver"])["share"] for table in (one, other))
    a, b = a.align(b, fill_value=0.0)
    smaller = larger = 0.0
    for sign in (1, -1):
        x, y = np.clip(sign * a, 0, None), np.clip(sign * b, 0, None)
        smaller += float(np.minimum(x, y).sum())
        larger += float(np.maximum(x, y).sum())
    return smaller / larger if larger else float("nan")


def _sender(name: str, classes: dict[str, str]) -> str:
    return "MLPs" if name.startswith("MLP") else classes.get(name, name)


def _receiver(name: str, classes: dict[str, str]) -> str:
    where, of, whom = name.partition(" of ")
    if not of:
        return name
    return "MLPs" if whom.startswith("MLP") else f"{where} of {classes.get(whom, whom)}"
