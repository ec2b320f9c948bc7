"""Tokenizers as well-known decoders have them, trained in a moment on the project's own words.

What makes them differ is how a space is written, whether the beginning of a text is written like
its middle, what stands for an unknown character, and who puts BOS in front.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from ioi_helpers.stimuli import NAMES, OBJECTS, PLACES, PREFIXES, TEMPLATES

KINDS = ("llama", "mistral", "gemma", "unigram", "llama-3", "qwen", "gpt2-prefix-space")
_BYTES = [f"<0x{i:02X}>" for i in range(256)]
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _texts() -> Iterator[str]:
    """Every word often enough to become one token, but for a few names."""
    rare = {"Crystal", "Joshua", "Christina", "Gregory"}
    people = [name for name in NAMES if name not in rare]
    for i in range(40):
        for template in TEMPLATES:
            yield template.replace("[A]", people[i]).replace("[B]", people[i + 1])
        yield " ".join(f"the {word}," for word in (*PLACES, *OBJECTS)) + "."
        yield " " + " ".join(people)
    yield from PREFIXES
    yield " ".join(rare)
    yield "[PLACE] [OBJECT]"


def _metaspace_bpe() -> Tokenizer:
    """Trained word by word, as sentencepiece does it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split(Regex(r"[.,\[\]]"), "isolated")]
    )
    special = ["<unk>", "<s>", "</s>", *_BYTES]
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(_texts(), trainer)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def _byte_level(pattern: str | None = None, prefix_space: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=pattern is None)
    cut = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cut, level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_texts(), trainer)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _adds_bos(tokenizer: Tokenizer, bos: str) -> None:
    number = tokenizer.token_to_id(bos)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, number)]
    )


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """One of :data:`KINDS`."""
    roles: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if kind in ("llama", "mistral", "gemma"):
        made = _metaspace_bpe()
        _adds_bos(made, "<s>")
        replaced = normalizers.Replace(" ", "▁")
        if kind == "llama":  # a space goes before the first word, as a character of its own
            made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replaced])
            made.pre_tokenizer = None  # type: ignore[assignment]
        elif kind == "mistral":
            made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        else:  # no space goes anywhere
            made.normalizer = replaced
            made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        # They pad on the left, all three.
        return PreTrainedTokenizerFast(tokenizer_object=made, padding_side="left", **roles)
    if kind == "unigram":
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=900, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>",
            show_progress=False,
        )  # fmt: skip
        made.train_from_iterator(_texts(), trainer)
        made.decoder = decoders.Metaspace()
        return PreTrainedTokenizerFast(tokenizer_object=made, **roles)
    if kind == "llama-3":
        made = _byte_level(_LLAMA_3)
        made.add_special_tokens(["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>"])
        _adds_bos(made, "<|begin_of_text|>")
        return PreTrainedTokenizerFast(
            tokenizer_object=made, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
        )
    if kind == "qwen":  # has no BOS
        made = _byte_level(_LLAMA_3)
        made.add_special_tokens([AddedToken("<|endoftext|>", special=True), "<|im_start|>"])
        return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>")
    if kind == "gpt2-prefix-space":  # a space goes before the first word, if there is none
        made = _byte_level(prefix_space=True)
        made.add_special_tokens(["<|endoftext|>"])
        both = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
        return PreTrainedTokenizerFast(tokenizer_object=made, **both)
    raise ValueError(f"{kind!r} is none of {', '.join(KINDS)}.")
