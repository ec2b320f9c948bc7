"""Answers to the exercises of notebook 09: what readers write that is right, and what is not.

Each is source for the stub's cell, run where the stub stands (see `notebooks/tools/exercise_runs.py`). A
wrong answer comes with a pattern that the refusal must match.
"""

from __future__ import annotations

PASSES = """\
t_layer, t_head = heads.parse_head(teller)
_, theirs = model.run_with_cache(abc.tokens)
clean_logits, ours = model.run_with_cache(many.tokens)
clean = metrics.logit_diff(clean_logits, many)
rows, end, s2 = torch.arange(len(many)), many.positions["END"], many.positions["S2"]
def pass_c(freeze=True, mlps=False, place=end, scored=many, run=many, kept=ours, sent=theirs):
    def hook_z(z, hook):
        block = int(hook.name.split(".")[1])
        z = kept["z", block].clone() if freeze else z.clone()
        if block == t_layer and place is None:
            z[:, :, t_head] = sent["z", block][:, :, t_head]
        elif block == t_layer:
            z[rows, place, t_head] = sent["z", block][rows, place, t_head]
        return z
    def hook_mlp(value, hook):
        return kept[hook.name]
    hooks = [(f"blocks.{b}.attn.hook_z", hook_z) for b in range(n_layers)]
    if mlps:
        hooks += [(f"blocks.{b}.hook_mlp_out", hook_mlp) for b in range(n_layers)]
    return metrics.logit_diff(model.run_with_hooks(run.tokens, fwd_hooks=hooks), scored)
"""

PATCH = "path_patching.path_patch(model, many, abc, (teller, 'END'), 'final'"

RULE = """\
def by_rule(result, sign=-1):
    effect, error = result.effect().mean(-1).flatten(), result.stderr(of_effect=True).flatten()
    least = 0.02 * result.clean.mean()
    found = zip(names, effect.tolist(), error.tolist())
    return {n: e for n, e, se in found if sign * e > least and sign * e > 3 * se}
def into(name, at):
    receivers = [(head, name, at) for head in followed]
    return path_patching.path_sweep(model, many, abc, receivers=receivers)
"""

SHARES = """\
every = Shape.of(model).nodes(mlps=True)
sets = {
    "two": ["embedding", "MLP0"], "all": ["embedding", *every], "MLP0": ["MLP0"],
    "embedding": ["embedding"], "heads": [n for n in every if n.is_head], "no embedding": every,
}
def effect_of(at="IO", inputs=("k", "v"), **how):
    to = [(name, i, at) for name in followed for i in inputs]
    found = path_patching.path_sweep(model, many, abc, sets, to, **how).effect().mean(-1)
    return dict(zip(sets, found.tolist()))
"""

EDGES = """\
def means_of(result):
    return result.effect().mean(-1).flatten()
a, b = means_of(scores), means_of(exact)
info = exact.index_df
may = torch.tensor(info["possible"].tolist())
from_head = torch.tensor([s.startswith("L") for s in info["sender"]])
def follow(i):
    where, to = info["role"][i], info["receiver"][i]
    if to == "final stream":
        ear = (f"blocks.{n_layers - 1}.hook_resid_post", None)
    elif "MLP" in to:
        ear = (f"blocks.{to.split('MLP')[1]}.hook_mlp_out", None)
    else:
        l, h = heads.parse_head(to.split(" of ")[1])
        ear = (f"blocks.{l}.attn.hook_{to[0]}", h)
    sender = heads.parse_head(info["sender"][i])
    quarter, half, end = (
        part_of_the_way(model, few, few.abc(), sender, *ear, where, t) for t in (0.25, 0.5, 1.0)
    )
    if quarter * end < 0:
        return "turns"
    return "flat first" if abs(half) < abs(end) / 2 else "steep first"
def at_most(values, take=None):
    take = may & from_head if take is None else take
    return int(torch.where(take, values, torch.tensor(-1.0)).argmax())
i = at_most((a - b).abs())
"""

RIGHT = {
    "09.1": [
        "nothing = 'BDEGI'",
        "nothing = {'b', 'd', 'e', 'g', 'i'}",
        "found = {k: path_patching.path_sweep(model, many, abc, [s], [r]) for k, (s, r) in\n"
        "         cells.items()}\n"
        "nothing = ', '.join(k for k, r in found.items() if r.effect().abs().max() == 0)",
    ],
    "09.2": [
        PASSES + "direct = pass_c() - clean",
        f"direct = {PATCH}).effect().mean().item()",
        # q, k and v frozen in place of z, and the final stream put into a run D of its own.
        "t_layer, t_head = heads.parse_head(teller)\n"
        "_, theirs = model.run_with_cache(abc.tokens)\n"
        "clean_logits, ours = model.run_with_cache(many.tokens)\n"
        "def same(value, hook):\n"
        "    return ours[hook.name]\n"
        "def send(z, hook):\n"
        "    z = z.clone()\n"
        "    rows, end = torch.arange(len(many)), many.positions['END']\n"
        "    z[rows, end, t_head] = theirs['z', t_layer][rows, end, t_head]\n"
        "    return z\n"
        "stream = {}\n"
        "def keep(value, hook):\n"
        "    stream[0] = value.clone()\n"
        "def put(value, hook):\n"
        "    return stream[0]\n"
        "final = f'blocks.{n_layers - 1}.hook_resid_post'\n"
        "hooks = [(f'blocks.{b}.attn.hook_{x}', same) for b in range(n_layers) for x in 'qkv']\n"
        "hooks += [(f'blocks.{t_layer}.attn.hook_z', send), (final, keep)]\n"
        "model.run_with_hooks(many.tokens, fwd_hooks=hooks)\n"
        "logits = model.run_with_hooks(many.tokens, fwd_hooks=[(final, put)])\n"
        "direct = (metrics.logit_diff(logits, many, True)\n"
        "          - metrics.logit_diff(clean_logits, many, True)).mean()",
    ],
    "09.3": [
        RULE + "steering = by_rule(into('q', 'END'))",
        "steering = {n: x * whole for n, x in strong(path_patching.path_sweep(\n"
        "    model, many, abc, receivers=[(f, 'q', 'END') for f in followed])).items()}",
        RULE + "steering = pd.Series(by_rule(into('q', 'END')), dtype=float)",
        RULE + "steering = {heads.parse_head(n): round(e, 2) for n, e in\n"
        "            by_rule(into('q', 'END')).items()}",
    ],
    "09.4": [
        SHARES + "of_two = effect_of()['two'] / effect_of()['all']",
        # The whole by patching k and v themselves.
        SHARES + "by_name = {}\n"
        "_, theirs = model.run_with_cache(abc.tokens)\n"
        "rows, io = torch.arange(len(many)), many.positions['IO']\n"
        "def put(value, hook):\n"
        "    value = value.clone()\n"
        "    for name in followed:\n"
        "        l, h = heads.parse_head(name)\n"
        "        if hook.name.startswith(f'blocks.{l}.'):\n"
        "            value[rows, io, h] = theirs[hook.name][rows, io, h]\n"
        "    return value\n"
        "hooks = [(f'blocks.{b}.attn.hook_{x}', put) for b in range(n_layers) for x in 'kv']\n"
        "whole_effect = (metrics.logit_diff(model.run_with_hooks(many.tokens, fwd_hooks=hooks), many)\n"
        "                - metrics.logit_diff(model(many.tokens), many))\n"
        "of_two = torch.tensor(effect_of()['two']) / whole_effect.cpu()",
    ],
    "09.5": [
        EDGES + "worst = (exact.labels[i], follow(i))",
        EDGES + "worst = [scores.labels[i], follow(i)]",
    ],
}

WRONG = {
    "09.1": {
        "nothing = 'ABDEGI'": r"far",
        "nothing = 'BCDEGI'": r"own\s+block's MLP",
        "nothing = 'DEGI'": r"S2 to END|B goes",
        "nothing = 'BDEI'": r"embedding write|word at END",
        "nothing = 'BDEG'": r"last block",
        "nothing = 'ACFHJ'": r"carry something",
        "nothing = 'BZ'": r"no edge Z",
        "nothing = 5": r"Letters",
        "nothing = 'BEGI'": r"before it\s+writes",
        "nothing = 'BDGI'": r"same time",
    },
    "09.2": {
        PASSES + "direct = pass_c(mlps=True) - clean": r"MLPs",
        PASSES + "direct = pass_c(freeze=False) - clean": r"activation patching",
        PASSES + "direct = pass_c(freeze=False, place=None) - clean": r"activation patching",
        PASSES + "direct = pass_c(run=abc, kept=theirs, sent=ours) - metrics.logit_diff(\n"
        "    model(abc.tokens), many)": r"exchanging",
        PASSES + "direct = pass_c(scored=abc) - clean": r"names of the ABC",
        PASSES + "direct = pass_c(scored=abc) - metrics.logit_diff(clean_logits, abc)": (
            r"names of the ABC"
        ),
        PASSES + "direct = clean - pass_c()": r"sign",
        PASSES + "direct = pass_c()": r"what is left",
        PASSES + "direct = (pass_c() - clean) / clean": r"share",
        PASSES + "from ioi_helpers import attribution\n"
        "dz = (theirs['z', t_layer] - ours['z', t_layer])[rows, end, t_head]\n"
        "out = dz @ model.W_O[t_layer, t_head] / ours['ln_final.hook_scale'][rows, end]\n"
        "direct = (out * attribution.logit_diff_directions(model, many)).sum(-1).mean()": (
            r"direct attributions"
        ),
        PASSES + "direct = pass_c(place=s2) - clean": r"S2",
        PASSES + "direct = pass_c(place=-1) - clean": r"padding",
    },
    "09.3": {
        RULE + "steering = by_rule(patching.patch_sweep(\n"
        "    model, many, abc, 'z', ('layer', 'head', 'role'), roles=('END',),\n"
        "    direction='noising'))": r"total effect|does not come before|no such head",
        RULE + "steering = by_rule(to_logits)": r"reaches the logits|does not come before",
        RULE + "steering = by_rule(into('k', 'IO')) or {'L0H0': -1}": (
            r"keys|do not belong|no such head"
        ),
        RULE + "steering = by_rule(into('v', 'IO')) or {'L0H1': -1}": r"values|no such head",
        RULE + "steering = by_rule(into('q', 'END'), +1) or {names[-1]: 0.1}": (
            r"raise|does not come"
        ),
        RULE + "alone = [path_patching.path_sweep(model, many, abc, receivers=[(f, 'q', 'END')])\n"
        "         for f in followed]\n"
        "added = sum(r.effect().mean(-1) for r in alone).flatten().tolist()\n"
        "steering = {n: e for n, e in zip(names, added) if e < -0.02 * whole}\n"
        "steering = steering or {'L0H3': -0.2}": r"one by one|no such head",
        RULE + "steering = {n: e / whole for n, e in by_rule(into('q', 'END')).items()}\n"
        "steering = steering or {'L0H3': -0.02}": r"shares|no such head",
        RULE + "steering = {n: -e for n, e in by_rule(into('q', 'END')).items()}\n"
        "steering = steering or {'L0H3': 0.02}": r"sign|no such head",
        "steering = {f'L{n_layers - 1}H0': -1.0}": r"does not come before|no such head",
        "steering = {'L0H99': -1.0}": r"no L0H99",
        "steering = 3": r"A dict",
        "steering = ['L0H1']": r"A dict",
    },
    "09.4": {
        SHARES + "of_two = effect_of('END')['two'] / effect_of('END')['all']": r"at END",
        SHARES + "of_two = effect_of('S1')['two'] / effect_of('S1')['all']": r"S1",
        SHARES + "of_two = effect_of()['MLP0'] / effect_of()['no embedding']": r"embedding out",
        SHARES + "of_two = effect_of()['MLP0'] / effect_of()['all']": r"embedding out",
        SHARES + "of_two = effect_of()['embedding'] / effect_of()['all']": r"MLP 0 out",
        SHARES + "of_two = effect_of()['heads'] / effect_of()['all']": r"heads' share",
        SHARES + "of_two = 1 - effect_of()['two'] / effect_of()['all']": r"left for others",
        SHARES + "of_two = effect_of(inputs=['k'])['two'] / effect_of(inputs=['k'])['all']": (
            r"keys only"
        ),
        SHARES + "of_two = effect_of(mlps='frozen')['two'] / effect_of()['all']": r"freezing",
        SHARES + "of_two = effect_of()['two']": r"logits",
        SHARES + "of_two = 100 * effect_of()['two'] / effect_of()['all']": r"percent",
        SHARES + "of_two = effect_of()['two'] / whole": r"share of the logit difference",
        SHARES + "of_two = effect_of()['all'] / effect_of()['two']": r"other way round",
    },
    "09.5": {
        EDGES + "worst = (exact.labels[i], [w for w in ('turns', 'flat first', 'steep first')\n"
        "                           if w != follow(i)][0])": r"calling it|blaming",
        EDGES + "worst = (exact.labels[i], [w for w in ('turns', 'flat first', 'steep first')\n"
        "                           if w != follow(i)][1])": r"calling it|blaming",
        EDGES + "worst = exact.labels[i]": r"pair",
        EDGES + "worst = (exact.labels[i], 'saturation')": r"The way is one of",
        EDGES + "worst = (info['sender'][i], follow(i))": r"no edge here",
        EDGES + "j = at_most((a - b).abs(), may & ~from_head)\n"
        "worst = (exact.labels[j], 'flat first')": r"no head",
        EDGES
        + "j = int((~may & from_head).nonzero()[0])\nworst = (exact.labels[j], 'flat first')": r"impossible",
        EDGES
        + "j = at_most(a.abs())\nworst = (exact.labels[j], follow(j))": r"largest score|largest effect|noising",
        EDGES
        + "j = at_most((a - means_of(backwards)).abs())\nworst = (exact.labels[j], follow(j))": r"like with like|largest",
        EDGES + "j = at_most((a - b).abs() / b.abs().clamp(min=1e-6))\n"
        "worst = (exact.labels[j], follow(j))": r"relative",
    },
}
