"""The data sets by name: where their files lie, how they are checked, how they are read."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..naming import unknown
from ..settings import cores
from . import cifar, folders
from .augmentation import check_augmentation
from .files import ImageFiles
from .images import Augmentation, Data, taken
from .memory import free_memory

MOST_WORKERS = 8
"""Processes and threads that decode images, where their number is not given."""


@dataclass(frozen=True)
class DataSet:
    """What `dnat datasets` tells of a data set; a number is None where it depends on the files.

    Attributes:
        name, title: what it is called.
        classes, train, test: how many there are of each.
        size: the side of its images in pixels, unless another is asked for.
        source: where it comes from.
        files: what is looked for in the folder with the data sets' files.
    """

    name: str
    title: str
    classes: int | None
    train: int | None
    test: int | None
    size: int
    source: str
    files: str


_SETS = {
    d.name: d
    for d in (
        DataSet("digits", "handwritten digits", 10, 1379, 418, 16, "UCI, comes along", ""),
        DataSet(
            "cifar10",
            "CIFAR-10, colour photographs",
            10,
            50_000,
            10_000,
            32,
            "Krizhevsky 2009",
            "cifar-10-batches-py/ or cifar-10-python.tar.gz",
        ),
        DataSet(
            "cifar100",
            "CIFAR-100, colour photographs",
            100,
            50_000,
            10_000,
            32,
            "Krizhevsky 2009",
            "cifar-100-python/ or cifar-100-python.tar.gz",
        ),
        DataSet(
            "tiny_imagenet",
            "Tiny ImageNet, colour photographs",
            200,
            100_000,
            10_000,
            64,
            "Stanford CS231N",
            "tiny-imagenet-200/ or tiny-imagenet-200*.zip",
        ),
        DataSet(
            "imagenet",
            "ImageNet (ILSVRC 2012), colour photographs",
            1000,
            1_281_167,
            50_000,
            224,
            "Russakovsky et al. 2015",
            "train/WNID/*.JPEG and val/WNID/*.JPEG",
        ),
        DataSet(
            "folder",
            "pictures of your own",
            None,
            None,
            None,
            224,
            "any folder or zip archive",
            "train/CLASS/** and val/CLASS/**, or CLASS/**",
        ),
    )
}
_IN_FILES: dict[str, tuple[Callable[[Path, int, Augmentation | None], Data], int]] = {
    "tiny_imagenet": (folders.tiny_imagenet, 64),
    "imagenet": (folders.imagenet, 1024),
    "folder": (folders.folder, 1024),
}
"""Data sets of picture files: how they are found, and the largest side to which they are resized."""


def names() -> tuple[str, ...]:
    """The data sets by name."""
    return tuple(_SETS)


def describe() -> tuple[DataSet, ...]:
    """What is known of each data set; needs no files."""
    return tuple(_SETS.values())


def load(  # noqa: PLR0913 (each is a question of its own, and all but two are rarely asked)
    name: str,
    root: str | Path | None = None,
    *,
    image_size: int | None = None,
    train_limit: int | None = None,
    test_limit: int | None = None,
    download: bool = False,
    streaming: bool | None = None,
    workers: int | None = None,
    skip_broken: bool = False,
    augmentation: Augmentation | None = None,
) -> Data:
    """A data set by name.

    Args:
        name: one of `names()`.
        root: folder with the data sets' files, or for pictures the folder or zip archive itself; by default
            $DNAT_DATA, then ./data.
        image_size: side in pixels, where the data set can be resized (digits, by default 16, and tiny_imagenet,
            64: 8 to 64; imagenet and folder, 224: 8 to 1024).
        train_limit, test_limit: use so many images, class-balanced: the first of each class.
        download: fetch missing files, of the CIFARs; without it nothing is ever fetched.
        streaming: whether pictures stay in their files and are decoded while the network trains; by default where
            they would take more than half of the free memory. Their pixels are the same.
        workers: processes that then decode them, by default one a core and at most 8; 0 decodes in this process.
            Their number changes no bit.
        skip_broken: leave out pictures that cannot be read, instead of refusing the whole; `Data.skipped` and its
            notes name them. Every picture is decoded once more for it.
        augmentation: of training images; by default the data set's own.

    Raises:
        ValueError: an unknown name, a size or limit that cannot be.
        DataError: files that are missing or damaged; the message names them and says what to do.

    >>> load("digits").example(2).shape
    torch.Size([2, 3, 16, 16])
    """
    if name not in _SETS:
        raise unknown("data set", name, _SETS)
    if workers is not None and workers < 0:
        raise UsageError(f"workers must be at least 0, not {workers}")
    if augmentation is not None:
        check_augmentation(augmentation)
    place = Path(root or os.environ.get("DNAT_DATA") or "data")
    if name in _IN_FILES:
        find, largest = _IN_FILES[name]
        size = _size(name, image_size, largest)
        found = find(place, size, augmentation)
        data = (_whole(found) if skip_broken else found).subset(train_limit, test_limit)
        return _streamed(data, workers) if _streams(data, streaming) else _in_memory(data)
    if streaming:
        raise UsageError(f"{name} is small and always held in memory: leave streaming out")
    if skip_broken:
        raise UsageError(
            f"{name} is no set of picture files, some of which could be broken: leave skip_broken out"
        )
    if name == "digits":
        data = _digits(_size(name, image_size, 64))
    else:
        if image_size not in (None, _SETS[name].size):
            raise UsageError(f"images of {name} are {_SETS[name].size} pixels wide, not {image_size}")
        data = cifar.load(place, name, download=download)
    data = data if augmentation is None else replace(data, augmentation=augmentation)
    return data.subset(train_limit, test_limit)


def _size(name: str, size: int | None, largest: int) -> int:
    size = _SETS[name].size if size is None else size
    if not 8 <= size <= largest:
        raise UsageError(f"{name} can be 8 to {largest} pixels wide, not {size}")
    return size


def _streams(data: Data, streaming: bool | None) -> bool:
    """Whether pictures stay in their files."""
    if data.augmentation.resized:
        if streaming is False:
            raise UsageError(
                f"{data.name}: crops that are resized are taken from the original pictures, which are decoded "
                "each time: leave streaming out, or take another augmentation"
            )
        return True
    if streaming is not None:
        return streaming
    # Training images are held a second time, with a border around them.
    (height, width), images = data.image_size, 2 * len(data.train_labels) + len(data.test_labels)
    return images * height * width * data.channels > free_memory() / 2


def _streamed(data: Data, workers: int | None) -> Data:
    return replace(data, workers=min(cores(), MOST_WORKERS) if workers is None else workers)


def _whole(data: Data) -> Data:
    """The pictures that can be read; the names of the others are noted."""
    kept: dict[str, Tensor] = {}
    broken: dict[str, str] = {}
    for split in ("train", "test"):
        files = getattr(data, f"{split}_images")
        found = files.broken(min(cores(), MOST_WORKERS))
        kept[split] = torch.tensor([i for i in range(len(files)) if i not in found], dtype=torch.int64)
        broken |= {files.name(i): text for i, text in found.items()}
    if not broken:
        return data
    changes: dict[str, Any] = {
        f"{split}_{what}": taken(getattr(data, f"{split}_{what}"), kept[split])
        for split, what in (
            ("train", "images"),
            ("train", "labels"),
            ("train", "index"),
            ("test", "images"),
            ("test", "labels"),
        )
    }
    told = "; ".join(list(broken.values())[:5])
    more = f"; and {len(broken) - 5} more" if len(broken) > 5 else ""
    note = f"{len(broken)} broken picture(s) are left out: {told}{more}"
    return replace(data, **changes, skipped=tuple(broken), notes=(*data.notes, note))


def _in_memory(data: Data) -> Data:
    train, test = data.train_images, data.test_images
    assert isinstance(train, ImageFiles)
    assert isinstance(test, ImageFiles)
    threads = min(cores(), MOST_WORKERS)
    return replace(data, train_images=train.pixels(threads), test_images=test.pixels(threads))


def _digits(size: int) -> Data:
    """1,797 digits of 8 x 8 pixels (`digits.txt` tells of them), up-sampled; 23 % of each class are test."""
    # A row for each digit: 64 pixels from 0 to 16, and the label.
    table = torch.from_numpy(np.loadtxt(Path(__file__).parent / "digits.csv.gz", delimiter=","))
    images = table[:, :64].reshape(-1, 1, 8, 8).float() * (255 / 16)
    if size != 8:
        images = torch.nn.functional.interpolate(images, (size, size), mode="bilinear", align_corners=False)
    pixels = images.round().to(torch.uint8).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()
    labels = table[:, 64].long()
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
