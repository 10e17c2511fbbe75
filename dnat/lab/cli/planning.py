"""Before a run: where a network may change, and what would go."""

import shlex
from pathlib import Path
from typing import Any

import click

from ...errors import UsageError
from ...settings import PRESETS, Config, Job
from ..consent import code_in
from .destinations import check_files
from .group import cli
from .listing import PIXELS, SET_NETWORK
from .options import SET, flag, flags, given_settings, network_options
from .output import say, told_if_slow
from .trust import begin


@cli.command()
@flag("network", required=True)
@click.option("--data", help="Name of a data set, whose classes, channels and size the network is built for.")
@flag("data_root")
@click.option(
    "--image-size", type=PIXELS, help="Side of the images in pixels (default: the data's, or the network's)."
)
@SET_NETWORK
@flag("space", default="dnat")
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
    if flags["data_root"] and not flags["data"]:
        raise UsageError("--data-root needs --data: it says where that data set lies")
    options = network_options(pairs)
    places = {k: v for k in ("data", "data_root", "image_size") if (v := flags[k]) is not None}
    job = Job(network=network, network_options=options, config=Config(device=flags["device"]), **places)
    begin(code_in(job.flat()))
    from ...session import choose_device
    from ..runs import network_and_images, survey
    from ..terminal.console import console
    from ..terminal.tables import survey_tables

    built, images = network_and_images(job, with_data=flags["data"] is not None)
    place = choose_device(flags["device"])
    batch = flags["batch_size"] if flags["measure"] else None
    with told_if_slow(f"{network}: images of {' x '.join(map(str, images.shape[1:]))} are run through"):
        found = survey(built.to(place), images.to(place), batch, flags["space"])
    if not found.edges and not flags["everything"]:
        raise UsageError(f"{network} has no operation that could be changed; --all tells why")
    for table in survey_tables(network, found, flags["everything"], tuple(images.shape[1:])):
        console().print(table)


@cli.command("plan")
@flag("network", required=True)
@flag("weights", more="Or a run directory.")
@flag("data", more="Its training images are shown.")
@flag("data_root")
@flag("image_size", type=PIXELS)
@click.option(
    "--budget", help="Most that may remain: 0.7 or 120M (multiply-adds), 5ms, '0.7 params'; 0.7,0.5 for several."
)
@click.option("--latency-budget", help="The same of time, measured here: 0.7 or 5ms; several between commas.")
@click.option(
    "--images", type=click.IntRange(1, 1 << 20), help="Images to show (default: 64 to 1,000, for a few minutes)."
)
@flags("space", "mode")
@flag("seed", more="Here it says which images are shown.")
@flag("device")
@click.option("--measure", is_flag=True, help="Measure here how long one image takes, before and after.")
@click.option("--all", "everything", is_flag=True, help="Show edges that stay, and all that cannot change, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of text.")
@click.option("--out", type=click.Path(path_type=Path), help="File to keep the plan in, for transform --plan.")
@click.option("--picture", type=click.Path(path_type=Path), help="File to draw it into: .png, .svg or .pdf.")
@click.option("--download", is_flag=True, help="Fetch data or weights if they are missing; nothing is without.")
@SET
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
    budgets = [*_listed(flags.pop("budget")), *(f"{text} time" for text in _listed(flags.pop("latency_budget")))]
    how = {name: flags.pop(name) for name in ("images", "measure", "download")}
    given = given_settings(None, pairs, flags)
    job = Job.from_flat(given)
    if job.config.limit.is_limited:
        raise UsageError("give budgets as --budget or --latency-budget here, not with --set")
    if "space" not in given:  # what the preset takes within a budget, which is no setting here
        space = PRESETS[job.config.preset]["space"]
        job = job.but(config=job.config.but(space=space))
    check_files(filter(None, (out, picture)))
    if picture:
        from ..drawing import check_picture

        check_picture(picture)
    begin(code_in(job.flat()))
    from ...proposal import described, parse_budget
    from ..terminal.console import console

    asked = list(dict.fromkeys(map(parse_budget, budgets or ["0.7"])))
    result = _planned(job, asked, out, **how)
    if as_json:
        say(result.to_json())
    else:
        console().print(described(result, everything=everything), highlight=False, markup=False)
    if out:
        say(f"file: {out}; dnat transform --plan {shlex.quote(str(out))} carries it out", err=True)
    if picture:
        from ..drawing import draw_plan

        say(f"picture: {draw_plan(result, picture)}", err=True)
    if not result.proposals:
        raise UsageError("; ".join(why for _, why in result.refused))


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()] if text else []


def _planned(
    job: Job, budgets: list[Any], out: Path | None, images: int | None, measure: bool, download: bool
) -> Any:
    """The plan of a job's network, with a bar on a terminal."""
    import torch

    from ...proposal import Planner, kept
    from ...session import choose_device
    from ...tasks import task_of
    from ..runs import load_data, network_for
    from ..terminal.console import console, watched

    def notify(text: str) -> None:
        say(f"note: {text}", err=True)

    data = load_data(job, download=download, notify=notify)
    network = network_for(job, data, **({"download": download, "notify": notify} if ":" not in job.data else {}))
    device, config = choose_device(job.config.machine.device), job.config
    if config.machine.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    planner = Planner(
        network.to(device),
        data.to(device),
        space=config.relaxation.space,
        mode=config.relaxation.mode,
        images=images,
        seed=config.seed,
        task=None if job.task is None else task_of(job.task),
    )
    with watched(console(stderr=True)) as tell:
        if out:
            return kept(planner, budgets, int(measure), out, tell)
        return planner.result(planner.measured(tell), budgets, int(measure), tell=tell)
