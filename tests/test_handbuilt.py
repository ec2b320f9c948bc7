"""The hand-built transformer does what its table of heads says, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import lrqp, metrics, probing, runs
from ioi_helpers.attribution import head_attribution
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.edits import residual_edit
from ioi_helpers.models import handbuilt


@pytest.fixture(scope="module")
def data(built: TransformerBridge) -> IOIDataset:
    return IOIDataset.generate(built.tokenizer, 60, prefixes="bundled", seed=1)


def head_numbers(name: str) -> tuple[int, int]:
    layer, index = name[1:].split("H")
    return int(layer), int(index)


def logit_diff_without(built: TransformerBridge, data: IOIDataset, *heads: str) -> Tensor:
    """Per-prompt logit difference with the output of these heads set to zero everywhere."""

    def silence(index: int) -> Any:
        def hook_fn(z: Tensor, hook: Any) -> Tensor:
            z = z.clone()
            z[:, :, index] = 0.0
            return z

        return hook_fn

    hooks = []
    for layer, index in map(head_numbers, heads):
        hooks.append((f"blocks.{layer}.attn.hook_z", silence(index)))
    logits = built.run_with_hooks(data.tokens, fwd_hooks=hooks)
    return metrics.logit_diff(logits, data, per_prompt=True)


def assert_all_close(values: Tensor, expected: float, tolerance: float = 1e-3) -> None:
    torch.testing.assert_close(values, torch.full_like(values, expected), atol=tolerance, rtol=0.0)


@pytest.mark.parametrize("prefixes", [None, "bundled"])
@pytest.mark.parametrize("order", ["ABBA", "BABA"])
def test_does_ioi_on_every_template(
    built: TransformerBridge, order: str, prefixes: str | None
) -> None:
    data = IOIDataset.generate(built.tokenizer, 60, order=order, prefixes=prefixes, seed=2)
    assert len(data.template_ids.unique()) == 15
    logits = built(data.tokens)
    assert metrics.io_rank(logits, data, per_prompt=True).max() == 0
    assert_all_close(
        metrics.logit_diff(logits, data, per_prompt=True), handbuilt.expected_logit_diff()
    )


def test_does_ioi_on_the_demo(built: TransformerBridge) -> None:
    demo = IOIDataset.demo(built.tokenizer)
    assert_all_close(
        metrics.logit_diff(built(demo.tokens), demo, per_prompt=True),
        handbuilt.expected_logit_diff(),
    )


@pytest.mark.parametrize("head", handbuilt.ATTENDS)
def test_attends_as_designed(built: TransformerBridge, data: IOIDataset, head: str) -> None:
    layer, index = head_numbers(head)
    query, key = handbuilt.ATTENDS[head]
    name = f"blocks.{layer}.attn.hook_pattern"
    _, cache = built.run_with_cache(data.tokens, names_filter=name)
    rows = torch.arange(len(data))
    attention = cache[name][rows, index, data.positions[query], data.positions[key]]
    copies = head in handbuilt.COPY_STRENGTH
    assert_all_close(attention, handbuilt.ATTENTION_TO_IO if copies else 1.0)


def test_everything_else_writes_exactly_zero(built: TransformerBridge, data: IOIDataset) -> None:
    _, cache = built.run_with_cache(data.tokens)
    for layer in range(built.cfg.n_layers):
        assert not cache[f"blocks.{layer}.hook_mlp_out"].any()
        z = cache[f"blocks.{layer}.attn.hook_z"]
        for index in range(built.cfg.n_heads):
            written = z[:, :, index] @ built.blocks[layer].attn.W_O[index]
            assert bool(written.any()) == (f"L{layer}H{index}" in handbuilt.HEAD_CLASSES)


def test_layer_norm_is_a_fixed_scale(built: TransformerBridge, data: IOIDataset) -> None:
    _, cache = built.run_with_cache(data.tokens, names_filter=lambda name: "hook_scale" in name)
    scales = torch.cat([scale.flatten() for scale in cache.values()])
    assert scales.max() / scales.min() < 1 + 1e-4


def test_head_attribution_finds_the_heads_that_copy(
    built: TransformerBridge, data: IOIDataset
) -> None:
    attribution = head_attribution(built, data).values
    expected = torch.zeros_like(attribution)
    for head, strength in handbuilt.COPY_STRENGTH.items():
        if head != "L4H1":  # it rests while the others are at work
            expected[head_numbers(head)] = strength * handbuilt.ATTENTION_DIFFERENCE
    torch.testing.assert_close(attribution, expected, atol=1e-3, rtol=0.0)
    silent = expected == 0
    assert attribution[silent].abs().max() < 1e-6


def test_order_bit_at_s2_and_end(built: TransformerBridge, data: IOIDataset) -> None:
    layout = handbuilt.residual_layout()
    first = torch.tensor([1.0 if order == "BABA" else -1.0 for order in data.orders])
    names = ["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"]
    _, cache = built.run_with_cache(data.tokens, names_filter=names)
    rows = torch.arange(len(data))
    for name, role, feature in zip(names, ("S2", "END"), ("order", "end_order"), strict=True):
        bit = cache[name][rows, data.positions[role]][:, layout[feature][0]]
        torch.testing.assert_close(bit, first, atol=1e-3, rtol=0.0)


@pytest.mark.parametrize(
    ("heads", "order", "identity"),
    [
        (("L2H1",), 0.0, 1.0),
        (("L2H3",), 1.0, 0.0),
        (("L2H1", "L2H3"), 0.0, 0.0),
        (("L1H0",), 0.5, 1.0),
        (("L1H2",), 0.5, 1.0),
        # Heads without a role.
        (("L0H2", "L1H1", "L2H0", "L3H1", "L4H3"), 1.0, 1.0),
    ],
)
def test_ablation_has_the_effect_that_follows_from_the_design(
    built: TransformerBridge,
    data: IOIDataset,
    heads: tuple[str, ...],
    order: float,
    identity: float,
) -> None:
    without = logit_diff_without(built, data, *heads)
    assert_all_close(without, handbuilt.expected_logit_diff(order, identity))


@pytest.mark.parametrize(("head", "order", "identity"), [("L2H1", -1.0, 1.0), ("L2H3", 1.0, -1.0)])
def test_the_two_s_inhibition_signals_can_be_exchanged(
    built: TransformerBridge, data: IOIDataset, head: str, order: float, identity: float
) -> None:
    """With IO as the subject, both signals are inverted; each can be patched in alone."""
    layer, index = head_numbers(head)
    name = f"blocks.{layer}.attn.hook_z"
    corrupted = data.swap_subject()
    _, cache = built.run_with_cache(corrupted.tokens, names_filter=name)

    def patch(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        rows = torch.arange(len(z))
        end = data.positions["END"]
        z[rows, end, index] = cache[name][rows, end, index]
        return z

    logits = built.run_with_hooks(data.tokens, fwd_hooks=[(name, patch)])
    assert_all_close(
        metrics.logit_diff(logits, data, per_prompt=True),
        handbuilt.expected_logit_diff(order, identity),
    )
    assert_all_close(
        metrics.logit_diff(built(corrupted.tokens), data, per_prompt=True),
        handbuilt.expected_logit_diff(-1.0, -1.0),
    )


def test_backup_wakes_when_a_name_mover_is_ablated(
    built: TransformerBridge, data: IOIDataset
) -> None:
    share = handbuilt.ATTENTION_DIFFERENCE
    without = logit_diff_without(built, data, "L3H0")
    assert_all_close(without, (2.0 - 1.5 + 2.0) * share)
    assert_all_close(logit_diff_without(built, data, "L3H0", "L4H1"), (2.0 - 1.5) * share)


def test_three_different_names_are_copied_alike(built: TransformerBridge, data: IOIDataset) -> None:
    abc = data.abc()
    logits, cache = built.run_with_cache(abc.tokens, names_filter="blocks.3.attn.hook_pattern")
    rows = torch.arange(len(abc))
    for role in ("IO", "S1", "S2"):
        pattern = cache["blocks.3.attn.hook_pattern"]
        attention = pattern[rows, 0, abc.positions["END"], abc.positions[role]]
        assert_all_close(attention, 1 / 3)
    assert_all_close(metrics.logit_diff(logits, abc, per_prompt=True), 0.0)


def test_scores_on_random_tokens_repeated_once(built: TransformerBridge) -> None:
    generator = torch.Generator().manual_seed(0)
    half = torch.randperm(built.cfg.d_vocab - 2, generator=generator)[:100] + 2
    tokens = torch.cat([torch.zeros(1, dtype=torch.long), half, half])[None]
    _, cache = built.run_with_cache(tokens)

    def stripe(head: str, offset: int) -> float:
        layer, index = head_numbers(head)
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0, index]
        return pattern.diagonal(offset)[-100:].mean().item()

    assert stripe("L0H1", -1) == pytest.approx(1.0, abs=1e-3)
    assert stripe("L0H3", -100) == pytest.approx(1.0, abs=1e-3)
    assert stripe("L1H2", -100) == pytest.approx(1.0, abs=1e-3)
    assert stripe("L1H0", -99) == pytest.approx(1.0, abs=1e-3)


def test_only_its_own_names_are_names(built: TransformerBridge, data: IOIDataset) -> None:
    assert set(data.name_pool) == set(handbuilt.NAMES)


def test_save_is_deterministic(tmp_path: Path) -> None:
    first, second = handbuilt.save(tmp_path / "a"), handbuilt.save(tmp_path / "b")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_through_an_mlp_it_does_the_same(tmp_path: Path) -> None:
    """The bit takes a way round by MLP2; without that MLP identity alone is left."""
    other = handbuilt.boot(handbuilt.save(tmp_path, through_mlp=True))
    data = IOIDataset.generate(other.tokenizer, 20, prefixes="bundled", seed=1)
    whole = metrics.logit_diff(other(data.tokens), data, per_prompt=True)
    assert_all_close(whole, handbuilt.expected_logit_diff())
    without = other.run_with_hooks(
        data.tokens, fwd_hooks=[("blocks.2.hook_mlp_out", lambda value, hook: value * 0)]
    )
    assert_all_close(
        metrics.logit_diff(without, data, per_prompt=True), handbuilt.expected_logit_diff(order=0.0)
    )


def test_an_injected_belief_turns_the_negative_name_mover_too(
    built: TransformerBridge, data: IOIDataset
) -> None:
    """Its order bit turned at S2, all heads that copy turn to S1, the negative one with them."""
    x0 = runs.activations_at(built, data, "S2", "L2.pre")
    probe, covariance = probing.fit_probe(x0, data.orders), probing.fit_covariance(x0)
    opposite = ["BABA" if order == "ABBA" else "ABBA" for order in data.orders]
    moved = lrqp.intervene(x0, probe, opposite, covariance, true=data.orders).x
    edit = residual_edit(data, "S2", "L2.pre", moved)
    pairs = [("END", "IO"), ("END", "S1")]
    clean, turned = (runs.attention_of_pairs(built, data, pairs, on) for on in ([], [edit]))
    for head in ("L3H0", "L3H2", "L3H3"):
        before, after = clean[head_numbers(head)], turned[head_numbers(head)]
        assert (before[0] - before[1]).min() > 0.9
        assert (after[0] - after[1]).max() < -0.9, head
