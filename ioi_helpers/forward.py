"""GPT-2's forward pass, recomputed only where an intervention can have changed something.

Everything in this package that runs a model with something replaced (patching, path patching,
ablation, circuits) stands on this module, so that there is one copy of the equations:

    x          = W_E[token] + W_pos[position]              the residual stream enters block 0
    q, k, v    = LN1(x) W_Q + b_Q, ...                     for each head
    A          = softmax(q k' / sqrt(d_head))              causal: a token sees itself and before
    z          = A v
    x_mid      = x + z W_O + b_O                           the stream in the middle of the block
    x          = x_mid + act(LN2(x_mid) W_in + b_in) W_out + b_out          into the next block
    logits     = LN_final(x) W_U + b_U                     after the last block

(Radford et al. 2019; the notation is that of Elhage et al. 2021 and of TransformerLens.)

Three facts say what need not be computed again after an edit of the residual stream. Blocks below
the edit are unchanged. Positions before the first edited one are unchanged, as attention only looks
back; their keys and values are read from the unedited run. And when only the prediction at the end
of a prompt is asked for, the last block needs one query a prompt.

So the unit of work is a *span*: some positions of a prompt up to its end. Tokens of all spans lie
one after another in one flat axis ``token``, without padding; a full run is the case in which each
span is a whole prompt. Many edits of many prompts, at different layers, become many spans, and each
matrix product is done once for all of them.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

# --- weights -------------------------------------------------------------------------------------


class UnsupportedModel(ValueError):
    """The equations above are not those of this model."""


@dataclass(frozen=True)
class Norm:
    """A LayerNorm; weight and bias are None where they are folded into the next layer."""

    weight: Float[Tensor, " d_model"] | None
    bias: Float[Tensor, " d_model"] | None
    eps: float


@dataclass(frozen=True)
class Block:
    """The weights of one block; the heads of W_Q, W_K, W_V and W_O lie side by side."""

    ln1: Norm
    W_Q: Float[Tensor, "d_model head_x_d_head"]
    W_K: Float[Tensor, "d_model head_x_d_head"]
    W_V: Float[Tensor, "d_model head_x_d_head"]
    W_O: Float[Tensor, "head_x_d_head d_model"]
    b_Q: Float[Tensor, " head_x_d_head"]
    b_K: Float[Tensor, " head_x_d_head"]
    b_V: Float[Tensor, " head_x_d_head"]
    b_O: Float[Tensor, " d_model"]
    ln2: Norm
    W_in: Float[Tensor, "d_model d_mlp"]
    b_in: Float[Tensor, " d_mlp"]
    W_out: Float[Tensor, "d_mlp d_model"]
    b_out: Float[Tensor, " d_model"]
    score_scale: float
    """What attention scores are multiplied by: 1 / sqrt(d_head)."""


@dataclass(frozen=True)
class GPT2:
    """The weights of a GPT-2-style model: views of the model's own tensors, not copies."""

    W_E: Float[Tensor, "vocab d_model"]
    W_pos: Float[Tensor, "context d_model"]
    blocks: tuple[Block, ...]
    ln_final: Norm
    W_U: Float[Tensor, "d_model vocab"]
    b_U: Float[Tensor, " vocab"]
    n_heads: int
    activation: Callable[[Tensor], Tensor]

    @property
    def n_layers(self) -> int:
        """The number of blocks."""
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.W_E.device

    @property
    def dtype(self) -> torch.dtype:
        """Of activations: the weights' own, but float32 where those are of half precision."""
        return torch.promote_types(self.W_E.dtype, torch.float32)

    def heads(self, x: Float[Tensor, "token head_x_d_head"]) -> Float[Tensor, "token head d_head"]:
        """The same numbers, one row a head."""
        return x.unflatten(-1, (self.n_heads, -1))

    def bytes_per_token(self, width: int) -> int:
        """About how much memory one token of a span needs on its way through a block.

        Args:
            width: Positions in the longest prompt.
        """
        # The stream and its norm, q, k and v with their padded copies, z and what is made of it;
        # attention scores and weights.
        numbers = 16 * self.W_E.shape[1] + 8 * self.n_heads * width
        return numbers * self.dtype.itemsize


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}
# The MLP's hidden layer is the largest tensor of all. It is made for this many tokens at a time,
# so that it stays in the processor's cache.
MLP_TOKENS = 512
MOST_TOKENS = 8192
"""Tokens that a sweep runs together at most; more would be no faster, and its progress bar
slower."""


Engine = Literal["auto", "fast", "hooks"]
"""How a sweep is run: ``"fast"`` by the equations of this module, ``"hooks"`` by runs of the model
itself, ``"auto"`` by the former where it can be."""
ENGINES: tuple[str, ...] = ("auto", "fast", "hooks")

_said: WeakKeyDictionary[TransformerBridge, set[str]] = WeakKeyDictionary()


def weights_for(
    model: TransformerBridge,
    engine: str,
    slowly: str = "Sweeps go through hooks, one run of the model for each entry",
) -> GPT2 | None:
    """The weights if a sweep is to be run by the equations above, None if by the model itself.

    With ``engine="auto"`` a model that cannot be run here is run itself, which is slow; a printed
    line says why, once for each model and cause.

    Args:
        slowly: What the printed line says is done.

    Raises:
        ValueError: The engine is unknown, or it is ``"fast"`` and the model cannot be run here.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be 'auto', 'fast' or 'hooks', not {engine!r}.")
    if engine == "hooks":
        return None
    gpt, obstacle = usable_weights(model)
    if gpt is None and engine == "fast":
        raise ValueError(f"The fast path cannot run this model: {obstacle}; use engine='auto'.")
    said, notice = _said.setdefault(model, set()), f"{slowly}: {obstacle}."
    if gpt is None and notice not in said:
        said.add(notice)
        print(notice)
    return gpt


def require_weights(model: TransformerBridge, what: str) -> GPT2:
    """The weights, for what is computed by the equations above only.

    Raises:
        ValueError: The model cannot be run here.
    """
    gpt, obstacle = usable_weights(model)
    if gpt is None:
        raise ValueError(f"{what} a GPT-2-style model: {obstacle}.")
    return gpt


def usable_weights(model: TransformerBridge) -> tuple[GPT2 | None, str]:
    """The weights of a model that can be run here, or what keeps it from being run here.

    That is: another architecture; hooks of TransformerLens or PyTorch on it or on any module of
    the wrapped model, as they would not be run; and anything else that makes a run of the model
    differ from what its weights say, such as a module that was replaced, which is found by trying.
    """
    try:
        gpt = read_weights(model)
    except UnsupportedModel as error:
        return None, str(error)
    # The architecture was asked for first: on others the bridge has permanent hooks of its own.
    hooked = first_hook(model)
    if hooked:
        return None, f"there are hooks on the model ({hooked}), which the fast path would not run"
    if not _runs_as_written(model, gpt):
        return None, (
            "it does not compute what its weights say, as if a module of it had been replaced"
        )
    return gpt, ""


def modules(model: TransformerBridge) -> list[nn.Module]:
    """Every module of the bridge and of the wrapped model, once."""
    found: dict[nn.Module, None] = {}
    waiting: list[nn.Module] = [model, model.original_model]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module] = None
            waiting.extend(part for part in module._modules.values() if part is not None)
    return list(found)


def first_hook(model: TransformerBridge) -> str:
    """The name of a module on which somebody has put a hook; empty if nobody has."""
    if torch_modules._global_forward_hooks or torch_modules._global_forward_pre_hooks:
        return "on all modules"
    for module in modules(model):
        own = vars(module)
        hooks = [hook for kind in _HOOKS if own[kind] for hook in own[kind].values()]
        # The two libraries hang hooks of their own on modules, which only watch.
        if own.get("fwd_hooks") or any(not _made_by_library(hook) for hook in hooks):
            names = itertools.chain(model.named_modules(), model.original_model.named_modules())
            name = next(name for name, named in names if named is module)
            # Bridges hold the wrapped modules; say the name as a user would.
            return name.replace("._original_component", "") or type(module).__name__
    return ""


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _made_by_library(hook: Callable[..., Any]) -> bool:
    made_in = getattr(hook, "__module__", None) or ""
    return made_in.split(".")[0] in ("transformer_lens", "transformers")


def _runs_as_written(model: TransformerBridge, gpt: GPT2) -> bool:
    """Whether the model computes what the equations above do, found by trying once.

    The answer is remembered for as long as the model is made of the same modules, each with the
    same settings: on a small model trying takes a fifth of a sweep.
    """
    parts = [part for part in modules(model) if not isinstance(part, HookPoint)]
    # A method that was put on one module can do anything, and another thing the next time.
    if any("forward" in vars(part) for part in parts):
        return _computes_the_equations(model, gpt)
    settings = [_settings(part) for part in parts]
    settings.append((torch.get_float32_matmul_precision(),))
    if model in _tried:
        then, settings_then, answer = _tried[model]
        same = len(then) == len(parts) and all(a() is b for a, b in zip(then, parts, strict=True))
        if same and settings_then == settings:
            return answer
    answer = _computes_the_equations(model, gpt)
    _tried[model] = ([weakref.ref(part) for part in parts], settings, answer)
    return answer


_tried: WeakKeyDictionary[
    TransformerBridge, tuple[list[weakref.ref[nn.Module]], list[tuple[Any, ...]], bool]
] = WeakKeyDictionary()


def _settings(module: nn.Module) -> tuple[Any, ...]:
    """What decides how a module computes, beside its submodules."""
    own = vars(module)
    plain = [value for value in own.values() if type(value) in (bool, int, float, str)]
    tensors = [*own["_parameters"].values(), *own["_buffers"].values()]
    held = [(id(tensor), tensor._version) for tensor in tensors if tensor is not None]
    return (type(module).forward, *plain, *held)


@torch.no_grad()
def _computes_the_equations(model: TransformerBridge, gpt: GPT2) -> bool:
    """Whether the model's logits on a few tokens are those of the equations above."""
    n_tokens = min(4, gpt.W_pos.shape[0])
    tokens = torch.arange(n_tokens, device=gpt.device)[None] * 31 % gpt.W_E.shape[0]
    last = torch.tensor([n_tokens - 1], device=gpt.device)
    try:
        actual = model(tokens, logits_to_keep=1)[:, -1].float()
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):
        return False  # the sweep will meet the same error, and say it
    written = unembed(gpt, run(gpt, tokens, last, ()).final).float()
    exact = gpt.W_E.dtype in (torch.float32, torch.float64)
    exact = exact and torch.get_float32_matmul_precision() == "highest"
    # Rounding: 1e-5 of the logits' spread in float32, some hundredths in bfloat16.
    tolerance = (1e-3 if exact else 0.25) * float(written.std())
    return bool(((actual - written).abs() <= tolerance).all())


def read_weights(model: TransformerBridge) -> GPT2:
    """The weights of a model whose forward pass is the one above.

    Args:
        model: A bridge to a GPT-2 (``GPT2LMHeadModel``) of any size, in compatibility mode (folded)
            or not.

    Raises:
        UnsupportedModel: The model has another architecture, or its weights are on several devices
            or of several dtypes.
    """
    cfg = model.cfg
    architecture = getattr(cfg, "architecture", None)
    if architecture != "GPT2LMHeadModel":
        raise UnsupportedModel(f"its architecture is {architecture}, not GPT2LMHeadModel")
    if cfg.act_fn not in _ACTIVATIONS:
        raise UnsupportedModel(f"its activation function is {cfg.act_fn}")
    weights = [w for part in modules(model) for w in part._parameters.values() if w is not None]
    devices, dtypes = zip(*((w.device, w.dtype) for w in weights), strict=True)
    if len(set(devices)) > 1:
        raise UnsupportedModel("its blocks are on several devices")
    if len(set(dtypes)) > 1:
        raise UnsupportedModel("its weights are of several dtypes")

    def norm(layer_norm: Any) -> Norm:
        weight, bias = layer_norm.weight, layer_norm.bias
        folded = bool((weight == 1).all()) and not bias.any()
        return Norm(None, None, cfg.eps) if folded else Norm(weight, bias, cfg.eps)

    def side_by_side(weight: Float[Tensor, "head d_model d_head"]) -> Tensor:
        return weight.transpose(0, 1).flatten(1)

    blocks = []
    for layer, block in enumerate(model.blocks):
        attn, mlp = block.attn, block.mlp
        scale = cfg.d_head**-0.5
        if cfg.scale_attn_by_inverse_layer_idx:
            scale /= layer + 1
        blocks.append(
            Block(
                ln1=norm(block.ln1),
                W_Q=side_by_side(attn.W_Q),
                W_K=side_by_side(attn.W_K),
                W_V=side_by_side(attn.W_V),
                W_O=attn.W_O.flatten(0, 1),
                b_Q=attn.b_Q.flatten(),
                b_K=attn.b_K.flatten(),
                b_V=attn.b_V.flatten(),
                b_O=attn.b_O,
                ln2=norm(block.ln2),
                W_in=mlp.W_in,
                b_in=mlp.b_in,
                W_out=mlp.W_out,
                b_out=mlp.b_out,
                score_scale=scale,
            )
        )
    return GPT2(
        W_E=model.W_E,
        W_pos=model.W_pos,
        blocks=tuple(blocks),
        ln_final=norm(model.ln_final),
        W_U=model.W_U,
        b_U=model.b_U,
        n_heads=cfg.n_heads,
        activation=_ACTIVATIONS[cfg.act_fn],
    )


# --- which positions are computed ----------------------------------------------------------------


@dataclass(frozen=True)
class Spans:
    """Row r stands for positions ``first[r]`` to ``last[r]``, both included, of a prompt.

    Values at a span's positions are kept flat, ``[token ...]``: row 0's positions in order, then
    row 1's, and so on. Several rows may stand for the same prompt, each with another edit.
    """

    prompt: Int[Tensor, " row"]
    first: Int[Tensor, " row"]
    last: Int[Tensor, " row"]

    def __len__(self) -> int:
        return len(self.prompt)

    @cached_property
    def lengths(self) -> Int[Tensor, " row"]:
        """Positions in each row."""
        return self.last - self.first + 1

    @cached_property
    def starts(self) -> Int[Tensor, " row"]:
        """The token that is each row's first position."""
        return self.lengths.cumsum(0) - self.lengths

    @cached_property
    def ends(self) -> Int[Tensor, " row"]:
        """The token that is each row's last position."""
        return self.starts + self.lengths - 1

    @cached_property
    def row(self) -> Int[Tensor, " token"]:
        """Each token's row."""
        return torch.repeat_interleave(self.lengths)

    @cached_property
    def pos(self) -> Int[Tensor, " token"]:
        """Each token's position in its prompt."""
        tokens = torch.arange(len(self.row), device=self.row.device)
        return tokens + (self.first - self.starts)[self.row]

    @cached_property
    def at(self) -> tuple[Int[Tensor, " token"], Int[Tensor, " token"]]:
        """Index of each token in a tensor [batch pos ...]."""
        return self.prompt[self.row], self.pos

    @cached_property
    def width(self) -> int:
        """Positions in the longest row."""
        return int(self.lengths.max())

    def only_ends(self) -> Spans:
        """The same rows, cut down to their last positions."""
        return Spans(self.prompt, self.last, self.last)

    @cached_property
    def _uniform(self) -> bool:
        return len(self.row) == len(self) * self.width

    @cached_property
    def _slot(self) -> Int[Tensor, " token"]:
        return self.pos - self.first[self.row]

    def by_row(self, x: Shaped[Tensor, "token *rest"]) -> Shaped[Tensor, "row width *rest"]:
        """Rows side by side, short ones filled up with zeros."""
        if self._uniform:
            return x.unflatten(0, (len(self), self.width))
        padded = x.new_zeros(len(self), self.width, *x.shape[1:])
        padded[self.row, self._slot] = x
        return padded

    def flat(self, x: Shaped[Tensor, "row width *rest"]) -> Shaped[Tensor, "token *rest"]:
        """The inverse of `by_row`."""
        return x.flatten(0, 1) if self._uniform else x[self.row, self._slot]

    @cached_property
    def _place_in_prompt(self) -> tuple[Int[Tensor, " token"], Int[Tensor, " token"], int]:
        prompts = self.prompt[self.row]
        order = prompts.argsort(stable=True)
        counts = prompts.bincount()
        starts = counts.cumsum(0) - counts
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device) - starts[prompts[order]]
        return prompts, place, int(counts.max())

    def by_prompt(
        self, x: Shaped[Tensor, "token *rest"], batch: int
    ) -> Shaped[Tensor, "batch place *rest"]:
        """All tokens of all rows of a prompt side by side, filled up with zeros."""
        prompts, place, most = self._place_in_prompt
        padded = x.new_zeros(batch, most, *x.shape[1:])
        padded[prompts, place] = x
        return padded

    def flat_from_prompts(
        self, x: Shaped[Tensor, "batch place *rest"]
    ) -> Shaped[Tensor, "token *rest"]:
        """The inverse of `by_prompt`."""
        prompts, place, _ = self._place_in_prompt
        return x[prompts, place]

    @staticmethod
    def join(spans: Sequence[Spans]) -> Spans:
        """One after another."""
        return Spans(
            torch.cat([part.prompt for part in spans]),
            torch.cat([part.first for part in spans]),
            torch.cat([part.last for part in spans]),
        )


# --- the equations -------------------------------------------------------------------------------


Editor = Callable[[str, int, Tensor, Spans], Tensor]
"""Replaces values in the middle of a run: called with the site (one of :data:`SITES`), the layer,
the value, flat over the tokens of the spans, and the spans; returns the value to go on with. This
is how several heads of several layers are ablated or patched in one and the same run."""


def layer_norm(norm: Norm, x: Float[Tensor, "*token d_model"]) -> Float[Tensor, "*token d_model"]:
    """LN(x) = (x - mean) / sqrt(variance + eps) * weight + bias.

    Written out, because PyTorch's own ``layer_norm`` rounds otherwise where the mean is small
    against the entries, and TransformerLens writes it out too.
    """
    x = x - x.mean(dim=-1, keepdim=True)
    scale = (x.square().mean(dim=-1, keepdim=True) + norm.eps).sqrt()
    # In place, but for gradients, which need what would be overwritten.
    x = x / scale if x.requires_grad else x.div_(scale)
    if norm.weight is not None and norm.bias is not None:
        x = x * norm.weight + norm.bias
    return x


def attention_pattern(
    gpt: GPT2,
    layer: int,
    q: Float[Tensor, "query head d_head"],
    k: Float[Tensor, "token head d_head"],
    queries: Spans,
    keys: Spans,
    earlier_k: Float[Tensor, "batch pos head d_head"] | None = None,
) -> Float[Tensor, "query head key"]:
    """A = softmax(q k' * scale) for each query.

    Args:
        q: Queries, at the positions of ``queries``.
        k: Keys, at the positions of ``keys``, whose rows are those of ``queries``.
        earlier_k: Keys of the unedited run, used before the first position of each row. May be
            left out where all rows start at position 0.

    Returns:
        Attention to the earlier positions 0, 1, ... (as many as the latest row start), followed by
        attention to the row's own positions. Zero where a key is out of sight.
    """
    own = torch.einsum("rihd,rjhd->rihj", queries.by_row(q), keys.by_row(k))
    own = queries.flat(own)
    own_pos = keys.first[queries.row, None] + torch.arange(keys.width, device=q.device)
    own.masked_fill_((own_pos > queries.pos[:, None])[:, None], -torch.inf)
    if earlier_k is None:
        return (own * gpt.blocks[layer].score_scale).softmax(dim=-1)
    n_earlier = int(keys.first.max())
    by_prompt = queries.by_prompt(q, len(earlier_k))
    before = torch.einsum("bihd,bjhd->bihj", by_prompt, earlier_k[:, :n_earlier])
    before = queries.flat_from_prompts(before)
    before_pos = torch.arange(n_earlier, device=q.device)
    before.masked_fill_((before_pos >= keys.first[queries.row, None])[:, None], -torch.inf)
    return (torch.cat([before, own], dim=-1) * gpt.blocks[layer].score_scale).softmax(dim=-1)


def attend(
    pattern: Float[Tensor, "query head key"],
    v: Float[Tensor, "token head d_head"],
    queries: Spans,
    keys: Spans,
    earlier_v: Float[Tensor, "batch pos head d_head"] | None = None,
) -> Float[Tensor, "query head d_head"]:
    """z = A v. The arguments are those of `attention_pattern`, with values in the keys' place."""
    own = queries.by_row(pattern[..., pattern.shape[-1] - keys.width :])
    z = queries.flat(torch.einsum("rihj,rjhd->rihd", own, keys.by_row(v)))
    if earlier_v is None:
        return z
    n_earlier = pattern.shape[-1] - keys.width
    before = queries.by_prompt(pattern[..., :n_earlier], len(earlier_v))
    from_before = torch.einsum("bihj,bjhd->bihd", before, earlier_v[:, :n_earlier])
    return z + queries.flat_from_prompts(from_before)


def affine(
    bias: Float[Tensor, " out"], x: Float[Tensor, "token in"], weight: Float[Tensor, "in out"]
) -> Float[Tensor, "token out"]:
    """x W + b, in the precision of x: float32 where the weights are of half precision.

    Activations are float32 at least, as sums of many terms in 16 bits would lose what a patch
    changes.
    """
    return torch.addmm(bias.to(x.dtype), x, weight.to(x.dtype))


def mlp(gpt: GPT2, layer: int, x_mid: Float[Tensor, "token d_model"]) -> Tensor:
    """The MLP's output, to be added to the stream: act(LN2(x_mid) W_in + b_in) W_out + b_out."""
    block = gpt.blocks[layer]
    W_in, W_out = block.W_in.to(x_mid.dtype), block.W_out.to(x_mid.dtype)
    out = []
    for part in x_mid.split(MLP_TOKENS):
        hidden = gpt.activation(affine(block.b_in, layer_norm(block.ln2, part), W_in))
        out.append(affine(block.b_out, hidden, W_out))
    return torch.cat(out)


def attention(
    gpt: GPT2,
    layer: int,
    x: Float[Tensor, "token d_model"],
    spans: Spans,
    base: Run | None = None,
    *,
    only_ends: bool = False,
    edit: Editor | None = None,
) -> dict[str, Tensor]:
    """The first half of a block, from the residual stream before it to that in its middle.

    Args:
        x: The stream entering the block, at the positions of ``spans``.
        base: The unedited run, whose keys and values stand for the positions before each row's
            first. May be left out where all rows start at position 0.
        only_ends: Compute queries, and what follows from them, at the last position of each row
            only.
        edit: Replaces values on their way, see :data:`Editor`.

    Returns:
        ``q``, ``k``, ``v``, ``z`` [token head d_head], ``attn_out`` and ``resid_mid``
        [token d_model].
    """
    block = gpt.blocks[layer]
    normed = layer_norm(block.ln1, x)
    queries = spans
    normed_queries = normed
    if only_ends:
        queries, x, normed_queries = spans.only_ends(), x[spans.ends], normed[spans.ends]

    def edited(site: str, value: Tensor, where: Spans) -> Tensor:
        return value if edit is None else edit(site, layer, value, where)

    q = edited("q", gpt.heads(affine(block.b_Q, normed_queries, block.W_Q)), queries)
    k = edited("k", gpt.heads(affine(block.b_K, normed, block.W_K)), spans)
    v = edited("v", gpt.heads(affine(block.b_V, normed, block.W_V)), spans)
    earlier_k, earlier_v = (None, None) if base is None else (base["k"][layer], base["v"][layer])
    pattern = attention_pattern(gpt, layer, q, k, queries, spans, earlier_k)
    z = edited("z", attend(pattern, v, queries, spans, earlier_v), queries)
    attn_out = edited("attn_out", affine(block.b_O, z.flatten(1), block.W_O), queries)
    x_mid = edited("resid_mid", x + attn_out, queries)
    return {"q": q, "k": k, "v": v, "z": z, "attn_out": attn_out, "resid_mid": x_mid}


def embed(
    gpt: GPT2, tokens: Int[Tensor, "batch pos"], spans: Spans
) -> Float[Tensor, "token d_model"]:
    """The residual stream that enters block 0, at the positions of ``spans``."""
    return gpt.W_E[tokens[spans.at]].to(gpt.dtype) + gpt.W_pos[spans.pos]


def normalise_final(gpt: GPT2, x: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
    """What the unembedding reads: the final residual stream after the final LayerNorm."""
    return layer_norm(gpt.ln_final, x)


def unembed(gpt: GPT2, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
    """The logits of final residual streams."""
    return affine(gpt.b_U, normalise_final(gpt, x), gpt.W_U)


def logit_diffs(
    gpt: GPT2,
    x: Float[Tensor, "*run batch d_model"],
    io_tokens: Int[Tensor, " batch"],
    s_tokens: Int[Tensor, " batch"],
) -> Float[Tensor, "*run batch"]:
    """The logit difference of final residual streams at END, from two columns of ``W_U`` only."""
    io, s = io_tokens.to(gpt.device), s_tokens.to(gpt.device)
    directions = gpt.W_U.T[io].to(x.dtype) - gpt.W_U.T[s].to(x.dtype)
    constant = gpt.b_U[io].to(x.dtype) - gpt.b_U[s].to(x.dtype)
    normed = normalise_final(gpt, x)
    return torch.einsum("...bd,bd->...b", normed, directions) + constant


# --- whole runs ----------------------------------------------------------------------------------

SITES: tuple[str, ...] = ("resid_pre", "q", "k", "v", "z", "attn_out", "resid_mid", "mlp_out")
"""What a run can keep, in the order of the equations."""
BASE_SITES: tuple[str, ...] = ("resid_pre", "k", "v", "resid_mid")
"""What a run must keep for others to be computed as edits of it."""


@dataclass(frozen=True)
class Run:
    """What was kept of a run over a batch of prompts.

    ``run["k"][layer]`` is ``[batch pos head d_head]`` and ``run["resid_mid"][layer]``
    ``[batch pos d_model]``. ``run["resid_pre"]`` has one entry more than there are blocks: the
    last is the final residual stream. After a prompt's last position there are zeros.
    """

    last: Int[Tensor, " batch"]
    """The last position of each prompt: END."""
    kept: dict[str, list[Tensor]]
    final: Float[Tensor, "batch d_model"]
    """The final residual stream at END."""

    def __getitem__(self, site: str) -> list[Tensor]:
        return self.kept[site]


@torch.no_grad()
def run(
    gpt: GPT2,
    tokens: Int[Tensor, "batch pos"],
    last: Int[Tensor, " batch"],
    keep: Iterable[str] = BASE_SITES,
    *,
    base: Run | None = None,
    first: Int[Tensor, " batch"] | None = None,
    shift: Float[Tensor, "batch pos d_model"] | None = None,
    edit: Editor | None = None,
) -> Run:
    """Run the model and keep activations.

    Args:
        tokens: Prompts, right-padded.
        last: The last position of each prompt.
        keep: Which of :data:`SITES` to keep.
        base: A run over prompts that are the same before ``first``. It must have kept the sites
            that are kept here, and ``k`` and ``v``.
        first: The first position at which each prompt differs from that of ``base``; only from
            there on anything is computed. A prompt that does not differ has ``last`` or more.
        shift: Added to the embeddings.
        edit: Replaces values on their way, see :data:`Editor`. Edited values are what is kept.
    """
    keep = tuple(dict.fromkeys(keep))
    prompts = torch.arange(len(tokens), device=tokens.device)
    start = torch.zeros_like(last) if first is None else torch.minimum(first, last)
    spans = Spans(prompts, start, last)
    kept: dict[str, list[Tensor]] = {site: [] for site in keep}

    def store(site: str, layer: int, value: Tensor) -> None:
        if site in kept:
            if base is None:
                full = value.new_zeros(*tokens.shape, *value.shape[1:])
            else:
                full = base[site][layer].clone()
            full[spans.at] = value
            kept[site].append(full)

    x = embed(gpt, tokens, spans)
    if shift is not None:
        x = x + shift[spans.at]
    for layer in range(gpt.n_layers):
        if edit is not None:
            x = edit("resid_pre", layer, x, spans)
        store("resid_pre", layer, x)
        computed = attention(gpt, layer, x, spans, base, edit=edit)
        for site, value in computed.items():
            store(site, layer, value)
        mlp_out = mlp(gpt, layer, computed["resid_mid"])
        if edit is not None:
            mlp_out = edit("mlp_out", layer, mlp_out, spans)
        store("mlp_out", layer, mlp_out)
        x = computed["resid_mid"] + mlp_out
    store("resid_pre", gpt.n_layers, x)
    return Run(last=last, kept=kept, final=x[spans.ends])


# --- runs with something edited ------------------------------------------------------------------


@dataclass(frozen=True)
class Edit:
    """New values of the residual stream, and where they stand.

    Each row is one prompt run once with its own edit; everything else is as in the base run.
    """

    layer: int
    """The block; ``n_layers`` with ``middle=False`` is after the last."""
    middle: bool
    """Edit the stream between the block's attention and its MLP, not the stream that enters it."""
    spans: Spans
    """From the first position that is edited to the prompt's last."""
    tokens: Int[Tensor, " edited"]
    """Which of the spans' tokens are edited."""
    values: Float[Tensor, "edited d_model"]

    def only_ends(self) -> Edit:
        """What is left of it where only the last position of each row matters."""
        at_end = self.spans.pos[self.tokens] == self.spans.last[self.spans.row[self.tokens]]
        return Edit(
            self.layer,
            self.middle,
            self.spans.only_ends(),
            self.spans.row[self.tokens[at_end]],
            self.values[at_end],
        )


@torch.no_grad()
def run_edits(
    gpt: GPT2,
    base: Run,
    edits: Sequence[Edit],
    edit: Editor | None = None,
) -> Float[Tensor, "row d_model"]:
    """Run every row of every edit through the rest of the model.

    Rows enter at their own layer and then go through the blocks together, so a matrix product is
    done once for all of them.

    Args:
        base: The unedited run, with :data:`BASE_SITES` kept.
        edits: Rows of edits, each edit with its own layer.
        edit: Replaces further values of the rows on their way from where they enter, see
            :data:`Editor`. The rows of its spans are numbered as they entered: those of the lowest
            edit first.

    Returns:
        The final residual stream at each row's last position: the rows of the first edit, then
        those of the second, and so on. `unembed` makes logits of it.
    """
    if not edits:
        return base.final[:0]
    last_layer = gpt.n_layers - 1
    waiting = sorted(range(len(edits)), key=lambda i: (edits[i].layer, edits[i].middle))
    entered: list[int] = []
    nothing = base.last[:0]
    spans, x = Spans(nothing, nothing, nothing), base.final[:0]

    def next_edit(layer: int, middle: bool) -> Edit | None:
        if waiting and (edits[waiting[0]].layer, edits[waiting[0]].middle) == (layer, middle):
            entered.append(waiting.pop(0))
            entering = edits[entered[-1]]
            at_the_end = layer > last_layer or (layer == last_layer and middle)
            return entering.only_ends() if at_the_end else entering
        return None

    def enter(new: Spans, tokens: Tensor, values: Tensor, layer: int) -> None:
        # Positions that are not edited themselves enter with the base run's values: what follows
        # may differ there, as they look back at edited ones.
        nonlocal spans, x
        joining = base["resid_pre"][layer][new.at]
        joining[tokens] = values
        spans, x = Spans.join([spans, new]), torch.cat([x, joining])

    for layer in range(edits[waiting[0]].layer, gpt.n_layers):
        while new := next_edit(layer, middle=False):
            enter(new.spans, new.tokens, new.values, layer)
        x_mid = x
        if len(spans):
            only_ends = layer == last_layer
            computed = attention(gpt, layer, x, spans, base, only_ends=only_ends, edit=edit)
            x_mid = computed["resid_mid"]
            spans = spans.only_ends() if only_ends else spans
        in_middle = []
        while new := next_edit(layer, middle=True):
            in_middle.append(new)
        parts = [x_mid, *(new.values for new in in_middle)]
        after = torch.cat(parts)
        mlp_out = mlp(gpt, layer, after)
        if edit is not None and len(spans):
            on_their_way = len(x_mid)
            mlp_out[:on_their_way] = edit("mlp_out", layer, mlp_out[:on_their_way], spans)
        after += mlp_out
        x, *edited = after.split([len(part) for part in parts])
        for new, values in zip(in_middle, edited, strict=True):
            enter(new.spans, new.tokens, values, layer + 1)
    while new := next_edit(gpt.n_layers, middle=False):
        enter(new.spans, new.tokens, new.values, gpt.n_layers)

    # Every row is down to its last position; back to the order in which the edits were given.
    by_edit = dict(zip(entered, x.split([len(edits[i].spans) for i in entered]), strict=True))
    return torch.cat([by_edit[i] for i in range(len(edits))])


def by_layer_in_parts(
    layers: Sequence[int], tokens: Sequence[int], most: int = MOST_TOKENS
) -> Iterator[list[int]]:
    """Numbers of edits to be run together, with at most so many tokens; those without tokens never.

    By layer, so that edits which enter late in the model do not go along with early ones.

    Args:
        layers: Where each edit enters.
        tokens: How many tokens its rows have.
        most: Tokens in a part, unless a single edit has more.
    """
    part: list[int] = []
    total = 0
    for i in sorted(range(len(layers)), key=layers.__getitem__):
        if not tokens[i]:
            continue
        if part and total + tokens[i] > most:
            yield part
            part, total = [], 0
        part.append(i)
        total += tokens[i]
    if part:
        yield part


def first_difference(
    tokens: Int[Tensor, "batch pos"],
    other: Int[Tensor, "batch pos"],
    lengths: Int[Tensor, " batch"],
) -> tuple[Int[Tensor, " batch"], Bool[Tensor, "batch pos"]]:
    """Where prompts of equal length differ.

    Returns:
        The first position that differs (``lengths`` where none does), before which no activation
        can differ; and for each position whether its token does.
    """
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    differs = (tokens != other) & (positions < lengths[:, None])
    first = torch.where(differs, positions, tokens.shape[1]).amin(dim=1)
    return torch.minimum(first, lengths), differs
