r"""Answers to the exercises of notebook 10: what readers write that is right, and what is not.

Each is source for the stub's cell, run where the stub stands (see `notebooks/tools/exercise_runs.py`). A
wrong answer comes with a pattern that the refusal must match.
"""

from __future__ import annotations

HAND = """\
_, cache = model.run_with_cache(reference.tokens, names_filter=lambda name: "hook_z" in name)
_, own = model.run_with_cache(search.tokens, names_filter=lambda name: "hook_z" in name)
_, ioi = model.run_with_cache(many.tokens, names_filter=lambda name: "hook_z" in name)
def f(values, mask=kept):
    def hook(z, hook):
        return torch.where(mask[hook.layer()][..., None], z, values(hook.name))
    hooks = [(lambda name: "hook_z" in name, hook)]
    return metrics.logit_diff(model.run_with_hooks(search.tokens, fwd_hooks=hooks), search, True)
def grouped(cache, source, by):
    def values(name):
        means = torch.zeros_like(own[name])
        for key, rows in search.groups(by).items():
            means[rows] = cache[name][source.groups(by)[key]].mean(dim=0)[: means.shape[1]]
        return means
    return values
whole_search = metrics.logit_diff(model(search.tokens), search, True)
both = "template and order"
right_means = grouped(cache, reference, both)
"""

LEFT = """\
abba = torch.tensor([order == "ABBA" for order in data.orders])
def shares_left(reference, group="template and order", K=watchers, **how):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tried = circuits.Circuits(model, data, reference, group=group, **how)
    left = tried.run_model(without=K).logit_diff
    whole = tried.run_model().logit_diff
    return [float(left[mask].mean() / whole[mask].mean()) for mask in (abba, ~abba)]
"""

APART = """\
def apart(K):
    return circuits.completeness(searcher, naive, {"K": K}, progress=False)["incompleteness"].iloc[0]
def rest(K):
    return [node for node in naive if node not in K]
groups = [list(nodes) for nodes in naive.classes.values()] + [[node] for node in naive]
best = max(groups, key=apart)
"""

SCRUB = """\
def z_of(prompts):
    return model.run_with_cache(prompts.tokens, names_filter=lambda name: "hook_z" in name)[1]
def by_hand(features, other=search.redraw((), seed=2), scored=search):
    drawn = z_of(search.redraw(features, seed=1))
    away = z_of(other) if other is not None else None
    def put_in(z, hook):
        z = z.clone()
        for nodes, source in ((watching, drawn), (outside, away)):
            for node in nodes:
                if node.layer == hook.layer() and source is not None:
                    z[rows, end, node.head] = source[hook.name][rows, end, node.head]
        return z
    hooks = [(lambda name: "hook_z" in name, put_in)]
    return metrics.logit_diff(model.run_with_hooks(search.tokens, fwd_hooks=hooks), scored)
"""

RIGHT = {
    "10.1": [
        "f_of_empty = 0",
        "f_of_empty = runner.run(()).logit_diff.mean()",
        "f_of_empty = round(float(runner.run([]).logit_diff.mean()), 3)",
    ],
    "10.2": [
        HAND + "share = f(right_means).mean() / whole_search.mean()",
        "share = circuits.faithfulness(searcher, circuit).ratio()",
        "share = (searcher.run(circuit).logit_diff.mean() / searcher.run_model().logit_diff.mean())",
        HAND + "share = float(f(right_means).sum() / whole_search.sum())",
    ],
    "10.3": [
        LEFT + "shares = torch.tensor([shares_left(data), shares_left(reference)])",
        LEFT + "shares = [shares_left(data), shares_left(reference, 'template')]",
        LEFT + "shares = [shares_left(data), shares_left(reference, 'all')]",
        LEFT + "shares = pd.DataFrame([shares_left(data), shares_left(data.abc())]).to_numpy()",
        LEFT + "shares = [shares_left(data), shares_left(data.abc(), how='resample')]",
    ],
    "10.4": [
        APART + "K = max(([*best, node] for node in rest(best)), key=apart, default=best)\n"
        "K = K if apart(K) > apart(best) else best",
        APART + "K = best\n"
        "while rest(K):\n"
        "    more = max(([*K, node] for node in rest(K)), key=apart)\n"
        "    if apart(more) <= apart(K):\n"
        "        break\n"
        "    K = more\n"
        "K = {(node.name, node.role) if node.role else node.name for node in K}",
        # Both ways, from larger sets down too.
        APART + "K = list(naive)\n"
        "while len(K) > 1:\n"
        "    less = max(([n for n in K if n != gone] for gone in K), key=apart)\n"
        "    if apart(less) <= apart(K):\n"
        "        break\n"
        "    K = less\n"
        "grown = max(([*best, node] for node in rest(best)), key=apart, default=best)\n"
        "K = [str(node) for node in max(K, best, grown, key=apart)]",
    ],
    "10.5": [
        SCRUB + "scores_by_hand = torch.stack([by_hand(('order',)), by_hand('S')])",
        SCRUB + "scores_by_hand = [float(by_hand([what])) for what in ('order', 'S')]",
        SCRUB + "scores_by_hand = (by_hand(('template', 'order')).item(), by_hand({'S'}).item())",
    ],
}

WRONG = {
    "10.1": {
        "f_of_empty = metrics.logit_diff(model(reference.tokens), many)": r"no run over a prompt",
        "f_of_empty = metrics.logit_diff(model(data.tokens), data)": r"taking F\(M\)",
        "f_of_empty = 'unknown'": r"known before",
        "f_of_empty = float('nan')": r"nan",
        "f_of_empty = 1": r"F\(C\) / F\(M\)",
        "f_of_empty = runner.run(()).logit_diff": r"single number",
        "f_of_empty = runner.run(()).logit_diff[::2].mean()": r"one prompt of each pair",
        "f_of_empty = 0.5": r"chance",
    },
    "10.2": {
        HAND + "share = (f(right_means) / whole_search).mean()": r"each prompt's ratio",
        HAND + "share = f(lambda name: 0 * own[name]).mean() / whole_search.mean()": r"zero",
        "inside = searcher.run_model(without=circuit.outside(shape, ROLES)).logit_diff.mean()\n"
        "share = inside / searcher.run_model().logit_diff.mean()": r"five roles only",
        HAND + "share = f(lambda name: cache[name].mean(0)[: own[name].shape[1]]).mean() / "
        "whole_search.mean()": r"over all templates",
        HAND
        + "share = f(grouped(ioi, many, both)).mean() / whole_search.mean()": r"IOI prompts, in which",
        HAND
        + "share = f(grouped(own, search, both)).mean() / whole_search.mean()": r"IOI prompts of",
        HAND + "share = f(right_means, ~kept).mean() / whole_search.mean()": r"keeping the rest",
        HAND + "share = f(right_means).mean()": r"in logits",
        HAND + "share = (whole_search - f(right_means)).mean() / whole_search.mean()": r"missing",
        HAND + "share = f(right_means) / whole_search": r"single number",
        HAND
        + "share = f(grouped(cache, reference, 'template')).mean() / whole_search.mean()": r"both orders",
        "share = found['B'].ratio()": r"prompts of `data`",
    },
    "10.3": {
        LEFT
        + "shares = [shares_left(data), shares_left(data, 'template')]": r"Look at ABBA and BABA apart",
        LEFT + "shares = [shares_left(data), shares_left(many, 'template')]": r"more IOI prompts",
        LEFT + "shares = [shares_left(data), shares_left(data, 'all')]": r"one mean over all IOI",
        LEFT + "shares = [shares_left(data), shares_left(many)]": r"more prompts of the same kind",
        LEFT
        + "shares = [shares_left(data), shares_left(data.random_names())]": r"a name is repeated",
        LEFT + "shares = [shares_left(data), shares_left(None, how='zero')]": r"zero",
        LEFT + "shares = [shares_left(reference), shares_left(data)]": r"rows",
        LEFT + "shares = [shares_left(data)[::-1], shares_left(reference)[::-1]]": r"orders",
        LEFT + "shares = shares_left(reference)": r"the answer is",
        LEFT + "every = [node.at(None) for node in watchers]\n"
        "shares = [shares_left(data, K=every), shares_left(reference, K=every)]": r"every position",
        LEFT + "shares = 1 - torch.tensor([shares_left(data), shares_left(reference)])": r"lost",
    },
    "10.4": {
        "K = [node for node in Shape.of(model).nodes(['S1+1']) if node not in naive][:1]": r"not in `naive`",
        "K = []": r"empty",
        APART + "K = min(([node] for node in naive), key=apart)": r"one member|member or group",
        "K = 'L0H99'": r"not in `naive`",
        APART + "K = min(groups, key=lambda nodes: float(\n"
        "    searcher.run(naive, without=nodes).logit_diff.mean()))": r"largest drop|one member|best of the single",
        APART + "K = best": r"best of the single",
        APART
        + "K = min(circuits.random_subsets(naive, 3, seed=5).values(), key=apart)": r"drawn at "
        r"random|largest drop",
        "K = 'no head'": r"L9H9",
    },
    "10.5": {
        SCRUB
        + "same = search.redraw(('order',), seed=2)\n"
        + "scores_by_hand = [by_hand(('order',), same), by_hand(('S',), same)]": r"leaks",
        SCRUB + "everything = ('order', 'IO', 'S')\n"
        "scores_by_hand = [by_hand(everything), by_hand(everything)]": r"passes always",
        SCRUB + "scores_by_hand = [by_hand((w,), search.redraw((w,), seed=1))\n"
        "                  for w in ('order', 'S')]": r"one draw for the whole tree",
        SCRUB + "scores_by_hand = [by_hand((w,), scored=search.redraw((w,), seed=1))\n"
        "                  for w in ('order', 'S')]": r"drawn prompts' names",
        SCRUB + "scores_by_hand = [by_hand(('S',)), by_hand(('order',))]": r"exchanging",
        SCRUB
        + "scores_by_hand = [by_hand(('order', 'IO')), by_hand(('S', 'IO'))]": r"speaks of IO",
        SCRUB + "scores_by_hand = [by_hand(()), by_hand(())]": r"agree in nothing",
        SCRUB
        + "scores_by_hand = [by_hand(('order',), None), by_hand(('S',), None)]": r"as they are",
        SCRUB
        + "scores_by_hand = [by_hand(('order', 'S')), by_hand(('order', 'S'))]": r"one of\s+them",
    },
}
