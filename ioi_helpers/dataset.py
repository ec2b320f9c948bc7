"""IOI prompts: many of them, with every role's position known exactly, and their counterfactuals.

A prompt such as "When John and Mary went to the store, John gave a drink to" is cut into pieces
(the words of a template, two names, a place, an object, perhaps a prefix sentence). Each piece is
tokenised once and prompts are put together from token ids, so that a hundred thousand of them take
a second or two, and the place of a name is known from the way the prompt was built instead of
being searched for: it stays right when the same name also occurs in a prefix.

Source of the task, the roles and the counterfactuals: Wang et al. 2022, "Interpretability in the
Wild" (arXiv 2211.00593), called "the IOI paper" below. Prefix sentences follow "Intervening in the
Residual Stream" (the LRQP post).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from ioi_helpers.stimuli import (
    ADVERSARIAL_SENTENCES,
    DEMO_PAIRS,
    DEMO_PROMPTS,
    DEMO_TEMPLATES,
    NAMES,
    OBJECTS,
    PAPER_NAMES,
    PLACES,
    PREFIXES,
    TEMPLATES,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    IntArray = np.ndarray[Any, np.dtype[np.int64]]

ROLES: tuple[str, ...] = ("IO", "S1", "S1+1", "S2", "END")
"""The five positions that matter in an IOI prompt (IOI paper, section 2), in the fixed order used
by every table and figure: the indirect object, the subject's first mention, the token after it,
the subject's second mention, and the last token, from which the answer is predicted."""

ORDERS: tuple[str, ...] = ("ABBA", "BABA", "mixed")

# The dataset that the LRQP post took its sentences from. Its main branch holds a loading script,
# which `datasets` no longer runs; the hub's automatic Parquet conversion holds the same text.
OPENWEBTEXT = ("stas/openwebtext-10k", "refs/convert/parquet")

_FIELD = re.compile(r"\[([A-Z]+)\]")
# Columns of the array of names: one for each role that is a name.
_IO, _S1, _S2 = 0, 1, 2
_TEMPLATE_HELP = (
    'write it as "Then, [B] and [A] went to the [PLACE]. [B] gave a [OBJECT] to [A]", '
    "with [A] for IO and [B] for S"
)


class Names(NamedTuple):
    """The names that stand at a prompt's three name roles; S1 and S2 are equal in an IOI prompt."""

    IO: str
    S1: str
    S2: str


class RolePositions(dict[str, Int[Tensor, " batch"]]):
    """Role -> position of that role in each prompt. An unknown role is a `ValueError`."""

    def __missing__(self, role: str) -> Int[Tensor, " batch"]:
        raise ValueError(f"{role!r} is not a role of an IOI prompt; use one of {', '.join(ROLES)}.")


# --- pieces --------------------------------------------------------------------------------------


class _Pieces:
    """Pieces of text and the token ids of each. Append-only; piece 0 is the empty text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.texts: list[str] = [""]
        self.ids: list[list[int]] = [[]]
        self._index: dict[str, int] = {"": 0}

    def add(self, texts: Sequence[str]) -> IntArray:
        """Indices of `texts`, tokenising in one batch those not met before."""
        new = [text for text in dict.fromkeys(texts) if text not in self._index]
        if new:
            encoded = _encode(self.tokenizer, new)
            for text, ids in zip(new, encoded, strict=True):
                self._index[text] = len(self.texts)
                self.texts.append(text)
                self.ids.append(ids)
        return np.array([self._index[text] for text in texts], dtype=np.int64)

    def add_one(self, text: str) -> int:
        """Index of one text."""
        return int(self.add([text])[0])


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, with nothing put in front or behind."""
    encoded: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return encoded


@dataclass(frozen=True)
class _Template:
    """A template cut at its fields.

    `segments` holds (kind, text): kind "text" for words, "first" and "second" for the two names of
    the first clause, "S2", "PLACE" or "OBJECT" for the other fields. A field's text is the space
    before it, which in GPT-2's tokenizer belongs to the field's token.
    """

    text: str
    segments: tuple[tuple[str, str], ...]


def _parse_template(template: str) -> _Template:
    """Cut a template at its fields, or say what is wrong with it."""
    if not isinstance(template, str):
        raise ValueError(f"A template must be text, not {type(template).__name__}.")

    def wrong(what: str) -> ValueError:
        return ValueError(f"The template {template!r} {what}; {_TEMPLATE_HELP}.")

    body = template.rstrip()
    # A last [A] is the answer, not part of the prompt.
    if body.endswith("[A]") and body.count("[A]") > 1:
        body = body[: -len("[A]")].rstrip()
    segments: list[tuple[str, str]] = []
    name_fields: list[str] = []
    cursor = 0
    for match in _FIELD.finditer(body):
        before, field = body[cursor : match.start()], match.group(1)
        cursor = match.end()
        space = " " if before.endswith(" ") else ""
        literal = before.removesuffix(" ")
        if literal:
            segments.append(("text", literal))
        if field in ("A", "B"):
            if not space or not segments:
                raise wrong(f"needs a word and a space before [{field}], as a name's token has one")
            name_fields.append(field)
            kind = {1: "first", 2: "second", 3: "S2"}.get(len(name_fields), "extra")
        elif field in ("PLACE", "OBJECT"):
            kind = field
        else:
            raise wrong(f"has an unknown field [{field}]")
        if body[cursor : cursor + 1].isalnum():
            raise wrong(f"has a letter or digit directly after [{field}]")
        segments.append((kind, space))
    if body[cursor:]:
        segments.append(("text", body[cursor:]))
    missing = [field for field in ("A", "B") if field not in name_fields]
    if missing:
        raise wrong(f"lacks the field [{missing[0]}]")
    if sorted(name_fields[:2]) != ["A", "B"] or name_fields[2:] != ["B"]:
        raise wrong("must name [A] and [B] once each and then [B] once more")
    return _Template(template, tuple(segments))


def _resolve_templates(templates: str | Iterable[str] | None) -> list[str]:
    named = {"paper": TEMPLATES, "demo": DEMO_TEMPLATES}
    if templates is None:
        return list(TEMPLATES)
    if isinstance(templates, str):
        if templates in named:
            return list(named[templates])
        if "[" not in templates:
            raise ValueError(
                f"There is no set of templates called {templates!r}; use 'paper', 'demo' or "
                "templates of your own."
            )
        return [templates]
    resolved = list(templates)
    if not resolved:
        raise ValueError("templates is empty; give at least one template, or None for the paper's.")
    return resolved


# --- names, places, objects ----------------------------------------------------------------------


def _name_pieces(pieces: _Pieces, names: Sequence[str], suggest: bool = True) -> IntArray:
    """Pieces of " Name" for each name, every one of them checked to be a single known token."""
    indices = pieces.add([f" {name}" for name in names])
    unknown_id = getattr(pieces.tokenizer, "unk_token_id", None)
    for name, index in zip(names, indices, strict=True):
        ids = pieces.ids[index]
        if len(ids) == 1 and ids[0] != unknown_id:
            continue
        if len(ids) == 1:
            what = "is unknown to this tokenizer"
        else:
            parts = ", ".join(repr(pieces.tokenizer.decode([i])) for i in ids)
            what = f"is {len(ids)} tokens under this tokenizer ({parts})"
        raise ValueError(
            f"The name {name!r} {what}, but a role is a single token"
            + (f"; try {_suggest_names(pieces, name)} instead." if suggest else ".")
        )
    return indices


def _suggest_names(pieces: _Pieces, name: str) -> str:
    """A few bundled names that are single tokens, those most like `name` first."""
    usable = _usable_names(pieces, NAMES)
    similar = get_close_matches(name, usable, n=3, cutoff=0.4)
    same_initial = [other for other in usable if other[0] == name[:1].upper()]
    chosen = list(dict.fromkeys([*similar, *same_initial, *usable]))[:3]
    return ", ".join(chosen) or "another name"


def _usable_names(pieces: _Pieces, names: Sequence[str]) -> list[str]:
    """Those of the names that are a single token for this tokenizer."""

    def usable(name: str) -> bool:
        try:
            _name_pieces(pieces, [name], suggest=False)
        except ValueError:
            return False
        return True

    try:
        _name_pieces(pieces, names, suggest=False)
    except ValueError:
        return [name for name in names if usable(name)]
    return list(names)


def _check_names(pieces: _Pieces, names: Iterable[str] | None) -> tuple[str, ...]:
    """The names to draw from: the bundled ones that are single tokens, or the given ones, checked.

    Bundled names that another tokenizer would split are left out; given names never are.
    """
    if names is None:
        pool = _usable_names(pieces, NAMES)
    else:
        if isinstance(names, str):
            raise ValueError(f"names must be a list of names, not the one text {names!r}.")
        pool = [name.strip() for name in names]
        repeated = sorted({name for name in pool if pool.count(name) > 1})
        if repeated:
            raise ValueError(f"The name {repeated[0]!r} is listed twice; names must differ.")
        _name_pieces(pieces, pool)
    if len(pool) < 3:
        raise ValueError(
            f"Only {len(pool)} usable name{'' if len(pool) == 1 else 's'}; an IOI prompt and its "
            "ABC counterfactual need at least 3 single-token names."
        )
    return tuple(pool)


def _check_words(what: str, words: Iterable[str] | None, default: Sequence[str]) -> list[str]:
    if isinstance(words, str):
        raise ValueError(f"{what} must be a list of words, not the one text {words!r}.")
    chosen = [word.strip() for word in (default if words is None else words)]
    if not chosen or not all(chosen):
        raise ValueError(f"{what} must hold at least one entry and no empty ones.")
    return chosen


def _check_nouns(what: str, nouns: Iterable[str] | None, default: Sequence[str]) -> list[str]:
    chosen = _check_words(what, nouns, default)
    for noun in chosen:
        # A full stop or comma here would pass for the end of the first clause.
        if not re.fullmatch(r"\w[\w' -]*", noun):
            raise ValueError(f"{noun!r} in {what} must be a plain word, without punctuation.")
    return chosen


# --- seeded choices ------------------------------------------------------------------------------
# Everything random is derived from uniform doubles of PCG64, whose stream does not change between
# NumPy versions (that of `Generator.integers` or `permutation` may).


def _choose(rng: np.random.Generator, rows: int, options: int) -> IntArray:
    """One of `options` for each row, independently."""
    chosen: IntArray = np.floor(rng.random(rows) * options).astype(np.int64)
    return chosen


def _shuffled(rng: np.random.Generator, count: int) -> IntArray:
    return np.argsort(rng.random(count), kind="stable").astype(np.int64)


def _deal(rng: np.random.Generator, rows: int, options: int) -> IntArray:
    """One of `options` for each row, in random order, each option equally often (or once more)."""
    dealt: IntArray = np.resize(_shuffled(rng, options), rows)[_shuffled(rng, rows)]
    return dealt


def _draw_distinct(rng: np.random.Generator, count: int, options: int, taken: IntArray) -> IntArray:
    """`count` different options for each row, none of them among that row's `taken`.

    Args:
        taken: [rows, k], distinct in a row; -1 where there is nothing to avoid.

    Returns:
        [rows, count]. Row by row from the stream, so that the first rows of a long draw are the
        rows of a short one.
    """
    uniform = rng.random((len(taken), count))
    for column in range(count):
        free = options - (taken >= 0).sum(axis=1)
        pick = np.floor(uniform[:, column] * free).astype(np.int64)
        for avoid in np.sort(taken, axis=1).T:
            # Step over what is taken, in ascending order: `pick` counts the free ones only.
            pick += (avoid >= 0) & (pick >= avoid)
        taken = np.concatenate([taken, pick[:, None]], axis=1)
    return taken[:, -count:]


# --- prefix sentences ----------------------------------------------------------------------------


def _resolve_prefixes(
    prefixes: str | Iterable[str] | None,
    tokenizer: PreTrainedTokenizerBase,
    wanted: int,
    seed: int,
    names: Sequence[str],
) -> list[str]:
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
    sentences = [" ".join(str(sentence).split()) for sentence in prefixes]
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
    decided here without a tagger, and strictly: no word of `names`; no capitalised word except the
    first (and "I"); and a first word that also occurs in lower case somewhere in the text read so
    far. At most one sentence is taken from a document. Sentences that the tokenizer cannot encode
    are passed over.

    Needs the network (or a filled cache) and reads the dataset as a stream, without storing it.

    Args:
        tokenizer: counts the tokens.
        count: how many different sentences to return.
        seed: which of them.
        max_tokens: the longest sentence allowed, in tokens.
        names: words that a sentence must not hold.

    Raises:
        RuntimeError: the sentences could not be had. Nothing is put in their place.
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
        for text in _shuffled_texts(documents, seed):
            sentence = _nameless_sentence(text, tokenizer, max_tokens, names, found)
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


def _shuffled_texts(documents: Any, seed: int) -> Iterator[str]:
    for document in documents.shuffle(seed=seed, buffer_size=1000):
        yield document["text"]


def _nameless_sentence(
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    names: Sequence[str],
    found: dict[str, None],
) -> str | None:
    """The first sentence of a document that holds no name and is short enough, if there is one."""
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
            length = len(_encode(tokenizer, [sentence])[0])
        except ValueError:  # a word-level tokenizer that lacks a word
            continue
        if length <= max_tokens:
            return sentence
    return None


# --- the dataset ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    """What the rows are made of: `layout` [batch, width] of piece indices, left to right, and the
    columns of it [batch, 3] in which IO, S1 and S2 stand. `mentions` [batch, k] are the columns
    with further names (adversarial sentences)."""

    layout: IntArray
    columns: IntArray
    mentions: IntArray
    template_ids: IntArray
    pair_ids: IntArray

    def take(self, index: IntArray) -> _Rows:
        return _Rows(
            self.layout[index],
            self.columns[index],
            self.mentions[index],
            self.template_ids[index],
            self.pair_ids[index],
        )

    def names(self) -> IntArray:
        """[batch, 3]: the pieces at IO, S1 and S2."""
        return np.take_along_axis(self.layout, self.columns, axis=1)


class IOIDataset:
    """Indirect-object prompts, tokenised, with the position of every role in every prompt.

    Make one with `IOIDataset.generate`, `.demo`, `.paper` or `.from_prompts`. It is never changed
    in place: slicing, `.to` and the counterfactual methods return new datasets.

    What a dataset holds:
        prompts: the texts, without the answer and without BOS.
        tokens: Int[batch pos], padded on the *right*. BOS comes first if `prepend_bos`.
        lengths: Int[batch], tokens in each prompt (BOS counted, padding not).
        attention_mask: Int[batch pos], 1 on tokens and 0 on padding. The padding token may be the
            BOS token itself, so never look for padding by its id. A causal model needs no mask
            here: nothing before the padding can see it.
        io_tokens, s_tokens: Int[batch], the tokens of the names at IO and at S1.
        orders: "ABBA" where IO is named first, "BABA" where S is.
        positions: role -> Int[batch], for `ROLES`.
        names: the names at IO, S1 and S2 of each row.
        template_ids: Int[batch], index into `templates`.
        pair_ids: Int[batch]; rows with the same number were generated together (the same sentence
            with the names exchanged). Keep them together when you split rows for a probe.

    **Counterfactuals** (`swap_subject`, `swap_order`, `abc`, `random_names`, `flip`) are datasets
    that line up with this one row by row, token by token: only names differ, each a single token,
    so `lengths` are equal and position i of one row is position i of the other.

    *Every dataset describes its own text.* In `data.swap_subject()` the other name is the subject,
    so its `io_tokens`, `s_tokens`, `orders` and `positions` say so: its own answer is `io_tokens`.
    The dataset it came from stays reachable as `.clean` (a dataset that is no counterfactual is its
    own `.clean`). For activation patching use the clean roles and the clean answers on both runs:
    `logit_diff(logits_of_corrupted_run, corrupted.clean)` is about minus the clean value for
    swapped subjects, whereas `logit_diff(logits_of_corrupted_run, corrupted)` asks whether the
    model solves the corrupted prompts.
    """

    def __init__(
        self,
        pieces: _Pieces,
        rows: _Rows,
        *,
        templates: tuple[str, ...],
        name_pool: tuple[str, ...],
        prepend_bos: bool,
        clean: IOIDataset | None = None,
        history: tuple[str, ...] = (),
        width: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self._pieces = pieces
        self._rows = rows
        self._clean = clean
        self.tokenizer = pieces.tokenizer
        self.templates = templates
        self.name_pool = name_pool
        self.prepend_bos = prepend_bos
        self.history = history
        """The counterfactual methods that made this dataset, first to last; () for a clean one."""
        self.device = torch.device(device)
        self._assemble(width)

    def _assemble(self, width: int) -> None:
        """Tokens and positions from the layout. `width` keeps a slice as wide as the whole."""
        layout, bos = self._rows.layout, int(self.prepend_bos)
        lengths_of = np.array([len(ids) for ids in self._pieces.ids], dtype=np.int64)
        flat = np.array([i for ids in self._pieces.ids for i in ids], dtype=np.int64)
        start_of = np.cumsum(lengths_of) - lengths_of

        piece_lengths = lengths_of[layout]
        ends = np.cumsum(piece_lengths, axis=1) + bos
        lengths = ends[:, -1]
        tokens = np.full(
            (len(layout), max(width, int(lengths.max()))), self._pad_id(), dtype=np.int64
        )
        if bos:
            tokens[:, 0] = self.tokenizer.bos_token_id
        # Each pass writes the k-th token of every piece that has so many.
        offsets = ends - piece_lengths
        for k in range(int(piece_lengths.max())):
            row, column = np.nonzero(piece_lengths > k)
            tokens[row, offsets[row, column] + k] = flat[start_of[layout[row, column]] + k]

        at = np.take_along_axis(offsets, self._rows.columns, axis=1)
        names = flat[start_of[self._rows.names()]]

        def tensor(array: IntArray) -> Int[Tensor, " ..."]:
            return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

        self.tokens: Int[Tensor, "batch pos"] = tensor(tokens)
        self.lengths: Int[Tensor, " batch"] = tensor(lengths)
        self.io_tokens: Int[Tensor, " batch"] = tensor(names[:, _IO])
        self.s_tokens: Int[Tensor, " batch"] = tensor(names[:, _S1])
        self.positions = RolePositions(
            {
                "IO": tensor(at[:, _IO]),
                "S1": tensor(at[:, _S1]),
                "S1+1": tensor(at[:, _S1] + 1),
                "S2": tensor(at[:, _S2]),
                "END": tensor(lengths - 1),
            }
        )
        self.template_ids: Int[Tensor, " batch"] = tensor(self._rows.template_ids)
        self.pair_ids: Int[Tensor, " batch"] = tensor(self._rows.pair_ids)
        before = self._rows.columns[:, _IO] < self._rows.columns[:, _S1]
        self.orders: list[str] = ["ABBA" if io_first else "BABA" for io_first in before]

    def _pad_id(self) -> int:
        tokenizer = self.tokenizer
        for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id):
            if candidate is not None:
                return int(candidate)
        return 0  # never read: the attention mask and the positions say what is padding

    # --- constructors ----------------------------------------------------------------------------

    @classmethod
    def generate(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        n: int,
        order: Literal["ABBA", "BABA", "mixed"] | str = "mixed",
        templates: str | Iterable[str] | None = None,
        prefixes: str | Iterable[str] | None = None,
        paired: bool = True,
        prepend_bos: bool = True,
        seed: int = 0,
        names: Iterable[str] | None = None,
        places: Iterable[str] | None = None,
        objects: Iterable[str] | None = None,
        balanced: bool = True,
    ) -> IOIDataset:
        """`n` random IOI prompts. The same arguments give the same prompts.

        Args:
            tokenizer: a GPT-2-style tokenizer, whose words carry their leading space. The prompts
                of a sample are tokenised whole and compared with the assembled ids, so a tokenizer
                that works otherwise is refused instead of giving wrong positions.
            n: number of prompts.
            order: "ABBA" names IO before S ("Mary and John ... John"), "BABA" names S first, and
                "mixed" has half of each.
            templates: None or "paper" for the IOI paper's 15, "demo" for those of TransformerLens'
                Exploratory Analysis demo, or your own, with [A] for IO and [B] for S; [PLACE] and
                [OBJECT] are optional.
            prefixes: a sentence put before each prompt, so that positions vary: None, "bundled"
                (sentences of this project, no name in any), "openwebtext" (downloaded; see
                `openwebtext_sentences`), or sentences of your own, used as they are.
            paired: generate each prompt twice in a row, the second time with the two names
                exchanged everywhere. Whatever a model thinks of a name by itself then cancels in
                the mean logit difference, as in the demo. `n` must be even.
            prepend_bos: put BOS before each prompt. TransformerLens' demos do; the IOI paper's
                code does not. GPT-2 treats its first token in a special way, so results differ a
                little: always say which.
            seed: seeds every choice.
            names: single-token names to draw from; None for the bundled ones.
            places, objects: words for [PLACE] and [OBJECT]; None for the paper's eight of each.
            balanced: use orders and templates equally often (to within one pair), in random
                order. False draws them independently, as the IOI paper's code does.

        Raises:
            ValueError: one sentence on what is wrong: `n` not positive, or odd with `paired`; an
                unknown order; a template without its fields; a name that is not one token (with
                names that are); too few names; no BOS token though one is wanted.
            RuntimeError: "openwebtext" was asked for and cannot be had.
        """
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
            raise ValueError(f"n must be a positive number of prompts, not {n!r}.")
        if order not in ORDERS:
            raise ValueError(f"order must be 'ABBA', 'BABA' or 'mixed', not {order!r}.")
        if paired and n % 2:
            raise ValueError(
                f"n must be even when paired=True (each prompt comes twice), not {n}; "
                "use an even n or paired=False."
            )
        parsed = [_parse_template(template) for template in _resolve_templates(templates)]
        pieces = _Pieces(tokenizer)
        pool = _check_names(pieces, names)
        place_words = _check_nouns("places", places, PLACES)
        object_words = _check_nouns("objects", objects, OBJECTS)

        groups = int(n) // 2 if paired else int(n)
        sentences = _resolve_prefixes(prefixes, tokenizer, groups, seed, pool)
        rng = np.random.default_rng(seed)
        if order == "mixed":
            io_first = (_deal(rng, groups, 2) if balanced else _choose(rng, groups, 2)) == 1
        else:
            io_first = np.full(groups, order == "ABBA")
        template_ids = _choose(rng, groups, len(parsed))
        if balanced:
            for which in (True, False):
                rows = np.flatnonzero(io_first == which)
                template_ids[rows] = _deal(rng, len(rows), len(parsed))
        nobody = np.empty((groups, 0), dtype=np.int64)
        drawn = _draw_distinct(rng, 2, len(pool), nobody)
        place_ids = _choose(rng, groups, len(place_words))
        object_ids = _choose(rng, groups, len(object_words))
        prefix_ids = _choose(rng, groups, max(len(sentences), 1))

        pair_ids = np.arange(groups)
        if paired:
            drawn = np.stack([drawn, drawn[:, ::-1]], axis=1).reshape(-1, 2)
            twice = [io_first, template_ids, place_ids, object_ids, prefix_ids, pair_ids]
            io_first, template_ids, place_ids, object_ids, prefix_ids, pair_ids = (
                np.repeat(column, 2) for column in twice
            )
        name_pieces = _name_pieces(pieces, pool)
        rows_ = _lay_out(
            pieces,
            parsed,
            template_ids=template_ids,
            pair_ids=pair_ids,
            io_first=io_first,
            names=name_pieces[drawn],
            places=[place_words[i] for i in place_ids],
            objects=[object_words[i] for i in object_ids],
            prefixes=[sentences[i] for i in prefix_ids] if sentences else None,
        )
        return cls._build(pieces, rows_, tuple(t.text for t in parsed), pool, prepend_bos)

    @classmethod
    def demo(cls, tokenizer: PreTrainedTokenizerBase, prepend_bos: bool = True) -> IOIDataset:
        """The 8 prompts of TransformerLens' Exploratory Analysis demo, in its order, with BOS.

        Rows 2i and 2i+1 are the same sentence with the other name as subject, so each is the
        other's counterfactual: `demo.swap_subject()` is the demo's list of corrupted prompts. (In
        a dataset made by `generate`, the two rows of a pair exchange the names in the first clause
        as well.) GPT-2 small's published mean logit difference on these prompts is 3.55.
        """
        answers = []
        for row, prompt in enumerate(DEMO_PROMPTS):
            one, other = DEMO_PAIRS[row // 2]
            answers.append((other, one) if prompt.count(one) == 2 else (one, other))
        pairs = [row // 2 for row in range(len(DEMO_PROMPTS))]
        return cls.from_prompts(
            tokenizer, DEMO_PROMPTS, answers, prepend_bos=prepend_bos, pair_ids=pairs
        )

    @classmethod
    def paper(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        n: int,
        order: Literal["ABBA", "BABA", "mixed"] | str = "mixed",
        seed: int = 0,
    ) -> IOIDataset:
        """Prompts drawn as the IOI paper's *code* draws them, for comparing numbers with it.

        That is: the first 7 of the 15 templates, each in both orders, for "mixed" (14 in all; with
        a single order the code uses all 15 templates); 99 names; template, names, place and object
        drawn independently for each prompt; prompts not paired; no BOS. (The paper's text says 15
        templates and 100 names.) The random numbers are not those of the code, so the prompts
        follow the same distribution without being the same ones.

        Source: redwoodresearch/Easy-Transformer, ioi_dataset.py.
        """
        return cls.generate(
            tokenizer,
            n,
            order=order,
            templates=TEMPLATES[:7] if order == "mixed" else TEMPLATES,
            paired=False,
            prepend_bos=False,
            seed=seed,
            names=PAPER_NAMES,
            balanced=False,
        )

    @classmethod
    def from_prompts(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Iterable[str],
        answers: Iterable[tuple[str, str]],
        *,
        prepend_bos: bool = True,
        pair_ids: Sequence[int] | None = None,
        names: Iterable[str] | None = None,
    ) -> IOIDataset:
        """Prompts that you wrote yourself.

        Args:
            tokenizer: as in `generate`.
            prompts: texts without the answer, such as "When Ann and Bob met, Bob gave a book to".
            answers: (IO, S) for each prompt, such as ("Ann", "Bob").
            prepend_bos: put BOS before each prompt.
            pair_ids: a number for each prompt, equal for prompts that belong together; by default
                every prompt stands alone.
            names: names that `abc` and `random_names` may use; None for the bundled ones.

        Raises:
            ValueError: in some prompt IO does not occur exactly once, or S exactly twice, or the
                second S does not come last, so that the roles would be a guess; or a name is not
                a single token.
        """
        texts, pairs = list(prompts), list(answers)
        if not texts:
            raise ValueError("prompts is empty; give at least one prompt.")
        if len(texts) != len(pairs):
            raise ValueError(
                f"There are {len(texts)} prompts but {len(pairs)} answers; "
                "give one (IO, S) for each prompt."
            )
        if pair_ids is not None and len(pair_ids) != len(texts):
            raise ValueError(f"There are {len(texts)} prompts but {len(pair_ids)} pair_ids.")
        pieces = _Pieces(tokenizer)
        pool = _check_names(pieces, names)
        template_of: dict[str, int] = {}
        template_ids, io_first = [], []
        for text, (io, s) in zip(texts, pairs, strict=True):
            template, first = _template_of_prompt(text, io.strip(), s.strip())
            template_ids.append(template_of.setdefault(template, len(template_of)))
            io_first.append(first)
        parsed = [_parse_template(template) for template in template_of]
        used = [name.strip() for pair in pairs for name in pair]
        rows = _lay_out(
            pieces,
            parsed,
            template_ids=np.array(template_ids, dtype=np.int64),
            pair_ids=np.array(range(len(texts)) if pair_ids is None else pair_ids, dtype=np.int64),
            io_first=np.array(io_first),
            names=_name_pieces(pieces, used).reshape(-1, 2),
            places=None,
            objects=None,
            prefixes=None,
        )
        return cls._build(pieces, rows, tuple(template_of), pool, prepend_bos)

    @classmethod
    def _build(
        cls,
        pieces: _Pieces,
        rows: _Rows,
        templates: tuple[str, ...],
        name_pool: tuple[str, ...],
        prepend_bos: bool,
    ) -> IOIDataset:
        if prepend_bos and pieces.tokenizer.bos_token_id is None:
            raise ValueError("This tokenizer has no BOS token; pass prepend_bos=False.")
        data = cls(pieces, rows, templates=templates, name_pool=name_pool, prepend_bos=prepend_bos)
        data._check_assembly()
        return data

    def _check_assembly(self, sample: int = 256) -> None:
        """Tokenise whole prompts and compare: some of every template, evenly spread over rows."""
        _, first_of_template = np.unique(self._rows.template_ids, return_index=True)
        spread = np.linspace(0, len(self) - 1, min(sample, len(self))).astype(np.int64)
        chosen = np.unique(np.concatenate([first_of_template, spread]))
        part = self[chosen]
        bos = int(self.prepend_bos)
        whole = _encode(self.tokenizer, part.prompts)
        for ids, row, length, prompt in zip(
            whole, part.tokens.tolist(), part.lengths.tolist(), part.prompts, strict=True
        ):
            if ids != row[bos:length]:
                raise ValueError(
                    f"This tokenizer splits {prompt!r} as a whole otherwise than word by word, so "
                    "roles cannot be placed; use a GPT-2-style tokenizer, whose words carry their "
                    "leading space, and text without odd spacing."
                )

    # --- reading ---------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._rows.layout)

    def __iter__(self) -> Iterator[IOIDataset]:
        """One-row datasets, in order."""
        return (self[row] for row in range(len(self)))

    def __repr__(self) -> str:
        abba = self.orders.count("ABBA")
        parts = [
            f"{len(self)} prompts",
            f"{abba} ABBA, {len(self) - abba} BABA",
            f"{self.tokens.shape[1]} positions {'with' if self.prepend_bos else 'without'} BOS",
        ]
        if self.history:
            parts.append(" then ".join(self.history))
        return f"IOIDataset({'; '.join(parts)})"

    def __getitem__(
        self,
        index: int
        | slice
        | Sequence[int]
        | Sequence[bool]
        | Int[Tensor, " rows"]
        | Bool[Tensor, " batch"]
        | np.ndarray[Any, Any],
    ) -> IOIDataset:
        """Some of the rows, as a dataset: `data[3]`, `data[:8]`, `data[[0, 5]]`, `data[mask]`.

        The padded width stays that of the whole, so that `data[:8].tokens` is `data.tokens[:8]`
        and logits computed for the whole can be sliced alike. `.clean` is sliced along.

        Raises:
            IndexError: a row that does not exist.
            ValueError: a mask of another length than the dataset, or no row selected.
        """
        rows = self._row_numbers(index)
        return self._replace(
            rows=self._rows.take(rows),
            clean=None if self._clean is None else self._clean[rows],
        )

    def _row_numbers(self, index: Any) -> IntArray:
        if isinstance(index, Tensor):
            index = index.detach().cpu().numpy()
        if isinstance(index, int | np.integer) and not isinstance(index, bool):
            if not -len(self) <= index < len(self):
                raise IndexError(f"Row {index} does not exist; the dataset has {len(self)} rows.")
            index = [int(index)]
        if not isinstance(index, slice):
            index = np.atleast_1d(np.asarray(index))
            if index.dtype == bool and index.shape != (len(self),):
                raise ValueError(
                    f"The mask has shape {tuple(index.shape)}, but the dataset has {len(self)} "
                    "rows; give one truth value for each row."
                )
            if index.size and index.dtype != bool and not np.issubdtype(index.dtype, np.integer):
                raise ValueError(
                    "Rows are selected by a number, a slice, a list of numbers or a mask of truth "
                    f"values, not by {index.dtype}."
                )
            if index.size == 0:
                index = slice(0)
        numbers: IntArray = np.arange(len(self))[index]
        if not numbers.size:
            raise ValueError("No row is selected; a dataset holds at least one prompt.")
        return numbers

    def _replace(self, **changes: Any) -> IOIDataset:
        arguments: dict[str, Any] = {
            "rows": self._rows,
            "templates": self.templates,
            "name_pool": self.name_pool,
            "prepend_bos": self.prepend_bos,
            "clean": self._clean,
            "history": self.history,
            "width": self.tokens.shape[1],
            "device": self.device,
        }
        arguments.update(changes)
        return IOIDataset(self._pieces, **arguments)

    def to(self, device: torch.device | str) -> IOIDataset:
        """The same dataset with its tensors on `device`; `.clean` moves along."""
        clean = None if self._clean is None else self._clean.to(device)
        return self._replace(device=device, clean=clean)

    @property
    def clean(self) -> IOIDataset:
        """The dataset that this one is a counterfactual of (at the start of a chain of them).

        A dataset that is no counterfactual is its own clean dataset.
        """
        return self if self._clean is None else self._clean

    @cached_property
    def prompts(self) -> list[str]:
        """The texts, without BOS and without the answer."""
        texts = self._pieces.texts
        return ["".join([texts[piece] for piece in row]) for row in self._rows.layout.tolist()]

    @cached_property
    def names(self) -> list[Names]:
        """The names at IO, S1 and S2 of each row."""
        texts = self._pieces.texts
        return [
            Names(*(texts[piece].removeprefix(" ") for piece in row))
            for row in self._rows.names().tolist()
        ]

    @property
    def attention_mask(self) -> Int[Tensor, "batch pos"]:
        """1 on tokens (BOS included), 0 on padding."""
        return (
            torch.arange(self.tokens.shape[1], device=self.device) < self.lengths[:, None]
        ).long()

    @property
    def answer_tokens(self) -> Int[Tensor, "batch answer"]:
        """`io_tokens` and `s_tokens` side by side, the form that TransformerLens' demos use."""
        return torch.stack([self.io_tokens, self.s_tokens], dim=1)

    def gather(
        self, values: Shaped[Tensor, "batch pos *rest"], role: str
    ) -> Shaped[Tensor, "batch *rest"]:
        """What `values` holds at a role's position in each prompt.

        Roles stand at different positions in different prompts, so `values[:, 14]` would mix them
        up; `data.gather(cache["resid_post", 5], "S2")` does not.

        Args:
            values: [batch, pos, ...], activations or logits computed from `tokens`.
            role: one of `ROLES`.

        Raises:
            ValueError: an unknown role, or another number of rows or positions than `tokens`.
        """
        positions = self.positions[role]
        if values.ndim < 2 or values.shape[:2] != self.tokens.shape:
            raise ValueError(
                f"The values have shape {tuple(values.shape)}, but must begin with [batch, pos] = "
                f"{tuple(self.tokens.shape)} as data.tokens does"
                " (was BOS added or left out, or another dataset used?)."
            )
        rows = torch.arange(len(self), device=values.device)
        return values[rows, positions.to(values.device)]

    def str_tokens(self, row: int) -> list[str]:
        """The tokens of one prompt as texts, without padding, for axis labels."""
        ids = self.tokens[row, : int(self.lengths[row])].tolist()
        return [self.tokenizer.decode([i]) for i in ids]

    def groups(
        self, by: Literal["template", "order", "template and order"] = "template"
    ) -> dict[Any, Int[Tensor, " rows"]]:
        """Row numbers by template, by order, or by both.

        The IOI paper's mean ablation averages over "samples of the same template", where the two
        orders of a sentence are two templates: that is `by="template and order"`.

        Returns:
            template id, or "ABBA"/"BABA", or (template id, order) -> the rows, ascending.

        Raises:
            ValueError: another `by`.
        """
        if by not in ("template", "order", "template and order"):
            raise ValueError(
                f"Rows can be grouped by 'template', 'order' or 'template and order', not {by!r}."
            )
        found: dict[Any, list[int]] = {}
        for row, (template, order) in enumerate(
            zip(self._rows.template_ids.tolist(), self.orders, strict=True)
        ):
            key = {"template": template, "order": order}.get(by, (template, order))
            found.setdefault(key, []).append(row)
        return {key: torch.tensor(found[key], device=self.device) for key in sorted(found)}

    # --- counterfactuals -------------------------------------------------------------------------

    def swap_subject(self) -> IOIDataset:
        """The other name is the subject: S2 becomes IO's name (the demo's corrupted prompts).

        "When John and Mary went to the shops, John gave the bag to" (answer Mary) becomes "...,
        Mary gave the bag to" (answer John). One token differs. As the other name is now the
        repeated one, both of S-inhibition's signals are inverted: which name is repeated, and where
        it stood. ABBA becomes BABA, though no name in the first clause has moved.

        Raises:
            ValueError: rows of an ABC dataset have no subject that is named twice.
        """
        self._need_subject("swap_subject")
        names, columns = self._rows.names(), self._rows.columns
        return self._derive(
            "swap_subject",
            names=names[:, [_S1, _IO, _IO]],
            columns=columns[:, [_S1, _IO, _S2]],
        )

    def swap_order(self) -> IOIDataset:
        """The two names of the first clause change places: ABBA becomes BABA and back.

        "When John and Mary went to the shops, John gave" becomes "When Mary and John went to the
        shops, John gave": the same subject and the same answer, but the repeated name stood at the
        other place. This is the IOI paper's "IO <-> S1 flip" (Appendix A) and, per the LRQP post,
        the variable that GPT-2 small mostly uses.
        """
        return self._derive(
            "swap_order",
            names=self._rows.names(),
            columns=self._rows.columns[:, [_S1, _IO, _S2]],
        )

    def abc(self, seed: int = 0, names: Iterable[str] | None = None) -> IOIDataset:
        """Three unrelated names at IO, S1 and S2: the IOI paper's p_ABC (section 2.1).

        Nothing is repeated, so there is no right answer; everything else (template, length, that
        names stand there) is kept. This is the reference for mean ablation and path patching. The
        three differ from one another and from the row's own two names. (The paper's code replaces
        names in several steps and may by chance draw the same one twice.)

        Its `io_tokens` and `s_tokens` are the new names at IO and S1; the third name, at S2, is in
        `names`. `orders` and `positions` are those of this dataset.

        Args:
            seed: seeds the draw. Rows are drawn in order, so `data[:k].abc()` is `data.abc()[:k]`.
            names: names to draw from; None for those that the dataset was made with.

        Raises:
            ValueError: too few names to draw three new ones, or a name that is not one token.
        """
        old = self._rows.names()
        return self._derive(
            f"abc(seed={seed})",
            names=self._fresh_names(old, 3, seed, names),
            columns=self._rows.columns,
            rename_mentions=True,
        )

    def random_names(self, seed: int = 0, names: Iterable[str] | None = None) -> IOIDataset:
        """Every name replaced by a new one, the same wherever it occurs ("random name flip").

        "Mary and John ... John" becomes "Amy and Paul ... Paul": the order (the positional signal)
        is kept, the token signal says nothing about the original names (IOI paper, Appendix A).
        The new names differ from the row's own. In a prefix sentence nothing is replaced.

        Args, errors: as for `abc`.
        """
        old = self._rows.names()
        fresh = self._fresh_names(old, 3, seed, names)
        # In an IOI row S2 repeats S1; in an ABC row it is a third name of its own.
        s2 = np.where(
            old[:, _S2] == old[:, _S1],
            fresh[:, _S1],
            np.where(old[:, _S2] == old[:, _IO], fresh[:, _IO], fresh[:, _S2]),
        )
        return self._derive(
            f"random_names(seed={seed})",
            names=np.stack([fresh[:, _IO], fresh[:, _S1], s2], axis=1),
            columns=self._rows.columns,
            rename_mentions=True,
        )

    def flip(
        self,
        position: bool = True,
        token: Literal["original", "random", "inverted"] | str = "original",
        seed: int = 0,
        names: Iterable[str] | None = None,
    ) -> IOIDataset:
        """The six cells of the IOI paper's signal table (Appendix A, Figure 9).

        S-inhibition heads tell name movers *which name* to avoid (token signal) and *which place*
        to avoid (position signal). Take a head's output at END from one of these datasets, patch it
        into the clean run, and each signal is kept, inverted or made meaningless. For the clean
        prompt "Mary and John ... John" (order ABBA):

        | `token`    | `position=False` (kept)          | `position=True` (inverted)             |
        |------------|----------------------------------|----------------------------------------|
        | "original" | Mary and John ... John (itself)  | John and Mary ... John (`swap_order`)  |
        | "random"   | Amy and Paul ... Paul            | Paul and Amy ... Paul                  |
        |            | (`random_names`)                 | (`random_names`, then `swap_order`)    |
        | "inverted" | John and Mary ... Mary           | Mary and John ... Mary                 |
        |            | (`swap_subject`, `swap_order`)   | (`swap_subject`)                       |

        Read a row of the second line so: the repeated name stood at the second place, as in the
        clean prompt, but it is neither of the clean names. Patched into GPT-2 small's S-inhibition
        heads, the published logit differences (of the clean prompts' answers) are 3.55, 2.45, 1.77
        for the first column and -0.99, -1.96, -3.16 for the second.

        Args:
            position: invert the position signal.
            token: what becomes of the token signal.
            seed, names: for `token="random"`, as in `random_names`.

        Raises:
            ValueError: another `token`; an ABC dataset; too few names.
        """
        if token not in ("original", "random", "inverted"):
            raise ValueError(f"token must be 'original', 'random' or 'inverted', not {token!r}.")
        self._need_subject("flip")
        flipped = self
        if token == "random":
            flipped = flipped.random_names(seed, names)
        if token == "inverted":
            flipped = flipped.swap_subject()
        # Inverting the token alone already inverts the position, so the order is set right again
        # exactly when both or neither are asked for.
        if position != (token == "inverted"):
            flipped = flipped.swap_order()
        label = f"flip(position={position}, token={token!r})"
        return flipped._replace(clean=self.clean, history=(*self.history, label))

    def adversarial(
        self,
        about: Literal["IO", "S"] | str = "IO",
        sentences: Iterable[str] | None = None,
        pairs: bool = False,
        seed: int = 0,
    ) -> IOIDataset:
        """The prompts with a distracting sentence about IO or S (IOI paper, section 4.4).

        A sentence such as "Mary had a good day." goes in after the clause break between the first
        clause and S2 (the last full stop there, or else the last comma). About IO, it makes IO
        a repeated name as well, which the circuit takes for the sign of a subject: GPT-2 small
        then prefers S on 23.4 % of prompts (0.7 % without; 0.4 % with a sentence about S).

        Roles are those of the original names: the mention in the inserted sentence is none of
        them. Prompts get longer, so this is not a counterfactual: the result is its own `.clean`.

        Args:
            about: "IO" or "S".
            sentences: texts with [A] where the name goes; None for the paper's five.
            pairs: insert two sentences, as the paper's code does (25 combinations), not one.
            seed: which sentence goes where.

        Raises:
            ValueError: another `about`; a sentence without exactly one [A]; a prompt without
                a clause break before S2; a dataset that is a counterfactual or already has such
                sentences.
        """
        if about not in ("IO", "S"):
            raise ValueError(f"about must be 'IO' or 'S', not {about!r}.")
        if self._clean is not None or self._rows.mentions.shape[1]:
            raise ValueError(
                "Distracting sentences go into clean prompts only; "
                "call adversarial() first and make counterfactuals of its result."
            )
        chosen = _check_words("sentences", sentences, ADVERSARIAL_SENTENCES)
        for sentence in chosen:
            if not re.fullmatch(r"(?:[^\[\]]* )?\[A\](?:[^\w\[\]][^\[\]]*)?", sentence):
                raise ValueError(f"The sentence {sentence!r} must hold [A], as a word, just once.")
        rng = np.random.default_rng(seed)
        picks = np.stack([_choose(rng, len(self), len(chosen)) for _ in range(2 if pairs else 1)])
        rows = _insert_sentences(
            self._pieces,
            self._rows,
            [[chosen[i] for i in pick] for pick in picks],
            self._rows.names()[:, _IO if about == "IO" else _S1],
        )
        data = self._replace(
            rows=rows, width=0, history=(*self.history, f"adversarial(about={about!r})")
        )
        data._check_assembly()
        return data

    def s2_embedding_noise(
        self, model: Any, sigma: float = 3.0, seed: int = 0
    ) -> tuple[str, Callable[..., Float[Tensor, "batch pos d_model"]]]:
        """A hook that adds Gaussian noise to S2's token embedding: causal tracing's corruption.

        Instead of a corrupted *prompt*, ROME corrupts a word by noise (Meng et al. 2022, section
        2.1 and Appendix B.1), three standard deviations of the embeddings strong. Compared with
        `swap_subject` it needs no second prompt, but it takes the model off its distribution.

        The noise is drawn once, here, so every run with this hook sees the same corruption: run
        once with it alone, and again with activations restored.

            hook = data.s2_embedding_noise(model)
            logits = model.run_with_hooks(data.tokens, fwd_hooks=[hook])

        Args:
            model: a TransformerBridge, or anything with an embedding matrix `W_E`.
            sigma: strength in units of the standard deviation of all entries of `model.W_E`.
            seed: seeds the noise, on the CPU, so that it is the same on every device.

        Returns:
            ("hook_embed", function), as `fwd_hooks` wants it. The function raises a `ValueError`
            when the run is not over this dataset's tokens.

        Raises:
            ValueError: `sigma` is negative.
        """
        if sigma < 0:
            raise ValueError(f"sigma must not be negative, but is {sigma}.")
        embedding = model.W_E.detach()
        scale = sigma * embedding.float().std().item()
        generator = torch.Generator().manual_seed(seed)
        noise = scale * torch.randn(len(self), embedding.shape[1], generator=generator)
        positions, shape = self.positions["S2"], tuple(self.tokens.shape)

        def add_noise(
            embed: Float[Tensor, "batch pos d_model"], hook: Any = None
        ) -> Float[Tensor, "batch pos d_model"]:
            if tuple(embed.shape[:2]) != shape:
                raise ValueError(
                    f"The noise was drawn for tokens of shape {shape}, but the run has "
                    f"{tuple(embed.shape[:2])}; run the model on the same dataset's tokens."
                )
            rows = torch.arange(len(embed), device=embed.device)
            noisy = embed.clone()
            noisy[rows, positions.to(embed.device)] += noise.to(embed)
            return noisy

        return "hook_embed", add_noise

    # --- counterfactuals, the machinery ----------------------------------------------------------

    def _need_subject(self, method: str) -> None:
        names = self._rows.names()
        if (names[:, _S1] != names[:, _S2]).any():
            raise ValueError(
                f"{method}() needs prompts whose subject is named twice, but S1 and S2 differ here "
                "(is this an ABC dataset?); use data.clean."
            )

    def _fresh_names(
        self, old: IntArray, count: int, seed: int, names: Iterable[str] | None
    ) -> IntArray:
        """[batch, count] pieces of names that differ from one another and from the row's own."""
        pool = self.name_pool if names is None else _check_names(self._pieces, names)
        pool_pieces = _name_pieces(self._pieces, pool)
        number_of = np.full(len(self._pieces.texts), -1, dtype=np.int64)
        number_of[pool_pieces] = np.arange(len(pool))
        taken = number_of[old]
        # One entry for each name, or the same name would be stepped over twice.
        taken[:, _S2] = np.where(
            (old[:, _S2] == old[:, _S1]) | (old[:, _S2] == old[:, _IO]), -1, taken[:, _S2]
        )
        free = len(pool) - int((taken >= 0).sum(axis=1).max())
        if free < count:
            raise ValueError(
                f"There are only {len(pool)} names, too few to give a row {count} new ones; "
                "pass a longer list as names=."
            )
        rng = np.random.default_rng(seed)
        return pool_pieces[_draw_distinct(rng, count, len(pool), taken)]

    def _derive(
        self, label: str, names: IntArray, columns: IntArray, rename_mentions: bool = False
    ) -> IOIDataset:
        """The rows with `names` at `columns` (both [batch, 3] for IO, S1, S2)."""
        layout = self._rows.layout.copy()
        if rename_mentions:
            old = self._rows.names()
            for column in self._rows.mentions.T:
                rows = np.arange(len(layout))
                about_io = layout[rows, column] == old[:, _IO]
                layout[rows, column] = np.where(about_io, names[:, _IO], names[:, _S1])
        np.put_along_axis(layout, columns, names, axis=1)
        rows_ = _Rows(
            layout, columns, self._rows.mentions, self._rows.template_ids, self._rows.pair_ids
        )
        return self._replace(rows=rows_, clean=self.clean, history=(*self.history, label))


# --- laying out rows -----------------------------------------------------------------------------


def _lay_out(
    pieces: _Pieces,
    templates: Sequence[_Template],
    *,
    template_ids: IntArray,
    pair_ids: IntArray,
    io_first: np.ndarray[Any, np.dtype[np.bool_]],
    names: IntArray,
    places: Sequence[str] | None,
    objects: Sequence[str] | None,
    prefixes: Sequence[str] | None,
) -> _Rows:
    """Piece indices of every prompt. `names` [batch, 2] are the pieces of IO and S."""
    batch = len(template_ids)
    width = 1 + max(len(template.segments) for template in templates)
    layout = np.zeros((batch, width), dtype=np.int64)
    columns = np.zeros((batch, 3), dtype=np.int64)
    if prefixes is not None:
        layout[:, 0] = pieces.add(prefixes)
    for template_id, template in enumerate(templates):
        rows = np.flatnonzero(template_ids == template_id)
        first = io_first[rows]
        for column, (kind, text) in enumerate(template.segments, start=1):
            # After a prefix sentence the template's first word needs a space.
            space = " " if column == 1 and prefixes is not None else ""
            if kind == "text":
                layout[rows, column] = pieces.add_one(space + text)
            elif kind in ("PLACE", "OBJECT"):
                words = places if kind == "PLACE" else objects
                if words is None:
                    raise ValueError(f"The prompt {template.text!r} must not hold [{kind}].")
                fillers = [f"{space}{text}{words[row]}" for row in rows.tolist()]
                layout[rows, column] = pieces.add(fillers)
            elif kind == "S2":
                layout[rows, column] = names[rows, 1]
                columns[rows, _S2] = column
            else:
                here = first if kind == "first" else ~first
                layout[rows, column] = np.where(here, names[rows, 0], names[rows, 1])
                columns[rows[here], _IO] = column
                columns[rows[~here], _S1] = column
    no_mentions = np.empty((batch, 0), dtype=np.int64)
    return _Rows(layout, columns, no_mentions, template_ids, pair_ids)


def _template_of_prompt(text: str, io: str, s: str) -> tuple[str, bool]:
    """The template (in BABA form) of a written prompt, and whether IO is named first."""
    if "[" in text or "]" in text:
        raise ValueError(f"The prompt {text!r} must not hold square brackets.")
    if not io or not s or io == s:
        raise ValueError(f"The prompt {text!r} needs two different names, not {io!r} and {s!r}.")
    found = list(re.finditer(rf"(?<!\w)(?:{re.escape(io)}|{re.escape(s)})(?!\w)", text))
    order = [match.group() for match in found]
    if order not in ([io, s, s], [s, io, s]):
        raise ValueError(
            f"The prompt {text!r} must name IO ({io}) once and S ({s}) twice, with S last; "
            "otherwise its roles would be a guess."
        )
    template, cursor = "", 0
    for match, field in zip(found, ("[B]", "[A]", "[B]"), strict=True):
        template += text[cursor : match.start()] + field
        cursor = match.end()
    return f"{template}{text[cursor:].rstrip()} [A]", order[0] == io


def _insert_sentences(
    pieces: _Pieces, rows: _Rows, sentences: Sequence[Sequence[str]], mentioned: IntArray
) -> _Rows:
    """Insert sentences (each a list with one text per row) after the clause break before S2."""
    batch, width = rows.layout.shape
    # A sentence is three pieces (before, name, after), and one piece of the template is cut in two.
    added = 3 * len(sentences) + 1
    layout = np.zeros((batch, width + added), dtype=np.int64)
    columns = rows.columns.copy()
    mentions = np.zeros((batch, len(sentences)), dtype=np.int64)
    for template_id in np.unique(rows.template_ids):
        here = np.flatnonzero(rows.template_ids == template_id)
        # Rows of a template differ in names, places and objects, none of which holds a break.
        old, names = rows.layout[here], rows.columns[here[0]]
        between = range(int(names[:_S2].max()) + 1, int(names[_S2]))
        cut = None
        for mark in (".", ","):
            with_mark = [c for c in between if mark in pieces.texts[old[0, c]]]
            if with_mark:
                cut = with_mark[-1]
                head, _, tail = pieces.texts[old[0, cut]].rpartition(mark)
                break
        if cut is None:
            prompt = "".join(pieces.texts[piece] for piece in old[0])
            raise ValueError(
                f"The prompt {prompt!r} has no full stop or comma between the names and S2, so "
                "there is no place for another sentence."
            )
        layout[here, :cut] = old[:, :cut]
        layout[here, cut] = pieces.add_one(head + mark)
        for k, texts in enumerate(sentences):
            parts = [texts[row].split("[A]") for row in here.tolist()]
            at = cut + 1 + 3 * k
            layout[here, at] = pieces.add(
                [f" {before.rstrip()}" if before else "" for before, _ in parts]
            )
            layout[here, at + 1] = mentioned[here]
            layout[here, at + 2] = pieces.add([after for _, after in parts])
            mentions[here, k] = at + 1
        layout[here, cut + added] = pieces.add_one(tail)
        layout[here, cut + added + 1 :] = old[:, cut + 1 :]
        columns[here, _S2] += added
    return _Rows(layout, columns, mentions, rows.template_ids, rows.pair_ids)
