"""The models that many tests share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.sharing_out import pytest_xdist_make_scheduler as pytest_xdist_make_scheduler

# What runs models is imported where it is used: it takes seconds, and the process that shares tests
# out reads this file before the others begin.
if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# `make test` draws the same examples every time, so that it says the same of the same code; what
# other examples find, `make test-all` (--hypothesis-profile=random) is there to find. Keep such a
# find as an @example: what Hypothesis remembers in .hypothesis/ is this checkout's alone.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("random", print_blob=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> TransformerBridge:
    """A transformer set by hand, whose every head is known."""
    from ioi_helpers.models import handbuilt

    return handbuilt.boot(handbuilt.save(tmp_path_factory.mktemp("handbuilt")))


@pytest.fixture(scope="module")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small GPT-2 of random weights."""
    from tests import random_models

    return random_models.save(tmp_path_factory.mktemp("random"))


@pytest.fixture(scope="module", params=[True, False], ids=["folded", "raw"])
def tiny(request: pytest.FixtureRequest, random_folder: Path) -> TransformerBridge:
    """That model, folded and not."""
    from tests import random_models

    return random_models.boot(random_folder, request.param)


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say that something is left out."""
    left_out = config.option.markexpr.strip() == "not slow"
    return "slow tests are left out: -m '' (make test-all) runs them" if left_out else None


@pytest.fixture(scope="module")
def built_through_mlp(tmp_path_factory: pytest.TempPathFactory) -> TransformerBridge:
    """The same, but one of its signals passes through an MLP."""
    from ioi_helpers.models import handbuilt

    folder = tmp_path_factory.mktemp("through-mlp")
    return handbuilt.boot(handbuilt.save(folder, through_mlp=True))


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The course site, built from stored outputs without a warning, or the one in IOI_SITE."""
    if "IOI_SITE" in os.environ:
        return Path(os.environ["IOI_SITE"])
    from notebooks.tools.site.build import build

    out = tmp_path_factory.mktemp("site") / "site"
    assert build(out, {}) == ""
    return out
