"""Activations on disk and back, with the prompts they are of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ioi_helpers import load_model
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.runs import activations_at, load_activations, residual_points, save_activations


@pytest.fixture(scope="module")
def data() -> IOIDataset:
    model = load_model("ioi-plain", device="cpu", verbose=False)
    return IOIDataset.generate(model.tokenizer, 6, prefixes="bundled")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_saved_and_loaded_they_are_the_same(
    data: IOIDataset, tmp_path: Path, dtype: torch.dtype
) -> None:
    model = load_model("ioi-plain", device="cpu", dtype=dtype, verbose=False)
    found = activations_at(model, data, "S2", residual_points(model)[::-1])
    found["z"] = activations_at(model, data, "END", "blocks.0.attn.hook_z").to(dtype)
    save_activations(tmp_path / "a", found, data, model="ioi-plain", role="S2")
    again = load_activations(tmp_path / "a", data)
    assert list(again) == list(found)
    for name in found:
        assert again[name].dtype == found[name].dtype and torch.equal(again[name], found[name])


def test_of_other_prompts_they_are_refused(data: IOIDataset, tmp_path: Path) -> None:
    save_activations(tmp_path / "a", {"L0.pre": torch.ones(6, 3)}, data, role="S2")
    for other in (data.swap_subject(), data[:4], data[[1, 0, 2, 3, 4, 5]]):
        with pytest.raises(ValueError, match=r"of other prompts \(6 of them; role S2\)") as error:
            load_activations(tmp_path / "a", other)
        assert str(error.value).endswith(".")
    with pytest.raises(ValueError, match="are of 3 prompts, but there are 6"):
        save_activations(tmp_path / "a", {"L0.pre": torch.ones(3, 3)}, data)
    with pytest.raises(ValueError, match="must be a dataset"):
        save_activations(tmp_path / "a", {}, data.tokens)  # type: ignore[arg-type]


def test_a_file_of_another_kind_is_refused(data: IOIDataset, tmp_path: Path) -> None:
    data.save(tmp_path / "data")
    with pytest.raises(ValueError, match="holds IOIDataset 1, not a saved set of activations"):
        load_activations(tmp_path / "data", data)
