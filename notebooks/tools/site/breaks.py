"""Long names in tables break at their joints (`heads.` `repeat_` `scores`), not before their end.

In a narrow column a browser breaks `heads.repeat_scores` anywhere or nowhere. In a paragraph it
begins a new line before a name, which is better still.
"""

from __future__ import annotations

import re

TABLE = re.compile(r"<table\b.*?</table>", re.DOTALL)
CODE = re.compile(r"<code\b.*?</code>", re.DOTALL)
WORDS = re.compile(r"(?<=>)[^<>]+(?=<)")
JOINT = re.compile(r"(?<=\w{4})([._/(=]+)(?=[^\W\d_]|&quot;)")


def with_breaks(page: str) -> str:
    """A page's HTML in which code in tables, and whatever stands in tables of results, may break
    at joints.
    """
    return TABLE.sub(_break_table, page)


def _break_table(table: re.Match[str]) -> str:
    results = 'class="dataframe"' in table[0]
    return _break(table) if results else CODE.sub(_break, table[0])


def _break(part: re.Match[str]) -> str:
    return WORDS.sub(lambda words: JOINT.sub(r"\1<wbr/>", words[0]), part[0])
