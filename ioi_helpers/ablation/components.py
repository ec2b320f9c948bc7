"""What can be ablated: nodes of :mod:`ioi_helpers.graph` but the embedding, and at which hooks.

A head is replaced at its ``z``, an MLP at its output.
"""

from __future__ import annotations

from collections.abc import Iterable

from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities import get_act_name

from ioi_helpers.graph import Node, NodeLike, parse_nodes, require_node


def require_components(
    model: TransformerBridge, components: NodeLike | Iterable[NodeLike]
) -> tuple[Node, ...]:
    """The components that are meant, each once.

    Args:
        model: The model they are in.
        components: One or several, in any form that :mod:`ioi_helpers.graph` knows; a circuit is
            its nodes.

    Raises:
        ValueError: There is none, or one of them is not in this model.
    """
    nodes = parse_nodes(components)
    if not nodes:
        raise ValueError(
            "There is nothing to ablate; name at least one head or MLP, such as 'L9H9', 'MLP0' or "
            "('L9H9', 'END')."
        )
    for node in nodes:
        if node.layer < 0:
            raise ValueError("The embedding cannot be ablated; name heads or MLPs.")
        require_node(model, node)
    return nodes


def site_of(node: Node) -> str:
    """Where a component is replaced: at its ``"z"``, or at the ``"mlp_out"``."""
    return "z" if node.is_head else "mlp_out"


def hook_of(node: Node) -> str:
    """TransformerLens' name of that place."""
    return hook_at(site_of(node), node.layer)


def hook_at(site: str, layer: int) -> str:
    """The same of a site in a layer."""
    name: str = get_act_name(site, layer)
    return name


def shows_at(node: Node) -> str:
    """The name of the hook at which a replacement there must show."""
    name: str = get_act_name("attn_out" if node.is_head else "resid_post", node.layer)
    return name
