"""The survey of seeds: every trained model that is found is asked the same, and the tables ship.

::

    python -m training.seeds                    # models in build/models/, and those that ship
    python -m training.seeds --models FOLDER    # models elsewhere

Models are told by their folders' names, as `training.train` gives them: ``ioi-mini-seed-1``,
``ioi-mini-without-exchange-at-S2-seed-0``. Those that ship are seed 0 of their recipes. Beside them
stand models of random weights, which learned nothing: ``ioi-mini-untrained-seed-0``.

What was answered before is not asked again, so that a model more costs its own minutes only.
Weights do not ship. What `ioi_helpers/survey/shipped/seeds/` gets is a table for each question, one
of models, and a card (`README.md`) with what each model does of what its recipe is to do.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from ioi_helpers import heads, survey
from ioi_helpers.bundled import BUNDLED, VARIANTS, bundled_folder
from ioi_helpers.models import load_model
from ioi_helpers.runs import without_progress_bars
from ioi_helpers.survey import shipping, tables
from ioi_helpers.survey.identity import file_digest
from ioi_helpers.universality.edges import AT_LEAST
from training import card
from training.train import BUILD, RECIPES, STEPS

SHIPPED = shipping.SHIPPED / "seeds"
UNTRAINED = {"ioi-mini": 4, "ioi-plain": 4}
"""How many models of random weights there are of each shape."""

LEARNED = 0.95
"""A model has learned the task where it prefers IO on such a share of held-out prompts, without and
with a prefix."""

_NAME = re.compile(r"(?P<recipe>[\w-]+?)(-without-(?P<without>[\w-]+?))?-seed-(?P<seed>\d+)")
_UNTRAINED = "-untrained"

COLUMNS = {
    "model": "its name: recipe, what was left out, seed",
    "recipe": "how it was trained, as training.train.RECIPES has it",
    "without": "the step of its training that was left out, if one was",
    "seed": "of its first weights, its texts and its batches, all three",
    "trained": "whether it was trained, or has random weights",
    "trained on": "cpu or cuda; empty: not trained",
    "learned": f"whether it prefers IO on {LEARNED:.0%} of held-out prompts, with a prefix or not",
    "IO preferred": "share of held-out prompts without a prefix on which it prefers IO",
    "IO preferred, prefix": "the same with a prefix",
    "met": "how many of its recipe's requirements it meets",
    "asked": "how many there are",
    "not met": "which it does not",
    "layers": "how many",
    "heads": "in each layer",
    "width": "of the residual stream",
    "parameters": "how many",
    "sha256": "of its model.safetensors",
}


@dataclass(frozen=True, order=True)
class Trained:
    """A model's folder, and what its name says."""

    recipe: str
    without: str
    trained: bool
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        """What it is called in the tables."""
        left_out = f"-without-{self.without.replace(' ', '-')}" if self.without else ""
        return f"{self.recipe}{'' if self.trained else _UNTRAINED}{left_out}-seed-{self.seed}"


def told_by_name(folder: Path) -> Trained | None:
    """What a folder's name says of the model in it; None if it is none of ours."""
    if folder.name in (*BUNDLED, *VARIANTS):
        return Trained(folder.name, "", True, RECIPES[folder.name].seed, folder)
    found = _NAME.fullmatch(folder.name)
    if found is None:
        return None
    recipe = found["recipe"]
    # Steps have hyphens of their own, so a folder's name cannot be turned back; theirs can be made.
    without = {step.replace(" ", "-"): step for step in ("", *STEPS)}.get(found["without"] or "")
    trained = not recipe.endswith(_UNTRAINED)
    recipe = recipe.removesuffix(_UNTRAINED)
    if recipe not in RECIPES or without is None:
        return None
    return Trained(recipe, without, trained, int(found["seed"]), folder)


def found_in(folders: Iterable[Path]) -> list[Trained]:
    """The models in folders, by recipe and seed, those that ship among them; each once."""
    candidates = [bundled_folder(name) for name in (*BUNDLED, *VARIANTS)]
    for folder in folders:
        candidates += sorted(path.parent for path in folder.glob("*/model.safetensors"))
    told = [one for folder in candidates if (one := told_by_name(folder)) is not None]
    by_name: dict[str, Trained] = {}
    for one in told:
        by_name.setdefault(one.name, one)
    places = list(RECIPES)
    return sorted(
        by_name.values(),
        key=lambda one: (not one.trained, bool(one.without), places.index(one.recipe), one),
    )


def untrained(name: str, seed: int, folder: Path) -> Path:
    """A model of a bundled model's shape and tokenizer, of the weights that training begins with.

    Args:
        name: Whose shape.
        seed: Of the weights.
        folder: Where it goes, in a folder of its own name.
    """
    to = folder / f"{name}{_UNTRAINED}-seed-{seed}"
    if not (to / "model.safetensors").is_file():
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(GPT2Config.from_pretrained(bundled_folder(name)))
        model.save_pretrained(to)
        (to / "generation_config.json").unlink(missing_ok=True)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(bundled_folder(name) / file, to / file)
    return to


# --- cards ----------------------------------------------------------------------------------------


def model_card(one: Trained, cache: Path) -> dict[str, Any]:
    """A row of the table of models: what it is, and what it does of what its recipe is to do."""
    sha256 = file_digest(one.folder / "model.safetensors")
    config = json.loads((one.folder / "config.json").read_text(encoding="utf-8"))
    file = cache / f"{sha256}.json"
    if file.is_file():
        measured = json.loads(file.read_text(encoding="utf-8"))
    else:
        with without_progress_bars():
            measured = _measured(one)
        cache.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    held_out = [measured["IO preferred"], measured["IO preferred, prefix"]]
    met = {what: bool(m >= least) for what, (m, least) in measured["required"].items()}
    return {
        "model": one.name,
        "recipe": one.recipe,
        "without": one.without,
        "seed": one.seed,
        "trained": one.trained,
        "trained on": config.get("trained_on", "cpu") if one.trained else "",
        "learned": min(held_out) >= LEARNED,
        "IO preferred": held_out[0],
        "IO preferred, prefix": held_out[1],
        "met": sum(met.values()),
        "asked": len(met),
        "not met": "; ".join(what for what, is_met in met.items() if not is_met),
        "layers": config["n_layer"],
        "heads": config["n_head"],
        "width": config["n_embd"],
        "parameters": measured["parameters"],
        "sha256": sha256,
    }


def _measured(one: Trained) -> dict[str, Any]:
    """Shares of held-out prompts, and (measured, at least) of each requirement of the recipe."""
    model = load_model(str(one.folder), device="cpu", verbose=False)
    does = card.behaviours(model)
    recipe = RECIPES[one.recipe]
    if one.trained and recipe.interchange and does["held out"]["io_preferred"] >= LEARNED:
        table = card.card_table(model)
        known = heads.registry_of(table)
        numbers = card.measure(model, recipe, table, known)
        required = card.requirements(numbers, circuit=True)
    else:
        required = card.task_requirements({"behaviour": does}, card.VARIANTS_SHARE)
    return {
        "IO preferred": does["held out"]["io_preferred"],
        "IO preferred, prefix": does["held out, with prefix"]["io_preferred"],
        "required": {one.what: [one.measured, one.at_least] for one in required},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def markdown(models: pd.DataFrame) -> str:
    """The table of models as a card that GitHub shows."""
    lines = [
        "# The survey of seeds",
        "",
        "Written by `python -m training.seeds`. The package has the weights of seeds 0 of whole",
        "recipes; `python -m training.train` (`--seed`, `--without`) trains the others, and",
        "`training.seeds` draws the untrained. What was asked of them stands in `asked.toml`.",
        "",
        "`ioi-mini`, `ioi-mini-no-head-dropout` and models with a step left out are *twins* where",
        "seeds are equal: they begin from the same weights and read the same texts.",
        "",
        f"*Learned*: prefers IO on {LEARNED:.0%} of held-out prompts, without and with a prefix.",
        "*Met*: how many of its recipe's requirements (`training/card.py`) it meets; only those of",
        "the task for a model that has not learned it, or that nothing was planted in.",
        "",
        f"The table `edges` has no edge of less than {AT_LEAST:.1%} of the logit difference.",
        "",
        "*On*: what it was trained on. A CPU with as many threads and the same PyTorch gives the",
        "same weights again, to the last bit; a GPU does not.",
        "",
        "| model | on | IO preferred | with a prefix | learned | met | not met | sha256 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in models.to_dict("records"):
        learned = "yes" if row["learned"] else "no" if row["trained"] else "untrained"
        lines.append(
            f"| {row['model']} | {row['trained on'] or '-'} | {row['IO preferred']:.3f} | "
            f"{row['IO preferred, prefix']:.3f} | "
            f"{learned} | {row['met']} of {row['asked']} | {row['not met'] or '-'} | "
            f"`{row['sha256'][:12]}` |"
        )
    return "\n".join(lines) + "\n"


# --- tables ---------------------------------------------------------------------------------------


def as_shipped(label: str, table: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """A question's table as it ships: models by name, no small edges, half the digits."""
    about = dict(table.attrs["columns"])
    table = table.assign(model=table["model"].map(names))
    if label == "edges":
        table = table[table["failure"].notna() | (table["share"].abs() >= AT_LEAST)]
        about["share"] += f"; edges of less than {AT_LEAST:.1%} are left out"
    wide = table.select_dtypes("float64").columns
    table = table.astype(dict.fromkeys(wide, "float32")).reset_index(drop=True)
    table.attrs = {"columns": about}
    return table


def write(models: Sequence[Trained], out: Path, to: Path = SHIPPED) -> survey.Results:
    """Ask every model what has not been answered yet, and write what ships.

    Args:
        models: Which.
        out: The folder of answers, which is kept for the next time.
        to: Where the tables go.
    """
    asked = shipping.read_asked(SHIPPED)
    listed = [{"name": str(one.folder.resolve())} for one in models]
    found = survey.run(survey.Survey.of(listed, *asked, name="seeds"), out)
    names = {str(one.folder.resolve()): one.name for one in models}
    written = {label: as_shipped(label, table, names) for label, table in found.tables.items()}
    cards = pd.DataFrame([model_card(one, out / "cards") for one in models])
    cards.attrs = {"columns": COLUMNS}
    to.mkdir(parents=True, exist_ok=True)
    for label, table in {**written, shipping.OF_MODELS: cards}.items():
        tables.write(table, to / f"{label}.parquet", {"survey": "seeds"}, to)
    (to / "README.md").write_text(markdown(cards), encoding="utf-8")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.seeds", description="Survey all trained models; write what ships."
    )
    parser.add_argument(
        "--models", type=Path, action="append", default=[], metavar="FOLDER",
        help="a folder with models' folders (build/models/ is always looked into)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=BUILD / "seeds", help="folder of answers")
    given = parser.parse_args(arguments)
    random_weights = given.out / "untrained"
    for name, n in UNTRAINED.items():
        for seed in range(n):
            untrained(name, seed, random_weights)
    models = found_in([*given.models, BUILD / "models", random_weights])
    print(f"{len(models)} models: {', '.join(one.name for one in models)}")
    found = write(models, given.out)
    print(found)
    for row in found.failures.to_dict("records"):
        print(f"  {row['question']} of {Path(row['model']).name}: {row['failure']}")


if __name__ == "__main__":
    main()
