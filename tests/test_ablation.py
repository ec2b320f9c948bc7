"""Ablation replaces what it says, finds what was built by hand, and leaves no trace."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import load_model, metrics, runs
from ioi_helpers.ablation import ablate, ablation_effects, ablation_sweep, keep_runs
from ioi_helpers.ablation.components import require_components
from ioi_helpers.ablation.context import find_prompts
from ioi_helpers.attribution import head_attribution
from ioi_helpers.bundled import BUNDLED
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.graph import Circuit
from ioi_helpers.heads import heads_of_class, parse_head
from ioi_helpers.models import handbuilt
from ioi_helpers.patching import SweepResult
from tests import random_models
from tests.test_forward import random_model

TRAINED = sorted(BUNDLED)
HOW = ("zero", "mean", "resample")


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> TransformerBridge:
    return random_model(tmp_path_factory.mktemp("random"))


@pytest.fixture(scope="module")
def unfolded(tmp_path_factory: pytest.TempPathFactory) -> TransformerBridge:
    return random_model(tmp_path_factory.mktemp("unfolded"), fold=False)


@pytest.fixture(scope="module", params=["hand-built", "random", "not folded", *TRAINED])
def model(
    request: pytest.FixtureRequest,
    built: TransformerBridge,
    random: TransformerBridge,
    unfolded: TransformerBridge,
) -> TransformerBridge:
    own = {"hand-built": built, "random": random, "not folded": unfolded}
    if request.param in own:
        return own[request.param]
    return load_model(request.param, device="cpu", verbose=False)


def prompts_for(model: TransformerBridge, n: int = 8, **options: Any) -> IOIDataset:
    options = {"prefixes": "bundled", "seed": 1, **options}
    return IOIDataset.generate(model.tokenizer, n, **options)


@pytest.fixture(scope="module")
def data(built: TransformerBridge) -> IOIDataset:
    """Prompts of different lengths for the hand-built model."""
    data = prompts_for(built)
    assert data.lengths.unique().numel() > 1
    return data


def diffs(model: TransformerBridge, data: IOIDataset) -> Tensor:
    return metrics.logit_diff(model(data.tokens), data, per_prompt=True)


def hooks_on(model: TransformerBridge) -> int:
    points = model.hook_dict.values()
    return sum(len(point.fwd_hooks) + len(point.bwd_hooks) for point in points)


def component_sets(model: TransformerBridge) -> list[list[Any]]:
    last = model.cfg.n_layers - 1
    return [
        ["L0H1"],
        ["MLP0"],
        [(f"L{last}H0", "END")],
        [("MLP1", "S2")],
        [("L0H0", "S1+1"), "L1H2", (f"MLP{last}", "END"), (f"L{last}H1", "END")],
    ]


# --- what is replaced ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", HOW)
def test_only_what_is_ablated_changes_and_to_what_it_should(
    random: TransformerBridge, how: str
) -> None:
    data = prompts_for(random)
    reference = data.abc()
    name, layer, head = "blocks.1.attn.hook_z", 1, 2
    _, clean = random.run_with_cache(data.tokens)
    _, other = random.run_with_cache(reference.tokens)
    with ablate(random, {(f"L{layer}H{head}", "S2")}, how, reference=reference, data=data):
        _, ablated = random.run_with_cache(data.tokens)
    rows, at = torch.arange(len(data)), data.positions["S2"]
    expected = clean[name].clone()
    if how == "zero":
        expected[rows, at, head] = 0
    else:
        own = other[name][rows, at, head]
        if how == "mean":
            groups = data.groups("template and order").values()
            for group in groups:
                own[group] = own[group].mean(dim=0)
        expected[rows, at, head] = own
    real = data.attention_mask.bool()
    torch.testing.assert_close(ablated[name][real], expected[real], atol=1e-5, rtol=1e-5)


def test_whole_head_mean_is_that_of_the_template_and_position(random: TransformerBridge) -> None:
    """Without prefixes, where prompts of a template are equally long, that is the paper's mean."""
    data = prompts_for(random, 40, prefixes=None, templates=["Then, [A] and [B] met. [B] spoke to"])
    assert data.lengths.unique().numel() == 1
    reference = data.abc()
    _, other = random.run_with_cache(reference.tokens)
    z = other["blocks.2.attn.hook_z"][:, :, 3]
    with ablate(random, "L2H3", reference=reference):
        _, ablated = random.run_with_cache(data.tokens)
    for group in data.groups("order").values():
        found = ablated["blocks.2.attn.hook_z"][group][:, :, 3]
        torch.testing.assert_close(found, z[group].mean(0).expand_as(found), atol=1e-5, rtol=1e-5)


def test_equal_places_share_a_mean_although_lengths_differ(random: TransformerBridge) -> None:
    """Two prefixes of unequal length: places are counted from the nearest role before."""
    templates = ["Then, [A] and [B] met. [B] spoke to"]
    prefixes = ["It was late.", "The rain had stopped."]
    data = prompts_for(random, 24, prefixes=prefixes, templates=templates)
    assert data.lengths.unique().numel() == 2
    reference = data.abc()
    _, other = random.run_with_cache(reference.tokens)
    z = other["blocks.1.hook_mlp_out"]
    with ablate(random, "MLP1", reference=reference):
        _, ablated = random.run_with_cache(data.tokens)
    found = ablated["blocks.1.hook_mlp_out"]
    rows = torch.arange(len(data))
    groups = data.groups("order").values()
    for at in (data.positions["S2"] + 1, data.positions["IO"], torch.zeros_like(rows)):
        for group in groups:
            mean = z[group, at[group]].mean(dim=0)
            values = found[group, at[group]]
            torch.testing.assert_close(values, mean.expand_as(values), atol=1e-5, rtol=1e-5)


def test_padding_of_the_reference_is_nobodys_mean(random: TransformerBridge) -> None:
    """Without BOS the padding of a short prompt could pass for the first token of a long one."""
    templates = ["Then, [A] and [B] met. [B] spoke to"]
    options: dict[str, Any] = {"templates": templates, "prepend_bos": False}
    both = prompts_for(random, 40, prefixes=["It was late.", "The rain had stopped."], **options)
    short = both.lengths == both.lengths.min()
    abba = torch.tensor([order == "ABBA" for order in both.orders])
    reference = both[(short | abba).nonzero()[:, 0]].abc()
    data = both[(~short & ~abba).nonzero()[:, 0]]
    assert len(data) > 0 and int(data.lengths[0] - both.lengths.min()) == 1
    with (
        pytest.raises(ValueError, match="at the place of its token 0"),
        ablate(random, "L1H1", reference=reference, data=data),
    ):
        pass


def test_any_rows_of_the_data_may_be_run(model: TransformerBridge) -> None:
    data = prompts_for(model)
    reference = data.abc()
    heads: Any = {("L1H1", "S2"), "L0H0"}
    with ablate(model, heads, "resample", reference=reference):
        whole = diffs(model, data)
        order = torch.tensor([5, 0, 0, 3])
        some = metrics.logit_diff(model(data.tokens[order]), data[order], per_prompt=True)
        one = metrics.logit_diff(
            model(data.tokens[2:3, : int(data.lengths[2])]), data[2:3], per_prompt=True
        )
    torch.testing.assert_close(some, whole[order], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one, whole[2:3], atol=1e-4, rtol=1e-4)


def test_equal_prompts_in_order_keep_their_own_partners(data: IOIDataset) -> None:
    twice = data[[0, 1, 0, 1]]
    assert find_prompts(twice, twice.tokens) == [[0], [1], [2], [3]]
    assert find_prompts(twice, twice.tokens[2:]) == [[0, 2], [1, 3]]
    assert find_prompts(twice, twice.tokens[[1, 1]]) == [[1, 3], [1, 3]]
    assert find_prompts(data, data.tokens[[3, 1], :-3]) == [[3], [1]]


def test_a_part_with_equal_prompts_is_refused_where_it_matters(data: IOIDataset) -> None:
    """Resampled from two partners it does; a mean is the same for both."""
    model = load_model("ioi-mini", device="cpu", verbose=False)
    some = IOIDataset.generate(model.tokenizer, 4, paired=False, seed=5)
    twice = some[[*range(4), *range(4)]]
    reference = twice.abc()
    head = ("L2H4", "END")
    with ablate(model, head, "resample", reference=reference):
        runs.logit_diffs(model, twice)
        with pytest.raises(ValueError, match="prompts 0 and 4 begin alike.*gets another value"):
            model(twice.tokens[4:])
        with pytest.raises(ValueError, match="run all prompts in order"):
            model(twice.tokens[[2, 1]])
    with ablate(model, head, "mean", reference=reference):
        whole, part = (metrics.logit_diff(model(d.tokens), d, True) for d in (twice, twice[4:]))
    torch.testing.assert_close(part, whole[4:], atol=1e-4, rtol=0)


def test_contexts_can_be_nested(random: TransformerBridge) -> None:
    data = prompts_for(random)
    options: dict[str, Any] = {"how": "mean", "reference": data.abc()}
    heads = [("L0H1", "END"), ("L1H3", "S2")]
    with ablate(random, heads, **options):
        together = diffs(random, data)
    with ablate(random, heads[:1], **options), ablate(random, heads[1:], **options):
        nested = diffs(random, data)
    torch.testing.assert_close(nested, together)


def test_everything_resampled_from_itself_changes_nothing(model: TransformerBridge) -> None:
    data = prompts_for(model, 4)
    every = [f"L{i}H{j}" for i in range(model.cfg.n_layers) for j in range(model.cfg.n_heads)]
    every += [f"MLP{i}" for i in range(model.cfg.n_layers)]
    clean = diffs(model, data)
    with ablate(model, every, "resample", reference=data, data=data):
        torch.testing.assert_close(diffs(model, data), clean, atol=1e-4, rtol=1e-5)


# --- the model as before -------------------------------------------------------------------------


def test_the_model_is_as_before_also_after_an_error(random: TransformerBridge) -> None:
    data = prompts_for(random)
    clean, before = diffs(random, data), hooks_on(random)

    def fail_inside() -> None:
        with ablate(random, ["L0H0", ("L1H1", "END")], reference=data.abc()) as same:
            assert same is random
            assert hooks_on(random) > before
            assert not torch.allclose(diffs(random, data), clean)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail_inside()
    assert hooks_on(random) == before
    assert torch.equal(diffs(random, data), clean)


def test_an_error_of_the_run_itself_leaves_nothing(random: TransformerBridge) -> None:
    data = prompts_for(random)
    other = prompts_for(random, seed=9)
    clean, before = diffs(random, data), hooks_on(random)
    with (
        pytest.raises(ValueError, match="Prompt 0 of this run is not in the data"),
        ablate(random, ("L1H1", "END"), reference=data.abc()),
    ):
        random(other.tokens)
    assert hooks_on(random) == before
    assert torch.equal(diffs(random, data), clean)


def test_hooks_of_the_caller_stay(random: TransformerBridge) -> None:
    data = prompts_for(random)
    seen = []
    with random.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda x, hook: seen.append(1))]):
        with ablate(random, "L0H0", "zero"):
            random(data.tokens)
        random(data.tokens)
    assert len(seen) == 2


# --- the sweep -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", HOW)
def test_sweep_equals_hooks_on_every_prompt(model: TransformerBridge, how: str) -> None:
    data = prompts_for(model)
    options: dict[str, Any] = {"how": how, "reference": data.abc(), "memory": 2**18}
    fast, slow = (
        ablation_sweep(model, data, component_sets(model), engine=engine, **options)
        for engine in ("fast", "hooks")
    )
    torch.testing.assert_close(fast.values, slow.values, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(fast.baseline, diffs(model, data), atol=1e-4, rtol=1e-5)
    effect = fast.effect()
    assert effect.abs().amax(dim=-1).max() > 1e-3


@pytest.mark.parametrize("how", HOW)
def test_sweep_equals_hooks_without_bos(random: TransformerBridge, how: str) -> None:
    """Where BOS does not stand at position 0, a word does, and it is ablated as well."""
    data = prompts_for(random, prepend_bos=False)
    sets: list[Any] = [["L0H1"], ["MLP0"], ["L1H0", "MLP2"]]
    fast, slow = (
        ablation_sweep(random, data, sets, how=how, reference=data.abc(), engine=engine)
        for engine in ("fast", "hooks")
    )
    torch.testing.assert_close(fast.values, slow.values, atol=1e-4, rtol=1e-5)
    for i, one in enumerate(sets):
        with ablate(random, one, how, reference=data.abc(), data=data):
            inside = diffs(random, data)
        torch.testing.assert_close(fast.values[i], inside, atol=1e-4, rtol=1e-5)
    # A head at the first token alone: nothing else than what it attends to there is changed.
    first = torch.zeros(len(data), dtype=torch.long)
    name = "blocks.0.attn.hook_z"
    _, clean = random.run_with_cache(data.tokens)
    with ablate(random, "L0H1", "zero"):
        _, ablated = random.run_with_cache(data.tokens)
    rows = torch.arange(len(data))
    assert clean[name][rows, first, 1].abs().min() > 0
    assert not ablated[name][rows, first, 1].any()


def test_without_bos_the_first_token_is_ablated_as_well() -> None:
    """With BOS what stands at position 0 is the same in every prompt, and so is its own mean."""
    mini = load_model("ioi-mini", device="cpu", verbose=False)
    template = "Then, [B] and [A] went to the [PLACE], and [B] gave a [OBJECT] to [A]"
    data = prompts_for(mini, 24, prepend_bos=False, templates=template)
    assert len(data.tokens[:, 0].unique()) > 2
    options: dict[str, Any] = {"reference": data.abc()}
    sets = [["L0H1"], ["MLP0"]]
    fast, slow = (
        ablation_sweep(mini, data, sets, engine=engine, **options) for engine in ("fast", "hooks")
    )
    torch.testing.assert_close(fast.values, slow.values, atol=1e-4, rtol=1e-5)
    seen = []

    def read(z: Tensor, hook: Any) -> None:
        seen.append(z[:, 0, 1].clone())

    runs: list[AbstractContextManager[Any]] = [
        nullcontext(),
        ablate(mini, "L0H1", "mean", **options),
        ablate(mini, ("L0H1", "END"), "mean", **options),
    ]
    for run in runs:
        with run:
            mini.run_with_hooks(data.tokens, fwd_hooks=[("blocks.0.attn.hook_z", read)])
    clean, everywhere, at_end = seen
    assert (everywhere - clean).abs().max() > 1e-2
    assert torch.equal(at_end, clean)


@pytest.mark.parametrize("role", [None, "END", "S2"])
@pytest.mark.parametrize("what", ["heads", "mlps"])
def test_sweep_of_all_equals_hooks(random: TransformerBridge, what: str, role: str | None) -> None:
    data = prompts_for(random)
    options: dict[str, Any] = {"reference": data.abc(), "role": role}
    fast = ablation_sweep(random, data, what, engine="fast", **options)
    slow = ablation_sweep(random, data, what, engine="hooks", **options)
    torch.testing.assert_close(fast.values, slow.values, atol=1e-4, rtol=1e-5)
    assert fast.axis_names == (["layer", "head"] if what == "heads" else ["layer"])
    assert fast.values.shape[-1] == len(data)
    assert len(fast.to_dataframe()) == fast.values.numel()


def test_sweep_names_its_sets(random: TransformerBridge) -> None:
    data = prompts_for(random, 4)
    listed = ablation_sweep(random, data, [["L0H1", ("MLP1", "S2")]], how="zero", role="END")
    assert listed.labels == ["L0H1 at END + MLP1 at S2"]
    named = ablation_sweep(random, data, {"two": ["L0H1", "L1H1"]}, how="zero")
    assert named.labels == ["two"]
    assert named.effect().shape == (1, 4)


def test_sweep_finds_what_was_built(built: TransformerBridge) -> None:
    data = prompts_for(built, 40)
    sweep = ablation_sweep(built, data, reference=data.abc(), role="END")
    effect = sweep.effect().mean(dim=-1)
    named = dict(zip(sweep.labels, effect.flatten().tolist(), strict=True))
    found = {name for name, value in named.items() if abs(value) > 0.02}
    # The backup is asleep, so nothing is lost with it; earlier heads do not work at END.
    expected = {
        f"{head} at END"
        for head, role in handbuilt.HEAD_CLASSES.items()
        if role in ("s_inhibition", "name_mover", "negative_name_mover")
    }
    assert found == expected
    assert named["L3H2 at END"] > 1.0, "without the negative name mover the answer is clearer"


# --- the effects ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", HOW)
def test_effects_add_up_on_every_prompt(model: TransformerBridge, how: str) -> None:
    data = prompts_for(model, 10)
    last = model.cfg.n_layers - 1
    sets: list[Any] = [
        [(f"L{last - 1}H0", "END")],
        ["L0H1", ("MLP1", "S2"), (f"L{last}H1", "END")],
    ]
    for heads in sets:
        for engine in ("fast", "hooks"):
            found = ablation_effects(
                model, data, heads, how, reference=data.abc(), engine=engine, memory=2**18
            )
            total = sum(found.terms().values())
            torch.testing.assert_close(total, found.total, atol=1e-4, rtol=1e-5)
            frozen = found.direct + found.later_heads + found.later_mlps
            torch.testing.assert_close(frozen, found.frozen_total, atol=1e-4, rtol=1e-5)
            torch.testing.assert_close(frozen, found.direct + found.indirect)


@pytest.mark.parametrize("how", HOW)
def test_fast_effects_equal_those_of_hooks(model: TransformerBridge, how: str) -> None:
    data = prompts_for(model, 10)
    heads: Any = ["L0H1", ("MLP1", "S2"), (f"L{model.cfg.n_layers - 1}H1", "END")]
    options: dict[str, Any] = {"how": how, "reference": data.abc()}
    fast = ablation_effects(model, data, heads, engine="fast", **options)
    slow = ablation_effects(model, data, heads, engine="hooks", **options)
    for name in vars(fast):
        if name != "ablated_components":
            torch.testing.assert_close(
                getattr(fast, name), getattr(slow, name), atol=1e-4, rtol=1e-4, msg=name
            )


@pytest.mark.parametrize("how", HOW)
def test_from_kept_runs_everything_is_the_same(random: TransformerBridge, how: str) -> None:
    model, data = random, prompts_for(random, 10)
    heads: Any = ["L0H1", ("MLP1", "S2"), (f"L{model.cfg.n_layers - 1}H1", "END")]
    small: Any = {"memory": 2**19}  # in parts
    kept = keep_runs(model, data, data.abc(), **small)
    assert len(kept.parts) > 1
    alone: Any = {"how": how, "reference": data.abc()}
    with_kept = {**alone, "kept": kept}
    one, other = (ablation_effects(model, data, heads, **o, **small) for o in (alone, with_kept))
    for name in vars(one):
        if name != "ablated_components":
            assert torch.equal(getattr(one, name), getattr(other, name)), name
    one, other = (
        ablation_sweep(model, data, ["L0H1", heads], **o, **small) for o in (alone, with_kept)
    )
    assert torch.equal(one.values, other.values) and torch.equal(one.baseline, other.baseline)
    both = []
    for options in (alone, with_kept):
        with ablate(model, heads, data=data, **options):
            both.append(diffs(model, data))
    assert torch.equal(*both)


def test_kept_runs_of_something_else_are_not_taken(random: TransformerBridge) -> None:
    model = copy.deepcopy(random)
    data = prompts_for(model, 6)
    abc, others = data.abc(), prompts_for(model, 6, seed=4)
    last: Any = ("L2H0", "END")
    for kept in (keep_runs(model, data, abc), keep_runs(model, data)):
        for prompts, reference in ((data[:4], abc), (others, others.abc()), (data, abc[::-1])):
            one, other = (
                ablation_effects(model, prompts, last, reference=reference, kept=given)
                for given in (None, kept)
            )
            torch.testing.assert_close(one.clean, other.clean)
            torch.testing.assert_close(one.ablated, other.ablated)
    kept = keep_runs(model, data, abc)
    with pytest.raises(ValueError, match="kept runs are of another model"):
        ablation_effects(random, data, last, "zero", kept=kept)
    with ablate(model, "L0H1", "zero"):  # hooks on the model take part, and kept runs do not
        inside = ablation_sweep(model, data, [last], reference=abc, kept=kept)
        torch.testing.assert_close(inside.baseline, diffs(model, data))
        assert not keep_runs(model, data, abc).parts
    with torch.no_grad():
        model.blocks[0].attn.W_O.mul_(2)
        model.blocks[0].mlp.W_out.mul_(2)
    with pytest.raises(ValueError, match="or of this one before it was changed"):
        ablation_effects(model, data, last, "zero", kept=kept)


def test_double_precision_stays_double(random: TransformerBridge) -> None:
    model = copy.deepcopy(random).to(torch.float64, print_details=False)
    data = prompts_for(model, 4)
    heads: Any = ["L0H1", ("MLP1", "S2")]
    for engine in ("fast", "hooks"):
        found = ablation_effects(model, data, heads, reference=data.abc(), engine=engine)
        assert found.ablated.dtype == torch.float64
        gap = (sum(found.terms().values()) - found.total).abs().max()
        assert gap < 1e-9
        sweep = ablation_sweep(model, data, [heads], reference=data.abc(), engine=engine)
        torch.testing.assert_close(sweep.values[0], found.ablated)


def test_direct_effect_of_zero_ablation_is_minus_the_attribution(model: TransformerBridge) -> None:
    data = prompts_for(model)
    layer = model.cfg.n_layers - 2
    found = ablation_effects(model, data, (f"L{layer}H1", "END"), "zero")
    expected = head_attribution(model, data).per_prompt
    torch.testing.assert_close(found.attribution, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.direct, -expected[layer, 1], atol=1e-4, rtol=1e-4)
    assert (found.heads[: layer + 1].abs() < 1e-5).all(), "what comes before cannot change"
    assert (found.mlps[:layer].abs() < 1e-5).all()
    assert (found.ablated_attribution[layer, 1].abs() < 1e-6).all()


def test_backup_of_the_hand_built_model_is_found(built: TransformerBridge) -> None:
    data = prompts_for(built, 20)
    found = ablation_effects(built, data, ("L3H0", "END"), "zero")
    spread = found.heads.mean(dim=-1)
    layer, head = parse_head("L4H1")
    gain = handbuilt.COPY_STRENGTH["L4H1"] * handbuilt.ATTENTION_DIFFERENCE
    assert spread[layer, head] == pytest.approx(gain, abs=0.02)
    spread[layer, head] = 0
    assert spread.abs().max() < 1e-3, "and nobody else changes"
    loss = handbuilt.COPY_STRENGTH["L3H0"] * handbuilt.ATTENTION_DIFFERENCE
    assert found.direct.mean() == pytest.approx(-loss, abs=0.02)
    table = found.table()
    assert list(table.index) == [*found.terms(), "total"]
    assert list(table.columns) == ["mean", "standard error over 10 pairs"]
    expected = metrics.mean_and_stderr(found.total, data.pair_ids)
    assert table.loc["total"].tolist() == pytest.approx(expected[:2], rel=1e-4)


def test_heads_of_the_reference_circuit_are_found() -> None:
    """On ioi-mini: S-inhibition heads cost most at END, and the registered backups step in."""
    mini = load_model("ioi-mini", device="cpu", verbose=False)
    data = prompts_for(mini, 100, prefixes=None)
    reference = data.abc()
    sweep = ablation_sweep(mini, data, reference=reference, role="END")
    effect = sweep.effect().mean(dim=-1).flatten()
    lost_most = [sweep.labels[i].split()[0] for i in effect.argsort()[:2].tolist()]
    assert set(lost_most) <= set(heads_of_class(mini, "s_inhibition"))
    movers = heads_of_class(mini, "name_mover")
    direct = head_attribution(mini, data).values.flatten()
    top = mini.all_head_labels[int(direct.argmax())]
    assert top in movers
    found = ablation_effects(mini, data, (top, "END"), "mean", reference=reference)
    for name in heads_of_class(mini, "backup_name_mover"):
        layer, head = parse_head(name)
        change = metrics.mean_and_stderr(found.heads[layer, head], clusters=data.pair_ids)
        assert change.mean > 4 * change.stderr > 0
    assert found.total.mean() > found.direct.mean(), "less is lost than the head wrote"


def test_ablated_everywhere_is_ablated_at_end_too(model: TransformerBridge) -> None:
    """A head's mean at END is the same whether it is ablated there or everywhere."""
    data = prompts_for(model, 10)
    layer = model.cfg.n_layers - 2
    for engine in ("fast", "hooks"):
        everywhere, at_end = (
            ablation_effects(model, data, spec, "mean", reference=data.abc(), engine=engine)
            for spec in (f"L{layer}H0", (f"L{layer}H0", "END"))
        )
        assert everywhere.direct.abs().max() > 1e-3
        torch.testing.assert_close(everywhere.direct, at_end.direct, atol=1e-4, rtol=1e-4)
        assert not everywhere.heads[layer, 0].any()


def test_ablated_elsewhere_than_at_end_has_no_direct_effect(random: TransformerBridge) -> None:
    data = prompts_for(random)
    found = ablation_effects(random, data, ("L0H1", "S2"), reference=data.abc())
    assert torch.equal(found.direct, torch.zeros(len(data)))
    assert found.indirect.abs().max() > 1e-3


# --- other architectures -------------------------------------------------------------------------


def test_other_architectures_go_through_hooks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = random_models.boot(random_models.save(tmp_path, "gpt-j"), folded=False)
    data = prompts_for(other, 4)
    sweep = ablation_sweep(other, data, reference=data.abc(), role="END", progress=False)
    ablation_sweep(other, data, how="zero", progress=False)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 and "GPTJForCausalLM" in printed[0], "the notice comes once"
    assert sweep.values.shape == (2, 3, 4)
    assert sweep.effect().abs().max() > 1e-4
    with pytest.raises(ValueError, match="fast path cannot run this model"):
        ablation_sweep(other, data, reference=data.abc(), engine="fast")


def test_hooks_on_the_model_take_part(random: TransformerBridge) -> None:
    data = prompts_for(random)
    reference = data.abc()
    with ablate(random, "L0H1", "zero"):
        inside = ablation_sweep(random, data, [["L1H2"]], reference=reference)
        effects = ablation_effects(random, data, ("L1H2", "END"), reference=reference)
        alone = diffs(random, data)
    torch.testing.assert_close(inside.baseline, alone)
    torch.testing.assert_close(effects.clean, alone)
    torch.testing.assert_close(sum(effects.terms().values()), effects.total, atol=1e-4, rtol=1e-5)


def test_nested_ablations_take_values_of_the_whole_model_everywhere(tmp_path: Path) -> None:
    """Also on models that are run with hooks, where the outer one knows its prompts only."""
    model = random_models.boot(random_models.save(tmp_path, "gpt-j"))
    data = random_models.prompts(model)
    options: dict[str, Any] = {"how": "resample", "reference": data.abc()}
    nodes = [("L0H1", "S2"), ("L1H2", "END")]
    with ablate(model, nodes, **options):
        together = diffs(model, data)
    with ablate(model, nodes[:1], **options), ablate(model, nodes[1:], **options):
        torch.testing.assert_close(diffs(model, data), together)
    swept = ablation_sweep(model, data, [nodes], **options, memory=2**19)
    torch.testing.assert_close(swept.values[0], together, atol=1e-4, rtol=1e-4)
    effects = ablation_effects(model, data, nodes, **options, memory=2**19)
    torch.testing.assert_close(effects.ablated, together, atol=1e-4, rtol=1e-4)
    assert hooks_on(model) == 0


class Deaf(nn.Module):
    """In place of attention: none of its inner hooks are asked."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return x * 0.5, None


def test_ablations_that_do_not_arrive_are_refused(tmp_path: Path) -> None:
    model = random_model(tmp_path)
    data = prompts_for(model, 4)
    model.blocks[1].original_component.attn = Deaf().eval()
    says = r"written at blocks.1.attn.hook_z does not reach the run"
    with pytest.raises(ValueError, match=says), ablate(model, "L1H0", "zero"):
        pass
    with pytest.raises(ValueError, match=says):
        ablation_sweep(model, data, how="zero")
    with ablate(model, ["L0H0", "MLP1"], "zero"):
        model(data.tokens)


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heads", "says"),
    [
        ([], "nothing to ablate"),
        (set(), "nothing to ablate"),
        ("L9H9", r"There is no L9H9 in this model: it has 3 layers of 4 heads"),
        ("L0H4", r"There is no L0H4"),
        ("MLP3", r"There is no MLP3"),
        ({("L0H0", "S3")}, "Where S3 stands depends on the prompts"),
        ("9.9", "names neither a head nor an MLP"),
        ([(9, 9)], "There is no L9H9"),
        (7, "names neither a head nor an MLP"),
    ],
)
def test_unknown_components_are_refused(random: TransformerBridge, heads: Any, says: str) -> None:
    before = hooks_on(random)
    with pytest.raises(ValueError, match=says), ablate(random, heads, "zero"):
        pass
    assert hooks_on(random) == before


def test_a_role_that_the_prompts_do_not_have_is_refused(random: TransformerBridge) -> None:
    said = "'S3' is not a role of these prompts; use one of IO, S1"
    with (
        pytest.raises(ValueError, match=said),
        ablate(random, {("L0H0", "S3")}, "zero", data=prompts_for(random)),
    ):
        pass


def test_a_circuit_is_ablated_as_its_nodes(random: TransformerBridge) -> None:
    data = prompts_for(random)
    circuit = Circuit.of([("L1H2", "S2"), (0, 1), "MLP1"], name="some")
    assert [str(n) for n in require_components(random, circuit)] == ["L0H1", "L1H2 at S2", "MLP1"]
    options: dict[str, Any] = {"how": "mean", "reference": data.abc()}
    with ablate(random, circuit, **options):
        inside = diffs(random, data)
    with ablate(random, list(circuit), **options):
        torch.testing.assert_close(diffs(random, data), inside)
    swept = ablation_sweep(random, data, [circuit, circuit - ["MLP1"]], **options)
    torch.testing.assert_close(swept.values[0], inside, atol=1e-4, rtol=1e-4)
    assert swept.labels == ["L0H1 + L1H2 at S2 + MLP1", "L0H1 + L1H2 at S2"]
    effects = ablation_effects(random, data, circuit, **options)
    torch.testing.assert_close(effects.ablated, inside, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="nothing to ablate"), ablate(random, Circuit.of([])):
        pass
    with (
        pytest.raises(ValueError, match="embedding cannot be ablated"),
        ablate(random, "embedding"),
    ):
        pass


def test_results_are_those_of_every_sweep(random: TransformerBridge) -> None:
    data = prompts_for(random)
    result = ablation_sweep(random, data, reference=data.abc(), role="END")
    assert isinstance(result, SweepResult)
    assert (result.method, result.site, result.direction) == ("mean ablation", "heads", "noising")
    assert result.error_label == "standard error over 4 pairs"
    assert result.labels[:2] == ["L0H0 at END", "L0H1 at END"]
    assert torch.equal(result.clean, result.baseline)
    with pytest.raises(ValueError, match="mean ablation has no corrupted run"):
        result.fraction()
    sets = ablation_sweep(random, data, {"two": ["L0H1", "L1H1"]}, how="zero")
    assert (sets.method, sets.site) == ("zero ablation", "sets")
    assert sets.index_df["set"].tolist() == ["two"]


def test_forms_of_components(random: TransformerBridge) -> None:
    def names(heads: Any) -> list[str]:
        return [str(component) for component in require_components(random, heads)]

    assert names(("L0H1", "END")) == ["L0H1 at END"]
    assert names(("L0H1", "L1H1")) == ["L0H1", "L1H1"]
    assert names(("L0H1", "MLP1")) == ["L0H1", "MLP1"]
    assert names(["L0H1", "L0H1", ("MLP0", "S2")]) == ["L0H1", "MLP0 at S2"]
    assert names({"L1H1", "MLP0", (0, 3)}) == ["L0H3", "MLP0", "L1H1"]
    assert names(((1, 2), "S2")) == ["L1H2 at S2"]
    assert names(iter(["L0H1"])) == ["L0H1"]


def test_references_that_do_not_fit(random: TransformerBridge) -> None:
    data = prompts_for(random, 8)

    def enter(heads: Any = ("L0H0", "END"), how: str = "resample", **options: Any) -> None:
        with ablate(random, heads, how, **options):
            pass

    with pytest.raises(ValueError, match="must be one of zero, mean, resample"):
        enter(how="mode")
    with pytest.raises(ValueError, match="give them as reference="):
        enter(how="mean")
    with pytest.raises(ValueError, match="give those that the model will run on as data="):
        enter(how="zero")
    with pytest.raises(ValueError, match="reference has 4 prompts but the data 8"):
        enter(reference=data.abc()[:4], data=data)
    with pytest.raises(ValueError, match="so their positions do not correspond"):
        enter(heads="L0H0", reference=prompts_for(random, 8, seed=4), data=data)
    with pytest.raises(ValueError, match=r"no prompt like prompt \d"):
        enter(how="mean", reference=data.abc()[:2], data=data)
    with pytest.raises(ValueError, match="other templates"):
        enter(how="mean", reference=IOIDataset.demo(random.tokenizer), data=data)
    bare = prompts_for(random, 8, prepend_bos=False)
    for components in ("L0H0", ("L0H0", "END")):
        with pytest.raises(ValueError, match="reference has no BOS before its prompts, unlike"):
            enter(heads=components, how="mean", reference=bare.abc(), data=data)
    assert hooks_on(random) == 0


def test_a_role_that_a_prompt_lacks(random: TransformerBridge) -> None:
    data = prompts_for(random, 4)
    data.positions["S1+1"][2] = -1
    with pytest.raises(ValueError, match=r"Prompt 2 has no S1\+1"):
        ablation_sweep(random, data, reference=data.abc(), role="S1+1")


def test_requests_that_make_no_sense(random: TransformerBridge) -> None:
    data = prompts_for(random, 4)
    slow: Any = "slow"
    with pytest.raises(ValueError, match="engine must be"):
        ablation_sweep(random, data, how="zero", engine=slow)
    with pytest.raises(ValueError, match="engine must be"):
        ablation_effects(random, data, "L0H0", engine=slow)
    with pytest.raises(ValueError, match="what must be"):
        ablation_sweep(random, data, "neurons", how="zero")
    with pytest.raises(ValueError, match="nothing to ablate"):
        ablation_sweep(random, data, [], how="zero")
    with pytest.raises(ValueError, match="memory must be"):
        ablation_sweep(random, data, how="zero", memory=0)
    with pytest.raises(ValueError, match="'S3' is not a role"):
        ablation_sweep(random, data, how="zero", role="S3")
    random.train()
    try:
        with pytest.raises(ValueError, match="training mode"):
            ablation_sweep(random, data, how="zero")
    finally:
        random.eval()


def test_equal_prompts_with_other_partners_are_told_apart_in_batches_by_length() -> None:
    model = load_model("ioi-mini", device="cpu", verbose=False)
    some = IOIDataset.generate(model.tokenizer, 12, prefixes="bundled", seed=5)
    twice = some[[*range(12), *range(12)]]
    reference = twice.abc()
    assert any(
        twice.prompts[i] == twice.prompts[i + 12]
        and reference.prompts[i] != reference.prompts[i + 12]
        for i in range(12)
    )
    head = ("L2H4", "END")
    wanted = ablation_sweep(model, twice, [head], how="resample", reference=reference).values[0]
    with ablate(model, head, "resample", reference=reference):
        found = runs.logit_diffs(model, twice, memory=2**21)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
