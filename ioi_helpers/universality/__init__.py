"""Is it the same circuit in another model? Compare what surveys found of several models.

::

    from ioi_helpers import survey, universality

    found = survey.shipped("seeds")
    profiles = universality.profiles(found.table("heads"))      # model -> what each head does
    matched = universality.match(profiles["ioi-plain-seed-0"], profiles["ioi-plain-seed-1"])
    matched.overlap, matched.pairs                              # how much is alike, who is whom
    universality.null_overlaps(...)                             # a best match is always found
    universality.judge(found)                                   # which claims hold of which model

Nothing here runs a model: all stands on tables (:mod:`ioi_helpers.survey`). In reading order:
`profiles` (what a head does, in numbers that do not name it), `matching` (the best assignment of
heads, and what chance gives), `edges` (who tells whom, by head class), `claims` (sentences of the
notebooks as functions), `counting` (what n seeds can show).
"""

from __future__ import annotations

from ioi_helpers.universality.claims import (
    CLAIMS,
    Claim,
    does_the_task,
    in_seeds,
    judge,
    of_model,
    tally,
)
from ioi_helpers.universality.counting import (
    SeedMean,
    least_p_by_sign,
    mean_over_seeds,
    share_interval,
)
from ioi_helpers.universality.edges import edges_by_class, shared_effect
from ioi_helpers.universality.matching import (
    Match,
    beyond_chance,
    match,
    null_overlaps,
    overlaps,
    p_value,
)
from ioi_helpers.universality.profiles import AT_END, EFFECTS, profile, profiles

__all__ = [
    "AT_END",
    "CLAIMS",
    "EFFECTS",
    "Claim",
    "Match",
    "SeedMean",
    "beyond_chance",
    "does_the_task",
    "edges_by_class",
    "in_seeds",
    "judge",
    "least_p_by_sign",
    "match",
    "mean_over_seeds",
    "null_overlaps",
    "of_model",
    "overlaps",
    "p_value",
    "profile",
    "profiles",
    "share_interval",
    "shared_effect",
    "tally",
]
