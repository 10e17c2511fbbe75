"""A training that stops and goes on with the same bits: when it saves, what it asks, and what it tells.

The bits that are not in weights are here, too: the state of torch's own generators.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .checkpoints import Checkpoints
from .distributed import anyone, from_first
from .errors import UsageError, WrongTypeError
from .tracking import Tracker, shown
from .training import Evaluation, Interrupted, Progress

SAVE_SECONDS = 30.0
"""A checkpoint is written at the end of each epoch, and when this long has passed since the last one."""

FORMAT = 2
"""Of checkpoints; those of other ones are refused."""

Stop = Callable[[Progress], bool]


@dataclass(frozen=True)
class Listeners:
    """Who hears of a run, and may stop it.

    Attributes:
        records: of the run directory, or of its search; None keeps nothing.
        tracker: is told of progress.
        stop: asked after each batch whether to save and stop.

    Raises:
        TypeError: something else was given.
    """

    records: Checkpoints | None = None
    tracker: Tracker = field(default_factory=Tracker)
    stop: Stop | None = None

    def __post_init__(self) -> None:
        if self.records is not None and not isinstance(self.records, Checkpoints):
            kind = type(self.records).__name__
            raise WrongTypeError(f"records must be a dnat.Records, not {kind}: dnat.Records.open(directory, job)")
        if not isinstance(self.tracker, Tracker):
            raise WrongTypeError(f"tracker must be a dnat.Tracker, not {type(self.tracker).__name__}")
        if self.stop is not None and not callable(self.stop):
            raise WrongTypeError(f"stop must be a function, not {type(self.stop).__name__}")

    @classmethod
    def of(cls, records: Checkpoints | None, tracker: Tracker | None, stop: Stop | None) -> "Listeners":
        """Those that were given."""
        return cls(records, Tracker() if tracker is None else tracker, stop)

    @contextmanager
    def showing(self, progress: bool | None) -> Iterator["Listeners"]:
        """Within, those with a line of progress beside them, where one is wanted; see `tracking.shown`."""
        with shown(self.tracker, progress) as tracker:
            yield replace(self, tracker=tracker)


class Loop:
    """Saves a training when it is time, and stops it when it is asked to.

    Args:
        listeners: who hears of it.
        save: writes where the training stands.

    Attributes:
        history: the rows of its epochs.
    """

    def __init__(self, listeners: Listeners, save: Callable[[], None]) -> None:
        self.listeners = listeners
        self.history: list[dict[str, Any]] = []
        self._write = save
        self._saved_at = time.monotonic()

    def goes_on(self) -> None:
        """Take the rows of the epochs that are done from the run directory."""
        records = self.listeners.records
        self.history = from_first(lambda: records.metrics() if records else [])

    def pause(self, progress: Progress, where: str) -> None:
        """Between two steps: save if it is time, or if the training is to stop.

        Raises:
            Interrupted: it is to stop; in all processes, if one of them says so.
        """
        stop, late = self.listeners.stop, time.monotonic() - self._saved_at > SAVE_SECONDS
        stopped, due = anyone(bool(stop and stop(progress)), late)
        if stopped or due:
            self.save()
        if stopped:
            raise Interrupted(f"stopped after {where}")

    def log(self, row: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
        """An epoch is done: keep its row, tell of it, and save."""
        self.history.append(row)
        if self.listeners.records:
            self.listeners.records.log(row)
        tell(row)
        self.save()

    def save(self) -> None:
        """Write where the training stands."""
        self._write()
        self._saved_at = time.monotonic()


def check_format(checkpoint: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that an older dnat wrote.

    Raises:
        ValueError: it is one.
    """
    if checkpoint.get("format") != FORMAT:
        raise UsageError(
            "the run directory holds a run that an older dnat began: end it with that one, or choose another "
            "directory"
        )


Random = tuple[Tensor, list[Tensor]]
"""The state of torch's global generators, of the CPU and of each GPU."""


def random_state() -> Random:
    """The state of torch's global generators, which dropout draws from."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def set_random_state(state: Random) -> None:
    """Let torch's global generators go on from a state."""
    torch.set_rng_state(state[0])
    if state[1] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state[1])


def row_of(
    progress: Progress,
    stage: str,
    rate: float,
    *,
    trained: Evaluation,
    tested: Evaluation | None = None,
    watched: str = "test",
) -> dict[str, Any]:
    """The row of an epoch, as it stands in metrics.jsonl; what was tested is called as it is `watched`."""
    row: dict[str, Any] = {"epoch": progress.epoch, "stage": stage, "step": progress.step, "lr": rate}
    for split, measured in (("train", trained), (watched, tested)):
        row |= {f"{split}_{name}": value for name, value in measured.table().items()} if measured else {}
    return row


def peak_memory(device: torch.device) -> int:
    """The most bytes that tensors took on a GPU so far, or else the most that this process took of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows does not tell
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
