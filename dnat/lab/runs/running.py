"""A job and a directory -> a run and its result, resumable."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from ...costs import memory
from ...data import Data, Source
from ...distributed import from_first, joined, world
from ...errors import DataError, UsageError, of_machine, told_of_machine
from ...files import atomic_write
from ...records import Records, holds_other
from ...results import Transformation
from ...rundir import ARCHITECTURE, NETWORK, PREDICTIONS, RunFiles
from ...session import images_of
from ...settings import SEARCHING, WHERE, Job
from ...tasks import task_of
from ...tracking import Tracker
from ...training import Progress
from ..methods import METHODS, check_method
from .loading import family, load_data, network_for
from .pictures import architecture_of, draw
from .tested import write_predictions


def run(
    job: Job,
    directory: str | Path,
    *,
    tracker: Tracker | None = None,
    stop: Callable[[Progress], bool] | None = None,
    download: bool = False,
    anew: bool = False,
    accept_changes: bool = False,
    notify: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Carry a job out in a directory, or go on with it; a run that is done is not done again.

    Args:
        job: what to do.
        directory: the run directory; made when it is missing.
        tracker: is told of progress.
        stop: asked after each batch whether to save and stop (`Interrupted`).
        download: fetch the data set if it is missing.
        anew: whether a run begins again whose checkpoints are all damaged, or whose result is damaged or lost.
        accept_changes: whether files and data that differ from those of the run are taken, each with a word.
        notify: is given what the user should read (a damaged checkpoint, another machine).

    Returns:
        The record, as it stands in record.json.

    Raises:
        ValueError, TypeError: a job that cannot be done; nothing was written then.
        DataError, NonFiniteError, LockedError, Interrupted: see there.
        MachineError: the disk or the memory is full, or the like; with exit code 75 the run can go on afterwards.
    """
    goes_on = RunFiles(directory).is_run  # asked at the end: a run that did not begin leaves nothing
    with told_of_machine(goes_on), joined(job.config.machine.device) as here:
        if here.size > 1 and job.method in SEARCHING:
            raise UsageError(f"method {job.method!r} trains in one process: start it without torchrun")
        return _run(job, Path(directory), tracker, stop, download, anew, accept_changes, notify)


def _run(
    job: Job,
    directory: Path,
    tracker: Tracker | None,
    stop: Callable[[Progress], bool] | None,
    download: bool,
    anew: bool,
    accept_changes: bool,
    notify: Callable[[str], None],
) -> dict[str, Any]:
    opened = functools.partial(
        Records.open, directory, job, notify=notify, anew=anew, accept_changes=accept_changes
    )
    done = from_first(lambda: _done(directory, job, opened, anew))
    if done is not None:
        return done
    if download and world().size > 1:  # by one process, before the others look
        from_first(lambda: load_data(job, download=True) and None)
    if from_first(lambda: RunFiles(directory).is_run()) and (text := RunFiles(directory).changed_config()):
        notify(text)
    # Whatever can be known to fail does so here, before a directory is made that a corrected command would
    # find occupied by other settings.
    network, data, of_method = prepared(job, download=download, notify=notify)
    trained: list[Progress] = []

    def asked(progress: Progress) -> bool:
        """`stop`, which is asked after each batch; notes that one was trained."""
        trained[:] = [progress]
        return bool(stop and stop(progress))

    with _opened(opened) as records:
        done = from_first(lambda: _result(records, anew) if records else None)
        if done is not None:  # by another process, in between
            return done
        job = from_first(lambda: records.job if records else job)
        started = time.time()
        try:
            method = functools.partial(METHODS[job.method], **of_method)
            result = method(network, data, job.config, records=records, tracker=tracker, stop=asked)
            return from_first(lambda: _finish(records, job, network, data, result, started) if records else {})
        except BaseException as error:
            if records:
                _ended(records, error, begun=bool(trained))
            raise


def _ended(records: Records, error: BaseException, *, begun: bool) -> None:
    """Let the status say how a run ended, where it can still be written; one that did not begin leaves nothing."""
    machine = of_machine(error)
    stopped = machine or isinstance(error, KeyboardInterrupt) or getattr(error, "exit_code", 1) == 75
    told = str(machine) if machine else f"{type(error).__name__}: {error}"
    with contextlib.suppress(OSError, MemoryError, DataError):
        records.status("interrupted" if stopped else "failed", told)
    if not begun:
        with contextlib.suppress(OSError):
            records.discard()


def prepared(
    job: Job, *, download: bool = False, notify: Callable[[str], None] = lambda text: None
) -> tuple[nn.Module, Source, dict[str, Any]]:
    """The network and the data of a job, checked as far as that is possible without training.

    Returns:
        Network, data, and what else the job's method takes.

    Raises:
        ValueError, TypeError, DataError: a job that cannot be done.
    """
    data = load_data(job, download=download, notify=notify)
    network = network_for(
        job, data, **({"download": download, "notify": notify} if isinstance(data, Data) else {})
    )
    of_method: dict[str, Any] = {}
    if job.method == "control-narrow":
        images = images_of(data)
        of_method["family"] = family(job, images.num_classes, (images.channels, *images.image_size))
    checked = check_method(job.method, network, data, job.config, task=job.task, **of_method)
    of_method |= {"checked": checked} if checked else {}
    if job.method not in SEARCHING:
        of_method["task"] = job.task
    return network, data, of_method


def _done(directory: Path, job: Job, opened: Callable[[], Records], anew: bool) -> dict[str, Any] | None:
    """The record of a run that has ended; None of another one, or where the directory has another job's.

    That is refused when all else that may be wrong with the job was told.
    """
    files = RunFiles(directory)
    if not files.is_done() or holds_other(directory, job) or (anew and _broken(files)):
        return None
    with opened() as records:
        return _result(records, False)


def _broken(files: RunFiles) -> str:
    """Why the result of a run that is done cannot be taken as it is; empty where it can."""
    try:
        files.record()
        files.check_all()
    except DataError as error:
        return str(error)
    return ""


def _result(records: Records, anew: bool) -> dict[str, Any] | None:
    """The record of a run that has ended, if all its files are those that it wrote; None of one that has not.

    Raises:
        DataError: they are not, and the run is not to begin again.
    """
    if not records.is_done():
        return None
    if anew and (why := _broken(RunFiles(records.directory))):
        records.begin_again(why)
        return None
    record = records.record()
    if not records.is_bound():
        records.notify("the run is of an older dnat, which kept no digests: what was changed since is not noticed")
    records.check_all()
    return record


@contextmanager
def _opened(opened: Callable[[], Records]) -> Iterator[Records | None]:
    """The run directory, open in the first process; None in others that train with it."""
    with ExitStack() as stack:
        found: list[Records] = []
        from_first(lambda: found.append(stack.enter_context(opened())))
        yield found[0] if found else None


def _finish(
    records: Records, job: Job, network: nn.Module, data: Source, result: Transformation, started: float
) -> dict[str, Any]:
    architecture = architecture_of(network, data, job, result)
    records.write_json(ARCHITECTURE, architecture)
    records.write_state(NETWORK, result.network)
    predictions = write_predictions(network, result.network, data, job.config, task_of(job.task))
    if predictions is not None:
        atomic_write(records.path(PREDICTIONS), predictions)
    draw(records.path(), architecture, job, result.cost_before, result.cost_after)
    record = {
        **result.record(),
        "job": job.flat() | dict.fromkeys(WHERE),
        "memory": {
            when: asdict(memory(part, data.example(1)))
            for when, part in (("before", network), ("after", result.network))
        },
        "data_fingerprint": data.fingerprint(),
        "data_held": data.content().partition(" ")[0],
        **(_of_images(data) if isinstance(data, Data) else {}),
        **({"accepted": records.accepted} if records.accepted else {}),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    records.finish(record)
    return record


def _of_images(data: Data) -> dict[str, Any]:
    """What a record tells of images, so that others can be shown to the network."""
    return {
        "classes": list(data.classes),
        "preprocess": data.preprocess.table(),
        "skipped": list(data.skipped),
        "image_shape": list(data.example(1).shape[1:]),
    }
