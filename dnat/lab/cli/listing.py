"""What there is by name: networks and data sets. Only networks that are named wait for torch and settings."""

import click

from ...errors import UsageError
from ..catalogue import catalogue, size_of
from .group import cli
from .output import told_if_slow

PIXELS = click.IntRange(1, 8192)
SET_NETWORK = click.option(
    "--set", "pairs", multiple=True, metavar="KEY=VALUE", help="network.OPTION=VALUE; repeatable."
)


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

    screen = console()
    if not names and (pairs or image_size):
        raise UsageError("--set and --image-size are for networks that are named: dnat networks NAME ...")
    if names:
        from ...networks import definition
        from ..consent import code_in
        from ..runs import sized
        from .options import network_options
        from .trust import begin

        options = network_options(pairs)
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
