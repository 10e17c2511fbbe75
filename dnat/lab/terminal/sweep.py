"""A sweep's progress on a terminal."""

import time
from collections.abc import Iterable, Mapping

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..formatting import clock
from ..metrics import Measured, common, result_of
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
        self.results: dict[str, Measured] = {}
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
                self.results[standing.name] = result_of(standing.record())
            if self.live is None and not (before is None and standing.state in ("pending", "done")):
                self._line(standing, view)
        if self.live is not None:
            taken = time.monotonic() - self.started
            self.live.update(sweep_table(view, self.results, taken), refresh=True)

    def _line(self, standing: Standing, view: View) -> None:
        done = sum(s.state == "done" for s in view.standings)
        more = ""
        if standing.state == "done":
            result = self.results[standing.name]
            more = f"  {result.metric.title} {result}, {clock(standing.seconds)}"
        elif standing.state == "running" and standing.attempts > 1:
            more = f"  attempt {standing.attempts}"
        elif standing.reason:
            more = f"  {standing.reason}"
        place = f"{done:>{len(str(len(view.standings)))}}/{len(view.standings)}"
        self.console.print(f"{place}  {standing.name}: {standing.state}{more}", highlight=False)

    def finish(self) -> None:
        """End the live table, so that the terminal is free for results."""
        if self.live is not None:
            self.live.stop()
            self.live = None


def sweep_table(view: View, results: Mapping[str, Measured], seconds: float) -> Group:
    """A sweep at a moment: counts, the trials that run, what is finished by network and method, what went wrong.

    Args:
        view: the sweep.
        results: of the trials that are done, by name.
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
    tables = (_running(view), _finished(view, results), _troubles(view))
    return Group(head, *(part for table in tables if table.row_count for part in (Text(), table)))


def _columns(*names: str, left: int) -> Table:
    """A table without lines, with so many columns of texts, then of numbers.

    Whatever is too long for the screen is cut, since no line may be broken.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for place, name in enumerate(names):
        # Rich makes columns narrower first that may be wrapped; the texts in them are cut all the same.
        whole = name != "why"
        table.add_column(name, justify="left" if place < left else "right", overflow="ellipsis", no_wrap=whole)
    return table


def _running(view: View) -> Table:
    shown = list(view.live.items())[:_SHOWN]
    title = escape(common((live.measured.metric for _, live in shown if live.measured), "metric"))
    table = _columns("running", "stage", "epoch", title, "time", left=2)
    for name, live in shown:
        of = "" if live.stage == "search" else f"/{live.epochs}"  # a search has epochs of its own
        epochs = f"{live.epoch}{of}" if live.stage else ""
        measured = "" if live.measured is None else str(live.measured)
        table.add_row(Text(name, "cyan"), live.stage or "starting", epochs, measured, clock(live.seconds))
    return table


def _finished(view: View, results: Mapping[str, Measured]) -> Table:
    title = escape(common((result.metric for result in results.values()), "metric"))
    table = _columns("finished", "method", "seeds", f"mean {title}", left=2)
    rows: dict[tuple[str, str], list[Standing]] = {}
    for standing in view.standings:
        rows.setdefault((standing.network, standing.method), []).append(standing)
    begun = [(key, group) for key, group in rows.items() if any(s.state == "done" for s in group)]
    before = ""
    for (network, method), group in begun[:_SHOWN]:
        done = [results[s.name] for s in group if s.state == "done"]
        mean = done[0].metric.text(sum(result.value for result in done) / len(done))
        name, before = "" if network == before else network, network
        table.add_row(Text(name), Text(method), f"{len(done)} of {len(group)}", mean)
    if len(begun) > _SHOWN:
        table.add_row(f"and {len(begun) - _SHOWN} more")
    return table


def _troubles(view: View) -> Table:
    table = _columns("without a result", "", "why", left=3)
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
