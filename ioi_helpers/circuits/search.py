"""Find a circuit of nodes by leaving out, one after another, what is missed least.

What "missed" means decides what is found. F(C) / F(M) alone is easily satisfied: errors of opposite
sign cancel in a mean. So :func:`prune` asks that every prompt stays near the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ioi_helpers.circuits.run import CircuitRun, Circuits
from ioi_helpers.graph import Circuit, Node, NodeLike
from ioi_helpers.runs import progress_bar


@dataclass(frozen=True)
class Step:
    """One node left out: what is left then, and how it does.

    Attributes:
        left_out: The node.
        size: Nodes left.
        ratio: F(C) / F(M).
        mean_absolute_difference: Over prompts, logits.
        nats: The circuit's loss minus the model's.
    """

    left_out: Node
    size: int
    ratio: float
    mean_absolute_difference: float
    nats: float


@dataclass(frozen=True)
class Pruning:
    """The circuit that is left, and every step on the way there."""

    circuit: Circuit
    steps: tuple[Step, ...]


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

    In each round every node is left out in turn; the node without which the mean absolute
    difference is smallest goes. Nodes whose absence did nearly nothing in one round are tried
    together first, so that a long tail of idle nodes costs few runs.

    Args:
        circuits: The model on the prompts that the search may see. Score what it finds on others.
        start: The nodes to begin with, such as all heads at all roles.
        most_difference: The largest mean absolute difference from the model that is allowed,
            logits.
        most_nats: The largest loss above the model's that is allowed.
        most_gap: The largest distance of F(C) / F(M) from 1 that is allowed.
        at_most: Go on, whatever the limits, while there are more nodes than that.
        progress: Show a bar.
    """
    circuit = start if isinstance(start, Circuit) else Circuit.of(start)
    model = circuits.run_model()
    total = float(model.logit_diff.mean())

    def step(nodes: Circuit, left_out: Node) -> Step:
        found: CircuitRun = circuits.run(nodes)
        return Step(
            left_out,
            len(nodes),
            float(found.logit_diff.mean()) / total,
            float((found.logit_diff - model.logit_diff).abs().mean()),
            float((found.loss - model.loss).mean()),
        )

    def allowed(found: Step) -> bool:
        return (
            (at_most is not None and found.size >= at_most)
            or found.mean_absolute_difference <= most_difference
            and (most_nats is None or found.nats <= most_nats)
            and (most_gap is None or abs(1 - found.ratio) <= most_gap)
        )

    steps: list[Step] = []
    bar = progress_bar("pruning", show=progress, total=len(circuit))
    with bar:
        while len(circuit):
            tried = sorted(
                (step(circuit - [node], node) for node in circuit),
                key=lambda one: (one.mean_absolute_difference, one.left_out),
            )
            # The better half at once, while that is allowed; else half of that; then the best one
            # that is allowed by itself.
            number = len(tried) // 2
            while number > 1:
                gone = [one.left_out for one in tried[:number]]
                found = step(circuit - gone, gone[-1])
                if allowed(found):
                    break
                number //= 2
            else:
                possible = [one for one in tried if allowed(one)]
                if not possible:
                    break
                found = possible[0]
                gone = [found.left_out]
            circuit = circuit - gone
            steps.append(found)
            bar.update(len(gone))
    return Pruning(circuit, tuple(steps))
