"""The partial forward pass equals the model's own, wherever it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities import get_act_name
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from ioi_helpers import forward, load_model
from ioi_helpers.bundled import BUNDLED
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.forward import engine
from ioi_helpers.models import handbuilt
from tests import random_models

VARIANTS = ("folded", "not folded", "relu", "gelu", "scaled by layer", "hand-built")


def random_model(folder: Path, fold: bool = True, **config: Any) -> TransformerBridge:
    """A small GPT-2 with random weights, large enough that patches have large effects."""
    handbuilt.save(folder)
    vocabulary = len(AutoTokenizer.from_pretrained(folder))
    torch.manual_seed(0)
    shape = {"n_layer": 3, "n_head": 4, "n_embd": 32, "n_positions": 96, "initializer_range": 0.2}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    network = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **shape, **ends, **config))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
            elif ".ln_" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    network.save_pretrained(folder)
    return random_models.boot(folder, fold)


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest, tmp_path_factory: Any) -> TransformerBridge:
    folder = tmp_path_factory.mktemp("model")
    if request.param == "hand-built":
        return handbuilt.boot(handbuilt.save(folder))
    options: dict[str, dict[str, Any]] = {
        "relu": {"activation_function": "relu"},
        "gelu": {"activation_function": "gelu"},
        "scaled by layer": {"scale_attn_by_inverse_layer_idx": True},
    }
    return random_model(
        folder, fold=request.param != "not folded", **options.get(request.param, {})
    )


@pytest.fixture(scope="module")
def data(model: TransformerBridge) -> IOIDataset:
    data = IOIDataset.generate(model.tokenizer, 6, prefixes="bundled", seed=5)
    assert data.lengths.unique().numel() > 1
    return data


def hidden(data: IOIDataset) -> Tensor:
    """True on padding."""
    return data.attention_mask == 0


def test_logits_equal_the_models(model: TransformerBridge, data: IOIDataset) -> None:
    gpt = forward.read_weights(model)
    run = forward.run(gpt, data.tokens, data.lengths - 1)
    logits = forward.unembed(gpt, run.final)
    expected = data.gather(model(data.tokens), "END")
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-5)


def test_kept_activations_equal_the_models(model: TransformerBridge, data: IOIDataset) -> None:
    gpt = forward.read_weights(model)
    run = forward.run(gpt, data.tokens, data.lengths - 1, forward.SITES)
    _, cache = model.run_with_cache(data.tokens)
    for site in forward.SITES:
        for layer in range(gpt.n_layers):
            expected = cache[get_act_name(site, layer)].clone()
            expected[hidden(data)] = 0.0
            torch.testing.assert_close(run[site][layer], expected, atol=1e-3, rtol=1e-5)
    expected = cache[f"blocks.{gpt.n_layers - 1}.hook_resid_post"].clone()
    expected[hidden(data)] = 0.0
    torch.testing.assert_close(run["resid_pre"][-1], expected, atol=1e-3, rtol=1e-5)


def test_starting_at_the_first_difference_changes_nothing(
    model: TransformerBridge, data: IOIDataset
) -> None:
    gpt = forward.read_weights(model)
    other = data.swap_subject()
    last = data.lengths - 1
    base = forward.run(gpt, data.tokens, last, forward.SITES)
    first, differs = forward.first_difference(data.tokens, other.tokens, data.lengths)
    assert first.equal(data.positions["S2"])
    assert differs.sum() == len(data)
    fast = forward.run(gpt, other.tokens, last, forward.SITES, base=base, first=first)
    slow = forward.run(gpt, other.tokens, last, forward.SITES)
    torch.testing.assert_close(fast.final, slow.final, atol=1e-4, rtol=1e-5)
    for site in forward.SITES:
        for fast_value, slow_value in zip(fast[site], slow[site], strict=True):
            torch.testing.assert_close(fast_value, slow_value, atol=1e-3, rtol=1e-5)


def test_a_prompt_without_a_difference(model: TransformerBridge, data: IOIDataset) -> None:
    gpt = forward.read_weights(model)
    first, differs = forward.first_difference(data.tokens, data.tokens, data.lengths)
    assert first.equal(data.lengths)
    assert not differs.any()
    base = forward.run(gpt, data.tokens, data.lengths - 1)
    same = forward.run(gpt, data.tokens, data.lengths - 1, base=base, first=first)
    torch.testing.assert_close(same.final, base.final, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("site", forward.SITES)
def test_an_editor_equals_hooks(model: TransformerBridge, data: IOIDataset, site: str) -> None:
    """Two layers are edited in one run, at S2 of each prompt."""
    gpt = forward.read_weights(model)
    rows = torch.arange(len(data))
    s2 = data.positions["S2"]
    changes = {0: 0.7, gpt.n_layers - 1: -1.3}

    def edit(name: str, layer: int, value: Tensor, spans: forward.Spans) -> Tensor:
        if name != site or layer not in changes:
            return value
        value = value.clone()
        value[spans.pos == s2[spans.prompt[spans.row]]] *= changes[layer]
        return value

    def hook_fn(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[rows, s2] *= changes[int(hook.name.split(".")[1])]
        return value

    def remember(value: Tensor, hook: Any) -> None:
        before.append(value)

    def hook_middle(attn_out: Tensor, hook: Any) -> Tensor:
        middle = before[-1] + attn_out
        return attn_out + hook_fn(middle, hook) - middle

    before: list[Tensor] = []
    hooks: list[tuple[str, Any]] = []
    for layer in changes:
        if site == "resid_mid":
            hooks.append((f"blocks.{layer}.hook_resid_pre", remember))
            hooks.append((f"blocks.{layer}.hook_attn_out", hook_middle))
        else:
            hooks.append((get_act_name(site, layer), hook_fn))
    expected = data.gather(model.run_with_hooks(data.tokens, fwd_hooks=hooks), "END")
    last = data.lengths - 1
    logits = forward.unembed(gpt, forward.run(gpt, data.tokens, last, edit=edit).final)
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=5e-4)
    # The same, computed only from S2 on.
    base = forward.run(gpt, data.tokens, last)
    partial = forward.run(gpt, data.tokens, last, (), base=base, first=s2, edit=edit)
    torch.testing.assert_close(forward.unembed(gpt, partial.final), expected, atol=2e-4, rtol=5e-4)


def random_edits(
    gpt: forward.Decoder, data: IOIDataset, generator: torch.Generator
) -> list[forward.Edit]:
    """Edits at every place of the model, each of several rows, at some positions of their spans."""

    def draw(high: int, shape: tuple[int, ...] = ()) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    edits = []
    for layer in range(gpt.n_layers + 1):
        for middle in (False, True)[: 1 if layer == gpt.n_layers else 2]:
            prompt = draw(len(data), (4,))
            last = data.lengths[prompt] - 1
            first = (last * torch.rand(4, generator=generator)).long()
            spans = forward.Spans(prompt, first, last)
            edited = torch.rand(len(spans.row), generator=generator) < 0.4
            edited[spans.starts] = True
            tokens = edited.nonzero()[:, 0]
            values = torch.randn(len(tokens), gpt.W_E.shape[1], generator=generator)
            edits.append(forward.Edit(layer, middle, spans, tokens, values))
    return [edits[i] for i in torch.randperm(len(edits), generator=generator)]


def run_with_hooks(
    model: TransformerBridge, data: IOIDataset, edit: forward.Edit, row: int
) -> Tensor:
    """The same edit of one row in plain TransformerLens: logits at END."""
    here = edit.spans.row[edit.tokens] == row
    at = edit.spans.pos[edit.tokens[here]]
    values = edit.values[here]
    before: list[Tensor] = []

    def replace(stream: Tensor, hook: Any) -> Tensor:
        stream = stream.clone()
        stream[0, at] = values
        return stream

    def remember(stream: Tensor, hook: Any) -> None:
        before.append(stream.clone())

    def replace_middle(attn_out: Tensor, hook: Any) -> Tensor:
        # hook_resid_mid itself does not reach the skip connection.
        middle = before[0] + attn_out
        return attn_out + replace(middle, hook) - middle

    n_layers = model.cfg.n_layers
    hooks: list[tuple[str, Any]]
    if edit.middle:
        block = f"blocks.{edit.layer}"
        hooks = [(f"{block}.hook_resid_pre", remember), (f"{block}.hook_attn_out", replace_middle)]
    elif edit.layer < n_layers:
        hooks = [(f"blocks.{edit.layer}.hook_resid_pre", replace)]
    else:
        hooks = [(f"blocks.{n_layers - 1}.hook_resid_post", replace)]
    prompt = int(edit.spans.prompt[row])
    tokens = data.tokens[prompt : prompt + 1, : int(data.lengths[prompt])]
    logits: Tensor = model.run_with_hooks(tokens, fwd_hooks=hooks)
    return logits[0, -1]


@pytest.mark.parametrize("seed", range(2))
def test_edits_equal_hooks(model: TransformerBridge, data: IOIDataset, seed: int) -> None:
    gpt = forward.read_weights(model)
    generator = torch.Generator().manual_seed(seed)
    edits = random_edits(gpt, data, generator)
    base = forward.run(gpt, data.tokens, data.lengths - 1)
    final = forward.run_edits(gpt, base, edits)
    logits = forward.unembed(gpt, final)
    expected = [
        run_with_hooks(model, data, edit, row) for edit in edits for row in range(len(edit.spans))
    ]
    torch.testing.assert_close(logits, torch.stack(expected), atol=2e-4, rtol=5e-4)


@pytest.mark.parametrize("middle", [False, True])
def test_rows_of_an_edit_can_be_edited_further(
    model: TransformerBridge, data: IOIDataset, middle: bool
) -> None:
    """The stream of block 0 is replaced at S2, and values of later blocks are changed as well."""
    gpt = forward.read_weights(model)
    last, s2 = data.lengths - 1, data.positions["S2"]
    base = forward.run(gpt, data.tokens, last)
    spans = forward.Spans(torch.arange(len(data)), s2, last)
    values = base["resid_mid" if middle else "resid_pre"][0][torch.arange(len(data)), s2] * 1.5

    def later(site: str, layer: int, value: Tensor, where: forward.Spans) -> Tensor:
        if layer == 0 or site not in ("q", "v", "mlp_out"):
            return value
        value = value.clone()
        chosen = where.pos == (s2 if site == "v" else last)[where.prompt[where.row]]
        value[chosen] *= -1.3
        return value

    def all_of_it(site: str, layer: int, value: Tensor, where: forward.Spans) -> Tensor:
        if (site, layer) == ("resid_mid" if middle else "resid_pre", 0):
            value = value.clone()
            value[where.starts] = values
            return value
        return later(site, layer, value, where)

    edit = forward.Edit(0, middle, spans, spans.starts, values)
    expected = forward.run(gpt, data.tokens, last, (), base=base, first=s2, edit=all_of_it).final
    final = forward.run_edits(gpt, base, [edit], later)
    torch.testing.assert_close(final, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(final, forward.run_edits(gpt, base, [edit]), atol=1e-3)


def test_gradients_flow_where_they_are_asked_for(
    model: TransformerBridge, data: IOIDataset
) -> None:
    gpt = forward.read_weights(model)
    x = torch.randn(3, gpt.W_E.shape[1], requires_grad=True)
    (gradient,) = torch.autograd.grad(forward.normalise_final(gpt, x).square().sum(), x)
    (expected,) = torch.autograd.grad(model.ln_final(x).square().sum(), x)
    torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-4)


def test_no_edits(model: TransformerBridge, data: IOIDataset) -> None:
    gpt = forward.read_weights(model)
    base = forward.run(gpt, data.tokens, data.lengths - 1)
    assert forward.run_edits(gpt, base, []).shape == (0, gpt.W_E.shape[1])


def test_gradients_are_neither_made_nor_switched_off(
    model: TransformerBridge, data: IOIDataset
) -> None:
    gpt = forward.read_weights(model)
    gpt.blocks[0].W_in.requires_grad_(True)
    try:
        final = forward.run(gpt, data.tokens, data.lengths - 1).final
    finally:
        gpt.blocks[0].W_in.requires_grad_(False)
    assert not final.requires_grad
    assert torch.is_grad_enabled()


def test_other_architectures_are_refused(model: TransformerBridge) -> None:
    actual = model.cfg.architecture
    model.cfg.architecture = "BloomForCausalLM"
    try:
        with pytest.raises(forward.UnsupportedModel, match="BloomForCausalLM"):
            forward.read_weights(model)
    finally:
        model.cfg.architecture = actual


@st.composite
def some_spans(draw: st.DrawFn) -> forward.Spans:
    rows = draw(st.integers(1, 6))
    numbers = st.lists(st.integers(0, 7), min_size=rows, max_size=rows)
    first, more = torch.tensor(draw(numbers)), torch.tensor(draw(numbers))
    if draw(st.booleans()):
        more = more[:1].expand(rows)
    prompt = torch.tensor(draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows)))
    return forward.Spans(prompt, first, first + more)


@settings(max_examples=60, deadline=None)
@given(some_spans())
def test_spans(spans: forward.Spans) -> None:
    expected = [
        (row, position)
        for row in range(len(spans))
        for position in range(int(spans.first[row]), int(spans.last[row]) + 1)
    ]
    assert list(zip(spans.row.tolist(), spans.pos.tolist(), strict=True)) == expected
    assert spans.pos[spans.starts].equal(spans.first)
    assert spans.pos[spans.ends].equal(spans.last)
    x = torch.randn(len(expected), 2, 3)
    by_row = spans.by_row(x)
    assert by_row.shape == (len(spans), spans.width, 2, 3)
    assert spans.flat(by_row).equal(x)
    by_prompt = spans.by_prompt(x, batch=4)
    assert spans.flat_from_prompts(by_prompt).equal(x)
    assert by_prompt.sum() == pytest.approx(float(x.sum()), abs=1e-4)
    ends = spans.only_ends()
    assert ends.pos.equal(spans.last)
    assert len(ends.row) == len(spans)


# --- when the model does something else than these equations ----------------------------------


class Silent(nn.Module):
    """In place of a module, and adds nothing to the stream."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return torch.zeros_like(x)


def test_plain_models_are_usable_also_after_a_run(
    model: TransformerBridge, data: IOIDataset
) -> None:
    model(data.tokens)  # transformers hangs hooks of its own on a model at the first run
    assert forward.usable_weights(model)[1] == ""


@pytest.mark.parametrize(
    "register",
    ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"],
)
@pytest.mark.parametrize(
    "path", ["", "transformer.h.1", "transformer.h.1.attn", "transformer.ln_f"]
)
def test_plain_hooks_are_noticed(model: TransformerBridge, register: str, path: str) -> None:
    module = model.original_model
    for name in path.split(".") if path else []:
        module = getattr(module, name)
    handle = getattr(module, register)(lambda *_: None)
    try:
        gpt, why = forward.usable_weights(model)
    finally:
        handle.remove()
    assert gpt is None and "there are hooks on the model (" in why
    assert forward.usable_weights(model)[1] == ""


def test_hooks_of_transformer_lens_are_noticed(model: TransformerBridge) -> None:
    def nothing(value: Tensor, hook: Any) -> None:
        return None

    for permanent in (False, True):
        point = model.hook_dict["blocks.1.attn.hook_z"]
        point.add_hook(nothing, is_permanent=permanent)
        try:
            assert "hooks on the model (blocks.1" in forward.usable_weights(model)[1]
        finally:
            point.remove_hooks(including_permanent=True)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert "hooks on the model (on all modules)" in forward.usable_weights(model)[1]
    finally:
        handle.remove()
    assert forward.usable_weights(model)[1] == ""


def test_replaced_modules_are_noticed(model: TransformerBridge) -> None:
    block = model.blocks[1].original_component
    whole = block.attn
    block.attn = Silent()
    try:
        gpt, why = forward.usable_weights(model)
    finally:
        block.attn = whole
    assert gpt is None and "does not compute what its weights say" in why
    assert forward.usable_weights(model)[1] == ""


def test_what_a_module_computes_is_tried_again_when_it_changes(
    model: TransformerBridge,
) -> None:
    """A trial's answer is remembered for the same modules with the same settings only."""
    assert forward.usable_weights(model)[1] == ""
    part = model.unembed.original_component
    written = type(part).forward
    for factor in (2, -1):  # one after the other, on the same module
        part.forward = lambda x, factor=factor: factor * written(part, x)
        try:
            assert "does not compute" in forward.usable_weights(model)[1]
        finally:
            del part.forward
    assert forward.usable_weights(model)[1] == ""
    type(part).forward = lambda self, x: 2 * written(self, x)
    try:
        assert "does not compute" in forward.usable_weights(model)[1]
    finally:
        type(part).forward = written
    assert forward.usable_weights(model)[1] == ""


def test_a_trial_is_run_once(model: TransformerBridge, monkeypatch: pytest.MonkeyPatch) -> None:
    assert forward.usable_weights(model)[1] == ""
    monkeypatch.setattr(engine, "_computes_the_equations", lambda *_: pytest.fail("tried again"))
    assert forward.usable_weights(model)[1] == ""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", sorted(BUNDLED))
def test_rounding_is_no_replaced_module(name: str, dtype: torch.dtype) -> None:
    model = load_model(name, device="cpu", dtype=dtype, verbose=False)
    assert forward.usable_weights(model)[1] == ""
    gpt = forward.read_weights(model)
    assert gpt.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    model.blocks[0].ln1.to(torch.float32)
    assert forward.usable_weights(model)[1] == "its weights are of several dtypes"


def test_the_notice_comes_once_for_each_cause(
    model: TransformerBridge, capsys: pytest.CaptureFixture[str]
) -> None:
    point = model.hook_dict["blocks.1.hook_mlp_out"]
    point.add_hook(lambda value, hook: None)
    try:
        for _ in range(3):
            assert forward.weights_for(model, "auto") is None
        with pytest.raises(ValueError, match=r"fast path cannot run this model: there are hooks"):
            forward.weights_for(model, "fast")
    finally:
        point.remove_hooks()
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1
    assert (
        "one run of the model for each entry: there are hooks on the model (blocks.1" in printed[0]
    )
    assert forward.weights_for(model, "hooks") is None
    assert isinstance(forward.weights_for(model, "auto"), forward.Decoder)
    with pytest.raises(ValueError, match="engine must be 'auto', 'fast' or 'hooks', not 'slow'"):
        forward.weights_for(model, "slow")
