"""Checkpoints of an open run, checksummed, with the rows that belong to them.

A checkpoint is a container: magic, length of the header (8 bytes, little endian), header (JSON with format, step,
the metrics' length in bytes, length and SHA-256 of the payload), SHA-256 of all of that, payload (`torch.save` of
tensors, numbers, text, lists and dicts, read with `weights_only=True`). Neither torch nor safetensors notices a
flipped bit by itself.
"""

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

from .errors import DnatError, UsageError
from .rundir import SEARCH_ROWS, RunFiles, atomic_write, write_json

MAGIC = b"DNATCK01"
FORMAT = 1
KEEP = 2
"""How many checkpoints are kept: the newest, and one to fall back on."""

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


class Checkpoints(RunFiles):
    """Checkpoints and rows of one stage of an open run; whoever has the directory's `Records` may write them.

    Attributes:
        notices: what a user should know (a damaged checkpoint was left out).
    """

    def __init__(
        self,
        directory: str | Path,
        stage: str,
        rows: str,
        notify: Callable[[str], None],
        *,
        anew: bool = False,
        notices: list[str] | None = None,
    ) -> None:
        """Nothing is read or written yet.

        Args:
            directory: of the run.
            stage: beginning of the checkpoints' names.
            rows: name of the file with the rows.
            notify: is given each of the `notices`, at once.
            anew: whether the stage begins again when its checkpoints are all damaged; without, that is an error.
            notices: are told to this list; a new one by default.
        """
        super().__init__(directory)
        self.notices: list[str] = [] if notices is None else notices
        self.stage, self._log, self._notify, self._anew = stage, self.path(rows), notify, anew

    def _notice(self, text: str) -> None:
        self.notices.append(text)
        self._notify(text)

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
            self._cut_log(header["metrics_bytes"])
            return step, state
        self._refuse_to_begin_again()
        self._cut_log(0)
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

    def _cut_log(self, size: int) -> None:
        if self._log.exists() and self._log.stat().st_size > size:
            os.truncate(self._log, size)

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write a checkpoint; older ones but one are deleted once it is safe on the disk."""
        size = self._log.stat().st_size if self._log.exists() else 0
        content = pack(state, step=step, metrics_bytes=size)
        atomic_write(self.directory / f"{self.stage}-{step:09d}.ckpt", content)
        for _, path in list(self._checkpoints())[KEEP:]:
            path.unlink()

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row.

        Raises:
            ValueError: it holds NaN or infinity, which JSON cannot hold.
        """
        line = json.dumps(row, allow_nan=False) + "\n"
        with open(self._log, "a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file, atomically."""
        write_json(self.path(name), value)

    def metrics(self) -> list[dict[str, Any]]:
        """The rows."""
        return self.rows(self._log.name)

    def of_search(self) -> "Checkpoints":
        """Checkpoints and rows of what comes before the training; a lock stays with its records."""
        return Checkpoints(
            self.directory, "search", SEARCH_ROWS, self._notify, anew=self._anew, notices=self.notices
        )

    def forget(self) -> None:
        """Delete the checkpoints, once they are of no more use."""
        damaged = self.directory.glob(f"{self.stage}-*.ckpt.corrupt")
        for path in [*(path for _, path in self._checkpoints()), *damaged]:
            path.unlink()
