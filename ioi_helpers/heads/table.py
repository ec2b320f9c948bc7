"""The heads of a model in one table: scores, direct and causal effects, and what they add up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import attribution
from ioi_helpers.ablation import ablation_sweep
from ioi_helpers.heads.attention import hooks_on_pairs, positions_of_pairs
from ioi_helpers.heads.effects import backup_rise, silenced_on_repeats
from ioi_helpers.heads.known import registry
from ioi_helpers.heads.repeats import DEFAULT_SEEDS, PATTERNS, repeat_scores
from ioi_helpers.heads.weights import both_copying_scores, composition_scores
from ioi_helpers.metrics import mean_and_stderr
from ioi_helpers.names import head_labels, parse_head
from ioi_helpers.patching import patch_sweep

if TYPE_CHECKING:
    from ioi_helpers.dataset import IOIDataset

LOOKS: dict[str, tuple[str, str]] = {
    "END to IO": ("END", "IO"),
    "END to S1": ("END", "S1"),
    "END to S2": ("END", "S2"),
    "S2 to S1": ("S2", "S1"),
    "S2 to S1+1": ("S2", "S1+1"),
    "S1+1 to S1": ("S1+1", "S1"),
}
"""Columns of attention on IOI prompts, as (role that looks, role looked at)."""

COLUMNS: dict[str, str] = {
    "layer": "the head's layer",
    "head": "its index in the layer",
    "head class": "head classes that the evidence in this row supports, see CLASS_RULES",
    "registry": "head class in the model's registry (GPT-2 small: published), where there is one",
    "previous_token": "attention to the previous token, on repeated random tokens",
    "duplicate_token": "attention to the earlier copy of the token, on the same",
    "induction": "attention to the token after the earlier copy, on the same",
    **{f"{name} se": "its standard error over seeds" for name in PATTERNS},
    "repeated logit": "direct effect on the logit of the token that comes next there, logits",
    "silenced: repeat loss": "change of the loss on repeated tokens when silenced, nats "
    "(measured only where one of the three scores is above the rules' threshold)",
    "silenced: best induction": "change of the best induction score of the other heads (likewise)",
    **dict.fromkeys(LOOKS, "attention on the IOI prompts"),
    "copying": "share of names that its OV circuit brings among the top five",
    "negative copying": "the same with the opposite sign",
    "direct": "direct logit attribution at END, logits",
    "direct se": "its standard error over pairs of prompts",
    "END, other order": "change of the logit difference when its output at END is that of the "
    "other order (ABBA for BABA), logits",
    "END, other names": "the same with that of three other names",
    "S2, other order": "the same at S2, with that of the other order",
    "S2, other names": "the same at S2, with that of three other names (measured only where the "
    "head looks back at S1 or S1+1 from there)",
    "S1+1, other names": "the same at S1+1, with that of three other names (measured only "
    "where the head looks back at S1 from there)",
    "backup rise": "change of `direct` when the strongest name mover is taken out at END, logits",
    "backup rise se": "its standard error over pairs of prompts",
    "Q reads": "the earlier head with the highest Q-composition score",
    "Q composition": "that score",
    "K reads": "the same for keys",
    "K composition": "that score",
    "V reads": "the same for values",
    "V composition": "that score",
}
"""What each column of a head table holds, with its unit."""

LOOKS_AT_LEAST = 0.25
SCORES_AT_LEAST = 0.5
EFFECT_AT_LEAST = 0.02
CHANGE_AT_LEAST = 0.1  # of the loss on repeated tokens (nats), or of the best induction score
SIGMAS = 3.0
LARGE = 2e7  # parameters

_MOVES = f"moves the logit difference by {100 * EFFECT_AT_LEAST:g} % of it or more"

CLASS_RULES: dict[str, str] = {
    "name_mover": f"END to IO >= {LOOKS_AT_LEAST}, and direct >= {100 * EFFECT_AT_LEAST:g} % of "
    "the logit difference",
    "negative_name_mover": f"END to IO >= {LOOKS_AT_LEAST}, and direct <= "
    f"-{100 * EFFECT_AT_LEAST:g} % of the logit difference",
    "backup_name_mover": "no name mover, and its direct attribution rises by "
    f"{100 * EFFECT_AT_LEAST:g} % of the logit difference or more when the strongest name mover "
    "is taken out at END",
    "s_inhibition": f"END to S2 >= {LOOKS_AT_LEAST}, and at END its output from the other order "
    + _MOVES,
    "duplicate_token": f"S2 to S1 >= {LOOKS_AT_LEAST}, and at S2 its output from the other order, "
    f"or from other names, {_MOVES}",
    "induction": f"S2 to S1+1 >= {LOOKS_AT_LEAST} with the same effect at S2; or an induction "
    f"score >= {SCORES_AT_LEAST}, and silencing it raises the loss on repeated tokens by "
    f"{CHANGE_AT_LEAST} nats or more",
    "previous_token": f"S1+1 to S1 >= {LOOKS_AT_LEAST}, and at S1+1 its output from other names "
    f"{_MOVES}; or a previous-token score >= {SCORES_AT_LEAST}, and silencing it lowers the best "
    f"induction score by {CHANGE_AT_LEAST} or more",
}
"""When the evidence supports a head class. Effects must also lie three standard errors from zero,
and head classes of IOI are given only where the model does IOI: a logit difference three standard
errors above zero. The thresholds are conventions: look at the numbers of a head near one."""


def head_table(
    model: TransformerBridge,
    data: IOIDataset,
    *,
    sweep_prompts: int | None = None,
    copying_prompts: int = 12,
    seeds: Sequence[int] = DEFAULT_SEEDS,
    length: int = 50,
    batch_size: int = 64,
    progress: bool = True,
) -> pd.DataFrame:
    """All that is measured about a model's heads, one head a row, named ``"L9H9"``.

    ``table.sort_values("induction")`` sorts it, ``table.to_csv("heads.csv")`` exports it. The
    column ``head class`` follows :data:`CLASS_RULES` from the evidence in the row alone and never
    looks at the registry, whose entry stands beside it. :data:`COLUMNS` says what each column
    holds; ``table.attrs`` holds the rules, the model's name and logit difference, and the settings.

    Take hooks off the model before: sweeps would be slow, and what some of them put in is the
    output of the model without hooks.

    Args:
        model: A GPT-2-style model.
        data: IOI prompts; they may differ in length. At least four, in pairs (see
            ``IOIDataset.generate``): standard errors are over pairs.
        sweep_prompts: Interventions on every head are done on so many of the prompts, the first
            ones; by default 48. Where the model is as large as GPT-2 small, 12; and there heads
            are silenced on two of the random sequences, and the backup's rise is measured on 48
            prompts at most, so that the table takes about a minute on two cores.
        copying_prompts: Copying scores are measured on the names of so many, the first ones.
        seeds, length: Of the repeated random tokens, a sequence a seed.
        batch_size: Prompts run at once.
        progress: Show progress bars where there is something to wait for.

    Returns:
        The table. ``NaN`` stands where something was not measured.

    Raises:
        ValueError: Fewer than two pairs of prompts, or prompts that do not fit the model.
    """
    large = sum(parameter.numel() for parameter in model.parameters()) > LARGE
    if sweep_prompts is None:
        sweep_prompts = 12 if large else 48
    first = data[: max(sweep_prompts, 1)]
    if len(first.pair_ids.unique()) < 2:
        raise ValueError(
            "The table needs at least two pairs of prompts to give standard errors; generate more."
        )
    labels = head_labels(model)
    columns: dict[str, Any] = {
        "layer": [parse_head(name)[0] for name in labels],
        "head": [parse_head(name)[1] for name in labels],
    }
    columns |= _on_repeats(model, labels, seeds, length, seeds[:2] if large else seeds)
    looks, direct = _looks_and_writes(model, data, batch_size)
    columns |= looks
    names = data[: max(copying_prompts, 1)]
    columns["copying"], columns["negative copying"] = both_copying_scores(model, names)
    columns["direct"], columns["direct se"] = _estimates(direct, data)
    sweeps, total = _effects(model, first, labels, looks, progress)
    columns |= {name: mean for name, (mean, _) in sweeps.items()}
    some = min(48, len(data)) if large else len(data)
    rise, rise_error = _backup(model, data[:some], labels, columns, batch_size)
    columns["backup rise"], columns["backup rise se"] = rise, rise_error
    columns |= _reads(model, labels)

    table = pd.DataFrame(
        {
            name: value.flatten().cpu().numpy() if isinstance(value, Tensor) else value
            for name, value in columns.items()
        },
        index=pd.Index(labels, name="name"),
    )
    errors = {name: error.flatten().tolist() for name, (_, error) in sweeps.items()}
    table["head class"] = _supported(table, total, errors)
    table["registry"] = _registered(model, labels)
    table.attrs = {
        "model": getattr(model, "ioi_name", "unnamed"),
        "logit difference": total,
        "rules": dict(CLASS_RULES),
        "prompts": len(data),
        "sweep prompts": len(first),
    }
    return table[list(COLUMNS)]


def _estimates(
    values: Float[Tensor, "layer head batch"], data: IOIDataset
) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "layer head"]]:
    found = [mean_and_stderr(row, data.pair_ids) for row in values.flatten(0, 1)]
    shape = values.shape[:2]
    means, errors = (
        torch.tensor([getattr(each, what) for each in found], dtype=torch.float64).reshape(shape)
        for what in ("mean", "stderr")
    )
    return means, errors


def _on_repeats(
    model: TransformerBridge,
    labels: Sequence[str],
    seeds: Sequence[int],
    length: int,
    silent_seeds: Sequence[int],
) -> dict[str, Any]:
    length = min(length, (model.cfg.n_ctx - 1) // 2)
    scores = repeat_scores(model, seeds=seeds, length=length)
    columns: dict[str, Any] = {name: scores[name] for name in PATTERNS}
    columns |= {f"{name} se": scores.stderr[name] for name in PATTERNS}
    columns["repeated logit"] = scores.repeated_logit
    high = torch.stack([scores[name] for name in PATTERNS]).amax(dim=0) >= SCORES_AT_LEAST
    chosen = [name for name in labels if high[parse_head(name)]]
    clean = (
        scores if silent_seeds == seeds else repeat_scores(model, seeds=silent_seeds, length=length)
    )
    after = silenced_on_repeats(model, chosen, clean, seeds=silent_seeds, length=length)
    missing = (float("nan"), float("nan"))
    columns["silenced: repeat loss"] = [after.get(name, missing)[0] for name in labels]
    columns["silenced: best induction"] = [after.get(name, missing)[1] for name in labels]
    return columns


def _looks_and_writes(
    model: TransformerBridge, data: IOIDataset, batch_size: int
) -> tuple[dict[str, Float[Tensor, "layer head"]], Float[Tensor, "layer head batch"]]:
    """Mean attention by column, and each head's direct attribution, in the same runs."""
    looks, direct = [], []
    for start in range(0, len(data), batch_size):
        part = data[start : start + batch_size]
        by_layer, hooks = hooks_on_pairs(model, *positions_of_pairs(part, list(LOOKS.values())))
        with model.hooks(fwd_hooks=hooks):
            direct.append(attribution.head_attribution(model, part, per_prompt=True))
        looks.append(torch.stack(by_layer))
    by_pair = torch.cat(looks, dim=-1).mean(dim=-1).unbind(dim=-1)
    return dict(zip(LOOKS, by_pair, strict=True)), torch.cat(direct, dim=-1)


def _effects(
    model: TransformerBridge,
    data: IOIDataset,
    labels: Sequence[str],
    looks: Mapping[str, Float[Tensor, "layer head"]],
    progress: bool,
) -> tuple[dict[str, tuple[Tensor, Tensor]], tuple[float, float]]:
    """Mean and standard error of each intervention, ``[layer head]``, and of the logit difference.

    All in logits. What heads bring to S1+1 and S2 from other names is measured only where they
    look back at S1: everything that comes after has to be run again for each head.
    """
    found = {}
    settings = {"site": "z", "direction": "noising", "progress": progress}
    axes = ("layer", "head", "role")
    abc = data.abc()
    for what, counterpart, places in (
        ("other order", data.swap_order(), ("S2", "END")),
        ("other names", abc, ("END",)),
    ):
        ordered = patch_sweep(model, data, counterpart, axes=axes, roles=places, **settings)  # type: ignore[arg-type]
        change = ordered.values - ordered.clean
        for i, role in enumerate(places):
            found[f"{role}, {what}"] = _estimates(change[:, :, i], data)
    for role, columns in (("S1+1", ["S1+1 to S1"]), ("S2", ["S2 to S1", "S2 to S1+1"])):
        back = torch.stack([looks[column] for column in columns]).amax(dim=0)
        chosen = [name for name in labels if back[parse_head(name)] >= LOOKS_AT_LEAST]
        change = torch.full((*back.shape, len(data)), float("nan"))
        if chosen:
            swept = ablation_sweep(
                model, data, chosen, how="resample", reference=abc, role=role, progress=progress
            )
            for name, values in zip(chosen, (swept.values - swept.baseline).cpu(), strict=True):
                change[parse_head(name)] = values
        found[f"{role}, other names"] = _estimates(change, data)
    total = mean_and_stderr(ordered.clean, data.pair_ids)
    return found, (total.mean, total.stderr)


def _backup(
    model: TransformerBridge,
    data: IOIDataset,
    labels: Sequence[str],
    columns: Mapping[str, Any],
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """How direct attributions rise without the strongest head that looks at IO, else NaN."""
    movers = columns["direct"].flatten().cpu().clone()
    movers[columns["END to IO"].flatten().cpu() < LOOKS_AT_LEAST] = -torch.inf
    if movers.max() <= 0:
        empty = torch.full_like(columns["direct"], float("nan"))
        return empty, empty
    strongest = labels[int(movers.argmax())]
    change = backup_rise(model, data, strongest, batch_size=batch_size)
    rise, error = _estimates(change, data)
    rise[parse_head(strongest)] = error[parse_head(strongest)] = float("nan")
    return rise, error


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


def _supported(
    table: pd.DataFrame, total: tuple[float, float], errors: Mapping[str, Sequence[float]]
) -> list[str]:
    """The head classes of each row, by the rules."""
    does_ioi = total[0] > SIGMAS * total[1]
    enough = EFFECT_AT_LEAST * abs(total[0])
    found = []
    for i, row in enumerate(table.to_dict("records")):

        def moves(*names: str, row: Mapping[str, Any] = row, i: int = i) -> bool:
            # What was not measured is NaN, which is above nothing.
            return any(abs(row[name]) >= max(enough, SIGMAS * errors[name][i]) for name in names)

        def looks(column: str, row: Mapping[str, Any] = row) -> bool:
            return bool(row[column] >= LOOKS_AT_LEAST)

        has: list[str] = []
        if does_ioi:
            writes = abs(row["direct"]) >= max(enough, SIGMAS * row["direct se"])
            if looks("END to IO") and writes:
                has.append("name_mover" if row["direct"] > 0 else "negative_name_mover")
            elif row["backup rise"] >= max(enough, SIGMAS * row["backup rise se"]):
                has.append("backup_name_mover")
            if looks("END to S2") and moves("END, other order"):
                has.append("s_inhibition")
            if looks("S2 to S1") and moves("S2, other order", "S2, other names"):
                has.append("duplicate_token")
        if (does_ioi and looks("S2 to S1+1") and moves("S2, other order", "S2, other names")) or (
            row["induction"] >= SCORES_AT_LEAST and row["silenced: repeat loss"] >= CHANGE_AT_LEAST
        ):
            has.append("induction")
        if (does_ioi and looks("S1+1 to S1") and moves("S1+1, other names")) or (
            row["previous_token"] >= SCORES_AT_LEAST
            and row["silenced: best induction"] <= -CHANGE_AT_LEAST
        ):
            has.append("previous_token")
        found.append(", ".join(has))
    return found


def _registered(model: TransformerBridge, labels: Sequence[str]) -> list[str]:
    known = registry(model)
    return [known.class_of(name).strip("-") for name in labels]
