"""Answers as JSON and back, without loss and without pickle.

No exercise asks for code: what is answered is a number, a text, a tensor, or a list, tuple, set or
mapping of them, and a function is refused by every check ("call it first"). So values are kept and
no source, and nothing that a record holds can be run. JSON's own kinds stand for themselves; all
else is an object of one key that says what it is: `{"tuple": [...]}`, `{"array": {...}}`. What no
exercise can ask for is kept by its name only, `{"other": "a function (call it first)"}`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from ioi_helpers.exercises.forms import kind
from ioi_helpers.graph import Circuit, Node
from ioi_helpers.metrics import Estimate
from ioi_helpers.probing import Split

ENTRIES = 2_000_000  # numbers and texts in an answer; the largest asked for have some 200,000
LETTERS = 100_000  # in a text
DEPTH = 20  # of lists in lists
WRITTEN_OUT = 1000  # entries of an array up to which a person can read them in the file
TYPES = {"float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"}


@dataclass(frozen=True)
class Other:
    """Stands for an answer that a record does not hold: every check refuses it."""

    what: str


class Damaged(ValueError):
    """What was read is no answer that :func:`to_json` wrote."""


class _TooMuch(Exception):
    """An answer larger than any that is asked for."""


def to_json(answer: Any) -> Any:
    """The answer as JSON can hold it. Never raises: what cannot be held is named."""
    try:
        return _encoded(answer, DEPTH, [ENTRIES])
    except _TooMuch:
        return {"other": f"{kind(answer)}, too large for an answer"}
    except Exception:  # an object of the reader's that fails when it is looked at
        return {"other": f"an object of type {type(answer).__name__}"}


def digest(encoded: Any) -> str:
    """A name for a JSON value: the same for the same value, whatever it was written by."""
    text = json.dumps(encoded, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _encoded(value: Any, depth: int, left: list[int]) -> Any:
    left[0] -= 1
    if depth < 0 or left[0] < 0:
        raise _TooMuch
    if isinstance(value, Estimate):  # of which a check takes the mean or the error
        return {"estimate": [_encoded(part, depth - 1, left) for part in value]}
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (np.bool_, np.integer, np.floating)):
        value = value.item()
        if isinstance(value, bool):
            return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else {"float": "inf" if value > 0 else "-inf"}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, str):
        if len(value) > LETTERS:
            raise _TooMuch
        return str(value)
    if isinstance(value, torch.Tensor):
        return _encoded_tensor(value, left)
    if isinstance(value, np.ndarray):
        return _encoded_array(value, "numpy", str(value.dtype), depth, left)
    if isinstance(value, Node):
        return str(value)
    if isinstance(value, Split):
        value = (value.train, value.test)
    if isinstance(value, (pd.Index, pd.DataFrame)):
        return _encoded(value.to_numpy(), depth, left)

    def every(items: Iterable[Any]) -> list[Any]:
        return [_encoded(item, depth - 1, left) for item in items]

    if isinstance(value, pd.Series):
        if isinstance(value.index, pd.RangeIndex) and len(value):  # of nothing, labels or none?
            return _encoded(value.to_numpy(), depth, left)
        return {"series": [every(pair) for pair in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": every(value)}
    if isinstance(value, (set, frozenset)):
        return {"set": sorted(every(value), key=digest)}
    if isinstance(value, Mapping):
        return {"mapping": [every(pair) for pair in value.items()]}
    # A list, a range, a circuit (of nodes), a mapping's keys. Not what looking at it uses up.
    if isinstance(value, (list, range, Circuit)) or (
        hasattr(value, "__iter__") and hasattr(value, "__len__") and not isinstance(value, bytes)
    ):
        return every(value)
    if hasattr(value, "__array__"):
        return _encoded(np.asarray(value), depth, left)
    if hasattr(value, "__float__"):  # a fraction, say
        return _encoded(float(value), depth, left)
    return {"other": kind(value)}


def _encoded_tensor(value: torch.Tensor, left: list[int]) -> Any:
    if value.is_complex() or value.is_quantized or value.layout is not torch.strided:
        return {"other": f"{kind(value)} of type {value.dtype}"}
    name = str(value.dtype).removeprefix("torch.")
    value = value.detach().cpu()
    if name not in TYPES:  # bfloat16 and smaller: every value of theirs is one of float32
        value = value.float()
    return _encoded_array(value.numpy(), "tensor", name, DEPTH, left)


def _encoded_array(value: np.ndarray, of: str, name: str, depth: int, left: list[int]) -> Any:
    left[0] -= value.size
    if left[0] < 0:
        raise _TooMuch
    stored = str(value.dtype)
    if stored not in TYPES:  # texts, objects
        return _encoded(value.tolist(), depth, left)
    found: dict[str, Any] = {"of": of, "type": name, "shape": list(value.shape)}
    if value.size <= WRITTEN_OUT and np.isfinite(value).all():
        return {"array": found | {"values": value.reshape(-1).tolist()}}
    raw = np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<")).tobytes()
    return {"array": found | {"base64": base64.b64encode(raw).decode("ascii")}}


def from_json(encoded: Any) -> Any:
    """The answer that :func:`to_json` wrote so. Raises Damaged for anything else."""
    try:
        return _decoded(encoded)
    except Damaged:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise Damaged(f"it holds no answer that can be read ({type(error).__name__})") from error


def _decoded(encoded: Any) -> Any:
    if encoded is None or isinstance(encoded, (bool, int, float, str)):
        return encoded
    if isinstance(encoded, list):
        return [_decoded(item) for item in encoded]
    if not isinstance(encoded, dict) or len(encoded) != 1:
        raise Damaged("it holds an object that is no answer")
    [(what, held)] = encoded.items()
    if what == "tuple":
        return tuple(_decoded(item) for item in held)
    if what == "estimate":
        return Estimate(*(_decoded(item) for item in held))
    if what == "set":
        return {_decoded(item) for item in held}
    if what == "mapping":
        return {_decoded(key): _decoded(value) for key, value in held}
    if what == "series":
        labels, values = [_decoded(key) for key, _ in held], [_decoded(value) for _, value in held]
        # Of nothing pandas makes objects, and an empty answer of numbers is one of numbers.
        kind_of = None if values else float
        return pd.Series(values, index=pd.Index(labels, tupleize_cols=False), dtype=kind_of)
    if what == "float" and held in ("nan", "inf", "-inf"):
        return float(held)
    if what == "array":
        return _decoded_array(**held)
    if what == "other" and isinstance(held, str):
        return Other(held)
    raise Damaged("it holds an object that is no answer")


def _decoded_array(
    of: str, type: str, shape: list[int], values: Any = None, **raw: str
) -> np.ndarray | torch.Tensor:
    stored = np.dtype(type if type in TYPES else "float32").newbyteorder("<")
    if values is not None:
        flat = np.asarray(values, dtype=stored)
    else:
        try:
            flat = np.frombuffer(base64.b64decode(raw["base64"], validate=True), dtype=stored)
        except binascii.Error as error:
            raise Damaged("an array in it is damaged") from error
    if not all(isinstance(n, int) and n >= 0 for n in shape) or flat.size != math.prod(shape):
        raise Damaged("an array in it has lost entries")
    array = flat.astype(stored.newbyteorder("=")).reshape(shape)
    if of != "tensor":
        return array
    dtype = getattr(torch, type, None)
    if not isinstance(dtype, torch.dtype):
        raise Damaged("an array in it is of no type that is known")
    return torch.from_numpy(array).to(dtype)
