"""Long names break at their joints (`heads.` `repeat_` `scores`), not before their last letter.

In a narrow column a browser breaks `heads.repeat_scores` anywhere or nowhere.
"""

from __future__ import annotations

import re

CODE = re.compile(r"(<code\b[^>]*>)(.*?)(</code>)", re.DOTALL)
TABLE = re.compile(r'(<table\b[^>]*class="dataframe"[^>]*>)(.*?)(</table>)', re.DOTALL)
WORDS = re.compile(r"(?<=>)[^<>]+(?=<)")
JOINT = re.compile(r"(?<=\w)([._/(=]+)(?=[^\W\d_]|&quot;)")


def with_breaks(page: str) -> str:
    """A page's HTML in which code in a line and the cells of results may break at joints."""
    for part in (CODE, TABLE):
        page = part.sub(lambda match: WORDS.sub(_break, match[0]), page)
    return page


def _break(words: re.Match[str]) -> str:
    return JOINT.sub(r"\1<wbr/>", words[0])
