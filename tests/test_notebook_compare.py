"""The comparison of outputs: float noise passes, a changed number or word does not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notebooks.tools.compare import compare_outputs, compare_text, is_figure

TABLE = """\
      layer 0  layer 1
head
L0H0   0.5312  -0.0021
L1H3  -1.2207   2.4450
"""


def printed(text: str, name: str = "stdout") -> dict[str, Any]:
    """A stream output."""
    return {"output_type": "stream", "name": name, "text": text}


def displayed(**forms: Any) -> dict[str, Any]:
    """A display output, its forms by short name."""
    names = {
        "plain": "text/plain",
        "html": "text/html",
        "png": "image/png",
        "plotly": "application/vnd.plotly.v1+json",
        "widget": "application/vnd.jupyter.widget-view+json",
    }
    data = {names[key]: value for key, value in forms.items()}
    return {"output_type": "display_data", "data": data, "metadata": {}}


@pytest.mark.parametrize(
    ("fresh", "said"),
    [
        (TABLE.replace("0.5312", "0.7"), "stored 0.5312, now 0.7"),
        (
            TABLE.replace("0.5312", "0.7").replace("-1.2207", "3.1"),
            "stored 0.5312, now 0.7; differences in this output besides: 1",
        ),
        (TABLE.replace("head", "tail").replace("2.4450", "9.0"), "output besides: 1"),
        (TABLE.replace("head", "tail") + "5", "stored 6 numbers, now 7"),
    ],
)
def test_the_first_difference_is_shown_and_the_others_are_counted(fresh: str, said: str) -> None:
    assert (compare_text(TABLE, fresh) or "").endswith(said)


@pytest.mark.parametrize(
    ("stored", "fresh"),
    [
        ("3.5519999", "3.5520001"),
        ("logit difference 3.552 +- 0.031", "logit difference 3.551 +- 0.031"),
        ("0.35", "0.36"),  # a value at a rounding border: one unit of the last digit
        ("tensor(0.0000)", "tensor(-0.0000)"),
        ("a   0.001", "a  -0.000"),  # and the column moves by a blank
        ("1.2e-07", "1.3e-07"),
        ("-0.5", "\u22120.5"),
        ("mean 0.0", "mean 0"),
        (TABLE, TABLE.replace("2.4450", "2.4451")),
    ],
)
def test_float_noise_is_equal(stored: str, fresh: str) -> None:
    assert compare_text(stored, fresh) is None
    assert compare_text(fresh, stored) is None


@pytest.mark.parametrize(
    ("stored", "fresh"),
    [
        ("3.552", "3.623"),  # 2 %
        ("3.552", "3.481"),
        ("3.552", "-3.552"),
        ("12 heads", "13 heads"),  # whole numbers are counts, ranks, layers: exact
        ("L9H9", "L9H6"),
        ("IO preferred: True", "IO preferred: False"),
        ("nan", "0.5"),
        ("1.5 2.5", "1.5 2.5 3.5"),
        ("1.5 2.5 3.5", "1.5 2.5"),
        ("torch 2.13.0", "torch 2.13.1"),
        ("L9H9 0.51\nL9H6 0.48", "L9H6 0.48\nL9H9 0.51"),
        (TABLE, TABLE.replace("L1H3", "L1H2")),
        (TABLE, TABLE.replace("-1.2207", "1.2207")),
    ],
)
def test_a_change_is_found(stored: str, fresh: str) -> None:
    assert compare_text(stored, fresh)
    assert compare_text(fresh, stored)


def test_many_rounding_steps_are_a_change() -> None:
    """Two digits hide 2 % in one number, but not in twenty."""
    values = [0.20 + 0.01 * i for i in range(20)]
    stored, fresh = (" ".join(f"{v * k:.2f}" for v in values) for k in (1, 1.02))
    assert "last digit" in (compare_text(stored, fresh) or "")


@given(
    values=st.lists(st.floats(-1e4, 1e4).filter(lambda v: abs(v) > 1e-2), min_size=1),
    digits=st.integers(4, 8),
)
def test_noise_passes_and_two_per_cent_fail(values: list[float], digits: int) -> None:
    def show(factor: float) -> str:
        return "values: " + ", ".join(f"{v * factor:.{digits}e}" for v in values)

    assert compare_text(show(1), show(1 + 1e-5)) is None
    assert compare_text(show(1), show(1.02))
    assert compare_text(show(1), show(0.98))


@given(st.text(), st.text())
def test_comparison_is_symmetric_and_reflexive(one: str, other: str) -> None:
    assert compare_text(one, one) is None
    assert (compare_text(one, other) is None) == (compare_text(other, one) is None)


def test_printed_messages_are_merged() -> None:
    assert not compare_outputs([printed("a\nb\n")], [printed("a\n"), printed("b\n")])


def test_missing_and_extra_outputs() -> None:
    assert "missing" in compare_outputs([printed("a")], [])[0]
    assert "extra" in compare_outputs([], [printed("a")])[0]
    assert "extra" in compare_outputs([displayed(plain="a")], [displayed(plain="a")] * 2)[0]
    assert compare_outputs([printed("a")], [displayed(plain="a")])


def test_an_error_is_a_difference() -> None:
    error = {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}
    assert compare_outputs([printed("a")], [printed("a"), error])


def test_progress_bars_pass_and_other_warnings_do_not() -> None:
    bar = printed(
        "\r 33%|###  | 1/3 [00:00<00:00, 9.0it/s]\r100%|###| 3/3 [00:01<00:00]\n", "stderr"
    )
    widget = displayed(widget={"model_id": "1"}, plain="  0%| | 0/3 [00:00<?, ?it/s]")
    assert not compare_outputs([printed("a")], [printed("a"), bar, widget])
    warning = printed("UserWarning: this is slow\n", "stderr")
    assert "standard error" in compare_outputs([printed("a")], [printed("a"), warning])[0]


def test_a_figure_is_its_summary() -> None:
    stored = displayed(plain="Heat map: heads\nhighest: L9H9 1.52", png="iVBOR")
    fresh = displayed(plain="Heat map: heads\nhighest: L9H9 1.52", plotly={"data": [1]})
    assert not compare_outputs([stored], [fresh])
    changed = displayed(plain="Heat map: heads\nhighest: L9H9 1.56", plotly={"data": [1]})
    assert compare_outputs([stored], [changed])


@pytest.mark.parametrize(
    "figure",
    [
        displayed(png="iVBOR"),
        displayed(png="iVBOR", plain="<Figure size 640x480 with 1 Axes>"),
        displayed(plotly={"data": []}, plain="Figure({'data': []})"),
        displayed(html="<script>draw()</script>", plain="<IPython.core.display.HTML object>"),
        displayed(html="<div id=a></div><script>x</script>", plain="<a.b.RenderedHTML at 0x7f12>"),
    ],
)
def test_a_figure_without_summary_fails(figure: dict[str, Any]) -> None:
    assert is_figure(figure)
    assert "no text summary" in " ".join(compare_outputs([figure], [figure]))


def test_html_tables_are_compared_without_their_attributes() -> None:
    def table(identifier: str, value: str) -> dict[str, Any]:
        style = f"<style>#T_{identifier} {{color: red}}</style>"
        cell = f"<td id='T_{identifier}'>{value}</td>"
        return displayed(plain="<Styler>", html=f"{style}<table><tr>{cell}</tr></table>")

    assert not compare_outputs([table("a1", "0.5312")], [table("b2", "0.5313")])
    assert compare_outputs([table("a1", "0.5312")], [table("a1", "0.5412")])
    assert not is_figure(table("a1", "0.5"))


def test_only_version_numbers_are_free_in_the_set_up_cell() -> None:
    old = [printed("ioi-mini (3 layers), torch 2.13.0+cpu, Python 3.11.7")]
    newer = [printed("ioi-mini (3 layers), torch 2.6.0, Python 3.13.0")]
    assert compare_outputs(old, newer)
    assert not compare_outputs(old, newer, versions=True)
    other = [printed("ioi-plain (2 layers), torch 2.6.0, Python 3.13.0")]
    assert compare_outputs(old, other, versions=True)
