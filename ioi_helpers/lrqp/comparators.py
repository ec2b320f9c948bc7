"""Other ways to change what an activation says, in one form, and how they compare.

Each is called with activations and, row by row, the class they have and the class they should get,
and returns new activations. Those that erase a variable ignore the target; those that interchange
take what they put in from a counterfactual prompt's own activation, which is as natural as an
activation gets: the reference for what the model does with the other value. Bases, placebo and DAS
are TransformerLens' own (``tools.analysis.interchange``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools import analysis

from ioi_helpers import metrics
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.lrqp.editing import (
    AtPoints,
    Edit,
    edit,
    logits_at_positions,
    success_and_damage,
)
from ioi_helpers.lrqp.intervention import intervene
from ioi_helpers.probing import (
    Covariance,
    Probe,
    activations_at,
    as_covariance,
    as_probe,
    parse_point,
)
from ioi_helpers.probing.activations import encode_labels, require_activations, to_float64


class Intervention(Protocol):
    """From activations to new ones."""

    def __call__(
        self,
        x0: Float[Tensor, "batch d_model"],
        *,
        true: Sequence[Any],
        target: Sequence[Any],
        counterfactual: Float[Tensor, "batch d_model"] | None = None,
    ) -> Float[Tensor, "batch d_model"]:
        """New activations.

        Args:
            x0: Activations of the prompts as they are.
            true: The class each has.
            target: The class each should have afterwards; equal to ``true`` for a control.
            counterfactual: Activations at the same place of prompts that do have the target.
        """


@dataclass(frozen=True)
class LRQP:
    """The smallest move that makes the probe believe the target (:func:`intervene`).

    Attributes:
        probe, covariance: From training prompts.
        options: Further arguments of :func:`intervene`, such as ``{"alpha": 1e3}``.
    """

    probe: Any
    covariance: Any
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(
        self,
        x0: Float[Tensor, "batch d_model"],
        *,
        true: Sequence[Any],
        target: Sequence[Any],
        counterfactual: Float[Tensor, "batch d_model"] | None = None,
    ) -> Float[Tensor, "batch d_model"]:
        return intervene(x0, self.probe, target, self.covariance, true=true, **self.options).x


@dataclass(frozen=True)
class MeanDifferenceSteering:
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
        index = torch.as_tensor(codes, device=values.device)
        means = [values[index == code].mean(dim=0) for code in range(len(classes))]
        return cls(torch.stack(means), classes, strength)

    def __call__(
        self,
        x0: Float[Tensor, "batch d_model"],
        *,
        true: Sequence[Any],
        target: Sequence[Any],
        counterfactual: Float[Tensor, "batch d_model"] | None = None,
    ) -> Float[Tensor, "batch d_model"]:
        number = {label: code for code, label in enumerate(self.classes)}
        start = to_float64(x0)
        means = self.means.to(start)
        steer = (
            means[[number[label] for label in target]] - means[[number[label] for label in true]]
        )
        return start + self.strength * steer


@dataclass(frozen=True)
class ProbeMeanAblation:
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

    def __call__(
        self,
        x0: Float[Tensor, "batch d_model"],
        *,
        true: Sequence[Any] = (),
        target: Sequence[Any] = (),
        counterfactual: Float[Tensor, "batch d_model"] | None = None,
    ) -> Float[Tensor, "batch d_model"]:
        start = to_float64(x0)
        source = self.mean.to(start).expand_as(start)
        return analysis.SubspaceInterchange(self.basis)(start, source)


@dataclass(frozen=True)
class LeaceErasure:
    """Erase the variable from activations, so that no linear classifier finds it (LEACE).

    The smallest affine change, in the mean square, after which the class means are equal (Belrose
    et al. 2023, "LEACE: Perfect linear concept erasure in closed form"; the concept-erasure
    package). Like ablation it takes a belief away and puts none in its place.

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

    def __call__(
        self,
        x0: Float[Tensor, "batch d_model"],
        *,
        true: Sequence[Any] = (),
        target: Sequence[Any] = (),
        counterfactual: Float[Tensor, "batch d_model"] | None = None,
    ) -> Float[Tensor, "batch d_model"]:
        eraser = self.eraser
        start = to_float64(x0)
        there = type(eraser)(
            *(part.to(start) for part in (eraser.proj_left, eraser.proj_right, eraser.bias))
        )
        return there(start)


@dataclass(frozen=True)
class InterchangeActivation:
    """Put in the activation of a prompt that does have the target, whole or within a subspace.

    Attributes:
        basis: ``[d_model rank]``, orthonormal; None for the whole activation. TransformerLens'
            ``mean_difference_basis`` and ``probe_basis`` make some.
    """

    basis: Float[Tensor, "d_model rank"] | None = None

    def __call__(
        self,
        x0: Float[Tensor, "batch d_model"],
        *,
        true: Sequence[Any],
        target: Sequence[Any],
        counterfactual: Float[Tensor, "batch d_model"] | None = None,
    ) -> Float[Tensor, "batch d_model"]:
        if counterfactual is None:
            raise ValueError(
                "An interchange needs the counterfactual's activations, such as "
                "activations_at(model, data.swap_order(), role, point)."
            )
        same = torch.tensor([a == b for a, b in zip(true, target, strict=True)], device=x0.device)
        source = torch.where(same[:, None], x0, counterfactual.to(x0))
        if self.basis is None:
            return source
        return analysis.SubspaceInterchange(self.basis)(x0, source)


@dataclass(frozen=True)
class RandomDirection:
    """Move each row as far as another intervention does, but in a random direction: the placebo.

    Attributes:
        reference: The intervention whose length is matched.
        seed: Of the direction.
        covariance: None matches the Euclidean norm, along one random direction for all rows
            (TransformerLens' ``NormMatchedPlacebo``). With a covariance the Mahalanobis length is
            matched instead, along a direction drawn from the activations' own distribution for
            each row: a placebo that leaves the cloud of activations no more than its reference.
    """

    reference: Intervention
    seed: int = 0
    covariance: Covariance | None = None

    def __call__(
        self,
        x0: Float[Tensor, "batch d_model"],
        *,
        true: Sequence[Any],
        target: Sequence[Any],
        counterfactual: Float[Tensor, "batch d_model"] | None = None,
    ) -> Float[Tensor, "batch d_model"]:
        goal = self.reference(x0, true=true, target=target, counterfactual=counterfactual)
        goal, start = to_float64(goal), to_float64(x0)
        if self.covariance is None:
            basis = analysis.random_basis(x0.shape[1], 1, self.seed)
            placebo = analysis.NormMatchedPlacebo(_to_source, basis)  # type: ignore[arg-type]
            return placebo(start, goal)
        covariance = self.covariance.to(goal.device)
        generator = torch.Generator().manual_seed(self.seed)
        draws = torch.randn(len(x0), covariance.rank, generator=generator, dtype=torch.float64)
        directions = (draws / draws.norm(dim=-1, keepdim=True)).to(goal.device)
        length = ((goal - start) @ covariance.whitener.T).norm(dim=-1)
        return start + ((length[:, None] * directions) @ covariance.factor.T)


def _to_source(base: Tensor, source: Tensor) -> Tensor:
    """The interchange of everything: where the placebo's reference goes."""
    return source


@dataclass(frozen=True)
class DAS:
    """Interchange within a subspace that was learned to carry the variable (:func:`fit_das`).

    Attributes:
        basis: ``[d_model rank]``, orthonormal.
        losses: Mean training loss of each epoch, in nats.
        point: Where it was learned.
    """

    basis: Float[Tensor, "d_model rank"]
    losses: tuple[float, ...]
    point: str

    def __call__(
        self,
        x0: Float[Tensor, "batch d_model"],
        *,
        true: Sequence[Any],
        target: Sequence[Any],
        counterfactual: Float[Tensor, "batch d_model"] | None = None,
    ) -> Float[Tensor, "batch d_model"]:
        swap = InterchangeActivation(self.basis)
        return swap(x0, true=true, target=target, counterfactual=counterfactual)


def fit_das(
    model: TransformerBridge,
    data: IOIDataset,
    role: str,
    point: str,
    *,
    source: IOIDataset | None = None,
    rank: int = 1,
    epochs: int = 4,
    batch_size: int = 64,
    lr: float = 2e-2,
    seed: int = 0,
) -> DAS:
    """Learn the subspace at a role that carries the order, by distributed alignment search.

    TransformerLens' ``fit_das`` (Geiger et al. 2024): the basis is trained so that interchanging it
    makes the model answer as the order of the *other* prompt says, IO if the orders agree and S if
    they differ. Unlike a probe it is trained on the model's behaviour, and it can find directions
    that do the job without the model using them on its own (see ``arbitrary_targets`` for the
    control).

    Args:
        model: The model; its parameters are left as they were.
        data: Training prompts.
        role, point: Where.
        source: As many other prompts to take activations from. By default the same ones in another
            order, so that names and templates differ as well and only the order can be learned.
        rank: Dimensions of the subspace.
        epochs, batch_size, lr, seed: Of the training.

    Raises:
        ValueError: Another number of source prompts, an unknown role or point, a model in training
            mode.
    """
    parse_point(point)
    if model.training:
        raise ValueError("The model is in training mode, where dropout is random; call eval().")
    if source is None:
        generator = torch.Generator().manual_seed(seed)
        source = data[torch.randperm(len(data), generator=generator)]
    if len(source) != len(data):
        raise ValueError(
            f"There are {len(data)} prompts but {len(source)} sources; give one for each."
        )
    targets = [int(a != b) for a, b in zip(data.orders, source.orders, strict=True)]
    result = analysis.fit_das(
        AtPoints(model),
        point,
        _with_answers(data),
        _with_answers(source),
        torch.tensor(targets),
        lambda packed: _answer_logits(model, packed),
        rank=rank,
        base_positions=data.positions[role].cpu(),
        source_positions=source.positions[role].cpu(),
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
    )
    return DAS(result.basis, result.losses, point)


def _with_answers(data: IOIDataset) -> Tensor:
    """Tokens with three more columns, END and the answers: TransformerLens shuffles rows."""
    extra = torch.stack([data.positions["END"], data.io_tokens, data.s_tokens], dim=1)
    return torch.cat([data.tokens, extra], dim=1).cpu()


def _answer_logits(model: TransformerBridge, packed: Tensor) -> Float[Tensor, "batch 2"]:
    logits = logits_at_positions(model, packed[:, :-3], packed[:, -3])
    return logits.gather(1, packed[:, -2:].to(logits.device))


def compare(
    model: TransformerBridge,
    data: IOIDataset,
    role: str,
    point: str,
    interventions: Mapping[str, Intervention],
    *,
    true: Sequence[Any],
    target: Sequence[Any],
    counterfactual: IOIDataset | Float[Tensor, "batch d_model"] | None = None,
    probe: Probe | None = None,
    covariance: Any = None,
    batch_size: int = 64,
) -> pd.DataFrame:
    """Success against damage, for several interventions at the same place on the same prompts.

    Args:
        model, data: The model and held-out prompts.
        role, point: Where to intervene.
        interventions: A name for each. A first row, ``"none"``, is the clean run.
        true, target: The class each prompt has, and should get.
        counterfactual: Prompts that have the target, such as ``data.swap_order()``, or their
            activations at the same role and point.
        probe: Of this role and point, for ``belief``.
        covariance: Of this role and point, for ``length``.
        batch_size: Prompts run at once.

    Returns:
        One intervention a row: ``logit_diff`` and ``stderr`` (logits, of the clean answers),
        ``flipped`` and ``flipped_stderr`` (share of prompts that prefer S), ``norm`` (mean
        Euclidean length of the move), ``length`` (mean Mahalanobis length, infinite where it leaves
        the range of the covariance), ``belief`` (share of rows for which the probe says the
        target), ``kl_here`` (mean change of the prediction at the role itself, nats) and
        ``kl_after`` (at all tokens after it and before END, nats). Errors are over pairs.

    Raises:
        ValueError: Labels that do not fit, or what the parts raise.
    """
    if not len(true) == len(target) == len(data):
        raise ValueError(
            f"There are {len(data)} prompts, but {len(true)} true and {len(target)} target classes."
        )
    if counterfactual is not None and len(counterfactual) != len(data):
        raise ValueError(
            f"There are {len(data)} prompts, but {len(counterfactual)} counterfactuals; give one "
            "for each, in the same order."
        )
    x0 = activations_at(model, data, role, point, batch_size=batch_size)
    source: Tensor | None
    if isinstance(counterfactual, IOIDataset):
        # A counterfactual lines up token by token, but its roles may stand elsewhere.
        source = analysis.collect_activations(
            AtPoints(model),
            point,
            counterfactual.tokens.to(model.cfg.device),
            lambda tokens: model(tokens, return_type=None, logits_to_keep=1),
            positions=data.positions[role],
            batch_size=batch_size,
        ).to(x0)
    else:
        source = counterfactual
    device = to_float64(x0).device
    ruler = None if covariance is None else as_covariance(covariance, x0.shape[1], device)
    clusters = data.pair_ids if len(data.pair_ids.unique()) > 1 else None
    after = torch.arange(data.tokens.shape[1])
    here, end = data.positions[role].cpu()[:, None], data.positions["END"].cpu()[:, None]
    between = (after > here) & (after < end)

    made = {
        name: one(x0, true=true, target=target, counterfactual=source)
        for name, one in interventions.items()
    }
    runs: dict[str, list[Edit]] = {"none": []}
    runs.update({name: [edit(data, role, point, new)] for name, new in made.items()})
    measured = success_and_damage(model, data, runs, batch_size=min(batch_size, 32))

    rows = []
    for name, (diffs, kl) in measured.items():
        new = made.get(name, x0)
        estimate = metrics.mean_and_stderr(diffs, clusters)
        flipped = metrics.mean_and_stderr((diffs < 0).double(), clusters)
        move = to_float64(new).to(device) - to_float64(x0)
        row = {
            "intervention": name,
            "logit_diff": estimate.mean,
            "stderr": estimate.stderr,
            "flipped": flipped.mean,
            "flipped_stderr": flipped.stderr,
            "norm": move.norm(dim=-1).mean().item(),
        }
        if ruler is not None:
            row["length"] = ruler.length(move).mean().item()
        if probe is not None:
            said = probe.predict(new)
            row["belief"] = sum(a == b for a, b in zip(said, target, strict=True)) / len(said)
        row["kl_here"] = kl.cpu().gather(1, here).mean().item()
        row["kl_after"] = kl.cpu()[between].mean().item() if bool(between.any()) else 0.0
        rows.append(row)
    return pd.DataFrame(rows)
