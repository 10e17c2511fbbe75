"""A picture's bytes -> RGB pixels of a square, by Pillow.

Every picture is turned as its EXIF orientation says, made RGB (transparency is dropped, as `convert("RGB")` does;
16 bits become the upper 8), and one square or rectangle of it is resized to the wanted side by Pillow's bilinear
filter, which averages over the pixels that it leaves out (antialiasing). Large JPEGs are decoded at a part of
their size.
"""

import io
import math
import re

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError, features

from ..errors import DataError, UsageError

_ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "BMP": (".bmp", ".dib"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
}
_DEPENDS = {"AVIF": "avif", "JPEG2000": "jpg_2000"}
"""Formats that only some builds of Pillow read, and what those have then."""


def _is_read(form: str) -> bool:
    needed = _DEPENDS.get(form)
    # Older releases do not know the name, and warn if they are asked.
    return needed is None or (needed in {*features.modules, *features.codecs} and bool(features.check(needed)))


FORMATS = tuple(form for form in _ENDINGS if _is_read(form))
"""Formats that are read, as Pillow names them; no other of Pillow's readers is ever run."""
SUFFIXES = tuple(ending for form in FORMATS for ending in _ENDINGS[form])
"""How names of pictures end, in small letters."""
ATTEMPTS = 10
"""How often a random crop of a fitting shape is looked for, as in torchvision's RandomResizedCrop."""
SCALE = (0.08, 1.0)
"""Share of the picture's area that a random crop covers."""
RATIO = (3 / 4, 4 / 3)
"""Width of a random crop by its height."""
REDUCING_GAP = 2.0
"""How many times larger than wanted a JPEG that is decoded at less than its size must still be."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture of an EXIF orientation upright."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


def decode(
    content: bytes, what: str, side: int, margin: float = 1.0, draws: np.ndarray | None = None
) -> np.ndarray:
    """Pixels (side, side, 3) uint8 of a picture.

    Args:
        content: the file's bytes.
        what: the file, for messages.
        side: in pixels.
        margin: without draws, the short side is resized to `side * margin` before the centre is taken.
        draws: numbers from 0 to 1 that place a random crop; see `random_box`.

    Raises:
        DataError: no picture, a truncated one, or one of more pixels than Pillow's limit.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise UsageError(f"{image.width} x {image.height} pixels; Pillow's limit is {limit:,}")
            return _square(image, side, margin, draws)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise all kinds of errors at broken files
        raise DataError(f"{what} cannot be read as a picture: {_why(content, error)}") from error


def _why(content: bytes, error: Exception) -> str:
    """What is wrong with a picture, without the objects that Pillow's messages show."""
    if not content:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return f"cannot identify its format; {', '.join(FORMATS)} are read"
    return re.sub(r"<[^<>]* object at 0x[0-9a-f]+>", "the file", str(error)) or type(error).__name__


def centre_box(width: int, height: int, margin: float = 1.0) -> Box:
    """The square in the middle whose side is the picture's short side divided by `margin`."""
    side = min(width, height) / margin
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_box(width: int, height: int, draws: np.ndarray) -> tuple[int, int, int, int]:
    """A random rectangle of a picture (Inception's crop), from numbers in [0, 1).

    Args:
        width, height: of the picture in pixels.
        draws: row and column of the place, three numbers that are not used here, then for each of `ATTEMPTS` a
            share of the area and a shape. The first fitting one counts; if none fits, the largest centred
            rectangle of an allowed shape is taken.
    """
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for share, shape in draws[5:].reshape(ATTEMPTS, 2).tolist():
        area = width * height * (SCALE[0] + (SCALE[1] - SCALE[0]) * share)
        ratio = math.exp(low + (high - low) * shape)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(draws[0] * (height - h + 1)), int(draws[1] * (width - w + 1))
            return left, top, left + w, top + h
    w = min(width, max(round(height * RATIO[1]), 1))
    h = min(height, max(round(width / RATIO[0]), 1))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _square(image: Image.Image, side: int, margin: float, draws: np.ndarray | None) -> np.ndarray:
    """The wanted part of a picture that is open, but not yet decoded."""
    orientation = _orientation(image)
    width, height = image.size if orientation < 5 else image.size[::-1]
    box: Box = centre_box(width, height, margin) if draws is None else random_box(width, height, draws)
    # A JPEG of which each wanted pixel covers more than 4 by 4 is decoded at a half, quarter or eighth of its
    # size: twice as fast for a camera's pictures, and hardly another result (Pillow's thumbnails do so, too).
    enough = REDUCING_GAP * side / min(box[2] - box[0], box[3] - box[1])
    stored, rows = image.size
    drafted = image.draft(image.mode, (math.ceil(stored * enough), math.ceil(rows * enough)))
    share = drafted[1][2] / stored if drafted else 1.0
    picture = _rgb(image)
    if share < 1:  # without the part of a pixel that is left over at the right and the bottom
        picture = picture.crop((0, 0, int(stored * share), int(rows * share)))
    if orientation in _UPRIGHT:
        picture = picture.transpose(_UPRIGHT[orientation])
    if share < 1:
        left, top, right, bottom = (edge * share for edge in box)
        box = left, top, min(right, picture.width), min(bottom, picture.height)
    elif draws is not None:  # nothing beyond the crop may shine in
        picture = picture.crop(box)
        box = 0, 0, *picture.size
    if box != (0, 0, side, side) or picture.size != (side, side):
        picture = picture.resize((side, side), Image.Resampling.BILINEAR, box)
    return np.asarray(picture)


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a picture whose notes are broken is still a picture
        return 1
    return found if found in range(1, 9) else 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise UsageError(f"pixels of 32 bits (mode {image.mode}); save it with 8 bits a channel")
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns of the direct way
    return image.convert("RGB")
