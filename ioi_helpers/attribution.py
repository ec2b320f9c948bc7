"""Direct logit attribution: what each component of a model adds to the logit difference.

The residual stream at a position is a sum: the embeddings, every head's output, every MLP's output
and their biases. The logits are a linear map of that sum but for one thing, the final LayerNorm.
Given the size by which that LayerNorm divided in the run at hand, it too is linear, and the logit
difference splits into one term per component, with nothing left over (Elhage et al. 2021, "A
mathematical framework for transformer circuits"; Wang et al. 2022, section 3.1; TransformerLens'
Exploratory Analysis demo). What it cannot see is everything indirect: a head that makes another
head look at the right name has no term of its own.

The splitting is TransformerLens' own (``ActivationCache.decompose_resid``, ``accumulated_resid``,
``stack_head_results``, ``apply_ln_to_stack``). What is added here is position by role: prompts may
differ in length, so each is read at its own END (or S2, ...), and only that position is kept, which
is why a thousand prompts fit in memory. For one position that all prompts share,
``transformer_lens.tools.analysis.direct_logit_attribution`` does the same and gives the same
numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens import ActivationCache
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.metrics import mean_and_stderr
from ioi_helpers.models import refuse_too_long

if TYPE_CHECKING:
    from ioi_helpers.dataset import IOIDataset

DEFAULT_BATCH_SIZE = 64


@dataclass(frozen=True)
class LabelledLogits:
    """Logits with a name for each row.

    Attributes:
        values: ``[component]``, the mean over prompts, or ``[component batch]``; in logits.
        labels: The components' names, in the order of the rows: ``"embed"``, ``"9_attn_out"``,
            ``"L9H9"``, ``"9_b_O"`` ...
        stderr: ``[component]``, the standard error of the mean, in logits. Prompts generated as a
            pair count as one observation (``metrics.mean_and_stderr``); NaN if there is only one.
        role: The position that was read.
    """

    values: Float[Tensor, "component *batch"]
    labels: tuple[str, ...]
    stderr: Float[Tensor, " component"]
    role: str

    def __post_init__(self) -> None:
        if not len(self.labels) == self.values.shape[0] == self.stderr.shape[0]:
            raise ValueError(
                f"{len(self.labels)} labels do not fit values of shape {tuple(self.values.shape)}; "
                "give one label a row."
            )

    @property
    def mean(self) -> Float[Tensor, " component"]:
        """The mean over prompts, in logits."""
        return self.values if self.values.ndim == 1 else self.values.mean(dim=-1)

    def __getitem__(self, label: str) -> Float[Tensor, "*batch"]:
        """The row of one component.

        Raises:
            ValueError: There is no such component.
        """
        if label not in self.labels:
            shown = ", ".join(self.labels[:3])
            raise ValueError(
                f"No component is called {label!r}; the {len(self.labels)} names run {shown}, ..., "
                f"{self.labels[-1]}."
            )
        return self.values[self.labels.index(label)]

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The ``k`` components of largest mean in absolute value, as (label, mean in logits)."""
        means = self.mean
        order = means.abs().argsort(descending=True)[:k].tolist()
        return [(self.labels[i], means[i].item()) for i in order]

    def table(self) -> pd.DataFrame:
        """One component a row, in order: ``label``, ``mean`` and ``stderr`` in logits."""
        return pd.DataFrame(
            {
                "label": list(self.labels),
                "mean": self.mean.cpu().numpy(),
                "stderr": self.stderr.cpu().numpy(),
            }
        )


@dataclass(frozen=True)
class Decomposition(LabelledLogits):
    """Contributions that add up to the logit difference at the role's position."""

    @property
    def total(self) -> Float[Tensor, "*batch"]:
        """The sum of all components: the logit difference, in logits."""
        return self.values.sum(dim=0)


def logit_diff_directions(
    model: TransformerBridge, data: IOIDataset
) -> Float[Tensor, "batch d_model"]:
    """The direction in the residual stream that reads off each prompt's logit difference.

    The logit of a token is the dot product of the normalised residual stream with that token's
    column of ``W_U``. So the logit difference is a dot product with the difference of two columns,
    IO's minus S's::

        model.W_U[:, data.io_tokens[i]] - model.W_U[:, data.s_tokens[i]]

    LayerNorm stands between the residual stream and ``W_U``. It does four things:

    1. It subtracts the mean. Compatibility mode centres all weights that write, so the mean is
       zero already; ``apply_ln_to_stack`` subtracts it in any case.
    2. It divides by a size that depends on the whole stream (``ln_final.hook_scale``). Divide by
       the size of the run at hand, and the rest is linear.
    3. It multiplies by a weight. Compatibility mode folds it into ``W_U``. Where it is not folded,
       this function multiplies it in.
    4. It adds a bias. Compatibility mode folds it into ``b_U``. No direction can read it: it is a
       term of its own (``"b_U"``), the same in every prompt with these two answers, and it cancels
       in the mean over prompts paired with their names exchanged.

    Args:
        model: A model with a final LayerNorm, as ``load_model`` returns it or not folded.
        data: Prompts; only their two answers are used.

    Returns:
        ``[batch d_model]``, in logits per unit of the normalised residual stream.

    Raises:
        ValueError: The model does not end in LayerNorm and a linear unembedding.
    """
    _require_final_layer_norm(model)
    return _answer_columns(model, data) * _float(model.ln_final.weight)


@torch.no_grad()
def final_layer_norm_scale(
    model: TransformerBridge,
    data: IOIDataset,
    role: str = "END",
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> Float[Tensor, " batch"]:
    """The number by which the final LayerNorm divides the residual stream at a role's position.

    Pass it on as ``scale`` to freeze LayerNorm while something is ablated: the terms of two runs
    then differ only by what the components themselves write.

    Args:
        model: A model with a final LayerNorm.
        data: Prompts.
        role: The position that is read.
        batch_size: Prompts run at once.

    Returns:
        ``[batch]``, in units of the residual stream.

    Raises:
        ValueError: As :func:`decompose`.
    """
    scales = [
        cache["ln_final.hook_scale"].flatten()
        for cache, _ in _caches(model, data, role, [], None, batch_size)
    ]
    return torch.cat(scales)


@torch.no_grad()
def logit_lens(
    model: TransformerBridge,
    data: IOIDataset,
    role: str = "END",
    *,
    per_prompt: bool = False,
    layer_norm: Literal["final", "own"] = "final",
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> LabelledLogits:
    """The logit difference that each state of the residual stream would give on its own.

    ``0_pre`` is the stream that enters block 0, ``0_mid`` the stream after its attention, and so
    on until ``final_post``, whose value is the model's logit difference (``b_U`` is included). The
    method is nostalgebraist's logit lens (2020), on a difference of two logits as in
    TransformerLens' demo; for whole vocabularies and ranks use
    ``transformer_lens.tools.analysis.logit_lens``.

    Args:
        model: A GPT-2-style model.
        data: Prompts; they may differ in length.
        role: The position that is read.
        per_prompt: Keep one value a prompt instead of the mean.
        layer_norm: ``"final"`` divides every state by the final state's size, as the demo does, so
            that two neighbours differ by exactly the contribution between them. ``"own"`` gives
            each state its own LayerNorm, as if the model really stopped there.
        batch_size: Prompts run at once.

    Returns:
        The logit difference by state, in logits.

    Raises:
        ValueError: As :func:`decompose`, or ``layer_norm`` is neither of the two.
    """
    if layer_norm not in ("final", "own"):
        raise ValueError(f'layer_norm must be "final" or "own", not {layer_norm!r}.')
    n_layers, middle = model.cfg.n_layers, not model.cfg.attn_only
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(n_layers)]
    names += [f"blocks.{layer}.hook_resid_mid" for layer in range(n_layers) if middle]
    names += [f"blocks.{n_layers - 1}.hook_resid_post"]
    parts: list[Tensor] = []
    labels: list[str] = []
    for cache, part in _caches(model, data, role, names, None, batch_size):
        stack, labels = cache.accumulated_resid(
            layer=-1, incl_mid=middle, pos_slice=0, return_labels=True
        )
        if layer_norm == "final":
            values = _project(model, cache, stack, part)
            constants = list(_constants(model, part).values())
        else:
            normalised = cache.apply_ln_to_stack(stack, layer=-1, pos_slice=0, recompute_ln=True)
            # ln_final has applied its own weight and bias here, folded or not.
            values = torch.einsum("cbd,bd->cb", _float(normalised), _answer_columns(model, part))
            constants = [_unembedding_bias(model, part)]
        parts.append(values + torch.stack(constants).sum(dim=0))
    values, stderr = _over_prompts(torch.cat(parts, dim=1), data, per_prompt)
    return LabelledLogits(values, tuple(labels), stderr, role)


@torch.no_grad()
def layer_attribution(
    model: TransformerBridge,
    data: IOIDataset,
    role: str = "END",
    *,
    per_prompt: bool = False,
    scale: Float[Tensor, " batch"] | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> Decomposition:
    """What the embeddings, each attention layer, each MLP and the final biases add.

    The rows are ``embed``, ``pos_embed``, ``0_attn_out``, ``0_mlp_out``, ``1_attn_out`` ... as
    TransformerLens names them (a layer's own biases included), then ``b_U``, and before it
    ``ln_final_b`` where the final LayerNorm's bias is not folded into ``b_U``. Each is computed on
    its own; together they are the logit difference.

    Args:
        model: A GPT-2-style model.
        data: Prompts; they may differ in length.
        role: The position that is read.
        per_prompt: Keep one value a prompt instead of the mean.
        scale: Divide by these sizes instead of this run's (:func:`final_layer_norm_scale`).
        batch_size: Prompts run at once.

    Returns:
        The contributions, in logits.

    Raises:
        ValueError: As :func:`decompose`.
    """
    names = [*_embedding_hooks(model), *_layer_hooks(model, "hook_attn_out")]
    if not model.cfg.attn_only:
        names += _layer_hooks(model, "hook_mlp_out")
    parts: list[Tensor] = []
    labels: list[str] = []
    for cache, part in _caches(model, data, role, names, scale, batch_size):
        stack, labels = cache.decompose_resid(layer=-1, pos_slice=0, return_labels=True)
        constants = _constants(model, part)
        parts.append(torch.stack([*_project(model, cache, stack, part), *constants.values()]))
        labels = [*labels, *constants]
    values, stderr = _over_prompts(torch.cat(parts, dim=1), data, per_prompt)
    return Decomposition(values, tuple(labels), stderr, role)


@torch.no_grad()
def head_attribution(
    model: TransformerBridge,
    data: IOIDataset,
    role: str = "END",
    *,
    per_prompt: bool = False,
    scale: Float[Tensor, " batch"] | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> Float[Tensor, "layer head *batch"]:
    """What each attention head adds directly to the logit difference.

    A head's output is ``z @ W_O``, without the layer's bias ``b_O``, which belongs to no head. The
    same for prompts of one length, slowly, in plain TransformerLens::

        _, cache = model.run_with_cache(data.tokens)
        stack = cache.stack_head_results(layer=-1, pos_slice=-1)
        stack = cache.apply_ln_to_stack(stack, layer=-1, pos_slice=-1)
        directions = logit_diff_directions(model, data)
        (stack * directions).sum(-1).mean(-1).reshape(model.cfg.n_layers, model.cfg.n_heads)

    Args:
        model: A GPT-2-style model.
        data: Prompts; they may differ in length.
        role: The position that is read.
        per_prompt: Keep one value a prompt instead of the mean.
        scale: Divide by these sizes instead of this run's (:func:`final_layer_norm_scale`).
        batch_size: Prompts run at once.

    Returns:
        ``[layer head]``, the mean over prompts, or ``[layer head batch]``; in logits.

    Raises:
        ValueError: As :func:`decompose`.
    """
    parts = [
        _project(model, cache, cache.stack_head_results(layer=-1, pos_slice=0), part)
        for cache, part in _caches(
            model, data, role, _layer_hooks(model, "attn.hook_z"), scale, batch_size
        )
    ]
    values = torch.cat(parts, dim=1).unflatten(0, (model.cfg.n_layers, model.cfg.n_heads))
    return values if per_prompt else values.mean(dim=-1)


@torch.no_grad()
def decompose(
    model: TransformerBridge,
    data: IOIDataset,
    role: str = "END",
    *,
    split_mlp_bias: bool = False,
    per_prompt: bool = True,
    scale: Float[Tensor, " batch"] | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> Decomposition:
    """Split the logit difference completely: embeddings, heads, MLPs and every bias.

    The rows: ``embed``, ``pos_embed``, then for each block its heads (``L0H0`` ...), its attention
    bias (``0_b_O``) and its MLP (``0_mlp_out``), and last ``b_U``, before it ``ln_final_b`` where
    the final LayerNorm's bias is not folded into ``b_U``. Each is computed on its own and none by
    subtraction, so that the sum is a check: in float32 it is the logit difference within 1e-4.

    Args:
        model: A GPT-2-style model: LayerNorm before each layer and before the unembedding. It may
            be folded (compatibility mode) or not.
        data: Prompts; they may differ in length.
        role: The position that is read. Elsewhere than at END the rows add up to the difference
            of the same two logits at that position.
        split_mlp_bias: Split each MLP into its neurons (``0_neurons``) and its bias (``0_b_out``).
        per_prompt: Keep one value a prompt (the default) or take the mean.
        scale: Divide by these sizes instead of this run's (:func:`final_layer_norm_scale`). The
            rows then add up to the logit difference which that LayerNorm would give.
        batch_size: Prompts run at once. Of each, only one position is kept.

    Returns:
        The contributions, in logits.

    Raises:
        ValueError: The model is no GPT-2-style transformer or is in training mode, the role is
            unknown, or ``scale`` or ``batch_size`` does not fit.
    """
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    mlps = [] if model.cfg.attn_only else list(range(n_layers))
    names = [*_embedding_hooks(model), *_layer_hooks(model, "attn.hook_z")]
    names += [
        f"blocks.{i}.mlp.hook_post" if split_mlp_bias else f"blocks.{i}.hook_mlp_out" for i in mlps
    ]
    parts: list[Tensor] = []
    labels: list[str] = []
    for cache, part in _caches(model, data, role, names, scale, batch_size):
        rows: dict[str, Tensor] = {}
        stack, embeddings = cache.decompose_resid(layer=0, pos_slice=0, return_labels=True)
        rows.update(zip(embeddings, _project(model, cache, stack, part), strict=True))
        stack, heads = cache.stack_head_results(layer=-1, pos_slice=0, return_labels=True)
        by_head = dict(zip(heads, _project(model, cache, stack, part), strict=True))
        for layer, block in enumerate(model.blocks):
            for head in heads[layer * n_heads : (layer + 1) * n_heads]:
                rows[head] = by_head[head]
            block_rows = {f"{layer}_b_O": _bias(block.attn.b_O, len(part))}
            if layer in mlps and split_mlp_bias:
                neurons = cache[f"blocks.{layer}.mlp.hook_post"][:, 0]
                block_rows[f"{layer}_neurons"] = neurons @ _float(block.mlp.W_out)
                block_rows[f"{layer}_b_out"] = _bias(block.mlp.b_out, len(part))
            elif layer in mlps:
                block_rows[f"{layer}_mlp_out"] = cache[f"blocks.{layer}.hook_mlp_out"][:, 0]
            projected = _project(model, cache, torch.stack([*block_rows.values()]), part)
            rows.update(zip(block_rows, projected, strict=True))
        rows.update(_constants(model, part))
        labels = list(rows)
        parts.append(torch.stack([*rows.values()]))
    values, stderr = _over_prompts(torch.cat(parts, dim=1), data, per_prompt)
    return Decomposition(values, tuple(labels), stderr, role)


def cache_at_role(
    model: TransformerBridge, data: IOIDataset, role: str, names: Sequence[str]
) -> ActivationCache:
    """Run the model and keep activations at one position a prompt, the one that has the role.

    The cache's position axis has length one, so TransformerLens' own methods work on it with
    ``pos_slice=0`` although the prompts differ in length. Hooks that are on the model stay on and
    take effect first; those added here are removed, also after an error.

    Args:
        model: A model that TransformerBridge boots.
        data: Prompts.
        role: ``"IO"``, ``"S1"``, ``"S1+1"``, ``"S2"`` or ``"END"``.
        names: Hook names of activations whose axes start with batch and position.

    Returns:
        ``{name: [batch 1 ...]}`` as an ``ActivationCache``; half precision becomes float32.

    Raises:
        ValueError: A hook or the role is unknown, or the model is in training mode.
    """
    return _run_and_gather(model, data.tokens, data.positions[role], _known_hooks(model, names))


def _run_and_gather(
    model: TransformerBridge, tokens: Tensor, positions: Tensor, names: Sequence[str]
) -> ActivationCache:
    if model.training:
        raise ValueError("The model is in training mode, where dropout is random; call eval().")
    gathered: dict[str, Tensor] = {}

    def gather(name: str) -> Any:
        def hook_fn(activation: Tensor, hook: Any) -> None:
            at = positions.to(activation.device)
            rows = torch.arange(len(at), device=activation.device)
            gathered[name] = _float(activation[rows, at][:, None]).to(model.W_U.device)

        return hook_fn

    # By causality nothing after the last position that is read can matter.
    tokens = tokens[:, : int(positions.max()) + 1].to(model.cfg.device)
    refuse_too_long(model, tokens)
    with torch.no_grad():
        # logits_to_keep: one position's logits are cheaper than all, and none are used here.
        model.run_with_hooks(
            tokens,
            fwd_hooks=[(name, gather(name)) for name in names],
            return_type=None,
            logits_to_keep=1,
        )
    return ActivationCache(gathered, model)


def _caches(
    model: TransformerBridge,
    data: IOIDataset,
    role: str,
    names: Sequence[str],
    scale: Tensor | None,
    batch_size: int,
) -> Iterator[tuple[ActivationCache, _Answers]]:
    """The gathered cache of each part of the data, with that part's answers."""
    _require_final_layer_norm(model)
    positions = data.positions[role]
    n = len(positions)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
    if scale is not None and scale.shape != (n,):
        raise ValueError(
            f"scale has shape {tuple(scale.shape)}; give one number for each of the {n} prompts."
        )
    hooks = _known_hooks(model, [*names, "ln_final.hook_scale"])
    # The bar appears only where there is something to wait for.
    for start in tqdm(range(0, n, batch_size), desc="prompts", leave=False, delay=5):
        part = slice(start, start + batch_size)
        cache = _run_and_gather(model, data.tokens[part], positions[part], hooks)
        if scale is not None:
            cache.cache_dict["ln_final.hook_scale"] = scale[part, None, None].to(model.W_U.device)
        yield cache, _Answers(data.io_tokens[part], data.s_tokens[part])


@dataclass(frozen=True)
class _Answers:
    """The part of a dataset that directions need."""

    io_tokens: Tensor
    s_tokens: Tensor

    def __len__(self) -> int:
        return len(self.io_tokens)


def _project(
    model: TransformerBridge,
    cache: ActivationCache,
    stack: Float[Tensor, "component batch d_model"],
    answers: _Answers,
) -> Float[Tensor, "component batch"]:
    """Logit difference of each row under the LayerNorm scale that is in the cache."""
    scaled = cache.apply_ln_to_stack(stack, layer=-1, pos_slice=0)
    directions = _answer_columns(model, answers) * _float(model.ln_final.weight)
    return torch.einsum("cbd,bd->cb", _float(scaled), directions)


def _answer_columns(
    model: TransformerBridge, answers: _Answers | IOIDataset
) -> Float[Tensor, "batch d_model"]:
    tokens = torch.stack([answers.io_tokens, answers.s_tokens], dim=-1).to(model.W_U.device)
    columns = _float(model.tokens_to_residual_directions(tokens))
    return columns[:, 0] - columns[:, 1]


def _constants(model: TransformerBridge, answers: _Answers) -> dict[str, Float[Tensor, " batch"]]:
    """The terms that no activation carries: biases of the final LayerNorm and the unembedding."""
    constants = {}
    norm_bias = _float(model.ln_final.bias)
    if not model.compatibility_mode or norm_bias.any():
        constants["ln_final_b"] = _answer_columns(model, answers) @ norm_bias
    constants["b_U"] = _unembedding_bias(model, answers)
    return constants


def _unembedding_bias(model: TransformerBridge, answers: _Answers) -> Float[Tensor, " batch"]:
    bias = _float(model.b_U)
    return bias[answers.io_tokens.to(bias.device)] - bias[answers.s_tokens.to(bias.device)]


def _bias(bias: Float[Tensor, " d_model"], n: int) -> Float[Tensor, "batch d_model"]:
    return _float(bias).expand(n, -1)


def _over_prompts(
    values: Float[Tensor, "component batch"], data: IOIDataset, per_prompt: bool
) -> tuple[Float[Tensor, "component *batch"], Float[Tensor, " component"]]:
    if len(data.pair_ids.unique()) > 1:
        errors = [mean_and_stderr(row, clusters=data.pair_ids).stderr for row in values]
    else:
        errors = [float("nan")] * len(values)
    return (values if per_prompt else values.mean(dim=-1)), values.new_tensor(errors)


def _float(tensor: Tensor) -> Tensor:
    """Half precision as float32, so that sums of many terms keep their digits."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _embedding_hooks(model: TransformerBridge) -> list[str]:
    return [name for name in ("hook_embed", "hook_pos_embed") if name in model.hook_dict]


def _layer_hooks(model: TransformerBridge, name: str) -> list[str]:
    return [f"blocks.{layer}.{name}" for layer in range(model.cfg.n_layers)]


def _known_hooks(model: TransformerBridge, names: Sequence[str]) -> list[str]:
    known = model.hook_dict
    for name in names:
        if name not in known:
            raise ValueError(
                f"The model has no hook {name!r}; see model.hook_dict for those of this "
                "architecture."
            )
    return list(names)


def _require_final_layer_norm(model: TransformerBridge) -> None:
    cfg = model.cfg
    name = getattr(cfg, "model_name", "this model")
    if cfg.normalization_type not in ("LN", "LNPre") or getattr(cfg, "final_rms", False):
        raise ValueError(
            f"{name} does not end in LayerNorm (its normalization is {cfg.normalization_type}); "
            "attribution is written for GPT-2-style models."
        )
    if getattr(cfg, "parallel_attn_mlp", False) or getattr(cfg, "output_logits_soft_cap", 0) > 0:
        raise ValueError(
            f"{name} has parallel layers or capped logits; attribution is written for GPT-2-style "
            "models, whose logits are a linear map of the normalised residual stream."
        )
