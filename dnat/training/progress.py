"""Where a training stands, and how it ends early."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import DnatError

CHECK_EVERY = 8
"""Steps between two looks at whether the loss is finite: each look waits for the device."""


class NonFiniteError(DnatError, ArithmeticError):
    """The loss or the state of a training is no longer finite."""

    exit_code = 65


class Interrupted(DnatError):
    """A run was asked to stop and has saved where it stands."""

    exit_code = 75


@dataclass
class Progress:
    """Where a run stands: everything but tensors that a resumed run must know.

    Attributes:
        epoch: epochs that are done.
        batch: batches of the present epoch that are done.
        step: batches that are done in all.
        totals: summed loss, correct answers and images of the present epoch, on the device.
        seconds: seconds spent in each stage.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    totals: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))
    seconds: dict[str, float] = field(default_factory=lambda: {"architecture": 0.0, "network": 0.0})
