"""Notebook 12's prompts, under tokenizers that no bundled model has.

The notebook is for any model, and its behaviours were written for the words of two. Here the cells
that make prompts run on tokenizers alone.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from ioi_helpers import stimuli
from ioi_helpers.bundled import bundled_folder
from ioi_helpers.bundled.tokenizer import WordTokenizer
from notebooks.tools.execution import find_notebooks
from notebooks.tools.stored_outputs import code_cells, read
from tests.real_tokenizers import tokenizer

GPT2 = Path(__file__).parents[2] / "shared" / "gpt2-skeleton"
MAKE_PROMPTS = ("import pandas", "class Row(", "CANDIDATES = {", "MINE = []", "VARIANTS = {")


def prompts_of(words: Any) -> dict[str, Any]:
    """What the cells leave behind that make prompts, with a model that is a tokenizer alone."""
    model = SimpleNamespace(tokenizer=words, cfg=SimpleNamespace(device="cpu"))
    names: dict[str, Any] = {"model": model}
    (path,) = find_notebooks(["12"])
    cells = code_cells(read(path))
    for beginning in MAKE_PROMPTS:
        (cell,) = (cell for cell in cells if beginning in cell.source)
        exec(cell.source, names)
    return names


def left_out(said: str) -> set[str]:
    return {line.split(":")[0] for line in said.splitlines() if ": left out, " in line}


@cache
def shipped() -> dict[str, Any]:
    return prompts_of(WordTokenizer.from_pretrained(bundled_folder("ioi-mini")))


@pytest.mark.skipif(not GPT2.is_dir(), reason="GPT-2's tokenizer is not at hand")
def test_gpt2_has_every_behaviour_and_every_variant(capsys: pytest.CaptureFixture[str]) -> None:
    names = prompts_of(AutoTokenizer.from_pretrained(GPT2))
    assert list(names["candidates"]) == list(names["CANDIDATES"])
    for variants in names["VARIANTS"].values():
        assert list(names["prepared"](names["model"], variants, 20, 2)) == list(variants)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", ["llama", "qwen"])  # a space before a text; no BOS
def test_what_a_tokenizer_does_not_allow_is_left_out(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """These were trained on names and places; of the other words many are several tokens."""
    words = tokenizer(kind)
    assert len(set(words(" Crystal", add_special_tokens=False)["input_ids"])) > 1
    names = prompts_of(words)
    assert set(names["CANDIDATES"]) - set(names["candidates"]) == left_out(capsys.readouterr().out)
    data, _ = names["candidates"]["the other person"]
    assert data.prepend_bos == (words.bos_token_id is not None)
    variants = names["VARIANTS"]["the other person"]
    ready = names["prepared"](names["model"], variants, 20, 2)
    assert ready and set(variants) - set(ready) == left_out(capsys.readouterr().out)


def test_names_of_several_tokens_where_a_text_begins_are_not_drawn() -> None:
    class CutAtTheStart:
        """Half of the names are two tokens without a space before them, as many of GPT-2's are."""

        def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
            cut = set(stimuli.NAMES[::2])
            ids = {text: [0] * (2 if text in cut else len(text.split())) for text in texts}
            return {"input_ids": [ids[text] for text in texts]}

    one_token = shipped()["one_token"]
    assert one_token(CutAtTheStart(), stimuli.NAMES, "") == list(stimuli.NAMES[1::2])
    assert one_token(CutAtTheStart(), stimuli.NAMES) == list(stimuli.NAMES)


def test_one_bad_variant_stops_nothing_unless_it_was_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = shipped()
    make, prepared = names["both_ways"], names["prepared"]
    wanted = {
        "uneven": make("Jason gave it to", "Then Tyler gave it to", " Tyler", " Jason"),
        "even": make("Jason gave it to", "Tyler gave it to", " Tyler", " Jason"),
    }
    assert list(prepared(names["model"], wanted, 1, 0)) == ["even"]
    assert "left out, 'Jason gave it to' has 5 tokens and its counterfactual 6." in (
        capsys.readouterr().out
    )
    with pytest.raises(ValueError, match="has 5 tokens"):
        prepared(names["model"], wanted, 1, 0, must="uneven")


def test_each_kind_is_searched_and_tested_though_they_alternate() -> None:
    names = shipped()
    rows = []
    for i in range(20):
        a, b = stimuli.NAMES[2 * i], stimuli.NAMES[2 * i + 1]
        for kind in names["GIVING"]:
            one, other = (
                kind.format(a=x, b=y, place="garden", thing="book") for x, y in ((a, b), (b, a))
            )
            rows += names["both_ways"](one, other, f" {a}", f" {b}", kind)
    data, _ = names["two_answers"](names["model"].tokenizer, rows)
    searched = names["half_of_each_kind"](data)
    for part in (data[searched], data[~searched]):
        assert part.template_ids.bincount().tolist() == [20, 20]
    assert not set(data.pair_ids[searched].tolist()) & set(data.pair_ids[~searched].tolist())


def test_a_token_that_is_named_has_that_role_alone() -> None:
    names = shipped()
    rows = names["behaviours"]["the other person"]
    data, corrupted = names["two_answers"](names["model"].tokenizer, rows, VERB="gave")
    assert list(data.positions) == ["VERB", "C1", "C1+1", "C2", "END"]
    assert list(corrupted.positions) == list(data.positions)
