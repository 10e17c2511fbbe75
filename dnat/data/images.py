"""A data set in tensors: splits, normalization, and augmentation whose draws are keyed by seed, epoch and index.

The random numbers that augment an image depend on the seed, the epoch and the image's index in the full training
set, and on nothing else: not on the batch it falls into, a subset, the method, or the network. So methods that
are compared at one seed see the same pixels.

Shapes: N images, H x W pixels, C channels.
"""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..seeds import Stream, numpy_generator

DRAWS = 5
"""Numbers an image and epoch: crop row, crop column, flip, cutout row, cutout column."""


class DataError(ValueError):
    """Data that are missing, damaged or of no use."""

    exit_code = 65


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied: a random crop after padding with `pad` black pixels, a random flip."""

    pad: int = 4
    flip: bool = True


@dataclass(frozen=True, eq=False)
class Data:
    """A data set for classification, whole in memory.

    Attributes:
        name: for messages and records.
        classes: names of the classes.
        train_images, test_images: (N, H, W, C) uint8.
        train_labels, test_labels: (N,) int64.
        train_index: (N,) int64, each training image's index in the full training set (subsets keep it).
        mean, std: a number each channel, for pixels from 0 to 1.
        augmentation: of training images.

    Raises:
        DataError: empty splits, fewer than two classes, labels that are no classes, shapes that do not fit.
    """

    name: str
    classes: tuple[str, ...]
    train_images: Tensor
    train_labels: Tensor
    train_index: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise DataError(f"{self.name} has {len(self.classes)} class(es); at least 2 are needed")
        for split, images, labels in (
            ("training", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ):
            self._check_split(split, images, labels)
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            sizes = tuple(self.train_images.shape[1:]), tuple(self.test_images.shape[1:])
            raise DataError(f"{self.name}: training images are {sizes[0]}, test images {sizes[1]}")
        missing = set(range(len(self.classes))) - set(self.train_labels.unique().tolist())
        if missing:
            found = ", ".join(self.classes[i] for i in sorted(missing))
            warnings.warn(f"{self.name}: no training image of class {found}", stacklevel=3)

    def _check_split(self, split: str, images: Tensor, labels: Tensor) -> None:
        if images.dim() != 4 or images.dtype != torch.uint8:
            raise DataError(f"{self.name}: {split} images must be (N, H, W, C) uint8, not {_kind(images)}")
        if labels.dim() != 1 or labels.dtype != torch.int64:
            raise DataError(f"{self.name}: {split} labels must be (N,) int64 class numbers, not {_kind(labels)}")
        if len(images) != len(labels):
            raise DataError(f"{self.name}: {len(images)} {split} images, but {len(labels)} labels")
        if len(images) == 0:
            raise DataError(f"{self.name} has no {split} images")
        wrong = ((labels < 0) | (labels >= len(self.classes))).nonzero()
        if len(wrong):
            i = int(wrong[0])
            last, label = len(self.classes) - 1, int(labels[i])
            raise DataError(f"{self.name}: {split} image {i} has label {label}; classes are 0 to {last}")

    @classmethod
    def from_tensors(
        cls,
        name: str,
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        *,
        classes: Sequence[str] | None = None,
        augmentation: Augmentation | None = None,
    ) -> "Data":
        """A data set of your own.

        Args:
            name: for messages and records.
            train, test: images and labels. Images are (N, C, H, W) with 1 or 3 channels, uint8, or floating point
                from 0 to 1 (which is stored with 8 bits); labels are (N,) integers from 0.
            classes: names of the classes; by default their numbers.
            augmentation: by default crops with 1/8 of the width as padding, and flips.

        Raises:
            DataError: images or labels that cannot be used; the message names the image.

        >>> x, y = torch.rand(8, 3, 16, 16), torch.arange(8) % 2
        >>> Data.from_tensors("mine", (x, y), (x, y)).example(2).shape
        torch.Size([2, 3, 16, 16])
        """
        (train_images, train_labels), (test_images, test_labels) = train, test
        images = _pixels(name, "training", train_images)
        labels, test_labels = _labels(name, train_labels), _labels(name, test_labels)
        if classes is None:
            count = max((int(t.max()) + 1 for t in (labels, test_labels) if len(t)), default=0)
            classes = tuple(map(str, range(count)))
        scaled = images.double().flatten(0, 2) / 255
        return cls(
            name=name,
            classes=tuple(classes),
            train_images=images,
            train_labels=labels,
            train_index=torch.arange(len(labels)),
            test_images=_pixels(name, "test", test_images),
            test_labels=test_labels,
            mean=tuple(scaled.mean(0).tolist()),
            std=tuple(scaled.std(0).clamp(min=1e-3).tolist()),
            augmentation=augmentation or Augmentation(images.shape[2] // 8, True),
        )

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        _, height, width, _ = self.train_images.shape
        return height, width

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.train_images.shape[3]

    @property
    def num_classes(self) -> int:
        """Classes to tell apart."""
        return len(self.classes)

    def fingerprint(self) -> str:
        """A SHA-256 over all pixels and labels of both splits."""
        digest = hashlib.sha256(f"{self.name} {self.classes}".encode())
        for tensor in (self.train_images, self.train_labels, self.train_index, self.test_images, self.test_labels):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> "Data":
        """The same data on a device."""
        device = torch.device(device)
        if device == self.train_images.device:
            return self
        names = ("train_images", "train_labels", "test_images", "test_labels")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said when the data were made
            moved: dict[str, Any] = {name: getattr(self, name).to(device) for name in names}
            return replace(self, **moved)

    def subset(self, train_limit: int | None = None, test_limit: int | None = None) -> "Data":
        """The first images of each class, as many of each as it takes, in their order.

        Raises:
            ValueError: fewer images than classes, or more of a class than there are.
        """
        changes: dict[str, Any] = {}
        for split, limit in (("train", train_limit), ("test", test_limit)):
            if limit is None:
                continue
            labels = getattr(self, f"{split}_labels")
            chosen = _balanced(labels.cpu(), limit, self.num_classes, f"{split} limit of {self.name}")
            for name in ("images", "labels", "index") if split == "train" else ("images", "labels"):
                tensor = getattr(self, f"{split}_{name}")
                changes[f"{split}_{name}"] = tensor[chosen.to(tensor.device)]
        return replace(self, **changes)

    def order(self, seed: int, epoch: int) -> Tensor:
        """The order in which an epoch visits the training images: a permutation of 0 to N - 1, on the CPU."""
        return torch.from_numpy(numpy_generator(seed, Stream.ORDER, epoch).permutation(len(self.train_labels)))

    def draws(self, seed: int, epoch: int) -> np.ndarray:
        """The random numbers of an epoch's augmentation: (N, 5) in [0, 1), a row each training image."""
        generator = numpy_generator(seed, Stream.AUGMENTATION, epoch)
        # Row by row from the first image of the full set on: a row depends on its index alone.
        index = self.train_index.cpu().numpy()
        return generator.random((int(index.max()) + 1, DRAWS))[index]

    def train_batch(self, positions: Tensor, draws: np.ndarray | None, cutout: int = 0) -> tuple[Tensor, Tensor]:
        """Training images, augmented and normalized.

        Args:
            positions: (B,) which images, on the CPU.
            draws: from `draws`, for the whole epoch; None leaves the images as they are.
            cutout: side in pixels of the square that is set to the mean colour; 0 for none.

        Returns:
            Images (B, C, H, W) float32 with channels last in memory, and labels (B,).
        """
        device = self.train_images.device
        where = positions.to(device)
        if draws is None:
            return self._normalized(self.train_images[where]), self.train_labels[where]
        pad = self.augmentation.pad
        height, width = self.image_size
        # Whole numbers are made on the CPU in double precision, so that every device sees the same crops.
        u = draws[positions.numpy()]
        scale = np.array([2 * pad + 1, 2 * pad + 1, 2, height, width])
        top, left, unflipped, row, column = torch.from_numpy((u * scale).astype(np.int64)).to(device).unbind(1)
        rows = top[:, None] + torch.arange(height, device=device)
        columns = torch.arange(width, device=device).repeat(len(u), 1)
        if self.augmentation.flip:
            columns = torch.where(unflipped[:, None] == 0, width - 1 - columns, columns)
        columns = columns + left[:, None]
        # One gather of whole pixels from the padded images, seen as one long list: the fastest way that was
        # measured on CPUs, and a single kernel on a GPU.
        padded = self._padded
        stride = width + 2 * pad
        pixels = (where * len(padded[0]) * stride)[:, None, None] + rows[:, :, None] * stride + columns[:, None, :]
        images = padded.view(-1, self.channels).index_select(0, pixels.flatten())
        out = self._normalized(images.view(len(u), height, width, self.channels))
        return (_cut(out, row, column, cutout) if cutout else out), self.train_labels[where]

    @property
    def _padded(self) -> Tensor:
        """(N, H + 2 pad, W + 2 pad, C) uint8, black around the images; made once."""
        if "_padded_images" not in self.__dict__:
            pad = self.augmentation.pad
            padded = torch.nn.functional.pad(self.train_images, (0, 0, pad, pad, pad, pad))
            object.__setattr__(self, "_padded_images", padded)
        return self.__dict__["_padded_images"]

    def _normalized(self, images: Tensor) -> Tensor:
        """(B, H, W, C) uint8 -> (B, C, H, W) float32, channels last in memory."""
        mean = torch.tensor(self.mean, dtype=torch.float32, device=images.device)
        std = torch.tensor(self.std, dtype=torch.float32, device=images.device)
        return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)

    def test_batches(self, batch_size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """The test images in order, normalized: (B, C, H, W) and labels (B,)."""
        for start in range(0, len(self.test_labels), batch_size):
            part = slice(start, start + batch_size)
            yield self._normalized(self.test_images[part]), self.test_labels[part]

    def example(self, n: int = 2) -> Tensor:
        """The first test images, normalized: (n, C, H, W)."""
        return self._normalized(self.test_images[:n])


def _cut(images: Tensor, row: Tensor, column: Tensor, side: int) -> Tensor:
    """Set a square to 0 (the mean colour); its centre is anywhere in the image, so it may stick out (DARTS)."""
    masks = []
    for centre, size in ((row, images.shape[2]), (column, images.shape[3])):
        at = torch.arange(size, device=images.device)
        start = centre[:, None] - side // 2
        masks.append((at >= start) & (at < start + side))
    return images.masked_fill_((masks[0][:, :, None] & masks[1][:, None, :])[:, None], 0.0)


def _balanced(labels: Tensor, limit: int, classes: int, what: str) -> Tensor:
    if limit < classes:
        raise ValueError(f"{what}: {limit} images are too few for {classes} classes")
    chosen = []
    for label in range(classes):
        found = (labels == label).nonzero().flatten()
        wanted = limit // classes + (label < limit % classes)
        if wanted > len(found):
            raise ValueError(
                f"{what}: {limit} would take {wanted} images of class {label}, which has {len(found)}"
            )
        chosen.append(found[:wanted])
    return torch.cat(chosen).sort().values


def _pixels(name: str, split: str, images: Tensor) -> Tensor:
    """(N, C, H, W), uint8 or from 0 to 1 -> (N, H, W, C) uint8."""
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        hint = "; move the channels to the front" if images.dim() == 4 and images.shape[3] in (1, 3) else ""
        raise DataError(f"{name}: {split} images must be (N, 1 or 3, H, W), not {_kind(images)}{hint}")
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
        raise DataError(f"{name}: {split} images must be uint8 or floating point, not {_kind(images)}")
    images = images.to(torch.uint8)
    return images.permute(0, 2, 3, 1).contiguous()


def _labels(name: str, labels: Tensor) -> Tensor:
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.dim() != 1:
        raise DataError(f"{name}: labels must be (N,) integer class numbers, not {_kind(labels)}")
    return labels.long()


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
