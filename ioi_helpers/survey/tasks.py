"""Tasks: one question of one model on one set of prompts, and how they are handed to workers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ioi_helpers.survey.asked import AskedModel, AskedPrompts, AskedQuestion, Survey
from ioi_helpers.survey.identity import (
    answer_identity,
    digest,
    model_identity,
    prompts_identity,
    question_identity,
)

CALLS_A_WORKER = 2
"""So many calls at least for each worker, where there are as many tasks: none idles for long."""


@dataclass(frozen=True)
class Task:
    """One question of one model on one set of prompts.

    Attributes:
        model, prompts, question: What is asked of what.
        digest: Of all that the answer depends on (:mod:`ioi_helpers.survey.identity`).
        weights: Of the model's part of that: tasks that share it share a loaded model.
    """

    model: AskedModel
    prompts: AskedPrompts
    question: AskedQuestion
    digest: str
    weights: str

    def __str__(self) -> str:
        return f"{self.question.label} of {self.model.label} on {self.prompts.label}"


@dataclass(frozen=True)
class Places:
    """Where a run's files lie.

    Attributes:
        answers: The folder of answers, which all runs and surveys may share.
        run: The run's own folder: unfinished files, and notes on what was begun.
    """

    answers: Path
    run: Path

    def answer(self, task: Task) -> Path:
        """The file of a task's answer, which is there once the task is done."""
        return self.answers / f"{task.digest[:32]}.parquet"


@dataclass(frozen=True)
class Call:
    """What a worker is handed at once: tasks of one model, so that it is loaded once.

    Attributes:
        tasks: In the order in which they are done.
        places: Where the answers go.
        memory: Bytes for activations.
    """

    tasks: tuple[Task, ...]
    places: Places
    memory: int


def tasks_of(survey: Survey) -> list[Task]:
    """All tasks of a survey, model after model.

    Files of folders are read whole for this (about a second a gigabyte), and the hub is asked for
    the commit of each revision.
    """
    prompts = {one.label: (one, prompts_identity(one)) for one in survey.data}
    questions = [(one, question_identity(one)) for one in survey.questions]
    found = []
    for model in survey.models:
        weights = model_identity(model)
        for label, (made, recipe) in prompts.items():
            for question, asked in questions:
                if question.data is None or label in question.data:
                    name = digest(answer_identity(weights, recipe, asked))
                    found.append(Task(model, made, question, name, digest(weights)))
    return found


def calls_of(tasks: Sequence[Task], places: Places, memory: int, workers: int) -> list[Call]:
    """Tasks in calls: a model's together, cut only where workers would have nothing to do."""
    by_model: dict[str, list[Task]] = {}
    for task in {task.digest: task for task in tasks}.values():
        by_model.setdefault(task.weights, []).append(task)
    parts = math.ceil(CALLS_A_WORKER * workers / max(1, len(by_model))) if workers > 1 else 1
    calls = []
    for several in by_model.values():
        size = math.ceil(len(several) / min(parts, len(several)))
        for start in range(0, len(several), size):
            calls.append(Call(tuple(several[start : start + size]), places, memory))
    return calls
