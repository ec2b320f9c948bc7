"""Attention heads: their names, what they do, and what is known about them.

A head is written ``L9H9`` (layer 9, head 9). Which heads play which part in the IOI circuit is
recorded once for each model, in its registry: for the bundled models in the ``registry.json``
beside their weights, each entry with the intervention that established it, and for GPT-2 small the
26 heads of Wang et al. 2022 (section 3, appendix C), in the same format. Notebooks look heads up
there instead of writing their indices down. A *role* is a token's (IO, S2, END); a head has a *head
class* (name mover, induction head).

In reading order: `known` (the registries), `attention` (where heads look on IOI prompts),
`repeats` (what they do on repeated random tokens), `weights` (what their weights say), `effects`
(what happens without them), `rules` (what makes a head class of all that) and `table`, which puts
it together.
"""

from __future__ import annotations

from ioi_helpers.heads.attention import attention_by_role
from ioi_helpers.heads.effects import ablated_on_repeats, backup_rise
from ioi_helpers.heads.known import (
    HEAD_CLASSES,
    KnownHead,
    Registry,
    circuit,
    heads_of_class,
    registry,
)
from ioi_helpers.heads.repeats import PATTERNS, RepeatScores, random_tokens, repeat_scores
from ioi_helpers.heads.rules import CLASS_RULES, EVERY_RULE, registry_of
from ioi_helpers.heads.table import COLUMNS, head_table
from ioi_helpers.heads.weights import (
    both_copying_scores,
    composition_chance,
    composition_scores,
    copying_scores,
    positional_patterns,
    score_scales,
)
from ioi_helpers.names import head_labels, parse_head

__all__ = [
    "CLASS_RULES",
    "COLUMNS",
    "EVERY_RULE",
    "HEAD_CLASSES",
    "PATTERNS",
    "KnownHead",
    "Registry",
    "RepeatScores",
    "attention_by_role",
    "backup_rise",
    "both_copying_scores",
    "circuit",
    "composition_chance",
    "composition_scores",
    "copying_scores",
    "head_labels",
    "head_table",
    "heads_of_class",
    "parse_head",
    "positional_patterns",
    "random_tokens",
    "registry",
    "registry_of",
    "repeat_scores",
    "score_scales",
    "ablated_on_repeats",
]
