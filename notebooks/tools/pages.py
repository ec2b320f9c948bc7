"""Turn executed notebooks into pages to browse: one HTML page each, and an index.

Figures are interactive and need no network: `ioi_helpers.plotting` draws them, with scripts that
lie once beside the pages and that each page with a figure loads once. A page without JavaScript
shows their static pictures.
"""

from __future__ import annotations

import copy
import html
import re
from collections.abc import Sequence
from pathlib import Path

import nbformat
from jinja2 import DictLoader
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from ioi_helpers.plotting import page_figure, page_scripts
from notebooks.tools.compare import is_figure, is_progress_bar
from notebooks.tools.execution import Execution
from notebooks.tools.stored_outputs import code_cells

# nbconvert's own page begins by loading require.js from the network, under which Plotly would not
# become a global; and our scripts must come after the figures they draw.
PAGE = """\
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock html_head_js -%}
{%- block body_header -%}
{{ super() }}
<p style="margin: 1rem 6.5rem; font: 0.9rem system-ui, sans-serif">
<a href="index.html">All notebooks</a></p>
{%- endblock body_header -%}
{%- block body_footer -%}
{% for script in resources.figure_scripts %}<script src="{{ script }}"></script>
{% endfor %}
{{ super() }}
{%- endblock body_footer -%}
"""

RUN = "ioi_helpers_run"  # in a copy's metadata: which model, how many seconds

INDEX = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>The IOI circuit, hands on</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto;
       padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; padding: 0.5rem 0.75rem; border-bottom: 1px solid #8886;
         vertical-align: top; }}
.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
td p {{ margin: 0.1rem 0 0; opacity: 0.8; }}
</style>
</head>
<body>
<h1>The IOI circuit, hands on</h1>
<p>{count}, each executed from a fresh kernel.</p>
<table>
<thead><tr><th>notebook</th><th>model</th><th class="number">seconds</th>
<th class="number">cells</th><th class="number">figures</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
<p>Executed copies of the notebooks are in <a href="notebooks/">notebooks/</a>.</p>
</body>
</html>
"""


class Pages:
    """A folder of pages: `write` adds or renews one, and the index shows all that are there.

    The executed copies below `notebooks/` say in their metadata when a page stands for them, on
    which model they ran and how long. Pages of notebooks that are not among `stems`, the
    curriculum's, are removed.
    """

    def __init__(self, out: Path, stems: Sequence[str]) -> None:
        self.out, self.stems = out, list(stems)
        self.copies, self.index = out / "notebooks", out / "index.html"
        self.copies.mkdir(parents=True, exist_ok=True)
        for name, script in page_scripts().items():
            (out / name).write_text(script, encoding="utf-8")
        for stale in {path.stem for path in self.copies.glob("*.ipynb")} - set(self.stems):
            self.remove(stale)

    def write(self, execution: Execution, model: str) -> None:
        """Write the copy and the page of an executed notebook, and the index anew."""
        made = copy.deepcopy(execution.notebook)
        made.metadata[RUN] = {"model": model, "seconds": execution.seconds}
        nbformat.write(made, self.copies / execution.path.name)
        text = page(execution.notebook, self.stems)
        self._page(execution.path.stem).write_text(text, encoding="utf-8")
        self._write_index()

    def remove(self, stem: str) -> None:
        """Take away the copy and the page of a notebook, where there are any."""
        (self.copies / f"{stem}.ipynb").unlink(missing_ok=True)
        self._page(stem).unlink(missing_ok=True)
        self._write_index()

    def _page(self, stem: str) -> Path:
        return self.out / f"{stem}.html"

    def _write_index(self) -> None:
        rows = []
        for path in sorted(self.copies.glob("*.ipynb")):
            notebook = nbformat.read(path, as_version=4)
            if RUN in notebook.metadata and self._page(path.stem).exists():
                rows.append(_row(path.stem, notebook))
        count = "1 notebook" if len(rows) == 1 else f"{len(rows)} notebooks"
        self.index.write_text(INDEX.format(count=count, rows="\n".join(rows)), encoding="utf-8")


def page(notebook: NotebookNode, stems: list[str]) -> str:
    """The page of one executed notebook; links to the notebooks in `stems` lead to their pages."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata.pop("widgets", None)
    drawn = 0
    for cell in code_cells(notebook):
        cell.outputs = [output for output in cell.outputs if not is_progress_bar(output)]
        for output in cell.outputs:
            source = page_figure(output.get("data", {}))
            if source:
                drawn += 1
                output.data = NotebookNode({"text/html": source})
    notebook.metadata["title"], _ = heading(notebook)
    exporter = HTMLExporter(
        extra_loaders=[DictLoader({"page.html.j2": PAGE})], template_file="page.html.j2"
    )
    scripts = list(page_scripts()) if drawn else []
    text, _ = exporter.from_notebook_node(notebook, resources={"figure_scripts": scripts})
    for stem in stems:
        text = re.sub(rf'href="(?:\./)?{re.escape(stem)}\.ipynb', f'href="{stem}.html', text)
    return text


def heading(notebook: NotebookNode) -> tuple[str, str]:
    """A notebook's title, and the first paragraph below it that is words."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    title = re.search(r"^# +(.+)$", text, re.MULTILINE)
    if not title:
        return "untitled", ""
    for paragraph in re.split(r"\n\s*\n", text[title.end() :]):
        badges_and_tags = r"\[?!\[[^\]]*\]\([^)]*\)(?:\]\([^)]*\))?|<[^>]+>"
        words = re.sub(badges_and_tags, "", paragraph).strip()
        if words and not words.startswith(("#", "|", "-")):
            return title[1].strip(), re.sub(r"\[([^\]]*)\]\([^)]*\)|[*`]+", r"\1", words)
    return title[1].strip(), ""


def _row(stem: str, notebook: NotebookNode) -> str:
    title, question = heading(notebook)
    cells = code_cells(notebook)
    figures = sum(is_figure(output) for cell in cells for output in cell.outputs)
    return (
        f'<tr><td><a href="{stem}.html">{html.escape(title)}</a>'
        f"<p>{html.escape(question)}</p></td>"
        f"<td><code>{html.escape(notebook.metadata[RUN].model)}</code></td>"
        f'<td class="number">{notebook.metadata[RUN].seconds:.1f}</td>'
        f'<td class="number">{len(cells)}</td>'
        f'<td class="number">{figures}</td></tr>'
    )
