"""Whether what a hook writes reaches the run: found by trying."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.edits.attention import attend


@contextmanager
def hooks_off(model: TransformerBridge) -> Iterator[TransformerBridge]:
    """Run the model as if TransformerLens' hooks were not on it; afterwards they are again.

    The bridge's own permanent hooks stay, as do plain PyTorch hooks, which are taken for part of
    the model.
    """
    taken = []
    try:
        for point in set(model.hook_dict.values()):
            for handle in point.fwd_hooks:
                if not handle.is_permanent:
                    hooks, key = point._forward_hooks, handle.hook.id
                    taken.append((hooks, dict(hooks)))
                    del hooks[key]
        yield model
    finally:
        # The last taken first, so that each place has what it had, in its order.
        for hooks, before in reversed(taken):
            hooks.clear()
            hooks.update(before)


def edit_reaches_run(model: TransformerBridge, edited: str, seen: str | None = None) -> bool:
    """Whether another value at one hook changes what another hook sees later in the same run.

    Two runs over a few tokens, with other random values at the one, and with :func:`hooks_off`.
    (For attention patterns see :func:`pattern_reaches_run`: there it is not enough that something
    changes.)

    Args:
        edited: The name of the hook whose value is replaced.
        seen: The name of the hook that is read; None: the logits.
    """
    generator = torch.Generator().manual_seed(0)
    found: list[Tensor] = []

    def replace(value: Tensor, hook: Any) -> Tensor:
        return torch.randn(value.shape, generator=generator).to(value)

    def read(value: Tensor, hook: Any) -> None:
        found.append(value.detach().clone())

    hooks: list[tuple[str, Any]] = [(edited, replace)]
    hooks += [] if seen is None else [(seen, read)]
    tokens = torch.arange(3, device=model.cfg.device)[None]
    with torch.no_grad(), hooks_off(model):
        for _ in range(2):
            logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
            if seen is None:
                found.append(logits)
    return len(found) == 2 and not torch.equal(*found)


def pattern_reaches_run(model: TransformerBridge, layer: int = 0) -> bool:
    """Whether what a hook writes at ``hook_pattern`` is what the layer's ``z`` is made of.

    Tried on a few tokens with :func:`hooks_off`: with known values and another pattern, ``z`` is
    their product or it is not.
    """
    attn = f"blocks.{layer}.attn."
    seen: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)

    def other_values(v: Tensor, hook: Any) -> Tensor:
        seen["v"] = torch.randn(v.shape, generator=generator).to(v)
        return seen["v"]

    def other_pattern(pattern: Tensor, hook: Any) -> Tensor:
        drawn = torch.rand(pattern.shape, generator=generator).tril()
        seen["pattern"] = (drawn / drawn.sum(dim=-1, keepdim=True)).to(pattern)
        return seen["pattern"]

    def read(z: Tensor, hook: Any) -> None:
        seen["z"] = z.detach().clone()

    tokens = torch.arange(3, device=model.cfg.device)[None]
    hooks = [("hook_v", other_values), ("hook_pattern", other_pattern), ("hook_z", read)]
    with torch.no_grad(), hooks_off(model), warnings.catch_warnings():
        # TransformerLens warns where the answer is no.
        warnings.filterwarnings("ignore", "A hook on .* returned a modified tensor", UserWarning)
        model.run_with_hooks(
            tokens, fwd_hooks=[(attn + name, hook_fn) for name, hook_fn in hooks], return_type=None
        )
    wanted = attend(seen["pattern"], seen["v"])
    return bool(torch.isclose(seen["z"].reshape(wanted.shape), wanted, rtol=0.05, atol=0.05).all())


def require_reach(model: TransformerBridge, edited: str, seen: str | None = None) -> None:
    """Refuse to edit where :func:`edit_reaches_run` says no.

    Args:
        edited, seen: As there; a ``seen`` that the model does not have stands for the logits.

    Raises:
        ValueError: What is written does not reach the run.
    """
    if not edit_reaches_run(model, edited, seen if seen in model.hook_dict else None):
        raise ValueError(
            f"What is written at {edited} does not reach the run of this model, so nothing can be "
            "changed there; choose another place."
        )
