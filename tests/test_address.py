"""The repository's public address stands in one place, and its copies follow."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from notebooks.tools import address
from notebooks.tools.execution import find_notebooks
from tests.house import REPOSITORY

NEW = "ada-l/ioi.course"
ANY = re.compile(rf"{address.BEFORE}([A-Za-z0-9-]+/[A-Za-z0-9._-]*\w)")


def test_every_copy_is_the_address_of_pyproject() -> None:
    ours = address.current()
    for path in find_notebooks():
        text = path.read_text(encoding="utf-8")
        assert f"colab.research.google.com/github/{ours}/blob/main/notebooks/{path.name}" in text
        assert f"git+https://github.com/{ours}" in text
    assert f"github.com/{ours}" in (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    name = ours.partition("/")[2]
    for path in address.files():
        for found in ANY.findall(path.read_text(encoding="utf-8")):
            # Others' repositories are cited; one of our name but another owner is a stale copy.
            assert found.removesuffix(".git") == ours or found.partition("/")[2] != name, path


def test_readme_says_what_waits_for_the_address() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    said = readme.partition(address.README_BEGIN)[2].partition(address.README_END)[0]
    assert said.strip() == address.in_readme(address.current()).strip()


def test_a_new_address_goes_everywhere_and_back(tmp_path: Path) -> None:
    old = address.current()
    before = {}
    for path in address.files():
        copy = tmp_path / path.relative_to(REPOSITORY)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
        before[copy] = copy.read_text(encoding="utf-8")
    changed = address.rewrite(NEW, tmp_path)
    names = {path.name for path in changed}
    assert {"pyproject.toml", "CITATION.cff", "README.md"} <= names
    assert {path.name for path in find_notebooks()} <= names
    assert address.current(tmp_path) == NEW
    for path, text in before.items():
        now = path.read_text(encoding="utf-8")
        assert not re.search(rf"{address.BEFORE}{re.escape(old)}\b", now), path
        if path.suffix == ".ipynb":
            assert now == text.replace(old, NEW)
    assert address.rewrite(NEW, tmp_path) == []
    address.rewrite(old, tmp_path)
    assert {path: path.read_text(encoding="utf-8") for path in before} == before


def test_with_an_address_readme_has_a_link_for_each_way() -> None:
    said = address.in_readme(NEW)
    first = find_notebooks()[0]
    file = f"https://github.com/{NEW}/blob/main/notebooks/{first.name}"
    assert f"](https://colab.research.google.com/github/{NEW})" in said
    assert f"](https://www.kaggle.com/kernels/welcome?src={file})" in said
    assert f"](https://mybinder.org/v2/gh/{NEW}/HEAD?labpath={first.parent.name})" in said
    assert "git clone" in said and "git clone" not in address.in_readme(address.PLACEHOLDER)
    # The copies are found again by what stands before them.
    assert set(ANY.findall(said)) == {NEW}


@pytest.mark.parametrize(
    "wrong", ["ada", "https://github.com/ada/course", "ada/course/more", "a b/c"]
)
def test_what_is_no_address_is_refused(wrong: str, tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    with pytest.raises(ValueError, match="no OWNER/NAME"):
        address.rewrite(wrong, tmp_path)
