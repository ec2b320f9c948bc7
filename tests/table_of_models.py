"""What works on which decoder, tried: the table of models in README and on the site.

    python -m tests.table_of_models          # print it
    python -m tests.table_of_models --write  # put it into both

Each function is tried on a small model of each architecture with random weights: by the equations
(fast), else by hooks (slow), else it refuses, and the table says why.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import (
    ablation,
    attribution,
    circuits,
    edits,
    heads,
    patching,
    path_patching,
    probing,
    runs,
)
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.graph import Circuit, Node
from ioi_helpers.models import handbuilt
from tests import random_models
from tests.house import REPOSITORY

FILES = (REPOSITORY / "README.md", REPOSITORY / "docs" / "other_models.md")
COLUMNS = {
    "GPT-2, GPT-Neo, OPT, GPT-NeoX": ("gpt2", "stanford", "gpt-neo", "opt", "neox-serial"),
    "Pythia": ("pythia",),
    "Llama, Mistral, Qwen 2, Qwen 3, Starcoder 2": (
        "llama", "mistral", "qwen2", "qwen3", "starcoder2",
    ),
    "Gemma 2": ("gemma2",),
    "GPT-J": ("gpt-j",),
    "Cohere": ("cohere",),
    "Granite": ("granite",),
    "MPT": ("mpt",),
}  # fmt: skip
"""Architectures that share a column because they share all that is in it."""

REASONS = {
    "has no blocks.0.hook_resid_mid": "attention and MLP read the same stream, so it has no middle",
    "share one key and value": "several heads share a key and a value, so no head has its own",
    "no head has a share of its own": "what heads write is normalised together before it is added",
    "caps its logits": "logits are capped, so they are no sum of terms",
    "that the equations of ioi_helpers.forward run": "done by the equations only",
    "hooks on each head's own q, k and v inputs": "TransformerLens has no hooks for it here",
    "the gradient of a single input cannot be taken": "TransformerLens has no hooks for it here",
}
"""What a refusal's sentence holds, and the footnote that it becomes."""

Try = Callable[[TransformerBridge, IOIDataset, Any], object]


def _sweep(site: str) -> Try:
    axes = ("layer", "role") if site.startswith("resid") else ("layer", "head")
    return lambda model, data, engine: patching.patch_sweep(
        model, data, data.swap_order(), site, axes, engine=engine, progress=False
    )


def _path(receiver: Any) -> Try:
    return lambda model, data, engine: path_patching.path_patch(
        model, data, None, "L0H0", receiver, engine=engine, progress=False
    )


def _circuit(model: TransformerBridge, data: IOIDataset, engine: Any) -> object:
    return circuits.Circuits(model, data, engine=engine).run(Circuit.of(["L0H1", ("L1H0", "END")]))


def _edge_circuit(model: TransformerBridge, data: IOIDataset, engine: Any) -> object:
    runner = circuits.EdgeCircuits(model, data, engine=engine)
    return runner.run(Circuit.of_edges(list(circuits.possible_edges(runner.shape))[::3]))


def _scrub(model: TransformerBridge, data: IOIDataset, engine: Any) -> object:
    equal = IOIDataset.generate(model.tokenizer, 4, names=handbuilt.NAMES, seed=2)
    found = circuits.Heads(frozenset({Node(1, 0, "END")}), ("order",))
    return circuits.scrub(model, equal, circuits.Stream((found,)), draws=1, progress=False)


def _attribution(model: TransformerBridge, data: IOIDataset, engine: Any) -> object:
    return attribution.decompose(model, data), attribution.logit_lens(model, data)


def _edits(model: TransformerBridge, data: IOIDataset, engine: Any) -> object:
    points = runs.activations_at(model, data, "S2", runs.residual_points(model))
    zero = edits.residual_edit(data, "S2", "L1.pre", torch.zeros_like(points["L1.pre"]))
    pattern = runs.attention_patterns(model, data, ["L1H0"])["L1H0"]
    even = edits.attention_edit(data, "END", "L1H0", (pattern > 0) / (pattern > 0).sum(-1)[:, None])
    probing.fit_probe(points["L1.pre"], data.orders)
    return edits.logit_diffs_and_kl(model, data, {"zero": [zero], "even": [even]})


FUNCTIONS: dict[str, tuple[Try, bool]] = {
    "`patch_sweep`": (_sweep("z"), True),
    "... at `resid_mid`": (_sweep("resid_mid"), True),
    "`ablation_sweep`": (
        lambda model, data, engine: ablation.ablation_sweep(
            model, data, how="zero", engine=engine, progress=False
        ),
        True,
    ),
    "`path_patch`": (_path(("L1H0", "q", "END")), True),
    "... into one head's `k` or `v`": (_path(("L1H0", "k", "S2")), True),
    "`edge_scores`": (
        lambda model, data, engine: path_patching.edge_scores(
            model, data, method="EAP", inputs=("q", "in", "final"), engine=engine, progress=False
        ),
        True,
    ),
    "`Circuits`": (_circuit, True),
    "`EdgeCircuits`": (_edge_circuit, True),
    "`scrub`": (_scrub, True),
    "attribution, logit lens": (_attribution, False),
    "`head_table`": (
        lambda model, data, _: heads.head_table(model, data, seeds=(0,), progress=False), False,
    ),
    "probing, edits, LRQP": (_edits, False),
}  # fmt: skip
"""What is tried, and whether there are two ways to do it."""


def state(model: TransformerBridge, data: IOIDataset, function: Try, two_ways: bool) -> str:
    """``"fast"``, ``"slow"``, ``"yes"`` or a reason why not."""
    why = ""
    for engine, answer in (("fast", "fast"), ("hooks", "slow")):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                function(model, data, engine)
        except ValueError as error:
            why = str(error)
        else:
            return answer if two_ways else "yes"
    found = [reason for text, reason in REASONS.items() if text in why]
    if not found:
        raise AssertionError(f"A refusal for no known reason: {why}")
    return found[0]


def states(architecture: str) -> dict[str, str]:
    """Every function's, on one architecture."""
    with tempfile.TemporaryDirectory() as folder:
        model = random_models.boot(random_models.save(Path(folder), architecture))
    data = random_models.prompts(model)
    return {name: state(model, data, *how) for name, how in FUNCTIONS.items()}


def table() -> str:
    """The table and its footnotes, as Markdown."""
    found: dict[str, dict[str, str]] = {}
    for column, architectures in COLUMNS.items():
        of_each = {name: states(name) for name in architectures}
        found[column] = of_each[architectures[0]]
        different = [name for name in architectures if of_each[name] != found[column]]
        if different:
            raise AssertionError(f"{different} cannot share the column {column!r}.")
    notes = [
        reason
        for reason in dict.fromkeys(REASONS.values())
        if any(reason in column.values() for column in found.values())
    ]

    def cell(answer: str) -> str:
        return f"no ({notes.index(answer) + 1})" if answer in notes else answer

    lines = [f"| | {' | '.join(COLUMNS)} |", "|---|" + "---|" * len(COLUMNS)]
    for name in FUNCTIONS:
        lines.append(f"| {name} | {' | '.join(cell(found[column][name]) for column in COLUMNS)} |")
    numbered = "; ".join(f"({i}) {note}" for i, note in enumerate(notes, start=1))
    meaning = (
        "*fast*: by the equations, many patches together; *slow*: a run of the model for each."
    )
    return "\n".join([*lines, "", f"{meaning} {numbered}."])


BEGIN, END = "<!-- table of models -->", "<!-- end of table -->"


def written() -> list[str]:
    """What each file has."""
    texts = (file.read_text(encoding="utf-8") for file in FILES)
    return [text.split(BEGIN)[1].split(END)[0].strip() for text in texts]


def main() -> None:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true")
    found = table()
    print(found)
    if parser.parse_args().write:
        for file in FILES:
            text = file.read_text(encoding="utf-8")
            before, after = text.split(BEGIN)[0], text.split(END)[1]
            file.write_text(f"{before}{BEGIN}\n{found}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
