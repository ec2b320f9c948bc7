"""The table of heads: head classes by the evidence are those that were built, or trained."""

from __future__ import annotations

import io
import re
from functools import cache

import pandas as pd
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import attribution, heads, load_model, metrics
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.heads import rules
from ioi_helpers.heads import table as table_module
from ioi_helpers.models import handbuilt
from ioi_helpers.patching import patch_sweep
from tests.test_head_scores import random_model
from training import card


@cache
def mini() -> TransformerBridge:
    return load_model("ioi-mini", device="cpu", verbose=False)


@cache
def mini_table(seed: int = 0) -> tuple[IOIDataset, pd.DataFrame]:
    data = IOIDataset.generate(mini().tokenizer, 100, seed=seed)
    return data, heads.head_table(mini(), data, progress=False)


@pytest.mark.parametrize("seed", [0, 1])
def test_head_classes_from_evidence_agree_with_the_registry(seed: int) -> None:
    _, table = mini_table(seed)
    assert (table["head class"] == table["registry"]).all()
    assert (table["head class"] != "-").sum() == len(heads.registry(mini()))


def test_the_registry_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    _, with_registry = mini_table(0)

    def none_recorded(model: TransformerBridge) -> heads.Registry:
        return heads.Registry("a stranger", (), recorded=False)

    monkeypatch.setattr(table_module, "registry", none_recorded)
    without = heads.head_table(mini(), mini_table(0)[0], progress=False)
    assert without["head class"].equals(with_registry["head class"])
    assert set(without["registry"]) == {"-"}


def test_a_shortcut_model_gets_no_head_classes() -> None:
    model = load_model("ioi-plain", device="cpu", verbose=False)
    data = IOIDataset.generate(model.tokenizer, 100, seed=1)
    assert set(heads.head_table(model, data, progress=False)["head class"]) == {"-"}


def test_permuted_weights_get_no_head_classes() -> None:
    """The same numbers in every tensor, in random places."""
    model = load_model("ioi-mini", device="cpu", verbose=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            order = torch.randperm(parameter.numel(), generator=generator)
            parameter.copy_(parameter.flatten()[order].reshape(parameter.shape))
    data = IOIDataset.generate(model.tokenizer, 60, seed=1)
    table = heads.head_table(model, data, progress=False)
    assert not torch.equal(model.W_E, mini().W_E)
    assert abs(table.attrs["logit difference"][0]) < 1
    assert set(table["head class"]) == {"-"}


def test_hand_built_heads_get_the_head_classes_they_were_built_for(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    model = handbuilt.boot(handbuilt.save(tmp_path_factory.mktemp("handbuilt")))
    data = IOIDataset.generate(model.tokenizer, 80, seed=1, names=handbuilt.NAMES)
    table = heads.head_table(model, data, progress=False)
    built = dict(handbuilt.HEAD_CLASSES)
    # Its backup wakes when no name is written at END. Another name's output, as from the prompts
    # with three names, lets it sleep.
    del built["L4H1"]
    # This one carries the identity of S, which is the same in the other order.
    del built["L2H3"]
    assert dict(table["head class"][table["head class"] != "-"]) == built
    assert set(table["registry"]) == {"-"}


def test_columns_are_what_the_other_functions_measure() -> None:
    data, table = mini_table(0)
    assert list(table.columns) == list(heads.COLUMNS)
    assert list(table.index) == heads.head_labels(mini())

    def close(column: str, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
        ours = torch.tensor(table[column].to_numpy(dtype="float64")).float()
        torch.testing.assert_close(ours, expected.flatten(), atol=tolerance, rtol=1e-3)

    close("direct", attribution.head_attribution(mini(), data).values)
    close("induction", heads.repeat_scores(mini()).induction)
    close("END to S2", heads.attention_by_role(mini(), data, "END", ("S2",))[..., 0])
    close("S2 to S1+1", heads.attention_by_role(mini(), data, "S2", ("S1+1",))[..., 0])
    close("copying", heads.copying_scores(mini(), data[:12]))
    close("negative copying", heads.copying_scores(mini(), data[:12], negative=True))
    best = heads.composition_scores(mini(), "K").flatten(2).flatten(0, 1).amax(dim=0)
    shown = torch.tensor(table["K composition"].fillna(0).to_numpy())
    torch.testing.assert_close(shown.float(), best, atol=1e-5, rtol=0)
    first = data[:48]
    swept = patch_sweep(
        mini(),
        first,
        first.abc(),
        "z",
        ("layer", "head", "role"),
        roles=("S1+1",),
        direction="noising",
    )
    change = (swept.values - swept.clean).mean(dim=-1).flatten()
    shown = torch.tensor(table["S1+1, other names"].to_numpy())
    measured = ~shown.isnan()
    looks = torch.tensor((table["S1+1 to S1"] >= rules.LOOKS_AT_LEAST).to_numpy())
    assert measured.any() and torch.equal(measured, looks)
    torch.testing.assert_close(shown[measured].float(), change[measured], atol=1e-4, rtol=1e-3)


def test_errors_are_over_pairs_and_over_seeds() -> None:
    data, table = mini_table(0)
    for column in ("END to IO", "direct", "END, other order", "backup rise"):
        assert f"{column} se" in table
    first = data[:48]
    swept = patch_sweep(
        mini(), first, first.swap_order(), "z", ("layer", "head", "role"), roles=("END",),
        direction="noising",
    )  # fmt: skip
    changes = (swept.values - swept.clean)[..., 0, :].flatten(0, 1)
    for name, change in zip(table.index, changes, strict=True):
        expected = metrics.mean_and_stderr(change, first.pair_ids)
        row = table.loc[name]
        assert row["END, other order"] == pytest.approx(expected.mean, abs=1e-5)
        assert row["END, other order se"] == pytest.approx(expected.stderr, abs=1e-5)
    scores = heads.repeat_scores(mini())
    one = scores.per_sequence["induction"][1, 1]
    assert table.loc["L1H1", "induction se"] == pytest.approx(float(one.std() / 8**0.5), rel=1e-4)


def test_ablating_on_repeats_by_plain_lines() -> None:
    """Which induction score is left, and what the loss is, when a head's z is zero."""
    _, table = mini_table(0)
    model, length = mini(), 50
    half = heads.random_tokens(model)
    start = torch.full_like(half[:, :1], model.tokenizer.bos_token_id)
    tokens = torch.cat([start, half, half], dim=1)
    queries = torch.arange(length + 2, 2 * length)

    def run(silent: tuple[int, int] | None) -> tuple[torch.Tensor, torch.Tensor]:
        def zero(z: torch.Tensor, hook: object) -> torch.Tensor:
            assert silent is not None
            z = z.clone()
            z[:, :, silent[1]] = 0
            return z

        hooks = [] if silent is None else [(f"blocks.{silent[0]}.attn.hook_z", zero)]
        with model.hooks(fwd_hooks=hooks):
            logits, cache = model.run_with_cache(tokens)
        patterns = torch.stack([cache["pattern", layer] for layer in range(model.cfg.n_layers)])
        induction = patterns[..., queries, queries - length + 1].mean(dim=-1)  # [layer row head]
        log_p = logits.log_softmax(-1)[:, length + 1 : -1]
        loss = -log_p.gather(2, tokens[:, length + 2 :, None])[..., 0].mean(dim=1)
        return induction.mean(dim=1), loss

    clean_scores, clean_loss = run(None)
    measured = table.index[table["ablated: repeat loss"].notna()]
    assert set(measured) == {"L0H0", "L0H1", "L1H0", "L1H1"}
    for name in measured:
        at = heads.parse_head(name)
        scores, loss = run(at)
        others = torch.ones_like(scores, dtype=torch.bool)
        others[at] = False
        expected = float(scores[others].max() - clean_scores[others].max())
        assert table.loc[name, "ablated: best induction"] == pytest.approx(expected, abs=1e-4)
        change = loss - clean_loss
        assert table.loc[name, "ablated: repeat loss"] == pytest.approx(
            float(change.mean()), abs=1e-3
        )
        error = float(change.std() / len(change) ** 0.5)
        assert table.loc[name, "ablated: repeat loss se"] == pytest.approx(error, rel=1e-2)


@pytest.mark.parametrize(
    ("measured", "total", "classes"),
    [
        ({"END to IO": 0.25, "direct": 0.08}, (4.0, 0.1), "name_mover"),
        ({"END to IO": 0.25, "direct": -0.08}, (4.0, 0.1), "negative_name_mover"),
        ({"END to IO": 0.249, "direct": 0.08}, (4.0, 0.1), ""),
        ({"END to IO": 0.25, "direct": 0.079}, (4.0, 0.1), ""),
        ({"END to IO": 0.25, "direct": 0.08, "direct se": 0.027}, (4.0, 0.1), ""),
        ({"END to IO": 0.25, "direct": 0.08, "direct se": 0.026}, (4.0, 0.1), "name_mover"),
        ({"END to IO": 0.25, "direct": 0.08}, (4.0, 1.4), ""),  # the model does not do IOI
        ({"backup rise": 0.08}, (4.0, 0.1), "backup_name_mover"),
        ({"backup rise": 0.08, "END to IO": 0.3, "direct": 1.0}, (4.0, 0.1), "name_mover"),
        ({"END to S2": 0.3, "END, other order": -0.1}, (4.0, 0.1), "s_inhibition"),
        ({"END to S2": 0.3, "END, other order": 0.1}, (4.0, 0.1), ""),
        ({"S2 to S1": 0.3, "S2, other names": -0.1}, (4.0, 0.1), "duplicate_token"),
        ({"S2 to S1": 0.3, "S2, other order": float("nan")}, (4.0, 0.1), ""),
        ({"S2 to S1+1": 0.3, "S2, other order": -0.1}, (4.0, 0.1), "induction"),
        ({"induction": 0.5, "ablated: repeat loss": 0.1}, (0.0, 0.1), "induction"),
        ({"induction": 0.5, "ablated: repeat loss": -0.1}, (0.0, 0.1), ""),
        ({"previous_token": 0.5, "ablated: best induction": -0.1}, (0.0, 0.1), "previous_token"),
        ({"S1+1 to S1": 0.3, "S1+1, other names": -0.1}, (4.0, 0.1), "previous_token"),
        (
            {
                "S2 to S1": 0.3, "S2 to S1+1": 0.3, "S2, other order": -0.1,
                "END to IO": 0.3, "direct": 0.1,
            },
            (4.0, 0.1),
            "duplicate_token, induction, name_mover",
        ),
    ],
)  # fmt: skip
def test_rules_at_their_edges(
    measured: dict[str, float], total: tuple[float, float], classes: str
) -> None:
    names = [name for rule in rules.RULES for name in (*rule.effects, rule.looks) if name]
    nothing = dict.fromkeys([*names, *map(rules.error_of, names)], 0.0)
    assert ", ".join(rules.class_evidence(nothing | measured, total)) == classes


def test_the_printed_rules_are_the_whole_rules() -> None:
    """Every column that a rule reads is in its words and in the table, with its error; and every
    threshold is in them."""
    for rule in rules.RULES:
        words = heads.CLASS_RULES[rule.head_class]
        for column in filter(None, (*rule.effects, rule.looks)):
            assert f'"{column}"' in words
            assert column in heads.COLUMNS and rules.error_of(column) in heads.COLUMNS
    whole = " ".join((heads.EVERY_RULE, *heads.CLASS_RULES.values()))
    numbers = {float(x) for x in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])", whole)}
    assert numbers >= {0.25, 0.5, 2.0, 0.1, 3.0}


def test_a_table_makes_a_registry_and_a_circuit() -> None:
    _, table = mini_table(0)
    found = heads.registry_of(table)
    assert [e.head for e in found] == list(table.index[table["head class"] != "-"])
    assert found.entries == heads.registry(mini()).entries and found.model == "ioi-mini"
    assert found.circuit() == heads.circuit(mini())
    movers = [entry for entry in found if entry.head_class == "name_mover"]
    strongest = max(movers, key=lambda entry: entry.evidence["direct attribution"])
    assert strongest.head == table.attrs["strongest"] == table["direct"].idxmax()
    assert strongest.evidence["effect"] == round(table.loc[strongest.head, "END, other names"], 3)


def test_backup_rise_agrees_with_plain_lines() -> None:
    model, layer, head = mini(), 4, 4
    data = card.held_out_prompts(model, 20, prefixes=False)
    ours = heads.backup_rise(model, data, f"L{layer}H{head}")
    rows, end = torch.arange(len(data)), data.positions["END"]
    _, other = model.run_with_cache(data.abc().tokens)

    def replace(z: torch.Tensor, hook: object) -> torch.Tensor:
        z = z.clone()
        z[rows, end, head] = other["z", layer][rows, end, head]
        return z

    _, before = model.run_with_cache(data.tokens)
    with model.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_z", replace)]):
        _, after = model.run_with_cache(data.tokens)
    scale = before["ln_final.hook_scale"][rows, end]
    directions = attribution.logit_diff_directions(model, data) / scale
    for at in range(model.cfg.n_layers):
        moved = after["z", at][rows, end] - before["z", at][rows, end]
        if at == layer:
            moved[:, head] = (other["z", at] - before["z", at])[rows, end, head]
        expected = torch.einsum("bhe,hem,bm->hb", moved, model.W_O[at], directions)
        torch.testing.assert_close(ours[at], expected, atol=1e-4, rtol=1e-3)


def test_a_head_that_is_not_there_is_refused() -> None:
    data = IOIDataset.generate(mini().tokenizer, 4)
    with pytest.raises(ValueError, match="no L9H9"):
        heads.backup_rise(mini(), data, "L9H9")


def test_the_table_sorts_and_exports() -> None:
    _, table = mini_table(0)
    best = table.sort_values("induction", ascending=False).index[0]
    assert "induction" in table.loc[best, "head class"]
    again = pd.read_csv(io.StringIO(table.to_csv()), index_col="name")
    assert list(again.index) == list(table.index)
    for column in ("head class", "registry"):
        assert list(again[column]) == list(table[column]), "heads without a class are no NaN"
    assert table.attrs["rules"] == heads.CLASS_RULES
    assert set(heads.CLASS_RULES) == set(heads.HEAD_CLASSES)


def test_another_shape_with_random_weights(tmp_path_factory: pytest.TempPathFactory) -> None:
    """GPT-2 small's twelve layers of twelve heads, narrower."""
    model = random_model(
        tmp_path_factory.mktemp("wide"), n_layer=12, n_head=12, n_embd=96, n_positions=128
    )
    data = IOIDataset.generate(model.tokenizer, 8, seed=1)
    table = heads.head_table(model, data, seeds=(0, 1), length=20, progress=False)
    assert table.shape == (144, len(heads.COLUMNS))
    assert set(table["head class"]) == {"-"}


def test_too_few_prompts_are_refused() -> None:
    data = IOIDataset.generate(mini().tokenizer, 2)
    with pytest.raises(ValueError, match="two pairs"):
        heads.head_table(mini(), data)
