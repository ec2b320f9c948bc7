"""What heads do on random tokens that are repeated once.

Random tokens hold nothing to predict but the repetition, so a head's attention there says which
simple pattern it follows (Olsson et al. 2022, "In-context Learning and Induction Heads"):

- a *previous-token head* looks one token back;
- a *duplicate-token head* looks at the earlier copy of the token it stands on;
- an *induction head* looks at the token after that copy, which is what comes next.

A score is the mean attention along such a diagonal. It is superficial: it does not ask what the
head writes. :attr:`RepeatScores.repeated_logit` does, as far as the direct effect goes: a head with
a high induction score that *lowers* the logit of the token it looks at is an anti-induction head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import runs
from ioi_helpers.attribution import SCALE, Readout, readout, why_no_readout
from ioi_helpers.metrics import standard_error
from ioi_helpers.names import head_name

PATTERNS: tuple[str, ...] = ("previous_token", "duplicate_token", "induction")
"""The patterns that are scored."""
DEFINITIONS: tuple[str, ...] = ("robust", "demo", "detect_head")
DEFAULT_SEEDS = tuple(range(8))


@dataclass(frozen=True, eq=False)
class RepeatScores:
    """Scores of every head on repeated tokens.

    ``scores["induction"]`` is ``scores.induction``, the mean over sequences. Each sequence is drawn
    with its own seed, so standard errors are over sequences; they are NaN for a single one.

    Attributes:
        per_sequence: By name, ``[layer head row]``: the mean attention along each of
            :data:`PATTERNS`, 0 to 1; and ``"repeated_logit"``, what each head adds directly to the
            logit of the token that comes next in the second copy, against the mean of all tokens,
            with the final norm's scale of the run, in logits (NaN for models that do not let it be
            known, see ``reason``).
        losses: Mean cross-entropy on the second copy's tokens from the second one on, in nats.
        first_losses: The same on the first copy, where nothing can be known.
        chance: What attention that is spread evenly over the tokens so far scores.
        definition: Which definition of the scores; see :func:`repeat_scores`.
        reason: Why there is no ``repeated_logit``; empty where there is.
    """

    per_sequence: dict[str, Float[Tensor, "layer head row"]]
    losses: Float[Tensor, " row"]
    first_losses: Float[Tensor, " row"]
    chance: dict[str, float]
    definition: str
    reason: str = ""

    def __getitem__(self, name: str) -> Float[Tensor, "layer head"]:
        """The scores by name, their mean over sequences.

        Raises:
            ValueError: There is no such score.
        """
        if name not in self.per_sequence:
            raise ValueError(f"{name!r} is not a score; use one of {', '.join(self.per_sequence)}.")
        return self.per_sequence[name].mean(dim=-1)

    @property
    def previous_token(self) -> Float[Tensor, "layer head"]:
        """Mean attention to the token before."""
        return self["previous_token"]

    @property
    def duplicate_token(self) -> Float[Tensor, "layer head"]:
        """Mean attention to the earlier copy of the token."""
        return self["duplicate_token"]

    @property
    def induction(self) -> Float[Tensor, "layer head"]:
        """Mean attention to the token after the earlier copy."""
        return self["induction"]

    @property
    def repeated_logit(self) -> Float[Tensor, "layer head"]:
        """What each head adds directly to the logit of the token that comes next, in logits."""
        return self["repeated_logit"]

    @property
    def stderr(self) -> dict[str, Float[Tensor, "layer head"]]:
        """The standard error of each score, over sequences."""
        return {name: standard_error(values) for name, values in self.per_sequence.items()}

    @property
    def loss(self) -> float:
        """Mean cross-entropy on the second copy, in nats."""
        return float(self.losses.mean())

    @property
    def first_loss(self) -> float:
        """Mean cross-entropy on the first copy, in nats."""
        return float(self.first_losses.mean())

    def anti_induction(self, least: float = 0.3, sigmas: float = 3.0) -> list[str]:
        """Heads that look like induction heads and lower the logit of the token they look at.

        Args:
            least: The smallest induction score.
            sigmas: How many standard errors the effect must lie below zero.

        Raises:
            ValueError: The model does not let ``repeated_logit`` be known.
        """
        if self.reason:
            raise ValueError(self.reason)
        error = self.stderr["repeated_logit"].nan_to_num(0.0)
        found = (self.induction >= least) & (self.repeated_logit < -sigmas * error)
        return [head_name(layer, head) for layer, head in found.nonzero().tolist()]


def random_tokens(
    model: TransformerBridge, seeds: Sequence[int] = DEFAULT_SEEDS, length: int = 50
) -> Int[Tensor, "seed length"]:
    """Random tokens for one copy, one sequence a seed; no token twice, no special token.

    Raises:
        ValueError: No seeds, or a length that is below 3 or more than there are tokens.
    """
    special = set(model.tokenizer.all_special_ids) if model.tokenizer is not None else set()
    ordinary = torch.tensor([i for i in range(model.cfg.d_vocab) if i not in special])
    if isinstance(seeds, int) or not len(seeds):
        raise ValueError(f"seeds must list one or more whole numbers, not {seeds!r}.")
    if not 3 <= length <= len(ordinary):
        raise ValueError(f"length must be from 3 to {len(ordinary)} tokens, not {length}.")
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        rows.append(ordinary[torch.randperm(len(ordinary), generator=generator)[:length]])
    return torch.stack(rows).to(model.cfg.device)


@torch.no_grad()
def repeat_scores(
    model: TransformerBridge,
    tokens: Int[Tensor, "row length"] | None = None,
    *,
    definition: Literal["robust", "demo", "detect_head"] | str = "robust",
    seeds: Sequence[int] = DEFAULT_SEEDS,
    length: int = 50,
    prepend_bos: bool | None = None,
    memory: int = runs.DEFAULT_MEMORY,
    progress: bool = True,
) -> RepeatScores:
    """Previous-token, duplicate-token and induction score of every head.

    The induction score by the demo's definition, in plain TransformerLens, for ``tokens``
    ``[row length]``::

        repeated = torch.cat([tokens, tokens], dim=1)
        _, cache = model.run_with_cache(repeated)
        stripe = cache["pattern", layer].diagonal(-(length - 1), dim1=-2, dim2=-1)
        stripe.mean(dim=(0, -1))                                     # one score a head

    Three definitions:

    - ``"demo"`` is that of TransformerLens' Exploratory Analysis demo: no BOS, and the mean over
      the whole diagonal 1, ``length`` or ``length - 1`` below the main one. The first diagonal so
      counts both copies, the last one token of the first copy.
    - ``"detect_head"`` is that of TransformerLens' function of this name: the share of *all*
      attention, of all positions, that goes along the pattern. Duplicate-token and induction scores
      cannot pass one half there, as the first copy has nothing to look back at.
    - ``"robust"`` (the default) reads all three at the same tokens, those of the second copy that
      have a known successor, and never counts attention to the first position, at which heads rest
      (BOS, or the first token where there is none). So BOS hardly matters, and ``length`` only as
      far as it matters to the head.

    Args:
        model: Any decoder.
        tokens: What is repeated, without BOS; ``None`` draws :func:`random_tokens`.
        definition: See above.
        seeds, length: Of the tokens that are drawn.
        prepend_bos: Put BOS in front; by default only for the robust definition, where the
            tokenizer has one. The demo's has none.
        memory, progress: As for :func:`~ioi_helpers.runs.run_in_batches`.

    Hooks on the model stay on: inside ``with ablate(model, "L1H1", "zero"):`` the scores are those
    without that head.

    Returns:
        The scores, each head's direct effect on the repeated token's logit, and the loss.

    Raises:
        ValueError: An unknown definition; tokens that are no ``[row length]`` with at least 3
            columns, or too long for the model; BOS with the demo's definition, or where the
            tokenizer has none; or a model in training mode.
    """
    if definition not in DEFINITIONS:
        raise ValueError(
            f"{definition!r} is not a definition; use one of {', '.join(DEFINITIONS)}."
        )
    if tokens is None:
        tokens = random_tokens(model, seeds, length)
    if tokens.ndim != 2 or tokens.shape[1] < 3 or not len(tokens):
        raise ValueError(
            "tokens must be [row length] with at least 3 columns, one copy of what is repeated, "
            f"not of shape {tuple(tokens.shape)}."
        )
    start: int | None = getattr(model.tokenizer, "bos_token_id", None)
    bos = definition == "robust" and start is not None if prepend_bos is None else prepend_bos
    if bos and definition == "demo":
        raise ValueError("The demo's definition has no BOS; use 'robust' where there is one.")
    if bos and start is None:
        raise ValueError("The model's tokenizer has no BOS; leave out prepend_bos=True.")
    runs.require_model(model)
    tokens = tokens.to(model.cfg.device)
    whole = torch.cat([tokens, tokens], dim=1)
    if bos and start is not None:
        whole = torch.cat([torch.full_like(whole[:, :1], start), whole], dim=1)
    runs.refuse_too_long(model, whole)
    reason = why_no_readout(model)
    norm = None if reason else readout(model)
    places = _places(tokens.shape[1], int(bos), definition)
    rows, width = whole.shape
    kept = width * model.cfg.n_layers * model.cfg.d_model
    at_once = runs.prompts_at_once(model, width, memory, kept=kept, logits=2 * width)
    lengths = torch.full((rows,), width)
    parts = [
        _run(model, whole[part], places, tokens.shape[1], norm)
        for part in runs.in_parts(lengths, at_once, progress=progress, what="sequences")
    ]
    values = {name: torch.cat([part[name] for part in parts], dim=-1) for name in parts[0]}
    return RepeatScores(
        losses=values.pop("loss"),
        first_losses=values.pop("first_loss"),
        per_sequence=values,
        chance={name: places[name].chance() for name in PATTERNS},
        definition=definition,
        reason=reason,
    )


@dataclass(frozen=True)
class _Places:
    """Which cells of an attention pattern are summed, and what the sum is divided by."""

    queries: Int[Tensor, " cell"]
    keys: Int[Tensor, " cell"]
    count: int

    def chance(self) -> float:
        """The score of a head that looks at all tokens so far alike."""
        return float((1 / (self.queries + 1)).sum() / self.count)


def _places(length: int, bos: int, definition: str) -> dict[str, _Places]:
    end = bos + 2 * length
    found = {}
    back = {"previous_token": 1, "duplicate_token": length, "induction": length - 1}
    for name, offset in back.items():
        if definition == "robust":
            # The second copy without its first token, whose copy may be the first position, and
            # without its last, whose successor is not in the text.
            queries = torch.arange(bos + length + 1, end - 1)
        elif definition == "demo" or name == "previous_token":
            queries = torch.arange(offset, end)
        else:
            queries = torch.arange(bos + length, end)
        count = end if definition == "detect_head" else len(queries)
        found[name] = _Places(queries, queries - offset, count)
    return found


def _run(
    model: TransformerBridge,
    tokens: Int[Tensor, "row pos"],
    places: dict[str, _Places],
    length: int,
    norm: Readout | None,
) -> dict[str, Tensor]:
    """One value a row: scores and direct effects ``[layer head row]``, losses ``[row]``."""
    n_layers, last = model.cfg.n_layers, tokens.shape[1] - 1
    scores: dict[str, list[Tensor]] = {name: [torch.empty(0)] * n_layers for name in PATTERNS}
    outputs: list[Tensor] = [torch.empty(0)] * n_layers
    scale: list[Tensor] = []
    post_scales: list[Tensor] = [torch.ones(1, device=tokens.device)] * n_layers
    # The second copy's tokens that have a known successor, but the first.
    second = slice(last - length + 2, last)

    def read_pattern(pattern: Float[Tensor, "row head query key"], hook: Any, layer: int) -> None:
        for name, at in places.items():
            total = runs.widened(pattern[:, :, at.queries, at.keys]).sum(dim=-1) / at.count
            scores[name][layer] = total.T.to(tokens.device)

    def read_output(z: Float[Tensor, "row pos head d_head"], hook: Any, layer: int) -> None:
        outputs[layer] = runs.widened(z[:, second]).to(tokens.device)

    def read_post_scale(value: Tensor, hook: Any, layer: int) -> None:
        post_scales[layer] = runs.widened(value[:, second]).to(tokens.device)

    def read_scale(value: Tensor, hook: Any) -> None:
        scale.append(runs.widened(value[:, second]).to(tokens.device))

    hooks: list[tuple[str, Any]] = []
    for layer in range(n_layers):
        hooks.append((f"blocks.{layer}.attn.hook_pattern", partial(read_pattern, layer=layer)))
        if norm is not None:
            hooks.append((f"blocks.{layer}.attn.hook_z", partial(read_output, layer=layer)))
            if runs.has_post_norm(model):
                post = runs.POST_NORM_SCALE.format(layer)
                hooks.append((post, partial(read_post_scale, layer=layer)))
    if norm is not None:
        hooks.append((SCALE, read_scale))
    logits = runs.widened(model.run_with_hooks(tokens, fwd_hooks=hooks)).to(tokens.device)
    found = {name: torch.stack(values) for name, values in scores.items()}

    if norm is None:
        found["repeated_logit"] = torch.full_like(found["induction"], float("nan"))
    else:
        following = tokens[:, second.start + 1 : second.stop + 1]
        unembed = runs.widened(model.W_U)
        directions = (unembed.T[following] - unembed.mean(dim=-1)) * (norm.weight * norm.after)
        directions = directions / scale[-1]
        # Written and read without the mean over d_model, where the norm takes it away.
        directions = norm.seen(directions)
        effects = [
            torch.einsum(
                "rphe,hem,rpm->hr",
                z,
                runs.widened(block.attn.W_O),
                directions * runs.attention_weight(block) / post,
            )
            / directions.shape[1]
            for z, block, post in zip(outputs, model.blocks, post_scales, strict=True)
        ]
        found["repeated_logit"] = torch.stack(effects)

    log_probabilities = logits[:, :-1].log_softmax(dim=-1)
    loss = -log_probabilities.gather(2, tokens[:, 1:, None])[..., 0]
    # From the second token of each copy on: loss[i] is that of token i + 1.
    found["loss"] = loss[:, last - length + 1 :].mean(dim=-1)
    found["first_loss"] = loss[:, last - 2 * length + 1 : last - length].mean(dim=-1)
    return found
