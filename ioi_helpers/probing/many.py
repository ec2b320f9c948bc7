"""Many labelings of the same rows, fitted at once: what a permutation band asks for.

Scikit-learn fits one labeling at a time, and each time prepares the same activations anew. Here the
Newton steps of all labelings are taken together, to the same optimum, which is the only one: the
penalised loss is strictly convex. What does not reach it goes to :func:`fit_probe`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ioi_helpers.probing.activations import require_activations
from ioi_helpers.probing.labels import encode_labels
from ioi_helpers.probing.probes import Probe, fit_probe, require_penalty

MOST_UNKNOWNS = 2048  # of a labeling's equations: beyond, L-BFGS is faster than Newton
MOST_NUMBERS = 2**19  # in the matrices that are solved together: more leave the processor's cache
TOLERANCE = 1e-10  # of the gradient of the mean loss; Newton's last step goes far below
MOST_STEPS = 100


def fit_probes(
    activations: Float[Tensor, "batch d_model"],
    labelings: Sequence[Any],
    *,
    C: float = 1.0,
    standardize: bool = False,
    class_weight: str | None = None,
) -> list[Probe]:
    """Fit logistic regression once for each of several labelings of the same rows.

    The same probes as :func:`fit_probe` gives one after another, to many digits (they carry no
    ``estimator``). With two classes it takes a tenth of the time or less.

    Args:
        activations: Of the training rows, at one role and point.
        labelings: The labels of all rows, once for each probe.
        C, standardize, class_weight: Of :func:`fit_probe`.

    Raises:
        ValueError: As :func:`fit_probe`, or a ``class_weight`` that is neither None nor
            ``"balanced"``.
    """
    values = require_activations(activations)
    require_penalty(C)
    settings: dict[str, Any] = {
        "C": C,
        "standardize": standardize,
        "class_weight": class_weight,
    }
    if class_weight not in (None, "balanced"):
        raise ValueError(f"class_weight must be None or 'balanced', not {class_weight!r}.")
    encoded = [encode_labels(labels, len(values)) for labels in labelings]
    together = [i for i, (_, classes) in enumerate(encoded) if len(classes) == 2]
    found: dict[int, Probe] = {}
    if len(together) > 1 and min(values.shape) <= MOST_UNKNOWNS:
        codes = torch.as_tensor(np.stack([encoded[i][0] for i in together]))
        weights, bias, arrived = _fit(values.cpu(), codes, **settings)
        for i, w, b, done in zip(together, weights, bias, arrived.tolist(), strict=True):
            if done:
                w, b = w.to(values.device), b.to(values.device)
                found[i] = Probe(torch.stack([-w, w]) / 2, torch.stack([-b, b]) / 2, encoded[i][1])
    return [
        found[i] if i in found else fit_probe(values, labels, **settings)
        for i, labels in enumerate(labelings)
    ]


def _fit(
    values: Float[Tensor, "row d_model"],
    codes: Int[Tensor, "labeling row"],
    C: float,
    standardize: bool,
    class_weight: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, biases, and whether they are the optimum, of each labeling."""
    scaler = StandardScaler(with_std=standardize)
    x = torch.as_tensor(scaler.fit_transform(values.numpy()))
    y = codes.to(x)
    share = torch.ones_like(y)
    if class_weight == "balanced":
        ones = y.sum(dim=1, keepdim=True)
        share = torch.where(codes == 1, len(x) / (2 * ones), len(x) / (2 * (len(x) - ones)))
    n, d = x.shape
    # With few rows the equations are those of the rows, otherwise those of the dimensions.
    gram = x @ x.T if n <= 2 * d else None
    each = n * n if gram is not None else d * (n + d)
    at_once = max(1, MOST_NUMBERS // each)
    parts = [
        _newton(x, gram, y[start : start + at_once], share[start : start + at_once], 1 / C)
        for start in range(0, len(y), at_once)
    ]
    weights, bias, arrived = (torch.cat(part) for part in zip(*parts, strict=True))
    if standardize:
        weights = weights / torch.as_tensor(scaler.scale_)
    return weights, bias - weights @ torch.as_tensor(scaler.mean_), arrived


def _newton(
    x: Float[Tensor, "row d"],
    gram: Float[Tensor, "row row"] | None,
    y: Float[Tensor, "labeling row"],
    share: Float[Tensor, "labeling row"],
    penalty: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Minimise the sum of ``share * loss`` plus ``penalty / 2`` times the weights' square."""
    weights, bias = x.new_zeros(len(y), x.shape[1]), x.new_zeros(len(y))
    arrived = torch.zeros(len(y), dtype=torch.bool)
    left = torch.arange(len(y))

    def loss(w: Tensor, f: Tensor, at: Tensor) -> Tensor:
        fit = (share[at] * (F.softplus(f) - y[at] * f)).sum(dim=1)
        return fit + penalty / 2 * w.square().sum(dim=1)

    for _ in range(MOST_STEPS):
        w, b = weights[left], bias[left]
        f = torch.addmm(b[:, None], w, x.T)
        p = f.sigmoid()
        rest = share[left] * (p - y[left])
        slope, slope_b = rest @ x + penalty * w, rest.sum(dim=1)
        steepest = torch.maximum(slope.abs().amax(dim=1), slope_b.abs()) / share[left].sum(dim=1)
        done = steepest <= TOLERANCE
        arrived[left[done]] = True
        if bool(done.all()):
            break
        going = ~done
        left, w, b, f, p = left[going], w[going], b[going], f[going], p[going]
        slope, slope_b = slope[going], slope_b[going]
        curve = share[left] * p * (1 - p)
        step, step_b = _step(x, gram, curve, slope, slope_b, penalty)
        # Halve a step until the loss falls; near the optimum it does at once.
        now = loss(w, f, left)
        falls = (slope * step).sum(dim=1) + slope_b * step_b
        along = torch.addmm(step_b[:, None], step, x.T)
        length = torch.ones_like(b)
        for _ in range(40):
            t = length[:, None]
            after = loss(w + t * step, f + t * along, left)
            short = after <= now + 1e-4 * length * falls + 1e-12 * (1 + now)
            if bool(short.all()):
                break
            length = torch.where(short, length, length / 2)
        weights[left] = w + length[:, None] * step
        bias[left] = b + length * step_b
    return weights, bias, arrived


def _step(
    x: Float[Tensor, "row d"],
    gram: Float[Tensor, "row row"] | None,
    curve: Float[Tensor, "labeling row"],
    slope: Float[Tensor, "labeling d"],
    slope_b: Float[Tensor, " labeling"],
    penalty: float,
) -> tuple[Tensor, Tensor]:
    """Newton's step: the Hessian of weights and bias solved for minus the gradient.

    With A = X' diag(curve) X + penalty and c = X' curve, the two unknowns follow from A^-1 slope
    and A^-1 c. Where there are fewer rows than dimensions A^-1 is had by way of the rows.
    """
    if gram is None:
        curved = x.T * curve[:, None]  # [labeling d row]
        matrix = curved @ x
        matrix.diagonal(dim1=1, dim2=2).add_(penalty)
        c = curved.sum(dim=2)
        solved = torch.cholesky_solve(torch.stack([slope, c], dim=2), torch.linalg.cholesky(matrix))
        of_slope, of_c = solved.unbind(dim=2)
        bends = curve.sum(dim=1) - (c * of_c).sum(dim=1)
    else:
        root = curve.sqrt()
        matrix = (root[:, :, None] * gram).mul_(root[:, None])
        matrix.diagonal(dim1=1, dim2=2).add_(penalty)
        sides = torch.stack([root * (slope @ x.T), root], dim=2)
        solved = torch.cholesky_solve(sides, torch.linalg.cholesky(matrix))
        by_row = (root[:, :, None] * solved).transpose(1, 2) @ x  # [labeling 2 d]
        of_slope, of_c = (slope - by_row[:, 0]) / penalty, by_row[:, 1]
        bends = penalty * (root * solved[:, :, 1]).sum(dim=1)
    along_b = (curve * (of_slope @ x.T)).sum(dim=1)
    step_b = (along_b - slope_b) / bends.clamp_min(torch.finfo(x.dtype).tiny)
    return -of_slope - step_b[:, None] * of_c, step_b
