"""Prompts as rows of pieces, with the columns in which the names stand.

A row reads from left to right: the prefix sentence (or nothing), then the segments of a template,
filled. All rows of a dataset have the same number of columns, the unused ones empty. Because a row
knows the columns of IO, S1 and S2, a counterfactual is a change of a few piece numbers, and tokens
and positions follow from the pieces' lengths (``prompts``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int

from ioi_helpers.dataset.pieces import Pieces
from ioi_helpers.dataset.roles import IO, S1, S2
from ioi_helpers.dataset.templates import Template


@dataclass(frozen=True)
class Rows:
    """What prompts are made of.

    ``layout`` holds piece numbers, left to right; ``columns`` says in which of its columns IO, S1
    and S2 stand, and ``mentions`` in which further names do (those of adversarial sentences).
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

    def rename(self, names: Int[np.ndarray, "batch 3"]) -> Rows:
        """The rows with other names in the same columns, mentions included."""
        layout, old = self.layout.copy(), self.names()
        rows = np.arange(len(layout))
        for column in self.mentions.T:
            about_io = layout[rows, column] == old[:, IO]
            layout[rows, column] = np.where(about_io, names[:, IO], names[:, S1])
        return replace(self, layout=layout).place(names, self.columns)


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


def insert_sentences(
    pieces: Pieces,
    rows: Rows,
    sentences: Sequence[Sequence[str]],
    mentioned: Int[np.ndarray, " batch"],
) -> Rows:
    """Insert sentences after the clause break between the first clause and S2.

    Args:
        sentences: One or more lists with a text for each row, [A] standing for the name.
        mentioned: The piece of the name that each row's sentences are about.

    Raises:
        ValueError: A prompt has neither a full stop nor a comma there.
    """
    batch, width = rows.layout.shape
    # A sentence is three pieces (before, name, after), and one piece of the template is cut in two.
    added = 3 * len(sentences) + 1
    layout = np.zeros((batch, width + added), dtype=np.int64)
    columns = rows.columns.copy()
    mentions = np.zeros((batch, len(sentences)), dtype=np.int64)
    for template_id in np.unique(rows.template_ids):
        here = np.flatnonzero(rows.template_ids == template_id)
        # Rows of a template differ in names, places and objects, none of which holds a break.
        old, names = rows.layout[here], rows.columns[here[0]]
        between = range(int(names[:S2].max()) + 1, int(names[S2]))
        cut = None
        for mark in (".", ","):
            with_mark = [c for c in between if mark in pieces.texts[old[0, c]]]
            if with_mark:
                cut = with_mark[-1]
                head, _, tail = pieces.texts[old[0, cut]].rpartition(mark)
                break
        if cut is None:
            prompt = "".join(pieces.texts[piece] for piece in old[0])
            raise ValueError(
                f"The prompt {prompt!r} has no full stop or comma between the names and S2, so "
                "there is no place for another sentence."
            )
        layout[here, :cut] = old[:, :cut]
        layout[here, cut] = pieces.add_one(head + mark)
        for k, texts in enumerate(sentences):
            parts = [texts[row].split("[A]") for row in here.tolist()]
            at = cut + 1 + 3 * k
            layout[here, at] = pieces.add(
                [f" {before.rstrip()}" if before else "" for before, _ in parts]
            )
            layout[here, at + 1] = mentioned[here]
            layout[here, at + 2] = pieces.add([after for _, after in parts])
            mentions[here, k] = at + 1
        layout[here, cut + added] = pieces.add_one(tail)
        layout[here, cut + added + 1 :] = old[:, cut + 1 :]
        columns[here, S2] += added
    return Rows(layout, columns, mentions, rows.template_ids, rows.pair_ids)
