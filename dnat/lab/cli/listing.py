"""What there is by name: networks, data sets, settings."""

import shutil
import textwrap
from collections.abc import Iterable, Sequence
from itertools import groupby

import click

from ...errors import UsageError
from ...naming import unknown
from ...settings.described import Setting, described
from ..catalogue import catalogue, size_of
from ..consent import code_in
from .group import cli
from .options import PIXELS, SET_NETWORK, network_options
from .output import say, told_if_slow
from .trust import begin


@cli.command()
@click.argument("names", nargs=-1)
@click.option("--image-size", type=PIXELS, help="Side of the images in pixels (default: the network's usual one).")
@SET_NETWORK
def networks(names: tuple[str, ...], image_size: int | None, pairs: tuple[str, ...]) -> None:
    """List the networks that can be built by name, or count those that are named.

    \b
    dnat networks
    dnat networks resnet20 nasbench201:301420 torchvision:resnet18
    dnat networks resnet20 --set network.skips=true --set network.width=8
    """
    from ..terminal.console import console
    from ..terminal.listings import families_table, networks_table

    screen, options = console(), network_options(pairs)
    if not names and (options or image_size):
        raise UsageError("--set and --image-size are for networks that are named: dnat networks NAME ...")
    if names:
        from ...networks import definition
        from ..runs import sized

        begin(code for name in names for code in code_in({"network": name, "network_options": options}))
        with told_if_slow(f"{', '.join(names)}: one image is run through"):
            found = {name: sized(name, options, image_size) for name in names}
        sources = {n: d.source if (d := definition(n)) else "" for n in found}
        screen.print(networks_table("counted now", found, sources))
        return
    for size, title in ((32, "for images of 32x32, 10 classes"), (224, "for images of 224x224, 1000 classes")):
        listed = {n: row["source"] for n, row in catalogue()["networks"].items() if row["image_size"] == size}
        screen.print(networks_table(title, {n: size_of(n) for n in listed}, listed))
    screen.print(families_table(catalogue()["families"]))


@cli.command()
def datasets() -> None:
    """List the data sets that can be loaded by name."""
    from ..terminal.console import console
    from ..terminal.listings import datasets_table

    console().print(datasets_table(catalogue()["datasets"]))


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
