"""Runs of a network on example batches: to record what it does, to take times, to look on."""

import hashlib
import json
import time
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..counting import checked_batch, warn_of_batch, warn_of_uncounted
from ..errors import UsageError, UserCodeError, WrongTypeError, users_code
from .examples import Example, doubled, enlarged, examples_of
from .flow import Watch
from .modes import copied, fixed_randomness, gpus_of, in_mode, kept_buffers, tensors_held
from .program import Program, Trace
from .recorder import Recorder
from .structure import module_infos
from .surroundings import random_states


def trace(network: nn.Module, example: Example, *, batch: int | None = None) -> Program:
    """Run a copy of a network on examples, in eval and in train mode, and note everything that it computes.

    The network itself, its buffers, its mode and the global random state are left as they were.

    Args:
        network: any module.
        example: a tensor, a tuple of positional arguments, a dict of keyword arguments, or an iterable of such.
            A batch of 2 is best: batch norm refuses some single images in train mode (they are doubled then).
        batch: how many images each example holds. By default the first dimension that all outputs share with an
            input; where there is none, the whole example counts as one, with a warning.

    Returns:
        The Program, as plain data.

    Raises:
        ValueError: the network cannot be copied or its forward fails (the cause is chained), or `batch` is no
            whole number above 0.
        TypeError: `network` is not a module, or `example` is of no use.

    Warns:
        UserWarning: the batch is not certain, or something that may multiply was not counted.

    >>> program = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.zeros(2, 3, 8, 8))
    >>> [(op.name, op.madds) for op in program.traces[0].operations]
    [('conv2d', 7776), ('relu', 0)]
    """
    if not isinstance(network, nn.Module):
        raise WrongTypeError(f"a network must be a torch.nn.Module, not {type(network).__name__}")
    arguments = examples_of(example)
    lazy = [n for n, p in network.named_parameters() if torch.nn.parameter.is_lazy(p)]
    if lazy:
        raise UsageError(f"{lazy[0]} is not initialized yet: call the network once on a batch, then trace it")
    told = checked_batch(batch)
    twin = copied(network)
    traces: list[Trace] = []
    devices = gpus_of(network)
    with fixed_randomness(devices):
        for training in (False, True):
            for i, (args, kwargs) in enumerate(arguments):
                with in_mode(twin, training):
                    if training:
                        traces.append(trained(twin, args, kwargs, traces[i].batch)[0])
                    else:
                        traces.append(recorded(twin, args, kwargs, told))
    warn_of_uncounted(traces[0].uncounted)
    modules = module_infos(twin)
    calls = sorted(
        (c.path, modules[c.path].name, [t.values[v].shape[1:] for v in c.inputs + c.outputs])
        for t in traces[:1]
        for c in t.calls
    )
    digest = hashlib.sha256(json.dumps(calls).encode()).hexdigest()[:16]
    return Program(tuple(traces), modules, digest, twin, tuple(arguments))


def repeated(program: Program) -> dict[str, Trace]:
    """Further runs in eval mode, to see what depends on sizes: on "more" images (twice as many), on "larger" ones.

    What the network does not take is left out. The runs are kept with the program.
    """
    known: dict[str, Trace] | None = program.analyses.get("repeated")
    if known is None:
        known = program.analyses["repeated"] = {}
        devices = gpus_of(program.network)
        network = copied(program.network)
        for name, change in (("more", doubled), ("larger", enlarged)):
            with fixed_randomness(devices), in_mode(network, False), suppress(UserCodeError):
                known[name] = recorded(network, *change(program.examples[0]))
    return known


def timed(network: nn.Module, example: Example, repeats: int) -> tuple[tuple[str, ...], list[list[float]]]:
    """Run a network in eval mode and take the time of each operation.

    Args:
        network: any module; its buffers are left as they were.
        example: see `trace`; of several examples the first is used.
        repeats: so many runs, after one that does not count.

    Returns:
        Names of the operations, in the order of the program's first trace, and for each run their seconds. The
        time between operations (Python's) is in none of them.
    """
    args, kwargs = examples_of(example)[0]
    device = next((t.device for t in tensors_held(network)), torch.device("cpu"))

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    runs: list[list[float]] = []
    names: tuple[str, ...] = ()
    with in_mode(network, False):
        for _ in range(repeats + 1):
            recorder = Recorder(network)
            recorder.flow.clock = clock
            names = tuple(op.name for op in recorder.run(args, kwargs).operations)
            runs.append(recorder.flow.seconds)
    return names, runs[1:]


def observed(program: Program, watch: Watch) -> tuple[Tensor, ...]:
    """Run a program's network again as in its first trace, and show each operation as it happens.

    Returns:
        What the network gives; nothing where it does not do again what it did.
    """
    args, kwargs = program.examples[0]
    network = program.network
    devices = gpus_of(network)
    recorder = Recorder(network)
    recorder.flow.watch = watch
    with fixed_randomness(devices), in_mode(network, False), kept_buffers(network.modules()):
        recorder.run(args, kwargs)
    names = [op.name for op in recorder.flow.operations]
    return tuple(recorder.results) if names == [op.name for op in program.traces[0].operations] else ()


def recorded(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch: int | None = 1) -> Trace:
    """One run of a network as it is, with its own randomness.

    Args:
        network: any module, in the mode that counts.
        args, kwargs: what it is called with.
        batch: how many images that is; None: as many as can be told.

    Raises:
        ValueError: its forward fails; the cause is chained.
    """
    shapes = [tuple(t.shape) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    mode = "train" if network.training else "eval"
    with users_code(f"{type(network).__name__}'s forward failed on the example of shape {shapes} in {mode} mode"):
        before = random_states()
        recorder = Recorder(network)
        trace = recorder.run(args, kwargs, batch)
        if random_states() != before:
            recorder = Recorder(network, drawing=True)
            trace = recorder.run(args, kwargs, batch)
    if recorder.unsure:
        warn_of_batch(*([trace.values[i].shape for i in ids] for ids in (trace.inputs, trace.outputs)))
    return trace


def trained(
    network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch: int | None = 1
) -> tuple[Trace, tuple[tuple[Any, ...], dict[str, Any]]]:
    """A run in train mode, and its arguments: every image twice where batch norm refuses them as they are.

    Arguments and errors are those of `recorded`.
    """
    try:
        return recorded(network, args, kwargs, batch), (args, kwargs)
    except UserCodeError as error:
        if "more than 1 value per channel" not in str(error):
            raise
    args, kwargs = doubled((args, kwargs))
    return recorded(network, args, kwargs, batch and 2 * batch), (args, kwargs)
