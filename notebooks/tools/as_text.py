"""A notebook file as text that a diff can be read in: cells, and what they print.

    python -m notebooks.tools as_text FILE

Once per clone, `git config diff.notebook.textconv "..."` (see CONTRIBUTING) makes `git diff`,
`git show` and `git log -p` compare notebooks by this text. A figure is its summary in words, and a
picture eight characters that change with it. Imports nothing but the standard library and what is
as quick, for git calls it twice a notebook.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from notebooks.tools.compare import joined

# Changes without a reader's doing, or stands in the heading already.
UNTOLD = {"tags", "execution", "collapsed", "scrolled"}


def as_text(notebook: Mapping[str, Any]) -> str:
    """The text of a notebook, as read from its JSON."""
    return "\n".join(line for cell in notebook["cells"] for line in _cell(cell)) + "\n"


def _cell(cell: Mapping[str, Any]) -> Iterator[str]:
    metadata = cell["metadata"]
    heading = [cell["cell_type"], *metadata.get("tags", [])]
    told = {key: value for key, value in metadata.items() if key not in UNTOLD}
    if told:
        heading.append(json.dumps(told, ensure_ascii=False, sort_keys=True))
    yield f"━━━ {' '.join(heading)}"
    yield joined(cell["source"])
    for output in cell.get("outputs", ()):
        for line in _output(output):
            yield f"│ {line}".rstrip()
    yield ""


def _output(output: Mapping[str, Any]) -> Iterator[str]:
    yield from joined(output.get("text", "")).splitlines()
    if output["output_type"] == "error":
        yield f"{output['ename']}: {output['evalue']}"
    data = output.get("data", {})
    yield from joined(data.get("text/plain", "")).splitlines()
    for form in sorted(set(data) - {"text/plain"}):
        stored = data[form] if isinstance(data[form], (str, list)) else json.dumps(data[form])
        yield f"[{form} {hashlib.sha256(joined(stored).encode()).hexdigest()[:8]}]"


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status."""
    (path,) = arguments
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.write(as_text(json.loads(Path(path).read_text(encoding="utf-8"))))
    return 0
