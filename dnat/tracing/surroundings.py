"""What a forward runs in and with: checkpoints, autocast, generators, hooks, memory."""

import inspect
import random
from typing import Any

import numpy as np
import torch
import torch.utils.checkpoint
from torch import Tensor, nn


def in_reentrant_checkpoint() -> bool:
    """Whether a checkpoint with `use_reentrant=True` runs: at first without gradients, and again with them."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is torch.utils.checkpoint.CheckpointFunction.forward.__code__:
            return True
        frame = frame.f_back
    return False


def learning() -> bool:
    """Whether gradients are computed, at once or when a checkpoint runs again."""
    return torch.is_grad_enabled() or in_reentrant_checkpoint()


def memory_of(tensor: Tensor) -> int:
    """What tells whether tensors share memory; -1 where they have none of their own."""
    with torch._C.DisableTorchFunction():
        return int(tensor.untyped_storage()._cdata) if tensor.layout == torch.strided else -1


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a layer of torch's own, whose forward nobody needs to see."""
    own = type(module).__module__.startswith("torch.nn.modules.")
    return own and (not module._modules or isinstance(module, nn.MultiheadAttention))


def autocast() -> tuple[bool, bool]:
    """Whether autocast is on, on the CPU and on a GPU."""
    return torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


def random_states() -> tuple[Any, str]:
    """The states of the generators of Python and numpy."""
    return random.getstate(), str(np.random.get_state())  # noqa: NPY002


def switched(grad: bool, mixed: tuple[bool, bool]) -> str:
    """What a forward switched in a way that no step tells; empty if nothing."""
    if torch.is_grad_enabled() is not grad and not in_reentrant_checkpoint():
        return "it switches gradients off otherwise than by torch.no_grad (a torch.autograd.Function?)"
    return "" if autocast() == mixed else "it switches autocast on or off"
