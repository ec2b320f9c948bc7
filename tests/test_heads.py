"""Names of heads, attention by role, and the registries of roles."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.bundled import BUNDLED
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.graph import parse_node
from ioi_helpers.heads import (
    HEAD_CLASSES,
    KnownHead,
    Registry,
    attention_by_role,
    circuit,
    head_labels,
    heads_of_class,
    parse_head,
    registry,
)
from ioi_helpers.models import handbuilt


@pytest.fixture(scope="module")
def data(built: TransformerBridge) -> IOIDataset:
    return IOIDataset.generate(built.tokenizer, 24, prefixes="bundled", seed=1)


def test_labels_follow_a_flattened_tensor(built: TransformerBridge) -> None:
    labels = head_labels(built)
    assert len(labels) == built.cfg.n_layers * built.cfg.n_heads
    for i, label in enumerate(labels):
        assert parse_head(label) == divmod(i, built.cfg.n_heads)


@given(layer=st.integers(0, 99), index=st.integers(0, 99))
def test_parse_head_reads_back(layer: int, index: int) -> None:
    assert parse_head(f"L{layer}H{index}") == (layer, index)
    assert _place(KnownHead(f"L{layer}H{index}", "name_mover", "END")) == (layer, index)


@pytest.mark.parametrize("bad", ["9.9", "L9", "l9h9", "L9H9 ", "L-1H2", "", (9, 9, 9)])
def test_parse_head_refuses_other_forms(bad: Any) -> None:
    with pytest.raises(ValueError, match="write 'L9H9'"):
        parse_head(bad)


def test_attention_by_role_is_as_designed(built: TransformerBridge, data: IOIDataset) -> None:
    by_query: dict[str, Tensor] = {}
    keys = ("IO", "S1", "S1+1", "S2")
    for head, (query, key) in handbuilt.ATTENDS.items():
        if query not in by_query:
            by_query[query] = attention_by_role(built, data, query, keys)
        expected = handbuilt.ATTENTION_TO_IO if head in handbuilt.COPY_STRENGTH else 1.0
        attention = by_query[query][(*parse_head(head), keys.index(key))].item()
        assert attention == pytest.approx(expected, abs=1e-3)
    # The heads that copy attend to S1 with all the rest of their attention.
    to_s1 = by_query["END"][3, 0, keys.index("S1")].item()
    assert to_s1 == pytest.approx(1 - handbuilt.ATTENTION_TO_IO, abs=1e-3)


def test_attention_by_role_agrees_with_plain_lines(
    built: TransformerBridge, data: IOIDataset
) -> None:
    keys = ("S1", "END")
    ours = attention_by_role(built, data, "S2", keys, per_prompt=True, memory=1)
    assert ours.shape == (built.cfg.n_layers, built.cfg.n_heads, 2, len(data))
    for i in (0, 5, 23):
        _, cache = built.run_with_cache(data.tokens[i])
        for layer in range(built.cfg.n_layers):
            pattern = cache["pattern", layer][0]
            for k, key in enumerate(keys):
                plain = pattern[:, data.positions["S2"][i], data.positions[key][i]]
                torch.testing.assert_close(ours[layer, :, k, i], plain)
    assert not ours[:, :, keys.index("END")].any()  # END comes after S2
    torch.testing.assert_close(attention_by_role(built, data, "S2", keys), ours.mean(dim=-1))


def test_attention_by_role_leaves_no_hooks(built: TransformerBridge, data: IOIDataset) -> None:
    def count() -> int:
        return sum(len(point.fwd_hooks) for point in built.hook_dict.values())

    before = count()
    attention_by_role(built, data)
    assert count() == before


def test_attention_by_role_refuses_bad_input(built: TransformerBridge, data: IOIDataset) -> None:
    with pytest.raises(ValueError, match="'S3' is not a role"):
        attention_by_role(built, data, "S3")
    with pytest.raises(ValueError, match="'S3' is not a role"):
        attention_by_role(built, data, "END", ("IO", "S3"))
    with pytest.raises(ValueError, match="keys must list"):
        attention_by_role(built, data, "END", "IO")
    with pytest.raises(ValueError, match="keys must list"):
        attention_by_role(built, data, "END", ())
    with pytest.raises(ValueError, match="memory must be a positive"):
        attention_by_role(built, data, memory=0)


def test_registry_of_gpt2_small_is_the_published_circuit() -> None:
    known = registry(SimpleNamespace(ioi_name="gpt2-small"))
    assert len(known) == len({entry.head for entry in known}) == 26
    assert Counter(entry.head_class for entry in known) == {
        "previous_token": 2,
        "duplicate_token": 3,
        "induction": 4,
        "s_inhibition": 4,
        "name_mover": 3,
        "backup_name_mover": 8,
        "negative_name_mover": 2,
    }
    places = [_place(entry) for entry in known]
    assert places == sorted(places)
    assert all(entry.evidence for entry in known)
    assert str(known) == "26 heads of gpt2-small have a head class on record."


def _place(entry: KnownHead) -> tuple[int, int]:
    return entry.layer, entry.head_index


def test_heads_of_class() -> None:
    gpt2 = SimpleNamespace(ioi_name="gpt2-small")
    assert heads_of_class(gpt2, "name_mover") == ["L9H6", "L9H9", "L10H0"]
    with pytest.raises(ValueError, match="not a head class"):
        heads_of_class(gpt2, "name mover")


def test_a_head_is_looked_up_by_name() -> None:
    known = registry(SimpleNamespace(ioi_name="gpt2-small"))
    assert known.class_of("L9H9") == known.class_of((9, 9)) == "name_mover"
    assert known.class_of("L0H0") == "-"
    both = Registry("x", (KnownHead("L1H1", "induction", "S2"), KnownHead("L1H1", "a", "END")))
    assert both.class_of("L1H1") == "induction, a"


def test_the_published_circuit_as_a_circuit() -> None:
    known = registry(SimpleNamespace(ioi_name="gpt2-small"))
    found = circuit(SimpleNamespace(ioi_name="gpt2-small"))
    assert len(found) == 26 and found.name == "gpt2-small" and found.edges is None
    assert set(found.classes) == set(HEAD_CLASSES) == set(known.head_classes)
    assert parse_node(("L9H9", "END")) in found.classes["name_mover"]
    assert "path patching to logits" in found.notes[parse_node(("L9H9", "END"))]


@pytest.mark.parametrize("name", BUNDLED)
def test_registry_of_bundled_models(name: str) -> None:
    known = registry(SimpleNamespace(ioi_name=name))
    # Of ioi-plain's heads none has a head class of the IOI paper: it takes a shortcut.
    assert known.recorded and bool(known) == (name != "ioi-plain")
    assert str(known).startswith("No head of ioi-plain has" if not known else str(len(known)))
    for entry in known:
        assert entry.head_class in HEAD_CLASSES
        assert entry.evidence


def test_nothing_on_record_is_empty_and_says_so(built: TransformerBridge) -> None:
    for stranger, name in (
        (built, "a model that load_model did not load"),
        (SimpleNamespace(ioi_name="distilgpt2"), "distilgpt2"),
    ):
        known = registry(stranger)
        assert not known.recorded and not known and not circuit(stranger)
        assert str(known).startswith(f"Nothing is on record about the heads of {name}, only")
        assert known.class_of("L0H0") == "-" and known.of_class("induction") == []
