"""GPT-2 in plain PyTorch, written from its definition, and path patching on it by brute force.

Nothing of the package is used: what the package computes is compared with this. One prompt at a
time, one run of the whole model a pass, weights as they lie in the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

Node = tuple[int, int | None]
"""(layer, head), (layer, None) for an MLP, (-1, None) for the embedding."""
Sender = tuple[Node, Iterable[int]]
"""A node and the positions at which it sends."""
Receiver = tuple[int, int | None, str, Iterable[int], Iterable[int] | None]
"""Layer, head, input (q, k, v, in, final), positions, and whose queries see it (None: all)."""
Change = Callable[[str, int, Tensor], Tensor]


class PlainGPT2:
    """A GPT-2 saved by Hugging Face's transformers, in float64."""

    def __init__(self, folder: Path, n_heads: int):
        loaded = load_file(folder / "model.safetensors")
        self.w = {name.removeprefix("transformer."): x.double() for name, x in loaded.items()}
        self.n_heads = n_heads
        self.n_layers = 1 + max(int(name.split(".")[1]) for name in self.w if name[:2] == "h.")

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.w[f"{name}.weight"], self.w[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def logits(self, tokens: Tensor, change: Change = lambda name, layer, value: value) -> Tensor:
        """Logits at the end of one prompt; `change` sees and may replace everything on the way.

        It is called with "embed" [pos d], "q", "k", "v", "z" [pos head d_head], "in" and "mlp" [pos
        d] (what an MLP reads, and only it, and writes), and "final" [pos d].
        """
        length = len(tokens)
        x = change("embed", -1, self.w["wte.weight"][tokens] + self.w["wpe.weight"][:length])
        for layer in range(self.n_layers):
            at = f"h.{layer}"
            qkv = self.linear(f"{at}.attn.c_attn", self.norm(f"{at}.ln_1", x))
            q, k, v = (
                change(name, layer, part.reshape(length, self.n_heads, -1))
                for name, part in zip("qkv", qkv.chunk(3, dim=-1), strict=True)
            )
            z = change("z", layer, self.attend(q, k, v))
            mid = x + self.linear(f"{at}.attn.c_proj", z.reshape(length, -1))
            hidden = self.linear(
                f"{at}.mlp.c_fc", self.norm(f"{at}.ln_2", change("in", layer, mid))
            )
            mlp = self.linear(f"{at}.mlp.c_proj", F.gelu(hidden, approximate="tanh"))
            x = mid + change("mlp", layer, mlp)
        x = change("final", self.n_layers, x)
        unembed = self.w.get("lm_head.weight", self.w["wte.weight"])
        return self.norm("ln_f", x)[-1] @ unembed.T

    @staticmethod
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
        future = torch.ones(len(q), len(k)).triu(1).bool()
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(future, -math.inf).softmax(-1), v)

    def kept(self, tokens: Tensor) -> dict[tuple[str, int], Tensor]:
        """Everything of one run."""
        seen = {}

        def keep(name: str, layer: int, value: Tensor) -> Tensor:
            seen[name, layer] = value
            return value

        self.logits(tokens, keep)
        return seen


def brute_force(
    model: PlainGPT2,
    tokens: Tensor,
    reference: Tensor,
    senders: Iterable[Sender],
    receiver_sets: Iterable[Iterable[Receiver]],
    mlps_frozen: bool = False,
    freeze_attention: bool = True,
) -> list[Tensor]:
    """For each set of receivers the logits of pass D, by the letter of the IOI paper's Appendix B.

    `freeze_attention=False` freezes nothing in pass C.
    """
    a, b = model.kept(reference), model.kept(tokens)
    recorded = pass_c(model, tokens, a, b, list(senders), mlps_frozen, freeze_attention)
    return [pass_d(model, tokens, recorded, list(receivers)) for receivers in receiver_sets]


Kept = dict[tuple[str, int], Tensor]


def pass_c(
    model: PlainGPT2,
    tokens: Tensor,
    a: Kept,
    b: Kept,
    senders: list[Sender],
    mlps_frozen: bool,
    freeze_attention: bool,
) -> Kept:
    recorded: Kept = {}

    def change(name: str, layer: int, value: Tensor) -> Tensor:
        recorded[name, layer] = value  # as it would be before it is frozen
        frozen = (name in "qkv" and freeze_attention) or (name == "mlp" and mlps_frozen)
        value = (b[name, layer] if frozen else value).clone()
        for (at, head), positions in senders:
            if at != layer:
                continue
            site = "embed" if at < 0 else "mlp" if head is None else "z"
            for position in positions if name == site else ():
                if site == "z":
                    value[position, head] = a[name, layer][position, head]
                else:
                    value[position] = a[name, layer][position]
        return value

    model.logits(tokens, change)
    return recorded


def pass_d(model: PlainGPT2, tokens: Tensor, recorded: Kept, receivers: list[Receiver]) -> Tensor:
    here: dict[str, Tensor] = {}

    def change(name: str, layer: int, value: Tensor) -> Tensor:
        value = value.clone()
        mine = [r for r in receivers if r[0] == layer]
        if name in ("in", "final"):
            for _, _, read, positions, _ in mine:
                for position in positions if read == name else ():
                    value[position] = recorded[name, layer][position]
        if name in "qkv":
            for _, head, read, positions, queries in mine:
                for position in positions if read == name and queries is None else ():
                    value[position, head] = recorded[name, layer][position, head]
            here[name] = value
        if name == "z":
            # A key or value that only one token's query sees.
            for query in {q for r in mine if r[4] is not None for q in r[4]}:
                new = {part: here[part].clone() for part in "qkv"}
                for _, head, read, positions, queries in mine:
                    if queries is not None and query in queries:
                        for position in positions:
                            new[read][position, head] = recorded[read, layer][position, head]
                heads = {r[1] for r in mine if r[4] is not None and query in r[4]}
                z = model.attend(new["q"], new["k"], new["v"])
                for head in heads:
                    value[query, head] = z[query, head]
        return value

    return model.logits(tokens, change)
