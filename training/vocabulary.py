"""The bundled models' vocabulary, from the lexicon and the stimuli, and the tokenizer's files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ioi_helpers import stimuli
from ioi_helpers.bundled.tokenizer import BOS, PIECE, WordTokenizer, split
from training import lexicon


def vocabulary() -> list[str]:
    """Every token of the bundled models, `<|endoftext|>` first, in a fixed order."""
    words: set[str] = set()
    for noun in lexicon.COUNT_NOUNS:
        words.update((noun, lexicon.plural(noun)))
    for forms in lexicon.VERBS:
        words.update(forms)
    for group in (
        lexicon.MASS_NOUNS,
        lexicon.PLACES_MORE,
        lexicon.OBJECTS_MORE,
        lexicon.ADJECTIVES,
        lexicon.ADVERBS,
        lexicon.FUNCTION_WORDS,
        lexicon.NUMBERS,
        stimuli.PLACES,
        stimuli.OBJECTS,
    ):
        words.update(group)
    tokens = {f" {word}" for word in words}
    for word in (*stimuli.NAMES, *lexicon.CAPITALISED, *lexicon.OPENERS, *lexicon.BARE):
        tokens.update((word, f" {word}"))
    for sign in (*lexicon.PUNCTUATION, *lexicon.DIGITS):
        tokens.update((sign,) if len(sign) > 1 else (sign, f" {sign}"))
    sentences = (*stimuli.PREFIXES, *stimuli.DEMO_PROMPTS, *stimuli.TEMPLATES)
    for sentence in (*sentences, *stimuli.ADVERSARIAL_SENTENCES):
        plain = re.sub(r"\[[A-Z]+\]", stimuli.NAMES[0], sentence)
        tokens.update(split(plain))
        tokens.update(split(" " + plain))
    return [BOS, *sorted(tokens)]


def save_tokenizer(folder: Path, max_length: int) -> WordTokenizer:
    """Write the tokenizer's files into a folder that `from_pretrained` can read; return it."""
    write_tokenizer(folder, vocabulary(), PIECE, max_length)
    return WordTokenizer.from_pretrained(folder)


def write_tokenizer(
    folder: Path, tokens: Sequence[str], piece: str, max_length: int, unknown: str | None = None
) -> None:
    """Write a tokenizer's files: one token for each piece of a text.

    Args:
        tokens: The vocabulary, `<|endoftext|>` included.
        piece: A regular expression for the pieces.
        max_length: The longest text, in tokens, that the model takes.
        unknown: The token of pieces that are not in the vocabulary; None: there are none such.
    """
    ids = {token: i for i, token in enumerate(tokens)}
    core = Tokenizer(models.WordLevel(vocab=ids, unk_token=unknown))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(piece), behavior="isolated")
    core.decoder = decoders.Fuse()
    special = {**dict.fromkeys(("bos_token", "eos_token", "pad_token"), BOS), "unk_token": unknown}
    PreTrainedTokenizerFast(
        tokenizer_object=core, model_max_length=max_length, **special
    ).save_pretrained(folder)
