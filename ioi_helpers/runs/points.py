"""Points: places along the residual stream, named as the LRQP post names them.

``"L6.pre"`` is before block 6, ``"L6.mid"`` between its attention and its MLP, ``"L6.post"`` after
it (and so the same stream as ``"L7.pre"``).
"""

from __future__ import annotations

import re

from transformer_lens.model_bridge import TransformerBridge


def parse_point(point: str) -> tuple[int, str]:
    """The layer of a point that is written like ``"L6.mid"``, and where in the block it lies.

    Raises:
        ValueError: The text has another form.
    """
    match = re.fullmatch(r"L(\d+)\.(pre|mid|post)", point) if isinstance(point, str) else None
    if match is None:
        raise ValueError(
            f'{point!r} is not a point of the residual stream; write "L6.pre", "L6.mid" or '
            '"L6.post", with the layer counted from 0.'
        )
    return int(match[1]), match[2]


def residual_points(model: TransformerBridge) -> list[str]:
    """All points of a model in order, each stream once: L0.pre, L0.mid, L1.pre, ..., the last post.

    The post of a block is the pre of the next and is left out, except after the last block. A model
    without MLPs, or whose attention and MLP run in parallel, has no points in the middle of a
    block.
    """
    n_layers = model.cfg.n_layers
    has_middle = not model.cfg.attn_only and "blocks.0.hook_resid_mid" in model.hook_dict
    stages = ["pre", "mid"] if has_middle else ["pre"]
    points = [f"L{layer}.{stage}" for layer in range(n_layers) for stage in stages]
    return [*points, f"L{n_layers - 1}.post"]


def point_hook(model: TransformerBridge, point: str) -> str:
    """The hook at which a point of the residual stream can be *read*.

    To write there use :func:`ioi_helpers.edits.residual_edit`: in the middle of a block, a hook
    that returns a new tensor reaches the MLP only.

    Raises:
        ValueError: The text is no point, or the model has no such point.
    """
    layer, stage = parse_point(point)
    name = f"blocks.{layer}.hook_resid_{stage}"
    if layer >= model.cfg.n_layers or name not in model.hook_dict:
        raise ValueError(
            f"This model has no point {point}; its {model.cfg.n_layers} layers are counted from 0"
            + ("." if layer >= model.cfg.n_layers else f", and none has a hook_resid_{stage}.")
        )
    return name
