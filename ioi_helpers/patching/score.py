"""The score of a run: metrics of its logits at END, one value a prompt."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.metrics import logit_diff

Metric = Callable[..., Tensor]
Metrics = Metric | Sequence[Metric] | Mapping[str, Metric]


class Values(NamedTuple):
    """What a sweep measures: every metric of the patched runs, and of the two unpatched ones."""

    patched: Float[Tensor, "metric cell batch"]
    base: Float[Tensor, "metric batch"]
    source: Float[Tensor, "metric batch"]


@dataclass(frozen=True)
class Scorer:
    """Metrics by name, and the clean prompts that they score with.

    Attributes:
        several: Whether several were asked for, so that results have an axis of metrics.
    """

    metrics: dict[str, Metric]
    data: TwoAnswerData
    several: bool = False

    @classmethod
    def of(cls, metric: Metrics | None, data: TwoAnswerData) -> Scorer:
        """From what a user writes; None is the logit difference.

        Raises:
            ValueError: There is something that is no function, or a name twice.
        """
        if metric is None:
            return cls({"logit_diff": logit_diff}, data)
        if callable(metric):
            return cls({getattr(metric, "__name__", "metric"): metric}, data)
        if isinstance(metric, Mapping):
            named = dict(metric)
        else:
            named = {getattr(one, "__name__", f"metric_{i}"): one for i, one in enumerate(metric)}
            if len(named) < len(metric):
                raise ValueError("Two metrics have the same name; give them as {name: metric}.")
        if not named or not all(callable(one) for one in named.values()):
            raise ValueError(
                "metric must be a function of (logits, data) or of (logits), a list of such "
                f"functions or a dictionary {{name: function}}, not {metric!r}."
            )
        return cls(named, data, several=True)

    @property
    def needs_all_logits(self) -> bool:
        """Whether any metric is other than the logit difference."""
        return any(metric is not logit_diff for metric in self.metrics.values())

    @property
    def needs_all_prompts(self) -> bool:
        """Whether any metric is given logits only, so that it expects those of all prompts."""
        return any(_takes_logits_only(metric) for metric in self.metrics.values())

    def part(self, rows: slice | Int[Tensor, " rows"]) -> Scorer:
        """For some of the prompts."""
        return Scorer(self.metrics, self.data[rows], self.several)

    def score(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, "metric batch"]:
        """Every metric of one run, from its logits at END.

        Raises:
            ValueError: A metric does not return one value a prompt.
        """
        rows = []
        for name, metric in self.metrics.items():
            if _takes_logits_only(metric):
                # TransformerLens' form, which looks up the last position itself.
                value = metric(logits[:, None], **_per_prompt(metric))
            else:
                value = metric(logits, self.data, **_per_prompt(metric))
            if not isinstance(value, Tensor) or value.shape != (len(self.data),):
                shape = tuple(value.shape) if isinstance(value, Tensor) else value
                raise ValueError(
                    f"The metric {name!r} must return one value for each of the {len(self.data)} "
                    f"prompts, not {shape}."
                )
            rows.append(value if value.is_floating_point() else value.float())
        return torch.stack(rows)


def _parameters(metric: Metric) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(metric).parameters.values())
    except (TypeError, ValueError):
        return []


def _takes_logits_only(metric: Metric) -> bool:
    """Whether it is of TransformerLens' form: one argument that must be given, the logits."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = _parameters(metric)
    wanted = [p for p in parameters if p.kind in positional and p.default is p.empty]
    more = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
    return len(wanted) == 1 and not more


def _per_prompt(metric: Metric) -> dict[str, bool]:
    """``per_prompt=True`` where the metric knows it."""
    parameters = _parameters(metric)
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    known = any(p.name == "per_prompt" for p in parameters)
    return {"per_prompt": True} if takes_any or known else {}
