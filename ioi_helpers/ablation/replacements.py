"""What an ablated component writes instead: nothing, a mean, or what it writes elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import forward
from ioi_helpers.ablation.components import hook_at, site_of
from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.dataset.two_answers import clean_of, has_bos, orders_of, template_ids_of
from ioi_helpers.edits import hooks_off
from ioi_helpers.graph import Node
from ioi_helpers.runs import (
    DEFAULT_MEMORY,
    in_parts,
    misalignment,
    prompts_at_once,
    refuse_misaligned,
    refuse_too_long,
    require_alike,
    require_as_many,
    require_data,
    require_model,
    role_positions,
)

METHODS: tuple[str, ...] = ("zero", "mean", "resample")
"""What a component's output can be replaced by."""
GROUPINGS: tuple[str, ...] = ("template and order", "template", "all")
"""Which prompts of the reference share a mean."""

Written = tuple[Int[Tensor, " rows"], dict[tuple[str, int], Float[Tensor, "rows pos *rest"]]]
"""Some prompts' rows, and what is written on them: ``("z", layer)`` or ``("mlp_out", layer)`` ->
values at all positions."""


@dataclass(frozen=True)
class Replacement:
    """New values of one component on every prompt of a dataset.

    Attributes:
        component: What is replaced.
        at: ``[batch place]``, the positions; -1 fills up shorter prompts. None: at every position
            of whatever the model is run on.
        index: ``[batch place]``, the row of ``table`` that stands there.
        table: ``[value d]``, in units of a head's ``z`` or of an MLP's output.
    """

    component: Node
    at: Int[Tensor, "batch place"] | None
    index: Int[Tensor, "batch place"] | None
    table: Float[Tensor, "value d"]

    def rows(self, chosen: Int[Tensor, " rows"] | slice) -> Replacement:
        """The same for some of the prompts."""
        if self.at is None or self.index is None:
            return self
        # Places may be on the CPU, with the data, whatever device the model runs on.
        if isinstance(chosen, Tensor):
            chosen = chosen.to(self.at.device)
        return Replacement(self.component, self.at[chosen], self.index[chosen], self.table)

    def apply(self, activation: Float[Tensor, "batch pos *rest"]) -> None:
        """Write the values into an activation (a head's layer's z, or the MLP's output)."""
        head = self.component.head
        self.apply_to(activation if head is None else activation[:, :, head])

    def apply_to(self, target: Float[Tensor, "batch pos d"]) -> None:
        """Write the values into the component's own part of an activation."""
        table = self.table.to(target)
        if self.at is None or self.index is None:
            target[:] = table[0]
            return
        at, index = self.at.to(target.device), self.index.to(target.device)
        row, place = ((at >= 0) & (at < target.shape[1])).nonzero(as_tuple=True)
        target[row, at[row, place]] = table[index[row, place]]


def replacements(
    model: TransformerBridge,
    components: Sequence[Node],
    how: str,
    reference: TwoAnswerData | None,
    data: TwoAnswerData | None,
    *,
    gpt: forward.Decoder | None = None,
    memory: int = DEFAULT_MEMORY,
    group: str = "template and order",
    written: Iterable[Written] | None = None,
) -> list[Replacement]:
    """The values that stand in for each component.

    A mean is taken over the reference's prompts of the same template and order (in which the IOI
    paper counts the orders of a sentence as two templates), and at the same *place*: at the role's
    position where the component has a role. Where it has none, every position is replaced, and two
    positions are the same place if they stand equally far behind the same role (before the first
    role: equally far before it); BOS is a place of its own. Where ``group`` pools the orders, the
    roles counted from are the first of the two names, S2 and END, which stand alike in both.
    Without prefix sentences all of that is the paper's "same template, same position".

    Args:
        model: The model, for what it writes on the reference.
        components: What is to be replaced.
        how: One of :data:`METHODS`.
        reference: Prompts to take values from. None for ``"zero"``.
        data: The prompts that will be run. None: those that the reference was made from
            (``reference.clean``).
        gpt: The model's weights, if it is one that :mod:`ioi_helpers.forward` can run.
        memory: Bytes that running the reference may use.
        group: Which prompts share a mean, one of :data:`GROUPINGS`.
        written: What these components write on the reference, where that is known already.

    Raises:
        ValueError: The reference is missing, has other templates or (resampling) another size or
            other lengths, or lacks a template; or a prompt lacks a role.
    """
    if how not in METHODS:
        raise ValueError(f"how must be one of {', '.join(METHODS)}, not {how!r}.")
    if data is None and reference is not None:
        require_data(model, reference)
        data = clean_of(reference)
    if data is None:
        require_model(model)
    else:
        require_data(model, data)
    if how == "zero":
        return [_zeros(model, component, data) for component in components]
    if reference is None or data is None:
        raise ValueError(
            f"how={how!r} takes values from other prompts; give them as reference=, such as "
            "data.abc()."
        )
    require_data(model, reference)
    require_alike(data, reference, "reference")
    refuse_too_long(model, reference.tokens)
    if how == "resample":
        places = {c.role: _partners(data, reference, c.role) for c in components}
    else:
        if getattr(reference, "templates", None) != getattr(data, "templates", None):
            raise ValueError(
                "The reference has other templates than the data, and a mean is taken over prompts "
                "of the same template; make it from the data itself, such as data.abc()."
            )
        places = {c.role: _same_places(data, reference, c.role, group) for c in components}

    sums = {c: _empty_table(model, c, places[c.role].n_values) for c in components}
    device = model.W_E.device
    counts = {role: torch.zeros(p.n_values, device=device) for role, p in places.items()}
    if written is None:
        wanted = dict.fromkeys((site_of(c), c.layer) for c in components)
        written = written_on(model, gpt, reference, list(wanted), memory)
    for rows, activations in written:
        for role, place in places.items():
            at, index = (x[rows].to(device) for x in place.source)
            row, k = (at >= 0).nonzero(as_tuple=True)
            counts[role].index_add_(0, index[row, k], torch.ones_like(row, dtype=torch.float))
            for component in (c for c in components if c.role == role):
                values = activations[site_of(component), component.layer]
                if component.head is not None:
                    values = values[:, :, component.head]
                sums[component].index_add_(
                    0, index[row, k], values[row, at[row, k]].to(sums[component])
                )
    tables = {c: sums[c] / counts[c.role].to(sums[c])[:, None].clamp(min=1) for c in components}
    return [Replacement(c, *places[c.role].data, tables[c].to(_dtype(model))) for c in components]


def _empty_table(model: TransformerBridge, component: Node, n: int) -> Tensor:
    # Means of float32 values are added up in float64, which makes them the same however prompts are
    # cut into batches. (Apple's MPS has none.)
    device = model.W_E.device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    width = model.cfg.d_model if component.head is None else model.cfg.d_head
    return torch.zeros(n, width, dtype=dtype, device=device)


def _dtype(model: TransformerBridge) -> torch.dtype:
    """Of what stands in: not rounded to half precision before it is used."""
    return torch.promote_types(model.W_E.dtype, torch.float32)


def _zeros(model: TransformerBridge, component: Node, data: TwoAnswerData | None) -> Replacement:
    table = _empty_table(model, component, 1).to(_dtype(model))
    if component.role is None:
        return Replacement(component, None, None, table)
    if data is None:
        raise ValueError(
            f"Where {component.role} stands depends on the prompts; give those that the model will "
            "run on as data=."
        )
    at = role_positions(data, component.role)[:, None].to(table.device)
    return Replacement(component, at, torch.zeros_like(at), table)


# --- what corresponds to what --------------------------------------------------------------------


class _Places(NamedTuple):
    """Positions of each prompt, -1 where there is none, and which of the values belongs to each."""

    at: Int[Tensor, "batch place"]
    which: Int[Tensor, "batch place"]


class _Match(NamedTuple):
    """Where values go to in the data, and where they are taken from in the reference."""

    data: _Places
    source: _Places
    n_values: int


def _partners(data: TwoAnswerData, reference: TwoAnswerData, role: str | None) -> _Match:
    """Each prompt's values are those of the reference's prompt in the same row."""
    require_as_many(data, reference)
    device = data.tokens.device
    if role is not None:
        at = role_positions(data, role)[:, None]
        # A prompt and its counterfactual correspond token by token; of others only roles do.
        own = role_positions(reference, role)[:, None].to(device)
        source_at = own if misalignment(data, reference) else at
    else:
        refuse_misaligned(data, reference)
        at = source_at = _all_positions(data)
    index = torch.arange(at.numel(), device=device).reshape(at.shape)
    return _Match(_Places(at, index), _Places(source_at, index), at.numel())


def _same_places(
    data: TwoAnswerData, reference: TwoAnswerData, role: str | None, group: str
) -> _Match:
    """Values are shared by equal places of prompts of the same template and order."""
    orders = sorted({*orders_of(data), *orders_of(reference)})
    at, keys = _keyed(data, role, group, orders)
    source_at, source_keys = (x.to(at.device) for x in _keyed(reference, role, group, orders))
    known, source_index = source_keys.flatten().unique(return_inverse=True)
    index = torch.searchsorted(known, keys).clamp(max=len(known) - 1)
    missing = (at >= 0) & (known[index] != keys)
    if missing.any():
        row, place = missing.nonzero()[0].tolist()
        where = "" if role is not None else f", at the place of its token {int(at[row, place])}"
        template, order = int(template_ids_of(data)[row]), orders_of(data)[row]
        raise ValueError(
            f"The reference has no prompt like prompt {row} (template {template}, order "
            f"{order}{where}), so there is no mean to replace it by; use data.abc(), or more "
            "reference prompts."
        )
    source = _Places(source_at, source_index.reshape(source_at.shape))
    return _Match(_Places(at, index), source, len(known))


def _all_positions(data: TwoAnswerData) -> Int[Tensor, "batch pos"]:
    positions = torch.arange(int(data.lengths.max()), device=data.tokens.device)
    return torch.where(positions < data.lengths[:, None], positions, -1)


def _keyed(
    data: TwoAnswerData, role: str | None, group_by: str, orders: Sequence[str]
) -> tuple[Int[Tensor, "batch place"], Int[Tensor, "batch place"]]:
    """Positions, and a number for each that says which place it is (see `replacements`)."""
    device = data.tokens.device
    group = torch.zeros(len(data), dtype=torch.long, device=device)
    if group_by != "all":
        group = template_ids_of(data).to(device) * len(orders)
    if group_by == "template and order":
        numbers = [orders.index(order) for order in orders_of(data)]
        group = group + torch.tensor(numbers, device=device)
    if role is not None:
        return role_positions(data, role)[:, None], group[:, None]
    at = _all_positions(data)
    marks = _marks(data, pooled=group_by != "template and order")
    segment = (at[:, :, None] >= marks[:, None]).sum(dim=-1)  # roles at or before each position
    opened_by = marks.gather(1, (segment - 1).clamp(min=0))
    offset = at - opened_by
    if has_bos(data):
        first = at == 0
        segment, offset = segment.masked_fill(first, -1), offset.masked_fill(first, 0)
    most = 2**20  # more than any offset
    segments = marks.shape[1] + 2
    keys = ((group[:, None] * segments + segment + 1) * 2 + 1) * most + offset
    # What only fills up shorter prompts is nobody's place.
    return at, keys.masked_fill(at < 0, -1)


def _marks(data: TwoAnswerData, pooled: bool) -> Int[Tensor, "batch mark"]:
    """The positions that places are counted from, ascending.

    All roles, where a mean is of one order. Where orders are pooled, only what stands at the same
    token index in both: the pair's first name, which is IO or S1, then S2 and END. (IO, S1 and S1+1
    follow each other differently, so that counting from them would mix token indices.)
    """
    at = data.positions
    if pooled and {"IO", "S1", "S2"} <= set(at):
        roles = [torch.minimum(at["IO"], at["S1"]), at["S2"], at["END"]]
    else:
        roles = list(at.values())
    return torch.stack(roles, dim=1).sort(dim=1).values


# --- what the model writes on the reference ------------------------------------------------------


@torch.no_grad()
def written_on(
    model: TransformerBridge,
    gpt: forward.Decoder | None,
    data: TwoAnswerData,
    wanted: Sequence[tuple[str, int]],
    memory: int,
) -> Iterator[Written]:
    """The layers' z or mlp_out, [batch pos ...], part by part.

    Without TransformerLens' hooks that are on the model, so that nested ablations all take their
    values from the whole model.
    """
    sites = {site for site, _ in wanted}
    blocks = 1 + max(layer for _, layer in wanted)
    device = model.W_E.device
    width = int(data.lengths.max())
    kept = width * model.cfg.d_model * blocks * len(sites)
    for rows in in_parts(data.lengths, prompts_at_once(model, width, memory, kept=kept)):
        tokens = data.tokens[rows, :width].to(device)
        if gpt is not None:
            last = data.lengths[rows].to(device) - 1
            run = forward.run(gpt, tokens, last, sites, blocks=blocks)
            yield rows, {(site, layer): run[site][layer] for site, layer in wanted}
            continue
        found: dict[str, Tensor] = {}

        def keep(
            activation: Tensor, hook: Any, name: str, found: dict[str, Tensor] = found
        ) -> None:
            found[name] = activation.detach().clone()

        names = {(site, layer): hook_at(site, layer) for site, layer in wanted}
        hooks = [(name, partial(keep, name=name)) for name in names.values()]
        with hooks_off(model):
            model.run_with_hooks(tokens, fwd_hooks=hooks, return_type=None, logits_to_keep=1)
        yield rows, {key: found[name].to(device) for key, name in names.items()}
