"""What the residual stream and the heads hold at a role, and pictures of it.

A *point* names a place along the residual stream as the LRQP post does: ``"L6.pre"`` is before
block 6, ``"L6.mid"`` between its attention and its MLP, ``"L6.post"`` after it (and so the same
stream as ``"L7.pre"``). Prompts may differ in length: each is read where its role stands.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.attribution import cache_at_role
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.names import existing_head

PLACES: tuple[str, ...] = ("pre", "mid", "post")
"""Where in a block: before it, between attention and MLP, after it."""


def parse_point(point: str) -> tuple[int, str]:
    """The layer and the place of a point that is written like ``"L6.mid"``.

    Raises:
        ValueError: The text has another form.
    """
    match = re.fullmatch(r"L(\d+)\.(pre|mid|post)", point) if isinstance(point, str) else None
    if match is None:
        raise ValueError(
            f'{point!r} is not a point of the residual stream; write "L6.pre", "L6.mid" or '
            '"L6.post", with the layer counted from 0.'
        )
    return int(match[1]), match[2]


def residual_points(model: TransformerBridge) -> list[str]:
    """All points of a model in order, each stream once: L0.pre, L0.mid, L1.pre, ..., the last post.

    The post of a block is the pre of the next and is left out, except after the last block. A model
    without MLPs has no points in the middle of a block.
    """
    n_layers = model.cfg.n_layers
    places = ["pre"] if model.cfg.attn_only else ["pre", "mid"]
    points = [f"L{layer}.{place}" for layer in range(n_layers) for place in places]
    return [*points, f"L{n_layers - 1}.post"]


def point_hook(model: TransformerBridge, point: str) -> str:
    """The hook at which a point of the residual stream can be *read*.

    Reading is all that the hook in the middle of a block is good for: in TransformerLens 4.3 an
    edit there misses the skip connection. To edit, see :mod:`ioi_helpers.lrqp.editing`.

    Raises:
        ValueError: The text is no point, or the model has no such point.
    """
    layer, place = parse_point(point)
    name = f"blocks.{layer}.hook_resid_{place}"
    if layer >= model.cfg.n_layers or name not in model.hook_dict:
        raise ValueError(
            f"This model has no point {point}; its {model.cfg.n_layers} layers are counted from 0"
            + ("." if layer >= model.cfg.n_layers else f", and none has a hook_resid_{place}.")
        )
    return name


def activations_at(
    model: TransformerBridge, data: IOIDataset, role: str, point: str, *, batch_size: int = 64
) -> Float[Tensor, "batch d_model"]:
    """The residual stream at one point, at the position of a role in each prompt.

    The same for one prompt, in plain TransformerLens::

        _, cache = model.run_with_cache(data.tokens[i])
        cache["resid_mid", layer][0, data.positions[role][i]]

    Args:
        model: A model that TransformerBridge boots.
        data: Prompts; they may differ in length.
        role: ``"IO"``, ``"S1"``, ``"S1+1"``, ``"S2"`` or ``"END"``.
        point: Such as ``"L6.mid"``.
        batch_size: Prompts run at once.

    Returns:
        ``[batch d_model]``, on the model's device. Half precision becomes float32.

    Raises:
        ValueError: An unknown role or point, or a model in training mode.
    """
    return residual_activations(model, data, role, [point], batch_size=batch_size)[point]


def residual_activations(
    model: TransformerBridge,
    data: IOIDataset,
    role: str,
    points: Sequence[str] | None = None,
    *,
    batch_size: int = 64,
) -> dict[str, Float[Tensor, "batch d_model"]]:
    """The residual stream at several points from a single pass over the prompts.

    Args:
        points: By default all of them, :func:`residual_points`.
        model, data, role, batch_size: As for :func:`activations_at`.

    Returns:
        point -> ``[batch d_model]``, in the order of ``points``.

    Raises:
        ValueError: As for :func:`activations_at`, or ``points`` is one text instead of several.
    """
    if isinstance(points, str):
        raise ValueError(f"points must list points, not be the one text {points!r}.")
    chosen = residual_points(model) if points is None else list(points)
    hooks = {point: point_hook(model, point) for point in chosen}
    parts: dict[str, list[Tensor]] = {point: [] for point in chosen}
    order = []
    for rows in in_parts(data.positions[role], batch_size):
        cache = cache_at_role(model, data[rows], role, list(dict.fromkeys(hooks.values())))
        for point, hook in hooks.items():
            parts[point].append(cache.cache_dict[hook][:, 0])
        order.append(rows)
    return {point: in_order(found, order) for point, found in parts.items()}


def head_outputs(
    model: TransformerBridge,
    data: IOIDataset,
    role: str,
    heads: Sequence[str],
    *,
    batch_size: int = 64,
) -> dict[str, Float[Tensor, "batch d_model"]]:
    """What heads write into the residual stream at a role: ``z @ W_O``, without the bias ``b_O``.

    Hooks that are on the model stay on, so called under :func:`ioi_helpers.lrqp.edited` (with a
    batch size that takes all rows at once) it shows what the heads write after an intervention.

    Args:
        heads: Such as ``["L7H3", "L8H6"]``.
        model, data, role, batch_size: As for :func:`activations_at`.

    Returns:
        head -> ``[batch d_model]``, of rank d_head.

    Raises:
        ValueError: As for :func:`activations_at`, or a head that the model does not have.
    """
    where = {head: existing_head(model, head) for head in heads}
    names = {layer: f"blocks.{layer}.attn.hook_z" for layer, _ in where.values()}
    parts: dict[str, list[Tensor]] = {head: [] for head in where}
    order = []
    for rows in in_parts(data.positions[role], batch_size):
        cache = cache_at_role(model, data[rows], role, list(names.values()))
        for head, (layer, index) in where.items():
            z = cache.cache_dict[names[layer]][:, 0, index]
            parts[head].append(z @ model.blocks[layer].attn.W_O[index].to(z))
        order.append(rows)
    return {head: in_order(found, order) for head, found in parts.items()}


def in_parts(lengths: Int[Tensor, " batch"], batch_size: int) -> Iterator[Int[Tensor, " rows"]]:
    """Row numbers in parts of at most ``batch_size``, with a bar if it takes long.

    Rows that are read up to about the same position come together, so that little of what is run
    is padding; where everything fits into one part the order is kept.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
    rows = torch.arange(len(lengths))
    if len(rows) > batch_size:
        rows = lengths.cpu().argsort(stable=True)
    starts = range(0, len(rows), batch_size)
    for start in tqdm(starts, desc="prompts", leave=False, delay=5):
        yield rows[start : start + batch_size]


def in_order(parts: Sequence[Tensor], rows: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Join what came of :func:`in_parts`, in the rows' own order."""
    joined = torch.cat(list(parts), dim=dim)
    return joined.index_select(dim, torch.cat(list(rows)).argsort().to(joined.device))


# --- pictures -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SVDProjection:
    """Activations seen along their principal components.

    Attributes:
        coordinates: ``[batch component]``, the centred activations along each component, in the
            activations' units.
        components: ``[component d_model]``, orthonormal, largest variance first. The sign of each
            is chosen so that its entry of largest size is positive.
        mean: ``[d_model]``, what was subtracted.
        explained: ``[component]``, each component's share of the total variance, 0 to 1.
    """

    coordinates: Float[Tensor, "batch component"]
    components: Float[Tensor, "component d_model"]
    mean: Float[Tensor, " d_model"]
    explained: Float[Tensor, " component"]

    def project(
        self, activations: Float[Tensor, "batch d_model"]
    ) -> Float[Tensor, "batch component"]:
        """Coordinates of other activations in the same picture."""
        return (activations.to(self.mean) - self.mean) @ self.components.T


def svd_projection(
    activations: Float[Tensor, "batch d_model"], n_components: int = 2
) -> SVDProjection:
    """Subtract the mean, decompose, and keep the largest components (the LRQP post's pictures).

    No label is used. Where the classes separate all the same, the variable is, in the post's words,
    the primary thing represented there.

    Args:
        activations: At one point and role.
        n_components: How many components to keep.

    Raises:
        ValueError: There are fewer prompts or dimensions than components, or values that are not
            finite.
    """
    values = require_activations(activations)
    if not 1 <= n_components <= min(values.shape):
        raise ValueError(
            f"{n_components} components cannot be had from activations of shape "
            f"{tuple(values.shape)}; ask for 1 to {min(values.shape)}."
        )
    mean = values.mean(dim=0)
    _, singular, components = torch.linalg.svd(values - mean, full_matrices=False)
    kept = components[:n_components]
    largest = kept.gather(1, kept.abs().argmax(dim=1, keepdim=True))
    kept = kept * torch.where(largest < 0, -1.0, 1.0)
    variance = singular.square()
    explained = variance[:n_components] / variance.sum().clamp_min(1e-300)
    return SVDProjection((values - mean) @ kept.T, kept, mean, explained)


def class_share(
    coordinates: Float[Tensor, "batch component"], labels: Sequence[Any]
) -> Float[Tensor, " component"]:
    """The share of each component's variance that lies between the classes, 0 to 1.

    1 where a component only says which class a prompt belongs to, 0 where the classes have the same
    mean (the correlation ratio, eta squared). The first principal component *is* the variable where
    its share is near 1.

    Raises:
        ValueError: Another number of labels than rows.
    """
    codes, classes = encode_labels(labels, len(coordinates))
    index = torch.as_tensor(codes, device=coordinates.device)
    centred = coordinates - coordinates.mean(dim=0)
    between = sum(
        (index == code).sum() * centred[index == code].mean(dim=0).square()
        for code in range(len(classes))
    )
    total = centred.square().sum(dim=0)
    return torch.as_tensor(between) / total.clamp_min(torch.finfo(total.dtype).tiny)


# --- labels -------------------------------------------------------------------------------------


def labels_of(data: IOIDataset, variable: str) -> list[Any]:
    """The value of a variable in each prompt, for a probe to predict.

    Args:
        data: The prompts.
        variable: ``"order"`` (ABBA or BABA), ``"template"``, or of a role that is a name:
            ``"IO position"``, ``"S1 position"`` (which token of the prompt it is), ``"IO name"``,
            ``"S name"``.

    Raises:
        ValueError: There is no such variable.
    """
    made: dict[str, Any] = {
        "order": lambda: list(data.orders),
        "template": lambda: data.template_ids.tolist(),
        "IO position": lambda: data.positions["IO"].tolist(),
        "S1 position": lambda: data.positions["S1"].tolist(),
        "IO name": lambda: [names.IO for names in data.names],
        "S name": lambda: [names.S1 for names in data.names],
    }
    if variable not in made:
        raise ValueError(f"{variable!r} is not a variable; use one of {', '.join(made)}.")
    values: list[Any] = made[variable]()
    return values


def encode_labels(labels: Any, n: int) -> tuple[np.ndarray[Any, Any], tuple[Any, ...]]:
    """Labels as class numbers and the classes, sorted, as plain Python values.

    Raises:
        ValueError: Another number of labels than ``n``, more than one axis, or fractions.
    """
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if values.shape != (n,):
        raise ValueError(
            f"There are {n} activations, but labels of shape {values.shape}; give one label a row."
        )
    if values.dtype.kind == "f" and not np.array_equal(values, np.round(values)):
        raise ValueError("Labels are classes, not measurements; give text or whole numbers.")
    classes, codes = np.unique(values, return_inverse=True)
    return codes, tuple(classes.tolist())


def to_float64(values: Tensor) -> Tensor:
    """In float64, on the same device, or on the CPU where that has no float64 (Apple's MPS)."""
    return (values.cpu() if values.device.type == "mps" else values).to(torch.float64)


def require_activations(activations: Any) -> Float[Tensor, "batch d_model"]:
    """Activations as a finite float64 matrix without gradient, on the device they were on.

    Float64 lives on the CPU where the device (Apple's MPS) does not have it.

    Raises:
        ValueError: They are not ``[batch d_model]``, or hold NaN or infinity.
    """
    values = require_matrix(activations)
    # One pass, nothing allocated: a sum is finite only if all its terms are.
    if not math.isfinite(values.sum().item()):
        raise ValueError("The activations hold NaN or infinity.")
    return values


def require_matrix(activations: Any) -> Float[Tensor, "batch d_model"]:
    """As :func:`require_activations`, without looking at the values."""
    values = torch.as_tensor(activations).detach()
    if values.ndim != 2 or not values.numel():
        raise ValueError(
            f"Activations must be [batch, d_model], not of shape {tuple(values.shape)}; take them "
            "at one role and one point."
        )
    return to_float64(values)
