"""The command line: ``python -m ioi_helpers.survey models.toml --out results``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ioi_helpers.runs import DEFAULT_MEMORY
from ioi_helpers.survey.asked import Survey
from ioi_helpers.survey.engines import BACKENDS, WorkersLost
from ioi_helpers.survey.running import Results, results, run
from ioi_helpers.survey.tasks import tasks_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a survey from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m ioi_helpers.survey", description="The same questions of many models."
    )
    parser.add_argument("survey", help="a TOML file: models, data, questions")
    parser.add_argument("--out", default="results", help="folder of results (results)")
    parser.add_argument("--backend", choices=BACKENDS, default="sequential")
    parser.add_argument("--address", help="of Dask's scheduler or Ray's head")
    parser.add_argument("--jobs", type=int, help="how many workers")
    parser.add_argument(
        "--memory", type=float, default=DEFAULT_MEMORY / 2**30, metavar="GIB",
        help="for activations of a worker, beside its model (%(default)g)",
    )  # fmt: skip
    parser.add_argument("--retry", action="store_true", help="ask again what failed before")
    parser.add_argument("--status", action="store_true", help="say what is answered, run nothing")
    options = parser.parse_args(arguments)
    try:
        asked = Survey.from_toml(options.survey)
        tasks = tasks_of(asked)
        found = results(asked, options.out, tasks=tasks)
        print(f"{options.out}: {_left(found)}")
        if options.status:
            return 0
        memory = int(options.memory * 2**30)
        print(f"Each worker holds one model, and up to {options.memory:g} GiB of activations.")
        found = run(
            asked, options.out, backend=options.backend, address=options.address,
            n_jobs=options.jobs, memory=memory, retry=options.retry, tasks=tasks,
        )  # fmt: skip
    except (ValueError, OSError, WorkersLost) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{found}; tables in {options.out}/{asked.name}/")
    for row in found.failures.to_dict("records"):
        revision = f"@{row['revision']}" if isinstance(row["revision"], str) else ""
        what = f"{row['question']} of {row['model']}{revision} on {row['data']}"
        print(f"  {what}: {row['failure']}")
    return 0


def _left(found: Results) -> str:
    done, failed = int(found.tasks["done"].sum()), len(found.failures)
    of = f"{len(found.survey.models)} models, {len(found.survey.questions)} questions"
    return f"{of}, {len(found.tasks)} tasks, {done} done before ({failed} of them failed)."


if __name__ == "__main__":
    sys.exit(main())
