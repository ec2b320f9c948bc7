"""Running over a dataset: the same numbers however it is cut, and what cannot be run is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import metrics, runs
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.models import handbuilt, load_model
from tests import random_models

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def data(random_folder: Path) -> IOIDataset:
    return random_models.prompts(random_models.boot(random_folder))


@pytest.fixture
def own(random_folder: Path) -> TransformerBridge:
    """A model that a test may change."""
    return random_models.boot(random_folder)


POINTS = ["L0.pre", "L1.mid", "L2.post"]
RUNS: dict[str, Run] = {
    "activations_at_roles": lambda model, data, **k: runs.activations_at_roles(
        model, data, ("S1", "END"), POINTS, **k
    )["S1"],
    "activations_at": lambda model, data, **k: runs.activations_at(model, data, "S2", POINTS, **k),
    "logits_at": lambda model, data, **k: runs.logits_at(model, data, "S2", **k),
    "logit_diffs": runs.logit_diffs,
    "attention_of_pairs": lambda model, data, **k: runs.attention_of_pairs(
        model, data, [("END", "IO"), ("S2", "S1")], **k
    ),
    "attention_patterns": lambda model, data, **k: runs.attention_patterns(
        model, data, ["L1H0", "L2H2"], **k
    ),
}


def in_parts_of(model: TransformerBridge, data: IOIDataset, prompts: int) -> int:
    """Memory that holds so many prompts at once."""
    width = data.tokens.shape[1]
    for exponent in range(10, 40):
        for memory in range(2**exponent, 2 ** (exponent + 1), 2**exponent // 8):
            if runs.prompts_at_once(model, width, memory) == prompts:
                return memory
    raise AssertionError(f"no memory holds {prompts} prompts")


# --- the numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_parts_give_what_the_whole_gives(
    tiny: TransformerBridge, data: IOIDataset, name: str
) -> None:
    whole = RUNS[name](tiny, data)
    for memory in (1, in_parts_of(tiny, data, 5)):
        parts = RUNS[name](tiny, data, memory=memory, progress=False)
        torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)


def test_activations_are_those_of_each_prompt_alone(
    tiny: TransformerBridge, data: IOIDataset
) -> None:
    names = ["L1.mid", "blocks.1.attn.hook_z", "L2.post"]
    found = runs.activations_at(tiny, data, "S2", names)
    assert list(found) == names
    assert found["blocks.1.attn.hook_z"].shape == (len(data), 3, 8)
    for row in range(0, len(data), 4):
        _, cache = tiny.run_with_cache(data.tokens[row : row + 1, : int(data.lengths[row])])
        at = int(data.positions["S2"][row])
        torch.testing.assert_close(found["L1.mid"][row], cache["resid_mid", 1][0, at])
        torch.testing.assert_close(found[names[1]][row], cache["z", 1][0, at])
    alone = runs.activations_at(tiny, data, "S2", "L2.post")
    torch.testing.assert_close(alone, found["L2.post"])


def test_one_run_gives_the_activations_of_all_roles(
    tiny: TransformerBridge, data: IOIDataset
) -> None:
    names = ["L0.post", "blocks.1.attn.hook_z"]
    together = runs.activations_at_roles(tiny, data, ("END", "IO", "S2"), names)
    assert list(together) == ["END", "IO", "S2"]
    for role, found in together.items():
        wanted = runs.activations_at(tiny, data, role, names)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert runs.activations_at_roles(tiny, data, (), names) == {}
    with pytest.raises(ValueError, match="S3"):
        runs.activations_at_roles(tiny, data, ("END", "S3"), names)


def test_logits_and_their_difference_are_the_models(
    tiny: TransformerBridge, data: IOIDataset
) -> None:
    whole = tiny(data.tokens)
    for role in ("IO", "S2", "END"):
        found = runs.logits_at(tiny, data, role)
        torch.testing.assert_close(found, data.gather(whole, role), atol=1e-5, rtol=1e-5)
    wanted = metrics.logit_diff(whole, data, per_prompt=True)
    torch.testing.assert_close(runs.logit_diffs(tiny, data), wanted, atol=1e-5, rtol=1e-5)


def test_attention_is_the_caches(tiny: TransformerBridge, data: IOIDataset) -> None:
    _, cache = tiny.run_with_cache(data.tokens)
    pairs = [("END", "IO"), ("S2", "S1"), ("S1", "S2")]
    found = runs.attention_of_pairs(tiny, data, pairs)
    assert found.shape == (3, 3, 3, len(data))
    rows = torch.arange(len(data))
    for layer in range(3):
        for i, (query, key) in enumerate(pairs):
            wanted = cache["pattern", layer][rows, :, data.positions[query], data.positions[key]]
            torch.testing.assert_close(found[layer, :, i], wanted.T)
    assert (found[:, :, 2][:, :, data.positions["S1"] < data.positions["S2"]] == 0).all()
    by_head = runs.attention_patterns(tiny, data, [(1, 0), "L2H2"], "S2")
    assert list(by_head) == ["L1H0", "L2H2"]
    wanted = cache["pattern", 2][rows, 2, data.positions["S2"]]
    torch.testing.assert_close(by_head["L2H2"], wanted)


def test_gradients_flow_through_logits_at_positions(
    own: TransformerBridge, data: IOIDataset
) -> None:
    def require(stream: Tensor, hook: Any) -> Tensor:
        return stream.detach().requires_grad_(True)

    with own.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", require)]):
        logits = runs.logits_at_positions(own, data.tokens, data.positions["END"])
    assert logits.requires_grad
    assert not runs.logits_at(own, data).requires_grad


def test_hooks_on_the_model_take_effect_and_stay(own: TransformerBridge, data: IOIDataset) -> None:
    clean = runs.logit_diffs(own, data)
    with own.hooks(fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: 0 * z)]):
        ablated = runs.logit_diffs(own, data, memory=1)
        wanted = metrics.logit_diff(own(data.tokens), data, per_prompt=True)
    assert (ablated - clean).abs().max() > 1e-3
    torch.testing.assert_close(ablated, wanted, atol=1e-5, rtol=1e-4)


@dataclass(frozen=True)
class Shift:
    """An edit that only adds each prompt's own number to the stream."""

    by: Tensor

    def take(self, rows: Int[Tensor, " rows"]) -> Shift:
        return replace(self, by=self.by[rows])

    def hooks(self, model: TransformerBridge) -> runs.EditHooks:
        def add(stream: Tensor, hook: Any) -> Tensor:
            return stream * (1 + self.by[:, None, None])

        return runs.EditHooks([("blocks.1.hook_resid_pre", add)], [])


def hooks_on(model: TransformerBridge) -> int:
    return sum(len(point.fwd_hooks) for point in model.hook_dict.values())


@pytest.mark.parametrize("name", RUNS)
def test_edits_are_cut_as_the_prompts_are_and_come_off(
    own: TransformerBridge, data: IOIDataset, name: str
) -> None:
    edit = Shift(torch.linspace(-2, 2, len(data)))
    before = hooks_on(own)
    with own.hooks(fwd_hooks=runs.hooks_of(own, [edit])):
        whole = RUNS[name](own, data)
    parts = RUNS[name](own, data, edits=[edit], memory=1)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)
    assert hooks_on(own) == before

    def broken(part: IOIDataset) -> Tensor:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        runs.run_in_batches(own, data, broken, edits=[edit])
    assert hooks_on(own) == before


@pytest.mark.parametrize("together", [False, True], ids=["", "use_attn_in"])
def test_separate_inputs_leave_the_flags_as_they_were(
    own: TransformerBridge, data: IOIDataset, together: bool
) -> None:
    plain = own(data.tokens)
    own.set_use_attn_in(together)
    with pytest.raises(KeyError), runs.separate_inputs(own):  # noqa: PT012
        seen = own.run_with_cache(data.tokens)[1]
        assert seen["blocks.0.attn.hook_k_input"].shape[2] == own.cfg.n_heads
        raise KeyError
    assert own.cfg.use_attn_in == together
    assert not own.cfg.use_split_qkv_input and not own.cfg.use_hook_mlp_in
    own.set_use_attn_in(False)
    torch.testing.assert_close(own(data.tokens), plain)


def test_similar_lengths_come_together_and_order_is_kept() -> None:
    lengths = torch.tensor([9, 3, 9, 4, 3, 8])
    assert [part.tolist() for part in runs.in_parts(lengths, 10)] == [[0, 1, 2, 3, 4, 5]]
    parts = list(runs.in_parts(lengths, 2))
    assert [part.tolist() for part in parts] == [[1, 4], [3, 5], [0, 2]]
    values = [lengths[part] for part in parts]
    assert torch.equal(runs.in_order(values, parts), lengths)


def test_memory_says_how_many_prompts_run_together(tiny: TransformerBridge) -> None:
    few, many = (runs.prompts_at_once(tiny, 20, memory) for memory in (2**20, 2**22))
    assert 1 < few < many <= runs.MOST_TOKENS // 20
    assert runs.prompts_at_once(tiny, 20, 1) == 1
    assert runs.prompts_at_once(tiny, 20, 2**40) == runs.MOST_TOKENS // 20
    assert runs.prompts_at_once(tiny, 20, 2**22, kept=10**5) < many
    with pytest.raises(ValueError, match="memory must be a positive number of bytes"):
        runs.prompts_at_once(tiny, 20, 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_dtype_runs(dtype: torch.dtype) -> None:
    (model, exact), data = random_models.in_dtype(dtype, 8)
    loose = {torch.float64: 1e-9, torch.bfloat16: 0.3, torch.float16: 0.05}[dtype]
    for name, run in RUNS.items():
        found, wanted = run(model, data), run(exact, data)
        if not isinstance(found, dict):
            found, wanted = {name: found}, {name: wanted}
        for key, value in found.items():
            torch.testing.assert_close(value.double(), wanted[key], atol=loose, rtol=loose)
    kept = runs.activations_at(model, data, "END", "L1.pre").dtype
    assert kept == (torch.float64 if dtype == torch.float64 else torch.float32)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("where", ["bridge", "wrapped model", "one block"])
def test_training_mode_is_refused_wherever_it_hides(
    own: TransformerBridge, data: IOIDataset, name: str, where: str
) -> None:
    part = {
        "bridge": own,
        "wrapped model": own.original_model,
        "one block": own.original_model.transformer.h[1],
    }[where]
    part.train()
    with pytest.raises(ValueError, match="training mode"):
        RUNS[name](own, data)


@pytest.mark.parametrize("name", RUNS)
def test_wrong_things_are_refused_in_a_sentence(
    own: TransformerBridge, data: IOIDataset, name: str
) -> None:
    run = RUNS[name]
    for wrong, said in [
        (data.prompts, "a dataset, not a list of str"),
        (data.tokens, "a dataset, not a tensor of shape"),
        (own.tokenizer, "a dataset, not a "),
    ]:
        with pytest.raises(ValueError, match=said):
            run(own, wrong)
    with pytest.raises(ValueError, match="must be a TransformerBridge, .*not a Token"):
        run(own.tokenizer, data)
    with pytest.raises(ValueError, match="must be a TransformerBridge, .*not the text 'gpt2'"):
        run("gpt2", data)
    with pytest.raises(ValueError, match="memory must be a positive"):
        run(own, data, memory=0)


def test_another_tokenizers_prompts_are_refused(own: TransformerBridge, data: IOIDataset) -> None:
    other = load_model("ioi-mini", device="cpu", verbose=False)
    theirs = IOIDataset.generate(other.tokenizer, 4, seed=0)
    with pytest.raises(ValueError, match="made with another tokenizer"):
        runs.logit_diffs(own, theirs)
    with pytest.raises(ValueError, match="made with another tokenizer"):
        runs.logit_diffs(other, data)
    # A second copy of the same tokenizer is not another one.
    again = load_model("ioi-mini", device="cpu", verbose=False)
    torch.testing.assert_close(runs.logit_diffs(again, theirs), runs.logit_diffs(other, theirs))


def test_prompts_that_do_not_fit_are_refused(own: TransformerBridge) -> None:
    long = IOIDataset.generate(
        own.tokenizer, 2, names=handbuilt.NAMES, prefixes=["Then it rained." + " It rained." * 20]
    )
    for run in RUNS.values():
        with pytest.raises(ValueError, match="this model's context holds 64"):
            run(own, long)


def test_absent_roles_points_and_hooks_are_refused(
    own: TransformerBridge, data: IOIDataset
) -> None:
    with pytest.raises(ValueError, match="'S3' is not a role"):
        runs.activations_at(own, data, "S3", "L1.pre")
    with pytest.raises(ValueError, match="no point L5.pre; its 3 layers"):
        runs.activations_at(own, data, "S2", "L5.pre")
    with pytest.raises(ValueError, match="no hook 'blocks.9.hook_resid_pre'"):
        runs.activations_at(own, data, "S2", "blocks.9.hook_resid_pre")
    with pytest.raises(ValueError, match="There is no L0H4"):
        runs.attention_patterns(own, data, ["L0H4"])
    with pytest.raises(ValueError, match="heads is empty"):
        runs.attention_patterns(own, data, [])
    lacking = data[:]
    lacking.positions["S2"] = lacking.positions["S2"].clone()
    lacking.positions["S2"][3] = -1
    for name in ("activations_at", "logits_at", "attention_of_pairs"):
        with pytest.raises(ValueError, match="Prompt 3 has no S2"):
            RUNS[name](own, lacking)


@pytest.mark.parametrize("point", ["L5", "6.mid", "L1.middle", "L-1.pre", "", 3])
def test_a_text_that_is_no_point_is_refused(point: Any) -> None:
    with pytest.raises(ValueError, match="not a point of the residual stream"):
        runs.parse_point(point)


def test_points_come_in_order(tiny: TransformerBridge, tmp_path: Path) -> None:
    points = runs.residual_points(tiny)
    assert points == ["L0.pre", "L0.mid", "L1.pre", "L1.mid", "L2.pre", "L2.mid", "L2.post"]
    parallel = random_models.boot(random_models.save(tmp_path, "pythia"))
    assert runs.residual_points(parallel) == ["L0.pre", "L1.pre", "L1.post"]
    few = random_models.prompts(parallel)
    assert len(runs.activations_at(parallel, few, "S2", runs.residual_points(parallel))) == 3
    with pytest.raises(ValueError, match="none has a hook_resid_mid"):
        runs.point_hook(parallel, "L0.mid")
