"""LRQP's exact solver against OSQP, in one process and taking turns: speed, and who is right.

    python benchmarks/lrqp_speed.py

Activations are synthetic, with a residual stream's marks: as wide as GPT-2 small's, centred (so
that the sample covariance is singular), with variances that fall off as a power of their rank, and
classes a few standard deviations apart. The probe is fitted by logistic regression and the
covariance by Ledoit-Wolf, both on other rows. Every row is moved to another class. The contestants,
the first four through `lrqp.intervene`, its check of the optimality conditions included:

- exact: all rows at once;
- OSQP whitened: row by row, in coordinates and at tolerances at which it is right, with all that
  the rows share (the cost matrix in OSQP's own format, above all) made once for all of them;
- OSQP as the post: the problem as it stands, at OSQP's default tolerances;
- OSQP direct, tight: the same with eps 1e-9 and polishing;
- OSQP whitened, plain call: what one would write without this package, a call of
  `qpsolvers.solve_qp` a row on the whitened problem, with the same tolerances;
- exact, unchecked, and OSQP whitened, unchecked: the two solvers themselves, like for like,
  without the check of the optimality conditions.

What depends on the covariance alone (its eigendecomposition) is timed apart and given to all of
them; the exact solver does not use it. An answer's error is its distance from the exact one, by the
length of the move. It is refused where a residual of the optimality conditions is above 1e-6, which
`intervene` does by default and is kept from doing here.

The results go to lrqp_speed.json and lrqp_speed.md beside this file.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import qpsolvers
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.report import parser as benchmark_parser
from benchmarks.report import publish, surroundings
from ioi_helpers import lrqp, probing
from ioi_helpers.lrqp.backends import solve_qp
from ioi_helpers.lrqp.exact import solve_exact
from ioi_helpers.lrqp.problem import Problem

HERE = Path(__file__).resolve().parent
LEAST_SECONDS = 0.3
"""A contestant's turn lasts at least so long: a call of a millisecond alone cannot be timed."""


@dataclass(frozen=True)
class Setting:
    """One problem: a probe, a covariance, and rows to intervene on."""

    probe: probing.Probe
    covariance: probing.Covariance
    x0: Tensor
    true: list[int]
    target: list[int]


def synthetic(width: int, classes: int, rows: int, train: int, seed: int) -> Setting:
    """Activations of some classes, split into rows to fit on and rows to intervene on."""
    rng = np.random.default_rng(seed)
    n = train + rows
    labels = np.arange(n) % classes
    basis = np.linalg.qr(rng.normal(size=(width, width)))[0]
    deviations = 30 * np.arange(1, width + 1) ** -0.5
    # Class means lie among directions of middling variance, as a residual stream's do.
    means = np.zeros((classes, width))
    means[:, 10:60] = rng.normal(size=(classes, 50)) * deviations[10:60]
    values = (means[labels] + rng.normal(size=(n, width)) * deviations) @ basis.T
    values -= values.mean(axis=1, keepdims=True)
    x = torch.as_tensor(values)
    probe = probing.fit_probe(x[:train], labels[:train])
    covariance = probing.fit_covariance(x[:train])
    true = labels[train:].tolist()
    target = [(label + 1 + row % (classes - 1)) % classes for row, label in enumerate(true)]
    return Setting(probe, covariance, x[train:], true, target)


@dataclass(frozen=True)
class Answer:
    """The rows as a contestant left them and, if it checked, the largest residual of each."""

    x: Tensor
    worst: Tensor | None = None


TIGHT = {"eps_abs": 1e-9, "eps_rel": 1e-9, "polishing": True, "max_iter": 100_000}


def contestants(setting: Setting) -> dict[str, Callable[[int], Answer]]:
    """name -> a call on the first so many rows."""

    def intervene(n: int, **arguments: Any) -> Answer:
        found = lrqp.intervene(
            setting.x0[:n],
            setting.probe,
            setting.target[:n],
            setting.covariance,
            true=setting.true[:n],
            tolerance=math.inf,
            **arguments,
        )
        return Answer(found.x, found.kkt.worst)

    return {
        "exact": intervene,
        "OSQP whitened": lambda n: intervene(n, solver="osqp"),
        "OSQP as the post": lambda n: intervene(n, solver="osqp", whiten=False),
        "OSQP direct, tight": lambda n: intervene(n, solver="osqp", whiten=False, **TIGHT),
        "OSQP whitened, plain call": lambda n: plain_call(setting, n),
        "exact, unchecked": lambda n: unchecked(setting, n, by_exact),
        "OSQP whitened, unchecked": lambda n: unchecked(setting, n, by_osqp),
    }


def asked_of(setting: Setting, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The probe's logits, the targets' codes and log alpha of the first rows, as `intervene`'s."""
    logits = setting.probe.logits(setting.x0[:n])
    target = setting.probe.codes(setting.target[:n], n)
    true = setting.probe.codes(setting.true[:n], n)
    both = logits.gather(1, torch.stack([true, target], dim=1))
    return logits, target, (both[:, 0] - both[:, 1]).clamp_min(lrqp.LOG_ALPHA)


def by_exact(problem: Problem) -> Tensor:
    """The new activations, by the exact solver."""
    return solve_exact(problem)[0]


def by_osqp(problem: Problem) -> Tensor:
    """The same by OSQP, whitened, at the tolerances of `lrqp.intervene`."""
    return solve_qp(problem, "osqp")[0]


def unchecked(setting: Setting, n: int, solve: Callable[[Problem], Tensor]) -> Answer:
    """A solver alone."""
    logits, target, log_alpha = asked_of(setting, n)
    problem = Problem.build(
        setting.x0[:n], logits, setting.probe, target, log_alpha, setting.covariance
    )
    return Answer(solve(problem))


def plain_call(setting: Setting, n: int) -> Answer:
    """Minimise z'z subject to A L z >= r, where x = x0 + L z, a call of qpsolvers a row."""
    logits, target, log_alpha = asked_of(setting, n)
    factor = setting.covariance.factor.numpy()
    weights = setting.probe.weights.numpy()
    identity, nothing = np.eye(factor.shape[1]), np.zeros(factor.shape[1])
    short = (log_alpha[:, None] - (logits.gather(1, target[:, None]) - logits)).numpy()
    moves = []
    for row, code in enumerate(target.tolist()):
        others = np.arange(len(weights)) != code
        normals = (weights[code] - weights[others]) @ factor
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that it converts to sparse matrices
            z = qpsolvers.solve_qp(
                identity, nothing, -normals, -short[row, others], solver="osqp", **TIGHT
            )
        moves.append(factor @ (nothing if z is None else z))
    return Answer(setting.x0[:n] + torch.as_tensor(np.stack(moves)))


def judged(worst: Tensor) -> dict[str, Any]:
    """What the residuals say of a contestant's answers."""
    return {"largest_residual": worst.max().item(), "refused": int((worst > 1e-6).sum())}


def measure(setting: Setting, counts: dict[str, int], rounds: int) -> list[dict[str, Any]]:
    """Time and judge every contestant on its number of rows, in turns."""
    called = contestants(setting)
    answers = {name: call(min(2, counts[name])) for name, call in called.items()}  # warm up
    seconds: dict[str, list[float]] = {name: [] for name in called}
    for _ in range(rounds):
        for name, call in called.items():
            calls, start = 0, time.perf_counter()
            while not calls or time.perf_counter() - start < LEAST_SECONDS:
                answers[name] = call(counts[name])
                calls += 1
            seconds[name].append((time.perf_counter() - start) / (calls * counts[name]))
    exact = answers["exact"]
    found = []
    for name, answer in answers.items():
        rows = slice(counts[name])
        length = (exact.x - setting.x0)[rows].norm(dim=-1)
        error = (answer.x - exact.x[rows]).norm(dim=-1) / length.clamp_min(1e-12)
        residuals = {} if answer.worst is None else judged(answer.worst)
        found.append(
            {
                "solver": name,
                "rows": counts[name],
                "seconds_per_prompt": statistics.median(seconds[name]),
                "times_exact": against(seconds[name], seconds["exact"]),
                "times_exact_unchecked": against(seconds[name], seconds["exact, unchecked"]),
                "median_error": error.median().item(),
                "largest_error": error.max().item(),
                **residuals,
            }
        )
    return found


def against(one: list[float], other: list[float]) -> dict[str, float]:
    """How many times as long the one took: in the median round, the best and the worst."""
    ratios = [first / second for first, second in zip(one, other, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def factorisation(covariance: probing.Covariance) -> float:
    """Seconds for the eigendecomposition of a covariance."""
    fresh = probing.Covariance(covariance.matrix)
    start = time.perf_counter()
    _ = fresh.factor, fresh.whitener
    return time.perf_counter() - start


def as_page(report: dict[str, Any]) -> str:
    """The report as a Markdown page."""
    settings, machine = report["settings"], report["machine"]
    lines = [
        "# LRQP: the exact solver against OSQP",
        "",
        f"{settings['width']} dimensions, {settings['train']} training rows, "
        f"{settings['rounds']} rounds; {machine['cores']} cores, {machine['threads']} threads; "
        f"Python {machine['python']}, torch {machine['torch']}, osqp {machine['osqp']}, "
        f"qpsolvers {machine['qpsolvers']}. Made by `python benchmarks/lrqp_speed.py`, which says "
        "what is compared.",
        "",
    ]
    for classes, part in report["classes"].items():
        lines += [
            f"## K = {classes}",
            "",
            f"Eigendecomposition of the covariance, once: {part['factorisation_seconds']:.2f} s.",
            "",
            "| solver | rows | time per prompt | times exact (range over rounds) "
            "| times exact, unchecked | error, median | error, largest | residual, largest "
            "| refused |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for one in part["solvers"]:
            lines.append(
                f"| {one['solver']} | {one['rows']} | {one['seconds_per_prompt'] * 1e6:,.1f} µs "
                f"| {as_range(one['times_exact'])} | {as_range(one['times_exact_unchecked'])} "
                f"| {one['median_error']:.1e} | {one['largest_error']:.1e} "
                + (
                    "| | |"
                    if "refused" not in one
                    else f"| {one['largest_residual']:.1e} | {one['refused']} of {one['rows']} |"
                )
            )
        lines.append("")
    return "\n".join(lines)


def as_range(times: dict[str, float]) -> str:
    """As "1,234 (1,100 to 1,300)"."""
    median, least, most = (
        f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
        for value in (times["median"], times["least"], times["most"])
    )
    return f"{median} ({least} to {most})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and write its results."""
    parser = benchmark_parser(__doc__, HERE / "lrqp_speed", rounds=5, of_model=False)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rows", type=int, default=1000, help="for the exact solver, at once")
    parser.add_argument("--osqp-rows", type=int, default=40, help="for whitened OSQP")
    parser.add_argument("--direct-rows", type=int, default=6, help="for OSQP called directly")
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    machine = surroundings(options.threads, "numpy", "osqp", "qpsolvers")
    report: dict[str, Any] = {
        "settings": {
            name: getattr(options, name)
            for name in ("width", "rows", "osqp_rows", "direct_rows", "train", "rounds", "seed")
        },
        "machine": {"cores": os.cpu_count(), **machine},
        "classes": {},
    }
    counts = {
        "exact": options.rows,
        "OSQP whitened": min(options.osqp_rows, options.rows),
        "OSQP as the post": min(options.direct_rows, options.rows),
        "OSQP direct, tight": min(options.direct_rows, options.rows),
        "OSQP whitened, plain call": min(options.osqp_rows, options.rows),
        "exact, unchecked": options.rows,
        "OSQP whitened, unchecked": min(options.osqp_rows, options.rows),
    }
    for classes in options.classes:
        setting = synthetic(options.width, classes, options.rows, options.train, options.seed)
        apart = factorisation(setting.covariance)
        _ = setting.covariance.factor, setting.covariance.whitener
        report["classes"][str(classes)] = {
            "factorisation_seconds": apart,
            "solvers": measure(setting, counts, options.rounds),
        }
    publish(report, as_page(report), options.output)


if __name__ == "__main__":
    main()
