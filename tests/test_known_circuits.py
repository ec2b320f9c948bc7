"""The circuits that are on record: the paper's, and those that ship with the bundled models."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import circuits, load_model
from ioi_helpers.bundled import BUNDLED, bundled_folder
from ioi_helpers.dataset import ROLES
from ioi_helpers.graph import Shape
from ioi_helpers.heads import HEAD_CLASSES
from training import circuit as search

NAMES = sorted(BUNDLED)


@cache
def model_of(name: str) -> TransformerBridge:
    return load_model(name, device="cpu", verbose=False)


def stored(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundled_folder(name) / "circuit.json").read_text())
    return found


def test_the_papers_circuit() -> None:
    whole, naive = circuits.paper_circuit(), circuits.naive_circuit()
    assert len(whole) == 26
    assert set(whole.classes) == set(HEAD_CLASSES)
    assert {node.role for node in whole} == {"S1+1", "S2", "END"}
    assert len(naive) == 13
    assert naive.nodes < whole.nodes
    for label, members in naive.classes.items():
        assert members <= whole.classes[label]
    subject: Any = SimpleNamespace(ioi_name="gpt2-small")
    assert circuits.circuit_of(subject) == whole


@pytest.mark.parametrize("name", NAMES)
def test_a_bundled_models_circuit_and_its_scores(name: str) -> None:
    model, content = model_of(name), stored(name)
    circuit = circuits.circuit_of(model)
    circuit.require(model)
    assert content["model"] == name
    assert frozenset().union(*circuit.classes.values()) == circuit.nodes
    assert sum(map(len, circuit.classes.values())) == len(circuit)
    again = search.scores(model, circuit)
    assert again == pytest.approx(content["scores"], rel=1e-3, abs=1e-4)
    assert abs(1 - again["F(C) / F(M)"]) < 0.1
    assert again["nats lost"] < 0.4
    assert again["mean absolute difference, logits"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_search_finds_the_stored_circuit_again(name: str) -> None:
    assert search.find(model_of(name)).circuit == circuits.circuit_of(model_of(name))


def test_the_two_halves_share_no_name_and_no_template() -> None:
    one, other = (search.half(model_of("ioi-mini"), which, 60) for which in (0, 1))
    names = [{n for names in data.names for n in (names.IO, names.S1)} for data in (one, other)]
    assert not names[0] & names[1]
    assert not set(one.templates) & set(other.templates)


def test_heads_at_roles_are_no_start_on_ioi_plain() -> None:
    """There another token carries names: with heads kept at the five roles alone, nats are lost."""
    model = model_of("ioi-plain")
    runner = circuits.Circuits(model, search.half(model, 0, 60))
    assert circuits.faithfulness(runner, Shape.of(model).nodes(ROLES)).nats().mean > 1
    assert any(
        node.role is None for node in search.start(runner, search.RECIPES["ioi-plain"].pruning)
    )
    others = circuits.random_circuits(circuits.circuit_of(model), runner.shape, ROLES, 3)
    for other in others:
        assert len(other) == len(circuits.circuit_of(model))


def test_where_none_is_on_record_it_is_said(tmp_path: Path) -> None:
    folder = shutil.copytree(bundled_folder("ioi-mini"), tmp_path / "mine")
    model = load_model(str(folder), device="cpu", verbose=False)
    assert circuits.circuit_of(model) == circuits.circuit_of(model_of("ioi-mini"))
    (folder / "circuit.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no circuit"):
        circuits.circuit_of(model)
    (folder / "circuit.json").unlink()
    with pytest.raises(ValueError, match="No circuit of mine is on record"):
        circuits.circuit_of(model)
