"""Which tasks a run has begun, so that it is known which one a worker died of.

A file for each task, with a line each time it is begun, in the run's own folder. A task that has
lines and no answer is being done, or its worker died.
"""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Self
from uuid import uuid4

from ioi_helpers.survey.tasks import Task


class Ledger:
    """The run's own folder.

    Args:
        folder: On a file system that all workers share.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def open(cls, runs: Path) -> Self:
        """A new run's; what runs of this machine left that were killed goes."""
        runs.mkdir(parents=True, exist_ok=True)
        host = socket.gethostname()
        for left in runs.glob(f"{host}--*"):
            if not _alive(int(left.name.split("--")[1])):
                shutil.rmtree(left, ignore_errors=True)
        folder = runs / f"{host}--{os.getpid()}--{uuid4().hex[:8]}"
        folder.mkdir()
        return cls(folder)

    def close(self) -> None:
        """Take the folder away; a worker that is still at a task then cannot write its answer."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def begin(self, task: Task) -> None:
        """Note that a task is begun.

        Raises:
            FileNotFoundError: This worker does not see the run's folder.
        """
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"The worker on {socket.gethostname()} does not see {str(self.folder)!r}; give "
                "results a folder on a file system that all workers share, at the same path, or "
                "end workers of a run that is over."
            )
        with self._file(task).open("a") as file:
            file.write(f"{socket.gethostname()} {os.getpid()}\n")

    def begun(self, task: Task) -> int:
        """How often it was begun."""
        try:
            return len(self._file(task).read_text().splitlines())
        except FileNotFoundError:
            return 0

    def _file(self, task: Task) -> Path:
        return self.folder / f"{task.digest[:32]}.begun"


def _alive(process: int) -> bool:
    """Whether there may be such a process on this machine."""
    if os.name == "nt":  # where os.kill has another meaning
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True
