"""The base of all tasks, and tasks made of plain functions."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..answers import count_of, wide
from ..errors import UsageError, WrongTypeError
from ..tracing import tensors_of

Direction = Literal["max", "min"]
"""Which way a metric is better."""

Function = Callable[[Any, Any], Any]
"""Of a network's output and the target: a mean over the batch."""


class Task:
    """What a network is trained for. Derive from it, or call `Task.of`.

    A class of one's own says `name`, `metrics`, `loss`, `statistics` and `values`; the rest has defaults.

    Attributes:
        name: in records and messages.
        metrics: {name: which way it is better}; the first is the one that tables and choices look at.
        tempered: whether `answers` are softer at a higher temperature, as the probabilities of classes are.
    """

    name: str = "task"
    metrics: Mapping[str, Direction] = MappingProxyType({})
    tempered: ClassVar[bool] = False

    def logits(self, output: Any) -> Tensor:
        """What of an output loss and answers are computed of: its `logits`, else its "out", else its first tensor.

        Raises:
            TypeError: there is no tensor.
        """
        table = output if isinstance(output, Mapping) else {}
        chosen = getattr(output, "logits", None)
        chosen = chosen if isinstance(chosen, Tensor) else table.get("logits", table.get("out"))
        tensors = [chosen] if isinstance(chosen, Tensor) else tensors_of(output)
        if not tensors:
            raise WrongTypeError(f"the network must return a tensor, but returns {type(output).__name__}")
        return tensors[0]

    def loss(self, output: Any, target: Any) -> Tensor:
        """The mean over the batch, 0-dim, of which gradients are taken."""
        raise NotImplementedError(f"{type(self).__name__} needs a loss")

    def summed_loss(self, output: Any, target: Any) -> Tensor:
        """The loss times the number of examples, 0-dim, to be added over batches."""
        return self.loss(output, target) * count_of(target)

    def statistics(self, output: Any, target: Any) -> Tensor:
        """Sums and counts of which metrics can be made, 1-dim, to be added over batches and processes."""
        raise NotImplementedError(f"{type(self).__name__} needs statistics")

    def values(self, statistics: Tensor) -> dict[str, float]:
        """The metrics of summed statistics, by name."""
        raise NotImplementedError(f"{type(self).__name__} needs values")

    def answers(self, output: Any, temperature: float = 1.0) -> Tensor:
        """What is compared between two networks: (N, ...)."""
        return wide(self.logits(output))

    def divergence(self, answers: Tensor, reference: Tensor) -> Tensor:
        """How far answers are from those of another network, mean over examples, 0-dim and at least 0."""
        return relative_error(answers, reference)

    def check(self, output: Any, target: Any) -> None:
        """Find out whether a network's output and the target fit.

        Raises:
            ValueError: they do not; the message says why.
        """
        loss = self.loss(output, target)
        if not isinstance(loss, Tensor) or loss.dim():
            kind = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise UsageError(f"{self.name}: the loss must be a tensor without dimensions (a mean), not {kind}")

    @property
    def first(self) -> str:
        """The name of the metric that tables and choices look at."""
        return next(iter(self.metrics))

    def merit(self, values: Mapping[str, float]) -> float:
        """The first metric as a number of which more is better.

        >>> Task.of(torch.nn.functional.mse_loss).merit({"mse_loss": 2.0})
        -2.0
        """
        return values[self.first] if self.metrics[self.first] == "max" else -values[self.first]

    @staticmethod
    def of(
        loss: Function,
        metrics: Mapping[str, tuple[Function, Direction]] | None = None,
        name: str | None = None,
    ) -> "Task":
        """A task of plain functions, each of (the network's output, target) and a mean over the batch.

        Args:
            loss: gives a tensor without dimensions.
            metrics: {name: (function, which way it is better)}; by default the loss by its name, less is better.
                Over several batches they are averaged, weighed by the examples of each.
            name: by default that of the loss.

        Answers are compared by their squared difference.

        >>> from torch.nn.functional import l1_loss, mse_loss
        >>> task = Task.of(mse_loss, {"mae": (l1_loss, "min")})
        >>> task.values(task.statistics(torch.ones(4, 2), torch.zeros(4, 2)))
        {'mae': 1.0}
        """
        called = name or str(getattr(loss, "__name__", type(loss).__name__))
        functions = {called: (loss, "min")} if metrics is None else dict(metrics)
        for key, pair in functions.items():
            if not isinstance(pair, tuple) or len(pair) != 2 or not callable(pair[0]):
                raise WrongTypeError(f"metric {key!r} must be a pair (function, 'max' or 'min'), not {pair!r:.80}")
        return _Functions(loss, functions, called)


class _Functions(Task):
    """A task of plain functions; see `Task.of`."""

    def __init__(self, loss: Function, metrics: Mapping[str, tuple[Function, Any]], name: str) -> None:
        self._loss, self._metrics, self.name = loss, {key: f for key, (f, _) in metrics.items()}, name
        self.metrics = {key: direction for key, (_, direction) in metrics.items()}

    def __repr__(self) -> str:
        return f"Task.of({self.name}, {dict(self.metrics)})"

    def loss(self, output: Any, target: Any) -> Tensor:
        """The function's, of an output in float32 at least."""
        return self._loss(_wide(output), target)

    def statistics(self, output: Any, target: Any) -> Tensor:
        """(metrics + 1,): each metric times the number of examples, and their number."""
        n, output = count_of(target), _wide(output)
        with torch.no_grad():
            parts = [torch.as_tensor(f(output, target)).detach() for f in self._metrics.values()]
        kind = double(parts[0])
        return torch.stack([*(p.to(kind) * n for p in parts), torch.tensor(float(n)).to(kind)])

    def values(self, statistics: Tensor) -> dict[str, float]:
        """The means over all examples."""
        *sums, n = statistics.tolist()
        return {key: total / max(n, 1) for key, total in zip(self._metrics, sums, strict=True)}


def _wide(output: Any) -> Any:
    return wide(output) if isinstance(output, Tensor) and output.is_floating_point() else output


def double(tensor: Tensor) -> Tensor:
    """A tensor in float64; in float32 on Apple's GPUs, which have no other."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def relative_error(answers: Tensor, reference: Tensor) -> Tensor:
    """The mean squared difference as a share of the reference's variance, 0-dim."""
    return (reference - answers).square().mean() / (reference.var(unbiased=False) + 1e-12)


def shape(tensor: Tensor) -> str:
    """A tensor's shape and type, for messages."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def is_whole(tensor: Tensor) -> bool:
    """Whether a tensor holds whole numbers, and no truth values."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
