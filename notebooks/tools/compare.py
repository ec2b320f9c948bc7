"""Compare a notebook cell's stored outputs with those of a fresh run: numbers as numbers.

Printed floating-point numbers differ in their last digits between machines and thread counts, so
text is cut into numbers and the words between them. Words and whole numbers must be equal; numbers
with a decimal point or an exponent must agree within a tolerance. A figure takes part through its
text summary, whichever of its other forms (picture, script) is stored.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

# A fresh number may differ from the stored one by this fraction. Float noise in our results is
# about 1e-5, a mistake worth catching is 1e-2 and more.
RELATIVE_TOLERANCE = 2e-3

# Noise can also carry a short number over a rounding border: 0.35 becomes 0.36. That is one unit
# of the last printed digit, and rare; so only this share of an output's numbers may need it (and
# one always may). A result that is 2 % off moves most of its numbers and is caught.
SHARE_OF_ROUNDING_STEPS = 0.05

NUMBER = re.compile(
    r"(?<![\w.])"  # not the 9 of L9H9, nor the 13 of version 2.13.0
    r"[-+]?(?:\d+\.\d+|\.\d+|\d+)(?:[eE][-+]?\d{1,3})?"
    r"(?!\d|\.\d)"
)
VERSION = re.compile(r"\d+(?:\.\d+)+[\w.+-]*")
DEVICE = re.compile(r"\bon (?:cpu|cuda|mps)(?::\d+)?(?=\))")
RULE = re.compile(r"[-─━═=_]{3,}")
TAG = re.compile(r"<(/?\w+)[^>]*>")
STYLE = re.compile(r"<style.*?</style>", re.DOTALL | re.IGNORECASE)
SCRIPTED = re.compile(r"<(?:script|iframe|svg|img|canvas)\b", re.IGNORECASE)
PROGRESS = re.compile(r"\d+%\||\d+it \[|\[\d+:\d+[<,]|\?it/s|it/s\]|s/it\]")
# What libraries print when they have nothing to say about an object.
DEFAULT_SUMMARY = re.compile(
    r"\s*(?:$|Figure(?:Widget)?\(|<[\w. ]+(?: object)?(?: at 0x\w+)?>\s*$)"
)

WIDGET = "application/vnd.jupyter.widget-view+json"
# Forms of an output that hold words; anything else is a picture or a program that draws one.
TEXT_FORMS = {"text/plain", "text/html", "text/markdown", "text/latex"}

Output = Mapping[str, Any]


def joined(text: str | Sequence[str]) -> str:
    """Notebook files may store a text as one string or as a list of lines."""
    return text if isinstance(text, str) else "".join(text)


def is_figure(output: Output) -> bool:
    """Whether an output is drawn: it has a form other than text, or its HTML holds a picture."""
    data = output.get("data", {})
    if WIDGET in data:
        return False
    scripted = SCRIPTED.search(joined(data.get("text/html", "")))
    return bool(scripted) or any(form not in TEXT_FORMS for form in data)


def figure_summary(output: Output) -> str | None:
    """A figure's summary, its `text/plain` form; None where it has none of its own."""
    summary = joined(output.get("data", {}).get("text/plain", ""))
    return None if DEFAULT_SUMMARY.match(summary) else summary


def is_progress_bar(output: Output) -> bool:
    """Whether an output is a progress bar drawn as a notebook widget."""
    return WIDGET in output.get("data", {})


def without_progress(text: str) -> str:
    """Standard error without the lines of progress bars."""
    lines = re.split(r"[\r\n]+", text)
    return "\n".join(line for line in lines if line.strip() and not PROGRESS.search(line))


def compare_text(stored: str, fresh: str) -> str | None:
    """What differs between two texts, in a sentence; None where they agree.

    The first difference is shown, and the others are counted. Runs of blanks and of ruling
    characters count as one, because a table's columns grow by a blank where a minus sign appears.
    """
    stored, fresh = _tidy(stored), _tidy(fresh)
    if stored == fresh:
        return None
    stored_words, fresh_words = NUMBER.split(stored), NUMBER.split(fresh)
    stored_numbers, fresh_numbers = NUMBER.findall(stored), NUMBER.findall(fresh)
    words = [i for i, (old, new) in enumerate(zip(stored_words, fresh_words)) if old != new]
    printed = list(zip(stored_numbers, fresh_numbers))
    verdicts = {pair: _compare_numbers(*pair) for pair in dict.fromkeys(printed)}
    numbers = [i for i, pair in enumerate(printed) if verdicts[pair] == "different"]
    if len(stored_words) != len(fresh_words):
        counts = f"stored {len(stored_numbers)} numbers, now {len(fresh_numbers)}"
        return f"{_other_text(stored, fresh, words[0])}; {counts}" if words else counts
    more = len(words) + len(numbers) - 1
    others = f"; differences in this output besides: {more}" if more > 0 else ""
    if words:
        return _other_text(stored, fresh, words[0]) + others
    if numbers:
        return f"stored {stored_numbers[numbers[0]]}, now {fresh_numbers[numbers[0]]}{others}"
    # A figure's summary may print one value several times: it counts once.
    steps = [
        f"stored {old}, now {new}"
        for (old, new), verdict in verdicts.items()
        if verdict == "rounding step"
    ]
    allowed = max(1, int(SHARE_OF_ROUNDING_STEPS * len(verdicts)))
    if len(steps) > allowed:
        return (
            f"{len(steps)} of {len(verdicts)} numbers differ in their last digit, "
            f"which rounding explains for {allowed} at most: " + "; ".join(steps[:3])
        )
    return None


def _other_text(stored: str, fresh: str, place: int) -> str:
    """A sentence on the words before the number at `place`, which differ."""
    after = f" after {_excerpt(NUMBER.findall(stored)[place - 1])}" if place else ""
    old, new = NUMBER.split(stored)[place], NUMBER.split(fresh)[place]
    return f"the text differs{after}: stored {_excerpt(old)}, now {_excerpt(new)}"


def compare_outputs(
    stored: Sequence[Output], fresh: Sequence[Output], versions: bool = False
) -> list[str]:
    """Every difference between a cell's stored and fresh outputs, as sentences; [] if they agree.

    `versions` is for the set-up cell: version numbers in it may be any. So may, anywhere, be the
    device that a loaded model names. Progress bars are passed over; anything else on standard
    error, and a figure without a summary, is a difference.
    """
    found = [f"the cell wrote to standard error: {_excerpt(text, 300)}" for text in _errors(fresh)]
    old_parts, found_old = _parts(stored)
    new_parts, found_new = _parts(fresh)
    found += [f"stored {sentence}" for sentence in found_old]
    found += [f"fresh {sentence}" for sentence in found_new]
    for kind, text in old_parts[len(new_parts) :]:
        found.append(f"missing output ({kind}): {_excerpt(text)}")
    for kind, text in new_parts[len(old_parts) :]:
        found.append(f"extra output ({kind}): {_excerpt(text)}")
    for (old_kind, old), (new_kind, new) in zip(old_parts, new_parts):
        if old_kind != new_kind:
            found.append(f"stored a {old_kind} output, now a {new_kind} output")
            continue
        old, new = (DEVICE.sub("<device>", text) for text in (old, new))
        if versions:
            old, new = (VERSION.sub("<version>", text) for text in (old, new))
        difference = compare_text(old, new)
        if difference:
            found.append(f"{new_kind}: {difference}")
    return found


def _parts(outputs: Sequence[Output]) -> tuple[list[tuple[str, str]], list[str]]:
    """The comparable texts of a cell's outputs as (kind, text), and what is wrong with them.

    All that was printed is one text: how the kernel cut it into messages is chance.
    """
    parts: list[tuple[str, str]] = []
    wrong: list[str] = []
    printed: int | None = None
    for output in outputs:
        kind = output["output_type"]
        if kind == "stream":
            if output["name"] != "stdout":
                continue
            if printed is None:
                printed = len(parts)
                parts.append(("printed", ""))
            parts[printed] = ("printed", parts[printed][1] + joined(output["text"]))
        elif kind == "error":
            parts.append(("error", f"{output['ename']}: {output['evalue']}"))
        elif is_progress_bar(output):
            continue
        elif is_figure(output):
            summary = figure_summary(output)
            if summary is None:
                wrong.append("figure has no text summary (its text/plain form)")
            parts.append(("figure", summary or ""))
        else:
            data = {form: joined(text) for form, text in output["data"].items()}
            text = data.pop("text/plain", "")
            for form in sorted(data):
                text += f"\n{form}\n{_visible(data[form]) if form == 'text/html' else data[form]}"
            parts.append(("displayed", text))
    return parts, wrong


def _errors(outputs: Sequence[Output]) -> list[str]:
    """What was written to standard error, progress bars apart."""
    texts = [joined(o["text"]) for o in outputs if o.get("name") == "stderr"]
    left = without_progress("".join(texts))
    return [left] if left else []


def _visible(source: str) -> str:
    """HTML without styles and attributes, in which libraries put random ids."""
    return html.unescape(TAG.sub(r"<\1>", STYLE.sub("", source)))


def _tidy(text: str) -> str:
    text = RULE.sub("---", text.replace("\u2212", "-"))
    lines = (re.sub(r"[ \t\xa0]+", " ", line).strip() for line in text.splitlines())
    return "\n".join(lines).strip()


def _compare_numbers(stored: str, fresh: str) -> str:
    """`equal`, `rounding step` (one unit of the last printed digit) or `different`."""
    old, new = Decimal(stored), Decimal(fresh)
    if old == new:
        return "equal"
    fractional = [n for n in (stored, fresh) if re.search(r"[.eE]", n)]
    if not fractional:
        return "different"
    gap = abs(old - new)
    if gap <= Decimal(RELATIVE_TOLERANCE) * max(abs(old), abs(new)):
        return "equal"
    unit = max(Decimal(1).scaleb(int(Decimal(n).as_tuple().exponent)) for n in fractional)
    return "rounding step" if gap <= unit else "different"


def _excerpt(text: str, length: int = 80) -> str:
    """A text as it can stand in a sentence: quoted, and cut where it is long."""
    return repr(text if len(text) <= length else text[: length - 3] + "...")
