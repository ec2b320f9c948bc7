"""Answers to the exercises of notebook 05: what readers write that is right, and what is not.

Each is source for the stub's cell, run where the stub stands (see `notebooks/tools/exercise_runs.py`). A
wrong answer comes with a pattern that the refusal must match.
"""

from __future__ import annotations

RATIO = """\
def scale_of(cache, position=-1):
    return cache["ln_final.hook_scale"][:, position, 0]
_, cache = model.run_with_cache(demo.tokens)
with ablation.ablate(model, (top, "END"), how="zero", data=demo):
    _, ablated_cache = model.run_with_cache(demo.tokens)
"""

RISES = """\
found = ablation.ablation_effects(model, many, (top, "END"), how="mean", reference=abc)
def fits(values):
    e = metrics.mean_and_stderr(values, clusters=many.pair_ids)
    return e.mean > 0.05 and e.mean > 2 * e.stderr
"""

RESPONDER = """\
r_layer, r_head = heads.parse_head(names[most[0]])
wanted = [f"blocks.{r_layer}.attn.hook_pattern", f"blocks.{r_layer}.attn.hook_v"]
_, clean_cache = model.run_with_cache(many.tokens, names_filter=wanted)
with ablation.ablate(model, (top, "END"), how="zero", data=many):
    _, ablated_cache = model.run_with_cache(many.tokens, names_filter=wanted)
(p0, v0), (p1, v1) = (
    (c[wanted[0]][rows, r_head, end], c[wanted[1]][:, :, r_head])
    for c in (clean_cache, ablated_cache)
)
towards = attribution.logit_diff_directions(model, many)[:, None]
def split(by_key):
    named = [by_key[rows, many.positions[role]] for role in ("IO", "S1", "S2")]
    return torch.stack([*named, by_key.sum(-1) - sum(named)]).mean(-1)
def writes(p, v, scale=effects.scale[:, None]):
    return split(p * (v @ model.W_O[r_layer, r_head] * towards).sum(-1) / scale)
"""

MEANS = """\
_, cache = model.run_with_cache(abc.tokens)
z_end = abc.gather(cache["z", layer], "END")[:, head]
def left_with(means, positions=end):
    def put_in(z, hook):
        z = z.clone()
        z[rows, positions, head] = means
        return z
    hooks = [(f"blocks.{layer}.attn.hook_z", put_in)]
    return metrics.logit_diff(model.run_with_hooks(many.tokens, fwd_hooks=hooks), many)
def grouped(values, by):
    values = values.clone()
    for group in abc.groups(by).values():
        values[group] = values[group].mean(dim=0)
    return values
"""

PAIRS = """\
options = dict(how="mean", reference=abc, role="END")
single = ablation.ablation_sweep(model, many, "heads", **options).effect().mean(-1).flatten()
others = [i for i in range(len(names)) if names[i] != top]
both = ablation.ablation_sweep(model, many, [[top, names[i]] for i in others], **options)
both = both.effect().mean(-1)
more = both - single[others] - single[names.index(top)]
"""

RIGHT = {
    "05.1": [
        "naive = clean.mean() - by_head[layer, head].mean()",
        "parts = attribution.decompose(model, many)\n"
        "naive = sum(parts[label] for label in parts.labels if label != top).item()",
    ],
    "05.2": [
        RATIO + "mean_ratio = sum(scale_of(cache) / scale_of(ablated_cache)) / 8",
        # The scale from the stream itself.
        RATIO + "def size(cache):\n"
        "    return cache['resid_post', -1][:, -1].var(dim=-1, unbiased=False).sqrt()\n"
        "mean_ratio = (size(cache) / size(ablated_cache)).mean().item()",
        "before = attribution.final_layer_norm_scale(model, demo)\n"
        "with ablation.ablate(model, (top, 'END'), how='zero', data=demo):\n"
        "    mean_ratio = (before / attribution.final_layer_norm_scale(model, demo)).mean()",
    ],
    "05.3": [
        RISES + "backup_heads = {n for n, v in zip(names, found.heads.flatten(0, 1)) if fits(v)}",
        RISES + "backup_heads = [(l, h) for l in range(n_layers) for h in range(n_heads)\n"
        "                if fits(found.heads[l, h])]",
        # Two runs with the scale frozen by hand.
        RISES + "frozen = attribution.final_layer_norm_scale(model, many)\n"
        "with ablation.ablate(model, (top, 'END'), how='mean', reference=abc):\n"
        "    after = attribution.head_attribution(model, many, scale=frozen).per_prompt\n"
        "rise = (after - by_head).flatten(0, 1)\n"
        "backup_heads = [n for n, v in zip(names, rise) if fits(v)]",
    ],
    "05.4": [
        RESPONDER + "due_to_pattern = writes(p1, v0) - writes(p0, v0)",
        RESPONDER + "due_to_pattern = writes(p1 - p0, v0).tolist()",
    ],
    "05.5": [
        MEANS + "left = left_with(grouped(z_end, 'template and order')).item()",
        "with ablation.ablate(model, (top, 'END'), reference=abc):\n"
        "    left = metrics.logit_diff(model(many.tokens), many)",
        "left = ablation.ablation_sweep(model, many, [(top, 'END')], reference=abc).mean()",
    ],
    "05.6": [
        PAIRS + "partner = names[others[int(more.argmin())]]",
        PAIRS + "partner = heads.parse_head(names[others[int(more.argmin())]])\n"
        "partner = [partner]",
        PAIRS + "partner = min(zip(more.tolist(), (names[i] for i in others)))[1]",
    ],
}

WRONG = {
    "05.1": {
        "naive = clean.mean() + by_head[layer, head].mean()": r"adding",
        "with ablation.ablate(model, (top, 'END'), how='zero', data=many):\n"
        "    naive = metrics.logit_diff(model(many.tokens), many)": r"really left",
        "naive = by_head[layer, head].mean()": r"what the head writes",
        "naive = (clean - by_head[layer, head]).sum()": r"sum over the prompts",
        "naive = clean - by_head[layer, head]": r"single number",
        "naive = (1 - by_head[layer, head] / clean).mean()": r"share",
    },
    "05.2": {
        RATIO
        + "mean_ratio = (scale_of(ablated_cache) / scale_of(cache)).mean()": r"other way round",
        RATIO + "mean_ratio = (scale_of(cache) - scale_of(ablated_cache)).mean()": r"difference",
        RATIO
        + "mean_ratio = (scale_of(cache, 10) / scale_of(ablated_cache, 10)).mean()": r"at END",
        RATIO + "with ablation.ablate(model, top, how='zero'):\n"
        "    _, everywhere = model.run_with_cache(demo.tokens)\n"
        "mean_ratio = (scale_of(cache) / scale_of(everywhere)).mean()": r"every position",
        "mean_ratio = (effects.scale / effects.ablated_scale).mean()": r"`many`",
        RATIO
        + "mean_ratio = 100 * (scale_of(cache) / scale_of(ablated_cache) - 1).mean()": r"percent",
        RATIO + "mean_ratio = scale_of(cache) / scale_of(ablated_cache)": r"single number",
    },
    "05.3": {
        "backup_heads = backups": r"0\.02 logits",
        "backup_heads = [top]": r"cannot step in for itself",
        "backup_heads = [f'L0H{n_heads}']": r"no L0H",
        "backup_heads = []": r"the list is empty",
        "backup_heads = ['L0H0'] if top != 'L0H0' else ['L0H1']": r"cannot react",
        "backup_heads = [f'L{n_layers - 1}H{i}' for i in range(n_heads)]": r"do not belong|no such head|logits|write less",
    },
    "05.4": {
        RESPONDER + "due_to_pattern = writes(p1, v0)": r"not the change",
        RESPONDER + "due_to_pattern = -writes(p1 - p0, v0)": r"sign",
        RESPONDER + "due_to_pattern = writes(p1 - p0, v0, 1)": r"LayerNorm",
        RESPONDER + "due_to_pattern = split(p1 - p0)": r"change of attention",
        RESPONDER + "due_to_pattern = writes(p0, v0)": r"in the clean run",
        RESPONDER + "due_to_pattern = writes(p1, v1)": r"both changed",
        "due_to_pattern = estimates[most[0]].mean": r"one for each",
    },
    "05.5": {
        MEANS + "left = left_with(0.0)": r"zero ablation",
        MEANS + "left = left_with(z_end)": r"resampling",
        MEANS + "left = left_with(z_end.mean(0))": r"over all prompts",
        MEANS + "left = left_with(grouped(z_end, 'template'))": r"both orders",
        MEANS + "left = left_with(grouped(z_end, 'order'))": r"all templates",
        MEANS + "left = clean.mean() - left_with(grouped(z_end, 'template and order'))": r"is lost",
        MEANS
        + "left = left_with(grouped(z_end, 'template and order'), many.positions['S2'])": r"at S2|whole model",
    },
    "05.6": {
        "partner = top": r"head itself",
        PAIRS + "partner = names[others[int(more.argmax())]]": r"most \*positive\*",
        PAIRS + "partner = [names[i] for i in others[:2]]": r"one head",
        PAIRS + "partner = names[others[int(both.argmin())]]": r"joint loss is largest",
        "partner = f'L0H{n_heads}'": r"no L0H",
    },
}
