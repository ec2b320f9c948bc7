"""What README says of the code is true: its example runs, its table of models holds."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ioi_helpers import forward
from notebooks.tools.execution import find_notebooks
from notebooks.tools.refresh import cover, cover_picture
from notebooks.tools.stored_outputs import read
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


def test_the_pictures_are_those_that_the_notebooks_store() -> None:
    shown = set(re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README))
    tagged = {p: cover_picture(read(p)) for p in find_notebooks()}
    stored = {cover(p): picture for p, picture in tagged.items() if picture is not None}
    assert shown == {path.relative_to(REPOSITORY).as_posix() for path in stored}
    for path, picture in stored.items():
        assert path.read_bytes() == picture, "python -m notebooks.tools refresh writes it"


def test_the_table_lists_every_notebook() -> None:
    section = README.partition("## The notebooks")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| (\d\d) \| \[(.+?)\]\(notebooks/(.+?)\)", section, re.MULTILINE)
    assert [file for _, _, file in listed] == [path.name for path in find_notebooks()]
    assert all(file.startswith(number) for number, _, file in listed)


@pytest.mark.slow
def test_the_table_of_models_is_what_was_tried() -> None:
    """If not: `python -m tests.table_of_models --write`."""
    assert table_of_models.written()[0] == table_of_models.table()


def test_the_table_of_models_names_all_that_run_fast() -> None:
    in_readme, on_the_site = table_of_models.written()
    assert on_the_site == in_readme
    header = in_readme.splitlines()[0]
    tried = {name for names in table_of_models.COLUMNS.values() for name in names}
    assert tried >= {*random_models.ARCHITECTURES, *random_models.SCALED}
    for family in forward.FAMILIES.values():
        for name in family.split(", "):
            assert name in header
