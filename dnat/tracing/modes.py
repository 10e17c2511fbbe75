"""Copies of a network, and what is put back when something was tried on one: modes, buffers, random states."""

import copy
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import UsageError


def copied(network: nn.Module) -> nn.Module:
    """A deep copy of a network.

    Raises:
        ValueError: the network holds something that cannot be copied; the cause is chained.
    """
    try:
        return copy.deepcopy(network)
    except Exception:
        # Some keep what they computed once, and torch copies no tensor that has a gradient's history.
        computed = {id(t): t.detach().clone() for t in _kept_tensors(network) if not t.is_leaf}
        try:
            return copy.deepcopy(network, computed)
        except Exception as error:
            raise UsageError(f"{type(network).__name__} cannot be copied: {error}") from error


def _kept_tensors(network: nn.Module) -> Iterator[Tensor]:
    """The tensors in modules' plain attributes."""
    for module in network.modules():
        values = [value for name, value in vars(module).items() if name not in ("_modules", "_parameters")]
        yield from (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def gpus_of(network: nn.Module) -> list[int]:
    """The numbers of the CUDA devices on which a network has tensors."""
    return sorted({t.device.index for t in tensors_held(network) if t.device.type == "cuda"})


@contextmanager
def fixed_randomness(devices: Iterable[int] = ()) -> Iterator[None]:
    """Within, the generators of torch, Python and numpy start from 0; afterwards they are as they were.

    Args:
        devices: CUDA devices whose generators count, too.
    """
    state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 -- what networks may use
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)  # noqa: NPY002


@contextmanager
def kept_buffers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within, what modules write into their own buffers, statistics and counters say, is lost at the end."""
    own = [(m, name, b) for m in modules for name, b in m.named_buffers(recurse=False)]
    for module, name, buffer in own:
        module._buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for module, name, buffer in own:
            module._buffers[name] = buffer


def frozen_modules(network: nn.Module) -> set[nn.Module]:
    """The modules that are in eval mode within a network in train mode, as norms are that shall not learn."""
    return {module for module in network.modules() if network.training and not module.training}


def in_training(network: nn.Module) -> nn.Module:
    """The network in train mode: as it is, if it was already, with what is frozen in it; else all of it."""
    return network if network.training else network.train()


@contextmanager
def in_mode(network: nn.Module, training: bool) -> Iterator[None]:
    """Within, all modules are in train or in eval mode; afterwards each is in the mode in which it was.

    What was frozen, in eval mode within a network in train mode, is in eval mode in both.
    """
    modes = {module: module.training for module in network.modules()}
    still = frozen_modules(network)
    for module in modes:
        module.training = training and module not in still
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def tensors_held(network: nn.Module) -> Iterator[Tensor]:
    """A network's parameters and buffers."""
    yield from network.parameters()
    yield from network.buffers()
