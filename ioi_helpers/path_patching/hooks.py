"""Path patching of any model, with TransformerLens' hooks: a run of the whole model for each pass.

Slow, and the definition itself: what :mod:`~ioi_helpers.path_patching.fast` computes is tested
against it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import runs
from ioi_helpers.graph import HEAD_INPUTS, Node, Shape
from ioi_helpers.path_patching.language import FINAL, Receiver, Receivers, Senders, why_impossible
from ioi_helpers.path_patching.pair import Pair
from ioi_helpers.path_patching.parts import Parts
from ioi_helpers.path_patching.request import Request

Values = Mapping[str, Tensor]
"""Activations by the name of their hook."""


@torch.no_grad()
def sweep(model: TransformerBridge, request: Request, parts: Parts, memory: int, bar: tqdm) -> None:
    """As :func:`ioi_helpers.path_patching.fast.sweep`, for any model."""
    pair, senders, receivers = request.pair, request.senders, request.receivers
    shape = Shape.of(model)
    n_layers = shape.n_layers
    live = [several.live(n_layers) for several in receivers]
    layers = range(n_layers)
    names = [f"blocks.{layer}.{name}" for layer in layers for name in _kept()]
    read = sorted({_hook(r) for several in live for r in several.inputs if r != FINAL})
    runs.known_hooks(model, [*names, EMBEDDED, *read])
    kept = 4 * n_layers * pair.width * model.cfg.d_model
    at_once = runs.prompts_at_once(model, pair.width, memory, kept=kept)
    for start in range(0, len(pair), at_once):
        rows = slice(start, min(start + at_once, len(pair)))
        size = rows.stop - rows.start
        batch: _Batch | None = None
        for i, sending in enumerate(senders):
            left = [n for n in range(len(receivers)) if not parts.has(n, rows, i)]
            bar.update((len(receivers) - len(left)) * size / len(senders))
            if left and batch is None:
                batch = _Batch.of(model, pair.part(rows), names)
                parts.put_runs(rows, *batch.logit_diffs)
            found: tuple[Values, Tensor] | None = None
            for n in left:
                assert batch is not None
                value = batch.logit_diffs[0]
                if not why_impossible(sending, receivers[n], shape, batch.pair.coincide):
                    found = found or batch.pass_c(sending, read, request.mlps_frozen)
                    reads = FINAL in live[n].inputs
                    value = found[1] if reads else batch.pass_d(live[n], found[0])
                parts.put(n, rows, value, i)
                bar.update(size / len(senders))


EMBEDDED = "blocks.0.hook_resid_pre"


def _kept() -> tuple[str, ...]:
    """What the two runs keep of each block."""
    return "attn.hook_z", "hook_mlp_out"


def _written_at(node: Node) -> str:
    """Where what a sender writes can be replaced."""
    if node.layer < 0:
        return EMBEDDED
    return f"blocks.{node.layer}.{'attn.hook_z' if node.is_head else 'hook_mlp_out'}"


def _hook(receiver: Receiver) -> str:
    """Where a receiver is read and put in; what an MLP reads is put in as what it writes."""
    assert receiver.node is not None
    block = f"blocks.{receiver.node.layer}"
    if receiver.input in HEAD_INPUTS:
        return f"{block}.attn.hook_{receiver.input}"
    return f"{block}.hook_mlp_out"


@dataclass(frozen=True)
class _Batch:
    """Some prompts, and what was kept of the two runs over them (passes A and B)."""

    model: TransformerBridge
    pair: Pair
    base: Values
    other: Values
    logit_diffs: tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]

    @classmethod
    def of(cls, model: TransformerBridge, pair: Pair, names: Sequence[str]) -> _Batch:
        """Make the two runs."""
        found = []
        for tokens in (pair.tokens, pair.other):
            seen: dict[str, Tensor] = {}
            hooks = [_keep(name, seen) for name in (*names, EMBEDDED)]
            diffs = _run(model, pair, tokens, hooks)
            found.append((seen, diffs))
        (base, base_diffs), (other, other_diffs) = found
        return cls(model, pair, base, other, (base_diffs, other_diffs))

    def mask(self, role: str | None, like: Tensor) -> Bool[Tensor, "batch pos"]:
        """Where a role stands, as wide as an activation."""
        return self.pair.mask(role).to(like.device)[:, : like.shape[1]]

    def pass_c(
        self, senders: Senders, read: Sequence[str], mlps_frozen: bool
    ) -> tuple[Values, Float[Tensor, " batch"]]:
        """What receivers read while attention is frozen and senders write as in the other run.

        Returns:
            Activations at the hooks ``read``, as they would be before they are frozen; and the
            logit difference of that run.
        """
        seen: dict[str, Tensor] = {}
        hooks: list[runs.Hook] = [_keep(name, seen) for name in read]

        def write(name: str, frozen: bool) -> runs.Hook:
            members = [node for node in senders.nodes if _written_at(node) == name]

            def hook_fn(value: Tensor, hook: Any) -> Tensor:
                value = (self.base[name] if frozen else value).clone()
                for node in members:
                    self._write(value, name, node)
                return value

            return name, hook_fn

        hooks.append(write(EMBEDDED, False))
        for layer in range(self.model.cfg.n_layers):
            hooks.append(write(f"blocks.{layer}.attn.hook_z", True))
            hooks.append(write(f"blocks.{layer}.hook_mlp_out", mlps_frozen))
        return seen, _run(self.model, self.pair, self.pair.tokens, hooks)

    def _write(self, value: Tensor, name: str, node: Node) -> None:
        """Put what a sender writes in the other run into an activation."""
        mask = self.mask(node.role, value)
        if node.is_head:
            heads = self.model.cfg.n_heads
            _by_head(value, heads)[mask, node.head] = _by_head(self.other[name], heads)[
                mask, node.head
            ]
        else:
            value[mask] = self.other[name][mask]

    def pass_d(self, receivers: Receivers, read: Values) -> Float[Tensor, " batch"]:
        """The logit difference with receivers reading that, and everything else recomputed.

        A key or value that is for one token's query only is put in as the z that follows from it,
        found by one more run for each layer with such receivers.
        """
        everyone = [r for r in receivers.inputs if r.node is not None and r.node.role is None]
        for_one = [r for r in receivers.inputs if r not in everyone]
        hooks = [self._put_in(receiver, read) for receiver in everyone]
        for layer in sorted({r.node.layer for r in for_one if r.node}):
            here = [r for r in for_one if r.node and r.node.layer == layer]
            name, results = f"blocks.{layer}.attn.hook_z", []
            for role in dict.fromkeys(r.node.role for r in here if r.node):
                several = [r for r in here if r.node and r.node.role == role]
                seen: dict[str, Tensor] = {}
                more = [self._put_in(receiver, read) for receiver in several]
                _run(self.model, self.pair, self.pair.tokens, [*hooks, *more, _keep(name, seen)])
                heads = sorted({r.node.head or 0 for r in several if r.node})
                results.append((role, heads, seen[name]))
            hooks.append((name, self._z_of(results)))
        return _run(self.model, self.pair, self.pair.tokens, hooks)

    def _put_in(self, receiver: Receiver, read: Values) -> runs.Hook:
        """A hook by which a receiver reads something else."""
        node, name = receiver.node, _hook(receiver)
        assert node is not None

        def hook_fn(value: Tensor, hook: Any) -> Tensor:
            value, mask = value.clone(), self.mask(receiver.role, value)
            if node.head is None:
                value[mask] = read[name][mask]
            else:
                heads = self.model.cfg.n_heads
                new = _by_head(read[name], heads)
                _by_head(value, heads)[mask, node.head] = new[mask, node.head]
            return value

        return name, hook_fn

    def _z_of(self, results: Sequence[tuple[str | None, list[int], Tensor]]) -> Callable[..., Any]:
        def hook_fn(value: Tensor, hook: Any) -> Tensor:
            value, n_heads = value.clone(), self.model.cfg.n_heads
            for role, heads, new in results:
                mask = self.mask(role, value)
                for head in heads:
                    _by_head(value, n_heads)[mask, head] = _by_head(new, n_heads)[mask, head]
            return value

        return hook_fn


def _by_head(x: Tensor, n_heads: int) -> Float[Tensor, "batch pos head d_head"]:
    """A view with an axis of heads, which some models' activations lack."""
    return x if x.ndim == 4 else x.unflatten(-1, (n_heads, -1))


def _keep(name: str, seen: dict[str, Tensor]) -> runs.Hook:
    """A hook that remembers an activation. (The hook itself may go by another name.)"""

    def hook_fn(value: Tensor, hook: Any) -> None:
        seen[name] = value.detach().clone()

    return name, hook_fn


def _run(
    model: TransformerBridge, pair: Pair, tokens: Tensor, hooks: Sequence[runs.Hook]
) -> Float[Tensor, " batch"]:
    """The logit difference of one run."""
    with model.hooks(fwd_hooks=list(hooks)):
        logits = runs.widened(runs.logits_at_positions(model, tokens, pair.last))
    rows = torch.arange(len(pair), device=logits.device)
    io, s = pair.io_tokens.to(logits.device), pair.s_tokens.to(logits.device)
    return logits[rows, io] - logits[rows, s]
