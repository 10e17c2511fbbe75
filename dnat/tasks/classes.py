"""Tasks with one class of several: of an example, and of each of its pixels."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from ..answers import scores, wide
from ..errors import UsageError
from .task import Task, is_whole, shape


@dataclass(frozen=True)
class Classification(Task):
    """One class an example: scores (N, classes) against labels (N,).

    Attributes:
        label_smoothing: the share of the target that is spread over all classes (Szegedy et al. 2016, section 7).
    """

    label_smoothing: float = 0.0

    name = "classification"
    metrics = MappingProxyType({"accuracy": "max"})
    tempered: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_smoothing(self.label_smoothing)

    def logits(self, output: Any) -> Tensor:
        """The class scores, (N, classes).

        Raises:
            TypeError: there are none.
        """
        return scores(super().logits(output) if isinstance(output, Mapping) else output)

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """The cross entropy."""
        return cross_entropy(wide(self.logits(output)), target, label_smoothing=self.label_smoothing)

    def summed_loss(self, output: Any, target: Tensor) -> Tensor:
        """The sum of the cross entropies."""
        logits = wide(self.logits(output))
        return cross_entropy(logits, target, label_smoothing=self.label_smoothing, reduction="sum")

    def statistics(self, output: Any, target: Tensor) -> Tensor:
        """(2,) int64: right answers, and examples."""
        correct = (self.logits(output).detach().argmax(1) == target).sum()
        return torch.stack([correct, correct.new_tensor(len(target))])

    def values(self, statistics: Tensor) -> dict[str, float]:
        """The share of right answers."""
        correct, n = statistics.tolist()
        return {"accuracy": correct / max(n, 1)}

    def answers(self, output: Any, temperature: float = 1.0) -> Tensor:
        """Log-probabilities at a temperature, (N, classes)."""
        return log_softmax(wide(self.logits(output)) / temperature, 1)

    def divergence(self, answers: Tensor, reference: Tensor) -> Tensor:
        """The mean of KL(reference || answers)."""
        return kl_div(answers, reference, reduction="batchmean", log_target=True)

    def check(self, output: Any, target: Any) -> None:
        """Find out whether labels are class numbers of the network's outputs.

        Raises:
            ValueError: they are not.
        """
        logits = self.logits(output)
        if not isinstance(target, Tensor) or target.dim() != 1 or not is_whole(target):
            raise UsageError(f"classification needs labels (N,), whole numbers from 0, not {_shown(target)}")
        if len(target) != len(logits):
            raise UsageError(f"the network gives scores of {len(logits)} examples for {len(target)} labels")
        _check_labels(target, logits.shape[1])


@dataclass(frozen=True)
class Segmentation(Task):
    """One class each pixel (or point, or moment): scores (N, classes, *size) against labels (N, *size).

    Attributes:
        ignore_index: the label of what does not count; None where all count.
        label_smoothing: the share of the target that is spread over all classes.
    """

    ignore_index: int | None = 255
    label_smoothing: float = 0.0

    name = "segmentation"
    metrics = MappingProxyType({"miou": "max", "accuracy": "max"})
    tempered: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_smoothing(self.label_smoothing)

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """The cross entropy, mean over the pixels that count; 0 where none does."""
        target = target.long()
        keep = self._counting(target)
        logits = wide(self.logits(output))
        total = cross_entropy(
            logits.movedim(1, -1).flatten(0, -2),  # in rows: of images CUDA's loss differs from run to run
            torch.where(keep, target, _IGNORED).flatten(),
            reduction="sum",
            ignore_index=_IGNORED,
            label_smoothing=self.label_smoothing,
        )
        return total / keep.sum().clamp(min=1)

    def statistics(self, output: Any, target: Tensor) -> Tensor:
        """(classes * classes,) int64: how many pixels of a class (rows) were taken for which (columns)."""
        logits = self.logits(output).detach()
        classes, keep = logits.shape[1], self._counting(target)
        pairs = target.long()[keep] * classes + logits.argmax(1)[keep]
        return torch.bincount(pairs, minlength=classes**2)

    def values(self, statistics: Tensor) -> dict[str, float]:
        """Intersection over union, mean over the classes that occur or are seen; the share of right pixels."""
        table = statistics.double().cpu()
        table = table.reshape(round(len(table) ** 0.5), -1)
        right = table.diagonal()
        union = table.sum(0) + table.sum(1) - right
        occurs = union > 0
        shares = right[occurs] / union[occurs]
        total = max(float(table.sum()), 1.0)
        return {"miou": float(shares.mean()) if len(shares) else 0.0, "accuracy": float(right.sum()) / total}

    def answers(self, output: Any, temperature: float = 1.0) -> Tensor:
        """Log-probabilities at a temperature, (N, classes, *size)."""
        return log_softmax(wide(self.logits(output)) / temperature, 1)

    def divergence(self, answers: Tensor, reference: Tensor) -> Tensor:
        """KL(reference || answers), mean over all pixels."""
        return kl_div(answers, reference, reduction="none", log_target=True).sum(1).mean()

    def check(self, output: Any, target: Any) -> None:
        """Find out whether there is a label of a known class for each pixel.

        Raises:
            ValueError: there is not.
        """
        logits = self.logits(output)
        if not isinstance(target, Tensor) or not is_whole(target):
            raise UsageError(f"segmentation needs a whole number for each pixel, not {_shown(target)}")
        if logits.dim() < 3 or target.shape != (len(logits), *logits.shape[2:]):
            raise UsageError(
                f"segmentation needs scores (N, classes, height, width) and labels (N, height, width), not scores "
                f"{tuple(logits.shape)} and labels {tuple(target.shape)}; let the network resize its scores"
            )
        _check_labels(target[self._counting(target)], logits.shape[1])

    def _counting(self, target: Tensor) -> Tensor:
        everything = torch.ones_like(target, dtype=torch.bool)
        return everything if self.ignore_index is None else target != self.ignore_index


_IGNORED = -100
"""What torch's cross entropy passes by."""


def _check_smoothing(share: float) -> None:
    if not 0 <= share < 1:
        raise UsageError(f"label_smoothing must lie in 0 to below 1, not {share}")


def _check_labels(labels: Tensor, classes: int) -> None:
    if classes < 2:
        raise UsageError(f"the network tells {classes} class(es) apart; at least 2 are needed")
    if labels.numel() and int(labels.max()) >= classes:
        raise UsageError(f"the network tells {classes} classes apart, but there is a label {int(labels.max())}")
    if labels.numel() and int(labels.min()) < 0:
        raise UsageError(f"labels are class numbers from 0, but there is a label {int(labels.min())}")


def _shown(target: object) -> str:
    return shape(target) if isinstance(target, Tensor) else type(target).__name__
