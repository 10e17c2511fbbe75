"""What a run works with: network, data and task, checked and on their device; equal bits at equal seeds."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .answers import call, count_of
from .data import Data, LoaderData, Source, load, validation_split
from .distributed import world
from .errors import UsageError, WrongTypeError, users_code
from .networks import build, fitting
from .networks.weights import state_of
from .planning import Plan, make_plan
from .seeds import Stream, torch_seed
from .settings import Config
from .tasks import Classification, Segmentation, Task, task_of
from .tracing import Program, add_bits, copied, in_training, trace
from .training import check_finite, check_usable, cutout_side, laid_out, weight_optimizer


@dataclass(frozen=True)
class Session:
    """What a run works with, on its device.

    Attributes:
        original: a copy of the network as it was given.
        data: what it trains on, and what its epochs and choices are measured on: test examples, or a validation
            part of the training examples.
        held_out: the test examples.
        watched: "test" or "validation": what epochs and choices are measured on.
        task, config: of the run; settings that depend on the network are resolved.
        example: inputs for the network.
        program: what it does.
        digest: of its weights, before anything was trained.
    """

    original: nn.Module
    data: Source
    held_out: Source
    watched: str
    task: Task
    config: Config
    example: Any
    program: Program
    digest: str


@dataclass(frozen=True)
class Checked:
    """What was found out when a run was checked: what the network does, and what may change in it."""

    program: Program
    plan: Plan | None = None


@contextmanager
def session(
    network: nn.Module | str,
    data: Source | str,
    config: Config | None,
    task: Task | str | None = None,
    checked: Checked | None = None,
) -> Iterator[Session]:
    """Within, a run of a network on its data computes the same bits at the same seed; see `reproducible`.

    What was found out by `check` of the same arguments is not found out again.

    Raises:
        ValueError, TypeError: a network, data or settings that cannot be used, before anything is trained.
    """
    network, data, config = named(network, data, config)
    task = smoothed(task_of(task), config.training.label_smoothing)
    with reproducible(config), users_code(f"{type(network).__name__}'s code failed", alone=False):
        device = choose_device(config.machine.device)
        original, held_out = in_training(copied(network).to(device)), data.to(device)
        data, watched = watched_of(held_out, config)
        # What is made of the network cannot tell any more what it was made of.
        config = config.but(cutout=cutout_side(config.training, original, data))
        original = laid_out(original, config.machine, device)
        example = data.example(2)
        program = checked.program if checked else trace(original, example, batch=count_of(example))
        check_training(original, data, config, example, task)
        yield Session(original, data, held_out, watched, task, config, example, program, weights_digest(original))


def watched_of(data: Source, config: Config) -> tuple[Source, str]:
    """What a run is trained on and its epochs are measured on, and whether that is "test" or "validation"."""
    share = config.training.validation
    if not share and getattr(data, "validation", None) is None:
        return data, "test"
    if not isinstance(data, Data | LoaderData):
        raise UsageError(f"{data.name} cannot be divided: leave out validation, or use dnat.from_loaders")
    split: Source = validation_split(data, share, config.seed)  # type: ignore[type-var]
    return split, "validation"


def smoothed(task: Task, share: float) -> Task:
    """A task with smoothed labels, where they are asked for.

    Raises:
        ValueError: the task knows no classes.
    """
    if not share:
        return task
    if not isinstance(task, Classification | Segmentation):
        raise UsageError(f"label_smoothing is for tasks with classes, and {task.name} has none: leave it out")
    return replace(task, label_smoothing=share)


def images_of(data: Source) -> Data:
    """Data, where they are images.

    Raises:
        ValueError: they are not.
    """
    if not isinstance(data, Data):
        raise UsageError(f"this works with images, as dnat.load gives them, and not with {data.name}")
    return data


def named(network: nn.Module | str, data: Source | str, config: Config | None) -> tuple[nn.Module, Source, Config]:
    """Networks and data sets that were given by name, made; weights come from the configuration's seed.

    Raises:
        ValueError, TypeError: something else was given, or a network that cannot be trained as it is.
    """
    config = Config() if config is None else config
    if not isinstance(config, Config):
        hint = ": dnat.Config(**settings)" if isinstance(config, dict) else ""
        raise WrongTypeError(f"config must be a dnat.Config, not {type(config).__name__}{hint}")
    data = load(data) if isinstance(data, str) else data
    if not isinstance(data, Source):
        kind = type(data).__name__
        raise WrongTypeError(
            f"data must be a dnat.Data or a name, not {kind}: see dnat.load and Data.from_tensors"
        )
    if isinstance(network, str):
        if not isinstance(data, Data):
            raise UsageError(f"a network by name is made for images, which {data.name} are not: give the module")
        network = build(network, seed=config.seed, **fitting(network, data.num_classes, data.channels))
    if not isinstance(network, nn.Module):
        raise WrongTypeError(f"a network must be a torch.nn.Module or a name, not {type(network).__name__}")
    check_usable(network, data)
    check_finite(network)
    return network, data, config


def check(
    network: nn.Module, data: Source, config: Config, *, transforming: bool, task: Task | str | None = None
) -> Checked:
    """Find out what can be known to fail, before anything is trained or written.

    Returns:
        What was found out, so that the run need not do so again.

    Raises:
        ValueError, TypeError: see `transform`.
    """
    # As it will be trained: a budget of time is that of this device, with these threads.
    with session(network, data, config, task) as given:
        if not transforming:
            return Checked(given.program)
        return Checked(given.program, make_plan(given.original, given.program, given.example, given.config))


def check_training(
    network: nn.Module, data: Source, config: Config, example: Any, task: Task | None = None
) -> None:
    """What `check` looks at beside the network's operations and the budget."""
    task = task or Classification()
    data.steps(config.training.batch_size)
    if config.limit.latency_batch > data.test_count:
        raise UsageError(
            f"latency_batch {config.limit.latency_batch} is larger than the {data.test_count} test images, "
            "with which time is measured"
        )
    if config.machine.compile and world().size > 1:
        raise UsageError("compile is for one process: start it without torchrun, or leave it out")
    twin = copied(network).eval()
    with torch.no_grad(), users_code(f"{type(network).__name__}'s forward failed"):
        logits = task.logits(call(twin, example))
    if isinstance(task, Classification) and isinstance(data, Data) and logits.shape[1] < data.num_classes:
        raise UsageError(
            f"the network tells {logits.shape[1]} classes apart, but {data.name} has {data.num_classes}"
        )
    if not isinstance(data, Data) or not isinstance(task, Classification):
        with closing(data.test_batches(2)) as batches, torch.no_grad():
            inputs, target = next(batches)
            task.check(call(twin, inputs), target)
    weight_optimizer(network, config.training)


def weights_digest(network: nn.Module) -> str:
    """A SHA-256 over names, shapes and bits of a network's state, and what modules keep beside tensors."""
    digest = hashlib.sha256()
    for name, value in state_of(network).items():
        digest.update(f"{name} ".encode())
        if isinstance(value, Tensor):
            add_bits(digest, value)
        else:
            digest.update(json.dumps(value, sort_keys=True).encode())
    return digest.hexdigest()


def choose_device(name: str) -> torch.device:
    """The device of a name; "auto" is CUDA, else Apple's MPS, else the CPU.

    Raises:
        ValueError: no such device, or none at hand.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device {name!r} is not one that torch knows: auto, cpu, cuda, cuda:1, mps") from error
    there = {
        "cpu": True,
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise UsageError(f"there is no device {name!r} here; use --device cpu or auto")
    return device


@contextmanager
def reproducible(config: Config) -> Iterator[None]:
    """Within, torch computes the same bits at the same seed; what was set before is restored afterwards.

    Gradients are computed, also if it is called under `no_grad`. The number of threads is fixed, since sums over
    several threads are rounded otherwise; the global random state, which dropout draws from, is set from the seed.
    """
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    benchmark = torch.backends.cudnn.benchmark
    torch.set_num_threads(config.machine.threads)
    # Warn only: an operation without a deterministic form should be named, not forbidden.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=list(devices)):
            rank = world().rank
            torch.manual_seed(torch_seed(config.seed, Stream.TRAINING, *([rank] if rank else [])))
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = benchmark
