"""An open run directory: locked, with its job, its status and its result. `dnat.rundir` has what stands in it."""

import contextlib
import json
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import __version__
from .checkpoints import Checkpoints
from .checkpoints import CorruptError as CorruptError
from .distributed import world
from .errors import DataError, UsageError
from .files import atomic_write, digest_of, read_sealed, refuse_links, sealed
from .locks import LOCK, THERE_ARE_LOCKS, Lock
from .locks import LockedError as LockedError
from .networks.weights import state_of, write_state
from .rundir import (
    CHOSEN,
    CONFIG,
    CUT,
    ENVIRONMENT,
    LATENCIES,
    METRICS,
    NETWORK,
    RECORD,
    STATUS,
    bound,
    check_name,
    read_job,
)
from .settings import SETTINGS, WHERE, Job, conflicts, shown


class Records(Checkpoints):
    """An open run directory, locked for this process. Use it as a context manager.

    Attributes:
        job: what is done here.
        notices: what a user should know (a damaged checkpoint was left out, the machine is another one).
        is_new: whether the directory held no run before.
    """

    def __init__(
        self, directory: Path, job: Job, notify: Callable[[str], None], anew: bool, accept_changes: bool
    ) -> None:
        super().__init__(directory, "checkpoint", METRICS, notify, anew=anew, accept_changes=accept_changes)
        self.job, self.is_new, self.settings = job, False, counted(job)
        self._lock: Lock | None = None

    @classmethod
    def open(
        cls,
        directory: str | Path,
        job: Job,
        *,
        notify: Callable[[str], None] = lambda text: None,
        anew: bool = False,
        accept_changes: bool = False,
    ) -> "Records":
        """Make a run directory, or open it again for the same job.

        Args:
            directory: of the run.
            job: what is done in it. CPU threads that are this machine's own number do not count: a run goes on
                where there are others, with those that it began with (`Records.job` has them).
            notify: is given each of the `notices`, at once.
            anew: whether a run begins again whose checkpoints are all damaged, or whose result is lost; without,
                that is an error.
            accept_changes: whether files, settings or images that differ from what the run wrote are taken as they
                are, each with a word; without, that is an error.

        Raises:
            ValueError: it belongs to another job (the settings that differ are listed), or to something else.
            DataError: it was finished, and its result is gone; or links stand in it (`refuse_links`).
            LockedError: another process works in it, or it cannot be written.
        """
        directory = Path(directory)
        check_name(directory.resolve().name)
        refuse_links(directory)
        records = cls(directory, job, notify, anew, accept_changes)
        if records.is_run():
            _refuse_other(directory, job)
        elif directory.exists() and any(
            p.name != LOCK and not p.name.endswith(".tmp") for p in directory.iterdir()
        ):
            raise UsageError(f"{directory} is not empty and not a run directory: choose another one")
        try:
            directory.mkdir(parents=True, exist_ok=True)
            records._lock = Lock(directory)
            records._begin()
        except BaseException as error:
            with contextlib.suppress(OSError):
                records.discard()
            if isinstance(error, OSError) and not isinstance(error, LockedError):
                raise LockedError(f"{directory} cannot be written: {error.strerror or error}") from error
            raise
        return records

    def _begin(self) -> None:
        if not THERE_ARE_LOCKS:
            self._notice("this system has no file locks: do not run two processes in one directory")
        for stray in self.directory.glob(".*.tmp"):
            stray.unlink()  # of a process that was killed while it wrote
        self.is_new = self.is_new or not self.is_run()
        if not self.is_run():
            atomic_write(self.path(CONFIG), self.job.to_toml().encode())
        given = self.job
        self.job = _refuse_other(self.directory, given)  # another process may have made it in between
        if self.job.label != given.label and given.label is not None:
            kept = self.job.label or "none"
            self._notice(f"label {given.label!r} is not taken: a run keeps the one that it began with ({kept})")
        self.settings = counted(self.job)
        if self.is_done():
            return
        self._refuse_lost_result()
        if self.job.config.machine.threads != given.config.machine.threads:
            self._notice(
                f"threads = {self.job.config.machine.threads} stays, as the run began with it: "
                f"results depend on it"
            )
        here, there = environment(self.job), self._readable(ENVIRONMENT)
        if not there:
            self.write_json(ENVIRONMENT, here)
        elif other := [k for k in here if k in there and here[k] != there[k]]:
            changes = ", ".join(f"{k} {there[k]} (then) / {here[k]} (now)" for k in other)
            self._notice(f"results may not be equal to the bit, since the run began elsewhere: {changes}")
        self.status("running", attempt=True)

    def _readable(self, name: str) -> dict[str, Any]:
        """The table in a side file; an empty one where it is missing, or damaged and set aside."""
        try:
            return read_sealed(self.path(name))
        except DataError as error:
            self._set_aside(name, str(error))
            return {}

    def _refuse_lost_result(self) -> None:
        """Deal with a run that was finished, and whose record is gone: nobody should train it again unasked."""
        was_done = self.path(NETWORK).exists() or self._readable(STATUS).get("state") == "done"
        if not was_done or any(self._checkpoints()):  # killed just before the record: that goes on
            return
        text = f"{self.directory} was finished, but its {RECORD} is gone"
        if not self._anew:
            raise DataError(
                f"{text}: put it back; with --begin-again (Records.open(..., anew=True)) the run is trained again"
            )
        self._notice(f"{text}: the run begins again at its first epoch")

    def begin_again(self, why: str) -> None:
        """Set a damaged result aside, so that the run can be done again."""
        self._set_aside(RECORD, why)
        self._begin()

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the directory back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def discard(self) -> None:
        """Delete a directory that was made for this run, if it holds no more than its beginning; close it."""
        own = {LOCK, CONFIG, ENVIRONMENT, STATUS, LATENCIES, CHOSEN, CUT}
        try:
            if self.is_new and {p.name for p in self.directory.iterdir()} <= own:
                for name in own:
                    self.path(name).unlink(missing_ok=True)
                self.directory.rmdir()
        finally:
            self.close()

    def status(self, state: str, reason: str = "", *, attempt: bool = False) -> None:
        """Say how the run stands."""
        attempts = self._readable(STATUS).get("attempts", 0)
        attempts = (attempts if isinstance(attempts, int) else 0) + attempt
        told = {"state": state, "reason": reason, "attempts": attempts, "updated": _now()}
        self.write_json(STATUS, sealed(told | {"config": digest_of(self.path(CONFIG))}))

    def write_state(self, name: str, network: nn.Module) -> None:
        """Write a network's state as a safetensors file, atomically."""
        atomic_write(self.path(name), write_state(state_of(network)))

    def finish(self, record: Mapping[str, Any]) -> None:
        """Write the result with the digests of all files that it ends with, which makes the run done.

        Checkpoints are of no more use then.
        """
        self.status("done")
        self.write_json(RECORD, bound(self.directory, record))
        for stage in (self, self.of_search()):
            stage.forget()


def environment(job: Job) -> dict[str, Any]:
    """What decides about bits besides the job: versions, machine, device."""
    import numpy

    cuda = torch.cuda.is_available()
    return {
        "dnat": __version__,
        "code": _code_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if cuda and job.config.machine.device != "cpu" else "cpu",
        "cuda": torch.version.cuda,
        "threads": job.config.machine.threads,
        "processes": world().size,
    }


def _code_version() -> str | None:
    """The commit of the code, with "+" when it was changed since; None outside of a checkout."""
    source = Path(__file__).resolve().parent
    try:
        commands = (["rev-parse", "HEAD"], ["status", "--porcelain", "--", "."])
        commit, changes = (
            subprocess.run(["git", *c], cwd=source, capture_output=True, text=True, check=True, timeout=10).stdout  # noqa: S603, S607
            for c in commands
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.strip()[:12] + ("+" if changes.strip() else "")


def counted(job: Job) -> dict[str, Any]:
    """The settings of a job that bits depend on, and its label; also those that are not given, as None."""
    flat = json.loads(json.dumps(job.flat()))
    names = {*SETTINGS, *Job.model_fields} - {*WHERE, "config", "device"}
    return {name: flat.get(name) for name in sorted(names)}


def holds_other(directory: Path, job: Job) -> dict[str, tuple[Any, Any]]:
    """The settings in which the run of a directory differs from a job, with both values; see `Records.open`."""
    return conflicts(read_job(directory), job)


def _refuse_other(directory: Path, job: Job) -> Job:
    """The job as it is done in a run directory, which is the given one but for CPU threads and the label.

    Raises:
        ValueError: other settings differ.
    """
    differences = holds_other(directory, job)
    if differences:
        listed = ", ".join(f"{k} {shown(a)} (there) / {shown(b)} (now)" for k, (a, b) in differences.items())
        raise UsageError(
            f"{directory} holds a run with other settings: {listed}; choose another directory (--out)"
        )
    there = read_job(directory)
    return job.but(label=there.label, config=job.config.but(threads=there.config.machine.threads))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
