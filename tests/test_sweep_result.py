"""A sweep's result: labels, statistics by pairs, saving and loading."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformer_lens.patching import PatchingResult

from ioi_helpers import metrics
from ioi_helpers.patching import SweepResult, cell_label, sweep_result

PAIRS, AXES = 15, {"layer": range(2), "role": ("S2", "END")}


def draw(seed: int, *shape: int, shared: float = 1.0) -> Tensor:
    """Values a prompt, of which the two of a pair share a part."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(*shape, 2 * PAIRS, generator=generator)
    return own + shared * torch.randn(*shape, PAIRS, generator=generator).repeat_interleave(2, -1)


def result(paired: bool = True, **options: Any) -> SweepResult:
    ids = torch.arange(2 * PAIRS)
    given: dict[str, Any] = {
        "values": draw(0, 2, 2),
        "axes": AXES,
        "clean": draw(1) + 3,
        "corrupted": draw(2) - 3,
        "pair_ids": ids // 2 if paired else ids,
        "direction": "denoising",
        "site": "resid_pre",
    }
    given |= options
    return sweep_result(given.pop("values"), given.pop("axes"), **given)


def of_pairs(values: Tensor) -> Tensor:
    return values.unflatten(-1, (PAIRS, 2)).mean(dim=-1)


def test_statistics_are_of_pairs() -> None:
    one = result()
    effect = one.values - one.corrupted
    expected = of_pairs(effect).std(dim=-1) / math.sqrt(PAIRS)
    torch.testing.assert_close(one.stderr(of_effect=True), expected)
    expected = of_pairs(one.values).std(dim=-1) / math.sqrt(PAIRS)
    torch.testing.assert_close(one.stderr(), expected)
    assert one.error_label == "standard error over 15 pairs"
    plain = PatchingResult(
        of_pairs(one.values), ["layer", "role"], one.index_df, ["logit_diff"], False,
        baseline=of_pairs(one.corrupted),
    )  # fmt: skip
    for of_effect in (False, True):
        for found, by_hand in zip(
            one.bootstrap_ci(of_effect=of_effect, n_resamples=200),
            plain.bootstrap_ci(of_effect=of_effect, n_resamples=200),
            strict=True,
        ):
            torch.testing.assert_close(found, by_hand)
    torch.testing.assert_close(
        one.permutation_pvalue(n_permutations=99), plain.permutation_pvalue(n_permutations=99)
    )


def test_statistics_of_single_prompts_are_transformer_lens_own() -> None:
    one = result(paired=False)
    assert one.error_label == "standard error over 30 prompts"
    torch.testing.assert_close(one.stderr(), PatchingResult.stderr(one))
    assert torch.equal(one.permutation_pvalue(), PatchingResult.permutation_pvalue(one))
    for found, expected in zip(one.bootstrap_ci(), PatchingResult.bootstrap_ci(one), strict=True):
        assert torch.equal(found, expected)


def test_pairs_that_were_torn_apart() -> None:
    """Some prompts have lost their partner: the mean is over prompts, as it was."""
    rows = torch.tensor([0, 1, 2, 4, 5, 6, 8, 9])
    whole = result()
    part = sweep_result(
        whole.values[..., rows], AXES, clean=whole.clean[rows], pair_ids=whole.pair_ids[rows]
    )
    torch.testing.assert_close(part._by_pairs().mean(), part.mean())
    expected = metrics.mean_and_stderr(part.values[1, 0], part.pair_ids)
    assert part.stderr()[1, 0] == pytest.approx(expected.stderr)
    assert part.error_label == "standard error over 5 pairs"


def test_one_pair_has_no_error() -> None:
    one = sweep_result(
        torch.ones(2, 2, 2), AXES, clean=torch.ones(2), pair_ids=torch.zeros(2, dtype=torch.long)
    )
    assert one.stderr().isnan().all()
    assert one.error_label == "standard error over 1 pair"


def test_a_small_but_clear_gap_has_fractions() -> None:
    """The gap's error is that of its pairs: a gap of 2.5 errors is one, of 1.5 is none."""
    gap = torch.randn(PAIRS, generator=torch.Generator().manual_seed(5))
    gap = (gap - gap.mean()) / gap.std() * math.sqrt(PAIRS) * 0.01  # standard error 0.01

    def with_gap(size: float) -> SweepResult:
        corrupted = torch.full((2 * PAIRS,), 1.0)
        clean = corrupted + (gap + size).repeat_interleave(2)
        return result(values=clean.expand(2, 2, -1), clean=clean, corrupted=corrupted)

    torch.testing.assert_close(with_gap(0.025).fraction(), torch.ones(2, 2))
    torch.testing.assert_close(with_gap(-0.025).fraction(), torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"differ by 0\.015 ± 0\.01 .*over 15 pairs\), so there"):
        with_gap(0.015).fraction()
    # Over prompts the error would be smaller by the root of two, and 1.5 errors would pass.
    assert 2 * float((with_gap(0.015).clean - 1).std()) / math.sqrt(2 * PAIRS) < 0.015


def test_fraction_of_one_prompt_and_of_an_ablation() -> None:
    one = sweep_result(
        torch.tensor([[2.0]]), {"layer": [0]}, clean=torch.tensor([3.0]),
        corrupted=torch.tensor([1.0]), direction="denoising", pair_ids=torch.tensor([0]),
    )  # fmt: skip
    assert one.fraction().item() == 0.5
    ablation = result(direction="noising", corrupted=None, method="mean ablation")
    assert torch.equal(ablation.effect(), ablation.values - ablation.clean)
    with pytest.raises(ValueError, match=r"mean ablation has no corrupted run .*use effect\(\)"):
        ablation.fraction()


def test_fraction_of_a_single_patch() -> None:
    one = sweep_result(
        torch.tensor([2.0, 2.0]), {}, clean=torch.tensor([3.0, 3.1]),
        corrupted=torch.tensor([1.0, 1.1]), pair_ids=torch.tensor([0, 1]), labels=["the patch"],
    )  # fmt: skip
    torch.testing.assert_close(one.fraction(), torch.tensor(0.525))


def test_fraction_in_both_directions() -> None:
    for direction, start, end in (("denoising", -2.0, 2.0), ("noising", 2.0, -2.0)):
        clean, corrupted = torch.full((4,), 2.0), torch.full((4,), -2.0)
        values = torch.tensor([start, 0.75 * start + 0.25 * end])[:, None].expand(2, 4)
        one = sweep_result(
            values, {"layer": range(2)}, clean=clean, corrupted=corrupted, direction=direction,
            pair_ids=torch.tensor([0, 0, 1, 1]),
        )  # fmt: skip
        torch.testing.assert_close(one.fraction(), torch.tensor([0.0, 0.25]))


def test_labels_and_table() -> None:
    one = result()
    assert one.labels == ["L0.pre at S2", "L0.pre at END", "L1.pre at S2", "L1.pre at END"]
    assert one.index_df["role"].tolist() == ["S2", "END"] * 2
    table = one.table()
    assert list(table.index) == one.labels
    wanted = ["layer", "role", "mean", "effect", "standard error over 15 pairs"]
    assert list(table.columns) == wanted
    assert table["effect"].tolist() == pytest.approx(one.effect().mean(-1).flatten().tolist())
    several = result(
        values=draw(3, 2, 2, 2), clean=draw(4, 2), corrupted=draw(5, 2),
        metric_names=["a", "b"], has_metric_axis=True,
    )  # fmt: skip
    assert several.table()["metric"].tolist() == ["a"] * 4 + ["b"] * 4
    assert several["b"].values.equal(several.values[1])
    assert several["b"].table()["mean"].tolist() == several.table()["mean"].tolist()[4:]
    named = sweep_result(
        draw(0, 2), {"edge": ["L0H1 to q of L1H0", "MLP0 to q of L1H0"]}, clean=draw(1),
        pair_ids=one.pair_ids,
    )  # fmt: skip
    assert named.labels == ["L0H1 to q of L1H0", "MLP0 to q of L1H0"]


@pytest.mark.parametrize(
    ("site", "cell", "expected"),
    [
        ("z", {"layer": 9, "head": 6}, "L9H6"),
        ("v", {"layer": 9, "role": "S2", "head": 6}, "v of L9H6 at S2"),
        ("mlp_out", {"layer": 0, "pos": 3}, "MLP0 at 3"),
        ("resid_mid", {"layer": 6, "role": "END"}, "L6.mid at END"),
        ("attn_out", {"layer": 6}, "L6.attn"),
        ("z", {"layer": 6}, "L6.z"),
    ],
)
def test_names_of_cells(site: str, cell: dict[str, int | str], expected: str) -> None:
    assert cell_label(site, cell) == expected


@pytest.mark.parametrize("several", [False, True])
def test_saving_and_loading(tmp_path: Path, several: bool) -> None:
    options: dict[str, Any] = {"corrupted": None, "direction": "noising"}
    if several:
        options = {
            "values": draw(3, 2, 2, 2).double(), "clean": draw(4, 2), "corrupted": draw(5, 2),
            "metric_names": ["a", "b"], "has_metric_axis": True,
        }  # fmt: skip
    one = result(**options)
    path = tmp_path / "sweep.safetensors"
    one.save(path)
    back = SweepResult.load(path)
    for name, value in vars(one).items():
        found = getattr(back, name)
        if isinstance(value, Tensor):
            assert found.dtype == value.dtype
            assert torch.equal(found, value)
        elif name == "index_df":
            assert found.equals(value)
        else:
            assert found == value
    assert back.table().equals(one.table())


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"values": torch.ones(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="not a saved SweepResult"):
        SweepResult.load(tmp_path / "weights.safetensors")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(ValueError, match="is no safetensors file"):
        SweepResult.load(tmp_path / "text")


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"do not fit 30 prompts and the axes"):
        result(axes={"layer": range(3)})
    with pytest.raises(ValueError, match="4 labels do not fit|3 labels do not fit"):
        result(labels=["a", "b", "c"])
    with pytest.raises(ValueError, match="needs the corrupted run"):
        result(corrupted=None)
    with pytest.raises(ValueError, match="direction must be"):
        result(direction="both")
