"""How good an explanation is a circuit? Faithfulness, completeness, minimality.

F(C) is the mean logit difference of the model run as circuit C, M the whole model (Wang et al.
2022, section 4). A circuit is

* *faithful* if F(C) is near F(M);
* *complete* if F(C \\ K) is near F(M \\ K) for every part K of it: then nothing outside does what K
  does;
* *minimal* if every node v matters: for some K, F(C \\ (K u {v})) is far from F(C \\ K).

A single number hides much. F(C) / F(M) can be 1 while every prompt is wrong by a lot, one order too
high and the other too low; so errors, prompts' differences and nats of loss stand beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.circuits.run import CircuitRun, Circuits, part_of
from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.dataset.two_answers import orders_of, template_ids_of
from ioi_helpers.graph import Circuit, Node, NodeLike, parse_node
from ioi_helpers.metrics import (
    Estimate,
    error_label,
    standard_error,
)
from ioi_helpers.runs import progress_bar

Subset = Iterable[NodeLike]


# --- faithfulness --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Faithfulness:
    """The runs of the model, of a circuit, and of the circuit with nothing in it, on one dataset.

    Attributes:
        model, circuit, empty: What each predicts at END.
        pair_ids, orders, templates: Of the prompts. Errors are over pairs.
    """

    model: CircuitRun
    circuit: CircuitRun
    empty: CircuitRun
    pair_ids: Int[Tensor, " batch"]
    orders: tuple[str, ...]
    templates: tuple[int, ...]

    def rows(self, chosen: Sequence[int]) -> Faithfulness:
        """The same of some prompts only."""
        index = torch.as_tensor(chosen)

        def some(run: CircuitRun) -> CircuitRun:
            return CircuitRun(run.logit_diff[index], run.loss[index])

        return Faithfulness(
            some(self.model),
            some(self.circuit),
            some(self.empty),
            self.pair_ids[index],
            tuple(self.orders[i] for i in chosen),
            tuple(self.templates[i] for i in chosen),
        )

    @property
    def error_label(self) -> str:
        """What errors are over, such as ``"standard error over 100 pairs"``."""
        return error_label(self.pair_ids)

    def ratio(self) -> Estimate:
        """F(C) / F(M): the ratio of the means, with its error (first order, over pairs)."""
        return _ratio(self.circuit.logit_diff, self.model.logit_diff, self.pair_ids)

    def normalised(self) -> Estimate:
        """(F(C) - F(empty)) / (F(M) - F(empty)): 0 for nothing kept, 1 for the model."""
        empty = self.empty.logit_diff
        return _ratio(self.circuit.logit_diff - empty, self.model.logit_diff - empty, self.pair_ids)

    def mean_of_ratios(self) -> float:
        """The mean over prompts of each prompt's ratio; ruled by prompts with a small F(M)."""
        return float((self.circuit.logit_diff / self.model.logit_diff).mean())

    def difference(self) -> Estimate:
        """F(C) - F(M), in logits."""
        return _estimate(self.circuit.logit_diff - self.model.logit_diff, self.pair_ids)

    def mean_absolute_difference(self) -> Estimate:
        """The mean over prompts of how far the circuit is off, in logits."""
        gap = (self.circuit.logit_diff - self.model.logit_diff).abs()
        return _estimate(gap, self.pair_ids)

    def nats(self) -> Estimate:
        """The circuit's loss minus the model's, in nats of -log p(IO)."""
        return _estimate(self.circuit.loss - self.model.loss, self.pair_ids)

    def table(
        self, by: Literal["order", "template", "template and order"] | None = None
    ) -> pd.DataFrame:
        """All of these, one row for all prompts, or one for each order, template, or both.

        Raises:
            ValueError: ``by`` is something else.
        """
        if by is None:
            return pd.DataFrame([self._row()], index=pd.Index(["all prompts"]))
        keys: dict[str, list[Any]] = {
            "order": list(self.orders),
            "template": list(self.templates),
            "template and order": list(zip(self.templates, self.orders, strict=True)),
        }
        if by not in keys:
            raise ValueError(f"by must be None or one of {', '.join(keys)}, not {by!r}.")
        values = keys[by]
        groups: list[Any] = sorted(set(values), key=_as_key)
        rows = [
            self.rows([i for i, key in enumerate(values) if key == group])._row()
            for group in groups
        ]
        names = [f"{g[0]} {g[1]}" if isinstance(g, tuple) else g for g in groups]
        return pd.DataFrame(rows, index=pd.Index(names, name=by))

    def _row(self) -> dict[str, float]:
        ratio, normalised = self.ratio(), self.normalised()
        return {
            "F(M)": float(self.model.logit_diff.mean()),
            "F(C)": float(self.circuit.logit_diff.mean()),
            "F(empty)": float(self.empty.logit_diff.mean()),
            "F(C) / F(M)": ratio.mean,
            "its error": ratio.stderr,
            "normalised": normalised.mean,
            "mean of ratios": self.mean_of_ratios(),
            "mean |difference|": self.mean_absolute_difference().mean,
            "nats lost": self.nats().mean,
            "pairs": ratio.n,
        }


def _as_key(group: Any) -> Any:
    return group if isinstance(group, tuple) else (group,)


def _estimate(values: Float[Tensor, " batch"], pair_ids: Int[Tensor, " batch"]) -> Estimate:
    """A mean and its error over pairs; no number (NaN) where there is one pair only."""
    n = len(torch.unique(pair_ids))
    return Estimate(float(values.mean()), float(standard_error(values, pair_ids)), n)


def _ratio(
    above: Float[Tensor, " batch"], below: Float[Tensor, " batch"], pair_ids: Int[Tensor, " batch"]
) -> Estimate:
    """The ratio of two means and its error to first order, with pairs as observations."""
    total = below.mean()
    ratio = above.mean() / total
    residual = (above - ratio * below) / total
    n = len(torch.unique(pair_ids))
    return Estimate(float(ratio), float(standard_error(residual, pair_ids)), n)


@overload
def faithfulness(circuits: Circuits, circuit: Circuit | Iterable[NodeLike], /) -> Faithfulness: ...


@overload
def faithfulness(
    model: TransformerBridge, data: TwoAnswerData, circuit: Circuit | Iterable[NodeLike], /
) -> Faithfulness: ...


def faithfulness(model: Any, data: Any, circuit: Any = None, /) -> Faithfulness:
    """How near the circuit comes to the model on the prompts, whatever is asked of it then.

    ::

        faithfulness(model, data, circuit).table(by="order")
        faithfulness(Circuits(model, data, how="zero"), circuit).table(by="order")

    Args:
        model: A model; or `Circuits`, a model on its prompts with what stands in for the rest.
        data: The prompts, on which means over ABC prompts then stand in; not given to `Circuits`.
        circuit: What is kept.

    Raises:
        ValueError: The arguments have neither form.
    """
    if (
        isinstance(model, TransformerBridge)
        and isinstance(data, TwoAnswerData)
        and circuit is not None
    ):
        circuits = Circuits(model, data)
    elif not isinstance(model, TransformerBridge) and circuit is None:
        circuits, circuit = model, data
    else:
        raise ValueError(
            "faithfulness takes (model, data, circuit) or (Circuits(model, data), circuit)."
        )
    data = circuits.data
    return Faithfulness(
        circuits.run_model(),
        circuits.run(circuit),
        circuits.run(()),
        data.pair_ids.cpu(),
        tuple(orders_of(data)),
        tuple(template_ids_of(data).tolist()),
    )


# --- completeness --------------------------------------------------------------------------------


def class_subsets(circuit: Circuit) -> dict[str, Circuit]:
    """Nothing, then each of the circuit's classes: the paper's first choice of K (section 4.1)."""
    subsets = {"nothing": Circuit.of(())}
    for label, members in circuit.classes.items():
        subsets[label] = Circuit(members & circuit.nodes, name=label)
    return subsets


def random_subsets(circuit: Circuit, n: int = 100, *, seed: int = 0) -> dict[str, Circuit]:
    """``n`` subsets K, each node in it with probability one half (section 4.1)."""
    rng = np.random.default_rng(seed)
    nodes = list(circuit)
    return {
        f"random {i}": Circuit(frozenset(node for node, x in zip(nodes, row) if x))
        for i, row in enumerate(rng.random((n, len(nodes))) < 0.5)
    }


def completeness(
    circuits: Circuits,
    circuit: Circuit,
    subsets: Mapping[str, Circuit | Subset] | None = None,
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """F(C \\ K) beside F(M \\ K), for each K; their difference is the incompleteness.

    In M \\ K the nodes of K are replaced at their roles only; in C \\ K, as all that is outside,
    everywhere.

    Args:
        circuits: The model on its prompts.
        circuit: C.
        subsets: Each K, under its name; the circuit's classes if it is None.
        progress: Show a bar where there is something to wait for.

    Returns:
        A row for each K: ``F(C \\ K)``, ``F(M \\ K)``, ``incompleteness`` (absolute, in logits),
        its error over pairs, and the size of K.
    """
    named = class_subsets(circuit) if subsets is None else subsets
    rows = []
    for nodes in progress_bar("completeness", named.values(), show=progress):
        without = part_of(circuit, nodes)
        rows.append(_compare(circuits, circuit, without))
    return pd.DataFrame(rows, index=pd.Index(list(named), name="K"))


def _compare(circuits: Circuits, circuit: Circuit, without: Circuit) -> dict[str, float]:
    pair_ids = circuits.data.pair_ids.cpu()
    of_circuit = circuits.run(circuit, without=without).logit_diff
    of_model = circuits.run_model(without=without).logit_diff
    gap = _estimate(of_circuit - of_model, pair_ids)
    return {
        "F(C \\ K)": float(of_circuit.mean()),
        "F(M \\ K)": float(of_model.mean()),
        "incompleteness": abs(gap.mean),
        "error": gap.stderr,
        "size of K": len(without),
    }


@dataclass(frozen=True)
class GreedySearch:
    """A greedy search for a K that shows a circuit to be incomplete.

    Attributes:
        subset: The best K found.
        incompleteness: |F(C \\ K) - F(M \\ K)| there, in logits.
        history: The best so far after each iteration, over all runs; it never falls.
    """

    subset: Circuit
    incompleteness: float
    history: tuple[float, ...]


def greedy_incompleteness(
    circuits: Circuits,
    circuit: Circuit,
    *,
    restarts: int = 10,
    iterations: int = 10,
    candidates: int = 10,
    seed: int = 0,
    progress: bool = True,
) -> GreedySearch:
    """Look for a K that makes |F(C \\ K) - F(M \\ K)| large (section 4.1, appendix M).

    From nothing, each iteration draws some members of C \\ K, takes the one that raises the
    difference most, and keeps it only if that beats the largest difference so far in this run;
    otherwise the iteration is spent.

    Args:
        circuits, circuit: As for `completeness`.
        restarts, iterations, candidates: The paper's: 10 runs of 10 iterations, with 10 candidates
            (5 for its naive circuit).
        seed: Seeds the draws.
        progress: Show a bar.
    """
    rng = np.random.default_rng(seed)
    nodes = list(circuit)
    known: dict[frozenset[Node], float] = {}

    def incompleteness(subset: frozenset[Node]) -> float:
        if subset not in known:
            known[subset] = _compare(circuits, circuit, Circuit(subset))["incompleteness"]
        return known[subset]

    best, best_value = frozenset[Node](), incompleteness(frozenset())
    history = []
    for _ in progress_bar("greedy", range(restarts), show=progress):
        chosen, largest = frozenset[Node](), incompleteness(frozenset())
        for _ in range(iterations):
            left = [node for node in nodes if node not in chosen]
            if not left:
                break
            drawn = rng.choice(len(left), min(candidates, len(left)), replace=False)
            top = max((chosen | {left[i]} for i in drawn), key=incompleteness)
            if incompleteness(top) > largest:
                chosen, largest = top, incompleteness(top)
            if largest > best_value:
                best, best_value = chosen, largest
            history.append(best_value)
    return GreedySearch(Circuit(best), best_value, tuple(history))


# --- minimality ----------------------------------------------------------------------------------


def class_witnesses(circuit: Circuit) -> dict[Node, Circuit]:
    """For each node the rest of its class, the paper's usual K; nothing for one without a class."""
    witnesses = {}
    for node in circuit:
        mates = next((m for m in circuit.classes.values() if node in m), frozenset())
        witnesses[node] = Circuit((mates & circuit.nodes) - {node})
    return witnesses


def minimality(
    circuits: Circuits,
    circuit: Circuit,
    witnesses: Mapping[Any, Circuit | Subset] | None = None,
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """F(C \\ (K u {v})) - F(C \\ K) for each node v: does it matter to the circuit?

    Args:
        circuits, circuit: As for `completeness`.
        witnesses: K for each node; the rest of the node's class if it is None.
        progress: Show a bar where there is something to wait for.

    Returns:
        A row for each node: K's size, the two values of F, ``change`` (logits) with its ``error``
        over pairs, and ``share``, the change's size as a share of F(M).
    """
    chosen = class_witnesses(circuit) if witnesses is None else witnesses
    pair_ids = circuits.data.pair_ids.cpu()
    total = float(circuits.run_model().logit_diff.mean())
    cache: dict[frozenset[Node], Tensor] = {}

    def without(nodes: frozenset[Node]) -> Tensor:
        if nodes not in cache:
            cache[nodes] = circuits.run(circuit, without=Circuit(nodes)).logit_diff
        return cache[nodes]

    rows, names = [], []
    for spec, witness in progress_bar("minimality", chosen.items(), show=progress):
        node = parse_node(spec)
        K = part_of(circuit, witness).nodes - {node}
        part_of(circuit, [node])
        before, after = without(K), without(K | {node})
        change = _estimate(after - before, pair_ids)
        rows.append(
            {
                "size of K": len(K),
                "F(C \\ K)": float(before.mean()),
                "F(C \\ (K u v))": float(after.mean()),
                "change": change.mean,
                "error": change.stderr,
                "share": abs(change.mean) / abs(total),
            }
        )
        names.append(str(node))
    return pd.DataFrame(rows, index=pd.Index(names, name="v"))
