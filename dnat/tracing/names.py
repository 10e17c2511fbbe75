"""Names for all that forwards work on: tensors, sizes and objects, and what modules hold."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .flow import Flow
from .literals import text
from .modes import tensors_held
from .steps import Attribute, Description, Literal, Ref, Unknown
from .surroundings import memory_of


class Names:
    """The names of one run.

    Attributes:
        owners: the last name of each tensor and object, by its id.
        values, memory: for each name the value of the trace, or -1, and where it lies.
        objects: classes of what is neither a tensor nor a number.
        held: descriptions of the tensors that modules hold, by their ids.
        state: where these lie.
        device: of the network.
    """

    def __init__(self, network: nn.Module, flow: Flow) -> None:
        self.flow = flow
        self.owners: dict[int, Ref] = {}
        self.values: list[int] = []
        self.memory: list[int] = []
        self.objects: dict[Ref, str] = {}
        self.held = held_by(network)
        self.state = {memory_of(t) for t in tensors_held(network)} - {-1}
        self.device = next((t.device for t in tensors_held(network)), torch.device("cpu"))
        self._places = {-1: -1}
        self._kept: list[Any] = []

    def new(self, value: Any = None) -> Ref:
        """A new name: for a tensor, for an object, or (None) for a number."""
        known = self.flow.index.get(id(value), -1) if isinstance(value, Tensor) else -1
        self.values.append(known)
        place = memory_of(value) if isinstance(value, Tensor) else -1
        self.memory.append(self._places.setdefault(place, len(self._places) - 1))
        ref = Ref(len(self.values) - 1)
        if value is not None:
            self._kept.append(value)  # or its id could be given to another
        if not isinstance(value, Tensor | None):
            self.objects[ref] = type(value).__name__
        return ref


def held_by(network: nn.Module) -> dict[int, Description]:
    """{id: description} of the tensors that the modules of a network hold."""
    held: dict[int, Description] = {}
    for path, module in network.named_modules():
        prefix = f"{path}." if path else ""
        for key, value in _tensors(module):
            held.setdefault(id(value), Attribute(prefix + key))
    for module in network.modules():
        for key, value in vars(module).items():
            if not key.startswith("_") and isinstance(value, list | tuple | dict):
                for leaf in tree_leaves(value):
                    if isinstance(leaf, Tensor):
                        held.setdefault(id(leaf), _spelled(leaf, f"{type(module).__name__}.{key}"))
    return held


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers and plain tensors that are direct attributes of a module."""
    for values in (module._parameters, module._buffers, vars(module)):
        for key, value in values.items():
            if isinstance(value, Tensor):
                yield key, value


def _spelled(tensor: Tensor, where: str) -> Description:
    if tensor.numel() > 16 or tensor.requires_grad:
        return Unknown(f"it keeps tensors in {where}: register them as buffers")
    return Literal(f"torch.tensor({text(tensor.tolist())}, dtype={tensor.dtype})", tensor)


def attributes_of(modules: Iterable[nn.Module]) -> dict[nn.Module, list[tuple[str, Any]]]:
    """What stands in modules' attributes: plain values, and which tensors and objects these are."""
    plain_kinds = (bool, int, float, str, type(None))
    return {
        module: [
            (name, value if isinstance(value, plain_kinds) else id(value))
            for values in (vars(module), module._buffers)
            for name, value in values.items()
            if not name.startswith("_") and name != "training"
        ]
        for module in modules
    }
