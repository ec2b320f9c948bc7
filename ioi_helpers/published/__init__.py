"""Published results for GPT-2 small, each with its source, to be shown beside a reader's own.

`names()` lists them, `load(name)` returns one with its values, source, setup and tolerance, and
`compare(name, yours, model)` puts it beside a result of the reader's. On GPT-2 small the two are
also checked against each other; on any other model they are only shown, since layers and heads do
not correspond. Whole files, with notes and facts that are no arrays, come from `record(file)`.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from jaxtyping import Float

from ioi_helpers import plotting
from ioi_helpers.models import is_gpt2_small
from ioi_helpers.names import head_name
from ioi_helpers.plotting.panels import Array, to_numpy
from ioi_helpers.published.catalogue import ENTRIES, Keys

__all__ = [
    "Comparison",
    "Published",
    "compare",
    "head_classes",
    "load",
    "names",
    "place",
    "record",
]

LABEL = "GPT-2 small, published"


@dataclass(frozen=True)
class Published:
    """A published array: `values` [*axes], what it is, where it stands and how it was measured.

    `labels` names the places of some axes. `tolerance`, in `unit`, is how far an exact repetition
    on GPT-2 small may lie from any entry. `setup` says on which prompts, with or without BOS.
    `logits` is how many logits one unit is, where that is known: see `in_logits`.
    """

    name: str
    title: str
    values: Float[np.ndarray, " *axes"]
    axes: tuple[str, ...]
    labels: dict[str, tuple[str, ...]]
    unit: str
    setup: str
    source: str
    tolerance: float
    logits: float | None = None

    def in_logits(self) -> Float[np.ndarray, " *axes"]:
        """The values in logits, where their unit is a share of a logit difference.

        Sources take other shares (of the clean logit difference, or of clean minus corrupted), so
        their numbers compare in logits only.

        Raises ValueError where they are no such share.
        """
        if self.logits is None:
            raise ValueError(f"{self.name} is in {self.unit}, which is no share of logits.")
        return self.values * self.logits

    def __repr__(self) -> str:
        shape = " x ".join(f"{n} {a}" for n, a in zip(self.values.shape, self.axes, strict=True))
        return (
            f"{self.title} ({LABEL})\n{shape or 'one number'}, {self.unit}; "
            f"tolerance {self.tolerance:g}\nsetup: {self.setup}\nsource: {self.source}"
        )


def names() -> tuple[str, ...]:
    """The names that `load` and `compare` accept."""
    return tuple(ENTRIES)


def load(name: str) -> Published:
    """The published values called `name`.

    Raises ValueError for an unknown name and lists the near ones.
    """
    if name not in ENTRIES:
        family = [n for n in ENTRIES if n.split(".")[0] == name.split(".")[0]] or list(ENTRIES)
        raise ValueError(
            f"No published values are called {name!r}; there are: {', '.join(family)}."
        )
    entry = ENTRIES[name]
    data = record(entry.file)
    values = np.array(_follow(data, entry.keys), dtype=np.float64)
    if entry.shape is not None:
        values = values.reshape(entry.shape)
    labels = {
        axis: tuple(_label(v) for v in _follow(data, keys)) for axis, keys in entry.labels.items()
    }
    return Published(
        name=name,
        title=entry.title,
        values=values,
        axes=entry.axes,
        labels=labels,
        unit=entry.unit,
        setup=entry.setup,
        source=entry.source,
        tolerance=entry.tolerance,
        logits=entry.logits,
    )


def record(file: str) -> dict[str, Any]:
    """A whole file of published facts, such as "ioi_paper.json"; a fresh copy each time."""
    return json.loads(_text(file))


def head_classes() -> list[dict[str, Any]]:
    """The 26 heads of GPT-2 small's circuit: `head`, `head_class`, `position` and `evidence`.

    Source and setup: `record("gpt2-small-registry.json")`.
    """
    found: list[dict[str, Any]] = record("gpt2-small-registry.json")["heads"]
    return found


@dataclass(frozen=True)
class Comparison:
    """A published result beside the reader's own. Jupyter displays it as a figure or a table.

    `agrees` is True or False on GPT-2 small and None on any other model, where nothing is checked.
    `caption` is the line below the title: where it was published, and what the check found;
    `details` is folded away below it: on which prompts, and why nothing was checked.
    """

    published: Published
    yours: Float[np.ndarray, " *axes"]
    agrees: bool | None
    caption: str
    details: str
    figure: plotting.Figure | None

    def __repr__(self) -> str:
        return self.figure.summary if self.figure is not None else self._table()

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        if self.figure is not None:
            return self.figure._repr_mimebundle_()
        cells = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
            for name, value in self._rows()
        )
        caption = "<br>".join(html.escape(line) for line in (self.published.title, self.caption))
        folded = f"<details><summary>setup</summary>{html.escape(self.details)}</details>"
        table = f"<table><caption>{caption}</caption>{cells}</table>{folded}"
        return {"text/plain": self._table(), "text/html": table}, {}

    def _rows(self) -> list[tuple[str, str]]:
        unit = self.published.unit
        return [
            ("yours", f"{plotting.number(float(self.yours))} {unit}"),
            (LABEL, f"{plotting.number(float(self.published.values))} {unit}"),
        ]

    def _table(self) -> str:
        rows = [f"{name}: {value}" for name, value in self._rows()]
        return "\n".join([self.published.title, *rows, self.caption, self.details])


def compare(
    name: str, yours: Array | float, model: Any, labels: Sequence[str] | None = None
) -> Comparison:
    """Show the published result `name` beside `yours`, which has the same axes.

    `model` is the model that gave `yours` (or True or False: whether it is GPT-2 small). On GPT-2
    small every entry is checked against the published one within its tolerance, and the caption
    says so; elsewhere the shapes differ and both are shown, without subtracting. `labels` names the
    places along the last axis of `yours` where they differ from the published ones.

    Raises ValueError for an unknown name or other axes and, on GPT-2 small, for another shape.
    """
    published = load(name)
    values = to_numpy(yours, published.values.ndim, f"your {name}")
    is_subject = model if isinstance(model, bool) else is_gpt2_small(model)
    agrees, verdict = _verdict(published, values) if is_subject else (None, NOT_CHECKED)
    caption = f"Published: {published.source}."
    if agrees is not None:
        caption += f" {verdict}"
    details = f"{LABEL}: on {published.setup}."
    if agrees is None:
        details += f" {verdict}"
    figure = _figure(published, values, caption, details, labels) if values.ndim else None
    return Comparison(published, values, agrees, caption, details, figure)


NOT_CHECKED = "Not checked: yours is not GPT-2 small, so the two need not agree."
LINE_AXES = ("residual stream", "rank", "edges")  # ordered, so drawn as a line and not as bars


def _verdict(published: Published, yours: Float[np.ndarray, " *axes"]) -> tuple[bool, str]:
    if yours.shape != published.values.shape:
        raise ValueError(
            f"{published.name} has shape {list(published.values.shape)} on GPT-2 small but yours "
            f"has {list(yours.shape)}; use its setup: {published.setup}."
        )
    gap = np.abs(yours - published.values)
    worst = int(np.argmax(np.where(np.isnan(gap), np.inf, gap)))
    largest = float(gap.ravel()[worst])
    where = place(published, worst)
    agrees = bool(largest <= published.tolerance)
    if agrees:
        return True, (
            f"Checked on GPT-2 small: every value within {published.tolerance:g} {published.unit}."
        )
    return False, (
        f"DISAGREES with the published values: {yours.ravel()[worst]:.4g} against "
        f"{published.values.ravel()[worst]:.4g}{where}, tolerance {published.tolerance:g} "
        f"{published.unit}."
    )


def place(published: Published, flat_index: int) -> str:
    """Where an entry of the flattened values stands, as it goes on a sentence: " at L9H9"."""
    if not published.axes:
        return ""
    index = np.unravel_index(flat_index, published.values.shape)
    names = [
        published.labels[axis][i].strip() if axis in published.labels else str(i)
        for axis, i in zip(published.axes, index, strict=True)
    ]
    if published.axes == ("layer", "head"):
        return f" at L{names[0]}H{names[1]}"
    return " at " + ", ".join(f"{a} {n}" for a, n in zip(published.axes, names, strict=True))


def _figure(
    published: Published,
    yours: Float[np.ndarray, " *axes"],
    caption: str,
    details: str,
    labels: Sequence[str] | None,
) -> plotting.Figure:
    own_labels = dict(published.labels) if yours.shape == published.values.shape else {}
    if labels is not None:
        own_labels[published.axes[-1]] = tuple(labels)
    if yours.ndim == 1 and yours.shape == published.values.shape:
        pair = {"yours": yours, LABEL: published.values}
        axis = published.axes[0]
        draw = plotting.line if axis in LINE_AXES else plotting.bar
        figure = draw(
            pair,
            own_labels.get(axis),
            published.title,
            x_title=axis,
            y_title=published.unit,
        )
        return figure.with_note(caption, details)
    return plotting.side_by_side(
        {
            "yours": _draw(yours, published.axes, own_labels, published.unit),
            LABEL: _draw(published.values, published.axes, published.labels, published.unit),
        },
        published.title,
        note=caption,
        details=details,
    )


def _draw(
    values: Float[np.ndarray, " *axes"],
    axes: tuple[str, ...],
    labels: dict[str, tuple[str, ...]],
    unit: str,
) -> plotting.Figure:
    if values.ndim == 1:
        draw = plotting.line if axes[0] in LINE_AXES else plotting.bar
        return draw(values, labels.get(axes[0]), x_title=axes[0], y_title=unit)
    if values.ndim > 2:
        # Rows run over all axes but the last: L0H0, L0H1, ... for [layer head position].
        rows = [_row_name(axes, labels, index) for index in np.ndindex(*values.shape[:-1])]
        values = values.reshape(-1, values.shape[-1])
        return plotting.heatmap(values, labels.get(axes[-1]), rows, x_title=axes[-1], unit=unit)
    y, x = axes
    cell = "L{y}H{x}" if axes == ("layer", "head") else None
    return plotting.heatmap(
        values, labels.get(x), labels.get(y), x_title=x, y_title=y, unit=unit, cell=cell
    )


def _row_name(
    axes: tuple[str, ...], labels: dict[str, tuple[str, ...]], index: tuple[int, ...]
) -> str:
    if axes[:2] == ("layer", "head"):
        return head_name(*index)
    named = zip(axes, index, strict=False)
    return " ".join(labels[a][i] if a in labels else f"{a} {i}" for a, i in named)


def _follow(data: Any, keys: Keys) -> Any:
    """Walk down nested lists and mappings.

    "*" maps over what is left, several names over these; "keys" lists the keys (those named after
    it, if any are); "=" is followed by what is asked for itself.
    """
    if keys[:1] == ("=",):
        return keys[1]
    for depth, key in enumerate(keys):
        if isinstance(key, tuple):
            return [_follow(data[name], keys[depth + 1 :]) for name in key]
        if key == "keys" and isinstance(data, dict) and "keys" not in data:
            return keys[depth + 1] if keys[depth + 1 :] else list(data)
        if key == "*":
            items = data.values() if isinstance(data, dict) else data
            return [_follow(item, keys[depth + 1 :]) for item in items]
        data = data[key]
    return data


def _label(value: Any) -> str:
    """A label as text. The paper writes heads as "9.9"; here they are called L9H9."""
    if isinstance(value, float):
        return f"{value:g}"
    head = re.fullmatch(r"(\d+)\.(\d+)", str(value))
    return f"L{head[1]}H{head[2]}" if head else str(value)


@cache
def _text(file: str) -> str:
    return resources.files(__name__).joinpath(file).read_text(encoding="utf-8")
