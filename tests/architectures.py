"""Small decoders of many architectures, with random weights and the bundled models' tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import load_model
from ioi_helpers.bundled import bundled_folder
from ioi_helpers.bundled.tokenizer import WordTokenizer

_SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 128, "initializer_range": 0.2,
}  # fmt: skip
_GROUPED = {**_SHAPE, "num_key_value_heads": 2}

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", _GROUPED),
    "Qwen2": ("Qwen2", _GROUPED),
    "Gemma2": ("Gemma2", {**_GROUPED, "head_dim": 8, "sliding_window": 64}),
    "Starcoder2": ("Starcoder2", _GROUPED),
    "Pythia": ("GPTNeoX", _SHAPE),
    "NeoX, serial": ("GPTNeoX", {**_SHAPE, "use_parallel_residual": False}),
    "GPT-Neo": (
        "GPTNeo",
        {
            "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 64,
            "max_position_embeddings": 128, "attention_types": [[["global", "local"], 1]],
            "window_size": 8, "initializer_range": 0.2,
        },
    ),
    "MPT": (
        "Mpt",
        {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128, "expansion_ratio": 2},
    ),
    "OPT-350m": (
        "OPT",
        {
            "hidden_size": 32, "word_embed_proj_dim": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "ffn_dim": 64, "max_position_embeddings": 128,
            "do_layer_norm_before": False, "init_std": 0.2,
        },
    ),
}  # fmt: skip
"""By name: the class's prefix in transformers, and the configuration. Llama, Qwen2, Gemma2 and
Starcoder2 share keys and values between heads; Llama, Qwen2 and Gemma2 have RMSNorm; Pythia's
attention and MLP are parallel; MPT has no biases; OPT-350m normalises after each layer."""


def boot(name: str, folder: Path, **settings: Any) -> TransformerBridge:
    """One of :data:`SETTINGS`, made anew.

    Args:
        folder: Where it is written.
        settings: Of ``load_model``.
    """
    prefix, config = SETTINGS[name]
    tokenizer = WordTokenizer.from_pretrained(str(bundled_folder("ioi-mini")), add_bos_token=True)
    bos = tokenizer.bos_token_id
    make: Callable[..., Any] = getattr(transformers, f"{prefix}Config")
    torch.manual_seed(0)
    model = getattr(transformers, f"{prefix}ForCausalLM")(
        make(vocab_size=len(tokenizer), bos_token_id=bos, eos_token_id=bos, **config)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # By hand, or transformers would take Qwen2's own kind of tokenizer.
    return load_model(str(folder), device="cpu", verbose=False, tokenizer=tokenizer, **settings)
