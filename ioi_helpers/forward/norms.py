"""Norms: what stands between the stream and whoever reads it."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from ioi_helpers.forward.decoder import Norm


def normalise(norm: Norm, x: Float[Tensor, "*token d_model"]) -> Float[Tensor, "*token d_model"]:
    """LN(x) = (x - mean) / sqrt(variance + eps) * weight + bias; RMSNorm leaves out the mean.

    Written out, because PyTorch's own ``layer_norm`` rounds otherwise where the mean is small
    against the entries, and TransformerLens writes it out too.
    """
    ours = norm.centred and not x.requires_grad
    if norm.centred:
        x = x - x.mean(dim=-1, keepdim=True)
    scale = (x.square().mean(dim=-1, keepdim=True) + norm.eps).sqrt()
    # In place where x is a copy, but for gradients, which need what would be overwritten.
    x = x.div_(scale) if ours else x / scale
    if norm.weight is not None:
        x = x * norm.weight
    return x if norm.bias is None else x + norm.bias


def scale_of(norm: Norm, x: Float[Tensor, "*token d_model"]) -> Float[Tensor, "*token"]:
    """The number by which a norm divides each vector."""
    if norm.centred:
        x = x - x.mean(dim=-1, keepdim=True)
    return (x.square().mean(dim=-1) + norm.eps).sqrt()


def through(
    norm: Norm, x: Float[Tensor, "*token d_model"], gradient: Float[Tensor, "*head d_model"]
) -> Float[Tensor, "*head d_model"]:
    """The gradient with respect to x of gradient . N(x)."""
    if norm.weight is not None:
        gradient = gradient * norm.weight
    if norm.centred:
        x = x - x.mean(dim=-1, keepdim=True)
        gradient = gradient - gradient.mean(dim=-1, keepdim=True)
    scale = scale_of(Norm(None, None, norm.eps, centred=False), x)[..., None]
    normed = x / scale
    return (gradient - normed * (gradient * normed).mean(dim=-1, keepdim=True)) / scale
