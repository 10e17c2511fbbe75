"""Modules that do the same -> one class; constants in which they differ are given to each by name."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from ..tracing.literals import NotConstructibleError, text
from ..tracing.steps import Body, Description, Literal, changed_body

_FIXED = {"None", "True", "False", "Ellipsis", "self.training"}
_BLANK = Literal("")


@dataclass(frozen=True)
class Design:
    """How a module is written.

    Attributes:
        bodies: its forward, or that of train and that of eval mode.
        constants: {name: source} of what it is given beside its parts.
    """

    bodies: tuple[Body, ...]
    constants: dict[str, str] = field(default_factory=dict)


def designs(bodies: Mapping[nn.Module, tuple[Body, ...]], root: nn.Module) -> dict[nn.Module, Design]:
    """The design of every module; the root is on its own."""
    designs = {module: Design(own) for module, own in bodies.items()}
    alike: defaultdict[tuple[str, tuple[Body, ...]], list[nn.Module]] = defaultdict(list)
    for module, own in bodies.items():
        if module is not root:
            blank = tuple(changed_body(b, lambda x: _BLANK if _is_free(x) else x) for b in own)
            alike[type(module).__name__, blank].append(module)
    for modules in alike.values():
        designs |= _shared(modules, bodies)
    return designs


def _is_free(description: Description) -> bool:
    if not isinstance(description, Literal):
        return False
    return description.text not in _FIXED and not description.text.startswith("torch")


def _shared(
    modules: list[nn.Module], bodies: Mapping[nn.Module, tuple[Body, ...]]
) -> Iterator[tuple[nn.Module, Design]]:
    """Designs of modules whose bodies differ in constants only."""
    values = [_values(bodies[m]) for m in modules]
    columns = list(zip(*values, strict=True))
    varying = dict.fromkeys(column for column in columns if len(set(column)) > 1)
    names: dict[tuple[str, ...], str] = {}
    for column in varying:
        names[column] = _name(modules, column, set(names.values()))
    for i, module in enumerate(modules):
        texts = iter([Literal(f"self.{names[c]}" if c in names else c[i]) for c in columns])

        def filled(description: Description, texts: Iterator[Literal] = texts) -> Description:
            return next(texts) if _is_free(description) else description

        own = tuple(changed_body(b, filled) for b in bodies[module])
        yield module, Design(own, {name: column[i] for column, name in names.items()})


def _values(bodies: tuple[Body, ...]) -> list[str]:
    values: list[str] = []

    def note(description: Description) -> Description:
        if isinstance(description, Literal) and _is_free(description):
            values.append(description.text)
        return description

    for body in bodies:
        changed_body(body, note)
    return values


def _name(modules: list[nn.Module], column: tuple[str, ...], taken: set[str]) -> str:
    """What the modules themselves call a constant, or a name that is free."""
    taken = taken.union(*(dir(m) for m in modules[:1]))
    candidates = [dict(_attributes(m)) for m in modules]
    for name in candidates[0]:
        fits = all(c.get(name) == value for c, value in zip(candidates, column, strict=True))
        if fits and (name not in taken or name in vars(modules[0])):
            return name
    return next(name for n in range(1, len(taken) + 2) if (name := f"constant{n}") not in taken)


def _attributes(module: nn.Module) -> Iterator[tuple[str, str]]:
    for name, value in vars(module).items():
        if name.startswith("_") or name == "training":
            continue
        try:
            yield name, text(value)
            if isinstance(value, tuple | list):
                yield from ((f"{name}_{i}", text(v)) for i, v in enumerate(value))
        except NotConstructibleError:
            continue
