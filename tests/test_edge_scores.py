"""Edge scores keep the identities of their definitions; exact edges are exact; both find what is
built by hand, or miss it where gradients must."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis import EdgeAttributionConfig, attribution_patch

from ioi_helpers import load_model, metrics
from ioi_helpers.dataset import ROLES, IOIDataset
from ioi_helpers.graph import EMBEDDING, Circuit, Edge, Node, Shape
from ioi_helpers.models import handbuilt
from ioi_helpers.patching import SweepResult, patch_sweep
from ioi_helpers.path_patching import (
    correlation,
    edge_scores,
    edges_of,
    exact_edges,
    path_sweep,
    points_between,
    precision_at_k,
    recovered,
)
from tests import random_models
from tests.test_path_patching import HEADS, LAYERS, has_hooks, save_random

SENDERS = 1 + LAYERS * (HEADS + 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TransformerBridge:
    """In float64 and not folded."""
    folder = save_random(tmp_path_factory.mktemp("random"))
    return random_models.boot(folder, folded=False, dtype=torch.float64)


@pytest.fixture(scope="module")
def mild(tmp_path_factory: pytest.TempPathFactory) -> TransformerBridge:
    """The same weights made small, but for the unembedding: nearly linear."""
    folder = save_random(tmp_path_factory.mktemp("mild"), gain=0.35)
    return random_models.boot(folder, folded=False, dtype=torch.float64)


@pytest.fixture(scope="module")
def data(model: TransformerBridge) -> IOIDataset:
    return IOIDataset.generate(model.tokenizer, 4, prefixes="bundled", seed=1)


def scores(*arguments: Any, **settings: Any) -> Tensor:
    """[role? sender receiver batch]."""
    return edge_scores(*arguments, progress=False, **settings).effect()


def column(result: SweepResult, name: str) -> int:
    return list(result.index_df["receiver"].unique()).index(name)


def row(result: SweepResult, name: str) -> int:
    return list(result.index_df["sender"].unique()).index(name)


def gap(model: TransformerBridge, data: IOIDataset) -> Tensor:
    """What the whole difference of the two runs is, per prompt."""
    runs = [metrics.logit_diff(model(d.tokens), data, per_prompt=True) for d in (data.abc(), data)]
    return runs[0] - runs[1]


# --- exact edges ---------------------------------------------------------------------------------


def test_there_are_as_many_edges_as_the_formula_says(
    model: TransformerBridge, data: IOIDataset
) -> None:
    result = exact_edges(model, data[:1], progress=False, inputs=("final",))
    assert len(result.index_df) == SENDERS
    result = edge_scores(model, data[:1], method="EAP", progress=False)
    h, per_layer = HEADS, HEADS + 1
    number = sum(3 * h * (1 + n * per_layer) + 1 + n * per_layer + h for n in range(LAYERS))
    assert int(result.index_df["possible"].sum()) == number + 1 + LAYERS * per_layer
    assert not result.effect().flatten(0, 1)[~possible(result)].any()


def possible(result: SweepResult) -> Tensor:
    return torch.tensor(result.index_df["possible"].tolist())


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_exact_edges_replace_one_contribution_at_one_receiver(
    model: TransformerBridge, data: IOIDataset, direction: str
) -> None:
    """By TransformerLens' own split inputs: u' - u is added to the stream that a head's k reads."""
    result = exact_edges(
        model, data, roles=("S2", "END"), direction=direction, inputs=("k", "in", "final"),
        progress=False,
    )  # fmt: skip
    ours, other = (data, data.abc()) if direction == "noising" else (data.abc(), data)
    runs = [model.run_with_cache(d.tokens)[1] for d in (ours, other)]
    z = [run["z", 0][:, :, 1] @ model.blocks[0].attn.W_O[1] for run in runs]
    for number, role in enumerate(("S2", "END")):
        change = torch.zeros_like(z[0])
        rows, at = torch.arange(len(data)), data.positions[role]
        change[rows, at] = (z[1] - z[0])[rows, at]

        def add_k(value: Tensor, hook: Any, change: Tensor = change) -> Tensor:
            value = value.clone()
            value[:, :, 0] += change
            return value

        def add(value: Tensor, hook: Any, change: Tensor = change) -> Tensor:
            return value + change

        for name, hook, function in (
            ("k of L2H0", "blocks.2.attn.hook_k_input", add_k),
            ("input of MLP0", "blocks.0.hook_mlp_in", add),
            ("final stream", "blocks.2.hook_resid_post", add),
        ):
            model.set_use_split_qkv_input(True)
            model.set_use_hook_mlp_in(True)
            try:
                logits = model.run_with_hooks(ours.tokens, fwd_hooks=[(hook, function)])
            finally:
                model.set_use_split_qkv_input(False)
                model.set_use_hook_mlp_in(False)
            expected = metrics.logit_diff(logits, data, per_prompt=True)
            found = result.values[number, row(result, "L0H1"), column(result, name)]
            torch.testing.assert_close(found, expected, atol=1e-9, rtol=0.0)


# --- EAP -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_eap_equals_transformer_lens(
    model: TransformerBridge, data: IOIDataset, direction: str
) -> None:
    """It denoises; with the two datasets exchanged it is minus noising."""
    one = data[[0]]
    tokens, other = (d.tokens[:, : int(one.lengths[0])] for d in (one, one.abc()))
    clean, corrupted = (tokens, other) if direction == "denoising" else (other, tokens)

    def at_end(logits: Tensor) -> Tensor:
        return metrics.logit_diff(logits[:, -1], one)

    with model.hooks(fwd_hooks=[("hook_embed", lambda x, hook: x.detach().requires_grad_())]):
        found = attribution_patch(
            model, clean, corrupted, at_end, EdgeAttributionConfig(granularity="edge")
        )
    result = edge_scores(model, one, method="EAP", direction=direction, progress=False)
    effect = result.effect()[..., 0]
    total = torch.zeros_like(effect)
    names = {"q_input": "q of L{}H{}", "k_input": "k of L{}H{}", "v_input": "v of L{}H{}",
             "mlp_in": "input of MLP{}", "logits": "final stream"}  # fmt: skip
    for (sender, receiver), score in found.edge_scores.items():
        source = (
            "embedding" if sender.kind == "embed"
            else f"MLP{sender.layer}" if sender.kind == "mlp_out"
            else f"L{sender.layer}H{sender.head}"
        )  # fmt: skip
        target = names[receiver.kind].format(receiver.layer, receiver.head)
        total[row(result, source), column(result, target)] += score
    torch.testing.assert_close(effect, total, atol=1e-5, rtol=1e-5)
    assert float(total.abs().max()) > 0.1


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_eap_is_the_slope_of_the_exact_effect(
    model: TransformerBridge, data: IOIDataset, direction: str
) -> None:
    """At t = 0, with u + t (u' - u) in u's place: here for an MLP's input and for the logits."""
    ours, other = (data, data.abc()) if direction == "noising" else (data.abc(), data)
    result = edge_scores(model, data, method="EAP", direction=direction, progress=False)
    runs = [model.run_with_cache(d.tokens)[1] for d in (ours, other)]
    change = runs[1]["mlp_out", 0] - runs[0]["mlp_out", 0]
    change = change * data.attention_mask[:, :, None]
    for name, hook in (
        ("input of MLP1", "blocks.1.hook_mlp_in"),
        ("final stream", "blocks.2.hook_resid_post"),
    ):
        model.set_use_hook_mlp_in(True)
        try:
            ends = [
                metrics.logit_diff(
                    model.run_with_hooks(
                        ours.tokens, fwd_hooks=[(hook, lambda x, hook, t=t: x + t * change)]
                    ),
                    data,
                    per_prompt=True,
                )
                for t in (-1e-4, 1e-4)
            ]
        finally:
            model.set_use_hook_mlp_in(False)
        slope = (ends[1] - ends[0]) / 2e-4
        found = result.effect()[row(result, "MLP0"), column(result, name)]
        torch.testing.assert_close(found, slope, atol=1e-5, rtol=1e-5)


def test_edges_add_up_to_nodes(model: TransformerBridge, data: IOIDataset) -> None:
    """Out of a sender to (u' - u) . dF/du, by TransformerLens' gradients; into a receiver to the
    change of all that it reads."""
    effect = scores(model, data, method="EAP")
    result = edge_scores(model, data, method="EAP", progress=False)
    _, theirs = model.run_with_cache(data.abc().tokens)
    kept: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: Any, name: str) -> Tensor:
        kept[name] = value
        value.retain_grad()
        return value

    names = [
        f"blocks.{n}.{site}" for n in range(LAYERS) for site in ("attn.hook_z", "hook_mlp_out")
    ]
    hooks = [("hook_embed", lambda x, hook: x.detach().requires_grad_())]
    hooks += [(name, partial(keep, name=name)) for name in names]
    with torch.enable_grad():
        logits = model.run_with_hooks(data.tokens, fwd_hooks=hooks)
        metrics.logit_diff(logits, data, per_prompt=True).sum().backward()
    within = data.attention_mask[:, :, None]
    for layer in range(LAYERS):
        name = f"blocks.{layer}.hook_mlp_out"
        node = ((theirs[name] - kept[name]) * kept[name].grad * within).sum(dim=(1, 2))
        out = effect[row(result, f"MLP{layer}")].sum(dim=0)
        torch.testing.assert_close(out, node, atol=1e-9, rtol=0.0)
        name = f"blocks.{layer}.attn.hook_z"
        nodes = ((theirs[name] - kept[name]) * kept[name].grad * within[..., None]).sum(dim=(1, 3))
        first = row(result, f"L{layer}H0")
        torch.testing.assert_close(
            effect[first : first + HEADS].sum(dim=1), nodes.T, atol=1e-9, rtol=0.0
        )
    _, ours = model.run_with_cache(data.tokens)
    final = f"blocks.{LAYERS - 1}.hook_resid_post"
    moved = data.gather(theirs[final] - ours[final], "END")
    x = data.gather(ours[final], "END").clone().requires_grad_()
    read = model.unembed(model.ln_final(x[:, None]))[:, 0]
    (gradient,) = torch.autograd.grad(metrics.logit_diff(read, data, per_prompt=True).sum(), x)
    into = effect[:, column(result, "final stream")].sum(dim=0)
    torch.testing.assert_close(into, (moved * gradient).sum(dim=1), atol=1e-9, rtol=0.0)


def test_where_both_runs_are_the_same_there_is_no_score(
    model: TransformerBridge, data: IOIDataset
) -> None:
    """With the subject swapped nothing differs before S2."""
    reference, roles = data.swap_subject(), ("IO", "S1", "S1+1", "S2")
    for method in ("EAP", "EAP-IG"):
        found = scores(model, data, reference, method=method, roles=roles, steps=2)
        assert not found[:3].any()
        assert found[3].any()
    assert not exact_edges(model, data, reference, roles=roles[:3], progress=False).effect().any()


def test_roles_are_parts_of_the_sum_over_positions(
    model: TransformerBridge, data: IOIDataset
) -> None:
    """With the subject swapped: S2 and END have their share, and no share is from before S2."""
    demo = IOIDataset.demo(model.tokenizer)[:2]
    reference = demo.swap_subject()
    whole = edge_scores(model, demo, reference, method="EAP", progress=False)
    assert whole.axis_names == ["sender", "receiver"]
    at = edge_scores(model, demo, reference, method="EAP", roles=("S2", "END"), progress=False)
    assert at.axis_names == ["role", "sender", "receiver"]
    last = at.effect()[1, :, column(at, "final stream")]
    torch.testing.assert_close(
        last, whole.effect()[:, column(whole, "final stream")], atol=1e-12, rtol=0.0
    )
    # The embedding differs at S2 alone.
    torch.testing.assert_close(at.effect()[0, 0], whole.effect()[0], atol=1e-12, rtol=0.0)


# --- EAP-IG --------------------------------------------------------------------------------------


def test_one_step_at_an_end_is_eap(model: TransformerBridge, data: IOIDataset) -> None:
    eap = scores(model, data, method="EAP")
    back = scores(model, data, method="EAP", direction="denoising")
    one = partial(scores, model, data, method="EAP-IG", steps=1)
    for found, expected in (
        (one(points="paper"), eap),
        (one(points="library"), -back),
        (one(points="library", direction="denoising"), back),
        (one(points="trapezoid"), (eap - back) / 2),
    ):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0.0)


def test_points() -> None:
    assert points_between("paper", 2) == [(0.5, 0.5), (1.0, 0.5)]
    assert points_between("library", 2) == [(0.0, 0.5), (0.5, 0.5)]
    assert points_between("midpoint", 2) == [(0.25, 0.5), (0.75, 0.5)]
    assert points_between("trapezoid", 2) == [(0.0, 0.25), (0.5, 0.5), (1.0, 0.25)]


@pytest.mark.parametrize("points", ["midpoint", "paper", "library", "trapezoid"])
def test_edges_out_of_the_embedding_add_up_to_the_difference_of_the_runs(
    mild: TransformerBridge, data: IOIDataset, points: str
) -> None:
    """Sums with one of the ends have an error as 1/m, the other two as 1/m^2."""
    target = gap(mild, data)
    errors = []
    for steps in (4, 8, 16, 32):
        found = scores(mild, data, method="EAP-IG", steps=steps, points=points, inputs=INPUTS)
        errors.append(float((found[0].sum(dim=0) - target).abs().max()))
    assert float(target.abs().min()) > 0.01
    falls = 2.0 if points in ("paper", "library") else 4.0
    assert errors[3] < 1.3 * errors[2] / falls
    assert errors[3] < (0.05 if falls == 2.0 else 0.002) * float(target.abs().max())
    if falls == 4.0:  # No other cut is complete, such as all edges into the logits.
        into = found[:, -1].sum(dim=0)
        assert float((into - target).abs().max()) > 10 * errors[3]


INPUTS = ("q", "k", "v", "in", "final")


def test_exchanging_the_runs_flips_the_sign_of_midpoints_and_of_nothing_else(
    model: TransformerBridge, data: IOIDataset
) -> None:
    there = scores(model, data, method="EAP-IG", steps=3)
    back = scores(model, data, method="EAP-IG", steps=3, direction="denoising")
    torch.testing.assert_close(there, -back, atol=1e-12, rtol=0.0)
    eap = [
        edge_scores(model, data, method="EAP", direction=direction, progress=False)
        for direction in ("noising", "denoising")
    ]
    assert not torch.allclose(eap[0].effect(), -eap[1].effect(), atol=1e-2)


@pytest.mark.parametrize("per", ["layer", "sender"])
def test_with_activations_mixed_edges_add_up_to_activation_patching(
    mild: TransformerBridge, data: IOIDataset, per: str
) -> None:
    result = edge_scores(mild, data, method="EAP-IG activations", per=per, steps=40, progress=False)
    effect = result.effect().sum(dim=1)
    for site, axes in (("z", ("layer", "head")), ("attn_out", ("layer",)), ("mlp_out", ("layer",))):
        patched = patch_sweep(
            mild, data, data.abc(), site, axes, direction="noising", progress=False
        ).effect()
        for layer in range(LAYERS):
            first = row(result, f"L{layer}H0")
            heads = effect[first : first + HEADS]
            found = {
                "z": heads if per == "sender" else None,
                "attn_out": heads.sum(dim=0) if per == "layer" else None,
                "mlp_out": effect[row(result, f"MLP{layer}")],
            }[site]
            if found is not None:
                torch.testing.assert_close(found, patched[layer], atol=2e-4, rtol=2e-3)


# --- engines, other models -----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["EAP", "EAP-IG", "EAP-IG activations"])
def test_the_two_engines_agree(model: TransformerBridge, data: IOIDataset, method: str) -> None:
    for roles in (None, ("S2", "END")):
        found = [
            scores(model, data, method=method, steps=2, roles=roles, engine=engine)
            for engine in ("fast", "hooks")
        ]
        torch.testing.assert_close(*found, atol=1e-9, rtol=0.0)
    assert not has_hooks(model)
    assert not model.cfg.use_split_qkv_input


def test_other_architectures(tmp_path: Path) -> None:
    """Where path patching is shown to work, the sum over the embedding's edges shows the rest."""
    other = random_models.boot(random_models.save(tmp_path, "neox-serial"), folded=False)
    data = random_models.prompts(other)[:2]
    result = edge_scores(other, data, method="EAP", engine="hooks", progress=False)
    into = column(result, "final stream")
    changes = path_sweep(other, data, None, "all", "final", mlps="frozen", progress=False)
    assert correlation_of(result.effect()[:, into], changes.effect()) > 0.9
    assert not other.cfg.use_split_qkv_input


def correlation_of(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1])


def test_batches_do_not_matter(model: TransformerBridge, data: IOIDataset) -> None:
    for roles in (None, ("S2", "END")):
        score = partial(scores, model, data, method="EAP-IG", steps=2, roles=roles)
        torch.testing.assert_close(score(), score(memory=1), atol=1e-12, rtol=0.0)


def test_half_precision_runs(tmp_path: Path) -> None:
    half = random_models.boot(save_random(tmp_path), folded=False, dtype=torch.bfloat16)
    data = IOIDataset.generate(half.tokenizer, 2, seed=1)
    for result in (
        edge_scores(half, data, steps=2, progress=False),
        exact_edges(half, data, roles=("END",), inputs=("q", "final"), progress=False),
    ):
        assert result.values.dtype == torch.float32
        assert result.values.isfinite().all()


# --- how well they agree -------------------------------------------------------------------------


def test_each_estimates_the_effect_of_its_own_direction(
    mild: TransformerBridge, data: IOIDataset
) -> None:
    roles = ("S2", "END")
    ways = ("noising", "denoising")
    exact = {
        way: exact_edges(mild, data, roles=roles, direction=way, progress=False) for way in ways
    }
    eap = {
        way: edge_scores(mild, data, roles=roles, method="EAP", direction=way, progress=False)
        for way in ways
    }
    ig = edge_scores(mild, data, roles=roles, progress=False)
    for way in ways:
        assert correlation(eap[way], exact[way]) > 0.9
        assert correlation(eap[way], exact[way], "spearman") > 0.8
    assert correlation(exact["noising"], exact["noising"]) == pytest.approx(1.0)
    assert precision_at_k(exact["noising"], exact["noising"], 10) == 1.0
    assert precision_at_k(ig, exact["noising"], 10) >= 0.6
    with pytest.raises(ValueError, match="other effects"):
        correlation(eap["denoising"], exact["noising"])
    with pytest.raises(ValueError, match="other edges"):
        correlation(edge_scores(mild, data, progress=False), exact["noising"])
    for k in (0, 10**6):
        with pytest.raises(ValueError, match="k must be from 1"):
            precision_at_k(ig, exact["noising"], k)


@pytest.mark.parametrize("through_mlp", [False, True])
def test_exact_edges_recover_what_was_built_and_gradients_miss_saturated_attention(
    through_mlp: bool,
) -> None:
    """Softmax that is all or nothing has no gradient: what heads look for is invisible to EAP."""
    model = handbuilt.load(through_mlp=through_mlp)
    data = IOIDataset.generate(model.tokenizer, 8, names=handbuilt.NAMES, seed=4)
    truth = handbuilt.edges(through_mlp)
    assert len(truth.edges or ()) == 33 + through_mlp

    exact = exact_edges(model, data, roles=ROLES, progress=False)
    found = recovered(exact, truth, at_least=0.02)
    assert found.precision == found.recall == 1 and not found.missed
    # It is no matter of the threshold: the largest that is no member does nothing at all.
    sizes = exact.effect().abs().mean(dim=-1).flatten().sort(descending=True).values
    assert sizes[len(found.truth) - 1] > 0.02 and sizes[len(found.truth)] < 1e-5

    eap = recovered(
        edge_scores(model, data, roles=ROLES, method="EAP", progress=False), truth, at_least=0.02
    )
    assert eap.precision == 1 and 0.6 < eap.recall < 0.7
    # All that decides where a head looks whose attention is all or nothing, and no more.
    looks_clearly = {"L0H3", "L1H0", "L1H2", "L2H1", "L2H3"}
    for edge in eap.missed:
        read = edge.input in ("q", "k") and edge.receiver and edge.receiver.name in looks_clearly
        masks_s2 = edge.sender.name == "L0H3" and edge.input == "k"
        serves_one = edge.receiver is not None and edge.receiver.name == "L0H1"
        assert read or masks_s2 or serves_one
    # Steps between the two runs see some of it; they find edges that do nothing, too.
    steps = edge_scores(model, data, roles=ROLES, method="EAP-IG", steps=20, progress=False)
    ig = recovered(steps, truth, at_least=0.02)
    assert 0.6 < ig.recall < 0.75 and 0.8 < ig.precision < 1
    assert set(eap.missed) - set(ig.missed) and set(ig.missed) - set(eap.missed)
    ranks = [recovered(x, truth, top=len(found.truth)).recall for x in (exact, steps)]
    assert ranks[0] == 1 and 0.8 < ranks[1] < 1

    with pytest.raises(ValueError, match="are not about"):
        recovered(edge_scores(model, data, progress=False), truth, top=3)
    with pytest.raises(ValueError, match="has no edges"):
        recovered(exact, Circuit.of(["L0H1"]), top=3)
    assert math.isnan(recovered(exact, truth, at_least=100).precision)


def test_edges_are_those_of_graph(model: TransformerBridge, data: IOIDataset) -> None:
    result = edge_scores(model, data, method="EAP", roles=("S2",), progress=False)
    edges = edges_of(result)
    shape = Shape.of(model)
    assert len(edges) == len(result.index_df)
    for edge, can in zip(edges, result.index_df["possible"], strict=True):
        if can:
            assert not edge.impossible(shape)
    assert Edge(Node(0, 1, "S2"), Node(2, 0), "k") in edges
    assert Edge(EMBEDDING.at("S2"), Node(1, None, "S2"), "in") in edges
    size = result.effect().mean(dim=-1).abs().flatten()
    best = Circuit.of_edges(edges[i] for i in size.topk(3).indices.tolist())
    best.require(model)
    with pytest.raises(ValueError, match="no result of edge_scores"):
        edges_of(path_sweep(model, data, progress=False))


def test_results_can_be_saved(model: TransformerBridge, data: IOIDataset, tmp_path: Path) -> None:
    result = edge_scores(model, data, method="EAP", progress=False)
    result.save(tmp_path / "scores")
    again = SweepResult.load(tmp_path / "scores")
    assert again.values.equal(result.values)
    assert correlation(again, result) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "ACDC"}, "method must be one of EAP"),
        ({"points": "left"}, "points must be one of midpoint"),
        ({"steps": 0}, "steps must be a positive whole number"),
        ({"per": "head"}, "per must be"),
        ({"direction": "up"}, "direction must be"),
        ({"roles": ()}, "roles must list"),
        ({"roles": ("S3",)}, "'S3' is not a role"),
        ({"inputs": ("z",)}, "'z' is not an input"),
        ({"memory": 0}, "memory must be"),
    ],
)
def test_refusals(
    model: TransformerBridge, data: IOIDataset, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        edge_scores(model, data, **wrong)


def test_shared_keys_are_refused(tmp_path: Path) -> None:
    other = random_models.boot(random_models.save(tmp_path, "llama"), folded=False)
    with pytest.raises(ValueError, match="several heads share one key and value"):
        edge_scores(other, random_models.prompts(other)[:2], progress=False)


@pytest.mark.slow
def test_on_a_trained_model_growing_steps_approach_the_difference_of_the_runs() -> None:
    """Slowly, and not step by step: on the way from name to name attention switches abruptly."""
    mini = load_model("ioi-mini", device="cpu", verbose=False)
    data = IOIDataset.generate(mini.tokenizer, 4, seed=3)
    target = gap(mini, data)
    errors = {
        steps: float((scores(mini, data, steps=steps)[0].sum(dim=0) - target).abs().median())
        for steps in (1, 5, 50, 500)
    }
    assert errors[500] < 0.1 * float(target.abs().median())
    assert errors[500] < min(errors[1], errors[5]) / 5
