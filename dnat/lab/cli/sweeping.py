"""`dnat sweep`: many runs."""

import shlex
from pathlib import Path
from typing import Any

import click

from ...errors import UsageError
from ...settings import read_toml
from ..consent import code_in_sweep
from .destinations import check_folder
from .group import SweepEnded, cli
from .options import DOWNLOAD, add_settings, job_options
from .output import say
from .signals import stop_on_signals
from .trust import TRUST, agree, begin


def make_sweep(
    file: str | None, pairs: tuple[str, ...], flags: dict[str, Any], variants: tuple[str, ...] = ()
) -> Any:
    """The sweep that a file, --set, flags and --variant describe; later ones win, also over the file's tables."""
    from ..sweep import Sweep, parse_variant

    over: dict[str, Any] = {}
    add_settings(over, pairs)
    named: dict[str, Any] = {}
    for name, table in map(parse_variant, variants):
        if name in named:
            raise UsageError(f"variant {name!r} is given twice")
        named[name] = table
    over |= {key: value for key, value in flags.items() if value is not None}
    return Sweep.from_table(read_toml(file) if file else {}, over, named)


@cli.command()
@click.option("--networks", help="Networks, separated by commas; see transform --network.")
@click.option("--methods", help="Methods, separated by commas; METHOD@BUDGET is one with a budget: dnat-full@0.7.")
@click.option(
    "--variant",
    "variants",
    multiple=True,
    metavar="NAME=METHOD,KEY=VALUE,...",
    help="A method with settings of its own under a name; repeatable: slow=dnat,lr_theta=1e-3.",
)
@click.option("--seeds", help="How many (5: seeds 0 to 4), a list (0,3,7), or a range (1-5).")
@job_options("network", "method", "seed", "label")  # a sweep has lists and variants in their place
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
@DOWNLOAD
@TRUST
@click.option(
    "--wandb",
    type=click.Choice(["off", "offline", "online"]),
    help="Weights & Biases for each trial: see transform --wandb.",
)
def sweep(
    out: Path,
    planning: bool,
    file: str | None,
    pairs: tuple[str, ...],
    variants: tuple[str, ...],
    trust_code: bool,
    **flags: Any,
) -> None:
    """Train and transform networks by several methods, with several seeds each, and compare them.

    Every trial is a run in a process of its own. The same command again goes on with what is unfinished; more
    networks, methods and seeds may be given then. Exit code 70: some trials failed; 75: stopped, to be resumed.

    \b
    dnat sweep --networks resnet8,resnet20 --methods original,dnat-full,dnat-full@0.7 --seeds 5 --out runs/first
    dnat sweep --networks resnet8 --methods dnat --variant slow=dnat,lr_theta=1e-3 --seeds 5 --out runs/rates
    dnat sweep --config runs/first/sweep.toml --seeds 10 --jobs 2 --out runs/second
    dnat sweep --out runs/first --retry-failed
    dnat sweep --out runs/first --plan > commands.txt
    """
    from ..sweep import Options

    how = {k: flags.pop(k) for k in ("jobs", "engine", "address", "retries", "retry_failed", "download", "wandb")}
    given = make_sweep(file, pairs, flags, variants)
    check_folder(out)
    _agree(given, make_sweep(None, pairs, flags, variants), file, out, trust_code)
    if planning:
        _print_plan(given, out, Options(**how))
    else:
        _sweep(given, out, Options(**how))


def _agree(given: Any, typed: Any, file: str | None, out: Path, trust_code: bool) -> None:
    """Ask for the code that a sweep's file or its directory names, and nobody typed."""
    from ..sweep import continued

    meant = continued(given, out)
    left = {(c.kind, c.name) for c in code_in_sweep(meant)} - {(c.kind, c.name) for c in code_in_sweep(typed)}
    if left and file:
        of_file = [c for c in code_in_sweep(given) if (c.kind, c.name) in left]
        agree(of_file, Path(file), trust_code)
        left -= {(c.kind, c.name) for c in of_file}
    agree((c for c in code_in_sweep(meant) if (c.kind, c.name) in left), out, trust_code)
    begin(code_in_sweep(meant), out)


def _print_plan(given: Any, out: Path, options: Any) -> None:
    from ..sweep import commands, write_plan

    standings, left = write_plan(given, out, options, notify=lambda text: say(f"note: {text}", err=True))
    for line in commands(left, download=options.download, wandb=options.wandb):
        say(line)
    failed = sum(s.state == "failed" for s in standings if s not in left)
    if failed:
        say(f"note: {failed} failed trials are left out; --retry-failed lists them, too", err=True)


def _sweep(given: Any, out: Path, options: Any) -> None:
    from ..sweep import run_sweep
    from ..terminal.console import console
    from ..terminal.sweep import SweepScreen

    def notify(text: str) -> None:
        screen.print(f"note: {text}", highlight=False, markup=False)

    screen = console()
    table = SweepScreen(screen)
    try:
        with stop_on_signals() as stop:
            found = run_sweep(given, out, options, watch=table.show, stop=lambda: stop(None), notify=notify)
    finally:
        table.finish()
    _show_sweep(screen, out, found)


def _show_sweep(screen: Any, out: Path, standings: Any) -> None:
    """Print what a sweep found, and end with the exit code of what is missing."""
    from ..summary import summarize
    from ..terminal.report import summary_tables
    from ..terminal.sweep import troubles_text

    done = [s for s in standings if s.state == "done"]
    if done and not any(s.state in ("pending", "interrupted") for s in standings):
        for table in summary_tables(summarize(s.record() for s in done)):
            screen.print(table)
    troubles = [s for s in standings if s.state in ("failed", "interrupted")]
    if troubles:
        screen.print(troubles_text(troubles), end="")
    say(f"files: {out}/ (a run directory for each trial, logs/, trials.json)")
    failed = sum(s.state == "failed" for s in standings)
    unfinished = len(standings) - len(done) - failed
    again = f"dnat sweep --out {shlex.quote(str(out))}"
    if unfinished:
        raise SweepEnded(75, f"{len(done)} of {len(standings)} trials are done; `{again}` goes on")
    if failed:
        raise SweepEnded(
            70, f"{failed} of {len(standings)} trials failed; once mended, type: {again} --retry-failed"
        )
    say(f"all {len(done)} trials are done; a page about them: dnat report {shlex.quote(str(out))}")
