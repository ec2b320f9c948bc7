"""The guard over stored outputs: each thing that would escape comparison, or must not be stored."""

from __future__ import annotations

import pytest
from nbformat import NotebookNode

from notebooks.tools.stored_outputs import problems
from tests.sample_notebooks import code, figure, notebook, printed, text

HOME = "/".join(["", "home", "ada", "ioi", "data.json"])


def test_a_sound_notebook_has_no_problems() -> None:
    sound = notebook(
        text("# Title"),
        code("print(1.5)", [printed("1.5\n")]),
        code("plot()", [figure()]),
        code("check()", [printed("01.1: not attempted yet\n")], ["exercise"]),
        code("import torch"),
    )
    assert problems(sound) == []


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        (code("  "), "empty"),
        (code("# NBVAL_IGNORE_OUTPUT\nprint(1)", [printed("1\n")]), "NBVAL_IGNORE_OUTPUT"),
        (code("# NBVAL_SKIP\nprint(1)"), "NBVAL_SKIP"),
        (code("print(1)", [printed("1\n")], ["nbval-ignore-output"]), "nbval-ignore-output"),
        (code("1/0", tags=["raises-exception"]), "raises-exception"),
        (code("%%capture\nprint(1)"), "%%capture"),
        (code("check()", [printed("01.1: correct\n")], ["exercise"]), "not attempted yet"),
        (code("load()", [printed("UserWarning: slow", "stderr")]), "standard error"),
        (code("plot()", [figure(None)]), "no text summary"),
        (code("plot()", [figure("<Figure size 4x4 with 1 Axes>")]), "no text summary"),
        (code("print(p)", [printed(f"saved to {HOME}\n")]), "machine's path"),
        (code("print(p)", [printed("saved to C:\\Users\\ada\n")]), "machine's path"),
        (code("f", [printed("<function f at 0x7f3a2b1c9d00>\n")]), "memory address"),
    ],
)
def test_each_problem_is_named(cell: NotebookNode, sentence: str) -> None:
    found = problems(notebook(cell))
    assert len(found) == 1
    assert sentence in found[0]
    assert "code cell 2" in found[0]


def test_a_cell_never_executed() -> None:
    made = notebook(code("print(1)"))
    made.cells[1].execution_count = None
    assert "never executed" in problems(made)[0]


def test_cells_out_of_order() -> None:
    made = notebook(code("a = 1"), code("b = 2"))
    made.cells[1].execution_count, made.cells[2].execution_count = 3, 2
    assert len(problems(made)) == 2
    assert "top to bottom" in problems(made)[0]


def test_a_stored_error() -> None:
    made = notebook(code("1/0"))
    error = {"output_type": "error", "ename": "ZeroDivisionError", "evalue": "", "traceback": []}
    made.cells[1].outputs = [NotebookNode(error)]
    assert "ZeroDivisionError" in problems(made)[0]


def test_a_figure_without_static_picture() -> None:
    interactive = figure("Heat map")
    interactive.data = NotebookNode(
        {"text/plain": "Heat map", "application/vnd.plotly.v1+json": {"data": []}}
    )
    assert "static picture" in problems(notebook(code("plot()", [interactive])))[0]


def test_names_of_the_machine() -> None:
    made = notebook(code("print(1)", [printed("computed on analytical-engine\n")]))
    assert problems(made) == []
    assert "analytical-engine" in problems(made, ["analytical-engine"])[0]


def test_urls_are_no_paths() -> None:
    made = notebook(code("print(1)", [printed("see https://example.org/home/page\n")]))
    assert problems(made) == []


def test_the_set_up_cell() -> None:
    assert "longer than 6 lines" in problems(notebook(setup="import a\n" * 7))[0]
    second = notebook(code("import b", tags=["versions"]))
    assert "alone" in problems(second)[0]


def test_the_kernel() -> None:
    made = notebook()
    made.metadata.kernelspec.name = "ioi"
    assert "kernel" in problems(made)[0]
