"""What a run holds where a role stands: activations, logits, the logit difference."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import metrics
from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.runs.batches import (
    DEFAULT_MEMORY,
    Edit,
    run_in_batches,
    run_rows_in_batches,
)
from ioi_helpers.runs.guards import known_hooks, refuse_too_long, require_data, role_positions
from ioi_helpers.runs.points import point_hook

UNEMBED = "unembed.hook_in"
"""What the unembedding reads: the final stream, normalised."""


@overload
def activations_at(
    model: TransformerBridge,
    data: TwoAnswerData,
    role: str | Int[Tensor, " batch"],
    where: str,
    *,
    edits: Sequence[Edit] = (),
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> Float[Tensor, "batch *rest"]: ...


@overload
def activations_at(
    model: TransformerBridge,
    data: TwoAnswerData,
    role: str | Int[Tensor, " batch"],
    where: Sequence[str],
    *,
    edits: Sequence[Edit] = (),
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> dict[str, Float[Tensor, "batch *rest"]]: ...


def activations_at(
    model: TransformerBridge,
    data: TwoAnswerData,
    role: str | Int[Tensor, " batch"],
    where: str | Sequence[str],
    *,
    edits: Sequence[Edit] = (),
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> Float[Tensor, "batch *rest"] | dict[str, Float[Tensor, "batch *rest"]]:
    """Activations at the position that a role has in each prompt.

    The same for one prompt, in plain TransformerLens::

        _, cache = model.run_with_cache(data.tokens[i])
        cache["resid_mid", layer][0, data.positions[role][i]]

    Args:
        model: A model that TransformerBridge boots.
        data: Prompts; they may differ in length.
        role: ``"IO"``, ``"S1"``, ``"S1+1"``, ``"S2"`` or ``"END"``; or a position for each prompt.
        where: A point of the residual stream (``"L6.mid"``), or the name of a hook whose
            activation begins with batch and position (``"blocks.6.attn.hook_z"``); or several,
            such as :func:`residual_points`, which are read in one pass.
        edits, memory, progress: As for :func:`run_in_batches`.

    Returns:
        ``[batch ...]`` on the model's device, or for several ``{name: [batch ...]}`` in their
        order. Half precision becomes float32.

    Raises:
        ValueError: An unknown role, point or hook, a prompt without the role, or as
            :func:`~ioi_helpers.runs.guards.require_data`.
    """
    names = [where] if isinstance(where, str) else list(where)
    hooks = _hooks_at(model, data, names)
    positions = role_positions(data, role)
    found = _read(model, data, positions, hooks, edits, memory, progress)
    return found[where] if isinstance(where, str) else found


def activations_at_roles(
    model: TransformerBridge,
    data: TwoAnswerData,
    roles: Sequence[str],
    where: Sequence[str],
    *,
    edits: Sequence[Edit] = (),
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> dict[str, dict[str, Float[Tensor, "batch *rest"]]]:
    """As :func:`activations_at` for each of several roles, from one run of the prompts.

    Args:
        roles: Such as ``("S2", "END")``.
        model, data, where, edits, memory, progress: As for :func:`activations_at`.

    Returns:
        ``{role: {name: [batch ...]}}``.

    Raises:
        ValueError: As :func:`activations_at`.
    """
    hooks = _hooks_at(model, data, where)
    if not roles:
        return {}
    positions = torch.stack([role_positions(data, role) for role in roles], dim=1)
    found = _read(model, data, positions, hooks, edits, memory, progress)
    return {
        role: {name: values[:, i] for name, values in found.items()} for i, role in enumerate(roles)
    }


def _hooks_at(
    model: TransformerBridge, data: TwoAnswerData, where: Sequence[str]
) -> dict[str, str]:
    """The hook of each point, or of each that is named as a hook."""
    require_data(model, data)
    hooks = {name: name if "hook" in name else point_hook(model, name) for name in where}
    known_hooks(model, list(hooks.values()))
    return hooks


def _read(
    model: TransformerBridge,
    data: TwoAnswerData,
    positions: Int[Tensor, "batch *role"],
    hooks: dict[str, str],
    edits: Sequence[Edit],
    memory: int,
    progress: bool,
) -> dict[str, Float[Tensor, "batch *rest"]]:
    names = list(hooks.values())
    # Edits are checked where they are read, which may be further up.
    enough = None if edits else _enough_blocks(model, names)

    def read(part: TwoAnswerData, rows: Tensor) -> dict[str, Tensor]:
        at = positions[rows.to(positions.device)]
        found = gather_activations(model, part.tokens, at, names, stop_at_layer=enough)
        return {name: found[hook] for name, hook in hooks.items()}

    return run_rows_in_batches(
        model, data, read, edits=edits, memory=memory, progress=progress,
        upto=positions.reshape(len(positions), -1).amax(dim=1),
        kept=len(hooks) * model.cfg.d_model * positions[0].numel(),
    )  # fmt: skip


def gather_activations(
    model: TransformerBridge,
    tokens: Int[Tensor, "batch pos"],
    positions: Int[Tensor, "batch *role"],
    names: Sequence[str],
    logits: bool = False,
    stop_at_layer: int | None = None,
) -> dict[str, Float[Tensor, "batch *rest"]]:
    """One run, of which each row's activations at one position, or at a few, are kept.

    Args:
        tokens: Prompts, right-padded, all run at once. What comes after the last position that is
            read is not run: by causality it cannot matter.
        positions: The position in each row, or several.
        names: Names of hooks.
        logits: Keep the logits there as well, as ``"logits"``, where it is one position.
        stop_at_layer: The first block that need not run; None: all do.
    """
    gathered: dict[str, Tensor] = {}

    def gather(activation: Tensor, hook: Any, name: str) -> None:
        at = positions.to(activation.device)
        rows = torch.arange(len(at), device=activation.device)
        rows = rows.view(-1, *[1] * (at.ndim - 1))
        gathered[name] = widened(activation[rows, at]).to(model.W_U.device)

    def gatherer(name: str) -> Any:
        return lambda activation, hook: gather(activation, hook, name)

    tokens = tokens[:, : int(positions.max()) + 1].to(model.cfg.device)
    refuse_too_long(model, tokens)
    hooks = [(name, gatherer(name)) for name in dict.fromkeys(names)]
    with torch.no_grad():
        if logits:
            found = model.run_with_hooks(tokens, fwd_hooks=[*hooks, (UNEMBED, _only(positions))])
            gathered["logits"] = widened(found[:, 0]).to(model.W_U.device)
        else:  # logits_to_keep: one position's are cheaper than all, and none are used
            model.run_with_hooks(
                tokens,
                fwd_hooks=hooks,
                return_type=None,
                logits_to_keep=1,
                stop_at_layer=stop_at_layer,
            )
    return gathered


def _enough_blocks(model: TransformerBridge, names: Sequence[str]) -> int | None:
    """How many blocks must run for these hooks to be seen; None for all, and what follows them."""
    blocks = [re.match(r"blocks\.(\d+)\.", name) for name in names]
    layers = [int(found[1]) for found in blocks if found]
    enough = 1 + max(layers, default=0)
    return enough if len(layers) == len(names) and enough < model.cfg.n_layers else None


def _only(positions: Int[Tensor, " batch"]) -> Any:
    """A hook that passes one position of each row on."""

    def keep_one(stream: Float[Tensor, "batch pos d_model"], hook: Any) -> Tensor:
        at = positions.to(stream.device)
        return stream[torch.arange(len(at), device=stream.device), at][:, None]

    return keep_one


def logits_at(
    model: TransformerBridge,
    data: TwoAnswerData,
    role: str | Int[Tensor, " batch"] = "END",
    edits: Sequence[Edit] = (),
    *,
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> Float[Tensor, "batch vocab"]:
    """The logits at one role of each prompt.

    Only that position is unembedded, so that a large vocabulary takes neither time nor memory.

    Args:
        model, data: The model and the prompts, which may differ in length.
        role: Where to read: END for the answer, or where an edit is for what it does there; or a
            position for each prompt.
        edits, memory, progress: As for :func:`run_in_batches`.

    Raises:
        ValueError: As :func:`activations_at`.
    """
    require_data(model, data)
    positions = role_positions(data, role)

    def read(part: TwoAnswerData, rows: Tensor) -> Tensor:
        with torch.no_grad():
            at = positions[rows.to(positions.device)]
            return logits_at_positions(model, part.tokens, at)

    return run_rows_in_batches(
        model, data, read, edits=edits, memory=memory, progress=progress, upto=positions
    )


def logit_diffs(
    model: TransformerBridge,
    data: TwoAnswerData,
    edits: Sequence[Edit] = (),
    *,
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> Float[Tensor, " batch"]:
    """The logit difference of each prompt: IO's logit minus S's at END, in logits.

    The same in plain TransformerLens, for prompts that fit into memory at once::

        metrics.logit_diff(model(data.tokens), data, per_prompt=True)

    Args:
        model, data: The model and the prompts, which may differ in length.
        edits, memory, progress: As for :func:`run_in_batches`.

    Returns:
        ``[batch]``, in float32 or better.

    Raises:
        ValueError: As :func:`activations_at`.
    """
    require_data(model, data)

    def read(part: TwoAnswerData) -> Tensor:
        with torch.no_grad():
            logits = logits_at_positions(model, part.tokens, part.positions["END"])
        return metrics.logit_diff(logits, part, per_prompt=True)

    return run_in_batches(model, data, read, edits=edits, memory=memory, progress=progress)


def logits_at_positions(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], positions: Int[Tensor, " batch"]
) -> Float[Tensor, "batch vocab"]:
    """The logits at one position of each row, from one run of all rows.

    Gradients flow, unless they are switched off.
    """
    tokens = tokens[:, : int(positions.max()) + 1].to(model.cfg.device)
    refuse_too_long(model, tokens)
    logits: Tensor = model.run_with_hooks(tokens, fwd_hooks=[(UNEMBED, _only(positions))])
    return logits[:, 0]


def widened(values: Tensor) -> Tensor:
    """Half precision as float32, so that sums of many terms keep their digits."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
