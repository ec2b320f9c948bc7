"""Every public function of a model, and both engines, on a GPU as on the CPU.

What is measured is the table of `test_rewritten_models`, so that a new function is tried on a GPU
as well. Numbers agree within its rounding, 2e-4 absolute and relative, without TF32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import ablation, load_model, patching, path_patching
from tests.test_rewritten_models import MEASUREMENTS, differences, few, late

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

# By hooks, which every architecture takes that the equations do not cover.
BY_HOOKS: dict[str, Callable[[TransformerBridge], Any]] = {
    "patch_sweep": lambda m: patching.patch_sweep(
        m, few(m), few(m).swap_subject(), "z", ("layer", "head"), engine="hooks", progress=False
    ),
    "patch_sweep pattern": lambda m: patching.patch_sweep(
        m, few(m), few(m).swap_subject(), "pattern", ("layer", "head"), engine="hooks",
        progress=False,
    ),
    "ablation_sweep": lambda m: ablation.ablation_sweep(
        m, few(m), how="mean", reference=few(m).abc(), engine="hooks", progress=False
    ),
    "ablation_effects": lambda m: ablation.ablation_effects(
        m, few(m), late(m, (2, 1)), how="zero", engine="hooks"
    ),
    "path_sweep": lambda m: path_patching.path_sweep(
        m, few(m), senders=late(m, (2, 4), (4, 4), (1, 0)), engine="hooks", progress=False
    ),
}  # fmt: skip
CASES = {**MEASUREMENTS, **{f"{name}, by hooks": f for name, f in BY_HOOKS.items()}}


@cache
def model(device: str) -> TransformerBridge:
    torch.backends.cuda.matmul.allow_tf32 = False
    return load_model("ioi-mini", device=device, verbose=False)


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_the_same_on_a_gpu(name: str) -> None:
    assert differences(CASES[name](model("cuda")), CASES[name](model("cpu"))) == []
