"""A finished run's network as files that need no dnat."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...errors import UsageError
from .destinations import check_files, with_ending
from .group import cli
from .options import ACCEPT, accepted, flag
from .output import say
from .trust import TRUST, begin_again

if TYPE_CHECKING:
    from ...data import Source
    from ...tracing import Example
    from ..deployment import Form
    from ..metrics import Metric


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--to", "form", required=True, help="safetensors, py (torch-only Python), pt2 or onnx.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write (default: RUN/exported.FORM).")
@click.option("--fold", is_flag=True, help="Fold batch norms into the layers before them; for eval mode only.")
@click.option("--quantize", metavar="int8", help="With --to onnx: in 8 bits, calibrated on training images.")
@click.option(
    "--images", type=click.IntRange(1), help="Training images to calibrate with, drawn by the seed (default: 256)."
)
@click.option(
    "--measure/--no-measure",
    default=None,
    help="Show metric, time and size beside the run's other forms (default: with --quantize).",
)
@click.option("--verify/--no-verify", default=True, help="Read it again in a fresh process and compare.")
@flag("data_root", more="Where it moved; for --quantize and --measure.")
@ACCEPT
@TRUST
def export(
    run: Path,
    form: str,
    out: Path | None,
    *,
    quantize: str | None,
    images: int | None,
    measure: bool | None,
    data_root: str | None,
    accept_changes: bool,
    trust_code: bool,
    **how: bool,
) -> None:
    """Write a finished run's network to files that need no dnat.

    \b
    dnat export runs/resnet8-digits-dnat-seed0 --to py
    dnat export runs/resnet8-digits-dnat-seed0 --to py --fold
    dnat export runs/resnet8-digits-dnat-seed0 --to onnx --out model.onnx
    dnat export runs/resnet8-digits-dnat-seed0 --to onnx --quantize int8
    """
    from ...exports import export as write
    from ...rundir import read_job
    from ..runs import load_data, preprocess_of, restore

    _check(form, quantize, images)  # before a run is read for it
    place = out or run / f"exported{f'.{quantize}' if quantize else ''}"
    place = place if place.suffix == f".{form}" else with_ending(place, form)
    check_files(place.with_suffix(ending) for ending in (f".{form}", *_BESIDE.get(form, ())))
    begin_again(read_job(run), run, trust_code)
    network, job, example = restored = restore(run, accepted(accept_changes))
    measure = bool(quantize) if measure is None else measure
    data = load_data(job.but(data_root=data_root or job.data_root)) if quantize or measure else None
    calibration = _training_inputs(data, images or 256, job.config.seed) if quantize and data is not None else None
    told = (lambda text: None) if accept_changes else None
    preprocess = preprocess_of(run, told)
    written = write(
        network,
        example,
        form,
        place,
        preprocess=preprocess,
        quantize=quantize,
        calibration=calibration,
        **how,
    )
    for path in written.files:
        say(path)
    for note in written.notes:
        say(f"note: {note}")
    if preprocess is None:
        say("note: how images are made is not told: the run is of an older dnat, which did not note it")
    if written.agreement:
        say(f"read again without dnat, and compared with the network: {written.agreement}")
    elif how["verify"]:
        say(f"read again without dnat; largest difference {written.difference:.2g}")
    if measure and data is not None:
        from ..deployment import forms

        _show(run, forms(run, restored, data, written, told), data.test_count)


_BESIDE = {"safetensors": (".json",), "py": (".safetensors",)}
"""Endings of files that a form writes beside the one that is named."""


def _check(form: str, quantize: str | None, images: int | None) -> None:
    """Refuse flags that do not fit together, or need what is not installed."""
    from ...exports import FORMATS, QUANTIZATIONS
    from ...exports.graphs import check_onnx
    from ...naming import unknown

    if form not in FORMATS:
        raise unknown("form", form, FORMATS)
    if quantize is not None and quantize not in QUANTIZATIONS:
        raise unknown("quantization", quantize, QUANTIZATIONS)
    if quantize and form != "onnx":
        raise UsageError(f"--quantize is for --to onnx, not --to {form}")
    if images and not quantize:
        raise UsageError("--images is for --quantize: leave it out")
    if form == "onnx":
        check_onnx()


def _training_inputs(data: "Source", count: int, seed: int) -> "Example":
    if not data.train_count:
        raise UsageError(f"{data.name} has no training images, on which --quantize finds the range of numbers")
    return data.train_inputs(min(count, data.train_count), seed)


def _show(run: Path, found: tuple["Metric", list["Form"]], count: int) -> None:
    """Print the run's forms, measured here on so many test examples."""
    import torch

    from ..deployment import cells, is_slower
    from ..terminal.console import console
    from ..terminal.grid import Grid

    metric, measured = found
    head, *rows = cells(metric, measured)
    where = f"on {torch.get_num_threads()} threads of this CPU".replace("on 1 threads", "on one thread")
    title = f"{run.name}, on {count} test examples"
    caption = f"ms: median ± half the distance of the quartiles, {where}"
    console().print(Grid(title, tuple(head), tuple(map(tuple, rows)), frozenset(head[2:]), caption=caption))
    if is_slower(measured):
        say("note: 8 bits are no faster here: they are on a CPU (or NPU) with instructions for them, as VNNI")
