"""Distributed alignment search: a subspace learned to carry the order, as another rival of LRQP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools import analysis

from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.dataset.two_answers import orders_of
from ioi_helpers.edits import AtPoints
from ioi_helpers.lrqp.baselines import InterchangeActivation
from ioi_helpers.lrqp.intervention import Intervention, Rows
from ioi_helpers.runs import logits_at_positions, parse_point, require_data, role_positions


@dataclass(frozen=True)
class DAS(Intervention):
    """Interchange within a subspace that was learned to carry the variable (:func:`fit_das`).

    Attributes:
        basis: ``[d_model rank]``, orthonormal.
        losses: Mean training loss of each epoch, in nats.
        point: Where it was learned.
    """

    basis: Float[Tensor, "d_model rank"]
    losses: tuple[float, ...]
    point: str

    def moved(self, rows: Rows) -> Float[Tensor, "batch d_model"]:
        return InterchangeActivation(self.basis).moved(rows)


def fit_das(
    model: TransformerBridge,
    data: TwoAnswerData,
    role: str,
    point: str,
    *,
    source: TwoAnswerData | None = None,
    labels: Sequence[Any] | None = None,
    source_labels: Sequence[Any] | None = None,
    rank: int = 1,
    epochs: int = 4,
    batch_size: int = 64,
    lr: float = 2e-2,
    seed: int = 0,
) -> DAS:
    """Learn the subspace at a role that carries the order (or another variable of two classes).

    Distributed alignment search, TransformerLens' ``fit_das`` (Geiger et al. 2023): the basis is
    trained so that interchanging it makes the model answer as the order of the *other* prompt says,
    IO if the orders agree and S if they differ. Unlike a probe it is trained on the model's
    behaviour, and it can find directions that do the job without the model using them on its own
    (see ``arbitrary_targets`` for the control).

    Args:
        model: The model; its parameters are left as they were.
        data: Training prompts.
        role, point: Where.
        source: As many other prompts to take activations from. By default the same ones in another
            order, so that names and templates differ as well and only the order can be learned.
        labels, source_labels: The variable's class in each prompt, where it is not the order; the
            latter for ``source``, if that is given.
        rank: Dimensions of the subspace.
        epochs, batch_size, lr, seed: Of the training.

    Raises:
        ValueError: Prompts of one order or class only, another number of source prompts or labels,
            an unknown role or point, a model in training mode.
    """
    parse_point(point)
    require_data(model, data)
    classes = orders_of(data) if labels is None else list(labels)
    if source is None:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(data), generator=generator)
        source, source_labels = data[order], [classes[i] for i in order.tolist()]
    elif labels is None:
        source_labels = orders_of(source)
    if len(classes) != len(data) or source_labels is None or len(source_labels) != len(source):
        raise ValueError(
            "Give one of the labels for each prompt, and of source_labels for each source."
        )
    if len(source) != len(data):
        raise ValueError(
            f"There are {len(data)} prompts but {len(source)} sources; give one for each."
        )
    if len(set(classes) | set(source_labels)) < 2:
        raise ValueError(
            f"All prompts are {classes[0]}; only prompts of both orders (or classes) can teach "
            "which direction carries them."
        )
    at, source_at = role_positions(data, role).cpu(), role_positions(source, role).cpu()
    targets = [int(a != b) for a, b in zip(classes, source_labels, strict=True)]
    result = analysis.fit_das(
        AtPoints(model), point, _with_answers(data), _with_answers(source), torch.tensor(targets),
        lambda packed: _answer_logits(model, packed),
        rank=rank, base_positions=at, source_positions=source_at,
        epochs=epochs, batch_size=batch_size, lr=lr, seed=seed,
    )  # fmt: skip
    return DAS(result.basis, result.losses, point)


def _with_answers(data: TwoAnswerData) -> Tensor:
    """Tokens with three more columns, END and the answers: TransformerLens shuffles rows."""
    extra = torch.stack([data.positions["END"], data.io_tokens, data.s_tokens], dim=1)
    return torch.cat([data.tokens, extra], dim=1).cpu()


def _answer_logits(model: TransformerBridge, packed: Tensor) -> Float[Tensor, "batch 2"]:
    logits = logits_at_positions(model, packed[:, :-3], packed[:, -3])
    return logits.gather(1, packed[:, -2:].to(logits.device))
