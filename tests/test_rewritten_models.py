"""One model in three architectures: every public function's numbers must be the same on all.

`ioi-mini` and `ioi-plain` are written anew as a Stanford-like GPT-2, as OPT and as GPT-Neo
(:mod:`rewritten_models`) and compute the same logits there to rounding. `MEASUREMENTS` is a table:
a name, and what is measured on a model. A new public function that takes a model is a new line.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

import ioi_helpers
from ioi_helpers import (
    ablation,
    attribution,
    circuits,
    heads,
    load_model,
    lrqp,
    metrics,
    patching,
    path_patching,
    probing,
    runs,
)
from ioi_helpers.bundled import bundled_folder
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.edits import (
    attention_edit,
    logit_diffs_and_kl,
    logit_diffs_of_edits,
    next_token_kl,
    residual_edit,
    residual_hooks,
)
from ioi_helpers.graph import parse_nodes
from ioi_helpers.names import head_labels
from tests.rewritten_models import as_gpt_neo, as_opt, as_stanford, at_gpt2_small_shape

FORMS = {"Stanford": as_stanford, "OPT": as_opt, "GPT-Neo": as_gpt_neo}
BUNDLED = ("ioi-mini", "ioi-plain")
OFTEN = (("ioi-mini", "Stanford"), ("ioi-mini", "OPT"))
IN_EVERY_FORM = pytest.mark.parametrize(
    "form",
    [
        pytest.param(
            (name, form),
            marks=() if (name, form) in OFTEN else pytest.mark.slow,
            id=f"{name} as {form}",
        )
        for name in BUNDLED
        for form in FORMS
    ],
)
Form = tuple[str, str]
"""Which model, and as what."""
ROUNDING = 2e-4
"""Absolute and relative: the logits agree within 2e-5, and effects are differences of them."""


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Form], TransformerBridge]:
    @cache
    def boot(form: Form) -> TransformerBridge:
        name, kind = form
        folder = FORMS[kind](bundled_folder(name), tmp_path_factory.mktemp(kind) / name)
        return load_model(str(folder), device="cpu", verbose=False)

    return boot


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ioi-mini", "ioi-plain"])
def test_a_bundled_model_in_gpt2_smalls_shape(name: str, tmp_path: Path) -> None:
    """On it notebooks are timed: the shape, the answers, and heads that are where they were."""
    folder = at_gpt2_small_shape(bundled_folder(name), tmp_path / name)
    small, large = (load_model(m, device="cpu", verbose=False) for m in (name, str(folder)))
    shape = (large.cfg.n_layers, large.cfg.n_heads, large.cfg.d_model, large.cfg.d_vocab)
    assert shape == (12, 12, 768, 50257)
    data = IOIDataset.generate(small.tokenizer, 20, seed=0)
    ours, theirs = (runs.logit_diffs(model, data) for model in (small, large))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=0.15)
    effects, again = (attribution.head_attribution(model, data).values for model in (small, large))
    own = again[: effects.shape[0], : effects.shape[1]]
    np.testing.assert_allclose(own, effects, rtol=0, atol=0.15)
    assert np.abs(np.asarray(again)[effects.shape[0] :]).max() < 0.1


# --- what is measured ----------------------------------------------------------------------------


def few(model: TransformerBridge) -> IOIDataset:
    """Pairs of prompts of unequal length."""
    return IOIDataset.generate(model.tokenizer, 6, prefixes="bundled", seed=1)


def late(model: TransformerBridge, *heads: tuple[int, int]) -> list[str]:
    """Heads by how far their layer is from the end (1 is the last) and their number."""
    return [f"L{model.cfg.n_layers - back}H{head}" for back, head in heads]


def many(model: TransformerBridge) -> IOIDataset:
    return IOIDataset.generate(model.tokenizer, 96, seed=2)


def logits(model: TransformerBridge) -> Any:
    data = few(model)
    with torch.no_grad():
        found = model(data.tokens.to(model.cfg.device))
    named = [getattr(metrics, name) for name in ("logit_diff", "io_probability", "s_probability")]
    # Of other tokens up to a constant: centring of the unembedding leaves it open.
    log_probs = found.log_softmax(-1)[data.attention_mask.bool()]
    return log_probs, [metric(found, data, per_prompt=True) for metric in named]


def sweep(site: str, *axes: str, **settings: Any) -> Callable[[TransformerBridge], Any]:
    def measure(model: TransformerBridge) -> Any:
        data = few(model)
        return patching.patch_sweep(
            model, data, data.swap_subject(), site, axes, progress=False, **settings
        )

    return measure


def gradient_sweep(model: TransformerBridge) -> Any:
    data = few(model)[:2]
    return patching.attribution_patch_sweep(model, data, data.swap_subject(), progress=False)


def ablated(how: str, role: str | None = None) -> Callable[[TransformerBridge], Any]:
    def measure(model: TransformerBridge) -> Any:
        data = few(model)
        return ablation.ablation_sweep(
            model, data, how=how, reference=data.abc(), role=role, progress=False
        )

    return measure


def ablation_effects(model: TransformerBridge) -> Any:
    data = few(model)
    one, other = late(model, (2, 1), (3, 0))
    found = ablation.ablation_effects(model, data, [one, (other, "END")], reference=data.abc())
    return found, found.table()


def from_kept_runs(model: TransformerBridge) -> Any:
    data = few(model)
    kept, one = ablation.keep_runs(model, data, data.abc()), late(model, (2, 1))
    return ablation.ablation_sweep(model, data, one, reference=data.abc(), kept=kept)


def inside_ablate(model: TransformerBridge) -> Any:
    data = few(model)
    gone = late(model, (2, 4), (1, 2))
    with ablation.ablate(model, gone, reference=data.abc(), data=data):
        return attribution.head_attribution(model, data)


def head_table(model: TransformerBridge) -> Any:
    data = many(model)[:16]
    return heads.head_table(model, data, sweep_prompts=6, seeds=(0,), progress=False)


def composition(model: TransformerBridge) -> Any:
    return {mode: heads.composition_scores(model, mode) for mode in "QKV"}


def activations(model: TransformerBridge) -> Any:
    data = few(model)
    points = runs.residual_points(model)
    return (
        points,
        runs.activations_at(model, data, "S2", points),
        runs.activations_at(model, data, "END", points[-1]),
        runs.activations_at_roles(model, data, ("S1+1", "END"), points[-1:])["END"],
        probing.head_outputs(model, data, "END", late(model, (2, 1), (1, 2))),
    )


def probe_table(model: TransformerBridge) -> Any:
    data = many(model)
    # Regularised strongly, or the probe would be a rounding of itself.
    return probing.probe_table(model, data, roles=("S2",), points=("L1.mid", "L3.pre"), C=0.01)


def interventions(model: TransformerBridge) -> Any:
    data = many(model)
    point, target = "L3.mid", ["BABA" if order == "ABBA" else "ABBA" for order in data.orders]
    x0 = runs.activations_at(model, data, "S2", point)
    probe = probing.fit_probe(x0, data.orders, C=0.01)
    covariance = probing.fit_covariance(x0, data.orders)
    some = slice(0, 8)
    made: dict[str, lrqp.Intervention] = {
        "LRQP": lrqp.LRQP(probe, covariance),
        "difference of means": lrqp.MeanDifferenceSteering.fit(x0, data.orders),
    }
    return lrqp.compare(
        model,
        data[some],
        "S2",
        point,
        made,
        true=data.orders[some],
        target=target[some],
        counterfactual=data[some].swap_order(),
        probe=probe,
        covariance=covariance,
    )


def das(model: TransformerBridge) -> Any:
    data = many(model)[:16]
    return lrqp.fit_das(model, data, "S2", "L3.mid", epochs=1).losses


def attention_put_back(model: TransformerBridge) -> Any:
    """The order at S2 exchanged, and late heads' attention put back to the clean run's."""
    data = few(model)
    clean = runs.attention_patterns(model, data, head_labels(model)[-2 * model.cfg.n_heads :])
    x = runs.activations_at(model, data.swap_order(), "S2", "L3.pre")
    exchange = [residual_edit(data, "S2", "L3.pre", x)]
    back = [attention_edit(data, "END", head, p) for head, p in clean.items()]
    found = [runs.logit_diffs(model, data, edits) for edits in (exchange, exchange + back)]
    # ioi-plain hardly reads the order at S2, so there is little to put back.
    least = 1e-3 if model.ioi_name.startswith("ioi-plain") else 0.1
    assert (found[0] - found[1]).abs().max() > least
    return clean, found


def kl(model: TransformerBridge) -> Any:
    data = few(model)
    x = runs.activations_at(model, data.swap_order(), "S2", "L2.mid")
    edits = [residual_edit(data, "S2", "L2.mid", x)]
    return (
        next_token_kl(model, data, edits),
        logit_diffs_and_kl(model, data, {"exchanged": edits}),
        logit_diffs_of_edits(model, data, {"exchanged": edits, "clean": []}),
        runs.logits_at(model, data, "END", edits).log_softmax(-1),
    )


def hooks_in_the_middle(model: TransformerBridge) -> Any:
    data = few(model)

    def halve(stream: Tensor, hook: Any) -> Tensor:
        return stream / 2

    writing, checking = residual_hooks(model, "L2.mid", halve)
    with torch.no_grad():
        tokens = data.tokens.to(model.cfg.device)
        logits = model.run_with_hooks(tokens, fwd_hooks=[*writing, *checking])
    return logits.log_softmax(-1)[data.attention_mask.bool()]


def ablated_on_repeats(model: TransformerBridge) -> Any:
    clean = heads.repeat_scores(model, seeds=(0,))
    return heads.ablated_on_repeats(model, ["L0H0", "L1H1"], clean, seeds=(0,))


def on_record(model: TransformerBridge) -> Any:
    nodes = [(node.name, node.role) for node in heads.circuit(model)]
    return heads.registry(model).entries, nodes, heads.heads_of_class(model, "induction")


def run_as_circuit(model: TransformerBridge) -> Any:
    found = circuits.Circuits(model, few(model))
    return circuits.faithfulness(found, heads.circuit(model))


def scrubbed(model: TransformerBridge) -> Any:
    *others, detector = late(model, (1, 0), (2, 1), (4, 2))
    movers, inhibitors = (parse_nodes((name, "END")) for name in others)
    detectors = parse_nodes((detector, "S2"))
    hypothesis = circuits.ioi_hypothesis(movers, inhibitors, detectors)
    return circuits.scrub(model, many(model)[:16], hypothesis, draws=1)


def run_as_edges(model: TransformerBridge) -> Any:
    found = circuits.EdgeCircuits(model, few(model))
    every = circuits.possible_edges(found.shape)
    kept = circuits.top_edges(dict.fromkeys(every[::3], 1.0), 200)
    return found.run_model(), found.run(kept)


MEASUREMENTS: dict[str, Callable[[TransformerBridge], Any]] = {
    "logits and metrics": logits,
    "logit_diff_directions": lambda m: attribution.logit_diff_directions(m, few(m)),
    "final_layer_norm_scale": lambda m: attribution.final_layer_norm_scale(m, few(m)),
    "logit_lens": lambda m: attribution.logit_lens(m, few(m)),
    "logit_lens, own norm": lambda m: attribution.logit_lens(m, few(m), layer_norm="own"),
    "layer_attribution": lambda m: attribution.layer_attribution(m, few(m)),
    "head_attribution": lambda m: attribution.head_attribution(m, few(m)),
    "decompose": lambda m: attribution.decompose(m, few(m), split_mlp_bias=True),
    **{
        f"patch_sweep {site}": sweep(site, "layer", "role")
        for site in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
    },
    **{
        f"patch_sweep {site}": sweep(site, "layer", "head")
        for site in ("z", "q", "k", "v", "pattern")
    },
    "patch_sweep, noising": sweep("z", "layer", "head", "role", direction="noising", roles=["END"]),
    "patch_sweep pattern, by role": sweep("pattern", "layer", "head", "role", roles=["END"]),
    "attribution_patch_sweep": gradient_sweep,
    "ablation_sweep, mean": ablated("mean"),
    "ablation_sweep, zero at S2": ablated("zero", "S2"),
    "ablation_sweep, resample": ablated("resample", "END"),
    "ablation_effects": ablation_effects,
    "keep_runs": from_kept_runs,
    "ablate": inside_ablate,
    "attention_by_role": lambda m: heads.attention_by_role(m, few(m), per_prompt=True),
    "backup_rise": lambda m: heads.backup_rise(m, few(m), late(m, (1, 2))[0]),
    "repeat_scores": lambda m: heads.repeat_scores(m, seeds=(0, 1)),
    "copying_scores": lambda m: heads.copying_scores(m, few(m)),
    "both_copying_scores": lambda m: heads.both_copying_scores(m, few(m)),
    "composition_scores": composition,
    "composition_chance": heads.composition_chance,
    "readout": attribution.readout,
    "positional_patterns": lambda m: heads.positional_patterns(m, 20),
    "head_table": head_table,
    "registry": on_record,
    "random_tokens": heads.random_tokens,
    "ablated_on_repeats": ablated_on_repeats,
    "attention_of_pairs": lambda m: runs.attention_of_pairs(
        m, few(m), [("S2", "S1"), ("END", "IO")]
    ),
    "activations": activations,
    "probe_table": probe_table,
    "lrqp.compare": interventions,
    "fit_das": das,
    "next_token_kl": kl,
    "residual_hooks": hooks_in_the_middle,
    "Circuits": run_as_circuit,
    "EdgeCircuits": run_as_edges,
    "scrub": scrubbed,
    "attention_edit": attention_put_back,
    "path_patch": lambda m: path_patching.path_patch(
        m, few(m), few(m).abc(), ("L1H0", "S2"), [("L2H4", "v", "S2")]
    ),
    "path_sweep": lambda m: path_patching.path_sweep(
        m, few(m), senders=late(m, (2, 4), (4, 4), (1, 0))
    ),
    "edge_scores": lambda m: path_patching.edge_scores(m, few(m)[:2], method="EAP", steps=1),
    "exact_edges": lambda m: path_patching.exact_edges(m, few(m)[:2], inputs=("final",)),
    "every_input": lambda m: len(path_patching.every_input(m, ("q", "final"), "END")),
}


# --- how it is compared --------------------------------------------------------------------------


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a result that can be compared, each with its place: arrays, numbers, texts."""
    if isinstance(value, Tensor):
        yield path, value.detach().double().cpu().numpy()
    elif isinstance(value, pd.DataFrame):
        for column in value:
            yield from leaves(value[column].to_numpy(), f"{path}[{column!r}]")
    elif isinstance(value, bool | str | int | None):
        yield path, value
    elif isinstance(value, float) or (isinstance(value, np.ndarray) and value.dtype.kind != "O"):
        yield path, np.asarray(value)
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from leaves(one, f"{path}[{key!r}]")
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name), f"{path}.{field.name}")
    elif isinstance(value, list | tuple | np.ndarray):
        for i, one in enumerate(value):
            yield from leaves(one, f"{path}[{i}]")
    else:
        raise TypeError(f"{path}: a {type(value).__name__} is not compared; teach `leaves` to.")


def differences(found: Any, expected: Any) -> list[str]:
    """Where two results differ by more than rounding."""
    these, those = dict(leaves(found)), dict(leaves(expected))
    assert these.keys() == those.keys()
    wrong = []
    for path, a in these.items():
        b = those[path]
        if not isinstance(a, np.ndarray) or a.dtype.kind not in "fiu":
            equal = bool(np.all(a == b))
            apart = math.nan
        else:
            assert a.shape == b.shape, path
            a, b = a.astype(float), b.astype(float)
            equal = np.allclose(a, b, rtol=ROUNDING, atol=ROUNDING, equal_nan=True)
            apart = float(np.nan_to_num(np.abs(a - b)).max(initial=0.0))
        if not equal:
            wrong.append(f"{path or 'the result'} is off by {apart:.3g}")
    return wrong


@cache
def measured_on_original(name: str, measurement: str) -> Any:
    return MEASUREMENTS[measurement](load_model(name, device="cpu", verbose=False))


@IN_EVERY_FORM
@pytest.mark.parametrize("name", MEASUREMENTS)
def test_numbers_are_the_same_in_every_architecture(
    name: str, form: Form, forms: Callable[[Form], TransformerBridge]
) -> None:
    assert differences(MEASUREMENTS[name](forms(form)), measured_on_original(form[0], name)) == []


# Public functions that take a model and are not measured here, and why.
NOT_MEASURED = {
    "replacements": "ablation stands on them",
    "edited hooks_off": "edits are measured through those who make them",
    "gather_activations hooks_of hooks_on_pairs logits_at_positions point_hook prompts_at_once "
    "run_in_batches run_rows_in_batches": "every run passes there",
    "separate_inputs": "hooks that the edges use",
    "known_hooks refuse_too_long require_component require_data require_model "
    "require_node existing_head": "they say yes or no",
    "edit_reaches_run require_reach pattern_reaches_run read_weights score_scales usable_weights "
    "weights_for require_weights first_hook modules why_no_readout "
    "has_post_norm": "they ask which form it is",
    "is_gpt2_small": "a name, no number",
    "circuit_of": "a file, no number",
    "direct_path_sweep": "a run for every edge; it is path_sweep with other arguments",
}


def test_every_public_function_of_a_model_is_measured() -> None:
    public = set()
    for room in pkgutil.iter_modules(ioi_helpers.__path__):
        module = importlib.import_module(f"ioi_helpers.{room.name}")
        for name in getattr(module, "__all__", vars(module)):
            value = getattr(module, name)
            its_own = getattr(value, "__module__", "").startswith(module.__name__)
            if name.startswith("_") or not its_own or not inspect.isfunction(value):
                continue
            if next(iter(inspect.signature(value).parameters), None) == "model":
                public.add(name)
    used = set(re.findall(r"\w+", Path(__file__).read_text(encoding="utf8").split("# --- how")[0]))
    left_out = set(" ".join(NOT_MEASURED).split())
    assert public - used - left_out == set(), "give each a line in MEASUREMENTS"
    assert left_out <= public and not left_out & used


@IN_EVERY_FORM
def test_the_rewriting_loses_nothing(
    form: Form, forms: Callable[[Form], TransformerBridge]
) -> None:
    """The premise of this file, and that another architecture it is."""
    model, mini = forms(form), load_model(form[0], device="cpu", verbose=False)
    data = few(mini)
    own = IOIDataset.from_prompts(model.tokenizer, data.prompts, [n[:2] for n in data.names])
    assert torch.equal(own.tokens, data.tokens)
    with torch.no_grad():
        apart = (model(data.tokens) - mini(data.tokens))[data.attention_mask.bool()]
    assert apart.abs().max() < 5e-5
    assert (
        model.cfg.architecture != mini.cfg.architecture or model.cfg.scale_attn_by_inverse_layer_idx
    )


def test_a_difference_is_found_wherever_it_is() -> None:
    @dataclasses.dataclass
    class Result:
        values: Tensor
        names: tuple[str, ...]

    def result(x: float, name: str) -> Any:
        return {
            "a": [Result(torch.tensor([1.0, x]), ("L0H0", name))],
            "b": pd.DataFrame({"c": [x]}),
        }

    assert differences(result(2.0, "L0H1"), result(2.0001, "L0H1")) == []
    assert differences(result(2.0, "L0H1"), result(2.01, "L0H1")) == [
        "['a'][0].values is off by 0.01",
        "['b']['c'] is off by 0.01",
    ]
    assert len(differences(result(2.0, "L0H1"), result(2.0, "L0H2"))) == 1


def test_how_scores_are_scaled_is_known_in_every_form(
    forms: Callable[[Form], TransformerBridge],
) -> None:
    """Stanford's replications divide by the layer's number as well; GPT-Neo does not scale."""
    mini = heads.score_scales(load_model("ioi-mini", device="cpu", verbose=False))
    expected = {
        "OPT": mini,
        "GPT-Neo": torch.ones(6),
        "Stanford": mini / torch.arange(1, 7),
    }
    for form, scales in expected.items():
        torch.testing.assert_close(
            heads.score_scales(forms(("ioi-mini", form))), scales, atol=0, rtol=1e-3
        )
