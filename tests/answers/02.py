"""Answers to the exercises of notebook 02: what readers write that is right, and what is not.

Each is source for the stub's cell, run where the stub stands (see `notebooks/tools/exercise_runs.py`). A
wrong answer comes with a pattern that the refusal must match.
"""

from __future__ import annotations

BY_HAND = """\
def by_hand(run, source, role, scored=demo, at_block=block):
    _, other = model.run_with_cache(source.tokens)
    def put_in(resid, hook):
        resid = resid.clone()
        rows = torch.arange(len(demo))
        at = demo.positions[role]
        resid[rows, at] = other["resid_pre", at_block][rows, at]
        return resid
    hooks = [(f"blocks.{at_block}.hook_resid_pre", put_in)]
    return metrics.logit_diff(model.run_with_hooks(run.tokens, fwd_hooks=hooks), scored, True)
"""

COLUMNS = """\
s2, end = (by_role.fraction()[:, ROLES.index(role)].tolist() for role in ("S2", "END"))
"""

NOISE = """\
layer, head = carrier
def noised(run, source, role="END", which=head, scored=demo):
    _, other = model.run_with_cache(source.tokens)
    def put_in(z, hook):
        z = z.clone()
        rows = torch.arange(len(demo))
        at = demo.positions[role]
        z[rows, at, which] = other["z", layer][rows, at, which]
        return z
    hooks = [(f"blocks.{layer}.attn.hook_z", put_in)]
    return metrics.logit_diff(model.run_with_hooks(run.tokens, fwd_hooks=hooks), scored).item()
"""

SIZES = """\
order, random_size = changes["swap_order"].abs(), changes["random_names"].abs()
five = 0.05 * clean_mean
def pick(mask):
    return [names[i] for i in mask.flatten().nonzero()[:, 0].tolist()]
"""

GRADIENT = """\
layer, head = carrier
def ask(embedding, hook):
    return embedding.detach().requires_grad_(True)
def gradients(run, combine=torch.sum, scored=demo):
    kept = []
    def keep(z, hook):
        z.retain_grad()
        kept.append(z)
        return z
    logits = model.run_with_hooks(
        run.tokens, fwd_hooks=[("hook_embed", ask), (f"blocks.{layer}.attn.hook_z", keep)]
    )
    combine(metrics.logit_diff(logits, scored, per_prompt=True)).backward()
    return kept[0].grad
change = clean_cache["z", layer] - corrupted_cache["z", layer]
"""

FITTED = """\
fitted = torch.stack([direction[token] for token in who.tolist()])
left = (outputs - fitted).square().sum()
total = (outputs - outputs.mean(dim=0)).square().sum()
"""

RIGHT = {
    "02.1": [
        'logits = patched_logits(model, demo, corrupted, clean_cache, block, "END")\n'
        "patched_at_end = metrics.logit_diff(logits, demo, per_prompt=True)",
        BY_HAND + 'patched_at_end = by_hand(corrupted, demo, "END").tolist()',
        'at_end = patch_sweep(model, demo, corrupted, "resid_pre", ("layer", "role"))\n'
        'patched_at_end = at_end.values[block, ROLES.index("END")][:, None]',
        # After a block and before the next is one place; in place, at column -1.
        "def put_in(resid, hook):\n"
        '    resid[:, -1] = clean_cache["resid_post", block - 1][:, -1]\n'
        'hooks = [(f"blocks.{block - 1}.hook_resid_post", put_in)]\n'
        "logits = model.run_with_hooks(corrupted.tokens, fwd_hooks=hooks)\n"
        "patched_at_end = metrics.logit_diff(logits, demo, per_prompt=True)",
    ],
    "02.2": [
        COLUMNS + "ahead = [i for i in range(n_layers) if end[i] > s2[i]]\n"
        "handover = ahead[0] if ahead else n_layers",
        # Means instead of fractions have the same order.
        'mean = by_role.mean()\nahead = mean[:, ROLES.index("END")] > mean[:, ROLES.index("S2")]\n'
        "handover = ahead.nonzero()[0]",
    ],
    "02.3": [
        "p = on_many.permutation_pvalue(n_permutations=10_000, seed=0)\n"
        "survivors = (p * n_layers * n_heads < 0.05).sum()",
        # Another seed of the permutations is as good.
        "p = on_many.permutation_pvalue(n_permutations=10_000, seed=1)\n"
        "survivors = sum(value < 0.05 / p.numel() for value in p.flatten().tolist())",
    ],
    "02.4": [
        NOISE + "drop = clean_diff - noised(demo, demo.abc(seed=0))",
        'one = patch_sweep(model, demo, demo.abc(seed=0), "z", ("layer", "head", "role"), '
        'roles=("END",), direction="noising")\n'
        "drop = -one.effect().mean(dim=-1)[carrier[0], carrier[1], 0]",
    ],
    "02.5": [
        SIZES + "carry_order = pick((order >= five) & (random_size < order / 4))",
        SIZES + "both = (order >= five) & (random_size / order.clamp(min=1e-9) < 0.25)\n"
        "carry_order = [tuple(at) for at in both.nonzero().tolist()]",
    ],
    "02.6": [
        GRADIENT + "attributed = (change * gradients(corrupted))[:, :, head].sum(dim=(1, 2))",
        "layer, head = carrier\n"
        'attributed = attribution_patch_sweep(model, demo, corrupted, "z").effect()[layer, head]',
        # The gradient of the mean, times the number of prompts.
        GRADIENT + "g = gradients(corrupted, torch.mean) * len(demo)\n"
        "attributed = (change * g).sum(dim=-1)[:, :, head].sum(dim=1, keepdim=True)",
        # No backward pass at all: the slope from two runs a small step apart.
        "layer, head = carrier\n"
        'change = (clean_cache["z", layer] - corrupted_cache["z", layer])[:, :, head]\n'
        "def at(step):\n"
        "    def push(z, hook):\n"
        "        z = z.clone()\n"
        "        z[:, :, head] += step * change\n"
        "        return z\n"
        '    hooks = [(f"blocks.{layer}.attn.hook_z", push)]\n'
        "    logits = model.run_with_hooks(corrupted.tokens, fwd_hooks=hooks)\n"
        "    return metrics.logit_diff(logits, demo, per_prompt=True)\n"
        "attributed = (at(0.01) - at(-0.01)) / 0.02",
    ],
    "02.7": [
        FITTED + "explained = 1 - left / total",
        FITTED + "explained = ((fitted - outputs.mean(dim=0)).square().sum() / total).item()",
    ],
}

WRONG = {
    "02.1": {
        'logits = patched_logits(model, demo, corrupted, clean_cache, block, "S2")\n'
        "patched_at_end = metrics.logit_diff(logits, demo, True)": r"S2.*END",
        BY_HAND + 'patched_at_end = by_hand(demo, corrupted, "END")': r"wrong way round",
        BY_HAND
        + 'patched_at_end = by_hand(corrupted, demo, "END", scored=corrupted)': r"corrupted prompts' answers",
        'logits = patched_logits(model, demo, corrupted, clean_cache, block, "END")\n'
        "patched_at_end = metrics.logit_diff(logits, demo)": r"mean over prompts",
        BY_HAND + 'patched_at_end = by_hand(corrupted, demo, "END").sum()': r"sum over prompts",
        BY_HAND + 'patched_at_end = by_hand(corrupted, demo, "END").max()': r"not a single one",
        BY_HAND + 'back = by_hand(corrupted, demo, "END") - corrupted_diff\n'
        "patched_at_end = back / (clean_diff - corrupted_diff)": r"fractions",
        "patched_at_end = metrics.logit_diff(corrupted_logits, demo, True)": r"Nothing was patched",
        # IO, S1 and S1+1 stand before the first difference: the same as no patch.
        BY_HAND + 'patched_at_end = by_hand(corrupted, demo, "S1")': r"Nothing was patched.*END",
        BY_HAND + "unpatched = metrics.logit_diff(corrupted_logits, demo, True)\n"
        'patched_at_end = by_hand(corrupted, demo, "END") - unpatched': r"changes from the corrupted run",
        # The stream after the block is the one that enters the next.
        BY_HAND
        + 'patched_at_end = by_hand(corrupted, demo, "END", at_block=block + 1)': r"block above",
    },
    "02.2": {
        COLUMNS + "handover = max(i for i in range(n_layers) if s2[i] > end[i])": r"still recovers",
        COLUMNS + "handover = max(end)": r"number of a block|Too|still",
        "handover = n_layers - 1": r"Too late",
        "handover = -1": r"numbered from 0|still",
        "on_demo = patch_sweep(model, demo, corrupted, 'resid_pre', ('layer', 'role'))\n"
        "f = on_demo.fraction()\n"
        "handover = int((f[:, 4] > f[:, 3]).int().argmax())": r"still recovers.*generated prompts|eight prompts",
    },
    "02.3": {
        "p = on_many.permutation_pvalue(n_permutations=10_000, seed=0)\n"
        "survivors = int((p < 0.05).sum())": r"uncorrected",
        "p = by_head.permutation_pvalue(n_permutations=10_000, seed=0)\n"
        "survivors = int((p < 0.05 / p.numel()).sum())": r"smallest possible p",
        "p = on_many.permutation_pvalue(n_permutations=10_000, seed=0)\n"
        "survivors = int((p >= 0.05 / p.numel()).sum())": r"do NOT survive",
        "survivors = int((on_many.fraction().abs() > 0.05).sum())": r"more than 5 %",
        "p = on_many.permutation_pvalue(n_permutations=10_000, seed=0)\n"
        "helps = on_many.effect().mean(dim=-1).cpu() > 0\n"
        "survivors = int(((p.cpu() < 0.05 / p.numel()) & helps).sum())": r"makes things worse",
        "survivors = 0.05 / (n_layers * n_heads)": r"number of heads, not a share",
        "survivors = names[:3]": r"single number",
    },
    "02.4": {
        NOISE + "drop = noised(demo, demo.abc(seed=0))": r"after the patch",
        NOISE + "drop = noised(demo, demo.abc(seed=0)) - clean_diff": r"clean minus patched",
        NOISE + "drop = clean_diff - noised(demo, corrupted)": r"another counterpart",
        NOISE + "drop = clean_diff - noised(demo, demo.swap_order())": r"counterpart, swap_order",
        NOISE + "drop = clean_diff - noised(demo, demo.abc(seed=1))": r"seed=0",
        "drop = clean_diff - metrics.logit_diff(clean_logits, demo).item()": r"patching nothing",
        NOISE + "drop = clean_diff - noised(demo.abc(seed=0), demo)": r"the other way round",
        NOISE + "drop = 1 - noised(demo, demo.abc(seed=0)) / clean_diff": r"share",
        NOISE + 'drop = clean_diff - noised(demo, demo.abc(seed=0), role="S2")': r"at S2",
        NOISE
        + "abc0 = demo.abc(seed=0)\ndrop = clean_diff - noised(demo, abc0, scored=abc0)": r"other names",
        NOISE
        + "drop = clean_diff - noised(demo, demo.abc(seed=0), which=slice(None))": r"all heads",
    },
    "02.5": {
        SIZES + "carry_order = pick(order >= five)": r"first condition",
        SIZES
        + "carry_order = pick((random_size >= five) & (order < random_size / 4))": r"carry names|under random_names|list is empty",
        SIZES
        + 'carry_order = pick(changes["swap_subject"].abs() >= five)': r"swap_subject|under swap_order",
        SIZES + "carry_order = pick(random_size < order / 4)": r"second condition",
        'order, other = changes["swap_order"], changes["random_names"]\n'
        "mask = (order >= 0.05 * clean_mean) & (other < order / 4)\n"
        "carry_order = [n for n, yes in zip(names, mask.flatten().tolist()) if yes]": r"absolute value",
        'carry_order = ["L99H0"]': r"no L99H0",
        "carry_order = []": r"There are such heads",
        SIZES + "carry_order = pick(random_size > 0)": r"do not belong|5 %",
    },
    "02.6": {
        GRADIENT + "g = gradients(corrupted, torch.mean)\n"
        "attributed = (change * g)[:, :, head].sum(dim=(1, 2))": r"number of prompts",
        GRADIENT
        + "attributed = (change * gradients(demo))[:, :, head].sum(dim=(1, 2))": r"gradient of the clean run",
        GRADIENT + 'z = clean_cache["z", layer]\n'
        "attributed = (z * gradients(corrupted))[:, :, head].sum(dim=(1, 2))": r"clean z alone",
        GRADIENT
        + "attributed = (-change * gradients(corrupted))[:, :, head].sum(dim=(1, 2))": r"sign",
        GRADIENT + "attributed = by_head.effect()[layer, head]": r"exact effect",
        GRADIENT
        + "attributed = (change * gradients(corrupted))[:, :, head].sum(dim=(1, 2)).mean()": r"mean over prompts",
        GRADIENT
        + "attributed = (change * gradients(corrupted))[:, :, head].sum()": r"sum over prompts",
        GRADIENT + "attributed = (change * gradients(corrupted)).sum(dim=(1, 2, 3))": r"all heads",
        GRADIENT
        + "attributed = (change * gradients(corrupted))[:, :, head].sum(dim=1)": r"average over or select from|other axes",
        GRADIENT
        + "attributed = (change * gradients(corrupted))[:, :, head].abs().sum(dim=(1, 2))": r"absolute values",
    },
    "02.7": {
        FITTED + "explained = left / total": r"left over",
        FITTED + "explained = 1 - left / outputs.square().sum()": r"overall average",
        "spread = torch.stack([outputs[i * len(contexts) : (i + 1) * len(contexts)].mean(0) "
        "for i in range(3)]).repeat_interleave(len(contexts), dim=0)\n"
        "total = (outputs - outputs.mean(0)).square().sum()\n"
        "explained = 1 - (outputs - spread).square().sum() / total": r"role",
        "n = len(contexts)\nout, own = outputs[:n], who[:n]\n"
        "fit = torch.stack([out[own == t].mean(0) for t in own.tolist()])\n"
        "explained = 1 - (out - fit).square().sum() / (out - out.mean(0)).square().sum()": r"IO only",
        FITTED + "explained = 100 * (1 - left / total)": r"per cent",
        FITTED + "left = (outputs - fitted).square().sum(dim=0)\n"
        "total = (outputs - outputs.mean(dim=0)).square().sum(dim=0)\n"
        "explained = (1 - left / total).mean()": r"each dimension",
        "explained = outputs": r"single number",
    },
}
