"""What the runs were told, where they ran, and the commands that repeat them."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...settings import UNCOUNTED
from ..summary import settings_of
from ..sweep.directory import SWEEP
from .gather import Report, Run

_NOT_SHOWN = UNCOUNTED | {"seed", "network", "data", "method"}
"""Settings that columns are named by, differ between runs of one method by design, or change nothing."""

_ABSENT = "-"

_MOST_COLUMNS = 12
"""With more, the settings of all networks stand together."""

_MANY = 4
"""So many settings that one method alone has stand in a list of their own."""


@dataclass(frozen=True)
class Settings:
    """All settings of some runs: those that are the same in all, and those that are not.

    Attributes:
        columns: what the runs are told apart by.
        same: {setting: its value}.
        differing: {setting: its value in each column}.
        own: {a column: {setting that no other column has: its value}}.
    """

    columns: tuple[str, ...]
    same: Mapping[str, str]
    differing: Mapping[str, tuple[str, ...]]
    own: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Recipe:
    """How to repeat something: the commands, and the files that they read, by name."""

    title: str
    commands: tuple[str, ...]
    files: Mapping[str, str]


def settings(report: Report) -> Settings:
    """The settings of all runs by method and, where there are some of both, by network and data."""
    many = len(report.groups) > 1 and sum(len(g.runs) for g in report.groups) <= _MOST_COLUMNS
    tables: dict[str, list[Mapping[str, str]]] = {}
    for group in report.groups:
        for method, runs in group.runs.items():
            column = f"{method}, {group.title}" if many else method
            tables.setdefault(column, []).extend(settings_of(run.record["job"]) for run in runs)
    return _compared(tables, _NOT_SHOWN)


def environments(report: Report) -> Settings:
    """Versions and machines of all runs; those that differ by run."""
    kinds: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for run in report.runs:
        table = {str(k): _ABSENT if v is None else str(v) for k, v in run.environment.items()}
        kinds.setdefault(tuple(table.items()), []).append(run.name)
    return _compared({_named(names): [dict(kind)] for kind, names in kinds.items()}, frozenset())


def recipes(report: Report, most: int) -> tuple[list[Recipe], int]:
    """How to repeat the sweeps, and the runs that were of none; a run for each network and method.

    Args:
        report: from `gather`.
        most: runs that are given at most.

    Returns:
        The recipes, and the number of runs' that are left out beyond `most`.
    """
    found = []
    for sweep in report.sweeps:
        if sweep.config:
            command = shlex.join(["dnat", "sweep", "--config", SWEEP, "--out", f"runs/{sweep.name}-again"])
            found.append(Recipe(f"sweep {sweep.name}", (command,), {SWEEP: sweep.config}))
    sweeps = {sweep.name for sweep in report.sweeps if sweep.config}
    single = []
    for group in report.groups:
        for method, runs in group.runs.items():
            alone = [r for r in runs if r.directory.resolve().parent.name not in sweeps]
            single += [_of_runs(f"{method}: {group.title}", alike) for alike in _alike(alone)]
    return found + single[:most], max(len(single) - most, 0)


def _alike(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs whose settings differ in nothing but the seed stand together."""
    kinds: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        table = {k: v for k, v in settings_of(run.record["job"]).items() if k not in UNCOUNTED | {"seed"}}
        kinds.setdefault(tuple(sorted(table.items())), []).append(run)
    return list(kinds.values())


def _of_runs(title: str, runs: Sequence[Run]) -> Recipe:
    """The first run's configuration; the others differ in their seeds."""
    file = f"{runs[0].name}.toml"
    commands = []
    for run in runs:
        words = ["dnat", "transform", "--config", file]
        if run is not runs[0]:
            words += ["--seed", str(run.trial.seed)]
        commands.append(shlex.join([*words, "--out", f"runs/{run.name}-again"]))
    return Recipe(title, tuple(commands), {file: runs[0].config})


def _compared(tables: Mapping[str, Sequence[Mapping[str, str]]], left_out: frozenset[str]) -> Settings:
    names = sorted({k for group in tables.values() for t in group for k in t if k not in left_out})
    columns = tuple(tables)
    values = {
        name: tuple(" / ".join(dict.fromkeys(t.get(name, _ABSENT) for t in tables[c])) for c in columns)
        for name in names
    }
    same = {name: row[0] for name, row in values.items() if len(set(row)) == 1 and " / " not in row[0]}
    own: dict[str, dict[str, str]] = {}
    for name, row in values.items():
        holders = [i for i, value in enumerate(row) if value != _ABSENT]
        if len(holders) == 1 < len(row):
            own.setdefault(columns[holders[0]], {})[name] = row[holders[0]]
    folded = {name for table in own.values() if len(table) >= _MANY for name in table}
    differing = {name: row for name, row in values.items() if name not in same and name not in folded}
    return Settings(columns, same, differing, {c: table for c, table in own.items() if len(table) >= _MANY})


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
