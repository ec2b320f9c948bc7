"""TransformerLens' own tests, run on this package through an adapter.

They are not kept here. With the source distribution of the installed version (``pip download
--no-deps --no-binary :all: transformer_lens==...``), unpacked outside this repository and named by
``TL_SDIST``, its tests of direct logit attribution and of patching are run; what does not
hold stands below with its reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

MODULES: dict[str, str] = {
    "attribution": "unit/tools/test_direct_logit_attribution.py",
    "final_norm": "unit/tools/test_direct_logit_attribution_final_norm.py",
    "patching": "unit/test_patching.py",
}

FORM = "a check of arguments that this package does not have, or has in other words"
ONE_LOGIT = "attribution is of a logit difference, not of one logit, and of prompts, not of a cache"
EXACT = "this package reads the final norm's weight and bias as they are, folded or not"
STACKED = "results of several sites are not stacked in one"

# What does not hold, and why it should not; all other tests must.
KNOWN: dict[str, str] = {
    "test_invalid_unit_raises": FORM,
    "test_missing_answer_tokens_raises": FORM,
    "test_requires_compatibility_mode": FORM,
    "test_rejects_hybrid_architecture": FORM,
    "test_supplied_cache_is_accepted_after_the_model_enters_training_mode": ONE_LOGIT,
    "test_dla_rejects_unfolded_final_norm": EXACT,
    "test_dla_rejects_unfolded_final_norm_bias": EXACT,
    "test_dla_rechecks_final_norm_after_weight_edit": EXACT,
    "test_prompt_path_rejects_a_readout_transform_it_cannot_see": "a PyTorch hook put on the "
    "unembedding is not compared with the attribution's sum here",
    "test_metric_shape_contract": FORM,
    "test_multiple_metrics_share_one_sweep": FORM,
    "test_baseline_effect_and_normalization": FORM,
    "test_every_helpers_stack_per_example_results_with_gqa_padding": STACKED,
    "test_stacked_by_pos_dataframe_labels_match_the_direct_pattern_sweep": STACKED,
    "test_stacked_gqa_dataframe_has_zero_rows_for_padded_heads": STACKED,
    "test_every_helpers_compute_the_baseline_once": STACKED,
    "test_scalar_baseline_by_pos_stack_matches_the_legacy_tensor": STACKED,
}


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_transformer_lens_own_tests_hold(module: str, tmp_path: Path) -> None:
    folder = os.environ.get("TL_SDIST")
    if not folder:
        pytest.skip("TL_SDIST names no unpacked source distribution of TransformerLens")
    shutil.copy(Path(folder) / "tests" / MODULES[module], tmp_path / f"test_{module}.py")
    subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(tmp_path),
            "--noconftest", "-p", "tests.transformer_lens_adapter", "-p", "no:cacheprovider",
            f"--junitxml={tmp_path / 'report.xml'}", str(tmp_path),
        ],
        env={**os.environ, "PYTHONPATH": os.getcwd()}, capture_output=True, check=False,
    )  # fmt: skip
    report = ElementTree.parse(tmp_path / "report.xml").getroot()
    held, failed = set(), {}
    for case in report.iter("testcase"):
        wrong = case.find("failure") if case.find("failure") is not None else case.find("error")
        if wrong is None:
            held.add(case.attrib["name"])
        else:
            failed[case.attrib["name"]] = (wrong.text or "")[-400:]
    print(f"{module}: {len(held)} hold, {len(failed)} do not")
    unknown = {name: text for name, text in failed.items() if name.split("[")[0] not in KNOWN}
    assert held
    assert not unknown
    assert not {name for name in held if name.split("[")[0] in KNOWN}, "take it out of KNOWN"
