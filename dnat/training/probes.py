"""What a step takes, and what single choices do, each found by trying it."""

import math
import time
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..answers import autocast, call
from ..data import Source
from ..relaxation import RelaxedNetwork
from ..seeds import Stream, torch_seed
from ..selection import BEYOND
from ..settings import Config
from ..tasks import Classification, Task
from ..tracing import copied, in_mode, in_training
from .freezing import frozen_statistics
from .progress import NonFiniteError, Progress
from .schedules import cutout_side
from .trainer import Trainer


@dataclass(frozen=True)
class Burden:
    """What a step of the architecture stage takes, as multiples of a step of the plain network.

    Attributes:
        time: as measured here, on a few images.
        memory: what its forward passes keep for the backward pass, the larger of the two; each tensor counts once,
            and no weights.
    """

    time: float
    memory: float

    def __str__(self) -> str:
        return (
            f"a step of the architecture stage takes {self.time:.1f} times as long as one of the plain network, "
            f"and keeps {self.memory:.1f} times as much in memory"
        )


def burden(
    plain: nn.Module, relaxed: RelaxedNetwork, data: Source, config: Config, task: Task | None = None
) -> Burden:
    """Measure what a step of the architecture stage takes; both networks are left as they are.

    The first of up to 16 examples, the same for both; of three steps the fastest counts.
    """
    with closing(data.train_batches(config.seed, 0, min(config.training.batch_size, 16))) as batches:
        inputs, target = next(batches)
    seconds, kept = [], []
    for network in (plain, relaxed):
        twin = in_training(copied(network))
        trainer = Trainer(twin, data, config, Progress(), task=task)
        taken = []
        with torch.random.fork_rng(devices=_gpus()):
            for _ in range(4):  # the first one to warm up
                with _Kept(twin) as memory:
                    begun = time.perf_counter()
                    trainer.step(inputs, target)
                    float(trainer.progress.totals[0])  # waits for the device
                    taken.append(time.perf_counter() - begun)
        seconds.append(min(taken[1:]))
        kept.append(memory.most)
    return Burden(seconds[1] / seconds[0], kept[1] / max(kept[0], 1))


def _gpus() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []


class _Kept:
    """Within, counts the bytes that forward passes keep; `most` is the largest of them."""

    def __init__(self, network: nn.Module) -> None:
        self.weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
        self.found: dict[int, int] = {}
        self.most = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.found[storage.data_ptr()] = storage.nbytes()
        return x

    def _unpack(self, x: Tensor) -> Tensor:
        if self.found:  # the backward pass has begun
            self.most = max(self.most, sum(self.found.values()))
            self.found = {}
        return x

    def __enter__(self) -> "_Kept":
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.hooks.__exit__(*error)


@torch.no_grad()
def effects(
    relaxed: RelaxedNetwork, data: Source, config: Config, epoch: int, task: Task | None = None
) -> list[list[float]]:
    """What each choice of each group would do to the loss if it alone were made now, by trying it.

    The mean loss with the group's gates as they are, less that with the choice in force, on the first
    `trial_batches` batches of an epoch of training examples; norms use the batch's statistics. (Wang et al.
    2021, DARTS-PT, choose operations by what their removal does to the accuracy.)

    Returns:
        A row for each group in the order of theta's columns; 0 for what a group cannot become.
    """
    task = task or Classification()
    side = cutout_side(config.training, relaxed.network, data)
    number = min(config.limit.trial_batches, data.steps(config.training.batch_size))
    with closing(data.train_batches(config.seed, epoch, config.training.batch_size, cutout=side)) as batches:
        shown = [next(batches) for _ in range(number)]

    def loss() -> float:
        total = torch.zeros((), dtype=torch.float64)
        # The same draws for all (dropout), and none missing from the run's own.
        with torch.random.fork_rng(devices=_gpus()):
            torch.manual_seed(torch_seed(config.seed, Stream.TRAINING, "effects", epoch))
            for inputs, target in shown:
                if isinstance(inputs, Tensor) and not config.machine.channels_last:
                    inputs = inputs.contiguous()
                with autocast(config.training, data.device):
                    output = call(relaxed, inputs)
                total += task.loss(output, target).double().cpu()
        return float(total) / len(shown)

    rows = []
    with in_mode(relaxed, True), frozen_statistics(relaxed):
        now = loss()
        if not math.isfinite(now):
            raise NonFiniteError("the loss is not finite any more: lower lr or the rate of theta")
        for group in relaxed.groups:
            tried = dict.fromkeys(relaxed.columns, 0.0)
            for choice in relaxed.choices_of(group):
                with relaxed.trying(group, choice):
                    worth = now - loss()
                tried[choice] = worth if math.isfinite(worth) else -BEYOND
            rows.append(list(tried.values()))
    return rows
