"""Progress and results on a terminal: live bars where someone watches, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table
from rich.text import Text

from ..data import DataSet
from ..edges import IDENTITY, NONE, Edge, Tally, narrowed
from ..networks import Definition, NetworkSize
from ..tracking import Tracker
from ..training import Burden, Progress
from .prediction import Prediction
from .runs import Survey
from .sweep import Standing, View, remaining


class TerminalTracker(Tracker):
    """Shows epochs as they go by: a bar with rate and remaining time on a terminal, else a line an epoch."""

    def __init__(self, console: Console, total_epochs: int) -> None:
        self.console, self.total = console, total_epochs
        self.bars: Bars | None = None
        self.task: Any = None
        self.searching = False
        self.started, self.first = time.monotonic(), 0
        if console.is_terminal:
            self.bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
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
            f"train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:7.2%}   "
            f"test loss {row['test_loss']:.4f} accuracy {row['test_accuracy']:7.2%}   "
            f"{row['seconds']:.1f} s ({row['images_per_second']:.0f} images/s)",
            highlight=False,
        )

    def searched(self, row: dict[str, Any]) -> None:
        """One line for the epoch of a search that is done."""
        learned = f"   reward {row['reward']:+.4f} entropy {row['entropy']:.2f}" if "reward" in row else ""
        self.console.print(
            f"search epoch {row['epoch']:>3}  shared weights: loss {row['train_loss']:.4f} "
            f"accuracy {row['train_accuracy']:7.2%}{learned}   "
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
        """Take the bar away."""
        if self.bars is not None:
            self.bars.stop()
            self.bars = None


@contextmanager
def watched(screen: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Within, a bar shows how far what is told has come; where nobody watches, nothing is shown."""
    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=screen,
        transient=True,
        disable=not screen.is_terminal,
    )
    tasks: dict[str, Any] = {}

    def tell(what: str, done: int, of: int) -> None:
        if what not in tasks:
            for task in tasks.values():
                bars.update(task, visible=False)
            tasks[what] = bars.add_task(what)
        bars.update(tasks[what], completed=done, total=of)

    with bars:
        yield tell


def console() -> Console:
    """The console that results are printed to; wide enough for its tables when nobody watches."""
    return Console(width=None if sys.stdout.isatty() else 120, soft_wrap=True)


def share(before: float, after: float) -> str:
    """The change from one number to another, in percent.

    >>> share(200, 150), share(0, 0)
    ('-25.0 %', '')
    """
    return f"{(after - before) / before:+.1%}".replace("%", " %") if before else ""


def predictions_table(predictions: Sequence[Prediction]) -> Table:
    """What a network takes files for: a row for each class that is shown of a file."""
    table = Table("file", "class", Column("probability", justify="right"))
    for prediction in predictions:
        for i, (name, probability) in enumerate(prediction.classes):
            file = "" if i else str(prediction.file)
            table.add_row(Text(_printable(file)), Text(_printable(name)), f"{probability:.4f}")
    return table


def predictions_text(predictions: Iterable[Prediction]) -> Iterator[str]:
    """The same as a line for each file: the file, then class and probability in turn, between tabs."""
    for prediction in predictions:
        cells = (f"{_printable(name)}\t{probability:.4f}" for name, probability in prediction.classes)
        yield "\t".join((_printable(str(prediction.file)), *cells))


def _printable(text: str) -> str:
    """A text without characters that would move a terminal's cursor or change its colours."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def survey_tables(name: str, survey: Survey, everything: bool, image: tuple[int, ...]) -> list[Table]:
    """What may change in a network for images (C, H, W), and if asked what may not and why."""
    found = survey.edges
    groups = len({e.group for e in found})
    widths = sum(e.kind == "width" for e in found)
    among = f" ({widths if widths < len(found) else 'all'} of them widths)" if widths else ""
    time = f"; {survey.latency}" if survey.latency else ""
    counted = f"images of {'x'.join(map(str, image))}"
    table = Table(title=f"{name}, {counted}: {len(found)} edges{among}, {groups} groups in cell mode{time}")
    numbers = ("MAdds", "saves", *(["saves time"] if survey.seconds else []))
    for column in ("edge", "kind", "operation", "shape", "may become", *numbers):
        # An edge's key is what one copies from here: it is folded, never cut.
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    # Other operations are many, and the same for edges alike: they are listed once, below.
    lists: dict[tuple[str, ...], str] = {}
    for edge in found:
        others = tuple(name for name, _ in edge.others)
        of_list = [lists.setdefault(others, f"others {len(lists) + 1}")] if others else []
        choices = ", ".join([*of_list, *(c for c in edge.choices[1:] if c not in others)])
        choices = _shares(edge) if edge.kind == "width" else choices
        shape = " > ".join(dict.fromkeys("x".join(map(str, s)) for s in (edge.shape_in, edge.shape_out)))
        row = [escape(edge.key), edge.kind, escape(edge.operation), shape, choices]
        row += [f"{edge.madds:,}", f"{survey.saved[edge.key]:,.0f}"]
        if survey.seconds:
            measured = len(edge.choices) - len(edge.others) > 1  # what another operation would take is not known
            row.append(f"{survey.seconds[edge.key] * 1e3:.3f} ms" if measured else "-")
        table.add_row(*row)
    if lists:
        table.caption = "\n".join(f"{name}: {', '.join(others)}" for others, name in lists.items())
        table.caption_justify = "left"
    if not everything:
        return [table]
    rest = Table(title=f"{len(survey.fixed)} operations and blocks cannot change")
    widths = any(edge.kind == "width" for edge in survey.fixed)
    for column in ("operation or block", "what", "why not identity", "why not none"):
        rest.add_column(column, overflow="fold")
    if widths:
        rest.add_column("why not narrower", overflow="fold")
    for edge in survey.fixed:
        why = dict(edge.refused)
        whys = [why.get(IDENTITY, ""), why.get(NONE, ""), ""]
        if edge.kind == "width":
            whys = ["", "", next((w for choice, w in edge.refused if choice not in (IDENTITY, NONE)), "")]
        rest.add_row(escape(edge.key), escape(edge.operation), *map(escape, whys[: 3 if widths else 2]))
    return [table, rest] if found else [rest]


def _shares(edge: Edge) -> str:
    """What a width may shrink to: the shares, and how many channels (or heads) each is."""
    ends = list(dict.fromkeys((edge.choices[1], edge.choices[-1])))
    return f"{' to '.join(ends)} ({' to '.join(str(edge.kept(choice)) for choice in ends)})"


def networks_table(title: str, found: Mapping[str, NetworkSize], sources: Mapping[str, str]) -> Table:
    """Networks by name: what they cost, where they may change, and where their definition comes from."""
    caption = "full, cell: how many thetas in each mode; in brackets with the null edges of NAT's genotypes"
    table = Table(title=f"networks {title}", caption=caption)
    for name in ("name", "parameters", "MAdds", "full", "cell", "defined in"):
        table.add_column(name, justify="left" if name in ("name", "defined in") else "right", overflow="fold")

    def thetas(plain: int | None, with_skips: int | None) -> str:
        return ("-" if plain is None else str(plain)) + (f" [{with_skips}]" if with_skips is not None else "")

    for name, size in found.items():
        full, cell = thetas(size.edges, size.skip_edges), thetas(size.groups, size.skip_groups)
        table.add_row(
            escape(name), f"{size.params:,}", f"{size.madds:,}", escape(full), escape(cell), escape(sources[name])
        )
    return table


def families_table(families: Iterable[Definition]) -> Table:
    """Networks that are named by a text: NAME:TEXT."""
    table = Table(title="and, by a text of yours", show_header=False)
    rows = [(f"{f.name}:TEXT", f.family, f.source) for f in families]
    rows += [
        ("torchvision:NAME", "a network of torchvision.models", ""),
        ("timm:NAME", "a network of timm, with pip install 'dnat[timm]'", ""),
        ("package.module:factory", "a function of yours that returns a module", ""),
    ]
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def datasets_table(found: Iterable[DataSet]) -> Table:
    """Data sets by name, with the places in which their files are looked for."""
    table = Table(title="data sets", caption="files: in --data-root, $DNAT_DATA or ./data")
    for name in ("name", "what", "classes", "training", "test", "pixels", "files"):
        table.add_column(name, overflow="fold")

    def number(value: int | None) -> str:
        return "any" if value is None else f"{value:,}"

    for d in found:
        size = "any" if d.size is None else f"{d.size}x{d.size}"
        numbers = (number(d.classes), number(d.train), number(d.test))
        table.add_row(d.name, f"{escape(d.title)} ({escape(d.source)})", *numbers, size, escape(d.files))
    return table


def result_table(record: dict[str, Any]) -> Table:
    """Accuracy, parameters, multiply-adds and time of a finished run."""
    results, seconds = record["results"], record["seconds"]
    before, after = results["cost_before"], results["cost_after"]
    table = Table(title=f"{record['job']['network']} on {record['job']['data']}, seed {record['job']['seed']}")
    for name in ("", "before", "after", "change"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row(
        "parameters", f"{before['params']:,}", f"{after['params']:,}", share(before["params"], after["params"])
    )
    table.add_row(
        "multiply-adds", f"{before['madds']:,}", f"{after['madds']:,}", share(before["madds"], after["madds"])
    )
    if "latency" in record:
        before_ms, after_ms = (record["latency"][when]["seconds"] * 1e3 for when in ("before", "after"))
        first = record["latency"]["before"]
        label = f"time for {first['batch']} on {first['device']}"
        table.add_row(label, f"{before_ms:.2f} ms", f"{after_ms:.2f} ms", share(before_ms, after_ms))
    if record["job"].get("weights") is not None:
        table.add_row("test accuracy, as it was given", f"{results['test_accuracy_before']:.2%}", "", "")
    if results["relaxed_test_accuracy"] is not None:
        moments = ("end of the architecture stage", "choices just made")
        if "search" in seconds:
            moments = ("with shared weights", "before it is trained")
        if "search" in seconds or seconds.get("architecture"):
            table.add_row(f"test accuracy, {moments[0]}", f"{results['relaxed_test_accuracy']:.2%}", "", "")
        table.add_row(f"test accuracy, {moments[1]}", "", f"{results['committed_test_accuracy']:.2%}", "")
    table.add_row("test accuracy, result", "", f"{results['test_accuracy']:.2%}", "")
    stages = "  ".join(f"{stage} {taken:.1f} s" for stage, taken in seconds.items() if taken)
    table.add_row("time", "", stages, "")
    return table


def changes_table(edges: list[dict[str, Any]]) -> Table:
    """The edges that changed, and what the choices were worth; `edges` as in architecture.json."""
    changed = [e for e in edges if e["choice"] != "original"]
    table = Table(title=str(Tally.of_reports(edges)), caption=_LEGEND, caption_justify="left")
    told = any(e.get("by") for e in changed)
    words = ("edge", "operation", "becomes", *(["chosen by"] if told else []))
    for name in (*words, "worth", "original's", "margin", "MAdds saved"):
        table.add_column(name, justify="left" if name in words else "right", overflow="fold")
    for edge in changed:
        none, identity, original = edge["gates"]
        gates = {"none": none, "identity": identity} | dict(edge.get("others", ()))
        table.add_row(
            escape(edge["key"]),
            escape(edge["operation"]),
            _becomes(edge),
            *([edge.get("by", "")] if told else []),
            *map(_worth, (gates[edge["choice"]], original, edge["margin"])),
            f"{edge['saved']:,}",
        )
    return table


def _becomes(edge: Mapping[str, Any]) -> str:
    """What an edge becomes; a width with the share by which the choice is known."""
    if edge.get("kind") != "width":
        return str(edge["choice"])
    return f"{narrowed(edge['operation'], edge['choice'])} ({edge['choice']})"


def _worth(value: float) -> str:
    """What a choice was worth, in three digits.

    >>> _worth(0.98765), _worth(-0.0)
    ('0.988', '0.000')
    """
    return f"{value:.3f}".replace("-0.000", "0.000")


_LEGEND = (
    "worth: what the choice was worth when it was made, as its judge says; margin: how far it was ahead of the "
    "next, below 0 behind it"
)
_DECIDERS = {
    "budget": "the budget",
    "target": "the cost that was asked for",
    "legality": "what can be made together",
    "rewriting": "what could be carried out",
}


_WITHOUT_THETA = ("", "chance", "evenly")
"""What decides in methods that have no theta."""


def verdict(edges: list[dict[str, Any]]) -> str:
    """A line that says whether theta chose; empty where a method without theta did.

    Args:
        edges: as in architecture.json.

    >>> verdict([{"by": "theta", "choice": "none"}, {"by": "budget", "choice": "none"}])
    'changes: 1 by theta, 1 by the budget, not by theta'
    """
    if all(edge.get("by", "") in _WITHOUT_THETA for edge in edges):
        return ""
    if any(edge["by"] == "answers" for edge in edges):
        return "of the sets that use the budget, this one has the least sum of what its choices do to the answers"
    if any(edge["by"] == "plan" for edge in edges):
        return "the choices are those of the plan"
    judge = "the loss" if any(edge["by"] == "loss" for edge in edges) else "theta"
    changed = [edge for edge in edges if edge["choice"] != "original"]
    kept = [edge for edge in edges if edge["choice"] == "original"]
    parts = []
    for of, what in ((changed, "changes"), (kept, "edges that stay")):
        others = {name: sum(e["by"] == by for e in of) for by, name in _DECIDERS.items()}
        told = [f"{count} by {name}" for name, count in others.items() if count]
        if told:
            own = len(of) - sum(others.values())
            parts.append(f"{what}: {own} by {judge}, {', '.join(told)}, not by {judge}")
    return "; ".join(parts) or f"all choices are those that {judge} prefers"


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
            more = f"  accuracy {self.accuracies[standing.name]:.2%}, {duration(standing.seconds)}"
        elif standing.state == "running" and standing.attempts > 1:
            more = f"  attempt {standing.attempts}"
        elif standing.reason:
            more = f"  {standing.reason}"
        place = f"{done:>{len(str(len(view.standings)))}}/{len(view.standings)}"
        self.console.print(f"{place}  {standing.name}: {standing.state}{escape(more)}", highlight=False)

    def finish(self) -> None:
        """Take the table away."""
        if self.live is not None:
            self.live.stop()
            self.live = None


def duration(seconds: float) -> str:
    """Seconds as one reads them.

    >>> duration(8.25), duration(75), duration(7384)
    ('8.2 s', '1:15 min', '2:03 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60) if seconds >= 3600 else round(seconds)
    return f"{minutes // 60}:{minutes % 60:02d} {'h' if seconds >= 3600 else 'min'}"


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
    head.append(f"\n{duration(seconds)} so far")
    head.append(f", about {duration(left)} left" if left else "")
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
        table.add_row(Text(name, "cyan"), live.stage or "starting", epochs, accuracy, duration(live.seconds))
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
