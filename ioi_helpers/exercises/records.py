"""A student's record: one JSON file with the answers themselves, of as many notebooks as they like.

Every notebook is a session of its own, and so is every sitting: writing to a file that is there
already adds to it. A record says of itself what it should hold, so that a file that was cut short,
edited or mangled on its way is noticed. That is all it is for: whoever wants to cheat can.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ioi_helpers.exercises.registry import EXERCISE_ID
from ioi_helpers.exercises.session import Entry, number
from ioi_helpers.exercises.values import Damaged, digest

FORMAT = "answers to exercises of ioi_helpers, format 1"
LARGEST = 200_000_000  # bytes of a file; a record of every notebook on GPT-2 small has some 20 MB


@dataclass(frozen=True)
class Record:
    """Whose answers, and the answers by exercise."""

    who: str
    entries: Mapping[str, Entry]


def write(record: Record, file: Path) -> None:
    """Write the record in one go: what interrupts it leaves the file as it was."""
    content: dict[str, Any] = {
        "format": FORMAT,
        "who": record.who,
        "answers": {
            id: {
                "answer": entry.answer,
                "passed": entry.passed,
                "tried": list(entry.tried),
                "checked on": dict(entry.checked_on),
            }
            for id, entry in sorted(record.entries.items(), key=lambda item: number(item[0]))
        },
    }
    content["digest"] = digest(content)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=file.name, suffix=".part")
    try:
        with open(handle, "w", encoding="utf-8") as opened:
            json.dump(content, opened, indent=1, allow_nan=False)
        os.chmod(name, 0o644)  # mkstemp's is for nobody else, and a teacher must read it
        os.replace(name, file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read(file: Path) -> Record:
    """The record in a file. Raises Damaged, whose message goes on from the file's name."""
    try:
        if file.stat().st_size > LARGEST:
            raise Damaged(f"it is larger than {LARGEST // 10**6} MB, which no record is")
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise Damaged(f"it cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise Damaged("it is no text, so no record that was left as it was written") from error
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        cut = (
            "it is empty" if not text.strip() else "it is no JSON, as if it was cut short or edited"
        )
        raise Damaged(cut) from error
    if not isinstance(content, dict) or "format" not in content:
        raise Damaged("it is JSON, but no record that exercises.export wrote")
    if content["format"] != FORMAT:
        raise Damaged(
            "it was written by another version of ioi_helpers, in a format unknown to this one"
        )
    try:
        said = content.pop("digest", None)
        if said != digest(content):
            raise Damaged("it is not as it was written: something in it was changed or lost")
        who = content["who"]
        entries = {id: _entry(id, held) for id, held in content["answers"].items()}
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise Damaged("something is missing from it") from error
    if not isinstance(who, str):
        raise Damaged("it does not say whose it is")
    return Record(who, entries)


def _entry(id: str, held: Any) -> Entry:
    """An entry as it stands in a file. Raises Damaged and what Python raises for a wrong shape."""
    tried, on = held["tried"], held["checked on"]
    model = on["model"]
    well_formed = (
        EXERCISE_ID.fullmatch(id)
        and isinstance(held["passed"], bool)
        and tried
        and all(isinstance(name, str) for name in tried)
        and isinstance(on["version"], str)
        and isinstance(model["name"], str)
        and all(isinstance(value, (int, float)) for value in model["sums"])
        and all(isinstance(text, str) for text in on["prompts"].values())
    )
    if not well_formed:
        raise Damaged(f"its answer to {id!r:.20} is not in the form of a record")
    return Entry(held["answer"], held["passed"], tuple(tried), on)


def merged(earlier: Record, later: Record) -> Record:
    """Two records of one person as one. Right answers of the earlier one stay."""
    entries = dict(earlier.entries)
    for id, entry in later.entries.items():
        entries[id] = entries[id].then(entry) if id in entries else entry
    return Record(later.who, entries)
