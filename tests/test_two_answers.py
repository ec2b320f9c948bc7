"""Any task with two answers: what helpers need of prompts, and nothing else, is in the Protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import (
    ablation,
    attribution,
    circuits,
    edits,
    heads,
    lrqp,
    metrics,
    patching,
    path_patching,
    probing,
    runs,
)
from ioi_helpers.dataset import IOIDataset, PromptDataset, TwoAnswerData
from ioi_helpers.graph import Circuit, Edge, Node
from ioi_helpers.models import handbuilt, load_model
from tests import random_models

ROLES = {"IO": "RIGHT", "S1": "WRONG", "S1+1": "NEXT", "S2": "AGAIN", "END": "END"}


@dataclass(frozen=True)
class Bare:
    """What the Protocol says, and nothing else."""

    tokens: Tensor
    lengths: Tensor
    positions: dict[str, Tensor]
    io_tokens: Tensor
    s_tokens: Tensor
    pair_ids: Tensor

    @staticmethod
    def of(data: IOIDataset) -> Bare:
        """The same prompts, their roles under other names."""
        at = {new: data.positions[old] for old, new in ROLES.items()}
        return Bare(data.tokens, data.lengths, at, data.io_tokens, data.s_tokens, data.pair_ids)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Any, /) -> Bare:
        at = {role: where[rows] for role, where in self.positions.items()}
        rest = (self.lengths, self.io_tokens, self.s_tokens, self.pair_ids)
        lengths, io, s, pairs = (x[rows] for x in rest)
        return Bare(self.tokens[rows], lengths, at, io, s, pairs)


@pytest.fixture(scope="module")
def model(random_folder: Path) -> TransformerBridge:
    return random_models.boot(random_folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TransformerBridge:
    """One that is run with hooks."""
    return random_models.boot(random_models.save(tmp_path_factory.mktemp("neox"), "neox-serial"))


@pytest.fixture(scope="module")
def data(model: TransformerBridge) -> IOIDataset:
    """Prompts of one template and without BOS, as those are that say nothing of either."""
    return IOIDataset.generate(
        model.tokenizer,
        24,
        names=handbuilt.NAMES,
        templates=["Then, [B] and [A] went to the [PLACE]. [B] gave a [OBJECT] to [A]"],
        prefixes=["It was late.", "The weather was good for a walk."],
        prepend_bos=False,
        seed=5,
    )


Use = Callable[[TransformerBridge, Any, Any, dict[str, str]], Any]
"""From a model, prompts, a reference and roles by their usual names to a tensor or a table."""


def _circuit(role: dict[str, str]) -> Circuit:
    return Circuit.of([("L0H0", role["S2"]), ("L1H1", role["END"]), ("L1H2", role["S1"])])


def _edges(role: dict[str, str]) -> Circuit:
    sender = Node(0, 1, role["S2"])
    return Circuit.of_edges(
        [Edge(sender, Node(1, 0, role["END"]), "v"), Edge(Node(1, 0, "END"), None, "final")]
    )


def _compared(model: TransformerBridge, data: Any, reference: Any, role: dict[str, str]) -> Any:
    labels = (data.positions[role["IO"]] < data.positions[role["S1"]]).tolist()
    x = runs.activations_at(model, data, role["S2"], "L1.mid")
    table = lrqp.compare(
        model, data, role["S2"], "L1.mid",
        {"LRQP": lrqp.LRQP(probing.fit_probe(x, labels), probing.fit_covariance(x))},
        true=labels, target=[not one for one in labels], counterfactual=reference,
    )  # fmt: skip
    return torch.tensor(table.select_dtypes("number").to_numpy())


def _das(model: TransformerBridge, data: Any, reference: Any, role: dict[str, str]) -> Tensor:
    labels = (data.positions[role["IO"]] < data.positions[role["S1"]]).tolist()
    return lrqp.fit_das(model, data, role["S2"], "L1.mid", labels=labels, epochs=1).basis


def _probes(model: TransformerBridge, data: Any, reference: Any, role: dict[str, str]) -> Tensor:
    labels = (data.positions[role["IO"]] < data.positions[role["S1"]]).tolist()
    table = probing.probe_table(
        model, data, labels, roles=[role["S2"]], points=["L1.mid"], n_folds=3, n_controls=2,
        hold_out=["prompt"],
    )  # fmt: skip
    return torch.tensor(table.select_dtypes("number").to_numpy())


def _edited(model: TransformerBridge, data: Any, reference: Any, role: dict[str, str]) -> Tensor:
    new = runs.activations_at(model, reference, role["S2"], "L1.mid")
    edit = edits.residual_edit(data, role["S2"], "L1.mid", new)
    return edits.logit_diffs_and_kl(model, data, {"edit": [edit]})["edit"].logit_diff


def _in_context(
    model: TransformerBridge, data: Any, reference: Any, role: dict[str, str]
) -> Tensor:
    with ablation.ablate(model, [("L0H0", role["S2"]), "MLP1"], reference=reference, data=data):
        return metrics.logit_diff(model(data.tokens), data, per_prompt=True)


EVERYWHERE: dict[str, Use] = {
    "metrics": lambda m, d, r, _: metrics.io_rank(m(d.tokens), d, per_prompt=True),
    "logit differences": lambda m, d, r, _: runs.logit_diffs(m, d),
    "activations": lambda m, d, r, role: runs.activations_at(m, d, role["S1+1"], "L1.pre"),
    "attention": lambda m, d, r, role: heads.attention_by_role(m, d, "END", [role["S2"]]),
    "copying": lambda m, d, r, role: heads.copying_scores(m, d, roles=[role["IO"]], top=200),
    "head attribution": lambda m, d, r, _: attribution.head_attribution(m, d).per_prompt,
    "logit lens": lambda m, d, r, _: attribution.logit_lens(m, d).per_prompt,
    "patching": lambda m, d, r, _: (
        patching.patch_sweep(m, d, r, "resid_pre", ("layer", "role")).values
    ),
    "patching, one role": lambda m, d, r, role: (
        patching.patch_sweep(
            m, d, r, "z", ("layer", "head", "role"), roles=[role["S2"]], direction="noising"
        ).values
    ),
    "attribution patching": lambda m, d, r, _: patching.attribution_patch_sweep(m, d, r).values,
    "ablation": lambda m, d, r, _: ablation.ablation_sweep(m, d, reference=r).values,
    "ablation at a role": lambda m, d, r, role: (
        ablation.ablation_sweep(m, d, "heads", how="resample", reference=r, role=role["S2"]).values
    ),
    "ablation in a context": _in_context,
    "ablation effects": lambda m, d, r, _: (
        ablation.ablation_effects(m, d, ("L1H0", "END"), reference=r).direct
    ),
    "path patching": lambda m, d, r, role: (
        path_patching.path_patch(m, d, r, ("L0H1", role["S2"]), ("L1H0", "v", role["S2"])).values
    ),
    "edges": lambda m, d, r, role: (
        path_patching.edge_scores(m, d, r, roles=[role["S2"], "END"], steps=2).values
    ),
    "circuits": lambda m, d, r, role: circuits.Circuits(m, d, r).run(_circuit(role)).logit_diff,
    "faithfulness": lambda m, d, r, role: torch.tensor(
        circuits.faithfulness(circuits.Circuits(m, d, r), _circuit(role)).table().to_numpy()
    ),
    "probing": _probes,
    "lrqp": _compared,
    "DAS": _das,
    "edits": _edited,
}
FAST_ONLY: dict[str, Use] = {
    "circuits of edges": lambda m, d, r, role: (
        circuits.EdgeCircuits(m, d, r).run(_edges(role)).logit_diff
    ),
}
IOI = {role: role for role in ROLES}


@pytest.mark.parametrize("use", [*EVERYWHERE, *FAST_ONLY])
def test_a_bare_stand_in_gives_the_same_numbers(
    use: str, model: TransformerBridge, data: IOIDataset
) -> None:
    run = {**EVERYWHERE, **FAST_ONLY}[use]
    reference = data.abc(seed=1)
    wanted = run(model, data, reference, IOI)
    found = run(model, Bare.of(data), Bare.of(reference), ROLES)
    assert isinstance(Bare.of(data), TwoAnswerData)
    assert found.double().nan_to_num().abs().max() > 0
    torch.testing.assert_close(found, wanted, equal_nan=True)


def test_a_first_circuit_by_the_reference_of_prompts_that_make_none(
    model: TransformerBridge, data: IOIDataset
) -> None:
    def search(prompts: Any, reference: Any) -> Circuit:
        runner = circuits.Circuits(model, prompts, reference)
        return circuits.circuit_by_gradient(runner, sizes=(6,), progress=False)

    wanted = search(data, data.abc())
    found = search(Bare.of(data), Bare.of(data.abc()))
    assert len(wanted) == 6
    assert set(found) == {node.at(ROLES[node.role or "END"]) for node in wanted}


@pytest.mark.parametrize("use", ["patching", "ablation", "path patching", "circuits", "edits"])
def test_so_it_does_by_hooks(use: str, llama: TransformerBridge, data: IOIDataset) -> None:
    data = data[:4]
    reference = data.abc(seed=1)
    wanted = EVERYWHERE[use](llama, data, reference, IOI)
    found = EVERYWHERE[use](llama, Bare.of(data), Bare.of(reference), ROLES)
    torch.testing.assert_close(found, wanted)


def test_what_it_lacks_is_said(model: TransformerBridge, data: IOIDataset) -> None:
    bare = Bare.of(data)
    with pytest.raises(ValueError, match="'S2' is not a role of these prompts; use one of RIGHT"):
        runs.activations_at(model, bare, "S2", "L1.mid")
    with pytest.raises(ValueError, match="make no counterfactual of their own"):
        path_patching.path_patch(model, bare, None, "L0H0", "final")
    with pytest.raises(ValueError, match="give a label for each prompt"):
        probing.probe_table(model, bare, "order")

    class Unpaired:
        tokens, lengths, positions = data.tokens, data.lengths, data.positions
        io_tokens, s_tokens = data.io_tokens, data.s_tokens

    with pytest.raises(ValueError, match="a Unpaired that lacks pair_ids"):
        attribution.head_attribution(model, Unpaired())  # type: ignore[arg-type]


# --- prompts of one's own ------------------------------------------------------------------------

PROMPTS = [
    "When Mary went to the store, she gave a drink to",
    "When John went to the park, he gave",
]


@pytest.fixture(scope="module")
def mini() -> TransformerBridge:
    return load_model("ioi-mini", verbose=False)


def own(model: TransformerBridge, **settings: Any) -> PromptDataset:
    arguments: dict[str, Any] = {
        "answers": [(" Mary", " John"), (" John", " Mary")],
        "roles": {"NAME": ["Mary", "John"], "VERB": "gave", "FIRST": 1, "BEFORE LAST": -2},
    }
    return PromptDataset.from_prompts(model.tokenizer, PROMPTS, **{**arguments, **settings})


def test_own_prompts(mini: TransformerBridge) -> None:
    data = own(mini)
    assert isinstance(data, TwoAnswerData)
    words = [[mini.tokenizer.decode([i]).strip() for i in row] for row in data.tokens.tolist()]
    for role, wanted in {
        "NAME": ["Mary", "John"], "VERB": ["gave", "gave"], "FIRST": ["When", "When"],
        "BEFORE LAST": ["drink", "he"], "END": ["to", "gave"],
    }.items():  # fmt: skip
        at = data.positions[role].tolist()
        assert [row[i] for row, i in zip(words, at, strict=True)] == wanted, role
    assert [mini.tokenizer.decode([i]) for i in data.io_tokens.tolist()] == [" Mary", " John"]
    with pytest.raises(ValueError, match=r"no device 'nonsense' here; .*model.cfg.device"):
        data.to("nonsense")
    swapped = data[torch.tensor([1, 0])]
    assert swapped.prompts == tuple(PROMPTS[::-1])
    assert swapped.positions["END"].tolist() == data.positions["END"].flip(0).tolist()
    assert data.to("cpu").io_tokens.equal(data.io_tokens)
    assert "NAME, VERB" in repr(data)
    assert own(mini, prepend_bos=False).positions["VERB"].equal(data.positions["VERB"] - 1)


def test_own_prompts_are_taken_by_helpers(mini: TransformerBridge) -> None:
    data = own(mini, pair_ids=[0, 0])
    swapped = data[[1, 0]]
    swept = patching.patch_sweep(mini, data, swapped, "resid_pre", ("layer", "role"))
    assert swept.index_df["role"].unique().tolist() == list(data.positions)
    torch.testing.assert_close(
        swept.clean.cpu(), metrics.logit_diff(mini(data.tokens), data, per_prompt=True)
    )


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"answers": [(" Mary", " John")]}, "2 prompts but 1 answers; give one pair"),
        ({"answers": [(" Mary", " Mary")] * 2}, "begin with the same token"),
        ({"answers": [(" Mary", " Mary John")] * 2}, "is 2 tokens after .*multi_token_ans"),
        ({"answers": [("", " Mary")] * 2}, "joins the answer '' with the end"),
        ({"roles": {"IT": "cat"}}, "holds 'cat' 0 times"),
        ({"roles": {"IT": "a"}}, r"times; say which, as \('a', 2\)"),
        ({"roles": {"IT": ("gave", 2)}}, "holds 'gave' 1 times, so there is no number 2"),
        ({"roles": {"IT": 99}}, "cannot stand at position 99 of prompt 0"),
        ({"roles": {"IT": ["gave"]}}, "2 prompts but 1 places"),
        ({"pair_ids": [1]}, "2 prompts but 1 pair_ids"),
    ],
)  # fmt: skip
def test_own_prompts_that_are_wrong(
    settings: dict[str, Any], wrong: str, mini: TransformerBridge
) -> None:
    with pytest.raises(ValueError, match=wrong):
        own(mini, **settings)


def test_answers_of_several_tokens_are_scored_by_the_first(mini: TransformerBridge) -> None:
    data = own(mini, answers=[(" Mary John", " John")] * 2, multi_token_answers=True)
    assert mini.tokenizer.decode([int(data.io_tokens[0])]) == " Mary"
