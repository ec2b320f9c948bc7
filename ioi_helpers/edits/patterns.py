"""Attention patterns, put into a run so that they take effect.

In most models TransformerLens computes ``z = pattern @ v`` itself, and what a hook writes at
``hook_pattern`` goes into the product. In some (GPT-Neo, OPT, GPT-J in version 4.3) the wrapped
module does, and ``hook_pattern`` fires when all is over: it shows the pattern, but an edit there
comes too late. There the same edit is made at ``hook_z``, with this run's own ``v``.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge


def pattern_reaches_run(model: TransformerBridge, layer: int = 0) -> bool:
    """Whether what a hook writes at ``hook_pattern`` goes into the layer's output.

    Found by trying, on three tokens: with known values and another pattern, ``z`` is their product
    or it is not. Hooks that are on the model stay on.
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
    with torch.no_grad(), warnings.catch_warnings():
        # TransformerLens warns where the answer is no.
        warnings.filterwarnings("ignore", "A hook on .* returned a modified tensor", UserWarning)
        model.run_with_hooks(
            tokens, fwd_hooks=[(attn + name, hook_fn) for name, hook_fn in hooks], return_type=None
        )
    wanted = attend(seen["pattern"], seen["v"])
    return bool(torch.isclose(seen["z"].reshape(wanted.shape), wanted, rtol=0.05, atol=0.05).all())


def attend(
    pattern: Float[Tensor, "batch head *query key"],
    v: Float[Tensor, "batch pos value_head d_head"],
) -> Float[Tensor, "batch *query head d_head"]:
    """``z = pattern @ v``; where heads share values, each takes those of its group.

    Args:
        pattern: Of all heads, for one query a prompt or for several.
        v: As at ``hook_v``; positions beyond the pattern's keys are not attended to.
    """
    n_heads, n_keys = pattern.shape[1], pattern.shape[-1]
    v = v[:, :n_keys].repeat_interleave(n_heads // v.shape[2], dim=2)
    if pattern.ndim == 3:
        return torch.einsum("bhk,bkhd->bhd", pattern, v)
    return torch.einsum("bhqk,bkhd->bqhd", pattern, v)
