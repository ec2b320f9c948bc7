"""A bundled model's weights, rewritten without loss for another architecture.

The result computes the same function, to rounding, so every number that this package measures must
be the same on it; where one is not, the package assumed something about GPT-2 that it did not say.
Tokenizer, registry and card are copied along.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
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


def with_gpt2s_tokenizer(folder: Path, tokenizer: Path, target: Path) -> Path:
    """The model behind GPT-2's own tokenizer: it does the task, on words of one token or several.

    The one that is not without loss: a token that is no word of the model's, such as a piece of a
    name, has the mean embedding of a few words.

    Args:
        folder, target: as for :func:`as_stanford`.
        tokenizer: The folder of GPT-2's tokenizer.
    """
    model = GPT2LMHeadModel.from_pretrained(folder)
    words = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    gpt2 = AutoTokenizer.from_pretrained(tokenizer)
    generator = torch.Generator().manual_seed(0)
    old = model.transformer.wte.weight.detach()
    some = torch.randint(1, len(words), (len(gpt2), 6), generator=generator)
    embedding = old[some].mean(dim=1)
    for i in range(len(gpt2)):
        text = gpt2.decode([i])
        word = words.get(text, words.get(f" {text}"))  # a text may begin with it
        if word is not None:
            embedding[i] = old[word]
    model.resize_token_embeddings(len(gpt2), mean_resizing=False)
    with torch.no_grad():
        model.transformer.wte.weight.copy_(embedding)
    model.config.bos_token_id = model.config.eos_token_id = gpt2.bos_token_id
    _save(model, folder, target)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / file, target)
    return target


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


def at_gpt2_small_shape(folder: Path, target: Path, noise: float = 1e-3) -> Path:
    """In the shape of GPT-2 small, for what depends on the shape: time and memory.

    The stream stands in as many copies side by side as fit; what reads it reads their mean, and
    what writes writes to each. Of the rest of a stream's variance LayerNorm's weights take account.
    Heads are filled up with dimensions that hold nothing. The heads, MLPs and layers that the model
    does not have are random and small, so that its own do what they did, to that noise; tokens
    that it does not have are copies of its least likely one. Without noise its logits are those of
    the model within 0.1: embeddings lose their mean, which an unembedding would keep.

    Args: as for :func:`as_stanford`, and
        noise: Standard deviation of the weights by which the additional parts write.
    """
    config, weights = _read(folder)
    shape = GPT2Config(activation_function=config.activation_function)
    small, d_model, d_head = config.n_embd, shape.n_embd, shape.n_embd // shape.n_head
    copies = d_model // small
    filled = copies * small / d_model  # of the stream: its variance is less by this
    shape.layer_norm_epsilon = filled * config.layer_norm_epsilon
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        setattr(shape, name, 0.0)
    shape.bos_token_id = shape.eos_token_id = config.bos_token_id
    torch.manual_seed(0)
    model = GPT2LMHeadModel(shape)
    new = model.transformer.state_dict()

    def wide(x: Tensor) -> Tensor:
        """In each copy, along the last axis; without its mean, which LayerNorm takes away."""
        x = (x - x.mean(-1, keepdim=True)).repeat(*(1,) * (x.ndim - 1), copies)
        return torch.nn.functional.pad(x, (0, d_model - x.shape[-1]))

    def read(x: Tensor) -> Tensor:
        """Of a matrix [in, out]: from the mean over copies."""
        x = x.repeat(copies, 1) / copies
        return torch.nn.functional.pad(x, (0, 0, 0, d_model - x.shape[0]))

    def norm(name: str, scale: float = 1.0) -> None:
        for part, factor in (("weight", scale * filled**0.5), ("bias", scale)):
            own = (factor * weights[f"{name}.{part}"]).repeat(copies)
            new[f"{name}.{part}"] = torch.nn.functional.pad(own, (0, d_model - len(own)))

    embed = weights["wte.weight"]
    # The final stream's bias says which tokens it makes unlikely, whatever the prompt.
    least = int((embed @ weights["ln_f.bias"]).argmin())
    table = embed[[*range(len(embed)), *[least] * (shape.vocab_size - len(embed))]]
    new["wte.weight"] = wide(table)
    new["wpe.weight"] = torch.zeros_like(new["wpe.weight"])
    new["wpe.weight"][: config.n_positions] = wide(weights["wpe.weight"])
    norm("ln_f", 1 / copies)
    for layer in range(shape.n_layer):
        at = f"h.{layer}"
        for name in ("attn.c_proj", "mlp.c_proj"):  # of the additional parts
            new[f"{at}.{name}.weight"].normal_(std=noise)
            new[f"{at}.{name}.bias"].zero_()
        if layer >= config.n_layer:
            continue
        norm(f"{at}.ln_1")
        norm(f"{at}.ln_2")
        attention = _attention(weights, at)
        before = config.n_embd // config.n_head
        matrix, bias = new[f"{at}.attn.c_attn.weight"], new[f"{at}.attn.c_attn.bias"]
        for number, part in enumerate("qkv"):
            scale = (d_head / before) ** 0.5 if part == "q" else 1.0
            for head in range(config.n_head):
                own = slice(head * before, (head + 1) * before)
                start = number * d_model + head * d_head
                matrix[:, start : start + d_head] = 0
                matrix[:, start : start + before] = scale * read(attention[f"W_{part}"][:, own])
                bias[start : start + before] = scale * attention[f"b_{part}"][own]
        out = new[f"{at}.attn.c_proj.weight"]
        for head in range(config.n_head):
            own = slice(head * before, (head + 1) * before)
            out[head * d_head : head * d_head + before] = wide(
                weights[f"{at}.attn.c_proj.weight"][own]
            )
        hidden = _hidden(config)
        new[f"{at}.mlp.c_fc.weight"][:, :hidden] = read(weights[f"{at}.mlp.c_fc.weight"])
        new[f"{at}.mlp.c_fc.bias"][:hidden] = weights[f"{at}.mlp.c_fc.bias"]
        new[f"{at}.mlp.c_proj.weight"][:hidden] = wide(weights[f"{at}.mlp.c_proj.weight"])
        for name in ("attn.c_proj", "mlp.c_proj"):
            new[f"{at}.{name}.bias"] = wide(weights[f"{at}.{name}.bias"])
    model.transformer.load_state_dict(new)
    return _save(model, folder, target)


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
