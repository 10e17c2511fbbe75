"""What a forward does, as data: steps on values that are known by their order, on tensors that a module holds, and
on constants. Two such forwards are equal when they do the same."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch


@dataclass(frozen=True)
class Ref:
    """A tensor or number made in a forward, or given to it; counted in order of appearance."""

    index: int


@dataclass(frozen=True)
class Attribute:
    """A parameter, a buffer or another tensor that a module holds, by its path in the module."""

    path: str


@dataclass(frozen=True)
class Literal:
    """A constant, as source."""

    text: str


@dataclass(frozen=True)
class Property:
    """A device or type that was read from a tensor."""

    of: Ref | Attribute
    name: str


@dataclass(frozen=True)
class Group:
    """A tuple, list, slice, dict, OrderedDict, or a named tuple (kind is then its name) of descriptions."""

    kind: str
    items: "tuple[Description, ...]"
    keys: tuple[str, ...] = ()


Description: TypeAlias = Ref | Attribute | Literal | Property | Group


@dataclass(frozen=True)
class Step:
    """One thing that a forward does.

    Attributes:
        kind: "function" (of torch), "method" or "attribute" (of a tensor), "module", "shape", "number"
            (arithmetic), "decision" (a comparison of numbers, as it came out).
        target: the name of the function or operator, or the module's path.
        args: its positional arguments; a method's first is the tensor.
        kwargs: its keyword arguments.
        result: what it gives.
        grad: whether gradients were on.
    """

    kind: str
    target: str
    args: tuple[Description, ...]
    kwargs: tuple[tuple[str, Description], ...]
    result: Description
    grad: bool = True

    def inputs(self) -> Iterator[Ref]:
        """The values that it reads."""
        for description in (*self.args, *(v for _, v in self.kwargs)):
            yield from refs(description)

    def is_number(self) -> bool:
        """Whether it gives numbers and no tensors."""
        return self.kind in ("number", "shape") or (self.kind, self.target) == ("method", "numel")


@dataclass(frozen=True)
class Body:
    """A forward: its parameters by name, its steps, its result."""

    params: tuple[tuple[str, Description], ...]
    steps: tuple[Step, ...]
    result: Description


@dataclass
class Recording:
    """What a network does in both modes.

    Attributes:
        bodies: {module path: (in train mode, in eval mode)}; None where it was not called.
        constants: paths of tensors that modules hold as plain attributes.
        fixed: what of the inputs' shapes must be as in the example: "" nothing, "size" all but the batch, "batch"
            everything.
    """

    bodies: dict[str, tuple[Body | None, Body | None]]
    constants: set[str] = field(default_factory=set)
    fixed: str = ""

    def decides(self) -> bool:
        """Whether sizes decide what is done."""
        bodies = (b for both in self.bodies.values() for b in both if b is not None)
        return any(step.kind == "decision" for body in bodies for step in body.steps)


def refs(description: Description) -> Iterator[Ref]:
    """The values in a description."""
    if isinstance(description, Ref):
        yield description
    elif isinstance(description, Group):
        for item in description.items:
            yield from refs(item)
    elif isinstance(description, Property):
        yield from refs(description.of)


def mapped_literals(body: Body, change: Callable[[Literal], Description]) -> Body:
    """A body with every constant in its steps replaced."""

    def change_in(description: Description) -> Description:
        if isinstance(description, Group):
            return Group(description.kind, tuple(map(change_in, description.items)), description.keys)
        return change(description) if isinstance(description, Literal) else description

    def change_step(step: Step) -> Step:
        args = tuple(map(change_in, step.args))
        return replace(step, args=args, kwargs=tuple((k, change_in(v)) for k, v in step.kwargs))

    return replace(body, steps=tuple(map(change_step, body.steps)))


def unified(train: Body, evaluation: Body) -> Body | None:
    """One body for both modes, where they differ in flags only; None where they differ in more."""
    if train.params != evaluation.params or train.result != evaluation.result:
        return None
    steps = [_unified(a, b) for a, b in zip(train.steps, evaluation.steps, strict=False)]
    if len(train.steps) != len(evaluation.steps) or None in steps:
        return None
    return Body(train.params, tuple(s for s in steps if s is not None), train.result)


def _unified(a: Step, b: Step) -> Step | None:
    if (a.kind, a.target, a.result, a.grad) != (b.kind, b.target, b.result, b.grad):
        return None
    keys = tuple(k for k, _ in a.kwargs)
    if keys != tuple(k for k, _ in b.kwargs):
        return None
    args = _joined(Group("", a.args), Group("", b.args))
    values = _joined(Group("", tuple(v for _, v in a.kwargs)), Group("", tuple(v for _, v in b.kwargs)))
    if not (isinstance(args, Group) and isinstance(values, Group)):
        return None
    return Step(a.kind, a.target, args.items, tuple(zip(keys, values.items, strict=True)), a.result, a.grad)


def _joined(a: Description, b: Description) -> Description | None:
    if a == b:
        return a
    if a == Literal("True") and b == Literal("False"):
        return Literal("self.training")
    if not (isinstance(a, Group) and isinstance(b, Group)):
        return None
    if (a.kind, a.keys, len(a.items)) != (b.kind, b.keys, len(b.items)):
        return None
    items = [_joined(x, y) for x, y in zip(a.items, b.items, strict=True)]
    return Group(a.kind, tuple(i for i in items if i is not None), a.keys) if None not in items else None


def grouped(value: Any) -> tuple[str, tuple[Any, ...], tuple[str, ...]] | None:
    """Kind, items and keys of a Python structure; None of anything else."""
    kind = type(value)
    if kind is list:
        return "list", tuple(value), ()
    if kind is slice:
        return "slice", (value.start, value.stop, value.step), ()
    if kind in (tuple, torch.Size) or kind.__module__ == "torch.return_types":
        return "tuple", tuple(value), ()
    if isinstance(value, dict):
        fits = kind.__name__ in ("dict", "OrderedDict") and all(type(k) is str for k in value)
        return (kind.__name__, tuple(value.values()), tuple(value)) if fits else None
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return kind.__name__, tuple(value), tuple(kind._fields)
    return None


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """A Python structure with a function applied to its leaves; the very same object where nothing changed."""
    group = grouped(value)
    if group is None:
        return function(value)
    kind, items, keys = group
    new = [mapped(i, function) for i in items]
    if all(a is b for a, b in zip(new, items, strict=True)):
        return value
    if kind == "slice":
        return slice(*new)
    if keys:
        return type(value)(*new) if isinstance(value, tuple) else type(value)(zip(keys, new, strict=True))
    return list(new) if kind == "list" else torch.Size(new) if isinstance(value, torch.Size) else tuple(new)
