"""The bundled models' words and training text."""

from __future__ import annotations

import hashlib
import json
import re
from itertools import combinations
from pathlib import Path

import pytest

from ioi_helpers import stimuli
from ioi_helpers.bundled import bundled_folder
from ioi_helpers.bundled.tokenizer import BOS, WordTokenizer, split
from ioi_helpers.dataset import IOIDataset
from training import lexicon
from training.corpus import Corpus, held_out_pair, held_out_prefixes
from training.vocabulary import save_tokenizer, vocabulary

GPT2 = Path(__file__).parents[2] / "shared" / "gpt2-skeleton"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> WordTokenizer:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"), 256)


def test_vocabulary_is_large_and_without_repeats() -> None:
    tokens = vocabulary()
    assert tokens[0] == BOS
    assert len(tokens) == len(set(tokens)) >= 2000
    assert len(stimuli.NAMES) == len(set(stimuli.NAMES)) >= 100


@pytest.mark.parametrize("name", ["ioi-mini", "ioi-plain"])
def test_shipped_tokenizer_is_the_one_that_the_code_builds(name: str) -> None:
    assert WordTokenizer.from_pretrained(bundled_folder(name)).get_vocab() == {
        token: i for i, token in enumerate(vocabulary())
    }


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def test_vocabulary_and_text_are_those_that_the_bundled_models_were_trained_on() -> None:
    """To the last bit: the models that ship cannot be made again from other text."""
    assert digest(vocabulary()) == "69e40f916f64bc09"
    for seed, expected in ((0, "9d49ca5c6adc7a99"), (7, "eee93debe251a75a")):
        corpus = Corpus(seed, context=256)
        documents = [corpus.document() for _ in range(300)]
        prompts = [corpus.prompt() for _ in range(100)]
        documents_and_prompts = [[d.ids, d.weights] for d in documents] + [vars(p) for p in prompts]
        repeats = [corpus.repeated() for _ in range(50)]
        assert digest(documents_and_prompts + [[d.ids, d.weights] for d in repeats]) == expected


def test_comments_and_blank_lines_of_word_files_are_no_words(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("# where from\none two\n\n three\n# and this\n")
    assert stimuli.read_words(file) == ("one", "two", "three")
    assert stimuli.read_lines(file) == ("one two", " three")


def test_every_published_list_names_its_source() -> None:
    for file in Path(stimuli.__file__).parent.glob("*.json"):
        for one in json.loads(file.read_text(encoding="utf8")).values():
            assert one["source"].endswith(".") and one["entries"]


def test_covers_every_stimulus(tokenizer: WordTokenizer) -> None:
    sentences = [*stimuli.DEMO_PROMPTS, *stimuli.PREFIXES]
    for template in (*stimuli.TEMPLATES, *stimuli.DEMO_TEMPLATES, *stimuli.ADVERSARIAL_SENTENCES):
        for name in stimuli.NAMES:
            filled = re.sub(r"\[[AB]\]", name, template)
            sentences.append(filled.replace("[PLACE]", "store").replace("[OBJECT]", "ring"))
    for sentence in sentences:
        ids = tokenizer(sentence)["input_ids"]
        assert tokenizer.decode(ids) == sentence
    for word in (*stimuli.NAMES, *stimuli.PLACES, *stimuli.OBJECTS):
        assert len(tokenizer(f" {word}")["input_ids"]) == 1


def test_dataset_and_its_counterfactuals_tokenise(tokenizer: WordTokenizer) -> None:
    data = IOIDataset.generate(tokenizer, 60, prefixes="bundled", seed=1)
    for each in (data, data.abc(), data.swap_order(), data.swap_subject(), data.random_names()):
        for row, prompt in enumerate(each.prompts):
            assert tokenizer(BOS + prompt)["input_ids"] == (
                each.tokens[row, : each.lengths[row]].tolist()
            )


def test_text_round_trips(tokenizer: WordTokenizer) -> None:
    text = "When John's dog didn't come, Mary gave \"the ring\" to (5) people; why?"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_an_unknown_word_is_named_with_near_ones(tokenizer: WordTokenizer) -> None:
    with pytest.raises(ValueError, match=r"' resturant' \(near: ' restaurant'") as refusal:
        tokenizer("Mary went to the resturant")
    assert str(refusal.value).count(".") == 1, "one sentence"
    with pytest.raises(ValueError, match="' Zorblax'"):
        tokenizer(["Mary went home", "Mary met Zorblax"])
    with pytest.raises(ValueError, match=r"lacks 'dog' \(near: ' dog'"):
        tokenizer("dog food")


@pytest.mark.skipif(not GPT2.is_dir(), reason="GPT-2's tokenizer is not on this machine")
def test_names_places_and_objects_are_single_tokens_of_gpt2() -> None:
    from transformers import AutoTokenizer

    gpt2 = AutoTokenizer.from_pretrained(GPT2)
    words = (*stimuli.NAMES, *stimuli.PLACES, *stimuli.OBJECTS)
    assert [word for word in words if len(gpt2.encode(f" {word}")) != 1] == []
    assert max(len(gpt2.encode(prefix)) for prefix in stimuli.PREFIXES) <= 50


def test_prefixes_hold_no_name() -> None:
    names = set(stimuli.NAMES)
    for prefix in stimuli.PREFIXES:
        assert not names & set(re.findall(r"[A-Za-z]+", prefix))
        assert prefix.endswith(".")


def test_every_word_occurs_in_training() -> None:
    corpus = Corpus(seed=0, context=256)
    seen: set[int] = set()
    for _ in range(4000):
        seen.update(corpus.document().ids)
    assert seen == set(range(len(vocabulary())))


def test_training_prompts_know_their_roles_and_hold_nothing_back() -> None:
    corpus = Corpus(seed=3, context=256)
    tokens = vocabulary()
    orders = []
    kept_back = set(held_out_prefixes())
    for _ in range(500):
        prompt = corpus.prompt()
        first, second, s2 = (
            tokens[prompt.ids[i]] for i in (prompt.first, prompt.second, prompt.s2)
        )
        assert s2 == (second if prompt.second_is_subject else first)
        assert first != second
        assert not held_out_pair(first.strip(), second.strip())
        text = "".join(tokens[i] for i in prompt.ids)
        assert not any(sentence in text for sentence in kept_back)
        assert prompt.end == len(prompt.ids) - 1 < 256
        orders.append(prompt.second_is_subject)
    assert 0.4 < sum(orders) / len(orders) < 0.6


def test_demo_pairs_are_held_out_and_about_a_tenth_of_all() -> None:
    assert all(held_out_pair(*pair) and held_out_pair(*pair[::-1]) for pair in stimuli.DEMO_PAIRS)
    pairs = list(combinations(stimuli.NAMES, 2))
    assert 0.08 < sum(held_out_pair(a, b) for a, b in pairs) / len(pairs) < 0.12


def test_s_is_the_answer_in_three_percent() -> None:
    corpus = Corpus(seed=5, context=256)
    names = corpus.name_ids
    wrong = total = 0
    for _ in range(3000):
        document = corpus.answered_prompt()
        answer_at = max(i for i, weight in enumerate(document.weights) if weight > 1)
        named = [token for token in document.ids[:answer_at] if token in names]
        total += 1
        wrong += document.ids[answer_at] == named[-1]
    assert 0.02 < wrong / total < 0.04


def test_same_seed_same_text() -> None:
    one, other = Corpus(7, 256), Corpus(7, 256)
    assert [one.document() for _ in range(50)] == [other.document() for _ in range(50)]
    assert Corpus(8, 256).document() != Corpus(7, 256).document()


def test_repeats_count_only_where_the_answer_can_be_known() -> None:
    document = Corpus(2, 256).repeated(20)
    for i, weight in enumerate(document.weights):
        if weight:
            earlier = document.ids[1 : i - 1]
            assert document.ids[i - 1] in earlier and document.ids[i] in document.ids[:i]


def test_plurals_and_tenses() -> None:
    assert [lexicon.plural(w) for w in ("city", "box", "boy", "woman")] == [
        "cities",
        "boxes",
        "boys",
        "women",
    ]
    assert [lexicon.past(w) for w in ("carry", "play", "bake")] == ["carried", "played", "baked"]
    assert lexicon.participle("bake") == "baking"


def test_split_keeps_every_character() -> None:
    text = "Then, Mary's dog (the big one) ran."
    assert "".join(split(text)) == text
