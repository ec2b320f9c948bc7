"""Checks for notebook 04, induction scores.

They expect `exercises.use(model=model, many=many, half=half)`: IOI prompts, and random tokens
``[row, length]`` that are repeated once without BOS. Every truth is recomputed on the model at
hand, and so is the value that each known mistake leads to there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ioi_helpers import heads
from ioi_helpers.ablation import ablate
from ioi_helpers.exercises.legacy import Verdict, exercise, numeric, tensor_close
from ioi_helpers.exercises.registry import Context

POSITIONS = 50  # in exercise 04.6

Place = tuple[int, int]


# --- what the checks measure ----------------------------------------------------------------------


def _length(ctx: Context) -> int:
    return int(ctx.half.shape[1])


def _tokens(ctx: Context) -> Tensor:
    return torch.cat([ctx.half, ctx.half], dim=1)


def _patterns(ctx: Context) -> Float[Tensor, "layer row head query key"]:
    def compute() -> Tensor:
        _, cache = ctx.model.run_with_cache(
            _tokens(ctx), names_filter=lambda name: name.endswith("hook_pattern")
        )
        return torch.stack([cache["pattern", layer] for layer in range(ctx.model.cfg.n_layers)])

    return ctx.once("patterns", compute)


def _line(ctx: Context, offset: int) -> Float[Tensor, "layer head"]:
    """The demo's score: mean attention so many tokens back."""
    lines = _patterns(ctx).diagonal(-offset, dim1=-2, dim2=-1)
    return lines.mean(dim=(1, 3))


def _strongest(values: Float[Tensor, "layer head"]) -> Place:
    return divmod(int(values.argmax()), values.shape[1])  # type: ignore[return-value]


def _best_induction(ctx: Context) -> Place:
    """`best["induction"]` in the notebook: by the demo's score."""
    return _strongest(_line(ctx, _length(ctx) - 1))


def _pair(ctx: Context) -> tuple[Place, Place]:
    """`writer` and `reader` in the notebook: by the robust scores."""

    def compute() -> tuple[Place, Place]:
        scores = heads.repeat_scores(ctx.model)
        late, early = scores.induction.clone(), scores.previous_token.clone()
        late[0] = -1
        reader = _strongest(late)
        early[reader[0] :] = -1
        return _strongest(early), reader

    return ctx.once("writer and reader", compute)


# --- 04.1 -----------------------------------------------------------------------------------------


@exercise("04.1", title="A score by hand, with its place", difficulty="warm-up", minutes=10)
def _second_copy_score(answer: Any, ctx: Context) -> Verdict:
    layer, head = _best_induction(ctx)
    length = _length(ctx)
    pattern = _patterns(ctx)[layer, :, head]

    def along(first: int, last: int, offset: int) -> float:
        queries = torch.arange(first, last, device=pattern.device)
        return float(pattern[:, queries, queries - offset].mean())

    truth = along(length, 2 * length, length - 1)
    first_row = pattern[0].diagonal(1 - length)[1:]
    return numeric(
        answer,
        truth,
        relative=0.002,
        mistakes={
            "This is the demo's score: its line also counts the last token of the first copy, "
            "where nothing is repeated yet.": along(length - 1, 2 * length, length - 1),
            "This is the attention to the earlier copy itself (L tokens back), which is what a "
            "duplicate-token head does; an induction head looks at the token after it.": along(
                length, 2 * length, length
            ),
            "This is the attention to two tokens after the earlier copy: one too far.": along(
                length, 2 * length, length - 2
            ),
            "This is the attention to the previous token.": along(length, 2 * length, 1),
            "This leaves out the last entry of the line; the one outside the second copy is the "
            "first.": along(length - 1, 2 * length - 1, length - 1),
            "This is the first row of tokens only; average over all rows.": float(first_row.mean()),
            "Nothing looks ahead, so this is zero: queries come before keys in "
            "`[row, query, key]`.": 0.0,
            "This is a sum where a mean over the queries is due.": truth * length,
            "This is the mean over the whole pattern; only the line of the induction pattern "
            "counts.": float(pattern.mean()),
        },
        hint="The queries are those from length to 2 * length - 1, each with one key.",
        right="Only tokens that can know are counted.",
    )


# --- 04.2 -----------------------------------------------------------------------------------------


@exercise("04.2", title="Chance", difficulty="easy", minutes=10)
def _chance(answer: Any, ctx: Context) -> Verdict:
    length = _length(ctx)

    def even(first: int, last: int, more: int = 1) -> float:
        return float((1 / (torch.arange(first, last, dtype=torch.float64) + more)).mean())

    truth = even(length - 1, 2 * length)
    return numeric(
        answer,
        truth,
        relative=0.002,
        mistakes={
            "1 / (2L) would be right for a head that can look at all tokens; one that looks back "
            "only has q + 1 of them.": 1 / (2 * length),
            "1 / L is the chance at the very start of the line; further on there are more tokens "
            "to spread over.": 1 / length,
            "This is the mean over all positions; the induction line begins at query L - 1.": even(
                0, 2 * length
            ),
            "This leaves out the first entry of the line, query L - 1, which the demo's definition "
            "counts.": even(length, 2 * length),
            "At position q, counted from 0, there are q + 1 tokens to look at: the token sees "
            "itself too.": even(length - 1, 2 * length, 0),
            "The demo has no BOS in front; the first token is at position 0.": even(
                length - 1, 2 * length, 2
            ),
            "This is a sum where the mean over the line is due.": truth * (length + 1),
            "This is chance for the previous-token line, which begins at query 1.": even(
                1, 2 * length
            ),
            "The mean of 1 / (q + 1) is not 1 over the mean of q + 1.": 1
            / float((torch.arange(length - 1, 2 * length) + 1.0).mean()),
        },
        right=f"A score means something only beside it: {truth:.4f}.",
    )


# --- 04.3 -----------------------------------------------------------------------------------------


@exercise("04.3", title="The price of a head", difficulty="easy", minutes=10)
def _price(answer: Any, ctx: Context) -> Verdict:
    layer, head = _best_induction(ctx)
    tokens, length = _tokens(ctx), _length(ctx)

    def losses(silent: Place | None, ahead: int = 1) -> Float[Tensor, "row predicted"]:
        def silence(z: Tensor, hook: Any) -> Tensor:
            z = z.clone()
            z[:, :, head] = 0
            return z

        hooks = [] if silent is None else [(f"blocks.{layer}.attn.hook_z", silence)]
        log_p = ctx.model.run_with_hooks(tokens, fwd_hooks=hooks).log_softmax(dim=-1)
        return -log_p[:, : 2 * length - ahead].gather(2, tokens[:, ahead:, None])[..., 0]

    def unshifted() -> float:
        both = losses((layer, head), ahead=0) - losses(None, ahead=0)
        return float(both[:, length + 1 :].mean())

    change = ctx.once("change of the losses", lambda: losses((layer, head)) - losses(None))
    silenced = ctx.once("silenced losses", lambda: losses((layer, head)))
    known = change[:, length:]
    return numeric(
        answer,
        float(known.mean()),
        absolute=3e-4,
        mistakes={
            "This is the change on the first copy, where there is nothing to copy.": float(
                change[:, : length - 1].mean()
            ),
            "This is the change over both copies; only the second one can be known.": float(
                change.mean()
            ),
            "This includes the first token of the second copy, which nobody can know.": float(
                change[:, length - 1 :].mean()
            ),
            "This is a sum over tokens where the mean is due.": float(known.mean(0).sum()),
            "The logits at position q predict the token at q + 1, not the one at q.": unshifted,
            "This is the loss with the head silenced; subtract the loss with nothing silenced.": (
                float(silenced[:, length:].mean())
            ),
        },
        unit="nats",
        right="Measured on the same tokens, with and without the head.",
    )


# --- 04.4 -----------------------------------------------------------------------------------------


@exercise("04.4", title="A composition score by hand", difficulty="medium", minutes=15)
def _composition(answer: Any, ctx: Context) -> Verdict:
    writer, reader = _pair(ctx)
    model = ctx.model
    ov = model.W_V[writer] @ model.W_O[writer]
    qk = model.W_Q[reader] @ model.W_K[reader].T
    own = model.W_V[reader] @ model.W_O[reader]
    sizes = ov.norm() * qk.norm()
    product = ov @ qk.T
    other_qk = model.W_Q[writer] @ model.W_K[writer].T
    return numeric(
        answer,
        float(product.norm() / sizes),
        relative=0.005,
        mistakes={
            "This is Q-composition: what the queries read. Keys are on the other side of B.": float(
                (ov @ qk).norm() / sizes
            ),
            "This is V-composition: what the reader's values read.": float(
                (ov @ own).norm() / (ov.norm() * own.norm())
            ),
            "Writer and reader are exchanged: the writer is the earlier head.": float(
                (own @ other_qk.T).norm() / (own.norm() * other_qk.norm())
            ),
            "The norm of the product was not divided by the norms of A and B.": float(
                product.norm()
            ),
            "This is the square: take the root of the sum of squares.": float(
                (product.norm() / sizes) ** 2
            ),
            "Here the reader stands before the writer in the product.": float(
                (qk @ ov).norm() / sizes
            ),
            "This is the spectral norm (the largest singular value) of one of them; the score uses "
            "the Frobenius norm throughout.": float(
                torch.linalg.matrix_norm(product, 2) / (ov.norm() * qk.norm())
            ),
        },
        hint="A is W_V W_O of the writer, B is W_Q W_K' of the reader, and keys are B's columns.",
        right="The same as heads.composition_scores(model, 'K').",
    )


# --- 04.5 -----------------------------------------------------------------------------------------


def _with_cut(ctx: Context, sides: str, *, frozen: bool = False) -> float:
    """The reader's score by the demo's definition without the writer's output in some inputs.

    LayerNorm's scale is computed anew, or ``frozen`` at that of the whole stream.
    """
    writer, reader = _pair(ctx)
    model = ctx.model
    kept: dict[str, Tensor] = {}

    def output(z: Tensor, hook: Any) -> None:
        kept["output"] = z[:, :, writer[1]] @ model.W_O[writer]

    def stream(x: Tensor, hook: Any) -> None:
        norm = model.blocks[reader[0]].ln1
        kept["input"] = norm(x - kept["output"])
        if frozen:
            old, new = (each.std(dim=-1, correction=0) for each in (x, x - kept["output"]))
            kept["input"] = kept["input"] * (new / old)[..., None]

    def put(value: Tensor, hook: Any, side: str) -> Tensor:
        weight, bias = getattr(model, f"W_{side}"), getattr(model, f"b_{side}")
        value = value.clone()
        value[:, :, reader[1]] = kept["input"] @ weight[reader] + bias[reader]
        return value

    def read(pattern: Tensor, hook: Any) -> None:
        lines = pattern[:, reader[1]].diagonal(1 - _length(ctx), dim1=-2, dim2=-1)
        kept["score"] = lines.mean()

    block = f"blocks.{reader[0]}."
    hooks: list[tuple[str, Callable[..., Any]]] = [
        (f"blocks.{writer[0]}.attn.hook_z", output),
        (block + "hook_resid_pre", stream),
        *((block + f"attn.hook_{side.lower()}", partial(put, side=side)) for side in sides),
        (block + "attn.hook_pattern", read),
    ]
    model.run_with_hooks(_tokens(ctx), fwd_hooks=hooks)
    return float(kept["score"])


@exercise("04.5", title="Cut the key path", difficulty="hard", minutes=20)
def _cut(answer: Any, ctx: Context) -> Verdict:
    writer, reader = _pair(ctx)
    old = float(_line(ctx, _length(ctx) - 1)[reader])
    new = ctx.once("cut from keys", lambda: _with_cut(ctx, "K"))

    def silenced() -> float:
        with ablate(ctx.model, writer, "zero"):
            scores = heads.repeat_scores(ctx.model, ctx.half, definition="demo")
        return float(scores.induction[reader]) - old

    return numeric(
        answer,
        new - old,
        relative=0.02,  # with the line's first entry or without
        absolute=2e-6,
        mistakes={
            "This is the score that remains; answer with the change, new minus old.": new,
            "This is the score before the cut.": old,
            "The writer's output was taken from the queries, not from the keys.": lambda: (
                _with_cut(ctx, "Q") - old
            ),
            "The writer's output was taken from queries and keys; only the keys are asked for.": (
                lambda: _with_cut(ctx, "QK") - old
            ),
            "Here the writer is silenced altogether; the queries, the values and all other heads "
            "should go on reading it.": silenced,
            "LayerNorm's scale was kept; let `ln1` compute it anew.": lambda: (
                _with_cut(ctx, "K", frozen=True) - old
            ),
            "Nothing changed: a hook has to return the new keys, and only keys and queries move "
            "the pattern.": 0.0,
            "This is a ratio; answer with the difference of the two scores.": (new - old)
            / max(old, 1e-9),
        },
        right="That much hangs on this one path.",
    )


# --- 04.6 -----------------------------------------------------------------------------------------


@exercise("04.6", title="Without running the model", difficulty="medium", minutes=15)
def _from_weights(answer: Any, ctx: Context) -> Verdict:
    patterns = ctx.once(
        "positional patterns", lambda: heads.positional_patterns(ctx.model, POSITIONS)
    )

    def line(offset: int) -> Float[Tensor, "layer head"]:
        return patterns.diagonal(offset, dim1=-2, dim2=-1).mean(dim=-1)

    truth = line(-1)
    return tensor_close(
        answer,
        truth,
        axes=("layer", "head"),
        mistakes={
            "The first position has no previous one: the mean is over the others.": truth
            * (POSITIONS - 1)
            / POSITIONS,
            "This is the line one above the diagonal; nothing looks ahead. Queries come before "
            "keys, so one position back is offset -1.": line(1),
            "This is how much each head looks at its own position.": line(0),
            "This is how much each head looks two positions back.": line(-2),
            "This is how much each head looks at the first position.": patterns[..., 1:, 0].mean(
                dim=-1
            ),
            "This is the score on random tokens; here only the weights are asked.": lambda: _line(
                ctx, 1
            ),
        },
        relative=0.005,
        hint="Take the mean of the line one below the diagonal for each head.",
        right="Found from weights alone.",
    )
