"""The command `dnat`. Each command parses, calls and prints; torch is imported only by those that need it."""

import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..errors import DnatError, UsageError, users_code

SOURCE = Path(__file__).resolve().parents[1]
FIRST = os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"
"""Whether this process is the only one, or the first of those that torchrun started."""


_PIXELS = click.IntRange(1, 8192)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="dnat")
def cli() -> None:
    """Transform a PyTorch network into a smaller one, while it trains.

    \b
    dnat plan --network resnet20 --weights FILE --budget 0.7     what would go from a trained network
    dnat transform --network resnet8 --epochs 40      the main job, on the data that come along
    dnat sweep --networks resnet8 --methods original,dnat-full --seeds 5 --out runs/five
    dnat report runs/five                             what came out, as tables and a page
    dnat edges --network resnet20                     where a network may change
    dnat networks, dnat datasets                      what there is by name
    """


_SPACES = (
    "Choices of an edge: dnat; nat++ (cheaper operations, too); dnat,width or nat++,width (narrower layers, too)"
)


def _job_options(command: Callable[..., None]) -> Callable[..., None]:
    """The flags that are settings: each overrides --set, which overrides the file, which overrides defaults."""
    options = [
        click.option("--network", help="Network: resnet20, torchvision:NAME, timm:NAME, package.module:factory."),
        click.option("--data", help="Name of the data set (default: digits, which come along)."),
        click.option("--data-root", help="Folder with the data set's files (default: $DNAT_DATA, then ./data)."),
        click.option(
            "--method",
            help="dnat; original: train the untouched network with the same recipe; nat, nat++, random, lstm, "
            "max-gcn, nao; dnat-full and dnat-cell name the mode, too.",
        ),
        click.option("--mode", help="full: every edge its own theta; cell: repeated blocks share theta."),
        click.option("--preset", help="improved (default); paper: Kim & Lee 2020 to the letter; fine-tune."),
        click.option("--space", help=f"{_SPACES} (default: the preset's)."),
        click.option("--budget", help="Most multiply-adds of the result: 0.7 of the original's, or 120M."),
        click.option("--latency-budget", help="Longest time of the result, measured here: 0.7 or 5ms."),
        click.option("--weights", help="Trained weights: a file, or torchvision's name; the preset is fine-tune."),
        click.option("--epochs", type=int, help="Epochs of both stages together."),
        click.option("--architecture-epochs", type=int, help="Epochs of the first stage (default: max(5, E/12))."),
        click.option("--batch-size", type=int, help="Images a step (default: 96)."),
        click.option("--seed", type=int, help="Seed of every random stream (default: 0)."),
        click.option("--train-limit", type=int, help="Use so many training images, class-balanced."),
        click.option("--test-limit", type=int, help="Use so many test images, class-balanced."),
        click.option("--image-size", type=int, help="Resize images where the data set allows it."),
        click.option("--workers", type=int, help="Processes that decode images which do not fit into memory."),
        click.option("--skip-broken", is_flag=True, default=None, help="Leave out pictures that cannot be read."),
        click.option("--device", help="auto (default), cpu, cuda, cuda:1, mps."),
        click.option("--config", "file", type=click.Path(), help="Settings in a TOML file."),
        click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="Any setting; repeatable."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def make_job(file: str | None, pairs: tuple[str, ...], flags: dict[str, Any]) -> Any:
    """The job that a file, --set and flags describe; settings are checked without waiting for torch."""
    from dataclasses import replace

    from ..config import Job

    job = Job.from_flat(given_settings(file, pairs, flags))
    if not job.network.startswith("genotype") or job.network_options.get("genotype"):
        return job
    from ..networks import genotype_of, is_genotype

    if not is_genotype(job.network):
        return job
    # The run holds the genotype itself: it means the same wherever the file goes.
    return replace(job, network_options=job.network_options | {"genotype": genotype_of(job.network)})


def given_settings(file: str | None, pairs: tuple[str, ...], flags: dict[str, Any]) -> dict[str, Any]:
    """The settings in a file, --set and flags as one table; later ones win."""
    from ..config import read_toml

    table = read_toml(file) if file else {}
    _add_settings(table, pairs)
    return table | {key: value for key, value in flags.items() if value is not None}


def network_options(pairs: tuple[str, ...]) -> dict[str, Any]:
    """What --set says of a command that takes a network and no run: its options.

    Raises:
        ValueError: something else is set, which would be of no use.
    """
    table: dict[str, Any] = {}
    _add_settings(table, pairs)
    options = table.pop("network_options", {})
    if table:
        raise UsageError(f"--set takes network.OPTION=VALUE here: {next(iter(table))!r} is a setting of a run")
    return options


def _add_settings(table: dict[str, Any], pairs: tuple[str, ...]) -> None:
    """Add what --set says; network.NAME and search.NAME stand in tables of their own."""
    from ..config import parse_setting

    for key, value in map(parse_setting, pairs):
        group, dot, option = key.partition(".")
        if dot and group in ("network", "search"):
            name = "network_options" if group == "network" else group
            if not isinstance(table.setdefault(name, {}), dict):
                raise UsageError(f"{name} must be a table of settings for --set {key} to add to it")
            table[name] = {**table[name], option: value}
        else:
            table[key] = value


_ANEW = click.option(
    "--begin-again",
    "anew",
    is_flag=True,
    help="Begin again where no checkpoint is whole; without, that is an error.",
)
_WANDB = click.option(
    "--wandb",
    type=click.Choice(["off", "offline", "online"]),
    default="off",
    show_default=True,
    help="Mirror the run to Weights & Biases: to files that can be uploaded later, or at once.",
)


@cli.command()
@_job_options
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Run directory (default: runs/NETWORK-DATA-METHOD-seedS, with a digest of unusual settings).",
)
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="Carry out a plan: `dnat plan --out`.")
@click.option("--plan-budget", help="Which of its budgets, where it has several.")
@click.option("--download", is_flag=True, help="Fetch the data set if it is missing; nothing is fetched without.")
@_ANEW
@_WANDB
def transform(
    out: Path | None,
    plan_file: Path | None,
    plan_budget: str | None,
    download: bool,
    anew: bool,
    wandb: str,
    file: str | None,
    pairs: tuple[str, ...],
    **flags: Any,
) -> None:
    """Train a network, transform it, and train it on.

    The same command again goes on with an unfinished run, and says of a finished one that it is done.

    \b
    dnat transform --network resnet20 --data cifar10 --data-root DIR --epochs 60 --seed 1
    dnat transform --network resnet8 --set network.width=8 --set lr_theta=0.01 --out runs/narrow
    """
    from ..config import run_name

    if plan_budget and not plan_file:
        raise UsageError("--plan-budget says which budget of a plan: give --plan FILE, too")
    if plan_file:
        flags |= _choices_of(plan_file, plan_budget, given_settings(file, pairs, flags))
    job = make_job(file, pairs, flags)
    usual = run_name(job, with_threads="threads" in given_settings(file, pairs, flags))
    _run(job, out or Path("runs") / usual, download, anew, wandb)


def _choices_of(file: Path, budget: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """What a plan's file says of one of its budgets, as settings of a run."""
    from ..proposal import Proposals

    plan = Proposals.read(file)
    settings = {"space": plan.space, "mode": plan.mode}
    for name, value in settings.items():
        if given.get(name, value) != value:
            raise UsageError(f"{file} is a plan of {name} {value!r}, not {given[name]!r}: leave --{name} out")
    proposal = plan.proposal(budget)
    return settings | {"choices": proposal.changed, "choices_for": plan.fingerprint}


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data-root", help="Folder with the data set's files, if it moved.")
@_ANEW
@_WANDB
def resume(run: Path, data_root: str | None, anew: bool, wandb: str) -> None:
    """Go on with a run that was stopped; the result is the same, bit for bit.

    With --wandb what Weights & Biases lacks of the run is brought up, also of one that is done.

    \b
    dnat resume runs/resnet20-cifar10-dnat-seed1
    """
    from dataclasses import replace

    from ..records import read_job

    job = read_job(run)
    _run(replace(job, data_root=data_root) if data_root else job, run, False, anew, wandb)


def _run(job: Any, directory: Path, download: bool, anew: bool, wandb: str) -> None:
    # Older torch refuses deterministic matrix products on CUDA without it, and only reads it at the start.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    from .runs import run
    from .terminal import console

    screen = console()
    if not FIRST:  # one of several processes is enough to tell and to track
        screen.quiet, wandb = True, "off"
    screen.print(
        f"{job.method}: {job.network} on {job.data}, seed {job.config.seed}, {job.config.epochs} epochs",
        highlight=False,
    )
    done = (directory / "record.json").exists()
    tracker = _tracker(job, directory, wandb, screen)
    try:
        with _stop_on_signals() as stop, _warnings_to(screen):
            record = run(
                job,
                directory,
                tracker=tracker,
                stop=stop,
                download=download,
                anew=anew,
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


def _tracker(job: Any, directory: Path, wandb: str, screen: Any) -> Any:
    from ..tracking import Trackers, WandbTracker
    from .terminal import TerminalTracker

    terminal = TerminalTracker(screen, job.config.epochs)
    if wandb == "off":
        return terminal
    from .labels import label

    def notify(text: str) -> None:
        screen.print(text, highlight=False, markup=False)

    mode: Any = wandb
    return Trackers(terminal, WandbTracker(job, directory, mode, label=label(job.flat()), notify=notify))


def _show(screen: Any, directory: Path, record: dict[str, Any]) -> None:
    import json

    from .terminal import changes_table, result_table, verdict

    screen.print(result_table(record))
    architecture = json.loads((directory / "architecture.json").read_text())
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
def _stop_on_signals() -> Iterator[Callable[[Any], bool]]:
    """Within, SIGINT and SIGTERM only set a flag that the run asks for; a second SIGINT stops at once.

    A trial of a sweep also stops when the process that started it is gone.
    """
    asked: list[int] = []
    parent = os.environ.pop("DNAT_PARENT", None)  # not for processes that this one starts

    def note(number: int, frame: Any) -> None:
        if number in asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)
        click.echo("stopping after this batch; once more to stop at once", err=True)

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda progress: bool(asked) or (parent is not None and os.getppid() != int(parent))
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


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


def make_sweep(file: str | None, pairs: tuple[str, ...], flags: dict[str, Any]) -> Any:
    """The sweep that a file, --set and flags describe; later ones win, also over the file's tables."""
    from ..config import read_toml
    from .sweep import Sweep

    over: dict[str, Any] = {}
    _add_settings(over, pairs)
    return Sweep.from_table(
        read_toml(file) if file else {}, over | {k: v for k, v in flags.items() if v is not None}
    )


@cli.command()
@click.option("--networks", help="Networks, separated by commas; see transform --network.")
@click.option("--methods", help="Methods, separated by commas; METHOD@BUDGET is one with a budget: dnat-full@0.7.")
@click.option("--seeds", help="How many (5: seeds 0 to 4), a list (0,3,7), or a range (1-5).")
@_job_options
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The sweep's directory.")
@click.option("--jobs", type=click.IntRange(1), help="Trials at a time (default: 1; with Ray as many as fit).")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    help="local: this machine (default); ray: Ray, here or at --address.",
)
@click.option("--address", help="A running Ray cluster: auto, HOST:6379. All its machines must see --out.")
@click.option(
    "--retry-failed", is_flag=True, help="Do failed trials again; without, only what was stopped goes on."
)
@click.option(
    "--retries",
    type=click.IntRange(0),
    help="How often a trial that was stopped goes on in the same call (default: 0; with Ray 3).",
)
@click.option(
    "--plan", "planning", is_flag=True, help="Start nothing: print a command for each trial that is left."
)
@click.option("--download", is_flag=True, help="Fetch the data set if it is missing; nothing is fetched without.")
@click.option(
    "--wandb",
    type=click.Choice(["off", "offline", "online"]),
    help="Weights & Biases for each trial: see transform --wandb.",
)
def sweep(out: Path, planning: bool, file: str | None, pairs: tuple[str, ...], **flags: Any) -> None:
    """Train and transform networks by several methods, with several seeds each, and compare them.

    Every trial is a run in a process of its own. The same command again goes on with what is unfinished; more
    networks, methods and seeds may be given then. Exit code 70: some trials failed; 75: stopped, to be resumed.

    \b
    dnat sweep --networks resnet8,resnet20 --methods original,dnat-full,dnat-full@0.7 --seeds 5 --out runs/first
    dnat sweep --config runs/first/sweep.toml --seeds 10 --jobs 2 --out runs/second
    dnat sweep --out runs/first --retry-failed
    dnat sweep --out runs/first --plan > commands.txt
    """
    from .sweep import Options

    how = {k: flags.pop(k) for k in ("jobs", "engine", "address", "retries", "retry_failed", "download", "wandb")}
    given = make_sweep(file, pairs, flags)
    if planning:
        _print_plan(given, out, Options(**how))
    else:
        _sweep(given, out, Options(**how))


# A sweep has lists in their place.
sweep.params = [p for p in sweep.params if p.name not in ("network", "method", "seed")]


def _print_plan(given: Any, out: Path, options: Any) -> None:
    from .sweep import commands, write_plan

    standings, left = write_plan(given, out, options, notify=lambda text: click.echo(f"note: {text}", err=True))
    for line in commands(left, download=options.download, wandb=options.wandb):
        click.echo(line)
    failed = sum(s.state == "failed" for s in standings if s not in left)
    if failed:
        click.echo(f"note: {failed} failed trials are left out; --retry-failed lists them, too", err=True)


def _sweep(given: Any, out: Path, options: Any) -> None:
    from .sweep import run_sweep
    from .terminal import SweepScreen, console

    def notify(text: str) -> None:
        screen.print(f"note: {text}", highlight=False)

    screen = console()
    table = SweepScreen(screen)
    try:
        with _stop_on_signals() as stop:
            found = run_sweep(given, out, options, watch=table.show, stop=lambda: stop(None), notify=notify)
    finally:
        table.finish()
    _show_sweep(screen, out, found)


def _show_sweep(screen: Any, out: Path, standings: Any) -> None:
    """Print what a sweep found, and end with the exit code of what is missing."""
    from .summary import markdown, summarize
    from .terminal import troubles_text

    done = [s for s in standings if s.state == "done"]
    if done and not any(s.state in ("pending", "interrupted") for s in standings):
        click.echo(markdown(summarize(s.record() for s in done)))
    troubles = [s for s in standings if s.state in ("failed", "interrupted")]
    if troubles:
        screen.print(troubles_text(troubles), end="")
    click.echo(f"files: {out}/ (a run directory for each trial, logs/, trials.json)")
    failed = sum(s.state == "failed" for s in standings)
    unfinished = len(standings) - len(done) - failed
    again = f"dnat sweep --out {shlex.quote(str(out))}"
    if unfinished:
        raise SweepEnded(75, f"{len(done)} of {len(standings)} trials are done; `{again}` goes on")
    if failed:
        raise SweepEnded(
            70, f"{failed} of {len(standings)} trials failed; once mended, type: {again} --retry-failed"
        )
    click.echo(f"all {len(done)} trials are done; a page about them: dnat report {shlex.quote(str(out))}")


class SweepEnded(DnatError):
    """A sweep of which some trials have no result; they have been shown."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data-root", help="Folder with the data set's files, if it moved, or with others of its classes.")
@click.option("--skip-broken", is_flag=True, default=None, help="Leave out pictures that cannot be read.")
def evaluate(run: Path, data_root: str | None, skip_broken: bool | None) -> None:
    """Test the network of a finished run again, from its files, or on other images of classes that it knows.

    \b
    dnat evaluate runs/resnet8-digits-dnat-seed0
    """
    from dataclasses import replace

    from ..costs import cost
    from ..records import read_job
    from ..training import evaluate as test
    from .runs import load_data, other_images, restore

    job = read_job(run)
    job = replace(job, data_root=data_root or job.data_root, skip_broken=skip_broken or job.skip_broken)
    data, notes = other_images(run, load_data(job))
    for note in notes:
        click.echo(f"note: {note}")
    network, job, _ = restore(run)
    result = test(network, data, job.config)
    click.echo(f"test accuracy {result.accuracy:.2%}, loss {result.loss:.4f} on {len(data.test_labels)} images")
    click.echo(str(cost(network, data.example(2))))


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Classes to show, at most.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list in place of a table.")
def predict(run: Path, files: tuple[Path, ...], top: int, as_json: bool) -> None:
    """Tell what a finished run's network takes pictures for, prepared as its test images were.

    FILES are pictures, or folders, of which all pictures are taken. Those that cannot be read are named, and the
    exit code is 65 then; the others are predicted.

    \b
    dnat predict runs/resnet8-folder-dnat-seed0 cat.jpg holidays/
    dnat predict runs/resnet8-folder-dnat-seed0 pictures/val --top 1 --json > predictions.json
    """
    import json

    from ..errors import DataError
    from .prediction import found_in, predicted
    from .terminal import console, predictions_table, predictions_text

    pictures = found_in(files)
    found = list(predicted(run, pictures, top))
    broken = [p for p in found if p.problem]
    if as_json:
        click.echo(json.dumps([p.table() for p in found], indent=1))
    elif sys.stdout.isatty():
        console().print(predictions_table([p for p in found if not p.problem]))
    else:
        for line in predictions_text([p for p in found if not p.problem]):
            click.echo(line)
    for prediction in broken:
        click.echo(prediction.problem, err=True)
    if broken:
        raise DataError(f"{len(broken)} of {len(found)} files could not be read")


@cli.command()
@click.option("--network", required=True, help="Name of the network.")
@click.option("--data", help="Name of a data set, whose classes, channels and size the network is built for.")
@click.option("--data-root", help="Folder with the data set's files (default: $DNAT_DATA, then ./data).")
@click.option(
    "--image-size", type=_PIXELS, help="Side of the images in pixels (default: the data's, or the network's)."
)
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="network.OPTION=VALUE; repeatable.")
@click.option("--space", default="dnat", show_default=True, help=f"{_SPACES}.")
@click.option("--all", "everything", is_flag=True, help="List what cannot change, too, with the reasons.")
@click.option("--measure", is_flag=True, help="Measure here how long the network takes, and each edge's part.")
@click.option(
    "--batch-size",
    type=click.IntRange(1, 1 << 16),
    default=1,
    show_default=True,
    help="Images of the batch to measure with.",
)
@click.option("--device", default="cpu", show_default=True, help="Device to measure on.")
def edges(network: str, pairs: tuple[str, ...], **flags: Any) -> None:
    """List where a network may change, what each place may become, and what that would save.

    \b
    dnat edges --network resnet20
    dnat edges --network torchvision:mobilenet_v2 --image-size 96 --measure
    dnat edges --network torchvision:vgg16_bn --all
    dnat edges --network resnet20 --space nat++
    dnat edges --network resnet20 --space dnat,width
    dnat edges --network my_code:make_network --data digits
    """
    from ..config import Config, Job

    if flags["data_root"] and not flags["data"]:
        raise UsageError("--data-root needs --data: it says where that data set lies")
    options = network_options(pairs)
    places = {k: v for k in ("data", "data_root", "image_size") if (v := flags[k]) is not None}
    job = Job(network=network, network_options=options, config=Config(device=flags["device"]), **places)
    from ..session import choose_device
    from .runs import network_and_images, survey
    from .terminal import console, survey_tables

    built, images = network_and_images(job, with_data=flags["data"] is not None)
    place = choose_device(flags["device"])
    batch = flags["batch_size"] if flags["measure"] else None
    found = survey(built.to(place), images.to(place), batch, flags["space"])
    if not found.edges and not flags["everything"]:
        raise UsageError(f"{network} has no operation that could be changed; --all tells why")
    for table in survey_tables(network, found, flags["everything"], tuple(images.shape[1:])):
        console().print(table)


@cli.command("plan")
@click.option("--network", required=True, help="Network: resnet20, torchvision:NAME, package.module:factory.")
@click.option("--weights", help="Trained weights: a file, a run directory, or torchvision's name.")
@click.option("--data", help="Name of the data set whose training images are shown (default: digits).")
@click.option("--data-root", help="Folder with the data set's files (default: $DNAT_DATA, then ./data).")
@click.option("--image-size", type=_PIXELS, help="Resize images where the data set allows it.")
@click.option(
    "--budget", help="Most that may remain: 0.7 or 120M (multiply-adds), 5ms, '0.7 params'; 0.7,0.5 for several."
)
@click.option("--latency-budget", help="The same of time, measured here: 0.7 or 5ms; several between commas.")
@click.option(
    "--images", type=click.IntRange(1, 1 << 20), help="Images to show (default: 64 to 1,000, for a few minutes)."
)
@click.option("--space", help=f"{_SPACES} (default: the preset's).")
@click.option("--mode", help="full (default): each edge by itself; cell: repeated blocks change alike.")
@click.option("--seed", type=int, help="Which images are shown (default: 0).")
@click.option("--device", help="auto (default), cpu, cuda, cuda:1, mps.")
@click.option("--measure", is_flag=True, help="Measure here how long one image takes, before and after.")
@click.option("--all", "everything", is_flag=True, help="Show edges that stay, and all that cannot change, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of text.")
@click.option("--out", type=click.Path(path_type=Path), help="File to keep the plan in, for transform --plan.")
@click.option("--picture", type=click.Path(path_type=Path), help="File to draw it into: .png, .svg or .pdf.")
@click.option("--download", is_flag=True, help="Fetch data or weights if they are missing; nothing is without.")
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="Any setting; repeatable.")
def plan_(
    pairs: tuple[str, ...], everything: bool, as_json: bool, out: Path | None, picture: Path | None, **flags: Any
) -> None:
    """Tell what would go from a trained network at each budget, and what that does to its answers.

    Nothing is trained, and no label is used. The same command with --out again goes on where it was stopped; with
    other budgets it adds them to the file, and measures nothing again.

    \b
    dnat plan --network resnet20 --weights trained.safetensors --data cifar10 --budget 0.7,0.5 --picture plan.png
    dnat plan --network torchvision:resnet50 --weights DEFAULT --data imagenet --budget 3G --measure --out r50.json
    dnat transform --network resnet20 --weights trained.safetensors --data cifar10 --plan plan.json
    """
    from dataclasses import replace

    from ..config import PRESETS, Job

    budgets = [*_listed(flags.pop("budget")), *(f"{text} time" for text in _listed(flags.pop("latency_budget")))]
    how = {name: flags.pop(name) for name in ("images", "measure", "download")}
    given = given_settings(None, pairs, flags)
    job = Job.from_flat(given)
    _refuse_budgets(job.config)
    if "space" not in given:  # what the preset takes within a budget, which is no setting here
        space = PRESETS[job.config.preset]["space"]
        job = replace(job, config=replace(job.config, space=space))
    if picture:
        from .drawing import check_picture

        check_picture(picture)
    from ..proposal import described, parse_budget
    from .terminal import console

    asked = list(dict.fromkeys(map(parse_budget, budgets or ["0.7"])))
    result = _planned(job, asked, out, **how)
    if as_json:
        click.echo(result.to_json())
    else:
        console().print(described(result, everything=everything), highlight=False, markup=False)
    if out:
        click.echo(f"file: {out}; dnat transform --plan {shlex.quote(str(out))} carries it out", err=True)
    if picture:
        from .drawing import draw_plan

        click.echo(f"picture: {draw_plan(result, picture)}", err=True)
    if not result.proposals:
        raise UsageError("; ".join(why for _, why in result.refused))


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()] if text else []


def _refuse_budgets(config: Any) -> None:
    """Budgets are flags here; in --set they would be of no use."""
    if config.is_limited:
        raise UsageError("give budgets as --budget or --latency-budget here, not with --set")


def _planned(
    job: Any, budgets: list[Any], out: Path | None, images: int | None, measure: bool, download: bool
) -> Any:
    """The plan of a job's network, with a bar on a terminal."""
    import torch
    from rich.console import Console

    from ..proposal import Planner, kept
    from ..session import choose_device
    from .runs import build_network, load_data
    from .terminal import watched

    def notify(text: str) -> None:
        click.echo(f"note: {text}", err=True)

    data = load_data(job, download=download, notify=notify)
    shape = (data.channels, *data.image_size)
    network = build_network(job, data.num_classes, shape, names=data.classes, download=download, notify=notify)
    device, config = choose_device(job.config.device), job.config
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    planner = Planner(
        network.to(device), data.to(device), space=config.space, mode=config.mode, images=images, seed=config.seed
    )
    with watched(Console(stderr=True)) as tell:
        if out:
            return kept(planner, budgets, int(measure), out, tell)
        return planner.result(planner.measured(tell), budgets, int(measure))


@cli.command()
@click.argument("what")
@click.option("--after", help="Also a genotype: what the first one became.")
@click.option("--format", "formats", multiple=True, default=("png", "svg"), help="png, svg or pdf; repeatable.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write a genotype to, without its suffix.")
def draw(what: str, after: str | None, formats: tuple[str, ...], out: Path | None) -> None:
    """Draw a finished run's network before and after, again; or a genotype, by name or from a JSON file.

    \b
    dnat draw runs/resnet8-digits-dnat-seed0 --format pdf
    dnat draw darts_v2 --after nat_darts
    dnat draw my_cells.json --out pictures/my_cells
    """
    from .runs import draw_named, redraw

    if Path(what).is_dir():
        if after or out:
            raise UsageError("--after and --out are for genotypes; a run is drawn into its own directory")
        files = redraw(what, formats)
    else:
        files = draw_named(what, after, out, formats)
    for path in files:
        click.echo(path)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--to", "form", required=True, help="safetensors, py (torch-only Python), pt2 or onnx.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write (default: RUN/exported.FORM).")
@click.option("--verify/--no-verify", default=True, help="Read it again in a fresh process and compare.")
def export(run: Path, form: str, out: Path | None, verify: bool) -> None:
    """Write a finished run's network to files that need no dnat.

    \b
    dnat export runs/resnet8-digits-dnat-seed0 --to py
    dnat export runs/resnet8-digits-dnat-seed0 --to onnx --out model.onnx
    """
    from ..exports import FORMATS
    from ..exports import export as write
    from ..naming import unknown
    from .runs import preprocess_of, restore

    if form not in FORMATS:  # before a run is read for it
        raise unknown("form", form, FORMATS)
    network, _, example = restore(run)
    preprocess = preprocess_of(run)
    # A run's own network.safetensors stays as it is.
    written = write(network, example, form, out or run / "exported", preprocess=preprocess, verify=verify)
    for path in written.files:
        click.echo(path)
    for note in written.notes:
        click.echo(f"note: {note}")
    if preprocess is None:
        click.echo("note: how images are made is not told: the run is of an older dnat, which did not note it")
    if verify:
        click.echo(f"read again without dnat; largest difference {written.difference:.2g}")


@cli.command()
@click.argument("names", nargs=-1)
@click.option(
    "--image-size", type=_PIXELS, help="Side of the images in pixels (default: the network's usual one)."
)
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="network.OPTION=VALUE; repeatable.")
def networks(names: tuple[str, ...], image_size: int | None, pairs: tuple[str, ...]) -> None:
    """List the networks that can be built by name, or count those that are named.

    \b
    dnat networks
    dnat networks resnet20 nasbench201:301420 torchvision:resnet18
    dnat networks resnet20 --set network.skips=true --set network.width=8
    """
    from ..networks import FAMILIES, NETWORKS, definition, sizes
    from .runs import sized
    from .terminal import console, families_table, networks_table

    screen, options = console(), network_options(pairs)
    if not names and (options or image_size):
        raise UsageError("--set and --image-size are for networks that are named: dnat networks NAME ...")
    if names:
        found = {name: sized(name, options, image_size) for name in names}
        sources = {n: d.source if (d := definition(n)) else "" for n in found}
        screen.print(networks_table("counted now", found, sources))
        return
    for size, title in ((32, "for images of 32x32, 10 classes"), (224, "for images of 224x224, 1000 classes")):
        listed = {n: d.source for n, d in NETWORKS.items() if d.image_size == size}
        screen.print(networks_table(title, {n: sizes()[n] for n in listed}, listed))
    screen.print(families_table(FAMILIES.values()))


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--html", type=click.Path(path_type=Path), help="Page to write (default: report.html)")
@click.option("--markdown", "text", type=click.Path(path_type=Path), help="Markdown to write (default: report.md)")
@click.option("--pictures", type=click.Path(path_type=Path), help="Folder for figures as PNG and SVG.")
@click.option("--published", is_flag=True, help="Show the papers' own numbers below ours.")
@click.option("--baseline", default="original", show_default=True, help="Method that others are compared with.")
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
    layout: str,
    **wandb: Any,
) -> None:
    """Report what runs came to: statistics over seeds, tables, figures, what is not finished.

    RUNS are run directories, or directories of sweeps. The Markdown is printed, and written with the page into the
    sweep's directory where exactly one is given, else into the current one.

    \b
    dnat report runs/sweep
    dnat report runs/resnet8-* --html resnet8.html --pictures figures
    dnat report runs/sweep --wandb
    """
    if wandb["uploads"]:
        _print_uploads(runs)
        return
    from ..records import atomic_write
    from .report import gather, is_sweep, markdown, page

    found = gather(runs, baseline)
    folder = runs[0] if len(runs) == 1 and is_sweep(runs[0]) else Path()
    words = markdown(found, with_published=published, layout=layout)
    files = {
        text or folder / "report.md": words,
        html or folder / "report.html": page(found, with_published=published, layout=layout),
    }
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content.encode())
    click.echo(words)
    for path in files:
        click.echo(path, err=True)
    if pictures:
        from .report import draw

        for path in draw(found, pictures):
            click.echo(path, err=True)
    if wandb["online"]:
        from .report.online import create
        from .summary import markdown as table

        project = wandb["project"] or os.environ.get("WANDB_PROJECT") or "dnat"
        entity = wandb["entity"] or os.environ.get("WANDB_ENTITY") or ""
        click.echo(create(found.summary, table(found.summary), project, entity), err=True)


def _print_uploads(runs: tuple[Path, ...]) -> None:
    from .report.online import upload_commands

    commands = upload_commands(runs)
    for command in commands:
        click.echo(command)
    if not commands:
        click.echo("nothing that was tracked offline is left to be uploaded", err=True)


@cli.command()
def datasets() -> None:
    """List the data sets that can be loaded by name."""
    from ..data import describe
    from .terminal import console, datasets_table

    console().print(datasets_table(describe()))


def exit_code(error: BaseException) -> int:
    """0 done; 2 wrong use; 65 bad data or loss; 70 trials failed; 73 locked; 75 stopped, can be resumed; 1 bug."""
    return error.exit_code if isinstance(error, DnatError) else 1


def main() -> None:
    """Run the command and exit with its code."""
    if os.getcwd() not in sys.path:  # as with `python -m`: networks of the user's own are found where they stand
        sys.path.insert(0, os.getcwd())
    try:
        with users_code("code of the network's failed", alone=False):
            cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("dnat: stopped at once", err=True)
        sys.exit(130)
    except Exception as error:
        code = exit_code(error)
        if code == 1:
            traceback.print_exc()
            click.echo("dnat: this is a bug of dnat; please report it with the lines above", err=True)
        else:
            hint = "; the same command goes on with it" if code == 75 and not isinstance(error, SweepEnded) else ""
            which = "" if FIRST else f" (process {os.environ['RANK']})"
            click.echo(f"dnat{which}: {error}{hint}", err=True)
        sys.exit(code)


if __name__ == "__main__":  # python -m dnat.lab.cli: how a sweep starts its trials
    main()
