"""Loading models: which one and why, from where, and one clear sentence when it cannot be had."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors.torch import load_file, save_file
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2LMHeadModel

from ioi_helpers import IOIDataset, load_model
from ioi_helpers.attribution import head_attribution
from ioi_helpers.bundled import bundled_folder
from ioi_helpers.heads import attention_by_role, registry
from ioi_helpers.models import (
    ModelUnavailable,
    default_model,
    is_gpt2_small,
    loading,
    original,
    print_versions,
    sources,
)
from ioi_helpers.models.original import run_original
from tests import random_models

SKELETON = Path(__file__).parents[2] / "shared" / "gpt2-skeleton"


def offline(code: str, **environment: str) -> str:
    """Run code where no hub can be reached (asked of the hub's own library), and give its output.

    In a process of its own: the library reads these variables when it is imported.
    """
    env = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    env.pop("IOI_MODEL", None)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def one_sentence(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


def test_a_bundled_model_is_ready_for_use(capsys: pytest.CaptureFixture[str]) -> None:
    model = load_model("ioi-mini", device="cpu")
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "asked for by name" in printed and "gpt2-small" in printed
    assert model.ioi_name == "ioi-mini"
    assert model.ioi_folder == bundled_folder("ioi-mini")
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.compatibility_mode
    assert torch.is_grad_enabled(), "PyTorch's global switch is left alone"
    # Folded and centred: what writes to the residual stream has mean zero.
    assert model.W_O[0, 0].mean(-1).abs().max() < 1e-6


def test_gradients_flow_to_activations_of_a_frozen_model() -> None:
    model = load_model("ioi-plain", device="cpu", verbose=False)
    kept = []

    def keep(value: torch.Tensor, hook: object) -> torch.Tensor:
        value = value.detach().requires_grad_()
        kept.append(value)
        return value

    tokens = model.to_tokens("Then, John and Mary went")
    logits = model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_resid_pre", keep)])
    logits[0, -1, 5].backward()
    assert kept[0].grad is not None and kept[0].grad.abs().sum() > 0


def test_which_model_is_taken_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IOI_MODEL", "ioi-plain")
    assert default_model() == ("ioi-plain", "IOI_MODEL is set")
    monkeypatch.delenv("IOI_MODEL")
    monkeypatch.setattr(sources, "try_to_load_from_cache", lambda *_: None)
    assert default_model()[0] == "ioi-mini"
    monkeypatch.setattr(loading, "_in_colab", lambda: True)
    assert default_model()[0] == "gpt2-small"
    monkeypatch.setattr(loading, "_in_colab", lambda: False)
    monkeypatch.setattr(sources, "try_to_load_from_cache", lambda *_: "/cache/model.safetensors")
    assert default_model() == ("gpt2-small", "its weights are in the local cache")


def test_an_unreachable_model_is_one_sentence_with_remedies_and_no_substitute() -> None:
    printed = offline(
        "from ioi_helpers.models import *\n"
        "try: load_model('gpt2-small')\n"
        "except ModelUnavailable as error: print(error)",
        HF_HOME=os.devnull + "-nowhere",
    )
    assert printed.count("\n") == 1
    assert "'gpt2-small' could not be loaded" in printed
    for remedy in ("HF_HOME", "network", "folder", "load_model('ioi-mini')"):
        assert remedy in printed


def test_gpt2_is_found_in_a_local_cache_without_a_network(tmp_path: Path) -> None:
    """A cache as the hub's library lays it out, holding a tiny GPT-2 under GPT-2's name."""
    from transformers import GPT2Config, GPT2LMHeadModel

    commit = "0" * 40
    home = tmp_path / "hub" / "models--gpt2"
    snapshot = home / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    plain = bundled_folder("ioi-plain")
    config = GPT2Config(vocab_size=4000, n_positions=64, n_embd=16, n_layer=1, n_head=2,
                        bos_token_id=0, eos_token_id=0)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(snapshot)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(plain / file, snapshot)
    printed = offline(
        "from ioi_helpers.models import *\n"
        "model = load_model()\n"
        "print(model.cfg.n_layers, model.ioi_name, is_gpt2_small(model))\n"
        "print(load_model('gpt2', revision='main', verbose=False).cfg.d_model)",
        HF_HOME=str(tmp_path),
    )
    assert "its weights are in the local cache" in printed
    assert "1 gpt2-small True\n16" in printed


def test_a_folder_is_loaded_and_goes_by_its_name(tmp_path: Path) -> None:
    folder = shutil.copytree(bundled_folder("ioi-plain"), tmp_path / "mine")
    model = load_model(str(folder), device="cpu", verbose=False)
    assert model.ioi_name == "mine" and model.ioi_folder == folder
    assert not is_gpt2_small(model)
    assert len(IOIDataset.demo(model.tokenizer)) == 8


def test_dtype_and_device_map_reach_the_loading_code() -> None:
    half = load_model("ioi-plain", dtype=torch.bfloat16, device="cpu", verbose=False)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half("Then, John").dtype == torch.bfloat16
    mapped = load_model("ioi-plain", device_map={"": "cpu"}, verbose=False)
    plain = load_model("ioi-plain", device="cpu", verbose=False)
    tokens = plain.to_tokens("Then, John and Mary")
    torch.testing.assert_close(mapped(tokens), plain(tokens))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_loads_on_cuda() -> None:
    model = load_model("ioi-mini", device="cuda", verbose=False)
    assert model("Then, John").device.type == "cuda"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
@pytest.mark.parametrize("device", ["cuda", "cuda:3", "mps", "gpu", "meta", torch.device("cuda")])
def test_a_device_that_is_not_there_is_not_blamed_on_the_model(device: str | torch.device) -> None:
    with pytest.raises(ValueError, match="cannot be used here") as error:
        load_model("ioi-mini", device=device)
    assert repr(str(device)) in one_sentence(error)


def test_a_dtype_may_be_given_by_name_and_an_unknown_one_is_refused() -> None:
    model = load_model("ioi-plain", dtype="float16", device="cpu", verbose=False)
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    for dtype in ("half precision", torch.int8):
        with pytest.raises(
            ValueError, match="float32, float64, bfloat16, float16, not as"
        ) as error:
            load_model("ioi-plain", dtype=dtype)
        one_sentence(error)


def test_a_fault_of_the_arguments_is_not_blamed_on_the_folder() -> None:
    with pytest.raises(TypeError, match="colour"):
        load_model("ioi-plain", colour="blue")


# --- the bridge and the original ---------------------------------------------------------------


def unscaled(folder: Path) -> Path:
    """A GPT-2 whose attention scores are not scaled, which TransformerBridge (4.3) overlooks."""
    random_models.save(folder, "gpt2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "scale_attn_weights": False}))
    return folder


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_a_bridge_that_computes_something_else_is_refused(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(ModelUnavailable, match="does not compute what GPT2LMHeadModel") as error:
        load_model(str(unscaled(tmp_path)), device="cpu", dtype=dtype)
    said = one_sentence(error)
    assert "TransformerBridge (TransformerLens 4" in said and "transformers 5" in said
    assert float(said.split("differ by up to ")[1].split(",")[0]) > 0.5


def test_random_weights_are_compared_as_well(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="does not compute what"):
        load_model(str(unscaled(tmp_path)), device="cpu", load_weights=False)


@pytest.mark.parametrize("architecture", random_models.ARCHITECTURES)
def test_bridges_that_are_right_are_let_in_at_every_precision(
    architecture: str, tmp_path: Path
) -> None:
    folder = str(random_models.save(tmp_path, architecture))
    for dtype in ("float64", "float32", "bfloat16", "float16"):
        load_model(folder, device="cpu", dtype=dtype, verbose=False)


def test_the_original_is_the_checkpoints_own_code_and_the_bridge_is_put_back() -> None:
    folder = str(bundled_folder("ioi-mini"))
    tokens = torch.arange(24)[None] + 5
    hf = GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager").eval()
    bridge = TransformerBridge.boot_transformers(folder, device="cpu").eval()
    modules = list(bridge.original_model.modules())
    fired = []
    with torch.no_grad(), bridge.hooks(fwd_hooks=[("hook_embed", lambda x, hook: fired.append(x))]):
        assert torch.equal(run_original(bridge, tokens), hf(tokens).logits)
        assert not fired
        bridge(tokens)
        assert fired
    with pytest.raises(IndexError):
        run_original(bridge, tokens + bridge.cfg.d_vocab)
    assert all(a is b for a, b in zip(bridge.original_model.modules(), modules, strict=True))
    bridge.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(ValueError, match="compare before it") as error:
        run_original(bridge, tokens)
    one_sentence(error)


@pytest.fixture(scope="module")
def unfolded() -> TransformerBridge:
    folder = str(bundled_folder("ioi-plain"))
    return TransformerBridge.boot_transformers(folder, device="cpu").eval()


@pytest.mark.parametrize(("factor", "refused"), [(1 + 1e-5, False), (0.99, True), (1.01, True)])
def test_a_difference_of_one_per_cent_is_not_rounding(
    factor: float, refused: bool, unfolded: TransformerBridge
) -> None:
    expected = factor * run_original(unfolded, original.one_prompt(unfolded)) + 3.0
    for model in (unfolded, load_model("ioi-plain", device="cpu", verbose=False)):
        with pytest.raises(ModelUnavailable) if refused else nullcontext():
            original.require_same(model, expected, "ioi-plain")


def test_logits_that_are_not_finite_are_one_sentence(unfolded: TransformerBridge) -> None:
    expected = run_original(unfolded, original.one_prompt(unfolded))
    expected[0, 3, 5] = torch.inf
    with pytest.raises(ModelUnavailable, match="not finite in float32") as error:
        original.require_same(unfolded, expected, "ioi-plain")
    one_sentence(error)


def test_an_original_that_cannot_run_on_tokens_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("decoder_input_ids are wanted")

    monkeypatch.setattr(loading, "run_original", fail)
    with pytest.warns(UserWarning, match="ioi-plain was not compared with its original"):
        load_model("ioi-plain", device="cpu", verbose=False)


# --- the hub -----------------------------------------------------------------------------------


def no_network(*_: object, **__: object) -> None:
    raise OSError("Name or service not known")


def test_a_model_that_boots_and_cannot_run_is_refused(tmp_path: Path) -> None:
    folder = random_models.save(tmp_path / "opt-350m", "opt-350m")
    with pytest.raises(ModelUnavailable, match="cannot run it .*lacks a module") as refusal:
        load_model(str(folder), device="cpu", verbose=False)
    assert len(str(refusal.value).splitlines()) == 1


def test_without_a_network_one_quick_question_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "get_hf_file_metadata", no_network)
    monkeypatch.setattr(sources, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(loading, "_boot", lambda *_, **__: pytest.fail("must not be tried"))
    with pytest.raises(ModelUnavailable, match="nor could the .* hub be reached") as error:
        load_model("gpt2-xl")
    one_sentence(error)


def test_without_a_network_cached_files_are_taken_as_a_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sources, "get_hf_file_metadata", no_network)
    file = bundled_folder("ioi-plain") / "config.json"
    monkeypatch.setattr(sources, "try_to_load_from_cache", lambda *_, **__: str(file))
    model = load_model("gpt2-small", device="cpu", revision="main", verbose=False)
    assert is_gpt2_small(model) and model.ioi_folder is None
    assert model.cfg.n_layers == 4


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (RepositoryNotFoundError, "no model 'somebody/nothing'"),
        (RevisionNotFoundError, "no revision 'v9' of 'somebody/nothing'"),
    ],
)
def test_what_the_hub_does_not_know_is_one_sentence(
    kind: type[HfHubHTTPError], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise kind("404", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(sources, "get_hf_file_metadata", refuse)
    with pytest.raises(ModelUnavailable, match=said) as error:
        load_model("somebody/nothing", revision="v9")
    one_sentence(error)


def test_a_name_that_cannot_be_one_is_refused() -> None:
    with pytest.raises(ModelUnavailable, match="no model 'gpt2 small!'") as error:
        load_model("gpt2 small!")
    one_sentence(error)


def test_contradictory_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="either device or device_map") as error:
        load_model("ioi-mini", device="cpu", device_map="auto")
    one_sentence(error)
    with pytest.raises(ValueError, match="has no revisions") as error:
        load_model("ioi-mini", revision="main")
    one_sentence(error)
    with pytest.raises(ValueError, match="not a bundled model") as error:
        bundled_folder("gpt2-small")
    one_sentence(error)


def test_a_folder_without_a_model_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"no config\.json") as error:
        load_model(str(tmp_path))
    one_sentence(error)
    with pytest.raises(ModelUnavailable, match=r"no config\.json") as error:
        load_model("./nowhere")
    one_sentence(error)


@pytest.mark.parametrize("damage", ["cut short", "not weights at all"])
def test_damaged_weights_are_one_sentence(tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(bundled_folder("ioi-plain"), tmp_path / "damaged")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2] if damage == "cut short" else b"hello" * 100)
    with pytest.raises(ModelUnavailable, match="damaged") as error:
        load_model(str(folder), device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["shape", "NaN", "tokenizer", "no weights", "config"])
def test_other_damage_is_one_sentence_too(tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(bundled_folder("ioi-plain"), tmp_path / "damaged")
    weights = folder / "model.safetensors"
    if damage == "shape":
        tensors = load_file(weights)
        tensors["transformer.wpe.weight"] = tensors["transformer.wpe.weight"][:10].clone()
        save_file(tensors, weights, {"format": "pt"})
    elif damage == "NaN":
        tensors = load_file(weights)
        tensors["transformer.h.0.attn.c_attn.bias"][0] = torch.nan
        save_file(tensors, weights, {"format": "pt"})
    elif damage == "tokenizer":
        (folder / "tokenizer.json").write_text("{")
    elif damage == "no weights":
        weights.unlink()
    else:
        (folder / "config.json").write_text("{")
    with pytest.raises(ModelUnavailable, match="damaged") as error:
        load_model(str(folder), device="cpu")
    one_sentence(error)


def test_a_bundled_model_with_a_tensor_missing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(bundled_folder("ioi-plain"), tmp_path / "ioi-plain")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("transformer.h.1.attn.c_attn.bias")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr(loading, "bundled_folder", lambda name: folder)
    monkeypatch.setattr(sources, "bundled_folder", lambda name: folder)
    with pytest.raises(ModelUnavailable, match="damaged") as error:
        load_model("ioi-plain", device="cpu")
    one_sentence(error)


@pytest.mark.parametrize("name", ["gpt2", "ioi-mini"])
def test_a_folder_does_not_pass_for_a_model_that_it_is_called_like(
    tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(bundled_folder("ioi-plain"), tmp_path / name)
    (folder / "registry.json").unlink()
    model = load_model(str(folder), device="cpu", verbose=False)
    assert not is_gpt2_small(model)
    assert not registry(model).recorded


def test_a_registry_in_a_models_folder_is_found(tmp_path: Path) -> None:
    folder = shutil.copytree(bundled_folder("ioi-mini"), tmp_path / "mine")
    model = load_model(str(folder), device="cpu", verbose=False)
    bundled = load_model("ioi-mini", device="cpu", verbose=False)
    assert registry(model).model == "mine"
    assert registry(model).entries == registry(bundled).entries != ()
    (folder / "registry.json").write_text("{}")
    with pytest.raises(ValueError, match="not a registry of heads") as error:
        registry(model)
    one_sentence(error)
    model = load_model(str(folder), load_weights=False, device="cpu", verbose=False)
    assert not registry(model).recorded


def test_prompts_longer_than_the_context_are_refused() -> None:
    model = load_model("ioi-plain", device="cpu", verbose=False)
    data = IOIDataset.generate(model.tokenizer, 2, prefixes=["The dog slept. " * 80])
    for ask in (head_attribution, attention_by_role):
        with pytest.raises(ValueError, match="context holds 256") as error:
            ask(model, data)
        one_sentence(error)


@pytest.mark.skipif(not SKELETON.is_dir(), reason="GPT-2's tokenizer and shape are not here")
def test_gpt2_smalls_true_shape_loads_with_random_weights() -> None:
    model = load_model(str(SKELETON), load_weights=False, device="cpu", verbose=False)
    assert (model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_model) == (12, 12, 768)
    assert not model.training and not is_gpt2_small(model)
    assert "random weights" in model.ioi_name and model.ioi_folder is None
    data = IOIDataset.generate(model.tokenizer, 4, prefixes="bundled")
    assert model(data.tokens).shape == (*data.tokens.shape, model.cfg.d_vocab)


def test_versions_are_printed_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_versions()
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "transformer_lens" in printed and "Python 3." in printed
