"""Who is told of a run's progress: the base class listens and says nothing; a line for who waits; a CSV file."""

import csv
import io
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TextIO

from .distributed import world
from .edges import Tally
from .errors import WrongTypeError
from .files import atomic_write
from .training import Burden, Progress

REDRAW_SECONDS = 0.2
"""The line of progress is drawn again when so long has passed."""


class Tracker:
    """Told of progress; every method may be left as it is. Used as a context manager, it is finished at the end.

    Attributes:
        shows_progress: whether a person sees the progress by it, so that no other line is wanted.
    """

    shows_progress = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self.failed(getattr(error, "exit_code", 1))
        self.finish()

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
        """The run is done; the record is the one that stands in record.json. The command tells of it.

        In Python whoever has the result does: `tracker.result(result.record())`.
        """

    def failed(self, code: int) -> None:
        """The run stops before its end; `code` is the command's exit code, 75 where it is to be resumed."""

    def finish(self) -> None:
        """The run has ended, one way or another."""


class Trackers(Tracker):
    """Tells several trackers, in their order."""

    def __init__(self, *trackers: Tracker) -> None:
        self.shows_progress = any(tracker.shows_progress for tracker in trackers)
        for name in [n for n, value in vars(Tracker).items() if callable(value) and not n.startswith("_")]:
            setattr(self, name, _all_of([getattr(tracker, name) for tracker in trackers]))


def _all_of(methods: Sequence[Callable[..., None]]) -> Callable[..., None]:
    def tell(*arguments: Any) -> None:
        for method in methods:
            method(*arguments)

    return tell


class CsvTracker(Tracker):
    """Writes the rows of a training to a CSV file, one an epoch, without the gates, of which there are many.

    Epochs that the file has already and that are trained again (after a resume, or anew) take the place of the
    old ones, so that the file holds each epoch once.

    Args:
        path: of the file; its folder is made with the first row.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def log(self, row: dict[str, Any]) -> None:
        """Add a row to the file."""
        before = self.path.read_text() if self.path.exists() else ""
        rows: list[dict[str, Any]] = [
            old for old in csv.DictReader(before.splitlines()) if int(old["epoch"]) < row["epoch"]
        ]
        rows.append({name: value for name, value in row.items() if name not in ("gates", "columns")})
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(n for r in rows for n in r)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self.path, text.getvalue().encode())


class ProgressLine(Tracker):
    """One line that is drawn over and over: epoch, stage, batch, loss, the first metric, and the time left.

    The loss is the mean of the present epoch so far; the metric is that of the last one, on the watched examples.

    Args:
        stream: where it is drawn; it should be a terminal's or a notebook's.
    """

    shows_progress = True

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.where, self.metric = "", ""
        self.batches, self.total = 1, 1
        self.started, self.first, self.drawn = 0.0, -1, 0.0
        self.width = 0

    def epoch(self, stage: str, progress: Progress, batches: int, epochs: int) -> None:
        """Note where the run stands."""
        self.where = f"epoch {progress.epoch + 1}/{epochs} {stage}"
        self.batches, self.total = batches, batches * epochs
        if self.first < 0:
            self.started, self.first = time.monotonic(), progress.step
        self._draw(f"{self.where} {progress.batch}/{batches}", progress.step)

    def batch(self, progress: Progress) -> None:
        """Draw the line again, if that was long ago."""
        # The loss lies on the device, for which a look at it waits.
        if time.monotonic() - self.drawn >= REDRAW_SECONDS and len(progress.totals) > 1:
            loss, count = progress.totals[:2].tolist()
            told = f", loss {loss / count:.4f}" if count else ""
            self._draw(f"{self.where} {progress.batch}/{self.batches}{told}", progress.step)

    def log(self, row: dict[str, Any]) -> None:
        """Draw the epoch's loss and metric."""
        watched = (k for k in row if k.startswith(("validation_", "test_")) and not k.endswith("_loss"))
        if (name := next(watched, None)) and isinstance(row[name], float):
            self.metric = f", {name.replace('_', ' ')} {row[name]:.4f}"
        self._draw(f"{self.where} done, loss {row['train_loss']:.4f}", row["step"])

    def finish(self) -> None:
        """End the line; its last state stays."""
        if self.width:
            self.stream.write("\n")
            self.stream.flush()
            self.width = 0

    def _draw(self, text: str, step: int) -> None:
        now = time.monotonic()
        text += self.metric
        if step > self.first:
            seconds = round((now - self.started) / (step - self.first) * max(self.total - step, 0))
            minutes = f"{seconds // 60:02d}:{seconds % 60:02d}"
            text += f", {minutes} left" if seconds < 3600 else f", {seconds / 3600:.1f} h left"
        # A line that breaks would not be drawn over.
        text = text[: shutil.get_terminal_size().columns - 1]
        self.stream.write("\r" + text.ljust(self.width))
        self.stream.flush()
        self.width, self.drawn = len(text), now


@contextmanager
def shown(tracker: Tracker, progress: bool | None) -> Iterator[Tracker]:
    """Within, a tracker with a line of progress beside it, where one is wanted.

    Args:
        tracker: is told of progress, too.
        progress: whether the line is drawn. By default it is where stderr is a terminal, and in IPython and
            Jupyter, unless the tracker shows progress itself. Of several processes the first draws.

    Raises:
        TypeError: `progress` is something else.
    """
    if progress is not None and not isinstance(progress, bool):
        raise WrongTypeError(f"progress must be True, False or None, not {progress!r}")
    watching = sys.stderr.isatty() or _in_notebook()
    if not world().first or not (progress if progress is not None else watching and not tracker.shows_progress):
        yield tracker
        return
    # Jupyter shows what is written to stderr as an error.
    line = ProgressLine(sys.stdout if _in_notebook() and not sys.stderr.isatty() else sys.stderr)
    try:
        yield Trackers(line, tracker)
    finally:
        line.finish()


def _in_notebook() -> bool:
    """Whether this is IPython or Jupyter; neither is imported for the answer."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return shell is not None and shell() is not None
