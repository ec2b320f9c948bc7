"""Edges scored by gradients (EAP, EAP-IG), their exact effects, and how well the two agree.

An edge goes from a sender to one input of a receiver: at that receiver only, what the sender
contributes to the stream is replaced. `edge_scores` estimates the effects of all edges from a few
backward passes; `exact_edges` computes them, one edge at a time. Both have the same labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Unpack

import torch
from jaxtyping import Float
from scipy.stats import pearsonr, spearmanr
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import forward
from ioi_helpers.dataset import TwoAnswerData
from ioi_helpers.graph import EMBEDDING, HEAD_INPUTS, Circuit, Edge, Node, Shape, parse_node
from ioi_helpers.patching.result import SweepResult, sweep_result
from ioi_helpers.path_patching.gradients import FastRuns, HookRuns, Point, Runs, nodes_by_layer
from ioi_helpers.path_patching.language import (
    FINAL,
    Receiver,
    Receivers,
    Senders,
    every_input,
    reaches,
    shares_keys,
    why_impossible,
)
from ioi_helpers.path_patching.pair import Pair, pair_of
from ioi_helpers.path_patching.sweep import SweepSettings, path_sweep
from ioi_helpers.runs import DEFAULT_MEMORY, has_post_norm, progress_bar, require_model

METHODS: tuple[str, ...] = ("EAP", "EAP-IG", "EAP-IG activations")
POINTS: tuple[str, ...] = ("midpoint", "paper", "library", "trapezoid")
INPUTS: tuple[str, ...] = (*HEAD_INPUTS, "in", "final")


# --- the grid of edges ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Grid:
    """All senders, all receivers, and which of the edges between them are possible."""

    shape: Shape
    senders: list[Node]
    receivers: list[Receiver]
    roles: list[str | None]

    @classmethod
    def of(
        cls, model: TransformerBridge, roles: Sequence[str] | None, inputs: Sequence[str]
    ) -> _Grid:
        """Of a model; ``roles`` None is every token at once."""
        if isinstance(roles, str) or (roles is not None and not roles):
            raise ValueError(f'roles must list one or more roles, such as ("S2",), not {roles!r}.')
        senders = [EMBEDDING, *Shape.of(model).nodes(mlps=True)]
        receivers = list(every_input(model, inputs).values())
        listed: list[str | None] = [None] if roles is None else list(roles)
        return cls(Shape.of(model), senders, receivers, listed)

    @property
    def axes(self) -> dict[str, list[str | int]]:
        """The axes of a result."""
        at = {} if self.roles == [None] else {"role": list(self.roles)}
        labels = {"sender": map(str, self.senders), "receiver": map(str, self.receivers)}
        return {**at, **{name: list(along) for name, along in labels.items()}}  # type: ignore[dict-item]

    def at(self, receiver: Receiver, role: str | None) -> Receiver:
        """One of the receivers, read at a role."""
        return receiver if receiver == FINAL else Receiver(receiver.node, receiver.input, role)

    def possible(self, pair: Pair) -> list[bool]:
        """For each edge, in order."""
        return [
            not why_impossible(
                Senders("", (sender.at(role),)),
                Receivers("", (self.at(receiver, role),)),
                self.shape,
                pair.coincide,
            )
            for role in self.roles
            for sender in self.senders
            for receiver in self.receivers
        ]

    def labels(self) -> list[str]:
        """A name for each edge, in order."""
        return [
            f"{sender.at(role)} to {self.at(receiver, role)}"
            for role in self.roles
            for sender in self.senders
            for receiver in self.receivers
        ]

    def result(
        self,
        values: Float[Tensor, "role sender receiver batch"],
        runs: tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]],
        data: TwoAnswerData,
        direction: str,
        method: str,
        possible: list[bool],
    ) -> SweepResult:
        """A result; ``runs`` are the one that is patched and the other one."""
        clean, corrupted = runs if direction == "noising" else runs[::-1]
        found = sweep_result(
            values.flatten(0, 2),
            self.axes,
            clean=clean,
            corrupted=corrupted,
            pair_ids=data.pair_ids,
            direction=direction,
            method=method,
            site="edges",
            labels=self.labels(),
        )
        found.index_df["possible"] = possible
        return found


def edges_of(result: SweepResult) -> list[Edge]:
    """The edge of each cell of a result of `edge_scores` or `exact_edges`, in flattened order.

    So ``zip(edges_of(result), result.effect().mean(dim=-1).flatten())`` are edges with their
    scores. (Impossible ones among them: see the column ``possible`` of ``index_df``.)

    Raises:
        ValueError: The result is of something else.
    """
    table = result.index_df
    if result.site != "edges":
        raise ValueError("This is no result of edge_scores or exact_edges.")
    roles = table["role"] if "role" in table else [None] * len(table)
    return [
        _edge(sender, receiver, role)
        for sender, receiver, role in zip(table["sender"], table["receiver"], roles, strict=True)
    ]


def _edge(sender: str, receiver: str, role: str | None) -> Edge:
    source = parse_node(sender).at(role)
    if receiver == str(FINAL):
        return Edge(source, None, "final")
    name, _, component = receiver.partition(" of ")
    node = parse_node(component)
    if node.head is None:
        return Edge(source, node.at(role), "in")
    if name == "q":
        return Edge(source, node.at(role), "q")
    return Edge(source, node, "k" if name == "k" else "v")  # for the query of every later token


# --- exact ---------------------------------------------------------------------------------------


def exact_edges(
    model: TransformerBridge,
    data: TwoAnswerData,
    reference: TwoAnswerData | None = None,
    *,
    roles: Sequence[str] | None = None,
    inputs: Sequence[str] = INPUTS,
    direction: Literal["noising", "denoising"] | str = "noising",
    **settings: Unpack[SweepSettings],
) -> SweepResult:
    """The effect of every edge: at one receiver only, one sender's contribution is replaced.

    That is path patching with MLPs frozen, one sender and one receiver at a time. GPT-2 small has
    32,491 edges.

    Args:
        model, data, reference: As for :func:`~ioi_helpers.path_patching.path_sweep`.
        roles: The tokens at which an edge is cut, each on its own: for k and v that of the key.
            None cuts it at all tokens at once.
        inputs: Which inputs of receivers: some of ``q``, ``k``, ``v``, ``in`` and ``final``.
        direction: ``"noising"`` runs the data and puts the reference's contribution in (EAP's and
            ACDC's convention); ``"denoising"`` runs the reference and puts the data's in
            (TransformerLens'). The two differ, and so do their estimates: compare like with like.
        settings: ``engine``, ``memory``, ``progress`` and ``file`` of
            :func:`~ioi_helpers.path_patching.path_sweep`.

    Returns:
        ``values`` ``[role? sender receiver batch]``, logit differences; ``effect()`` is what the
        edge does. ``index_df`` has a column ``possible``. Senders are the embedding, heads and
        MLPs; receivers ``"q of L9H9"``, ``"input of MLP3"``, ``"final stream"``.

    Raises:
        ValueError: As :func:`~ioi_helpers.path_patching.path_sweep`.
    """
    require_model(model)
    grid = _Grid.of(model, roles, inputs)
    pair = pair_of(model, data, reference, direction, grid.roles)
    asked = {
        (i, j): grid.at(receiver, role)
        for i, role in enumerate(grid.roles)
        for j, receiver in enumerate(grid.receivers)
        if receiver != FINAL or role in (None, "END")
    }
    found = path_sweep(
        model, data, reference, "all", {str(place): receiver for place, receiver in asked.items()},
        mlps="frozen", direction=direction, **settings,
    )  # fmt: skip
    assert found.baseline is not None
    assert found.corrupted is not None
    shape = (len(grid.roles), len(grid.senders), len(grid.receivers), len(data))
    values = found.baseline.expand(shape).clone()
    for column, (i, j) in enumerate(asked):
        values[i, :, j] = found.values[:, column]
    runs = (found.clean, found.corrupted)
    return grid.result(
        values, runs if direction == "noising" else runs[::-1], data, direction, "exact edges",
        grid.possible(pair),
    )  # fmt: skip


# --- estimated -----------------------------------------------------------------------------------


def edge_scores(
    model: TransformerBridge,
    data: TwoAnswerData,
    reference: TwoAnswerData | None = None,
    *,
    method: Literal["EAP", "EAP-IG", "EAP-IG activations"] | str = "EAP-IG",
    steps: int = 5,
    points: Literal["midpoint", "paper", "library", "trapezoid"] | str = "midpoint",
    per: Literal["layer", "sender"] | str = "layer",
    direction: Literal["noising", "denoising"] | str = "noising",
    roles: Sequence[str] | None = None,
    inputs: Sequence[str] = INPUTS,
    engine: forward.Engine | str = "auto",
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> SweepResult:
    """Every edge's effect, estimated by gradients: edge attribution patching and its relatives.

    With u what a sender writes on the data and u' on the reference, the effect of replacing u by u'
    at the input of a receiver v is estimated as (u' - u) . dF/d(input of v), F the logit difference
    of the data's names. The methods differ in where the gradient is taken:

    ``"EAP"`` (Syed et al. 2023, arXiv 2310.10348)
        On the run that is patched: the first-order term of the effect. Poor where softmax or
        LayerNorm saturate, where the gradient is nearly zero and the effect is not.
    ``"EAP-IG"`` (Hanna et al. 2024, arXiv 2403.17806: "inputs")
        On average over runs between the two whose *embeddings* are mixed. The scores of the edges
        that leave the embedding add up to F(reference) - F(data), as steps grow.
    ``"EAP-IG activations"``
        On average over runs in which the *outputs* of the sender (``per="sender"``), or of all
        heads of its layer or its MLP (``per="layer"``), are mixed; everything else follows from the
        data. A sender's edges add up to activation patching of what was mixed. (EAP-IG's library
        instead adds up every edge's gradients from every such run.)

    Where the runs lie, with a from 0 (reference) to 1 (data) and m steps: ``"midpoint"`` at
    (k + 1/2) / m for k = 0 to m - 1, the most accurate; ``"paper"`` at 1/m to 1 and ``"library"``
    (EAP-IG's present one) at 0 to (m - 1)/m, each with one of the ends; ``"trapezoid"`` at 0 to 1,
    the ends with half weight (with one step: "clean-corrupted").

    TransformerLens' ``attribution_patch`` is EAP in the other direction, ``"denoising"``: (u - u')
    times the gradient of the reference's run. For the others the direction is but a sign.

    Args:
        model, data, reference, roles, inputs, direction: As for :func:`exact_edges`.
        method, steps, points, per: See above. EAP takes one gradient, whatever ``steps``.
        engine: ``"fast"`` differentiates the equations of :mod:`ioi_helpers.forward`, ``"hooks"``
            TransformerLens' own run, for models that are not GPT-2-like.
        memory: Bytes for activations and their gradients; more prompts than fit are run in parts.
        progress: Show a bar where there is something to wait for.

    Returns:
        As :func:`exact_edges`: ``effect()`` is the score, in logits. A helpful edge is negative
        when noising and positive when denoising. (Libraries that take minus the logit difference
        as a loss have the opposite sign when noising.)

    Raises:
        ValueError: As :func:`exact_edges`; an unknown method or rule; steps below 1; keys and
            values that heads share.
    """
    require_model(model)
    _check(method, steps, points, per)
    if shares_keys(model) and {"k", "v"} & set(inputs):
        raise ValueError(
            "In this model several heads share one key and value, so there are no edges into the k "
            'and v of single heads; ask for inputs=("q", "in", "final").'
        )
    gpt = forward.weights_for(model, engine, "Edge scores are made with hooks, on the whole model")
    if has_post_norm(model):
        raise ValueError(
            "Edge scores need what each head adds to the stream, but in this model "
            f"{forward.NOT_BY_HEAD}; use path_patch."
        )
    if memory < 1:
        raise ValueError(f"memory must be a positive number of bytes, not {memory}.")
    grid = _Grid.of(model, roles, inputs)
    # Always from the data to the reference: the direction is a sign, and where EAP's gradient is.
    pair = pair_of(model, data, reference, "noising", grid.roles)
    if method == "EAP":
        weights = [(1.0 if direction == "noising" else 0.0, 1.0)]
    else:
        weights = points_between(points, steps)
    if direction not in ("noising", "denoising"):
        raise ValueError(f"direction must be 'noising' or 'denoising', not {direction!r}.")
    groups: list[tuple[Node, ...] | None] = [None]
    if method == "EAP-IG activations":
        layers = nodes_by_layer(Shape.of(model))
        groups += layers if per == "layer" else ((node,) for several in layers for node in several)
    dtype = torch.promote_types(model.W_E.dtype, torch.float32)
    shape = (len(grid.roles), len(grid.senders), len(grid.receivers), len(pair))
    scores = torch.zeros(shape, dtype=dtype)
    found: list[tuple[Tensor, Tensor]] = []
    at_once = _prompts_at_once(model, pair, grid, memory)
    total = len(weights) * len(groups) * len(pair)
    with progress_bar(method, show=progress, total=total) as bar:
        for start in range(0, len(pair), at_once):
            rows = slice(start, start + at_once)
            part = pair.part(rows)
            runs: Runs = FastRuns(gpt, part) if gpt is not None else HookRuns(model, part)
            found.append(runs.logit_diffs)
            edges = _Contraction(grid, part, runs.changes())
            for group in groups:
                mixed = None if method != "EAP-IG activations" else (group or (EMBEDDING,))
                for a, weight in weights:
                    for layer, name, gradient in runs.gradients(Point(a, group)):
                        edges.add(layer, name, gradient, weight, mixed)
                    bar.update(len(part))
            scores[..., rows] = edges.scores.to(scores).permute(1, 2, 3, 0)
    clean, corrupted = (torch.cat(side).to(scores) for side in zip(*found, strict=True))
    runs_of = (clean, corrupted)
    if direction == "denoising":
        scores, runs_of = -scores, (corrupted, clean)
    return grid.result(
        scores + runs_of[0], runs_of, data, direction, method,
        grid.possible(pair),
    )  # fmt: skip


def _check(method: str, steps: int, points: str, per: str) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}.")
    if points not in POINTS:
        raise ValueError(f"points must be one of {', '.join(POINTS)}, not {points!r}.")
    if per not in ("layer", "sender"):
        raise ValueError(f"per must be 'layer' or 'sender', not {per!r}.")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a positive whole number, not {steps!r}.")


def points_between(points: str, steps: int) -> list[tuple[float, float]]:
    """Where gradients are taken, from 0 (reference) to 1 (data), and the weight of each.

    Args:
        points: One of :data:`POINTS`, see `edge_scores`.
        steps: How many intervals the way is cut into.
    """
    if points == "trapezoid":
        ends = {0: 0.5, steps: 0.5}
        return [(k / steps, ends.get(k, 1.0) / steps) for k in range(steps + 1)]
    offset = {"midpoint": 0.5, "paper": 1.0, "library": 0.0}[points]
    return [((k + offset) / steps, 1 / steps) for k in range(steps)]


def _prompts_at_once(model: TransformerBridge, pair: Pair, grid: _Grid, memory: int) -> int:
    """How many prompts the memory is enough for."""
    cfg, width = model.cfg, pair.width
    d_mlp = getattr(cfg, "d_mlp", None) or 4 * cfg.d_model
    # What the backward pass needs of each block, and the two runs.
    block = width * (24 * cfg.d_model + 3 * d_mlp) + 4 * cfg.n_heads * width**2
    changes = 3 * len(grid.senders) * cfg.d_model * width
    inputs = 3 * cfg.n_heads * cfg.d_model * width * 3
    scores = 2 * len(grid.senders) * len(grid.receivers) * len(grid.roles)
    per_prompt = cfg.n_layers * block + changes + inputs + scores
    return max(1, memory // (per_prompt * model.W_E.element_size()))


class _Contraction:
    """Adds up change times gradient for every edge of some prompts."""

    def __init__(self, grid: _Grid, pair: Pair, changes: Float[Tensor, "batch pos sender d_model"]):
        self.grid, self.pair = grid, pair
        self.changes = self._laid_out(changes)
        shape = (len(pair), len(grid.roles), len(grid.senders), len(grid.receivers))
        self.scores = torch.zeros(shape, dtype=changes.dtype, device=changes.device)
        self.columns: dict[tuple[int, str, int | None], int] = {}
        for column, receiver in enumerate(grid.receivers):
            node = receiver.node or Node(-1, None)
            self.columns[node.layer, receiver.input, node.head] = column

    def _laid_out(
        self, x: Float[Tensor, "batch pos node d_model"]
    ) -> Float[Tensor, "batch role node numbers"]:
        """Each node's vector at a role, or its vectors at all positions one after another."""
        if self.grid.roles == [None]:
            return x.transpose(1, 2).flatten(2)[:, None]
        rows = torch.arange(len(x), device=x.device)[:, None]
        at = torch.stack([self.pair.at[role] for role in self.grid.roles if role], dim=1)
        return x[rows, at.to(x.device)]

    def add(
        self,
        layer: int,
        name: str,
        gradient: Float[Tensor, "batch pos *head d_model"],
        weight: float,
        mixed: Sequence[Node] | None,
    ) -> None:
        """Add the edges into the inputs of one layer; only those of some senders, if given."""
        per_head = name in HEAD_INPUTS
        heads: list[int | None] = list(range(gradient.shape[2])) if per_head else [None]
        columns = [self.columns.get((-1 if name == "final" else layer, name, h)) for h in heads]
        if None in columns:  # inputs that are not asked for
            return
        reader = FINAL if name == "final" else Receiver(Node(layer, heads[0]), "q")
        senders = enumerate(self.grid.senders)
        reading = [i for i, node in senders if reaches(node, reader, self.grid.shape)]
        if mixed is not None:
            reading = [i for i in reading if self.grid.senders[i] in mixed]
        if not reading:
            return
        if not per_head:
            gradient = gradient[:, :, None]
        gradients = self._laid_out(gradient.to(self.changes)).transpose(-1, -2)
        rows = torch.tensor(reading, device=gradients.device)[:, None]
        at = torch.tensor(columns, device=gradients.device)
        self.scores[:, :, rows, at] += weight * (self.changes[:, :, reading] @ gradients)


# --- how well they agree -------------------------------------------------------------------------


def correlation(
    scores: SweepResult,
    exact: SweepResult,
    kind: Literal["pearson", "spearman"] | str = "pearson",
) -> float:
    """The correlation of two results over possible edges, of mean effects over prompts.

    Impossible edges are 0 in both and would flatter it.

    Args:
        scores, exact: Results of `edge_scores` or `exact_edges` with the same axes.
        kind: Pearson's r, or Spearman's, of the ranks.

    Raises:
        ValueError: They are of other edges or of other directions; or another kind.
    """
    if kind not in ("pearson", "spearman"):
        raise ValueError(f"kind must be 'pearson' or 'spearman', not {kind!r}.")
    a, b = (effects.numpy() for effects in _comparable(scores, exact))
    return float((pearsonr if kind == "pearson" else spearmanr)(a, b).statistic)


def precision_at_k(
    scores: SweepResult,
    exact: SweepResult,
    k: int,
    by: Literal["absolute", "helpful"] | str = "absolute",
) -> float:
    """Of the k edges with the largest scores, the share that is among the k with largest effects.

    Args:
        scores, exact: As for :func:`correlation`.
        k: How many.
        by: The size, or the signed help: how far the edge raises the logit difference.

    Raises:
        ValueError: As :func:`correlation`; k below 1 or above the number of possible edges.
    """
    estimated, true = _comparable(scores, exact)
    if not 1 <= k <= len(true):
        raise ValueError(f"k must be from 1 to {len(true)}, the number of possible edges, not {k}.")
    if by not in ("absolute", "helpful"):
        raise ValueError(f"by must be 'absolute' or 'helpful', not {by!r}.")
    sign = -1.0 if exact.direction == "noising" else 1.0
    best = [
        set((x.abs() if by == "absolute" else sign * x).topk(k).indices.tolist())
        for x in (estimated, true)
    ]
    return len(best[0] & best[1]) / k


@dataclass(frozen=True)
class Recovered:
    """Which edges of a known circuit a score finds.

    Attributes:
        found, truth: Those that the score calls members, and those that are.
    """

    found: frozenset[Edge]
    truth: frozenset[Edge]

    @property
    def precision(self) -> float:
        """The share of what is found that is true; no number (NaN) where nothing is found."""
        return len(self.found & self.truth) / len(self.found) if self.found else math.nan

    @property
    def recall(self) -> float:
        """The share of what is true that is found."""
        return len(self.found & self.truth) / len(self.truth)

    @property
    def missed(self) -> list[Edge]:
        """True edges that are not found, early senders first."""
        return Circuit.of_edges(self.truth - self.found).sorted_edges()


def recovered(
    scores: SweepResult,
    truth: Circuit,
    *,
    at_least: float | None = None,
    top: int | None = None,
) -> Recovered:
    """Hold scores or exact effects of edges against a circuit whose edges are known.

    ::

        exact = exact_edges(model, data, roles=ROLES)       # of models.handbuilt
        recovered(exact, handbuilt.edges(), at_least=0.02).recall

    An edge is found if the mean size of its score over prompts is large: by prompts, since an
    edge may help on one order and hurt on the other.

    Args:
        scores: As :func:`edge_scores` and :func:`exact_edges` return them.
        truth: The circuit, with edges named by the same roles.
        at_least: The smallest size, logits; or
        top: how many edges, the largest first.

    Raises:
        ValueError: Both or neither of ``at_least`` and ``top`` are given; the circuit has no edges,
            or one that the scores are not about.
    """
    if not truth.edges:
        raise ValueError("The circuit has no edges to be found; make one with Circuit.of_edges.")
    sizes = scores.effect().abs().mean(dim=-1).flatten().tolist()
    edges = edges_of(scores)
    missing = truth.edges - set(edges)
    if missing:
        raise ValueError(
            f"The scores are not about {Circuit.of_edges(missing).sorted_edges()[0]}; give them "
            "the roles of the circuit's edges."
        )
    found = Circuit.of_scores(zip(edges, sizes, strict=True), at_least=at_least, top=top)
    return Recovered(found.edges or frozenset(), truth.edges)


def _comparable(
    scores: SweepResult, exact: SweepResult
) -> tuple[Float[Tensor, " edge"], Float[Tensor, " edge"]]:
    """Mean effects over possible edges."""
    if scores.labels != exact.labels:
        raise ValueError("The two results are of other edges; give them the same roles and inputs.")
    if scores.direction != exact.direction:
        raise ValueError(
            f"One result is {scores.direction} and the other {exact.direction}, which estimate "
            "other effects; give both the same direction."
        )
    possible = torch.tensor(exact.index_df["possible"].tolist())
    one, other = (x.effect().mean(dim=-1).flatten().cpu()[possible] for x in (scores, exact))
    return one, other
