"""How tests are shared out among the processes of pytest-xdist (`--dist loadgroup`)."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together what shares costly set-up: a file, or the answers to a notebook's exercises.

    Answers are tried in one session a notebook and model.
    """
    for item in items:
        group = item.path.name
        values = getattr(getattr(item, "callspec", None), "params", {})
        if "expected" in values and "exercise" in values:
            group = f"{values['path'].name} on {values['model']}"
        item.add_marker(pytest.mark.xdist_group(group))
