"""Pictures of activations: their principal components, and how far these are a variable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ioi_helpers.probing.activations import require_activations
from ioi_helpers.probing.labels import encode_labels


@dataclass(frozen=True)
class SVDProjection:
    """Activations seen along their principal components.

    Attributes:
        coordinates: ``[batch component]``, the centred activations along each component, in the
            activations' units.
        components: ``[component d_model]``, orthonormal, largest variance first. The sign of each
            is chosen so that its entry of largest size is positive.
        mean: ``[d_model]``, what was subtracted.
        explained: ``[component]``, each component's share of the total variance, 0 to 1.
    """

    coordinates: Float[Tensor, "batch component"]
    components: Float[Tensor, "component d_model"]
    mean: Float[Tensor, " d_model"]
    explained: Float[Tensor, " component"]

    def project(
        self, activations: Float[Tensor, "batch d_model"]
    ) -> Float[Tensor, "batch component"]:
        """Coordinates of other activations in the same picture."""
        return (activations.to(self.mean) - self.mean) @ self.components.T


def svd_projection(
    activations: Float[Tensor, "batch d_model"], n_components: int = 2
) -> SVDProjection:
    """Subtract the mean, decompose, and keep the largest components (the LRQP post's pictures).

    No label is used. Where the classes separate all the same, the variable is, in the post's words,
    the primary thing represented there.

    Args:
        activations: At one point and role.
        n_components: How many components to keep.

    Raises:
        ValueError: There are fewer prompts or dimensions than components, or values that are not
            finite.
    """
    values = require_activations(activations)
    if not 1 <= n_components <= min(values.shape):
        raise ValueError(
            f"{n_components} components cannot be had from activations of shape "
            f"{tuple(values.shape)}; ask for 1 to {min(values.shape)}."
        )
    mean = values.mean(dim=0)
    _, singular, components = torch.linalg.svd(values - mean, full_matrices=False)
    kept = components[:n_components]
    largest = kept.gather(1, kept.abs().argmax(dim=1, keepdim=True))
    kept = kept * torch.where(largest < 0, -1.0, 1.0)
    variance = singular.square()
    explained = variance[:n_components] / variance.sum().clamp_min(1e-300)
    return SVDProjection((values - mean) @ kept.T, kept, mean, explained)


def eta_squared(
    coordinates: Float[Tensor, "batch component"], labels: Sequence[Any]
) -> Float[Tensor, " component"]:
    """Eta squared: the share of each component's variance that lies between the classes, 0 to 1.

    1 where a component only says which class a prompt belongs to, 0 where the classes have the same
    mean (the correlation ratio). The first principal component *is* the variable where
    its share is near 1.

    Raises:
        ValueError: Another number of labels than rows.
    """
    codes, classes = encode_labels(labels, len(coordinates))
    index = torch.as_tensor(codes, device=coordinates.device)
    centred = coordinates - coordinates.mean(dim=0)
    between = sum(
        (index == code).sum() * centred[index == code].mean(dim=0).square()
        for code in range(len(classes))
    )
    total = centred.square().sum(dim=0)
    return torch.as_tensor(between) / total.clamp_min(torch.finfo(total.dtype).tiny)
