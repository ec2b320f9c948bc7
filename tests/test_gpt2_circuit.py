"""What is published of GPT-2 small, measured again, each by its name in `published`.

Marked `gpt2`: it needs the weights. What runs everywhere is that every entry has a measurement or a
reason why not, that a measurement gives the published shape (on a small random model of 12 layers
of 12 heads), that it agrees when it is fed its own published array, and that it notices when that
is shifted up or down.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from ioi_helpers import load_model, metrics, patching, published
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.models import default_model
from notebooks.tools.gpt2 import prompts
from notebooks.tools.gpt2.measurements import (
    FACTS,
    MEASUREMENTS,
    NOT_MEASURED,
    direct_order,
    estimated,
    measure,
)

SKELETON = Path(__file__).parents[2] / "shared" / "gpt2-skeleton"
Array = Float[np.ndarray, " *axes"]


def agrees(name: str, values: Array) -> bool:
    """A check's verdict, for the values of GPT-2 small."""
    return bool(published.compare(name, values, True).agrees)


# --- on GPT-2 small -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def subject() -> TransformerBridge:
    if default_model()[0] != "gpt2-small":
        pytest.skip("GPT-2's weights are not in the local cache")
    return load_model("gpt2-small", device="cpu", verbose=False)


@pytest.mark.gpt2
@pytest.mark.parametrize("name", MEASUREMENTS)
def test_gpt2_small_does_what_is_published(name: str, subject: TransformerBridge) -> None:
    compared = published.compare(name, measure(subject, name), subject)
    assert compared.agrees, compared.caption


@pytest.mark.gpt2
@pytest.mark.parametrize("name", FACTS)
def test_published_facts_hold(name: str, subject: TransformerBridge) -> None:
    assert FACTS[name].measure(subject) == FACTS[name].published


# --- everywhere -----------------------------------------------------------------------------------


def test_every_entry_is_measured_or_says_why_not() -> None:
    assert set(MEASUREMENTS) | set(NOT_MEASURED) == set(published.names())
    assert not set(MEASUREMENTS) & set(NOT_MEASURED)


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_check_agrees_with_its_own_array_and_notices_a_shift(name: str) -> None:
    entry = published.load(name)
    assert agrees(name, entry.values)
    for shift in (1.5 * entry.tolerance + 1e-9, -1.5 * entry.tolerance - 1e-9):
        assert not agrees(name, entry.values + shift)


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_check_would_notice_that_nothing_happens(name: str) -> None:
    """A tolerance that a dead measurement passes would say nothing."""
    assert not agrees(name, np.zeros_like(published.load(name).values))


def test_the_published_arrays_have_the_order_of_figure_3b() -> None:
    facts = published.record("ioi_paper.json")["fig3b_direct_effect_on_logits"]
    for name in ("paper.direct_effect_on_logits", "path_patching.to_logits_n5000"):
        values = published.load(name).values
        assert direct_order(values) == facts["top7_order"]
        exchanged = values.copy()
        exchanged[2, 9], exchanged[3, 7] = values[3, 7], values[2, 9]
        assert direct_order(exchanged) != facts["top7_order"]


def test_attribution_patching_of_every_site_is_a_gradient() -> None:
    """Where the package has a sweep, the same; elsewhere a hundredth of a patch tells."""
    model = load_model("ioi-mini", device="cpu", verbose=False)
    data = IOIDataset.demo(model.tokenizer)
    other = data.swap_subject()
    for site, axes in (("z", ("layer", "head", "pos")), ("mlp_out", ("layer", "pos"))):
        swept = patching.attribution_patch_sweep(model, data, other, site, axes, progress=False)
        ours = estimated(model, site, by_position=True)
        torch.testing.assert_close(ours, swept.fraction(), atol=1e-5, rtol=1e-4)
    clean, base = (metrics.logit_diff(model(d.tokens), data) for d in (data, other))
    for site in ("q", "k", "v", "pattern"):
        effect = estimated(model, site)
        layer, head = divmod(int(effect.abs().argmax()), model.cfg.n_heads)
        name = f"blocks.{layer}.attn.hook_{site}"
        _, source = model.run_with_cache(data.tokens, names_filter=name)

        def step(
            a: torch.Tensor,
            hook: object,
            site: str = site,
            head: int = head,
            there: torch.Tensor = source[name],
        ) -> torch.Tensor:
            at = (slice(None), head) if site == "pattern" else (slice(None), slice(None), head)
            a = a.clone()
            a[at] += 0.01 * (there[at] - a[at])
            return a

        moved = metrics.logit_diff(
            model.run_with_hooks(other.tokens, fwd_hooks=[(name, step)]), data
        )
        found = float((moved - base) / (clean - base) / 0.01)
        assert found == pytest.approx(float(effect[layer, head]), rel=0.03), site


@pytest.mark.slow
@pytest.mark.skipif(not SKELETON.is_dir(), reason="GPT-2's tokenizer is not beside this checkout")
@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_check_gives_the_published_shape(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    values = measure(small(tmp_path_factory.getbasetemp() / "twelve-by-twelve"), name)
    assert values.shape == published.load(name).values.shape
    assert np.isfinite(values).all()


@pytest.mark.skipif(not SKELETON.is_dir(), reason="GPT-2's tokenizer is not beside this checkout")
def test_arenas_prompts_are_those_that_the_file_lists() -> None:
    tokenizer = AutoTokenizer.from_pretrained(SKELETON)
    data, reference = prompts.arenas(tokenizer)
    assert len(data) == 25 and "Victoria" in data.prompts[0] and "Jane" in data.prompts[0]
    assert tuple(data.orders[:2]) == ("ABBA", "BABA")
    assert data.tokens.shape == reference.tokens.shape
    first = reference.prompts[0]
    assert first.index("Alan") < first.index("Sullivan") < first.index("Adam")
    second = reference.prompts[1]
    assert second.index("Marcus") < second.index("Max") < second.index("Jeremy")


@cache
def small(folder: Path) -> TransformerBridge:
    """Random weights, but block 0 writes against every token it sees, so twice against S.

    Where clean and corrupted runs do not differ, a fraction recovered is refused.
    """
    torch.manual_seed(0)
    config = GPT2Config(n_layer=12, n_head=12, n_embd=48, bos_token_id=50256, eos_token_id=50256)
    network = GPT2LMHeadModel(config)
    attention = network.transformer.h[0].attn
    with torch.no_grad():
        attention.c_attn.weight[:, 96:] = torch.eye(48)
        attention.c_proj.weight[:] = -0.1 * torch.eye(48)
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(SKELETON).save_pretrained(folder)
    return load_model(str(folder), device="cpu", verbose=False)
