"""A user's own tensors -> images and labels as `Data` holds them, and choices among them."""

import torch
from torch import Tensor

from ..errors import DataError, UsageError


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


def kind(tensor: Tensor) -> str:
    """A tensor's shape and type, for messages."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
