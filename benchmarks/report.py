"""What benchmarks share: how they are started, on what they ran, and what they leave behind."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase


def parser(
    doc: str | None, output: Path, rounds: int, *, of_model: bool = True
) -> argparse.ArgumentParser:
    """A parser that knows what every benchmark can be told.

    Args:
        doc: The benchmark's docstring, whose first line is its description.
        output: Where its results go, without an ending.
        rounds: How often each thing is timed.
        of_model: It runs a model with GPT-2's tokenizer, on a device.
    """
    made = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--threads", type=int, default=None, help="PyTorch's threads")
    made.add_argument("--output", type=Path, default=output)
    if of_model:
        made.add_argument("--model-folder", help="a folder with GPT-2's tokenizer")
        made.add_argument("--device", default="cpu", help="where models run, such as cuda")
    return made


def surroundings(threads: int | None, *packages: str, device: str = "cpu") -> dict[str, Any]:
    """Set PyTorch's threads, if they are given, switch TF32 off, and say on what a benchmark runs.

    Raises:
        SystemExit: The device is a GPU, and there is none.
    """
    if threads:
        torch.set_num_threads(threads)
    if on_gpu(device) and not torch.cuda.is_available():
        raise SystemExit(f"There is no CUDA device here, so --device {device} cannot be measured.")
    torch.set_float32_matmul_precision("highest")
    threads = torch.get_num_threads()
    cpu = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu(device) else cpu,
        "threads": threads,
        "python": platform.python_version(),
        **{name: version(name).split("+")[0] for name in ("torch", *packages)},
    }


def on_gpu(device: str | torch.device) -> bool:
    """Whether a device works on by itself, so that a clock has to wait for it."""
    return torch.device(device).type == "cuda"


def gpt2_tokenizer(model_folder: str | None) -> PreTrainedTokenizerBase:
    """GPT-2's tokenizer, from a folder or the Hugging Face cache."""
    source = model_folder or "gpt2"
    try:
        return AutoTokenizer.from_pretrained(source, local_files_only=True)
    except OSError as error:
        raise SystemExit(
            f"There is no GPT-2 tokenizer in {source!r}; give a folder with one as --model-folder, "
            "or download gpt2 into the Hugging Face cache first."
        ) from error


def ran_on(report: Mapping[str, Any]) -> str:
    """On what a benchmark of models ran, and how often, for its page's first sentence."""
    return (
        f"{report['device']}, torch {report['torch']}, TransformerLens "
        f"{report['transformer_lens']}. Median of {report['rounds']} rounds, in brackets the least "
        "and the greatest"
    )


def range_of(value: Mapping[str, float], digits: int = 1) -> str:
    """A median, and in brackets the least and the greatest."""
    low, high = value["least"], value["greatest"]
    return f"{value['median']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def publish(report: Mapping[str, Any], page: str, output: Path) -> None:
    """Write both beside each other (`output` has no ending), and print the page."""
    output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    output.with_suffix(".md").write_text(page)
    print(page)
