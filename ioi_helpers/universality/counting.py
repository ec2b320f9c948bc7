"""What n seeds can show: shares and means of few, with the intervals that few deserve."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy import stats


class SeedMean(NamedTuple):
    """A mean over seeds, each of which is one observation, with its interval."""

    mean: float
    low: float
    high: float
    n: int

    def __format__(self, spec: str) -> str:
        spec = spec or ".2f"
        if self.n < 2:
            return f"{self.mean:{spec}} (n = {self.n})"
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}] (n = {self.n})"

    def __str__(self) -> str:
        return format(self, ".2f")


def mean_over_seeds(values: Iterable[float], level: float = 0.95) -> SeedMean:
    """The mean over seeds, with a t interval of n - 1 degrees of freedom.

    Errors over prompts have no place in it: more prompts make a seed's own number surer, and say
    nothing of the next seed.

    Args:
        values: One number a seed. NaN is left out.
        level: Of the interval.

    Returns:
        Mean, low, high and n. With fewer than two seeds there is no interval (NaN).
    """
    there = np.asarray(list(values), dtype=float)
    there = there[~np.isnan(there)]
    n = len(there)
    if n < 2:
        return SeedMean(float(there.mean()) if n else float("nan"), float("nan"), float("nan"), n)
    mean, error = there.mean(), there.std(ddof=1) / np.sqrt(n)
    reach = stats.t.ppf((1 + level) / 2, n - 1) * error
    return SeedMean(float(mean), float(mean - reach), float(mean + reach), n)


def share_interval(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval (Clopper and Pearson) of the share of *all* seeds, when k of n have it.

    Raises:
        ValueError: Not 0 <= k <= n, or no seed at all.
    """
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"k of n seeds: 0 <= k <= n and at least one, unlike {k} of {n}.")
    found = stats.binomtest(k, n).proportion_ci(level, method="exact")
    return float(found.low), float(found.high)


def least_p_by_sign(n: int, alternative: str = "greater") -> float:
    """The smallest p that a sign test of n seeds can give: all on one side.

    Args:
        n: How many seeds.
        alternative: ``"greater"`` (which side was said before) or ``"two-sided"``.
    """
    return float(stats.binomtest(n, n, alternative=alternative).pvalue)
