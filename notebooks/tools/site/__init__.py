"""Build the course site from executed notebooks: `make site`, and the pages of `make run`.

    python -m notebooks.tools site [--out build/site]

Sphinx with MyST-NB makes the pages; `docs/conf.py` has its settings, `docs/` the site's own pages.
Nothing is executed: notebooks are shown with the outputs that they store, or with those of the
copies that `make run` made. The pages need no network to be read.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from notebooks.tools.execution import REPOSITORY
from notebooks.tools.site.build import build


def main(arguments: Sequence[str] | None = None, executed: Mapping[str, Path] | None = None) -> int:
    """The command line; returns the exit status, 1 where Sphinx warned of anything."""
    parser = argparse.ArgumentParser(description="Build the course site from stored outputs.")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build" / "site")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    warnings = build(options.out, executed or {})
    if warnings:
        print(warnings, file=sys.stderr)
        return 1
    print(f"Built in {time.perf_counter() - start:.0f} s. Open {options.out.resolve()}/index.html")
    return 0
