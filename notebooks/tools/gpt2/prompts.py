"""The prompts on which published numbers were measured, or ones drawn in the same way."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ioi_helpers import published
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.dataset.pieces import Pieces, check_names, name_pieces
from ioi_helpers.dataset.rows import lay_out
from ioi_helpers.dataset.templates import resolve_templates

ONE_TEMPLATE = "When [A] and [B] went to the [PLACE], [B] gave the [OBJECT] to"


@cache
def demo(tokenizer: Any) -> IOIDataset:
    """The 8 prompts of TransformerLens' demos; with BOS."""
    return IOIDataset.demo(tokenizer)


@cache
def papers(tokenizer: Any, n: int) -> IOIDataset:
    """As the paper's code draws them; without BOS."""
    return IOIDataset.paper(tokenizer, n)


@cache
def of_all_templates(tokenizer: Any, n: int) -> IOIDataset:
    """The paper's 15 templates in both orders; with BOS."""
    return IOIDataset.generate(tokenizer, n)


@cache
def of_one_template(tokenizer: Any, n: int) -> IOIDataset:
    """One template, IO named first; with BOS."""
    return IOIDataset.generate(tokenizer, n, order="ABBA", templates=[ONE_TEMPLATE])


def single(tokenizer: Any, prompt: str, io: str, s: str) -> IOIDataset:
    """One prompt; with BOS."""
    return IOIDataset.from_prompts(tokenizer, [prompt], [(io, s)])


@cache
def arenas(tokenizer: Any) -> tuple[IOIDataset, IOIDataset]:
    """The 25 prompts of ARENA's notebook and their ABC partners, as the published file lists them.

    (One of these has the same name twice, as the generator may.)
    """
    rows = published.record("path_patching_arena.json")["setup"]["prompts_25"]
    pieces, parsed = Pieces(tokenizer), resolve_templates(None)
    words = {name for r in rows for name in (r["IO"], r["S"], *r["abc_names_in_order"])}
    pool = check_names(pieces, sorted(words))
    piece = dict(zip(pool, name_pieces(pieces, pool), strict=True))
    io_first = np.array([r["template"][0] == "ABBA" for r in rows])
    laid = lay_out(
        pieces,
        parsed,
        template_ids=np.array([r["template"][1] for r in rows]),
        pair_ids=np.arange(len(rows)),
        io_first=io_first,
        names=np.array([[piece[r["IO"]], piece[r["S"]]] for r in rows]),
        places=[r["place"] for r in rows],
        objects=[r["object"] for r in rows],
    )
    data = IOIDataset._build(pieces, laid, tuple(t.text for t in parsed), pool, False)
    # In the order of the text; ours is IO, S1, S2.
    fresh = np.array([[piece[name] for name in r["abc_names_in_order"]] for r in rows])
    fresh[~io_first] = fresh[~io_first][:, [1, 0, 2]]
    return data, data._derive("ARENA's ABC", data._rows.rename(fresh))
