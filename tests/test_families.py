"""Decoders of every family that the equations run, against plain PyTorch hooks on their modules."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import ablation, circuits, forward, patching, path_patching, runs
from ioi_helpers.circuits import Heads, Stream
from ioi_helpers.circuits.edges import EdgeMask, run_edges, sources
from ioi_helpers.dataset import ROLES, IOIDataset
from ioi_helpers.edits import attention_edit, head_edit, residual_edit
from ioi_helpers.graph import EMBEDDING, Circuit, Edge, Node, NodeLike, Shape, parse_node
from ioi_helpers.models import handbuilt
from ioi_helpers.patching.request import HEAD_SITES, SITES
from ioi_helpers.path_patching.language import shares_keys
from tests.plain_decoders import Change, PlainDecoder
from tests.random_models import boot, prompts, save

OFTEN = ("gpt2", "pythia", "llama", "gemma2")
SELDOM = (
    "stanford", "gpt-neo", "opt", "neox-serial", "mistral", "qwen2", "qwen3", "starcoder2",
    "gemma2-uncapped",
)  # fmt: skip
FAMILIES = [*OFTEN, *(pytest.param(name, marks=pytest.mark.slow) for name in SELDOM)]
PARALLEL = ("pythia",)


class Family:
    """A small random model of a family, once as a bridge and once as plain PyTorch."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.folder = name, save(folder, name)
        self.model = self.bridge()
        self.plain = PlainDecoder(self.folder)
        self.data = prompts(self.model)

    @cache  # noqa: B019
    def bridge(self, folded: bool = True, dtype: torch.dtype = torch.float32) -> TransformerBridge:
        return boot(self.folder, folded, dtype)


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    return cache(lambda name: Family(tmp_path_factory.mktemp("family"), name))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, families: Callable[[str], Family]) -> Family:
    return families(request.param)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Equal to a share of how far values are spread."""
    spread = float(expected.double().std())
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=tolerance * spread)


# --- runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("folded", [True, False], ids=["folded", "raw"])
def test_logits_are_the_wrapped_models(family: Family, folded: bool) -> None:
    model, data = family.bridge(folded), family.data
    gpt, why = forward.usable_weights(model)
    assert gpt is not None, why
    found = forward.unembed(gpt, forward.run(gpt, data.tokens, data.lengths - 1).final)
    expected = family.plain.logits(data)
    if folded:  # centring of the unembedding leaves a constant open
        found, expected = found.log_softmax(-1), expected.log_softmax(-1)
    close(found, expected)


@pytest.mark.slow
def test_double_precision(family: Family) -> None:
    """Hugging Face computes norms, softmax or rotary angles in float32 but in GPT-2.

    So does TransformerLens when it folds, so the model is taken as it is.
    """
    model, data = family.bridge(False, torch.float64), family.data
    plain = PlainDecoder(family.folder, torch.float64)
    gpt, why = forward.usable_weights(model)
    assert gpt is not None, why
    final = forward.run(gpt, data.tokens, data.lengths - 1).final
    found = forward.logit_diffs(gpt, final, data.io_tokens, data.s_tokens)
    assert found.dtype == torch.float64
    exact = family.name in ("gpt2", "stanford")
    close(found, plain.logit_diffs(data), 1e-9 if exact else 5e-6)


def patched(
    plain: PlainDecoder, clean: IOIDataset, corrupted: IOIDataset, site: str,
    layer: int, head: int | None, role: str | None,
) -> Tensor:  # fmt: skip
    """One denoising patch by plain hooks: the logit difference of each prompt."""
    source = plain.kept(clean, site)[layer]
    rows = torch.arange(len(clean))
    at = (slice(None), slice(None)) if role is None else (rows, clean.positions[role])

    def put(value: Tensor) -> Tensor:
        value = value.clone()
        where = at if head is None else (*at, head)
        value[where] = source[where]
        return value

    def change_of_middle(attn_out: Tensor) -> Tensor:
        attn_out = attn_out.clone()
        attn_out[at] += source[at] - before[at]
        return attn_out

    def put_attention(z: Tensor) -> Tensor:
        z, new = z.clone(), plain.attended(source, values)
        where = at if head is None else (*at, head)
        z[where] = new[where]
        return z

    changes: list[tuple[str, int, Change]]
    if site == "resid_mid":
        before = plain.kept(corrupted, site)[layer]
        changes = [("attn_out", layer, change_of_middle)]
    elif site == "pattern":
        values = plain.kept(corrupted, "v")[layer]
        changes = [("z", layer, put_attention)]
    else:
        changes = [(site, layer, put)]
    logits = plain.logits(corrupted, changes)
    return logits[rows, clean.io_tokens] - logits[rows, clean.s_tokens]


@pytest.mark.parametrize("site", SITES)
def test_every_site_of_a_sweep(family: Family, site: str) -> None:
    model, clean = family.model, family.data
    corrupted = clean.swap_subject()
    axes = ("layer", "head") if site in HEAD_SITES else ("layer",)
    if site == "resid_mid" and family.name in PARALLEL:
        for engine in ("fast", "hooks"):
            with pytest.raises(ValueError, match="no blocks.0.hook_resid_mid"):
                patching.patch_sweep(model, clean, corrupted, site, ("layer",), engine=engine)
        return
    whole = patching.patch_sweep(model, clean, corrupted, site, axes, engine="fast")
    by_role = patching.patch_sweep(
        model, clean, corrupted, site, (*axes, "role"), roles=("S2", "END"), engine="fast"
    )
    expected, expected_by_role = whole.values.clone(), by_role.values.clone()
    for cell in torch.cartesian_prod(*(torch.arange(n) for n in whole.values.shape[:-1])):
        place = tuple(cell.reshape(-1).tolist())
        layer, head = place[0], place[1] if len(place) > 1 else None
        for i, role in enumerate((None, "S2", "END")):
            value = patched(family.plain, clean, corrupted, site, layer, head, role)
            if role is None:
                expected[place] = value
            else:
                expected_by_role[(*place, i - 1)] = value
    close(whole.values, expected)
    close(by_role.values, expected_by_role)
    assert whole.effect().abs().max() > 1e-2
    assert by_role.effect().abs().max() > 1e-2


# --- ablation and edits --------------------------------------------------------------------------


def test_ablation(family: Family) -> None:
    """Zero ablation depends on where value biases are, so it is asked of the model as it is."""
    model, data, plain = family.bridge(False), family.data, family.plain
    rows, end = torch.arange(len(data)), data.positions["END"]
    reference = data.abc()
    heads = [(0, 1), (1, 2)]
    resampled = {site: plain.kept(reference, site) for site in ("z", "mlp_out")}

    def put(
        layer: int, head: int | None, new: Tensor | None, at: str | None
    ) -> tuple[str, int, Change]:
        where = (slice(None), slice(None)) if at is None else (rows, data.positions[at])
        where = where if head is None else (*where, head)

        def change(value: Tensor) -> Tensor:
            value = value.clone()
            value[where] = 0.0 if new is None else new[where]
            return value

        return ("mlp_out" if head is None else "z", layer, change)

    cases = {
        "zero": {(layer, head): put(layer, head, None, None) for layer, head in heads},
        "resample": {
            (layer, head): put(layer, head, resampled["z"][layer], "END") for layer, head in heads
        },
    }
    for how, changes in cases.items():
        role = "END" if how == "resample" else None
        expected = {place: plain.logit_diffs(data, [change]) for place, change in changes.items()}
        for engine in ("fast", "hooks"):
            found = ablation.ablation_sweep(
                model, data, "heads", how=how, reference=reference, role=role, engine=engine
            )
            for place in heads:
                close(found.values[place], expected[place])
                assert (found.values[place] - found.baseline).abs().max() > 1e-3
    both = [put(0, 1, resampled["z"][0], None), put(1, None, resampled["mlp_out"][1], "END")]
    together = plain.logit_diffs(data, both)
    names: list[NodeLike] = ["L0H1", ("MLP1", "END")]
    found = ablation.ablation_sweep(
        model, data, {"both": names}, how="resample", reference=reference, engine="fast"
    )
    close(found.values[0], together)
    with ablation.ablate(model, names, "resample", reference=reference), torch.no_grad():
        logits = model(data.tokens)[rows, end]
    close(logits[rows, data.io_tokens] - logits[rows, data.s_tokens], together)


def test_edits_of_attention_heads_and_the_stream(family: Family) -> None:
    model, data, plain = family.bridge(False), family.data, family.plain
    rows, end = torch.arange(len(data)), data.positions["END"]
    generator = torch.Generator().manual_seed(1)
    pattern = torch.rand(len(data), data.tokens.shape[1], generator=generator)
    pattern *= torch.arange(pattern.shape[1]) <= end[:, None]
    pattern /= pattern.sum(dim=-1, keepdim=True)
    v = plain.kept(data, "v")[1].repeat_interleave(plain.n_heads // plain.n_kv, dim=2)

    def attend(z: Tensor) -> Tensor:
        z = z.clone()
        z[rows, end, 2] = torch.einsum("bk,bkd->bd", pattern, v[:, :, 2])
        return z

    found = runs.logit_diffs(model, data, [attention_edit(data, "END", "L1H2", pattern)])
    close(found, plain.logit_diffs(data, [("z", 1, attend)]))
    unedited = plain.logit_diffs(data)
    assert (found - unedited).abs().max() > 1e-3

    new = torch.randn(len(data), plain.d_head, generator=generator)

    def write(z: Tensor) -> Tensor:
        z = z.clone()
        z[rows, data.positions["S2"], 1] = new
        return z

    found = runs.logit_diffs(model, data, [head_edit(data, "S2", "L0H1", new)])
    close(found, plain.logit_diffs(data, [("z", 0, write)]))
    assert (found - unedited).abs().max() > 1e-3

    for point in runs.residual_points(model):
        layer, stage = runs.parse_point(point)
        site = f"resid_{stage}"
        before = plain.kept(data, site)[layer]
        x = before[rows, end] + 0.5 * torch.randn(before[rows, end].shape, generator=generator)
        change = torch.zeros_like(before)
        change[rows, end] = x - before[rows, end]
        place = ("attn_out" if stage == "mid" else site, layer, lambda y, d=change: y + d)
        found = runs.logit_diffs(model, data, [residual_edit(data, "END", point, x)])
        close(found, plain.logit_diffs(data, [place]))
        assert (found - unedited).abs().max() > 1e-3


def test_probing_points(family: Family) -> None:
    model, data, plain = family.bridge(False), family.data, family.plain
    points = runs.residual_points(model)
    assert len(points) == plain.n_layers * (1 if family.name in PARALLEL else 2) + 1
    found = runs.activations_at(model, data, "S2", points)
    for point in points:
        layer, stage = runs.parse_point(point)
        expected = data.gather(plain.kept(data, f"resid_{stage}")[layer], "S2")
        close(found[point], expected)


# --- paths and circuits: by the equations and by hooks -------------------------------------------


@pytest.mark.parametrize("mlps", ["recomputed", "frozen"])
def test_path_patching(family: Family, mlps: str) -> None:
    model, data = family.model, family.data
    receivers = {
        "queries": [("L1H0", "q", "END"), ("L1H2", "q", "END")],
        "mlps": [("MLP0", "in", "S2"), ("MLP1", "in", "END")],
        "head and mlp": [("L0H1", "q", "S2"), ("MLP0", "in", "S2"), ("L1H1", "q")],
        "final": "final",
    }
    senders = {
        "head": "L0H1", "mlp": "MLP0", "embedding": "embedding",
        "several": ["L0H0", ("L0H2", "S2"), "L1H1"],
    }  # fmt: skip
    found = {
        engine: path_patching.path_sweep(
            model, data, data.abc(), senders, receivers, mlps=mlps, engine=engine, progress=False
        )
        for engine in ("fast", "hooks")
    }
    close(found["fast"].values, found["hooks"].values)
    assert found["fast"].effect().abs().amax(dim=-1).count_nonzero() > 6


def test_circuits(family: Family) -> None:
    model, data = family.model, family.data
    nodes: list[NodeLike] = ["L0H1", ("L0H2", "S2"), ("L1H0", "END"), ("L1H2", "END")]
    for chosen in (nodes, nodes[1:]):  # at whole prompts, and at roles alone
        found = {
            engine: circuits.Circuits(model, data, engine=engine).run(Circuit.of(chosen))
            for engine in ("fast", "hooks")
        }
        close(found["fast"].logit_diff, found["hooks"].logit_diff)


def some_edges(model: TransformerBridge) -> list[Edge]:
    n = model.cfg.n_layers
    return [
        Edge(Node(0, 1), Node(1, 2), "q"),
        Edge(Node(0, None), Node(1, None), "in"),
        Edge(Node(0, 0), Node(1, None), "in"),
        Edge(EMBEDDING, Node(0, None), "in"),
        Edge(Node(n - 1, 1), None, "final"),
    ]


def test_circuits_of_edges(family: Family) -> None:
    """Nothing cut is the model; one edge cut is the path from its sender to its receiver."""
    model, data = family.model, family.data
    if family.name.startswith("gemma2"):
        with pytest.raises(ValueError, match="no head has a share of its own"):
            circuits.EdgeCircuits(model, data)
        return
    edges = circuits.EdgeCircuits(model, data)
    close(edges.run_model().logit_diff, family.plain.logit_diffs(data))
    moved = 0
    for edge in some_edges(model):
        cut = edges.run_model(without=Circuit.of_edges([edge])).logit_diff
        found = path_patching.path_patch(
            model, data, data.abc(), edge.sender, edge, mlps="frozen", engine="hooks",
            progress=False,
        )  # fmt: skip
        close(cut, found.values)
        moved += bool(found.effect().abs().max() > 1e-3)
    assert moved >= 3  # a parallel block's MLP writes the same at END in both runs


def test_scores_of_edges_are_derivatives(family: Family) -> None:
    """EAP is how fast the logit difference moves as one edge's sender moves to the reference."""
    model = family.bridge(True, torch.float64)
    data = family.data[:2]
    ask = partial(path_patching.edge_scores, model, data, method="EAP", progress=False)
    inputs = ("q", "in", "final")
    if shares_keys(model):
        with pytest.raises(ValueError, match="share one key and value"):
            ask()
    if family.name.startswith("gemma2"):
        with pytest.raises(ValueError, match="no head has a share of its own"):
            ask(inputs=inputs)
        return
    scores = ask(inputs=inputs)
    by_edge = dict(
        zip(map(str, path_patching.edges_of(scores)), scores.effect().flatten(0, 1), strict=True)
    )
    gpt = forward.read_weights(model)
    shape, last = Shape.of(model), data.lengths - 1
    classes = torch.zeros(int(data.lengths.sum()), dtype=torch.long)
    own, other = (sources(gpt, some.tokens, last) for some in (data, data.abc()))
    size = 1e-5
    for edge in some_edges(model):
        mask = EdgeMask.of(shape, ROLES, [edge], kept=False)
        moved = own + size * (other - own)
        final = run_edges(gpt, data.tokens, last, classes + len(ROLES), mask, moved)
        unmoved = run_edges(gpt, data.tokens, last, classes + len(ROLES), mask, own)
        diffs = [
            forward.logit_diffs(gpt, x, data.io_tokens, data.s_tokens) for x in (final, unmoved)
        ]
        slope = (diffs[0] - diffs[1]) / size
        torch.testing.assert_close(by_edge[str(edge)].double(), slope, rtol=2e-3, atol=1e-3)


def test_scrubbing_with_each_prompt_drawn_itself_is_the_model(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IOIDataset, "redraw", lambda data, features, seed: data)
    data = IOIDataset.generate(family.model.tokenizer, 6, names=handbuilt.NAMES, seed=2)
    at = {
        role: Stream((Heads(parse([f"L0H{head}"], role), ()),))
        for role, head in (("S2", 2), ("END", 1))
    }
    heads = Heads(parse(["L1H0", "L1H2"], "END"), (), at["END"], {"S2": at["S2"]})
    found = circuits.scrub(family.model, data, Stream((heads,)), draws=1, progress=False)
    close(found.model.logit_diff, family.plain.logit_diffs(data))
    close(found.scrubbed.logit_diff, found.model.logit_diff)


def parse(names: list[str], role: str) -> frozenset[Node]:
    return frozenset(parse_node(name).at(role) for name in names)
