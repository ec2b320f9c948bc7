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
from typing import Any

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import circuits, heads, stimuli
from ioi_helpers.bundled import BUNDLED, bundled_folder
from ioi_helpers.circuits import Limits
from ioi_helpers.dataset import ROLES, IOIDataset
from ioi_helpers.graph import Circuit, Node
from ioi_helpers.models import load_model


@dataclass(frozen=True)
class Recipe:
    """How far from the model a circuit may go on the search's prompts, step by step.

    Attributes:
        pruning: While heads are left out.
        after: For what is left when members that do not matter have gone as well (pruning stops at
            its limits, and leaves no room for that).
        improved: Then heads are taken in and left out as long as the circuit nears the model, and
            members must matter twice as much and as clearly as where nobody searched; within
            these limits. None: neither is done.
    """

    pruning: Limits
    after: Limits
    improved: Limits | None = None


RECIPES: dict[str, Recipe] = {
    "ioi-mini": Recipe(
        Limits(0.8, 0.4, 0.03), Limits(0.9, 0.4, 0.05), improved=Limits(0.72, 0.2, 0.02)
    ),
    # Here the start alone, late heads at the roles only, is 7 % off.
    "ioi-plain": Recipe(Limits(0.8, 0.4, 0.08), Limits(0.9, 0.4, 0.09)),
}

LEAST, ERRORS = 0.01, 2.0
"""When a member matters: a change of so much of F(M), beyond so many errors over pairs."""


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
        if limits.allow(circuits.faithfulness(runner, narrowed)):
            found = narrowed
    return Circuit.of(found)


def find(model: TransformerBridge, progress: bool = False) -> circuits.Minimal:
    """Search on the search's half: leave out heads that no prompt misses much, then those that do
    not matter to the mean; then, by the recipe, improve what is left and ask more of it."""
    runner = circuits.Circuits(model, half(model, 0, 120))
    recipe = RECIPES[model.ioi_name]
    first = start(runner, recipe.after)
    near = circuits.prune(runner, first, **asdict(recipe.pruning), progress=progress).circuit
    more, known = circuits.Circuits(model, half(model, 0, 240)), heads.registry(model)
    found = circuits.make_minimal(
        more,
        with_classes(near, known),
        **asdict(recipe.after),
        least=LEAST,
        errors=ERRORS,
        progress=progress,
    )
    if recipe.improved is None:
        return found
    nodes = runner.shape.nodes(ROLES)
    better = circuits.improve(
        more, found.circuit, nodes, at_most=len(nodes) // 4, progress=progress
    )
    return circuits.make_minimal(
        more,
        with_classes(better, known),
        **asdict(recipe.improved),
        least=2 * LEAST,
        errors=2 * ERRORS,
        progress=progress,
    )


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


def there(model: TransformerBridge, circuit: Circuit, table: pd.DataFrame) -> pd.DataFrame:
    """How much each member matters on the other half, with the K that the search has chosen."""
    runner = circuits.Circuits(model, half(model, 1, 240))
    sets = {node: circuits.witness(circuit, node, table.loc[str(node), "K"]) for node in circuit}
    return circuits.minimality(runner, circuit, sets, progress=False)


def write(name: str) -> None:
    """Find a bundled model's circuit and write its `circuit.json`."""
    folder = bundled_folder(name)
    model = load_model(name, device="cpu", verbose=False)
    found = find(model, progress=True)
    circuit = found.circuit
    others = there(model, circuit, found.table)
    content = {
        "model": name,
        "how": (
            "python -m training.circuit: on half of the names and templates, heads left out as "
            "long as every prompt stays near the model (means over ABC prompts by template and "
            "order), then members that do not matter"
            + (
                "; then heads taken in and left out while the circuit nears the model, and members "
                "left out that do not matter twice as much as is asked"
                if RECIPES[name].improved
                else ""
            )
            + "; scores are of the other half, members' minimality is of both, with K chosen on "
            "the search half"
        ),
        "limits": asdict(RECIPES[name]),
        "scores": scores(model, circuit),
        "minimality": {
            node: {
                "K": row["K"],
                "search half": {
                    "share": row["share"],
                    "errors": abs(row["change"]) / row["error"],
                },
                "other half": {
                    "share": others.loc[node, "share"],
                    "errors": abs(others.loc[node, "change"]) / others.loc[node, "error"],
                },
            }
            for node, row in found.table.iterrows()
        },
        "circuit": json.loads(circuit.to_json()),
    }
    (folder / "circuit.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf8")
    print(json.dumps(content["scores"], indent=1))
    idle = others[(others["share"] < LEAST) | (others["change"].abs() <= ERRORS * others["error"])]
    print(f"on the other half these do not matter: {', '.join(map(str, idle.index)) or 'none'}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Find a bundled model's circuit and write it.")
    parser.add_argument("model", choices=BUNDLED)
    write(parser.parse_args(arguments).model)


if __name__ == "__main__":
    main()
