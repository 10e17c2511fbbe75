"""The steps of a forward -> its lines of Python.

A value takes the name of an input that is not needed any more (`x = self.conv1(x)`), so that memory is freed as it
was in the network's own code.
"""

import inspect
import keyword
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch.nn import functional

from .construction import NotConstructibleError, text
from .layout import Expression, call, flat, laid_out, prefixed
from .steps import Attribute, Body, Description, Group, Literal, Property, Ref, Step, refs

_RESERVED = {"self", "torch", "nn", "F", "math", "os", "json", "slice", "getattr", "OrderedDict"}
_POOL = "yzuvwabcdegpqrst"
_SIZES = {1: "n", 2: "nc", 3: "ntc", 4: "nchw", 5: "ncdhw"}
_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "matmul": "@", "pow": "**", "floordiv": "//", "mod": "%",
    "truediv": "/", "eq": "==", "ne": "!=", "gt": ">", "lt": "<", "ge": ">=", "le": "<=", "and": "&", "or": "|",
    "xor": "^",
}  # fmt: skip
_INPLACE = {"add_": "+=", "sub_": "-=", "mul_": "*=", "div_": "/="}


def is_identifier(name: str) -> bool:
    """Whether something can be called so."""
    return name.isidentifier() and not keyword.iskeyword(name)


def variable(name: str) -> str:
    """A name for a variable that hides nothing."""
    return f"{name}_" if name in _RESERVED or keyword.iskeyword(name) else name


def leaves(params: Iterable[tuple[str, Description]]) -> Iterator[tuple[str, Ref]]:
    """Where the values of a forward's parameters are found: `x`, `x[0]`, `x["mask"]`."""
    for name, description in params:
        yield from _within(variable(name), description)


def _within(place: str, description: Description) -> Iterator[tuple[str, Ref]]:
    if isinstance(description, Ref):
        yield place, description
    elif isinstance(description, Group) and description.kind != "slice":
        for i, item in enumerate(description.items):
            key = text(description.keys[i]) if description.kind in ("dict", "OrderedDict") else str(i)
            yield from _within(f"{place}[{key}]", item)


def _holds_dict(description: Description) -> bool:
    if not isinstance(description, Group):
        return False
    return description.kind in ("dict", "OrderedDict") or any(map(_holds_dict, description.items))


class Forward:
    """Writes one body.

    Args:
        body: what is done.
        locate: gives the source for what stands at a path in the module.
        named: the named tuples that the file must define; new ones are added.
    """

    def __init__(self, body: Body, locate: Callable[[str], str], named: dict[str, tuple[str, ...]]) -> None:
        self.body, self.locate, self.named = body, locate, named
        self.names: dict[Ref, str] = {}
        self.steps = self._needed()
        self.uses = Counter(r for s in self.steps for r in s.inputs())
        self.uses.update(refs(body.result))
        self.inline = self._inlined()
        self.hidden = {id(step) for step in self.inline.values()}
        self.last: dict[Ref, int] = {}
        for i, step in enumerate(self.steps):
            if id(step) not in self.hidden:
                self.last |= dict.fromkeys(self._reached(step.inputs()), i)
        self.last |= dict.fromkeys(self._reached(refs(body.result)), len(self.steps))

    def _needed(self) -> list[Step]:
        """The steps without sizes that nobody uses."""
        needed = set(refs(self.body.result))
        kept = []
        for step in reversed(self.body.steps):
            if not (step.is_number() or step.kind == "attribute") or needed & set(refs(step.result)):
                kept.append(step)
                needed |= set(step.inputs())
        return kept[::-1]

    def _inlined(self) -> dict[Ref, Step]:
        """Numbers that are used once, and so are written where they are used."""
        found: dict[Ref, Step] = {}
        for i, step in enumerate(self.steps):
            used = [r for r in refs(step.result) if self.uses[r]]
            if not step.is_number() or len(used) != 1 or self.uses[used[0]] != 1:
                continue
            rest = [s for s in self.steps[i + 1 :] if not s.is_number()]
            near = bool(rest) and used[0] in rest[0].inputs()
            if step.kind == "number" or near:
                found[used[0]] = step
        return found

    def _reached(self, refs: Iterable[Ref]) -> Iterator[Ref]:
        """Values and what they are computed from where they stand."""
        for ref in refs:
            yield ref
            if ref in self.inline:
                yield from self._reached(self.inline[ref].inputs())

    def lines(self, indent: int) -> Iterator[str]:
        """The lines of the body, which stands indented as it is."""
        yield from self._named_inputs()
        quiet = False
        for i, step in enumerate(self.steps):
            if id(step) in self.hidden:
                continue
            if i == len(self.steps) - 1 and self._is_returned(step):
                yield laid_out(prefixed("return ", self._expression(step)), indent)
                return
            if not step.is_number():
                if not step.grad and not quiet:
                    yield "with torch.no_grad():"
                quiet = not step.grad
            for line in self._statement(i, step, indent + 4 * quiet):
                yield "    " * quiet + line
        result = self.body.result
        bare = isinstance(result, Group) and result.kind == "tuple" and len(result.items) > 1
        made = self._text(result)
        yield f"return {made[1:-1] if bare else made}"

    def _named_inputs(self) -> Iterator[str]:
        for place, ref in leaves(self.body.params):
            if ref in self.last:
                self.names[ref] = place
        for ref, place in list(self.names.items()):
            if not is_identifier(place):
                self.names[ref] = self._fresh(_POOL)
                yield f"{self.names[ref]} = {place}"

    def _is_returned(self, step: Step) -> bool:
        writes = step.target == "__setitem__" or step.target in _INPLACE
        return isinstance(step.result, Ref) and step.result == self.body.result and step.grad and not writes

    def _statement(self, i: int, step: Step, indent: int) -> Iterator[str]:
        writing = self._writing(i, step)
        if writing is not None:
            yield writing
            return
        expression = self._expression(step)
        ending = [self.names[r] for r in step.inputs() if self.last[r] == i and r in self.names]
        self._end(i)
        if any(self.uses[r] for r in refs(step.result)):
            yield from self._assignment(step, expression, ending, indent)
        else:
            yield laid_out(expression, indent)

    def _writing(self, i: int, step: Step) -> str | None:
        """The line of a step that is a statement of its own: a check, `x[i] = y`, `x += y`."""
        if step.kind == "decision":
            line = f"expect({self._number(step)})"
        elif step.kind == "method" and step.target == "__setitem__":
            target, index, value = step.args
            line = f"{self._atom(target)}[{self._index(index)}] = {self._text(value)}"
        else:
            return self._added(i, step)
        self._end(i)
        return line

    def _added(self, i: int, step: Step) -> str | None:
        sign = (
            _INPLACE.get(step.target)
            if step.kind == "method" and len(step.args) == 2 and not step.kwargs
            else None
        )
        target = step.args[0] if sign else None
        used = any(self.uses[r] for r in refs(step.result))
        if not (isinstance(target, Ref) and (self.last[target] == i or not used)):
            return None  # the tensor is needed under both names
        name = self.names[target]
        line = f"{name} {sign} {self._text(step.args[1])}"
        self._end(i)
        if used and isinstance(step.result, Ref):
            self.names[step.result] = name
        return line

    def _assignment(self, step: Step, expression: Expression, ending: list[str], indent: int) -> Iterator[str]:
        if step.is_number():
            pool = _SIZES.get(len(step.result.items), "") if isinstance(step.result, Group) else "k"
            pattern = self._pattern(step.result, [], list(pool) or None)
        elif _holds_dict(step.result):
            name = self._fresh(_POOL)
            yield laid_out(prefixed(f"{name} = ", expression), indent)
            for place, ref in _within(name, step.result):
                if self.uses[ref]:
                    self.names[ref] = self._fresh(_POOL, {name})
                    yield f"{self.names[ref]} = {place}"
            return
        else:
            pattern = self._pattern(step.result, ending, None)
        used = [r for r in refs(step.result) if self.uses[r]]
        if step.kind == "shape" and len(used) == 1:
            at = list(refs(step.result)).index(used[0])
            pattern, expression = self.names[used[0]], f"{flat(expression)}[{at}]"
        yield laid_out(prefixed(f"{pattern} = ", expression), indent)

    def _pattern(self, result: Description, ending: list[str], pool: list[str] | None, depth: int = 0) -> str:
        """The left side of an assignment."""
        if isinstance(result, Ref):
            if not self.uses[result]:
                return "_"
            self.names[result] = ending.pop(0) if ending else self._fresh(pool.pop(0) if pool else _POOL)
            return self.names[result]
        if not isinstance(result, Group):
            return "_"
        parts = []
        for item in result.items:
            if pool and isinstance(item, Ref) and not self.uses[item]:
                pool.pop(0)
            parts.append(self._pattern(item, ending, pool, depth + 1))
        inside = ", ".join(parts) + ("," if len(parts) == 1 else "")
        return f"({inside})" if depth else inside

    def _fresh(self, pool: str, more: Iterable[str] = ()) -> str:
        taken = {*self.names.values(), *more, *_RESERVED}
        n = 1
        while True:
            for letter in pool:
                name = letter if n == 1 else f"{letter}{n}"
                if name not in taken:
                    return name
            n += 1

    def _end(self, i: int) -> None:
        """Forget the names of what was used for the last time."""
        for ref in [r for r in self.names if self.last.get(r, -1) <= i]:
            del self.names[ref]

    # Expressions

    def _expression(self, step: Step) -> Expression:
        args, kwargs = list(step.args), dict(step.kwargs)
        if step.kind == "shape":
            return f"{self._atom(args[0])}.shape"
        if step.kind == "attribute":
            return f"{self._atom(args[0])}.{step.target}"
        if step.kind == "number":
            return self._number(step)
        if step.kind == "module":
            return self._call(self.locate(step.target), args, kwargs)
        if step.kind == "function":
            head = step.target.replace("torch.nn.functional.", "F.")
            return self._call(head, args, _without_defaults(step.target, args, kwargs))
        return self._operator(step) or self._call(f"{self._atom(args[0])}.{step.target}", args[1:], kwargs)

    def _call(self, head: str, args: list[Description], kwargs: dict[str, Description]) -> Expression:
        return call(head, [*map(self._text, args), *(f"{k}={self._text(v)}" for k, v in kwargs.items())])

    def _number(self, step: Step) -> str:
        if len(step.args) == 1:
            inside = self._atom(step.args[0])
            return f"-{inside}" if step.target == "neg" else f"{step.target}({inside})"
        left, right = map(self._atom, step.args)
        return f"{left} {step.target} {right}"

    def _operator(self, step: Step) -> str | None:
        """A method of a tensor as an operator, if it is one."""
        name = step.target.strip("_") if step.target.startswith("__") else step.target
        args = list(step.args)
        if name == "getitem":
            return f"{self._atom(args[0])}[{self._index(args[1])}]"
        if step.kwargs or (step.target.endswith("_") and not step.target.endswith("__")):
            return None
        if name == "neg" and len(args) == 1:
            return f"-{self._atom(args[0])}"
        if len(args) == 2 and name in _INFIX:
            return f"{self._atom(args[0])} {_INFIX[name]} {self._atom(args[1])}"
        if len(args) == 2 and name[1:] in _INFIX and name.startswith("r") and step.target.startswith("__"):
            return f"{self._atom(args[1])} {_INFIX[name[1:]]} {self._atom(args[0])}"
        return None

    def _atom(self, description: Description) -> str:
        """A value as an operand."""
        made = self._text(description)
        simple = isinstance(description, Attribute | Property | Group) or description in self.names
        number = isinstance(description, Literal) and not made.startswith("-")
        inlined = isinstance(description, Ref) and description in self.inline and " " not in made
        return made if simple or number or inlined else f"({made})"

    def _text(self, description: Description) -> str:
        if isinstance(description, Literal):
            return description.text
        if isinstance(description, Attribute):
            return self.locate(description.path)
        if isinstance(description, Property):
            return f"{self._text(description.of)}.{description.name}"
        if isinstance(description, Group):
            return self._group(description)
        if description in self.inline:
            step = self.inline[description]
            made = flat(self._expression(step))
            at = list(refs(step.result)).index(description)
            return f"{made}[{at}]" if step.kind == "shape" else made
        return self.names[description]

    def _group(self, group: Group) -> str:
        items = [self._text(i) for i in group.items]
        if group.kind == "tuple":
            return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
        if group.kind == "list":
            return f"[{', '.join(items)}]"
        if group.kind == "slice":
            return f"slice({', '.join(items)})"
        if group.kind in ("dict", "OrderedDict"):
            inside = ", ".join(f"{text(k)}: {i}" for k, i in zip(group.keys, items, strict=True))
            return f"{{{inside}}}" if group.kind == "dict" else f"OrderedDict({{{inside}}})"
        self.named[group.kind] = group.keys
        return f"{group.kind}({', '.join(items)})"

    def _index(self, description: Description) -> str:
        if isinstance(description, Group) and description.kind == "slice":
            start, stop, step = ("" if i == Literal("None") else self._text(i) for i in description.items)
            return f"{start}:{stop}:{step}" if step else f"{start}:{stop}"
        if isinstance(description, Group) and description.kind == "tuple" and description.items:
            comma = "," if len(description.items) == 1 else ""
            return ", ".join(map(self._index, description.items)) + comma
        return "..." if description == Literal("Ellipsis") else self._text(description)


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
