"""The front door: what is asked, which engine answers, and the result."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypedDict, Unpack

import torch
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import forward
from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.graph import NodeLike
from ioi_helpers.patching.result import SweepResult, sweep_result
from ioi_helpers.path_patching import fast, hooks
from ioi_helpers.path_patching.language import (
    ReceiverLike,
    every_input,
)
from ioi_helpers.path_patching.parts import Parts
from ioi_helpers.path_patching.request import Request
from ioi_helpers.runs import DEFAULT_MEMORY, progress_bar, require_model

MLPs = Literal["recomputed", "frozen"]
METHOD = "path patching"


class SweepSettings(TypedDict, total=False):
    """How :func:`path_sweep` goes about it."""

    engine: forward.Engine | str
    memory: int
    progress: bool
    file: str | os.PathLike[str] | None


def path_patch(
    model: TransformerBridge,
    data: TwoAnswerData,
    reference: TwoAnswerData | None,
    senders: NodeLike | Iterable[NodeLike],
    receivers: ReceiverLike | Iterable[ReceiverLike],
    *,
    mlps: MLPs | str = "recomputed",
    direction: Literal["noising", "denoising"] | str = "noising",
    engine: forward.Engine | str = "auto",
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> SweepResult:
    """The effect of the paths from some senders to some receivers: path patching.

    The IOI paper's algorithm (Wang et al. 2022, section 3.1 and Appendix B). Activation patching
    says that a head matters; path patching says *to whom*. Four passes, x the data and x' the
    reference:

    A. Run x' and keep what the senders write.
    B. Run x and keep the queries, keys and values of all heads.
    C. Run x with attention frozen: every head's q, k and v as in B, but the senders' outputs as in
       A. MLPs and LayerNorms are recomputed (or MLPs frozen too). Record what the receivers read.
    D. Run x with only those inputs put into the receivers, everything else recomputed.

    So the path is direct: through the residual stream and, unless they are frozen, any number of
    MLPs, but through no other head. As attention is frozen, it stays at its token: a sender at S2
    cannot reach a query at END.

    One edge by hand in plain TransformerLens, for prompts of one length: L5H5 at S2 to the values
    of L7H9 at S2 ::

        s2, rows = data.positions["S2"], torch.arange(len(data))
        _, theirs = model.run_with_cache(reference.tokens)            # pass A
        _, ours = model.run_with_cache(data.tokens)                   # pass B

        def freeze(z, hook, layer):                                   # pass C
            z[:] = ours["z", layer]
            if layer == 5:
                z[rows, s2, 5] = theirs["z", 5][rows, s2, 5]
            return z

        recorded = {}

        def record(v, hook):
            recorded["v"] = v[rows, s2, 9].clone()

        attention = [
            (f"blocks.{layer}.attn.hook_z", partial(freeze, layer=layer)) for layer in range(12)
        ]
        model.run_with_hooks(
            data.tokens, fwd_hooks=[*attention, ("blocks.7.attn.hook_v", record)]
        )

        def put_in(v, hook):                                          # pass D
            v[rows, s2, 9] = recorded["v"]
            return v

        logits = model.run_with_hooks(data.tokens, fwd_hooks=[("blocks.7.attn.hook_v", put_in)])
        effect = logit_diff(logits, data) - logit_diff(model(data.tokens), data)

    Args:
        model: Any model that TransformerBridge boots; those of :data:`forward.FAMILIES` are fast.
        data: The prompts. Roles and answers are theirs.
        reference: Prompts that correspond to them row by row and token by token, from which the
            senders' outputs are taken; None is ``data.abc()``, the paper's.
        senders: Heads, MLPs, ``"embedding"``, with or without a role: ``"L9H9"``, ``("MLP0",
            "S2")``. Several send together.
        receivers: ``("L9H9", "q", "END")``, ``("L7H3", "v", "S2")``, ``("MLP8", "in", "END")``,
            the same without a role for every token, or ``"final"`` for the stream that the logits
            are read from (with it, other receivers change nothing); or edges of
            :mod:`ioi_helpers.graph`, whose senders' roles alone count here. Several receive
            together, in one pass D. A new key or value is seen by every later token, as in the
            paper; by one token's query only if the head has a role, as heads of edges have.
        mlps: ``"recomputed"`` or ``"frozen"`` in pass C. With MLPs frozen, one sender and one
            receiver it is the exact effect of that edge.
        direction: ``"noising"``, as above; ``"denoising"`` runs the reference and puts the data's
            paths in. Answers and roles are the data's in both.
        engine: ``"fast"`` refuses models it does not know, ``"hooks"`` always runs the whole model
            with TransformerLens' hooks, and ``"auto"`` does that where it must, with a printed
            notice.
        memory: Bytes for activations; more prompts than fit are run in parts.
        progress: Show a bar where there is something to wait for.

    Returns:
        ``values`` ``[batch]``: the logit difference of pass D, in logits, of the data's names.
        ``effect()`` is what the IOI paper plots when it is divided by the clean logit difference:
        ``result.effect().mean() / result.clean.mean()``. ``fraction()`` takes the difference to the
        reference's run as its unit.

    Raises:
        ValueError: No senders or receivers, or some that the model does not have; no receiver comes
            after a sender at its token; a prompt lacks a role; a reference that is built otherwise
            or not aligned (BOS, templates, lengths, places of names); keys and values that heads
            share (grouped queries); training mode; prompts longer than the context.
    """
    request = Request.of(
        model, data, reference, _one_set(senders, "senders"), _one_set(receivers, "receivers"),
        mlps, direction,
    )  # fmt: skip
    if request.reasons[0][0]:
        raise ValueError(
            f"There is no path from {request.senders[0].name}: {request.reasons[0][0]}."
        )
    return _answer(model, data, request, engine, memory, progress)


def _one_set(spec: Any, what: str) -> Any:
    if isinstance(spec, Mapping) or spec in ("heads", "mlps", "all"):
        raise ValueError(f"path_patch takes one set of {what}; use path_sweep for several.")
    return spec


def path_sweep(
    model: TransformerBridge,
    data: TwoAnswerData,
    reference: TwoAnswerData | None = None,
    senders: str | NodeLike | Iterable[NodeLike] | Mapping[str, Any] = "heads",
    receivers: ReceiverLike | Iterable[ReceiverLike] | Mapping[str, Any] = "final",
    *,
    mlps: MLPs | str = "recomputed",
    direction: Literal["noising", "denoising"] | str = "noising",
    engine: forward.Engine | str = "auto",
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
    file: str | os.PathLike[str] | None = None,
) -> SweepResult:
    """Path patching for many senders and many receivers, each on its own.

    ::

        path_sweep(model, data)                                          # every head to the logits
        path_sweep(model, data, receivers=[(h, "q", "END") for h in name_movers])
        path_sweep(model, data, receivers=every_input(model, ("q", "final"), "END"))
        path_sweep(model, data, senders="all",                           # what do they read there?
                   receivers={f"{i} at {role}": [(h, i, role) for h in name_movers]
                              for i in ("k", "v") for role in ("IO", "S1")})

    Passes A and B are shared by all; pass C of a sender by all receivers, and it runs MLPs of one
    token only, since with attention frozen a path stays at its token; pass D runs from the
    receivers on, and from their first token.

    Args:
        senders: ``"heads"``, ``"mlps"``, or ``"all"`` (the embedding, heads and MLPs), one at a
            time, each at whatever token the receivers read; or sets with names, ``{"induction":
            ["L5H5", "L6H9"]}``, one set at a time. Anything else is a single set, as for
            :func:`path_patch`.
        receivers: A set as for :func:`path_patch`, or sets with names, one set at a time;
            :func:`every_input` makes all of one kind.
        file: A path. Parts are written there every so often, and after an interrupt; the same call
            goes on from them.
        model, data, reference, mlps, direction, engine, memory, progress: As for
            :func:`path_patch`.

    Returns:
        ``values`` ``[*senders *receivers batch]``: senders along ``layer`` and ``head`` (heads),
        ``layer`` (MLPs) or ``sender``; receivers along ``receiver`` if there are several sets. A
        column ``possible`` of ``index_df`` says whether there is a path at all; where there is
        none the value is the baseline and the effect exactly 0. (It is 0 as well where a sender
        writes the same in both runs, as the embedding does where tokens are the same.)

    Raises:
        ValueError: As :func:`path_patch`, but for paths that are impossible; or a file with parts
            of another sweep.
    """
    request = Request.of(model, data, reference, senders, receivers, mlps, direction)
    return _answer(model, data, request, engine, memory, progress, file)


def direct_path_sweep(
    model: TransformerBridge,
    clean: TwoAnswerData,
    corrupted: TwoAnswerData,
    input: Literal["q", "k", "v"] | str = "q",
    **settings: Unpack[SweepSettings],
) -> SweepResult:
    """TransformerLens' path patching, from every head to one input of every later head.

    What ``transformer_lens.patching.get_act_patch_direct_path_all_sources`` computes with a run of
    the whole model for each edge. Its edge is another one than the IOI paper's: the *corrupted*
    prompts are run and a clean path is put in (denoising), at *all* positions at once, and *no*
    path leads through an MLP. So it is ``path_sweep(direction="denoising", mlps="frozen")`` with
    senders and receivers at every token.

    Args:
        model: As for :func:`path_patch`.
        clean, corrupted: Prompts and their counterparts, such as ``clean.abc()``.
        input: The receivers' ``"q"``, ``"k"`` or ``"v"``.
        settings: ``engine``, ``memory``, ``progress`` and ``file`` of :func:`path_sweep`.

    Returns:
        ``values`` ``[layer head to_layer to_head batch]``, the logit difference. Where a head does
        not come after the other it is the baseline (TransformerLens puts 0 there).

    Raises:
        ValueError: As :func:`path_sweep`, or another input.
    """
    if input not in ("q", "k", "v"):
        raise ValueError(f"input must be 'q', 'k' or 'v', not {input!r}.")
    require_model(model)
    result = path_sweep(
        model, clean, corrupted, "heads", every_input(model, (input,)), mlps="frozen",
        direction="denoising", **settings,
    )  # fmt: skip
    layers, heads = range(model.cfg.n_layers), range(model.cfg.n_heads)
    found = sweep_result(
        result.values.flatten(0, 2),
        {"layer": layers, "head": heads, "to_layer": layers, "to_head": heads},
        clean=result.clean,
        corrupted=result.corrupted,
        pair_ids=result.pair_ids,
        direction=result.direction,
        method=METHOD,
        site=f"{input}, MLPs frozen",
        labels=result.labels,
    )
    found.index_df["possible"] = result.index_df["possible"].tolist()
    return found


# --- the answer ----------------------------------------------------------------------------------


def _answer(
    model: TransformerBridge,
    data: TwoAnswerData,
    request: Request,
    engine: str,
    memory: int,
    progress: bool,
    file: str | os.PathLike[str] | None = None,
) -> SweepResult:
    gpt = forward.weights_for(model, engine, "Path patching runs the whole model for each pass")
    if memory < 1:
        raise ValueError(f"memory must be a positive number of bytes, not {memory}.")
    pair, sending, receiving = request.pair, request.senders, request.receivers
    dtype = torch.promote_types(model.W_E.dtype, torch.float32)
    parts = Parts(len(receiving), len(sending), len(pair), dtype)
    question = None if file is None else _question(model, request)
    bar = progress_bar(METHOD, show=progress, total=len(receiving) * len(pair))
    with bar, parts.kept_in(file, question):
        if gpt is not None:
            fast.sweep(gpt, request, parts, memory, bar)
        else:
            hooks.sweep(model, request, parts, memory, bar)
    clean, corrupted = parts.unpatched, parts.other
    if request.direction == "denoising":
        clean, corrupted = corrupted, clean
    result = sweep_result(
        parts.values.transpose(0, 1).flatten(0, 1),  # [sender receiver batch]
        request.axes,
        clean=clean,
        corrupted=corrupted,
        pair_ids=data.pair_ids,
        direction=request.direction,
        method=METHOD,
        site=f"MLPs {request.mlps}",
        labels=[f"{one.name} to {other.name}" for one in sending for other in receiving],
    )
    result.index_df["possible"] = [not reason for row in request.reasons for reason in row]
    return result


def _question(model: TransformerBridge, request: Request) -> dict[str, Any]:
    """What a sweep's answer depends on, for telling whose parts a file holds."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    pair = request.pair
    tensors = (pair.tokens, pair.other, pair.last, pair.io_tokens, pair.s_tokens)
    return {
        "weights": digest.hexdigest(),
        "prompts": [tensor.tolist() for tensor in (*tensors, *pair.at.values())],
        "roles": list(pair.at),
        "senders": [[str(node) for node in one.nodes] for one in request.senders],
        "receivers": [[str(receiver) for receiver in one.inputs] for one in request.receivers],
        "mlps": request.mlps,
    }
