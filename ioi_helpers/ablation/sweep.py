"""Many ablations, one at a time, and the logit difference of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.patching import PatchingResult

from ioi_helpers import forward
from ioi_helpers.ablation import fast
from ioi_helpers.ablation.components import Component, Spec, parse_components
from ioi_helpers.ablation.context import ablate
from ioi_helpers.ablation.replacements import Replacement, replacements
from ioi_helpers.metrics import logit_diff
from ioi_helpers.runs import refuse_too_long

if TYPE_CHECKING:
    from ioi_helpers.dataset import IOIDataset


@dataclass(kw_only=True)
class AblationResult(PatchingResult):
    """A `PatchingResult` of ablations: the labels and statistics are those of `patch_sweep`.

    ``values`` is ``[*axes, batch]``, the logit difference of each prompt under each ablation, in
    logits, and ``baseline`` ``[batch]`` that of the whole model. ``mean()``, ``stderr()``,
    ``effect()`` (ablated minus whole: negative where the component helped), ``bootstrap_ci()`` and
    ``to_dataframe()`` are TransformerLens'. ``index_df`` names each ablation in its column
    ``ablated``.

    Attributes:
        how: ``"mean"``, ``"zero"`` or ``"resample"``.
    """

    how: str

    @property
    def labels(self) -> list[str]:
        """The name of each ablation, in the order of the flattened axes."""
        return list(self.index_df["ablated"])


def ablation_sweep(
    model: TransformerBridge,
    data: IOIDataset,
    what: Literal["heads", "mlps"]
    | str
    | Mapping[str, Spec | Iterable[Spec]]
    | Sequence[Spec | Iterable[Spec]] = "heads",
    *,
    how: Literal["mean", "zero", "resample"] | str = "mean",
    reference: IOIDataset | None = None,
    role: str | None = None,
    engine: forward.Engine = "auto",
    batch_size: int = 64,
    progress: bool = True,
) -> AblationResult:
    """Ablate every head, every MLP, or each of some sets, one at a time.

    One entry of such a sweep, with the context manager::

        with ablate(model, [("L9H9", "END")], how=how, reference=reference):
            logit_diff(model(data.tokens), data, per_prompt=True)

    Args:
        model: Any model that TransformerBridge boots; GPT-2-style ones are fast.
        data: Prompts; they may differ in length.
        what: ``"heads"``, ``"mlps"``, or sets of components such as
            ``[["L9H9"], ["L9H9", ("L9H6", "END")]]``, each of which is ablated together; under
            names of your own as ``{"two": [...]}``.
        how, reference: As for :func:`~ioi_helpers.ablation.ablate`.
        role: The position at which heads or MLPs are ablated; None: at all. It also holds for
            components of a set that have no role of their own.
        engine: ``"fast"`` refuses models it does not know, ``"hooks"`` always runs the whole model
            under :func:`~ioi_helpers.ablation.ablate`, and ``"auto"`` does that where it must.
        batch_size: Prompts run at once.
        progress: Show a progress bar where there is something to wait for.

    Returns:
        ``values`` is ``[layer head batch]``, ``[layer batch]`` or ``[set batch]``.

    Raises:
        ValueError: As for :func:`~ioi_helpers.ablation.ablate`; no sets; or an unknown ``what`` or
            ``engine``.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
    axes, sizes, table, entries = _entries(model, what, role)
    refuse_too_long(model, data.tokens)
    gpt = forward.weights_for(model, engine)
    components = tuple(dict.fromkeys(itertools.chain.from_iterable(entries)))
    if gpt is None:
        values, baseline = _loop(model, data, entries, how, reference, batch_size, progress)
    else:
        found = replacements(
            model, components, how, reference, data, gpt=gpt, batch_size=batch_size
        )
        by_component = dict(zip(components, found, strict=True))
        sets = [[by_component[component] for component in entry] for entry in entries]
        values, baseline = _sweep(gpt, data, sets, batch_size, progress)
    return AblationResult(
        values=values.unflatten(0, sizes),
        axis_names=list(axes),
        index_df=table,
        metric_names=["logit_diff"],
        reduced=False,
        baseline=baseline,
        how=str(how),
    )


def _entries(
    model: TransformerBridge, what: object, role: str | None
) -> tuple[tuple[str, ...], tuple[int, ...], pd.DataFrame, list[tuple[Component, ...]]]:
    """The axes and their sizes, a row for each ablation, and its components."""
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads

    def parsed(spec: Spec | Iterable[Spec]) -> tuple[Component, ...]:
        found = (replace(c, role=c.role or role) for c in parse_components(model, spec))
        # Once more, which checks the role.
        return parse_components(model, list(found))

    if what == "heads":
        places = list(itertools.product(range(n_layers), range(n_heads)))
        entries = [parsed((layer, head)) for layer, head in places]
        table = pd.DataFrame(places, columns=["layer", "head"])
        axes, sizes = ("layer", "head"), (n_layers, n_heads)
    elif what == "mlps":
        entries = [parsed(f"MLP{layer}") for layer in range(n_layers)]
        table = pd.DataFrame({"layer": range(n_layers)})
        axes, sizes = ("layer",), (n_layers,)  # type: ignore[assignment]
    elif isinstance(what, str) or not isinstance(what, Mapping | Sequence):
        raise ValueError(
            f"what must be 'heads', 'mlps' or a list of sets such as [['L9H9', 'L9H6']], not "
            f"{what!r}."
        )
    elif not what:
        raise ValueError("There is nothing to ablate; give at least one set, such as [['L9H9']].")
    else:
        specs = list(what.values()) if isinstance(what, Mapping) else list(what)
        entries = [parsed(spec) for spec in specs]
        labels = list(what) if isinstance(what, Mapping) else [_label(entry) for entry in entries]
        table = pd.DataFrame({"ablated": labels})
        return ("set",), (len(entries),), table, entries
    table["ablated"] = [_label(entry) for entry in entries]
    return axes, sizes, table, entries


def _label(entry: Sequence[Component]) -> str:
    return " + ".join(str(component) for component in entry)


@torch.no_grad()
def _sweep(
    gpt: forward.GPT2,
    data: IOIDataset,
    sets: Sequence[Sequence[Replacement]],
    batch_size: int,
    progress: bool,
) -> tuple[Float[Tensor, "entry batch"], Float[Tensor, " batch"]]:
    values = torch.empty(len(sets), len(data), dtype=gpt.dtype, device=gpt.device)
    baseline = torch.empty(len(data), dtype=gpt.dtype, device=gpt.device)
    starts = range(0, len(data), batch_size)
    with _bar(len(starts) * len(sets), progress) as bar:
        for start in starts:
            rows = slice(start, start + batch_size)
            tokens, base = fast.clean_run(gpt, data, rows)
            diffs = partial(
                forward.logit_diffs,
                gpt,
                io_tokens=data.io_tokens[rows],
                s_tokens=data.s_tokens[rows],
            )
            baseline[rows] = diffs(base.final)
            last, chosen = base.last, torch.arange(len(data))[rows]
            here = [[value.rows(chosen.to(gpt.device)) for value in entry] for entry in sets]
            alone = [i for i, entry in enumerate(here) if len(entry) == 1]
            layers = [here[i][0].component.layer for i in alone]
            counts = [int((last + 1 - fast.first_position(here[i][0], last)).sum()) for i in alone]
            for part in forward.by_layer_in_parts(layers, counts):
                chunk = [alone[number] for number in part]
                edits = [fast.residual_edit(gpt, base, here[i][0]) for i in chunk]
                final = forward.run_edits(gpt, base, edits).unflatten(0, (len(chunk), -1))
                values[chunk, rows] = diffs(final)
                bar.update(len(chunk))
            for i, entry in enumerate(here):
                if len(entry) > 1:
                    values[i, rows] = diffs(fast.ablated_run(gpt, tokens, base, entry).final)
                    bar.update(1)
    return values, baseline


def _loop(
    model: TransformerBridge,
    data: IOIDataset,
    entries: Sequence[tuple[Component, ...]],
    how: str,
    reference: IOIDataset | None,
    batch_size: int,
    progress: bool,
) -> tuple[Float[Tensor, "entry batch"], Float[Tensor, " batch"]]:
    """The same with hooks: one run of the whole model for each entry."""

    values = []
    with _bar(len(entries), progress) as bar:
        for entry in entries:
            with ablate(model, entry, how, reference=reference, data=data):
                values.append(model_logit_diffs(model, data, batch_size))
            bar.update(1)
    return torch.stack(values), model_logit_diffs(model, data, batch_size)


@torch.no_grad()
def model_logit_diffs(
    model: TransformerBridge, data: IOIDataset, batch_size: int
) -> Float[Tensor, " batch"]:
    """The logit difference of each prompt, from runs of the model itself, hooks and all."""
    parts = [data[i : i + batch_size] for i in range(0, len(data), batch_size)]
    device = model.cfg.device
    return torch.cat(
        [logit_diff(model(part.tokens.to(device)), part, per_prompt=True) for part in parts]
    )


def _bar(total: int, progress: bool) -> tqdm:
    return tqdm(total=total, desc="ablating", disable=not progress, leave=False, delay=2)
