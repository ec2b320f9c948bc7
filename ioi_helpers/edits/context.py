"""The model with edits on it, as long as a context lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.runs import Edit, hooks_of, require_model


@contextmanager
def edited(model: TransformerBridge, *edits: Edit) -> Iterator[TransformerBridge]:
    """The model with edits on it; they come off at the end of the block, also after an error.

    ::

        solution = lrqp.intervene(x0, probe, target, covariance)
        with edited(model, residual_edit(data, "S2", "L6.mid", solution.x)):
            logits = model(data.tokens)

    The runs inside must be over the prompts that the edits were made for, all of them at once. For
    many prompts give the edits as ``edits=`` to what reads the run (:func:`ioi_helpers.runs`'
    functions), which runs them in parts. Several edits take effect in the order of the model's
    layers.

    Raises:
        ValueError: The model is in training mode, or an edit does not fit it; and, inside, a run
            over another number of prompts.
        RuntimeError: Inside, an edit that does not arrive.
    """
    require_model(model)
    with model.hooks(fwd_hooks=hooks_of(model, edits)):
        yield model
