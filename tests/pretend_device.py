"""A device that is none: tensors on it are computed on the CPU, and do not mix with the CPU's own.

What runs on one device only cannot show that a function leaves something on the CPU while the model
is on a GPU. `register()` makes PyTorch's slot for devices of others (PrivateUse1) such a second
device, and what CUDA refuses is refused there too. It is known to the whole process afterwards, as
an accelerator, so that it is registered in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

DEVICE = "pretend:0"
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._copy_from.default, aten._to_copy.default}
"""What may read one device and write another."""
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
INDEXING |= {aten._unsafe_index.Tensor, aten._index_put_impl_.default}
"""CUDA takes indices and masks from the CPU here, and nowhere else."""
FACTORIES = [
    *("empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step"),
    *("eye", "eye.m", "tril_indices", "triu_indices"),
]
"""The others fill what these make; these take a size that a wrapper could not grow into."""


class PretendTensor(Tensor):
    """A tensor that says that it is on `DEVICE`, and holds its numbers on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> PretendTensor:
        made: PretendTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(DEVICE),
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = list(_leaves((args, *kwargs.values())))
        refuse(op, args, kwargs, given)
        where = kwargs.get("device")
        if where is not None:
            kwargs = kwargs | {"device": "cpu"}
        elif op is aten.copy_.default:
            where = args[0].device
        held = {name: _each(_held, value) for name, value in kwargs.items()}
        found = op(*_each(_held, args), **held)
        if where is not None and torch.device(where).type == "cpu":
            return found
        # What was written in place is the tensor that was given, not another one of the same.
        same = {id(one.held): one for one in given if isinstance(one, PretendTensor)}
        return _each(lambda x: same[id(x)] if id(x) in same else _wrapped(x), found)

    def tolist(self) -> Any:  # which PyTorch has for its own tensors only, as the next
        return self.held.tolist()

    def __format__(self, spec: str) -> str:
        return format(self.held, spec)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self.held!r} on {DEVICE}"


def _held(x: Any) -> Any:
    return x.held if isinstance(x, PretendTensor) else x


def _wrapped(x: Any) -> Any:
    return PretendTensor(x) if isinstance(x, Tensor) and not isinstance(x, PretendTensor) else x


def _each(change: Callable[[Any], Any], x: Any) -> Any:
    """Arguments or results of an operation, changed; they are nested no deeper than lists."""
    return type(x)(_each(change, y) for y in x) if isinstance(x, list | tuple) else change(x)


def _leaves(x: Any) -> Iterator[Any]:
    if isinstance(x, list | tuple):
        for y in x:
            yield from _leaves(y)
    else:
        yield x


def refuse(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], given: Sequence[Any]) -> None:
    """Raise where CUDA would: tensors of two devices, or random numbers by the CPU's generator.

    Numbers (tensors without dimensions) on the CPU go with a tensor on a device element by element.
    """
    if any(isinstance(one, torch.Generator) for one in given):
        raise RuntimeError(f"Expected a generator of {DEVICE!r} but found one of 'cpu'")
    if op in COPIES:
        return
    if op in INDEXING:
        if not isinstance(args[0], PretendTensor):
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
            )
        given = [args[0], *args[2:3]]
    on_cpu = [
        one for one in given if isinstance(one, Tensor) and not isinstance(one, PretendTensor)
    ]
    if not on_cpu:
        return
    by_element = torch.Tag.pointwise in op.tags or op in INDEXING
    written = [id(one) for one in _written(op, args, kwargs)]
    if by_element and all(one.ndim == 0 and id(one) not in written for one in on_cpu):
        return
    raise RuntimeError(
        f"Expected all tensors to be on the same device, but {op} found two, {DEVICE} and cpu!"
    )


def _written(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    for i, argument in enumerate(op._schema.arguments):
        if argument.is_write:
            yield args[i] if i < len(args) else kwargs.get(argument.name)


def possible() -> bool:
    """PyTorch's way to such a device from Python is experimental; older releases have none."""
    return hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend")


_registered: list[torch.library.Library] = []
"""Kernels are known as long as their library lives."""


def register() -> None:
    """Make `DEVICE` known to PyTorch, for the rest of this process."""
    if _registered:
        return
    torch.utils.backend_registration._setup_privateuseone_for_python_backend("pretend")
    library = torch.library.Library("aten", "IMPL")
    for name in FACTORIES:
        packet, _, overload = name.partition(".")
        op = getattr(getattr(aten, packet), overload or "default")
        library.impl(name, _factory(op), "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    library.impl("_local_scalar_dense", lambda x: _held(x).item(), "PrivateUse1")
    _registered.append(library)


def _factory(op: Any) -> Callable[..., Tensor]:
    def make(*args: Any, **kwargs: Any) -> Tensor:
        return PretendTensor(op(*args, **kwargs | {"device": "cpu", "pin_memory": False}))

    return make


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _held(target).copy_(_held(source))
    return target


def moved(model: TransformerBridge) -> TransformerBridge:
    """The model, its weights put on `DEVICE`."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    return model.to(DEVICE)
