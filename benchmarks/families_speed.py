"""Our patching sweeps against TransformerLens' own, on decoders of other families than GPT-2.

    python benchmarks/families_speed.py [--model-folder FOLDER] [--device cuda]

Two shapes with random weights and GPT-2's tokenizer: Pythia-160M (parallel blocks, rotary
positions), and a Llama of one billion parameters cut to four layers (RMSNorm, gated MLP, 32 heads
that share 8 keys and values). The prompts are the 8 of TransformerLens' Exploratory Analysis demo
with the subject swapped. Sweeps, turns, floor and errors are those of `patching_speed.py`.

The results go to families_speed.json and families_speed.md beside this file.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, PretrainedConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.patching_speed import POSITION_SITES, compare, matmul_rate
from benchmarks.report import gpt2_tokenizer, publish, ran_on, range_of, surroundings
from benchmarks.report import parser as benchmark_parser
from ioi_helpers import load_model
from ioi_helpers.dataset import IOIDataset

HERE = Path(__file__).resolve().parent
# Where heads share keys and values, TransformerLens' sweep over heads has no k and v of its own.
SITES = {
    "Pythia-160M": (*POSITION_SITES, "z", "q", "k", "v", "pattern"),
    "Llama, 1B, 4 layers": (*POSITION_SITES, "z", "q", "pattern"),
}


def configs() -> dict[str, PretrainedConfig]:
    """The two shapes."""

    def of(kind: type[PretrainedConfig], *shape: int, **others: Any) -> PretrainedConfig:
        width, layers, heads, hidden = shape
        return kind(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=hidden,
            max_position_embeddings=2048,
            **others,
        )

    return {
        "Pythia-160M": of(GPTNeoXConfig, 768, 12, 12, 3072, use_parallel_residual=True),
        "Llama, 1B, 4 layers": of(
            LlamaConfig, 2048, 4, 32, 8192, num_key_value_heads=8, tie_word_embeddings=True
        ),
    }


def make_model(
    config: PretrainedConfig, tokenizer: str | None, folder: Path, device: str
) -> TransformerBridge:
    """A model of this shape with random weights, written to a folder and loaded."""
    given = gpt2_tokenizer(tokenizer)
    given.save_pretrained(folder)
    config.vocab_size = len(given)
    config.bos_token_id = config.eos_token_id = given.bos_token_id
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return load_model(str(folder), device=device, verbose=False)


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    lines = [
        "# Speed of patching sweeps on other families",
        "",
        "Written by `python benchmarks/families_speed.py`; see there for the shapes. Random "
        f"weights, the demo's 8 prompts with BOS, subject swapped, {ran_on(report)}; in "
        "each round TransformerLens made a share of its patches. `x floor` as in "
        "[patching_speed.md](patching_speed.md).",
        "",
        "| model | site | sweep | ours, s | TransformerLens, s | times as fast | x floor "
        "| largest difference, % of the largest effect |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["sweeps"]:
        lines.append(
            f"| {row['model']} | `{row['site']}` | {row['axes']} "
            f"| {row['seconds']['median']:.2f} "
            f"| {row['transformer_lens_seconds']['median']:.1f} "
            f"| {range_of(row['ratio'])} "
            f"| {row['times_floor']['median']:.2f} "
            f"| {100 * row['largest_difference'] / row['largest_effect']:.3f} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Run the benchmark and write its results."""
    parser = benchmark_parser(__doc__, HERE / "families_speed", rounds=2)
    parser.add_argument("--shares", type=int, default=24, help="TransformerLens makes one a round")
    parser.add_argument("--sites", nargs="*", help="only these")
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        "rounds": arguments.rounds,
        **surroundings(arguments.threads, "transformer_lens", device=arguments.device),
        "gflops": 2 * matmul_rate(arguments.device) / 1e9,
        "sweeps": [],
    }
    for name, config in configs().items():
        with tempfile.TemporaryDirectory() as folder:
            model = make_model(config, arguments.model_folder, Path(folder), arguments.device)
        clean = IOIDataset.demo(model.tokenizer)
        for site in SITES[name]:
            if arguments.sites and site not in arguments.sites:
                continue
            row = compare(
                model, None, clean, "swap_subject", site, arguments.rounds, arguments.shares
            )
            report["sweeps"].append({"model": name, **row})
            print(
                f"{name:20} {site:9} {row['ratio']['median']:5.1f} times as fast, "
                f"{row['times_floor']['median']:.2f} x floor, difference "
                f"{row['largest_difference']:.1e} of {row['largest_effect']:.1e}",
                flush=True,
            )
        del model
    publish(report, markdown(report), arguments.output)


if __name__ == "__main__":
    main()
