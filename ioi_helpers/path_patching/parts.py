"""What a long sweep has found so far, in memory and, if asked for, in a file to go on from."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

SECONDS_BETWEEN_WRITES = 20.0
ALL = slice(None)
_FORMAT = "ioi_helpers.path_patching.Parts 1"
_TENSORS = ("values", "done", "unpatched", "other", "runs_done")


class Parts:
    """Logit differences ``[receiver sender batch]``, filled in part by part.

    Attributes:
        values: What is known; NaN elsewhere.
        unpatched, other: ``[batch]``, those of the two runs with nothing patched.
    """

    def __init__(self, n_receivers: int, n_senders: int, n_prompts: int, dtype: torch.dtype):
        self.values = torch.full((n_receivers, n_senders, n_prompts), torch.nan, dtype=dtype)
        self.done = torch.zeros(n_receivers, n_senders, n_prompts, dtype=torch.bool)
        self.unpatched = torch.full((n_prompts,), torch.nan, dtype=dtype)
        self.other = self.unpatched.clone()
        self.runs_done = torch.zeros(n_prompts, dtype=torch.bool)
        self._path: Path | None = None
        self._question = ""
        self._written = time.monotonic()

    def has(self, receivers: int, rows: slice, senders: int | slice = ALL) -> bool:
        """Whether a set of receivers is known for these prompts (and this set of senders)."""
        return bool(self.done[receivers, senders, rows].all())

    def has_runs(self, rows: slice) -> bool:
        """Whether the runs with nothing patched are known for these prompts."""
        return bool(self.runs_done[rows].all())

    def put(
        self,
        receivers: int,
        rows: slice,
        values: Float[Tensor, "*sender rows"],
        senders: int | slice = ALL,
    ) -> None:
        """Remember a set of receivers (for a set of senders), and write it down now and then."""
        self.values[receivers, senders, rows] = values.to(self.values)
        self.done[receivers, senders, rows] = True
        if self._path is not None and time.monotonic() > self._written + SECONDS_BETWEEN_WRITES:
            self.write()

    def put_runs(
        self, rows: slice, unpatched: Float[Tensor, " rows"], other: Float[Tensor, " rows"]
    ) -> None:
        """Remember the runs with nothing patched."""
        self.unpatched[rows], self.other[rows] = unpatched.to(self.values), other.to(self.values)
        self.runs_done[rows] = True

    @contextmanager
    def kept_in(self, file: str | os.PathLike[str] | None, question: Any) -> Iterator[Parts]:
        """Go on from a file, and leave there what is known, also after an interrupt.

        Args:
            file: Where; None keeps nothing.
            question: What says that a file's parts belong to this sweep, as JSON can hold it.

        Raises:
            ValueError: The file holds parts of another sweep, or something else; or there is no
                folder for it.
        """
        if file is not None:
            path = Path(file)
            if path.is_dir() or not path.parent.is_dir():
                what = f"{path} is a folder" if path.is_dir() else f"There is no {path.parent}"
                raise ValueError(
                    f"{what}, so parts cannot be written there; give a path to a file."
                )
            self._path = path
            text = json.dumps(question, sort_keys=True)
            self._question = hashlib.sha256(text.encode()).hexdigest()
            if self._path.exists():
                self._read()
        try:
            yield self
        finally:
            if self._path is not None:
                self.write()

    def write(self) -> None:
        """Write down what is known. A reader sees the old file or the new one, never half of it."""
        assert self._path is not None
        self._written = time.monotonic()
        draft = self._path.with_name(f"{self._path.name}.{os.getpid()}.part")
        metadata = {"format": _FORMAT, "question": self._question}
        save_file({name: getattr(self, name) for name in _TENSORS}, draft, metadata=metadata)
        draft.replace(self._path)

    def _read(self) -> None:
        assert self._path is not None
        try:
            with safe_open(self._path, framework="pt") as opened:
                metadata = opened.metadata() or {}
                found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{self._path} is no safetensors file ({error}).") from error
        if metadata.get("format") != _FORMAT or metadata.get("question") != self._question:
            raise ValueError(
                f"{self._path} does not hold parts of this very sweep (same weights, prompts, "
                "senders, receivers and options); give another file, or delete it."
            )
        for name in _TENSORS:
            setattr(self, name, found[name])
