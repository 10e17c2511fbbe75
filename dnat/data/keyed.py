"""Batches of a user's own data sets and loaders, drawn so that they depend on seed, epoch and index alone.

Whatever draws at random (an augmentation, a collate function, a sampler) draws from the global generators of torch
(on the CPU), NumPy and Python, which are seeded for it and put back afterwards. So a batch has the same bits
whether an epoch began with it or came to it, and whether this process made it or a worker.
"""

import functools
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.distributed import DistributedSampler

from ..errors import DataError, UsageError, users_code
from ..seeds import Stream, numpy_generator, torch_seed
from .batch import Batch, count_of, parted, rows_between, taken_rows
from .source import steps_of

EVERY = range(sys.maxsize)
"""The numbers of all batches of an epoch."""


class Randomness:
    """Within, the global generators (of torch's CPU, NumPy and Python) are its own; each time they go on.

    >>> torch.manual_seed(1) and None
    >>> own = Randomness(5)
    >>> with own:
    ...     first = torch.rand(1)
    >>> outside = torch.rand(1)
    >>> with own:
    ...     second = torch.rand(1)
    >>> bool(outside == torch.rand(1, generator=torch.Generator().manual_seed(1)))
    True
    >>> torch.equal(torch.cat([first, second]), torch.rand(2, generator=torch.Generator().manual_seed(5)))
    True
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.inside: tuple[Any, Any, Any] | None = None
        self.outside = _states()

    def __enter__(self) -> None:
        self.outside = _states()
        _restore(self.inside) if self.inside else _seed(self.seed)

    def __exit__(self, *error: object) -> None:
        self.inside = _states()
        _restore(self.outside)


def _states() -> tuple[Any, Any, Any]:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002


def _seed(seed: int) -> None:
    # Of the CPU alone: torch.manual_seed would seed GPUs, too.
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 -- what users' code draws from
    random.seed(seed)


def _restore(states: tuple[Any, Any, Any]) -> None:
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    random.setstate(states[2])


def _announce(epoch: int, seed: int, *places: Any) -> None:
    """Tell samplers, data sets and loaders of an epoch, and seed the generators that they hold."""
    for place in places:
        if callable(getattr(place, "set_epoch", None)):
            place.set_epoch(epoch)
        if isinstance(getattr(place, "generator", None), torch.Generator):
            place.generator.manual_seed(seed)


class _Keyed(Dataset[Any]):
    """Examples of a data set, each drawn from a key of its own; asked for by (number of the batch, index)."""

    def __init__(self, dataset: Any, seed: int, epoch: int) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, epoch

    def __getitems__(self, places: list[tuple[int, int]]) -> list[tuple[int, Any]]:
        """Examples of a batch; to keep the states of the generators for each takes longer than most examples."""
        examples = []
        with Randomness(0):
            for number, index in places:
                _seed(torch_seed(self.seed, Stream.AUGMENTATION, self.epoch, "example", index))
                examples.append((number, self.dataset[index]))
        return examples


@dataclass(frozen=True)
class _Collated:
    """A batch of examples, collated under a key of its own."""

    collate: Callable[[Any], Any]
    single: bool
    seed: int
    epoch: int

    def __call__(self, pairs: list[tuple[int, Any]]) -> Any:
        with Randomness(torch_seed(self.seed, Stream.AUGMENTATION, self.epoch, "batch", pairs[0][0])):
            return self.collate(pairs[0][1] if self.single else [item for _, item in pairs])


@dataclass(frozen=True)
class Items:
    """A data set whose examples can be asked for one by one (map-style).

    Attributes:
        dataset: has `__getitem__` and `__len__`.
        what: it is, for messages.
        positions: of the examples that count.
        collate: makes a batch of a list of examples; of one example where `single`.
        batch_size: where it is given.
        drop_last: whether a last batch of fewer examples is left out.
        shuffled: whether each epoch has an order of its own (by seed and epoch); else they come in theirs.
        sampler: of the user's, which says the order; None for the above.
        grouped: whether the sampler gives lists of positions, a batch each.
        single: whether an example is a batch already.
        loading: options of torch's DataLoader that do not change what it gives (workers).
    """

    dataset: Any
    what: str
    positions: tuple[int, ...] | range
    collate: Callable[[Any], Any]
    batch_size: int | None = None
    drop_last: bool = False
    shuffled: bool = False
    sampler: Sampler[Any] | Iterable[Any] | None = None
    grouped: bool = False
    single: bool = False
    loading: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.sampler, DistributedSampler):
            raise UsageError(
                f"the {self.what} have a DistributedSampler: give a loader without it, the examples of each "
                "batch are divided among processes here"
            )
        if not len(self.positions):
            raise UsageError(f"the {self.what} are empty: there is no example")

    def order(self, seed: int, epoch: int) -> list[Any]:
        """The positions of an epoch's examples (or batches of them), in its order."""
        if self.sampler is not None:
            key = torch_seed(seed, Stream.ORDER, epoch, "sampler")
            _announce(epoch, key, self.sampler, getattr(self.sampler, "sampler", None))
            with users_code(f"the sampler of the {self.what} failed"), Randomness(key):
                return list(self.sampler)
        if not self.shuffled:
            return list(self.positions)
        chosen = numpy_generator(seed, Stream.ORDER, epoch).permutation(len(self.positions))
        return [self.positions[i] for i in chosen]

    def chunks(self, seed: int, epoch: int, batch_size: int) -> list[list[int]]:
        """The positions of each of an epoch's batches."""
        order = self.order(seed, epoch)
        if self.grouped:
            return [list(map(int, chunk)) for chunk in order]
        size = 1 if self.single else self.batch_size or batch_size
        chunks = [list(map(int, order[i : i + size])) for i in range(0, len(order), size)]
        return chunks[:-1] if self.drop_last and chunks and len(chunks[-1]) < size else chunks

    def steps(self, batch_size: int) -> int:
        """Batches of an epoch of training; see `steps_of`."""
        if self.grouped or self.single:
            return len(self.chunks(0, 0, batch_size))
        examples = len(self.positions) if self.sampler is None else len(self.order(0, 0))
        return steps_of(examples, self.batch_size or batch_size, drop_last=self.drop_last, what="examples")

    @functools.cached_property
    def count(self) -> int:
        """The examples of an epoch."""
        if self.single:
            return sum(count_of(inputs) for inputs, _ in self.batches(0, 0, 1))
        if self.sampler is None and not (self.drop_last and self.batch_size):
            return len(self.positions)
        return sum(map(len, self.chunks(0, 0, self.batch_size or 1)))

    def batches(
        self, seed: int, epoch: int, batch_size: int, numbers: range = EVERY, rows: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """Batches of an epoch.

        Args:
            seed, epoch: decide order and draws.
            batch_size: where the data have none of their own.
            numbers: of the batches that are wanted.
            rows: (which, of how many) parts of the examples of each.
        """
        chunks = [(i, chunk) for i, chunk in enumerate(self.chunks(seed, epoch, batch_size)) if i in numbers]
        if not self.single:
            chunks = [(i, [chunk[k] for k in rows_between(len(chunk), *rows)]) for i, chunk in chunks]
        for batch in self._fetched(chunks, seed, epoch, self.loading):
            yield parted(batch, self.what, rows if self.single else (0, 1))

    def _fetched(
        self, chunks: list[tuple[int, list[int]]], seed: int, epoch: int, loading: Mapping[str, Any]
    ) -> Iterator[Any]:
        loader = DataLoader(
            _Keyed(self.dataset, seed, epoch),
            batch_sampler=[[(number, index) for index in chunk] for number, chunk in chunks],
            collate_fn=_Collated(self.collate, self.single, seed, epoch),
            generator=torch.Generator().manual_seed(0),  # or it would draw from the global one
            **loading,
        )
        with users_code(f"the {self.what} cannot be read"):
            batches = iter(loader)
        while True:
            with users_code(f"the {self.what} cannot be read"):
                batch = next(batches, self)
            if batch is self:
                return
            yield batch

    def first(self, n: int) -> Batch:
        """A batch of the first `n` examples (of one batch, where examples are batches)."""
        return self.of(list(self.positions[: 1 if self.single else n]))

    def of(self, positions: list[int], number: int = 0) -> Batch:
        """A batch of these examples, read in this process."""
        return parted(next(self._fetched([(number, positions)], 0, 0, {})), self.what)

    def inputs(self, count: int, seed: int, batch_size: int) -> Iterator[Any]:
        """Inputs of so many examples in batches, chosen by a seed; each is drawn as in no epoch."""
        order = numpy_generator(seed, Stream.ORDER, "sensitivity").permutation(len(self.positions))
        size, done, at = 1 if self.single else self.batch_size or batch_size, 0, 0
        while done < count and at < len(order):
            chosen = order[at : at + (size if self.single else min(size, count - done))]
            inputs, _ = self.of([int(self.positions[i]) for i in chosen], at)
            inputs = cut(inputs, count - done)
            yield inputs
            done, at = done + count_of(inputs), at + len(chosen)


def cut(inputs: Any, most: int) -> Any:
    """The first so many examples of a batch's inputs."""
    return inputs if count_of(inputs) <= most else taken_rows(inputs, slice(0, most))


@dataclass(frozen=True)
class Flow:
    """Batches that can only be run through: an iterable of them, or a function seed, epoch -> iterable.

    Attributes:
        source: an iterable that can be run through many times, or a function.
        what: they are, for messages.
    """

    source: Any
    what: str

    @property
    def batch_size(self) -> None:
        """It is not known."""
        return None

    def run(self, seed: int, epoch: int) -> Iterator[Any]:
        """An epoch's batches as the user's code gives them."""
        key = torch_seed(seed, Stream.AUGMENTATION, epoch, "flow")
        own, end = Randomness(key), object()
        _announce(epoch, key, self.source, getattr(self.source, "dataset", None))
        with users_code(f"the {self.what} cannot be read"), own:
            batches = iter(self.source(seed, epoch) if callable(self.source) else self.source)
        while True:
            with users_code(f"the {self.what} cannot be read"), own:
                batch = next(batches, end)
            if batch is end:
                return
            yield batch

    def steps(self, batch_size: int) -> int:
        """Batches of an epoch, counted in one where the iterable has no length."""
        try:
            return len(self.source)
        except TypeError:
            return self._counted[0]

    @property
    def count(self) -> int:
        """The examples of an epoch, counted in one."""
        return self._counted[1]

    @functools.cached_property
    def _counted(self) -> tuple[int, int]:
        sizes = [count_of(inputs) for inputs, _ in self.batches(0, 0, 0)]
        return len(sizes), sum(sizes)

    def batches(
        self, seed: int, epoch: int, batch_size: int, numbers: range = EVERY, rows: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """As of `Items`: what is not wanted is run through."""
        if not numbers:
            return
        for number, batch in enumerate(self.run(seed, epoch)):
            if number in numbers:
                yield parted(batch, self.what, rows)
            if number >= numbers[-1]:
                return

    def first(self, n: int) -> Batch:
        """The first batch."""
        for batch in self.batches(0, 0, n):
            return batch
        raise UsageError(f"the {self.what} are empty: there is no batch")

    def inputs(self, count: int, seed: int, batch_size: int) -> Iterator[Any]:
        """Inputs of so many examples: the first of an epoch."""
        done = 0
        for inputs, _ in self.batches(seed, 0, batch_size):
            inputs = cut(inputs, count - done)
            yield inputs
            done += count_of(inputs)
            if done >= count:
                return


def complete(batches: Iterator[Batch], numbers: range, what: str, epoch: int) -> Iterator[Batch]:
    """Batches of an epoch, as many as were expected.

    Raises:
        DataError: there are fewer.
    """
    seen = 0
    for batch in batches:
        seen += 1
        yield batch
    if seen < len(numbers):
        raise DataError(
            f"the {what} have {numbers.start + seen} batches in epoch {epoch}, but {numbers.stop} were counted: "
            "every epoch must have as many"
        )
