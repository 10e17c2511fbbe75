"""Run directories and sweep directories -> what a report tells of: finished runs, and those that are not.

What cannot be read is never left out without a word: a run whose files are damaged stands among the unfinished
ones with the reason, a finished run without its curves is noted.
"""

import math
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ...files import parse_json
from ...naming import unknown
from ...rundir import ARCHITECTURE, CONFIG, ENVIRONMENT, METRICS, RECORD, RunFiles, runs_in
from ..metrics import Metric
from ..summary import Row, Summary, Trial, summarize, trial_from
from ..summary.grouping import are_one_run, labels_by, told_apart
from ..sweep import read as standings_of
from ..sweep.directory import SWEEP, SweepFiles


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        name: of its directory.
        directory: as it was found.
        record: record.json.
        trial: what a comparison needs of it.
        metrics: the rows of metrics.jsonl, one an epoch; empty where they cannot be read.
        architecture: architecture.json; empty where it cannot be read.
        environment: environment.json; likewise.
        config: the text of config.toml.
    """

    name: str
    directory: Path
    record: Mapping[str, Any]
    trial: Trial
    metrics: tuple[Mapping[str, Any], ...]
    architecture: Mapping[str, Any]
    environment: Mapping[str, Any]
    config: str


@dataclass(frozen=True)
class Unfinished:
    """A run without a result.

    Attributes:
        name: of its directory.
        state: "pending", "running", "interrupted", "failed" or "damaged".
        reason: why, as far as that is known.
        resume: what goes on with it; empty where nothing does.
    """

    name: str
    state: str
    reason: str
    resume: str


@dataclass(frozen=True)
class Sweep:
    """A sweep directory: its name and the text of its sweep.toml (empty where it has none)."""

    name: str
    config: str


@dataclass(frozen=True)
class Group:
    """All runs of one network on one data set.

    Attributes:
        data, network: by name.
        rows: of the summary, the baseline first.
        runs: of each row's method, by seed.
    """

    data: str
    network: str
    rows: tuple[Row, ...]
    runs: Mapping[str, tuple[Run, ...]]

    @property
    def title(self) -> str:
        """The network and its data set in words."""
        return f"{self.network} on {self.data}"

    @property
    def metric(self) -> Metric:
        """What its runs are judged by."""
        return self.rows[0].metric

    @property
    def watched(self) -> str:
        """The metric on the examples of the curves, as the title of an axis."""
        splits = sorted({split for row in self.rows for split in row.watched})
        return f"{' or '.join(splits)} {self.metric.column}"

    @property
    def tested(self) -> str:
        """The metric on the test examples, as the title of an axis."""
        return f"test {self.metric.column}"


@dataclass(frozen=True)
class Report:
    """Everything that a report tells.

    Attributes:
        runs: the finished ones, in the order of the summary.
        unfinished: all others, by name.
        summary: the statistics over seeds.
        sweeps: that the runs came from.
        notes: what could not be read of finished runs.
    """

    runs: tuple[Run, ...]
    unfinished: tuple[Unfinished, ...]
    summary: Summary
    sweeps: tuple[Sweep, ...]
    notes: tuple[str, ...]

    @property
    def records(self) -> tuple[Mapping[str, Any], ...]:
        """record.json of each finished run."""
        return tuple(run.record for run in self.runs)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What the runs are judged by; one for each data set."""
        return tuple(dict.fromkeys(row.metric for row in self.summary.rows))

    @property
    def groups(self) -> tuple[Group, ...]:
        """The runs by data set and network, in the order of the summary."""
        found = []
        for data, network in dict.fromkeys((row.data, row.network) for row in self.summary.rows):
            rows = tuple(r for r in self.summary.rows if (r.data, r.network) == (data, network))
            runs = {row.method: self._of(data, network, row.method) for row in rows}
            found.append(Group(data, network, rows, runs))
        return tuple(found)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods, in the order in which the rows have them; the baseline first."""
        named = dict.fromkeys(row.method for row in self.summary.rows)
        return tuple(sorted(named, key=lambda method: method != self.summary.baseline))

    def _of(self, data: str, network: str, method: str) -> tuple[Run, ...]:
        wanted = data, network, method
        found = (r for r in self.runs if (r.trial.data, r.trial.network, r.trial.method) == wanted)
        return tuple(sorted(found, key=lambda r: r.trial.seed))


def gather(
    paths: Iterable[str | Path],
    baseline: str = "original",
    by: Iterable[str] = (),
    margin: float | None = None,
) -> Report:
    """Read run directories and sweep directories.

    A run that was done twice, with the same bits, counts once.

    Args:
        paths: of either; a directory that is named twice, or with the sweep that it is in, counts once.
        baseline: the method, as `dnat.lab.labels.label` has it, that the others are compared with.
        by: settings that make rows of their own where runs of a label differ in them; see `labels_by`.
        margin: by which a method may be worse than the baseline; see `summarize`.

    Raises:
        ValueError: a path that is neither (names like it are suggested), no finished run, or two runs of the
            same network, data, method and seed.
    """
    by, notes = tuple(by), list[str]()
    found, sweeps = collect(paths, notes)
    runs = [run for run in found.values() if isinstance(run, Run)]
    unfinished = [run for run in found.values() if isinstance(run, Unfinished)]
    if not runs:
        raise UsageError(_no_result(unfinished))
    if old := [str(run.directory) for run in runs if not run.record.get("data_held")]:
        notes.append(f"of an older dnat, so that what was changed since is not noticed: {_some(old)}")
    runs = _once(runs, notes)
    names = labels_by([run.record for run in runs], by)
    runs = [replace(run, trial=replace(run.trial, method=name)) for run, name in zip(runs, names, strict=True)]
    _refuse_duplicates(runs)
    summary = summarize([run.record for run in runs], baseline, by=by, margin=margin)
    order = {(r.data, r.network, r.method): i for i, r in enumerate(summary.rows)}
    runs.sort(key=lambda r: (order[r.trial.data, r.trial.network, r.trial.method], r.trial.seed))
    return Report(
        runs=tuple(runs),
        unfinished=tuple(sorted(unfinished, key=lambda u: u.name)),
        summary=summary,
        sweeps=tuple(sweeps.values()),
        notes=_together(notes, [run.directory for run in runs]),
    )


def collect(
    paths: Iterable[str | Path], notes: list[str]
) -> tuple[dict[Path, Run | Unfinished], dict[Path, Sweep]]:
    """All runs of run directories and sweep directories, finished or not, and the sweeps, by their full paths.

    Args:
        paths: of either; what is named twice counts once.
        notes: is added what cannot be read of finished runs.

    Raises:
        ValueError: a path that is neither; names like it are suggested.
    """
    sweeps: dict[Path, Sweep] = {}
    found: dict[Path, Run | Unfinished] = {}
    for path in map(Path, paths):
        if not is_sweep(path):
            check_run(path)
            found.setdefault(path.resolve(), read_run(path, notes))
            continue
        sweeps[path.resolve()] = Sweep(path.resolve().name, SweepFiles(path).text())
        for name, told in _trials(path, notes).items():
            if (path / name).resolve() not in found:
                found[(path / name).resolve()] = _of_sweep(path, name, told, notes)
    return found, sweeps


def is_sweep(path: str | Path) -> bool:
    """Whether a directory is that of a sweep: no run itself, but with runs in it, or a sweep's own files."""
    path = Path(path)
    if not path.is_dir() or RunFiles(path).is_run():
        return False
    return SweepFiles(path).is_sweep() or bool(runs_in(path))


def read_run(path: Path, notes: list[str]) -> Run | Unfinished:
    """A run from its directory; what cannot be read of a finished one is added to the notes."""
    name, files = path.resolve().name, RunFiles(path, notify=notes.append)
    if not files.is_done():
        state, reason = files.why_unfinished()
        if state == "running" and not reason:
            reason = "at work, or killed without a word"
        return Unfinished(name, state, reason, shlex.join(["dnat", "resume", str(path)]))
    try:
        record = files.record()
        trial = trial_from(record)
    except (ValueError, TypeError) as error:
        reason = (files.problem() or str(error)).replace(f"{path}{os.sep}", "")  # its name stands beside it
        return Unfinished(name, "damaged", reason if RECORD in reason else f"{RECORD}: {reason}", "")
    return Run(
        name=name,
        directory=path,
        record=record,
        trial=trial,
        metrics=_metrics(files, notes),
        architecture=_noted(files, ARCHITECTURE, notes),
        environment=_noted(files, ENVIRONMENT, notes),
        config=files.text(CONFIG),
    )


def check_run(path: Path) -> None:
    """Refuse a path that is no run directory.

    Raises:
        ValueError: names like it are suggested.
    """
    if RunFiles(path).is_run():
        return
    if not path.exists():
        near = [p.name for p in path.parent.glob("*") if is_sweep(p) or RunFiles(p).is_run()]
        if near:
            raise unknown(f"run or sweep in {path.parent}", path.name, near)
    raise UsageError(
        f"{path} is neither a run directory (it has no {CONFIG}) nor a sweep's (it has no run in it): name one "
        "that `dnat transform` or `dnat sweep` has written"
    )


def _trials(sweep: Path, notes: list[str]) -> dict[str, tuple[str, str]]:
    """{name of each trial: its state and reason, as the sweep knows them}; ("", "") of other run directories."""
    known: dict[str, tuple[str, str]] = {run.name: ("", "") for run in runs_in(sweep)}
    if SweepFiles(sweep).is_sweep():
        try:
            known |= {s.name: (s.state, s.reason) for s in standings_of(sweep)}
        except (ValueError, TypeError) as error:
            notes.append(f"{sweep.resolve().name}: {SWEEP} cannot be read, so that trials may be missing: {error}")
    return dict(sorted(known.items()))


def _of_sweep(sweep: Path, name: str, told: tuple[str, str], notes: list[str]) -> Run | Unfinished:
    """A trial of a sweep: its directory says whether it is done, the sweep why it is not."""
    state, reason = told
    begun = RunFiles(sweep / name).is_run() or RunFiles(sweep / name).is_done()
    found = read_run(sweep / name, notes) if begun else Unfinished(name, "pending", "", "")
    if isinstance(found, Run) or found.state == "damaged" or not state:
        return found
    resume = ["dnat", "sweep", "--out", str(sweep)]
    resume += ["--retry-failed"] if state == "failed" else []
    return Unfinished(name, state, reason or found.reason, shlex.join(resume))


def _no_result(unfinished: Sequence[Unfinished]) -> str:
    if not unfinished:
        return "there is no run to report of"
    listed = "; ".join(f"{u.name}: {u.state}{f' ({u.reason})' * bool(u.reason)}" for u in unfinished[:5])
    more = f"; and {len(unfinished) - 5} more" * (len(unfinished) > 5)
    return f"none of these {len(unfinished)} runs is finished, so that there is nothing to report: {listed}{more}"


def _once(runs: Iterable[Run], notes: list[str]) -> list[Run]:
    """The runs without those that were done twice, as a baseline that several sweeps share."""
    kept: dict[tuple[Any, ...], list[Run]] = {}
    again: list[str] = []
    for run in runs:
        trial = run.trial
        alike = kept.setdefault((trial.data, trial.network, trial.method, trial.seed), [])
        if any(are_one_run(known.record, run.record) for known in alike):
            again.append(str(run.directory))
        else:
            alike.append(run)
    if again:
        notes.append(f"runs that have the same bits as others of their method and seed count once: {_some(again)}")
    return [run for alike in kept.values() for run in alike]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)


def _together(notes: Iterable[str], directories: Iterable[Path]) -> tuple[str, ...]:
    """Notes, of which those that say the same of files of several runs are one."""
    names = {f"{directory}{os.sep}": directory.name for directory in directories}
    names |= {f"{name}: ": name for name in names.values()}
    runs: dict[str, dict[str, str]] = {}
    for note in notes:
        start = next((start for start in names if note.startswith(start)), "")
        runs.setdefault(note.removeprefix(start), {})[note] = names.get(start, "")
    return tuple(
        next(iter(told)) if len(told) == 1 else f"{what}, in {len(told)} runs: {_some([*told.values()])}"
        for what, told in runs.items()
    )


def _refuse_duplicates(runs: Iterable[Run]) -> None:
    first: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        trial = run.trial
        known = first.setdefault((trial.data, trial.network, trial.method, trial.seed), run)
        if known is not run:
            raise UsageError(
                f"{known.directory} and {run.directory} both hold {trial.method} with {trial.network} on "
                f"{trial.data} at seed {trial.seed}; "
                + (told_apart([known.record, run.record]) or "leave one of them out, or report of them apart")
            )


def _metrics(files: RunFiles, notes: list[str]) -> tuple[Mapping[str, Any], ...]:
    """Rows that are tables with a number of an epoch; none where they are not those that the run wrote."""
    rows, bad = [], 0
    if not files.told(METRICS):
        return ()
    for line in files.text(METRICS).splitlines():
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and number(row.get("epoch")) is not None:
            rows.append(row)
        else:
            bad += 1
    if bad or not rows:
        what = f"{bad} lines of {METRICS} cannot be read" if bad else f"there are no rows in {METRICS}"
        notes.append(f"{files.directory.resolve().name}: {what}: curves lack them")
    return tuple(rows)


def _noted(files: RunFiles, name: str, notes: list[str]) -> Mapping[str, Any]:
    if not files.told(name):
        return {}
    try:
        table = files.read_json(name)
        reason = f"{name} is missing"
    except ValueError as error:
        table, reason = None, str(error).replace(f"{files.directory}{os.sep}", "")
    if table is None:
        notes.append(f"{files.directory.resolve().name}: {reason}")
    return table or {}


def number(value: Any) -> float | None:
    """A value from a file, if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
