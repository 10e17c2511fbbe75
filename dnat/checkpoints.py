"""Checkpoints of an open run, checksummed, with the rows that belong to them.

A checkpoint is a container: magic, length of the header (8 bytes, little endian), header (JSON with format, step,
the run's settings, length and SHA-256 of the payload), SHA-256 of all of that, payload (`torch.save` of tensors,
numbers, text, lists and dicts, read with `weights_only=True`). Neither torch nor safetensors notices a flipped bit
by itself. The rows that were written so far are in it, too: a log that was changed since is written anew.
"""

import errno
import hashlib
import io
import json
import os
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from .errors import DataError, DnatError, UsageError, is_of_no_file
from .files import (
    atomic_write,
    digest_of,
    named,
    parse_json,
    read_sealed,
    remove,
    sealed,
    set_aside,
    write_json,
)
from .rundir import CONFIG, SEARCH_ROWS, RunFiles
from .settings import shown

MAGIC = b"DNATCK01"
FORMAT = 1
KEEP = 2
"""How many checkpoints are kept: the newest, and one to fall back on."""

_OF_SEARCH = "search"
_LOG = "rows of the log"
"""The entry of a checkpoint's state with the text of its log."""
_RUN = "run"
"""The entry of a table that is kept for a run to go on with: the run's settings."""

_CHECKPOINT = re.compile(r"([a-z]+)-(\d{9,})\.ckpt$")
_HEADER_LIMIT = 1 << 20


class CorruptError(DnatError, ValueError):
    """A checkpoint that is not what was written."""

    exit_code = 65


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
        if is_of_no_file(error):
            raise
        raise CorruptError(f"{path}: holds something else than tensors, numbers and text: {error}") from error


def _verified(path: Path) -> tuple[dict[str, Any], bytes]:
    with named(path):
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
    try:
        header = parse_json(content[start:end])
    except ValueError as error:
        raise CorruptError(f"{path}: its header cannot be read: {error}") from error
    if not isinstance(header, dict) or not {"format", "length", "sha256"} <= header.keys():
        raise CorruptError(f"{path}: its header lacks entries")
    if header["format"] > FORMAT:
        raise UsageError(f"{path} was written by format {header['format']}, this is {FORMAT}: update dnat")
    payload = content[end + 32 :]
    if len(payload) != header["length"]:
        raise CorruptError(f"{path}: cut off, {len(payload)} of {header['length']} bytes")
    if hashlib.sha256(payload).hexdigest() != header["sha256"]:
        raise CorruptError(f"{path}: damaged, its checksum does not match")
    return header, payload


class OpenRun(RunFiles):
    """A run's directory while a process works in it: what it is told, and tables that it goes on with.

    Attributes:
        notices: what a user should know (a damaged checkpoint was left out).
        settings: of the run, that bits depend on; stands in each checkpoint.
        accepted: what differs from what the run wrote and was taken as it is, now and before.
    """

    def __init__(
        self,
        directory: str | Path,
        notify: Callable[[str], None],
        *,
        accept_changes: bool = False,
        settings: Mapping[str, Any] | None = None,
        notices: list[str] | None = None,
        accepted: list[str] | None = None,
    ) -> None:
        """Nothing is read or written yet; see `Checkpoints`."""
        super().__init__(directory, accept=self._take if accept_changes else None, notify=self._notice)
        self.notices: list[str] = [] if notices is None else notices
        self.accepted: list[str] = [] if accepted is None else accepted
        self.settings: Mapping[str, Any] = settings or {}
        self._notify = notify

    def _notice(self, text: str) -> None:
        self.notices.append(text)
        self._notify(text)

    def _take(self, text: str) -> None:
        self.accepted.append(text)
        self._notice(text)

    def _set_aside(self, name: str, why: str) -> None:
        """Rename a damaged file, and say so."""
        self._notice(f"{why}: it is set aside as {set_aside(self.path(name))}, and written anew")

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file, atomically."""
        write_json(self.path(name), value)

    def keep(self, name: str, table: Mapping[str, Any]) -> None:
        """Write what the run goes on with, sealed and bound to its settings; see `kept`."""
        self.write_json(name, sealed({**table, _RUN: dict(self.settings)}))

    def kept(self, name: str) -> dict[str, Any] | None:
        """A table that `keep` wrote; None where there is none.

        What is damaged, or of other settings, is set aside with a word: it is made again then.
        """
        try:
            table = read_sealed(self.path(name))
            run = table.pop(_RUN, None)
            if run is not None and run != self.settings:
                raise DataError(f"{self.path(name)} was written with other settings than the run has")
        except DataError as error:
            self._set_aside(name, str(error))
            return None
        return table or None

    def has_files(self, digests: Mapping[str, Any]) -> bool:
        """Whether files are what their digests tell; one that is not is set aside with a word, or was deleted."""
        for name, wanted in digests.items():
            path = self.path(name)
            try:
                if digest_of(path) != wanted:
                    raise DataError(f"{path} is not what the run wrote")
            except DataError as error:
                if os.path.lexists(path):
                    self._set_aside(name, str(error))
                else:
                    self._notice(f"{error}: it is made again")
                return False
        return True


class Checkpoints(OpenRun):
    """Checkpoints and rows of one stage of an open run; whoever has the directory's `Records` may write them."""

    def __init__(
        self,
        directory: str | Path,
        stage: str,
        rows: str,
        notify: Callable[[str], None],
        *,
        anew: bool = False,
        accept_changes: bool = False,
        settings: Mapping[str, Any] | None = None,
        notices: list[str] | None = None,
        accepted: list[str] | None = None,
    ) -> None:
        """Nothing is read or written yet.

        Args:
            directory: of the run.
            stage: beginning of the checkpoints' names.
            rows: name of the file with the rows.
            notify: is given each of the `notices`, at once.
            anew: whether the stage begins again when its checkpoints are all damaged; without, that is an error.
            accept_changes: whether what differs from what the run wrote is taken; without, that is an error.
            settings: see `OpenRun`.
            notices, accepted: are told to these lists; new ones by default.
        """
        super().__init__(
            directory,
            notify,
            accept_changes=accept_changes,
            settings=settings,
            notices=notices,
            accepted=accepted,
        )
        self.stage, self._log, self._anew = stage, self.path(rows), anew

    def newest(self) -> tuple[int, dict[str, Any]] | None:
        """Step and state of the newest checkpoint that is whole; the log is put back to that moment.

        Damaged checkpoints are renamed to *.corrupt and told of in `notices`. Where there never was any, the log
        is emptied: the run begins.

        Raises:
            CorruptError: all are damaged or gone, and the run was not opened to begin again.
            DataError: it was written with other settings than the run has now.
        """
        damaged = []
        for step, path in self._checkpoints():
            try:
                header, state = unpack(path)
            except (CorruptError, OSError) as error:
                if is_of_no_file(error) and getattr(error, "errno", None) != errno.EIO:
                    raise  # it may well be whole; what the disk has lost is
                set_aside(path)
                damaged.append(f"{path}: {error.strerror}" if isinstance(error, OSError) else str(error))
                continue
            for text in damaged:
                self._notice(f"{text}; an older checkpoint is used, of step {step}")
            self._check_settings_of(header, path)
            self._notify(f"goes on after step {step}, from {path.name}")
            self.accepted[:0] = header.get("accepted", [])
            self.put_back(state.pop(_LOG, None), header["metrics_bytes"])
            return step, state
        self._refuse_to_begin_again()
        self._cut_log(0)
        return None

    def _check_settings_of(self, header: Mapping[str, Any], path: Path) -> None:
        """Refuse a checkpoint that was written with other settings; an older dnat knew fewer, or kept none."""
        there = header.get("settings", {})
        listed = ", ".join(
            f"{name} {shown(value)} ({path.name}) / {shown(self.settings.get(name))} ({CONFIG})"
            for name, value in there.items()
            if self.settings and self.settings.get(name) != value
        )
        if listed:
            self.differs(f"{path} was written with other settings than the run has now: {listed}")

    def put_back(self, rows: str | None, size: int = 0) -> None:
        """Let the log hold certain rows: what came later is cut off, what was changed is written anew.

        Args:
            rows: the log's text; None where an older dnat kept none.
            size: bytes of the log then.
        """
        here = self._log.read_bytes() if self._log.is_file() else b""
        wanted = here[:size] if rows is None else rows.encode()  # an older dnat knew their number alone
        if here[: len(wanted)] == wanted and self._log.is_file():
            if len(wanted) < size:
                self._notice(f"{self._log} is cut off: rows of epochs that are done are missing")
            self._cut_log(len(wanted))
            return
        if os.path.lexists(self._log):
            self._set_aside(self._log.name, f"{self._log} is not what the run wrote")
        elif wanted:
            self._notice(f"{self._log} is gone: it is written anew")
        atomic_write(self._log, wanted)

    def _refuse_to_begin_again(self) -> None:
        """Deal with a run of which no checkpoint is left, though there was one."""
        damaged = sorted(self.directory.glob(f"{self.stage}-*.ckpt*.corrupt"))
        # Each epoch ends with its row and then a checkpoint: with a second row there was one.
        rows = self._log.read_bytes().count(b"\n") if self._log.is_file() else 0
        if not damaged and (rows < 2 or self.stage == _OF_SEARCH):
            if rows:
                self._notice(
                    f"there is no checkpoint to go on from: begins again, without the rows of {self._log}"
                )
            return
        if not self._anew:
            listed = (
                f"no checkpoint is whole ({', '.join(p.name for p in damaged)})" if damaged else "no checkpoint"
            )
            listed += "" if damaged else f" is left, but {self._log.name} has {rows} rows"
            raise CorruptError(
                f"{self.directory}: {listed}, so that the run cannot go on; with "
                "--begin-again (Records.open(..., anew=True)) it begins anew, and its metrics are lost"
            )
        for path in damaged:
            remove(path)
        self._notice("no checkpoint is whole: the run begins again at its first epoch")

    def _checkpoints(self) -> Iterator[tuple[int, Path]]:
        """Checkpoints, the highest step first; the clock has no say in it."""
        named = ((_CHECKPOINT.match(p.name), p) for p in self.directory.iterdir())
        yield from sorted(((int(m[2]), p) for m, p in named if m and m[1] == self.stage), reverse=True)

    def _cut_log(self, size: int) -> None:
        if self._log.is_file() and self._log.stat().st_size > size:
            os.truncate(self._log, size)

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write a checkpoint; older ones but one are deleted once it is safe on the disk."""
        rows = self.text(self._log.name)
        header = {"settings": dict(self.settings), "accepted": self.accepted}
        content = pack({**state, _LOG: rows}, step=step, metrics_bytes=len(rows.encode()), **header)
        atomic_write(self.directory / f"{self.stage}-{step:09d}.ckpt", content)
        for _, path in list(self._checkpoints())[KEEP:]:
            remove(path)

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row.

        Raises:
            ValueError: it holds NaN or infinity, which JSON cannot hold.
        """
        line = json.dumps(row, allow_nan=False) + "\n"
        with named(self._log), open(self._log, "a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        """The rows."""
        return self.rows(self._log.name)

    def of_search(self) -> "Checkpoints":
        """Checkpoints and rows of what comes before the training; a lock stays with its records."""
        return Checkpoints(
            self.directory,
            _OF_SEARCH,
            SEARCH_ROWS,
            self._notify,
            anew=self._anew,
            accept_changes=self.accept is not None,
            settings=self.settings,
            notices=self.notices,
            accepted=self.accepted,
        )

    def forget(self) -> None:
        """Delete the checkpoints, once they are of no more use."""
        damaged = self.directory.glob(f"{self.stage}-*.ckpt*.corrupt")
        for path in [*(path for _, path in self._checkpoints()), *damaged]:
            remove(path)
