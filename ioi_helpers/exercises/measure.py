"""What the checks of several notebooks measure, in plain TransformerLens or by the helpers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ioi_helpers import attribution, lrqp, metrics, probing, runs
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.exercises.registry import Context

Head = tuple[int, int]
Change = Callable[[Tensor], Tensor]


def clean(ctx: Context, data: str) -> Float[Tensor, " batch"]:
    """Logit difference of every prompt of the `data` at hand ("demo"), nothing changed."""
    prompts = getattr(ctx, data)
    return ctx.once(f"clean {data}", lambda: hooked(ctx.model, prompts, {}))


def head_writes(ctx: Context, data: str) -> Float[Tensor, "layer head batch"]:
    """What every head writes for the answer of every prompt of the `data` at hand ("demo")."""
    prompts = getattr(ctx, data)
    return ctx.once(
        f"heads on {data}",
        lambda: attribution.head_attribution(ctx.model, prompts).per_prompt.cpu(),
    )


def strongest(values: Float[Tensor, "layer head"]) -> Head:
    """The head with the largest value."""
    return divmod(int(values.argmax()), values.shape[1])


def hooked(
    model: Any, data: IOIDataset, changes: dict[str, Change], scored: IOIDataset | None = None
) -> Float[Tensor, " batch"]:
    """Logit differences of a run in which some hooks change their activation.

    They are those of `data`'s answers, or those that the rows of `scored` ask for.
    """

    def hook(change: Change) -> Callable[..., Tensor]:
        return lambda value, hook: change(value)

    hooks = [(name, hook(change)) for name, change in changes.items()]
    logits = model.run_with_hooks(data.tokens, fwd_hooks=hooks)
    return metrics.logit_diff(logits, scored or data, per_prompt=True)


def putting(
    new: Any, data: IOIDataset, role: str | None = None, which: Any = slice(None)
) -> Change:
    """A change that puts `new` (like the activation, or one number) in at a role.

    `role` None is every position, `which` a head's index or all.
    """

    def change(value: Tensor) -> Tensor:
        rows = torch.arange(len(value), device=value.device)
        at = (slice(None),) * 2 if role is None else (rows, data.positions[role].to(rows.device))
        value = value.clone()
        part = value[at]
        part[..., which, :] = new[at][..., which, :] if isinstance(new, Tensor) else new
        value[at] = part
        return value

    return change


def error(values: Float[Tensor, " batch"], data: IOIDataset) -> float:
    """Standard error of a mean over prompts, by pairs."""
    return metrics.mean_and_stderr(values, clusters=data.pair_ids).stderr


def correlation(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> float:
    """Pearson's, NaN where one of the two does not vary."""
    return float(torch.corrcoef(torch.stack([x.double().cpu(), y.double().cpu()]))[0, 1])


OTHER = {"ABBA": "BABA", "BABA": "ABBA"}


def opposites(orders: Sequence[str]) -> list[str]:
    """The order that each prompt does not have."""
    return [OTHER[order] for order in orders]


@dataclass(frozen=True)
class Place:
    """Training and test activations at S2 and a point, and what was fitted on the former."""

    x: Float[Tensor, "train d_model"]
    x0: Float[Tensor, "test d_model"]
    probe: probing.Probe
    covariance: probing.Covariance


def place(ctx: Context, point: str) -> Place:
    """Of the `train` and `test` at hand, which have orders."""

    def compute() -> Place:
        x = runs.activations_at(ctx.model, ctx.train, "S2", point)
        return Place(
            x,
            runs.activations_at(ctx.model, ctx.test, "S2", point),
            probing.fit_probe(x, ctx.train.orders),
            probing.fit_covariance(x),
        )

    return ctx.once(f"place {point}", compute)


def counterfactual(ctx: Context, point: str) -> Float[Tensor, "test d_model"]:
    """The activations that LRQP's counterfactual puts in there, as in notebooks 07 and 08."""

    def compute() -> Tensor:
        at, true = place(ctx, point), ctx.test.orders
        return lrqp.intervene(at.x0, at.probe, opposites(true), at.covariance, true=true).x

    return ctx.once(f"counterfactual {point}", compute)


def normal(probe: probing.Probe, target: int) -> tuple[Tensor, Tensor]:
    """a and the difference of the biases, of a two-class probe, towards one class."""
    other = 1 - target
    return probe.weights[target] - probe.weights[other], probe.bias[target] - probe.bias[other]
