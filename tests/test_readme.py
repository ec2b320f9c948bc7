"""What README says of the code is true: its example runs, its table of models holds."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ioi_helpers import ablation, attribution, edits, heads, patching, runs
from tests import random_models
from tests.house import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
NAMES = {
    "GPT-2": "gpt2",
    "GPT-Neo": "gpt-neo",
    "OPT": "opt",
    "GPT-NeoX": "neox-serial",
    "Pythia": "pythia",
    "GPT-J": "gpt-j",
    "Llama": "llama",
}


def test_the_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IOI_MODEL", "ioi-mini")
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    known: dict[str, Any] = {}
    exec(example, known)
    assert known["model"].ioi_name == "ioi-mini"
    assert len(known["data"]) == 100


def table_of_models() -> dict[str, tuple[str, str]]:
    """README's table: architecture -> (what it says of sweeps and edits, of attribution)."""
    section = README.partition("### Other models")[2].partition("\n## ")[0]
    found = {}
    for models, sweeps, parts in re.findall(r"^\| (\S.*?) \| (.*?) \| (.*?) \|$", section, re.M):
        for name in re.findall(r"GPT-NeoX|GPT-Neo|GPT-2|GPT-J|OPT|Pythia|Llama", models):
            found[NAMES[name]] = (sweeps, parts)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("architecture", random_models.ARCHITECTURES)
def test_the_table_of_models_holds(architecture: str, tmp_path: Path) -> None:
    sweeps, parts = table_of_models()[architecture]
    model = random_models.boot(random_models.save(tmp_path, architecture))
    data = random_models.prompts(model)
    other = data.swap_order()

    def works(*calls: Callable[[], object]) -> list[bool]:
        done = []
        for call in calls:
            try:
                call()
            except ValueError:  # a refusal; anything else fails the test
                done.append(False)
            else:
                done.append(True)
        return done

    def patched(site: str, engine: Any = "auto") -> Callable[[], object]:
        axes = ("layer", "role" if site.startswith("resid") else "head")
        return lambda: patching.patch_sweep(
            model, data, other, site, axes, engine=engine, progress=False
        )

    def edited() -> None:
        stream = runs.activations_at(model, data, "S2", "blocks.1.hook_resid_pre")
        edit = edits.residual_edit(data, "S2", "L1.pre", torch.zeros_like(stream))
        edits.logit_diffs_and_kl(model, data, {"zero": [edit]})

    everywhere = [
        patched("z"),
        patched("resid_pre"),
        patched("pattern"),
        lambda: ablation.ablation_sweep(model, data, how="zero", progress=False),
        edited,
    ]
    assert all(works(*everywhere)) and sweeps.startswith("yes")
    assert works(patched("z", "fast")) == ["fast" in sweeps]
    assert works(patched("resid_mid")) == [architecture not in ("pythia", "gpt-j")]
    expected = {"yes": True, "refused": False}[parts]
    assert (
        works(
            lambda: attribution.head_attribution(model, data),
            lambda: attribution.logit_lens(model, data),
            lambda: heads.head_table(model, data, progress=False),
        )
        == [expected] * 3
    )
