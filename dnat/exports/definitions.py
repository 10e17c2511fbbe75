"""The classes of a written file: one for all modules that do the same."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..tracing.literals import text
from ..tracing.steps import Body, Literal
from .expressions import is_identifier
from .forward import Forward, leaves, variable
from .preparation import NAMES
from .structure import Structure

TAKEN = {
    *(
        "Parts",
        "Output",
        "StochasticDepth",
        "OrderedDict",
        "namedtuple",
        "expect",
        "read",
        "load",
        "json",
        "math",
        "os",
    ),
    *NAMES,
}
"""Names that a written file uses itself."""


class Definitions:
    """Names and forwards of the classes.

    Args:
        structure: of the network.
        inputs: the example, whose shapes are checked at the beginning of the forward where they decide.

    Attributes:
        root: the name of the network's own class.
        classes: {(name that was asked for, source of the forward): name}.
        named: {name: fields} of the named tuples that the file must define.
    """

    def __init__(self, structure: Structure, inputs: Any) -> None:
        self.structure, self.inputs = structure, inputs
        self.classes: dict[tuple[str, str], str] = {}
        self.named: dict[str, tuple[str, ...]] = {}
        name = _class_name(structure.network)
        self.root = f"{name}Network" if name in TAKEN else name

    def of(self, module: nn.Module) -> str:
        """The name of a module's class, which is noted."""
        key = (_class_name(module), self.forward(module))
        if key not in self.classes:
            taken = {*self.classes.values(), self.root, *TAKEN, *self.named}
            names = (key[0] if n == 1 else f"{key[0]}{n}" for n in range(1, len(taken) + 2))
            self.classes[key] = next(n for n in names if n not in taken)
        return self.classes[key]

    def forward(self, module: nn.Module) -> str:
        """The source of a module's forward."""
        bodies = self.structure.designs[module].bodies
        at_root = module is self.structure.network
        lines = [f"def forward({', '.join(['self', *_signature(bodies[0])])}):"]
        lines += [f"    {line}" for line in self._guards(bodies[0])] if at_root else []
        if len(bodies) > 1:
            lines += ["    if self.training:", *self._body(bodies[0], module, 8)]
        return "\n".join([*lines, *self._body(bodies[-1], module, 4)]) + "\n"

    def _body(self, body: Body, module: nn.Module, indent: int) -> Iterator[str]:
        # Classes stand at the margin, so a body's lines begin 4 further in than here.
        for line in Forward(body, lambda path: self.structure.locate(path, module), self.named).lines(indent + 4):
            first, *rest = line.split("\n")
            yield " " * indent + first
            yield from (part.removeprefix("    ") for part in rest)

    def _guards(self, body: Body) -> Iterator[str]:
        """Checks of what the example decided: constants, and shapes where they matter."""
        for name, description in body.params:
            if isinstance(description, Literal):
                test = "is not" if description.text in ("None", "True", "False") else "!="
                yield f"if {variable(name)} {test} {description.text}:"
                told = f"this file was made for {name}={description.text}"
                yield f"    raise ValueError({text(told)})"
        if not self.structure.recording.fixed:
            return
        start = 1 if self.structure.recording.fixed == "size" else 0
        shapes = [t.shape for t in tree_leaves(self.inputs) if isinstance(t, Tensor)]
        for (place, _), shape in zip(leaves(body.params), shapes, strict=False):
            seen, fixed = f"{place}.shape[1:]" if start else f"{place}.shape", text(tuple(shape[start:]))
            yield f"if {seen} != {fixed}:"
            yield f'    raise ValueError(f"this file was made for {seen} = {fixed}, not {{tuple({seen})}}")'


def _class_name(module: nn.Module) -> str:
    name = type(module).__name__
    return name if is_identifier(name) and name not in ("nn", "F", "torch") else "Network"


def _signature(body: Body) -> Iterator[str]:
    for i, (name, description) in enumerate(body.params):
        optional = all(isinstance(d, Literal) for _, d in body.params[i:])
        default = f"={description.text}" if optional and isinstance(description, Literal) else ""
        yield variable(name) + default
