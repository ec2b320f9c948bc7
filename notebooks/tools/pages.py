"""Turn executed notebooks into pages to browse: one HTML page each, and an index.

Figures are interactive and need no network: `ioi_helpers.plotting` draws them, with scripts that
lie once beside the pages and that each page with a figure loads once. A page without JavaScript
shows their static pictures.
"""

from __future__ import annotations

import copy
import html
import re
from pathlib import Path

from jinja2 import DictLoader
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from ioi_helpers.plotting import page_figure, page_scripts
from notebooks.tools.compare import is_progress_bar
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
<p>{count} executed on <code>{model}</code>, each from a fresh kernel.</p>
<table>
<thead><tr><th>notebook</th><th class="number">seconds</th><th class="number">cells</th>
<th class="number">figures</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
<p>Executed copies of the notebooks are in <a href="notebooks/">notebooks/</a>.</p>
</body>
</html>
"""


def write_pages(executions: list[Execution], out: Path, model: str) -> Path:
    """Write a page for each execution, the scripts they load and `index.html` to `out`.

    Returns the index's path. Pages left by an earlier run are removed.
    """
    for stale in out.glob("*.html"):
        stale.unlink()
    for name, script in page_scripts().items():
        (out / name).write_text(script, encoding="utf-8")
    stems = [execution.path.stem for execution in executions]
    for execution in executions:
        text = page(execution.notebook, stems)
        (out / f"{execution.path.stem}.html").write_text(text, encoding="utf-8")
    index = out / "index.html"
    index.write_text(_index(executions, model), encoding="utf-8")
    return index


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


def _index(executions: list[Execution], model: str) -> str:
    rows = []
    for execution in executions:
        title, question = heading(execution.notebook)
        rows.append(
            f'<tr><td><a href="{execution.path.stem}.html">{html.escape(title)}</a>'
            f"<p>{html.escape(question)}</p></td>"
            f'<td class="number">{execution.seconds:.1f}</td>'
            f'<td class="number">{execution.cells}</td>'
            f'<td class="number">{execution.figures}</td></tr>'
        )
    count = "1 notebook" if len(executions) == 1 else f"{len(executions)} notebooks"
    return INDEX.format(count=count, model=html.escape(model), rows="\n".join(rows))
