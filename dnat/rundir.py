"""A run's directory: the names of its files, and who reads them. Every file is whole or not there. Needs no torch.

.lock                      held by the process that works here
config.toml                the job, resolved
environment.json           versions and machine, for whoever wants to compare bits
status.json                running, interrupted, failed or done
metrics.jsonl              one row an epoch
checkpoint-000000123.ckpt  the two newest; checksummed
search.jsonl, search-000000123.ckpt, search.json   of a search before the training: rows, moments, result
control.json, control.safetensors                  of a control before the training: choices, smaller network
latency.json               time of the network before and after, measured when no other trial of its sweep ran
latencies.json             measured seconds of each operation, where a latency budget counts
sensitivity.json           what each choice does to the answers, where they decide
architecture.json, network.safetensors, pictures
predictions.safetensors    what the network as it was given, and the result, take each test image for
wandb.json, mlflow.json    the run's id there, and what Weights & Biases has of it
metrics.csv, events        of other trackers: the rows as a table, and TensorBoard's files
record.json                written last: its presence means that the run is done
"""

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

from .errors import UsageError
from .naming import unknown
from .settings import Job, read_toml

CONFIG = "config.toml"
ENVIRONMENT = "environment.json"
STATUS = "status.json"
METRICS = "metrics.jsonl"
SEARCH_ROWS = "search.jsonl"
SEARCH_RESULT = "search.json"
CHOSEN = "control.json"
CUT = "control.safetensors"
LATENCY = "latency.json"
LATENCIES = "latencies.json"
SENSITIVITY = "sensitivity.json"
ARCHITECTURE = "architecture.json"
NETWORK = "network.safetensors"
PREDICTIONS = "predictions.safetensors"
WANDB = "wandb.json"
MLFLOW = "mlflow.json"
TABLE = "metrics.csv"
EVENTS = "events"
RECORD = "record.json"


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


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, atomically.

    Raises:
        ValueError: it holds NaN or infinity, which JSON cannot hold.
    """
    atomic_write(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_table(path: Path) -> dict[str, Any]:
    """The table in a JSON file; an empty one where the file is missing.

    Raises:
        ValueError: it cannot be read, or holds no table.
    """
    if not path.exists():
        return {}
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path.name} cannot be read: {error}") from error
    if not isinstance(table, dict):
        raise UsageError(f"{path.name} holds no table")
    return table


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


def runs_in(folder: Path) -> list[Path]:
    """The run directories in a folder, by name."""
    return sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))


def read_job(directory: str | Path) -> Job:
    """The job of a run directory.

    Raises:
        ValueError: it is no run directory; names like it are suggested.
    """
    files = RunFiles(directory)
    if not files.is_run():
        folder = files.directory.parent
        near = [run.name for run in runs_in(folder)]
        if near and not files.directory.exists():
            raise unknown(f"run in {folder}", files.directory.name, near)
        raise UsageError(f"{directory} is not a run directory: it has no {CONFIG}")
    return Job.from_flat(read_toml(files.path(CONFIG)))


class RunFiles:
    """What a run directory holds, whether a process works in it or not.

    A file that is missing reads as an empty one, but for the result; a damaged one is a ValueError that names it.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)

    def path(self, name: str = "") -> Path:
        """The path of a file in the directory, or of the directory."""
        return self.directory / name

    def is_run(self) -> bool:
        """Whether this is a run directory."""
        return self.path(CONFIG).exists()

    def is_done(self) -> bool:
        """Whether the run has ended with a result."""
        return self.path(RECORD).exists()

    def record(self) -> dict[str, Any]:
        """The result of a run that is done, with the times that were measured when nothing else ran.

        Raises:
            ValueError: it is not.
        """
        if not self.is_done():
            place = self.directory
            raise UsageError(f"{place} holds a run that is not finished: `dnat resume {place}` goes on with it")
        record = read_table(self.path(RECORD))
        alone = self.read_json(LATENCY)
        return record if alone is None or "latency" not in record else record | {"latency": alone}

    def architecture(self) -> dict[str, Any]:
        """The choices (`commitment`), the rows of the picture and the genotypes of a run that is done."""
        return read_table(self.path(ARCHITECTURE))

    def why_unfinished(self) -> tuple[str, str]:
        """The state of a run without a result ("pending" before it said one, or "damaged"), and the reason."""
        try:
            status = read_table(self.path(STATUS))
        except ValueError as error:
            return "damaged", str(error)
        return str(status.get("state", "pending")), str(status.get("reason", ""))

    def rows(self, name: str = METRICS) -> list[dict[str, Any]]:
        """The rows of a file with one in each line."""
        path = self.path(name)
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def text(self, name: str) -> str:
        """The text of a file, whatever bytes it holds."""
        path = self.path(name)
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def read_json(self, name: str) -> Any:
        """The table in a JSON file; None where it is missing."""
        return read_table(self.path(name)) if self.path(name).exists() else None
