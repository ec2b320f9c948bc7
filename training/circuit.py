"""The circuit that ships with a bundled model: found on one half, scored on the other.

``python -m training.circuit ioi-mini`` writes `circuit.json` into the model's folder. Heads at
roles are left out as long as every prompt stays near the model, on half of the names and templates;
the file says how near the circuit that is left comes to the model on the other half.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import circuits, heads, stimuli
from ioi_helpers.bundled import BUNDLED, bundled_folder
from ioi_helpers.dataset import ROLES, IOIDataset
from ioi_helpers.graph import Circuit, Node
from ioi_helpers.models import load_model


class Limits(TypedDict):
    """How far from the model a circuit may go on the search's prompts; see `circuits.prune`."""

    most_difference: float
    most_nats: float
    most_gap: float


@dataclass(frozen=True)
class Recipe:
    """A model's limits: for pruning, and for what is left when members that do not matter have
    gone as well (pruning stops at its limits, and leaves no room for that)."""

    pruning: Limits
    after: Limits


RECIPES: dict[str, Recipe] = {
    "ioi-mini": Recipe(
        {"most_difference": 0.8, "most_nats": 0.4, "most_gap": 0.03},
        {"most_difference": 0.9, "most_nats": 0.4, "most_gap": 0.05},
    ),
    # Here the start alone, late heads at the roles only, is 7 % off.
    "ioi-plain": Recipe(
        {"most_difference": 0.8, "most_nats": 0.4, "most_gap": 0.08},
        {"most_difference": 0.9, "most_nats": 0.4, "most_gap": 0.09},
    ),
}


def half(model: TransformerBridge, which: int, n: int) -> IOIDataset:
    """Prompts of one half of the names and templates: 0 for the search, 1 for scoring."""
    return IOIDataset.generate(
        model.tokenizer,
        n,
        names=stimuli.NAMES[which::2],
        templates=stimuli.TEMPLATES[which::2],
        seed=which,
    )


def start(runner: circuits.Circuits, limits: Limits) -> Circuit:
    """What the search leaves out from: heads at the five roles, where that is near the model.

    A layer's heads stay at every position where keeping them at the roles alone breaks a limit
    (another token then carries something, as in `ioi-plain`). Late layers are tried first.
    """
    shape = runner.shape
    found = shape.nodes()
    for layer in reversed(range(shape.n_layers)):
        narrowed = [node for node in found if node.layer != layer]
        narrowed += [node for node in shape.nodes(ROLES) if node.layer == layer]
        how_far = circuits.faithfulness(runner, narrowed)
        if (
            how_far.mean_absolute_difference().mean <= limits["most_difference"]
            and how_far.nats().mean <= limits["most_nats"]
            and abs(1 - how_far.ratio().mean) <= limits["most_gap"]
        ):
            found = narrowed
    return Circuit.of(found)


def find(model: TransformerBridge, progress: bool = False) -> circuits.Minimal:
    """Leave out heads on the search's half: first those that no prompt misses much, then those
    that do not matter to the mean."""
    runner = circuits.Circuits(model, half(model, 0, 120))
    recipe = RECIPES[model.ioi_name]
    first = start(runner, recipe.after)
    near = circuits.prune(runner, first, **recipe.pruning, progress=progress).circuit
    more = circuits.Circuits(model, half(model, 0, 240))
    classed = with_classes(near, heads.registry(model))
    return circuits.make_minimal(more, classed, **recipe.after, progress=progress)


def with_classes(circuit: Circuit, known: heads.Registry) -> Circuit:
    """Each node in one class: its head class where that is on record at its role, else its role."""
    on_record = known.circuit()
    classes: dict[str, set[Node]] = {}
    for node in circuit:
        own = [label for label, members in on_record.classes.items() if node in members]
        where = f"at {node.role}" if node.role else "everywhere"
        classes.setdefault(own[0] if own else f"unclassed {where}", set()).add(node)
    return Circuit(
        circuit.nodes,
        classes={label: frozenset(members) for label, members in sorted(classes.items())},
        name=f"circuit of {known.model}",
    )


def scores(model: TransformerBridge, circuit: Circuit, n: int = 400) -> dict[str, Any]:
    """How near the circuit comes to the model on the half that the search did not see."""
    runner = circuits.Circuits(model, half(model, 1, n))
    found = circuits.faithfulness(runner, circuit)
    ratio = found.ratio()
    return {
        "prompts": n,
        "members": len(circuit),
        "everywhere": sum(node.role is None for node in circuit),
        "(head, role) pairs of the model": len(runner.shape.nodes(ROLES)),
        "F(M)": float(found.model.logit_diff.mean()),
        "F(C) / F(M)": ratio.mean,
        "its error, over pairs": ratio.stderr,
        "mean absolute difference, logits": found.mean_absolute_difference().mean,
        "nats lost": found.nats().mean,
    }


def write(name: str) -> None:
    """Find a bundled model's circuit and write its `circuit.json`."""
    folder = bundled_folder(name)
    model = load_model(name, device="cpu", verbose=False)
    found = find(model, progress=True)
    circuit = found.circuit
    content = {
        "model": name,
        "how": (
            "python -m training.circuit: on half of the names and templates, heads left out as "
            "long as every prompt stays near the model (means over ABC prompts by template and "
            "order), then members that do not matter; members' minimality is on the search half, "
            "scores are of the other half"
        ),
        "limits": asdict(RECIPES[name]),
        "scores": scores(model, circuit),
        "minimality": {
            node: {
                "K": row["K"],
                "share": row["share"],
                "errors": abs(row["change"]) / row["error"],
            }
            for node, row in found.table.iterrows()
        },
        "circuit": json.loads(circuit.to_json()),
    }
    (folder / "circuit.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf8")
    print(json.dumps(content["scores"], indent=1))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Find a bundled model's circuit and write it.")
    parser.add_argument("model", choices=BUNDLED)
    write(parser.parse_args(arguments).model)


if __name__ == "__main__":
    main()
