"""Prompts as rows of pieces, with the columns in which the names stand.

A row reads from left to right: the prefix sentence (or nothing), then the segments of a template,
filled. All rows of a dataset have the same number of columns, the unused ones empty. Because a row
knows the columns of IO, S1 and S2, a counterfactual is a change of a few piece numbers, and tokens
and positions follow from the pieces' lengths (``prompts``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from ioi_helpers.dataset.pieces import Pieces
from ioi_helpers.dataset.roles import IO, S1, S2
from ioi_helpers.dataset.templates import Template


@dataclass(frozen=True)
class Rows:
    """What prompts are made of.

    ``layout`` holds piece numbers, left to right; ``columns`` says in which of its columns IO, S1
    and S2 stand, and ``mentions`` in which further names do (those of inserted sentences).
    """

    layout: Int[np.ndarray, "batch width"]
    columns: Int[np.ndarray, "batch 3"]
    mentions: Int[np.ndarray, "batch mentions"]
    template_ids: Int[np.ndarray, " batch"]
    pair_ids: Int[np.ndarray, " batch"]

    def take(self, index: Int[np.ndarray, " rows"]) -> Rows:
        """Some of the rows."""
        return Rows(
            self.layout[index],
            self.columns[index],
            self.mentions[index],
            self.template_ids[index],
            self.pair_ids[index],
        )

    def names(self) -> Int[np.ndarray, "batch 3"]:
        """The pieces at IO, S1 and S2."""
        return np.take_along_axis(self.layout, self.columns, axis=1)

    def place(self, names: Int[np.ndarray, "batch 3"], columns: Int[np.ndarray, "batch 3"]) -> Rows:
        """The rows with the pieces ``names`` as IO, S1 and S2, standing in ``columns``."""
        layout = self.layout.copy()
        np.put_along_axis(layout, columns, names, axis=1)
        return replace(self, layout=layout, columns=columns)

    def mentioned(self) -> Int[np.ndarray, "batch mentions"]:
        """The names that stand in inserted sentences."""
        return np.take_along_axis(self.layout, self.mentions, axis=1)

    def strangers(self) -> Int[np.ndarray, " batch"]:
        """The name in each row's inserted sentences that is neither IO's nor S's; -1 for none."""
        own = self.names()[:, :, None] == self.mentioned()[:, None]
        strange = np.where(own.any(axis=1), -1, self.mentioned())
        return strange.max(axis=1, initial=-1)

    def rename(
        self,
        names: Int[np.ndarray, "batch 3"],
        mentioned: Int[np.ndarray, "batch mentions"] | None = None,
    ) -> Rows:
        """The rows with other names in the same columns.

        Args:
            names: For IO, S1 and S2.
            mentioned: For the mentions. None: a mention of IO or S gets that one's new name, and
                any other stays.
        """
        old = self.names()
        if mentioned is None:
            mentioned = self.mentioned()
            for role in (S1, IO):
                own = self.mentioned() == old[:, [role]]
                mentioned = np.where(own, names[:, [role]], mentioned)
        layout = self.layout.copy()
        np.put_along_axis(layout, self.mentions, mentioned, axis=1)
        return replace(self, layout=layout).place(names, self.columns)


def row_numbers(index: Any, n: int) -> Int[np.ndarray, " rows"]:
    """The numbers of the rows that an index selects of ``n``.

    Args:
        index: A number, a slice, a list of numbers or a mask; also as a tensor.

    Raises:
        IndexError: A row that does not exist.
        ValueError: A mask of another length, no row selected, or another kind of index.
    """
    if isinstance(index, Tensor):
        index = index.detach().cpu().numpy()
    if isinstance(index, int | np.integer) and not isinstance(index, bool):
        if not -n <= index < n:
            raise IndexError(f"Row {index} does not exist; the dataset has {n} rows.")
        index = [int(index)]
    if not isinstance(index, slice):
        index = np.atleast_1d(np.asarray(index))
        if index.dtype == bool and index.shape != (n,):
            raise ValueError(
                f"The mask has shape {tuple(index.shape)}, but the dataset has {n} "
                "rows; give one truth value for each row."
            )
        if index.size and index.dtype != bool and not np.issubdtype(index.dtype, np.integer):
            raise ValueError(
                "Rows are selected by a number, a slice, a list of numbers or a mask of truth "
                f"values, not by {index.dtype}."
            )
        if index.size == 0:
            index = slice(0)
    numbers = np.arange(n)[index]
    if not numbers.size:
        raise ValueError("No row is selected; a dataset holds at least one prompt.")
    return numbers


def lay_out(
    pieces: Pieces,
    templates: Sequence[Template],
    *,
    template_ids: Int[np.ndarray, " batch"],
    pair_ids: Int[np.ndarray, " batch"],
    io_first: Bool[np.ndarray, " batch"],
    names: Int[np.ndarray, "batch 2"],
    places: Sequence[str] | None = None,
    objects: Sequence[str] | None = None,
    prefixes: Sequence[str] | None = None,
) -> Rows:
    """Fill templates.

    Args:
        template_ids: Which of ``templates`` each row has.
        io_first: Whether IO is named before S.
        names: The pieces of IO and S.
        places, objects, prefixes: One text for each row; None where there are none.

    Raises:
        ValueError: A template has a field for a place or an object, but there are none.
    """
    batch = len(template_ids)
    width = 1 + max(len(template.segments) for template in templates)
    layout = np.zeros((batch, width), dtype=np.int64)
    columns = np.zeros((batch, 3), dtype=np.int64)
    if prefixes is not None:
        layout[:, 0] = pieces.add(prefixes)
    for template_id, template in enumerate(templates):
        rows = np.flatnonzero(template_ids == template_id)
        first = io_first[rows]
        for column, (kind, text) in enumerate(template.segments, start=1):
            # After a prefix sentence the template's first word needs a space.
            space = " " if column == 1 and prefixes is not None else ""
            if kind == "text":
                layout[rows, column] = pieces.add_one(space + text)
            elif kind in ("PLACE", "OBJECT"):
                words = places if kind == "PLACE" else objects
                if words is None:
                    raise ValueError(f"The prompt {template.text!r} must not hold [{kind}].")
                fillers = [f"{space}{text}{words[row]}" for row in rows.tolist()]
                layout[rows, column] = pieces.add(fillers)
            elif kind == "S2":
                layout[rows, column] = names[rows, 1]
                columns[rows, S2] = column
            else:
                here = first if kind == "first" else ~first
                layout[rows, column] = np.where(here, names[rows, 0], names[rows, 1])
                columns[rows[here], IO] = column
                columns[rows[~here], S1] = column
    no_mentions = np.empty((batch, 0), dtype=np.int64)
    return Rows(layout, columns, no_mentions, template_ids, pair_ids)


def insert(
    pieces: Pieces,
    rows: Rows,
    inserted: Int[np.ndarray, "batch inserted"],
    named: Sequence[int],
    where: str,
) -> Rows:
    """Insert pieces into every row.

    Args:
        inserted: What goes in, left to right.
        named: Which of its columns hold names: they become mentions.
        where: "start" (before the template, after a prefix sentence), "middle" (after the clause
            break between the first clause and S2) or "after S2".

    Raises:
        ValueError: A prompt has neither a full stop nor a comma in the middle.
    """
    batch, width = rows.layout.shape
    # In the middle a piece of the template is cut in two.
    added = inserted.shape[1] + (where == "middle")
    layout = np.zeros((batch, width + added), dtype=np.int64)
    columns, mentions = rows.columns.copy(), rows.mentions.copy()
    new = np.zeros((batch, len(named)), dtype=np.int64)
    for template_id in np.unique(rows.template_ids):
        here = np.flatnonzero(rows.template_ids == template_id)
        old = rows.layout[here].copy()
        tail = 0
        if where == "start":
            cut = 1
            # What was the first word of the text needs a space now.
            for row, piece in enumerate(old[:, 1].tolist()):
                old[row, 1] = pieces.add_one(f" {pieces.texts[piece].lstrip()}")
        elif where == "after S2":
            cut = int(columns[here[0], S2]) + 1
        else:
            cut, head, end = _clause_break(pieces, old[0], columns[here[0]])
            # Rows of a template differ in names, places and objects, none of which holds a break.
            old[:, cut], tail = pieces.add_one(head), pieces.add_one(end)
            cut += 1
        layout[here, :cut] = old[:, :cut]
        layout[here, cut : cut + inserted.shape[1]] = inserted[here]
        if where == "middle":
            layout[here, cut + added - 1] = tail
        layout[here, cut + added :] = old[:, cut:]
        for places in (columns, mentions):
            moved = places[here]
            places[here] = np.where(moved >= cut, moved + added, moved)
        new[here] = cut + np.array(named, dtype=np.int64)
    return replace(
        rows, layout=layout, columns=columns, mentions=np.concatenate([mentions, new], axis=1)
    )


def _clause_break(
    pieces: Pieces, layout: Int[np.ndarray, " width"], columns: Int[np.ndarray, " 3"]
) -> tuple[int, str, str]:
    """The column of the last full stop, or else comma, before S2, and its text cut in two there.

    Raises:
        ValueError: There is none.
    """
    between = range(int(columns[:S2].max()) + 1, int(columns[S2]))
    for mark in (".", ","):
        with_mark = [c for c in between if mark in pieces.texts[layout[c]]]
        if with_mark:
            head, _, tail = pieces.texts[layout[with_mark[-1]]].rpartition(mark)
            return with_mark[-1], head + mark, tail
    prompt = "".join(pieces.texts[piece] for piece in layout)
    raise ValueError(
        f"The prompt {prompt!r} has no full stop or comma between the names and S2, so there is no "
        "place for another sentence."
    )
