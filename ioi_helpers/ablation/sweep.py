"""Many ablations, one at a time, and the logit difference of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import forward
from ioi_helpers.ablation import fast
from ioi_helpers.ablation.components import require_components
from ioi_helpers.ablation.context import Ablation, require_arrival
from ioi_helpers.ablation.kept import KeptRuns, parts_for, written_for
from ioi_helpers.ablation.replacements import Replacement, replacements
from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.graph import Node, NodeLike, Shape
from ioi_helpers.patching import SweepResult, sweep_result
from ioi_helpers.runs import (
    DEFAULT_MEMORY,
    logit_diffs,
    progress_bar,
    refuse_too_long,
    require_data,
)

Components = NodeLike | Iterable[NodeLike]


def ablation_sweep(
    model: TransformerBridge,
    data: TwoAnswerData,
    what: Literal["heads", "mlps"]
    | str
    | Mapping[str, Components]
    | Sequence[Components] = "heads",
    *,
    how: Literal["mean", "zero", "resample"] | str = "mean",
    reference: TwoAnswerData | None = None,
    role: str | None = None,
    kept: KeptRuns | None = None,
    engine: forward.Engine = "auto",
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> SweepResult:
    """Ablate every head, every MLP, or each of some sets, one at a time.

    One entry of such a sweep, with the context manager::

        with ablate(model, [("L9H9", "END")], how=how, reference=reference):
            logit_diff(model(data.tokens), data, per_prompt=True)

    Args:
        model: Any model that TransformerBridge boots; those of `forward.FAMILIES` are fast.
        data: Prompts; they may differ in length.
        what: ``"heads"``, ``"mlps"``, or sets of components such as
            ``[["L9H9"], ["L9H9", ("L9H6", "END")]]``, each of which is ablated together; under
            names of your own as ``{"two": [...]}``.
        how, reference: As for :func:`~ioi_helpers.ablation.ablate`.
        role: The position at which heads or MLPs are ablated; None: at all. It also holds for
            components of a set that have no role of their own.
        kept: As for :func:`~ioi_helpers.ablation.ablate`.
        engine: ``"fast"`` refuses models it does not know, ``"hooks"`` always runs the whole model
            under :func:`~ioi_helpers.ablation.ablate`, and ``"auto"`` does that where it must.
        memory: Bytes that the sweep may use for activations; what does not fit is done in parts.
        progress: Show a progress bar where there is something to wait for.

    Returns:
        ``values`` is ``[layer head batch]``, ``[layer batch]`` or ``[set batch]``, the logit
        difference of each prompt under each ablation; ``baseline`` is that of the whole model, so
        that ``effect()`` is negative where a component helped. ``labels`` names the ablations.

    Raises:
        ValueError: As for :func:`~ioi_helpers.ablation.ablate`; no sets; or an unknown ``what`` or
            ``engine``.
    """
    axes, labels, entries = _entries(model, what, role)
    require_data(model, data)
    refuse_too_long(model, data.tokens[:, : int(data.lengths.max())])
    gpt = forward.weights_for(model, engine)
    components = tuple(dict.fromkeys(itertools.chain.from_iterable(entries)))
    written = written_for(kept, gpt, model, reference)
    found = replacements(
        model, components, how, reference, data, gpt=gpt, memory=memory, written=written
    )
    by_component = dict(zip(components, found, strict=True))
    sets = [[by_component[component] for component in entry] for entry in entries]
    if gpt is None:
        values, clean = _by_hooks(model, data, sets, memory, progress)
    else:
        parts = parts_for(kept, gpt, model, data, memory)
        values, clean = _fast(gpt, data, sets, parts, memory, progress)
    return sweep_result(
        values,
        axes,
        clean=clean,
        pair_ids=data.pair_ids,
        method=f"{how} ablation",
        site=what if isinstance(what, str) else "sets",
        labels=labels,
    )


def _entries(
    model: TransformerBridge, what: object, role: str | None
) -> tuple[dict[str, Sequence[int] | Sequence[str]], list[str], list[tuple[Node, ...]]]:
    """What stands along each axis, and each ablation's name and components."""
    shape = Shape.of(model)
    layers, heads = range(shape.n_layers), range(shape.n_heads)

    def parsed(components: Components) -> tuple[Node, ...]:
        nodes = require_components(model, components)
        # Once more, which checks the role.
        return require_components(model, [node.at(node.role or role) for node in nodes])

    if what == "heads":
        entries = [parsed(node) for node in shape.nodes()]
        return {"layer": layers, "head": heads}, _labels(entries), entries
    if what == "mlps":
        entries = [parsed(f"MLP{layer}") for layer in layers]
        return {"layer": layers}, _labels(entries), entries
    if isinstance(what, str) or not isinstance(what, Mapping | Sequence):
        raise ValueError(
            f"what must be 'heads', 'mlps' or a list of sets such as [['L9H9', 'L9H6']], not "
            f"{what!r}."
        )
    if not what:
        raise ValueError("There is nothing to ablate; give at least one set, such as [['L9H9']].")
    entries = [parsed(one) for one in (what.values() if isinstance(what, Mapping) else what)]
    labels = [str(name) for name in what] if isinstance(what, Mapping) else _labels(entries)
    return {"set": labels}, labels, entries


def _labels(entries: Sequence[Sequence[Node]]) -> list[str]:
    return [" + ".join(str(component) for component in entry) for entry in entries]


@torch.no_grad()
def _fast(
    gpt: forward.Decoder,
    data: TwoAnswerData,
    sets: Sequence[Sequence[Replacement]],
    parts: fast.Parts | list[fast.Part],
    memory: int,
    progress: bool,
) -> tuple[Float[Tensor, "entry batch"], Float[Tensor, " batch"]]:
    values = torch.empty(len(sets), len(data), dtype=gpt.dtype, device=gpt.device)
    baseline = torch.empty(len(data), dtype=gpt.dtype, device=gpt.device)
    width = int(data.lengths.max())
    most = min(forward.MOST_TOKENS, max(1, memory // 2 // gpt.bytes_per_token(width)))
    with progress_bar("ablating", show=progress, total=len(parts) * len(sets)) as bar:
        for one in parts:
            rows, base = one.rows, one.base
            diffs = partial(
                forward.logit_diffs,
                gpt,
                io_tokens=data.io_tokens[rows],
                s_tokens=data.s_tokens[rows],
            )
            baseline[rows] = diffs(base.final)
            last, chosen = base.last, torch.arange(len(data))[rows]
            here = [[value.rows(chosen) for value in entry] for entry in sets]
            alone = [i for i, entry in enumerate(here) if len(entry) == 1]
            layers = [here[i][0].component.layer for i in alone]
            counts = [int((last + 1 - fast.first_position(here[i][0], last)).sum()) for i in alone]
            for part in forward.by_layer_in_parts(layers, counts, most):
                chunk = [alone[number] for number in part]
                edits = [fast.residual_edit(gpt, base, here[i][0]) for i in chunk]
                final = forward.run_edits(gpt, base, edits).unflatten(0, (len(chunk), -1))
                values[chunk, rows] = diffs(final)
                bar.update(len(chunk))
            for i, entry in enumerate(here):
                if len(entry) > 1:
                    values[i, rows] = diffs(fast.ablated_run(gpt, one.tokens, base, entry).final)
                    bar.update(1)
    return values, baseline


def _by_hooks(
    model: TransformerBridge,
    data: TwoAnswerData,
    sets: Sequence[Sequence[Replacement]],
    memory: int,
    progress: bool,
) -> tuple[Float[Tensor, "entry batch"], Float[Tensor, " batch"]]:
    """The same by hooks: one run of the whole model for each entry."""
    require_arrival(model, {value.component for entry in sets for value in entry})
    diffs = partial(logit_diffs, model, data, memory=memory, progress=False)
    values = []
    with progress_bar("ablating", show=progress, total=len(sets)) as bar:
        for entry in sets:
            values.append(diffs([Ablation(tuple(entry))]))
            bar.update(1)
    return torch.stack(values), diffs()
