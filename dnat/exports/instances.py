"""What a network holds, as calls of constructors, and which names are one and the same thing."""

import torch
from torch import nn

from ..tracing.literals import text
from .construction import construction
from .definitions import Definitions
from .expressions import is_identifier
from .layout import Expression, call, prefixed
from .structure import Structure, is_counted


class Instances:
    """Writes the calls.

    Args:
        structure: of the network.
        definitions: the classes that are called; new ones are added.

    Attributes:
        ties: statements that give what has several names the one thing.
    """

    def __init__(self, structure: Structure, definitions: Definitions) -> None:
        self.structure, self.definitions = structure, definitions
        self.ties: list[str] = []
        self.shared = 0

    def parts(self, module: nn.Module, path: str) -> list[Expression]:
        """The arguments that hand a module all that it holds: positional ones for a Sequential, else by name."""
        if self.structure.kinds[module] == "Sequential":
            return self._items(module, path)
        held: dict[str, Expression] = {}
        if module in self.structure.designs:
            held |= self.structure.designs[module].constants
        held |= {n: self._tensor(module, n, path) for n in self.structure.own(module)}
        for name, child in module._modules.items():
            held[name] = "None" if child is None else self._child(child, f"{path}.{name}".lstrip("."))
        return [
            prefixed(f"{n}=", e) if is_identifier(n) else call("**", [prefixed(f"{text(n)}: ", e)], opening="{")
            for n, e in held.items()
        ]

    def _child(self, child: nn.Module, path: str) -> Expression:
        if self.structure.paths[child] == path or self.shared:
            return self._expression(child, path)
        # The same module under another name: made twice, so that it has its place, and then tied.
        self.shared += 1
        copy = self._expression(child, path)
        self.shared -= 1
        self._tie(path, self.structure.paths[child])
        return copy

    def _expression(self, module: nn.Module, path: str) -> Expression:
        kind = self.structure.kinds[module]
        if kind == "leaf":
            constructor = construction(module)
            for holder, part in module.named_modules():
                for name in self.structure.own(part):
                    self._tie_tensor(part, name, f"{path}.{holder}".rstrip("."))
            return call(constructor.name, constructor.arguments, suffix=constructor.suffix)
        if kind in ("class", "parts"):
            return call(self.definitions.of(module) if kind == "class" else "Parts", self.parts(module, path))
        return self._container(module, path, kind)

    def _items(self, module: nn.Module, path: str) -> list[Expression]:
        names = list(module._modules)
        items = [self._child(m, f"{path}.{n}".lstrip(".")) for n, m in module._modules.items() if m is not None]
        if is_counted(names):
            return items
        if all(map(is_identifier, names)):
            return [call("OrderedDict", [prefixed(f"{n}=", e) for n, e in zip(names, items, strict=True)])]
        entries = [prefixed(f"{text(n)}: ", e) for n, e in zip(names, items, strict=True)]
        return [call("OrderedDict", entries, opening="({")]

    def _container(self, module: nn.Module, path: str, kind: str) -> Expression:
        if kind == "Sequential":
            return call("nn.Sequential", self._items(module, path))
        entries: dict[str, Expression] = {
            n: self._child(m, f"{path}.{n}") for n, m in module._modules.items() if m is not None
        }
        entries |= {n: self._tensor(module, n, path) for n in self.structure.own(module)}
        if kind in ("ModuleList", "ParameterList"):
            return call(f"nn.{kind}", list(entries.values()), opening="([")
        return call(f"nn.{kind}", [prefixed(f"{text(n)}: ", e) for n, e in entries.items()], opening="({")

    def _tensor(self, module: nn.Module, name: str, path: str) -> Expression:
        value = getattr(module, name)
        self._tie_tensor(module, name, path)
        sizes = ", ".join(map(str, value.shape)) or "()"
        zeros = f"torch.zeros({sizes})"
        if value.dtype != torch.float32:
            zeros = f"torch.zeros({sizes}, dtype={value.dtype})"
        if name in module._parameters:
            return call("nn.Parameter", [zeros] if value.requires_grad else [zeros, "requires_grad=False"])
        kept = name in module._buffers and name not in module._non_persistent_buffers_set
        return call("nn.Buffer", [zeros] if kept else [zeros, "persistent=False"])

    def _tie_tensor(self, module: nn.Module, name: str, path: str) -> None:
        here, first = f"{path}.{name}".lstrip("."), self.structure.first[id(getattr(module, name))]
        if here != first and not self.shared:
            self._tie(here, first)

    def _tie(self, path: str, first: str) -> None:
        parent, _, name = path.rpartition(".")
        target = self.structure.locate(path, self.structure.network)
        same = self.structure.locate(first, self.structure.network)
        if target.startswith("getattr("):
            self.ties.append(
                f"setattr({self.structure.locate(parent, self.structure.network)}, {text(name)}, {same})"
            )
        else:
            self.ties.append(f"{target} = {same}")
