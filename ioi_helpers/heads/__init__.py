"""Attention heads: their names, what they do, and what is known about them.

A head is written ``L9H9`` (layer 9, head 9). Which heads play which part in the IOI circuit is
recorded once for each model, in its registry of roles: for the bundled models in the
``roles.json`` beside their weights, each entry with the intervention that established it, and for
GPT-2 small the 26 heads of Wang et al. 2022 (section 3, appendix C), in the same format. Notebooks
look heads up there instead of writing their indices down.

In reading order: `registry` (names and roles), `attention` (where heads look on IOI prompts),
`repeats` (what they do on repeated random tokens), `weights` (what their weights say), `effects`
(what happens without them) and `table`, which puts it all together.
"""

from __future__ import annotations

from ioi_helpers.heads.attention import attention_by_role
from ioi_helpers.heads.effects import backup_rise, silenced_on_repeats
from ioi_helpers.heads.registry import (
    CLASSES,
    HeadRole,
    heads_with_role,
    roles,
)
from ioi_helpers.heads.repeats import PATTERNS, RepeatScores, random_tokens, repeat_scores
from ioi_helpers.heads.table import COLUMNS, ROLE_RULES, head_table
from ioi_helpers.heads.weights import (
    composition_chance,
    composition_scores,
    copying_scores,
    positional_patterns,
)
from ioi_helpers.names import head_labels, parse_head

__all__ = [
    "CLASSES",
    "COLUMNS",
    "PATTERNS",
    "ROLE_RULES",
    "HeadRole",
    "RepeatScores",
    "attention_by_role",
    "backup_rise",
    "composition_chance",
    "composition_scores",
    "copying_scores",
    "head_labels",
    "head_table",
    "heads_with_role",
    "parse_head",
    "positional_patterns",
    "random_tokens",
    "repeat_scores",
    "roles",
    "silenced_on_repeats",
]
