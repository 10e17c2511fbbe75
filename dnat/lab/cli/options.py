"""Flags that are settings, made from the settings themselves, and the job that they describe."""

from collections.abc import Callable, Sequence
from typing import Any

import click

from ...errors import UsageError
from ...settings import Job, parse_setting, read_toml
from ...settings.described import Setting, described
from ..catalogue import catalogue

FLAGS = (
    *("network", "data", "data_root", "method", "mode", "preset", "space", "budget", "latency_budget", "weights"),
    *("epochs", "architecture_epochs", "batch_size", "seed", "train_limit", "test_limit", "image_size", "workers"),
    *("skip_broken", "device", "compile", "task", "validation", "label"),
)
"""Settings that have a flag of their own on the command line of a run; --set takes all."""

_WORTH_A_LINE = 45
"""Of more characters than these a list of choices stands in `dnat settings` alone."""


def flag(name: str, *, more: str = "", **attributes: Any) -> Callable[..., Any]:
    """The flag of a setting: its type, its choices and its help are those of the setting.

    Args:
        name: of the setting.
        more: what else is to be said of it where the flag stands.
        attributes: of `click.option`, which beat those that follow from the setting.
    """
    setting = described()[name]
    choices = "|".join(setting.choices)
    settled: dict[str, Any] = (
        {
            "help": help_of(setting, attributes.get("default") or setting.default, more),
            "shell_complete": _completion(name),
        }
        | ({"metavar": f"[{choices}]"} if choices and len(choices) <= _WORTH_A_LINE else {})
        | ({"is_flag": True, "default": None} if setting.types == (bool,) else {})
        | ({"type": setting.types[0]} if setting.types in ((int,), (float,)) else {})
        | attributes
    )
    return click.option(f"--{name.replace('_', '-')}", name, **settled)


def help_of(setting: Setting, default: str, more: str = "") -> str:
    """The first sentence about a setting, with what holds where it is not given."""
    default = f" (default: {default})" if default and "default" not in setting.summary else ""
    return f"{setting.summary.removesuffix('.')}{default}.{f' {more}' if more else ''}"


def flags(*names: str) -> Callable[..., Any]:
    """The flags of several settings."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for name in reversed(names):
            command = flag(name)(command)
        return command

    return add


def _completion(name: str) -> Callable[[Any, Any, str], Sequence[str]]:
    """What a shell offers for a setting's value."""

    def offered(context: Any, parameter: Any, incomplete: str) -> list[str]:
        known = _KNOWN[name]() if name in _KNOWN else described()[name].choices
        return [value for value in known if value.startswith(incomplete)]

    return offered


def _networks() -> Sequence[str]:
    return sorted([*catalogue()["networks"], "torchvision:", "timm:", "genotype:", "nasbench201:"])


def _sets() -> Sequence[str]:
    return [row["name"] for row in catalogue()["datasets"]]


_KNOWN: dict[str, Callable[[], Sequence[str]]] = {
    "network": _networks,
    "data": _sets,
    "device": lambda: ("auto", "cpu", "cuda", "cuda:1", "mps"),
}


def _offered_settings(context: Any, parameter: Any, incomplete: str) -> list[str]:
    return [f"{name}=" for name in described() if name.startswith(incomplete)]


SET = click.option(
    "--set",
    "pairs",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any setting; repeatable. `dnat settings` lists all.",
    shell_complete=_offered_settings,
)
CONFIG = click.option("--config", "file", type=click.Path(), help="Settings in a TOML file.")
DOWNLOAD = click.option(
    "--download", is_flag=True, help="Fetch the data set if it is missing; nothing is fetched without."
)

ACCEPT = click.option(
    "--accept-changes",
    is_flag=True,
    help="Take files, settings or data that are not what the run wrote or had; each is named. Refused without.",
)


def accepted(accept_changes: bool) -> Callable[[str], None] | None:
    """What is told of changes that are taken; None refuses them."""
    return (lambda text: click.echo(f"note: {text}", err=True)) if accept_changes else None


def job_options(*without: str) -> Callable[..., Any]:
    """The flags that are settings: each overrides --set, which overrides the file, which overrides defaults."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        return flags(*(name for name in FLAGS if name not in without))(CONFIG(SET(command)))

    return add


def make_job(file: str | None, pairs: tuple[str, ...], given: dict[str, Any]) -> Job:
    """The job that a file, --set and flags describe; settings are checked without waiting for torch."""
    job = Job.from_flat(given_settings(file, pairs, given))
    if not job.network.startswith("genotype") or job.network_options.get("genotype"):
        return job
    from ...networks import genotype_of, is_genotype

    if not is_genotype(job.network):
        return job
    # The run holds the genotype itself: it means the same wherever the file goes.
    return job.but(network_options=job.network_options | {"genotype": genotype_of(job.network)})


def given_settings(file: str | None, pairs: tuple[str, ...], given: dict[str, Any]) -> dict[str, Any]:
    """The settings in a file, --set and flags as one table; later ones win."""
    table = read_toml(file) if file else {}
    add_settings(table, pairs)
    return table | {key: value for key, value in given.items() if value is not None}


def network_options(pairs: tuple[str, ...]) -> dict[str, Any]:
    """What --set says of a command that takes a network and no run: its options.

    Raises:
        ValueError: something else is set, which would be of no use.
    """
    table: dict[str, Any] = {}
    add_settings(table, pairs)
    options = table.pop("network_options", {})
    if table:
        raise UsageError(f"--set takes network.OPTION=VALUE here: {next(iter(table))!r} is a setting of a run")
    return options


def add_settings(table: dict[str, Any], pairs: tuple[str, ...]) -> None:
    """Add what --set says; network.NAME and search.NAME stand in tables of their own."""
    for key, value in map(parse_setting, pairs):
        group, dot, option = key.partition(".")
        if dot and group in ("network", "search"):
            name = "network_options" if group == "network" else group
            if not isinstance(table.setdefault(name, {}), dict):
                raise UsageError(f"{name} must be a table of settings for --set {key} to add to it")
            table[name] = {**table[name], option: value}
        else:
            table[key] = value
