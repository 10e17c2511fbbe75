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
                           (after the record; it names the record that it belongs to)
latencies.json             measured seconds of each operation, where a latency budget counts
sensitivity.json           what each choice does to the answers, where they decide
architecture.json, network.safetensors, pictures
predictions.safetensors    what the network as it was given, and the result, take each test image for
wandb.json, mlflow.json    the run's id there, and what Weights & Biases has of it
metrics.csv, events        of other trackers: the rows as a table, and TensorBoard's files
record.json                written last: its presence means that the run is done. It holds size and SHA-256 of
                           the other files that the run ends with (`BOUND`), and a seal of its own

NAME.corrupt               a file that was damaged, set aside
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import DataError, DnatError, UsageError
from .files import (
    MOST_LOG,
    SEAL,
    digest_of,
    parse_json,
    read_bytes,
    read_sealed,
    read_table,
    refuse_links,
    seal_of,
    sealed,
    write_json,
)
from .naming import unknown
from .settings import WHERE, Job, read_toml, shown

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

RESULT = (CONFIG, ARCHITECTURE, NETWORK, PREDICTIONS)
"""What a result is made of beside the record: refused where it is not what the run wrote."""
BOUND = (*RESULT, ENVIRONMENT, METRICS, SEARCH_ROWS, SEARCH_RESULT, CHOSEN, CUT, LATENCIES, SENSITIVITY)
"""The files whose digests a record holds: not pictures and trackers' files, which may be written again."""

_FILES = "files"
"""The entry of a record with size and digest of each bound file."""


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
        ValueError: it is no run directory; names like it are suggested. Or links stand in it, see `refuse_links`.
    """
    files = RunFiles(directory)
    if not files.is_run():
        folder = files.directory.parent
        near = [run.name for run in runs_in(folder)]
        if near and not files.directory.exists():
            raise unknown(f"run in {folder}", files.directory.name, near)
        raise UsageError(f"{directory} is not a run directory: it has no {CONFIG}")
    refuse_links(directory)
    table = read_toml(files.path(CONFIG))
    try:
        return Job.from_flat(table)
    except DnatError as error:
        raise type(error)(f"{files.path(CONFIG)}: {error}") from error


class Readers:
    """The files of a directory, read one by one.

    A file that is missing reads as an empty one; a damaged one is a DataError that names it.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)

    def path(self, name: str = "") -> Path:
        """The path of a file in the directory, or of the directory."""
        return self.directory / name

    def rows(self, name: str = METRICS) -> list[dict[str, Any]]:
        """The rows of a file with one in each line."""
        lines = self.text(name).splitlines()
        try:
            rows = [parse_json(line) for line in lines]
        except ValueError as error:
            raise DataError(f"{self.path(name)} cannot be read: {error}") from error
        if not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{self.path(name)} cannot be read: a row is no table")
        return rows

    def text(self, name: str) -> str:
        """The text of a file, whatever bytes it holds; "" of what is missing, or no file."""
        path = self.path(name)
        return read_bytes(path, MOST_LOG).decode("utf-8", "replace") if path.is_file() else ""

    def read_json(self, name: str) -> Any:
        """The table in a JSON file; None where it is missing."""
        return read_table(self.path(name)) if os.path.lexists(self.path(name)) else None


class RunFiles(Readers):
    """What a run directory holds, whether a process works in it or not.

    A file of a finished run that is not what the run wrote is a DataError that names it, as a damaged one is; runs
    of an older dnat kept no digests, and of them nothing can be told.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        accept: Callable[[str], None] | None = None,
        notify: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Nothing is read yet.

        Args:
            directory: of the run.
            accept: is told what differs from what the run wrote, which is taken as it is then; without, that is an
                error.
            notify: is told what does not matter to the result.
        """
        super().__init__(directory)
        self.accept, self.notify = accept, notify

    def is_run(self) -> bool:
        """Whether this is a run directory."""
        return self.path(CONFIG).exists()

    def is_done(self) -> bool:
        """Whether the run has ended with a result."""
        return os.path.lexists(self.path(RECORD))

    def is_bound(self) -> bool:
        """Whether the record of a finished run tells the digests of its files; one of an older dnat does not."""
        return _FILES in self._sealed_record()

    def record(self) -> dict[str, Any]:
        """The result of a run that is done, with the times that were measured when nothing else ran.

        Raises:
            UsageError: it is not.
            DataError: the record is damaged, or was made with other settings than config.toml has.
        """
        if not self.is_done():
            place = self.directory
            raise UsageError(
                f"{place} holds a run that is not finished: `dnat resume {place}` goes on with it "
                f"(there is no {RECORD})"
            )
        refuse_links(self.directory)
        table = self._sealed_record()
        self._check_settings(table)
        alone = self.latency() if "latency" in table else {}
        record = {key: value for key, value in table.items() if key not in (SEAL, _FILES)}
        return record | ({"latency": alone} if alone else {})

    def problem(self) -> str:
        """Why the result of a run that is done cannot be taken; empty where it can, or there is none yet."""
        try:
            if self.is_done():
                self.record()
        except DataError as error:
            return str(error).partition(_HINT)[0]
        return ""

    def latency(self) -> dict[str, Any]:
        """The times that were measured alone, after the run; nothing where they were not, or are damaged."""
        try:
            alone = read_sealed(self.path(LATENCY))
        except DataError as error:
            self.notify(f"{error}; the times that the run itself measured are taken")
            return {}
        of = alone.pop("of", None)
        if of is not None and of != self._sealed_record().get(SEAL):
            self.notify(
                f"{self.path(LATENCY)} is of another run; the times that the run itself measured are taken"
            )
            return {}
        return alone

    def write_latency(self, alone: Mapping[str, Any]) -> None:
        """Keep times that were measured alone, {"before": ..., "after": ...}, after the run."""
        of = self._sealed_record().get(SEAL)
        write_json(self.path(LATENCY), sealed({**alone, **({"of": of} if of else {})}))

    def _sealed_record(self) -> dict[str, Any]:
        """The record as it stands in its file, with the digests of others."""
        path = self.path(RECORD)
        try:
            table = read_table(path)
        except DataError as error:
            raise DataError(f"{error}; `dnat resume {self.directory} --begin-again` trains it again") from error
        files = table.get(_FILES, {})
        if (SEAL in table or _FILES in table) and not (table.get(SEAL) == seal_of(table) and _is_files(files)):
            self.differs(f"{path} is not what the run wrote: its digest differs")
            table[_FILES] = files if _is_files(files) else {}
        return table

    def _check_settings(self, record: Mapping[str, Any]) -> None:
        """Refuse a config.toml with other settings than the record was made with; where images lie may change."""
        path, wanted = self.path(CONFIG), record.get(_FILES, {}).get(CONFIG)
        if wanted is None or (path.is_file() and digest_of(path) == wanted):
            return
        if not path.exists():
            raise DataError(f"{path} is gone: put it back")
        if listed := _other_settings(read_toml(path), record["job"]):
            self.differs(f"{path} has other settings than the run was done with: {listed}")

    def check(self, name: str) -> None:
        """Refuse a file of a finished run that is not what the run wrote.

        Raises:
            DataError: it is gone, or differs and is not to be taken as it is.
        """
        record = self._sealed_record()
        if _FILES not in record:
            return
        wanted, path = record[_FILES].get(name), self.path(name)
        if wanted is None:
            if os.path.lexists(path):
                self.differs(f"{path} was not written by the run")
            return
        here = digest_of(path)
        if here != wanted:
            sizes = (
                f"{wanted['size']} bytes, now {here['size']}"
                if here["size"] != wanted["size"]
                else "another digest"
            )
            self.differs(f"{path} is not what the run wrote ({sizes})")

    def check_all(self) -> None:
        """Refuse a finished run of which a file that its result is made of was changed; name the others.

        Raises:
            DataError: see `check`.
        """
        for name in self._sealed_record().get(_FILES, {}):
            if name in RESULT and name != CONFIG:  # whose settings `record` compares
                self.check(name)
            elif name != CONFIG:
                self.told(name)

    def told(self, name: str) -> bool:
        """Whether a side file of a finished run is what the run wrote; `notify` is told if not."""
        try:
            RunFiles(self.directory).check(name)
        except DataError as error:
            self.notify(str(error).partition(_HINT)[0])
            return False
        return True

    def differs(self, text: str) -> None:
        """Refuse what is not as the run wrote it, or take it and say so where that was asked for.

        Raises:
            DataError: it was not.
        """
        if self.accept is None:
            raise DataError(text + _HINT)
        self.accept(f"{text}; taken as it is")

    def architecture(self) -> dict[str, Any]:
        """The choices (`commitment`), the rows of the picture and the genotypes of a run that is done."""
        self.check(ARCHITECTURE)
        table = read_table(self.path(ARCHITECTURE))
        if not _has_choices(table):
            raise DataError(f"{self.path(ARCHITECTURE)} holds no choices of a run")
        return table

    def why_unfinished(self) -> tuple[str, str]:
        """The state of a run without a result ("pending" before it said one, or "damaged"), and the reason."""
        try:
            refuse_links(self.directory)
            status = read_sealed(self.path(STATUS))
        except ValueError as error:
            return "damaged", str(error)
        state = str(status.get("state", "pending"))
        if state == "done" and not self.is_done():
            return "damaged", f"{self.path(RECORD)} is gone"
        reason = str(status.get("reason", f"there is no {STATUS}" if self.is_run() and not status else ""))
        return state, "; ".join(filter(None, (reason, _changed_config(self.path(CONFIG), status))))

    def changed_config(self) -> str:
        """What to say if config.toml was changed since the run was last at work; else, or if unknown, empty."""
        try:
            return _changed_config(self.path(CONFIG), read_sealed(self.path(STATUS)))
        except DataError:
            return ""


_HINT = "; put back what was there, or take it as it is with --accept-changes"


def _changed_config(path: Path, status: Mapping[str, Any]) -> str:
    """What to say if a config.toml is not the one that the status tells of."""
    wanted = status.get("config")
    same = wanted is None or (path.is_file() and digest_of(path) == wanted)
    return "" if same else f"{path} (or {STATUS}) was changed since the run was last at work"


def _other_settings(there: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    """In which settings a config.toml differs from those that a record was made with."""
    names = sorted((there.keys() | made.keys()) - WHERE - {"device"})
    other = [n for n in names if there.get(n) != made.get(n)]
    return ", ".join(f"{n} {shown(there.get(n))} (there) / {shown(made.get(n))} ({RECORD})" for n in other)


def _has_choices(architecture: Mapping[str, Any]) -> bool:
    """Whether a table tells choices, or that none were made."""
    commitment = architecture.get("commitment")
    edges = commitment.get("edges") if isinstance(commitment, dict) else commitment or []
    return (
        "commitment" in architecture
        and isinstance(edges, list)
        and all(
            isinstance(edge, dict) and all(isinstance(edge.get(name), str) for name in ("key", "group", "choice"))
            for edge in edges
        )
    )


def _is_files(files: Any) -> bool:
    return isinstance(files, dict) and all(
        isinstance(f, dict) and {*f} == {"size", "sha256"} for f in files.values()
    )


def bound(directory: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the digests of the files beside it, sealed."""
    files = {name: digest_of(directory / name) for name in BOUND if (directory / name).exists()}
    return sealed({**record, _FILES: files})
