"""Tokenised prompts: rows of pieces turned into tokens, with the position of every role.

``TokenisedPrompts`` is the part of ``IOIDataset`` that holds and reads: tokens, roles, selecting
rows, gathering values at a role. Counterfactuals and the ways of making a dataset are built on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from ioi_helpers.dataset.pieces import Pieces, encode, pad_id
from ioi_helpers.dataset.roles import IO, S1, S2, Names, RolePositions
from ioi_helpers.dataset.rows import Rows, row_numbers
from ioi_helpers.dataset.two_answers import gather_at_role, require_device


class TokenisedPrompts:
    """Prompts, their tokens and their roles; ``IOIDataset`` lists what is held.

    Never changed in place: whatever makes other prompts returns a new object.
    """

    def __init__(
        self,
        pieces: Pieces,
        rows: Rows,
        *,
        templates: tuple[str, ...],
        name_pool: tuple[str, ...],
        prepend_bos: bool,
        clean: Self | None = None,
        history: tuple[str, ...] = (),
        width: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self._pieces = pieces
        self._rows = rows
        self._clean = clean
        self.tokenizer = pieces.tokenizer
        self.templates = templates
        self.name_pool = name_pool
        self.prepend_bos = prepend_bos
        self.history = history
        """The counterfactual methods that made this dataset, first to last; () for a clean one."""
        self.device = torch.device(device)
        self._assemble(width)

    def _assemble(self, width: int) -> None:
        """Tokens and positions from the layout. ``width`` keeps a slice as wide as the whole."""
        layout, bos = self._rows.layout, int(self.prepend_bos)
        names = self._rows.names()
        layout, ids_of = self._with_beginnings(layout)
        lengths_of = np.array([len(ids) for ids in ids_of], dtype=np.int64)
        flat = np.array([i for ids in ids_of for i in ids], dtype=np.int64)
        start_of = np.cumsum(lengths_of) - lengths_of

        piece_lengths = lengths_of[layout]
        ends = np.cumsum(piece_lengths, axis=1) + bos
        lengths = ends[:, -1]
        tokens = np.full(
            (len(layout), max(width, int(lengths.max()))), pad_id(self.tokenizer), dtype=np.int64
        )
        if bos:
            tokens[:, 0] = self.tokenizer.bos_token_id
        # Each pass writes the k-th token of every piece that has so many.
        offsets = ends - piece_lengths
        for k in range(int(piece_lengths.max())):
            row, column = np.nonzero(piece_lengths > k)
            tokens[row, offsets[row, column] + k] = flat[start_of[layout[row, column]] + k]

        at = np.take_along_axis(offsets, self._rows.columns, axis=1)
        names = flat[start_of[names]]

        def tensor(array: Int[np.ndarray, " ..."]) -> Int[Tensor, " ..."]:
            return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

        self.tokens: Int[Tensor, "batch pos"] = tensor(tokens)
        self.lengths: Int[Tensor, " batch"] = tensor(lengths)
        self.io_tokens: Int[Tensor, " batch"] = tensor(names[:, IO])
        self.s_tokens: Int[Tensor, " batch"] = tensor(names[:, S1])
        self.positions = RolePositions(
            {
                "IO": tensor(at[:, IO]),
                "S1": tensor(at[:, S1]),
                "S1+1": tensor(at[:, S1] + 1),
                "S2": tensor(at[:, S2]),
                "END": tensor(lengths - 1),
            }
        )
        self.mentions: Int[Tensor, "batch mention"] = tensor(
            np.take_along_axis(offsets, self._rows.mentions, axis=1)
        )
        self.template_ids: Int[Tensor, " batch"] = tensor(self._rows.template_ids)
        self.pair_ids: Int[Tensor, " batch"] = tensor(self._rows.pair_ids)
        before = self._rows.columns[:, IO] < self._rows.columns[:, S1]
        self.orders: list[str] = ["ABBA" if io_first else "BABA" for io_first in before]

    def _with_beginnings(
        self, layout: Int[np.ndarray, "batch width"]
    ) -> tuple[Int[np.ndarray, "batch width"], list[list[int]]]:
        """The layout and what its numbers stand for, each text's first piece as it begins one."""
        pieces = self._pieces
        if not pieces.starts_differ:
            return layout, pieces.ids
        rows = np.arange(len(layout))
        first = (layout != 0).argmax(axis=1)
        known, which = np.unique(layout[rows, first], return_inverse=True)
        layout = layout.copy()
        layout[rows, first] = len(pieces.ids) + which
        return layout, [*pieces.ids, *pieces.at_start(known)]

    def _check_assembly(self, sample: int = 256) -> None:
        """Tokenise whole prompts and compare: some of every template, evenly spread over rows."""
        _, first_of_template = np.unique(self._rows.template_ids, return_index=True)
        spread = np.linspace(0, len(self) - 1, min(sample, len(self))).astype(np.int64)
        part = self[np.unique(np.concatenate([first_of_template, spread]))]
        bos = int(self.prepend_bos)
        whole = encode(self.tokenizer, part.prompts)
        for ids, row, length, prompt in zip(
            whole, part.tokens.tolist(), part.lengths.tolist(), part.prompts, strict=True
        ):
            if ids != row[bos:length]:
                raise ValueError(
                    f"This tokenizer splits {prompt!r} as a whole otherwise than word by word, so "
                    "roles cannot be placed; use one whose words carry the space before them, as "
                    "those of GPT-2, Llama and Gemma do, and text without odd spacing."
                )

    # --- selecting rows --------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._rows.layout)

    def __iter__(self) -> Iterator[Self]:
        """One-row datasets, in order."""
        return (self[row] for row in range(len(self)))

    def __getitem__(
        self,
        index: int
        | slice
        | Sequence[int]
        | Sequence[bool]
        | Int[Tensor, " rows"]
        | Bool[Tensor, " batch"]
        | np.ndarray[Any, Any],
    ) -> Self:
        """Some of the rows: ``data[3]``, ``data[:8]``, ``data[[0, 5]]``, ``data[mask]``.

        The padded width stays that of the whole, so that ``data[:8].tokens`` is ``data.tokens[:8]``
        and logits computed for the whole can be sliced alike. ``.clean`` is sliced along.

        Raises:
            IndexError: A row that does not exist.
            ValueError: A mask of another length than the dataset, or no row selected.
        """
        rows = row_numbers(index, len(self))
        return self._replace(
            rows=self._rows.take(rows),
            clean=None if self._clean is None else self._clean[rows],
        )

    def _replace(self, **changes: Any) -> Self:
        """The same dataset with other arguments to the constructor."""
        arguments: dict[str, Any] = {
            "rows": self._rows,
            "templates": self.templates,
            "name_pool": self.name_pool,
            "prepend_bos": self.prepend_bos,
            "clean": self._clean,
            "history": self.history,
            "width": self.tokens.shape[1],
            "device": self.device,
        }
        return type(self)(self._pieces, **{**arguments, **changes})

    def to(self, device: torch.device | str) -> Self:
        """The same dataset with its tensors on ``device``; ``.clean`` moves along.

        Raises:
            ValueError: PyTorch has no such device here.
        """
        require_device(device)
        clean = None if self._clean is None else self._clean.to(device)
        return self._replace(device=device, clean=clean)

    @property
    def clean(self) -> Self:
        """The dataset that this one is a counterfactual of (at the start of a chain of them).

        A dataset that is no counterfactual is its own clean dataset.
        """
        return self if self._clean is None else self._clean

    # --- reading ---------------------------------------------------------------------------------

    def __repr__(self) -> str:
        abba = self.orders.count("ABBA")
        parts = [
            f"{len(self)} prompts",
            f"{abba} ABBA, {len(self) - abba} BABA",
            f"{self.tokens.shape[1]} positions {'with' if self.prepend_bos else 'without'} BOS",
        ]
        if self.history:
            parts.append(" then ".join(self.history))
        return f"{type(self).__name__}({'; '.join(parts)})"

    @cached_property
    def prompts(self) -> list[str]:
        """The texts, without BOS and without the answer."""
        texts = self._pieces.texts
        return ["".join([texts[piece] for piece in row]) for row in self._rows.layout.tolist()]

    @cached_property
    def names(self) -> list[Names]:
        """The names at IO, S1 and S2 of each row."""
        texts = self._pieces.texts
        return [
            Names(*(texts[piece].removeprefix(" ") for piece in row))
            for row in self._rows.names().tolist()
        ]

    @property
    def attention_mask(self) -> Int[Tensor, "batch pos"]:
        """1 on tokens (BOS included), 0 on padding."""
        return (
            torch.arange(self.tokens.shape[1], device=self.device) < self.lengths[:, None]
        ).long()

    @property
    def answer_tokens(self) -> Int[Tensor, "batch answer"]:
        """``io_tokens`` and ``s_tokens`` side by side, the form that TransformerLens' demos use."""
        return torch.stack([self.io_tokens, self.s_tokens], dim=1)

    def gather(
        self, values: Shaped[Tensor, "batch pos *rest"], role: str
    ) -> Shaped[Tensor, "batch *rest"]:
        """What ``values`` holds at a role's position in each prompt.

        Roles stand at different positions in different prompts, so ``values[:, 14]`` would mix them
        up; ``data.gather(cache["resid_post", 5], "S2")`` does not.

        Args:
            values: [batch, pos, ...], activations or logits computed from ``tokens``.
            role: One of ``ROLES``.

        Raises:
            ValueError: An unknown role, or another number of rows or positions than ``tokens``.
        """
        return gather_at_role(self, values, role)

    def str_tokens(self, row: int) -> list[str]:
        """The tokens of one prompt as texts, without padding, for axis labels."""
        ids = self.tokens[row, : int(self.lengths[row])].tolist()
        return [self.tokenizer.decode([i]) for i in ids]

    def groups(
        self, by: Literal["template", "order", "template and order"] = "template"
    ) -> dict[Any, Int[Tensor, " rows"]]:
        """Row numbers by template, by order, or by both.

        The IOI paper's mean ablation averages over "samples of the same template", where the two
        orders of a sentence are two templates: that is ``by="template and order"``.

        Returns:
            template id, or "ABBA"/"BABA", or (template id, order) -> the rows, ascending.

        Raises:
            ValueError: Another ``by``.
        """
        if by not in ("template", "order", "template and order"):
            raise ValueError(
                f"Rows can be grouped by 'template', 'order' or 'template and order', not {by!r}."
            )
        found: dict[Any, list[int]] = {}
        for row, (template, order) in enumerate(
            zip(self._rows.template_ids.tolist(), self.orders, strict=True)
        ):
            key = {"template": template, "order": order}.get(by, (template, order))
            found.setdefault(key, []).append(row)
        return {key: torch.tensor(found[key], device=self.device) for key in sorted(found)}
