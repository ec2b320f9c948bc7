"""Keys to the exercises of notebook 09, path patching.

They expect `exercises.use(model=model, many=many, demo=demo)`: generated prompts, and the eight of
the demo. Which heads and edges an exercise is about the notebook finds and passes along (`cells`,
`teller`, `followed`, `few`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ioi_helpers.attribution import logit_diff_directions
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.exercises.forms import Head, Heads, Refused, kind, single_number
from ioi_helpers.exercises.measure import clean, error, hooked, putting
from ioi_helpers.exercises.registry import Context, exercise
from ioi_helpers.exercises.verdicts import Key, number, pick
from ioi_helpers.graph import Shape, parse_node
from ioi_helpers.names import head_name, parse_head
from ioi_helpers.patching import SweepResult, patch_sweep
from ioi_helpers.path_patching import edge_scores, path_patch, path_sweep
from ioi_helpers.path_patching.edges import INPUTS

LEAST = 0.02  # of the logit difference, in exercise 09.3
LEAST_ERRORS = 3.0  # standard errors, in exercise 09.3
WAYS = ("turns", "flat first", "steep first")

Effects = Float[Tensor, " batch"]


def _mean(result: SweepResult) -> float:
    return float(result.effect().mean())


# --- 09.1 Exactly nothing -------------------------------------------------------------------------


def _letters(answer: Any) -> frozenset[str]:
    """Letters in any form: "BD", "b, d", ["B", "D"]."""
    parts = [answer] if isinstance(answer, str) else answer
    if not isinstance(parts, Iterable) or not all(isinstance(part, str) for part in parts):
        raise Refused(f"Letters such as 'AC' are asked for, not {kind(answer)}.")
    return frozenset("".join(parts).upper()) - frozenset(" ,;{}[]'\"")


@exercise("09.1")
def _nothing(ctx: Context) -> Key:
    model, demo, cells = ctx.model, ctx.demo, ctx.cells
    truth = frozenset(
        letter
        for letter, (sender, receiver) in cells.items()
        if not path_sweep(model, demo, None, [sender], [receiver], progress=False).effect().any()
    )

    def read(answer: Any) -> frozenset[str]:
        given = _letters(answer)
        unknown = sorted(given - set(cells))
        if unknown:
            raise Refused(f"There is no edge {unknown[0]}; the letters are {', '.join(cells)}.")
        return given

    def has(letter: str) -> Any:
        return lambda given: letter in given

    def lacks(letter: str) -> Any:
        return lambda given: letter not in given

    return pick(
        truth,
        read,
        says="These are",
        mistakes={
            "taking senders that are far away for silent; what is written stays in the stream": (
                truth | {"A"}
            ),
            "leaving out what a head tells its own block's MLP; that is an edge, since the MLP "
            "reads after the heads": truth | {"C"},
            "letting a path go from S2 to END; with attention frozen it stays at its token": (
                truth - {"B"}
            ),
            "letting a block's MLP speak to the heads of its own block; they have read before it "
            "writes": truth - {"D"},
            "letting heads of one block speak to each other; they read at the same time": (
                truth - {"E"}
            ),
            "asking only whether a path exists; what does the embedding write at END in the two "
            "runs": truth - {"G"},
            "forgetting to ask who reads what the last block does at S2": truth - {"I"},
            "naming the edges that carry something": frozenset(cells) - truth,
        },
        rules={
            "B goes from one token to another, and attention, which could carry it, is frozen.": (
                lacks("B")
            ),
            "C is an edge: a block's MLP reads what its heads have just written.": lambda given: (
                "C" in given - truth  # but where blocks are parallel
            ),
            "A is far, and that is no obstacle: what a head writes stays in the stream.": has("A"),
            "D and E: whoever sits in one block with the sender reads before it writes, but for "
            "the block's MLP after its heads.": lambda given: not {"D", "E"} <= given,
            "J is an edge: what the last block's heads write is read by the logits.": has("J"),
            "F and H are edges: the name at S2 differs between the runs, and END reads what stands "
            "there.": lambda given: bool({"F", "H"} & given),
            "Look at G once more: the word at END is the same in both runs.": lacks("G"),
            "Look at I once more: who reads what the last block makes of S2?": lacks("I"),
        },
        hint="Some of these carry something: ask the three questions of hint 1.",
        right="By token, by order, by who reads, and by what differs between the runs.",
    )


# --- 09.2 One head to the logits, by hand ---------------------------------------------------------


@exercise("09.2")
def _one_head(ctx: Context) -> Key:
    model, many = ctx.model, ctx.many
    abc: IOIDataset = many.abc()
    layer, head = parse_head(ctx.teller)
    blocks = range(model.cfg.n_layers)
    own = f"blocks.{layer}.attn.hook_z"
    kept = [f"blocks.{i}.attn.hook_z" for i in blocks]
    _, ours = model.run_with_cache(many.tokens, names_filter=[*kept, "ln_final.hook_scale"])
    _, theirs = model.run_with_cache(abc.tokens, names_filter=own)
    before = clean(ctx, "many")
    in_abc = hooked(model, abc, {}, many)

    def run(frozen: bool, send: Any = "END", scored: IOIDataset | None = None) -> Effects:
        """The logit differences of pass C; with nothing frozen those of activation patching."""
        put = send if callable(send) else putting(theirs[own], many, send, head)
        changes = {name: putting(ours[name], many) for name in kept} if frozen else {}
        freeze = changes.get(own, lambda z: z)
        changes[own] = lambda z: put(freeze(z))
        return hooked(model, many, changes, scored)

    def at_the_last_index(z: Tensor) -> Tensor:
        z = z.clone()
        z[:, -1, head] = theirs[own][:, -1, head]
        return z

    def patched(data: IOIDataset = many, reference: IOIDataset = abc, **how: Any) -> float:
        sender = (head_name(layer, head), "END")
        return _mean(path_patch(model, data, reference, sender, "final", progress=False, **how))

    direct = run(True) - before
    change = many.gather(theirs[own] - ours[own], "END")[:, head] @ model.W_O[layer, head]
    scale = many.gather(ours["ln_final.hook_scale"], "END")[:, 0]
    written = (change * logit_diff_directions(model, many)).sum(-1) / scale
    total = run(False) - before
    return number(
        direct.mean(),
        relative=2e-3,
        absolute=2e-4,
        error=error(direct, many),
        unit="logits",
        mistakes={
            "freezing the MLPs; recompute them, so hook nothing but z": patched(mlps="frozen"),
            "freezing nothing, which is activation patching. Later heads must write what they "
            "write anyway": total.mean(),
            "freezing nothing and patching every position, which is activation patching": (
                run(False, None) - before
            ).mean(),
            "taking the difference of direct attributions at the old scale; LayerNorm and MLPs "
            "are recomputed": written.mean(),
            "exchanging data and reference; run the data and put in what the head writes on ABC": (
                patched(direction="denoising")
            ),
            "scoring with the names of the ABC prompts; the answers are the data's": (
                run(True, scored=abc) - before
            ).mean(),
            "scoring both runs with the names of the ABC prompts; the answers are the data's": (
                run(True, scored=abc) - hooked(model, many, {}, abc)
            ).mean(),
            "taking what is left; the change is asked for": run(True).mean(),
            "taking the share of the logit difference, not logits": direct.mean() / before.mean(),
            "taking the share of the difference to ABC, not logits": direct.mean()
            / (before.mean() - in_abc.mean()),
            "comparing with the ABC run, not with the unpatched one": (run(True) - in_abc).mean(),
            "sending from S2, which reaches END by attention only": (
                run(True, "S2") - before
            ).mean(),
            "sending from the last index, which in shorter prompts is padding. Use "
            "`many.positions['END']`": (run(True, at_the_last_index) - before).mean(),
            "taking the sum over the prompts, not the mean": direct.sum(),
            "taking the eight prompts of `demo`, not `many`": patched(ctx.demo, ctx.demo.abc()),
            "taking prompts of the other order as the reference; it is `abc`": patched(
                reference=many.swap_order()
            ),
            "taking percent of the logit difference, not logits": 100
            * direct.mean()
            / before.mean(),
        },
        hint="Freeze z of every block as in pass B, but for the teller's at END.",
        right=f"Its total effect there is {total.mean():.3f} logits: what differs goes through "
        "later heads.",
    )


# --- 09.3 Who steers them? ------------------------------------------------------------------------


@dataclass(frozen=True)
class _HeadEffects:
    """Heads with an effect each, such as {"L9H9": -0.5}."""

    shape: tuple[int, int]
    says = "That is"

    def read(self, answer: Any) -> dict[Head, float]:
        if hasattr(answer, "to_dict"):
            answer = answer.to_dict()
        if not isinstance(answer, Mapping):
            raise Refused(f"A dict such as {{'L9H9': -0.5}} is asked for, not {kind(answer)}.")
        heads = Heads(self.shape).read(list(answer)) if answer else []
        values = [single_number(value).item() for value in answer.values()]
        return dict(zip(heads, values, strict=True))

    def value(self, known: Mapping[Head, float]) -> Mapping[Head, float]:
        return known

    def distance(self, given: Mapping[Head, float], value: Mapping[Head, float]) -> float:
        if set(given) != set(value):
            return math.inf
        margins = (max(0.0055, 0.01 * abs(value[head])) for head in value)
        gaps = (abs(given[head] - value[head]) for head in value)
        return max((gap / margin for gap, margin in zip(gaps, margins, strict=True)), default=0.0)

    def grain(self, given: Any, truth: Any) -> None:
        return None

    def gap(self, given: Mapping[Head, float], truth: Mapping[Head, float]) -> str:
        if set(given) != set(truth):
            said = Heads(self.shape).gap(list(given), list(truth))
            return said.replace("empty list", "empty dict").replace("the list is", "the dict is")
        if self.distance(given, {head: -value for head, value in truth.items()}) <= 1:
            return "The heads are right; the sign of their effects is not: a fall is negative."
        return "The heads are right, their effects are not: means over prompts, in logits."


@exercise("09.3")
def _steering(ctx: Context) -> Key:
    model, many, followed = ctx.model, ctx.many, list(ctx.followed)
    abc: IOIDataset = many.abc()
    shape = (model.cfg.n_layers, model.cfg.n_heads)
    whole = float(clean(ctx, "many").mean())

    def fits(
        effect: Float[Tensor, "head batch"], sign: float = -1.0, least: float = LEAST
    ) -> dict[Head, float]:
        """Heads that lower (or raise) the logit difference by enough."""
        found = {}
        for index, values in enumerate(effect):
            mean = float(values.mean())
            if sign * mean > max(least * whole, LEAST_ERRORS * error(values, many)):
                found[divmod(index, shape[1])] = mean
        return found

    def to(name: str, role: str, heads: list[Any], mlps: str = "recomputed") -> Tensor:
        receivers = [(head, name, role) for head in heads]
        found = path_sweep(model, many, abc, receivers=receivers, mlps=mlps, progress=False)
        return found.effect().flatten(0, 1).cpu()

    total = patch_sweep(
        model, many, abc, "z", ("layer", "head", "role"), roles=("END",), direction="noising",
        progress=False,
    )  # fmt: skip
    direct = path_sweep(model, many, abc, progress=False)
    effect = to("q", "END", followed)
    truth, raising = fits(effect), fits(effect, 1.0)
    alone = [to("q", "END", [name]) for name in followed]
    last = max(parse_head(name)[0] for name in followed)
    nobody: dict[Head, float] | None = None if truth else {}

    def some(found: dict[Head, float]) -> dict[Head, float] | None:
        """Where there are such heads, a mistake that finds none has no say."""
        return found or nobody

    return Key(
        _HeadEffects(shape),
        truth,
        mistakes={
            "taking the total effect at END, which is activation patching. Ask what reaches the "
            "queries": some(fits(total.effect().flatten(0, 2).cpu())),
            "taking what reaches the logits. The receivers are queries": some(
                fits(direct.effect().flatten(0, 1).cpu())
            ),
            "taking keys at IO for queries": some(fits(to("k", "IO", followed))),
            "taking keys at END for queries": some(fits(to("k", "END", followed))),
            "taking values at IO for queries": some(fits(to("v", "IO", followed))),
            "patching the receivers one by one and adding up. Let all hear it in one run D": some(
                fits(torch.stack(alone).sum(0))
            ),
            "asking one receiver only": some(fits(alone[0])),
            "taking heads that raise the logit difference; those that lower it are asked for": some(
                raising
            ),
            "taking those that raise it as well; only a fall counts": truth | raising
            if raising
            else None,
            "leaving out the 2 %": found if (found := fits(effect, least=0.0)) != truth else None,
            "giving shares; logits are asked for": some({h: e / whole for h, e in truth.items()}),
        },
        rules={
            "A head that does not come before any of the receivers cannot tell them anything.": (
                lambda given: any(layer >= last for layer, _ in given)
            ),
        },
        right=f"{len(truth)} of {len(effect)} heads."
        if truth
        else "None on this model: no head at END lowers it by that much through these queries.",
    )


# --- 09.4 Who wrote the name? ---------------------------------------------------------------------


@exercise("09.4")
def _of_two(ctx: Context) -> Key:
    model, many, followed = ctx.model, ctx.many, list(ctx.followed)
    nodes = Shape.of(model).nodes(mlps=True)
    parts = {
        "two": ["embedding", "MLP0"],
        "all": ["embedding", *nodes],
        "embedding": ["embedding"],
        "MLP0": ["MLP0"],
        "no embedding": nodes,
        "heads": [node for node in nodes if node.is_head],
        "MLPs": ["embedding", *(node for node in nodes if not node.is_head)],
    }
    ears: dict[str, Any] = {
        f"{inputs} at {role}": [(name, i, role) for name in followed for i in inputs]
        for role in ("IO", "S1", "END")
        for inputs in ("kv", "k", "v")
        if role == "IO" or inputs == "kv"
    }
    ears["q at END"] = [(name, "q", "END") for name in followed]

    def effects(ears: dict[str, Any], **how: Any) -> dict[str, Effects]:
        found = path_sweep(model, many, many.abc(), parts, ears, progress=False, **how)
        values = found.effect().flatten(0, 1).cpu()
        keys = [f"{part}, {ear}" for part in parts for ear in ears]
        return dict(zip(keys, values, strict=True))

    kv = ears["kv at IO"]
    by = effects(ears)
    frozen = effects({"kv at IO": kv}, mlps="frozen")

    def share(part: str, ear: str = "kv at IO", of: str | None = None, how: Any = None) -> float:
        values = how or by
        whole = float(values[of or f"all, {ear}"].mean())
        return float(values[f"{part}, {ear}"].mean()) / whole if abs(whole) > 1e-6 else float("nan")

    truth = share("two")
    everything = float(by["all, kv at IO"].mean())

    one_by_one = {name: [(name, "k", "IO"), (name, "v", "IO")] for name in followed}
    singles = path_sweep(model, many, many.abc(), {n: parts[n] for n in ("two", "all")},
                         one_by_one, progress=False).effect().mean(-1).sum(-1)  # fmt: skip
    return number(
        truth,
        relative=0.0,
        absolute=1.5e-3,
        unit="share",
        mistakes={
            "reading at END, where the heads stand; their keys and values are read at IO": share(
                "two", "kv at END"
            ),
            "asking for the queries at END": share("two", "q at END"),
            "exchanging IO and S1": share("two", "kv at S1"),
            "leaving the embedding out of both": share("MLP0", of="no embedding, kv at IO"),
            "leaving the embedding out of the two; it sends the word itself": share("MLP0"),
            "leaving the embedding out of `all`; without it they fall short of the keys and values "
            "themselves": share("two", of="no embedding, kv at IO"),
            "leaving MLP 0 out": share("embedding"),
            "letting all MLPs send; MLP 0 is asked for": share("MLPs"),
            "taking the heads' share": share("heads"),
            "taking what is left for others": 1 - truth,
            "giving percent; a share is asked for": 100 * truth,
            "patching keys only": share("two", "k at IO"),
            "patching values only": share("two", "v at IO"),
            "freezing the MLPs": share("two", how=frozen),
            "adding up the two, each on its own. Let them send together": (
                float(by["embedding, kv at IO"].mean() + by["MLP0, kv at IO"].mean()) / everything
            ),
            "patching the receivers one by one and adding up": float(singles[0] / singles[1]),
            "taking logits; a share is asked for": float(by["two, kv at IO"].mean()),
            "taking the effect of replacing everything, in logits": everything,
            "taking the share of the logit difference": float(by["two, kv at IO"].mean())
            / float(clean(ctx, "many").mean()),
            "dividing the other way round": 1 / truth if truth else float("nan"),
            "averaging each prompt's own share. Divide the means": float(
                (by["two, kv at IO"] / by["all, kv at IO"]).mean()
            ),
        },
        hint="Two sets of senders, one set of receivers, and the means divided.",
        right=f"All heads together bring about {share('heads'):.2f} of it.",
    )


# --- 09.5 The worst estimate ----------------------------------------------------------------------


def _along(
    ctx: Context, sender: str, receiver: str, role: str, fractions: Iterable[float]
) -> list[float]:
    """The edge's mean effect with the sender's contribution part of the way to the reference's."""
    model, few = ctx.model, ctx.few
    _, ours = model.run_with_cache(few.tokens)
    _, theirs = model.run_with_cache(few.abc().tokens)
    layer, head = parse_head(sender)
    place = few.positions[role]
    rows = torch.arange(len(few), device=place.device)
    ears, which = _ears(model, receiver)
    blocks = range(model.cfg.n_layers)
    frozen = [f"blocks.{i}.{x}" for i in blocks for x in ("attn.hook_z", "hook_mlp_out")]
    before = hooked(model, few, {}).mean()
    found = []
    for t in fractions:
        heard: list[Tensor] = []

        def keep(name: str, t: float = t) -> Any:
            def change(value: Tensor) -> Tensor:
                value = ours[name].clone()
                if name == f"blocks.{layer}.attn.hook_z":
                    own = value[rows, place, head]
                    value[rows, place, head] = own + t * (theirs[name][rows, place, head] - own)
                return value

            return change

        def listen(value: Tensor, heard: list[Tensor] = heard) -> Tensor:
            heard.append(value.clone())
            return value

        changes = {name: keep(name) for name in frozen}
        hear = [(ears, lambda value, hook, listen=listen: listen(value))]
        hooks = [*hear, *((n, lambda v, hook, c=c: c(v)) for n, c in changes.items())]
        model.run_with_hooks(few.tokens, fwd_hooks=hooks)
        new = heard[0]
        after = hooked(model, few, {ears: putting(new, few, role, which)})
        found.append(float(after.mean() - before))
    return found


def _ears(model: Any, receiver: str) -> tuple[str, Any]:
    """The hook of a receiver, as edges are labelled, and its head."""
    if receiver == "final stream":
        return f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", slice(None)
    name, _, component = receiver.partition(" of ")
    if name == "input":
        return f"blocks.{component.removeprefix('MLP')}.hook_mlp_out", slice(None)
    layer, head = parse_head(component)
    return f"blocks.{layer}.attn.hook_{name}", head


@exercise("09.5")
def _worst(ctx: Context) -> Key:
    model, few = ctx.model, ctx.few
    exact, denoised = ctx.exact, ctx.backwards  # an edge a run: the notebook has made them
    receivers = exact.index_df["receiver"].unique()  # of a large model the notebook asks fewer
    how: dict[str, Any] = {
        "roles": tuple(exact.index_df["role"].unique()),
        "inputs": tuple(name for name in INPUTS if any(r.startswith(name) for r in receivers)),
        "progress": False,
    }
    scores = edge_scores(model, few, few.abc(), method="EAP", **how)
    along_way = edge_scores(model, few, few.abc(), method="EAP-IG", **how)
    table = exact.index_df
    heads = torch.tensor([parse_node(sender).is_head for sender in table["sender"]])
    take = heads & torch.tensor(table["possible"].tolist())

    def per_prompt(result: SweepResult) -> Float[Tensor, "edge batch"]:
        return result.effect().flatten(0, 2).cpu()

    true, guess = per_prompt(exact), per_prompt(scores)
    a, b = guess.mean(-1), true.mean(-1)
    apart = (a - b).abs()

    def largest(values: Float[Tensor, " edge"], among: Any = take) -> int:
        return int(values.masked_fill(~among, -1.0).argmax())

    first = largest(apart)

    def ties(i: int) -> bool:
        sign = torch.sign(a - b)
        gap = sign[first] * (guess - true)[first] - sign[i] * (guess - true)[i]
        return float(gap.mean()) <= 2 * error(gap, few)

    ranked = apart.masked_fill(~take, -1.0).topk(4).indices.tolist()
    tied = [i for i in ranked[1:] if ties(i)]
    curves = {i: _along(ctx, *_ends(table, i), (0.25, 0.5, 1.0)) for i in (first, *tied)}

    def way(i: int) -> str:
        quarter, half, end = curves[i]
        if quarter * end < 0:
            return "turns"
        return "flat first" if abs(half) < abs(end) / 2 else "steep first"

    def read(answer: Any) -> tuple[str, str]:
        if not isinstance(answer, (list, tuple)) or len(answer) != 2:
            raise Refused(f"A pair is asked for: an edge's label and the way, not {kind(answer)}.")
        label, how_it_fails = (str(part).strip() for part in answer)
        if label not in exact.labels:
            raise Refused(f"{label!r} is no edge here; take its label from `scores.labels`.")
        how_it_fails = how_it_fails.lower()
        if how_it_fails not in WAYS:
            raise Refused(f"The way is one of {', '.join(map(repr, WAYS))}, not {how_it_fails!r}.")
        return label, how_it_fails

    def other(i: int, sentence: str) -> dict[str, Any]:
        label = exact.labels[i]
        known = {exact.labels[first], *(exact.labels[j] for j in tied)}
        return {} if label in known else {sentence: lambda given: given[0] == label}

    def is_worst(given: tuple[str, str]) -> bool:
        return given[0] == exact.labels[first]

    quarter, half, end = curves[first]
    said = f"{quarter:.2f}, {half:.2f} and {end:.2f} logits at t = 1/4, 1/2 and 1"
    name, receiver = table["receiver"][first], exact.labels[first]
    right = f"EAP says {a[first]:.2f}; the effect is {said}."
    if " of L" in name:
        layer, head = parse_head(name.partition(" of ")[2])
        pattern = f"blocks.{layer}.attn.hook_pattern"
        _, cache = model.run_with_cache(few.tokens, names_filter=pattern)
        most = few.gather(cache[pattern].transpose(1, 2), table["role"][first])[:, head].amax(-1)
        right += f" {name[5:]} has {most.mean():.3f} of its attention on one token there."
    wrong_ways = {
        "turns": "calling it a turn; at t = 1/4 it has the sign of its end",
        "flat first": "calling it flat first; look at t = 1/4 and t = 1/2 again",
        "steep first": "blaming what comes later for making up for it; more comes than the slope "
        "promised, or other than it. Look at the receiver first",
    }
    impossible = ~torch.tensor(table["possible"].tolist())
    rules: dict[str, Any] = {}
    rules |= {"That is the right edge, but not how it fails: follow it along t.": is_worst}
    rules |= other(
        largest((a - per_prompt(denoised).mean(-1)).abs()),
        "There the noising score is furthest from the *denoising* effect; compare like with like.",
    )
    rules |= other(
        largest((a + b).abs()), "There the score with the sign of a loss is furthest from the "
        "effect; a helpful edge is negative here.",
    )  # fmt: skip
    rules |= other(largest(b.abs()), "That is the edge of largest effect; its error is smaller.")
    rules |= other(largest(a.abs()), "That is the edge of largest score; its error is smaller.")
    rules |= {"Its sender is no head.": lambda given: not heads[exact.labels.index(given[0])]}
    rules |= other(
        largest((per_prompt(along_way).mean(-1) - b).abs()),
        "There EAP-IG is furthest off; EAP is asked for.",
    )
    rules |= other(
        largest(apart / b.abs().clamp(min=1e-6)),
        "There the *relative* error is largest, of an effect of nearly nothing; take logits.",
    )
    rules |= other(
        largest((guess - true).abs().mean(-1)),
        "There single prompts are furthest off; compare mean effects.",
    )
    rules |= other(
        largest((guess - true).mean(-1)),
        "There the score is furthest *above* the effect; below counts as well.",
    )
    rules |= other(
        largest((true - guess).mean(-1)),
        "There the score is furthest *below* the effect; above counts as well.",
    )
    rules |= {
        "That edge is impossible: both are exactly 0.": lambda given: bool(
            impossible[exact.labels.index(given[0])]
        )
    }
    if abs(end - float(b[first])) > 1e-3 * max(1.0, abs(end)):
        raise ValueError("`exact` is not of `few`; run the cell that makes it once more.")
    return pick(
        (receiver, way(first)),
        read,
        says="That is",
        also={
            f"On this model it is within two errors of the worst, {receiver}.": (
                exact.labels[i],
                way(i),
            )
            for i in tied
        },
        mistakes={
            text: (receiver, wrong) for wrong, text in wrong_ways.items() if wrong != way(first)
        },
        rules=rules,
        hint="Another edge is further off: mean effects, absolute differences, senders heads.",
        right=right,
    )


def _ends(table: Any, i: int) -> tuple[str, str, str]:
    """Sender, receiver and role of an edge."""
    return table["sender"][i], table["receiver"][i], table["role"][i]
