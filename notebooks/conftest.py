"""Notebooks are compared by nbval with a numeric tolerance, however pytest is called."""

from __future__ import annotations

import pytest

from notebooks.tools import nbval_tolerance


def pytest_configure(config: pytest.Config) -> None:
    """Load the plugin (a conftest that is not at the top may not name plugins)."""
    config.pluginmanager.register(nbval_tolerance, "nbval_tolerance")
