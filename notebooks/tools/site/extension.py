"""Our part of the site's engine: what Sphinx does not do by itself.

It turns links and figures as a source is read, links the glossary's terms, lets long names break
where they have joints, loads the scripts of figures on the pages that have some, and writes
mathematics as MathML.
"""

from __future__ import annotations

from typing import Any

import nbformat
from docutils import nodes

from notebooks.tools.execution import REPOSITORY
from notebooks.tools.site import glossary, mathml
from notebooks.tools.site.breaks import with_breaks
from notebooks.tools.site.front import front_page
from notebooks.tools.site.outputs import for_page
from notebooks.tools.site.reference import for_sphinx, readable_signature
from notebooks.tools.site.sources import Page, pages, relink, repository_address

GLOSSARY = "glossary"


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_config_value("ioi_terms", "", "html")  # pages are written anew when a term changes
    app.add_config_value("ioi_tools", "", "env")  # and read anew when these tools change
    app.add_html_math_renderer(mathml.NAME, (mathml.visit_inline, None), (mathml.visit_block, None))
    app.connect("env-get-outdated", always_outdated)
    app.connect("source-read", read_source)
    app.connect("autodoc-process-docstring", read_docstring, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", read_signature)
    app.connect("doctree-resolved", link_terms)
    app.connect("html-page-context", load_scripts)
    app.connect("html-page-context", break_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def always_outdated(app: Any, env: Any, added: set, changed: set, removed: set) -> list[str]:
    """The front page lists the others, so it is read anew every time."""
    return ["index"]


def read_source(app: Any, name: str, content: list[str]) -> None:
    """Turn a source as it is read; the file itself, which readers download, stays as it is."""
    known = pages()
    page = next((page for page in known if page.name == name), None)
    if page is None:
        return
    repository = repository_address()
    if page.path.endswith(".ipynb"):
        notebook = nbformat.reads(content[0], as_version=4)
        shown = for_page(notebook, lambda text: relink(text, page, known, repository))
        content[0] = nbformat.writes(shown)
    else:
        content[0] = relink(content[0], page, known, repository)
        if name == "index":
            content[0] = front_page(content[0], known)


def read_docstring(
    app: Any, what: str, name: str, thing: object, options: Any, lines: list[str]
) -> None:
    """Turn a docstring as it is read."""
    lines[:] = for_sphinx(lines, what)


def read_signature(
    app: Any, what: str, name: str, thing: object, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """Turn a signature as it is read."""
    return (readable_signature(signature), returns) if signature else None


def link_terms(app: Any, document: nodes.document, name: str) -> None:
    """Link the glossary's terms from their first use in a notebook or one of the site's pages."""
    page = next((page for page in pages() if page.name == name), None)
    if page is None or not is_taught(page) or name == GLOSSARY:
        return
    text = (REPOSITORY / "docs" / f"{GLOSSARY}.md").read_text(encoding="utf-8")
    target = app.builder.get_relative_uri(name, GLOSSARY)
    glossary.link_first_uses(document, glossary.terms(text), target)


def is_taught(page: Page) -> bool:
    """Whether a page is read by learners, who want to look words up."""
    return page.path.startswith(("notebooks/", "docs/")) and page.name != "index"


def load_scripts(
    app: Any, name: str, template: str, context: dict[str, Any], document: Any
) -> None:
    """Load the scripts that draw figures, on pages that have figures."""
    body = context.get("body", "")
    if 'class="ioi-figure"' not in body:
        return
    scripts = ["plotly.min.js", "circuitsvis.js", "figures.js"]
    if 'data-kind="attention"' not in body:
        scripts.remove("circuitsvis.js")
    for script in scripts:
        app.add_js_file(script, loading_method="defer")


def break_names(app: Any, name: str, template: str, context: dict[str, Any], document: Any) -> None:
    """Let long names break at their joints."""
    if "body" in context:
        context["body"] = with_breaks(context["body"])
