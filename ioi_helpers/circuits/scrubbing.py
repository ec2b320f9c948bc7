"""Causal scrubbing: does a hypothesis about a circuit survive resampling all that it calls idle?

A hypothesis is a tree. Each node is a part of the model at a role; it is said to depend on a few
*features* of the prompt only, and to read only its children. To scrub is to compute the node from
prompts that agree in these features and in nothing else, and everything that it is not said to read
from prompts that agree in nothing but the template. If the hypothesis is right, the answer survives
(Chan et al. 2022; the IOI paper's companion post trusts it more than mean ablation).

Draws are of whole prompts, by ``data.redraw(agree=...)``, one for each node, so that a head that
two parents read is drawn twice: a tree, not a graph. All draws share the template, since tokens
must correspond; a :class:`Stream` takes its embedding and all heads that it is not said to read
from one draw that agrees in nothing else. MLPs and LayerNorms are recomputed along every path.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ioi_helpers import forward, runs
from ioi_helpers.circuits.run import CircuitRun
from ioi_helpers.circuits.scores import _ratio
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.graph import Circuit, Node
from ioi_helpers.metrics import Estimate, mean_and_stderr

Features = tuple[str, ...]
"""Of ``"order"``, ``"IO"`` and ``"S"``; the template is always shared."""


@dataclass(frozen=True)
class Drawn:
    """A plain value, of a prompt that agrees with the node's own in these features."""

    features: Features = ()


@dataclass(frozen=True)
class Stream:
    """The residual stream at a role, said to carry what these heads write there, and nothing else.

    Attributes:
        heads: The heads it is said to read at that role.
        features: What the prompt that it stands for agrees in with its parent's.
    """

    heads: tuple[Heads, ...] = ()
    features: Features = ()

    def __post_init__(self) -> None:
        for heads in self.heads if isinstance(self.heads, tuple) else (self.heads,):
            if not isinstance(heads, Heads):
                raise ValueError(
                    f"A Stream is said to read parts, not {heads!r}; write "
                    "Stream((Heads(frozenset({node}), features),))."
                )
        if not isinstance(self.heads, tuple):
            raise ValueError("A Stream's parts come in a tuple; write Stream((heads,)).")


@dataclass(frozen=True)
class Heads:
    """Some heads at a role, and what their inputs are said to depend on.

    Attributes:
        nodes: The heads; all at one role.
        features: What the prompt they are computed on agrees in with their parent's.
        queries: Their queries.
        keys_values: Their keys and values at some roles.
        elsewhere: Their keys and values at all other positions.
    """

    nodes: frozenset[Node]
    features: Features
    queries: Stream | Drawn = field(default_factory=Drawn)
    keys_values: Mapping[str, Stream | Drawn] = field(default_factory=dict)
    elsewhere: Drawn = field(default_factory=Drawn)

    def __post_init__(self) -> None:
        for node in self.nodes:
            if not isinstance(node, Node):
                raise ValueError(
                    f"The heads of a part of a hypothesis must be nodes, not {node!r}; write "
                    "graph.parse_node(('L9H9', 'END'))."
                )
        for what in (self.queries, *self.keys_values.values(), self.elsewhere):
            if not isinstance(what, Stream | Drawn):
                raise ValueError(
                    f"What a part of a hypothesis reads is a Stream or Drawn, not {what!r}; write "
                    "Drawn(('order',)), say, for a plain value that agrees in that."
                )

    @property
    def role(self) -> str:
        """Where they stand.

        Raises:
            ValueError: They stand at several roles, at none, or there are no heads.
        """
        found = {node.role for node in self.nodes}
        role = found.pop() if len(found) == 1 else None
        if role is None or not all(node.is_head for node in self.nodes):
            raise ValueError(
                "The heads of one part of a hypothesis must be heads, at one and the same role, "
                f"but these are {', '.join(map(str, sorted(self.nodes))) or 'none'}."
            )
        return role


@dataclass(frozen=True)
class Scrubbed:
    """How much of the behaviour survives.

    Attributes:
        model, scrubbed, unrelated: The model; the scrubbed run; and the model on an unrelated
            prompt, scored with the original names. Each ``[draw x batch]``, one draw after another.
        pair_ids: Of the same prompts.
        draws: A row for each draw of prompts: for which part, the features that they ``agree in``
            with the prompts of the part above, and how many prompts there are to draw from, the
            ``fewest`` and the ``mean`` over prompts. A part of which only the own prompt agrees
            passes whatever is claimed of it.
    """

    model: CircuitRun
    scrubbed: CircuitRun
    unrelated: CircuitRun
    pair_ids: Tensor
    draws: pd.DataFrame

    def __str__(self) -> str:
        fewest = self.draws["fewest"].min()
        part = self.draws["part"][self.draws["fewest"].idxmin()]
        return (
            f"loss recovered {self.loss_recovered()}, logit difference "
            f"{self.logit_diff_ratio()} of the model's; drawn from {fewest} prompts that agree, or "
            f"more (fewest for {part})"
        )

    def loss_recovered(self) -> Estimate:
        """(L_scrubbed - L_unrelated) / (L_model - L_unrelated): 0 is chance, 1 is the model."""
        other = self.unrelated.loss
        return _ratio(self.scrubbed.loss - other, self.model.loss - other, self.pair_ids)

    def logit_diff_ratio(self) -> Estimate:
        """The mean logit difference of the scrubbed run over the model's."""
        return _ratio(self.scrubbed.logit_diff, self.model.logit_diff, self.pair_ids)

    def logit_diff(self) -> Estimate:
        """The scrubbed run's, in logits."""
        return mean_and_stderr(self.scrubbed.logit_diff, self.pair_ids)


def scrub(
    model: TransformerBridge,
    data: IOIDataset,
    hypothesis: Stream,
    *,
    draws: int = 4,
    seed: int = 0,
    memory: int = runs.DEFAULT_MEMORY,
    progress: bool = True,
) -> Scrubbed:
    """Run a hypothesis about the final stream at END.

    Args:
        model: A model that :mod:`ioi_helpers.forward` can run.
        data: The prompts, without prefixes: all prompts of a template must be equally long.
        hypothesis: What the final stream is said to read. Its features are of no meaning: the
            answer is scored with each prompt's own names.
        draws: How often everything is drawn.
        seed: Seeds the draws.
        memory: Bytes for activations; more prompts than fit are run in parts.
        progress: Show a bar where there is something to wait for.

    Raises:
        ValueError: No draws; prompts of one template differ in length; the hypothesis is no
            ``Stream``, or names heads that the model lacks, at several roles at once, at another
            role than the stream that they write into, twice in one stream, or layers out of order;
            another architecture.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, not {draws}.")
    if not isinstance(hypothesis, Stream):
        raise ValueError(
            "A hypothesis is a Stream, what the final stream at END is said to read, not "
            f"{type(hypothesis).__name__}; write Stream((heads,))."
        )
    runs.require_data(model, data)
    gpt = forward.require_weights(model, "Causal scrubbing needs")
    lengths = data.lengths.cpu()
    templates = data.template_ids.cpu()
    for template in templates.unique():
        if len(lengths[templates == template].unique()) > 1:
            raise ValueError(
                "Prompts of the same template differ in length, so tokens of a draw would not "
                "correspond; make the prompts without prefixes."
            )
    _require_heads(model, hypothesis, "END")
    table = _table_of_draws(data, hypothesis)
    width = int(lengths.max())
    # Of each plain run that is waiting for those further down: its stream, keys, values and z.
    kept = _runs_at_once(hypothesis) * 4 * gpt.n_layers * width * gpt.W_E.shape[1]
    size = runs.prompts_at_once(model, width, memory, kept=kept)
    found: dict[str, list[CircuitRun]] = {"model": [], "scrubbed": [], "unrelated": []}
    for draw in runs.progress_bar("draws", range(draws), show=progress):
        # All prompts are drawn together whatever the memory, so parts do not change the draws.
        drawn: dict[int, IOIDataset] = {}
        parts: dict[str, list[CircuitRun]] = {name: [] for name in found}
        order = list(runs.in_parts(lengths, size, progress=False))
        for rows in order:
            scrubber = _Scrubber(gpt, seed * 1_000_003 + draw * 1_009, rows, drawn)
            part = data[rows]
            unrelated = scrubber.draw(data, ())
            finals = {
                "model": scrubber.final(data),
                "unrelated": scrubber.final(unrelated),
                "scrubbed": scrubber.stream(hypothesis, data, "END", gpt.n_layers)[-1],
            }
            for name, final in finals.items():
                parts[name].append(CircuitRun.of_logits(forward.unembed(gpt, final), part))
        for name, runs_ in parts.items():
            found[name].append(CircuitRun.join(runs_, order))
    joined = {name: CircuitRun.join(runs_) for name, runs_ in found.items()}
    return Scrubbed(**joined, pair_ids=data.pair_ids.cpu().repeat(draws), draws=table)


def _table_of_draws(data: IOIDataset, hypothesis: Stream) -> pd.DataFrame:
    rows = []
    for part, features in _draws(hypothesis, "END"):
        agree = data.agreeing(features).double()
        named = ", ".join(("template", *features))
        rows.append((part, named, int(agree.min()), float(agree.mean())))
    return pd.DataFrame(rows, columns=["part", "agree in", "fewest", "mean"])


def _draws(spec: Stream | Drawn, role: str, of: str = "") -> Iterator[tuple[str, Features]]:
    """What is drawn below a part of a hypothesis, and in what it agrees, from the top."""
    if isinstance(spec, Drawn):
        yield of, spec.features
        return
    if of:
        yield of, spec.features
    yield f"all else in the stream at {role}{' for ' + of if of else ''}", ()
    for heads in spec.heads:
        names = ", ".join(node.name for node in sorted(heads.nodes))
        part = f"{names} at {heads.role}"
        yield part, heads.features
        yield from _draws(heads.queries, heads.role, f"queries of {part}")
        yield f"keys and values of {part} elsewhere", heads.elsewhere.features
        for at, child in heads.keys_values.items():
            yield from _draws(child, at, f"keys and values of {part} at {at}")


def _runs_at_once(spec: Stream | Heads | Drawn) -> int:
    """How many plain runs are held together at most, while a part is computed."""
    if isinstance(spec, Drawn):
        return 1
    below = spec.heads if isinstance(spec, Stream) else (spec.queries, *spec.keys_values.values())
    return 1 + max(map(_runs_at_once, below), default=0)


def _require_heads(model: TransformerBridge, spec: Stream | Heads | Drawn, role: str) -> None:
    """Refuse what cannot be at a role: a stream there is written, and queries asked, there only."""
    if isinstance(spec, Drawn):
        return
    if isinstance(spec, Stream):
        named: set[Node] = set()
        for heads in spec.heads:
            if heads.role != role:
                raise ValueError(
                    f"{min(heads.nodes)} does not stand at {role}, so it cannot write into the "
                    "stream there that is said to read it."
                )
            if twice := named & heads.nodes:
                raise ValueError(
                    f"{min(twice)} is in two parts of one stream, which carries what a head writes "
                    "once; name it in one of them."
                )
            named |= heads.nodes
            _require_heads(model, heads, role)
        return
    Circuit(spec.nodes).require(model)
    first = min(node.layer for node in spec.nodes)
    for at, child in ((spec.role, spec.queries), *spec.keys_values.items()):
        _require_heads(model, child, at)
        if isinstance(child, Stream):
            late = [n for part in child.heads for n in part.nodes if n.layer >= first]
            if late:
                raise ValueError(
                    f"{late[0]} does not come before all of the heads that are said to read it."
                )


class _Scrubber:
    """One draw of everything, computed for some rows of the prompts.

    Args:
        gpt: The weights.
        seed: Of this draw.
        rows: Which prompts are computed; all are drawn.
        drawn: What was drawn for other rows, by seed; grows.
    """

    def __init__(
        self, gpt: forward.Decoder, seed: int, rows: Tensor, drawn: dict[int, IOIDataset]
    ) -> None:
        self._gpt = gpt
        self._seed = seed
        self._rows = rows
        self._drawn = drawn

    def next_seed(self) -> int:
        """A new seed each time: every node has its own draw."""
        self._seed += 1
        return self._seed

    def draw(self, data: IOIDataset, features: Features) -> IOIDataset:
        """Other prompts that agree with these."""
        seed = self.next_seed()
        if seed not in self._drawn:
            self._drawn[seed] = data.redraw(("template", *features), seed=seed)
        return self._drawn[seed]

    def plain(self, data: IOIDataset) -> forward.Run:
        """The model's run over the rows of some prompts."""
        part = data[self._rows]
        width = int(part.lengths.max())
        tokens = part.tokens[:, :width].to(self._gpt.device)
        last = part.lengths.to(self._gpt.device) - 1
        return forward.run(self._gpt, tokens, last, ("resid_pre", "k", "v", "z"))

    def final(self, data: IOIDataset) -> Float[Tensor, "batch d_model"]:
        """The final stream at END of that run."""
        return self._at(self.plain(data)["resid_pre"][-1], data, "END")

    def _positions(self, data: IOIDataset, role: str) -> Tensor:
        """Where a role is in the rows of some prompts."""
        return runs.role_positions(data, role)[self._rows].to(self._gpt.device)

    def _at(self, values: Tensor, data: IOIDataset, role: str) -> Tensor:
        at = self._positions(data, role)
        return values[torch.arange(len(at), device=at.device), at]

    def stream(
        self, spec: Stream, data: IOIDataset, role: str, layers: int
    ) -> list[Float[Tensor, "batch d_model"]]:
        """The stream at a role before each block, and after the last of ``layers``."""
        gpt = self._gpt
        unrelated = self.draw(data, ())
        run = self.plain(unrelated)
        claimed: dict[tuple[int, int], Tensor] = {}
        for heads in spec.heads:
            claimed |= self.heads(heads, self.draw(data, heads.features))
        x = self._at(run["resid_pre"][0], unrelated, role)
        found = [x]
        for layer in range(layers):
            z = self._at(run["z"][layer], unrelated, role).clone()
            for head in range(gpt.n_heads):
                if (layer, head) in claimed:
                    z[:, head] = claimed[layer, head]
            middle = x + forward.write(gpt, layer, z)
            x = middle + forward.mlp(gpt, layer, x if gpt.parallel else middle)
            found.append(x)
        return found

    def _input(self, spec: Stream | Drawn, data: IOIDataset, role: str, layer: int) -> list[Tensor]:
        """The stream before each block up to a layer, as a part of a hypothesis has it."""
        if isinstance(spec, Stream):
            return self.stream(spec, self.draw(data, spec.features), role, layer)
        drawn = self.draw(data, spec.features)
        run = self.plain(drawn)
        return [self._at(run["resid_pre"][i], drawn, role) for i in range(layer + 1)]

    def heads(self, spec: Heads, data: IOIDataset) -> dict[tuple[int, int], Tensor]:
        """z ``[batch d_head]`` of each of the heads, on these prompts."""
        gpt, last_layer = self._gpt, max(node.layer for node in spec.nodes)
        queries = self._input(spec.queries, data, spec.role, last_layer)
        elsewhere = self.draw(data, spec.elsewhere.features)
        run = self.plain(elsewhere)
        inputs = {
            role: self._input(child, data, role, last_layer)
            for role, child in spec.keys_values.items()
        }
        at = self._positions(data, spec.role)
        rows = torch.arange(len(at), device=gpt.device)
        found = {}
        for layer in sorted({node.layer for node in spec.nodes}):
            block = gpt.blocks[layer]
            q = forward.read(gpt, layer, queries[layer], "q")
            k, v = run["k"][layer].clone(), run["v"][layer].clone()
            for role, streams in inputs.items():
                # Where the role is in the prompt the heads are computed on.
                there = self._positions(data, role)
                k[rows, there] = forward.read(gpt, layer, streams[layer], "k")
                v[rows, there] = forward.read(gpt, layer, streams[layer], "v")
            every = torch.arange(k.shape[1], device=k.device)
            q = forward.at_positions(gpt, layer, q, at, "q")[:, None]
            k = forward.at_positions(gpt, layer, k, every, "k")
            hidden = forward.out_of_sight(block, at[:, None, None] - every)
            pattern = forward.scores(block, forward.products(q, k), hidden).softmax(dim=-1)
            z = forward.mixed(pattern, v)[:, 0]
            for node in spec.nodes:
                if node.layer == layer and node.head is not None:
                    found[layer, node.head] = z[:, node.head]
        return found


# --- the IOI hypothesis --------------------------------------------------------------------------


def ioi_hypothesis(
    movers: Sequence[Node],
    inhibitors: Sequence[Node],
    detectors: Sequence[Node],
    signal: Features = ("order",),
) -> Stream:
    """The IOI paper's explanation, small: what is said at S2 decides where name movers look.

    The final stream reads name movers at END. They read keys and values that depend on IO and the
    order alone (S is free), and queries that depend on the *signal* only, through S-inhibition
    heads, which read from S2 what detectors of repetition wrote there, again the signal only.

    Args:
        movers: Name movers at END, with negative and backup ones.
        inhibitors: S-inhibition heads at END.
        detectors: Duplicate-token and induction heads at S2.
        signal: ``("order",)``: the position of the repeated name is what is passed on, as above all
            the paper finds (the name itself weighs less than half as much: its appendix A). The
            rival is ``("S",)``: the repeated name is. This tree is not fair to it: name movers see
            an S of another draw than the one passed on, so even a model that inhibits by identity
            gains nothing from it. It shows whether the order helps, not that the name does not.
    """
    at_s2 = Stream((Heads(frozenset(detectors), signal, Drawn(signal), {}, Drawn(signal)),), signal)
    inhibition = Heads(frozenset(inhibitors), signal, Drawn(()), {"S2": at_s2}, Drawn(()))
    queries = Stream((inhibition,), signal)
    return Stream((Heads(frozenset(movers), ("order", "IO"), queries, {}, Drawn(("order", "IO"))),))
