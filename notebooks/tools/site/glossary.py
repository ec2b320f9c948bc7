"""The glossary's terms, and a link to each from its first use on a page.

`docs/glossary.md` has a heading of the third level for each term: its name, and in brackets other
words for it, separated by commas: `### direct logit attribution (DLA)`. The first sentence below is
what a page shows when one hovers over the link.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from docutils import nodes

HEADING = re.compile(r"^### +(.+?) *(?:\(([^)]+)\))? *$\n+((?:(?!^#).*\n?)*)", re.MULTILINE)


@dataclass(frozen=True)
class Term:
    """A term: the words for it, its anchor in the glossary, and what it means in a sentence."""

    words: tuple[str, ...]
    anchor: str
    meaning: str


def terms(text: str) -> list[Term]:
    """The terms of a glossary, from its Markdown."""
    found = []
    for name, others, below in HEADING.findall(text):
        heading = f"{name} ({others})" if others else name
        plain = [_plain(word) for word in (name, *others.split(","))]
        meaning = re.split(r"(?<=[.!?])\s", _plain(" ".join(below.split())), maxsplit=1)[0]
        words = tuple(word for word in plain if word)
        found.append(Term(words, nodes.make_id(_plain(heading)), meaning))
    return found


def link_first_uses(document: nodes.document, known: Sequence[Term], glossary: str) -> int:
    """Link each term from its first use in running text; returns how many were linked.

    `glossary` is the address of the glossary's page, seen from this one. Text that is folded away
    is looked at last. Headings, code and links are left alone; a role such as `S2` in code letters
    is linked where it is all that stands there.
    """
    waiting = {term.anchor: term for term in known}
    linked = 0
    for text in sorted(_places(document), key=lambda place: place[0]):
        node = text[1]
        linked += _link(node, waiting, glossary)
    return linked


def _places(document: nodes.document) -> Iterator[tuple[bool, nodes.Text]]:
    """Every piece of running text, with whether it is folded away."""
    depth = 0
    for node in list(document.findall()):
        if isinstance(node, nodes.raw):
            source = node.astext()
            depth += len(re.findall(r"<details\b", source)) - source.count("</details>")
        elif isinstance(node, nodes.Text) and _is_prose(node):
            yield depth > 0, node


def _is_prose(node: nodes.Text) -> bool:
    closed = (nodes.reference, nodes.title, nodes.raw, nodes.math, nodes.literal_block)
    parent = node.parent
    in_paragraph = False
    while parent is not None:
        if isinstance(parent, closed) or "cell_output" in getattr(parent, "attributes", {}).get(
            "classes", ()
        ):
            return False
        in_paragraph = in_paragraph or isinstance(parent, nodes.paragraph)
        parent = parent.parent
    return in_paragraph


def _link(node: nodes.Text, waiting: dict[str, Term], glossary: str) -> int:
    """Link the terms still waiting that stand in one piece of text, and take them off the list."""
    if isinstance(node.parent, nodes.literal):
        for term in waiting.values():
            if str(node) in term.words:
                del waiting[term.anchor]
                literal = node.parent
                link = _reference(term, glossary)
                literal.replace_self(link)
                link += literal
                return 1
        return 0
    made: list[nodes.Node] = []
    rest = str(node)
    while True:
        found = _first(rest, waiting)
        if found is None:
            break
        start, end, term = found
        del waiting[term.anchor]
        link = _reference(term, glossary)
        link += nodes.Text(rest[start:end])
        made += [nodes.Text(rest[:start]), link]
        rest = rest[end:]
    if made:
        node.parent.replace(node, [*made, nodes.Text(rest)])
    return len(made) // 2


def _first(text: str, waiting: dict[str, Term]) -> tuple[int, int, Term] | None:
    """The first term in a text, the longest where several begin at one place."""
    best: tuple[int, int, Term] | None = None
    for term in waiting.values():
        for word in term.words:
            match = _pattern(word).search(text)
            if match and (best is None or (match.start(), -match.end()) < (best[0], -best[1])):
                best = (match.start(), match.end(), term)
    return best


def _pattern(word: str) -> re.Pattern[str]:
    """How a word is found: as it is where it has capitals past its first letter, else in any case;
    in the plural as well."""
    flags = re.NOFLAG if re.search(r"[A-Z]", word) else re.IGNORECASE
    body = r"[\s-]+".join(re.escape(part) for part in re.split(r"[\s-]+", word))
    return re.compile(rf"(?<![\w-]){body}(?:s|es)?(?![\w-]|\+)", flags)


def _reference(term: Term, glossary: str) -> nodes.reference:
    link = nodes.reference(refuri=f"{glossary}#{term.anchor}", internal=True, classes=["ioi-term"])
    link["reftitle"] = term.meaning
    return link


def _plain(text: str) -> str:
    return re.sub(r"\[([^\]]*)\]\([^)]*\)|[*`]+", r"\1", text).strip()
