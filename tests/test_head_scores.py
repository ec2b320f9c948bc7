"""Scores of heads on repeated tokens and from the weights: definitions, chance, known heads."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from transformer_lens.head_detector import detect_head
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel

from ioi_helpers import heads, load_model, published
from ioi_helpers.ablation import ablate
from ioi_helpers.bundled import BUNDLED, bundled_folder
from ioi_helpers.bundled.tokenizer import WordTokenizer
from ioi_helpers.dataset import IOIDataset
from ioi_helpers.models import handbuilt


@cache
def model_of(name: str) -> TransformerBridge:
    return load_model(name, device="cpu", verbose=False)


def random_model(folder: Path, **sizes: int) -> TransformerBridge:
    """GPT-2 with random weights and the bundled models' tokenizer."""
    torch.manual_seed(0)
    tokenizer = WordTokenizer.from_pretrained(str(bundled_folder("ioi-mini")), add_bos_token=True)
    shape = {"n_layer": 3, "n_head": 4, "n_embd": 64, "n_positions": 256, **sizes}
    bos = tokenizer.bos_token_id
    config = GPT2Config(vocab_size=len(tokenizer), bos_token_id=bos, eos_token_id=bos, **shape)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(
        str(folder), device="cpu", verbose=False, tokenizer=tokenizer, load_weights=False
    )


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> TransformerBridge:
    return random_model(tmp_path_factory.mktemp("untrained"))


def by_the_demo(model: TransformerBridge, half: torch.Tensor) -> dict[str, torch.Tensor]:
    """The demo's three hooks, in plain lines."""
    length = half.shape[1]
    _, cache = model.run_with_cache(torch.cat([half, half], dim=1))
    pattern = torch.stack([cache["pattern", layer] for layer in range(model.cfg.n_layers)])
    offsets = {"previous_token": 1, "duplicate_token": length, "induction": length - 1}
    return {
        name: pattern.diagonal(offset=offset, dim1=-1, dim2=-2).mean(dim=(1, 3))
        for name, offset in offsets.items()
    }


# --- definitions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUNDLED)
def test_the_demos_definition(name: str) -> None:
    model = model_of(name)
    demo_tokens = torch.tensor(published.load("exploratory.score_tokens").values, dtype=torch.long)
    half = demo_tokens % (model.cfg.d_vocab - 10) + 5  # the demo's tokens, folded into these words
    ours = heads.repeat_scores(model, half, definition="demo", memory=1)
    for score, expected in by_the_demo(model, half).items():
        torch.testing.assert_close(ours[score], expected, atol=1e-6, rtol=0)


def test_scores_equal_detect_head(built: TransformerBridge) -> None:
    """The same on text, tokenised with and without BOS by TransformerLens."""
    for model in (model_of("ioi-mini"), built):
        drawn = heads.random_tokens(model, seeds=range(4), length=120)
        rows, texts = [], []
        for row in drawn.tolist():
            # Words with their leading space only, so that a row reads back from its text.
            words = [i for i in row if model.tokenizer.decode([i])[1:].isalpha()]
            words = [i for i in words if model.tokenizer.decode([i]).startswith(" ")][:20]
            rows.append(words)
            texts.append("".join(model.tokenizer.decode([i]) for i in words))
            assert model.to_tokens(texts[-1], prepend_bos=False)[0].tolist() == words
        tokens = torch.tensor(rows)
        for bos in (False, True):
            ours = heads.repeat_scores(model, tokens, definition="detect_head", prepend_bos=bos)
            usual = model.cfg.default_prepend_bos
            model.cfg.default_prepend_bos = bos
            try:
                for score in heads.PATTERNS:
                    expected = detect_head(model, [text + text for text in texts], f"{score}_head")
                    torch.testing.assert_close(ours[score], expected, atol=1e-6, rtol=0)
            finally:
                model.cfg.default_prepend_bos = usual


@pytest.mark.parametrize("name", BUNDLED)
def test_the_robust_definition_hardly_depends_on_bos_length_or_seed(name: str) -> None:
    model = model_of(name)
    ours = heads.repeat_scores(model)
    others = [
        heads.repeat_scores(model, prepend_bos=False),
        heads.repeat_scores(model, seeds=range(100, 108)),
        heads.repeat_scores(model, length=70),
    ]
    for score in heads.PATTERNS:
        for other in others:
            torch.testing.assert_close(ours[score], other[score], atol=0.05, rtol=0)
        spread = others[1].stderr[score] ** 2 + ours.stderr[score] ** 2
        gap = (ours[score] - others[1][score]).abs()
        assert (gap <= 6 * spread.sqrt() + 1e-4).all()


def test_standard_errors_are_those_of_single_seeds() -> None:
    model = model_of("ioi-mini")
    seeds = (3, 1, 4)
    together = heads.repeat_scores(model, seeds=seeds, length=20)
    alone = [heads.repeat_scores(model, seeds=[seed], length=20) for seed in seeds]
    for score in (*heads.PATTERNS, "repeated_logit"):
        each = torch.stack([one[score] for one in alone])
        torch.testing.assert_close(together[score], each.mean(dim=0), atol=1e-5, rtol=0)
        error = each.std(dim=0) / 3**0.5
        torch.testing.assert_close(together.stderr[score], error, atol=1e-5, rtol=0)
        assert alone[0].stderr[score].isnan().all()
    assert together.loss == pytest.approx(sum(one.loss for one in alone) / 3, abs=1e-4)


def test_random_weights_score_at_chance(untrained: TransformerBridge) -> None:
    for definition in ("robust", "demo", "detect_head"):
        scores = heads.repeat_scores(untrained, definition=definition)
        for score in heads.PATTERNS:
            chance = torch.full_like(scores[score], scores.chance[score])
            torch.testing.assert_close(scores[score], chance, rtol=0.1, atol=1e-3)
        assert not scores.anti_induction()
    assert scores.loss == pytest.approx(scores.first_loss, abs=0.1)


def test_hand_built_heads_score_as_built(built: TransformerBridge) -> None:
    scores = heads.repeat_scores(built)
    expected = {"previous_token": ["L0H1"], "duplicate_token": ["L0H3", "L1H2"]}
    for score, names in {**expected, "induction": ["L1H0"]}.items():
        above = [heads.head_labels(built)[i] for i in (scores[score].flatten() > 0.5).nonzero()]
        assert above == names
        for name in names:
            assert float(scores[score][heads.parse_head(name)]) == pytest.approx(1, abs=1e-3)


# --- effects on the repeated token ----------------------------------------------------------------


def test_repeated_logit_is_what_the_head_adds() -> None:
    model = model_of("ioi-mini")
    half = heads.random_tokens(model, seeds=[5], length=12)
    tokens = torch.cat([half, half], dim=1)
    ours = heads.repeat_scores(model, half, prepend_bos=False).repeated_logit
    _, cache = model.run_with_cache(tokens)
    places = range(13, 23)  # the second copy's tokens with a successor, but the first
    for layer, head in ((1, 1), (0, 1), (4, 2)):
        adds = []
        for at in places:
            written = cache["z", layer][0, at, head] @ model.blocks[layer].attn.W_O[head]
            written = (written - written.mean()) / cache["ln_final.hook_scale"][0, at]
            logits = written @ model.W_U
            adds.append(logits[tokens[0, at + 1]] - logits.mean())
        expected = torch.stack(adds).mean()
        torch.testing.assert_close(ours[layer, head], expected, atol=1e-4, rtol=1e-3)


def test_an_induction_head_turned_round_is_found_as_anti_induction() -> None:
    model = load_model("ioi-mini", device="cpu", verbose=False)
    scores = heads.repeat_scores(model)
    assert scores.anti_induction() == []
    best = heads.head_labels(model)[int(scores.induction.argmax())]
    layer, head = heads.parse_head(best)
    with torch.no_grad():
        model.blocks[layer].attn.W_O[head] *= -1
    after = heads.repeat_scores(model)
    assert after.anti_induction() == [best]


def test_scores_are_those_of_the_ablated_model() -> None:
    model = model_of("ioi-mini")

    def zero(z: torch.Tensor, hook: object) -> torch.Tensor:
        z = z.clone()
        z[:, :, 1] = 0
        return z

    with ablate(model, "L1H1", "zero"):
        ours = heads.repeat_scores(model)
    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", zero)]):
        hooked = heads.repeat_scores(model)
    assert ours.loss == pytest.approx(hooked.loss, abs=1e-5)
    torch.testing.assert_close(ours.induction, hooked.induction)
    torch.testing.assert_close(ours.repeated_logit, hooked.repeated_logit)
    assert ours.repeated_logit[1, 1] == 0
    assert ours.loss > heads.repeat_scores(model).loss + 1
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


# --- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["Q", "K", "V"])
def test_composition_scores_are_transformer_lens(mode: str, untrained: TransformerBridge) -> None:
    for model in (model_of("ioi-mini"), untrained):
        expected = model.all_composition_scores(mode).scores
        ours = heads.composition_scores(model, mode)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    earlier = ours.flatten(2)[:-1].flatten()
    typical = earlier[earlier > 0].square().mean().sqrt()
    assert float(typical) == pytest.approx(heads.composition_chance(untrained), rel=0.1)


def test_composition_chance_is_one_over_the_root_of_d_model(untrained: TransformerBridge) -> None:
    assert heads.composition_chance(untrained) == pytest.approx(1 / 8)
    assert heads.composition_chance(model_of("ioi-mini")) == pytest.approx(1 / 12)


@pytest.mark.parametrize("negative", [False, True])
def test_copying_scores_agree_with_plain_lines(negative: bool) -> None:
    model = model_of("ioi-mini")
    data = IOIDataset.generate(model.tokenizer, 6, seed=2)
    ours = heads.copying_scores(model, data, negative=negative)
    hits = torch.zeros_like(ours)
    for i in range(len(data)):
        _, cache = model.run_with_cache(data.tokens[i : i + 1])
        for role in ("IO", "S1", "S2"):
            at = int(data.positions[role][i])
            for layer in range(model.cfg.n_layers):
                attn = model.blocks[layer].attn
                name = model.blocks[layer].ln1(cache["resid_post", 0][:, at])
                for head in range(model.cfg.n_heads):
                    written = (name @ attn.W_V[head] + attn.b_V[head]) @ attn.W_O[head]
                    written = -written if negative else written
                    logits = model.unembed(model.ln_final(written[:, None]))[0, 0]
                    hits[layer, head] += int(data.tokens[i, at] in logits.topk(5).indices)
    torch.testing.assert_close(ours, hits / (3 * len(data)))


def test_copying_scores_of_hand_built_heads(built: TransformerBridge) -> None:
    data = IOIDataset.generate(built.tokenizer, 12, seed=2, names=handbuilt.NAMES)
    copying = heads.copying_scores(built, data)
    negative = heads.copying_scores(built, data, negative=True)
    for name, strength in handbuilt.COPY_STRENGTH.items():
        score, other = (negative, copying) if strength < 0 else (copying, negative)
        assert float(score[heads.parse_head(name)]) == 1.0
        assert float(other[heads.parse_head(name)]) == 0.0


def test_positional_patterns(built: TransformerBridge, untrained: TransformerBridge) -> None:
    model = model_of("ioi-mini")
    patterns = heads.positional_patterns(model, 40)
    torch.testing.assert_close(patterns.sum(dim=-1), torch.ones(patterns.shape[:-1]))
    assert not patterns.triu(1).any()
    back = patterns.diagonal(-1, dim1=-2, dim2=-1).mean(dim=-1)
    scores = heads.repeat_scores(model).previous_token
    best = int(scores.argmax())
    assert int(back.argmax()) == best and float(back.flatten()[best]) > 0.9
    built_back = heads.positional_patterns(built, 40).diagonal(-1, dim1=-2, dim2=-1).mean(dim=-1)
    assert float(built_back[0, 1]) == pytest.approx(1, abs=1e-3)


# --- bad input ------------------------------------------------------------------------------------


def test_bad_input_is_refused() -> None:
    model = model_of("ioi-mini")
    data = IOIDataset.generate(model.tokenizer, 4)
    with pytest.raises(ValueError, match="not a definition"):
        heads.repeat_scores(model, definition="arena")
    with pytest.raises(ValueError, match="no BOS"):
        heads.repeat_scores(model, definition="demo", prepend_bos=True)
    with pytest.raises(ValueError, match="row length"):
        heads.repeat_scores(model, torch.arange(5))
    with pytest.raises(ValueError, match="context"):
        heads.repeat_scores(model, length=200)
    with pytest.raises(ValueError, match="seeds"):
        heads.random_tokens(model, seeds=[])
    with pytest.raises(ValueError, match="length"):
        heads.random_tokens(model, length=2)
    with pytest.raises(ValueError, match="not a score"):
        heads.repeat_scores(model, length=5)["copying"]
    with pytest.raises(ValueError, match="mode"):
        heads.composition_scores(model, "O")
    with pytest.raises(ValueError, match="n_positions"):
        heads.positional_patterns(model, 1)
    with pytest.raises(ValueError, match="roles must list"):
        heads.copying_scores(model, data, roles="IO")
    with pytest.raises(ValueError, match="'S3' is not a role"):
        heads.copying_scores(model, data, roles=["S3"])
    with pytest.raises(ValueError, match="top"):
        heads.copying_scores(model, data, top=0)
