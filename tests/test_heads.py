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
from ioi_helpers.heads import (
    CLASSES,
    HeadRole,
    attention_by_role,
    head_labels,
    heads_with_role,
    parse_head,
    roles,
)
from tests import handbuilt


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TransformerBridge:
    return handbuilt.boot(handbuilt.save(tmp_path_factory.mktemp("handbuilt")))


@pytest.fixture(scope="module")
def data(model: TransformerBridge) -> IOIDataset:
    return IOIDataset.generate(model.tokenizer, 24, prefixes="bundled", seed=1)


def test_labels_follow_a_flattened_tensor(model: TransformerBridge) -> None:
    labels = head_labels(model)
    assert len(labels) == model.cfg.n_layers * model.cfg.n_heads
    for i, label in enumerate(labels):
        assert parse_head(label) == divmod(i, model.cfg.n_heads)


@given(layer=st.integers(0, 99), index=st.integers(0, 99))
def test_parse_head_reads_back(layer: int, index: int) -> None:
    assert parse_head(f"L{layer}H{index}") == (layer, index)
    assert HeadRole(layer, index, "name_mover", "END").head == f"L{layer}H{index}"


@pytest.mark.parametrize("bad", ["9.9", "L9", "l9h9", "L9H9 ", "L-1H2", "", (9, 9, 9)])
def test_parse_head_refuses_other_forms(bad: Any) -> None:
    with pytest.raises(ValueError, match="write 'L9H9'"):
        parse_head(bad)


def test_attention_by_role_is_as_designed(model: TransformerBridge, data: IOIDataset) -> None:
    by_query: dict[str, Tensor] = {}
    keys = ("IO", "S1", "S1+1", "S2")
    for head, (query, key) in handbuilt.ATTENDS.items():
        if query not in by_query:
            by_query[query] = attention_by_role(model, data, query, keys)
        expected = handbuilt.ATTENTION_TO_IO if head in handbuilt.COPY_STRENGTH else 1.0
        attention = by_query[query][(*parse_head(head), keys.index(key))].item()
        assert attention == pytest.approx(expected, abs=1e-3)
    # The heads that copy attend to S1 with all the rest of their attention.
    to_s1 = by_query["END"][3, 0, keys.index("S1")].item()
    assert to_s1 == pytest.approx(1 - handbuilt.ATTENTION_TO_IO, abs=1e-3)


def test_attention_by_role_agrees_with_plain_lines(
    model: TransformerBridge, data: IOIDataset
) -> None:
    keys = ("S1", "END")
    ours = attention_by_role(model, data, "S2", keys, per_prompt=True, batch_size=7)
    assert ours.shape == (model.cfg.n_layers, model.cfg.n_heads, 2, len(data))
    for i in (0, 5, 23):
        _, cache = model.run_with_cache(data.tokens[i])
        for layer in range(model.cfg.n_layers):
            pattern = cache["pattern", layer][0]
            for k, key in enumerate(keys):
                plain = pattern[:, data.positions["S2"][i], data.positions[key][i]]
                torch.testing.assert_close(ours[layer, :, k, i], plain)
    assert not ours[:, :, keys.index("END")].any()  # END comes after S2
    torch.testing.assert_close(attention_by_role(model, data, "S2", keys), ours.mean(dim=-1))


def test_attention_by_role_leaves_no_hooks(model: TransformerBridge, data: IOIDataset) -> None:
    def count() -> int:
        return sum(len(point.fwd_hooks) for point in model.hook_dict.values())

    before = count()
    attention_by_role(model, data)
    assert count() == before


def test_attention_by_role_refuses_bad_input(model: TransformerBridge, data: IOIDataset) -> None:
    with pytest.raises(ValueError, match="'S3' is not a role"):
        attention_by_role(model, data, "S3")
    with pytest.raises(ValueError, match="'S3' is not a role"):
        attention_by_role(model, data, "END", ("IO", "S3"))
    with pytest.raises(ValueError, match="keys must list"):
        attention_by_role(model, data, "END", "IO")
    with pytest.raises(ValueError, match="keys must list"):
        attention_by_role(model, data, "END", ())
    with pytest.raises(ValueError, match="batch_size"):
        attention_by_role(model, data, batch_size=0)


def test_registry_of_gpt2_small_is_the_published_circuit() -> None:
    registry = roles(SimpleNamespace(ioi_name="gpt2-small"))
    assert len(registry) == len({entry.head for entry in registry}) == 26
    assert Counter(entry.role for entry in registry) == {
        "previous_token": 2,
        "duplicate_token": 3,
        "induction": 4,
        "s_inhibition": 4,
        "name_mover": 3,
        "backup_name_mover": 8,
        "negative_name_mover": 2,
    }
    places = [(entry.layer, entry.head_index) for entry in registry]
    assert places == sorted(places)
    assert all(entry.evidence for entry in registry)


def test_heads_with_role() -> None:
    gpt2 = SimpleNamespace(ioi_name="gpt2-small")
    assert heads_with_role(gpt2, "name_mover") == ["L9H6", "L9H9", "L10H0"]
    with pytest.raises(ValueError, match="not a class of heads"):
        heads_with_role(gpt2, "name mover")


@pytest.mark.parametrize("name", BUNDLED)
def test_registry_of_bundled_models(name: str) -> None:
    registry = roles(SimpleNamespace(ioi_name=name))
    # Of ioi-plain's heads none has a class of the IOI paper: it takes a shortcut.
    assert bool(registry) == (name != "ioi-plain")
    for entry in registry:
        assert entry.role in CLASSES
        assert entry.evidence


def test_models_without_a_registry_are_refused(model: TransformerBridge) -> None:
    with pytest.raises(ValueError, match="a model that load_model did not load"):
        roles(model)
    with pytest.raises(ValueError, match="No roles are recorded for distilgpt2"):
        roles(SimpleNamespace(ioi_name="distilgpt2"))
