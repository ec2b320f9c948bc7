"""Causal scrubbing: draws, identities, and the two hypotheses on ioi-mini."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import IOIDataset, circuits, heads, load_model, path_patching, stimuli
from ioi_helpers.circuits import Drawn, Heads, Stream, ioi_hypothesis, scrub
from ioi_helpers.circuits.run import CircuitRun
from ioi_helpers.circuits.scrubbing import Features
from ioi_helpers.graph import Node, Shape, parse_node

ALL: Features = ("order", "IO", "S")


@cache
def mini() -> TransformerBridge:
    return load_model("ioi-mini", device="cpu", verbose=False)


@cache
def prompts(n: int = 60) -> IOIDataset:
    return IOIDataset.generate(mini().tokenizer, n, seed=3)


def test_a_draw_agrees_in_what_it_should_and_in_nothing_else() -> None:
    data = prompts(200)
    for features in ((), ("order",), ("IO",), ("S",), ("order", "IO"), ALL):
        drawn = data.redraw(features, seed=4)
        assert torch.equal(drawn.template_ids, data.template_ids)
        assert torch.equal(drawn.lengths, data.lengths)
        same = {
            "order": [a == b for a, b in zip(drawn.orders, data.orders, strict=True)],
            "IO": (drawn.io_tokens == data.io_tokens).tolist(),
            "S": (drawn.s_tokens == data.s_tokens).tolist(),
        }
        for feature, agree in same.items():
            share = sum(agree) / len(agree)
            if feature in features:
                assert share == 1
            else:
                assert share < (0.65 if feature == "order" else 0.1)
        assert (drawn.io_tokens != drawn.s_tokens).all()
    assert data.redraw((), seed=1).prompts == data.redraw((), seed=1).prompts
    with pytest.raises(ValueError, match="not a feature"):
        data.redraw(("place",))
    with pytest.raises(ValueError, match="named twice"):
        data.abc().redraw()


@pytest.mark.parametrize("order", ["ABBA", "BABA", "mixed"])
@pytest.mark.parametrize("features", [(), ("IO",), ("IO", "S")])
def test_an_order_that_is_free_is_a_coin_for_each_row(order: str, features: Features) -> None:
    # Eight prompts of different templates: no row has a partner in the other order.
    data = IOIDataset.generate(mini().tokenizer, 8, seed=3, order=order)
    same = []
    for seed in range(40):
        drawn = data.redraw(features, seed=seed)
        same += [a == b for a, b in zip(drawn.orders, data.orders, strict=True)]
        assert torch.equal(drawn.lengths, data.lengths)
        assert torch.equal(drawn.template_ids, data.template_ids)
        for role in ("S2", "END"):
            assert torch.equal(drawn.positions[role], data.positions[role])
        # The two places of the first clause stay; who stands there may change.
        places = [
            torch.stack([x.positions["IO"], x.positions["S1"]]).sort(dim=0).values
            for x in (data, drawn)
        ]
        assert torch.equal(*places)
        # And the text is built as its roles say.
        rows = torch.arange(len(drawn))
        assert torch.equal(drawn.tokens[rows, drawn.positions["IO"]], drawn.io_tokens)
        for role in ("S1", "S2"):
            assert torch.equal(drawn.tokens[rows, drawn.positions[role]], drawn.s_tokens)
        words = (drawn.tokens != data.tokens).sum(dim=1)
        assert (words <= 3 + 2).all()  # names, and a place and an object
    # 320 coins: 4 standard errors are 0.11.
    assert abs(sum(same) / len(same) - 0.5) < 0.11
    kept = data.redraw(("order", *features), seed=0)
    assert kept.orders == data.orders


def everything(model: TransformerBridge, features: Features) -> Stream:
    """All heads at END, said to depend on these features, and to read plain values on them."""
    shape = Shape.of(model)
    by_layer = [
        Heads(
            frozenset(Node(layer, head, "END") for head in range(shape.n_heads)),
            features,
            Drawn(features),
            {},
            Drawn(features),
        )
        for layer in range(shape.n_layers)
    ]
    return Stream(tuple(by_layer))


# --- identities -----------------------------------------------------------------------------------


def drawing(monkeypatch: pytest.MonkeyPatch, draw: Callable[..., IOIDataset]) -> None:
    monkeypatch.setattr("ioi_helpers.circuits.scrubbing._Scrubber.draw", draw)


def assert_same(run: CircuitRun, other: CircuitRun) -> None:
    assert torch.allclose(run.logit_diff, other.logit_diff, rtol=0, atol=2e-5)
    assert torch.allclose(run.loss, other.loss, rtol=0, atol=2e-5)


def test_drawing_each_prompt_itself_is_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing(monkeypatch, lambda self, data, features: data)
    found = scrub(mini(), prompts(), ioi_hypothesis(*parts(mini())), draws=1)
    assert_same(found.scrubbed, found.model)


def test_drawing_one_prompt_for_all_is_that_prompt_with_the_own_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = prompts()
    other = data.redraw((), seed=5)
    drawing(monkeypatch, lambda self, data, features: other)
    found = scrub(mini(), data, ioi_hypothesis(*parts(mini())), draws=1)
    rows = torch.arange(len(data))
    # In plain TransformerLens: its logits, the data's names.
    logits = mini()(other.tokens)[rows, other.positions["END"]].detach()
    own = CircuitRun.of_logits(logits, data)
    assert_same(found.scrubbed, own)
    assert_same(found.unrelated, own)
    assert not torch.allclose(own.loss, found.model.loss, atol=0.1)


def test_one_level_is_path_patching_of_all_other_heads_at_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = prompts()
    other = data.redraw((), seed=5)
    drawing(monkeypatch, lambda self, data, features: data if features == ALL else other)
    named = frozenset(parts(mini())[0])
    hypothesis = Stream((Heads(named, ALL, Drawn(ALL), {}, Drawn(ALL)),))
    found = scrub(mini(), data, hypothesis, draws=1)
    senders = [
        Node(layer, head, "END")
        for layer in range(Shape.of(mini()).n_layers)
        for head in range(Shape.of(mini()).n_heads)
        if Node(layer, head, "END") not in named
    ]
    patched = path_patching.path_patch(
        mini(), data, other, senders, "final", mlps="recomputed", progress=False
    )
    expected = torch.as_tensor(patched.values, dtype=found.scrubbed.logit_diff.dtype)
    assert torch.allclose(found.scrubbed.logit_diff, expected, rtol=0, atol=2e-5)
    assert not torch.allclose(found.scrubbed.logit_diff, found.model.logit_diff, atol=0.1)


def test_little_memory_changes_neither_draws_nor_results() -> None:
    hypothesis = ioi_hypothesis(*parts(mini()))
    much, little = (
        scrub(mini(), prompts(24), hypothesis, draws=2, memory=memory, progress=False)
        for memory in (2**30, 1)
    )
    for name in ("model", "scrubbed", "unrelated"):
        assert_same(getattr(much, name), getattr(little, name))
    with pytest.raises(ValueError, match="positive number of bytes"):
        scrub(mini(), prompts(8), hypothesis, memory=0)


# --- hypotheses -----------------------------------------------------------------------------------


def test_nothing_said_to_be_read_is_an_unrelated_prompt() -> None:
    found = scrub(mini(), prompts(), Stream(), draws=1)
    assert abs(found.loss_recovered().mean) < 0.25
    assert found.logit_diff_ratio().mean == pytest.approx(0, abs=0.25)


def test_a_hypothesis_that_draws_whole_names_and_order_passes() -> None:
    # Places and objects are all that differs, and they do not matter.
    found = scrub(mini(), prompts(), everything(mini(), ALL), draws=1)
    assert found.loss_recovered().mean == pytest.approx(1, abs=0.03)


def test_a_finer_feature_never_recovers_much_less() -> None:
    coarse = scrub(mini(), prompts(), everything(mini(), ("IO",)), draws=1)
    fine = scrub(mini(), prompts(), everything(mini(), ALL), draws=1)
    assert fine.loss_recovered().mean > coarse.loss_recovered().mean - 0.02


def parts(model: TransformerBridge) -> tuple[list[Node], list[Node], list[Node]]:
    classes = heads.circuit(model).classes

    def of(*labels: str, role: str) -> list[Node]:
        return [n for label in labels for n in classes.get(label, ()) if n.role == role]

    return (
        of("name_mover", "backup_name_mover", "negative_name_mover", role="END"),
        of("s_inhibition", role="END"),
        of("duplicate_token", "induction", role="S2"),
    )


def test_on_ioi_mini_the_order_bit_beats_the_repeated_name() -> None:
    order, name, nothing = (
        scrub(mini(), prompts(), ioi_hypothesis(*parts(mini()), signal), draws=2)
        for signal in (("order",), ("S",), ())
    )
    assert order.loss_recovered().mean > name.loss_recovered().mean + 0.05
    assert order.loss_recovered().mean > nothing.loss_recovered().mean + 0.05


@pytest.mark.parametrize("order", ["ABBA", "BABA"])
def test_in_data_of_one_order_the_order_bit_wins_too(order: str) -> None:
    data = IOIDataset.generate(mini().tokenizer, 60, seed=3, order=order)
    bit, name, nothing = (
        scrub(mini(), data, ioi_hypothesis(*parts(mini()), signal), draws=2).loss_recovered()
        for signal in (("order",), ("S",), ())
    )
    assert bit.mean > nothing.mean + 0.05
    assert bit.mean > name.mean + 0.05


def test_hypotheses_that_make_no_sense_are_refused() -> None:
    data = prompts(8)
    two_roles = frozenset([parse_node(("L4H4", "END")), parse_node(("L1H0", "S2"))])
    with pytest.raises(ValueError, match="one and the same role"):
        scrub(mini(), data, Stream((Heads(two_roles, ()),)))
    late = Stream((Heads(frozenset([parse_node(("L5H0", "END"))]), ()),))
    early = Heads(frozenset([parse_node(("L4H4", "END"))]), (), late)
    with pytest.raises(ValueError, match="does not come before"):
        scrub(mini(), data, Stream((early,)))
    away = Heads(frozenset([parse_node(("L1H0", "S2"))]), ())
    with pytest.raises(ValueError, match=r"L1H0 at S2 does not stand at END") as refused:
        scrub(mini(), data, Stream((away,)))
    assert str(refused.value).count(".") == 1
    mover = frozenset([parse_node(("L4H4", "END"))])
    for reads in (
        {"queries": Stream((away,))},
        {"keys_values": {"IO": Stream((away,))}},
    ):
        with pytest.raises(ValueError, match=r"L1H0 at S2 does not stand at (END|IO)"):
            scrub(mini(), data, Stream((Heads(mover, (), **reads),)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"L4H4 at END is in two parts of one stream"):
        scrub(mini(), data, Stream((Heads(mover, ("order",)), Heads(mover, ("S",)))))
    for draws in (0, -1):
        with pytest.raises(ValueError, match="draws must be at least 1"):
            scrub(mini(), data, Stream(), draws=draws)
    wrong: list[Any] = [away, Drawn(), None]
    for hypothesis in wrong:
        with pytest.raises(ValueError, match="A hypothesis is a Stream"):
            scrub(mini(), data, hypothesis)
    mixed = IOIDataset.generate(mini().tokenizer, 20, prefixes="bundled", seed=0)
    with pytest.raises(ValueError, match="differ in length"):
        scrub(mini(), mixed, Stream())


def test_what_is_no_part_of_a_hypothesis_is_refused_by_a_sentence() -> None:
    mover = parse_node(("L4H4", "END"))
    part = Heads(frozenset([mover]), ())
    wrong: list[tuple[Callable[[Any], object], Any, str]] = [
        (Stream, (mover,), r"A Stream is said to read parts, not Node"),
        (Stream, ("L4H4",), r"A Stream is said to read parts, not 'L4H4'"),
        (Stream, part, r"write Stream\(\(heads,\)\)"),
        (lambda nodes: Heads(nodes, ()), frozenset(["L4H4"]), r"must be nodes, not 'L4H4'"),
        (lambda q: Heads(frozenset([mover]), (), q), mover, r"is a Stream or Drawn, not Node"),
        (
            lambda q: Heads(frozenset([mover]), (), q),
            ("order",),
            r"is a Stream or Drawn, not \('or",
        ),
    ]
    for make, given, why in wrong:
        with pytest.raises(ValueError, match=why):
            make(given)


NAMES = ["Mary", "John", "Anna", "Paul", "Laura"]


@pytest.mark.parametrize("features", [(), ("order",), ("S",), ("order", "IO"), ALL])
def test_as_many_prompts_agree_as_are_ever_drawn(features: Features) -> None:
    """Counted one by one over many draws, on a few templates, names and objects."""
    templates = stimuli.TEMPLATES[:2]
    data = IOIDataset.generate(mini().tokenizer, 12, names=NAMES, templates=templates, seed=3)
    agree, seen = data.agreeing(features), [set[str]() for _ in data.prompts]
    for seed in range(60 * int(agree.max())):
        drawn = data.redraw(features, seed=seed)
        for found, prompt in zip(seen, drawn.prompts, strict=True):
            found.add(prompt)
    assert [len(found) for found in seen] == agree.tolist()


def test_a_result_says_from_how_many_prompts_each_part_was_drawn() -> None:
    data = prompts()
    found = scrub(mini(), data, ioi_hypothesis(*parts(mini()), ("S",)), draws=1)
    table = found.draws
    assert (table["fewest"] > 1).all() and (table["mean"] >= table["fewest"]).all()
    told = table[table["part"].str.match(r"queries of .*at S2$")]
    assert told["agree in"].iloc[0] == "template, S"
    assert told["fewest"].iloc[0] == data.agreeing(("S",)).min()
    assert f"drawn from {table['fewest'].min()} prompts that agree" in str(found)
    # As many rows as there are draws of prompts, besides the unrelated one.
    alone = IOIDataset.from_prompts(
        mini().tokenizer, ["Then, Mary and John went to the store. John gave a drink to"],
        [("Mary", "John")],
    )  # fmt: skip
    assert scrub(mini(), alone, everything(mini(), ALL), draws=1).draws["fewest"].min() == 1


def test_results_carry_every_draw() -> None:
    found = scrub(mini(), prompts(8), Stream(), draws=3)
    assert len(found.scrubbed.loss) == 24
    assert found.loss_recovered().n == 4
    assert isinstance(found, circuits.Scrubbed)
