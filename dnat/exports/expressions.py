"""Steps and values of a forward -> expressions of Python."""

import inspect
import keyword
from collections.abc import Callable
from typing import Any

from torch.nn import functional

from ..tracing.literals import NotConstructibleError, text
from ..tracing.steps import Attribute, Description, Group, Length, Literal, Property, Ref, Step, refs
from .layout import Expression, call, flat

_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "matmul": "@", "pow": "**", "floordiv": "//", "mod": "%",
    "truediv": "/", "eq": "==", "ne": "!=", "gt": ">", "lt": "<", "ge": ">=", "le": "<=", "and": "&", "or": "|",
    "xor": "^",
}  # fmt: skip


def is_identifier(name: str) -> bool:
    """Whether something can be called so."""
    return name.isidentifier() and not keyword.iskeyword(name)


class Expressions:
    """Writes values as they are called at the moment.

    Args:
        locate: gives the source for what stands at a path in the module.
        named: the named tuples that the file must define; new ones are added.
        inline: numbers that are written where they are used.

    Attributes:
        names: what values are called; whoever writes the lines keeps it.
    """

    def __init__(
        self, locate: Callable[[str], str], named: dict[str, tuple[str, ...]], inline: dict[Ref, Step]
    ) -> None:
        self.locate, self.named, self.inline = locate, named, inline
        self.names: dict[Ref, str] = {}

    def expression(self, step: Step) -> Expression:
        """What a step computes."""
        args, kwargs = list(step.args), dict(step.kwargs)
        if step.kind == "shape":
            return f"{self.atom(args[0])}.shape"
        if step.kind == "attribute":
            return f"{self.atom(args[0])}.{step.target}"
        if step.kind == "number":
            return self.number(step)
        if step.kind == "module":
            return self._call(self.locate(step.target), args, kwargs)
        if step.kind == "function":
            head = step.target.replace("torch.nn.functional.", "F.")
            return self._call(head, args, _without_defaults(step.target, args, kwargs))
        return self._operator(step) or self._call(f"{self.atom(args[0])}.{step.target}", args[1:], kwargs)

    def _call(self, head: str, args: list[Description], kwargs: dict[str, Description]) -> Expression:
        return call(head, [*map(self.text, args), *(f"{k}={self.text(v)}" for k, v in kwargs.items())])

    def number(self, step: Step) -> str:
        """Arithmetic or a comparison of numbers, or what a truth value must be."""
        if step.target in ("true", "false"):
            return f'{"not " * (step.target == "false")}{self.atom(step.args[0])}, "kind"'
        if len(step.args) == 1:
            inside = self.atom(step.args[0])
            return f"-{inside}" if step.target == "neg" else f"{step.target}({inside})"
        left, right = map(self.atom, step.args)
        return f"{left} {step.target} {right}"

    def _operator(self, step: Step) -> str | None:
        """A method of a tensor as an operator, if it is one."""
        name = step.target.strip("_") if step.target.startswith("__") else step.target
        args = list(step.args)
        if name == "getitem":
            return f"{self.atom(args[0])}[{self.index(args[1])}]"
        if step.kwargs or (step.target.endswith("_") and not step.target.endswith("__")):
            return None
        if name == "neg" and len(args) == 1:
            return f"-{self.atom(args[0])}"
        if len(args) == 2 and name in _INFIX:
            return f"{self.atom(args[0])} {_INFIX[name]} {self.atom(args[1])}"
        if len(args) == 2 and name[1:] in _INFIX and name.startswith("r") and step.target.startswith("__"):
            return f"{self.atom(args[1])} {_INFIX[name[1:]]} {self.atom(args[0])}"
        return None

    def atom(self, description: Description) -> str:
        """A value as an operand."""
        source = self.text(description)
        simple = isinstance(description, Attribute | Property | Group) or description in self.names
        number = isinstance(description, Literal) and not source.startswith("-")
        inlined = isinstance(description, Ref) and description in self.inline and " " not in source
        return source if simple or number or inlined else f"({source})"

    def text(self, description: Description) -> str:
        """A value as source."""
        if isinstance(description, Literal):
            return description.text
        if isinstance(description, Attribute):
            return self.locate(description.path)
        if isinstance(description, Length):
            return str(description.value)
        if isinstance(description, Property):
            return f"{self.text(description.of)}.{description.name}"
        if isinstance(description, Group):
            return self._group(description)
        if description in self.inline:
            step = self.inline[description]
            source = flat(self.expression(step))
            at = list(refs(step.result)).index(description)
            return f"{source}[{at}]" if step.kind == "shape" else source
        assert isinstance(description, Ref), description
        return self.names[description]

    def _group(self, group: Group) -> str:
        items = [self.text(i) for i in group.items]
        if group.kind == "tuple":
            return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
        if group.kind == "list":
            return f"[{', '.join(items)}]"
        if group.kind == "slice":
            return f"slice({', '.join(items)})"
        if group.kind in ("dict", "OrderedDict"):
            inside = ", ".join(f"{text(k)}: {i}" for k, i in zip(group.keys, items, strict=True))
            return f"{{{inside}}}" if group.kind == "dict" else f"OrderedDict({{{inside}}})"
        if group.kind.startswith("."):
            return f"Output({', '.join(f'{k}={i}' for k, i in zip(group.keys, items, strict=True))})"
        self.named[group.kind] = group.keys
        return f"{group.kind}({', '.join(items)})"

    def index(self, description: Description) -> str:
        """A value between square brackets."""
        if isinstance(description, Group) and description.kind == "slice":
            start, stop, step = ("" if i == Literal("None") else self.text(i) for i in description.items)
            return f"{start}:{stop}:{step}" if step else f"{start}:{stop}"
        if isinstance(description, Group) and description.kind == "tuple" and description.items:
            comma = "," if len(description.items) == 1 else ""
            return ", ".join(map(self.index, description.items)) + comma
        return "..." if description == Literal("Ellipsis") else self.text(description)


def _without_defaults(
    name: str, args: list[Description], kwargs: dict[str, Description]
) -> dict[str, Description]:
    """Keyword arguments but for those that are the function's defaults."""
    if not name.startswith("torch.nn.functional."):
        return kwargs
    short = name.rpartition(".")[2]
    # max_pool2d and its like choose between two functions and have no signature of their own.
    function: Any = getattr(functional, short)
    if not inspect.isbuiltin(function) and "args" in inspect.signature(function).parameters:
        function = getattr(functional, f"_{short}", function)
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return kwargs
    return {k: v for k, v in kwargs.items() if not (k in parameters and _is_default(v, parameters[k].default))}


def _is_default(value: Description, default: Any) -> bool:
    try:
        return value == Literal(text(default))
    except NotConstructibleError:
        return False
