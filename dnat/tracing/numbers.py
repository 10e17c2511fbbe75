"""Numbers that remember where they come from: sizes of tensors, and what is computed from them.

Arithmetic is noted in the forward that does it. A comparison (and whatever makes a plain number of them) is
noted with its outcome, so that the written code can tell when another size would have gone another way.
"""

import math
import operator
from collections.abc import Callable
from typing import Any, Protocol

from .steps import Ref


class Notes(Protocol):
    """Who notes what is done with numbers."""

    def number(self, symbol: str, operands: tuple[Any, ...], value: Any) -> Any:
        """Note arithmetic; returns the result as a tracked number."""

    def decision(self, symbol: str, operands: tuple[Any, ...], holds: bool) -> None:
        """Note a comparison."""


class Tracked:
    """What tracked integers and floats have in common."""

    notes: Any
    ref: Ref


class Int(int, Tracked):
    """A tracked integer."""


class Float(float, Tracked):
    """A tracked float."""


def tracked(value: int | float, notes: Notes, ref: Ref) -> Any:
    """A number with a name."""
    number: Int | Float = Int(value) if isinstance(value, int) else Float(value)
    number.notes, number.ref = notes, ref
    return number


def plain(value: Any) -> Any:
    """A number without its memory; anything else as it is."""
    if isinstance(value, Int):
        return int.__int__(value)
    return float.__float__(value) if isinstance(value, Float) else value


def _binary(symbol: str, function: Callable[[Any, Any], Any], reflected: bool) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, int | float):
            return NotImplemented
        pair = (other, self) if reflected else (self, other)
        return self.notes.number(symbol, pair, function(*map(plain, pair)))

    return method


def _comparison(symbol: str, function: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def method(self: Any, other: Any) -> bool:
        if not isinstance(other, int | float):
            return NotImplemented
        holds = function(plain(self), plain(other))
        self.notes.decision(symbol, (self, other), holds)
        return holds

    return method


def _made_plain(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def method(self: Any) -> Any:
        self.notes.decision("==", (self, plain(self)), True)
        return function(plain(self))

    return method


def _unary(symbol: str, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def method(self: Any) -> Any:
        return self.notes.number(symbol, (self,), function(plain(self)))

    return method


_ARITHMETIC = {"add": "+", "sub": "-", "mul": "*", "floordiv": "//", "mod": "%", "truediv": "/", "pow": "**"}
_COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_CONVERSIONS: dict[str, Callable[[Any], Any]] = {
    "bool": bool, "int": int, "float": float, "round": round, "abs": abs, "trunc": math.trunc,
}  # fmt: skip

for _cls, _hash in ((Int, int.__hash__), (Float, float.__hash__)):
    for _name, _symbol in _ARITHMETIC.items():
        setattr(_cls, f"__{_name}__", _binary(_symbol, getattr(operator, _name), reflected=False))
        setattr(_cls, f"__r{_name}__", _binary(_symbol, getattr(operator, _name), reflected=True))
    for _name, _symbol in _COMPARISONS.items():
        setattr(_cls, f"__{_name}__", _comparison(_symbol, getattr(operator, _name)))
    for _name, _function in _CONVERSIONS.items():
        setattr(_cls, f"__{_name}__", _made_plain(_function))
    _cls.__hash__ = _hash  # type: ignore[method-assign]
    _cls.__neg__ = _unary("neg", operator.neg)  # type: ignore[method-assign]
for _name in ("floor", "ceil"):
    setattr(Float, f"__{_name}__", _unary(f"math.{_name}", getattr(math, _name)))
    setattr(Int, f"__{_name}__", lambda self: self)
