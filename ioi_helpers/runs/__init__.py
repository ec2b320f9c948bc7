"""Run a model over a dataset: what every helper that runs one shares.

Here the arguments are checked once for the whole package (a model in evaluation mode, a dataset
made with its tokenizer, prompts that fit into its context), the prompts are cut into batches by
``memory=`` (bytes), with a bar if it takes long (``progress=``), and values are read where a role
stands in each prompt: activations, logits, logit differences, attention.

Hooks that are on the model stay on and take effect. ``edits=`` are put on for the run: see
:mod:`ioi_helpers.edits`.
"""

from __future__ import annotations

from ioi_helpers.runs.attention import attention_of_pairs, attention_patterns, hooks_on_pairs
from ioi_helpers.runs.batches import (
    DEFAULT_MEMORY,
    MOST_TOKENS,
    Edit,
    EditHooks,
    Hook,
    hooks_of,
    in_order,
    in_parts,
    progress_bar,
    prompts_at_once,
    require_edits_for,
    run_in_batches,
    run_rows_in_batches,
    without_progress_bars,
)
from ioi_helpers.runs.files import load_activations, save_activations
from ioi_helpers.runs.guards import (
    known_hooks,
    landmarks,
    misalignment,
    refuse_misaligned,
    refuse_too_long,
    require_alike,
    require_as_many,
    require_data,
    require_dataset,
    require_model,
    role_positions,
    roles_to_use,
)
from ioi_helpers.runs.inputs import separate_inputs
from ioi_helpers.runs.points import parse_point, point_hook, residual_points
from ioi_helpers.runs.reading import (
    activations_at,
    activations_at_roles,
    gather_activations,
    logit_diffs,
    logits_at,
    logits_at_positions,
    widened,
)
from ioi_helpers.runs.writes import (
    POST_NORM_SCALE,
    attention_weight,
    has_post_norm,
    residual_scale,
)

__all__ = [
    "DEFAULT_MEMORY",
    "MOST_TOKENS",
    "POST_NORM_SCALE",
    "Edit",
    "EditHooks",
    "Hook",
    "activations_at",
    "activations_at_roles",
    "attention_of_pairs",
    "attention_patterns",
    "attention_weight",
    "gather_activations",
    "has_post_norm",
    "hooks_of",
    "hooks_on_pairs",
    "in_order",
    "in_parts",
    "known_hooks",
    "landmarks",
    "load_activations",
    "logit_diffs",
    "logits_at",
    "logits_at_positions",
    "misalignment",
    "parse_point",
    "point_hook",
    "progress_bar",
    "prompts_at_once",
    "require_edits_for",
    "refuse_misaligned",
    "refuse_too_long",
    "require_alike",
    "require_as_many",
    "require_data",
    "require_dataset",
    "require_model",
    "residual_points",
    "residual_scale",
    "role_positions",
    "roles_to_use",
    "run_in_batches",
    "run_rows_in_batches",
    "save_activations",
    "separate_inputs",
    "widened",
    "without_progress_bars",
]
