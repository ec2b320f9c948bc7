"""The result of a sweep: many runs with one thing changed in each, and those with nothing changed.

Patching, attribution patching, ablation and path patching all return a :class:`SweepResult`, made
by :func:`sweep_result`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from os import PathLike
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.patching import PatchingResult

from ioi_helpers.dataset.files import read_file, write_file
from ioi_helpers.metrics import cluster_values, error_label, recovered_fraction, standard_error
from ioi_helpers.names import head_name, mlp_name

Direction = Literal["denoising", "noising"]
DIRECTIONS: tuple[str, ...] = ("denoising", "noising")

_TENSORS = ("values", "baseline", "clean", "corrupted_run", "pair_ids")
_TEXTS = ("axis_names", "metric_names", "has_metric_axis", "method", "site", "direction", "labels")


@dataclass(kw_only=True)
class SweepResult(PatchingResult):
    """A `PatchingResult` that knows its labels, the unpatched runs, and which prompts are a pair.

    ``values`` is ``[metric? *axes batch]``, in the metric's units; a metric axis exists only when
    several metrics were asked for. ``mean()``, ``effect()``, ``normalized()`` and
    ``to_dataframe()`` are TransformerLens', ``result["name"]`` is one metric's result.

    Prompts that were generated as a pair are not independent. So ``stderr()``, ``bootstrap_ci()``
    and ``permutation_pvalue()``, and the error by which ``fraction()`` refuses, take pairs as their
    observations (see :func:`~ioi_helpers.metrics.cluster_values`). Where every prompt is its own,
    they are TransformerLens'. ``error_label`` says which it is.

    Attributes:
        method: ``"activation patching"``, ``"attribution patching"``, ``"mean ablation"`` ...
        site: What was changed: a site of `patch_sweep`, ``"heads"``, ``"mlps"`` ...
        direction: ``"denoising"``: the corrupted prompts were run, with something clean put in.
            ``"noising"``: the clean prompts were run, with something taken away.
        clean, corrupted: ``[metric? batch]``, the metric of the two runs with nothing changed, both
            scored with the clean answers. An ablation has no corrupted run and refuses to give one
            (``corrupted_run`` is None). ``baseline`` is that of the run which was changed:
            corrupted when denoising, clean when noising.
        pair_ids: ``[batch]``, the dataset's: equal for prompts that belong together.
        labels: The name of each cell, in the order of the flattened axes and of ``index_df``.
    """

    method: str
    site: str
    direction: str
    clean: Float[Tensor, "*metric batch"]
    corrupted_run: Float[Tensor, "*metric batch"] | None
    pair_ids: Int[Tensor, " batch"]
    labels: list[str]

    @property
    def corrupted(self) -> Float[Tensor, "*metric batch"]:
        """The metric of the corrupted run.

        Raises:
            ValueError: There is none.
        """
        if self.corrupted_run is None:
            raise ValueError(
                f"A result of {self.method} has no corrupted run to compare with; use effect()."
            )
        return self.corrupted_run

    def __getitem__(self, metric_name: str) -> SweepResult:
        """One metric's result, without the metric axis."""
        one = super().__getitem__(metric_name)
        if one is self:
            return self
        row = self.metric_names.index(metric_name)
        own = {field.name: getattr(one, field.name) for field in fields(PatchingResult)}
        corrupted = None if self.corrupted_run is None else self.corrupted_run[row]
        return replace(self, **own, clean=self.clean[row], corrupted_run=corrupted)

    @property
    def error_label(self) -> str:
        """What ``stderr()`` is, such as ``"standard error over 100 pairs"``."""
        return error_label(self.pair_ids)

    def _by_pairs(self) -> PatchingResult:
        """The same with one value a pair, for what takes its observations as independent."""
        assert self.baseline is not None
        own = {field.name: getattr(self, field.name) for field in fields(PatchingResult)}
        own["values"] = cluster_values(self.values, self.pair_ids)
        own["baseline"] = cluster_values(self.baseline, self.pair_ids)
        return PatchingResult(**own)

    def stderr(self, *, of_effect: bool = False) -> Float[Tensor, "*metric_and_axes"]:
        """The standard error of ``mean()``, or of the mean ``effect()``; pairs are observations.

        NaN where there is one observation only.
        """
        return standard_error(self.effect() if of_effect else self.values, self.pair_ids)

    def bootstrap_ci(
        self,
        *,
        confidence: float = 0.95,
        n_resamples: int = 1000,
        seed: int = 0,
        statistic: str = "mean",
        of_effect: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """TransformerLens' bootstrap interval of each cell, in which pairs are drawn.

        With ``statistic="median"`` it is that of the pairs' values.
        """
        return self._by_pairs().bootstrap_ci(
            confidence=confidence,
            n_resamples=n_resamples,
            seed=seed,
            statistic=statistic,
            of_effect=of_effect,
        )

    def permutation_pvalue(
        self, *, n_permutations: int = 1000, seed: int = 0, alternative: str = "two-sided"
    ) -> Tensor:
        """TransformerLens' sign-flip test that the mean effect is zero, in which pairs are flipped.

        Exact for 12 pairs or fewer, and then no smaller than 2 to the power of minus their number.
        """
        return self._by_pairs().permutation_pvalue(
            n_permutations=n_permutations, seed=seed, alternative=alternative
        )

    def fraction(self) -> Float[Tensor, "*metric_and_axes"]:
        """How far each patch moves the mean metric from the patched run's to the other run's.

        0: the patch changes nothing. 1: denoising, it restores the clean value; noising, it brings
        about the corrupted value. Fraction of the means over prompts, ``[metric? *axes]``.

        Raises:
            ValueError: There is no corrupted run; or the two runs have the same mean, up to twice
                the standard error of their difference (over pairs), so there is nothing to move. So
                it is where both name the same IO, as with ``swap_order()``.
        """
        gap = (self.clean - self.corrupted).reshape(-1, self.clean.shape[-1])  # [metric batch]
        errors = standard_error(gap, self.pair_ids).tolist()
        for name, mean, error in zip(
            self.metric_names, gap.mean(dim=-1).tolist(), errors, strict=True
        ):
            # A single pair has no standard error (NaN), and any gap of its own counts.
            if abs(mean) <= 2 * error or mean != mean:
                raise ValueError(
                    f"In {name} the clean and the corrupted runs differ by {mean:.2g} ± "
                    f"{error:.2g} on average ({self.error_label}), so there is nothing to recover "
                    "a fraction of; use effect(), or pairs whose answers differ, such as "
                    "swap_subject()."
                )
        runs = [self.clean.mean(dim=-1), self.corrupted.mean(dim=-1)]
        there, here = runs if self.direction == "denoising" else runs[::-1]
        spare = (1,) * len(self.axis_names)
        return recovered_fraction(
            self.mean(),
            there.reshape((*there.shape, *spare)),
            here.reshape((*here.shape, *spare)),
        )

    def table(self) -> pd.DataFrame:
        """One cell a row, under its label: its place, mean, effect, and the effect's error.

        The error's column says what it is over, such as ``"standard error over 100 pairs"``. With
        several metrics there is a column ``metric``, and each has its rows.
        """
        parts = []
        for name in self.metric_names:
            one = self[name]
            table = self.index_df.reset_index(drop=True)
            if self.has_metric_axis:
                table.insert(0, "metric", name)
            table["mean"] = one.mean().flatten().tolist()
            table["effect"] = one.effect().mean(dim=-1).flatten().tolist()
            table[self.error_label] = one.stderr(of_effect=True).flatten().tolist()
            table.index = pd.Index(self.labels)
            parts.append(table)
        return pd.concat(parts)

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything into one safetensors file, the labels as JSON in its metadata."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        tensors = {name: x for name, x in tensors.items() if x is not None}
        texts = {name: getattr(self, name) for name in _TEXTS}
        texts["index_df"] = {name: self.index_df[name].tolist() for name in self.index_df.columns}
        write_file(path, "SweepResult", tensors, texts)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> SweepResult:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: The file holds something else.
        """
        tensors, texts = read_file(path, "SweepResult")
        index_df = pd.DataFrame(texts.pop("index_df"))
        return cls(
            index_df=index_df,
            reduced=False,
            **{name: tensors.get(name) for name in _TENSORS},  # type: ignore[arg-type]
            **texts,
        )


def sweep_result(
    values: Float[Tensor, "*metric_and_axes batch"],
    axes: Mapping[str, Sequence[int | str]],
    *,
    clean: Float[Tensor, "*metric batch"],
    pair_ids: Int[Tensor, " batch"],
    corrupted: Float[Tensor, "*metric batch"] | None = None,
    direction: str = "noising",
    method: str = "activation patching",
    site: str = "z",
    labels: Sequence[str] | None = None,
    metric_names: Sequence[str] = ("logit_diff",),
    has_metric_axis: bool = False,
) -> SweepResult:
    """Put a result together; every sweep of the package comes from here.

    Args:
        values: One number for each cell and prompt. The cells may lie along their axes or along one
            flat axis in the same order.
        axes: For each axis its name and what stands along it, such as ``{"layer": range(12),
            "role": ("S2", "END")}``, or ``{"edge": [...]}`` with names of one's own.
        clean, corrupted, direction, pair_ids, method, site: See :class:`SweepResult`.
        labels: A name for each cell; by default made of the axes and the site.
        metric_names, has_metric_axis: ``values``, ``clean`` and ``corrupted`` may start with an
            axis of metrics.

    Raises:
        ValueError: Values, axes, labels and runs do not fit together.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be 'denoising' or 'noising', not {direction!r}.")
    baseline = clean if direction == "noising" else corrupted
    if baseline is None:
        raise ValueError("A denoising result needs the corrupted run; give corrupted=.")
    entries = {axis: list(along) for axis, along in axes.items()}
    sizes = [len(along) for along in entries.values()]
    lead = [len(metric_names)] if has_metric_axis else []
    index_df = pd.DataFrame(list(itertools.product(*entries.values())), columns=list(entries))
    if labels is None:
        labels = [
            cell_label(site, dict(zip(entries, cell, strict=True)))
            for cell in itertools.product(*entries.values())
        ]
    shape = (*lead, *sizes, len(pair_ids))
    if values.numel() != torch.Size(shape).numel() or len(labels) != len(index_df):
        raise ValueError(
            f"Values of shape {tuple(values.shape)} and {len(labels)} labels do not fit "
            f"{len(pair_ids)} prompts and the axes {dict(zip(entries, sizes, strict=True))}."
        )
    return SweepResult(
        values=values.reshape(shape),
        axis_names=list(entries),
        index_df=index_df,
        metric_names=list(metric_names),
        reduced=False,
        baseline=baseline,
        has_metric_axis=has_metric_axis,
        method=method,
        site=site,
        direction=direction,
        clean=clean,
        corrupted_run=corrupted,
        pair_ids=pair_ids.detach().cpu(),
        labels=list(labels),
    )


_STAGES = {"resid_pre": "pre", "resid_mid": "mid", "resid_post": "post", "attn_out": "attn"}


def cell_label(site: str, cell: Mapping[str, int | str]) -> str:
    """What a cell of a sweep is called: ``"L9H9"``, ``"k of L5H5 at S2"``, ``"L6.mid at END"``.

    Args:
        site: What was changed there.
        cell: Where it stands along each axis.
    """
    spare = dict(cell)
    layer, head = spare.pop("layer", None), spare.pop("head", None)
    at = spare.pop("role", spare.pop("pos", None))
    parts = [str(value) for value in spare.values()]
    if layer is not None and head is not None:
        name = head_name(int(layer), int(head))
        parts.append(name if site in ("z", "heads") else f"{site} of {name}")
    elif layer is not None:
        layer = int(layer)
        known = {"mlp_out": mlp_name(layer), "mlps": mlp_name(layer)}
        known |= {stream: f"L{layer}.{stage}" for stream, stage in _STAGES.items()}
        parts.append(known.get(site, f"L{layer}.{site}"))
    if at is not None:
        parts.append(f"at {at}")
    return " ".join(parts)
