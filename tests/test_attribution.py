"""Direct logit attribution adds up, agrees with TransformerLens, and reads the right position."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools import analysis

from ioi_helpers import attribution, metrics
from ioi_helpers.attribution import (
    decompose,
    final_layer_norm_scale,
    head_attribution,
    layer_attribution,
    logit_diff_directions,
    logit_lens,
)
from ioi_helpers.bundled import BUNDLED
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.models import handbuilt, load_model
from ioi_helpers.runs import activations_at

SKELETON = Path(__file__).parents[2] / "shared" / "gpt2-skeleton"


def boot_raw(folder: Path) -> TransformerBridge:
    return TransformerBridge.boot_transformers(str(folder), device="cpu").eval()


def boot_folded(folder: Path) -> TransformerBridge:
    model = boot_raw(folder)
    model.enable_compatibility_mode(disable_warnings=True)
    return model


def boot_unprocessed(folder: Path) -> TransformerBridge:
    model = boot_raw(folder)
    model.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    return model


@pytest.fixture(scope="module", params=[boot_folded, boot_raw, boot_unprocessed])
def model(request: pytest.FixtureRequest, random_folder: Path) -> TransformerBridge:
    boot: Callable[[Path], TransformerBridge] = request.param
    return boot(random_folder)


@pytest.fixture(scope="module")
def folded(random_folder: Path) -> TransformerBridge:
    return boot_folded(random_folder)


@pytest.fixture(scope="module")
def data(folded: TransformerBridge) -> IOIDataset:
    """Prompts of many lengths."""
    data = IOIDataset.generate(folded.tokenizer, 12, prefixes="bundled", seed=3)
    assert len(data.lengths.unique()) > 3
    return data


@pytest.fixture(scope="module")
def level(folded: TransformerBridge) -> IOIDataset:
    """Prompts of one length, all of whose END positions are the last."""
    return IOIDataset.demo(folded.tokenizer)


def logit_diff_at(model: TransformerBridge, data: IOIDataset, role: str = "END") -> Tensor:
    """The model's own logit difference at a role's position, from its logits."""
    with torch.no_grad():
        logits = data.gather(model(data.tokens), role)
    rows = torch.arange(len(data))
    return logits[rows, data.io_tokens] - logits[rows, data.s_tokens]


def assert_adds_up(total: Tensor, logit_diff: Tensor) -> None:
    torch.testing.assert_close(total, logit_diff, atol=1e-4, rtol=0.0)


# --- it adds up ----------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["END", "S2", "IO"])
def test_decomposition_adds_up(model: TransformerBridge, data: IOIDataset, role: str) -> None:
    expected = logit_diff_at(model, data, role)
    assert expected.abs().mean() > 0.5
    assert_adds_up(decompose(model, data, role).total, expected)
    assert_adds_up(decompose(model, data, role, split_mlp_bias=True).total, expected)
    assert_adds_up(layer_attribution(model, data, role).total, expected)
    for layer_norm in ("final", "own"):
        lens = logit_lens(model, data, role, layer_norm=layer_norm)
        assert_adds_up(lens.of("final_post"), expected)


def test_means_are_means(model: TransformerBridge, data: IOIDataset) -> None:
    mean = logit_diff_at(model, data).mean()
    assert_adds_up(decompose(model, data).values.sum(), mean)
    assert_adds_up(layer_attribution(model, data).values.sum(), mean)
    assert_adds_up(logit_lens(model, data)["final_post"], mean)
    heads = head_attribution(model, data)
    torch.testing.assert_close(heads.values, heads.per_prompt.mean(-1))


def test_the_three_partitions_agree(model: TransformerBridge, data: IOIDataset) -> None:
    complete = decompose(model, data, split_mlp_bias=True)
    layers = layer_attribution(model, data)
    lens = logit_lens(model, data)
    heads = head_attribution(model, data).per_prompt
    for layer in range(model.cfg.n_layers):
        for index in range(model.cfg.n_heads):
            torch.testing.assert_close(complete.of(f"L{layer}H{index}"), heads[layer, index])
        attention = heads[layer].sum(dim=0) + complete.of(f"{layer}_b_O")
        assert_adds_up(layers.of(f"{layer}_attn_out"), attention)
        mlp = complete.of(f"{layer}_neurons") + complete.of(f"{layer}_b_out")
        assert_adds_up(layers.of(f"{layer}_mlp_out"), mlp)
        # With LayerNorm's scale held fixed, the lens climbs by what each layer adds.
        assert_adds_up(lens.of(f"{layer}_mid") - lens.of(f"{layer}_pre"), attention)
    assert_adds_up(layers.of("embed"), complete.of("embed"))
    assert_adds_up(layers.of("pos_embed"), complete.of("pos_embed"))


def test_labels(model: TransformerBridge, data: IOIDataset) -> None:
    bias = ["b_U"] if model.ln_final.bias.eq(0).all() else ["ln_final_b", "b_U"]
    layers = [f"{layer}_{part}_out" for layer in range(3) for part in ("attn", "mlp")]
    assert layer_attribution(model, data).labels == ("embed", "pos_embed", *layers, *bias)
    states = [f"{layer}_{part}" for layer in range(3) for part in ("pre", "mid")]
    assert logit_lens(model, data).labels == (*states, "final_post")
    complete = [
        label
        for layer in range(3)
        for label in (*(f"L{layer}H{i}" for i in range(3)), f"{layer}_b_O", f"{layer}_mlp_out")
    ]
    assert decompose(model, data).labels == ("embed", "pos_embed", *complete, *bias)


@pytest.mark.parametrize("name", BUNDLED)
def test_adds_up_on_bundled_models(name: str) -> None:
    model = load_model(name, device="cpu", verbose=False)
    data = IOIDataset.generate(model.tokenizer, 40, prefixes="bundled", seed=0)
    expected = logit_diff_at(model, data)
    assert_adds_up(decompose(model, data, split_mlp_bias=True).total, expected)
    assert_adds_up(layer_attribution(model, data).total, expected)


@pytest.mark.skipif(not SKELETON.is_dir(), reason="GPT-2's tokenizer and config are not here")
def test_adds_up_at_gpt2_small_shape() -> None:
    torch.manual_seed(0)
    model = load_model(str(SKELETON), device="cpu", load_weights=False, verbose=False)
    assert (model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_model) == (12, 12, 768)
    data = IOIDataset.generate(model.tokenizer, 4, seed=0)
    assert len(data.lengths.unique()) > 1
    expected = logit_diff_at(model, data)
    complete = decompose(model, data)
    assert len(complete.labels) == 2 + 12 * (12 + 1 + 1) + 1
    assert_adds_up(complete.total, expected)
    assert_adds_up(layer_attribution(model, data).total, expected)
    assert head_attribution(model, data).values.shape == (12, 12)


# --- it is TransformerLens' ----------------------------------------------------------------------


def test_agrees_with_transformer_lens(folded: TransformerBridge, level: IOIDataset) -> None:
    def theirs(unit: str) -> Any:
        return analysis.direct_logit_attribution(
            folded, level.tokens, level.io_tokens, level.s_tokens, unit=unit, pos=-1
        )

    layers = layer_attribution(folded, level)
    assert list(layers.labels) == [*theirs("component").labels, "b_U"]
    torch.testing.assert_close(layers.per_prompt[:-1], theirs("component").attribution)

    heads = head_attribution(folded, level).per_prompt.flatten(0, 1)
    torch.testing.assert_close(heads, theirs("head").attribution[:-1])

    lens = logit_lens(folded, level)
    bias = layers.of("b_U")
    assert list(lens.labels) == theirs("layer").labels
    torch.testing.assert_close(lens.per_prompt - bias, theirs("layer").attribution)


def test_own_layer_norm_agrees_with_transformer_lens(
    model: TransformerBridge, level: IOIDataset
) -> None:
    ours = logit_lens(model, level, layer_norm="own")
    theirs = [
        analysis.logit_lens(model, level.tokens, incl_mid=True, targets=answers).values[..., 0]
        for answers in (level.io_tokens, level.s_tokens)
    ]
    torch.testing.assert_close(ours.per_prompt, theirs[0] - theirs[1], atol=1e-4, rtol=1e-4)


def test_the_plain_lines_in_the_docstring(folded: TransformerBridge, level: IOIDataset) -> None:
    _, cache = folded.run_with_cache(level.tokens)
    stack = cache.stack_head_results(layer=-1, pos_slice=-1)
    stack = cache.apply_ln_to_stack(stack, layer=-1, pos_slice=-1)
    directions = logit_diff_directions(folded, level)
    plain = (stack * directions).sum(-1).mean(-1)
    torch.testing.assert_close(
        plain.reshape(folded.cfg.n_layers, folded.cfg.n_heads),
        head_attribution(folded, level).values,
    )


# --- the direction -------------------------------------------------------------------------------


def test_directions_are_differences_of_columns(folded: TransformerBridge, data: IOIDataset) -> None:
    directions = logit_diff_directions(folded, data)
    expected = folded.W_U[:, data.io_tokens] - folded.W_U[:, data.s_tokens]
    torch.testing.assert_close(directions, expected.T)
    one = logit_diff_directions(folded, data[3])
    torch.testing.assert_close(one, directions[3:4])


def test_directions_read_the_logit_difference(model: TransformerBridge, data: IOIDataset) -> None:
    resid = activations_at(model, data, "END", f"blocks.{model.cfg.n_layers - 1}.hook_resid_post")
    resid = resid - resid.mean(dim=-1, keepdim=True)
    scaled = resid / final_layer_norm_scale(model, data)[:, None]
    diff = (scaled * logit_diff_directions(model, data)).sum(dim=-1)
    complete = decompose(model, data)
    for label in ("ln_final_b", "b_U"):
        if label in complete.labels:
            diff = diff + complete.of(label)
    assert_adds_up(diff, logit_diff_at(model, data))


# --- positions, batches, rows --------------------------------------------------------------------


def test_padding_and_memory_do_not_matter(folded: TransformerBridge, data: IOIDataset) -> None:
    expected = decompose(folded, data)
    for memory in (1, 2**20, 2**30):
        values = decompose(folded, data, memory=memory).per_prompt
        torch.testing.assert_close(values, expected.per_prompt, atol=1e-5, rtol=1e-4)
    unpadded = IOIDataset.from_prompts(
        folded.tokenizer, data[0].prompts, [(data[0].names[0].IO, data[0].names[0].S1)]
    )
    alone = decompose(folded, unpadded).per_prompt
    torch.testing.assert_close(alone, expected.per_prompt[:, :1], atol=1e-5, rtol=1e-4)


@settings(max_examples=10, deadline=None)
@given(rows=st.lists(st.integers(0, 11), min_size=1, max_size=6))
def test_rows_are_independent(folded: TransformerBridge, data: IOIDataset, rows: list[int]) -> None:
    whole = head_attribution(folded, data).per_prompt
    part = head_attribution(folded, data[rows]).per_prompt
    torch.testing.assert_close(part, whole[..., rows], atol=1e-5, rtol=1e-4)


def test_exchanging_the_answers_changes_the_sign(
    folded: TransformerBridge, level: IOIDataset
) -> None:
    directions = logit_diff_directions(folded, level)
    swapped = logit_diff_directions(folded, level.swap_subject())
    torch.testing.assert_close(swapped, -directions)


# --- frozen LayerNorm ----------------------------------------------------------------------------


def test_scale_divides_everything_but_the_biases(
    model: TransformerBridge, data: IOIDataset
) -> None:
    scale = final_layer_norm_scale(model, data)
    assert scale.shape == (len(data),)
    plain, same = decompose(model, data), decompose(model, data, scale=scale)
    torch.testing.assert_close(same.per_prompt, plain.per_prompt)
    halved = decompose(model, data, scale=2 * scale, memory=2**20)
    for label in plain.labels:
        factor = 1.0 if label in ("ln_final_b", "b_U") else 0.5
        torch.testing.assert_close(halved.of(label), plain.of(label) * factor)


def test_frozen_scale_isolates_what_the_ablated_head_wrote(
    folded: TransformerBridge, data: IOIDataset
) -> None:
    def silence(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        z[:, :, 1] = 0.0
        return z

    clean = head_attribution(folded, data).values
    scale = final_layer_norm_scale(folded, data)
    last = folded.cfg.n_layers - 1
    with folded.hooks(fwd_hooks=[(f"blocks.{last}.attn.hook_z", silence)]):
        ablated = head_attribution(folded, data, scale=scale).values
        moving = head_attribution(folded, data).values
    changed = (ablated - clean).abs() > 1e-5
    assert changed.nonzero().tolist() == [[last, 1]]
    assert ablated[last, 1] == 0
    assert ((moving - clean).abs() > 1e-5).sum() > 1


# --- the hand-built circuit ----------------------------------------------------------------------


def test_hand_built_circuit(built: TransformerBridge) -> None:
    data = IOIDataset.generate(built.tokenizer, 30, prefixes="bundled", seed=5)
    result = decompose(built, data)
    expected = {
        head: strength * handbuilt.ATTENTION_DIFFERENCE
        for head, strength in handbuilt.COPY_STRENGTH.items()
        if head != "L4H1"  # rests while the others are at work
    }
    assert dict(result.top(3)) == pytest.approx(expected, abs=1e-3)
    for label in result.labels:
        if label not in expected:
            assert abs(result[label].item()) < 1e-5
    lens = logit_lens(built, data)
    assert lens["3_pre"].item() == pytest.approx(0.0, abs=1e-5)
    assert lens["3_mid"].item() == pytest.approx(handbuilt.expected_logit_diff(), abs=1e-3)


# --- results -------------------------------------------------------------------------------------


def test_table_and_standard_errors(folded: TransformerBridge, data: IOIDataset) -> None:
    result = decompose(folded, data)
    table = result.table()
    assert list(table.columns) == ["mean", "standard error over 6 pairs"]
    assert list(table.index) == list(result.labels)
    assert table["mean"].sum() == pytest.approx(result.total.mean().item(), abs=1e-4)
    row = table.loc["L1H2"]
    expected = metrics.mean_and_stderr(result.of("L1H2"), clusters=data.pair_ids)
    assert row["mean"] == pytest.approx(expected.mean, rel=1e-5)
    assert row[result.error_label] == pytest.approx(expected.stderr, rel=1e-4)
    assert decompose(folded, data[0]).stderr.isnan().all()
    alone = IOIDataset.generate(folded.tokenizer, 12, paired=False, seed=3)
    assert decompose(folded, alone).error_label == "standard error over 12 prompts"


def test_a_result_stands_for_its_means(folded: TransformerBridge, data: IOIDataset) -> None:
    """Indexing, NumPy and pandas see [layer head]; a name is one head's."""
    heads = head_attribution(folded, data)
    assert heads.labels == tuple(folded.all_head_labels) and len(heads) == 3
    values = heads.per_prompt.mean(dim=-1)
    assert torch.equal(heads[1, 2], values[1, 2]) and torch.equal(heads["L1H2"], values[1, 2])
    assert torch.equal(heads[1], values[1])
    assert torch.equal(heads.of("L1H2"), heads.per_prompt[1, 2])
    assert np.array_equal(np.asarray(heads), values.numpy())
    assert np.asarray(heads, dtype=np.float64).dtype == np.float64
    assert float(np.max(heads)) == values.max()
    assert heads.table().loc["L1H2", "mean"] == pytest.approx(float(values[1, 2]))
    largest = heads.labels[int(values.abs().argmax())]
    assert repr(heads).startswith("Attribution at END, [3, 3], in logits (± standard error over 6")
    assert f"largest: {largest} {heads[largest]:.3f} ± " in repr(heads)


def test_on_disk_and_back(folded: TransformerBridge, data: IOIDataset, tmp_path: Path) -> None:
    for made in (decompose(folded, data), head_attribution(folded, data)):
        made.save(tmp_path / "made.safetensors")
        back = type(made).load(tmp_path / "made.safetensors")
        assert torch.equal(back.per_prompt, made.per_prompt) and torch.equal(
            back.stderr, made.stderr
        )
        assert (back.labels, back.role) == (made.labels, made.role)
        assert torch.equal(back.logit_diffs, made.logit_diffs)
    with pytest.raises(ValueError, match="holds"):
        attribution.Decomposition.load(tmp_path / "made.safetensors")


def test_what_stands_between_stream_and_logits_is_refused(
    folded: TransformerBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert attribution.why_no_readout(folded) == ""
    with monkeypatch.context() as patch:
        patch.setitem(folded._modules, "project_out", torch.nn.Identity())
        assert "has project_out between" in attribution.why_no_readout(folded)
    with monkeypatch.context() as patch:
        patch.setattr(folded.blocks[1], "hook_out_is_single_residual_stream", False, raising=False)
        assert "several residual streams (block 1" in attribution.why_no_readout(folded)
    theirs = importlib.import_module("transformer_lens.tools.analysis.logit_lens")
    assert set(attribution.BEHIND_THE_NORM) == set(theirs._READOUT_TRANSFORM_COMPONENTS)


def test_an_attribution_keeps_the_models_own_logit_differences(
    folded: TransformerBridge, data: IOIDataset
) -> None:
    wanted = metrics.logit_diff(folded(data.tokens), data, per_prompt=True)
    for found in (head_attribution(folded, data), decompose(folded, data)):
        torch.testing.assert_close(found.logit_diffs, wanted, atol=1e-4, rtol=1e-4)


def test_labels_must_fit(data: IOIDataset) -> None:
    with pytest.raises(ValueError, match="1 labels and 12 prompts do not fit values of shape"):
        attribution.Attribution(torch.zeros(2, 12), ("a",), data.pair_ids, "END", torch.zeros(12))


def test_top_sorts_by_size(folded: TransformerBridge, data: IOIDataset) -> None:
    result = decompose(folded, data)
    sizes = [abs(value) for _, value in result.top(len(result.labels))]
    assert sizes == sorted(sizes, reverse=True)
    label, value = result.top(1)[0]
    assert value == pytest.approx(result.of(label).mean().item(), rel=1e-5)


# --- manners -------------------------------------------------------------------------------------


def hooks_on(model: TransformerBridge) -> int:
    return sum(len(point.fwd_hooks) + len(point.bwd_hooks) for point in model.hook_dict.values())


def test_hooks_are_removed_also_after_an_error(folded: TransformerBridge, data: IOIDataset) -> None:
    def fail(activation: Tensor, hook: Any) -> None:
        raise RuntimeError("on purpose")

    before = hooks_on(folded)
    decompose(folded, data)
    assert hooks_on(folded) == before
    with folded.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", fail)]):
        inside = hooks_on(folded)
        with pytest.raises(RuntimeError, match="on purpose"):
            decompose(folded, data)
        assert hooks_on(folded) == inside
    assert hooks_on(folded) == before


def test_gradient_switch_is_left_alone(folded: TransformerBridge, data: IOIDataset) -> None:
    assert torch.is_grad_enabled()
    assert not head_attribution(folded, data).per_prompt.requires_grad
    assert torch.is_grad_enabled()


def test_half_precision_is_summed_in_float32(random_folder: Path, data: IOIDataset) -> None:
    model = load_model(str(random_folder), device="cpu", dtype=torch.bfloat16, verbose=False)
    result = decompose(model, data)
    assert result.values.dtype == result.stderr.dtype == torch.float32
    expected = logit_diff_at(model, data).float()
    torch.testing.assert_close(result.total, expected, atol=0.3, rtol=0.1)


def test_bad_input_is_refused(folded: TransformerBridge, data: IOIDataset) -> None:
    with pytest.raises(ValueError, match="'S3' is not a role"):
        head_attribution(folded, data, "S3")
    with pytest.raises(ValueError, match="memory must be a positive number"):
        head_attribution(folded, data, memory=0)
    with pytest.raises(ValueError, match="The prompts must be a dataset, not a tensor of shape"):
        head_attribution(folded, data.tokens)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one number for each of the 12 prompts"):
        head_attribution(folded, data, scale=torch.ones(3))
    with pytest.raises(ValueError, match='"final" or "own"'):
        logit_lens(folded, data, layer_norm="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="No component is called 'L9H9'"):
        decompose(folded, data)["L9H9"]


def test_training_mode_is_refused(random_folder: Path, data: IOIDataset) -> None:
    model = boot_folded(random_folder).train()
    with pytest.raises(ValueError, match="training mode"):
        head_attribution(model, data)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("normalization_type", None, "ends in a norm of the kind None"),
        ("output_logits_soft_cap", 30.0, "caps its logits"),
    ],
)
def test_logits_that_are_no_sum_are_refused(
    folded: TransformerBridge,
    data: IOIDataset,
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    value: Any,
    message: str,
) -> None:
    monkeypatch.setattr(folded.cfg, setting, value)
    with pytest.raises(ValueError, match=message):
        decompose(folded, data)
    with pytest.raises(ValueError, match=message):
        logit_diff_directions(folded, data)
