"""The slow path's peak memory: what `memory=` says, not what all logits of all prompts take."""

from __future__ import annotations

import ctypes
import gc
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ioi_helpers import ablation, circuits, patching, path_patching, runs
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.models import handbuilt
from tests import random_models

MIB = 2**20
N_PROMPTS, BUDGET, VOCABULARY = 160, 64 * MIB, 50_257
SLACK = 48 * MIB
"""What one run takes besides: copies of the unembedding, the allocator's own."""


def _jobs(model: Any, data: IOIDataset) -> dict[str, Callable[[], Any]]:
    """Each on the whole of the prompts with `memory=BUDGET`, by hooks."""
    other = data.abc()
    slow: dict[str, Any] = {"memory": BUDGET, "progress": False, "engine": "hooks"}
    points = [*runs.residual_points(model), "blocks.0.attn.hook_z"]
    nodes = [("L0H0", "S2"), ("L1H1", "END")]
    return {
        "patching": lambda: patching.patch_sweep(model, data, other, "z", **slow),
        "patching, another metric": lambda: patching.patch_sweep(
            model, data, other, "resid_pre", ("layer", "role"), metric=_probability, **slow
        ),
        "ablation": lambda: ablation.ablation_sweep(model, data, reference=other, **slow),
        "path patching": lambda: path_patching.path_patch(
            model, data, other, "L0H1", ("L1H0", "v", "S2"), **slow
        ),
        "circuits": lambda: circuits.Circuits(
            model, data, other, engine="hooks", memory=BUDGET
        ).run(nodes),
        "activations": lambda: runs.activations_at(
            model, data, "S2", points, memory=BUDGET, progress=False
        ),
        "logit differences": lambda: runs.logit_diffs(model, data, memory=BUDGET, progress=False),
    }


def _probability(logits: torch.Tensor, data: Any, per_prompt: bool = True) -> torch.Tensor:
    tokens = data.io_tokens.to(logits.device)[:, None]
    return logits.log_softmax(dim=-1).gather(1, tokens)[:, 0].exp()


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def measure(folder: Path) -> dict[str, int]:
    """Bytes by which the process grew at its peak, for each job, and for all logits at once."""
    random_models.save(folder, "neox-serial", vocab_size=VOCABULARY)
    model = random_models.boot(folder)
    data = IOIDataset.generate(
        model.tokenizer, N_PROMPTS, names=handbuilt.NAMES, prefixes="bundled", seed=3
    )
    jobs = _jobs(model, data)
    with torch.no_grad():
        jobs["everything at once"] = lambda: model(data.tokens)
        peaks = {}
        for name, job in jobs.items():
            gc.collect()
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # give back what earlier jobs had
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            before = _status("VmRSS")
            job()
            peaks[name] = _status("VmHWM") - before
    return peaks


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's peak anew"
)
def test_the_slow_path_keeps_to_its_memory(tmp_path: Path) -> None:
    """In a process of its own, as a process does not give back what it once had."""
    said = subprocess.run(
        [sys.executable, "-m", "tests.test_memory", str(tmp_path)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    peaks: dict[str, int] = json.loads(said.splitlines()[-1])
    print({name: f"{peak / MIB:.0f} MiB" for name, peak in peaks.items()})
    all_logits = peaks.pop("everything at once")
    assert all_logits > 4 * (BUDGET + SLACK)
    for name, peak in peaks.items():
        assert peak < BUDGET + SLACK, f"{name}: {peak / MIB:.0f} MiB"


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
