"""Pictures in files: which there are below a folder or in a zip archive, and their pixels when they are wanted."""

import hashlib
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..files import read_bytes, unreadable
from .archives import MEMBER_LIMIT, contents, is_hidden, read_member
from .pictures import SUFFIXES, decode

SAMPLE, SAMPLED = 4096, 10_000
"""Bytes of a picture, and pictures, that are looked at to tell whether they are those that a run began with."""


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Pictures that stay in their files and are decoded when they are read; can be pickled, holds nothing open.

    Indexing with a slice or a tensor of positions gives the files of these pictures.

    Attributes:
        root: the folder or zip archive.
        names: (N,) bytes, each picture's name within it (UTF-8, `/` between folders).
        places: where each lies in the archive (`archives.PLACE`); None in a folder.
        side: of the images in pixels.
        margin: without a random crop, the short side is resized to `side * margin` and the centre is taken.
    """

    root: Path
    names: np.ndarray
    places: np.ndarray | None
    side: int
    margin: float = 1.0

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, where: slice | Tensor) -> "ImageFiles":
        index = where.cpu().numpy() if isinstance(where, Tensor) else where
        places = None if self.places is None else self.places[index]
        return replace(self, names=self.names[index], places=places)

    @property
    def shape(self) -> torch.Size:
        """(N, side, side, 3)."""
        return torch.Size((len(self), self.side, self.side, 3))

    def name(self, i: int) -> str:
        """A picture's name within the root."""
        return os.fsdecode(self.names[i])

    def content(self, i: int) -> bytes:
        """A picture's bytes.

        Raises:
            DataError: the file is missing, cannot be read, or is damaged.
        """
        name = self.name(i)
        if self.places is not None:
            return read_member(self.root, name, self.places[i])
        return read_file(self.root / name)

    def read(self, i: int, draws: np.ndarray | None = None) -> np.ndarray:
        """A picture's pixels, (side, side, 3) uint8; with draws, of a random crop (`pictures.random_box`).

        Raises:
            DataError: the file cannot be read or is no picture; the message names it.
        """
        return decode(self.content(i), f"{self.root}: {self.name(i)}", self.side, self.margin, draws)

    def batch(
        self, positions: Sequence[int] | np.ndarray, draws: np.ndarray | None = None, threads: int = 1
    ) -> Tensor:
        """Pixels of several pictures: (B, side, side, 3) uint8.

        Args:
            positions: which.
            draws: a row of random numbers each, for random crops.
            threads: decode with so many; the pixels are the same.

        Raises:
            DataError: as `read`; of several broken pictures the first is named.
        """
        out = np.empty((len(positions), self.side, self.side, 3), np.uint8)

        def fill(start: int, stop: int) -> None:
            for row in range(start, stop):
                out[row] = self.read(int(positions[row]), None if draws is None else draws[row])

        if threads <= 1:
            fill(0, len(positions))
            return torch.from_numpy(out)
        step = max(1, min(256, len(positions) // threads))
        starts = range(0, len(positions), step)
        with ThreadPoolExecutor(threads) as pool:
            jobs = [pool.submit(fill, start, min(start + step, len(positions))) for start in starts]
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return torch.from_numpy(out)

    def broken(self, threads: int = 1) -> dict[int, str]:
        """What is wrong with those pictures that cannot be read, by their positions; each is decoded for it."""

        def problem(i: int) -> str:
            try:
                self.read(i)
            except DataError as error:
                return str(error)
            return ""

        with ThreadPoolExecutor(threads) as pool:
            return {i: text for i, text in enumerate(pool.map(problem, range(len(self)))) if text}

    def pixels(self, threads: int = 1) -> Tensor:
        """All pictures, (N, side, side, 3) uint8."""
        return self.batch(range(len(self)), None, threads)

    def digest(self) -> str:
        """A SHA-256 over names, sizes, the side, and what is in the pictures: of an archive its CRCs.

        Of a folder it is `SAMPLE` bytes from the middle of each picture, or of `SAMPLED` evenly among more: a
        picture in the place of another one, of the same name and size, is noticed there.
        """
        digest = hashlib.sha256(f"{len(self)} {self.side} {self.margin}".encode())
        step = max(1, -(-len(self) // SAMPLED))
        for i, name in enumerate(self.names.tolist()):
            digest.update(name + b"\0")
            if self.places is None:
                size, crc = _size(self.root / self.name(i)), 0
                if i % step == 0:
                    digest.update(_middle(self.root / self.name(i), size))
            else:
                size, crc = int(self.places[i]["size"]), int(self.places[i]["crc"])
            digest.update(f"{size} {crc};".encode())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Tree:
    """The files below a folder or in a zip archive.

    Attributes:
        root: the folder or archive.
        names: of all files, sorted, relative to `top`, `/` between folders; empty folders, ending in /, too.
        places: of each name, its place in an archive; None in a folder.
        top: the part of the archive or folder that is looked at; empty, or ends with a slash.
    """

    root: Path
    names: tuple[str, ...]
    places: dict[str, np.ndarray] | None = None
    top: str = ""

    @classmethod
    def open(cls, root: Path, only: Sequence[str] = ("",)) -> "Tree":
        """The files below a folder (links are followed) or in a zip archive; hidden ones are left out.

        Args:
            root: the folder or archive.
            only: the folders below that are looked into, each ending with a slash; the rest may be large.

        Raises:
            DataError: neither a folder nor a zip archive that can be read.
        """
        root = root.absolute()
        if root.is_dir():
            found = [name for top in only if (root / top).is_dir() for name in _walk(root, top)]
            return cls(root, tuple(sorted(found)))
        if root.is_file():
            names, places, folders = contents(root)
            return cls(root, tuple(sorted(names + folders)), dict(zip(names, places, strict=True)))
        raise DataError(f"{root} is neither a folder nor a zip archive; name one with --data-root")

    def below(self, top: str) -> "Tree":
        """What lies in a folder of it."""
        start = f"{top}/"
        names = tuple(name[len(start) :] for name in self.names if name.startswith(start) and name != start)
        return replace(self, names=names, top=self.top + start)

    def inner(self, wanted: Sequence[str]) -> "Tree":
        """The tree itself, or, as long as it holds one folder alone and none that is wanted, this folder.

        `wanted` are names in small letters; those of folders may have any.
        """
        folders = self.folders()
        if len(folders) != 1 or folders[0].lower() in wanted or any("/" not in name for name in self.names):
            return self
        deeper = self.below(folders[0])
        return deeper.inner(wanted) if deeper.folders() else self

    def folders(self) -> tuple[str, ...]:
        """The names of the folders at the top, sorted."""
        return tuple(sorted({name.split("/", 1)[0] for name in self.names if "/" in name}))

    def pictures(self) -> list[str]:
        """The names that are a picture's, sorted."""
        return [name for name in self.names if name.lower().endswith(SUFFIXES)]

    def others(self) -> list[str]:
        """The names of files that are no picture's, sorted."""
        return [name for name in self.names if not name.lower().endswith((*SUFFIXES, "/"))]

    def text(self, name: str) -> str:
        """A text file's content.

        Raises:
            DataError: there is no such file, or it cannot be read.
        """
        whole = self.top + name
        if self.places is None:
            content = read_file(self.root / whole)
        elif whole in self.places:
            content = read_member(self.root, whole, self.places[whole])
        else:
            raise DataError(f"{self.root} holds no {whole}")
        return content.decode("utf-8", "replace")

    def files(self, names: Sequence[str], side: int, margin: float = 1.0) -> ImageFiles:
        """These pictures, in this order."""
        whole = [self.top + name for name in names]
        places = None if self.places is None else np.array([self.places[name] for name in whole])
        return ImageFiles(self.root, np.array([os.fsencode(name) for name in whole]), places, side, margin)

    def __str__(self) -> str:
        return f"{self.root}/{self.top}".rstrip("/")


def decoded(path: Path, side: int, margin: float = 1.0) -> np.ndarray:
    """Pixels (side, side, 3) uint8 of one picture, as `ImageFiles` gives them.

    Raises:
        DataError: it cannot be read or is no picture; the message names it.
    """
    return decode(read_file(path), str(path), side, margin)


def found_below(folder: Path) -> list[Path]:
    """The pictures below a folder, sorted.

    Raises:
        DataError: it cannot be read.
    """
    return [folder / name for name in Tree.open(folder).pictures()]


def read_file(path: Path) -> bytes:
    """A file's content.

    Raises:
        DataError: it cannot be read, is something else than a file, or has more bytes than a picture can.
    """
    return read_bytes(path, MEMBER_LIMIT)


def _middle(path: Path, size: int) -> bytes:
    """`SAMPLE` bytes from the middle of a file, or all of a smaller one."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe could be waited for, for ever
            raise DataError(f"{path} cannot be read: it is no regular file")
        with open(path, "rb") as file:
            file.seek(max(0, (size - SAMPLE) // 2))
            return file.read(SAMPLE)
    except OSError as error:
        raise unreadable(path, error) from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise unreadable(path, error) from error


def _walk(root: Path, start: str) -> list[str]:
    """Files and empty folders below `root / start`, relative to `root`, without links to a folder above them."""
    found: list[str] = []
    waiting = [(start, frozenset[str]())]
    while waiting:
        top, above = waiting.pop()
        path = root / top
        real = os.path.realpath(path)
        if real in above:
            continue
        try:
            with os.scandir(path) as listing:
                entries = [entry for entry in listing if not is_hidden(entry.name)]
        except OSError as error:
            raise unreadable(path, error) from error
        if top and not entries:
            found.append(top)
        for entry in entries:
            if entry.is_dir():
                waiting.append((f"{top}{entry.name}/", above | {real}))
            else:
                found.append(top + entry.name)
    return found
