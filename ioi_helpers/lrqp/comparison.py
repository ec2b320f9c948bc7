"""How interventions at the same place compare: what they achieve against what they damage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.edits import logit_diffs_and_kl, residual_edit
from ioi_helpers.metrics import mean_and_stderr
from ioi_helpers.probing import Probe, as_covariance
from ioi_helpers.probing.activations import to_float64
from ioi_helpers.runs import DEFAULT_MEMORY, Edit, activations_at, role_positions


def compare(
    model: TransformerBridge,
    data: TwoAnswerData,
    role: str,
    point: str,
    interventions: Mapping[str, Callable[..., Float[Tensor, "batch d_model"]]],
    *,
    true: Sequence[Any],
    target: Sequence[Any],
    counterfactual: TwoAnswerData | Float[Tensor, "batch d_model"] | None = None,
    probe: Probe | None = None,
    covariance: Any = None,
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> pd.DataFrame:
    """Efficacy against damage, for several interventions at the same place on the same prompts.

    Args:
        model, data: The model and held-out prompts.
        role, point: Where to intervene.
        interventions: A name for each; an :class:`~ioi_helpers.lrqp.Intervention`, or a function
            that is called in the same way. A first row, ``"none"``, is the clean run.
        true, target: The class each prompt has, and should get.
        counterfactual: Prompts that have the target, such as ``data.swap_order()``, or their
            activations at the same role and point.
        probe: Of this role and point, for ``belief``.
        covariance: Of this role and point, for ``length``.
        memory, progress: As for :func:`~ioi_helpers.edits.logit_diffs_and_kl`.

    Returns:
        One intervention a row: ``logit_diff`` and ``stderr`` (logits, of the clean answers),
        ``flipped`` and ``flipped_stderr`` (share of prompts that prefer IO in the clean run and S
        after it), ``flipped_`` and a class (the same of its prompts alone: where classes disagree
        their mean says little),
        ``norm`` (mean Euclidean length of the move), ``length`` (mean Mahalanobis length, infinite
        where it leaves the range of the covariance), ``belief`` (share of rows for which the probe
        says the target), ``kl_here`` (mean change of the prediction at the role itself, nats) and
        ``kl_after`` (at all tokens after it and before END, nats). Errors are over pairs, NaN for a
        single one.

    Raises:
        ValueError: Labels that do not fit, or what the parts raise.
    """
    if not len(true) == len(target) == len(data):
        raise ValueError(
            f"There are {len(data)} prompts, but {len(true)} true and {len(target)} target classes."
        )
    if counterfactual is not None and len(counterfactual) != len(data):
        raise ValueError(
            f"There are {len(data)} prompts, but {len(counterfactual)} counterfactuals; give one "
            "for each, in the same order."
        )
    x0 = activations_at(model, data, role, point, memory=memory, progress=progress)
    source: Tensor | None
    if counterfactual is not None and not isinstance(counterfactual, Tensor):
        # A counterfactual lines up token by token, but its roles may stand elsewhere.
        at = role_positions(data, role)
        source = activations_at(model, counterfactual, at, point, memory=memory, progress=progress)
    else:
        source = counterfactual
    device = to_float64(x0).device
    ruler = None if covariance is None else as_covariance(covariance, x0.shape[1], device)
    after = torch.arange(data.tokens.shape[1])
    here, end = data.positions[role].cpu()[:, None], data.positions["END"].cpu()[:, None]
    between = (after > here) & (after < end)

    made = {
        name: one(x0, true=true, target=target, counterfactual=source)
        for name, one in interventions.items()
    }
    edits: dict[str, list[Edit]] = {"none": []}
    edits.update({name: [residual_edit(data, role, point, new)] for name, new in made.items()})
    measured = logit_diffs_and_kl(model, data, edits, memory=memory, progress=progress)

    right = measured["none"][0] > 0
    rows = []
    for name, (diffs, kl) in measured.items():
        new = made.get(name, x0)
        mean, stderr = _over_pairs(diffs, data)
        turned = (right & (diffs < 0)).double()
        flipped, flipped_stderr = _over_pairs(turned, data)
        move = to_float64(new).to(device) - to_float64(x0)
        row = {
            "intervention": name,
            "logit_diff": mean,
            "stderr": stderr,
            "flipped": flipped,
            "flipped_stderr": flipped_stderr,
            **{f"flipped_{label}": _share_of(turned, true, label) for label in dict.fromkeys(true)},
            "norm": move.norm(dim=-1).mean().item(),
        }
        if ruler is not None:
            row["length"] = ruler.length(move).mean().item()
        if probe is not None:
            said = probe.predict(new)
            row["belief"] = sum(a == b for a, b in zip(said, target, strict=True)) / len(said)
        row["kl_here"] = kl.cpu().gather(1, here).mean().item()
        row["kl_after"] = kl.cpu()[between].mean().item() if bool(between.any()) else 0.0
        rows.append(row)
    return pd.DataFrame(rows)


def _share_of(turned: Float[Tensor, " batch"], true: Sequence[Any], label: Any) -> float:
    """The share of one class' prompts whose answer turned."""
    return turned[[one == label for one in true]].mean().item()


def _over_pairs(values: Float[Tensor, " batch"], data: TwoAnswerData) -> tuple[float, float]:
    """The mean, and its error over pairs; NaN where there is only one."""
    estimate = mean_and_stderr(values, data.pair_ids)
    return estimate.mean, estimate.stderr
