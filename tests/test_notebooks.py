"""Every notebook: what it stores is sound, its frame is as agreed, and it runs on ioi-plain too.

That its outputs are right is tested by nbval, cell by cell (see notebooks/conftest.py).
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ioi_helpers.bundled import bundled_folder
from notebooks.tools.budgets import CARD_BEGIN, CARD_END, reading_rows
from notebooks.tools.execution import REPOSITORY, execute, find_notebooks
from notebooks.tools.site.outputs import title
from notebooks.tools.stored_outputs import code_cells, joined, problems, read, tags
from tests import printed_verdicts
from tests.rewritten_models import as_stanford, with_gpt2s_tokenizer

NOTEBOOKS = find_notebooks()
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
GPT2 = REPOSITORY.parent / "shared" / "gpt2-skeleton"
LARGEST = 3_000_000  # bytes; GitHub shows notebooks up to a few megabytes


def test_the_notebooks_are_those_of_readme() -> None:
    table = re.findall(r"^\| (\d\d) \| \[.*?\]\(notebooks/(\S+)\) \|", README, re.MULTILINE)
    assert [path.name for path in NOTEBOOKS] == [name for _, name in table]
    numbers = [f"{place:02}" for place in range(1, len(NOTEBOOKS) + 1)]
    assert [number for number, _ in table] == [name[:2] for _, name in table] == numbers


@each_notebook
def test_its_title_is_one_everywhere(path: Path) -> None:
    """In its first heading, from which the site takes it, in its metadata, and in README."""
    notebook = read(path)
    assert notebook.metadata["title"] == title(notebook), "its metadata: make notebooks"
    (listed,) = re.findall(rf"^\| (\d\d) \| \[(.+?)\]\(notebooks/{path.name}\)", README, re.M)
    assert " · ".join(listed) == title(notebook), "README's table"


@pytest.mark.parametrize(
    ("path", "neighbour"),
    [*zip(NOTEBOOKS, NOTEBOOKS[1:], strict=False), *zip(NOTEBOOKS[1:], NOTEBOOKS, strict=False)],
    ids=lambda path: path.stem[:2],
)
def test_it_links_to_the_one_before_and_after(path: Path, neighbour: Path) -> None:
    """At its head, where a reader decides whether to go on."""
    assert f"]({neighbour.name})" in read(path).cells[0].source


@each_notebook
def test_stored_outputs_are_sound(path: Path) -> None:
    assert problems(read(path)) == []
    assert path.stat().st_size < LARGEST


@each_notebook
def test_the_set_up_cell_is_the_same_everywhere(path: Path) -> None:
    assert code_cells(read(path))[0].source == code_cells(read(NOTEBOOKS[0]))[0].source


@each_notebook
def test_the_budget_card_is_there(path: Path) -> None:
    cards = [cell.source for cell in read(path).cells if "budget" in tags(cell)]
    assert len(cards) == 1
    card = cards[0].partition(CARD_BEGIN)[2].partition(CARD_END)[0]
    for row in (r"`ioi-mini` \| \d+ s", r"`ioi-plain` \| \d+ s"):
        assert re.search(row, card), f"{row} is missing: make budgets NOTEBOOKS={path.name[:2]}"
    for row in reading_rows(read(path)):
        assert row in card, f"the text has changed since: make notebooks NOTEBOOKS={path.name[:2]}"


@each_notebook
def test_it_begins_with_a_title_and_a_question(path: Path) -> None:
    first = read(path).cells[0]
    assert first.cell_type == "markdown"
    assert re.match(r"# \S", first.source)


@each_notebook
def test_what_it_prints_of_the_model_holds(path: Path) -> None:
    assert printed_verdicts.wrong(path.name[:2], read(path)) == []


@pytest.mark.parametrize(
    ("number", "printed", "instead"),
    [
        ("01", "attention layers write most", "MLPs write most"),
        ("03", "is misled by the repetition", "hardly notices the repetition"),
        ("11", "lowest mean score, which is best: the r", "lowest mean score, which is best: no r"),
    ],
)
def test_a_false_sentence_is_found(number: str, printed: str, instead: str) -> None:
    notebook = read(next(path for path in NOTEBOOKS if path.name.startswith(number)))
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if output.get("name") == "stdout":
                output.text = joined(output.text).replace(printed, instead)
    (found,) = printed_verdicts.wrong(number, notebook)
    assert found.startswith(instead) or found in f"your model {instead}"


@each_notebook
def test_it_runs_on_ioi_plain(path: Path) -> None:
    run = execute(path, {"IOI_MODEL": "ioi-plain"})
    assert run.cells == len(code_cells(read(path)))
    assert printed_verdicts.wrong(path.name[:2], run.notebook) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", ["09", "10", "11", "12", "13"])
def test_it_goes_on_where_nothing_is_on_record(number: str, tmp_path: Path) -> None:
    """Neither a circuit nor head classes, as for any model that a reader brings along."""
    folder = as_stanford(bundled_folder("ioi-mini"), tmp_path / "another")
    for name in ("circuit.json", "registry.json"):
        (folder / name).unlink(missing_ok=True)
    (path,) = (path for path in NOTEBOOKS if path.name.startswith(number))
    assert execute(path, {"IOI_MODEL": str(folder)}).cells == len(code_cells(read(path)))


@pytest.fixture(scope="module")
def reads_gpt2s_tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2s") / "reads-gpt2s-tokens"
    return with_gpt2s_tokenizer(bundled_folder("ioi-mini"), GPT2, folder)


@pytest.mark.slow
@pytest.mark.skipif(not GPT2.is_dir(), reason="GPT-2's tokenizer is not beside the repository")
@each_notebook
def test_it_runs_with_gpt2s_tokenizer(path: Path, reads_gpt2s_tokens: Path) -> None:
    """On a model that does the task. Many words of the bundled ones are several tokens of GPT-2's,
    and a name at the beginning of a text is another token, or several."""
    run = execute(path, {"IOI_MODEL": str(reads_gpt2s_tokens)})
    assert run.cells == len(code_cells(read(path)))
    wrong = printed_verdicts.wrong(path.name[:2], run.notebook)
    # Some are printed of models alone that are in the course's own tables.
    assert [one for one in wrong if not one.startswith("printed nowhere")] == []
