"""How the rows of a survey's tables are made: means with their errors over pairs, and shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.dataset.two_answers import orders_of
from ioi_helpers.metrics import standard_error
from ioi_helpers.patching import SweepResult

OVER_PAIRS = "its standard error over pairs of prompts"
COUNTERFACTUALS = ("abc", "swap_subject", "swap_order", "random_names")

ROWS = {
    "order": "which prompts: all, ABBA (IO first) or BABA (S first)",
    "prompts": "how many of them",
    "pairs": "how many independent pairs they are",
}

PLACE = {"name": "what was changed", "layer": "its layer", "head": "its index in the layer"}
SHARE = {"share": "the same as a share of the model's own logit difference"}
SWEPT = {
    **PLACE,
    "role": "at whose token",
    "pos": "at which token, counted from 0",
    "sender": "who writes",
    "receiver": "who reads",
}


def counterfactual(data: TwoAnswerData, name: str) -> TwoAnswerData:
    if name not in COUNTERFACTUALS:
        raise ValueError(f"{name!r} is no counterfactual; use one of {', '.join(COUNTERFACTUALS)}.")
    make = getattr(data, name, None)
    if make is None:
        raise ValueError(f"These prompts make no counterfactual by {name}().")
    made: TwoAnswerData = make()
    return made


def by_order(data: TwoAnswerData) -> dict[str, Tensor]:
    """Row numbers: all, and those of each order where there are several."""
    orders = orders_of(data)
    found = {"all": torch.arange(len(orders))}
    for order in sorted(set(orders)) if len(set(orders)) > 1 else ():
        found[order] = torch.tensor([i for i, one in enumerate(orders) if one == order])
    return found


def counted(order: str, data: TwoAnswerData, chosen: Tensor) -> dict[str, Any]:
    pairs = len(data.pair_ids.cpu()[chosen].unique())
    return {"order": order, "prompts": len(chosen), "pairs": pairs}


def with_error(name: str, values: Float[Tensor, " batch"], pairs: Tensor) -> dict[str, float]:
    """A mean, and its error over pairs (NaN for a single one)."""
    wide = values.double()
    return {name: float(wide.mean()), f"{name} error": float(standard_error(wide, pairs))}


def add_shares(
    table: pd.DataFrame,
    name: str,
    values: Float[Tensor, "cell batch"],
    clean: Float[Tensor, " batch"],
    data: TwoAnswerData,
) -> None:
    """Add the mean of an effect and its share of the model's logit difference, with errors."""
    wide, pairs = values.double(), data.pair_ids.cpu()
    total = clean.double().mean()
    share = wide.mean(dim=-1) / total
    # To first order, with pairs as observations, as for every ratio of means of this package.
    residual = (wide - share[:, None] * clean.double()) / total
    for column, mean, spread in ((name, wide.mean(dim=-1), wide), ("share", share, residual)):
        table[column] = mean.numpy()
        table[f"{column} error"] = standard_error(spread, pairs).numpy()
    table["pairs"] = len(pairs.unique())


def sweep_table(found: SweepResult, data: TwoAnswerData) -> pd.DataFrame:
    """A sweep's table: a row a cell that is possible, with its effect and share."""
    table = found.index_df.reset_index(drop=True)
    table.insert(0, "name", list(found.labels))
    effect = found.effect().flatten(0, -2).cpu()
    if "possible" in table:
        kept = table["possible"].to_numpy(dtype=bool)
        table, effect = table[kept].drop(columns="possible"), effect[torch.tensor(kept)]
        table = table.reset_index(drop=True)
    add_shares(table, "effect", effect, found.clean.cpu(), data)
    about = {"effect": f"change of the logit difference by {found.method} ({found.site}), logits"}
    places = {column: SWEPT.get(column, column) for column in table if column in SWEPT}
    return described(table, places | with_errors(about | SHARE) | {"pairs": ROWS["pairs"]})


def with_errors(about: dict[str, str]) -> dict[str, str]:
    """The columns and, after each, that of its error."""
    return {
        column: text
        for name, what in about.items()
        for column, text in ((name, what), (f"{name} error", OVER_PAIRS))
    }


def table_of(rows: Sequence[dict[str, Any]], about: dict[str, str]) -> pd.DataFrame:
    return described(pd.DataFrame(rows), about)


def described(table: pd.DataFrame, about: dict[str, str]) -> pd.DataFrame:
    table.attrs = {"columns": {column: about.get(str(column), "") for column in table}}
    return table


def ratio_values(
    part: Float[Tensor, " batch"], whole: Float[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Values whose mean is the ratio of two means, and whose error is its own, to first order."""
    of, total = part.double(), whole.double().mean()
    ratio = of.mean() / total
    return ratio + (of - ratio * whole.double()) / total
