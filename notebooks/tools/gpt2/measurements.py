"""What is published of GPT-2 small, measured again: a function for each entry, by its name.

`MEASUREMENTS` has every name of `ioi_helpers.published` but those of `NOT_MEASURED`, and a
measurement returns the published shape in the published unit. `FACTS` are statements about order
("the four strongest senders are ...") that no array carries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import (
    attribution,
    circuits,
    edits,
    forward,
    heads,
    metrics,
    patching,
    published,
    runs,
    stimuli,
)
from ioi_helpers.ablation import ablate, ablation_effects, ablation_sweep
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.graph import Circuit, Node
from ioi_helpers.path_patching import edge_scores, edges_of, path_sweep
from notebooks.tools.gpt2 import prompts

Array = Float[np.ndarray, " *axes"]
Measurement = Callable[[TransformerBridge], Any]

NAME_MOVERS = ("L9H9", "L9H6", "L10H0")
S_INHIBITION = ("L7H3", "L7H9", "L8H6", "L8H10")
BACK = {"prev_token": 1, "duplicate_token": 100, "induction": 99}


# --- TransformerLens' demos -----------------------------------------------------------------------


def _demo(model: TransformerBridge) -> IOIDataset:
    return prompts.demo(model.tokenizer)


def demo_diffs(model: TransformerBridge) -> Tensor:
    """The logit difference of each prompt of the demo."""
    return runs.logit_diffs(model, _demo(model))


def corrupted_diff(model: TransformerBridge) -> Tensor:
    """Mean logit difference on the demo's corrupted prompts, by the clean ones' answers."""
    data = _demo(model)
    return metrics.logit_diff(runs.logits_at(model, data.swap_subject()), data)


def top_logits(model: TransformerBridge) -> Tensor:
    """The logits of the tokens that GPT-2 small ranks highest after the demo's example."""
    prompt = "After John and Mary went to the store, John gave a bottle of milk to"
    top = published.record("exploratory.json")["example_prompt"]["top_tokens"]
    ids = [model.tokenizer.encode(t["token"], add_special_tokens=False)[0] for t in top]
    with torch.no_grad():
        return model(model.to_tokens(prompt, prepend_bos=True))[0, -1, ids]


def without_l9h9(model: TransformerBridge, read: str) -> Tensor:
    """What is left of the demo when L9H9 is zero-ablated at END."""
    data = _demo(model)
    if read == "scale":
        with ablate(model, ("L9H9", "END"), how="zero", data=data):
            return attribution.final_layer_norm_scale(model, data, progress=False)
    found = ablation_effects(model, data, ("L9H9", "END"), how="zero")
    return found.ablated.mean() if read == "diff" else found.ablated_attribution.mean(-1)


@cache
def _patch_sweep(model: TransformerBridge, site: str, *axes: str) -> patching.SweepResult:
    data = _demo(model)
    return patching.patch_sweep(
        model, data, data.swap_subject(), site, ("layer", *axes), progress=False
    )


def patched(model: TransformerBridge, site: str, *axes: str) -> Tensor:
    """Activation patching on the demo, as a fraction recovered.

    Both demos patch z, v and the pattern; the runs are kept, also where the fraction is refused.
    """
    return _patch_sweep(model, site, *axes).fraction()


@cache
def _gradients(model: TransformerBridge) -> dict[str, Tensor]:
    """(clean - corrupted) times the gradient of the fraction recovered, on the corrupted run.

    By hook, unsummed but for the last axis of a vector. `attribution_patch_sweep` covers two of
    the sites; the demo patches at eight.
    """
    data = _demo(model)
    n_layers, device = model.cfg.n_layers, model.cfg.device
    sites = ("attn.hook_z", "attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_pattern")
    names = [
        f"blocks.{layer}.{hook}"
        for hook in (*sites, "hook_resid_pre", "hook_attn_out", "hook_mlp_out")
        for layer in range(n_layers)
    ]
    kept: dict[str, Tensor] = {}

    def with_gradient(embedding: Tensor, hook: Any) -> Tensor:
        return embedding.detach().requires_grad_(True)

    def keep(activation: Tensor, hook: Any, name: str) -> Tensor:
        kept[name] = activation
        return activation

    hooks = [("hook_embed", with_gradient), *((name, partial(keep, name=name)) for name in names)]
    with torch.enable_grad(), model.hooks(fwd_hooks=hooks):
        clean = metrics.logit_diff(model(data.tokens.to(device)), data)
        source = {name: value.detach() for name, value in kept.items()}
        corrupted = metrics.logit_diff(model(data.swap_subject().tokens.to(device)), data)
        gradients = torch.autograd.grad(corrupted, [kept[name] for name in names])
    gap = (clean - corrupted).detach()
    found = {}
    for name, gradient in zip(names, gradients, strict=True):
        effect = (source[name] - kept[name].detach()) * gradient / gap
        found[name] = effect.sum(-1).sum(0)
    return found


def estimated(model: TransformerBridge, site: str, by_position: bool = False) -> Tensor:
    """Attribution patching on the demo, as a fraction recovered."""
    at_head = site in ("z", "q", "k", "v", "pattern")
    hook = f"attn.hook_{site}" if at_head else f"hook_{site}"
    found = _gradients(model)
    rows = torch.stack([found[f"blocks.{layer}.{hook}"] for layer in range(model.cfg.n_layers)])
    if not at_head:
        return rows  # [layer position]
    if site != "pattern":  # [layer position head], and a pattern's is [layer head position]
        rows = rows.transpose(1, 2)
    return rows if by_position else rows.sum(-1)


def head_scores(model: TransformerBridge, kind: str) -> Tensor:
    """Attention so many tokens back, on the demo's random tokens repeated once, without BOS."""
    half = torch.tensor(published.load("exploratory.score_tokens").values).long()
    scores = []
    with torch.no_grad():
        hooks = "attn.hook_pattern"
        _, cache_ = model.run_with_cache(
            torch.cat([half, half], dim=1).to(model.cfg.device),
            names_filter=lambda name: name.endswith(hooks),
        )
    for layer in range(model.cfg.n_layers):
        pattern = cache_["pattern", layer]
        scores.append(pattern.diagonal(-BACK[kind], dim1=-2, dim2=-1).mean(dim=(0, 2)))
    return torch.stack(scores)


def attention(model: TransformerBridge, name: str) -> Tensor:
    """Attention patterns of the heads that an entry names, on its prompts."""
    data = _demo(model)
    chosen = [heads.parse_head(head) for head in published.load(name).labels["head"]]
    with torch.no_grad():
        _, cache_ = model.run_with_cache(
            data.tokens.to(model.cfg.device),
            names_filter=lambda hook: hook.endswith("attn.hook_pattern"),
        )
    found = torch.stack([cache_["pattern", layer][:, head] for layer, head in chosen])
    return found[:, 0] if name == "exploratory.attention" else found


def one_prompt_attribution(model: TransformerBridge) -> Tensor:
    """Eight heads' attribution on one prompt."""
    prompt = "When John and Mary went to the shops, John gave the bag to"
    found = attribution.head_attribution(
        model, prompts.single(model.tokenizer, prompt, "Mary", "John")
    )
    labels = published.load("attribution.one_prompt").labels["head"]
    return torch.stack([found.values[heads.parse_head(head)] for head in labels])


def _one_pair(model: TransformerBridge) -> IOIDataset:
    prompt = "When Mary and John went to the store, John gave a drink to"
    return prompts.single(model.tokenizer, prompt, "Mary", "John")


def edges_from(model: TransformerBridge, sender: str) -> Tensor:
    """Exact patching of the edges from one head into name movers' queries, on one pair."""
    data = _one_pair(model)
    names = published.load(f"path_patching.edges_from_{sender}").labels["receiver"]
    swept = path_sweep(
        model, data, data.swap_subject(), [sender], {head: [(head, "q")] for head in names},
        mlps="frozen", direction="denoising", progress=False,
    )  # fmt: skip
    return swept.fraction()


def l9h9_everywhere(model: TransformerBridge) -> Tensor:
    """Change of one prompt's logit difference without L9H9 at any position."""
    swept = ablation_sweep(model, _one_pair(model), [["L9H9"]], how="zero", progress=False)
    return swept.effect().mean()


def singular_values(model: TransformerBridge) -> Tensor:
    """The first singular values of L9H9's OV circuit."""
    block = forward.read_weights(model).blocks[9]
    W_V = block.W_V.unflatten(1, (model.cfg.n_heads, -1))[:, 9]
    W_O = block.W_O.unflatten(0, (model.cfg.n_heads, -1))[9]
    return torch.linalg.svdvals(W_V @ W_O)[:12]


# --- the paper, and others on its prompts ---------------------------------------------------------


@cache
def _papers_logits(model: TransformerBridge) -> Tensor:
    return runs.logits_at(model, prompts.papers(model.tokenizer, 400))


def on_papers(model: TransformerBridge, measure: Callable[..., Any]) -> Any:
    """A mean over prompts drawn as the paper's are."""
    return measure(_papers_logits(model), prompts.papers(model.tokenizer, 400))


def papers_faithfulness(model: TransformerBridge) -> float:
    """Percent of the mean logit difference that the 26 heads keep."""
    runner = circuits.Circuits(model, prompts.papers(model.tokenizer, 200))
    kept = runner.run(circuits.paper_circuit()).logit_diff.mean()
    return 100 * float(kept / runner.run_model().logit_diff.mean())


def looks(model: TransformerBridge, chosen: tuple[str, ...], at: str) -> float:
    """Mean attention of some heads from END to a role."""
    found = heads.attention_by_role(
        model, prompts.papers(model.tokenizer, 400), keys=(at,), progress=False
    )
    return float(np.mean([float(found[heads.parse_head(head)][0]) for head in chosen]))


@cache
def to_logits(model: TransformerBridge, n: int, **choices: Any) -> Array:
    """Path patching to the logits, relative to the model's logit difference."""
    data = prompts.papers(model.tokenizer, n)
    swept = path_sweep(model, data, progress=False, **choices)
    return _array(swept.effect().mean(-1) / swept.clean.mean())


def arena_paths(model: TransformerBridge, receivers: Any) -> Array:
    """Path patching at all positions, as a fraction of clean minus corrupted."""
    data, reference = prompts.arenas(model.tokenizer)
    swept = path_sweep(model, data, reference, receivers=receivers, progress=False)
    span = runs.logit_diffs(model, data).mean()
    corrupted = metrics.logit_diff(runs.logits_at(model, reference), data)
    return _array(swept.effect().mean(-1)) / float(span - corrupted)


def signals(model: TransformerBridge) -> Array:
    """S-inhibition heads' output at END from prompts with the other position, or token, signal."""
    data = prompts.papers(model.tokenizer, 200)

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


@cache
def _adversarial_logits(model: TransformerBridge) -> list[tuple[Tensor, IOIDataset]]:
    """Three numbers are read off the same runs of long prompts."""
    plain = prompts.papers(model.tokenizer, 200)
    sets = (plain, plain.adversarial("S", pairs=True), plain.adversarial("IO", pairs=True))
    return [(runs.logits_at(model, data), data) for data in sets]


def adversarial(model: TransformerBridge, measure: Callable[..., Any]) -> Array:
    """Without a sentence, with two about S, with two about IO."""
    return np.array([float(measure(*found)) for found in _adversarial_logits(model)])


def copying(model: TransformerBridge, sign: float) -> Array:
    """ARENA's copying score: the name's embedding and MLP 0 through each head's OV circuit."""
    gpt = forward.read_weights(model)
    names = [f" {name}" for name in stimuli.NAMES[:109]]
    ids = torch.tensor(
        [model.tokenizer.encode(name, add_special_tokens=False)[0] for name in names],
        device=gpt.device,
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


@cache
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
    runner = circuits.Circuits(model, prompts.papers(model.tokenizer, 200))
    table = circuits.minimality(
        runner, circuits.paper_circuit(), circuits.paper_witnesses(), progress=False
    )
    return _in_order(table["change"].abs(), "paper.minimality")


def arena_minimality(model: TransformerBridge) -> Array:
    """The same on ARENA's prompts, with its own witness sets, as a share of F(M)."""
    data, reference = prompts.arenas(model.tokenizer)
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
    data = IOIDataset.generate(model.tokenizer, 80)
    # Edges are chosen on one half and run on the other, or the curve would flatter them.
    scores = edge_scores(model, data[:40], method=method, steps=5, progress=False)
    sizes = dict(zip(edges_of(scores), scores.effect().mean(-1).flatten().tolist(), strict=True))
    runner = circuits.EdgeCircuits(model, data[40:])
    possible = {edge: sizes[edge] for edge in circuits.possible_edges(runner.shape)}
    asked = [float(n) / len(possible) for n in published.load(name).labels["edges"]]
    curve = circuits.size_curve(runner, possible, shares=asked, method="greedy", progress=False)
    return np.array(curve.f)


def share_of_s(logits: Tensor, data: IOIDataset) -> float:
    """The share of prompts on which S is preferred."""
    return 1 - float(metrics.io_preferred(logits, data))


# --- removing heads -------------------------------------------------------------------------------


def direct_removal(model: TransformerBridge) -> Tensor:
    """What each head writes at END beyond its mean over ABC prompts of the same template."""
    data = prompts.of_all_templates(model.tokenizer, 300)
    hooks = [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]
    own = runs.activations_at(model, data, "END", hooks, progress=False)
    other = runs.activations_at(model, data.abc(), "END", hooks, progress=False)
    directions = attribution.logit_diff_directions(model, data)
    scale = attribution.final_layer_norm_scale(model, data, progress=False)
    gpt = forward.read_weights(model)
    template = torch.as_tensor(data.template_ids, device=scale.device)
    rows = []
    for layer, hook in enumerate(hooks):
        mean = torch.zeros_like(own[hook])
        for one in template.unique():
            mean[template == one] = other[hook][template == one].mean(0)
        W_O = gpt.blocks[layer].W_O.unflatten(0, (gpt.n_heads, -1))
        written = torch.einsum("bhe,hed->bhd", own[hook] - mean, W_O)
        rows.append(torch.einsum("bhd,bd,b->h", written, directions, 1 / scale) / len(data))
    return torch.stack(rows)


def total_removal(model: TransformerBridge, what: Any = "heads") -> Tensor:
    """Logits lost when heads are mean-ablated at every position."""
    data = prompts.of_all_templates(model.tokenizer, 300)
    swept = ablation_sweep(model, data, what, how="mean", reference=data.abc(), progress=False)
    return -swept.effect().mean(-1)


def attribution_without(model: TransformerBridge, how: str) -> Tensor:
    """Attribution of each head on one template, name movers ablated as `how` says."""
    data = prompts.of_one_template(model.tokenizer, 200)
    whole = attribution.head_attribution(model, data).values
    if how == "not":
        return whole
    reference = data.abc() if how == "resample" else None
    with ablate(model, NAME_MOVERS, how=how, reference=reference, data=data):
        ablated = attribution.head_attribution(model, data).values
    return ablated - whole if how == "zero" else ablated


def order_direction(model: TransformerBridge) -> Array:
    """Interchange at resid_post 8 END with the other order: nothing, all, the means' direction."""
    data = IOIDataset.generate(model.tokenizer, 200, templates="demo")
    here, there = (
        runs.activations_at(model, d, "END", "blocks.8.hook_resid_post", progress=False)
        for d in (data, data.swap_order())
    )
    io_first = torch.tensor([order == "ABBA" for order in data.orders], device=here.device)
    direction = here[io_first].mean(0) - here[~io_first].mean(0)
    direction = direction / direction.norm()
    along = here + ((there - here) @ direction)[:, None] * direction
    return np.array(
        [float(runs.logit_diffs(model, data).mean())]
        + [
            float(
                runs.logit_diffs(
                    model, data, [edits.residual_edit(data, "END", "L8.post", new)]
                ).mean()
            )
            for new in (there, along)
        ]
    )


# --- by name --------------------------------------------------------------------------------------

PATCHED = {  # what the Exploratory Analysis demo patches, by its name
    "residual": "resid_pre",
    "attn_layer": "attn_out",
    "mlp_layer": "mlp_out",
    "head_z": "z",
    "head_v": "v",
    "head_pattern": "pattern",
}
LAYER_SITES = ("resid_pre", "attn_out", "mlp_out")
HEAD_SITES = ("z", "q", "k", "v", "pattern")
S_VALUES = [(head, "v") for head in S_INHIBITION]


def _by(function: Callable[..., Any], *choices: Any, **more: Any) -> Measurement:
    return lambda model: function(model, *choices, **more)


MEASUREMENTS: dict[str, Measurement] = {
    "exploratory.per_prompt_logit_diff": demo_diffs,
    "exploratory.average_logit_diff": lambda model: demo_diffs(model).mean(),
    "exploratory.corrupted_average_logit_diff": corrupted_diff,
    "exploratory.example_top_logits": top_logits,
    "exploratory.logit_lens": lambda m: attribution.logit_lens(m, _demo(m)).values,
    "exploratory.per_layer_dla": lambda m: attribution.layer_attribution(m, _demo(m)).values[:-1],
    "exploratory.per_head_dla": lambda m: attribution.head_attribution(m, _demo(m)).values,
    "exploratory.ablated_per_head_dla": _by(without_l9h9, "attribution"),
    "exploratory.ablated_logit_diff": _by(without_l9h9, "diff"),
    "exploratory.ln_final_scale": lambda model: attribution.final_layer_norm_scale(
        model, _demo(model), progress=False
    ),
    "exploratory.ablated_ln_final_scale": _by(without_l9h9, "scale"),
    **{
        f"exploratory.{name}_patch": _by(patched, site, "pos" if site in LAYER_SITES else "head")
        for name, site in PATCHED.items()
    },
    **{f"exploratory.{kind}_scores": _by(head_scores, kind) for kind in BACK},
    "exploratory.score_tokens": lambda model: torch.randint(
        100, 20000, (2, 100), generator=torch.Generator().manual_seed(0)
    ),
    "exploratory.attention": _by(attention, "exploratory.attention"),
    "attribution_patching.attention": _by(attention, "attribution_patching.attention"),
    **{f"activation_patching.{site}": _by(patched, site, "pos") for site in LAYER_SITES},
    **{f"activation_patching.{site}": _by(patched, site, "head") for site in HEAD_SITES},
    **{
        f"activation_patching.{site}_by_position": _by(patched, site, "head", "pos")
        for site in HEAD_SITES
    },
    **{
        f"attribution_patching.{site}": _by(estimated, site) for site in (*LAYER_SITES, *HEAD_SITES)
    },
    **{
        f"attribution_patching.{site}_by_position": _by(estimated, site, by_position=True)
        for site in HEAD_SITES
    },
    "attribution.one_prompt": one_prompt_attribution,
    **{f"path_patching.edges_from_{sender}": _by(edges_from, sender) for sender in S_INHIBITION},
    "svd.ov_singular_values": singular_values,
    "paper.logit_diff": _by(on_papers, metrics.logit_diff),
    "paper.io_over_s": _by(on_papers, metrics.io_preferred),
    "paper.io_probability": _by(on_papers, metrics.io_probability),
    "paper.faithfulness": papers_faithfulness,
    "paper.name_mover_attention": _by(looks, NAME_MOVERS, "IO"),
    "paper.s_inhibition_attention": _by(looks, S_INHIBITION, "S2"),
    "paper.direct_effect_on_logits": lambda model: to_logits(model, 400)[7:],
    "paper.signals": signals,
    "paper.minimality": paper_minimality,
    "paper.adversarial_logit_diff": _by(adversarial, metrics.logit_diff),
    "paper.adversarial_io_probability": _by(adversarial, metrics.io_probability),
    "paper.adversarial_s_over_io": _by(adversarial, share_of_s),
    "path_patching.to_logits_n5000": lambda model: to_logits(model, 400)[7:],
    "path_patching.to_logits_mlps_frozen": lambda model: to_logits(model, 200, mlps="frozen")[8:],
    "path_patching.to_logits": _by(arena_paths, "final"),
    "path_patching.to_s_inhibition_values": _by(arena_paths, S_VALUES),
    "circuit.copying": _by(copying, 1.0),
    "circuit.copying_negative": _by(copying, -1.0),
    "circuit.faithfulness_by_template": cells,
    "circuit.faithfulness_by_order": lambda model: cells(model).mean(axis=1),
    "circuit.minimality": arena_minimality,
    "edges.EAP": _by(edge_curve, "edges.EAP", "EAP"),
    "edges.EAP-IG": _by(edge_curve, "edges.EAP-IG", "EAP-IG"),
    "removal.direct_effect": direct_removal,
    "removal.total_effect": total_removal,
    "removal.name_movers": lambda model: total_removal(model, [NAME_MOVERS]).sum(),
    "removal.attribution": _by(attribution_without, "not"),
    "removal.attribution_without_name_movers": _by(attribution_without, "resample"),
    "removal.attribution_change_zero": _by(attribution_without, "zero"),
    "removal.L9H9_everywhere": l9h9_everywhere,
    "direction.logit_diff": order_direction,
}

NOT_MEASURED = {
    "edges.exact": "patching each of GPT-2 small's 32,491 edges by itself takes days on a CPU",
}


@dataclass(frozen=True)
class Fact:
    """A published statement, as words: what `measure` finds must be the same words."""

    title: str
    published: str
    source: str
    setup: str
    measure: Callable[[TransformerBridge], str]


def direct_order(effects: Float[np.ndarray, "layer head"]) -> list[str]:
    """The seven heads of layers 7 to 11 whose direct effect is largest, in that order."""
    top = np.abs(effects).ravel().argsort()[::-1][:7]
    return [f"{7 + i // 12}.{i % 12}" for i in top]


def _copying_heads(model: TransformerBridge) -> str:
    data = prompts.papers(model.tokenizer, 400)
    positive = heads.copying_scores(model, data, progress=False)
    negative = heads.copying_scores(model, data, negative=True, progress=False)
    high = all(positive[heads.parse_head(head)] > 0.93 for head in NAME_MOVERS)
    low = all(negative[heads.parse_head(head)] > 0.95 for head in ("L10H7", "L11H10"))
    return _yes(high and low and float(positive.mean()) < 0.2)


def _query_senders(model: TransformerBridge) -> str:
    data = prompts.of_all_templates(model.tokenizer, 100)
    receivers = [(head, "q", "END") for head in NAME_MOVERS]
    swept = path_sweep(model, data, receivers=receivers, progress=False)
    effect = swept.effect().mean(-1)
    strongest = effect.flatten().argsort()[:4].tolist()  # the answer loses most
    return ", ".join(sorted(f"L{i // 12}H{i % 12}" for i in strongest))


def _yes(value: bool) -> str:
    return "yes" if value else "no"


FACTS: dict[str, Fact] = {
    "fact.order_of_figure_3b": Fact(
        "The seven heads of largest direct effect on the logits, in order",
        ", ".join(
            published.record("ioi_paper.json")["fig3b_direct_effect_on_logits"]["top7_order"]
        ),
        "Wang et al. 2022, arXiv:2211.00593v1, Fig. 3b",
        "random prompts of the paper's templates, no BOS",
        lambda model: ", ".join(direct_order(to_logits(model, 400)[7:])),
    ),
    "fact.copying_scores": Fact(
        "Name movers copy (above 0.93), negative ones with the sign turned (above 0.95), heads on "
        "average do not (below 0.2)",
        "yes",
        "Wang et al. 2022, arXiv:2211.00593v1, sec. 3.1 and App. C",
        "random prompts of the paper's templates, no BOS",
        _copying_heads,
    ),
    "fact.senders_to_name_mover_queries": Fact(
        "The four heads that tell the name movers' queries most",
        ", ".join(sorted(S_INHIBITION)),
        "EAP-IG scores in hannamw/MIB-circuit-track@b759df3, circuits/ioi-eap-ig.json, and the "
        "S-inhibition heads of Wang et al. 2022",
        "MIB's IOI data set (with or without BOS is not stated); here the paper's templates",
        _query_senders,
    ),
}


def measure(model: TransformerBridge, name: str) -> Array:
    """An entry of `ioi_helpers.published`, measured on the model at hand."""
    return _array(MEASUREMENTS[name](model))


def _array(values: Any) -> Array:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
    return np.asarray(values, dtype=np.float64)
