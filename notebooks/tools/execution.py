"""Execute notebooks, each from a fresh kernel of the Python that runs this.

A cell that fails stops with its notebook, its number and its error (`CellFailed`). Each execution
reports its seconds and the peak memory of its kernel, so that what notebooks say about their cost
is measured.
"""

from __future__ import annotations

import argparse
import copy
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ipykernel.kernelspec
import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from ioi_helpers.bundled import BUNDLED
from notebooks.tools import CannotGoOn
from notebooks.tools.compare import is_figure
from notebooks.tools.stored_outputs import code_cells, read

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOKS = REPOSITORY / "notebooks"

# Run after the last cell. Linux counts the peak of this program alone in VmHWM; `ru_maxrss`, which
# macOS has too (there in bytes), can include that of the program which started it.
PEAK_MEMORY = """
import re as _re, sys as _sys
try:
    _peak = int(_re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
except (OSError, TypeError):
    try:
        import resource as _resource
        _peak = _resource.getrusage(_resource.RUSAGE_SELF).ru_maxrss
        _peak *= 1 if _sys.platform == "darwin" else 1024
    except ImportError:
        _peak = 0
print(_peak, *globals().get("_processor_seconds", [])[:-1])  # the last is this cell's
"""

# Run before the first cell: processor seconds of every cell, which other work does not change.
PROCESSOR_SECONDS = """
import time as _time
_processor_seconds = []
def _starts(*_):
    _processor_seconds.append(-_time.process_time())
def _ends(*_):
    if _processor_seconds:
        _processor_seconds[-1] += _time.process_time()
get_ipython().events.register("pre_run_cell", _starts)
get_ipython().events.register("post_run_cell", _ends)
"""


@dataclass(frozen=True)
class Execution:
    """An executed copy of a notebook, its seconds (start of the kernel included), its peak memory
    in bytes (0 where the system does not tell), and the processor seconds of its code cells."""

    path: Path
    notebook: NotebookNode
    seconds: float
    peak_memory: int
    processor_seconds: tuple[float, ...]

    @property
    def cells(self) -> int:
        """How many code cells ran."""
        return len(code_cells(self.notebook))

    @property
    def figures(self) -> int:
        """How many figures they drew."""
        return sum(is_figure(output) for c in code_cells(self.notebook) for output in c.outputs)


class CellFailed(CannotGoOn):
    """A cell raised an error; `notebook` is the copy executed so far."""

    def __init__(self, path: Path, number: int, error: str, notebook: NotebookNode) -> None:
        super().__init__(f"{path.name}, cell [{number}]: {error}")
        self.notebook = notebook


class ThisPython(KernelSpecManager):
    """Offers one kernel: the Python that runs this, whatever kernels the user has installed."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """The kernel specification of the running Python, under any name."""
        return KernelSpec(
            resource_dir=ipykernel.kernelspec.RESOURCES, **ipykernel.kernelspec.get_kernel_dict()
        )


class FreshKernelClient(NotebookClient):
    """nbclient on a kernel of this Python."""

    def create_kernel_manager(self) -> AsyncKernelManager:
        """A kernel manager that knows one kernel."""
        self.km = AsyncKernelManager(kernel_spec_manager=ThisPython())
        return self.km

    @property
    def interrupted(self) -> bool:
        """Whether the user interrupted. nbclient then takes the kernel from under its own feet,
        and what it raises depends on what it was waiting for; only this says why."""
        return hasattr(self, "_async_cleanup_kernel_future")


def arguments_for(command: str) -> argparse.ArgumentParser:
    """A command line that takes notebooks; `command` says what it does with them."""
    parser = argparse.ArgumentParser(description=command)
    parser.add_argument("notebooks", nargs="*", help="numbers or names; all by default")
    return parser


def find_notebooks(names: Sequence[str] = ()) -> list[Path]:
    """The curriculum's notebooks in reading order, or those whose file name begins with one of
    `names` (`01`, or a path). Raises ValueError for a name that fits none."""
    every = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    if not names:
        return every
    chosen = []
    for name in names:
        fitting = [path for path in every if path.name.startswith(Path(name).name)]
        if not fitting:
            known = ", ".join(path.stem for path in every) or "none"
            raise ValueError(f"No notebook's name begins with {name!r}; there are: {known}.")
        chosen += [path for path in fitting if path not in chosen]
    return sorted(chosen)


def kernel_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """The environment of a kernel: this process's with `changes`, importing this checkout.

    On a model that ships, PyTorch gets one thread unless OMP_NUM_THREADS says otherwise: its
    threads spin while they wait, so that beside other work two of them were twenty times slower
    than one (sweeps over ioi-mini on two busy cores: 29 s and over 570 s).
    """
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    ours = {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # no debugger, so no advice about it either
    }
    if changes.get("IOI_MODEL") in BUNDLED:
        ours["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or "1"
    return {**os.environ, **ours, **changes}


def execute(
    path: Path,
    environment: Mapping[str, str],
    on_cell: Callable[[], object] = lambda: None,
    timeout: float = 600,
    keep_going: bool = False,
) -> Execution:
    """Execute a copy of the notebook at `path`; the file stays as it is.

    `environment` is added to the kernel's environment variables, `on_cell` is called after every
    code cell, `timeout` is in seconds a cell. With `keep_going` a cell that fails, or takes longer,
    stores its error and the next one runs. Raises CellFailed, and KeyboardInterrupt where the user
    interrupts; the kernel is gone then.
    """
    notebook = read(path)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    notebook.cells.append(nbformat.v4.new_code_cell(PEAK_MEMORY))
    probe = len(notebook.cells) - 1

    started = 0

    def before_cell(cell: NotebookNode, cell_index: int) -> None:
        nonlocal started
        started += 1

    def after_cell(cell: NotebookNode, cell_index: int, **_: object) -> None:
        if cell_index != probe:
            on_cell()

    client = FreshKernelClient(
        notebook,
        timeout=int(timeout),
        startup_timeout=300,  # a busy machine takes longer than the usual minute to import
        allow_errors=keep_going,
        interrupt_on_timeout=keep_going,
        shutdown_kernel="immediate",  # asked politely, an interrupted one prints its own traceback
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_execute=before_cell,
        on_cell_executed=after_cell,
        # Errors: advice about the kernel's sockets is not ours.
        extra_arguments=["--log-level=40", f"--IPKernelApp.exec_lines={PROCESSOR_SECONDS}"],
    )
    start = time.perf_counter()
    try:
        client.execute(env=kernel_environment(environment))
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        failed = copy.deepcopy(notebook)
        failed.cells.pop()
        if client.interrupted:
            raise KeyboardInterrupt from None
        raise CellFailed(path, started, _short(error, timeout), failed) from None
    except Exception:
        if client.interrupted:
            raise KeyboardInterrupt from None
        raise
    seconds = time.perf_counter() - start
    peak, *each = notebook.cells.pop().outputs[0].text.split()
    return Execution(path, notebook, seconds, int(peak), tuple(map(float, each)))


def _short(error: Exception, timeout: float) -> str:
    """A kernel's error in one line, with the line of the cell that raised it where it is known."""
    if isinstance(error, CellTimeoutError):
        return f"it ran for more than {timeout:.0f} seconds"
    if isinstance(error, DeadKernelError):
        return "the kernel died (out of memory, perhaps)"
    assert isinstance(error, CellExecutionError)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", error.traceback)
    arrow = re.search(r"^-+> *\d+ (.*)$", plain, re.MULTILINE)
    where = f"\n    at: {arrow[1].strip()}" if arrow else ""
    return f"{error.ename}: {error.evalue}{where}"
