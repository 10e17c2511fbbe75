"""Examples that have any number of labels."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from ..answers import wide
from ..errors import UsageError
from .task import Task, shape


@dataclass(frozen=True)
class MultiLabel(Task):
    """Any number of labels an example: a logit each, (N, labels), against 0 or 1.

    A label is given where its probability exceeds a half. f1 is that of all labels together (micro): twice the
    labels rightly given, as a share of those given and those that are true. exact is the share of examples all of
    whose labels are right.
    """

    name = "multi-label"
    metrics = MappingProxyType({"f1": "max", "exact": "max"})
    tempered: ClassVar[bool] = True

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """The binary cross entropy, mean over examples and labels."""
        logits = wide(self.logits(output))
        return binary_cross_entropy_with_logits(logits, target.to(logits.dtype))

    def statistics(self, output: Any, target: Tensor) -> Tensor:
        """(5,) int64: labels rightly given, wrongly given and missed; examples that are all right; examples."""
        given, true = self.logits(output).detach() > 0, target > 0.5
        counts = (given & true, given & ~true, ~given & true, (given == true).flatten(1).all(1))
        sums = [count.sum() for count in counts]
        return torch.stack([*sums, sums[0].new_tensor(len(target))])

    def values(self, statistics: Tensor) -> dict[str, float]:
        """See the class; f1 is 0 where no label is true and none is given."""
        right, wrong, missed, exact, n = statistics.tolist()
        return {"f1": 2 * right / max(2 * right + wrong + missed, 1), "exact": exact / max(n, 1)}

    def answers(self, output: Any, temperature: float = 1.0) -> Tensor:
        """Logits at a temperature, (N, labels)."""
        return wide(self.logits(output)) / temperature

    def divergence(self, answers: Tensor, reference: Tensor) -> Tensor:
        """The sum over labels of KL(reference || answers), each of a yes or no, mean over examples."""
        yes = reference.sigmoid() * (logsigmoid(reference) - logsigmoid(answers))
        no = (-reference).sigmoid() * (logsigmoid(-reference) - logsigmoid(-answers))
        return (yes + no).flatten(1).sum(1).mean()

    def check(self, output: Any, target: Any) -> None:
        """Find out whether there is a 0 or 1 for each of the network's outputs.

        Raises:
            ValueError: there is not.
        """
        logits = self.logits(output)
        if not isinstance(target, Tensor) or target.shape != logits.shape or logits.dim() < 2:
            shown = shape(target) if isinstance(target, Tensor) else type(target).__name__
            raise UsageError(
                f"multi-label needs logits (N, labels) and targets of that shape, not {shape(logits)} and {shown}"
            )
        if not ((target == 0) | (target == 1)).all():
            raise UsageError(
                "multi-label needs targets that are 0 or 1: a column for each label, and no class numbers"
            )
