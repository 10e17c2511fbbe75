"""Constants as Python source."""

from collections.abc import Callable
from typing import Any

import torch


class NotConstructibleError(Exception):
    """Something that no source of a file that imports torch alone makes."""


def text(value: Any) -> str:
    """A constant as Python source.

    Raises:
        NotConstructibleError: it is none that a file without further imports can hold.
    """
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return f'float("{value}")'
    if type(value) is str:
        return f'"{value}"' if value.isprintable() and not set('"\\') & set(value) else repr(value)
    plain = (bool, int, float, complex, str, torch.dtype, torch.memory_format, torch.layout)
    if value is None or value is Ellipsis or isinstance(value, plain):
        # numpy's numbers and enumerations print otherwise
        return repr(value) if type(value).__module__ in ("builtins", "torch") else repr(_plain(value))
    if isinstance(value, torch.device):
        return f'torch.device("{value}")'
    if type(value) in (tuple, torch.Size):
        inside = ", ".join(map(text, value))
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if type(value) is list:
        return f"[{', '.join(map(text, value))}]"
    raise NotConstructibleError(f"{type(value).__name__} is no constant")


def _plain(value: Any) -> Any:
    kinds: tuple[Callable[[Any], Any], ...] = (int, float, complex, str)
    return next((kind(value) for kind in kinds if isinstance(value, kind)), value)  # type: ignore[arg-type]
