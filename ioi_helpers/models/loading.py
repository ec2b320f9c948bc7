"""`load_model`, and what it says about the model it loaded."""

from __future__ import annotations

import importlib.util
import os
import platform
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.bundled import BUNDLED, VARIANTS, bundled_folder
from ioi_helpers.bundled.tokenizer import WordTokenizer
from ioi_helpers.models.original import one_prompt, require_same, run_original
from ioi_helpers.models.sources import (
    GPT2_REPOSITORIES,
    ModelUnavailable,
    check_bundled,
    gpt2_is_cached,
    is_path,
    on_the_hub,
)

_HUB_NAMES = {"gpt2-small": "gpt2"}
_DTYPES = ("float32", "float64", "bfloat16", "float16")


def default_model() -> tuple[str, str]:
    """The model that ``load_model()`` takes, and why, as (name, reason)."""
    asked = os.environ.get("IOI_MODEL", "").strip()
    if asked:
        return asked, "IOI_MODEL is set"
    if gpt2_is_cached():
        return "gpt2-small", "its weights are in the local cache"
    if _in_colab():
        return "gpt2-small", "this is Colab, which can download it"
    return "ioi-mini", "GPT-2's weights are not in the local cache"


def load_model(
    name: str | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = torch.float32,
    revision: str | None = None,
    device_map: str | dict[str, str | int] | None = None,
    verbose: bool = True,
    **boot_arguments: Any,
) -> TransformerBridge:
    """Load a model, ready for interpretability work.

    Parameters are frozen, which saves memory and makes nothing less differentiable: gradients flow
    to activations. A tool that wants gradients to start at the parameters, such as TransformerLens'
    ``attribution_patch``, needs ``model.requires_grad_(True)`` first.

    One prompt is run through the checkpoint's own code and compared with what the bridge makes of
    it, before folding and after (:mod:`~ioi_helpers.models.original`).

    Args:
        name: ``"gpt2-small"``, ``"ioi-mini"``, ``"ioi-plain"``, one of
            :data:`~ioi_helpers.bundled.VARIANTS`, a Hugging Face hub name, or the path of a folder
            with a decoder. ``None`` takes the environment variable ``IOI_MODEL`` if it is set, else
            GPT-2 small if its weights are in the local cache or this is Colab, else ``ioi-mini``.
        device: Where to put it; by default TransformerLens chooses (CUDA if there is one).
        dtype: Of the parameters, such as ``torch.bfloat16`` or ``"bfloat16"``.
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
        ModelUnavailable: The model cannot be found, reached or read, or TransformerBridge computes
            something else than the checkpoint's own code.
        ValueError: Arguments that contradict each other, or a device or dtype that is not there.
    """
    reason = "asked for by name"
    if name is None:
        name, reason = default_model()
    if device is not None and device_map is not None:
        raise ValueError("Give either device or device_map, not both.")
    if device is not None:
        _require_device(device)
    dtype = _dtype(dtype)
    source = boot_from = _HUB_NAMES.get(name, name)
    if name in (*BUNDLED, *VARIANTS):
        if revision is not None:
            raise ValueError(f"{name} ships with the package and has no revisions; leave it out.")
        source = boot_from = str(bundled_folder(name))
        check_bundled(name)
        # TransformerLens prepends BOS through the tokenizer; one that does not say so is replaced.
        tokenizer = WordTokenizer.from_pretrained(source, add_bos_token=True)
        boot_arguments.setdefault("tokenizer", tokenizer)
    elif is_path(source):
        source = boot_from = os.path.expanduser(source)  # Path would drop a leading "."
        if not (Path(source) / "config.json").is_file():
            raise ModelUnavailable(
                f"There is no model in the folder {source!r} (no config.json); give the folder "
                "that holds config.json, the weights and the tokenizer, or a name on the hub."
            )
    else:
        boot_from = on_the_hub(name, source, revision)
        if is_path(boot_from):
            revision = None  # it is a folder of the cache, chosen by its revision
    model = _boot(
        name,
        boot_from,
        device=device,
        dtype=dtype,
        revision=revision,
        device_map=device_map,
        **boot_arguments,
    )
    if boot_arguments.get("load_weights") is False:
        # TransformerLens builds random weights on the CPU in the config's dtype, whatever is asked.
        model.to(device or model.cfg.device or "cpu", dtype, print_details=False)
    model.eval()
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ModelUnavailable(
            f"Some weights of {name} were left on the CPU or on disk by device_map, and those "
            "TransformerLens cannot fold; give devices that hold all of it, or half the bytes "
            "by dtype='bfloat16'."
        )
    for parameter in model.parameters():
        if not parameter.isfinite().all():
            raise ModelUnavailable(
                f"The weights of {name} are damaged (not all of them are finite numbers); "
                "get them anew."
            )
    expected = _original_logits(model, name)
    if expected is not None:
        require_same(model, expected, name)
    model.enable_compatibility_mode(disable_warnings=True)
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if expected is not None:
        require_same(model, expected, name)
    model.ioi_name = _goes_by(name, source, boot_arguments)
    from_folder = is_path(source) and boot_arguments.get("load_weights") is not False
    model.ioi_folder = Path(source).resolve() if from_folder else None
    if verbose:
        print(_announcement(model, name, reason))
    return model


def is_gpt2_small(model: TransformerBridge) -> bool:
    """Whether published numbers for GPT-2 small apply: its weights were loaded by their name."""
    return getattr(model, "ioi_name", "") in ("gpt2-small", *GPT2_REPOSITORIES)


def print_versions() -> None:
    """Print on one line which versions are at work, for a bug report or a reader's notes."""
    packages = ("ioi_helpers", "torch", "transformer_lens", "transformers")
    found = ", ".join(f"{package} {version(package)}" for package in packages)
    print(f"Python {platform.python_version()}, {found}")


def _in_colab() -> bool:
    return bool(importlib.util.find_spec("google") and importlib.util.find_spec("google.colab"))


def _require_device(device: str | torch.device) -> None:
    """Refuse a device that is not there."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        what = str(error).strip().split("\n")[0].rstrip(".")
        raise ValueError(
            f"The device {str(device)!r} cannot be used here ({what}); leave it out or take 'cpu'."
        ) from error


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A dtype, also by its name."""
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise ValueError(
            f"Models are loaded as {', '.join(_DTYPES)}, not as {dtype!r}; give one of these."
        )
    found: torch.dtype = getattr(torch, name)
    return found


def _original_logits(model: TransformerBridge, name: str) -> Tensor | None:
    """What the checkpoint's own code makes of one prompt; None if it cannot run on one."""
    try:
        return run_original(model, one_prompt(model))
    except Exception as error:
        if "component not set" in str(error):  # in the place of a module that the model lacks
            raise ModelUnavailable(
                f"TransformerLens {version('transformer_lens')} boots {name}, but cannot run it "
                f"({str(error).split('. ')[0]}): the model lacks a module that its architecture "
                "has elsewhere, as OPT-350m lacks a final norm. Take another model."
            ) from error
        # It may want other inputs than tokens, or be unable to run in this dtype: its own affair,
        # and any exception can tell of it.
        warnings.warn(
            f"{name} was not compared with its original, which does not run on plain tokens "
            f"here ({type(error).__name__}: {error}).",
            stacklevel=3,
        )
        return None


def _goes_by(name: str, source: str, boot_arguments: Mapping[str, Any]) -> str:
    """The name under which published numbers and registries of roles are looked up.

    Only weights loaded by their own name may carry it: neither a folder that happens to be called
    like a known model, nor a known shape with random weights.
    """
    bundled = (*BUNDLED, *VARIANTS)
    known = (*bundled, *_HUB_NAMES, *GPT2_REPOSITORIES)
    if name not in bundled and is_path(source):
        folder = Path(source).resolve().name
        name = f"{folder} (a folder)" if folder in known else folder
    if boot_arguments.get("load_weights") is False:
        name = f"{name} (random weights)"
    return name


def _boot(name: str, source: str, **arguments: Any) -> TransformerBridge:
    try:
        return TransformerBridge.boot_transformers(source, **arguments)
    except SafetensorError as error:
        raise ModelUnavailable(
            f"The weights of {name} are damaged ({error}); delete that file, or its folder in the "
            "cache, and get them anew."
        ) from error
    except Exception as error:
        # What else is wrong with a model's files (a truncated JSON, shapes that do not fit, an
        # unknown architecture, no weights) comes as one of these, and from the tokenizers library
        # as a bare Exception. Others are faults of the arguments or of a program: they go on.
        known = (OSError, ValueError, KeyError, RuntimeError)
        if not (isinstance(error, known) or type(error) is Exception):
            raise
        what = str(error).strip().split("\n")[0].rstrip(".")
        said = f"{type(error).__name__}: {what}" if what else type(error).__name__
        where = f"folder {source!r}" if is_path(source) else f"files of {name!r} on the hub"
        raise ModelUnavailable(f"The model in the {where} could not be loaded ({said}).") from error


def _announcement(model: TransformerBridge, name: str, reason: str) -> str:
    cfg = model.cfg
    shape = f"{cfg.n_layers} layers, {cfg.n_heads} heads, width {cfg.d_model}"
    other = "ioi-mini" if is_gpt2_small(model) else "gpt2-small"
    return (
        f"{model.ioi_name} ({shape}, on {cfg.device}): {reason}. "
        f"For another, load_model({other!r}) or the environment variable IOI_MODEL."
    )
