"""The settings, listed and explained."""

import shutil
import textwrap
from collections.abc import Iterable, Sequence
from itertools import groupby

import click

from ...naming import unknown
from ...settings.described import Setting, described
from .group import cli
from .output import say


def _offered(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in described() if name.startswith(incomplete)]


@cli.command("settings")
@click.argument("names", nargs=-1, shell_complete=_offered)
@click.option("--markdown", "as_markdown", is_flag=True, help="Print all as the page docs/settings.md.")
def settings_(names: tuple[str, ...], as_markdown: bool) -> None:
    """List and explain the settings that --set and configuration files take, or those that are named.

    \b
    dnat settings
    dnat settings lr judge search.epochs
    """
    known = described()
    for name in names:
        if name not in known:
            raise unknown("setting", name, known)
    if as_markdown:
        say(_markdown(known.values()), nl=False)
    elif names:
        say("\n\n".join(_in_full(known[name]) for name in names))
    else:
        say(_listed(known.values()))


def _facts(setting: Setting) -> Sequence[tuple[str, str]]:
    return [(k, v) for k, v in (("allowed", setting.allowed), ("default", setting.default)) if v]


def _in_full(setting: Setting) -> str:
    width = min(shutil.get_terminal_size().columns, 110)
    facts = [f"  {fact}: {value}" for fact, value in _facts(setting)]
    return "\n".join([f"{setting.name} ({setting.part})", *facts, *_wrapped(setting.text, width)])


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def _listed(settings: Iterable[Setting]) -> str:
    """All of them in a few lines each."""
    width, lines = min(shutil.get_terminal_size().columns, 110), list[str]()
    for part, of_part in groupby(settings, lambda setting: setting.part):
        lines += ["", f"[{part}]"]
        for setting in of_part:
            default = f" (default: {setting.default})" if setting.default else ""
            lines += [f"{setting.name}: {setting.allowed}{default}", *_wrapped(setting.summary, width)]
    return "\n".join([*lines[1:], "", "dnat settings NAME explains one in full."])


def _markdown(settings: Iterable[Setting]) -> str:
    lines = [
        "# Settings",
        "",
        "What `--set NAME=VALUE`, TOML files (`--config`) and `dnat.Config` take: `dnat.Config(lr=0.1)`. In",
        "Python a setting is read in its part: `config.training.lr`. Made by `dnat settings --markdown`.",
    ]
    for part, of_part in groupby(settings, lambda setting: setting.part):
        lines += ["", f"## {part}", "", "| setting | allowed | default | |", "|---|---|---|---|"]
        for setting in of_part:
            cells = (f"`{setting.name}`", setting.allowed, setting.default, setting.text)
            lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n"
