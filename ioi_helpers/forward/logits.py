"""From the last residual stream to logits."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ioi_helpers.forward.decoder import Decoder
from ioi_helpers.forward.mlp import affine
from ioi_helpers.forward.norms import normalise


def normalise_final(
    gpt: Decoder, x: Float[Tensor, "*row d_model"]
) -> Float[Tensor, "*row d_model"]:
    """What the unembedding reads: the final residual stream after the final norm."""
    return normalise(gpt.ln_final, x)


def unembed(gpt: Decoder, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
    """The logits of final residual streams."""
    return capped(gpt, affine(gpt.b_U, normalise_final(gpt, x), gpt.W_U))


def capped(gpt: Decoder, logits: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Logits as the model gives them: cap * tanh(logits / cap) where it caps them."""
    cap = gpt.logit_cap
    return logits if cap is None else cap * (logits / cap).tanh()


def logit_diffs(
    gpt: Decoder,
    x: Float[Tensor, "*run batch d_model"],
    io_tokens: Int[Tensor, " batch"],
    s_tokens: Int[Tensor, " batch"],
) -> Float[Tensor, "*run batch"]:
    """The logit difference of final residual streams at END, from two columns of ``W_U`` only."""
    io, s = io_tokens.to(gpt.device), s_tokens.to(gpt.device)
    normed = normalise_final(gpt, x)
    if gpt.logit_cap is not None:
        both = (logit_of(gpt, normed, tokens) for tokens in (io, s))
        io_logits, s_logits = (capped(gpt, logits) for logits in both)
        return io_logits - s_logits
    directions = gpt.W_U.T[io].to(x.dtype) - gpt.W_U.T[s].to(x.dtype)
    constant = gpt.b_U[io].to(x.dtype) - gpt.b_U[s].to(x.dtype)
    return torch.einsum("...bd,bd->...b", normed, directions) + constant


def logit_of(
    gpt: Decoder, normed: Float[Tensor, "*run batch d_model"], tokens: Int[Tensor, " batch"]
) -> Float[Tensor, "*run batch"]:
    """One token's logit for each prompt, not capped."""
    columns = gpt.W_U.T[tokens].to(normed.dtype)
    return torch.einsum("...bd,bd->...b", normed, columns) + gpt.b_U[tokens].to(normed.dtype)
