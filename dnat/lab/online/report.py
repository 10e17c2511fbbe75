"""A comparison on Weights & Biases: which files are still to be uploaded, and a report of the runs that are there.

The report reads the runs as `WandbTracker` has mirrored them: their configuration holds network, data and label,
their history the metrics by epoch, their summary the result.
"""

import os
import shlex
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ...rundir import CONFIG, RunFiles, runs_in
from ..metrics import capital
from ..summary import Row, Summary

TITLE = "dnat: methods compared"


def upload_commands(directories: Iterable[str | Path]) -> list[str]:
    """A command for each run directory that uploads what was tracked offline and not uploaded yet.

    Several pieces of one run, of which each goes on with the one before it, are uploaded in their order.

    Args:
        directories: of runs, or of sweeps with runs in them.

    Raises:
        ValueError: a directory without a run.
    """
    commands = []
    for directory in dict.fromkeys(run for given in directories for run in _runs(Path(given))):
        pieces = sorted((directory / "wandb").glob("offline-run-*"))
        # What W&B has uploaded it marks by a file of that name.
        waiting = [piece for piece in pieces if list(piece.glob("*.wandb")) and not list(piece.glob("*.synced"))]
        if waiting:
            commands.append(shlex.join(["wandb", "sync", *map(str, waiting)]))
    return commands


def _runs(directory: Path) -> list[Path]:
    runs = [directory] if RunFiles(directory).is_run() else runs_in(directory)
    if not runs:
        raise UsageError(f"{directory} holds no run: it has no {CONFIG}, nor do the directories in it")
    return runs


def build(summary: Summary, markdown: str, project: str, entity: str) -> Any:
    """The report, not yet saved: the table, and for each network and data set curves, bars and pictures.

    Args:
        summary: of the runs.
        markdown: their table, see `dnat.lab.summary.markdown`.
        project, entity: where the runs are on W&B; without an entity ("") the report can be looked at, not saved.

    Returns:
        A `wandb_workspaces.reports.v2.Report`.

    Raises:
        ValueError: wandb-workspaces is not installed.
    """
    wr = _workspaces()
    blocks = [wr.TableOfContents(), wr.H1("Table"), wr.MarkdownBlock(text=markdown)]
    for data, network in dict.fromkeys((row.data, row.network) for row in summary.rows):
        rows = [row for row in summary.rows if (row.data, row.network) == (data, network)]
        blocks.append(wr.H1(f"{network} on {data}"))
        blocks.append(wr.PanelGrid(runsets=[_runset(row, project, entity) for row in rows], panels=_panels(rows)))
    runs = sum(row.n for row in summary.rows)
    description = f"{runs} run{'s' * (runs != 1)}, compared with {summary.baseline}"
    return wr.Report(
        project=project, entity=entity, title=TITLE, description=description, width="fluid", blocks=blocks
    )


def create(summary: Summary, markdown: str, project: str, entity: str) -> str:
    """Make the report on W&B, and return its address.

    The key comes from the environment or from `wandb login`.

    Args:
        summary, markdown, project: as for `build`.
        entity: likewise; "" for the one that the key stands for.

    Raises:
        ValueError: wandb-workspaces is not installed, or W&B did not take the report; the message says why.
    """
    wr = _workspaces()
    try:
        report = build(summary, markdown, project, entity or wr.Report(project=project).entity)
        report.save()
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"W&B did not take the report: {why}; is there a key (`wandb login`), and are project {project!r} and "
            f"entity {entity!r} right?"
        ) from error
    return str(report.url)


def _workspaces() -> Any:
    # Reports on W&B's own errors go elsewhere than where the user sends the comparison.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of its own use of pydantic
            import wandb_workspaces.reports.v2 as reports
    except ImportError as error:
        raise UsageError("a report on W&B needs wandb-workspaces: pip install 'dnat[workspaces]'") from error
    return reports


def _runset(row: Row, project: str, entity: str) -> Any:
    """The runs of a method; grouped, so that a curve is the mean of its seeds."""
    wr = _workspaces()
    wanted = {"network": row.network, "data": row.data, "label": row.method}
    return wr.Runset(
        project=project,
        entity=entity,
        name=row.method,
        # A text, since lists of conditions lose the quotes within a value.
        filters=" and ".join(f"Config({name!r}) == {value!r}" for name, value in wanted.items()),
        groupby=["config.label"],
    )


def _panels(rows: Sequence[Row]) -> list[Any]:
    wr = _workspaces()
    metric, splits = rows[0].metric, sorted({split for row in rows for split in row.watched})
    name, title = f"test_{metric.name}", f"Test {metric.title}"
    curves = [f"{split}_{metric.name}" for split in splits]
    curve = capital(f"{' or '.join(splits)} {metric.title}")
    over_seeds = {"groupby": "config.label", "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    result, madds = wr.SummaryMetric(name), wr.SummaryMetric("madds")
    axes = (wr.Config("label"), madds, wr.SummaryMetric("params"), wr.SummaryMetric("latency_after"), result)
    panels = [
        wr.LinePlot(title=f"{curve}, mean and deviation", x="epoch", y=curves, **over_seeds),
        wr.LinePlot(title="Training loss, mean and deviation", x="epoch", y=["train_loss"], **over_seeds),
        wr.BarPlot(title=f"{title} of the result", metrics=[result], **over_seeds),
        wr.BarPlot(title="Multiply-adds of the result", metrics=[madds], **over_seeds),
        wr.ScatterPlot(title=f"{title} by multiply-adds", x=madds, y=result),
        wr.ParallelCoordinatesPlot(
            title="Methods and results", columns=[wr.ParallelCoordinatesPlotColumn(axis) for axis in axes]
        ),
        wr.MediaBrowser(title="Networks, before and after", media_keys=["architecture", "cells"], num_columns=2),
        wr.RunComparer(diff_only="split"),
    ]
    for place, panel in enumerate(panels):
        panel.layout = wr.Layout(x=12 * (place % 2), y=8 * (place // 2), w=12, h=8)
    return panels
