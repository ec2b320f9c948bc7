"""Does the bridge compute what the checkpoint's own code computes? One prompt tells.

A TransformerBridge replaces parts of the model it wraps, recomputes attention where hooks need it,
and folds weights in compatibility mode. Each can go wrong for an unusual configuration, and then
every number measured is of a model that nobody trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from ioi_helpers.models.sources import ModelUnavailable

LARGEST_DIFFERENCE = {
    torch.float64: (1e-3, 1e-3),
    torch.float32: (1e-3, 1e-3),
    torch.float16: (0.03, 0.1),
    torch.bfloat16: (0.03, 0.3),
}
"""How far the bridge's logits may be from the original's before and after folding: the norm of the
difference as a share of the original's, both centred over the vocabulary. On seventeen
architectures it is 2e-6 at most in float32 (in float64 as well, as softmax stays in float32). In
half precision it is 0.001 before folding and, as folded weights are rounded anew, 0.004 (float16)
or 0.03 (bfloat16) after it; deep models may show more. Another function shows 0.1 to 1 before
folding at any precision."""
PROMPT_TOKENS = 32


@contextmanager
def _unwrapped(model: TransformerBridge) -> Iterator[nn.Module]:
    """Within: the wrapped model with its own modules in place of the bridge's."""
    replaced: list[tuple[nn.Module, str, nn.Module]] = []

    def visit(module: nn.Module) -> None:
        for name, child in list(module._modules.items()):
            own = child
            while isinstance(own, GeneralizedComponent) and own.original_component is not None:
                own = own.original_component
            if child is not None and own is not child:
                replaced.append((module, name, child))
                module._modules[name] = own
            if own is not None:
                visit(own)

    try:
        visit(model.original_model)
        yield model.original_model
    finally:
        for module, name, child in reversed(replaced):
            module._modules[name] = child


def run_original(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos vocab"]:
    """The logits that the checkpoint's own code computes, without the bridge and its hooks.

    Args:
        model: A bridge in eval mode, not yet in compatibility mode, which leaves the wrapped model
            with half of the folding.
        tokens: On the model's device.

    Raises:
        ValueError: The model is in compatibility mode.
    """
    if model.compatibility_mode:
        raise ValueError(
            "In compatibility mode the checkpoint's own weights are gone; compare before it."
        )
    with torch.no_grad(), _unwrapped(model) as original:
        logits: Tensor = original(tokens).logits
    return logits


def one_prompt(model: TransformerBridge) -> Int[Tensor, "1 pos"]:
    """Tokens from all over the vocabulary, BOS first if there is one: the same at every load."""
    cfg = model.cfg
    tokens = (torch.arange(min(PROMPT_TOKENS, cfg.n_ctx)) * 7919 + 1) % cfg.d_vocab
    bos = getattr(model.tokenizer, "bos_token_id", None)
    if bos is not None:
        tokens[0] = bos
    return tokens[None].to(cfg.device)


def require_same(
    model: TransformerBridge, expected: Float[Tensor, "1 pos vocab"], name: str
) -> None:
    """Refuse a bridge whose logits on :func:`one_prompt` are not those of the original.

    Args:
        model: The bridge, before folding or after it.
        expected: What :func:`run_original` gave before it.
        name: The model's, for the error.

    Raises:
        ModelUnavailable: They differ by more than rounding, or are not finite.
    """
    with torch.no_grad():
        found = model(one_prompt(model))
    dtype = str(found.dtype).removeprefix("torch.")
    limit = LARGEST_DIFFERENCE[found.dtype][bool(model.compatibility_mode)]
    # float64 is not to be had on every device.
    found, expected = (logits.detach().cpu().double() for logits in (found, expected))
    if not bool((found + expected).isfinite().all()):
        raise ModelUnavailable(
            f"{name} gives logits that are not finite in {dtype}; load it with a dtype of a larger "
            "range, such as torch.float32."
        )
    found, expected = (logits - logits.mean(dim=-1, keepdim=True) for logits in (found, expected))
    if (found - expected).norm() <= limit * expected.norm():
        return
    apart = (found.log_softmax(-1) - expected.log_softmax(-1)).abs().max().item()
    code = type(model.original_model).__name__
    raise ModelUnavailable(
        f"TransformerBridge (TransformerLens {version('transformer_lens')}) does not compute what "
        f"{code} (transformers {version('transformers')}) computes for {name}: on one prompt their "
        f"log-probabilities differ by up to {apart:.2g}, so nothing measured on it would be true "
        "of the model; its configuration has something that the bridge does not know."
    )
