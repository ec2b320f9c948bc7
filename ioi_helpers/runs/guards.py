"""What a run is refused for, each in one sentence.

Written once for the whole package: whoever runs a model over a dataset calls :func:`require_data`,
whoever runs it on other tokens :func:`require_model` and :func:`refuse_too_long`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis._model_state import require_eval_mode

from ioi_helpers import forward
from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.dataset.two_answers import REQUIRED, has_bos, positions_of, templates_of, text_of


def require_model(model: Any) -> None:
    """Refuse what is no model that can be run, and one in training mode, where dropout is random.

    Also one whose wrapped model is, or a single block of that: ``model.training`` says nothing
    about them.

    Raises:
        ValueError: It is no bridge, or some part of it is in training mode.
    """
    if not (hasattr(model, "hook_dict") and hasattr(model, "cfg")):
        raise ValueError(
            "The model must be a TransformerBridge, as load_model() returns it, not "
            f"{_kind(model)}."
        )
    # TransformerLens' look takes three times as long, and has the better sentence.
    if any(module.training for module in forward.modules(model)):
        require_eval_mode(model, operation="A run")


def require_dataset(data: Any) -> None:
    """Refuse what is no dataset, such as a list of texts or a tensor of tokens.

    Raises:
        ValueError: It lacks something that :class:`~ioi_helpers.dataset.TwoAnswerData` asks for.
    """
    missing = [name for name in REQUIRED if not hasattr(data, name)]
    if missing:
        lacks = "" if "tokens" in missing else f" that lacks {' and '.join(missing)}"
        raise ValueError(
            f"The prompts must be a dataset, not {_kind(data)}{lacks}; make one with "
            "IOIDataset.from_prompts(model.tokenizer, prompts, answers) or IOIDataset.generate, or "
            "for another task with dataset.PromptDataset.from_prompts."
        )


def require_data(model: Any, *datasets: Any) -> None:
    """Refuse what cannot be run together: :func:`require_model`, and datasets that fit it.

    Raises:
        ValueError: As :func:`require_model` and :func:`require_dataset`; or a dataset was made
            with another tokenizer than the model's.
    """
    require_model(model)
    for data in datasets:
        require_dataset(data)
        _require_own_tokenizer(model, data)


def _require_own_tokenizer(model: Any, data: Any) -> None:
    own, its = getattr(model, "tokenizer", None), getattr(data, "tokenizer", None)
    if own is its or own is None or its is None:
        return
    # Two objects may be the same tokenizer: what counts is what the prompts' tokens mean.
    used = torch.cat([data.tokens.flatten(), data.io_tokens, data.s_tokens]).unique().tolist()
    if max(used) >= len(own) or own.convert_ids_to_tokens(used) != its.convert_ids_to_tokens(used):
        raise ValueError(
            "The prompts were made with another tokenizer than the model's, so their tokens mean "
            "other words to it; make them with model.tokenizer."
        )


def require_alike(data: Any, other: Any, name: str) -> None:
    """Refuse two datasets that are to be compared, of which one has BOS and the other has not.

    Args:
        data, other: Each has passed :func:`require_data`, so both are of the model's tokenizer.
        name: What the other is called, for the sentence.

    Raises:
        ValueError: They differ in BOS.
    """
    with_bos = [has_bos(one) for one in (data, other)]
    if with_bos[0] != with_bos[1]:
        has = "has BOS before each prompt" if with_bos[1] else "has no BOS before its prompts"
        raise ValueError(
            f"{name} {has}, unlike the prompts that it is to go with, which shifts every position; "
            "make both with the same prepend_bos=."
        )


def refuse_misaligned(data: TwoAnswerData, reference: TwoAnswerData) -> None:
    """Refuse a reference that does not correspond to the data row by row and token by token.

    Args:
        data, reference: Each has passed :func:`require_data`.

    Raises:
        ValueError: They differ in number, or as :func:`misalignment` says.
    """
    require_as_many(data, reference)
    why = misalignment(data, reference)
    if why:
        raise ValueError(
            f"{why}, so their positions do not correspond; make the reference from the data, such "
            "as data.abc()."
        )


def require_as_many(data: TwoAnswerData, reference: TwoAnswerData) -> None:
    """Refuse a reference with more or fewer prompts than the data.

    Raises:
        ValueError: They differ in number.
    """
    if len(data) != len(reference):
        raise ValueError(
            f"The reference has {len(reference)} prompts but the data {len(data)}; they must "
            "correspond row by row, as those of data.abc() do."
        )


def misalignment(data: TwoAnswerData, reference: TwoAnswerData) -> str:
    """Why position i of a row is not position i of its counterpart; empty if it is.

    Equal lengths are not enough: BOS, the template, and where names and END stand count too. (The
    roles IO and S1 may change places, and S1+1 with them: that is what some counterfactuals do.)
    """
    if has_bos(data) != has_bos(reference):
        one, other = ("data", "reference") if has_bos(data) else ("reference", "data")
        return f"The {one} start with BOS and the {other} do not (prepend_bos)"
    rows = zip(templates_of(data), templates_of(reference), strict=True)
    for row, (mine, its) in enumerate(rows):
        if mine != its:
            return (
                f"Prompt {row} has the template {mine!r}, but its counterpart in the reference "
                f"{its!r}"
            )
    lengths = [one.lengths.cpu() for one in (data, reference)]
    unequal = lengths[0] != lengths[1]
    if unequal.any():
        row = int(unequal.int().argmax())
        return (
            f"Prompt {row} has {int(lengths[0][row])} tokens, but its counterpart in the reference "
            f"{int(lengths[1][row])}"
        )
    places = [landmarks(one) for one in (data, reference)]
    unequal = (places[0] != places[1]).any(dim=1)
    if unequal.any():
        row = int(unequal.int().argmax())
        return (
            f"Prompt {row} has its names and END at {places[0][row].tolist()}, but its counterpart "
            f"in the reference at {places[1][row].tolist()}"
        )
    return ""


def landmarks(data: TwoAnswerData) -> Int[Tensor, "batch mark"]:
    """Where the first two names stand, in order, the third, and END; or else all roles, in order.

    Two prompts that have these in common correspond token by token, also where names are of several
    tokens.
    """
    at = {role: where.cpu() for role, where in data.positions.items()}
    if not {"IO", "S1", "S2"} <= set(at):
        return torch.stack([at[role] for role in sorted(at)], dim=1).sort(dim=1).values
    first = torch.stack([at["IO"], at["S1"]], dim=1).sort(dim=1).values
    return torch.cat([first, at["S2"][:, None], at["END"][:, None]], dim=1)


def _kind(thing: Any) -> str:
    """What something is, for a reader who expected something else."""
    if isinstance(thing, Tensor):
        return f"a tensor of shape {tuple(thing.shape)}"
    if isinstance(thing, str):
        return f"the text {thing[:40]!r}"
    if isinstance(thing, Sequence):
        inner = f" of {type(thing[0]).__name__}" if len(thing) else ""
        return f"a {type(thing).__name__}{inner}"
    return f"a {type(thing).__name__}"


def refuse_too_long(model: TransformerBridge, tokens: Int[Tensor, "batch pos"]) -> None:
    """Refuse prompts that do not fit into the model's context.

    Raises:
        ValueError: There are more positions than the model has.
    """
    if tokens.shape[-1] > model.cfg.n_ctx:
        raise ValueError(
            f"The prompts are {tokens.shape[-1]} tokens long, but this model's context holds "
            f"{model.cfg.n_ctx}; use shorter or fewer prefix sentences."
        )


def role_positions(data: TwoAnswerData, role: str | Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """Where a role stands in each prompt; or positions that are given, one for each prompt.

    Raises:
        ValueError: The role is unknown, or a prompt lacks it; or the positions do not fit.
    """
    if isinstance(role, str):
        at = positions_of(data, role)
    elif role.shape == (len(data),):
        at = role
    else:
        raise ValueError(
            f"There are {len(data)} prompts, but positions of shape {tuple(role.shape)}."
        )
    missing = (at < 0) | (at >= data.lengths.to(at.device))
    if missing.any():
        row = int(missing.int().argmax())
        what = role if isinstance(role, str) else f"position {int(at[row])}"
        raise ValueError(
            f"Prompt {row} has no {what}: {text_of(data, row)!r}; leave out the role or the prompt."
        )
    return at


def roles_to_use(data: TwoAnswerData, roles: Sequence[str] | None) -> Sequence[str]:
    """The roles that are asked for; None asks for all that the prompts have.

    Raises:
        ValueError: As :func:`require_dataset`.
    """
    if roles is None:
        require_dataset(data)
        return tuple(data.positions)
    return roles


def known_hooks(model: TransformerBridge, names: Sequence[str]) -> list[str]:
    """The names, each once.

    Raises:
        ValueError: The model has no such hook.
    """
    known = model.hook_dict
    for name in names:
        if name not in known:
            raise ValueError(
                f"The model has no hook {name!r}; see model.hook_dict for those of this "
                "architecture."
            )
    return list(dict.fromkeys(names))
