"""Direct logit attribution: what each component of a model adds to the logit difference.

The residual stream at a position is a sum: the embeddings, every head's output, every MLP's output
and their biases. The logits are a linear map of that sum but for one thing, the final norm. Given
the size by which that norm divided in the run at hand, it too is linear, and the logit difference
splits into one term per component, with nothing left over (Elhage et al. 2021, "A mathematical
framework for transformer circuits"; Wang et al. 2022, section 3.1; TransformerLens' Exploratory
Analysis demo). What it cannot see is everything indirect: a head that makes another head look at
the right name has no term of its own.

::

    by_head = attribution.head_attribution(model, data)
    by_head["L9H9"], by_head[9, 9]        # the mean over prompts, in logits
    by_head.values.argmax()               # [layer head]
    by_head.per_prompt                    # [layer head batch]
    by_head.table()                       # with standard errors

The splitting is TransformerLens' own (``ActivationCache.decompose_resid``, ``accumulated_resid``,
``stack_head_results``). What is added here is position by role: prompts may differ in length, so
each is read at its own END (or S2, ...), and only that position is kept, which is why a thousand
prompts fit in memory. For one position that all prompts share,
``transformer_lens.tools.analysis.direct_logit_attribution`` does the same and gives the same
numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.dataset.files import read_file, write_file
from ioi_helpers.metrics import error_label, logit_diff, standard_error
from ioi_helpers.names import head_labels
from ioi_helpers.runs import (
    DEFAULT_MEMORY,
    POST_NORM_SCALE,
    activations_at,
    attention_weight,
    gather_activations,
    has_post_norm,
    known_hooks,
    require_data,
    residual_scale,
    role_positions,
    run_in_batches,
    widened,
)

SCALE = "ln_final.hook_scale"
BEHIND_THE_NORM = (
    "mlm_head",
    "prediction_head",
    "project_out",
    "hc_head",
    "sigma_map",
    "classifier_ln",
)
"""What TransformerLens' bridges may have between the last residual stream and the unembedding."""

Terms = dict[str, Float[Tensor, "component d_model"]]


# --- results -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Attribution:
    """Logits with a name for each, by prompt, and so with an error for each.

    Where a number is expected it stands for its means, :attr:`values`: NumPy, pandas and figures
    take it as it is, and ``result[9, 9]`` or ``result["L9H9"]`` is one mean. For a method of
    tensors (``result.values.argmax()``) say which you want.

    Attributes:
        per_prompt: ``[*axes batch]``, in logits.
        labels: The components' names, in the order of the flattened axes: ``"embed"``,
            ``"9_attn_out"``, ``"L9H9"``, ``"9_b_O"`` ...
        pair_ids: ``[batch]``, the dataset's: equal for prompts that belong together.
        role: The position that was read.
        logit_diffs: ``[batch]``, the model's own logit difference there, of the same runs.
    """

    per_prompt: Float[Tensor, "*axes batch"]
    labels: tuple[str, ...]
    pair_ids: Int[Tensor, " batch"]
    role: str
    logit_diffs: Float[Tensor, " batch"]

    def __post_init__(self) -> None:
        *axes, batch = self.per_prompt.shape
        lengths = {len(self.pair_ids), len(self.logit_diffs)}
        if len(self.labels) != torch.Size(axes).numel() or lengths != {batch}:
            raise ValueError(
                f"{len(self.labels)} labels and {len(self.pair_ids)} prompts do not fit values of "
                f"shape {tuple(self.per_prompt.shape)}; give one label a component."
            )

    @cached_property
    def values(self) -> Float[Tensor, "*axes"]:
        """The mean over prompts, in logits."""
        return self.per_prompt.mean(dim=-1)

    @cached_property
    def stderr(self) -> Float[Tensor, "*axes"]:
        """The standard error of :attr:`values`: what it is over, :attr:`error_label` says.

        Prompts that were generated as a pair count as one observation; NaN if there is only one.
        """
        return standard_error(self.per_prompt, self.pair_ids)

    @property
    def error_label(self) -> str:
        """What :attr:`stderr` is, such as ``"standard error over 100 pairs"``."""
        return error_label(self.pair_ids)

    @property
    def total(self) -> Float[Tensor, " batch"]:
        """The sum of all components of each prompt, in logits."""
        return self.per_prompt.flatten(0, -2).sum(dim=0)

    def index(self, label: str) -> int:
        """Where a component stands among :attr:`labels`.

        Raises:
            ValueError: There is no such component.
        """
        if label not in self.labels:
            shown = ", ".join(self.labels[:3])
            raise ValueError(
                f"No component is called {label!r}; the {len(self.labels)} names run {shown}, ..., "
                f"{self.labels[-1]}."
            )
        return self.labels.index(label)

    def of(self, label: str) -> Float[Tensor, " batch"]:
        """One component on every prompt, in logits.

        Raises:
            ValueError: There is no such component.
        """
        return self.per_prompt.flatten(0, -2)[self.index(label)]

    def __getitem__(self, where: Any) -> Float[Tensor, "*some"]:
        """The mean of a component that is named, or :attr:`values` at an index.

        Raises:
            ValueError: There is no component of that name.
        """
        if isinstance(where, str):
            return self.values.flatten()[self.index(where)]
        return self.values[where]

    def __len__(self) -> int:
        return len(self.values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values: np.ndarray = self.values.cpu().numpy()
        return values if dtype is None else values.astype(dtype)

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The ``k`` components of largest mean in absolute value, as (label, mean in logits)."""
        means = self.values.flatten()
        order = means.abs().argsort(descending=True)[:k].tolist()
        return [(self.labels[i], means[i].item()) for i in order]

    def table(self) -> pd.DataFrame:
        """One component a row, in order, under its label: mean and standard error, in logits."""
        return pd.DataFrame(
            {"mean": self.values.flatten().cpu(), self.error_label: self.stderr.flatten().cpu()},
            index=pd.Index(self.labels),
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Write it into a safetensors file."""
        tensors = {
            "per_prompt": self.per_prompt,
            "pair_ids": self.pair_ids,
            "logit_diffs": self.logit_diffs,
        }
        texts = {"labels": list(self.labels), "role": self.role}
        write_file(path, type(self).__name__, tensors, texts)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: The file holds something else.
        """
        tensors, texts = read_file(path, cls.__name__)
        return cls(
            tensors["per_prompt"],
            tuple(texts["labels"]),
            tensors["pair_ids"],
            texts["role"],
            tensors["logit_diffs"],
        )

    def __repr__(self) -> str:
        largest = (
            f"{label} {mean:.3f} ± {self.stderr.flatten()[self.index(label)]:.3f}"
            for label, mean in self.top()
        )
        return (
            f"{type(self).__name__} at {self.role}, {list(self.values.shape)}, in logits "
            f"(± {self.error_label}); largest: {', '.join(largest)}"
        )


class Decomposition(Attribution):
    """Contributions that add up to the logit difference at the role's position (``total``)."""


# --- how logits are read from the last residual stream -------------------------------------------


@dataclass(frozen=True)
class Readout:
    """What stands between the last residual stream and the unembedding, its scale given.

    Attributes:
        weight, bias: Of the final norm; 1 and 0 where they are folded into the unembedding.
        centred: Whether it subtracts the mean (LayerNorm does, RMSNorm does not).
        after: What the unembedding's result is multiplied by: a number that no weight holds, as
            Granite has it, and Cohere where it is not folded. Elsewhere 1.
    """

    weight: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    centred: bool
    after: float = 1.0

    def seen(self, stream: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        """What the norm keeps of a summand of the stream, before it divides."""
        return stream - stream.mean(dim=-1, keepdim=True) if self.centred else stream


def readout(model: TransformerBridge) -> Readout:
    """How a model's logits are read from its last residual stream.

    Raises:
        ValueError: They are no linear map of it, given the final norm's scale.
    """
    cfg = model.cfg
    name = getattr(cfg, "model_name", "this model")
    for layer, block in enumerate(getattr(model, "blocks", ())):
        if not getattr(block, "hook_out_is_single_residual_stream", False):
            raise ValueError(
                f"{name} has several residual streams (block {layer} gives a stack of them), and "
                "attribution knows how to read one."
            )
    between = next((part for part, _ in model.named_children() if part in BEHIND_THE_NORM), None)
    if between is not None:
        raise ValueError(
            f"{name} has {between} between its last residual stream and its logits, which "
            "attribution does not know."
        )
    norm = getattr(model, "ln_final", None)
    kinds = ("LN", "LNPre", "RMS", "RMSPre")
    # OPT-350m has a place for a final norm and none there.
    if norm is None or getattr(norm, "original_component", None) is None:
        raise ValueError(f"{name} has no final norm, so attribution does not know its logits.")
    if cfg.normalization_type not in kinds:
        raise ValueError(
            f"{name} ends in a norm of the kind {cfg.normalization_type}; attribution knows "
            "LayerNorm and RMSNorm."
        )
    if (getattr(cfg, "output_logits_soft_cap", 0) or 0) > 0:
        raise ValueError(f"{name} caps its logits, so they do not split into a sum of terms.")
    transform = getattr(getattr(model, "adapter", None), "apply_output_logits_transform", None)
    probe = torch.tensor([-1.0, 0.0, 1.0, 64.0])
    scaled = transform(probe) if callable(transform) else probe
    if not torch.allclose(scaled, scaled[2] * probe):
        raise ValueError(
            f"{name} bends its logits after the unembedding, so they do not split into a sum of "
            "terms."
        )
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    ones = torch.ones_like(model.W_U[:, 0])
    weight = ones if weight is None else weight
    if getattr(cfg, "rmsnorm_uses_offset", False):
        weight = weight + 1
    centred = cfg.normalization_type in ("LN", "LNPre") and not getattr(cfg, "final_rms", False)
    bias = ones * 0 if bias is None else bias
    return Readout(widened(weight), widened(bias), centred, float(scaled[2]))


def why_no_readout(model: TransformerBridge) -> str:
    """Why :func:`readout` refuses a model; empty if it does not."""
    try:
        readout(model)
    except ValueError as error:
        return str(error)
    return ""


def logit_diff_directions(
    model: TransformerBridge, data: TwoAnswerData
) -> Float[Tensor, "batch d_model"]:
    """The direction in the residual stream that reads off each prompt's logit difference.

    The logit of a token is the dot product of the normalised residual stream with that token's
    column of ``W_U``. So the logit difference is a dot product with the difference of two columns,
    IO's minus S's::

        model.W_U[:, data.io_tokens[i]] - model.W_U[:, data.s_tokens[i]]

    LayerNorm stands between the residual stream and ``W_U``. It does four things:

    1. It subtracts the mean. Compatibility mode centres all weights that write, so the mean is
       zero already; it is subtracted in any case. (RMSNorm leaves this out.)
    2. It divides by a size that depends on the whole stream (``ln_final.hook_scale``). Divide by
       the size of the run at hand, and the rest is linear.
    3. It multiplies by a weight. Compatibility mode folds it into ``W_U``. Where it is not folded,
       this function multiplies it in.
    4. It adds a bias. Compatibility mode folds it into ``b_U``. No direction can read it: it is a
       term of its own (``"b_U"``), the same in every prompt with these two answers, and it cancels
       in the mean over prompts paired with their names exchanged.

    Args:
        model: A model with a final norm, as ``load_model`` returns it or not folded.
        data: Prompts; only their two answers are used.

    Returns:
        ``[batch d_model]``, in logits per unit of the normalised residual stream.

    Raises:
        ValueError: As :func:`readout`.
    """
    norm = readout(model)
    return _answer_columns(model, data, norm) * norm.weight


def final_layer_norm_scale(
    model: TransformerBridge,
    data: TwoAnswerData,
    role: str = "END",
    *,
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> Float[Tensor, " batch"]:
    """The number by which the final norm divides the residual stream at a role's position.

    Pass it on as ``scale`` to freeze the norm while something is ablated: the terms of two runs
    then differ only by what the components themselves write.

    Args:
        model, data, role: As for :func:`decompose`.
        memory, progress: As for :func:`~ioi_helpers.runs.run_in_batches`.

    Returns:
        ``[batch]``, in units of the residual stream.

    Raises:
        ValueError: As :func:`decompose`.
    """
    readout(model)
    return activations_at(model, data, role, SCALE, memory=memory, progress=progress)[:, 0]


# --- attributions --------------------------------------------------------------------------------


def logit_lens(
    model: TransformerBridge,
    data: TwoAnswerData,
    role: str = "END",
    *,
    layer_norm: Literal["final", "own"] = "final",
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> Attribution:
    """The logit difference that each state of the residual stream would give on its own.

    ``0_pre`` is the stream that enters block 0, ``0_mid`` the stream after its attention, and so
    on until ``final_post``, whose value is the model's logit difference (``b_U`` is included). The
    method is nostalgebraist's logit lens (2020), on a difference of two logits as in
    TransformerLens' demo; for whole vocabularies and ranks use
    ``transformer_lens.tools.analysis.logit_lens``.

    Args:
        model, data, role: As for :func:`decompose`.
        layer_norm: ``"final"`` divides every state by the final state's size, as the demo does, so
            that two neighbours differ by exactly the contribution between them. ``"own"`` gives
            each state its own final norm, as if the model really stopped there.
        memory, progress: As for :func:`~ioi_helpers.runs.run_in_batches`.

    Returns:
        The logit difference by state, in logits.

    Raises:
        ValueError: As :func:`decompose`, or ``layer_norm`` is neither of the two.
    """
    if layer_norm not in ("final", "own"):
        raise ValueError(f'layer_norm must be "final" or "own", not {layer_norm!r}.')
    n_layers = model.cfg.n_layers
    # Where attention and MLP of a block run in parallel, there is no stream between them.
    middle = "blocks.0.hook_resid_mid" in model.hook_dict
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(n_layers)]
    names += [f"blocks.{layer}.hook_resid_mid" for layer in range(n_layers) if middle]
    names += [f"blocks.{n_layers - 1}.hook_resid_post"]

    def states(cache: ActivationCache) -> Iterator[tuple[str, Tensor]]:
        stack, labels = cache.accumulated_resid(
            layer=-1, incl_mid=middle, pos_slice=0, return_labels=True
        )
        if layer_norm == "own":
            stack = torch.stack([model.ln_final(state[:, None])[:, 0] for state in stack])
        yield from zip(labels, stack, strict=True)

    return _attribute(
        Attribution, model, data, role, names, states, None, memory, progress,
        normed=layer_norm == "own", cumulative=True,
    )  # fmt: skip


def layer_attribution(
    model: TransformerBridge,
    data: TwoAnswerData,
    role: str = "END",
    *,
    scale: Float[Tensor, " batch"] | None = None,
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> Decomposition:
    """What the embeddings, each attention layer, each MLP and the final biases add.

    The rows are ``embed``, ``pos_embed``, ``0_attn_out``, ``0_mlp_out``, ``1_attn_out`` ... as
    TransformerLens names them (a layer's own biases included), then ``b_U``, and before it
    ``ln_final_b`` where the final norm's bias is not folded into ``b_U``. Each is computed on its
    own; together they are the logit difference.

    Args: As for :func:`decompose`.

    Returns:
        The contributions, in logits.

    Raises:
        ValueError: As :func:`decompose`.
    """
    names = [*_embedding_hooks(model), *_layer_hooks(model, "hook_attn_out")]
    if not model.cfg.attn_only:
        names += _layer_hooks(model, "hook_mlp_out")

    def layers(cache: ActivationCache) -> Iterator[tuple[str, Tensor]]:
        stack, labels = cache.decompose_resid(layer=-1, pos_slice=0, return_labels=True)
        yield from zip(labels, stack, strict=True)

    return _attribute(Decomposition, model, data, role, names, layers, scale, memory, progress)


def head_attribution(
    model: TransformerBridge,
    data: TwoAnswerData,
    role: str = "END",
    *,
    scale: Float[Tensor, " batch"] | None = None,
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> Attribution:
    """What each attention head adds directly to the logit difference.

    A head's output is ``z @ W_O``, without the layer's bias ``b_O``, which belongs to no head.
    (Where all heads' outputs together are normalised before they are added to the stream, as in
    Gemma 2, each head has its share, given that norm's scale in the run at hand.) The
    same for prompts of one length, slowly, in plain TransformerLens::

        _, cache = model.run_with_cache(data.tokens)
        stack = cache.stack_head_results(layer=-1, pos_slice=-1)
        stack = cache.apply_ln_to_stack(stack, layer=-1, pos_slice=-1)
        directions = logit_diff_directions(model, data)
        (stack * directions).sum(-1).mean(-1).reshape(model.cfg.n_layers, model.cfg.n_heads)

    Args: As for :func:`decompose`.

    Returns:
        ``.values`` is ``[layer head]``, ``.per_prompt`` ``[layer head batch]``; in logits.

    Raises:
        ValueError: As :func:`decompose`.
    """
    found = _attribute(
        Attribution, model, data, role, _head_hooks(model),
        lambda cache: _heads(model, cache), scale, memory, progress, constants=False,
    )  # fmt: skip
    by_layer = found.per_prompt.unflatten(0, (model.cfg.n_layers, model.cfg.n_heads))
    return replace(found, per_prompt=by_layer)


def decompose(
    model: TransformerBridge,
    data: TwoAnswerData,
    role: str = "END",
    *,
    split_mlp_bias: bool = False,
    scale: Float[Tensor, " batch"] | None = None,
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> Decomposition:
    """Split the logit difference completely: embeddings, heads, MLPs and every bias.

    The rows: ``embed``, ``pos_embed``, then for each block its heads (``L0H0`` ...), its attention
    bias (``0_b_O``) and its MLP (``0_mlp_out``), and last ``b_U``, before it ``ln_final_b`` where
    the final norm's bias is not folded into ``b_U``; a bias that the model lacks has no row. Each
    is computed on its own and none by subtraction, so that the sum is a check: in float32 it is the
    logit difference within 1e-4.

    Args:
        model: A decoder whose logits are read from the last residual stream through LayerNorm or
            RMSNorm. It may be folded (compatibility mode) or not.
        data: Prompts; they may differ in length.
        role: The position that is read. Elsewhere than at END the rows add up to the difference
            of the same two logits at that position.
        split_mlp_bias: Split each MLP into its neurons (``0_neurons``) and its bias (``0_b_out``).
        scale: Divide by these sizes instead of this run's (:func:`final_layer_norm_scale`). The
            rows then add up to the logit difference which that norm would give.
        memory, progress: As for :func:`~ioi_helpers.runs.run_in_batches`. Of each prompt only one
            position is kept.

    Returns:
        The contributions, in logits.

    Raises:
        ValueError: The model's logits are no sum of terms (:func:`readout`), it is in training
            mode, the dataset is none or another tokenizer's, the role is unknown, or ``scale`` does
            not fit.
    """
    n_heads = model.cfg.n_heads
    has_mlps = not model.cfg.attn_only
    names = [*_embedding_hooks(model), *_head_hooks(model)]
    if has_mlps:
        names += _layer_hooks(model, "mlp.hook_post" if split_mlp_bias else "hook_mlp_out")
    post_norms = hasattr(model.blocks[0], "ln2_post")
    if split_mlp_bias and post_norms:
        raise ValueError(
            "This model normalises what an MLP computes before it is added to the residual stream; "
            "leave out split_mlp_bias."
        )

    def rows(cache: ActivationCache) -> Iterator[tuple[str, Tensor]]:
        stack, labels = cache.decompose_resid(layer=0, pos_slice=0, return_labels=True)
        yield from zip(labels, stack, strict=True)
        heads = list(_heads(model, cache))
        for layer, block in enumerate(model.blocks):
            yield from heads[layer * n_heads : (layer + 1) * n_heads]
            if block.attn.b_O is not None:
                b_O = (widened(block.attn.b_O) * residual_scale(block)).expand_as(heads[0][1])
                yield f"{layer}_b_O", _through_post_norm(model, cache, layer, b_O)
            if has_mlps and split_mlp_bias:
                neurons = cache[f"blocks.{layer}.mlp.hook_post"][:, 0] * residual_scale(block)
                yield f"{layer}_neurons", neurons @ widened(block.mlp.W_out)
                if block.mlp.b_out is not None:
                    b_out = widened(block.mlp.b_out) * residual_scale(block)
                    yield f"{layer}_b_out", b_out.expand_as(heads[0][1])
            elif has_mlps:
                yield f"{layer}_mlp_out", cache[f"blocks.{layer}.hook_mlp_out"][:, 0]

    return _attribute(Decomposition, model, data, role, names, rows, scale, memory, progress)


def _heads(model: TransformerBridge, cache: ActivationCache) -> Iterator[tuple[str, Tensor]]:
    stack = cache.stack_head_results(layer=-1, pos_slice=0)
    n_heads = model.cfg.n_heads
    for i, (label, written) in enumerate(zip(head_labels(model), stack, strict=True)):
        yield label, _through_post_norm(model, cache, i // n_heads, written)


def _through_post_norm(
    model: TransformerBridge, cache: ActivationCache, layer: int, written: Tensor
) -> Float[Tensor, "batch d_model"]:
    """A share of what attention computes, as it is added to the stream.

    Where a norm stands between (an RMSNorm, which has no mean and no bias), it is linear given its
    scale.
    """
    if not has_post_norm(model):
        return written  # with Granite's scale in it
    weight = attention_weight(model.blocks[layer])
    return widened(written) * weight / cache[POST_NORM_SCALE.format(layer)][:, 0]


def _head_hooks(model: TransformerBridge) -> list[str]:
    """What :func:`_heads` reads."""
    names = _layer_hooks(model, "attn.hook_z")
    if has_post_norm(model):
        names += [POST_NORM_SCALE.format(layer) for layer in range(model.cfg.n_layers)]
    return names


def _attribute(
    kind: type[Any],
    model: TransformerBridge,
    data: TwoAnswerData,
    role: str,
    names: Sequence[str],
    summands: Callable[[ActivationCache], Iterator[tuple[str, Float[Tensor, "batch d_model"]]]],
    scale: Tensor | None,
    memory: int,
    progress: bool,
    *,
    constants: bool = True,
    normed: bool = False,
    cumulative: bool = False,
) -> Any:
    """Read the logit difference off named summands of the stream at one role of every prompt.

    Args:
        kind: The class of the result.
        names: The hooks that ``summands`` needs in its cache, whose position axis has length one.
        scale: Instead of the run's.
        constants: Add the terms that no activation carries.
        normed: The summands have passed the final norm already.
        cumulative: Each summand is a whole stream, to which all constants belong.
    """
    require_data(model, data)
    norm = readout(model)
    positions = role_positions(data, role)
    if scale is not None and scale.shape != (len(data),):
        raise ValueError(
            f"scale has shape {tuple(scale.shape)}; give one number for each of the {len(data)} "
            "prompts."
        )
    final = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    hooks = known_hooks(model, [*names, SCALE, final])
    labels: list[str] = []

    def read(part: TwoAnswerData) -> dict[str, Tensor]:
        found = gather_activations(model, part.tokens, part.positions[role], hooks, logits=True)
        logits = found.pop("logits")
        cache = ActivationCache({name: value[:, None] for name, value in found.items()}, model)
        columns = _answer_columns(model, part, norm)
        directions = columns if normed else columns * norm.weight
        with torch.no_grad():
            rows = dict(summands(cache))
            labels[:] = rows
            read_off = [
                ((value if normed else norm.seen(widened(value))) * directions).sum(dim=-1)
                for value in rows.values()
            ]
            stream = (norm.seen(found[final]) * columns * norm.weight).sum(dim=-1)
        own_scale = torch.ones_like(read_off[0]) if normed else found[SCALE][:, 0]
        return {
            "terms": torch.stack(read_off),
            "scale": own_scale,
            "stream": stream / found[SCALE][:, 0],
            "logit_diff": logit_diff(logits, part, per_prompt=True),
            "spread": logits.std(dim=-1),
        }

    found = run_in_batches(
        model,
        data,
        read,
        memory=memory,
        progress=progress,
        upto=positions,
        kept=len(hooks) * model.cfg.d_model,
        dim=-1,
    )
    terms = found["terms"] / (found["scale"] if scale is None else scale.to(found["terms"]))
    fixed = _constants(model, data, norm)
    read_off = found["stream"] + torch.stack([*fixed.values()]).sum(dim=0)
    _require_sum(model, "The final stream, read through W_U,", read_off, found)
    if normed:  # the norm's bias is in the summands
        fixed.pop("ln_final_b", None)
    if not constants:
        fixed = {}
    if cumulative:
        terms = terms + torch.stack([*fixed.values()]).sum(dim=0)
    elif fixed:
        terms = torch.cat([terms, torch.stack([*fixed.values()])])
        labels += fixed
        if scale is None:
            _require_sum(model, "The sum of all parts", terms.sum(dim=0), found)
    return kind(terms, tuple(labels), data.pair_ids, role, found["logit_diff"])


def _require_sum(
    model: TransformerBridge,
    what: str,
    value: Float[Tensor, " batch"],
    found: dict[str, Tensor],
) -> None:
    """Refuse an attribution that is not of the logits that the model gives.

    Rounding is a millionth of the logits' spread in float32 and some hundredths in half precision;
    what is overlooked changes them by as much as they are.
    """
    exact = model.W_U.dtype in (torch.float32, torch.float64)
    exact = exact and torch.get_float32_matmul_precision() == "highest"
    off = (value - found["logit_diff"]).abs() / found["spread"]
    if not off.max() <= (0.02 if exact else 0.25):
        row = int(off.nan_to_num(torch.inf).argmax())
        raise ValueError(
            f"{what} gives a logit difference of {value[row]:.3g} for prompt {row}, the model "
            f"{found['logit_diff'][row]:.3g}: a hook or a module that was replaced changes what "
            "attribution cannot see; take it off."
        )


def _answer_columns(
    model: TransformerBridge, data: TwoAnswerData, norm: Readout
) -> Float[Tensor, "batch d_model"]:
    tokens = torch.stack([data.io_tokens, data.s_tokens], dim=-1).to(model.W_U.device)
    columns = widened(model.tokens_to_residual_directions(tokens))
    return (columns[:, 0] - columns[:, 1]) * norm.after


def _constants(
    model: TransformerBridge, data: TwoAnswerData, norm: Readout
) -> dict[str, Float[Tensor, " batch"]]:
    """The terms that no activation carries: biases of the final norm and of the unembedding."""
    constants = {}
    if not model.compatibility_mode or norm.bias.any():
        constants["ln_final_b"] = _answer_columns(model, data, norm) @ norm.bias
    bias = widened(model.b_U)
    answers = (tokens.to(bias.device) for tokens in (data.io_tokens, data.s_tokens))
    io, s = (bias[tokens] for tokens in answers)
    constants["b_U"] = (io - s) * norm.after
    return constants


def _embedding_hooks(model: TransformerBridge) -> list[str]:
    return [name for name in ("hook_embed", "hook_pos_embed") if name in model.hook_dict]


def _layer_hooks(model: TransformerBridge, name: str) -> list[str]:
    return [f"blocks.{layer}.{name}" for layer in range(model.cfg.n_layers)]
