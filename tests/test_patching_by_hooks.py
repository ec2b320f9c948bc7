"""Sweeps on models of other architectures, which are run as a whole: every patch arrives."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM

from ioi_helpers import load_model, metrics
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.edits import edit_reaches_run, hooks_off, pattern_reaches_run
from ioi_helpers.patching import HEAD_SITES, SITES, NoisyEmbedding, patch_sweep
from tests import random_models
from tests.test_forward import random_model

Booted = Callable[[str], tuple[Path, TransformerBridge]]


@pytest.fixture(scope="module")
def boot(tmp_path_factory: pytest.TempPathFactory) -> Booted:
    @cache
    def booted(architecture: str) -> tuple[Path, TransformerBridge]:
        folder = random_models.save(tmp_path_factory.mktemp(architecture), architecture)
        return folder, random_models.boot(folder)

    return booted


def some(model: TransformerBridge) -> IOIDataset:
    return IOIDataset.generate(model.tokenizer, 4, prefixes="bundled", seed=2)


# --- attention patterns --------------------------------------------------------------------------

# Where the modules of transformers keep a layer's attention, its values and its output map.
PLAIN: dict[str, tuple[str, str, str]] = {
    "gpt-neo": ("transformer.h.{}.attn.attention", "v_proj", "out_proj"),
    "gpt-j": ("transformer.h.{}.attn", "v_proj", "out_proj"),
    "opt": ("model.decoder.layers.{}.self_attn", "v_proj", "out_proj"),
    "llama": ("model.layers.{}.self_attn", "v_proj", "o_proj"),
}


@torch.no_grad()
def patterns_by_plain_hooks(
    network: Any,
    architecture: str,
    clean: IOIDataset,
    corrupted: IOIDataset,
    role: str | None,
    n_heads: int,
) -> Tensor:
    """The sweep with hooks of PyTorch on a model of transformers, prompt by prompt."""
    path, values, output = PLAIN[architecture]
    n_layers = network.config.num_hidden_layers
    found = torch.zeros(n_layers, n_heads, len(clean))
    for i in range(len(clean)):
        n = int(clean.lengths[i])
        source, run = clean.tokens[i : i + 1, :n], corrupted.tokens[i : i + 1, :n]
        patterns = network(source, output_attentions=True).attentions
        at = slice(None) if role is None else int(clean.positions[role][i])
        for layer in range(n_layers):
            attention = network.get_submodule(path.format(layer))
            for head in range(n_heads):
                seen: list[Tensor] = []

                def keep(module: Any, inputs: Any, out: Tensor, seen: Any = seen) -> None:
                    seen.append(out)

                def replace(
                    module: Any, inputs: Any, seen: Any = seen, layer: int = layer, head: int = head
                ) -> Any:
                    z = inputs[0].clone().unflatten(-1, (n_heads, -1))
                    v = seen[0].unflatten(-1, (-1, z.shape[-1]))
                    of_head = head * v.shape[-2] // n_heads  # heads may share their values
                    pattern = patterns[layer][0, head]  # [query key] # noqa: B023
                    z[0, at, head] = (pattern @ v[0, :, of_head])[at]  # noqa: B023
                    return (z.flatten(-2), *inputs[1:])

                handles = [
                    getattr(attention, values).register_forward_hook(keep),
                    getattr(attention, output).register_forward_pre_hook(replace),
                ]
                logits = network(run).logits[:, -1]
                for handle in handles:
                    handle.remove()
                found[layer, head, i] = metrics.logit_diff(logits, clean[i])
    return found


@pytest.mark.parametrize("role", [None, "END", "S2"])
@pytest.mark.parametrize("architecture", PLAIN)
def test_patterns_equal_plain_hooks(architecture: str, role: str | None, boot: Booted) -> None:
    folder, model = boot(architecture)
    network = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    clean = some(model)
    corrupted = clean.swap_subject()
    axes = ("layer", "head") if role is None else ("layer", "head", "role")
    result = patch_sweep(
        model, clean, corrupted, "pattern", axes, roles=(role or "END",), engine="hooks"
    )
    expected = patterns_by_plain_hooks(
        network, architecture, clean, corrupted, role, model.cfg.n_heads
    )
    values = result.values if role is None else result.values[:, :, 0]
    largest = (expected - result.baseline).abs().max()
    assert largest > 5e-3
    assert (values - expected).abs().max() < 2e-3 * largest


def test_both_ways_of_patching_a_pattern_are_tried(boot: Booted) -> None:
    reached = {name: pattern_reaches_run(boot(name)[1]) for name in (*PLAIN, "gpt2")}
    assert reached == {
        "gpt-neo": False, "gpt-j": False, "opt": False, "llama": True, "gpt2": True
    }  # fmt: skip


# --- every site moves something, or is refused ---------------------------------------------------


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("architecture", random_models.ARCHITECTURES)
def test_every_patch_arrives(architecture: str, site: str, boot: Booted) -> None:
    _, model = boot(architecture)
    clean = some(model)

    def sweep(axes: tuple[str, ...]) -> Any:
        return patch_sweep(model, clean, clean.swap_subject(), site, axes, engine="hooks")

    if site == "resid_mid" and architecture in ("gpt-j", "pythia"):
        with pytest.raises(ValueError, match="has no blocks.0.hook_resid_mid, so resid_mid cannot"):
            sweep(("layer",))
        return
    effect = sweep(("layer", "head") if site in HEAD_SITES else ("layer", "role")).effect()
    assert (effect.abs().flatten(1).amax(dim=1) > 1e-4).all()
    if site.startswith("resid"):
        whole = sweep(("layer",))
        torch.testing.assert_close(
            whole.values, whole.clean.expand_as(whole.values), atol=1e-3, rtol=0.0
        )


class Deaf(nn.Module):
    """In place of attention: none of its inner hooks are asked."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return x * 0.5, None


@pytest.mark.parametrize("site", ["z", "q", "pattern"])
def test_hooks_that_are_not_asked_are_refused(tmp_path: Path, site: str) -> None:
    model = random_model(tmp_path)
    clean, block = some(model), model.blocks[1].original_component
    assert edit_reaches_run(model, "blocks.1.attn.hook_z", "blocks.1.hook_attn_out")
    block.attn = Deaf().eval()
    assert not edit_reaches_run(model, "blocks.1.attn.hook_z", "blocks.1.hook_attn_out")
    with pytest.raises(ValueError, match=r"blocks.1.attn.hook_\w+ does not reach the run"):
        patch_sweep(model, clean, clean.abc(), site)


def test_hooks_of_the_caller_take_part_and_are_no_obstacle(boot: Booted) -> None:
    """One that takes a layer's attention away, and one that only knows the dataset's prompts."""
    _, model = boot("gpt2")
    clean = some(model)

    def silence(attn_out: Tensor, hook: Any) -> Tensor:
        return torch.zeros_like(attn_out)

    with model.hooks(fwd_hooks=[("blocks.1.hook_attn_out", silence)]):
        for site in ("z", "pattern"):
            effect = patch_sweep(model, clean, clean.swap_subject(), site).effect()
            assert not effect[1].any()
            assert (effect[[0, 2]].abs().amax(dim=(1, 2)) > 1e-4).all()

    def only_these(tokens: Tensor, hook: Any) -> None:
        assert len(tokens) == len(clean)

    with model.hooks(fwd_hooks=[("embed.hook_in", only_these)]):
        patch_sweep(model, clean, clean.swap_subject(), "pattern")


def test_hooks_are_off_and_on_again_in_their_order(boot: Booted) -> None:
    _, model = boot("opt")
    clean, name = some(model), "blocks.0.hook_resid_pre"
    permanent = sum(len(point._forward_hooks) for point in set(model.hook_dict.values()))
    before = model(clean.tokens)

    def add(stream: Tensor, hook: Any) -> Tensor:
        return stream + 1

    def double(stream: Tensor, hook: Any) -> Tensor:
        return stream * 2

    hooks = [(name, add), (name, double), ("blocks.1.attn.hook_z", double)]
    with model.hooks(fwd_hooks=hooks):
        during = model(clean.tokens)
        for error in (False, True):
            with contextlib.suppress(RuntimeError), hooks_off(model):
                assert torch.equal(model(clean.tokens), before)
                if error:
                    raise RuntimeError("on purpose")
            assert torch.equal(model(clean.tokens), during)
    assert torch.equal(model(clean.tokens), before)
    left = sum(len(point._forward_hooks) for point in set(model.hook_dict.values()))
    assert left == permanent > 0


# --- memory, precision, metrics ------------------------------------------------------------------


@pytest.mark.parametrize("site", ["resid_mid", "pattern", "k"])
def test_parts_give_the_same(site: str, boot: Booted) -> None:
    _, model = boot("gpt-neo")
    clean = random_models.prompts(model)
    axes = ("layer", "role") if site == "resid_mid" else ("layer", "head")

    def sweep(memory: int) -> Any:
        return patch_sweep(model, clean, clean.abc(), site, axes, memory=memory, engine="hooks")

    whole, parts = sweep(2**30), sweep(2**18)
    torch.testing.assert_close(parts.values, whole.values, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(parts.clean, whole.clean, atol=1e-4, rtol=1e-4)
    expected = metrics.logit_diff(model(clean.tokens), clean, per_prompt=True)
    torch.testing.assert_close(parts.clean, expected, atol=1e-4, rtol=1e-4)


def test_noise_reaches_other_architectures(boot: Booted) -> None:
    _, model = boot("opt")
    clean = some(model)
    axes = ("layer", "role")
    result = patch_sweep(model, clean, NoisyEmbedding("S1"), "resid_pre", axes, engine="hooks")
    assert (result.clean - result.corrupted).abs().min() > 1e-4
    at_s1 = result.values[0, 1]
    torch.testing.assert_close(at_s1, result.clean, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("engine", ["fast", "hooks"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_precision_of_the_values(engine: Any, dtype: torch.dtype) -> None:
    model = load_model("ioi-mini", device="cpu", dtype=dtype, verbose=False)
    data = IOIDataset.generate(model.tokenizer, 4, seed=3)
    result = patch_sweep(
        model, data, data.swap_subject(), "attn_out", ("layer", "role"), engine=engine
    )
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert {x.dtype for x in (result.values, result.clean, result.corrupted)} == {wanted}
    assert result.stderr().dtype == wanted
    if dtype == torch.float64:
        exact = metrics.logit_diff(model(data.tokens), data, per_prompt=True)
        assert (result.clean - exact).abs().max() < 1e-10


@pytest.mark.parametrize("engine", ["fast", "hooks"])
def test_a_metric_of_logits_only_sees_all_prompts(tmp_path: Path, engine: Any) -> None:
    """TransformerLens' form of a metric, whatever the memory."""
    model = random_model(tmp_path)
    clean = some(model)
    rows = torch.arange(len(clean))

    def io_logit(logits: Tensor) -> Tensor:
        return logits[rows, -1, clean.io_tokens]

    given: Any = {"metric": io_logit, "engine": engine, "memory": 1}
    result = patch_sweep(model, clean, clean.abc(), "mlp_out", ("layer", "role"), **given)
    end = metrics.end_logits(model(clean.tokens), clean)
    torch.testing.assert_close(result.clean, end[rows, clean.io_tokens], atol=1e-4, rtol=1e-4)
    assert result.metric_names == ["io_logit"]
    given["metric"] = lambda logits: logits[:, -1].mean()
    with pytest.raises(ValueError, match="must return one value for each of the 4 prompts"):
        patch_sweep(model, clean, clean.abc(), "mlp_out", ("layer", "role"), **given)
