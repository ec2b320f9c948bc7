"""Runs that several ablations share: the prompts' own, and the reference's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import forward
from ioi_helpers.ablation import fast
from ioi_helpers.ablation.replacements import Written, written_on
from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.runs import DEFAULT_MEMORY, progress_bar, refuse_too_long, require_data


@dataclass(frozen=True, eq=False)
class KeptRuns:
    """What :func:`keep_runs` kept.

    Attributes:
        model, data, reference: What was run.
        parts: The data's runs. None of a model that :mod:`ioi_helpers.forward` cannot run: its
            ablations go through hooks.
        written: What heads and MLPs write on the reference.
    """

    model: TransformerBridge
    data: TwoAnswerData
    reference: TwoAnswerData | None
    parts: list[fast.Part]
    written: list[Written]


def keep_runs(
    model: TransformerBridge,
    data: TwoAnswerData,
    reference: TwoAnswerData | None = None,
    *,
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> KeptRuns:
    """Run the prompts once, and the reference, for many ablations to start from.

    An ablation is compared with the run of the whole model, and takes what it puts in from runs of
    the reference. Each call of :func:`ablation_sweep`, :func:`ablation_effects` and :func:`ablate`
    makes those anew, which for a single head at END is nearly all of its work. With ``kept=`` it
    takes from here those of the same prompts and the same reference, and its numbers are the same::

        abc = data.abc()
        kept = keep_runs(model, data, abc)
        ablation_effects(model, data, ("L9H9", "END"), reference=abc, kept=kept)

    Of each token of the data some six vectors a layer are kept, and two of the reference: 1.2 GB of
    two hundred prompts at GPT-2 small's size.

    Args:
        model: Any decoder; of one that only hooks can run nothing is kept and nothing saved.
        data: The prompts that will be run.
        reference: Those that means are taken over, or that are resampled from.
        memory: Bytes that a later call may use beside; it says how many prompts it runs together.
        progress: Show a progress bar where there is something to wait for.

    Raises:
        ValueError: As for :func:`ablation_sweep`.
    """
    for prompts in (data, reference):
        if prompts is not None:
            require_data(model, prompts)
            refuse_too_long(model, prompts.tokens[:, : int(prompts.lengths.max())])
    gpt, _ = forward.usable_weights(model)
    if gpt is None:
        return KeptRuns(model, data, reference, [], [])
    made = fast.Parts(gpt, data, memory)
    parts = list(progress_bar("running the prompts", made, show=progress))
    written: list[Written] = []
    if reference is not None:
        wanted = [(site, layer) for site in fast.WRITTEN for layer in range(gpt.n_layers)]
        written = list(written_on(model, gpt, reference, wanted, memory))
    return KeptRuns(model, data, reference, parts, written)


def parts_for(
    kept: KeptRuns | None,
    gpt: forward.Decoder,
    model: TransformerBridge,
    data: TwoAnswerData,
    memory: int,
) -> fast.Parts | list[fast.Part]:
    """The unablated runs of some prompts: those that were kept, or to be made.

    Raises:
        ValueError: What was kept is of another model, or of this one before it was changed.
    """
    if kept is None or not kept.parts:
        return fast.Parts(gpt, data, memory)
    _require_model(kept, gpt, model)
    return kept.parts if _same_prompts(kept.data, data) else fast.Parts(gpt, data, memory)


def written_for(
    kept: KeptRuns | None,
    gpt: forward.Decoder | None,
    model: TransformerBridge,
    reference: TwoAnswerData | None,
) -> list[Written] | None:
    """What is written on a reference, if it was kept. None: it is to be run, or there is none.

    Raises:
        ValueError: As :func:`parts_for`.
    """
    if kept is None or not kept.parts or gpt is None or reference is None:
        return None
    _require_model(kept, gpt, model)
    there = kept.reference is not None and _same_prompts(kept.reference, reference)
    return kept.written if there else None


def _require_model(kept: KeptRuns, gpt: forward.Decoder, model: TransformerBridge) -> None:
    """Refuse another model, and one that has changed: one prompt is run again.

    Raises:
        ValueError: It is either.
    """
    base = kept.parts[0].base
    same = model is kept.model
    if same:
        again = forward.run(gpt, kept.parts[0].tokens[:1], base.last[:1], ()).final[0]
        same = bool((again - base.final[0]).abs().max() <= 1e-3 * again.std())
    if not same:
        raise ValueError(
            "The kept runs are of another model, or of this one before it was changed; make them "
            "anew by keep_runs."
        )


def _same_prompts(one: TwoAnswerData, other: TwoAnswerData) -> bool:
    if one is other:
        return True
    lengths = one.lengths.cpu()
    if not torch.equal(lengths, other.lengths.cpu()):
        return False
    width = int(lengths.max())
    unseen = torch.arange(width) >= lengths[:, None]

    def real(data: TwoAnswerData) -> Int[Tensor, "batch pos"]:
        return data.tokens[:, :width].cpu().masked_fill(unseen, -1)

    return torch.equal(real(one), real(other))
