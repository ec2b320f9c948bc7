"""Prompts in batches that fit into memory, similar lengths together, and results back in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol, TypedDict, TypeVar, Unpack

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.dataset import TwoAnswerData

DEFAULT_MEMORY = 2**30
"""Bytes that a run may use for activations, apart from the model: 1 GiB."""
MOST_TOKENS = 1024
"""Tokens in a batch at most: 4096 took 15 to 30 % longer, on `ioi-mini` and at GPT-2 small's shape,
as what is computed leaves the processor's cache."""

Hook = tuple[str, Callable[..., Any]]
"""A hook's name and function, as ``model.hooks(fwd_hooks=...)`` takes them."""


class EditHooks(NamedTuple):
    """What makes an edit, and what then checks that it arrived."""

    write: list[Hook]
    check: list[Hook]
    """Put on after all that write, so that they see what other edits leave."""


class Edit(Protocol):
    """Something that can be put on a model for a run over certain prompts."""

    def take(self, rows: Int[Tensor, " rows"]) -> Edit:
        """The edit for some of the prompts only."""

    def hooks(self, model: TransformerBridge) -> EditHooks:
        """The forward hooks that make the edit and check it."""


def hooks_of(model: TransformerBridge, edits: Sequence[Edit]) -> list[Hook]:
    """All hooks of some edits, those that check behind those that write."""
    made = [one.hooks(model) for one in edits]
    return [hook for one in made for hook in one.write] + [
        hook for one in made for hook in one.check
    ]


def require_edits_for(edits: Any, n: int) -> Sequence[Edit]:
    """Refuse what is no list of edits, and an edit that was made for other prompts.

    A shorter edit would miss rows, and a longer one would put into row i what was meant for
    another prompt.
    """
    if not isinstance(edits, Sequence):
        raise ValueError("Edits are given as a list: [edit], also where there is one.")
    for one in edits:
        made_for = getattr(one, "positions", None)
        if made_for is not None and len(made_for) != n:
            raise ValueError(
                f"The edit was made for {len(made_for)} prompts, but there are {n}; make it for "
                "the same prompts."
            )
    return edits


Read = TypeVar("Read", Tensor, dict[Any, Tensor])
Data = TypeVar("Data", bound=TwoAnswerData)
Item = TypeVar("Item")


class BatchSettings(TypedDict, total=False):
    """What :func:`run_rows_in_batches` can be told, with its defaults."""

    edits: Sequence[Edit]
    memory: int
    progress: bool
    upto: Int[Tensor, " batch"] | None
    kept: int
    logits: int
    dim: int
    what: str


def prompts_at_once(
    model: TransformerBridge, width: int, memory: int, *, kept: int = 0, logits: int = 1
) -> int:
    """How many prompts can be run together.

    Args:
        width: Positions in the longest prompt.
        memory: Bytes that the run may use.
        kept: Numbers that are kept of each prompt until the run is over.
        logits: Positions of each prompt whose logits are computed, times the copies made of them.

    Raises:
        ValueError: ``memory`` is not positive.
    """
    if memory < 1:
        raise ValueError(f"memory must be a positive number of bytes, not {memory}.")
    cfg = model.cfg
    d_mlp = getattr(cfg, "d_mlp", None) or 4 * cfg.d_model
    # A block at work: the stream and its norm, q, k, v and z; the MLP's hidden layer before and
    # after its activation function; attention scores and weights with the masks.
    block = width * (16 * cfg.d_model + 3 * d_mlp) + 4 * cfg.n_heads * width**2
    numbers = block + kept + 2 * logits * cfg.d_vocab
    size = model.W_E.element_size()
    return max(1, min(memory // (numbers * size), MOST_TOKENS // width))


_bars_shown = ContextVar("_bars_shown", default=True)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Within it no run shows a bar, whatever it was told: for answers of one line."""
    token = _bars_shown.set(False)
    try:
        yield
    finally:
        _bars_shown.reset(token)


def progress_bar(
    what: str, items: Iterable[Item] | None = None, *, show: bool = True, total: int | None = None
) -> tqdm[Item]:
    """A bar that counts something, shown only once it has taken two seconds."""
    hidden = not (show and _bars_shown.get())
    return tqdm(items, desc=what, total=total, disable=hidden, leave=False, delay=2)


def in_parts(
    lengths: Int[Tensor, " batch"],
    at_once: int,
    *,
    progress: bool = True,
    what: str = "prompts",
) -> Iterator[Int[Tensor, " rows"]]:
    """Row numbers in parts of at most ``at_once``, with a bar if it takes long.

    Rows that are read up to about the same position come together, so that little of what is run
    is padding; where everything fits into one part the order is kept.
    """
    rows = torch.arange(len(lengths))
    if len(rows) > at_once:
        rows = lengths.cpu().argsort(stable=True)
    starts = range(0, len(rows), at_once)
    for start in progress_bar(what, starts, show=progress and len(starts) > 1):
        yield rows[start : start + at_once]


def in_order(parts: Sequence[Tensor], rows: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Join what came of :func:`in_parts`, in the rows' own order."""
    joined = torch.cat(list(parts), dim=dim)
    return joined.index_select(dim, torch.cat(list(rows)).argsort().to(joined.device))


def run_in_batches(
    model: TransformerBridge,
    data: Data,
    read: Callable[[Data], Read],
    **settings: Unpack[BatchSettings],
) -> Read:
    """Call ``read`` on part after part of the prompts, with edits on, and join what it returns.

    ::

        def read(part):                                        # one run of the model
            return model(part.tokens)[:, 0]

        first_logits = run_in_batches(model, data, read)

    Args:
        model, data: The model and all the prompts that the edits were made for.
        read: From some of the prompts to a tensor, or a dictionary of tensors. It must run the
            model on all of them at once.
        settings: Of :func:`run_rows_in_batches`.

    Raises:
        ValueError: An edit for another number of prompts, or ``memory`` is not positive.
    """
    return run_rows_in_batches(model, data, lambda part, rows: read(part), **settings)


def run_rows_in_batches(
    model: TransformerBridge,
    data: Data,
    read: Callable[[Data, Int[Tensor, " rows"]], Read],
    *,
    edits: Sequence[Edit] = (),
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
    upto: Int[Tensor, " batch"] | None = None,
    kept: int = 0,
    logits: int = 1,
    dim: int = 0,
    what: str = "prompts",
) -> Read:
    """As :func:`run_in_batches`; ``read`` is told, too, which rows of the data its part is.

    Args:
        model, data, read: As there.
        edits: What is put on the model meanwhile, such as
            :func:`~ioi_helpers.edits.residual_edit` makes; each for these prompts.
        memory: Bytes that the run may use; more prompts than fit are run in parts, prompts of
            similar length together. The result is in the order of the prompts.
        progress: Show a bar where there is something to wait for.
        upto: The last position of each prompt that is run, for sorting; by default its last.
        kept, logits: As for :func:`prompts_at_once`.
        dim: The axis of the prompts in what ``read`` returns.
        what: What the bar counts.
    """
    edits = require_edits_for(edits, len(data))
    upto = data.lengths - 1 if upto is None else upto
    at_once = prompts_at_once(model, int(upto.max()) + 1, memory, kept=kept, logits=logits)
    parts: list[Any] = []
    order: list[Tensor] = []
    for rows in in_parts(upto, at_once, progress=progress, what=what):
        with model.hooks(fwd_hooks=hooks_of(model, [one.take(rows) for one in edits])):
            parts.append(read(data[rows], rows))
        order.append(rows)
    joined: Any = (
        in_order(parts, order, dim)
        if isinstance(parts[0], Tensor)
        else {key: in_order([part[key] for part in parts], order, dim) for key in parts[0]}
    )
    return joined
