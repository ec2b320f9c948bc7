"""Where a machine has no GPU: what is left on the CPU while the model is elsewhere raises here.

The model is on a device that is none (:mod:`pretend_device`), the prompts are on the CPU, or on the
model's device. Everything that :mod:`test_cuda` tries on a GPU is tried here; of the ten faults
that the first run on a real GPU found there, this finds the same ten, and no others.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import load_model
from ioi_helpers.dataset import IOIDataset
from notebooks.tools.gpt2.measurements import MEASUREMENTS, estimated
from tests import pretend_device, test_cuda, test_gpt2_circuit, test_rewritten_models
from tests.house import REPOSITORY
from tests.pretend_device import DEVICE

pytestmark = pytest.mark.skipif(
    not pretend_device.possible(), reason="this PyTorch takes no device from Python"
)

Measurement = Callable[[TransformerBridge], Any]
Two = Callable[[Tensor, Tensor], Any]
REFUSED: dict[str, Two] = {
    "a sum": lambda there, here: there + here,
    "a sum, written": lambda there, here: here.add_(there),
    "a number there": lambda there, here: here * there[0],
    "a product": lambda there, here: torch.einsum("a,a->", there, here),
    "a matrix": lambda there, here: there[:, None] @ here[None],
    "put together": lambda there, here: torch.cat([there, here]),
    "put together, numbers": lambda there, here: torch.stack([there[0], here[0]]),
    "an index there": lambda there, here: here[there.long()],
    "a mask there": lambda there, here: here[there > 1],
    "a place there": lambda there, here: here.__setitem__(there.long(), 0.0),
    "values at places": lambda there, here: there.__setitem__([1, 2], here[:2]),
    "a choice": lambda there, here: torch.where(here > 1, there, 0.0),
    "gathered": lambda there, here: there.gather(0, here.long()),
    "rows": lambda there, here: there.index_select(0, here.long()),
    "an embedding": lambda there, here: torch.embedding(there[:, None], here.long()),
    "filled": lambda there, here: there.masked_fill(here > 1, 0.0),
    "searched": lambda there, here: torch.isin(there, here),
    "NumPy": lambda there, here: there.numpy(),
    "drawn by the CPU's generator": lambda there, here: torch.randn(
        2, device=there.device, generator=torch.Generator()
    ),
}
ALLOWED: dict[str, Two] = {
    "a number here": lambda there, here: there * here[2],
    "an index here": lambda there, here: there[here.long()],
    "a mask here": lambda there, here: there[here > -1],
    "a place here": lambda there, here: there.clone().index_put_((here.long(),), there),
    "copied there": lambda there, here: there.clone().copy_(here),
    "copied into a slice": lambda there, here: _with_slice(there, here),
    "moved": lambda there, here: here.to(there) + here.to(DEVICE),
    "made there": lambda there, here: (
        torch.arange(3, device=DEVICE) + torch.zeros_like(there) + torch.tensor([1], device=DEVICE)
    ),
    "of numbers there": lambda there, here: torch.tensor([there[0], there[1]], device=DEVICE),
    "drawn there": lambda there, here: torch.randn(2, device=DEVICE),
    "a gradient": lambda there, here: _gradient(there),
}


def _with_slice(there: Tensor, here: Tensor) -> Tensor:
    there = there.clone()
    there[1:] = here[1:]
    return there


def _gradient(there: Tensor) -> Tensor:
    x = there.clone().requires_grad_()
    (x[1:].square().sum() * torch.tensor(2.0)).backward()
    assert x.grad is not None and x.grad.tolist() == [0.0, 4.0, 8.0]
    return x.grad


COSTLY = ("patch_sweep, by hooks", "patch_sweep pattern, by hooks", "ablation_sweep, by hooks")
CASES = {**test_cuda.CASES, "check-gpt2, by gradients": lambda model: estimated(model, "z")}
LONG = ("edges.", "circuit.", "paper.minimality", "paper.adversarial", "removal.total_effect")
NUMBERS = {name: one for name, one in MEASUREMENTS.items() if not name.startswith(LONG)}
"""Of check-gpt2, on a model of 12 layers of 12 heads, but for what would take many minutes."""


def what_went_wrong(tries: dict[str, Measurement], model: TransformerBridge) -> dict[str, str]:
    """Of each, the error; empty where there was none."""
    found = {}
    for name, one in tries.items():
        try:
            one(model)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
        else:
            found[name] = ""
    return found


def in_a_process_of_its_own(kind: str, folder: str) -> None:
    """Try all of one kind, and print what went wrong."""
    pretend_device.register()
    torch.set_num_threads(1)
    if kind == "check-gpt2":
        moved, tries = pretend_device.moved(test_gpt2_circuit.small(Path(folder))), NUMBERS
    else:
        moved = pretend_device.moved(load_model("ioi-mini", device="cpu", verbose=False))
        tries = {name: CASES[name] for name in CASES if (name in COSTLY) == (kind == "costly")}
        if kind == "prompts there":
            _put_prompts_there()
        elif kind == "often":
            tries |= {name: partial(_rule, rule) for name, rule in {**REFUSED, **ALLOWED}.items()}
    print("\n" + json.dumps(what_went_wrong(tries, moved)))


def _rule(rule: Two, model: TransformerBridge) -> None:
    found = rule(torch.arange(3.0, device=DEVICE), torch.arange(3.0))
    assert type(found) is pretend_device.PretendTensor
    assert found.device == torch.device(DEVICE)


def _put_prompts_there() -> None:
    def there(make: Callable[[TransformerBridge], IOIDataset]) -> Any:
        return lambda model: make(model).to(model.cfg.device)

    for name in ("few", "many"):
        moved = there(getattr(test_rewritten_models, name))
        setattr(test_rewritten_models, name, moved)
        setattr(test_cuda, name, moved)


@cache
def tried(kind: str, folder: str = "") -> dict[str, str]:
    code = f"from tests import test_pretend_device as t; t.in_a_process_of_its_own{kind, folder}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_gpu_refuses(name: str) -> None:
    assert tried("often")[name].startswith(("RuntimeError: ", "TypeError: "))


@pytest.mark.parametrize("name", ALLOWED)
def test_what_a_gpu_takes(name: str) -> None:
    assert tried("often")[name] == ""


def slow(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", [*(name for name in CASES if name not in COSTLY), *slow(COSTLY)])
def test_prompts_on_the_cpu(name: str) -> None:
    assert tried("costly" if name in COSTLY else "often")[name] == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in COSTLY])
def test_prompts_on_the_models_device(name: str) -> None:
    assert tried("prompts there")[name] == ""


@pytest.mark.slow
@pytest.mark.skipif(not test_gpt2_circuit.SKELETON.is_dir(), reason="GPT-2's tokenizer is not here")
@pytest.mark.parametrize("name", NUMBERS)
def test_check_gpt2(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "twelve-by-twelve-there"
    assert tried("check-gpt2", str(folder))[name] == ""
