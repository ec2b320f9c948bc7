"""Decoders of other families as plain PyTorch: Hugging Face's modules and hooks on them.

Nothing of TransformerLens or of this package computes here. Activations are read and replaced by
hooks on the modules of `transformers`, so what the package finds can be held against them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from ioi_helpers.dataset import IOIDataset

Change = Callable[[Tensor], Tensor | None]
"""From a site's value ``[batch pos ...]`` to another, or None to leave it."""


@dataclass(frozen=True)
class Names:
    """What a family calls its modules, below a block."""

    blocks: str
    ln2: str
    attn_out: str
    mlp_out: str
    o: str
    q: str
    k: str
    v: str


_LLAMA = Names(
    "model.layers", "post_attention_layernorm", "self_attn.o_proj", "mlp", "self_attn.o_proj",
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
)  # fmt: skip
_GEMMA = Names(
    "model.layers", "pre_feedforward_layernorm", "post_attention_layernorm",
    "post_feedforward_layernorm", *(f"self_attn.{x}_proj" for x in "oqkv"),
)  # fmt: skip
_GPT2 = Names("transformer.h", "ln_2", "attn.c_proj", "mlp", "attn.c_proj", *["attn.c_attn"] * 3)
_NEOX = Names(
    "gpt_neox.layers", "post_attention_layernorm", "attention.dense", "mlp", "attention.dense",
    *["attention.query_key_value"] * 3,
)  # fmt: skip
_NEO = Names(
    "transformer.h", "ln_2", "attn.attention.out_proj", "mlp", "attn.attention.out_proj",
    *(f"attn.attention.{x}_proj" for x in "qkv"),
)  # fmt: skip
_OPT = Names(
    "model.decoder.layers", "final_layer_norm", "self_attn.out_proj", "fc2", "self_attn.out_proj",
    *(f"self_attn.{x}_proj" for x in "qkv"),
)  # fmt: skip
NAMES = {
    "gpt2": _GPT2, "gpt_neo": _NEO, "opt": _OPT, "gpt_neox": _NEOX, "llama": _LLAMA,
    "mistral": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA, "starcoder2": _LLAMA, "gemma2": _GEMMA,
}  # fmt: skip


class PlainDecoder:
    """A model from a folder, and its activations at each site."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager"
        ).eval()
        self.model.requires_grad_(False)
        config = self.model.config
        self.names = NAMES[config.model_type]
        self.kind = config.model_type
        self.n_layers, self.n_heads = config.num_hidden_layers, config.num_attention_heads
        self.n_kv = getattr(config, "num_key_value_heads", None) or self.n_heads
        self.d_head = getattr(config, "head_dim", None) or config.hidden_size // self.n_heads

    def module(self, layer: int, name: str) -> nn.Module:
        return self.model.get_submodule(f"{self.names.blocks}.{layer}{'.' * bool(name)}{name}")

    def by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.d_head))

    # --- sites ------------------------------------------------------------------------------------

    @contextmanager
    def at(self, site: str, layer: int, change: Change) -> Iterator[None]:
        """Call `change` with the site's value in every run inside; go on with what it returns."""
        names = self.names
        if site in ("resid_pre", "z", "resid_mid"):
            name = {"resid_pre": "", "z": names.o, "resid_mid": names.ln2}[site]

            def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
                key = None if args else next(iter(kwargs))
                x = args[0] if args else kwargs[key]
                shaped = self._three(x)
                new = change(self.by_head(shaped) if site == "z" else shaped)
                if new is None:
                    return None
                assert site != "resid_mid", "an edit there would not reach the skip connection"
                new = (new.flatten(-2) if site == "z" else new).reshape(x.shape)
                return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, key: new})

            module = self.module(layer, name)
            handle = module.register_forward_pre_hook(before, with_kwargs=True)
        else:
            name = "" if site == "resid_post" else getattr(names, site)

            def after(module: nn.Module, args: Any, output: Any) -> Any:
                x = output[0] if isinstance(output, tuple) else output
                new = self._changed(site, self._three(x), change)
                if new is None:
                    return None
                new = new.reshape(x.shape)
                return (new, *output[1:]) if isinstance(output, tuple) else new

            handle = self.module(layer, name).register_forward_hook(after)
        try:
            yield
        finally:
            handle.remove()

    def _three(self, x: Tensor) -> Tensor:
        """OPT may run its MLP on all tokens in one axis."""
        return x if x.ndim == 3 else x.reshape(self.batch, -1, x.shape[-1])

    def _changed(self, site: str, x: Tensor, change: Change) -> Tensor | None:
        if site not in ("q", "k", "v"):
            return change(x)
        if self.names.q != self.names.k:
            new = change(self.by_head(x))
            return None if new is None else new.flatten(-2)
        # One matrix for all three: side by side in GPT-2, head by head in NeoX.
        joint = self.kind == "gpt2"
        parts = x.unflatten(-1, (3, -1)) if joint else x.unflatten(-1, (self.n_heads, 3, -1))
        which = "qkv".index(site)
        part = self.by_head(parts[..., which, :]) if joint else parts[..., which, :]
        new = change(part)
        if new is None:
            return None
        parts = parts.clone()
        parts[..., which, :] = new.flatten(-2) if joint else new
        return parts.flatten(-2) if joint else parts.flatten(-3)

    # --- runs -------------------------------------------------------------------------------------

    def logits(
        self, data: IOIDataset, changes: Sequence[tuple[str, int, Change]] = (), **asked: Any
    ) -> Any:
        """The logits at END, or what else is asked of the model."""
        self.batch = len(data)
        with ExitStack() as stack, torch.no_grad():
            for site, layer, change in changes:
                stack.enter_context(self.at(site, layer, change))
            found = self.model(data.tokens, use_cache=False, **asked)
        return found if asked else data.gather(found.logits, "END")

    def logit_diffs(
        self, data: IOIDataset, changes: Sequence[tuple[str, int, Change]] = ()
    ) -> Tensor:
        """IO's logit less S's, of the data's answers."""
        logits, rows = self.logits(data, changes), torch.arange(len(data))
        return logits[rows, data.io_tokens] - logits[rows, data.s_tokens]

    def kept(self, data: IOIDataset, site: str) -> list[Tensor]:
        """The site's values in every layer."""
        if site == "pattern":
            return list(self.logits(data, output_attentions=True).attentions)
        found: list[Tensor] = []

        def keep(value: Tensor) -> None:
            found.append(value.clone())

        self.logits(data, [(site, layer, keep) for layer in range(self.n_layers)])
        return found

    def attended(self, pattern: Tensor, v: Tensor) -> Tensor:
        """z, from a pattern [batch head query key] and values [batch key kv_head d_head]."""
        v = v.repeat_interleave(self.n_heads // self.n_kv, dim=2)
        return torch.einsum("bhqk,bkhd->bqhd", pattern, v)
