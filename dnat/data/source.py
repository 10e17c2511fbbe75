"""What a training asks of its data, whatever they are of."""

from collections.abc import Generator
from typing import Any, Protocol, Self, runtime_checkable

import torch

from ..errors import UsageError


@runtime_checkable
class Source(Protocol):
    """Batches of inputs and targets, in an order that follows from a seed."""

    @property
    def name(self) -> str:
        """As errors name them."""

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""

    @property
    def train_count(self) -> int:
        """How many training examples there are."""

    @property
    def test_count(self) -> int:
        """How many test examples there are."""

    def to(self, device: torch.device | str) -> Self:
        """The same on a device."""

    def identity(self) -> str:
        """What tells these data from others by name, sizes and settings."""

    def content(self) -> str:
        """What tells these data from others by what they hold."""

    def steps(self, batch_size: int) -> int:
        """Batches of an epoch."""

    def train_batches(
        self,
        seed: int,
        epoch: int,
        batch_size: int,
        *,
        start: int = 0,
        cutout: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> Generator[tuple[Any, Any], None, None]:
        """The batches of an epoch."""

    def test_batches(
        self, batch_size: int = 500, *, part: tuple[int, int] = (0, 1)
    ) -> Generator[tuple[Any, Any], None, None]:
        """The test examples."""

    def example(self, n: int = 2) -> Any:
        """Inputs of the first test examples."""


def steps_of(count: int, batch_size: int) -> int:
    """Steps of an epoch; a last batch of one example is left out, since batch norm has no use for it.

    Raises:
        ValueError: fewer examples than one batch holds.
    """
    if batch_size > count:
        raise UsageError(f"batch_size {batch_size} is larger than the {count} training images")
    return count if batch_size == 1 else count // batch_size + (count % batch_size > 1)
