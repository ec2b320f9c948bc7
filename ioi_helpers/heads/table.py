"""The heads of a model in one table: scores, direct and causal effects, and what they add up to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import attribution
from ioi_helpers.ablation import ablation_sweep
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.heads.effects import ablated_on_repeats, backup_rise
from ioi_helpers.heads.known import registry
from ioi_helpers.heads.repeats import DEFAULT_SEEDS, PATTERNS, repeat_scores
from ioi_helpers.heads.rules import (
    CLASS_RULES,
    EVERY_RULE,
    LOOKS_AT_LEAST,
    SCORES_AT_LEAST,
    class_evidence,
    error_of,
)
from ioi_helpers.heads.weights import both_copying_scores, composition_scores
from ioi_helpers.metrics import mean_and_stderr, standard_error
from ioi_helpers.names import head_labels, parse_head
from ioi_helpers.patching import patch_sweep
from ioi_helpers.runs import (
    DEFAULT_MEMORY,
    hooks_on_pairs,
    logit_diffs,
    require_data,
    run_in_batches,
)

LOOKS: dict[str, tuple[str, str]] = {
    f"{looks} to {at}": (looks, at)
    for looks, at in [
        *(("END", role) for role in ("IO", "S1", "S2")),
        *(("S2", role) for role in ("S1", "S1+1")),
        ("S1+1", "S1"),
    ]
}
"""Columns of attention on IOI prompts, as (role that looks, role looked at)."""

_MEASURED: dict[str, str] = {
    **dict.fromkeys(LOOKS, "attention on the IOI prompts"),
    "direct": "direct logit attribution at END, logits",
    "END, other order": "change of the logit difference when its output at END is that of the "
    "other order (ABBA for BABA), logits",
    "END, other names": "the same with that of three other names",
    "S2, other order": "the same at S2, with that of the other order",
    "S2, other names": "the same at S2, with that of three other names (measured only where the "
    "head looks back at S1 or S1+1 from there)",
    "S1+1, other names": "the same at S1+1, with that of three other names (measured only "
    "where the head looks back at S1 from there)",
    "backup rise": "change of `direct` when the strongest name mover is taken out at END, logits",
}
"""What is measured on IOI prompts, with an error over pairs of prompts."""

_SCORED: dict[str, str] = {
    "previous_token": "attention to the previous token, on repeated random tokens",
    "duplicate_token": "attention to the earlier copy of the token, on the same",
    "induction": "attention to the token after the earlier copy, on the same",
    "ablated: repeat loss": "change of the loss on repeated tokens when it is ablated, nats "
    "(measured only where one of the three scores is above the rules' threshold)",
    "ablated: best induction": "change of the best induction score of the other heads (likewise)",
}
"""What is measured on repeated tokens, with an error over sequences, each of its own seed."""


def _with_errors(columns: Mapping[str, str], over: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, text in columns.items():
        found |= {name: text, error_of(name): f"its standard error over {over}"}
    return found


COLUMNS: dict[str, str] = {
    "layer": "the head's layer",
    "head": "its index in the layer",
    "head class": "head classes that the evidence in this row supports, see CLASS_RULES (-: none)",
    "registry": "head class in the model's registry (GPT-2 small: published), where there is one",
    **_with_errors(_SCORED, "seeds"),
    "repeated logit": "direct effect on the logit of the token that comes next there, logits",
    **_with_errors(_MEASURED, "pairs of prompts"),
    "copying": "share of names that its OV circuit brings among the top five",
    "negative copying": "the same with the opposite sign",
    "Q reads": "the earlier head with the highest Q-composition score",
    "Q composition": "that score",
    "K reads": "the same for keys",
    "K composition": "that score",
    "V reads": "the same for values",
    "V composition": "that score",
}
"""What each column of a head table holds, with its unit."""

LARGE_MODEL = 2e7  # parameters


def head_table(
    model: TransformerBridge,
    data: IOIDataset,
    *,
    sweep_prompts: int | None = None,
    copying_prompts: int = 12,
    seeds: Sequence[int] = DEFAULT_SEEDS,
    length: int = 50,
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> pd.DataFrame:
    """All that is measured about a model's heads, one head a row, named ``"L9H9"``.

    ``table.sort_values("induction")`` sorts it, ``table.to_csv("heads.csv")`` exports it. The
    column ``head class`` follows :data:`CLASS_RULES` from the evidence in the row alone and never
    looks at the registry, whose entry stands beside it. :data:`COLUMNS` says what each column
    holds; every number that a rule uses has its standard error beside it. ``table.attrs`` holds the
    rules, the model's name and logit difference (with its error), and the settings.
    ``registry_of(table)`` makes a registry of it.

    Take hooks off the model before: sweeps would be slow, and what some of them put in is the
    output of the model without hooks.

    Args:
        model: A decoder.
        data: IOI prompts; they may differ in length. At least four, in pairs (see
            ``IOIDataset.generate``): standard errors are over pairs.
        sweep_prompts: Interventions on every head are done on so many of the prompts, the first
            ones; by default 48. Where the model is as large as GPT-2 small, 12; and there heads
            are ablated on four of the random sequences, and the backup's rise is measured on 48
            prompts at most, so that the table takes about a minute on two cores.
        copying_prompts: Copying scores are measured on the names of so many, the first ones.
        seeds, length: Of the repeated random tokens, a sequence a seed.
        memory, progress: As for :func:`~ioi_helpers.runs.run_in_batches`.

    Returns:
        The table. ``NaN`` stands where something was not measured; direct effects are not where
        logits are no sum of what heads write (``table.attrs["no direct effects"]`` says why).

    Raises:
        ValueError: Fewer than two pairs of prompts, or prompts that do not fit the model.
    """
    require_data(model, data)
    large = sum(parameter.numel() for parameter in model.parameters()) > LARGE_MODEL
    if sweep_prompts is None:
        sweep_prompts = 12 if large else 48
    first = data[: max(sweep_prompts, 1)]
    if len(first.pair_ids.unique()) < 2:
        raise ValueError(
            "The table needs at least two pairs of prompts to give standard errors; generate more."
        )
    settings: dict[str, Any] = {"memory": memory, "progress": progress}
    labels = head_labels(model)
    columns: dict[str, Any] = {
        "layer": [parse_head(name)[0] for name in labels],
        "head": [parse_head(name)[1] for name in labels],
    }
    columns |= _on_repeats(model, labels, seeds, length, seeds[:4] if large else seeds, settings)
    looks, direct = _looks_and_writes(model, data, settings)
    for name, values in (*looks.items(), ("direct", direct)):
        columns |= _estimates(name, values, data)
    names = data[: max(copying_prompts, 1)]
    columns["copying"], columns["negative copying"] = both_copying_scores(model, names, **settings)
    swept, total = _effects(model, first, labels, columns, settings)
    columns |= swept
    some = data[: min(48, len(data)) if large else len(data)]
    rise, strongest = _backup(model, some, labels, columns, settings)
    columns |= rise | _reads(model, labels)

    table = pd.DataFrame(
        {
            name: value.flatten().cpu().double().numpy() if isinstance(value, Tensor) else value
            for name, value in columns.items()
        },
        index=pd.Index(labels, name="name"),
    )
    known = registry(model)
    table["head class"] = [
        ", ".join(class_evidence(row, total)) or "-" for row in table.to_dict("records")
    ]
    table["registry"] = [known.class_of(name) for name in labels]
    table.attrs = {
        "model": getattr(model, "ioi_name", "unnamed"),
        "logit difference": total,
        "strongest": strongest,
        "rules": dict(CLASS_RULES),
        "every rule": EVERY_RULE,
        "prompts": len(data),
        "sweep prompts": len(first),
        "no direct effects": attribution.why_no_readout(model),
    }
    return table[list(COLUMNS)]


def _estimates(
    name: str, values: Float[Tensor, "layer head batch"], data: IOIDataset
) -> dict[str, Tensor]:
    """A column of means over prompts, and that of their errors by pairs."""
    wide = values.double()
    return {name: wide.mean(dim=-1), error_of(name): standard_error(wide, data.pair_ids)}


def _on_repeats(
    model: TransformerBridge,
    labels: Sequence[str],
    seeds: Sequence[int],
    length: int,
    ablated_seeds: Sequence[int],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    settings = {**settings, "length": min(length, (model.cfg.n_ctx - 1) // 2)}
    scores = repeat_scores(model, seeds=seeds, **settings)
    columns: dict[str, Any] = {}
    for name in PATTERNS:
        columns |= {name: scores[name], error_of(name): scores.stderr[name]}
    columns["repeated logit"] = scores.repeated_logit
    high = torch.stack([scores[name] for name in PATTERNS]).amax(dim=0) >= SCORES_AT_LEAST
    chosen = [name for name in labels if high[parse_head(name)]]
    settings |= {"seeds": ablated_seeds}
    clean = scores if ablated_seeds == seeds else repeat_scores(model, **settings)
    after = ablated_on_repeats(model, chosen, clean, **settings)
    for what in ("repeat loss", "best induction"):
        found = [after[name][what] if name in after else None for name in labels]
        column = f"ablated: {what}"
        columns[column] = [one.mean if one else math.nan for one in found]
        columns[error_of(column)] = [one.stderr if one else math.nan for one in found]
    return columns


def _looks_and_writes(
    model: TransformerBridge, data: IOIDataset, settings: Mapping[str, Any]
) -> tuple[dict[str, Float[Tensor, "layer head batch"]], Float[Tensor, "layer head batch"]]:
    """Attention by column, and each head's direct attribution, in the same runs.

    NaN for the latter where logits are no sum of what heads write.
    """
    pairs = list(LOOKS.values())
    split = not attribution.why_no_readout(model)
    shape = (model.cfg.n_layers, model.cfg.n_heads)

    def read(part: IOIDataset) -> dict[str, Tensor]:
        at = (
            torch.stack([part.positions[role] for role in roles], dim=-1)
            for roles in zip(*pairs, strict=True)
        )
        by_layer, hooks = hooks_on_pairs(model, *at)
        with model.hooks(fwd_hooks=hooks):
            # As many prompts as the outer run took, so one part, whose order is kept.
            quietly = {**settings, "progress": False}
            if split:
                direct = attribution.head_attribution(model, part, **quietly).per_prompt
            else:
                diffs = logit_diffs(model, part, **quietly)
                direct = torch.full_like(diffs, torch.nan).expand(*shape, -1)
        looks = torch.stack(by_layer).unbind(dim=2)
        return dict(zip(LOOKS, looks, strict=True)) | {"direct": direct}

    n_heads = model.cfg.n_layers * model.cfg.n_heads
    kept = n_heads * len(pairs) + (model.cfg.n_layers + 1) * model.cfg.d_model
    found = run_in_batches(model, data, read, kept=kept, dim=-1, **settings)
    direct = found.pop("direct")
    return found, direct


def _effects(
    model: TransformerBridge,
    data: IOIDataset,
    labels: Sequence[str],
    looks: Mapping[str, Float[Tensor, "layer head"]],
    settings: Mapping[str, Any],
) -> tuple[dict[str, Tensor], tuple[float, float]]:
    """Each intervention with its error, ``[layer head]``, and the logit difference with its own.

    All in logits. What heads bring to S1+1 and S2 from other names is measured only where they
    look back at S1: everything that comes after has to be run again for each head.
    """
    found: dict[str, Tensor] = {}
    abc = data.abc()
    for what, counterpart, places in (
        ("other order", data.swap_order(), ("S2", "END")),
        ("other names", abc, ("END",)),
    ):
        ordered = patch_sweep(
            model,
            data,
            counterpart,
            site="z",
            axes=("layer", "head", "role"),
            roles=places,
            direction="noising",
            **settings,
        )
        change = ordered.effect()
        for i, role in enumerate(places):
            found |= _estimates(f"{role}, {what}", change[:, :, i], data)
    for role, columns in (("S1+1", ["S1+1 to S1"]), ("S2", ["S2 to S1", "S2 to S1+1"])):
        back = torch.stack([looks[column] for column in columns]).amax(dim=0)
        chosen = [name for name in labels if back[parse_head(name)] >= LOOKS_AT_LEAST]
        change = torch.full((*back.shape, len(data)), float("nan"))
        if chosen:
            swept = ablation_sweep(
                model, data, chosen, how="resample", reference=abc, role=role, **settings
            )
            for name, values in zip(chosen, swept.effect().cpu(), strict=True):
                change[parse_head(name)] = values
        found |= _estimates(f"{role}, other names", change, data)
    total = mean_and_stderr(ordered.clean, data.pair_ids)
    return found, (total.mean, total.stderr)


def _backup(
    model: TransformerBridge,
    data: IOIDataset,
    labels: Sequence[str],
    columns: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> tuple[dict[str, Tensor], str]:
    """How direct attributions rise without the strongest head that looks at IO, and its name.

    NaN, and no name, where no head that looks at IO writes anything for it.
    """
    name = "backup rise"
    movers = columns["direct"].flatten().clone()
    movers[columns["END to IO"].flatten() < LOOKS_AT_LEAST] = -torch.inf
    if not movers.max() > 0:  # or it is not known
        empty = torch.full_like(columns["direct"], float("nan"))
        return {name: empty, error_of(name): empty}, ""
    strongest = labels[int(movers.argmax())]
    found = _estimates(name, backup_rise(model, data, strongest, **settings), data)
    for column in found.values():
        column[parse_head(strongest)] = float("nan")
    return found, strongest


def _reads(model: TransformerBridge, labels: Sequence[str]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for mode in ("Q", "K", "V"):
        scores = composition_scores(model, mode).flatten(2, 3).flatten(0, 1)  # [writer reader]
        best = scores.max(dim=0)
        writers = [labels[i] for i in best.indices.tolist()]
        strength = best.values.tolist()
        columns[f"{mode} reads"] = [w if s > 0 else "" for w, s in zip(writers, strength)]
        columns[f"{mode} composition"] = [s if s > 0 else float("nan") for s in strength]
    return columns
