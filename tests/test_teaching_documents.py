"""What docs/ tells teachers and researchers fits the notebooks, the exercises and the code."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from notebooks.tools.execution import find_notebooks
from notebooks.tools.exercise_runs import load_exercises
from notebooks.tools.stored_outputs import read
from tests.house import REPOSITORY

DOCS = REPOSITORY / "docs"
TEACHERS, PROBLEMS = DOCS / "teachers.md", DOCS / "open_problems.md"
PATHS = {path.name[:2]: path for path in find_notebooks()}
# The list's problems. It numbers two of them 2.25.
NUMBERS = sorted([*(f"2.{i}" for i in range(1, 37)), "2.25"])


def minutes_on_cards() -> dict[str, tuple[int, int]]:
    """Minutes to read and for the exercises, by notebook, as budget cards have them."""
    found = {}
    for number, path in PATHS.items():
        text = "\n".join(cell.source for cell in read(path).cells)
        (reading,) = re.findall(r"\| to read \| about (\d+) minute", text)
        (working,) = re.findall(r"\| to do the exercises \| about (\d+) minute", text)
        found[number] = int(reading), int(working)
    return found


@pytest.mark.parametrize("document", [TEACHERS, PROBLEMS], ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (DOCS / link).exists(), link


def test_the_minutes_are_about_those_of_the_cards() -> None:
    cards, text = minutes_on_cards(), TEACHERS.read_text(encoding="utf-8")
    table = re.findall(r"^\| \[(\d\d)\]\S+ \| (\d+) \| (\d+) \|", text, re.MULTILINE)
    assert {f"{i:02}" for i in range(1, 12)} <= {number for number, *_ in table} <= set(PATHS)
    for number, *told in table:
        for said, true in zip(told, cards[number]):
            assert abs(int(said) - true) <= max(3, 0.1 * true), (number, said, true)
    plans = re.findall(r"^\| (?:\w+day|\d) \| (.*) \| (\d+) \|$", text, re.MULTILINE)
    assert len(plans) == 12
    for row, said in plans:
        true = sum(sum(cards[number]) for number in re.findall(r"\[(\d\d)\]", row))
        assert abs(int(said) - true) <= 0.1 * true, (row, said, true)
    # Every notebook is in the longest plan, and README's hours are the sum of all.
    weeks = "".join(row for row, _ in plans[5:])
    assert set(re.findall(r"\[(\d\d)\]", weeks)) == set(PATHS)
    (hours,) = re.findall(
        r"all together about (\d+)\s+hours", (REPOSITORY / "README.md").read_text(encoding="utf-8")
    )
    assert abs(int(hours) - sum(map(sum, cards.values())) / 60) <= 1
    lecture = re.findall(r"^\| (\d+) \| [^|]+ \| [^|]+ \|$", text, re.MULTILINE)
    assert sum(map(int, lecture)) == 90


def test_what_goes_wrong_is_of_exercises_that_there_are() -> None:
    text = TEACHERS.read_text(encoding="utf-8")
    exercises = [e for path in PATHS.values() for e in load_exercises(path)]
    assert set(re.findall(r"\b\d\d\.\d\b", text)) <= {e.identifier for e in exercises}
    assert sum(len(e.wrong) for e in exercises) > 600


def test_every_problem_of_the_list_is_on_the_map_once() -> None:
    text = PROBLEMS.read_text(encoding="utf-8")
    rows = re.findall(r"^\| \*\*(.+?)\*\* \((2\.\d+)[,)]", text, re.MULTILINE)
    assert sorted(number for _, number in rows) == NUMBERS
    assert len({name for name, _ in rows}) == len(rows), "short names tell problems apart"


@pytest.mark.parametrize("document", [TEACHERS, PROBLEMS], ids=lambda path: path.name)
def test_sections_and_helpers_that_are_named_are_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for number, sections in re.findall(
        r"\[(\d\d)\]\([^)]*\), sections? ((?:\d+(?:\.\d+)?(?:, | and | to )?)+)", text
    ):
        headings = "\n".join(cell.source for cell in read(PATHS[number]).cells)
        for section in re.findall(r"\d+(?:\.\d+)?", sections):
            assert re.search(rf"^##+ {re.escape(section)} ", headings, re.M), (number, section)
    for room, name in re.findall(r"`(\w+)\.(?!json)(\w+)`", text):
        if room == "IOIDataset":
            module = importlib.import_module("ioi_helpers").IOIDataset
        else:
            module = importlib.import_module(f"ioi_helpers.{room}")
        assert hasattr(module, name), f"{room}.{name}"
