"""The steps of a training: the weights on a mini-batch, then, in the architecture stage, theta on the same.

A step of the architecture stage updates the weights, then theta on the same mini-batch (DNAT, section 3.2): a
second forward pass with the weights frozen, in which batch norm uses the batch's statistics but does not record
them a second time. Nothing here draws a random number: batches come from the data, keyed by seed, epoch and index.

Where several processes train together (`dnat.distributed`), each computes its part of every batch; gradients,
counts and what is measured are summed, so that all of them take the same steps.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..answers import autocast, auxiliary_scores, call, count_of, in_forward
from ..data import Source
from ..distillation import Lesson, Teacher, watched
from ..distributed import SyncedNorms, sum_gradients, summed, world
from ..operations import set_drop_path
from ..optimizers import EMA
from ..relaxation import RelaxedNetwork
from ..settings import Config
from ..tasks import Classification, Task
from ..tracing import in_training
from .evaluation import Evaluation, ordered
from .freezing import images_last
from .progress import CHECK_EVERY, NonFiniteError, Progress
from .schedules import cutout_side, drop_path, learning_rate, theta_rate, weight_optimizer
from .stage import ArchitectureStage, compiled


class Trainer:
    """The steps of a training: one network, its optimizers, and where it stands. Knows of no files.

    Args:
        network: a plain network, or a relaxed one.
        data: what it is trained on.
        config: how.
        progress: where it stands.
        task: its loss and metrics; by default classification.
        stage: of a relaxed network, what trains theta; by default as the settings say, without a budget.
        teacher: what is learned from beside the targets.

    Attributes:
        network: what is trained: relaxed in the architecture stage, plain in the network stage.
        weights: the network itself, without theta.
        forward: what a step calls for the weights.
        optimizer: of the weights.
        ema: their average; None where none is asked for.
        batches: steps of an epoch.
        steps: steps of both stages.
    """

    def __init__(
        self,
        network: nn.Module,
        data: Source,
        config: Config,
        progress: Progress,
        *,
        task: Task | None = None,
        stage: ArchitectureStage | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        if stage is None and isinstance(network, RelaxedNetwork):
            stage = ArchitectureStage(network, config, data.steps(config.training.batch_size))
        self.network: nn.Module = stage.relaxed if stage else network
        self.weights = stage.relaxed.network if stage else network
        self.forward = stage.forward if stage else compiled(network, config.machine)
        self.data, self.config, self.progress, self.stage = data, config, progress, stage
        self.task = task or Classification()
        self.optimizer = weight_optimizer(self.weights, config.training)
        decay = config.training.ema
        self.ema = EMA(self.weights, decay) if decay else None
        self.batches = data.steps(config.training.batch_size)
        self.steps = self.batches * config.training.epochs
        self.teacher = Teacher(teacher, self.weights, config.training, self.task) if teacher else None
        self.clipped = clipped(self.weights, stage)
        self.device = data.device
        self.channels_last = images_last(self.network, config.machine, self.device)
        if config.machine.channels_last and not self.channels_last:
            self.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.world = world()
        # Apple's GPUs have no double precision.
        self.wide = torch.float32 if self.device.type == "mps" else torch.float64
        progress.totals = progress.totals.to(self.device, self.wide)

    @property
    def stage_name(self) -> str:
        """ "architecture" or "network"."""
        return "architecture" if self.stage else "network"

    def epoch(self) -> Iterator[Progress]:
        """Train to the end of the present epoch, from where it stands; yields after each batch.

        Raises:
            NonFiniteError: the loss is not finite any more.
        """
        progress, config = self.progress, self.config
        in_training(self.network)
        set_drop_path(self.network, drop_path(config.training, self.stage_name, progress.epoch))
        batches = self.data.train_batches(
            config.seed,
            progress.epoch,
            config.training.batch_size,
            start=progress.batch,
            cutout=cutout_side(config.training, self.weights, self.data),
            part=(self.world.rank, self.world.size),
        )
        with closing(batches):
            while progress.batch < self.batches:
                inputs, target = next(batches)
                rate = learning_rate(config.training, progress.step, self.steps)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                self.step(inputs, target)
                progress.batch += 1
                progress.step += 1
                if progress.batch % CHECK_EVERY == 0 or progress.batch == self.batches:
                    self._check_loss()
                yield progress

    def step(self, inputs: Any, target: Any) -> None:
        """One mini-batch: the weights, then, in the architecture stage, theta.

        Args:
            inputs: what the network is called with (see `dnat.trace`); of several processes each gives its own.
            target: what its outputs are to be.
        """
        inputs = self._laid_out(inputs)
        count = count_of(target)
        share = self._share(count)
        stage = self.stage
        if stage:
            stage.begin()
        single = stage is not None and stage.in_one_pass
        lesson = self.teacher.lesson(inputs) if self.teacher else None
        with stage.opened() if stage and single else nullcontext():
            loss, output = self._loss(self.forward, inputs, target, lesson, hints=True)
            total = loss
            if stage and stage.matching is not None:
                total = total + stage.matching
            total = total * share
            if stage and single:
                total = total + stage.loss() / self.world.size
                stage.optimizer.zero_grad(set_to_none=True)
            self.optimizer.zero_grad(set_to_none=True)
            total.backward()
        thetas = list(stage.relaxed.thetas()) if stage and single else []
        sum_gradients([p for p in self.weights.parameters() if p.requires_grad] + thetas)
        if self.config.training.grad_clip:
            for parameters in self.clipped:
                nn.utils.clip_grad_norm_(parameters, self.config.training.grad_clip)
        self.optimizer.step()
        if self.ema:
            self.ema.update(self.weights)
        self._count(loss, output, target, count)
        if stage:
            stage.end(lambda network: self._loss(network, inputs, target, lesson)[0] * share)

    @torch.no_grad()
    def _count(self, loss: Tensor, output: Any, target: Any, count: int) -> None:
        """Add a batch to the epoch's sums: its loss, its examples, and what the metrics are made of."""
        n = loss.new_tensor(count, dtype=self.wide)
        statistics = self.task.statistics(output, target).to(self.wide)
        sums = summed(torch.cat([torch.stack([loss.detach().to(self.wide) * n, n]), statistics]))
        if len(self.progress.totals) != len(sums):
            self.progress.totals = torch.zeros_like(sums)
        self.progress.totals += sums

    def _laid_out(self, inputs: Any) -> Any:
        return inputs if self.channels_last or not isinstance(inputs, Tensor) else inputs.contiguous()

    def _share(self, count: int) -> Tensor | float:
        """The share of the batch's examples that this process has."""
        if self.world.size == 1:
            return 1.0
        mine = torch.tensor(count, dtype=self.wide, device=self.device)
        return mine / summed(mine)

    def _loss(
        self,
        network: Callable[..., Any],
        inputs: Any,
        target: Any,
        lesson: Lesson | None,
        *,
        hints: bool = False,
    ) -> tuple[Tensor, Any]:
        """Mean loss, and the output that it is of.

        Auxiliary heads add their own, weighed by `auxiliary` (DARTS, GoogLeNet). With a teacher it is the
        loss of `dnat.distillation`; theta learns from its answers alone, without hints.
        """
        together = SyncedNorms() if self.world.size > 1 else nullcontext()
        precise, named = autocast(self.config.training, self.device), in_forward(self.weights, inputs)
        taught = tuple(lesson.given) if lesson and hints else ()
        with precise, together, named, watched(self.weights, taught) as given:
            output = call(network, inputs)
        loss = self.task.loss(output, target)
        for other in auxiliary_scores(output) if self.config.training.auxiliary else ():
            loss = loss + self.config.training.auxiliary * self.task.loss(other, target)
        if lesson and self.teacher:
            loss = self.teacher.loss(loss, output, lesson, given)
        return loss, output

    def averaged(self) -> AbstractContextManager[None]:
        """Within, the network computes with the average of its weights, where there is one."""
        return self.ema.swapped(self.weights) if self.ema else nullcontext()

    def _check_loss(self) -> None:
        if not math.isfinite(self.progress.totals[0].item()):
            self.fail("the loss is not finite any more")

    def fail(self, what: str) -> NoReturn:
        """Give up, saying where and what to try."""
        where = f"epoch {self.progress.epoch + 1}, at most {CHECK_EVERY} batches before {self.progress.batch}"
        raise NonFiniteError(
            f"{what} ({where}): lower lr ({self.config.training.lr:g}) or the rate of theta "
            f"({theta_rate(self.config, self.batches):g}), or look for "
            "broken images or labels; the last checkpoint is good"
        )

    def close_epoch(self) -> Evaluation:
        """Count the epoch as done; returns its mean training loss and metrics."""
        loss, count = self.progress.totals[:2].tolist()
        metrics = ordered(self.task, self.progress.totals[2:].cpu())
        self.progress.epoch += 1
        self.progress.batch = 0
        self.progress.totals.zero_()
        return Evaluation(loss / count, metrics)


def clipped(weights: nn.Module, stage: ArchitectureStage | None) -> list[list[nn.Parameter]]:
    """The parameters whose gradients are clipped together.

    What other operations learn must not shorten the network's own steps.
    """
    added = {id(p) for p in stage.relaxed.added_parameters()} if stage else set()
    own = [p for p in weights.parameters() if id(p) not in added]
    return [part for part in (own, [p for p in weights.parameters() if id(p) in added]) if part]
