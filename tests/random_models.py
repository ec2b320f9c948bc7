"""Small models of random weights, of many architectures, in folders that TransformerBridge boots.

Weights are large everywhere, so that nothing is hidden; the tokenizer is the hand-built model's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Starcoder2Config,
)

from ioi_helpers.dataset import IOIDataset
from ioi_helpers.models import handbuilt, load_model

CONTEXT = 64


def _config(architecture: str, vocab_size: int) -> Any:
    """Two or three layers of three heads, 24 dimensions."""
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    old: dict[str, Any] = {"n_embd": 24, "n_head": 3, "n_positions": CONTEXT}
    new: dict[str, Any] = {"hidden_size": 24, "max_position_embeddings": CONTEXT}
    by_layers = {"num_hidden_layers": 2, "num_attention_heads": 3}
    neox = {**new, **by_layers, "intermediate_size": 48}
    # Four heads that share two sets of keys and values.
    grouped = {**neox, "num_attention_heads": 4, "num_key_value_heads": 2}
    granite = {
        **grouped,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.4,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
    }
    made: dict[str, Any] = {
        "gpt2": (GPT2Config, {**old, "n_layer": 3}),
        "gpt2-deep": (GPT2Config, {**old, "n_layer": 12}),  # as many as GPT-2 small has
        "stanford": (GPT2Config, {**old, "n_layer": 3, "scale_attn_by_inverse_layer_idx": True}),
        "gpt-j": (GPTJConfig, {**old, "n_layer": 2, "rotary_dim": 4}),
        "gpt-neo": (
            GPTNeoConfig,
            {
                **new,
                "num_layers": 2,
                "num_heads": 3,
                "attention_types": [[["global", "local"], 1]],
                "window_size": 8,
            },
        ),
        "opt": (
            OPTConfig,
            {**new, **by_layers, "ffn_dim": 48, "word_embed_proj_dim": 24, "dropout": 0.0},
        ),
        # Norms behind the layers and none at the end: TransformerLens 4.3 boots it and no more.
        "opt-350m": (
            OPTConfig,
            {
                **new,
                **by_layers,
                "ffn_dim": 48,
                "word_embed_proj_dim": 24,
                "do_layer_norm_before": False,
            },
        ),
        "pythia": (GPTNeoXConfig, {**neox, "use_parallel_residual": True}),
        "neox-serial": (GPTNeoXConfig, {**neox, "use_parallel_residual": False}),
        "llama": (LlamaConfig, grouped),
        "mistral": (MistralConfig, {**grouped, "sliding_window": 8}),
        "qwen2": (Qwen2Config, grouped),
        "qwen3": (Qwen3Config, {**grouped, "head_dim": 8}),
        "starcoder2": (Starcoder2Config, grouped),
        # Also normalises what each layer computes, and caps the logits.
        "gemma2": (Gemma2Config, {**grouped, "head_dim": 6, "sliding_window": 8}),
        "gemma2-uncapped": (
            Gemma2Config,
            {**grouped, "head_dim": 6, "sliding_window": 8, "final_logit_softcapping": None},
        ),
        # Their logits are scaled on the way out, and Granite's other parts as well.
        "cohere": (CohereConfig, {**grouped, "logit_scale": 0.5}),
        "granite": (GraniteConfig, granite),
        "granite-own-keys": (GraniteConfig, {**granite, "num_key_value_heads": 4}),
        # No biases, and ALiBi instead of position embeddings.
        "mpt": (
            MptConfig,
            {"d_model": 24, "n_layers": 2, "n_heads": 4, "max_seq_len": CONTEXT},
        ),
    }
    kind, settings = made[architecture]
    return kind(vocab_size=vocab_size, **settings, **special)


ARCHITECTURES = ("gpt2", "gpt-neo", "opt", "gpt-j", "pythia", "neox-serial", "llama")
"""Those of README's table."""
MORE = ("starcoder2", "mpt", "mistral", "qwen2", "qwen3", "gemma2", "gemma2-uncapped")
SCALED = ("cohere", "granite")
"""Logits are not what the unembedding says, but that times a number."""


def save(folder: Path, architecture: str = "gpt2", vocab_size: int | None = None) -> Path:
    """A folder with a model of this architecture; it may have more tokens than its tokenizer."""
    handbuilt.save(folder)
    torch.manual_seed(0)
    config = _config(architecture, vocab_size or len(handbuilt.vocabulary()))
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.3 if "mlp" in name else 0.5)
    model.save_pretrained(folder)
    return folder


def boot(
    folder: Path, folded: bool = True, dtype: torch.dtype = torch.float32
) -> TransformerBridge:
    """The model in a folder, its parameters frozen, folded or not."""
    model = TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=dtype).eval()
    # For some families transformers takes the family's own tokenizer, whatever the folder holds.
    if len(set(model.tokenizer.encode(" John gave"))) < 2:
        model._tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    if folded:
        model.enable_compatibility_mode(disable_warnings=True)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def in_dtype(dtype: torch.dtype, n: int) -> tuple[list[TransformerBridge], IOIDataset]:
    """ioi-mini in a dtype and in float64, and prompts."""
    kinds = (dtype, torch.float64)
    models = [load_model("ioi-mini", dtype=kind, device="cpu", verbose=False) for kind in kinds]
    return models, IOIDataset.generate(models[0].tokenizer, n, seed=0)


def prompts(model: TransformerBridge, n: int = 12) -> IOIDataset:
    """Prompts of several lengths."""
    data = IOIDataset.generate(
        model.tokenizer, n, names=handbuilt.NAMES, prefixes="bundled", seed=3
    )
    assert n < 12 or len(data.lengths.unique()) > 3
    return data
