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


def parser(doc: str | None, output: Path, rounds: int) -> argparse.ArgumentParser:
    """A parser that knows what every benchmark can be told.

    Args:
        doc: The benchmark's docstring, whose first line is its description.
        output: Where its results go, without an ending.
        rounds: How often each thing is timed.
    """
    made = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--threads", type=int, default=None, help="PyTorch's threads")
    made.add_argument("--output", type=Path, default=output)
    return made


def surroundings(threads: int | None, *packages: str) -> dict[str, Any]:
    """Set PyTorch's threads, if they are given, and say on what a benchmark runs."""
    if threads:
        torch.set_num_threads(threads)
    return {
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name).split("+")[0] for name in ("torch", *packages)},
    }


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


def publish(report: Mapping[str, Any], page: str, output: Path) -> None:
    """Write both beside each other (`output` has no ending), and print the page."""
    output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    output.with_suffix(".md").write_text(page)
    print(page)
