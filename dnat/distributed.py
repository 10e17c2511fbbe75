"""Several processes that train one network, each on its part of every batch. torchrun starts them.

    torchrun --nproc-per-node 4 --no-python dnat transform ...

All of them run the same program on the same seed; what differs is which images of a batch each computes, and what
dropout draws. Gradients are averaged before a step, norms use the statistics of the whole batch, and whatever
could differ otherwise (a clock, a file) is asked of the first process alone. So a batch of 96 stays a batch of 96,
and every process holds the same weights and thetas, to the bit.

Gradients are summed here rather than by `DistributedDataParallel`. Its hooks want one module whose parameters all
take part in each backward pass and whose output is the only way to the loss; a step of the architecture stage has
two backward passes over changing sets of parameters, losses inside the network, and any module of the user's. One
sum over all gradients in a fixed order also keeps its bits when a run goes on from a checkpoint. What is given up
is that sums are not taken while the backward pass still runs.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.overrides import TorchFunctionMode

from .errors import DnatError, UsageError

T = TypeVar("T")


class LostError(DnatError, RuntimeError):
    """Another process of the run has ended, or cannot be reached."""

    exit_code = 75


@dataclass(frozen=True)
class World:
    """The processes that work together.

    Attributes:
        rank: number of this one, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that reads and writes files."""
        return self.rank == 0


def world() -> World:
    """The processes that this one works with; alone unless `torch.distributed` was initialized."""
    if distributed.is_available() and distributed.is_initialized():
        return World(distributed.get_rank(), distributed.get_world_size())
    return World()


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Within, this process works with the others that torchrun started; alone where it did not.

    Args:
        device: "cpu", "cuda" or "auto": each process of a machine takes a GPU of its own, by its local rank.

    Raises:
        ValueError: fewer GPUs than processes, a device that only one process can have, or variables as torchrun
            would not set them.
    """
    size = _started()
    if size == 1 or distributed.is_initialized():
        yield world()
        return
    gpus = device != "cpu" and torch.cuda.is_available()
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"{size} processes cannot share the device {device!r}: use --device auto, cuda or cpu")
    if gpus:
        mine, here = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if mine >= here:
            raise UsageError(f"there are {here} GPUs for more processes: start {here} (--nproc-per-node {here})")
        torch.cuda.set_device(mine)
    store, rank, size = next(distributed.rendezvous("env://"))
    # After a restart torchrun's store (of torch 2.13) still has the addresses of the processes that are gone.
    attempt = distributed.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    distributed.init_process_group(backend, store=attempt, rank=rank, world_size=size)
    try:
        yield world()
        with contextlib.suppress(RuntimeError):  # what is done is done, should another be gone
            distributed.barrier()  # torch ends a process (-6) whose connections another one closes too early
    finally:
        distributed.destroy_process_group()


def _started() -> int:
    """How many processes torchrun started, by the variables that it sets.

    Raises:
        ValueError: they are not as it sets them.
    """
    size = _number("WORLD_SIZE", 1, 1 << 20)
    if size == 1:
        return 1
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise UsageError(
            f"WORLD_SIZE={size} says that this is one of {size} processes, but {', '.join(missing)} is not set: "
            "start them with torchrun, or unset WORLD_SIZE"
        )
    _number("RANK", 0, size - 1)
    _number("LOCAL_RANK", 0, size - 1)
    _number("MASTER_PORT", 0, 65535)
    return size


def _number(name: str, least: int, most: int) -> int:
    """A variable of torchrun's; the least where it is not set."""
    text = os.environ.get(name, str(least))
    if not (text.isdecimal() and least <= int(text) <= most):
        raise UsageError(f"{name}={text} is not what torchrun sets, a number from {least} to {most}: unset it")
    return int(text)


def _together(operation: Callable[..., Any], *arguments: Any) -> None:
    """An operation of `torch.distributed`.

    Raises:
        LostError: another process is gone.
    """
    try:
        operation(*arguments)
    except RuntimeError as error:
        raise LostError(
            f"another process of this run has ended or cannot be reached ({str(error).splitlines()[0]}); "
            "its own message tells more"
        ) from error


def from_first(make: Callable[[], T]) -> T:
    """What a function returns in the first process, where it alone is called; in all of them.

    Within it nothing may wait for other processes.

    Raises:
        Exception: what the function raised, in all processes.
    """
    here = world()
    if here.size == 1:
        return make()
    sent: list[Any] = [None, None]
    if here.first:
        try:
            sent = [make(), None]
        except Exception as error:
            sent = [None, error]
            _together(distributed.broadcast_object_list, sent)
            raise
    _together(distributed.broadcast_object_list, sent)
    if sent[1] is not None:
        raise sent[1]
    return sent[0]


def gathered(value: T) -> list[T]:
    """The values of all processes, by rank."""
    here = world()
    if here.size == 1:
        return [value]
    found: list[Any] = [None] * here.size
    _together(distributed.all_gather_object, found, value)
    return found


def anyone(*asked: bool) -> list[bool]:
    """Of each question, whether any process says yes."""
    if world().size == 1:
        return list(asked)
    flags = torch.tensor(asked, dtype=torch.int32)
    _together(distributed.all_reduce, flags, distributed.ReduceOp.MAX)
    return [bool(flag) for flag in flags]


def summed(tensor: Tensor) -> Tensor:
    """The sum over all processes, the same bits in each; without a gradient."""
    if world().size == 1:
        return tensor
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    _together(distributed.all_reduce, total)
    return total


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their sums over all processes.

    A parameter that no process has a gradient of is left without one; one that some have counts as 0 elsewhere.
    """
    if world().size == 1:
        return
    listed = list(parameters)
    # Asked on the CPU: a GPU would have to be waited for.
    known = anyone(*(p.grad is not None for p in listed))
    having = [p for p, has in zip(listed, known, strict=True) if has]
    for kind in dict.fromkeys((p.dtype, p.device) for p in having):
        alike = [p for p in having if (p.dtype, p.device) == kind]
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in alike]
        flat = summed(torch.cat([part.reshape(-1) for part in parts]))
        for parameter, total in zip(alike, flat.split([p.numel() for p in alike]), strict=True):
            # In the layout of the parameter, as the optimizer wants it.
            parameter.grad = torch.empty_like(parameter).copy_(total.view(parameter.shape))


class _Summed(torch.autograd.Function):
    """The sum over all processes; the gradient of each part is the sum of the gradients of the whole."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return summed(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return summed(gradient)


class SyncedNorms(TorchFunctionMode):
    """Within, batch norms in train mode use the statistics of the whole batch, of all processes.

    Any network's: it is the call that is replaced, not the modules, which stay as they are. (torch's
    SyncBatchNorm is a module of its own, and for GPUs alone.)
    """

    _open = 0  # how many are entered

    def __enter__(self) -> "SyncedNorms":
        SyncedNorms._open += 1
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        SyncedNorms._open -= 1

    @staticmethod
    def present() -> AbstractContextManager[object]:
        """For what a backward pass computes again, outside of this mode: norms as they are now."""
        return SyncedNorms() if SyncedNorms._open else nullcontext()

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of torch, or batch norm over all processes."""
        named = named or {}
        if function is not nn.functional.batch_norm:
            return function(*arguments, **named)
        return _batch_norm(*arguments, **named)


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm`, with statistics over all processes."""
    if not training or world().size == 1:
        return nn.functional.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    dims = [0, *range(2, x.dim())]
    shape = [1, -1] + [1] * (x.dim() - 2)
    count = summed(wide.new_tensor(float(x.numel() // x.shape[1])))
    mean = _Summed.apply(wide.sum(dims)) / count
    centred = wide - mean.view(shape)
    variance = _Summed.apply((centred * centred).sum(dims)) / count
    out = centred * (variance + eps).rsqrt().view(shape)
    if weight is not None:
        out = out * weight.to(out.dtype).view(shape)
    if bias is not None:
        out = out + bias.to(out.dtype).view(shape)
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            unbiased = variance * (count / (count - 1).clamp(min=1))
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    return out.to(x.dtype)
