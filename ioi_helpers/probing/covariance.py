"""The covariance of activations: estimated, factorised once, and used as a ruler.

A direction along which activations vary much may be moved along freely; one along which they hardly
vary leads off the distribution at once. The Mahalanobis length measures a move in that sense, and
LRQP makes it as small as it can. In a few hundred dimensions the sample covariance is noisy and, as
weights that write into the residual stream are centred, singular, so by default it is shrunk
(Ledoit and Wolf 2004).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from sklearn.covariance import LedoitWolf
from torch import Tensor

from ioi_helpers.probing.activations import require_activations
from ioi_helpers.probing.labels import encode_labels


@dataclass(frozen=True)
class Covariance:
    """A covariance matrix and what has been worked out from it, in float64.

    Attributes:
        matrix: ``[d_model d_model]``, symmetric and positive semi-definite.
        mean: ``[d_model]``, the mean of the activations it was estimated from, if it was.
        shrinkage: How much of it is a multiple of the identity, 0 to 1.
        n: Number of activations it was estimated from, 0 if it was given.
    """

    matrix: Float[Tensor, "d_model d_model"]
    mean: Float[Tensor, " d_model"] | None = None
    shrinkage: float = 0.0
    n: int = 0

    @cached_property
    def _eigen(self) -> tuple[Float[Tensor, " rank"], Float[Tensor, "d_model rank"]]:
        values, vectors = torch.linalg.eigh(self.matrix)
        # What the eigenvalues of a singular matrix come out as instead of zero.
        floor = values.abs().max() * len(values) * torch.finfo(values.dtype).eps * 8
        kept = values > floor
        return values[kept], vectors[:, kept]

    @cached_property
    def total_variance(self) -> float:
        """The sum of the variances along all directions: the trace."""
        return self.matrix.diagonal().sum().item()

    @property
    def rank(self) -> int:
        """The number of directions in which there is any variance."""
        return len(self._eigen[0])

    @cached_property
    def factor(self) -> Float[Tensor, "d_model rank"]:
        """L with ``L @ L.T == matrix``: it turns a whitened move into a move."""
        values, vectors = self._eigen
        return vectors * values.sqrt()

    @cached_property
    def whitener(self) -> Float[Tensor, "rank d_model"]:
        """The left inverse of :attr:`factor`: it turns a move within the range into a whitened one.

        For a covariance of full rank, ``whitener.T @ whitener`` is the precision matrix.
        """
        values, vectors = self._eigen
        return (vectors / values.sqrt()).T

    def length(self, moves: Float[Tensor, "batch d_model"]) -> Float[Tensor, " batch"]:
        """Mahalanobis length of moves: how many standard deviations, over all directions together.

        Infinite for a move that leaves the range of a singular covariance: no activation does.
        """
        moves = moves.to(self.matrix)
        if moves.shape[-1] != len(self.matrix):
            raise ValueError(
                f"The covariance has {len(self.matrix)} dimensions, but the moves "
                f"{moves.shape[-1]}; take both at the same kind of place."
            )
        _, vectors = self._eigen
        outside = moves - (moves @ vectors) @ vectors.T
        left = outside.norm(dim=-1) > 1e-4 * moves.norm(dim=-1)
        return torch.where(left, torch.inf, (moves @ self.whitener.T).norm(dim=-1))

    def distance(self, activations: Float[Tensor, "batch d_model"]) -> Float[Tensor, " batch"]:
        """Mahalanobis distance of activations from the mean; about root rank for a typical one.

        Raises:
            ValueError: The covariance was given, not estimated, so that there is no mean.
        """
        if self.mean is None:
            raise ValueError("This covariance has no mean; make it with fit_covariance.")
        return self.length(activations.to(self.matrix) - self.mean)

    def to(self, device: torch.device | str) -> Covariance:
        """The same on another device. What was factorised moves along."""
        if self.matrix.device == torch.device(device):
            return self
        mean = None if self.mean is None else self.mean.to(device)
        moved = Covariance(self.matrix.to(device), mean, self.shrinkage, self.n)
        for name in ("_eigen", "factor", "whitener"):
            if name in self.__dict__:
                value = self.__dict__[name]
                moved.__dict__[name] = (
                    tuple(part.to(device) for part in value)
                    if isinstance(value, tuple)
                    else value.to(device)
                )
        return moved


def fit_covariance(
    activations: Float[Tensor, "batch d_model"], labels: Any = None, *, shrink: bool = True
) -> Covariance:
    """Estimate a covariance from training activations.

    Args:
        activations: Of the training split *only*: an intervention that is judged on prompts which
            shaped its covariance is judged too kindly.
        labels: Give them for the pooled covariance within classes (each class is centred by its own
            mean). Without, the covariance of all activations together, as in the LRQP post; it
            contains the distance between the classes and so makes moving along it cheaper.
        shrink: Towards a multiple of the identity, by the Ledoit-Wolf amount. The sample covariance
            otherwise, which is singular with fewer prompts than dimensions.

    Raises:
        ValueError: Activations of a wrong shape, fewer than two of them, or labels that do not fit.
    """
    values = require_activations(activations)
    mean = values.mean(dim=0)
    if labels is None:
        centred, free = values - mean, len(values) - 1
    else:
        codes, classes = encode_labels(labels, len(values))
        index = torch.as_tensor(codes, device=values.device)
        centred, free = values.clone(), len(values) - len(classes)
        for code in range(len(classes)):
            centred[index == code] -= values[index == code].mean(dim=0)
    if free < 1:
        raise ValueError(
            f"A covariance needs more activations than classes, not {len(values)} of them."
        )
    if not shrink:
        return Covariance(centred.T @ centred / free, mean, 0.0, len(values))
    fitted = LedoitWolf(assume_centered=True).fit(centred.cpu().numpy())
    matrix = torch.as_tensor(fitted.covariance_, device=values.device)
    return Covariance((matrix + matrix.T) / 2, mean, float(fitted.shrinkage_), len(values))


def as_covariance(covariance: Any, d_model: int, device: torch.device | str = "cpu") -> Covariance:
    """A :class:`Covariance` from one, from a matrix, or from a fitted scikit-learn estimator.

    Args:
        covariance: A :class:`Covariance`; a tensor or array ``[d_model d_model]``; anything with
            scikit-learn's ``covariance_``.
        d_model: The width that is needed.
        device: Where it is needed.

    Raises:
        ValueError: It is of another width, not symmetric, not finite, or has a negative eigenvalue.
    """
    if covariance is None:
        raise ValueError("A covariance is needed; estimate it with fit_covariance.")
    if isinstance(covariance, Covariance):
        found = covariance
    else:
        raw = getattr(covariance, "covariance_", covariance)
        matrix = torch.as_tensor(raw).detach().to(device=device, dtype=torch.float64)
        found = Covariance(matrix)
    shape = tuple(found.matrix.shape)
    if shape != (d_model, d_model):
        raise ValueError(
            f"The covariance is of shape {shape}, but the activations have {d_model} dimensions."
        )
    if found is covariance:
        return found.to(device)
    size = matrix.abs().max()
    if not bool(torch.isfinite(size)):
        raise ValueError("The covariance holds NaN or infinity.")
    if bool((matrix - matrix.T).abs().max() > 1e-8 * size):
        raise ValueError("The covariance is not symmetric; is it a precision or weight matrix?")
    symmetric = (matrix + matrix.T) / 2
    shifted = symmetric + 1e-9 * size * torch.eye(d_model, dtype=matrix.dtype, device=device)
    if not bool(size > 0) or int(torch.linalg.cholesky_ex(shifted).info):
        raise ValueError(
            "The covariance has a negative eigenvalue or is zero, so it is no covariance; "
            "estimate it with fit_covariance."
        )
    return Covariance(symmetric)
