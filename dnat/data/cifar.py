"""CIFAR-10 from its standard files (`cifar-10-batches-py`), checked by MD5 and read without trusting them."""

import hashlib
import io
import os
import pickle
import tarfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .images import Augmentation, Data, DataError

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


def load(root: Path, *, download: bool = False) -> Data:
    """CIFAR-10 from `root`/cifar-10-batches-py.

    Raises:
        DataError: a file is missing or is not the one that was published, or the download failed.
    """
    folder = root / FOLDER
    if download and not all((folder / name).exists() for name in FILES):
        fetch(root)
    contents = {name: _read(folder / name, md5) for name, md5 in FILES.items()}
    batches = {name: _unpickle(content, folder / name) for name, content in contents.items()}
    train = [batches[f"data_batch_{i}"] for i in range(1, 6)]
    images = np.concatenate([batch["data"] for batch in train])
    labels = [label for batch in train for label in batch["labels"]]
    return Data(
        name="cifar10",
        classes=tuple(batches["batches.meta"]["label_names"]),
        train_images=_images(images),
        train_labels=torch.tensor(labels),
        train_index=torch.arange(len(labels)),
        test_images=_images(batches["test_batch"]["data"]),
        test_labels=torch.tensor(batches["test_batch"]["labels"]),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        augmentation=Augmentation(pad=4, flip=True),
    )


def fetch(root: Path) -> None:
    """Download the archive and write its files, each checked, into `root`/cifar-10-batches-py.

    Raises:
        DataError: no network, or an archive that is not the published one.
    """
    try:
        with urllib.request.urlopen(URL, timeout=30) as response:
            archive = response.read()
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        raise DataError(f"{URL} cannot be fetched: {error}; put its files into {root / FOLDER} by hand") from error
    _check(archive, ARCHIVE_MD5, URL, "try again")
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    # Members are read by the names that are expected: nothing else in an archive can be written anywhere.
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        for name, md5 in FILES.items():
            try:
                member = tar.extractfile(f"{FOLDER}/{name}")
            except KeyError as error:
                raise DataError(f"{URL} holds no {FOLDER}/{name}") from error
            content = member.read() if member else b""
            _check(content, md5, f"{FOLDER}/{name} in {URL}", "try again")
            part = folder / f"{name}.part"
            part.write_bytes(content)
            os.replace(part, folder / name)


def _read(path: Path, md5: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"CIFAR-10: {path.resolve()} cannot be read ({error.strerror}; MD5 {md5}); name the folder that holds "
            f"{FOLDER} with --data-root or DNAT_DATA, or fetch it with --download"
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


def _unpickle(content: bytes, path: Path) -> dict[str, Any]:
    try:
        return _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # whatever a broken pickle raises
        raise DataError(f"{path} is not a file of CIFAR-10: {error}") from error


def _images(rows: np.ndarray) -> torch.Tensor:
    """(N, 3072), plane by plane -> (N, 32, 32, 3)."""
    return torch.from_numpy(rows).view(-1, 3, 32, 32).permute(0, 2, 3, 1).contiguous()
