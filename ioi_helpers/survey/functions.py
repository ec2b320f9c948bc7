"""Functions by name, ``"module:name"``, and what tells one from another: its source."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable
from typing import Any


def function_named(function: str | Callable[..., Any]) -> Callable[..., Any]:
    """A function itself, or the one that ``"module:name"`` names.

    Raises:
        ValueError: There is none.
    """
    if not isinstance(function, str):
        return function
    module, _, name = function.partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"There is no {function!r} ({error}); write module:name of a function that every "
            "worker can import."
        ) from error
    return found


def source_of(function: str | Callable[..., Any]) -> str:
    """A digest of a function's own source (not of what it calls), in hexadecimal.

    Raises:
        ValueError: Its source cannot be read.
    """
    found = function_named(function)
    try:
        source = inspect.getsource(found)
    except (OSError, TypeError) as error:
        raise ValueError(
            f"The source of {found!r} cannot be read ({error}), so its answers could not be told "
            "from another function's; define it with def, in a module or a notebook's cell."
        ) from error
    return hashlib.sha256(source.encode()).hexdigest()
