"""The forward of one module while it runs: its values by name, and its steps so far."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .construction import NotConstructibleError, text
from .numbers import Int, Tracked, plain, tracked
from .steps import Attribute, Description, Group, Literal, Property, Ref, Step, grouped, mapped

if TYPE_CHECKING:
    from .recorder import Recorder

_OPPOSITE = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "==": "!=", "!=": "=="}


class RefusedError(Exception):
    """A network whose forward cannot be written as a file of its own."""


class OpenError(Exception):
    """These modules cannot have a body of their own."""

    def __init__(self, paths: set[str]) -> None:
        super().__init__(", ".join(sorted(paths)))
        self.paths = paths


def located(error: Exception, scope: "Scope | None") -> Exception:
    """A refusal that says in which module's forward it was."""
    if not isinstance(error, RefusedError) or scope is None or getattr(error, "located", False):
        return error
    refusal = RefusedError(f"{scope.path or 'the network'} ({type(scope.module).__name__}): {error}")
    refusal.located = True  # type: ignore[attr-defined]
    return refusal


class Scope:
    """The forward of one module while it runs."""

    def __init__(self, recorder: "Recorder", module: nn.Module, path: str) -> None:
        self.recorder, self.module, self.path = recorder, module, path
        self.steps: list[Step] = []
        self.refs: dict[int, Ref] = {}
        self.reads: dict[tuple[str, Any], Ref | Attribute] = {}
        self.shapes: dict[int, tuple[Int, ...]] = {}
        self.held = recorder.held(module)
        self.count = 0

    def new(self) -> Ref:
        """The next value's name."""
        self.count += 1
        return Ref(self.count - 1)

    def bind(self, value: Any) -> Any:
        """Make tensors and tracked numbers in a structure values of this forward; returns them as such."""
        return mapped(value, self._bind)

    def _bind(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) in self.refs or id(value) in self.held:
                # Under a name of its own: what a layer returns unchanged in one mode, it may not in the other.
                value = self.recorder.alias(value)
            self.refs[id(value)] = self.new()
            self.recorder.keep(value, self)
        elif isinstance(value, Tracked):
            return tracked(plain(value), self, self.new())
        return value

    def number(self, symbol: str, operands: tuple[Any, ...], value: Any) -> Any:
        """Note arithmetic on tracked numbers."""
        if type(value) not in (int, float):
            return value
        self.recorder.expect(self)
        args = tuple(self.describe(o) for o in operands)
        result = tracked(value, self, self.new())
        self.steps.append(Step("number", symbol, args, (), result.ref))
        return result

    def decision(self, symbol: str, operands: tuple[Any, ...], holds: bool) -> None:
        """Note a comparison of tracked numbers."""
        if self.recorder.paused or not self.recorder.scopes:
            return
        self.recorder.expect(self)
        args = tuple(self.describe(o) for o in operands)
        step = Step("decision", symbol if holds else _OPPOSITE[symbol], args, (), Literal("None"))
        if step not in self.steps:
            self.steps.append(step)

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        """The sizes of a tensor, tracked unless a module holds it."""
        sizes = tuple(torch.Tensor.size(tensor))
        if id(tensor) in self.held and id(tensor) not in self.refs:
            return sizes
        self.recorder.sized = True
        known = self.shapes.get(id(tensor))
        if known is None or tuple(map(plain, known)) != sizes:
            known = tuple(tracked(n, self, self.new()) for n in sizes)
            self.shapes[id(tensor)] = known
            result = Group("tuple", tuple(n.ref for n in known))
            self.steps.append(Step("shape", "shape", (self.describe(tensor),), (), result))
        return known

    def add(self, kind: str, target: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Any:
        """Note a step whose arguments were these and whose result this is; returns the result to hand on."""
        described = tuple(self.describe(a) for a in args)
        named = tuple((k, self.describe(v)) for k, v in kwargs.items())
        result = self.bind(result)
        step = Step(kind, target, described, named, self.describe(result), torch.is_grad_enabled())
        self.steps.append(step)
        return result

    def describe(self, value: Any) -> Description:
        """A value of this forward, or a constant, as data.

        Raises:
            RefusedError: it is neither.
        """
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, Tracked):
            if value.scope is not self:
                self.recorder.opening(value.scope, self)
            return value.ref
        group = grouped(value)
        if group is not None:
            kind, items, keys = group
            return Group(kind, tuple(self.describe(i) for i in items), keys)
        return self._constant(value)

    def _tensor(self, value: Tensor) -> Description:
        if id(value) in self.refs:
            return self.refs[id(value)]
        if id(value) in self.held:
            return self._held(value)
        owner = self.recorder.owners.get(id(value))
        if owner is not None:
            self.recorder.opening(owner, self)
        if id(value) in self.recorder.held(self.recorder.network):
            self.recorder.opening(self.recorder.scopes[0], self)
        raise RefusedError(
            "it uses a tensor that neither torch's Python functions made nor a registered module holds"
        )

    def _held(self, value: Tensor) -> Description:
        place = self.held[id(value)]
        if isinstance(place, str):
            raise RefusedError(f"it keeps tensors in {place}: register them as buffers")
        if isinstance(place, Attribute) and id(value) not in self.recorder.registered:
            self.recorder.constants.add(f"{self.path}.{place.path}".lstrip("."))
        return place

    def _constant(self, value: Any) -> Description:
        for kind, of_kind in (("device", torch.device), ("dtype", torch.dtype)):
            if isinstance(value, of_kind):
                if (kind, value) in self.reads:
                    return Property(self.reads[kind, value], kind)
                if kind == "device" and self.refs and value == self.recorder.device:
                    return Property(next(iter(self.refs.values())), kind)
        try:
            return Literal(text(value))
        except NotConstructibleError:
            raise RefusedError(f"it hands a {type(value).__name__} on") from None


def held_by(module: nn.Module) -> dict[int, Attribute | Literal | str]:
    """{id: description} of the tensors that a module and its children hold; text where they have no name."""
    held: dict[int, Attribute | Literal | str] = {}
    for name, child in module.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        for key, value in _tensors(child):
            held.setdefault(id(value), Attribute(prefix + key))
    for child in module.modules():
        for key, value in vars(child).items():
            if not key.startswith("_") and isinstance(value, list | tuple | dict):
                for leaf in tree_leaves(value):
                    if isinstance(leaf, Tensor):
                        held.setdefault(id(leaf), _spelled(leaf, f"{type(child).__name__}.{key}"))
    return held


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers and plain tensors that are direct attributes of a module."""
    for values in (module._parameters, module._buffers, vars(module)):
        for key, value in values.items():
            if isinstance(value, Tensor):
                yield key, value


def _spelled(tensor: Tensor, where: str) -> Literal | str:
    if tensor.numel() > 16 or tensor.requires_grad:
        return where
    return Literal(f"torch.tensor({text(tensor.tolist())}, dtype={tensor.dtype})")
