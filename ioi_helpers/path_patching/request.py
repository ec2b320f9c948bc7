"""What a sweep is asked, checked and put into tensors: what both engines are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.graph import Shape
from ioi_helpers.path_patching.language import (
    Receivers,
    Senders,
    receiver_sets,
    sender_sets,
    why_impossible,
)
from ioi_helpers.path_patching.pair import Pair, pair_of
from ioi_helpers.runs import require_model


@dataclass(frozen=True)
class Request:
    """The prompts, the sets of senders and of receivers, and which paths there are."""

    pair: Pair
    senders: Sequence[Senders]
    receivers: Sequence[Receivers]
    axes: Mapping[str, Sequence[int | str]]
    mlps: str
    direction: str
    reasons: Sequence[Sequence[str]]
    """Why there is no path, for each set of senders and of receivers; empty where there is one."""

    @property
    def mlps_frozen(self) -> bool:
        """Whether MLPs stay as they are in pass C."""
        return self.mlps == "frozen"

    @classmethod
    def of(
        cls,
        model: TransformerBridge,
        data: TwoAnswerData,
        reference: TwoAnswerData | None,
        senders: Any,
        receivers: Any,
        mlps: str,
        direction: str,
    ) -> Request:
        """See :func:`~ioi_helpers.path_patching.path_sweep`, whose errors it raises."""
        require_model(model)
        if mlps not in ("recomputed", "frozen"):
            raise ValueError(f"mlps must be 'recomputed' or 'frozen', not {mlps!r}.")
        sender_axes, sending = sender_sets(model, senders)
        receiver_axes, receiving = receiver_sets(model, receivers)
        pair = pair_of(model, data, reference, direction, _roles(sending, receiving))
        reasons = [
            [why_impossible(one, other, Shape.of(model), pair.coincide) for other in receiving]
            for one in sending
        ]
        axes = {**sender_axes, **receiver_axes}
        return cls(pair, sending, receiving, axes, mlps, direction, reasons)


def _roles(sending: Sequence[Senders], receiving: Sequence[Receivers]) -> list[str | None]:
    inputs = [receiver for several in receiving for receiver in several.inputs]
    nodes = [node for several in sending for node in several.nodes]
    nodes += [receiver.node for receiver in inputs if receiver.node is not None]
    return [node.role for node in nodes] + [receiver.role for receiver in inputs]
