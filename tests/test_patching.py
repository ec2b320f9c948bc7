"""Sweeps equal TransformerLens' loop, keep their identities, and find what was built by hand."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import transformer_lens.patching as tl_patching
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.patching import PatchingResult
from transformer_lens.tools.analysis import EdgeAttributionConfig, attribution_patch
from transformer_lens.utilities import get_act_name

from ioi_helpers import load_model, metrics
from ioi_helpers.bundled import BUNDLED
from ioi_helpers.dataset import ROLES, IOIDataset
from ioi_helpers.heads import registry
from ioi_helpers.models import handbuilt
from ioi_helpers.patching import (
    HEAD_SITES,
    SITES,
    STREAM_SITES,
    NoisyEmbedding,
    attribution_patch_sweep,
    patch_sweep,
)
from tests import random_models
from tests.test_forward import random_model

# TransformerLens' own sweeps, with the order of their axes.
PEERS: dict[tuple[str, tuple[str, ...]], tuple[Callable[..., Any], tuple[str, ...]]] = {
    ("resid_pre", ("layer", "pos")): (tl_patching.get_act_patch_resid_pre, ("layer", "pos")),
    ("attn_out", ("layer", "pos")): (tl_patching.get_act_patch_attn_out, ("layer", "pos")),
    ("mlp_out", ("layer", "pos")): (tl_patching.get_act_patch_mlp_out, ("layer", "pos")),
}
for _site, _name in zip(HEAD_SITES, ("out", "q", "k", "v", "pattern"), strict=True):
    PEERS[_site, ("layer", "head")] = (
        getattr(tl_patching, f"get_act_patch_attn_head_{_name}_all_pos"),
        ("layer", "head"),
    )
    PEERS[_site, ("layer", "pos", "head")] = (
        getattr(tl_patching, f"get_act_patch_attn_head_{_name}_by_pos"),
        ("layer", "head", "pos") if _site == "pattern" else ("layer", "pos", "head"),
    )

TRAINED = sorted(BUNDLED)


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> TransformerBridge:
    return random_model(tmp_path_factory.mktemp("random"))


@pytest.fixture(scope="module", params=["hand-built", "random", *TRAINED])
def model(
    request: pytest.FixtureRequest, built: TransformerBridge, random: TransformerBridge
) -> TransformerBridge:
    """Models on which exactness is checked."""
    if request.param in ("hand-built", "random"):
        return {"hand-built": built, "random": random}[request.param]
    return load_model(request.param, device="cpu", verbose=False)


@pytest.fixture(scope="module")
def data(built: TransformerBridge) -> IOIDataset:
    """Prompts of different lengths for the hand-built model."""
    data = IOIDataset.generate(built.tokenizer, 8, prefixes="bundled", seed=1)
    assert data.lengths.unique().numel() > 1
    return data


@pytest.fixture(scope="module")
def demo(built: TransformerBridge) -> IOIDataset:
    return IOIDataset.demo(built.tokenizer)


def assert_same(values: Tensor, expected: Tensor, baseline: Tensor) -> None:
    """Within 1e-4 logits and 1 % of the largest effect (of 1e-6 of a logit where there is none)."""
    difference = float((values - expected).abs().max())
    effect = float((expected - baseline).abs().max())
    assert difference < 1e-4
    assert difference < max(0.01 * effect, 2e-6)


def has_hooks(model: TransformerBridge) -> bool:
    return any(point.fwd_hooks or point.bwd_hooks for point in model.hook_dict.values())


# --- exactness ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("site", "axes", "corruption"),
    [(site, axes, "abc") for site, axes in PEERS if len(axes) == 2]
    + [("resid_pre", ("layer", "pos"), corruption) for corruption in ("swap_subject", "swap_order")]
    + [("pattern", ("layer", "head"), corruption) for corruption in ("swap_subject", "swap_order")],
)
def test_equals_transformer_lens(
    model: TransformerBridge, site: str, axes: tuple[str, ...], corruption: str
) -> None:
    check_against_transformer_lens(model, site, axes, corruption, rows=8)


@pytest.mark.parametrize("site", HEAD_SITES)
def test_equals_transformer_lens_by_head_and_position(random: TransformerBridge, site: str) -> None:
    check_against_transformer_lens(random, site, ("layer", "pos", "head"), "abc", rows=2)


def check_against_transformer_lens(
    model: TransformerBridge, site: str, axes: tuple[str, ...], corruption: str, rows: int
) -> None:
    clean = IOIDataset.demo(model.tokenizer)[:rows]
    corrupted = getattr(clean, corruption)()
    tokens, corrupted_tokens = (d.tokens[:, : int(d.lengths.max())] for d in (clean, corrupted))
    _, cache = model.run_with_cache(tokens)
    peer, order = PEERS[site, axes]

    def metric(logits: Tensor) -> Tensor:
        return metrics.logit_diff(logits[:, -1], clean, per_prompt=True)

    expected = peer(model, corrupted_tokens, cache, metric, reduce="none", baseline=True)
    result = patch_sweep(model, clean, corrupted, site, order, engine="fast")
    assert isinstance(result, PatchingResult)
    assert result.values.shape == expected.values.shape
    assert_same(result.values, expected.values, expected.baseline)
    torch.testing.assert_close(result.baseline, expected.baseline, atol=1e-4, rtol=0.0)
    other_order = patch_sweep(model, clean, corrupted, site, axes, engine="fast")
    places = [order.index(axis) for axis in axes]
    assert_same(other_order.values, expected.values.permute(*places, len(axes)), expected.baseline)


@torch.no_grad()
def slow_patch(
    model: TransformerBridge,
    run: Tensor,
    source: Tensor,
    site: str,
    layer: int,
    head: int | None,
    to: int | None,
    came_from: int | None,
) -> Tensor:
    """Logits at END of one prompt's run with one patch, with hooks written here."""
    _, cache = model.run_with_cache(source[None])
    _, before = model.run_with_cache(run[None])
    there: Any = slice(None) if came_from is None else came_from
    here: Any = slice(None) if to is None else to
    heads: Any = slice(None) if head is None else head

    def replace(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        if site == "pattern":
            value[0, heads, here] = cache[hook.name][0, heads, there]
        elif site in HEAD_SITES:
            value[0, here, heads] = cache[hook.name][0, there, heads]
        else:
            value[0, here] = cache[hook.name][0, there]
        return value

    def replace_middle(attn_out: Tensor, hook: Any) -> Tensor:
        name = f"blocks.{layer}.hook_resid_mid"
        attn_out = attn_out.clone()
        attn_out[0, here] += cache[name][0, there] - before[name][0, here]
        return attn_out

    if site == "resid_mid":
        hooks: list[tuple[str, Any]] = [(f"blocks.{layer}.hook_attn_out", replace_middle)]
    else:
        hooks = [(get_act_name(site, layer), replace)]
    logits: Tensor = model.run_with_hooks(run[None], fwd_hooks=hooks)
    return logits[:, -1]


def expected_sweep(
    model: TransformerBridge,
    clean: IOIDataset,
    corrupted: IOIDataset,
    site: str,
    axes: Sequence[str],
    direction: str,
    wanted_roles: Sequence[str],
) -> Tensor:
    """A sweep by loops over everything, prompt by prompt."""
    aligned = clean.lengths.equal(corrupted.lengths) and clean.templates == corrupted.templates
    heads: list[int | None] = list(range(model.cfg.n_heads)) if "head" in axes else [None]
    wanted: list[str | None] = list(wanted_roles) if "role" in axes else [None]
    values = torch.zeros(model.cfg.n_layers, len(heads), len(wanted), len(clean))
    for i in range(len(clean)):
        datasets = [corrupted, clean] if direction == "denoising" else [clean, corrupted]
        run, source = (d.tokens[i, : int(d.lengths[i])] for d in datasets)
        if aligned:
            datasets = [clean, clean]
        for layer in range(model.cfg.n_layers):
            for h, head in enumerate(heads):
                for r, role in enumerate(wanted):
                    to, came_from = (
                        None if role is None else int(d.positions[role][i]) for d in datasets
                    )
                    logits = slow_patch(model, run, source, site, layer, head, to, came_from)
                    values[layer, h, r, i] = metrics.logit_diff(logits, clean[i])
    if "role" not in axes:
        values = values[:, :, 0]
    return values if "head" in axes else values[:, 0]


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("site", SITES)
def test_roles_on_prompts_of_different_lengths(
    random: TransformerBridge, site: str, direction: Any
) -> None:
    clean = IOIDataset.generate(
        random.tokenizer, 3, prefixes="bundled", paired=False, seed=2, templates="demo"
    )
    corrupted = clean.swap_order() if direction == "denoising" else clean.abc()
    assert clean.lengths.unique().numel() > 1
    axes = ("layer", "head", "role") if site in HEAD_SITES else ("layer", "role")
    roles = ("END", "S2")
    result = patch_sweep(random, clean, corrupted, site, axes, direction=direction, roles=roles)
    expected = expected_sweep(random, clean, corrupted, site, axes, direction, roles)
    assert_same(result.values, expected, result.baseline)
    assert result.index_df["role"].unique().tolist() == ["END", "S2"]


@pytest.mark.parametrize("site", SITES)
def test_all_positions_of_prompts_of_different_lengths(
    random: TransformerBridge, site: str
) -> None:
    clean = IOIDataset.generate(random.tokenizer, 3, prefixes="bundled", paired=False, seed=2)
    corrupted = clean.random_names()
    axes = ("layer", "head") if site in HEAD_SITES else ("layer",)
    result = patch_sweep(random, clean, corrupted, site, axes)
    expected = expected_sweep(random, clean, corrupted, site, axes, "denoising", ())
    assert_same(result.values, expected, result.baseline)


@pytest.mark.parametrize("site", [site for site in SITES if site != "pattern"])
def test_counterparts_of_another_length_are_patched_by_role(
    random: TransformerBridge, site: str
) -> None:
    make = IOIDataset.generate
    clean = make(random.tokenizer, 3, prefixes="bundled", paired=False, seed=2)
    corrupted = make(random.tokenizer, 3, paired=False, seed=4)
    assert not clean.lengths.equal(corrupted.lengths)
    roles = ("S1+1", "S2")
    for direction in ("denoising", "noising"):
        result = patch_sweep(
            random, clean, corrupted, site, ("layer", "role"), roles=roles, direction=direction
        )
        expected = expected_sweep(
            random, clean, corrupted, site, ("layer", "role"), direction, roles
        )
        assert_same(result.values, expected, result.baseline)
        slow = patch_sweep(
            random,
            clean,
            corrupted,
            site,
            ("layer", "role"),
            roles=roles,
            direction=direction,
            engine="hooks",
        )
        assert_same(slow.values, expected, result.baseline)


def test_resid_mid_changes_the_skip_connection(built: TransformerBridge, demo: IOIDataset) -> None:
    # Every MLP of the hand-built model writes zero: what only they read could have no effect.
    result = patch_sweep(built, demo, demo.swap_subject(), "resid_mid", ("layer", "role"))
    assert result.effect().abs().max() > 1.0
    after = patch_sweep(built, demo, demo.swap_subject(), "resid_post", ("layer", "role"))
    torch.testing.assert_close(result.values, after.values, atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("site", SITES)
def test_the_loop_gives_the_same(random: TransformerBridge, site: str, direction: Any) -> None:
    clean = IOIDataset.demo(random.tokenizer)[:3]
    axes: list[tuple[str, ...]] = [("layer", "pos"), ("role", "layer"), ("layer",)]
    if site in HEAD_SITES:
        axes = [("layer", "head"), ("layer", "role", "head")]
    for some in axes:
        fast, slow = (
            patch_sweep(
                random,
                clean,
                clean.abc(),
                site,
                some,
                direction=direction,
                engine=engine,
                metric={"diff": metrics.logit_diff, "P": metrics.io_probability},
            )
            for engine in ("fast", "hooks")
        )
        assert fast.values.shape == slow.values.shape
        assert fast.index_df.equals(slow.index_df)
        for name in ("diff", "P"):
            assert_same(fast[name].values, slow[name].values, slow[name].baseline)
        for one, other in ((fast.clean, slow.clean), (fast.corrupted, slow.corrupted)):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0.0)


def test_noise_on_an_embedding(random: TransformerBridge) -> None:
    clean = IOIDataset.generate(random.tokenizer, 4, prefixes="bundled", seed=2)
    noise = NoisyEmbedding("S1", scale=2.0, seed=3)
    result = patch_sweep(random, clean, noise, "resid_pre", ("layer", "role"))
    assert bool((result.clean != result.corrupted).all())
    slow = patch_sweep(random, clean, noise, "resid_pre", ("layer", "role"), engine="hooks")
    assert_same(result.values, slow.values, slow.baseline)
    at_s1 = result.values[0, ROLES.index("S1")]
    torch.testing.assert_close(at_s1, result.clean, atol=1e-5, rtol=0.0)
    again = patch_sweep(random, clean, noise, "z", direction="noising")
    torch.testing.assert_close(again.corrupted, result.corrupted, atol=1e-5, rtol=0.0)
    other = patch_sweep(random, clean, NoisyEmbedding("S1", 2.0, seed=4), "z")
    assert (other.corrupted - result.corrupted).abs().max() > 1e-3


def test_noise_is_three_standard_deviations_strong(random: TransformerBridge) -> None:
    """Of all entries of the embedding matrix, at S2, as Meng et al. have it: by plain hooks."""
    clean = IOIDataset.generate(random.tokenizer, 64, prefixes="bundled", seed=2)
    seen = []

    def add_noise(embed: Tensor, hook: Any) -> Tensor:
        drawn = torch.randn(64, embed.shape[-1], generator=torch.Generator().manual_seed(0))
        noisy = embed.clone()
        noisy[torch.arange(64), clean.positions["S2"]] += 3.0 * random.W_E.std() * drawn
        seen.append((noisy - embed)[torch.arange(64), clean.positions["S2"]].std())
        return noisy

    with torch.no_grad():
        noisy = random.run_with_hooks(clean.tokens, fwd_hooks=[("hook_embed", add_noise)])
    assert float(seen[0] / random.W_E.std()) == pytest.approx(3.0, rel=0.05)
    expected = metrics.logit_diff(noisy, clean, per_prompt=True)
    result = patch_sweep(random, clean, NoisyEmbedding(), "attn_out", ("layer",), progress=False)
    torch.testing.assert_close(result.corrupted, expected, atol=1e-5, rtol=0.0)


# --- identities --------------------------------------------------------------------------------


def sweeps(site: str) -> Sequence[tuple[str, ...]]:
    return [("layer", "role"), ("layer", "head")][: 1 if site in STREAM_SITES else 2]


@pytest.mark.parametrize("site", SITES)
def test_patching_a_run_into_itself_changes_nothing(model: TransformerBridge, site: str) -> None:
    data = IOIDataset.demo(model.tokenizer)[:4]
    # Names that differ and are patched into each other's place would change something.
    for axes in sweeps(site):
        result = patch_sweep(model, data, data, site, axes)
        expected = metrics.logit_diff(model(data.tokens), data, per_prompt=True)
        torch.testing.assert_close(
            result.values, expected.expand_as(result.values), atol=1e-5, rtol=0.0
        )


@pytest.mark.parametrize("site", SITES)
def test_a_run_into_its_copy_with_other_padding(random: TransformerBridge, site: str) -> None:
    # The same activations, but nothing says so: every patch is really made.
    data = IOIDataset.generate(random.tokenizer, 4, prefixes="bundled", seed=2)
    noise = NoisyEmbedding("IO", scale=0.0)
    for axes in sweeps(site):
        result = patch_sweep(random, data, noise, site, axes)
        torch.testing.assert_close(
            result.values, result.clean.expand_as(result.values), atol=1e-5, rtol=0.0
        )


@pytest.mark.parametrize("corruption", ["swap_subject", "swap_order", "abc"])
def test_patching_everything_gives_clean(model: TransformerBridge, corruption: str) -> None:
    clean = IOIDataset.demo(model.tokenizer)
    corrupted = getattr(clean, corruption)()
    for direction in ("denoising", "noising"):
        result = patch_sweep(model, clean, corrupted, "resid_pre", ("layer",), direction=direction)
        source = result.clean if direction == "denoising" else result.corrupted
        for layer in range(model.cfg.n_layers):
            torch.testing.assert_close(result.values[layer], source, atol=1e-5, rtol=0.0)
    last = patch_sweep(model, clean, corrupted, "resid_post", ("layer", "role"))
    torch.testing.assert_close(last.values[-1, ROLES.index("END")], last.clean, atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("site", SITES)
def test_noising_mirrors_denoising_on_swapped_pairs(model: TransformerBridge, site: str) -> None:
    clean = IOIDataset.demo(model.tokenizer)
    partner = torch.arange(8).view(4, 2).flip(1).flatten()
    assert clean.swap_subject().tokens.equal(clean.tokens[partner])
    for axes in sweeps(site):
        denoising, noising = (
            patch_sweep(model, clean, clean.swap_subject(), site, axes, direction=direction)
            for direction in ("denoising", "noising")
        )
        torch.testing.assert_close(
            noising.values, -denoising.values[..., partner], atol=1e-4, rtol=0.0
        )


def test_noising_does_not_mirror_denoising_with_abc(
    built: TransformerBridge, demo: IOIDataset
) -> None:
    denoising, noising = (
        patch_sweep(built, demo, demo.abc(), direction=direction)
        for direction in ("denoising", "noising")
    )
    difference = denoising.fraction() - noising.fraction()
    assert difference.abs().max() > 0.5


def test_positions_before_the_first_difference_hold_the_baseline(
    random: TransformerBridge,
) -> None:
    clean = IOIDataset.demo(random.tokenizer)
    result = patch_sweep(random, clean, clean.swap_subject(), "resid_pre", ("layer", "pos"))
    s2 = int(clean.positions["S2"][0])
    assert not result.effect()[:, :s2, 0].any()
    assert not result.effect()[0, s2 + 1 :, 0].any()
    assert bool((result.effect()[1:, s2:, 0] != 0).all())


def test_the_sites_of_one_place_agree(random: TransformerBridge) -> None:
    clean = IOIDataset.demo(random.tokenizer)
    corrupted = clean.abc()

    def values(site: str, *axes: str) -> Tensor:
        return patch_sweep(random, clean, corrupted, site, ("layer", *axes)).values

    pre, post = values("resid_pre", "role"), values("resid_post", "role")
    torch.testing.assert_close(pre[1:], post[:-1], atol=1e-5, rtol=0.0)
    # All heads' z is attention's output.
    torch.testing.assert_close(values("z", "role"), values("attn_out", "role"), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(values("z"), values("attn_out"), atol=1e-5, rtol=0.0)


# --- ground truth --------------------------------------------------------------------------------

# Where each head of the hand-built circuit is needed: at its queries' position.
WORKS_AT = {head: query for head, (query, _) in handbuilt.ATTENDS.items()}


def found(result: Any, threshold: float = 0.05) -> set[tuple[str, str]]:
    """The (head, role) pairs whose patch changes the mean logit difference."""
    effect = result.effect().mean(dim=-1)
    return {
        (f"L{layer}H{head}", ROLES[role])
        for layer, head, role in (effect.abs() > threshold).nonzero().tolist()
    }


def test_noising_finds_the_circuit(built: TransformerBridge, data: IOIDataset) -> None:
    """Every head is found where it was built to work, and nothing else is.

    With an order swap, heads that carry the order bit are needed. With other names, heads that
    carry names are.
    """
    axes = ("layer", "head", "role")
    order = patch_sweep(built, data, data.swap_order(), "z", axes, direction="noising")
    expected = {(head, WORKS_AT[head]) for head in ("L1H0", "L1H2", "L2H1")}
    movers = {(head, "END") for head in ("L3H0", "L3H2", "L3H3")}
    assert expected <= found(order)
    assert found(order) <= expected | movers | {("L0H1", "S1+1"), ("L0H1", "IO")}
    names = patch_sweep(built, data, data.random_names(), "z", axes, direction="noising")
    assert movers <= found(names)
    assert all(head in handbuilt.HEAD_CLASSES for head, _ in found(names))
    abc = patch_sweep(built, data, data.abc(), "z", axes, direction="noising")
    everything = set(WORKS_AT.items())
    assert found(abc) <= everything | {("L4H1", "END"), ("L0H1", "S1"), ("L0H1", "IO")}
    assert found(abc) >= everything - {("L0H1", "S1+1"), ("L0H3", "S2")}


def test_effects_follow_from_the_design(built: TransformerBridge, data: IOIDataset) -> None:
    """The order signal inverted, or the name signal of someone else: as the algebra says."""
    result = patch_sweep(
        built, data, data.swap_order(), "z", ("layer", "head", "role"), direction="noising"
    )
    end, s2 = ROLES.index("END"), ROLES.index("S2")
    inverted = handbuilt.expected_logit_diff(order=-1.0)
    half = handbuilt.expected_logit_diff(order=0.0)
    for (layer, head, role), value in {
        (2, 1, end): inverted,
        (1, 0, s2): half,
        (1, 2, s2): half,
        (2, 3, end): handbuilt.expected_logit_diff(),
    }.items():
        torch.testing.assert_close(
            result.values[layer, head, role],
            torch.full((len(data),), value),
            atol=2e-3,
            rtol=0.0,
        )


def test_pattern_and_value_split_what_a_head_does(
    built: TransformerBridge, demo: IOIDataset
) -> None:
    """The movers' patterns carry the answer, as the names they copy stand in both prompts; the
    S-inhibition heads' values do, as they look at S2 in both."""
    corrupted = demo.swap_subject()
    pattern = patch_sweep(built, demo, corrupted, "pattern").effect().mean(dim=-1)
    value = patch_sweep(built, demo, corrupted, "v").effect().mean(dim=-1)
    both = patch_sweep(built, demo, corrupted, "z").effect().mean(dim=-1)
    for layer, head in ((3, 0), (3, 3)):
        assert pattern[layer, head] == pytest.approx(float(both[layer, head]), abs=1e-3)
        assert abs(value[layer, head]) < 1e-3
    for layer, head in ((2, 1), (2, 3)):
        assert value[layer, head] == pytest.approx(float(both[layer, head]), abs=1e-3)
        assert abs(pattern[layer, head]) < 1e-3


def test_the_answer_moves_from_s2_to_end(built: TransformerBridge, demo: IOIDataset) -> None:
    result = patch_sweep(built, demo, demo.swap_subject(), "resid_pre", ("layer", "role"))
    s2, end = (result.fraction()[:, ROLES.index(role)] for role in ("S2", "END"))
    # L2's S-inhibition heads move it, L3's name movers only read it at END.
    torch.testing.assert_close(s2, torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]), atol=1e-3, rtol=0.0)
    torch.testing.assert_close(end, torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0]), atol=1e-3, rtol=0.0)


def test_a_fraction_of_nothing_is_refused() -> None:
    """In the other order the same name is the answer: the runs' means differ by noise alone."""
    model = load_model("ioi-mini", device="cpu", verbose=False)
    data = IOIDataset.generate(model.tokenizer, 32, seed=0)
    result = patch_sweep(model, data, data.swap_order(), "z", ("layer", "head", "role"))
    assert result.effect().abs().max() > 1
    with pytest.raises(ValueError, match=r"differ by .* ± .* nothing to recover"):
        result.fraction()
    both = [metrics.logit_diff, metrics.io_probability]
    several = patch_sweep(model, data, data.swap_order(), "z", metric=both)
    with pytest.raises(ValueError, match="nothing to recover"):
        several.fraction()


def test_reference_circuit_ranks_first() -> None:
    """The strongest patches are heads of the registry, each where the registry says it works."""
    model = load_model("ioi-mini", device="cpu", verbose=False)
    data = IOIDataset.generate(model.tokenizer, 32, seed=0)
    axes = ("layer", "head", "role")
    fraction = patch_sweep(model, data, data.swap_subject(), "z", axes).fraction()
    strongest = fraction.abs().flatten().argsort(descending=True)[:6]
    places = torch.stack(torch.unravel_index(strongest, fraction.shape), dim=1).tolist()
    found = {(f"L{layer}H{head}", ROLES[role]) for layer, head, role in places}
    known = {(entry.head, entry.position) for entry in registry(model)}
    assert found <= known
    classes = {
        entry.head_class for entry in registry(model) if (entry.head, entry.position) in found
    }
    assert {"duplicate_token", "s_inhibition", "name_mover"} <= classes


def test_the_control_tells_another_story() -> None:
    """Where S2 is not what the model uses, patching S2 alone does not bring the answer back."""
    model = load_model("ioi-plain", device="cpu", verbose=False)
    data = IOIDataset.generate(model.tokenizer, 32, seed=0)
    result = patch_sweep(model, data, data.swap_subject(), "z", ("layer", "head", "role"))
    at_s2 = result.fraction()[..., ROLES.index("S2")]
    at_end = result.fraction()[..., ROLES.index("END")]
    assert at_s2.abs().max() < 0.1
    assert at_end.max() > 0.5


# --- metrics and results ---------------------------------------------------------------------


def test_several_metrics(random: TransformerBridge) -> None:
    clean = IOIDataset.demo(random.tokenizer)
    corrupted = clean.abc()
    functions = [metrics.logit_diff, metrics.io_probability, metrics.io_rank]
    result = patch_sweep(random, clean, corrupted, "attn_out", ("layer", "pos"), metric=functions)
    assert result.metric_names == ["logit_diff", "io_probability", "io_rank"]
    assert result.values.shape[0] == 3
    for function in functions:
        alone = patch_sweep(random, clean, corrupted, "attn_out", ("layer", "pos"), metric=function)
        one = result[function.__name__]
        torch.testing.assert_close(one.values, alone.values, atol=1e-5, rtol=1e-5)
        assert one.site == "attn_out"
        assert one.clean.shape == (8,)
        assert alone.metric_names == [function.__name__]
    plain = patch_sweep(random, clean, corrupted, "attn_out", ("layer", "pos"))
    assert plain.metric_names == ["logit_diff"]
    torch.testing.assert_close(result["logit_diff"].values, plain.values, atol=1e-5, rtol=0.0)


def test_a_metric_of_ones_own(random: TransformerBridge) -> None:
    clean = IOIDataset.demo(random.tokenizer)

    def answer(logits: Tensor, data: IOIDataset) -> Tensor:
        return logits.gather(1, data.io_tokens[:, None])[:, 0]

    result = patch_sweep(
        random, clean, clean.swap_subject(), "mlp_out", ("layer", "role"), metric={"IO": answer}
    )
    expected = answer(metrics.end_logits(random(clean.tokens), clean), clean)
    torch.testing.assert_close(result.clean[0], expected, atol=1e-5, rtol=0.0)


def test_the_result_carries_statistics(built: TransformerBridge) -> None:
    clean = IOIDataset.demo(built.tokenizer)
    result = patch_sweep(built, clean, clean.abc(), "z", ("layer", "head"))
    shape = (built.cfg.n_layers, built.cfg.n_heads)
    assert result.axis_names == ["layer", "head"]
    assert result.mean().shape == result.stderr().shape == shape
    low, high = result.bootstrap_ci(n_resamples=50)
    assert bool((low <= high).all())
    assert result.permutation_pvalue().shape == shape
    table = result.to_dataframe()
    assert list(table.columns) == ["metric", "layer", "head", "example", "value"]
    assert len(table) == math.prod(shape) * 8
    fraction = (result.mean() - result.corrupted.mean()) / (
        result.clean.mean() - result.corrupted.mean()
    )
    torch.testing.assert_close(result.fraction(), fraction)
    normalised = result.normalized(result.clean)
    assert normalised.shape == (*shape, 8)
    several = patch_sweep(
        built, clean, clean.abc(), metric=[metrics.logit_diff, metrics.io_probability]
    )
    torch.testing.assert_close(several.fraction()[0], fraction, atol=1e-4, rtol=1e-4)


class PeakMemory(TorchDispatchMode):
    """The most bytes that tensors seen inside held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[weakref.ref[Tensor]] = []
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, list | tuple) else (out,)
        self.seen += [weakref.ref(value) for value in made if isinstance(value, Tensor)]
        self.seen = [reference for reference in self.seen if reference() is not None]
        alive = [value for value in (reference() for reference in self.seen) if value is not None]
        storages = [value.untyped_storage() for value in alive]
        sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
        self.peak = max(self.peak, sum(sizes.values()))
        return out


@pytest.mark.parametrize("site", ["resid_pre", "v"])
def test_memory_stays_within_the_budget(random: TransformerBridge, site: str) -> None:
    clean = IOIDataset.generate(random.tokenizer, 16, prefixes="bundled", seed=2)
    corrupted = clean.abc()
    axes = ("layer", "role") if site == "resid_pre" else ("layer", "head", "role")

    def sweep(memory: int) -> tuple[Tensor, int]:
        gc.collect()
        with PeakMemory() as mode:
            result = patch_sweep(random, clean, corrupted, site, axes, memory=memory)
        return result.values, mode.peak

    everything, unbounded = sweep(2**30)
    # Weights and prompts, which are seen inside as well, are not the sweep's.
    fixed = sum(p.numel() * p.element_size() for p in random.parameters()) + 2**17
    budget = 2**20
    values, peak = sweep(budget)
    assert unbounded > fixed + 1.5 * budget
    assert peak < fixed + budget
    torch.testing.assert_close(values, everything, atol=1e-5, rtol=0.0)
    one_by_one = patch_sweep(random, clean[:2], corrupted[:2], site, axes, memory=1)
    torch.testing.assert_close(one_by_one.values, everything[..., :2], atol=1e-5, rtol=0.0)


# --- other models ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_architecture(tmp_path_factory: pytest.TempPathFactory) -> TransformerBridge:
    folder = random_models.save(tmp_path_factory.mktemp("gpt-j"), "gpt-j")
    return random_models.boot(folder, folded=False)


def test_other_architectures_take_the_loop(
    other_architecture: TransformerBridge, capsys: pytest.CaptureFixture[str]
) -> None:
    model = other_architecture
    clean = IOIDataset.demo(model.tokenizer)[:2]
    corrupted = clean.swap_order()
    result = patch_sweep(model, clean, corrupted, "resid_pre", ("layer", "role"))
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1
    assert "GPTJForCausalLM" in printed[0]
    expected = expected_sweep(
        model, clean, corrupted, "resid_pre", ("layer", "role"), "denoising", ROLES
    )
    assert_same(result.values, expected, result.baseline)
    with pytest.raises(ValueError, match="fast path cannot run this model"):
        patch_sweep(model, clean, corrupted, engine="fast")


def test_the_loop_refuses_what_roles_cannot_align(other_architecture: TransformerBridge) -> None:
    model = other_architecture
    clean = IOIDataset.generate(model.tokenizer, 4, prefixes="bundled", seed=2)
    with pytest.raises(ValueError, match="use 'role' instead of 'pos'"):
        patch_sweep(model, clean, clean.abc(), "resid_pre", ("layer", "pos"))
    assert not has_hooks(model)


def test_hooks_on_the_model_are_respected(
    random: TransformerBridge, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = IOIDataset.demo(random.tokenizer)[:2]

    def silence(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        z[:, :, 1] = 0.0
        return z

    with random.hooks(fwd_hooks=[("blocks.2.attn.hook_z", silence)]):
        result = patch_sweep(random, clean, clean.abc(), "resid_pre", ("layer", "role"))
        expected = metrics.logit_diff(random(clean.tokens), clean, per_prompt=True)
    assert "hooks on the model" in capsys.readouterr().out
    torch.testing.assert_close(result.clean, expected, atol=1e-5, rtol=0.0)
    assert not has_hooks(random)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "site",
    [
        site if site in ("z", "pattern", "mlp_out") else pytest.param(site, marks=pytest.mark.slow)
        for site in SITES
    ],
)
def test_half_precision_is_no_less_exact_than_the_loop(site: str, dtype: torch.dtype) -> None:
    exact, half = (
        load_model("ioi-mini", device="cpu", dtype=kind, verbose=False)
        for kind in (torch.float32, dtype)
    )
    data = IOIDataset.generate(exact.tokenizer, 8, seed=3)
    axes = ("layer", "head") if site in HEAD_SITES else ("layer", "role")
    expected = patch_sweep(exact, data, data.swap_subject(), site, axes).values

    def error(engine: Any) -> float:
        result = patch_sweep(half, data, data.swap_subject(), site, axes, engine=engine)
        assert result.values.dtype == torch.float32
        return float((result.values - expected).square().mean().sqrt())

    assert error("fast") <= error("hooks") < 0.1


# --- errors ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unequal(built: TransformerBridge, data: IOIDataset) -> IOIDataset:
    return IOIDataset.generate(built.tokenizer, len(data), seed=7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"site": "resid"}, "'resid' is not a site; use one of resid_pre, "),
        ({"site": "attn_head_out"}, "'attn_head_out' is not a site here, where it is called 'z'"),
        ({"site": "blocks.9.attn.hook_q"}, "is not a site here, where it is called 'q'"),
        ({"axes": ("layer", "token")}, "'token' is not an axis"),
        ({"axes": ("layer", "head_index")}, "is not an axis here, where it is called 'head'"),
        ({"axes": ("layer", "dest_pos")}, "is not an axis here, where it is called 'pos'"),
        ({"axes": ("head",)}, "axes must hold 'layer'"),
        ({"axes": ("layer", "layer")}, "no axis twice"),
        ({"axes": ("layer", "pos", "role")}, "'pos' or 'role', but not both"),
        ({"site": "mlp_out", "axes": ("layer", "head")}, "mlp_out has no heads"),
        ({"axes": ("layer", "pos")}, "use 'role' instead of 'pos'"),
        ({"direction": "both"}, "direction must be"),
        ({"engine": "slow"}, "engine must be"),
        ({"memory": 0}, "memory must be a positive number"),
        ({"axes": ("layer", "role"), "roles": "S2"}, "roles must list"),
        ({"axes": ("layer", "role"), "roles": ("S3",)}, "'S3' is not a role"),
        ({"metric": {}}, "metric must be a function"),
        ({"metric": lambda logits, data: logits.mean()}, "must return one value for each of the 8"),
        ({"metric": [metrics.io_rank, metrics.io_rank]}, "same name"),
    ],
)
def test_bad_requests(
    built: TransformerBridge, data: IOIDataset, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        patch_sweep(built, data, data.swap_subject(), **arguments)
    assert len(str(error.value).splitlines()) == 1


def test_datasets_that_do_not_go_together(built: TransformerBridge, data: IOIDataset) -> None:
    make = IOIDataset.generate
    bare = make(built.tokenizer, 8, prefixes="bundled", seed=1, prepend_bos=False)
    with pytest.raises(ValueError, match="corrupted has no BOS before its prompts, unlike"):
        patch_sweep(built, data, bare.swap_subject(), "z", ("layer", "role"))
    with pytest.raises(ValueError, match="corrupted has BOS before each prompt, unlike"):
        patch_sweep(built, bare, data.swap_subject(), "z", ("layer", "role"))
    other = load_model("ioi-mini", device="cpu", verbose=False)
    foreign = make(other.tokenizer, 8, seed=1)
    for clean, corrupted in ((data, foreign), (foreign, data)):
        with pytest.raises(ValueError, match="made with another tokenizer than the model's"):
            patch_sweep(built, clean, corrupted)
    with pytest.raises(ValueError, match="must be a dataset, not a list of str"):
        patch_sweep(built, ["When Mary and John"], data)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be a TransformerBridge"):
        patch_sweep(built.original_model, data, data.abc())


def test_equal_lengths_do_not_make_positions_correspond(built: TransformerBridge) -> None:
    """Prompts of other templates: only roles say what corresponds to what."""
    texts = (
        "Then, [A] and [B] went to the [PLACE]. [B] gave a [OBJECT] to",
        "Then, [A] and [B] had a long argument, and afterwards [B] said to",
    )
    clean, corrupted = (
        IOIDataset.generate(built.tokenizer, 4, "ABBA", templates=[text], seed=0) for text in texts
    )
    assert clean.lengths.equal(corrupted.lengths)
    assert not clean.positions["S2"].equal(corrupted.positions["S2"])
    with pytest.raises(ValueError, match="Prompt 0 and its counterpart .* different templates"):
        patch_sweep(built, clean, corrupted)
    site, axes = "resid_pre", ("layer", "role")
    by_role = patch_sweep(built, clean, corrupted, site, axes)
    expected = expected_sweep(built, clean, corrupted, site, axes, "denoising", ROLES)
    assert_same(by_role.values, expected, by_role.baseline)


def test_different_sizes(built: TransformerBridge, data: IOIDataset) -> None:
    with pytest.raises(ValueError, match="clean has 8 prompts but corrupted has 6"):
        patch_sweep(built, data, data.abc()[:6])


@pytest.mark.parametrize(
    ("site", "axes"), [("z", ("layer", "head")), ("resid_pre", ("layer", "pos"))]
)
def test_unequal_lengths(
    built: TransformerBridge,
    data: IOIDataset,
    unequal: IOIDataset,
    site: str,
    axes: tuple[str, ...],
) -> None:
    with pytest.raises(ValueError, match=r"Prompt \d has \d+ tokens, but its counterpart"):
        patch_sweep(built, data, unequal, site, axes)
    with pytest.raises(ValueError, match="attention patterns do not correspond"):
        patch_sweep(built, data, unequal, "pattern", ("layer", "role"))


def test_a_role_missing_from_a_prompt(built: TransformerBridge) -> None:
    data = IOIDataset.demo(built.tokenizer)
    data.positions["S1+1"][3] = -1
    with pytest.raises(ValueError, match=r"Prompt 3 has no S1\+1"):
        patch_sweep(built, data, data.abc(), "resid_pre", ("layer", "role"))
    patch_sweep(built, data, data.abc(), "resid_pre", ("layer", "role"), roles=("S2", "END"))


def test_prompts_longer_than_the_context(random: TransformerBridge, data: IOIDataset) -> None:
    actual, random.cfg.n_ctx = random.cfg.n_ctx, 10
    try:
        with pytest.raises(ValueError, match="this model's context holds 10"):
            patch_sweep(random, data, data.abc())
    finally:
        random.cfg.n_ctx = actual


@pytest.mark.parametrize("part", ["whole", "wrapped model", "one block"])
def test_training_mode(random: TransformerBridge, data: IOIDataset, part: str) -> None:
    whole = random.original_model
    {"whole": random, "wrapped model": whole, "one block": whole.transformer.h[1]}[part].train()
    try:
        with pytest.raises(ValueError, match=r"Call model.eval\(\)"):
            patch_sweep(random, data, data.abc())
        with pytest.raises(ValueError, match=r"Call model.eval\(\)"):
            attribution_patch_sweep(random, data, data.abc())
    finally:
        random.eval()
        whole.eval()


@pytest.mark.parametrize("engine", ["fast", "hooks"])
def test_interruption_leaves_no_hooks(random: TransformerBridge, engine: Any) -> None:
    clean = IOIDataset.demo(random.tokenizer)[:2]
    calls: Iterator[int] = iter(range(1000))

    def interrupted(logits: Tensor, data: IOIDataset) -> Tensor:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return logits[:, 0]

    with pytest.raises(KeyboardInterrupt):
        patch_sweep(
            random,
            clean,
            NoisyEmbedding(),
            "z",
            ("layer", "head"),
            metric=interrupted,
            engine=engine,
        )
    assert next(calls) == 6
    assert not has_hooks(random)
    assert torch.is_grad_enabled()


# --- attribution patching --------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_attribution_is_the_gradient(random: TransformerBridge, direction: Any) -> None:
    clean = IOIDataset.generate(
        random.tokenizer, 2, prefixes="bundled", paired=False, seed=2, templates="demo"
    )
    corrupted = clean.abc()
    result = attribution_patch_sweep(
        random, clean, corrupted, "z", ("layer", "role", "head"), direction=direction
    )
    exact = patch_sweep(
        random, clean, corrupted, "z", ("layer", "role", "head"), direction=direction
    )
    assert result.index_df.equals(exact.index_df)
    torch.testing.assert_close(result.baseline, exact.baseline, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(result.clean, exact.clean, atol=1e-5, rtol=0.0)
    # Against one gradient taken here: the last layer's heads at END.
    layer, i = random.cfg.n_layers - 1, 1
    run, source = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
    name = f"blocks.{layer}.attn.hook_z"
    end = int(clean.lengths[i])
    _, there = random.run_with_cache(source.tokens[i, :end])
    _, here = random.run_with_cache(run.tokens[i, :end])
    step = (there[name] - here[name])[0, -1]
    nudged = []
    for sign in (1, -1):
        for head in range(random.cfg.n_heads):

            def nudge(z: Tensor, hook: Any, sign: int = sign, head: int = head) -> Tensor:
                z = z.clone()
                z[0, -1, head] += 1e-2 * sign * step[head]
                return z

            logits = random.run_with_hooks(run.tokens[i, :end], fwd_hooks=[(name, nudge)])
            nudged.append(float(metrics.logit_diff(logits[:, -1], clean[i])))
    up, down = torch.tensor(nudged).view(2, -1)
    torch.testing.assert_close(
        result.effect()[layer, ROLES.index("END"), :, i], (up - down) / 2e-2, atol=2e-3, rtol=2e-2
    )


@pytest.mark.parametrize("site", ["z", "mlp_out"])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_attribution_equals_transformer_lens(
    random: TransformerBridge, site: str, direction: Any
) -> None:
    """TransformerLens' own takes one prompt at a time; ours takes them in parts or all at once."""
    clean = IOIDataset.generate(random.tokenizer, 4, prefixes="bundled", seed=2)
    corrupted = clean.abc()
    axes = ("layer", "head") if site == "z" else ("layer",)
    whole, parts = (
        attribution_patch_sweep(
            random, clean, corrupted, site, axes, direction=direction, memory=memory
        )
        for memory in (2**30, 1)
    )
    torch.testing.assert_close(parts.values, whole.values, atol=1e-4, rtol=1e-4)
    kind = {"z": "attn_head_out", "mlp_out": "mlp_out"}[site]
    random.requires_grad_(True)
    try:
        for i in range(len(clean)):
            both = [d.tokens[i : i + 1, : int(clean.lengths[i])] for d in (clean, corrupted)]
            source, base = both if direction == "denoising" else both[::-1]

            def diff(logits: Tensor, i: int = i) -> Tensor:
                return metrics.logit_diff(logits[:, -1], clean[i])

            found = attribution_patch(random, source, base, diff, EdgeAttributionConfig())
            expected = torch.zeros(whole.values.shape[:-1])
            for node, score in found.node_scores.items():
                if node.kind == kind:
                    expected[(node.layer, node.head)[: len(axes)]] += score
            torch.testing.assert_close(whole.effect()[..., i], expected, atol=1e-4, rtol=1e-3)
    finally:
        random.requires_grad_(False)


def test_attribution_sums_over_what_is_no_axis(random: TransformerBridge) -> None:
    clean = IOIDataset.demo(random.tokenizer)[:2]
    corrupted = clean.swap_subject()

    def effect(site: str, *axes: str) -> Tensor:
        return attribution_patch_sweep(
            random, clean, corrupted, site, axes, progress=False
        ).effect()

    whole = effect("z", "layer", "head", "pos")
    torch.testing.assert_close(effect("z", "head", "layer"), whole.sum(2).transpose(0, 1))
    torch.testing.assert_close(effect("z", "layer"), whole.sum((1, 2)))
    mlp = effect("mlp_out", "pos", "layer")
    torch.testing.assert_close(effect("mlp_out", "layer"), mlp.sum(0))
    assert not has_hooks(random)


def test_attribution_refuses(random: TransformerBridge, demo: IOIDataset, data: IOIDataset) -> None:
    other = IOIDataset.generate(random.tokenizer, len(data), seed=4)
    with pytest.raises(ValueError, match="covers the sites z and mlp_out, not 'q'"):
        attribution_patch_sweep(random, demo, demo.abc(), "q")
    with pytest.raises(ValueError, match="correspond to them position by position"):
        attribution_patch_sweep(random, data, other, "z", ("layer", "role"))
    noise: Any = NoisyEmbedding()
    with pytest.raises(ValueError, match="correspond to them position by position"):
        attribution_patch_sweep(random, demo, noise)
    slow: Any = "slow"
    with pytest.raises(ValueError, match="engine must be"):
        attribution_patch_sweep(random, demo, demo.abc(), engine=slow)


def test_saturation_is_where_attribution_fails(built: TransformerBridge, demo: IOIDataset) -> None:
    """The hand-built S-inhibition heads act through a softmax: the linear estimate is far off."""
    exact = patch_sweep(built, demo, demo.swap_subject()).effect().mean(dim=-1)
    estimate = attribution_patch_sweep(built, demo, demo.swap_subject()).effect().mean(dim=-1)
    assert math.isclose(float(estimate[3, 0]), float(exact[3, 0]), abs_tol=0.05)
    assert abs(float(estimate[2, 1] - exact[2, 1])) > 1.0
