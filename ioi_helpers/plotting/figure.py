"""The object that every figure function returns: one figure in its three forms.

Jupyter asks it for its representations. It offers the interactive form, the summary as `text/plain`
and the static picture with the summary as its alternative text, so that a notebook saved by its
reader shows pictures where scripts do not run, on GitHub say. A large figure takes too long to draw
for that, and comes without. The environment variable `IOI_STATIC_FIGURES` says otherwise: `1` draws
every picture (outputs that are stored), `0` none (outputs that are only compared).
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ioi_helpers.plotting import interactive, static
from ioi_helpers.plotting.panels import Arrangement, Panel, arrange
from ioi_helpers.plotting.summary import describe

if TYPE_CHECKING:
    import plotly.graph_objects as go

STATIC_VARIABLE = "IOI_STATIC_FIGURES"
MOST_VALUES = 2000  # in a live figure with a picture, which is drawn in a tenth of a second or two


@dataclass(frozen=True)
class Figure:
    """A figure. `note` is a line below the title, and `details` what it says when hovered over (and
    the end of the summary); `top` how many extremes the summary names.

    Attention figures also carry `attention` (what circuitsvis draws) and `words`, their own
    summary; every other figure is summarised from its panels.
    """

    title: str
    panels: tuple[Panel, ...]
    note: str = ""
    details: str = ""
    share_scale: bool = True
    top: int = 5
    attention: dict[str, Any] | None = None
    words: str | None = None

    @cached_property
    def summary(self) -> str:
        """A few lines of text: title, axes, rounded numbers."""
        if self.words is not None:
            return self.words
        words = describe(self.title, self.panels, self.note, self.top)
        return f"{words}\n{self.details}" if self.details else words

    @cached_property
    def _arrangement(self) -> Arrangement:
        return arrange(self.panels, self.title, self.note, self.share_scale)

    def with_note(self, note: str, details: str = "") -> Self:
        """The same figure with another line below its title, and what hovering over it says."""
        return replace(self, note=note, details=details)

    def plotly(self) -> go.Figure:
        """A plotly figure to change further or to save as a page (`.write_html`)."""
        import plotly.graph_objects as go

        spec = self._plotly_json()
        return go.Figure(data=spec["data"], layout=spec["layout"])

    def png(self) -> bytes:
        """The static picture, a PNG on white paper."""
        return static.png(self.panels, self._arrangement)

    def save(self, path: str | Path) -> Path:
        """Write the figure to a file and return its path; the name's ending says in which form.

        `.html` is the interactive figure on a page of its own (some megabytes, because it needs no
        network), `.png` the static picture, `.txt` the summary.

        Raises:
            ValueError: the name ends in something else.
        """
        path = Path(path)
        if path.suffix == ".png":
            path.write_bytes(self.png())
        elif path.suffix == ".html":
            path.write_text(interactive.page(self.title, self.forms()), encoding="utf-8")
        elif path.suffix == ".txt":
            path.write_text(self.summary + "\n", encoding="utf-8")
        else:
            raise ValueError(
                f"A figure is saved as .html, .png or .txt, and {path.name!r} ends in none of them."
            )
        return path

    def forms(self) -> dict[str, Any]:
        """The figure in each of its forms, by mime type, as `page_figure` takes it."""
        forms = {"text/plain": self.summary, "image/png": self._picture()}
        if self.attention is not None:
            return forms | {interactive.ATTENTION_MIME: self.attention}
        return forms | {interactive.PLOTLY_MIME: self._plotly_json()}

    def _picture(self) -> str:
        return static.base64_png(self.panels, self._arrangement)

    def __repr__(self) -> str:
        return self.summary

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        data: dict[str, Any] = {"text/plain": self.summary}
        wanted = os.environ.get(STATIC_VARIABLE)
        if wanted == "1":
            # For storage: no HTML, because GitHub's viewer would prefer it, without its scripts,
            # to the picture.
            data[interactive.PLOTLY_MIME] = self._plotly_json()
            if self.attention is not None:
                data[interactive.ATTENTION_MIME] = self.attention
            return self._with_picture(data)
        if self.attention is not None:
            picture = self._picture()  # the script draws over it, once it has come
            data["text/html"] = interactive.attention_html(self.attention, self.summary, picture)
            return data, {}
        pictured = wanted != "0" and self._values <= MOST_VALUES
        if "google.colab" in sys.modules:
            picture = self._picture() if pictured else ""
            data["text/html"] = interactive.colab_html(self.plotly(), self.summary, picture)
            return data, {}
        data[interactive.PLOTLY_MIME] = self._plotly_json()
        return self._with_picture(data) if pictured else (data, {})

    def _with_picture(self, data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The forms with the picture, and what a page has to know of it."""
        size = {"width": round(self._arrangement.width), "height": round(self._height)}
        data["image/png"] = self._picture()
        return data, {"image/png": {"alt": self.summary, **size}}

    @property
    def _values(self) -> int:
        """How many values are drawn."""
        return sum(panel.n_values for panel in self.panels)

    def _plotly_json(self) -> dict[str, Any]:
        return interactive.plotly_json(self.panels, self._arrangement, self.details)

    @property
    def _height(self) -> float:
        return self._arrangement.height
