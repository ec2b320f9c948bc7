"""Keys to the exercises of notebook 11, breaking it.

They expect `exercises.use(model=model, many=many, few=few, attack=attack, control=control,
circuit=circuit)`: prompts of all templates, prompts of a few, these with IO named once more and
with a third name in its place, and the circuit on record. `readers` comes with exercise 11.3.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from ioi_helpers import circuits, heads, metrics, runs
from ioi_helpers.dataset import ROLES, IOIDataset
from ioi_helpers.edits import AttentionEdit, attention_edit
from ioi_helpers.exercises.forms import Numbers, Pick, Refused, single_number
from ioi_helpers.exercises.measure import Change, correlation, error, hooked
from ioi_helpers.exercises.registry import Context, exercise
from ioi_helpers.exercises.verdicts import Key, number, pick
from ioi_helpers.graph import Shape
from ioi_helpers.stimuli import NAMES

BOTH: Final = "template and order"
FRESH, FRESH_SEED = 200, 1107  # prompts on which exercise 11.5 tries an attack
LEAST_CHANGE = 0.1  # of the clean logit difference: what is less counts as no change
LEAST_POINTS = 0.1  # how many more prompts an attack must flip than its control
MOST_ERRORS = 3.0  # standard errors by which a claimed share may be off


def _told(values: Float[Tensor, " batch"], data: IOIDataset) -> str:
    """The mean in each order: a mean over both can be true of neither."""
    each = metrics.by_order(values, data)
    return " and ".join(f"{found.mean:z.3f} ({order})" for order, found in each.items())


def _told_shares(
    gain: Float[Tensor, " batch"], fall: Float[Tensor, " batch"], data: IOIDataset
) -> str:
    gains = metrics.by_order(gain, data)
    falls = metrics.by_order(fall, data)
    return " and ".join(f"{gains[o].mean / falls[o].mean:z.2f} ({o})" for o in falls)


def _diffs(ctx: Context, data: str) -> Float[Tensor, " batch"]:
    prompts: IOIDataset = getattr(ctx, data)
    return ctx.once(f"diffs {data}", lambda: hooked(ctx.model, prompts, {}).cpu())


# --- 11.1 One more S ------------------------------------------------------------------------------

EXTRA_S = "[B] had a good day."
DIRECTIONS = {
    "up": r"\b(up|higher|rises?|rising|increases?d?|more)\b|^\+$",
    "down": r"\b(down|lower|falls?|falling|decreases?d?|drops?|less)\b|^-$",
}
NO_CHANGE = r"\b(no|none|nothing|same|zero|neither|not)\b|unchanged|^0$"


def _direction(answer: Any) -> str:
    if isinstance(answer, (list, tuple)) and len(answer) == 1:
        answer = answer[0]
    if not isinstance(answer, str):
        raise Refused('Answer with one of the words "up", "down" or "no change".')
    said = answer.strip().lower()
    if "salien" in said:
        raise Refused(
            "That S is more salient is a reason, and one that neither story gives; measure, and "
            'answer "up", "down" or "no change".'
        )
    if re.search(NO_CHANGE, said):
        return "no change"
    found = [direction for direction, words in DIRECTIONS.items() if re.search(words, said)]
    if len(found) != 1:
        raise Refused(f'{answer!r} is none of "up", "down" and "no change".')
    return found[0]


def _kind_of(change: metrics.Estimate, level: float) -> str:
    """The notebook's one rule for what counts as a change."""
    if abs(change.mean) < max(LEAST_CHANGE * level, 2 * change.stderr):
        return "no change"
    return "up" if change.mean > 0 else "down"


@exercise("11.1")
def _one_more_s(ctx: Context) -> Key:
    many: IOIDataset = ctx.many
    level = float(_diffs(ctx, "many").mean())
    with_s = hooked(ctx.model, many.insert(EXTRA_S), {}).cpu()
    change = with_s - hooked(ctx.model, many.insert(EXTRA_S.replace("[B]", "[C]")), {}).cpu()
    found = metrics.mean_and_stderr(change, clusters=many.pair_ids)
    truth = _kind_of(found, level)
    none = truth == "no change"
    each = metrics.by_order(change, many)
    apart = ", ".join(f"{order} {one:+.2f}" for order, one in each.items())
    measured = f"Measured: {found} logits, against the control ({apart})"
    within = "which is under a tenth of the logit difference, or under two errors"
    beyond = "which is over a tenth of the logit difference and over two errors"
    # Where the orders differ, the mean over both is true of neither.
    others = {
        f"Right for {order} alone; the orders differ. {measured}.": kind
        for order, one in each.items()
        if (kind := _kind_of(one, level)) != truth
    }
    loose = metrics.mean_and_stderr(with_s - _diffs(ctx, "many"), clusters=many.pair_ids)
    against = f"(Against the prompts without any sentence, which is no control: {loose}.)"
    rules: dict[str, Callable[[str], bool]] = {
        f"{measured}, {within}. That S is more salient tells the circuit "
        f"nothing new: it is repeated already. {against}": lambda said: none and said == "down",
        f"{measured}, {within}, so no rise is shown. {against}": lambda said: none and said == "up",
        f"{measured}, {beyond}, so it is a change, whatever the "
        f"stories say. {against}": lambda said: not none and said == "no change",
        "It is the other way round; subtract the control from the variant.": lambda said: not none,
    }
    surprise = "as both stories say" if none else "which neither story says: put it on your list"
    right = f"{measured}, {surprise}."
    return pick(truth, _direction, also=others, rules=rules, right=right)


# --- 11.2 The circuit under attack ----------------------------------------------------------------


def _circuits(ctx: Context, data: str = "attack", **how: Any) -> circuits.Circuits:
    return circuits.Circuits(ctx.model, getattr(ctx, data), **how)


def _circuit_left(ctx: Context) -> Float[Tensor, " batch"]:
    def compute() -> Float[Tensor, " batch"]:
        return _circuits(ctx).run(ctx.circuit).logit_diff.cpu()

    return ctx.once("circuit under attack", compute)


@exercise("11.2")
def _under_attack(ctx: Context) -> Key:
    attack: IOIDataset = ctx.attack
    left, model = _circuit_left(ctx), _diffs(ctx, "attack")

    def run(data: str = "attack", **how: Any) -> float:
        return float(_circuits(ctx, data, **how).run(ctx.circuit).logit_diff.mean())

    still = _circuits(ctx)
    first = torch.tensor([order == "ABBA" for order in attack.orders])
    outside = ctx.circuit.outside(Shape.of(ctx.model), ROLES)
    # Which names the ABC prompts have is a matter of chance, and another draw is as right.
    others = {
        "Right, with means over another draw of ABC prompts.": run(reference=attack.abc(seed=1)),
        "Right: the control's ABC prompts are of the same kind as the attack's.": run(
            reference=ctx.control.abc()
        ),
    }
    spread = max(abs(value - float(left.mean())) for value in others.values())
    return number(
        left.mean(),
        relative=0.0,
        absolute=1e-3,  # a faithful circuit and the model lie close together
        unit="logits",
        also=others,
        close=(2 * spread, "Right, up to which ABC prompts the means are over."),
        mistakes={
            "running the whole model, not the circuit": model.mean(),
            "comparing accuracies only: the share of prompts with IO above S. Give the mean logit "
            "difference": (left > 0).float().mean(),
            "comparing accuracies only, the model's. Give the circuit's mean logit difference": (
                model > 0
            )
            .float()
            .mean(),
            "taking different prompts for each: the circuit on `few`, where nobody is named once "
            "more, with means of the short templates": run("few"),
            "taking different prompts for each: the circuit on `control`": run("control"),
            "taking means over the attack's own prompts, in which names are repeated. Take "
            "`attack.abc()`": _quietly(lambda: run(reference=attack)),
            "ablating by zero, not by the mean": run(how="zero"),
            "resampling in place of taking means": run(how="resample"),
            "ablating at the roles only; what stands at other positions is outside as well": (
                still.run_model(without=outside).logit_diff.mean()
            ),
            "running the heads that have a head class on record, which are no circuit": (
                still.run(heads.circuit(ctx.model)).logit_diff.mean()
                if heads.registry(ctx.model)
                else None
            ),
            "taking ABBA only; both orders are asked for": left[first].mean(),
            "taking BABA only; both orders are asked for": left[~first].mean(),
            "taking one mean for all prompts. Take it by template and order": run(group="all"),
            "leaving out the circuit and keeping the rest": still.run_model(
                without=ctx.circuit
            ).logit_diff.mean(),
            "keeping nothing: the empty circuit": still.run(()).logit_diff.mean(),
            "dividing by the model's logit difference, which gives their ratio": left.mean()
            / model.mean(),
            "taking the difference from the model": left.mean() - model.mean(),
        },
        right=f"By order the circuit has {_told(left, attack)}, the model {_told(model, attack)}.",
    )


def _quietly(run: Callable[[], float]) -> float:
    """Without the warning that the mistake deserves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run()


# --- 11.3 Give the readers their attention back ---------------------------------------------------


@exercise("11.3")
def _attention_back(ctx: Context) -> Key:
    model, attack, control, few = ctx.model, ctx.attack, ctx.control, ctx.few
    readers = [heads.parse_head(head) for head in ctx.readers]
    every = [heads.parse_head(head) for head in heads.head_labels(model)]
    others = [head for head in every if head not in readers]
    low, high = _diffs(ctx, "attack"), _diffs(ctx, "control")
    fall = high.mean() - low.mean()
    width = attack.tokens.shape[1]

    def rows_of(data: IOIDataset, chosen: Any, role: str = "END") -> dict[str, Tensor]:
        found = runs.attention_patterns(model, data, chosen, role, progress=False)
        short = width - data.tokens.shape[1]
        return {h: torch.nn.functional.pad(rows, (0, max(short, 0))) for h, rows in found.items()}

    def patched(
        donor: IOIDataset, chosen: Any, target: IOIDataset = attack, role: str = "END"
    ) -> Float[Tensor, " batch"]:
        edits = [
            attention_edit(target, role, h, rows)
            for h, rows in rows_of(donor, chosen, role).items()
        ]
        return runs.logit_diffs(model, target, edits, progress=False).cpu()

    def by_hand(head: str, rows: Tensor) -> AttentionEdit:
        """The attack's own attention, with that to the new name given to S2."""
        rows, to = rows.clone(), attack.positions["S2"]
        i, new_name = torch.arange(len(rows), device=rows.device), attack.mentions[:, 0]
        rows[i, to] += rows[i, new_name]
        rows[i, new_name] = 0
        return attention_edit(attack, "END", head, rows)

    new = patched(control, readers)
    moved = [by_hand(head, rows) for head, rows in rows_of(attack, readers).items()]
    undone = (new - low) / fall
    at = torch.arange(len(attack)), attack.mentions[:, 0].cpu()
    look = torch.stack([p.cpu()[at] for p in rows_of(attack, readers).values()]).mean(dim=0)
    at_s2 = attack.positions["S2"].cpu()
    look_s2 = torch.stack([p.cpu()[at[0], at_s2] for p in rows_of(attack, readers).values()])
    fooled = low < 0
    mixed = bool(fooled.any()) and not bool(fooled.all())
    return number(
        undone.mean(),
        relative=0.01,
        absolute=5e-3,
        error=error(undone, few),
        mistakes={
            "averaging attention over failures and successes. That says where the readers look, "
            "not what it does: put the control's pattern in": look.mean(),
            "averaging attention to S2 over failures and successes; put the control's pattern in": (
                look_s2.mean()
            ),
            "taking the correlation of attention and logit difference as proof; patch the "
            "pattern": correlation(look, low),
            "taking S2 by its absolute index in the prompts without the inserted words, whose "
            "patterns do not fit; take those of `control`": (
                (patched(few, readers).mean() - low.mean()) / fall
            ),
            "patching all other heads, not the readers": (
                patched(control, others).mean() - low.mean()
            )
            / fall,
            "patching all heads, not the readers": (patched(control, every).mean() - low.mean())
            / fall,
            "patching the other way round: the attack's attention into `control`": (
                (high.mean() - patched(attack, readers, control).mean()) / fall
            ),
            "moving the attention from the new name to S2 by hand; take the control's pattern": (
                (runs.logit_diffs(model, attack, moved, progress=False).mean().cpu() - low.mean())
                / fall
            ),
            "giving the attack its own attention back, which changes nothing": 0.0,
            "giving percent, not a share": 100 * undone.mean(),
            "comparing accuracies: how many more prompts have IO above S": (
                (new > 0).float().mean() - (low > 0).float().mean()
            ),
            "taking what is left as a share of the control's logit difference": new.mean()
            / high.mean(),
            "patching at S2, not at END": (
                (patched(control, readers, role="S2").mean() - low.mean()) / fall
            ),
            "averaging each prompt's share. Take means first, as single falls may be near zero": (
                ((new - low) / (high - low)).mean()
            ),
            "taking what is gained in logits, not the share": new.mean() - low.mean(),
            "taking the logit difference that is left, not the share": new.mean(),
            "taking what is left of the fall, not what is undone": 1 - undone.mean(),
            "dividing by the control's logit difference, not by the fall": (new - low).mean()
            / high.mean(),
            "looking at failures only": undone[fooled].mean() if mixed else None,
        },
        hint="Patch all readers at once, at END, with the attention they have on `control`.",
        right=f"By order {_told_shares(new - low, high - low, few)}. So where they look "
        + (
            "is most of it."
            if undone.mean() > 0.5
            else "is part of it."
            if undone.mean() > 0.15
            else "is hardly the cause here."
        ),
    )


# --- 11.4 The blind spot --------------------------------------------------------------------------


@dataclass(frozen=True)
class Explained(Numbers):
    """A number; whoever answers in words is told what is wrong with them."""

    words: Mapping[str, str]

    def read(self, answer: Any) -> Any:
        if isinstance(answer, str):
            for pattern, refusal in self.words.items():
                if re.search(pattern, answer, re.IGNORECASE):
                    raise Refused(refusal)
        return super().read(answer)


@exercise("11.4")
def _blind_spot(ctx: Context) -> Key:
    model = ctx.model
    attack: IOIDataset = ctx.attack
    abc: IOIDataset = attack.abc()
    low, its = _diffs(ctx, "attack"), _circuit_left(ctx)
    positions = attack.mentions[:, 0]
    sites = [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]
    rows = torch.arange(len(attack), device=positions.device)

    def z_on(data: IOIDataset) -> dict[str, Float[Tensor, "batch pos head d_head"]]:
        return model.run_with_cache(data.tokens, names_filter=sites)[1]

    donors = {"abc": abc, "attack": attack, "control": ctx.control}
    donors |= {"abc again": attack.abc(seed=1), "abc of control": ctx.control.abc()}
    z = {name: z_on(data) for name, data in donors.items()}

    def left(donor: str | None, by: str | None = BOTH, role: str | None = None) -> float:
        """With all heads' z at the new name, or a role, replaced."""
        at = positions if role is None else attack.positions[role]
        changes: dict[str, Change] = {}
        for site in sites:
            new = torch.zeros_like(z["abc"][site])
            if donor is not None:
                values = z[donor][site][rows, at].clone()
                groups = [slice(None)] if by == "all" else attack.groups(by).values() if by else []  # type: ignore[arg-type]
                for group in groups:
                    values[group] = values[group].mean(dim=0)
                new[rows, at] = values
            changes[site] = _put(new, rows, at)
        return float(hooked(model, attack, changes).mean())

    truth = left("abc")
    lead = metrics.mean_and_stderr(its - low, clusters=attack.pair_ids)
    words = {
        r"noise|chance": f"Noise it is not to be called without its size: the circuit's lead "
        f"is {lead} logits. Mean-ablate the heads at the new name, and give a number.",
        r"faithful|better|above 1|good": "A faithfulness above 1 is as far from the model as "
        "one below: the circuit does what the model does not. Give a number.",
        r"see|blind|know|because|position|role": "That is the idea; now show it. Give the logit "
        "difference of the model whose heads are mean-ablated at the new name.",
    }
    others = {
        "Right, with means over another draw of ABC prompts.": left("abc again"),
        "Right: the control's ABC prompts are of the same kind as the attack's.": left(
            "abc of control"
        ),
    }
    spread = max(abs(value - truth) for value in others.values())
    everywhere = {site: _everywhere(z["abc"][site], attack.groups(BOTH).values()) for site in sites}
    key = number(
        truth,
        relative=0.0,
        absolute=1e-3,  # the new name may matter little
        unit="logits",
        also=others,
        close=(2 * spread, "Right, up to which ABC prompts the means are over."),
        mistakes={
            "running the model as it is, with nothing ablated": low.mean(),
            "running the circuit. Keep the whole model but for the new name": its.mean(),
            "taking the circuit's lead over the model": lead.mean,
            "taking the circuit's ratio to the model, which is any number where the model's logit "
            "difference is near 0. Give logits": its.mean() / low.mean(),
            "taking a share of the lead, not logits": (truth - float(low.mean())) / lead.mean,
            "resampling from each row's ABC prompt. Average within template and order": left(
                "abc", None
            ),
            "averaging over all prompts. Average within template and order": left("abc", "all"),
            "averaging within templates, over both orders; keep the orders apart": left(
                "abc", "template"
            ),
            "averaging within orders, over all templates; keep the templates apart": left(
                "abc", "order"
            ),
            "averaging over the attack's own prompts, where names are repeated. Take "
            "`attack.abc()`": left("attack"),
            "running the model on `control`, with nothing ablated": _diffs(ctx, "control").mean(),
            "taking what is gained, not what is left": truth - float(low.mean()),
            "ablating all heads at all positions, not at the new name only": float(
                hooked(model, attack, everywhere).mean()
            ),
            "ablating heads at S1. The new name stands elsewhere": left("abc", role="S1"),
            "taking what heads write on `control`, not the ABC means": left("control", None),
            "ablating by zero, not by the mean": left(None),
            "ablating heads at S2. The new name stands elsewhere": left("abc", role="S2"),
            "ablating heads at IO. The new name stands elsewhere": left("abc", role="IO"),
            "ablating heads at END. The new name stands elsewhere": left("abc", role="END"),
        },
        right=f"By order the model has {_told(low, attack)} as it is, the circuit "
        f"{_told(its, attack)}.",
    )
    return replace(key, form=Explained(**vars(key.form), words=words))


def _everywhere(z: Tensor, groups: Iterable[Tensor]) -> Change:
    """Means at every position, of groups whose prompts correspond by index."""
    means = z.clone()
    for rows in groups:
        means[rows] = z[rows].mean(dim=0)
    return lambda value: means.to(value)


def _put(new: Tensor, rows: Tensor, at: Tensor) -> Change:
    def change(value: Tensor) -> Tensor:
        value = value.clone()
        value[rows, at] = new[rows, at].to(value)
        return value

    return change


# --- 11.5 An attack that a story predicts ---------------------------------------------------------


def _refuse_text(text: str, where: str) -> None:
    """Say what is wrong with an attack before it is tried."""
    for name in re.findall(r"\b[A-Z][a-z]+\b", text):
        if name in NAMES:
            raise Refused(
                f"{name} is written out: that is one prompt's name, and a name of two tokens would "
                "move the roles. Write [A] for IO, so that every prompt gets its own."
            )
    if re.search(r"\[(?![ABC]\])", text):
        raise Refused(
            f"The text {text!r} may hold the fields [A] (IO), [B] (S) and [C] (a third name), and "
            "no other brackets."
        )
    if "[A]" not in text:
        if "[B]" in text:
            raise Refused(
                "That names S once more, who is repeated already and stands last already: it may "
                "work, but neither story predicts it. Put it on your list, and name IO."
            )
        raise Refused("That names neither IO nor S, so it is its own control: name IO by [A].")
    ended = text.strip()
    if where == "after S2":
        if not (ended.startswith(",") and ended.endswith(",")) or re.search(r"[.!?;:]", ended):
            raise Refused(
                "That breaks the template: after S2 comes what S does, so IOI would no longer have "
                "an answer. Set the words off by a comma on either side."
            )
    elif not ended.endswith((".", "!", "?")):
        raise Refused(
            "That breaks the template: the clause with S2 would have another subject, so IOI would "
            "no longer have an answer. End with a full stop."
        )


@exercise("11.5")
def _predicted(ctx: Context) -> Key:
    model, many = ctx.model, ctx.many
    fresh = ctx.once(
        "fresh prompts",
        lambda: IOIDataset.generate(model.tokenizer, FRESH, seed=FRESH_SEED).to(many.device),
    )

    def fooled(data: IOIDataset, text: str, where: str) -> Float[Tensor, " batch"]:
        return (runs.logit_diffs(model, data.insert(text, where), progress=False) < 0).float()

    def measure(text: str, where: str) -> tuple[metrics.Estimate, metrics.Estimate, float]:
        """The share of fresh prompts fooled, how many more than by the control, and by it."""
        other = text.replace("[A]", "[C]")  # S stays: what naming S does is not IO's doing
        flips, anyway = fooled(fresh, text, where), fooled(fresh, other, where)
        return (
            metrics.mean_and_stderr(flips, clusters=fresh.pair_ids),
            metrics.mean_and_stderr(flips - anyway, clusters=fresh.pair_ids),
            float(anyway.mean()),
        )

    def read(answer: Any) -> str:
        if isinstance(answer, str) or not isinstance(answer, (list, tuple)) or len(answer) != 3:
            raise Refused(
                "Answer with three things: the text, where it goes ('start', 'middle' or 'after "
                "S2'), and the share of prompts with S above IO."
            )
        text, where, claimed = answer
        if not isinstance(text, str) or not isinstance(where, str):
            raise Refused("The text and the place come first, both as text; the share comes last.")
        _refuse_text(text, where)
        share = float(single_number(claimed))
        if not 0 <= share <= 1:
            raise Refused(f"A share lies between 0 and 1, and yours is {share:g}.")
        try:
            flips, points, anyway = ctx.once(f"{where}: {text}", lambda: measure(text, where))
        except ValueError as refusal:
            raise Refused(str(refusal)) from None
        measured = (
            f"On fresh prompts it puts S above IO on {flips.mean:.2f} of them, its control with a "
            f"third name on {anyway:.2f}"
        )
        if flips.mean < LEAST_POINTS:
            raise Refused(f"{measured}. So it does not work here: a tenth is asked for.")
        if points.mean < max(LEAST_POINTS, 2 * points.stderr):
            raise Refused(
                f"{measured}. So naming IO adds {points.mean:.2f}, and a tenth is asked for; the "
                "rest a control does as well that differs in IO's name only."
            )
        # Two samples, the reader's and ours. An error of zero is that of a share near 0 or 1.
        spread = 2**0.5 * max(flips.stderr, 1 / flips.n)
        if abs(share - flips.mean) > MOST_ERRORS * spread:
            raise Refused(
                f"{measured}: it works, but your share, {share:.2f}, does not hold. The best of "
                "many tries, tested on itself, looks better than it is: estimate the share on "
                "other prompts than those you searched on."
            )
        return f"{measured}."

    return Key(Pick(read), lambda _: True, right=str)
