"""The same questions of many models, on one machine or a cluster.

::

    from ioi_helpers import survey

    asked = survey.Survey.of(
        models=["ioi-mini", "ioi-plain"],
        data={"mixed": {"n": 100, "seed": 0}},
        questions=["behaviour", "head_table"],
    )
    found = survey.run(asked, "results", backend="loky", n_jobs=2)
    found.table("behaviour")            # a DataFrame: a row for each model and order
    found.tasks                         # what each took: seconds, memory, failure

or, in a file (:meth:`Survey.from_toml`), ``python -m ioi_helpers.survey models.toml --out
results``. Every question of every model is a task, and every task's answer a file that is named by
all that it depends on. So a run goes on where it was stopped, and repeats nothing.

:func:`shipped` has the tables of a survey that was run already, and its questions.

In reading order: `questions` (what can be asked; with `repair` and `belief`, and `rows`, which says
how their tables are made), `asked` (a survey, from
Python or TOML), `identity` (what an answer depends on), `tasks`, `tables` (Parquet, with units),
`ledger` (what was begun), `workers` (what a worker does), `engines` (joblib's: one process, loky,
Dask, Ray), `running` (the driver) and `shipping`.
"""

from __future__ import annotations

from ioi_helpers.survey.asked import AskedModel, AskedPrompts, AskedQuestion, Survey
from ioi_helpers.survey.engines import BACKENDS, WorkersLost
from ioi_helpers.survey.questions import QUESTIONS
from ioi_helpers.survey.rows import COUNTERFACTUALS
from ioi_helpers.survey.running import OF_TASKS, Results, results, run
from ioi_helpers.survey.shipping import Shipped, shipped, shipped_names
from ioi_helpers.survey.tables import WHOSE

__all__ = [
    "BACKENDS",
    "COUNTERFACTUALS",
    "OF_TASKS",
    "QUESTIONS",
    "WHOSE",
    "AskedModel",
    "AskedPrompts",
    "AskedQuestion",
    "Results",
    "Shipped",
    "Survey",
    "WorkersLost",
    "results",
    "run",
    "shipped",
    "shipped_names",
]
