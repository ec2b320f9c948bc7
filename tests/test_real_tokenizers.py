"""Datasets under tokenizers as Llama, Mistral, Gemma, T5, Llama 3, Qwen and others have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ioi_helpers import metrics, patching, runs
from ioi_helpers.dataset import IOIDataset, PromptDataset
from ioi_helpers.dataset.roles import Names
from tests.real_tokenizers import KINDS, tokenizer

STARTS_DIFFER = {"llama", "mistral", "unigram", "gpt2-prefix-space"}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "prefixes": {"prefixes": "bundled"},
    "demo templates": {"templates": "demo"},
}


def generated(kind: str, n: int = 24, **settings: Any) -> IOIDataset:
    """With BOS where there is one."""
    made = tokenizer(kind)
    bos = {"prepend_bos": made.bos_token_id is not None}
    return IOIDataset.generate(made, n, **{**bos, **settings})


def as_a_whole(made: PreTrainedTokenizerFast, data: IOIDataset) -> list[list[int]]:
    """The prompts, tokenised by somebody else."""
    bos = [made.bos_token_id] if data.prepend_bos else []
    return [bos + made(text, add_special_tokens=False)["input_ids"] for text in data.prompts]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_roles_are_those_of_the_whole_text(kind: str, way: str) -> None:
    made, data = tokenizer(kind), generated(kind, **WAYS[way])
    assert data._pieces.starts_differ == (kind in STARTS_DIFFER)
    for variant in (data, data.swap_subject(), data.swap_order(), data.abc(), data[:3]):
        whole = as_a_whole(made, variant)
        for row, ids in enumerate(whole):
            assert variant.tokens[row, : int(variant.lengths[row])].tolist() == ids
            for role, name in variant.names[row]._asdict().items():
                at = int(variant.positions[role][row])
                assert made.decode([ids[at]]).strip() == name
                before, here = made.decode(ids[:at]), made.decode(ids[: at + 1])
                assert here[len(before) :].strip() == name, "it is one token"
    # Tokenizers that put BOS in front by themselves put the same one.
    if kind in ("llama", "mistral", "gemma", "llama-3"):
        assert made(data.prompts)["input_ids"] == as_a_whole(made, data)


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_chosen_that_are_single_tokens(kind: str) -> None:
    made, data = tokenizer(kind), generated(kind, 200)
    assert len(data.name_pool) > (5 if kind == "unigram" else 100)
    assert "Crystal" not in data.name_pool
    with pytest.raises(ValueError, match=r"'Crystal' is \d tokens .*multi_token_names=True"):
        generated(kind, names=[*data.name_pool[:3], "Crystal"])
    assert made.convert_ids_to_tokens(int(data.io_tokens[0]))[0] in "▁Ġ"


def test_places_and_objects_are_too() -> None:
    texts = " ".join(generated("unigram", 200).prompts)
    some = [word for word in ("store", "school", "restaurant") if f" {word}" in texts]
    assert some
    for word in some:
        ids = tokenizer("unigram")(f"the {word}", add_special_tokens=False)["input_ids"]
        rest = tokenizer("unigram")("the", add_special_tokens=False)["input_ids"]
        assert len(ids) == len(rest) + 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_inserted_and_saved_keeps_its_place(kind: str, tmp_path: Path) -> None:
    made, data = tokenizer(kind), generated(kind, 8, prefixes="bundled")
    for changed in (
        data.insert("[A] had a good day."),
        data.insert("Then [B] was there.", "start"),
        data.insert(", a friend of [A],", "after S2"),
    ):
        for row, ids in enumerate(as_a_whole(made, changed)):
            assert changed.tokens[row, : int(changed.lengths[row])].tolist() == ids
    data.swap_order().save(tmp_path / "data")
    read = IOIDataset.load(tmp_path / "data", made)
    assert read.tokens.equal(data.swap_order().tokens)
    assert read.positions["S2"].equal(data.positions["S2"])


def test_a_tokenizer_without_bos_says_so() -> None:
    with pytest.raises(ValueError, match="no BOS token; pass prepend_bos=False"):
        IOIDataset.generate(tokenizer("qwen"), 4)


@pytest.mark.parametrize(
    ("kind", "token"),
    [
        ("llama", "<s>"),
        ("gemma", "</s>"),
        ("llama-3", "<|begin_of_text|>"),
        ("llama-3", "<|start_header_id|>"),
        ("qwen", "<|endoftext|>"),
    ],
)
def test_special_tokens_in_the_text_are_noticed(kind: str, token: str) -> None:
    made = tokenizer(kind)
    text = "When Mary and John went to the store, John gave a drink to"
    with pytest.raises(ValueError, match="holds the special token") as error:
        IOIDataset.from_prompts(made, [token + text], [("Mary", "John")], prepend_bos=False)
    assert repr(token) in str(error.value)
    with pytest.raises(ValueError, match="holds the special token"):
        PromptDataset.from_prompts(made, [token + text], [(" Mary", " John")], prepend_bos=False)


# --- names of several tokens ---------------------------------------------------------------------

LONG = ["Crystal", "Joshua", "Mary", "Tom", "Sara", "Gregory"]


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_several_tokens_are_scored_by_the_first(kind: str) -> None:
    made = tokenizer(kind)
    data = generated(kind, 24, names=LONG, multi_token_names=True)
    assert data.name_pool == tuple(LONG)
    assert len(data.lengths.unique()) > 1
    firsts = {}
    for name in LONG:
        ids = made(f"and {name}", add_special_tokens=False)["input_ids"]
        firsts[name] = ids[len(made("and", add_special_tokens=False)["input_ids"])]
    assert len(set(firsts.values())) == len(LONG)
    for variant in (data, data.swap_subject(), data.abc()):
        for row, ids in enumerate(as_a_whole(made, variant)):
            assert variant.tokens[row, : int(variant.lengths[row])].tolist() == ids
            names: Names = variant.names[row]
            assert int(variant.io_tokens[row]) == firsts[names.IO]
            assert int(variant.s_tokens[row]) == firsts[names.S1]
            for role, name in names._asdict().items():
                assert ids[int(variant.positions[role][row])] == firsts[name]


def test_names_with_a_common_first_token_are_refused() -> None:
    names = ["Mary", "John", "Crystal", "Cryptic"]
    with pytest.raises(ValueError, match="'Crystal' and 'Cryptic' begin with the same token"):
        generated("llama", names=names, multi_token_names=True)
    pool = generated("unigram", multi_token_names=True)
    assert len(pool.name_pool) > len(generated("unigram").name_pool)
    ones = IOIDataset.from_prompts(
        tokenizer("llama"),
        ["When Crystal and Joshua met, Joshua gave a drink to"],
        [("Crystal", "Joshua")],
        multi_token_names=True,
    )
    assert tokenizer("llama").convert_ids_to_tokens(int(ones.io_tokens[0])) == "▁C"


# --- in a model ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TransformerBridge:
    """A small Llama with a tokenizer that pads on the left and adds BOS by itself."""
    folder = tmp_path_factory.mktemp("llama")
    made = tokenizer("llama")
    made.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(made), hidden_size=24, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.4)
    model.save_pretrained(folder)
    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu").eval()
    bridge.enable_compatibility_mode(disable_warnings=True)
    return bridge


def test_a_llama_with_its_own_tokenizer(llama: TransformerBridge) -> None:
    data = IOIDataset.generate(llama.tokenizer, 8, prefixes="bundled")
    swept = patching.patch_sweep(llama, data, data.swap_subject(), "z", progress=False)
    with torch.no_grad():
        logits = llama(data.tokens)
    torch.testing.assert_close(
        swept.clean, metrics.logit_diff(logits, data, per_prompt=True), rtol=1e-4, atol=1e-4
    )
    # Prompts of several lengths, by themselves: nothing is read that belongs to padding.
    alone = torch.stack([runs.logit_diffs(llama, data[row])[0] for row in range(len(data))])
    torch.testing.assert_close(alone, swept.clean, rtol=1e-4, atol=1e-4)


def test_left_padding_is_noticed_wherever_values_come_back(llama: TransformerBridge) -> None:
    llama.tokenizer.padding_side = "left"
    data = IOIDataset.generate(llama.tokenizer, 8, prefixes="bundled")
    logits, cache = llama.run_with_cache(data.prompts)
    right, right_cache = llama.run_with_cache(data.tokens)
    for values in (logits, cache["blocks.1.hook_resid_pre"], cache["blocks.0.attn.hook_z"]):
        with pytest.warns(UserWarning, match=r"pads on the left.*run data\.tokens"):
            data.gather(values, "END")
    with pytest.warns(UserWarning, match="pads on the left"):
        metrics.io_rank(logits, data)
    data.gather(right, "END")
    data.gather(right_cache["blocks.1.hook_resid_pre"], "S2")


def test_unequal_names_are_refused_where_positions_must_correspond(
    llama: TransformerBridge,
) -> None:
    # The prompt is as long with names exchanged, but what comes between them moves.
    data = IOIDataset.from_prompts(
        llama.tokenizer,
        ["When Crystal and John met, John gave a drink to"],
        [("Crystal", "John")],
        multi_token_names=True,
    )
    other = data.swap_order()
    assert data.lengths.equal(other.lengths)
    with pytest.raises(ValueError, match="counterpart in corrupted have roles at other tokens"):
        patching.patch_sweep(llama, data, other, "resid_pre", ("layer", "pos"), progress=False)
    by_role = patching.patch_sweep(
        llama, data, other, "resid_pre", ("layer", "role"), progress=False
    )
    assert by_role.values.isfinite().all()
