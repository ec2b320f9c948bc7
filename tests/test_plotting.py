"""Figures: their three forms, summaries that survive noise, and what they refuse."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from ioi_helpers import plotting
from ioi_helpers.plotting import static, style
from ioi_helpers.plotting.figure import Figure
from ioi_helpers.plotting.interactive import ATTENTION_MIME, PLOTLY_MIME, script_json
from ioi_helpers.plotting.panels import line_widths
from ioi_helpers.plotting.summary import number, ranked, rounded

TOKENS = ["<|endoftext|>", "When", " Mary", " and", " Mary", "\n"]


def causal_pattern(heads: int = 2, length: int = len(TOKENS), seed: int = 0) -> torch.Tensor:
    scores = torch.randn(heads, length, length, generator=torch.Generator().manual_seed(seed))
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
    return scores.softmax(-1)


def every_kind() -> dict[str, plotting.Figure]:
    values = np.linspace(-1, 2, 12).reshape(3, 4)
    names = [f"L0H{i}" for i in range(5)]
    y = [0.0, 1.0, -0.5, 2.0, 0.25]
    return {
        "heatmap": plotting.heatmap(values, TOKENS[:4], title="Heat <b>& more", x_title="token"),
        "head_heatmap": plotting.head_heatmap(values, "Heads", unit="logits"),
        "line": plotting.line({"a": y, "b": y[::-1]}, names, "Lines", error={"a": [0.1] * 5}),
        "numeric line": plotting.line(y, [0, 0.5, 1, 1.5, 2], "Line"),
        "uneven line": plotting.line(y, names, "Line", error=[[0.1] * 5, [0.3] * 5]),
        "bar": plotting.bar({"a": y, "b": y[::-1]}, names, "Bars", error={"b": [0.1] * 5}),
        "scatter": plotting.scatter(y, y[::-1], names, "Points", groups=list("aabbb")),
        "diagonal": plotting.scatter(y, y, title="Points", diagonal=True),
        "square": plotting.scatter(y, [9.0, *y[1:]], title="Points", diagonal=True, square=True),
        "histogram": plotting.histogram({"a": y, "b": [1.0, 3.0]}, "Spread", bins=4),
        "attention": plotting.attention(TOKENS, causal_pattern(), ["L0H0", "L1H3"], "Looking"),
        "side by side": plotting.side_by_side(
            {"yours": plotting.head_heatmap(values), "published": plotting.head_heatmap(values.T)},
            "Both",
            note="A note.",
        ),
    }


def pixels(png: bytes) -> np.ndarray:
    return imread(io.BytesIO(png), format="png")


@pytest.mark.parametrize("kind", every_kind())
def test_stored_forms(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the variable set: picture, summary, light JSON, no HTML; the summary is the alt text."""
    monkeypatch.setenv(plotting.STATIC_VARIABLE, "1")
    figure = every_kind()[kind]
    data, metadata = figure._repr_mimebundle_()
    expected = {"text/plain", "image/png", PLOTLY_MIME}
    assert set(data) == expected | ({ATTENTION_MIME} if kind == "attention" else set())
    assert metadata["image/png"]["alt"] == data["text/plain"] == figure.summary == repr(figure)
    assert len(json.dumps(data[PLOTLY_MIME])) < 20_000
    picture = pixels(base64.b64decode(data["image/png"]))
    assert picture.shape[2] == 4
    assert (picture[0, 0] == 1).all(), "white paper"
    assert picture[..., 3].min() == 1
    colours = np.unique(picture[::5, ::5, :3].reshape(-1, 3), axis=0)
    assert len(colours) > 3, "something is drawn"
    size = metadata["image/png"]
    ratio = picture.shape[1] / picture.shape[0]
    assert ratio == pytest.approx(size["width"] / size["height"], abs=0.02)


@pytest.mark.parametrize("kind", every_kind())
def test_live_forms(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it: one interactive form, the same summary, and a picture for where it is saved."""
    monkeypatch.delenv(plotting.STATIC_VARIABLE, raising=False)
    figure = every_kind()[kind]
    data, metadata = figure._repr_mimebundle_()
    if kind == "attention":
        assert set(data) == {"text/plain", "text/html"}
        assert len(data["text/html"]) < 200_000, "no script is embedded"
        assert "data:image/png;base64," in data["text/html"]
        return
    assert set(data) == {"text/plain", PLOTLY_MIME, "image/png"}
    assert metadata["image/png"]["alt"] == figure.summary
    monkeypatch.setenv(plotting.STATIC_VARIABLE, "0")
    data, metadata = figure._repr_mimebundle_()
    assert set(data) == {"text/plain", PLOTLY_MIME}
    assert metadata == {}


def test_a_large_figure_is_shown_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(plotting.STATIC_VARIABLE, raising=False)
    data, _ = plotting.heatmap(np.ones((144, 15)))._repr_mimebundle_()
    assert set(data) == {"text/plain", PLOTLY_MIME}
    monkeypatch.setenv(plotting.STATIC_VARIABLE, "1")
    assert "image/png" in plotting.heatmap(np.ones((144, 15)))._repr_mimebundle_()[0]


@pytest.mark.parametrize("kind", every_kind())
def test_plotly_accepts_the_json(kind: str) -> None:
    """plotly validates every property on construction; nothing of its template is added."""
    drawn = every_kind()[kind].plotly()
    assert len(drawn.data) >= 1
    assert len(drawn.to_json()) < 20_000


@pytest.mark.parametrize("kind", every_kind())
def test_summary_is_short_and_begins_with_the_title(kind: str) -> None:
    figure = every_kind()[kind]
    lines = figure.summary.splitlines()
    assert figure.title in lines[0]
    assert len(figure.summary) < 1500
    # three significant digits, four where rounding carries (9.999 is printed 10.00)
    for digits in re.findall(r"(?<![\w(.])-?(\d+\.\d+)", figure.summary):
        assert len(digits.replace(".", "").lstrip("0")) <= 4


def test_colab_gets_html(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(plotting.STATIC_VARIABLE, raising=False)
    monkeypatch.setitem(__import__("sys").modules, "google.colab", object())
    data, _ = plotting.head_heatmap(np.eye(2))._repr_mimebundle_()
    assert set(data) == {"text/plain", "text/html"}
    assert len(data["text/html"]) < 50_000
    assert "data:image/png;base64," in data["text/html"]


def test_picture_is_the_same_twice() -> None:
    figure = plotting.head_heatmap(np.eye(3), "Same")
    assert figure.png() == figure.png()


def test_head_heatmap_names_heads() -> None:
    values = torch.zeros(12, 12)
    values[9, 9], values[9, 6], values[10, 7] = 2.98545, 1.38449, -1.89865
    summary = plotting.head_heatmap(values, "DLA", unit="logits").summary
    assert "highest: L9H9 2.99; L9H6 1.38; " in summary
    assert "lowest: L10H7 -1.90\n" in summary
    assert "12 rows (layer) x 12 columns (head), logits" in summary


def test_repeated_labels_are_told_apart() -> None:
    figure = plotting.heatmap(
        [[0.0, 0.0, 1.0, 0.0, 2.0, 0.0]], TOKENS, x_title="token", y_title="layer"
    )
    assert "highest: layer 0, Mary(4) 2.00; layer 0, Mary(2) 1.00" in figure.summary
    assert len(figure.plotly().layout.xaxis.ticktext) == len(TOKENS)


def test_attention_summary_says_where_heads_look() -> None:
    pattern = torch.eye(len(TOKENS))
    pattern[-1] = torch.tensor([0.1, 0.0, 0.65, 0.0, 0.25, 0.0])
    summary = plotting.attention(TOKENS, pattern, ["L9H9"], "Movers").summary
    assert "L9H9 from \\n(5): Mary(2) 0.650; Mary(4) 0.250; <|endoftext|>(0) 0.100" in summary
    early = plotting.attention(TOKENS, pattern, ["L9H9"], "Movers", query=1, top=1).summary
    assert "L9H9 from When(1): When(1) 1.00" in early


def test_diverging_scale_is_centred_at_zero() -> None:
    trace = plotting.heatmap([[-1.0, 3.0]]).plotly().data[0]
    assert (trace.zmin, trace.zmax) == (-3.0, 3.0)
    middle = [colour for place, colour in trace.colorscale if place == 0.5]
    assert middle == [style.DIVERGING[style.MIDDLE]]
    scores = plotting.heatmap([[0.0, 3.0]]).plotly().data[0]
    assert (scores.zmin, scores.zmax) == (0.0, 3.0)
    assert scores.colorscale[0][1] == style.DIVERGING[style.MIDDLE], "zero has the same colour"
    assert plotting.heatmap([[-1.0, 3.0]], limit=5).plotly().data[0].zmax == 5.0


def test_side_by_side_shares_the_scale_or_not() -> None:
    pair = {"a": plotting.heatmap([[-1.0, 1.0]]), "b": plotting.heatmap([[-4.0, 2.0]])}
    shared = plotting.side_by_side(pair).plotly().data
    assert [t.zmax for t in shared] == [4.0, 4.0]
    apart = plotting.side_by_side(pair, share_scale=False).plotly().data
    assert [t.zmax for t in apart] == [1.0, 4.0]
    assert [t.showscale for t in apart] == [True, True]
    lines = {"a": plotting.line([1.0, 2.0]), "b": plotting.line([1.0, 9.0])}
    assert plotting.side_by_side(lines).plotly().layout.yaxis2.matches == "y"
    assert plotting.side_by_side(lines, share_scale=False).plotly().layout.yaxis2.matches is None


def test_static_picture_shows_the_colours() -> None:
    """One dark blue and one dark red cell of the same size, on nearly white."""
    picture = pixels(plotting.heatmap([[1.0, -1.0], [0.0, 0.0]]).png())
    hues = {
        name: np.all(np.abs(picture[..., :3] - np.array(rgb) / 255) < 0.02, axis=-1).sum()
        for name, rgb in (("blue", (0x05, 0x30, 0x61)), ("red", (0x67, 0x00, 0x1F)))
    }
    assert hues["blue"] > 1000
    assert hues["red"] > 1000


@pytest.mark.parametrize(
    ("text", "background", "contrast"),
    [
        *((style.TEXT, page, 4.2) for page in ("#ffffff", "#0d1117", "#111111")),
        (style.INK, style.PAPER, 7),  # WCAG's AAA; its AA asks for 4.5
    ],
)
def test_text_is_readable_on_light_and_dark_pages(
    text: str, background: str, contrast: float
) -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    low, high = sorted([luminance(text), luminance(background)])
    assert (high + 0.05) / (low + 0.05) >= contrast


# --- stability -------------------------------------------------------------------------------


@given(
    st.lists(st.floats(-5, 5), min_size=4, max_size=30),
    st.integers(0, 2**31 - 1),
)
@settings(max_examples=100, deadline=None)
def test_ranking_does_not_follow_noise(values: list[float], seed: int) -> None:
    """Values that print alike keep the order of their places, whatever noise sits on them.

    Noise may only matter to values that lie on a rounding border, which are moved off it first.
    """
    array = np.array([rounded(v, 5.0) for v in values])
    noise = np.random.default_rng(seed).uniform(-1e-7, 1e-7, len(array))
    assert ranked(array + noise, 5, True, 5.0) == ranked(array, 5, True, 5.0)
    assert ranked(array + noise, 5, False, 5.0) == ranked(array, 5, False, 5.0)


def test_summary_does_not_follow_noise() -> None:
    values = np.zeros((4, 4))
    values[1, 2] = values[3, 0] = 1.6
    clean = plotting.head_heatmap(values, "Twins").summary
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(0, 1e-7, values.shape)
        assert plotting.head_heatmap(values + noise, "Twins").summary == clean
    assert "L1H2 1.60; L3H0 1.60; L0H0 0" in clean


@pytest.mark.parametrize("count", [2, 6, 9])
def test_no_name_of_a_legend_is_cut_off(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    legend = static._legend

    def kept(figure: Any, arrangement: Any) -> None:
        legend(figure, arrangement)
        drawn.append(figure)

    monkeypatch.setattr(static, "_legend", kept)
    curves = {f"a series with a long name, {i}": [0.0, i] for i in range(count)}
    assert plotting.line(curves, ["a", "b"], "Lines").png()
    (figure,) = drawn
    box = figure.legends[0].get_window_extent()
    plot = figure.axes[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
    assert plot.y1 <= box.y0 and box.y1 <= figure.bbox.y1


def test_beside_a_large_group_a_small_one_is_noise() -> None:
    names, groups = [f"L{i // 4}H{i % 4}" for i in range(8)], ["early"] * 4 + ["late"] * 4
    x, y = np.array([4.2, 1.5, 2, 3, 0, 0, 0, 0]), np.array([1.5, 4.2, 2, 3, 0, 0, 0, 0])
    clean = plotting.scatter(x, y, names, groups=groups).summary
    assert "late, 4 points\n  highest: L1H0 0; L1H1 0" in clean
    assert "correlation of x and y: undefined" in clean
    for seed in range(5):
        noise = 2e-6 * np.random.default_rng(seed).normal(size=(2, 8))
        assert plotting.scatter(x + noise[0], y + noise[1], names, groups=groups).summary == clean


def test_two_percent_show_in_the_summary() -> None:
    values = np.random.default_rng(0).normal(0, 1, (4, 6))
    assert (
        plotting.head_heatmap(values * 1.02).summary.splitlines()[2:]
        != plotting.head_heatmap(values).summary.splitlines()[2:]
    )


@pytest.mark.parametrize(
    ("value", "scale", "printed"),
    [
        (2.98545, 3.0, "2.99"),
        (-0.0341, 3.0, "-0.034"),
        (1e-7, 3.0, "0"),
        (-1e-7, 1e-6, "0"),
        (0.000123456, 0.001, "0.00012"),
        (300.4, 300.4, "300.4"),
        (12345.6, 12345.6, "12345.6"),
        (float("nan"), 1.0, "nan"),
        (0.0, 0.0, "0"),
    ],
)
def test_number(value: float, scale: float, printed: str) -> None:
    assert number(value, scale) == printed


def test_missing_values_are_left_out_and_counted() -> None:
    figure = plotting.heatmap([[1.0, float("nan")], [3.0, -2.0]])
    assert "missing: 1" in figure.summary
    assert "mean: 0.667" in figure.summary
    assert figure.plotly().data[0].z[0][1] is None
    figure.png()


# --- input -----------------------------------------------------------------------------------


def test_inputs_of_every_type_give_the_same_figure() -> None:
    rows = [[1.0, 2.0], [3.0, 4.5]]
    forms: list[Any] = [
        rows,
        np.array(rows, dtype=np.float32),
        torch.tensor(rows, dtype=torch.bfloat16, requires_grad=True),
    ]
    summaries = {plotting.heatmap(form).summary for form in forms}
    assert len(summaries) == 1
    scalars = [torch.tensor(1.0), torch.tensor(2.5)]
    assert plotting.bar(scalars).summary == plotting.bar([1.0, 2.5]).summary


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: plotting.heatmap(np.zeros(3)), "2 axes"),
        (lambda: plotting.heatmap(np.zeros((8, 3, 3))), "average over"),
        (lambda: plotting.heatmap([["a", "b"]]), "must be numbers"),
        (lambda: plotting.heatmap([[1.0], [1.0, 2.0]]), "equal rows"),
        (lambda: plotting.heatmap(np.zeros((0, 3))), "empty"),
        (lambda: plotting.heatmap(np.zeros((2, 3)), x=["a"]), "needs 3 labels"),
        (lambda: plotting.line([1.0, 2.0], ["a"]), "needs 2 labels"),
        (lambda: plotting.line({"a": [1.0, 2.0], "b": [1.0]}), "2 are needed"),
        (lambda: plotting.bar([1.0, 2.0], error=[0.1]), "2 are needed"),
        (lambda: plotting.bar([1.0, 2.0], error=[[0.1, 0.1]] * 3), "[2 point]"),
        (lambda: plotting.bar([1.0, 2.0], error=[[0.1, 0.1], [0.1, -0.1]]), "negative"),
        (lambda: plotting.line([1.0, 2.0], error=[[0.1], [0.1]]), "2 are needed"),
        (lambda: plotting.scatter([1.0], [1.0, 2.0]), "as many"),
        (lambda: plotting.scatter([1.0], [1.0], groups=["a", "b"]), "one a point"),
        (lambda: plotting.histogram([1.0, float("inf")]), "infinity"),
        (lambda: plotting.attention(TOKENS[:3], causal_pattern()), "drop its padding"),
        (lambda: plotting.attention(TOKENS, causal_pattern().log()), "hook_attn_scores"),
        (lambda: plotting.attention(TOKENS, causal_pattern(), query=9), "query 9"),
        (
            lambda: plotting.attention(cast(Any, causal_pattern()), TOKENS),
            "attention(tokens, patterns)",
        ),
        (lambda: plotting.attention(cast(Any, np.eye(6)), TOKENS), "attention(tokens, patt"),
        (lambda: plotting.side_by_side({}), "at least one"),
        (lambda: plotting.bar([1.0]).save("figure.pdf"), "'figure.pdf' ends in none"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(make: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_attention_as_its_dtype_rounds_it(dtype: torch.dtype) -> None:
    length = 60
    pattern = causal_pattern(3, length).to(dtype)
    tokens = [str(i) for i in range(length)]
    assert "59" in plotting.attention(tokens, pattern).summary
    with pytest.raises(ValueError, match="not causal attention"):
        plotting.attention(tokens, pattern * 1.05)


def test_error_bars_of_two_lengths() -> None:
    def bars(error: Any) -> dict[str, Any]:
        figure = plotting.bar([1.0, 2.0], error=error)
        return figure._plotly_json()["data"][0]["error_y"]

    assert bars([0.1, 0.2]) == bars([[0.1, 0.2], [0.1, 0.2]])
    assert "arrayminus" not in bars([0.1, 0.2])
    uneven = bars(torch.tensor([[0.1, 0.2], [0.3, 0.4]]))
    assert (uneven["arrayminus"], uneven["array"]) == ([0.1, 0.2], [0.3, 0.4])
    assert uneven["symmetric"] is False
    same, apart = (
        plotting.bar([1.0, 2.0], error=error).png()
        for error in ([0.3, 0.4], [[0.1, 0.2], [0.3, 0.4]])
    )
    assert not np.array_equal(pixels(same), pixels(apart))


def test_square_axes_have_one_range_and_one_length() -> None:
    one = plotting.scatter([0.0, 1.0], [-3.0, 0.5], square=True, diagonal=True)
    other = plotting.scatter([0.0, 7.0], [0.0, 0.5], square=True)
    layout = one._plotly_json()["layout"]
    assert layout["xaxis"]["range"] == layout["yaxis"]["range"] == [-3.2, 1.2]
    (line,) = layout["shapes"]
    assert [line["x0"], line["y1"]] == pytest.approx([-3.2, 1.2])
    (place,) = one._arrangement.places
    assert place.width == place.height
    for share, ranges in ((True, [[-3.5, 7.5]] * 2), (False, [[-3.2, 1.2], [-0.35, 7.35]])):
        both = plotting.side_by_side({"a": one, "b": other}, share_scale=share)
        layout = both._plotly_json()["layout"]
        assert [layout["xaxis"]["range"], layout["xaxis2"]["range"]] == ranges
        assert [layout["yaxis"]["range"], layout["yaxis2"]["range"]] == ranges
    layout = plotting.scatter([0.0, 1.0], [-3.0, 0.5])._plotly_json()["layout"]
    assert "range" not in layout["xaxis"]


# --- pages -----------------------------------------------------------------------------------


def test_page_figure_without_scripts_shows_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plotting.STATIC_VARIABLE, "1")
    for kind, figure in every_kind().items():
        data, _ = figure._repr_mimebundle_()
        made = plotting.page_figure(data)
        assert made is not None
        assert made.count("<img ") == 1
        assert 'alt="' in made
        assert f'data-kind="{"attention" if kind == "attention" else "plotly"}"' in made
        script = re.search(r"<script[^>]*>(.*?)</script>", made, re.DOTALL)
        assert script is not None
        json.loads(script[1])
        assert len(made) < 200_000
    assert plotting.page_figure({"text/plain": "3"}) is None
    listed = {"text/plain": ["Heat map\n", "x"], PLOTLY_MIME: {"data": [], "layout": {}}}
    assert "Heat map\nx" in (plotting.page_figure(listed) or "")


def sources(page: str) -> list[str]:
    """Where the elements of a page come from; what plotly's own script holds is no element."""
    found: list[str] = []

    class Elements(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            linked = "href" if tag == "link" else "src"
            found.extend(value or "" for name, value in attrs if name == linked)

    Elements().feed(page)
    return found


@pytest.mark.parametrize("kind", ["heatmap", "attention"])
def test_a_figure_is_saved_in_each_form(kind: str, tmp_path: Path) -> None:
    figure = every_kind()[kind]
    assert figure.save(tmp_path / "a.txt").read_text() == figure.summary + "\n"
    picture = figure.save(str(tmp_path / "a.png"))
    assert picture == tmp_path / "a.png"
    assert np.array_equal(pixels(picture.read_bytes()), pixels(figure.png()))
    made = figure.save(tmp_path / "a.html").read_text(encoding="utf-8")
    assert made.startswith("<!DOCTYPE html>")
    assert made.count('<figure class="ioi-figure"') == 1
    assert ("CircuitsVis = CircuitsVis" in made) == (kind == "attention")
    assert "Plotly.react(" in made
    assert all(source.startswith("data:") for source in sources(made))
    assert re.search(r"<title>(.*)</title>", made)[1] == html.escape(figure.title)  # type: ignore[index]


def test_tokens_cannot_break_out_of_a_script() -> None:
    assert "<" not in script_json({"token": "</script><script>alert(1)"})
    hostile = ["</script>", "<!--", '"']
    figure = plotting.attention(hostile, causal_pattern(1, 3), ["L0H0"], "</script>")
    data, _ = figure._repr_mimebundle_()
    assert data["text/html"].count("</script>") == 1


def test_page_scripts_are_complete_and_offline() -> None:
    scripts = plotting.page_scripts()
    assert list(scripts) == ["plotly.min.js", "circuitsvis.js", "figures.js"]
    assert len(scripts["plotly.min.js"]) > 1_000_000
    assert "window.CircuitsVis = CircuitsVis" in scripts["circuitsvis.js"]
    assert "</script" not in scripts["circuitsvis.js"]
    assert "https://" not in scripts["figures.js"]
    assert "CircuitsVis" in plotting.offline_scripts()._repr_html_()


def test_details_are_folded_into_the_note() -> None:
    figure = plotting.head_heatmap(np.eye(2), "Heads").with_note("A note.", "On <8> prompts.")
    assert figure.summary.splitlines()[1] == "A note."
    assert figure.summary.splitlines()[-1] == "On <8> prompts."
    notes = {n["text"]: n.get("hovertext") for n in figure._plotly_json()["layout"]["annotations"]}
    assert notes == {"Heads": None, "A note.": "On &lt;8&gt; prompts."}
    assert figure._arrangement == figure.with_note("A note.")._arrangement


def test_a_series_without_a_name_is_not_in_the_legend() -> None:
    panels = {"two": plotting.line({"a": [1, 2], "b": [2, 3]}), "one": plotting.line([3, 4])}
    traces = plotting.side_by_side(panels, "Both")._plotly_json()["data"]
    assert [trace["showlegend"] for trace in traces] == [True, True, False]


def test_small_tables_have_their_numbers_written_in() -> None:
    small = plotting.heatmap([[1.0, -0.001], [0.25, float("nan")]])
    written, names = [["1.00", "0.00"], ["0.25", ""]], [["0, 0", "0, 1"], ["1, 0", "1, 1"]]
    trace = small._plotly_json()["data"][0]
    assert (trace["texttemplate"], trace["text"], trace["hovertext"]) == ("%{text}", written, names)
    assert trace["hovertemplate"].startswith("%{hovertext}: ")
    plain = plotting.heatmap([[1.0, -0.001], [0.25, float("nan")]], numbers=False)
    trace = plain._plotly_json()["data"][0]
    assert "texttemplate" not in trace and trace["text"] == names
    assert trace["hovertemplate"].startswith("%{text}: ")
    assert not np.array_equal(pixels(small.png()), pixels(plain.png()))
    assert plotting.head_heatmap(np.zeros((12, 12))).panels[0].numbers is None
    assert plotting.heatmap(np.zeros((6, 6)), numbers=True).panels[0].numbers is not None


def test_points_that_must_be_named_are() -> None:
    crowd = [0.0, 1.0, 2.0, *[0.01] * 9]
    pictures = [
        plotting.scatter(crowd, crowd, list("abcdefghijkl"), named=named).png()
        for named in ((), ("f",), ("none",))
    ]
    assert not np.array_equal(pixels(pictures[0]), pixels(pictures[1]))
    assert np.array_equal(pixels(pictures[0]), pixels(pictures[2]))


def test_a_line_that_another_would_hide_is_wider() -> None:
    on_it, apart = [0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.0]  # these cross, and hide nothing
    panel = plotting.line({"under": on_it, "other": apart, "over": [0.0, 1.0, 2.0, 0.5]}).panels[0]
    under, other, over = line_widths(panel)
    assert under > other == over
    widths = [trace["line"]["width"] for trace in Figure("", (panel,))._plotly_json()["data"]]
    assert widths[0] > widths[1] == widths[2]


def test_zero_is_drawn_where_values_lie_on_both_sides_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    around, above = np.linspace(-1, 1, 50), np.linspace(1, 3, 50)

    def drawn() -> list[bytes]:
        scattered = [plotting.scatter(values, above).png() for values in (around, above)]
        return [*scattered, *(plotting.histogram(values).png() for values in (around, above))]

    with_line = drawn()
    monkeypatch.setattr(static, "_zero_lines", lambda *_: None)
    without = drawn()
    assert [one != other for one, other in zip(with_line, without, strict=True)] == [1, 0, 1, 0]


def test_with_note_changes_only_the_note() -> None:
    figure = plotting.head_heatmap(np.eye(2), "Heads")
    noted = figure.with_note("Read this.")
    assert noted.summary.splitlines()[1] == "Read this."
    assert figure.summary.splitlines()[1] != "Read this."
