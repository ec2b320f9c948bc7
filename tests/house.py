"""The package's import graph, read from its code, beside the map of the house in CONTRIBUTING.md.

    python -m tests.house             # each room, what it imports and what imports it
    python -m tests.house --mermaid   # a drawing that GitHub shows: paste it into ```mermaid

A room is a module or a folder of `ioi_helpers`. The map's rows are the rooms, ground floor first: a
room imports only rooms that stand above it. Every import counts, also one inside a function or
below `if TYPE_CHECKING`.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "ioi_helpers"
MAP = REPOSITORY / "CONTRIBUTING.md"

# Rooms that stand side by side although the order would let one import the other.
APART = dict.fromkeys(("probing", "lrqp"), ("patching", "ablation", "heads"))

Graph = dict[str, set[str]]


def mapped_rooms(text: str) -> dict[str, str]:
    """The rooms of the map in the text of CONTRIBUTING.md, in order, each with its sentence."""
    section = re.search(r"^## The house\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if section is None:
        raise ValueError("CONTRIBUTING.md has no section 'The house', which holds the map.")
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|$", section[1], re.MULTILINE)
    return {room: sentence.strip() for room, sentence in rows}


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """Every module below `package` by its dotted name without the package's: `lrqp.problem`."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(package: Path = PACKAGE) -> Graph:
    """The modules of the package that each of its modules imports by name."""
    known = modules(package)
    return {
        name: {
            target
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            for target in _targets(node, package.name, known)
        }
        for name, path in known.items()
    }


def _targets(node: ast.AST, package: str, known: Mapping[str, Path]) -> set[str]:
    """The package's modules that an import statement names; none for any other node."""
    if isinstance(node, ast.Import):
        dotted = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        if node.level:
            raise ValueError("The package imports by full names, and so does what draws it.")
        # `from package.room import name`: the name may be a module or something in one.
        dotted = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        return set()
    found = set()
    for name in dotted:
        inside = name.removeprefix(f"{package}.")
        while inside != name and inside:
            if inside in known:
                found.add(inside)
                break
            inside = inside.rpartition(".")[0]
    return found


def rooms(package: Path = PACKAGE) -> Graph:
    """The rooms that each room imports. The package's own `__init__` is the door, not a room."""
    graph: Graph = {}
    for name, targets in imports(package).items():
        room = name.partition(".")[0]
        if room:
            graph.setdefault(room, set()).update(t.partition(".")[0] for t in targets)
            graph[room].discard(room)
    return graph


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """A way from a node back to itself, [] if there is none."""
    done: set[str] = set()

    def follow(node: str, way: list[str]) -> list[str]:
        if node in way:
            return [*way[way.index(node) :], node]
        if node in done:
            return []
        for target in sorted(graph.get(node, ())):
            if found := follow(target, [*way, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := follow(node, []))), [])


def against_the_order(graph: Mapping[str, set[str]], order: list[str]) -> set[tuple[str, str]]:
    """The arrows (room, what it imports) that lead to a room that does not stand above."""
    floor = {room: place for place, room in enumerate(order)}
    return {
        (room, target)
        for room, targets in graph.items()
        for target in targets
        if floor.get(target, len(order)) >= floor.get(room, len(order))
        or target in APART.get(room, ())
    }


def in_words(graph: Mapping[str, set[str]], order: list[str]) -> str:
    """The graph as text: each room with what it imports, and at the end what breaks the order."""
    place = {room: i for i, room in enumerate(order)}

    def listed(names: set[str]) -> str:
        return ", ".join(sorted(names, key=lambda n: (place.get(n, len(place)), n))) or "nothing"

    lines = []
    for room in sorted(graph, key=lambda n: (place.get(n, len(place)), n)):
        users = {other for other, targets in graph.items() if room in targets}
        lines += [
            room,
            f"    imports          {listed(graph[room])}",
            f"    is imported by   {listed(users)}",
        ]
    wrong = [f"{a} -> {b}" for a, b in sorted(against_the_order(graph, order))]
    lines += ["", f"against the order: {', '.join(wrong) or 'nothing'}"]
    return "\n".join(lines)


def mermaid(graph: Mapping[str, set[str]], order: list[str]) -> str:
    """The graph as a mermaid flowchart, the ground floor at the bottom.

    Arrows that other arrows imply are left out, or nothing could be seen: a room is drawn above
    the rooms it imports that no other of them imports.
    """
    lines = ["flowchart BT"]
    for room in [r for r in order if r in graph] + sorted(set(graph) - set(order)):
        lines.append(f"    {room}")
        implied = set().union(*(_below(graph, target) for target in graph[room]), set())
        lines += [f"    {target} --> {room}" for target in sorted(graph[room] - implied)]
    return "\n".join(lines)


def _below(
    graph: Mapping[str, set[str]], room: str, seen: frozenset[str] = frozenset()
) -> set[str]:
    """Every room that `room` needs, through others too."""
    found = set(graph.get(room, ()))
    for target in graph.get(room, set()) - seen:
        found |= _below(graph, target, seen | {room})
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Draw who imports whom in ioi_helpers.")
    parser.add_argument("--mermaid", action="store_true", help="as a mermaid flowchart")
    options = parser.parse_args(arguments)
    order = list(mapped_rooms(MAP.read_text(encoding="utf-8")))
    print((mermaid if options.mermaid else in_words)(rooms(), order))
    return 0


if __name__ == "__main__":
    sys.exit(main())
