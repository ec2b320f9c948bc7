"""Checks for notebook 06, residual probing.

They expect `exercises.use(model=model, messy=messy, base=base, many=many, point=point)`: prompts
with a prefix sentence and without, thousands of others with one (to be counted, not run), and the
point of the residual stream that the notebook looks closer at. Every truth is recomputed on the
model at hand, and so is the value that each known mistake leads to.
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
from ioi_helpers.exercises.legacy import (
    Refused,
    Verdict,
    as_array,
    exercise,
    is_blank,
    numeric,
    tensor_close,
)
from ioi_helpers.exercises.registry import Context

TEST_SHARE = 0.15  # of `messy`, in the notebook's own split
LEAST_TRAIN, LEAST_TEST = 90, 40  # rows that exercise 06.3 asks for
FOLDS = 4  # of the notebook's probes
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


# --- 06.1 -----------------------------------------------------------------------------------------


def _correlation(
    ctx: Context, component: int = 0, centred: bool = True, role: str = "S2", column: bool = False
) -> float:
    values = _stream(ctx, role)
    centre = values.mean(dim=0) if centred else torch.zeros_like(values[0])
    _, _, components = torch.linalg.svd(values - centre, full_matrices=False)
    along = components[:, component] if column else components[component]
    coordinates = (values - centre) @ along
    found = np.corrcoef(coordinates.numpy(), _is_abba(ctx.messy).numpy())[0, 1]
    return abs(float(found))


def _correlation_with_means(ctx: Context) -> float:
    values, abba = _stream(ctx), _is_abba(ctx.messy)
    between = values[abba.bool()].mean(dim=0) - values[~abba.bool()].mean(dim=0)
    return abs(float(np.corrcoef((values @ between).numpy(), abba.numpy())[0, 1]))


@exercise("06.1", title="The main component and the order", difficulty="warm-up", minutes=8)
def _main_component(answer: Any, ctx: Context) -> Verdict:
    truth = ctx.once("correlation", lambda: _correlation(ctx))
    negative = (
        "A correlation's sign is arbitrary here, as a component may point either way: give its "
        "absolute value."
    )
    return numeric(
        answer,
        truth,
        # Narrow: the usual mistakes change little where the order is the main thing in the cloud.
        relative=1e-4,
        absolute=2e-5,
        mistakes={
            negative: -truth,
            "That is the squared correlation, the share of variance. Give the correlation.": (
                truth**2
            ),
            "This is the first component of activations that were not centred: it points to where "
            "the cloud is. Subtract the mean activation first.": lambda: _correlation(
                ctx, centred=False
            ),
            "That is the second component. Rows of Vh come largest first, counted from 0.": (
                lambda: _correlation(ctx, component=1)
            ),
            "That projects on the first column of Vh; the components are its rows.": (
                lambda: _correlation(ctx, column=True)
            ),
            "That is the last component. Rows of Vh come largest first.": (
                lambda: _correlation(ctx, component=-1)
            ),
            "That is the coordinate along the difference of the two orders' means, which uses the "
            "labels. The first component knows none.": lambda: _correlation_with_means(ctx),
            "These are activations at END; the exercise asks for S2.": lambda: _correlation(
                ctx, role="END"
            ),
        },
        hint="Centre, decompose, project on the first row of Vh, correlate with the order.",
        right="The square of it is the share in section 2.",
    )


# --- 06.2 -----------------------------------------------------------------------------------------


@exercise("06.2", title="How sure?", difficulty="easy", minutes=8)
def _how_sure(answer: Any, ctx: Context) -> Verdict:
    def compute() -> Float[Tensor, " batch"]:
        early = runs.residual_points(ctx.model)[1]
        values = runs.activations_at(ctx.model, ctx.messy, "S2", early)
        score = probing.evaluate_probe(
            values, ctx.messy.orders, _groups(ctx), n_folds=FOLDS, n_controls=1
        )
        told = zip(score.predicted, ctx.messy.orders, strict=True)
        return torch.tensor([said == order for said, order in told]).double()

    right = ctx.once("right at the early point", compute)
    template, n = _groups(ctx)["template"], len(right)
    estimate = metrics.mean_and_stderr(right, clusters=template)
    by_template = torch.stack([right[template == t].mean() for t in template.unique()])
    of_means = float(by_template.std() / len(by_template) ** 0.5)
    truth, k = estimate.stderr, estimate.n
    if not is_blank(answer):
        unweighted = numeric(answer, of_means, relative=0.005)
        if unweighted.passed:
            return Verdict(
                True,
                "That is the error of the plain mean of the templates' means. It counts a template "
                f"with few prompts as much as one with many; over prompts it is {truth:.4f}.",
            )
        jackknife = numeric(answer, _jackknife(right, template), relative=0.005)
        if jackknife.passed:
            return Verdict(
                True, f"That is the jackknife over templates; the sum of hint 2 is {truth:.4f}."
            )
    deviation = float(right.std())
    mistakes = {
        "The factor k / (k - 1) is missing, where k is the number of templates.": truth
        * ((k - 1) / k) ** 0.5,
        "That is the variance of the mean: take the root.": truth**2,
        "Here the sums over templates are divided by the number of templates; divide by the "
        "number of prompts.": truth * n / k,
        "This treats the prompts as independent of each other. Prompts of one template succeed "
        "or fail together: let them be one cluster.": deviation / n**0.5,
        "This treats the prompts as independent of each other (and divides by n, not n - 1). "
        "Let the prompts of a template be one cluster.": float(right.std(correction=0)) / n**0.5,
        "Here the pairs of prompts are the clusters. What was held out together, and succeeds "
        "or fails together, is the template.": lambda: (
            metrics.mean_and_stderr(right, clusters=ctx.messy.pair_ids).stderr
        ),
        "Here the pairs of names are the clusters; take the templates.": lambda: (
            metrics.mean_and_stderr(right, clusters=_groups(ctx)["names"]).stderr
        ),
        "That is a standard deviation, not yet the error of a mean.": deviation,
        "That is how much templates differ from each other, not yet the error of their mean: "
        "divide by the root of their number.": float(by_template.std()),
        "That is the mean itself: its standard error is asked for.": estimate.mean,
        "`template_ids` counts two templates as different that differ only after S2, where the "
        "probe has not read yet. Use grouped['template'].": lambda: (
            metrics.mean_and_stderr(right, clusters=ctx.messy.template_ids).stderr
        ),
        "That divides by the number of templates where one less is due (std(correction=1)).": (
            float(by_template.std(correction=0)) / k**0.5
        ),
        "That is half of a 95 % interval. Give the standard error itself.": 1.96 * truth,
    }
    verdict = numeric(
        answer,
        truth,
        relative=0.005,
        mistakes=mistakes,
        hint="Which prompts succeed or fail together? Let each such set be one cluster.",
        right=f"There are {k} templates, so at most {k} independent values and not {n}.",
    )
    unknown = verdict.passed is False and verdict.message not in mistakes
    if unknown and numeric(answer, truth, relative=CLOSE).passed:
        # A bootstrap of whole templates, for instance, estimates the same.
        return Verdict(
            True, f"Close: an estimate of the same quantity; by hint 2 it is {truth:.4f}."
        )
    return verdict


def _jackknife(right: Float[Tensor, " batch"], clusters: Int[Tensor, " batch"]) -> float:
    """Standard error of the mean, from the means that leave out one cluster each."""
    without = torch.stack([right[clusters != one].mean() for one in clusters.unique()])
    k = len(without)
    return float(((without - without.mean()).square().sum() * (k - 1) / k).sqrt())


# --- 06.3 -----------------------------------------------------------------------------------------


@exercise("06.3", title="An honest split by hand", difficulty="medium", minutes=20)
def _honest_split(answer: Any, ctx: Context) -> Verdict:
    n = len(ctx.messy)
    if isinstance(answer, probing.Split):
        answer = (answer.train, answer.test)
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        raise Refused("Give two lists of row numbers: (training rows, test rows).")
    train, test = (_rows(part, n) for part in answer)
    for what, rows, least in (("training", train, LEAST_TRAIN), ("test", test, LEAST_TEST)):
        if len(rows) < least:
            return Verdict(False, f"There are {len(rows)} {what} rows; at least {least} are due.")
    grouped = _groups(ctx)
    split = probing.Split(train, test)
    both = len(np.intersect1d(train.numpy(), test.numpy()))
    if both:
        return Verdict(False, f"{both} rows are in both parts.")
    says = {
        "prompt": "Some test prompts have the same words as a training prompt as far as S2.",
        "names": (
            "Some test prompts have the same two names as a training prompt, perhaps in the other "
            "roles. Take such prompts out of training."
        ),
        "template": (
            "Some test prompts share their template, as read up to S2, with a training prompt. "
            "(Two of the templates differ only after S2; grouped['template'] knows.)"
        ),
    }
    for name, text in says.items():
        try:
            probing.check_split(split, grouped, hold_out=(name,))
        except probing.LeakedSplit:
            return Verdict(False, f"It leaks by {name}. {text}")
    for what, rows in (("training", train), ("test", test)):
        if len({ctx.messy.orders[i] for i in rows.tolist()}) < 2:
            return Verdict(False, f"All {what} rows have the same order; a probe needs both.")
    return Verdict(
        True,
        f"{len(train)} rows to train on, {len(test)} to test on, {n - len(train) - len(test)} in "
        "neither, and nothing is shared.",
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


# --- 06.4 -----------------------------------------------------------------------------------------


@exercise("06.4", title="What the probe at S1+1 reads", difficulty="easy", minutes=8)
def _after_s1(answer: Any, ctx: Context) -> Verdict:
    messy: IOIDataset = ctx.messy
    given = _tokens(answer, ctx)

    def stand(positions: Tensor, order: str) -> set[int]:
        rows = [i for i, o in enumerate(messy.orders) if o == order]
        return {int(messy.tokens[i, int(positions[i])]) for i in rows}

    at = messy.positions
    truth, other = stand(at["S1+1"], "BABA"), stand(at["S1+1"], "ABBA")
    if given == truth:
        shared = truth & other
        return Verdict(
            True,
            f"In ABBA prompts {len(other)} other tokens stand there, and {len(shared)} of these.",
        )
    if given == other:
        return Verdict(
            False,
            "Those follow the second name: S1 in ABBA prompts, IO in BABA prompts. The question is "
            "what follows S1 in BABA prompts.",
        )
    if given == truth | other:
        return Verdict(False, "Those are the tokens of both orders: keep the BABA prompts only.")
    if given == stand(at["S1"], "BABA") or given == stand(at["S1"], "ABBA"):
        return Verdict(False, "Those are the names at S1; S1+1 is the position after it.")
    if given == stand(at["S1"] + 2, "BABA"):
        return Verdict(False, "Those stand two positions after S1: positions['S1+1'] is enough.")
    if given == stand(at["S2"] + 1, "BABA"):
        return Verdict(False, "Those follow S2 and not S1.")
    extra, missing = len(given - truth), len(truth - given)
    stands = "does not stand" if extra == 1 else "do not stand"
    lack = "is" if missing == 1 else "are"
    return Verdict(False, f"{extra} of your tokens {stands} there, and {missing} {lack} missing.")


def _tokens(answer: Any, ctx: Context) -> set[int]:
    """Token numbers from texts or numbers. Raises Refused for the rest."""
    if isinstance(answer, (Tensor, np.ndarray)):
        answer = answer.tolist()
    if isinstance(answer, (str, int)) and not isinstance(answer, bool):
        answer = [answer]
    if not isinstance(answer, Iterable) or isinstance(answer, (bytes, bool)):
        raise Refused("A set of tokens is asked for: texts such as ' to', or token numbers.")
    found: set[int] = set()
    for token in answer:
        if isinstance(token, str):
            numbers = _encode(ctx, token)
            if len(numbers) != 1 and not token.startswith(" "):
                numbers = _encode(ctx, " " + token)
            if len(numbers) != 1:
                raise Refused(
                    f"{token!r} is no token; give the text of one, with its leading space."
                )
            if not token.startswith(" ") and token[:1].isalpha():
                raise Refused(f"The token has a leading space: {' ' + token!r}, not {token!r}.")
            found.add(numbers[0])
        elif _is_whole(token):
            found.add(int(token))
        else:
            raise Refused(f"{token!r} is no token; give texts or token numbers.")
    return found


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


# --- 06.5 -----------------------------------------------------------------------------------------


def _best_guess(data: IOIDataset, known: Sequence[Sequence[Any]]) -> float:
    """How often the commonest position of IO is right among rows alike in what is known."""
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for row, position in enumerate(data.positions["IO"].tolist()):
        groups[tuple(fact[row] for fact in known)].append(position)
    return sum(Counter(at).most_common(1)[0][1] for at in groups.values()) / len(data)


@exercise("06.5", title="The same with a prefix", difficulty="medium", minutes=12)
def _position_guess(answer: Any, ctx: Context) -> Verdict:
    many, messy, base = ctx.many, ctx.messy, ctx.base

    def order_and_template(data: IOIDataset) -> float:
        return _best_guess(data, [list(data.orders), data.template_ids.tolist()])

    def as_read() -> float:
        template = probing.groups(many, "S2")["template"].tolist()
        return _best_guess(many, [list(many.orders), template])

    truth = ctx.once("guess", lambda: order_and_template(many))
    wrong = numeric(answer, truth, relative=0.002).passed is False
    if wrong and numeric(answer, ctx.once("guess, as read", as_read), relative=0.002).passed:
        return Verdict(True, "(With templates told apart only as far as S2.)")
    order, template = list(many.orders), many.template_ids.tolist()
    return numeric(
        answer,
        truth,
        relative=0.002,
        mistakes={
            "That is on the few prompts of `messy`: the commonest position among so few is chosen "
            "and scored on the same prompts, so the share is too high. Take `many`.": (
                lambda: order_and_template(messy)
            ),
            "That is for someone who knows neither order nor template.": _best_guess(many, []),
            "That is for someone who knows the order only.": _best_guess(many, [order]),
            "That is for someone who knows the template only.": _best_guess(many, [template]),
            "With that you know everything: either the prefix's length was known as well, or these "
            "are the prompts without prefix (`base`).": lambda: order_and_template(base),
            "That is one over the number of positions. Some are commoner than others.": 1
            / len(many.positions["IO"].unique()),
            "That is a number of prompts; give a share of all of them.": len(many) * truth,
        },
        hint="Group by (order, template), take the commonest position of each group.",
        right="That much is to be had without any position. A probe that scores more, by more "
        "than its error, has something of the position.",
    )


# --- 06.6 -----------------------------------------------------------------------------------------


@exercise("06.6", title="Take the bit away", difficulty="hard", minutes=20)
def _erase(answer: Any, ctx: Context) -> Verdict:
    split = _split(ctx)
    values, train = _stream(ctx)[split.test], _stream(ctx)[split.train]
    unit = _move(ctx) / _move(ctx).norm()

    def set_to(coordinate: Any, along: Tensor = unit) -> Tensor:
        return values + (coordinate - values @ along)[:, None] * along

    truth = set_to((train @ unit).mean())
    # All rows, the held-out ones too: what an intervention must not be fitted to.
    everything = _stream(ctx)
    abba = _is_abba(ctx.messy).bool()
    leaky = everything[~abba].mean(dim=0) - everything[abba].mean(dim=0)
    leaky = leaky / leaky.norm()
    mistakes = {
        "These are the activations as they were.": values,
        "Here the whole part along the direction is gone, so that the coordinate is 0 and not "
        "the training rows' mean: activations need not be centred at zero.": lambda: set_to(0.0),
        "The coordinate is the mean of the held-out rows; take the training rows' (an "
        "intervention must not be fitted to the prompts that it is judged on).": lambda: set_to(
            (values @ unit).mean()
        ),
        "The direction is not of length 1: divide it by its norm.": lambda: (
            values + ((train @ _move(ctx)).mean() - values @ _move(ctx))[:, None] * _move(ctx)
        ),
        "Every activation became the mean activation. Only the one direction shall change.": (
            lambda: train.mean(dim=0).expand_as(values)
        ),
        "That keeps the part along the direction and drops the rest: it is the other way "
        "round.": lambda: (values @ unit)[:, None] * unit,
        "The whole mean activation was added; add its part along the direction.": lambda: (
            set_to(0.0) + train.mean(dim=0)
        ),
        "The mean coordinate was added to every dimension; it belongs along the unit vector.": (
            lambda: set_to(0.0) + (train @ unit).mean()
        ),
        "The sign is wrong: every activation ends up twice as far from the mean coordinate.": (
            lambda: 2 * values - truth
        ),
        "This moves every activation by half the difference of means: the two orders meet, but "
        "prompts of one order still differ along the direction.": lambda: (
            values + _towards_other(ctx)[:, None] * _move(ctx) / 2
        ),
        "This moves every activation to the other order. Here both orders shall end in the "
        "middle.": lambda: values + _towards_other(ctx)[:, None] * _move(ctx),
        "This adds the same vector to every activation, so they differ as much as before.": (
            lambda: values + _move(ctx)
        ),
        "That is the component with the largest variance, not the difference of means.": (
            lambda: set_to((train @ _main(train)).mean(), _main(train))
        ),
        "Direction and mean are over all rows of `messy`, the held-out ones as well; take both "
        "from the training rows.": lambda: set_to((everything @ leaky).mean(), leaky),
        "The mean coordinate is over all rows of `messy`, the held-out ones as well; take the "
        "training rows'.": lambda: set_to((everything @ unit).mean()),
    }
    half = getattr(answer, "dtype", None) in (torch.float16, np.dtype(np.float16))
    verdict = tensor_close(
        answer,
        truth,
        axes=("prompt", "d_model"),
        relative=1e-3 if half else 1e-4,
        mistakes=mistakes,
        hint="Only the coordinate along the unit vector may change.",
    )
    unknown = verdict.passed is False and verdict.message not in mistakes
    if unknown and _only_along(answer, truth, unit):
        return Verdict(
            False,
            "Only the coordinate changed, as it should, but it is not the training rows' mean.",
        )
    if verdict.passed is not True:
        return verdict
    return Verdict(True, ctx.once("erased", lambda: _effect_of_erasing(ctx, truth)))


def _only_along(
    answer: Any, truth: Float[Tensor, "batch d_model"], unit: Float[Tensor, " d_model"]
) -> bool:
    """Whether an answer differs from the truth along the unit vector only."""
    try:
        off = torch.as_tensor(as_array(answer))
    except Refused:
        return False
    if off.shape != truth.shape or not off.isfinite().all():
        return False
    off = off - truth
    beside = off - (off @ unit)[:, None] * unit
    return bool(beside.abs().max() < 1e-3 * truth.abs().max())


def _towards_other(ctx: Context) -> Float[Tensor, " batch"]:
    return 2 * _is_abba(_sample(ctx)) - 1


def _main(train: Float[Tensor, "batch d_model"]) -> Float[Tensor, " d_model"]:
    return probing.svd_projection(train, 1).components[0]


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
    return (
        f"The mean logit difference goes {by_order}, and IO is preferred on "
        f"{(after > 0).float().mean():.2f} of the prompts."
    )


# --- 06.7 -----------------------------------------------------------------------------------------


@exercise("06.7", title="The real counterfactual", difficulty="hard", minutes=20)
def _counterfactual(answer: Any, ctx: Context) -> Verdict:
    model, sample = ctx.model, _sample(ctx)
    other = ctx.once("swapped", sample.swap_order)

    def log_probs(role: str, data: IOIDataset = sample, edit: Any = None) -> Tensor:
        edits = [] if edit is None else [edit]
        logits = runs.logits_at(model, data, role, edits)
        return logits.cpu().double().log_softmax(dim=-1)

    def patched(role: str, source: IOIDataset = other) -> Tensor:
        new = runs.activations_at(model, source, "S2", ctx.point)
        return log_probs(role, edit=residual_edit(sample, "S2", ctx.point, new))

    def clean(role: str) -> Tensor:
        return ctx.once(f"clean, read at {role}", lambda: log_probs(role))

    def kl(before: Tensor, after: Tensor) -> float:
        return float((before.exp() * (before - after)).sum(dim=-1).mean())

    truth = ctx.once("kl at S2", lambda: kl(clean("S2"), patched("S2")))
    by_answer = ctx.once("kl at END", lambda: kl(clean("END"), patched("END")))
    return numeric(
        answer,
        truth,
        relative=0.005,
        absolute=1e-7,
        mistakes={
            "Zero: nothing changed at S2. The activations must come from `sample.swap_order()` and "
            "go in at S2; a causal model's S2 cannot see a later position.": 0.0,
            "That is on all of `messy`; use `sample`.": lambda: _kl_on_all(ctx),
            "That is the change at END; the prediction at S2 is asked for.": by_answer,
            "The two distributions are exchanged: KL(clean || patched) weighs with the clean "
            "one.": lambda: kl(patched("S2"), clean("S2")),
            "That is the sum over the prompts; take the mean.": truth * len(sample),
            "That is a mean over the tokens as well; a divergence is their sum (in `kl_div`, "
            "reduction='batchmean').": truth / clean("S2").shape[-1],
            "Those prompts have another subject; exchange the order.": lambda: kl(
                clean("S2"), patched("S2", sample.swap_subject())
            ),
            "That is in bits; give nats (the natural logarithm).": truth / np.log(2.0),
            "That is the prediction in the other prompts' own run, where everything before S2 is "
            "different as well. Put only their S2 into the run on `sample`.": lambda: kl(
                clean("S2"), log_probs("S2", other)
            ),
            "That is the mean over all positions; take S2 only.": lambda: _kl_everywhere(
                ctx, other
            ),
        },
        hint="Patch S2 at `point`, read the prediction at S2, clean distribution first.",
        right=f"At END, many words later, the same patch changes the prediction by {by_answer:.4f} "
        "nats.",
    )


def _kl_on_all(ctx: Context) -> float:
    messy: IOIDataset = ctx.messy
    new = runs.activations_at(ctx.model, messy.swap_order(), "S2", ctx.point)
    edit = residual_edit(messy, "S2", ctx.point, new)
    everywhere = next_token_kl(ctx.model, messy, [edit])
    return float(everywhere[torch.arange(len(messy)), messy.positions["S2"]].mean())


def _kl_everywhere(ctx: Context, other: IOIDataset) -> float:
    sample = _sample(ctx)
    new = runs.activations_at(ctx.model, other, "S2", ctx.point)
    edit = residual_edit(sample, "S2", ctx.point, new)
    return float(next_token_kl(ctx.model, sample, [edit]).nanmean())
