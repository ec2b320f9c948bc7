"""What is measured on other decoders than GPT-2: right, or refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import attribution, heads, load_model, probing, runs
from ioi_helpers.dataset import IOIDataset
from tests.random_models import ARCHITECTURES, MORE, SCALED, boot, prompts, save

Models = Callable[[str], TransformerBridge]
NAMES = (*ARCHITECTURES, *MORE, *SCALED)
REFUSED = {"gemma2": "caps its logits"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return cache(lambda name: boot(save(tmp_path_factory.mktemp("model"), name)))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in REFUSED])
def test_attributions_add_up(name: str, models: Models) -> None:
    model = models(name)
    data = prompts(model)
    expected = runs.logit_diffs(model, data)
    assert expected.abs().mean() > 0.05

    def close(found: Tensor) -> None:
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)

    complete = attribution.decompose(model, data)
    close(complete.total)
    close(attribution.layer_attribution(model, data).total)
    for layer_norm in ("final", "own"):
        lens = attribution.logit_lens(model, data, layer_norm=layer_norm)  # type: ignore[arg-type]
        close(lens.of("final_post"))
    by_head = attribution.head_attribution(model, data)
    for label in by_head.labels:
        torch.testing.assert_close(complete.of(label), by_head.of(label))


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("name", SCALED)
def test_logits_that_are_scaled_at_the_end(name: str, folded: bool, tmp_path: Path) -> None:
    """Folding writes Cohere's scale into the unembedding; otherwise it stands in no weight."""
    model = boot(save(tmp_path / name, name), folded=folded)
    data = prompts(model)
    expected = runs.logit_diffs(model, data)
    after = {"cohere": 1.0 if folded else 0.5, "granite": 0.5}[name]
    assert attribution.readout(model).after == after
    close = partial(torch.testing.assert_close, expected=expected, atol=2e-5, rtol=1e-4)
    close(attribution.decompose(model, data, split_mlp_bias=True).total)
    close(attribution.layer_attribution(model, data).total)
    for layer_norm in ("final", "own"):
        lens = attribution.logit_lens(model, data, layer_norm=layer_norm)  # type: ignore[arg-type]
        close(lens.of("final_post"))


def head_written(model: TransformerBridge, data: IOIDataset, layer: int, head: int) -> Tensor:
    """By plain hooks on the wrapped modules: what the stream behind attention loses at END without
    a head's z."""
    block = model.original_model.model.layers[layer]
    width = block.self_attn.o_proj.in_features // model.cfg.n_heads
    seen: list[Tensor] = []

    def silence(module: Any, args: Any) -> Any:
        z = args[0].clone()
        z[..., head * width : (head + 1) * width] = 0
        return (z, *args[1:])

    def run() -> Tensor:
        with torch.no_grad():
            model.original_model(data.tokens)
        return seen.pop()

    keep = block.post_attention_layernorm.register_forward_pre_hook(
        lambda module, args: seen.append(args[0])
    )
    clean = run()
    gone = block.self_attn.o_proj.register_forward_pre_hook(silence)
    without = run()
    keep.remove()
    gone.remove()
    rows = torch.arange(len(data))
    return (clean - without)[rows, data.lengths - 1]


@pytest.mark.parametrize("name", ["llama", "granite"])
def test_what_a_head_writes_is_what_the_stream_loses_without_it(name: str, models: Models) -> None:
    """Granite multiplies what its layers compute before it adds it."""
    model = models(name)
    data = prompts(model)
    found = probing.head_outputs(model, data, "END", ["L0H1", "L1H2"])
    for (layer, head), written in zip(((0, 1), (1, 2)), found.values(), strict=True):
        expected = head_written(model, data, layer, head)
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(written, expected, atol=1e-5, rtol=1e-4)
    read = attribution.logit_diff_directions(model, data)
    scale = attribution.final_layer_norm_scale(model, data)
    by_head = attribution.head_attribution(model, data)
    expected = (found["L1H2"] * read).sum(dim=-1) / scale
    torch.testing.assert_close(by_head.of("L1H2"), expected, atol=1e-5, rtol=1e-4)


def test_heads_that_are_normalised_together_have_shares(models: Models) -> None:
    """In Gemma 2 what heads write adds up to what attention adds to the stream."""
    model = models("gemma2")
    data = prompts(model)
    heads_of_layer = [f"L1H{head}" for head in range(model.cfg.n_heads)]
    shares = probing.head_outputs(model, data, "END", heads_of_layer)
    added = runs.activations_at(model, data, "END", ["L1.pre", "L1.mid"])
    expected = added["L1.mid"] - added["L1.pre"]
    torch.testing.assert_close(sum(shares.values()), expected, atol=1e-5, rtol=1e-4)


def test_what_attribution_cannot_see_is_refused(tmp_path: Path) -> None:
    """A hook of PyTorch on the unembedding, one in the middle of the model, a module replaced."""
    model = boot(save(tmp_path / "m", "gpt2"))
    data = prompts(model)
    asked: tuple[Any, ...] = (
        attribution.decompose,
        attribution.logit_lens,
        attribution.head_attribution,
    )
    hook = model.unembed.register_forward_pre_hook(lambda module, args: (args[0].tanh(),))
    for ask in asked:
        with pytest.raises(ValueError, match="take it off"):
            ask(model, data)
    hook.remove()
    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", lambda x, hook: x * 0.5)]):
        with pytest.raises(ValueError, match="The sum of all parts gives"):
            attribution.decompose(model, data)
        attribution.head_attribution(model, data)  # of that run, and it says no more
    for ask in asked:
        ask(model, data)


@pytest.mark.parametrize("name", REFUSED)
def test_logits_that_are_no_sum_of_terms_are_refused(name: str, models: Models) -> None:
    model = models(name)
    data = prompts(model)
    for ask in (
        attribution.decompose,
        attribution.layer_attribution,
        attribution.head_attribution,
        attribution.logit_lens,
        attribution.final_layer_norm_scale,
        attribution.logit_diff_directions,
    ):
        with pytest.raises(ValueError, match=REFUSED[name]):
            ask(model, data)


def repeated_logit(model: TransformerBridge, half: Tensor, layer: int, head: int) -> Tensor:
    """By running the model: what its logits lose without what one head writes, norm frozen."""
    tokens = torch.cat([half, half], dim=1)
    length = half.shape[1]
    _, cache = model.run_with_cache(tokens)
    written = cache["z", layer][:, :, head] @ model.blocks[layer].attn.W_O[head]
    config = model.original_model.config  # Granite's says by what it multiplies and divides
    written = written * getattr(config, "residual_multiplier", 1.0)
    if hasattr(model.blocks[layer], "ln1_post"):
        post = model.blocks[layer].ln1_post
        written = written / cache[f"blocks.{layer}.ln1_post.hook_scale"] * (1 + post.weight)
    last = cache["resid_post", -1]
    if model.cfg.normalization_type == "LN":
        centred = last - last.mean(dim=-1, keepdim=True)
        size = (centred.square().mean(dim=-1, keepdim=True) + model.cfg.eps).sqrt()
        written = written - written.mean(dim=-1, keepdim=True)
    else:
        size = (last.square().mean(dim=-1, keepdim=True) + model.cfg.eps).sqrt()
    weight = model.ln_final.weight + (1 if model.cfg.rmsnorm_uses_offset else 0)
    logits = (written / size * weight) @ model.W_U / getattr(config, "logits_scaling", 1.0)
    at = torch.arange(length + 1, 2 * length - 1)
    own = logits[:, at].gather(2, tokens[:, at + 1, None])[..., 0]
    return (own - logits[:, at].mean(dim=-1)).mean()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in REFUSED])
def test_repeated_logit_is_what_a_head_adds(name: str, models: Models) -> None:
    """RMSNorm does not subtract the mean, and its weight may not be folded."""
    model = models(name)
    half = heads.random_tokens(model, seeds=[1, 2], length=9)
    found = heads.repeat_scores(model, half, prepend_bos=False)
    assert not found.reason
    for layer, head in ((0, 1), (1, 2)):
        expected = repeated_logit(model, half, layer, head)
        torch.testing.assert_close(
            found.repeated_logit[layer, head], expected, atol=1e-5, rtol=1e-3
        )


def test_where_it_cannot_be_known_it_is_nan_with_a_reason(models: Models) -> None:
    found = heads.repeat_scores(models("gemma2"), seeds=(0, 1), length=9)
    assert found.repeated_logit.isnan().all() and "caps its logits" in found.reason
    assert found.induction.isfinite().all() and found.loss > 0
    with pytest.raises(ValueError, match="caps its logits"):
        found.anti_induction()


@pytest.mark.parametrize("name", NAMES)
def test_scores_run_on_every_architecture(name: str, models: Models) -> None:
    model = models(name)
    data = prompts(model)
    shape = (model.cfg.n_layers, model.cfg.n_heads)
    assert heads.attention_by_role(model, data).shape == (*shape, 3)
    copying = heads.copying_scores(model, data)
    assert copying.shape == shape and copying.min() >= 0 and copying.max() <= 1
    for mode in ("Q", "K", "V"):
        scores = heads.composition_scores(model, mode)
        earlier = scores[0, :, 1]
        assert (earlier > 0).all() and (earlier < 1).all()


@pytest.mark.parametrize("name", ["llama", "starcoder2"])
def test_heads_that_share_keys_and_values_have_those_of_their_group(
    name: str, models: Models
) -> None:
    model = models(name)
    attn = model.blocks[1].attn
    writer = model.blocks[0].attn
    # Heads 2 and 3 share the second keys and values.
    circuit = attn.W_Q[3] @ attn.W_K[1].T
    output = writer.W_V[1] @ writer.W_O[2]
    expected = (output @ circuit).norm() / output.norm() / circuit.norm()
    found = heads.composition_scores(model, "Q")[0, 2, 1, 3]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    data = prompts(model)[:4]
    hits = []
    for role in ("IO", "S1", "S2"):
        name_state = runs.activations_at(model, data, role, "blocks.1.hook_resid_pre")
        read = attn_input = model.blocks[1].ln1(name_state[None])[0]
        value = read @ attn.W_V[1] + (0 if attn.b_V is None else attn.b_V[1])
        logits = model.unembed(model.ln_final((value @ attn.W_O[3])[None]))[0]
        own = data.gather(data.tokens, role)
        top = logits.topk(5).indices
        hits.append((top == own[:, None]).any(dim=-1))
        assert attn_input.shape == name_state.shape
    assert heads.copying_scores(model, data)[1, 3] == torch.cat(hits).float().mean()


def plain_positional_patterns(model: TransformerBridge, n: int, scale: Tensor) -> Tensor:
    stream = model.W_pos[:n] + model.W_E.mean(dim=0)
    found = []
    for layer, block in enumerate(model.blocks):
        seen = block.ln1(stream[None])[0]
        queries = torch.einsum("pm,hme->hpe", seen, block.attn.W_Q) + block.attn.b_Q[:, None]
        keys = torch.einsum("pm,hme->hpe", seen, block.attn.W_K) + block.attn.b_K[:, None]
        scores = queries @ keys.mT * scale[layer]
        ahead = torch.ones(n, n, dtype=torch.bool).triu(1)
        found.append(scores.masked_fill(ahead, -torch.inf).softmax(dim=-1))
    return torch.stack(found)


@pytest.mark.parametrize("name", ["ioi-mini", "ioi-plain"])
def test_positional_patterns_by_hand(name: str) -> None:
    model = load_model(name, device="cpu", verbose=False)
    scale = torch.full((model.cfg.n_layers,), model.cfg.d_head**-0.5)
    expected = plain_positional_patterns(model, 40, scale)
    found = heads.positional_patterns(model, 40)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_positional_patterns_respect_the_models_window(models: Models) -> None:
    """GPT-Neo's second layer looks at the last eight positions only, and scales nothing."""
    model = models("gpt-neo")
    found = heads.positional_patterns(model, 20)
    expected = plain_positional_patterns(model, 20, torch.ones(2))
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-4)
    back = torch.arange(20)[:, None] - torch.arange(20)
    assert not found[1][:, back >= 8].any()
    assert (found[1][:, (back >= 0) & (back < 8)] > 0).all()


@pytest.mark.parametrize("name", ["llama", "pythia", "mpt"])
def test_positional_patterns_need_position_embeddings(name: str, models: Models) -> None:
    with pytest.raises(ValueError, match="no learned position embeddings"):
        heads.positional_patterns(models(name))


def test_how_scores_are_scaled_is_measured(models: Models) -> None:
    mini = load_model("ioi-mini", device="cpu", verbose=False)
    expected = torch.full((6,), mini.cfg.d_head**-0.5)
    torch.testing.assert_close(heads.score_scales(mini), expected, atol=0, rtol=1e-4)
    found = heads.score_scales(models("gpt-neo"))
    torch.testing.assert_close(found, torch.ones(2), atol=0, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "said"),
    [("llama", "share keys"), ("pythia", "not the softmax of scaled"), ("mpt", "not the softmax")],
)
def test_scores_that_are_more_than_scaled_products_are_refused(
    name: str, said: str, models: Models
) -> None:
    with pytest.raises(ValueError, match=said):
        heads.score_scales(models(name))


# --- dtypes, and tokenizers without BOS ----------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_score_runs_in_every_dtype(dtype: torch.dtype) -> None:
    """And is that of float32, to the dtype's rounding."""
    exact = load_model("ioi-mini", device="cpu", verbose=False)
    model = load_model("ioi-mini", device="cpu", dtype=dtype, verbose=False)
    data = prompts(exact)
    close = 1e-5 if dtype == torch.float64 else 0.05

    def same(ask: Callable[[TransformerBridge], Tensor], tolerance: float = close) -> None:
        found = ask(model)
        assert found.dtype in (torch.float32, torch.float64)
        torch.testing.assert_close(found.float(), ask(exact), atol=tolerance, rtol=tolerance)

    same(lambda m: heads.attention_by_role(m, data))
    same(lambda m: heads.composition_scores(m, "K"))
    same(lambda m: heads.positional_patterns(m, 20))
    same(lambda m: heads.repeat_scores(m, seeds=(0, 1)).induction)
    same(lambda m: heads.copying_scores(m, data), 0.1)
    same(lambda m: heads.score_scales(m).float())
    same(lambda m: attribution.head_attribution(m, data).values, max(close, 1e-4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_head_table_is_made_in_every_dtype(dtype: torch.dtype) -> None:
    model = load_model("ioi-mini", device="cpu", dtype=dtype, verbose=False)
    data = IOIDataset.generate(model.tokenizer, 16, seed=0)
    table = heads.head_table(model, data, sweep_prompts=16, seeds=(0, 1), progress=False)
    strong = {"L0H1", "L1H0", "L2H4", "L3H3", "L4H2", "L4H4"}
    assert strong <= set(table.index[table["head class"] == table["registry"]])
    assert all(table.loc[name, "head class"] != "-" for name in strong)


def test_a_tokenizer_without_bos(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = boot(save(tmp_path_factory.mktemp("model"), "neox-serial"))
    model.tokenizer.bos_token = None
    plain = heads.repeat_scores(model, seeds=(0, 1), length=9)
    without = heads.repeat_scores(model, seeds=(0, 1), length=9, prepend_bos=False)
    assert torch.equal(plain.induction, without.induction)
    with pytest.raises(ValueError, match="tokenizer has no BOS; leave out"):
        heads.repeat_scores(model, prepend_bos=True)


def test_a_head_table_leaves_out_what_cannot_be_known(models: Models) -> None:
    model = models("gemma2")
    table = heads.head_table(model, prompts(model), seeds=(0,), progress=False)
    assert "caps its logits" in table.attrs["no direct effects"]
    for column in ("direct", "repeated logit", "backup rise"):
        assert table[column].isna().all()
    for column in ("END to IO", "induction", "copying", "END, other names"):
        assert table[column].notna().all()
