"""Answers to the exercises of notebook 01: what readers write that is right, and what is not.

Each is source for the stub's cell, run where the stub stands (see `notebooks/tools/exercise_runs.py`). A
wrong answer comes with a pattern that the refusal must match.
"""

from __future__ import annotations

SAMPLE = "sample = many[:16]\nsample_logits = model(sample.tokens)\n"
AT_END = SAMPLE + 'end = sample.gather(sample_logits, "END")\n'
IO_MINUS_S = (
    "(end.gather(1, sample.io_tokens[:, None]) - end.gather(1, sample.s_tokens[:, None]))[:, 0]"
)

BY_TEMPLATE = """\
means = torch.stack([many_diffs[rows].mean() for rows in many.groups("template").values()])
"""

OUTPUT = """\
layer, head = best
z = cache["z", layer]
output = z[:, -1, head] @ model.blocks[layer].attn.W_O[head]
size = cache["ln_final.hook_scale"]
"""

MANY = """\
values = attribution.head_attribution(model, many).values.flatten()
chosen = values.argsort(descending=True)
reaches = (values[chosen].cumsum(0) >= 0.8 * many_diffs.mean()).nonzero()
count = int(reaches[0]) + 1 if len(reaches) else 0
"""

LOOKS = """\
layer, head = best
to_io, to_s1 = heads.attention_by_role(model, many, keys=("IO", "S1"), per_prompt=True)[layer, head]
adds = attribution.head_attribution(model, many).per_prompt[layer, head]
abba = torch.tensor([order == "ABBA" for order in many.orders])
sign = torch.where(abba, 1.0, -1.0)
def correlate(x, y):
    return torch.corrcoef(torch.stack([x, y]))[0, 1]
"""

WITHOUT = """\
layer, head = best
def run_without(positions, heads_off=head, block=layer):
    def zero(z, hook):
        z = z.clone()
        z[:, positions, heads_off] = 0
        return z
    logits = model.run_with_hooks(demo.tokens, fwd_hooks=[(f"blocks.{block}.attn.hook_z", zero)])
    return metrics.logit_diff(logits, demo).item()
"""

RIGHT = {
    "01.1": [
        AT_END + f"per_prompt = {IO_MINUS_S}",
        AT_END + f"per_prompt = {IO_MINUS_S}[:, None]",
        # Log-probabilities have the same difference.
        AT_END + f"end = end.log_softmax(-1)\nper_prompt = {IO_MINUS_S}.tolist()",
        SAMPLE + "per_prompt = []\n"
        "for i in range(len(sample)):\n"
        '    at = sample_logits[i, sample.positions["END"][i]]\n'
        "    per_prompt.append((at[sample.io_tokens[i]] - at[sample.s_tokens[i]]).item())",
        # The model's own tokens, unpadded, one prompt at a time.
        SAMPLE + "alone = [model(row[:n][None])[0, -1] for row, n in "
        "zip(sample.tokens, sample.lengths)]\n"
        "per_prompt = torch.stack([a[io] - a[s] for a, io, s in "
        "zip(alone, sample.io_tokens, sample.s_tokens)])",
    ],
    "01.2": [
        BY_TEMPLATE + "hardest = means.argmin()",
        BY_TEMPLATE + "hardest = many.templates[int(means.argmin())]",
        BY_TEMPLATE + "hardest = str(int(means.argmin()))",
        BY_TEMPLATE + "hardest = [int(means.argmin())]",
        BY_TEMPLATE + "hardest = means.argsort()[1]",  # within two errors of the lowest
        "table = pd.DataFrame({'t': many.template_ids.tolist(), 'd': many_diffs.tolist()})\n"
        "hardest = table.groupby('t')['d'].mean().idxmin()",
    ],
    "01.3": [
        "half = lens.values[-1] / 2\n"
        "below = (lens.values <= half).nonzero()\n"
        "half_made = lens.labels[int(below[-1]) + 1]",
        "half_made = None\n"
        "for label, value in reversed(list(zip(lens.labels, lens.values))):\n"
        "    if value <= lens['final_post'] / 2:\n"
        "        break\n"
        "    half_made = label",
    ],
    "01.4": [
        OUTPUT + "head_by_hand = (output / size[:, -1] * directions).sum(-1).tolist()",
        OUTPUT + "head_by_hand = (output / size[:, -1] * directions).sum(-1, keepdim=True)",
        "layer, head = best\n"
        "results = cache.stack_head_results(layer=-1, pos_slice=-1)\n"
        "scaled = cache.apply_ln_to_stack(results, layer=-1, pos_slice=-1)\n"
        "head_by_hand = (scaled[layer * n_heads + head] * directions).sum(-1)",
        # Read the direction back through W_O first, then take the dot product with z.
        OUTPUT + "reader = directions / size[:, -1] @ model.blocks[layer].attn.W_O[head].T\n"
        "head_by_hand = torch.einsum('bd,bd->b', z[:, -1, head], reader).cpu().numpy()",
    ],
    "01.5": [
        MANY + "few_heads = [divmod(int(i), n_heads) for i in chosen[:count]]",
        MANY + "few_heads = {names[i] for i in chosen[:count]}",
        "left = attribution.head_attribution(model, many).values.clone()\n"
        "few_heads, total, goal = [], 0.0, 0.8 * many_diffs.mean().item()\n"
        "while total < goal and left.max() > 0:\n"
        "    layer, head = divmod(int(left.argmax()), n_heads)\n"
        "    total += left[layer, head].item()\n"
        "    left[layer, head] = -100\n"
        "    few_heads.append(f'L{layer}H{head}')\n"
        "if total < goal:\n"
        "    few_heads = []",
    ],
    "01.6": [
        LOOKS + "correlation = correlate(torch.where(abba, to_io, to_s1), sign * adds)",
        # Prompt by prompt, with pandas.
        LOOKS + "x, y = [], []\n"
        "for i, order in enumerate(many.orders):\n"
        "    x.append((to_io if order == 'ABBA' else to_s1)[i].item())\n"
        "    y.append(adds[i].item() if order == 'ABBA' else -adds[i].item())\n"
        "correlation = pd.Series(x).corr(pd.Series(y))",
        # Standardise first.
        LOOKS + "x, y = torch.where(abba, to_io, to_s1), sign * adds\n"
        "x, y = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()\n"
        "correlation = float((x * y).sum() / (len(x) - 1))",
    ],
    "01.7": [
        WITHOUT + "drop = demo_diff - run_without(-1)",
        # The head's output in the stream instead of its z.
        "layer, head = best\n"
        "def without(attn_out, hook):\n"
        "    attn_out = attn_out.clone()\n"
        "    w = model.blocks[layer].attn.W_O[head]\n"
        "    attn_out[:, -1] -= cache['z', layer][:, -1, head] @ w\n"
        "    return attn_out\n"
        "hooks = [(f'blocks.{layer}.hook_attn_out', without)]\n"
        "ablated = metrics.logit_diff(model.run_with_hooks(demo.tokens, fwd_hooks=hooks), demo)\n"
        "drop = metrics.logit_diff(model(demo.tokens), demo) - ablated",
        # Every prompt on its own, then the mean of the drops.
        WITHOUT + "def zero(z, hook):\n"
        "    z[:, -1, head] = 0\n"
        "    return z\n"
        "drops = []\n"
        "for i in range(len(demo)):\n"
        "    one = demo[i]\n"
        "    hooks = [(f'blocks.{layer}.attn.hook_z', zero)]\n"
        "    after = metrics.logit_diff(model.run_with_hooks(one.tokens, fwd_hooks=hooks), one)\n"
        "    drops.append(demo_diffs[i] - after)\n"
        "drop = sum(drops) / len(drops)",
    ],
}

WRONG = {
    "01.1": {
        AT_END + f"per_prompt = -{IO_MINUS_S}": r"sign",
        SAMPLE + f"end = sample_logits[:, -1]\nper_prompt = {IO_MINUS_S}": r"last column",
        SAMPLE + 'end = sample_logits[torch.arange(16), sample.positions["END"] - 1]\n'
        f"per_prompt = {IO_MINUS_S}": r"before END",
        SAMPLE + f'end = sample.gather(sample_logits, "S2")\nper_prompt = {IO_MINUS_S}': r"at S2",
        AT_END + f"end = end.softmax(-1)\nper_prompt = {IO_MINUS_S}": r"probabilities",
        AT_END + "per_prompt = end.gather(1, sample.io_tokens[:, None])[:, 0]": r"IO's logit",
        AT_END + f"per_prompt = {IO_MINUS_S}.mean()": r"mean over prompts",
        AT_END + "per_prompt = end": r"\[prompt\]",
        'per_prompt = "Mary"': r"tensor",
    },
    "01.2": {
        BY_TEMPLATE + "hardest = means.argmax()": r"easiest",
        BY_TEMPLATE + "hardest = means.min()": r"whole number",
        BY_TEMPLATE + "hardest = means": r"single number",
        'hardest = "When [B] and [A] sat down, [B] sang for [A]"': r"No template.*many\.templates",
        "hardest = 15": r"from 0 to 14",
    },
    "01.3": {
        'half_made = "final_post"': r"end of the model",
        "below = (lens.values <= lens.values[-1] / 2).nonzero()\n"
        "half_made = lens.labels[int(below[-1])]": r"one state too early",
        "half_made = lens.labels[0]": r"too early|above zero",
        "half_made = n_layers - 1": r"label",
        'half_made = "L0"': r"no state",
        "half_made = lens.values[-1] / 2": r"label",
    },
    "01.4": {
        OUTPUT + "head_by_hand = (output * directions).sum(-1)": r"out the final LayerNorm",
        OUTPUT + "at = demo.positions['S2']\n"
        "output = z[torch.arange(8), at, head] @ model.blocks[layer].attn.W_O[head]\n"
        "head_by_hand = (output / size[torch.arange(8), at] * directions).sum(-1)": r"another position",
        OUTPUT + "io = model.W_U[:, demo.io_tokens].T\n"
        "head_by_hand = (output / size[:, -1] * io).sum(-1)": r"IO's logit alone",
        OUTPUT + "head_by_hand = -(output / size[:, -1] * directions).sum(-1)": r"sign",
        OUTPUT + "head_by_hand = (output / size[:, -1] * directions).sum()": r"sum over",
        OUTPUT + "head_by_hand = (output / size[:, -1] * directions).sum(-1).mean()": r"mean over",
        OUTPUT + "other = (head + 1) % n_heads\n"
        "output = z[:, -1, other] @ model.blocks[layer].attn.W_O[other]\n"
        "head_by_hand = (output / size[:, -1] * directions).sum(-1)": r"another head",
        OUTPUT + "output = z[:, -2, head] @ model.blocks[layer].attn.W_O[head]\n"
        "head_by_hand = (output / size[:, -2] * directions).sum(-1)": r"another position",
    },
    "01.5": {
        # One too many, one too few.
        MANY + "few_heads = [names[i] for i in chosen[: count + 1]]": r"too large|below 80",
        MANY + "few_heads = [names[i] for i in chosen[: count - 1]]": r"too few|negative",
        # With the most negative head, by absolute value, and from the wrong end.
        MANY
        + "few_heads = [names[i] for i in [*chosen[:count], chosen[-1]]]": r"negative|absolute",
        MANY + "few_heads = [names[i] for i in values.abs().argsort()[-20:]]": r"negative|absolute",
        MANY + "few_heads = [names[i] for i in chosen[-5:]]": r"negative|absolute",
        "few_heads = []": r"empty list",
        "few_heads = names": r"all heads",
        "ranks = by_head.flatten().argsort(descending=True)\n"
        "running = by_head.flatten()[ranks].cumsum(0)\n"
        "count = int((running >= 0.8 * demo_diff).int().argmax()) + 1\n"
        "few_heads = [names[i] for i in ranks[:count]]": r"prompts of `demo`|negative",
        "few_heads = ['L99H0']": r"no L99H0",
        "few_heads = 3.5": r"list of heads",
    },
    "01.6": {
        LOOKS + "correlation = correlate(torch.where(abba, to_io, to_s1), adds)": r"other sign",
        LOOKS + "correlation = correlate(to_io, sign * adds)": r"attention to IO on every",
        LOOKS + "correlation = correlate(to_io, adds)": r"about IO on every prompt",
        LOOKS + "correlation = correlate(torch.where(abba, to_s1, to_io), sign * adds)": r"sign",
        LOOKS
        + "correlation = correlate(torch.where(abba, to_io, to_s1), sign * many_diffs)": r"whole model",
        LOOKS + "correlation = torch.corrcoef(torch.stack([to_io, adds]))": r"single number",
        "correlation = 3.0": r"between -1 and 1",
    },
    "01.7": {
        WITHOUT + "drop = run_without(-1) - demo_diff": r"sign",
        WITHOUT + "drop = run_without(-1)": r"without the head",
        "drop = by_head[best]": r"predicts",
        WITHOUT + "drop = demo_diff - run_without(-1, slice(None))": r"all heads",
        # In the last layer no other position can matter, so there all heads are ablated instead.
        WITHOUT + "last = layer == n_layers - 1\n"
        "after = run_without(-1, slice(None)) if last else run_without(slice(None))\n"
        "drop = demo_diff - after": r"all positions|all heads",
        WITHOUT + "drop = (demo_diff - run_without(-1)) / demo_diff": r"share",
        WITHOUT
        + "drop = demo_diff - run_without(-1, (head + 1) % n_heads)": r"another head|nothing",
        "drop = demo_diff - by_head[best]": r"would be left",
        "drop = 0.0": r"Almost nothing.*block",
    },
}
