"""Sweeps on a GPU, beside the same sweeps on the CPU and beside TransformerLens on the GPU.

    python benchmarks/gpu_speed.py [--model-folder FOLDER] [--threads N]

FOLDER is one with GPT-2's tokenizer (tokenizer.json and tokenizer_config.json), for machines that
have no gpt2 in their Hugging Face cache. It takes about a minute, and a GPU: where there is none it
says so. (`--device cpu --quick` tries the code without one.)

The model has GPT-2 small's shape and the large random weights of `path_patching_speed.py`, so that
effects are of a real size. The prompts are the 8 of TransformerLens' Exploratory Analysis demo, and
as many copies of them as make up more: eight prompts leave a GPU idle. All is float32, without
TF32.

- *GPU* is our whole sweep there, the median of some rounds, after one that is not counted.
- *CPU* is the same sweep on the same machine. With more prompts it is left out where it would take
  longer than `--cpu-seconds`, judging by its time for the fewest.
- *TransformerLens* makes a few patches a round on the GPU, each a run of the whole model with a
  hook: its own functions where it has some, and otherwise a loop over hooks. Every patch costs it
  the same, so they say how long all of them take. Its caching runs are not counted, ours are.
- The *floor* is that of `patching_speed.py` and `path_patching_speed.py`, at the rate of the GPU's
  own float32 products, measured in the same run.
- Every copy of the prompts is compared with the CPU's result for the first, and every patch of
  TransformerLens' with ours.

The results go to gpu_speed.json and gpu_speed.md beside this file.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import patching_speed, path_patching_speed
from benchmarks.patching_speed import axes_of, corruption_of, matmul_rate, measured, spread
from benchmarks.path_patching_speed import NAME_MOVERS, PlainLoop, make_model
from benchmarks.report import parser as benchmark_parser
from benchmarks.report import publish, range_of, surroundings
from ioi_helpers import load_model, metrics
from ioi_helpers.ablation import ablation_sweep
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.graph import Node
from ioi_helpers.patching import SweepResult, patch_sweep
from ioi_helpers.path_patching import path_sweep

HERE = Path(__file__).resolve().parent
Cell = tuple[int, int]
Peer = Callable[[list[Cell]], Tensor]


@dataclass(frozen=True)
class Prompts:
    """Copies of some prompts, and of their ABC reference, which would differ from copy to copy."""

    data: IOIDataset
    abc: IOIDataset

    def __len__(self) -> int:
        return len(self.data)

    def copies(self, n: int) -> Prompts:
        """So many of each."""
        rows = list(range(len(self))) * n
        return Prompts(self.data[rows], self.abc[rows])


@dataclass(frozen=True)
class Sweep:
    """One sweep, ours and TransformerLens'.

    Attributes:
        name: What it is, for the page.
        ours: All of it, on some model.
        peer: A function that makes some of its patches with TransformerLens, ``[cell batch]``.
        macs: The multiply-adds that cannot be avoided; None where they are not counted.
        last: The layers that have patches: those below this one.
    """

    name: str
    ours: Callable[[TransformerBridge, Prompts], SweepResult]
    peer: Callable[[TransformerBridge, Prompts], Peer]
    macs: Callable[[TransformerBridge, Prompts], int] | None
    last: int | None = None


def patching(site: str, corruption: str) -> Sweep:
    """Activation patching at a site, against TransformerLens' own function."""

    def ours(model: TransformerBridge, prompts: Prompts) -> SweepResult:
        corrupted = corruption_of(prompts.data, corruption)
        return patch_sweep(
            model, prompts.data, corrupted, site, axes_of(site), engine="fast", progress=False
        )

    def peer(model: TransformerBridge, prompts: Prompts) -> Peer:
        there = prompts.data.to(model.W_E.device)
        corrupted = corruption_of(prompts.data, corruption).to(model.W_E.device)
        with torch.no_grad():
            _, cache = model.run_with_cache(there.tokens)
        return partial(patching_speed.peer_share, model, there, corrupted, cache, site)

    def macs(model: TransformerBridge, prompts: Prompts) -> int:
        corrupted = corruption_of(prompts.data, corruption)
        return patching_speed.floor_macs(model, prompts.data, corrupted, site)

    what = {"swap_subject": "subject swapped", "swap_order": "order swapped"}[corruption]
    return Sweep(f"patching `{site}`, {' x '.join(axes_of(site))}, {what}", ours, peer, macs)


def path_patching() -> Sweep:
    """Path patching from every head to the name movers' queries, against a loop over hooks."""
    receivers = [(receiver, "q", "END") for receiver in NAME_MOVERS]
    layers = [int(receiver[1:].split("H")[0]) for receiver in NAME_MOVERS]

    def ours(model: TransformerBridge, prompts: Prompts) -> SweepResult:
        return path_sweep(
            model, prompts.data, prompts.abc, receivers=receivers, engine="fast", progress=False
        )

    def peer(model: TransformerBridge, prompts: Prompts) -> Peer:
        loop = PlainLoop(model, prompts.data, prompts.abc)
        return lambda cells: torch.stack(
            [loop.effect_on(Node(*cell), "q", "END", NAME_MOVERS) for cell in cells]
        )

    def macs(model: TransformerBridge, prompts: Prompts) -> int:
        read = {"queries": [(layer, "q") for layer in layers]}
        return path_patching_speed.floor_macs(model, read, len(prompts))

    return Sweep("path patching, every head to 3 queries at END", ours, peer, macs, max(layers))


def ablation() -> Sweep:
    """Zero ablation of every head, against a loop over hooks."""

    def ours(model: TransformerBridge, prompts: Prompts) -> SweepResult:
        return ablation_sweep(
            model, prompts.data, "heads", how="zero", engine="fast", progress=False
        )

    def peer(model: TransformerBridge, prompts: Prompts) -> Peer:
        there = prompts.data.to(model.W_E.device)

        def without(z: Tensor, hook: Any, head: int) -> Tensor:
            z[:, :, head] = 0.0
            return z

        def some(cells: list[Cell]) -> Tensor:
            found = []
            for layer, head in cells:
                hooks = [(f"blocks.{layer}.attn.hook_z", partial(without, head=head))]
                with torch.no_grad():
                    logits = model.run_with_hooks(there.tokens, fwd_hooks=hooks)
                found.append(metrics.logit_diff(logits, there, per_prompt=True))
            return torch.stack(found)

        return some

    return Sweep("zero ablation of every head", ours, peer, None)


SWEEPS = (
    patching("resid_pre", "swap_subject"),
    patching("z", "swap_subject"),
    patching("pattern", "swap_subject"),
    patching("z", "swap_order"),
    path_patching(),
    ablation(),
)


@dataclass(frozen=True)
class Length:
    """How often things are timed."""

    rounds: int
    patches: int
    cpu_seconds: float


class OnCPU:
    """Our sweeps on the CPU: the fewest prompts' results, and the times of all that fit."""

    def __init__(self, model: TransformerBridge, limit: float):
        self.model, self.limit = model, limit
        self.first: dict[str, tuple[SweepResult, float, int]] = {}

    def seconds(self, sweep: Sweep, prompts: Prompts) -> float | None:
        """One timing; None where it would take too long."""
        if sweep.name in self.first:
            _, taken, size = self.first[sweep.name]
            if taken * len(prompts) / size > self.limit:
                return None
            return measured(partial(sweep.ours, self.model, prompts))[1]
        result, taken, _ = measured(partial(sweep.ours, self.model, prompts))
        self.first[sweep.name] = result, taken, len(prompts)
        return taken

    def difference(self, sweep: Sweep, values: Tensor) -> float:
        """By how much values of any number of copies differ from those here."""
        expected = self.first[sweep.name][0].values
        copies = values.cpu().unflatten(-1, (-1, expected.shape[-1]))
        return float((copies - expected[..., None, :]).abs().max())


def compare(
    sweep: Sweep, model: TransformerBridge, prompts: Prompts, cpu: OnCPU, length: Length
) -> dict[str, Any]:
    """Time one sweep here and there, ours and TransformerLens', in turns."""
    device = model.W_E.device
    cpu_seconds = cpu.seconds(sweep, prompts)
    ours, peer = partial(sweep.ours, model, prompts), sweep.peer(model, prompts)
    result = ours()
    # The patch of the largest effect is always compared: elsewhere there may be nothing to see.
    effects = result.effect().abs().amax(dim=-1)[: sweep.last]
    layers, width = effects.shape
    cells = [(i, j) for i in range(layers) for j in range(width)]
    random.Random(0).shuffle(cells)
    strongest: Cell = divmod(int(effects.argmax()), width)
    cells = [strongest, *(cell for cell in cells if cell != strongest)]
    peer(cells[:1])
    seconds, peer_seconds, ratios, rates, memory, peer_memory = [], [], [], [], [], []
    difference = 0.0
    for turn in range(length.rounds):
        share = cells[turn * length.patches :][: length.patches]
        rates.append(matmul_rate(device, 0.1))
        result, mine, grown = measured(ours, device)
        theirs, peers, peer_grown = measured(partial(peer, share), device)
        seconds.append(mine)
        peer_seconds.append(peers / len(share) * len(cells))
        ratios.append(peer_seconds[-1] / mine)
        memory.append(grown)
        peer_memory.append(peer_grown)
        index = torch.tensor(share)
        expected = result.values.cpu()[index[:, 0], index[:, 1]]
        difference = max(difference, float((theirs.cpu() - expected).abs().max()))
    middle = statistics.median(seconds)
    macs = None if sweep.macs is None else sweep.macs(model, prompts)
    rate = statistics.median(rates)
    return {
        "sweep": sweep.name,
        "prompts": len(prompts),
        "patches": len(cells),
        "cpu_seconds": cpu_seconds,
        "seconds": spread(seconds),
        "cpu_ratio": None if cpu_seconds is None else cpu_seconds / middle,
        "transformer_lens_seconds": spread(peer_seconds),
        "ratio": spread(ratios),
        "gflops": 2 * rate / 1e9,
        "floor_gflop": None if macs is None else 2 * macs / 1e9,
        "times_floor": None if macs is None else middle / (macs / rate),
        "peak_megabytes": max(memory) / 1e6,
        "transformer_lens_peak_megabytes": max(peer_memory) / 1e6,
        "difference_from_cpu": cpu.difference(sweep, result.values),
        "difference_from_transformer_lens": difference,
        "largest_effect": float(effects.max()),
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""

    def number(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    lines = [
        "# Speed of sweeps on a GPU",
        "",
        "Written by `python benchmarks/gpu_speed.py`; see there for how it is measured. GPT-2 "
        f"small's shape, large random weights, the demo's 8 prompts with BOS and copies of them, "
        f"float32 without TF32, torch {report['torch']}, TransformerLens "
        f"{report['transformer_lens']}. GPU: {report['device']}, {report['gflops']:.0f} GFLOP/s in "
        f"large matrix products; beside it the same machine's {report['cpu']}, "
        f"{report['cpu_gflops']:.0f} GFLOP/s. GPU times are medians of {report['rounds']} rounds, "
        f"in brackets the least and the greatest; the CPU's is one sweep; in each round "
        f"TransformerLens made {report['patches_a_round']} patches.",
        "",
        "`x floor`: our time on the GPU over that of the multiplications which cannot be avoided, "
        "at the GPU's rate.",
    ]
    for size in report["sizes"]:
        lines += [
            "",
            f"## {size} prompts",
            "",
            "| sweep | patches | ours on the CPU, s | ours on the GPU, s | GPU, times as fast "
            "| TransformerLens on the GPU, s | ours, times as fast | x floor "
            "| MB, ours / TransformerLens | difference: CPU, TransformerLens | largest effect |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in report["sweeps"]:
            if row["prompts"] != size:
                continue
            memory = row["peak_megabytes"], row["transformer_lens_peak_megabytes"]
            apart = row["difference_from_cpu"], row["difference_from_transformer_lens"]
            columns = [
                row["sweep"],
                str(row["patches"]),
                number(row["cpu_seconds"], 2),
                range_of(row["seconds"], 3),
                number(row["cpu_ratio"], 1),
                number(row["transformer_lens_seconds"]["median"], 1),
                range_of(row["ratio"]),
                number(row["times_floor"], 2),
                " / ".join(number(value, 0) for value in memory),
                ", ".join(f"{value:.1e}" for value in apart),
                number(row["largest_effect"], 2),
            ]
            lines.append(f"| {' | '.join(columns)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Run the benchmark and write its results, after each number of prompts."""
    parser = benchmark_parser(__doc__, HERE / "gpu_speed", rounds=3)
    parser.set_defaults(device="cuda")
    parser.add_argument("--prompts", type=int, nargs="+", default=[8, 64], help="multiples of 8")
    parser.add_argument("--patches", type=int, default=4, help="TransformerLens', in each round")
    parser.add_argument("--cpu-seconds", type=float, default=5.0, help="the CPU's longest sweep")
    parser.add_argument("--quick", action="store_true", help="2 and 4 prompts, one round")
    arguments = parser.parse_args()
    length = Length(arguments.rounds, arguments.patches, arguments.cpu_seconds)
    sizes, few = sorted(set(arguments.prompts)), 8
    if arguments.quick:
        length, sizes, few = Length(1, 2, arguments.cpu_seconds), [2, 4], 2
    if any(size % few for size in sizes):
        raise SystemExit(f"--prompts are copies of {few} prompts, so multiples of {few}.")
    machine = surroundings(arguments.threads, "transformer_lens", device=arguments.device)
    with tempfile.TemporaryDirectory() as work:
        on_cpu = make_model(arguments.model_folder, Path(work), "cpu")
        model = load_model(work, device=arguments.device, verbose=False)
    report: dict[str, Any] = {
        "rounds": length.rounds,
        "patches_a_round": length.patches,
        **machine,
        "gflops": 2 * matmul_rate(arguments.device) / 1e9,
        "cpu": surroundings(None)["device"],
        "cpu_gflops": 2 * matmul_rate() / 1e9,
        "sizes": [],
        "sweeps": [],
    }
    demo = IOIDataset.demo(on_cpu.tokenizer)[list(range(few))]
    prompts = Prompts(demo, demo.abc())
    cpu = OnCPU(on_cpu, length.cpu_seconds)
    for size in sizes:
        for sweep in SWEEPS:
            row = compare(sweep, model, prompts.copies(size // few), cpu, length)
            report["sweeps"].append(row)
            print(
                f"{size:4} {sweep.name:52} {row['seconds']['median']:7.3f} s, CPU "
                f"{row['cpu_seconds'] or float('nan'):6.2f} s, TransformerLens "
                f"{row['transformer_lens_seconds']['median']:6.2f} s, difference "
                f"{row['difference_from_cpu']:.1e} of {row['largest_effect']:.2f}",
                flush=True,
            )
        report["sizes"].append(size)
        publish(report, markdown(report), arguments.output)


if __name__ == "__main__":
    main()
