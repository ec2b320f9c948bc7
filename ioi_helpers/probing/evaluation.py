"""How good a probe is on prompts that it has not seen, in any of the senses in which one can cheat.

Rows are held out together with everything that is the same to the probe: the same prompt (as far as
the role's position, since a causal model has read no further), the same two names, the same
template. Beside the accuracy stand the majority baseline and a control task, the same probe on
random labels (Hewitt and Liang 2019, "Designing and interpreting probes with control tasks"): what
it scores there is memory, not knowledge.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.dataset import IOIDataset, TwoAnswerData
from ioi_helpers.dataset.two_answers import positions_of
from ioi_helpers.metrics import Estimate, mean_and_stderr
from ioi_helpers.probing.activations import require_activations
from ioi_helpers.probing.labels import encode_labels, labels_of
from ioi_helpers.probing.many import fit_probes
from ioi_helpers.probing.probes import Probe, class_counts
from ioi_helpers.runs import (
    DEFAULT_MEMORY,
    activations_at_roles,
    progress_bar,
    require_data,
    residual_points,
    roles_to_use,
)

LEAST_DEALINGS = 49  # of random labels, for a band that holds chance with 96 %
HELD_OUT: tuple[str, ...] = ("prompt", "names", "template")
"""What may be shared by no training and no test row, by default."""

Groups = Mapping[str, Int[Tensor, " batch"]]
_NAME_FIELD = re.compile(r"\[[AB]\]")


class LeakedSplit(ValueError):
    """Training and test rows share what a held-out evaluation must not let them share."""


@dataclass(frozen=True)
class Split:
    """Row numbers to train on and to test on; rows that would leak are in neither.

    Attributes:
        train, test: Ascending row numbers.
        dropped: How many rows were left out of training because a test row shares a group with
            them.
    """

    train: Int[Tensor, " train"]
    test: Int[Tensor, " test"]
    dropped: int = 0


def groups(data: TwoAnswerData, role: str) -> dict[str, Int[Tensor, " batch"]]:
    """What rows have in common as far as a role: the groups that must not be torn apart.

    A causal model has seen nothing after the role's position, so two prompts that differ only
    later are the same prompt there, and two templates that differ only later are one template (the
    paper's "... decided to give it to" and "... decided to give the ring to" are, at S2).

    Args:
        data: The prompts.
        role: Where the activations are taken.

    Returns:
        ``"prompt"`` (the tokens up to the role), and of an ``IOIDataset`` ``"names"`` (the names in
        it, whichever stands where) and ``"template"`` (its text up to the role) -> a group number
        for each row. Pass your own mapping to the functions below for other data, most specific
        first.

    Raises:
        ValueError: An unknown role.
    """
    positions = positions_of(data, role).tolist()
    prompts = [
        tuple(row[: position + 1])
        for row, position in zip(data.tokens.tolist(), positions, strict=True)
    ]
    found = {"prompt": _number(prompts)}
    if isinstance(data, IOIDataset):
        heads = [_template_as_read(template, role) for template in data.templates]
        found["names"] = _number([tuple(sorted(set(names))) for names in data.names])
        found["template"] = _number([heads[i] for i in data.template_ids.tolist()])
    return found


def _template_as_read(template: str, role: str) -> str:
    """A template's text as far as a role stands, in the order of names that puts it earliest."""
    fields = list(_NAME_FIELD.finditer(template))
    if role == "END":
        return template
    return template[: fields[2 if role == "S2" else 0].start()]


def _number(values: Sequence[Any]) -> Int[Tensor, " batch"]:
    number: dict[Any, int] = {}
    return torch.tensor([number.setdefault(value, len(number)) for value in values])


def folds(
    groups: Groups, n_folds: int = 5, *, hold_out: Sequence[str] | None = None, seed: int = 0
) -> list[Split]:
    """Cross-validation in which every row is tested once and no group is ever on both sides.

    The coarsest grouping (template, usually) is dealt over the folds, each fold's share is its
    test set, and training rows that share any other group with it (a pair of names that happens to
    occur twice) are left out of that fold's training.

    Args:
        groups: Of :func:`groups`, or your own.
        n_folds: At most the number of groups in the coarsest grouping.
        hold_out: Which groupings; by default all that are given.
        seed: Of the dealing.

    Raises:
        ValueError: Fewer groups than folds, an unknown grouping, or no row left to train on.
    """
    kept = _chosen(groups, hold_out)
    coarsest = _coarsest(kept)
    sizes = _sizes(kept, coarsest)
    if n_folds < 2 or len(sizes) < n_folds:
        raise ValueError(
            f"{n_folds} folds cannot be made of {len(sizes)} groups by {coarsest}; ask for 2 to "
            f"{len(sizes)} folds, use prompts with more of them, or leave {coarsest} out of "
            "hold_out."
        )
    # Largest first, to the fold with the fewest rows so far; ties in seeded order.
    order = np.argsort(np.random.default_rng(seed).random(len(sizes)), kind="stable")
    order = order[np.argsort(-sizes.numpy()[order], kind="stable")]
    fold_of = np.zeros(len(sizes), dtype=np.int64)
    filled = np.zeros(n_folds)
    for group in order:
        fold_of[group] = np.argmin(filled)
        filled[fold_of[group]] += int(sizes[group])
    fold = torch.as_tensor(fold_of)[kept[coarsest]]
    return [_without_leaks(kept, fold == number) for number in range(n_folds)]


def split(
    groups: Groups,
    test_share: float = 0.3,
    *,
    hold_out: Sequence[str] | None = None,
    seed: int = 0,
) -> Split:
    """One split into training and test rows that share no group, as :func:`folds` makes them.

    Args:
        groups: Of :func:`groups`, or your own.
        test_share: The share of rows to test on, met as nearly as whole groups allow.
        hold_out, seed: As for :func:`folds`.

    Raises:
        ValueError: As for :func:`folds`, or a share that is not between 0 and 1.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share must be between 0 and 1, not {test_share!r}.")
    kept = _chosen(groups, hold_out)
    coarsest = _coarsest(kept)
    sizes = _sizes(kept, coarsest)
    order = np.argsort(np.random.default_rng(seed).random(len(sizes)), kind="stable")
    reached = np.cumsum(sizes.numpy()[order]) / int(sizes.sum())
    count = int(np.argmin(np.abs(reached[:-1] - test_share))) + 1
    return _without_leaks(kept, torch.isin(kept[coarsest], torch.as_tensor(order[:count])))


def _chosen(groups: Groups, hold_out: Sequence[str] | None) -> dict[str, Tensor]:
    names = list(groups) if hold_out is None else list(hold_out)
    unknown = next((name for name in names if name not in groups), None)
    if unknown is not None or not names:
        raise ValueError(
            f"hold_out must name one or more of {', '.join(groups)}, not {unknown or 'nothing'}."
        )
    return {name: torch.unique(groups[name].cpu(), return_inverse=True)[1] for name in names}


def _coarsest(groups: Groups) -> str:
    return min(groups, key=lambda name: len(groups[name].unique()))


def _sizes(groups: Groups, name: str) -> Int[Tensor, " group"]:
    sizes = torch.bincount(groups[name])
    if len(sizes) < 2:
        raise ValueError(
            f"All rows are one group by {name}, so none can be held out; use prompts with more of "
            f"them, or leave {name} out of hold_out."
        )
    return sizes


def _without_leaks(groups: Groups, in_test: Bool[Tensor, " batch"]) -> Split:
    in_train = ~in_test
    for numbers in groups.values():
        in_train &= ~torch.isin(numbers, numbers[in_test])
    if not bool(in_train.any()):
        raise ValueError(
            "No row is left to train on: each shares a group with some test row. Use more prompts "
            "or more names, or hold out less."
        )
    dropped = int((~in_test).sum() - in_train.sum())
    return Split(in_train.nonzero()[:, 0], in_test.nonzero()[:, 0], dropped)


def check_split(split: Split, groups: Groups, *, hold_out: Sequence[str] | None = None) -> None:
    """Refuse a split whose training and test rows share a row or a group.

    Raises:
        LeakedSplit: They do; the message counts what is shared.
        ValueError: A row that does not exist, or an empty side.
    """
    kept = _chosen(groups, hold_out)
    n = len(next(iter(kept.values())))
    for side, rows in (("training", split.train), ("test", split.test)):
        if not len(rows) or int(rows.min()) < 0 or int(rows.max()) >= n:
            raise ValueError(f"The {side} rows of the split are none, or not rows of these {n}.")
    shared = {"row": torch.isin(split.test, split.train).sum()}
    for name, numbers in kept.items():
        test = numbers[split.test.cpu()].unique()
        shared[name] = torch.isin(test, numbers[split.train.cpu()]).sum()
    found = [f"{int(count)} by {name}" for name, count in shared.items() if count]
    if found:
        raise LeakedSplit(
            f"The split leaks: training and test share groups ({', '.join(found)}), so the score "
            "would measure memory; make it with probing.split or probing.folds."
        )


@dataclass(frozen=True)
class ProbeScore:
    """What a probe scored on held-out rows, beside what it would score knowing nothing.

    Attributes:
        accuracy: Share of held-out rows that it gets right, with a standard error over the
            coarsest groups (templates), the units that were held out together.
        balanced_accuracy: The mean over classes of the share it gets right in each; chance is one
            over the number of classes, whatever the class balance.
        majority: Share right for always saying the commonest class of the training rows.
        control: Accuracy of the same probe on random labels, one for each prompt. At chance unless
            something leaks. Its error, like that of the accuracy, is over the coarsest groups:
            near chance it is some 30 % too small, because folds share training rows (Bengio and
            Grandvalet 2004, "No unbiased estimator of the variance of K-fold cross-validation").
            Judge an accuracy near chance by :attr:`chance`.
        dealings: The accuracy on each dealing of random labels.
        control_majority: The majority baseline on the random labels.
        train_accuracy: On the rows it was fitted to, mean over folds.
        loss: Mean negative log probability of the right class on held-out rows, in nats (a class
            that training never saw counts as the probability 1e-12).
        counts: Class -> number of rows.
        predicted: The held-out prediction for each row, None for rows that were never tested.
        dropped: Rows left out of training, mean over folds.
    """

    accuracy: Estimate
    balanced_accuracy: float
    majority: float
    control: Estimate
    dealings: tuple[float, ...]
    control_majority: float
    train_accuracy: float
    loss: float
    counts: dict[Any, int]
    predicted: tuple[Any, ...]
    dropped: float

    @property
    def chance(self) -> tuple[float, float]:
        """Between what accuracies it lies 24 times in 25 if nothing is known: a permutation band.

        Were the labels as good as random, their accuracy would take any rank among those of n
        dealings equally often. So with k = 0.02 (n + 1) it lies between the k-th lowest and the
        k-th highest with a probability of 96 %: lowest to highest of 49 dealings.

        Raises:
            ValueError: Fewer than 49 dealings.
        """
        n = len(self.dealings)
        if n < LEAST_DEALINGS:
            raise ValueError(
                f"{n} dealings of random labels make no band of 96 %; ask for n_controls="
                f"{LEAST_DEALINGS} or more."
            )
        k, ordered = int(0.02 * (n + 1) + 1e-9), sorted(self.dealings)
        return ordered[k - 1], ordered[-k]

    @property
    def selectivity(self) -> float:
        """Accuracy above the control task's (Hewitt and Liang 2019): what is not memory."""
        return self.accuracy.mean - self.control.mean

    @property
    def accuracy_and_error(self) -> str:
        """The accuracy as text, with its standard error.

        Where every row is right (or none) there is no spread to estimate an error from, and a
        standard error of 0 would claim too much. There it says what n groups without a single
        mistake are evidence for: were the accuracy below 0.05^(1/n), about 1 - 3/n, they would be
        seen less than once in 20 times ("the rule of three").
        """
        return _with_error(self.accuracy)

    def __str__(self) -> str:
        return (
            f"held-out accuracy {self.accuracy_and_error}, majority {self.majority:.3f}, random "
            f"labels {_with_error(self.control)}, training {self.train_accuracy:.3f}"
        )


def _with_error(share: Estimate) -> str:
    bound = 0.05 ** (1 / share.n)
    if share.mean == 1:
        return f"1.000 (95 %: above {bound:.3f})"
    if share.mean == 0:
        return f"0.000 (95 %: below {1 - bound:.3f})"
    return f"{share.mean:.3f} ± {share.stderr:.3f}"


def evaluate_probe(
    activations: Any,
    labels: Any,
    groups: Groups,
    *,
    n_folds: int = 5,
    splits: Sequence[Split] | None = None,
    hold_out: Sequence[str] | None = None,
    n_controls: int = 3,
    deal_by: Int[Tensor, " batch"] | None = None,
    C: float = 1.0,
    standardize: bool = False,
    class_weight: str | None = None,
    seed: int = 0,
) -> ProbeScore:
    """Fit and judge a logistic probe honestly.

    Every split is checked before anything is fitted, also one that you made yourself. Whatever is
    fitted (scaling, weights) is fitted on training rows only.

    Args:
        activations: ``[batch d_model]``.
        labels: One for each row.
        groups: What must not be on both sides: :func:`groups`, or a mapping of your own.
        n_folds: Cross-validation folds, where ``splits`` is not given.
        splits: Splits of your own.
        hold_out: Which groupings to hold out; by default all.
        n_controls: Times to repeat the control task, with other random labels; from 49 on the
            score has a band for :attr:`~ProbeScore.chance`.
        deal_by: Numbers of what random labels are dealt to as one, within which the real label is
            the same: ``data.pair_ids``, where the prompts of a pair have the label in common. By
            default the prompt.
        C, standardize, class_weight: Of :func:`fit_probe`.
        seed: Of folds and random labels.

    Raises:
        LeakedSplit: A split whose sides share a group.
        ValueError: A single class, in all rows or in some training set; or as :func:`fit_probe`,
            :func:`folds`.
    """
    values = require_activations(activations)
    codes, classes = encode_labels(labels, len(values))
    if len(classes) < 2:
        raise ValueError(f"All labels are {classes[0]!r}; a probe needs at least two classes.")
    if any(len(numbers) != len(values) for numbers in groups.values()):
        raise ValueError(f"The groups are not of these {len(values)} rows; group the same data.")
    if n_controls < 1:
        raise ValueError("n_controls must be at least 1: a score without its control is half one.")
    made = (
        list(splits) if splits is not None else folds(groups, n_folds, hold_out=hold_out, seed=seed)
    )
    for one in made:
        check_split(one, groups, hold_out=hold_out)

    settings = {"C": C, "standardize": standardize, "class_weight": class_weight}
    rng = np.random.default_rng(seed)
    prompt_of = (next(iter(groups.values())) if deal_by is None else deal_by).cpu().numpy()
    alike = set(zip(prompt_of.tolist(), codes.tolist(), strict=False))
    if deal_by is not None and not len(alike) == len(set(prompt_of)) <= len(prompt_of) == len(
        values
    ):
        raise ValueError(
            "deal_by must number all rows so that rows of one number have one label; leave it out "
            "to deal labels to prompts."
        )
    dealt = [_random_labels(codes, prompt_of, rng) for _ in range(n_controls)]
    real, *controls = _scores(values, [codes, *dealt], made, settings)

    tested = ~np.isnan(real.correct)
    kept = _chosen(groups, hold_out)
    clusters = kept[_coarsest(kept)][torch.as_tensor(tested)]
    if len(clusters.unique()) < 2:
        clusters = torch.arange(int(tested.sum()))
    control = np.mean([one.correct for one in controls], axis=0)[tested]
    recall = [real.correct[tested & (codes == code)] for code in range(len(classes))]
    return ProbeScore(
        accuracy=mean_and_stderr(torch.as_tensor(real.correct[tested]), clusters),
        balanced_accuracy=float(np.mean([part.mean() for part in recall if len(part)])),
        majority=float(real.majority[tested].mean()),
        control=mean_and_stderr(torch.as_tensor(control), clusters),
        dealings=tuple(float(np.nanmean(one.correct)) for one in controls),
        control_majority=float(np.mean([one.majority[tested].mean() for one in controls])),
        train_accuracy=real.train_accuracy,
        loss=float(real.loss[tested].mean()),
        counts=class_counts(np.asarray(classes, dtype=object)[codes].tolist()),
        predicted=tuple(None if code < 0 else classes[code] for code in real.predicted),
        dropped=float(np.mean([one.dropped for one in made])),
    )


@dataclass(frozen=True)
class _Scores:
    """Row by row, NaN (or -1) where a row was never tested."""

    correct: np.ndarray[Any, Any]
    majority: np.ndarray[Any, Any]
    loss: np.ndarray[Any, Any]
    predicted: np.ndarray[Any, Any]
    train_accuracy: float


def _untested(n: int) -> _Scores:
    correct, majority, loss = np.full((3, n), np.nan)
    return _Scores(correct, majority, loss, np.full(n, -1), np.nan)


def _scores(
    values: Tensor,
    labelings: Sequence[np.ndarray[Any, Any]],
    splits: Sequence[Split],
    settings: dict[str, Any],
) -> list[_Scores]:
    """Each labeling's scores; the probes of a split are fitted together."""
    on_training: list[list[float]] = [[] for _ in labelings]
    found = [_untested(len(values)) for _ in labelings]
    for one in splits:
        train, test = one.train.cpu().numpy(), one.test.cpu().numpy()
        if any(len(np.unique(codes[train])) < 2 for codes in labelings):
            raise ValueError(
                "The training rows of a split are all of one class; use more prompts, another "
                "seed, or hold out less."
            )
        seen = values[one.train.to(values.device)]
        probes = fit_probes(seen, [codes[train] for codes in labelings], **settings)
        of_test = _log_probs(probes, values[one.test.to(values.device)])
        of_train = _log_probs(probes, seen)
        for scores, codes, probe, tested, fitted, right in zip(
            found, labelings, probes, of_test, of_train, on_training, strict=True
        ):
            known = np.asarray(probe.classes)
            scores.predicted[test] = known[tested.argmax(axis=1)]
            scores.correct[test] = scores.predicted[test] == codes[test]
            scores.majority[test] = codes[test] == np.bincount(codes[train]).argmax()
            is_right = known[None] == codes[test][:, None]
            scores.loss[test] = -np.where(is_right, tested, np.log(1e-12)).max(
                axis=1, where=is_right, initial=np.log(1e-12)
            )
            right.append(float((known[fitted.argmax(axis=1)] == codes[train]).mean()))
    return [
        replace(scores, train_accuracy=float(np.mean(shares)))
        for scores, shares in zip(found, on_training, strict=True)
    ]


def _log_probs(probes: Sequence[Probe], values: Tensor) -> list[np.ndarray[Any, Any]]:
    """Log probabilities ``[row class]`` of each probe, from one product of matrices."""
    weights = torch.cat([probe.weights for probe in probes]).to(values)
    logits = torch.addmm(torch.cat([probe.bias for probe in probes]).to(values), values, weights.T)
    parts = logits.split([len(probe.classes) for probe in probes], dim=1)
    return [part.log_softmax(dim=1).cpu().numpy() for part in parts]


def _random_labels(
    codes: np.ndarray[Any, Any], prompt_of: np.ndarray[Any, Any], rng: np.random.Generator
) -> np.ndarray[Any, Any]:
    """The real labels dealt out anew over prompts, the same to every copy of a prompt."""
    _, first, prompt = np.unique(prompt_of, return_index=True, return_inverse=True)
    order = np.argsort(rng.random(len(first)), kind="stable")
    dealt: np.ndarray[Any, Any] = codes[first][order][prompt]
    return dealt


def probe_table(
    model: TransformerBridge,
    data: TwoAnswerData,
    variable: str | Sequence[Any] = "order",
    *,
    roles: Sequence[str] | None = None,
    points: Sequence[str] | None = None,
    activations: Mapping[str, Mapping[str, Tensor]] | None = None,
    n_folds: int = 5,
    hold_out: Sequence[str] | None = None,
    n_controls: int = 3,
    C: float = 1.0,
    standardize: bool = False,
    seed: int = 0,
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> pd.DataFrame:
    """Where a variable can be read: probe accuracy by role and point, each with its controls.

    Args:
        variable: A name that :func:`labels_of` knows, or a label for each prompt.
        roles, points: Where to probe; by default at every role and everywhere
            (:func:`~ioi_helpers.runs.residual_points`).
        activations: Those of the data at these roles and points, where they have been read
            already, as :func:`~ioi_helpers.runs.activations_at_roles` gives them.
        model, data, memory, progress: As for :func:`~ioi_helpers.runs.activations_at`.
        n_folds, hold_out, n_controls, C, standardize, seed: As for :func:`evaluate_probe`.

    Returns:
        One role and point a row: ``role``, ``point``, ``accuracy``, ``stderr``, ``balanced``,
        ``majority``, ``control``, ``control_stderr``, ``chance_low`` and ``chance_high``
        (:attr:`ProbeScore.chance`; NaN below 49 controls), ``train``, ``loss`` (nats). Random
        labels are dealt to pairs where the two prompts of each have the label in common.

    Raises:
        ValueError: As for :func:`evaluate_probe`.
    """
    require_data(model, data)
    if not isinstance(variable, str):
        labels = list(variable)
    elif isinstance(data, IOIDataset):
        labels = labels_of(data, variable)
    else:
        raise ValueError(
            f"{variable!r} is a variable of an IOIDataset; give a label for each prompt instead."
        )
    points = residual_points(model) if points is None else list(points)
    numbers = data.pair_ids.tolist()
    in_common = len(set(zip(numbers, labels, strict=True))) == len(set(numbers))
    pairs = data.pair_ids if in_common else None
    roles = roles_to_use(data, roles)
    at = activations
    if at is None:  # one run for all
        at = activations_at_roles(model, data, roles, points, memory=memory, progress=progress)
    rows = []
    for role in roles:
        grouped = groups(data, role)
        here = {point: at[role][point] for point in points}
        for point, values in progress_bar(f"probes at {role}", here.items(), show=progress):
            score = evaluate_probe(
                values, labels, grouped, n_folds=n_folds, hold_out=hold_out,
                n_controls=n_controls, deal_by=pairs, C=C, standardize=standardize, seed=seed,
            )  # fmt: skip
            low, high = score.chance if n_controls >= LEAST_DEALINGS else (np.nan, np.nan)
            rows.append(
                {
                    "role": role,
                    "point": point,
                    "accuracy": score.accuracy.mean,
                    "stderr": score.accuracy.stderr,
                    "balanced": score.balanced_accuracy,
                    "majority": score.majority,
                    "control": score.control.mean,
                    "control_stderr": score.control.stderr,
                    "chance_low": low,
                    "chance_high": high,
                    "train": score.train_accuracy,
                    "loss": score.loss,
                }
            )
    return pd.DataFrame(rows)
