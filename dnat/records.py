"""A run's directory: configuration, metrics, checkpoints, result. Every file is whole or not there.

    .lock                      held by the process that works here
    config.toml                the job, resolved
    environment.json           versions and machine, for whoever wants to compare bits
    status.json                running, interrupted, failed or done
    metrics.jsonl              one row an epoch
    checkpoint-000000123.ckpt  the two newest; checksummed
    search.jsonl, search-000000123.ckpt, search.json   of a search before the training: rows, moments, result
    sensitivity.json           what each choice does to the answers, where they decide
    architecture.json, network.safetensors, pictures
    record.json                written last: its presence means that the run is done

A checkpoint is a container: magic, length of the header (8 bytes, little endian), header (JSON with format, step,
the metrics' length in bytes, length and SHA-256 of the payload), SHA-256 of all of that, payload (`torch.save` of
tensors, numbers, text, lists and dicts, read with `weights_only=True`). Neither torch nor safetensors notices a
flipped bit by itself.
"""

import contextlib
import copy
import hashlib
import io
import json
import os
import platform
import re
import struct
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import __version__
from .settings import Job, conflicts, read_toml, shown
from .distributed import world
from .errors import DnatError, UsageError
from .locks import THERE_ARE_LOCKS, Lock
from .locks import LockedError as LockedError
from .naming import unknown
from .networks.weights import state_of, write_state

MAGIC = b"DNATCK01"
FORMAT = 1
KEEP = 2
"""How many checkpoints are kept: the newest, and one to fall back on."""

_CHECKPOINT = re.compile(r"([a-z]+)-(\d{9,})\.ckpt$")
_HEADER_LIMIT = 1 << 20


class CorruptError(DnatError, ValueError):
    """A checkpoint that is not what was written."""

    exit_code = 65


def atomic_write(path: str | Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, whenever the process or the machine dies.

    A temporary file in the same directory is written, flushed to the disk and moved into place, and the move is
    flushed as well. On any error the temporary file is removed and the error raised.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows cannot, and need not
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def pack(state: Mapping[str, Any], **header: Any) -> bytes:
    """A state as the bytes of a container; `header` is JSON that can be read without the state."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    payload = buffer.getvalue()
    header |= {"format": FORMAT, "length": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
    text = json.dumps(header, sort_keys=True).encode()
    front = MAGIC + struct.pack("<Q", len(text)) + text
    return front + hashlib.sha256(front).digest() + payload


def unpack(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The header and the state in a container.

    Raises:
        CorruptError: anything in it is not as it was written.
        ValueError: it was written by a newer format.
    """
    header, payload = _verified(Path(path))
    try:
        members = zipfile.ZipFile(io.BytesIO(payload)).infolist()
    except zipfile.BadZipFile as error:
        raise CorruptError(f"{path}: holds something else than tensors, numbers and text: {error}") from error
    # torch stores; a compressed member could unpack to any size.
    if any(info.compress_type != zipfile.ZIP_STORED for info in members):
        raise CorruptError(f"{path}: holds compressed data, which no checkpoint of dnat does")
    try:
        return header, torch.load(io.BytesIO(payload), weights_only=True, map_location="cpu")
    except Exception as error:  # whatever a hostile pickle raises
        raise CorruptError(f"{path}: holds something else than tensors, numbers and text: {error}") from error


def _verified(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    start = len(MAGIC) + 8
    if content[: len(MAGIC)] != MAGIC or len(content) < start:
        raise CorruptError(f"{path}: not a checkpoint of dnat")
    (size,) = struct.unpack("<Q", content[len(MAGIC) : start])
    end = start + size
    if size > _HEADER_LIMIT or len(content) < end + 32:
        raise CorruptError(f"{path}: its header is cut off or damaged")
    if hashlib.sha256(content[:end]).digest() != content[end : end + 32]:
        raise CorruptError(f"{path}: its header is damaged")
    header = json.loads(content[start:end])
    if header["format"] > FORMAT:
        raise UsageError(f"{path} was written by format {header['format']}, this is {FORMAT}: update dnat")
    payload = content[end + 32 :]
    if len(payload) != header["length"]:
        raise CorruptError(f"{path}: cut off, {len(payload)} of {header['length']} bytes")
    if hashlib.sha256(payload).hexdigest() != header["sha256"]:
        raise CorruptError(f"{path}: damaged, its checksum does not match")
    return header, payload


def check_name(name: str) -> str:
    """The name of a run directory, if it is one that every system can hold.

    Raises:
        ValueError: it is not.
    """
    reserved = {"con", "prn", "aux", "nul", *(f"{d}{i}" for d in ("com", "lpt") for i in range(10))}
    fine = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,99}", name) and ".." not in name
    if not fine or name.endswith(".") or name.lower().split(".")[0] in reserved:
        raise UsageError(
            f"{name!r} cannot name a run: take up to 100 letters, digits and . _ = + -, beginning with one of the "
            "first two"
        )
    return name


def read_job(directory: str | Path) -> Job:
    """The job of a run directory.

    Raises:
        ValueError: it is no run directory; names like it are suggested.
    """
    directory = Path(directory)
    if not (directory / "config.toml").exists():
        near = [p.parent.name for p in directory.parent.glob("*/config.toml")]
        if near and not directory.exists():
            raise unknown(f"run in {directory.parent}", directory.name, near)
        raise UsageError(f"{directory} is not a run directory: it has no config.toml")
    return Job.from_flat(read_toml(directory / "config.toml"))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file with one in each line; none where it is missing."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Records:
    """An open run directory, locked for this process. Use it as a context manager.

    Attributes:
        job: what is done here.
        notices: what a user should know (a damaged checkpoint was left out, the machine is another one).
        is_new: whether the directory held no run before.
    """

    def __init__(self, directory: Path, job: Job) -> None:
        self.directory, self.job = directory, job
        self.stage = "checkpoint"
        self.notices: list[str] = []
        self.is_new = False
        self._notify: Callable[[str], None] = lambda text: None
        self._anew = False
        self._lock: Lock | None = None

    @classmethod
    def open(
        cls,
        directory: str | Path,
        job: Job,
        *,
        notify: Callable[[str], None] = lambda text: None,
        anew: bool = False,
    ) -> "Records":
        """Make a run directory, or open it again for the same job.

        Args:
            directory: of the run.
            job: what is done in it. CPU threads that are this machine's own number do not count: a run goes on
                where there are others, with those that it began with (`Records.job` has them).
            notify: is given each of the `notices`, at once.
            anew: whether a run begins again whose checkpoints are all damaged; without, that is an error.

        Raises:
            ValueError: it belongs to another job (the settings that differ are listed), or to something else.
            LockedError: another process works in it, or it cannot be written.
        """
        directory = Path(directory)
        check_name(directory.resolve().name)
        if (directory / "config.toml").exists():
            _refuse_other(directory, job)
        elif directory.exists() and any(
            p.name != ".lock" and not p.name.endswith(".tmp") for p in directory.iterdir()
        ):
            raise UsageError(f"{directory} is not empty and not a run directory: choose another one")
        records = cls(directory, job)
        records._notify, records._anew = notify, anew
        try:
            directory.mkdir(parents=True, exist_ok=True)
            records._lock = Lock(directory)
            records._begin()
        except BaseException as error:
            records.close()
            if isinstance(error, OSError) and not isinstance(error, LockedError):
                raise LockedError(f"{directory} cannot be written: {error.strerror or error}") from error
            raise
        return records

    def _notice(self, text: str) -> None:
        self.notices.append(text)
        self._notify(text)

    def _begin(self) -> None:
        if not THERE_ARE_LOCKS:
            self._notice("this system has no file locks: do not run two processes in one directory")
        for stray in self.directory.glob(".*.tmp"):
            stray.unlink()  # of a process that was killed while it wrote
        self.is_new = not (self.directory / "config.toml").exists()
        if self.is_new:
            atomic_write(self.directory / "config.toml", self.job.to_toml().encode())
        given = self.job
        self.job = _refuse_other(self.directory, given)  # another process may have made it in between
        if self.is_done():
            return
        if self.job.config.threads != given.config.threads:
            self._notice(
                f"threads = {self.job.config.threads} stays, as the run began with it: results depend on it"
            )
        here = environment(self.job)
        if (self.directory / "environment.json").exists():
            there = self.read_json("environment.json")
            other = [k for k in here if k in there and here[k] != there[k]]
            if other:
                changes = ", ".join(f"{k} {there.get(k)} (then) / {here[k]} (now)" for k in other)
                self._notice(f"results may not be equal to the bit, since the run began elsewhere: {changes}")
        else:
            self.write_json("environment.json", here)
        self.status("running", attempt=True)

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
        own = {".lock", "config.toml", "environment.json", "status.json", "latencies.json"}
        own |= {"control.json", "control.safetensors"}
        if self.is_new and {p.name for p in self.directory.iterdir()} <= own:
            for name in own:
                (self.directory / name).unlink(missing_ok=True)
            self.directory.rmdir()
        self.close()

    def path(self, name: str = "") -> Path:
        """The path of a file in the directory, or of the directory."""
        return self.directory / name

    def of_search(self) -> "Records":
        """The same directory for what comes before the training, which has checkpoints and rows of its own."""
        twin = copy.copy(self)
        twin.stage = "search"
        return twin

    @property
    def _metrics(self) -> Path:
        return self.directory / ("metrics.jsonl" if self.stage == "checkpoint" else f"{self.stage}.jsonl")

    def is_done(self) -> bool:
        """Whether the run has ended with a result."""
        return (self.directory / "record.json").exists()

    def record(self) -> dict[str, Any]:
        """The result of a run that is done."""
        return self.read_json("record.json")

    def status(self, state: str, reason: str = "", *, attempt: bool = False) -> None:
        """Say how the run stands."""
        known = self.read_json("status.json") if (self.directory / "status.json").exists() else {}
        attempts = known.get("attempts", 0) + attempt
        self.write_json("status.json", {"state": state, "reason": reason, "attempts": attempts, "updated": _now()})

    def newest(self) -> tuple[int, dict[str, Any]] | None:
        """Step and state of the newest checkpoint that is whole; metrics are cut back to that moment.

        Damaged checkpoints are renamed to *.corrupt and told of in `notices`. Where there never was any, metrics
        are emptied: the run begins.

        Raises:
            CorruptError: all are damaged, and the run was not opened to begin again.
        """
        damaged = []
        for step, path in self._checkpoints():
            try:
                header, state = unpack(path)
            except (CorruptError, OSError) as error:
                path.rename(path.with_name(path.name + ".corrupt"))
                damaged.append(f"{path}: {error.strerror}" if isinstance(error, OSError) else str(error))
                continue
            for text in damaged:
                self._notice(f"{text}; an older checkpoint is used, of step {step}")
            self._notify(f"goes on after step {step}, from {path.name}")
            self._cut_metrics(header["metrics_bytes"])
            return step, state
        self._refuse_to_begin_again()
        self._cut_metrics(0)
        return None

    def _refuse_to_begin_again(self) -> None:
        """Deal with a run of which damaged checkpoints are all that is left."""
        damaged = list(self.directory.glob(f"{self.stage}-*.ckpt.corrupt"))
        if not damaged:
            return
        if not self._anew:
            listed = ", ".join(sorted(p.name for p in damaged))
            raise CorruptError(
                f"{self.directory}: no checkpoint is whole ({listed}), so that the run cannot go on; with "
                "--begin-again (Records.open(..., anew=True)) it begins anew, and its metrics are lost"
            )
        for path in damaged:
            path.unlink()
        self._notice("no checkpoint is whole: the run begins again at its first epoch")

    def _checkpoints(self) -> Iterator[tuple[int, Path]]:
        """Checkpoints, the highest step first; the clock has no say in it."""
        named = ((_CHECKPOINT.match(p.name), p) for p in self.directory.iterdir())
        yield from sorted(((int(m[2]), p) for m, p in named if m and m[1] == self.stage), reverse=True)

    def _cut_metrics(self, size: int) -> None:
        path = self._metrics
        if path.exists() and path.stat().st_size > size:
            os.truncate(path, size)

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write a checkpoint; older ones but one are deleted once it is safe on the disk."""
        size = self._metrics.stat().st_size if self._metrics.exists() else 0
        content = pack(state, step=step, metrics_bytes=size)
        atomic_write(self.directory / f"{self.stage}-{step:09d}.ckpt", content)
        for _, path in list(self._checkpoints())[KEEP:]:
            path.unlink()

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row to metrics.jsonl, or to search.jsonl.

        Raises:
            ValueError: it holds NaN or infinity, which JSON cannot hold.
        """
        line = json.dumps(row, allow_nan=False) + "\n"
        with open(self._metrics, "a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, or of search.jsonl."""
        return read_rows(self._metrics)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file, atomically."""
        text = json.dumps(value, indent=2, allow_nan=False) + "\n"
        atomic_write(self.directory / name, text.encode())

    def read_json(self, name: str) -> Any:
        """Read a JSON file; None where it is missing."""
        if not (self.directory / name).exists():
            return None
        return json.loads((self.directory / name).read_text(encoding="utf-8"))

    def write_state(self, name: str, network: nn.Module) -> None:
        """Write a network's state as a safetensors file, atomically."""
        atomic_write(self.directory / name, write_state(state_of(network)))

    def finish(self, record: Mapping[str, Any]) -> None:
        """Write the result, which makes the run done; checkpoints are of no more use then."""
        self.status("done")
        self.write_json("record.json", record)
        for records in (self, self.of_search()):
            records.forget()

    def forget(self) -> None:
        """Delete the checkpoints, once they are of no more use."""
        for _, path in list(self._checkpoints()):
            path.unlink()
        for path in self.directory.glob(f"{self.stage}-*.ckpt.corrupt"):
            path.unlink()


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
        "device": torch.cuda.get_device_name() if cuda and job.config.device != "cpu" else "cpu",
        "cuda": torch.version.cuda,
        "threads": job.config.threads,
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


def holds_other(directory: Path, job: Job) -> dict[str, tuple[Any, Any]]:
    """The settings in which the run of a directory differs from a job, with both values; see `Records.open`."""
    return conflicts(read_job(directory), job)


def _refuse_other(directory: Path, job: Job) -> Job:
    """The job as it is done in a run directory, which is the given one but for CPU threads.

    Raises:
        ValueError: other settings differ.
    """
    differences = holds_other(directory, job)
    if differences:
        listed = ", ".join(f"{k} {shown(a)} (there) / {shown(b)} (now)" for k, (a, b) in differences.items())
        raise UsageError(
            f"{directory} holds a run with other settings: {listed}; choose another directory (--out)"
        )
    return replace(job, config=replace(job.config, threads=read_job(directory).config.threads))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
