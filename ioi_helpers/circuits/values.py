"""What stands in for the parts of a model that are not in a circuit.

Every head and MLP has, at every token index of every prompt, a value that takes its place when it
is left out. For means, a *group* says whose mean: the IOI paper takes prompts with three different
names of the same template, where the two orders of a sentence are two templates (section 2.1).
A mean over few prompts still holds their names (under ten in a group, say; 15 templates in two
orders share the prompts out among 30 groups), so take more prompts where a number matters.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.ablation.replacements import GROUPINGS, METHODS, replacements
from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.dataset.two_answers import orders_of, template_ids_of
from ioi_helpers.graph import Shape
from ioi_helpers.runs import DEFAULT_MEMORY

FEW = 10
"""A mean over fewer prompts still holds much of their own names."""


@dataclass(frozen=True)
class Values:
    """Replacements of all components of a model, for every prompt of a dataset.

    Attributes:
        z: ``[layer batch pos head d_head]``.
        mlp_out: ``[layer batch pos d_model]``; no layers where MLPs stay.
    """

    z: Float[Tensor, "layer batch pos head d_head"]
    mlp_out: Float[Tensor, "layer batch pos d_model"]

    def rows(self, rows: Int[Tensor, " rows"]) -> Values:
        """Those of some of the prompts."""
        return Values(self.z[:, rows], self.mlp_out[:, rows])


def values_outside(
    model: TransformerBridge,
    data: TwoAnswerData,
    reference: TwoAnswerData | None,
    how: str,
    group: str,
    *,
    mlps: bool,
    memory: int = DEFAULT_MEMORY,
) -> Values:
    """The values that stand in, at every token index of every prompt.

    Args:
        model: The model.
        data: The prompts that circuits are run on.
        reference: Where values come from; not needed for ``how="zero"``.
        how: ``"mean"``, ``"resample"`` or ``"zero"``.
        group: Whose mean: ``"template and order"``, ``"template"`` or ``"all"``; of no meaning for
            the other two.
        mlps: Whether MLPs have values, too.
        memory: Bytes that running the reference may use.

    Raises:
        ValueError: See :func:`~ioi_helpers.ablation.replacements`.
    """
    if how not in METHODS:
        raise ValueError(f"how must be one of {', '.join(METHODS)}, not {how!r}.")
    if group not in GROUPINGS:
        raise ValueError(f"group must be one of {', '.join(GROUPINGS)}, not {group!r}.")
    if how == "mean" and reference is not None:
        _warn_of_a_repeated_name(reference, group)
    shape = Shape.of(model)
    nodes = shape.nodes(mlps=mlps)
    n, width = len(data), int(data.lengths.max())
    cfg, device = model.cfg, model.W_E.device
    dtype = torch.promote_types(model.W_E.dtype, torch.float32)
    z = torch.zeros(cfg.n_layers, n, width, cfg.n_heads, cfg.d_head, device=device, dtype=dtype)
    mlp_out = torch.zeros(
        cfg.n_layers if mlps else 0, n, width, cfg.d_model, device=device, dtype=dtype
    )
    if how != "zero":
        found = replacements(model, nodes, how, reference, data, group=group, memory=memory)
        for node, value in zip(nodes, found, strict=True):
            target = mlp_out[node.layer] if node.head is None else z[node.layer, :, :, node.head]
            value.apply_to(target)
    return Values(z, mlp_out)


def _warn_of_a_repeated_name(reference: TwoAnswerData, group: str) -> None:
    """A mean over prompts of one order in which a name stands twice still says which order it is,
    and that a name is repeated: it leaves in the model what it should take away."""
    repeated = any(names.S2 in (names.S1, names.IO) for names in getattr(reference, "names", ()))
    if not repeated:
        return
    # Prompts that share a mean, by their orders: a template may occur in one order only.
    groups = defaultdict[object, list[str]](list)
    for template, order in zip(
        template_ids_of(reference).tolist(), orders_of(reference), strict=True
    ):
        keys: dict[str, object] = {"template and order": (template, order), "template": template}
        groups[keys.get(group)].append(order)
    of_one_order = [len(orders) for orders in groups.values() if len(set(orders)) == 1]
    if of_one_order:
        few = f" (of {min(of_one_order)} prompts only)" if min(of_one_order) < FEW else ""
        warnings.warn(
            "In the reference's prompts a name is repeated, and a mean is taken within an order of "
            f"names{few}; such a mean still holds that order and that a name is repeated, so "
            "taking heads away by it takes little away. Use data.abc().",
            UserWarning,
            stacklevel=4,
        )
