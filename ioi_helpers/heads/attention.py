"""Where heads look on IOI prompts, by role."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.runs import DEFAULT_MEMORY, attention_of_pairs


def attention_by_role(
    model: TransformerBridge,
    data: TwoAnswerData,
    query: str = "END",
    keys: Sequence[str] = ("IO", "S1", "S2"),
    *,
    per_prompt: bool = False,
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> Float[Tensor, "layer head key *batch"]:
    """How much each head attends from one role's position to others'.

    The same for a single prompt, in plain TransformerLens::

        _, cache = model.run_with_cache(data.tokens[i])
        cache["pattern", layer][0, head, data.positions[query][i], data.positions[key][i]]

    Args:
        model: Any decoder that computes attention patterns.
        data: Prompts; they may differ in length.
        query: The role of the position that attends.
        keys: The roles of the positions attended to.
        per_prompt: Keep one value a prompt instead of the mean.
        memory, progress: As for :func:`~ioi_helpers.runs.run_in_batches`.

    Returns:
        ``[layer head key]``, the mean over prompts, or ``[layer head key batch]``; each a share of
        one head's attention, from 0 to 1. A key after the query gets exactly 0.

    Raises:
        ValueError: A role is unknown, ``keys`` is one text instead of several or empty, or as
            :func:`~ioi_helpers.runs.activations_at`.
    """
    if isinstance(keys, str) or not keys:
        raise ValueError(f'keys must list one or more roles, such as ("IO", "S1"), not {keys!r}.')
    pairs = [(query, key) for key in keys]
    values = attention_of_pairs(model, data, pairs, memory=memory, progress=progress)
    return values if per_prompt else values.mean(dim=-1)
