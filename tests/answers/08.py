"""Answers to the exercises of notebook 08, right and wrong; notebooks/tools/exercise_runs.py says how."""

PRICE = """
normal = probe.weights[1] - probe.weights[0]
sigma_normal = covariance.matrix @ normal
inverse_normal = torch.linalg.solve(covariance.matrix, normal)
"""
TIMID = """
timid = probing.fit_probe(x, train.orders, C=0.1)
"""
HALF = """
moves = ((natural - x0) @ v)[:, None] * v
along = (moves @ u)[:, None] * u
def after(new):
    return runs.logit_diffs(model, test, [residual_edit(test, "S2", place, new)]).mean()
"""
TEN = """
def placebo(seed, ruler=None):
    new = lrqp.RandomDirection(main, seed, ruler)(x0, true=test.orders, target=opposite)
    return runs.logit_diffs(model, test, [residual_edit(test, "S2", place, new)]).double()
each = torch.stack([placebo(seed) for seed in range(10)])
"""

RIGHT = {
    "08.1": [
        "D = within.length(apart).item()\ndistance = D / (1 + D * D / 4) ** 0.5",
        "D = within.length(apart)\ndistance = 2 * D / (4 + D.square()).sqrt()",
        # The same from the inverse of the matrix.
        "d = apart[0]\nD2 = d @ torch.linalg.solve(within.matrix, d)\n"
        "distance = (D2 / (1 + D2 / 4)) ** 0.5",
    ],
    "08.2": [
        PRICE + "ratio = ((normal @ inverse_normal) * (normal @ sigma_normal)).sqrt() "
        "/ (normal @ normal)",
        "one = lrqp.intervene(x0, probe, opposite, covariance, log_alpha=30.0)\n"
        "flat = torch.eye(x0.shape[1], dtype=torch.float64)\n"
        "two = lrqp.intervene(x0, probe, opposite, flat, log_alpha=30.0)\n"
        "ratio = covariance.length(two.move).mean() / one.length.mean()",
        PRICE + "straight = normal / (normal @ normal)\n"
        "cheap = sigma_normal / (normal @ sigma_normal)\n"
        "white = covariance.whitener\n"
        "ratio = ((white @ straight).norm() / (white @ cheap).norm()).item()",
    ],
    "08.3": [
        TIMID + "logits = timid.logits(x0)\n"
        "truth = timid.codes(test.orders, len(test)).to(logits.device)[:, None]\n"
        "odds = logits.gather(1, truth) - logits.gather(1, 1 - truth)\n"
        "share = (odds < 10).double().mean()",
        TIMID + "found = lrqp.intervene(x0, timid, test.orders, covariance, true=test.orders)\n"
        "share = int((found.move.norm(dim=1) > 0).sum()) / len(test)",
        TIMID + "found = lrqp.intervene(x0, timid, test.orders, covariance, true=test.orders)\n"
        "share = found.active.any(dim=1).double().mean().item()",
        # scikit-learn itself, whose optimum is less exact: a prompt may fall on the other side.
        "from sklearn.linear_model import LogisticRegression\n"
        "loose = LogisticRegression(C=0.1, max_iter=5000).fit(x.cpu().numpy(), train.orders)\n"
        "found = lrqp.intervene(x0, loose, test.orders, covariance, true=test.orders)\n"
        "share = found.moved.double().mean()",
    ],
    "08.4": [
        TEN + "placebo_error = each.mean(dim=1).std() / 10**0.5",
        "placebo_error = random['ruler']['logit_diff'].sem()",
        TEN + "from scipy.stats import sem\nplacebo_error = sem(each.mean(dim=1).numpy())",
        TEN + "placebo_error = metrics.mean_and_stderr(each.mean(dim=1)).stderr",
        TEN + "placebo_error = metrics.mean_and_stderr(each.mean(dim=1))",
    ],
    "08.5": [
        HALF + "of_the_rest = after(x0 + moves - along)",
        HALF
        + "all_of_it = das(x0, true=test.orders, target=opposite, counterfactual=natural) - x0\n"
        "flat_u = torch.eye(len(u)).to(u) - u.outer(u)\n"
        "of_the_rest = after(x0 + all_of_it.double() @ flat_u).item()",
        HALF + "basis = torch.linalg.qr(torch.stack([u, v], dim=1)).Q[:, 1]\n"
        "of_the_rest = after(x0 + (moves @ basis).outer(basis))",
    ],
}

WRONG = {
    "08.1": {
        "distance = within.length(apart)": r"D itself",
        "distance = 2": r"the limit",
        "D = within.length(apart)\ndistance = D / (1 + D**2 / 4)": r"root",
        "D = within.length(apart)\ndistance = D / (1 + D**2) ** 0.5": r"without the 4",
        "distance = covariance.length(apart)": r"covariance of all activations",
        "distance = apart.norm()": r"with a ruler",
        "distance = apart": r"single number",
    },
    "08.2": {
        PRICE + "ratio = (normal @ normal) / "
        "((normal @ inverse_normal) * (normal @ sigma_normal)).sqrt()": r"other way round",
        PRICE + "ratio = (normal @ inverse_normal) * (normal @ sigma_normal) "
        "/ (normal @ normal) ** 2": r"take the root",
        PRICE
        + "ratio = (normal @ sigma_normal) / (sigma_normal.norm() * normal.norm())": r"Euclidean",
        PRICE + "lengths = covariance.length(torch.stack([normal, sigma_normal]))\n"
        "ratio = lengths[0] / lengths[1]": r"Scale both",
        "ratio = a_real": r"single number",
    },
    "08.3": {
        TIMID + "found = lrqp.intervene(x0, timid, test.orders, covariance, "
        "true=test.orders)\n"
        "share = 1 - found.moved.double().mean()": r"left where they are",
        TIMID + "found = lrqp.intervene(x0, timid, test.orders, covariance, "
        "true=test.orders)\n"
        "share = found.moved.sum()": r"between 0 and 1",
        TIMID
        + "share = lrqp.intervene(x0, timid, test.orders, covariance).moved": r"single number",
        "share = lrqp.intervene(x0, probe, test.orders, covariance, "
        "true=test.orders).moved.double().mean()": r"C = 1",
        TIMID + "share = lrqp.intervene(x0, timid, opposite, covariance, "
        "true=test.orders).moved.double().mean()": r"counterfactual",
    },
    "08.4": {
        TEN + "placebo_error = each.mean(dim=1).std()": r"standard deviation of the draws",
        TEN + "placebo_error = each.mean()": r"mean itself",
        TEN + "placebo_error = 1.96 * each.mean(dim=1).std() / 10**0.5": r"1\.96 errors",
        TEN + "placebo_error = each.std() / each.numel() ** 0.5": r"as independent",
        TEN + "placebo_error = each[0].std() / len(test) ** 0.5": r"one draw",
        TEN + "placebo_error = each.mean(dim=0).std() / len(test) ** 0.5": r"mean over draws",
        TEN + "placebo_error = each.mean(dim=1).std(correction=0) / 10**0.5": r"n - 1",
        TEN + "placebo_error = (each < 0).double().mean(dim=1).std() / 10**0.5": r"shares",
        TEN + "cloud = torch.stack([placebo(seed, covariance) for seed in range(10)])\n"
        "placebo_error = cloud.mean(dim=1).std() / 10**0.5": r"in the cloud",
        TEN + "placebo_error = each.mean(dim=1)": r"single number",
    },
    "08.5": {
        HALF + "of_the_rest = after(x0 + along)": r"other half",
        HALF + "of_the_rest = after(x0 + moves)": r"whole move",
        HALF + "w = v - (v @ u) * u\nw = w / w.norm()\n"
        "of_the_rest = after(x0 + ((natural - x0) @ w).outer(w))": r"rest of v",
        HALF + "of_the_rest = after(x0 - moves + along)": r"sign",
        "of_the_rest = clean.mean()": r"changing nothing|rest of v",
        HALF
        + "of_the_rest = after(x0 + moves - along) - clean.mean()": r"change from the clean run",
        HALF + "of_the_rest = after(x0 + moves - along) / clean.mean()": r"dividing by",
        HALF + "of_the_rest = -after(x0 + moves - along)": r"The sign is wrong",
        HALF + "of_the_rest = moves - along": r"single number",
    },
}
