"""Path patching against plain loops, in one process and taking turns.

    python benchmarks/path_patching_speed.py [--model-folder FOLDER] [--device cuda]

The model has GPT-2 small's shape and random weights, so large that the median path moves the logit
difference by at least 0.01 (printed): what is compared is compared at effects of a real size. The
prompts are the 8 of TransformerLens' Exploratory Analysis demo, the reference is ABC.

- *Plain loop*: what one would write in TransformerLens with passes A and B shared by all senders:
  for each sender a run with attention frozen that records the receivers' inputs (pass C), and a run
  with these put in (pass D). It is timed on a share of the senders in each round, and ours on all:
  every sender costs the loop the same. Its passes A and B are not counted, ours are.
- *TransformerLens' function*, ``get_act_patch_direct_path``, on its own edge (all positions, MLPs
  frozen, denoising), for one source head and the heads of the last layer; ours for the same edges,
  and both extrapolated to every pair of heads.
- The *floor* is the number of multiplications that the exact sweep cannot avoid (see `floor_macs`),
  divided by the rate at which this machine multiplies large matrices, measured in the same round.
- Many prompts under a stated memory: seconds, and by how much memory grows.

The results go to path_patching_speed.json and path_patching_speed.md beside this file.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformer_lens.patching as tl_patching
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.patching_speed import matmul_rate, measured, spread
from benchmarks.report import gpt2_tokenizer, on_gpu, publish, ran_on, range_of, surroundings
from benchmarks.report import parser as benchmark_parser
from ioi_helpers import load_model, metrics
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.graph import Node, Shape
from ioi_helpers.patching import SweepResult
from ioi_helpers.path_patching import every_input, path_sweep

HERE = Path(__file__).resolve().parent
MEMORY = 2**30
"""Bytes that ours may use for activations."""

# Heads of the IOI paper; with random weights they stand for as many heads of these layers.
NAME_MOVERS = ["L9H9", "L9H6", "L10H0"]
S_INHIBITION = ["L7H3", "L7H9", "L8H6", "L8H10"]
SETS: dict[str, tuple[str, str, list[str]]] = {
    "name movers' q at END": ("q", "END", NAME_MOVERS),
    "S-inhibition heads' v at S2": ("v", "S2", S_INHIBITION),
}


def make_model(model_folder: str | None, work: Path, device: str) -> TransformerBridge:
    """GPT-2 small's shape with large random weights, and GPT-2's tokenizer, written to `work`."""
    gpt2_tokenizer(model_folder).save_pretrained(work)
    torch.manual_seed(0)
    network = GPT2LMHeadModel(GPT2Config(tie_word_embeddings=False))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(".c_attn.weight"):
                parameter.mul_(2.5)
            elif ".c_" in name and name.endswith("weight"):
                parameter.mul_(4.0)
            elif "wte" in name:
                parameter.mul_(15.0)
            elif "lm_head" in name:
                parameter.mul_(250.0)
    network.save_pretrained(work)
    return load_model(str(work), device=device, verbose=False)


# --- the floor ---------------------------------------------------------------------------------


def floor_macs(
    model: TransformerBridge, receivers: dict[str, list[tuple[int, str]]], n: int
) -> int:
    """Multiply-adds that path patching of every head has to make for sets read at END.

    Counted are, for each of `n` prompts: the MLPs of each sender's chain at END, from its own layer
    to the highest receiver; the queries recorded; and for each sender and set of receivers one
    token through the rest of the model: W_O of the receiving heads, the MLP of the lowest one's
    layer, and the blocks above. Passes A and B, attention itself, norms and activation functions
    are counted as nothing.

    Args:
        receivers: For each set its receivers as (layer, input), input "q" or "final".
    """
    cfg = model.cfg
    d, d_head, layers, heads = cfg.d_model, cfg.d_head, cfg.n_layers, cfg.n_heads
    mlp, block = 2 * d * cfg.d_mlp, 4 * d * d + 2 * d * cfg.d_mlp
    top = max(layer for several in receivers.values() for layer, _ in several)
    total = 0
    for sender in range(layers):
        chain = mlp * max(0, min(top, layers) - sender)
        for several in receivers.values():
            later = [layer for layer, name in several if name == "q" and layer > sender]
            if several[0][1] == "final" or not later:
                continue
            lowest = min(later)
            chain += len(later) * 2 * d * d_head + mlp + block * (layers - 1 - lowest)
        total += heads * chain
    return n * total


# --- the contestants ---------------------------------------------------------------------------


class PlainLoop:
    """Path patching as one would write it in TransformerLens, for prompts of one length."""

    def __init__(self, model: TransformerBridge, data: IOIDataset, reference: IOIDataset):
        self.model, self.data = model, data.to(model.W_E.device)
        self.tokens = self.data.tokens
        self.z = [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]
        with torch.no_grad():
            _, self.theirs = model.run_with_cache(
                reference.tokens.to(self.tokens.device), names_filter=self.z
            )
            _, self.ours = model.run_with_cache(self.tokens, names_filter=self.z)

    def effect_on(self, sender: Node, site: str, role: str, receivers: Sequence[str]) -> Tensor:
        """The logit difference of each prompt in pass D."""
        at = self.data.positions[role]
        rows = torch.arange(len(self.tokens), device=at.device)
        by_layer: dict[int, list[int]] = {}
        for name in receivers:
            layer, head = map(int, name[1:].split("H"))
            by_layer.setdefault(layer, []).append(head)
        recorded: dict[int, Tensor] = {}

        def freeze(z: Tensor, hook: Any, layer: int) -> Tensor:
            z[:] = self.ours[self.z[layer]]
            if layer == sender.layer:
                z[rows, at, sender.head] = self.theirs[self.z[layer]][rows, at, sender.head]
            return z

        def record(value: Tensor, hook: Any, layer: int) -> None:
            recorded[layer] = value[rows, at].clone()

        def put_in(value: Tensor, hook: Any, layer: int) -> Tensor:
            for head in by_layer[layer]:
                value[rows, at, head] = recorded[layer][:, head]
            return value

        inputs = {layer: f"blocks.{layer}.attn.hook_{site}" for layer in by_layer}
        hooks: list[Any] = [(name, partial(freeze, layer=n)) for n, name in enumerate(self.z)]
        hooks += [(name, partial(record, layer=layer)) for layer, name in inputs.items()]
        with torch.no_grad():
            self.model.run_with_hooks(self.tokens, fwd_hooks=hooks)
            patched = [(name, partial(put_in, layer=layer)) for layer, name in inputs.items()]
            logits = self.model.run_with_hooks(self.tokens, fwd_hooks=patched)
        found: Tensor = metrics.logit_diff(logits, self.data, per_prompt=True)
        return found


def against_plain_loop(
    model: TransformerBridge,
    data: IOIDataset,
    name: str,
    rounds: int,
    shares: int,
) -> dict[str, Any]:
    """All heads to one set of receivers, ours and in a plain loop, in turns."""
    site, role, receivers = SETS[name]
    reference, device = data.abc(), model.W_E.device
    heads = Shape.of(model).nodes()
    # The loop costs the same for a head that does not reach; ours leaves it out, and so may it.
    last = max(int(receiver[1:].split("H")[0]) for receiver in receivers)
    senders = [node for node in heads if node.layer < last]
    random.Random(0).shuffle(senders)
    inputs = [(receiver, site, role) for receiver in receivers]

    def ours() -> SweepResult:
        return path_sweep(
            model, data, reference, receivers=inputs, engine="fast", memory=MEMORY, progress=False
        )

    ours()
    seconds, loop_seconds, ratios, of_floor, grown, differences = [], [], [], [], [], []
    result = ours()
    floor = 0
    if role == "END":
        layers = [(int(r[1:].split("H")[0]), "q") for r in receivers]
        floor = floor_macs(model, {name: layers}, len(data))
    # Passes A and B are shared by all senders; here they are not counted at all.
    loop = PlainLoop(model, data, reference)

    def of_loop(share: list[Node]) -> list[Tensor]:
        return [loop.effect_on(sender, site, role, receivers) for sender in share]

    of_loop(senders[:1])
    for turn in range(rounds):
        rate = matmul_rate(device)
        result, taken, more = measured(ours, device)
        share = senders[turn::shares]
        found, theirs, _ = measured(partial(of_loop, share), device)
        whole = theirs * len(senders) / len(share)
        seconds.append(taken)
        grown.append(more)
        loop_seconds.append(whole)
        ratios.append(whole / taken)
        of_floor.append(taken * rate / floor if floor else 0.0)
        for sender, value in zip(share, found, strict=True):
            differences.append(
                float((result.values[sender.layer, sender.head] - value.cpu()).abs().max())
            )
    effect = result.effect()[:last].abs()
    return {
        "what": name,
        "senders": len(senders),
        "seconds": spread(seconds),
        "loop_seconds": spread(loop_seconds),
        "ratio": spread(ratios),
        "times_floor": spread(of_floor) if floor else {},
        "floor_gflop": 2 * floor / 1e9,
        "peak_megabytes": max(grown) / 1e6,
        "largest_difference": max(differences),
        "largest_effect": float(effect.max()),
        "median_effect": float(effect.median()),
    }


def every_query(model: TransformerBridge, data: IOIDataset, rounds: int) -> dict[str, Any]:
    """All heads to every head's q at END and to the logits, each on its own."""
    receivers = every_input(model, ("q", "final"), "END")
    layers: dict[str, list[tuple[int, str]]] = {
        name: [(model.cfg.n_layers if r.node is None else r.node.layer, r.input)]
        for name, r in receivers.items()
    }
    floor = floor_macs(model, layers, len(data))

    def ours() -> SweepResult:
        return path_sweep(
            model, data, None, "heads", receivers, engine="fast", memory=MEMORY, progress=False
        )

    seconds, of_floor, grown = [], [], []
    device = model.W_E.device
    if on_gpu(device):  # kernels are loaded at their first call
        ours()
    for _ in range(rounds):
        rate = matmul_rate(device)
        result, taken, more = measured(ours, device)
        rate = (rate + matmul_rate(device)) / 2
        seconds.append(taken)
        of_floor.append(taken * rate / floor)
        grown.append(more)
    possible = torch.tensor(result.index_df["possible"].tolist())
    effect = result.effect().abs().flatten(0, 2)[possible]
    return {
        "what": "every head's q at END, and the logits",
        "edges": int(possible.sum()),
        "seconds": spread(seconds),
        "times_floor": spread(of_floor),
        "floor_tflop": 2 * floor / 1e12,
        "peak_megabytes": max(grown) / 1e6,
        "median_effect": float(effect.median()),
    }


def against_transformer_lens(model: TransformerBridge, data: IOIDataset) -> dict[str, Any]:
    """TransformerLens' function, for one source head and the last layer's heads, and ours."""
    corrupted, device = data.abc(), model.W_E.device
    tokens = corrupted.tokens.to(device)
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    source = Node(n_layers - 2, 3)
    with torch.no_grad():
        caches = [model.run_with_cache(each)[1] for each in (data.tokens.to(device), tokens)]

    def of_function() -> Tensor:
        with torch.no_grad(), Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
            found: Tensor = tl_patching.get_act_patch_direct_path(
                model, tokens, *caches, lambda logits: metrics.logit_diff(logits, data),
                source.layer, source.head, "q", verbose=False,
            )  # fmt: skip
        return found.cpu()

    if on_gpu(device):
        of_function()
    theirs, seconds, _ = measured(of_function, device)
    per_edge = seconds / n_heads
    edges = n_heads**2 * n_layers * (n_layers - 1) // 2
    receivers = every_input(model, ("q",))

    def one() -> SweepResult:
        last = {name: r for name, r in receivers.items() if r.node and r.node.layer == n_layers - 1}
        return path_sweep(
            model, data, corrupted, source, last, mlps="frozen", direction="denoising",
            engine="fast", memory=MEMORY, progress=False,
        )  # fmt: skip

    result = one()
    difference = (result.mean() - theirs[-1]).abs().max()
    # Ours costs the more the lower the receivers' layer: two layers are timed, spread over all.
    taken = []
    for layer in (1, n_layers // 2, n_layers - 1):
        here = {name: r for name, r in receivers.items() if r.node and r.node.layer == layer}
        senders = {str(node): node for node in Shape.of(model).nodes() if node.layer == 0}
        _, seconds, _ = measured(
            partial(
                path_sweep,
                model,
                data,
                corrupted,
                senders,
                here,
                mlps="frozen",
                direction="denoising",
                engine="fast",
                memory=MEMORY,
                progress=False,
            ),
            device,
        )
        taken.append((layer, seconds / n_heads**2))
    return {
        "edges": edges,
        "seconds_per_edge": per_edge,
        "minutes_for_all": per_edge * edges / 60,
        "ours_seconds_per_edge_by_layer": taken,
        "largest_difference": float(difference),
        "largest_effect": float((theirs[-1] - result.corrupted.mean()).abs().max()),  # type: ignore[union-attr]
    }


def many_prompts(model: TransformerBridge, n: int) -> dict[str, Any]:
    """All heads to name movers' queries and to the logits, on many prompts."""
    data = IOIDataset.generate(model.tokenizer, n, seed=0)
    sets: dict[str, Any] = {"q": [(r, "q", "END") for r in NAME_MOVERS], "logits": "final"}
    _, seconds, grown = measured(
        partial(path_sweep, model, data, None, "heads", sets, memory=MEMORY, progress=False),
        model.W_E.device,
    )
    return {
        "prompts": n,
        "memory_megabytes": MEMORY / 1e6,
        "seconds": seconds,
        "peak_megabytes": grown / 1e6,
    }


# --- report ------------------------------------------------------------------------------------


AUTO_CIRCUIT = (
    "auto-circuit 1.0.1 needs an older TransformerLens, so it is not timed in the same run. It was "
    "tried once by hand, with TransformerLens 2.16.1 in an environment of its own: it wraps the "
    "model with the same 32,491 edges and patches an edge by running the whole model, at all "
    "positions; the one edge that was timed cost 1.3 plain runs of its own. No ratio to ours is "
    "claimed."
)


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    setting = f"{ran_on(report)}. {report['remark']}".rstrip()
    lines = [
        "# Speed of path patching",
        "",
        "Written by `python benchmarks/path_patching_speed.py`; see there for how it is measured. "
        "GPT-2 small's shape, large random weights, the demo's 8 prompts with BOS, ABC as the "
        f"reference, {setting}",
        "",
        "## All heads to a set of receivers, against a plain loop that shares passes A and B",
        "",
        "| receivers | senders | ours, s | plain loop, s | times as fast | x floor | MB | largest "
        "difference | median, largest effect |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["sets"]:
        floor = range_of(row["times_floor"], 2) if row["times_floor"] else ""
        lines.append(
            f"| {row['what']} | {row['senders']} | {range_of(row['seconds'], 2)} "
            f"| {row['loop_seconds']['median']:.1f} | {range_of(row['ratio'])} | {floor} "
            f"| {row['peak_megabytes']:.0f} | {row['largest_difference']:.1e} "
            f"| {row['median_effect']:.3f}, {row['largest_effect']:.2f} |"
        )
    every = report["every_query"]
    lines += [
        "",
        "## All heads to every head's query at END, and to the logits",
        "",
        f"{every['edges']} paths: {range_of(every['seconds'])} s, "
        f"{range_of(every['times_floor'], 2)} times the floor of {every['floor_tflop']:.2f} TFLOP, "
        f"{every['peak_megabytes']:.0f} MB; median effect {every['median_effect']:.3f} logits.",
        "",
    ]
    if lens := report["transformer_lens_function"]:
        by_layer = ", ".join(
            f"{seconds:.4f} into layer {layer}"
            for layer, seconds in lens["ours_seconds_per_edge_by_layer"]
        )
        lines += [
            "## TransformerLens' function, on its own edge (all positions, MLPs frozen)",
            "",
            f"{lens['seconds_per_edge']:.2f} s an edge, {lens['minutes_for_all']:.0f} minutes for "
            f"all {lens['edges']} pairs of heads. Ours for the same edge: {by_layer} (s an edge). "
            f"Largest difference {lens['largest_difference']:.1e}, of effects up to "
            f"{lens['largest_effect']:.2f}.",
            "",
            "## auto-circuit",
            "",
            AUTO_CIRCUIT,
            "",
        ]
    if many := report["many_prompts"]:
        lines += [
            "## Many prompts",
            "",
            f"All heads to name movers' queries and to the logits, {many['prompts']} prompts, "
            f"`memory=` {many['memory_megabytes']:.0f} MB: {many['seconds']:.0f} s; memory "
            f"grows by {many['peak_megabytes']:.0f} MB.",
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and write its results."""
    parser = benchmark_parser(__doc__, HERE / "path_patching_speed", rounds=3)
    parser.add_argument(
        "--shares", type=int, default=12, help="rounds that would time the loop whole"
    )
    parser.add_argument("--prompts", type=int, default=1000, help="of the run with many; 0: none")
    parser.add_argument("--quick", action="store_true", help="one round, few prompts, no peers")
    parser.add_argument("--remark", default="", help="a sentence on the machine, for the page")
    arguments = parser.parse_args()
    rounds, shares = (1, 66) if arguments.quick else (arguments.rounds, arguments.shares)
    machine = surroundings(arguments.threads, "transformer_lens", device=arguments.device)
    with tempfile.TemporaryDirectory() as work:
        model = make_model(arguments.model_folder, Path(work), arguments.device)
    data = IOIDataset.demo(model.tokenizer)
    report: dict[str, Any] = {
        "rounds": rounds,
        **machine,
        "gflops": 2 * matmul_rate(arguments.device) / 1e9,
        "remark": arguments.remark,
        "sets": [],
    }

    def step(name: str, made: Callable[[], Any]) -> Any:
        print(f"{name} ...", flush=True)
        found = made()
        print(json.dumps(found), flush=True)
        return found

    for name in SETS:
        found = step(name, partial(against_plain_loop, model, data, name, rounds, shares))
        report["sets"].append(found)
    report["every_query"] = step("every query", partial(every_query, model, data, rounds))
    report["transformer_lens_function"] = report["many_prompts"] = None
    if not arguments.quick:
        report["transformer_lens_function"] = step(
            "TransformerLens", partial(against_transformer_lens, model, data)
        )
        if arguments.prompts:
            report["many_prompts"] = step("many", partial(many_prompts, model, arguments.prompts))
    publish(report, markdown(report), arguments.output)


if __name__ == "__main__":
    main()
