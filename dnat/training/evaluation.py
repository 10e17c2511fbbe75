"""What a network is worth on test images, and whether it can be used at all."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..answers import autocast, call, count_of, in_forward, moved
from ..data import Data, Source
from ..data import usual_batch as usual_batch
from ..distributed import gathered, world
from ..errors import UsageError, WrongTypeError
from ..settings import Config
from ..tasks import Classification, Task
from ..tracing import in_mode, kept_buffers, tensors_of


@dataclass(frozen=True)
class Evaluation:
    """Mean loss over a data set, and the task's metrics.

    Attributes:
        loss: the mean over examples.
        metrics: {name: value} in the order of the task's (`Task.metrics`), the one that counts first.
    """

    loss: float
    metrics: Mapping[str, float]

    @property
    def accuracy(self) -> float:
        """The share of right answers, of a task that measures it.

        Raises:
            AttributeError: it measures other things.
        """
        if "accuracy" not in self.metrics:
            raise AttributeError(f"no accuracy was measured, but {', '.join(self.metrics)}")
        return self.metrics["accuracy"]

    def table(self) -> dict[str, float]:
        """For JSON: the loss beside the metrics."""
        return {"loss": self.loss, **self.metrics}

    @classmethod
    def from_table(cls, table: Mapping[str, float]) -> "Evaluation":
        """The inverse of `table`."""
        return cls(table["loss"], {name: value for name, value in table.items() if name != "loss"})


NOTHING = Evaluation(0.0, {})
"""Where nothing was measured yet."""


def check_usable(network: nn.Module, data: Source) -> None:
    """Refuse a network that cannot be run on images: without weights, or in another precision.

    Raises:
        ValueError: see above; the message names a weight and says what to do.
    """
    weights = [*network.named_parameters(), *network.named_buffers()]
    for name, tensor in weights:
        if is_lazy(tensor):
            raise UsageError(f"{name} has no shape yet: run the network once on images before it is given")
        if tensor.is_meta:
            raise UsageError(
                f"{name} of {type(network).__name__} lies on the meta device, where weights have no values: build "
                "the network outside of torch.device('meta'), or use to_empty(device='cpu') and load weights first"
            )
    other = next(((n, t) for n, t in weights if t.is_floating_point() and t.dtype != torch.float32), None)
    if other is None:
        return
    try:
        with in_mode(network, False), torch.no_grad():
            call(network, moved(data.example(2), other[1].device))
    except Exception as error:
        kind = str(other[1].dtype).removeprefix("torch.")
        raise UsageError(
            f"{other[0]} is {kind}, but images come as float32, with which the forward fails ({error}): give "
            "network.float(); the setting amp='bf16' computes in mixed precision"
        ) from error


def check_finite(network: nn.Module) -> None:
    """Refuse weights, or statistics of norms, that hold NaN or infinity before anything is trained.

    Raises:
        ValueError: they do; the message names them.
    """
    statistics = ((n, b) for n, b in network.named_buffers() if n.endswith(("running_mean", "running_var")))
    for name, tensor in (*network.named_parameters(), *statistics):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UsageError(f"{name} of the network as it is given holds NaN or infinity; look at its weights")


def evaluate(
    network: nn.Module,
    data: Source,
    config: Config | None = None,
    batch_size: int | None = None,
    classes: Sequence[str] | None = None,
    task: Task | None = None,
) -> Evaluation:
    """Mean loss and metrics on the test examples, in batches of 100, or fewer of large images.

    Runs in eval mode without gradients; afterwards every module is in the mode in which it was, and no buffer has
    changed.

    Args:
        network: whose outputs are what the task takes: class scores by default.
        data: with the test examples.
        config: for its precision.
        batch_size: examples a batch.
        classes: names of the network's outputs, in order (of the data that it was trained on: `Data.classes`). The
            images' classes are found among them by name; by default they are the first outputs, in their order.
        task: the loss and the metrics; by default classification.

    Raises:
        ValueError: a network without weights, in another precision than images, or with too few outputs.
        DataError: classes that are not among those of the network.
        TypeError: arguments of another type.
    """
    if not isinstance(network, nn.Module):
        raise WrongTypeError(f"a network must be a torch.nn.Module, not {type(network).__name__}")
    if not isinstance(data, Source):
        raise WrongTypeError(f"data must be a dnat.Data, not {type(data).__name__}: see dnat.load")
    check_usable(network, data)
    if classes is not None:
        if not isinstance(data, Data):
            raise UsageError(f"{data.name} has no names of classes: leave out classes")
        data = data.numbered(classes)
    here = world()
    batches = data.test_batches(batch_size or data.usual_batch, part=(here.rank, here.size))
    with in_mode(network, False), kept_buffers(network.modules()), torch.inference_mode():
        return measured(network, batches, config or Config(), task=task, together=True)


def measured(
    network: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    config: Config,
    *,
    task: Task | None = None,
    together: bool = False,
) -> Evaluation:
    """Mean loss and metrics on batches of inputs and targets, in the mode in which the network is.

    With `together` the batches of all processes count, each of which has its own.
    """
    task = task or Classification()
    sums: Tensor | None = None
    for inputs, target in batches:
        device = tensors_of(target)[0].device
        with autocast(config.training, device), in_forward(network, inputs):
            output = call(network, inputs)
        task.check(output, target)
        count = count_of(target)
        loss = task.summed_loss(output, target).double().item()
        row = torch.tensor([loss, count], dtype=torch.float64)
        row = torch.cat([row, task.statistics(output, target).cpu().double()])
        sums = row if sums is None else sums + row
    rows = [row for row in (gathered(sums) if together else [sums]) if row is not None]  # some may have no batch
    if not rows:
        raise UsageError("there is nothing to be measured on: the test examples are empty")
    total = torch.stack(rows).sum(0)
    return Evaluation(float(total[0] / total[1]), ordered(task, total[2:]))


def ordered(task: Task, statistics: Tensor) -> dict[str, float]:
    """The metrics of summed statistics, the one that counts first."""
    values = task.values(statistics)
    return {name: values[name] for name in task.metrics}


@torch.inference_mode()
def is_dead(network: nn.Module, data: Source, images: int = 64, task: Task | None = None) -> bool:
    """Whether a network gives every example the same answer, so that it cannot be better than chance.

    That is what a network does in which nothing leads from the input to the output: of NAT's published runs,
    those with 10 % accuracy on CIFAR-10 (docs/methods.md C4). Answers to the first test examples are compared, to
    the rounding of their type.
    """
    with in_mode(network, False):
        answers = (task or Classification()).logits(call(network, data.example(images))).float()
    largest = float(answers.abs().max())
    return len(answers) > 1 and float((answers - answers[0]).abs().max()) <= 1e-6 * largest
