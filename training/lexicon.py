"""The ordinary words of the bundled models: an English lexicon sorted by part of speech.

The words are files in `words/`. The training text is made from them and from
:mod:`ioi_helpers.stimuli`; together they are the vocabulary. Only words are listed that a small
grammar can inflect by rule, so that every form in the vocabulary also occurs in training.
"""

from __future__ import annotations

from pathlib import Path

from ioi_helpers.stimuli import read_lines, read_words

_WORDS = Path(__file__).parent / "words"

COUNT_NOUNS = read_words(_WORDS / "count_nouns.txt")
MASS_NOUNS = read_words(_WORDS / "mass_nouns.txt")
PLACES_MORE = read_words(_WORDS / "places_more.txt")
OBJECTS_MORE = read_words(_WORDS / "objects_more.txt")
ADJECTIVES = read_words(_WORDS / "adjectives.txt")
ADVERBS = read_words(_WORDS / "adverbs.txt")
FUNCTION_WORDS = read_words(_WORDS / "function_words.txt")
CAPITALISED = read_words(_WORDS / "capitalised.txt")
NUMBERS = read_words(_WORDS / "numbers.txt")
OPENERS = read_words(_WORDS / "openers.txt")
BARE = read_words(_WORDS / "bare.txt")
PUNCTUATION = (".", ",", "?", "!", ":", ";", "'", '"', "-", "(", ")", "'s", "'t")
DIGITS = tuple("0123456789")

_IRREGULAR_PLURALS = dict(line.split() for line in read_lines(_WORDS / "irregular_plurals.txt"))


def _before_ending(word: str) -> str:
    """A word as it stands before an ending: "carry" becomes "carrie", "play" stays."""
    return word[:-1] + "ie" if word.endswith("y") and word[-2] not in "aeiou" else word


def plural(noun: str) -> str:
    """The regular plural of a noun, with the few irregular ones that the lexicon holds."""
    if noun in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[noun]
    return noun + "es" if noun.endswith(("s", "x", "ch", "sh")) else _before_ending(noun) + "s"


def past(verb: str) -> str:
    """The past tense of a regular verb."""
    return _before_ending(verb).removesuffix("e") + "ed"


def participle(verb: str) -> str:
    """The present participle of a regular verb."""
    return verb.removesuffix("e") + "ing"


def _verbs() -> tuple[tuple[str, str, str], ...]:
    regular = read_words(_WORDS / "regular_verbs.txt")
    found = [(verb, past(verb), participle(verb)) for verb in regular]
    for line in read_lines(_WORDS / "irregular_verbs.txt"):
        base, its_past, its_participle = line.split()
        found.append((base, its_past, its_participle))
    return tuple(found)


VERBS = _verbs()
"""Base, past tense and present participle of every verb."""
