"""Find a circuit of nodes by leaving out, round after round, what is missed least.

What "missed" means decides what is found. F(C) / F(M) alone is easily satisfied: errors of opposite
sign cancel in a mean. So :func:`prune` asks that every prompt stays near the model, and
:func:`make_minimal` then lets go of members that do not matter. :func:`circuit_by_gradient` is a
first guess that takes no search.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from ioi_helpers.circuits.run import Circuits
from ioi_helpers.circuits.scores import Faithfulness, class_witnesses, faithfulness, minimality
from ioi_helpers.dataset.two_answers import reference_for
from ioi_helpers.graph import Circuit, Node, NodeLike, parse_node
from ioi_helpers.patching import attribution_patch_sweep
from ioi_helpers.runs import progress_bar


@dataclass(frozen=True)
class Step:
    """One round: the nodes left out together, what is left then, and how it does.

    Attributes:
        left_out: The nodes, least missed first.
        size: Nodes left.
        found: How near what is left comes to the model.
    """

    left_out: tuple[Node, ...]
    size: int
    found: Faithfulness


@dataclass(frozen=True)
class Pruning:
    """The circuit that is left, and every step on the way there."""

    circuit: Circuit
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Limits:
    """How far from the model a circuit may be; what is None does not matter.

    Attributes:
        most_difference: The largest mean absolute difference over prompts, logits.
        most_nats: The largest loss above the model's.
        most_gap: The largest distance of F(C) / F(M) from 1.
    """

    most_difference: float
    most_nats: float | None = None
    most_gap: float | None = None

    def at_least(self, now: Faithfulness) -> Limits:
        """These, but where a circuit breaks them already: there it must not get worse."""
        return Limits(
            max(self.most_difference, now.mean_absolute_difference().mean),
            None if self.most_nats is None else max(self.most_nats, now.nats().mean),
            None if self.most_gap is None else max(self.most_gap, abs(1 - now.ratio().mean)),
        )

    def allow(self, found: Faithfulness) -> bool:
        """Whether it is within all of them."""
        return (
            found.mean_absolute_difference().mean <= self.most_difference
            and (self.most_nats is None or found.nats().mean <= self.most_nats)
            and (self.most_gap is None or abs(1 - found.ratio().mean) <= self.most_gap)
        )


def prune(
    circuits: Circuits,
    start: Circuit | Iterable[NodeLike],
    *,
    most_difference: float,
    most_nats: float | None = None,
    most_gap: float | None = None,
    at_most: int | None = None,
    progress: bool = True,
) -> Pruning:
    """Leave out nodes as long as the circuit stays near the model, prompt by prompt.

    In each round every node is left out in turn. The half of them without which the mean absolute
    difference stays smallest then goes at once, if that is allowed; else half of that, and so on
    down to the single best node that is allowed. So a long tail of idle nodes costs few runs.

    Args:
        circuits: The model on the prompts that the search may see. Score what it finds on others.
        start: The nodes to begin with, such as all heads at all roles.
        most_difference: The largest mean absolute difference from the model that is allowed,
            logits.
        most_nats: The largest loss above the model's that is allowed.
        most_gap: The largest distance of F(C) / F(M) from 1 that is allowed. A limit that the
            start breaks may be broken as much later on.
        at_most: Go on, whatever the limits, while there are more nodes than that.
        progress: Show a bar.
    """
    circuit = start if isinstance(start, Circuit) else Circuit.of(start)
    first = faithfulness(circuits, circuit)
    asked = Limits(most_difference, most_nats, most_gap)
    limits = asked.at_least(first)

    def step(nodes: Circuit, left_out: tuple[Node, ...]) -> Step:
        return Step(left_out, len(nodes), replace(first, circuit=circuits.run(nodes)))

    def allowed(one: Step) -> bool:
        return (at_most is not None and one.size >= at_most) or limits.allow(one.found)

    steps: list[Step] = []
    bar = progress_bar("pruning", show=progress, total=len(circuit))
    with bar:
        while len(circuit):
            tried = sorted(
                (step(circuit - [node], (node,)) for node in circuit),
                key=lambda one: (one.found.mean_absolute_difference().mean, one.left_out),
            )
            # The better half at once, while that is allowed; else half of that; then the best one
            # that is allowed by itself.
            number = len(tried) // 2
            while number > 1:
                gone = tuple(node for one in tried[:number] for node in one.left_out)
                found = step(circuit - gone, gone)
                if allowed(found):
                    break
                number //= 2
            else:
                possible = [one for one in tried if allowed(one)]
                if not possible:
                    break
                found = possible[0]
            circuit = circuit - found.left_out
            if limits.allow(found.found):
                limits = asked.at_least(found.found)
            steps.append(found)
            bar.update(len(found.left_out))
    return Pruning(circuit, tuple(steps))


def improve(
    circuits: Circuits,
    circuit: Circuit,
    candidates: Iterable[NodeLike],
    *,
    at_most: int,
    least_gain: float = 0.005,
    again: int = 24,
    progress: bool = True,
) -> Circuit:
    """Take nodes in and leave nodes out, one at a time, while the circuit nears the model.

    What is lowered is the mean absolute difference from the model plus the size of the mean
    difference, both in logits: so that single prompts are near, and errors do not add up to one
    side either. Pruning alone never takes back what it left out early.

    Args:
        circuits: The model on the prompts that the search may see.
        circuit: What to begin with.
        candidates: Nodes that may come in.
        at_most: The most members.
        least_gain: The least that a step must gain, logits.
        again: How many of the candidates are tried in every round: the best of the first.
        progress: Show a bar.
    """
    first = faithfulness(circuits, circuit)

    def off(nodes: Circuit) -> float:
        found = replace(first, circuit=circuits.run(nodes))
        return found.mean_absolute_difference().mean + abs(found.difference().mean)

    outside = [node for node in Circuit.of(candidates) if node not in circuit]
    now = off(circuit)
    with progress_bar("rounds", show=progress) as bar:
        tried = sorted((off(circuit | Circuit.of([node])), node) for node in outside)
        outside = [node for _, node in tried[:again]]
        while True:
            steps = [circuit - [node] for node in circuit]
            if len(circuit) < at_most:
                steps += [circuit | Circuit.of([n]) for n in outside if n not in circuit]
            best, gained = min(((step, off(step)) for step in steps), key=lambda one: one[1])
            bar.update(1)
            if gained > now - least_gain:
                return circuit
            circuit, now = best, gained


def circuit_by_gradient(
    circuits: Circuits,
    *,
    most_difference: float = 1.0,
    most_nats: float | None = 0.5,
    sizes: Sequence[int] = (10, 15, 20, 30, 40, 60),
    roles: Sequence[str] | None = None,
    progress: bool = True,
) -> Circuit:
    """A first guess, for a model of which no circuit is on record: heads at roles, by gradients.

    Every head's effect at every role is estimated by the gradient of the data's run and of the
    reference's (attribution patching both ways; a softmax that is saturated in one run need not be
    in the other), and the larger counts. As many of the highest are taken as bring the circuit near
    the model. It takes two gradients and a few runs, whatever the model's size; :func:`prune` takes
    a run for every head, and finds less that is idle.

    Args:
        circuits: The model on the prompts that the search may see. Prompts that make no ABC
            prompts of their own need its reference row by row.
        most_difference, most_nats: As for :func:`prune`; where no size is within them, the circuit
            is the one whose prompts are nearest to the model's, and may be far.
        sizes: How many (head, role) pairs are tried.
        roles: Where heads may stand; every role of the prompts if it is None.
        progress: Show a bar where there is something to wait for.

    Returns:
        The circuit, its members grouped by role.
    """
    data, limits = circuits.data, Limits(most_difference, most_nats)
    roles = roles or tuple(data.positions)
    # Row by row: a reference that means are taken over may be larger than the data.
    reference = reference_for(data, None if hasattr(data, "abc") else circuits.reference)
    scores = torch.stack(
        [
            attribution_patch_sweep(
                circuits.model, data, reference, "z", ("layer", "role", "head"),
                direction=direction, roles=roles, progress=progress,
            ).effect().mean(dim=-1).abs()
            for direction in ("noising", "denoising")
        ]
    ).amax(dim=0)  # fmt: skip
    by_node = {
        Node(layer, head, role): float(scores[layer, i, head])
        for layer in range(circuits.shape.n_layers)
        for i, role in enumerate(roles)
        for head in range(circuits.shape.n_heads)
    }
    first = faithfulness(circuits, ())
    best, nearest = Circuit.of(()), float("inf")
    for size in progress_bar("sizes", sorted(sizes), show=progress):
        chosen = Circuit.of_scores(by_node, top=size)
        found = replace(first, circuit=circuits.run(chosen))
        if found.mean_absolute_difference().mean < nearest:
            best, nearest = chosen, found.mean_absolute_difference().mean
        if limits.allow(found):
            break
    groups = {f"at {role}": frozenset(n for n in best if n.role == role) for role in roles}
    return Circuit(
        best.nodes,
        classes={label: nodes for label, nodes in groups.items() if nodes},
        name="circuit by gradient",
    )


@dataclass(frozen=True)
class Minimal:
    """What is left when members that do not matter have gone.

    Attributes:
        circuit: The members that are left.
        table: For each of them the witness set K that shows best that it matters: its name (see
            :func:`witness`), the change F(C \\ (K u {v})) - F(C \\ K) in logits with its ``error``
            over pairs, ``share``, the change's size as a share of F(M), and whether that is enough
            (``matters``).
        gone: Who was left out, first to last.
    """

    circuit: Circuit
    table: pd.DataFrame
    gone: tuple[Node, ...]


def make_minimal(
    circuits: Circuits,
    circuit: Circuit,
    *,
    most_difference: float,
    most_nats: float | None = None,
    most_gap: float | None = None,
    least: float = 0.01,
    errors: float = 2.0,
    progress: bool = True,
) -> Minimal:
    """Leave out members that do not matter, until every one does.

    Pruning keeps what nears each prompt to the model, and so members that change the mean by
    nothing. A member v *matters* (Wang et al. 2022, section 4.2) if for some K the change
    F(C \\ (K u {v})) - F(C \\ K) is large: ``least`` of F(M) or more, beyond ``errors``. Here K is
    nothing, or the rest of v's class, since what backs v up hides it. While some member does not
    matter, the least of them goes, if the circuit stays within the limits without it. For those
    that have to stay, K may then be another class, or any one other member; since that is many
    tries, the change must be one error larger.

    Args:
        circuits: The model on the prompts that the search may see.
        circuit: The circuit, with its classes.
        most_difference, most_nats, most_gap: As for :func:`prune`.
        least: The smallest change, as a share of F(M). Where nobody searched a change may be half
            of what it is here, so ask for more than you want to hold there.
        errors: The smallest change, in errors over pairs.
        progress: Show a bar.
    """
    first = faithfulness(circuits, circuit)
    limits = Limits(most_difference, most_nats, most_gap)
    gone: list[Node] = []

    with progress_bar("rounds", show=progress) as bar:
        while True:
            nothing: dict[Node, Circuit] = {node: Circuit.of(()) for node in circuit}
            tables = [
                _tried(circuits, circuit, "nothing", nothing, least, errors),
                _tried(
                    circuits, circuit, "rest of its class", class_witnesses(circuit), least, errors
                ),
            ]
            bar.update(1)
            best = _best(tables, "share")
            idle = [node for node in circuit if not best.loc[str(node), "matters"]]
            idle.sort(key=lambda node: float(best.loc[str(node), "share"]))
            for node in idle:
                rest = circuit - [node]
                if limits.allow(replace(first, circuit=circuits.run(rest))):
                    circuit, gone = rest, [*gone, node]
                    break
            else:
                break
    for name, K in {**_classes(circuit), **_members(circuit)}.items():
        if further := {node: K for node in idle if node not in K}:
            tables.append(_tried(circuits, circuit, name, further, least, errors + 1))
    table = _best(tables, "margin").loc[[str(node) for node in circuit]]
    return Minimal(circuit, table, tuple(gone))


def _classes(circuit: Circuit) -> dict[str, Circuit]:
    return {
        label: Circuit(members & circuit.nodes)
        for label, members in circuit.classes.items()
        if members & circuit.nodes
    }


def _members(circuit: Circuit) -> dict[str, Circuit]:
    return {str(node): Circuit.of([node]) for node in circuit}


def witness(circuit: Circuit, node: NodeLike, K: str) -> Circuit:
    """The set K that a table of :class:`Minimal` names: by a word, a class, or a member.

    Raises:
        ValueError: It names none.
    """
    node = parse_node(node)
    if K == "nothing":
        return Circuit.of(())
    if K == "rest of its class":
        return class_witnesses(circuit)[node]
    known = _classes(circuit) | _members(circuit)
    if K not in known:
        raise ValueError(f"{K!r} is no class and no member of this circuit.")
    return known[K]


def _tried(
    circuits: Circuits,
    circuit: Circuit,
    name: str,
    witnesses: dict[Node, Circuit],
    least: float,
    errors: float,
) -> pd.DataFrame:
    """The changes under these witness sets, and whether they are enough."""
    table = minimality(circuits, circuit, witnesses, progress=False)
    table.insert(0, "K", name)
    clear = table["change"].abs() > errors * table["error"]
    table["matters"] = (table["share"] >= least) & clear
    table["margin"] = np.minimum(
        table["share"] / least, table["change"].abs() / table["error"] / errors
    )
    return table


def _best(tables: Sequence[pd.DataFrame], by: str) -> pd.DataFrame:
    """Each member's largest change that is enough, or its largest change; ``by`` says in what."""
    both = pd.concat(tables).sort_values(["matters", by], ascending=False, kind="stable")
    return both[~both.index.duplicated()]
