"""Refresh the outputs stored in notebooks: `make notebooks`.

    python -m notebooks.tools.refresh [01 02 ...] [--models ioi-mini ioi-plain]

Each notebook is executed from a fresh kernel on ioi-mini. What is stored is stripped of all that
changes from run to run; every figure is stored with a static picture and its summary, which is also
its alternative text. A second run must agree with the first, or the notebook prints something that
chance decides. Runs on the other models are timed, and the notebook's budget card is written from
what was measured. Nothing is written if anything is wrong.
"""

from __future__ import annotations

import argparse
import base64
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from tqdm import tqdm

from notebooks.tools.compare import (
    compare_outputs,
    figure_summary,
    is_figure,
    is_progress_bar,
    joined,
    without_progress,
)
from notebooks.tools.execution import CellFailed, Execution, execute, find_notebooks
from notebooks.tools.stored_outputs import code_cells, machine_names, problems, read, tags

MODEL = "ioi-mini"
TIMED_MODELS = ("ioi-mini", "ioi-plain")
WORDS_A_MINUTE = 150  # technical prose, read with thought
CARD_BEGIN = "<!-- budget: written by `make notebooks`, do not edit -->"
CARD_END = "<!-- end of budget -->"
# The file on the hub: GPT-2 small's 124,439,808 parameters in float32, and in each of its 12
# layers the causal mask of 1,024 by 1,024, which the file stores as floats too.
GPT2_DOWNLOAD = 4 * (124_439_808 + 12 * 1024 * 1024)


class CannotRefresh(RuntimeError):
    """A notebook's fresh outputs are not fit to be stored; the message lists why."""


def refresh(path: Path, models: Sequence[str] = TIMED_MODELS) -> None:
    """Execute the notebook at `path` and store its outputs and its budget card in place.

    Raises CellFailed or CannotRefresh, and then leaves the file as it was.
    """
    total = len(code_cells(read(path))) * (1 + len(models))
    with tqdm(total=total, unit="cell", desc=path.stem, dynamic_ncols=True) as bar:
        static = {"IOI_MODEL": MODEL, "IOI_STATIC_FIGURES": "1"}
        fresh = cleaned(execute(path, static, on_cell=bar.update).notebook)
        timed = {name: execute(path, {"IOI_MODEL": name}, bar.update) for name in models}

    wrong = problems(fresh, machine_names())
    if MODEL in timed:
        wrong += disagreements(fresh, timed[MODEL].notebook)
    cards = [cell for cell in fresh.cells if "budget" in tags(cell)]
    if len(cards) != 1 or cards[0].cell_type != "markdown":
        wrong.append("exactly one Markdown cell must carry the tag 'budget'")
    if wrong:
        listed = "\n  ".join(wrong)
        raise CannotRefresh(f"{path.name} is left as it was:\n  {listed}")
    cards[0].source = with_card(cards[0].source, budget_card(fresh, timed))
    nbformat.validate(fresh)
    nbformat.write(fresh, path)
    store_cover(fresh, path.parent / "cover.png")


def store_cover(notebook: NotebookNode, path: Path) -> None:
    """Write the picture of the cell tagged `cover`, if there is one: the README shows it."""
    for cell in code_cells(notebook):
        for output in cell.outputs if "cover" in tags(cell) else ():
            if "image/png" in output.get("data", {}):
                path.write_bytes(base64.b64decode(output.data["image/png"]))


def cleaned(notebook: NotebookNode) -> NotebookNode:
    """The notebook without what changes from run to run or machine to machine (in place)."""
    notebook.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
        **{k: v for k, v in notebook.metadata.items() if k in ("title", "colab")},
    )
    for cell in notebook.cells:
        for volatile in ("execution", "collapsed", "scrolled", "jupyter"):
            cell.metadata.pop(volatile, None)
    for cell in code_cells(notebook):
        cell.outputs = _stored(cell.outputs)
    return notebook


def _stored(outputs: Sequence[NotebookNode]) -> list[NotebookNode]:
    """A cell's outputs as they are stored: streams merged, progress bars gone, figures static."""
    kept: list[NotebookNode] = []
    for output in outputs:
        if is_progress_bar(output):
            continue
        if output.get("name") == "stderr":
            output.text = without_progress(joined(output.text))
            if not output.text:
                continue
        last = kept[-1] if kept else None
        if output.output_type == "stream" and last and last.get("name") == output.name:
            last.text += output.text
            continue
        if is_figure(output) and "text/html" in output.data and len(output.data) > 2:
            # GitHub's viewer would show the HTML, without its scripts, rather than the picture.
            del output.data["text/html"]
        for form in ("image/png", "image/svg+xml"):
            if form in output.get("data", {}):
                output.metadata.setdefault(form, {})["alt"] = figure_summary(output) or ""
        kept.append(output)
    return kept


def disagreements(first: NotebookNode, second: NotebookNode) -> list[str]:
    """Where two executions of a notebook differ: what it prints there is left to chance."""
    found = []
    for old, new in zip(code_cells(first), code_cells(second)):
        versions = "versions" in tags(old)
        for sentence in compare_outputs(old.outputs, new.outputs, versions):
            found.append(f"cell [{old.execution_count}] differs between two runs: {sentence}")
    return found


def budget_card(notebook: NotebookNode, timed: Mapping[str, Execution]) -> str:
    """The budget card's table, as Markdown."""
    words = reading_words(notebook)
    minutes = max(1, round(words / WORDS_A_MINUTE))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    plural = "" if cores == 1 else "s"
    rows = [f"| to read | about {minutes} minutes ({words:,} words) |"]
    tasks = [c.metadata.get("exercise", {}).get("minutes") for c in code_cells(notebook)]
    if any(tasks):
        rows.append(f"| to do the exercises | about {sum(t or 0 for t in tasks)} minutes more |")
    for model, execution in timed.items():
        memory = (
            f", {execution.peak_memory / 1e9:.1f} GB of memory" if execution.peak_memory else ""
        )
        download = "" if model == "gpt2-small" else ", nothing to download"
        rows.append(
            f"| to run on `{model}` | {math.ceil(execution.seconds)} s on {cores} CPU core{plural}"
            f"{memory}{download} |"
        )
    if "gpt2-small" not in timed:
        rows.append(
            f"| to run on `gpt2-small` | downloads {GPT2_DOWNLOAD / 1e6:.0f} MB the first time; "
            "not timed, because its weights were not at hand where this was measured |"
        )
    return "\n".join(["| budget | |", "|---|---|", *rows])


def reading_words(notebook: NotebookNode) -> int:
    """Words in the notebook's Markdown, without the budget card and the exercises' solutions."""
    count = 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and not {"budget", "solution"} & set(tags(cell)):
            prose = re.sub(r"<[^>]+>|\]\([^)]*\)|https?://\S+", " ", cell.source)
            count += len(re.findall(r"\b[\w'’-]+\b", prose))
    return count


def with_card(source: str, card: str) -> str:
    """A cell's text with `card` between the markers, which are added below it if missing."""
    block = f"{CARD_BEGIN}\n\n{card}\n\n{CARD_END}"
    pattern = re.escape(CARD_BEGIN) + r".*?" + re.escape(CARD_END)
    if re.search(pattern, source, re.DOTALL):
        return re.sub(pattern, lambda _: block, source, flags=re.DOTALL)
    return f"{source.rstrip()}\n\n{block}".lstrip()


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Refresh the outputs stored in notebooks.")
    parser.add_argument("notebooks", nargs="*", help="numbers or names; all by default")
    parser.add_argument(
        "--models", nargs="*", default=TIMED_MODELS, help="models to time for the budget card"
    )
    options = parser.parse_args(arguments)
    try:
        for path in find_notebooks(options.notebooks):
            refresh(path, options.models)
            print(f"{path.name}: stored, {path.stat().st_size / 1e6:.2f} MB")
    except (CellFailed, CannotRefresh, ValueError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
