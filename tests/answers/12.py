"""Answers to the exercises of notebook 12: what readers write that is right, and what is not.

Each is source for the stub's cell, run where the stub stands (see `notebooks/tools/exercise_runs.py`). A
wrong answer comes with a pattern that the refusal must match.
"""

from __future__ import annotations

ASKED = """\
found = {}
for name, (d, _) in candidates.items():
    v = runs.logit_diffs(model, d)
    found[name] = v, estimate(v, d), pairs_right(v, d)
"""

PATCHED = """\
layer, head = heads.parse_head(top[0])
name = f"blocks.{layer}.attn.hook_z"
n = torch.arange(len(explore))
at = explore.positions[top[1]]
_, good = model.run_with_cache(explore.tokens, names_filter=name)
_, bad = model.run_with_cache(explore_corrupted.tokens, names_filter=name)
high = metrics.logit_diff(model(explore.tokens), explore).item()
low = metrics.logit_diff(model(explore_corrupted.tokens), explore).item()
def with_z(data, new, rows=n, at=at, h=head):
    def put(z, hook):
        z = z.clone()
        z[rows, at, h] = new[rows, at, h]
        return z
    return metrics.logit_diff(model.run_with_hooks(data.tokens, fwd_hooks=[(name, put)]), explore).item()
"""

LOST = """\
before = whole.mean().item()
def costs(data=held, reference=held_corrupted, how="mean", sets=[[pair] for pair in found] + [found]):
    base = runs.logit_diffs(model, data).mean().item()
    *alone, together = left_without(model, data, reference, sets, how)
    return [base - x for x in alone], base - together
"""

ARGUE = """\
rows = draw(lambda rng: person(rng, ["Then, {a} had a long argument, and afterwards {b} said to"]), 20, 8)
d, _ = two_answers(model.tokenizer, rows)
v = runs.logit_diffs(model, d)
"""

RIGHT = {
    "12.1": [
        ASKED
        + "can_do = [n for n, (v, e, p) in found.items() if p >= 0.75 and e.mean > 2 * e.stderr]",
        ASKED
        + "can_do = {n: p >= 0.75 and e.mean > 2 * e.stderr for n, (v, e, p) in found.items()}",
        # By hand: the two prompts of a pair are those with one number.
        "can_do = set()\n"
        "for name, (d, _) in candidates.items():\n"
        "    ok = pd.Series((runs.logit_diffs(model, d) > 0).tolist())\n"
        "    if ok.groupby(d.pair_ids.tolist()).all().mean() >= 0.75:\n"
        "        can_do.add(name.upper())",
    ],
    "12.2": [
        "gap = (runs.logit_diffs(model, explore) - runs.logit_diffs(model, explore_corrupted)).mean().item()",
        "gap = metrics.logit_diff(model(explore.tokens), explore)"
        " - metrics.logit_diff(model(explore_corrupted.tokens), explore)",
        "gap = round(float((runs.logit_diffs(model, explore)"
        " - runs.logit_diffs(model, explore_corrupted)).mean()), 3)",
    ],
    "12.3": [
        PATCHED
        + "recovered_by_hand = (with_z(explore_corrupted, good[name]) - low) / (high - low)",
        "swept = patching.patch_sweep(model, explore, explore_corrupted, 'z',"
        " ('layer', 'head', 'role'), roles=[top[1]])\n"
        "layer, head = heads.parse_head(top[0])\n"
        "recovered_by_hand = swept.fraction()[layer, head, 0]",
        PATCHED
        + "from ioi_helpers.edits import head_edit\n"
        + "edit = head_edit(explore_corrupted, top[1], (layer, head), good[name][n, at, head])\n"
        "patched = runs.logit_diffs(model, explore_corrupted, [edit]).mean().item()\n"
        "recovered_by_hand = round((patched - low) / (high - low), 3)",
    ],
    "12.4": [
        LOST + "alone, together = costs()\nadds_up = sum(alone) / together",
        # One context after another, with the ablation that the notebooks before used.
        "def left(pairs):\n"
        "    with ablation.ablate(model, pairs, how='mean', reference=held_corrupted, data=held):\n"
        "        return metrics.logit_diff(model(held.tokens), held).item()\n"
        "before = whole.mean().item()\n"
        "adds_up = sum(before - left([pair]) for pair in found) / (before - left(found))",
    ],
    "12.5": [
        ARGUE + "my_behaviour = (rows, pairs_right(v, d))",
        ARGUE + "my_behaviour = [[list(row) for row in rows], round(pairs_right(v, d), 2)]",
        # Another order of words, written out row by row.
        "rows = []\n"
        "for a, b in zip(stimuli.NAMES[:24:2], stimuli.NAMES[1:24:2]):\n"
        "    text = 'After {} went to the store, {} gave a drink to'\n"
        "    rows += both_ways(text.format(a, b), text.format(b, a), ' ' + a, ' ' + b)\n"
        "d, _ = two_answers(model.tokenizer, rows)\n"
        "my_behaviour = (rows, pairs_right(runs.logit_diffs(model, d), d))",
    ],
}

WRONG = {
    "12.1": {
        ASKED
        + "can_do = [n for n, (v, e, p) in found.items() if e.mean > 2 * e.stderr]": r"mean logit difference alone",
        ASKED
        + "can_do = [n for n, (v, e, p) in found.items() if (v > 0).float().mean() >= 0.5]": r"half of the prompts|all of them",
        ASKED + "can_do = [n for n, (v, e, p) in found.items() if p < 0.75]": r"that it has not",
        "can_do = list(candidates)": r"all of them",
        "can_do = 'IOI'": r"none of the candidates",
        "can_do = 3": r"list of names",
        "can_do = []": r"missing|not attempted",
    },
    "12.2": {
        "gap = runs.logit_diffs(model, explore).mean()": r"clean run alone",
        "gap = runs.logit_diffs(model, explore_corrupted).mean()": r"corrupted run alone",
        "gap = (runs.logit_diffs(model, explore_corrupted) - runs.logit_diffs(model, explore)).mean()": r"from the corrupted",
        "own = two_answers(model.tokenizer, [Row(r.corrupted, r.wrong, r.right, r.prompt) for r in behaviours[chosen]])[0]\n"
        "own = own[searched]\n"
        "gap = (runs.logit_diffs(model, explore) - runs.logit_diffs(model, own)).mean()": r"own right answer",
        "gap = (runs.logit_diffs(model, held) - runs.logit_diffs(model, held_corrupted)).mean()": r"`held`",
        "gap = (runs.logit_diffs(model, data) - runs.logit_diffs(model, corrupted)).mean()": r"all prompts",
        "gap = runs.logit_diffs(model, explore) - runs.logit_diffs(model, explore_corrupted)": r"single number",
        "gap = 1 - runs.logit_diffs(model, explore_corrupted).mean() / runs.logit_diffs(model, explore).mean()": r"dividing by the clean",
    },
    "12.3": {
        PATCHED
        + "recovered_by_hand = (with_z(explore, bad[name]) - low) / (high - low)": r"other way round",
        PATCHED
        + "recovered_by_hand = with_z(explore_corrupted, good[name])": r"patched logit difference",
        PATCHED
        + "recovered_by_hand = with_z(explore_corrupted, good[name]) - low": r"logits gained",
        PATCHED
        + "recovered_by_hand = 100 * (with_z(explore_corrupted, good[name]) - low) / (high - low)": r"percent",
        PATCHED + "every = slice(None)\n"
        "recovered_by_hand = (with_z(explore_corrupted, good[name], every, every) - low) / (high - low)": r"every position",
        PATCHED
        + "recovered_by_hand = (with_z(explore_corrupted, good[name], h=slice(None)) - low) / (high - low)": r"all heads",
        PATCHED
        + "recovered_by_hand = (with_z(explore_corrupted, torch.zeros_like(good[name])) - low) / (high - low)": r"zeros",
        PATCHED
        + "recovered_by_hand = (with_z(explore_corrupted, good[name]) - low) / high": r"not by the gap",
        PATCHED
        + "recovered_by_hand = 1 - (with_z(explore_corrupted, good[name]) - low) / (high - low)": r"left to recover",
    },
    "12.4": {
        LOST + "alone, together = costs(how='zero')\nadds_up = sum(alone) / together": r"by zero",
        LOST
        + "alone, together = costs(how='resample')\nadds_up = sum(alone) / together": r"resampling",
        LOST
        + "alone, together = costs(explore, explore_corrupted)\nadds_up = sum(alone) / together": r"`explore`",
        LOST + "sets = [[h] for h, _ in found] + [[h for h, _ in found]]\n"
        "alone, together = costs(sets=sets)\nadds_up = sum(alone) / together": r"every token",
        LOST + "alone, together = costs()\nadds_up = together / sum(alone)": r"other way round",
        LOST
        + "alone, together = costs()\nadds_up = sum(alone) / len(alone) / together": r"mean of the single",
        LOST + "alone, together = costs()\nadds_up = max(alone) / together": r"largest single",
        LOST + "alone, together = costs()\nadds_up = sum(alone)": r"in logits",
        LOST
        + "alone, together = costs()\nadds_up = sum(before - x for x in alone) / together": r"what is left",
        LOST + "alone, together = costs()\nadds_up = sum(alone) / before": r"whole model's",
    },
    "12.5": {
        "my_behaviour = draw(said_again, 12, 1)": r"two things",
        "my_behaviour = (draw(to_or_was, 4, 1), 1.0)": r"different pairs",
        "my_behaviour = ([r for i, r in enumerate(draw(said_again, 20, 1)) if i % 2], 0.8)": r"no row of its own",
        "my_behaviour = (draw(who_has_what, 20, 1), 0.5)": r"has it not|liking",
        "rows = draw(lambda rng: person(rng, GIVING), 20, 1)\n"
        "my_behaviour = ([r._replace(right=r.wrong, wrong=r.right) for r in rows], 1.0)": r"exchanged",
        "rows = draw(lambda rng: person(rng, GIVING), 20, 1)\n"
        "my_behaviour = ([r._replace(right=r.right.strip(), wrong=r.wrong.strip()) for r in rows], 1.0)": r"lacks|joins",
        "rows = draw(lambda rng: person(rng, GIVING), 20, 1)\n"
        "my_behaviour = ([r._replace(right=r.right + ' again', wrong=r.wrong + ' again') for r in rows], 1.0)": r"2 tokens",
        "rows = []\n"
        "for a in stimuli.NAMES[:12]:\n"
        "    rows += both_ways(f'Soon {a} decided to', f'Soon {a} was', ' play', ' playing')\n"
        "my_behaviour = (rows, 1.0)": r"5 and 4 tokens",
        "rows = []\n"
        "for a, b in zip(stimuli.NAMES[:24:2], stimuli.NAMES[1:24:2]):\n"
        "    one, other = (f'After {x} went to the store, {y} gave a drink to' for x, y in ((a, b), (b, a)))\n"
        "    rows += [Row(one, ' ' + a, ' ' + b, other), Row(other, ' ' + a, ' ' + b, one)]\n"
        "my_behaviour = (rows, 0.5)": r"different answers",
        ARGUE + "my_behaviour = (rows, 0.3)": r"another number",
        ARGUE + "my_behaviour = (rows, 97)": r"between 0 and 1",
        "my_behaviour = (['Then he took'], 0.9)": r"rows come first",
    },
}
