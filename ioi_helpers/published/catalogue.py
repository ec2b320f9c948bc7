"""What is published about GPT-2 small on IOI, by name: where each array stands and how to read it.

Every entry says which file of this folder holds the value and under which keys, what its axes and
its unit are, on which prompts it was measured (with or without BOS), and how far an exact
repetition may lie from it. Tolerances: for TransformerLens' demos a repetition is deterministic, so
they cover float32 differences between library versions and the digits that were printed; for the
paper they cover its random prompts. Values are kept as published, to six significant digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

DEMO = (
    "the 8 prompts of the Exploratory Analysis demo, BOS prepended, float32, LayerNorm folded, "
    "writing weights and unembedding centred"
)
RANDOM = "2 rows of 100 random tokens (exploratory.score_tokens), each repeated once, no BOS"
PAPER = "random prompts of the paper's templates, no BOS"
EDGES = "one pair, 'When Mary and John went to the store, John/Mary gave a drink to', BOS prepended"

LOGIT = 5e-4  # two runs in 2026 agree to 2e-5, one in 2023 to 4e-4
FRACTION = 5e-5
SCORE = 1e-3  # on exactly the stored tokens; other random tokens move scores by up to 0.07

# TransformerLens' demos, by the commit whose stored outputs these are.
EXPLORATORY = "TransformerLens@96c1197, demos/Exploratory_Analysis_Demo.ipynb"
ACTIVATION = "TransformerLens@611a743, demos/Activation_Patching_in_TL_Demo.ipynb"
ACTIVATION_BY_POSITION = "TransformerLens@7784be1, demos/Activation_Patching_in_TL_Demo.ipynb"
ATTRIBUTION = "TransformerLens@7d74a5a, demos/Attribution_Patching_Demo.ipynb"
SVD = "TransformerLens 4.3.0, demos/SVD_Circuits_Demo.ipynb"
DIRECT_PATH = "TransformerLens 4.3.0, demos/direct_path_patching_ioi.ipynb"
WANG = "Wang et al. 2022, arXiv:2211.00593v1, "
# Of others; the notebooks, and what was run anew from them, are not peer reviewed.
REPLICATION = "goodfire-ai/causalab@8e8d5d1, demos/papers/artifacts/ioi_fig3b, not peer reviewed"
ARENA = "ccccsy04/Transformer-Interpretability@ead3542, ARENA 1.4.1 as run, not peer reviewed"
PYVENE = "stanfordnlp/pyvene@9e33390, tutorials/advanced_tutorials/IOI_Replication.ipynb"
AUTO_CIRCUIT = (
    "UFO-101/auto-circuit@98db58c, tests/test_experiment_utils.py (Miller et al. 2024, "
    "arXiv:2407.08734)"
)
TROPHIC = "kvenanzi/trophic-cascade@a745aaa, docs/post/figures/data.json, not peer reviewed"
BACKUP = (
    "starship006/backup_research@e433656, extra/older_research_graveyard/"
    "0_copy_suppression_self_repair/Just_Backup_Investigation.ipynb, not peer reviewed"
)
MAKELOV = (
    "Makelov, Lange, Nanda 2023, arXiv:2311.17030, amakelov/activation-patching-illusion@e0c465b, "
    "ioi_analysis.ipynb"
)
ATTRIBUTION_DEMO = "TransformerLens@bb15019, demos/Direct_Logit_Attribution_Demo.ipynb"
HANNA = "Hanna et al. 2024, arXiv:2403.17806, hannamw/eap-ig-faithfulness@d42fea6, results/"

ARENA_PROMPTS = "the 25 prompts that the file lists, no BOS"
REMOVAL_PROMPTS = "600 prompts of the paper's 15 templates, half in either order, BOS prepended"
ONE_TEMPLATE = "600 ABB prompts of one template with names of its own, BOS prepended"
DIRECTION_PROMPTS = "2000 pairs of ABB and BAB prompts of 3 templates of its own, BOS prepended"
ONE_PROMPT = "'When John and Mary went to the shops, John gave the bag to', BOS prepended"
EDGE_PROMPTS = "prompts of data/ioi/gpt2.csv in its repository; whether with BOS is not stated"

Keys = tuple[str | int | tuple[str | int, ...], ...]


@dataclass(frozen=True)
class Entry:
    """One published value. `keys` lead to it in `file`; `labels` name the places of an axis."""

    title: str
    file: str
    keys: Keys
    axes: tuple[str, ...]
    unit: str
    setup: str
    tolerance: float
    source: str
    labels: Mapping[str, Keys] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None  # where the file flattens the axes
    logits: float | None = None  # logits in one unit, where that is a share of logits


def _demo(
    title: str,
    key: str | Keys,
    axes: tuple[str, ...],
    unit: str,
    tolerance: float,
    setup: str = DEMO,
    labels: Mapping[str, Keys] | None = None,
) -> Entry:
    keys = key if isinstance(key, tuple) else (key,)
    file = "exploratory.json"
    return Entry(title, file, keys, axes, unit, setup, tolerance, EXPLORATORY, labels or {})


def _arena(title: str, key: str) -> Entry:
    file, unit = "path_patching_arena.json", "fraction of clean minus corrupted"
    return Entry(title, file, (key,), HEADS, unit, ARENA_PROMPTS, 2e-3, ARENA, logits=3.5751)


def _patching(title: str, *keys: str, by_position: bool = False, layer: bool = False) -> Entry:
    axes = ("layer", "position") if layer else ("layer", "head")
    source = ACTIVATION_BY_POSITION if by_position else ACTIVATION
    title = f"Activation patching of {title}"
    return _sweep(title, "activation_patching.json", keys, axes, source, by_position)


def _attribution(title: str, *keys: str, by_position: bool = False, layer: bool = False) -> Entry:
    axes = ("layer", "position") if layer else ("layer", "head")
    title = f"Attribution patching of {title}"
    return _sweep(title, "attribution_patching.json", keys, axes, ATTRIBUTION, by_position)


def _sweep(
    title: str,
    file: str,
    keys: tuple[str, ...],
    axes: tuple[str, ...],
    source: str,
    by_position: bool,
) -> Entry:
    shape = None
    if by_position:
        title, axes, shape = f"{title} by position", (*axes, "position"), (12, 12, 15)
    unit = "fraction recovered"
    return Entry(title, file, keys, axes, unit, DEMO, FRACTION, source, {}, shape)


def _paper(
    title: str,
    *keys: str | int | tuple[str, ...],
    axes: tuple[str, ...] = (),
    unit: str,
    tolerance: float,
    where: str,
    labels: Mapping[str, Keys] | None = None,
    logits: float | None = None,
) -> Entry:
    file, source = "ioi_paper.json", WANG + where
    return Entry(
        title, file, keys, axes, unit, PAPER, tolerance, source, labels or {}, logits=logits
    )


def _edges(method: str, group: str, key: str) -> Entry:
    return Entry(
        f"Faithfulness of circuits of edges found by {method}, by the number of edges asked for",
        "eap_ig_ioi_faithfulness.json",
        (group, f"faithfulness_{key}"),
        ("edges",),
        "fraction of clean minus corrupted",
        EDGE_PROMPTS,
        0.15,  # other prompts; the curves are rough, neighbouring points differ by as much
        HANNA,
        {"edges": (group, "edges")},
    )


HEADS = ("layer", "head")
PLACES = ("layer", "position")
ATTENTION = ("head", "destination", "source")
TOKENS_0 = ("prompt_tokens", 0)
ADVERSARIAL = ("p_IOI", "extra_S", "extra_IO")
IO_NAMES = ("answers_correct_incorrect", "*", 0)  # they tell the 8 prompts apart

ENTRIES: dict[str, Entry] = {
    # Exploratory Analysis demo
    "exploratory.per_prompt_logit_diff": _demo(
        "Logit difference of each prompt",
        "per_prompt_logit_diff",
        ("prompt",),
        "logits",
        1e-3,
        labels={"prompt": IO_NAMES},
    ),
    "exploratory.average_logit_diff": _demo(
        "Mean logit difference", "average_logit_diff", (), "logits", 1e-3
    ),
    "exploratory.corrupted_average_logit_diff": _demo(
        "Mean logit difference on the corrupted prompts",
        "corrupted_average_logit_diff",
        (),
        "logits",
        6e-3,
    ),
    "exploratory.example_top_logits": _demo(
        "Largest logits after the example prompt",
        ("example_prompt", "top_tokens", "*", "logit"),
        ("token",),
        "logits",
        6e-3,
        setup="'After John and Mary went to the store, John gave a bottle of milk to', with BOS",
        labels={"token": ("example_prompt", "top_tokens", "*", "token")},
    ),
    "exploratory.logit_lens": _demo(
        "Logit lens: logit difference read from the residual stream at END",
        ("logit_lens_accumulated", "value"),
        ("residual stream",),
        "logits",
        LOGIT,
        labels={"residual stream": ("logit_lens_accumulated", "labels")},
    ),
    "exploratory.per_layer_dla": _demo(
        "Direct logit attribution of each layer",
        ("per_layer_dla", "value"),
        ("component",),
        "logits",
        LOGIT,
        labels={"component": ("per_layer_dla", "labels")},
    ),
    "exploratory.per_head_dla": _demo(
        "Direct logit attribution of each head", "per_head_dla_12x12", HEADS, "logits", LOGIT
    ),
    "exploratory.ablated_per_head_dla": _demo(
        "Direct logit attribution of each head without the strongest one (GPT-2 small: L9H9)",
        "ablated_per_head_dla_12x12",
        HEADS,
        "logits",
        LOGIT,
    ),
    "exploratory.ablated_logit_diff": _demo(
        "Mean logit difference without the strongest head (GPT-2 small: L9H9)",
        ("ablation_L9H9_END_zero", "post_ablation_logit_diff"),
        (),
        "logits",
        6e-3,
    ),
    "exploratory.ln_final_scale": _demo(
        "Scale of the final LayerNorm at END",
        ("ln_final_scale_END", "original"),
        ("prompt",),
        "norm",
        6e-3,
        labels={"prompt": IO_NAMES},
    ),
    "exploratory.ablated_ln_final_scale": _demo(
        "Scale of the final LayerNorm at END without the strongest head (GPT-2 small: L9H9)",
        ("ln_final_scale_END", "ablated"),
        ("prompt",),
        "norm",
        6e-3,
        labels={"prompt": IO_NAMES},
    ),
    **{
        f"exploratory.{name}_patch": _demo(
            f"Activation patching of {what}",
            f"{name}_patch_{size}",
            axes,
            "fraction recovered",
            FRACTION,
            labels={"position": TOKENS_0} if axes == PLACES else {},
        )
        for name, what, size, axes in (
            ("residual", "the residual stream before each block", "12x15", PLACES),
            ("attn_layer", "each attention layer's output", "12x15", PLACES),
            ("mlp_layer", "each MLP layer's output", "12x15", PLACES),
            ("head_z", "each head's z", "12x12", HEADS),
            ("head_v", "each head's v", "12x12", HEADS),
            ("head_pattern", "each head's pattern", "12x12", HEADS),
        )
    },
    **{
        f"exploratory.{name}_scores": _demo(
            f"{what} score of each head",
            f"{name}_scores_12x12",
            HEADS,
            "attention",
            SCORE,
            setup=RANDOM,
        )
        for name, what in (
            ("prev_token", "Previous-token"),
            ("duplicate_token", "Duplicate-token"),
            ("induction", "Induction"),
        )
    },
    "exploratory.score_tokens": _demo(
        "The random tokens on which the scores were read",
        ("scores_setup", "tokens_2x100"),
        ("row", "token"),
        "token id",
        0.0,
        setup="torch.manual_seed(0), torch.randint(100, 20000, (2, 100)) on CPU, no BOS",
    ),
    "exploratory.attention": _demo(
        "Attention patterns on the first prompt",
        ("attention_patterns_prompt0", "attention"),
        ATTENTION,
        "attention",
        FRACTION,
        labels={
            "head": ("attention_patterns_prompt0", "heads"),
            "destination": TOKENS_0,
            "source": TOKENS_0,
        },
    ),
    # Activation and attribution patching demos
    "activation_patching.resid_pre": _patching(
        "the residual stream before each block", "block_every_3x12x15", "resid_pre", layer=True
    ),
    "activation_patching.attn_out": _patching(
        "each attention layer's output", "block_every_3x12x15", "attn_out", layer=True
    ),
    "activation_patching.mlp_out": _patching(
        "each MLP layer's output", "block_every_3x12x15", "mlp_out", layer=True
    ),
    "attribution_patching.resid_pre": _attribution(
        "the residual stream before each block",
        "attribution_block_every_3x12x15",
        "resid_pre",
        layer=True,
    ),
    "attribution_patching.attn_out": _attribution(
        "each attention layer's output",
        "attribution_block_every_3x12x15",
        "attn_out",
        layer=True,
    ),
    "attribution_patching.mlp_out": _attribution(
        "each MLP layer's output", "attribution_block_every_3x12x15", "mlp_out", layer=True
    ),
    **{
        f"{method}_patching.{site}{suffix}": entry(
            f"each head's {site}", array, site, by_position=bool(suffix)
        )
        for method, entry, suffix, array in (
            ("activation", _patching, "", "head_all_pos_5x12x12"),
            ("activation", _patching, "_by_position", "head_by_pos_5x144x15"),
            ("attribution", _attribution, "", "attribution_head_all_pos_5x12x12"),
            ("attribution", _attribution, "_by_position", "attribution_head_by_pos_5x144x15"),
        )
        for site in ("z", "q", "k", "v", "pattern")
    },
    "attribution_patching.attention": Entry(
        "Attention patterns of three heads on all prompts",
        "attribution_patching.json",
        ("attention_patterns_8prompts", "attention"),
        ("head", "prompt", "destination", "source"),
        "attention",
        DEMO,
        FRACTION,
        ATTRIBUTION,
        {"head": ("attention_patterns_8prompts", "heads")},
    ),
    # The IOI paper
    "paper.logit_diff": _paper(
        "Mean logit difference over 100,000 prompts",
        "baseline",
        "mean_logit_diff",
        unit="logits",
        tolerance=0.15,  # replications with other samples found 3.47 to 3.49
        where="sec. 2",
    ),
    "paper.io_over_s": _paper(
        "Fraction of prompts on which IO is preferred over S",
        "baseline",
        "IO_over_S",
        unit="fraction of prompts",
        tolerance=0.01,
        where="sec. 2",
    ),
    "paper.io_probability": _paper(
        "Mean probability of IO",
        "baseline",
        "mean_IO_prob",
        unit="probability",
        tolerance=0.03,
        where="sec. 2",
    ),
    "paper.faithfulness": _paper(
        "Logit difference of the circuit alone, percent of the model's",
        "faithfulness",
        "percent",
        unit="percent",
        tolerance=10.0,  # the two numbers behind it come from different samples
        where="sec. 4",
    ),
    "paper.name_mover_attention": _paper(
        "Mean attention of the name movers from END to IO",
        "attention",
        "name_mover_to_IO_mean",
        unit="attention",
        tolerance=0.05,
        where="sec. 3.1",
    ),
    "paper.s_inhibition_attention": _paper(
        "Mean attention of the S-inhibition heads from END to S2",
        "attention",
        "s_inhibition_END_to_S2_mean",
        unit="attention",
        tolerance=0.05,
        where="sec. 3.2",
    ),
    "paper.signals": _paper(
        "Logit difference after patching the messengers at END (in GPT-2 small S-inhibition heads)",
        "signals",
        "logit_diff",
        axes=("token signal", "position signal"),
        unit="logits",
        tolerance=0.3,
        where="sec. 3.3, App. A, Fig. 9",
        labels={"token signal": ("signals", "rows"), "position signal": ("signals", "cols")},
    ),
    "paper.direct_effect_on_logits": _paper(
        "Path patching of each head's direct effect on the logits, layers 7 to 11",
        "fig3b_direct_effect_on_logits",
        "paper_decoded_layers7_11",
        "*",
        axes=HEADS,
        unit="relative change of the mean logit difference",
        tolerance=0.06,  # read off a figure drawn from 100 prompts; a repetition differs by 0.044
        where="Fig. 3b",
        labels={"layer": ("fig3b_direct_effect_on_logits", "paper_decoded_layers7_11", "keys")},
        logits=3.56,  # the paper's mean logit difference, of another sample
    ),
    "paper.minimality": _paper(
        "Minimality score of each head of the circuit",
        "minimality",
        "rows",
        "*",
        "score",
        axes=("circuit head",),
        unit="logits",
        tolerance=0.3,
        where="App. K, Fig. 20",
        labels={"circuit head": ("minimality", "rows", "*", "v")},
    ),
    **{
        f"paper.adversarial_{name}": _paper(
            f"{title} without and with a distracting sentence",
            "adversarial",
            ADVERSARIAL,
            key,
            axes=("prompts",),
            unit=unit,
            tolerance=tolerance,  # the paper's sentences, on other prompts
            where="sec. 4.4, Fig. 8",
            labels={"prompts": ("adversarial", "keys", ADVERSARIAL)},
        )
        for name, title, key, unit, tolerance in (
            ("logit_diff", "Mean logit difference", "logit_diff", "logits", 0.3),
            ("io_probability", "Mean probability of IO", "IO_prob", "probability", 0.05),
            ("s_over_io", "Share of prompts with S above IO", "S_over_IO", "fraction", 0.05),
        )
    },
    # Path patching and circuits, by others
    "path_patching.to_logits_n5000": Entry(
        "Path patching of each head's direct effect on the logits, layers 7 to 11, 5000 prompts",
        "ioi_paper.json",
        ("fig3b_direct_effect_on_logits", "replication_n5000_layers7_11", "*"),
        HEADS,
        "relative change of the mean logit difference",
        PAPER,
        0.04,  # its own error is 0.005; a repetition on 100 prompts has up to 0.035
        REPLICATION,
        {"layer": ("fig3b_direct_effect_on_logits", "replication_n5000_layers7_11", "keys")},
        logits=3.4735,
    ),
    "path_patching.to_logits": _arena(
        "Path patching of every head to the logits", "head_to_logits_12x12"
    ),
    "path_patching.to_s_inhibition_values": _arena(
        "Path patching of every head to the values of the S-inhibition heads, all positions",
        "head_to_s_inhibition_values_12x12",
    ),
    "path_patching.to_logits_mlps_frozen": Entry(
        "Path patching of each head to the logits with MLPs frozen, layers 8 to 11",
        "path_patching_pyvene.json",
        ("relative_change_4x12",),
        HEADS,
        "relative change of the mean logit difference",
        "50 prompts of its own, no BOS",
        0.1,  # other prompts, and few
        PYVENE,
        {"layer": ("rows", "layers")},
        logits=3.75625,
    ),
    "circuit.faithfulness_by_template": Entry(
        "Logit difference of the 26 heads alone, percent of the model's, by template",
        "faithfulness_per_template_auto_circuit.json",
        ("percent", "*"),
        ("order and BOS", "template"),
        "percent",
        "50 prompts of each of the paper's 15 templates, in both orders, with BOS and without",
        20.0,  # 50 other prompts a cell: names alone move a cell by about 7
        AUTO_CIRCUIT,
        {"order and BOS": ("percent", "keys")},
    ),
    "circuit.faithfulness_by_order": Entry(
        "Logit difference of the 26 heads alone, percent of the model's, mean over templates",
        "faithfulness_per_template_auto_circuit.json",
        ("summary", ("bos_ABBA", "bos_BABA", "no_bos_ABBA", "no_bos_BABA"), "mean"),
        ("order and BOS",),
        "percent",
        "50 prompts of each of the paper's 15 templates, in both orders, with BOS and without",
        7.0,
        AUTO_CIRCUIT,
        {"order and BOS": ("percent", "keys")},
    ),
    "circuit.minimality": Entry(
        "Minimality of each head of the circuit",
        "arena_circuit_evaluation.json",
        ("minimality", "score_primary", "*"),
        ("circuit head",),
        "fraction of the model's logit difference",
        ARENA_PROMPTS,
        0.03,  # under two prompts a mean: the choice of means shows; another copy differs by 0.014
        ARENA,
        {"circuit head": ("minimality", "score_primary", "keys")},
        logits=2.8052,
    ),
    **{
        f"circuit.copying{suffix}": Entry(
            f"Copying score of each head{of}, layers 1 to 11",
            "arena_circuit_evaluation.json",
            ("copying_scores", f"{sign}_11x12"),
            HEADS,
            "fraction of names",
            "109 names by themselves: embedding and MLP 0 without attention; no prompt and no BOS",
            0.05,  # five names
            ARENA,
            {"layer": ("=", tuple(str(layer) for layer in range(1, 12)))},
        )
        for suffix, of, sign in (
            ("", "", "positive"),
            ("_negative", " with the opposite sign", "negative"),
        )
    },
    "edges.EAP": _edges("EAP", "gpt2", "EAP"),
    "edges.EAP-IG": _edges("EAP-IG (5 steps)", "gpt2", "EAP-IG"),
    "edges.exact": _edges("exact patching of each edge", "gpt2_real_edge_patching", "real"),
    # Removing heads, and what the others then do, by others
    **{
        f"removal.{kind}_effect": Entry(
            title,
            "single_head_removals_gpt2.json",
            (f"{kind}_effect_12x12",),
            HEADS,
            "logits",
            REMOVAL_PROMPTS,
            0.3,  # other prompts of the same templates: what samples of the paper's differ by
            TROPHIC,
        )
        for kind, title in (
            ("direct", "What each head adds directly, beyond its mean over ABC prompts"),
            ("total", "Logit difference that is lost when each head is mean-ablated everywhere"),
        )
    },
    "removal.name_movers": Entry(
        "Logit difference that is lost when the three name movers are mean-ablated together",
        "single_head_removals_gpt2.json",
        ("name_movers_removed_jointly", "total_effect"),
        (),
        "logits",
        REMOVAL_PROMPTS,
        0.19,  # less than the value, whose sign is what the source is about
        TROPHIC,
    ),
    "removal.attribution": Entry(
        "Direct logit attribution of each head on one template",
        "name_mover_ablation_dla.json",
        ("clean_dla_12x12",),
        HEADS,
        "logits",
        ONE_TEMPLATE,
        0.5,  # the source's own lists of names, places and objects are larger than ours
        BACKUP,
    ),
    "removal.attribution_without_name_movers": Entry(
        "Direct logit attribution of each head when the name movers' output is another prompt's",
        "name_mover_ablation_dla.json",
        ("sample_ablate_9.9_9.6_10.0", "dla_after_12x12"),
        HEADS,
        "logits",
        ONE_TEMPLATE,
        0.5,
        BACKUP,
    ),
    "removal.attribution_change_zero": Entry(
        "Change of each head's direct logit attribution when the name movers are zero-ablated",
        "name_mover_ablation_dla.json",
        ("dla_change_or_value_12x12_per_intervention", "Zero Ablation of NMHs"),
        HEADS,
        "logits",
        ONE_TEMPLATE,
        0.5,
        BACKUP,
    ),
    "removal.L9H9_everywhere": Entry(
        "Change of one prompt's logit difference when L9H9 is zero-ablated at every position",
        "svd_circuits.json",
        ("whole_head_zero_ablation_all_positions_delta",),
        (),
        "logits",
        EDGES,
        1e-3,
        SVD,
    ),
    "direction.logit_diff": Entry(
        "Logit difference towards the base prompt's answer after resid_post of block 8 at END is "
        "that of a prompt of the other order: not at all, whole, along the difference of means",
        "position_directions.json",
        ("rows", (0, 1, 9), 2),
        ("intervention",),
        "logits",
        DIRECTION_PROMPTS,
        0.6,  # other templates and names, and whether names were the same is not stated
        MAKELOV,
        {"intervention": ("rows", (0, 1, 9), 0)},
    ),
    # Smaller demos
    "attribution.one_prompt": Entry(
        "Direct logit attribution of eight heads on one prompt",
        "direct_logit_attribution.json",
        ("top8_abs", "*"),
        ("head",),
        "logits",
        ONE_PROMPT,
        LOGIT,
        ATTRIBUTION_DEMO,
        {"head": ("top8_abs", "keys")},
    ),
    "svd.ov_singular_values": Entry(
        "First singular values of L9H9's OV circuit",
        "svd_circuits.json",
        ("OV_sigma_first12",),
        ("rank",),
        "singular value",
        "weights only, LayerNorm folded",
        1e-3,
        SVD,
    ),
    **{
        f"path_patching.edges_from_L{sender.replace('.', 'H')}": Entry(
            f"Exact edge patching from L{sender.replace('.', 'H')} into queries of name movers",
            "direct_path_patching.json",
            ("q_edges", sender, "*"),
            ("receiver",),
            "fraction recovered",
            EDGES,
            1e-3,
            DIRECT_PATH,
            {"receiver": ("q_edges", sender, "keys")},
        )
        for sender in ("7.3", "7.9", "8.6", "8.10")
    },
}
