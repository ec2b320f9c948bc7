"""A notebook's budget card: what it costs to read and to run.

    python -m notebooks.tools budgets [01 02 ...] [--models ioi-mini ioi-plain]

Words and minutes follow from the text and are renewed whenever outputs are stored. Seconds and
memory are of a machine: they change only when this is called (`make budgets`), which refuses while
something else is running. Cells and outputs stay as they are.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from tqdm import tqdm

from notebooks.tools import CannotGoOn
from notebooks.tools.compare import joined
from notebooks.tools.execution import Execution, arguments_for, execute, find_notebooks
from notebooks.tools.stored_outputs import code_cells, read, tags
from notebooks.tools.tasks import tasks

TIMED_MODELS = ("ioi-mini", "ioi-plain")
WORDS_A_MINUTE = 150  # technical prose, read with thought
CARD_BEGIN = "<!-- budget: generated, do not edit -->"
CARD_END = "<!-- end of budget -->"
MEASURED = "| to run on "  # how a measured row begins
# The file on the hub: GPT-2 small's 124,439,808 parameters in float32, and in each of its 12
# layers the causal mask of 1,024 by 1,024, which the file stores as floats too.
GPT2_DOWNLOAD = 4 * (124_439_808 + 12 * 1024 * 1024)
BUSY = 0.25  # cores at work for others, above which nothing is measured


def budget_cell(notebook: NotebookNode) -> NotebookNode:
    """The one Markdown cell tagged `budget`. Raises ValueError where there is not exactly one."""
    cards = [cell for cell in notebook.cells if "budget" in tags(cell)]
    if len(cards) != 1 or cards[0].cell_type != "markdown":
        raise ValueError("exactly one Markdown cell must carry the tag 'budget'")
    return cards[0]


def renew(notebook: NotebookNode, measured: Sequence[str] | None = None) -> None:
    """Write the card (in place): its rows on reading from the text, and below them `measured` rows,
    by default those that stand there already."""
    cell = budget_cell(notebook)
    if measured is None:
        measured = [line for line in cell.source.splitlines() if line.startswith(MEASURED)]
    cell.source = with_card(cell.source, [*reading_rows(notebook), *measured])


def reading_rows(notebook: NotebookNode) -> list[str]:
    """The rows that follow from the text: minutes to read, minutes for the exercises."""
    words = reading_words(notebook)
    minutes = max(1, round(words / WORDS_A_MINUTE))
    plural = "" if minutes == 1 else "s"
    rows = [f"| to read | about {minutes} minute{plural} ({words:,} words) |"]
    working = sum(task.minutes for task in tasks(notebook))
    if working:
        rows.append(f"| to do the exercises | about {working} minutes more |")
    return rows


def reading_words(notebook: NotebookNode) -> int:
    """Words in the notebook's Markdown and in what its cells print.

    Not counted: the budget card, solutions and code; and of what is printed, versions, untouched
    exercises, and what has no letter in it.
    """
    count = 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and not {"budget", "solution"} & set(tags(cell)):
            prose = re.sub(r"```.*?```", " ", cell.source, flags=re.DOTALL)
            prose = re.sub(r"<[^>]+>|\]\([^)]*\)|https?://\S+", " ", prose)
            count += len(re.findall(r"\b[\w'’-]+\b", prose))
        elif cell.cell_type == "code" and not {"versions", "exercise"} & set(tags(cell)):
            printed = [output.text for output in cell.outputs if output.get("name") == "stdout"]
            count += len(re.findall(r"\b(?=\S*[^\W\d_])[\w'’-]+\b", joined(printed)))
    return count


def measured_rows(timed: Mapping[str, Execution]) -> list[str]:
    """The rows that a machine measures, from an execution on each model."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    plural = "" if cores == 1 else "s"
    rows = []
    for model, execution in timed.items():
        memory = (
            f", {execution.peak_memory / 1e9:.1f} GB of memory" if execution.peak_memory else ""
        )
        download = "" if model == "gpt2-small" else ", nothing to download"
        rows.append(
            f"{MEASURED}`{model}` | {math.ceil(execution.seconds)} s on {cores} CPU core{plural}"
            f"{memory}{download} |"
        )
    if "gpt2-small" not in timed:
        rows.append(
            f"{MEASURED}`gpt2-small` | downloads {GPT2_DOWNLOAD / 1e6:.0f} MB the first time; "
            "not timed, because its weights were not at hand where this was measured |"
        )
    return rows


def with_card(source: str, rows: Sequence[str]) -> str:
    """A cell's text with the card between the markers, which are added below it if missing."""
    block = "\n".join([CARD_BEGIN, "", "| budget | |", "|---|---|", *rows, "", CARD_END])
    pattern = re.escape(CARD_BEGIN) + r".*?" + re.escape(CARD_END)
    if re.search(pattern, source, re.DOTALL):
        return re.sub(pattern, lambda _: block, source, flags=re.DOTALL)
    return f"{source.rstrip()}\n\n{block}".lstrip()


def busy_cores(seconds: float = 2.0) -> float:
    """How many cores are at work on this machine, over the next `seconds`; where Linux does not
    tell, over the last minute (0 where nobody does)."""

    def ticks() -> tuple[int, int]:
        with open("/proc/stat") as file:
            values = [int(value) for value in file.readline().split()[1:9]]
        return sum(values), values[3] + values[4]  # idle, and waiting for a disk

    try:
        total, idle = ticks()
        time.sleep(seconds)
        later, later_idle = ticks()
    except (OSError, ValueError):
        return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return (1 - (later_idle - idle) / max(later - total, 1)) * (os.cpu_count() or 1)


def measure(path: Path, models: Sequence[str]) -> None:
    """Time the notebook at `path` on each of `models` and write its card. Raises CellFailed."""
    notebook = read(path)
    budget_cell(notebook)
    total = len(code_cells(notebook)) * len(models)
    with tqdm(total=total, unit="cell", desc=path.stem, dynamic_ncols=True) as bar:
        timed = {name: execute(path, {"IOI_MODEL": name}, bar.update) for name in models}
    renew(notebook, measured_rows(timed))
    nbformat.write(notebook, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = arguments_for("Measure what notebooks cost to run.")
    parser.add_argument("--models", nargs="*", default=TIMED_MODELS, help="models to time")
    options = parser.parse_args(arguments)
    for path in find_notebooks(options.notebooks):
        busy = busy_cores()
        if busy > BUSY:
            raise CannotGoOn(
                f"Something else keeps {busy:.1f} cores of this machine at work, and would be "
                f"measured too; {path.name} is left as it was. Stop it and try again."
            )
        measure(path, options.models)
        print(f"{path.name}: measured")
    return 0
