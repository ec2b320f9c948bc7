"""What a notebook stores of `ioi-mini` it prints on `ioi-mini` rewritten for another architecture.

But for the model's name. Notebooks and forms are listed once they have been run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from ioi_helpers.bundled import bundled_folder
from notebooks.tools.check import differences
from notebooks.tools.execution import execute, find_notebooks
from notebooks.tools.stored_outputs import read
from tests.rewritten_models import as_gpt_neo, as_opt, as_stanford

pytestmark = pytest.mark.slow

FORMS = {"Stanford": as_stanford, "OPT": as_opt, "GPT-Neo": as_gpt_neo}
NAMES_THE_MODEL = {
    r"ioi-mini \(a folder\)": "ioi-mini",
}
"""What a folder's model prints where a bundled one prints its name."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(
        lambda form: FORMS[form](
            bundled_folder("ioi-mini"), tmp_path_factory.mktemp(form) / "ioi-mini"
        )
    )


@pytest.mark.parametrize(("number", "form"), [("01", "OPT")])
def test_it_prints_the_same(number: str, form: str, folders: Callable[[str], Path]) -> None:
    (path,) = find_notebooks([number])
    fresh = execute(path, {"IOI_MODEL": str(folders(form))}).notebook
    for cell in fresh.cells:
        if cell.cell_type == "code":
            text = json.dumps(cell.outputs)
            for pattern, name in NAMES_THE_MODEL.items():
                text = re.sub(pattern, name, text)
            cell.outputs = type(cell)(outputs=json.loads(text)).outputs
    found = differences(read(path), fresh)
    assert not found, "\n".join(f"cell [{cell}]: {how}" for cell, how in found)
