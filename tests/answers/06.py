"""Answers to the exercises of notebook 06: what readers write that is right, and what is not.

Each is source for the stub's cell, run where the stub stands (see `notebooks/tools/exercise_runs.py`). A
wrong answer comes with a pattern that the refusal must match.
"""

from __future__ import annotations

CLOUD = """\
x = at_s2[point].cpu().double()
y = torch.tensor([o == "ABBA" for o in order]).double()
def with_order(coordinates):
    return torch.corrcoef(torch.stack([coordinates, y]))[0, 1]
U, S, Vh = torch.linalg.svd(x - x.mean(dim=0), full_matrices=False)
"""

HITS = """\
right = torch.tensor([said == o for said, o in zip(score.predicted, order)]).double()
templates = grouped["template"]
"""

SUMS = (
    HITS
    + """\
k = len(templates.unique())
sums = torch.stack([(right - right.mean())[templates == t].sum() for t in range(k)])
"""
)

TRUNK = """\
template, pairs = grouped["template"], grouped["names"]
rows = torch.arange(len(messy))
"""

TOKENS = """\
rows = torch.arange(len(messy))
baba = torch.tensor([o == "BABA" for o in order])
def texts(at):
    return {model.tokenizer.decode([t]) for t in at.tolist()}
"""

GUESS = """\
from collections import Counter
def guess(data, *facts):
    keys = list(zip(*facts)) if facts else [()] * len(data)
    at = data.positions["IO"].tolist()
    return {
        key: Counter(p for p, k in zip(at, keys) if k == key) for key in set(keys)
    }
def score_of(counters):
    right, of = (sum(f(c.values()) for c in counters.values()) for f in (max, sum))
    return right / of
order = many.orders
templates = many.template_ids.tolist()
"""

BIT = """\
values = at_s2[point][test]
direction = mean_difference(at_s2[point])
unit = direction / direction.norm()
"""

SWAPPED = """\
new = runs.activations_at(model, sample.swap_order(), "S2", point)
e = [residual_edit(sample, "S2", point, new)]
def predict(role, edits=()):
    return runs.logits_at(model, sample, role, edits).log_softmax(-1)
p, q = predict("S2"), predict("S2", e)
"""

RIGHT = {
    "06.1": [
        CLOUD + "correlation = with_order((x - x.mean(0)) @ Vh[0]).abs()",
        CLOUD + "correlation = abs(with_order(U[:, 0]).item())",
        # The eigenvectors of the covariance matrix are the same.
        CLOUD + "_, vectors = np.linalg.eigh(np.cov(x.numpy().T))\n"
        "correlation = abs(np.corrcoef(x.numpy() @ vectors[:, -1], y.numpy())[0, 1])",
        # In single precision, and the root of the share.
        CLOUD + "x = x.float()\n"
        "U, S, Vh = torch.linalg.svd(x - x.mean(dim=0), full_matrices=False)\n"
        "correlation = with_order(U[:, 0].double()).abs()",
        "coordinates = probing.svd_projection(at_s2[point], 1).coordinates\n"
        "correlation = probing.eta_squared(coordinates, order)[0] ** 0.5",
    ],
    "06.2": [
        SUMS + "standard_error = (sums.square().sum() * k / (k - 1)).sqrt() / len(right)",
        "standard_error = score.accuracy.stderr",
        # An estimate is asked for its error.
        HITS + "standard_error = metrics.mean_and_stderr(right, templates)",
        'standard_error = metrics.mean_and_stderr(right, clusters=grouped["template"])',
        HITS + "means = torch.stack([right[templates == t].mean() for t in templates.unique()])\n"
        "standard_error = means.std() / len(means) ** 0.5",
        HITS + "means = torch.stack([right[templates != t].mean() for t in templates.unique()])\n"
        "k = len(means)\n"
        "standard_error = means.std(correction=0) * (k - 1) ** 0.5",
        # A bootstrap of whole templates.
        HITS + "generator = np.random.default_rng(0)\n"
        "parts = [right[templates == t] for t in templates.unique()]\n"
        "means = []\n"
        "for _ in range(4000):\n"
        "    drawn = generator.integers(0, len(parts), len(parts))\n"
        "    means.append(torch.cat([parts[i] for i in drawn]).mean().item())\n"
        "standard_error = np.std(means)",
    ],
    "06.3": [
        "one = probing.split(probing.groups(messy, 'S2'), 0.3, seed=3)\n"
        "split_rows = one.train, one.test",
        "split_rows = probing.split(grouped, 0.2)",
        # Masks as plain lists; columns of row numbers.
        TRUNK + "inside = template < 3\n"
        "outside = ~inside & ~torch.isin(pairs, pairs[inside])\n"
        "split_rows = outside.tolist(), inside.tolist()",
        TRUNK + "inside = template < 3\n"
        "outside = ~inside & ~torch.isin(pairs, pairs[inside])\n"
        "split_rows = outside.nonzero(), np.where(inside)",
        # Row by row, with sets.
        TRUNK + "chosen = {3, 4, 8}\n"
        "held_out = [i for i in range(len(messy)) if template[i].item() in chosen]\n"
        "taken = {frozenset(messy.names[i]) for i in held_out}\n"
        "split_rows = ([i for i in range(len(messy)) if template[i].item() not in chosen\n"
        "               and frozenset(messy.names[i]) not in taken], held_out)",
    ],
    "06.4": [
        TOKENS + 'after_s1 = texts(messy.tokens[rows, messy.positions["S1"] + 1][baba])',
        TOKENS + 'after_s1 = messy.tokens[rows, messy.positions["S1+1"]][baba]',
        "after_s1 = [' and']",
        TOKENS + 'after_s1 = messy.tokens[rows, messy.positions["S1+1"]][baba].double()',
    ],
    "06.5": [
        GUESS + "guessed = score_of(guess(many, order, templates))",
        "facts = pd.DataFrame({'o': many.orders, 't': many.template_ids.tolist(),\n"
        "                      'p': many.positions['IO'].tolist()})\n"
        "counts = facts.groupby(['o', 't', 'p']).size()\n"
        "guessed = counts.groupby(level=[0, 1]).max().sum() / len(facts)",
        # Templates as a probe at S2 reads them.
        GUESS + "as_read = probing.groups(many, 'S2')['template'].tolist()\n"
        "guessed = score_of(guess(many, order, as_read))",
    ],
    "06.6": [
        BIT + "part = (values @ unit)[:, None] * unit\n"
        "mean_part = ((at_s2[point][train] @ unit)[:, None] * unit).mean(dim=0)\n"
        "erased = values - part + mean_part",
        BIT + "centre = at_s2[point][train].mean(dim=0)\n"
        "projector = torch.eye(len(unit)) - torch.outer(unit, unit).cpu()\n"
        "erased = centre.cpu() + (values - centre).cpu() @ projector",
        BIT + "erased = []\n"
        "mean = (at_s2[point][train].mean(dim=0) @ unit).item()\n"
        "for value in values:\n"
        "    erased.append((value + (mean - value @ unit) * unit).tolist())",
        BIT + "mean = (at_s2[point][train] @ unit).mean()\n"
        "erased = (values + (mean - values @ unit)[:, None] * unit).half()",
    ],
    "06.7": [
        SWAPPED + "divergence = torch.nn.functional.kl_div(\n"
        "    q, p, log_target=True, reduction='batchmean')",
        "new = runs.activations_at(model, sample.swap_order(), 'S2', point)\n"
        "from ioi_helpers.edits import next_token_kl\n"
        "everywhere = next_token_kl(model, sample, [residual_edit(sample, 'S2', point, new)])\n"
        "divergence = everywhere[torch.arange(len(sample)), sample.positions['S2']].mean()",
        SWAPPED + "divergence = sum(\n"
        "    float((a.exp() * (a - b)).sum()) for a, b in zip(p, q)) / len(sample)",
    ],
}

WRONG = {
    "06.1": {
        CLOUD + "correlation = with_order(U[:, 0]).abs() ** 2": r"squared",
        CLOUD + "correlation = -with_order(U[:, 0]).abs()": r"absolute value",
        CLOUD + "_, _, V = torch.linalg.svd(x, full_matrices=False)\n"
        "correlation = with_order(x @ V[0]).abs()": r"not centred",
        CLOUD + "means = x[y == 1].mean(dim=0) - x[y == 0].mean(dim=0)\n"
        "correlation = with_order(x @ means).abs()": r"uses the labels",
        CLOUD + "correlation = with_order(U[:, 1]).abs()": r"second component",
        CLOUD + "correlation = with_order((x - x.mean(0)) @ Vh[:, 0]).abs()": r"first column",
        CLOUD + "correlation = U[:, 0]": r"single number",
        "correlation = 'high'": r"single number",
        "x = runs.activations_at(model, messy, 'END', point).cpu().double()\n"
        "y = torch.tensor([o == 'ABBA' for o in order]).double()\n"
        "c = probing.svd_projection(x, 1).coordinates[:, 0]\n"
        "correlation = torch.corrcoef(torch.stack([c, y]))[0, 1].abs()": r"at END",
    },
    "06.2": {
        HITS + "standard_error = right.std() / len(right) ** 0.5": r"independent",
        HITS + "standard_error = metrics.mean_and_stderr(right).stderr": r"independent",
        HITS
        + "standard_error = metrics.mean_and_stderr(right, messy.pair_ids).stderr": r"pairs of prompts",
        HITS + "means = torch.stack([right[templates == t].mean() for t in "
        "templates.unique()])\n"
        "standard_error = means.std(correction=0) / len(means) ** 0.5": r"one less is due",
        "standard_error = 1.96 * score.accuracy.stderr": r"95 %",
        HITS + "standard_error = right.std()": r"standard deviation",
        HITS + "standard_error = right.mean()": r"mean itself",
        SUMS + "standard_error = sums.square().sum().sqrt() / len(right)": r"k / \(k - 1\)",
        SUMS + "standard_error = sums.square().sum() * k / (k - 1) / len(right) ** 2": r"root",
        SUMS + "standard_error = (sums.square().sum() * k / (k - 1)).sqrt() / k": r"of prompts",
        HITS + "means = torch.stack([right[templates == t].mean() for t in "
        "templates.unique()])\nstandard_error = means.std()": r"root of their number",
    },
    "06.3": {
        # Shuffled rows.
        "mixed = torch.randperm(300, generator=torch.Generator().manual_seed(0))\n"
        "split_rows = mixed[:200], mixed[200:]": r"leaks by names",
        # Pairs kept together, templates not.
        TRUNK + "inside = torch.isin(pairs, torch.arange(40))\n"
        "split_rows = rows[~inside], rows[inside]": r"leaks by template",
        # Templates held out, names not.
        TRUNK
        + "inside = template < 5\nsplit_rows = rows[~inside], rows[inside]": r"leaks by names",
        # The numbers of the templates as they are written to the end.
        TRUNK + "inside = messy.template_ids == 7\n"
        "inside |= torch.isin(messy.template_ids, torch.tensor([0, 1]))\n"
        "inside &= True\n"
        "outside = ~inside & ~torch.isin(pairs, pairs[inside])\n"
        "split_rows = rows[outside], rows[inside]": r"leaks by template",
        TRUNK + "split_rows = rows, rows[:50]": r"in both",
        TRUNK + "split_rows = rows[:5], rows[100:200]": r"at least 90",
        TRUNK + "split_rows = rows[:200], rows[280:]": r"at least 40",
        TRUNK + "inside = template < 3\n"
        "outside = ~inside & ~torch.isin(pairs, pairs[inside])\n"
        "split_rows = outside.long(), inside.long()": r"boolean",
        "split_rows = list(range(200))": r"two lists",
        "split_rows = messy[:200].prompts, messy[200:].prompts": r"tensor|[Rr]ow numbers",
        TRUNK + "split_rows = rows[:200], rows[200:] + 1": r"from 0 to 299",
    },
    "06.4": {
        TOKENS
        + 'after_s1 = texts(messy.tokens[rows, messy.positions["S1+1"]][~baba])': r"ABBA prompts",
        TOKENS + 'after_s1 = texts(messy.tokens[rows, messy.positions["S1+1"]])': r"both orders",
        TOKENS + 'after_s1 = texts(messy.tokens[rows, messy.positions["S1"]][baba])': r"at S1",
        TOKENS
        + 'after_s1 = texts(messy.tokens[rows, messy.positions["IO"] + 1][baba])': r"IO in BABA",
        TOKENS
        + 'after_s1 = texts(messy.tokens[rows, messy.positions["S2"] + 1][baba])': r"follows S2",
        "after_s1 = {'and'}": r"leading space",
        "after_s1 = {n.S1.strip() for n, o in zip(messy.names, order) if o == 'BABA'}": r"at S1",
        "after_s1 = {' to'}": r"do not stand there",
        "after_s1 = {340.5}": r"is no token",
        "after_s1 = 0.5": r"set of tokens",
    },
    "06.5": {
        GUESS + "guessed = score_of(guess(many))": r"neither order nor template",
        GUESS.replace('"IO"', '"S1"')
        + "guessed = score_of(guess(many, order, templates))": r"position of S1",
        GUESS + "guessed = score_of(guess(many, order))": r"order only",
        GUESS + "guessed = score_of(guess(many, templates))": r"template only",
        # Fitted to and scored on ten prompts of a kind.
        GUESS
        + "guessed = score_of(guess(messy, messy.orders, messy.template_ids.tolist()))": r"too high. Take `many`",
        GUESS
        + "guessed = score_of(guess(base, base.orders, base.template_ids.tolist()))": r"know everything",
        "guessed = 1 / len(many.positions['IO'].unique())": r"commoner",
        GUESS + "guessed = score_of(guess(many, order, templates)) * 6000": r"number of prompts",
    },
    "06.6": {
        "erased = at_s2[point][test]": r"as they were",
        BIT + "erased = values - (values @ unit)[:, None] * unit": r"0 and not",
        BIT + "mean = (at_s2[point][train] @ direction).mean()\n"
        "erased = values + (mean - values @ direction)[:, None] * direction": r"length 1",
        BIT
        + "erased = at_s2[point][train].mean(dim=0).expand_as(values)": r"Only the one direction",
        BIT + "erased = (values @ unit)[:, None] * unit": r"other way round",
        BIT + "erased = values + to_other.to(values) * direction": r"other order",
        BIT + "erased = values + direction": r"same vector",
        BIT + "mean = at_s2[point][train].mean(dim=0)\n"
        "erased = values - (values @ unit)[:, None] * unit + mean": r"whole mean activation",
        BIT + "mean = (at_s2[point][train] @ unit).mean()\n"
        "erased = values - (values @ unit)[:, None] * unit + mean": r"every dimension",
        BIT + "mean = (at_s2[point][train] @ unit).mean()\n"
        "erased = values - (mean - values @ unit)[:, None] * unit": r"sign",
        BIT + "erased = values + to_other.to(values) * direction / 2": r"half the difference",
        BIT + "erased = values @ unit": r"\[prompt d_model\]",
        BIT + "mean = (values @ unit).mean()\n"
        "erased = values + (mean - values @ unit)[:, None] * unit": r"training rows",
        BIT + "mean = (at_s2[point] @ unit).mean()\n"
        "erased = values + (mean - values @ unit)[:, None] * unit": r"mean coordinate is over all rows",
        BIT + "abba = torch.tensor([o == 'ABBA' for o in order])\n"
        "leaky = at_s2[point][~abba].mean(dim=0) - at_s2[point][abba].mean(dim=0)\n"
        "leaky = leaky / leaky.norm()\n"
        "mean = (at_s2[point] @ leaky).mean()\n"
        "erased = values + (mean - values @ leaky)[:, None] * leaky": r"Direction and mean are over all rows",
        # The mean coordinate of one order.
        BIT + "mean = (at_s2[point][abba_rows] @ unit).mean()\n"
        "erased = values + (mean - values @ unit)[:, None] * unit": r"Only the coordinate changed, as it should",
    },
    "06.7": {
        SWAPPED + "divergence = mean_kl(q, p)": r"exchanged",
        SWAPPED + "divergence = mean_kl(p, q) * len(sample)": r"sum over",
        SWAPPED + "divergence = mean_kl(p, q) / np.log(2)": r"bits",
        SWAPPED + "divergence = mean_kl(predict('END'), predict('END', e))": r"at END",
        SWAPPED + "own = runs.logits_at(model, sample.swap_order(), 'S2').log_softmax(-1)\n"
        "divergence = mean_kl(p, own)": r"own run",
        SWAPPED + "divergence = (p.exp() * (p - q)).sum(-1)": r"single number",
        SWAPPED + "divergence = -mean_kl(p, q)": r"sign",
        SWAPPED + "divergence = (p.exp() * (p - q)).mean()": r"batchmean",
        "new = runs.activations_at(model, sample.swap_subject(), 'S2', point)\n"
        "p, q = (\n"
        "    runs.logits_at(model, sample, 'S2', edits).log_softmax(-1)\n"
        "    for edits in ([], [residual_edit(sample, 'S2', point, new)])\n"
        ")\n"
        "divergence = mean_kl(p, q)": r"another subject",
        SWAPPED + "own = runs.activations_at(model, sample, 'S2', point)\n"
        "divergence = mean_kl(p, predict('S2', [residual_edit(sample, 'S2', point, own)]))": r"hanging nothing at S2",
        # Put in at END: S2 comes before it.
        "new = runs.activations_at(model, sample.swap_order(), 'END', point)\n"
        "e = [residual_edit(sample, 'END', point, new)]\n"
        "p, q = (\n"
        "    runs.logits_at(model, sample, 'S2', edits).log_softmax(-1) for edits in ([], e)\n"
        ")\n"
        "divergence = mean_kl(p, q)": r"[Cc]hanging nothing at S2",
        "new = runs.activations_at(model, messy.swap_order(), 'S2', point)\n"
        "e = [residual_edit(messy, 'S2', point, new)]\n"
        "p, q = (\n"
        "    runs.logits_at(model, messy, 'S2', edits).log_softmax(-1) for edits in ([], e)\n"
        ")\n"
        "divergence = mean_kl(p, q)": r"on all of `messy`",
        "new = runs.activations_at(model, sample.swap_order(), 'S2', point)\n"
        "from ioi_helpers.edits import next_token_kl\n"
        "all_positions = next_token_kl(model, sample, "
        "[residual_edit(sample, 'S2', point, new)])\n"
        "divergence = all_positions.nanmean()": r"all positions",
    },
}
