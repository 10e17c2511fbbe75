"""A data set in tensors or files: splits, normalization, augmentation with draws keyed by seed, epoch and index.

The random numbers that augment an image depend on the seed, the epoch and the image's index in the full training
set, and on nothing else: not on the batch it falls into, a subset, the method, or the network. So methods that
are compared at one seed see the same pixels.

Shapes: N images, H x W pixels, C channels.
"""

import hashlib
import warnings
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError as DataError
from ..seeds import Stream, numpy_generator
from .augmentation import Augmentation as Augmentation
from .augmentation import augmented, cut, normalized, pad
from .checking import check
from .files import ImageFiles
from .preprocess import Preprocess, positions
from .source import steps_of, usual_batch
from .streaming import Chosen, Decoder
from .tensors import balanced, class_numbers, labels_of, moments, pair_of, pixels_of


@dataclass(frozen=True, eq=False)
class Images:
    """Images of two splits with their labels, in memory or in files: what a `Data` holds.

    Attributes:
        name: for messages and records.
        classes: names of the classes.
        train_images, test_images: (N, H, W, C) uint8, or files that are decoded when they are needed.
        train_labels, test_labels: (N,) int64.
        train_index: (N,) int64, each training image's index in the full training set (subsets keep it).
        mean, std: a number each channel, for pixels from 0 to 1.
        augmentation: of training images.
        notes: what a user should know of them: which part it is, how they were divided.
        skipped: names of pictures that are left out, because they cannot be read.
        workers: processes that decode files; their number changes no bit.
    """

    name: str
    classes: tuple[str, ...]
    train_images: Tensor | ImageFiles
    train_labels: Tensor
    train_index: Tensor
    test_images: Tensor | ImageFiles
    test_labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation = field(default_factory=Augmentation)
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    workers: int = 0

    def __post_init__(self) -> None:
        check(self)

    @classmethod
    def from_tensors(
        cls,
        name: str,
        train: tuple[Any, Any],
        test: tuple[Any, Any],
        *,
        classes: Sequence[str] | None = None,
        augmentation: Augmentation | None = None,
    ) -> Self:
        """A data set of your own.

        Args:
            name: for messages and records.
            train, test: images and labels, as tensors, NumPy arrays, or lists of them. Images are (N, C, H, W)
                with 1 or 3 channels, uint8, or floating point from 0 to 1 (which is stored with 8 bits); labels
                are (N,) integers from 0.
            classes: names of the classes; by default their numbers.
            augmentation: by default crops with 1/8 of the width as padding, and flips.

        Raises:
            DataError: images or labels that cannot be used; the message names the image.
            TypeError: arguments of another type.

        >>> x, y = torch.rand(8, 3, 16, 16), torch.arange(8) % 2
        >>> Data.from_tensors("mine", (x, y), (x, y)).example(2).shape
        torch.Size([2, 3, 16, 16])
        """
        train_images, train_labels = pair_of(name, "training", train)
        test_images, test_labels = pair_of(name, "test", test)
        images = pixels_of(name, "training", train_images)
        labels, test_labels = labels_of(name, train_labels), labels_of(name, test_labels)
        if classes is None:
            classes = class_numbers(name, {"training": labels, "test": test_labels})
        mean, std = moments(images)
        return cls(
            name=name,
            classes=_tuple(classes),
            train_images=images,
            train_labels=labels,
            train_index=torch.arange(len(labels)),
            test_images=pixels_of(name, "test", test_images),
            test_labels=test_labels,
            mean=tuple(mean.tolist()),
            std=tuple(std.clamp(min=1e-3).tolist()),
            augmentation=Augmentation(images.shape[2] // 8, True) if augmentation is None else augmentation,
        )

    @property
    def device(self) -> torch.device:
        """Where labels lie and batches come out."""
        return self.train_labels.device

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

    @property
    def usual_batch(self) -> int:
        """How many images are tested at a time."""
        return usual_batch(self.image_size)

    @property
    def preprocess(self) -> Preprocess:
        """What makes a picture into what a network is shown of the test images."""
        margin = self.test_images.margin if isinstance(self.test_images, ImageFiles) else 1.0
        return Preprocess(self.classes, self.image_size, self.mean, self.std, margin)

    def numbered(self, classes: Sequence[str]) -> Self:
        """The same images with labels that are places in a list of classes, which these are some of.

        So they can be shown to a network whose outputs are that list.

        Raises:
            DataError: classes that are not in the list.
        """
        if tuple(classes) == self.classes:
            return self
        where = torch.tensor(positions(self.classes, classes, self.name), device=self.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of classes that are not among these images
            return replace(
                self,
                classes=tuple(classes),
                train_labels=where[self.train_labels],
                test_labels=where[self.test_labels],
            )

    def fingerprint(self) -> str:
        """A SHA-256 over pixels and labels of both splits; of files, see `ImageFiles.digest`."""
        digest = hashlib.sha256(f"{self.name} {self.classes}".encode())
        for tensor in (self.train_images, self.train_labels, self.train_index, self.test_images, self.test_labels):
            if isinstance(tensor, ImageFiles):
                digest.update(tensor.digest().encode())
            else:
                _hash(digest, tensor)
        return digest.hexdigest()

    @cached_property
    def _content(self) -> str:
        files = any(isinstance(images, ImageFiles) for images in (self.train_images, self.test_images))
        return f"{'files' if files else 'memory'} {self.fingerprint()}"

    def content(self) -> str:
        """How the images are held ("memory" or "files") and the fingerprint, to be compared within either."""
        return self._content

    def identity(self) -> str:
        """A SHA-256 over what tells data sets apart without reading pixels: classes, labels, sizes, normalization.

        It is the same where the images are in memory and where they stay in their files.
        """
        what = (self.name, self.classes, self.image_size, self.channels, self.mean, self.std, self.augmentation)
        digest = hashlib.sha256(repr(what).encode())
        for tensor in (self.train_labels, self.train_index, self.test_labels):
            _hash(digest, tensor)
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> Self:
        """The same data on a device; files stay files, and their batches come on the device."""
        device = torch.device(device)
        if device == self.device:
            return self
        names = ("train_images", "train_labels", "test_images", "test_labels")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said when the data were made
            held = {name: getattr(self, name) for name in names}
            moved: dict[str, Any] = {k: v.to(device) for k, v in held.items() if isinstance(v, Tensor)}
            return replace(self, **moved)

    def subset(self, train_limit: int | None = None, test_limit: int | None = None) -> Self:
        """The first images of each class, as many of each as it takes, in their order.

        Raises:
            ValueError: fewer images than classes, or more of a class than there are.
        """
        changes: dict[str, Any] = {}
        for split, limit in (("train", train_limit), ("test", test_limit)):
            if limit is None:
                continue
            labels = getattr(self, f"{split}_labels")
            chosen = balanced(labels.cpu(), limit, self.num_classes, f"{split} limit of {self.name}")
            for name in ("images", "labels", "index") if split == "train" else ("images", "labels"):
                held = getattr(self, f"{split}_{name}")
                changes[f"{split}_{name}"] = taken(held, chosen)
        return replace(self, **changes)


@dataclass(frozen=True, eq=False)
class Data(Images):
    """A data set for classification, and its batches; see `Images` for what it holds.

    Raises:
        DataError: empty splits, fewer than two classes, labels that are no classes, shapes that do not fit.
    """

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: neither processes nor what can be made again."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def order(self, seed: int, epoch: int) -> Tensor:
        """The order in which an epoch visits the training images: a permutation of 0 to N - 1, on the CPU."""
        return torch.from_numpy(numpy_generator(seed, Stream.ORDER, epoch).permutation(len(self.train_labels)))

    def draws(self, seed: int, epoch: int) -> np.ndarray:
        """The random numbers of an epoch's augmentation: (N, 5 or more) in [0, 1), a row each training image."""
        generator = numpy_generator(seed, Stream.AUGMENTATION, epoch)
        # Row by row from the first image of the full set on: a row depends on its index alone.
        index = self.train_index.cpu().numpy()
        return generator.random((int(index.max()) + 1, self.augmentation.draws))[index]

    @property
    def train_count(self) -> int:
        """How many training images there are."""
        return len(self.train_labels)

    @property
    def test_count(self) -> int:
        """How many test images there are."""
        return len(self.test_labels)

    def steps(self, batch_size: int) -> int:
        """Steps of an epoch; see `steps_of`."""
        return steps_of(len(self.train_labels), batch_size)

    def train_batches(
        self,
        seed: int,
        epoch: int,
        batch_size: int,
        *,
        start: int = 0,
        cutout: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> Generator[tuple[Tensor, Tensor], None, None]:
        """An epoch's training images, augmented and normalized, in the epoch's order.

        Args:
            seed, epoch: decide order and augmentation.
            batch_size: images a batch; the last one may have fewer.
            start: the first batch that is wanted, counted from 0; what follows is the same wherever one starts.
            cutout: side in pixels of the square that is set to the mean colour; 0 for none.
            part: (which, of how many) equal parts of each batch is wanted, in the batch's order; a batch of fewer
                images than parts is given whole.

        Yields:
            Batches as `train_batch` returns them. Close the generator if it is not run to its end.

        Raises:
            DataError: a file that cannot be read; the message names it.
        """
        order, draws = self.order(seed, epoch), self.draws(seed, epoch)
        whole = (order[i : i + batch_size] for i in range(start * batch_size, len(order), batch_size))
        chosen = [_part(positions, *part) for positions in whole]
        if isinstance(self.train_images, Tensor):
            for positions in chosen:
                yield self.train_batch(positions, draws, cutout)
            return
        crops = draws if self.augmentation.resized else None
        with closing(self._decoder.batches(Chosen(0, chosen, crops))) as decoded:
            for positions, images in zip(chosen, decoded, strict=True):
                yield self._varied(images, positions, draws, cutout)

    def train_batch(self, positions: Tensor, draws: np.ndarray | None, cutout: int = 0) -> tuple[Tensor, Tensor]:
        """Training images, augmented and normalized.

        Args:
            positions: (B,) which images, on the CPU.
            draws: from `draws`, for the whole epoch; None leaves the images as they are.
            cutout: side in pixels of the square that is set to the mean colour; 0 for none.

        Returns:
            Images (B, C, H, W) float32 with channels last in memory, and labels (B,).
        """
        if isinstance(self.train_images, Tensor):
            images = self.train_images[positions.to(self.device)]
        else:
            rows = positions.numpy()
            crops = draws[rows] if draws is not None and self.augmentation.resized else None
            images = self.train_images.batch(rows, crops)
        return self._varied(images, positions, draws, cutout)

    def train_inputs(self, count: int, seed: int) -> list[Tensor]:
        """One batch (N, C, H, W) of training images as they are; the seed says which ones."""
        order = numpy_generator(seed, Stream.ORDER, "sensitivity").permutation(len(self.train_labels))
        return [self.train_batch(torch.from_numpy(order[:count]).long(), None)[0]]

    def _varied(
        self, images: Tensor, positions: Tensor, draws: np.ndarray | None, cutout: int
    ) -> tuple[Tensor, Tensor]:
        """As `train_batch`, of its images (B, H, W, C) as they are held."""
        images, labels = images.to(self.device, non_blocking=True), self.train_labels[positions.to(self.device)]
        if draws is None:
            return normalized(images, self.mean, self.std), labels
        every = torch.arange(len(images), device=self.device)
        padded = pad(images, self.augmentation.border)
        images, row, column = augmented(padded, every, draws[positions.numpy()], self.augmentation)
        images = normalized(images, self.mean, self.std)
        return cut(images, row, column, cutout) if cutout else images, labels

    @cached_property
    def _decoder(self) -> Decoder:
        """Decodes files, of training (0) and of test images (1); its workers last as long as the data."""
        splits = (self.train_images, self.test_images)
        files = tuple(images if isinstance(images, ImageFiles) else None for images in splits)
        return Decoder(files, self.workers, self.device.type == "cuda")

    def test_batches(
        self, batch_size: int = 500, *, part: tuple[int, int] = (0, 1)
    ) -> Generator[tuple[Tensor, Tensor], None, None]:
        """The test images in order, normalized: (B, C, H, W) and labels (B,).

        Args:
            batch_size: images a batch; the last one may have fewer.
            part: (which, of how many): every how many batches are wanted, beginning with which.

        Raises:
            DataError: a file that cannot be read; the message names it.
        """
        parts = torch.arange(len(self.test_labels)).split(batch_size)[part[0] :: part[1]]
        if isinstance(self.test_images, Tensor):
            for part in parts:
                here = slice(int(part[0]), int(part[-1]) + 1)
                yield normalized(self.test_images[here], self.mean, self.std), self.test_labels[here]
            return
        with closing(self._decoder.batches(Chosen(1, parts, None))) as decoded:
            for part, images in zip(parts, decoded, strict=True):
                here = slice(int(part[0]), int(part[-1]) + 1)
                images = images.to(self.device, non_blocking=True)
                yield normalized(images, self.mean, self.std), self.test_labels[here]

    def example(self, n: int = 2) -> Tensor:
        """The first test images, normalized: (n, C, H, W)."""
        images = self.test_images[:n]
        images = images if isinstance(images, Tensor) else images.pixels()
        return normalized(images.to(self.device), self.mean, self.std)


def _tuple(classes: Any) -> Any:
    return tuple(classes) if isinstance(classes, Iterable) and not isinstance(classes, str) else classes


def _part(positions: Tensor, which: int, parts: int) -> Tensor:
    """One of equal parts of a batch; the whole batch where it has fewer images than parts."""
    n = len(positions)
    return positions if n < parts else positions[n * which // parts : n * (which + 1) // parts]


def taken(held: Any, positions: Tensor) -> Any:
    """Some of the images, files or labels that a `Data` holds; `positions` lie on the CPU."""
    return held[positions.to(held.device) if isinstance(held, Tensor) else positions]


def _hash(digest: Any, tensor: Tensor) -> None:
    digest.update(str(tuple(tensor.shape)).encode())
    digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
