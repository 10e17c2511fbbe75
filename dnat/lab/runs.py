"""A job and a directory -> a run and its result: networks and data by name, files in place, resumable."""

import functools
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..budget import Costs
from ..config import SEARCHING, WHERE, Job
from ..costs import Cost, Latency, cost, latency, operation_seconds
from ..data import Augmentation, Data, Preprocess, load
from ..discretization import discretize
from ..distributed import from_first, joined, world
from ..edges import ORIGINAL, Edge, Space, in_order, units
from ..errors import UsageError
from ..networks import (
    GENOTYPES,
    Genotype,
    NetworkSize,
    accepts,
    build,
    check_mode,
    definition,
    fitting,
    genotype_of,
    load_weights,
    usual_size,
)
from ..networks.genotypes import published, transformed
from ..networks.weights import read_state
from ..planning import find_edges
from ..records import Records, holds_other, read_job
from ..results import Commitment, EdgeReport, Transformation
from ..tracing import trace
from ..tracking import Tracker
from ..training import Progress
from . import drawing
from .baselines import Family, family_of, regrow, resized, works_on_genotype
from .methods import METHODS, check_method


def load_data(job: Job, *, download: bool = False, notify: Callable[[str], None] = lambda text: None) -> Data:
    """The data set that a job names.

    Args:
        job: with the data set's name.
        download: fetch the data set if it is missing.
        notify: is given what is worth knowing of the data (an incomplete set, a split that was made).
    """
    data = load(
        job.data,
        job.data_root,
        image_size=job.image_size,
        train_limit=job.train_limit,
        test_limit=job.test_limit,
        download=download,
        streaming=job.streaming,
        workers=job.workers,
        skip_broken=bool(job.skip_broken),
        augmentation=_augmentation(job),
    )
    for note in data.notes:
        notify(note)
    return data


def _augmentation(job: Job) -> Augmentation | None:
    """What a job asks for where it is not the data set's own way."""
    if job.crop == "resized":
        return Augmentation(resized=True)
    if job.crop == "padded" and job.data == "imagenet":  # all others are cropped so in any case
        return Augmentation(pad=(job.image_size or 224) // 8)
    return None


def build_network(
    job: Job,
    classes: int,
    image_shape: tuple[int, ...],
    *,
    names: Sequence[str] | None = None,
    download: bool = False,
    notify: Callable[[str], None] = lambda text: None,
) -> nn.Module:
    """The network that a job names, for its data, with initial weights from its seed or trained ones.

    Args:
        job: with the network's name and options.
        classes: classes to tell apart.
        image_shape: (C, H, W) of the images.
        names: of the classes, for trained weights that were made for others.
        download: whether trained weights may be fetched.
        notify: is given what the user should know.

    Raises:
        ValueError: an unknown network or option, a mode that it does not have, weights that do not fit.
    """
    known = definition(job.network)
    check_mode(job.network, job.config.mode)
    options = _options(job, classes, image_shape) | job.network_options
    network = build(job.network, seed=job.config.seed, **options)
    if job.weights is not None:
        name = f"torchvision:{known.torchvision}" if known and known.torchvision else job.network
        for note in load_weights(network, job.weights, name, download=download, classes=names):
            notify(note)
    return network


def _family(job: Job, classes: int, image_shape: tuple[int, ...]) -> Family:
    """How a job's network is made with fewer channels, from its seed.

    Raises:
        ValueError: its constructor has no argument for that.
    """

    def made(**widths: Any) -> nn.Module:
        return build_network(_narrower(job, widths), classes, image_shape)

    return family_of(job.network, job.network_options, made)


def _narrower(job: Job, widths: Mapping[str, Any]) -> Job:
    """The job for a network with fresh weights and other options."""
    return replace(job, weights=None, network_options={**job.network_options, **widths})


def _options(job: Job, classes: int, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """The arguments of a network's constructor that follow from the data and the method's settings."""
    channels, size = image_shape[0], min(image_shape[1:])
    wanted: dict[str, Any] = {}
    known = definition(job.network)
    if known is not None:
        # Twice as large images are brought to the usual size by the stem (docs/methods.md C4).
        stride = 2 if known.image_size == 32 and size >= 64 else 1
        if stride > 1:
            wanted["stem_stride"] = stride
        # NAT connects null edges: its genotypes have them, and so have the networks that it transforms.
        wanted["skips"] = job.config.skips or job.method in SEARCHING
        if job.config.drop_path:
            wanted["drop_path"] = job.config.drop_path
        # The head's pools need as many pixels as small images have.
        if job.config.auxiliary and size // stride >= 32:
            wanted["auxiliary"] = True
    found = {name: value for name, value in wanted.items() if accepts(job.network, name)}
    return fitting(job.network, classes, channels) | found


def network_and_images(job: Job, *, with_data: bool) -> tuple[nn.Module, Tensor]:
    """The network of a job, and two images for it.

    Args:
        job: with the network's name and options.
        with_data: whether images, their size and the number of classes are those of the job's data set. Without,
            the images are black, of the size and for the number of classes that the network is meant for.
    """
    if with_data:
        data = load_data(job)
        images = data.example(2)
        return build_network(job, data.num_classes, tuple(images.shape[1:])), images
    size = job.image_size or usual_size(job.network)
    return build(job.network, seed=0, **job.network_options), torch.zeros(2, 3, size, size)


def run(
    job: Job,
    directory: str | Path,
    *,
    tracker: Tracker | None = None,
    stop: Callable[[Progress], bool] | None = None,
    download: bool = False,
    anew: bool = False,
    notify: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Carry a job out in a directory, or go on with it; a run that is done is not done again.

    Args:
        job: what to do.
        directory: the run directory; made when it is missing.
        tracker: is told of progress.
        stop: asked after each batch whether to save and stop (`Interrupted`).
        download: fetch the data set if it is missing.
        anew: whether a run whose checkpoints are all damaged begins again.
        notify: is given what the user should read (a damaged checkpoint, another machine).

    Returns:
        The record, as it stands in record.json.

    Raises:
        ValueError, TypeError: a job that cannot be done; nothing was written then.
        DataError, NonFiniteError, LockedError, Interrupted: see there.
    """
    with joined(job.config.device) as here:
        if here.size > 1 and job.method in SEARCHING:
            raise UsageError(f"method {job.method!r} trains in one process: start it without torchrun")
        return _run(job, Path(directory), tracker, stop, download, anew, notify)


def _run(
    job: Job,
    directory: Path,
    tracker: Tracker | None,
    stop: Callable[[Progress], bool] | None,
    download: bool,
    anew: bool,
    notify: Callable[[str], None],
) -> dict[str, Any]:
    done = from_first(lambda: _done(directory, job))
    if done is not None:
        return done
    if download and world().size > 1:  # by one process, before the others look
        from_first(lambda: load_data(job, download=True) and None)
    data = load_data(job, download=download, notify=notify)
    shape = (data.channels, *data.image_size)
    network = build_network(job, data.num_classes, shape, names=data.classes, download=download, notify=notify)
    # Whatever can be known to fail does so here, before a directory is made that a corrected command would
    # find occupied by other settings.
    of_method: dict[str, Any] = {}
    if job.method == "control-narrow":
        of_method["family"] = _family(job, data.num_classes, shape)
    check_method(job.method, network, data, job.config, **of_method)
    trained: list[Progress] = []

    def asked(progress: Progress) -> bool:
        """`stop`, which is asked after each batch; notes that one was trained."""
        trained[:] = [progress]
        return bool(stop and stop(progress))

    with _opened(directory, job, anew, notify) as records:
        done = from_first(lambda: records.record() if records and records.is_done() else None)
        if done is not None:  # by another process, in between
            return done
        job = from_first(lambda: records.job if records else job)
        started = time.time()
        try:
            method = functools.partial(METHODS[job.method], **of_method)
            result = method(network, data, job.config, records=records, tracker=tracker, stop=asked)
        except BaseException as error:
            state = "interrupted" if getattr(error, "exit_code", 1) == 75 else "failed"
            if records:
                records.status(state, f"{type(error).__name__}: {error}")
            if records and not trained:
                records.discard()
            raise
        return from_first(lambda: _finish(records, job, network, data, result, started) if records else {})


def _done(directory: Path, job: Job) -> dict[str, Any] | None:
    """The record of a run that has ended; None of another one, or where the directory has another job's.

    That is refused when all else that may be wrong with the job was told.
    """
    if not (directory / "record.json").exists() or holds_other(directory, job):
        return None
    with Records.open(directory, job) as records:
        return records.record()


@contextmanager
def _opened(directory: Path, job: Job, anew: bool, notify: Callable[[str], None]) -> Iterator[Records | None]:
    """The run directory, open in the first process; None in others that train with it."""
    with ExitStack() as stack:
        opened: list[Records] = []
        made = functools.partial(Records.open, directory, job, notify=notify, anew=anew)
        from_first(lambda: opened.append(stack.enter_context(made())))
        yield opened[0] if opened else None


def _finish(
    records: Records, job: Job, network: nn.Module, data: Data, result: Transformation, started: float
) -> dict[str, Any]:
    rows = picture_rows(network, data, result.commitment, job.config.moves)
    commitment = result.commitment.table() if result.commitment else None
    genotypes = [asdict(g) for g in genotypes_of(network, job, result)]
    architecture = {"commitment": commitment, "rows": drawing.rows_to_json(rows), "genotypes": genotypes}
    records.write_json("architecture.json", architecture)
    records.write_state("network.safetensors", result.network)
    draw(records.path(), architecture, job, result.cost_before, result.cost_after)
    record = {
        "results": result.results(),
        "seconds": {k: round(v, 3) for k, v in result.seconds.items()},
        "latency": {"before": asdict(result.latency_before), "after": asdict(result.latency_after)},
        "job": job.flat() | dict.fromkeys(WHERE),
        "data_fingerprint": data.fingerprint(),
        "classes": list(data.classes),
        "preprocess": data.preprocess.table(),
        "skipped": list(data.skipped),
        "image_shape": list(data.example(1).shape[1:]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    records.finish(record)
    return record


def sized(name: str, options: Mapping[str, Any], image_size: int | None = None) -> NetworkSize:
    """Count a network by name, without computing anything: see `NetworkSize`.

    Args:
        name: of the network.
        options: arguments of its constructor.
        image_size: height and width of the images; by default the network's usual ones, or 224.
    """
    known, size = definition(name), image_size or usual_size(name)
    with torch.device("meta"):
        network, example = build(name, **options), torch.zeros(2, 3, size, size)
        edges = find_edges(trace(network, example, batch=len(example)))
        found = cost(network, example, batch=len(example))
    modes = known.modes if known else ("full", "cell")
    return NetworkSize(
        found.params, found.madds, len(edges), len({e.group for e in edges}) if "cell" in modes else None
    )


@dataclass(frozen=True)
class Survey:
    """What `dnat edges` shows of a network.

    Attributes:
        edges: what may change.
        fixed: what may not; each says why.
        saved: multiply-adds that the cheapest choice of each edge saves, alone and with all that goes with it.
        latency: of the whole network; None where nothing was measured.
        seconds: time that the same choice of each edge saves; None where nothing was measured.
    """

    edges: tuple[Edge, ...]
    fixed: tuple[Edge, ...]
    saved: dict[str, float]
    latency: Latency | None = None
    seconds: dict[str, float] | None = None


def survey(network: nn.Module, example: Tensor, measured_batch: int | None = None, space: str = "dnat") -> Survey:
    """Find out what may change in a network and what that would save.

    Args:
        network: any module that takes images.
        example: a batch of them.
        measured_batch: also measure the time of a batch of so many images, on the example's device. What other
            operations would take is not known, so that their savings are not measured.
        space: of choices; see `find_edges`.
    """
    program = trace(network, example, batch=len(example))
    found = find_edges(program, space, everything=True)
    edges = tuple(e for e in found if len(e.choices) > 1)
    fixed = tuple(e for e in found if len(e.choices) == 1)

    def savings(costs: Costs) -> dict[str, float]:
        known = {e: [c for c in e.choices if costs.counted or c not in dict(e.others)] for e in edges}
        return {e.key: costs.total - min(costs.of({e: c}) for c in known[e]) for e in edges}

    if not edges:
        return Survey(edges, fixed, {})
    if measured_batch is None:
        return Survey(edges, fixed, savings(Costs(edges)))
    batch = example[:1].expand(measured_batch, *example.shape[1:]).contiguous()
    seconds = operation_seconds(network, batch, program)
    return Survey(edges, fixed, savings(Costs(edges)), latency(network, batch), savings(Costs(edges, seconds)))


def picture_rows(
    network: nn.Module, data: Data, commitment: Commitment | None, space: Space = "dnat"
) -> list[drawing.OperationRow]:
    """Every operation of a network, in order, and what became of it, for the picture."""
    program = trace(network, data.example(2))
    edges = {e.key: e for e in find_edges(program, space)}
    cells = tuple(f"{e.entry}." for e in edges.values() if e.kind == "operation")
    others = (e for e in units(program) if not e.entry.startswith(cells))
    everything = {e.key: e for e in others} | edges
    reports = {e.key: e for e in commitment.edges} if commitment else {}
    removed = set(commitment.removed) if commitment else set()
    left = _left({edge: _choice(reports, edge) for edge in edges.values() if edge.place})

    def row(edge: Edge) -> drawing.OperationRow:
        report, choice = reports.get(edge.key), _choice(reports, edge)
        found = drawing.OperationRow(
            key=edge.key,
            kind=edge.kind if edge.key in edges else "fixed",
            operation=edge.operation,
            shape_in=edge.shape_in,
            shape_out=edge.shape_out,
            madds=edge.madds,
            choice=choice,
            theta=report.gates if report else None,
            removed=choice == ORIGINAL and edge.kind not in ("skip", "width") and edge.entry in removed,
        )
        if edge.place or edge.entry not in left:
            return found
        before, after = (round(n * share) for n, share in zip(found.channels, left[edge.entry], strict=True))
        return replace(found, left=(before, after))

    return [row(edge) for edge in in_order(everything.values())]


def _choice(reports: Mapping[str, EdgeReport], edge: Edge) -> str:
    return reports[edge.key].choice if edge.key in reports else ORIGINAL


def _left(choices: Mapping[Edge, str]) -> dict[str, tuple[Fraction, Fraction]]:
    """{path of a layer: the shares of what it is given and of what it gives that stay}, of narrowed widths."""
    found: dict[str, tuple[Fraction, Fraction]] = {}
    for edge, choice in choices.items():
        assert edge.place
        share = Fraction(edge.kept(choice), edge.place.classes)
        for name in dict.fromkeys(name for name, _, _ in edge.place.cuts) if share < 1 else ():
            path = name.rpartition(".")[0]
            given, gives = found.get(path, (Fraction(1), Fraction(1)))
            # What neither makes nor reads the channels, such as a depthwise convolution, hands them on.
            found[path] = (
                given if name in edge.place.makers or name.endswith(".bias") else share,
                gives if name in edge.place.readers else share,
            )
    return found


_PLACE = re.compile(r"(normal|reduce|cell):(\d+)\.(\d+)")


def genotypes_of(network: nn.Module, job: Job, result: Transformation) -> tuple[Genotype, ...]:
    """The genotype of a network of cells before and after its transformation as a whole; else nothing.

    In Full mode the cells differ, so that no genotype says what they are.
    """
    genotype, commitment = getattr(network, "genotype", None), result.commitment
    if isinstance(genotype, Genotype) and result.genotype is not None:
        return genotype, result.genotype
    if not isinstance(genotype, Genotype) or commitment is None or job.config.mode != "cell":
        return ()
    choices = {}
    for edge in commitment.edges:
        found = _PLACE.fullmatch(edge.group)
        if found:
            kinds = ("normal", "reduce") if found[1] == "cell" else (found[1],)
            choices.update({(kind, int(found[2]), int(found[3])): edge.choice for kind in kinds})
    return genotype, transformed(genotype, choices)


def draw(
    folder: Path,
    architecture: Mapping[str, Any],
    job: Job,
    before: Cost,
    after: Cost,
    formats: tuple[str, ...] = ("png", "svg"),
) -> list[Path]:
    """Draw a run's before/after picture into a folder; with a genotype also its cells."""
    title = f"{job.network} on {job.data}, {job.method}"
    rows = drawing.rows_from_json(architecture["rows"])
    files = drawing.draw_network(
        rows, folder / "architecture", title=title, before=before, after=after, formats=formats
    )
    found = [Genotype.from_json(json.dumps(g)) for g in architecture.get("genotypes", ())]
    if found:
        first, last = found
        costs = f"{before}  →  {after}"
        if _same_inputs(first, last):
            files += drawing.draw_genotype(
                first, folder / "cells", after=last, title=title, subtitle=costs, formats=formats
            )
        else:  # NAO's: the two have different edges, so that they are two pictures
            for name, when, genotype in (("cells-before", "before", first), ("cells", "after", last)):
                files += drawing.draw_genotype(
                    genotype, folder / name, title=f"{title}, {when}", subtitle=costs, formats=formats
                )
    return files


def _same_inputs(first: Genotype, last: Genotype) -> bool:
    """Whether two genotypes differ in their operations alone."""
    return all(
        [[e.input for e in node] for node in a.nodes] == [[e.input for e in node] for node in b.nodes]
        for a, b in zip(first.cells, last.cells, strict=True)
    )


def redraw(directory: str | Path, formats: tuple[str, ...] = ("png", "svg")) -> list[Path]:
    """Draw the pictures of a finished run again, from its files."""
    job, record, architecture = _read(directory)
    before, after = (Cost(**record["results"][name]) for name in ("cost_before", "cost_after"))
    return draw(Path(directory), architecture, job, before, after, formats)


def draw_named(
    before: str, after: str | None, path: str | Path | None, formats: tuple[str, ...] = ("png", "svg")
) -> list[Path]:
    """Draw a genotype, or what one became.

    Args:
        before, after: a published genotype by name, or a JSON file.
        path: where to write, without a suffix; by default the names, here.
        formats: png, svg or pdf.

    Raises:
        ValueError: an unknown name, a file that is no genotype, or two that differ in more than their operations.
    """
    names = [before] if after is None else [before, after]
    found = [_genotype(name) for name in names]
    labels = [Path(name).stem for name in names]
    sources = [GENOTYPES[name].source for name in names if name in GENOTYPES]
    return drawing.draw_genotype(
        found[0],
        path or "-".join(labels),
        after=found[1] if after else None,
        title=" → ".join(labels),
        subtitle=sources[-1] if sources else "",
        formats=formats,
    )


def _genotype(name: str) -> Genotype:
    if Path(name).suffix or Path(name).exists():
        return Genotype.from_json(genotype_of(f"genotype:{name}"))
    known = definition(name)
    return published(known.genotype if known and known.genotype else name)


def restore(directory: str | Path) -> tuple[nn.Module, Job, Tensor]:
    """The trained network of a finished run, its job, and a batch of the shape that it takes; needs no data set.

    Raises:
        ValueError: no run directory, or a run that is not finished.
    """
    job, record, architecture = _read(directory)
    if "image_shape" not in record:
        raise UsageError(f"{directory} was written by an older dnat, which did not note what its network takes")
    shape = record["image_shape"]
    example = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    commitment = Commitment.from_table(architecture["commitment"]) if architecture["commitment"] else None
    widths = commitment.widths if commitment else {}
    # Its own weights follow.
    options = widths if job.method == "control-narrow" else {}
    network = build_network(_narrower(job, options), len(record["classes"]), shape)
    if job.method in SEARCHING and works_on_genotype(network, job.config):
        after = Genotype.from_json(json.dumps(architecture["genotypes"][1]))
        network = regrow(network, after, job.config)
    elif job.method == "control-prune":
        network = resized(network, widths)
    elif commitment:
        network = discretize(network, commitment.choices, example)
    network.load_state_dict(read_state(Path(directory) / "network.safetensors"))
    return network.eval(), job, example


def preprocess_of(directory: str | Path) -> Preprocess | None:
    """How images are made for a finished run's network; None where an older dnat did not note it.

    Raises:
        ValueError: no run directory, or a run that is not finished.
    """
    _, record, _ = _read(directory)
    return Preprocess.from_table(record["preprocess"]) if "preprocess" in record else None


def other_images(directory: str | Path, data: Data) -> tuple[Data, list[str]]:
    """Images with labels as a finished run's network numbers its classes, and what is worth knowing of them.

    Args:
        directory: of the run.
        data: of the same classes, or some of them, by name.

    Raises:
        DataError: classes that the network does not know.
        ValueError: no run directory, or a run that is not finished.
    """
    _, record, _ = _read(directory)
    numbered, notes = data.numbered(record["classes"]), list(data.notes)
    if len(data.classes) < len(record["classes"]):
        notes.append(f"these images are of {len(data.classes)} of the network's {len(record['classes'])} classes")
    if numbered.fingerprint() != record["data_fingerprint"]:
        notes.append(
            "these are not the images of the run, or they are held in another way (their fingerprint differs)"
        )
    return numbered, notes


def _read(directory: str | Path) -> tuple[Job, dict[str, Any], dict[str, Any]]:
    job = read_job(directory)
    folder = Path(directory)
    if not (folder / "record.json").exists():
        raise UsageError(f"{folder} holds a run that is not finished: `dnat resume {folder}` goes on with it")
    record = json.loads((folder / "record.json").read_text())
    return job, record, json.loads((folder / "architecture.json").read_text())
