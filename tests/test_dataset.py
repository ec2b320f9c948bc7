"""IOI prompts: roles, counterfactuals, seeds and refusals, under three kinds of tokenizer.

The GPT-2 tokenizer is used where its files lie beside the repository; a small byte-level BPE
trained here and the bundled models' word-level tokenizer are used everywhere.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ioi_helpers import dataset as dataset_module
from ioi_helpers import stimuli
from ioi_helpers.dataset import ROLES, IOIDataset, openwebtext_sentences
from training.vocabulary import save_tokenizer

GPT2 = Path(__file__).resolve().parents[2] / "shared" / "gpt2-skeleton"
# Sentences in which the names of the prompts occur as well: roles must not be looked for in them.
NAMED_PREFIXES = (
    "John and Mary and Tom and James went to the park.",
    "Mary had a good day.",
    "After the lunch, Tom and John were working at the store.",
)
FEW = ("John", "Mary", "Tom", "James", "Dan", "Amy", "Paul")  # ABC prompts need five more
SLOW = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def small_bpe() -> PreTrainedTokenizerFast:
    """A byte-level BPE as GPT-2's that has seen the stimuli: names and nouns are one token each."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    corpus = [f"Then {name} and {name}." for name in stimuli.NAMES] * 20
    corpus += [f"the {noun} and the {noun}" for noun in (*stimuli.PLACES, *stimuli.OBJECTS)] * 20
    corpus += [*stimuli.TEMPLATES, *stimuli.PREFIXES, *stimuli.DEMO_PROMPTS]
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )


@pytest.fixture(scope="module")
def bpe() -> Any:
    return small_bpe()


@pytest.fixture(scope="module")
def word(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"), max_length=256)


@pytest.fixture(scope="module")
def gpt2() -> Any:
    if not GPT2.is_dir():
        pytest.skip("GPT-2's tokenizer files do not lie beside this repository")
    return AutoTokenizer.from_pretrained(GPT2)


@pytest.fixture(scope="module", params=["bpe", "word", "gpt2"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@cache
def name_token_ids(tokenizer: Any) -> set[int]:
    encoded = tokenizer([f" {name}" for name in stimuli.NAMES], add_special_tokens=False)
    return {ids[0] for ids in encoded["input_ids"]}


def check_dataset(data: IOIDataset) -> None:
    """What must be true of every dataset: it is its own text, tokenised whole, roles included."""
    tokenizer, bos = data.tokenizer, int(data.prepend_bos)
    whole = tokenizer(data.prompts, add_special_tokens=False)["input_ids"]
    assert len(data) == len(data.prompts) == len(data.tokens) == len(data.names)
    assert tuple(data.positions) == ROLES
    rows = zip(data.prompts, whole, data.tokens.tolist(), data.lengths.tolist(), strict=True)
    for row, (_prompt, ids, tokens, length) in enumerate(rows):
        assert length == len(ids) + bos
        assert tokens[bos:length] == ids
        if bos:
            assert tokens[0] == tokenizer.bos_token_id
        assert data.attention_mask[row].tolist() == [1] * length + [0] * (len(tokens) - length)
        at = {role: int(data.positions[role][row]) for role in ROLES}
        for role, name in zip(("IO", "S1", "S2"), data.names[row], strict=True):
            assert tokenizer.decode([tokens[at[role]]]) == f" {name}"
        assert at["S1+1"] == at["S1"] + 1
        assert at["END"] == length - 1
        assert max(at["IO"], at["S1"]) < at["S2"] <= at["END"]
        assert data.orders[row] == ("ABBA" if at["IO"] < at["S1"] else "BABA")
        assert tokenizer.decode([int(data.io_tokens[row])]) == f" {data.names[row].IO}"
        assert tokenizer.decode([int(data.s_tokens[row])]) == f" {data.names[row].S1}"


def check_counterfactual(other: IOIDataset, data: IOIDataset) -> None:
    """Row by row, token by token the same, except for names where names stood."""
    check_dataset(other)
    assert other.clean is data.clean
    assert other.tokens.shape == data.tokens.shape
    assert torch.equal(other.lengths, data.lengths)
    assert torch.equal(other.template_ids, data.template_ids)
    assert torch.equal(other.pair_ids, data.pair_ids)
    assert torch.equal(other.positions["S2"], data.positions["S2"])
    assert torch.equal(other.positions["END"], data.positions["END"])
    places = torch.stack([data.positions[role] for role in ("IO", "S1")]).sort(dim=0).values
    others = torch.stack([other.positions[role] for role in ("IO", "S1")]).sort(dim=0).values
    assert torch.equal(places, others)
    name_ids = name_token_ids(data.tokenizer)
    changed = other.tokens != data.tokens
    assert {*other.tokens[changed].tolist(), *data.tokens[changed].tolist()} <= name_ids


# --- generate ------------------------------------------------------------------------------------


@SLOW
@given(
    pairs=st.integers(1, 12),
    order=st.sampled_from(["ABBA", "BABA", "mixed"]),
    templates=st.sampled_from([None, "paper", "demo"]),
    prefixes=st.sampled_from([None, "bundled", NAMED_PREFIXES]),
    paired=st.booleans(),
    prepend_bos=st.booleans(),
    seed=st.integers(0, 2**32),
    names=st.sampled_from([None, FEW]),
    about=st.sampled_from([None, "IO", "S"]),
    double=st.booleans(),
)
def test_roles_and_counterfactuals_of_any_dataset(
    tokenizer: Any, pairs: int, about: str | None, double: bool, **arguments: Any
) -> None:
    data = IOIDataset.generate(tokenizer, 2 * pairs, **arguments)
    if about:
        data = data.adversarial(about, pairs=double, seed=arguments["seed"])
    check_dataset(data)
    assert len(data) == 2 * pairs
    assert data.clean is data
    assert all(name.S1 == name.S2 != name.IO for name in data.names)
    for other in (
        data.swap_subject(),
        data.swap_order(),
        data.abc(arguments["seed"]),
        data.random_names(arguments["seed"]),
        *(data.flip(p, t) for p in (False, True) for t in ("original", "random", "inverted")),
    ):
        check_counterfactual(other, data)


def test_same_seed_same_prompts(word: Any) -> None:
    def make(seed: int) -> IOIDataset:
        return IOIDataset.generate(word, 40, prefixes="bundled", seed=seed)

    assert make(3).prompts == make(3).prompts
    assert torch.equal(make(3).tokens, make(3).tokens)
    assert make(3).prompts != make(4).prompts


def test_prompts_do_not_depend_on_the_tokenizer_or_the_day(bpe: Any, word: Any) -> None:
    """Stored notebook outputs rest on these prompts; a changed draw must be seen."""
    golden = [
        "After the lunch, Danielle and Alex went to the hospital. Danielle gave a basketball to",
        "After the lunch, Alex and Danielle went to the hospital. Alex gave a basketball to",
    ]
    for tokenizer in (bpe, word):
        assert IOIDataset.generate(tokenizer, 4).prompts[:2] == golden


@pytest.mark.parametrize("order", ["ABBA", "BABA", "mixed"])
def test_pairs_exchange_the_names_and_nothing_else(bpe: Any, order: str) -> None:
    data = IOIDataset.generate(bpe, 60, order=order, prefixes="bundled", seed=1)
    for i in range(0, 60, 2):
        first, second = data.names[i], data.names[i + 1]
        assert (second.IO, second.S1) == (first.S1, first.IO)
        exchange = {first.IO: first.S1, first.S1: first.IO}
        pattern = rf"\b({first.IO}|{first.S1})\b"
        swapped = re.sub(pattern, lambda m, e=exchange: e[m[0]], data.prompts[i])  # type: ignore[misc]
        assert swapped == data.prompts[i + 1]
        assert data.orders[i] == data.orders[i + 1]
    assert data.pair_ids.tolist() == [i // 2 for i in range(60)]
    if order != "mixed":
        assert set(data.orders) == {order}


def test_orders_and_templates_are_balanced(bpe: Any) -> None:
    data = IOIDataset.generate(bpe, 15 * 2 * 4, paired=False)
    assert set(map(len, data.groups("template and order").values())) == {4}
    alone = IOIDataset.generate(bpe, 101, paired=False, seed=5)
    counts = Counter(alone.orders)
    assert abs(counts["ABBA"] - counts["BABA"]) == 1


def test_names_places_and_objects_are_all_used(bpe: Any) -> None:
    data = IOIDataset.generate(bpe, 6000, prefixes="bundled")
    assert {name.IO for name in data.names} == set(stimuli.NAMES)
    text = " ".join(data.prompts)
    assert all(f" {word}" in text for word in (*stimuli.PLACES, *stimuli.OBJECTS))
    used = {sentence for sentence in stimuli.PREFIXES if f"{sentence} " in text}
    assert used == set(stimuli.PREFIXES)


def test_own_names_places_objects_and_templates(bpe: Any) -> None:
    data = IOIDataset.generate(
        bpe,
        12,
        templates=["Once [A] and [B] met at the [PLACE]; [B] sold a [OBJECT], no, two, to"],
        names=["Mary", " John ", "Tom"],
        places=["old market", "harbor"],
        objects=["lamp"],
    )
    check_dataset(data)
    assert {name for row in data.names for name in row} == {"Mary", "John", "Tom"}
    for prompt in data.prompts:
        assert re.fullmatch(
            r"Once \w+ and \w+ met at the (old market|harbor); \w+ sold a lamp, no, two, to", prompt
        )


def test_a_hundred_thousand_prompts(tokenizer: Any) -> None:
    data = IOIDataset.generate(tokenizer, 100_000, prefixes="bundled")
    rows = torch.arange(len(data))
    assert torch.equal(data.tokens[rows, data.positions["IO"]], data.io_tokens)
    assert torch.equal(data.tokens[rows, data.positions["S1"]], data.s_tokens)
    assert torch.equal(data.tokens[rows, data.positions["S2"]], data.s_tokens)
    assert (data.io_tokens != data.s_tokens).all()
    check_dataset(data[::1009])
    assert (data.io_tokens.bincount() == data.s_tokens.bincount()).all()


def test_every_bundled_word_is_one_token_of_gpt2(gpt2: Any) -> None:
    words = [*stimuli.NAMES, *stimuli.PLACES, *stimuli.OBJECTS]
    lengths = [len(gpt2.encode(f" {word}", add_special_tokens=False)) for word in words]
    assert dict(zip(words, lengths, strict=True)) == dict.fromkeys(words, 1)
    assert IOIDataset.generate(gpt2, 2).name_pool == stimuli.NAMES


# --- demo, paper, own prompts --------------------------------------------------------------------


def test_demo_is_the_demo(tokenizer: Any) -> None:
    demo = IOIDataset.demo(tokenizer)
    check_dataset(demo)
    assert demo.prompts == list(stimuli.DEMO_PROMPTS)
    answers = [(name.IO, name.S1) for name in demo.names]
    assert answers == [
        ("Mary", "John"),
        ("John", "Mary"),
        ("Tom", "James"),
        ("James", "Tom"),
        ("Dan", "Sid"),
        ("Sid", "Dan"),
        ("Martin", "Amy"),
        ("Amy", "Martin"),
    ]
    assert demo.templates == stimuli.DEMO_TEMPLATES
    assert demo.tokens.shape == (8, 15)
    assert demo.prepend_bos
    corrupted = demo.swap_subject()
    swapped_rows = [1, 0, 3, 2, 5, 4, 7, 6]
    assert corrupted.prompts == [demo.prompts[row] for row in swapped_rows]
    assert torch.equal(corrupted.tokens, demo.tokens[swapped_rows])
    assert torch.equal(corrupted.io_tokens, demo.io_tokens[swapped_rows])
    assert torch.equal(corrupted.clean.io_tokens, demo.io_tokens)
    assert torch.equal(demo.answer_tokens, torch.stack([demo.io_tokens, demo.s_tokens], 1))


def test_paper_follows_the_papers_code(bpe: Any) -> None:
    data = IOIDataset.paper(bpe, 3000, seed=2)
    check_dataset(data[:50])
    assert not data.prepend_bos
    assert data.templates == stimuli.TEMPLATES[:7]
    assert data.name_pool == stimuli.PAPER_NAMES
    sizes = {key: len(rows) for key, rows in data.groups("template and order").items()}
    assert set(sizes) == {(t, o) for t in range(7) for o in ("ABBA", "BABA")}
    # 214 expected in each of the 14 groups, drawn independently: never all equal.
    assert all(150 < size < 280 for size in sizes.values())
    assert len(set(sizes.values())) > 1
    assert data.pair_ids.unique().numel() == 3000
    assert len(IOIDataset.paper(bpe, 10, order="ABBA").templates) == 15


def test_own_prompts(tokenizer: Any) -> None:
    texts = [
        "After Mary and John went to the park, John gave a drink to",
        "After John and Mary went to the park, John gave a drink to",
        "Then, Tom and James had a long argument. Afterwards Tom said to",
    ]
    data = IOIDataset.from_prompts(
        tokenizer, texts, [("Mary", "John"), ("Mary", "John"), ("James", "Tom")]
    )
    check_dataset(data)
    assert data.prompts == texts
    assert data.orders == ["ABBA", "BABA", "BABA"]
    assert data.template_ids.tolist() == [0, 0, 1]
    assert data.swap_order().prompts[0] == texts[1]


# --- counterfactuals -----------------------------------------------------------------------------


def test_signal_table_cell_by_cell(word: Any) -> None:
    texts = [
        "When Mary and John went to the shops, John gave the bag to",
        "When John and Mary went to the shops, John gave the bag to",
    ]
    data = IOIDataset.from_prompts(word, texts, [("Mary", "John")] * 2)

    def triples(other: IOIDataset) -> list[list[str]]:
        """The three names in the order of the text."""
        return [re.findall(r"(?:When|and|shops,) ([A-Z]\w+)", prompt) for prompt in other.prompts]

    assert triples(data) == [["Mary", "John", "John"], ["John", "Mary", "John"]]
    assert triples(data.flip(False, "original")) == triples(data)
    assert triples(data.flip(True, "original")) == [
        ["John", "Mary", "John"],
        ["Mary", "John", "John"],
    ]
    assert triples(data.flip(False, "inverted")) == [
        ["John", "Mary", "Mary"],
        ["Mary", "John", "Mary"],
    ]
    assert triples(data.flip(True, "inverted")) == [
        ["Mary", "John", "Mary"],
        ["John", "Mary", "Mary"],
    ]
    kept, inverted = triples(data.flip(False, "random")), triples(data.flip(True, "random"))
    assert kept[0][1] == kept[0][2] != kept[0][0]
    assert kept[1][0] == kept[1][2] != kept[1][1]
    assert not {"Mary", "John"} & {name for row in kept for name in row}
    assert inverted == [[b, a, c] for a, b, c in kept]
    assert triples(data.flip()) == triples(data.swap_order())
    assert data.flip(True, "inverted").prompts == data.swap_subject().prompts


@SLOW
@given(seed=st.integers(0, 2**32))
def test_identities_of_counterfactuals(bpe: Any, seed: int) -> None:
    data = IOIDataset.generate(bpe, 20, prefixes="bundled", seed=seed)
    for twice in (
        data.swap_subject().swap_subject(),
        data.swap_order().swap_order(),
        data.flip(False, "inverted").flip(False, "inverted"),
    ):
        assert twice.prompts == data.prompts
        assert torch.equal(twice.io_tokens, data.io_tokens)
        assert twice.orders == data.orders
        assert twice.clean is data
    other_way = data.swap_order().swap_subject()
    assert other_way.prompts == data.swap_subject().swap_order().prompts
    # The full exchange of a row's names is the other row of its pair.
    partner = [row + 1 - 2 * (row % 2) for row in range(20)]
    assert other_way.prompts == data[partner].prompts
    # Order is the dataset's own; the answer changes with the subject only.
    opposite = ["BABA" if order == "ABBA" else "ABBA" for order in data.orders]
    assert data.swap_order().orders == data.swap_subject().orders == opposite
    assert torch.equal(data.swap_order().io_tokens, data.io_tokens)
    assert torch.equal(data.swap_subject().io_tokens, data.s_tokens)
    assert torch.equal(data.swap_subject().s_tokens, data.io_tokens)
    changed = data.swap_subject().tokens != data.tokens
    assert changed.sum(dim=1).tolist() == [1] * 20
    assert torch.equal(changed.int().argmax(dim=1), data.positions["S2"])


def test_abc_names_are_unrelated(bpe: Any) -> None:
    data = IOIDataset.generate(bpe, 2000, names=FEW[:6])
    abc = data.abc(seed=7)
    for new, old in zip(abc.names, data.names, strict=True):
        assert len({*new, *old}) == 5
    # Six names, two of them taken: the other four stand equally often at each role.
    for role in range(3):
        counts = Counter(name[role] for name in abc.names)
        assert set(counts) == set(FEW[:6])
        assert all(250 < count < 420 for count in counts.values())
    assert abc.orders == data.orders
    assert all(torch.equal(abc.positions[role], data.positions[role]) for role in ROLES)
    again = abc.random_names()
    assert all(len({*name}) == 3 for name in again.names)
    assert again.clean is data


def test_random_draws_are_seeded_row_by_row(bpe: Any) -> None:
    data = IOIDataset.generate(bpe, 30)
    for draw in (IOIDataset.abc, IOIDataset.random_names):
        assert draw(data, 1).prompts == draw(data, 1).prompts
        assert draw(data, 1).prompts != draw(data, 2).prompts
        assert draw(data, 1)[:11].prompts == draw(data[:11], 1).prompts
    only = ["Mary", "John", "Tom", "James", "Dan", "Amy", "Martin"]
    assert {name for row in data.abc(names=only).names for name in row} <= set(only)


def test_history_names_what_was_done(bpe: Any) -> None:
    data = IOIDataset.generate(bpe, 4)
    assert data.history == ()
    assert data.swap_subject().swap_order().history == ("swap_subject", "swap_order")
    assert data.flip(True, "random").history == ("flip(position=True, token='random')",)
    assert "swap_subject" in repr(data.swap_subject())


# --- adversarial sentences -----------------------------------------------------------------------


def test_adversarial_sentences_go_before_the_second_clause(word: Any) -> None:
    texts = [
        "Then, Mary and John went to the store. John gave a ring to",
        "When John and Mary got a ring at the store, John decided to give it to",
        "Then, Mary and John had a long argument, and afterwards John said to",
        "Then Mary and John went to the store. After the lunch, John said to",
    ]
    data = IOIDataset.from_prompts(word, texts, [("Mary", "John")] * len(texts))
    about_io = data.adversarial("IO", ["[A] was tired."])
    assert about_io.prompts == [
        "Then, Mary and John went to the store. Mary was tired. John gave a ring to",
        "When John and Mary got a ring at the store, Mary was tired. John decided to give it to",
        "Then, Mary and John had a long argument, Mary was tired. and afterwards John said to",
        "Then Mary and John went to the store. Mary was tired. After the lunch, John said to",
    ]
    check_dataset(about_io)
    assert about_io.clean is about_io
    assert about_io.names == data.names
    assert torch.equal(about_io.positions["IO"], data.positions["IO"])
    assert torch.equal(about_io.positions["S2"], data.positions["S2"] + 4)
    about_s = data.adversarial("S", ["Then, [A] was tired."])
    assert "store. Then, John was tired. John gave" in about_s.prompts[0]
    # Random names are consistent, also in the sentence.
    renamed = about_io.random_names(1)
    assert [p.count(n.IO) for p, n in zip(renamed.prompts, renamed.names, strict=True)] == [2] * 4
    assert "Mary was tired. Mary gave" in about_io.swap_subject().prompts[0]


def test_adversarial_sentences_are_drawn(bpe: Any) -> None:
    data = IOIDataset.generate(bpe, 800)
    single, double = data.adversarial("IO"), data.adversarial("IO", pairs=True)
    endings = [sentence.removeprefix("[A] ") for sentence in stimuli.ADVERSARIAL_SENTENCES]
    for prompt in single.prompts:
        assert sum(prompt.count(ending) for ending in endings) == 1
    combinations = set()
    for prompt in double.prompts:
        used = sorted(
            (m.start(), ending)
            for ending in endings
            for m in re.finditer(re.escape(ending), prompt)
        )
        assert len(used) == 2
        combinations.add(tuple(ending for _, ending in used))
    assert len(combinations) == 25
    # The rows of a pair differ in their names only.
    bare = [
        prompt.replace(names.IO, "A").replace(names.S1, "B")
        for prompt, names in zip(double.prompts, double.names, strict=True)
    ]
    assert bare[::2] == bare[1::2]
    assert torch.equal(double.pair_ids[::2], double.pair_ids[1::2])
    assert data.adversarial("S", seed=1).prompts == data.adversarial("S", seed=1).prompts
    check_dataset(double[:40])


# --- inserted words ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "where", "wanted"),
    [
        ("[A] was tired.", "middle", "Then, Mary and John went. Mary was tired. John said to"),
        ("It was so.", "middle", "Then, Mary and John went. It was so. John said to"),
        ("[B] met [A].", "middle", "Then, Mary and John went. John met Mary. John said to"),
        (", like [A],", "after S2", "Then, Mary and John went. John, like Mary, said to"),
        ("and [B]", "after S2", "Then, Mary and John went. John and John said to"),
        ("After that [B] was tired.", "start",
         "After that John was tired. Then, Mary and John went. John said to"),
    ],
)  # fmt: skip
def test_words_are_inserted_and_roles_stay(word: Any, text: str, where: str, wanted: str) -> None:
    template = "Then, [A] and [B] went. [B] said to"
    data = IOIDataset.from_prompts(
        word,
        ["Then, Mary and John went. John said to", "Then, John and Mary went. Mary said to"],
        [("Mary", "John"), ("John", "Mary")],
        pair_ids=[0, 0],
    )
    assert template.replace("[A]", "Mary").replace("[B]", "John") == data.prompts[0]
    new = data.insert(text, where)
    assert new.prompts[0] == wanted
    check_dataset(new)
    assert new.clean is new and new.names == data.names
    fields = re.findall(r"\[([AB])\]", text)
    names = [[{"A": n.IO, "B": n.S1}[field] for field in fields] for n in new.names]
    assert [
        [new.str_tokens(i)[k].strip() for k in row] for i, row in enumerate(new.mentions)
    ] == names
    for name in fields:
        # In ABC prompts nothing is repeated, in prompts with other names the same is.
        for other, distinct in ((new.abc(), 3 + len(fields)), (new.random_names(), 2)):
            check_counterfactual(other, new)
            standing = {other.str_tokens(0)[k] for k in other.mentions[0].tolist()}
            assert len(standing | {f" {n}" for n in other.names[0]}) == distinct, name


def test_a_third_name_is_one_for_a_pair_and_none_of_its_own(bpe: Any) -> None:
    data = IOIDataset.generate(bpe, 200, prefixes="bundled")
    for new in (
        data.insert("[C] had a good day. [C] was tired."),
        data.insert("[C] had a good day.").insert("Then [C] was tired.", "start"),
    ):
        check_dataset(new[:20])
        third = [{new.str_tokens(i)[k] for k in row} for i, row in enumerate(new.mentions.tolist())]
        assert all(len(names) == 1 for names in third)
        assert third[::2] == third[1::2] and len({name for names in third for name in names}) > 20
        for i, names in enumerate(third):
            assert not names & {f" {name}" for name in new.names[i]}
        for other in (new.random_names(3), new.redraw(seed=3), new.abc(3)):
            again = [
                [other.str_tokens(i)[k] for k in r] for i, r in enumerate(other.mentions.tolist())
            ]
            own = [{f" {name}" for name in names} for names in other.names]
            assert all(not set(a) & b for a, b in zip(again, own, strict=True))
    assert data.insert("[C] slept.", seed=1).prompts != data.insert("[C] slept.").prompts


def test_what_is_inserted_twice_keeps_its_places(bpe: Any) -> None:
    data = IOIDataset.generate(bpe, 40, seed=2)
    for new in (
        data.insert("[A] was tired.").insert("Then [B] was tired.", "start"),
        data.insert("[A] was tired.").insert("[B] was tired."),
        data.insert(", a friend of [A],", "after S2").insert("[B] was tired."),
    ):
        check_dataset(new)
        for i, (first, second) in enumerate(new.mentions.tolist()):
            found = new.str_tokens(i)[first], new.str_tokens(i)[second]
            assert found == (f" {new.names[i].IO}", f" {new.names[i].S1}")


# --- prefixes ------------------------------------------------------------------------------------


def fake_hub(texts: list[str]) -> Callable[..., Any]:
    class Stream:
        def shuffle(self, seed: int, buffer_size: int) -> list[dict[str, str]]:
            order = np.random.default_rng(seed).permutation(len(texts))
            return [{"text": texts[i]} for i in order]

    def load_dataset(path: str, revision: str, split: str, streaming: bool) -> Stream:
        assert streaming
        return Stream()

    return load_dataset


def test_openwebtext_sentences_are_filtered(bpe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    good = "Rain covered the lower road near the river."
    documents = [
        # A surname first, a capitalised word inside, a known name, too short, a question:
        # each is refused, and the last sentence is the one to take.
        "Obama gave a short speech here. The people of Boston went home early. Mark my words "
        f"and mark them well. It rains. Is this a full sentence? {good} We like rain.",
        "The snow and the rain were very long " + "and long " * 60 + "to the end.",
        "A heading without a full stop",
        "Most of the birds stay here and I stay too, at most a year.",
    ]
    monkeypatch.setattr("datasets.load_dataset", fake_hub(documents))
    found = openwebtext_sentences(bpe, 2, seed=1)
    assert sorted(found) == [
        "Most of the birds stay here and I stay too, at most a year.",
        good,
    ]
    data = IOIDataset.generate(bpe, 4, prefixes="openwebtext", seed=1)
    check_dataset(data)
    assert all(prompt.startswith(tuple(found)) for prompt in data.prompts)
    with pytest.raises(RuntimeError, match=r"only 2 of 3 sentences.*prefixes='bundled'"):
        openwebtext_sentences(bpe, 3)


def test_openwebtext_out_of_reach_is_said(bpe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("datasets.load_dataset", no_network)
    with pytest.raises(RuntimeError, match=r"could not be read.*prefixes='bundled'"):
        IOIDataset.generate(bpe, 4, prefixes="openwebtext")


def test_any_iterable_of_sentences(word: Any) -> None:
    data = IOIDataset.generate(
        word, 30, prefixes=(sentence for sentence in ("The  river was\nquiet. ", "It was cold."))
    )
    check_dataset(data)
    assert {prompt.split(".")[0] for prompt in data.prompts} == {
        "The river was quiet",
        "It was cold",
    }


# --- reading a dataset ---------------------------------------------------------------------------


def test_slicing_selects_rows_of_everything(bpe: Any) -> None:
    data = IOIDataset.generate(bpe, 20, prefixes="bundled")
    corrupted = data.swap_subject()
    mask = torch.tensor([order == "ABBA" for order in data.orders])
    abba = mask.nonzero()[:, 0].tolist()
    for index, rows in (
        (slice(2, 9), list(range(2, 9))),
        (mask, abba),
        (mask.tolist(), abba),
        (mask.numpy(), abba),
        ([5, 3, 3], [5, 3, 3]),
        (torch.tensor([-1]), [19]),
        (4, [4]),
        (-4, [16]),
    ):
        part = corrupted[index]
        assert part.prompts == [corrupted.prompts[row] for row in rows]
        assert torch.equal(part.tokens, corrupted.tokens[rows])
        assert part.orders == [corrupted.orders[row] for row in rows]
        assert part.names == [corrupted.names[row] for row in rows]
        for role in ROLES:
            assert torch.equal(part.positions[role], corrupted.positions[role][rows])
        assert torch.equal(part.template_ids, corrupted.template_ids[rows])
        assert torch.equal(part.pair_ids, corrupted.pair_ids[rows])
        assert part.clean.prompts == [data.prompts[row] for row in rows]
        assert part.history == corrupted.history
    assert [len(row) for row in data] == [1] * 20


def test_groups_partition_the_rows(bpe: Any) -> None:
    data = IOIDataset.generate(bpe, 64)
    for by in ("template", "order", "template and order"):
        groups = data.groups(by)  # type: ignore[arg-type]
        assert sorted(torch.cat(list(groups.values())).tolist()) == list(range(64))
    for template, rows in data.groups().items():
        assert data.template_ids[rows].tolist() == [template] * len(rows)
    for (template, order), rows in data.groups("template and order").items():
        assert set(data[rows].orders) == {order}
        assert data[rows].template_ids.tolist() == [template] * len(rows)


def test_gather_takes_each_rows_own_position(bpe: Any) -> None:
    data = IOIDataset.generate(bpe, 12, prefixes="bundled")
    values = torch.randn(*data.tokens.shape, 3, 2, generator=torch.Generator().manual_seed(0))
    for role in ROLES:
        got = data.gather(values, role)
        assert got.shape == (12, 3, 2)
        for row in range(12):
            assert torch.equal(got[row], values[row, data.positions[role][row]])
    assert torch.equal(data.gather(data.tokens, "IO"), data.io_tokens)


def test_padding_may_be_the_bos_token(bpe: Any) -> None:
    assert bpe.pad_token_id is None
    data = IOIDataset.generate(bpe, 30)
    assert len(set(data.lengths.tolist())) > 1
    padding = data.tokens[data.attention_mask == 0]
    assert set(padding.tolist()) == {bpe.bos_token_id}
    assert torch.equal(data.attention_mask.sum(dim=1), data.lengths)


def test_str_tokens_and_to(word: Any) -> None:
    demo = IOIDataset.demo(word)
    assert demo.str_tokens(0)[:4] == ["<|endoftext|>", "When", " John", " and"]
    assert "".join(demo.str_tokens(3)[1:]) == demo.prompts[3]
    moved = demo.swap_subject().to("meta")
    tensors = [moved.tokens, moved.lengths, moved.io_tokens, *moved.positions.values()]
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert moved.clean.tokens.device.type == "meta"
    assert demo.tokens.device.type == "cpu"


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_here_is_refused(word: Any, device: str) -> None:
    with pytest.raises(ValueError, match=rf"no device '{device}' here; .*model.cfg.device"):
        IOIDataset.demo(word).to(device)


# --- on a model ----------------------------------------------------------------------------------


def test_on_a_real_model_padding_does_nothing(bpe: Any, tmp_path: Path) -> None:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(bpe), n_layer=1, n_head=2, n_embd=16, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    bpe.save_pretrained(tmp_path)
    model = TransformerBridge.boot_transformers(str(tmp_path), device="cpu")
    model.enable_compatibility_mode(disable_warnings=True)
    model.eval()
    data = IOIDataset.generate(model.tokenizer, 6, prefixes="bundled")
    with torch.no_grad():
        logits = model(data.tokens)
        at_end = data.gather(logits, "END")
        for row in range(6):
            alone = model(data.tokens[row : row + 1, : data.lengths[row]])[0, -1]
            assert torch.allclose(at_end[row], alone, atol=1e-5)


# --- refusals ------------------------------------------------------------------------------------


def demo_of(tokenizer: Any) -> IOIDataset:
    return IOIDataset.demo(tokenizer)


def generate_from(template: str, tokenizer: Any) -> IOIDataset:
    return IOIDataset.generate(tokenizer, 4, templates=[template])


# What is said of a template that cannot be used.
BAD_TEMPLATES = {
    "Then, [A] went home. [A] spoke to": r"lacks the field \[B\]",
    "Then, [A] and [B] left to [A]": r"\[B\] once more",
    "Then [A] and [B] saw [C]. [B] said to": r"unknown field \[C\]",
    "[A] and [B] met. [B] said to": r"a word and a space before \[A\]",
    "Then [A]s and [B] met. [B] said to": r"directly after \[A\]",
    "<|endoftext|> [B] and [A] met. [B] saw": "holds the special token",
}

REFUSALS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "two-token name": (
        lambda t: IOIDataset.generate(t, 4, names=["Mary", "John", "Tom", "Johnqzx"]),
        r"The name 'Johnqzx' is \d+ tokens .*try John, ",
    ),
    "few names": (lambda t: IOIDataset.generate(t, 4, names=["Mary", "John"]), "Only 2 usable"),
    "repeated name": (
        lambda t: IOIDataset.generate(t, 4, names=["Mary", "John", "Mary", "Tom"]),
        "'Mary' is listed twice",
    ),
    "one text for names": (lambda t: IOIDataset.generate(t, 4, names="Mary"), "list of names"),
    "odd n": (lambda t: IOIDataset.generate(t, 5), "even .*or paired=False"),
    "zero n": (lambda t: IOIDataset.generate(t, 0), "positive number"),
    "fractional n": (lambda t: IOIDataset.generate(t, cast(int, 2.5)), "positive number"),
    "order": (lambda t: IOIDataset.generate(t, 4, order="ABAB"), "'ABBA', 'BABA' or 'mixed'"),
    "templates by an unknown name": (
        lambda t: IOIDataset.generate(t, 4, templates="papers"),
        "no set of templates called 'papers'",
    ),
    "no templates": (lambda t: IOIDataset.generate(t, 4, templates=[]), "templates is empty"),
    **{
        f"the template {text!r}": (partial(generate_from, text), message)
        for text, message in BAD_TEMPLATES.items()
    },
    "prefixes by an unknown name": (
        lambda t: IOIDataset.generate(t, 4, prefixes="wikipedia"),
        "'bundled', 'openwebtext' or a list",
    ),
    "empty prefix": (lambda t: IOIDataset.generate(t, 4, prefixes=["", "a"]), "no empty ones"),
    "noun with punctuation": (
        lambda t: IOIDataset.generate(t, 4, places=["St. Paul"]),
        "'St. Paul' in places must be a plain word",
    ),
    "no objects": (lambda t: IOIDataset.generate(t, 4, objects=[]), "objects must hold"),
    "unknown role": (lambda t: demo_of(t).positions["S3"], "'S3' is not a role.*S1\\+1"),
    "gather by an unknown role": (
        lambda t: demo_of(t).gather(demo_of(t).tokens, "end"),
        "'end' is not a role",
    ),
    "gather from another run": (
        lambda t: demo_of(t).gather(torch.zeros(8, 14, 3), "END"),
        r"\(8, 14, 3\).*BOS",
    ),
    "grouping": (lambda t: demo_of(t).groups("place"), "grouped by 'template'"),  # type: ignore[arg-type]
    "mask of another length": (lambda t: demo_of(t)[[True, False]], "8 rows"),
    "rows by text": (lambda t: demo_of(t)[cast(list[int], ["a"])], "mask of truth values"),
    "nothing selected": (lambda t: demo_of(t)[:0], "No row is selected"),
    "nothing listed": (lambda t: demo_of(t)[[]], "No row is selected"),
    "token flip": (lambda t: demo_of(t).flip(token="swapped"), "'original', 'random'"),
    "subject of ABC": (lambda t: demo_of(t).abc().swap_subject(), "named twice.*data.clean"),
    "flip of ABC": (lambda t: demo_of(t).abc().flip(), "named twice"),
    "names used up": (
        lambda t: IOIDataset.generate(t, 4, names=["Mary", "John", "Tom"]).abc(),
        "only 3 names.*longer list",
    ),
    "adversarial about nobody": (lambda t: demo_of(t).adversarial("S2"), "'IO' or 'S'"),
    "adversarial twice": (
        lambda t: demo_of(t).adversarial().adversarial(),
        "clean prompts only",
    ),
    "adversarial counterfactual": (
        lambda t: demo_of(t).swap_order().adversarial(),
        "clean prompts only",
    ),
    "adversarial without a name": (
        lambda t: demo_of(t).adversarial(sentences=["It rained."]),
        r"must hold \[A\]",
    ),
    "adversarial without a place": (
        lambda t: IOIDataset.generate(
            t, 4, templates=["Then [A] and [B] met and [B] said to"]
        ).adversarial(),
        "no full stop or comma",
    ),
    "inserted nothing": (lambda t: demo_of(t).insert(" "), "some words"),
    "inserted somewhere": (lambda t: demo_of(t).insert("so", "end"), "'start', 'middle' or"),
    "inserted field": (lambda t: demo_of(t).insert("[D] was tired."), r"\[C\] \(a third name\)"),
    "inserted letters": (lambda t: demo_of(t).insert("x[A] was"), "a word of its own"),
    "inserted name at the start": (
        lambda t: demo_of(t).insert("[A] was tired.", "start"),
        "begins with a name",
    ),
    "inserted into a counterfactual": (
        lambda t: demo_of(t).swap_order().insert("So it was."),
        "clean prompts only",
    ),
    "no third name": (
        lambda t: (
            IOIDataset.generate(t, 4, names=["Mary", "John", "Tom"]).insert("[C] slept.").abc()
        ),
        "only 3 names",
    ),
    "prompt without a second S": (
        lambda t: IOIDataset.from_prompts(t, ["Then John told Mary to"], [("Mary", "John")]),
        r"IO \(Mary\) once and S \(John\) twice",
    ),
    "prompt that names IO twice": (
        lambda t: IOIDataset.from_prompts(
            t, ["Then Mary and John met Mary. John said to"], [("Mary", "John")]
        ),
        "would be a guess",
    ),
    "prompt with a BOS of its own": (
        lambda t: IOIDataset.from_prompts(
            t, ["<|endoftext|>When Mary and John met, John spoke to"], [("Mary", "John")]
        ),
        r"holds the special token '<\|endoftext\|>'; leave it out",
    ),
    "prefix with a BOS of its own": (
        lambda t: IOIDataset.generate(t, 4, prefixes=["<|endoftext|>It rained."]),
        "holds the special token",
    ),
    "name that is a special token": (
        lambda t: IOIDataset.generate(t, 4, names=["Mary", "John", "<|endoftext|>"]),
        "special token",
    ),
    "one text for prompts": (
        lambda t: IOIDataset.from_prompts(t, "When Mary and John met", [("Mary", "John")]),
        "prompts must be a list",
    ),
    "a set of prompts": (
        lambda t: IOIDataset.from_prompts(t, {"a", "b"}, [("Mary", "John")] * 2),
        "prompts must be a list",
    ),
    "prompts that are no texts": (
        lambda t: IOIDataset.from_prompts(t, cast(Any, [7]), [("Mary", "John")]),
        "must be text, not 7",
    ),
    "one pair for answers": (
        lambda t: IOIDataset.from_prompts(t, ["a", "b"], cast(Any, ("Mary", "John"))),
        r"must be a pair of names \(IO, S\), .* not 'Mary'",
    ),
    "prompts without answers": (
        lambda t: IOIDataset.from_prompts(t, ["a", "b"], [("Mary", "John")]),
        "2 prompts but 1 answers",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_refused_in_one_sentence(bpe: Any, case: str) -> None:
    attempt, message = REFUSALS[case]
    with pytest.raises(ValueError, match=message) as caught:
        attempt(bpe)
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda t: "gpt2", "not the text 'gpt2'; load one with transformers.AutoTokenizer"),
        (lambda t: 4, "not int; give a Hugging Face tokenizer"),
        (lambda t: ["When"], "not list; give a Hugging Face tokenizer"),
        (lambda t: None, "not NoneType"),
        (lambda t: SimpleNamespace(tokenizer=t), r"give its tokenizer, .*\(model.tokenizer\)"),
        (lambda t: SimpleNamespace(tokenizer=None, cfg=1), "it has none; load it with one"),
    ],
)
def test_what_is_no_tokenizer_is_refused(
    bpe: Any, given: Callable[[Any], Any], message: str
) -> None:
    makers: list[Callable[[Any], Any]] = [
        lambda t: IOIDataset.generate(t, 4),
        lambda t: IOIDataset.paper(t, 4),
        IOIDataset.demo,
        lambda t: IOIDataset.from_prompts(t, ["a"], [("Mary", "John")]),
    ]
    for make in makers:
        with pytest.raises(ValueError, match=message) as caught:
            make(given(bpe))
        assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


UNORDERED = """
from transformers import AutoTokenizer
from ioi_helpers import IOIDataset
from ioi_helpers.bundled import bundled_folder
from tests.real_tokenizers import tokenizer
names = {"John", "Mary", "Tom", "Alice", "James", "Anna"}
data = IOIDataset.generate(
    AutoTokenizer.from_pretrained(bundled_folder("ioi-mini")),
    8,
    names=frozenset(names),
    places={"park", "school", "store"},
    objects={"ring", "bone", "book"},
    prefixes={"The dog slept.", "It was late.", "The lake is calm."},
    templates={"When [B] and [A] met, [B] gave a [OBJECT] to", "Then, [B] and [A] sat. [B] saw"},
)
distracted = data.adversarial(sentences={"[A] was tired.", "[A] had a good day."})
print(data.prompts, data.abc(names=names).prompts, distracted.prompts)
llama = IOIDataset.generate(tokenizer("llama"), 8, names=names, places={"park", "school", "store"})
print(llama.prompts, llama.positions)
"""


def test_the_order_of_a_set_does_not_matter() -> None:
    """It differs from process to process, with the seed of Python's hashes."""
    printed = {
        subprocess.run(
            [sys.executable, "-c", UNORDERED],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.getcwd()},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(printed) == 1 and "John" in printed.pop()


# --- on disk -------------------------------------------------------------------------------------


def same(one: IOIDataset, other: IOIDataset) -> bool:
    names = ("templates", "name_pool", "prepend_bos", "history", "names", "orders", "prompts")
    tensors = ("tokens", "lengths", "answer_tokens", "pair_ids", "template_ids")
    return (
        all(getattr(one, name) == getattr(other, name) for name in names)
        and all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors)
        and all(torch.equal(one.positions[role], other.positions[role]) for role in ROLES)
    )


@pytest.mark.parametrize(
    "make",
    [
        IOIDataset.demo,
        lambda t: IOIDataset.generate(t, 10, prefixes="bundled", prepend_bos=False),
        lambda t: IOIDataset.generate(t, 10, prefixes="bundled").swap_subject().swap_order(),
        lambda t: IOIDataset.generate(t, 10, prefixes="bundled").abc()[[3, 1]],
        lambda t: IOIDataset.generate(t, 10).adversarial(pairs=True).random_names(),
    ],
)
def test_saved_and_loaded_it_is_the_same(
    bpe: Any, tmp_path: Path, make: Callable[[Any], IOIDataset]
) -> None:
    data = make(bpe)
    data.save(tmp_path / "data.safetensors")
    again = IOIDataset.load(tmp_path / "data.safetensors", bpe)
    assert type(again) is IOIDataset and same(again, data) and same(again.clean, data.clean)
    assert (again.clean is again) == (data.clean is data)
    # Counterfactuals that are made of it are the same too.
    for method in ("abc", "swap_order", "random_names"):
        assert same(getattr(again, method)(), getattr(data, method)())


def test_a_dataset_on_another_device_is_loaded_on_the_cpu(bpe: Any, tmp_path: Path) -> None:
    data = IOIDataset.demo(bpe).swap_order()
    data.to("meta").save(tmp_path / "data")
    assert same(IOIDataset.load(tmp_path / "data", bpe), data)


def test_what_is_no_dataset_of_this_tokenizer_is_refused(
    bpe: Any, word: Any, tmp_path: Path
) -> None:
    for prepend_bos in (True, False):
        IOIDataset.demo(bpe, prepend_bos=prepend_bos).save(tmp_path / "data")
        with pytest.raises(ValueError, match="made with another tokenizer") as caught:
            IOIDataset.load(tmp_path / "data", word)
        assert str(caught.value).endswith(".")
    save_file({"a": torch.ones(1)}, tmp_path / "other")
    (tmp_path / "text").write_text("hello")
    for name, message in (("other", "not a saved IOIDataset"), ("text", "no safetensors")):
        with pytest.raises(ValueError, match=message):
            IOIDataset.load(tmp_path / name, bpe)
    with pytest.raises(ValueError, match="must be a tokenizer"):
        IOIDataset.load(tmp_path / "data", None)  # type: ignore[arg-type]


def test_rows_that_do_not_exist(bpe: Any) -> None:
    with pytest.raises(IndexError, match="Row 8 does not exist; the dataset has 8 rows"):
        IOIDataset.demo(bpe)[8]


def test_a_word_the_tokenizer_lacks_is_named(word: Any) -> None:
    with pytest.raises(ValueError, match="Zorblax"):
        IOIDataset.generate(word, 4, names=["Mary", "John", "Zorblax"])


class Imitation:
    """Does as another tokenizer in all but what a subclass changes."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def test_bundled_names_that_are_not_single_tokens_are_left_out(bpe: Any) -> None:
    class Fussy(Imitation):
        """Splits one of the bundled names, as another model's tokenizer may."""

        def __call__(self, texts: list[str], **kwargs: Any) -> Any:
            encoded = bpe(texts, **kwargs)["input_ids"]
            split = [[5, 6] if text == " Mary" else ids for text, ids in zip(texts, encoded)]
            return {"input_ids": split}

    pool = IOIDataset.generate(Fussy(bpe), 4).name_pool  # type: ignore[arg-type]
    assert set(stimuli.NAMES) - set(pool) == {"Mary"}


def test_unknown_token_is_not_taken_for_a_name(bpe: Any) -> None:
    class Unknowing(Imitation):
        unk_token_id = bpe.encode(" Tom")[0]

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return bpe(*args, **kwargs)

    with pytest.raises(ValueError, match="'Tom' is unknown to this tokenizer"):
        IOIDataset.generate(Unknowing(bpe), 4, names=["Mary", "John", "Tom"])  # type: ignore[arg-type]


def test_a_tokenizer_that_works_otherwise_is_refused(bpe: Any) -> None:
    class Merging(Imitation):
        """Joins words: the tokens of a text are not those of its pieces."""

        def __call__(self, texts: list[str], **kwargs: Any) -> Any:
            encoded = bpe(texts, **kwargs)["input_ids"]
            return {"input_ids": [ids if len(ids) < 8 else ids[1:] for ids in encoded]}

    with pytest.raises(ValueError, match="splits .* as a whole otherwise"):
        IOIDataset.generate(Merging(bpe), 4)  # type: ignore[arg-type]


def test_no_bos_token(bpe: Any) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=bpe.backend_tokenizer)
    with pytest.raises(ValueError, match="pass prepend_bos=False"):
        IOIDataset.generate(bare, 4)
    check_dataset(IOIDataset.generate(bare, 4, prepend_bos=False))


def test_nothing_is_left_public_by_accident() -> None:
    """The package's public classes and functions are the documented ones."""
    own = {
        name
        for name, value in vars(dataset_module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", "").startswith(dataset_module.__name__)
    }
    assert own == {
        "IOIDataset", "Names", "PromptDataset", "RolePositions", "TwoAnswerData",
        "openwebtext_sentences",
    }  # fmt: skip
    assert set(dataset_module.__all__) == own | {"OPENWEBTEXT", "ORDERS", "ROLES"}
