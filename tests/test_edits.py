"""Edits reach what they claim to reach, or say that they do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from ioi_helpers import edits
from tests import random_models

# In these TransformerLens leaves attention to the wrapped module.
LEFT_TO_THE_MODULE = ("gpt-neo", "opt", "gpt-j")


@pytest.mark.parametrize("architecture", random_models.ARCHITECTURES)
def test_whether_a_pattern_reaches_the_run(architecture: str, tmp_path: Path) -> None:
    model = random_models.boot(random_models.save(tmp_path, architecture))
    for layer in range(model.cfg.n_layers):
        reaches = edits.pattern_reaches_run(model, layer)
        assert reaches == (architecture not in LEFT_TO_THE_MODULE)
