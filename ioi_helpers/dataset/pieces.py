"""Pieces of text, each tokenised once, and the checks of the words that fill a template's fields.

Prompts are put together from pieces, so tokenising a handful of texts is enough for any number of
prompts. Names get special care: a role is one position, so a name must be one token, and a name
that is not is refused with some that are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
from jaxtyping import Int
from transformers import PreTrainedTokenizerBase

from ioi_helpers.dataset.sampling import in_fixed_order
from ioi_helpers.stimuli import NAMES


class Pieces:
    """Pieces of text and the token ids of each. Append-only; piece 0 is the empty text.

    The ids are those of the piece behind other words, where it nearly always stands. Some
    tokenizers write what begins a text otherwise (Llama's puts a space before it); for them
    ``at_start`` has those ids.

    Args:
        tokenizer: A Hugging Face tokenizer.
        multi_token_names: Names may be of several tokens if they differ in the first.

    Raises:
        ValueError: What is given is no tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, multi_token_names: bool = False) -> None:
        require_tokenizer(tokenizer)
        self.tokenizer = tokenizer
        self.multi_token_names = multi_token_names
        known = set(getattr(tokenizer, "all_special_ids", None) or [])
        # Llama 3 has hundreds that are no role's, such as BOS is.
        added = getattr(tokenizer, "added_tokens_decoder", None) or {}
        known |= {i for i, token in added.items() if getattr(token, "special", False)}
        # A word that the tokenizer does not know is refused where it matters: as a name.
        self._special = known - {getattr(tokenizer, "unk_token_id", None)}
        self.texts: list[str] = [""]
        self.ids: list[list[int]] = [[]]
        self._index: dict[str, int] = {"": 0}
        self._starts: dict[int, list[int]] = {}
        self._before: str | None = None
        self.starts_differ = False
        """Whether the tokenizer writes the beginning of a text otherwise than its middle."""
        self.first_tokens: dict[int, str] = {}
        """The name that begins with a token; only where names may be of several."""

    def add(self, texts: Sequence[str]) -> Int[np.ndarray, " texts"]:
        """Indices of ``texts``, tokenising in one batch those not met before.

        Raises:
            ValueError: A text holds a special token, such as a BOS of its own.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._index]
        if new:
            encoded = self.encode(new)
            for text, ids in zip(new, encoded, strict=True):
                self._refuse_special(text, ids)
            self.extend(new, encoded)
        return np.array([self._index[text] for text in texts], dtype=np.int64)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts as they are behind other words, without remembering them."""
        alone = encode(self.tokenizer, texts)
        if self._before is None:
            self._find_out(texts)
        if not self.starts_differ:
            return alone
        assert self._before is not None
        before, *both = encode(self.tokenizer, [self._before, *(self._before + t for t in texts)])
        n = len(before)
        # A text that is joined with the word before it has no ids of its own; whoever puts prompts
        # together compares them with whole ones.
        return [ids[n:] if ids[:n] == before else own for ids, own in zip(both, alone, strict=True)]

    def _find_out(self, texts: Sequence[str]) -> None:
        """Whether texts are written otherwise where they begin, with the first word that is met.

        With a word that the tokenizer knows, as some raise an error at others.
        """
        word = next((text for text in texts if re.match(r" \w", text)), None)
        if word is None:
            return
        try:
            once, comma, twice, both = encode(self.tokenizer, [word, ",", word * 2, word + ","])
        except Exception:  # of whatever kind: the comma is unknown, and the words are all there is
            once, twice = encode(self.tokenizer, [word, word * 2])
            comma, both = [], once
        self._before = word
        self.starts_differ = twice != once * 2 or both != once + comma

    def at_start(self, pieces: Int[np.ndarray, " pieces"]) -> list[list[int]]:
        """Token ids of pieces where they begin a text."""
        new = [piece for piece in dict.fromkeys(pieces.tolist()) if piece not in self._starts]
        found = encode(self.tokenizer, [self.texts[piece] for piece in new]) if new else []
        self._starts.update(zip(new, found, strict=True))
        return [self._starts[piece] for piece in pieces.tolist()]

    def whole(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of texts that stand alone, as prompts do.

        Raises:
            ValueError: A text holds a special token, such as a BOS of its own.
        """
        encoded = encode(self.tokenizer, texts)
        for text, ids in zip(texts, encoded, strict=True):
            self._refuse_special(text, ids)
        return encoded

    def _refuse_special(self, text: str, ids: Sequence[int]) -> None:
        special = next((i for i in ids if i in self._special), None)
        if special is not None:
            raise ValueError(
                f"The text {text!r} holds the special token "
                f"{self.tokenizer.decode([special])!r}; leave it out, as prepend_bos=True "
                "puts BOS in front."
            )

    def extend(self, texts: Sequence[str], ids: Sequence[list[int]]) -> None:
        """Append pieces whose token ids are known; those that are there already are passed over."""
        for text, its_ids in zip(texts, ids, strict=True):
            if text not in self._index:
                self._index[text] = len(self.texts)
                self.texts.append(text)
                self.ids.append(its_ids)

    def add_one(self, text: str) -> int:
        """Index of one text."""
        return int(self.add([text])[0])


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, with nothing put in front or behind."""
    encoded: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return encoded


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What fills up shorter prompts; never read, as lengths say what is padding."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def require_bos(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer without BOS, where one is wanted.

    Raises:
        ValueError: It has none.
    """
    if tokenizer.bos_token_id is None:
        raise ValueError("This tokenizer has no BOS token; pass prepend_bos=False.")


def require_lists(**given: Any) -> None:
    """Refuse one text, whose letters would be taken for texts, and sets, which have no order.

    Raises:
        ValueError: An argument is one of these; each is named by its keyword.
    """
    for what, value in given.items():
        if isinstance(value, str | set | frozenset):
            raise ValueError(f"{what} must be a list, one for each prompt, not {value!r}.")


def prompts_and_answers(
    prompts: Iterable[str], answers: Iterable[tuple[str, str]], pair: str, **labels: Any
) -> tuple[list[str], list[tuple[str, str]]]:
    """A reader's own prompts and two answers for each, as lists.

    Args:
        pair: What two answers are, for messages.
        labels: What else is given for each prompt, or None.

    Raises:
        ValueError: No prompts, something that is no text or no pair, or unequal numbers.
    """
    require_lists(prompts=prompts, answers=answers)
    texts, pairs = list(prompts), list(answers)
    if not texts:
        raise ValueError("prompts is empty; give at least one prompt.")
    for text in texts:
        if not isinstance(text, str) or not text:
            raise ValueError(f"A prompt must be text, not {text!r}.")
    for answer in pairs:
        if isinstance(answer, str) or len(answer) != 2:
            raise ValueError(f"An answer must be a pair {pair}, not {answer!r}.")
    if len(texts) != len(pairs):
        raise ValueError(
            f"There are {len(texts)} prompts but {len(pairs)} answers; give one pair for each."
        )
    for what, given in labels.items():
        if given is not None and len(given) != len(texts):
            raise ValueError(f"There are {len(texts)} prompts but {len(given)} {what}.")
    return texts, pairs


def require_tokenizer(tokenizer: Any) -> None:
    """Refuse what is no tokenizer, and say what to give.

    Raises:
        ValueError: It is a model, a text, or something else.
    """
    if callable(tokenizer) and hasattr(tokenizer, "decode") and hasattr(tokenizer, "bos_token_id"):
        return
    what = type(tokenizer).__name__
    advice = "give a Hugging Face tokenizer, such as model.tokenizer"
    if isinstance(tokenizer, str):
        what = f"the text {tokenizer!r}"
        advice = "load one with transformers.AutoTokenizer, or give model.tokenizer"
    elif getattr(tokenizer, "tokenizer", None) is not None:
        advice = "give its tokenizer, as in IOIDataset.demo(model.tokenizer)"
    elif hasattr(tokenizer, "cfg"):
        advice = "it has none; load it with one"
    raise ValueError(f"The first argument must be a tokenizer, not {what}; {advice}.")


# --- names ---------------------------------------------------------------------------------------


def name_pieces(
    pieces: Pieces, names: Sequence[str], suggest: bool = True
) -> Int[np.ndarray, " names"]:
    """Pieces of " Name" for each name.

    Args:
        suggest: End the error with names that would do.

    Raises:
        ValueError: A name is not a single token that the tokenizer knows; or, where names may be of
            several tokens, it begins with the same token as another.
    """
    try:
        indices = pieces.add([f" {name}" for name in names])
    except ValueError as error:  # a word-level tokenizer refuses unknown words itself
        raise ValueError(f"Not every name is a single token: {error}") from error
    unknown_id = getattr(pieces.tokenizer, "unk_token_id", None)
    for name, index in zip(names, indices, strict=True):
        ids = pieces.ids[index]
        if pieces.multi_token_names and ids and unknown_id not in ids:
            other = pieces.first_tokens.setdefault(ids[0], name)
            if other != name:
                raise ValueError(
                    f"The names {other!r} and {name!r} begin with the same token, "
                    f"{pieces.tokenizer.decode([ids[0]])!r}, by which names of several tokens are "
                    "scored; use others."
                )
            continue
        if len(ids) == 1 and ids[0] != unknown_id:
            continue
        if len(ids) == 1:
            what = "is unknown to this tokenizer"
        else:
            parts = ", ".join(repr(pieces.tokenizer.decode([i])) for i in ids)
            what = f"is {len(ids)} tokens under this tokenizer ({parts})"
        raise ValueError(
            f"The name {name!r} {what}, but a role is a single token"
            + (
                f"; try {_suggest_names(pieces, name)} instead, or multi_token_names=True."
                if suggest
                else "."
            )
        )
    return indices


def check_names(pieces: Pieces, names: Iterable[str] | None) -> tuple[str, ...]:
    """The names to draw from: the bundled ones that are single tokens, or the given ones, checked.

    Bundled names that another tokenizer would split are left out (where names may be of several
    tokens: those that begin as an earlier one does); given names never are.

    Raises:
        ValueError: A given name is repeated or not a single token, or fewer than 3 names are left.
    """
    if names is None:
        pool = usable_names(pieces, NAMES)
    else:
        if isinstance(names, str):
            raise ValueError(f"names must be a list of names, not the one text {names!r}.")
        pool = [name.strip() for name in in_fixed_order(names)]
        repeated = sorted({name for name in pool if pool.count(name) > 1})
        if repeated:
            raise ValueError(f"The name {repeated[0]!r} is listed twice; names must differ.")
        name_pieces(pieces, pool)
    if len(pool) < 3:
        raise ValueError(
            f"Only {len(pool)} usable name{'' if len(pool) == 1 else 's'}; an IOI prompt and its "
            "ABC counterfactual need at least 3 single-token names."
        )
    return tuple(pool)


def usable_names(pieces: Pieces, names: Sequence[str]) -> list[str]:
    """Those of the names that are a single token for this tokenizer."""

    def usable(*some: str) -> bool:
        try:
            name_pieces(pieces, some, suggest=False)
        except ValueError:
            return False
        return True

    # All at once first: nearly always they are, and one batch is much faster than many.
    return list(names) if usable(*names) else [name for name in names if usable(name)]


def _suggest_names(pieces: Pieces, name: str) -> str:
    """A few bundled names that are single tokens, those most like ``name`` first."""
    usable = usable_names(pieces, NAMES)
    similar = get_close_matches(name, usable, n=3, cutoff=0.4)
    same_initial = [other for other in usable if other[0] == name[:1].upper()]
    chosen = list(dict.fromkeys([*similar, *same_initial, *usable]))[:3]
    return ", ".join(chosen) or "another name"


# --- other words ---------------------------------------------------------------------------------


def check_words(what: str, words: Iterable[str] | None, default: Sequence[str]) -> list[str]:
    """The given words or sentences, or the default ones, stripped.

    Args:
        what: The argument's name, for the error.

    Raises:
        ValueError: One text instead of a list, no entry, or an empty one.
    """
    if isinstance(words, str):
        raise ValueError(f"{what} must be a list of words, not the one text {words!r}.")
    chosen = [word.strip() for word in (default if words is None else in_fixed_order(words))]
    if not chosen or not all(chosen):
        raise ValueError(f"{what} must hold at least one entry and no empty ones.")
    return chosen


def check_nouns(
    pieces: Pieces, what: str, nouns: Iterable[str] | None, default: Sequence[str]
) -> list[str]:
    """As ``check_words``, for places and objects, which must also be free of punctuation.

    Of the default ones, those that are a single token for this tokenizer, if there are any.
    """
    chosen = check_words(what, nouns, default)
    if nouns is None:
        single = [noun for noun in chosen if _is_single(pieces, noun)]
        chosen = single or chosen
    for noun in chosen:
        # A full stop or comma here would pass for the end of the first clause.
        if not re.fullmatch(r"\w[\w' -]*", noun):
            raise ValueError(f"{noun!r} in {what} must be a plain word, without punctuation.")
    return chosen


def _is_single(pieces: Pieces, word: str) -> bool:
    try:
        ids = pieces.ids[pieces.add_one(f" {word}")]
    except ValueError:  # a word-level tokenizer refuses unknown words itself
        return False
    return len(ids) == 1
