"""The context manager: the model runs without some components as long as it lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import forward
from ioi_helpers.ablation.components import hook_of, require_components, shows_at
from ioi_helpers.ablation.kept import KeptRuns, written_for
from ioi_helpers.ablation.replacements import Replacement, replacements
from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.dataset.two_answers import clean_of, text_of
from ioi_helpers.edits import hooks_off, require_reach
from ioi_helpers.graph import Node, NodeLike
from ioi_helpers.runs import EditHooks, Hook

TOKENS = "embed.hook_in"
"""The hook that sees which tokens the model is run on."""


@contextmanager
def ablate(
    model: TransformerBridge,
    components: NodeLike | Iterable[NodeLike],
    how: Literal["mean", "zero", "resample"] | str = "mean",
    *,
    reference: TwoAnswerData | None = None,
    data: TwoAnswerData | None = None,
    kept: KeptRuns | None = None,
) -> Iterator[TransformerBridge]:
    """Run the model without some heads or MLPs: `with ablate(model, heads, reference=abc): ...`.

    Everything that is run inside, also by other helpers, runs on the ablated model: its logits, its
    caches, its attributions. Afterwards, and also after an error inside, the model is as before.
    Zero ablation of one head at END, in plain TransformerLens, for prompts of one length::

        def remove(z, hook):                                   # z: [batch pos head d_head]
            z[:, -1, 9] = 0
            return z

        with model.hooks(fwd_hooks=[("blocks.9.attn.hook_z", remove)]):
            logits = model(data.tokens)

    Where the positions or the values depend on the prompt, each run looks up its prompts in the
    data: run whole prompts of the dataset, in any order and number, as they are in `data.tokens`.
    Contexts can be nested. The values are those of the model without any of TransformerLens' hooks,
    so without the other ablations.

    Args:
        model: A model that TransformerBridge boots.
        components: One or several: ``"L9H9"`` or ``"MLP0"`` is ablated at every position,
            ``("L9H9", "END")`` at that role's position. A :class:`~ioi_helpers.graph.Circuit` is
            its nodes, each at its role.
        how: ``"mean"``, ``"zero"`` or ``"resample"``; see :mod:`ioi_helpers.ablation`, and
            :func:`~ioi_helpers.ablation.replacements` for which prompts and positions a mean is
            over.
        reference: The prompts that means are taken over, or that are resampled from (row by row),
            such as ``data.abc()``.
        data: The prompts that will be run. None: those that the reference is a counterfactual of.
            Needed for zero ablation at a role.
        kept: What :func:`~ioi_helpers.ablation.keep_runs` kept; what is not among it is run here.

    Yields:
        The model.

    Raises:
        ValueError: No component, an unknown one or an unknown role; a reference that is missing or
            does not fit; kept runs of another model; a role that a prompt lacks; and, inside, a
            run on other prompts.
    """
    nodes = require_components(model, components)
    with hooks_off(model):
        gpt, _ = forward.usable_weights(model)
    written = written_for(kept, gpt, model, reference)
    values = replacements(model, nodes, how, reference, data, gpt=gpt, written=written)
    if gpt is None:
        require_arrival(model, nodes)
    if data is None and reference is not None:
        data = clean_of(reference)
    with model.hooks(fwd_hooks=_look_up_hooks(model, values, data)):
        yield model


def require_arrival(model: TransformerBridge, nodes: Iterable[Node]) -> None:
    """Refuse components of a model whose hooks are missing, or do not reach its run.

    Raises:
        ValueError: There is one.
    """
    for hook, shows in dict.fromkeys((hook_of(node), shows_at(node)) for node in nodes):
        if hook not in model.hook_dict:
            raise ValueError(
                f"This model has no {hook}, so it cannot be ablated there; see model.hook_dict."
            )
        require_reach(model, hook, shows)


@dataclass(frozen=True)
class Ablation:
    """Replacements as an edit (see :mod:`ioi_helpers.edits`), for runs whose rows are known.

    Attributes:
        values: What stands in for each component, on all the prompts.
    """

    values: tuple[Replacement, ...]

    def take(self, rows: Int[Tensor, " rows"]) -> Ablation:
        """The edit for some of the prompts only."""
        return Ablation(tuple(value.rows(rows) for value in self.values))

    def hooks(self, model: TransformerBridge) -> EditHooks:
        """The hooks that put the values in."""
        return EditHooks([*_hooks(self.values, lambda value: value)], [])


def _hooks(
    values: Sequence[Replacement], chosen: Callable[[Replacement], Replacement]
) -> Iterator[Hook]:
    """Hooks that put values in.

    Args:
        chosen: From a replacement on all prompts to that on those of the run at hand.
    """
    by_hook: dict[str, list[Replacement]] = {}
    for value in values:
        by_hook.setdefault(hook_of(value.component), []).append(value)

    def replace(
        activation: Float[Tensor, "batch pos *rest"], hook: Any, these: Sequence[Replacement]
    ) -> Tensor:
        activation = activation.clone()
        for value in these:
            chosen(value).apply(activation)
        return activation

    for name, these in by_hook.items():
        yield name, partial(replace, these=these)


def _look_up_hooks(
    model: TransformerBridge, values: Sequence[Replacement], data: TwoAnswerData | None
) -> list[Hook]:
    """The same for runs over whatever prompts of the data, which are looked up in it."""
    rows: dict[str, Int[Tensor, " batch"]] = {}

    def of_this_run(value: Replacement) -> Replacement:
        return value if value.at is None else value.rows(rows["now"])

    hooks = list(_hooks(values, of_this_run))
    if all(value.at is None for value in values):
        return hooks
    if TOKENS not in model.hook_dict:
        raise ValueError(
            f"This model has no {TOKENS}, so its prompts cannot be looked up; see model.hook_dict."
        )

    def look_up(tokens: Int[Tensor, "batch pos"], hook: Any) -> None:
        assert data is not None
        readings = find_prompts(data, tokens)
        _refuse_ambiguous(data, values, readings, tokens.shape[1])
        rows["now"] = torch.tensor([candidates[0] for candidates in readings])

    return [(TOKENS, look_up), *hooks]


def _refuse_ambiguous(
    data: TwoAnswerData,
    values: Sequence[Replacement],
    readings: Sequence[Sequence[int]],
    width: int,
) -> None:
    """Refuse a run of equal prompts that get other values, where the run does not tell which."""
    pairs = [(first, other) for first, *others in readings for other in others]
    for value in values if pairs else ():
        if value.at is not None and value.index is not None:
            shown = (value.at >= 0) & (value.at < width)
            at, new = value.at.where(shown, -1), value.table[value.index] * shown[..., None]
            for first, other in pairs:
                if not (torch.equal(at[first], at[other]) and torch.equal(new[first], new[other])):
                    raise ValueError(
                        f"The prompts {first} and {other} begin alike as far as they are run "
                        f"({text_of(data, first)!r}), and {value.component} gets another value in "
                        "each; run all prompts in order, or use ablation_sweep, which knows the "
                        "rows."
                    )


def find_prompts(data: TwoAnswerData, tokens: Int[Tensor, "batch pos"]) -> list[list[int]]:
    """Which rows of the data each prompt of a run can be; the run may be cut off before the end.

    Nearly always a run is some rows in order, or in the order of their lengths, in which batches
    are made (:func:`ioi_helpers.runs.in_parts`), so it is read so wherever that is possible. That
    tells equal prompts apart, too, but for parts of the data that stand in it more than once.

    Raises:
        ValueError: A prompt of the run is not in the data.
    """
    known, given = data.tokens.cpu(), tokens.cpu()
    lengths = data.lengths.cpu()
    width = min(known.shape[1], given.shape[1])
    given = given[:, :width]
    unseen = torch.arange(width) >= lengths[:, None]
    for order in (torch.arange(len(known)), lengths.argsort(stable=True)):
        ordered, padding = known[order, :width], unseen[order]
        starts = ((ordered == given[0]) | padding).all(dim=1).nonzero()[:, 0].tolist()
        found = [
            order[start : start + len(given)]
            for start in starts
            if start + len(given) <= len(known)
            and bool(
                ((ordered[start:][: len(given)] == given) | padding[start:][: len(given)]).all()
            )
        ]
        if found:
            return torch.stack(found, dim=1).tolist()
    equal = torch.stack([((known[:, :width] == prompt) | unseen).all(dim=1) for prompt in given])
    missing = ~equal.any(dim=1)
    if bool(missing.any()):
        raise ValueError(
            f"Prompt {int(missing.int().argmax())} of this run is not in the data that the "
            "ablation was made for; run prompts of that dataset, or give the dataset that you run "
            "as data=."
        )
    # A prompt that only begins as another is that other one where the run goes on.
    sizes = lengths.clamp(max=width)
    longest = equal & (sizes == (sizes * equal).amax(dim=1, keepdim=True))
    return [row.nonzero()[:, 0].tolist() for row in longest]
