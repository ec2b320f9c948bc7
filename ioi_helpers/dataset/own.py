"""``PromptDataset``: prompts of any task with a right and a wrong answer, and its own roles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ioi_helpers.dataset.pieces import Pieces, encode, pad_id, prompts_and_answers, require_bos
from ioi_helpers.dataset.roles import RolePositions
from ioi_helpers.dataset.rows import row_numbers
from ioi_helpers.dataset.two_answers import gather_at_role, require_device

Place = str | tuple[str, int] | int
"""Where a role stands: at the last token of a word or phrase, ``"tree"``; of its second occurrence,
``("tree", 2)``; or at a position of ``tokens``, from the end if negative."""


@dataclass(frozen=True)
class PromptDataset:
    """Prompts with two answers each, of any task; a :class:`TwoAnswerData` as helpers take it.

    ::

        prompts = ["The keys to the cabinet", "The key to the cabinets"]
        data = PromptDataset.from_prompts(
            model.tokenizer,
            prompts,
            answers=[(" are", " is"), (" is", " are")],
            roles={"SUBJECT": ["keys", "key"], "NOUN": ["cabinet", "cabinets"]},
        )
        corrupted = data[[1, 0]]                    # row by row the prompt of the other number
        patch_sweep(model, data, corrupted, "resid_pre", ("layer", "role"))

    It is never changed in place. Its counterfactual is another one, with as many prompts.

    Attributes:
        tokens, lengths, positions, io_tokens, s_tokens, pair_ids: As ``TwoAnswerData`` has them.
        prompts: The texts.
        tokenizer: What made the tokens.
        prepend_bos: Whether BOS stands before each prompt.
        templates, template_ids: The kinds of prompts, and which of them each prompt is of. Means
            are taken within a kind.
    """

    tokens: Int[Tensor, "batch pos"]
    lengths: Int[Tensor, " batch"]
    positions: Mapping[str, Int[Tensor, " batch"]]
    io_tokens: Int[Tensor, " batch"]
    s_tokens: Int[Tensor, " batch"]
    pair_ids: Int[Tensor, " batch"]
    prompts: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase
    prepend_bos: bool
    templates: tuple[str, ...]
    template_ids: Int[Tensor, " batch"]

    @classmethod
    def from_prompts(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Iterable[str],
        answers: Iterable[tuple[str, str]],
        roles: Mapping[str, Place | Sequence[Place]] | None = None,
        *,
        prepend_bos: bool = True,
        pair_ids: Sequence[int] | None = None,
        templates: Sequence[str] | None = None,
        multi_token_answers: bool = False,
    ) -> PromptDataset:
        """From texts.

        Args:
            tokenizer: Such as ``model.tokenizer``.
            prompts: Texts without their answers.
            answers: (right, wrong) for each prompt, as they would go on: ``(" are", " is")`` with
                the space that comes before them.
            roles: The tokens that matter, each with its place in every prompt, or with one place
                for all: ``"tree"``, ``("tree", 2)`` for the second one, or a position. ``"END"``,
                the last token, is always one.
            prepend_bos: Put BOS before each prompt.
            pair_ids: A number for each prompt, equal for prompts that belong together: errors are
                over these. By default every prompt stands alone.
            templates: What kind of prompt each is; by default all are of one. A mean that stands in
                for what is ablated is taken within a kind, at the same role, or as far behind it.
            multi_token_answers: Allow answers of several tokens, which are scored by the first;
                the two of a prompt must differ there.

        Raises:
            ValueError: Another number of answers, places or labels than prompts; an answer that is
                not one token, or is joined with the prompt's last; two answers that are the same
                token; a phrase that a prompt does not hold, or holds more than once; a prompt with
                a special token such as a BOS of its own; no BOS token though one is wanted.
        """
        texts, pairs = prompts_and_answers(
            prompts, answers, "of texts, (right, wrong)", pair_ids=pair_ids, templates=templates
        )
        n = len(texts)
        pieces = Pieces(tokenizer)
        if prepend_bos:
            require_bos(tokenizer)
        ids = pieces.whole(texts)
        bos = [tokenizer.bos_token_id] if prepend_bos else []
        lengths = torch.tensor([len(bos) + len(one) for one in ids])
        tokens = torch.full((n, int(lengths.max())), pad_id(tokenizer))
        for row, one in enumerate(ids):
            tokens[row, : lengths[row]] = torch.tensor(bos + one)
        right, wrong = (
            _first_tokens(tokenizer, texts, ids, [pair[i] for pair in pairs], multi_token_answers)
            for i in (0, 1)
        )
        for row, answer in enumerate(right):
            if answer == wrong[row]:
                raise ValueError(
                    f"The answers {pairs[row]} of prompt {row} begin with the same token, so no "
                    "logit tells them apart; use others."
                )
        kinds = [""] * n if templates is None else [str(one) for one in templates]
        # Sorted, so that a counterfactual of the same kinds in other rows has the same ones.
        known = tuple(sorted(set(kinds)))
        places = {
            role: _positions(tokenizer, texts, lengths, where, role, len(bos))
            for role, where in (roles or {}).items()
        }
        return cls(
            tokens=tokens,
            lengths=lengths,
            positions=RolePositions({**places, "END": lengths - 1}),
            io_tokens=torch.tensor(right),
            s_tokens=torch.tensor(wrong),
            pair_ids=torch.arange(n) if pair_ids is None else torch.tensor(list(pair_ids)),
            prompts=tuple(texts),
            tokenizer=tokenizer,
            prepend_bos=prepend_bos,
            templates=known,
            template_ids=torch.tensor([known.index(kind) for kind in kinds]),
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: Any) -> Self:
        """Some of the prompts, as wide as the whole: ``data[3]``, ``data[:8]``, ``data[mask]``.

        Raises:
            IndexError: A row that does not exist.
            ValueError: A mask of another length, or no row selected.
        """
        numbers = row_numbers(index, len(self))
        rows = torch.from_numpy(numbers).to(self.tokens.device)
        return replace(
            self._each(lambda x: x[rows]), prompts=tuple(self.prompts[i] for i in numbers)
        )

    def to(self, device: torch.device | str) -> Self:
        """The same with its tensors on a device.

        Raises:
            ValueError: PyTorch has no such device here.
        """
        require_device(device)
        return self._each(lambda x: x.to(device))

    def gather(
        self, values: Shaped[Tensor, "batch pos *rest"], role: str
    ) -> Shaped[Tensor, "batch *rest"]:
        """What ``values`` (``[batch pos ...]``, of a run over ``tokens``) holds at a role.

        Raises:
            ValueError: An unknown role, or another number of rows or positions than ``tokens``.
        """
        return gather_at_role(self, values, role)

    def __repr__(self) -> str:
        bos = "with" if self.prepend_bos else "without"
        return (
            f"PromptDataset({len(self)} prompts; {self.tokens.shape[1]} positions {bos} BOS; "
            f"roles {', '.join(self.positions)})"
        )

    def _each(self, change: Any) -> Self:
        tensors = {name: change(x) for name, x in vars(self).items() if isinstance(x, Tensor)}
        positions = RolePositions({role: change(at) for role, at in self.positions.items()})
        return replace(self, positions=positions, **tensors)


def _first_tokens(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    ids: Sequence[list[int]],
    answers: Sequence[str],
    several: bool,
) -> list[int]:
    """The token that each answer begins with, behind its prompt."""
    found = []
    whole = encode(tokenizer, [text + answer for text, answer in zip(texts, answers, strict=True)])
    for text, its_ids, answer, both in zip(texts, ids, answers, whole, strict=True):
        own = both[len(its_ids) :]
        if both[: len(its_ids)] != its_ids or not own:
            raise ValueError(
                f"This tokenizer joins the answer {answer!r} with the end of the prompt {text!r}, "
                "so that no token of its own begins it; write the space between them at the "
                "answer's beginning."
            )
        if len(own) > 1 and not several:
            parts = ", ".join(repr(tokenizer.decode([i])) for i in own)
            raise ValueError(
                f"The answer {answer!r} is {len(own)} tokens after {text!r} ({parts}); use another "
                "one, or pass multi_token_answers=True to score the first."
            )
        found.append(own[0])
    return found


def _positions(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    lengths: Int[Tensor, " batch"],
    where: Place | Sequence[Place],
    role: str,
    bos: int,
) -> Int[Tensor, " batch"]:
    """Where a role stands in each prompt."""
    one_for_all = isinstance(where, str | int) or (
        isinstance(where, tuple) and len(where) == 2 and isinstance(where[1], int)
        and isinstance(where[0], str)
    )  # fmt: skip
    places: list[Any] = [where] * len(texts) if one_for_all else list(where)  # type: ignore[arg-type]
    if len(places) != len(texts):
        raise ValueError(
            f"There are {len(texts)} prompts but {len(places)} places of the role {role!r}; give "
            "one for each, or one for all."
        )
    found = []
    for row, (text, place, length) in enumerate(zip(texts, places, lengths.tolist(), strict=True)):
        if isinstance(place, int):
            at = place + length if place < 0 else place
        else:
            phrase, nth = place if isinstance(place, tuple) else (place, None)
            at = bos + _token_of(tokenizer, text, str(phrase), nth)
        if not 0 <= at < length:
            raise ValueError(
                f"The role {role!r} cannot stand at position {place} of prompt {row}, which has "
                f"{length} tokens."
            )
        found.append(at)
    return torch.tensor(found)


def _token_of(tokenizer: PreTrainedTokenizerBase, text: str, phrase: str, nth: int | None) -> int:
    """The number of the token that a phrase ends with."""
    starts = [i for i in range(len(text)) if text.startswith(phrase, i)] if phrase else []
    if not starts or (nth is None and len(starts) > 1) or not 1 <= (nth or 1) <= len(starts):
        raise ValueError(
            f"The prompt {text!r} holds {phrase!r} {len(starts)} times"
            + (f", so there is no number {nth}." if nth else f"; say which, as ({phrase!r}, 2).")
        )
    last = starts[(nth or 1) - 1] + len(phrase) - 1
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            "This tokenizer does not tell which characters its tokens stand for; give roles as "
            "positions of tokens."
        )
    spans = tokenizer([text], add_special_tokens=False, return_offsets_mapping=True)
    covering = [i for i, (a, b) in enumerate(spans["offset_mapping"][0]) if a <= last < b]
    if not covering:
        raise ValueError(
            f"No token of {text!r} ends with {phrase!r}; give the role as a position of tokens."
        )
    return covering[-1]
