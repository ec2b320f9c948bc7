"""Circuits of edges: what stands in, what is left out, and which questions are refused."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import IOIDataset, ablation, circuits, forward, load_model, path_patching, runs
from ioi_helpers.circuits import Circuits, EdgeCircuits, edges_by_hooks
from ioi_helpers.circuits.run import CircuitRun
from ioi_helpers.dataset import ROLES
from ioi_helpers.graph import EMBEDDING, Circuit, Edge, Node, Shape, parse_node
from ioi_helpers.path_patching.gradients import HookRuns
from ioi_helpers.path_patching.language import Receiver, parse_receiver
from ioi_helpers.path_patching.pair import pair_of
from tests import random_models

NO_EDGES = Circuit(frozenset(), frozenset())
AT_END = Edge(Node(4, 4, "END"), None, "final")


@cache
def mini() -> TransformerBridge:
    return load_model("ioi-mini", device="cpu", verbose=False)


@cache
def prompts(n: int = 10) -> IOIDataset:
    return IOIDataset.generate(mini().tokenizer, n, prefixes="bundled", seed=3)


@pytest.fixture(scope="module")
def runner() -> EdgeCircuits:
    return EdgeCircuits(mini(), prompts())


def every_edge(*gone: Edge) -> Circuit:
    """All edges at all positions, but these."""
    return Circuit.of_edges(e for e in circuits.possible_edges(Shape.of(mini())) if e not in gone)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=3e-5, rtol=0.0)


# --- what stands in -------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [True, False])
def test_zero_is_zero_whether_a_reference_is_given_or_not(given: bool) -> None:
    """Without any edge nothing but the output biases is left to read, whatever the prompt is."""
    data = prompts()
    found = EdgeCircuits(mini(), data, data.abc() if given else None, how="zero").run(NO_EDGES)
    gpt = forward.require_weights(mini(), "This test needs")
    biases = torch.stack([block.b_O for block in gpt.blocks if block.b_O is not None]).sum(dim=0)
    # An MLP that reads nothing but biases still writes; its edge to the logits is gone as well.
    logits = forward.unembed(gpt, biases.expand(len(data), -1))
    wanted = CircuitRun.of_logits(logits, data)
    close(found.logit_diff, wanted.logit_diff)
    close(found.loss, wanted.loss)
    assert not torch.allclose(
        found.logit_diff, EdgeCircuits(mini(), data).run(NO_EDGES).logit_diff, atol=0.1
    )


# --- two ways to the same numbers -----------------------------------------------------------------


@pytest.mark.parametrize("how", ["resample", "zero"])
@pytest.mark.parametrize("roles", [(None,), (*ROLES, None)], ids=["everywhere", "at roles"])
def test_hooks_run_the_same_circuits(how: Any, roles: Any) -> None:
    """Half of all edges, which head reads whose word at which token drawn for each edge."""
    data, possible = prompts(4), circuits.possible_edges(Shape.of(mini()), roles)
    fast, slow = (EdgeCircuits(mini(), data, how=how, engine=e) for e in ("fast", "hooks"))
    chosen = np.random.default_rng(0).random(len(possible)) < 0.5
    some = [edge for edge, kept in zip(possible, chosen, strict=True) if kept]
    if len(roles) > 1:  # and keys that are kept for one query only
        ends = (
            Edge(Node(1, 0, "S2"), Node(2, 4, "END"), "v"),
            Edge(EMBEDDING, Node(0, 1, "S2"), "k"),
        )
        some = [*(edge for edge in some if edge.input not in ("k", "v") or edge.sender.role), *ends]
    circuit = Circuit.of_edges(some)
    by_hooks = slow.run(circuit)
    close(by_hooks.logit_diff, fast.run(circuit).logit_diff)
    close(by_hooks.loss, fast.run(circuit).loss)
    assert (by_hooks.logit_diff - fast.run(NO_EDGES).logit_diff).abs().max() > 1e-3
    close(slow.run_model().logit_diff, fast.run_model().logit_diff)


def test_what_granites_layers_write_is_multiplied(tmp_path: Path) -> None:
    """What is written adds up to the final stream there, and edges run as the model."""
    model = random_models.boot(random_models.save(tmp_path / "granite", "granite-own-keys"))
    data = random_models.prompts(model, 4)
    written = edges_by_hooks.sources(model, data.tokens, data.positions["END"])
    final = runs.activations_at(model, data, "END", f"L{model.cfg.n_layers - 1}.post")
    rows = torch.arange(len(data))
    close(written.sum(dim=0)[rows, data.positions["END"]], final)
    runner = EdgeCircuits(model, data)
    every = circuits.possible_edges(runner.shape)
    close(runner.run(Circuit.of_edges(every)).logit_diff, runs.logit_diffs(model, data))
    pair = pair_of(model, data, data.swap_order(), "noising", [None])
    senders = HookRuns(model, pair).changes().sum(dim=2)[rows, data.positions["END"]]
    other = runs.activations_at(model, data.swap_order(), "END", f"L{model.cfg.n_layers - 1}.post")
    close(senders, other - final)


def test_hooks_on_the_model_are_seen(capsys: pytest.CaptureFixture[str]) -> None:
    """What its reader put on a model changes circuits of edges as it changes the model."""
    model = load_model("ioi-mini", device="cpu", verbose=False)
    runner = EdgeCircuits(model, prompts(4))
    before = runner.run_model().logit_diff
    with model.hooks(fwd_hooks=[("blocks.4.attn.hook_z", lambda z, hook: 0 * z)]):
        hooked = runner.run_model().logit_diff
        plain = CircuitRun.of_logits(
            runs.logits_at_positions(model, prompts(4).tokens, prompts(4).positions["END"]),
            prompts(4),
        )
    close(hooked, plain.logit_diff.detach())
    assert (hooked - before).abs().max() > 0.1
    assert "Circuits of edges are run with TransformerLens' hooks" in capsys.readouterr().out
    close(runner.run_model().logit_diff, before)
    with pytest.raises(ValueError, match="engine must be"):
        EdgeCircuits(model, prompts(4), engine="slow")  # type: ignore[arg-type]


# --- what is left out -----------------------------------------------------------------------------


def test_one_roles_part_of_an_edge_is_left_out(runner: EdgeCircuits) -> None:
    """All edges at all positions without one edge at one role: the model without that edge."""
    sender = parse_node(("L1H0", "S2"))
    for gone in (
        AT_END,
        Edge(sender, Node(2, 4, "END"), "v"),
        Edge(EMBEDDING.at("S2"), sender, "q"),
    ):
        K = Circuit.of_edges([gone])
        without = runner.run(every_edge(), without=K).logit_diff
        close(without, runner.run_model(without=K).logit_diff)
    change = runner.run(every_edge(), without=Circuit.of_edges([AT_END])).logit_diff
    assert (change - runner.run_model().logit_diff).abs().mean() > 0.1


def test_what_is_not_in_the_circuit_cannot_be_left_out(runner: EdgeCircuits) -> None:
    everywhere = Edge(Node(4, 4), None, "final")
    few = every_edge(everywhere)
    for gone in (AT_END, everywhere):
        with pytest.raises(ValueError, match="L4H4.* to the final stream is not in the circuit"):
            runner.run(few, without=Circuit.of_edges([gone]))
    query = Edge(Node(1, 0), Node(2, 4), "q")
    at_end = Circuit.of_edges([Edge(Node(1, 0, "END"), Node(2, 4, "END"), "q")])
    with pytest.raises(ValueError, match="is not in the circuit"):
        runner.run(at_end, without=Circuit.of_edges([query]))  # the whole of a part


# --- which edges there are ------------------------------------------------------------------------


def test_the_final_stream_is_read_at_end_only(runner: EdgeCircuits) -> None:
    shape = Shape.of(mini())
    for role in (None, "END"):
        assert Edge(Node(4, 4, role), None, "final").impossible(shape) == ""
    elsewhere = Edge(Node(4, 4, "S2"), None, "final")
    assert elsewhere.impossible(shape) == "the final stream is read at END, not at S2"
    with pytest.raises(ValueError, match="read at END, not at S2"):
        runner.run_model(without=Circuit.of_edges([elsewhere]))
    assert elsewhere not in circuits.possible_edges(shape, ROLES)


def test_an_edges_query_is_read_where_either_end_says(runner: EdgeCircuits) -> None:
    for edge in (
        Edge(Node(0, 1, "S2"), Node(1, 0), "q"),
        Edge(Node(0, 1), Node(1, 0, "S2"), "q"),
        Edge(Node(0, 1, "S2"), Node(1, 0, "S2"), "q"),
    ):
        assert parse_receiver(edge) == Receiver(Node(1, 0), "q", "S2")
        mask = circuits.masks.EdgeMask.of(runner.shape, ROLES, [edge])
        assert mask.q.sum() == 1
    assert parse_receiver(Edge(Node(0, 1, "S2"), Node(1, None), "in")).role == "S2"
    # One edge, MLPs frozen: path patching and the run of edges are the same number.
    edge = Edge(EMBEDDING.at("S2"), Node(1, None), "in")
    data, reference = prompts(), prompts().abc()
    patched = path_patching.path_patch(
        mini(), data, reference, edge.sender, edge, mlps="frozen", progress=False
    )
    found = runner.run_model(without=Circuit.of_edges([edge])).logit_diff
    assert (found - runner.run_model().logit_diff).abs().max() > 1e-3
    close(patched.values.flatten(), found)


# --- references -----------------------------------------------------------------------------------


def of_equal_length() -> tuple[IOIDataset, IOIDataset]:
    """Two templates with as many tokens, whose roles stand elsewhere."""
    pairs = [("Mary", "John"), ("Anna", "Paul")]
    one = "Then, [A] and [B] went to the store. [B] gave a drink to"
    other = "Later at the store, [A] and [B] met. [B] gave a drink to"
    first, second = (
        IOIDataset.from_prompts(
            mini().tokenizer,
            [text.replace("[A]", io).replace("[B]", s) for io, s in pairs],
            pairs,
        )
        for text in (one, other)
    )
    return first, second


def test_a_reference_of_another_template_is_refused_everywhere() -> None:
    data, other = of_equal_length()
    assert torch.equal(data.lengths, other.lengths)
    assert not torch.equal(data.positions["IO"], other.positions["IO"])
    with pytest.raises(ValueError, match="has the template"):
        EdgeCircuits(mini(), data, other)
    with pytest.raises(ValueError, match="has the template"):
        Circuits(mini(), data, other, how="resample")
    with pytest.raises(ValueError, match="has the template"):
        path_patching.path_patch(mini(), data, other, "L0H0", "final", progress=False)
    EdgeCircuits(mini(), data, data.abc())


def test_at_a_role_the_value_is_taken_where_the_reference_has_it() -> None:
    data, other = of_equal_length()
    at = runs.role_positions(other, "IO")
    stored: dict[str, Tensor] = {}
    with torch.no_grad():
        _, cache = mini().run_with_cache(other.tokens)
        wanted = cache["z", 0][torch.arange(len(other)), at, 1]
        with ablation.ablate(mini(), ("L0H1", "IO"), "resample", reference=other, data=data):
            _, cache = mini().run_with_cache(data.tokens)
            stored["z"] = cache["z", 0]
    here = runs.role_positions(data, "IO")
    close(stored["z"][torch.arange(len(data)), here, 1], wanted)


def test_prompts_of_one_template_may_still_be_misaligned() -> None:
    """A place of two tokens and an object of one, or the other way round: as many tokens."""
    data = prompts()
    assert runs.misalignment(data, data.abc()) == ""
    assert runs.misalignment(data, data.swap_subject()) == ""
    assert runs.misalignment(data, data.swap_order()) == ""
    moved = data[:]
    moved.positions["S2"][1] += 1
    assert runs.misalignment(data, moved).startswith("Prompt 1 has its names and END at")


def test_references_that_cannot_be_run_are_refused() -> None:
    data = prompts()
    bare = IOIDataset.generate(mini().tokenizer, 10, prefixes="bundled", seed=3, prepend_bos=False)
    with pytest.raises(ValueError, match="The data start with BOS and the reference do not"):
        EdgeCircuits(mini(), data, bare)
    with pytest.raises(ValueError, match="must be a dataset"):
        EdgeCircuits(mini(), data, data.abc().tokens)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="correspond row by row"):
        EdgeCircuits(mini(), data, data.abc()[:4])
    long = ["It was late. " * mini().cfg.n_ctx]
    with pytest.raises(ValueError, match="this model's context holds"):
        EdgeCircuits(mini(), IOIDataset.generate(mini().tokenizer, 2, prefixes=long))


def test_two_roles_at_one_token_cannot_be_told_apart() -> None:
    data = IOIDataset.from_prompts(
        mini().tokenizer, ["Then, John Mary went to the store. John gave a drink to"],
        [("Mary", "John")],
    )  # fmt: skip
    assert torch.equal(data.positions["IO"], data.positions["S1+1"])
    runner = EdgeCircuits(mini(), data)
    for role, other in (("IO", r"S1\+1"), (r"S1+1", "IO")):
        edge = Edge(Node(0, 1, role), Node(1, None), "in")
        with pytest.raises(ValueError, match=f"{other} are one token"):
            runner.run_model(without=Circuit.of_edges([edge]))
    close(runner.run(every_edge()).logit_diff, runner.run_model().logit_diff)
    runner.run_model(without=Circuit.of_edges([AT_END]))  # its role is one token's alone


# --- sizes and random circuits --------------------------------------------------------------------


def test_sizes_refuse_what_they_do_not_know(runner: EdgeCircuits) -> None:
    scores = dict.fromkeys(every_edge().sorted_edges(), 1.0)
    with pytest.raises(ValueError, match="method must be 'top' or 'greedy', not 'best'"):
        circuits.size_curve(runner, scores, method="best", progress=False)  # type: ignore[arg-type]
    scores[Edge(Node(4, 4), None, "final")] = float("nan")
    for pick in (circuits.top_edges, circuits.greedy_edges):
        with pytest.raises(ValueError, match="score of L4H4 to the final stream is not a number"):
            pick(scores, 3)
    with pytest.raises(ValueError, match="is not a number"):
        circuits.size_curve(runner, scores, progress=False)


def test_random_circuits_are_checked_at_the_call() -> None:
    shape = Shape.of(mini())
    with pytest.raises(ValueError, match="match must be"):
        circuits.random_circuits(Circuit.of(["L0H1"]), shape, ROLES, 2, match="bad")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="MLP0 is no head"):
        circuits.random_circuits(Circuit.of(["MLP0"]), shape, ROLES, 2)


def test_a_sweep_whose_file_has_no_folder_is_refused_before_it_runs(tmp_path: Path) -> None:
    for file, why in ((tmp_path / "none" / "x", "There is no "), (tmp_path, "is a folder")):
        with pytest.raises(ValueError, match=why):
            path_patching.path_sweep(mini(), prompts(), senders=["L4H4"], file=file, progress=False)
    assert not list(tmp_path.iterdir())


def test_every_step_of_pruning_names_what_went() -> None:
    data = IOIDataset.generate(mini().tokenizer, 8, seed=3)
    start = Circuit.of([(f"L{layer}H{head}", "END") for layer in (2, 3) for head in range(4)])
    found = circuits.prune(
        Circuits(mini(), data), start, most_difference=1.0, at_most=2, progress=False
    )
    gone = [node for step in found.steps for node in step.left_out]
    assert len(gone) == len(set(gone)) and len(gone) > len(found.steps)
    assert set(gone) == start.nodes - found.circuit.nodes
    left = len(start)
    for step in found.steps:
        left -= len(step.left_out)
        assert step.size == left
