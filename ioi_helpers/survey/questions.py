"""The questions that can be asked of a model: each gives a table, with units and errors.

A question is a function ``(model, data, *, memory, ...)`` that returns a DataFrame: a row an order
of the prompts, a head, an edge, a place. What each column holds, with its unit, stands in
``table.attrs["columns"]``; errors are standard errors over pairs of prompts.

Orders (ABBA and BABA) have rows of their own where a number is of the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import attribution, circuits, edits, heads, lrqp, metrics, probing, runs
from ioi_helpers.ablation import ablation_sweep
from ioi_helpers.dataset import IOIDataset, TwoAnswerData
from ioi_helpers.graph import Circuit
from ioi_helpers.patching import patch_sweep
from ioi_helpers.path_patching import edge_scores, every_input, path_sweep
from ioi_helpers.runs import DEFAULT_MEMORY
from ioi_helpers.survey.belief import belief
from ioi_helpers.survey.repair import repair, responses
from ioi_helpers.survey.rows import (
    PLACE,
    ROWS,
    SHARE,
    add_shares,
    by_order,
    counted,
    counterfactual,
    described,
    sweep_table,
    table_of,
    with_error,
    with_errors,
)

# --- the whole model -----------------------------------------------------------------------------


def behaviour(
    model: TransformerBridge, data: TwoAnswerData, *, memory: int = DEFAULT_MEMORY
) -> pd.DataFrame:
    """How well the model does the task: a row for all prompts and one for each order.

    Args:
        model, data, memory: As everywhere.
    """
    measured = {
        "logit_diff": "logit of IO minus logit of S at END, logits",
        "io_preferred": "share of prompts on which IO's logit is above S's",
        "io_probability": "probability of IO as the next word, 0 to 1",
        "s_probability": "the same of S",
        "io_rank": "how many words the model prefers to IO",
        "loss": "minus the log probability of IO, nats",
    }

    def read(part: TwoAnswerData) -> dict[str, Tensor]:
        with torch.no_grad():
            logits = runs.logits_at(model, part, "END", memory=memory, progress=False)
        found = {
            name: getattr(metrics, name)(logits, part, per_prompt=True).double()
            for name in measured
            if name != "loss"
        }
        return found | {"loss": -found["io_probability"].log()}

    values = runs.run_in_batches(model, data, read, memory=memory, progress=False)
    rows = []
    for order, chosen in by_order(data).items():
        row = counted(order, data, chosen)
        for name, one in values.items():
            row |= with_error(name, one.cpu()[chosen], data.pair_ids.cpu()[chosen])
        rows.append(row)
    return table_of(rows, ROWS | with_errors(measured))


def circuit_scores(
    model: TransformerBridge,
    data: TwoAnswerData,
    *,
    circuit: str | Sequence[Any] = "on record",
    how: str = "mean",
    memory: int = DEFAULT_MEMORY,
) -> pd.DataFrame:
    """How near a circuit comes to the model: a row for all prompts and one for each order.

    Args:
        circuit: ``"on record"`` (:func:`~ioi_helpers.circuits.circuit_of`), ``"by gradient"``
            (:func:`~ioi_helpers.circuits.circuit_by_gradient`, found on the first half of the pairs
            and scored on the other), or its nodes, such as ``[["L9H9", "END"]]``.
        how: What stands in for the rest: ``"mean"``, ``"resample"`` or ``"zero"``.
        model, data, memory: As everywhere.
    """
    kept: Any
    if circuit == "by gradient":
        _, pair = torch.unique(data.pair_ids.cpu(), return_inverse=True)
        first = (pair < (int(pair.max()) + 1) // 2).nonzero().flatten()
        rest = (pair >= (int(pair.max()) + 1) // 2).nonzero().flatten()
        search = circuits.Circuits(model, data[first], how=how, memory=memory)  # type: ignore[arg-type, index]
        kept = circuits.circuit_by_gradient(search, progress=False)
        data = data[rest]  # type: ignore[index]
    elif circuit == "on record":
        kept = circuits.circuit_of(model)
    elif isinstance(circuit, str):
        raise ValueError(
            f"circuit must be 'on record', 'by gradient' or a list of nodes, not {circuit!r}."
        )
    else:
        kept = Circuit.of(tuple(node) if isinstance(node, list) else node for node in circuit)
    scored = circuits.faithfulness(circuits.Circuits(model, data, how=how, memory=memory), kept)  # type: ignore[arg-type]
    rows = []
    for order, chosen in by_order(data).items():
        part = scored.rows(chosen.tolist())
        row = counted(order, data, chosen) | {"nodes": len(list(kept))}
        for name, run in {
            "F(M)": part.model,
            "F(C)": part.circuit,
            "F(empty)": part.empty,
        }.items():
            row |= with_error(name, run.logit_diff.cpu(), part.pair_ids)
        for name, one in {
            "F(C) / F(M)": part.ratio(),
            "normalised": part.normalised(),
            "mean |difference|": part.mean_absolute_difference(),
            "nats lost": part.nats(),
        }.items():
            row |= {name: one.mean, f"{name} error": one.stderr}
        rows.append(row | {"members": ", ".join(sorted(map(str, kept)))})
    about = {
        "F(M)": "logit difference of the model, logits",
        "F(C)": "that of the circuit",
        "F(empty)": "that of no heads at all",
        "F(C) / F(M)": "the ratio of the means",
        "normalised": "(F(C) - F(empty)) / (F(M) - F(empty))",
        "mean |difference|": "mean over prompts of |F(C) - F(M)|, logits",
        "nats lost": "loss of the circuit minus that of the model, nats of -log p(IO)",
    }
    nodes = {"nodes": "how many (head, role) pairs the circuit has", "members": "which"}
    return table_of(rows, ROWS | nodes | with_errors(about))


# --- head by head, edge by edge ------------------------------------------------------------------


def head_table(
    model: TransformerBridge,
    data: IOIDataset,
    *,
    sweep_prompts: int | None = None,
    copying_prompts: int = 12,
    seeds: Sequence[int] | None = None,
    length: int = 50,
    memory: int = DEFAULT_MEMORY,
) -> pd.DataFrame:
    """All scores and effects of every head, and its head class: a row a head.

    Args:
        model, data, sweep_prompts, copying_prompts, seeds, length, memory: Of
            :func:`ioi_helpers.heads.head_table`.
    """
    given = {} if seeds is None else {"seeds": tuple(seeds)}
    found = heads.head_table(
        model, data, sweep_prompts=sweep_prompts, copying_prompts=copying_prompts, length=length,
        memory=memory, progress=False, **given,  # type: ignore[arg-type]
    )  # fmt: skip
    table = found.reset_index()
    table.attrs = {"columns": {"name": "the head", **heads.COLUMNS}}
    return table


def head_attribution(
    model: TransformerBridge, data: TwoAnswerData, *, memory: int = DEFAULT_MEMORY
) -> pd.DataFrame:
    """What each head writes for the answer, directly: a row a head.

    Args:
        model, data, memory: Of :func:`ioi_helpers.attribution.head_attribution`.
    """
    found = attribution.head_attribution(model, data, memory=memory, progress=False)
    table = pd.DataFrame({"name": list(found.labels)})
    per_prompt = found.per_prompt.flatten(0, -2).cpu()
    table["layer"], table["head"] = zip(*map(heads.parse_head, found.labels), strict=True)
    add_shares(table, "direct", per_prompt, found.logit_diffs.cpu(), data)
    about = {"direct": "direct logit attribution at END, logits"}
    return described(table, PLACE | with_errors(about | SHARE) | {"pairs": ROWS["pairs"]})


def ablations(
    model: TransformerBridge,
    data: TwoAnswerData,
    *,
    what: str = "heads",
    how: str = "mean",
    reference: str = "abc",
    role: str | None = None,
    memory: int = DEFAULT_MEMORY,
) -> pd.DataFrame:
    """What is missed when a head or an MLP is taken away: a row for each.

    Args:
        what: ``"heads"`` or ``"mlps"``.
        how: ``"mean"``, ``"zero"`` or ``"resample"``.
        reference: One of :data:`COUNTERFACTUALS`, from which a mean is, or what is put in.
        role: Where it is taken away; None: everywhere.
        model, data, memory: As everywhere.
    """
    other = None if how == "zero" else counterfactual(data, reference)
    found = ablation_sweep(
        model, data, what, how=how, reference=other, role=role, memory=memory, progress=False
    )
    return sweep_table(found, data)


def patching(
    model: TransformerBridge,
    data: TwoAnswerData,
    *,
    corrupted: str = "abc",
    site: str = "z",
    axes: Sequence[str] = ("layer", "head"),
    direction: str = "noising",
    roles: Sequence[str] | None = None,
    memory: int = DEFAULT_MEMORY,
) -> pd.DataFrame:
    """Which activations decide: a row for each that is patched.

    Args:
        corrupted: One of :data:`COUNTERFACTUALS`.
        site, axes, direction, roles: Of :func:`~ioi_helpers.patching.patch_sweep`.
        model, data, memory: As everywhere.
    """
    found = patch_sweep(
        model, data, counterfactual(data, corrupted), site, tuple(axes), direction=direction,  # type: ignore[arg-type]
        roles=roles, memory=memory, progress=False,
    )  # fmt: skip
    return sweep_table(found, data)


def paths(
    model: TransformerBridge,
    data: TwoAnswerData,
    *,
    reference: str = "abc",
    inputs: Sequence[str] = ("final",),
    role: str | None = None,
    receivers: Sequence[Sequence[str]] | None = None,
    senders: str = "heads",
    mlps: str = "recomputed",
    memory: int = DEFAULT_MEMORY,
) -> pd.DataFrame:
    """Who tells whom, by path patching: a row for each sender and receiver.

    Args:
        reference: One of :data:`COUNTERFACTUALS`.
        inputs: Which inputs of which receivers: ``q``, ``k``, ``v`` of every head, ``in`` of every
            MLP, ``final`` (the stream that logits are read from).
        role: The token at which receivers read; None: all.
        receivers: Instead, one set of them, such as ``[["L9H9", "q", "END"]]``.
        senders: ``"heads"``, ``"mlps"`` or ``"all"``.
        mlps: ``"recomputed"`` or ``"frozen"``.
        model, data, memory: As everywhere.
    """
    if receivers is None:
        into: Any = every_input(model, tuple(inputs), role)
    else:
        into = [tuple(one) if isinstance(one, list) else one for one in receivers]
    found = path_sweep(
        model, data, counterfactual(data, reference), senders, into, mlps=mlps, memory=memory,
        progress=False,
    )  # fmt: skip
    return sweep_table(found, data)


def edges(
    model: TransformerBridge,
    data: TwoAnswerData,
    *,
    reference: str = "abc",
    method: str = "EAP-IG",
    steps: int = 5,
    inputs: Sequence[str] = ("q", "k", "v", "in", "final"),
    roles: Sequence[str] | None = None,
    memory: int = DEFAULT_MEMORY,
) -> pd.DataFrame:
    """Every possible edge's effect, estimated by gradients: a row an edge.

    Args:
        reference: One of :data:`COUNTERFACTUALS`.
        method, steps, inputs, roles: Of :func:`~ioi_helpers.path_patching.edge_scores`.
        model, data, memory: As everywhere.
    """
    found = edge_scores(
        model, data, counterfactual(data, reference), method=method, steps=steps,
        inputs=tuple(inputs), roles=roles, memory=memory, progress=False,
    )  # fmt: skip
    return sweep_table(found, data)


# --- what is known, and what is used -------------------------------------------------------------


def lrqp_sweep(
    model: TransformerBridge,
    data: IOIDataset,
    *,
    role: str = "S2",
    points: Sequence[str] | None = None,
    test_share: float = 0.33,
    seed: int = 0,
    memory: int = DEFAULT_MEMORY,
) -> pd.DataFrame:
    """Does a probe read the order of the names, and does the model use it: a row a place.

    At each place LRQP lets a probe, fitted on some prompts, believe the other order on others; the
    control lets it believe what is true as firmly.

    Args:
        role: Whose token.
        points: Such as ``["L3.mid"]``; None: every one (:func:`ioi_helpers.runs.residual_points`).
        test_share, seed: Of :func:`ioi_helpers.probing.split`.
        model, data, memory: As everywhere.
    """
    rows_of = probing.split(probing.groups(data, role), test_share, seed=seed)
    train, test = data[rows_of.train], data[rows_of.test]
    other = ["BABA" if order == "ABBA" else "ABBA" for order in test.orders]
    chosen = runs.residual_points(model) if points is None else list(points)
    settings: dict[str, Any] = {"memory": memory, "progress": False}
    fit_on = runs.activations_at(model, train, role, chosen, **settings)
    at = runs.activations_at(model, test, role, chosen, **settings)
    clean = runs.logit_diffs(model, test, **settings).cpu()
    pairs = test.pair_ids.cpu()
    of_order = by_order(test)
    rows: list[dict[str, Any]] = []
    for point in chosen:
        probe = probing.fit_probe(fit_on[point], train.orders)
        covariance = probing.fit_covariance(fit_on[point])
        right = torch.tensor([a == b for a, b in zip(probe.predict(at[point]), test.orders)])
        row: dict[str, Any] = {"point": point, "role": role, "prompts": len(test)}
        row["pairs"] = len(pairs.unique())
        row |= with_error("probe accuracy", right.double(), pairs)
        for name, target in (("", other), ("control ", test.orders)):
            solved = lrqp.intervene(at[point], probe, target, covariance, true=test.orders)
            edit = edits.residual_edit(test, role, point, solved.x)
            after = runs.logit_diffs(model, test, [edit], **settings).cpu()
            turned = ((clean > 0) & (after < 0)).double()
            for order, some in of_order.items():
                what = f"{name}flipped" if order == "all" else f"{name}flipped {order}"
                row |= with_error(what, turned[some], pairs[some])
            row |= with_error(f"{name}logit_diff", after, pairs)
            row |= with_error(f"{name}length", solved.length.cpu(), pairs)
        rows.append(row)
    about = {"probe accuracy": "share of held-out prompts whose order the probe reads"}
    for name, what in (("", "LRQP with the other order"), ("control ", "LRQP with the true order")):
        for order in of_order:
            on = "" if order == "all" else f" {order}"
            about[f"{name}flipped{on}"] = (
                f"share of{on or ' all'} prompts that are right before and wrong after {what}"
            )
        about[f"{name}logit_diff"] = f"logit difference after {what}, logits"
        about[f"{name}length"] = f"length of the move of {what}, standard deviations"
    place = {"point": "place in the stream", "role": "whose token", **ROWS}
    return table_of(rows, {k: v for k, v in place.items() if k != "order"} | with_errors(about))


QUESTIONS: dict[str, Callable[..., pd.DataFrame]] = {
    "behaviour": behaviour,
    "circuit_scores": circuit_scores,
    "head_table": head_table,
    "head_attribution": head_attribution,
    "ablations": ablations,
    "repair": repair,
    "responses": responses,
    "patching": patching,
    "paths": paths,
    "edges": edges,
    "lrqp": lrqp_sweep,
    "belief": belief,
}
"""Name -> function. What each returns, and its arguments, stand in the function's docstring."""
