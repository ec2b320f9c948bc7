"""Activation patching, exactly and many patches at once; and its linear approximation.

Take two runs of a model, *clean* and *corrupted*. Replace one activation of the one by that of the
other, run on, and see how far the answer moves (Meng et al. 2022, "Locating and editing factual
associations in GPT"; Heimersheim and Nanda 2024, "How to use and interpret activation patching").
:func:`patch_sweep` does it for every layer and every position, role or head.

The result is that of ``transformer_lens.patching``, which runs the whole model once a patch. Here
only what a patch can have changed is computed again, for many patches together: see
:mod:`ioi_helpers.forward`. Models that module does not know go through TransformerLens' loop.
"""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.patching import generic_activation_patch
from transformer_lens.tools.analysis import EdgeAttributionConfig, attribution_patch
from transformer_lens.utilities import get_act_name

from ioi_helpers import forward
from ioi_helpers.dataset import ROLES
from ioi_helpers.metrics import logit_diff
from ioi_helpers.patching.result import SweepResult, sweep_result

if TYPE_CHECKING:
    from ioi_helpers.dataset import IOIDataset

STREAM_SITES: tuple[str, ...] = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
"""Sites with one vector a position: the residual stream and what a layer adds to it."""
HEAD_SITES: tuple[str, ...] = ("z", "q", "k", "v", "pattern")
"""Sites with one vector (or row of attention) a position and head."""
SITES: tuple[str, ...] = STREAM_SITES + HEAD_SITES
AXES: tuple[str, ...] = ("layer", "pos", "role", "head")
DEFAULT_MEMORY = 2**30
"""Bytes that a sweep may use for activations, apart from the model: 1 GiB."""

Metric = Callable[..., Tensor]


@dataclass(frozen=True)
class NoisyEmbedding:
    """A corrupted run without other prompts: Gaussian noise on one token's embedding.

    The corruption of Meng et al. 2022 (section 2.1), who take three standard deviations. Zhang and
    Nanda 2023 explain why a counterfactual prompt is usually better: noise takes the model to where
    it has never been.

    Attributes:
        role: The position whose embedding is disturbed, in the clean prompts.
        scale: Standard deviation of the noise, in standard deviations of the model's token
            embeddings.
        seed: Seeds the noise.
    """

    role: str = "S2"
    scale: float = 3.0
    seed: int = 0


# --- the sweep -----------------------------------------------------------------------------------


def patch_sweep(
    model: TransformerBridge,
    clean: IOIDataset,
    corrupted: IOIDataset | NoisyEmbedding,
    site: str = "z",
    axes: Sequence[str] = ("layer", "head"),
    *,
    metric: Metric | Sequence[Metric] | Mapping[str, Metric] | None = None,
    direction: Literal["denoising", "noising"] = "denoising",
    roles: Sequence[str] = ROLES,
    memory: int = DEFAULT_MEMORY,
    engine: forward.Engine = "auto",
    progress: bool = True,
) -> SweepResult:
    """Patch one activation at a time, for all layers and all positions, roles or heads.

    One patch of such a sweep, in plain TransformerLens::

        _, clean_cache = model.run_with_cache(clean.tokens)

        def patch(z, hook):                                    # z: [batch pos head d_head]
            z[:, :, 9] = clean_cache[hook.name][:, :, 9]
            return z

        logits = model.run_with_hooks(
            corrupted.tokens, fwd_hooks=[("blocks.9.attn.hook_z", patch)]
        )
        logit_diff(logits, clean, per_prompt=True)

    ``direction="denoising"`` (the default) runs the corrupted prompts and patches clean activations
    in: what is *enough* to bring the answer back? ``"noising"`` runs the clean prompts and patches
    corrupted activations in: what is *needed*? Where each prompt is the other's counterfactual, as
    on the demo's prompts with ``swap_subject()``, the two are the same runs, mirrored.

    Prompts may differ in length from row to row if the axes hold no ``"pos"``. A prompt and its
    counterfactual have the same length as a rule; then position i of the one is position i of the
    other, and roles are the *clean* prompt's in both. Where some have not, only
    ``"role"`` can say what corresponds to what, and each run's activations are taken at its own
    roles.

    ``resid_mid`` is really edited, skip connection included. (TransformerLens 4.3's
    ``get_act_patch_resid_mid`` changes only what the MLP reads.)

    Args:
        model: Any model that TransformerBridge boots; GPT-2-style ones are fast.
        clean: Prompts with the right answer. Their answers score both runs.
        corrupted: Their counterfactuals, row by row, such as ``clean.swap_subject()`` or
            ``clean.abc()``; or a :class:`NoisyEmbedding`.
        site: The residual stream before, in the middle of or after a block (``resid_pre``,
            ``resid_mid``, ``resid_post``), what attention or the MLP adds to it (``attn_out``,
            ``mlp_out``), or a head's ``z``, ``q``, ``k``, ``v`` or ``pattern``.
        axes: ``"layer"`` and, in any order, ``"head"`` (for the sites of a head) and one of
            ``"pos"`` and ``"role"``. What is not an axis is patched whole: ``("layer", "head")`` is
            a head at all positions. The position of a ``q``, ``z`` or ``pattern`` is that of the
            token that attends; of a ``k`` or ``v`` that of the token attended to.
        metric: Called as ``metric(logits [batch vocab] at END, clean, per_prompt=True)`` and
            returns one value a prompt, as those of :mod:`ioi_helpers.metrics` do. Several may be
            given as a list or under names of your own. ``None`` is the logit difference, which
            needs two columns of ``W_U`` only; others need all logits at END.
        direction: See above.
        roles: The roles of a ``"role"`` axis, in order.
        memory: Bytes that the sweep may use for activations; more patches than fit are done in
            parts, with the same result.
        engine: ``"fast"`` refuses models it does not know, ``"hooks"`` always runs TransformerLens'
            loop (which shows its own progress bar and ignores ``memory``), and ``"auto"`` takes
            that loop where it must, with a printed notice.
        progress: Show a progress bar where there is something to wait for.

    Returns:
        ``values`` is ``[*axes, batch]``, the metric of each prompt with each patch. Patches that
        cannot change anything, such as those before the first token that differs, hold the
        baseline.

    Raises:
        ValueError: Unknown site, axes, direction or role; ``clean`` and ``corrupted`` of different
            sizes; prompts of unequal length where the axes need equal ones; a role that a prompt
            lacks; prompts longer than the model's context; a metric that does not return one value
            a prompt; or a model in training mode.
    """
    axes = tuple(axes) if not isinstance(axes, str) else (axes,)
    _check_request(model, site, axes, direction, engine, memory)
    named_metrics = _named(metric)
    pair = _pair(model, clean, corrupted, site, axes, direction, roles)
    n_heads = model.cfg.n_heads
    if site in ("k", "v"):
        n_heads = getattr(model.cfg, "n_key_value_heads", None) or n_heads
    sizes = {
        "layer": model.cfg.n_layers,
        "head": n_heads,
        "role": len(roles),
        "pos": int(clean.lengths.max()),
    }
    indices = list(itertools.product(*(range(sizes[axis]) for axis in axes)))
    cells = _Cells.of(axes, indices)
    scorer = _Scorer(named_metrics, clean)

    gpt = forward.weights_for(model, engine)
    if gpt is not None:
        values, base, source = _sweep(gpt, site, cells, pair, scorer, memory, progress)
    else:
        values, base, source = _loop(model, site, cells, pair, scorer)
    several = metric is not None and not callable(metric)
    if not several:
        values, base, source = values[0], base[0], source[0]
    clean_value, corrupted_value = (source, base) if direction == "denoising" else (base, source)
    along = {axis: roles if axis == "role" else range(sizes[axis]) for axis in axes}
    return sweep_result(
        values,
        along,
        clean=clean_value,
        corrupted=corrupted_value,
        direction=direction,
        pair_ids=clean.pair_ids,
        site=site,
        metric_names=list(named_metrics),
        has_metric_axis=several,
    )


def _check_request(
    model: TransformerBridge,
    site: str,
    axes: tuple[str, ...],
    direction: str,
    engine: str,
    memory: int,
) -> None:
    if site not in SITES:
        raise ValueError(f"{site!r} is not a site; use one of {', '.join(SITES)}.")
    unknown = [axis for axis in axes if axis not in AXES]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not an axis; use some of {', '.join(AXES)}.")
    if "layer" not in axes or len(set(axes)) < len(axes):
        raise ValueError(f"axes must hold 'layer' and no axis twice, not {axes}.")
    if {"pos", "role"} <= set(axes):
        raise ValueError("axes can hold 'pos' or 'role', but not both: both are positions.")
    if "head" in axes and site in STREAM_SITES:
        raise ValueError(
            f"{site} has no heads; leave 'head' out of axes or use one of {', '.join(HEAD_SITES)}."
        )
    if direction not in ("denoising", "noising"):
        raise ValueError(f"direction must be 'denoising' or 'noising', not {direction!r}.")
    if engine not in forward.ENGINES:
        raise ValueError(f"engine must be 'auto', 'fast' or 'hooks', not {engine!r}.")
    if memory < 1:
        raise ValueError(f"memory must be a positive number of bytes, not {memory}.")
    if model.training:
        raise ValueError("The model is in training mode, where dropout is random; call eval().")


# --- what is compared with what ------------------------------------------------------------------


@dataclass(frozen=True)
class _Pair:
    """The two runs of a sweep: the base is run, with activations of the source patched in.

    Every tensor's first axis is the batch.
    """

    base_tokens: Int[Tensor, "batch pos"]
    source_tokens: Int[Tensor, "batch source_pos"]
    base_last: Int[Tensor, " batch"]
    source_last: Int[Tensor, " batch"]
    # The positions that are patched, in either run; None where all are.
    base_at: Int[Tensor, "batch option"] | None
    source_at: Int[Tensor, "batch option"] | None
    # Where the two differ; None where lengths are unequal, so positions do not correspond.
    first: Int[Tensor, " batch"] | None
    differs: Bool[Tensor, "batch pos"] | None
    # Added to the embeddings: noise, in one of the two runs.
    base_shift: Float[Tensor, "batch pos d_model"] | None = None
    source_shift: Float[Tensor, "batch pos d_model"] | None = None

    def __len__(self) -> int:
        return len(self.base_tokens)

    def part(self, rows: slice) -> _Pair:
        """Some of the prompts."""
        tensors = vars(self).items()
        return replace(self, **{name: x[rows] for name, x in tensors if x is not None})

    def to(self, device: torch.device | str) -> _Pair:
        """All tensors on a device."""
        tensors = vars(self).items()
        return replace(self, **{name: x.to(device) for name, x in tensors if x is not None})


def _pair(
    model: TransformerBridge,
    clean: IOIDataset,
    corrupted: IOIDataset | NoisyEmbedding,
    site: str,
    axes: tuple[str, ...],
    direction: str,
    roles: Sequence[str],
) -> _Pair:
    """Check that the two datasets fit together and the axes, and put them into tensors."""
    noise = None
    if isinstance(corrupted, NoisyEmbedding):
        noise, corrupted = corrupted, clean
    if len(clean) != len(corrupted):
        raise ValueError(
            f"clean has {len(clean)} prompts but corrupted has {len(corrupted)}; they must "
            "correspond row by row."
        )
    equal = clean.lengths.cpu() == corrupted.lengths.cpu()
    aligned = bool(equal.all())
    row = int((~equal).int().argmax())
    unequal = (
        f"Prompt {row} has {int(clean.lengths[row])} tokens, but its counterpart in corrupted "
        f"{int(corrupted.lengths[row])}"
    )
    if not aligned and "role" not in axes:
        raise ValueError(
            f"{unequal}, so their positions do not correspond; make axes hold 'role', or use a "
            "counterfactual such as swap_subject(), which keeps lengths."
        )
    if not aligned and site == "pattern":
        raise ValueError(
            f"{unequal}, so their attention patterns do not correspond; patch q, k, v or z."
        )
    shortest, longest = int(clean.lengths.min()), int(clean.lengths.max())
    if "pos" in axes and shortest != longest:
        raise ValueError(
            f"Prompts have {shortest} to {longest} tokens, so a position number means something "
            "else in each; use 'role' instead of 'pos', or prompts of one length."
        )
    longest = max(longest, int(corrupted.lengths.max()))
    if longest > model.cfg.n_ctx:
        raise ValueError(
            f"The longest prompt has {longest} tokens, but the model's context only "
            f"{model.cfg.n_ctx}; use shorter prompts."
        )

    def trimmed(data: IOIDataset) -> Tensor:
        return data.tokens[:, : int(data.lengths.max())]

    clean_at = corrupted_at = None
    if "role" in axes:
        if isinstance(roles, str) or not roles:
            raise ValueError(f'roles must list one or more roles, such as ("S2",), not {roles!r}.')
        clean_at = _role_positions(clean, roles)
        corrupted_at = clean_at if aligned else _role_positions(corrupted, roles)
    elif "pos" in axes:
        clean_at = corrupted_at = torch.arange(shortest).expand(len(clean), -1)
    first = differs = None
    if aligned:
        first, differs = forward.first_difference(
            trimmed(clean), trimmed(corrupted).to(clean.tokens.device), clean.lengths
        )
    shift = None
    if noise is not None:
        shift, first, differs = _noise(model, clean, noise)
    clean_run = (trimmed(clean), clean.lengths - 1, clean_at, None)
    corrupted_run = (trimmed(corrupted), corrupted.lengths - 1, corrupted_at, shift)
    base, source = (
        (corrupted_run, clean_run) if direction == "denoising" else (clean_run, corrupted_run)
    )
    return _Pair(
        base_tokens=base[0],
        source_tokens=source[0],
        base_last=base[1],
        source_last=source[1],
        base_at=base[2],
        source_at=source[2],
        first=first,
        differs=differs,
        base_shift=base[3],
        source_shift=source[3],
    ).to(model.W_E.device)


def _role_positions(data: IOIDataset, roles: Sequence[str]) -> Int[Tensor, "batch role"]:
    at = torch.stack([data.positions[role] for role in roles], dim=1)
    missing = (at < 0) | (at >= data.lengths[:, None])
    if missing.any():
        row, role = missing.nonzero()[0].tolist()
        raise ValueError(
            f"Prompt {row} has no {roles[role]}: {data.prompts[row]!r}; leave out the role or the "
            "prompt."
        )
    return at


def _noise(
    model: TransformerBridge, clean: IOIDataset, noise: NoisyEmbedding
) -> tuple[Tensor, Tensor, Tensor]:
    """The noise as a tensor [batch pos d_model], and where it is."""
    at = _role_positions(clean, (noise.role,))[:, 0].cpu()
    embeddings = model.W_E
    generator = torch.Generator().manual_seed(noise.seed)
    drawn = torch.randn(len(clean), embeddings.shape[1], generator=generator)
    shift = torch.zeros(len(clean), int(clean.lengths.max()), embeddings.shape[1])
    shift[torch.arange(len(clean)), at] = noise.scale * float(embeddings.std()) * drawn
    differs = torch.zeros(shift.shape[:2], dtype=torch.bool)
    differs[torch.arange(len(clean)), at] = True
    return shift.to(embeddings), at, differs


@dataclass(frozen=True)
class _Cells:
    """The patches of a sweep, one entry each; head or option is None where it is no axis."""

    layer: Int[Tensor, " cell"]
    head: Int[Tensor, " cell"] | None
    option: Int[Tensor, " cell"] | None

    @classmethod
    def of(cls, axes: Sequence[str], indices: Sequence[tuple[int, ...]]) -> _Cells:
        """From the index of each cell along each axis."""
        table = torch.tensor(indices)
        column = {axis: table[:, i] for i, axis in enumerate(axes)}
        return cls(column["layer"], column.get("head"), column.get("role", column.get("pos")))

    def __len__(self) -> int:
        return len(self.layer)

    def to(self, device: torch.device | str) -> _Cells:
        """The same on a device."""
        head, option = (None if x is None else x.to(device) for x in (self.head, self.option))
        return _Cells(self.layer.to(device), head, option)

    def take(self, chosen: Tensor) -> _Cells:
        """Some of the cells."""
        return _Cells(
            self.layer[chosen],
            None if self.head is None else self.head[chosen],
            None if self.option is None else self.option[chosen],
        )


# --- metrics -------------------------------------------------------------------------------------


def _named(metric: Metric | Sequence[Metric] | Mapping[str, Metric] | None) -> dict[str, Metric]:
    if metric is None:
        return {"logit_diff": logit_diff}
    if isinstance(metric, Mapping):
        named = dict(metric)
    elif callable(metric):
        named = {getattr(metric, "__name__", "metric"): metric}
    else:
        named = {getattr(one, "__name__", f"metric_{i}"): one for i, one in enumerate(metric)}
        if len(named) < len(metric):
            raise ValueError("Two metrics have the same name; give them as {name: metric}.")
    if not named or not all(callable(one) for one in named.values()):
        raise ValueError(
            "metric must be a function of (logits, data), a list of such functions or a "
            f"dictionary {{name: function}}, not {metric!r}."
        )
    return named


@dataclass(frozen=True)
class _Scorer:
    """Metrics, and the clean prompts that they score with."""

    metrics: dict[str, Metric]
    data: IOIDataset

    @property
    def needs_all_logits(self) -> bool:
        """Whether any metric is other than the logit difference."""
        return any(metric is not logit_diff for metric in self.metrics.values())

    def part(self, rows: slice) -> _Scorer:
        """For some of the prompts."""
        return _Scorer(self.metrics, self.data[rows])

    def score(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, "metric batch"]:
        """Every metric of one run, from its logits at END."""
        rows = []
        for name, metric in self.metrics.items():
            value = metric(logits, self.data, **_per_prompt(metric))
            if not isinstance(value, Tensor) or value.shape != (len(self.data),):
                shape = tuple(value.shape) if isinstance(value, Tensor) else value
                raise ValueError(
                    f"The metric {name!r} must return one value for each of the {len(self.data)} "
                    f"prompts, not {shape}."
                )
            rows.append(value if value.is_floating_point() else value.float())
        return torch.stack(rows)


def _per_prompt(metric: Metric) -> dict[str, bool]:
    """``per_prompt=True`` where the metric knows it."""
    try:
        parameters = inspect.signature(metric).parameters
    except (TypeError, ValueError):
        return {}
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return {"per_prompt": True} if takes_any or "per_prompt" in parameters else {}


# --- the fast path -------------------------------------------------------------------------------

# What a site's patch needs of either run, beyond `forward.BASE_SITES`.
_NEEDS: dict[str, tuple[str, ...]] = {
    "resid_pre": ("resid_pre",),
    "resid_mid": ("resid_mid",),
    "resid_post": ("resid_pre",),
    "attn_out": ("attn_out",),
    "mlp_out": ("mlp_out",),
    "z": ("z",),
    "q": ("q", "k", "v", "z"),
    "k": ("q", "k", "v", "z"),
    "v": ("q", "k", "v", "z"),
    "pattern": ("q", "k", "v", "z"),
}
# Sites that are a function of the token at their own position alone, in block 0.
_POSITIONWISE = ("resid_pre", "q", "k", "v")
# Sites whose patch at one position can change others' values within the same block.
_SPREADING = ("resid_pre", "k", "v")


@torch.no_grad()
def _sweep(
    gpt: forward.GPT2,
    site: str,
    cells: _Cells,
    pair: _Pair,
    scorer: _Scorer,
    memory: int,
    progress: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Values [metric cell batch] and the unpatched values [metric batch] of base and source."""
    keep = tuple(dict.fromkeys((*forward.BASE_SITES, *_NEEDS[site])))
    width = max(pair.base_tokens.shape[1], pair.source_tokens.shape[1])
    size = gpt.dtype.itemsize
    # Half of the memory is for what the two runs keep, half for runs with patches.
    vectors = (len(keep) + len(_NEEDS[site])) * gpt.n_layers + 16
    per_prompt = width * vectors * gpt.W_E.shape[1] * size
    if scorer.needs_all_logits:
        per_prompt += 4 * gpt.b_U.numel() * size
    rows_at_once = max(1, memory // 2 // per_prompt)
    tokens_at_once = min(forward.MOST_TOKENS, max(1, memory // 2 // gpt.bytes_per_token(width)))
    starts = range(0, len(pair), rows_at_once)
    cells = cells.to(gpt.device)
    n_metrics = len(scorer.metrics)
    values = torch.empty(n_metrics, len(cells), len(pair), dtype=gpt.dtype, device=gpt.device)
    unpatched = torch.empty(n_metrics, 2, len(pair), dtype=gpt.dtype, device=gpt.device)

    with tqdm(
        total=len(starts) * len(cells),
        desc=f"patching {site}",
        disable=not progress,
        leave=False,
        delay=2,
    ) as bar:
        for start in starts:
            rows = slice(start, start + rows_at_once)
            here = pair.part(rows)
            score = _final_score(gpt, scorer.part(rows), memory // 2)
            base = forward.run(gpt, here.base_tokens, here.base_last, keep, shift=here.base_shift)
            source = forward.run(
                gpt,
                here.source_tokens,
                here.source_last,
                _NEEDS[site],
                base=None if here.first is None else base,
                first=here.first,
                shift=here.source_shift,
            )
            unpatched[:, :, rows] = score(torch.stack([base.final, source.final]))
            values[:, :, rows] = unpatched[:, :1, rows]
            counts = _token_counts(gpt, site, cells, here)
            for chunk in forward.by_layer_in_parts(cells.layer.tolist(), counts, tokens_at_once):
                edits, cell, prompt = _edits(gpt, site, cells, chunk, here, base, source)
                final = base.final.repeat(len(chunk), 1, 1)
                final[cell, prompt] = forward.run_edits(gpt, base, edits)
                values[:, chunk, rows] = score(final)
                bar.update(len(chunk))
            bar.update(counts.count(0))
    return values, unpatched[:, 0], unpatched[:, 1]


def _final_score(
    gpt: forward.GPT2, scorer: _Scorer, memory: int
) -> Callable[[Float[Tensor, "cell batch d_model"]], Float[Tensor, "metric cell batch"]]:
    """A function from final residual streams at END to every metric."""
    n_metrics, batch = len(scorer.metrics), len(scorer.data)

    def from_two_columns(final: Tensor) -> Tensor:
        diffs = forward.logit_diffs(gpt, final, scorer.data.io_tokens, scorer.data.s_tokens)
        return diffs.expand(n_metrics, -1, -1)

    def from_all_logits(final: Tensor) -> Tensor:
        # A metric may need a few copies of the logits, as a softmax does.
        at_once = max(1, memory // (4 * batch * gpt.b_U.numel() * gpt.dtype.itemsize))
        scores: list[Tensor] = []
        for part in final.split(at_once):
            logits = forward.unembed(gpt, part.flatten(0, 1)).unflatten(0, (-1, batch))
            scores.extend(scorer.score(run) for run in logits)
        return torch.stack(scores, dim=1)

    return from_all_logits if scorer.needs_all_logits else from_two_columns


def _rows(
    gpt: forward.GPT2, site: str, layer: int, cells: _Cells, pair: _Pair
) -> tuple[Int[Tensor, "cell batch"], Bool[Tensor, "cell batch"]]:
    """For cells of one layer: the first position that is edited, and whether anything can change.

    Nothing can where the two runs are equal at the site, or where the edit cannot reach END.
    """
    n_cells, batch = len(cells), len(pair)
    if cells.option is None:
        assert pair.first is not None
        first = pair.first.expand(n_cells, batch)
        return first, first <= pair.base_last
    assert pair.base_at is not None
    first = pair.base_at[:, cells.option].T
    active = torch.ones_like(first, dtype=torch.bool)
    if pair.first is not None:
        active = first >= pair.first
    if pair.differs is not None and layer == 0 and site in _POSITIONWISE:
        active = active & pair.differs.gather(1, first.T).T
    if layer == gpt.n_layers - 1 and site not in _SPREADING:
        active = active & (first == pair.base_last)
    return first, active


def _token_counts(gpt: forward.GPT2, site: str, cells: _Cells, pair: _Pair) -> list[int]:
    """How many tokens each cell's runs have; 0 where it changes nothing."""
    counts = torch.zeros(len(cells), dtype=torch.long, device=gpt.device)
    for layer in range(gpt.n_layers):
        here = (cells.layer == layer).nonzero()[:, 0]
        first, active = _rows(gpt, site, layer, cells.take(here), pair)
        counts[here] = ((pair.base_last + 1 - first) * active).sum(dim=1)
    return counts.tolist()


def _edits(
    gpt: forward.GPT2,
    site: str,
    cells: _Cells,
    chunk: Sequence[int],
    pair: _Pair,
    base: forward.Run,
    source: forward.Run,
) -> tuple[list[forward.Edit], Int[Tensor, " row"], Int[Tensor, " row"]]:
    """The edits that patch a chunk's cells, and which cell (of the chunk) and prompt a row is."""
    numbers = torch.tensor(chunk, device=gpt.device)
    layers = cells.layer[numbers]
    edits, cell_of, prompt_of = [], [], []
    for layer in layers.unique().tolist():
        places = (layers == layer).nonzero()[:, 0]
        group = cells.take(numbers[places])
        first, active = _rows(gpt, site, layer, group, pair)
        cell, prompt = active.nonzero(as_tuple=True)
        spans = forward.Spans(prompt, first[cell, prompt], pair.base_last[prompt])
        rows = group.take(cell)
        if site in STREAM_SITES:
            edits.append(_stream_edit(site, layer, rows.option, spans, pair, base, source))
        else:
            edits.append(_head_edit(gpt, site, layer, rows, spans, pair, base, source))
        cell_of.append(places[cell])
        prompt_of.append(prompt)
    return edits, torch.cat(cell_of), torch.cat(prompt_of)


def _stream_edit(
    site: str,
    layer: int,
    option: Int[Tensor, " row"] | None,
    spans: forward.Spans,
    pair: _Pair,
    base: forward.Run,
    source: forward.Run,
) -> forward.Edit:
    """The residual stream with the source's vector at one position of each row, or at all."""
    prompt, to = spans.at
    if option is None:
        tokens, came_from = torch.arange(len(to), device=to.device), to
    else:
        assert pair.source_at is not None
        tokens = spans.starts
        prompt, to, came_from = spans.prompt, spans.first, pair.source_at[spans.prompt, option]
    # After a block is before the next one.
    middle = site in ("resid_mid", "attn_out")
    where = layer if middle or site == "resid_pre" else layer + 1
    if site in ("attn_out", "mlp_out"):
        stream = base["resid_mid" if middle else "resid_pre"][where][prompt, to]
        values = stream + source[site][layer][prompt, came_from] - base[site][layer][prompt, to]
    else:
        values = source["resid_mid" if middle else "resid_pre"][where][prompt, came_from]
    return forward.Edit(where, middle, spans, tokens, values)


def _head_edit(
    gpt: forward.GPT2,
    site: str,
    layer: int,
    rows: _Cells,
    spans: forward.Spans,
    pair: _Pair,
    base: forward.Run,
    source: forward.Run,
) -> forward.Edit:
    """The residual stream in the middle of the block, with what the patched heads add to it.

    A head reads nothing of the other heads of its layer. So all heads can be given the source's q
    (or k, v, pattern) at once, and each row takes the z of its own head.
    """
    if rows.option is None or site in ("k", "v"):
        tokens = torch.arange(len(spans.row), device=gpt.device)
    else:
        tokens = spans.starts
    row = spans.row[tokens]
    prompt, to = spans.prompt[row], spans.pos[tokens]
    patched = base["z"][layer][prompt, to]
    if rows.option is None:
        z = _patched_z(gpt, site, layer, None, pair, base, source)
        patched = z[prompt, to]
    else:
        for option in rows.option.unique().tolist():
            z = _patched_z(gpt, site, layer, option, pair, base, source)
            here = (rows.option[row] == option).nonzero()[:, 0]
            patched[here] = z[prompt[here], to[here]]
    change = patched - base["z"][layer][prompt, to]
    W_O = gpt.blocks[layer].W_O.to(gpt.dtype)
    values = base["resid_mid"][layer][prompt, to]
    if rows.head is None:
        values += change.flatten(1) @ W_O
    else:
        d_head = change.shape[-1]
        for head in rows.head.unique().tolist():
            here = (rows.head[row] == head).nonzero()[:, 0]
            values[here] += change[here, head] @ W_O[head * d_head : (head + 1) * d_head]
    return forward.Edit(layer, True, spans, tokens, values)


def _patched_z(
    gpt: forward.GPT2,
    site: str,
    layer: int,
    option: int | None,
    pair: _Pair,
    base: forward.Run,
    source: forward.Run,
) -> Float[Tensor, "batch pos head d_head"]:
    """The base run's z, with every head's q, k, v, z or pattern from the source.

    Args:
        option: Which position of the pair is patched; all of them if it is None.
    """
    prompts = torch.arange(len(pair), device=gpt.device)

    def patched(name: str) -> Float[Tensor, "batch pos head d_head"]:
        if name != site:
            return base[name][layer]
        if option is None:
            return source[name][layer]
        assert pair.base_at is not None
        assert pair.source_at is not None
        value = base[name][layer].clone()
        value[prompts, pair.base_at[:, option]] = source[name][layer][
            prompts, pair.source_at[:, option]
        ]
        return value

    if site == "z":
        return patched("z")
    whole = forward.Spans(prompts, torch.zeros_like(pair.base_last), pair.base_last)
    if site == "pattern":
        q, k = source["q"][layer], source["k"][layer]
    else:
        q, k = patched("q"), patched("k")
    pattern = forward.attention_pattern(gpt, layer, q[whole.at], k[whole.at], whole, whole)
    z = base["z"][layer].clone()
    z[whole.at] = forward.attend(pattern, patched("v")[whole.at], whole, whole)
    return z


# --- TransformerLens' loop -----------------------------------------------------------------------


def _loop(
    model: TransformerBridge, site: str, cells: _Cells, pair: _Pair, scorer: _Scorer
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as `_sweep`, by TransformerLens' own loop: one run of the model a patch."""
    # resid_mid cannot be edited there; the same change can be added to attention's output.
    edited = "attn_out" if site == "resid_mid" else site
    layers = range(model.cfg.n_layers)
    names = [get_act_name(name, layer) for name in {site, edited} for layer in layers]
    missing = [name for name in names if name not in model.hook_dict]
    if missing:
        raise ValueError(
            f"This model has no {missing[0]}, so {site} cannot be patched; see model.hook_dict."
        )
    prompts = torch.arange(len(pair), device=pair.base_tokens.device)

    def cache(tokens: Tensor, shift: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad(), _shifted(model, shift):
            logits, kept = model.run_with_cache(tokens, names_filter=lambda name: name in names)
        return logits, kept.cache_dict

    source_logits, kept = cache(pair.source_tokens, pair.source_shift)
    if site == "resid_mid":
        _, unpatched = cache(pair.base_tokens, pair.base_shift)
        kept = {get_act_name(edited, layer): kept[get_act_name(site, layer)] for layer in layers}

    def patch(activation: Tensor, index: Sequence[int], source: Tensor) -> Tensor:
        layer, head, option = index
        heads: Any = slice(None) if head < 0 else head
        if site == "pattern":  # [batch head query key]
            if option < 0:
                activation[:, heads] = source[:, heads]
            else:
                at = pair.base_at[:, option]  # type: ignore[index]
                activation[prompts, heads, at] = source[prompts, heads, at]
            return activation
        if option < 0:
            to = came_from = (slice(None), slice(None))
        else:
            to = (prompts, pair.base_at[:, option])  # type: ignore[assignment, index]
            came_from = (prompts, pair.source_at[:, option])  # type: ignore[assignment, index]
        if site == "resid_mid":
            activation[to] += source[came_from] - unpatched[get_act_name(site, layer)][to]
        elif activation.ndim == 3:
            activation[to] = source[came_from]
        else:
            activation[(*to, heads)] = source[(*came_from, heads)]
        return activation

    def scored(name: str) -> Callable[[Tensor], Tensor]:
        one = _Scorer({name: scorer.metrics[name]}, scorer.data)
        return lambda logits: one.score(logits[prompts, pair.base_last])[0]

    nowhere = torch.full_like(cells.layer, -1)
    columns = {
        "layer": cells.layer,
        "head": nowhere if cells.head is None else cells.head,
        "option": nowhere if cells.option is None else cells.option,
    }
    with torch.no_grad(), _shifted(model, pair.base_shift):
        result = generic_activation_patch(
            model,
            pair.base_tokens,
            kept,
            {name: scored(name) for name in scorer.metrics},
            patch,
            edited,
            index_df=pd.DataFrame({name: column.tolist() for name, column in columns.items()}),
            reduce="none",
            baseline=True,
        )
    unpatched_source = scorer.score(source_logits[prompts, pair.source_last])
    return result.values, result.baseline, unpatched_source.to(result.values)


def _shifted(model: TransformerBridge, shift: Tensor | None) -> AbstractContextManager[Any]:
    """Noise is added to the embeddings as long as the context lasts."""
    if shift is None:
        return nullcontext()

    def add(embedding: Tensor, hook: Any) -> Tensor:
        return embedding + shift

    context: AbstractContextManager[Any] = model.hooks(fwd_hooks=[("hook_embed", add)])
    return context


# --- attribution patching ------------------------------------------------------------------------


def _with_gradient(embedding: Tensor, hook: Any) -> Tensor:
    """Lets gradients reach the activations of a model whose parameters are frozen."""
    return embedding if embedding.requires_grad else embedding.detach().requires_grad_(True)


ATTRIBUTION_SITES: dict[str, str] = {"z": "attn_head_out", "mlp_out": "mlp_out"}
"""The sites that TransformerLens' attribution patching scores, and its names for them."""


def attribution_patch_sweep(
    model: TransformerBridge,
    clean: IOIDataset,
    corrupted: IOIDataset,
    site: str = "z",
    axes: Sequence[str] = ("layer", "head"),
    *,
    metric: Metric | None = None,
    direction: Literal["denoising", "noising"] = "denoising",
    roles: Sequence[str] = ROLES,
    progress: bool = True,
) -> SweepResult:
    """What `patch_sweep` finds, estimated from one gradient a prompt: attribution patching.

    To first order, replacing an activation a by a' changes the metric by (a' - a) times the
    metric's gradient at a, in the run that is patched (Nanda 2023, "Attribution patching";
    Kramar et al. 2024, "AtP*"). One forward and backward pass give all patches at once. The
    estimate is poor where the model is far from linear, above all for ``resid_pre`` and early
    layers, where LayerNorm and attention saturate: compare it with the exact sweep.

    The work is done by ``transformer_lens.tools.analysis.attribution_patch``, one prompt at a time.
    What is added here: values a prompt, positions by role, both directions, and the same labels as
    those of `patch_sweep`.

    Args:
        model: A model that TransformerBridge boots. Its parameters may be frozen.
        clean, corrupted, axes, direction, roles: As for `patch_sweep`; lengths must be equal.
        site: ``"z"`` or ``"mlp_out"``.
        metric: As for `patch_sweep`, and differentiable.
        progress: Show a progress bar where there is something to wait for.

    Returns:
        ``values`` is the baseline plus the estimated effect, ``[*axes, batch]``; ``effect()`` is
        the estimate.

    Raises:
        ValueError: As for `patch_sweep`, or another site.
    """
    axes = tuple(axes) if not isinstance(axes, str) else (axes,)
    if site not in ATTRIBUTION_SITES:
        raise ValueError(
            f"Attribution patching covers the sites {' and '.join(ATTRIBUTION_SITES)}, not "
            f"{site!r}; use patch_sweep for others."
        )
    _check_request(model, site, axes, direction, "auto", 1)
    if not clean.lengths.cpu().equal(corrupted.lengths.cpu()):
        raise ValueError(
            "Attribution patching needs prompts as long as their counterparts; use a "
            "counterfactual such as swap_subject(), which keeps lengths."
        )
    pair = _pair(model, clean, corrupted, site, axes, direction, roles)
    metrics = _named(metric)
    scorer = _Scorer(metrics, clean)
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    effects = []
    runs: list[Tensor] = []
    for i in tqdm(
        range(len(clean)), desc="attribution", disable=not progress, leave=False, delay=2
    ):
        one, end = scorer.part(slice(i, i + 1)), int(pair.base_last[i])
        base, source = (
            tokens[i : i + 1, : end + 1] for tokens in (pair.base_tokens, pair.source_tokens)
        )

        def at_end(logits: Tensor, one: _Scorer = one) -> Tensor:
            return one.score(logits[:, -1])[0, 0]

        with (
            warnings.catch_warnings(),
            torch.enable_grad(),
            model.hooks(fwd_hooks=[("hook_embed", _with_gradient)]),
        ):
            # With frozen parameters the gradient starts at the embedding's own hook.
            warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
            found = attribution_patch(model, source, base, at_end, EdgeAttributionConfig())
        scores = torch.zeros(n_layers, n_heads, end + 1)
        for node, score in found.node_scores.items():
            if node.kind == ATTRIBUTION_SITES[site]:
                scores[node.layer, node.head or 0, node.position] = score
        at = None if pair.base_at is None else pair.base_at[i].cpu()
        effects.append(scores.sum(dim=-1, keepdim=True) if at is None else scores[:, :, at])
        with torch.no_grad():
            runs.append(torch.stack([one.score(model(run)[:, -1])[:, 0] for run in (base, source)]))
    effect = torch.stack(effects, dim=-1)  # [layer head position batch]
    if "head" not in axes:
        effect = effect.sum(dim=1, keepdim=True)
    order = {"layer": 0, "head": 1, "role": 2, "pos": 2}
    spare = sorted({0, 1, 2} - {order[axis] for axis in axes})
    effect = effect.permute(*(order[axis] for axis in axes), 3, *spare).flatten(len(axes))
    # ... the axes left over have length 1, so that flattening leaves the batch.
    unpatched = torch.stack(runs, dim=-1)  # [run metric batch]
    base_value, source_value = unpatched[0, 0].cpu(), unpatched[1, 0].cpu()
    clean_value, corrupted_value = (
        (source_value, base_value) if direction == "denoising" else (base_value, source_value)
    )
    sizes = dict(zip(axes, effect.shape[:-1], strict=True))
    along = {axis: roles if axis == "role" else range(sizes[axis]) for axis in axes}
    return sweep_result(
        base_value + effect,
        along,
        clean=clean_value,
        corrupted=corrupted_value,
        direction=direction,
        pair_ids=clean.pair_ids,
        method="attribution patching",
        site=site,
        metric_names=list(metrics),
    )
