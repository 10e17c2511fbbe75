"""What becomes of finished runs: evaluated, used, drawn, reported."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from ...errors import DataError, UsageError
from .destinations import check_files, check_folder, with_ending
from .group import cli
from .options import ACCEPT, accepted, flag
from .output import say
from .trust import TRUST, begin_again

BASELINE = click.option(
    "--baseline", default="original", show_default=True, help="Method that others are compared with."
)
BY = click.option(
    "--by",
    metavar="SETTING,...",
    help="Settings that make rows of their own where runs of a method differ in them: preset,lr_theta.",
)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@flag("data_root", more="Where it moved, or with others of its classes.")
@flag("skip_broken")
@ACCEPT
@TRUST
def evaluate(
    run: Path, data_root: str | None, skip_broken: bool | None, accept_changes: bool, trust_code: bool
) -> None:
    """Test the network of a finished run again, from its files, or on other images of classes that it knows.

    \b
    dnat evaluate runs/resnet8-digits-dnat-seed0
    """
    from ...costs import cost
    from ...data import Data
    from ...records import read_job
    from ...tasks import task_of
    from ...training import evaluate as test
    from ..metrics import Metric
    from ..runs import check_data, load_data, other_images, restore

    job, accept, given = read_job(run), accepted(accept_changes), data_root
    begin_again(job, run, trust_code)
    job = job.but(data_root=data_root or job.data_root, skip_broken=skip_broken or job.skip_broken)
    data = load_data(job)
    notes: list[str] = []
    if isinstance(data, Data):
        data, notes = other_images(run, data, accept)
    if given is None:  # whoever names other images knows
        check_data(run, data, accept)
    for note in notes:
        say(f"note: {note}")
    network, job, _ = restore(run, accept)
    result = test(network, data, job.config, task=task_of(job.task))
    told = ", ".join(f"{Metric(n).title} {Metric(n).text(v)}" for n, v in result.metrics.items())
    what = "images" if isinstance(data, Data) else "examples"
    say(f"test {told}, loss {result.loss:.4f} on {data.test_count} {what}")
    say(str(cost(network, data.example(2))))


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Classes to show, at most.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list in place of a table.")
@ACCEPT
@TRUST
def predict(
    run: Path, files: tuple[Path, ...], top: int, as_json: bool, accept_changes: bool, trust_code: bool
) -> None:
    """Tell what a finished run's network takes pictures for, prepared as its test images were.

    FILES are pictures, or folders, of which all pictures are taken. Those that cannot be read are named, and the
    exit code is 65 then; the others are predicted.

    \b
    dnat predict runs/resnet8-folder-dnat-seed0 cat.jpg holidays/
    dnat predict runs/resnet8-folder-dnat-seed0 pictures/val --top 1 --json > predictions.json
    """
    import json

    from ...rundir import read_job
    from ..prediction import found_in, predicted
    from ..terminal.console import console
    from ..terminal.tables import predictions_table, predictions_text

    pictures = found_in(files)
    begin_again(read_job(run), run, trust_code)
    found = list(predicted(run, pictures, top, accepted(accept_changes)))
    broken = [p for p in found if p.problem]
    if as_json:
        say(json.dumps([p.table() for p in found], indent=1))
    elif sys.stdout.isatty():
        console().print(predictions_table([p for p in found if not p.problem]))
    else:
        for line in predictions_text([p for p in found if not p.problem]):
            say(line)
    for prediction in broken:
        say(prediction.problem, err=True)
    if broken:
        raise DataError(f"{len(broken)} of {len(found)} files could not be read")


@cli.command()
@click.argument("what")
@click.option("--after", help="Also a genotype: what the first one became.")
@click.option("--format", "formats", multiple=True, default=("png", "svg"), help="png, svg or pdf; repeatable.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write a genotype to, without its suffix.")
@ACCEPT
def draw(what: str, after: str | None, formats: tuple[str, ...], out: Path | None, accept_changes: bool) -> None:
    """Draw a finished run's network before and after, again; or a genotype, by name or from a JSON file.

    \b
    dnat draw runs/resnet8-digits-dnat-seed0 --format pdf
    dnat draw darts_v2 --after nat_darts
    dnat draw my_cells.json --out pictures/my_cells
    """
    from ..runs import draw_named, redraw

    if Path(what).is_dir():
        if after or out:
            raise UsageError("--after and --out are for genotypes; a run is drawn into its own directory")
        files = redraw(what, formats, accepted(accept_changes))
    else:
        if out:
            check_files(with_ending(out, form) for form in formats)
            out.parent.mkdir(parents=True, exist_ok=True)
        files = draw_named(what, after, out, formats)
    for path in files:
        say(path)


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--html", type=click.Path(path_type=Path), help="Page to write (default: report.html)")
@click.option("--markdown", "text", type=click.Path(path_type=Path), help="Markdown to write (default: report.md)")
@click.option("--pictures", type=click.Path(path_type=Path), help="Folder for figures as PNG and SVG.")
@click.option("--published", is_flag=True, help="Show the papers' own numbers below ours.")
@BASELINE
@click.option(
    "--margin",
    type=float,
    help="By how much a method may be worse and still do: 0.3 is 0.3 points of a share, as accuracy is one, or of "
    "the metric's own unit.",
)
@BY
@click.option("--layout", default="both", show_default=True, help="Tables: papers, long or both.")
@click.option(
    "--wandb", "uploads", is_flag=True, help="Only print the commands that upload what was tracked offline."
)
@click.option("--wandb-report", "online", is_flag=True, help="Also make a report on Weights & Biases.")
@click.option("--wandb-project", "project", help="Project of the runs there (default: $WANDB_PROJECT, then dnat).")
@click.option("--wandb-entity", "entity", help="Its owner (default: $WANDB_ENTITY, then whom the key belongs to).")
def report(
    runs: tuple[Path, ...],
    html: Path | None,
    text: Path | None,
    pictures: Path | None,
    published: bool,
    baseline: str,
    margin: float | None,
    by: str | None,
    layout: str,
    **wandb: Any,
) -> None:
    """Report what runs came to: statistics over seeds, tables, figures, what is not finished.

    RUNS are run directories, or directories of sweeps. Markdown and page are written into the sweep's directory
    where exactly one is given, else into the current one. A terminal shows tables; else the Markdown is printed.

    \b
    dnat report runs/sweep
    dnat report runs/resnet8-* --html resnet8.html --pictures figures
    dnat report runs/sweep --margin 0.3
    dnat report runs/paper runs/improved --by preset --baseline 'dnat-full preset=paper'
    dnat report runs/sweep --wandb
    """
    if wandb["uploads"]:
        _print_uploads(runs)
        return
    from ...files import atomic_write
    from ..report import gather, is_sweep, markdown, page
    from ..summary import parse_by

    folder = runs[0] if len(runs) == 1 and is_sweep(runs[0]) else Path()
    text, html = text or folder / "report.md", html or folder / "report.html"
    check_files((text, html))
    if pictures:
        check_folder(pictures)
    found = gather(runs, baseline, parse_by(by), margin)
    words = markdown(found, with_published=published, layout=layout)
    files = {
        text: words,
        html: page(found, with_published=published, layout=layout),
    }
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content.encode())
    if sys.stdout.isatty():
        from ..terminal.console import console
        from ..terminal.report import report_parts

        for part in report_parts(found):
            console().print(part, highlight=False, markup=False)
    else:
        say(words)
    for path in files:
        say(path, err=True)
    if pictures:
        from ..report import draw

        for path in draw(found, pictures):
            say(path, err=True)
    if wandb["online"]:
        from ..online.report import create
        from ..summary import markdown as table

        project = wandb["project"] or os.environ.get("WANDB_PROJECT") or "dnat"
        entity = wandb["entity"] or os.environ.get("WANDB_ENTITY") or ""
        say(create(found.summary, table(found.summary), project, entity), err=True)


def _print_uploads(runs: tuple[Path, ...]) -> None:
    from ..online.report import upload_commands

    commands = upload_commands(runs)
    for command in commands:
        say(command)
    if not commands:
        say("nothing that was tracked offline is left to be uploaded", err=True)


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--csv", "form", flag_value="csv", default=True, help="A row for each trial, as CSV (default).")
@click.option("--json", "form", flag_value="json", help="A row for each trial, as a JSON list.")
@click.option("--parquet", "form", flag_value="parquet", help="A row for each trial, as a Parquet file.")
@click.option("--latex", "form", flag_value="latex", help="The report's table of methods, for LaTeX.")
@BASELINE
@BY
@click.option("--out", type=click.Path(path_type=Path), help="File to write (default: print it).")
def results(runs: tuple[Path, ...], form: str, baseline: str, by: str | None, out: Path | None) -> None:
    """Give what runs came to as a table to take along: CSV, JSON, Parquet or LaTeX.

    RUNS are run directories, or directories of sweeps. CSV, JSON and Parquet have a row for each trial, finished
    or not: its settings, metric, costs, times, status. LaTeX has one for each method: mean, deviation, test.

    \b
    dnat results runs/sweep > sweep.csv
    dnat results runs/sweep runs/resnet8-* --parquet --out all.parquet
    dnat results runs/sweep --latex --out table.tex
    """
    from ...files import atomic_write
    from ..report import gather
    from ..summary import parse_by
    from ..tabulation import latex, tabulate

    if form == "parquet" and out is None:
        raise UsageError("a Parquet file is nothing to print: say where it goes (--out FILE)")
    if out:
        check_files((out,))
    if by and form != "latex":
        raise UsageError("--by is for --latex: the other tables have a column for each setting that differs")
    content: str | bytes
    notes: Iterable[str]
    if form == "latex":
        report = gather(runs, baseline, parse_by(by))
        absent = (f"{run.name} is not in the table: {run.state}" for run in report.unfinished)
        content, notes = latex(report), (*report.summary.notes, *report.notes, *absent)
    else:
        table = tabulate(runs)
        notes = table.notes
        content = table.parquet() if form == "parquet" else table.json() if form == "json" else table.csv()
    for note in notes:
        say(f"note: {note}", err=True)
    if out is None:
        say(content, nl=False)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, content if isinstance(content, bytes) else content.encode())
    say(out, err=True)
