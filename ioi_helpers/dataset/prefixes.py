"""Prefix sentences: what may stand before a prompt, so that roles fall on varying positions.

The bundled ones were written for this project, without any name, and need no network. The LRQP
post took its sentences from OpenWebText; ``openwebtext_sentences`` does so too, on request only,
since what a notebook shows must not depend on whether a download was possible.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from ioi_helpers.dataset.pieces import encode
from ioi_helpers.dataset.sampling import in_fixed_order
from ioi_helpers.stimuli import NAMES, PREFIXES

OPENWEBTEXT = ("stas/openwebtext-10k", "refs/convert/parquet")
"""The dataset that the LRQP post took its sentences from, and a revision. Its main branch holds a
loading script, which ``datasets`` no longer runs; the hub's automatic Parquet conversion holds the
same text."""


def resolve_prefixes(
    prefixes: str | Iterable[str] | None,
    tokenizer: PreTrainedTokenizerBase,
    wanted: int,
    seed: int,
    names: Sequence[str],
) -> list[str]:
    """The sentences that an argument ``prefixes`` asks for; [] for None.

    Args:
        prefixes: None, "bundled", "openwebtext", or sentences of your own.
        wanted: How many sentences are worth downloading (at most 1000 are).
        names: The prompts' own names, which a downloaded sentence must not hold.

    Raises:
        ValueError: An unknown set, no sentence at all, or an empty one.
        RuntimeError: OpenWebText cannot be had.
    """
    if prefixes is None:
        return []
    if isinstance(prefixes, str):
        if prefixes == "bundled":
            return list(PREFIXES)
        if prefixes == "openwebtext":
            return openwebtext_sentences(
                tokenizer, min(wanted, 1000), seed=seed, names=(*NAMES, *names)
            )
        raise ValueError(
            f"There is no set of prefixes called {prefixes!r}; use None, 'bundled', 'openwebtext' "
            "or a list of sentences."
        )
    sentences = [" ".join(str(sentence).split()) for sentence in in_fixed_order(prefixes)]
    if not sentences or not all(sentences):
        raise ValueError("prefixes must hold at least one sentence and no empty ones.")
    return sentences


def openwebtext_sentences(
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    *,
    seed: int = 0,
    max_tokens: int = 50,
    names: Sequence[str] = NAMES,
) -> list[str]:
    """Random OpenWebText sentences without names, to put in front of IOI prompts.

    The LRQP post prefixed each prompt with a sentence of openwebtext-10k, "chosen to contain no
    names, and to not be more than 50 tokens, but otherwise random". What counts as a name is
    decided here without a tagger, and strictly: no word of ``names``; no capitalised word except
    the first (and "I"); and a first word that also occurs in lower case in the same document. At
    most one sentence is taken from a document. Sentences that the tokenizer cannot encode are
    passed over.

    Needs the network (or a filled cache) and reads the dataset as a stream, without storing it.

    Args:
        tokenizer: Counts the tokens.
        count: How many different sentences to return.
        seed: Which of them.
        max_tokens: The longest sentence allowed, in tokens.
        names: Words that a sentence must not hold.

    Raises:
        RuntimeError: The sentences could not be had. Nothing is put in their place.
    """
    path, revision = OPENWEBTEXT
    remedy = (
        "use prefixes='bundled' (nothing to download), give sentences of your own, or connect to "
        "the Hugging Face hub"
    )
    found: dict[str, None] = {}
    try:
        from datasets import load_dataset

        documents = load_dataset(path, revision=revision, split="train", streaming=True)
        for document in documents.shuffle(seed=seed, buffer_size=1000):
            sentence = _nameless_sentence(document["text"], tokenizer, max_tokens, names, found)
            if sentence is not None:
                found[sentence] = None
            if len(found) == count:
                return list(found)
    # Anything may go wrong between here and the hub (no package, no network, a renamed dataset),
    # each with another exception type, and the reader's remedy is the same.
    except Exception as error:
        raise RuntimeError(
            f"OpenWebText sentences could not be read from {path!r}; {remedy}."
        ) from error
    raise RuntimeError(
        f"OpenWebText gave only {len(found)} of {count} sentences that this tokenizer can encode "
        f"and that hold no name; {remedy}."
    )


def _nameless_sentence(
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    names: Sequence[str],
    found: dict[str, None],
) -> str | None:
    """The first new sentence of a document that holds no name and is short enough, if any."""
    forbidden = {name.lower() for name in names}
    lower_case = set(re.findall(r"\b[a-z]+\b", text))
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        words = re.findall(r"[^\W\d_]+", sentence)
        if len(words) < 4 or not re.fullmatch(r"[A-Z][^\n\[\]<>|]*\.", sentence):
            continue
        if words[0] != "I" and words[0].lower() not in lower_case:
            continue
        if any(word[0].isupper() and word != "I" for word in words[1:]):
            continue
        if forbidden.intersection(word.lower() for word in words) or sentence in found:
            continue
        try:
            length = len(encode(tokenizer, [sentence])[0])
        except ValueError:  # a word-level tokenizer that lacks a word
            continue
        if length <= max_tokens:
            return sentence
    return None
