"""What a finished run's network is, takes and can be tested on; needs no data set."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...costs import Latency, latencies
from ...data import Data, Preprocess, Source
from ...discretization import discretize
from ...errors import DataError, UsageError, is_of_no_file
from ...networks import Genotype
from ...networks.cells import CellNetwork, regrown
from ...networks.weights import read_state
from ...results import Commitment
from ...rundir import ARCHITECTURE, NETWORK, RECORD, RunFiles, read_job
from ...session import choose_device, reproducible, weights_digest
from ...settings import SEARCHING, Job
from ...settings.job import MOST_PIXELS
from ...training import laid_out
from ..baselines import resized, works_on_genotype
from .loading import build_network, load_data, narrower, network_for

Accept = Callable[[str], None] | None
"""Is told of each file or data that differs from the run's and is taken all the same; None refuses them."""


def restore(directory: str | Path, accept: Accept = None) -> tuple[nn.Module, Job, Any]:
    """The trained network of a finished run, its job, and a batch of the shape that it takes; needs no data set.

    Raises:
        ValueError: no run directory, or a run that is not finished.
        DataError: a file that is damaged, or not what the run wrote.
    """
    job, files = read_job(directory), RunFiles(directory, accept=accept)
    record, architecture = _record(directory, accept), files.architecture()
    if ":" in job.data:  # of the user's own: their function tells what the network takes
        data = load_data(job)
        example = data.example(2)
    elif "image_shape" not in record:
        raise UsageError(f"{directory} was written by an older dnat, which did not note what its network takes")
    else:
        shape = record["image_shape"]
        example = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    commitment = _commitment_of(architecture, files.path(ARCHITECTURE))
    widths = commitment.widths if commitment else {}
    # Its own weights follow.
    options = widths if job.method == "control-narrow" else {}
    if ":" in job.data:
        network = network_for(narrower(job, options), data)
    else:
        network = build_network(narrower(job, options), len(record["classes"]), shape)
    if job.method in SEARCHING and works_on_genotype(network, job.config.search):
        after = Genotype.from_json(json.dumps(architecture["genotypes"][1]))
        assert isinstance(network, CellNetwork)
        network = regrown(network, after, job.config.seed)
    elif job.method == "control-prune":
        network = resized(network, widths)
    elif commitment:
        network = discretize(network, commitment.choices, example)
    _load(network, files, record["results"].get("weights_sha256"))
    return network.eval(), job, example


def _load(network: nn.Module, files: RunFiles, digest: str | None) -> None:
    """Put the run's weights into its network; what else than those are there is refused."""
    path = files.path(NETWORK)
    files.check(NETWORK)
    try:
        network.load_state_dict(read_state(path))
    except Exception as error:  # whatever the library, or a network of the user's, makes of damaged bytes
        if is_of_no_file(error):
            raise
        raise DataError(f"{path} cannot be read as this network's weights: {error}") from error
    if digest is not None and weights_digest(network) != digest:
        files.differs(f"{path} does not hold the weights of the run: their digest differs from record.json's")


def times(directory: str | Path) -> tuple[Latency, Latency]:
    """How long a finished run's network takes for a batch of its `latency_batch`, before and after, measured now.

    Raises:
        ValueError: no run directory, or a run that is not finished.
    """
    after, job, _ = restore(directory)
    machine, batch = job.config.machine, job.config.limit.latency_batch
    device = choose_device(machine.device)
    if ":" in job.data:
        data = load_data(job)
        before, example = network_for(job, data), data.to(device).example(batch)
    else:
        record = _record(directory, None)
        shape = tuple(record["image_shape"])
        before = build_network(job.but(weights=None), len(record["classes"]), shape)
        example = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    with reproducible(job.config):  # with as many threads as it was trained with
        networks = [laid_out(network.to(device).eval(), machine, device) for network in (before, after)]
        first, last = latencies(networks, example, least_seconds=0.5)
    return first, last


def preprocess_of(directory: str | Path, accept: Accept = None) -> Preprocess | None:
    """How images are made for a finished run's network; None where an older dnat did not note it.

    Raises:
        ValueError: no run directory, or a run that is not finished.
    """
    record = _record(directory, accept)
    return Preprocess.from_table(record["preprocess"]) if "preprocess" in record else None


def check_data(directory: str | Path, data: Source, accept: Accept = None) -> None:
    """Refuse data of a finished run that are not those that it was tested on.

    Of an older dnat's run that cannot be told.

    Raises:
        DataError: they differ, and are not to be taken as they are.
        ValueError: no run directory, or a run that is not finished.
    """
    record, files = _record(directory, accept), RunFiles(directory, accept=accept)
    held = data.content().partition(" ")[0]
    if (
        files.is_bound()
        and held == record.get("data_held", held)
        and data.fingerprint() != record["data_fingerprint"]
    ):
        files.differs(
            f"{data.name} is not the data of the run: examples, labels or names differ; other data are named with "
            "--data-root"
        )


def other_images(directory: str | Path, data: Data, accept: Accept = None) -> tuple[Data, list[str]]:
    """Images with labels as a finished run's network numbers its classes, and what is worth knowing of them.

    Args:
        directory: of the run.
        data: of the same classes, or some of them, by name.
        accept: see `RunFiles`.

    Raises:
        DataError: classes that the network does not know.
        ValueError: no run directory, or a run that is not finished.
    """
    record = _record(directory, accept)
    numbered, notes = data.numbered(record["classes"]), list(data.notes)
    if len(data.classes) < len(record["classes"]):
        notes.append(f"these images are of {len(data.classes)} of the network's {len(record['classes'])} classes")
    if numbered.fingerprint() != record["data_fingerprint"]:
        notes.append(
            "these are not the images of the run, or they are held in another way (their fingerprint differs)"
        )
    return numbered, notes


def _record(directory: str | Path, accept: Accept) -> dict[str, Any]:
    read_job(directory)  # what is no run at all is told of first
    record = RunFiles(directory, accept=accept).record()
    for name, kind in (("job", dict), ("results", dict), ("data_fingerprint", str)):
        if not isinstance(record.get(name), kind):
            raise DataError(f"{RunFiles(directory).path(RECORD)} is no record of a run: {name} is not there")
    if "image_shape" in record and not (_is_shape(record["image_shape"]) and _is_names(record.get("classes"))):
        raise DataError(f"{RunFiles(directory).path(RECORD)} is no record of a run: its images cannot be")
    return record


def _is_shape(value: Any) -> bool:
    whole = isinstance(value, list) and len(value) == 3 and all(type(n) is int and n > 0 for n in value)
    return whole and max(value) <= MOST_PIXELS and math.prod(value) <= 4 * MOST_PIXELS**2


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(name, str) for name in value)


def _commitment_of(architecture: dict[str, Any], path: Path) -> Commitment | None:
    """The choices in architecture.json."""
    try:
        return Commitment.from_table(architecture["commitment"]) if architecture["commitment"] else None
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # a table that somebody made by hand
        raise DataError(f"{path} holds no choices of a run: {type(error).__name__} {error}") from error
