"""README and CONTRIBUTING name commands and files that exist; `make` hands on what it is told."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ioi_helpers.bundled import BUNDLED, VARIANTS
from notebooks.tools.execution import find_notebooks
from notebooks.tools.stored_outputs import read as notebook
from tests.house import REPOSITORY


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


def pages() -> dict[str, str]:
    """Everything written in Markdown, by its path: files, and the cells of notebooks."""
    patterns = ("*.md", "docs/*.md", "benchmarks/*.md", "ioi_helpers/**/*.md", "tests/**/*.md")
    files = [path for pattern in patterns for path in sorted(REPOSITORY.glob(pattern))]
    found = {str(path.relative_to(REPOSITORY)): path.read_text(encoding="utf-8") for path in files}
    for path in find_notebooks():
        cells = (cell.source for cell in notebook(path).cells if cell.cell_type == "markdown")
        found[str(path.relative_to(REPOSITORY))] = "\n\n".join(cells)
    return found


PAGES = pages()


def anchors(page: str) -> set[str]:
    """What GitHub calls a page's headings."""
    outside_code = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.+?) *$", outside_code, re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading) for heading in headings)
    named = re.findall(r"""(?:id|name)=["']([^"']+)["']|^\(([\w-]+)\)=$""", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in plain} | {
        one or other for one, other in named
    }


@pytest.mark.parametrize("page", PAGES)
def test_links_inside_the_repository_lead_somewhere(page: str) -> None:
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    here = (REPOSITORY / page).parent
    for link in re.findall(r"\]\(<?([^)\s>]+)>?[^)]*\)", text):
        if re.match(r"[a-z]+:", link):
            assert link.startswith(("https://", "mailto:")), link
            continue
        file, _, anchor = link.partition("#")
        target = (here / file).resolve() if file else (REPOSITORY / page)
        assert target.exists(), link
        known = str(target.relative_to(REPOSITORY))
        if anchor and known in PAGES and not known.endswith(".ipynb"):
            assert anchor in anchors(PAGES[known]), link


def seen_by_a_rule(
    variable: str, target: str, environment: dict[str, str], given: list[str]
) -> set[str]:
    """What a variable is in the rules of a target and of what it needs."""
    settings, first, rules = read("Makefile").partition("\nhelp:")
    rules = re.sub(r"^\t.*$", f"\t@echo 'is '$${variable}", rules, flags=re.MULTILINE)
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("IOI_", "MAKE", "OMP_"))
    }
    done = subprocess.run(
        ["make", "-f", "-", target, *given],
        cwd=REPOSITORY,
        input=settings + first + rules,
        env=clean | environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout, done.stderr
    return {line.removeprefix("is").strip() for line in done.stdout.splitlines()}


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
    assert seen_by_a_rule("IOI_MODEL", target, environment, variables) == {expected}


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("environment", "variables", "expected"),
    [
        ({}, [], "1"),
        ({"IOI_MODEL": "gpt2-small"}, [], ""),
        ({"OMP_NUM_THREADS": "4"}, [], "4"),
        ({}, ["OMP_NUM_THREADS=2"], "2"),
        *(({"IOI_MODEL": name}, [], "1") for name in (*BUNDLED, *VARIANTS)),
    ],
)
def test_what_ships_gets_one_thread_in_the_lab(
    environment: dict[str, str], variables: list[str], expected: str
) -> None:
    assert seen_by_a_rule("OMP_NUM_THREADS", "lab", environment, variables) == {expected}


@pytest.mark.skipif(shutil.which("make") is None or os.name != "posix", reason="needs make")
def test_a_set_up_that_is_interrupted_shows_no_traceback(tmp_path: Path) -> None:
    """While the environment is made, which comes before anything from the network."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    (tmp_path / "python").write_text(  # ends badly when it is interrupted, as venv does
        "#!/bin/sh\ncase $* in *venv*) mkdir -p .venv; exec "
        f"{sys.executable} -c 'import time; time.sleep(60)';; esac\nexec {sys.executable} $*\n"
    )
    (tmp_path / "python").chmod(0o755)
    setting_up = subprocess.Popen(
        ["make", "run", "PYTHON=./python"],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if not key.startswith("MAKE")},
        start_new_session=True,
        # Who runs tests in the background of a shell has SIGINT ignored, and so would make.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    limit = time.monotonic() + 30
    while not (tmp_path / ".venv").exists() and time.monotonic() < limit:
        time.sleep(0.05)
    time.sleep(0.5)  # until Python has its handler
    os.killpg(setting_up.pid, signal.SIGINT)
    said, _ = setting_up.communicate(timeout=30)
    assert setting_up.returncode != 0
    # What it began; make's own last words are its own (on a busy machine it has three).
    ours = [line for line in said.splitlines() if not line.startswith("make: ")]
    assert len(ours) == 1 and ours[0].startswith("Setting up .venv"), said
