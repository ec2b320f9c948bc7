"""What helpers need of prompts: tokens, roles, a right and a wrong answer. Any such task will do.

``IOIDataset`` is one thing that has it; ``PromptDataset`` is another, for prompts of any task; a
class of your own is a third. Some helpers use more where it is there (templates, orders, texts, a
counterfactual of one's own making), and ask for it here, so that what stands in for it is written
once.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


@runtime_checkable
class TwoAnswerData(Protocol):
    """Prompts with two answers each, one right and one wrong, and roles that stand at tokens.

    The names of the answers' tokens are those of the indirect-object task, where the right answer
    is the name at IO and the wrong one the name at S. A helper reads nothing else, but for what its
    docstring says; a counterfactual is another such object with as many rows.
    """

    @property
    def tokens(self) -> Int[Tensor, "batch pos"]:
        """Token ids, padded on the *right*."""

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """How many tokens each prompt has, padding not counted."""

    @property
    def positions(self) -> Mapping[str, Int[Tensor, " batch"]]:
        """Role -> where it stands in each prompt. ``"END"``, the last token, is one of them."""

    @property
    def io_tokens(self) -> Int[Tensor, " batch"]:
        """The token of each prompt's right answer."""

    @property
    def s_tokens(self) -> Int[Tensor, " batch"]:
        """The token of each prompt's wrong answer."""

    @property
    def pair_ids(self) -> Int[Tensor, " batch"]:
        """A number for each prompt, equal for those that belong together: errors are over these.

        ``torch.arange(n)`` where each stands alone.
        """

    def __len__(self) -> int:
        """How many prompts there are."""

    def __getitem__(self, rows: Any, /) -> Self:
        """Some of the prompts, by a slice or by a tensor of row numbers; just as wide."""


REQUIRED: tuple[str, ...] = ("tokens", "lengths", "positions", "io_tokens", "s_tokens", "pair_ids")
"""The attributes of ``TwoAnswerData``."""


def require_device(device: torch.device | str) -> None:
    """Refuse a device that PyTorch does not have here.

    Raises:
        ValueError: It has none such.
    """
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"PyTorch has no device {str(device)!r} here; "
            "take the model's own, data.to(model.cfg.device), or 'cpu'."
        ) from error


def gather_at_role(
    data: TwoAnswerData, values: Shaped[Tensor, "batch pos *rest"], role: str
) -> Shaped[Tensor, "batch *rest"]:
    """What ``values`` holds at a role's position in each prompt.

    Raises:
        ValueError: An unknown role, or another number of rows or positions than ``tokens``.
    """
    positions = positions_of(data, role)
    if values.ndim < 2 or values.shape[:2] != data.tokens.shape:
        raise ValueError(
            f"The values have shape {tuple(values.shape)}, but must begin with [batch, pos] = "
            f"{tuple(data.tokens.shape)} as data.tokens does"
            " (was BOS added or left out, or another dataset used?)."
        )
    if values.is_floating_point() and values.ndim > 2:
        _warn_of_left_padding(data, values)
    rows = torch.arange(len(data), device=values.device)
    return values[rows, positions.to(values.device)]


def _warn_of_left_padding(data: TwoAnswerData, values: Float[Tensor, "batch pos *rest"]) -> None:
    """Say so when values seem to be those of prompts that the tokenizer padded on the left.

    ``data.tokens`` are padded on the right whatever the tokenizer does, so that only a run on texts
    (``model(data.prompts)``) can go wrong. In a run on ``data.tokens``, prompts that begin alike
    have equal ones there, as long as nothing is edited.
    """
    side = getattr(getattr(data, "tokenizer", None), "padding_side", "right")
    if side != "left" or len(data.lengths.unique()) < 2:
        return
    first = min(4, values.shape[1])
    # Some of the numbers tell as much as all of them.
    start = values[:, :first].detach().flatten(2)[..., :256].float().cpu()
    tokens = data.tokens[:, :first].cpu()
    scale = start.std()
    for length in range(1, first + 1):
        _, group = tokens[:, :length].unique(dim=0, return_inverse=True)
        leader = torch.stack([(group == group[row]).nonzero()[0, 0] for row in range(len(group))])
        here = start[:, length - 1]
        if bool(((here - here[leader]).abs() > 0.1 * scale).any()):
            warnings.warn(
                "Prompts that begin alike have different values there, and this tokenizer pads on "
                "the left: if the run was on texts, roles stand elsewhere; run data.tokens, which "
                "are padded on the right.",
                stacklevel=3,
            )
            return


def positions_of(data: TwoAnswerData, role: str) -> Int[Tensor, " batch"]:
    """Where a role stands in each prompt.

    Raises:
        ValueError: The prompts have no such role.
    """
    try:
        return data.positions[role]
    except KeyError:
        raise ValueError(
            f"{role!r} is not a role of these prompts; use one of {', '.join(data.positions)}."
        ) from None


# --- what a dataset may know besides -------------------------------------------------------------


def has_bos(data: TwoAnswerData) -> bool:
    """Whether it says that BOS stands before each prompt."""
    return bool(getattr(data, "prepend_bos", False))


def text_of(data: TwoAnswerData, row: int) -> str:
    """A prompt's text, or the tokens of one that has none."""
    texts = getattr(data, "prompts", None)
    if texts is None:
        return f"tokens {data.tokens[row, : int(data.lengths[row])].tolist()}"
    return str(texts[row])


def templates_of(data: TwoAnswerData) -> list[str]:
    """The text of each prompt's template; where none are known, all prompts are of one."""
    texts = getattr(data, "templates", None)
    if texts is None:
        return [""] * len(data)
    return [texts[i] for i in template_ids_of(data).tolist()]


def template_ids_of(data: TwoAnswerData) -> Int[Tensor, " batch"]:
    """A number for each prompt's template; where none are known, all prompts are of one."""
    numbers: Tensor | None = getattr(data, "template_ids", None)
    return torch.zeros_like(data.lengths) if numbers is None else numbers


def orders_of(data: TwoAnswerData) -> list[str]:
    """``"ABBA"`` or ``"BABA"``; of prompts that know neither, their roles from left to right."""
    known = getattr(data, "orders", None)
    if known is not None:
        return list(known)
    roles = list(data.positions)
    places = torch.stack([data.positions[role] for role in roles], dim=1)
    order = places.argsort(dim=1, stable=True).tolist()
    return [", ".join(roles[i] for i in row) for row in order]


def clean_of(data: TwoAnswerData) -> TwoAnswerData:
    """The prompts that these are a counterfactual of; themselves, where they know of none."""
    return getattr(data, "clean", data)


def reference_for(data: TwoAnswerData, reference: TwoAnswerData | None) -> TwoAnswerData:
    """The reference that is given, or else the prompts with three other names, ``data.abc()``.

    Raises:
        ValueError: None is given, and the prompts cannot make one.
    """
    if reference is not None:
        return reference
    make = getattr(data, "abc", None)
    if make is None:
        raise ValueError(
            "These prompts make no counterfactual of their own, as an IOIDataset does by abc(); "
            "give other prompts, row by row, as reference=."
        )
    made: TwoAnswerData = make()
    return made
