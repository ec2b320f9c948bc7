"""Keys to the exercises of notebook 10, is the circuit right?

They expect `exercises.use(model=..., data=..., few=..., many=..., reference=..., circuit=...,
naive=..., watchers=...)`: prompts to score on, few prompts, many with their ABC prompts, the
circuit on record and one made from it, and heads at roles. All are made without prefixes, so that
prompts of a template have one length.

Exercises 10.2, 10.3 and 10.5 are recomputed with hooks, as a reader does, and not by `circuits`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ioi_helpers import metrics
from ioi_helpers.circuits import Circuits
from ioi_helpers.dataset import ROLES, IOIDataset
from ioi_helpers.exercises.forms import Array, Numbers, Refused
from ioi_helpers.exercises.measure import error, hooked
from ioi_helpers.exercises.registry import Context, exercise
from ioi_helpers.exercises.verdicts import Key, array, mistake, number, pick
from ioi_helpers.graph import Circuit, Node, Shape, parse_nodes

Z = Float[Tensor, "layer batch pos head d_head"]
Mask = Bool[Tensor, "layer batch pos head"]
BOTH = "template and order"


# --- what the checks measure ----------------------------------------------------------------------


def _z(ctx: Context, prompts: IOIDataset) -> Z:
    """What every head mixes at every position."""

    def compute() -> Z:
        layers = range(ctx.model.cfg.n_layers)
        names = [f"blocks.{layer}.attn.hook_z" for layer in layers]
        _, cache = ctx.model.run_with_cache(prompts.tokens, names_filter=names)
        return torch.stack([cache[name] for name in names])

    return ctx.once(f"z of {id(prompts)}", compute)


def _means(
    ctx: Context, data: IOIDataset, source: IOIDataset, by: str | None = BOTH
) -> Float[Tensor, "layer batch pos head d_head"]:
    """For each prompt of the data the mean over the source's prompts of its group, by position."""
    z = _z(ctx, source)
    width = data.tokens.shape[1]
    means = z.new_zeros(len(z), len(data), width, *z.shape[3:])
    if by is None:
        means[:] = z.mean(dim=1, keepdim=True)[:, :, :width]
        return means
    groups: Any = data.groups(by)  # type: ignore[arg-type]
    of_source: Any = source.groups(by)  # type: ignore[arg-type]
    for group, rows in groups.items():
        means[:, rows] = z[:, of_source[group]].mean(dim=1, keepdim=True)[:, :, :width]
    return means


def _means_at_roles(ctx: Context, data: IOIDataset, source: IOIDataset) -> Z:
    """At each role the mean over all of the source's prompts, whatever their group."""
    z = _z(ctx, source)
    means = z.new_zeros(len(z), *data.tokens.shape, *z.shape[3:])
    for role in ROLES:
        at, there = (prompts.positions[role].to(z.device) for prompts in (data, source))
        rows, of_source = (torch.arange(len(at), device=z.device) for at in (at, there))
        means[:, rows, at] = z[:, of_source, there].mean(dim=1, keepdim=True)
    return means


def _mask(ctx: Context, data: IOIDataset, nodes: Iterable[Node]) -> Mask:
    """Where these heads are, in the prompts of the data."""
    cfg = ctx.model.cfg
    mask = torch.zeros(
        cfg.n_layers, *data.tokens.shape, cfg.n_heads, dtype=torch.bool, device=data.tokens.device
    )
    rows = torch.arange(len(data), device=mask.device)
    for node in nodes:
        if node.role is None:
            mask[node.layer, :, :, node.head] = True
        else:
            mask[node.layer, rows, data.positions[node.role].to(mask.device), node.head] = True
    return mask


def _run(
    ctx: Context, data: IOIDataset, gone: Mask, instead: Z | float, scored: IOIDataset | None = None
) -> Float[Tensor, " batch"]:
    """Logit differences with other values where heads are gone."""

    def change(layer: int) -> Any:
        def put(z: Tensor) -> Tensor:
            new = instead[layer] if isinstance(instead, Tensor) else z.new_tensor(instead)
            return torch.where(gone[layer].to(z.device)[..., None], new, z)

        return put

    hooks = {f"blocks.{layer}.attn.hook_z": change(layer) for layer in range(len(gone))}
    return hooked(ctx.model, data, hooks, scored)


# --- 10.1 The circuit with nothing in it ----------------------------------------------------------


class _Foretold(Numbers):
    """A number; that it cannot be known is an answer, too, and a wrong one."""

    def read(self, answer: Any) -> Array:
        digits = str(answer).strip().lstrip("+-").replace(".", "", 1)
        if isinstance(answer, str) and not digits.isdigit():
            raise Refused(
                "It is known before anything is run: both prompts of a pair end in the same "
                "logits. Answer with a number."
            )
        return super().read(answer)


@exercise("10.1")
def _empty(ctx: Context) -> Key:
    model, data = ctx.model, ctx.data
    whole = metrics.logit_diff(model(data.tokens), data)
    abc = metrics.logit_diff(model(ctx.reference.tokens), ctx.many)
    own: IOIDataset = data.abc()
    # The logits that a template ends in may favour a name; of a pair it is once IO and once S.
    first = _run(ctx, data, ~_mask(ctx, data, ()), _means(ctx, data, ctx.reference))[::2]
    form = _Foretold((), (), 0.0, 0.004, "logits", None)
    return Key(
        form,
        form.value(0.0),
        mistakes={
            "taking the logit difference of the model on the ABC prompts. A mean of activations is "
            "no run over a prompt": abc,
            "taking the model's logit difference on other names' prompts. A mean of activations is "
            "no run over a prompt": metrics.logit_diff(model(own.tokens), data),
            "taking F(M). Nothing of the model's heads is left": whole,
            "taking F(C) / F(M) of the whole model, 1. Nothing of its heads is left": 1.0,
            "scoring one prompt of each pair only. The other one has the names exchanged": (
                first.mean()
            ),
            "taking the chance of one name of two, 0.5. Logit differences are asked for": 0.5,
        },
        right="Both prompts of a pair end in the same logits, and what is gained with one is lost "
        "with the other.",
    )


# --- 10.2 Faithfulness by hand --------------------------------------------------------------------


@exercise("10.2")
def _by_hand(ctx: Context) -> Key:
    model, few, circuit = ctx.model, ctx.few, ctx.circuit
    whole = hooked(model, few, {})
    gone = ~_mask(ctx, few, circuit)
    roles = _mask(ctx, few, Shape.of(model).nodes(ROLES))
    everywhere = ~_mask(ctx, few, [node.at(None) for node in circuit])
    abc, iois = ctx.reference, ctx.many
    means = _means(ctx, few, abc)
    right = _run(ctx, few, gone, means)
    f = whole.mean()

    def share(gone: Mask, instead: Z | float) -> Tensor:
        return _run(ctx, few, gone, instead).mean() / f

    return number(
        right.mean() / f,
        relative=0.0,
        absolute=2e-3,
        mistakes={
            "averaging each prompt's ratio. Divide the means": (right / whole).mean(),
            "setting z to zero, not to a mean": share(gone, 0.0),
            "replacing heads at the five roles only. All other positions are outside the circuit, "
            "too": share(gone & roles, means),
            "averaging over all templates. Keep templates and orders apart": share(
                gone, _means(ctx, few, abc, None)
            ),
            "averaging over both orders of a template. Keep the orders apart": share(
                gone, _means(ctx, few, abc, "template")
            ),
            "averaging over IOI prompts, in which a name is repeated, not over `reference`": share(
                gone, _means(ctx, few, iois)
            ),
            "averaging over the IOI prompts of `search`, not over `reference`": share(
                gone, _means(ctx, few, few)
            ),
            "replacing the circuit and keeping the rest. The mask says what is kept": share(
                ~gone, means
            ),
            "keeping the circuit's heads at every position, not at their roles": share(
                everywhere, means
            ),
            "taking F(C) in logits, not its share of F(M)": right.mean(),
            "taking what is missing, not what is left": 1 - right.mean() / f,
            "taking F(C) - F(M), not their ratio": right.mean() - f,
            "dividing the other way round": f / right.mean(),
            "running the whole model. Does your hook return the changed z?": 1.0,
            "taking the prompts of `data`, not those of `search`": _run(
                ctx,
                ctx.data,
                ~_mask(ctx, ctx.data, circuit),
                _means(ctx, ctx.data, abc),
            ).mean()
            / hooked(model, ctx.data, {}).mean(),
        },
        right="Heads that are kept are computed from streams in which all else is replaced.",
    )


# --- 10.3 The historical mistake ------------------------------------------------------------------


@exercise("10.3")
def _wrong_reference(ctx: Context) -> Key:
    model, data, watchers = ctx.model, ctx.data, parse_nodes(ctx.watchers)
    abba = torch.tensor([order == "ABBA" for order in data.orders], device=data.tokens.device)
    whole = hooked(model, data, {})
    roles, everywhere = (
        _mask(ctx, data, nodes) for nodes in (watchers, [node.at(None) for node in watchers])
    )
    own_abc, renamed = ctx.once("own ABC", data.abc), ctx.once("renamed", data.random_names)
    tables = {
        name: _means(ctx, data, source, by)
        for name, source, by in (
            ("mistake", data, BOTH),
            ("own, pooled", data, "template"),
            ("more", ctx.many, BOTH),
            ("more, pooled", ctx.many, "template"),
            ("renamed", renamed, BOTH),
            ("ABC", ctx.reference, BOTH),
            ("ABC, pooled", ctx.reference, "template"),
            ("own ABC", own_abc, BOTH),
        )
    } | {
        name: _means_at_roles(ctx, data, source)
        for name, source in (
            ("own, all", data),
            ("more, all", ctx.many),
            ("ABC, all", ctx.reference),
        )
    }

    def by_order(values: Tensor) -> Tensor:
        return torch.stack([values[mask].mean() for mask in (abba, ~abba)])

    runs = {name: _run(ctx, data, roles, table) for name, table in tables.items()}
    runs["zero"] = _run(ctx, data, roles, 0.0)
    runs["resampled"] = _run(ctx, data, roles, _z(ctx, own_abc))
    left = {name: by_order(values) / by_order(whole) for name, values in runs.items()}

    def answer(repaired: str) -> Tensor:
        return torch.stack([left["mistake"], left[repaired]])

    def tells(repaired: str) -> bool:
        """Whether a repair is further from that by ABC prompts than two of its errors."""
        apart = (by_order(runs[repaired]) - by_order(runs["ABC"])).abs()
        unsure = [error(runs["ABC"][m], data[m]) for m in (abba, ~abba)]
        return bool((apart > 2 * torch.tensor(unsure).to(apart)).any())

    # Repairs that are none, unless the model at hand cannot tell.
    repairs = {
        "own, pooled": "pooling the orders of IOI prompts as the repair. Look at ABBA and BABA "
        "apart: the mean is still one of repeated names",
        "more, pooled": "pooling the orders of more IOI prompts as the repair. Look at ABBA and "
        "BABA apart: the mean is still one of repeated names",
        "own, all": "taking one mean over all IOI prompts of `data` as the repair. It is still one "
        "of repeated names",
        "more, all": "taking one mean over all of more IOI prompts as the repair. It is still one "
        "of repeated names",
        "more": "taking more prompts of the same kind as the repair. What is in all of them stays "
        "in their mean, however many they are",
        "renamed": "taking other names in the same sentences as the repair. There a name is "
        "repeated, too",
        "zero": "taking zero as the repair. A mean is asked for",
    }
    tied = [name for name in repairs if not tells(name)]
    truth = answer("ABC")
    logits = torch.stack([by_order(runs["mistake"]), by_order(runs["ABC"])])
    at_all = torch.stack(
        [
            by_order(_run(ctx, data, everywhere, tables[name])) / by_order(whole)
            for name in ("mistake", "ABC")
        ]
    )
    return array(
        truth,
        ("how", "order"),
        relative=0.0,
        absolute=8e-3,
        error=float(max(error(runs["mistake"][m], data[m]) for m in (abba, ~abba)) / whole.mean()),
        also={
            "Pooling the orders of ABC prompts is right as well: their order says nothing.": answer(
                "ABC, pooled"
            ),
            "One mean for all ABC prompts is right as well: they hold nothing, whatever the "
            "template.": answer("ABC, all"),
            "The ABC prompts of `data` itself hold nothing either; there are two to each mean.": (
                answer("own ABC")
            ),
            "Resampled from ABC prompts, which hold nothing either.": answer("resampled"),
        }
        | {
            f"This repair ({mistake(repairs[name])}) is none, but on this model it lies within two "
            "errors of the one by ABC prompts, so they cannot be told apart.": answer(name)
            for name in tied
        },
        mistakes={text: answer(name) for name, text in repairs.items() if name not in tied}
        | {
            "repairing nothing": answer("mistake"),
            "exchanging the rows; the mistake comes first": truth.flip(0),
            "exchanging the orders; ABBA comes first": truth.flip(1),
            "taking logits, not shares of F(M)": logits,
            "dividing by F(M) over both orders. Divide within the order": logits / whole.mean(),
            "taking the share that is lost, not the one that is left": 1 - truth,
            "taking these heads out at every position, not at their roles only": at_all,
        },
        right="A mean holds what all its prompts share.",
    )


# --- 10.4 The K that exposes A --------------------------------------------------------------------


@exercise("10.4")
def _exposing(ctx: Context) -> Key:
    naive: Circuit = ctx.naive
    circuits = ctx.once("few", lambda: Circuits(ctx.model, ctx.few, ctx.reference))
    Nodes = frozenset[Node]

    def f_circuit(K: Nodes) -> float:
        return ctx.once(
            f"circuit without {sorted(K)}",
            lambda: float(circuits.run(naive, without=Circuit(K)).logit_diff.mean()),
        )

    def apart(K: Nodes) -> float:
        whole = ctx.once(
            f"model without {sorted(K)}",
            lambda: float(circuits.run_model(without=Circuit(K)).logit_diff.mean()),
        )
        return abs(f_circuit(K) - whole)

    def apart_everywhere(K: Nodes) -> float:
        out = [node.at(None) for node in K]
        return abs(f_circuit(K) - float(circuits.run_model(without=out).logit_diff.mean()))

    singles: list[Nodes] = [frozenset([node]) for node in naive]
    groups: list[Nodes] = [frozenset(nodes) for nodes in naive.classes.values()]
    start = max(singles + groups, key=apart)
    goal = max(apart(start), *(apart(start | one) for one in singles))
    deepest = min(map(f_circuit, singles + groups))

    def read(answer: Any) -> Nodes:
        try:
            given = (
                tuple(answer) if isinstance(answer, Circuit) else parse_nodes(_as_printed(answer))
            )
        except ValueError as refusal:
            raise Refused(str(refusal)) from None
        if not given:
            raise Refused("Your K is empty; at K = nothing the two circuits look alike.")
        return frozenset(_member(naive, node) for node in given)

    return pick(
        lambda K: apart(K) >= goal - 1e-3,
        read,
        rules={
            "It would do if M \\ K were ablated at every position, but in M \\ K the heads of K "
            "are replaced at their roles only.": lambda K: apart_everywhere(K) >= goal - 1e-3,
            "That is the best of the single members and groups. Add the member that raises the "
            "difference most.": lambda given: given == start,
            "That is one member. Several that stand in for each other show more.": lambda K: (
                len(K) == 1
            ),
            "F(C \\ K) falls far, but so does F(M \\ K). Look for the largest difference of the "
            "two, not for the largest drop of F(C \\ K) alone.": lambda K: (
                f_circuit(K) <= deepest + 0.1 * abs(deepest) and apart(K) < apart(start)
            ),
            "A single member or group shows more than this K: such sets are easily drawn at "
            "random. Start from the best one and grow it.": lambda K: apart(K) < apart(start),
        },
        hint="It beats every single member and group; one member more to the best of these gives "
        f"{goal:.2f} logits.",
        right=lambda K: (
            f"The two are {apart(K):.2f} logits apart; the best single member or group "
            f"shows {apart(start):.2f}."
        ),
    )


def _as_printed(answer: Any) -> Any:
    """Nodes that are written as the notebook prints them, "L9H9 at END", as pairs."""
    if isinstance(answer, str):
        component, _, role = answer.partition(" at ")
        return (component, role) if role else answer
    if isinstance(answer, list | set | frozenset):
        return type(answer)(map(_as_printed, answer))
    return answer


def _member(circuit: Circuit, node: Node) -> Node:
    """The member that is meant; a head may stand without its role where it is in once."""
    if node in circuit:
        return node
    same = [one for one in circuit if (one.layer, one.head) == (node.layer, node.head)]
    if node.role is None and len(same) == 1:
        return same[0]
    if node.role is None and same:
        raise Refused(f"{node} is in `naive` at several roles; write ('{node}', 'END').")
    raise Refused(f"{node} is not in `naive`, so it cannot be in K: K is a part of the circuit.")


# --- 10.5 Scrub by hand ---------------------------------------------------------------------------


@exercise("10.5")
def _scrubbed(ctx: Context) -> Key:
    few, circuit, shape = ctx.few, ctx.circuit, Shape.of(ctx.model)
    watching = [node for node in parse_nodes(ctx.watchers) if node.role == "END"]
    outside = [node for node in circuit.outside(shape, ["END"]) if node not in watching]
    story, rest = _mask(ctx, few, watching), _mask(ctx, few, outside)

    def drawn(features: tuple[str, ...], seed: int) -> IOIDataset:
        return ctx.once(f"draw {features} {seed}", lambda: few.redraw(features, seed=seed))

    unrelated = drawn((), 2)

    def scrub(
        features: tuple[str, ...], other: IOIDataset | None = unrelated, own_names: bool = True
    ) -> Float[Tensor, " batch"]:
        draw = drawn(features, 1)
        instead = _z(ctx, draw).clone()
        gone = story
        if other is not None:
            instead[rest] = _z(ctx, other)[rest]
            gone = story | rest
        scored = None if own_names else draw
        return _run(ctx, few, gone, instead, scored)

    order, name = ("order",), ("S",)

    def two(*runs: Float[Tensor, " batch"]) -> Float[Tensor, " hypothesis"]:
        return torch.stack([run.mean() for run in runs])

    by_order, by_name = scrub(order), scrub(name)
    truth = two(by_order, by_name)
    whole, nothing = scrub(("order", "IO", "S")), scrub(())
    per_prompt = hooked(ctx.model, few, {})
    apart = metrics.mean_and_stderr(by_order - by_name, clusters=few.pair_ids)
    better = "the order" if apart.mean > 0 else "the name"
    if abs(apart.mean) <= 2 * apart.stderr:
        better = "neither is, within two errors"
    return array(
        truth,
        ("hypothesis",),
        relative=0.0,
        absolute=5e-3,
        error=0.0,
        mistakes={
            "taking for the heads outside prompts of the same order. They must agree in nothing, "
            "or the order leaks": two(scrub(order, drawn(order, 2)), scrub(name, drawn(order, 2))),
            "drawing prompts that agree in everything. A hypothesis that agrees in the whole "
            "prompt passes always": two(whole, whole),
            "drawing prompts that agree in order and name for both hypotheses. Each claims one of "
            "them only": two(scrub(("order", "S")), scrub(("order", "S"))),
            "drawing prompts that agree in IO as well. Neither hypothesis speaks of IO": two(
                scrub(("order", "IO")), scrub(("S", "IO"))
            ),
            "drawing prompts that agree in nothing. Each hypothesis names a feature": two(
                nothing, nothing
            ),
            "using one draw for the whole tree. The heads outside have a draw of their own": two(
                scrub(order, drawn(order, 1)), scrub(name, drawn(name, 1))
            ),
            "scoring with the drawn prompts' names. The answer is asked of `search`'s prompts": (
                two(scrub(order, own_names=False), scrub(name, own_names=False))
            ),
            "exchanging the two; the order comes first": truth.flip(0),
            "leaving the heads outside the circuit as they are": two(
                scrub(order, None), scrub(name, None)
            ),
            "running the model with nothing put in": two(per_prompt, per_prompt),
            "taking shares of the model's logit difference, not logits": truth / per_prompt.mean(),
        },
        right=f"Of {per_prompt.mean():.2f} logits, and of {nothing.mean():.2f} with nothing passed "
        f"on. The better story here: {better} (order less name: {apart:.2f} logits).",
    )
