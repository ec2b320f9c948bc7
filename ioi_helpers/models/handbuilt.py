"""A transformer whose weights are set by hand, so that its IOI circuit is known by construction.

Methods that find circuits are tried on it: what they should find was decided here and not by
another method. ::

    model = handbuilt.load()
    data = IOIDataset.generate(model.tokenizer, 16, names=handbuilt.NAMES)
    truth = handbuilt.edges()

It has GPT-2's architecture (5 layers of 4 heads) and is saved as an ordinary folder that
TransformerBridge boots. Every head that is not listed in `HEAD_CLASSES` and every MLP writes
exactly zero.

How it does the task (END is the last " to", S and IO are the two names of the first clause)::

    L0H1 previous token    every token learns which token stands before it
    L0H3 duplicate token   S2 -> S1     S2 learns that it is a repeated name
    L1H0 induction         S2 -> S1+1   half of the order bit: is S1 followed by " and"?
    L1H2 duplicate token   S2 -> S1     the other half: is S1 preceded by " and"?
    L2H1 S-inhibition      END -> S2    carries the order bit (S was the first or second name)
    L2H3 S-inhibition      END -> S2    carries the identity of S
    L3H0 name mover        END -> IO    3 logits, avoiding S by its order and by its identity
    L3H2 negative          END -> IO    -1.5 logits
    L3H3 name mover        END -> IO    2 logits
    L4H1 backup            rests while names are written at END; else copies IO, 2 logits

With `through_mlp` L2H1's bit reaches `end_order` only by way of MLP 2, which then writes: L2H1
writes into `waiting_order`, and MLP2 copies it. A path that leads through an MLP shows there.

It expects a prompt that starts with BOS and only knows the names in `NAMES`.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel

from ioi_helpers import stimuli
from ioi_helpers.bundled.tokenizer import write_tokenizer
from ioi_helpers.graph import Circuit, Edge, Node, parse_node

N_LAYERS, N_HEADS, CONTEXT = 5, 4, 256
# A word or a sign with the space before it.
_PIECE = r"'(?:s|t)\b| ?[A-Za-z]+| ?[^\sA-Za-z]"
BOS, UNKNOWN = "<|endoftext|>", "<|unknown|>"

# The names of the demo's prompts and eight more.
NAMES: tuple[str, ...] = (
    *(name for pair in stimuli.DEMO_PAIRS for name in pair),
    *("Alice", "Bob", "Anna", "George", "Henry", "Jack", "Jane", "Kate"),
)

HEAD_CLASSES: dict[str, str] = {
    "L0H1": "previous_token",
    "L0H3": "duplicate_token",
    "L1H0": "induction",
    "L1H2": "duplicate_token",
    "L2H1": "s_inhibition",
    "L2H3": "s_inhibition",
    "L3H0": "name_mover",
    "L3H2": "negative_name_mover",
    "L3H3": "name_mover",
    "L4H1": "backup_name_mover",
}
# Where each head does its work on IOI, as head: (query role, key role). L0H1 also works at the name
# after " and", be it IO or S1: L1H2 and the heads that copy read there that it is the second name.
ATTENDS: dict[str, tuple[str, str]] = {
    "L0H1": ("S1+1", "S1"),
    "L0H3": ("S2", "S1"),
    "L1H0": ("S2", "S1+1"),
    "L1H2": ("S2", "S1"),
    "L2H1": ("END", "S2"),
    "L2H3": ("END", "S2"),
    "L3H0": ("END", "IO"),
    "L3H2": ("END", "IO"),
    "L3H3": ("END", "IO"),
}
# Logits that a head adds for a name it attends to with weight 1.
COPY_STRENGTH: dict[str, float] = {"L3H0": 3.0, "L3H2": -1.5, "L3H3": 2.0, "L4H1": 2.0}

# How far END's attention score of a name moves when the order bit, or the identity, speaks
# against it. S1 is hit by both: IO's score is 2 * ORDER_GAIN + IDENTITY_GAIN above S1's.
ORDER_GAIN, IDENTITY_GAIN = 1.5, 1.0
SCORE_GAP = 2 * ORDER_GAIN + IDENTITY_GAIN
# Attention END -> IO of every copying head that is awake; END -> S1 is one minus it.
ATTENTION_TO_IO = 1 / (1 + math.exp(-SCORE_GAP))
ATTENTION_DIFFERENCE = 2 * ATTENTION_TO_IO - 1


def expected_logit_diff(order: float = 1.0, identity: float = 1.0) -> float:
    """Logit difference, in logits, when END receives these multiples of the two S-inhibition
    signals (1 and 1 in a clean run, 0 where one is ablated, -1 where it says the opposite)."""
    gap = 2 * ORDER_GAIN * order + IDENTITY_GAIN * identity
    awake = sum(COPY_STRENGTH[head] for head in ("L3H0", "L3H2", "L3H3"))
    return awake * math.tanh(gap / 2)


# LayerNorm divides by the residual stream's size. A pair of dimensions holding +SIZE and -SIZE
# makes that size the same everywhere to a few parts in 10^5, so LayerNorm acts as a fixed scale,
# which its weights undo: every head reads the features as they were written.
SIZE = 4096.0
# A score difference that softmax turns into (almost) all or nothing: e^-20 = 2e-9.
CLEAR = 20.0


class Layout:
    """Which dimensions of the residual stream hold which feature, by name."""

    def __init__(
        self, token_bits: int, position_bits: int, n_names: int, through_mlp: bool = False
    ) -> None:
        widths = {
            "size": 2,  # see SIZE
            "balance": 1,  # minus the sum of all others: keeps the mean at zero; nobody reads it
            "token": token_bits,  # the token's number in binary, -1 and +1; zero for BOS
            "position": position_bits,  # likewise; zero at the first position
            "position_before": position_bits,  # the code of the position before this one
            "rest": 1,  # 1 at the first position: where heads look that find nothing
            "later": 1,  # 1 everywhere else
            "is_and": 1,
            "is_name": 1,
            "name": n_names,  # one-hot
            "token_before": token_bits,  # written by L0H1
            "after_and": 1,  # written by L0H1
            "repeated_name": 1,  # written by L0H3
            "order": 1,  # the bit at S2: +1 if S is the first name, -1 if the second
            "end_order": 1,  # the bit after S-inhibition has carried it to END
            "end_name": n_names,  # the identity of S after S-inhibition has carried it to END
            "answer": n_names,  # what the unembedding reads
        }
        if through_mlp:
            widths["waiting_order"] = 1  # the bit at END before MLP2 has copied it
        self.dims: dict[str, list[int]] = {}
        start = 0
        for name, width in widths.items():
            self.dims[name] = list(range(start, start + width))
            start += width
        self.d_model = math.ceil(start / N_HEADS) * N_HEADS
        self.d_head = self.d_model // N_HEADS

    def __getitem__(self, name: str) -> list[int]:
        return self.dims[name]

    def zeros(self, rows: int) -> Float[Tensor, "rows d_model"]:
        return torch.zeros(rows, self.d_model)

    def balanced(self, vectors: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """The same features with mean zero, so that LayerNorm's centring changes nothing."""
        out = vectors.clone()
        out[..., self["balance"][0]] = -vectors.sum(dim=-1)
        return out


class Head:
    """One attention head under construction; every call uses up dimensions of the head."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        shape = (layout.d_model, layout.d_head)
        self.W_Q, self.W_K, self.W_V = (torch.zeros(shape) for _ in range(3))
        self.b_Q = torch.zeros(layout.d_head)
        self.W_O = torch.zeros(layout.d_head, layout.d_model)
        self._used_qk, self._used_ov = 0, 0

    def compare(self, query: str, key: str, gain: float) -> None:
        """Add `gain` times the dot product of a feature of the query and one of the key."""
        for q, k in zip(self.layout[query], self.layout[key], strict=True):
            self.W_Q[q, self._used_qk] = gain * math.sqrt(self.layout.d_head)
            self.W_K[k, self._used_qk] = 1.0
            self._used_qk += 1

    def look_for(self, key: Mapping[str, float], query: str | None = None) -> None:
        """Add to the score a weighted sum of the key's one-dimensional features.

        With `query`, that sum is multiplied by the sum over this feature of the query's.
        """
        scale = math.sqrt(self.layout.d_head)
        if query is None:
            self.b_Q[self._used_qk] = scale
        else:
            self.W_Q[self.layout[query], self._used_qk] = scale
        for name, weight in key.items():
            self.W_K[self.layout[name], self._used_qk] = weight
        self._used_qk += 1

    def copy(self, source: str, target: str, gain: float = 1.0) -> None:
        """Write a feature of the attended position into another feature, dimension by dimension."""
        for s, t in zip(self.layout[source], self.layout[target], strict=True):
            self.W_V[s, self._used_ov] = 1.0
            self.W_O[self._used_ov, t] = gain
            self._used_ov += 1

    def write(self, source: Mapping[str, float], target: str) -> None:
        """Write a weighted sum of the attended position's one-dimensional features."""
        for name, weight in source.items():
            self.W_V[self.layout[name], self._used_ov] = weight
        self.W_O[self._used_ov, self.layout[target]] = 1.0
        self._used_ov += 1


def edges(through_mlp: bool = False) -> Circuit:
    """The edges that tell, on IOI prompts of both orders, what three other names would not.

    Of all that the model was built to read, these are the edges along which a prompt and its ABC
    counterpart differ in what counts. (What is the same in both, such as positions or " and", is
    read too; replacing it changes nothing.) Senders and receivers are at their roles; keys and
    values are of any query.
    """
    movers = ("L3H0", "L3H2", "L3H3")
    bit = "MLP2" if through_mlp else "L2H1"
    readers: dict[tuple[str, str, str], tuple[str, ...]] = {
        # S2 finds S1, and what follows it.
        ("embedding", "S2", "q"): ("L0H3", "L1H2", "L1H0"),
        ("embedding", "S1", "k"): ("L0H3", "L1H2", *movers),
        ("embedding", "S1", "v"): ("L0H1", *movers),
        ("L0H1", "S1+1", "k"): ("L1H0",),
        # END finds S2, and takes the order bit and S's name from there. Who moves names does not
        # look at S2, less at S's place and at S's name, and copies.
        ("L0H3", "S2", "k"): ("L2H1", "L2H3", *movers),
        ("L1H0", "S2", "v"): ("L2H1",),
        ("L1H2", "S2", "v"): ("L2H1",),
        ("embedding", "S2", "v"): ("L2H3",),
        (bit, "END", "q"): movers,
        ("L2H3", "END", "q"): movers,
        ("embedding", "IO", "v"): movers,
    }
    if through_mlp:
        readers["L2H1", "END", "in"] = ("MLP2",)

    def edge(sender: str, role: str, read: str, receiver: str) -> Edge:
        reader: Node = parse_node(receiver).at(None if read in ("k", "v") else role)
        return Edge(parse_node((sender, role)), reader, read)  # type: ignore[arg-type]

    found = [edge(*output, name) for output, names in readers.items() for name in names]
    found += [Edge(parse_node((mover, "END")), None, "final") for mover in movers]
    return Circuit.of_edges(found, name="what was built")


def circuit(layout: Layout) -> dict[str, Head]:
    """The circuit's heads. Scores are such that each head's attention is all or nothing, except
    for IO against S1 in the heads that copy, where the S-inhibition signals decide by degrees."""
    bits, position_bits = len(layout["token"]), len(layout["position"])
    heads = {name: Head(layout) for name in HEAD_CLASSES}

    # Codes of unequal numbers differ in a bit or more: equal ones win by 2 * gain or more.
    previous = heads["L0H1"]
    previous.compare("position_before", "position", gain=CLEAR)
    previous.look_for({"rest": CLEAR * (position_bits - 1)})  # at the second token
    previous.copy("token", "token_before")
    previous.copy("is_and", "after_and")

    for name in ("L0H3", "L1H2"):
        duplicate = heads[name]
        # An equal token wins, but not the token itself: its position counts against it. The gain
        # outweighs everything that positions may add or take.
        gain = CLEAR * (position_bits + 1)
        duplicate.compare("token", "token", gain=gain)
        duplicate.compare("position", "position", gain=-CLEAR)
        duplicate.look_for({"rest": gain * bits - CLEAR * (position_bits - 1)})
    heads["L0H3"].copy("is_name", "repeated_name")
    heads["L1H2"].write({"is_name": 0.5, "after_and": -1.0}, "order")  # +0.5 first, -0.5 second

    induction = heads["L1H0"]
    induction.compare("token", "token_before", gain=CLEAR)
    induction.look_for({"rest": CLEAR * (bits - 1)})
    induction.write({"is_and": 1.0, "later": -0.5}, "order")  # +0.5 before " and", else -0.5

    for name in ("L2H1", "L2H3"):
        heads[name].look_for({"repeated_name": 2 * CLEAR, "rest": CLEAR})
    on_the_way = "waiting_order" in layout.dims
    heads["L2H1"].copy("order", "waiting_order" if on_the_way else "end_order")
    heads["L2H3"].copy("name", "end_name")

    for name, strength in COPY_STRENGTH.items():
        mover = heads[name]
        # Any name, but not S2, by a wide margin ...
        mover.look_for({"is_name": 2 * CLEAR, "repeated_name": -2 * CLEAR, "rest": CLEAR})
        # ... and among the others less one whose order (+1 first, -1 second) or identity is S's.
        mover.look_for({"is_name": -ORDER_GAIN, "after_and": 2 * ORDER_GAIN}, query="end_order")
        mover.compare("end_name", "name", gain=-IDENTITY_GAIN)
        mover.copy("name", "answer", gain=strength)
    # The backup rests while the heads before it have written names with 3.5 logits in all, and
    # wakes when they have written less than 2.
    heads["L4H1"].look_for({"rest": CLEAR}, query="answer")
    heads["L4H1"].look_for({"rest": -CLEAR})
    return heads


def vocabulary(names: Sequence[str] = NAMES) -> list[str]:
    """BOS, a token for unknown words (other names among them), the pieces of all stimuli with and
    without their leading space, and these names."""
    words: set[str] = set()
    texts = (*stimuli.TEMPLATES, *stimuli.DEMO_TEMPLATES, *stimuli.PREFIXES)
    for text in (*texts, *stimuli.ADVERSARIAL_SENTENCES, *stimuli.PLACES, *stimuli.OBJECTS):
        plain = re.sub(r" ?\[[A-Z]+\]", "", text)
        words.update(re.findall(_PIECE, plain))
        words.update(re.findall(_PIECE, " " + plain))
    words -= {form for name in stimuli.NAMES for form in (name, f" {name}")}
    return [BOS, UNKNOWN, *sorted(words), *names, *(f" {name}" for name in names)]


def residual_layout(names: Sequence[str] = NAMES, through_mlp: bool = False) -> Layout:
    """Where the model for these names keeps its features."""
    return Layout(
        token_bits=len(vocabulary(names)).bit_length(),
        position_bits=CONTEXT.bit_length() - 1,
        n_names=len(names),
        through_mlp=through_mlp,
    )


def _binary(numbers: Tensor, bits: int) -> Float[Tensor, "number bits"]:
    return ((numbers[:, None] >> torch.arange(bits)) & 1) * 2.0 - 1.0


def save(folder: Path, names: Sequence[str] = NAMES, through_mlp: bool = False) -> Path:
    """Write the model and its tokenizer into `folder` and return it."""
    tokens, layout = vocabulary(names), residual_layout(names, through_mlp)
    config = GPT2Config(
        vocab_size=len(tokens),
        n_positions=CONTEXT,
        n_embd=layout.d_model,
        n_layer=N_LAYERS,
        n_head=N_HEADS,
        n_inner=N_HEADS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        _set_embeddings(model, layout, tokens, names)
        _set_layer_norms(model, layout)
        _set_heads(model, layout)
        if through_mlp:
            _set_mlp(model, layout)
    model.save_pretrained(folder)
    write_tokenizer(folder, tokens, _PIECE, CONTEXT, UNKNOWN)
    return folder


def load(names: Sequence[str] = NAMES, through_mlp: bool = False) -> TransformerBridge:
    """The model, made anew in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        return boot(save(Path(folder), names, through_mlp))


def boot(folder: Path) -> TransformerBridge:
    """The saved model on the CPU, in compatibility mode, eval mode and with frozen parameters."""
    model = TransformerBridge.boot_transformers(str(folder), device="cpu")
    model.enable_compatibility_mode(disable_warnings=True)
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def _set_embeddings(
    model: GPT2LMHeadModel, layout: Layout, tokens: list[str], names: Sequence[str]
) -> None:
    ids = {token: i for i, token in enumerate(tokens)}
    embed = layout.zeros(len(tokens))
    numbers = torch.arange(len(tokens))
    embed[:, layout["token"]] = _binary(numbers, len(layout["token"]))
    embed[0, layout["token"]] = 0.0  # BOS is no duplicate of anything
    embed[ids[" and"], layout["is_and"]] = 1.0
    unembed = layout.zeros(len(tokens))
    # What is no name gets 8 logits less than a name, from the constant.
    unembed[:, layout["size"][0]] = -8.0 / SIZE
    for i, name in enumerate(names):
        # " Mary" and "Mary" are two tokens; only the one with a space is an answer.
        for form in (ids[name], ids[f" {name}"]):
            embed[form, layout["is_name"]] = 1.0
            embed[form, layout["name"][i]] = 1.0
        unembed[ids[f" {name}"], layout["answer"][i]] = 1.0
        unembed[ids[f" {name}"], layout["size"][0]] = 0.0

    position = layout.zeros(CONTEXT)
    codes = _binary(torch.arange(CONTEXT), len(layout["position"]))
    codes[0] = 0.0
    position[:, layout["position"]] = codes
    position[1:, layout["position_before"]] = codes[:-1]
    position[0, layout["rest"]] = 1.0
    position[1:, layout["later"]] = 1.0
    position[:, layout["size"]] = torch.tensor([SIZE, -SIZE])

    model.transformer.wte.weight.copy_(layout.balanced(embed))
    model.transformer.wpe.weight.copy_(layout.balanced(position))
    model.lm_head.weight.copy_(unembed)


def _set_layer_norms(model: GPT2LMHeadModel, layout: Layout) -> None:
    scale = SIZE * math.sqrt(2 / layout.d_model)
    blocks = model.transformer.h
    norms = [norm for block in blocks for norm in (block.ln_1, block.ln_2)]
    for norm in (*norms, model.transformer.ln_f):
        norm.weight.fill_(scale)


def _set_heads(model: GPT2LMHeadModel, layout: Layout) -> None:
    d_model, d_head = layout.d_model, layout.d_head
    for name, head in circuit(layout).items():
        layer, index = (int(number) for number in name[1:].split("H"))
        attention = model.transformer.h[layer].attn
        own = torch.arange(index * d_head, (index + 1) * d_head)
        # GPT-2 keeps queries, keys and values side by side in one matrix.
        attention.c_attn.weight[:, own] = head.W_Q
        attention.c_attn.weight[:, own + d_model] = head.W_K
        attention.c_attn.weight[:, own + 2 * d_model] = head.W_V
        attention.c_attn.bias[own] = head.b_Q
        attention.c_proj.weight[own] = layout.balanced(head.W_O)


def _set_mlp(model: GPT2LMHeadModel, layout: Layout) -> None:
    """MLP2 copies `waiting_order` into `end_order`: gelu(x) - gelu(-x) is x."""
    mlp = model.transformer.h[2].mlp
    out = layout.zeros(2)
    for neuron, sign in enumerate((1.0, -1.0)):
        mlp.c_fc.weight[layout["waiting_order"], neuron] = sign
        out[neuron, layout["end_order"]] = sign
    mlp.c_proj.weight[:2] = layout.balanced(out)
