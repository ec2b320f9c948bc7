"""Keys to the exercises of notebook 06, residual probing.

They expect `exercises.use(model=model, messy=messy, base=base, many=many, point=point)`: prompts
with a prefix sentence and without, thousands of others with one (to be counted, not run), and the
point of the residual stream that the notebook looks closer at.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ioi_helpers import metrics, probing, runs
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.edits import next_token_kl, residual_edit
from ioi_helpers.exercises.forms import Refused, as_array
from ioi_helpers.exercises.measure import correlation
from ioi_helpers.exercises.registry import Context, exercise
from ioi_helpers.exercises.verdicts import Key, array, number, pick

TEST_SHARE = 0.15  # of `messy`, in the notebook's own split
LEAST_TRAIN, LEAST_TEST = 90, 40  # rows that exercise 06.3 asks for
FOLDS = 4  # of the notebook's probes
NEXT_TO_NOTHING = 0.002  # nats, in exercise 06.7
CLOSE = 0.08  # how far another estimate of the same standard error may lie, as a share of it


# --- what the checks measure ----------------------------------------------------------------------


def _stream(ctx: Context, role: str = "S2") -> Float[Tensor, "batch d_model"]:
    """The residual stream of `messy` at a role and `point`, in float64 on the CPU."""
    return ctx.once(
        f"stream at {role}",
        lambda: runs.activations_at(ctx.model, ctx.messy, role, ctx.point).cpu().double(),
    )


def _is_abba(data: IOIDataset) -> Float[Tensor, " batch"]:
    return torch.tensor([order == "ABBA" for order in data.orders]).double()


def _groups(ctx: Context) -> dict[str, Int[Tensor, " batch"]]:
    return ctx.once("groups", lambda: probing.groups(ctx.messy, "S2"))


def _split(ctx: Context) -> probing.Split:
    """`honest` of the notebook."""
    return ctx.once("split", lambda: probing.split(_groups(ctx), TEST_SHARE))


def _sample(ctx: Context) -> IOIDataset:
    """`sample` of the notebook: the held-out prompts."""
    return ctx.once("sample", lambda: ctx.messy[_split(ctx).test])


def _move(ctx: Context) -> Float[Tensor, " d_model"]:
    """`mean_difference(at_s2[point])`: BABA minus ABBA, over training rows."""
    train = _split(ctx).train
    values, abba = _stream(ctx)[train], _is_abba(ctx.messy)[train].bool()
    return values[~abba].mean(dim=0) - values[abba].mean(dim=0)


# --- 06.1 The main component and the order --------------------------------------------------------


@exercise("06.1")
def _main_component(ctx: Context) -> Key:
    abba = _is_abba(ctx.messy)

    def correlate(
        which: int = 0, *, centred: bool = True, role: str = "S2", column: bool = False
    ) -> float:
        values = _stream(ctx, role)
        values = values - values.mean(dim=0) if centred else values
        components = torch.linalg.svd(values, full_matrices=False).Vh
        return abs(correlation(values @ (components.T if column else components)[which], abba))

    values, truth = _stream(ctx), correlate()
    between = values[abba.bool()].mean(dim=0) - values[~abba.bool()].mean(dim=0)
    return number(
        truth,
        # Narrow: the usual mistakes change little where the order is the main thing in the cloud.
        relative=1e-4,
        absolute=2e-5,
        # A correlation of nothing varies by one over the root of the number of pairs.
        error=len(ctx.messy.pair_ids.unique()) ** -0.5,
        mistakes={
            "leaving the sign, which is arbitrary here, as a component may point either way. Give "
            "the absolute value": -truth,
            "squaring it. The squared correlation is the share of variance": truth**2,
            "taking the first component of activations that were not centred, which points to "
            "where the cloud is. Subtract the mean activation first": correlate(centred=False),
            "taking the second component. Rows of Vh come largest first, counted from 0": correlate(
                1
            ),
            "projecting on the first column of Vh; the components are its rows": correlate(
                column=True
            ),
            "taking the last component. Rows of Vh come largest first": correlate(-1),
            "projecting on the difference of the two orders' means, which uses the labels. The "
            "first component knows none": abs(correlation(values @ between, abba)),
            "taking activations at END, not at S2": correlate(role="END"),
        },
        hint="Centre, decompose, project on the first row of Vh, correlate with the order.",
        right="The square of it is the share in section 2.",
    )


# --- 06.2 How sure? -------------------------------------------------------------------------------


@exercise("06.2")
def _how_sure(ctx: Context) -> Key:
    groups = _groups(ctx)
    early = runs.residual_points(ctx.model)[1]
    values = runs.activations_at(ctx.model, ctx.messy, "S2", early)
    score = probing.evaluate_probe(values, ctx.messy.orders, groups, n_folds=FOLDS, n_controls=1)
    told = zip(score.predicted, ctx.messy.orders, strict=True)
    right = torch.tensor([said == order for said, order in told]).double()

    def over(clusters: Int[Tensor, " batch"]) -> float:
        return metrics.mean_and_stderr(right, clusters=clusters).stderr

    estimate = metrics.mean_and_stderr(right, clusters=groups["template"])
    truth, k, n = estimate.stderr, estimate.n, len(right)
    of_template = [groups["template"] == t for t in groups["template"].unique()]
    means = torch.stack([right[rows].mean() for rows in of_template])
    without = torch.stack([right[~rows].mean() for rows in of_template])
    plain = float(means.std() / k**0.5)
    by_template_ids = over(ctx.messy.template_ids)
    counts_templates_apart = (
        " (So is that of `template_ids`, in which two templates that differ only after S2 count "
        "apart.)"
        if abs(by_template_ids / plain - 1) < 0.005
        else ""
    )
    return number(
        truth,
        relative=0.005,
        of_estimate="stderr",
        also={
            "That is the error of the plain mean of the templates' means. It counts a template "
            f"with few prompts as much as one with many; over prompts it is {truth:.4f}."
            f"{counts_templates_apart}": plain,
            f"That is the jackknife over templates; the sum of hint 2 is {truth:.4f}.": (
                without.std(correction=0) * (k - 1) ** 0.5
            ),
        },
        mistakes={
            "leaving out the factor k / (k - 1), where k is the number of templates": truth
            * ((k - 1) / k) ** 0.5,
            "taking the variance of the mean, not its root": truth**2,
            "dividing the sums over templates by the number of templates, not of prompts": truth
            * n
            / k,
            "treating the prompts as independent of each other. Prompts of one template succeed or "
            "fail together: let them be one cluster": right.std() / n**0.5,
            "treating the prompts as independent of each other (and dividing by n, not n - 1). Let "
            "the prompts of a template be one cluster": right.std(correction=0) / n**0.5,
            "letting the pairs of prompts be the clusters. What was held out together, and "
            "succeeds or fails together, is the template": over(ctx.messy.pair_ids),
            "letting the pairs of names be the clusters, not the templates": over(groups["names"]),
            "counting as different two templates that differ only after S2, where the probe has "
            "not read yet (`template_ids`). Use grouped['template']": by_template_ids,
            "taking a standard deviation, not yet the error of a mean": right.std(),
            "taking how much templates differ, not yet the error of their mean. Divide by the "
            "root of their number": means.std(),
            "taking the mean itself. The number asked for is its standard error": estimate.mean,
            "dividing by the number of templates where one less is due (std(correction=1))": (
                means.std(correction=0) / k**0.5
            ),
            "taking half of a 95 % interval, not the standard error itself": 1.96 * truth,
        },
        # A bootstrap of whole templates, for instance, estimates the same.
        close=(
            CLOSE * truth,
            f"Close: an estimate of the same quantity; by hint 2 it is {truth:.4f}.",
        ),
        hint="Which prompts succeed or fail together? Let each such set be one cluster.",
        right=f"There are {k} templates, so at most {k} independent values and not {n}.",
    )


# --- 06.3 An honest split by hand -----------------------------------------------------------------


@exercise("06.3")
def _honest_split(ctx: Context) -> Key:
    n = len(ctx.messy)

    def read(answer: Any) -> probing.Split:
        if isinstance(answer, probing.Split):
            answer = (answer.train, answer.test)
        if not isinstance(answer, (tuple, list)) or len(answer) != 2:
            raise Refused("Give two lists of row numbers: (training rows, test rows).")
        return probing.Split(_rows(answer[0], n), _rows(answer[1], n))

    def leaks(by: str) -> Any:
        def predicate(split: probing.Split) -> bool:
            try:
                probing.check_split(split, _groups(ctx), hold_out=(by,))
            except probing.LeakedSplit:
                return True
            return False

        return predicate

    def one_order(split: probing.Split) -> bool:
        parts = (split.train.tolist(), split.test.tolist())
        return any(len({ctx.messy.orders[i] for i in rows}) < 2 for rows in parts)

    rules = {
        f"There are too few training rows; at least {LEAST_TRAIN} are due.": lambda split: (
            len(split.train) < LEAST_TRAIN
        ),
        f"There are too few test rows; at least {LEAST_TEST} are due.": lambda split: (
            len(split.test) < LEAST_TEST
        ),
        "Some rows are in both parts.": lambda split: bool(
            torch.isin(split.train, split.test).any()
        ),
        "It leaks by prompt. Some test prompts have the same words as a training prompt as far as "
        "S2.": leaks("prompt"),
        "It leaks by names. Some test prompts have the same two names as a training prompt, "
        "perhaps in the other roles. Take such prompts out of training.": leaks("names"),
        "It leaks by template. Some test prompts share their template, as read up to S2, with a "
        "training prompt. (Two of the templates differ only after S2; grouped['template'] knows.)"
        "": leaks("template"),
        "All rows of a part have the same order; a probe needs both.": one_order,
    }
    return pick(
        lambda split: not any(holds(split) for holds in rules.values()),
        read,
        rules=rules,
        right=lambda split: (
            f"{len(split.train)} rows to train on, {len(split.test)} to test on, "
            f"{n - len(split.train) - len(split.test)} in neither, and nothing is shared."
        ),
    )


def _rows(part: Any, n: int) -> Int[Tensor, " rows"]:
    """Row numbers, ascending; a mask is turned into them. Raises Refused for the rest."""
    if isinstance(part, (set, frozenset, range)):
        part = sorted(part)
    is_mask = getattr(part, "dtype", None) in (torch.bool, np.dtype(bool)) or (
        isinstance(part, (list, tuple)) and bool(part) and all(isinstance(v, bool) for v in part)
    )
    values = as_array(part)
    if values.ndim == 2 and 1 in values.shape:  # of nonzero() and np.where
        values = values.reshape(-1)
    if values.ndim != 1:
        raise Refused("Each part must be a flat list of row numbers.")
    if is_mask and len(values) == n:
        return torch.as_tensor(values.nonzero()[0])
    if len(values) == n and np.isin(values, (0, 1)).all():
        raise Refused("A mask must be boolean: True and False, not 1 and 0.")
    if not np.array_equal(values, np.round(values)) or (
        len(values) and not 0 <= values.min() <= values.max() < n
    ):
        raise Refused(f"Row numbers are whole numbers from 0 to {n - 1}.")
    return torch.as_tensor(np.unique(values.astype(np.int64)))


# --- 06.4 What the probe at S1+1 reads ------------------------------------------------------------


@exercise("06.4")
def _after_s1(ctx: Context) -> Key:
    messy: IOIDataset = ctx.messy

    def stand(role: str, order: str, further: int = 0) -> frozenset[int]:
        rows = [i for i, o in enumerate(messy.orders) if o == order]
        return frozenset(messy.tokens[rows, messy.positions[role][rows] + further].tolist())

    truth, other = stand("S1+1", "BABA"), stand("S1+1", "ABBA")

    def read(answer: Any) -> frozenset[int]:
        found, bare = _tokens(answer, ctx)
        if bare and found == truth:
            raise Refused(f"The token has a leading space: {' ' + bare[0]!r}, not {bare[0]!r}.")
        return found

    return pick(
        truth,
        read,
        says="These tokens are",
        mistakes={
            "taking what follows S1 in ABBA prompts, where it is the second name, or IO in BABA "
            "prompts. The question is what follows S1 in BABA prompts": other,
            "taking the tokens of both orders, not of BABA prompts only": truth | other,
            "taking the names at S1; S1+1 is the position after it": stand("S1", "BABA"),
            "taking the names at S1 in ABBA prompts; S1+1 is the position after it": stand(
                "S1", "ABBA"
            ),
            "going two positions on from S1; positions['S1+1'] is enough": stand("S1", "BABA", 2),
            "taking what follows S2, not S1": stand("S2", "BABA", 1),
        },
        hint="Some of your tokens do not stand there, or some that stand there are missing.",
        right=f"In ABBA prompts {len(other)} other tokens stand there, and {len(truth & other)} of "
        "these.",
    )


def _tokens(answer: Any, ctx: Context) -> tuple[frozenset[int], list[str]]:
    """Token numbers from texts or numbers, and the words that lack their leading space. Raises
    Refused for the rest."""
    if isinstance(answer, (Tensor, np.ndarray)):
        answer = answer.tolist()
    if isinstance(answer, (str, int)) and not isinstance(answer, bool):
        answer = [answer]
    if not isinstance(answer, Iterable) or isinstance(answer, (bytes, bool)):
        raise Refused("A set of tokens is asked for: texts such as ' to', or token numbers.")
    found: set[int] = set()
    bare: list[str] = []
    for token in answer:
        if isinstance(token, str):
            # A word without its space is looked at as the word: names are told to be names.
            spaced = f" {token}" if token[:1].isalpha() else token
            numbers = _encode(ctx, spaced)
            if len(numbers) != 1:
                raise Refused(
                    f"{token!r} is no token; give the text of one, with its leading space."
                )
            if not token.startswith(" ") and token[:1].isalpha():
                bare.append(token)
            found.add(numbers[0])
        elif _is_whole(token):
            found.add(int(token))
        else:
            raise Refused(f"{token!r} is no token; give texts or token numbers.")
    return frozenset(found), bare


def _is_whole(token: Any) -> bool:
    """Whether it is a whole number, be it written as a float or as a tensor."""
    if torch.is_tensor(token):
        return token.ndim == 0 and _is_whole(token.item())
    if isinstance(token, (float, np.floating)):
        return float(token).is_integer()
    return isinstance(token, (int, np.integer)) and not isinstance(token, bool)


def _encode(ctx: Context, text: str) -> list[int]:
    """Token numbers of a text; none where the tokenizer knows no such word."""
    try:
        return list(ctx.model.tokenizer.encode(text, add_special_tokens=False))
    except ValueError:  # the bundled models' word-level tokenizer
        return []


# --- 06.5 The same with a prefix ------------------------------------------------------------------


def _best_guess(data: IOIDataset, *known: Sequence[Any], role: str = "IO") -> float:
    """How often the commonest position of a role is right among rows alike in what is known."""
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for row, position in enumerate(data.positions[role].tolist()):
        groups[tuple(fact[row] for fact in known)].append(position)
    return sum(Counter(at).most_common(1)[0][1] for at in groups.values()) / len(data)


@exercise("06.5")
def _position_guess(ctx: Context) -> Key:
    many: IOIDataset = ctx.many
    orders, templates = list(many.orders), many.template_ids.tolist()

    def order_and_template(data: IOIDataset) -> float:
        return _best_guess(data, list(data.orders), data.template_ids.tolist())

    truth = order_and_template(many)
    enough = (
        "That much is to be had without any position. A probe that scores more, by more than its "
        "error, has something of the position."
    )
    return number(
        truth,
        relative=0.002,
        also={
            f"{enough} (With templates told apart only as far as S2.)": _best_guess(
                many, orders, probing.groups(many, "S2")["template"].tolist()
            )
        },
        mistakes={
            "going by the few prompts of `messy`. The commonest position among so few is chosen "
            "and scored on the same prompts, so the share is too high. Take `many`": (
                order_and_template(ctx.messy)
            ),
            "guessing the position of S1, not of IO": _best_guess(
                many, orders, templates, role="S1"
            ),
            "knowing neither order nor template": _best_guess(many),
            "knowing the order only": _best_guess(many, orders),
            "knowing the template only": _best_guess(many, templates),
            "knowing all. To know everything, either the prefix's length was known as well, or "
            "these are the prompts without prefix (`base`)": order_and_template(ctx.base),
            "dividing one by the number of positions. Some are commoner than others": 1
            / len(many.positions["IO"].unique()),
            "counting prompts; as a number of prompts it is no share of them": len(many) * truth,
        },
        hint="Group by (order, template), take the commonest position of each group.",
        right=enough,
    )


# --- 06.6 Take the bit away -----------------------------------------------------------------------


@exercise("06.6")
def _erase(ctx: Context) -> Key:
    split, everything = _split(ctx), _stream(ctx)
    values, train = everything[split.test], everything[split.train]
    move, all_abba = _move(ctx), _is_abba(ctx.messy).bool()
    unit = move / move.norm()
    # Fitted to all rows, the held-out ones too: what an intervention must not be.
    leaky = everything[~all_abba].mean(dim=0) - everything[all_abba].mean(dim=0)
    leaky = leaky / leaky.norm()
    main = probing.svd_projection(train, 1).components[0]
    reader = probing.fit_probe(train, [ctx.messy.orders[i] for i in split.train.tolist()])
    read = (reader.weights[1] - reader.weights[0]).to(train)
    read = read / read.norm()
    to_other = (2 * _is_abba(_sample(ctx)) - 1)[:, None] * move

    def set_to(coordinate: Any, along: Tensor = unit) -> Tensor:
        return values + (coordinate - values @ along)[:, None] * along

    truth = set_to((train @ unit).mean())

    def only_along(given: Float[np.ndarray, "batch d_model"]) -> bool:
        """Whether an answer differs from the truth along the unit vector only."""
        if given.shape != tuple(truth.shape) or not np.isfinite(given).all():
            return False
        off = torch.as_tensor(given) - truth
        beside = off - (off @ unit)[:, None] * unit
        return bool(beside.abs().max() < 1e-3 * truth.abs().max())

    return array(
        truth,
        ("prompt", "d_model"),
        relative=1e-4,
        mistakes={
            "leaving the activations as they were": values,
            "taking the whole part along the direction away, so that the coordinate is 0 and not "
            "the training rows' mean. Activations need not be centred at zero": set_to(0.0),
            "setting the coordinate to the mean of the held-out rows, not of the training rows. An "
            "intervention must not be fitted to the prompts that it is judged on": set_to(
                (values @ unit).mean()
            ),
            "taking a direction that is not of length 1. Divide it by its norm": set_to(
                (train @ move).mean(), move
            ),
            "putting in the mean activation. Only the one direction shall change": (
                train.mean(dim=0).expand_as(values)
            ),
            "keeping the part along the direction and dropping the rest; it is the other way round"
            "": (values @ unit)[:, None] * unit,
            "adding the whole mean activation, not its part along the direction": set_to(0.0)
            + train.mean(dim=0),
            "adding the mean coordinate to every dimension, not along the unit vector": set_to(0.0)
            + (train @ unit).mean(),
            "turning the sign, so that every activation ends up twice as far from the mean "
            "coordinate": 2 * values - truth,
            "moving every activation by half the difference of means. The two orders meet, but "
            "prompts of one order still differ along the direction": values + to_other / 2,
            "moving every activation to the other order. Both shall end in the middle": values
            + to_other,
            "adding the same vector to every activation, so that they differ as before": values
            + move,
            "taking the component with the largest variance, not the difference of means": set_to(
                (train @ main).mean(), main
            ),
            "taking the direction that a probe reads, not the difference of means": set_to(
                (train @ read).mean(), read
            ),
            "taking all rows of `messy`, the held-out ones as well. Direction and mean are over "
            "all rows; take both from the training rows": set_to(
                (everything @ leaky).mean(), leaky
            ),
            "taking the mean coordinate of all rows of `messy`, the held-out ones as well. The "
            "mean coordinate is over all rows; take the training rows'": set_to(
                (everything @ unit).mean()
            ),
        },
        rules={
            "Only the coordinate changed, as it should, but it is not the training rows' mean.": (
                only_along
            )
        },
        hint="Only the coordinate along the unit vector may change.",
        right=_effect_of_erasing(ctx, truth),
    )


def _effect_of_erasing(ctx: Context, erased: Float[Tensor, "batch d_model"]) -> str:
    sample = _sample(ctx)
    edit = residual_edit(sample, "S2", ctx.point, erased.float())
    before = runs.logit_diffs(ctx.model, sample)
    after = runs.logit_diffs(ctx.model, sample, [edit])
    abba = _is_abba(sample).bool()
    by_order = ", ".join(
        f"for {name} from {before[rows].mean():.2f} to {after[rows].mean():.2f}"
        for name, rows in (("ABBA", abba), ("BABA", ~abba))
    )
    said = (
        f"The mean logit difference goes {by_order}, and IO is preferred on "
        f"{(after > 0).float().mean():.2f} of the prompts."
    )
    if (after - before).abs().mean() < 0.1 * before.abs().mean():
        said += " So nothing is read along this direction on this model: there was no bit to take."
    return said


# --- 06.7 The real counterfactual -----------------------------------------------------------------


@exercise("06.7")
def _counterfactual(ctx: Context) -> Key:
    model, sample = ctx.model, _sample(ctx)
    other = sample.swap_order()

    def log_probs(role: str, data: IOIDataset = sample, source: IOIDataset | None = None) -> Tensor:
        """What is predicted at a role, with S2 from the run on `source`."""
        edits = []
        if source is not None:
            new = runs.activations_at(model, source, "S2", ctx.point)
            edits = [residual_edit(data, "S2", ctx.point, new)]
        logits = runs.logits_at(model, data, role, edits)
        return logits.cpu().double().log_softmax(dim=-1)

    def kl(before: Tensor, after: Tensor) -> float:
        return float((before.exp() * (before - after)).sum(dim=-1).mean())

    clean, patched = log_probs("S2"), log_probs("S2", source=other)
    truth = kl(clean, patched)
    by_answer = kl(log_probs("END"), log_probs("END", source=other))
    new = runs.activations_at(model, other, "S2", ctx.point)
    everywhere = next_token_kl(model, sample, [residual_edit(sample, "S2", ctx.point, new)])
    messy: IOIDataset = ctx.messy
    right = (
        f"At END, many words later, the same patch changes the prediction by {by_answer:.4f} nats."
    )
    if truth < NEXT_TO_NOTHING:
        right = f"Next to nothing on this model: at S2 the orders hardly differ. {right}"
    return number(
        truth,
        relative=0.005,
        absolute=NEXT_TO_NOTHING if truth < NEXT_TO_NOTHING else 1e-7,
        mistakes={
            "changing nothing at S2. Zero: nothing changed at S2. The activations must come from "
            "`sample.swap_order()` and go in at S2; a causal model's S2 cannot see a later position"
            "": 0.0,
            "measuring it on all of `messy`, not on `sample`": kl(
                log_probs("S2", messy), log_probs("S2", messy, messy.swap_order())
            ),
            "measuring the change at END, not the prediction at S2": by_answer,
            "taking the two distributions exchanged; KL(clean || patched) weighs with the clean one"
            "": kl(patched, clean),
            "taking the sum over the prompts, not the mean": truth * len(sample),
            "averaging over the tokens as well; a divergence is their sum (in `kl_div`, "
            "reduction='batchmean')": truth / clean.shape[-1],
            "taking prompts that have another subject; exchange the order": kl(
                clean, log_probs("S2", source=sample.swap_subject())
            ),
            "giving bits; give nats (the natural logarithm)": truth / np.log(2.0),
            "reading the prediction in the other prompts' own run, where everything before S2 is "
            "different as well. Put only their S2 into the run on `sample`": kl(
                clean, log_probs("S2", other)
            ),
            "averaging over all positions, not taking S2 only": float(everywhere.nanmean()),
        },
        hint="Patch S2 at `point`, read the prediction at S2, clean distribution first.",
        right=right,
    )
