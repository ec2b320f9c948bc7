"""Answers to the exercises of notebook 04: what readers write that is right, and what is not.

See `01.py` for the form.
"""

from __future__ import annotations

LINE = """\
layer, head = best["induction"]
pattern = patterns[layer, :, head]
def along(first, last, offset):
    q = torch.arange(first, last)
    return pattern[:, q, q - offset].mean()
"""

LOSS = """\
tokens = torch.cat([half, half], dim=1)
layer, head = best["induction"]
def losses(silent):
    def zero(z, hook):
        z = z.clone()
        if silent:
            z[:, :, head] = 0
        return z
    hooks = [(f"blocks.{layer}.attn.hook_z", zero)]
    log_p = model.run_with_hooks(tokens, fwd_hooks=hooks).log_softmax(-1)
    return -log_p[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
change = losses(True) - losses(False)
"""

MATRICES = """\
A = model.W_V[writer] @ model.W_O[writer]
B = model.W_Q[reader] @ model.W_K[reader].T
"""

CUT = """\
tokens = torch.cat([half, half], dim=1)
stream = cache["resid_pre", reader[0]]
output = cache["z", writer[0]][:, :, writer[1]] @ model.W_O[writer]
read = model.blocks[reader[0]].ln1
attn = model.blocks[reader[0]].attn
def scored(q, k):
    scores = q @ k.mT / model.cfg.d_head**0.5
    ahead = torch.ones(2 * length, 2 * length, dtype=torch.bool).triu(1)
    seen = scores.masked_fill(ahead, -1e9).softmax(-1)
    return seen.diagonal(1 - length, dim1=-2, dim2=-1).mean()
h = reader[1]
def queries_of(x):
    return read(x) @ attn.W_Q[h] + attn.b_Q[h]
def keys_of(x):
    return read(x) @ attn.W_K[h] + attn.b_K[h]
old = scored(queries_of(stream), keys_of(stream))
"""

LOOKS = """\
seen = heads.positional_patterns(model, copy_length)
def line(offset):
    return seen.diagonal(offset, dim1=-2, dim2=-1).mean(-1)
"""

RIGHT = {
    "04.1": [
        LINE + "second_copy_score = along(length, 2 * length, length - 1)",
        # The demo's line without its first entry.
        'layer, head = best["induction"]\n'
        "stripe = patterns[layer, :, head].diagonal(1 - length, dim1=-2, dim2=-1)\n"
        "second_copy_score = stripe[:, 1:].mean().item()",
        # Token by token.
        'layer, head = best["induction"]\n'
        "found = [patterns[layer, r, head, q, q - length + 1].item()\n"
        "         for r in range(len(half)) for q in range(length, 2 * length)]\n"
        "second_copy_score = sum(found) / len(found)",
    ],
    "04.2": [
        "chance = sum(1 / (q + 1) for q in range(length - 1, 2 * length)) / (length + 1)",
        'chance = heads.repeat_scores(model, half, definition="demo").chance["induction"]',
        "even = torch.ones(2 * length, 2 * length).tril()\n"
        "even = even / even.sum(-1, keepdim=True)\n"
        "chance = even.diagonal(1 - length).mean()",
    ],
    "04.3": [
        LOSS + "rise = change[:, length:].mean()",
        "from ioi_helpers.ablation import ablate\n"
        'whole = heads.repeat_scores(model, half, definition="demo")\n'
        'off = name_of(best["induction"])\n'
        'with ablate(model, off, "zero"):\n'
        '    silent = heads.repeat_scores(model, half, definition="demo")\n'
        "rise = silent.loss - whole.loss",
        LOSS + "rise = float(change[:, length:].sum() / (len(half) * (length - 1)))",
    ],
    "04.4": [
        MATRICES + "score_by_hand = (A @ B.T).norm() / (A.norm() * B.norm())",
        'score_by_hand = composition["K"][(*writer, *reader)]',
        MATRICES + "score_by_hand = float((B @ A.T).norm() / A.norm() / B.norm())",
        'score_by_hand = model.all_composition_scores("K").scores[(*writer, *reader)].item()',
    ],
    "04.5": [
        CUT + "change = scored(queries_of(stream), keys_of(stream - output)) - old",
        # With the queries of the run.
        CUT
        + "keys = keys_of(stream - output)\n"
        + "new = scored(cache['q', reader[0]][:, :, h], keys)\n"
        + "change = (new - by_hand['induction'][reader]).item()",
    ],
    "04.6": [
        "seen = heads.positional_patterns(model, copy_length)\n"
        "q = torch.arange(1, copy_length)\n"
        "looks_back = seen[:, :, q, q - 1].mean(-1)",
        "seen = heads.positional_patterns(model, copy_length).cpu().numpy()\n"
        "q = range(1, copy_length)\n"
        "looks_back = [[head[q, range(copy_length - 1)].mean() for head in layer] for layer in seen]",
    ],
}

WRONG = {
    "04.1": {
        'second_copy_score = by_hand["induction"][best["induction"]]': r"first copy",
        LINE + "second_copy_score = along(length, 2 * length, length)": r"duplicate-token",
        LINE + "second_copy_score = along(length, 2 * length, length - 2)": r"one too far",
        LINE + "second_copy_score = along(length, 2 * length, 1)": r"previous token",
        LINE + "second_copy_score = pattern.mean()": r"whole pattern",
        LINE + "second_copy_score = along(length, 2 * length, length - 1) * length": r"sum",
        LINE + "second_copy_score = pattern": r"single number",
        LINE + "second_copy_score = along(length - 1, 2 * length - 1, length - 1)": r"last entry",
        LINE
        + "pattern = pattern[:1]\nsecond_copy_score = along(length, 2 * length, length - 1)": r"first row",
        LINE
        + "pattern = pattern.mT\nsecond_copy_score = along(length, 2 * length, length - 1)": r"looks ahead",
    },
    "04.2": {
        "chance = 1 / (2 * length)": r"look at all tokens",
        "chance = 1 / length": r"very start",
        "chance = (1 / (torch.arange(2 * length) + 1)).mean()": r"all positions",
        "chance = (1 / (torch.arange(length, 2 * length) + 1)).mean()": r"first entry",
        "chance = (1 / torch.arange(length - 1, 2 * length)).mean()": r"sees itself",
        'chance = scores.chance["previous_token"]': r"previous-token line",
        "chance = (1 / (torch.arange(length, 2 * length + 1) + 1)).mean()": r"no BOS",
        "chance = (1 / torch.arange(length, 2 * length + 1)).sum()": r"sum",
        "chance = 0": r"too low",
    },
    "04.3": {
        LOSS + "rise = change[:, : length - 1].mean()": r"first copy",
        LOSS + "rise = change.mean()": r"both copies",
        LOSS
        + "def unshifted(silent):\n"
        + "    hook = lambda z, hook: z * (torch.arange(n_heads) != head)[:, None]\n"
        + "    hooks = [(f'blocks.{layer}.attn.hook_z', hook)] if silent else []\n"
        + "    log_p = model.run_with_hooks(tokens, fwd_hooks=hooks).log_softmax(-1)\n"
        + "    return -log_p.gather(2, tokens[..., None])[:, length + 1 :].mean()\n"
        + "rise = unshifted(True) - unshifted(False)": r"predict the token at q \+ 1",
        LOSS + "rise = -change[:, length:].mean()": r"sign",
        LOSS + "rise = losses(True)[:, length:].mean()": r"subtract the loss",
        LOSS + "rise = change[:, length:].mean(0).sum()": r"sum over tokens",
        LOSS + "rise = change[:, length - 1 :].mean()": r"first token",
        "start = torch.full_like(tokens[:, :1], model.tokenizer.bos_token_id)\n"
        "begun = torch.cat([start, tokens], dim=1)\n"
        "def loss(hooks):\n"
        "    log_p = model.run_with_hooks(begun, fwd_hooks=hooks).log_softmax(-1)\n"
        "    return -log_p[:, length + 1 : -1].gather(2, begun[:, length + 2 :, None]).mean()\n"
        "hook = lambda z, hook: z * (torch.arange(n_heads) != head)[:, None]\n"
        "rise = loss([(f'blocks.{layer}.attn.hook_z', hook)]) - loss([])": r"BOS",
    },
    "04.4": {
        MATRICES + "score_by_hand = (A @ B).norm() / (A.norm() * B.norm())": r"Q-composition",
        'score_by_hand = composition["V"][(*writer, *reader)]': r"V-composition",
        MATRICES + "score_by_hand = (A @ B.T).norm()": r"not divided",
        MATRICES
        + "score_by_hand = ((A @ B.T).norm() / (A.norm() * B.norm())) ** 2": r"square|too low",
        MATRICES + "score_by_hand = A @ B.T": r"single number",
        "writer, reader = reader, writer\n"
        + MATRICES
        + "score_by_hand = (A @ B.T).norm() / (A.norm() * B.norm())": r"exchanged",
    },
    "04.5": {
        CUT + "change = scored(queries_of(stream), keys_of(stream - output))": r"remains",
        CUT + "change = old": r"before the cut",
        CUT + "change = keys_of(stream - output)": r"single number",
        CUT + "change = old - scored(queries_of(stream), keys_of(stream - output))": r"sign",
        CUT
        + "change = scored(queries_of(stream - output), keys_of(stream)) - old": r"from the queries",
        CUT
        + "short = stream - output\nchange = scored(queries_of(short), keys_of(short)) - old": r"queries and keys",
        CUT
        + "short = stream - output\n"
        + "shrink = short.std(-1, keepdim=True) / stream.std(-1, keepdim=True)\n"
        + "keys = read(short) * shrink @ attn.W_K[h] + attn.b_K[h]\n"
        + "change = scored(queries_of(stream), keys) - old": r"scale was kept",
        CUT
        + "change = scored(queries_of(stream), keys_of(stream)) - old + 0.0": r"Nothing changed",
        "from ioi_helpers.ablation import ablate\n"
        'with ablate(model, name_of(writer), "zero"):\n'
        '    without = heads.repeat_scores(model, half, definition="demo")\n'
        "change = without.induction[reader] - scores.induction[reader]": r"ablated altogether",
    },
    "04.6": {
        LOOKS + "looks_back = line(0)": r"own position",
        LOOKS + "looks_back = line(1)": r"one above",
        LOOKS + "looks_back = line(-2)": r"two positions back",
        LOOKS + "looks_back = line(-1) * (copy_length - 1) / copy_length": r"no previous one",
        LOOKS + "looks_back = seen[..., 1:, 0].mean(-1)": r"first position",
        LOOKS + "looks_back = line(-1).mT": r"swapped|out of order",
        LOOKS + "looks_back = line(-1).max()": r"not a single one",
        'looks_back = by_hand["previous_token"]': r"random tokens",
        "looks_back = names[0]": r"A tensor is asked for",
    },
}
