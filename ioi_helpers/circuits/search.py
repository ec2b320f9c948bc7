"""Find a circuit of nodes by leaving out, round after round, what is missed least.

What "missed" means decides what is found. F(C) / F(M) alone is easily satisfied: errors of opposite
sign cancel in a mean. So :func:`prune` asks that every prompt stays near the model, and
:func:`make_minimal` then lets go of members that do not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from ioi_helpers.circuits.run import CircuitRun, Circuits
from ioi_helpers.circuits.scores import class_witnesses, minimality
from ioi_helpers.graph import Circuit, Node, NodeLike
from ioi_helpers.runs import progress_bar


@dataclass(frozen=True)
class Step:
    """One round: the nodes left out together, what is left then, and how it does.

    Attributes:
        left_out: The nodes, least missed first.
        size: Nodes left.
        ratio: F(C) / F(M).
        mean_absolute_difference: Over prompts, logits.
        nats: The circuit's loss minus the model's.
    """

    left_out: tuple[Node, ...]
    size: int
    ratio: float
    mean_absolute_difference: float
    nats: float


@dataclass(frozen=True)
class Pruning:
    """The circuit that is left, and every step on the way there."""

    circuit: Circuit
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Limits:
    """How far from the model a circuit may be; what is None does not matter."""

    most_difference: float
    most_nats: float | None
    most_gap: float | None

    def at_least(self, now: Step) -> Limits:
        """These, but where a circuit breaks them already: there it must not get worse."""
        return Limits(
            max(self.most_difference, now.mean_absolute_difference),
            None if self.most_nats is None else max(self.most_nats, now.nats),
            None if self.most_gap is None else max(self.most_gap, abs(1 - now.ratio)),
        )

    def allow(self, found: Step) -> bool:
        """Whether it is within all of them."""
        return (
            found.mean_absolute_difference <= self.most_difference
            and (self.most_nats is None or found.nats <= self.most_nats)
            and (self.most_gap is None or abs(1 - found.ratio) <= self.most_gap)
        )


def _step(
    circuits: Circuits, model: CircuitRun, nodes: Circuit, left_out: tuple[Node, ...]
) -> Step:
    """How a circuit does, which was reached by leaving out these nodes."""
    found = circuits.run(nodes)
    return Step(
        left_out,
        len(nodes),
        float(found.logit_diff.mean()) / float(model.logit_diff.mean()),
        float((found.logit_diff - model.logit_diff).abs().mean()),
        float((found.loss - model.loss).mean()),
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
    model = circuits.run_model()
    limits = asked = Limits(most_difference, most_nats, most_gap)
    if len(circuit):
        limits = asked.at_least(_step(circuits, model, circuit, ()))

    def step(nodes: Circuit, left_out: tuple[Node, ...]) -> Step:
        return _step(circuits, model, nodes, left_out)

    def allowed(found: Step) -> bool:
        return (at_most is not None and found.size >= at_most) or limits.allow(found)

    steps: list[Step] = []
    bar = progress_bar("pruning", show=progress, total=len(circuit))
    with bar:
        while len(circuit):
            tried = sorted(
                (step(circuit - [node], (node,)) for node in circuit),
                key=lambda one: (one.mean_absolute_difference, one.left_out),
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
            if limits.allow(found):
                limits = asked.at_least(found)
            steps.append(found)
            bar.update(len(found.left_out))
    return Pruning(circuit, tuple(steps))


@dataclass(frozen=True)
class Minimal:
    """What is left when members that do not matter have gone.

    Attributes:
        circuit: The members that are left.
        table: For each of them the witness set K that shows best that it matters: its name, the
            change F(C \\ (K u {v})) - F(C \\ K) in logits with its ``error`` over pairs, ``share``,
            the change's size as a share of F(M), and whether that is enough (``matters``).
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
    F(C \\ (K u {v})) - F(C \\ K) is large; here K is nothing, or the rest of v's class, since what
    backs v up hides it. While some member's change is below the bounds, the least of them goes, if
    the circuit stays within the limits without it. For those that have to stay, K may then be any
    one other member; since that is many tries, the change must be one error larger.

    Args:
        circuits: The model on the prompts that the search may see.
        circuit: The circuit, with its classes.
        most_difference, most_nats, most_gap: As for :func:`prune`.
        least: The smallest change, as a share of F(M).
        errors: The smallest change, in errors over pairs.
        progress: Show a bar.
    """
    model = circuits.run_model()
    limits = Limits(most_difference, most_nats, most_gap)
    gone: list[Node] = []
    with progress_bar("rounds", show=progress) as bar:
        while True:
            nothing: dict[Node, Circuit] = {node: Circuit.of(()) for node in circuit}
            table = _best(
                [
                    _tried(circuits, circuit, "nothing", nothing, least, errors),
                    _tried(
                        circuits, circuit, "rest of its class", class_witnesses(circuit),
                        least, errors,
                    ),
                ]
            )  # fmt: skip
            bar.update(1)
            idle = [node for node in circuit if not table.loc[str(node), "matters"]]
            idle.sort(key=lambda node: float(table.loc[str(node), "share"]))
            for node in idle:
                rest = circuit - [node]
                if limits.allow(_step(circuits, model, rest, (node,))):
                    circuit, gone = rest, [*gone, node]
                    break
            else:
                break
    tables = [table]
    for node in idle:
        tables += [
            _tried(circuits, circuit, str(mate), {node: Circuit.of([mate])}, least, errors + 1)
            for mate in circuit
            if mate != node
        ]
    return Minimal(circuit, _best(tables).loc[[str(node) for node in circuit]], tuple(gone))


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
    return table


def _best(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Each member's largest change that is enough, or its largest change."""
    both = pd.concat(tables).sort_values(["matters", "share"], ascending=False, kind="stable")
    return both[~both.index.duplicated()]
