"""Theta's part of a training: what happens before, in and after each step of the architecture stage."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..budget import Costs
from ..distributed import sum_gradients, summed, world
from ..relaxation import RelaxedNetwork
from ..settings import Config, Machine
from .freezing import frozen, frozen_statistics
from .pressure import ArchitectureLoss
from .schedules import theta_optimizer, theta_steps


class ArchitectureStage:
    """Trains theta beside the weights of a relaxed network, whoever trains those.

    A step is `begin`, a pass for the weights (`forward`, and whatever else trains them), and `end`. Theta needs a
    gradient within `end` (or `opened`) alone, so that no optimizer of the weights' ever moves it.

    Args:
        relaxed: the network.
        config: how theta is trained.
        batches: steps of an epoch.
        costs: what choices cost; by default their multiply-adds.
        limit: in the unit of the costs, theta is not charged for what lies below it.

    Attributes:
        run: the network as it is called: itself, or compiled.
        optimizer: of theta.
        loss: what theta pays for.
        first, last: after how many steps theta's are done, and the choices have settled.
        step: steps that are done.
        matching: of the last pass for the weights, what it costs that other operations do not compute what the
            originals do, 0-dim; None where there are none, or the choices are settling.
    """

    def __init__(
        self,
        relaxed: RelaxedNetwork,
        config: Config,
        batches: int,
        costs: Costs | None = None,
        limit: float | None = None,
    ) -> None:
        self.relaxed, self.config = relaxed, config
        self.run = compiled(relaxed, config.machine)
        self.first = theta_steps(config, batches)
        self.last = batches * config.training.architecture_epochs
        self.optimizer = theta_optimizer(relaxed, config, batches)
        self.loss = ArchitectureLoss(relaxed, config.relaxation, costs, limit)
        self.step = 0
        self.matching: Tensor | None = None
        for theta in relaxed.thetas():
            theta.requires_grad_(False)

    @property
    def is_settling(self) -> bool:
        """Whether the choices are made, and come into force step by step."""
        return self.relaxed.is_settling

    @property
    def is_due(self) -> bool:
        """Whether theta's steps are done, so that the choices can be made, which then settle."""
        return bool(self.config.relaxation.settle) and not self.is_settling and self.step >= self.first

    @property
    def in_one_pass(self) -> bool:
        """Whether theta takes its gradient from the weights' own pass."""
        return self.config.relaxation.single_pass and not self.is_settling

    def begin(self) -> None:
        """Before a step: gates that settle move on, and operations are drawn that take part."""
        self.settle(self.step + 1)
        if self.config.relaxation.paths == "two":
            self.relaxed.sample(self.config.seed, self.step)

    def end_early(self) -> None:
        """Let theta's steps be done now; choices settle in as many as they would have."""
        left = max(self.first - self.step, 0)
        self.first, self.last = self.first - left, self.last - left

    def settle(self, step: int) -> None:
        """Put the gates where they are at a step, if they settle."""
        if self.is_settling:
            done = max(step - self.first, 0) / max(self.last - self.first, 1)
            self.relaxed.settle_to(min(done, 1.0))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """A pass for the weights: what the relaxed network computes; sets `matching`."""
        self.matching = None
        if self.is_settling:
            return self.run(*args, **kwargs)
        with self.relaxed.taught() as distances:
            output = self.run(*args, **kwargs)
        if distances:
            every = torch.stack([d for listed in distances.values() for d in listed])
            # Summed: each operation has a task of its own. A broken one must not break the loss.
            self.matching = self.config.relaxation.matching * torch.where(every.isfinite(), every, 0.0).sum()
            self.relaxed.architecture.learned(_means(distances))
        return output

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Within, theta takes gradients."""
        thetas = list(self.relaxed.thetas())
        for theta in thetas:
            theta.requires_grad_(True)
        try:
            yield
        finally:
            for theta in thetas:
                theta.requires_grad_(False)

    def end(self, loss_of: Callable[[nn.Module], Tensor], scale: float = 1.0) -> None:
        """After the weights' step: theta's own, on the same batch.

        Args:
            loss_of: the loss of a network on the batch, 0-dim; of several processes each its part of the sum.
            scale: by which losses are multiplied before the backward pass, as `torch.amp.GradScaler` does.
        """
        if not self.is_settling:
            if not self.config.relaxation.single_pass:
                self.gradient(loss_of, scale)
            if scale == 1.0 or all(t.grad is None or bool(t.grad.isfinite().all()) for t in self.relaxed.thetas()):
                self.optimizer.step()
        self.relaxed.architecture.confine()
        self.relaxed.sample_all()
        self.step += 1

    def gradient(self, loss_of: Callable[[nn.Module], Tensor], scale: float = 1.0) -> None:
        """Leave the gradient of a loss, and of what theta pays for, with theta; see `end`."""
        weights = self.relaxed.network
        self.optimizer.zero_grad(set_to_none=True)
        with self.opened(), frozen(weights.parameters()), frozen_statistics(weights), self._reentrant():
            # What theta pays for is the same in all processes, whose gradients are summed.
            ((loss_of(self.run) + self.loss() / world().size) * scale).backward()
        sum_gradients(self.relaxed.thetas())
        if scale != 1.0:
            for theta in self.relaxed.thetas():
                if theta.grad is not None:
                    theta.grad /= scale

    @contextmanager
    def _reentrant(self) -> Iterator[None]:
        """Within, what is given to the network needs a gradient, or nothing in a reentrant checkpoint would."""
        if not any(edge.reentrant for edge in self.relaxed.edges):
            yield
            return

        def needing(value: Any) -> Any:
            tensor = isinstance(value, Tensor) and value.is_floating_point()
            return value.detach().requires_grad_() if tensor else value

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
            return tuple(map(needing, args)), {name: needing(value) for name, value in kwargs.items()}

        handle = self.relaxed.register_forward_pre_hook(enter, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def compiled(network: nn.Module, machine: Machine) -> nn.Module:
    """A network as a training calls it: itself, or compiled where that is asked for; its weights are the same."""
    return torch.compile(network) if machine.compile else network  # type: ignore[return-value]


def _means(
    distances: Mapping[tuple[int, int], Iterable[Tensor]],
) -> Mapping[tuple[int, int], list[Tensor]]:
    """Distances of other operations, as the mean over all processes."""
    if world().size == 1:
        return {place: list(listed) for place, listed in distances.items()}
    means = summed(torch.stack([torch.stack(list(listed)).mean() for listed in distances.values()]).detach())
    return {place: [mean] for place, mean in zip(distances, means / world().size, strict=True)}
