"""Our patching sweeps against TransformerLens' own, in one process and taking turns.

    python benchmarks/patching_speed.py [--model-folder FOLDER] [--device cuda]

The model has GPT-2 small's shape and random weights: speed does not depend on them. The prompts are
the 8 of TransformerLens' Exploratory Analysis demo, once with the subject swapped (the runs differ
from S2 on) and once with the order of the names swapped (they differ from the first name on).

Where nnsight is installed, it makes two of the sweeps as well (one trace a patch, on the same
weights).

In each round ours makes the whole sweep, its own caching runs included, and TransformerLens a share
of its patches, without its caching run; in the last round it has made each patch once. Every patch
costs it the same, so a share of the sweep says how long all of it takes. The ratio of each round is
taken within the round, and the spread over rounds is shown.

The *floor* is the number of multiplications that an exact sweep cannot avoid (see `floor_macs`),
divided by the rate at which this machine multiplies large matrices, measured in the same round.

The results go to patching_speed.json and patching_speed.md beside this file.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformer_lens.patching as tl_patching
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.report import gpt2_tokenizer, on_gpu, publish, ran_on, range_of, surroundings
from benchmarks.report import parser as benchmark_parser
from ioi_helpers import forward, load_model, metrics
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.patching import patch_sweep
from ioi_helpers.runs import DEFAULT_MEMORY

HERE = Path(__file__).resolve().parent
POSITION_SITES = ("resid_pre", "attn_out", "mlp_out")
HEAD_SITES = ("z", "q", "k", "v", "pattern")
SITES = (*POSITION_SITES, *HEAD_SITES)
SETTERS = {
    **dict.fromkeys(POSITION_SITES, tl_patching.layer_pos_patch_setter),
    **dict.fromkeys(HEAD_SITES, tl_patching.layer_head_vector_patch_setter),
    "pattern": tl_patching.layer_head_pattern_patch_setter,
}


def axes_of(site: str) -> tuple[str, str]:
    """The sweep that is timed at this site."""
    return ("layer", "pos") if site in POSITION_SITES else ("layer", "head")


# --- the model and the prompts -----------------------------------------------------------------


def make_model(
    model_folder: str | None, work: Path, device: str, n_layers: int = 12
) -> TransformerBridge:
    """GPT-2 small's shape with random weights, and GPT-2's tokenizer, written to `work`."""
    folder = work / f"layers-{n_layers}"
    gpt2_tokenizer(model_folder).save_pretrained(folder)
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_layer=n_layers)).save_pretrained(folder)
    return load_model(str(folder), device=device, verbose=False)


def corruption_of(clean: IOIDataset, name: str) -> IOIDataset:
    """`clean.swap_subject()` or `clean.swap_order()`."""
    corrupted: IOIDataset = getattr(clean, name)()
    return corrupted


# --- the floor ---------------------------------------------------------------------------------


def floor_macs(
    model: TransformerBridge, clean: IOIDataset, corrupted: IOIDataset, site: str
) -> int:
    """Multiply-adds that an exact sweep has to make, whatever the program.

    Counted are: one whole run to start from, without the queries and MLPs of the last block except
    at END; the other run, from the first token that differs; and for each patch that can change
    anything, the positions from the patched one to END in the blocks above the patch. In the
    patch's own block: q, k and v of the patched position only, what follows from attention at all
    positions after it, and for a head its own slice of W_O. In the last block, keys and values,
    and the rest at END. Attention itself, norms and activation functions are counted as nothing.
    """
    gpt = forward.read_weights(model)
    d, layers, some = model.cfg.d_model, gpt.n_layers, gpt.blocks[0]
    query, out, keys_values = some.W_Q.numel(), some.W_O.numel(), 2 * some.W_K.numel()
    mlp = some.W_in.numel() + some.W_out.numel()
    mlp += 0 if some.W_gate is None else some.W_gate.numel()
    own_mlp = 0 if gpt.parallel else mlp  # what reads the attention of its own block
    first, differs = forward.first_difference(clean.tokens, corrupted.tokens, clean.lengths)
    block, last = query + keys_values + out + mlp, query + out + mlp

    def blocks(tokens: int, start: int) -> int:
        """Blocks start, start + 1, ... for so many positions up to END."""
        if start >= layers:
            return 0
        return tokens * (block * (layers - 1 - start) + keys_values) + last

    total = 0
    for length, from_, where in zip(
        clean.lengths.tolist(), first.tolist(), differs.tolist(), strict=True
    ):
        total += blocks(length, 0) + (blocks(length - from_, 0) if from_ < length else 0)
        for layer in range(layers):
            top = layer == layers - 1
            if site in HEAD_SITES and from_ < length:
                tokens = 1 if top else length - from_
                head = d * gpt.d_head
                total += gpt.n_heads * (tokens * (head + own_mlp) + blocks(tokens, layer + 1))
                continue
            for pos in range(from_, length):
                tokens = length - pos
                at_end = pos == length - 1
                if site == "resid_pre":
                    if layer == 0 and not where[pos]:
                        continue
                    # END's query is unchanged in the last block, unless END itself was patched.
                    total += keys_values + (0 if top and not at_end else query)
                    total += (1 if top else tokens) * (out + mlp)
                elif top and not at_end:
                    continue
                elif site == "attn_out":
                    total += own_mlp
                total += blocks(tokens, layer + 1)
    return total


def matmul_rate(device: str | torch.device = "cpu", seconds: float = 0.3) -> float:
    """Multiply-adds a second of a device, in products of GPT-2 small's largest matrices.

    A GPU is given more tokens, and several products before the clock waits for it: neither its
    idle parts nor its calls are to count.
    """
    tokens, products = (8192, 10) if on_gpu(device) else (1024, 1)
    x, weight = torch.randn(tokens, 768, device=device), torch.randn(768, 3072, device=device)
    bias, macs = torch.zeros(3072, device=device), products * tokens * 768 * 3072
    torch.addmm(bias, x, weight)
    finish(device)
    best, stop = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < stop:
        start = time.perf_counter()
        for _ in range(products):
            torch.addmm(bias, x, weight)
        finish(device)
        best = max(best, macs / (time.perf_counter() - start))
    return best


# --- time and memory -----------------------------------------------------------------------------


def finish(device: str | torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if on_gpu(device):
        torch.cuda.synchronize(device)


def resident() -> int:
    """Bytes of this process in memory; 0 where that cannot be read."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def measured(
    function: Callable[[], Any], device: str | torch.device = "cpu"
) -> tuple[Any, float, int]:
    """A function's result, its seconds, and the bytes by which memory grew meanwhile.

    That is the process's memory, and on a GPU what PyTorch has allocated there.
    """
    gc.collect()
    if on_gpu(device):
        finish(device)
        torch.cuda.reset_peak_memory_stats(device)
        allocated, start = torch.cuda.memory_allocated(device), time.perf_counter()
        result = function()
        finish(device)
        seconds = time.perf_counter() - start
        return result, seconds, torch.cuda.max_memory_allocated(device) - allocated
    if sys.platform == "linux":
        # Freed memory that the process has kept would hide what is allocated next.
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)(0)
    before, peak = resident(), 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        result = function()
    finally:
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
    return result, seconds, max(0, peak - before)


def peer_share(
    model: TransformerBridge,
    clean: IOIDataset,
    corrupted: IOIDataset,
    cache: Any,
    site: str,
    cells: list[tuple[int, int]],
) -> Tensor:
    """Some patches of TransformerLens' sweep: [cell batch]."""

    def metric(logits: Tensor) -> Tensor:
        return metrics.logit_diff(logits[:, -1], clean, per_prompt=True)

    axes = list(axes_of(site))
    # Its progress bar cannot be switched off.
    with torch.no_grad(), Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        result = tl_patching.generic_activation_patch(
            model,
            corrupted.tokens,
            cache,
            metric,
            SETTERS[site],
            site,
            index_df=pd.DataFrame(cells, columns=axes),
            reduce="none",
        )
    values: Tensor = result.values
    return values


NNSIGHT_SITES = ("resid_pre", "z")


def nnsight_share(
    network: Any, clean: IOIDataset, corrupted: IOIDataset, site: str, cells: list[tuple[int, int]]
) -> Tensor:
    """Some patches of the same sweep, made with nnsight: [cell batch]."""
    blocks = network.transformer.h
    width = blocks[0].attn.c_proj.weight.shape[0] // network.config.n_head
    values = []
    new_list: Any = list
    with torch.no_grad():
        with network.trace(clean.tokens):
            kept = new_list().save()
            for block in blocks:
                kept.append(block.input if site == "resid_pre" else block.attn.c_proj.input)
        for layer, index in cells:
            source = kept[layer]
            head = slice(index * width, (index + 1) * width)
            with network.trace(corrupted.tokens):
                if site == "resid_pre":
                    blocks[layer].input[:, index] = source[:, index]
                else:
                    blocks[layer].attn.c_proj.input[:, :, head] = source[:, :, head]
                logits = network.lm_head.output[:, -1].save()
            values.append(metrics.logit_diff(logits, clean, per_prompt=True))
    return torch.stack(values)


def compare(
    model: TransformerBridge,
    network: Any,
    clean: IOIDataset,
    corruption: str,
    site: str,
    rounds: int,
    shares_in_all: int,
) -> dict[str, Any]:
    """Time one sweep ours and the other ways, in turns. `network` is nnsight's, or None."""
    corrupted = corruption_of(clean, corruption)
    axes = axes_of(site)
    device = model.W_E.device
    there, corrupted_there = clean.to(device), corrupted.to(device)
    sizes = {"layer": model.cfg.n_layers, "head": model.cfg.n_heads, "pos": clean.tokens.shape[1]}
    cells = [(i, j) for i in range(sizes[axes[0]]) for j in range(sizes[axes[1]])]
    random.Random(0).shuffle(cells)
    with torch.no_grad():
        _, cache = model.run_with_cache(there.tokens)

    def ours() -> Any:
        return patch_sweep(model, clean, corrupted, site, axes, engine="fast", progress=False)

    # The patch of the largest effect is always compared: elsewhere there may be nothing to see.
    effects = (warm := ours()).values.sub(warm.baseline).abs().flatten(2).amax(dim=-1)
    strongest = divmod(int(effects.argmax()), effects.shape[1])
    cells = [strongest, *(cell for cell in cells if cell != strongest)]
    shares = [cells[share::shares_in_all] for share in range(rounds)]
    macs = floor_macs(model, clean, corrupted, site)
    if on_gpu(device):  # kernels are loaded at their first call
        peer_share(model, there, corrupted_there, cache, site, cells[:1])
    seconds, peer_seconds, ratios, of_floor, memory, peer_memory = [], [], [], [], [], []
    nnsight_seconds, nnsight_ratios = [], []
    nnsight_difference = difference = effect = 0.0
    for share in shares:
        rate = matmul_rate(device)
        result, mine, grown = measured(ours, device)
        theirs, peer, peer_grown = measured(
            partial(peer_share, model, there, corrupted_there, cache, site, share), device
        )
        _, mine_again, _ = measured(ours, device)
        mine = (mine + mine_again) / 2
        rate = (rate + matmul_rate(device)) / 2
        whole = peer / len(share) * len(cells)
        seconds.append(mine)
        peer_seconds.append(whole)
        ratios.append(whole / mine)
        of_floor.append(mine / (macs / rate))
        memory.append(grown)
        peer_memory.append(peer_grown)
        index = torch.tensor(share)
        expected = result.values[index[:, 0], index[:, 1]]
        if network is not None and site in NNSIGHT_SITES:
            third, taken, _ = measured(
                partial(nnsight_share, network, there, corrupted_there, site, share), device
            )
            nnsight_seconds.append(taken / len(share) * len(cells))
            nnsight_ratios.append(nnsight_seconds[-1] / mine)
            nnsight_difference = max(nnsight_difference, float((third - expected).abs().max()))
        difference = max(difference, float((theirs - expected).abs().max()))
        effect = max(effect, float((theirs - result.baseline).abs().max()))
    nnsight = {
        "nnsight_seconds": spread(nnsight_seconds),
        "nnsight_ratio": spread(nnsight_ratios),
        "nnsight_largest_difference": nnsight_difference,
    }
    return {
        "site": site,
        "axes": " x ".join(axes),
        "corruption": corruption,
        "patches": len(cells),
        "seconds": spread(seconds),
        "transformer_lens_seconds": spread(peer_seconds),
        "ratio": spread(ratios),
        "floor_gflop": 2 * macs / 1e9,
        "times_floor": spread(of_floor),
        "peak_megabytes": max(memory) / 1e6,
        "transformer_lens_peak_megabytes": max(peer_memory) / 1e6,
        "largest_difference": difference,
        "largest_effect": effect,
        **(nnsight if nnsight_seconds else {}),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    if not values:
        return {}
    return {
        "median": statistics.median(values),
        "least": min(values),
        "greatest": max(values),
    }


# --- growth --------------------------------------------------------------------------------------

SENTENCE = "It was a long day and the weather was fine, as it often is at that time of year."


def growth(
    model: TransformerBridge, folder: str | None, work: Path, corruption: str
) -> list[dict[str, Any]]:
    """How long ours takes with more prompts, longer prompts and more layers."""
    rows: list[dict[str, Any]] = []
    device = str(model.W_E.device)

    def timed(what: str, size: int, model: TransformerBridge, clean: IOIDataset) -> None:
        corrupted = corruption_of(clean, corruption)
        for site in ("resid_pre", "z"):
            taken = []
            for _ in range(2):
                _, seconds, _ = measured(
                    partial(
                        patch_sweep, model, clean, corrupted, site, axes_of(site), progress=False
                    ),
                    device,
                )
                taken.append(seconds)
            macs = floor_macs(model, clean, corrupted, site)
            floor = macs / matmul_rate(device)
            rows.append(
                {
                    "grows": what,
                    "size": size,
                    "site": site,
                    "seconds": min(taken),
                    "times_floor": min(taken) / floor,
                }
            )

    tokenizer = model.tokenizer
    for copies in (1, 2, 4):
        clean = IOIDataset.demo(tokenizer)[list(range(8)) * copies]
        timed("prompts", len(clean), model, clean)
    demo = IOIDataset.demo(tokenizer)
    answers = [(names.IO, names.S1) for names in demo.names]
    for sentences in (0, 1, 2):
        texts = [" ".join([SENTENCE] * sentences + [prompt]) for prompt in demo.prompts]
        clean = IOIDataset.from_prompts(tokenizer, texts, answers)
        timed("positions", clean.tokens.shape[1], model, clean)
    for n_layers in (3, 6, 12):
        other = model if n_layers == 12 else make_model(folder, work, device, n_layers)
        timed("layers", n_layers, other, demo)
    return rows


# --- report ----------------------------------------------------------------------------------


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    lines = [
        "# Speed of patching sweeps",
        "",
        "Written by `python benchmarks/patching_speed.py`; see there for how it is measured. GPT-2 "
        f"small's shape, random weights, the demo's 8 prompts with BOS, {ran_on(report)}.",
        "",
        "`x floor`: our time over that of the multiplications which cannot be avoided, at the rate "
        f"of this machine's matrix products in the same round ({report['gflops']:.0f} GFLOP/s at "
        "the start).",
        "",
    ]
    titles = {"swap_subject": "Subject swapped", "swap_order": "Order of the names swapped"}
    for corruption, title in titles.items():
        found = [row for row in report["sweeps"] if row["corruption"] == corruption]
        if not found:
            continue
        lines += [
            f"## {title}",
            "",
            "| site | sweep | ours, s | TransformerLens, s | times as fast | x floor | MB, ours / "
            "TransformerLens | largest difference | largest effect |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in found:
            lines.append(
                f"| `{row['site']}` | {row['axes']} | {range_of(row['seconds'], 2)} "
                f"| {row['transformer_lens_seconds']['median']:.1f} | {range_of(row['ratio'])} "
                f"| {range_of(row['times_floor'], 2)} | {row['peak_megabytes']:.0f} / "
                f"{row['transformer_lens_peak_megabytes']:.0f} "
                f"| {row['largest_difference']:.1e} | {row['largest_effect']:.1e} |"
            )
        lines.append("")
    third = [row for row in report["sweeps"] if "nnsight_ratio" in row]
    if third:
        lines += [
            f"## Against nnsight {report['nnsight']}",
            "",
            "| corruption | site | nnsight, s | times as fast | largest difference |",
            "|---|---|---|---|---|",
        ]
        for row in third:
            lines.append(
                f"| {row['corruption']} | `{row['site']}` "
                f"| {row['nnsight_seconds']['median']:.1f} | {range_of(row['nnsight_ratio'])} "
                f"| {row['nnsight_largest_difference']:.1e} |"
            )
        lines.append("")
    if report["growth"]:
        lines += [
            "## Growth (order of the names swapped)",
            "",
            "| what grows | to | `resid_pre` layer x pos, s | x floor | `z` layer x head, s "
            "| x floor |",
            "|---|---|---|---|---|---|",
        ]
        pairs = zip(report["growth"][::2], report["growth"][1::2], strict=True)
        for pre, z in pairs:
            lines.append(
                f"| {pre['grows']} | {pre['size']} | {pre['seconds']:.2f} "
                f"| {pre['times_floor']:.2f} | {z['seconds']:.2f} | {z['times_floor']:.2f} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and write its results."""
    parser = benchmark_parser(__doc__, HERE / "patching_speed", rounds=6)
    parser.add_argument(
        "--quick", action="store_true", help="two rounds, with a 24th of the patches in each"
    )
    parser.add_argument("--sites", nargs="*", default=list(SITES), choices=SITES)
    parser.add_argument(
        "--corruptions",
        nargs="*",
        default=["swap_subject", "swap_order"],
        choices=["swap_subject", "swap_order"],
    )
    parser.add_argument("--no-growth", action="store_true", help="only compare")
    arguments = parser.parse_args()
    rounds, shares = (2, 24) if arguments.quick else (arguments.rounds, arguments.rounds)
    machine = surroundings(arguments.threads, "transformer_lens", device=arguments.device)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        model = make_model(arguments.model_folder, work, arguments.device)
        clean = IOIDataset.demo(model.tokenizer)
        network = None
        if find_spec("nnsight"):
            network = import_module("nnsight").NNsight(
                GPT2LMHeadModel.from_pretrained(work / "layers-12").eval().to(arguments.device)
            )
        report: dict[str, Any] = {
            "rounds": rounds,
            **machine,
            "nnsight": version("nnsight") if network is not None else None,
            "gflops": 2 * matmul_rate(arguments.device) / 1e9,
            "memory_budget_megabytes": DEFAULT_MEMORY / 1e6,
            "sweeps": [],
            "growth": [],
        }
        for corruption in arguments.corruptions:
            for site in arguments.sites:
                row = compare(model, network, clean, corruption, site, rounds, shares)
                report["sweeps"].append(row)
                print(
                    f"{corruption:12} {site:9} {row['axes']:13} "
                    f"{row['seconds']['median']:6.2f} s against "
                    f"{row['transformer_lens_seconds']['median']:6.1f} s: "
                    f"{row['ratio']['median']:5.1f} times as fast "
                    f"({row['ratio']['least']:.1f} to {row['ratio']['greatest']:.1f}), "
                    f"{row['times_floor']['median']:.2f} x floor, {row['peak_megabytes']:.0f} MB, "
                    f"difference {row['largest_difference']:.1e}",
                    flush=True,
                )
        if not arguments.no_growth:
            report["growth"] = growth(model, arguments.model_folder, work, "swap_order")
    publish(report, markdown(report), arguments.output)


if __name__ == "__main__":
    main()
