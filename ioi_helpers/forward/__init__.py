"""A decoder's forward pass, recomputed only where an intervention can have changed something.

Everything in this package that runs a model with something replaced (patching, path patching,
ablation, circuits) stands on this room, so that there is one copy of the equations:

    x          = W_E[token] + W_pos[position]              the residual stream enters block 0
    q, k, v    = N1(x) W_Q + b_Q, ...                      for each head
    A          = softmax(q k' / sqrt(d_head))              causal: a token sees itself and before
    z          = A v
    x_mid      = x + z W_O + b_O                           the stream in the middle of the block
    x          = x_mid + act(N2(x_mid) W_in + b_in) W_out + b_out           into the next block
    logits     = N_final(x) W_U + b_U                      after the last block

(Radford et al. 2019; the notation is that of Elhage et al. 2021 and of TransformerLens.) N is a
LayerNorm. That is GPT-2; other decoders differ in a few switches, each of which stands in one line:

    =============  =============================================  =================================
    switch         equation                                       who has it
    =============  =============================================  =================================
    RMSNorm        N(x) does not subtract the mean                Llama, Mistral, Qwen, Gemma
    rotary         no W_pos; q and k are turned by position       those, NeoX, Starcoder 2
    parallel       x = x + z W_O + b_O + MLP(N2(x))               Pythia and other NeoX
    gated          act(N2(x) W_gate) * (N2(x) W_in) in the MLP    Llama, Mistral, Qwen, Gemma
    groups         several heads share one k and v                Llama, Mistral, Qwen, Gemma, ...
    scale          1 / (layer + 1) as well; or none at all        Stanford's GPT-2; GPT-Neo
    window         a token sees its last so many tokens only      GPT-Neo, Mistral, Gemma 2
    norms of q, k  N(q), N(k) before they are turned              Qwen 3
    post-norms     x + N(z W_O), x_mid + N(MLP(...))              Gemma 2
    soft caps      cap * tanh(. / cap) of scores and of logits    Gemma 2
    =============  =============================================  =================================

Read it from top to bottom: `decoder` (weights and switches), `reading` (what each family calls
them), `spans`, then the equations in `norms`, `positions`, `mlp`, `attention` and `logits`, and
what runs them in `run` and `edits`. `engine` asks whether a model may be run so, by trying.

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

from ioi_helpers.forward.attention import (
    W_O_by_head,
    at_positions,
    attend,
    attention,
    attention_pattern,
    change_of_write,
    mixed,
    out_of_sight,
    products,
    project,
    read,
    scores,
    weights_of,
    write,
)
from ioi_helpers.forward.decoder import Block, Decoder, Norm, Rotary
from ioi_helpers.forward.edits import (
    MOST_TOKENS,
    Edit,
    by_layer_in_parts,
    first_difference,
    run_edits,
)
from ioi_helpers.forward.engine import (
    ENGINES,
    NOT_BY_HEAD,
    Engine,
    first_hook,
    require_weights,
    usable_weights,
    weights_for,
)
from ioi_helpers.forward.logits import logit_diffs, normalise_final, unembed
from ioi_helpers.forward.mlp import affine, mlp
from ioi_helpers.forward.norms import normalise, scale_of, through
from ioi_helpers.forward.positions import embed, embed_at, embed_tokens
from ioi_helpers.forward.reading import FAMILIES, UnsupportedModel, modules, read_weights
from ioi_helpers.forward.run import run
from ioi_helpers.forward.spans import BASE_SITES, SITES, Editor, Run, Spans

__all__ = [
    "BASE_SITES",
    "ENGINES",
    "FAMILIES",
    "MOST_TOKENS",
    "NOT_BY_HEAD",
    "SITES",
    "Block",
    "Decoder",
    "Edit",
    "Editor",
    "Engine",
    "Norm",
    "Rotary",
    "Run",
    "Spans",
    "UnsupportedModel",
    "W_O_by_head",
    "affine",
    "at_positions",
    "attend",
    "attention",
    "attention_pattern",
    "by_layer_in_parts",
    "change_of_write",
    "embed",
    "embed_at",
    "embed_tokens",
    "first_difference",
    "first_hook",
    "logit_diffs",
    "mixed",
    "mlp",
    "modules",
    "normalise",
    "normalise_final",
    "out_of_sight",
    "products",
    "project",
    "read",
    "read_weights",
    "require_weights",
    "run",
    "run_edits",
    "scale_of",
    "scores",
    "through",
    "unembed",
    "usable_weights",
    "weights_for",
    "weights_of",
    "write",
]
