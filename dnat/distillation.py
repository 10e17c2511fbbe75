"""What a network learns from another one beside the labels: its answers, and what its layers are given.

    L = (1 - w) * loss of the task + w * T^2 * KL(teacher || network) + v * mean over layers of D

    D = mean of (x - x')^2 / variance of x'

with the answers' probabilities at temperature T (Hinton et al. 2015, section 2), x what a layer is given in the
network, and x' what the layer of the same name is given in the teacher (hints: Romero et al. 2015, section 2.2).
Of a task whose answers know no temperature, its divergence stands in the place of T^2 * KL.
A network from which operations were taken still has most of its teacher's layers. What a dropped branch added is
missing at the first of them behind it, and can be learned there, without a way through all that follows. Layers
count that give another shape than they are given (where a stage ends, and the classifier): to compare all of them
costs more and gains nothing (docs/log.md).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .answers import autocast, call, device_of, in_forward, wide
from .settings import Training
from .tasks import Task, task_of
from .tracing import Example

Given = dict[str, Tensor]
"""What layers were given in a pass, by their paths."""


@dataclass(frozen=True)
class Lesson:
    """What a teacher says of a batch.

    Attributes:
        answers: of the task (of classes: log-probabilities, (N, classes)), at the temperature.
        given: what its layers were given, by path.
    """

    answers: Tensor
    given: Given = field(default_factory=dict)


class Teacher:
    """A network from which another one learns, and how much.

    Args:
        network: the teacher, in eval mode.
        student: whose layers are taught.
        training: with the weights `distillation` and `feature_distillation`, and the temperature.
        task: which compares answers; classification by default.

    Attributes:
        layers: paths of the layers that both networks have; none where nothing is learned from them.
    """

    def __init__(
        self, network: nn.Module, student: nn.Module, training: Training, task: Task | None = None
    ) -> None:
        self.network, self.training, self.task = network, training, task_of(task)
        self.layers = _shared_layers(network, student) if training.feature_distillation else ()

    def lesson(self, inputs: Example) -> Lesson:
        """What the teacher says of a batch: a tensor, a tuple or a dict of such."""
        with (
            torch.no_grad(),
            autocast(self.training, device_of(inputs)),
            in_forward(self.network, inputs),
            watched(self.network, self.layers) as given,
        ):
            output = call(self.network, inputs)
        with torch.no_grad():
            return Lesson(self.task.answers(output, self.training.distillation_temperature), given)

    def loss(self, loss: Tensor, output: Any, lesson: Lesson, given: Mapping[str, Tensor]) -> Tensor:
        """The loss with what is learned from a lesson.

        Args:
            loss: of the targets, 0-dim.
            output: the network's, or its scores alone.
            lesson: of the same batch.
            given: what the network's layers were given; see `watched`.
        """
        weight, temperature = self.training.distillation, self.training.distillation_temperature
        ours = self.task.answers(output, temperature)
        apart = self.task.divergence(ours, lesson.answers.to(ours.dtype))
        loss = (1 - weight) * loss + weight * (temperature**2 if self.task.tempered else 1.0) * apart
        distances = [distance(given[p], x) for p, x in lesson.given.items() if p in given and _alike(given[p], x)]
        if distances:
            loss = loss + self.training.feature_distillation * torch.stack(distances).mean()
        return loss


def _shared_layers(network: nn.Module, other: nn.Module) -> tuple[str, ...]:
    own = {path: type(module) for path, module in network.named_modules() if _is_layer(module)}
    return tuple(p for p, m in other.named_modules() if _is_layer(m) and own.get(p) is type(m))


def _is_layer(module: nn.Module) -> bool:
    """Whether a module has weights of its own that mix what it is given: no norm."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() > 1 and not isinstance(module, nn.Embedding)


def _alike(x: Tensor, other: Tensor) -> bool:
    return x.shape == other.shape and x.is_floating_point() and other.is_floating_point()


def distance(x: Tensor, target: Tensor) -> Tensor:
    """The mean squared difference as a share of the target's variance, 0-dim; 0 of a target that does not vary.

    >>> x = torch.tensor([0.0, 2.0])
    >>> distance(x + 1, x).item(), distance(x + 1, torch.zeros(2)).item()
    (1.0, 0.0)
    """
    x, target = wide(x), wide(target)
    variance = target.var(unbiased=False)
    return torch.where(variance > 0, (x - target).square().mean() / variance.clamp(min=1e-12), 0.0)


@contextmanager
def watched(network: nn.Module, paths: tuple[str, ...]) -> Iterator[Given]:
    """Within, gathers what layers are given in a pass, where they give another shape.

    Of each layer the first tensor of its first call; layers that are given the same one count as one.
    """
    given: Given = {}

    def note(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            first = next((a for a in args if isinstance(a, Tensor)), None)
            if first is None or path in given or getattr(output, "shape", None) == first.shape:
                return
            if not any(first is x for x in given.values()):
                given[path] = first

        return hook

    hooks = [network.get_submodule(path).register_forward_hook(note(path)) for path in paths]
    try:
        yield given
    finally:
        for hook in hooks:
            hook.remove()
