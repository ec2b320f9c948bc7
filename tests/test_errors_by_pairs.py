"""Every result's standard error is that of pairs where prompts are paired, as a bootstrap says.

`RESULTS` is a table: a name, and what is measured on a model and its prompts, with its errors. A
new result is a new line in it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import attribution, load_model, metrics
from ioi_helpers.ablation import ablation_effects, ablation_sweep
from ioi_helpers.attribution import Attribution
from ioi_helpers.bundled import BUNDLED
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.metrics import logit_diff, mean_and_stderr
from ioi_helpers.patching import SweepResult, attribution_patch_sweep, patch_sweep
from ioi_helpers.runs import logit_diffs

PROMPTS = 200
DRAWS = 4000
"""Of which a standard deviation is known within some 1 %."""


class Measured(NamedTuple):
    """Numbers of each prompt, and what the result says of their mean."""

    values: Float[Tensor, "cell batch"]
    errors: Float[Tensor, " cell"]
    label: str


Measure = Callable[[TransformerBridge, IOIDataset], Measured]


def of_sweep(result: SweepResult) -> Measured:
    """Of the effects, as the table of a sweep gives them."""
    errors = torch.tensor(result.table()[result.error_label].tolist())
    return Measured(result.effect().flatten(0, -2), errors, result.error_label)


def of_values(result: SweepResult) -> Measured:
    """Of the values themselves."""
    return Measured(result.values.flatten(0, -2), result.stderr().flatten(), result.error_label)


@cache
def patched(model: TransformerBridge, data: IOIDataset) -> SweepResult:
    return patch_sweep(model, data, data.swap_subject(), "z", ("layer", "head"))


def effects(model: TransformerBridge, data: IOIDataset) -> Measured:
    last = f"L{model.cfg.n_layers - 1}H1"
    found = ablation_effects(model, data, (last, "END"), reference=data.abc())
    values = torch.stack([*found.terms().values(), found.total])
    table = found.table()
    return Measured(values, torch.tensor(table[found.error_label].tolist()), found.error_label)


def one_mean(model: TransformerBridge, data: IOIDataset) -> Measured:
    values = logit_diffs(model, data)
    error = mean_and_stderr(values, data.pair_ids).stderr
    return Measured(values[None], torch.tensor([error]), metrics.error_label(data.pair_ids))


def of_attribution(result: Attribution) -> Measured:
    values = result.per_prompt.flatten(0, -2)
    return Measured(values, result.stderr.flatten(), result.error_label)


RESULTS: dict[str, Measure] = {
    "head_attribution": lambda m, d: of_attribution(attribution.head_attribution(m, d)),
    "layer_attribution": lambda m, d: of_attribution(attribution.layer_attribution(m, d)),
    "decompose": lambda m, d: of_attribution(attribution.decompose(m, d)),
    "logit_lens": lambda m, d: of_attribution(attribution.logit_lens(m, d)),
    "patch_sweep, effects": lambda m, d: of_sweep(patched(m, d)),
    "patch_sweep, values": lambda m, d: of_values(patched(m, d)),
    "patch_sweep, two metrics": lambda m, d: of_sweep(
        patch_sweep(
            m, d, d.swap_order(), "resid_pre", ("layer", "role"), roles=("S2", "END"),
            metric=[logit_diff, metrics.io_probability],
        )["io_probability"]
    ),
    "attribution_patch_sweep": lambda m, d: of_sweep(attribution_patch_sweep(m, d, d.abc())),
    "ablation_sweep, heads": lambda m, d: of_sweep(ablation_sweep(m, d, reference=d.abc())),
    "ablation_sweep, sets": lambda m, d: of_sweep(
        ablation_sweep(m, d, [["L0H0", "MLP1"], ["L1H1"]], how="zero", role="END")
    ),
    "ablation_effects": effects,
    "mean_and_stderr": one_mean,
}  # fmt: skip


def bootstrap(values: Float[Tensor, "cell batch"], groups: Tensor) -> Float[Tensor, " cell"]:
    """The standard deviation of means over groups drawn with replacement.

    Args:
        groups: ``[group member]``, the rows that are drawn together.
    """
    of_groups = values.double().cpu()[:, groups].mean(dim=-1)
    return (of_groups @ shares(len(groups)).T).std(dim=-1)


@cache
def shares(groups: int) -> Float[Tensor, "draw group"]:
    """Each group's share of each draw."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(groups, (DRAWS, groups), generator=generator)
    counts = torch.zeros(DRAWS, groups, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(counts)) / groups


@pytest.fixture(scope="module")
def prompts() -> Callable[[str, bool], tuple[TransformerBridge, IOIDataset]]:
    @cache
    def made(name: str, paired: bool) -> tuple[TransformerBridge, IOIDataset]:
        model = load_model(name, device="cpu", verbose=False)
        return model, IOIDataset.generate(model.tokenizer, PROMPTS, paired=paired, seed=0)

    return made


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("name", sorted(BUNDLED))
@pytest.mark.parametrize("result", RESULTS)
def test_errors_agree_with_a_bootstrap(
    result: str,
    name: str,
    paired: bool,
    prompts: Callable[[str, bool], tuple[TransformerBridge, IOIDataset]],
) -> None:
    model, data = prompts(name, paired)
    found = RESULTS[result](model, data)
    rows = torch.arange(PROMPTS)
    groups = rows.view(-1, 2) if paired else rows[:, None]
    assert found.label == f"standard error over {'100 pairs' if paired else '200 prompts'}"
    expected = bootstrap(found.values, groups)
    # What is rounding in the values is nothing in the errors.
    size = found.values.abs().amax(dim=-1).cpu()
    measured = expected > 1e-5 * size.clamp(min=1e-3)
    assert measured.any()
    ratio = found.errors[measured].cpu() / expected[measured]
    assert ((ratio - 1).abs() < 0.1).all(), ratio


@pytest.mark.parametrize("name", sorted(BUNDLED))
def test_errors_over_single_prompts_would_be_too_small(
    name: str, prompts: Callable[[str, bool], tuple[TransformerBridge, IOIDataset]]
) -> None:
    """What pairs are for: the two prompts of a pair move together."""
    values = logit_diffs(*prompts(name, True))[None]
    rows = torch.arange(PROMPTS)
    ratio = float(bootstrap(values, rows[:, None]) / bootstrap(values, rows.view(-1, 2)))
    assert 0.75 < ratio < 0.92
