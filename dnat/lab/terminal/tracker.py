"""A run's progress on a terminal."""

import time
from typing import Any

from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import TextColumn

from ...edges import Tally
from ...tracking import Tracker
from ...training import Burden, Progress
from ..metrics import Metric, first_of, split_of
from .console import bars


class TerminalTracker(Tracker):
    """Shows epochs as they go by: a bar with rate and remaining time on a terminal, else a line an epoch."""

    shows_progress = True

    def __init__(self, console: Console, total_epochs: int) -> None:
        self.console, self.total = console, total_epochs
        self.bars: Bars | None = None
        self.task: Any = None
        self.searching, self.headed = False, False
        self.started, self.first = time.monotonic(), 0
        if console.is_terminal:
            self.bars = bars(console, TextColumn("{task.fields[rate]}"))
            self.bars.start()

    def epoch(self, stage: str, progress: Progress, batches: int, epochs: int) -> None:
        """Show which epoch of which stage begins."""
        if stage != "search":
            self.total = epochs  # narrower networks may take more than were asked for
        if self.bars is None:
            return
        label = f"epoch {progress.epoch + 1}/{epochs} [dim]{stage}[/dim]"
        if self.task is not None and self.searching and stage != "search":
            self.bars.remove_task(self.task)
            self.task = None
        self.searching = stage == "search"
        if self.task is None:
            self.task = self.bars.add_task(label, total=batches * epochs, completed=progress.step, rate="")
            self.started, self.first = time.monotonic(), progress.step
        self.bars.update(self.task, description=label)

    def batch(self, progress: Progress) -> None:
        """Move the bar."""
        if self.bars is not None:
            rate = (progress.step - self.first) / max(time.monotonic() - self.started, 1e-9)
            self.bars.update(self.task, completed=progress.step, rate=f"{rate:.1f} steps/s")

    def log(self, row: dict[str, Any]) -> None:
        """One line for the epoch that is done; above the first, one that says what stands in it."""
        cells = _cells(row, self.total)
        least = (2 * len(str(self.total)) + 1, *[0] * (len(cells) - 3), _OF_TIME, 0)
        widths = [max(len(name), len(cell), n) for (name, cell), n in zip(cells, least, strict=True)]
        lines = [[name for name, _ in cells]] * (not self.headed) + [[cell for _, cell in cells]]
        self.headed = True
        for line in lines:
            text = "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            self.console.print(f"{text}  {'stage' if line is not lines[-1] else row['stage']}", highlight=False)

    def searched(self, row: dict[str, Any]) -> None:
        """One line for the epoch of a search that is done."""
        learned = f"   reward {row['reward']:+.4f} entropy {row['entropy']:.2f}" if "reward" in row else ""
        self.console.print(
            f"search epoch {row['epoch']:>3}  shared weights: {_measured(row, 'train')}{learned}   "
            f"{row['seconds']:.1f} s ({row['images_per_second']:.0f} images/s)",
            highlight=False,
            markup=False,
        )

    def judged(self, done: int, of: int) -> None:
        """One line when all are judged."""
        if done == of:
            self.console.print(f"search: {of} architectures judged", highlight=False)

    def burden(self, burden: Burden) -> None:
        """Say what a step of the architecture stage takes."""
        self.console.print(str(burden), highlight=False)

    def committed(self, tally: Tally) -> None:
        """Say that the choices are made."""
        self.console.print(f"the choices are made: {tally}", highlight=False)

    def finish(self) -> None:
        """End the live bar, so that the terminal is free for results."""
        if self.bars is not None:
            self.bars.stop()
            self.bars = None


_OF_TIME = len("99.9 s")
"""Letters of the time at least, so that the numbers of all epochs stand below one another."""


def _cells(row: dict[str, Any], total: int) -> list[tuple[str, str]]:
    """The numbers in the row of an epoch with their names: loss and first metric of both parts, and the time."""
    metric, cells = Metric(first_of(row)), [("epoch", f"{row['epoch']}/{total}")]
    for split in dict.fromkeys(("train", split_of(row))):
        cells.append((f"{split} loss", f"{row[f'{split}_loss']:.4f}"))
        if metric.name != "loss":
            cells.append((metric.title, metric.text(row[f"{split}_{metric.name}"])))
    return [*cells, ("time", f"{row['seconds']:.1f} s"), ("per s", f"{row['images_per_second']:.0f}")]


def _measured(row: dict[str, Any], split: str) -> str:
    """Loss and first metric of a split in the row of a search's epoch."""
    text, metric = f"loss {row[f'{split}_loss']:.4f}", Metric(first_of(row))
    return text if metric.name == "loss" else f"{text} {metric.title} {metric.text(row[f'{split}_{metric.name}'])}"
