"""What a sweep is asked for: a site, axes, a direction, roles; and the cells that follow."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.patching.result import DIRECTIONS

STREAM_SITES: tuple[str, ...] = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
"""Sites with one vector a position: the residual stream and what a layer adds to it."""
HEAD_SITES: tuple[str, ...] = ("z", "q", "k", "v", "pattern")
"""Sites with one vector (or row of attention) a position and head."""
SITES: tuple[str, ...] = STREAM_SITES + HEAD_SITES
AXES: tuple[str, ...] = ("layer", "pos", "role", "head")

# TransformerLens' names for the same things.
_OTHER_NAMES: dict[str, str] = {
    "head_index": "head",
    "src_pos": "pos",
    "dest_pos": "pos",
    "position": "pos",
    "attn_head_out": "z",
    "result": "z",
    "attn_head_pattern": "pattern",
    "attn": "pattern",
    "attn_scores": "pattern",
}


@dataclass(frozen=True)
class Request:
    """What is patched, along which axes, and which way round; checked when it is made.

    Attributes:
        site: One of :data:`SITES`.
        axes: ``"layer"`` and some of the other :data:`AXES`, in the order of the result's.
        direction: ``"denoising"`` or ``"noising"``.
        roles: What stands along a ``"role"`` axis.
    """

    site: str
    axes: tuple[str, ...]
    direction: str
    roles: tuple[str, ...]

    @classmethod
    def of(
        cls, site: str, axes: str | Sequence[str], direction: str, roles: Sequence[str]
    ) -> Request:
        """From what a user writes.

        Raises:
            ValueError: Unknown site, axes or direction, or axes that do not go together.
        """
        axes = (axes,) if isinstance(axes, str) else tuple(axes)
        if isinstance(roles, str) or (not roles and "role" in axes):
            raise ValueError(f'roles must list one or more roles, such as ("S2",), not {roles!r}.')
        return cls(site, axes, direction, tuple(roles))

    def __post_init__(self) -> None:
        site, axes = self.site, self.axes
        if site not in SITES:
            raise ValueError(f"{_unknown(site, 'a site', SITES)}; use one of {', '.join(SITES)}.")
        unknown = [axis for axis in axes if axis not in AXES]
        if unknown:
            raise ValueError(
                f"{_unknown(unknown[0], 'an axis', AXES)}; use some of {', '.join(AXES)}."
            )
        if "layer" not in axes or len(set(axes)) < len(axes):
            raise ValueError(f"axes must hold 'layer' and no axis twice, not {axes}.")
        if {"pos", "role"} <= set(axes):
            raise ValueError("axes can hold 'pos' or 'role', but not both: both are positions.")
        if "head" in axes and site in STREAM_SITES:
            raise ValueError(
                f"{site} has no heads; leave 'head' out of axes or use one of "
                f"{', '.join(HEAD_SITES)}."
            )
        if self.direction not in DIRECTIONS:
            raise ValueError(f"direction must be 'denoising' or 'noising', not {self.direction!r}.")

    def entries(
        self, model: TransformerBridge, clean: TwoAnswerData
    ) -> dict[str, Sequence[int] | Sequence[str]]:
        """What stands along each axis."""
        n_heads = model.cfg.n_heads
        if self.site in ("k", "v"):  # which groups of queries may share
            n_heads = getattr(model.cfg, "n_key_value_heads", None) or n_heads
        along: dict[str, Sequence[int] | Sequence[str]] = {
            "layer": range(model.cfg.n_layers),
            "head": range(n_heads),
            "role": self.roles,
            "pos": range(int(clean.lengths.max())),
        }
        return {axis: along[axis] for axis in self.axes}


def _unknown(name: str, kind: str, known: tuple[str, ...]) -> str:
    """That a name is unknown, and what it is called here if TransformerLens knows it."""
    bare = str(name).rpartition("hook_")[2]
    ours = bare if bare in known else _OTHER_NAMES.get(bare)
    called = f" here, where it is called {ours!r}" if ours in known else ""
    return f"{name!r} is not {kind}{called}"


@dataclass(frozen=True)
class Cells:
    """The patches of a sweep at a site, one entry each; head or option is None if it is no axis.

    An option is one of the positions that can be patched in each prompt: a number along the
    ``"role"`` or ``"pos"`` axis.
    """

    site: str
    layer: Int[Tensor, " cell"]
    head: Int[Tensor, " cell"] | None
    option: Int[Tensor, " cell"] | None

    @classmethod
    def of(cls, site: str, entries: dict[str, Sequence[int] | Sequence[str]]) -> Cells:
        """All cells along these axes, the last axis fastest."""
        every = list(itertools.product(*(range(len(along)) for along in entries.values())))
        column = dict(zip(entries, torch.tensor(every).T, strict=True))
        option = column.get("role", column.get("pos"))
        return cls(site, column["layer"], column.get("head"), option)

    def __len__(self) -> int:
        return len(self.layer)

    def to(self, device: torch.device | str) -> Cells:
        """The same on a device."""
        return self._each(lambda column: column.to(device))

    def take(self, chosen: Tensor) -> Cells:
        """Some of the cells."""
        return self._each(lambda column: column[chosen])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Cells:
        head, option = (None if x is None else change(x) for x in (self.head, self.option))
        return Cells(self.site, change(self.layer), head, option)
