"""Running circuits of nodes and of edges, and their scores, against identities and definitions."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import (
    IOIDataset,
    circuits,
    forward,
    heads,
    load_model,
    metrics,
    path_patching,
    runs,
)
from ioi_helpers.circuits import Circuits, EdgeCircuits
from ioi_helpers.dataset import ROLES
from ioi_helpers.dataset.two_answers import gather_at_role
from ioi_helpers.graph import Circuit, Edge, Node, Shape, parse_node
from ioi_helpers.models import handbuilt

TEN = tuple(
    map(
        parse_node,
        [
            ("L0H1", "IO"),
            ("L0H2", "IO"),
            ("L0H1", "S2"),
            ("L1H0", "S2"),
            ("L2H4", "END"),
            ("L3H3", "END"),
            ("L4H2", "END"),
            ("L4H4", "END"),
        ],
    )
)


@cache
def mini() -> TransformerBridge:
    return load_model("ioi-mini", device="cpu", verbose=False)


@cache
def prompts(n: int = 20, prefixes: str | None = None) -> IOIDataset:
    return IOIDataset.generate(mini().tokenizer, n, prefixes=prefixes, seed=3)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> TransformerBridge:
    folder: Path = handbuilt.save(tmp_path_factory.mktemp("handbuilt"))
    return handbuilt.boot(folder)


def model_logit_diffs(
    data: IOIDataset, answers: IOIDataset | None = None, model: TransformerBridge | None = None
) -> Tensor:
    logits = (model or mini())(data.tokens)
    return metrics.logit_diff(data.gather(logits, "END"), answers or data, per_prompt=True)


def close(found: Tensor, wanted: Tensor, within: float = 3e-5) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=within)


# --- nodes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["mean", "resample", "zero"])
def test_everything_kept_is_the_model(how: str) -> None:
    data = prompts(prefixes="bundled")
    runner = Circuits(mini(), data, how=how, mlps="nodes")  # type: ignore[arg-type]
    everything = Shape.of(mini()).nodes(mlps=True)
    close(runner.run(everything).logit_diff, model_logit_diffs(data))
    close(runner.run_model().logit_diff, model_logit_diffs(data))


def test_nothing_kept_with_resampling_is_the_reference_at_end() -> None:
    data = prompts()
    runner = Circuits(mini(), data, how="resample")
    close(runner.run(()).logit_diff, model_logit_diffs(runner.reference, data))  # type: ignore[arg-type]


def test_nothing_kept_with_means_is_zero_for_exchanged_pairs() -> None:
    data = prompts(40)
    runner = Circuits(mini(), data)
    assert abs(float(runner.run(()).logit_diff.mean())) < 1e-5
    found = runner.run(()).logit_diff
    close(found[::2], -found[1::2])


def test_nothing_kept_with_means_is_one_constant_for_each_template_and_order() -> None:
    """At END all that is left to tell prompts apart is gone: scored for one pair of names, prompts
    of one template and order have one logit difference, and the two orders of a template theirs."""
    data = prompts(120)
    runner = Circuits(mini(), data)
    outside = runner._nothing_kept(forward.require_weights(mini(), "This test needs")).final
    groups = data.groups("template and order")
    assert len(groups) > 20 and max(map(len, groups.values())) > 2
    constants = []
    for rows in groups.values():
        close(outside[rows], outside[rows[:1]].expand_as(outside[rows]), 1e-4)
        constants.append(outside[rows[0]])
    apart = torch.cdist(torch.stack(constants), torch.stack(constants))
    assert apart.fill_diagonal_(1).min() > 1e-2


def test_means_over_single_prompts_are_the_prompts_themselves() -> None:
    # Each prompt is its own template, and the reference is the data itself.
    texts = prompts(8).prompts
    answers = [(names.IO, names.S1) for names in prompts(8).names]
    alone = IOIDataset.from_prompts(
        mini().tokenizer,
        texts[::2],
        answers[::2],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runner = Circuits(mini(), alone, alone)
    close(runner.run(TEN).logit_diff, runner.run_model().logit_diff)


@pytest.mark.parametrize("how", ["mean", "resample", "zero"])
@pytest.mark.parametrize("mlps", ["kept", "nodes"])
def test_fast_is_hooks(how: str, mlps: str) -> None:
    data = prompts(12, prefixes="bundled")
    nodes = TEN if mlps == "kept" else (*TEN, Node(0, None), Node(3, None, "END"))
    fast, slow = (
        Circuits(mini(), data, how=how, mlps=mlps, engine=engine)  # type: ignore[arg-type]
        for engine in ("fast", "hooks")
    )
    for run in ("circuit", "model"):
        one, other = (
            r.run(nodes, without=nodes[:2]) if run == "circuit" else r.run_model(without=nodes)
            for r in (fast, slow)
        )
        close(one.logit_diff, other.logit_diff)
        close(one.loss, other.loss)


def test_positions_before_the_first_difference_are_idle_but_under_zeros() -> None:
    data = prompts()

    def change(how: Literal["mean", "resample", "zero"]) -> Tensor:
        runner = Circuits(mini(), data, how=how)
        kept = runner._nothing()
        runner._mark(kept, TEN, True)
        with_bos = kept.clone()
        with_bos[:, :, 0] = True
        gpt = runner._weights()
        return runner._run(gpt, with_bos).logit_diff - runner._run(gpt, kept).logit_diff

    close(change("resample"), torch.zeros(len(data)))
    close(change("mean"), torch.zeros(len(data)))
    assert change("zero").abs().max() > 0.01


def test_batches_do_not_matter() -> None:
    data = prompts(20)
    whole, parts = (Circuits(mini(), data, memory=memory) for memory in (2**30, 2**21))
    assert runs.prompts_at_once(mini(), int(data.lengths.max()), 2**21) < len(data)
    close(parts.run(TEN).logit_diff, whole.run(TEN).logit_diff)


def test_without_is_everywhere_in_the_circuit_and_at_roles_in_the_model() -> None:
    runner = Circuits(mini(), prompts())
    rest = [node for node in TEN if node != TEN[2]]
    close(runner.run(TEN, without=[TEN[2]]).logit_diff, runner.run(rest).logit_diff)
    shape = Shape.of(mini())
    # In the model only the role's own position is replaced.
    gone = [parse_node(("L0H1", "S2"))]
    assert (
        runner.run_model(without=gone).logit_diff - runner.run_model().logit_diff
    ).abs().max() > 0.1
    everywhere = [parse_node("L0H1")]
    assert not torch.allclose(
        runner.run_model(without=gone).logit_diff, runner.run_model(without=everywhere).logit_diff
    )
    assert len(shape.nodes()) == 36


def test_one_position_of_a_head_that_is_kept_everywhere() -> None:
    """C \\ K is what is marked for C, less K's positions: not a difference of names."""
    data = prompts(12, "bundled")
    everything = Circuit.of(Shape.of(mini()).nodes())
    K = [("L4H4", "END"), ("L1H0", "S2")]
    for engine in ("fast", "hooks"):
        runner = Circuits(mini(), data, engine=engine)  # type: ignore[arg-type]
        found = runner.run(everything, without=K).logit_diff
        close(found, runner.run_model(without=K).logit_diff)
        assert (found - runner.run_model().logit_diff).abs().max() > 0.1
    # What is everywhere in both goes everywhere, and so at a role that is named as well.
    both, rest = [*TEN, parse_node("L4H4")], [node for node in TEN if node.name != "L4H4"]
    assert len(both) == len(rest) + 2
    close(runner.run(both, without=["L4H4"]).logit_diff, runner.run(rest).logit_diff)
    table = circuits.completeness(runner, everything, {"K": K}, progress=False)
    assert table.loc["K", "incompleteness"] < 1e-5 and table.loc["K", "size of K"] == 2
    for outside in ([("L5H5", "END")], ["L2H4"]):
        with pytest.raises(ValueError, match="is not in the circuit, so it cannot be in K"):
            runner.run(TEN, without=outside)


def test_hooks_that_come_later_are_run() -> None:
    data = prompts()
    model = load_model("ioi-mini", device="cpu", verbose=False)
    fast, auto, slow = (Circuits(model, data, engine=e) for e in ("fast", "auto", "hooks"))  # type: ignore[arg-type]
    before = auto.run(TEN).logit_diff, auto.run_model().logit_diff

    def without_mlp(activation: Tensor, hook: object) -> Tensor:
        return torch.zeros_like(activation)

    with model.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", without_mlp)]):
        for runner in (auto, slow):
            after = runner.run(TEN).logit_diff, runner.run_model().logit_diff
            close(after[1], model_logit_diffs(data, model=model))
            for one, other in zip(before, after, strict=True):
                assert (one - other).abs().max() > 0.1
        close(auto.run(TEN).logit_diff, slow.run(TEN).logit_diff)
        with pytest.raises(ValueError, match="hooks on the model"):
            fast.run(TEN)
    close(fast.run(TEN).logit_diff, before[0])
    close(auto.run_model().logit_diff, before[1])


def test_a_reference_that_repeats_a_name_is_warned_about() -> None:
    data = prompts()
    with pytest.warns(UserWarning, match="a name is repeated"):
        Circuits(mini(), data, data.random_names())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Circuits(mini(), data, data.abc())
        Circuits(mini(), prompts(120), prompts(120).random_names(), group="template")
    # Of one order only, pooling the orders does not help.
    abba = data[[i for i, order in enumerate(data.orders) if order == "ABBA"]]
    for group in ("template", "all"):
        few = r"\(of \d prompts only\)" if group == "template" else "an order of names"
        with pytest.warns(UserWarning, match=few):
            Circuits(mini(), abba, abba.random_names(), group=group)  # type: ignore[arg-type]


@pytest.mark.parametrize("prefixes", [None, "bundled"])
@pytest.mark.parametrize("group", ["template", "all"])
def test_pooled_orders_share_every_token_index(group: str, prefixes: str | None) -> None:
    """Behind the first name, a mean is over all prompts of its group at the same token."""
    data = prompts(120, prefixes)
    reference = data.abc()
    z = Circuits(mini(), data, reference, group=group)._values.z  # type: ignore[arg-type]
    _, cache = mini().run_with_cache(reference.tokens)
    own = torch.stack([cache[f"blocks.{layer}.attn.hook_z"] for layer in range(len(z))])
    first = torch.minimum(data.positions["IO"], data.positions["S1"])
    same = data.template_ids if group == "template" else torch.zeros(len(data), dtype=torch.long)
    for number in same.unique():
        rows = (same == number).nonzero()[:, 0]
        assert {data.orders[i] for i in rows} == {"ABBA", "BABA"}
        for offset in range(4):  # A, " and", B, and what follows B
            at = first[rows] + offset
            values, mean = z[:, rows, at], own[:, rows, at].mean(dim=1, keepdim=True)
            close(values, mean.expand_as(values), 1e-5)
        for role in ("S2", "END"):
            at = data.positions[role][rows]
            values, mean = z[:, rows, at], own[:, rows, at].mean(dim=1, keepdim=True)
            close(values, mean.expand_as(values), 1e-5)
        if group == "template" and prefixes is None:  # one length: all token indices are places
            width = int(data.lengths[rows[0]])
            assert (data.lengths[rows] == width).all()
            mean = own[:, rows, :width].mean(dim=1, keepdim=True)
            close(z[:, rows, :width], mean.expand_as(z[:, rows, :width]), 1e-5)


def test_the_stored_circuit_does_nearly_as_well_with_orders_pooled() -> None:
    """Means that mix token indices leave .49 of ABBA's logit difference, and .84 of BABA's."""
    runner = Circuits(mini(), prompts(120), group="template")
    table = circuits.faithfulness(runner, circuits.circuit_of(mini())).table("order")
    print(table)
    assert table["F(C) / F(M)"].between(0.8, 1.05).all()


def test_the_wrong_reference_takes_little_away() -> None:
    """The companion post's mistake, and why pooling the orders is no repair."""
    data = prompts(120)
    known = heads.circuit(mini())
    gone = [node for node in known if node.role in ("S2", "S1+1")]

    def left(reference: IOIDataset, group: str) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runner = Circuits(mini(), data, reference, group=group)  # type: ignore[arg-type]
        return runner.run_model(without=gone).logit_diff / runner.run_model().logit_diff.mean()

    right = left(data.abc(), "template and order")
    wrong = left(data.random_names(), "template and order")
    pooled = left(data.random_names(), "template")
    abba = torch.tensor([order == "ABBA" for order in data.orders])
    assert right.mean() < 0.2
    assert wrong.mean() > 0.9
    assert abs(float(pooled.mean())) < 0.2
    assert float(pooled[abba].mean()) * float(pooled[~abba].mean()) < 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"how": "median"}, "how must be one of"),
        ({"group": "order"}, "group must be one of"),
        ({"mlps": "off"}, "mlps must be"),
        ({"engine": "slow"}, "engine must be"),
    ],
)
def test_choices_are_checked(arguments: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Circuits(mini(), prompts(), **arguments)  # type: ignore[arg-type]


def test_circuits_that_do_not_fit_are_refused() -> None:
    runner = Circuits(mini(), prompts())
    with pytest.raises(ValueError, match="There is no L9H9"):
        runner.run(["L9H9"])
    with pytest.raises(ValueError, match="names MLPs"):
        runner.run(["MLP0"])
    with pytest.raises(ValueError, match="is not in the circuit"):
        circuits.completeness(runner, Circuit.of(TEN), {"K": ["L5H5"]})
    edges = Circuit.of_edges([Edge(parse_node(("L4H4", "END")), None, "final")])
    for run in (runner.run, lambda nodes: runner.run_model(without=nodes)):
        with pytest.raises(ValueError, match="has edges, which Circuits would ignore"):
            run(edges)


# --- edges ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def edge_runner() -> EdgeCircuits:
    return EdgeCircuits(mini(), prompts(10, "bundled"))


NO_EDGES = Circuit(frozenset(), frozenset())


def test_all_edges_are_the_model_and_none_the_reference(edge_runner: EdgeCircuits) -> None:
    data, reference = edge_runner.data, edge_runner.reference
    assert reference is not None
    close(edge_runner.run_model().logit_diff, model_logit_diffs(data))
    close(edge_runner.run(NO_EDGES).logit_diff, model_logit_diffs(reference, data))
    every = circuits.possible_edges(Shape.of(mini()))
    close(edge_runner.run(Circuit.of_edges(every)).logit_diff, model_logit_diffs(data))
    close(edge_runner.run_model(without=Circuit.of_edges(every)).logit_diff,
          model_logit_diffs(reference, data))  # fmt: skip


def out_edges(shape: Shape, node: Node) -> Iterator[Edge]:
    for layer in range(shape.n_layers):
        for head in range(shape.n_heads):
            for read in ("q", "k", "v"):
                receiver = Node(layer, head, node.role if read == "q" else None)
                yield Edge(node, receiver, read)  # type: ignore[arg-type]
        yield Edge(node, Node(layer, None, node.role), "in")
    if node.role == "END":
        yield Edge(node, None, "final")


def test_a_circuit_of_nodes_is_one_of_edges_without_the_others_out_edges(
    edge_runner: EdgeCircuits,
) -> None:
    data, shape = edge_runner.data, Shape.of(mini())
    nodes = Circuits(mini(), data, edge_runner.reference, how="resample")
    gone = [e for node in TEN for e in out_edges(shape, node) if not e.impossible(shape)]
    found = edge_runner.run_model(without=Circuit.of_edges(gone)).logit_diff
    close(found, nodes.run_model(without=TEN).logit_diff)
    assert (found - model_logit_diffs(data)).abs().min() > 0.1


def test_an_edge_for_one_query_is_part_of_that_for_all(edge_runner: EdgeCircuits) -> None:
    """S2's key and value edges, for END's query alone and for all: they differ for others only."""
    reader = parse_node("L2H4")
    for read in ("k", "v"):
        for_end = Edge(parse_node(("L1H0", "S2")), reader.at("END"), read)  # type: ignore[arg-type]
        for_all = Edge(parse_node(("L1H0", "S2")), reader, read)  # type: ignore[arg-type]
        others = [Edge(for_end.sender, reader.at(r), read) for r in ROLES if r != "END"]  # type: ignore[arg-type]
        one = edge_runner.run_model(without=Circuit.of_edges([for_end])).logit_diff
        whole = edge_runner.run_model(without=Circuit.of_edges([for_all])).logit_diff
        rest = edge_runner.run_model(without=Circuit.of_edges(others)).logit_diff
        model = edge_runner.run_model().logit_diff
        size = (whole - model).abs().max()
        assert size > 0.01
        # This head hands on from END only, so that nearly all of it is END's.
        assert (one - whole).abs().max() < size / 3
        assert (rest - model).abs().max() < size / 100


def test_dead_ends_do_nothing_under_resampling(edge_runner: EdgeCircuits) -> None:
    rng = np.random.default_rng(0)
    edges = circuits.possible_edges(Shape.of(mini()))
    some = Circuit.of_edges(
        edges[i] for i in rng.choice(len(edges), len(edges) // 2, replace=False)
    )
    pruned = circuits.without_dead_ends(some)
    close(edge_runner.run(pruned).logit_diff, edge_runner.run(some).logit_diff)
    # Of few edges nearly all are dead ends, and those that are left do something.
    few = Circuit.of_edges(edges[i] for i in np.random.default_rng(1).permutation(len(edges))[:200])
    sparse = circuits.without_dead_ends(few)
    assert 0 < len(sparse.edges or ()) < 100
    found = edge_runner.run(sparse).logit_diff
    close(found, edge_runner.run(few).logit_diff)
    assert (found - edge_runner.run(NO_EDGES).logit_diff).abs().max() > 1e-3


def test_a_way_keeps_to_its_token(edge_runner: EdgeCircuits) -> None:
    def edge(sender: tuple[Any, str | None], receiver: tuple[Any, str | None], read: Any) -> Edge:
        return Edge(parse_node(sender), parse_node(receiver), read)

    end = Edge(parse_node(("L4H4", "END")), None, "final")
    fed = edge(("embedding", "S2"), ("L1H0", "S2"), "q")
    carried = edge(("L1H0", "S2"), ("L4H4", "END"), "v")
    assert circuits.without_dead_ends(Circuit.of_edges([end, fed, carried])).edges == {
        end, fed, carried
    }  # fmt: skip
    # Fed at another token than it is read at; an edge at every token has both.
    for read_at, left in (
        ("IO", set()),
        (None, {end, fed, edge(("L1H0", None), ("L4H4", "END"), "v")}),
    ):
        away = edge(("L1H0", read_at), ("L4H4", "END"), "v")
        assert circuits.without_dead_ends(Circuit.of_edges([end, fed, away])).edges == left
    # Read at END, where nobody feeds it; and at a token whose output nobody reads.
    idle = (
        edge(("embedding", "IO"), ("L0H0", "IO"), "q"),
        edge(("L0H0", "END"), ("L4H4", "END"), "q"),
    )
    some = Circuit.of_edges([end, fed, carried, *idle])
    assert circuits.without_dead_ends(some).edges == {end, fed, carried}
    # At roles as without, they change nothing under resampling.
    edges = circuits.possible_edges(edge_runner.shape, (*ROLES, None))
    for seed, n in ((0, 200), (1, 3000)):
        drawn = np.random.default_rng(seed).permutation(len(edges))[:n]
        whole = Circuit.of_edges(edges[i] for i in drawn)
        pruned = circuits.without_dead_ends(whole)
        assert len(pruned.edges or ()) < n
        close(edge_runner.run(pruned).logit_diff, edge_runner.run(whole).logit_diff)


def test_the_number_of_edges_is_the_published_formula() -> None:
    assert len(circuits.possible_edges(Shape(12, 12))) == 32_491
    L, H = 3, 4
    formula = sum(3 * H * (1 + n * (H + 1)) + 1 + n * (H + 1) + H for n in range(L))
    assert len(circuits.possible_edges(Shape(L, H))) == formula + 1 + L * (H + 1)


def test_size_curve_ends_and_areas(edge_runner: EdgeCircuits) -> None:
    rng = np.random.default_rng(1)
    edges = circuits.possible_edges(Shape.of(mini()))
    scores = dict(zip(edges, rng.random(len(edges)), strict=True))
    shares = (0.0, 0.01, 0.5, 1.0)
    curve = circuits.size_curve(edge_runner, scores, shares=shares, progress=False)
    assert curve.f[0] == pytest.approx(0, abs=1e-6)
    assert curve.f[-1] == pytest.approx(1, abs=1e-5)
    assert curve.edges == (0, 22, 1094, 2188)
    assert curve.area == pytest.approx(np.trapezoid(curve.f, shares))
    # Here f is never above 1, so the two areas fill the width.
    assert max(curve.f) < 1 + 1e-5
    assert curve.area + curve.distance == pytest.approx(1, abs=1e-4)
    # Above 1 both grow: 3/8 and 5/8 under f in the two halves, 3/8 and 1/8 under |1 - f|.
    above = circuits.SizeCurve((0.0, 0.5, 1.0), (0, 1, 2), (0.0, 1.5, 1.0), 0.0, 1.0)
    assert above.area == pytest.approx(0.375 + 0.625)
    assert above.distance == pytest.approx(0.375 + 0.125)
    with pytest.raises(ValueError, match="no share"):
        curve.at(0.3)


def test_mibs_weights() -> None:
    """Where the area is decided: 85 % of it at a fifth of the edges and more."""
    weights = []
    for i in range(len(circuits.SHARES)):
        spike = [float(i == j) for j in range(len(circuits.SHARES))]
        weights.append(float(np.trapezoid(spike, circuits.SHARES)))
    assert weights == pytest.approx(
        [0.0005, 0.002, 0.004, 0.0075, 0.02, 0.04, 0.075, 0.2, 0.4, 0.25]
    )
    assert sum(weights[-3:]) == pytest.approx(0.85)


def test_greedy_edges_hang_together() -> None:
    rng = np.random.default_rng(2)
    edges = circuits.possible_edges(Shape(4, 3))
    scores = dict(zip(edges, rng.normal(size=len(edges)), strict=True))
    found = circuits.greedy_edges(scores, 30)
    assert found.edges is not None
    assert len(found.edges) == 30
    senders = {(e.sender.layer, e.sender.head) for e in found.edges}
    for edge in found.edges:
        assert edge.receiver is None or (edge.receiver.layer, edge.receiver.head) in senders


def test_edges_on_other_architectures_or_references_are_refused() -> None:
    data = prompts(10)
    with pytest.raises(ValueError, match="resample"):
        EdgeCircuits(mini(), data, how="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positions do not correspond"):
        EdgeCircuits(mini(), data, prompts(10, "bundled"))
    with pytest.raises(ValueError, match="has no edges"):
        EdgeCircuits(mini(), data).run(Circuit.of(TEN))


# --- scores ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runner() -> Circuits:
    return Circuits(mini(), prompts(40))


def test_faithfulness_is_what_it_says(runner: Circuits) -> None:
    found = circuits.faithfulness(runner, TEN)
    one, all_ = runner.run(TEN), runner.run_model()
    assert found.ratio().mean == pytest.approx(
        float(one.logit_diff.mean() / all_.logit_diff.mean())
    )
    assert found.mean_absolute_difference().mean == pytest.approx(
        float((one.logit_diff - all_.logit_diff).abs().mean())
    )
    assert found.nats().mean == pytest.approx(float((one.loss - all_.loss).mean()))
    # The ratio of means is the mean of ratios weighted by the model's logit difference.
    weights = all_.logit_diff / all_.logit_diff.sum()
    assert found.ratio().mean == pytest.approx(
        float((weights * one.logit_diff / all_.logit_diff).sum()), abs=1e-5
    )
    table = found.table("order")
    assert list(table.index) == ["ABBA", "BABA"]
    assert table["F(C)"].mean() == pytest.approx(found.table()["F(C)"].item(), abs=1e-5)
    assert len(found.table("template and order")) == len(
        {*zip(prompts(40).template_ids.tolist(), prompts(40).orders, strict=True)}
    )


def test_faithfulness_of_a_model_on_prompts_is_that_with_the_defaults(runner: Circuits) -> None:
    found = circuits.faithfulness(mini(), runner.data, TEN)
    for one, other in zip(
        found.table().to_numpy(), circuits.faithfulness(runner, TEN).table().to_numpy(), strict=True
    ):
        assert one == pytest.approx(other, abs=1e-5)
    for arguments in ((mini(), TEN), (runner, runner.data, TEN), (mini(), TEN, runner.data)):
        with pytest.raises(ValueError, match=r"takes \(model, data, circuit\) or"):
            circuits.faithfulness(*arguments)  # type: ignore[call-overload]


def test_the_loss_is_that_of_io(runner: Circuits) -> None:
    data = runner.data
    logits = gather_at_role(data, mini()(data.tokens), "END")
    wanted = -logits.log_softmax(dim=-1).gather(1, data.io_tokens[:, None])[:, 0]
    close(runner.run_model().loss, wanted)


def test_the_ratios_error_is_that_of_a_bootstrap_over_pairs(runner: Circuits) -> None:
    found = circuits.faithfulness(Circuits(mini(), prompts(200)), TEN)
    pairs = metrics.cluster_values(
        torch.stack([found.circuit.logit_diff, found.model.logit_diff]), found.pair_ids
    ).numpy()
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, pairs.shape[1], (2000, pairs.shape[1]))
    ratios = pairs[0][drawn].mean(1) / pairs[1][drawn].mean(1)
    assert found.ratio().stderr == pytest.approx(ratios.std(), rel=0.1)


def test_completeness_at_its_ends(runner: Circuits) -> None:
    circuit = Circuit.of(TEN)
    table = circuits.completeness(runner, circuit, {"nothing": (), "all": TEN}, progress=False)
    gap = circuits.faithfulness(runner, circuit).difference()
    assert table.loc["nothing", "incompleteness"] == pytest.approx(abs(gap.mean), abs=1e-5)
    empty, rest = runner.run(()).logit_diff, runner.run_model(without=TEN).logit_diff
    assert table.loc["all", "incompleteness"] == pytest.approx(
        abs(float((empty - rest).mean())), abs=1e-5
    )
    everything = Circuit.of(Shape.of(mini()).nodes())
    whole = circuits.completeness(runner, everything, {"K": ["L4H4", "L2H1"]}, progress=False)
    assert whole.loc["K", "incompleteness"] < 1e-5


def test_greedy_is_reproducible_rises_and_stays_below_the_exhaustive_maximum(
    runner: Circuits,
) -> None:
    small = Circuit.of(TEN[:4])
    greedy = circuits.greedy_incompleteness(
        runner, small, restarts=2, iterations=3, candidates=2, seed=1, progress=False
    )
    again = circuits.greedy_incompleteness(
        runner, small, restarts=2, iterations=3, candidates=2, seed=1, progress=False
    )
    assert greedy == again
    assert list(greedy.history) == sorted(greedy.history)
    subsets = {str(i): [node for j, node in enumerate(TEN[:4]) if i >> j & 1] for i in range(2**4)}
    exhaustive = circuits.completeness(runner, small, subsets, progress=False)
    assert greedy.incompleteness <= exhaustive["incompleteness"].max() + 1e-6


def test_minimality_by_definition(runner: Circuits) -> None:
    circuit = Circuit.of(TEN)
    K = [TEN[0]]
    table = circuits.minimality(runner, circuit, {TEN[1]: K, TEN[0]: ()}, progress=False)
    wanted = runner.run(TEN, without=TEN[:2]).logit_diff - runner.run(TEN, without=K).logit_diff
    row = table.loc[str(TEN[1])]
    assert row["change"] == pytest.approx(float(wanted.mean()), abs=1e-5)
    assert row["share"] == pytest.approx(
        abs(float(wanted.mean())) / float(runner.run_model().logit_diff.mean()), abs=1e-5
    )
    # A head of the last layer away from END writes nothing that is read.
    idle = Circuit.of([*TEN, ("L5H3", "S2")])
    last = circuits.minimality(runner, idle, {("L5H3", "S2"): [TEN[0]]}, progress=False)
    assert abs(last["change"].item()) < 1e-6


# --- ground truth ---------------------------------------------------------------------------------


def test_the_hand_built_circuit_is_faithful_complete_and_minimal(built: TransformerBridge) -> None:
    data = IOIDataset.generate(built.tokenizer, 40, names=handbuilt.NAMES, templates="demo", seed=0)
    runner = Circuits(built, data)
    # L0H1 works at S1+1 and at the name after " and", which is IO or S1.
    nodes = [(name, query) for name, (query, _) in handbuilt.ATTENDS.items()]
    nodes += [("L4H1", "END"), ("L0H1", "IO"), ("L0H1", "S1")]
    circuit = Circuit.of(nodes)
    found = circuits.faithfulness(runner, circuit)
    assert found.ratio().mean == pytest.approx(1, abs=0.02)
    assert found.mean_absolute_difference().mean < 0.1
    subsets = {str(node): [node] for node in circuit}
    table = circuits.completeness(runner, circuit, subsets, progress=False)
    assert table["incompleteness"].max() < 0.1
    # Everything else writes nothing: the rest of the model is idle.
    rest = circuit.outside(Shape.of(built), ROLES)
    idle = runner.run_model(without=[n for n in rest if n.name not in handbuilt.HEAD_CLASSES])
    close(idle.logit_diff, runner.run_model().logit_diff, 1e-4)


def test_pruning_finds_the_hand_built_heads(built: TransformerBridge) -> None:
    data = IOIDataset.generate(built.tokenizer, 24, names=handbuilt.NAMES, templates="demo", seed=0)
    runner = Circuits(built, data)
    found = circuits.prune(
        runner, Shape.of(built).nodes(ROLES), most_difference=0.2, progress=False
    )
    assert {node.name for node in found.circuit} <= set(handbuilt.HEAD_CLASSES)
    assert {"L3H0", "L3H3", "L2H1"} <= {node.name for node in found.circuit}
    assert circuits.faithfulness(runner, found.circuit).mean_absolute_difference().mean <= 0.2


def test_members_that_tell_nothing_go_and_all_others_stay(built: TransformerBridge) -> None:
    """On the hand-built model: minimality finds the senders of the edges that it was built of."""
    data = IOIDataset.generate(built.tokenizer, 24, names=handbuilt.NAMES, templates="demo", seed=0)
    runner = Circuits(built, data)
    tell = {edge.sender for edge in handbuilt.edges().edges or () if edge.sender.layer >= 0}
    # They write the same whatever the names are, or nothing, or rest (the backup).
    idle = Circuit.of([("L0H1", "IO"), ("L0H0", "END"), ("L4H1", "END"), ("L1H3", "S2")])
    whole = Circuit(frozenset(tell)) | idle
    table = circuits.minimality(runner, whole, dict.fromkeys(whole, ()), progress=False)
    for node in whole:
        size = float(table.loc[str(node), "share"])
        assert size > 0.01 if node in tell else size < 1e-4
    found = circuits.make_minimal(runner, whole, most_difference=0.2, progress=False)
    assert found.circuit.nodes == tell
    assert set(found.gone) == idle.nodes
    assert found.table["matters"].all() and list(found.table.index) == list(map(str, found.circuit))
    # Where no member may go, they stay, and the table says that they do not matter.
    kept = circuits.make_minimal(runner, whole, most_difference=-1, progress=False)
    assert kept.circuit.nodes == whole.nodes and not kept.gone
    assert not kept.table.loc["L0H0 at END", "matters"]


def test_a_limit_that_the_start_breaks_gets_no_worse(built: TransformerBridge) -> None:
    data = IOIDataset.generate(built.tokenizer, 16, names=handbuilt.NAMES, templates="demo", seed=0)
    runner = Circuits(built, data)
    start = Circuit.of([("L3H0", "END"), ("L3H3", "END"), ("L0H0", "END"), ("L0H0", "S2")])
    gap = circuits.faithfulness(runner, start).mean_absolute_difference().mean
    assert gap > 1
    found = circuits.prune(runner, start, most_difference=0.1, progress=False)
    assert all(s.found.mean_absolute_difference().mean <= gap + 1e-4 for s in found.steps)
    assert found.steps


# --- random circuits ------------------------------------------------------------------------------


def test_improving_takes_in_what_was_left_out_and_leaves_out_what_is_idle() -> None:
    data = prompts(20)
    runner = Circuits(mini(), data)
    whole = circuits.circuit_of(mini())
    lacking = whole - [("L4H4", "END"), ("L0H1", "S2")]
    candidates = [("L4H4", "END"), ("L0H1", "S2"), ("L5H5", "S2")]

    def off(circuit: Circuit) -> float:
        found = circuits.faithfulness(runner, circuit)
        return found.mean_absolute_difference().mean + abs(found.difference().mean)

    found = circuits.improve(
        runner, lacking, candidates, at_most=len(whole), least_gain=0.02, progress=False
    )
    assert {parse_node(("L4H4", "END")), parse_node(("L0H1", "S2"))} <= found.nodes
    assert off(found) < off(lacking) - 1
    assert found.nodes <= whole.nodes | {parse_node(node) for node in candidates}
    # Never more than allowed, and a circuit that no step betters stays as it is.
    few = circuits.improve(runner, Circuit.of(()), whole, at_most=2, again=4, progress=False)
    assert len(few) <= 2
    same = circuits.improve(runner, lacking, (), at_most=180, least_gain=9.0, progress=False)
    assert same == lacking


def test_random_circuits_are_matched() -> None:
    known, shape = heads.circuit(mini()), Shape.of(mini())
    groups = sorted((node.layer, node.role) for node in known)
    overlaps = []
    for other in circuits.random_circuits(known, shape, ROLES, 400, seed=1):
        assert sorted((node.layer, node.role) for node in other) == groups
        overlaps.append(len(known & other))
    expected = circuits.expected_overlap(known, shape)
    assert np.mean(overlaps) == pytest.approx(expected, abs=0.3)
    for other in circuits.random_circuits(known, shape, ROLES, 5, match="size", seed=1):
        assert len(other) == len(known)
    one, again = (list(circuits.random_circuits(known, shape, ROLES, 3, seed=7)) for _ in range(2))
    assert one == again


def test_random_circuits_may_be_made_of_others() -> None:
    """Members only where a layer has too few other heads at the role, and then as few as can be."""
    shape = Shape(2, 6)
    known = Circuit.of([("L0H0", "S2"), ("L0H1", "S2"), *((f"L1H{i}", "END") for i in range(4))])
    drawn = list(circuits.random_circuits(known, shape, ROLES, 200, share="least", seed=2))
    for other in drawn:
        assert len(other) == len(known)
        assert len(other & known) == circuits.expected_overlap(known, shape, "least") == 2
        assert not {node for node in other & known if node.layer == 0}
    # Two of the four others at S2; both others at END with two of the four members.
    assert circuits.number_of_matched(known, shape, "least") == 6 * 6
    assert len(set(drawn)) == 36
    assert circuits.number_of_matched(known, shape) == 15 * 15
    by_size = circuits.random_circuits(known, shape, ROLES, 5, match="size", share="least")
    assert all(len(other) == len(known) and not other & known for other in by_size)
    with pytest.raises(ValueError, match="share must be 'by chance' or 'least'"):
        circuits.random_circuits(known, shape, ROLES, 5, share="none")  # type: ignore[arg-type]


def test_rank_counts_distance_from_one() -> None:
    rank = circuits.Rank(own=1.1, others=(0.95, 1.2, 0.0, 3.0), overlaps=(1, 1, 1, 1))
    assert rank.p == (1 + 1) / 5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_precision_runs(dtype: torch.dtype) -> None:
    model = load_model("ioi-mini", device="cpu", dtype=dtype, verbose=False)
    data = prompts(6)
    close_enough = 1e-3 if dtype == torch.float64 else 0.5
    for found in (
        circuits.Circuits(model, data).run_model(),
        circuits.EdgeCircuits(model, data).run_model(),
    ):
        close(found.logit_diff.float(), model_logit_diffs(data).float(), close_enough)
    nothing = circuits.scrub(model, data, circuits.Stream(), draws=1)
    assert nothing.scrubbed.loss.isfinite().all()
    sent = path_patching.path_sweep(model, data, senders=["L4H4", "L2H4"], progress=False)
    exact = path_patching.path_sweep(mini(), data, senders=["L4H4", "L2H4"], progress=False)
    close(sent.mean().float(), exact.mean().float(), close_enough)
