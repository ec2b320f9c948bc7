"""Load a model for IOI: GPT-2 small, one of the two bundled ones, or any GPT-2-style model.

:func:`load_model` returns TransformerLens' ``TransformerBridge`` in compatibility mode (LayerNorm
folded, weights centred), in eval mode, with frozen parameters. A model asked for by name is never
replaced by another: where it cannot be had, :class:`ModelUnavailable` says what to do.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from jaxtyping import Int
from safetensors import SafetensorError
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.bundled import BUNDLED, VARIANTS, bundled_folder
from ioi_helpers.bundled.tokenizer import WordTokenizer

_HUB_NAMES = {"gpt2-small": "gpt2"}
_GPT2_REPOSITORIES = ("gpt2", "openai-community/gpt2")
_GPT2_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class ModelUnavailable(RuntimeError):
    """A model was asked for that cannot be loaded here; the message names the remedies."""


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
        name: ``"gpt2-small"``, ``"ioi-mini"``, ``"ioi-plain"``, one of :data:`VARIANTS`, a Hugging
            Face hub name, or the path of a folder with a GPT-2-style model. ``None`` takes the
            environment variable ``IOI_MODEL`` if it is set, else GPT-2 small if its weights are in
            the local cache or this is Colab, else ``ioi-mini``.
        device: Where to put it; by default TransformerLens chooses (CUDA if there is one).
        dtype: Of the parameters.
        revision: Branch, tag or commit on the hub.
        device_map: Placement over several devices; not together with ``device``.
        verbose: Print one line that says which model this is, why, and how to have another.
        **boot_arguments: Further arguments of ``TransformerBridge.boot_transformers``.

    Returns:
        A ``TransformerBridge`` in compatibility mode and eval mode, whose parameters do not
        require gradients. ``model.ioi_name`` is the name it goes by in this package, and
        ``model.ioi_folder`` the folder that its weights are from, where its registry may lie too;
        None if they are from the hub or random.

    Raises:
        ModelUnavailable: The model cannot be found, reached or read.
        ValueError: Arguments that contradict each other.
    """
    reason = "asked for by name"
    if name is None:
        name, reason = default_model()
    if device is not None and device_map is not None:
        raise ValueError("Give either device or device_map, not both.")
    if name in (*BUNDLED, *VARIANTS):
        if revision is not None:
            raise ValueError(f"{name} ships with the package and has no revisions; leave it out.")
        source = str(bundled_folder(name))
        _check_bundled(name)
        # TransformerLens prepends BOS through the tokenizer; one that does not say so is replaced.
        tokenizer = WordTokenizer.from_pretrained(source, add_bos_token=True)
        boot_arguments.setdefault("tokenizer", tokenizer)
    else:
        source = _HUB_NAMES.get(name, name)
        if _is_path(source):
            source = os.path.expanduser(source)  # not Path, which would drop a leading "."
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
        if not parameter.isfinite().all():
            raise ModelUnavailable(
                f"The weights of {name} are damaged (not all of them are finite numbers); "
                "get them anew."
            )
        parameter.requires_grad_(False)
    model.ioi_name = _goes_by(name, source, boot_arguments)
    from_folder = _is_path(source) and boot_arguments.get("load_weights") is not False
    model.ioi_folder = Path(source).resolve() if from_folder else None
    if verbose:
        print(_announcement(model, name, reason))
    return model


def is_gpt2_small(model: TransformerBridge) -> bool:
    """Whether published numbers for GPT-2 small apply: its weights were loaded by their name."""
    return getattr(model, "ioi_name", "") in ("gpt2-small", *_GPT2_REPOSITORIES)


def refuse_too_long(model: TransformerBridge, tokens: Int[Tensor, "batch pos"]) -> None:
    """Refuse prompts that do not fit into the model's context.

    Raises:
        ValueError: There are more positions than the model has.
    """
    if tokens.shape[-1] > model.cfg.n_ctx:
        raise ValueError(
            f"The prompts are {tokens.shape[-1]} tokens long, but this model's context holds "
            f"{model.cfg.n_ctx}; use shorter or fewer prefix sentences."
        )


def print_versions() -> None:
    """Print on one line which versions are at work, for a bug report or a reader's notes."""
    packages = ("ioi_helpers", "torch", "transformer_lens", "transformers")
    found = ", ".join(f"{package} {version(package)}" for package in packages)
    print(f"Python {platform.python_version()}, {found}")


def _in_colab() -> bool:
    return bool(importlib.util.find_spec("google") and importlib.util.find_spec("google.colab"))


def _is_path(source: str) -> bool:
    return Path(source).is_dir() or source.startswith((".", "~", os.sep))


def _goes_by(name: str, source: str, boot_arguments: Mapping[str, Any]) -> str:
    """The name under which published numbers and registries of roles are looked up.

    Only weights loaded by their own name may carry it: neither a folder that happens to be called
    like a known model, nor a known shape with random weights.
    """
    bundled = (*BUNDLED, *VARIANTS)
    known = (*bundled, *_HUB_NAMES, *_GPT2_REPOSITORIES)
    if name not in bundled and _is_path(source):
        folder = Path(source).resolve().name
        name = f"{folder} (a folder)" if folder in known else folder
    if boot_arguments.get("load_weights") is False:
        name = f"{name} (random weights)"
    return name


def _check_bundled(name: str) -> None:
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


def _boot(name: str, source: str, **arguments: Any) -> TransformerBridge:
    try:
        return TransformerBridge.boot_transformers(source, **arguments)
    except SafetensorError as error:
        raise ModelUnavailable(
            f"The weights of {name} are damaged ({error}); delete that file, or its folder in the "
            "cache, and get them anew."
        ) from error
    except Exception as error:
        # What else is wrong with a folder's files (a truncated JSON, shapes that do not fit, an
        # unknown architecture, no weights) comes as one of a dozen exceptions of several libraries.
        if _is_path(source):
            what = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
            raise ModelUnavailable(
                f"The folder {source!r} does not hold a model that can be loaded ({what})."
            ) from error
        if not isinstance(error, (OSError, HfHubHTTPError, LocalEntryNotFoundError)):
            raise
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
