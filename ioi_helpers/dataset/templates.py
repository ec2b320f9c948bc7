"""Templates: sentences with fields for the names, the place and the object.

"Then, [B] and [A] went to the [PLACE]. [B] gave a [OBJECT] to [A]" has [A] where IO stands and [B]
where S does; its last [A] is the answer, not part of the prompt. A template is cut at its fields
here and filled in ``rows``. Which of the two names comes first is chosen when it is filled, so one
template serves both orders.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ioi_helpers.dataset.sampling import in_fixed_order
from ioi_helpers.stimuli import DEMO_TEMPLATES, TEMPLATES

_FIELD = re.compile(r"\[([A-Z]+)\]")


@dataclass(frozen=True)
class Template:
    """A template cut at its fields.

    ``segments`` holds (kind, text): kind "text" for words, "first" and "second" for the two names
    of the first clause, "S2", "PLACE" or "OBJECT" for the other fields. A field's text is the space
    before it, which in GPT-2's tokenizer belongs to the field's token.
    """

    text: str
    segments: tuple[tuple[str, str], ...]


def resolve_templates(templates: str | Iterable[str] | None) -> list[Template]:
    """The templates that an argument ``templates`` asks for, cut at their fields.

    Args:
        templates: "paper" or None for the IOI paper's 15, "demo" for the Exploratory Analysis
            demo's, or one or several of your own.

    Raises:
        ValueError: An unknown set, no template at all, or one that ``parse_template`` refuses.
    """
    named = {"paper": TEMPLATES, "demo": DEMO_TEMPLATES}
    if templates is None:
        templates = TEMPLATES
    elif isinstance(templates, str):
        if templates not in named and "[" not in templates:
            raise ValueError(
                f"There is no set of templates called {templates!r}; use 'paper', 'demo' or "
                "templates of your own."
            )
        templates = named.get(templates, (templates,))
    parsed = [parse_template(template) for template in in_fixed_order(templates)]
    if not parsed:
        raise ValueError("templates is empty; give at least one template, or None for the paper's.")
    return parsed


def parse_template(template: str) -> Template:
    """Cut a template at its fields, or say what is wrong with it.

    Raises:
        ValueError: A field is unknown, missing, repeated or not set off by spaces, or [A] and [B]
            do not come once each and then [B] once more.
    """
    if not isinstance(template, str):
        raise ValueError(f"A template must be text, not {type(template).__name__}.")

    def wrong(what: str) -> ValueError:
        return ValueError(
            f"The template {template!r} {what}; write it as "
            '"Then, [B] and [A] went to the [PLACE]. [B] gave a [OBJECT] to [A]", '
            "with [A] for IO and [B] for S."
        )

    body = template.rstrip()
    # A last [A] is the answer, not part of the prompt.
    if body.endswith("[A]") and body.count("[A]") > 1:
        body = body[: -len("[A]")].rstrip()
    segments: list[tuple[str, str]] = []
    name_fields: list[str] = []
    cursor = 0
    for match in _FIELD.finditer(body):
        before, field = body[cursor : match.start()], match.group(1)
        cursor = match.end()
        space = " " if before.endswith(" ") else ""
        literal = before.removesuffix(" ")
        if literal:
            segments.append(("text", literal))
        if field in ("A", "B"):
            if not space or not segments:
                raise wrong(f"needs a word and a space before [{field}], as a name's token has one")
            name_fields.append(field)
            kind = {1: "first", 2: "second", 3: "S2"}.get(len(name_fields), "extra")
        elif field in ("PLACE", "OBJECT"):
            kind = field
        else:
            raise wrong(f"has an unknown field [{field}]")
        if body[cursor : cursor + 1].isalnum():
            raise wrong(f"has a letter or digit directly after [{field}]")
        segments.append((kind, space))
    if body[cursor:]:
        segments.append(("text", body[cursor:]))
    missing = [field for field in ("A", "B") if field not in name_fields]
    if missing:
        raise wrong(f"lacks the field [{missing[0]}]")
    if sorted(name_fields[:2]) != ["A", "B"] or name_fields[2:] != ["B"]:
        raise wrong("must name [A] and [B] once each and then [B] once more")
    return Template(template, tuple(segments))


def template_of_prompt(text: str, io: str, s: str) -> tuple[str, bool]:
    """The template (in BABA form) of a written prompt, and whether IO is named first.

    Raises:
        ValueError: The prompt does not name IO once and S twice with S last, or holds brackets.
    """
    if "[" in text or "]" in text:
        raise ValueError(f"The prompt {text!r} must not hold square brackets.")
    if not io or not s or io == s:
        raise ValueError(f"The prompt {text!r} needs two different names, not {io!r} and {s!r}.")
    found = list(re.finditer(rf"(?<!\w)(?:{re.escape(io)}|{re.escape(s)})(?!\w)", text))
    order = [match.group() for match in found]
    if order not in ([io, s, s], [s, io, s]):
        raise ValueError(
            f"The prompt {text!r} must name IO ({io}) once and S ({s}) twice, with S last; "
            "otherwise its roles would be a guess."
        )
    template, cursor = "", 0
    for match, field in zip(found, ("[B]", "[A]", "[B]"), strict=True):
        template += text[cursor : match.start()] + field
        cursor = match.end()
    return f"{template}{text[cursor:].rstrip()} [A]", order[0] == io
