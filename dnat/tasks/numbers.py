"""Examples whose targets are numbers."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from ..answers import wide
from ..errors import UsageError
from .task import Task, double, shape


@dataclass(frozen=True)
class Regression(Task):
    """Numbers: (N,) or (N, outputs, ...) against a target of the same shape; (N, 1) counts as (N,).

    mae and mse are means over all numbers. r2 = 1 - (sum of squared errors) / (sum of squared deviations from the
    mean), of each output (the second dimension) over all else, and then the mean over outputs.
    """

    name = "regression"
    metrics = MappingProxyType({"mae": "min", "r2": "max", "mse": "min"})

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """The mean squared error."""
        logits = wide(self.logits(output))
        return mse_loss(logits.reshape(target.shape), target.to(logits.dtype))

    def statistics(self, output: Any, target: Tensor) -> Tensor:
        """(1 + 4 * outputs,) float64: numbers of an output; of each output the sums of absolute errors, of squared
        errors, of targets and of their squares."""
        target = double(target)
        error = double(self.logits(output).detach()).reshape(target.shape) - target
        outputs = target.shape[1] if target.dim() > 1 else 1
        rows = [
            t.reshape(len(target), outputs, -1).sum((0, 2)) for t in (error.abs(), error**2, target, target**2)
        ]
        return torch.cat([target.new_tensor([target.numel() // outputs]), *rows])

    def values(self, statistics: Tensor) -> dict[str, float]:
        """See the class; r2 of an output that does not vary is 1 without errors, else 0."""
        n = float(statistics[0].clamp(min=1))
        absolute, squared, total, squares = statistics[1:].double().cpu().reshape(4, -1)
        spread = (squares - total**2 / n).clamp(min=0)
        constant = (squared > 0).logical_not().double()
        r2 = torch.where(spread > 0, 1 - squared / spread.clamp(min=1e-300), constant)
        return {"mae": float(absolute.mean()) / n, "r2": float(r2.mean()), "mse": float(squared.mean()) / n}

    def check(self, output: Any, target: Any) -> None:
        """Find out whether there is a number for each of the network's outputs.

        Raises:
            ValueError: there is not.
        """
        logits = self.logits(output)
        same = isinstance(target, Tensor) and _squeezed(logits) == _squeezed(target)
        if not same or not target.dim():
            shown = shape(target) if isinstance(target, Tensor) else type(target).__name__
            raise UsageError(
                f"regression needs outputs and targets of the same shape, not {shape(logits)} and {shown}"
            )
        if target.is_complex():
            raise UsageError(f"regression needs real numbers, not {shape(target)}")


def _squeezed(tensor: Tensor) -> list[int]:
    return [len(tensor) if tensor.dim() else 0, *(n for n in tensor.shape[1:] if n > 1)]
