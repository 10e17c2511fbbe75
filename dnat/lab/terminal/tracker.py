"""A run's progress on a terminal."""

import time
from typing import Any

from rich.console import Console
from rich.markup import escape
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
        self.searching = False
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
        """One line for the epoch that is done."""
        self.console.print(
            f"epoch {row['epoch']:>{len(str(self.total))}}/{self.total}  {row['stage']:<12}  "
            f"train {_measured(row, 'train')}   {(split := split_of(row))} {_measured(row, split)}   "
            f"{row['seconds']:.1f} s ({row['images_per_second']:.0f} images/s)",
            highlight=False,
        )

    def searched(self, row: dict[str, Any]) -> None:
        """One line for the epoch of a search that is done."""
        learned = f"   reward {row['reward']:+.4f} entropy {row['entropy']:.2f}" if "reward" in row else ""
        self.console.print(
            f"search epoch {row['epoch']:>3}  shared weights: {_measured(row, 'train')}{learned}   "
            f"{row['seconds']:.1f} s ({row['images_per_second']:.0f} images/s)",
            highlight=False,
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


def _measured(row: dict[str, Any], split: str) -> str:
    """Loss and first metric of a split in the row of an epoch."""
    text, metric = f"loss {row[f'{split}_loss']:.4f}", Metric(first_of(row))
    if metric.name == "loss":
        return text
    return f"{text} {escape(metric.title)} {metric.text(row[f'{split}_{metric.name}']):>7}"
