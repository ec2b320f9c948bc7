"""The API reference: a page for each room of the package, from its docstrings."""

from __future__ import annotations

import ast
import re

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
            found[name] = re.split(r"(?<=[.:])\s", " ".join(text.split()), maxsplit=1)[0]
    return found


def _offers(room: str) -> bool:
    """Whether a room is a folder that says what it offers."""
    source = PACKAGE / room / "__init__.py"
    return source.exists() and "__all__" in source.read_text(encoding="utf-8")


def for_sphinx(lines: list[str], what: str = "function") -> list[str]:
    """A docstring as Sphinx reads it rightly; `what` it is of, in autodoc's words.

    A bar, a backslash before a space or the star of `[*axes]` is just that, an indented block is
    code, attributes that share a line are several, and what stands before the first colon of a
    property, or of what is returned, is not its type.
    """
    lines = _apart(lines)
    # napoleon looks for a type in the first line: `..` is an empty comment.
    made: list[str] = ["..", ""] if what in ("attribute", "data", "property") else []
    for i, line in enumerate(lines):
        before = next((text for text in reversed(lines[:i]) if text.strip()), "")
        begins = line.startswith("    ") and i > 0 and not lines[i - 1].strip()
        if begins and before and not before.startswith((" ", "-", "*")) and before[-2:] != "::":
            made += ["::", ""]
        plain = r"(``.*?``|`[^`]*`)|((?<!\\)\||(?<=\[)\*(?=\w)|\\(?=\s))"
        made.append(re.sub(plain, lambda match: match[1] or "\\" + match[2], line))
        if line in ("Returns:", "Yields:"):
            made += ["    ..", ""]
    return made


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
