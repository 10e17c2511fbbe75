"""A sweep's progress on a terminal."""

import time
from collections.abc import Iterable, Mapping

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..formatting import clock
from ..sweep import Standing, View, remaining

_STATES = {"done": "green", "running": "cyan", "pending": "dim", "interrupted": "yellow", "failed": "red"}
"""The states of trials in the order in which they are counted, and their colours."""

_SHOWN = 20
"""Most rows of a part of the live table: what does not fit on the screen cannot be drawn again."""


class SweepScreen:
    """Shows how a sweep goes on: one table that is drawn again on a terminal, else a line a change of state."""

    def __init__(self, console: Console) -> None:
        self.console, self.started = console, time.monotonic()
        self.known: dict[str, tuple[str, int]] = {}
        self.accuracies: dict[str, float] = {}
        self.live: Live | None = None
        if console.is_terminal:
            self.live = Live(console=console, auto_refresh=False, transient=True)
            self.live.start()

    def show(self, view: View) -> None:
        """Show a sweep as it is now."""
        for standing in view.standings:
            before, now = self.known.get(standing.name), (standing.state, standing.attempts)
            if before == now:
                continue
            self.known[standing.name] = now
            if standing.state == "done":
                self.accuracies[standing.name] = standing.record()["results"]["test_accuracy"]
            if self.live is None and not (before is None and standing.state in ("pending", "done")):
                self._line(standing, view)
        if self.live is not None:
            taken = time.monotonic() - self.started
            self.live.update(sweep_table(view, self.accuracies, taken), refresh=True)

    def _line(self, standing: Standing, view: View) -> None:
        done = sum(s.state == "done" for s in view.standings)
        more = ""
        if standing.state == "done":
            more = f"  accuracy {self.accuracies[standing.name]:.2%}, {clock(standing.seconds)}"
        elif standing.state == "running" and standing.attempts > 1:
            more = f"  attempt {standing.attempts}"
        elif standing.reason:
            more = f"  {standing.reason}"
        place = f"{done:>{len(str(len(view.standings)))}}/{len(view.standings)}"
        self.console.print(f"{place}  {standing.name}: {standing.state}{escape(more)}", highlight=False)

    def finish(self) -> None:
        """End the live table, so that the terminal is free for results."""
        if self.live is not None:
            self.live.stop()
            self.live = None


def sweep_table(view: View, accuracies: Mapping[str, float], seconds: float) -> Group:
    """A sweep at a moment: counts, the trials that run, what is finished by network and method, what went wrong.

    Args:
        view: the sweep.
        accuracies: of the trials that are done, by name, from 0 to 1.
        seconds: since the sweep was started.
    """
    counts = {state: sum(s.state == state for s in view.standings) for state in _STATES}
    head = Text(f"{len(view.standings)} trials")
    for state, style in _STATES.items():
        if counts[state]:
            head.append("   ").append(f"{counts[state]} {state}", style)
    left = remaining(view)
    head.append(f"\n{clock(seconds)} so far")
    head.append(f", about {clock(left)} left" if left else "")
    tables = (_running(view), _finished(view, accuracies), _troubles(view))
    return Group(head, *(part for table in tables if table.row_count for part in (Text(), table)))


def _columns(*names: str) -> Table:
    """A table without lines; whatever is too long for the screen is cut, since no line may be broken."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in names:
        right = name in ("epoch", "accuracy", "time", "seeds", "mean accuracy")
        # Rich makes columns narrower first that may be wrapped; the texts in them are cut all the same.
        whole = name != "why"
        table.add_column(name, justify="right" if right else "left", overflow="ellipsis", no_wrap=whole)
    return table


def _running(view: View) -> Table:
    table = _columns("running", "stage", "epoch", "accuracy", "time")
    for name, live in list(view.live.items())[:_SHOWN]:
        of = "" if live.stage == "search" else f"/{live.epochs}"  # a search has epochs of its own
        epochs = f"{live.epoch}{of}" if live.stage else ""
        accuracy = "" if live.accuracy is None else f"{live.accuracy:.2%}"
        table.add_row(Text(name, "cyan"), live.stage or "starting", epochs, accuracy, clock(live.seconds))
    return table


def _finished(view: View, accuracies: Mapping[str, float]) -> Table:
    table = _columns("finished", "method", "seeds", "mean accuracy")
    rows: dict[tuple[str, str], list[Standing]] = {}
    for standing in view.standings:
        rows.setdefault((standing.network, standing.method), []).append(standing)
    begun = [(key, group) for key, group in rows.items() if any(s.state == "done" for s in group)]
    before = ""
    for (network, method), group in begun[:_SHOWN]:
        found = [accuracies[s.name] for s in group if s.state == "done"]
        name, before = "" if network == before else network, network
        table.add_row(Text(name), Text(method), f"{len(found)} of {len(group)}", f"{sum(found) / len(found):.2%}")
    if len(begun) > _SHOWN:
        table.add_row(f"and {len(begun) - _SHOWN} more")
    return table


def _troubles(view: View) -> Table:
    table = _columns("without a result", "", "why")
    found = [s for s in view.standings if s.state in ("failed", "interrupted")]
    for standing in found[-5:]:
        state = Text(standing.state, _STATES[standing.state])
        why = Text(standing.reason, no_wrap=True, overflow="ellipsis")
        table.add_row(Text(standing.name), state, why)
    return table


def troubles_text(standings: Iterable[Standing]) -> Text:
    """The trials of a sweep that have no result, why, and where to read more; what is alike is told once."""
    alike: dict[tuple[str, str], list[Standing]] = {}
    for standing in standings:
        alike.setdefault((standing.state, standing.reason), []).append(standing)
    text = Text()
    for (state, reason), group in alike.items():
        names = ", ".join(s.name for s in group[:3]) + (f" and {len(group) - 3} more" if len(group) > 3 else "")
        text.append(f"{names}: ").append(state, _STATES[state])
        text.append(f"\n    {reason}\n    log: {group[0].log}\n")
    return text
