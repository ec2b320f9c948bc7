"""Path patching equals the definition, keeps its identities, and finds what was built by hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformer_lens.patching as tl_patching
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel

from ioi_helpers import load_model, metrics
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.graph import EMBEDDING, Edge, Node, Shape
from ioi_helpers.models import handbuilt
from ioi_helpers.patching import SweepResult, patch_sweep
from ioi_helpers.path_patching import (
    FINAL,
    Receiver,
    direct_path_sweep,
    every_input,
    path_patch,
    path_sweep,
)
from ioi_helpers.path_patching.language import parse_receivers
from ioi_helpers.path_patching.parts import Parts
from tests import random_models
from tests.plain_gpt2 import PlainGPT2, brute_force

HEADS, LAYERS, WIDTH = 2, 3, 16
# Attention that is not saturated, and an unembedding that makes effects large.
SCALES = {"c_attn": 0.3, "attn.c_proj": 1.0, ".ln_": 0.3, "lm_head": 6.0, "": 0.5}


def save_random(folder: Path, gain: float = 1.0) -> Path:
    """A small GPT-2 whose weights are so large that edges move the logit difference.

    With a small gain its blocks are nearly linear.
    """
    handbuilt.save(folder)
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=len(handbuilt.vocabulary()), n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        n_positions=64, bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    network = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            scale = next(size for part, size in SCALES.items() if part in name)
            parameter.normal_(std=scale * (gain if ".c_" in name else 1.0))
            if ".ln_" in name and name.endswith("weight"):
                parameter.add_(1.0)
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random(tmp_path_factory.mktemp("random"))


@pytest.fixture(scope="module")
def plain(folder: Path) -> PlainGPT2:
    return PlainGPT2(folder, HEADS)


@pytest.fixture(scope="module")
def model(folder: Path) -> TransformerBridge:
    """In float64 and not folded, so that nothing is hidden by rounding or by folding."""
    return random_models.boot(folder, folded=False, dtype=torch.float64)


@pytest.fixture(scope="module")
def data(model: TransformerBridge) -> IOIDataset:
    """An ABBA and a BABA prompt of different lengths."""
    data = IOIDataset.generate(model.tokenizer, 8, prefixes="bundled", paired=False, seed=1)
    rows = [data.orders.index("ABBA"), data.orders.index("BABA")]
    assert data.lengths[rows].unique().numel() == 2
    return data[rows]


@pytest.fixture(scope="module")
def demo(model: TransformerBridge) -> IOIDataset:
    return IOIDataset.demo(model.tokenizer)[:4]


def by_brute_force(
    plain: PlainGPT2,
    data: IOIDataset,
    reference: IOIDataset,
    senders: Sequence[Node],
    receiver_sets: Iterable[Sequence[Receiver]],
    answers: IOIDataset | None = None,
    **settings: Any,
) -> Tensor:
    """The logit difference of each set of receivers and each prompt."""
    answers = answers or data
    found = []
    for row in range(len(data)):
        length = int(data.lengths[row])

        def at(role: str | None, row: int = row, length: int = length) -> list[int]:
            return list(range(length)) if role is None else [int(answers.positions[role][row])]

        def written(receiver: Receiver) -> Any:
            node = receiver.node
            if node is None:
                return LAYERS, None, "final", at("END"), None
            queries = None if node.role is None else at(node.role)
            return node.layer, node.head, receiver.input, at(receiver.role), queries

        every = brute_force(
            plain,
            data.tokens[row, :length],
            reference.tokens[row, :length],
            [((node.layer, node.head), at(node.role)) for node in senders],
            [[written(receiver) for receiver in receivers] for receivers in receiver_sets],
            **settings,
        )
        io, s = answers.io_tokens[row], answers.s_tokens[row]
        found.append(torch.stack([logits[io] - logits[s] for logits in every]))
    return torch.stack(found, dim=1)


def nodes(role: str | None = None) -> list[Node]:
    return [EMBEDDING.at(role), *Shape(LAYERS, HEADS).nodes((role,), mlps=True)]


def each(senders: Sequence[Node]) -> dict[str, Node]:
    return {str(node): node for node in senders}


def has_hooks(model: TransformerBridge) -> bool:
    return any(point.fwd_hooks or point.bwd_hooks for point in model.hook_dict.values())


def effects(result: SweepResult) -> Tensor:
    """[cell batch]."""
    effect = result.effect()
    return effect.reshape(-1, effect.shape[-1])


def possible(result: SweepResult) -> Tensor:
    return torch.tensor(result.index_df["possible"].tolist())


def quiet(*arguments: Any, **settings: Any) -> SweepResult:
    return path_sweep(*arguments, progress=False, **settings)


# --- the definition ------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["END", "S2", None])
@pytest.mark.parametrize("mlps", ["recomputed", "frozen"])
def test_every_path_equals_brute_force(
    model: TransformerBridge, plain: PlainGPT2, data: IOIDataset, role: str | None, mlps: str
) -> None:
    """Every sender to every input on its own. Median effect of possible paths above 0.01 logits."""
    reference = data.abc()
    receivers = every_input(model, ("q", "k", "v", "in", "final"), role)
    senders = nodes(role)
    if role is None:  # a few are enough
        senders = senders[::3]
    result = quiet(model, data, reference, each(senders), receivers, mlps=mlps, engine="fast")
    wanted = [[receiver] for receiver in receivers.values()]
    frozen = mlps == "frozen"
    expected = torch.stack(
        [by_brute_force(plain, data, reference, [n], wanted, mlps_frozen=frozen) for n in senders]
    )
    torch.testing.assert_close(result.values, expected, atol=1e-9, rtol=0.0)
    assert float(effects(result)[possible(result)].abs().median()) >= 0.01
    # No cell is zero unless the path is impossible. (END's token is the same in both runs, so that
    # the embedding has nothing to send there.)
    zero = (effects(result) == 0).all(dim=1)
    embedding = torch.tensor([label.startswith("embedding") for label in result.labels])
    assert zero[~possible(result)].all()
    assert not zero[possible(result) & (~embedding if role != "S2" else True)].any()


SETS: dict[str, list[Any]] = {
    "queries of two layers": [("L1H0", "q", "END"), ("L2H1", "q", "END")],
    "values and keys": [("L1H0", "v", "S2"), ("L1H1", "k", "S1"), ("L2H0", "v", "S2")],
    "MLPs and heads": [("MLP1", "in", "END"), ("L1H1", "q", "END"), ("L2H0", "k", "S2")],
    "MLPs alone": [("MLP0", "in", "IO"), ("MLP1", "in", "S2"), ("MLP2", "in", "END")],
    "everywhere": [("L1H0", "k"), ("L1H0", "v"), ("MLP1", "in"), ("L2H1", "q")],
    "with the final stream": [("L1H0", "q", "END"), "final"],
    "for END's query": [
        Edge(Node(0, 0, "S2"), Node(1, 0, "END"), "v"),
        Edge(Node(0, 0, "IO"), Node(2, 1, "END"), "k"),
    ],
    "for two queries": [
        Receiver(Node(1, 0, "END"), "v", "S1"),
        Receiver(Node(1, 1, "S2"), "k", "S1"),
        Receiver(Node(2, 0, "END"), "v", "S1+1"),
        ("L2H0", "v", "S1"),
        ("L1H1", "q", "S2"),
    ],
    "for a query alone": [Receiver(Node(2, 1, "END"), "v", "S2")],
}


@pytest.mark.parametrize("mlps", ["recomputed", "frozen"])
@pytest.mark.parametrize("name", SETS)
def test_sets_of_receivers_equal_brute_force(
    model: TransformerBridge, plain: PlainGPT2, data: IOIDataset, name: str, mlps: str
) -> None:
    reference = data.abc()
    senders = {
        "embedding": [EMBEDDING],
        "a head": [Node(0, 1)],
        "an MLP": [Node(0, None)],
        "several": [Node(0, 0), Node(1, 1, "END"), Node(1, None, "S2"), Node(0, 1, "S1")],
    }
    result = quiet(model, data, reference, senders, SETS[name], mlps=mlps, engine="fast")
    inputs = parse_receivers(model, SETS[name]).inputs
    frozen = mlps == "frozen"
    expected = [
        by_brute_force(plain, data, reference, members, [inputs], mlps_frozen=frozen)[0]
        for members in senders.values()
    ]
    torch.testing.assert_close(result.values, torch.stack(expected), atol=1e-9, rtol=0.0)
    assert float(effects(result).abs().max()) > 0.01


def test_denoising_is_the_other_way_round(
    model: TransformerBridge, plain: PlainGPT2, data: IOIDataset
) -> None:
    reference = data.abc()
    receivers = [Receiver(Node(1, 0), "q", "END"), Receiver(Node(2, 1), "v", "S2")]
    result = path_patch(model, data, reference, "MLP0", receivers, direction="denoising")
    expected = by_brute_force(plain, reference, data, [Node(0, None)], [receivers], answers=data)
    torch.testing.assert_close(result.values, expected[0], atol=1e-9, rtol=0.0)
    assert result.baseline is not None
    torch.testing.assert_close(
        result.baseline, metrics.logit_diff(model(reference.tokens), data, per_prompt=True)
    )


# --- engines -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hand-built", "folded", "ioi-mini"])
def test_the_two_engines_agree(built: TransformerBridge, folder: Path, name: str) -> None:
    other = {
        "hand-built": lambda: built,
        "folded": lambda: random_models.boot(folder),
        "ioi-mini": lambda: load_model("ioi-mini", device="cpu", verbose=False),
    }[name]()
    last = other.cfg.n_layers - 1
    data = IOIDataset.generate(other.tokenizer, 4, prefixes="bundled", seed=2)
    receivers = {
        "logits": "final",
        "queries": [(f"L{last}H0", "q", "END"), (f"L{last - 1}H1", "q", "END")],
        "values": [("L1H0", "v", "S2"), ("L1H1", "k", "S1")],
        "MLP": (f"MLP{last - 1}", "in", "END"),
        "one query's": [Receiver(Node(1, 0, "END"), "v", "IO")],
    }
    senders = each([EMBEDDING, Node(0, 1), Node(0, None), Node(1, 0), Node(last, 1)])
    for mlps, direction in [("recomputed", "noising"), ("frozen", "denoising")]:
        found = [
            quiet(
                other, data, None, senders, receivers, mlps=mlps, direction=direction, engine=engine
            )
            for engine in ("fast", "hooks")
        ]
        scale = max(1.0, float(effects(found[1]).abs().max()))
        torch.testing.assert_close(found[0].values, found[1].values, atol=1e-5 * scale, rtol=0.0)
        assert found[0].index_df.equals(found[1].index_df)
        zero = (effects(found[1]) == 0).all(dim=1)
        assert zero[~possible(found[1])].all()
    assert not has_hooks(other)


@pytest.mark.parametrize("architecture", ["gpt-j", "mpt"])
def test_other_architectures_take_hooks_and_say_so(
    tmp_path: Path, architecture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """All heads at END into the final stream give the reference run's own answer."""
    other = random_models.boot(random_models.save(tmp_path, architecture))
    data = random_models.prompts(other)[:4]
    heads = Shape.of(other).nodes(("END",))
    result = path_patch(other, data, None, heads, "final", progress=False)
    assert capsys.readouterr().out.startswith("Path patching runs the whole model for each pass")
    assert result.corrupted is not None
    torch.testing.assert_close(result.values, result.corrupted, atol=1e-4, rtol=0.0)
    assert float((result.values - result.clean).abs().min()) > 1e-3
    # All earlier heads into one query are that query itself.
    query = ("L1H0", "q", "END")
    into = path_patch(other, data, None, [n for n in heads if n.layer == 0], query, progress=False)
    patched = patch_sweep(
        other, data, data.abc(), "q", ("layer", "role", "head"), roles=("END",),
        direction="noising", progress=False,
    )  # fmt: skip
    torch.testing.assert_close(into.values, patched.values[1, 0, 0], atol=1e-4, rtol=0.0)
    with pytest.raises(ValueError, match="fast path cannot run this model"):
        path_patch(other, data, None, heads, "final", engine="fast")


# --- TransformerLens -----------------------------------------------------------------------------


@pytest.mark.parametrize("component", ["q", "k", "v"])
def test_equals_transformer_lens_in_the_mode_of_its_edge(
    model: TransformerBridge, demo: IOIDataset, component: str
) -> None:
    clean, corrupted = demo, demo.abc()
    caches = [model.run_with_cache(tokens)[1] for tokens in (clean.tokens, corrupted.tokens)]
    expected = tl_patching.get_act_patch_direct_path_all_sources(
        model, corrupted.tokens, *caches, lambda logits: metrics.logit_diff(logits, clean),
        component, verbose=False,
    )  # fmt: skip
    result = direct_path_sweep(model, clean, corrupted, component, progress=False)
    mean = result.mean()
    later = expected != 0
    assert later.sum() == HEADS * HEADS * LAYERS * (LAYERS - 1) / 2
    assert later.flatten().equal(possible(result))
    torch.testing.assert_close(mean[later].float(), expected[later], atol=1e-5, rtol=0.0)
    assert float((mean - result.corrupted.mean())[later].abs().median()) > 0.01  # type: ignore[union-attr]


def test_the_lines_in_the_docstring(model: TransformerBridge, demo: IOIDataset) -> None:
    """One edge by hand in plain TransformerLens: L0H1 at S2 to the values of L2H0 at S2."""
    data, reference = demo, demo.abc()
    s2, rows = data.positions["S2"], torch.arange(len(data))
    _, theirs = model.run_with_cache(reference.tokens)
    _, ours = model.run_with_cache(data.tokens)

    def freeze(z: Tensor, hook: Any, layer: int) -> Tensor:
        z[:] = ours["z", layer]
        if layer == 0:
            z[rows, s2, 1] = theirs["z", 0][rows, s2, 1]
        return z

    recorded = {}

    def record(v: Tensor, hook: Any) -> None:
        recorded["v"] = v[rows, s2, 0].clone()

    attention = [
        (f"blocks.{layer}.attn.hook_z", partial(freeze, layer=layer)) for layer in range(LAYERS)
    ]
    model.run_with_hooks(data.tokens, fwd_hooks=[*attention, ("blocks.2.attn.hook_v", record)])

    def put_in(v: Tensor, hook: Any) -> Tensor:
        v[rows, s2, 0] = recorded["v"]
        return v

    logits = model.run_with_hooks(data.tokens, fwd_hooks=[("blocks.2.attn.hook_v", put_in)])
    effect = metrics.logit_diff(logits, data) - metrics.logit_diff(model(data.tokens), data)
    result = path_patch(model, data, reference, ("L0H1", "S2"), ("L2H0", "v", "S2"))
    torch.testing.assert_close(result.effect().mean(), effect, atol=1e-9, rtol=0.0)
    assert abs(float(effect)) > 1e-3


# --- identities ----------------------------------------------------------------------------------


def test_a_reference_equal_to_the_data_does_nothing(
    model: TransformerBridge, data: IOIDataset
) -> None:
    receivers = every_input(model, ("q", "k", "v", "in", "final"))
    assert not quiet(model, data, data, "all", receivers).effect().any()


def test_positions_before_the_first_difference_pass_nothing(
    model: TransformerBridge, demo: IOIDataset
) -> None:
    """With the subject swapped only S2 differs, so nothing happens at IO and S1."""
    reference = demo.swap_subject()
    receivers = {role: [("L1H0", "v", role), ("L1H1", "k", role)] for role in ("IO", "S1", "S2")}
    effect = quiet(model, demo, reference, "all", receivers).effect().abs().amax(dim=-1)
    assert not effect[:, :2].any()
    assert effect[1:3, 2].all()


def test_a_path_stays_at_its_token(model: TransformerBridge, data: IOIDataset) -> None:
    senders = each(nodes("S2"))
    receivers = every_input(model, ("q", "k", "v", "in", "final"), "END")
    result = quiet(model, data, None, senders, receivers)
    assert not result.effect().any()
    assert not possible(result).any()


def test_senders_everywhere_are_senders_at_end(model: TransformerBridge, data: IOIDataset) -> None:
    """For the logits and queries at END, but not for values."""
    receivers: dict[str, Any] = every_input(model, ("q", "final"), "END")
    at_end, everywhere = (
        quiet(model, data, None, each(nodes(role)), receivers) for role in ("END", None)
    )
    torch.testing.assert_close(at_end.values, everywhere.values, atol=1e-12, rtol=0.0)
    values = ("L1H0", "v")
    at_s2, everywhere = (quiet(model, data, None, ("L0H0", role), values) for role in ("S2", None))
    assert float((at_s2.values - everywhere.values).abs().min()) > 1e-3


def test_with_nothing_frozen_it_is_activation_patching(
    model: TransformerBridge, plain: PlainGPT2, data: IOIDataset
) -> None:
    """... which path patching to the logits is for the last layer's heads at END."""
    reference = data.abc()
    patched = patch_sweep(
        model, data, reference, "z", ("layer", "head"), direction="noising", progress=False
    ).values
    for node in (Node(0, 1), Node(1, 0), Node(2, 1)):
        free = by_brute_force(plain, data, reference, [node], [[FINAL]], freeze_attention=False)
        torch.testing.assert_close(free[0], patched[node.layer, node.head], atol=1e-9, rtol=0.0)
    last = quiet(model, data, reference).values[-1]
    torch.testing.assert_close(last, patched[-1], atol=1e-9, rtol=0.0)
    assert float((quiet(model, data, reference).values[0] - patched[0]).abs().min()) > 1e-3


def test_all_heads_at_end_give_the_references_own_answer(
    model: TransformerBridge, data: IOIDataset
) -> None:
    heads = Shape(LAYERS, HEADS).nodes(("END",))
    both = Shape(LAYERS, HEADS).nodes(("END",), mlps=True)
    result = path_patch(model, data, None, heads, "final")
    assert result.corrupted is not None
    torch.testing.assert_close(result.values, result.corrupted, atol=1e-9, rtol=0.0)
    frozen = path_patch(model, data, None, heads, "final", mlps="frozen")
    assert float((frozen.values - result.corrupted).abs().min()) > 1e-2
    frozen = path_patch(model, data, None, both, "final", mlps="frozen")
    torch.testing.assert_close(frozen.values, result.corrupted, atol=1e-9, rtol=0.0)


@pytest.mark.parametrize("role", ["END", "S2"])
@pytest.mark.parametrize("site", ["q", "k", "v"])
def test_all_earlier_heads_into_an_input_are_that_input(
    model: TransformerBridge, data: IOIDataset, role: str, site: str
) -> None:
    """At a role whose token differs the embedding must be a sender too."""
    patched = patch_sweep(
        model, data, data.abc(), site, ("layer", "role", "head"), roles=(role,),
        direction="noising", progress=False,
    )  # fmt: skip
    heads = [node for node in Shape(LAYERS, HEADS).nodes((role,)) if node.layer < 2]
    with_embedding = [EMBEDDING.at(role), *heads]
    into = {"without": heads, "with": with_embedding}
    found = quiet(model, data, None, into, ("L2H1", site, role)).values
    expected = patched.values[2, 0, 1]
    torch.testing.assert_close(found[1], expected, atol=1e-9, rtol=0.0)
    if role == "END":
        torch.testing.assert_close(found[0], expected, atol=1e-9, rtol=0.0)
    elif site != "q":  # which nothing reads, in the last layer
        assert float((found[0] - expected).abs().max()) > 1e-3


def test_with_mlps_frozen_the_way_to_the_logits_has_a_closed_form(
    model: TransformerBridge, data: IOIDataset
) -> None:
    """LN_final(x + W_O (z' - z)), read by the unembedding."""
    result = quiet(model, data, None, mlps="frozen").values
    runs = [model.run_with_cache(part.tokens)[1] for part in (data, data.abc())]
    for layer, head in itertools.product(range(LAYERS), range(HEADS)):
        z, other = (data.gather(run["z", layer], "END")[:, head] for run in runs)
        written = (other - z) @ model.blocks[layer].attn.W_O[head]
        final = data.gather(runs[0][f"blocks.{LAYERS - 1}.hook_resid_post"], "END") + written
        logits = model.unembed(model.ln_final(final[:, None]))[:, 0]
        expected = metrics.logit_diff(logits, data, per_prompt=True)
        torch.testing.assert_close(result[layer, head], expected, atol=1e-9, rtol=0.0)


def test_with_the_final_stream_other_receivers_change_nothing(
    model: TransformerBridge, data: IOIDataset
) -> None:
    both = path_patch(model, data, None, "L0H1", ["final", ("L1H0", "q", "END")])
    alone = path_patch(model, data, None, "L0H1", "final")
    assert both.values.equal(alone.values)


def test_effects_do_not_add_up(model: TransformerBridge, data: IOIDataset) -> None:
    """Neither over senders nor over receivers, as LayerNorm and attention are not linear."""
    query, other = ("L1H0", "q", "END"), ("L2H1", "q", "END")
    senders = {"one": ["L0H0"], "other": ["L0H1"], "both": ["L0H0", "L0H1"]}
    receivers = {"one": query, "other": other, "both": [query, other]}
    effect = quiet(model, data, None, senders, receivers).effect()
    for sums in (effect[0] + effect[1] - effect[2], effect[:, 0] + effect[:, 1] - effect[:, 2]):
        assert float(sums.abs().amax()) > 1e-3


def test_batches_do_not_matter(model: TransformerBridge, data: IOIDataset) -> None:
    twice = data[[0, 1, 1, 0]]
    receivers = {"a": ("L1H0", "v", "S2"), "b": [("L1H1", "q", "END"), ("L2H0", "k", "IO")]}
    at_once = quiet(model, twice, twice.abc(), "all", receivers)
    in_parts = quiet(model, twice, twice.abc(), "all", receivers, memory=1)
    torch.testing.assert_close(at_once.values, in_parts.values, atol=1e-12, rtol=0.0)


# --- what was built by hand ----------------------------------------------------------------------

# For some receivers of the hand-built model with MLP2 on one way: the reference, who sends what
# moves the answer, and which of these only where MLPs are recomputed.
BUILT: dict[str, tuple[Any, str, set[str], set[str]]] = {
    "name movers' queries": (
        [(head, "q", "END") for head in ("L3H0", "L3H2", "L3H3")],
        "abc",
        {"L2H1", "L2H3", "MLP2"},
        {"L2H1"},
    ),
    "S-inhibition's values": (("L2H1", "v", "S2"), "abc", {"L1H0", "L1H2"}, set()),
    "S-inhibition's keys": ([("L2H1", "k", "S2"), ("L2H3", "k", "S2")], "abc", {"L0H3"}, set()),
    "identity": (("L2H3", "v", "S2"), "abc", {"embedding"}, set()),
    "induction's keys": (("L1H0", "k", "S1+1"), "abc", {"L0H1"}, set()),
    "name movers' values": (("L3H0", "v", "IO"), "abc", {"embedding"}, set()),
    "name movers' keys": (
        [(head, "k", role) for head in ("L3H0", "L3H2", "L3H3") for role in ("IO", "S1")],
        "abc",
        {"embedding"},
        set(),
    ),
    "the order's bit": (("L2H1", "v", "S2"), "swap_order", {"L1H0", "L1H2"}, set()),
    # L0H1 writes there whether the token stands after " and", whatever the names are.
    "duplicate tokens' values": (("L1H2", "v", "S1"), "swap_order", set(), set()),
}


@pytest.mark.parametrize("mlps", ["recomputed", "frozen"])
@pytest.mark.parametrize("reference", ["abc", "swap_order"])
def test_finds_what_was_built(
    built_through_mlp: TransformerBridge, reference: str, mlps: str
) -> None:
    model = built_through_mlp
    data = IOIDataset.generate(model.tokenizer, 16, prefixes="bundled", seed=4)
    asked = {name: entry for name, entry in BUILT.items() if entry[1] == reference}
    receivers = {name: entry[0] for name, entry in asked.items()}
    result = quiet(model, data, getattr(data, reference)(), "all", receivers, mlps=mlps)
    effect = result.effect().abs().mean(dim=-1)
    # What is there is large, and what is not is zero up to LayerNorm's scale.
    assert not ((effect > 1e-3) & (effect < 0.05)).any()
    names = result.index_df["sender"].unique()
    for column, (_, _, senders, through_mlp) in zip(effect.T, asked.values(), strict=True):
        found = {name for name, size in zip(names, column.tolist(), strict=True) if size > 0.05}
        assert found == senders - (through_mlp if mlps == "frozen" else set())


def test_the_size_of_what_was_built(built_through_mlp: TransformerBridge) -> None:
    """Without the order bit a name mover still avoids S by identity, and the other way round."""
    model = built_through_mlp
    data = IOIDataset.generate(model.tokenizer, 16, prefixes="bundled", seed=4)
    movers = [(head, "q", "END") for head in ("L3H0", "L3H2", "L3H3")]
    for sender, order, identity in (("L2H1", 0.0, 1.0), ("L2H3", 1.0, 0.0), ("MLP2", 0.0, 1.0)):
        result = path_patch(model, data, None, sender, movers)
        expected = torch.full_like(result.values, handbuilt.expected_logit_diff(order, identity))
        torch.testing.assert_close(result.values, expected, atol=2e-3, rtol=0.0)
    into_mlp = path_patch(model, data, None, "L2H1", ("MLP2", "in", "END"))
    expected = torch.full_like(into_mlp.values, handbuilt.expected_logit_diff(order=0.0))
    torch.testing.assert_close(into_mlp.values, expected, atol=2e-3, rtol=0.0)


# --- what is refused -----------------------------------------------------------------------------

REFUSED: dict[str, tuple[Any, Any, str]] = {
    "no sender": ([], "final", "There is no sender"),
    "no receiver": ("L0H0", [], "There is no receiver"),
    "no such head": ("L7H0", "final", "no L7H0 in this model"),
    "no such receiver": ("L0H0", ("L1H9", "q"), "no L1H9 in this model"),
    "not a head": ("head 3", "final", "names neither a head nor an MLP"),
    "no input": ("L0H0", ("L1H0", "in", "END"), "L1H0 has no input 'in'"),
    "no receiver at all": ("L0H0", 7, "7 is not a receiver"),
    "the embedding reads": ("L0H0", ("embedding", "in"), "can only send"),
    "unknown role": (("L0H0", "S3"), "final", "'S3' is not a role"),
    "unknown role of a receiver": ("L0H0", ("L1H0", "q", "S3"), "'S3' is not a role"),
    "not after": ("L1H0", ("L1H1", "q", "END"), "q of L1H1 at END does not come after L1H0"),
    "own layer's head": ("MLP1", ("L1H1", "v", "S2"), "does not come after MLP1"),
    "other token": (("L0H0", "S2"), ("L1H1", "q", "END"), "a path stays at its token"),
    "unread": ("L0H0", ("L2H1", "q", "S2"), "nothing reads what the last block makes"),
    "a sweep": ("heads", "final", "use path_sweep"),
    "a sweep of receivers": ("L0H0", {"a": "final"}, "use path_sweep"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals(model: TransformerBridge, data: IOIDataset, what: str) -> None:
    senders, receivers, message = REFUSED[what]
    with pytest.raises(ValueError, match=message) as error:
        path_patch(model, data, None, senders, receivers)
    assert str(error.value).count(". ") == 0


def test_misaligned_references_are_refused(model: TransformerBridge, data: IOIDataset) -> None:
    generate = partial(IOIDataset.generate, model.tokenizer, 2, paired=False)
    references: list[tuple[Any, str]] = [
        (data.abc()[:1], "correspond row by row"),
        (generate(prepend_bos=False), "prepend_bos"),
        (
            generate(templates=["Then [A] and [B] went home, [B] gave it to [A]"]),
            "has the template",
        ),
        (data[[1, 0]].abc(), "template|tokens"),
        (data.tokens, "dataset"),
    ]
    for reference, message in references:
        with pytest.raises(ValueError, match=message):
            path_patch(model, data, reference, "L0H0", "final")
    longer = IOIDataset.generate(
        model.tokenizer, 2, paired=False, seed=1, prefixes=["It was late and cold."]
    )
    shorter = IOIDataset.generate(model.tokenizer, 2, paired=False, seed=1)
    with pytest.raises(ValueError, match="positions do not correspond"):
        path_patch(model, longer, shorter, "L0H0", "final")


def test_options_are_checked(model: TransformerBridge, data: IOIDataset, tmp_path: Path) -> None:
    for wrong, message in (
        ({"mlps": "cold"}, "mlps must be"),
        ({"engine": "slow"}, "engine must be"),
        ({"memory": 0}, "memory must be"),
        ({"direction": "back"}, "direction must be"),
    ):
        with pytest.raises(ValueError, match=message):
            path_patch(model, data, None, "L0H0", "final", **wrong)  # type: ignore[arg-type]
    model.blocks[1].train()
    try:
        with pytest.raises(ValueError, match="training mode"):
            path_patch(model, data, None, "L0H0", "final")
    finally:
        model.eval()
    with pytest.raises(ValueError, match="'x' is not an input"):
        every_input(model, ("x",))


def test_keys_and_values_that_heads_share_are_no_single_heads(tmp_path: Path) -> None:
    other = random_models.boot(random_models.save(tmp_path, "llama"), folded=False)
    data = random_models.prompts(other)[:2]
    with pytest.raises(ValueError, match="several heads share one key and value"):
        path_patch(other, data, None, "L0H0", ("L1H1", "v", "S2"), progress=False)
    # Queries are every head's own.
    result = path_patch(other, data, None, "L0H0", ("L1H1", "q", "END"), progress=False)
    assert result.effect().abs().min() > 0


def test_in_parallel_blocks_a_head_does_not_reach_the_mlp_beside_it(tmp_path: Path) -> None:
    other = random_models.boot(random_models.save(tmp_path, "pythia"), folded=False)
    data = random_models.prompts(other)[:2]
    with pytest.raises(ValueError, match="input of MLP1 does not come after L1H1"):
        path_patch(other, data, None, "L1H1", ("MLP1", "in"), progress=False)
    result = path_patch(other, data, None, "L0H1", ("MLP1", "in"), progress=False)
    assert result.effect().abs().min() > 0


# --- interrupts and files ------------------------------------------------------------------------


def test_an_interrupt_leaves_no_hooks(
    model: TransformerBridge, data: IOIDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **settings: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Parts, "put", interrupted)
    for engine in ("fast", "hooks"):
        with pytest.raises(KeyboardInterrupt):
            quiet(model, data, None, engine=engine)
        assert not has_hooks(model)


@pytest.mark.parametrize("engine", ["fast", "hooks"])
def test_a_file_goes_on_where_it_stopped(
    model: TransformerBridge,
    data: IOIDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
) -> None:
    receivers = every_input(model, ("q",), "END")
    senders = each(nodes()[:3])
    sweep = partial(quiet, model, data, None, senders, receivers, engine=engine)
    whole, file = sweep(), tmp_path / "parts.safetensors"
    put = Parts.put
    calls: list[int] = []

    def interrupted(self: Parts, *arguments: Any) -> None:
        if len(calls) == 3:
            raise KeyboardInterrupt
        counted(self, *arguments)

    def counted(self: Parts, *arguments: Any) -> None:
        calls.append(arguments[0])
        put(self, *arguments)

    monkeypatch.setattr(Parts, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(file=file)
    monkeypatch.setattr(Parts, "put", counted)
    resumed = sweep(file=file)
    # Nothing was done twice.
    assert len(calls) == len(receivers) * (len(senders) if engine == "hooks" else 1)
    torch.testing.assert_close(resumed.values, whole.values, atol=1e-12, rtol=0.0)
    assert resumed.clean.equal(whole.clean)
    assert [path.name for path in tmp_path.iterdir()] == ["parts.safetensors"]
    with pytest.raises(ValueError, match="does not hold parts of this very sweep"):
        sweep(file=file, mlps="frozen")
    (tmp_path / "other").write_text("nothing")
    with pytest.raises(ValueError, match="no safetensors file"):
        sweep(file=tmp_path / "other")


# --- results -------------------------------------------------------------------------------------


def test_results_carry_their_labels(model: TransformerBridge, data: IOIDataset) -> None:
    heads = quiet(model, data)
    assert heads.axis_names == ["layer", "head"]
    assert heads.labels[0] == "L0H0 to final stream"
    assert heads.values.shape == (LAYERS, HEADS, len(data))
    mlps = quiet(model, data, None, "mlps", every_input(model, ("q", "final"), "END"))
    assert mlps.axis_names == ["layer", "receiver"]
    assert mlps.values.shape == (LAYERS, LAYERS * HEADS + 1, len(data))
    one = path_patch(model, data, None, ("L0H0", "END"), [("L1H0", "q", "END"), "final"])
    assert one.axis_names == []
    assert one.labels == ["L0H0 at END to q of L1H0 at END + final stream"]
    assert one.method == "path patching"
    assert heads.clean.equal(one.clean)
    torch.testing.assert_close(
        heads.clean, metrics.logit_diff(model(data.tokens), data, per_prompt=True)
    )
    assert heads.corrupted is not None
    torch.testing.assert_close(
        heads.corrupted, metrics.logit_diff(model(data.abc().tokens), data, per_prompt=True)
    )


def test_gradients_are_neither_made_nor_switched_off(
    model: TransformerBridge, data: IOIDataset
) -> None:
    result = quiet(model, data)
    assert not result.values.requires_grad
    assert torch.is_grad_enabled()


def test_receivers_say_what_they_are() -> None:
    assert str(FINAL) == "final stream"
    assert str(Receiver(Node(1, 0), "q", "END")) == "q of L1H0 at END"
    assert str(Receiver(Node(1, None), "in")) == "input of MLP1"
    assert str(Receiver(Node(1, 0, "END"), "v", "S2")) == "v of L1H0 at S2 for END"
