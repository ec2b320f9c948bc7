"""README and CONTRIBUTING name commands and files that exist; `make` hands on what it is told."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from tests.house import REPOSITORY

DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_every_make_command_exists(document: str) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):.*##", read("Makefile"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", read(document), re.MULTILINE))
    assert named
    assert named <= targets


def test_every_command_is_listed_as_one_that_makes_no_file() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.*)$", read("Makefile"), re.MULTILINE)
    listed = re.findall(r"^([a-z0-9-]+):.*##", read("Makefile"), re.MULTILINE)
    assert set(phony.split()) == set(listed)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_inside_the_repository_lead_somewhere(document: str) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", read(document)):
        assert link.startswith("https://") or (REPOSITORY / link).exists(), link


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("target", "environment", "variables", "expected"),
    [
        ("run", {}, [], "ioi-mini"),
        ("run", {"IOI_MODEL": "gpt2-small"}, [], "gpt2-small"),
        ("run", {"IOI_MODEL": "gpt2-small"}, ["IOI_MODEL=ioi-plain"], "ioi-plain"),
        ("test", {"IOI_MODEL": "gpt2-small"}, [], "ioi-mini"),
    ],
)
def test_make_runs_the_model_that_the_reader_chose(
    target: str, environment: dict[str, str], variables: list[str], expected: str
) -> None:
    settings, first, rules = read("Makefile").partition("\nhelp:")
    rules = re.sub(r"^\t.*$", "\t@echo model=$$IOI_MODEL", rules, flags=re.MULTILINE)
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith(("IOI_", "MAKE"))
    }
    done = subprocess.run(
        ["make", "-f", "-", target, *variables],
        cwd=REPOSITORY,
        input=settings + first + rules,
        env=clean | environment,
        capture_output=True,
        text=True,
    )
    assert set(done.stdout.split()) == {f"model={expected}"}, done.stderr
