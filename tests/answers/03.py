"""Answers to the exercises of notebook 03: what readers write that is right, and what is not.

See `tests/answers/01.py` for the form.
"""

from __future__ import annotations

MIX = """\
layer, head = entangled
def mix(looks, reads, row=-1):
    weights = looks["pattern", layer][:, head, row]
    return torch.einsum("bk,bkd->bd", weights, reads["v", layer][:, :, head])
"""

COPY = """\
layer, head = divmod(int(copying.argmax()), n_heads)
attn = model.blocks[layer].attn
_, run = model.run_with_cache(many.tokens)
def score(state, tokens, top=5, norm=True, sign=1.0):
    read = model.blocks[layer].ln1(state[None])[0] if norm else state
    output = sign * ((read @ attn.W_V[head] + attn.b_V[head]) @ attn.W_O[head])
    best = model.unembed(model.ln_final(output[None]))[0].topk(top).indices
    return (best == tokens[:, None]).any(-1).float().mean().item()
io = many.gather(run["resid_post", 0], "IO")
"""

POOL = """\
abc = many.abc()
def pool(data, roles):
    pairs = [looks_and_writes(model, writer, data, role) for role in roles]
    return correlation(torch.cat([p[0] for p in pairs]), torch.cat([p[1] for p in pairs]))
"""

MATCH = """\
sixty_ids = torch.tensor([model.to_single_token(" " + n) for n in many.name_pool[:60]])
bos_60 = torch.full_like(sixty_ids, model.tokenizer.bos_token_id)
_, alone = model.run_with_cache(torch.stack([bos_60, sixty_ids], 1).to(model.cfg.device))
scores_60 = match_scores(model, matcher, alone, scales[matcher[0]])
def own_best(scores, dim=1):
    best = scores.argmax(dim)
    return (best == torch.arange(len(best), device=best.device)).float().mean().item()
"""

FIT = """\
position = ((signals[:, 0] - signals[:, 1]).mean() / 2).item()
token = ((signals[0] - signals[2]).mean() / 2).item()
"""

EXCHANGE = """\
layer, head = divmod(int(attribution.head_attribution(model, demo).values.argmax()), n_heads)
demo_diff = metrics.logit_diff(model(demo.tokens), demo).item()
rows_8 = torch.arange(len(demo))
def run_with(change, site="v"):
    hooks = [(f"blocks.{layer}.attn.hook_{site}", change)]
    return metrics.logit_diff(model.run_with_hooks(demo.tokens, fwd_hooks=hooks), demo).item()
def swap(one="IO", other="S1", heads_of=None, both=True):
    a, b = demo.positions[one], demo.positions[other]
    def change(v, hook):
        new = v.clone()
        for h in [head] if heads_of is None else heads_of:
            new[rows_8, a, h] = v[rows_8, b, h]
            if both:
                new[rows_8, b, h] = v[rows_8, a, h]
        return new
    return change
"""

RIGHT = {
    "03.1": [
        'leftover = effect["z"] - (effect["v"] + effect["pattern"])',
        'leftover = (effect["z"] - effect["v"] - effect["pattern"]).tolist()',
        'z, v, p = (effect[s].cpu().numpy() for s in ("z", "v", "pattern"))\nleftover = z - v - p',
    ],
    "03.2": [
        MIX + "mixed = mix(cache, corrupted_cache)",
        # As a batched matrix product.
        "layer, head = entangled\n"
        'mixed = (cache["pattern", layer][:, head, -1:] '
        '@ corrupted_cache["v", layer][:, :, head])[:, 0].tolist()',
        "layer, head = entangled\n"
        "rows = []\n"
        "for i in range(8):\n"
        '    weights = cache["pattern", layer][i, head, -1]\n'
        '    values = corrupted_cache["v", layer][i]\n'
        "    rows.append(sum(w * values[j, head] for j, w in enumerate(weights)))\n"
        "mixed = torch.stack(rows)",
    ],
    "03.3": [
        COPY + "share = score(io, many.io_tokens)",
        'share = heads.copying_scores(model, many, roles=["IO"])[copier]',
        "_, run = model.run_with_cache(many.tokens)\n"
        'logits = written_logits(model, copier, many.gather(run["resid_post", 0], "IO"))\n'
        "own = logits.gather(1, many.io_tokens[:, None])\n"
        "share = ((logits > own).sum(-1) < 5).float().mean()",
    ],
    "03.4": [
        POOL + 'pooled = pool(abc, ("IO", "S1", "S2"))',
        POOL + "import numpy as np\n"
        'both = [looks_and_writes(model, writer, abc, r) for r in ("S2", "S1", "IO")]\n'
        "x = np.concatenate([b[0].cpu().numpy() for b in both])\n"
        "y = np.concatenate([b[1].cpu().numpy() for b in both])\n"
        "pooled = np.corrcoef(x, y)[0, 1]",
    ],
    "03.5": [
        MATCH + "matched = own_best(scores_60)",
        MATCH + "hits = [int(row.argmax()) == i for i, row in enumerate(scores_60)]\n"
        "matched = sum(hits) / 60",
    ],
    "03.6": [
        FIT + "strengths = [position, token]",
        FIT + "strengths = (torch.tensor(position), torch.tensor(token))",
        "import numpy as np\n"
        "m = np.array([[p, t] for t in (1, 0, -1) for p in (1, -1)], dtype=float)\n"
        "strengths = np.linalg.lstsq(m, signals.flatten().numpy(), rcond=None)[0]",
        # As a column, as lstsq leaves it.
        "m = torch.tensor([[p, t] for t in (1.0, 0.0, -1.0) for p in (1.0, -1.0)])\n"
        "strengths = torch.linalg.lstsq(m, signals.flatten()[:, None]).solution",
    ],
    "03.7": [
        EXCHANGE + "drop = demo_diff - run_with(swap())",
        # One prompt at a time, in place.
        EXCHANGE + "def one_by_one(v, hook):\n"
        "    v = v.clone()\n"
        '    for i, (a, b) in enumerate(zip(demo.positions["IO"], demo.positions["S1"])):\n'
        "        kept = v[i, a, head].clone()\n"
        "        v[i, a, head] = v[i, b, head]\n"
        "        v[i, b, head] = kept\n"
        "    return v\n"
        "drop = demo_diff - run_with(one_by_one)",
        # By a permutation of the positions.
        EXCHANGE + "def permute(v, hook):\n"
        "    order = torch.arange(v.shape[1]).repeat(8, 1)\n"
        '    order[rows_8, demo.positions["IO"]] = demo.positions["S1"].cpu()\n'
        '    order[rows_8, demo.positions["S1"]] = demo.positions["IO"].cpu()\n'
        "    v = v.clone()\n"
        "    v[:, :, head] = v[rows_8[:, None], order, head]\n"
        "    return v\n"
        "drop = torch.tensor(demo_diff - run_with(permute))",
    ],
}

WRONG = {
    "03.1": {
        'leftover = effect["v"] + effect["pattern"] - effect["z"]': r"sign is wrong",
        'leftover = effect["z"] - effect["v"]': r"pattern effect is missing",
        'leftover = effect["z"] - effect["pattern"]': r"v effect is missing",
        'leftover = effect["v"] + effect["pattern"]': r"sum of the two parts",
        'leftover = (effect["z"] - effect["v"] - effect["pattern"]).abs()': r"absolute values",
        'leftover = (effect["z"] - effect["v"] - effect["pattern"]).T': r"axes",
        'leftover = (effect["z"] - effect["v"] - effect["pattern"]).sum()': r"not a single one",
    },
    "03.2": {
        MIX + "mixed = mix(corrupted_cache, cache)": r"other way round",
        MIX + "mixed = mix(cache, cache)": r"clean z",
        MIX + "mixed = mix(corrupted_cache, corrupted_cache)": r"corrupted z",
        MIX + 'mixed = mix(cache, corrupted_cache, demo.positions["S2"][0])': r"at S2",
        MIX + "mixed = mix(cache, corrupted_cache).mean(0)": r"mean over prompts",
        "layer, head = entangled\n"
        'mixed = torch.einsum("bk,bkd->bd", cache["pattern", layer][:, head, :, -1], '
        'corrupted_cache["v", layer][:, :, head])': r"END's row",
    },
    "03.3": {
        COPY + "share = score(io, many.io_tokens, top=1)": r"comes first",
        COPY
        + 'share = score(many.gather(run["hook_embed"], "IO"), many.io_tokens)': r"bare embedding",
        COPY + 'share = score(many.gather(run["resid_post", 0], "END"), many.io_tokens)': r"at END",
        COPY
        + 'share = score(many.gather(run["resid_pre", layer], "IO"), many.io_tokens)': r"own block",
        COPY + "best = written_logits(model, copier, io).topk(5).indices\n"
        "share = (best == many.io_tokens[:, None]).float().mean()": r"any\(dim=-1\)",
        COPY + "share = score(io, many.io_tokens, sign=-1.0)": r"sign|END",
        "share = heads.copying_scores(model, many)[copier]": r"IO alone|together",
        COPY + "share = len(many) * score(io, many.io_tokens)": r"counting prompts",
    },
    "03.4": {
        POOL + 'pooled = pool(many, ("IO", "S1", "S2"))': r"clean prompts",
        POOL + 'pooled = pool(many, ("IO", "S1"))': r"clean prompts",
        POOL + 'pooled = pool(abc, ("IO", "S1"))': r"at S2, is missing",
        POOL + 'pooled = pool(abc, ("IO",))': r"IO alone",
        POOL + 'pooled = -pool(abc, ("IO", "S1", "S2"))': r"sign|too",
    },
    "03.5": {
        MATCH + "matched = own_best(scores_60, 0)": r"along the rows",
        MATCH + "matched = own_best(scores_60[:12, :12])": r"twelve names",
        MATCH + "matched = own_best(scores_60) * 60": r"too high",
        MATCH + "matched = 1 - own_best(scores_60)": r"too high",
        MATCH + "matched = scores_60.diag()": r"single number",
    },
    "03.6": {
        FIT + "strengths = [token, position]": r"order is",
        FIT + "strengths = [2 * position, 2 * token]": r"halve the differences",
        FIT + "strengths = [2 * position, token]": r"for one in the position",
        FIT + "strengths = [position, 2 * token]": r"for one in the token",
        FIT + "strengths = [-position, token]": r"sign of the position",
        FIT + "strengths = [2.31, 0.99]": r"published",
        "m = torch.tensor([[p, t] for t in (1.0, 0.0, -1.0) for p in (1.0, 0.0)])\n"
        "strengths = torch.linalg.lstsq(m, signals.flatten()[:, None]).solution[:, 0]": r"inverted position as 0",
        "m = torch.tensor([[p, t] for t in (2.0, 1.0, 0.0) for p in (1.0, -1.0)])\n"
        "strengths = torch.linalg.lstsq(m, signals.flatten()[:, None]).solution[:, 0]": r"needs a constant",
        FIT + "strengths = position": r"\[signal\]",
        "m = torch.tensor([[p, t] for p in (1.0, -1.0) for t in (1.0, 0.0, -1.0)])\n"
        "strengths = torch.linalg.lstsq(m, signals.flatten()[:, None]).solution[:, 0]": r"order of signals",
    },
    "03.7": {
        EXCHANGE + "drop = run_with(swap())": r"after the exchange",
        EXCHANGE + "drop = run_with(swap()) - demo_diff": r"sign",
        EXCHANGE + "drop = demo_diff - run_with(swap(both=False))": r"Only IO",
        EXCHANGE + "drop = demo_diff - run_with(swap(heads_of=range(n_heads)))": r"every head",
        EXCHANGE + 'drop = demo_diff - run_with(swap(), "k")': r"keys",
        EXCHANGE + 'drop = demo_diff - run_with(swap("IO", "S2"))': r"S2",
        EXCHANGE
        + "drop = 2 * attribution.head_attribution(model, demo).values.max()": r"prediction",
        EXCHANGE
        + "drop = attribution.head_attribution(model, demo).values.max()": r"direct attribution",
        EXCHANGE + 'drop = demo_diff - run_with(swap("S1", "S2"))': r"S1 with S2",
        EXCHANGE + "drop = 1 - run_with(swap()) / demo_diff": r"fraction",
        EXCHANGE + "drop = [1.0, 2.0]": r"single number",
        EXCHANGE + "drop = f'{demo_diff - run_with(swap()):.2f} logits'": r"single number",
        EXCHANGE + "drop = (run_with(swap()) - demo_diff) * 100 / demo_diff + 50": r"too high",
    },
}
