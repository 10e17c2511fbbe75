"""The steps of a forward -> its lines of Python.

A value takes the name of an input that is not needed any more (`x = self.conv1(x)`), so that memory is freed as it
was in the network's own code.
"""

import keyword
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from ..tracing.literals import text
from ..tracing.steps import Body, Description, Group, Ref, Step, refs
from .expressions import Expressions, is_identifier
from .layout import Expression, flat, laid_out, prefixed

_RESERVED = {"self", "torch", "nn", "F", "math", "os", "json", "slice", "getattr", "OrderedDict"}
_POOL = "yzuvwabcdegpqrst"
_SIZES = {1: "n", 2: "nc", 3: "ntc", 4: "nchw", 5: "ncdhw"}
_INPLACE = {"add_": "+=", "sub_": "-=", "mul_": "*=", "div_": "/="}


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
            key = text(description.keys[i]) if description.is_dict() else str(i)
            yield from _within(f"{place}[{key}]", item)


def _holds_dict(description: Description) -> bool:
    if not isinstance(description, Group):
        return False
    return description.is_dict() or any(map(_holds_dict, description.items))


class Forward:
    """Writes one body.

    Args:
        body: what is done.
        locate: gives the source for what stands at a path in the module.
        named: the named tuples that the file must define; new ones are added.
    """

    def __init__(self, body: Body, locate: Callable[[str], str], named: dict[str, tuple[str, ...]]) -> None:
        self.body = body
        self.steps = self._needed()
        self.uses = Counter(r for s in self.steps for r in s.inputs())
        self.uses.update(refs(body.result))
        self.inline = self._inlined()
        self.source = Expressions(locate, named, self.inline)
        self.names = self.source.names
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
        inlined: dict[Ref, Step] = {}
        for i, step in enumerate(self.steps):
            used = [r for r in refs(step.result) if self.uses[r]]
            if not step.is_number() or len(used) != 1 or self.uses[used[0]] != 1:
                continue
            rest = [s for s in self.steps[i + 1 :] if not s.is_number()]
            near = bool(rest) and used[0] in rest[0].inputs()
            if step.kind == "number" or near:
                inlined[used[0]] = step
        return inlined

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
                yield laid_out(prefixed("return ", self.source.expression(step)), indent)
                return
            if not step.is_number():
                if not step.grad and not quiet:
                    yield "with torch.no_grad():"
                quiet = not step.grad
            for line in self._statement(i, step, indent + 4 * quiet):
                yield "    " * quiet + line
        result = self.body.result
        bare = isinstance(result, Group) and result.kind == "tuple" and len(result.items) > 1
        source = self.source.text(result)
        yield f"return {source[1:-1] if bare else source}"

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
        expression = self.source.expression(step)
        last = dict.fromkeys(r for r in step.inputs() if self.last[r] == i and r in self.names)
        ending = [self.names[r] for r in last]
        self._end(i)
        if any(self.uses[r] for r in refs(step.result)):
            yield from self._assignment(step, expression, ending, indent)
        else:
            yield laid_out(expression, indent)

    def _writing(self, i: int, step: Step) -> str | None:
        """The line of a step that is a statement of its own: a check, `x[i] = y`, `x += y`."""
        if step.kind == "decision":
            line = f"expect({self.source.number(step)})"
        elif step.kind == "method" and step.target == "__setitem__":
            target, index, value = step.args
            line = f"{self.source.atom(target)}[{self.source.index(index)}] = {self.source.text(value)}"
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
        line = f"{name} {sign} {self.source.text(step.args[1])}"
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
