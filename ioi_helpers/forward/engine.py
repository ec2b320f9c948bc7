"""Whether a model may be run by the equations: found by asking, and by trying."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.modules import module as torch_modules
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.forward.decoder import Decoder
from ioi_helpers.forward.logits import unembed
from ioi_helpers.forward.reading import UnsupportedModel, modules, read_weights
from ioi_helpers.forward.run import run

Engine = Literal["auto", "fast", "hooks"]
"""How a sweep is run: ``"fast"`` by the equations of this room, ``"hooks"`` by runs of the model
itself, ``"auto"`` by the former where it can be."""
ENGINES: tuple[str, ...] = ("auto", "fast", "hooks")

NOT_BY_HEAD = (
    "what its heads write is normalised together before it is added to the stream, so no head has "
    "a share of its own"
)
"""Of a model with norms behind its attention, such as Gemma 2."""

_said: WeakKeyDictionary[TransformerBridge, set[str]] = WeakKeyDictionary()


def weights_for(
    model: TransformerBridge,
    engine: str,
    slowly: str = "Sweeps go through hooks, one run of the model for each entry",
) -> Decoder | None:
    """The weights if a sweep is to be run by the equations, None if by the model itself.

    With ``engine="auto"`` a model that cannot be run here is run itself, which is slow; a printed
    line says why, once for each model and cause.

    Args:
        slowly: What the printed line says is done.

    Raises:
        ValueError: The engine is unknown, or it is ``"fast"`` and the model cannot be run here.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be 'auto', 'fast' or 'hooks', not {engine!r}.")
    if engine == "hooks":
        return None
    gpt, obstacle = usable_weights(model)
    if gpt is None and engine == "fast":
        raise ValueError(f"The fast path cannot run this model: {obstacle}; use engine='auto'.")
    said, notice = _said.setdefault(model, set()), f"{slowly}: {obstacle}."
    if gpt is None and notice not in said:
        said.add(notice)
        print(notice)
    return gpt


def require_weights(model: TransformerBridge, what: str, by_head: bool = False) -> Decoder:
    """The weights, for what is computed by the equations only.

    Args:
        what: What needs them, as the beginning of a sentence.
        by_head: It takes what each head adds to the stream on its own.

    Raises:
        ValueError: The model cannot be run here, or normalises what its heads write together.
    """
    gpt, obstacle = usable_weights(model)
    if gpt is not None and by_head and not gpt.adds_heads:
        gpt, obstacle = None, NOT_BY_HEAD
    if gpt is None:
        raise ValueError(
            f"{what} a model that the equations of ioi_helpers.forward run: {obstacle}."
        )
    return gpt


def usable_weights(model: TransformerBridge) -> tuple[Decoder | None, str]:
    """The weights of a model that can be run here, or what keeps it from being run here.

    That is: another architecture; hooks of TransformerLens or PyTorch on it or on any module of
    the wrapped model, as they would not be run; and anything else that makes a run of the model
    differ from what its weights say, such as a module that was replaced, which is found by trying.
    """
    try:
        gpt = read_weights(model)
    except UnsupportedModel as error:
        return None, str(error)
    hooked = first_hook(model)
    if hooked:
        return None, f"there are hooks on the model ({hooked}), which the fast path would not run"
    if not _runs_as_written(model, gpt):
        return None, (
            "it does not compute what its weights say, as if a module of it had been replaced"
        )
    return gpt, ""


def first_hook(model: TransformerBridge) -> str:
    """The name of a module on which somebody has put a hook; empty if nobody has."""
    if torch_modules._global_forward_hooks or torch_modules._global_forward_pre_hooks:
        return "on all modules"
    for module in modules(model):
        own = vars(module)
        hooks = [hook for kind in _HOOKS if own[kind] for hook in own[kind].values()]
        points = own.get("fwd_hooks") or ()
        theirs = [p for p in points if not (p.is_permanent and _made_by_library(p.user_hook))]
        # The two libraries hang hooks of their own on modules, which only watch.
        if theirs or any(not _made_by_library(hook) for hook in hooks):
            names = itertools.chain(model.named_modules(), model.original_model.named_modules())
            name = next(name for name, named in names if named is module)
            # Bridges hold the wrapped modules; say the name as a user would.
            return name.replace("._original_component", "") or type(module).__name__
    return ""


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _made_by_library(hook: Callable[..., Any]) -> bool:
    made_in = getattr(hook, "__module__", None) or ""
    return made_in.split(".")[0] in ("transformer_lens", "transformers")


def _runs_as_written(model: TransformerBridge, gpt: Decoder) -> bool:
    """Whether the model computes what the equations do, found by trying once.

    The answer is remembered for as long as the model is made of the same modules, each with the
    same settings: on a small model trying takes a fifth of a sweep.
    """
    parts = [part for part in modules(model) if not isinstance(part, HookPoint)]
    # A method that was put on one module can do anything, and another thing the next time.
    if any("forward" in vars(part) for part in parts):
        return _computes_the_equations(model, gpt)
    settings = [_settings(part) for part in parts]
    settings.append((torch.get_float32_matmul_precision(),))
    if model in _tried:
        then, settings_then, answer = _tried[model]
        same = len(then) == len(parts) and all(a() is b for a, b in zip(then, parts, strict=True))
        if same and settings_then == settings:
            return answer
    answer = _computes_the_equations(model, gpt)
    _tried[model] = ([weakref.ref(part) for part in parts], settings, answer)
    return answer


_tried: WeakKeyDictionary[
    TransformerBridge, tuple[list[weakref.ref[nn.Module]], list[tuple[Any, ...]], bool]
] = WeakKeyDictionary()


def _settings(module: nn.Module) -> tuple[Any, ...]:
    """What decides how a module computes, beside its submodules."""
    own = vars(module)
    plain = [value for value in own.values() if type(value) in (bool, int, float, str)]
    tensors = [*own["_parameters"].values(), *own["_buffers"].values()]
    held = [(id(tensor), tensor._version) for tensor in tensors if tensor is not None]
    return (type(module).forward, *plain, *held)


@torch.no_grad()
def _computes_the_equations(model: TransformerBridge, gpt: Decoder) -> bool:
    """Whether the model's logits on a few tokens are those of the equations."""
    n_tokens = min(_tokens_tried(gpt), model.cfg.n_ctx)
    tokens = torch.arange(n_tokens, device=gpt.device)[None] * 31 % gpt.W_E.shape[0]
    last = torch.tensor([n_tokens - 1], device=gpt.device)
    try:
        actual = model(tokens, logits_to_keep=1)[:, -1].float()
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):
        return False  # the sweep will meet the same error, and say it
    written = unembed(gpt, run(gpt, tokens, last, ()).final).float()
    exact = gpt.W_E.dtype in (torch.float32, torch.float64)
    exact = exact and torch.get_float32_matmul_precision() == "highest"
    # Rounding: 1e-5 of the logits' spread in float32, some hundredths in bfloat16.
    tolerance = (1e-3 if exact else 0.25) * float(written.std())
    return bool(((actual - written).abs() <= tolerance).all())


def _tokens_tried(gpt: Decoder) -> int:
    """Four, or so many that a short window leaves some out of sight."""
    windows = [block.window for block in gpt.blocks if block.window is not None]
    shortest = min(windows, default=LONGEST_TRIAL)
    return shortest + 2 if shortest + 2 <= LONGEST_TRIAL else 4


LONGEST_TRIAL = 300
"""Tokens in a trial run. (GPT-Neo's window is 256; others' are longer than any IOI prompt.)"""
