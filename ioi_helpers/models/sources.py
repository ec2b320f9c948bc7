"""Where a model's files are: in the package, in a folder, in the hub's cache, or on the hub."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformer_lens.tools.model_registry.registry_io import resolve_model_alias

from ioi_helpers.bundled import bundled_folder

GPT2_REPOSITORIES = ("gpt2", "openai-community/gpt2")
GPT2_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class ModelUnavailable(RuntimeError):
    """A model was asked for that cannot be loaded here; the message names the remedies."""


def is_path(source: str) -> bool:
    """Whether a name is that of a folder, rather than of a model on the hub."""
    return Path(source).is_dir() or source.startswith((".", "~", os.sep))


def gpt2_is_cached() -> bool:
    """Whether the hub's cache on this machine holds GPT-2 small's weights."""
    return any(
        isinstance(try_to_load_from_cache(repository, file), str)
        for repository in GPT2_REPOSITORIES
        for file in GPT2_WEIGHTS
    )


def check_bundled(name: str) -> None:
    """Refuse a bundled model whose weights are not the ones that its card was measured on."""
    folder = bundled_folder(name)
    try:
        known = json.loads((folder / "measured.json").read_text(encoding="utf8"))["sha256"]
        found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    except (OSError, ValueError, KeyError) as error:
        raise ModelUnavailable(
            f"Files of {name} are missing or damaged ({error}); reinstall the package."
        ) from error
    if found != known:
        raise ModelUnavailable(
            f"The weights of {name} are damaged: they are not the ones that its card was measured "
            "on; reinstall the package, or after training them anew run "
            f"python -m training.card {name}."
        )


def on_the_hub(name: str, repository: str, revision: str | None) -> str:
    """What to boot for a hub name: the name itself, or its files in the cache if there is no hub.

    One quick question to the hub decides. Its libraries ask six times over half a minute, for every
    file anew, and would do so for cached files too.

    Args:
        name: What the model was called by whoever asked for it.
        repository: Its name on the hub.
        revision: Branch, tag or commit; None for the main branch.

    Raises:
        ModelUnavailable: The hub does not know it, or cannot be reached and it is not cached.
    """
    repository = resolve_model_alias(repository) or repository
    try:
        get_hf_file_metadata(hf_hub_url(repository, "config.json", revision=revision), timeout=10)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        what = f"no model {repository!r}"
        if isinstance(error, RevisionNotFoundError):
            what = f"no revision {revision!r} of {repository!r}"
        raise ModelUnavailable(
            f"The Hugging Face hub has {what} that you may read, and there is no folder of that "
            "name; check the spelling, or log in if the model is private or gated."
        ) from error
    except HfHubHTTPError:
        pass  # It answered; whoever downloads will say what is wrong.
    except Exception as error:
        # No network comes as an exception of the HTTP library, which is another one from version
        # to version of the hub's.
        cached = try_to_load_from_cache(repository, "config.json", revision=revision)
        if isinstance(cached, str):
            return str(Path(cached).parent)
        raise ModelUnavailable(
            f"{name!r} could not be loaded: it is neither a folder here, nor in the local cache, "
            "nor could the Hugging Face hub be reached. Check the name and the network, point "
            "HF_HOME at a cache that holds it, give a folder with its files, or use "
            "load_model('ioi-mini'), which needs no download."
        ) from error
    return repository
