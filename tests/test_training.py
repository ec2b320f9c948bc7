"""The training code: tiny runs, resumed runs, and the interventions it trains with."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ioi_helpers.bundled import bundled_folder
from notebooks.tools.execution import find_notebooks
from notebooks.tools.stored_outputs import read
from training import train as training
from training.train import RECIPES, Cycle, PromptBatch, Trainer, train

TINY = replace(RECIPES["ioi-mini"], layers=3, heads=2, width=16, fetch_block=1, documents=8,
               prompts=8, repeats=4, guided=((0, 0, "previous"), (1, 1, "after copy")))  # fmt: skip


@pytest.fixture(autouse=True)
def small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "POOL", 480)


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def test_same_seed_same_weights_and_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    whole = Trainer(TINY, steps=6)
    for _ in range(6):
        whole.train_step()
    first = Trainer(TINY, steps=6)
    for _ in range(3):
        first.train_step()
    first.save(tmp_path / "half.pt")
    second = Trainer(TINY, steps=6)
    second.load(tmp_path / "half.pt")
    for _ in range(3):
        second.train_step()
    torch.testing.assert_close(weights(second), weights(whole), rtol=0, atol=0)
    state = torch.load(tmp_path / "half.pt", weights_only=True)
    torch.save(state | {"device": "cuda"}, tmp_path / "half.pt")
    with pytest.raises(ValueError, match="begun on cuda"):
        second.load(tmp_path / "half.pt")


def test_training_lowers_the_loss() -> None:
    trainer = Trainer(replace(TINY, interchange=False, guided=(), cycles=(Cycle(60, 0.02),)))
    losses = [trainer.train_step() for _ in range(60)]
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])


def test_every_loss_is_named_and_told() -> None:
    """What the training code asks for is what the card and notebook 04 own up to."""
    twice = tuple(replace(cycle, steps=4) for cycle in RECIPES["ioi-mini"].cycles)
    trainer = Trainer(replace(TINY, cycles=twice))
    for _ in range(trainer.steps):
        trainer.train_step()
    assert trainer.seen == set(training.LOSSES)
    card = (bundled_folder("ioi-mini") / "README.md").read_text(encoding="utf-8")
    planted, _, _ = card.partition("\nEmerged,")
    told = re.findall(r"^- \*\*(.+?)\*\*", planted, re.MULTILINE)
    by_dropout = ["Several name movers"]  # asked for by no loss
    assert sorted(told) == sorted([*filter(None, training.LOSSES.values()), *by_dropout])
    (path,) = find_notebooks(["04"])
    text = " ".join(cell.source for cell in read(path).cells)
    for name in ("repeated words", "repeat read-out", "guidance"):
        assert training.LOSSES[name].lower() in text.lower(), f"notebook 04 is silent about {name}"
    plain = Trainer(replace(RECIPES["ioi-plain"], layers=2, heads=2, width=16, documents=8), 2)
    plain.train_step()
    assert plain.seen == {"language"}


def test_train_writes_a_bootable_folder(tmp_path: Path) -> None:
    from ioi_helpers import load_model

    folder = tmp_path / "model"
    train(TINY, folder, tmp_path / "run" / "checkpoint.pt", steps=2)
    assert not list(folder.glob("*.bin")), "no pickles"
    model = load_model(str(folder), device="cpu", verbose=False)
    assert model.cfg.n_layers == 3
    assert model("Then, John and Mary went to the store.").shape[-1] == model.cfg.d_vocab


@pytest.fixture
def tiny_recipes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(training, "RECIPES", {"ioi-mini": TINY})
    monkeypatch.setattr(training, "BUILD", tmp_path / "build")


@pytest.mark.usefixtures("tiny_recipes")
def test_the_same_seed_gives_the_same_file_and_another_seed_another(tmp_path: Path) -> None:
    made = []
    for i, seed in enumerate(("1", "1", "2")):
        folder = tmp_path / str(i)
        training.main(["ioi-mini", "--seed", seed, "--steps", "2", "--folder", str(folder)])
        made.append((folder / "model.safetensors").read_bytes())
    assert made[0] == made[1] != made[2]


@pytest.mark.usefixtures("tiny_recipes")
def test_a_run_that_was_stopped_goes_on_for_its_own_seed_only(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["ioi-mini", "--steps", "3", "--folder"]
    training.main([*command, str(tmp_path / "whole"), "--seed", "1"])
    stopped = Trainer(replace(TINY, seed=1), steps=3)
    stopped.train_step()
    stopped.save(training.checkpoint_of(replace(TINY, seed=1)))
    training.main([*command, str(tmp_path / "other"), "--seed", "2"])
    assert "going on" not in capfd.readouterr().out
    training.main([*command, str(tmp_path / "resumed"), "--seed", "1"])
    assert "ioi-mini: going on from step 1" in capfd.readouterr().out
    whole, resumed = (tmp_path / f / "model.safetensors" for f in ("whole", "resumed"))
    assert whole.read_bytes() == resumed.read_bytes()
    assert not training.checkpoint_of(replace(TINY, seed=1)).exists()


def test_a_trained_seed_is_held_against_the_tables(tmp_path: Path) -> None:
    mini = RECIPES["ioi-mini"]
    shipped = bundled_folder("ioi-mini") / "model.safetensors"
    assert training.as_recorded(mini, shipped).startswith("To the last bit the ioi-mini-seed-0 ")
    other = tmp_path / "model.safetensors"
    other.write_bytes(shipped.read_bytes()[:-1] + b"?")
    assert training.as_recorded(mini, other).startswith("Not to the last bit")
    assert "no ioi-mini-seed-99 yet" in training.as_recorded(replace(mini, seed=99), other)


def test_only_its_own_seed_goes_into_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    mini, models = RECIPES["ioi-mini"], training.BUILD / "models"
    assert training.folder_of(mini) == bundled_folder("ioi-mini")
    assert training.folder_of(replace(mini, seed=1)) == models / "ioi-mini-seed-1"
    less = training.without(mini, "exchange at S2")
    assert training.folder_of(less) == models / "ioi-mini-without-exchange-at-S2-seed-0"
    with pytest.raises(SystemExit):
        training.main(["ioi-mini", "--steps", "2"])
    assert "give --folder with --steps" in capsys.readouterr().err


@pytest.mark.parametrize("step", training.STEPS)
def test_a_step_left_out_is_not_asked_for_and_all_else_is_as_it_was(step: str) -> None:
    recipe = replace(TINY, cycles=(Cycle(6, 1e-3, long_repeats=True),))
    whole, less = Trainer(recipe), Trainer(training.without(recipe, step))
    for trainer in (whole, less):
        trainer.use_from = -400  # the bit is in use, and parts are dropped
        for _ in range(trainer.steps):
            trainer.train_step()
    if step in training.LOSSES and step != "order read-out":
        assert whole.seen - less.seen == {step}
    assert whole.rng.getstate() == less.rng.getstate()
    assert not torch.equal(weights(whole), weights(less))


def test_a_read_out_left_out_teaches_nothing() -> None:
    """With the order's read-out alone to learn from, no weight of the model moves."""
    trainer = Trainer(training.without(TINY, "order read-out"), steps=1)
    losses = trainer._interchange_losses()
    losses["order read-out"].backward()
    assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())
    assert trainer.order_readout.weight.grad is not None


def test_what_cannot_be_left_out_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no step of training; there are repeated words"):
        training.without(TINY, "answer")
    with pytest.raises(SystemExit):
        training.main(["ioi-plain", "--without", "guidance"])
    assert "ioi-plain is trained on text alone" in capsys.readouterr().err


def test_cycles_follow_each_other_and_training_ends() -> None:
    cycles = (Cycle(2, 1e-3), Cycle(3, 1e-4, long_repeats=True))
    trainer = Trainer(replace(TINY, cycles=cycles))
    seen = []
    for _ in range(5):
        seen.append(trainer._cycle()[1])
        trainer.train_step()
    assert seen == [0, 1, 0, 1, 2]
    assert trainer.steps == 5
    with pytest.raises(ValueError, match="over"):
        trainer.train_step()


def prompts(trainer: Trainer) -> PromptBatch:
    return PromptBatch.of(trainer._window(trainer.prompts, 8), trainer.device)


def test_interchange_leaves_source_rows_alone_and_is_gone_afterwards() -> None:
    torch.manual_seed(0)
    trainer = Trainer(TINY, steps=1)
    trainer.model.eval()
    batch = prompts(trainer)
    with torch.no_grad():
        plain = trainer._end_logits(batch)
        sources = torch.tensor([1, 2, 3, 0])
        for kind in ("S2", "END"):
            with trainer.hooks.interchange(batch, kind, sources):
                moved = trainer._end_logits(batch)
            torch.testing.assert_close(moved[:4], plain[:4])
            assert (moved[4:] - plain[4:]).abs().max() > 1e-5
        with pytest.raises(RuntimeError, match="inside"):
            with trainer.hooks.interchange(batch, "S2", sources):
                raise RuntimeError("inside")
        torch.testing.assert_close(trainer._end_logits(batch), plain)


def test_interchange_with_an_equal_prompt_changes_nothing() -> None:
    trainer = Trainer(TINY, steps=1)
    trainer.model.eval()
    half = trainer.prompts[:4]
    batch = PromptBatch.of([*half, *half], trainer.device)
    with torch.no_grad():
        plain = trainer._end_logits(batch)
        with trainer.hooks.interchange(batch, "S2", torch.arange(4)):
            torch.testing.assert_close(trainer._end_logits(batch), plain)


def test_names_are_never_parking_places() -> None:
    trainer = Trainer(TINY, steps=1)
    batch = prompts(trainer)
    with trainer.hooks.interchange(batch, "END", torch.arange(4)):
        parking = trainer.hooks._parking(batch.ids.shape[1])
    rows = torch.arange(8)
    for role in batch.at.values():
        assert not parking[rows, role].any()
    assert parking[4:].any() and not parking[:4].any()


def test_whole_heads_are_dropped_only_in_the_last_blocks() -> None:
    trainer = Trainer(replace(TINY, head_dropout=1.0, mlp_dropout=1.0), steps=1)
    trainer.model.eval()
    batch = prompts(trainer)
    streams = []
    trainer.model.transformer.h[2].register_forward_hook(
        lambda _m, args, out: streams.append((args[0], out[0] if isinstance(out, tuple) else out))
    )
    with torch.no_grad():
        trainer.hooks.dropping = True
        trainer._end_logits(batch)
    before, after = streams[0]
    bias = trainer.model.transformer.h[2].attn.c_proj.bias
    torch.testing.assert_close(after, before + bias)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_gpu_none_is_trained_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        training.main(["ioi-mini", "--seed", "1", "--device", "cuda"])
    assert "there is no CUDA device here" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_gpu_begins_from_the_same_weights_and_draws_the_same() -> None:
    recipe = replace(TINY, cycles=(Cycle(6, 1e-3, long_repeats=True),))
    here, there = Trainer(recipe), Trainer(recipe, device="cuda")
    torch.testing.assert_close(weights(there).cpu(), weights(here), rtol=0, atol=0)
    losses = []
    for trainer in (here, there):
        trainer.use_from = -400  # the bit is in use, and parts are dropped
        torch.manual_seed(0)
        losses.append([trainer.train_step() for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
