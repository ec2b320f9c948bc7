"""LRQP's rivals: other ways to change what an activation says, in the same form.

Those that erase a variable ignore the target; those that interchange take what they put in from a
counterfactual prompt's own activation, which is as natural as an activation gets: the yardstick for
what the model does with the other value. Bases and placebo are TransformerLens' own
(``tools.analysis.interchange``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.tools import analysis

from ioi_helpers.lrqp.intervention import Intervention, Rows
from ioi_helpers.probing import Covariance, as_probe
from ioi_helpers.probing.activations import require_activations, to_float64
from ioi_helpers.probing.labels import encode_labels


@dataclass(frozen=True)
class MeanDifferenceSteering(Intervention):
    """Add the difference of the class means, from the class a row has to the one it should have.

    Attributes:
        means: ``[class d_model]``, of the training activations.
        classes: The rows of ``means``.
        strength: 1 adds the difference itself.
    """

    means: Float[Tensor, "class d_model"]
    classes: tuple[Any, ...]
    strength: float = 1.0

    @classmethod
    def fit(
        cls, activations: Float[Tensor, "batch d_model"], labels: Any, strength: float = 1.0
    ) -> MeanDifferenceSteering:
        """Means of training activations by class."""
        values = require_activations(activations)
        codes, classes = encode_labels(labels, len(values))
        if len(classes) < 2:
            raise ValueError(f"All labels are {classes[0]!r}; there is nowhere to steer to.")
        index = torch.as_tensor(codes, device=values.device)
        means = [values[index == code].mean(dim=0) for code in range(len(classes))]
        return cls(torch.stack(means), classes, strength)

    def moved(self, rows: Rows) -> Float[Tensor, "batch d_model"]:
        true, target = rows.classes()
        number = {label: code for code, label in enumerate(self.classes)}
        unknown = next((label for label in [*true, *target] if label not in number), None)
        if unknown is not None:
            raise ValueError(
                f"{unknown!r} is not a class that the means were taken of; these are "
                f"{', '.join(map(repr, self.classes))}."
            )
        start = _of_width(rows.x0, self.means.shape[1])
        means = self.means.to(start)
        steer = (
            means[[number[label] for label in target]] - means[[number[label] for label in true]]
        )
        return start + self.strength * steer


@dataclass(frozen=True)
class ProbeMeanAblation(Intervention):
    """Put the probe's direction to its training mean: the probe then knows nothing any more.

    Attributes:
        basis: ``[d_model rank]``, orthonormal: the span of the probe's weights.
        mean: ``[d_model]``, of the training activations.
    """

    basis: Float[Tensor, "d_model rank"]
    mean: Float[Tensor, " d_model"]

    @classmethod
    def fit(cls, activations: Float[Tensor, "batch d_model"], probe: Any) -> ProbeMeanAblation:
        """From a probe and the training activations."""
        values = require_activations(activations)
        basis = analysis.probe_basis(as_probe(probe).weights.cpu())
        return cls(basis.to(values), values.mean(dim=0))

    def moved(self, rows: Rows) -> Float[Tensor, "batch d_model"]:
        start = to_float64(rows.x0)
        source = self.mean.to(start).expand_as(start)
        return analysis.SubspaceInterchange(self.basis)(start, source)


@dataclass(frozen=True)
class LeaceErasure(Intervention):
    """Erase the variable from activations, so that no linear classifier finds it (LEACE).

    The smallest affine change, in the mean square, after which the class means are equal (Belrose
    et al. 2023, "LEACE: Perfect linear concept erasure in closed form"; the concept-erasure
    package, whose estimate of the covariance is shrunk: the means come out equal all the same, and
    the change is the smallest by that estimate). Like ablation it takes a belief away and puts none
    in its place.

    Attributes:
        eraser: concept-erasure's ``LeaceEraser``.
    """

    eraser: Any

    @classmethod
    def fit(cls, activations: Float[Tensor, "batch d_model"], labels: Any) -> LeaceErasure:
        """Fit on training activations.

        Raises:
            ValueError: A single class.
        """
        # Here and not above: importing it compiles TorchScript, which takes time and warns.
        from concept_erasure import LeaceFitter

        values = require_activations(activations)
        codes, classes = encode_labels(labels, len(values))
        if len(classes) < 2:
            raise ValueError(f"All labels are {classes[0]!r}; there is no variable to erase.")
        one_hot = torch.nn.functional.one_hot(torch.as_tensor(codes), len(classes))
        # Its option that keeps the variance from growing (on by default) gives up the guarantee.
        fitter = LeaceFitter.fit(values, one_hot.to(values), constrain_cov_trace=False)
        return cls(fitter.eraser)

    def moved(self, rows: Rows) -> Float[Tensor, "batch d_model"]:
        eraser = self.eraser
        start = _of_width(rows.x0, eraser.proj_left.shape[0])
        there = type(eraser)(
            *(part.to(start) for part in (eraser.proj_left, eraser.proj_right, eraser.bias))
        )
        return there(start)


@dataclass(frozen=True)
class InterchangeActivation(Intervention):
    """Put in the activation of a prompt that does have the target, whole or within a subspace.

    Attributes:
        basis: ``[d_model rank]``, orthonormal; None for the whole activation. TransformerLens'
            ``mean_difference_basis`` and ``probe_basis`` make some.
    """

    basis: Float[Tensor, "d_model rank"] | None = None

    def moved(self, rows: Rows) -> Float[Tensor, "batch d_model"]:
        if rows.counterfactual is None:
            raise ValueError(
                "An interchange needs the counterfactual's activations, such as "
                "activations_at(model, data.swap_order(), role, point)."
            )
        x0 = rows.x0
        same = torch.tensor([a == b for a, b in zip(*rows.classes(), strict=True)])
        source = torch.where(same[:, None].to(x0.device), x0, rows.counterfactual.to(x0))
        if self.basis is None:
            return source
        return analysis.SubspaceInterchange(self.basis)(x0, source)


@dataclass(frozen=True)
class RandomDirection(Intervention):
    """Move each row as far as another intervention does, but in a random direction: the placebo.

    Attributes:
        matched: The intervention whose length is matched.
        seed: Of the direction.
        covariance: None matches the Euclidean norm, along one random direction for all rows
            (TransformerLens' ``NormMatchedPlacebo``). With a covariance the Mahalanobis length is
            matched instead, along a direction drawn from the activations' own distribution for
            each row: a placebo that leaves the cloud of activations no more than what it matches.
    """

    matched: Callable[..., Float[Tensor, "batch d_model"]]
    seed: int = 0
    covariance: Covariance | None = None

    def moved(self, rows: Rows) -> Float[Tensor, "batch d_model"]:
        goal, start = to_float64(self.matched(**vars(rows))), to_float64(rows.x0)
        if self.covariance is None:
            basis = analysis.random_basis(start.shape[1], 1, self.seed)
            placebo = analysis.NormMatchedPlacebo(_to_source, basis)  # type: ignore[arg-type]
            return placebo(start, goal)
        covariance = self.covariance.to(goal.device)
        generator = torch.Generator().manual_seed(self.seed)
        draws = torch.randn(start.shape, generator=generator, dtype=torch.float64).to(goal.device)
        # Drawn in no axes of the covariance's: the sign of an eigenvector is up to the library,
        # another one on a GPU, and the placebo must not depend on it.
        draws = draws @ (covariance.factor / covariance.factor.norm(dim=0))
        directions = draws / draws.norm(dim=-1, keepdim=True)
        length = ((goal - start) @ covariance.whitener.T).norm(dim=-1)
        return start + ((length[:, None] * directions) @ covariance.factor.T)


def _of_width(x0: Tensor, width: int) -> Float[Tensor, "batch d_model"]:
    if x0.shape[-1] != width:
        raise ValueError(
            f"The intervention was fitted on {width} dimensions, but the activations have "
            f"{x0.shape[-1]}; take both at the same kind of place."
        )
    return to_float64(x0)


def _to_source(base: Tensor, source: Tensor) -> Tensor:
    """The interchange of everything: where what the placebo matches goes."""
    return source
