"""Answers to the exercises of notebook 07, right and wrong; notebooks/tools/exercise_runs.py says how."""

NORMALS = """
codes = probe.codes(opposite, len(test)).to(probe.weights.device)
a_rows = probe.weights[codes] - probe.weights[1 - codes]
biases = probe.bias[codes] - probe.bias[1 - codes]
log_odds = (a_rows * x0).sum(-1) + biases
slope = a_rows @ covariance.matrix
"""
HOOK = """
rows = torch.arange(len(test))
def run(name, at, values):
    def replace(stream, hook):
        stream = stream.clone()
        stream[rows, at] = values
        return stream
    return model.run_with_hooks(test.tokens, fwd_hooks=[(name, replace)])
before = f"blocks.{block}.hook_resid_pre"
s2, end = test.positions["S2"], test.positions["END"]
"""
ALONE = """
def patterns(chosen, on):
    found = runs.attention_patterns(model, test, chosen, "END", on)
    return [attention_edit(test, "END", h, p) for h, p in found.items()]
injected = edits["counterfactual"]
"""
TRIO = """
sigma3 = trio_covariance.matrix
gram = normals @ sigma3 @ normals.T
r = trio_log_alpha - biases - trio_starts @ normals.T
"""

RIGHT = {
    "07.1": [
        "direction = sigma @ a\n"
        "move = direction * (toy_log_alpha - a @ toy_start - offset) / (a @ direction)\n"
        "length = (move @ torch.linalg.solve(sigma, move)).sqrt()",
        "length = toy_covariance.length((by_hand - toy_start)[None])[0].item()",
        # In whitened coordinates it is an ordinary distance to a line.
        "reader = toy_covariance.factor.T @ a\n"
        "length = (toy_log_alpha - a @ toy_start - offset) / reader.norm()",
    ],
    "07.2": [
        "moved = lrqp.intervene(x0, probe, opposite, covariance, log_alpha=10.0).x",
        NORMALS + "moved = []\n"
        "for i in range(len(test)):\n"
        "    a_i = a_rows[i]\n"
        "    lacks_i = max(0.0, 10 - log_odds[i].item())\n"
        "    s_i = covariance.matrix @ a_i\n"
        "    moved.append((x0[i] + s_i * lacks_i / (a_i @ s_i)).tolist())",
        # One direction and signed steps.
        NORMALS + "one = covariance.matrix @ (probe.weights[1] - probe.weights[0])\n"
        "sign = torch.where(codes == 1, 1.0, -1.0).double()\n"
        "step = sign * (10 - log_odds).clamp(min=0) / ((slope * a_rows).sum(-1))\n"
        "moved = (x0 + step[:, None] * one).cpu().numpy()",
    ],
    "07.3": [
        HOOK + "hooked = metrics.logit_diff(run(before, s2, new), test)",
        "edit = residual_edit(test, 'S2', f'L{block}.pre', new)\n"
        "hooked = runs.logit_diffs(model, test, [edit]).mean()",
        # Prompt by prompt, without padding.
        "values = []\n"
        "for i in range(len(test)):\n"
        "    def put(stream, hook):\n"
        "        stream = stream.clone()\n"
        "        stream[0, test.positions['S2'][i]] = new[i]\n"
        "        return stream\n"
        "    hooks = [(f'blocks.{block}.hook_resid_pre', put)]\n"
        "    row = test.tokens[i : i + 1, : test.lengths[i]]\n"
        "    last = model.run_with_hooks(row, fwd_hooks=hooks)[0, -1]\n"
        "    values.append((last[test.io_tokens[i]] - last[test.s_tokens[i]]).item())\n"
        "hooked = sum(values) / len(values)",
    ],
    "07.4": [
        ALONE
        + "share = flipped(clean, runs.logit_diffs(model, test, patterns(movers, [injected])))",
        "put_in = patterns_of(model, test, movers, [injected]).values()\n"
        "share = flipped(clean, runs.logit_diffs(model, test, list(put_in)))",
        ALONE + "run = runs.logit_diffs(model, test, patterns(movers, [injected]))\n"
        "both = zip(clean.tolist(), run.tolist())\n"
        "share = sum(before > 0 > after for before, after in both) / len(test)",
    ],
    "07.5": [
        "ends = lrqp.intervene(\n"
        "    trio_starts, trio_probe, 'C', trio_covariance, log_alpha=trio_log_alpha\n"
        ").x",
        "ends = trio.x.float()",
        # Coordinate ascent on the dual.
        TRIO + "mu = torch.zeros_like(r)\n"
        "for _ in range(2000):\n"
        "    for l in (0, 1):\n"
        "        rest = r[:, l] - mu[:, 1 - l] * gram[l, 1 - l]\n"
        "        mu[:, l] = (rest / gram[l, l]).clamp(min=0)\n"
        "ends = (trio_starts + mu @ normals @ sigma3).tolist()",
        # Non-negative least squares in the dual.
        TRIO + "from scipy.optimize import nnls\n"
        "root = torch.linalg.cholesky(gram)\n"
        "mu = torch.stack([torch.as_tensor(\n"
        "    nnls(root.T.numpy(), torch.linalg.solve(root, row).numpy())[0]) for row in r])\n"
        "ends = (trio_starts + mu @ normals @ sigma3).numpy()",
    ],
}

WRONG = {
    "07.1": {
        "length = cheapest.cost": r"square",
        "length = lacks / (a @ sigma @ a)": r"root",
        "length = (toy_log_alpha - a @ toy_start) / (a @ sigma @ a).sqrt()": r"biases",
        "length = (0 - offset - a @ toy_start) / (a @ sigma @ a).sqrt()": r"log alpha is missing",
        "length = straight.move.norm()": r"along a",
        "length = cheapest.move.norm()": r"Euclidean length of the move",
        "length = lacks": r"lack, in nats",
        "length = toy_covariance.length(straight.move)": r"straight move",
        "length = -lacks / (a @ sigma @ a).sqrt()": r"sign",
        "length = cheapest.x": r"single number",
        "length = lacks / (toy_points @ a).std()": r"shrunk a little",
        "length = lacks / (toy_points @ a).std(correction=0)": r"1/n.*shrunk a little",
    },
    "07.2": {
        NORMALS + "moved = x0 + a_rows * "
        "((10 - log_odds).clamp(min=0) / (a_rows * a_rows).sum(-1))[:, None]": r"moving along a",
        "moved = lrqp.intervene(x0, probe, test.orders, covariance, log_alpha=10.0).x": r"control",
        NORMALS + "moved = x0 - slope * "
        "((10 - log_odds).clamp(min=0) / (slope * a_rows).sum(-1))[:, None]": r"sign of the move",
        NORMALS + "moved = x0 + slope * "
        "((10 - log_odds).clamp(min=0) / (slope * a_rows).sum(-1).sqrt())[:, None]": r"not by its root",
        NORMALS + "moved = slope * "
        "((10 - log_odds).clamp(min=0) / (slope * a_rows).sum(-1))[:, None]": r"add the activations",
        "moved = x0": r"as they were",
        "moved = lrqp.intervene(x0, probe, opposite, covariance, alpha=10.0).x": r"alpha = 10\.",
        NORMALS + "inverse_a = torch.linalg.solve(covariance.matrix, a_rows.T).T\n"
        "size = (inverse_a * a_rows).sum(-1)\n"
        "moved = x0 + inverse_a * ((10 - log_odds).clamp(min=0) / size)[:, None]": r"inverse of Sigma",
        "one = probe.weights[1] - probe.weights[0]\n"
        "gap = 10 - (x0 @ one + probe.bias[1] - probe.bias[0])\n"
        "one_slope = covariance.matrix @ one\n"
        "moved = x0 + gap.clamp(min=0)[:, None] * one_slope / (one @ one_slope)": r"same class",
        "moved = [[1.0, 2.0]]": r"prompt d_model",
        "inner = probing.fit_covariance(x, train.orders)\n"
        "moved = lrqp.intervene(x0, probe, opposite, inner, log_alpha=10.0).x": r"not the one within classes",
        "other = probing.fit_covariance(x0)\n"
        "moved = lrqp.intervene(x0, probe, opposite, other, log_alpha=10.0).x": r"not of those of `test`",
        "moved = lrqp.intervene(x0, probe, opposite, covariance, true=test.orders).x": r"default alpha",
    },
    "07.3": {
        HOOK + "hooked = metrics.logit_diff(run(before, end, new), test)": r"at END",
        HOOK
        + "hooked = metrics.logit_diff(run(before, test.positions['S1'], new), test)": r"at S1",
        HOOK + "hooked = -metrics.logit_diff(run(before, s2, new), test)": r"sign",
        "def fill(stream, hook):\n"
        "    return new[:, None].expand_as(stream)\n"
        "hooks = [(f'blocks.{block}.hook_resid_pre', fill)]\n"
        "logits = model.run_with_hooks(test.tokens, fwd_hooks=hooks)\n"
        "hooked = metrics.logit_diff(logits, test)": r"every position",
        HOOK + "after = f'blocks.{block}.hook_resid_post'\n"
        "hooked = metrics.logit_diff(run(after, s2, new), test)": r"after\* the block|changed nothing",
        "hooked = metrics.logit_diff(model(test.tokens), test)": r"changed nothing",
        HOOK
        + "hooked = metrics.logit_diff(run(before, s2, new), test, per_prompt=True)": r"single number",
        HOOK + "hooked = metrics.logit_diff(run(before, s2[0], new), test)": r"first prompt's S2",
        HOOK
        + "hooked = metrics.logit_diff(run(before, s2, new), test) - clean.mean()": r"change from the clean run",
        HOOK + "def replace(stream, hook):\n"
        "    stream = stream.clone()\n"
        "    stream[:, s2] = new\n"
        "    return stream\n"
        "logits = model.run_with_hooks(test.tokens, fwd_hooks=[(before, replace)])\n"
        "hooked = metrics.logit_diff(logits, test)": r"S2 in each row",
        HOOK + "each = metrics.logit_diff(run(before, s2, new), test, per_prompt=True)\n"
        "hooked = each.median()": r"median",
        HOOK
        + "hooked = metrics.logit_diff(run(before, s2, new), test, per_prompt=True).sum()": r"the sum",
    },
    "07.4": {
        ALONE + "share = 1 - flipped(clean, runs.logit_diffs(model, test, patterns(movers, "
        "[injected])))": r"do not flip|put in",
        ALONE + "run = runs.logit_diffs(model, test, patterns(movers, [injected]))\n"
        "share = 100 * (run < 0).double().mean() + 2": r"between 0 and 1",
        ALONE
        + "share = runs.logit_diffs(model, test, patterns(movers, [injected]))": r"single number",
        'share = "most of them"': r"single number",
        ALONE + "run = runs.logit_diffs(model, test, patterns(movers, [injected]))\n"
        "share = (run < 0).double().mean()": r"all prompts on which S is preferred",
        ALONE + "share = flipped(clean, runs.logit_diffs(model, test, [injected, "
        "*patterns(movers, [])]))": r"other way round",
        "share = flipped(clean, diffs['counterfactual'])": r"belief injected",
        ALONE
        + "share = flipped(clean, runs.logit_diffs(model, test, patterns(movers, [])))": r"change nothing",
        ALONE + "found = runs.attention_patterns(model, test, movers, 'END', [injected])\n"
        "at = test.positions['S2']\n"
        "put_in = [attention_edit(test, at, h, p) for h, p in found.items()]\n"
        "share = flipped(clean, runs.logit_diffs(model, test, put_in))": r"put in at END",
        ALONE + "share = flipped(clean, runs.logit_diffs(model, test, "
        "patterns(movers[:1], [injected])))": r"all of `movers`",
    },
    "07.5": {
        TRIO + "mu = r.clamp(min=0) / gram.diagonal()\n"
        "ends = trio_starts + mu @ normals @ sigma3": r"one by one",
        TRIO + "alone = r.clamp(min=0) / gram.diagonal()\n"
        "worst = (r / gram.diagonal().sqrt()).argmax(dim=1)\n"
        "mu = torch.zeros_like(r)\n"
        "pick = torch.arange(len(r))\n"
        "mu[pick, worst] = alone[pick, worst]\n"
        "ends = trio_starts + mu @ normals @ sigma3": r"worst constraint",
        TRIO + "mu = torch.linalg.solve(gram, r.T).T\n"
        "ends = trio_starts + mu @ normals @ sigma3": r"equalities everywhere",
        TRIO + "mu = torch.linalg.solve(gram, r.T).T.clamp(min=0)\n"
        "ends = trio_starts + mu @ normals @ sigma3": r"set to zero",
        "flat = torch.eye(2, dtype=torch.float64)\n"
        "ends = lrqp.intervene(\n"
        "    trio_starts, trio_probe, 'C', flat, log_alpha=trio_log_alpha\n"
        ").x": r"Euclidean",
        "ends = lrqp.intervene(\n"
        "    trio_starts, trio_probe, 'C', trio_covariance, log_alpha=0.0\n"
        ").x": r"boundary of C",
        "import math\n"
        "ends = lrqp.intervene(trio_starts, trio_probe, 'C', trio_covariance,\n"
        "    log_alpha=math.log(trio_log_alpha)).x": r"logarithm",
        "ends = lrqp.intervene(trio_starts, trio_probe, 'C', trio_covariance).x": r"the default",
        "from dataclasses import replace\n"
        "turned = replace(trio_probe, bias=-trio_probe.bias)\n"
        "ends = lrqp.intervene(\n"
        "    trio_starts, turned, 'C', trio_covariance, log_alpha=trio_log_alpha\n"
        ").x": r"sign of the biases",
        "ends = trio_starts": r"starts",
        "try:\n"
        "    found = lrqp.intervene(trio_starts, trio_probe, 'C', trio_covariance,\n"
        "        solver='osqp', whiten=False, log_alpha=trio_log_alpha)\n"
        "except lrqp.NotOptimal as refusal:\n"
        "    found = refusal.solution\n"
        "ends = found.x": r"entries are wrong",
        "ends = trio.x.T": r"axes are swapped",
    },
}
