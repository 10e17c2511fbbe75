"""Batches of pictures that are decoded while the network trains, by worker processes or by this one.

Which pictures and which random numbers belong to a batch is decided here and sent to the workers, so that neither
their number nor where an epoch is taken up again can change a pixel. Workers are kept from one epoch to the next.

They are started afresh ("spawn", about a second each, measured with torch 2.13), not forked: a fork takes over
locks that other threads hold at that moment. They do not import the user's script, so that it needs no
`if __name__ == "__main__"`, and they do not hear Ctrl-C or SIGTERM: the training saves and then ends them. When
it is killed, they end.
"""

import math
import multiprocessing.context
import os
import shutil
import signal
import sys
import threading
import types
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError
from .files import ImageFiles

PREFETCH = 2
"""Batches that each worker decodes ahead."""

Task = tuple[int, np.ndarray, np.ndarray | None]
"""A batch to decode: which of the decoder's files, (B,) positions in them, and a row of draws each or None."""


@dataclass(frozen=True)
class Chosen(Sequence[Task]):
    """The tasks of an epoch, each made when it is asked for: the draws of a whole epoch are not held twice."""

    split: int
    parts: Sequence[Tensor]
    draws: np.ndarray | None

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, i: Any) -> Any:
        positions = self.parts[i].numpy()
        return self.split, positions, None if self.draws is None else self.draws[positions]


class Decoder:
    """Decodes batches, in their order.

    Args:
        files: what tasks refer to by number.
        workers: processes; 0 decodes in this one. They are started when they are first needed.
        pin: whether batches lie in pinned memory, from where a GPU fetches them faster.
    """

    def __init__(self, files: tuple[ImageFiles | None, ...], workers: int, pin: bool) -> None:
        self.pictures, self.workers, self.pin = _Pictures(files), workers, pin
        self.tasks = _Tasks()
        self.loader: DataLoader | None = None
        self.is_busy = False

    def batches(self, tasks: Sequence[Task]) -> Generator[Tensor, None, None]:
        """The pictures of each task: (B, side, side, 3) uint8.

        While one such iterator is under way, further ones decode in this process.

        Raises:
            DataError: a picture that cannot be read, with its name, or a worker that ended.
        """
        if self.workers == 0 or self.is_busy or not tasks:
            for task in tasks:
                yield _checked(self.pictures[task, True])
            return
        self.is_busy = True
        try:
            for found in self._received(tasks):
                yield _checked(found)
        finally:
            self.is_busy = False

    def _received(self, tasks: Sequence[Task]) -> Iterator[Tensor | np.ndarray | str]:
        """What the workers send."""
        # The iterator of a loader with lasting workers is the same each time; what an earlier epoch that was left
        # half way still had in hand is thrown away by the loader.
        self.tasks.list = tasks
        split, positions, _ = tasks[0]
        batch = len(positions) * math.prod(self.pictures.files[split].shape[1:])  # type: ignore[union-attr]
        self.tasks.shares = 2 * batch * (PREFETCH * self.workers + 1) < _shared_memory()
        try:
            yield from self._iterator()
        except (RuntimeError, OSError, EOFError) as error:
            self.loader = None
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            # A batch that a worker has announced can only be fetched while the worker lives.
            raise DataError(
                f"a process that decodes images ended ({error}): its memory or the shared memory may have run "
                "out; fewer workers need less, 0 decodes in the main process"
            ) from error

    def _iterator(self) -> Iterator[Any]:
        if self.loader is not None:
            return iter(self.loader)
        with _own_child_signal(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores
            self.loader = DataLoader(
                self.pictures,
                batch_size=None,
                sampler=self.tasks,
                collate_fn=_same,
                num_workers=self.workers,
                worker_init_fn=_end_with_parent,
                persistent_workers=True,
                prefetch_factor=PREFETCH,
                pin_memory=self.pin,
                multiprocessing_context=_Context(),
                generator=torch.Generator(),  # else it would draw from torch's own
            )
            return iter(self.loader)

    def close(self) -> None:
        """End the workers; they are started again when they are needed."""
        self.loader = None


class _Pictures(Dataset):
    """What the workers hold: a task's number for its pixels, or for what is wrong with them."""

    def __init__(self, files: tuple[ImageFiles | None, ...]) -> None:
        self.files = files

    def __getitem__(self, sent: tuple[Task, bool]) -> Tensor | np.ndarray | str:
        (split, positions, draws), shares = sent
        files = self.files[split]
        assert files is not None
        try:
            found = files.batch(positions, draws)
        except DataError as error:
            return str(error)  # raised in a worker it would come out wrapped, with the worker's traceback
        return found if shares else found.numpy()  # tensors are sent through shared memory, arrays through a pipe


class _Tasks:
    """The tasks of the present epoch, in place of a sampler, and whether shared memory holds their batches."""

    def __init__(self) -> None:
        self.list: Sequence[Task] = ()
        self.shares = True

    def __iter__(self) -> Iterator[tuple[Task, bool]]:
        return ((task, self.shares) for task in self.list)

    def __len__(self) -> int:
        return len(self.list)


def _checked(found: Tensor | np.ndarray | str) -> Tensor:
    if isinstance(found, str):
        raise DataError(found)
    return torch.from_numpy(found) if isinstance(found, np.ndarray) else found


def _shared_memory() -> float:
    """Bytes of shared memory that are free; a container may have as little as 64 MiB."""
    try:
        return shutil.disk_usage("/dev/shm").free  # noqa: S108 (Linux's shared memory, no file is made)
    except OSError:
        return math.inf


def _same(found: Any) -> Any:
    return found


def _end_with_parent(worker: int) -> None:
    """End this worker as soon as the process that started it has ended, however it did.

    The loader's own watch looks every five seconds, and not at all if the parent was killed before it began.
    """
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Process(multiprocessing.context.SpawnProcess):
    """A worker that does not import the user's script, with SIGINT and SIGTERM blocked from the start."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        with _blocked_signals(), _hidden_script():
            started: Any = multiprocessing.context.SpawnProcess._Popen(process_obj)
        started.terminate = started.kill  # Python ends what is left at its exit by SIGTERM, and waits for it
        return started


class _Context(multiprocessing.context.SpawnContext):
    Process = _Process


@contextmanager
def _blocked_signals() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _hidden_script() -> Iterator[None]:
    """Within, processes that are started see an empty `__main__`; nothing that they are sent comes from it."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


@contextmanager
def _own_child_signal() -> Iterator[None]:
    """Within, the loader cannot take SIGCHLD: its handler would raise anywhere, not where a batch is awaited."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)
