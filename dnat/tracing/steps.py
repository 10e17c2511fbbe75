"""What a forward does, as data: steps on values that are known by a number, on tensors that a module holds, and on
constants. Two forwards that are numbered alike are equal when they do the same."""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

import torch


@dataclass(frozen=True)
class Ref:
    """A tensor, number or object that was made in a forward or given to it. In a trace each has its own number."""

    index: int


@dataclass(frozen=True)
class Attribute:
    """A parameter, a buffer or another tensor that a module holds, by its path."""

    path: str


@dataclass(frozen=True)
class Literal:
    """A constant, and its source."""

    text: str
    value: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Length:
    """A whole number that may be what `len` gave for a tensor, of which Python makes a plain number."""

    of: Ref
    value: int

    def constant(self) -> Literal:
        """The number, where it was no length."""
        return Literal(str(self.value), self.value)


@dataclass(frozen=True)
class Unknown:
    """Something that cannot be written down, and why."""

    why: str


@dataclass(frozen=True)
class Property:
    """A device or type that was read from a tensor."""

    of: Ref | Attribute
    name: str


@dataclass(frozen=True)
class Group:
    """A tuple, list, slice, dict, OrderedDict, a named tuple (kind is then its name), or another dict whose fields
    can be read as attributes (kind is "." and its name) of descriptions; `made` is its class."""

    kind: str
    items: "tuple[Description, ...]"
    keys: tuple[str, ...] = ()
    made: Any = field(default=None, compare=False, repr=False)

    def is_dict(self) -> bool:
        """Whether its items are found by their keys."""
        return self.kind in ("dict", "OrderedDict") or self.kind.startswith(".")


Description: TypeAlias = Ref | Attribute | Literal | Property | Length | Group | Unknown
T = TypeVar("T", Ref, Attribute, Unknown, Literal)


@dataclass(frozen=True)
class Step:
    """One thing that a forward does.

    Attributes:
        kind: "function" (of torch), "method" or "attribute" (of a tensor), "module", "shape", "number"
            (arithmetic), "decision" (a comparison of numbers, or a truth value, as it came out).
        target: the name of the function or operator, or the module's path.
        args: its positional arguments; a method's first is the tensor.
        kwargs: its keyword arguments.
        result: what it gives.
        grad: whether gradients were on.
        function: of a function, itself.
        call: of a module, the number of its call in the trace.
        given: of a module, its arguments by the names of its parameters.
        writes: "value" where it writes into a tensor of the forward, "state" into one that a module holds.
    """

    kind: str
    target: str
    args: tuple[Description, ...]
    kwargs: tuple[tuple[str, Description], ...]
    result: Description
    grad: bool = True
    function: Any = field(default=None, compare=False, repr=False)
    call: int | None = field(default=None, compare=False)
    given: "tuple[tuple[str, Description], ...]" = field(default=(), compare=False, repr=False)
    writes: str = field(default="", compare=False)

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

    def decisions(self) -> list[Step]:
        """The steps that are decisions."""
        return [step for step in self.steps if step.kind == "decision"]

    def free(self) -> Iterator[Ref]:
        """Values that it uses and neither makes nor is given."""
        known = set(parts((d for _, d in self.params), Ref))
        for step in self.steps:
            yield from (ref for ref in step.inputs() if ref not in known)
            known.update(parts([step.result], Ref))
        yield from (ref for ref in refs(self.result) if ref not in known)


def parts(descriptions: Iterable[Description], kind: type[T]) -> Iterator[T]:
    """What is of a kind in descriptions: values, attributes, what is unknown."""
    for description in descriptions:
        if isinstance(description, kind):
            yield description
        elif isinstance(description, Group):
            yield from parts(description.items, kind)
        elif isinstance(description, Property | Length):
            yield from parts([description.of], kind)


def refs(description: Description) -> Iterator[Ref]:
    """The values in a description."""
    return parts([description], Ref)


def changed(description: Description, change: Callable[[Description], Description]) -> Description:
    """A description with what is no group in it replaced; itself where nothing is."""
    if isinstance(description, Group):
        items = tuple(changed(item, change) for item in description.items)
        same = all(map(operator.is_, items, description.items))
        return description if same else replace(description, items=items)
    return change(description)


def changed_step(step: Step, change: Callable[[Description], Description]) -> Step:
    """A step with what is no group in its arguments and its result replaced; itself where nothing is."""
    args = tuple(changed(a, change) for a in step.args)
    kwargs = tuple((k, changed(v, change)) for k, v in step.kwargs)
    given = tuple((k, changed(v, change)) for k, v in step.given)
    result = changed(step.result, change)
    old = (*step.args, *(v for _, v in step.kwargs), *(v for _, v in step.given), step.result)
    if all(map(operator.is_, (*args, *(v for _, v in kwargs), *(v for _, v in given), result), old)):
        return step
    return replace(step, args=args, kwargs=kwargs, given=given, result=result)


def changed_body(body: Body, change: Callable[[Description], Description]) -> Body:
    """A body with what is no group in it replaced."""
    return Body(
        tuple((name, changed(d, change)) for name, d in body.params),
        tuple(changed_step(step, change) for step in body.steps),
        changed(body.result, change),
    )


def renamed(names: Mapping[Ref, Description]) -> Callable[[Description], Description]:
    """A change that puts other values in the place of some."""

    def change(description: Description) -> Description:
        if isinstance(description, Ref):
            return names.get(description, description)
        if isinstance(description, Property):
            of = change(description.of)
            assert isinstance(of, Ref | Attribute)
            return description if of is description.of else Property(of, description.name)
        if isinstance(description, Length):
            of = change(description.of)
            if of is description.of:
                return description
            return Length(of, description.value) if isinstance(of, Ref) else description.constant()
        return description

    return change


def renamed_step(step: Step, names: Mapping[Ref, Description]) -> Step:
    """A step with other values in the place of some."""
    return changed_step(step, renamed(names)) if names else step


def resolved_lengths(one: Body, other: Body) -> tuple[Body, Body]:
    """Two bodies, of fewer and of more images, in which each `Length` is a size if it differs, else a constant."""
    lengths: tuple[list[Length], list[Length]] = ([], [])
    for body, known in zip((one, other), lengths, strict=True):

        def note(description: Description, known: list[Length] = known) -> Description:
            if isinstance(description, Length):
                known.append(description)
            return description

        changed_body(body, note)
    if [a.of for a in lengths[0]] != [b.of for b in lengths[1]]:
        return one, other

    def resolved(body: Body) -> Body:
        sizes = iter([a.value != b.value for a, b in zip(*lengths, strict=True)])

        def change(description: Description) -> Description:
            if not isinstance(description, Length):
                return description
            return description.of if next(sizes) else description.constant()

        return changed_body(body, change)

    return resolved(one), resolved(other)


TRAINING = Literal("self.training")
"""True in train mode and False in eval mode."""


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
    return replace(a, args=args.items, kwargs=tuple(zip(keys, values.items, strict=True)))


def _joined(a: Description, b: Description) -> Description | None:
    if a == b:
        return a
    if a == Literal("True") and b == Literal("False"):
        return TRAINING
    if not (isinstance(a, Group) and isinstance(b, Group)):
        return None
    if (a.kind, a.keys, len(a.items)) != (b.kind, b.keys, len(b.items)):
        return None
    items = [_joined(x, y) for x, y in zip(a.items, b.items, strict=True)]
    return replace(a, items=tuple(i for i in items if i is not None)) if None not in items else None


def grouped(value: Any) -> tuple[str, tuple[Any, ...], tuple[str, ...]] | None:
    """Kind, items and keys of a Python structure; None of anything else."""
    kind = type(value)
    if kind is list:
        return "list", tuple(value), ()
    if kind is slice:
        return "slice", (value.start, value.stop, value.step), ()
    if kind in (tuple, torch.Size) or kind.__module__ == "torch.return_types":
        return "tuple", tuple(value), ()
    if isinstance(value, dict) and all(type(k) is str for k in value):
        if kind.__name__ in ("dict", "OrderedDict"):
            return kind.__name__, tuple(value.values()), tuple(value)
        if hasattr(value, "to_tuple"):  # what networks of transformers give
            return f".{kind.__name__}", tuple(value.values()), tuple(value)
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return kind.__name__, tuple(value), tuple(kind._fields)
    return None


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors in a Python structure, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    group = grouped(value)
    return [tensor for item in group[1] for tensor in tensors_in(item)] if group else []


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
    if kind.startswith("."):
        return type(value)(**dict(zip(keys, new, strict=True)))
    if keys:
        return type(value)(*new) if isinstance(value, tuple) else type(value)(zip(keys, new, strict=True))
    return list(new) if kind == "list" else torch.Size(new) if isinstance(value, torch.Size) else tuple(new)
