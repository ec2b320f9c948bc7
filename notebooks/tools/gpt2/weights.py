"""Where GPT-2 small's weights can be had: a folder, the hub's cache, or the hub.

Told within seconds, and without importing PyTorch. A folder is offered to the hub's library as if
it were its cache, so that `load_model("gpt2-small")` finds it there, in this process and in the
notebooks' kernels alike.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from notebooks.tools import CannotGoOn

REPOSITORIES = ("gpt2", "openai-community/gpt2")
FILES = ("model.safetensors", "pytorch_model.bin")
SHAPE = {"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50257}
PATIENCE = 6.0  # seconds for the hub to answer


class NoWeights(CannotGoOn):
    """GPT-2 small cannot be had here; the sentence says what to do."""


@dataclass(frozen=True)
class Weights:
    """Where they are, and the environment variables under which they are found there."""

    where: str
    environment: dict[str, str]


def find(folder: Path | None = None) -> Weights:
    """The folder's weights if one is given, else the cache's, else the hub's.

    Raises NoWeights.
    """
    if folder is not None:
        return Weights("a folder", _as_cache(folder))
    if cached() is not None:
        return Weights("the local cache", {})
    why = _hub_is_silent()
    if why:
        raise NoWeights(
            "GPT-2 small cannot be checked here: its weights are not in the local cache, and the "
            f"Hugging Face hub cannot be reached ({why}); give a folder that holds them with "
            "--weights FOLDER, or point HF_HOME at a cache that does."
        )
    return Weights("the Hugging Face hub", {})


def cached() -> Path | None:
    """The weights' file in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    for repository in REPOSITORIES:
        for file in FILES:
            found = try_to_load_from_cache(repository, file)
            if isinstance(found, str):
                return Path(found)
    return None


def fingerprint(file: Path) -> str:
    """The SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _hub_is_silent() -> str:
    """Why the hub does not answer; "" if it does.

    In a thread of its own, since a name that cannot be resolved may take longer than any timeout
    of the question itself.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    found = [f"no answer within {PATIENCE:.0f} seconds"]

    def ask() -> None:
        try:
            get_hf_file_metadata(hf_hub_url(REPOSITORIES[0], "config.json"), timeout=PATIENCE - 1)
        except Exception as error:  # the HTTP library's own, another one from version to version
            found[0] = type(error).__name__
        else:
            found[0] = ""

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return found[0]


def _as_cache(folder: Path) -> dict[str, str]:
    """Environment variables under which the hub's library takes `folder` for what it downloaded."""
    folder = folder.expanduser().resolve()
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NoWeights(
            f"{folder} is no folder with a model (its config.json: {type(error).__name__}); give "
            "the folder that holds config.json, the weights and the tokenizer."
        ) from error
    other = {key: config.get(key) for key, value in SHAPE.items() if config.get(key) != value}
    if other:
        raise NoWeights(f"The model in {folder} is not GPT-2 small: its config.json says {other}.")
    if not any((folder / file).is_file() for file in FILES):
        raise NoWeights(f"There are no weights in {folder} ({' or '.join(FILES)}).")
    cache = Path(tempfile.mkdtemp(prefix="ioi-gpt2-"))
    repository = cache / f"models--{REPOSITORIES[0]}"
    snapshot = repository / "snapshots" / "folder"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("folder", encoding="utf-8")
    for file in folder.iterdir():
        if file.is_file():
            _link(file, snapshot / file.name)
    return {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}


def forget(weights: Weights) -> None:
    """Remove what was made to offer a folder as a cache."""
    if "HF_HUB_CACHE" in weights.environment:
        shutil.rmtree(weights.environment["HF_HUB_CACHE"], ignore_errors=True)


def _link(file: Path, to: Path) -> None:
    for way in (os.symlink, os.link):  # Windows may refuse the one, another disk the other
        with suppress(OSError):
            way(file, to)
            return
    shutil.copy2(file, to)
