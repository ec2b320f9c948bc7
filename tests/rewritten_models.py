"""A bundled model's weights, rewritten without loss for another architecture.

The result computes the same function, to rounding, so every number that this package measures must
be the same on it; where one is not, the package assumed something about GPT-2 that it did not say.
Tokenizer, registry and card are copied along.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    OPTConfig,
    PreTrainedModel,
)


def as_stanford(folder: Path, target: Path) -> Path:
    """As Stanford's replications of GPT-2 are: attention scores divided by layer + 1 as well.

    Queries are multiplied by it, which makes up for that.

    Args:
        folder: A GPT-2 with its tokenizer.
        target: Where to write; must not exist yet.
    """
    model = GPT2LMHeadModel.from_pretrained(folder)
    model.config.scale_attn_by_inverse_layer_idx = True
    width = model.config.n_embd
    with torch.no_grad():
        for layer, block in enumerate(model.transformer.h):
            block.attn.c_attn.weight[:, :width] *= layer + 1
            block.attn.c_attn.bias[:width] *= layer + 1
    return _save(model, folder, target)


def as_opt(folder: Path, target: Path) -> Path:
    """As OPT: queries, keys and values apart, positions in a table that starts at row 2.

    Args: as for :func:`as_stanford`.
    """
    config, weights = _read(folder)
    opt = OPTConfig(
        word_embed_proj_dim=config.n_embd,
        ffn_dim=_hidden(config),
        num_hidden_layers=config.n_layer,
        num_attention_heads=config.n_head,
        dropout=0.0,
        pad_token_id=config.bos_token_id,
        **_kept(config),
    )
    offset = torch.zeros(2, config.n_embd)  # rows 0 and 1 are for padding
    new = {
        "model.decoder.embed_tokens.weight": weights["wte.weight"],
        "model.decoder.embed_positions.weight": torch.cat([offset, weights["wpe.weight"]]),
        "model.decoder.final_layer_norm.weight": weights["ln_f.weight"],
        "model.decoder.final_layer_norm.bias": weights["ln_f.bias"],
    }
    for layer in range(config.n_layer):
        old, at = f"h.{layer}", f"model.decoder.layers.{layer}"
        attention = _attention(weights, old)
        for part in "qkv":
            new[f"{at}.self_attn.{part}_proj.weight"] = attention[f"W_{part}"].T
            new[f"{at}.self_attn.{part}_proj.bias"] = attention[f"b_{part}"]
        # GPT-2 keeps its matrices [in, out], the others [out, in]; t() leaves vectors alone.
        for ours, theirs in {
            "attn.c_proj": "self_attn.out_proj",
            "ln_1": "self_attn_layer_norm",
            "ln_2": "final_layer_norm",
            "mlp.c_fc": "fc1",
            "mlp.c_proj": "fc2",
        }.items():
            new[f"{at}.{theirs}.weight"] = weights[f"{old}.{ours}.weight"].t()
            new[f"{at}.{theirs}.bias"] = weights[f"{old}.{ours}.bias"]
    return _save(_filled(opt, new), folder, target)


def as_gpt_neo(folder: Path, target: Path) -> Path:
    """As GPT-Neo with global attention only: scores are not scaled, and q, k and v have no bias.

    Queries are divided by sqrt(d_head) beforehand. Their bias moves into LayerNorm's; what that
    adds to keys is the same for all of them, which softmax does not see, and what it adds to values
    is taken off the attention's output, as is their bias put there.

    Args: as for :func:`as_stanford`.
    """
    config, weights = _read(folder)
    neo = GPTNeoConfig(
        intermediate_size=_hidden(config),
        num_layers=config.n_layer,
        num_heads=config.n_head,
        attention_types=[[["global"], config.n_layer]],
        resid_dropout=0.0,
        embed_dropout=0.0,
        attention_dropout=0.0,
        **_kept(config),
    )
    new = {
        f"transformer.{name}": weights[name]
        for name in ("wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias")
    }
    d_head = config.n_embd // config.n_head
    for layer in range(config.n_layer):
        old, at = f"h.{layer}", f"transformer.h.{layer}"
        attention = _attention(weights, old)
        moved = torch.linalg.solve(attention["W_q"].double().T, attention["b_q"].double())
        values = attention["b_v"].double() - moved @ attention["W_v"].double()
        out = weights[f"{old}.attn.c_proj.weight"]
        bias = weights[f"{old}.attn.c_proj.bias"].double() + values @ out.double()
        new[f"{at}.attn.attention.q_proj.weight"] = attention["W_q"].T / d_head**0.5
        new[f"{at}.attn.attention.k_proj.weight"] = attention["W_k"].T
        new[f"{at}.attn.attention.v_proj.weight"] = attention["W_v"].T
        new[f"{at}.attn.attention.out_proj.weight"] = out.T
        new[f"{at}.attn.attention.out_proj.bias"] = bias.float()
        new[f"{at}.ln_1.weight"] = weights[f"{old}.ln_1.weight"]
        new[f"{at}.ln_1.bias"] = (weights[f"{old}.ln_1.bias"].double() + moved).float()
        for name in ("ln_2", "mlp.c_fc", "mlp.c_proj"):
            new[f"{at}.{name}.weight"] = weights[f"{old}.{name}.weight"].t()
            new[f"{at}.{name}.bias"] = weights[f"{old}.{name}.bias"]
    return _save(_filled(neo, new), folder, target)


def _read(folder: Path) -> tuple[GPT2Config, dict[str, Tensor]]:
    weights = load_file(folder / "model.safetensors")
    named = {name.removeprefix("transformer."): value for name, value in weights.items()}
    return GPT2Config.from_pretrained(folder), named


def _kept(config: GPT2Config) -> dict[str, Any]:
    """What the configurations of both other architectures say in the same words."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "max_position_embeddings": config.n_positions,
        "activation_function": config.activation_function,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "tie_word_embeddings": True,
    }


def _hidden(config: GPT2Config) -> int:
    return config.n_inner or 4 * config.n_embd


def _attention(weights: Mapping[str, Tensor], block: str) -> dict[str, Tensor]:
    """Weights `[in, out]` and biases of queries, keys and values, side by side in GPT-2."""
    matrix, bias = (weights[f"{block}.attn.c_attn.{part}"] for part in ("weight", "bias"))
    found = {f"W_{part}": m for part, m in zip("qkv", matrix.chunk(3, dim=1), strict=True)}
    return {**found, **{f"b_{part}": b for part, b in zip("qkv", bias.chunk(3), strict=True)}}


def _filled(config: OPTConfig | GPTNeoConfig, weights: Mapping[str, Tensor]) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_config(config)
    missing, unknown = model.load_state_dict(dict(weights), strict=False)
    # The unembedding is the embedding; GPT-Neo's masks are no weights.
    if unknown or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"Weights do not fit: {unknown} unknown, {missing} missing.")
    return model


def _save(model: PreTrainedModel, folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    for file in ("config.json", "model.safetensors"):
        (target / file).unlink()
    model.save_pretrained(target)
    (target / "generation_config.json").unlink(missing_ok=True)
    return target
