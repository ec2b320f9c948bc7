"""The bundled models' vocabulary, from the lexicon and the stimuli."""

from __future__ import annotations

import re
from pathlib import Path

from ioi_helpers import stimuli
from ioi_helpers.bundled.tokenizer import BOS, PIECE, WordTokenizer, split, write_tokenizer
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
