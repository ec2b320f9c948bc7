"""What the wheel asks for: what it imports, and nothing that Colab has in another version."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ioi_helpers
from tests.house import PACKAGE, REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ASKED = [Requirement(line) for line in PROJECT["dependencies"]]

# What Colab's image of August 2026 has installed. Its session runs on some of these: another
# IPython, and `google.colab` no longer imports.
COLAB_PYTHON = "3.13"
COLAB = {
    "ipython": "7.34.0",
    "numpy": "2.1.3",
    "pandas": "2.2.3",
    "plotly": "5.24.1",
    "torch": "2.11.0",
    "traitlets": "5.7.1",
    "transformers": "5.15.0",
}


def all_requirements() -> Iterator[tuple[str, Requirement]]:
    """What the wheel needs and what that needs in turn, as installed here: (who asks, for what)."""
    waiting, seen = [("ioi_helpers", line) for line in ASKED], set()
    while waiting:
        asker, wanted = waiting.pop()
        if wanted.marker and not any(
            wanted.marker.evaluate({"extra": extra, "python_version": COLAB_PYTHON})
            for extra in ("", *wanted.extras)
        ):
            continue
        yield asker, wanted
        name = canonicalize_name(wanted.name)
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another system or Python than this one
            continue
        for line in [Requirement(line) for line in lines] if name not in seen else []:
            waiting.append((name, line))
        seen.add(name)


def test_colab_has_what_is_asked_for() -> None:
    asked = list(all_requirements())
    refused = [
        f"{asker} asks for {wanted}, Colab has {COLAB[canonicalize_name(wanted.name)]}"
        for asker, wanted in asked
        if canonicalize_name(wanted.name) in COLAB
        and not wanted.specifier.contains(COLAB[canonicalize_name(wanted.name)])
    ]
    assert refused == []
    names = {canonicalize_name(wanted.name) for _, wanted in asked}
    assert {"torch", "transformers", "numpy", "pandas", "plotly"} <= names  # it did look
    assert len(names) > 50


@pytest.mark.slow
def test_condas_file_installs_what_make_installs(tmp_path: Path) -> None:
    """The pip part of environment.yml, installed by pip as conda calls it, in a new environment
    that finds there what is installed here."""
    text = (REPOSITORY / "environment.yml").read_text(encoding="utf-8")
    lines = re.findall(r"^ {6}- (.+)$", text, re.MULTILINE)
    assert lines == ["-c constraints.txt", "-e .[dev]"]
    clone, home = tmp_path / "clone", tmp_path / "environment"
    shutil.copytree(PACKAGE, clone / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, clone)
    (clone / "condaenv.txt").write_text("\n".join(lines) + "\n")
    venv.create(home, with_pip=False)
    (site,) = home.glob("lib/python*/site-packages")
    ours = sysconfig.get_path("purelib")
    # Not as a .pth file, which would take this checkout along: what is installed, but for it.
    for path in Path(ours).iterdir():
        if "ioi_helpers" not in path.name and path.name != "__pycache__":
            (site / path.name).symlink_to(path)
    python = home / "bin" / "python"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON"))}
    done = subprocess.run(
        [python, "-m", "pip", "install", "--no-index", "--no-build-isolation", "-U",
         "-r", "condaenv.txt"],
        cwd=clone, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.findall(r"Successfully installed (.*)", done.stdout) == [
        f"ioi_helpers-{PROJECT['version']}"
    ]
    shown = subprocess.run(
        [python, "-c", "import ioi_helpers; print(ioi_helpers.__file__)"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert Path(shown.stdout.strip()).is_relative_to(clone), shown.stderr


def test_colab_runs_a_supported_python() -> None:
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(COLAB_PYTHON)


def test_the_package_imports_what_it_asks_for_and_nothing_else() -> None:
    imported = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
    imported -= {*sys.stdlib_module_names, "ioi_helpers"}
    sold_as = metadata.packages_distributions()
    imported_from = {canonicalize_name(sold_as[name][0]) for name in imported}
    asked = {canonicalize_name(wanted.name) for wanted in ASKED}
    assert imported_from - asked == set(), "imported, but not in pyproject.toml's dependencies"
    # One is a solver that qpsolvers calls, the other scripts that are read as files.
    assert asked - imported_from == {"osqp", "circuitsvis"}


def test_the_check_on_colabs_gpu_needs_no_more_than_readme_installs() -> None:
    """The package and its extra `notebooks`."""
    waiting = ["notebooks.tools.check", "notebooks.tools.__main__"]
    modules: set[str] = set()
    imported: set[str] = set()
    while waiting:
        module = waiting.pop()
        modules.add(module)
        path = REPOSITORY / (module.replace(".", "/") + ".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (name := node.module or ""):
                imported.add(name.partition(".")[0])
                if name.startswith("notebooks.tools.") and name not in modules:
                    waiting.append(name)
    imported -= {*sys.stdlib_module_names, "ioi_helpers", "notebooks"}
    extra = [Requirement(line) for line in PROJECT["optional-dependencies"]["notebooks"]]
    asked = {canonicalize_name(wanted.name) for wanted in (*ASKED, *extra)}
    sold_as = metadata.packages_distributions()
    assert {canonicalize_name(sold_as[name][0]) for name in imported} <= asked
    assert {"nbclient", "nbformat"} <= imported  # it did look
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert "install -q -e '.[notebooks]' && .gpu/bin/python -m notebooks.tools check" in readme


def test_one_version_everywhere() -> None:
    version = PROJECT["version"]
    assert ioi_helpers.__version__ == version
    assert f"\nversion: {version}\n" in (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    changes = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", changes, re.MULTILINE)[0] == version


def test_every_file_beside_the_code_is_in_the_wheel() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    globs = settings["tool"]["setuptools"]["package-data"]["ioi_helpers"]
    shipped = {path for pattern in globs for path in PACKAGE.glob(pattern)}
    beside = {p for p in PACKAGE.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert beside - shipped == set()
