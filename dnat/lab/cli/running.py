"""`dnat transform` and `dnat resume`: one run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ...errors import UsageError
from ...settings import WHERE, Job, read_toml, run_name
from ..consent import code_in
from .destinations import check_folder
from .group import FIRST, cli, exit_code
from .options import ACCEPT, DOWNLOAD, flag, given_settings, job_options, make_job
from .signals import stop_on_signals
from .trust import TRUST, agree, begin, begin_again

_ANEW = click.option(
    "--begin-again",
    "anew",
    is_flag=True,
    help="Begin again where no checkpoint is whole, or the result is damaged or lost; without, that is an error.",
)
_WANDB = click.option(
    "--wandb",
    type=click.Choice(["off", "offline", "online"]),
    default="off",
    show_default=True,
    help="Mirror the run to Weights & Biases: to files that can be uploaded later, or at once.",
)
_TRACK = click.option(
    "--track",
    "tracks",
    multiple=True,
    type=click.Choice(["csv", "tensorboard", "mlflow"]),
    help="Also write metrics.csv or TensorBoard's files into the run directory, or log to MLflow; repeatable.",
)


@cli.command()
@job_options()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Run directory (default: runs/NETWORK-DATA-METHOD-seedS, with a digest of unusual settings).",
)
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="Carry out a plan: `dnat plan --out`.")
@click.option("--plan-budget", help="Which of its budgets, where it has several.")
@DOWNLOAD
@_ANEW
@ACCEPT
@TRUST
@_WANDB
@_TRACK
def transform(
    out: Path | None,
    plan_file: Path | None,
    plan_budget: str | None,
    wandb: str,
    tracks: tuple[str, ...],
    file: str | None,
    pairs: tuple[str, ...],
    trust_code: bool,
    **flags: Any,
) -> None:
    """Train a network, transform it, and train it on.

    The same command again goes on with an unfinished run, and says of a finished one that it is done.

    \b
    dnat transform --network resnet20 --data cifar10 --data-root DIR --epochs 60 --seed 1
    dnat transform --network resnet8 --set network.width=8 --set lr_theta=0.01 --out runs/narrow
    """
    how = {name: flags.pop(name) for name in ("download", "anew", "accept_changes")}
    if plan_budget and not plan_file:
        raise UsageError("--plan-budget says which budget of a plan: give --plan FILE, too")
    if plan_file:
        flags |= _choices_of(plan_file, plan_budget, given_settings(file, pairs, flags))
    job = make_job(file, pairs, flags)
    usual = run_name(job, with_threads="threads" in given_settings(file, pairs, flags))
    place = out or Path("runs") / usual
    check_folder(place)
    if file:
        typed = given_settings(None, pairs, flags)
        agree((c for c in code_in(read_toml(file)) if c.kind not in typed), Path(file), trust_code)
    begin(code_in(job.flat()), place)
    _run(job, place, how, wandb, tracks)


def _choices_of(file: Path, budget: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """What a plan's file says of one of its budgets, as settings of a run."""
    from ...proposal import Proposals

    plan = Proposals.read(file)
    settings = {"space": plan.space, "mode": plan.mode}
    for name, value in settings.items():
        if given.get(name, value) != value:
            raise UsageError(f"{file} is a plan of {name} {value!r}, not {given[name]!r}: leave --{name} out")
    proposal = plan.proposal(budget)
    return settings | {"choices": proposal.changed, "choices_for": plan.fingerprint}


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@flag("data_root", more="Where it moved.")
@_ANEW
@ACCEPT
@TRUST
@_WANDB
@_TRACK
def resume(
    run: Path,
    data_root: str | None,
    anew: bool,
    accept_changes: bool,
    trust_code: bool,
    wandb: str,
    tracks: tuple[str, ...],
) -> None:
    """Go on with a run that was stopped; the result is the same, bit for bit.

    With --wandb what Weights & Biases lacks of the run is brought up, also of one that is done.

    \b
    dnat resume runs/resnet20-cifar10-dnat-seed1
    """
    from ...records import read_job

    job = read_job(run)
    begin_again(job, run, trust_code)
    how = {"anew": anew, "accept_changes": accept_changes}
    _run(job.but(data_root=data_root) if data_root else job, run, how, wandb, tracks)


def _run(job: Job, directory: Path, how: dict[str, bool], wandb: str, tracks: tuple[str, ...]) -> None:
    # Older torch refuses deterministic matrix products on CUDA without it, and only reads it at the start.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    from ...rundir import RunFiles
    from ..runs import run
    from ..sweep.trials import progress
    from ..terminal.console import console

    screen = console()
    if not FIRST:  # one of several processes is enough to tell and to track
        screen.quiet, wandb, tracks = True, "off", ()
    screen.print(
        f"{job.method}: {job.network} on {job.data}, seed {job.config.seed}, {job.config.training.epochs} epochs",
        highlight=False,
    )
    done = RunFiles(directory).is_done() and not how["anew"]
    if not done and not how["anew"] and (begun := progress(directory)):
        screen.print(f"goes on after epoch {begun[1]} ({begun[0]} stage)", highlight=False, markup=False)
    tracker = _tracker(job, directory, wandb, tracks, screen)
    try:
        with stop_on_signals() as stop, _warnings_to(screen):
            record = run(
                job,
                directory,
                tracker=tracker,
                stop=stop,
                **how,
                notify=lambda t: screen.print(f"note: {t}", highlight=False, markup=False),
            )
        tracker.result(record)
    except BaseException as error:
        tracker.failed(130 if isinstance(error, KeyboardInterrupt) else exit_code(error))
        raise
    finally:
        tracker.finish()
    if done:
        screen.print(f"{directory} is done already; this is its result.", highlight=False, markup=False)
    if FIRST:
        _show(screen, directory, record)


def _tracker(job: Job, directory: Path, wandb: str, tracks: tuple[str, ...], screen: Any) -> Any:
    from ...tracking import Trackers
    from ..terminal.tracker import TerminalTracker

    trackers: list[Any] = [TerminalTracker(screen, job.config.training.epochs)]
    trackers += [_made(kind, job, directory) for kind in dict.fromkeys(tracks)]
    if wandb != "off":
        from ..labels import label
        from ..online.mirror import WandbTracker

        def notify(text: str) -> None:
            screen.print(text, highlight=False, markup=False)

        mode: Any = wandb
        trackers.append(WandbTracker(job, directory, mode, label=label(job.flat()), notify=notify))
    return Trackers(*trackers)


def _made(kind: str, job: Job, directory: Path) -> Any:
    """The tracker that --track names."""
    from ...integrations.trackers import MlflowTracker, TensorBoardTracker
    from ...rundir import EVENTS, MLFLOW, TABLE
    from ...tracking import CsvTracker

    if kind == "csv":
        return CsvTracker(directory / TABLE)
    if kind == "tensorboard":
        return TensorBoardTracker(directory / EVENTS)
    settings = {key: value for key, value in job.flat().items() if key not in WHERE}
    return MlflowTracker(directory.resolve().name, settings, directory / MLFLOW)


def _check(record: dict[str, Any], directory: Path) -> None:
    """Refuse a record that was written by hand, and tells less than a run does."""
    from ...errors import DataError
    from ...rundir import RECORD
    from ..summary import trial_from

    try:
        trial_from(record)
    except (ValueError, TypeError) as error:
        raise DataError(f"{directory / RECORD} is no record of a run: {error}") from error


def _show(screen: Any, directory: Path, record: dict[str, Any]) -> None:
    from ...rundir import RunFiles
    from ..terminal.tables import changes_table, result_table, verdict

    _check(record, directory)
    screen.print(result_table(record))
    architecture = RunFiles(directory, accept=lambda text: None).architecture()  # told of already
    commitment = architecture["commitment"]
    if commitment and architecture.get("genotypes"):  # all cells of a kind are alike: each edge is shown once
        groups: dict[str, dict[str, Any]] = {}
        for edge in commitment["edges"]:
            saved = groups.get(edge["group"], {"saved": 0})["saved"] + edge["saved"]
            groups[edge["group"]] = {**edge, "key": edge["group"], "saved": saved}
        commitment["edges"] = list(groups.values())
    edges = commitment["edges"] if commitment else []
    if edges and all(edge["choice"] == "original" for edge in edges):
        screen.print(f"none of the {len(edges)} edges changed", highlight=False)
    elif edges:
        screen.print(changes_table(edges))
    if text := verdict(edges):
        screen.print(text, highlight=False)
    if commitment:
        for edge in commitment["edges"]:
            if edge["reason"] and edge.get("by") != "answers":  # theirs is what the table says
                screen.print(f"note: {edge['key']}: {edge['reason']}", highlight=False, markup=False)
        for note in commitment["notes"]:
            screen.print(f"note: {note}", highlight=False, markup=False)
    screen.print(
        f"files: {directory}/ (record.json, network.safetensors, architecture.png)", highlight=False, markup=False
    )


@contextmanager
def _warnings_to(screen: Any) -> Iterator[None]:
    """Within, our own warnings are one plain line each."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *rest, **more: screen.print(
            f"warning: {message}", highlight=False, markup=False
        )
        yield
