"""The roles of an IOI prompt: the positions that matter, the names that stand there, the orders.

A position is a role and not a number in this package, since prompts differ in length.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Int
from torch import Tensor

ROLES: tuple[str, ...] = ("IO", "S1", "S1+1", "S2", "END")
"""The five positions that matter in an IOI prompt (IOI paper, section 2), in the fixed order used
by every table and figure: the indirect object, the subject's first mention, the token after it,
the subject's second mention, and the last token, from which the answer is predicted."""

ORDERS: tuple[str, ...] = ("ABBA", "BABA", "mixed")
"""Which of IO and S is named first: IO ("ABBA"), S ("BABA"), or half of each."""

IO, S1, S2 = 0, 1, 2
"""Columns of every array [batch, 3] of names: one for each role that is a name."""


class Names(NamedTuple):
    """The names that stand at a prompt's three name roles; S1 and S2 are equal in an IOI prompt."""

    IO: str
    S1: str
    S2: str


class RolePositions(dict[str, Int[Tensor, " batch"]]):
    """Role -> position of that role in each prompt. An unknown role is a ``ValueError``."""

    def __missing__(self, role: str) -> Int[Tensor, " batch"]:
        raise ValueError(f"{role!r} is not a role of these prompts; use one of {', '.join(self)}.")
