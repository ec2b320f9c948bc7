"""Ablation: take heads or MLPs away and see what the rest of the model does about it.

To ablate a component is to replace what it writes by something that knows nothing of the prompt at
hand. What to replace it by is a choice, and the result depends on it:

``"zero"``
    Nothing at all. Simple, but the model may never have met it; and what counts as nothing depends
    on whether the value biases are folded into ``b_O`` (compatibility mode folds them).
``"mean"``
    What the component writes on average over a reference distribution. The IOI paper (section 2.1)
    takes prompts with three different names, ``data.abc()``, and the mean *of the same template*.
``"resample"``
    What it writes on another prompt, row by row. Its outputs are natural ones, so nothing later is
    thrown off by a vector that it never sees; but each prompt gets the noise of its partner.

Three ways in:

* :func:`ablate`, a context manager: the model runs without the components as long as it lasts.
* :func:`ablation_sweep`: many ablations, one at a time, and the logit difference of each; exact,
  and fast on those of `forward.FAMILIES`, where only what can have changed is computed again.
* :func:`ablation_effects`: the change of the logit difference, split without a rest into the direct
  effect, what later heads and MLPs do about it, and the final LayerNorm's share.

:func:`keep_runs` runs the prompts and the reference once for many calls of these.

Components are nodes of :mod:`ioi_helpers.graph`, written ``"L9H9"`` or ``(9, 9)`` (a head),
``"MLP0"``, or ``("L9H9", "END")`` where one is ablated at one role's position only; a circuit is
its nodes.
"""

from __future__ import annotations

from ioi_helpers.ablation.context import ablate
from ioi_helpers.ablation.effects import AblationEffects, ablation_effects
from ioi_helpers.ablation.kept import KeptRuns, keep_runs
from ioi_helpers.ablation.replacements import METHODS, Replacement, replacements
from ioi_helpers.ablation.sweep import ablation_sweep

__all__ = [
    "METHODS",
    "AblationEffects",
    "KeptRuns",
    "Replacement",
    "ablate",
    "ablation_effects",
    "ablation_sweep",
    "keep_runs",
    "replacements",
]
