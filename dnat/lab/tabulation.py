"""Runs as tables to take along: a row for each trial as CSV, JSON, Parquet or a DataFrame; methods as LaTeX.

    from dnat.lab import results
    frame = results("runs/first", "runs/second")

Values are those of the records: shares are from 0 to 1, times in seconds, multiply-adds those of one example.
"""

import csv
import importlib
import io
import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..rundir import CONFIG, RunFiles
from ..settings import UNCOUNTED, read_toml
from .formatting import digits
from .labels import label, method_order, natural_order
from .metrics import metrics_of
from .report.gather import Report, Run, Unfinished, collect
from .summary.tables import cells, headers, legend
from .sweep.directory import SweepFiles

_NAMED = ("network", "data", "method", "preset", "seed", "budget", "latency_budget")
"""Settings that have columns of their own, whether they differ or not."""


@dataclass(frozen=True)
class Table:
    """A row for each trial, finished or not; None where something is not known.

    Attributes:
        columns: their names.
        rows: a value for each column: texts, numbers, truth values or None.
        notes: what could not be read.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    notes: tuple[str, ...]

    def records(self) -> list[dict[str, Any]]:
        """The rows as tables of their own."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def csv(self) -> str:
        """The table as CSV: a line of names, then the rows; what is not known is empty."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return text.getvalue()

    def json(self) -> str:
        """The table as a JSON list of objects; what is not known is null."""
        return json.dumps(self.records(), indent=1, allow_nan=False) + "\n"

    def frame(self) -> Any:
        """The table as a pandas DataFrame; a column of texts and numbers, as budgets may be, holds texts.

        Raises:
            UsageError: pandas is missing.
        """
        pandas = _library("pandas")
        columns = dict(zip(self.columns, zip(*self.rows, strict=True), strict=False))
        return pandas.DataFrame({name: _alike(values) for name, values in columns.items()}, columns=self.columns)

    def parquet(self) -> bytes:
        """The DataFrame as a Parquet file.

        Raises:
            UsageError: pandas or pyarrow is missing.
        """
        _library("pyarrow")
        written: bytes = self.frame().to_parquet(engine="pyarrow", index=False)
        return written


def results(*paths: str | Path) -> Any:
    """A pandas DataFrame with a row for each trial: `pip install 'dnat[tables]'`.

    Columns: run (the directory's name), status ("done", or why not, with a reason), network, data, method, label
    (as reports have it), preset, seed, budget, latency_budget; each setting in which the trials differ, as --set
    names it; metric (which one counts), test_before and test_after (its value), test_loss, other metrics; madds
    and params, before and of the result; seconds of search and training; latency before and after, seconds for a
    batch of latency_batch, with the spread, and whether it was measured when no other trial ran; bytes of weights
    and of activations at their most; dead (whether the result gives every example the same answer); finished
    (when); weights_sha256; directory.

    Args:
        paths: of run directories and of sweeps; what is named twice counts once.

    Raises:
        UsageError: pandas is missing, or a path is neither.

    Warns:
        UserWarning: something could not be read.
    """
    _library("pandas")
    table = tabulate(paths)
    for note in table.notes:
        warnings.warn(note, stacklevel=2)
    return table.frame()


def tabulate(paths: Iterable[str | Path]) -> Table:
    """A row for each trial of run directories and sweeps, whether it is finished or not.

    Unlike a report, it takes several trials of one method at one seed: their settings tell them apart.

    Raises:
        ValueError: a path that is neither.
    """
    notes: list[str] = []
    runs, _ = collect(paths, notes)
    jobs = {path: _settings(_job(path, run)) for path, run in runs.items()}
    names = sorted({name for job in jobs.values() for name in job} - {*_NAMED, *_MEASURED} - UNCOUNTED)
    differing = [name for name in names if len({json.dumps(job.get(name)) for job in jobs.values() if job}) > 1]
    shown = (*_NAMED, *differing)
    rows = [_row(path, run) | {name: jobs[path].get(name) for name in shown} for path, run in runs.items()]
    rows.sort(key=_order)
    usual = ("run", "status", "reason", *_NAMED[:3], "label", *_NAMED[3:], *differing, *_MEASURED)
    others = (name for row in rows for name in row if name.startswith("test_"))  # metrics that do not count
    columns = tuple(dict.fromkeys((*usual, *others, "directory")))
    return Table(columns, tuple(tuple(row.get(c) for c in columns) for row in rows), tuple(notes))


def _row(path: Path, run: Run | Unfinished) -> dict[str, Any]:
    """All that is known of a trial but its settings, by name."""
    if isinstance(run, Run):
        told = {"status": "done", **_measured(run.record)}
    else:
        told = {"status": run.state, "reason": run.reason or None}
    return {**told, "run": run.name, "label": _label(_job(path, run)), "directory": str(path)}


_MEASURED = (
    *("metric", "test_before", "test_after", "test_loss"),
    *("madds_before", "madds", "params_before", "params", "search_seconds", "training_seconds"),
    *("latency_before", "latency", "latency_spread", "latency_batch", "latency_device", "latency_alone"),
    *("weights_before", "weights", "activations_before", "activations", "dead", "finished", "weights_sha256"),
)


def _measured(record: Mapping[str, Any]) -> dict[str, Any]:
    """What came out, under the names of `_MEASURED`, and metrics that do not count by names of their own."""
    first, *others = metrics_of(record)
    found, seconds = record["results"], record["seconds"]
    latency = record.get("latency") or {}
    before, after = latency.get("before", {}), latency.get("after", {})
    held_before, held = ((record.get("memory") or {}).get(when, {}) for when in ("before", "after"))
    return {
        "metric": first.name,
        "test_before": found.get(f"test_{first.name}_before"),
        "test_after": found[f"test_{first.name}"],
        "test_loss": found.get("test_loss"),
        **{f"{key}_before": found["cost_before"][key] for key in ("madds", "params")},
        **{key: found["cost_after"][key] for key in ("madds", "params")},
        "search_seconds": seconds.get("search", 0.0),
        "training_seconds": round(sum(v for stage, v in seconds.items() if stage != "search"), 3),
        "latency_before": before.get("seconds"),
        "latency": after.get("seconds"),
        "latency_spread": after.get("spread"),
        "latency_batch": after.get("batch"),
        "latency_device": after.get("device"),
        "latency_alone": bool(after.get("alone")) if after else None,
        **{f"{key}_before": held_before.get(key) for key in ("weights", "activations")},
        **{key: held.get(key) for key in ("weights", "activations")},
        "dead": found.get("dead"),
        "finished": record.get("finished"),
        "weights_sha256": found.get("weights_sha256"),
        **{f"test_{m.name}{when}": found.get(f"test_{m.name}{when}") for m in others for when in ("_before", "")},
    }


def _job(path: Path, run: Run | Unfinished) -> Mapping[str, Any]:
    """Its settings; of a run that is not finished, those of its own file or of the sweep's, if one can be read."""
    if isinstance(run, Run):
        job: Mapping[str, Any] = run.record["job"]
        return job
    file = path / CONFIG if RunFiles(path).is_run() else SweepFiles(path.parent).job_file(path.name)
    try:
        return read_toml(file) if file.exists() else {}
    except ValueError:
        return {}  # its row says that it is damaged, or not finished


def _label(job: Mapping[str, Any]) -> str | None:
    try:
        return label(job)
    except ValueError:
        return None


def _settings(job: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by the names that --set takes; lists and tables as JSON."""
    flat: dict[str, Any] = {}
    for key, value in job.items():
        group = {"network_options": "network", "search": "search"}.get(key)
        inner = (
            {f"{group}.{k}": v for k, v in value.items()} if group and isinstance(value, Mapping) else {key: value}
        )
        flat |= {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in inner.items() if v is not None}
    return flat


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """By data set, network, method and seed, as reports have them; what has no settings comes last."""
    method = row["label"] or ""
    places = [natural_order(str(row[name] or "")) for name in ("data", "network")]
    return not method, *places, method_order(method, "original"), row["seed"] or 0, row["run"]


def _alike(values: Sequence[Any]) -> Sequence[Any]:
    """The values of a column, as texts where they are of several kinds."""
    kinds = {"number" if type(v) in (int, float) else type(v).__name__ for v in values if v is not None}
    return values if len(kinds) < 2 else [None if v is None else str(v) for v in values]


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"this table needs {name}: pip install 'dnat[tables]'; CSV, JSON and LaTeX need neither pandas nor "
            f"pyarrow ({error})"
        ) from error


def latex(report: Report) -> str:
    r"""The report's long table in LaTeX, with booktabs and a `\label`; one for each data set.

    Mean with its deviation over n seeds, the paired difference to the baseline with its interval, the test's p.
    The preamble needs `\usepackage{booktabs}`; `\ref{tab:DATA}` refers to the table of a data set.
    """
    summary, parts = report.summary, []
    for data in dict.fromkeys(row.data for row in summary.rows):
        rows = [row for row in summary.rows if row.data == data]
        head = headers(rows[0].metric)
        lines = [" & ".join(map(escaped, head)) + r" \\", r"\midrule"]
        last = None
        for row in rows:
            if last not in (None, row.network):
                lines.append(r"\midrule")
            name, last = row.network if row.network != last else "", row.network
            shown = cells(row, summary.comparison(row), summary.significance)
            lines.append(" & ".join(map(escaped, (name, *shown))) + r" \\")
        caption = escaped(
            f"{data}. {legend(summary)} {digits(sum(row.total_hours for row in rows))} hours in all."
        )
        parts += [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\label{{tab:{re.sub(r'[^A-Za-z0-9]+', '-', data).strip('-')}}}",
            rf"\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}",
            r"\toprule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    return "\n".join([r"% \usepackage{booktabs}", *parts])


_SIGNS = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{"±": r"$\pm$", "<": "$<$", ">": "$>$", "²": "$^2$", "|": r"\textbar{}"},
}


def escaped(text: str) -> str:
    r"""Text that LaTeX sets as it stands; numbers with a sign get the sign of mathematics, a lone "-" is a dash.

    >>> print(escaped("50 % of my_net: -0.08 ± 0.1 [-1, +2], p < 0.1"))
    50 \% of my\_net: $-$0.08 $\pm$ 0.1 [$-$1, $+$2], p $<$ 0.1
    >>> print(escaped("dnat-full"), escaped("-"))
    dnat-full --
    """
    if text == "-":
        return "--"
    text = "".join(_SIGNS.get(sign, sign) for sign in re.sub(r"\s+", " ", text))
    return re.sub(r"(?<![\w.}-])([-+])(?=\d)", r"$\1$", text)
