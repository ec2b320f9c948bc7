"""The context manager: the model runs without some components as long as it lasts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import forward
from ioi_helpers.ablation.components import Spec, parse_components
from ioi_helpers.ablation.replacements import Replacement, replacements

if TYPE_CHECKING:
    from ioi_helpers.dataset import IOIDataset

TOKENS = "embed.hook_in"
"""The hook that sees which tokens the model is run on."""


@contextmanager
def ablate(
    model: TransformerBridge,
    heads: Spec | Iterable[Spec],
    how: Literal["mean", "zero", "resample"] | str = "mean",
    *,
    reference: IOIDataset | None = None,
    data: IOIDataset | None = None,
) -> Iterator[TransformerBridge]:
    """Run the model without some heads or MLPs: `with ablate(model, heads, reference=...): ...`.

    Everything that is run inside, also by other helpers, runs on the ablated model: its logits, its
    caches, its attributions. Afterwards, and also after an error inside, the model is as before.
    Zero ablation of one head at END, in plain TransformerLens, for prompts of one length::

        def silence(z, hook):                                  # z: [batch pos head d_head]
            z[:, -1, 9] = 0
            return z

        with model.hooks(fwd_hooks=[("blocks.9.attn.hook_z", silence)]):
            logits = model(data.tokens)

    Where the positions or the values depend on the prompt, each run looks up its prompts in the
    data: run whole prompts of the dataset, in any order and number, as they are in `data.tokens`.
    Contexts can be nested. The values are those of the model without any ablation.

    Args:
        model: A model that TransformerBridge boots.
        heads: A set of components: ``"L9H9"`` or ``"MLP0"`` is ablated at every position,
            ``("L9H9", "END")`` at that role's position.
        how: ``"mean"``, ``"zero"`` or ``"resample"``; see :mod:`ioi_helpers.ablation`, and
            :func:`~ioi_helpers.ablation.replacements` for which prompts and positions a mean is
            over.
        reference: The prompts that means are taken over, or that are resampled from (row by row),
            such as ``data.abc()``.
        data: The prompts that will be run. None: those that the reference is a counterfactual of.
            Needed for zero ablation at a role.

    Yields:
        The model.

    Raises:
        ValueError: No component, an unknown one or an unknown role; a reference that is missing or
            does not fit; a role that a prompt lacks; and, inside, a run on other prompts.
    """
    components = parse_components(model, heads)
    gpt = None if how == "zero" else _weights(model)  # nothing is to be read for zeros
    values = replacements(model, components, how, reference, data, gpt=gpt)
    if data is None and reference is not None:
        data = reference.clean
    with model.hooks(fwd_hooks=_hooks(model, values, data)):
        yield model


def _weights(model: TransformerBridge) -> forward.GPT2 | None:
    """The model's weights, if `forward` can run it."""
    try:
        return forward.read_weights(model)
    except forward.UnsupportedModel:
        return None


def _hooks(
    model: TransformerBridge, values: Sequence[Replacement], data: IOIDataset | None
) -> list[tuple[str, Any]]:
    by_hook: dict[str, list[Replacement]] = {}
    for value in values:
        by_hook.setdefault(value.component.hook, []).append(value)
    missing = [name for name in by_hook if name not in model.hook_dict]
    rows: dict[str, Int[Tensor, " batch"]] = {}
    per_prompt = any(value.at is not None for value in values)
    if per_prompt and TOKENS not in model.hook_dict:
        missing.append(TOKENS)
    if missing:
        raise ValueError(
            f"This model has no {missing[0]}, so it cannot be ablated there; see model.hook_dict."
        )

    def look_up(tokens: Int[Tensor, "batch pos"], hook: Any) -> None:
        assert data is not None
        rows["now"] = find_prompts(data, tokens)

    def replace_at(name: str) -> Any:
        def hook_fn(activation: Float[Tensor, "batch pos *rest"], hook: Any) -> Tensor:
            activation = activation.clone()
            for value in by_hook[name]:
                chosen = value if value.at is None else value.rows(rows["now"].to(value.at.device))
                chosen.apply(activation)
            return activation

        return hook_fn

    hooks: list[tuple[str, Any]] = [(TOKENS, look_up)] if per_prompt else []
    return hooks + [(name, replace_at(name)) for name in by_hook]


def find_prompts(data: IOIDataset, tokens: Int[Tensor, "batch pos"]) -> Int[Tensor, " batch"]:
    """Which rows of the data a run's tokens are; the run may be cut off before the end.

    Raises:
        ValueError: A prompt of the run is not in the data.
    """
    known, given = data.tokens.cpu(), tokens.cpu()
    lengths = data.lengths.cpu()
    width = min(known.shape[1], given.shape[1])
    relevant = torch.arange(width) < lengths[:, None]
    # Nearly always a run is some rows in order, which tells equal prompts apart, too.
    same_as_first = ((known[:, :width] == given[0, :width]) | ~relevant).all(dim=1)
    for start in same_as_first.nonzero()[:, 0].tolist():
        rows = torch.arange(start, min(start + len(given), len(known)))
        if len(rows) == len(given):
            match = (known[rows, :width] == given[:, :width]) | ~relevant[rows]
            if bool(match.all()):
                return rows
    places: dict[tuple[int, ...], int] = {}
    sizes = lengths.clamp(max=width)
    for row in range(len(known) - 1, -1, -1):
        places[tuple(known[row, : int(sizes[row])].tolist())] = row
    found = []
    for row, prompt in enumerate(given[:, :width].tolist()):
        candidates = (tuple(prompt[:size]) for size in sizes.unique().flip(0).tolist())
        place = next((places[key] for key in candidates if key in places), None)
        if place is None:
            raise ValueError(
                f"Prompt {row} of this run is not in the data that the ablation was made for; run "
                "prompts of that dataset, or give the dataset that you run as data=."
            )
        found.append(place)
    return torch.tensor(found)
