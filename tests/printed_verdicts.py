"""Sentences that notebooks print of the model at hand, held against the numbers they speak of.

A cell prints the branch that holds, and near it the numbers: in the same text, or in the table
below. Here the two are compared, in the stored outputs and after a run on the other bundled model,
so that a sentence which is true of one model alone is found. `wrong` returns what does not hold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise

from nbformat import NotebookNode
from scipy import stats

from notebooks.tools.stored_outputs import code_cells, joined

NUMBER = r"(-?\d+\.\d+)"


@dataclass
class Table:
    """A DataFrame as a cell shows it: {row: {column: text}}."""

    rows: dict[str, dict[str, str]]

    def column(self, name: str) -> dict[str, float]:
        """The first number in each cell of a column, where there is one."""
        found = {row: re.search(NUMBER, cells.get(name, "")) for row, cells in self.rows.items()}
        return {row: float(match[1]) for row, match in found.items() if match}


class _Reader(HTMLParser):
    """The rows of a table, each a list of its cells' texts."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td") and self.rows:
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


@dataclass
class Shown:
    """What one cell shows: the text it printed, and its table if it has one."""

    text: str
    table: Table = field(default_factory=lambda: Table({}))


def _shown(cell: NotebookNode) -> Shown:
    found = Shown("")
    for output in cell.outputs:
        if output.get("name") == "stdout":
            found.text += joined(output.text)
        html = joined(output.get("data", {}).get("text/html", ""))
        if "<table" in html:
            reader = _Reader()
            reader.feed(html)
            header, *rows = [row for row in reader.rows if len(row) > 1]
            found.table = Table(
                {row[0]: dict(zip(header[1:], row[1:], strict=False)) for row in rows}
            )
    return found


Holds = Callable[[re.Match[str], Shown], bool]


@dataclass(frozen=True)
class Verdict:
    """A sentence, found by a pattern that fits each of its branches, and when it holds."""

    notebook: str
    says: str
    holds: Holds
    always: bool = True
    """Whether it is printed on every model, in one branch or another."""


def _who_writes(said: re.Match[str], shown: Shown) -> bool:
    layers = re.search(rf"attention layers: {NUMBER}", shown.text)
    mlps = re.search(rf"MLPs: {NUMBER}", shown.text)
    assert layers and mlps
    return (said[1] == "MLPs") == (float(mlps[1]) > float(layers[1]))


def _most_is_lost(said: re.Match[str], shown: Shown) -> bool:
    lost = shown.table.column(f"{said[1]}: logits lost")
    single = {name: x for name, x in lost.items() if re.fullmatch(r"L\d+H\d+", name)}
    return said[2] == max(single, key=lambda name: single[name])


def _orders_are_divided(said: re.Match[str], shown: Shown) -> bool:
    most = re.findall(r"(\w+): most is lost without (\S+);", shown.text)
    lost = {order: shown.table.column(f"{order}: logits lost") for order, _ in most}
    divided = all(
        lost[order][name] > 2 * lost[other][name]
        for (order, name), (other, _) in zip(most, reversed(most), strict=True)
    )
    return divided == (said[1] == "these heads divide")


def _losses_are_read(said: re.Match[str], shown: Shown) -> bool:
    """A loss that is read as indirect is much larger than what DLA predicts of it, or opposite."""
    lost, direct = (
        {order: shown.table.column(f"{order}: {what}") for order in ("ABBA", "BABA")}
        for what in ("logits lost", "attribution from S2")
    )
    for head, cells in shown.table.rows.items():
        if cells["reading"] in ("indirect", "in part direct"):
            order = max(lost, key=lambda order: abs(lost[order][head]))
            share = direct[order][head] / lost[order][head]
            if (cells["reading"] == "in part direct") != (0.25 < share < 1):
                return False
    return True


def _sums_are_told(said: re.Match[str], shown: Shown) -> bool:
    low, high, told = float(said[2]), float(said[3]), said[4]
    return (
        ("either brings" in told) == (high > 1.1)
        and ("only both bring" in told) == (low < 0.9)
        and ("END has" in told) == (0.9 <= low <= high <= 1.1)
    )


def _is_nothing(said: re.Match[str], shown: Shown) -> bool:
    """Every counterpart whose difference is within two errors is named, and no other."""
    named = set(re.findall(r"(\w+): the logit difference is within two", shown.text))
    cells = {row: cells["logit difference"] for row, cells in shown.table.rows.items()}
    told = {row: re.fullmatch(rf"{NUMBER} ± {NUMBER}", text) for row, text in cells.items()}
    return named == {r for r, t in told.items() if t and abs(float(t[1])) < 2 * float(t[2])}


def _carries(said: re.Match[str], shown: Shown) -> bool:
    """What carries the order changes under it on one of the orders at least; so with names."""
    asked = {"where": ["swap_order"], "which name": ["random_names"]}
    asked["both"] = asked["where"] + asked["which name"]
    for cells in shown.table.rows.values():
        for counterpart in asked.get(cells["it carries"], []):
            if not any(abs(float(x)) >= 0.1 for x in cells[counterpart].split(" / ")):
                return False
    return True


def _name_is_read(said: re.Match[str], shown: Shown) -> bool:
    """The most by which a name is read is the largest entry beyond two errors."""
    entries = [
        (abs(float(value)), float(error))
        for row, cells in shown.table.rows.items()
        if row.startswith(f"{said[1]},")
        for text in cells.values()
        for value, error in [re.findall(NUMBER, text)]
    ]
    sure = max((value for value, error in entries if value > 2 * error + 0.02), default=0.0)
    return (said[2] == "is not (two errors)") == (float(said[3]) == 0) and float(said[3]) >= sure


def _messengers_say(said: re.Match[str], shown: Shown) -> bool:
    clean, says = 0.0, []
    for word, costs in re.findall(r"inverting (a \w+) alone costs (.*)", shown.text):
        told = [(float(x), float(e)) for x, e in re.findall(rf"{NUMBER} ± {NUMBER}", costs)]
        opposite = any(
            x * y < 0 for (x, e), (y, f) in pairwise(told) if abs(x) > 2 * e and abs(y) > 2 * f
        )
        if opposite != ("orders disagree" in costs):
            return False
        says.append((word, min(x for x, _ in told)))
    clean = max(x for _, x in says)  # one of the two at least tells nearly everything
    return all((word in said[1]) == (x > 0.1 * clean) for word, x in says)


def _is_misled(said: re.Match[str], shown: Shown) -> bool:
    falls = []
    for order in ("ABBA", "BABA"):
        right = shown.table.column(f"{order}: share with IO above S")
        falls.append(right["your model, as before"] - right["your model, IO mentioned twice"])
    return (said[1] == "is misled by") == (max(falls) > 0.1)


def _falls_back(said: re.Match[str], shown: Shown) -> bool:
    before, twice = ("your model, as before", "your model, IO mentioned twice")
    columns = [
        (
            shown.table.column(f"{o}: share with IO above S"),
            shown.table.column(f"{o}: logit difference"),
        )
        for o in ("ABBA", "BABA")
    ]
    right = [shares[twice] for shares, _ in columns]
    unsure = max(abs(x[twice]) for _, x in columns) < min(abs(x[before]) for _, x in columns)
    return min(right) < 0.25 and max(right) > 0.75 and unsure == (said[1] == ", less sure.")


def _copies(said: re.Match[str], shown: Shown) -> bool:
    within = "not shown to copy" in shown.text
    return within == (float(said[1]) < 2 * float(said[2]))


def _paths_are_used(said: re.Match[str], shown: Shown) -> bool:
    used = set(re.findall(r"(L\d+H\d+)'s ([qk]) reads (L\d+H\d+)", shown.text))
    expected = set()
    for row, cells in shown.table.rows.items():
        heads = re.search(r"(L\d+H\d+) → (L\d+H\d+)", row)
        assert heads
        for side in "qk":
            if float(cells["score"]) - float(cells[f"cut from {side}, mean"]) > 0.1:
                expected.add((heads[2], side, heads[1]))
    return used == expected


def _follows(said: re.Match[str], shown: Shown) -> bool:
    before, moved, old = (
        shown.table.column(c)
        for c in ("moved place, before", "moved place, after", "old place, after")
    )
    follows = all(moved[k] - before[k] > 0.1 for k in moved)
    wholly = all(moved[k] > old[k] for k in moved)
    expected = "follows the pointer" if follows else "does not follow the pointer"
    return said[1] == expected and bool(said[2]) == (follows and not wholly)


def _scale_is_blind(said: re.Match[str], shown: Shown) -> bool:
    """Where even the model itself stands near chance, overlaps are told and no model is nearer."""
    return (said[2] == "Hardly above chance") == (float(said[1]) < 0.5)


def _new_seeds_are_tested(said: re.Match[str], shown: Shown) -> bool:
    new = {recipe: int(cell) for recipe, cell in shown.table.rows["new seeds"].items()}
    p = stats.fisher_exact([[new[said[1]], 0], [0, new[said[2]]]]).pvalue
    if said[4]:  # pairs of twins
        p = min(1.0, 2 / 2 ** min(new[said[1]], new[said[2]]))
    return float(said[3]) == float(f"{p:.2g}")


def _lowest_score_is_best(said: re.Match[str], shown: Shown) -> bool:
    scores = shown.table.column("mean score")
    return said[1] == min(scores, key=lambda who: scores[who])


def _circuit_falls(said: re.Match[str], _: Shown) -> bool:
    model, circuit = float(said[1]), float(said[2])
    if said[3].startswith("the model does not fall"):
        return model > -1  # no more than is called no change
    return model < 0 and ("NOT" in said[3]) == (abs(circuit - model) >= 0.25 * abs(model))


VERDICTS = (
    Verdict("01", r"(MLPs|attention layers) write most of it", _who_writes),
    Verdict("01", r"(ABBA|BABA): most is lost without (\S+);", _most_is_lost),
    Verdict("01", r"(these heads divide|they do not divide) the orders", _orders_are_divided),
    Verdict("01", r"errors: standard errors over 4 pairs", _losses_are_read),
    Verdict("02", rf"(ABBA|BABA): {NUMBER} to {NUMBER}, (.*)", _sums_are_told),
    Verdict("02", r"the logit difference is within two", _is_nothing, always=False),
    Verdict("02", r"Where: swap_order over half", _carries),
    Verdict(
        "02",
        rf"(MLP \d+): the name (is|is, a little,|is not \(.*?\)) read from it \(.*, {NUMBER}",
        _name_is_read,
    ),
    Verdict("03", r"so the messengers say ([^;]+);", _messengers_say),
    Verdict("03", r"your model (is misled by|hardly notices) the repetition", _is_misled),
    Verdict("03", r"mostly falls back on one place in the sentence(.*)", _falls_back, always=False),
    Verdict("04", rf"shuffled minus the same: {NUMBER} ± {NUMBER}", _copies),
    Verdict(
        "04",
        r"points k further; \S+ (follows the pointer|does not follow the pointer)( in part)?",
        _follows,
        always=False,
    ),
    Verdict(
        "04", r"without a repetition costs over 0.1 of the score", _paths_are_used, always=False
    ),
    Verdict("11", r"lowest mean score, which is best: (.+?);", _lowest_score_is_best),
    Verdict(
        "11", rf"control to attack: model \+?{NUMBER}, circuit \+?{NUMBER}: (.*)", _circuit_falls
    ),
    Verdict(
        "13",
        rf"itself, on other prompts: {NUMBER}\n(Hardly above chance|clearly nearer)",
        _scale_is_blind,
    ),
    Verdict(
        "13",
        r"of \d+ (\S+) and 0 of \d+ (\S+), claims: .* p = (\S+?)(, by sign)?\n",
        _new_seeds_are_tested,
    ),
)


def _said(verdict: Verdict, notebook: NotebookNode) -> Iterator[tuple[re.Match[str], Shown]]:
    for cell in code_cells(notebook):
        shown = _shown(cell)
        for match in re.finditer(verdict.says, shown.text):
            yield match, shown


def wrong(number: str, notebook: NotebookNode) -> list[str]:
    """Sentences of the notebook with this number that its own numbers contradict, or that it does
    not print in any branch."""
    problems = []
    for verdict in (v for v in VERDICTS if v.notebook == number):
        said = list(_said(verdict, notebook))
        if verdict.always and not said:
            problems.append(f"printed nowhere: {verdict.says}")
        problems += [match[0] for match, shown in said if not verdict.holds(match, shown)]
    return problems
