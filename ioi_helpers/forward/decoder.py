"""A decoder's weights and the switches in which decoders differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Norm:
    """A LayerNorm or RMSNorm; weight and bias are None where they are folded into the next layer.

    Attributes:
        centred: It subtracts the mean, as LayerNorm does and RMSNorm does not.
    """

    weight: Float[Tensor, " d_model"] | None
    bias: Float[Tensor, " d_model"] | None
    eps: float
    centred: bool = True


@dataclass(frozen=True)
class Rotary:
    """Positions that act inside attention: pairs of a query's and a key's entries are turned.

    Attributes:
        frequencies: By which angle each pair is turned from one position to the next. There may be
            fewer pairs than half of d_head; the other entries stay as they are.
        scaling: What turned entries are multiplied by; 1 but for some long contexts.
    """

    frequencies: Float[Tensor, " pair"]
    scaling: float = 1.0


@dataclass(frozen=True)
class Block:
    """The weights of one block; the heads of W_Q, W_K, W_V and W_O lie side by side.

    A bias is None where the model has none.
    """

    ln1: Norm
    W_Q: Float[Tensor, "d_model head_x_d_head"]
    W_K: Float[Tensor, "d_model kv_head_x_d_head"]
    W_V: Float[Tensor, "d_model kv_head_x_d_head"]
    W_O: Float[Tensor, "head_x_d_head d_model"]
    b_Q: Float[Tensor, " head_x_d_head"] | None
    b_K: Float[Tensor, " kv_head_x_d_head"] | None
    b_V: Float[Tensor, " kv_head_x_d_head"] | None
    b_O: Float[Tensor, " d_model"] | None
    ln2: Norm
    W_in: Float[Tensor, "d_model d_mlp"]
    b_in: Float[Tensor, " d_mlp"] | None
    W_out: Float[Tensor, "d_mlp d_model"]
    b_out: Float[Tensor, " d_model"] | None
    score_scale: float
    """What attention scores are multiplied by: 1 / sqrt(d_head) in most models."""
    W_gate: Float[Tensor, "d_model d_mlp"] | None = None
    b_gate: Float[Tensor, " d_mlp"] | None = None
    """Of a gated MLP."""
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    """Norms of each query and key (Qwen 3)."""
    ln1_post: Norm | None = None
    ln2_post: Norm | None = None
    """Norms of what attention and MLP compute, before it is added to the stream (Gemma 2)."""
    window: int | None = None
    """How many positions a token sees, itself included; None is all that come before."""
    score_cap: float | None = None
    """Scores s are capped to cap * tanh(s / cap)."""


@dataclass(frozen=True)
class Decoder:
    """The weights of a decoder: views of the model's own tensors where they can be."""

    W_E: Float[Tensor, "vocab d_model"]
    W_pos: Float[Tensor, "context d_model"] | None
    """Learned positions; None where there are others."""
    blocks: tuple[Block, ...]
    ln_final: Norm
    W_U: Float[Tensor, "d_model vocab"]
    b_U: Float[Tensor, " vocab"]
    n_heads: int
    activation: Callable[[Tensor], Tensor]
    n_kv_heads: int
    """Keys and values; fewer than heads where groups of heads share them."""
    rotary: Rotary | None = None
    parallel: bool = False
    """The MLP reads what attention reads, and both are added together."""
    embed_scale: float = 1.0
    """What token embeddings are multiplied by."""
    logit_cap: float | None = None
    """Logits l are capped to cap * tanh(l / cap)."""

    @property
    def n_layers(self) -> int:
        """The number of blocks."""
        return len(self.blocks)

    @property
    def d_head(self) -> int:
        """The width of a query, key or value."""
        return self.blocks[0].W_Q.shape[1] // self.n_heads

    @property
    def group(self) -> int:
        """How many heads share a key and value."""
        return self.n_heads // self.n_kv_heads

    def kv_heads(self, heads: Sequence[int]) -> list[int]:
        """Which key and value each of some heads has."""
        return [head // self.group for head in heads]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.W_E.device

    @property
    def dtype(self) -> torch.dtype:
        """Of activations: the weights' own, but float32 where those are of half precision."""
        return torch.promote_types(self.W_E.dtype, torch.float32)

    @property
    def adds_heads(self) -> bool:
        """Whether what heads write is added to the stream as it is, without another norm."""
        return all(block.ln1_post is None for block in self.blocks)

    @property
    def mlp_reads(self) -> str:
        """The stream that an MLP reads."""
        return "resid_pre" if self.parallel else "resid_mid"

    def after_attention(self, layer: int) -> tuple[str, int]:
        """The first stream that holds what a layer's attention writes and is read: site, layer."""
        return ("resid_pre", layer + 1) if self.parallel else ("resid_mid", layer)

    def heads(self, x: Float[Tensor, "*any head_x_d_head"]) -> Float[Tensor, "*any head d_head"]:
        """The same numbers, one row a head."""
        return x.unflatten(-1, (-1, self.d_head))

    def bytes_per_token(self, width: int) -> int:
        """About how much memory one token of a span needs on its way through a block.

        Args:
            width: Positions in the longest prompt.
        """
        # The stream and its norm, q, k and v with their padded copies, z and what is made of it;
        # attention scores and weights.
        vector = max(self.W_E.shape[1], self.n_heads * self.d_head)
        numbers = 16 * vector + 8 * self.n_heads * width
        return numbers * self.dtype.itemsize
