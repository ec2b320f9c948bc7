"""Put new activations into a run: the residual stream at a role, or a head's attention.

An edit belongs to certain prompts and holds, for each, where it acts and what it puts there, so
prompts may differ in length. :func:`edited` puts edits on a model and always takes them off again.

In the middle of a block TransformerLens 4.3 has no hook that will do: ``hook_resid_mid`` is the
MLP's input alone, and what is written there misses the skip connection. Here the stream before the
block is remembered, and the difference that an edit makes is added to attention's output, which
reaches both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import metrics
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.models import refuse_too_long
from ioi_helpers.names import existing_head
from ioi_helpers.probing import parse_point, point_hook
from ioi_helpers.probing.activations import in_order, in_parts

Hook = tuple[str, Callable[..., Any]]
Rowwise = Callable[[Float[Tensor, "batch d_model"]], Float[Tensor, "batch d_model"]]


class Edit(Protocol):
    """Something that can be put on a model for a run over certain prompts."""

    def hooks(self, model: TransformerBridge) -> list[Hook]:
        """The forward hooks that make the edit."""

    def take(self, rows: Int[Tensor, " rows"]) -> Edit:
        """The edit for some of the prompts only."""


@dataclass(frozen=True)
class ResidualEdit:
    """Replace the residual stream at one position of each prompt.

    Attributes:
        point: Such as ``"L6.mid"``.
        positions: ``[batch]``, where.
        new: ``[batch d_model]``, what to put there; or a function of what is there, which must
            treat every row alike, as it may be called for some of them only.
    """

    point: str
    positions: Int[Tensor, " batch"]
    new: Float[Tensor, "batch d_model"] | Rowwise

    def take(self, rows: Int[Tensor, " rows"]) -> ResidualEdit:
        """The edit for some of the prompts only."""
        new = _take(self.new, rows) if isinstance(self.new, Tensor) else self.new
        return ResidualEdit(self.point, _take(self.positions, rows), new)

    def hooks(self, model: TransformerBridge) -> list[Hook]:
        """The forward hooks that make the edit.

        Raises:
            ValueError: The model has no such point, or none that can be edited.
        """

        def replace(stream: Float[Tensor, "batch pos d_model"], hook: Any) -> Tensor:
            rows, at = _present(self.positions, stream)
            if isinstance(self.new, Tensor):
                # The dtype first: some devices have no float64.
                new = self.new.to(stream.dtype).to(stream.device)[rows]
            else:
                new = self.new(stream[rows, at])
            out = stream.clone()
            out[rows, at] = new.to(stream.dtype)
            return out

        return residual_hooks(model, self.point, replace)


@dataclass(frozen=True)
class AttentionEdit:
    """Give one head a fixed attention pattern from one position of each prompt.

    Attributes:
        head: Such as ``"L9H9"``.
        positions: ``[batch]``, the position that attends.
        pattern: ``[batch key]``, how much it attends to each position, such as
            :func:`attention_patterns` reads from another run.
    """

    head: str
    positions: Int[Tensor, " batch"]
    pattern: Float[Tensor, "batch key"]

    def take(self, rows: Int[Tensor, " rows"]) -> AttentionEdit:
        """The edit for some of the prompts only."""
        return AttentionEdit(self.head, _take(self.positions, rows), _take(self.pattern, rows))

    def hooks(self, model: TransformerBridge) -> list[Hook]:
        """The forward hooks that make the edit."""
        layer, index = existing_head(model, self.head)

        def replace(pattern: Float[Tensor, "batch head query key"], hook: Any) -> Tensor:
            rows, at = _present(self.positions, pattern[:, 0])
            out = pattern.clone()
            wanted = self.pattern.to(pattern.dtype).to(pattern.device)[rows, : pattern.shape[-1]]
            out[rows, index, at, : wanted.shape[-1]] = wanted
            out[rows, index, at, wanted.shape[-1] :] = 0.0
            return out

        return [(f"blocks.{layer}.attn.hook_pattern", replace)]


def _take(values: Tensor, rows: Int[Tensor, " rows"]) -> Tensor:
    if len(rows) and int(rows.max()) >= len(values):
        raise ValueError(
            f"The edit was made for {len(values)} prompts, but there are at least "
            f"{int(rows.max()) + 1}; make it for the same prompts."
        )
    return values[rows.to(values.device)]


def _present(positions: Tensor, activation: Tensor) -> tuple[Tensor, Tensor]:
    """Rows, and positions in them, that a run holds; a run that stops before needs no edit."""
    if len(positions) != len(activation):
        raise ValueError(
            f"The edit was made for {len(positions)} prompts, but the run has {len(activation)}; "
            "run the model on the same prompts, or use run_edited, which takes them in parts."
        )
    positions = positions.to(activation.device)
    rows = (positions < activation.shape[1]).nonzero()[:, 0]
    return rows, positions[rows]


def edit(
    data: IOIDataset,
    role: str | Int[Tensor, " batch"],
    point: str,
    new: Float[Tensor, "batch d_model"] | Rowwise,
) -> ResidualEdit:
    """An edit of the residual stream at a role's position in each prompt.

    Args:
        data: The prompts.
        role: ``"S2"`` ..., or a position for each prompt.
        point: Before, in the middle of or after a block: ``"L6.pre"``, ``"L6.mid"``, ``"L6.post"``.
        new: What to put there, one activation a prompt (such as ``intervene(...).x``), or a
            function of what is there, the same for all rows.

    Raises:
        ValueError: An unknown role, a text that is no point, or another number of activations or
            positions than prompts.
    """
    parse_point(point)
    positions = role if isinstance(role, Tensor) else data.positions[role]
    if positions.shape != (len(data),):
        raise ValueError(
            f"There are {len(data)} prompts, but positions of shape {tuple(positions.shape)}."
        )
    if isinstance(new, Tensor) and (new.ndim != 2 or len(new) != len(data)):
        raise ValueError(
            f"There are {len(data)} prompts, but new activations of shape {tuple(new.shape)}; give "
            "[batch, d_model], one activation for each prompt."
        )
    return ResidualEdit(point, positions, new)


@contextmanager
def edited(model: TransformerBridge, *edits: Edit) -> Iterator[TransformerBridge]:
    """The model with edits on it; they come off at the end of the block, also after an error.

    ::

        solution = lrqp.intervene(x0, probe, target, covariance)
        with lrqp.edited(model, lrqp.edit(data, "S2", "L6.mid", solution.x)):
            logits = model(data.tokens)

    The runs inside must be over the prompts that the edits were made for, all of them at once; for
    many prompts use :func:`run_edited`. Several edits take effect in the order of the model's
    layers.
    """
    with model.hooks(fwd_hooks=[hook for one in edits for hook in one.hooks(model)]):
        yield model


def run_edited(
    model: TransformerBridge,
    data: IOIDataset,
    edits: Sequence[Edit],
    read: Callable[[IOIDataset], Tensor],
    *,
    batch_size: int = 64,
    dim: int = 0,
) -> Tensor:
    """Call ``read`` on part after part of the prompts, with the edits on, and join what it returns.

    Prompts of similar length come together; the result is in the order of the prompts.

    ::

        read = partial(attention_by_role, model, per_prompt=True)
        attention = run_edited(model, data, [edit], read, dim=-1)

    Args:
        model, data: The model and all the prompts that the edits were made for.
        edits: May be none: the clean run.
        read: From some of the prompts to a tensor. It must run the model on all of them at once,
            which is what a ``batch_size`` of 64 or more makes every function of this package do.
        batch_size: Prompts in a part.
        dim: The axis of the prompts in what ``read`` returns.

    Raises:
        ValueError: An edit for another number of prompts.
    """
    parts, order = [], []
    for rows in in_parts(data.lengths, batch_size):
        with edited(model, *(one.take(rows) for one in edits)):
            parts.append(read(data[rows]))
        order.append(rows)
    return in_order(parts, order, dim)


def residual_hooks(
    model: TransformerBridge, point: str, hook_fn: Callable[..., Tensor | None]
) -> list[Hook]:
    """Hooks that let a function see and really change the residual stream at a point.

    Args:
        model: A GPT-2-style model where the point is in the middle of a block.
        point: Such as ``"L6.mid"``.
        hook_fn: From ``[batch pos d_model]`` and the hook to the new stream, or None for no change;
            what TransformerLens takes for a forward hook.

    Returns:
        For ``model.hooks(fwd_hooks=...)``. With no change the run is the same bit for bit.

    Raises:
        ValueError: The model has no such point, or one that cannot be edited.
        RuntimeError: In the run, if the stream in the middle of the block is not its beginning plus
            attention's output, so that the edit would be wrong.
    """
    layer, place = parse_point(point)
    name = point_hook(model, point)
    if place != "mid":
        return [(name, hook_fn)]
    if getattr(model.cfg, "parallel_attn_mlp", False):
        raise ValueError(
            "In this model attention and MLP run in parallel, so a block has no middle; edit at "
            f'"L{layer}.pre" or "L{layer}.post".'
        )
    before: list[Tensor] = []
    wanted: list[Tensor] = []

    def remember(stream: Tensor, hook: Any) -> None:
        before[:] = [stream]

    def change(attn_out: Tensor, hook: Any) -> Tensor | None:
        if not before:
            raise RuntimeError(f"The stream before block {layer} was not seen; is it hooked out?")
        middle = before.pop() + attn_out
        new = hook_fn(middle, hook)
        if new is None or new is middle:
            return None
        wanted[:] = [new.detach()]
        return attn_out + (new - middle)

    def check(stream: Tensor, hook: Any) -> None:
        if not wanted:
            return
        new = wanted.pop()
        # Rounding of a sum of three terms, in the run's own precision.
        allowed = 64 * torch.finfo(new.dtype).eps * new.abs().amax().clamp_min(1e-30)
        if bool((stream.detach() - new).abs().amax() > allowed):
            raise RuntimeError(
                f"The edit at {point} did not arrive: in this model, or with the other hooks that "
                "are on it, the middle of a block is not its beginning plus attention's output."
            )

    return [
        (f"blocks.{layer}.hook_resid_pre", remember),
        (f"blocks.{layer}.hook_attn_out", change),
        (name, check),
    ]


class AtPoints:
    """A model whose hooks may be named by points, for TransformerLens' interchange tools.

    ``fit_das``, ``collect_activations`` and ``run_with_intervention`` take a hook's name and any
    model that has ``hooks`` and parameters. Given ``AtPoints(model)`` they take ``"L6.mid"`` too,
    and edit what they say.
    """

    def __init__(self, model: TransformerBridge) -> None:
        self.model = model

    @contextmanager
    def hooks(self, fwd_hooks: Sequence[Hook] = ()) -> Iterator[TransformerBridge]:
        """As the model's own, with points among the names."""
        translated: list[Hook] = []
        for name, hook_fn in fwd_hooks:
            is_point = isinstance(name, str) and name[:1] == "L" and "." in name
            translated += (
                residual_hooks(self.model, name, hook_fn) if is_point else [(name, hook_fn)]
            )
        with self.model.hooks(fwd_hooks=translated):
            yield self.model

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The model's parameters."""
        yield from self.model.parameters()

    def requires_grad_(self, requires_grad: bool = True) -> AtPoints:
        """As the model's own."""
        self.model.requires_grad_(requires_grad)
        return self


# --- reading a run ------------------------------------------------------------------------------


def logits_at(
    model: TransformerBridge,
    data: IOIDataset,
    role: str = "END",
    edits: Sequence[Edit] = (),
    *,
    batch_size: int = 64,
) -> Float[Tensor, "batch vocab"]:
    """The logits at one role of each prompt, with edits on.

    Only that position is unembedded, so that a large vocabulary takes neither time nor memory.

    Args:
        role: Where to read: END for the answer, or where an edit is for what it does there.
        model, data, edits, batch_size: As for :func:`run_edited`.
    """
    if model.training:
        raise ValueError("The model is in training mode, where dropout is random; call eval().")

    def read(part: IOIDataset) -> Tensor:
        with torch.no_grad():
            return logits_at_positions(model, part.tokens, part.positions[role])

    return run_edited(model, data, edits, read, batch_size=batch_size)


def logits_at_positions(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], positions: Int[Tensor, " batch"]
) -> Float[Tensor, "batch vocab"]:
    """The logits at one position of each row. Gradients flow, unless they are switched off."""
    tokens = tokens[:, : int(positions.max()) + 1].to(model.cfg.device)
    refuse_too_long(model, tokens)

    def keep_one(stream: Float[Tensor, "batch pos d_model"], hook: Any) -> Tensor:
        at = positions.to(stream.device)
        return stream[torch.arange(len(at), device=stream.device), at][:, None]

    logits: Tensor = model.run_with_hooks(tokens, fwd_hooks=[("unembed.hook_in", keep_one)])
    return logits[:, 0]


def logit_diffs(
    model: TransformerBridge, data: IOIDataset, edits: Sequence[Edit] = (), *, batch_size: int = 64
) -> Float[Tensor, " batch"]:
    """The logit difference of each prompt (IO minus S at END, in logits), with edits on."""
    logits = logits_at(model, data, "END", edits, batch_size=batch_size)
    return metrics.logit_diff(logits, data, per_prompt=True)


def next_token_kl(
    model: TransformerBridge, data: IOIDataset, edits: Sequence[Edit], *, batch_size: int = 32
) -> Float[Tensor, "batch pos"]:
    """How much edits change the prediction after every token: KL(clean || edited), in nats.

    The damage an intervention does, wherever it was not meant to do anything. Before the edited
    position it is exactly 0, by causality.

    Args:
        model, data, edits, batch_size: As for :func:`run_edited`; all logits of a part are held at
            once.

    Returns:
        ``[batch pos]``, NaN on padding.
    """
    return success_and_damage(model, data, {"edited": edits}, batch_size=batch_size)["edited"][1]


def success_and_damage(
    model: TransformerBridge,
    data: IOIDataset,
    runs: Mapping[str, Sequence[Edit]],
    *,
    batch_size: int = 32,
) -> dict[str, tuple[Float[Tensor, " batch"], Float[Tensor, "batch pos"]]]:
    """Logit differences and changed predictions of several edited runs, against one clean run.

    Args:
        runs: A name -> the edits of that run.
        model, data, batch_size: As for :func:`run_edited`; all logits of a part are held at once,
            twice.

    Returns:
        name -> the logit difference of each prompt (logits), and what :func:`next_token_kl` gives.
    """
    if model.training:
        raise ValueError("The model is in training mode, where dropout is random; call eval().")
    diffs: dict[str, list[Tensor]] = {name: [] for name in runs}
    divergences: dict[str, list[Tensor]] = {name: [] for name in runs}
    width, order = data.tokens.shape[1], []
    for rows in in_parts(data.lengths, batch_size):
        part, length = data[rows], int(data.lengths[rows].max())
        tokens = part.tokens[:, :length].to(model.cfg.device)
        refuse_too_long(model, tokens)
        padding = (part.attention_mask[:, :length] == 0).to(tokens.device)
        with torch.no_grad():
            clean = model(tokens).float().log_softmax(dim=-1)
        for name, edits in runs.items():
            with torch.no_grad(), edited(model, *(one.take(rows) for one in edits)):
                other = model(tokens).float().log_softmax(dim=-1)
            kl = (clean.exp() * (clean - other)).sum(dim=-1).clamp_min(0)
            kl = kl.masked_fill(padding, torch.nan)
            pad = (0, width - length)
            divergences[name].append(torch.nn.functional.pad(kl, pad, value=torch.nan))
            at = torch.arange(len(rows), device=other.device)
            end = other[at, part.positions["END"].to(other.device)]
            diffs[name].append(metrics.logit_diff(end, part, per_prompt=True))
        order.append(rows)
    return {
        name: (in_order(diffs[name], order), in_order(divergences[name], order)) for name in runs
    }


def attention_patterns(
    model: TransformerBridge,
    data: IOIDataset,
    heads: Sequence[str],
    role: str = "END",
    edits: Sequence[Edit] = (),
    *,
    batch_size: int = 64,
) -> dict[str, Float[Tensor, "batch key"]]:
    """Where heads attend from a role, over all positions: what :class:`AttentionEdit` takes.

    ::

        clean = attention_patterns(model, data, name_movers)
        restore = [AttentionEdit(h, data.positions["END"], p) for h, p in clean.items()]

    Args:
        heads: Such as ``["L9H9", "L9H6"]``.
        role: The position that attends.
        model, data, edits, batch_size: As for :func:`run_edited`.
    """
    where = {head: existing_head(model, head) for head in heads}

    def read(part: IOIDataset) -> Tensor:
        found: dict[int, Tensor] = {}

        def keep(layer: int) -> Callable[..., None]:
            def hook_fn(pattern: Float[Tensor, "batch head query key"], hook: Any) -> None:
                at = part.positions[role].to(pattern.device)
                found[layer] = pattern[torch.arange(len(at), device=pattern.device), :, at]

            return hook_fn

        layers = sorted({layer for layer, _ in where.values()})
        names = [(f"blocks.{layer}.attn.hook_pattern", keep(layer)) for layer in layers]
        with torch.no_grad():
            model.run_with_hooks(
                part.tokens.to(model.cfg.device),
                fwd_hooks=names,
                return_type=None,
                logits_to_keep=1,
            )
        device = model.W_U.device
        return torch.stack([found[layer][:, i].to(device) for layer, i in where.values()])

    if not where:
        raise ValueError("heads is empty; name at least one.")
    stacked = run_edited(model, data, edits, read, batch_size=batch_size, dim=1)
    return dict(zip(where, stacked, strict=True))
