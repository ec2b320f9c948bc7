"""Metrics: against direct computation, on both forms of logits, and what they refuse."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ioi_helpers import load_model, metrics
from ioi_helpers.dataset import IOIDataset
from training.vocabulary import save_tokenizer

METRICS: tuple[Callable[..., Tensor], ...] = (
    metrics.logit_diff,
    metrics.io_probability,
    metrics.s_probability,
    metrics.io_rank,
    metrics.s_rank,
    metrics.io_preferred,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> IOIDataset:
    tokenizer: Any = save_tokenizer(tmp_path_factory.mktemp("tokenizer"), max_length=256)
    return IOIDataset.generate(tokenizer, 10, prefixes="bundled")


@pytest.fixture
def logits(data: IOIDataset) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*data.tokens.shape, len(data.tokenizer), generator=generator)


def test_orders_are_told_apart(data: IOIDataset) -> None:
    values = torch.tensor([3.0 if order == "ABBA" else -1.0 for order in data.orders])
    values[0] += 1
    found = metrics.by_order(values, data)
    for order, rows in data.groups("order").items():
        assert found[order] == metrics.mean_and_stderr(values[rows], data.pair_ids[rows])
    assert found["BABA" if data.orders[0] == "ABBA" else "ABBA"].stderr == 0
    with pytest.raises(ValueError, match="one value for each of the 10 prompts"):
        metrics.by_order(values[:3], data)


def test_an_estimate_takes_a_format() -> None:
    found = metrics.Estimate(-0.0001, 1.25, 4)
    assert f"{found:z.2f}" == "0.00 ± 1.25"
    assert f"{found:+.1f}" == "-0.0 ± 1.2"  # an error has no sign
    assert f"{found}" == str(found) == "-0.000 ± 1.250 (n = 4)"


def test_each_metric_is_what_its_name_says(data: IOIDataset, logits: Tensor) -> None:
    """Row by row, in plain Python, at the last token of each prompt."""
    for row in range(len(data)):
        last = logits[row, int(data.lengths[row]) - 1]
        io, s = last[data.io_tokens[row]].item(), last[data.s_tokens[row]].item()
        probabilities = last.double().softmax(dim=-1)
        expected = {
            metrics.logit_diff: io - s,
            metrics.io_probability: probabilities[data.io_tokens[row]].item(),
            metrics.s_probability: probabilities[data.s_tokens[row]].item(),
            metrics.io_rank: sum(value > io for value in last.tolist()),
            metrics.s_rank: sum(value > s for value in last.tolist()),
            metrics.io_preferred: float(io > s),
        }
        for metric, value in expected.items():
            got = metric(logits, data, per_prompt=True)[row].item()  # type: ignore[operator]
            assert got == pytest.approx(value, rel=1e-5), metric


@pytest.mark.parametrize("metric", METRICS)
def test_mean_is_the_mean_and_both_forms_agree(
    data: IOIDataset, logits: Tensor, metric: Callable[..., Tensor]
) -> None:
    per_prompt = metric(logits, data, per_prompt=True)
    assert per_prompt.shape == (len(data),)
    mean = metric(logits, data)
    assert mean.shape == ()
    assert mean.item() == pytest.approx(per_prompt.double().mean().item(), rel=1e-6)
    at_end = torch.stack([logits[row, data.lengths[row] - 1] for row in range(len(data))])
    assert torch.equal(metric(at_end, data, per_prompt=True), per_prompt)
    part = data[3:7]
    assert torch.equal(metric(logits[3:7], part, per_prompt=True), per_prompt[3:7])


def test_only_the_end_of_the_prompt_counts(data: IOIDataset, logits: Tensor) -> None:
    changed = torch.full_like(logits, 100.0)
    rows = torch.arange(len(data))
    changed[rows, data.positions["END"]] = logits[rows, data.positions["END"]]
    assert torch.equal(metrics.logit_diff(changed, data), metrics.logit_diff(logits, data))


def test_rank_zero_is_the_first_choice_and_ties_do_not_count(data: IOIDataset) -> None:
    at_end = torch.zeros(len(data), len(data.tokenizer))
    assert metrics.io_rank(at_end, data).item() == 0
    assert metrics.io_preferred(at_end, data).item() == 0
    at_end[torch.arange(len(data)), data.io_tokens] = 1.0
    assert metrics.io_rank(at_end, data, per_prompt=True).tolist() == [0] * len(data)
    assert metrics.s_rank(at_end, data, per_prompt=True).tolist() == [1] * len(data)
    assert metrics.io_preferred(at_end, data).item() == 1


def test_the_clean_answers_score_a_counterfactual(data: IOIDataset, logits: Tensor) -> None:
    corrupted = data.swap_subject()
    own = metrics.logit_diff(logits, corrupted, per_prompt=True)
    clean = metrics.logit_diff(logits, corrupted.clean, per_prompt=True)
    assert torch.allclose(own, -clean)
    assert torch.equal(clean, metrics.logit_diff(logits, data, per_prompt=True))


def test_gradients_flow_to_the_two_answers_only(data: IOIDataset, logits: Tensor) -> None:
    logits.requires_grad_(True)
    metrics.logit_diff(logits, data).backward()
    assert logits.grad is not None
    at_end = data.gather(logits.grad, "END")
    assert logits.grad.count_nonzero() == at_end.count_nonzero() == 2 * len(data)
    rows = torch.arange(len(data))
    assert torch.allclose(at_end[rows, data.io_tokens], torch.tensor(1 / len(data)))


def test_half_precision_is_widened_before_subtracting(data: IOIDataset) -> None:
    at_end = torch.full((len(data), len(data.tokenizer)), 1000.0, dtype=torch.float16)
    at_end[torch.arange(len(data)), data.io_tokens] = 1000.5
    diff = metrics.logit_diff(at_end, data)
    assert diff.dtype == torch.float32
    assert diff.item() == 0.5
    assert metrics.io_probability(at_end, data).dtype == torch.float32
    doubled = metrics.logit_diff(at_end.double(), data)
    assert doubled.dtype == torch.float64


# --- standard errors ----------------------------------------------------------------------------


@settings(deadline=None, derandomize=True)
@given(
    values=st.lists(st.floats(-10, 10), min_size=2, max_size=20).map(torch.tensor),
)
def test_stderr_of_independent_prompts_is_textbook(values: Tensor) -> None:
    estimate = metrics.mean_and_stderr(values)
    exact = values.double()
    assert estimate.mean == pytest.approx(exact.mean().item(), abs=1e-9)
    assert estimate.stderr == pytest.approx(exact.std().item() / math.sqrt(len(values)), abs=1e-9)
    assert estimate.n == len(values)


def test_stderr_of_pairs_is_that_of_the_pair_means(data: IOIDataset) -> None:
    values = torch.randn(len(data), generator=torch.Generator().manual_seed(1))
    estimate = metrics.mean_and_stderr(values, clusters=data.pair_ids)
    pair_means = values.double().reshape(-1, 2).mean(dim=1)
    assert estimate.n == 5
    assert estimate.mean == pytest.approx(values.mean().item(), rel=1e-6)
    assert estimate.stderr == pytest.approx(pair_means.std().item() / math.sqrt(5))
    # What cancels within every pair leaves no error at all.
    alternating = torch.tensor([1.0, -1.0] * 5)
    assert metrics.mean_and_stderr(alternating, data.pair_ids).stderr == 0
    assert metrics.mean_and_stderr(alternating).stderr > 0.3
    assert str(estimate).endswith("(n = 5)")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_many_errors_at_once(data: IOIDataset, dtype: torch.dtype) -> None:
    values = torch.randn(3, 2, len(data), generator=torch.Generator().manual_seed(2)).to(dtype)
    for clusters in (None, data.pair_ids):
        errors = metrics.standard_error(values, clusters)
        expected = [metrics.mean_and_stderr(row, clusters).stderr for row in values.flatten(0, 1)]
        assert errors.flatten().tolist() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(
        metrics.cluster_values(values, data.pair_ids),
        values.to(errors.dtype).unflatten(-1, (-1, 2)).mean(dim=-1),
    )
    assert metrics.standard_error(values[..., :2], data.pair_ids[:2]).isnan().all()


def test_what_an_error_is_over() -> None:
    assert metrics.error_label(torch.tensor([0, 0, 1, 1])) == "standard error over 2 pairs"
    assert metrics.error_label(torch.tensor([4, 2, 7])) == "standard error over 3 prompts"
    assert metrics.error_label(torch.tensor([0, 0, 0])) == "standard error over 1 group"


def test_stderr_covers_the_truth() -> None:
    """Of clustered samples with unequal clusters, about 95 % of intervals hold the true mean."""
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(400):
        sizes = torch.randint(1, 5, (60,), generator=generator)
        clusters = torch.repeat_interleave(torch.arange(60) * 7, sizes)
        shared = torch.randn(60, generator=generator).repeat_interleave(sizes)
        values = 2.0 + shared + 0.3 * torch.randn(len(clusters), generator=generator)
        estimate = metrics.mean_and_stderr(values, clusters)
        hits += abs(estimate.mean - 2.0) < 1.96 * estimate.stderr
    assert 0.91 < hits / 400 < 0.98


# --- recovered fraction -------------------------------------------------------------------------


@settings(deadline=None, derandomize=True)
@given(
    clean=st.floats(-5, 5),
    gap=st.floats(0.01, 5) | st.floats(-5, -0.01),
    fraction=st.floats(-2, 2),
)
def test_recovered_fraction_undoes_interpolation(clean: float, gap: float, fraction: float) -> None:
    corrupted = clean - gap
    patched = corrupted + fraction * gap
    exact = torch.tensor([patched, clean, corrupted], dtype=torch.float64)
    got = metrics.recovered_fraction(exact[0], exact[1], exact[2])
    assert got.item() == pytest.approx(fraction, abs=1e-9)


def test_recovered_fraction_broadcasts_and_takes_numbers() -> None:
    patched = torch.tensor([[3.0, -1.0], [1.0, 5.0]])
    got = metrics.recovered_fraction(patched, 3.0, -1.0)
    assert torch.equal(got, torch.tensor([[1.0, 0.0], [0.5, 1.5]]))
    with pytest.raises(ValueError, match="do not fit together"):
        metrics.recovered_fraction(patched, torch.zeros(3), torch.ones(3))


def test_nothing_to_recover_is_refused() -> None:
    with pytest.raises(ValueError, match="Clean and corrupted values are equal, so"):
        metrics.recovered_fraction(1.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="in 1 of 2 entries"):
        metrics.recovered_fraction(torch.ones(2), torch.tensor([1.0, 2.0]), torch.ones(2))
    with pytest.raises(ValueError, match="are equal"):
        metrics.recovered_fraction(1.0, float("nan"), 2.0)


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prepend_bos", [True, False])
def test_a_run_on_texts_padded_on_the_left_is_noticed(prepend_bos: bool) -> None:
    model = load_model("ioi-plain", device="cpu", verbose=False)
    model.tokenizer.padding_side = "left"
    data = IOIDataset.generate(model.tokenizer, 8, prefixes="bundled", prepend_bos=prepend_bos)
    assert len(data.lengths.unique()) > 1
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics.logit_diff(model(data.tokens), data)
        with pytest.warns(UserWarning, match="pads on the left.*run data.tokens"):
            metrics.logit_diff(model(data.prompts, prepend_bos=prepend_bos), data)
        model.tokenizer.padding_side = "right"
        metrics.logit_diff(model(data.prompts, prepend_bos=prepend_bos), data)


@pytest.mark.parametrize("metric", METRICS)
def test_logits_that_do_not_fit_are_refused(
    data: IOIDataset, logits: Tensor, metric: Callable[..., Tensor]
) -> None:
    for bad, message in (
        (logits[:, 1:], r"\[batch, pos\].*BOS"),
        (logits[:4], r"\[batch, pos\]"),
        (logits[:4, 0], "logits of 4 prompts, but the dataset has 10"),
        (logits[0, 0], r"\[batch, pos, vocab\] or \[batch, vocab\]"),
        (logits[..., :5], "another model's tokenizer"),
    ):
        with pytest.raises(ValueError, match=message):
            metric(bad, data)


def test_one_observation_has_a_mean_and_no_error() -> None:
    """Everywhere alike: NaN, and the mean is there."""
    for alone in (torch.tensor([2.0]), torch.full((4,), 2.0)):
        clusters = torch.zeros(len(alone), dtype=torch.long)
        found = metrics.mean_and_stderr(alone, clusters)
        assert (found.mean, found.n) == (2.0, 1) and math.isnan(found.stderr)
        assert metrics.standard_error(alone, clusters).isnan()
    with pytest.raises(ValueError, match="per_prompt=True"):
        metrics.mean_and_stderr(torch.tensor(1.0))
    with pytest.raises(ValueError, match="4 values but clusters of shape"):
        metrics.mean_and_stderr(torch.ones(4), torch.zeros(3, dtype=torch.long))
