"""A user's own tensors or arrays -> images and labels as `Data` holds them, and choices among them."""

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, UsageError, WrongTypeError


def balanced(labels: Tensor, limit: int, classes: int, what: str) -> Tensor:
    """The positions of the first images of each class, `limit` in all, as many of each as it takes.

    Raises:
        ValueError: fewer images than classes, or more of a class than there are.
    """
    if limit < classes:
        raise UsageError(f"{what}: {limit} images are too few for {classes} classes")
    chosen = []
    for label in range(classes):
        found = (labels == label).nonzero().flatten()
        wanted = limit // classes + (label < limit % classes)
        if wanted > len(found):
            raise UsageError(
                f"{what}: {limit} would take {wanted} images of class {label}, which has {len(found)}"
            )
        chosen.append(found[:wanted])
    return torch.cat(chosen).sort().values


def pair_of(name: str, split: str, given: object) -> tuple[Tensor, Tensor]:
    """Images and labels of a split as tensors, from a pair of tensors, arrays or lists of them.

    Raises:
        TypeError: it is no pair, or one of something else.
        DataError: arrays or lists that no tensor holds as they are.
    """
    if not isinstance(given, tuple | list) or len(given) != 2:
        what = f"a {type(given).__name__} of {len(given)}" if isinstance(given, tuple | list) else _named(given)
        raise WrongTypeError(f"{name}: the {split} data must be a pair (images, labels), not {what}")
    images, labels = given
    return tensor_of(f"{name}: {split} images", images), tensor_of(f"{name}: {split} labels", labels)


def tensor_of(what: str, given: object) -> Tensor:
    """A tensor with the values of a tensor, an array, or a list (of tensors, arrays or numbers).

    Args:
        what: it is, for messages.
        given: it is copied, unless it is a tensor.

    Raises:
        TypeError: something else.
        DataError: texts or objects, rows of different lengths, numbers beyond 64 bits, a tensor without values.
    """
    if isinstance(given, Tensor):
        if given.is_meta or given.layout != torch.strided:
            lacking = (
                "lies on the meta device and has no values" if given.is_meta else f"has the layout {given.layout}"
            )
            raise DataError(f"{what}: the tensor {lacking}")
        return given.detach()
    if not isinstance(given, list | tuple) and not hasattr(given, "__array__"):
        raise WrongTypeError(f"{what} must be a tensor, a NumPy array or a list of such, not {_named(given)}")
    if isinstance(given, list | tuple) and given and all(isinstance(part, Tensor) for part in given):
        if len({part.shape for part in given}) > 1:
            raise DataError(f"{what}: the tensors of the list have different shapes")
        return torch.stack([tensor_of(what, part) for part in given])
    try:
        array = np.array(given)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{what} make no array: {error}") from error
    return _exactly(what, array)


def _exactly(what: str, array: np.ndarray) -> Tensor:
    """An array as a tensor, if there is one with the same values."""
    if array.dtype.kind == "u" and array.dtype.itemsize > 1 and (array <= 2**63 - 1).all():
        array = array.astype(np.int64)
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        hint = "; number the classes from 0, and give their names as classes=" if array.dtype.kind in "US" else ""
        raise DataError(
            f"{what} are an array of {array.dtype}, which no tensor holds: numbers are needed{hint}"
        ) from error


def _named(given: object) -> str:
    kind = type(given).__name__
    return f"{kind}; take its images and labels out as tensors first" if "Data" in kind else kind


def moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sample deviation of each channel of (N, H, W, C) uint8, as numbers from 0 to 1: (C,) float64.

    Counted by value: a million images need no copy in double precision.
    """
    values = torch.arange(256, dtype=torch.float64, device=images.device) / 255
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in images.unbind(3)]).double()
    number = counts.sum(1)
    mean = (counts * values).sum(1) / number
    squares = (counts * (values - mean[:, None]).square()).sum(1)
    return mean, (squares / (number - 1)).sqrt()


def pixels_of(name: str, split: str, images: Tensor) -> Tensor:
    """(N, C, H, W), uint8 or from 0 to 1 -> (N, H, W, C) uint8.

    Raises:
        DataError: they are something else; the message names the first image that is wrong.
    """
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        hint = "; move the channels to the front" if images.dim() == 4 and images.shape[3] in (1, 3) else ""
        raise DataError(f"{name}: {split} images must be (N, 1 or 3, H, W), not {kind(images)}{hint}")
    if not len(images):
        raise DataError(f"{name} has no {split} images")
    if 0 in images.shape:
        raise DataError(f"{name}: {split} images have {images.shape[2]} x {images.shape[3]} pixels")
    if images.is_floating_point():
        broken = (~images.isfinite()).flatten(1).any(1).nonzero()
        if len(broken):
            raise DataError(f"{name}: {split} image {int(broken[0])} holds NaN or infinity")
        low, high = images.min().item(), images.max().item()
        if low < 0 or high > 1:
            raise DataError(f"{name}: floating point {split} images must lie in 0 to 1, not {low:g} to {high:g}")
        images = (images * 255).round()
    elif images.dtype != torch.uint8:
        raise DataError(f"{name}: {split} images must be uint8 or floating point, not {kind(images)}")
    images = images.to(torch.uint8)
    return images.permute(0, 2, 3, 1).contiguous()


def labels_of(name: str, labels: Tensor) -> Tensor:
    """(N,) class numbers as int64.

    Raises:
        DataError: they are something else.
    """
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.dim() != 1:
        raise DataError(f"{name}: labels must be (N,) integer class numbers, not {kind(labels)}")
    return labels.long()


def class_numbers(name: str, splits: dict[str, Tensor]) -> tuple[str, ...]:
    """The names of classes that have none: their numbers, from 0 to the largest label.

    Args:
        name: of the data set.
        splits: the labels of each, (N,) int64.

    Raises:
        DataError: a negative label, or one that would make more classes than there are images.
    """
    images = max(len(labels) for labels in splits.values())
    for split, labels in splits.items():
        wrong = ((labels < 0) | (labels >= max(images, 2))).nonzero()
        if len(wrong):
            i = int(wrong[0])
            raise DataError(
                f"{name}: {split} image {i} has label {int(labels[i])}; labels are class numbers from 0, fewer "
                f"than the {images} images; if there are more classes than images, name them with classes="
            )
    return tuple(map(str, range(max((int(t.max()) + 1 for t in splits.values() if len(t)), default=0))))


def kind(tensor: Tensor) -> str:
    """A tensor's shape and type, for messages."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
