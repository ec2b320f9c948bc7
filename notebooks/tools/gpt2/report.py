"""The report of a check: one JSON file, from which a page and a Markdown file are made.

The JSON is written anew after every row, so that an interrupted check goes on where it was. A row
is taken over from it only if the weights, the code and, for a notebook, its source are the same.
"""

from __future__ import annotations

import html
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PASS, FAIL, ERROR, LEFT_OUT = "pass", "fail", "error", "not measured"
COLUMNS = ("what", "found", "published", "largest difference", "tolerance", "verdict", "source")


@dataclass(frozen=True)
class Row:
    """A published result or a notebook, and what came of it.

    Of an array, `found` and `published` are at the place where they are furthest apart, `where`.
    `values` are all that was found. `why` is the sentence of an error, or what is left out and why.
    """

    kind: str  # "number", "fact" or "notebook"
    name: str
    title: str
    verdict: str
    found: float | str | None = None
    published: float | str | None = None
    difference: float | None = None
    where: str = ""
    tolerance: float | None = None
    unit: str = ""
    setup: str = ""
    source: str = ""
    why: str = ""
    seconds: float = 0.0
    peak_memory: int = 0
    key: str = ""
    values: Any = None
    cells: list[str] = field(default_factory=list)  # of a notebook, those that failed


class Report:
    """Rows on disk: `report.json` grows as they come, `report.html` and `report.md` follow."""

    def __init__(self, folder: Path, about: dict[str, str]) -> None:
        self.folder, self.about = folder, about
        self.rows: dict[str, Row] = {}
        folder.mkdir(parents=True, exist_ok=True)
        try:
            stored = json.loads(self.file.read_text(encoding="utf-8"))["rows"]
            self._stored = {row["name"]: Row(**row) for row in stored}
        except (OSError, ValueError, KeyError, TypeError):  # none yet, or of another version
            self._stored = {}

    @property
    def file(self) -> Path:
        """The JSON file."""
        return self.folder / "report.json"

    def stored(self, name: str, key: str) -> Row | None:
        """The row that an earlier check left, if it was made of the same."""
        row = self._stored.get(name)
        return row if row is not None and row.key == key else None

    def add(self, row: Row) -> None:
        """Add a row and write all."""
        self.rows[row.name] = row
        # Rows of a check that was interrupted stay, for the next one to go on from.
        kept = {name: row for name, row in self._stored.items() if name not in self.rows}
        self._stored = {**self.rows, **kept}
        rows = [asdict(row) for row in self._stored.values()]
        text = json.dumps({"about": self.about, "rows": rows}, indent=1, ensure_ascii=False)
        passing = self.file.with_suffix(".part")
        passing.write_text(text + "\n", encoding="utf-8")
        os.replace(passing, self.file)
        rows_here = list(self.rows.values())
        (self.folder / "report.md").write_text(markdown(self.about, rows_here), encoding="utf-8")
        (self.folder / "report.html").write_text(page(self.about, rows_here), encoding="utf-8")


def summary(rows: Iterable[Row]) -> str:
    """How many passed, failed, and so on."""
    counts = Counter(row.verdict for row in rows)
    return ", ".join(f"{counts[v]} {v}" for v in (PASS, FAIL, ERROR, LEFT_OUT) if counts[v])


def _cells(row: Row) -> tuple[str, ...]:
    def number(value: float | str | None) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str("" if value is None else value)

    found, note = number(row.found), row.why or "; ".join(row.cells[:3])
    if len(row.cells) > 3:
        note += f"; and {len(row.cells) - 3} more"
    if row.where:
        found += f" {row.where.strip()}"
    if row.kind == "notebook":
        note = f"{row.seconds:.0f} s, {row.peak_memory / 1e9:.1f} GB" + (
            f"; {note}" if note else ""
        )
    source = "; ".join(
        part for part in (row.source, f"on {row.setup}" if row.setup else "") if part
    )
    return (
        f"{row.title} ({row.name})" + (f", {row.unit}" if row.unit else ""),
        found,
        number(row.published),
        number(row.difference),
        number(row.tolerance),
        row.verdict + (f": {note}" if note else ""),
        source,
    )


def markdown(about: dict[str, str], rows: list[Row]) -> str:
    """The report as Markdown."""
    lines = ["# GPT-2 small against what is published", "", summary(rows) + ".", ""]
    lines += [f"- {key}: {value}" for key, value in about.items()]
    for kind, title in KINDS.items():
        chosen = [row for row in rows if row.kind == kind]
        if chosen:
            lines += ["", f"## {title}", "", f"| {' | '.join(COLUMNS)} |", "|---" * 7 + "|"]
            for row in chosen:
                cells = (cell.replace("|", "\\|").replace("\n", " ") for cell in _cells(row))
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


KINDS = {"number": "Published numbers", "fact": "Published facts", "notebook": "Notebooks"}

STYLE = """\
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 90rem; margin: 2rem auto; padding: 0 1rem; }
div { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { text-align: left; padding: 0.3rem 0.6rem; border-bottom: 1px solid #8886;
         vertical-align: top; }
.pass { border-left: 4px solid #1b7837; }
.fail, .error { border-left: 4px solid #b2182b; }
"""


def page(about: dict[str, str], rows: list[Row]) -> str:
    """The report as a page."""
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        "<title>GPT-2 small against what is published</title>",
        f"<style>{STYLE}</style></head><body>",
        f"<h1>GPT-2 small against what is published</h1><p>{summary(rows)}.</p><ul>",
        *(f"<li>{html.escape(f'{key}: {value}')}</li>" for key, value in about.items()),
        "</ul>",
    ]
    for kind, title in KINDS.items():
        chosen = [row for row in rows if row.kind == kind]
        if not chosen:
            continue
        head = "".join(f'<th scope="col">{column}</th>' for column in COLUMNS)
        parts.append(f"<h2>{title}</h2><div><table><thead><tr>{head}</tr></thead><tbody>")
        for row in chosen:
            cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(row))
            parts.append(f'<tr class="{row.verdict.split()[0]}">{cells}</tr>')
        parts.append("</tbody></table></div>")
    return "\n".join([*parts, "</body></html>\n"])
