"""Seeded choices: the same seed gives the same prompts, whatever the version of NumPy.

Everything random is derived from uniform doubles of PCG64, whose stream does not change between
NumPy versions (that of ``Generator.integers`` or ``permutation`` may).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Int


def in_fixed_order(options: Iterable[str]) -> list[str]:
    """The options in the order given; a set's, which differs from process to process, sorted."""
    return sorted(options) if isinstance(options, set | frozenset) else list(options)


def choose(rng: np.random.Generator, rows: int, options: int) -> Int[np.ndarray, " rows"]:
    """One of ``options`` for each row, independently."""
    return np.floor(rng.random(rows) * options).astype(np.int64)


def deal(rng: np.random.Generator, rows: int, options: int) -> Int[np.ndarray, " rows"]:
    """One of ``options`` for each row, shuffled, each equally often (or once more)."""
    return np.resize(_shuffled(rng, options), rows)[_shuffled(rng, rows)]


def _shuffled(rng: np.random.Generator, count: int) -> Int[np.ndarray, " count"]:
    return np.argsort(rng.random(count), kind="stable").astype(np.int64)


def draw_distinct(
    rng: np.random.Generator, count: int, options: int, taken: Int[np.ndarray, "rows k"]
) -> Int[np.ndarray, "rows count"]:
    """``count`` different options for each row, none of them among that row's ``taken``.

    The stream is used row by row, so the first rows of a long draw are the rows of a short one.

    Args:
        taken: Distinct in a row; -1 where there is nothing to avoid.
    """
    uniform = rng.random((len(taken), count))
    for column in range(count):
        free = options - (taken >= 0).sum(axis=1)
        pick = np.floor(uniform[:, column] * free).astype(np.int64)
        for avoid in np.sort(taken, axis=1).T:
            # Step over what is taken, in ascending order: `pick` counts the free ones only.
            pick += (avoid >= 0) & (pick >= avoid)
        taken = np.concatenate([taken, pick[:, None]], axis=1)
    return taken[:, -count:]
