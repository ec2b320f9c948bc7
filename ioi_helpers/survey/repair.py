"""What a model does about a loss: each of its strongest writers ablated alone at END."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import attribution, heads, runs
from ioi_helpers.ablation import AblationEffects, ablation_effects
from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.runs import DEFAULT_MEMORY
from ioi_helpers.survey.rows import (
    ROWS,
    by_order,
    counted,
    counterfactual,
    described,
    ratio_values,
    table_of,
    with_error,
    with_errors,
)

BACK = ("later heads", "later MLPs", "LayerNorm")
TERMS = ("direct effect", *BACK, "total")
OF_REMOVED = {
    "name": "the head that is ablated at END",
    "layer": "its layer",
    "head": "its index in the layer",
    "rank": "0 for the head that writes most for the answer, 1 for the next ...",
    "later layers": "how many layers come after it",
}


def repair(
    model: TransformerBridge,
    data: TwoAnswerData,
    *,
    writers: int = 6,
    how: str = "mean",
    reference: str = "abc",
    memory: int = DEFAULT_MEMORY,
) -> pd.DataFrame:
    """What is lost without each of the strongest writers, and who gives it back.

    A row for each of them and each order, and for the strongest one more, of its prompts in both
    orders ("ABBA less BABA"): the four terms of :func:`~ioi_helpers.ablation.ablation_effects`, and
    the share of the direct loss that is made up for, whole and by each term.

    Args:
        writers: How many heads, those that write most for the answer.
        how, reference: As for :func:`ablations`.
        model, data, memory: As everywhere.
    """
    rows = []
    for place, found in _removed(model, data, writers, how, reference, memory):
        pair_ids = data.pair_ids.cpu()
        for order, chosen in by_order(data).items():
            values = _values(found, chosen)
            row = place | counted(order, data, chosen)
            for name, one in values.items():
                row |= with_error(name, one, pair_ids[chosen])
            rows.append(row)
        if place["rank"] == 0 and hasattr(data, "swap_order") and len(by_order(data)) > 1:
            rows.append(place | _by_swapping(model, data, found, how, reference, memory))
    about = {term: f"{term}, change of the logit difference, logits" for term in TERMS}
    about["made up for"] = "what is given back, as a share of the direct loss"
    about |= {f"by {term}": f"what {term} give back, as the same share" for term in BACK}
    return table_of(rows, OF_REMOVED | ROWS | with_errors(about))


def responses(
    model: TransformerBridge,
    data: TwoAnswerData,
    *,
    writers: int = 3,
    memory: int = DEFAULT_MEMORY,
) -> pd.DataFrame:
    """Who writes otherwise without each of the strongest writers: a row for each later head.

    They are ablated by their mean on prompts with other names.

    Args:
        writers: Of :func:`repair`.
        model, data, memory: As everywhere.
    """
    labels = heads.head_labels(model)
    clean = runs.logit_diffs(model, data, memory=memory, progress=False).cpu()
    rows = []
    for place, found in _removed(model, data, writers, "mean", "abc", memory):
        change = found.heads.flatten(0, 1).cpu()
        before = found.attribution.flatten(0, 1).cpu()
        for name, values, wrote in zip(labels, change, before, strict=True):
            if heads.parse_head(name)[0] <= place["layer"]:
                continue
            row = place | {"responds": name} | with_error("change", values, data.pair_ids.cpu())
            row |= with_error("share", ratio_values(values, clean), data.pair_ids.cpu())
            rows.append(row | {"wrote": float(wrote.mean())})
    about = with_errors(
        {
            "change": "change of what it writes for the answer, final LayerNorm frozen, logits",
            "share": "the same as a share of the model's logit difference",
        }
    )
    return described(
        pd.DataFrame(rows, columns=[*OF_REMOVED, "responds", *about, "wrote"]),
        OF_REMOVED
        | {"responds": "a head of a later layer"}
        | about
        | {"wrote": "what it writes for the answer in the whole model, logits"},
    )


def _values(found: AblationEffects, chosen: Tensor | slice = slice(None)) -> dict[str, Tensor]:
    """Terms and shares as values whose mean each is, and whose error its own, to first order."""
    whole = {**found.terms(), "total": found.total}
    values = {name: one.cpu().double()[chosen] for name, one in whole.items()}
    lost = -values["direct effect"]
    given = {f"by {term}": values[term] for term in BACK}
    for name, part in {"made up for": sum(given.values(), torch.zeros(())), **given}.items():
        values[name] = ratio_values(part, lost)
    return values


def _by_swapping(
    model: TransformerBridge,
    data: Any,
    found: AblationEffects,
    how: str,
    reference: str,
    memory: int,
) -> dict[str, Any]:
    """Every value of ABBA prompts less that of the same prompts as BABA."""
    swapped = data.swap_order()
    other = None if how == "zero" else counterfactual(swapped, reference)
    turned = ablation_effects(
        model, swapped, found.ablated_components, how=how, reference=other, memory=memory,
        progress=False,
    )  # fmt: skip
    is_abba = torch.tensor([order == "ABBA" for order in data.orders])
    row = counted("ABBA less BABA", data, torch.arange(len(data)))
    in_order = {
        want: _joined(found, turned, is_abba == (want == "ABBA")) for want in ("ABBA", "BABA")
    }
    for name, one in _values(in_order["ABBA"]).items():
        row |= with_error(name, one - _values(in_order["BABA"])[name], data.pair_ids.cpu())
    return row


def _joined(one: AblationEffects, other: AblationEffects, first: Tensor) -> AblationEffects:
    """Prompt by prompt the effects of one or of another run on as many prompts."""

    def chosen(name: str) -> Tensor:
        a, b = getattr(one, name).cpu(), getattr(other, name).cpu()
        return torch.where(first, a, b)

    names = [field.name for field in fields(one) if field.name != "ablated_components"]
    tensors: dict[str, Any] = {name: chosen(name) for name in names}
    return replace(one, **tensors)


def _removed(
    model: TransformerBridge,
    data: TwoAnswerData,
    writers: int,
    how: str,
    reference: str,
    memory: int,
) -> Iterator[tuple[dict[str, Any], AblationEffects]]:
    other = None if how == "zero" else counterfactual(data, reference)
    labels = heads.head_labels(model)
    written = attribution.head_attribution(model, data, memory=memory, progress=False).values
    strongest = torch.argsort(written.flatten(), descending=True, stable=True)[:writers].tolist()
    for rank, i in enumerate(strongest):
        layer, head = heads.parse_head(labels[i])
        place = {"name": labels[i], "layer": layer, "head": head, "rank": rank}
        place["later layers"] = model.cfg.n_layers - 1 - layer
        yield (
            place,
            ablation_effects(
                model, data, (labels[i], "END"), how=how, reference=other, memory=memory,
                progress=False,
            ),
        )  # fmt: skip
