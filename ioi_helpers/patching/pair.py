"""The two runs of a sweep: what is run, and where what is put into it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import forward
from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.dataset.two_answers import templates_of
from ioi_helpers.patching.request import Request
from ioi_helpers.runs import landmarks, refuse_too_long, require_alike, require_data, role_positions


@dataclass(frozen=True)
class NoisyEmbedding:
    """A corrupted run without other prompts: Gaussian noise on one token's embedding.

    The corruption of Meng et al. 2022 (section 2.1), who take three standard deviations. Zhang and
    Nanda 2023 explain why a counterfactual prompt is usually better: noise takes the model to where
    it has never been.

    Attributes:
        role: The position whose embedding is disturbed, in the clean prompts.
        scale: Standard deviation of the noise, in standard deviations of the model's token
            embeddings.
        seed: Seeds the noise.
    """

    role: str = "S2"
    scale: float = 3.0
    seed: int = 0

    def draw(
        self, model: TransformerBridge, clean: TwoAnswerData
    ) -> tuple[Float[Tensor, "batch pos d_model"], Int[Tensor, " batch"]]:
        """The noise, zero elsewhere than at the role, and where that is."""
        at = role_positions(clean, self.role).cpu()
        embeddings = model.W_E
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(len(clean), embeddings.shape[1], generator=generator)
        shift = torch.zeros(len(clean), int(clean.lengths.max()), embeddings.shape[1])
        shift[torch.arange(len(clean)), at] = self.scale * float(embeddings.std()) * drawn
        return shift.to(embeddings), at


@dataclass(frozen=True)
class Pair:
    """The two runs of a sweep: the base is run, with activations of the source patched in.

    Every tensor's first axis is the batch.

    Attributes:
        base_tokens, source_tokens, base_last, source_last: The prompts and their last positions.
        base_at, source_at: The positions that are patched, in either run; None where all are.
        first, differs: Where the two runs differ; None where their positions do not correspond.
        base_shift, source_shift: Added to the embeddings: noise, in one of the two.
    """

    base_tokens: Int[Tensor, "batch pos"]
    source_tokens: Int[Tensor, "batch source_pos"]
    base_last: Int[Tensor, " batch"]
    source_last: Int[Tensor, " batch"]
    base_at: Int[Tensor, "batch option"] | None
    source_at: Int[Tensor, "batch option"] | None
    first: Int[Tensor, " batch"] | None
    differs: Bool[Tensor, "batch pos"] | None
    base_shift: Float[Tensor, "batch pos d_model"] | None = None
    source_shift: Float[Tensor, "batch pos d_model"] | None = None

    @classmethod
    def of(
        cls,
        model: TransformerBridge,
        request: Request,
        clean: TwoAnswerData,
        corrupted: TwoAnswerData | NoisyEmbedding,
    ) -> Pair:
        """Check that the datasets fit together, the model and the request; make tensors of them.

        Raises:
            ValueError: See :func:`~ioi_helpers.patching.patch_sweep`.
        """
        noise = corrupted if isinstance(corrupted, NoisyEmbedding) else None
        other = clean if isinstance(corrupted, NoisyEmbedding) else corrupted
        require_data(model, clean, other)
        require_alike(clean, other, "corrupted")
        aligned = _require_correspondence(request, clean, other)
        for data in (clean, other):
            refuse_too_long(model, data.tokens[:, : int(data.lengths.max())])

        clean_at = other_at = None
        if "role" in request.axes:
            clean_at = _positions(clean, request.roles)
            other_at = clean_at if aligned else _positions(other, request.roles)
        elif "pos" in request.axes:
            clean_at = other_at = torch.arange(int(clean.lengths.max())).expand(len(clean), -1)
        tokens, other_tokens = (
            data.tokens[:, : int(data.lengths.max())] for data in (clean, other)
        )
        first = differs = shift = None
        if noise is not None:
            shift, first = noise.draw(model, clean)
            positions = torch.arange(tokens.shape[1])
            differs = positions == first[:, None]
        elif aligned:
            first, differs = forward.first_difference(
                tokens, other_tokens.to(tokens.device), clean.lengths
            )
        runs = [
            (tokens, clean.lengths - 1, clean_at, None),
            (other_tokens, other.lengths - 1, other_at, shift),
        ]
        source, base = runs if request.direction == "denoising" else runs[::-1]
        return cls(
            base_tokens=base[0],
            source_tokens=source[0],
            base_last=base[1],
            source_last=source[1],
            base_at=base[2],
            source_at=source[2],
            first=first,
            differs=differs,
            base_shift=base[3],
            source_shift=source[3],
        ).to(model.W_E.device)

    def __len__(self) -> int:
        return len(self.base_tokens)

    def part(self, rows: slice | Int[Tensor, " rows"]) -> Pair:
        """Some of the prompts."""
        tensors = vars(self).items()
        return replace(self, **{name: x[rows] for name, x in tensors if x is not None})

    def to(self, device: torch.device | str) -> Pair:
        """All tensors on a device."""
        tensors = vars(self).items()
        return replace(self, **{name: x.to(device) for name, x in tensors if x is not None})


def _positions(data: TwoAnswerData, roles: Sequence[str]) -> Int[Tensor, "batch role"]:
    return torch.stack([role_positions(data, role) for role in roles], dim=1)


def _require_correspondence(
    request: Request, clean: TwoAnswerData, corrupted: TwoAnswerData
) -> bool:
    """Whether position i of a prompt is position i of its counterpart; refused where it has to be.

    That is so where the two have equal lengths and the same template. Otherwise only roles say what
    corresponds to what.
    """
    if len(clean) != len(corrupted):
        raise ValueError(
            f"clean has {len(clean)} prompts but corrupted has {len(corrupted)}; they must "
            "correspond row by row."
        )
    equal = clean.lengths.cpu() == corrupted.lengths.cpu()
    templates = zip(templates_of(clean), templates_of(corrupted), strict=True)
    of_one_template = torch.tensor([one == other for one, other in templates])
    # Of the same length and template, names of several tokens may stand elsewhere still.
    places = [landmarks(data) for data in (clean, corrupted)]
    in_place = (places[0] == places[1]).all(dim=1) if places[0].shape == places[1].shape else ~equal
    alike = equal & of_one_template & in_place
    row = int((~alike).int().argmax())
    why = (
        f"Prompt {row} has {int(clean.lengths[row])} tokens, but its counterpart in corrupted "
        f"{int(corrupted.lengths[row])}"
        if not equal[row]
        else f"Prompt {row} and its counterpart in corrupted are of different templates"
        if not of_one_template[row]
        else f"Prompt {row} and its counterpart in corrupted have roles at other tokens"
    )
    aligned = bool(alike.all())
    if not aligned and "role" not in request.axes:
        raise ValueError(
            f"{why}, so their positions do not correspond; make axes hold 'role', or use a "
            "counterfactual such as swap_subject(), which keeps positions."
        )
    if not aligned and request.site == "pattern":
        raise ValueError(
            f"{why}, so their attention patterns do not correspond; patch q, k, v or z."
        )
    shortest, longest = int(clean.lengths.min()), int(clean.lengths.max())
    if "pos" in request.axes and shortest != longest:
        raise ValueError(
            f"Prompts have {shortest} to {longest} tokens, so a position number means something "
            "else in each; use 'role' instead of 'pos', or prompts of one length."
        )
    return aligned
