"""The teacher's command: `python -m ioi_helpers.exercises collect FOLDER`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ioi_helpers.exercises.collecting import collect, refuse_to_start_inside, report


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ioi_helpers.exercises")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser(
        "collect",
        help="check the answers that students exported once more, and make a table",
        description="Check the answers that students exported once more, and make a table. It "
        "notices accidents, not cheats, and runs no code of a student's.",
    )
    one.add_argument("folder", type=Path, help="where the files are that students handed in")
    one.add_argument("--table", type=Path, help="default: FOLDER/collected.csv")
    one.add_argument("--model", help="the model the class was told to use; others are named")
    one.add_argument("--notebooks", type=Path, help="default: those of this checkout")
    options = parser.parse_args(arguments)
    try:
        refuse_to_start_inside(options.folder)
        found = collect(options.folder, model=options.model, notebooks=options.notebooks)
        report(found, options.table or options.folder / "collected.csv")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
