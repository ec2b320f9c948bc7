"""Answers to the exercises of notebook 11: what readers write that is right, and what is not.

Each is source for the stub's cell, run where the stub stands (see `notebooks/tools/exercise_runs.py`). A
wrong answer comes with a pattern that the refusal must match.
"""

from __future__ import annotations

CHANGE = """\
d = runs.logit_diffs(model, with_s) - runs.logit_diffs(model, without_s)
e = estimate(d, many)
"""

RIGHT_WAY = """\
def sign(e):
    small = abs(e.mean) < max(0.1 * level, 2 * e.stderr)
    return "no change" if small else "up" if e.mean > 0 else "down"
"""

HELD = """\
held = circuits.Circuits(model, attack)
m = held.run_model().logit_diff
c = held.run(circuit).logit_diff
"""

BACK = """\
low, high = (runs.logit_diffs(model, d).mean() for d in (attack, control))
def with_look(donor, chosen, target=attack, role="END"):
    look = runs.attention_patterns(model, donor, chosen, role)
    short = target.tokens.shape[1] - donor.tokens.shape[1]
    look = {h: torch.nn.functional.pad(rows, (0, max(short, 0))) for h, rows in look.items()}
    edits = [attention_edit(target, role, h, rows) for h, rows in look.items()]
    return runs.logit_diffs(model, target, edits)
def share(values):
    return (values.mean() - low) / (high - low)
"""

AT_NEW_NAME = """\
new = attack.mentions[:, 0]
abc = attack.abc()
def left_with(donor, by="template and order", at=new):
    z = runs.activations_at(model, donor, at, sites)
    for values in z.values():
        groups = attack.groups(by).values() if by else []
        for group in groups:
            values[group] = values[group].mean(dim=0)
    edits = [head_edit(attack, at, (l, h), z[s][:, h])
             for l, s in enumerate(sites) for h in range(model.cfg.n_heads)]
    return runs.logit_diffs(model, attack, edits).mean()
"""

PLACES = """\
text, where = ("[A] was tired.", "middle")
if score(model, many, text, where)["points"] < 0.3:
    text, where = (", a friend of [A],", "after S2")
"""

RIGHT = {
    "11.1": [
        CHANGE + RIGHT_WAY + "direction = sign(e).upper()",
        CHANGE + RIGHT_WAY + "direction = [f'it goes {sign(e)}'.replace('goes no', 'shows no')]",
        # Without the estimate's helper, pair by pair.
        CHANGE + "pairs = d.reshape(-1, 2).mean(dim=1)\n"
        "mean, stderr = pairs.mean(), pairs.std() / len(pairs) ** 0.5\n"
        "small = abs(mean) < max(level / 10, 2 * stderr)\n"
        "direction = 'no change' if small else 'rises' if mean > 0 else 'falls'",
    ],
    "11.2": [
        HELD + "left = c.mean().item()",
        HELD + "left = estimate(c, few)",
        "left = circuits.Circuits(model, attack, attack.abc(seed=1)).run(circuit).logit_diff.mean()",
        "left = circuits.Circuits(model, attack, attack.abc(seed=5)).run(circuit).logit_diff.mean()",
        "left = circuits.Circuits(model, attack, control.abc()).run(circuit).logit_diff.mean()",
        "left = circuits.faithfulness(circuits.Circuits(model, attack), circuit)"
        ".table()['F(C)'].item()",
    ],
    "11.3": [
        BACK + "undone = share(with_look(control, readers)).item()",
        BACK + "undone = 1 - (high - with_look(control, readers).mean()) / (high - low)",
        # The pattern put in by a hook of one's own.
        BACK + "rows = torch.arange(len(attack))\n"
        "look = runs.attention_patterns(model, control, readers)\n"
        "def hook_of(h):\n"
        "    layer, head = heads.parse_head(h)\n"
        "    def put(pattern, hook):\n"
        "        pattern = pattern.clone()\n"
        "        pattern[rows, head, attack.positions['END']] = look[h]\n"
        "        return pattern\n"
        "    return f'blocks.{layer}.attn.hook_pattern', put\n"
        "logits = model.run_with_hooks(attack.tokens, fwd_hooks=[hook_of(h) for h in readers])\n"
        "undone = share(metrics.logit_diff(logits, attack, per_prompt=True))",
    ],
    "11.4": [
        AT_NEW_NAME + "blinded = left_with(abc)",
        AT_NEW_NAME + "blinded = round(left_with(abc).item(), 3)",
        AT_NEW_NAME + "blinded = left_with(control.abc())",
    ],
    "11.5": [
        PLACES + "my_attack = (text, where, score(model, many, text, where)['S above IO'])",
        PLACES + "fresh = IOIDataset.generate(model.tokenizer, 100, seed=9)\n"
        "share = (runs.logit_diffs(model, fresh.insert(text, where)) < 0).float().mean()\n"
        "my_attack = [text, where, share]",
    ],
}

WRONG = {
    "11.1": {
        "direction = 'up'": r"no rise is shown|other way round",
        CHANGE + RIGHT_WAY + "direction = {'no change': 'down', 'down': 'no change', "
        "'up': 'down'}[sign(e)]": r"more salient tells|is a change|other way round",
        "direction = 'down, since S is more salient'": r"salient is a reason",
        "direction = -0.05": r"one of the words",
        "direction = 'sideways'": r"none of",
    },
    "11.2": {
        HELD + "left = m.mean()": r"whole model",
        HELD + "left = (c > 0).float().mean()": r"accuracies only",
        "left = circuits.Circuits(model, few).run(circuit).logit_diff.mean()": r"different prompts",
        "left = circuits.Circuits(model, control).run(circuit).logit_diff.mean()": r"`control`",
        "left = circuits.Circuits(model, attack, attack).run(circuit).logit_diff.mean()": r"own prompts",
        "left = circuits.Circuits(model, attack, how='zero').run(circuit).logit_diff.mean()": r"by zero",
        HELD + "left = c": r"single number",
        HELD + "left = c[torch.tensor([o == 'ABBA' for o in attack.orders])].mean()": r"ABBA only",
        "from ioi_helpers.dataset import ROLES\nfrom ioi_helpers.graph import Shape\n"
        "outside = circuit.outside(Shape.of(model), ROLES)\n"
        "left = circuits.Circuits(model, attack).run_model(without=outside).logit_diff.mean()": r"at the roles only",
    },
    "11.3": {
        BACK + "undone = torch.stack([p[torch.arange(len(attack)), attack.mentions[:, 0]] for p in "
        "runs.attention_patterns(model, attack, readers).values()]).mean()": r"failures and successes",
        "undone = r": r"correlation",
        BACK + "undone = share(with_look(few, readers))": r"absolute index",
        BACK
        + "undone = share(with_look(control, [h for h in every if h not in readers]))": r"all other heads",
        BACK
        + "undone = (high - with_look(attack, readers, control).mean()) / (high - low)": r"other way round",
        BACK + "undone = share(with_look(control, readers, role='S2'))": r"at S2",
        BACK + "undone = with_look(control, readers).mean() - low": r"in logits",
        BACK + "undone = 100 * share(with_look(control, readers))": r"percent",
    },
    "11.4": {
        "blinded = runs.logit_diffs(model, attack).mean()": r"nothing ablated",
        "blinded = circuits.Circuits(model, attack).run(circuit).logit_diff.mean()": r"running the circuit",
        "blinded = 'noise'": r"Noise",
        "blinded = 'faithfulness above 1 is good'": r"as far from the model",
        "blinded = 'because the circuit cannot see the new name'": r"now show it",
        "with ablation.ablate(model, every, reference=attack.abc()):\n"
        "    blinded = metrics.logit_diff(model(attack.tokens), attack)": r"at all positions",
        "its_ld = circuits.Circuits(model, attack).run(circuit).logit_diff.mean()\n"
        "blinded = its_ld / runs.logit_diffs(model, attack).mean()": r"ratio",
        AT_NEW_NAME + "blinded = left_with(abc, 'template')": r"both orders",
        AT_NEW_NAME + "blinded = left_with(abc, None)": r"resampling",
        AT_NEW_NAME + "blinded = left_with(abc, at=attack.positions['S2'])": r"at S2",
    },
    "11.5": {
        "my_attack = ('Mary was tired.', 'middle', 0.4)": r"written out.*two tokens",
        "my_attack = ('Everyone was tired.', 'middle', 0.4)": r"its own control",
        "my_attack = ('and [A]', 'after S2', 0.4)": r"no longer have an answer",
        "my_attack = ('[A] gave it to', 'middle', 0.4)": r"no longer have an answer",
        "my_attack = ('Then [B] was tired.', 'start', 0.5)": r"neither story predicts",
        "my_attack = ('Then [A] met [B].', 'start', 0.6)": r"does not work here|naming IO adds",
        "my_attack = ('Then [A] was tired.', 'start', 0.4)": r"does not work here|naming IO adds",
        "found = (runs.logit_diffs(model, many.insert('[A] saw [A].', 'middle')) < 0).float()\n"
        "best = max(found[i:i + 6].mean() for i in range(0, 120, 6))\n"
        "my_attack = ('[A] saw [A].', 'middle', best)": r"tested on itself|naming IO adds",
        "my_attack = ('[A] was tired.', 'middle')": r"three things",
        "my_attack = ('[a] was tired.', 'middle', 0.4)": r"no other brackets",
        "my_attack = ('[A] was tired.', 'middle', 45)": r"between 0 and 1",
    },
}
