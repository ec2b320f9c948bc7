"""What is measured on IOI prompts: the logit difference and its relatives.

Every metric takes the logits of a run and the dataset that the run was over, reads the answer at
END of each prompt, and returns a tensor that gradients flow through. Use the logit difference to
look inside a model: it is linear in the last residual stream, and adding a constant to all logits
does not change it. Probability and rank say how good the model's behaviour looks from outside.

On a counterfactual's run, give the *clean* dataset (``corrupted.clean``) to ask how much the answer
still is the clean one; see ``IOIDataset``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.dataset.two_answers import gather_at_role, orders_of

Logits = Float[Tensor, "batch pos vocab"] | Float[Tensor, "batch vocab"]
"""What metrics read: logits of a run over ``data.tokens``, or already taken at END."""


class Estimate(NamedTuple):
    """A mean with its standard error, both in the units of what was averaged."""

    mean: float
    stderr: float
    n: int
    """Number of independent values averaged: rows, or clusters of rows."""

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.stderr:.3f} (n = {self.n})"

    def __format__(self, spec: str) -> str:
        """With a number's format both in it, such as ``f"{found:+.2f}"``: +1.35 ± 0.03."""
        # An error has no sign.
        return f"{self.mean:{spec}} ± {self.stderr:{spec.lstrip('+')}}" if spec else str(self)


def end_logits(logits: Logits, data: TwoAnswerData) -> Float[Tensor, "batch vocab"]:
    """The logits at END of each prompt, the ones that predict the answer.

    Args:
        logits: Of a run over ``data.tokens``, or already taken at END.
        data: The prompts.

    Raises:
        ValueError: The shape does not fit the dataset, for instance because the run had BOS and
            the dataset has not, or because it was over other rows.
    """
    if logits.ndim == 3:
        logits = gather_at_role(data, logits, "END")
    elif logits.ndim != 2:
        raise ValueError(
            f"Logits must be [batch, pos, vocab] or [batch, vocab], not {tuple(logits.shape)}."
        )
    if len(logits) != len(data):
        raise ValueError(
            f"There are logits of {len(logits)} prompts, but the dataset has {len(data)}."
        )
    largest = int(torch.maximum(data.io_tokens.max(), data.s_tokens.max()))
    if largest >= logits.shape[-1]:
        raise ValueError(
            f"The logits cover {logits.shape[-1]} tokens, but an answer is token {largest}; "
            "were the prompts made with another model's tokenizer?"
        )
    return logits


def _answer_logits(
    logits: Float[Tensor, "batch vocab"], tokens: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """One token's logit in each row, in float32 or better: half precision would round it."""
    chosen = logits.gather(1, tokens.to(logits.device)[:, None])[:, 0]
    return chosen if chosen.dtype == torch.float64 else chosen.float()


def _mean(
    values: Shaped[Tensor, " batch"], per_prompt: bool
) -> Shaped[Tensor, " batch"] | Float[Tensor, ""]:
    if per_prompt:
        return values
    return (values if values.is_floating_point() else values.float()).mean()


def logit_diff(
    logits: Logits, data: TwoAnswerData, per_prompt: bool = False
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Logit of IO minus logit of S at END, in logits.

    Positive where the model prefers the right name; e to the logit difference is how many times
    more likely IO is than S. The IOI paper's metric (section 2): 3.56 on average for GPT-2 small.

    Args:
        logits: [batch, pos, vocab] of a run over ``data.tokens``, or [batch, vocab] at END.
        data: The prompts, for their positions and answers (``io_tokens``, ``s_tokens``).
        per_prompt: One value for each prompt instead of the mean over prompts.

    Raises:
        ValueError: The logits do not fit the dataset (see ``end_logits``).
    """
    at_end = end_logits(logits, data)
    diff = _answer_logits(at_end, data.io_tokens) - _answer_logits(at_end, data.s_tokens)
    return _mean(diff, per_prompt)


def _probability(
    logits: Float[Tensor, "batch vocab"], tokens: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    log_total = torch.logsumexp(logits.to(dtype), dim=-1)
    return (_answer_logits(logits, tokens) - log_total).exp()


def io_probability(
    logits: Logits, data: TwoAnswerData, per_prompt: bool = False
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Probability of IO as the next token (0 to 1); about 0.49 for GPT-2 small (section 2).

    Unlike the logit difference it also falls when the model expects something that is no name at
    all. Arguments and errors: as for ``logit_diff``.
    """
    return _mean(_probability(end_logits(logits, data), data.io_tokens), per_prompt)


def s_probability(
    logits: Logits, data: TwoAnswerData, per_prompt: bool = False
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Probability of S, the wrong name, as the next token. As ``io_probability`` otherwise."""
    return _mean(_probability(end_logits(logits, data), data.s_tokens), per_prompt)


def _rank(
    logits: Float[Tensor, "batch vocab"], tokens: Int[Tensor, " batch"]
) -> Int[Tensor, " batch"]:
    own = logits.gather(1, tokens.to(logits.device)[:, None])
    return (logits > own).sum(dim=-1)


def io_rank(
    logits: Logits, data: TwoAnswerData, per_prompt: bool = False
) -> Float[Tensor, ""] | Int[Tensor, " batch"]:
    """How many tokens the model prefers to IO: 0 when IO is its first choice.

    (Counted from 0, like the ranks that TransformerLens' ``test_prompt`` prints.) Tokens with
    exactly the same logit do not count as preferred. Arguments and errors: as for ``logit_diff``.
    """
    return _mean(_rank(end_logits(logits, data), data.io_tokens), per_prompt)


def s_rank(
    logits: Logits, data: TwoAnswerData, per_prompt: bool = False
) -> Float[Tensor, ""] | Int[Tensor, " batch"]:
    """How many tokens the model prefers to S, the wrong name. As ``io_rank`` otherwise."""
    return _mean(_rank(end_logits(logits, data), data.s_tokens), per_prompt)


def io_preferred(
    logits: Logits, data: TwoAnswerData, per_prompt: bool = False
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Share of prompts on which IO's logit is above S's (0.993 for GPT-2 small, section 2).

    Per prompt: 1.0 or 0.0; a tie counts as 0. Arguments and errors: as for ``logit_diff``.
    """
    return _mean((logit_diff(logits, data, per_prompt=True) > 0).float(), per_prompt)


def cluster_values(
    values: Float[Tensor, "*axes batch"], clusters: Int[Tensor, " batch"] | None = None
) -> Float[Tensor, "*axes cluster"]:
    """One value for each cluster of prompts, whose mean is the mean over prompts.

    Prompts that were generated as a pair are not independent: they share template, names, place and
    object, so what moves one tends to move the other. Then a standard error over prompts counts
    the same thing twice and comes out too small (on the bundled models 0.80 to 0.89 of the one over
    pairs). Where the two of a pair move against each other, it comes out too large. So errors,
    intervals and tests in this package take *pairs* as their observations, by this function: what
    is done with independent values (a standard deviation over root n, a bootstrap, a permutation
    test) is done with its values.

    For clusters of equal size they are the cluster means. Otherwise a cluster counts by how much
    its prompts pull the mean m: m + (C / N) * (sum of its prompts' deviations from m), with C
    clusters and N prompts, the linearised estimate of a mean over unequal clusters.

    Args:
        values: One number for each prompt along the last axis.
        clusters: A number for each prompt, equal for prompts that belong together, such as
            ``data.pair_ids``. None: every prompt is its own.

    Raises:
        ValueError: ``clusters`` has another length.
    """
    wide = values if values.dtype == torch.float64 else values.float()
    if clusters is None:
        return wide
    if clusters.shape != values.shape[-1:]:
        raise ValueError(
            f"There are {values.shape[-1]} values but clusters of shape {tuple(clusters.shape)}; "
            "give one number for each prompt."
        )
    labels = torch.unique(clusters.to(values.device), return_inverse=True)[1]
    n = int(labels.max()) + 1 if len(labels) else 0
    if n == len(labels):
        return wide
    mean = wide.mean(dim=-1, keepdim=True)
    sums = wide.new_zeros(*wide.shape[:-1], n).index_add_(-1, labels, wide - mean)
    return mean + sums * (n / len(labels))


def standard_error(
    values: Float[Tensor, "*axes batch"], clusters: Int[Tensor, " batch"] | None = None
) -> Float[Tensor, "*axes"]:
    """The standard error of the mean over prompts, with clusters as the observations.

    NaN where there are fewer than two. Arguments and errors: as for ``cluster_values``.
    """
    independent = cluster_values(values, clusters)
    n = independent.shape[-1]
    if n < 2:
        return independent.new_full(independent.shape[:-1], math.nan)
    return independent.std(dim=-1) / math.sqrt(n)


def error_label(clusters: Int[Tensor, " batch"]) -> str:
    """What an error is over: ``"standard error over 100 pairs"``, or prompts, or groups."""
    sizes = torch.unique(clusters, return_counts=True)[1]
    largest = int(sizes.max())
    unit = "prompt" if largest == 1 else "pair" if largest == 2 else "group"
    return f"standard error over {len(sizes)} {unit}{'s' if len(sizes) > 1 else ''}"


def mean_and_stderr(
    values: Shaped[Tensor, " batch"], clusters: Int[Tensor, " batch"] | None = None
) -> Estimate:
    """Mean over prompts and its standard error (sample standard deviation over root n).

    With ``clusters=data.pair_ids`` the mean is over prompts still, and its error that of the pairs,
    which are what is independent in a paired dataset: see ``cluster_values``.

    For an interval without a normal approximation use
    ``transformer_lens.utilities.statistics.bootstrap_ci`` on the ``cluster_values``.

    Args:
        values: One number for each prompt, such as ``logit_diff(..., per_prompt=True)``.
        clusters: A number for each prompt, equal for prompts that belong together.

    Returns:
        ``Estimate(mean, stderr, n)``, with n the number of clusters, or of prompts without them.
        The error is NaN where n is less than 2, as everywhere.

    Raises:
        ValueError: ``values`` is not one-dimensional, or ``clusters`` has another length.
    """
    if values.ndim != 1:
        raise ValueError(
            f"Give one value for each prompt, not a tensor of shape {tuple(values.shape)}; "
            "compute the metric with per_prompt=True."
        )
    values = values.detach().cpu().double()
    independent = cluster_values(values, clusters)
    return Estimate(values.mean().item(), standard_error(independent).item(), len(independent))


def by_order(values: Shaped[Tensor, " batch"], data: TwoAnswerData) -> dict[str, Estimate]:
    """The mean over ABBA prompts and that over BABA prompts, each with its error over pairs.

    A model may do one thing where IO stands first and another where S does: the mean over both is
    then true of no prompt.

    Args:
        values: One number for each prompt.
        data: The prompts.

    Returns:
        "ABBA" and "BABA", those that occur, with an :class:`Estimate` each.

    Raises:
        ValueError: ``values`` is not one number a prompt.
    """
    if values.shape != (len(data),):
        raise ValueError(
            f"Give one value for each of the {len(data)} prompts, not a tensor of shape "
            f"{tuple(values.shape)}."
        )
    values, pairs = values.detach().cpu(), data.pair_ids.cpu()
    orders = orders_of(data)
    rows = {
        order: torch.tensor([i for i, one in enumerate(orders) if one == order])
        for order in sorted(set(orders))
    }
    return {order: mean_and_stderr(values[r], pairs[r]) for order, r in rows.items()}


def recovered_fraction(
    patched: Float[Tensor, "*axes"] | float,
    clean: Float[Tensor, "*axes"] | float,
    corrupted: Float[Tensor, "*axes"] | float,
    min_gap: float = 1e-6,
) -> Float[Tensor, "*axes"]:
    """How far patching moved a metric from its corrupted value to its clean one.

    0 where patching changed nothing, 1 where it restored the clean value, above 1 where it
    overshot, below 0 where it made things worse: (patched - corrupted) / (clean - corrupted).

    Take means over prompts first and the fraction of the means then. Fractions of single prompts
    can be huge where a prompt's clean and corrupted values lie close together, and their mean is
    ruled by those prompts.

    Args:
        patched, clean, corrupted: The same metric of the three runs, scored with the *same*
            answers, of shapes that broadcast.
        min_gap: Smallest difference of clean and corrupted that counts as one, in the metric's
            units.

    Raises:
        ValueError: Clean and corrupted are equal somewhere, so there is nothing to recover; or
            the shapes do not broadcast.
    """
    patched_, clean_, corrupted_ = (
        value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float32)
        for value in (patched, clean, corrupted)
    )
    try:
        torch.broadcast_shapes(patched_.shape, clean_.shape, corrupted_.shape)
    except RuntimeError as error:
        raise ValueError(
            f"patched {tuple(patched_.shape)}, clean {tuple(clean_.shape)} and corrupted "
            f"{tuple(corrupted_.shape)} do not fit together; use the same metric on all three runs."
        ) from error
    gap = clean_ - corrupted_
    # `not >` instead of `<=`, so that NaN is refused as well.
    empty = int((~(gap.abs() > min_gap)).sum())
    if empty:
        where = f" in {empty} of {gap.numel()} entries" if gap.numel() > 1 else ""
        raise ValueError(
            f"Clean and corrupted values are equal{where}, so there is nothing to recover; "
            "use a counterfactual that changes the metric, or average over prompts first."
        )
    return (patched_ - corrupted_) / gap
