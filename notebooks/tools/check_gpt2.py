"""Check GPT-2 small against everything published of it: `make check-gpt2`.

    python -m notebooks.tools check-gpt2 [NAME ...] [--weights FOLDER] [--out build/check-gpt2]

Wherever its weights can be had (a folder, the hub's cache, the hub), every published number is
measured again and compared within its tolerance, and every notebook executed. The report says of
each: found, published, difference, source, pass or fail. An interrupted check goes on where it was.
A NAME is a notebook's number or a published entry (`05`, `paper.signals`, `exploratory`): only
these are checked then, and anew.

The exit status is 0 if everything passes, 1 if something does not or the weights are missing.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from notebooks.tools.gpt2 import weights

REPOSITORY = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Check GPT-2 small against what is published.")
    parser.add_argument("names", nargs="*", help="notebooks and published entries; all by default")
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="a folder with GPT-2 small")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build" / "check-gpt2")
    parser.add_argument("--device", help="cpu or cuda; by default what PyTorch finds")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds a cell may take")
    options = parser.parse_args(arguments)
    found = weights.find(options.weights)
    os.environ.update(found.environment)  # before the hub's library is imported and reads it
    try:
        return _check(options, found)
    except KeyboardInterrupt:
        print(
            f"\nInterrupted. What was checked is kept in {options.out}; the same command goes on.",
            file=sys.stderr,
        )
        return 130
    finally:
        weights.forget(found)


def _check(options: argparse.Namespace, found: weights.Weights) -> int:
    print(f"GPT-2 small from {found.where}. Results go to {options.out}", flush=True)
    # These import PyTorch, which takes seconds.
    import torch

    from notebooks.tools.execution import find_notebooks
    from notebooks.tools.gpt2.report import PASS, Report, summary
    from notebooks.tools.gpt2.run import Check, chosen, peak_memory, weights_key

    names, notebooks = chosen(options.names, find_notebooks)
    key = weights_key()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    about = {
        "weights": f"{found.where}, SHA-256 {key}",
        "device": f"{device}, {torch.get_num_threads()} threads",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformer_lens {version('transformer_lens')}",
    }
    report = Report(options.out, about)
    start = time.perf_counter()
    rows = Check(report, key, device, options.timeout).run(names, notebooks, bool(options.names))
    minutes = (time.perf_counter() - start) / 60
    memory = f"{peak_memory() / 1e9:.1f} GB" if peak_memory() else "unknown"
    print(f"\n{summary(rows)}, in {minutes:.0f} minutes; peak memory without notebooks {memory}.")
    print(f"Open {(options.out / 'report.html').resolve()}")
    return int(any(row.verdict not in (PASS, "not measured") for row in rows))
