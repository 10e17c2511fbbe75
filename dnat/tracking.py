"""Who is told of a run's progress. The base class listens and says nothing."""

from typing import Any

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

    def committed(self, changed: int, edges: int) -> None:
        """The choices are made: so many of the edges changed."""

    def finish(self) -> None:
        """The run has ended, one way or another."""
