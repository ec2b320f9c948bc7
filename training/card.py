"""What a bundled model does, measured on prompts it was not trained on.

:func:`measure` returns the numbers of a model's card; :func:`find_roles` gives heads their roles,
each by an intervention whose effect is recorded. ``python -m training.card ioi-mini``
writes both into the model's folder (`README.md`, `registry.json`).

Nearly every intervention here is a *resample*: a head's output (`z`) at one role is replaced by
what it is on the same prompt with something changed, and the logit difference is read again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import attribution, heads, metrics, runs
from ioi_helpers.ablation import ablate, ablation_sweep
from ioi_helpers.bundled import VARIANTS, bundled_folder
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.edits import residual_edit
from ioi_helpers.models import load_model
from ioi_helpers.names import head_name, parse_head
from training.corpus import held_out_pair, held_out_prefixes
from training.train import RECIPES, Recipe

# A head has a role when it looks where the role's heads look and when taking its output away
# there moves the logit difference by this share of it.
ATTENTION_THRESHOLD = 0.3
EFFECT_THRESHOLD = 0.02

Head = tuple[int, int]


def name_of(head: Head) -> str:
    """``"L4H4"`` for layer 4, head 4."""
    return head_name(*head)


def held_out_prompts(model: TransformerBridge, n: int, prefixes: bool, seed: int = 0) -> IOIDataset:
    """At least ``n`` IOI prompts whose name pairs, and prefixes if any, training never saw."""
    data = IOIDataset.generate(
        model.tokenizer, 16 * n, prefixes=held_out_prefixes() if prefixes else None, seed=seed
    )
    keep = torch.tensor([held_out_pair(names.IO, names.S1) for names in data.names])
    rows = keep.nonzero()[:, 0][: n + n % 2]
    return data[rows]


def logits_at_end(model: TransformerBridge, data: IOIDataset) -> Float[Tensor, "batch vocab"]:
    """The prediction of each prompt's next token."""
    with torch.no_grad():
        return data.gather(model(data.tokens, attention_mask=data.attention_mask), "END")


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


def run_on_repeats(
    model: TransformerBridge,
    rows: int = 4,
    length: int = 100,
    seed: int = 0,
) -> tuple[dict[str, Float[Tensor, "layer head"]], float]:
    """Random tokens repeated once: heads' scores, and the loss on the second half.

    As in TransformerLens' Exploratory Analysis demo: no BOS; previous-token, duplicate-token and
    induction score are the mean attention along the diagonal 1, ``length`` and ``length - 1`` back.

    Args:
        model: The model.
        rows, length: How many sequences, and how many tokens before they are repeated.
        seed: Of the tokens.

    Returns:
        The scores by role, and the mean cross-entropy (nats) of the second half's tokens, from its
        second one on: those that can be known.
    """
    generator = torch.Generator().manual_seed(seed)
    half = torch.randint(1, model.cfg.d_vocab, (rows, length), generator=generator)
    scores = heads.repeat_scores(model, half, definition="demo")
    return {role: scores[role] for role in heads.PATTERNS}, scores.loss


def repeat_heads(model: TransformerBridge) -> list[tuple[Head, str, str, dict[str, Any]]]:
    """Previous-token and induction heads, established on random tokens repeated once.

    A score above a half, and an effect when the head is silenced there: of a previous-token head on
    the best induction score, of an induction head on the loss of the repeated tokens.
    """
    scores, loss = run_on_repeats(model)
    best = float(scores["induction"].max())
    found = []
    for role, position in (("previous_token", "S1+1"), ("induction", "S2")):
        for layer, head in (scores[role] > 0.5).nonzero().tolist():
            with ablate(model, name_of((layer, head)), "zero"):
                silent, silent_loss = run_on_repeats(model)
            previous = role == "previous_token"
            effect = float(silent["induction"].max()) - best if previous else silent_loss - loss
            evidence = {
                "attention": round(float(scores[role][layer, head]), 3),
                "on": "random tokens repeated once",
                "intervention": "its output set to zero everywhere",
                "effect": round(effect, 3),
                "unit": "change of the best induction score"
                if previous
                else "nats, change of the loss on the repeated tokens",
            }
            found.append(((layer, head), role, position, evidence))
    return found


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
    logits = logits_at_end(model, data)
    diff = metrics.mean_and_stderr(metrics.logit_diff(logits, data, per_prompt=True), data.pair_ids)
    return Behaviour(
        len(data),
        float(metrics.io_preferred(logits, data)),
        diff.mean,
        diff.stderr,
        float(metrics.io_probability(logits, data)),
    )


def interval(values: Float[Tensor, " batch"]) -> tuple[float, float]:
    """A 95 % interval of the mean over prompts (normal approximation)."""
    estimate = metrics.mean_and_stderr(values)
    return estimate.mean - 1.96 * estimate.stderr, estimate.mean + 1.96 * estimate.stderr


def find_roles(model: TransformerBridge, data: IOIDataset) -> list[dict[str, Any]]:
    """The heads that have a role, each with its attention and the effect of an intervention.

    Source of the roles: Wang et al. 2022, section 3. A head gets a role when its attention is above
    ``ATTENTION_THRESHOLD`` and the effect above ``EFFECT_THRESHOLD`` of the clean logit difference:

    - *name mover*: END to IO; its direct attribution. *Negative name mover*: the same, negative.
      (What the logit difference loses without its output, from the ABC prompts, is recorded too: it
      can be less, where others make up for it.)
    - *S-inhibition*: END to S2; effect of its output at END from the other order.
    - *duplicate token*, *induction*: S2 to S1, S2 to S1+1; effect of its output at S2 from the
      other order.
    - *previous token*: S1+1 to S1; effect of its output at S1+1 from the ABC prompts.
    - *previous token* and *induction* as well: on random tokens repeated once (`repeat_heads`),
      where IOI makes no use of them.
    - *backup name mover*: not a name mover, but its direct attribution rises when the strongest
      name mover is taken out at END, interval above zero.
    """
    clean = runs.logit_diffs(model, data)
    total = float(clean.mean())
    direct = attribution.head_attribution(model, data)
    end = heads.attention_by_role(model, data, query="END", keys=("IO", "S1", "S2"))
    s2 = heads.attention_by_role(model, data, query="S2", keys=("S1", "S1+1"))
    after_s1 = heads.attention_by_role(model, data, query="S1+1", keys=("S1",))
    found: list[dict[str, Any]] = []

    def add(head: Head, role: str, position: str, attention: float, **evidence: Any) -> None:
        found.append(
            {
                "head": name_of(head),
                "head_class": role,
                "position": position,
                "evidence": {"attention": round(attention, 3), **evidence},
            }
        )

    everyone = [(i, j) for i in range(model.cfg.n_layers) for j in range(model.cfg.n_heads)]
    abc = data.abc()
    order, three = "the prompt in the other order", "the prompt with three different names"
    without = resampled(model, data, "END", abc)
    movers = []
    for head in everyone:
        looks, writes = float(end[head][0]), float(direct[head])
        if looks > ATTENTION_THRESHOLD and abs(writes) > EFFECT_THRESHOLD * total:
            movers.append(head)
            add(
                head,
                "name_mover" if writes > 0 else "negative_name_mover",
                "END",
                looks,
                attends="END to IO",
                direct_attribution=round(writes, 3),
                intervention=f"its output at END taken from {three}",
                effect=round(float((without[head] - clean).mean()), 3),
                unit="logits, change of the mean logit difference",
            )

    def by_effect(
        role: str, position: str, attention: Tensor, attends: str, changed: Tensor, what: str
    ) -> None:
        for head in everyone:
            looks = float(attention[head])
            if looks <= ATTENTION_THRESHOLD:
                continue
            effect = float((changed[head] - clean).mean())
            if abs(effect) > EFFECT_THRESHOLD * total:
                add(
                    head,
                    role,
                    position,
                    looks,
                    attends=attends,
                    intervention=f"its output at {position} taken from {what}",
                    effect=round(effect, 3),
                    unit="logits, change of the mean logit difference",
                )

    at_end, at_s2 = (resampled(model, data, role, data.swap_order()) for role in ("END", "S2"))
    at_next = resampled(model, data, "S1+1", abc)
    by_effect("s_inhibition", "END", end[..., 2], "END to S2", at_end, order)
    by_effect("duplicate_token", "S2", s2[..., 0], "S2 to S1", at_s2, order)
    by_effect("induction", "S2", s2[..., 1], "S2 to S1+1", at_s2, order)
    by_effect("previous_token", "S1+1", after_s1[..., 0], "S1+1 to S1", at_next, three)

    known = {(h["head"], h["head_class"]) for h in found}
    for head, role, position, evidence in repeat_heads(model):
        if (name_of(head), role) not in known:
            add(head, role, position, evidence.pop("attention"), **evidence)

    strongest = max(everyone, key=lambda head: float(direct[head]))
    rise = heads.backup_rise(model, data, name_of(strongest))
    for head in everyone:
        if head in movers or head == strongest:
            continue
        low, high = interval(rise[head])
        if low > EFFECT_THRESHOLD * total:
            add(
                head,
                "backup_name_mover",
                "END",
                float(end[head][0]),
                attends="END to IO",
                intervention=f"{name_of(strongest)}'s output at END taken from {three}",
                effect=round(float(rise[head].mean()), 3),
                interval=[round(low, 3), round(high, 3)],
                unit="logits, change of its direct attribution, final LayerNorm frozen",
            )
    return found


def behaviours(model: TransformerBridge, n: int = 400) -> dict[str, dict[str, Any]]:
    """How well a model does the task on prompts that its training held out."""
    return {
        "held out": vars(behaviour(model, held_out_prompts(model, n, prefixes=False))),
        "held out, with prefix": vars(behaviour(model, held_out_prompts(model, n, prefixes=True))),
        "demo": vars(behaviour(model, IOIDataset.demo(model.tokenizer))),
    }


def measure(
    model: TransformerBridge, recipe: Recipe, registry: Sequence[Mapping[str, Any]], n: int = 400
) -> dict[str, Any]:
    """Everything that the cards report and the tests require, as plain numbers."""
    plain = held_out_prompts(model, n, prefixes=False)
    clean = runs.logit_diffs(model, plain)
    total = float(clean.mean())
    n_layers = model.cfg.n_layers
    layers = attribution.layer_attribution(model, plain)
    parts = dict(zip(layers.labels, layers.mean.tolist(), strict=True))
    direct = attribution.head_attribution(model, plain)
    looks = heads.attention_by_role(model, plain, query="END", keys=("IO",))[..., 0]

    def with_role(*roles: str) -> list[Head]:
        return [parse_head(h["head"]) for h in registry if h["head_class"] in roles]

    def swapped(blocks: Sequence[int]) -> dict[str, float]:
        diff = s2_interchange(model, plain, blocks)
        moved = (diff < 0)[clean > 0]  # an answer that was wrong already has not been moved
        return {"logit_diff": float(diff.mean()), "moved": float(moved.float().mean())}

    movers = [head for head in with_role("name_mover") if float(looks[head]) > 0.4]
    early = [
        parse_head(h["head"])
        for h in registry
        if h["head_class"] in ("duplicate_token", "induction") and "on" not in h["evidence"]
    ]
    # Of the S-inhibition heads that move a third of the logit difference, the one that looks most.
    inhibition = [h for h in registry if h["head_class"] == "s_inhibition"]
    inhibition.sort(
        key=lambda h: (-h["evidence"]["effect"] > total / 3, h["evidence"]["attention"]),
        reverse=True,
    )
    early_diff = total
    if early:
        together = {"early": [name_of(head) for head in early]}
        early_diff = float(resampled(model, plain, "S2", plain.abc(), together).mean())
    strongest = divmod(int(direct.argmax()), model.cfg.n_heads)
    rise = heads.backup_rise(model, plain, name_of(strongest))
    rise[strongest] = -torch.inf
    backup = divmod(int(rise.mean(-1).argmax()), model.cfg.n_heads)
    low, high = interval(rise[backup])
    identity: dict[str, Any] = {}
    if not recipe.interchange:
        # Which head tells END the names, or the name to avoid: taken from other names' prompts.
        some = plain[: n // 4]
        s2_looks = heads.attention_by_role(model, some, query="END", keys=("S2",))[..., 0]
        diffs = resampled(model, some, "END", some.random_names())
        lost = 1 - diffs.mean(dim=-1) / clean[: len(some)].mean()
        most = divmod(int(lost.argmax()), model.cfg.n_heads)
        identity = {
            "head that END needs most": {
                "head": name_of(most),
                "share lost with other names' output": float(lost[most]),
                "attention to S2": float(s2_looks[most]),
            }
        }
    return {
        **identity,
        "behaviour": behaviours(model, n),
        "direct attribution": {
            "attention layers": sum(v for k, v in parts.items() if k.endswith("attn_out")),
            "MLPs": sum(v for k, v in parts.items() if k.endswith("mlp_out")),
            "name movers": float(sum(direct[head] for head in movers)),
            "most negative head": heads.head_labels(model)[int(direct.argmin())],
            "of the most negative head": float(direct.min()),
            "total": total,
        },
        "name movers": [name_of(head) for head in movers],
        "S2 interchange": {
            **{f"before block {layer}": swapped([layer]) for layer in range(n_layers)},
            "all blocks": swapped(range(recipe.bit_block + 1, n_layers)),
        },
        "S-inhibition": {
            "head": inhibition[0]["head"] if inhibition else None,
            "attention": inhibition[0]["evidence"]["attention"] if inhibition else 0.0,
            "share": -inhibition[0]["evidence"]["effect"] / total if inhibition else 0.0,
        },
        "early heads at S2": {
            "heads": [name_of(head) for head in early],
            "logit_diff": early_diff,
            "share": (total - early_diff) / total,
        },
        "repeated tokens": {
            role: {
                "head": heads.head_labels(model)[int(scores.argmax())],
                "score": float(scores.max()),
            }
            for role, scores in run_on_repeats(model)[0].items()
        },
        "backup": {
            "ablated": name_of(strongest),
            "head": name_of(backup),
            "rise": float(rise[backup].mean()),
            "low": low,
            "high": high,
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
    if name in VARIANTS:
        registry: list[dict[str, Any]] = []
        numbers: dict[str, Any] = {"behaviour": behaviours(model)}
        found = task_requirements(numbers, VARIANTS_SHARE)
    else:
        registry = find_roles(model, held_out_prompts(model, 400, prefixes=False))
        numbers = measure(model, RECIPES[name], registry)
        found = requirements(numbers, circuit=RECIPES[name].interchange)
        written["registry.json"] = {"model": name, "heads": registry}
    weights = (folder / "model.safetensors").read_bytes()
    numbers["sha256"] = hashlib.sha256(weights).hexdigest()
    written["measured.json"] = numbers
    for file, content in written.items():
        (folder / file).write_text(json.dumps(content, indent=1) + "\n", encoding="utf8")
    card = folder / "README.md"
    card.write_text(with_table(card.read_text(encoding="utf8"), found), encoding="utf8")
    print(table(found))
    for head in registry:
        print(head["head"], head["head_class"], head["position"], head["evidence"])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure a bundled model and write its card.")
    parser.add_argument("model", choices=sorted(RECIPES))
    write(parser.parse_args(arguments).model)


if __name__ == "__main__":
    main()
