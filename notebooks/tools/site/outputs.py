"""A notebook as its page shows it: live figures, no progress bars, links that lead to pages."""

from __future__ import annotations

import html
import re
from collections.abc import Callable

from nbformat import NotebookNode

from ioi_helpers.plotting import page_figure
from notebooks.tools.compare import is_progress_bar, without_progress
from notebooks.tools.site.sources import without_badge
from notebooks.tools.stored_outputs import MODEL, code_cells

RUN = "ioi_helpers_run"  # in a copy's metadata: on which model it ran, and how many seconds


def for_page(notebook: NotebookNode, relinked: Callable[[str], str]) -> NotebookNode:
    """The notebook (changed in place) as MyST-NB is to read it; `relinked` turns a text's links."""
    notebook.metadata.pop("widgets", None)  # their scripts would come from the network
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = relinked(without_badge(cell.source))
    for cell in code_cells(notebook):
        cell.outputs = [output for output in cell.outputs if not _is_progress(output)]
        for output in cell.outputs:
            figure = page_figure(output.get("data", {}))
            if figure:
                output.data = NotebookNode({"text/html": figure})
            elif "text/html" in output.get("data", {}):
                # A table's words may be wrapped, a number and its error not.
                unbroken = output.data["text/html"].replace(" ± ", "\u00a0±\u00a0")
                output.data["text/html"] = unbroken
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            said = rf"\1\n\n{origin(notebook)}"
            cell.source = re.sub(r"^(# .+)$", said, cell.source, count=1, flags=re.MULTILINE)
            break
    return notebook


def origin(notebook: NotebookNode) -> str:
    """A line that says on which model what a page shows was computed, and where."""
    run = notebook.metadata.get(RUN)
    if run:
        said = f"Run here on <code>{html.escape(run['model'])}</code> in {run['seconds']:.0f} s."
    else:
        said = f"Outputs as stored in the repository, from <code>{MODEL}</code>."
    return f'<p class="ioi-origin">{said}</p>'


def _is_progress(output: NotebookNode) -> bool:
    if output.get("name") == "stderr":
        return not without_progress(output.text).strip()
    return is_progress_bar(output)


def title(notebook: NotebookNode) -> str:
    """A notebook's title, its first heading."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    found = re.search(r"^# +(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else "untitled"


def question(notebook: NotebookNode) -> str:
    """The first paragraph below the title that is words, as plain text."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    found = re.search(r"^# +(.+)$", text, re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n", text[found.end() :] if found else ""):
        badges_and_tags = r"\[?!\[[^\]]*\]\([^)]*\)(?:\]\([^)]*\))?|<[^>]+>"
        words = re.sub(badges_and_tags, "", paragraph).strip()
        if words and not words.startswith(("#", "|", "-")):
            return re.sub(r"\[([^\]]*)\]\([^)]*\)|[*`]+", r"\1", words)
    return ""
