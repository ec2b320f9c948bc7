"""Load a model for IOI: GPT-2 small, one of the bundled ones, or any decoder TransformerLens boots.

:func:`load_model` returns TransformerLens' ``TransformerBridge`` in compatibility mode (LayerNorm
folded, weights centred), in eval mode, with frozen parameters, compared once with the checkpoint's
own code. A model asked for by name is never replaced by another: where it cannot be had,
:class:`ModelUnavailable` says what to do.

In reading order: `sources` (where weights come from), `original` (the comparison), `loading`; and
`handbuilt`, a transformer whose circuit is known because it was built.
"""

from __future__ import annotations

from ioi_helpers.models.loading import (
    default_model,
    is_gpt2_small,
    load_model,
    print_versions,
)
from ioi_helpers.models.sources import ModelUnavailable

__all__ = [
    "ModelUnavailable",
    "default_model",
    "is_gpt2_small",
    "load_model",
    "print_versions",
]
