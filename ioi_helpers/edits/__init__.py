"""Put values into a run and see what follows: the residual stream, attention, a head's output.

An *edit* belongs to certain prompts and holds, for each, where it acts (a role's position) and what
it puts there, so prompts may differ in length. ``residual_edit``, ``attention_edit`` and
``head_edit`` make one; :func:`edited` puts some on a model and always takes them off again, and
every function of :mod:`ioi_helpers.runs` takes them as ``edits=``. In the run, each checks that
what it wrote is what the next layer reads: an edit that does not arrive is an error.
"""

from __future__ import annotations

from ioi_helpers.edits.arrival import (
    edit_reaches_run,
    hooks_off,
    pattern_reaches_run,
    require_reach,
)
from ioi_helpers.edits.attention import AttentionEdit, attend, attention_edit
from ioi_helpers.edits.context import edited
from ioi_helpers.edits.effects import (
    EditEffect,
    logit_diffs_and_kl,
    logit_diffs_of_edits,
    next_token_kl,
)
from ioi_helpers.edits.outputs import HeadEdit, head_edit
from ioi_helpers.edits.stream import AtPoints, ResidualEdit, residual_edit, residual_hooks

__all__ = [
    "AtPoints",
    "AttentionEdit",
    "EditEffect",
    "HeadEdit",
    "ResidualEdit",
    "attend",
    "attention_edit",
    "edit_reaches_run",
    "edited",
    "head_edit",
    "hooks_off",
    "logit_diffs_and_kl",
    "logit_diffs_of_edits",
    "next_token_kl",
    "pattern_reaches_run",
    "require_reach",
    "residual_edit",
    "residual_hooks",
]
