"""What training asks of data: of images in memory or in files (`Data`), and of anything (`LoaderData`)."""

from collections.abc import Generator
from typing import Any, Protocol, Self, TypeAlias, runtime_checkable

import torch

from ..errors import UsageError

Inputs: TypeAlias = Any
"""What a network is called with for a batch: a tensor, a tuple of positional, or a dict of keyword arguments.

The first dimension of every tensor counts the examples, here and in targets; what has none belongs to all.
"""

Target: TypeAlias = Any
"""What a batch's answers are compared to: a tensor, or a nested structure of tensors."""


@runtime_checkable
class Source(Protocol):
    """Training and test examples, in batches that depend on seed and epoch alone."""

    @property
    def name(self) -> str:
        """For messages and records."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of them."""

    @property
    def device(self) -> torch.device:
        """Where batches come out."""

    @property
    def train_count(self) -> int:
        """How many training examples an epoch has."""

    @property
    def test_count(self) -> int:
        """How many test examples there are."""

    @property
    def usual_batch(self) -> int:
        """How many examples are tested at a time."""

    def steps(self, batch_size: int) -> int:
        """How many batches an epoch of training has.

        Raises:
            ValueError: fewer examples than one batch holds.
        """

    def train_batches(
        self,
        seed: int,
        epoch: int,
        batch_size: int,
        *,
        start: int = 0,
        cutout: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> Generator[tuple[Inputs, Target], None, None]:
        """An epoch's batches from one on, with the same bits wherever one starts. Close it before its end."""

    def train_inputs(self, count: int, seed: int) -> list[Inputs]:
        """Batches of `count` training examples in all, or as many as there are; not augmented if possible."""

    def test_batches(
        self, batch_size: int = 500, *, part: tuple[int, int] = (0, 1)
    ) -> Generator[tuple[Inputs, Target], None, None]:
        """The test batches in order; of several parts, every how many of them, beginning with which."""

    def example(self, n: int = 2) -> Inputs:
        """The inputs of `n` test examples."""

    def to(self, device: torch.device | str) -> Self:
        """The same data on a device."""

    def identity(self) -> str:
        """A SHA-256 over what tells data apart at little cost."""

    def content(self) -> str:
        """How the data are held, and their fingerprint."""

    def fingerprint(self) -> str:
        """A SHA-256 over the examples themselves, or some of them."""


def steps_of(examples: int, batch_size: int, *, drop_last: bool = False, what: str = "images") -> int:
    """Steps of an epoch; a last batch of one example is left out, since batch norm has no use for it.

    Args:
        examples: of an epoch.
        batch_size: examples of a batch.
        drop_last: whether a last batch of fewer examples is left out, too.
        what: examples are, for the message.

    Raises:
        ValueError: fewer examples than one batch holds.

    >>> steps_of(101, 10), steps_of(102, 10), steps_of(102, 10, drop_last=True), steps_of(3, 1)
    (10, 11, 10, 3)
    """
    if batch_size > examples:
        raise UsageError(f"batch_size {batch_size} is larger than the {examples} training {what}")
    if batch_size == 1:
        return examples
    return examples // batch_size + (examples % batch_size > 1 and not drop_last)


def usual_batch(size: tuple[int, int]) -> int:
    """How many images of a height and width are tested at a time: of 32 x 32 pixels 100, of 224 x 224 eight.

    Of larger batches what one layer hands to the next leaves the processor's caches: 500 images of CIFAR-10 at a
    time take 1.5 to 1.7 times as long an image (`python benchmarks/evaluation.py`).
    """
    pixels = size[0] * size[1]
    return min(500, 100 * 32**2 // pixels) if pixels <= 32**2 else max(1, min(100, 8 * 224**2 // pixels))
