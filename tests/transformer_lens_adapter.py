"""TransformerLens' tools, answered by this package: for running its own tests on ours.

A plugin of pytest (``-p tests.transformer_lens_adapter``): before TransformerLens' test modules are
imported, the functions that they test are replaced by others with the same arguments that ask
``ioi_helpers``. What those cannot say (there is no cache, no vocabulary subset, no data frame of
TransformerLens' form) raises ``NotSaid``, and the test that asks for it fails for that reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformer_lens.patching as their_patching
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools import analysis

from ioi_helpers import attribution, patching, runs


class NotSaid(NotImplementedError):
    """The test asks for something that this package has no form for."""


@dataclass(frozen=True)
class Bare:
    """Tokens as a dataset: every position is a role."""

    tokens: Int[Tensor, "batch pos"]
    io_tokens: Int[Tensor, " batch"]
    s_tokens: Int[Tensor, " batch"]

    @staticmethod
    def of(model: TransformerBridge, tokens: Any, right: Any = 0, wrong: Any = 1) -> Bare:
        """Of whatever TransformerLens' functions take as input and as answers."""
        if isinstance(tokens, str | list):
            tokens = model.to_tokens(tokens)
        tokens = tokens if tokens.ndim == 2 else tokens[None]

        def ids(answer: Any) -> Tensor:
            number = model.to_single_token(answer) if isinstance(answer, str) else answer
            return torch.as_tensor(number).reshape(-1).expand(len(tokens))

        return Bare(tokens, ids(right), ids(wrong))

    @property
    def lengths(self) -> Tensor:
        """All of the same length."""
        return torch.full((len(self.tokens),), self.tokens.shape[1])

    @property
    def positions(self) -> dict[str, Tensor]:
        """``"0"``, ``"1"``, ... and END."""
        width = self.tokens.shape[1]
        named = {str(i): torch.full((len(self.tokens),), i) for i in range(width)}
        return {**named, "END": self.lengths - 1}

    @property
    def pair_ids(self) -> Tensor:
        """Each prompt by itself."""
        return torch.arange(len(self.tokens))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Any, /) -> Bare:
        return Bare(self.tokens[rows], self.io_tokens[rows], self.s_tokens[rows])


# --- direct logit attribution --------------------------------------------------------------------


def direct_logit_attribution(
    model: TransformerBridge,
    input: Any = None,
    *,
    answer_tokens: Any = None,
    incorrect_tokens: Any = None,
    unit: str = "component",
    pos: Any = -1,
    cache: Any = None,
    **others: Any,
) -> SimpleNamespace:
    """TransformerLens' arguments; the terms without the bias of the unembedding, as it has them."""
    if unit not in ("component", "head") or pos != -1 or others:
        raise NotSaid("attribution is by components or heads, at END")
    if cache is not None or input is None or answer_tokens is None:
        raise NotSaid("attribution is of prompts and their answers, not of a cache")
    if not isinstance(input, Tensor) and not hasattr(model, "cfg"):
        raise NotSaid("the model is none")
    data = Bare.of(model, input, answer_tokens, 0 if incorrect_tokens is None else incorrect_tokens)
    try:
        if unit == "component":
            parts = attribution.layer_attribution(model, data, progress=False)
        else:
            parts = attribution.decompose(model, data, progress=False)
    except ValueError as error:
        raise ValueError(f"direct_logit_attribution() {error}") from error
    if incorrect_tokens is None:
        raise NotSaid("attribution is of a logit difference, not of one logit")
    terms = {label: parts.of(label) for label in parts.labels if label != "b_U"}
    if unit == "head":
        heads = {label: term for label, term in terms.items() if re.fullmatch(r"L\d+H\d+", label)}
        rest = torch.stack([term for label, term in terms.items() if label not in heads])
        terms = {**heads, "remainder": rest.sum(dim=0)}
    values = torch.stack(list(terms.values()))

    def top(k: int) -> list[tuple[str, float]]:
        means = values.mean(dim=-1)
        return [(list(terms)[i], float(means[i])) for i in means.argsort(descending=True)[:k]]

    return SimpleNamespace(attribution=values, labels=list(terms), unit=unit, top=top)


# --- logit lens ----------------------------------------------------------------------------------


def logit_lens(model: Any, input: Any = None, *, targets: Any = None, **others: Any) -> Any:
    """All logits of every entry, from differences to token 0's, whose own are the model's.

    So in the last entry the logits are the model's if the differences are.
    """
    if not isinstance(model, TransformerBridge) or input is None:
        raise NotSaid("the lens runs prompts; it does not read a cache")
    unsaid = {k: v for k, v in others.items() if not (k == "positions" and v is None)}
    if unsaid or targets is not None:
        raise NotSaid(f"the lens has no {', '.join(unsaid) or 'targets'}")
    tokens = input if isinstance(input, Tensor) else model.to_tokens(input)
    n, every = len(tokens), torch.arange(model.cfg.d_vocab)
    found = []
    for at in range(tokens.shape[1]) if "positions" in others else [tokens.shape[1] - 1]:
        rows = tokens[:, : at + 1].repeat_interleave(len(every), dim=0)
        data = Bare(rows, every.repeat(n), torch.zeros(len(rows), dtype=torch.long))
        try:
            lens = attribution.logit_lens(model, data, progress=False)
        except ValueError as error:
            raise ValueError(str(error).replace("DLA", "logit_lens")) from error
        found.append(lens.per_prompt.unflatten(-1, (n, len(every))))
    with torch.no_grad():
        zero = model(tokens)[..., :1]
    values = torch.stack(found, dim=2) + zero
    values = values if "positions" in others else values[:, :, -1]
    return SimpleNamespace(values=values, labels=list(lens.labels))


# --- patching ------------------------------------------------------------------------------------

_Metric = Callable[[Tensor], Tensor]
_SWEEPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "get_act_patch_resid_pre": ("resid_pre", ("layer", "pos")),
    "get_act_patch_resid_mid": ("resid_mid", ("layer", "pos")),
    "get_act_patch_attn_out": ("attn_out", ("layer", "pos")),
    "get_act_patch_mlp_out": ("mlp_out", ("layer", "pos")),
    "get_act_patch_attn_head_out_all_pos": ("z", ("layer", "head")),
    "get_act_patch_attn_head_q_all_pos": ("q", ("layer", "head")),
    "get_act_patch_attn_head_k_all_pos": ("k", ("layer", "head")),
    "get_act_patch_attn_head_v_all_pos": ("v", ("layer", "head")),
    "get_act_patch_attn_head_pattern_all_pos": ("pattern", ("layer", "head")),
    "get_act_patch_attn_head_out_by_pos": ("z", ("layer", "pos", "head")),
    "get_act_patch_attn_head_q_by_pos": ("q", ("layer", "pos", "head")),
    "get_act_patch_attn_head_k_by_pos": ("k", ("layer", "pos", "head")),
    "get_act_patch_attn_head_v_by_pos": ("v", ("layer", "pos", "head")),
    "get_act_patch_attn_head_pattern_by_pos": ("pattern", ("layer", "head", "pos")),
}


def _remember_tokens() -> None:
    """TransformerLens' sweeps take a cache of the clean run, ours its tokens: keep them with it."""
    theirs = TransformerBridge.run_with_cache

    def run_with_cache(self: TransformerBridge, input: Any, *args: Any, **settings: Any) -> Any:
        logits, cache = theirs(self, input, *args, **settings)
        cache.tokens_of_the_run = input  # type: ignore[union-attr]
        return logits, cache

    TransformerBridge.run_with_cache = run_with_cache  # type: ignore[method-assign,assignment]


def _sweep(site: str, axes: tuple[str, ...]) -> Callable[..., Any]:
    def sweep(
        model: TransformerBridge,
        corrupted_tokens: Tensor,
        clean_cache: Any,
        patching_metric: Any,
        *,
        reduce: str = "scalar",
        baseline: bool = False,
        **others: Any,
    ) -> Any:
        if others or reduce not in ("scalar", "mean", "none"):
            raise NotSaid("no reduce= and no return_index_df=: a result has every prompt")
        runs.require_model(model)
        clean = Bare.of(model, clean_cache.tokens_of_the_run)
        corrupted = Bare.of(model, corrupted_tokens)
        settings: dict[str, Any] = {"site": site, "axes": axes, "progress": False}
        if reduce == "none":
            return patching.patch_sweep(model, clean, corrupted, metric=patching_metric, **settings)
        if isinstance(patching_metric, dict) or baseline:
            raise NotSaid("several metrics that give one number for all prompts")

        def repeated(logits: Tensor) -> Tensor:
            value = patching_metric(logits)
            return value.expand(len(clean)) if value.ndim == 0 else value

        return patching.patch_sweep(model, clean, corrupted, metric=repeated, **settings).mean()

    return sweep


def _every(prefix: str, by_pos: bool) -> Callable[..., Any]:
    """Head sweeps of five kinds, stacked."""
    names = [f"{prefix}_{kind}_{'by' if by_pos else 'all'}_pos" for kind in
             ("out", "q", "k", "v", "pattern")]  # fmt: skip

    def every(*args: Any, **settings: Any) -> Tensor:
        if settings.get("reduce", "scalar") != "scalar" or len(settings) > 1:
            raise NotSaid("one site a sweep: results of several are not stacked")
        found = [_sweep(*_SWEEPS[name])(*args, **settings) for name in names]
        if by_pos:
            found[-1] = found[-1].transpose(1, 2)
        return torch.stack([_padded(one, found[0].shape) for one in found])

    return every


def _padded(values: Float[Tensor, "*cells"], shape: Any) -> Float[Tensor, "*cells"]:
    """With zeros where heads share keys and values, as TransformerLens has it."""
    made = values.new_zeros(shape)
    made[tuple(slice(n) for n in values.shape)] = values
    return made


def _block_every(*args: Any, **settings: Any) -> Tensor:
    names = ("get_act_patch_resid_pre", "get_act_patch_attn_out", "get_act_patch_mlp_out")
    if settings.get("reduce", "scalar") != "scalar" or len(settings) > 1:
        raise NotSaid("one site a sweep: results of several are not stacked")
    return torch.stack([_sweep(*_SWEEPS[name])(*args, **settings) for name in names])


# --- the plugin ----------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    """Put ours where TransformerLens' test modules look."""
    _remember_tokens()
    for name, function in {
        "direct_logit_attribution": direct_logit_attribution,
        "logit_lens": logit_lens,
    }.items():
        setattr(analysis, name, function)
    for name, (site, axes) in _SWEEPS.items():
        setattr(their_patching, name, _sweep(site, axes))
    heads = "get_act_patch_attn_head"
    for name, function in {
        f"{heads}_all_pos_every": _every(heads, False),
        f"{heads}_by_pos_every": _every(heads, True),
        "get_act_patch_block_every": _block_every,
    }.items():
        setattr(their_patching, name, function)
