"""What a data set must be: splits that fit, labels that are classes, names of classes."""

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import DataError, WrongTypeError
from .augmentation import check_augmentation
from .files import ImageFiles
from .tensors import kind

if TYPE_CHECKING:
    from .images import Images


def check(data: "Images") -> None:
    """Refuse data that are none, and warn of classes without an image.

    Raises:
        DataError: see `Data`.
    """
    _check_names(data.name, data.classes)
    check_augmentation(data.augmentation)
    _check_split(data, "training", data.train_images, data.train_labels)
    _check_split(data, "test", data.test_images, data.test_labels)
    if data.train_images.shape[1:] != data.test_images.shape[1:]:
        sizes = tuple(data.train_images.shape[1:]), tuple(data.test_images.shape[1:])
        raise DataError(f"{data.name}: training images are {sizes[0]}, test images {sizes[1]}")
    if data.augmentation.resized and isinstance(data.train_images, Tensor):
        raise DataError(f"{data.name}: crops that are resized are taken from files; these images are in memory")
    present = set(data.train_labels.unique().tolist())
    missing = [name for i, name in enumerate(data.classes) if i not in present]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        # Four calls up stands whoever made the data.
        warnings.warn(f"{data.name}: no training image of class {', '.join(missing[:5])}{more}", stacklevel=4)


def _check_names(name: str, classes: object) -> None:
    """Refuse names of classes that are no texts, too few, or stand twice."""
    if not isinstance(classes, tuple) or not all(isinstance(c, str) for c in classes):
        raise WrongTypeError(f"{name}: classes must be names, a text for each class, not {str(classes)[:80]}")
    if len(classes) < 2:
        raise DataError(f"{name} has {len(classes)} class(es); at least 2 are needed")
    if len(set(classes)) < len(classes):
        twice = next(c for i, c in enumerate(classes) if c in classes[:i])
        raise DataError(f"{name}: the class {twice!r} is named twice")


def _check_split(data: "Images", split: str, images: object, labels: object) -> None:
    name, last = data.name, len(data.classes) - 1
    for what, value, kinds in (("images", images, (Tensor, ImageFiles)), ("labels", labels, (Tensor,))):
        if not isinstance(value, kinds):
            raise WrongTypeError(
                f"{name}: {split} {what} must be a tensor, not {type(value).__name__} (Data.from_tensors takes "
                "arrays)"
            )
    assert isinstance(images, Tensor | ImageFiles)
    assert isinstance(labels, Tensor)
    if isinstance(images, Tensor) and (images.dim() != 4 or images.dtype != torch.uint8):
        raise DataError(f"{name}: {split} images must be (N, H, W, C) uint8, not {kind(images)}")
    if labels.dim() != 1 or labels.dtype != torch.int64:
        raise DataError(f"{name}: {split} labels must be (N,) int64 class numbers, not {kind(labels)}")
    if len(images) != len(labels):
        raise DataError(f"{name}: {len(images)} {split} images, but {len(labels)} labels")
    if len(images) == 0:
        raise DataError(f"{name} has no {split} images")
    wrong = ((labels < 0) | (labels > last)).nonzero()
    if len(wrong):
        i = int(wrong[0])
        raise DataError(f"{name}: {split} image {i} has label {int(labels[i])}; classes are 0 to {last}")
