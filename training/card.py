"""What a bundled model does, measured on prompts it was not trained on.

:func:`measure` returns the numbers of a model's card; the heads' head classes follow from a
:func:`~ioi_helpers.heads.head_table` of the same prompts, by the rules that it prints.
``python -m training.card ioi-mini`` writes both into the model's folder (`README.md`,
`registry.json`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import attribution, heads, metrics, runs
from ioi_helpers.ablation import ablation_sweep
from ioi_helpers.bundled import VARIANTS, bundled_folder
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.edits import residual_edit
from ioi_helpers.models import load_model
from training.corpus import held_out_pair, held_out_prefixes
from training.train import RECIPES, Recipe


def held_out_prompts(model: TransformerBridge, n: int, prefixes: bool, seed: int = 0) -> IOIDataset:
    """At least ``n`` IOI prompts whose name pairs, and prefixes if any, training never saw."""
    data = IOIDataset.generate(
        model.tokenizer, 16 * n, prefixes=held_out_prefixes() if prefixes else None, seed=seed
    )
    keep = torch.tensor([held_out_pair(names.IO, names.S1) for names in data.names])
    rows = keep.nonzero()[:, 0][: n + n % 2]
    return data[rows]


def card_table(model: TransformerBridge, n: int = 400) -> pd.DataFrame:
    """The head table of held-out prompts, with every intervention made on all of them."""
    data = held_out_prompts(model, n, prefixes=False)
    return heads.head_table(model, data, sweep_prompts=len(data), progress=False)


def resampled(
    model: TransformerBridge,
    data: IOIDataset,
    role: str,
    source: IOIDataset,
    what: Any = "heads",
) -> Float[Tensor, "*what batch"]:
    """Logit differences when heads' output at a role is that of a counterfactual's prompts.

    Args:
        what: As for :func:`~ioi_helpers.ablation.ablation_sweep`: each head on its own, or sets.
    """
    swept = ablation_sweep(
        model, data, what, how="resample", reference=source, role=role, progress=False
    )
    return swept.values


def s2_interchange(
    model: TransformerBridge, data: IOIDataset, layers: Sequence[int]
) -> Float[Tensor, " batch"]:
    """Logit difference with S2's residual stream (before the blocks given) of the other order."""
    points = [f"L{layer}.pre" for layer in layers]
    other = runs.activations_at(model, data.swap_order(), "S2", points)
    edits = [residual_edit(data, "S2", point, values) for point, values in other.items()]
    return runs.logit_diffs(model, data, edits)


@dataclass(frozen=True)
class Behaviour:
    """How well a model does IOI on one set of prompts."""

    prompts: int
    io_preferred: float
    logit_diff: float
    stderr: float
    io_probability: float


def behaviour(model: TransformerBridge, data: IOIDataset) -> Behaviour:
    """Accuracy, logit difference and probability of IO on a dataset."""
    logits = runs.logits_at(model, data)
    diff = metrics.mean_and_stderr(metrics.logit_diff(logits, data, per_prompt=True), data.pair_ids)
    return Behaviour(
        len(data),
        float(metrics.io_preferred(logits, data)),
        diff.mean,
        diff.stderr,
        float(metrics.io_probability(logits, data)),
    )


def behaviours(model: TransformerBridge, n: int = 400) -> dict[str, dict[str, Any]]:
    """How well a model does the task on prompts that its training held out."""
    return {
        "held out": vars(behaviour(model, held_out_prompts(model, n, prefixes=False))),
        "held out, with prefix": vars(behaviour(model, held_out_prompts(model, n, prefixes=True))),
        "demo": vars(behaviour(model, IOIDataset.demo(model.tokenizer))),
    }


def measure(
    model: TransformerBridge, recipe: Recipe, table: pd.DataFrame, known: heads.Registry
) -> dict[str, Any]:
    """Everything that the cards report and the tests require, as plain numbers.

    Args:
        model: The model.
        recipe: How it was trained.
        table: :func:`card_table`.
        known: The heads whose part is measured: what the table supports, or what is on record.
    """
    n = table.attrs["prompts"]
    plain = held_out_prompts(model, n, prefixes=False)
    clean = runs.logit_diffs(model, plain)
    total = float(clean.mean())
    n_layers = model.cfg.n_layers
    layers = attribution.layer_attribution(model, plain)
    parts = dict(zip(layers.labels, layers.values.tolist(), strict=True))
    direct = table["direct"]

    def swapped(blocks: Sequence[int]) -> dict[str, float]:
        diff = s2_interchange(model, plain, blocks)
        moved = (diff < 0)[clean > 0]  # an answer that was wrong already has not been moved
        return {"logit_diff": float(diff.mean()), "moved": float(moved.float().mean())}

    movers = [head for head in known.of_class("name_mover") if table.loc[head, "END to IO"] > 0.4]
    early = [
        entry.head
        for entry in known
        if entry.head_class in ("duplicate_token", "induction") and "on" not in entry.evidence
    ]
    # Of the S-inhibition heads that move a third of the logit difference, the one that looks most.
    inhibition = [entry for entry in known if entry.head_class == "s_inhibition"]
    inhibition.sort(
        key=lambda e: (-e.evidence["effect"] > total / 3, e.evidence["attention"]), reverse=True
    )
    early_diff = total
    if early:
        early_diff = float(resampled(model, plain, "S2", plain.abc(), {"early": early}).mean())
    found: dict[str, Any] = {}
    if not recipe.interchange:
        # Which head tells END the names, or the name to avoid: taken from other names' prompts.
        some = plain[: n // 4]
        diffs = resampled(model, some, "END", some.random_names())
        lost = (1 - diffs.mean(dim=-1) / clean[: len(some)].mean()).flatten()
        most = heads.head_labels(model)[int(lost.argmax())]
        found["head that END needs most"] = {
            "head": most,
            "share lost with other names' output": float(lost.max()),
            "attention to S2": float(table.loc[most, "END to S2"]),
        }
    if recipe.interchange:
        backup = table["backup rise"].idxmax()
        rise, error = table.loc[backup, ["backup rise", "backup rise se"]].astype(float)
        found["backup"] = {
            "ablated": table.attrs["strongest"],
            "head": backup,
            "rise": rise,
            "low": rise - 1.96 * error,
            "high": rise + 1.96 * error,
        }
    return {
        **found,
        "behaviour": behaviours(model, n),
        "direct attribution": {
            "attention layers": sum(v for k, v in parts.items() if k.endswith("attn_out")),
            "MLPs": sum(v for k, v in parts.items() if k.endswith("mlp_out")),
            "name movers": float(direct[movers].sum()),
            "most negative head": direct.idxmin(),
            "of the most negative head": float(direct.min()),
            "total": total,
        },
        "name movers": movers,
        "S2 interchange": {
            **{f"before block {layer}": swapped([layer]) for layer in range(n_layers)},
            "all blocks": swapped(range(recipe.bit_block + 1, n_layers)),
        },
        "S-inhibition": {
            "head": inhibition[0].head if inhibition else None,
            "attention": inhibition[0].evidence["attention"] if inhibition else 0.0,
            "share": -inhibition[0].evidence["effect"] / total if inhibition else 0.0,
        },
        "early heads at S2": {
            "heads": early,
            "logit_diff": early_diff,
            "share": (total - early_diff) / total,
        },
        "repeated tokens": {
            score: {"head": table[score].idxmax(), "score": float(table[score].max())}
            for score in heads.PATTERNS
        },
    }


@dataclass(frozen=True)
class Requirement:
    """One thing that a bundled model must do, with what was measured."""

    what: str
    measured: float
    at_least: float
    note: str = ""

    @property
    def met(self) -> bool:
        return self.measured >= self.at_least


VARIANTS_SHARE = 0.95
"""A variant is compared, not taught with: it must do the task, though not as well."""


def task_requirements(numbers: Mapping[str, Any], at_least: float = 0.99) -> list[Requirement]:
    """That a model does IOI, by whatever means, on such a share of the prompts."""
    return [
        Requirement(
            f"IO above S, {where}",
            b["io_preferred"],
            1.0 if where == "demo" else at_least,
            f"{b['prompts']} prompts, logit difference {b['logit_diff']:.2f}, "
            f"probability of IO {b['io_probability']:.2f}",
        )
        for where, b in numbers["behaviour"].items()
    ]


def requirements(numbers: Mapping[str, Any], circuit: bool) -> list[Requirement]:
    """What a model must do; ``circuit`` asks for GPT-2's manner as well (`ioi-mini`)."""
    found = task_requirements(numbers)
    direct, swap = numbers["direct attribution"], numbers["S2 interchange"]
    if not circuit:
        needed = numbers["head that END needs most"]
        return [
            *found,
            Requirement(
                "MLPs' share of the logit difference", direct["MLPs"] / direct["total"], 0.0
            ),
            Requirement(
                "S2 interchanged, all blocks: answers moved", swap["all blocks"]["moved"], 0.0
            ),
            Requirement(
                "share lost when one head's output at END is other names'",
                needed["share lost with other names' output"],
                0.0,
                f"{needed['head']}, attention to S2 {needed['attention to S2']:.2f}",
            ),
        ]
    single = max((v["moved"], k) for k, v in swap.items() if k != "all blocks")
    inhibition, early = numbers["S-inhibition"], numbers["early heads at S2"]
    backup, movers = numbers["backup"], numbers["name movers"]
    return [
        *found,
        Requirement(
            "S2 interchanged, all blocks: answers moved", swap["all blocks"]["moved"], 0.97
        ),
        Requirement("S2 interchanged, one block: answers moved", single[0], 0.0, single[1]),
        Requirement("name movers with attention above 0.4", len(movers), 2, ", ".join(movers)),
        Requirement(
            "name movers' share of the logit difference",
            direct["name movers"] / direct["total"],
            0.5,
            f"MLPs {direct['MLPs']:.2f} of {direct['total']:.2f}",
        ),
        Requirement(
            "S-inhibition: attention to S2", inhibition["attention"], 0.4, inhibition["head"] or ""
        ),
        Requirement("S-inhibition: share when patched", inhibition["share"], 1 / 3),
        *(
            Requirement(f"{role.replace('_', '-')} score", s["score"], 0.5, s["head"])
            for role, s in numbers["repeated tokens"].items()
        ),
        Requirement(
            "duplicate-token and induction heads ablated at S2: share",
            early["share"],
            0.1,
            ", ".join(early["heads"]),
        ),
        Requirement(
            "backup: rise in direct attribution, lower end",
            backup["low"],
            1e-6,
            f"{backup['head']} when {backup['ablated']} is ablated",
        ),
    ]


def table(found: Sequence[Requirement]) -> str:
    """The requirements as a Markdown table."""
    lines = ["| measured on held-out prompts | value | at least | |", "|---|---|---|---|"]
    for r in found:
        asked = (
            f"{r.at_least:.2f}" if r.at_least > 1e-3 else "above 0" if r.at_least else "reported"
        )
        lines.append(f"| {r.what} | {r.measured:.3f} | {asked} | {r.note} |")
    return "\n".join(lines)


MARKERS = ("<!-- measured: written by training.card -->", "<!-- end of measured -->")


def with_table(card: str, found: Sequence[Requirement]) -> str:
    """A model card with what stands between the markers replaced by the table.

    Raises:
        ValueError: The card lacks the markers.
    """
    if any(marker not in card for marker in MARKERS):
        raise ValueError(f"The card lacks the markers {MARKERS[0]!r} and {MARKERS[1]!r}.")
    before, rest = card.split(MARKERS[0])
    after = rest.split(MARKERS[1])[1]
    return f"{before}{MARKERS[0]}\n{table(found)}\n{MARKERS[1]}{after}"


def write(name: str) -> None:
    """Measure a bundled model; write `registry.json`, `measured.json` and the card's table.

    Of a variant only the behaviour is measured: what else there is to it, a notebook asks.
    """
    folder = bundled_folder(name)
    # As a folder: load_model refuses a bundled model that has not been measured yet.
    model = load_model(str(folder), device="cpu", verbose=False)
    written: dict[str, dict[str, Any]] = {}
    known = heads.Registry(name, ())
    if name in VARIANTS:
        numbers: dict[str, Any] = {"behaviour": behaviours(model)}
        found = task_requirements(numbers, VARIANTS_SHARE)
    else:
        measured = card_table(model)
        known = heads.registry_of(measured)
        numbers = measure(model, RECIPES[name], measured, known)
        found = requirements(numbers, circuit=RECIPES[name].interchange)
        written["registry.json"] = {"model": name, "heads": [vars(entry) for entry in known]}
    weights = (folder / "model.safetensors").read_bytes()
    numbers["sha256"] = hashlib.sha256(weights).hexdigest()
    written["measured.json"] = numbers
    for file, content in written.items():
        (folder / file).write_text(json.dumps(content, indent=1) + "\n", encoding="utf8")
    card = folder / "README.md"
    card.write_text(with_table(card.read_text(encoding="utf8"), found), encoding="utf8")
    print(table(found))
    for entry in known:
        print(entry.head, entry.head_class, entry.position, entry.evidence)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure a bundled model and write its card.")
    parser.add_argument("model", choices=sorted(RECIPES))
    write(parser.parse_args(arguments).model)


if __name__ == "__main__":
    main()
