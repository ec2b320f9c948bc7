"""The circuits that are on record: the IOI paper's for GPT-2 small, and the bundled models' own."""

from __future__ import annotations

import json

from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import published
from ioi_helpers.bundled import BUNDLED, bundled_folder
from ioi_helpers.circuits.scores import class_witnesses
from ioi_helpers.graph import Circuit, Node, parse_node
from ioi_helpers.models import is_gpt2_small


def paper_circuit() -> Circuit:
    """The IOI paper's circuit of GPT-2 small: 26 heads, each at the token where it acts.

    With its seven head classes (Wang et al. 2022, figure 2). It has no head at IO: what name movers
    read there is written by the embedding and by MLPs, which are no members.
    """
    return Circuit.of_registry(published.head_classes(), "the IOI paper's circuit")


def naive_circuit() -> Circuit:
    """The IOI paper's naive circuit: 13 of the heads, no backups and no negative name movers.

    About as faithful as the whole, and far from complete (section 4.3).
    """
    facts = published.record("ioi_paper.json")
    at = facts["circuit_26"]["active_position"]
    classes = {
        label: frozenset(parse_node((tuple(head), at[label])) for head in members)
        for label, members in facts["naive_circuit"]["heads"].items()
    }
    return Circuit(
        frozenset().union(*classes.values()), classes=classes, name="the IOI paper's naive circuit"
    )


MOVERS_IN_ORDER = (
    "L9H9 L10H0 L9H6 L10H10 L10H6 L10H2 L10H1 L11H2 L9H7 L9H0 L11H9"
).split()  # as the paper's code lists name movers and backups; its figure 20 has another order


def paper_witnesses() -> dict[Node, Circuit]:
    """The IOI paper's sets K for the minimality of its 26 heads (appendix K).

    ::

        minimality(circuits, paper_circuit(), paper_witnesses())

    For most heads K is the rest of their class. Name movers and their backups stand in for each
    other, so each has those before it in a list as its K; for the two weakest of them, L9H0 and
    L11H9, it is all others and the negative name movers. For L5H8 and L5H9 it is the negative name
    movers. (It finds changes of 0.04 to 1.30 logits: ``published.load("paper.minimality")``.)
    """
    circuit = paper_circuit()
    witnesses = class_witnesses(circuit)
    negative = circuit.classes["negative_name_mover"]
    movers = [parse_node((head, "END")) for head in MOVERS_IN_ORDER]
    for i, mover in enumerate(movers):
        witnesses[mover] = Circuit(frozenset(movers[:i]))
    for mover in movers[-2:]:
        witnesses[mover] = Circuit((frozenset(movers) | negative) - {mover})
    for head in ("L5H8", "L5H9"):
        witnesses[parse_node((head, "S2"))] = Circuit(negative)
    return witnesses


def circuit_of(model: TransformerBridge) -> Circuit:
    """The circuit of the model at hand that is on record: (head, role) pairs, with classes.

    For GPT-2 small :func:`paper_circuit`; for a bundled model, and for one loaded from a folder,
    what its ``circuit.json`` says. A bundled model's was found by leaving out heads, on one half of
    the names and templates, and scored on the other; the file says how, and how well it does. It is
    not what :func:`ioi_helpers.heads.circuit` gives: that lists the heads with a head class, and
    need not hold all that the model's answer needs.

    Raises:
        ValueError: None is on record, or the file is no circuit.
    """
    if is_gpt2_small(model):
        return paper_circuit()
    name = getattr(model, "ioi_name", "a model that load_model did not load")
    folder = bundled_folder(name) if name in BUNDLED else getattr(model, "ioi_folder", None)
    file = folder / "circuit.json" if folder else None
    if file is None or not file.is_file():
        raise ValueError(
            f"No circuit of {name} is on record; find one with circuits.prune or, as a first "
            "guess, circuits.circuit_by_gradient, or make one with graph.Circuit.of."
        )
    try:
        return Circuit.from_json(json.dumps(json.loads(file.read_text(encoding="utf8"))["circuit"]))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{str(file)!r} holds no circuit ({error!r}); mend it or take it away."
        ) from error
