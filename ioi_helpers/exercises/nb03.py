"""Checks for notebook 03, head decomposition.

They expect `exercises.use(model=model, demo=demo, many=many)`: the eight prompts of the demo, which
have one length, and sixty generated ones, which have not. Which head an exercise is about is found
here as in the notebook, so every truth is that of the model at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ioi_helpers import attribution, heads, metrics, patching
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.exercises.legacy import (
    Refused,
    Verdict,
    as_array,
    exercise,
    numeric,
    tensor_close,
)
from ioi_helpers.exercises.registry import Context
from ioi_helpers.names import head_name

Head = tuple[int, int]

TOKENS = ("original", "random", "inverted")  # rows of the signal table
LOOKS, MOVES = 0.25, 0.1  # what makes a head a messenger: attention, logits
NAMES = 60  # of exercise 03.5


# --- what the checks measure ----------------------------------------------------------------------


def _largest(values: Float[Tensor, "layer head"]) -> Head:
    return divmod(int(values.argmax()), values.shape[1])


def _effect(ctx: Context, site: str) -> Float[Tensor, "layer head"]:
    """Fraction of the demo's logit difference that patching `site` of a head restores."""
    return ctx.once(
        f"effect {site}",
        lambda: patching.patch_sweep(
            ctx.model, ctx.demo, ctx.demo.swap_subject(), site=site, progress=False
        ).fraction(),
    )


def _leftover(ctx: Context) -> Float[Tensor, "layer head"]:
    return _effect(ctx, "z") - _effect(ctx, "v") - _effect(ctx, "pattern")


def _cache(ctx: Context, what: str, data: IOIDataset) -> Any:
    return ctx.once(f"cache {what}", lambda: ctx.model.run_with_cache(data.tokens)[1])


def _writer(ctx: Context) -> Head:
    """The head of largest attribution on `many`."""
    return _largest(
        ctx.once("many attribution", lambda: attribution.head_attribution(ctx.model, ctx.many))
    )


def _copied(
    ctx: Context,
    at: Head,
    stream: Float[Tensor, "prompt d_model"],
    names: Tensor,
    *,
    top: int = 5,
    layer_norm: bool = True,
    sign: float = 1.0,
) -> float:
    """Share of prompts on which the head, reading `stream`, writes the name among the `top`."""
    layer, head = at
    block = ctx.model.blocks[layer]
    read = block.ln1(stream[None])[0] if layer_norm else stream
    value = read @ block.attn.W_V[head] + block.attn.b_V[head]
    written = ctx.model.ln_final((sign * (value @ block.attn.W_O[head]))[None])
    best = ctx.model.unembed(written)[0].topk(top).indices
    return float((best == names.to(best.device)[:, None]).any(dim=-1).float().mean())


def _pair_of_numbers(answer: Any) -> Any:
    """The answer as two numbers where it has that many, whatever its shape."""
    try:
        given = as_array(answer)
    except Refused:
        return answer
    return given.reshape(-1) if given.size == 2 else answer


# --- 03.1 -----------------------------------------------------------------------------------------


@exercise("03.1", title="What the parts leave over", difficulty="warm-up", minutes=5)
def _parts(answer: Any, ctx: Context) -> Verdict:
    z, v, pattern = (_effect(ctx, site) for site in ("z", "v", "pattern"))
    truth = _leftover(ctx)
    layer, head = _largest(truth.abs())
    return tensor_close(
        answer,
        truth,
        axes=("layer", "head"),
        absolute=1e-4,
        mistakes={
            "You took away the v effect only; the pattern effect is missing.": z - v,
            "You took away the pattern effect only; the v effect is missing.": z - pattern,
            "This is the sum of the two parts. What does the z effect have beyond it?": v + pattern,
            "These are absolute values. Whether the parts bring back more or less than the whole "
            "is the question, so keep the sign.": truth.abs(),
            "You took the difference of v and pattern away from z: both are to be subtracted.": (
                z - (v - pattern)
            ),
        },
        right=f"The largest leftover is {truth[layer, head]:.2f}, of L{layer}H{head}.",
    )


# --- 03.2 -----------------------------------------------------------------------------------------


@exercise("03.2", title="Look here, read there", difficulty="easy", minutes=10)
def _look_and_read(answer: Any, ctx: Context) -> Verdict:
    layer, head = _largest(_leftover(ctx).abs())
    clean = _cache(ctx, "demo", ctx.demo)
    corrupted = _cache(ctx, "demo corrupted", ctx.demo.swap_subject())

    def mix(looks: Any, reads: Any, position: int = -1) -> Tensor:
        weights = looks["pattern", layer][:, head, position]
        return torch.einsum("bk,bkd->bd", weights, reads["v", layer][:, :, head])

    s2 = int(ctx.demo.positions["S2"][0])
    return tensor_close(
        answer,
        mix(clean, corrupted),
        axes=("prompt", "d_head"),
        absolute=1e-3,
        mistakes={
            "You did it the other way round: corrupted pattern, clean values.": lambda: mix(
                corrupted, clean
            ),
            "This is the clean z: the values must come from the corrupted run.": lambda: mix(
                clean, clean
            ),
            "This is the corrupted z: the pattern must come from the clean run.": lambda: mix(
                corrupted, corrupted
            ),
            "This is the z at S2; END is asked for.": lambda: mix(clean, corrupted, s2),
            "You mixed with the attention that END receives, a column of the pattern; take END's "
            "row, [:, head, -1].": lambda: torch.einsum(
                "bk,bkd->bd",
                clean["pattern", layer][:, head, :, -1],
                corrupted["v", layer][:, :, head],
            ),
        },
        hint="Weights from cache, values from corrupted_cache, of head `entangled`.",
        right="It looks as in the clean run and finds what stands in the corrupted one.",
    )


# --- 03.3 -----------------------------------------------------------------------------------------


@exercise("03.3", title="A copying score by hand", difficulty="medium", minutes=15)
def _copying_score(answer: Any, ctx: Context) -> Verdict:
    many: IOIDataset = ctx.many
    scores = ctx.once("copying", lambda: heads.copying_scores(ctx.model, many))
    at = _largest(scores)
    run = _cache(ctx, "many", many)
    after = run["resid_post", 0]
    io, names = many.gather(after, "IO"), many.io_tokens
    embedded = many.gather(run["hook_embed"], "IO")
    before = many.gather(run["resid_pre", at[0]], "IO")

    def share(stream: Tensor = io, of: Tensor = names, **how: Any) -> Callable[[], float]:
        return lambda: _copied(ctx, at, stream, of, **how)

    truth = share()()
    return numeric(
        answer,
        truth,
        absolute=2e-3,
        mistakes={
            "You left out ln1: a head reads the stream through the LayerNorm of its block.": share(
                layer_norm=False
            ),
            "This is the share in which the name comes first; among the first five is asked.": (
                share(top=1)
            ),
            "You read the bare embedding; take the stream after block 0. (Or was the mean taken "
            "over all five places? `.any(dim=-1)` comes first.)": share(embedded),
            "You took the mean over the five places as well; `.any(dim=-1)` comes first.": truth
            / 5,
            "You read the stream before the head's own block; take the one after block 0.": share(
                before
            ),
            "You read at END; the head looks at IO.": share(many.gather(after, "END")),
            "You read at S1. IO is asked for.": share(many.gather(after, "S1"), many.s_tokens),
            "The sign is turned: this is the score for negative copying.": share(sign=-1.0),
            "This is the score over IO, S1 and S2 together; IO alone is asked for.": float(
                scores[at]
            ),
        },
        hint="State after block 0 at IO, ln1, W_V and b_V, W_O, ln_final, unembed, five largest.",
        right=f"{head_name(*at)} alone decides what to write once it looks at IO.",
    )


# --- 03.4 -----------------------------------------------------------------------------------------


def _looks_and_writes(ctx: Context, what: str, data: IOIDataset, role: str) -> tuple[Tensor, ...]:
    """Attention from END to the role, and what is written for the name there (per prompt)."""
    layer, head = _writer(ctx)
    run = _cache(ctx, what, data)
    rows, end = torch.arange(len(data)), data.positions["END"]
    looks = run["pattern", layer][rows, head, end, data.positions[role]]
    output = run["z", layer][rows, end, head] @ ctx.model.blocks[layer].attn.W_O[head]
    output = output / run["ln_final.hook_scale"][rows, end]
    return looks, (output * ctx.model.W_U[:, data.gather(data.tokens, role)].T).sum(dim=-1)


def _correlation(x: Tensor, y: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([x, y]))[0, 1])


@exercise("03.4", title="Where nobody is favoured", difficulty="medium", minutes=15)
def _nobody_favoured(answer: Any, ctx: Context) -> Verdict:
    abc = ctx.once("abc", lambda: ctx.many.abc())

    def pooled(what: str, data: IOIDataset, roles: Sequence[str]) -> Callable[[], float]:
        def compute() -> float:
            pairs = [_looks_and_writes(ctx, what, data, role) for role in roles]
            x, y = (torch.cat(both) for both in zip(*pairs, strict=True))
            return _correlation(x, y)

        return compute

    def mean_of_three() -> float:
        return sum(pooled("abc", abc, (role,))() for role in ("IO", "S1", "S2")) / 3

    layer, head = _writer(ctx)
    return numeric(
        answer,
        pooled("abc", abc, ("IO", "S1", "S2"))(),
        relative=1e-3,  # the mistakes below can come close
        absolute=1e-3,
        mistakes={
            "You used the clean prompts, where IO is favoured; use the ABC dataset.": pooled(
                "many", ctx.many, ("IO", "S1", "S2")
            ),
            "These are the clean prompts' IO and S, as in the figure; use the ABC dataset and its "
            "three names.": pooled("many", ctx.many, ("IO", "S1")),
            "The third name, at S2, is missing: 180 points.": pooled("abc", abc, ("IO", "S1")),
            "This is the correlation at IO alone; pool the names at IO, S1 and S2.": pooled(
                "abc", abc, ("IO",)
            ),
            "This is the mean of three correlations. Pool the points, then correlate once.": (
                mean_of_three
            ),
        },
        hint=f"180 points of L{layer}H{head}: attention to the name, logits written for it.",
        right="No name is favoured in these prompts, and looking varies by itself.",
    )


# --- 03.5 -----------------------------------------------------------------------------------------


@exercise("03.5", title="A matching score", difficulty="medium", minutes=15)
def _matching(answer: Any, ctx: Context) -> Verdict:
    model, many = ctx.model, ctx.many
    looks = ctx.once(
        "S2 to S1",
        lambda: heads.attention_by_role(model, many, query="S2", keys=("S1",))[..., 0],
    )
    layer, head = _largest(looks)

    def names_alone() -> Any:
        ids = torch.tensor([model.to_single_token(f" {n}") for n in many.name_pool[:NAMES]])
        start = torch.full_like(ids, model.tokenizer.bos_token_id)
        return model.run_with_cache(torch.stack([start, ids], dim=1).to(model.cfg.device))[1]

    run = ctx.once("names alone", names_alone)
    attn = model.blocks[layer].attn

    def scores(
        stream: Tensor | None = None, layer_norm: bool = True, biases: bool = True
    ) -> Float[Tensor, "asks answers"]:
        stream = run["resid_pre", layer][:, 1] if stream is None else stream
        read = model.blocks[layer].ln1(stream[None])[0] if layer_norm else stream
        queries = read @ attn.W_Q[head] + biases * attn.b_Q[head]
        return queries @ (read @ attn.W_K[head] + biases * attn.b_K[head]).T

    def share(found: Float[Tensor, "asks answers"], dim: int = 1) -> float:
        best = found.argmax(dim=dim)
        return float((best == torch.arange(len(best), device=best.device)).float().mean())

    twelve = slice(0, 12)
    return numeric(
        answer,
        share(scores()),
        absolute=2e-3,
        mistakes={
            "You looked for the largest score in each column (which query fits a key best). A "
            "query chooses among keys: go along the rows.": lambda: share(scores(), 0),
            "You left out ln1: queries and keys are read through the LayerNorm.": lambda: share(
                scores(layer_norm=False)
            ),
            "You left out the biases b_Q and b_K.": lambda: share(scores(biases=False)),
            "You read the bare embeddings; take the stream before the head's block.": lambda: share(
                scores(run["hook_embed"][:, 1])
            ),
            "You read the stream after the head's block; its queries and keys are made from the "
            "stream before it.": lambda: share(scores(run["resid_post", layer][:, 1])),
            "These are the twelve names of the figure; sixty are asked for.": lambda: share(
                scores()[twelve, twelve]
            ),
        },
        hint="match_scores(matcher, ...) of sixty names, then the largest of each row.",
        right=f"By chance it would be {1 / NAMES:.3f}.",
    )


# --- 03.6 -----------------------------------------------------------------------------------------


def _messengers(ctx: Context) -> list[Head]:
    """Heads that look from END at S2 and whose output at END moves the answer."""
    model, many = ctx.model, ctx.many
    both = patching.patch_sweep(
        model,
        many,
        many.flip(position=True, token="inverted"),
        axes=("layer", "head", "role"),
        roles=("END",),
        direction="noising",
        progress=False,
    )
    moved = both.mean()[..., 0] - both.clean.mean()
    looks = heads.attention_by_role(model, many, query="END", keys=("S2",))[..., 0]
    found = ((looks > LOOKS).cpu() & (moved.abs() > MOVES).cpu()).flatten().nonzero()[:, 0]
    return [divmod(int(i), model.cfg.n_heads) for i in found]


def _signals(ctx: Context) -> Float[Tensor, "token position"]:
    """Logit difference with the messengers' output at END from each of the six flipped datasets."""
    model, many = ctx.model, ctx.many
    messengers = _messengers(ctx)
    rows, end = torch.arange(len(many)), many.positions["END"]

    def cell(token: str, position: bool) -> float:
        run = model.run_with_cache(many.flip(position=position, token=token).tokens)[1]

        def replace(z: Tensor, hook: Any) -> Tensor:
            z = z.clone()
            for layer, head in messengers:
                if hook.name.startswith(f"blocks.{layer}."):
                    z[rows, end, head] = run[hook.name][rows, end, head]
            return z

        hooks = [(f"blocks.{a}.attn.hook_z", replace) for a in range(model.cfg.n_layers)]
        logits = model.run_with_hooks(many.tokens, fwd_hooks=hooks)
        return float(metrics.logit_diff(logits, many))

    return torch.tensor([[cell(t, p) for p in (False, True)] for t in TOKENS])


@exercise("03.6", title="How much of each?", difficulty="medium", minutes=15)
def _strengths(answer: Any, ctx: Context) -> Verdict:
    table = ctx.once("signals", lambda: _signals(ctx))
    by_position = (table[:, 0] - table[:, 1]).mean() / 2
    by_token = (table[0] - table[2]).sum() / 4
    truth = torch.stack([by_position, by_token])

    def fit(rows: list[tuple[float, float]]) -> Float[Tensor, " signal"]:
        """What least squares gives with these six rows (S_pos, S_tok)."""
        return torch.linalg.lstsq(torch.tensor(rows), table.cpu().flatten()[:, None]).solution[:, 0]

    steps = (1.0, 0.0, -1.0)
    zero_one = fit([(p, t) for t in steps for p in (1.0, 0.0)])
    two_to_zero = fit([(p, t) for t in (2.0, 1.0, 0.0) for p in (1.0, -1.0)])
    wrong_order = fit([(p, t) for p in (1.0, -1.0) for t in steps])
    verdict = tensor_close(
        _pair_of_numbers(answer),
        truth,
        axes=("signal",),
        relative=1e-3,  # one signal can be far weaker than the other, and must be right as well
        absolute=6e-3,  # two decimals
        mistakes={
            "The order is [a, b]: position first, then token.": truth.flip(0),
            "From the original to the inverted signal it is two steps, from +1 to -1: halve the "
            "differences.": 2 * truth,
            "For the position, halve the difference: it is two steps from +1 to -1.": (
                torch.stack([2 * by_position, by_token])
            ),
            "For the token, it is two steps from original to inverted: halve the difference of the "
            "rows' means.": torch.stack([by_position, 2 * by_token]),
            "S_pos is +1 and -1; you coded the inverted position as 0.": zero_one,
            "Look at S_tok: it is +1, 0 and -1 for the original, random and inverted token. (Coded "
            "as 2, 1 and 0 it needs a constant.)": two_to_zero,
            "These are the strengths of the published table; fit your own `signals`.": (
                torch.tensor([2.31, 0.99])
            ),
            "The rows of your matrix are not in the order of signals.flatten(): along a row of the "
            "table the position changes, not the token.": wrong_order,
            "The sign of the position is turned: the original one is +1.": torch.stack(
                [-by_position, by_token]
            ),
        },
        hint="Least squares on the six cells, S_pos = +1, -1 and S_tok = +1, 0, -1, no constant.",
    )
    if verdict.passed is not True:
        return verdict
    fitted = torch.tensor([[p * truth[0] + t * truth[1] for p in (1, -1)] for t in (1, 0, -1)])
    gap = float((fitted - table.cpu()).abs().max())
    return Verdict(True, f"The linear model misses no cell of the table by more than {gap:.2f}.")


# --- 03.7 -----------------------------------------------------------------------------------------


@exercise("03.7", title="Exchange what it reads", difficulty="hard", minutes=20)
def _exchange(answer: Any, ctx: Context) -> Verdict:
    model, demo = ctx.model, ctx.demo
    shares = ctx.once("demo attribution", lambda: attribution.head_attribution(model, demo))
    layer, head = _largest(shares)
    rows = torch.arange(len(demo))
    clean = ctx.once("demo diff", lambda: float(metrics.logit_diff(model(demo.tokens), demo)))

    def drop(
        one: str = "IO",
        other: str = "S1",
        *,
        site: str = "v",
        both_ways: bool = True,
        every_head: bool = False,
        zero: bool = False,
    ) -> Callable[[], float]:
        a, b = demo.positions[one], demo.positions[other]
        chosen = list(range(model.cfg.n_heads)) if every_head else [head]

        def exchange(values: Tensor, hook: Any) -> Tensor:
            changed = values.clone()
            for h in chosen:
                changed[rows, a, h] = 0 if zero else values[rows, b, h]
                if both_ways:
                    changed[rows, b, h] = 0 if zero else values[rows, a, h]
            return changed

        def compute() -> float:
            hooks = [(f"blocks.{layer}.attn.hook_{site}", exchange)]
            logits = model.run_with_hooks(demo.tokens, fwd_hooks=hooks)
            return clean - float(metrics.logit_diff(logits, demo))

        return compute

    truth = ctx.once("exchanged", drop())
    share = float(shares[layer, head])
    return numeric(
        answer,
        truth,
        relative=3e-3,  # a head that looks at one of the two only makes some mistakes come close
        absolute=2e-3,
        unit="logits",
        mistakes={
            "This is the logit difference after the exchange; its drop is asked for.": (
                clean - truth
            ),
            "Only IO's value was replaced and S1's kept, so both places hold S's: exchange them. "
            "(Was one of them overwritten before it was read?)": drop(both_ways=False),
            "Only S1's value was replaced and IO's kept, so both places hold IO's.": drop(
                "S1", "IO", both_ways=False
            ),
            "You set the values to zero; exchange them.": drop(zero=True),
            "You exchanged the keys: that changes where the head looks. Exchange the values.": drop(
                site="k"
            ),
            "You exchanged the values of every head in the layer; one head is asked for.": drop(
                every_head=True
            ),
            "You exchanged IO with S2; exchange it with S1.": drop("IO", "S2"),
            "You exchanged S1 with S2; exchange S1 with IO.": drop("S1", "S2"),
            "That is a fraction of the clean logit difference; the drop in logits is asked for.": (
                truth / clean
            ),
            "That is the head's direct attribution, measured without any exchange. Run the "
            "experiment.": share,
            "That is twice the direct attribution: a prediction. Run the experiment.": 2 * share,
        },
        hint="A hook on hook_v that exchanges the two positions' values of this head.",
        right=f"Twice its direct attribution would be {2 * share:.2f}.",
    )
