"""Execute notebooks and compare with their stored outputs, storing nothing: `make check`.

    python -m notebooks.tools check [01 02 ...] [--device cuda]

What `make test` asks of a notebook's outputs, but every difference of a notebook is listed, and a
cell that was edited since outputs were stored may be compared with those. With `--device cuda` the
notebooks run on a GPU and are held against the outputs that were stored on a CPU, within the same
tolerances: 0.2 %, or one unit of the last printed digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nbformat import NotebookNode
from tqdm import tqdm

from notebooks.tools.compare import compare_outputs
from notebooks.tools.execution import CellFailed, arguments_for, execute, find_notebooks
from notebooks.tools.stored_outputs import COMPARED, code_cells, read, tags


def differences(first: NotebookNode, second: NotebookNode) -> list[tuple[int, str]]:
    """Where two executions of a notebook print different things: a code cell's number, from 1,
    and a sentence."""
    return [
        (number, sentence)
        for number, (old, new) in enumerate(zip(code_cells(first), code_cells(second)), start=1)
        for sentence in compare_outputs(old.outputs, new.outputs, "versions" in tags(old))
    ]


def check(path: Path, device: str | None = None) -> list[str]:
    """What a fresh run of the notebook on ioi-mini prints otherwise than is stored, as sentences.

    `device` is "cpu" or "cuda"; by default what TransformerLens chooses. Raises CellFailed.
    """
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    stored = read(path)
    with tqdm(total=len(code_cells(stored)), unit="cell", desc=path.stem, leave=False) as bar:
        fresh = execute(path, COMPARED | hidden, on_cell=bar.update).notebook
    return [f"cell [{number}]: {how}" for number, how in differences(stored, fresh)]


def _require_cuda() -> None:
    import torch  # takes seconds, and only this needs it

    if not torch.cuda.is_available():
        raise ValueError("There is no CUDA device here; leave --device out, or use a GPU runtime.")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = arguments_for("Compare fresh outputs with the stored ones.")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="by default what PyTorch finds")
    options = parser.parse_args(arguments)
    wrong = 0
    if options.device == "cuda":
        _require_cuda()
    for path in find_notebooks(options.notebooks):
        try:
            found = check(path, options.device)
        except CellFailed as error:
            found = [str(error)]
        wrong += bool(found)
        print("\n  ".join([f"{path.name}:", *found] if found else [f"{path.name}: as stored"]))
    return int(wrong > 0)
