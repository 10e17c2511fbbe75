"""Members of zip archives, read by name and never extracted, without trusting what an archive says of itself.

An archive's table of contents is read once, into a compact array that is cheap to send to worker processes. A
member is then read with a file handle of its own: no handle is shared between threads or processes.
"""

import os
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np

from ..errors import DataError, UsageError
from ..files import unreadable

MEMBER_LIMIT = 256 * 2**20
"""Bytes that one member may have when it is unpacked: more is no picture."""
TOTAL_LIMIT = 2**30
"""Bytes that all members may have together, whatever the size of the archive."""
RATIO_LIMIT = 100
"""Beyond `TOTAL_LIMIT`, how many times larger than the archive its members may be."""
_WINDOWS = ("thumbs.db", "desktop.ini")
_HEADER = struct.Struct("<4s5H3L2H")
"""A member's own header: signature, five fields of no use here, CRC and two sizes (not trusted), two lengths."""

PLACE = np.dtype([("offset", "i8"), ("packed", "i8"), ("size", "i8"), ("crc", "u4"), ("method", "u2")])
"""Where a member lies: of its header, in bytes; size packed and unpacked; CRC-32; 0 (stored) or 8 (deflated)."""


def contents(path: Path) -> tuple[list[str], np.ndarray, list[str]]:
    """An archive's files by name and their places (`PLACE`), in the archive's order, and its folders by name.

    Hidden files and what systems add are left out; folders end with a slash.

    Raises:
        DataError: no zip archive or a damaged one, members that lie outside of it, stand in it twice, overlap, are
            encrypted, or would unpack to more than the limits.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = archive.infolist()
    except OSError as error:
        raise unreadable(path, error) from error
    except Exception as error:  # whatever zipfile makes of a broken table
        raise DataError(f"{path} is no zip archive, or a damaged one: {error}; fetch it anew") from error
    for member in found:
        _check_member(path, member)
    found = [m for m in found if not is_hidden(m.filename)]
    members = [m for m in found if not m.is_dir()]
    names = [member.filename for member in members]
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise DataError(f"{path} holds {twice[0]!r} twice")
    rows = [(m.header_offset, m.compress_size, m.file_size, m.CRC, m.compress_type) for m in members]
    places = np.array(rows, dtype=PLACE)
    _check_total(path, places)
    return names, places, [m.filename for m in found if m.is_dir()]


def is_hidden(name: str) -> bool:
    """Whether a file, or a folder that it lies in, is hidden or made by macOS or Windows for itself."""
    parts = name.split("/")
    return any(part.startswith(".") or part == "__MACOSX" for part in parts) or parts[-1].lower() in _WINDOWS


def _check_member(path: Path, member: zipfile.ZipInfo) -> None:
    name = member.filename
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/") or "\\" in name or ":" in parts[0]:
        raise DataError(f"{path} holds {name!r}, which would lie outside of it: refused")
    if member.flag_bits & 1:
        raise DataError(f"{path}: {name} is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{path}: {name} is compressed by method {member.compress_type}; only stored and deflate")
    if member.file_size > MEMBER_LIMIT:
        raise DataError(f"{path}: {name} would unpack to {member.file_size:,} bytes; at most {MEMBER_LIMIT:,} are")


def _check_total(path: Path, places: np.ndarray) -> None:
    size, packed, total = path.stat().st_size, int(places["packed"].sum()), int(places["size"].sum())
    if packed > size:
        raise DataError(f"{path} has {size:,} bytes, its members {packed:,}: they overlap, which is a trap")
    if total > max(TOTAL_LIMIT, RATIO_LIMIT * size):
        raise DataError(
            f"{path} has {size:,} bytes and would unpack to {total:,}: more than {RATIO_LIMIT} times as much and "
            f"more than {TOTAL_LIMIT:,} bytes looks like a trap"
        )


def read_member(path: Path, name: str, place: np.ndarray) -> bytes:
    """One member's content, checked by its CRC.

    Args:
        path: the archive.
        name: of the member, for messages.
        place: from `contents`.

    Raises:
        DataError: the archive cannot be read, or this part of it is damaged.
    """
    offset, packed, size = int(place["offset"]), int(place["packed"]), int(place["size"])
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            fields = _HEADER.unpack(_exactly(file.read(_HEADER.size), _HEADER.size))
            if fields[0] != b"PK\x03\x04":
                raise UsageError("its header is not where the table of contents says")
            file.seek(fields[-2] + fields[-1], os.SEEK_CUR)
            content = _exactly(file.read(packed), packed)
        if place["method"] == zipfile.ZIP_DEFLATED:
            # One byte more than promised is enough to know that the promise was false.
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1)
        if len(content) != size:
            raise UsageError(f"it unpacks to {len(content):,} bytes or more instead of {size:,}")
    except OSError as error:
        raise unreadable(f"{path}: {name}", error) from error
    except (ValueError, zlib.error) as error:
        raise DataError(f"{path}: {name} is damaged: {error}; fetch the archive anew") from error
    found, expected = zlib.crc32(content), int(place["crc"])
    if found != expected:
        raise DataError(
            f"{path}: {name} is damaged: CRC {found:08x}, expected {expected:08x}; fetch the archive anew"
        )
    return content


def _exactly(content: bytes, size: int) -> bytes:
    if len(content) != size:
        raise UsageError(f"the archive ends {size - len(content):,} bytes too early")
    return content
