"""The rules by which measurements give a head its head class: one set, for tables and registries.

A rule asks for two things of a head: that it looks where heads of this head class look (attention
on IOI prompts, or a score on repeated tokens), and that an intervention on it has an effect: large
enough, and three standard errors from zero. The thresholds are conventions: look at the numbers of
a head that is near one.

Source of the head classes: Wang et al. 2022, section 3; Olsson et al. 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ioi_helpers.heads.known import HEAD_CLASSES, KnownHead, Registry

LOOKS_AT_LEAST = 0.25
"""Attention, on average over prompts."""
SCORES_AT_LEAST = 0.5
"""Score on repeated tokens."""
EFFECT_AT_LEAST = 0.02
"""Effect on IOI prompts, as a share of the logit difference."""
CHANGE_AT_LEAST = 0.1
"""Effect on repeated tokens: of the loss (nats), or of the best induction score."""
SIGMAS = 3.0

ON_REPEATS = "random tokens repeated once"


def error_of(column: str) -> str:
    """The column that holds a column's standard error."""
    return f"{column} se"


@dataclass(frozen=True)
class Rule:
    """What a head must show to get a head class.

    Attributes:
        head_class: The head class that it gives.
        effects: Columns of effects, of which one must be large.
        looks: The column of attention, or of the score, that must be high.
        sign: The sign of the effect. An intervention on a head that has a part in the task lowers
            the logit difference; one that raises it is no evidence of such a part.
        on_repeats: Both are measured on repeated tokens, and not on IOI prompts.
        unless: Head classes that go before: their heads do not get this one.
    """

    head_class: str
    effects: tuple[str, ...]
    looks: str = ""
    sign: int = -1
    on_repeats: bool = False
    unless: tuple[str, ...] = ()

    def __str__(self) -> str:
        where, looks = "on IOI prompts", LOOKS_AT_LEAST
        least = f"{100 * EFFECT_AT_LEAST:g} % of the logit difference"
        if self.on_repeats:
            where, looks, least = f"on {ON_REPEATS}", SCORES_AT_LEAST, f"{CHANGE_AT_LEAST:g}"
        size = f">= {least}" if self.sign > 0 else f"<= -{least}"
        asked = [f'"{self.looks}" >= {looks}'] if self.looks else []
        asked += [f"no {name}" for name in self.unless]
        effects = " or ".join(f'"{column}"' for column in self.effects)
        return f"{where}: {', '.join(asked)}, and {effects} {size}"

    def effect(self, row: Mapping[str, Any], total: tuple[float, float]) -> str | None:
        """The first effect by which a head of these measurements passes; None if by none.

        What was not measured is NaN, which is above nothing.
        """
        if not self.on_repeats and not total[0] >= SIGMAS * total[1]:
            return None
        least = SCORES_AT_LEAST if self.on_repeats else LOOKS_AT_LEAST
        if self.looks and not row[self.looks] >= least:
            return None
        enough = CHANGE_AT_LEAST if self.on_repeats else EFFECT_AT_LEAST * abs(total[0])
        for column in self.effects:
            if self.sign * row[column] >= max(enough, SIGMAS * row[error_of(column)]):
                return column
        return None


_AT_S2 = ("S2, other order", "S2, other names")

RULES: tuple[Rule, ...] = (
    Rule("name_mover", ("direct",), "END to IO", 1),
    Rule("negative_name_mover", ("direct",), "END to IO"),
    Rule(
        "backup_name_mover", ("backup rise",), "", 1, unless=("name_mover", "negative_name_mover")
    ),
    Rule("s_inhibition", ("END, other order",), "END to S2"),
    Rule("duplicate_token", _AT_S2, "S2 to S1"),
    Rule("induction", _AT_S2, "S2 to S1+1"),
    Rule("induction", ("ablated: repeat loss",), "induction", 1, on_repeats=True),
    Rule("previous_token", ("S1+1, other names",), "S1+1 to S1"),
    Rule("previous_token", ("ablated: best induction",), "previous_token", on_repeats=True),
)
"""All rules. Where a head class has two, one is enough; the first that holds is the evidence."""

CLASS_RULES: dict[str, str] = {
    head_class: "; or ".join(str(rule) for rule in RULES if rule.head_class == head_class)
    for head_class in HEAD_CLASSES
}
"""The rules in words; what stands in quotes are columns of a head table. See `EVERY_RULE`."""

EVERY_RULE = (
    f"Every effect must lie {SIGMAS:g} standard errors from zero. Rules on IOI prompts apply where "
    f"the model does IOI: its logit difference lies {SIGMAS:g} standard errors above zero."
)
"""What all rules ask for."""

POSITIONS: dict[str, str] = {
    "previous_token": "S1+1",
    "duplicate_token": "S2",
    "induction": "S2",
    **dict.fromkeys(HEAD_CLASSES[3:], "END"),
}
"""The role of the token at which the heads of a head class work."""

_FROM = "its output at {} taken from the prompt {}"
_ORDER, _NAMES = "in the other order", "with three different names"
INTERVENTIONS: dict[str, tuple[str, str]] = {
    "END, other order": (_FROM.format("END", _ORDER), "diff"),
    "END, other names": (_FROM.format("END", _NAMES), "diff"),
    "S2, other order": (_FROM.format("S2", _ORDER), "diff"),
    "S2, other names": (_FROM.format("S2", _NAMES), "diff"),
    "S1+1, other names": (_FROM.format("S1+1", _NAMES), "diff"),
    "backup rise": (f"{{strongest}}'s output at END taken from the prompt {_NAMES}", "direct"),
    "ablated: repeat loss": ("its output set to zero everywhere", "loss"),
    "ablated: best induction": ("its output set to zero everywhere", "score"),
}
_UNITS = {
    "diff": "logits, change of the mean logit difference",
    "direct": "logits, change of its direct attribution, final LayerNorm frozen",
    "loss": "nats, change of the loss on the repeated tokens",
    "score": "change of the best induction score of the other heads",
}


def class_evidence(
    row: Mapping[str, Any], total: tuple[float, float]
) -> dict[str, tuple[Rule, str]]:
    """The head classes that a head's measurements support, with the rule and the effect for each.

    Args:
        row: A row of a head table.
        total: The mean logit difference and its standard error.
    """
    found: dict[str, tuple[Rule, str]] = {}
    for rule in RULES:
        if rule.head_class in found or any(name in found for name in rule.unless):
            continue
        effect = rule.effect(row, total)
        if effect is not None:
            found[rule.head_class] = rule, effect
    return {name: found[name] for name in HEAD_CLASSES if name in found}


def registry_of(table: pd.DataFrame) -> Registry:
    """The registry that the rows of a head table support.

    The registries of the bundled models were written by this function; for another model it gives
    one of your own, whose ``circuit()`` can be drawn and ablated.

    Args:
        table: What :func:`~ioi_helpers.heads.head_table` returned.
    """
    total = tuple(table.attrs["logit difference"])
    entries = []
    for name, row in table.iterrows():
        for head_class, (rule, effect) in class_evidence(row, total).items():
            evidence = _evidence(table, row, rule, effect)
            entries.append(KnownHead(str(name), head_class, POSITIONS[head_class], evidence))
    return Registry(table.attrs["model"], tuple(entries))


def _evidence(
    table: pd.DataFrame, row: Mapping[str, Any], rule: Rule, effect: str
) -> dict[str, Any]:
    def measured(column: str) -> list[float]:
        return [round(float(row[name]), 3) for name in (column, error_of(column))]

    found: dict[str, Any] = {}
    if rule.on_repeats:
        found["on"] = ON_REPEATS
    else:
        found["attends"] = rule.looks or "END to IO"
    found["attention"], found["attention se"] = measured(rule.looks or "END to IO")
    if effect == "direct":
        # What it writes makes it a name mover. What its loss costs can be less, where others make
        # up for it, and is recorded too.
        found["direct attribution"], found["direct attribution se"] = measured(effect)
        effect = "END, other names"
    intervention, unit = INTERVENTIONS[effect]
    found["intervention"] = intervention.format(strongest=table.attrs["strongest"])
    found["effect"], found["effect se"] = measured(effect)
    found["unit"] = _UNITS[unit]
    return found
