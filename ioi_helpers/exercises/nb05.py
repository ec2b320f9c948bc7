"""Checks for notebook 05, backup name movers.

They expect `exercises.use(model=model, demo=demo, many=many)`: the eight prompts of the demo, which
have one length, and some generated ones, which have not. Every truth is recomputed on the model at
hand, and so is the value that each known mistake leads to there.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ioi_helpers import attribution, heads, metrics
from ioi_helpers.ablation import AblationEffects, ablate, ablation_effects, ablation_sweep
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.exercises.legacy import Refused, Verdict, as_heads, exercise, head_set, numeric
from ioi_helpers.exercises.registry import Context
from ioi_helpers.names import head_name

LEAST_RISE = 0.02  # logits, in exercise 05.3
LEAST_ERRORS = 2.0  # standard errors, in exercise 05.3


# --- what the checks measure ----------------------------------------------------------------------


def _many_heads(ctx: Context) -> Float[Tensor, "layer head batch"]:
    return ctx.once(
        "many heads", lambda: attribution.head_attribution(ctx.model, ctx.many).per_prompt
    )


def _top(ctx: Context) -> tuple[int, int]:
    """The head of largest attribution on many prompts: `top` in the notebook."""
    values = _many_heads(ctx).mean(-1)
    return divmod(int(values.argmax()), values.shape[1])


def _name(at: tuple[int, int]) -> str:
    return head_name(*at)


def _effects(ctx: Context, data: str = "many", how: str = "zero") -> AblationEffects:
    prompts: IOIDataset = getattr(ctx, data)

    def compute() -> AblationEffects:
        spec = (_name(_top(ctx)), "END")
        return ablation_effects(ctx.model, prompts, spec, how, reference=prompts.abc())

    return ctx.once(f"effects on {data}, {how}", compute)


# --- 05.1 -----------------------------------------------------------------------------------------


@exercise("05.1", title="The naive prediction", difficulty="warm-up", minutes=5)
def _naive(answer: Any, ctx: Context) -> Verdict:
    effects = _effects(ctx)
    own = effects.attribution[_top(ctx)]
    clean = effects.clean
    on_demo = _effects(ctx, "demo")
    return numeric(
        answer,
        float((clean - own).mean()),
        relative=1e-3,
        absolute=1e-3,
        unit="logits",
        mistakes={
            "This is what the head writes. The question is what would be left without it.": float(
                own.mean()
            ),
            "You added the head's attribution; without the head it is missing.": float(
                (clean + own).mean()
            ),
            "This is the logit difference of the whole model.": float(clean.mean()),
            "This is what is really left, from a run without the head. Predict it from the "
            "attribution.": float(effects.ablated.mean()),
            "This is the prediction on the eight prompts of the demo; take `many`.": float(
                (on_demo.clean - on_demo.attribution[_top(ctx)]).mean()
            ),
            "This is the sum over the prompts; take the mean.": float((clean - own).sum()),
            "This is a share of the logit difference; give logits.": float(
                ((clean - own) / clean).mean()
            ),
            "You took away the attributions of all heads; strike out that of one.": float(
                (clean - effects.attribution.sum(dim=(0, 1))).mean()
            ),
        },
        right="One term struck out, and everything else as it was.",
    )


# --- 05.2 -----------------------------------------------------------------------------------------


@exercise("05.2", title="LayerNorm's ratio by hand", difficulty="easy", minutes=10)
def _ratio(answer: Any, ctx: Context) -> Verdict:
    effects = _effects(ctx, "demo")
    truth = float((effects.scale / effects.ablated_scale).mean())
    demo: IOIDataset = ctx.demo
    layer, head = _top(ctx)

    def scales_of(role: str) -> Tensor:
        return attribution.final_layer_norm_scale(ctx.model, demo, role)

    def at_role(role: str) -> float:
        before = scales_of(role)
        with ablate(ctx.model, (_name((layer, head)), "END"), "zero", data=demo):
            return float((before / scales_of(role)).mean())

    def everywhere() -> float:
        with ablate(ctx.model, _name((layer, head)), "zero"):
            return float((effects.scale / scales_of("END")).mean())

    def only_its_own() -> float:
        names = (
            f"blocks.{layer}.attn.hook_z",
            f"blocks.{ctx.model.cfg.n_layers - 1}.hook_resid_post",
        )
        _, cache = ctx.model.run_with_cache(demo.tokens, names_filter=lambda name: name in names)
        z, stream = (demo.gather(cache[name], "END") for name in names)
        left = stream - z[:, head] @ ctx.model.blocks[layer].attn.W_O[head]
        scale = (left.var(dim=-1, unbiased=False) + ctx.model.cfg.eps).sqrt()
        return float((effects.scale / scale).mean())

    return numeric(
        answer,
        truth,
        relative=0.0,
        absolute=1.5e-3,
        mistakes={
            "Turned round: divide the clean scale by the ablated one.": float(
                (effects.ablated_scale / effects.scale).mean()
            ),
            "This is the difference of the two scales; take their ratio.": float(
                (effects.scale - effects.ablated_scale).mean()
            ),
            "This is the clean scale itself.": float(effects.scale.mean()),
            "This is the ablated scale itself.": float(effects.ablated_scale.mean()),
            "The scale at another position does not change: read it at END. (Does your second "
            "run take place inside the context?)": lambda: at_role("S2"),
            "You silenced the head at every position; do it at END only.": everywhere,
            "You subtracted the head's output from the clean stream. Run the model without the "
            "head, so that later parts can react.": only_its_own,
            "These are the prompts of `many`; take the eight of `demo`.": lambda: float(
                (_effects(ctx).scale / _effects(ctx).ablated_scale).mean()
            ),
            "This is the ratio for mean ablation; take zero.": lambda: float(
                (
                    _effects(ctx, "demo", "mean").scale
                    / _effects(ctx, "demo", "mean").ablated_scale
                ).mean()
            ),
        },
        right=(
            "Above 1: whatever is left counts for more."
            if truth > 1
            else "Below 1: without the head the stream is longer, so what is left counts less."
        ),
    )


# --- 05.3 -----------------------------------------------------------------------------------------


def _rising(ctx: Context, changes: Float[Tensor, "layer head batch"], **rule: float) -> list[str]:
    """Heads that fit the rule, by name."""
    least, errors = rule.get("least", LEAST_RISE), rule.get("errors", LEAST_ERRORS)
    clusters = ctx.many.pair_ids
    found = []
    for name, values in zip(heads.head_labels(ctx.model), changes.flatten(0, 1), strict=True):
        estimate = metrics.mean_and_stderr(values, clusters=clusters)
        if estimate.mean > least and estimate.mean > errors * estimate.stderr:
            found.append(name)
    return found


@exercise("05.3", title="Backups, by a rule", difficulty="medium", minutes=15)
def _backups(answer: Any, ctx: Context) -> Verdict:
    effects = _effects(ctx, how="mean")
    truth = ctx.once("backups", lambda: _rising(ctx, effects.heads))
    top = _name(_top(ctx))
    shape = (ctx.model.cfg.n_layers, ctx.model.cfg.n_heads)
    if isinstance(answer, (list, tuple, set, frozenset)) and not answer:
        if not truth:
            return Verdict(True, "None on this model.")
        return Verdict(False, f"There are some: {len(truth)} heads fit the rule.")
    given = as_heads(answer)
    if any(layer >= shape[0] or head >= shape[1] for layer, head in given):
        return head_set(answer, truth or [top], shape=shape)
    if _top(ctx) in given:
        return Verdict(
            False, f"{top} is the head that was taken away; it cannot step in for itself."
        )
    if any(layer <= _top(ctx)[0] for layer, _ in given):
        return Verdict(
            False,
            f"A head of {top}'s own layer, or an earlier one, has read the stream before {top} "
            "wrote; it cannot react.",
        )
    if not truth:
        return Verdict(False, "On this model no head fits the rule; the answer is an empty list.")
    free = effects.ablated_attribution - effects.attribution
    return head_set(
        answer,
        truth,
        shape=shape,
        mistakes={
            "These rise if LayerNorm is free; use the changes at the clean scale.": lambda: (
                _rising(ctx, free) or [top]
            ),
            "These are the heads that write less than before; the rule asks for those that write "
            "more.": lambda: _rising(ctx, -effects.heads) or [top],
            "These include heads that write less; the rule asks for a rise.": lambda: [
                *truth,
                *(_rising(ctx, -effects.heads) or [top]),
            ],
            "Some of these rise by less than 0.02 logits.": lambda: (
                _rising(ctx, effects.heads, least=0.0) or [top]
            ),
            "These are the heads for zero ablation; take the mean over `abc`.": lambda: (
                _rising(ctx, _effects(ctx).heads) or [top]
            ),
        },
        right="All of them later than the head they stand in for.",
    )


# --- 05.4 -----------------------------------------------------------------------------------------


@exercise("05.4", title="Where it looks, or what it finds there?", difficulty="hard", minutes=25)
def _by_pattern(answer: Any, ctx: Context) -> Verdict:
    model, many = ctx.model, ctx.many
    effects = _effects(ctx)
    mean_change = effects.heads.mean(-1)
    layer, head = divmod(int(mean_change.abs().argmax()), mean_change.shape[1])
    total = float(mean_change[layer, head])
    names = [f"blocks.{layer}.attn.hook_pattern", f"blocks.{layer}.attn.hook_v"]
    directions = attribution.logit_diff_directions(model, many)
    rows = torch.arange(len(many), device=many.tokens.device)

    def runs() -> list[tuple[Tensor, Tensor]]:
        """Pattern [batch query key] and values [batch key d_head], clean and ablated."""
        spec = (_name(_top(ctx)), "END")
        _, clean = model.run_with_cache(many.tokens, names_filter=names)
        with ablate(model, spec, "zero", data=many):
            _, ablated = model.run_with_cache(many.tokens, names_filter=names)
        return [(c[names[0]][:, head], c[names[1]][:, :, head]) for c in (clean, ablated)]

    (pattern, v), (new_pattern, new_v) = ctx.once("responder", runs)

    def written(weights: Tensor, values: Tensor, scaled: bool = True, role: str = "END") -> float:
        at = weights[rows, many.positions[role].to(rows.device)]
        z = torch.einsum("bk,bkd->bd", at, values)
        out = (z @ model.blocks[layer].attn.W_O[head] * directions).sum(-1)
        return float((out / effects.scale if scaled else out).mean())

    truth = written(new_pattern - pattern, v)
    return numeric(
        answer,
        truth,
        relative=1e-3,  # what the values add may be little
        absolute=5e-5,
        unit="logits",
        mistakes={
            "This is the head's whole change; keep the clean values.": total,
            "This is what its values change, with the clean pattern; take the pattern.": lambda: (
                written(pattern, new_v - v)
            ),
            "This is what its values change, with the ablated pattern; take the pattern.": lambda: (
                written(new_pattern, new_v - v)
            ),
            "You took the ablated run's values; keep the clean ones.": lambda: written(
                new_pattern - pattern, new_v
            ),
            "This is what the head would write, not the change: take away what it writes in the "
            "clean run.": lambda: written(new_pattern, v),
            "This is what the head writes in the clean run.": lambda: written(pattern, v),
            "This is what the head writes in the ablated run, with both changed.": lambda: written(
                new_pattern, new_v
            ),
            "The final LayerNorm is missing: divide by the clean scale.": lambda: written(
                new_pattern - pattern, v, scaled=False
            ),
            "You read the pattern's row of S2; the answer is written at END.": lambda: written(
                new_pattern - pattern, v, role="S2"
            ),
            "This is the head's change at the ablated run's scale.": float(
                (effects.ablated_attribution - effects.attribution)[layer, head].mean()
            ),
        },
        hint="Subtract the patterns in END's row, then weight the clean values.",
        right=f"The whole change of {_name((layer, head))} is {total:.3f} logits.",
    )


# --- 05.5 -----------------------------------------------------------------------------------------


@exercise("05.5", title="The mean, by hand", difficulty="medium", minutes=20)
def _mean_by_hand(answer: Any, ctx: Context) -> Verdict:
    model, many = ctx.model, ctx.many
    effects = _effects(ctx, how="mean")
    layer, head = _top(ctx)
    name = f"blocks.{layer}.attn.hook_z"
    rows = torch.arange(len(many), device=many.tokens.device)

    def z_at_end(data: IOIDataset) -> Float[Tensor, "batch d_head"]:
        _, cache = model.run_with_cache(data.tokens, names_filter=name)
        return data.gather(cache[name], "END")[:, head]

    def left(means: Float[Tensor, "batch d_head"], role: str = "END") -> float:
        def put_in(z: Float[Tensor, "batch pos head d_head"], hook: Any) -> Tensor:
            z = z.clone()
            z[rows, many.positions[role].to(rows.device), head] = means
            return z

        logits = model.run_with_hooks(many.tokens, fwd_hooks=[(name, put_in)])
        return float(metrics.logit_diff(logits, many))

    def grouped(data: IOIDataset, by: Any) -> Float[Tensor, "batch d_head"]:
        values = z_at_end(data).clone()
        for group in data.groups(by).values():
            values[group] = values[group].mean(dim=0)
        return values

    def everywhere() -> float:
        with ablate(model, _name((layer, head)), "mean", reference=many.abc()):
            return float(metrics.logit_diff(model(many.tokens), many))

    whole = float(effects.clean.mean())
    return numeric(
        answer,
        float(effects.ablated.mean()),
        relative=0.0,
        absolute=1e-3,
        unit="logits",
        mistakes={
            "This is the whole model: does your hook return the changed z?": whole,
            "This is how much is lost; the question is what is left.": whole
            - float(effects.ablated.mean()),
            "This is zero ablation.": float(_effects(ctx).ablated.mean()),
            "This is resampling: every prompt got its partner's output. Average within each group."
            "": lambda: left(z_at_end(many.abc())),
            "The mean is over all prompts. Take it within prompts of the same template and order."
            "": lambda: left(z_at_end(many.abc()).mean(dim=0).expand(len(many), -1)),
            "The mean is within templates, over both orders; keep the orders apart.": lambda: left(
                grouped(many.abc(), "template")
            ),
            "The mean is within orders, over all templates; keep the templates apart.": lambda: (
                left(grouped(many.abc(), "order"))
            ),
            "The mean is over IOI prompts, in which the head knows the answer; take `abc`."
            "": lambda: left(grouped(many, "template and order")),
            "You put the mean in at S2; replace the output at END.": lambda: left(
                grouped(many.abc(), "template and order"), "S2"
            ),
            "You ablated the head at every position; replace it at END only.": everywhere,
        },
        hint="Groups of `abc` are the same rows as groups of `many`.",
        right=f"The whole model has {whole:.3f}.",
    )


# --- 05.6 -----------------------------------------------------------------------------------------


@exercise("05.6", title="The partner", difficulty="hard", minutes=25)
def _partner(answer: Any, ctx: Context) -> Verdict:
    model, many = ctx.model, ctx.many
    names = heads.head_labels(model)
    top = names.index(_name(_top(ctx)))
    others = [i for i in range(len(names)) if i != top]

    def measure() -> tuple[Tensor, Tensor]:
        options: dict[str, Any] = {"how": "mean", "reference": many.abc(), "role": "END"}
        single = ablation_sweep(model, many, "heads", **options).effect().mean(-1).flatten()
        sets = [[names[top], names[i]] for i in others]
        return single, ablation_sweep(model, many, sets, **options).effect().mean(-1)

    single, pair = ctx.once("pairs", measure)
    more = pair - single[others] - single[top]
    order = more.argsort().tolist()
    truth = names[others[order[0]]]
    given = as_heads([answer] if isinstance(answer, str) else answer)
    if len(given) != 1:
        raise Refused("Give the name of one head.")
    name = _name(given[0])
    if name not in names:
        return head_set([name], [truth], shape=(model.cfg.n_layers, model.cfg.n_heads))
    if name == truth:
        runner_up = others[order[1]]
        later = "later than" if heads.parse_head(truth)[0] > _top(ctx)[0] else "not later than"
        return Verdict(
            True,
            f"Losing both costs {-more[order[0]]:.2f} logits more than the two alone; the "
            f"runner-up is {names[runner_up]} with {-more[order[1]]:.2f}. {truth} is {later} "
            f"{names[top]}.",
        )
    if name == names[top]:
        return Verdict(False, "That is the head itself; look for another one.")
    at = others.index(names.index(name))
    if at == order[-1]:
        return Verdict(
            False,
            "For that head the difference is most *positive*: losing both costs less than the two "
            "alone. Effects are changes, so a loss is negative.",
        )
    if at == int(pair.argmin()):
        return Verdict(
            False,
            "With that head the joint loss is largest, but that head alone costs much of it: take "
            "both single effects away.",
        )
    if names.index(name) == int(single[others].argmin()) + int(single[others].argmin() >= top):
        return Verdict(False, "That head costs most alone; compare pairs with single losses.")
    lower = sum(value < float(more[at]) for value in more.tolist())
    return Verdict(False, f"Heads that cover for it better: {lower}.")
