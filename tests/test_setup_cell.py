"""A notebook's first cell, as Colab, Kaggle, Binder, a clone and a room without network meet it.

What pip would do is asked of pip itself, in an environment that holds nothing but the metadata of
what is installed there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from notebooks.tools import address
from notebooks.tools.execution import find_notebooks
from notebooks.tools.stored_outputs import code_cells, read
from tests.house import REPOSITORY
from tests.test_packaging import COLAB, PROJECT

CELLS = {path.stem: code_cells(read(path))[0].source for path in find_notebooks()}
(CELL,) = set(CELLS.values())
INSTALL = "".join(CELL.splitlines(keepends=True)[:2])

# Kaggle's image is Colab's of some time ago, with other versions of what Jupyter is made of
# (Kaggle/docker-python, August 2026); a notebook may be pinned to an older image, with NumPy 1.
# There is no clone, and the working folder is not called notebooks/.
KAGGLE_PYTHON = "3.12"
KAGGLE = {
    "numpy": "1.26.4",
    "ipywidgets": "8.1.5",
    "jupyter-server": "2.12.5",
    "nbconvert": "6.4.5",
}
BINDER_GB = 2.0  # what a visitor may use on mybinder.org (its deployment, August 2026)


@pytest.fixture
def asked_of_pip(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the cell asks of pip, where pip only listens."""
    heard: list[str] = []
    shell = InteractiveShell.instance()
    shell.register_magic_function(lambda line: heard.append(line), "line", "pip")
    return heard


def run_cell(source: str) -> None:
    """Run it as IPython does, magics and all."""
    InteractiveShell.instance().run_cell(source).raise_error()


def missing(source: str) -> str:
    """The cell where the package is not installed."""
    return source.replace('"ioi_helpers")', '"not_there_at_all")')


def test_where_the_package_is_nothing_is_installed(asked_of_pip: list[str]) -> None:
    run_cell(INSTALL)
    assert asked_of_pip == []


def test_in_a_clone_it_installs_the_clone(
    asked_of_pip: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY / "notebooks")
    run_cell(missing(INSTALL))
    assert asked_of_pip == ["install -q .."]


@pytest.mark.parametrize("folder", ["content", "kaggle/working"])  # Colab's and Kaggle's
def test_elsewhere_it_installs_from_the_public_address(
    folder: str, asked_of_pip: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / folder)
    run_cell(missing(INSTALL))
    assert asked_of_pip == [f"install -q git+https://github.com/{address.current()}"]


# --- Binder, which installs from environment.yml --------------------------------------------------


def test_on_binder_nothing_is_installed(
    asked_of_pip: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clone whose environment has the package: kernels start in the notebook's folder."""
    monkeypatch.chdir(REPOSITORY / "notebooks")
    run_cell(INSTALL)
    assert asked_of_pip == []


def test_binder_installs_the_package_and_what_opens_notebooks() -> None:
    # It looks into these first, and passes over the files above them.
    assert not (REPOSITORY / "binder").exists() and not (REPOSITORY / ".binder").exists()
    wanted = (REPOSITORY / "environment.yml").read_text(encoding="utf-8")
    (python,) = re.findall(r"^  - python=([\d.]+)$", wanted, re.MULTILINE)
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python)
    # The package as the clone has it.
    assert wanted.endswith("\n      - -e .[dev]\n")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_binder_gives_pytorch_one_thread_of_its_one_core() -> None:
    show = [sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS'])"]
    clean = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    for environment, expected in ((clean, "1"), (clean | {"OMP_NUM_THREADS": "2"}, "2")):
        said = subprocess.check_output(
            ["bash", REPOSITORY / "start", *show], env=environment, text=True
        )
        assert said.strip() == expected


def test_notebooks_fit_into_binders_memory() -> None:
    for path in find_notebooks():
        (memory,) = re.findall(
            r"run on `ioi-mini` .*, ([\d.]+) GB of memory", path.read_text("utf-8")
        )
        assert float(memory) < BINDER_GB - 0.3, path.name  # JupyterLab itself takes some


# --- what pip does --------------------------------------------------------------------------------


def put_metadata(site: Path, name: str, version: str, text: str) -> None:
    """Let a package count as installed."""
    folder = site / f"{canonicalize_name(name).replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(text, encoding="utf-8")
    (folder / "INSTALLER").write_text("pip\n")
    (folder / "RECORD").write_text("")


def wheel(folder: Path, name: str, version: str, requires: list[str]) -> Path:
    """A wheel that is all metadata."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(
            f"{info}/METADATA", "\n".join([*lines, *(f"Requires-Dist: {r}" for r in requires)])
        )
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    return path


def would_install(
    tmp_path: Path, versions: Mapping[str, str], on_the_index: Mapping[str, str] | None = None
) -> dict[str, str] | str:
    """What pip would install, beside what is installed here in these versions; or its error."""
    home = tmp_path / "environment"
    venv.create(home, with_pip=False)
    site = min(home.glob("[Ll]ib*/**/site-packages"))  # lib64 is a link to lib
    for dist in metadata.distributions():
        name: str = canonicalize_name(dist.metadata["Name"])
        if name == "ioi-helpers":
            continue
        text = dist.read_text("METADATA") or ""
        version = versions.get(name, dist.version)
        text = text.replace(f"\nVersion: {dist.version}\n", f"\nVersion: {version}\n", 1)
        if not list(site.glob(f"{name.replace('-', '_')}-*.dist-info")):
            put_metadata(site, name, version, text)
    index = tmp_path / "index"
    index.mkdir()
    for name, version in (on_the_index or {}).items():
        wheel(index, name, version, [])
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ours = wheel(tmp_path, "ioi_helpers", project["version"], project["dependencies"])
    report = tmp_path / "report.json"
    (python,) = (*home.glob("bin/python"), *home.glob("Scripts/python.exe"))
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index",
         "--find-links", str(index), "--dry-run", "--report", str(report), str(ours)],
        env={k: v for k, v in os.environ.items() if not k.startswith("PIP_")},
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        return done.stderr
    installed = json.loads(report.read_text())["install"]
    return {i["metadata"]["name"]: i["metadata"]["version"] for i in installed}


def test_what_colab_has_is_not_replaced(tmp_path: Path) -> None:
    assert set(would_install(tmp_path, COLAB)) == {"ioi_helpers"}


def test_on_kaggle_an_older_numpy_alone_is_replaced(tmp_path: Path) -> None:
    newer = {"numpy": "2.1.3", "pandas": "2.2.3", "nbconvert": "7.16.0", "ipywidgets": "8.1.8"}
    found = would_install(tmp_path, KAGGLE, newer)
    assert found == {"ioi_helpers": PROJECT["version"], "numpy": "2.1.3"}
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(KAGGLE_PYTHON)


def test_without_network_pip_names_what_it_misses(tmp_path: Path) -> None:
    found = would_install(tmp_path, KAGGLE)
    assert isinstance(found, str)
    assert "No matching distribution found for numpy" in found


def test_without_network_and_package_the_cell_says_that_the_package_is_missing(
    tmp_path: Path,
) -> None:
    """In an interpreter of its own, whose pip finds no network."""
    script = (
        "import sys; from IPython.core.interactiveshell import InteractiveShell;"
        "sys.path[:] = [p for p in sys.path if p]; sys.meta_path.insert(0, type('Hide', (), "
        "{'find_spec': staticmethod(lambda name, *_: (_ for _ in ()).throw(ModuleNotFoundError("
        "f'No module named {name!r}', name=name)) if name == 'ioi_helpers' else None)})());"
        "import importlib.util as u; found = u.find_spec; "
        "u.find_spec = lambda n: None if n == 'ioi_helpers' else found(n);"
        f"result = InteractiveShell.instance().run_cell({CELL!r});"
        "print('ended with', type(result.error_in_exec).__name__, result.error_in_exec)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ
        | {"PIP_RETRIES": "0", "https_proxy": "http://localhost:9", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "ended with ModuleNotFoundError No module named 'ioi_helpers'" in done.stdout, (
        done.stderr
    )
