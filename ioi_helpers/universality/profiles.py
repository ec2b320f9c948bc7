"""What a head does, in numbers that neither name it nor say where it stands.

A head's profile has a number for each *kind* of thing that it does: how large an effect it has, and
which token it looked at for it. Effects are those of a head table; each is divided among the tokens
that the head looks at, in proportion to its attention. So a head that writes 2 logits for the
answer and looks at IO with 0.9 does 1.8 of "writes, from IO" and 0.2 of "writes, from elsewhere".
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

_FROM_END = {role: f"END to {role}" for role in ("IO", "S1", "S2")}
_FROM_S2 = {role: f"S2 to {role}" for role in ("S1", "S1+1")}

EFFECTS: dict[str, tuple[str, dict[str, str]]] = {
    "writes": ("direct", _FROM_END),
    "END, order": ("END, other order", _FROM_END),
    "END, names": ("END, other names", _FROM_END),
    "S2, order": ("S2, other order", _FROM_S2),
    "S2, names": ("S2, other names", _FROM_S2),
    "S1+1, names": ("S1+1, other names", {"S1": "S1+1 to S1"}),
    "steps in": ("backup rise", _FROM_END),
}
"""What a head can do -> the head table's column, and its attention to the tokens by role."""

AT_END = tuple(what for what, (_, looks) in EFFECTS.items() if looks is _FROM_END)
"""What heads do at END."""

KINDS: tuple[str, ...] = tuple(
    f"{what}, from {role}" for what, (_, looks) in EFFECTS.items() for role in (*looks, "elsewhere")
)
"""The columns of a profile of all effects."""


def profile(heads: pd.DataFrame, effects: Sequence[str] = tuple(EFFECTS)) -> pd.DataFrame:
    """What each head of one model does: a row a head, a column for each kind (:data:`KINDS`).

    Args:
        heads: The model's head table: of :func:`ioi_helpers.heads.head_table` or of a survey.
        effects: Which of :data:`EFFECTS`, such as :data:`AT_END`.

    Returns:
        Shares of all that the model's heads do: the absolute values sum to 1. A sign is that of the
        effect: negative where the answer is missed without the head. What was not measured of a
        head counts as nothing.

    Raises:
        ValueError: Not a head table, or one of more than one model; or an unknown effect.
    """
    unknown = next((what for what in effects if what not in EFFECTS), None)
    if unknown is not None or isinstance(effects, str):
        raise ValueError(f"effects is a list of some of {', '.join(EFFECTS)}; not {effects!r}.")
    table = heads.set_index("name") if "name" in heads else heads
    missing = [column for column, _ in EFFECTS.values() if column not in table]
    if missing:
        raise ValueError(f"This is no head table: it has no column {missing[0]!r}.")
    if not table.index.is_unique:
        raise ValueError("This is a table of several models; take profiles(table) for all of them.")
    columns = {}
    for what in effects:
        effect, looks = EFFECTS[what]
        size, rest = table[effect].fillna(0.0), pd.Series(1.0, index=table.index)
        for role, column in looks.items():
            columns[f"{what}, from {role}"] = size * table[column]
            rest = rest - table[column]
        columns[f"{what}, from elsewhere"] = size * rest.clip(lower=0.0)
    found = pd.DataFrame(columns, dtype=float)
    total = found.abs().to_numpy().sum()
    return found / total if total > 0 else found


def profiles(
    heads: pd.DataFrame, effects: Sequence[str] = tuple(EFFECTS)
) -> dict[str, pd.DataFrame]:
    """The :func:`profile` of every model in a survey's head table, by the model's name.

    Models of which the table could not be made are left out.

    Args:
        heads: Of several models.
        effects: Of :func:`profile`.
    """
    there = heads[heads["failure"].isna()] if "failure" in heads else heads
    return {
        str(model): profile(table, effects) for model, table in there.groupby("model", sort=False)
    }
