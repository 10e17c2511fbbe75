"""The part of a written Python file that makes what the network takes of an image, and names its outputs.

What a file or PIL image becomes is to the bit what `dnat.data` makes of it; the text repeats `data.pictures`.
"""

from ..data import Preprocess
from ..tracing.literals import text
from .layout import call, laid_out

NAMES = frozenset({"CLASSES", "SIZE", "MARGIN", "MEAN", "STD", "preprocess", "box_of", "fitted", "picture_of"})
"""What the text calls its own."""

_TEXT = '''\
{CLASSES}
SIZE, MARGIN = {SIZE}, {MARGIN}
MEAN, STD = {MEAN}, {STD}


def preprocess(image):
    """What the network takes of an image, (1, {SHAPE}), as its test images were made.

    The image is a file or a PIL image (both need Pillow), or an array or tensor (H, W, {C}) of uint8, {CHANNELS}.
    Its short side is resized to SIZE times MARGIN, the centre is taken, and pixels from 0 to 1 are normalized by
    MEAN and STD.
    """
    if isinstance(image, (str, os.PathLike)):
        from PIL import Image

        with Image.open(image) as picture:
            pixels = picture_of(picture)
    elif hasattr(image, "convert"):
        pixels = picture_of(image)
    else:
        pixels = fitted(image if isinstance(image, torch.Tensor) else torch.tensor(image))
    scaled = (pixels.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    return scaled.permute(2, 0, 1).unsqueeze(0)


def box_of(width, height):
    """Left, top, right and bottom of the part of an image that is taken."""
    wide = min(width, height * SIZE[1] / SIZE[0]) / MARGIN
    high = min(height, width * SIZE[0] / SIZE[1]) / MARGIN
    left, top = (width - wide) / 2, (height - high) / 2
    return left, top, left + wide, top + high


def fitted(pixels):
    """The part of an image (H, W, {C}) that is taken, resized; a PIL image differs by rounding and at edges."""
    if pixels.ndim != 3 or pixels.shape[2] != {C} or pixels.dtype != torch.uint8:
        raise ValueError(f"an image must be (H, W, {C}) of uint8, not {tuple(pixels.shape)} of {pixels.dtype}")
    box = box_of(pixels.shape[1], pixels.shape[0])
    if box == (0, 0, SIZE[1], SIZE[0]) and pixels.shape[:2] == SIZE:
        return pixels
    left, top, right, bottom = map(round, box)
    part = pixels[top:bottom, left:right].permute(2, 0, 1).unsqueeze(0).float()
    part = nn.functional.interpolate(part, SIZE, mode="bilinear", antialias=True)
    return part[0].permute(1, 2, 0).round()


def picture_of(image):
    """The same of a PIL image, upright: (H, W, {C}) of uint8."""
    turned = image.getexif().get(274)  # as its EXIF data say
    turned = turned if turned in range(2, 9) else 1
    width, height = image.size if turned < 5 else image.size[::-1]
    box = box_of(width, height)
    # A large JPEG that is not read yet is read at a part of its size.
    enough = 2 * max(SIZE) / min(box[2] - box[0], box[3] - box[1])
    stored, rows = image.size
    drafted = image.draft(image.mode, (math.ceil(stored * enough), math.ceil(rows * enough)))
    share = drafted[1][2] / stored if drafted else 1.0
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        deep = torch.frombuffer(bytearray(image.convert("I").tobytes()), dtype=torch.int32)
        image = image.convert("L")
        image.frombytes(bytes((deep >> 8).tolist()))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of 32 bits (mode {image.mode})")
    elif image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    image = image.convert("{CHANNELS}")
    if share < 1:
        image = image.crop((0, 0, int(stored * share), int(rows * share)))
    if turned > 1:
        image = image.transpose((0, 3, 1, 5, 4, 6, 2)[turned - 2])
    if share < 1:
        left, top, right, bottom = (edge * share for edge in box)
        box = left, top, min(right, image.width), min(bottom, image.height)
    if box != (0, 0, SIZE[1], SIZE[0]) or image.size != SIZE[::-1]:
        image = image.resize(SIZE[::-1], 2, box)  # bilinear
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(*SIZE, {C})
'''


def preparation(preprocess: Preprocess) -> str:
    """The text for a way of making images."""
    values = {
        "SIZE": text(preprocess.size),
        "MARGIN": text(preprocess.margin),
        "MEAN": text(preprocess.mean),
        "STD": text(preprocess.std),
        "SHAPE": ", ".join(map(str, preprocess.shape)),
        "CHANNELS": preprocess.channels,
        "C": str(len(preprocess.mean)),
        # Last, since names may be anything.
        "CLASSES": laid_out(call("CLASSES = ", [text(name) for name in preprocess.classes], opening="[")),
    }
    source = _TEXT
    for name, value in values.items():
        source = source.replace(f"{{{name}}}", value)
    return source
