"""Circuits: run a model as one, score it, hold it against others, find one.

In reading order: `values` (what stands in for what is left out), `run` (the model as a circuit),
`masks`, `edges` and `edges_by_hooks` (the same with edges, by equations and for other models),
`scores` (faithfulness, completeness, minimality), `baselines` (random circuits), `search` (a
circuit found by leaving out), `known` (those that are on record), `sizes` (size against
faithfulness) and `scrubbing` (a hypothesis tried by resampling all that it calls idle).
"""

from __future__ import annotations

from ioi_helpers.circuits.baselines import (
    Rank,
    expected_overlap,
    number_of_matched,
    random_circuits,
    rank,
)
from ioi_helpers.circuits.edges import EdgeCircuits
from ioi_helpers.circuits.known import circuit_of, naive_circuit, paper_circuit, paper_witnesses
from ioi_helpers.circuits.run import CircuitRun, Circuits
from ioi_helpers.circuits.scores import (
    Faithfulness,
    GreedySearch,
    class_subsets,
    class_witnesses,
    completeness,
    faithfulness,
    greedy_incompleteness,
    minimality,
    random_subsets,
)
from ioi_helpers.circuits.scrubbing import Drawn, Heads, Scrubbed, Stream, ioi_hypothesis, scrub
from ioi_helpers.circuits.search import (
    Limits,
    Minimal,
    Pruning,
    Step,
    circuit_by_gradient,
    improve,
    make_minimal,
    prune,
    witness,
)
from ioi_helpers.circuits.sizes import (
    SHARES,
    SizeCurve,
    greedy_edges,
    possible_edges,
    size_curve,
    top_edges,
    without_dead_ends,
)

__all__ = [
    "CircuitRun",
    "Circuits",
    "Drawn",
    "EdgeCircuits",
    "Faithfulness",
    "GreedySearch",
    "Heads",
    "Limits",
    "Minimal",
    "Pruning",
    "Rank",
    "SHARES",
    "Scrubbed",
    "SizeCurve",
    "Step",
    "Stream",
    "circuit_by_gradient",
    "circuit_of",
    "class_subsets",
    "class_witnesses",
    "completeness",
    "expected_overlap",
    "faithfulness",
    "greedy_edges",
    "greedy_incompleteness",
    "improve",
    "ioi_hypothesis",
    "make_minimal",
    "minimality",
    "naive_circuit",
    "number_of_matched",
    "paper_circuit",
    "paper_witnesses",
    "possible_edges",
    "prune",
    "random_circuits",
    "random_subsets",
    "rank",
    "scrub",
    "size_curve",
    "top_edges",
    "without_dead_ends",
    "witness",
]
