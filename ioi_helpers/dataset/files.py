"""Files: tensors and texts in one safetensors file, the texts as JSON in its metadata.

What is written of a dataset is what it is made of (``rows``, ``pieces``), for a counterfactual the
clean dataset's rows as well; tokens and positions follow from it. Nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ioi_helpers.dataset.pieces import Pieces
from ioi_helpers.dataset.prompts import TokenisedPrompts
from ioi_helpers.dataset.rows import Rows

Prompts = TypeVar("Prompts", bound=TokenisedPrompts)

_COLUMNS = ("layout", "columns", "mentions", "template_ids", "pair_ids")


def write_file(
    path: str | PathLike[str],
    kind: str,
    tensors: Mapping[str, Shaped[Tensor, "..."]],
    texts: Mapping[str, Any],
) -> None:
    """Write tensors, wherever they are, and whatever JSON can hold.

    Args:
        path: The file; one that exists is replaced.
        kind: What the file holds, such as ``"IOIDataset"``; whoever reads it asks for that.
        tensors, texts: By name.
    """
    kept = {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}
    format_of = f"ioi_helpers.{kind} 1"
    save_file(kept, path, metadata={"format": format_of, "json": json.dumps(texts)})


def read_file(
    path: str | PathLike[str], kind: str
) -> tuple[dict[str, Shaped[Tensor, "..."]], dict[str, Any]]:
    """The tensors, on the CPU, and the texts that `write_file` wrote.

    Raises:
        ValueError: It is no safetensors file, or holds something of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file ({error}).") from error
    if metadata.get("format") != f"ioi_helpers.{kind} 1":
        held = metadata.get("format", "").removeprefix("ioi_helpers.") or "something else"
        raise ValueError(f"{path} holds {held}, not a saved {kind}.")
    texts: dict[str, Any] = json.loads(metadata["json"])
    return tensors, texts


def write(data: TokenisedPrompts, path: str | PathLike[str]) -> None:
    """Write a dataset, and the clean one that it is a counterfactual of, into one file."""
    pieces = data._pieces
    numbers = [i for ids in pieces.ids for i in ids]
    tensors = {
        "piece_ids": torch.tensor(numbers, dtype=torch.int64),
        "piece_lengths": torch.tensor([len(ids) for ids in pieces.ids], dtype=torch.int64),
        **_rows_as_tensors(data, ""),
    }
    texts: dict[str, Any] = {
        "pieces": pieces.texts,
        "templates": data.templates,
        "name_pool": data.name_pool,
        "prepend_bos": data.prepend_bos,
        "multi_token_names": pieces.multi_token_names,
        "bos_token_id": data.tokenizer.bos_token_id if data.prepend_bos else None,
        "history": data.history,
        "width": data.tokens.shape[1],
        "clean": None,
    }
    if data.clean is not data:
        tensors |= _rows_as_tensors(data.clean, "clean.")
        texts["clean"] = {"history": data.clean.history, "width": data.clean.tokens.shape[1]}
    write_file(path, "IOIDataset", tensors, texts)


def read(
    kind: type[Prompts], path: str | PathLike[str], tokenizer: PreTrainedTokenizerBase
) -> Prompts:
    """Read what ``write`` wrote.

    Raises:
        ValueError: The file holds something else, or was made with another tokenizer.
    """
    tensors, texts = read_file(path, "IOIDataset")
    pieces = Pieces(tokenizer, texts.get("multi_token_names", False))
    flat, lengths = tensors["piece_ids"].tolist(), tensors["piece_lengths"].tolist()
    ends = np.cumsum(lengths).tolist()
    known = [flat[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    _require_same_tokenizer(pieces, texts, known)
    pieces.extend(texts["pieces"], known)
    shared = {
        "templates": tuple(texts["templates"]),
        "name_pool": tuple(texts["name_pool"]),
        "prepend_bos": texts["prepend_bos"],
    }

    def build(part: Mapping[str, Any], prefix: str, clean: Prompts | None) -> Prompts:
        rows = Rows(*(tensors[prefix + column].numpy() for column in _COLUMNS))
        return kind(
            pieces,
            rows,
            clean=clean,
            history=tuple(part["history"]),
            width=part["width"],
            **shared,
        )

    clean = None if texts["clean"] is None else build(texts["clean"], "clean.", None)
    return build(texts, "", clean)


def _rows_as_tensors(data: TokenisedPrompts, prefix: str) -> dict[str, Shaped[Tensor, "..."]]:
    return {prefix + column: torch.from_numpy(getattr(data._rows, column)) for column in _COLUMNS}


def _require_same_tokenizer(
    pieces: Pieces, texts: Mapping[str, Any], known: list[list[int]]
) -> None:
    bos, tokenizer = texts["bos_token_id"], pieces.tokenizer
    if bos is not None and bos != tokenizer.bos_token_id:
        raise ValueError(
            f"The dataset was made with another tokenizer: BOS was token {bos} and is "
            f"{tokenizer.bos_token_id}; give the tokenizer it was made with."
        )
    for text, before, now in zip(
        texts["pieces"][1:], known[1:], pieces.encode(texts["pieces"][1:]), strict=True
    ):
        if before != now:
            raise ValueError(
                f"The dataset was made with another tokenizer: {text!r} was {before} and is "
                f"{now}; give the tokenizer it was made with."
            )
