"""What the prompts are made of: names, places, objects, templates and sentences.

The words are files beside this module, each with its source: `ioi_paper.json` and
`exploratory_demo.json`, used as published so that results can be compared, `more_names.txt`, and
`prefixes.txt`, which is this project's own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent


def read_lines(file: Path) -> tuple[str, ...]:
    """The lines of a text file that hold something, without comments (lines that start with #)."""
    lines = file.read_text(encoding="utf8").splitlines()
    return tuple(line for line in lines if line.strip() and not line.startswith("#"))


def read_words(file: Path) -> tuple[str, ...]:
    """The words of a text file, set apart by blanks or line breaks; comments left out."""
    return tuple(" ".join(read_lines(file)).split())


def _published(file: str) -> dict[str, tuple[Any, ...]]:
    lists = json.loads((_FOLDER / file).read_text(encoding="utf8"))
    return {name: tuple(one["entries"]) for name, one in lists.items()}


_PAPER = _published("ioi_paper.json")
_DEMO = _published("exploratory_demo.json")

PAPER_NAMES: tuple[str, ...] = _PAPER["names"]
"""The 99 first names of the IOI paper's code."""
NAMES: tuple[str, ...] = PAPER_NAMES + read_words(_FOLDER / "more_names.txt")
"""The paper's names and some more, each a single token of GPT-2's vocabulary."""
PLACES: tuple[str, ...] = _PAPER["places"]
OBJECTS: tuple[str, ...] = _PAPER["objects"]
"""Places and objects of the IOI paper's code, eight of each."""
TEMPLATES: tuple[str, ...] = _PAPER["templates"]
"""The IOI paper's 15 templates in BABA form: [A] is IO, [B] is S, and the last [A] the answer."""
ADVERSARIAL_SENTENCES: tuple[str, ...] = _PAPER["adversarial sentences"]
"""Sentences that repeat a name, [A], between the first clause and S2."""

DEMO_TEMPLATES: tuple[str, ...] = _DEMO["templates"]
DEMO_PAIRS: tuple[tuple[str, str], ...] = tuple((first, second) for first, second in _DEMO["pairs"])
DEMO_PROMPTS: tuple[str, ...] = _DEMO["prompts"]
"""The Exploratory Analysis demo's four sentences, their names, and its eight prompts in order."""

PREFIXES: tuple[str, ...] = read_lines(_FOLDER / "prefixes.txt")
"""Sentences without names that may stand before a prompt."""
