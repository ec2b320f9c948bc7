"""The commands around the notebooks: `python -m notebooks.tools COMMAND [01 02 ...]`.

A command's module is imported here, where Ctrl-C ends in one line: importing takes seconds too.
What a command refuses is said here in its sentence alone.
"""

from __future__ import annotations

import importlib
import sys

from notebooks.tools import CannotGoOn

COMMANDS = {
    "run": "execute notebooks and write pages to browse to build/",
    "site": "build the course site from stored outputs; nothing is executed",
    "check": "execute notebooks and compare with what is stored; nothing is written",
    "refresh": "execute notebooks and store their outputs",
    "budgets": "measure seconds and memory for the notebooks' budget cards",
    "check-gpt2": "check GPT-2 small against what is published, where it can be had",
    "address": "set the repository's public address, OWNER/NAME",
    "editions": "make editions for students (no solutions) and teachers (wrong answers, too)",
    "as_text": "print a notebook file as text, for git's diffs",
}


def main(arguments: list[str]) -> int:
    """Run a command; returns its exit status."""
    if not arguments or arguments[0] not in COMMANDS:
        listed = "\n".join(f"  {name:<12}{what}" for name, what in COMMANDS.items())
        print(f"python -m notebooks.tools COMMAND [01 02 ...]\n{listed}", file=sys.stderr)
        return 2
    try:
        command = importlib.import_module(f"notebooks.tools.{arguments[0].replace('-', '_')}")
        return int(command.main(arguments[1:]))
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    except (CannotGoOn, ValueError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
