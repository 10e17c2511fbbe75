"""How training images are varied, from random numbers that are given: crops, flips, cutout, normalization.

Shapes: B images, H x W pixels, C channels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError, WrongTypeError
from .pictures import ATTEMPTS

DRAWS = 5
"""Numbers an image and epoch: crop row, crop column, flip, cutout row, cutout column."""


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied.

    Attributes:
        pad: a random crop after padding with so many black pixels; of no meaning with `resized`.
        flip: left and right are exchanged in half of the images.
        resized: a random crop of 8 to 100 % of the picture's area, 3:4 to 4:3 in shape, resized to the wanted
            side. It is taken from the original picture, so the images must be files that are decoded each time.

    Raises:
        ValueError, TypeError: a value that cannot be.
    """

    pad: int = 4
    flip: bool = True
    resized: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.pad, bool) or not isinstance(self.pad, int):
            raise WrongTypeError(f"pad must be a whole number of pixels, not {self.pad!r}")
        if self.pad < 0:
            raise UsageError(f"pad must be at least 0, not {self.pad}")
        for name in ("flip", "resized"):
            if not isinstance(getattr(self, name), bool):
                raise WrongTypeError(f"{name} must be True or False, not {getattr(self, name)!r}")

    @property
    def border(self) -> int:
        """Black pixels around each image from which it is cropped."""
        return 0 if self.resized else self.pad

    @property
    def draws(self) -> int:
        """Random numbers an image and epoch: those of `DRAWS`; with `resized`, two more for each attempt."""
        return DRAWS + 2 * ATTEMPTS * self.resized


def check_augmentation(given: object) -> None:
    """Refuse what is no `Augmentation`.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(given, Augmentation):
        raise WrongTypeError(f"augmentation must be a dnat.data.Augmentation, not {type(given).__name__}")


def augmented(
    padded: Tensor, where: Tensor, u: np.ndarray, augmentation: Augmentation
) -> tuple[Tensor, Tensor, Tensor]:
    """Crop and flip.

    Args:
        padded: (N, H + 2 border, W + 2 border, C) uint8.
        where: (B,) which of them, on their device.
        u: (B, 5 or more) numbers in [0, 1).
        augmentation: what to do.

    Returns:
        The images (B, H, W, C) uint8, and (B,) row and column of the centre of each cutout.
    """
    device, border = padded.device, augmentation.border
    stride, channels = padded.shape[2:]
    height, width = padded.shape[1] - 2 * border, stride - 2 * border
    # Whole numbers are made on the CPU in double precision, so that every device sees the same crops.
    scale = np.array([2 * border + 1, 2 * border + 1, 2, height, width])
    top, left, unflipped, row, column = (
        torch.from_numpy((u[:, :DRAWS] * scale).astype(np.int64)).to(device).unbind(1)
    )
    rows = top[:, None] + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).repeat(len(u), 1)
    if augmentation.flip:
        columns = torch.where(unflipped[:, None] == 0, width - 1 - columns, columns)
    columns = columns + left[:, None]
    # One gather of whole pixels from the padded images, seen as one long list: the fastest way that was
    # measured on CPUs, and a single kernel on a GPU.
    pixels = (where * len(padded[0]) * stride)[:, None, None] + rows[:, :, None] * stride + columns[:, None, :]
    images = padded.view(-1, channels).index_select(0, pixels.flatten())
    return images.view(len(u), height, width, channels), row, column


def pad(images: Tensor, border: int) -> Tensor:
    """(N, H, W, C) -> (N, H + 2 border, W + 2 border, C), black around the images."""
    return torch.nn.functional.pad(images, (0, 0, border, border, border, border))


def normalized(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(B, H, W, C) uint8 -> (B, C, H, W) float32, channels last in memory."""
    means = torch.tensor(mean, dtype=torch.float32, device=images.device)
    stds = torch.tensor(std, dtype=torch.float32, device=images.device)
    return ((images.float() / 255 - means) / stds).permute(0, 3, 1, 2)


def cut(images: Tensor, row: Tensor, column: Tensor, side: int) -> Tensor:
    """Set a square to 0 (the mean colour); its centre is anywhere in the image, so it may stick out (DARTS)."""
    masks = []
    for centre, size in ((row, images.shape[2]), (column, images.shape[3])):
        at = torch.arange(size, device=images.device)
        start = centre[:, None] - side // 2
        masks.append((at >= start) & (at < start + side))
    return images.masked_fill_((masks[0][:, :, None] & masks[1][:, None, :])[:, None], 0.0)
