"""Load a model for IOI: GPT-2 small, one of the two embedded ones, or any GPT-2-style model.

:func:`load_model` returns TransformerLens' ``TransformerBridge`` in compatibility mode (LayerNorm
folded, weights centred), in eval mode, with frozen parameters. A model asked for by name is never
replaced by another: where it cannot be had, :class:`ModelUnavailable` says what to do.
"""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.mini.tokenizer import WordTokenizer

EMBEDDED = ("ioi-mini", "ioi-plain")
_HUB_NAMES = {"gpt2-small": "gpt2"}
_GPT2_REPOSITORIES = ("gpt2", "openai-community/gpt2")
_GPT2_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class ModelUnavailable(RuntimeError):
    """A model was asked for that cannot be loaded here; the message names the remedies."""


def embedded_folder(name: str) -> Path:
    """The folder of an embedded model: weights, tokenizer, card (`README.md`), `roles.json`.

    Raises:
        ValueError: ``name`` is not an embedded model.
    """
    if name not in EMBEDDED:
        raise ValueError(f"{name!r} is not an embedded model; there are {' and '.join(EMBEDDED)}.")
    return Path(__file__).parent / "mini" / name


def default_model() -> tuple[str, str]:
    """The model that ``load_model()`` takes, and why, as (name, reason)."""
    asked = os.environ.get("IOI_MODEL", "").strip()
    if asked:
        return asked, "IOI_MODEL is set"
    if any(
        isinstance(try_to_load_from_cache(repository, file), str)
        for repository in _GPT2_REPOSITORIES
        for file in _GPT2_WEIGHTS
    ):
        return "gpt2-small", "its weights are in the local cache"
    if _in_colab():
        return "gpt2-small", "this is Colab, which can download it"
    return "ioi-mini", "GPT-2's weights are not in the local cache"


def load_model(
    name: str | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    device_map: str | dict[str, str | int] | None = None,
    verbose: bool = True,
    **boot_arguments: Any,
) -> TransformerBridge:
    """Load a model, ready for interpretability work.

    Args:
        name: ``"gpt2-small"``, ``"ioi-mini"``, ``"ioi-plain"``, a Hugging Face hub name, or the
            path of a folder with a GPT-2-style model. ``None`` takes the environment variable
            ``IOI_MODEL`` if it is set, else GPT-2 small if its weights are in the local cache or
            this is Colab, else ``ioi-mini``.
        device: Where to put it; by default TransformerLens chooses (CUDA if there is one).
        dtype: Of the parameters.
        revision: Branch, tag or commit on the hub.
        device_map: Placement over several devices; not together with ``device``.
        verbose: Print one line that says which model this is, why, and how to have another.
        **boot_arguments: Further arguments of ``TransformerBridge.boot_transformers``.

    Returns:
        A ``TransformerBridge`` in compatibility mode and eval mode, whose parameters do not
        require gradients. ``model.ioi_name`` is the name it goes by in this package.

    Raises:
        ModelUnavailable: The model cannot be found, reached or read.
        ValueError: Arguments that contradict each other.
    """
    reason = "asked for by name"
    if name is None:
        name, reason = default_model()
    if device is not None and device_map is not None:
        raise ValueError("Give either device or device_map, not both.")
    if name in EMBEDDED:
        if revision is not None:
            raise ValueError(f"{name} ships with the package and has no revisions; leave it out.")
        source = str(embedded_folder(name))
        # TransformerLens prepends BOS through the tokenizer; one that does not say so is replaced.
        tokenizer = WordTokenizer.from_pretrained(source, add_bos_token=True)
        boot_arguments.setdefault("tokenizer", tokenizer)
    else:
        source = _HUB_NAMES.get(name, name)
    if _is_path(source) and not (Path(source) / "config.json").is_file():
        raise ModelUnavailable(
            f"There is no model in the folder {source!r} (no config.json); give the folder that "
            "holds config.json, the weights and the tokenizer, or a name on the hub."
        )
    model = _boot(
        name,
        source,
        device=device,
        dtype=dtype,
        revision=revision,
        device_map=device_map,
        **boot_arguments,
    )
    if boot_arguments.get("load_weights") is False:
        # TransformerLens builds random weights on the CPU in the config's dtype, whatever is asked.
        model.to(device or model.cfg.device or "cpu", dtype, print_details=False)
    model.enable_compatibility_mode(disable_warnings=True)
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.ioi_name = name if not _is_path(source) or name in EMBEDDED else Path(source).name
    if verbose:
        print(_announcement(model, name, reason))
    return model


def is_gpt2_small(model: TransformerBridge) -> bool:
    """Whether published numbers for GPT-2 small apply: its weights were loaded by their name."""
    return getattr(model, "ioi_name", "") in ("gpt2-small", *_GPT2_REPOSITORIES)


def print_versions() -> None:
    """Print on one line which versions are at work, for a bug report or a reader's notes."""
    packages = ("ioi_helpers", "torch", "transformer_lens", "transformers")
    found = ", ".join(f"{package} {version(package)}" for package in packages)
    print(f"Python {platform.python_version()}, {found}")


def _in_colab() -> bool:
    return bool(importlib.util.find_spec("google") and importlib.util.find_spec("google.colab"))


def _is_path(source: str) -> bool:
    return Path(source).is_dir() or source.startswith((".", "~", os.sep))


def _boot(name: str, source: str, **arguments: Any) -> TransformerBridge:
    try:
        return TransformerBridge.boot_transformers(source, **arguments)
    except SafetensorError as error:
        raise ModelUnavailable(
            f"The weights of {name} are damaged ({error}); "
            + (
                "reinstall the package."
                if name in EMBEDDED
                else "delete that file, or its folder in the cache, and load the model again."
            )
        ) from error
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ModelUnavailable(
            f"{name!r} could not be loaded: it is neither a folder here, nor in the local cache, "
            "nor could it be downloaded. Check the name and the network, point HF_HOME at a cache "
            "that holds it, give a folder with its files, or use load_model('ioi-mini'), which "
            "needs no download."
        ) from error


def _announcement(model: TransformerBridge, name: str, reason: str) -> str:
    cfg = model.cfg
    shape = f"{cfg.n_layers} layers, {cfg.n_heads} heads, width {cfg.d_model}"
    other = "ioi-mini" if is_gpt2_small(model) else "gpt2-small"
    return (
        f"{model.ioi_name} ({shape}, on {cfg.device}): {reason}. "
        f"For another, load_model({other!r}) or the environment variable IOI_MODEL."
    )
