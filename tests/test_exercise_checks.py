"""The mechanism of exercise checks, on toy exercises: right, wrong, odd and missing answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from IPython.core.formatters import DisplayFormatter

from ioi_helpers import exercises, runs
from ioi_helpers.exercises import Key, Verdict, decide, registry
from ioi_helpers.exercises.forms import Refused, as_heads, whole_number
from ioi_helpers.exercises.verdicts import array, head_set, is_blank, number, pick
from ioi_helpers.metrics import Estimate

TRUTH = torch.arange(1.0, 13.0).reshape(3, 4) / 4
AXES = ("layer", "head")
MADE: list[str] = []  # keys that were made, by exercise


@pytest.fixture(autouse=True)
def toy_exercises(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two exercises of a notebook that does not exist, gone again after the test."""
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    MADE.clear()

    @exercises.exercise("90.2")
    def mean(ctx: exercises.Context) -> Key:
        MADE.append("90.2")
        return number(ctx.data.mean(), mistakes={"taking the median": ctx.data.median()})

    @exercises.exercise("90.10")
    def total(ctx: exercises.Context) -> Key:
        MADE.append("90.10")
        return number(ctx.data.sum() + ctx.offset)

    exercises.use()
    yield
    exercises.use()


DATA = torch.tensor([1.0, 2.0, 6.0, 9.0])


def says(answer: Any, key: Key) -> str:
    """The message to a wrong answer."""
    verdict = decide(answer, key)
    assert verdict.passed is False
    return verdict.message


def passes(answer: Any, key: Key) -> bool:
    """Whether an answer is right."""
    return decide(answer, key).passed is True


def test_the_three_verdicts_in_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    exercises.use(data=DATA)
    assert exercises.check("90.2", DATA.mean()).passed is True
    assert exercises.check("90.2", 2.0).passed is False
    assert exercises.check("90.2", None).passed is None
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "Exercise 90.2: correct.",
        "Exercise 90.2: not right yet. Your number is what one gets by taking the median.",
        "Exercise 90.2: not attempted yet.",
    ]


@pytest.mark.parametrize("stub", [None, ..., "", "  ", [None], (..., 1), {"a": ...}, [[1, None]]])
def test_stubs_are_not_attempted_even_without_context(stub: Any) -> None:
    assert exercises.check("90.2", stub).passed is None
    assert MADE == []


def test_the_result_is_not_shown_a_second_time() -> None:
    exercises.use(data=DATA)
    result = exercises.check("90.2", 1.0)
    shown, _ = DisplayFormatter().format(result)
    assert shown == {}
    assert str(result).startswith("Exercise 90.2: not right yet.")


def test_context_is_replaced_never_mixed() -> None:
    exercises.use(data=DATA, model="first")
    exercises.use(data=DATA + 1)
    assert exercises.check("90.2", 5.5).passed is True
    assert exercises.check("90.2", 4.5, data=DATA).passed is True, "for this check only"
    assert exercises.check("90.2", 5.5).passed is True
    with pytest.raises(ValueError, match="needs `model`"):
        _ = exercises._current.model


def test_a_missing_thing_is_a_clear_sentence() -> None:
    with pytest.raises(ValueError, match=re.escape("exercises.use(...)")):
        exercises.check("90.2", 1.0)


def test_a_key_is_made_once_for_what_is_at_hand() -> None:
    exercises.use(data=DATA)
    for answer in (1.0, 2.0, 4.5):
        exercises.check("90.2", answer)
    offset = torch.tensor(2.0)
    for answer in (1.0, 20.0):
        exercises.check("90.10", answer, offset=offset)
    assert MADE == ["90.2", "90.10"]
    assert exercises.check("90.10", 21.0, offset=offset + 1).passed is True
    assert MADE == ["90.2", "90.10", "90.10"]


def test_expensive_truths_are_computed_once() -> None:
    calls = []
    ctx = registry.Context({"data": DATA})
    for _ in range(3):
        ctx.once("key", lambda: calls.append(1))
    assert len(calls) == 1
    assert ctx.with_things({}) is ctx
    assert ctx.with_things({"data": 0}) is not ctx


def test_unknown_exercises() -> None:
    with pytest.raises(ValueError, match=re.escape("notebook 90 has 90.2, 90.10")):
        exercises.check("90.3", 1.0)
    with pytest.raises(ValueError, match="Notebook 89 has no exercises"):
        exercises.check("89.1", 1.0)
    for bad in ("1.3", "01-3", "1", 1.3):
        with pytest.raises(ValueError, match="not an exercise id"):
            exercises.check(bad, 1.0)  # type: ignore[arg-type]


def test_registering_twice_is_refused() -> None:
    def another(ctx: exercises.Context) -> Key:
        return number(1.0)

    with pytest.raises(ValueError, match="registered already"):
        exercises.exercise("90.2")(another)
    with pytest.raises(ValueError, match="not an exercise id"):
        exercises.exercise("x")(another)


# --- numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        3.5,
        np.float32(3.5),
        np.array(3.5),
        torch.tensor(3.5),
        torch.tensor([3.5]),
        [3.5],
        pd.Series([3.5]),
        "3.5",
        Estimate(3.5, 0.2, 8),
        3.51,
        3.47,
    ],
)
def test_numbers_of_every_kind_are_accepted(answer: Any) -> None:
    assert passes(answer, number(3.5))


def test_of_an_estimate_the_error_counts_where_it_is_asked_for() -> None:
    assert passes(Estimate(9.0, 3.5, 8), number(3.5, of_estimate="stderr"))
    assert not passes(Estimate(3.5, 9.0, 8), number(3.5, of_estimate="stderr"))
    assert passes(3.5, number(3.5, of_estimate="stderr"))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (float("nan"), "nan"),
        (torch.tensor(float("inf")), "inf"),
        ("3.5 logits", "text"),
        (True, "True or False"),
        (torch.full((8,), 3.5), r"a tensor of shape \[8\]"),
        ([3.5, 3.5], "a list"),
        (lambda: 3.5, "a function"),
        (3.5 + 1j, "complex"),
        (object(), "an object"),
        (SimpleNamespace(), "a SimpleNamespace"),
    ],
)
def test_odd_numbers_are_refused_in_words(answer: Any, message: str) -> None:
    assert re.search(message, says(answer, number(3.5)))


def test_mistakes_are_named_before_directions() -> None:
    key = number(3.5, mistakes={"summing. Take the mean": 28.0, "forgetting LayerNorm": 60.0})
    assert says(28.1, key) == "Your number is what one gets by summing. Take the mean."
    assert says(60, key) == "Your number is what one gets by forgetting LayerNorm."
    assert "sign" in says(-3.5, key)
    assert "too high" in says(5, number(3.5, unit="logits", hint="Mean!"))
    assert says(1, number(3.5, hint="Mean!")) == "Your number is too low. Mean!"
    share = number(0.5, between=(0, 1, "A share lies between 0 and 1."))
    assert says(1.5, share) == "A share lies between 0 and 1."


def test_the_nearest_mistake_is_named_and_others_as_near() -> None:
    mistakes = {"going far": 3.90, "staying near": 3.85}
    named = says(3.86, number(3.5, relative=0.02, mistakes=mistakes))
    assert named == "Your number is what one gets by staying near."
    mistakes = {"doing this. Do not": 3.85, "doing that. Never do": 3.8501, "nothing": 9.0}
    assert says(3.85, number(3.5, mistakes=mistakes)) == (
        "Your number is what one gets by doing this, or by doing that. Do not. Never do."
    )


def test_a_mistake_that_equals_the_truth_does_not_refuse_it_and_is_told() -> None:
    key = number(3.5, mistakes={"erring. Beware": 3.5, "failing": float("nan"), "missing": 9.0})
    assert decide(3.5, key) == Verdict(True, "(On this model one gets the same by erring.)")
    alone = number(3.5, mistakes={"erring": 3.5})
    assert "cannot be told apart" in decide(3.5, alone).message


def test_another_right_answer_has_its_own_sentence() -> None:
    key = number(3.5, also={"That is the jackknife.": 3.7}, mistakes={"erring": 3.75})
    assert decide(3.7, key) == Verdict(True, "That is the jackknife.")
    assert "erring" in says(3.75, key)


def test_a_truth_of_nothing_is_said_to_be_nothing() -> None:
    nothing = number(-0.001, error=0.002, mistakes={"silencing all": 2.0})
    assert "zero within its error" in decide(0.0, nothing).message
    assert passes(-0.001, nothing)
    assert "silencing all" in says(2.0, nothing)
    something = number(-0.005, error=0.002)
    assert not something.nothing
    assert not number(0.0).nothing


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (0.68, True),  # 0.6842 with two decimals
        (0.684, True),
        (np.float32(0.684), True),
        (0.69, False),
        (0.67, False),
        (0.7, False),
    ],
)
def test_a_rounded_right_answer_is_right(answer: float, right: bool) -> None:
    assert passes(answer, number(0.6842, relative=1e-4)) is right


def test_a_rounded_answer_that_a_mistake_gives_as_well_is_asked_for_more_digits() -> None:
    key = number(0.97975, relative=1e-4, mistakes={"using the labels": 0.98005})
    for rounded in (0.98, 0.980):
        assert says(rounded, key) == (
            "Right as far as it goes: give it with 4 decimals at least. It is also what one gets, "
            "rounded, by using the labels."
        )
    assert passes(0.9797, number(0.97975, relative=1e-4))
    assert "using the labels" in says(0.98005, key)
    assert "as far as it goes" in says(0.01, number(0.0069, relative=0.002)), "hardly a digit"


@given(st.floats(-100, 100), st.floats(-0.03, 0.03))
@settings(max_examples=400, deadline=None, derandomize=True)
def test_numeric_accepts_exactly_the_tolerance(truth: float, delta: float) -> None:
    answer = truth * (1 + delta)
    key = number(truth)
    right = abs(answer - truth) <= max(1e-6, 0.01 * abs(truth))
    verdict = decide(answer, key)
    if key.form.grain(np.array(answer), np.array(truth)) is None:
        assert verdict.passed is right
    if not verdict.passed:
        assert verdict.message
        assert f"{truth:.3g}" not in verdict.message, "the answer is not given away"


@pytest.mark.parametrize("delta", [0.0099, 0.0101])
def test_the_tolerance_is_one_per_cent(delta: float) -> None:
    assert passes(3.137 * (1 + delta), number(3.137)) is (delta < 0.01)
    assert passes(3.137 * (1 - delta), number(3.137)) is (delta < 0.01)


# --- arrays ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        TRUTH,
        TRUTH.numpy(),
        TRUTH.tolist(),
        list(TRUTH),
        pd.DataFrame(TRUTH.numpy()),
        TRUTH[None],
        TRUTH.to(torch.bfloat16),
        TRUTH + 1e-3,
        TRUTH.clone().requires_grad_(),
    ],
)
def test_arrays_of_every_kind_are_accepted(answer: Any) -> None:
    assert passes(answer, array(TRUTH, AXES))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_a_rounding_like_another(dtype: torch.dtype) -> None:
    truth = torch.randn(20, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    key = array(truth, ("prompt", "d_model"), relative=1e-5)
    assert passes(truth.to(dtype), key)
    assert passes(truth.round(decimals=2), key)
    wrong = truth.clone()
    wrong[3, 2] += 0.05
    assert not passes(wrong.to(dtype), key)
    close = array(
        truth, ("prompt", "d_model"), relative=1e-5, mistakes={"slipping": truth * (1 + 1e-4)}
    )
    assert "decimals" in says(truth.to(dtype), close)
    assert "slipping" in says(truth * (1 + 1e-4), close)


def changed() -> torch.Tensor:
    wrong = TRUTH.clone()
    wrong[2, 1] += 1
    return wrong


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (TRUTH.T, r"swapped: the answer is \[layer head\] = \[3, 4\]"),
        (TRUTH.T.contiguous() * 2, "out of order"),
        (TRUTH.expand(8, 3, 4), "average over"),
        (TRUTH[0], "averaged or selected away"),
        (TRUTH.mean(0), "mean over layers"),
        (TRUTH.sum(1), "sum over heads"),
        (TRUTH[:2], r"yours is \[2, 4\]"),
        (-TRUTH, "sign is wrong"),
        (TRUTH * 8, "same factor"),
        (TRUTH + 2, "same amount"),
        (
            changed(),
            r"1 of 12 entries are wrong, most of all \[layer 2, head 1\], which is too high",
        ),
        (TRUTH * float("nan"), "NaN"),
        ("L9H9", "text"),
        ({"a": 1}, "a dict"),
        ([[1.0], [1.0, 2.0]], "differ in length"),
        (["a", "b"], "text"),
        (TRUTH.to(torch.complex64), "complex"),
        (lambda: TRUTH, "a function"),
    ],
)
def test_wrong_arrays_are_explained(answer: Any, message: str) -> None:
    assert re.search(message, says(answer, array(TRUTH, AXES)))


def test_square_transposes_are_noticed() -> None:
    square = torch.arange(9.0).reshape(3, 3)
    assert "swapped" in says(square.T, array(square, AXES))


def test_one_number_for_many_is_told_what_it_is() -> None:
    key = array(torch.tensor([1.0, 2.0, 6.0]), ("prompt",))
    assert "mean over prompts, and one for each is asked for" in says(3.0, key)
    assert "sum over prompts" in says(torch.tensor([9.0]), key)
    assert passes(torch.tensor([[1.0], [2.0], [6.0]]), key)


def test_banked_arrays_may_have_any_shape() -> None:
    mistakes = {"keeping the prompts": TRUTH.expand(8, 3, 4), "summing over prompts": TRUTH * 8}
    key = array(TRUTH, AXES, mistakes=mistakes)
    assert says(TRUTH.expand(8, 3, 4), key).endswith("by keeping the prompts.")
    assert says(TRUTH * 8, key) == "Your numbers are what one gets by summing over prompts."


def test_an_all_zero_truth() -> None:
    zero = torch.zeros(3, 4)
    assert passes(zero, array(zero, AXES))
    assert not passes(TRUTH, array(zero, AXES))


# --- heads -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        ["L9H9", "L10H0"],
        ["l10h0", "9.9"],
        [(9, 9), (10, 0)],
        {(10, 0), (9, 9)},
        [[9, 9], [10, 0]],
        torch.tensor([[9, 9], [10, 0]]),
        np.array([[10, 0], [9, 9]]),
        np.array(["L9H9", "L10H0"]),
        pd.Series(["L9H9", "L10H0"]),
        pd.Index(["L9H9", "L10H0"]),
        "L9H9, L10H0",
        "L9H9 and 10.0",
        ["layer 9 head 9", "L10 H0"],
        [(np.int64(9), torch.tensor(9)), "10, 0"],
        ["L9H9", "L9H9", "L10H0"],
    ],
)
def test_heads_in_every_spelling(answer: Any) -> None:
    assert passes(answer, head_set(["L9H9", "L10H0"]))


@pytest.mark.parametrize("answer", ["L9H9", "9.9", (9, 9), [9, 9], ["L9H9"], torch.tensor([9, 9])])
def test_a_single_head(answer: Any) -> None:
    assert passes(answer, head_set("L9H9"))
    assert as_heads(answer) == [(9, 9)]


@pytest.mark.parametrize(
    "answer", [[], (), np.array([]), pd.Series([], dtype=object), pd.Index([]), torch.zeros(0, 2)]
)
def test_no_heads_in_every_form(answer: Any) -> None:
    assert passes(answer, head_set([]))
    assert "the list is empty" in says(answer, head_set(["L9H9"]))
    assert "no such head" in says(["L9H9"], head_set([]))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (["L9H9"], "1 are missing"),
        (["L9H9", "L10H0", "L3H3"], "1 of the heads you gave do not belong"),
        (["L1H1"], "do not belong and 2 are missing"),
        (["L9H9", "L0H10"], "swapped"),
        (["L0H10", "L9H9"], "swapped"),
        ([(9, 9), (0, 10)], "swapped"),
        (["L12H0", "L9H9"], "There is no L12H0 in this model"),
        (["head nine"], "is not a head"),
        ("nothing", "names no head"),
        (9.9, "a float"),
        ([9.9], "is not a head"),
        (torch.zeros(3, 3), "is not a head"),
        (["L9H9", 4], "is not a head"),
    ],
)
def test_wrong_heads_are_explained(answer: Any, message: str) -> None:
    assert message in says(answer, head_set(["L9H9", "L10H0"], shape=(12, 12)))


def test_order_and_mistakes_of_heads() -> None:
    truth = ["L9H9", "L9H6", "L10H0"]
    key = head_set(truth, mistakes={"taking the most negative": ["L10H7", "L11H10"]})
    assert passes(truth[::-1], key)
    assert "These heads are what one gets by taking the most" in says({"L11H10", "L10H7"}, key)


# --- picks, rules and odd answers ----------------------------------------------------------------


def test_a_pick_has_mistakes_and_rules() -> None:
    def block(answer: Any) -> int:
        return whole_number(answer, "Give a whole number.")

    key = pick(
        4,
        block,
        also={"A tie.": 5},
        mistakes={"counting from one": 3},
        rules={"Too early.": lambda i: i < 4, "Too late.": lambda i: i > 4},
        right=lambda i: f"Block {i}.",
    )
    assert decide("4", key) == Verdict(True, "Block 4.")
    assert decide(5, key) == Verdict(True, "A tie.")
    assert says([3], key) == "That is what one gets by counting from one."
    assert says(torch.tensor(2), key) == "Too early."
    assert says(9, key) == "Too late."
    assert says(3.5, key) == "Give a whole number."
    assert "single number" in says(torch.zeros(2), key)


def test_the_truth_may_be_a_rule() -> None:
    key = pick(lambda i: i % 2 == 0, int, mistakes={"taking one": 1, "taking two": 2})
    assert passes(4, key)
    assert "taking one" in says(1, key)
    assert key.coincidences == ["taking two"]


ODD: list[Callable[[], Any]] = [
    lambda: object(),
    lambda: b"x",
    lambda: {"a": 1},
    lambda: {1, 2},
    lambda: range(3),
    lambda: np.array(["a"]),
    lambda: np.array([object()]),
    lambda: torch.zeros(0),
    lambda: torch.tensor(float("nan")),
    lambda: [],
    lambda: [[], []],
    lambda: (1, "a"),
    lambda: 10**400,
    lambda: print,
    lambda: SimpleNamespace(x=1),
    lambda: (i for i in range(2)),
]


@pytest.mark.parametrize("make", ODD)
def test_no_form_ever_raises_for_an_answer(make: Callable[[], Any]) -> None:
    """Whatever the reader passes, the verdict is a refusal in words."""
    for key in (
        number(1.5),
        array(TRUTH, AXES),
        head_set(["L9H9"]),
        pick(1, lambda answer: whole_number(answer, "Whole!")),
    ):
        assert says(make(), key)


def test_blank_looks_inside_collections_but_not_tensors() -> None:
    assert is_blank({"a": [None]})
    assert is_blank(" ") and is_blank(["L9H9", ...])
    assert not is_blank(["L9H9", ""])
    assert not is_blank({"ABBA": "S2", "BABA": ""})
    assert not is_blank(torch.tensor(float("nan")))
    assert not is_blank([])
    assert not is_blank(0)


def test_a_whole_number_may_come_in_any_form() -> None:
    assert [whole_number(n, "") for n in (3, "3", 3.0, [3], torch.tensor(3))] == [3] * 5
    with pytest.raises(Refused, match="Whole!"):
        whole_number(3.2, "Whole!")


def test_a_check_shows_no_bars_however_long_it_takes() -> None:
    shown: list[bool] = []

    @exercises.exercise("90.3")
    def slow(ctx: exercises.Context) -> Key:
        shown.append(not runs.progress_bar("prompts", range(3)).disable)
        return number(1.0)

    exercises.check("90.3", 1.0)
    assert shown == [False]
    assert not runs.progress_bar("prompts", range(3)).disable  # shown again outside of checks
