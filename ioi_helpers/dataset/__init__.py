"""IOI prompts: many of them, with every role's position known exactly, and their counterfactuals.

A prompt such as "When John and Mary went to the store, John gave a drink to" is cut into pieces
(the words of a template, two names, a place, an object, perhaps a prefix sentence). Each piece is
tokenised once and prompts are put together from token ids, so that a hundred thousand of them take
a second or two, and the place of a name is known from the way the prompt was built instead of
being searched for: it stays right when the same name also occurs in a prefix.

In reading order: ``roles`` (the five positions that matter), ``templates``, ``pieces``,
``sampling`` (seeded choices), ``prefixes``, ``rows`` (prompts as pieces), and then the class in
three steps: ``prompts`` (tokens and positions), ``counterfactuals``, ``dataset`` (the ways of
making one); ``files`` writes and reads datasets. ``two_answers`` says what helpers need of prompts,
and ``own`` has ``PromptDataset``, for prompts of another task.

Source of the task, the roles and the counterfactuals: Wang et al. 2022, "Interpretability in the
Wild" (arXiv 2211.00593), called "the IOI paper" throughout. Prefix sentences follow "Intervening in
the Residual Stream" (the LRQP post).
"""

from __future__ import annotations

from ioi_helpers.dataset.dataset import IOIDataset
from ioi_helpers.dataset.own import PromptDataset
from ioi_helpers.dataset.prefixes import OPENWEBTEXT, openwebtext_sentences
from ioi_helpers.dataset.roles import ORDERS, ROLES, Names, RolePositions
from ioi_helpers.dataset.two_answers import TwoAnswerData

__all__ = [
    "OPENWEBTEXT",
    "ORDERS",
    "ROLES",
    "IOIDataset",
    "Names",
    "PromptDataset",
    "RolePositions",
    "TwoAnswerData",
    "openwebtext_sentences",
]
