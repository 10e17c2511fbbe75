"""What is put into a network to relax it: hooks on its modules, and modules of choices beside them."""

import functools
from collections.abc import Iterator, Sequence

from torch import nn
from torch.utils.hooks import RemovableHandle

from ..candidates import begin, candidate
from ..edges import IDENTITY, Edge
from ..operations import CellOperation, NullEdge, operation
from .hooks import EdgeHooks, WidthHooks
from .passes import ForwardPasses

WEIGHED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""Norms of which it is known that their output is their weight times something, plus their bias."""

IDENTITY_NAME = "identity_operation"
"""The name under which a null edge holds the operation that connects it."""


def module_name(choice: str) -> str:
    """Under which name a choice's own module stands in the edge's first module while the network is relaxed."""
    return IDENTITY_NAME if choice == IDENTITY else choice


def attach(
    network: nn.Module, edge: Edge, passes: ForwardPasses, row: int, *, warm_start: bool
) -> Iterator[RemovableHandle]:
    """Put an edge's hooks on its modules, and its choices' modules into the first of them.

    These are registered there so that their weights train and are saved with the network's.
    """
    entry, exit = network.get_submodule(edge.entry), network.get_submodule(edge.exit)
    norm = None if exit is entry else exit
    modules = {choice: _module(choice, entry, norm, warm_start) for choice in edge.modules}
    for choice, module in modules.items():
        entry.add_module(module_name(choice), module)
    hooks = EdgeHooks(passes, row, edge, modules)
    weighs = exit is not entry and type(exit) in WEIGHED
    yield entry.register_forward_pre_hook(hooks.enter, with_kwargs=True, prepend=True)
    if exit is not entry:
        yield entry.register_forward_hook(hooks.between, with_kwargs=True)
    if weighs:
        yield exit.register_forward_pre_hook(hooks.weigh)
    yield exit.register_forward_hook(hooks.leave, with_kwargs=True)
    if weighs:
        yield exit.register_forward_hook(hooks.restore, always_call=True)


def attach_width(
    network: nn.Module, edge: Edge, passes: ForwardPasses, row: int, order: Sequence[int]
) -> Iterator[RemovableHandle]:
    """Put a width's hooks on the layers that read its channels."""
    assert edge.place
    hooks = WidthHooks(passes, row, edge, order)
    for name, axis in zip(edge.place.readers, edge.place.axes, strict=True):
        reader = network.get_submodule(name.rpartition(".")[0])
        yield reader.register_forward_pre_hook(functools.partial(hooks.enter, name, axis))


def _module(choice: str, entry: nn.Module, norm: nn.Module | None, warm_start: bool) -> nn.Module:
    """A module for a choice of an edge that begins at a module and ends, if at another, at a norm."""
    if not isinstance(entry, NullEdge | CellOperation):
        return candidate(choice, entry, norm, warm_start=warm_start)
    if choice == IDENTITY:
        return entry.identity()
    assert isinstance(entry, CellOperation)
    module = operation(choice, entry.channels, entry.stride)
    if warm_start:
        begin(module, entry.op)
    return module
