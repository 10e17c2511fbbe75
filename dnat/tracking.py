"""Who is told of a run's progress; the base class listens and says nothing."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .edges import Tally
from .training import Burden, Progress


class Tracker:
    """Told of progress; every method may be left as it is."""

    def epoch(self, stage: str, progress: Progress, batches: int, epochs: int) -> None:
        """An epoch begins, or goes on after a resume; `stage` is "search", "architecture" or "network"."""

    def batch(self, progress: Progress) -> None:
        """A batch is done."""

    def log(self, row: dict[str, Any]) -> None:
        """An epoch is done; the row is the one that stands in metrics.jsonl."""

    def burden(self, burden: Burden) -> None:
        """What a step of the architecture stage takes; where operations stand beside the original ones."""

    def searched(self, row: dict[str, Any]) -> None:
        """An epoch of a search is done; the row is the one that stands in search.jsonl."""

    def judged(self, done: int, of: int) -> None:
        """So many architectures have been judged at the end of a search."""

    def committed(self, tally: Tally) -> None:
        """The choices are made: so many of the edges changed, in each way."""

    def result(self, record: Mapping[str, Any]) -> None:
        """The run is done; the record is the one that stands in record.json."""

    def failed(self, code: int) -> None:
        """The run stops before its end; `code` is the command's exit code, 75 where it is to be resumed."""

    def finish(self) -> None:
        """The run has ended, one way or another."""


class Trackers(Tracker):
    """Tells several trackers, in their order."""

    def __init__(self, *trackers: Tracker) -> None:
        for name in [name for name in vars(Tracker) if not name.startswith("_")]:
            setattr(self, name, _all_of([getattr(tracker, name) for tracker in trackers]))


def _all_of(methods: Sequence[Callable[..., None]]) -> Callable[..., None]:
    def tell(*arguments: Any) -> None:
        for method in methods:
            method(*arguments)

    return tell
