"""Train the bundled models: ``make train MODEL=ioi-mini``, or another seed's with ``SEED=1``.

``WITHOUT="exchange at S2"`` leaves one of the steps below out, to see what it matters.

`ioi-plain` is trained by plain language modelling. `ioi-mini` is trained on the same text and, at
the same time, on *interchange interventions* (Geiger et al. 2022, interchange intervention
training), because a small model left alone learns a shortcut around S2:

0. early heads learn from random repeated words: four are shown where to look (previous token, the
   word's earlier copy, the word after that copy), strongly at first and weakly to the end, because
   with so large a vocabulary and such narrow heads they are slow to form; a linear read-out after
   block ``bit_block`` asks at every word whether it has stood there before; and in the second cycle
   these words are also predicted, as a third of the plain text's documents are;
1. a linear read-out of the order (ABBA or BABA) on the residual stream at S2, after block
   ``bit_block``, puts the bit there;
2. the whole residual stream at S2, from that block on, is exchanged with another prompt's, and the
   answer asked for is the one that the other prompt's order implies: the bit must be *used*;
3. the residual stream at END after block ``fetch_block`` is exchanged likewise, together with
   another row's activations at every word where a name could have been parked, so that names must
   be fetched from where they stand, afterwards;
4. whole heads and MLPs of the last blocks are dropped out at random, so that several heads learn
   to move the name;
5. the logit difference is held near log(0.97 / 0.03), the optimum of an answer that is S in 3 % of
   the cases, which heads that attend sharply to IO otherwise overshoot by far.

Each loss has a name in :data:`LOSSES`, and each step that can be left out one in :data:`STEPS`.
What training planted is measured, not assumed: see :mod:`training.card` and the models' cards.
Training can be interrupted and resumed; the same seed gives the same weights to the last bit on one
machine and thread count. With ``--device cuda`` a run begins from the same weights and draws the
same texts, batches and drops, but rounds otherwise, and not the same way twice.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from ioi_helpers import survey
from ioi_helpers.bundled import bundled_folder
from ioi_helpers.survey.identity import file_digest
from training.corpus import S_ANSWER_RATE, Corpus, Document, Prompt
from training.vocabulary import save_tokenizer

LOSSES: dict[str, str] = {
    "language": "",
    "repeated words": "Repeated words, as text to predict",
    "repeat read-out": "Whether a word has stood here before",
    "guidance": "Where four early heads look on repeated random words",
    "answer": "A logit difference not far from log(0.97 / 0.03) = 3.5",
    "order read-out": "The ABBA/BABA bit at S2",
    "exchange at S2": "That S2's bit decides the answer",
    "exchange at END": "That names are fetched after block 3",
}
"""What training asks for, and what a card says that it planted (nothing: the text's own words)."""

STEPS = (*(name for name, told in LOSSES.items() if told and name != "answer"),
         "calibration", "head dropout", "MLP dropout")  # fmt: skip
"""What :func:`without` can leave out. The answer itself stays: without it there is no task."""

BUILD = Path(__file__).resolve().parents[1] / "build"
CONTEXT = 256
POOL = 60_000  # texts made in advance, so that batches can be of similar lengths


@dataclass(frozen=True)
class Cycle:
    """A stretch of training, in which the learning rate rises quickly and falls on a cosine.

    ``long_repeats``: repeated words are up to the whole context long, not only 30 words, and are
    also predicted, not only looked at. (Heads form on short ones several times as fast.)
    """

    steps: int
    learning_rate: float
    long_repeats: bool = False
    calibration: float = 0.03  # weight of the squared distance to log(0.97 / 0.03)


@dataclass(frozen=True)
class Recipe:
    """How one bundled model is made. ``interchange`` False means plain language modelling."""

    name: str
    layers: int
    heads: int
    width: int
    cycles: tuple[Cycle, ...]
    interchange: bool
    head_dropout: float = 0.0
    mlp_dropout: float = 0.0
    # Heads shown where to look at first: (block, head) -> "previous", "copy" or "after copy".
    guided: tuple[tuple[int, int, str], ...] = ()
    guided_share: float = 5 / 7  # of a cycle; the guidance is weak after it
    bit_block: int = 1
    fetch_block: int = 3
    documents: int = 48  # a step
    prompts: int = 56  # a step, half of them as sources; interchange only
    repeats: int = 32  # rows of repeated words a step, for the first blocks; interchange only
    seed: int = 0
    half: bool = False  # store the weights in 16 bits
    without: tuple[str, ...] = ()  # losses that are not asked for


RECIPES = {
    "ioi-mini": Recipe(
        "ioi-mini",
        layers=6,
        heads=6,
        width=144,
        cycles=(Cycle(2800, 1.5e-3), Cycle(1500, 8e-4, long_repeats=True, calibration=0.1)),
        interchange=True,
        head_dropout=0.2,
        mlp_dropout=0.3,
        guided=((0, 0, "previous"), (0, 1, "copy"), (1, 0, "copy"), (1, 1, "after copy")),
        documents=24,
        prompts=48,
    ),
    "ioi-plain": Recipe(
        "ioi-plain",
        bit_block=0,
        layers=4,
        heads=6,
        width=96,
        cycles=(Cycle(4000, 1.5e-3),),
        interchange=False,
        documents=48,
    ),
}
# The control of notebook 05: are backup name movers there because heads were dropped?
RECIPES["ioi-mini-no-head-dropout"] = replace(
    RECIPES["ioi-mini"], name="ioi-mini-no-head-dropout", head_dropout=0.0, half=True
)


def without(recipe: Recipe, step: str) -> Recipe:
    """The same recipe but for one of :data:`STEPS`, from the same weights and on the same texts.

    Left out is what the step asks of the model; its draws of random numbers stay, where it has any
    but those of what is dropped out. The read-out of the order is still fitted, on a stream that
    does not learn from it: its loss says when the bit is there to be used (if it never is, its use
    is never asked for).

    Raises:
        ValueError: There is no such step, or the recipe does not have it.
    """
    if step not in STEPS:
        raise ValueError(f"{step!r} is no step of training; there are {', '.join(STEPS)}.")
    if not recipe.interchange:
        raise ValueError(f"{recipe.name} is trained on text alone: no step can be left out.")
    name = f"{recipe.name}-without-{step.replace(' ', '-')}"
    if step == "calibration":
        cycles = tuple(replace(cycle, calibration=0.0) for cycle in recipe.cycles)
        return replace(recipe, name=name, cycles=cycles)
    if step == "head dropout":
        return replace(recipe, name=name, head_dropout=0.0)
    if step == "MLP dropout":
        return replace(recipe, name=name, mlp_dropout=0.0)
    return replace(recipe, name=name, without=(*recipe.without, step))


def pad(rows: Sequence[Sequence[float]], device: torch.device) -> Tensor:
    """Rows of unequal length, right-padded with zeros (token 0 is `<|endoftext|>`)."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *([0] * (width - len(row)))] for row in rows]).to(device)


def _words_of(documents: Sequence[Document], length: int, device: torch.device) -> Tensor:
    """Where there are words: neither BOS nor padding, [document pos]."""
    lengths = torch.tensor([len(d.ids) for d in documents], device=device)
    pos = torch.arange(length, device=device)
    return (pos >= 1) & (pos < lengths[:, None])


def replace_layers(config: GPT2Config, layers: int) -> GPT2Config:
    """The same configuration with another number of blocks."""
    return GPT2Config(**{**config.to_dict(), "n_layer": layers})


@dataclass
class PromptBatch:
    """IOI prompts as tensors; the second half serves as targets, the first as sources."""

    ids: Int[Tensor, "batch pos"]
    at: dict[str, Int[Tensor, " batch"]]
    """Where the first and the second name stand, S2 and END."""
    abba: Int[Tensor, " batch"]

    @classmethod
    def of(cls, prompts: Sequence[Prompt], device: torch.device) -> PromptBatch:
        at = [{"first": p.first, "second": p.second, "S2": p.s2, "END": p.end} for p in prompts]
        return cls(
            pad([p.ids for p in prompts], device).long(),
            {name: torch.tensor([one[name] for one in at], device=device) for name in at[0]},
            torch.tensor([int(p.second_is_subject) for p in prompts], device=device),
        )

    def __len__(self) -> int:
        return len(self.ids)


class Interventions:
    """The hooks that training puts on a GPT-2: interchange, dropout of whole heads and MLPs."""

    def __init__(self, model: GPT2LMHeadModel, recipe: Recipe) -> None:
        self.recipe = recipe
        self.batch: PromptBatch | None = None
        self.kind = "none"  # "none", "S2" or "END"
        self.only_block: int | None = None  # S2 at one block only, for measuring
        self.sources: Tensor | None = None
        self.dropping = False
        self.residual: dict[int, Tensor] = {}
        self.normalised: dict[int, Tensor] = {}  # what each guided block's attention reads
        blocks = model.transformer.h
        for i, block in enumerate(blocks):
            block.register_forward_hook(lambda _m, _in, out, i=i: self._after_block(i, out))
            if any(i == layer for layer, _, _ in recipe.guided):
                block.ln_1.register_forward_hook(lambda _m, _in, out, i=i: self._keep(i, out))
            if recipe.interchange and i > recipe.fetch_block:
                block.attn.c_proj.register_forward_pre_hook(self._drop_heads)
                block.mlp.register_forward_hook(self._drop_mlp)

    def _keep(self, i: int, out: Tensor) -> None:
        self.normalised[i] = out

    @contextmanager
    def interchange(
        self, batch: PromptBatch, kind: str, sources: Tensor | None, only_block: int | None = None
    ) -> Iterator[None]:
        """Within: rows of the second half get the activations of ``sources`` of the first."""
        self.batch, self.kind, self.sources, self.only_block = batch, kind, sources, only_block
        try:
            yield
        finally:
            self.batch, self.kind, self.sources, self.only_block = None, "none", None, None

    def _after_block(self, i: int, out: Any) -> Any:
        stream = out[0] if isinstance(out, tuple) else out
        if i == self.recipe.bit_block:
            self.residual[i] = stream
        if self.batch is None or self.sources is None:
            return out
        if self.kind == "S2":
            swap = i == self.only_block if self.only_block is not None else True
            if not swap or i < self.recipe.bit_block:
                return out
            at = self.batch.at["S2"]
        elif i == self.recipe.fetch_block:
            at = self.batch.at["END"]
        else:
            return out
        half = stream.shape[0] // 2
        rows = torch.arange(stream.shape[0], device=stream.device)
        new = stream.clone()
        if self.kind == "END":
            new = torch.where(self._parking(stream.shape[1])[..., None], stream.roll(1, 0), new)
        new[rows[half:], at[half:]] = stream[self.sources, at[self.sources]]
        return (new, *out[1:]) if isinstance(out, tuple) else new

    def _parking(self, length: int) -> Tensor:
        """Words of the target rows where a name could be parked: from the first name to END."""
        assert self.batch is not None
        at = {name: where[:, None] for name, where in self.batch.at.items()}
        pos = torch.arange(length, device=self.batch.ids.device)[None]
        park = (pos > at["first"]) & (pos < at["END"])
        park &= (pos != at["second"]) & (pos != at["S2"])
        park[: len(self.batch) // 2] = False
        return park

    def _drop_heads(self, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0]
        if self.dropping and self.recipe.head_dropout > 0:
            b, t, d = x.shape
            heads = self.recipe.heads
            rate = self.recipe.head_dropout
            keep = (torch.rand(b, 1, heads, 1) > rate).to(x) / max(1 - rate, 1e-6)
            x = (x.view(b, t, heads, d // heads) * keep).reshape(b, t, d)
        return (x, *args[1:])

    def _drop_mlp(self, _module: nn.Module, _args: Any, out: Tensor) -> Tensor:
        if self.dropping and self.recipe.mlp_dropout > 0:
            rate = self.recipe.mlp_dropout
            keep = (torch.rand(out.shape[0], 1, 1) > rate).to(out) / max(1 - rate, 1e-6)
            return out * keep
        return out


def answer_loss(
    logits: Float[Tensor, "batch vocab"],
    batch: PromptBatch,
    abba: Int[Tensor, " batch"],
    calibration: float,
) -> Float[Tensor, " batch"]:
    """Cross-entropy against 97 % IO, 3 % S, for the order given, plus the calibration's penalty."""
    rows = torch.arange(len(batch), device=logits.device)
    log_probs = logits.log_softmax(-1)
    first = log_probs[rows, batch.ids[rows, batch.at["first"]]]
    second = log_probs[rows, batch.ids[rows, batch.at["second"]]]
    io, s = torch.where(abba == 1, first, second), torch.where(abba == 1, second, first)
    miss = io - s - math.log((1 - S_ANSWER_RATE) / S_ANSWER_RATE)
    return -(1 - S_ANSWER_RATE) * io - S_ANSWER_RATE * s + calibration * miss.square()


class Trainer:
    """One training run: model, read-outs, optimiser and the pools that batches are drawn from."""

    def __init__(
        self, recipe: Recipe, steps: int | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.recipe = recipe
        self.device = torch.device(device)
        first = recipe.cycles[0]
        self.cycles = recipe.cycles if steps is None else (replace(first, steps=steps),)
        self.steps = sum(cycle.steps for cycle in self.cycles)
        torch.manual_seed(recipe.seed)
        self.rng = random.Random(recipe.seed + 1)
        corpus = Corpus(recipe.seed, CONTEXT)
        self.documents = sorted((corpus.document() for _ in range(POOL)), key=lambda d: len(d.ids))
        self.prompts = sorted(
            (corpus.prompt() for _ in range(POOL if recipe.interchange else 100)),
            key=lambda p: len(p.ids),
        )
        self.repeats = sorted(
            (corpus.repeated() for _ in range(POOL // 3 if recipe.interchange else 0)),
            key=lambda d: len(d.ids),
        )
        self.long_repeats = sorted(
            (
                corpus.repeated((CONTEXT - 1) // 2)
                for _ in range(POOL // 12 if any(c.long_repeats for c in self.cycles) else 0)
            ),
            key=lambda d: len(d.ids),
        )
        held_back = Corpus(recipe.seed + 1000, CONTEXT)
        self.check = [p for p in (held_back.prompt() for _ in range(400)) if len(p.ids) <= 80]
        config = GPT2Config(
            vocab_size=len(corpus.ids),
            n_positions=CONTEXT,
            n_embd=recipe.width,
            n_layer=recipe.layers,
            n_head=recipe.heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
        # Random numbers are the CPU's on any device, so that seeds mean the same on all.
        self.model = GPT2LMHeadModel(config).to(self.device)
        self.hooks = Interventions(self.model, recipe)
        # The first blocks alone, sharing their weights: enough for what is asked of early heads.
        self.early = GPT2Model(replace_layers(config, recipe.bit_block + 1)).to(self.device)
        self.early.wte, self.early.wpe = self.model.transformer.wte, self.model.transformer.wpe
        self.early.h = self.model.transformer.h[: recipe.bit_block + 1]
        self.order_readout = nn.Linear(recipe.width, 1).to(self.device)
        self.repeat_readout = nn.Linear(recipe.width, 1).to(self.device)
        parameters = [
            *self.model.parameters(),
            *self.order_readout.parameters(),
            *self.repeat_readout.parameters(),
        ]
        self.optimizer = torch.optim.AdamW(
            parameters, lr=1e-3, weight_decay=0.01, betas=(0.9, 0.98)
        )
        self.step = 0
        self.seen: set[str] = set()  # which of LOSSES were asked for so far
        self.readout_loss = 1.0
        self.use_from: int | None = None  # the step from which the bit is asked to be used

    # Batches -----------------------------------------------------------------------------------

    def _window(self, pool: Sequence[Any], size: int) -> list[Any]:
        """Rows of similar length, so that little is padding: a window of a pool sorted by it."""
        start = self.rng.randrange(len(pool) - 4 * size)
        return self.rng.sample(pool[start : start + 4 * size], size)

    def _language_loss(self) -> Tensor:
        size = self.recipe.documents // 2
        loss = torch.zeros((), device=self.device)
        for _ in range(2):
            documents: list[Document] = self._window(self.documents, size)
            if max(len(d.ids) for d in documents) > 120:
                documents = documents[: size // 3]
            ids = pad([d.ids for d in documents], self.device).long()
            hidden = self.model.transformer(ids).last_hidden_state
            loss = loss + self._next_word_loss(documents, ids, hidden) / 2
        return loss

    def _next_word_loss(self, documents: Sequence[Document], ids: Tensor, hidden: Tensor) -> Tensor:
        """Cross-entropy of the next word, weighted as the documents say."""
        weights = pad([d.weights for d in documents], self.device)[:, 1:]
        where = weights > 0
        logits = self.model.lm_head(hidden[:, :-1][where])
        losses = F.cross_entropy(logits, ids[:, 1:][where], reduction="none")
        return (losses * weights[where]).sum() / weights.sum()

    def _repeats_losses(self) -> dict[str, Tensor]:
        """What is asked on repeated words: to predict them, the read-out and the guidance."""
        cycle, at = self._cycle()
        long = cycle.long_repeats and self.rng.random() < 0.5
        pool = self.long_repeats if long else self.repeats
        documents: list[Document] = self._window(pool, self.recipe.repeats // (4 if long else 1))
        ids = pad([d.ids for d in documents], self.device).long()
        losses: dict[str, Tensor] = {}
        if cycle.long_repeats:
            hidden = self.model.transformer(ids).last_hidden_state
            losses["repeated words"] = self._next_word_loss(documents, ids, hidden)
        else:
            self.early(ids)
        share = at / (cycle.steps * self.recipe.guided_share)
        guidance = max(0.1, min(1.0, 2 - 2 * share))
        losses["repeat read-out"] = 0.25 * self._repeat_readout_loss(documents, ids)
        if self.recipe.guided:
            losses["guidance"] = 0.5 * guidance * self._guidance_loss(documents, ids)
        return losses

    def _cycle(self) -> tuple[Cycle, int]:
        """The cycle that the next step belongs to, and the steps made in it."""
        at = self.step
        for cycle in self.cycles:
            if at < cycle.steps:
                return cycle, at
            at -= cycle.steps
        raise ValueError("This training run is over.")

    def _guidance_loss(self, documents: Sequence[Document], ids: Tensor) -> Tensor:
        """Minus the log of the attention that guided heads pay to where they should look."""
        count, length = ids.shape
        same = (ids[:, :, None] == ids[:, None, :]).tril(-1)
        real = _words_of(documents, length, self.device)
        previous = torch.eye(length, dtype=torch.bool, device=self.device).roll(1, 0).tril(-1)
        previous = previous.expand(count, -1, -1)
        # The word after an earlier copy: one place to the right of it, and not after the query.
        after = F.pad(same, (1, 0))[..., :-1].tril()
        targets = {"previous": previous, "copy": same, "after copy": after}
        causal = torch.ones(length, length, dtype=torch.bool, device=self.device).tril()
        total = torch.zeros((), device=self.device)
        size = self.recipe.width // self.recipe.heads
        for layer, head, kind in self.recipe.guided:
            attention = self.model.transformer.h[layer].attn.c_attn
            stream = self.hooks.normalised[layer]
            at = slice(head * size, (head + 1) * size)
            width = self.recipe.width
            weight, bias = attention.weight, attention.bias
            query = stream @ weight[:, :width][:, at] + bias[:width][at]
            key = stream @ weight[:, width : 2 * width][:, at] + bias[width : 2 * width][at]
            scores = (query @ key.transpose(1, 2) / size**0.5).masked_fill(~causal, -1e9)
            target = targets[kind]
            asked = target.any(-1) & real
            looked = (scores.softmax(-1) * target).sum(-1)[asked]
            total = total - looked.clamp_min(1e-6).log().mean()
        return total

    def _repeat_readout_loss(self, documents: Sequence[Document], ids: Tensor) -> Tensor:
        """Has this word stood here before? Asked of random words, at every position."""
        stream = self.hooks.residual[self.recipe.bit_block]
        seen = (ids[:, :, None] == ids[:, None, :]).tril(-1).any(-1)
        real = _words_of(documents, ids.shape[1], self.device)
        answer = self.repeat_readout(stream)[..., 0]
        return F.binary_cross_entropy_with_logits(answer[real], seen[real].float())

    def _end_logits(self, batch: PromptBatch) -> Tensor:
        rows = torch.arange(len(batch), device=self.device)
        return self.model.lm_head(
            self.model.transformer(batch.ids).last_hidden_state[rows, batch.at["END"]]
        )

    def _interchange_losses(self) -> dict[str, Tensor]:
        size = self.recipe.prompts
        batch = PromptBatch.of(self._window(self.prompts, size), self.device)
        half = size // 2
        using = self.use_from is not None
        sources = torch.randperm(half).to(self.device) if using else None
        kind = "S2" if self.rng.random() < 0.5 else "END"
        if f"exchange at {kind}" in self.recipe.without:
            sources = None
        with self.hooks.interchange(batch, kind, sources):
            logits = self._end_logits(batch)
        asked = batch.abba.clone()
        if sources is not None:
            asked[half:] = batch.abba[sources]
        # Before the bit is in use, held-down logits would only slow the task's own learning.
        calibration = self._cycle()[0].calibration if using else 0.0
        losses = answer_loss(logits, batch, asked, calibration)
        weight = (
            min(1.0, 0.05 + (self.step - self.use_from) / 300) if self.use_from is not None else 0.0
        )
        stream = self.hooks.residual[self.recipe.bit_block]
        if "order read-out" in self.recipe.without:
            stream = stream.detach()
        rows = torch.arange(size, device=self.device)
        # Interchange happens in the hook after the stream was kept: this is each row's own.
        readout = F.binary_cross_entropy_with_logits(
            self.order_readout(stream[rows, batch.at["S2"]])[:, 0], batch.abba.float()
        )
        self.readout_loss = 0.97 * self.readout_loss + 0.03 * readout.item()
        if self.use_from is None and self.readout_loss < 0.1:
            self.use_from = self.step
        return {
            "answer": losses[:half].mean(),
            f"exchange at {kind}": weight * losses[half:].mean(),
            "order read-out": (1.0 if using else 2.0) * readout,
        }

    # The loop ----------------------------------------------------------------------------------

    def train_step(self) -> float:
        """One optimiser step; returns the loss."""
        r = self.recipe
        cycle, at = self._cycle()
        warm = min(1.0, (at + 1) / 200)
        decay = 0.5 * (1 + math.cos(math.pi * at / cycle.steps)) + 0.01
        rate = cycle.learning_rate * warm * decay
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        self.hooks.dropping = self.use_from is not None and self.step > self.use_from + 300
        losses = {"language": self._language_loss()}
        if r.interchange:
            losses |= self._interchange_losses() | self._repeats_losses()
        # The order's read-out stays: it says when the bit is there.
        left_out = set(r.without) - {"order read-out"}
        losses = {name: loss for name, loss in losses.items() if name not in left_out}
        self.seen |= set(losses)
        loss = torch.stack(list(losses.values())).sum()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return loss.item()

    @torch.no_grad()
    def progress(self) -> dict[str, float]:
        """Accuracy and logit difference on fresh prompts, as they are and under interchange."""
        self.model.eval()
        self.hooks.dropping = False
        batch = PromptBatch.of(self.check, self.device)
        doubled = PromptBatch.of([*self.check, *self.check], self.device)
        n = len(batch)
        generator = torch.Generator().manual_seed(0)
        sources = torch.randperm(n, generator=generator).to(self.device)
        result = {}
        for kind in ("none", "S2", "END") if self.recipe.interchange else ("none",):
            with self.hooks.interchange(doubled, kind, None if kind == "none" else sources):
                logits = self._end_logits(doubled)[n:]
            rows = torch.arange(n, device=self.device)
            diff = (
                logits[rows, batch.ids[rows, batch.at["first"]]]
                - logits[rows, batch.ids[rows, batch.at["second"]]]
            )
            if kind == "none":
                diff = diff * (2 * batch.abba - 1)
                result["accuracy"], result["logit diff"] = (diff > 0).float().mean(), diff.mean()
            else:
                moved = batch.abba[sources] != batch.abba
                diff = (diff * (2 * batch.abba[sources] - 1))[moved]
                result[f"{kind} moves"] = (diff > 0).float().mean()
        result["read-out loss"] = torch.tensor(self.readout_loss)
        return {key: round(float(value), 3) for key, value in result.items()}

    def save(self, path: Path) -> None:
        """Write everything a later run needs to go on from here."""
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "readouts": [self.order_readout.state_dict(), self.repeat_readout.state_dict()],
            "optimizer": self.optimizer.state_dict(),
            "counters": (self.step, self.readout_loss, self.use_from),
            "recipe": repr((self.recipe, self.cycles)),
            "device": self.device.type,
            "rng": (self.rng.getstate(), torch.get_rng_state()),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint that :meth:`save` wrote.

        Raises:
            ValueError: It is of another recipe, or was begun on another kind of device: what a
                model was trained on stands in its config, and is one thing.
        """
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["recipe"] != repr((self.recipe, self.cycles)):
            raise ValueError(
                f"The checkpoint {path} was made by another recipe; begin anew with --fresh."
            )
        if state["device"] != self.device.type:
            raise ValueError(
                f"The checkpoint {path} was begun on {state['device']}; go on there (--device), or "
                "begin anew with --fresh."
            )
        self.model.load_state_dict(state["model"])
        self.order_readout.load_state_dict(state["readouts"][0])
        self.repeat_readout.load_state_dict(state["readouts"][1])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.readout_loss, self.use_from = state["counters"]
        self.rng.setstate(state["rng"][0])
        torch.set_rng_state(state["rng"][1])


def train(
    recipe: Recipe,
    folder: Path,
    checkpoint: Path,
    steps: int | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Train a model, resuming from its checkpoint if there is one, and write its folder.

    Args:
        recipe: What to train.
        folder: Where to write the model and its tokenizer.
        checkpoint: The file that an interrupted run goes on from; gone when the run is over.
        steps: Fewer steps, for trying out.
        device: Where to compute, as PyTorch names it. The model's config says it, as `trained_on`.
    """
    trainer = Trainer(recipe, steps, device)
    if checkpoint.exists():
        trainer.load(checkpoint)
        tqdm.write(f"{recipe.name}: going on from step {trainer.step}")
    with tqdm(total=trainer.steps, initial=trainer.step, desc=recipe.name) as bar:
        while trainer.step < trainer.steps:
            loss = trainer.train_step()
            bar.update()
            if trainer.step % 250 == 0 or trainer.step == trainer.steps:
                tqdm.write(f"{trainer.step:5d} loss {loss:.3f} {trainer.progress()}")
                trainer.save(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    if recipe.half:
        trainer.model.half()
    trainer.model.config.trained_on = trainer.device.type
    trainer.model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    save_tokenizer(folder, CONTEXT)
    checkpoint.unlink()  # a finished run must not be "gone on with" after the recipe has changed


def folder_of(recipe: Recipe) -> Path:
    """Where a model goes: into the package if it is what ships, else to `build/models/`."""
    if recipe.name in RECIPES and recipe.seed == RECIPES[recipe.name].seed:
        return bundled_folder(recipe.name)
    return BUILD / "models" / f"{recipe.name}-seed-{recipe.seed}"


def checkpoint_of(recipe: Recipe) -> Path:
    """The checkpoint of an unfinished run: one for each model and seed."""
    return BUILD / "training" / f"{recipe.name}-seed-{recipe.seed}" / "checkpoint.pt"


def as_recorded(recipe: Recipe, weights: Path) -> str:
    """One sentence: are these the weights that the tables of seeds were made of?"""
    models = survey.shipped("seeds").models.set_index("model")
    name = f"{recipe.name}-seed-{recipe.seed}"
    if name not in models.index:
        return f"The tables of seeds have no {name} yet."
    if file_digest(weights) == models.loc[name, "sha256"]:
        return f"To the last bit the {name} that the tables of seeds are of."
    if models.loc[name, "trained on"] == "cuda":
        return f"The tables of seeds are of a {name} trained on a GPU, which no run repeats."
    return (
        f"Not to the last bit the {name} that the tables of seeds are of: rounded otherwise "
        "(another machine, thread count or version of PyTorch), or trained by other code."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.train",
        description="Train a bundled model anew, or a sister of it from another seed.",
    )
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--seed", type=int, help="of text, weights and batches; its own by default")
    parser.add_argument("--without", choices=STEPS, help="a step of training to leave out")
    parser.add_argument(
        "--folder",
        type=Path,
        help="where to write it (default: in the package; build/models/ for another seed)",
    )
    parser.add_argument("--steps", type=int, help="fewer steps, for trying out; needs --folder")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute")
    parser.add_argument("--fresh", action="store_true", help="forget a checkpoint")
    given = parser.parse_args(arguments)
    recipe = RECIPES[given.model]
    if given.seed is not None:
        recipe = replace(recipe, seed=given.seed)
    if given.without is not None:
        try:
            recipe = without(recipe, given.without)
        except ValueError as error:
            parser.error(str(error))
    if given.device != "cpu" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; leave --device out")
    if given.steps is not None and given.folder is None:
        parser.error("give --folder with --steps, so that a trial replaces no model that ships")
    folder = given.folder or folder_of(recipe)
    checkpoint = checkpoint_of(recipe)
    if given.fresh:
        checkpoint.unlink(missing_ok=True)
    train(recipe, folder, checkpoint, given.steps, given.device)
    print(f"{recipe.name}, seed {recipe.seed}: written to {folder}")
    if given.steps is None:
        print(as_recorded(recipe, folder / "model.safetensors"))


if __name__ == "__main__":
    main()
