"""The repository's public address, `OWNER/NAME` on GitHub: `make address OWNER/NAME`.

    python -m notebooks.tools address [OWNER/NAME]

It stands in pyproject.toml (`project.urls.Repository`). Badges, links, set-up cells and
CITATION.cff hold copies of it, since a notebook by itself can look nothing up. This command changes
them all; without an argument it prints the address. A test keeps the copies in step.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PLACEHOLDER = "ioi-helpers/ioi-helpers"  # until the repository has a public address
# What stands before OWNER/NAME: GitHub's addresses, Colab's and nbviewer's, Binder's.
BEFORE = r"(?:github\.com/|/github/|/gh/|raw\.githubusercontent\.com/)"
PLACES = (
    "*.toml",
    "*.md",
    "*.cff",
    "*.yml",
    "notebooks/*.ipynb",
    "docs/**/*.*",
    ".github/**/*.yml",
)
SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,38}/[A-Za-z0-9._-]{1,100}")

README_BEGIN, README_END = "<!-- address:begin -->", "<!-- address:end -->"
WAITING = """\
Colab, Kaggle and Binder wait for the repository's public address: until
`make address OWNER/NAME` has set it, notebooks run from a clone, and their links to GitHub and
Colab lead nowhere."""
WAYS = """\
`git clone https://github.com/{address}` and `cd {name}` come first. Or
without a clone (imitated in tests, not tried there):

- [Colab]({colab}):
  the badge on top of a notebook opens it, its first cell installs the package and replaces
  nothing. Runs GPT-2 small unless `IOI_MODEL` says otherwise.
- [Kaggle]({kaggle}),
  where the end of the link names the notebook: switch the internet on in the session's settings,
  and the first cell installs the package. If pip replaced NumPy, restart the session once.
- [Binder]({binder}):
  all notebooks in JupyterLab, on `ioi-mini`, with the package installed. The first start after a
  change builds an image, for some minutes."""


def current(repository: Path = REPOSITORY) -> str:
    """The address that pyproject.toml has."""
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["urls"]["Repository"]).removeprefix("https://github.com/")


def is_set(repository: Path = REPOSITORY) -> bool:
    """Whether the repository has a public address."""
    return current(repository) != PLACEHOLDER


def in_readme(address: str) -> str:
    """What README says of the ways that need the address."""
    if address == PLACEHOLDER:
        return WAITING
    return WAYS.format(address=address, name=address.partition("/")[2], **links(address))


def links(address: str) -> dict[str, str]:
    """Where notebooks open without a clone: Colab's list of them, notebook 01 on Kaggle, Binder."""
    first = min(path.name for path in (REPOSITORY / "notebooks").glob("01_*.ipynb"))
    return {
        "colab": f"https://colab.research.google.com/github/{address}",
        "kaggle": "https://www.kaggle.com/kernels/welcome?src="
        f"https://github.com/{address}/blob/main/notebooks/{first}",
        "binder": f"https://mybinder.org/v2/gh/{address}/HEAD?labpath=notebooks",
    }


def files(repository: Path = REPOSITORY) -> Iterator[Path]:
    """The text files that may hold the address."""
    for pattern in PLACES:
        for path in sorted(repository.glob(pattern)):
            if path.is_file() and path.suffix not in (".png", ".svg", ".gz"):
                yield path


def rewrite(new: str, repository: Path = REPOSITORY) -> list[Path]:
    """Put the address `new` in place of the present one; returns the files that changed.

    Raises ValueError for what is no OWNER/NAME.
    """
    if not SLUG.fullmatch(new):
        raise ValueError(f"{new!r} is no OWNER/NAME, such as ada/ioi-course.")
    old = current(repository)
    pattern = re.compile(rf"({BEFORE}){re.escape(old)}(?![\w.-]*\w)")
    changed = []
    for path in files(repository):
        before = path.read_text(encoding="utf-8")
        after = pattern.sub(rf"\g<1>{new}", before)
        if path.name == "README.md" and README_BEGIN in after:
            head, _, rest = after.partition(README_BEGIN)
            tail = rest.partition(README_END)[2]
            after = f"{head}{README_BEGIN}\n{in_readme(new)}\n{README_END}{tail}"
        if after != before:
            path.write_text(after, encoding="utf-8", newline="\n")
            changed.append(path)
    return changed


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Set the repository's public address.")
    parser.add_argument("address", nargs="?", help="OWNER/NAME on GitHub")
    options = parser.parse_args(arguments)
    if options.address is None:
        print(current() if is_set() else f"{current()} (a placeholder)")
        return 0
    changed = rewrite(options.address)
    print("\n".join(str(path.relative_to(REPOSITORY)) for path in changed) or "Nothing to change.")
    return 0
