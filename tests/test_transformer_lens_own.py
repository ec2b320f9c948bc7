"""TransformerLens' own tests, run on this package through an adapter.

They are not kept here. With the source distribution of the installed version (``pip download
--no-deps --no-binary transformer_lens transformer_lens==...``), unpacked outside this repository
and named by ``TL_SDIST``, its tests of direct logit attribution, the final norm, the logit lens and
patching are run (:mod:`transformer_lens_adapter`). What does not hold stands in :data:`KNOWN` with
its reason, to the letter: one more or one less turns this red.

Of 4.3.0's 102 tests 49 hold: of direct logit attribution 17 of 26, of the final norm 4 of 10, of
the logit lens 14 of 38 and 6 of 11 (of models), of patching 8 of 17; those of training mode are
among them. Of the others most ask for what is TransformerLens' alone (vectors of one's own read,
several sites in one result) or refuse what is computed here (norms that are not folded). Not run
are the 6 that download models of other kinds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path

import pytest

MODULES: dict[str, str] = {
    "attribution": "unit/tools/test_direct_logit_attribution.py",
    "attribution_of_models": "integration/model_bridge/test_direct_logit_attribution.py",
    "final_norm": "unit/tools/test_direct_logit_attribution_final_norm.py",
    "lens": "unit/tools/test_logit_lens.py",
    "lens_of_models": "integration/test_logit_lens.py",
    "patching": "unit/test_patching.py",
}

FORM = "it checks an argument that this package does not have, or has in other words"
MOCK = "the model is a mock that cannot be run"
FOLDING = "needed there, because the norm's weight and bias are read where they are, folded or not"
CACHE = "attribution runs its prompts; it does not read a cache that was made before"
VECTORS = "it reads vectors that the test makes: only the stream of a run is read here"
NORM = "it leaves the final norm out, or bends the stream before it"
CONSTANT = (
    "differences of logits have no zero: before the last entry logits are known up to a constant"
)
CAPPED = "capped logits are no sum of terms, and are refused"
STRICTER = "half a percent in float32 is more than rounding, and is refused here"
SEVERAL = "one sweep has one site and one metric: results of several are not put into one"
SETTER = "the test brings a function that sets activations; a sweep here has a site and axes"
BASELINE = "the run without a patch is always there, as SweepResult.corrupted and .clean"

KNOWN: dict[str, dict[str, str]] = {
    "attribution": {
        "test_invalid_unit_raises": MOCK,
        "test_missing_answer_tokens_raises": FORM,
        "test_requires_compatibility_mode": MOCK,
        "test_rejects_hybrid_architecture": MOCK,
        "test_supplied_cache_is_accepted_after_the_model_enters_training_mode": CACHE,
    },
    "attribution_of_models": {
        "test_non_compat_bridge_raises": FOLDING,
        "test_invalid_unit_raises": FORM,
        "test_missing_answer_tokens_raises": FORM,
        "test_missing_input_and_cache_raises": FORM,
    },
    "final_norm": {
        "test_dla_rejects_unfolded_final_norm[unfolded-LN]": FOLDING,
        "test_dla_rejects_unfolded_final_norm[unfolded-RMS]": FOLDING,
        "test_dla_rejects_unfolded_final_norm[none-LN]": FOLDING,
        "test_dla_rejects_unfolded_final_norm[none-RMS]": FOLDING,
        "test_dla_rejects_unfolded_final_norm_bias": FOLDING,
        "test_dla_rechecks_final_norm_after_weight_edit": FOLDING,
    },
    "lens": {
        "test_skipping_the_final_norm_does_not_reproduce_the_model": NORM,
        "test_cache_delegate_matches_function": CONSTANT,
        "test_layers_select_stack_entries": FORM,
        "test_lens_callable_is_applied_before_the_norm": NORM,
        "test_lens_rejects_ambiguous_inputs": FORM,
        "test_per_row_targets_broadcasting": FORM,
        "test_enable_grad_reaches_a_lens_translator": NORM,
        "test_arguments_are_validated_before_the_forward_pass": FORM,
        "test_prompt_path_tolerates_low_precision_sized_readout_error": STRICTER,
        "test_prompt_path_refuses_logits_narrower_than_w_u": FORM,
        "test_readout_on_final_residual_matches_model": VECTORS,
        "test_vocab_subset_is_a_gather_of_the_full_result": VECTORS,
        "test_target_ranks_are_full_vocabulary_competition_ranks": VECTORS,
        "test_top_k_matches_torch_topk": VECTORS,
        "test_chunking_does_not_change_results[1]": VECTORS,
        "test_chunking_does_not_change_results[3]": VECTORS,
        "test_chunking_does_not_change_results[1000]": VECTORS,
        "test_readout_rejects_bad_arguments": VECTORS,
        "test_norm_without_ln_final_component_raises": MOCK,
        "test_unknown_normalization_type_raises": MOCK,
        "test_encoder_decoder_and_headless_bridges_are_refused": MOCK,
        "test_shared_targets_reject_bool_and_empty": VECTORS,
        "test_tensor_targets_and_vocab_need_integer_dtypes": VECTORS,
        "test_empty_vectors_raise": VECTORS,
    },
    "lens_of_models": {
        "test_final_entry_reproduces_logits": NORM,
        "test_parity_with_the_documented_recipe": CONSTANT,
        "test_readout_matches_logits_and_chunking": VECTORS,
        "test_gemma2_softcap_is_applied": CAPPED,
        "test_hybrid_stack_reads_without_resid_mid": FORM,
    },
    "patching": {
        "test_metric_shape_contract": FORM,
        "test_multiple_metrics_share_one_sweep": SEVERAL,
        "test_baseline_effect_and_normalization": BASELINE,
        "test_flat_index_df_mode_keeps_examples": SETTER,
        "test_every_helpers_stack_per_example_results_with_gqa_padding": SEVERAL,
        "test_stacked_by_pos_dataframe_labels_match_the_direct_pattern_sweep": SEVERAL,
        "test_stacked_gqa_dataframe_has_zero_rows_for_padded_heads": SEVERAL,
        "test_every_helpers_compute_the_baseline_once": SEVERAL,
        "test_scalar_baseline_by_pos_stack_matches_the_legacy_tensor": SEVERAL,
    },
}
"""Which tests of a module do not hold, and why they should not."""


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_transformer_lens_own_tests_hold(module: str, tmp_path: Path) -> None:
    folder = os.environ.get("TL_SDIST")
    if not folder:
        pytest.skip("TL_SDIST names no unpacked source distribution of TransformerLens")
    assert Path(folder).name == f"transformer_lens-{version('transformer_lens')}"
    shutil.copy(Path(folder) / "tests" / MODULES[module], tmp_path / f"test_{module}.py")
    subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(tmp_path),
            "--noconftest", "-p", "tests.transformer_lens_adapter", "-p", "no:cacheprovider",
            "-m", "not slow", f"--junitxml={tmp_path / 'report.xml'}", str(tmp_path),
        ],
        env={**os.environ, "PYTHONPATH": os.getcwd()}, capture_output=True, check=False,
    )  # fmt: skip
    report = ElementTree.parse(tmp_path / "report.xml").getroot()
    held, failed = 0, {}
    for case in report.iter("testcase"):
        wrong = case.find("failure") if case.find("failure") is not None else case.find("error")
        if wrong is None:
            held += 1
        else:
            failed[case.attrib["name"]] = (wrong.text or "")[-400:]
    print(f"{module}: {held} hold, {len(failed)} do not")
    assert held
    unknown = {name: text for name, text in failed.items() if name not in KNOWN[module]}
    assert not unknown
    assert set(KNOWN[module]) == set(failed), "take it out of KNOWN"
