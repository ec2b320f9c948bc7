"""Activation patching, exactly and many patches at once; and its linear approximation.

Take two runs of a model, *clean* and *corrupted*. Replace one activation of the one by that of the
other, run on, and see how far the answer moves (Meng et al. 2022, "Locating and editing factual
associations in GPT"; Heimersheim and Nanda 2024, "How to use and interpret activation patching").
:func:`patch_sweep` does it for every layer and every position, role or head.

The result is that of ``transformer_lens.patching``, which runs the whole model once a patch. On
models that :mod:`ioi_helpers.forward` knows only what a patch can have changed is computed again,
for many patches together. Other models are run as a whole, with hooks.

How it is built: what is asked (``request``) of which two runs (``pair``), how a run is scored
(``score``), the two ways of running (``fast``, ``hooks``) that ``sweep`` chooses from, estimates
from a gradient (``gradient``), and the ``result``, which other rooms' sweeps return as well.
"""

from ioi_helpers.patching.gradient import attribution_patch_sweep
from ioi_helpers.patching.pair import NoisyEmbedding
from ioi_helpers.patching.request import AXES, HEAD_SITES, SITES, STREAM_SITES
from ioi_helpers.patching.result import SweepResult, cell_label, sweep_result
from ioi_helpers.patching.sweep import patch_sweep

__all__ = [
    "AXES",
    "HEAD_SITES",
    "SITES",
    "STREAM_SITES",
    "NoisyEmbedding",
    "SweepResult",
    "attribution_patch_sweep",
    "cell_label",
    "patch_sweep",
    "sweep_result",
]
