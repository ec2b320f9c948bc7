"""What a worker does with a call: load the model once, answer task after task, write each answer.

A worker is a process. It keeps one model, the last one it loaded, and does one call at a time.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.models import load_model
from ioi_helpers.runs import without_progress_bars
from ioi_helpers.survey import tables
from ioi_helpers.survey.ledger import Ledger
from ioi_helpers.survey.questions import QUESTIONS
from ioi_helpers.survey.tasks import Call, Task

MOST_DEATHS = 2
"""After so many deaths of its worker a task is not begun again."""


class _Loaded:
    """The one model that this process keeps, and a lock: a model serves one call at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.weights: str | None = None
        self.model: TransformerBridge | None = None

    def take(self, task: Task) -> float:
        """Have the task's model; the seconds that this took, 0 where it was there."""
        if self.weights == task.weights:
            return 0.0
        self.forget()
        start = time.perf_counter()
        arguments = dict(task.model.arguments)
        self.model = load_model(
            task.model.name, revision=task.model.revision, verbose=False, **arguments
        )
        self.weights = task.weights
        return time.perf_counter() - start

    def forget(self) -> None:
        """Let the model go before the next one comes: never two at once."""
        self.weights = self.model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


_loaded = _Loaded()


def forget_model() -> None:
    """Let go of the model that this process keeps, if it keeps one."""
    with _loaded.lock:
        _loaded.forget()


def work(call: Call) -> None:
    """Do a call's tasks that have no answer yet, and write each answer when it is there.

    An error of a task is its answer: a row that says so. What goes wrong with the files is raised.
    """
    ledger = Ledger(call.places.run)
    with _loaded.lock, without_progress_bars():
        for number, task in enumerate(call.tasks):
            if call.places.answer(task).exists():
                continue
            if ledger.begun(task) >= MOST_DEATHS:
                what = f"The worker died {MOST_DEATHS} times while it was at this task."
                write_failure(call, task, what)
                # Dask gives up a call whose workers died often: the rest comes in another one.
                return
            ledger.begin(task)
            try:
                loading = _loaded.take(task)
            except Exception as error:
                _loaded.forget()
                for other in call.tasks[number:]:
                    write_failure(call, other, _said(error), trace=traceback.format_exc())
                return
            started = time.perf_counter()
            try:
                table = _answer(task, call.memory)
            except Exception as error:
                write_failure(
                    call, task, _said(error), trace=traceback.format_exc(),
                    seconds=time.perf_counter() - started, loading=loading,
                )  # fmt: skip
                continue
            record = _record(task, time.perf_counter() - started, loading)
            _write(call, task, table, record)


def _answer(task: Task, memory: int) -> pd.DataFrame:
    model = _loaded.model
    assert model is not None
    data = task.prompts.of(model.tokenizer)
    if hasattr(data, "to"):
        data = data.to(model.cfg.device)
    arguments = dict(task.question.arguments)
    if task.question.ask in QUESTIONS:
        arguments["memory"] = memory
    table = task.question.function(model, data, **arguments)
    if not isinstance(table, pd.DataFrame):
        raise TypeError(
            f"The question {task.question.label!r} returned {type(table).__name__}; return a "
            "DataFrame, a row for each thing that is measured."
        )
    taken = tables.WHOSE.keys() & set(table)
    if taken:
        raise ValueError(
            f"The question {task.question.label!r} returned a column {min(taken)!r}, which every "
            "table has already; call it otherwise."
        )
    return table


def write_failure(call: Call, task: Task, what: str, *, trace: str = "", **measured: float) -> None:
    """Write what went wrong as the task's answer: a row without numbers."""
    record = _record(task, **measured) | {"failure": what, "traceback": trace}
    _write(call, task, pd.DataFrame({"failure": [what]}), record)


def _write(call: Call, task: Task, table: pd.DataFrame, record: Mapping[str, Any]) -> None:
    tables.write(table, call.places.answer(task), record, call.places.run)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _record(task: Task, seconds: float = 0.0, loading: float = 0.0) -> dict[str, Any]:
    model = _loaded.model if _loaded.weights == task.weights else None
    packages = ("ioi_helpers", "torch", "transformer_lens", "transformers")
    return {
        "model": task.model.name,
        "revision": task.model.revision,
        "data": task.prompts.label,
        "question": task.question.label,
        "digest": task.digest,
        "failure": None,
        "seconds": seconds,
        "seconds to load": loading,
        "parameters": None if model is None else sum(p.numel() for p in model.parameters()),
        "memory": peak_memory(),
        "device": None if model is None else str(model.cfg.device),
        "dtype": None if model is None else str(model.W_E.dtype).removeprefix("torch."),
        "worker": f"{socket.gethostname()} {os.getpid()}",
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
    }


def peak_memory() -> int | None:
    """The most memory that this process has held so far, in bytes; None where it is not told.

    On a GPU the device's, as PyTorch counts it.
    """
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most if sys.platform == "darwin" else most * 1024)
