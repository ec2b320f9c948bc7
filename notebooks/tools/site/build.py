"""Lay out the sources of the site and let Sphinx make its pages."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Mapping
from pathlib import Path

from ioi_helpers.plotting import page_scripts
from notebooks.tools.execution import REPOSITORY
from notebooks.tools.site.reference import reference_pages
from notebooks.tools.site.sources import pages

DOCS = REPOSITORY / "docs"


def build(out: Path, executed: Mapping[str, Path]) -> str:
    """Write the site to the folder `out`; returns Sphinx's warnings, "" if there were none.

    Args:
        executed: By a notebook's stem the copy whose outputs are shown in place of the stored ones.

    What did not change since the last time is not made again. Sources and what Sphinx remembers lie
    in a folder beside `out`, whose name begins with a full stop.

    Raises:
        ValueError: A page links to a file that does not exist.
    """
    # Sphinx takes a second to import: only those who build pay for it.
    from sphinx.application import Sphinx
    from sphinx.errors import SphinxError
    from sphinx.util.console import nocolor
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    work = out.parent / f".{out.name}"
    lay_out(work / "sources", executed)
    static = work / "static"
    static.mkdir(parents=True, exist_ok=True)
    for name, script in page_scripts().items():
        _write(static / name, script.encode())
    nocolor()
    warnings = io.StringIO()
    settings = {
        "html_static_path": [str(DOCS / "_static"), str(static)],
        "ioi_terms": _digest(DOCS / "glossary.md"),
        "ioi_tools": _digest(*Path(__file__).parent.glob("*.py"), *_plotting()),
    }
    with patch_docutils(), docutils_namespace():
        try:
            app = Sphinx(
                work / "sources",
                DOCS,
                out,
                work / "doctrees",
                "html",
                confoverrides=settings,
                status=None,
                warning=warnings,
            )
            app.build()
        except SphinxError as error:
            raise ValueError(f"The pages could not be built: {error}") from None
    return warnings.getvalue().strip()


def lay_out(folder: Path, executed: Mapping[str, Path]) -> None:
    """Put every source into `folder` under its page's name; what is there unchanged is left."""
    wanted: dict[Path, bytes] = {}
    for page in pages():
        path = executed.get(Path(page.path).stem, REPOSITORY / page.path)
        wanted[folder / page.source] = path.read_bytes()
    for name, text in reference_pages().items():
        wanted[folder / f"{name}.md"] = text.encode()
    for path in folder.rglob("*"):
        if path.is_file() and path not in wanted:
            path.unlink()
    for path, content in wanted.items():
        _write(path, content)


def remove(out: Path) -> None:
    """Take a site away, and what is remembered of it."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(out.parent / f".{out.name}", ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    if not path.exists() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _plotting() -> list[Path]:
    return list((REPOSITORY / "ioi_helpers" / "plotting").glob("*.py"))


def _digest(*paths: Path) -> str:
    joined = b"".join(path.read_bytes() for path in sorted(paths))
    return hashlib.sha256(joined).hexdigest()
