"""One module in the place of another, and whether two networks give the same."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..edges import Edge
from ..operations import copying_identity, forgiving_identity
from ..tracing import Program


def submodule(network: nn.Module, path: str) -> nn.Module | None:
    """The module at a path, if there is one."""
    try:
        return network.get_submodule(path)
    except AttributeError:
        return None


def replaced(network: nn.Module, program: Program, path: str, module: nn.Module) -> nn.Module:
    """The network with another module at a path and at every other name of the same module."""
    if not path:
        return module
    for name in (path, *program.modules[path].aliases):
        if submodule(network, name) is not None:  # else it is gone with a block around it
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, module)
    return network


def exchanged(network: nn.Module, program: Program, path: str, module: nn.Module) -> nn.Module:
    """The network with a module that is in the mode of the one whose place it takes."""
    old = submodule(network, path)
    return network if old is None else replaced(network, program, path, module.train(old.training))


def identified(network: nn.Module, edge: Edge) -> nn.Module:
    """The network with an identity in an edge's place."""
    if edge.lone:
        last = copying_identity() if edge.copies else nn.Identity()
    else:
        last = forgiving_identity(copies=edge.copies)
    network = exchanged(network, edge.program, edge.exit, last)
    if edge.entry == edge.exit:
        return network
    first = nn.Identity() if edge.lone else forgiving_identity()
    return exchanged(network, edge.program, edge.entry, first)


def close(
    some: Sequence[Tensor],
    others: Sequence[Tensor],
    least: float = 0.0,
    *,
    relative: float = 1e-4,
    absolute: float = 1e-5,
) -> bool:
    """Whether tensors are equal to rounding.

    Args:
        some, others: the tensors.
        least: the size by which rounding is measured where they may be 0 themselves.
        relative, absolute: how far they may differ, as a share of each number and of the largest. Exact choices
            differ by rounding at most; a wrong one differs by far more than this.
    """
    if len(some) != len(others):
        return False
    for a, b in zip(some, others, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if a.is_floating_point():
            size = torch.nan_to_num(b.abs()).max().item() if b.numel() else 0.0
            bound = absolute * max(size, least, 1e-30)
            if not torch.allclose(a, b, rtol=relative, atol=bound, equal_nan=True):
                return False
        elif not torch.equal(a, b):
            return False
    return True
