"""Data of anything: a user's data sets, loaders, lists of batches and functions as a `Source`."""

import hashlib
import itertools
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data import default_collate as default_collate

from ..errors import UsageError, WrongTypeError
from ..tracing import add_bits, tensors_of
from .batch import count_of, moved, taken_rows
from .keyed import Flow, Items, complete
from .source import Inputs, Target

TEST_BATCH = 100
"""Examples that are tested at a time where a loader does not say."""

HASHED = 4
"""Test batches that the fingerprint is of."""

CPU = torch.device("cpu")

Part = Items | Flow
"""The training, test or validation data."""


@dataclass(frozen=True, eq=False)
class LoaderData:
    """Examples from data sets and loaders of a user's own; `from_loaders` makes it. A `Source`.

    Attributes:
        name: for messages and records.
        train, test: where batches come from.
        validation: the user's own validation data, if any; see `validation_split`.
        device: where batches come out.
        notes: what a user should know of them.
    """

    name: str
    train: Part
    test: Part
    validation: Part | None = None
    device: torch.device = CPU
    notes: tuple[str, ...] = ()

    @property
    def batch_size(self) -> int | None:
        """Examples of a training batch where the loader says it; then no other number is heard."""
        return self.train.batch_size

    @property
    def train_count(self) -> int:
        """Training examples of an epoch; batches that have no length are run through once to count them."""
        return self.train.count

    @property
    def test_count(self) -> int:
        """Test examples, as `train_count`."""
        return self.test.count

    @property
    def usual_batch(self) -> int:
        """How many examples are tested at a time."""
        return self.test.batch_size or TEST_BATCH

    def steps(self, batch_size: int) -> int:
        """How many batches an epoch of training has.

        Raises:
            ValueError: fewer examples than one batch holds.
        """
        return self.train.steps(batch_size)

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
        """An epoch's training batches.

        Args:
            seed, epoch: decide order and all that is drawn at random.
            batch_size: examples a batch, where the loader says no other; batches that come as such stay so.
            start: the first batch that is wanted, counted from 0; what follows is the same wherever one starts.
            cutout: must be 0: these data are augmented by the user's own code.
            part: (which, of how many) equal parts of each batch's examples is wanted; a batch of fewer examples
                than parts is given whole.

        Yields:
            Inputs and target. Close the generator if it is not run to its end.

        Raises:
            DataError: an epoch of fewer batches than were counted.
            ValueError: a batch that is none, or the user's code fails.
        """
        if cutout:
            raise UsageError("cutout is for images of dnat.Data: put it into the transform of your data set")
        numbers = range(start, self.steps(batch_size))
        with closing(_generator(self.train.batches(seed, epoch, batch_size, numbers, part))) as batches:
            for inputs, target in complete(batches, numbers, self.train.what, epoch):
                yield moved(inputs, self.device), moved(target, self.device)

    def train_inputs(self, count: int, seed: int) -> list[Inputs]:
        """Batches of `count` training examples in all, or as many as there are.

        Those that the seed chooses, or the first where they only can be run through. What augments them cannot be
        told from what makes them, so they are augmented, the same in every call.
        """
        return [moved(i, self.device) for i in self.train.inputs(count, seed, self.train.batch_size or TEST_BATCH)]

    def test_batches(
        self, batch_size: int = TEST_BATCH, *, part: tuple[int, int] = (0, 1)
    ) -> Generator[tuple[Inputs, Target], None, None]:
        """The test batches in order, with the same draws each time; see `Source`."""
        numbers = range(part[0], 2**62, part[1])
        with closing(_generator(self.test.batches(0, 0, batch_size, numbers))) as batches:
            for inputs, target in batches:
                yield moved(inputs, self.device), moved(target, self.device)

    def example(self, n: int = 2) -> Inputs:
        """The inputs of the first `n` test examples; the first again where its first batch has fewer."""
        inputs, _ = self.test.first(n)
        return moved(taken_rows(inputs, torch.arange(n) % count_of(inputs)), self.device)

    def to(self, device: torch.device | str) -> Self:
        """The same data whose batches come on a device."""
        return replace(self, device=torch.device(device))

    def identity(self) -> str:
        """A SHA-256 over the name, and over types and sizes of a training and of a test batch."""
        digest = hashlib.sha256(self.name.encode())
        for part in (self.train, self.test):
            digest.update(str([(t.dtype, t.shape) for t in tensors_of(part.first(2))]).encode())
            digest.update(str(len(part.positions) if isinstance(part, Items) else "").encode())
        return digest.hexdigest()

    def content(self) -> str:
        """ "loaders" and the fingerprint."""
        return f"loaders {self.fingerprint()}"

    def fingerprint(self) -> str:
        """A SHA-256 over the first test batches, and the identity."""
        digest = hashlib.sha256(self.identity().encode())
        with closing(self.test_batches(TEST_BATCH)) as batches:
            for tensor in tensors_of(list(itertools.islice(batches, HASHED))):
                add_bits(digest, tensor)
        return digest.hexdigest()


def _generator(batches: Iterator[Any]) -> Generator[Any, None, None]:
    assert isinstance(batches, Generator)
    return batches


def from_loaders(train: Any, test: Any, *, validation: Any = None, name: str = "loaders") -> LoaderData:
    """Data of anything, to be trained on and tested with.

    Each of `train`, `test` and `validation` may be

    - a data set with `__getitem__` and `__len__` (torch's map-style, Hugging Face's): each epoch of training has
      an order of its own, and every example is made under a key of its own (see `dnat.data.keyed`), so that what
      augments it is the same in a run that goes on from a checkpoint, and with any number of workers;
    - a `DataLoader` of one: its collate_fn, batch_size, drop_last, workers and samplers are honoured, and examples
      are keyed as above. With shuffle=True the order is the one above, without it the data set's own;
    - an iterable of batches that can be run through many times (a list, an `IterableDataset`, a `DataLoader` of
      such), or a function seed, epoch -> iterable of batches: it is run under a seed for each epoch. To go on in
      the middle of one, what was done is run through, and lost.

    A batch is a pair (inputs, target), or a dict in which "labels" is the target. Inputs are a tensor, a tuple (of
    positional arguments of the network) or a dict (of keyword arguments). The first dimension of every tensor
    counts the examples. Generators that samplers and loaders hold are seeded anew in each epoch.

    Args:
        train, test: see above.
        validation: see `validation_split`.
        name: for messages and records.

    Raises:
        ValueError: no example or batch, batches that are none, tensors of different first dimensions.
        TypeError: something else.

    >>> x, y = torch.rand(10, 3), torch.rand(10)
    >>> data = from_loaders(torch.utils.data.TensorDataset(x, y), [(x, y)])
    >>> [tuple(inputs.shape) for inputs, _ in data.train_batches(0, 0, 4)]
    [(4, 3), (4, 3), (2, 3)]
    """
    if not isinstance(name, str) or not name:
        raise WrongTypeError(f"data must have a name, not {name!r}")
    parts = _part(train, "training data", training=True), _part(test, "test data", training=False)
    own = None if validation is None else _part(validation, "validation data", training=False)
    for part in [*parts, own] if own else parts:
        part.first(1)
    return LoaderData(name, parts[0], parts[1], own)


def _part(given: Any, what: str, *, training: bool) -> Part:
    if isinstance(given, DataLoader):
        return Flow(given, what) if isinstance(given.dataset, IterableDataset) else _loader(given, what, training)
    if isinstance(given, str | bytes | dict | torch.Tensor | type):
        raise _unusable(given, what)
    if isinstance(given, IterableDataset | list | tuple):
        return Flow(given, what)
    if isinstance(given, Dataset) or (hasattr(given, "__getitem__") and hasattr(given, "__len__")):
        return Items(given, what, range(len(given)), default_collate, shuffled=training)
    if isinstance(given, Iterator):
        raise UsageError(
            f"the {what} are an iterator, which can be run through only once: give a list, an object whose "
            "__iter__ begins anew, or a function seed, epoch -> iterable"
        )
    if isinstance(given, Iterable) or callable(given):
        return Flow(given, what)
    raise _unusable(given, what)


def _unusable(given: object, what: str) -> WrongTypeError:
    return WrongTypeError(
        f"the {what} must be a data set, a DataLoader, an iterable of batches or a function seed, "
        f"epoch -> iterable of batches, not {type(given).__name__}"
    )


def _loader(loader: DataLoader[Any], what: str, training: bool) -> Items:
    """The examples of a `DataLoader` of a map-style data set, and how it puts them together."""
    options: dict[str, Any] = {"num_workers": loader.num_workers}
    if loader.num_workers:
        names = ("prefetch_factor", "worker_init_fn", "timeout", "multiprocessing_context")
        options |= {name: getattr(loader, name) for name in names}
    if loader.pin_memory and torch.cuda.is_available():
        options["pin_memory"] = True
    around = loader.batch_sampler
    torchs = type(around) is BatchSampler  # where it is given, the loader itself does not know its size
    grouped = around is not None and not torchs
    how: Any = around if torchs else loader
    sampler: Any = how.sampler
    plain = type(sampler) is SequentialSampler or (type(sampler) is RandomSampler and _once(sampler))
    return Items(
        loader.dataset,
        what,
        range(len(loader.dataset)),  # type: ignore[arg-type]
        loader.collate_fn,
        batch_size=how.batch_size,
        drop_last=how.drop_last,
        shuffled=training and isinstance(sampler, RandomSampler),
        sampler=around if grouped else None if plain else sampler,
        grouped=grouped,
        single=around is None,
        loading=options,
    )


def _once(sampler: RandomSampler) -> bool:
    """Whether a sampler gives every example once."""
    return not sampler.replacement and sampler.num_samples == len(sampler.data_source)
