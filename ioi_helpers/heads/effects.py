"""Causal evidence about heads that the head table needs, one intervention a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.ablation import ablate, ablation_effects
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.heads.repeats import RepeatScores, repeat_scores
from ioi_helpers.metrics import Estimate, standard_error
from ioi_helpers.names import HeadLike, existing_head, parse_head
from ioi_helpers.runs import DEFAULT_MEMORY


def backup_rise(
    model: TransformerBridge,
    data: IOIDataset,
    ablated: HeadLike,
    *,
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> Float[Tensor, "layer head batch"]:
    """How each head's direct attribution changes when one head is taken out at END.

    The head's output at END is taken from the prompt with three different names (``data.abc()``).
    The final norm's scale is frozen at its value in the untouched run, so that what changes is what
    heads write and not the yardstick. :func:`~ioi_helpers.ablation.ablation_effects` has the rest
    of the story; as there, hooks on the model stay on, but what is put in is the output of the
    model without them. Source: Wang et al. 2022, section 3.4.

    Args:
        model: A decoder whose logits are a sum of terms (:func:`~ioi_helpers.attribution.readout`).
        data: Prompts; they may differ in length.
        ablated: The head that is taken out, such as ``"L9H9"``.
        memory, progress: As for :func:`~ioi_helpers.ablation.ablation_effects`.

    Returns:
        Attribution after minus before, in logits, for each prompt. Heads of the same layer and
        earlier ones cannot change; the entry of the ablated head is its own loss.

    Raises:
        ValueError: The model has no such head.
    """
    place = existing_head(model, ablated)
    effects = ablation_effects(
        model,
        data,
        (ablated, "END"),
        "resample",
        reference=data.abc(),
        memory=memory,
        progress=progress,
    )
    rise = effects.heads.clone()
    rise[place] = effects.direct
    return rise


def ablated_on_repeats(
    model: TransformerBridge,
    heads: Sequence[str],
    clean: RepeatScores,
    **settings: Any,
) -> dict[str, dict[str, Estimate]]:
    """What zero-ablating each of some heads everywhere does on repeated tokens.

    Args:
        model: Any decoder.
        heads: One after another is ablated (``z`` set to zero).
        clean: The scores with nothing ablated.
        settings: Of :func:`~ioi_helpers.heads.repeat_scores`, the same as for ``clean``.

    Returns:
        For each head the change of ``"repeat loss"``, on the repeated tokens, in nats; and that of
        ``"best induction"``, the best induction score of any other head. Errors are over
        sequences, NaN for a single one.
    """
    found = {}
    for name in heads:
        with ablate(model, name, "zero"):
            after = repeat_scores(model, **settings)
        best = [_best_other(scores, name) for scores in (after, clean)]
        found[name] = {
            "repeat loss": _over_sequences(after.losses - clean.losses),
            "best induction": _over_sequences(best[0] - best[1]),
        }
    return found


def _best_other(scores: RepeatScores, name: str) -> Float[Tensor, " row"]:
    """The induction score, by sequence, of the head other than this one that has the highest."""
    means = scores.induction.clone()
    means[parse_head(name)] = -1.0
    return scores.per_sequence["induction"].flatten(0, 1)[int(means.argmax())]


def _over_sequences(values: Float[Tensor, " row"]) -> Estimate:
    return Estimate(float(values.double().mean()), float(standard_error(values)), len(values))
