"""The benchmarks still run, on a small model and a small problem; how fast is not looked at."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest
from transformers import GPT2Config

from benchmarks import (
    families_speed,
    gpu_speed,
    lrqp_speed,
    patching_speed,
    path_patching_speed,
)
from ioi_helpers.bundled import bundled_folder

pytestmark = pytest.mark.slow


def test_patching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patching_speed, "GPT2Config", partial(GPT2Config, n_embd=48, n_head=4))
    folder, output = str(bundled_folder("ioi-mini")), tmp_path / "speed"
    arguments = ["--model-folder", folder, "--quick", "--threads", "1", "--output", str(output)]
    arguments += ["--sites", "z", "pattern", "resid_pre", "--corruptions", "swap_order"]
    monkeypatch.setattr(sys, "argv", ["patching_speed.py", *arguments])
    patching_speed.main()
    report = json.loads(output.with_suffix(".json").read_text())
    assert {row["site"] for row in report["sweeps"]} == {"z", "pattern", "resid_pre"}
    assert all(row["largest_difference"] < 1e-4 for row in report["sweeps"])
    assert output.with_suffix(".md").read_text().count("\n") > 20


def test_families(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = families_speed.configs()
    for config in small.values():
        config.hidden_size, config.num_hidden_layers, config.intermediate_size = 48, 2, 96
        config.num_attention_heads, config.max_position_embeddings = 4, 64
        config.head_dim = 12
        if hasattr(config, "num_key_value_heads"):
            config.num_key_value_heads = 2
    monkeypatch.setattr(families_speed, "configs", lambda: small)
    folder, output = str(bundled_folder("ioi-mini")), tmp_path / "speed"
    arguments = ["--model-folder", folder, "--threads", "1", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["families_speed.py", "--shares", "4", *arguments])
    families_speed.main()
    report = json.loads(output.with_suffix(".json").read_text())
    assert len(report["sweeps"]) == sum(map(len, families_speed.SITES.values()))
    for row in report["sweeps"]:
        assert row["largest_difference"] < 0.01 * row["largest_effect"]
    assert output.with_suffix(".md").read_text().count("\n") > 10


def small_path_patching(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """GPT-2 with all layers and heads, but narrow, and how both benchmarks of it are started."""
    small = partial(GPT2Config, n_embd=48, n_head=12)
    monkeypatch.setattr(path_patching_speed, "GPT2Config", small)
    return ["--model-folder", str(bundled_folder("ioi-mini")), "--quick", "--threads", "1"]


def test_path_patching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, output = small_path_patching(monkeypatch), tmp_path / "speed"
    monkeypatch.setattr(
        sys, "argv", ["path_patching_speed.py", *arguments, "--output", str(output)]
    )
    path_patching_speed.main()
    report = json.loads(output.with_suffix(".json").read_text())
    assert len(report["sets"]) == len(path_patching_speed.SETS)
    for row in report["sets"]:
        assert row["largest_difference"] < 1e-4
    assert output.with_suffix(".md").read_text().count("\n") > 10


def test_gpu_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, where both sides are the same model; a GPU's numbers are `test_cuda`'s."""
    arguments, output = small_path_patching(monkeypatch), tmp_path / "speed"
    arguments += ["--device", "cpu", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["gpu_speed.py", *arguments])
    gpu_speed.main()
    report = json.loads(output.with_suffix(".json").read_text())
    assert len(report["sweeps"]) == 2 * len(gpu_speed.SWEEPS)
    for row in report["sweeps"]:
        assert row["difference_from_cpu"] < 1e-4
        assert row["difference_from_transformer_lens"] < 1e-4
    assert output.with_suffix(".md").read_text().count("\n") > 20
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_speed.py", "--output", str(output)])
    with pytest.raises(SystemExit, match="no CUDA device here"):
        gpu_speed.main()


def test_lrqp(tmp_path: Path) -> None:
    sizes = {"width": 64, "rows": 20, "osqp-rows": 4, "direct-rows": 2, "train": 200, "rounds": 1}
    arguments = [word for key, value in sizes.items() for word in (f"--{key}", str(value))]
    output = tmp_path / "speed"
    lrqp_speed.main([*arguments, "--classes", "2", "3", "--threads", "1", "--output", str(output)])
    assert json.loads(output.with_suffix(".json").read_text())
    assert output.with_suffix(".md").read_text().count("\n") > 10
