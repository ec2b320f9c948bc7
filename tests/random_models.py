"""Small models of random weights, of many architectures, in folders that TransformerBridge boots.

Weights are large everywhere, so that nothing is hidden; the tokenizer is the hand-built model's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
)

from ioi_helpers.dataset import IOIDataset
from tests import handbuilt

CONTEXT = 64


def _config(architecture: str) -> Any:
    small: dict[str, Any] = {"vocab_size": len(handbuilt.vocabulary())}
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    long = {"max_position_embeddings": CONTEXT}
    made: dict[str, Callable[[], Any]] = {
        "gpt2": lambda: GPT2Config(
            **small, n_embd=24, n_layer=3, n_head=3, n_positions=CONTEXT, **special
        ),
        "gpt-neo": lambda: GPTNeoConfig(
            **small,
            hidden_size=24,
            num_layers=2,
            attention_types=[[["global", "local"], 1]],
            window_size=8,
            num_heads=3,
            **long,
            **special,
        ),
        "opt": lambda: OPTConfig(
            **small,
            hidden_size=24,
            word_embed_proj_dim=24,
            num_hidden_layers=2,
            ffn_dim=48,
            num_attention_heads=3,
            dropout=0.0,
            **long,
            **special,
        ),
        "gpt-j": lambda: GPTJConfig(
            **small, n_embd=24, n_layer=2, n_head=3, rotary_dim=4, n_positions=CONTEXT, **special
        ),
        "pythia": lambda: GPTNeoXConfig(
            **small,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=48,
            use_parallel_residual=True,
            **long,
            **special,
        ),
        "neox-serial": lambda: GPTNeoXConfig(
            **small,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=48,
            use_parallel_residual=False,
            **long,
            **special,
        ),
        "llama": lambda: LlamaConfig(
            **small,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            **long,
            **special,
        ),
    }
    return made[architecture]()


ARCHITECTURES = ("gpt2", "gpt-neo", "opt", "gpt-j", "pythia", "neox-serial", "llama")


def save(folder: Path, architecture: str = "gpt2") -> Path:
    """A folder with a model of this architecture."""
    handbuilt.save(folder)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(_config(architecture))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.3 if "mlp" in name else 0.5)
    model.save_pretrained(folder)
    return folder


def boot(folder: Path, folded: bool = True) -> TransformerBridge:
    """The model in a folder, its parameters frozen, folded or not."""
    model = TransformerBridge.boot_transformers(str(folder), device="cpu").eval()
    if folded:
        model.enable_compatibility_mode(disable_warnings=True)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def prompts(model: TransformerBridge, n: int = 12) -> IOIDataset:
    """Prompts of several lengths."""
    data = IOIDataset.generate(
        model.tokenizer, n, names=handbuilt.NAMES, prefixes="bundled", seed=3
    )
    assert len(data.lengths.unique()) > 3
    return data
