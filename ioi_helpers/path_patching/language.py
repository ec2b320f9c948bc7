"""What is patched: senders and receivers, in the words of :mod:`ioi_helpers.graph`.

A sender is a :class:`~ioi_helpers.graph.Node`: a head or an MLP, or the embedding, at a token role
or everywhere. A receiver is one *input*: the q, k or v of a head, the input of an MLP, or the final
stream. An :class:`~ioi_helpers.graph.Edge` names both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.graph import (
    EMBEDDING,
    HEAD_INPUTS,
    Edge,
    Input,
    Node,
    NodeLike,
    Shape,
    parse_node,
    require_node,
)
from ioi_helpers.names import is_head_pair

EMBEDDING_STAGE = -1
FINAL_STAGE = 10**9


@dataclass(frozen=True)
class Receiver:
    """One input, and the token at which it is read.

    Attributes:
        node: The head or MLP; None for the final stream. A role of a head restricts k and v to the
            query of that token, as in an edge of :mod:`ioi_helpers.graph`; without one, every token
            that attends sees the new key or value, as in the IOI paper.
        input: ``"q"``, ``"k"``, ``"v"``, ``"in"`` or ``"final"``.
        role: The token whose query, key, value or MLP input it is; None for every token. The final
            stream is read at END.
    """

    node: Node | None
    input: Input
    role: str | None = None

    @property
    def stage(self) -> int:
        """It reads what was written before this stage; the final stream reads everything."""
        return FINAL_STAGE if self.node is None else stage(self.node)

    def __str__(self) -> str:
        if self.node is None:
            return "final stream"
        name = self.node.name
        text = f"input of {name}" if self.input == "in" else f"{self.input} of {name}"
        text += "" if self.role is None else f" at {self.role}"
        return text if self.node.role is None else f"{text} for {self.node.role}"


FINAL = Receiver(None, "final", "END")
"""The final residual stream at END, from which the logits are read."""

ReceiverLike = Receiver | Edge | str | tuple[Any, ...]
"""One receiver: ``"final"`` (or ``"logits"``), ``("L9H9", "q", "END")``, ``("L7H3", "v", "S2")``,
``("MLP8", "in", "END")``, the same without a role for every token, or an Edge."""


def stage(node: Node) -> int:
    """When a node writes: the embedding at -1, heads of layer l at 2 l, its MLP at 2 l + 1."""
    return EMBEDDING_STAGE if node.layer < 0 else 2 * node.layer + (not node.is_head)


def reaches(sender: Node, receiver: Receiver, shape: Shape) -> bool:
    """Whether the receiver comes after the sender. (Roles are not asked.)

    Where blocks are parallel, an MLP does not read the heads beside it.
    """
    node = receiver.node
    beside = node is not None and sender.is_head and sender.layer == node.layer
    return stage(sender) < receiver.stage and not (beside and shape.parallel)


def parse_receiver(spec: ReceiverLike) -> Receiver:
    """The receiver that is meant by one of the forms of :data:`ReceiverLike`.

    Raises:
        ValueError: It has another form, or the component has no such input.
    """
    if isinstance(spec, Receiver):
        receiver = spec
    elif isinstance(spec, Edge):
        return _of_edge(spec)
    elif spec in ("final", "logits"):
        return FINAL
    elif isinstance(spec, tuple) and len(spec) in (2, 3) and isinstance(spec[1], str):
        role = spec[2] if len(spec) == 3 else None
        node = spec[0] if isinstance(spec[0], Node) else parse_node(spec[0])
        receiver = Receiver(node, spec[1], role)  # type: ignore[arg-type]
    else:
        raise ValueError(
            f"{spec!r} is not a receiver; write ('L9H9', 'q', 'END'), with q, k or v, "
            "('MLP8', 'in', 'END'), or 'final'."
        )
    if receiver.node is None or receiver.input == "final":
        if receiver != FINAL:
            raise ValueError("The final stream is read at END and belongs to no head; use 'final'.")
        return FINAL
    if receiver.node.layer < 0:
        raise ValueError("The embedding reads nothing, so it cannot receive; it can only send.")
    Edge(EMBEDDING, receiver.node, receiver.input)  # refuses an input that there is not
    if receiver.input in ("q", "in") and receiver.node.role is not None:
        if receiver.role not in (None, receiver.node.role):
            raise ValueError(
                f"The {receiver.input} of {receiver.node} is read there, not at {receiver.role}."
            )
        return Receiver(receiver.node.at(None), receiver.input, receiver.node.role)
    return receiver


def _of_edge(edge: Edge) -> Receiver:
    if edge.receiver is None:
        return FINAL
    if edge.input in ("k", "v"):
        return Receiver(edge.receiver, edge.input, edge.sender.role)
    # A query, or an MLP's input, is read where it is written: either end may say where.
    return Receiver(edge.receiver.at(None), edge.input, edge.receiver.role or edge.sender.role)


# --- sets ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Senders:
    """Nodes that send together."""

    name: str
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Receivers:
    """Inputs that receive together."""

    name: str
    inputs: tuple[Receiver, ...]

    @property
    def stage(self) -> int:
        """The last stage at which one of them reads."""
        return max(receiver.stage for receiver in self.inputs)

    def live(self, n_layers: int) -> Receivers:
        """Those that matter for the prediction at END.

        What the last block makes of a query or MLP input elsewhere is read by nothing. And where
        the final stream is put in, it does not matter what else is.
        """
        if FINAL in self.inputs:
            return Receivers(self.name, (FINAL,))
        return Receivers(self.name, tuple(r for r in self.inputs if not _unread(r, n_layers)))


def _unread(receiver: Receiver, n_layers: int) -> bool:
    if receiver.node is None or receiver.node.layer < n_layers - 1:
        return False
    if receiver.input in ("k", "v"):
        return receiver.node.role not in (None, "END")
    return receiver.role not in (None, "END")


def why_impossible(
    senders: Senders,
    receivers: Receivers,
    shape: Shape,
    coincide: Callable[[str | None, str | None], bool],
) -> str:
    """Why no path leads from the one set to the other; empty if one does.

    Args:
        coincide: Whether two roles are the same token in any prompt. A path stays at its token,
            since attention is frozen.
    """
    why = ""
    live = receivers.live(shape.n_layers).inputs
    for sender in senders.nodes:
        for receiver in receivers.inputs:
            if not reaches(sender, receiver, shape):
                reason = f"{receiver} does not come after {sender.name}"
            elif not coincide(sender.role, receiver.role):
                reason = (
                    f"with attention frozen a path stays at its token, and {sender} is not at the "
                    f"token of {receiver}"
                )
            elif receiver not in live and FINAL not in live:
                reason = f"nothing reads what the last block makes of {receiver}"
            else:
                return ""
            why = why or reason
    return why


def parse_senders(model: TransformerBridge, spec: NodeLike | Iterable[NodeLike]) -> Senders:
    """A set of senders: one node or several.

    Raises:
        ValueError: There is none, or one that the model does not have.
    """
    listed: list[Any] = [spec] if _is_one_node(spec) else _listed(spec)
    nodes = tuple(dict.fromkeys(parse_node(node) for node in listed))
    if not nodes:
        raise ValueError(
            "There is no sender; name at least one head or MLP, such as 'L9H9', 'MLP0', "
            "('L9H9', 'END') or 'embedding'."
        )
    for node in nodes:
        require_node(model, node)
    return Senders(" + ".join(map(str, nodes)), nodes)


def parse_receivers(
    model: TransformerBridge, spec: ReceiverLike | Iterable[ReceiverLike]
) -> Receivers:
    """A set of receivers: one input or several.

    Raises:
        ValueError: There is none, or one that the model does not have; or the key
            or value of a head that shares it with others (grouped queries).
    """
    listed: list[Any] = [spec] if _is_one_receiver(spec) else _listed(spec)
    inputs = tuple(dict.fromkeys(parse_receiver(receiver) for receiver in listed))
    if not inputs:
        raise ValueError(
            "There is no receiver; name at least one, such as ('L9H9', 'q', 'END') or 'final'."
        )
    for receiver in inputs:
        if receiver.node is not None:
            require_node(model, receiver.node)
        if receiver.input in ("k", "v") and shares_keys(model):
            raise ValueError(
                f"In this model several heads share one key and value, so {receiver} is not "
                "one head's; use its q."
            )
    return Receivers(" + ".join(map(str, inputs)), inputs)


def shares_keys(model: TransformerBridge) -> bool:
    """Whether queries come in groups that share keys and values."""
    n_kv = getattr(model.cfg, "n_key_value_heads", None)
    return n_kv is not None and n_kv != model.cfg.n_heads


def _listed(spec: Any) -> list[Any]:
    try:
        listed = list(spec)
    except TypeError:
        return [spec]
    # A set has no order of its own that would be the same in every run.
    return sorted(listed, key=str) if isinstance(spec, set | frozenset) else listed


def _is_one_node(spec: Any) -> bool:
    """Whether this is one node: a name, ``(9, 9)``, or a component and a role."""
    if isinstance(spec, str | Node) or is_head_pair(spec):
        return True
    return (
        isinstance(spec, tuple)
        and len(spec) == 2
        and (isinstance(spec[0], str) or is_head_pair(spec[0]))
        and (spec[1] is None or isinstance(spec[1], str))
        and re.match(r"L\d|MLP\d|embedding", spec[1] or "") is None
    )


def _is_one_receiver(spec: Any) -> bool:
    if isinstance(spec, str | Receiver | Edge):
        return True
    return isinstance(spec, tuple) and len(spec) > 1 and isinstance(spec[1], str)


# --- what a sweep goes through -------------------------------------------------------------------

Axes = dict[str, Sequence[int | str]]


def sender_sets(model: TransformerBridge, spec: Any) -> tuple[Axes, list[Senders]]:
    """The axes of a sweep over senders, and the set of each cell."""
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    shape = Shape.of(model)
    if spec == "heads":
        nodes = shape.nodes()
        return {"layer": range(n_layers), "head": range(n_heads)}, [_alone(n) for n in nodes]
    if spec == "mlps" and shape.has_mlps:
        return {"layer": range(n_layers)}, [_alone(Node(layer, None)) for layer in range(n_layers)]
    if spec == "all":
        sets = [_alone(node) for node in [EMBEDDING, *shape.nodes(mlps=True)]]
        return {"sender": [senders.name for senders in sets]}, sets
    if isinstance(spec, Mapping):
        sets = [Senders(str(name), parse_senders(model, of).nodes) for name, of in spec.items()]
        if not sets:
            raise ValueError("There is no set of senders; give at least one.")
        return {"sender": [senders.name for senders in sets]}, sets
    return {}, [parse_senders(model, spec)]


def receiver_sets(model: TransformerBridge, spec: Any) -> tuple[Axes, list[Receivers]]:
    """The axis of a sweep over receivers, and the set of each cell."""
    if isinstance(spec, Mapping):
        sets = [
            Receivers(str(name), parse_receivers(model, of).inputs) for name, of in spec.items()
        ]
        if not sets:
            raise ValueError("There is no set of receivers; give at least one.")
        return {"receiver": [receivers.name for receivers in sets]}, sets
    return {}, [parse_receivers(model, spec)]


def _alone(node: Node) -> Senders:
    return Senders(str(node), (node,))


def every_input(
    model: TransformerBridge, inputs: Iterable[str] = ("q",), role: str | None = None
) -> dict[str, Receiver]:
    """Every receiver of some kinds, each under its name: what `path_sweep` goes through one by one.

    ``every_input(model, ("q", "final"), "END")`` is the query of every head at END, and the logits.

    Args:
        model: The model.
        inputs: Which of ``"q"``, ``"k"``, ``"v"`` (of every head), ``"in"`` (of every MLP) and
            ``"final"``.
        role: The token at which they are read; None for every token.

    Raises:
        ValueError: An unknown input.
    """
    wanted = [inputs] if isinstance(inputs, str) else list(inputs)
    unknown = [name for name in wanted if name not in (*HEAD_INPUTS, "in", "final")]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not an input; use some of q, k, v, in, final.")
    found: list[Receiver] = []
    for node in Shape.of(model).nodes(mlps=True):
        own = HEAD_INPUTS if node.is_head else ("in",)
        found += [Receiver(node, name, role) for name in own if name in wanted]  # type: ignore[arg-type]
    if "final" in wanted:
        found.append(FINAL)
    return {str(receiver): receiver for receiver in found}
