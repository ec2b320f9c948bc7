"""The bundled models' tokenizer: one token a word, in GPT-2's style.

A leading space belongs to the token, so " Mary" and "Mary" are two tokens; `<|endoftext|>` is both
beginning and end of text. There is no token for unknown words: :class:`WordTokenizer` refuses a
text that holds one, names the word and suggests near ones.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

BOS = "<|endoftext|>"
# A contraction, or a word, digit or sign with the space before it.
PIECE = r"'(?:s|t)\b| ?[A-Za-z]+| ?[0-9]| ?[^\sA-Za-z0-9]"
_PIECE = re.compile(PIECE)
_PIECE_OR_REST = re.compile(f"({PIECE})")


def split(text: str) -> list[str]:
    """Cut a text into pieces, leading spaces kept: ``"Then, Mary" -> ["Then", ",", " Mary"]``."""
    return _PIECE.findall(text)


class WordTokenizer(PreTrainedTokenizerFast):
    """A word-level tokenizer that refuses an unknown word in one sentence, with near words."""

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.get_vocab())  # asking for it copies it: too slow to do at every call

    def unknown_words(self, text: str) -> list[str]:
        """The pieces of a text that are not in the vocabulary, in order, each once."""
        pieces = [piece for piece in _PIECE_OR_REST.split(text.replace(BOS, "")) if piece]
        return list(dict.fromkeys(piece for piece in pieces if piece not in self._known))

    def _refuse_unknown(self, text: Any) -> None:
        if isinstance(text, str):
            unknown = self.unknown_words(text)
            if unknown:
                raise ValueError(self._unknown_message(unknown))
        elif isinstance(text, (list, tuple)):
            for part in text:
                self._refuse_unknown(part)

    def _unknown_message(self, unknown: list[str]) -> str:
        parts = []
        known = sorted(self._known)
        for piece in unknown[:3]:
            near = difflib.get_close_matches(piece, known, n=3, cutoff=0.6)
            hint = f" (near: {', '.join(repr(word) for word in near)})" if near else ""
            parts.append(f"{piece!r}{hint}")
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        return (
            f"The bundled models' vocabulary of {len(known):,} words lacks "
            f"{', '.join(parts)}{more}; use words it knows, or a model with a larger vocabulary "
            "such as gpt2-small."
        )

    def _encode_plus(self, text: Any, text_pair: Any = None, *args: Any, **kwargs: Any) -> Any:
        self._refuse_unknown(text)
        self._refuse_unknown(text_pair)
        return super()._encode_plus(text, text_pair, *args, **kwargs)


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
