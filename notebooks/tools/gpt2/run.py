"""Measure every published number again and execute every notebook, on GPT-2 small."""

from __future__ import annotations

import hashlib
import io
import re
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from nbformat import NotebookNode
from tqdm import tqdm
from transformer_lens.model_bridge import TransformerBridge

import ioi_helpers
from ioi_helpers import load_model, published, runs
from notebooks.tools.compare import joined
from notebooks.tools.execution import PEAK_MEMORY, CellFailed, execute
from notebooks.tools.gpt2 import measurements, weights
from notebooks.tools.gpt2.measurements import FACTS, MEASUREMENTS, NOT_MEASURED
from notebooks.tools.gpt2.report import ERROR, FAIL, LEFT_OUT, PASS, Report, Row
from notebooks.tools.stored_outputs import code_cells, read

NAMES = (*MEASUREMENTS, *NOT_MEASURED, *FACTS)


class Check:
    """One check of some names and notebooks. The model is loaded when a number first needs it."""

    def __init__(self, report: Report, model_key: str, device: str | None, timeout: float) -> None:
        self.report, self.device, self.timeout = report, device, timeout
        self._key = f"{model_key} {_code()} {device}"

    @cached_property
    def model(self) -> TransformerBridge:
        """GPT-2 small."""
        return load_model("gpt2-small", device=self.device, verbose=False)

    def run(self, names: Sequence[str], notebooks: Sequence[Path], again: bool) -> list[Row]:
        """Check them in turn; what an earlier check found of the same is taken over.

        `again` leaves earlier rows out of account.
        """
        rows = []
        cells = {path: len(code_cells(read(path))) for path in notebooks}
        total = len(names) + sum(cells.values())
        with tqdm(total=total, unit="step", dynamic_ncols=True) as bar:
            for name in names:
                bar.set_description(name)
                row = None if again else self.report.stored(name, self._key)
                rows.append(row or self._number(name))
                self.report.add(rows[-1])
                bar.update()
            for path in notebooks:
                bar.set_description(path.stem)
                key = f"{self._key} {_digest([path])}"
                row = None if again else self.report.stored(path.stem, key)
                before = bar.n
                rows.append(row or self._notebook(path, key, bar))
                self.report.add(rows[-1])
                bar.update(before + cells[path] - bar.n)
        return rows

    def _number(self, name: str) -> Row:
        start = time.perf_counter()
        if name in FACTS:
            fact = FACTS[name]
            about = {"title": fact.title, "source": fact.source, "setup": fact.setup}
            known: dict[str, Any] = {"kind": "fact", "published": fact.published, **about}
        else:
            entry = published.load(name)
            known = {
                "kind": "number",
                "title": entry.title,
                "tolerance": entry.tolerance,
                "unit": entry.unit,
                "setup": entry.setup,
                "source": entry.source,
            }
        known |= {"name": name, "key": self._key}
        if name in NOT_MEASURED:
            return Row(verdict=LEFT_OUT, why=NOT_MEASURED[name], **known)
        # A measurement may be refused (a fraction of nothing), which fails it, or break (out of
        # memory): the row says so, and the others are still measured.
        try:
            with runs.without_progress_bars():
                found_there = self._measured(name)
        except ValueError as error:
            found_there = {"verdict": FAIL, "why": _line(error)}
        except Exception as error:
            found_there = {"verdict": ERROR, "why": f"{type(error).__name__}: {_line(error)}"}
        return Row(**known, **found_there, seconds=time.perf_counter() - start)

    def _measured(self, name: str) -> dict[str, Any]:
        if name not in FACTS:
            return _furthest(name, measurements.measure(self.model, name))
        found = FACTS[name].measure(self.model)
        return {"found": found, "verdict": PASS if found == FACTS[name].published else FAIL}

    def _notebook(self, path: Path, key: str, bar: tqdm) -> Row:
        title = path.stem.replace("_", " ")
        known: dict[str, Any] = {"kind": "notebook", "name": path.stem, "title": title, "key": key}
        environment = {"IOI_MODEL": "gpt2-small"}
        if self.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        start = time.perf_counter()
        try:
            done = execute(path, environment, bar.update, self.timeout, keep_going=True)
        except CellFailed as error:
            seconds = time.perf_counter() - start
            return Row(verdict=ERROR, why=_line(error), seconds=seconds, **known)
        cells, agree, disagree = notebook_verdicts(done.notebook)
        why = f"{agree} published results agree, {disagree} do not" if agree + disagree else ""
        return Row(
            verdict=FAIL if cells or disagree else PASS,
            cells=cells,
            why=f"{why}; {len(cells)} of {done.cells} cells failed".strip("; ") if cells else why,
            seconds=done.seconds,
            peak_memory=done.peak_memory,
            **known,
        )


def notebook_verdicts(notebook: NotebookNode) -> tuple[list[str], int, int]:
    """The cells that failed, each a sentence, and how many comparisons in outputs hold, or not.

    A cell that lacks a name which a failed cell would have given is no failure of its own: only
    the first is told with its error.
    """
    failed: list[str] = []
    followed, agree, disagree = 0, 0, 0
    for number, cell in enumerate(code_cells(notebook), start=1):
        for output in cell.outputs:
            if output.output_type == "error":
                if output.ename == "NameError" and failed:
                    followed += 1
                else:
                    failed.append(f"cell [{number}]: {output.ename}: {_line(output.evalue)}")
            text = joined(output.get("data", {}).get("text/plain", "") or output.get("text", ""))
            agree += "Checked on GPT-2 small" in text
            disagree += "DISAGREES with the published values" in text
    if followed:
        failed.append(f"{followed} cells lack what failed ones would have made")
    return failed, agree, disagree


def _furthest(name: str, values: np.ndarray) -> dict[str, Any]:
    """The place of an array where it is furthest from the published one, and the verdict."""
    entry = published.load(name)
    if values.shape != entry.values.shape:
        raise ValueError(f"shape {list(values.shape)}, published {list(entry.values.shape)}")
    gap = np.abs(values - entry.values)
    worst = int(np.argmax(np.where(np.isnan(gap), np.inf, gap)))
    return {
        "found": float(values.ravel()[worst]),
        "published": float(entry.values.ravel()[worst]),
        "difference": float(gap.ravel()[worst]),
        "where": published.place(entry, worst),
        "verdict": PASS if published.compare(name, values, True).agrees else FAIL,
        "values": [float(f"{value:.6g}") for value in values.ravel()],
    }


def _line(error: object) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()[:300]


def _code() -> str:
    """What measurements depend on: the package's code and ours."""
    package = Path(ioi_helpers.__file__).parent
    ours = Path(__file__).parent.glob("*.py")
    return _digest([*package.rglob("*.py"), *package.rglob("published/*.json"), *ours])


def _digest(files: Sequence[Path]) -> str:
    found = hashlib.sha256()
    for file in sorted(files):
        found.update(file.read_bytes())
    return found.hexdigest()[:16]


def chosen(
    asked: Sequence[str], find_notebooks: Callable[[Sequence[str]], list[Path]]
) -> tuple[list[str], list[Path]]:
    """Which published entries, and which notebooks, are meant; all if none is named.

    Raises ValueError for a name that fits neither.
    """
    if not asked:
        return list(NAMES), find_notebooks(())
    numbers = [text for text in asked if Path(text).name[:2].isdigit()]
    names = []
    for text in asked:
        if text in numbers:
            continue
        fitting = [name for name in NAMES if name == text] or [
            name for name in NAMES if name.startswith(text)
        ]
        if not fitting:
            families = sorted({name.split(".")[0] for name in NAMES})
            raise ValueError(
                f"Neither a notebook nor a published entry begins with {text!r}; entries are "
                f"those of ioi_helpers.published: {', '.join(families)}."
            )
        names += [name for name in fitting if name not in names]
    return names, find_notebooks(numbers) if numbers else []


def peak_memory() -> int:
    """The most memory that this process had, in bytes; 0 where the system does not tell."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(PEAK_MEMORY, {})
    return int(printed.getvalue())


def weights_key() -> str:
    """The fingerprint of the weights that are checked; loads them from the hub if need be."""
    file = weights.cached()
    if file is None:
        load_model("gpt2-small", device="cpu", verbose=False)
        file = weights.cached()
    assert file is not None
    return weights.fingerprint(file)
