"""Passes in which something must not change: parameters, or the statistics of norms."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..answers import call
from ..settings import Machine
from ..tracing import frozen_modules, in_mode, kept_buffers


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within, no gradients are computed for these parameters."""
    switched = [p for p in parameters if p.requires_grad]
    for parameter in switched:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in switched:
            parameter.requires_grad_(True)


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Within, norms in train mode use the batch's statistics as ever, but do not record them, and what other
    modules write into their buffers is lost at the end: a step's second pass must not count twice."""
    norms = [m for m in network.modules() if m.training and getattr(m, "track_running_stats", False) is True]
    others = set(network.modules()) - set(norms)
    for norm in norms:
        norm.track_running_stats = False  # type: ignore[assignment]
    try:
        with kept_buffers(m for m in network.modules() if m in others):
            yield
    finally:
        for norm in norms:
            norm.track_running_stats = True  # type: ignore[assignment]


def take_statistics(network: nn.Module, batches: Iterable[Any]) -> None:
    """Let batch norms record the statistics of what the network computes now, as the plain mean over batches.

    Norms that are frozen (in eval mode within a network in train mode) keep theirs.

    Args:
        network: is changed in its norms' buffers alone.
        batches: of inputs, such as images (N, C, H, W).
    """
    still = frozen_modules(network)
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m not in still]
    norms = [m for m in norms if m.track_running_stats]
    momenta = [m.momentum for m in norms]
    others = [m for m in network.modules() if m not in set(norms)]
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over batches
        # Dropout may draw: not from the run's own stream.
        with (
            in_mode(network, True),
            kept_buffers(others),
            torch.no_grad(),
            torch.random.fork_rng(devices=list(devices)),
        ):
            torch.manual_seed(0)
            for images in batches:
                call(network, images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def laid_out(network: nn.Module, machine: Machine, device: torch.device) -> nn.Module:
    """A network whose kernels lie as its images do; see `images_last`."""
    if not images_last(network, machine, device):
        return network
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def images_last(network: nn.Module, machine: Machine, device: torch.device) -> bool:
    """Whether images and kernels are to be laid out channels last: if it is asked for, and safe.

    On a CPU oneDNN (of torch 2.13) writes past its memory in the weights' gradient of a 1x1 convolution with a
    stride and fewer than 16 input channels, if they lie last, and the process dies: on some machines with several
    threads alone, on others (AVX2, no AVX-512) with one as well. Reductions of null edges and of cells hold such.
    """
    narrow = (
        isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and max(m.stride) > 1 and m.in_channels < 16
        for m in network.modules()
    )
    return machine.channels_last and not (device.type == "cpu" and any(narrow))
