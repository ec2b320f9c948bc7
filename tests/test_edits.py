"""Edits reach what they claim to reach, or say that they do not."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools import analysis

from ioi_helpers import metrics, probing, runs
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.edits import (
    AtPoints,
    attend,
    attention_edit,
    edited,
    head_edit,
    logit_diffs_and_kl,
    logit_diffs_of_edits,
    next_token_kl,
    pattern_reaches_run,
    residual_edit,
)
from ioi_helpers.models import handbuilt, load_model
from tests import random_models

# In these TransformerLens leaves attention to the wrapped module.
LEFT_TO_THE_MODULE = ("gpt-neo", "opt", "gpt-j")


@pytest.fixture(scope="module")
def data(random_folder: Path) -> IOIDataset:
    return random_models.prompts(random_models.boot(random_folder))


def attention(
    model: TransformerBridge, data: IOIDataset, edits: Sequence[runs.Edit] = (), **settings: Any
) -> Float[Tensor, "layer head key batch"]:
    """From END to the names."""
    pairs = [("END", role) for role in ("IO", "S1", "S2")]
    return runs.attention_of_pairs(model, data, pairs, edits, **settings)


# --- the residual stream ------------------------------------------------------------------------


def forward_by_hand(
    model: TransformerBridge, tokens: Tensor, point: str, at: int, new: Tensor
) -> Tensor:
    """GPT-2's equations for one prompt, with the residual stream at a point really replaced."""

    def norm(x: Tensor, layer_norm: Any) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + model.cfg.eps).sqrt()
        return x * layer_norm.weight + layer_norm.bias

    edit_layer, stage = runs.parse_point(point)

    def at_point(x: Tensor, layer: int, here: str) -> Tensor:
        if (layer, here) == (edit_layer, stage):
            x = x.clone()
            x[at] = new
        return x

    n = len(tokens)
    x = model.W_E[tokens] + model.W_pos[:n]
    future = torch.ones(n, n).triu(1).bool()
    for layer, block in enumerate(model.blocks):
        x = at_point(x, layer, "pre")
        h = norm(x, block.ln1)
        attention = block.attn.b_O.expand(n, -1)
        for head in range(model.cfg.n_heads):
            q = h @ block.attn.W_Q[head] + block.attn.b_Q[head]
            k = h @ block.attn.W_K[head] + block.attn.b_K[head]
            v = h @ block.attn.W_V[head] + block.attn.b_V[head]
            scores = (q @ k.T / math.sqrt(model.cfg.d_head)).masked_fill(future, -torch.inf)
            attention = attention + scores.softmax(-1) @ v @ block.attn.W_O[head]
        x = at_point(x + attention, layer, "mid")
        h = norm(x, block.ln2)
        inner = torch.nn.functional.gelu(h @ block.mlp.W_in + block.mlp.b_in, approximate="tanh")
        x = at_point(x + inner @ block.mlp.W_out + block.mlp.b_out, layer, "post")
    return norm(x, model.ln_final) @ model.W_U + model.b_U


@pytest.mark.parametrize(
    "point", ["L0.pre", "L1.pre", "L0.mid", "L1.mid", "L2.mid", "L1.post", "L2.post"]
)
def test_an_edit_is_what_gpt2s_equations_say(
    tiny: TransformerBridge, data: IOIDataset, point: str
) -> None:
    """Above all in the middle of a block, where the skip connection must change as well."""
    generator = torch.Generator().manual_seed(1)
    new = 3 * torch.randn(len(data), tiny.cfg.d_model, generator=generator)
    with edited(tiny, residual_edit(data, "S2", point, new)):
        logits = tiny(data.tokens)
    for row in range(0, len(data), 3):
        n = int(data.lengths[row])
        by_hand = forward_by_hand(
            tiny, data.tokens[row, :n], point, int(data.positions["S2"][row]), new[row]
        )
        torch.testing.assert_close(
            logits[row, :n].log_softmax(-1), by_hand.log_softmax(-1), atol=2e-4, rtol=1e-4
        )


def test_a_hook_in_the_middle_that_returns_a_new_tensor_misses_the_skip_connection(
    tiny: TransformerBridge, data: IOIDataset
) -> None:
    """Why the above is needed; one that writes in place reaches both, by aliasing.

    When this fails, TransformerLens has changed it.
    """
    new = torch.ones(tiny.cfg.d_model)
    at = int(data.positions["S2"][0])

    def naive(stream: Tensor, hook: Any) -> Tensor:
        stream = stream.clone()
        stream[0, at] = new
        return stream

    tokens = data.tokens[:1, : int(data.lengths[0])]
    logits = tiny.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_resid_mid", naive)])
    by_hand = forward_by_hand(tiny, tokens[0], "L1.mid", at, new)
    assert (logits[0].log_softmax(-1) - by_hand.log_softmax(-1)).abs().max() > 0.1

    def in_place(stream: Tensor, hook: Any) -> None:
        stream[0, at] = new

    logits = tiny.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_resid_mid", in_place)])
    torch.testing.assert_close(
        logits[0].log_softmax(-1), by_hand.log_softmax(-1), atol=2e-4, rtol=1e-4
    )


@pytest.mark.parametrize("point", ["L1.pre", "L1.mid", "L1.post"])
def test_putting_back_what_was_there_changes_nothing(
    tiny: TransformerBridge, data: IOIDataset, point: str
) -> None:
    clean = tiny(data.tokens)
    there = runs.activations_at(tiny, data, "S2", point)
    for new in (there, lambda x: x):
        with edited(tiny, residual_edit(data, "S2", point, new)):
            torch.testing.assert_close(tiny(data.tokens), clean, atol=1e-5, rtol=1e-5)
    with edited(tiny, residual_edit(data, "S2", point, lambda x: x)):
        assert torch.equal(tiny(data.tokens), clean)


def hooks_on(model: TransformerBridge) -> int:
    return sum(len(point.fwd_hooks) for point in model.hook_dict.values())


def test_hooks_come_off_also_after_an_error(tiny: TransformerBridge, data: IOIDataset) -> None:
    before = hooks_on(tiny)
    edits: list[runs.Edit] = [
        residual_edit(data, "S2", "L1.mid", torch.zeros(len(data), tiny.cfg.d_model)),
        attention_edit(data, "END", "L2H0", torch.zeros(len(data), 5)),
        head_edit(data, "END", "L0H0", lambda z: 2 * z),
    ]
    with edited(tiny, *edits):
        assert hooks_on(tiny) > before
    assert hooks_on(tiny) == before

    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        runs.logit_diffs(tiny, data, [residual_edit(data, "S2", "L1.mid", broken)])
    assert hooks_on(tiny) == before
    with (
        pytest.raises(ValueError, match="no point L9.mid"),
        edited(tiny, residual_edit(data, "S2", "L9.mid", lambda x: x)),
    ):
        pass
    assert hooks_on(tiny) == before


def test_edits_that_do_not_fit_are_refused(tiny: TransformerBridge, data: IOIDataset) -> None:
    new = torch.zeros(len(data), tiny.cfg.d_model)
    with pytest.raises(ValueError, match="12 prompts, but new activations of shape"):
        residual_edit(data, "S2", "L1.mid", new[:3])
    with (
        pytest.raises(ValueError, match="have 7 dimensions, but the residual stream of this model"),
        edited(tiny, residual_edit(data, "S2", "L1.mid", new[:, :7])),
    ):
        pass
    with (
        pytest.raises(ValueError, match="has 7 dimensions, but a head of this model has 8"),
        edited(tiny, head_edit(data, "S2", "L1H0", new[:, :7])),
    ):
        pass
    for wrong in (data.prompts, data.tokens):
        with pytest.raises(ValueError, match="must be a dataset, not a"):
            residual_edit(wrong, "S2", "L1.mid", new)  # type: ignore[arg-type]
    for positions in (data.positions["S2"] - 40, data.lengths):
        with pytest.raises(ValueError, match="Prompt 0 has no position"):
            residual_edit(data, positions, "L1.mid", new)
    with pytest.raises(ValueError, match="a tensor or a function .* not a ndarray"):
        residual_edit(data, "S2", "L1.mid", new.numpy())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        residual_edit(data, "S2", "L1.mid", new * torch.nan)
    whole = residual_edit(data, "S2", "L1.mid", new)
    for part, on, match in (
        (data[:4], [whole], "made for 12 prompts, but there are 4"),
        (data, whole, "as a list"),
    ):
        with pytest.raises(ValueError, match=match):
            runs.logit_diffs(tiny, part, on)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=match):
            logit_diffs_and_kl(tiny, part, {"on": on})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="12 prompts, but positions of shape"):
        residual_edit(data, data.positions["S2"][:5], "L1.mid", new)
    with pytest.raises(ValueError, match="'S3' is not a role"):
        residual_edit(data, "S3", "L1.mid", new)
    with pytest.raises(ValueError, match="not a point of the residual stream"):
        residual_edit(data, "S2", "1.mid", new)
    with (
        pytest.raises(ValueError, match="made for 12 prompts, but the run has 4"),
        edited(tiny, residual_edit(data, "S2", "L1.mid", new)),
    ):
        tiny(data.tokens[:4])
    with (
        pytest.raises(ValueError, match="There is no L3H0"),
        edited(tiny, attention_edit(data, "END", "L3H0", new)),
    ):
        pass


def test_running_in_parts_is_running_at_once(tiny: TransformerBridge, data: IOIDataset) -> None:
    new = torch.randn(len(data), tiny.cfg.d_model, generator=torch.Generator().manual_seed(2))
    edits = [
        residual_edit(data, "S2", "L0.mid", new),
        residual_edit(data, "END", "L1.post", lambda x: -x),
    ]
    with edited(tiny, *edits):
        whole = metrics.logit_diff(tiny(data.tokens), data, per_prompt=True)
        looks = attention(tiny, data)
    torch.testing.assert_close(
        runs.logit_diffs(tiny, data, edits, memory=1), whole, atol=1e-4, rtol=1e-4
    )
    parts = attention(tiny, data, edits, memory=1)
    torch.testing.assert_close(parts, looks, atol=1e-5, rtol=1e-4)


def test_damage_is_nothing_before_the_edit_and_nothing_without_one(
    tiny: TransformerBridge, data: IOIDataset
) -> None:
    new = torch.zeros(len(data), tiny.cfg.d_model)
    kl = next_token_kl(tiny, data, [residual_edit(data, "S2", "L1.mid", new)], memory=1)
    position = torch.arange(data.tokens.shape[1])
    at = data.positions["S2"][:, None]
    inside = position < data.lengths[:, None]
    assert torch.isnan(kl[~inside]).all()
    assert kl[position < at].abs().max() < 1e-6
    assert kl[(position >= at) & inside].min() > 0
    clean, other = tiny(data.tokens[:1]), None
    with edited(tiny, residual_edit(data[:1], "S2", "L1.mid", new[:1])):
        other = tiny(data.tokens[:1])
    at_end = int(data.positions["END"][0])
    by_hand = torch.nn.functional.kl_div(
        other[0, at_end].log_softmax(-1), clean[0, at_end].softmax(-1), reduction="sum"
    )
    assert kl[0, at_end].item() == pytest.approx(by_hand.item(), rel=1e-3)
    assert next_token_kl(tiny, data, []).nan_to_num().abs().max() == 0


def test_attention_is_set_and_restored(tiny: TransformerBridge, data: IOIDataset) -> None:
    heads = ["L1H0", "L2H2"]
    clean = runs.attention_patterns(tiny, data, heads, memory=1)
    assert clean["L2H2"].sum(-1) == pytest.approx(1.0, abs=1e-5)
    by_role = attention(tiny, data)
    rows = torch.arange(len(data))
    torch.testing.assert_close(clean["L2H2"][rows, data.positions["IO"]], by_role[2, 2, 0])

    upset = residual_edit(data, "S2", "L0.mid", torch.zeros(len(data), tiny.cfg.d_model))
    restore = [attention_edit(data, "END", h, clean[h]) for h in heads]
    disturbed = runs.attention_patterns(tiny, data, heads, edits=[upset])
    assert (disturbed["L2H2"] - clean["L2H2"]).abs().max() > 1e-3
    # Another hook on the same place sees what the restoring hook left behind.
    with edited(tiny, upset, *restore):
        seen = attention(tiny, data)
    for layer, head in ((1, 0), (2, 2)):
        torch.testing.assert_close(seen[layer, head], by_role[layer, head])
    assert (seen[2, 1] - by_role[2, 1]).abs().max() > 1e-3
    # And the run depends on it.
    both: list[runs.Edit] = [upset, *restore]
    difference = runs.logit_diffs(tiny, data, [upset]) - runs.logit_diffs(tiny, data, both)
    assert difference.abs().max() > 1e-3


@pytest.mark.parametrize("point", ["L1.pre", "L1.mid", "L2.post"])
def test_transformer_lens_interchange_tools_work_at_points(
    tiny: TransformerBridge, data: IOIDataset, point: str
) -> None:
    def logits(tokens: Tensor) -> Tensor:
        return tiny(tokens)[:, -1]

    positions = data.positions["S2"]
    at_points = AtPoints(tiny)
    collected = analysis.collect_activations(
        at_points, point, data.tokens, logits, positions=positions
    )
    torch.testing.assert_close(collected, runs.activations_at(tiny, data, "S2", point))
    basis = analysis.random_basis(tiny.cfg.d_model, 2, seed=0)
    swap = analysis.SubspaceInterchange(basis)
    with torch.no_grad():
        found = analysis.run_with_intervention(
            at_points, point, swap, data.tokens, collected.flip(0), logits, positions=positions
        )
    with edited(tiny, residual_edit(data, "S2", point, swap(collected, collected.flip(0)))):
        wanted = logits(data.tokens)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


# --- every architecture -------------------------------------------------------------------------


@pytest.fixture(scope="module", params=random_models.ARCHITECTURES)
def named(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, TransformerBridge]:
    folder = random_models.save(tmp_path_factory.mktemp(request.param), request.param)
    return request.param, random_models.boot(folder)


Named = tuple[str, TransformerBridge]


def test_whether_a_pattern_reaches_the_run(named: Named) -> None:
    architecture, model = named
    for layer in range(model.cfg.n_layers):
        hook = (f"blocks.{layer}.attn.hook_z", lambda z, hook: 0 * z)
        with model.hooks(fwd_hooks=[hook]):
            reaches = pattern_reaches_run(model, layer)
        assert reaches == (architecture not in LEFT_TO_THE_MODULE)


def by_pytorch_hook(
    model: TransformerBridge,
    data: IOIDataset,
    layer: int,
    change: Callable[[Float[Tensor, "batch pos head d_head"]], None],
) -> Float[Tensor, "batch pos vocab"]:
    """Logits where the input of attention's output map was changed by a plain PyTorch hook."""
    module = model.blocks[layer].attn.o.original_component

    def pre(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = inputs[0].clone().unflatten(-1, (model.cfg.n_heads, -1))
        change(z)
        return (z.flatten(2), *inputs[1:])

    handle = module.register_forward_pre_hook(pre)
    try:
        return model(data.tokens)
    finally:
        handle.remove()


def test_a_heads_output_is_what_a_pytorch_hook_makes_it(named: Named) -> None:
    _, model = named
    data = random_models.prompts(model)
    rows, at = torch.arange(len(data)), data.positions["S2"]
    generator = torch.Generator().manual_seed(0)
    new = torch.randn(len(data), model.cfg.d_head, generator=generator)
    clean = model(data.tokens)
    for layer in range(model.cfg.n_layers):

        def put(z: Tensor) -> None:
            z[rows, at, 1] = new

        def double(z: Tensor) -> None:
            z[rows, at, 1] *= 2

        for value, change in ((new, put), (lambda z: 2 * z, double)):
            with edited(model, head_edit(data, "S2", (layer, 1), value)):
                found = model(data.tokens)
            wanted = by_pytorch_hook(model, data, layer, change)
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
            assert (found - clean).abs().max() > 1e-3


def test_attention_takes_effect_also_where_its_hook_comes_too_late(named: Named) -> None:
    _, model = named
    data = random_models.prompts(model)
    rows, at = torch.arange(len(data)), data.positions["END"]
    width = data.tokens.shape[1]
    generator = torch.Generator().manual_seed(0)
    pattern = torch.rand(len(data), width, generator=generator)
    pattern = pattern * (torch.arange(width) <= at[:, None])
    pattern = pattern / pattern.sum(dim=-1, keepdim=True)
    clean = model(data.tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # TransformerLens warns of an edit that comes too late
        for layer in range(model.cfg.n_layers):
            kept: dict[str, Tensor] = {}

            def keep(v: Tensor, hook: Any, kept: dict[str, Tensor] = kept) -> None:
                kept["v"] = v

            name = f"blocks.{layer}.attn.hook_v"
            model.run_with_hooks(data.tokens, fwd_hooks=[(name, keep)])
            every_head = pattern[:, None].expand(-1, model.cfg.n_heads, -1)
            z_of_heads = attend(every_head, kept["v"])

            def put(z: Tensor, new: Tensor = z_of_heads) -> None:
                z[rows, at, 1:] = new[:, 1:]

            both = [
                attention_edit(data, "END", (layer, head), pattern)
                for head in range(1, model.cfg.n_heads)
            ]
            with edited(model, *both):
                found = model(data.tokens)
                seen = runs.attention_patterns(model, data, [(layer, 1), (layer, 0)])
            wanted = by_pytorch_hook(model, data, layer, put)
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
            assert (found - clean).abs().max() > 1e-3
            # Who reads the pattern sees the one that takes effect.
            torch.testing.assert_close(seen[f"L{layer}H1"], pattern)
            assert (seen[f"L{layer}H0"] - pattern).abs().max() > 0.01


@pytest.mark.parametrize("stage", ["pre", "mid", "post"])
def test_the_stream_can_be_edited_in_every_architecture(named: Named, stage: str) -> None:
    architecture, model = named
    data = random_models.prompts(model)
    parallel = architecture in ("gpt-j", "pythia")
    clean = runs.logit_diffs(model, data)
    there = f"L0.{stage}"
    if stage == "mid" and parallel:
        with pytest.raises(ValueError, match="no point L0.mid"):
            runs.logit_diffs(model, data, [residual_edit(data, "S2", there, lambda x: x)])
        return
    turned = runs.logit_diffs(
        model, data, [residual_edit(data, "END", there, lambda x: x.flip(-1))]
    )
    assert (turned - clean).abs().max() > 1e-4


def test_the_same_edit_at_neighbouring_points_is_the_same_run(named: Named) -> None:
    _, model = named
    data = random_models.prompts(model)
    new = torch.randn(len(data), model.cfg.d_model, generator=torch.Generator().manual_seed(1))
    post, pre = (
        runs.logit_diffs(model, data, [residual_edit(data, "S2", point, new)])
        for point in ("L0.post", "L1.pre")
    )
    torch.testing.assert_close(post, pre, atol=1e-5, rtol=1e-5)


# --- edits that do not arrive -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "spoiled"),
    [
        ("L1.pre", "blocks.1.hook_resid_pre"),
        ("L1.mid", "blocks.1.hook_resid_pre"),
        ("L1.mid", "blocks.1.hook_attn_out"),
        ("L1.post", "blocks.1.hook_resid_post"),
        ("L1.post", "blocks.2.hook_resid_pre"),
        ("L2.post", "blocks.2.hook_resid_post"),
    ],
)
def test_an_edit_that_another_hook_spoils_is_noticed(
    tiny: TransformerBridge, data: IOIDataset, point: str, spoiled: str
) -> None:
    edit = residual_edit(data, "S2", point, torch.ones(len(data), tiny.cfg.d_model))

    def spoil(stream: Tensor, hook: Any) -> Tensor:
        return 2 * stream

    with (
        edited(tiny, edit),
        tiny.hooks(fwd_hooks=[(spoiled, spoil)]),
        pytest.raises(RuntimeError, match=f"edit at {point} did not arrive"),
    ):
        tiny(data.tokens)


def test_spoiled_heads_are_noticed(tiny: TransformerBridge, data: IOIDataset) -> None:
    pattern = torch.zeros(*data.tokens.shape)
    pattern[:, 1] = 1.0
    made: dict[str, runs.Edit] = {
        "hook_pattern": attention_edit(data, "END", "L1H1", pattern),
        "hook_z": head_edit(data, "END", "L1H1", torch.ones(len(data), tiny.cfg.d_head)),
    }
    for site, edit in made.items():
        with (
            edited(tiny, edit),
            tiny.hooks(fwd_hooks=[(f"blocks.1.attn.{site}", lambda x, hook: 2 * x)]),
            pytest.raises(RuntimeError, match="given to L1H1 did not arrive"),
        ):
            tiny(data.tokens)
    # And one that was there before, below what the edit writes: the edit wins.
    with tiny.hooks(fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: 0 * z)]):
        runs.logit_diffs(tiny, data, [made["hook_z"]])
        with pytest.raises(RuntimeError, match="attention given to L1H1 did not arrive"):
            runs.logit_diffs(tiny, data, [made["hook_pattern"]])


def test_two_edits_of_the_same_place_are_refused(tiny: TransformerBridge, data: IOIDataset) -> None:
    new = torch.ones(len(data), tiny.cfg.d_model)
    apart = [residual_edit(data, role, "L1.mid", new) for role in ("S1", "S2")]
    runs.logit_diffs(tiny, data, apart)
    twice = [residual_edit(data, "S2", "L1.mid", x) for x in (new, 2 * new)]
    with pytest.raises(RuntimeError, match="did not arrive"):
        runs.logit_diffs(tiny, data, twice)


def test_edits_at_one_place_of_different_kinds_go_together(
    tiny: TransformerBridge, data: IOIDataset
) -> None:
    """In any order: those that check stand behind those that write."""
    pattern = torch.zeros(*data.tokens.shape)
    pattern[:, 1] = 1.0
    here: list[runs.Edit] = [
        residual_edit(data, "END", "L1.pre", lambda x: x.flip(-1)),
        attention_edit(data, "END", "L1H1", pattern),
        head_edit(data, "END", "L1H2", lambda z: 2 * z),
        residual_edit(data, "END", "L1.mid", lambda x: x.roll(1, dims=-1)),
        residual_edit(data, "END", "L1.post", lambda x: x.roll(2, dims=-1)),
    ]
    one, other = (runs.logit_diffs(tiny, data, order) for order in (here, here[::-1]))
    torch.testing.assert_close(one, other)
    for left_out in range(len(here)):
        rest = [edit for i, edit in enumerate(here) if i != left_out]
        assert (runs.logit_diffs(tiny, data, rest) - one).abs().max() > 1e-4


def test_gradients_flow_through_edits(named: Named) -> None:
    _, model = named
    data = random_models.prompts(model)
    pattern = torch.full(data.tokens.shape, 1.0)
    pattern = pattern * (torch.arange(pattern.shape[1]) <= data.positions["END"][:, None])
    pattern = (pattern / pattern.sum(-1, keepdim=True)).requires_grad_(True)
    with edited(model, attention_edit(data, "END", "L0H1", pattern)):
        logits = runs.logits_at_positions(model, data.tokens, data.positions["END"])
    (gradient,) = torch.autograd.grad(logits.square().sum(), pattern)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", ["ioi-mini", "random"])
def test_edited_runs_by_the_equations_are_those_of_the_model(
    name: str, tiny: TransformerBridge, data: IOIDataset
) -> None:
    """On trained weights too; at every point, for words early and late, by a function as well."""
    model = tiny if name == "random" else load_model(name, verbose=False)
    if name != "random":
        data = IOIDataset.generate(model.tokenizer, 14, prefixes="bundled", seed=5)
    swapped, memory = data.swap_order(), 2**22 if name == "random" else runs.DEFAULT_MEMORY
    made: dict[str, list[runs.Edit]] = {"clean": []}
    for role in ("IO", "S2", "END"):
        there = runs.activations_at(model, swapped, role, runs.residual_points(model))
        for point, new in there.items():
            made[f"{role} {point}"] = [residual_edit(data, role, point, new)]
    made["function"] = [residual_edit(data, "S1", "L1.mid", lambda x: -x)]
    made["two"] = [*made["IO L1.pre"], *made["S2 L2.mid"]]  # only hooks run these
    fast = logit_diffs_of_edits(model, data, made, memory=memory)
    slow = logit_diffs_of_edits(model, data, made, engine="hooks")
    assert list(fast) == list(slow) == list(made)
    last = f"END {runs.residual_points(model)[-1]}"
    some = {what: made[what] for what in ("clean", "S2 L1.mid", last, "two")}
    both = [
        logit_diffs_and_kl(model, data, some, engine=engine, memory=memory)
        for engine in ("auto", "hooks")
    ]
    for what in made:
        torch.testing.assert_close(fast[what], slow[what], atol=1e-4, rtol=1e-4)
    for what in some:
        for one, other in zip(both[0][what], both[1][what], strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3, equal_nan=True)
    with pytest.raises(ValueError, match="runs with one edit of the stream each"):
        logit_diffs_of_edits(model, data, made, engine="fast")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_dtype_runs(dtype: torch.dtype) -> None:
    models, data = random_models.in_dtype(dtype, 8)
    loose = {torch.float64: 1e-9, torch.bfloat16: 0.5, torch.float16: 0.1}[dtype]
    found = []
    for one in models:
        stream = runs.activations_at(one, data.swap_order(), "S2", ["L1.pre", "L2.mid"])
        patterns = runs.attention_patterns(one, data.swap_order(), ["L3H0"])
        z = runs.activations_at(one, data.swap_order(), "END", "blocks.4.attn.hook_z")[:, 1]
        made: list[runs.Edit] = [
            *(residual_edit(data, "S2", point, x) for point, x in stream.items()),
            *(attention_edit(data, "END", head, rows) for head, rows in patterns.items()),
            head_edit(data, "END", "L4H1", z),
        ]
        measured = logit_diffs_and_kl(one, data, {"edited": made, "clean": []})
        assert pattern_reaches_run(one)
        assert measured["clean"].kl.nan_to_num().abs().max() < 1e-5
        found.append(measured["edited"])
    torch.testing.assert_close(
        found[0].logit_diff.double(), found[1].logit_diff.double(), atol=loose, rtol=loose
    )
    torch.testing.assert_close(
        found[0].kl.double(), found[1].kl.double(), atol=loose, rtol=loose, equal_nan=True
    )


# --- a circuit known by construction ------------------------------------------------------------


@pytest.fixture(scope="module")
def prompts(built: TransformerBridge) -> IOIDataset:
    return IOIDataset.generate(
        built.tokenizer, 200, names=handbuilt.NAMES, prefixes="bundled", seed=4
    )


def other_order(data: IOIDataset) -> list[str]:
    return ["BABA" if order == "ABBA" else "ABBA" for order in data.orders]


@pytest.mark.parametrize(("point", "order"), [("L2.pre", -1), ("L2.mid", 1), ("L4.pre", 1)])
def test_interchange_does_what_was_built(
    built: TransformerBridge, prompts: IOIDataset, point: str, order: int
) -> None:
    """S-inhibition reads the order at S2 in block 2: before it the bit is in use, after it not."""
    data = prompts[:20]
    new = runs.activations_at(built, data.swap_order(), "S2", point)
    diffs = runs.logit_diffs(built, data, [residual_edit(data, "S2", point, new)])
    wanted = torch.full_like(diffs, handbuilt.expected_logit_diff(order=order))
    torch.testing.assert_close(diffs, wanted, atol=0.02, rtol=0.02)


def test_s_inhibition_reports_the_injected_order_and_restored_attention_restores_the_answer(
    built: TransformerBridge, prompts: IOIDataset
) -> None:
    data = prompts[:60]
    carrier = "L2H1"
    outputs = probing.head_outputs(built, prompts[60:], "END", [carrier])[carrier]
    reader = probing.fit_probe(outputs, prompts[60:].orders)
    new = runs.activations_at(built, data.swap_order(), "S2", "L2.pre")
    edit = residual_edit(data, "S2", "L2.pre", new)
    belief = probing.head_outputs(built, data, "END", [carrier], [edit])[carrier]
    assert reader.predict(belief) == other_order(data)

    movers = [head for head, role in handbuilt.HEAD_CLASSES.items() if "name_mover" in role]
    clean = runs.attention_patterns(built, data, movers)
    restore = [attention_edit(data, "END", h, p) for h, p in clean.items()]
    assert (runs.logit_diffs(built, data, [edit]) < 0).all()
    torch.testing.assert_close(
        runs.logit_diffs(built, data, [edit, *restore]),
        runs.logit_diffs(built, data),
        atol=0.02,
        rtol=0.02,
    )
