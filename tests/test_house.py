"""The rooms of the package keep their order, and CONTRIBUTING's map of them is true."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import house

ORDER = house.mapped_rooms(house.MAP.read_text(encoding="utf-8"))
TO_COME = "(to come)"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A small package of four rooms in order: ground, middle, heads, probing."""
    sources = {
        "__init__.py": "",
        "ground.py": "",
        "middle/__init__.py": "from small import ground",
        "middle/part.py": "import small.ground as below",
        "heads.py": "from small.middle.part import below",
        "probing.py": "def late():\n    from small.ground import anything",
    }
    for name, source in sources.items():
        path = tmp_path / "small" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source + "\n")
    return tmp_path / "small"


SMALL_ORDER = ["ground", "middle", "heads", "probing"]


def test_every_import_leads_to_a_room_above_in_the_map() -> None:
    assert house.against_the_order(house.rooms(), list(ORDER)) == set()


def test_nothing_goes_round_in_a_circle() -> None:
    assert house.circle(house.rooms()) == []
    assert house.circle(house.imports()) == []  # module by module, inside rooms too


def test_the_map_names_every_room_and_no_other() -> None:
    to_come = {room for room, sentence in ORDER.items() if sentence.endswith(TO_COME)}
    built = set(house.rooms())
    assert built == set(ORDER) - to_come, f"rooms that stand need no {TO_COME!r} in the map"


def test_probing_and_lrqp_load_no_room_they_do_not_need() -> None:
    code = f"import sys, {', '.join(f'ioi_helpers.{room}' for room in house.APART)}"
    code += "; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[1] for name in done.stdout.split() if name.startswith("ioi_helpers.")}
    assert set(house.APART) <= loaded
    for not_needed in house.APART.values():
        assert loaded.isdisjoint(not_needed)


def test_imports_of_every_form_are_seen(package: Path) -> None:
    assert house.imports(package) == {
        "": set(),
        "ground": set(),
        "middle": {"ground"},
        "middle.part": {"ground"},
        "heads": {"middle.part"},
        "probing": {"ground"},
    }
    assert house.against_the_order(house.rooms(package), SMALL_ORDER) == set()


@pytest.mark.parametrize(
    ("room", "line", "arrow"),
    [
        ("ground", "from small import heads", ("ground", "heads")),
        ("middle/part", "import small.probing", ("middle", "probing")),
        ("middle/part", "from small.heads import table", ("middle", "heads")),
        ("heads", "def late():\n    import small.probing", ("heads", "probing")),
        ("probing", "from small.heads import table", ("probing", "heads")),  # above, but apart
        ("heads", "from small import unmapped", ("heads", "unmapped")),
    ],
)
def test_an_arrow_against_the_order_is_found(
    package: Path, room: str, line: str, arrow: tuple[str, str]
) -> None:
    (package / "unmapped.py").write_text("")
    (package / f"{room}.py").write_text(line + "\n")
    assert arrow in house.against_the_order(house.rooms(package), SMALL_ORDER)


def test_a_circle_is_found_inside_a_room_too(package: Path) -> None:
    (package / "middle" / "other.py").write_text("from small.middle import part\n")
    (package / "middle" / "part.py").write_text("from small.middle.other import anything\n")
    assert house.circle(house.rooms(package)) == []
    assert house.circle(house.imports(package)) == ["middle.part", "middle.other", "middle.part"]


def test_the_graph_is_drawn(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (package / "ground.py").write_text("import small.heads\n")
    words = house.in_words(house.rooms(package), SMALL_ORDER)
    assert "heads\n    imports          middle\n    is imported by   ground" in words
    assert words.endswith("against the order: ground -> heads")
    drawing = house.mermaid({"a": set(), "b": {"a"}, "c": {"a", "b"}}, ["a", "b", "c"])
    assert drawing.split("\n") == ["flowchart BT", "    a", "    b", "    a --> b", "    c"] + [
        "    b --> c"  # and not a --> c, which these two imply
    ]
    assert house.main([]) == house.main(["--mermaid"]) == 0
    assert "against the order" in capsys.readouterr().out
