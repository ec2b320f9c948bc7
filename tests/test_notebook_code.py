"""What a reader takes along from a notebook: cells to copy, and helpers in plain TransformerLens.

A code cell tagged `copy` holds imports, functions and lists of fields, and runs alone: in a fresh
namespace, given a `model` and a `data`, its functions find all they need. Its metadata has a call
to try them with:

    {"tags": ["copy"], "copy": "patched_logit_diff(model, data, data.swap_subject(), 1, 'S2')"}

A Markdown cell tagged `plain` stands below the first use of a helper and has the same in plain
TransformerLens, folded: one block of Python, run here with what a reader has at that point, whose
last statement, `torch.testing.assert_close`, compares the two.
"""

from __future__ import annotations

import ast
import builtins
import dis
import re
import types
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from _pytest.mark import ParameterSet

from ioi_helpers import IOIDataset, load_model
from notebooks.tools.execution import find_notebooks
from notebooks.tools.stored_outputs import code_cells, read, tags
from tests.notebook_sessions import session

MODEL = "ioi-plain"  # on which copied cells run: not the one that the outputs are of
PLAIN = re.compile(
    r"<details><summary>The same in plain TransformerLens</summary>\n\n(?:[^`]*\n\n)?"
    r"```python\n(.*?)```\n\n</details>",
    re.DOTALL,
)
ALLOWED = {"ioi_helpers.metrics"}  # the ruler, which exercise 01.1 writes out


def cells_to_copy() -> Iterator[ParameterSet]:
    for path in find_notebooks():
        for place, cell in enumerate(code_cells(read(path)), start=1):
            if "copy" in tags(cell):
                name = f"{path.name[:2]}, code cell {place}"
                yield pytest.param(cell.source, cell.metadata.get("copy"), id=name)


def plain_blocks() -> Iterator[ParameterSet]:
    for path in find_notebooks():
        before = 0
        for cell in read(path).cells:
            before += cell.cell_type == "code"
            if "plain" in tags(cell):
                name = f"{path.name[:2]}, after code cell {before}"
                yield pytest.param(path, before, cell.source, id=name)


@lru_cache(maxsize=1)
def model_and_data() -> tuple[Any, IOIDataset]:
    model = load_model(MODEL)
    return model, IOIDataset.generate(model.tokenizer, 6, seed=5).to(model.cfg.device)


def globals_of(code: types.CodeType) -> set[str]:
    """Names that a function and the functions in it look up outside of themselves."""
    own = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    return own.union(*(globals_of(c) for c in code.co_consts if isinstance(c, types.CodeType)))


@pytest.mark.parametrize(("source", "call"), list(cells_to_copy()))
def test_a_cell_to_copy_runs_alone(source: str, call: str | None) -> None:
    assert call, 'its metadata needs a call to try it with, such as {"copy": "f(model, data)"}'
    statements = ast.parse(source).body
    for statement in statements:
        if isinstance(statement, ast.ClassDef):  # a NamedTuple, say: its functions are not tried
            assert all(isinstance(part, ast.AnnAssign) for part in statement.body), "only fields"
    kinds = {type(statement).__name__ for statement in statements}
    allowed = {"Import", "ImportFrom", "FunctionDef", "ClassDef"}
    assert kinds <= allowed, "imports, functions and fields alone"
    namespace: dict[str, Any] = {}
    exec(compile(source, "cell", "exec"), namespace)
    functions = {n: f for n, f in namespace.items() if isinstance(f, types.FunctionType)}
    written = {n: f for n, f in functions.items() if f.__code__.co_filename == "cell"}
    for name, function in written.items():
        unknown = globals_of(function.__code__) - set(namespace) - set(dir(builtins))
        assert not unknown, f"{name} uses {unknown} without being given it"
    model, data = model_and_data()
    made = eval(call, namespace | {"model": model, "data": data})
    assert made is not None
    called = {node.id for node in ast.walk(ast.parse(call)) if isinstance(node, ast.Name)}
    used = called.union(*(globals_of(f.__code__) for f in written.values()))
    assert set(written) <= used, "the call tries every function of the cell"


@pytest.mark.parametrize(("path", "before", "source"), list(plain_blocks()))
def test_plain_transformer_lens_gives_the_same(path: Path, before: int, source: str) -> None:
    blocks = PLAIN.findall(source)
    assert len(blocks) == 1, "one ```python block in <details>, see PLAIN"
    *steps, last = ast.parse(blocks[0]).body
    assert isinstance(last, ast.Expr), "it ends with torch.testing.assert_close(...)"
    assert ast.unparse(last).startswith("torch.testing.assert_close("), ast.unparse(last)
    namespace = session(path, "ioi-mini").namespace_after(before)
    helpers = {name for name in _names(steps) if _is_a_helper(namespace.get(name))}
    assert not helpers, f"it uses {helpers}, which are no plain TransformerLens"

    compared: list[torch.Tensor] = []
    checked = torch.testing.assert_close

    def record(actual: torch.Tensor, expected: torch.Tensor, **how: Any) -> None:
        assert how.get("rtol", 0) <= 0.01, "a tolerance of 1 % at most"
        assert how.get("atol", 0) <= 1e-3 * max(float(expected.abs().max()), 1), "and 1e-3"
        compared.append(expected)
        checked(actual, expected, **how)

    with mock.patch.object(torch.testing, "assert_close", record):
        exec(compile(blocks[0], "plain", "exec"), namespace)
    (expected,) = compared
    assert float(expected.abs().max()) > 0.05, "there is something to compare"


def _names(steps: list[ast.stmt]) -> set[str]:
    return {n.id for step in steps for n in ast.walk(step) if isinstance(n, ast.Name)}


def _is_a_helper(thing: Any) -> bool:
    if isinstance(thing, types.ModuleType):
        home = thing.__name__
    elif isinstance(thing, types.FunctionType):
        home = thing.__module__ or ""
    else:
        return False
    return home.startswith("ioi_helpers") and home not in ALLOWED
