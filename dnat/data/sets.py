"""The data sets by name: where their files lie, how they are checked, how they are read."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..naming import unknown
from . import cifar
from .images import Augmentation, Data


@dataclass(frozen=True)
class DataSet:
    """What `dnat datasets` tells of a data set; `size` is the side of its images in pixels."""

    name: str
    title: str
    classes: int
    train: int
    test: int
    size: int
    source: str


_SETS = {
    d.name: d
    for d in (
        DataSet("digits", "handwritten digits", 10, 1379, 418, 16, "scikit-learn (UCI), comes along"),
        DataSet("cifar10", "CIFAR-10, colour photographs", 10, 50_000, 10_000, 32, "Krizhevsky 2009"),
    )
}


def names() -> tuple[str, ...]:
    """The data sets by name."""
    return tuple(_SETS)


def describe() -> tuple[DataSet, ...]:
    """What is known of each data set; needs no files."""
    return tuple(_SETS.values())


def load(
    name: str,
    root: str | Path | None = None,
    *,
    image_size: int | None = None,
    train_limit: int | None = None,
    test_limit: int | None = None,
    download: bool = False,
) -> Data:
    """A data set by name.

    Args:
        name: one of `names()`.
        root: folder with the data sets' files; by default $DNAT_DATA, then ./data.
        image_size: side in pixels, where the data set can be resized (digits: 8 to 64, by default 16).
        train_limit, test_limit: use so many images, class-balanced: the first of each class.
        download: fetch missing files; without it nothing is ever fetched.

    Raises:
        ValueError: an unknown name, a size or limit that cannot be.
        DataError: files that are missing or damaged; the message names them and says what to do.

    >>> load("digits").example(2).shape
    torch.Size([2, 3, 16, 16])
    """
    if name not in _SETS:
        raise unknown("data set", name, _SETS)
    if name == "digits":
        data = _digits(image_size or _SETS[name].size)
    else:
        if image_size not in (None, _SETS[name].size):
            raise ValueError(f"images of {name} are {_SETS[name].size} pixels wide, not {image_size}")
        data = cifar.load(Path(root or os.environ.get("DNAT_DATA") or "data"), download=download)
    return data.subset(train_limit, test_limit)


def _digits(size: int) -> Data:
    """Scikit-learn's 1,797 digits of 8 x 8 pixels, up-sampled; a fixed 23 % of each class is the test split."""
    if not 8 <= size <= 64:
        raise ValueError(f"digits can be 8 to 64 pixels wide, not {size}")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None] * (255 / 16)
    if size != 8:
        images = torch.nn.functional.interpolate(images, (size, size), mode="bilinear", align_corners=False)
    pixels = images.round().to(torch.uint8).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()
    labels = torch.from_numpy(bunch.target).long()
    test = _every(labels, (2, 5, 8, 12, 15, 18, 22), 31)
    train = (~test).nonzero().flatten()
    scaled = pixels[train].double() / 255
    return Data(
        name="digits",
        classes=tuple(map(str, range(10))),
        train_images=pixels[train],
        train_labels=labels[train],
        train_index=torch.arange(len(train)),
        test_images=pixels[test],
        test_labels=labels[test],
        mean=(scaled.mean().item(),) * 3,
        std=(scaled.std().item(),) * 3,
        augmentation=Augmentation(pad=max(1, size // 8), flip=False),  # a flipped digit is no digit
    )


def _every(labels: Tensor, places: tuple[int, ...], period: int) -> Tensor:
    """A mask of the images whose running number within their class, modulo `period`, is one of `places`."""
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        chosen = torch.isin(torch.arange(len(members)) % period, torch.tensor(places))
        mask[members[chosen]] = True
    return mask
