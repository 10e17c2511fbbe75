"""Torch's functions as steps: their names, what gives sizes, and what gives no tensor."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .numbers import Tracked, plain, tracked
from .scope import Scope
from .steps import Attribute, Ref

SHAPES = {"shape.__get__", "size", "__len__", "numel", "nelement"}
"""What asks for sizes."""
_STATIC = {
    "requires_grad.__set__",
    *("dim", "ndimension", "stride", "element_size", "get_device", "type", "result_type", "can_cast"),
    *("promote_types", "type_code", "__format__", "__repr__", "__str__", "__hash__", "has_names"),
}
_STATIC_FIELDS = {
    *("ndim", "dtype", "device", "layout", "requires_grad", "grad_fn", "itemsize", "names", "output_nr"),
}


def sizes(scope: Scope, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a function that asks for a tensor's sizes gives: tracked numbers."""
    tensor = args[0]
    shape = scope.shape(tensor)
    if name == "__len__":
        if isinstance(shape[0], Tracked):
            scope.lengths[plain(shape[0])] = shape[0].ref
        return shape[0]
    if name in ("numel", "nelement"):
        count = math.prod(map(plain, shape))
        if not any(isinstance(n, Tracked) for n in shape):
            return count
        return scope.add("method", "numel", (tensor,), {}, tracked(count, scope.notes, Ref(-1)))
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    return torch.Size(shape) if dim is None else shape[dim]


def without_tensor(scope: Scope, name: str, args: tuple[Any, ...], result: Any) -> None:
    """Note a function that gives no tensor: it reads what never changes, or lets values of tensors decide."""
    field_name = name.removesuffix(".__get__")
    if name in _STATIC or field_name in _STATIC_FIELDS or field_name.startswith(("is_", "torch.is_")):
        if field_name in ("device", "dtype"):
            of = scope.describe(args[0])
            if isinstance(of, Ref | Attribute):
                scope.reads[field_name, result] = of
    else:
        scope.refuse(f"it lets values of tensors decide or leave torch ({name.removeprefix('torch.')})")


def public_name(name: str, func: Any) -> str:
    """The name under which a file that imports torch finds a function; as it is where there is none."""
    if name.startswith("torch.functional."):
        name = "torch." + name.removeprefix("torch.functional.")
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return f"torch.ops.{func}"
    candidates = (name, f"torch.{name}", f"{getattr(func, '__module__', None)}.{name}")
    return next((c for c in candidates if function_of(c)), name)


def function_of(name: str) -> Any:
    """The function of torch that has a name; None where torch alone has none."""
    if name.startswith("torch.ops.") and not name.startswith(("torch.ops.aten.", "torch.ops.prims.")):
        return None
    try:
        return functools.reduce(getattr, name.split(".")[1:], torch) if name.startswith("torch.") else None
    except AttributeError:
        return None


@functools.cache
def _signature(function: Callable[..., Any], method: bool) -> inspect.Signature:
    """The signature of a function, or of a method without its first parameter."""
    signature = inspect.signature(function)
    return signature.replace(parameters=list(signature.parameters.values())[1:]) if method else signature


def arguments_of(
    forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[tuple[str, Any]]:
    """The arguments of a call by name, as they stand in the signature."""
    signature = _signature(getattr(forward, "__func__", forward), hasattr(forward, "__func__"))
    arguments: list[tuple[str, Any]] = []
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            arguments += [(f"{name}_{i}", v) for i, v in enumerate(value)]
        elif kind is inspect.Parameter.VAR_KEYWORD:
            arguments += value.items()
        else:
            arguments.append((name, value))
    return arguments
