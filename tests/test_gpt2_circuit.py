"""What is published of GPT-2 small's circuit, measured again, each by its name in `published`.

Marked `gpt2`: it needs the weights. What runs everywhere is that a check gives the published shape
(on a small random model of 12 layers of 12 heads), that it agrees when it is fed its own published
array, and that it notices when that is shifted up or down.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from ioi_helpers import circuits, forward, heads, load_model, metrics, published, runs, stimuli
from ioi_helpers.ablation import ablation_sweep
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.dataset.pieces import Pieces, check_names, name_pieces
from ioi_helpers.dataset.rows import lay_out
from ioi_helpers.dataset.templates import resolve_templates
from ioi_helpers.graph import Circuit, Node
from ioi_helpers.models import default_model
from ioi_helpers.path_patching import edge_scores, edges_of, path_sweep

SKELETON = Path(__file__).parents[2] / "shared" / "gpt2-skeleton"
Array = Float[np.ndarray, " *axes"]

S_INHIBITION = ("L7H3", "L7H9", "L8H6", "L8H10")


# --- prompts --------------------------------------------------------------------------------------


@cache
def papers_prompts(tokenizer: Any, n: int) -> IOIDataset:
    """As the paper's code draws them; without BOS."""
    return IOIDataset.paper(tokenizer, n)


@cache
def arena_prompts(tokenizer: Any) -> tuple[IOIDataset, IOIDataset]:
    """The 25 prompts of ARENA's notebook and their ABC partners, as the published file lists them.

    (One of these has the same name twice, as the generator may.)
    """
    rows = published.record("path_patching_arena.json")["setup"]["prompts_25"]
    pieces, parsed = Pieces(tokenizer), resolve_templates(None)
    words = {name for r in rows for name in (r["IO"], r["S"], *r["abc_names_in_order"])}
    pool = check_names(pieces, sorted(words))
    piece = dict(zip(pool, name_pieces(pieces, pool), strict=True))
    io_first = np.array([r["template"][0] == "ABBA" for r in rows])
    laid = lay_out(
        pieces,
        parsed,
        template_ids=np.array([r["template"][1] for r in rows]),
        pair_ids=np.arange(len(rows)),
        io_first=io_first,
        names=np.array([[piece[r["IO"]], piece[r["S"]]] for r in rows]),
        places=[r["place"] for r in rows],
        objects=[r["object"] for r in rows],
    )
    data = IOIDataset._build(pieces, laid, tuple(t.text for t in parsed), pool, False)
    # In the order of the text; ours is IO, S1, S2.
    fresh = np.array([[piece[name] for name in r["abc_names_in_order"]] for r in rows])
    fresh[~io_first] = fresh[~io_first][:, [1, 0, 2]]
    return data, data._derive("ARENA's ABC", data._rows.rename(fresh))


# --- checks ---------------------------------------------------------------------------------------


def to_logits(model: TransformerBridge, n: int, **choices: Any) -> Array:
    """Path patching to the logits, relative to the model's logit difference."""
    data = papers_prompts(model.tokenizer, n)
    swept = path_sweep(model, data, progress=False, **choices)
    return (swept.effect().mean(-1) / swept.clean.mean()).numpy()


def arena_paths(model: TransformerBridge, receivers: Any) -> Array:
    """Path patching at all positions, as a fraction of clean minus corrupted."""
    data, reference = arena_prompts(model.tokenizer)
    swept = path_sweep(model, data, reference, receivers=receivers, progress=False)
    span = runs.logit_diffs(model, data).mean()
    corrupted = metrics.logit_diff(runs.logits_at(model, reference), data)
    return (swept.effect().mean(-1) / (span - corrupted)).numpy()


def signals(model: TransformerBridge) -> Array:
    """S-inhibition heads' output at END from prompts with the other position, or token, signal."""
    data = papers_prompts(model.tokenizer, 200)

    def cell(token: str, position: bool) -> float:
        if token == "original" and not position:
            return float(runs.logit_diffs(model, data).mean())
        other = data.flip(position=position, token=token)
        swept = ablation_sweep(
            model, data, {"all": S_INHIBITION}, how="resample", reference=other, role="END",
            progress=False,
        )  # fmt: skip
        return float(swept.values.mean())

    tokens = ("original", "random", "inverted")
    return np.array([[cell(token, position) for position in (False, True)] for token in tokens])


def adversarial(model: TransformerBridge, measure: Callable[..., Any]) -> Array:
    """Without a sentence, with two about S, with two about IO."""
    plain = papers_prompts(model.tokenizer, 200)
    sets = (plain, plain.adversarial("S", pairs=True), plain.adversarial("IO", pairs=True))
    return np.array([float(measure(runs.logits_at(model, data), data)) for data in sets])


def copying(model: TransformerBridge, sign: float) -> Array:
    """ARENA's copying score: the name's embedding and MLP 0 through each head's OV circuit."""
    gpt = forward.read_weights(model)
    names = [f" {name}" for name in stimuli.NAMES[:109]]
    ids = torch.tensor(
        [model.tokenizer.encode(name, add_special_tokens=False)[0] for name in names]
    )
    x = gpt.W_E[ids]
    x = x + forward.mlp(gpt, 0, x)
    found = np.zeros((gpt.n_layers - 1, gpt.n_heads))
    for layer in range(1, gpt.n_layers):
        block = gpt.blocks[layer]
        W_V, W_O = (
            block.W_V.unflatten(1, (gpt.n_heads, -1)),
            block.W_O.unflatten(0, (gpt.n_heads, -1)),
        )
        for head in range(gpt.n_heads):
            written = sign * (x @ W_V[:, head]) @ W_O[head]
            top = forward.unembed(gpt, written).topk(5).indices
            found[layer - 1, head] = float((top == ids[:, None]).any(dim=1).float().mean())
    return found


def cells(model: TransformerBridge) -> Array:
    """Percent of the logit difference that the 26 heads keep, by order, BOS and template."""
    found = np.zeros((4, len(stimuli.TEMPLATES)))
    for row, (bos, order) in enumerate(
        (bos, order) for bos in (True, False) for order in ("ABBA", "BABA")
    ):
        for i, template in enumerate(stimuli.TEMPLATES):
            data = IOIDataset.generate(
                model.tokenizer, 50, order=order, templates=[template], paired=False,
                prepend_bos=bos, names=stimuli.PAPER_NAMES, seed=i,
            )  # fmt: skip
            runner = circuits.Circuits(model, data)
            kept = runner.run(circuits.paper_circuit()).logit_diff.mean()
            found[row, i] = 100 * float(kept / runner.run_model().logit_diff.mean())
    return found


def paper_minimality(model: TransformerBridge) -> Array:
    """Logits that each head's absence changes, given its witness set."""
    runner = circuits.Circuits(model, papers_prompts(model.tokenizer, 200))
    table = circuits.minimality(
        runner, circuits.paper_circuit(), circuits.paper_witnesses(), progress=False
    )
    return _in_order(table["change"].abs(), "paper.minimality")


def arena_minimality(model: TransformerBridge) -> Array:
    """The same on ARENA's prompts, with its own witness sets, as a share of F(M)."""
    data, reference = arena_prompts(model.tokenizer)
    runner = circuits.Circuits(model, data, reference)
    circuit = circuits.paper_circuit()
    at = {node.name: node for node in circuit}
    sets: dict[Node, Circuit] = {}
    for head, others in published.record("arena_circuit_evaluation.json")["minimality"][
        "K"
    ].items():
        v, *K = ("L{}H{}".format(*name.split(".")) for name in (head, *others))
        sets[at[v]] = Circuit(frozenset(at[name] for name in K))
    table = circuits.minimality(runner, circuit, sets, progress=False)
    return _in_order(table["share"], "circuit.minimality")


def _in_order(column: Any, name: str) -> Array:
    by_head = {index.split(" ")[0]: value for index, value in column.items()}
    return np.array([by_head[head] for head in published.load(name).labels["circuit head"]])


def edge_curve(model: TransformerBridge, name: str, method: str) -> Array:
    """Faithfulness of the edges of largest score, as many as the published curve asks for."""
    data = IOIDataset.generate(model.tokenizer, 40)
    scores = edge_scores(model, data, method=method, steps=5, progress=False)
    sizes = dict(zip(edges_of(scores), scores.effect().mean(-1).flatten().tolist(), strict=True))
    runner = circuits.EdgeCircuits(model, data)
    possible = {edge: sizes[edge] for edge in circuits.possible_edges(runner.shape)}
    asked = [float(n) / len(possible) for n in published.load(name).labels["edges"]]
    curve = circuits.size_curve(runner, possible, shares=asked, method="greedy", progress=False)
    return np.array(curve.f)


def share_of_s(logits: torch.Tensor, data: IOIDataset) -> float:
    return 1 - float(metrics.io_preferred(logits, data))


S_VALUES = [(head, "v") for head in S_INHIBITION]
CHECKS: dict[str, Callable[[TransformerBridge], Array]] = {
    "paper.direct_effect_on_logits": lambda model: to_logits(model, 400)[7:],
    "path_patching.to_logits_n5000": lambda model: to_logits(model, 400)[7:],
    "path_patching.to_logits_mlps_frozen": lambda model: to_logits(model, 200, mlps="frozen")[8:],
    "path_patching.to_logits": lambda model: arena_paths(model, "final"),
    "path_patching.to_s_inhibition_values": lambda model: arena_paths(model, S_VALUES),
    "paper.signals": signals,
    "paper.adversarial_logit_diff": lambda model: adversarial(model, metrics.logit_diff),
    "paper.adversarial_io_probability": lambda m: adversarial(m, metrics.io_probability),
    "paper.adversarial_s_over_io": lambda model: adversarial(model, share_of_s),
    "circuit.copying": lambda model: copying(model, 1.0),
    "circuit.copying_negative": lambda model: copying(model, -1.0),
    "circuit.faithfulness_by_template": cells,
    "circuit.faithfulness_by_order": lambda model: cells(model).mean(axis=1),
    "paper.minimality": paper_minimality,
    "circuit.minimality": arena_minimality,
    "edges.EAP": lambda model: edge_curve(model, "edges.EAP", "EAP"),
    "edges.EAP-IG": lambda model: edge_curve(model, "edges.EAP-IG", "EAP-IG"),
}


def direct_order(effects: Float[np.ndarray, "layer head"]) -> list[str]:
    """The seven heads of layers 7 to 11 whose direct effect is largest, in that order."""
    top = np.abs(effects).ravel().argsort()[::-1][:7]
    return [f"{7 + i // 12}.{i % 12}" for i in top]


def agrees(name: str, values: Array) -> bool:
    """A check's verdict, for the values of GPT-2 small."""
    return bool(published.compare(name, values, True).agrees)


# --- on GPT-2 small -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def subject() -> TransformerBridge:
    if default_model()[0] != "gpt2-small":
        pytest.skip("GPT-2's weights are not in the local cache")
    return load_model("gpt2-small", device="cpu", verbose=False)


@pytest.mark.gpt2
@pytest.mark.parametrize("name", CHECKS)
def test_gpt2_small_does_what_is_published(name: str, subject: TransformerBridge) -> None:
    compared = published.compare(name, CHECKS[name](subject), subject)
    assert compared.agrees, compared.caption


@pytest.mark.gpt2
def test_the_order_of_figure_3b(subject: TransformerBridge) -> None:
    wanted = published.record("ioi_paper.json")["fig3b_direct_effect_on_logits"]["top7_order"]
    assert direct_order(to_logits(subject, 400)[7:]) == wanted


@pytest.mark.gpt2
def test_copying_scores_of_the_paper(subject: TransformerBridge) -> None:
    """Name movers above .95, heads on average below .2; negative ones .98 with the sign turned."""
    data = papers_prompts(subject.tokenizer, 400)
    positive = heads.copying_scores(subject, data, progress=False)
    negative = heads.copying_scores(subject, data, negative=True, progress=False)
    for layer, head in ((9, 9), (10, 0), (9, 6)):
        assert positive[layer, head] > 0.93
    assert positive.mean() < 0.2
    for layer, head in ((10, 7), (11, 10)):
        assert negative[layer, head] > 0.95


# --- everywhere -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_agrees_with_its_own_array_and_notices_a_shift(name: str) -> None:
    entry = published.load(name)
    assert agrees(name, entry.values)
    for shift in (1.5 * entry.tolerance, -1.5 * entry.tolerance):
        assert not agrees(name, entry.values + shift)


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_would_notice_that_nothing_happens(name: str) -> None:
    """A tolerance that a dead measurement passes would say nothing."""
    assert not agrees(name, np.zeros_like(published.load(name).values))


def test_the_published_arrays_have_the_order_of_figure_3b() -> None:
    facts = published.record("ioi_paper.json")["fig3b_direct_effect_on_logits"]
    for name in ("paper.direct_effect_on_logits", "path_patching.to_logits_n5000"):
        values = published.load(name).values
        assert direct_order(values) == facts["top7_order"]
        exchanged = values.copy()
        exchanged[2, 9], exchanged[3, 7] = values[3, 7], values[2, 9]
        assert direct_order(exchanged) != facts["top7_order"]


@pytest.mark.slow
@pytest.mark.skipif(not SKELETON.is_dir(), reason="GPT-2's tokenizer is not beside this checkout")
@pytest.mark.parametrize("name", CHECKS)
def test_a_check_gives_the_published_shape(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    values = CHECKS[name](_small(tmp_path_factory.getbasetemp() / "twelve-by-twelve"))
    assert values.shape == published.load(name).values.shape
    assert np.isfinite(values).all()


@pytest.mark.skipif(not SKELETON.is_dir(), reason="GPT-2's tokenizer is not beside this checkout")
def test_arenas_prompts_are_those_that_the_file_lists() -> None:
    tokenizer = AutoTokenizer.from_pretrained(SKELETON)
    data, reference = arena_prompts(tokenizer)
    assert len(data) == 25 and "Victoria" in data.prompts[0] and "Jane" in data.prompts[0]
    assert tuple(data.orders[:2]) == ("ABBA", "BABA")
    assert data.tokens.shape == reference.tokens.shape
    first = reference.prompts[0]
    assert first.index("Alan") < first.index("Sullivan") < first.index("Adam")
    second = reference.prompts[1]
    assert second.index("Marcus") < second.index("Max") < second.index("Jeremy")


@cache
def _small(folder: Path) -> TransformerBridge:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=12, n_head=12, n_embd=48, bos_token_id=50256, eos_token_id=50256)
    GPT2LMHeadModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(SKELETON).save_pretrained(folder)
    return load_model(str(folder), device="cpu", verbose=False)
