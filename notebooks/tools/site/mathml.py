"""Mathematics as MathML, which browsers draw without a script and without a network."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

NAME = "mathml"


def mathml(latex: str, block: bool) -> str:
    """A formula in LaTeX as a `math` element, with the LaTeX as what is read in its place."""
    return convert(latex.strip(), display="block" if block else "inline")


def visit_inline(writer: Any, node: nodes.math) -> None:
    """Write a formula; one that is a paragraph of its own stands in the middle, and large."""
    alone = isinstance(node.parent, nodes.paragraph) and len(node.parent) == 1
    writer.body.append(mathml(node.astext(), block=alone))
    raise nodes.SkipNode


def visit_block(writer: Any, node: nodes.math_block) -> None:
    """Write a formula on a line of its own."""
    writer.body.append(f'<div class="math">{mathml(node.astext(), block=True)}</div>')
    raise nodes.SkipNode
