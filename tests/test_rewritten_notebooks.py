"""What a notebook prints on a bundled model it prints on that model in another architecture.

But for lines that name the model. Of `ioi-mini` the stored outputs say what it prints; on
`ioi-plain`, for which none are stored, both are run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from nbformat import NotebookNode

from ioi_helpers.bundled import BUNDLED, bundled_folder
from notebooks.tools.check import differences
from notebooks.tools.execution import execute, find_notebooks
from notebooks.tools.stored_outputs import COMPARED, code_cells, read
from tests.rewritten_models import as_gpt_neo, as_opt, as_stanford

pytestmark = pytest.mark.slow

FORMS = {"Stanford": as_stanford, "OPT": as_opt, "GPT-Neo": as_gpt_neo}
NUMBERS = [f"{number:02}" for number in range(1, 9)]
NAMES_THE_MODEL = {
    r"(ioi-mini|ioi-plain) \(a folder\)": r"\1",
}
"""What a folder's model prints where a bundled one prints its name."""
BESIDE = {"04": "dict.fromkeys([model.ioi_name"}
"""A cell that shows the model beside the bundled ones: one that is a folder is one more there."""

AS_STORED = {"05": 'models["not folded"]'}
"""A cell that shows a model with its value biases folded and, beside it, as in its file: there they
are others in GPT-Neo's form, which has no query bias and carries it elsewhere."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    return cache(
        lambda name, form: FORMS[form](bundled_folder(name), tmp_path_factory.mktemp(form) / name)
    )


@cache
def expected_of(path: Path, model: str) -> NotebookNode:
    """What it prints on the bundled model itself."""
    return read(path) if model == "ioi-mini" else printed(path, model)


def printed(path: Path, model: str) -> NotebookNode:
    """The notebook as it runs on a model, which it calls by its bare name."""
    fresh = execute(path, COMPARED | {"IOI_MODEL": model}).notebook
    for cell in code_cells(fresh):
        text = json.dumps(cell.outputs)
        for pattern, name in NAMES_THE_MODEL.items():
            text = re.sub(pattern, name, text)
        cell.outputs = type(cell)(outputs=json.loads(text)).outputs
    return fresh


def lines_of(cell: NotebookNode) -> set[str]:
    """All lines that a cell prints, and those of a figure's summary."""
    texts = [
        out.get("text", "") or out.get("data", {}).get("text/plain", "") for out in cell.outputs
    ]
    return {line for text in texts for line in text.splitlines()}


def cells_with(notebook: NotebookNode, code: str) -> list[int]:
    """Numbers of the code cells in which this stands, from 1."""
    return [i for i, cell in enumerate(code_cells(notebook), start=1) if code in cell.source]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("model", BUNDLED)
def test_it_prints_the_same(
    model: str, number: str, form: str, folders: Callable[[str, str], Path]
) -> None:
    (path,) = find_notebooks([number])
    expected = expected_of(path, model)
    fresh = printed(path, str(folders(model, form)))
    one_more = cells_with(expected, BESIDE[number]) if number in BESIDE else []
    for cell in one_more:
        now, before = (lines_of(code_cells(n)[cell - 1]) for n in (fresh, expected))
        assert before and before <= now
    passed_over = list(one_more)
    if number in AS_STORED and form == "GPT-Neo":
        (cell,) = cells_with(expected, AS_STORED[number])
        passed_over.append(cell)
        folded = [
            [line.split()[:2] for line in text.splitlines()[2:]]
            for text in (
                code_cells(n)[cell - 1].outputs[-1]["data"]["text/plain"] for n in (fresh, expected)
            )
        ]
        assert folded[0] == folded[1] and len(folded[0]) == 3
    found = [one for one in differences(expected, fresh) if one[0] not in passed_over]
    assert len(one_more) == (number in BESIDE)
    assert not found, "\n".join(f"cell [{cell}]: {how}" for cell, how in found)
