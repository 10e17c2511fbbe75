"""Progress and results on a terminal: live bars where someone watches, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from .data import DataSet
from .edges import IDENTITY, NONE
from .networks import Definition, Size
from .runs import Survey
from .tracking import Tracker
from .training import Burden, Progress


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

    def committed(self, changed: int, edges: int) -> None:
        """Say that the choices are made."""
        self.console.print(f"the choices are made: {changed} of {edges} edges change", highlight=False)

    def finish(self) -> None:
        """Take the bar away."""
        if self.bars is not None:
            self.bars.stop()
            self.bars = None


def console() -> Console:
    """The console that results are printed to; wide enough for its tables when nobody watches."""
    return Console(width=None if sys.stdout.isatty() else 120, soft_wrap=True)


def share(before: float, after: float) -> str:
    """The change from one number to another, in percent.

    >>> share(200, 150), share(0, 0)
    ('-25.0 %', '')
    """
    return f"{(after - before) / before:+.1%}".replace("%", " %") if before else ""


def survey_tables(name: str, survey: Survey, everything: bool) -> list[Table]:
    """What may change in a network, and if asked what may not and why."""
    found = survey.edges
    groups = len({e.group for e in found})
    time = f"; {survey.latency}" if survey.latency else ""
    table = Table(title=f"{name}: {len(found)} edges, {groups} groups in cell mode{time}")
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
    for column in ("operation or block", "what", "why not identity", "why not none"):
        rest.add_column(column, overflow="fold")
    for edge in survey.fixed:
        why = dict(edge.refused)
        rest.add_row(escape(edge.key), escape(edge.operation), why.get(IDENTITY, ""), why.get(NONE, ""))
    return [table, rest] if found else [rest]


def networks_table(title: str, found: Mapping[str, Size], sources: Mapping[str, str]) -> Table:
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
        table.add_row(f"test accuracy, {moments[0]}", f"{results['relaxed_test_accuracy']:.2%}", "", "")
        table.add_row(f"test accuracy, {moments[1]}", "", f"{results['committed_test_accuracy']:.2%}", "")
    table.add_row("test accuracy, result", "", f"{results['test_accuracy']:.2%}", "")
    stages = "  ".join(f"{stage} {taken:.1f} s" for stage, taken in seconds.items() if taken)
    table.add_row("time", "", stages, "")
    return table


def changes_table(edges: list[dict[str, Any]]) -> Table:
    """The edges that changed, and what the choices were worth; `edges` as in architecture.json."""
    changed = [e for e in edges if e["choice"] != "original"]
    table = Table(title=f"{len(changed)} of {len(edges)} edges changed")
    for name in ("edge", "operation", "becomes", "worth", "original's", "margin", "MAdds saved"):
        table.add_column(name, justify="left" if name in ("edge", "operation", "becomes") else "right")
    for edge in changed:
        none, identity, original = edge["gates"]
        gates = {"none": none, "identity": identity} | dict(edge.get("others", ()))
        table.add_row(
            escape(edge["key"]),
            escape(edge["operation"]),
            edge["choice"],
            f"{gates[edge['choice']]:.3f}",
            f"{original:.3f}",
            f"{edge['margin']:.3f}",
            f"{edge['saved']:,}",
        )
    return table
