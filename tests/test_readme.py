"""What README says of the code is true: its example runs, its table of models holds."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ioi_helpers import forward
from tests import random_models, table_of_models
from tests.house import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IOI_MODEL", "ioi-mini")
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    known: dict[str, Any] = {}
    exec(example, known)
    assert known["model"].ioi_name == "ioi-mini"
    assert len(known["data"]) == 100


@pytest.mark.slow
def test_the_table_of_models_is_what_was_tried() -> None:
    """If not: `python -m tests.table_of_models --write`."""
    assert table_of_models.written() == table_of_models.table()


def test_the_table_of_models_names_all_that_run_fast() -> None:
    header = table_of_models.written().splitlines()[0]
    tried = {name for names in table_of_models.COLUMNS.values() for name in names}
    assert tried >= set(random_models.ARCHITECTURES)
    for family in forward.FAMILIES.values():
        for name in family.split(", "):
            assert name in header
