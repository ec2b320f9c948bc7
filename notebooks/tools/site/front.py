"""The front page's pictures, its table of notebooks, and the order of all pages.

`docs/index.md` says where they stand: `<!-- figure: circuit -->` is the published circuit, drawn
from the data; `<!-- figure: 07 | Logit difference under -->` the stored figure of notebook 07 whose
title begins so; `<!-- notebooks -->` the table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ioi_helpers import graph, plotting, published
from notebooks.tools.execution import find_notebooks
from notebooks.tools.site.outputs import question, title
from notebooks.tools.site.reference import TITLE as REFERENCE
from notebooks.tools.site.sources import Page
from notebooks.tools.stored_outputs import code_cells, read

SECTIONS = {
    "The course": r"notebooks/.*",
    "Around the course": r"[^/]*",
    "Models": r"models/.*",
    "Benchmarks": r"benchmarks/.*",
}
LAST = ("contributing", "changelog")


def front_page(text: str, known: Sequence[Page]) -> str:
    """The front page's Markdown with pictures, table and order of pages put in."""
    text = re.sub(r"<!-- figure: (.+?) -->", lambda match: _figure(match[1]), text)
    text = text.replace("<!-- notebooks -->", _table(known))
    return text + "\n" + "\n".join(_trees(known))


def _figure(which: str) -> str:
    number, _, beginning = (part.strip() for part in which.partition("|"))
    if number == "circuit":
        drawn = plotting.diagram(
            graph.Circuit.of_registry(published.head_classes()),
            "The circuit in GPT-2 small: 26 heads of 144",
            note="Wang et al. 2022, figure 2 and section 3",
        )
        return plotting.page_figure(drawn.forms()) or ""
    (path,) = find_notebooks([number])
    for cell in code_cells(read(path)):
        for output in cell.outputs:
            data = output.get("data", {})
            if re.match(rf"[\w ]+: {re.escape(beginning)}", data.get("text/plain", "")):
                made = plotting.page_figure(data)
                if made:
                    return made
    raise ValueError(f"{path.name} stores no figure whose title begins with {beginning!r}.")


def _table(known: Sequence[Page]) -> str:
    rows = []
    for page in known:
        if page.name.startswith("notebooks/"):
            (path,) = find_notebooks([page.path])
            notebook = read(path)
            rows.append(f"| [{title(notebook)}]({page.source}) | {question(notebook)} |")
    return "\n".join(["| notebook | the question it answers |", "|---|---|", *rows])


def _trees(known: Sequence[Page]) -> list[str]:
    """Sphinx's lists of pages, which the side bar and "next" follow."""
    names = [page.name for page in known if page.name not in ("index", *LAST)]
    names += [page.name for page in known if page.name in LAST]
    made = []
    for caption, pattern in SECTIONS.items():
        inside = [name for name in names if re.fullmatch(pattern, name)]
        if caption == "Around the course":
            inside.insert(len(inside) - len(LAST), f"{REFERENCE} <api/index>")
        if inside:
            listed = "\n".join(inside)
            made.append(f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{listed}\n```\n")
    return made
