"""Joblib's engines: one process, several on one machine (loky), a cluster (Dask, Ray).

Nothing of them is written anew here: `joblib.parallel_config` chooses one, and a run calls
`joblib.Parallel`. Whatever back end is registered with joblib can be had with ``backend=None`` by a
run inside ``with joblib.parallel_config(...)``.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import joblib

from ioi_helpers.survey.tasks import Call
from ioi_helpers.survey.workers import work

BACKENDS = ("sequential", "loky", "dask", "ray")
WAIT_FOR_WORKERS = 120
"""Seconds that a Dask scheduler without workers is given to find some."""
MOST_DEATHS_OF_A_CALL = 10_000


@contextmanager
def engine(
    backend: str | None = None, address: str | None = None, n_jobs: int | None = None
) -> Iterator[int]:
    """Within it joblib runs on this engine; gives the number of workers.

    Args:
        backend: One of :data:`BACKENDS`; None: what ``joblib.parallel_config`` says, which is one
            process if nobody has said anything.
        address: Of Dask's scheduler or Ray's head; without it both start workers on this machine.
        n_jobs: How many workers to start, or of Ray's to use; None: as many as there are cores, or
            as the cluster has.

    Raises:
        ValueError: An unknown back end, one whose package is missing, or arguments that it does not
            take.
    """
    if backend not in (None, *BACKENDS):
        raise ValueError(f"There is no back end {backend!r}; use one of {', '.join(BACKENDS)}.")
    if address is not None and backend not in ("dask", "ray"):
        raise ValueError("Only Dask and Ray have an address; say backend='dask' or 'ray'.")
    if n_jobs is not None and (backend is None or (backend == "dask" and address is not None)):
        raise ValueError(
            "How many workers there are is not for n_jobs to say here, but for the cluster or for "
            "joblib.parallel_config; leave it out, or say which back end is to start them."
        )
    if backend is None:
        yield joblib.effective_n_jobs()
    elif backend == "dask":
        with _dask(address, n_jobs) as workers:
            yield workers
    elif backend == "ray":
        with _ray(address, n_jobs) as workers:
            yield workers
    else:
        wanted = 1 if backend == "sequential" else n_jobs or -1
        with joblib.parallel_config(backend=backend, n_jobs=wanted):
            yield joblib.effective_n_jobs(wanted)


@contextmanager
def _dask(address: str | None, n_jobs: int | None) -> Iterator[int]:
    distributed = _optional("distributed", "dask")
    if address is None:
        # A thread each: a model serves one task at a time.
        client = distributed.Client(
            n_workers=n_jobs, threads_per_worker=1, processes=True, dashboard_address=":0"
        )
    else:
        client = distributed.Client(address)
    with client:
        with joblib.parallel_config(
            backend="dask", client=client, wait_for_workers_timeout=WAIT_FOR_WORKERS, pure=False
        ):
            before = _let_workers_die(client, MOST_DEATHS_OF_A_CALL)
            try:
                yield joblib.effective_n_jobs(-1)
            finally:
                _let_workers_die(client, before)


def _let_workers_die(client: Any, times: int) -> int:
    """Have Dask's scheduler give up a call after so many deaths only; how many it was before.

    Dask gives up a call when a fourth worker dies that had it, also if another call killed them,
    and joblib then waits for it for ever (seen with joblib 1.6). Deaths are counted by the survey
    itself, task by task.
    """

    def change(times: int, dask_scheduler: Any) -> int:
        before: int = dask_scheduler.allowed_failures
        dask_scheduler.allowed_failures = times
        return before

    return int(client.run_on_scheduler(change, times))


@contextmanager
def _ray(address: str | None, n_jobs: int | None) -> Iterator[int]:
    ray = _optional("ray", "ray")
    _optional("ray.util.joblib", "ray").register_ray()
    ours = not ray.is_initialized()
    if ours:
        settings: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False}
        if address is None and n_jobs is not None:
            settings["num_cpus"] = n_jobs
        ray.init(address=address, **(settings if address is None else {"log_to_driver": False}))
    try:
        wanted = n_jobs or int(ray.cluster_resources().get("CPU", 1))
        with joblib.parallel_config(backend="ray", n_jobs=wanted):
            yield wanted
    finally:
        if ours:
            ray.shutdown()


def _optional(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{error.name or module} is not installed here, which this back end needs; "
            f"pip install '/path/to/clone[{extra}]'."
        ) from error


def hand_out(calls: Sequence[Call]) -> None:
    """Have the workers of the present engine do these calls, and wait until they are done.

    Raises:
        WorkersLost: A worker died, and with it what the engine was doing.
    """
    try:
        joblib.Parallel(batch_size=1, pre_dispatch="all")(
            joblib.delayed(work)(one) for one in calls
        )
    except Exception as error:
        if _tells_of_a_death(error):
            raise WorkersLost(f"{type(error).__name__}: {error}") from error
        raise


class WorkersLost(RuntimeError):
    """A worker died; the engine lost what was being done, though not what was done."""


def _tells_of_a_death(error: Exception) -> bool:
    room = type(error).__module__.partition(".")[0]
    return isinstance(error, BrokenExecutor) or room in ("ray", "distributed")
