"""The forward of one module while it runs: its values by name, and its steps so far."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .literals import NotConstructibleError, text
from .names import Names
from .numbers import Int, Notes, Tracked, plain, tracked
from .steps import (
    Attribute,
    Body,
    Description,
    Group,
    Length,
    Literal,
    Property,
    Ref,
    Step,
    Unknown,
    grouped,
    mapped,
)
from .surroundings import is_layer, learning

OPPOSITE = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "==": "!=", "!=": "=="}
"""What holds where a comparison does not."""


class Scope:
    """The forward of one module while it runs.

    Args:
        names: of the run.
        notes: who notes what is done with sizes.
        module, path: whose forward it is.
        call: the number of the call.
    """

    def __init__(self, names: Names, notes: Notes, module: nn.Module, path: str, call: int) -> None:
        self.names, self.notes, self.module, self.path, self.call = names, notes, module, path, call
        self.refs: dict[int, Ref] = {}
        self.params: tuple[tuple[str, Description], ...] = ()
        self.steps: list[Step] = []
        self.decided: set[Step] = set()
        self.shapes: dict[int, tuple[Int, ...]] = {}
        self.lengths: dict[int, Ref] = {}
        self.reads: dict[tuple[str, Any], Ref | Attribute] = {}
        self.why = ""
        self.given: tuple[Any, ...] = ((), {}, ())
        self.drawn: Any = None

    def refuse(self, why: str) -> None:
        """Note why this forward cannot be written as steps; the first reason counts."""
        self.why = self.why or why

    def body(self, result: Any) -> Body:
        """What the forward did, which gives this."""
        return Body(self.params, tuple(self.steps), self.describe(result))

    def name(self, value: Any) -> Ref:
        """A new name for a tensor or an object."""
        ref = self.names.new(value)
        self.refs[id(value)] = self.names.owners[id(value)] = ref
        return ref

    def enter(self, value: Any) -> Any:
        """Name what is given to the forward; numbers come back as its own."""
        return mapped(value, self._entered)

    def _entered(self, value: Any) -> Any:
        if isinstance(value, Tracked):
            return tracked(plain(value), self.notes, self.names.new())
        if isinstance(value, Tensor) and id(value) in self.refs and not is_layer(self.module):
            value = self.names.flow.alias(value)  # given twice, and perhaps two things another time
        if isinstance(value, Tensor) or isinstance(self._constant(value), Unknown):
            self.name(value)
        return value

    def add(
        self,
        kind: str,
        target: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any,
        *,
        function: Any = None,
        written: Collection[int] = (),
        writes: str = "",
    ) -> Any:
        """Note a step whose arguments were these and whose result this is; returns the result to hand on.

        Args:
            kind, target, args, kwargs, function, writes: see `Step`.
            result: what it gave.
            written: ids of tensors that it wrote into.
        """
        described = tuple(self.describe(a) for a in args)
        named = tuple((k, self.describe(v)) for k, v in kwargs.items())
        result = self.made(result, written)
        step = Step(kind, target, described, named, self.describe(result), learning())
        self.steps.append(replace(step, function=function, writes=writes))
        return result

    def called(self, inner: "Scope", result: Any) -> Any:
        """Note the call of a module, whose forward this was; returns the result to hand on."""
        args, kwargs, given = inner.given
        result = self.made(result)
        described = self.describe(result)
        step = Step("module", inner.path, args, tuple(kwargs.items()), described, learning())
        self.steps.append(replace(step, call=inner.call, given=given))
        return result

    def made(self, result: Any, written: Collection[int] = ()) -> Any:
        """Name what a step gave.

        What it gives back as it came is handed on as an alias, under a name of its own: what a layer returns
        unchanged in one mode, it may not in the other.
        """

        def name(value: Any) -> Any:
            if isinstance(value, Tensor):
                if id(value) not in written and (id(value) in self.refs or self._held(value) is not None):
                    value = self.names.flow.alias(value)
                self.name(value)
            elif isinstance(value, Tracked):
                return tracked(plain(value), self.notes, self.names.new())
            return value

        return mapped(result, name)

    def number(self, symbol: str, operands: tuple[Any, ...], value: int | float) -> Any:
        """Note arithmetic on tracked numbers."""
        args = tuple(self.describe(o) for o in operands)
        result = tracked(value, self.notes, self.names.new())
        self.steps.append(Step("number", symbol, args, (), result.ref))
        return result

    def decision(self, symbol: str, operands: tuple[Any, ...], holds: bool) -> None:
        """Note a comparison of tracked numbers."""
        args = tuple(self.describe(o) for o in operands)
        step = Step("decision", symbol if holds else OPPOSITE[symbol], args, (), Literal("None"))
        if step not in self.decided:
            self.decided.add(step)
            self.steps.append(step)

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        """The sizes of a tensor, tracked unless a module holds it."""
        sizes = tuple(torch.Tensor.size(tensor))
        if self._is_held(tensor):
            return sizes
        known = self.shapes.get(id(tensor))
        if known is None or tuple(map(plain, known)) != sizes:
            known = tuple(tracked(n, self.notes, self.names.new()) for n in sizes)
            self.shapes[id(tensor)] = known
            result = Group("tuple", tuple(n.ref for n in known))
            self.steps.append(Step("shape", "shape", (self.describe(tensor),), (), result))
        return known

    def describe(self, value: Any) -> Description:
        """A value of a forward, or a constant, as data; `Unknown` where it is neither."""
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, Tracked):
            return value.ref
        group = grouped(value)
        if group is not None:
            kind, items, keys = group
            return Group(kind, tuple(self.describe(i) for i in items), keys, type(value))
        return self._constant(value)

    def _tensor(self, value: Tensor) -> Description:
        if id(value) in self.refs:
            return self.refs[id(value)]
        held = self._held(value)
        if held is not None:
            return held
        owned = self.names.owners.get(id(value))
        if owned is not None:
            return owned
        return Unknown("it uses a tensor that neither torch's Python functions made nor a registered module holds")

    def _held(self, value: Tensor) -> Description | None:
        return self.names.held.get(id(value))

    def _is_held(self, value: Tensor) -> bool:
        return id(value) not in self.refs and self._held(value) is not None

    def _constant(self, value: Any) -> Description:
        if type(value) is int and value in self.lengths:
            return Length(self.lengths[value], value)
        for kind, of_kind in (("device", torch.device), ("dtype", torch.dtype)):
            if isinstance(value, of_kind):
                if (kind, value) in self.reads:
                    return Property(self.reads[kind, value], kind)
                if kind == "device" and self.refs and value == self.names.device:
                    return Property(next(iter(self.refs.values())), kind)
        try:
            return Literal(text(value), value)
        except NotConstructibleError:
            known = self.refs.get(id(value)) or self.names.owners.get(id(value))
            return known or Unknown(f"it hands a {type(value).__name__} on")
