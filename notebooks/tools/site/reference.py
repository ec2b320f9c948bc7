"""The API reference: a page for each room of the package, from its docstrings."""

from __future__ import annotations

import ast
import re
import textwrap
from itertools import takewhile

from notebooks.tools.execution import REPOSITORY

PACKAGE = REPOSITORY / "ioi_helpers"

TITLE = "API reference"


def rooms() -> dict[str, str]:
    """The package's rooms in alphabetical order, each with its docstring's first sentence."""
    found = {}
    for path in sorted(PACKAGE.iterdir()):
        source = path / "__init__.py" if path.is_dir() else path
        name = path.stem
        if source.suffix == ".py" and source.exists() and not name.startswith("_"):
            text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
            found[name] = re.split(r"(?<=\.)\s", " ".join(text.split()), maxsplit=1)[0]
    return found


def _offers(room: str) -> bool:
    """Whether a room is a folder that says what it offers."""
    source = PACKAGE / room / "__init__.py"
    return source.exists() and "__all__" in source.read_text(encoding="utf-8")


def for_sphinx(lines: list[str], what: str = "function") -> list[str]:
    """A docstring as Sphinx reads it rightly; `what` it is of, in autodoc's words.

    In prose a bar, a backslash before a space and the star of `[*axes]` are just that, and a letter
    as all that is said of an argument begins no list. An indented block below a paragraph is code,
    formulas or a table. Attributes that share a line are several, and what stands before the first
    colon of a property, or of what is returned, is not its type.
    """
    lines = _apart(lines)
    # napoleon looks for a type in the first line: `..` is an empty comment.
    made: list[str] = ["..", ""] if what in ("attribute", "data", "property") else []
    at = 0
    while at < len(lines):
        block = _block(lines, at)
        if block:
            made += block if _above(lines, at).endswith("::") else _named(block)
            at += len(block)
            continue
        made.append(_prose(lines[at]))
        if lines[at] in ("Returns:", "Yields:"):
            made += ["    ..", ""]
        at += 1
    return made


def _block(lines: list[str], at: int) -> list[str]:
    """The block, indented below a paragraph, that begins at line `at`; empty where none does."""
    above = _above(lines, at)
    if not above or lines[at - 1].strip() or _depth(lines[at]) < _depth(above) + 4:
        return []
    if above.startswith((" ", "-", "*")) and not above.endswith("::"):
        return []

    def inside(line: str) -> bool:
        return not line.strip() or _depth(line) > _depth(above)

    return list(takewhile(inside, lines[at:]))


def _above(lines: list[str], at: int) -> str:
    """The last line above line `at` that is not empty."""
    return next((line for line in reversed(lines[:at]) if line.strip()), "")


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def _named(block: list[str]) -> list[str]:
    """A block as what it is: a table, Python, or else text, which has no colours."""
    text = textwrap.dedent("\n".join(block))
    if re.match(r"=+( +=+)+\n", text):
        return text.split("\n")
    try:
        ast.parse(text)
    except SyntaxError:
        return [".. code-block:: text", "", *block]
    return ["::", "", *block]


def _prose(line: str) -> str:
    """A line of prose in which nothing is markup by accident."""
    plain = r"(``.*?``|`[^`]*`)|((?<!\\)\||(?<=\[)\*(?=\w)|\\(?=\s)|(?<=: )\w\.$)"
    return re.sub(plain, lambda match: match[1] or "\\" + match[2], line)


def _apart(lines: list[str]) -> list[str]:
    """A class's docstring in which `a, b: What.` below `Attributes:` is an entry for each.

    So napoleon does below `Args:`; below `Attributes:` it takes the first name for a type.
    """
    above, heading, below = "\n".join(lines).partition("Attributes:\n")

    def each(entry: re.Match[str]) -> str:
        return "\n".join(f"    {name}{entry[2]}" for name in entry[1].split(", "))

    shared = re.compile(r"^    (\w+(?:, \w+)+)(:.*(?:\n {5,}.*)*)", re.MULTILINE)
    return f"{above}{heading}{shared.sub(each, below)}".split("\n") if heading else lines


def readable_signature(signature: str) -> str:
    """A signature that Sphinx can read: what a dataclass makes anew for each is no expression."""
    return signature.replace("<factory>", "...")


def reference_pages() -> dict[str, str]:
    """The pages by name, in Markdown: `api/index` and one for each room."""
    known = rooms()
    rows = "\n".join(f"| [`{name}`]({name}.md) | {first} |" for name, first in known.items())
    tree = "\n".join(known)
    made = {
        "api/index": f"# {TITLE}\n\nWhat each room of `ioi_helpers` offers: its docstrings.\n\n"
        f"| room | |\n|---|---|\n{rows}\n\n```{{toctree}}\n:hidden:\n\n{tree}\n```\n"
    }
    for name in known:
        # What a room's `__init__` offers is imported there from the files of its folder.
        imported = "   :imported-members:\n" if _offers(name) else ""
        made[f"api/{name}"] = (
            f"# `{name}`\n\n```{{eval-rst}}\n.. automodule:: ioi_helpers.{name}\n"
            f"   :members:\n{imported}   :member-order: bysource\n```\n"
        )
    return made
