"""A belief put in at S2 by LRQP, followed to the heads that report it and those that obey it."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import edits, heads, lrqp, probing, runs
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.runs import DEFAULT_MEMORY
from ioi_helpers.survey.rows import by_order, described, with_error, with_errors

TABLE_PROMPTS = 48
"""Head classes are those of a head table of so many prompts."""


def belief(
    model: TransformerBridge,
    data: IOIDataset,
    *,
    role: str = "S2",
    test_share: float = 0.33,
    seed: int = 0,
    memory: int = DEFAULT_MEMORY,
) -> pd.DataFrame:
    """Follow an injected belief about the order: one row.

    LRQP puts the other order in at the place before a block where that flips most answers of the
    training prompts (the earliest of equals). Then: do S-inhibition heads, summed, report it at
    END; do name movers look at S1; and do answers return when name movers look where they looked?
    Head classes are those that a head table of the first prompts supports; heads of layers before
    the place are left out.

    Args:
        role: Whose token.
        test_share, seed: Of :func:`ioi_helpers.probing.split`.
        model, data, memory: As everywhere.
    """
    settings: dict[str, Any] = {"memory": memory, "progress": False}
    table = heads.head_table(
        model, data[:TABLE_PROMPTS], sweep_prompts=TABLE_PROMPTS, copying_prompts=2, seeds=(0, 1),
        length=20, **settings,
    )  # fmt: skip
    known = heads.registry_of(table)
    rows_of = probing.split(probing.groups(data, role), test_share, seed=seed)
    train, test = data[rows_of.train], data[rows_of.test]
    points = [point for point in runs.residual_points(model) if point.endswith(".pre")]
    fit_on = runs.activations_at(model, train, role, points, **settings)
    probes = {point: probing.fit_probe(fit_on[point], train.orders) for point in points}
    spreads = {point: probing.fit_covariance(fit_on[point]) for point in points}

    def edit(part: IOIDataset, point: str, x: torch.Tensor) -> Any:
        other = ["BABA" if order == "ABBA" else "ABBA" for order in part.orders]
        moved = lrqp.intervene(x, probes[point], other, spreads[point], true=part.orders).x
        return edits.residual_edit(part, role, point, moved)

    before = runs.logit_diffs(model, train, **settings).cpu()
    flips = {}
    for point in points:
        after = runs.logit_diffs(model, train, [edit(train, point, fit_on[point])], **settings)
        flips[point] = float(((before > 0) & (after.cpu() < 0)).double().mean())
    place = max(points, key=lambda point: flips[point])  # the first of equals
    # Heads before the place cannot have heard of the edit.
    carriers, movers = (
        [head for head in known.of_class(name) if heads.parse_head(head)[0] >= points.index(place)]
        for name in ("s_inhibition", "name_mover")
    )

    at = runs.activations_at(model, test, role, [place], **settings)[place]
    injected = edit(test, place, at)
    pairs, clean = test.pair_ids.cpu(), runs.logit_diffs(model, test, **settings).cpu()
    row: dict[str, Any] = {"point": place, "role": role, "prompts": len(test)}
    row["pairs"] = len(pairs.unique())
    row |= {"S-inhibition heads": ", ".join(carriers), "name movers": ", ".join(movers)}

    def flipped(name: str, chosen: list[Any]) -> None:
        after = runs.logit_diffs(model, test, chosen, **settings).cpu()
        turned = ((clean > 0) & (after < 0)).double()
        for order, some in by_order(test).items():
            what = name if order == "all" else f"{name} {order}"
            row.update(with_error(what, turned[some], pairs[some]))

    flipped("flipped", [injected])
    if carriers:

        def summed(part: IOIDataset, on: tuple[Any, ...] = ()) -> torch.Tensor:
            each = probing.head_outputs(model, part, "END", carriers, on, **settings)
            return torch.stack(list(each.values())).sum(dim=0)

        reader = probing.fit_probe(summed(train), train.orders)
        for name, on in (("true order reported", ()), ("injected order reported", (injected,))):
            said = reader.predict(summed(test, on))
            right = [a == b for a, b in zip(said, test.orders)]
            values = torch.tensor(right, dtype=torch.float64)
            row |= with_error(name, 1 - values if on else values, pairs)
    if movers:
        where = [heads.parse_head(head) for head in movers]
        for name, on in (("clean", ()), ("injected", (injected,))):
            asked = [("END", "IO"), ("END", "S1")]
            looks = runs.attention_of_pairs(model, test, asked, on, **settings)
            for i, key in enumerate(("IO", "S1")):
                mean = torch.stack([looks[head][i] for head in where]).mean(dim=0).cpu()
                row |= with_error(f"movers to {key}, {name}", mean, pairs)
        patterns = runs.attention_patterns(model, test, movers, "END", **settings)
        restored = [edits.attention_edit(test, "END", head, p) for head, p in patterns.items()]
        flipped("flipped, movers' looks restored", [injected, *restored])
    return described(pd.DataFrame([row | {k: row.get(k, math.nan) for k in _ABOUT}]), _ABOUT)


_FLIPPED = "share of {} prompts that are right before and wrong after it"
_ABOUT = {
    "point": "where it was put in",
    "role": "whose token",
    "prompts": "how many held-out prompts",
    "pairs": "how many independent pairs they are",
    "S-inhibition heads": "heads of this class, by a head table, in layers from the place on",
    "name movers": "likewise",
    **with_errors(
        {
            "flipped": _FLIPPED.format("all"),
            "flipped ABBA": _FLIPPED.format("ABBA"),
            "flipped BABA": _FLIPPED.format("BABA"),
            "true order reported": "share of prompts on which a probe of what S-inhibition heads "
            "write at END, summed, reads the true order without an edit",
            "injected order reported": "the same of the injected order, with it",
            "movers to IO, clean": "attention from END to IO, mean over name movers",
            "movers to S1, clean": "the same to S1",
            "movers to IO, injected": "attention to IO with the injected order",
            "movers to S1, injected": "the same to S1",
            "flipped, movers' looks restored": "share of all prompts that are still flipped when "
            "name movers look from END where they look without an edit",
            "flipped, movers' looks restored ABBA": "the same of ABBA",
            "flipped, movers' looks restored BABA": "the same of BABA",
        }
    ),
}
