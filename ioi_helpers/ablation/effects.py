"""What an ablation does to the logit difference, split into its parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import attribution, forward
from ioi_helpers.ablation import fast
from ioi_helpers.ablation.components import require_components
from ioi_helpers.ablation.context import ablate
from ioi_helpers.ablation.kept import KeptRuns, parts_for, written_for
from ioi_helpers.ablation.replacements import Replacement, replacements
from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.graph import Node, NodeLike
from ioi_helpers.metrics import error_label, standard_error
from ioi_helpers.names import head_name
from ioi_helpers.runs import (
    DEFAULT_MEMORY,
    logit_diffs,
    progress_bar,
    refuse_too_long,
    require_data,
)


@dataclass(frozen=True)
class AblationEffects:
    """The change of the logit difference under an ablation: every tensor has a batch axis.

    All changes are ablated minus clean, in logits; negative is a loss. Each is computed on its own,
    none by subtraction, so that two identities are checks (in float32 they hold within 1e-4)::

        total        = direct + later heads + later MLPs + layer_norm
        frozen_total = direct + later heads + later MLPs

    Attributes:
        ablated_components: What was ablated.
        clean, ablated: ``[batch]``, the logit difference of the two runs.
        direct: ``[batch]``, the change of what the ablated components write themselves at END, at
            the clean run's LayerNorm scale.
        heads: ``[layer head batch]``, the change of every other head's direct attribution, at the
            clean scale: what later heads do about it. Zero for those that come before.
        mlps: ``[layer batch]``, likewise for MLPs.
        layer_norm: ``[batch]``, what it changes that the final LayerNorm divides the ablated run's
            stream by another number.
        frozen_total: ``[batch]``, the change with the final LayerNorm's scale frozen at its clean
            value.
        scale, ablated_scale: ``[batch]``, the final LayerNorm's scale at END in the two runs.
        attribution: ``[layer head batch]``, every head's direct attribution in the clean run.
        ablated_attribution: ``[layer head batch]``, the same in the ablated run, at its own scale.
        pair_ids: ``[batch]``, the dataset's: equal for prompts that belong together.
    """

    ablated_components: tuple[Node, ...]
    clean: Float[Tensor, " batch"]
    ablated: Float[Tensor, " batch"]
    direct: Float[Tensor, " batch"]
    heads: Float[Tensor, "layer head batch"]
    mlps: Float[Tensor, "layer batch"]
    layer_norm: Float[Tensor, " batch"]
    frozen_total: Float[Tensor, " batch"]
    scale: Float[Tensor, " batch"]
    ablated_scale: Float[Tensor, " batch"]
    attribution: Float[Tensor, "layer head batch"]
    ablated_attribution: Float[Tensor, "layer head batch"]
    pair_ids: Int[Tensor, " batch"]

    @property
    def total(self) -> Float[Tensor, " batch"]:
        """The change of the logit difference, LayerNorm free, as the model runs: ``[batch]``."""
        return self.ablated - self.clean

    @property
    def later_heads(self) -> Float[Tensor, " batch"]:
        """The sum of ``heads``: ``[batch]``."""
        return self.heads.sum(dim=(0, 1))

    @property
    def later_mlps(self) -> Float[Tensor, " batch"]:
        """The sum of ``mlps``: ``[batch]``."""
        return self.mlps.sum(dim=0)

    @property
    def indirect(self) -> Float[Tensor, " batch"]:
        """What later heads and MLPs change, LayerNorm frozen: ``[batch]``."""
        return self.later_heads + self.later_mlps

    def terms(self) -> dict[str, Float[Tensor, " batch"]]:
        """The four terms of the identity by name, in order."""
        return {
            "direct effect": self.direct,
            "later heads": self.later_heads,
            "later MLPs": self.later_mlps,
            "LayerNorm": self.layer_norm,
        }

    @property
    def error_label(self) -> str:
        """What the errors of :meth:`table` are, such as ``"standard error over 100 pairs"``."""
        return error_label(self.pair_ids)

    def table(self) -> pd.DataFrame:
        """The terms and the total, a row each, in logits: the mean over prompts, and its error.

        Prompts that belong together count as one observation, as the error's column says.
        """
        rows = torch.stack([*self.terms().values(), self.total])
        return pd.DataFrame(
            {
                "mean": rows.mean(dim=-1).tolist(),
                self.error_label: standard_error(rows, self.pair_ids).tolist(),
            },
            index=[*self.terms(), "total"],
        )


def ablation_effects(
    model: TransformerBridge,
    data: TwoAnswerData,
    components: NodeLike | Iterable[NodeLike],
    how: Literal["mean", "zero", "resample"] | str = "mean",
    *,
    reference: TwoAnswerData | None = None,
    kept: KeptRuns | None = None,
    engine: forward.Engine = "auto",
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> AblationEffects:
    """Ablate, and say which part of the model changed the logit difference by how much.

    The logit difference is a sum over components, divided by the final LayerNorm's scale
    (:mod:`ioi_helpers.attribution`). So is its change: what the ablated components no longer
    write (the *direct effect*), what every later head and MLP writes differently because it reads
    another residual stream (the *indirect effect*), and the new scale. A naive reading of direct
    attribution predicts the first term; a model that repairs itself makes up for it in the others
    (McGrath et al. 2023, "The Hydra effect"; Rushing and Nanda 2024, "Explorations of self-repair
    in language models", who also find the share of LayerNorm).

    A component ablated elsewhere than at END has no direct effect; its own later change at END
    counts among ``heads`` or ``mlps``.

    Args:
        model: A model whose logits :func:`~ioi_helpers.attribution.decompose` can split.
        data: Prompts; they may differ in length.
        components: What to ablate, all of it at once; for a name mover ``("L9H9", "END")``.
        how, reference, kept: As for :func:`~ioi_helpers.ablation.ablate`.
        engine: ``"fast"`` refuses models that :mod:`ioi_helpers.forward` cannot run, ``"hooks"``
            uses :func:`~ioi_helpers.ablation.ablate` and
            :func:`~ioi_helpers.attribution.decompose`, and ``"auto"`` does that where it must.
        memory: Bytes that the runs may use for activations; more prompts are run in parts.
        progress: Show a progress bar where there is something to wait for.

    Returns:
        The terms, in logits, one value a prompt.

    Raises:
        ValueError: As for :func:`~ioi_helpers.ablation.ablate` and
            :func:`~ioi_helpers.attribution.decompose`.
    """
    nodes = require_components(model, components)
    require_data(model, data)
    refuse_too_long(model, data.tokens[:, : int(data.lengths.max())])
    gpt = forward.weights_for(model, engine)
    if gpt is None:
        ablated_model = ablate(model, nodes, how, reference=reference, data=data)
        terms = _by_hooks(model, data, ablated_model, memory, progress)
    else:
        written = written_for(kept, gpt, model, reference)
        values = replacements(
            model, nodes, how, reference, data, gpt=gpt, memory=memory, written=written
        )
        clean = parts_for(kept, gpt, model, data, memory)
        terms = _fast(model, gpt, data, values, clean, progress)
    return _assemble(data, nodes, **terms)


def _own(components: Iterable[Node]) -> list[Node]:
    """Those that are ablated at END: what they write there is the direct effect."""
    return [c for c in components if c.role in (None, "END")]


def _assemble(
    data: TwoAnswerData,
    components: tuple[Node, ...],
    *,
    heads: Float[Tensor, "layer head batch"],
    mlps: Float[Tensor, "layer batch"],
    **rest: Tensor,
) -> AblationEffects:
    """Move the ablated components' own changes into the direct effect."""
    heads, mlps = heads.clone(), mlps.clone()
    direct = torch.zeros_like(rest["clean"])
    # One that is ablated both everywhere and at END is counted once.
    for layer, head in dict.fromkeys((c.layer, c.head) for c in _own(components)):
        own = mlps[layer] if head is None else heads[layer, head]
        direct += own
        own.zero_()
    return AblationEffects(
        ablated_components=components,
        direct=direct,
        heads=heads,
        mlps=mlps,
        pair_ids=data.pair_ids.detach().cpu(),
        **rest,
    )


# --- by the equations -----------------------------------------------------------------------------


class _Terms(NamedTuple):
    """Contributions at END before they are divided by the scale, and that scale."""

    heads: Float[Tensor, "layer head batch"]
    mlps: Float[Tensor, "layer batch"]
    stream: Float[Tensor, " batch"]
    scale: Float[Tensor, " batch"]


@torch.no_grad()
def _fast(
    model: TransformerBridge,
    gpt: forward.Decoder,
    data: TwoAnswerData,
    values: Sequence[Replacement],
    clean: fast.Parts | list[fast.Part],
    progress: bool,
) -> dict[str, Tensor]:
    """What :func:`_assemble` makes the result of; `heads` and `mlps` with the ablated ones' own."""
    directions = attribution.logit_diff_directions(model, data).to(gpt.device)
    # LayerNorm subtracts the mean of the stream, so only the rest of a direction can read it.
    directions = attribution.readout(model).seen(directions)
    parts: list[dict[str, Tensor]] = []
    for part in progress_bar("ablating", clean, show=progress):
        rows, base = part.rows, part.base
        diffs = partial(
            forward.logit_diffs, gpt, io_tokens=data.io_tokens[rows], s_tokens=data.s_tokens[rows]
        )
        chosen = torch.arange(len(data))[rows]
        here = [value.rows(chosen) for value in values]
        ablated = fast.ablated_run(gpt, part.tokens, base, here, fast.WRITTEN)
        before = _terms(gpt, base, directions[rows])
        after = _terms(gpt, ablated, directions[rows])
        parts.append(
            {
                "heads": (after.heads - before.heads) / before.scale,
                "mlps": (after.mlps - before.mlps) / before.scale,
                "clean": diffs(base.final),
                "ablated": diffs(ablated.final),
                "layer_norm": after.stream * (1 / after.scale - 1 / before.scale),
                "frozen_total": (after.stream - before.stream) / before.scale,
                "scale": before.scale,
                "ablated_scale": after.scale,
                "attribution": before.heads / before.scale,
                "ablated_attribution": after.heads / after.scale,
            }
        )
    return {name: torch.cat([found[name] for found in parts], dim=-1) for name in parts[0]}


def _terms(
    gpt: forward.Decoder, run: forward.Run, directions: Float[Tensor, "batch d_model"]
) -> _Terms:
    prompts = torch.arange(len(run.last), device=run.last.device)
    directions = directions.to(gpt.dtype)
    heads, mlps = [], []
    for layer, block in enumerate(gpt.blocks):
        z = run["z"][layer][prompts, run.last]  # [batch head d_head]
        W_O = forward.W_O_by_head(gpt, layer, gpt.dtype)
        read_off = directions
        if block.ln1_post is not None:  # given its scale, that norm is linear too
            summed = forward.affine(block.b_O, z.flatten(1), block.W_O)
            size = forward.scale_of(block.ln1_post, summed)[:, None]
            gain = 1.0 if block.ln1_post.weight is None else block.ln1_post.weight
            read_off = directions * gain / size
        # What each head reads out of its z, for each prompt, and only then the product with z.
        readers = torch.einsum("hed,bd->bhe", W_O, read_off)
        heads.append((z * readers).sum(dim=-1).T)
        mlp_out = run["mlp_out"][layer][prompts, run.last]
        mlps.append((mlp_out * directions).sum(dim=-1))
    final = run.final
    scale = forward.scale_of(gpt.ln_final, final)
    stream = (final * directions).sum(dim=-1)
    return _Terms(torch.stack(heads), torch.stack(mlps), stream, scale)


# --- other models, and models with hooks ---------------------------------------------------------


def _by_hooks(
    model: TransformerBridge,
    data: TwoAnswerData,
    ablated_model: AbstractContextManager[Any],
    memory: int,
    progress: bool,
) -> dict[str, Tensor]:
    """The same for any model."""
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads

    def by_head(parts: attribution.Decomposition) -> Float[Tensor, "layer head batch"]:
        rows = [
            parts.of(head_name(layer, head)) for layer in range(n_layers) for head in range(n_heads)
        ]
        return torch.stack(rows).unflatten(0, (n_layers, n_heads))

    def by_mlp(parts: attribution.Decomposition) -> Float[Tensor, "layer batch"]:
        if model.cfg.attn_only:
            return parts.per_prompt.new_zeros(n_layers, len(data))
        return torch.stack([parts.of(f"{layer}_mlp_out") for layer in range(n_layers)])

    settings: dict[str, Any] = {"memory": memory, "progress": progress}
    decompose = partial(attribution.decompose, model, data, **settings)
    measure = partial(attribution.final_layer_norm_scale, model, data, **settings)
    diffs = partial(logit_diffs, model, data, **settings)
    scale, clean, before = measure(), diffs(), decompose()
    with ablated_model:
        ablated, ablated_scale = diffs(), measure()
        frozen, free = decompose(scale=scale), decompose()
    return {
        "heads": by_head(frozen) - by_head(before),
        "mlps": by_mlp(frozen) - by_mlp(before),
        "clean": clean,
        "ablated": ablated,
        "layer_norm": free.total - frozen.total,
        "frozen_total": frozen.total - before.total,
        "scale": scale,
        "ablated_scale": ablated_scale,
        "attribution": by_head(before),
        "ablated_attribution": by_head(free),
    }
