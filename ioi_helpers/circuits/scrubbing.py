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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
    """

    model: CircuitRun
    scrubbed: CircuitRun
    unrelated: CircuitRun
    pair_ids: Tensor

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
) -> Scrubbed:
    """Run a hypothesis about the final stream at END.

    Args:
        model: A GPT-2-style model.
        data: The prompts, without prefixes: all prompts of a template must be equally long.
        hypothesis: What the final stream is said to read. Its features are of no meaning: the
            answer is scored with each prompt's own names.
        draws: How often everything is drawn.
        seed: Seeds the draws.

    Raises:
        ValueError: Prompts of one template differ in length; the hypothesis names heads that the
            model lacks, at several roles at once, or layers out of order; another architecture.
    """
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
    _require_heads(model, hypothesis)
    parts: dict[str, list[CircuitRun]] = {"model": [], "scrubbed": [], "unrelated": []}
    for draw in range(draws):
        scrubber = _Scrubber(gpt, seed * 1_000_003 + draw * 1_009)
        own = scrubber.plain(data)
        parts["model"].append(_scored(gpt, own["resid_pre"][-1], data, data))
        other = data.redraw(("template",), seed=scrubber.next_seed())
        parts["unrelated"].append(_scored(gpt, scrubber.plain(other)["resid_pre"][-1], other, data))
        final = scrubber.stream(hypothesis, data, "END", gpt.n_layers)[-1]
        parts["scrubbed"].append(CircuitRun.of_logits(forward.unembed(gpt, final), data))
    joined = {name: CircuitRun.join(runs_) for name, runs_ in parts.items()}
    return Scrubbed(**joined, pair_ids=data.pair_ids.cpu().repeat(draws))


def _scored(gpt: forward.GPT2, final: Tensor, ran: IOIDataset, data: IOIDataset) -> CircuitRun:
    at_end = _at_role(final, ran, "END")
    return CircuitRun.of_logits(forward.unembed(gpt, at_end), data)


def _at_role(values: Tensor, data: IOIDataset, role: str) -> Tensor:
    at = runs.role_positions(data, role).to(values.device)
    return values[torch.arange(len(at), device=values.device), at]


def _require_heads(model: TransformerBridge, spec: Stream | Heads | Drawn) -> None:
    if isinstance(spec, Drawn):
        return
    if isinstance(spec, Stream):
        for heads in spec.heads:
            _require_heads(model, heads)
        return
    Circuit(spec.nodes).require(model)
    assert spec.role
    first = min(node.layer for node in spec.nodes)
    below = [spec.queries, *spec.keys_values.values()]
    for child in below:
        _require_heads(model, child)
        if isinstance(child, Stream):
            late = [n for part in child.heads for n in part.nodes if n.layer >= first]
            if late:
                raise ValueError(
                    f"{late[0]} does not come before all of the heads that are said to read it."
                )


class _Scrubber:
    """One draw of everything."""

    def __init__(self, gpt: forward.GPT2, seed: int) -> None:
        self._gpt = gpt
        self._seed = seed

    def next_seed(self) -> int:
        """A new seed each time: every node has its own draw."""
        self._seed += 1
        return self._seed

    def draw(self, data: IOIDataset, features: Features) -> IOIDataset:
        """Other prompts that agree with these."""
        return data.redraw(("template", *features), seed=self.next_seed())

    def plain(self, data: IOIDataset) -> forward.Run:
        """The model's run over them."""
        width = int(data.lengths.max())
        tokens = data.tokens[:, :width].to(self._gpt.device)
        last = data.lengths.to(self._gpt.device) - 1
        return forward.run(self._gpt, tokens, last, ("resid_pre", "k", "v", "z"))

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
        x = _at_role(run["resid_pre"][0], unrelated, role)
        found = [x]
        for layer in range(layers):
            z = _at_role(run["z"][layer], unrelated, role).clone()
            for head in range(gpt.n_heads):
                if (layer, head) in claimed:
                    z[:, head] = claimed[layer, head]
            block = gpt.blocks[layer]
            x = x + forward.affine(block.b_O, z.flatten(1), block.W_O)
            x = x + forward.mlp(gpt, layer, x)
            found.append(x)
        return found

    def _input(self, spec: Stream | Drawn, data: IOIDataset, role: str, layer: int) -> list[Tensor]:
        """The stream before each block up to a layer, as a part of a hypothesis has it."""
        if isinstance(spec, Stream):
            return self.stream(spec, self.draw(data, spec.features), role, layer)
        drawn = self.draw(data, spec.features)
        run = self.plain(drawn)
        return [_at_role(run["resid_pre"][i], drawn, role) for i in range(layer + 1)]

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
        at = runs.role_positions(data, spec.role).to(gpt.device)
        rows = torch.arange(len(data), device=gpt.device)
        found = {}
        for layer in sorted({node.layer for node in spec.nodes}):
            block = gpt.blocks[layer]

            def read(x: Tensor, W: Tensor, b: Tensor, ln1: forward.Norm = block.ln1) -> Tensor:
                return gpt.heads(forward.affine(b, forward.layer_norm(ln1, x), W))

            q = read(queries[layer], block.W_Q, block.b_Q)
            k, v = run["k"][layer].clone(), run["v"][layer].clone()
            for role, streams in inputs.items():
                # Where the role is in the prompt the heads are computed on.
                there = runs.role_positions(data, role).to(gpt.device)
                k[rows, there] = read(streams[layer], block.W_K, block.b_K)
                v[rows, there] = read(streams[layer], block.W_V, block.b_V)
            scores = torch.einsum("bhd,bjhd->bhj", q, k) * block.score_scale
            future = torch.arange(k.shape[1], device=k.device) > at[:, None]
            pattern = scores.masked_fill(future[:, None], -torch.inf).softmax(dim=-1)
            z = torch.einsum("bhj,bjhd->bhd", pattern, v)
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
        signal: ``("order",)`` is the paper's main claim: the position of the repeated name is what
            is passed on. The rival is ``("S",)``: the repeated name itself is. It should win on a
            model that inhibits by identity and lose on one that inhibits by position.
    """
    at_s2 = Stream((Heads(frozenset(detectors), signal, Drawn(signal), {}, Drawn(signal)),), signal)
    inhibition = Heads(frozenset(inhibitors), signal, Drawn(()), {"S2": at_s2}, Drawn(()))
    queries = Stream((inhibition,), signal)
    return Stream((Heads(frozenset(movers), ("order", "IO"), queries, {}, Drawn(("order", "IO"))),))
