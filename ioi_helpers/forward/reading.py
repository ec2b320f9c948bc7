"""From a model's own modules to a :class:`Decoder`: what each family calls its switches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.forward.decoder import Block, Decoder, Norm, Rotary


class UnsupportedModel(ValueError):
    """The equations of this room are not those of this model."""


FAMILIES: dict[str, str] = {
    "GPT2LMHeadModel": "GPT-2",
    "GPTNeoForCausalLM": "GPT-Neo",
    "OPTForCausalLM": "OPT",
    "GPTNeoXForCausalLM": "GPT-NeoX, Pythia",
    "LlamaForCausalLM": "Llama",
    "MistralForCausalLM": "Mistral",
    "Qwen2ForCausalLM": "Qwen 2",
    "Qwen3ForCausalLM": "Qwen 3",
    "Starcoder2ForCausalLM": "Starcoder 2",
    "Gemma2ForCausalLM": "Gemma 2",
}
"""Architectures whose equations these are, each with the name it goes by."""

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}
_FIXED_ROTARY = ("default", "linear", "llama3", "yarn")  # others turn by the prompt's length


def modules(model: TransformerBridge) -> list[nn.Module]:
    """Every module of the bridge and of the wrapped model, once."""
    found: dict[nn.Module, None] = {}
    waiting: list[nn.Module] = [model, model.original_model]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module] = None
            waiting.extend(part for part in module._modules.values() if part is not None)
    return list(found)


def read_weights(model: TransformerBridge) -> Decoder:
    """The weights of a model whose forward pass is that of :mod:`ioi_helpers.forward`.

    Args:
        model: A bridge to a model of one of :data:`FAMILIES`, of any size, in compatibility mode
            (folded) or not.

    Raises:
        UnsupportedModel: The model has another architecture, or its weights are on several devices
            or of several dtypes.
    """
    cfg = model.cfg
    architecture = getattr(cfg, "architecture", None)
    if architecture not in FAMILIES:
        known = ", ".join(FAMILIES.values())
        raise UnsupportedModel(f"its architecture is {architecture}, none of {known}")
    if cfg.act_fn not in _ACTIVATIONS:
        raise UnsupportedModel(f"its activation function is {cfg.act_fn}")
    weights = [w for part in modules(model) for w in part._parameters.values() if w is not None]
    devices, dtypes = zip(*((w.device, w.dtype) for w in weights), strict=True)
    if len(set(devices)) > 1:
        raise UnsupportedModel("its blocks are on several devices")
    if len(set(dtypes)) > 1:
        raise UnsupportedModel("its weights are of several dtypes")
    if getattr(model, "ln_final", None) is None or not _normalises_first(model):
        raise UnsupportedModel("its layers normalise what they have added, not what they read")
    learned = cfg.positional_embedding_type == "standard"
    return Decoder(
        W_E=model.W_E,
        W_pos=model.W_pos if learned else None,
        blocks=tuple(_block(model, layer) for layer in range(cfg.n_layers)),
        ln_final=_norm(model, model.ln_final),
        W_U=model.W_U,
        b_U=model.b_U,
        n_heads=cfg.n_heads,
        activation=_ACTIVATIONS[cfg.act_fn],
        n_kv_heads=getattr(cfg, "n_key_value_heads", None) or cfg.n_heads,
        rotary=None if learned else _rotary(model),
        parallel=bool(getattr(cfg, "parallel_attn_mlp", False)),
        embed_scale=_embed_scale(model),
        logit_cap=_cap(cfg, "output_logits_soft_cap"),
    )


def _block(model: TransformerBridge, layer: int) -> Block:
    cfg, block = model.cfg, model.blocks[layer]
    attn, mlp = block.attn, block.mlp
    return Block(
        ln1=_norm(model, block.ln1),
        W_Q=_side_by_side(attn.W_Q),
        W_K=_side_by_side(attn.W_K),
        W_V=_side_by_side(attn.W_V),
        W_O=attn.W_O.flatten(0, 1),
        b_Q=_flat(attn.b_Q),
        b_K=_flat(attn.b_K),
        b_V=_flat(attn.b_V),
        b_O=attn.b_O,
        ln2=_norm(model, block.ln2),
        W_in=mlp.W_in,
        b_in=mlp.b_in,
        W_out=mlp.W_out,
        b_out=mlp.b_out,
        score_scale=_score_scale(model, layer),
        W_gate=mlp.W_gate if cfg.gated_mlp else None,
        b_gate=mlp.b_gate if cfg.gated_mlp else None,
        q_norm=_norm(model, attn.q_norm) if hasattr(attn, "q_norm") else None,
        k_norm=_norm(model, attn.k_norm) if hasattr(attn, "k_norm") else None,
        ln1_post=_norm(model, block.ln1_post) if hasattr(block, "ln1_post") else None,
        ln2_post=_norm(model, block.ln2_post) if hasattr(block, "ln2_post") else None,
        window=_window(model, layer),
        score_cap=_cap(cfg, "attn_scores_soft_cap"),
    )


def _side_by_side(weight: Float[Tensor, "head d_model d_head"]) -> Tensor:
    return weight.transpose(0, 1).flatten(1)


def _flat(bias: Float[Tensor, "head d_head"] | None) -> Tensor | None:
    return None if bias is None else bias.flatten()


def _norm(model: TransformerBridge, norm: Any) -> Norm:
    cfg, module = model.cfg, norm.original_component
    centred = not norm.uses_rms_norm
    eps = getattr(module, "eps", getattr(module, "variance_epsilon", cfg.eps))
    weight, bias = norm.weight, norm.bias if centred else None
    if norm.uses_weight_offset:  # Gemma's weights are kept less 1
        weight = weight + 1
    folded = bool((weight == 1).all()) and (bias is None or not bias.any())
    return Norm(None, None, eps, centred) if folded else Norm(weight, bias, eps, centred)


def _normalises_first(model: TransformerBridge) -> bool:
    """Whether layers normalise what they read, as all do but OPT-350m."""
    return bool(getattr(model.original_model.config, "do_layer_norm_before", True))


def _score_scale(model: TransformerBridge, layer: int) -> float:
    cfg = model.cfg
    if cfg.architecture == "GPTNeoForCausalLM":
        return 1.0
    if cfg.architecture == "GPT2LMHeadModel":
        scale = float(cfg.d_head) ** -0.5
        # Stanford's replications
        return scale / (layer + 1) if cfg.scale_attn_by_inverse_layer_idx else scale
    return float(model.blocks[layer].attn.original_component.scaling)


def _window(model: TransformerBridge, layer: int) -> int | None:
    config = model.original_model.config
    if model.cfg.architecture == "GPTNeoForCausalLM":
        return config.window_size if config.attention_layers[layer] == "local" else None
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and kinds[layer] != "sliding_attention":
        return None
    return getattr(config, "sliding_window", None)


def _rotary(model: TransformerBridge) -> Rotary:
    module = model.rotary_emb.original_component
    kind = getattr(module, "rope_type", "default")
    if kind not in _FIXED_ROTARY:
        raise UnsupportedModel(f"its rotary positions are of the kind {kind}")
    return Rotary(module.inv_freq, float(module.attention_scaling))


def _embed_scale(model: TransformerBridge) -> float:
    return float(getattr(model.embed.original_component, "embed_scale", 1.0))


def _cap(cfg: Any, name: str) -> float | None:
    cap = getattr(cfg, name, None)
    return float(cap) if cap is not None and cap > 0 else None
