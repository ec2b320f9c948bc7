"""TransformerLens' tools, answered by this package: for running its own tests on ours.

A plugin of pytest (``-p tests.transformer_lens_adapter``): before TransformerLens' test modules are
imported, the functions that they test are replaced by others with the same arguments that ask
``ioi_helpers``. What its tools do with logits that they have (select some, rank them, make a table)
is done here with logits that ours give, as differences to every other token; a cache stands for the
tokens of its run, which are run again. What ours cannot say (arbitrary vectors read off, a stream
without its norm, many sites in one array) raises ``NotSaid``, and the test that asks for it fails
for that reason.

GPT-2 and Pythia, which its integration tests download, are small models of random weights here,
and the prompt is in words that they know.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformer_lens.patching as their_patching
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools import analysis
from transformer_lens.tools.analysis.logit_lens import LogitLensResult, LogitReadout

from ioi_helpers import attribution, patching, runs
from tests import random_models


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

    def against_every_token(self, d_vocab: int) -> Bare:
        """Each prompt once for every token, which is the wrong answer there."""
        wrong = torch.arange(d_vocab).repeat(len(self))
        tokens, right = (x.repeat_interleave(d_vocab, dim=0) for x in (self.tokens, self.io_tokens))
        return Bare(tokens, right, wrong)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Any, /) -> Bare:
        return Bare(self.tokens[rows], self.io_tokens[rows], self.s_tokens[rows])


def _translated(error: ValueError, operation: str) -> ValueError:
    """A refusal in the words that TransformerLens' tests look for, where it means the same."""
    text = str(error).replace("DLA", operation)
    if "attribution cannot see" in text:
        text = f"differs from the model's own logits by up to ..., log-probabilities: {text}"
        text = f"differs from the model's own log-probabilities: {text}"
    return ValueError(text)


# --- direct logit attribution --------------------------------------------------------------------


def direct_logit_attribution(
    model: TransformerBridge,
    input: Any = None,
    *,
    answer_tokens: Any = None,
    incorrect_tokens: Any = None,
    unit: str = "component",
    pos: int | None = -1,
    cache: ActivationCache | None = None,
    **others: Any,
) -> SimpleNamespace:
    """TransformerLens' arguments; the terms without the bias of the unembedding, as it has them.

    One token's logit is the mean of its differences to all tokens, as compatibility mode centres
    the unembedding.
    """
    if others or answer_tokens is None:
        raise NotSaid(f"attribution of {', '.join(others) or 'no answer'}")
    input = _tokens(cache) if input is None else input
    if not isinstance(input, Tensor) and not hasattr(model, "cfg"):
        raise NotSaid("the model is none")
    alone = incorrect_tokens is None
    data = Bare.of(model, input, answer_tokens, 0 if alone else incorrect_tokens)
    n = len(data)
    if alone and hasattr(model, "cfg"):
        data = data.against_every_token(model.cfg.d_vocab)
    roles = ["END"] if pos == -1 else [str(i) for i in range(data.tokens.shape[1])]
    ask: dict[str, Callable[..., attribution.Attribution]] = {
        "component": attribution.layer_attribution,
        "head": attribution.decompose,
        "layer": attribution.logit_lens,
    }
    try:
        found = [ask[unit](model, data, role, progress=False) for role in roles]
    except ValueError as error:
        told = f"direct_logit_attribution() {_translated(error, 'DLA')}"
        raise ValueError(told.replace("DLA() DLA", "DLA")) from error

    def term(label: str) -> Tensor:
        by_role = torch.stack([parts.of(label).unflatten(0, (n, -1)).mean(1) for parts in found], 1)
        return by_role[:, 0] if pos == -1 else by_role

    terms = {label: term(label) for label in found[0].labels if label != "b_U"}
    if unit == "layer":
        rows = (data.io_tokens, data.s_tokens)
        of_answer, of_other = (model.b_U[row].unflatten(0, (n, -1)).mean(1) for row in rows)
        terms = {label: value - (of_answer - of_other) for label, value in terms.items()}
    if unit == "head":
        heads = {label: value for label, value in terms.items() if re.fullmatch(r"L\d+H\d+", label)}
        rest = torch.stack([value for label, value in terms.items() if label not in heads])
        terms = {**heads, "remainder": rest.sum(dim=0)}
    values = torch.stack(list(terms.values()))

    def top(k: int) -> list[tuple[str, float]]:
        means = values.mean(dim=-1)
        return [(list(terms)[i], float(means[i])) for i in means.argsort(descending=True)[:k]]

    return SimpleNamespace(attribution=values, labels=list(terms), unit=unit, top=top)


def _tokens(cache: ActivationCache | None) -> Any:
    """What a cache was made of."""
    if cache is None:
        raise NotSaid("neither prompts nor a cache")
    return cache.tokens_of_the_run


# --- logit lens ----------------------------------------------------------------------------------


def logit_lens(
    model: Any,
    input: Any = None,
    *,
    targets: Any = None,
    vocab: Any = None,
    top_k: int | None = None,
    return_type: str = "logits",
    positions: Any = -1,
    layers: list[int] | None = None,
    incl_mid: bool = False,
    batch_slice: int | None = None,
    **others: Any,
) -> LogitLensResult:
    """All logits of every entry: differences to token 0's, whose own are the model's at the end.

    So the last entry's are the model's if the differences are; the others' are up to a constant.
    """
    if set(others) - {"chunk_size"}:
        raise NotSaid(f"the lens has no {', '.join(others)}")
    if isinstance(model, ActivationCache):
        if input is not None:
            raise NotSaid("a cache and prompts")
        batch_slice = batch_slice if model.has_batch_dim else 0
        model, input = model.model, _tokens(model)
    if input is None or not hasattr(model, "hook_dict"):
        raise NotSaid("no prompts, or a model that does not run")
    tokens = Bare.of(model, input).tokens
    n, width, d_vocab = *tokens.shape, model.cfg.d_vocab
    data = Bare(tokens, torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.long))
    data = data.against_every_token(d_vocab)
    try:
        lenses = [
            attribution.logit_lens(model, data, str(at), layer_norm="own", progress=False)
            for at in range(width)
        ]
    except ValueError as error:
        raise _translated(error, "logit_lens") from error
    with torch.no_grad():
        zero = model(tokens)[..., :1]
    logits = zero - torch.stack([lens.per_prompt.unflatten(1, (n, d_vocab)) for lens in lenses], 2)
    labels = list(lenses[0].labels)
    kept = [i for i, label in enumerate(labels) if incl_mid or not label.endswith("_mid")]
    kept = kept if layers is None else [kept[i] for i in layers]
    logits, labels = logits[kept], [labels[i] for i in kept]
    if batch_slice is not None:
        logits = logits[:, batch_slice]
    if isinstance(positions, tuple):
        logits = logits[..., slice(*positions), :]
    elif positions is not None:
        logits = logits[..., positions, :]
    read = _selected(model, logits, targets, vocab, top_k, return_type)
    names = (
        None if targets is None else [t if isinstance(t, str) else None for t in _listed(targets)]
    )
    return LogitLensResult(read, labels, batch_slice is None, names)


def logit_readout(model: Any, *args: Any, **settings: Any) -> Any:
    """Refused as the lens is, or not said."""
    try:
        runs.require_model(model)
        attribution.readout(model)
    except ValueError as error:
        raise _translated(error, "logit_readout") from error
    raise NotSaid("only the stream of a run is read off")


def _listed(targets: Any) -> list[Any]:
    return [targets] if isinstance(targets, str | int) else list(targets)


def _selected(
    model: Any, logits: Tensor, targets: Any, vocab: Any, top_k: int | None, return_type: str
) -> LogitReadout:
    """What TransformerLens picks out of all logits, with its own names."""
    log_probs = logits.log_softmax(-1)
    values = {"logits": logits, "log_probs": log_probs, "probs": log_probs.exp()}[return_type]
    read = LogitReadout(values, return_type, -(log_probs.exp() * log_probs).sum(-1))
    if top_k is not None:
        read.values, read.top_ids = values.topk(top_k, dim=-1)
    elif vocab is not None:
        read.vocab_ids = torch.as_tensor(vocab)
        read.values = values[..., read.vocab_ids]
    elif targets is not None:
        read.per_row_targets = isinstance(targets, Tensor)
        if read.per_row_targets:
            at = targets.expand(logits.shape[:-1])
            read.target_ids, at = at, at[..., None]
        else:
            ids = [model.to_single_token(t) if isinstance(t, str) else t for t in _listed(targets)]
            read.target_ids = torch.tensor(ids)
            at = read.target_ids.expand(*logits.shape[:-1], -1)
        read.values = values.gather(-1, at)
        ahead = logits[..., None, :] > logits.gather(-1, at)[..., None]
        read.target_ranks = ahead.sum(-1)
    return read


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


def _generic(*args: Any, **settings: Any) -> Any:
    raise NotSaid("a sweep has a site and axes, not a function that sets activations")


# --- the plugin ----------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    """Put ours where TransformerLens' test modules look."""
    config.addinivalue_line("markers", "slow: TransformerLens' mark")
    _remember_tokens()
    for name, function in {
        "direct_logit_attribution": direct_logit_attribution,
        "logit_lens": logit_lens,
        "logit_readout": logit_readout,
    }.items():
        setattr(analysis, name, function)
    for name, (site, axes) in _SWEEPS.items():
        setattr(their_patching, name, _sweep(site, axes))
    setattr(their_patching, "generic_activation_patch", _generic)  # noqa: B010
    heads = "get_act_patch_attn_head"
    for name, function in {
        f"{heads}_all_pos_every": _every(heads, False),
        f"{heads}_by_pos_every": _every(heads, True),
        "get_act_patch_block_every": _block_every,
    }.items():
        setattr(their_patching, name, function)


WORDS = {
    "PROMPT": "When John and Mary went to the store, John gave a book to",
    "CORRECT": " Mary",
    "INCORRECT": " John",
    "ANSWER": " Mary",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Prompts in words that the small models know."""
    for item in items:
        module = getattr(item, "module", None)
        for name, text in WORDS.items():
            if hasattr(module, name):
                setattr(module, name, text)


@pytest.fixture(scope="session")
def gpt2_bridge(tmp_path_factory: pytest.TempPathFactory) -> TransformerBridge:
    """A GPT-2 as TransformerLens boots it."""
    return random_models.boot(_saved(tmp_path_factory, "gpt2-deep"), folded=False)


@pytest.fixture(scope="session")
def gpt2_bridge_compat(tmp_path_factory: pytest.TempPathFactory) -> TransformerBridge:
    """The same in compatibility mode."""
    return random_models.boot(_saved(tmp_path_factory, "gpt2-deep"))


@pytest.fixture(scope="session", autouse=True)
def _pythia_here(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Pythia of random weights, asked for by its name."""
    theirs = TransformerBridge.boot_transformers
    folders = {"EleutherAI/pythia-14m": "pythia", "Qwen/Qwen2.5-0.5B": "qwen2"}

    def boot(name: str, *args: Any, **settings: Any) -> TransformerBridge:
        if name in folders:
            return random_models.boot(_saved(tmp_path_factory, folders[name]), folded=False)
        return theirs(name, *args, **settings)

    TransformerBridge.boot_transformers = boot  # type: ignore[method-assign,assignment]


def _saved(folders: pytest.TempPathFactory, architecture: str) -> Path:
    return random_models.save(folders.mktemp(architecture), architecture)
