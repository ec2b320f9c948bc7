"""Which files of the repository become pages of the site, and where their links lead.

A link is written once, as it must be in the repository (so that GitHub follows it), and is turned
here: to the page, where the file it names has one, else to the file in the public repository.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass

from notebooks.tools import address
from notebooks.tools.execution import REPOSITORY

BRANCH = "main"

# Code is left alone; a Markdown link's address is group 1, an HTML link's group 2.
LINK = re.compile(
    r"^```.*?^```|`[^`\n]+`|(?<=\]\()([^)\s]+)|(?<=<a href=\")([^\"]+)", re.MULTILINE | re.DOTALL
)
BADGE = re.compile(r"\[!\[[^\]]*\]\(https://[^)]*\)\]\([^)]*\)\n*")


@dataclass(frozen=True)
class Page:
    """A page: its name in the site, without suffix, and its file's path in the repository."""

    name: str
    path: str

    @property
    def source(self) -> str:
        """Its file's path among Sphinx's sources."""
        return self.name + (".ipynb" if self.path.endswith(".ipynb") else ".md")


REFERENCE = Page("api/index", "ioi_helpers")  # where a link to the package's folder leads


def repository_address() -> str:
    """Where the repository is to be found, by pyproject.toml."""
    return f"https://github.com/{address.current()}"


def pages() -> list[Page]:
    """Every page that is made from a file of the repository, in reading order."""
    found = [Page("index", "docs/index.md")]
    for pattern, name in (
        ("notebooks/[0-9]*.ipynb", "notebooks/{stem}"),
        ("docs/*.md", "{stem}"),
        ("ioi_helpers/bundled/*/README.md", "models/{folder}"),
        ("benchmarks/*.md", "benchmarks/{stem}"),
        ("CONTRIBUTING.md", "contributing"),
        ("CHANGELOG.md", "changelog"),
    ):
        for path in sorted(REPOSITORY.glob(pattern)):
            where = path.relative_to(REPOSITORY).as_posix()
            made = Page(name.format(stem=path.stem, folder=path.parent.name), where)
            if made.path != found[0].path:
                found.append(made)
    return found


def relink(text: str, page: Page, known: Sequence[Page], repository: str) -> str:
    """`text`, Markdown of `page`, with links that lead to pages, or to files of the repository.

    Raises:
        ValueError: A link leads to a file that the repository does not have.
    """
    by_path = {other.path: other for other in (REFERENCE, *known)}

    def turned(match: re.Match[str]) -> str:
        link, in_html = match[1] or match[2], match[1] is None
        if not link:
            return match[0]
        target, hash_, anchor = link.partition("#")
        own = rf"{re.escape(repository)}/(?:blob|tree)/{BRANCH}/"
        if re.match(own, target):
            path = re.sub(own, "", target)
        elif not target or re.match(r"[a-z][a-z+.-]*:", target):
            return link
        else:
            path = posixpath.normpath(posixpath.join(posixpath.dirname(page.path), target))
        path = path.rstrip("/")
        if path not in by_path and f"{path}/README.md" in by_path:
            path = f"{path}/README.md"
        if path in by_path:
            other = by_path[path]
            name = f"{other.name}.html" if in_html else other.source
            return _relative(name, page) + hash_ + anchor
        if not (REPOSITORY / path).exists():
            raise ValueError(f"{page.path} links to {link}, and there is no such file.")
        kind = "tree" if (REPOSITORY / path).is_dir() else "blob"
        return f"{repository}/{kind}/{BRANCH}/{path}{hash_}{anchor}"

    return LINK.sub(turned, text)


def without_badge(text: str) -> str:
    """Markdown without badges, which are pictures from the network; pages have buttons instead."""
    return BADGE.sub("", text)


def _relative(name: str, page: Page) -> str:
    return posixpath.relpath(name, posixpath.dirname(page.name) or os.curdir)
