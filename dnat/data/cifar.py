"""CIFAR-10 and CIFAR-100 from their standard files, checked by MD5 and read without trusting them.

The files may lie in their folder or in the archive as it is published; nothing is unpacked to be read.
"""

import hashlib
import io
import os
import pickle
import tarfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import DataError
from ..files import read_bytes
from .images import Augmentation, Data

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
FOLDER = "cifar-10-batches-py"
FILES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
"""The files and their MD5 sums, as the data set's authors publish them."""

URL_100 = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
ARCHIVE_MD5_100 = "eb9058c3a382ffc7106e4002c42a8d85"
FILES_100 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
"""The same of CIFAR-100."""


MOST_BYTES = 1 << 30
"""Of a file: the archives as they are published have less than 200 MB."""


@dataclass(frozen=True)
class Release:
    """A data set as it is published: where, in which files, under which keys, and with which statistics."""

    name: str
    title: str
    url: str
    archive: str
    archive_md5: str
    folder: str
    files: Mapping[str, str]
    train: tuple[str, ...]
    test: str
    meta: str
    labels: str
    classes: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def release(name: str) -> Release:
    """CIFAR-10 ("cifar10") or CIFAR-100 ("cifar100", with its 100 fine classes)."""
    if name == "cifar10":
        return Release(
            name="cifar10",
            title="CIFAR-10",
            url=URL,
            archive="cifar-10-python.tar.gz",
            archive_md5=ARCHIVE_MD5,
            folder=FOLDER,
            files=FILES,
            train=tuple(f"data_batch_{i}" for i in range(1, 6)),
            test="test_batch",
            meta="batches.meta",
            labels="labels",
            classes="label_names",
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
        )
    return Release(
        name="cifar100",
        title="CIFAR-100",
        url=URL_100,
        archive="cifar-100-python.tar.gz",
        archive_md5=ARCHIVE_MD5_100,
        folder="cifar-100-python",
        files=FILES_100,
        train=("train",),
        test="test",
        meta="meta",
        labels="fine_labels",
        classes="fine_label_names",
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    )


def load(root: Path, name: str = "cifar10", *, download: bool = False) -> Data:
    """CIFAR-10 from `root`/cifar-10-batches-py or the archive beside it; CIFAR-100 from `root`/cifar-100-python.

    Raises:
        DataError: a file is missing or is not the one that was published, or the download failed.
    """
    known = release(name)
    contents = _contents(known, root, download)
    batches = {file: _unpickle(content, known, root / known.folder / file) for file, content in contents.items()}
    train, test = [batches[file] for file in known.train], batches[known.test]
    try:
        labels = [label for batch in train for label in batch[known.labels]]
        return Data(
            name=known.name,
            classes=tuple(batches[known.meta][known.classes]),
            train_images=_images(np.concatenate([batch["data"] for batch in train])),
            train_labels=torch.tensor(labels),
            train_index=torch.arange(len(labels)),
            test_images=_images(test["data"]),
            test_labels=torch.tensor(test[known.labels]),
            mean=known.mean,
            std=known.std,
            augmentation=Augmentation(pad=4, flip=True),
        )
    except KeyError as error:
        raise DataError(f"{known.title}: its files hold no {error}") from error


def _contents(known: Release, root: Path, download: bool) -> dict[str, bytes]:
    """Every file's content, checked: from the folder, else from the archive, else fetched."""
    folder, archive = root / known.folder, root / known.archive
    missing = [name for name in known.files if not (folder / name).exists()]
    if missing and archive.is_file():
        return _members(known, _read(known, archive, known.archive_md5), str(archive.resolve()))
    if missing and download:
        fetch(root, known)
    return {name: _read(known, folder / name, md5) for name, md5 in known.files.items()}


def fetch(root: Path, known: Release) -> None:
    """Download the archive and write its files, each checked, into their folder below `root`.

    Raises:
        DataError: no network, or an archive that is not the published one.
    """
    folder = root / known.folder
    try:
        with urllib.request.urlopen(known.url, timeout=30) as response:  # noqa: S310 (from the table above)
            archive = response.read()
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        raise DataError(f"{known.url} cannot be fetched: {error}; put its files into {folder} by hand") from error
    _check(archive, known.archive_md5, known.url, "try again")
    contents = _members(known, archive, known.url)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        part = folder / f"{name}.part"
        part.write_bytes(content)
        os.replace(part, folder / name)


def _members(known: Release, archive: bytes, where: str) -> dict[str, bytes]:
    """The files in an archive that has been checked: members of the names that are expected, and no others."""
    contents = {}
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        for name, md5 in known.files.items():
            try:
                member = tar.extractfile(f"{known.folder}/{name}")
            except KeyError as error:
                raise DataError(f"{where} holds no {known.folder}/{name}") from error
            contents[name] = member.read() if member else b""
            _check(contents[name], md5, f"{known.folder}/{name} in {where}", "fetch it anew")
    return contents


def _read(known: Release, path: Path, md5: str) -> bytes:
    try:
        content = read_bytes(path, MOST_BYTES)
    except DataError as error:
        why = str(error).removeprefix(f"{path} cannot be read: ")
        raise DataError(
            f"{known.title}: {path.resolve()} cannot be read ({why}; MD5 {md5}); name the folder that "
            f"holds {known.folder} or {known.archive} with --data-root or DNAT_DATA, or fetch it with --download"
        ) from error
    _check(content, md5, str(path.resolve()), "delete it and fetch it anew")
    return content


def _check(content: bytes, md5: str, what: str, remedy: str) -> None:
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(f"{what} is damaged: {len(content)} bytes with MD5 {found}, expected {md5}; {remedy}")


class _Unpickler(pickle.Unpickler):
    """Makes arrays and text, and nothing else: a pickle can otherwise run any code."""

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        # The files were written with a NumPy that had its core under another name.
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _unpickle(content: bytes, known: Release, path: Path) -> dict[str, Any]:
    try:
        return _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # whatever a broken pickle raises
        raise DataError(f"{path} is not a file of {known.title}: {error}") from error


def _images(rows: np.ndarray) -> torch.Tensor:
    """(N, 3072), plane by plane -> (N, 32, 32, 3)."""
    return torch.from_numpy(rows).view(-1, 3, 32, 32).permute(0, 2, 3, 1).contiguous()
