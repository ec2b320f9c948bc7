"""Keys to the exercises of notebook 12, your own circuit.

They expect `exercises.use(model=model, candidates=candidates, explore=explore,
explore_corrupted=explore_corrupted, held=held, held_corrupted=held_corrupted, found=found,
top=top)`: (prompts, counterfactuals) under the name of each behaviour, those of the chosen one to
search on and to test on, the (head, role) pairs that the search found, and the strongest of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from ioi_helpers import ablation, metrics, runs
from ioi_helpers.dataset import PromptDataset, TwoAnswerData
from ioi_helpers.exercises.forms import Pick, Refused, single_number
from ioi_helpers.exercises.measure import error, hooked, putting
from ioi_helpers.exercises.registry import Context, exercise
from ioi_helpers.exercises.verdicts import Key, number, pick
from ioi_helpers.names import parse_head

ENOUGH: Final = 0.75  # the share of pairs right that makes a behaviour
ERRORS: Final = 2.0  # how far above zero its mean logit difference must be
LEAST_PAIRS: Final = 10


def _diffs(ctx: Context, data: str) -> Float[Tensor, " batch"]:
    return ctx.once(f"diffs {data}", lambda: hooked(ctx.model, getattr(ctx, data), {}).cpu())


def _pairs_right(values: Float[Tensor, " batch"], pair_ids: Tensor) -> float:
    pairs = pair_ids.cpu()
    right = [bool((values[pairs == pair] > 0).all()) for pair in pairs.unique()]
    return sum(right) / len(right)


# --- 12.1 What can it do? -------------------------------------------------------------------------


@exercise("12.1")
def _what_it_can(ctx: Context) -> Key:
    candidates: Mapping[str, Sequence[TwoAnswerData]] = ctx.candidates

    def measured(data: TwoAnswerData) -> tuple[metrics.Estimate, tuple[float, float, float]]:
        """The mean; the shares right of pairs, of prompts, and of the first of each pair."""
        values = hooked(ctx.model, data, {}).cpu()  # type: ignore[arg-type]
        ids = data.pair_ids.cpu()
        first = torch.tensor([int(i) not in ids[:row].tolist() for row, i in enumerate(ids)])
        right = (values > 0).float()
        shares = _pairs_right(values, ids), float(right.mean()), float(right[first].mean())
        return metrics.mean_and_stderr(values, clusters=ids), shares

    found = {name: measured(data) for name, (data, _) in candidates.items()}
    beyond = {name for name, (mean, _) in found.items() if mean.mean > ERRORS * mean.stderr}

    def having(share: int, least: float = ENOUGH) -> frozenset[str]:
        return frozenset(name for name, (_, shares) in found.items() if shares[share] >= least)

    truth = having(0) & beyond
    called = {name.strip().lower(): name for name in candidates}

    def read(answer: Any) -> frozenset[str]:
        if isinstance(answer, Mapping):  # {name: True}, as the predictions are written
            answer = [name for name, yes in answer.items() if yes]
        if isinstance(answer, str):
            answer = [answer]
        if not isinstance(answer, (list, tuple, set, frozenset)):
            raise Refused(f"Answer with a list of names, some of: {', '.join(candidates)}.")
        unknown = [name for name in answer if str(name).strip().lower() not in called]
        if unknown:
            raise Refused(f"{unknown[0]!r} is none of the candidates: {', '.join(candidates)}.")
        return frozenset(called[str(name).strip().lower()] for name in answer)

    return pick(
        truth,
        read,
        says="These are",
        mistakes={
            "counting prompts, not pairs. A liking for one answer gets one of each pair right": (
                having(1) & beyond
            ),
            "looking at the mean logit difference alone. It says that the model listens, not that "
            "it gets both of a pair right": frozenset(beyond),
            "looking at the first prompt of each pair only": having(2),
            "asking for half of the prompts. A model that does not listen has that": having(1, 0.5),
            "naming those that it has not": frozenset(candidates) - truth,
            "naming all of them": frozenset(candidates),
        },
        rules={
            "At least one of these has fewer than three quarters of its pairs right, or a mean "
            "within two errors of zero.": lambda given: bool(given - truth),
            "At least one is missing that has three quarters of its pairs right.": lambda given: (
                bool(truth - given)
            ),
        },
        right="Pairs right: "
        + ", ".join(f"{name} {shares[0]:.2f}" for name, (_, shares) in found.items())
        + ".",
    )


# --- 12.2 The gap ---------------------------------------------------------------------------------


@exercise("12.2")
def _the_gap(ctx: Context) -> Key:
    clean, corrupted = _diffs(ctx, "explore"), _diffs(ctx, "explore_corrupted")
    gap = clean - corrupted
    mean = float(gap.mean())
    whole = [clean, _diffs(ctx, "held")]
    return number(
        mean,
        relative=0.005,
        absolute=1e-3,
        error=error(gap, ctx.explore),
        unit="logits",
        mistakes={
            "scoring the corrupted run with its own right answer, so that two right answers are "
            "compared. Both are scored with the clean prompt's": float(
                clean.mean() + corrupted.mean()
            ),
            "taking the clean run alone. The gap reaches down to the corrupted run": clean.mean(),
            "taking the corrupted run alone": corrupted.mean(),
            "subtracting the clean run from the corrupted": -mean,
            "taking half of it": mean / 2 if abs(mean / 2 - float(clean.mean())) > 1e-3 else None,
            "taking all prompts, not those of `explore`": 2 * torch.cat(whole).mean(),
            "taking the prompts of `held`": (
                _diffs(ctx, "held") - _diffs(ctx, "held_corrupted")
            ).mean(),
            "dividing by the clean run": mean / float(clean.mean()),
            "comparing accuracies: the share of prompts right": (clean > 0).float().mean()
            - (corrupted > 0).float().mean(),
        },
        right=f"Clean {float(clean.mean()):z.2f}, corrupted {float(corrupted.mean()):z.2f}.",
    )


# --- 12.3 One patch by hand -----------------------------------------------------------------------


@exercise("12.3")
def _one_patch(ctx: Context) -> Key:
    model, explore, corrupted = ctx.model, ctx.explore, ctx.explore_corrupted
    name, role = ctx.top
    layer, head = parse_head(name)
    hook = f"blocks.{layer}.attn.hook_z"
    _, ours = model.run_with_cache(explore.tokens, names_filter=hook)
    _, theirs = model.run_with_cache(corrupted.tokens, names_filter=hook)
    low, high = (float(_diffs(ctx, n).mean()) for n in ("explore_corrupted", "explore"))
    gap = high - low

    def patched(new: Any, at: str | None = role, which: Any = head) -> float:
        change = {hook: putting(new, corrupted, at, which)}
        return float(hooked(model, corrupted, change, explore).mean())

    def share(value: float) -> float:
        return (value - low) / gap

    back = hooked(model, explore, {hook: putting(theirs[hook], explore, role, head)})
    each = hooked(
        model, corrupted, {hook: putting(ours[hook], corrupted, role, head)}, explore
    ).cpu() - _diffs(ctx, "explore_corrupted")
    elsewhere = next((other for other in explore.positions if other != role), None)
    truth, taken = share(patched(ours[hook])), (high - float(back.mean())) / gap
    return number(
        truth,
        relative=0.003,
        absolute=1e-3,
        error=error(each / gap, explore),
        mistakes={
            # Where each prompt is another's counterfactual, these are the same runs.
            "patching the other way round: corrupted into clean, and what that takes away": (
                taken if abs(taken - truth) > 2e-3 else None
            ),
            "patching the other way round: corrupted into clean, and what that leaves": (
                (float(back.mean()) - low) / gap
            ),
            "patching at every position. The head's role is asked for": share(
                patched(ours[hook], None)
            ),
            "patching all heads of the layer": share(patched(ours[hook], role, slice(None))),
            "patching at another role": share(patched(ours[hook], elsewhere))
            if elsewhere
            else None,
            "putting in zeros, not the clean output": share(patched(0.0)),
            "putting the corrupted run's own output in, which changes nothing": 0.0,
            "giving logits gained, not the fraction of the gap": truth * gap,
            "giving the patched logit difference, not the fraction of the gap": patched(ours[hook]),
            "giving percent, not a fraction": 100 * truth,
            "dividing by the clean logit difference, not by the gap": truth * gap / high,
            "taking what is left to recover": 1 - truth,
        },
        hint="Corrupted prompts are run, and the head's clean output is put in at its role.",
        right="The helper does the same, for every head and role."
        + (
            " Corrupted into clean takes as much away: each prompt is another's counterfactual."
            if abs(taken - truth) <= 2e-3
            else ""
        ),
    )


# --- 12.4 Do they add up? -------------------------------------------------------------------------


@exercise("12.4")
def _adding_up(ctx: Context) -> Key:
    found = [tuple(pair) for pair in ctx.found]
    sets = [[pair] for pair in found] + [found]

    def costs(data: str = "held", how: str = "mean", at: Any = sets) -> tuple[Tensor, Tensor]:
        """What each costs alone, and all of them together, by prompt."""
        reference = getattr(ctx, f"{data}_corrupted")
        swept = ablation.ablation_sweep(
            ctx.model, getattr(ctx, data), at, how=how, reference=reference, progress=False
        )
        gone = -swept.effect().cpu()
        return gone[:-1], gone[-1]

    def ratio(alone: Tensor, together: Tensor) -> float:
        return float(alone.mean(dim=-1).sum() / together.mean())

    alone, together = costs()
    before = float(_diffs(ctx, "held").mean())
    everywhere = [[name for name, _ in one] for one in sets]
    left = before - alone.mean(dim=-1)
    truth = ratio(alone, together)
    spread = error(alone.sum(dim=0) / together.mean(), ctx.held)
    return number(
        truth,
        relative=0.01,
        absolute=5e-3,
        error=spread,
        mistakes={
            "ablating by zero. Means over the counterfactuals are asked for": ratio(
                *costs(how="zero")
            ),
            "resampling. Means over the counterfactuals are asked for": ratio(
                *costs(how="resample")
            ),
            "measuring on `explore`, where the heads were searched": ratio(*costs("explore")),
            "ablating the heads at every token, not at their roles": ratio(*costs(at=everywhere)),
            "dividing the other way round: all at once by the sum": 1 / truth,
            "taking the mean of the single costs, not their sum": truth / len(found),
            "taking the largest single cost, not the sum": float(
                alone.mean(dim=-1).max() / together.mean()
            ),
            "adding up what is left, not what it costs": float(left.sum() / together.mean()),
            "adding up what is left, in both places": float(
                left.sum() / (before - together.mean())
            ),
            "taking the sum of the costs alone, in logits": alone.mean(dim=-1).sum(),
            "dividing by the whole model's logit difference": alone.mean(dim=-1).sum() / before,
            "counting what is lost as negative in one of the two": -truth,
            "taking what all of them cost, in logits": together.mean(),
        },
        right="Within two errors the costs add up."
        if abs(truth - 1) <= 2 * spread
        else "Alone they cost less than together: they stand in for each other."
        if truth < 1
        else "Alone they cost more than together: each needs the other, as in a chain.",
    )


# --- 12.5 A behaviour of your own -----------------------------------------------------------------


def _rows_of(answer: Any) -> list[tuple[str, str, str, str]]:
    if not isinstance(answer, (list, tuple)) or any(
        not isinstance(row, (list, tuple)) or len(row) < 4 for row in answer
    ):
        raise Refused(
            "The rows come first: a list in which each has a prompt, the right answer, the wrong "
            "one and the corrupted prompt, as `both_ways` makes them."
        )
    return [tuple(str(part) for part in row[:4]) for row in answer]  # type: ignore[misc]


def _built(ctx: Context, rows: Sequence[tuple[str, str, str, str]]) -> PromptDataset:
    """The prompts, or what is wrong with them."""
    own = {(row[0], row[3]): row for row in rows}
    for prompt, right, wrong, corrupted in own.values():
        other = own.get((corrupted, prompt))
        if other is None:
            raise Refused(
                f"The counterfactual {corrupted!r} is no row of its own, so a liking for one "
                "answer would pass for a behaviour. Make pairs by `both_ways`."
            )
        if (other[1], other[2]) != (wrong, right):
            raise Refused(
                f"{prompt!r} and its counterfactual have to ask for different answers: what is "
                "right for the one is wrong for the other."
            )
    pairs = [frozenset((row[0], row[3])) for row in own.values()]
    numbers = {pair: i for i, pair in enumerate(dict.fromkeys(pairs))}
    if len(numbers) < LEAST_PAIRS:
        raise Refused(
            f"There are {len(numbers)} different pairs; make {LEAST_PAIRS} at least, for a few "
            "say little."
        )
    answers = [(row[1], row[2]) for row in own.values()]
    ids = [numbers[pair] for pair in pairs]
    tokenizer = ctx.model.tokenizer
    settings: dict[str, Any] = {
        "pair_ids": ids,
        "prepend_bos": tokenizer.bos_token_id is not None,
    }
    try:
        data, against = (
            PromptDataset.from_prompts(tokenizer, texts, answers, **settings)
            for texts in ([row[0] for row in own.values()], [row[3] for row in own.values()])
        )
    except ValueError as refusal:
        raise Refused(str(refusal)) from None
    uneven = (data.lengths != against.lengths).nonzero().flatten().tolist()
    if uneven:
        raise Refused(
            f"{data.prompts[uneven[0]]!r} and {against.prompts[uneven[0]]!r} have "
            f"{int(data.lengths[uneven[0]])} and {int(against.lengths[uneven[0]])} tokens. "
            "Patching wants token for token the same but for what is changed."
        )
    return data.to(ctx.model.cfg.device)


@exercise("12.5")
def _your_own(ctx: Context) -> Key:
    def read(answer: Any) -> str:
        if isinstance(answer, str) or not isinstance(answer, (list, tuple)) or len(answer) != 2:
            raise Refused("Answer with two things: the rows, and the share of pairs right.")
        data = _built(ctx, _rows_of(answer[0]))
        share = float(single_number(answer[1]))
        if not 0 <= share <= 1:
            raise Refused(f"A share lies between 0 and 1, and yours is {share:g}.")
        values = runs.logit_diffs(ctx.model, data, progress=False).cpu()
        found = metrics.mean_and_stderr(values, clusters=data.pair_ids.cpu())
        pairs, prompts = _pairs_right(values, data.pair_ids), float((values > 0).float().mean())
        measured = (
            f"Measured: {pairs:.2f} of the pairs right, {prompts:.2f} of the prompts, logit "
            f"difference {found}"
        )
        if pairs < ENOUGH:
            liking = prompts - pairs > 0.3 and prompts >= 0.5
            why = "That is a liking for one of the answers" if liking else "So it has it not"
            turned = _pairs_right(-values, data.pair_ids) >= ENOUGH
            why = "It does the opposite: are right and wrong exchanged?" if turned else f"{why}."
            raise Refused(f"{measured}. {why} Three quarters of the pairs are asked for.")
        if found.mean <= ERRORS * found.stderr:
            raise Refused(f"{measured}. The mean is within two errors of zero.")
        if abs(share - pairs) > 0.006:  # two decimals will do
            what = "the share of prompts" if abs(share - prompts) <= 0.006 else "another number"
            raise Refused(f"{measured}. You give {what} ({share:.2f}); give that of pairs.")
        return f"{measured}. Now put forty pairs of it into `MINE` and run the notebook again."

    return Key(Pick(read), lambda _: True, right=str)
