"""The command itself: each of its commands is added by a module beside this one, once it is asked for."""

import errno
import importlib
import os
import sys
import traceback

import click

from ... import __version__
from ...errors import DnatError, told_of_machine, users_code
from ...files import named
from ...naming import unknown
from .output import say

MODULES = {
    **dict.fromkeys(("transform", "resume"), "running"),
    **dict.fromkeys(("edges", "plan"), "planning"),
    "sweep": "sweeping",
    **dict.fromkeys(("report", "results", "draw", "evaluate", "predict"), "results"),
    **dict.fromkeys(("compare", "power"), "comparing"),
    "export": "exporting",
    **dict.fromkeys(("networks", "datasets"), "listing"),
    "settings": "explaining",
}
"""In which module each command stands."""

FIRST = os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"
"""Whether this process is the only one, or the first of those that torchrun started."""


class Commands(click.Group):
    """The commands; a module with some of them is imported when one of those is asked for, so that none waits for
    what others need."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all."""
        return sorted(MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name; None where there is none."""
        if cmd_name in MODULES:
            importlib.import_module(f".{MODULES[cmd_name]}", __package__)
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that was typed; a name that is near to another says so."""
        if args[0] not in MODULES and args[0].isidentifier() and not ctx.resilient_parsing:
            raise unknown("command", args[0], MODULES)
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="dnat")
def cli() -> None:
    """Transform a PyTorch network into a smaller one, while it trains.

    \b
    dnat plan --network resnet20 --weights FILE --budget 0.7     what would go from a trained network
    dnat transform --network resnet8 --epochs 40      the main job, on the data that come along
    dnat sweep --networks resnet8 --methods original,dnat-full --seeds 5 --out runs/five
    dnat report runs/five                             what came out, as tables and a page
    dnat edges --network resnet20                     where a network may change
    dnat networks, dnat datasets, dnat settings       what there is by name
    """


class SweepEnded(DnatError):
    """A sweep of which some trials have no result; they have been shown."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def exit_code(error: BaseException) -> int:
    """The code for an error.

    0 done; 2 wrong use; 65 bad data or loss; 70 trials failed; 73 locked, or the machine cannot (a full disk);
    75 stopped, can be resumed; 1 bug.
    """
    return error.exit_code if isinstance(error, DnatError) else 1


def main() -> None:
    """Run the command and exit with its code."""
    try:
        with told_of_machine(), users_code("code of the network's failed", alone=False):
            cli.main(standalone_mode=False)
            with named("standard output"):
                sys.stdout.flush()
    except SystemExit as ended:
        _leave(unread="PacifyFlushWrapper" in type(sys.stdout).__name__)  # click's sign of a broken pipe
        raise ended
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        say("dnat: stopped at once", err=True)
        sys.exit(130)
    except Exception as error:
        _leave(unread=isinstance(error, OSError) and error.errno == errno.EPIPE)
        code = exit_code(error)
        if code == 1:
            traceback.print_exc()
            say("dnat: this is a bug of dnat; please report it with the lines above", err=True)
        else:
            hint = "; the same command goes on with it" if code == 75 and not isinstance(error, SweepEnded) else ""
            which = "" if FIRST else f" (process {os.environ['RANK']})"
            say(f"dnat{which}: {error}{hint}", err=True)
        sys.exit(code)


def _leave(*, unread: bool) -> None:
    """Before an end by an error: what cannot be written any more goes nowhere, or it were the next error.

    Where whoever read the output has gone, as `head` does, it ends without a word, as by SIGPIPE.
    """
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    if unread:
        sys.exit(128 + 13)
