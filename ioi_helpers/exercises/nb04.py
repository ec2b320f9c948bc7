"""Keys to the exercises of notebook 04, induction scores.

They expect `exercises.use(model=model, many=many, half=half, words=words)`: IOI prompts; random
tokens ``[row, length]`` that are repeated once without BOS; and others, repeated with BOS, by which
the heads are picked.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ioi_helpers import heads
from ioi_helpers.ablation import ablate
from ioi_helpers.exercises.measure import Head, strongest
from ioi_helpers.exercises.registry import Context, exercise
from ioi_helpers.exercises.verdicts import Key, array, number
from ioi_helpers.metrics import mean_and_stderr

WEAK = 0.1  # a score below which a head is not called one of the kind

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


def _best_induction(ctx: Context) -> Head:
    """`best["induction"]` in the notebook: by the demo's score."""
    return strongest(_line(ctx, _length(ctx) - 1))


def _pair(ctx: Context) -> tuple[Head, Head]:
    """`writer` and `reader` in the notebook: by the robust scores."""

    def compute() -> tuple[Head, Head]:
        scores = heads.repeat_scores(ctx.model, ctx.words, progress=False)
        late, early = scores.induction.clone(), scores.previous_token.clone()
        late[0] = -1
        reader = strongest(late)
        early[reader[0] :] = -1
        return strongest(early), reader

    return ctx.once("writer and reader", compute)


# --- 04.1 A score by hand, with its place ---------------------------------------------------------


@exercise("04.1")
def _second_copy_score(ctx: Context) -> Key:
    layer, head = _best_induction(ctx)
    length = _length(ctx)
    next_head = (head + 1) % ctx.model.cfg.n_heads

    def along(first: int, last: int, offset: int, of: int = head, rows: Any = slice(None)) -> float:
        queries = torch.arange(first, last, device=ctx.half.device)
        return float(_patterns(ctx)[layer, rows, of][:, queries, queries - offset].mean())

    end = 2 * length
    truth = along(length, end, length - 1)
    return number(
        truth,
        relative=0.002,
        mistakes={
            "taking the demo's score, whose line also counts the last token of the first copy, "
            "where nothing is repeated yet": along(length - 1, end, length - 1),
            "taking the attention to the earlier copy itself (L tokens back), which is what a "
            "duplicate-token head does. An induction head looks at the token after it": along(
                length, end, length
            ),
            "looking two tokens after the earlier copy, one too far": along(
                length, end, length - 2
            ),
            "taking the attention to the previous token": along(length, end, 1),
            "leaving out the last entry of the line. The one outside the second copy is the first"
            "": along(length - 1, end - 1, length - 1),
            "averaging over the first row of tokens only": along(
                length, end, length - 1, rows=slice(1)
            ),
            "taking the next head of the layer": along(length, end, length - 1, next_head),
            "taking keys before queries, so that the line looks ahead, and nothing looks ahead. It "
            "is `[row, query, key]`": 0.0,
            "taking the sum over the queries, not their mean": truth * length,
            "averaging the whole pattern, not the line of induction": float(
                _patterns(ctx)[layer, :, head].mean()
            ),
        },
        hint="The queries are those from length to 2 * length - 1, each with one key.",
        right="Only tokens that can know are counted."
        if truth > WEAK
        else "Only tokens that can know are counted; with such a score, little above chance, the "
        "best head of this model is no induction head.",
    )


# --- 04.2 Chance ----------------------------------------------------------------------------------


@exercise("04.2")
def _chance(ctx: Context) -> Key:
    length = _length(ctx)
    end = 2 * length

    def even(first: int, last: int, more: int = 1) -> float:
        return float((1 / (torch.arange(first, last, dtype=torch.float64) + more)).mean())

    truth = even(length - 1, end)
    return number(
        truth,
        relative=0.002,
        mistakes={
            "dividing 1 by 2L, which would be right for a head that can look at all tokens. One "
            "that looks back only has q + 1 of them": 1 / end,
            "dividing 1 by L, the chance at the very start of the line. Further on there are more "
            "tokens to spread over": 1 / length,
            "averaging over all positions. The induction line begins at query L - 1": even(0, end),
            "leaving out the first entry of the line, query L - 1, which the demo's definition "
            "counts": even(length, end),
            "counting q tokens at position q. There are q + 1, as the token sees itself too": even(
                length - 1, end, 0
            ),
            "counting a BOS in front. The demo has no BOS; the first token is at position 0": even(
                length - 1, end, 2
            ),
            "taking the sum over the line, not its mean": truth * (length + 1),
            "taking chance for the previous-token line, which begins at query 1": even(1, end),
            "dividing 1 by the mean of q + 1, not averaging 1 / (q + 1)": 1
            / float((torch.arange(length - 1, end) + 1.0).mean()),
        },
        right=f"A score means something only beside it: {truth:.4f}.",
    )


# --- 04.3 The price of a head ---------------------------------------------------------------------


@exercise("04.3")
def _price(ctx: Context) -> Key:
    layer, head = _best_induction(ctx)
    tokens, length = _tokens(ctx), _length(ctx)

    def losses(
        ablated: slice | None, ahead: int = 1, text: Int[Tensor, "row pos"] = tokens
    ) -> Float[Tensor, "row predicted"]:
        def remove(z: Tensor, hook: Any) -> Tensor:
            z = z.clone()
            z[:, ablated, head] = 0
            return z

        hooks = [] if ablated is None else [(f"blocks.{layer}.attn.hook_z", remove)]
        log_p = ctx.model.run_with_hooks(text, fwd_hooks=hooks).log_softmax(dim=-1)
        return -log_p[:, : text.shape[1] - ahead].gather(2, text[:, ahead:, None])[..., 0]

    whole, without = losses(None), losses(slice(None))
    change = without - whole
    known = change[:, length:]
    second_only = losses(slice(length, None)) - whole
    unshifted = losses(slice(None), ahead=0) - losses(None, ahead=0)
    start = torch.full_like(tokens[:, :1], ctx.model.tokenizer.bos_token_id or 0)
    with_bos = torch.cat([start, tokens], dim=1)
    started = losses(slice(None), text=with_bos) - losses(None, text=with_bos)
    return number(
        float(known.mean()),
        absolute=3e-4,
        error=mean_and_stderr(known.mean(dim=1)).stderr,
        mistakes={
            "averaging over the first copy, where there is nothing to copy": float(
                change[:, : length - 1].mean()
            ),
            "averaging over both copies; only the second one can be known": float(change.mean()),
            "including the first token of the second copy, which nobody can know": float(
                change[:, length - 1 :].mean()
            ),
            "ablating the head in the second copy only, not everywhere": float(
                second_only[:, length:].mean()
            ),
            "putting BOS in front, where the demo has none": float(started[:, length + 1 :].mean()),
            "taking the sum over tokens, not their mean": float(known.mean(0).sum()),
            "reading the logits at q for the token at q. They predict the token at q + 1": float(
                unshifted[:, length + 1 :].mean()
            ),
            "taking the loss without the head. Please subtract the loss of the whole model": float(
                without[:, length:].mean()
            ),
            "changing nothing. Does your hook return the changed z?": 0.0,
        },
        unit="nats",
        right="Measured on the same tokens, with and without the head.",
    )


# --- 04.4 A composition score by hand -------------------------------------------------------------


@exercise("04.4")
def _composition(ctx: Context) -> Key:
    writer, reader = _pair(ctx)
    model = ctx.model
    ov = model.W_V[writer] @ model.W_O[writer]
    qk = model.W_Q[reader] @ model.W_K[reader].T
    own = model.W_V[reader] @ model.W_O[reader]
    other_qk = model.W_Q[writer] @ model.W_K[writer].T
    product = ov @ qk.T
    score = float(product.norm() / (ov.norm() * qk.norm()))
    top, top_ov, top_qk = (float(torch.linalg.matrix_norm(m, 2)) for m in (product, ov, qk))
    chance = float(heads.composition_chance(model))
    return number(
        score,
        relative=0.005,
        mistakes={
            "taking Q-composition: what the queries read. Keys are on the other side of B": float(
                (ov @ qk).norm() / (ov.norm() * qk.norm())
            ),
            "taking V-composition: what the reader's values read": float(
                (ov @ own).norm() / (ov.norm() * own.norm())
            ),
            "taking writer and reader exchanged; the writer is the earlier head": float(
                (own @ other_qk.T).norm() / (own.norm() * other_qk.norm())
            ),
            "taking the norm of the product, not divided by the norms of A and B": float(
                product.norm()
            ),
            "taking the square. The norm is the root of the sum of squares": score**2,
            "putting the reader before the writer in the product": float(
                (qk @ ov).norm() / (ov.norm() * qk.norm())
            ),
            "taking the spectral norm (the largest singular value) of the product alone": (
                top / float(ov.norm() * qk.norm())
            ),
            "taking spectral norms throughout, not Frobenius'": top / (top_ov * top_qk),
            "subtracting the chance level": score - chance,
        },
        hint="A is W_V W_O of the writer, B is W_Q W_K' of the reader, and keys are B's columns.",
        right="The same as heads.composition_scores(model, 'K').",
    )


# --- 04.5 Cut the key path ------------------------------------------------------------------------


def _with_cut(ctx: Context, sides: str, *, frozen: bool = False) -> Float[Tensor, " row"]:
    """The reader's score by the demo's definition without the writer's output in some inputs.

    LayerNorm's scale is computed anew, or ``frozen`` at that of the whole stream.
    """
    (layer, head), reader = _pair(ctx)
    model, block = ctx.model, ctx.model.blocks[reader[0]]
    names = [f"blocks.{layer}.attn.hook_z", f"blocks.{reader[0]}.hook_resid_pre"]
    _, cache = model.run_with_cache(_tokens(ctx), names_filter=names)
    z, stream = (cache[name] for name in names)
    short = stream - z[:, :, head] @ model.W_O[layer, head]
    shrink = short.std(dim=-1, correction=0) / stream.std(dim=-1, correction=0)
    inputs = block.ln1(short) * (shrink[..., None] if frozen else 1.0)
    kept: dict[str, Tensor] = {}

    def put(side: str) -> Any:
        def change(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            weight, bias = getattr(model, f"W_{side}"), getattr(model, f"b_{side}")
            value[:, :, reader[1]] = inputs @ weight[reader] + bias[reader]
            return value

        return change

    def read(pattern: Tensor, hook: Any) -> None:
        lines = pattern[:, reader[1]].diagonal(1 - _length(ctx), dim1=-2, dim2=-1)
        kept["score"] = lines.mean(dim=-1)

    attn = f"blocks.{reader[0]}.attn.hook_"
    hooks = [(attn + side.lower(), put(side)) for side in sides]
    model.run_with_hooks(_tokens(ctx), fwd_hooks=[*hooks, (attn + "pattern", read)])
    return kept["score"]


@exercise("04.5")
def _cut(ctx: Context) -> Key:
    writer, reader = _pair(ctx)
    whole = _with_cut(ctx, "")
    changes = _with_cut(ctx, "K") - whole
    old, change = float(whole.mean()), float(changes.mean())
    with ablate(ctx.model, writer, "zero"):
        without = heads.repeat_scores(ctx.model, ctx.half, definition="demo")
    return number(
        change,
        relative=0.02,  # with the line's first entry or without
        absolute=2e-6,
        error=mean_and_stderr(changes).stderr,
        mistakes={
            "taking the score that remains, not its change, new minus old": old + change,
            "taking the score before the cut": old,
            "taking the writer's output from the queries, not from the keys": float(
                (_with_cut(ctx, "Q") - whole).mean()
            ),
            "taking the writer's output from queries and keys; only the keys are asked for": float(
                (_with_cut(ctx, "QK") - whole).mean()
            ),
            "having the writer ablated altogether. The queries, the values and all other heads "
            "should go on reading it": float(without.induction[reader]) - old,
            "keeping LayerNorm's scale. If the scale was kept, let `ln1` compute it anew": float(
                (_with_cut(ctx, "K", frozen=True) - whole).mean()
            ),
            "changing nothing. Nothing changed if the hook does not return the new keys; only keys "
            "and queries move the pattern": 0.0,
            "taking a ratio, not the difference of the two scores": change / max(old, 1e-9),
        },
        right=f"The score was {old:.2f}.",
    )


# --- 04.6 From positions alone --------------------------------------------------------------------


@exercise("04.6")
def _from_weights(ctx: Context) -> Key:
    positions = int(ctx.words.shape[1])
    patterns = heads.positional_patterns(ctx.model, positions)

    def line(offset: int) -> Float[Tensor, "layer head"]:
        return patterns.diagonal(offset, dim1=-2, dim2=-1).mean(dim=-1)

    truth = line(-1)
    return array(
        truth,
        ("layer", "head"),
        mistakes={
            "counting the first position, which has no previous one": truth
            * (positions - 1)
            / positions,
            "taking the line one above the diagonal. Nothing looks ahead: queries come before "
            "keys, so one position back is offset -1": line(1),
            "taking how much each head looks at its own position": line(0),
            "taking how much each head looks two positions back": line(-2),
            "taking how much each head looks at the first position": patterns[..., 1:, 0].mean(
                dim=-1
            ),
            "taking the score on random tokens; here only the weights are asked": _line(ctx, 1),
        },
        relative=0.005,
        hint="Take the mean of the line one below the diagonal for each head.",
        right="Found from weights alone.",
    )
