"""Keys to the exercises of notebook 03, head decomposition.

They expect `exercises.use(model=model, demo=demo, many=many)`: the eight prompts of the demo, which
have one length, and forty generated ones, which have not. Which head an exercise is about is found
here as in the notebook, so every truth is that of the model at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ioi_helpers import heads, patching
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.exercises import measure
from ioi_helpers.exercises.measure import Head
from ioi_helpers.exercises.registry import Context, exercise
from ioi_helpers.exercises.verdicts import Key, array, number
from ioi_helpers.names import head_name

TOKENS = ("original", "random", "inverted")  # rows of the signal table
PUBLISHED = (2.31, 0.99)  # strengths of the signals in the published table
LOOKS, MOVES = 0.25, 0.1  # what makes a head a messenger: attention, logits
NAMES = 60  # of exercise 03.5
CHANCE = 3.5 / NAMES  # by chance one name of sixty, and seldom (in 2 %) more than three
FEW = 12  # names in the figure above it
VARIES = 0.05  # standard deviation of an attention from which on it is said to vary


# --- what the checks measure ----------------------------------------------------------------------


def _sweep(ctx: Context, site: str) -> patching.SweepResult:
    return ctx.once(
        f"sweep {site}",
        lambda: patching.patch_sweep(
            ctx.model, ctx.demo, ctx.demo.swap_subject(), site=site, progress=False
        ),
    )


def _effect(ctx: Context, site: str) -> Float[Tensor, "layer head"]:
    """Fraction of the demo's logit difference that patching `site` of a head restores."""
    return _sweep(ctx, site).fraction()


def _leftover(ctx: Context) -> Float[Tensor, "layer head"]:
    return _effect(ctx, "z") - _effect(ctx, "v") - _effect(ctx, "pattern")


def _entangled(ctx: Context) -> Head:
    """The head with the largest leftover in one of the orders: `entangled` in the notebook."""
    sizes = []
    for rows in ctx.demo.groups("order").values():
        restored = {}
        for site in ("z", "v", "pattern"):
            sweep = _sweep(ctx, site)
            low, high = sweep.corrupted[rows].mean(), sweep.clean[rows].mean()
            restored[site] = (sweep.values[..., rows].mean(dim=-1) - low) / (high - low)
        sizes.append((restored["z"] - restored["v"] - restored["pattern"]).abs())
    return measure.strongest(torch.stack(sizes).amax(dim=0))


def _cache(ctx: Context, what: str, data: IOIDataset) -> Any:
    return ctx.once(f"cache {what}", lambda: ctx.model.run_with_cache(data.tokens)[1])


# --- 03.1 What the parts leave over ---------------------------------------------------------------


@exercise("03.1")
def _parts(ctx: Context) -> Key:
    z, v, pattern = (_effect(ctx, site) for site in ("z", "v", "pattern"))
    truth = _leftover(ctx)
    most = measure.strongest(truth.abs())
    return array(
        truth,
        ("layer", "head"),
        absolute=1e-4,
        mistakes={
            "subtracting the v effect only; the pattern effect is missing": z - v,
            "subtracting the pattern effect only; the v effect is missing": z - pattern,
            "taking the sum of the two parts. What does the z effect have beyond it?": v + pattern,
            "taking absolute values. Whether the parts bring back more or less than the whole is "
            "the question, so keep the sign": truth.abs(),
            "subtracting the difference of v and pattern from z": z - (v - pattern),
        },
        right=f"The largest leftover, both orders together, is {truth[most]:z.2f}, of "
        f"{head_name(*most)}.",
    )


# --- 03.2 Look here, read there -------------------------------------------------------------------


@exercise("03.2")
def _look_and_read(ctx: Context) -> Key:
    layer, head = _entangled(ctx)
    cache = _cache(ctx, "demo", ctx.demo)
    corrupted = _cache(ctx, "demo corrupted", ctx.demo.swap_subject())
    change = cache["pattern", layer] - corrupted["pattern", layer]
    next_head = (head + 1) % ctx.model.cfg.n_heads

    def mix(looks: Any, reads: Any, of: int = head, row: Any = -1) -> Tensor:
        pattern = looks if isinstance(looks, Tensor) else looks["pattern", layer]
        weights = pattern[:, of, :, -1] if row is None else pattern[:, of, row]
        return torch.einsum("bk,bkd->bd", weights, reads["v", layer][:, :, of])

    return array(
        mix(cache, corrupted),
        ("prompt", "d_head"),
        absolute=1e-3,
        mistakes={
            "doing it the other way round: corrupted pattern, clean values": mix(corrupted, cache),
            "taking the clean z; the values must come from the corrupted run": mix(cache, cache),
            "taking the corrupted z; the pattern must come from the clean run": mix(
                corrupted, corrupted
            ),
            "taking the change of the pattern alone, not the clean pattern": mix(change, corrupted),
            "taking the next head, not `entangled`": mix(cache, corrupted, next_head),
            "taking the z at S2, not at END": mix(
                cache, corrupted, row=int(ctx.demo.positions["S2"][0])
            ),
            "mixing with the attention that END receives, a column of the pattern. Take END's row, "
            "[:, head, -1]": mix(cache, corrupted, row=None),
        },
        hint="Weights from cache, values from corrupted_cache, of head `entangled`.",
        right="It looks as in the clean run and finds what stands in the corrupted one.",
    )


# --- 03.3 A copying score by hand -----------------------------------------------------------------


@exercise("03.3")
def _copying_score(ctx: Context) -> Key:
    model, many = ctx.model, ctx.many
    scores = heads.copying_scores(model, many)
    layer, head = measure.strongest(scores)
    block = model.blocks[layer]
    run = _cache(ctx, "many", many)
    after = run["resid_post", 0]

    def share(
        stream: Tensor = after, at: str = "IO", *, top: int = 5, norm: bool = True, sign: int = 1
    ) -> float:
        state, names = (
            many.gather(stream, at),
            many.gather(many.tokens, "IO" if at == "END" else at),
        )
        read = block.ln1(state[None])[0] if norm else state
        value = read @ block.attn.W_V[head] + block.attn.b_V[head]
        written = model.ln_final((sign * (value @ block.attn.W_O[head]))[None])
        best = model.unembed(written)[0].topk(top).indices
        return float((best == names.to(best.device)[:, None]).any(dim=-1).float().mean())

    truth = share()
    hits = round(truth * len(many))
    return number(
        truth,
        absolute=2e-3,
        mistakes={
            "leaving out ln1. A head reads the stream through the LayerNorm of its block": share(
                norm=False
            ),
            "counting only the prompts on which the name comes first, not among the first five": (
                share(top=1)
            ),
            "reading the bare embedding, not the stream after block 0": share(run["hook_embed"]),
            "averaging over the five places as well. `.any(dim=-1)` comes first": truth / 5,
            "reading the stream before the head's own block, not the one after block 0": share(
                run["resid_pre", layer]
            ),
            "reading the stream after the first attention, not after block 0": share(
                run["resid_mid", 0]
            ),
            "reading at END; the head looks at IO": share(at="END"),
            "reading at S1; IO is asked for": share(at="S1"),
            "turning the sign. That is the score for negative copying": share(sign=-1),
            "taking IO, S1 and S2 together; IO alone is asked for": float(scores[layer, head]),
            "giving it in per cent; a share lies between 0 and 1": 100 * truth,
            "counting prompts; give a share of them": hits,
        },
        hint="State after block 0 at IO, ln1, W_V and b_V, W_O, ln_final, unembed, five largest.",
        right=f"On {hits} of {len(many)} prompts {head_name(layer, head)} would write, by this "
        "reading, the name that it looks at.",
    )


# --- 03.4 Where no name is right ------------------------------------------------------------------


@exercise("03.4")
def _nobody_favoured(ctx: Context) -> Key:
    layer, head = measure.strongest(measure.head_writes(ctx, "many").mean(-1))
    abc = ctx.many.abc()

    def looks_and_writes(data: IOIDataset, role: str, scaled: bool) -> tuple[Tensor, Tensor]:
        """Attention from END to the role, and what is written for the name there (per prompt)."""
        run = _cache(ctx, "many" if data is ctx.many else "abc", data)
        rows, end = torch.arange(len(data)), data.positions["END"]
        looks = run["pattern", layer][rows, head, end, data.positions[role]]
        output = run["z", layer][rows, end, head] @ ctx.model.W_O[layer, head]
        size = run["ln_final.hook_scale"][rows, end] if scaled else 1.0
        names = ctx.model.W_U[:, data.gather(data.tokens, role)].T
        return looks, (output / size * names).sum(dim=-1)

    def pooled(data: IOIDataset, *roles: str, scaled: bool = True, ranks: bool = False) -> float:
        pairs = [looks_and_writes(data, role, scaled) for role in roles]
        x, y = (torch.cat(both) for both in zip(*pairs, strict=True))
        return measure.correlation(*(v.argsort().argsort() if ranks else v for v in (x, y)))

    names = ("IO", "S1", "S2")
    truth = pooled(abc, *names)
    seen = torch.cat([looks_and_writes(abc, role, True)[0] for role in names])
    varies = float(seen.std()) > VARIES
    return number(
        truth,
        relative=1e-3,  # the mistakes below can come close
        absolute=1e-3,
        mistakes={
            "taking the clean prompts, where IO is favoured, not the ABC dataset": pooled(
                ctx.many, *names
            ),
            "taking the clean prompts' IO and S, as in the figure, not the ABC dataset and its "
            "three names": pooled(ctx.many, "IO", "S1"),
            "leaving out the third name; that at S2, is missing": pooled(abc, "IO", "S1"),
            "taking the names at IO alone, not at IO, S1 and S2": pooled(abc, "IO"),
            "averaging three correlations. Pool the points, then correlate once": (
                sum(pooled(abc, role) for role in names) / 3
            ),
            "leaving out the final LayerNorm's scale": pooled(abc, *names, scaled=False),
            "correlating ranks (Spearman's), not values": pooled(abc, *names, ranks=True),
        },
        hint=f"{3 * len(abc)} points of {head_name(layer, head)}: attention to the name, logits "
        "written for it.",
        right="No name is right in these prompts, and looking varies by itself."
        if varies
        else f"But no name gets more than {float(seen.max()):.3f} of its attention: where looking "
        "does not vary there is next to nothing to correlate.",
    )


# --- 03.5 A matching score ------------------------------------------------------------------------


@exercise("03.5")
def _matching(ctx: Context) -> Key:
    model, many = ctx.model, ctx.many
    looks = heads.attention_by_role(model, many, query="S2", keys=("S1",))[..., 0]
    layer, head = measure.strongest(looks)
    attn = model.blocks[layer].attn
    ids = torch.tensor([model.to_single_token(f" {n}") for n in many.name_pool[:NAMES]])
    ids = ids.to(model.cfg.device)
    start = torch.full_like(ids, model.tokenizer.bos_token_id)
    run = model.run_with_cache(torch.stack([start, ids], dim=1))[1]
    bare = model.run_with_cache(ids[:, None])[1]

    def scores(
        stream: Tensor = run["resid_pre", layer][:, 1], norm: bool = True, biases: bool = True
    ) -> Float[Tensor, "asks answers"]:
        read = model.blocks[layer].ln1(stream[None])[0] if norm else stream
        queries = read @ attn.W_Q[head] + biases * attn.b_Q[head]
        return queries @ (read @ attn.W_K[head] + biases * attn.b_K[head]).T

    def share(found: Float[Tensor, "asks answers"], top: int = 1) -> float:
        own = torch.arange(len(found), device=found.device)[:, None]
        return float((found.topk(top).indices == own).any(dim=-1).float().mean())

    found = scores()
    truth = share(found)
    return number(
        truth,
        absolute=2e-3,
        mistakes={
            "looking for the largest score in each column (which query fits a key best). A query "
            "chooses among keys: go along the rows": share(found.T),
            "leaving out ln1. Queries and keys are read through the LayerNorm": share(
                scores(norm=False)
            ),
            "leaving out the biases b_Q and b_K": share(scores(biases=False)),
            "reading the bare embeddings, not the stream before the head's block": share(
                scores(run["hook_embed"][:, 1])
            ),
            "reading the stream after the head's block, not the one before it": share(
                scores(run["resid_post", layer][:, 1])
            ),
            "reading at BOS, not at the name": share(scores(run["resid_pre", layer][:, 0])),
            "leaving out BOS in front of the name": share(scores(bare["resid_pre", layer][:, 0])),
            "counting names among the five largest, not the largest": share(found, 5),
            "taking the twelve names of the figure; sixty are asked for": share(found[:FEW, :FEW]),
        },
        hint="match_scores(matcher, ...) of sixty names, then the largest of each row.",
        right=f"By chance it would be {1 / NAMES:.3f}."
        + (
            f" Your {round(truth * NAMES)} of {NAMES} names are no more than chance gives: this "
            "head's weights do not match names on this model, and many wrong ways give as little."
            if truth <= CHANCE
            else ""
        ),
    )


# --- 03.6 How much of each? -----------------------------------------------------------------------


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
    each = heads.attention_by_role(model, many, query="END", keys=("S2",), per_prompt=True)
    by_order = [each[..., 0, rows].mean(dim=-1) for rows in many.groups("order").values()]
    looks = torch.stack(by_order).amax(dim=0)  # in one order at least
    found = ((looks > LOOKS).cpu() & (moved.abs() > MOVES).cpu()).flatten().nonzero()[:, 0]
    return [divmod(int(i), model.cfg.n_heads) for i in found]


def _signals(ctx: Context) -> Float[Tensor, "token position batch"]:
    """Logit differences with the messengers' output at END from each of the flipped datasets."""
    model, many = ctx.model, ctx.many
    found = _messengers(ctx)

    def cell(token: str, position: bool) -> Float[Tensor, " batch"]:
        run = model.run_with_cache(many.flip(position=position, token=token).tokens)[1]
        changes = {
            f"blocks.{layer}.attn.hook_z": measure.putting(
                run["z", layer], many, "END", [head for on, head in found if on == layer]
            )
            for layer, _ in found
        }
        return measure.hooked(model, many, changes).cpu()

    return torch.stack([torch.stack([cell(t, p) for p in (False, True)]) for t in TOKENS])


@exercise("03.6")
def _strengths(ctx: Context) -> Key:
    each = _signals(ctx)
    table = each.mean(-1)
    by_prompt = {
        "position": (each[:, 0] - each[:, 1]).mean(0) / 2,
        "token": (each[0] - each[2]).sum(0) / 4,
    }
    by_position, by_token = truth = torch.stack([x.mean() for x in by_prompt.values()])
    errors = {what: measure.error(x, ctx.many) for what, x in by_prompt.items()}
    nothing = [what for what, x in by_prompt.items() if abs(float(x.mean())) <= 2 * errors[what]]
    fitted = torch.tensor([[p * by_position + t * by_token for p in (1, -1)] for t in (1, 0, -1)])
    steps = (1.0, 0.0, -1.0)

    def fit(rows: Sequence[tuple[float, float]]) -> Float[Tensor, " signal"]:
        """What least squares gives with these six rows (S_pos, S_tok)."""
        return torch.linalg.lstsq(torch.tensor(rows), table.flatten()[:, None]).solution[:, 0]

    return array(
        truth,
        ("signal",),
        relative=1e-3,  # one signal can be far weaker than the other, and must be right as well
        absolute=6e-3,  # two decimals
        error=max(errors.values()) if len(nothing) == 2 else 0.0,
        mistakes={
            "giving the token first. The order is [a, b]: position, then token": truth.flip(0),
            "taking two steps for one. From the original to the inverted signal it is two, from +1 "
            "to -1: halve the differences": 2 * truth,
            "taking two steps for one in the position. From +1 to -1 it is two: halve the "
            "difference": torch.stack([2 * by_position, by_token]),
            "taking two steps for one in the token. From original to inverted it is two: halve the "
            "difference of the rows' means": torch.stack([by_position, 2 * by_token]),
            "coding the inverted position as 0; S_pos is +1 and -1": fit(
                [(p, t) for t in steps for p in (1.0, 0.0)]
            ),
            "coding the token as 2, 1 and 0, which needs a constant; S_tok is +1, 0 and -1": fit(
                [(p, t) for t in (2.0, 1.0, 0.0) for p in (1.0, -1.0)]
            ),
            "taking the strengths of the published table, not of your own `signals`": torch.tensor(
                PUBLISHED
            ),
            "writing the rows of the matrix in another order than the order of signals.flatten(). "
            "Along a row of the table the position changes, not the token": fit(
                [(p, t) for p in (1.0, -1.0) for t in steps]
            ),
            "turning the sign of the position; the original one is +1": torch.stack(
                [-by_position, by_token]
            ),
        },
        hint="Least squares on the six cells, S_pos = +1, -1 and S_tok = +1, 0, -1, no constant.",
        right="The linear model misses no cell of the table by more than "
        f"{float((fitted - table).abs().max()):z.2f}."
        + (
            f" On this model the {nothing[0]}'s strength is zero within its error "
            f"({errors[nothing[0]]:.2f}, over pairs), so mistakes in it hardly show."
            if len(nothing) == 1
            else ""
        ),
    )


# --- 03.7 Exchange what it reads ------------------------------------------------------------------


@exercise("03.7")
def _exchange(ctx: Context) -> Key:
    model, demo = ctx.model, ctx.demo
    shares = measure.head_writes(ctx, "demo").mean(-1)
    layer, head = measure.strongest(shares)
    before = measure.clean(ctx, "demo")
    rows, at = torch.arange(len(demo)), demo.positions

    def drops(
        one: str = "IO", other: str = "S1", *, site: str = "v", back: bool = True, which: Any = head
    ) -> Float[Tensor, " prompt"]:
        def exchange(values: Tensor) -> Tensor:
            changed = values.clone()
            changed[rows, at[one], which] = values[rows, at[other], which]
            if back:
                changed[rows, at[other], which] = values[rows, at[one], which]
            return changed

        return before - measure.hooked(model, demo, {f"blocks.{layer}.attn.hook_{site}": exchange})

    def drop(*places: str, **how: Any) -> float:
        return float(drops(*places, **how).mean())

    def zeroed(values: Tensor) -> Tensor:
        return measure.putting(0.0, demo, "S1", head)(
            measure.putting(0.0, demo, "IO", head)(values)
        )

    whole, fall, share = float(before.mean()), drop(), float(shares[layer, head])
    ablated = measure.hooked(model, demo, {f"blocks.{layer}.attn.hook_v": zeroed})
    return number(
        fall,
        relative=3e-3,  # a head that looks at one of the two only makes some mistakes come close
        absolute=2e-3,
        error=measure.error(drops(), demo),
        unit="logits",
        mistakes={
            "taking the logit difference after the exchange, not its drop": whole - fall,
            "replacing only IO's value, so that both places hold S's. Exchange them (was one of "
            "them overwritten before it was read?)": drop(back=False),
            "replacing only S1's value, so that both places hold IO's": drop(
                "S1", "IO", back=False
            ),
            "setting the values to zero, not exchanging them": float((before - ablated).mean()),
            "exchanging the keys, which changes where the head looks, not the values": drop(
                site="k"
            ),
            "exchanging the values of every head in the layer": drop(which=slice(None)),
            "exchanging IO with S2, not with S1": drop("IO", "S2"),
            "exchanging S1 with S2, not with IO": drop("S1", "S2"),
            "changing nothing. Does your hook return the changed values?": 0.0,
            "taking a fraction of the clean logit difference, not logits": fall / whole,
            "reading the head's direct attribution, without any exchange. Run the experiment": (
                share
            ),
            "doubling the direct attribution, which is a prediction. Run the experiment": 2 * share,
        },
        hint="A hook on hook_v that exchanges the two positions' values of this head.",
        right=f"It is {fall:z.2f}; twice its direct attribution would be {2 * share:z.2f}.",
    )
