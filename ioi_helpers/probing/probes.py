"""Logistic probes: what a linear classifier can read off activations.

A probe is kept low in capacity on purpose (logistic regression, as in the LRQP post): a strong
enough classifier finds things that the model itself never uses. And that a probe can read a
variable does not show that the model does; for that, intervene (:mod:`ioi_helpers.lrqp`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ioi_helpers.probing.activations import require_activations, to_float64
from ioi_helpers.probing.labels import encode_labels


@dataclass(frozen=True)
class Probe:
    """A softmax over linear functions of the activation, one per class, in float64.

    The weights act on raw activations, whatever scaling the classifier was fitted through, and are
    centred over classes: adding the same vector to every class changes no probability.

    Attributes:
        weights: ``[class d_model]``, in nats per unit of activation.
        bias: ``[class]``, in nats.
        classes: The labels, in the order of the rows.
        estimator: The fitted scikit-learn classifier or pipeline.
    """

    weights: Float[Tensor, "class d_model"]
    bias: Float[Tensor, " class"]
    classes: tuple[Any, ...]
    estimator: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        n = len(self.classes)
        if n < 2:
            raise ValueError(
                "A probe needs at least two classes to tell apart; there is only "
                f"{self.classes[0]!r}."
                if self.classes
                else "A probe needs at least two classes to tell apart."
            )
        if self.weights.ndim != 2 or len(self.weights) != n or self.bias.shape != (n,):
            raise ValueError(
                f"A probe with {n} classes needs weights [{n}, d_model] and {n} biases, not "
                f"{tuple(self.weights.shape)} and {tuple(self.bias.shape)}."
            )
        if not bool(torch.isfinite(self.weights).all() & torch.isfinite(self.bias).all()):
            raise ValueError("The probe's weights hold NaN or infinity; was it fitted?")

    def logits(self, activations: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch class"]:
        """Log probability of each class up to a constant per row, in nats."""
        values = to_float64(activations)
        return torch.addmm(self.bias.to(values), values, self.weights.to(values).T)

    def log_probs(
        self, activations: Float[Tensor, "batch d_model"]
    ) -> Float[Tensor, "batch class"]:
        """Log probability of each class, in nats."""
        return self.logits(activations).log_softmax(dim=-1)

    def predict(self, activations: Float[Tensor, "batch d_model"]) -> list[Any]:
        """The most probable class of each row: what the probe says the activation believes."""
        return [self.classes[i] for i in self.logits(activations).argmax(dim=-1).tolist()]

    def codes(self, labels: Any, n: int) -> Int[Tensor, " batch"]:
        """Labels as row numbers of :attr:`weights`; a single label stands for all ``n`` rows.

        Raises:
            ValueError: A label that is no class of this probe, or another number of them than n.
        """
        values = labels
        if values is None:
            raise ValueError("No classes were given; name one for each row, or one for all.")
        if isinstance(values, Tensor | np.ndarray):
            values = values.tolist()
        if isinstance(values, str | int | float) or np.isscalar(values):
            values = [values] * n
        values = list(values)
        if len(values) != n:
            raise ValueError(f"There are {n} activations, but {len(values)} labels for them.")
        number = {label: code for code, label in enumerate(self.classes)}
        try:
            return torch.from_numpy(np.fromiter(map(number.__getitem__, values), np.int64, n))
        except KeyError as error:
            shown = ", ".join(repr(label) for label in self.classes[:6])
            more = ", ..." if len(self.classes) > 6 else ""
            raise ValueError(
                f"{error.args[0]!r} is not a class of this probe; it knows {shown}{more}."
            ) from None

    def direction(self) -> Float[Tensor, " d_model"]:
        """The unit vector along which the log odds of the second of two classes grow fastest.

        Raises:
            ValueError: The probe has more than two classes.
        """
        if len(self.classes) != 2:
            raise ValueError(
                f"A probe with {len(self.classes)} classes has no single direction; use its "
                "weights."
            )
        difference = self.weights[1] - self.weights[0]
        return difference / difference.norm()


def fit_probe(
    activations: Float[Tensor, "batch d_model"],
    labels: Any,
    *,
    C: float = 1.0,
    standardize: bool = False,
    class_weight: str | None = None,
    max_iter: int = 5000,
) -> Probe:
    """Fit logistic regression (scikit-learn), two classes or more.

    Fit on training rows only, and judge the probe on others: :func:`evaluate_probe`.

    Args:
        activations: Of the training rows, at one role and point.
        labels: One for each row: text or whole numbers; see :func:`labels_of`.
        C: Inverse strength of the L2 penalty, scikit-learn's default. With a weaker penalty (larger
            C) a probe that separates its classes perfectly grows more confident without bound.
        standardize: Fit on activations scaled to unit variance, which changes what the penalty
            means, and blows up the rounding noise of dimensions that hardly vary. The returned
            weights are those for raw activations all the same.
        class_weight: None or ``"balanced"``, for classes of unequal size.
        max_iter: Of the optimiser.

    Returns:
        The probe; its weights are at the optimum to many digits where K times d_model is at most
        a few thousand (Newton), and to scikit-learn's usual tolerance beyond (L-BFGS).

    Raises:
        ValueError: A single class, shapes that do not fit, or a C that is not positive.
    """
    values = require_activations(activations)
    codes, classes = encode_labels(labels, len(values))
    if len(classes) < 2:
        raise ValueError(
            f"All {len(values)} labels are {classes[0]!r}; a probe needs at least two classes to "
            "tell apart."
        )
    require_penalty(C)
    # Newton's method reaches the optimum, so that results do not depend on where an optimiser
    # happened to stop; its Hessian has (K d_model) squared entries.
    # With fewer rows than dimensions the weights lie in the rows' span: there the problem is small.
    narrow = len(values) < values.shape[1]
    width = min(values.shape) * (len(classes) if len(classes) > 2 else 1)
    newton = width <= 2048
    classifier = LogisticRegression(
        C=C,
        solver="newton-cholesky" if newton else "lbfgs",
        tol=1e-8 if newton else 1e-6,
        class_weight=class_weight,
        max_iter=max_iter,
    )
    # Subtracting the mean changes nothing but the (unpenalised) intercept, and makes the problem
    # well conditioned where activations are far from zero.
    steps = [StandardScaler(with_std=standardize)]
    steps += [PCA(svd_solver="full")] if narrow else []
    estimator = make_pipeline(*steps, classifier)
    estimator.fit(values.cpu().numpy(), codes)
    weights, bias, _ = _unfold(estimator)
    return Probe(
        torch.as_tensor(weights, device=values.device),
        torch.as_tensor(bias, device=values.device),
        classes,
        estimator,
    )


def require_penalty(C: Any) -> None:
    """Refuse an inverse strength of the penalty that is no positive number."""
    if isinstance(C, str) or not C > 0 or math.isinf(C):
        raise ValueError(f"C must be a positive number, not {C!r}.")


def as_probe(probe: Any) -> Probe:
    """A :class:`Probe` from one, or from a fitted scikit-learn logistic regression.

    A pipeline is unfolded: with inputs scaled as (x - mean) / scale, each weight is divided by its
    scale and the bias takes up the rest, so that the result acts on raw activations.

    Args:
        probe: A :class:`Probe`; a fitted ``LogisticRegression``; or a fitted pipeline of
            ``StandardScaler`` or ``PCA`` steps that ends in one.

    Raises:
        ValueError: It is something else, is not fitted, or knows a single class.
    """
    if isinstance(probe, Probe):
        return probe
    weights, bias, classes = _unfold(probe)
    return Probe(torch.as_tensor(weights), torch.as_tensor(bias), classes, probe)


def _unfold(
    estimator: Any,
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], tuple[Any, ...]]:
    """Weights ``[class d_model]``, biases and classes of a classifier, on its raw inputs."""
    steps = (
        [step for _, step in estimator.steps] if isinstance(estimator, Pipeline) else [estimator]
    )
    classifier = steps[-1]
    if not isinstance(classifier, LogisticRegression | LogisticRegressionCV):
        raise ValueError(
            f"{type(classifier).__name__} is not a logistic regression, so its scores are no log "
            "odds; use probing.fit_probe or scikit-learn's LogisticRegression."
        )
    if not hasattr(classifier, "coef_"):
        raise ValueError("The probe is not fitted yet; call its fit method first.")
    weights = np.asarray(classifier.coef_, dtype=np.float64)
    bias = np.broadcast_to(
        np.asarray(classifier.intercept_, dtype=np.float64), (len(weights),)
    ).copy()
    if len(weights) == 1:  # scikit-learn stores one row for two classes
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    for step in reversed(steps[:-1]):
        matrix, offset = _affine(step, weights.shape[1])
        bias = bias + weights @ offset
        weights = weights @ matrix if matrix.ndim == 2 else weights * matrix
    classes = tuple(np.asarray(classifier.classes_).tolist())
    return weights - weights.mean(axis=0), bias - bias.mean(), classes


def _affine(step: Any, width: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A preprocessing step as x -> matrix x + offset; a vector for the matrix is its diagonal."""
    if step is None or step == "passthrough":
        return np.ones(width), np.zeros(width)
    if isinstance(step, StandardScaler):
        scale = np.ones(width) if step.scale_ is None else np.asarray(step.scale_)
        mean = np.zeros(width) if step.mean_ is None or not step.with_mean else step.mean_
        return 1 / scale, -np.asarray(mean) / scale
    if isinstance(step, PCA):
        components = np.asarray(step.components_)
        if step.whiten:
            components = components / np.sqrt(step.explained_variance_)[:, None]
        return components, -components @ step.mean_
    raise ValueError(
        f"A probe cannot be unfolded through {type(step).__name__}; use StandardScaler or PCA, or "
        "fit on raw activations."
    )


def class_counts(labels: Sequence[Any]) -> dict[Any, int]:
    """How many rows each class has, classes in order: the class balance."""
    codes, classes = encode_labels(labels, len(labels))
    return {label: int((codes == code).sum()) for code, label in enumerate(classes)}
