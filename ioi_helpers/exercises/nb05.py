"""Keys to the exercises of notebook 05, backup name movers.

They expect `exercises.use(model=model, demo=demo, many=many)`: the eight prompts of the demo, which
have one length, and some generated ones, which have not.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ioi_helpers import attribution, heads, metrics
from ioi_helpers.ablation import AblationEffects, ablate, ablation_effects, ablation_sweep
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.exercises.forms import Heads, Refused
from ioi_helpers.exercises.measure import Head, error, head_writes, hooked, putting, strongest
from ioi_helpers.exercises.registry import Context, exercise
from ioi_helpers.exercises.verdicts import Key, array, head_set, number, pick
from ioi_helpers.names import head_name

LEAST_RISE = 0.05  # logits, in exercise 05.3
STEPS_IN = 0.02  # the same of the notebook's own list, under zero ablation
LEAST_ERRORS = 2.0  # standard errors, in exercise 05.3


# --- what the checks measure ----------------------------------------------------------------------


def _top(ctx: Context) -> Head:
    """The head of largest attribution on many prompts: `top` in the notebook."""
    return strongest(head_writes(ctx, "many").mean(-1))


def _effects(ctx: Context, data: str = "many", how: str = "zero") -> AblationEffects:
    prompts: IOIDataset = getattr(ctx, data)

    def compute() -> AblationEffects:
        spec = (head_name(*_top(ctx)), "END")
        return ablation_effects(ctx.model, prompts, spec, how, reference=prompts.abc())

    return ctx.once(f"effects on {data}, {how}", compute)


# --- 05.1 The naive prediction --------------------------------------------------------------------


@exercise("05.1")
def _naive(ctx: Context) -> Key:
    effects, on_demo = _effects(ctx), _effects(ctx, "demo")
    own, clean = effects.attribution[_top(ctx)], effects.clean
    return number(
        (clean - own).mean(),
        relative=1e-3,
        absolute=1e-3,
        unit="logits",
        mistakes={
            "taking what the head writes, not what would be left without it": own.mean(),
            "adding the head's attribution; without the head it is missing": (clean + own).mean(),
            "taking the logit difference of the whole model": clean.mean(),
            "taking what is really left, from a run without the head. Predict it from the "
            "attribution": effects.ablated.mean(),
            "predicting it on the eight prompts of the demo, not on `many`": (
                on_demo.clean - on_demo.attribution[_top(ctx)]
            ).mean(),
            "taking the sum over the prompts, not the mean": (clean - own).sum(),
            "taking a share of the logit difference, not logits": ((clean - own) / clean).mean(),
            "taking a share of the mean logit difference, not logits": 1
            - own.mean() / clean.mean(),
            "striking out the attributions of all heads, not that of one": (
                clean - effects.attribution.sum(dim=(0, 1))
            ).mean(),
        },
        right="One term struck out, and everything else as it was.",
    )


# --- 05.2 LayerNorm's ratio by hand ---------------------------------------------------------------


@exercise("05.2")
def _ratio(ctx: Context) -> Key:
    model, demo, effects = ctx.model, ctx.demo, _effects(ctx, "demo")
    layer, head = _top(ctx)
    name = head_name(layer, head)
    before, after = effects.scale, effects.ablated_scale
    truth, unsure = float((before / after).mean()), error(before / after, demo)
    right = (
        "Above 1: whatever is left counts for more."
        if truth > 1
        else "Below 1: without the head the stream is longer, so what is left counts less."
    )
    if abs(truth - 1) <= 2 * unsure:
        right = (
            f"It is 1 within two errors (± {unsure:.3f}, over {len(demo.pair_ids.unique())} pairs):"
            " on this model the scale changes by nothing that eight prompts could show."
        )

    def ratio(role: str, *spec: str, **how: Any) -> float:
        """The ratio at a role with the head ablated at one, or everywhere."""
        clean = attribution.final_layer_norm_scale(model, demo, role)
        with ablate(model, (name, *spec) if spec else name, "zero", **how):
            return float((clean / attribution.final_layer_norm_scale(model, demo, role)).mean())

    def of(found: AblationEffects) -> float:
        return float((found.scale / found.ablated_scale).mean())

    names = [f"blocks.{layer}.attn.hook_z", f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"]
    _, cache = model.run_with_cache(demo.tokens, names_filter=names)
    z, stream = (demo.gather(cache[name], "END") for name in names)
    left = stream - z[:, head] @ model.W_O[layer, head]
    scale = (left.var(dim=-1, unbiased=False) + model.cfg.eps).sqrt()
    return number(
        truth,
        relative=0.0,
        absolute=1.5e-3,
        mistakes={
            "dividing the other way round; the clean scale comes first": (after / before).mean(),
            "subtracting the two scales, which gives their difference, not their ratio": (
                before - after
            ).mean(),
            "dividing the mean scales, not averaging each prompt's ratio": before.mean()
            / after.mean(),
            "taking by how many percent it is above 1; a ratio is asked for": 100 * (truth - 1),
            "taking by how much it is above 1; a ratio is asked for": truth - 1,
            "taking the clean scale itself": before.mean(),
            "taking the ablated scale itself": after.mean(),
            "reading the scale at another position, where it does not change. Read it at END (does "
            "your second run take place inside the context?)": ratio("S2", "END", data=demo),
            "ablating the head at every position, not at END only": ratio("END"),
            "subtracting the head's output from the clean stream. Run the model without the head, "
            "so that later parts can react": (before / scale).mean(),
            "taking the prompts of `many`, not the eight of `demo`": of(_effects(ctx)),
            "ablating by the mean, not by zero": of(_effects(ctx, "demo", "mean")),
        },
        right=right,
    )


# --- 05.3 Backups, by a rule ----------------------------------------------------------------------


def _rising(
    ctx: Context,
    changes: Float[Tensor, "layer head batch"],
    least: float = LEAST_RISE,
    paired: bool = True,
) -> list[str]:
    """Heads that fit the rule, by name."""
    clusters = ctx.many.pair_ids if paired else None
    estimates = [metrics.mean_and_stderr(v, clusters=clusters) for v in changes.flatten(0, 1)]
    return [
        name
        for name, rise in zip(heads.head_labels(ctx.model), estimates, strict=True)
        if rise.mean > least and rise.mean > LEAST_ERRORS * rise.stderr
    ]


@exercise("05.3")
def _backups(ctx: Context) -> Key:
    effects = _effects(ctx, how="mean")
    truth, top = _rising(ctx, effects.heads), _top(ctx)
    falling = _rising(ctx, -effects.heads)
    return head_set(
        truth,
        shape=(ctx.model.cfg.n_layers, ctx.model.cfg.n_heads),
        mistakes={
            "letting LayerNorm go free. Use the changes at the clean scale": _rising(
                ctx, effects.ablated_attribution - effects.attribution
            ),
            "taking the heads that write less than before, not more": falling,
            "taking heads that write less as well; the rule asks for a rise": [*truth, *falling],
            f"taking rises of less than {LEAST_RISE} logits as well": _rising(
                ctx, effects.heads, 0.0
            ),
            f"going by {STEPS_IN} logits under zero ablation, as the list above does": _rising(
                ctx, _effects(ctx).heads, STEPS_IN
            ),
            "counting each prompt by itself, not each pair": _rising(
                ctx, effects.heads, paired=False
            ),
            "ablating by zero, not by the mean over `abc`": _rising(ctx, _effects(ctx).heads),
        },
        rules={
            f"{head_name(*top)} is the head that was taken away; it cannot step in for itself.": (
                lambda given: top in given
            ),
            f"A head of {head_name(*top)}'s own layer, or an earlier one, has read the stream "
            f"before {head_name(*top)} wrote; it cannot react.": lambda given: any(
                layer <= top[0] for layer, _ in given
            ),
        },
        right="All of them later than the head they stand in for."
        if truth
        else "None on this model.",
    )


# --- 05.4 Where it looks, or what it finds there? -------------------------------------------------


@exercise("05.4")
def _by_pattern(ctx: Context) -> Key:
    model, many = ctx.model, ctx.many
    effects = _effects(ctx)
    layer, head = strongest(effects.heads.mean(-1).abs())
    change_of_head = effects.heads[layer, head]
    total = change_of_head.mean()
    names = [f"blocks.{layer}.attn.hook_pattern", f"blocks.{layer}.attn.hook_v"]
    directions = attribution.logit_diff_directions(model, many)
    rows = torch.arange(len(many), device=many.tokens.device)
    places = [many.positions[role].to(rows.device) for role in ("IO", "S1", "S2")]

    def run() -> tuple[Tensor, Tensor]:
        """Pattern [batch query key] and values [batch key d_head] of the head."""
        _, cache = model.run_with_cache(many.tokens, names_filter=names)
        return cache[names[0]][:, head], cache[names[1]][:, :, head]

    pattern, v = run()
    with ablate(model, (head_name(*_top(ctx)), "END"), "zero", data=many):
        new_pattern, new_v = run()

    def split(by_key: Float[Tensor, "batch key"]) -> Float[Tensor, "place batch"]:
        """From IO, S1, S2, and from all other tokens together."""
        named = torch.stack([by_key[rows, at] for at in places])
        return torch.cat([named, (by_key.sum(-1) - named.sum(0))[None]])

    def written(
        weights: Tensor, values: Tensor, scale: Any = effects.scale, role: str = "END"
    ) -> Float[Tensor, " place"]:
        at = weights[rows, many.positions[role].to(rows.device)]
        worth = torch.einsum("bkm,bm->bk", values @ model.W_O[layer, head], directions)
        size = torch.as_tensor(scale, device=at.device).reshape(-1, 1)
        parts.append(split(at * worth / size))
        return parts[-1].mean(-1)

    parts: list[Float[Tensor, "place batch"]] = []
    change = new_pattern - pattern
    at_end = change[rows, many.positions["END"].to(rows.device)]
    by_pattern = written(change, v)
    unsure = max(error(part, many) for part in parts[0])
    if abs(total) <= 2 * error(change_of_head, many):
        unsure = max(unsure, float(by_pattern.abs().max()))  # there is no change to explain
    return array(
        by_pattern,
        ("place",),
        relative=5e-3,  # what the values add may be little
        absolute=5e-5,
        error=unsure,
        unit="logits",
        mistakes={
            "changing the values, with the clean pattern; take the pattern": written(
                pattern, new_v - v
            ),
            "changing the values, with the ablated pattern; take the pattern": written(
                new_pattern, new_v - v
            ),
            "taking the ablated run's values; keep the clean ones": written(change, new_v),
            "taking what the head would write, not the change. Take away what it writes in the "
            "clean run": written(new_pattern, v),
            "taking what the head writes in the clean run": written(pattern, v),
            "taking what the head writes in the ablated run, with both changed": written(
                new_pattern, new_v
            ),
            "leaving out the final LayerNorm. Divide by the clean scale": written(change, v, 1.0),
            "dividing by the ablated run's scale, not by the clean one": written(
                change, v, effects.ablated_scale
            ),
            "reading the pattern's row of S2; the answer is written at END": written(
                change, v, role="S2"
            ),
            "taking the change of attention, not what it brings": split(at_end).mean(-1),
        },
        hint="Subtract the patterns in END's row, then weight what each token's value is worth.",
        right=f"In all {float(by_pattern.sum()):z.3f}, of a whole change of {total:z.3f} logits.",
    )


# --- 05.5 The mean, by hand -----------------------------------------------------------------------


@exercise("05.5")
def _mean_by_hand(ctx: Context) -> Key:
    model, many = ctx.model, ctx.many
    abc: IOIDataset = many.abc()
    effects, zero = _effects(ctx, how="mean"), _effects(ctx)
    layer, head = _top(ctx)
    name = f"blocks.{layer}.attn.hook_z"

    def at_end(data: IOIDataset) -> Float[Tensor, "batch d_head"]:
        _, cache = model.run_with_cache(data.tokens, names_filter=name)
        return data.gather(cache[name], "END")[:, head]

    def left(means: Float[Tensor, "batch d_head"], role: str = "END") -> Tensor:
        new = means[:, None, None].expand(-1, many.tokens.shape[1], model.cfg.n_heads, -1)
        return hooked(model, many, {name: putting(new, many, role, head)}).mean()

    def grouped(data: IOIDataset, by: Any) -> Float[Tensor, "batch d_head"]:
        values = at_end(data).clone()
        for group in data.groups(by).values():
            values[group] = values[group].mean(dim=0)
        return values

    with ablate(model, head_name(layer, head), "mean", reference=abc):
        everywhere = metrics.logit_diff(model(many.tokens), many)
    both, whole, remains = "template and order", effects.clean.mean(), effects.ablated.mean()
    return number(
        remains,
        relative=0.0,
        absolute=1e-3,
        unit="logits",
        mistakes={
            "running the whole model. Does your hook return the changed z?": whole,
            "taking how much is lost; the question is what is left": whole - remains,
            "ablating by zero: that is zero ablation": zero.ablated.mean(),
            "resampling every prompt's partner's output. Average within each group": left(
                at_end(abc)
            ),
            "averaging over all prompts. Take the mean within prompts of the same template and "
            "order": left(at_end(abc).mean(dim=0).expand(len(many), -1)),
            "averaging within templates, over both orders; keep the orders apart": left(
                grouped(abc, "template")
            ),
            "averaging within orders, over all templates; keep the templates apart": left(
                grouped(abc, "order")
            ),
            "averaging over IOI prompts, in which the head knows the answer, not over `abc`": left(
                grouped(many, both)
            ),
            "putting the mean in at S2, not at END": left(grouped(abc, both), "S2"),
            "ablating the head at every position, not at END only": everywhere,
        },
        hint="Groups of `abc` are the same rows as groups of `many`.",
        right=f"The whole model has {whole:.3f}.",
    )


# --- 05.6 The partner -----------------------------------------------------------------------------


@exercise("05.6")
def _partner(ctx: Context) -> Key:
    model, many = ctx.model, ctx.many
    names = heads.head_labels(model)
    top = head_name(*_top(ctx))
    others = [name for name in names if name != top]

    def effects(entries: Any) -> Float[Tensor, "entry batch"]:
        result = ablation_sweep(
            model, many, entries, how="mean", reference=many.abc(), role="END", progress=False
        )
        return result.effect().reshape(-1, len(many))

    single = dict(zip(names, effects("heads"), strict=True))
    both = dict(zip(others, effects([[top, name] for name in others]), strict=True))
    more = {name: both[name] - single[name] - single[top] for name in others}
    mean = {name: float(values.mean()) for name, values in more.items()}
    best, *rest = sorted(others, key=mean.__getitem__)
    later = "later than" if heads.parse_head(best)[0] > _top(ctx)[0] else "not later than"

    def read(answer: Any) -> str:
        given = Heads((model.cfg.n_layers, model.cfg.n_heads)).read(answer)
        if len(given) != 1:
            raise Refused("Give the name of one head.")
        return head_name(*given[0])

    def ties(name: str) -> bool:
        return mean[name] - mean[best] <= 2 * error(more[name] - more[best], many)

    def costs(name: str) -> str:
        return f"{name} with {-mean[name]:z.3f}"

    most_alone = min(others, key=lambda name: float(single[name].mean()))
    joint = min(others, key=lambda name: float(both[name].mean()))
    # The best of so many heads stands out by chance: three errors, and a hundredth of the answer.
    whole = float(_effects(ctx).clean.mean())
    nothing = abs(mean[best]) <= max(3 * error(more[best], many), 0.01 * whole)

    def also_a_mistake(name: str) -> str:
        return f" {name} is also the head whose joint loss is largest." if name == joint else ""

    return pick(
        best,
        read,
        nothing=nothing,
        also={
            "On this model it is within two errors of the best. By so many logits does losing both "
            f"cost more (negative: less) than the two alone: {costs(best)}, {costs(name)}."
            f"{also_a_mistake(name)}": name
            for name in rest
            if ties(name)
        },
        mistakes={
            "taking the head itself, which is no cover": top,
            "taking the most *positive* difference, where losing both costs less than the two "
            "alone. Effects are changes, so a loss is negative": rest[-1],
            "asking where the joint loss is largest. That head alone may cost much of it: take "
            "both single effects away": joint,
            "asking which head costs most alone. Compare pairs with single losses": most_alone,
        },
        hint="There are heads that cover for it better.",
        right="By so many logits does losing both cost more than the two alone: "
        f"{costs(best)}, {costs(rest[0])} next. {best} is {later} {top}.",
    )
