"""The course site: its sources, links, glossary and mathematics; and the site itself, built."""

from __future__ import annotations

import re
import textwrap
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest

from notebooks.tools import address
from notebooks.tools.execution import REPOSITORY, find_notebooks
from notebooks.tools.site import sources
from notebooks.tools.site.breaks import with_breaks
from notebooks.tools.site.outputs import RUN, for_page, question, title
from notebooks.tools.site.reference import for_sphinx, reference_pages, rooms
from notebooks.tools.site.sources import Page, pages, relink, without_badge
from notebooks.tools.stored_outputs import read
from tests.house import mapped_rooms
from tests.sample_notebooks import PICTURE, code, figure, notebook, printed, text

pytest.importorskip("myst_nb", reason="the site's engine is not installed: pip install -e .[site]")
from docutils import nodes
from markdown_it import MarkdownIt

from notebooks.tools.site.glossary import link_first_uses, terms
from notebooks.tools.site.mathml import mathml

HERE = "https://example.org/a/b"
KNOWN = [
    Page("index", "docs/index.md"),
    Page("notebooks/01_one", "notebooks/01_one.ipynb"),
    Page("glossary", "docs/glossary.md"),
    Page("models/ioi-mini", "ioi_helpers/bundled/ioi-mini/README.md"),
]
ONE = KNOWN[1]


# --- sources -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "made"),
    [
        ("[a](../docs/glossary.md#probe)", "[a](../glossary.md#probe)"),
        ("[a](01_one.ipynb)", "[a](01_one.ipynb)"),
        ('<a href="../docs/glossary.md">', '<a href="../glossary.html">'),
        (f"[a]({HERE}/blob/main/docs/glossary.md)", "[a](../glossary.md)"),
        ("[a](../ioi_helpers/bundled/ioi-mini)", "[a](../models/ioi-mini.md)"),
        ("[a](../ioi_helpers/names.py)", f"[a]({HERE}/blob/main/ioi_helpers/names.py)"),
        ("[a](../tests/)", f"[a]({HERE}/tree/main/tests)"),
        ("[a](#below) [b](https://arxiv.org)", "[a](#below) [b](https://arxiv.org)"),
        ("`[a](gone.md)`", "`[a](gone.md)`"),
        ("```python\nx[0](gone)\n```", "```python\nx[0](gone)\n```"),
    ],
)
def test_a_link_leads_to_the_page_or_to_the_repository(written: str, made: str) -> None:
    assert relink(written, ONE, KNOWN, HERE) == made


def test_a_link_that_leads_nowhere_is_named() -> None:
    with pytest.raises(ValueError, match=r"notebooks/01_one.ipynb links to gone.md"):
        relink("[a](gone.md)", ONE, KNOWN, HERE)


def test_every_link_of_every_page_leads_somewhere() -> None:
    known, ours = pages(), sources.repository_address()
    assert len(known) > 15
    for page in known:
        path = REPOSITORY / page.path
        if path.suffix == ".ipynb":
            texts = [c.source for c in read(path).cells if c.cell_type == "markdown"]
        else:
            texts = [path.read_text(encoding="utf-8")]
        for words in texts:
            relink(words, page, known, ours)


def test_a_notebook_becomes_a_page() -> None:
    plot = figure("Heat map: L9H9 1.52", **{"application_vnd.plotly.v1+json": {"data": []}})
    bar = printed("\r100%|###| 3/3 [00:01<00:00]\n", "stderr")
    made = notebook(
        text("# One\n\n[![b](https://x/a.svg)](https://x)\n\nWhich *heads* see [it](c.md)?"),
        code("f()", [bar, printed("1.5\n"), plot]),
    )
    table = {"text/html": "<td>0.5 ± 0.1</td>", "text/plain": "0.5 ± 0.1"}
    made.cells[2].outputs.append(nbformat.v4.new_output("execute_result", table))
    made.metadata["widgets"] = {"state": {}}
    assert (title(made), question(made)) == ("One", "Which heads see it?")
    shown = for_page(made, lambda words: words.replace("c.md", "d.md"))
    head = shown.cells[1].source
    assert "svg" not in head and "(d.md)" in head
    assert "from <code>ioi-mini</code>" in head
    outputs = shown.cells[2].outputs
    assert [output.output_type for output in outputs] == [
        "stream", "display_data", "execute_result",
    ]  # fmt: skip
    assert outputs[2].data["text/html"] == "<td>0.5\u00a0±\u00a00.1</td>"
    assert list(outputs[1].data) == ["text/html"]
    assert f"base64,{PICTURE}" in outputs[1].data["text/html"]
    assert "widgets" not in shown.metadata

    ran = notebook(text("# One"))
    ran.metadata[RUN] = {"model": "ioi-plain", "seconds": 12.3}
    assert "Run here on <code>ioi-plain</code> in 12 s" in for_page(ran, str).cells[1].source


def test_no_list_runs_on_as_a_paragraph() -> None:
    """A formula at the margin ends a list, and "2. ..." below it begins none."""
    parser = MarkdownIt("commonmark").enable("table")
    for path in find_notebooks():
        for cell in read(path).cells:
            for token in parser.parse(cell.source) if cell.cell_type == "markdown" else ():
                later = token.content.split("\n")[1:] if token.type == "inline" else []
                assert not [line for line in later if re.match(r"(\d+\.|[-*+]) ", line)], path


def test_titles_and_questions_where_there_are_none() -> None:
    assert (title(notebook(text("words"))), question(notebook(text("words")))) == ("untitled", "")
    assert without_badge("words") == "words"


def test_the_reference_has_every_room() -> None:
    mapped = mapped_rooms((REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    built = {room for room, sentence in mapped.items() if not sentence.endswith("(to come)")}
    assert set(rooms()) == built
    assert not [room for room, sentence in rooms().items() if not sentence or sentence[-1] == ":"]
    assert {f"api/{room}" for room in built} < set(reference_pages())


def test_a_docstring_is_read_rightly() -> None:
    shared = [
        "What.",
        "",
        "Attributes:",
        "    a, b: The one",
        "        and the other.",
        "    c: Its.",
    ]
    assert for_sphinx(shared, "class") == [
        *["What.", "", "Attributes:"],
        *["    a: The one", "        and the other.", "    b: The one", "        and the other."],
        "    c: Its.",
    ]
    assert for_sphinx(["The sum: of all."]) == ["The sum: of all."]
    # napoleon takes what stands before a property's first colon for its type.
    assert for_sphinx(["C \\ K.", "", "Returns:", "    A row: ``a``."]) == [
        *["C \\\\ K.", "", "Returns:", "    ..", "", "    A row: ``a``."],
    ]
    assert for_sphinx(["The sum: of all."], "property") == ["..", "", "The sum: of all."]
    assert for_sphinx(["Args:", "    circuit: C."]) == ["Args:", "    circuit: \\C."]


@pytest.mark.parametrize(
    ("block", "made"),
    [
        (["    f([*a, 1])  # C \\ K", "", "    a | b"], ["::", "", None]),
        (
            ["    x = W[t] + ...     the stream", "    y = x | C \\ K"],
            [".. code-block:: text", "", None],
        ),
        (["    =  =", "    a  b", "    =  ="], ["=  =", "a  b", "=  ="]),
    ],
)
def test_an_indented_block_is_shown_as_what_it_is(block: list[str], made: list[str | None]) -> None:
    want = [line for part in made for line in (block if part is None else [part])]
    assert for_sphinx(["A | b.", "", *block, "C."]) == ["A \\| b.", "", *want, "C."]
    assert for_sphinx(["So::", "", *block]) == ["So::", "", *block]


def test_every_table_of_a_docstring_is_well_formed() -> None:
    from docutils.core import publish_doctree

    rule = r"^ *=+(?: +=+)+\n"
    for path in (REPOSITORY / "ioi_helpers").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        for found in re.findall(rf"{rule}(?:.*\n)*?{rule}(?:.*\n)*?{rule}", source, re.MULTILINE):
            read_as = publish_doctree(
                textwrap.dedent(found), settings_overrides={"report_level": 5}
            )
            assert [type(node) for node in read_as] == [nodes.table], f"{path.name}: {read_as}"


@pytest.mark.parametrize(
    ("written", "made"),
    [
        (
            "<table><td><code><b>heads.repeat_x</b></code></table>",
            "<table><td><code><b>heads.<wbr/>repeat_<wbr/>x</b></code></table>",
        ),
        (
            "<table><td><code>draw(&quot;a&quot;, 1.5)</code> flipped_ABBA</table>",
            "<table><td><code>draw(<wbr/>&quot;a&quot;, 1.5)</code> flipped_ABBA</table>",
        ),
        (
            '<table class="dataframe"><td>L2.post flipped_ABBA</table>',
            '<table class="dataframe"><td>L2.post flipped_<wbr/>ABBA</table>',
        ),
        ("<p><code>heads.repeat</code> a_b</p>", "<p><code>heads.repeat</code> a_b</p>"),
    ],
)
def test_long_names_break_at_their_joints(written: str, made: str) -> None:
    assert with_breaks(written) == made


# --- glossary and mathematics ------------------------------------------------------------------

GLOSSARY = """# Glossary

### name mover (name-mover head)
A head that copies. It has friends.

### induction head

Looks back.

### role (IO, S2)
What a token is for.
"""


def document(*paragraphs: nodes.Node) -> nodes.document:
    """A document of these parts."""
    from docutils.utils import new_document

    made = new_document("test")
    made += list(paragraphs)
    return made


def paragraph(*parts: nodes.Node | str) -> nodes.paragraph:
    """A paragraph of these parts."""
    return nodes.paragraph("", "", *(nodes.Text(p) if isinstance(p, str) else p for p in parts))


def links(made: nodes.document) -> list[tuple[str, str]]:
    """The words that are linked, and where they lead."""
    return [(node.astext(), node["refuri"]) for node in made.findall(nodes.reference)]


def test_terms_are_read_from_the_glossary() -> None:
    found = terms(GLOSSARY)
    assert [term.words for term in found] == [
        ("name mover", "name-mover head"),
        ("induction head",),
        ("role", "IO", "S2"),
    ]
    assert [term.anchor for term in found] == [
        "name-mover-name-mover-head",
        "induction-head",
        "role-io-s2",
    ]
    assert [term.meaning for term in found][:2] == ["A head that copies.", "Looks back."]


def test_a_term_is_linked_from_its_first_use() -> None:
    made = document(
        nodes.title("", "Name movers"),
        paragraph("Rename movers, and ", nodes.reference("", "name movers", refuri="x"), "."),
        nodes.raw("", "<details><summary>Hint</summary>", format="html"),
        paragraph("Name movers, folded away; an Induction\nhead."),
        nodes.raw("", "</details>", format="html"),
        paragraph("Name movers and ", nodes.literal("", "S2+1"), nodes.literal("", "S2"), "."),
        paragraph("Name movers again, at IO."),
    )
    assert link_first_uses(made, terms(GLOSSARY), "../glossary.html") == 3
    assert links(made) == [
        ("name movers", "x"),
        ("Induction\nhead", "../glossary.html#induction-head"),
        ("Name movers", "../glossary.html#name-mover-name-mover-head"),
        ("S2", "../glossary.html#role-io-s2"),
    ]
    assert made.astext().count("Name movers") == 4  # words stay as they are


def test_every_term_is_explained_once_and_used() -> None:
    found = terms((REPOSITORY / "docs/glossary.md").read_text(encoding="utf-8"))
    words = [word.lower() for term in found for word in term.words]
    assert len(words) == len(set(words))
    assert all(len(term.meaning) > 20 for term in found)
    taught = "\n".join(
        cell.source
        for path in find_notebooks()
        for cell in read(path).cells
        if cell.cell_type == "markdown"
    ).lower()
    unused = [t.words for t in found if not any(word.lower() in taught for word in t.words)]
    assert unused == []


def test_every_formula_becomes_mathml() -> None:
    formulas = [
        formula
        for path in find_notebooks()
        for cell in read(path).cells
        if cell.cell_type == "markdown"
        for formula in re.findall(
            r"\$\$?([^$\n]+)\$", re.sub(r"```.*?```|`[^`]*`", "", cell.source, flags=re.DOTALL)
        )
    ]
    assert len(formulas) >= 6
    for formula in formulas:
        made = mathml(formula, block=True)
        assert made.startswith("<math") and 'display="block"' in made
        assert "\\" not in re.sub(r"<annotation.*?</annotation>", "", made), formula


# --- the site, built ---------------------------------------------------------------------------


class Reader(HTMLParser):
    """What a page holds: where its links lead, its anchors, what it loads, pictures' words."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.loaded: list[str] = []
        self.without_words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        if known.get("id"):
            self.anchors.add(str(known["id"]))
        if tag == "a" and known.get("href"):
            self.links.append(str(known["href"]))
        if tag in ("script", "img", "iframe") and known.get("src"):
            self.loaded.append(str(known["src"]))
        if tag == "link" and known.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(str(known["href"]))
        if tag == "img" and "alt" not in known:
            self.without_words.append(str(known.get("src"))[:60])


@pytest.mark.slow
def test_links_and_anchors_lead_somewhere_and_nothing_comes_from_the_network(site: Path) -> None:
    read_pages = {
        path: Reader(path) for path in site.rglob("*.html") if "_static" not in path.parts
    }
    assert len(read_pages) > 40
    for path, page in read_pages.items():
        name = path.relative_to(site)
        assert page.without_words == [], name
        for loaded in page.loaded:
            assert not re.match(r"(?:https?:)?//", loaded), f"{name} loads {loaded}"
        for link in page.links:
            target, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", link):
                continue
            other = (path.parent / unquote(target).partition("?")[0]).resolve() if target else path
            assert other.exists(), f"{name} links to {link}"
            if anchor and other in read_pages:
                assert unquote(anchor) in read_pages[other].anchors, f"{name} links to {link}"


@pytest.mark.slow
def test_notebooks_have_what_a_page_needs(site: Path) -> None:
    for path in find_notebooks():
        page = (site / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
        assert ("colab.research.google.com/github/" in page) == address.is_set()
        assert (site / "_sources" / "notebooks" / path.name).read_bytes() == path.read_bytes()
        assert page.count("<details") > 10
        assert 'class="ioi-term' in page or "ioi-term reference" in page
        assert "skip" in page.lower()
