"""A notebook's budget card: what it costs to read and to run.

    python -m notebooks.tools budgets [01 02 ...] [--models ioi-mini ioi-plain]
    python -m notebooks.tools budgets [01 02 ...] --at-gpt2-shape

The second measures the row of GPT-2 small alone, on ioi-mini rewritten into its shape, in seconds
of processor time on one thread: that much can be told beside other work, and without its weights.

Words and minutes follow from the text and are renewed whenever outputs are stored. Seconds and
memory are of a machine: they change only when this is called (`make budgets`), which refuses while
something else is running. Cells and outputs stay as they are.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from tqdm import tqdm

from ioi_helpers.bundled import bundled_folder
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
GPT2 = f"{MEASURED}`gpt2-small` | "
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
        measured = _measured(notebook)
    cell.source = with_card(cell.source, [*reading_rows(notebook), *measured])


def _measured(notebook: NotebookNode) -> list[str]:
    """The rows that a machine has measured."""
    lines = budget_cell(notebook).source.splitlines()
    return [line for line in lines if line.startswith(MEASURED)]


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


def measured_rows(timed: Mapping[str, Execution], before: Sequence[str] = ()) -> list[str]:
    """The rows that a machine measures, from an execution on each model; that of GPT-2 small stays
    as it was `before` where that is not among them."""
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
    of_gpt2 = [line for line in before if line.startswith(GPT2)]
    if "gpt2-small" not in timed:
        rows += of_gpt2 or [
            f"{GPT2}downloads {GPT2_DOWNLOAD / 1e6:.0f} MB the first time; not timed |"
        ]
    return rows


def at_gpt2_shape(path: Path, folder: Path) -> str:
    """Time the notebook at `path` on the model in `folder`, of GPT-2 small's shape, and write the
    row of its card. Returns what was measured in words. Raises CellFailed."""
    environment = {"IOI_MODEL": str(folder), "OMP_NUM_THREADS": "1"}
    with tqdm(total=len(code_cells(read(path))), unit="cell", desc=path.stem) as bar:
        run = execute(path, environment, bar.update, timeout=3600)
    seconds, memory = sum(run.processor_seconds), f"{run.peak_memory / 1e9:.1f} GB"
    about = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{10 * math.ceil(seconds / 10)} s"
    row = (
        f"{GPT2}about {about} on one CPU core, {memory} of memory (timed on `ioi-mini` rewritten "
        f"into its shape); downloads {GPT2_DOWNLOAD / 1e6:.0f} MB the first time |"
    )
    notebook = read(path)  # as it is now: minutes have gone by
    others = [line for line in _measured(notebook) if not line.startswith(GPT2)]
    renew(notebook, [*others, row])
    nbformat.write(notebook, path)
    cells = code_cells(run.notebook)
    slowest = sorted(range(len(cells)), key=lambda i: -run.processor_seconds[i])[:3]
    told = ", ".join(
        f"{run.processor_seconds[i]:.0f} s in {cells[i].source.splitlines()[0]!r}" for i in slowest
    )
    return f"{seconds:.0f} s of processor time, {memory}; most of it {told}"


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
    renew(notebook, measured_rows(timed, _measured(notebook)))
    nbformat.write(notebook, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = arguments_for("Measure what notebooks cost to run.")
    parser.add_argument("--models", nargs="*", default=TIMED_MODELS, help="models to time")
    parser.add_argument(
        "--at-gpt2-shape",
        action="store_true",
        help="time the row of GPT-2 small on ioi-mini in its shape; other work may go on",
    )
    options = parser.parse_args(arguments)
    paths = find_notebooks(options.notebooks)
    if options.at_gpt2_shape:
        # The rewriting is a test's: what a rewritten model prints must be what ioi-mini prints.
        from tests.rewritten_models import at_gpt2_small_shape

        with tempfile.TemporaryDirectory() as folder:
            shaped = at_gpt2_small_shape(bundled_folder("ioi-mini"), Path(folder) / "ioi-mini")
            for path in paths:
                print(f"{path.name}: {at_gpt2_shape(path, shaped)}", flush=True)
        return 0
    for path in paths:
        busy = busy_cores()
        if busy > BUSY:
            raise CannotGoOn(
                f"Something else keeps {busy:.1f} cores of this machine at work, and would be "
                f"measured too; {path.name} is left as it was. Stop it and try again."
            )
        measure(path, options.models)
        print(f"{path.name}: measured")
    return 0
