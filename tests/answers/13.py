"""Answers to the exercises of notebook 13: what readers write that is right, and what is not.

Each is source for the stub's cell, run where the stub stands (see `notebooks/tools/exercise_runs.py`). A
wrong answer comes with a pattern that the refusal must match.
"""

from __future__ import annotations

NAMES = """\
both = mine.index.intersection(other.index)
a, b = mine.loc[both].to_numpy(), other.loc[both].to_numpy()
common = lambda a, b: sum(np.minimum(np.clip(s * a, 0, None), np.clip(s * b, 0, None)).sum() for s in (1, -1))
"""

DRAWN = """\
o = universality.match(blank_one, blank_other).overlap
n = universality.null_overlaps(blank_one, blank_other, by="heads", draws=200, seed=0)
"""

ENDS = """\
one, two = (universality.profile(t, universality.AT_END) for t in (table, other_table))
"""

RIGHT = {
    "13.1": [
        NAMES + "by_name = common(a, b)",
        NAMES + "by_name = round(np.where(a * b > 0, np.minimum(abs(a), abs(b)), 0).sum(), 3)",
        "x, y = mine.align(other, join='inner')\n"
        "by_name = float((np.minimum(x.abs(), y.abs()) * (np.sign(x) == np.sign(y))).to_numpy().sum())",
    ],
    "13.2": [
        "p = universality.p_value(stranger_overlap, null)",
        "p = (sum(x >= stranger_overlap for x in null) + 1) / 201",
        "p = np.mean(np.append(null, stranger_overlap) >= stranger_overlap)",
    ],
    "13.3": [
        DRAWN + "beyond = universality.beyond_chance(o, n)",
        DRAWN + "beyond = 1 - (1 - o) / (1 - n.mean())",
        DRAWN + "beyond = round((o - n.mean()) / (1 - n.mean()), 3)",
    ],
    "13.4": [
        ENDS + "at_end = universality.match(one, two).overlap",
        # By hand: drop the columns, then divide anew.
        "cut = [universality.profile(t) for t in (table, other_table)]\n"
        "keep = [c for c in cut[0] if c.startswith(('writes', 'END', 'steps'))]\n"
        "cut = [c[keep] / c[keep].abs().to_numpy().sum() for c in cut]\n"
        "at_end = universality.match(*cut).pairs['shared'].sum()",
        ENDS + "at_end = round(universality.match(two, one).overlap, 3)",
    ],
    "13.5": [
        "half_width = stats.t.ppf(0.975, 8) * stats.sem(nine)",
        "low, high = stats.t.interval(0.95, len(nine) - 1, nine.mean(), stats.sem(nine))\n"
        "half_width = (high - low) / 2",
        "m = universality.mean_over_seeds(nine)\nhalf_width = m.high - m.mean",
    ],
    "13.6": [
        "smallest_share = 0.05 ** 0.2",
        "smallest_share = np.exp(np.log(0.05) / 5)",
        "smallest_share = stats.binomtest(5, 5).proportion_ci(0.9, method='exact').low",
        "smallest_share = universality.share_interval(5, 5)[0]",
    ],
}

WRONG = {
    "13.1": {
        "by_name = universality.match(mine, other).overlap": r"best assignment",
        NAMES + "by_name = np.minimum(abs(a), abs(b)).sum()": r"signs out",
        NAMES + "by_name = np.minimum(a, b).sum()": r"negative ones win",
        NAMES
        + "by_name = common(np.clip(a, 0, None), np.clip(b, 0, None))": r"positive parts alone",
        NAMES + "by_name = (a * b).sum()": r"multiplying",
        NAMES + "by_name = np.corrcoef(a.ravel(), b.ravel())[0, 1]": r"correlating",
        NAMES + "by_name = common(a, b) / len(both)": r"averaging",
        "by_name = 'all'": r"single number",
    },
    "13.2": {
        "p = (null < stranger_overlap).mean()": r"less far",
        "p = universality.p_value(stranger_overlap, nulls[short(stranger), 'heads'])": r"dealt anew",
        "p = 2 * universality.p_value(stranger_overlap, null)": r"doubling|between 0 and 1",
        "p = (null >= stranger_overlap).sum() + 1": r"counting",
        "p = stats.norm.sf((stranger_overlap - null.mean()) / null.std())": r"normal",
        "p = (null >= stranger_overlap).mean()": r"one of the draws",
    },
    "13.3": {
        DRAWN + "beyond = o - n.mean()": r"subtracting only",
        DRAWN + "beyond = o / n.mean()": r"null's mean",
        DRAWN + "beyond = (o - n.mean()) / n.std()": r"a z",
        DRAWN + "beyond = o": r"as it is",
        DRAWN
        + "n = universality.null_overlaps(blank_one, blank_other, by='kinds', draws=200, seed=0)\n"
        "beyond = universality.beyond_chance(o, n)": r"permuted",
    },
    "13.4": {
        ENDS
        + "at_end = universality.match(mine[one.columns], other[two.columns]).overlap": r"dropping columns",
        "at_end = universality.match(mine, other).overlap": r"all effects",
        ENDS + "at_end = 1 - universality.match(one, two).overlap": r"from 1",
        "rest = [e for e in universality.EFFECTS if e not in universality.AT_END]\n"
        "at_end = universality.match(*(universality.profile(t, rest) for t in (table, other_table))).overlap": r"elsewhere",
    },
    "13.5": {
        "half_width = 1.96 * stats.sem(nine)": r"1\.96|2 errors",
        "half_width = stats.sem(nine)": r"standard error",
        "half_width = nine.std(ddof=1)": r"standard deviation",
        "half_width = stats.t.ppf(0.975, 9) * stats.sem(nine)": r"degrees of freedom",
        "half_width = stats.t.ppf(0.975, 8) * nine.std() / 3": r"n - 1",
        "half_width = stats.t.ppf(0.95, 8) * stats.sem(nine)": r"5 % above",
        "half_width = 2 * stats.t.ppf(0.975, 8) * stats.sem(nine)": r"whole width",
        "half_width = nine.mean()": r"the mean",
    },
    "13.6": {
        "smallest_share = 0.95 ** 5": r"power of 0\.95",
        "smallest_share = 0.95 ** (1 / 5)": r"root of 0\.95",
        "smallest_share = 1": r"estimates",
        "smallest_share = 0.5 ** 5": r"sign test",
        "smallest_share = 1 - 0.05 / 5": r"dividing",
        "smallest_share = 55": r"between 0 and 1",
    },
}
