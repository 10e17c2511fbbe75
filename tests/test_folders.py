"""Pictures in folders and archives: what is read, and what is said of what cannot be."""

import hashlib
import io
import os
import pickle
import struct
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from dnat.data import Augmentation, DataError, cifar, describe, load
from dnat.data import archives as archives_module
from dnat.data import memory as memory_module
from dnat.data import sets as sets_module
from dnat.data.archives import contents, read_member
from dnat.data.augmentation import normalized
from dnat.data.files import Tree
from dnat.data.pictures import ATTEMPTS, FORMATS, centre_box, decode, random_box
from dnat.settings import cores


def pixels(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image, form="PNG", **options):
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def write_set(root, splits=("train", "val"), classes=("ape", "bee"), count=3, side=12):
    """A folder of pictures; returns each picture's pixels by name."""
    written = {}
    for name in [f"{s}/{c}/{i}.png" for s in splits for c in classes for i in range(count)]:
        name = name.removeprefix("/")
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        written[name] = pixels(side, side, seed=len(written))
        path.write_bytes(encoded(written[name]))
    return written


def zipped(root, archive, prefix=""):
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(root.rglob("*")):
            file.write(path, prefix + str(path.relative_to(root)))
    return archive


def zip_of(path, members, method=zipfile.ZIP_STORED):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that stand twice
        with zipfile.ZipFile(path, "w", method) as file:
            for name, content in members:
                file.writestr(name, content)
    return path


# Pictures


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        ("RGB", "PNG"),
        ("L", "PNG"),
        ("1", "PNG"),
        ("P", "GIF"),
        ("P", "BMP"),
        ("RGBA", "PNG"),
        ("LA", "PNG"),
        ("RGBA", "WEBP"),
        ("CMYK", "JPEG"),
        ("L", "JPEG"),
        ("CMYK", "TIFF"),
    ],
)
def test_every_mode_comes_out_as_rgb(mode, form):
    options = {"lossless": True} if form == "WEBP" else {}
    content = encoded(Image.fromarray(pixels(10, 10)).convert(mode), form, **options)
    with Image.open(io.BytesIO(content)) as image:
        wanted = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode(content, "x", 10), wanted)


def test_transparent_palettes_and_16_bits():
    palette = Image.fromarray(pixels(10, 10)).quantize(16)
    content = encoded(palette, "PNG", transparency=bytes(range(16)))
    assert np.array_equal(decode(content, "x", 10), np.asarray(palette.convert("RGB")))
    deep = np.random.default_rng(0).integers(0, 2**16, (10, 10), dtype=np.uint16)
    found = decode(encoded(Image.fromarray(deep)), "x", 10)
    assert np.array_equal(found, np.repeat((deep >> 8).astype(np.uint8)[:, :, None], 3, 2))
    with pytest.raises(DataError, match=r"x cannot be read as a picture: .*32 bits"):
        decode(encoded(Image.fromarray(deep.astype(np.float32)), "TIFF"), "x", 10)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation):
    image = Image.fromarray(pixels(14, 10))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(image, "PNG", exif=exif)
    with Image.open(io.BytesIO(content)) as stored:
        upright = ImageOps.exif_transpose(stored)
    found = decode(content, "x", 10)
    left, top = (upright.width - 10) // 2, (upright.height - 10) // 2
    assert np.array_equal(found, np.asarray(upright)[top : top + 10, left : left + 10])


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (48, 48)])
def test_the_short_side_is_resized_and_the_centre_taken(size):
    image = Image.fromarray(pixels(*size))
    whole = image.resize((size[0] // 2, size[1] // 2), Image.Resampling.BILINEAR)
    left, top = (whole.width - 24) // 2, (whole.height - 24) // 2
    wanted = np.asarray(whole)[top : top + 24, left : left + 24]
    assert np.array_equal(decode(encoded(image), "x", 24), wanted)
    assert centre_box(64, 48) == (8, 0, 56, 48)
    assert centre_box(512, 256, 256 / 224) == (256 - 112, 16, 256 + 112, 240)


def test_random_crops_are_those_of_inception():
    generator = np.random.default_rng(1)
    shares, ratios = [], []
    for _ in range(2000):
        width, height = generator.integers(200, 300, 2).tolist()
        draws = generator.random(5 + 2 * ATTEMPTS)
        left, top, right, bottom = random_box(width, height, draws)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        shares.append((right - left) * (bottom - top) / width / height)
        ratios.append((right - left) / (bottom - top))
    assert min(shares) > 0.06
    assert 0.4 < np.mean(shares) < 0.6
    assert min(ratios) > 0.65
    assert max(ratios) < 1.55
    # Where no attempt fits, the largest rectangle of an allowed shape in the middle.
    large = np.concatenate([np.zeros(5), np.full(2 * ATTEMPTS, 0.999)])
    assert random_box(1000, 30, large) == (480, 0, 520, 30)
    assert random_box(30, 1000, large) == (0, 480, 30, 520)


def test_a_random_crop_is_cropped_then_resized():
    image, draws = Image.fromarray(pixels(50, 40)), np.random.default_rng(2).random(5 + 2 * ATTEMPTS)
    wanted = image.crop(random_box(50, 40, draws)).resize((16, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(decode(encoded(image), "x", 16, draws=draws), np.asarray(wanted))


def smooth(width, height):
    """Something like a photograph: noise of low frequencies."""
    return Image.fromarray(pixels(width // 100, height // 100)).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("crop", [False, True])
def test_large_jpegs_are_decoded_at_a_part_of_their_size(orientation, crop):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(smooth(1601, 1203), "JPEG", quality=95, exif=exif)
    draws = np.random.default_rng(4).random(5 + 2 * ATTEMPTS) if crop else None
    found = decode(content, "x", 64, draws=draws)
    with Image.open(io.BytesIO(content)) as image:
        whole = ImageOps.exif_transpose(image)
    box = random_box(*whole.size, draws) if crop else centre_box(*whole.size)
    wanted = np.asarray(whole.resize((64, 64), Image.Resampling.BILINEAR, box)).astype(int)
    apart = np.abs(found - wanted)
    assert 0 < apart.mean() < 2.5
    assert apart.max() < 25
    # Where it would be too small, it is not.
    with Image.open(io.BytesIO(content)) as image:
        whole = ImageOps.exif_transpose(image).convert("RGB")
    plain = whole.resize((512, 512), Image.Resampling.BILINEAR, centre_box(*whole.size))
    assert np.array_equal(decode(content, "x", 512), np.asarray(plain))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (encoded(pixels(40, 40), "JPEG")[:-100], "truncated"),
        (b"", "the file is empty"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot identify"),
        (encoded(pixels(40, 40))[:300], ""),
    ],
)
def test_broken_pictures_are_named(content, words):
    with pytest.raises(DataError, match=rf"some/file\.jpg cannot be read as a picture: .*{words}"):
        decode(content, "some/file.jpg", 8)


def test_pillows_limit_on_pixels_holds(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for size in (11, 40):
            with pytest.raises(DataError, match=r"x cannot be read as a picture: .*(100|decompression bomb)"):
                decode(encoded(pixels(size, size)), "x", 8)


# Archives


@pytest.mark.data
def test_members_of_the_real_archive_are_what_zipfile_and_pillow_read(tiny_imagenet_root):
    archives = sorted(tiny_imagenet_root.glob("tiny-imagenet-200*.zip"))
    if not archives:
        pytest.skip("Tiny ImageNet is here as a folder, not as an archive")
    data = load("tiny_imagenet", archives[0], streaming=True, workers=0)
    with zipfile.ZipFile(archives[0]) as archive:
        for files in (data.train_images, data.test_images):
            for i in range(0, len(files), len(files) // 40):
                content = archive.read(files.name(i))
                assert files.content(i) == content
                with Image.open(io.BytesIO(content)) as image:
                    assert np.array_equal(files.read(i), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_are_read_back(tmp_path, method):
    members = [("a/x.txt", b"x" * 1000), ("a/empty", b""), ("__MACOSX/y", b"?"), (".hidden", b"?"), ("b/", b"")]
    names, places, folders = contents(zip_of(tmp_path / "a.zip", members, method))
    assert names == ["a/x.txt", "a/empty"]
    assert folders == ["b/"]
    for name, place, (_, content) in zip(names, places, members[:2], strict=True):
        assert read_member(tmp_path / "a.zip", name, place) == content


@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "/etc/x.png", "C:/x.png"])
def test_names_that_point_outside_are_refused(tmp_path, name):
    with pytest.raises(DataError, match=r"would lie outside of it: refused"):
        contents(zip_of(tmp_path / "a.zip", [("fine.png", b""), (name, b"!")]))


def test_names_that_stand_twice_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds 'a' twice"):
        contents(zip_of(tmp_path / "a.zip", [("a", b"1"), ("b", b"1"), ("a", b"2")]))


def test_bombs_are_refused(tmp_path, monkeypatch):
    bomb = zip_of(tmp_path / "a.zip", [(f"{i}.bmp", bytes(300_000)) for i in range(4)], zipfile.ZIP_DEFLATED)
    contents(bomb)
    monkeypatch.setattr(archives_module, "TOTAL_LIMIT", 10_000)
    with pytest.raises(DataError, match=r"would unpack to 1,200,000: more than 100 times"):
        contents(bomb)
    monkeypatch.setattr(archives_module, "MEMBER_LIMIT", 299_999)
    with pytest.raises(DataError, match=r"0\.bmp would unpack to 300,000 bytes; at most 299,999 are"):
        contents(bomb)


def central(archive, change):
    """Change the table of contents: `change(raw, start)` of each entry."""
    raw = bytearray(archive.read_bytes())
    start = -1
    while (start := raw.find(b"PK\x01\x02", start + 1)) >= 0:
        change(raw, start)
    archive.write_bytes(raw)
    return archive


def test_a_member_that_unpacks_to_more_than_it_says_stops_there(tmp_path):
    archive = zip_of(tmp_path / "a.zip", [("x.bmp", bytes(10**6))], zipfile.ZIP_DEFLATED)
    central(archive, lambda raw, at: struct.pack_into("<L", raw, at + 24, 500))
    names, places, _ = contents(archive)
    with pytest.raises(DataError, match=r"x\.bmp is damaged: it unpacks to 501 bytes or more instead of 500"):
        read_member(archive, names[0], places[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw, at: struct.pack_into("<H", raw, at + 8, 1), "x.png is encrypted"),
        (lambda raw, at: struct.pack_into("<H", raw, at + 10, 14), "compressed by method 14"),
        (lambda raw, at: struct.pack_into("<L", raw, at + 20, 10**6), "they overlap"),
    ],
)
def test_archives_that_are_not_what_they_should_be(tmp_path, change, words):
    archive = zip_of(tmp_path / "a.zip", [("x.png", encoded(pixels(9, 9)))])
    with pytest.raises(DataError, match=words):
        contents(central(archive, change))


def test_damaged_archives(tmp_path):
    root = tmp_path / "set"
    write_set(root)
    whole = zipped(root, tmp_path / "a.zip").read_bytes()
    for kept in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "b.zip").write_bytes(whole[:kept])
        with pytest.raises(DataError, match=r"b\.zip is no zip archive, or a damaged one"):
            load("folder", tmp_path / "b.zip", image_size=12)
    names, places, _ = contents(tmp_path / "a.zip")
    i = names.index("val/bee/1.png")
    header = int(places[i]["offset"])
    for at, words in ((header + 30 + len(names[i]) + 20, "is damaged"), (header + 1, "header is not where")):
        flipped = bytearray(whole)
        flipped[at] ^= 4
        (tmp_path / "b.zip").write_bytes(flipped)
        with pytest.raises(
            DataError, match=rf"b\.zip: val/bee/1\.png {words}|val/bee/1\.png is damaged: .*{words}"
        ):
            load("folder", tmp_path / "b.zip", image_size=12)
    stored = zip_of(tmp_path / "c.zip", [("x", b"abcdef")])
    stored.write_bytes(stored.read_bytes().replace(b"abcdef", b"abcdeg"))
    names, places, _ = contents(stored)
    with pytest.raises(DataError, match=r"x is damaged: CRC [0-9a-f]{8}, expected 4b8e39ef"):
        read_member(stored, "x", places[0])


# Folders of one's own


@pytest.mark.parametrize("split", ["val", "valid", "validation", "test"])
@pytest.mark.parametrize("where", ["folder", "zip", "zip with a folder around"])
def test_a_folder_is_read_as_it_lies(tmp_path, split, where):
    root = tmp_path / "set"
    written = write_set(root, ("train", split))
    (root / "train" / "ape" / "notes.txt").write_text("no picture")
    if where != "folder":
        root = zipped(root, tmp_path / "set.zip", "" if where == "zip" else "around/")
    data = load("folder", root, image_size=12)
    assert data.classes == ("ape", "bee")
    (note,) = data.notes
    assert note.endswith("train: 1 file(s) whose names end as no picture's are not used: ape/notes.txt")
    for images, labels, part in (
        (data.train_images, data.train_labels, "train"),
        (data.test_images, data.test_labels, split),
    ):
        names = [f"{part}/{c}/{i}.png" for c in ("ape", "bee") for i in range(3)]
        assert np.array_equal(images.numpy(), np.stack([written[name] for name in names]))
        assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.train_index.tolist() == list(range(6))


def test_classes_alone_are_divided_in_a_fixed_way(tmp_path):
    written = write_set(tmp_path, ("",), ("ape", "bee", "cow"), count=7)
    os.symlink(tmp_path / "cow", tmp_path / "dog")  # links are followed
    (tmp_path / "cow" / "up").symlink_to(tmp_path)  # but not round and round
    deep = tmp_path / "ape" / "more" / "X.PNG"
    deep.parent.mkdir()
    deep.write_bytes(encoded(pixels(12, 12, seed=99)))
    data = load("folder", tmp_path, image_size=12)
    assert data.classes == ("ape", "bee", "cow", "dog")
    assert "every fifth picture of each class" in data.notes[0]
    assert data.test_labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    wanted = [written[f"{c}/{i}.png"] for c in ("ape", "bee", "cow", "cow") for i in (1, 6)]
    assert np.array_equal(data.test_images.numpy(), np.stack(wanted))
    assert data.train_labels.bincount().tolist() == [6, 5, 5, 5]
    assert np.array_equal(data.train_images[5].numpy(), pixels(12, 12, seed=99))


def test_the_first_of_several_test_splits_counts_and_the_other_is_named(tmp_path):
    write_set(tmp_path, ("train", "val", "test"))
    (tmp_path / "train" / "stray.png").write_bytes(encoded(pixels(9, 9)))
    notes = load("folder", tmp_path, image_size=12).notes
    assert "test images are those of val, not of test" in notes[0]
    assert "train: stray.png lie in no class's folder and are not used" in notes[1]


def edit(action, *names):
    def apply(root):
        for name in names:
            path = root / name
            if action == "remove":
                path.unlink()
            elif action == "folder":
                path.mkdir(parents=True)
            elif action == "truncate":
                path.write_bytes(path.read_bytes()[:-30])
            else:
                path.rename(root / action)

    return apply


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edit("folder", "train/cow"), r"train: no pictures \(.*\) in cow"),
        (edit("remove", *(f"val/bee/{i}.png" for i in range(3))), r"val: no pictures \(.*\) in bee"),
        (edit("val/cow", "val/bee"), "different classes: bee stands only in the training images"),
        (edit("other", "val"), "holds train, but none of val, valid, validation, test"),
        (edit("test", "train"), "holds val, test, but no train"),
        (edit("truncate", "train/bee/2.png"), r"train/bee/2\.png cannot be read as a picture: "),
    ],
)
@pytest.mark.parametrize("archive", [False, True])
def test_folders_that_are_no_data_set(tmp_path, change, words, archive):
    root = tmp_path / "set"
    write_set(root)
    change(root)
    with pytest.raises(DataError, match=words):
        load("folder", zipped(root, tmp_path / "set.zip") if archive else root, image_size=12)


def test_folders_without_classes_and_no_folders(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(pixels(9, 9)))
    with pytest.raises(DataError, match="holds no folders: there must be one for each class"):
        load("folder", tmp_path)
    write_set(tmp_path, ("",), ("ape",))
    with pytest.raises(DataError, match=r"holds 1 class\(es\) \(ape\); at least 2"):
        load("folder", tmp_path, image_size=12)
    with pytest.raises(DataError, match=r"missing is neither a folder nor a zip archive"):
        load("folder", tmp_path / "missing")


def test_a_picture_that_vanished_is_named(tmp_path):
    write_set(tmp_path)
    data = load("folder", tmp_path, image_size=12, streaming=True, workers=0)
    (tmp_path / "train/ape/1.png").unlink()
    with pytest.raises(DataError, match=r"ape/1\.png cannot be read: No such file"):
        list(data.train_batches(0, 0, 4))
    with pytest.raises(DataError, match=r"ape/1\.png cannot be read: No such file"):
        data.fingerprint()


# ImageNet


def test_imagenet_lies_as_torchvision_lays_it_out(tmp_path):
    write_set(tmp_path / "imagenet", ("train", "val"), ("n02", "n01"), side=40)
    (tmp_path / "imagenet" / "val" / "n01" / "0.png").rename(tmp_path / "imagenet/val/n01/0.JPEG")
    for root in (tmp_path, tmp_path / "imagenet"):
        data = load("imagenet", root, image_size=28, workers=0)
    assert data.classes == ("n01", "n02")
    assert "not the whole of ImageNet: 6 of 1,281,167 training images and 6 of 50,000" in data.notes[0]
    # Of a test image the middle of what would be 32 pixels is taken: 35 of 40.
    with Image.open(tmp_path / "imagenet/val/n01/0.JPEG") as image:
        wanted = image.resize((28, 28), Image.Resampling.BILINEAR, (2.5, 2.5, 37.5, 37.5))
    assert np.array_equal(data.test_images.read(0), np.asarray(wanted))
    assert data.augmentation.resized
    with pytest.raises(ValueError, match="decoded each time"):
        load("imagenet", tmp_path, streaming=False)
    in_memory = load("imagenet", tmp_path, image_size=28, augmentation=Augmentation(4), streaming=False)
    assert in_memory.train_images.shape == (6, 28, 28, 3)


@pytest.mark.parametrize("files", [["ILSVRC2012_img_train.tar"], ["val/ILSVRC2012_val_00000001.JPEG"], []])
def test_imagenet_that_is_not_laid_out(tmp_path, files):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(DataError) as error:
        load("imagenet", tmp_path)
    there = files[0].split("/")[0] if files else "nothing"
    for words in (
        f"there is {there}",
        "holds no train/WNID/*.JPEG and no val/",
        "ILSVRC2012_img_val.tar (MD5 29b22e29",
        "torchvision.datasets.ImageNet(",
    ):
        assert words in str(error.value)
    with pytest.raises(DataError, match="gone is neither a folder nor a zip archive"):
        load("imagenet", tmp_path / "gone")


# Tiny ImageNet


@pytest.mark.data
def test_the_real_tiny_imagenet(tiny_imagenet_root):
    data = load("tiny_imagenet", tiny_imagenet_root, image_size=32, train_limit=400, test_limit=200)
    assert data.num_classes == 200
    assert len(set(data.classes)) == 200
    assert data.classes[0] == "goldfish, Carassius auratus"
    assert data.train_images.shape == (400, 32, 32, 3)
    assert data.train_labels.bincount().tolist() == [2] * 200
    assert data.image_size == (32, 32)
    scaled = data.train_images.double().flatten(0, 2) / 255
    assert torch.allclose(scaled.mean(0), torch.tensor(data.mean).double(), atol=0.05)
    assert torch.allclose(scaled.std(0), torch.tensor(data.std).double(), atol=0.06)
    if list(tiny_imagenet_root.glob("*subset.zip")):
        assert "10,000 of 100,000 training images and 2,000 of 10,000 test images" in data.notes[0]


def write_tiny(root):
    rows = []
    for c, wnid in enumerate(("n2", "n1", "n3")):
        for i in range(2):
            path = root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(pixels(64, 64, seed=10 * c + i), "JPEG"))
        (root / "val/images").mkdir(parents=True, exist_ok=True)
        (root / f"val/images/val_{c}.JPEG").write_bytes(encoded(pixels(64, 64, seed=50 + c), "JPEG"))
        rows.append(f"val_{c}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (root / "val/val_annotations.txt").write_text("".join(rows))
    (root / "wnids.txt").write_text("n2\nn1\nn3\n")
    (root / "words.txt").write_text("n1\tcrane\nn2\tgoldfish\nn3\tcrane\nn4\tdog\n")


def test_tiny_imagenet_from_wherever_it_lies(tmp_path):
    home = tmp_path / "tiny-imagenet-200"
    write_tiny(home)
    archive = zipped(home, tmp_path / "elsewhere.zip", "tiny-imagenet-200/")
    (tmp_path / "packed").mkdir()
    copied = zipped(home, tmp_path / "packed/tiny-imagenet-200-part.zip", "tiny-imagenet-200/")
    found = [load("tiny_imagenet", root) for root in (home, tmp_path, archive, copied.parent)]
    assert len({data.fingerprint() for data in found}) == 1
    assert found[0].classes == ("crane (n1)", "goldfish", "crane (n3)")
    assert found[0].train_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert found[0].test_labels.tolist() == [0, 1, 2]
    assert found[0].notes
    with Image.open(home / "train/n2/images/n2_1.JPEG") as image:
        assert np.array_equal(found[0].train_images[3].numpy(), np.asarray(image))
        small = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
    assert np.array_equal(load("tiny_imagenet", home, image_size=32).train_images[3].numpy(), small)
    zipped(home, tmp_path / "packed/tiny-imagenet-200-b.zip")
    with pytest.raises(DataError, match=r"holds tiny-imagenet-200-b\.zip, tiny-imagenet-200-part\.zip: name one"):
        load("tiny_imagenet", copied.parent)
    with pytest.raises(DataError, match=r"holds neither tiny-imagenet-200/wnids\.txt nor .*cs231n"):
        load("tiny_imagenet", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edit("remove", "val/val_annotations.txt"), r"val_annotations\.txt"),
        (edit("remove", "val/images/val_1.JPEG"), r"different classes: val_1\.JPEG stands only in"),
        (edit("val/images/val_9.JPEG", "val/images/val_1.JPEG"), r"val_1\.JPEG stands only in"),
        (edit("train/n9", "train/n1"), "n1 stands only in .*wnids"),
        (edit("truncate", "val/val_annotations.txt", "val/val_annotations.txt"), "does not name a picture"),
        (edit("truncate", "train/n1/images/n1_0.JPEG"), r"n1_0\.JPEG cannot be read as a picture: .*truncated"),
    ],
)
def test_a_tiny_imagenet_that_does_not_fit_together(tmp_path, change, words):
    write_tiny(tmp_path)
    change(tmp_path)
    with pytest.raises(DataError, match=words):
        load("tiny_imagenet", tmp_path)


# CIFAR-100, and archives as they were published


def published(monkeypatch, name):
    """The published files' names with tiny contents, their checksums in place of the real ones, in an archive."""
    generator = np.random.default_rng(0)
    known = cifar.release(name)
    images = generator.integers(0, 256, (100, 3072), dtype=np.uint8)
    batch = {"data": images, known.labels: list(range(len(images)) if name == "cifar100" else [0, 1] * 50)}
    content = {file: pickle.dumps(batch) for file in known.files}
    content[known.meta] = pickle.dumps({known.classes: [f"class {i}" for i in range(100)]})
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for file, what in content.items():
            member = tarfile.TarInfo(f"{known.folder}/{file}")
            member.size = len(what)
            tar.addfile(member, io.BytesIO(what))
    ending = "_100" if name == "cifar100" else ""
    sums = {file: hashlib.md5(what).hexdigest() for file, what in content.items()}
    monkeypatch.setattr(cifar, f"FILES{ending}", sums)
    monkeypatch.setattr(cifar, f"ARCHIVE_MD5{ending}", hashlib.md5(archive.getvalue()).hexdigest())
    return archive.getvalue(), content, images


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.filterwarnings("ignore:cifar10. no training image")
def test_an_archive_is_read_without_being_unpacked(name, tmp_path, monkeypatch):
    archive, content, images = published(monkeypatch, name)
    known = cifar.release(name)
    path = tmp_path / known.archive
    path.write_bytes(archive)
    data = load(name, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [known.archive]
    planes = data.train_images[:100].permute(0, 3, 1, 2).reshape(100, 3072)
    assert np.array_equal(planes.numpy(), images)
    path.write_bytes(archive[:-1])
    with pytest.raises(DataError, match=rf"{known.archive} is damaged: \d+ bytes with MD5"):
        load(name, tmp_path)
    (tmp_path / known.folder).mkdir()
    for file, what in content.items():
        (tmp_path / known.folder / file).write_bytes(what)
    assert load(name, tmp_path).fingerprint() == data.fingerprint()  # the folder comes first


def test_cifar100s_missing_files_are_named(tmp_path):
    with pytest.raises(
        DataError, match=r"CIFAR-100: .*cifar-100-python/train cannot be read .*16019d7e.*--download"
    ):
        load("cifar100", tmp_path)


# By name


def test_rows_of_what_there_is():
    rows = {d.name: d for d in describe()}
    assert (rows["folder"].classes, rows["folder"].train, rows["folder"].test) == (None, None, None)
    assert rows["cifar100"].classes == 100
    assert all(d.files for d in describe() if d.name != "digits")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("tiny_imagenet", {"image_size": 65}, "tiny_imagenet can be 8 to 64 pixels wide, not 65"),
        ("folder", {"image_size": 7}, "folder can be 8 to 1024 pixels wide, not 7"),
        ("digits", {"streaming": True}, "digits is small and always held in memory"),
        ("folder", {"workers": -1}, "workers must be at least 0, not -1"),
        ("digits", {"augmentation": Augmentation(resized=True)}, "these images are in memory"),
        ("folder", {"train_limit": 1, "image_size": 12}, "1 images are too few for 2 classes"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, name, options, words):
    write_set(tmp_path)
    with pytest.raises(ValueError, match=words):
        load(name, tmp_path, **options)


def test_memory_decides_where_nothing_else_does(tmp_path, monkeypatch):
    write_set(tmp_path)
    needed = (2 * 6 + 6) * 12 * 12 * 3
    for free, streams in ((2 * needed, False), (2 * needed - 2, True)):
        monkeypatch.setattr(sets_module, "free_memory", lambda free=free: free)
        data = load("folder", tmp_path, image_size=12)
        assert isinstance(data.train_images, torch.Tensor) is not streams
        assert data.workers == (min(cores(), 8) if streams else 0)
    assert memory_module.free_memory() > 2**20
    for name, text in (("memory.max", "1000\n"), ("memory.current", "300\n")):
        (tmp_path / name).write_text(text)
    assert memory_module._container_rest(tmp_path) == 700
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_module._container_rest(tmp_path) is None


def test_a_tree_is_the_same_in_a_folder_and_in_an_archive(tmp_path):
    write_set(tmp_path / "set")
    (tmp_path / "set" / "train" / "none").mkdir()
    trees = [Tree.open(tmp_path / "set"), Tree.open(zipped(tmp_path / "set", tmp_path / "a.zip"))]
    found = [(t.below("train").folders(), t.pictures()) for t in trees]
    assert found[0] == found[1]
    assert found[0][0] == ("ape", "bee", "none")


# What is not as it should be, and is told


@pytest.mark.parametrize(
    ("train", "test"),
    [("Train", "Val"), ("TRAIN", "TEST"), ("training", "testing"), ("Training", "Validation"), ("train", "Valid")],
)
def test_splits_are_known_whatever_letters_are_large(tmp_path, train, test):
    written = write_set(tmp_path / "around", (train, test))
    data = load("folder", tmp_path, image_size=12)
    assert data.classes == ("ape", "bee")
    assert data.notes == ()
    wanted = [written[f"{test}/{c}/{i}.png"] for c in ("ape", "bee") for i in range(3)]
    assert np.array_equal(data.test_images.numpy(), np.stack(wanted))
    assert np.array_equal(data.train_images[0].numpy(), written[f"{train}/ape/0.png"])


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        (
            ("train_images", "test_images"),
            r"test_images, train_images hold folders .*\(ape, bee\): name the .* train",
        ),
        (("Training set", "Holdout"), r"Holdout, Training set hold folders of the same names \(ape, bee\)"),
        (("fold1", "fold2", "fold3"), "hold folders of the same names"),
        (("train", "Train", "val"), "holds Train and train, which differ in large letters alone"),
        (("train", "training", "val"), "holds train and training: only one"),
        (("Train", "set2"), "holds Train, but none of val, valid, validation, test, testing"),
    ],
)
def test_splits_are_not_taken_for_classes(tmp_path, splits, words):
    write_set(tmp_path, splits)
    with pytest.raises(DataError, match=words):
        load("folder", tmp_path, image_size=12)


def test_classes_that_hold_the_same_folders_are_told_of(tmp_path):
    write_set(tmp_path, ("cat", "dog"), ("indoors", "outdoors"))
    data = load("folder", tmp_path, image_size=12)
    assert data.classes == ("cat", "dog")
    assert (
        "cat, dog hold folders of the same names (indoors, outdoors) and are taken for the classes"
        in data.notes[1]
    )


def test_a_class_of_trains_is_a_class(tmp_path):
    write_set(tmp_path, ("",), ("bus", "train"))
    assert load("folder", tmp_path, image_size=12).classes == ("bus", "train")


@pytest.mark.parametrize(
    ("ending", "form"),
    [
        ("JPG", "JPEG"), ("jpe", "JPEG"), ("jfif", "JPEG"), ("JFIF", "JPEG"), ("apng", "PNG"), ("Bmp", "BMP"),
        ("dib", "BMP"), ("webp", "WEBP"), ("gif", "GIF"), ("tif", "TIFF"), ("TIFF", "TIFF"), ("ppm", "PPM"),
        ("pnm", "PPM"), ("pgm", "PPM"), ("pbm", "PPM"), ("avif", "AVIF"), ("jp2", "JPEG2000"),
    ],
)  # fmt: skip
def test_endings_of_pictures(tmp_path, ending, form):
    if form not in FORMATS:
        pytest.skip(f"Pillow has no {form} here")
    write_set(tmp_path)
    picture = Image.fromarray(pixels(12, 12, seed=7)).convert({"pgm": "L", "pbm": "1"}.get(ending, "RGB"))
    (tmp_path / f"train/ape/x.{ending}").write_bytes(encoded(picture, form))
    data = load("folder", tmp_path, image_size=12)
    assert (len(data.train_labels), data.notes) == (7, ())
    with Image.open(tmp_path / f"train/ape/x.{ending}") as image:
        assert np.array_equal(data.train_images[3].numpy(), np.asarray(image.convert("RGB")))


def test_grey_pictures_of_16_bits_keep_the_upper_8(tmp_path):
    deep = np.random.default_rng(0).integers(0, 2**16, (10, 10), dtype=np.uint16)
    content = b"P5 10 10 65535\n" + deep.astype(">u2").tobytes()
    assert np.array_equal(decode(content, "x", 10)[:, :, 0], (deep >> 8).astype(np.uint8))


def test_files_that_are_not_used_are_told_of(tmp_path):
    write_set(tmp_path)
    for name in ("train/ape/x.heic", "train/ape/notes.txt", "train/labels.csv", "train/bee/Thumbs.db"):
        (tmp_path / name).write_text("?")
    (note,) = load("folder", tmp_path, image_size=12).notes
    assert note.endswith(
        "3 file(s) whose names end as no picture's are not used: ape/notes.txt, ape/x.heic, labels.csv"
    )
    for i in range(3):
        (tmp_path / f"val/bee/{i}.png").rename(tmp_path / f"val/bee/{i}.heic")
    with pytest.raises(DataError, match=r"val: no pictures \(.*\) in bee; there is bee/0\.heic, bee/1\.heic"):
        load("folder", tmp_path, image_size=12)


@pytest.mark.parametrize("content", [b"", b"no picture", encoded(pixels(9, 9))[:60], encoded(pixels(9, 9))[8:]])
def test_messages_show_no_objects(content):
    with pytest.raises(DataError, match=r"^some/x\.png cannot be read as a picture: \w") as error:
        decode(content, "some/x.png", 8)
    assert "object at" not in str(error.value)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_not_waited_for(tmp_path, make):
    write_set(tmp_path)
    make(tmp_path / "train/ape/x.png")
    with pytest.raises(DataError, match=r"train/ape/x\.png cannot be read: it is no regular file"):
        load("folder", tmp_path, image_size=12)
    assert load("folder", tmp_path, image_size=12, skip_broken=True).skipped == ("train/ape/x.png",)


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
def test_broken_pictures_are_left_out_where_that_is_asked_for(tmp_path, archive, streaming):
    root = tmp_path / "set"
    written = write_set(root)
    whole = load("folder", root, image_size=12)
    for name in ("train/ape/1.png", "val/bee/0.png"):
        (root / name).write_bytes((root / name).read_bytes()[:-30])
    place = zipped(root, tmp_path / "set.zip") if archive else root
    data = load("folder", place, image_size=12, skip_broken=True, streaming=streaming, workers=0)
    assert data.skipped == ("train/ape/1.png", "val/bee/0.png")
    assert "2 broken picture(s) are left out: " in data.notes[0]
    assert all(name in data.notes[0] for name in data.skipped)
    # The others keep their index, and with it their draws.
    assert data.train_index.tolist() == [0, 2, 3, 4, 5]
    assert data.train_labels.tolist() == [0, 0, 1, 1, 1]
    assert data.test_labels.tolist() == [0, 0, 0, 1, 1]
    shown, _ = data.train_batch(torch.arange(5), None)
    wanted = np.stack([written[f"train/{n}.png"] for n in ("ape/0", "ape/2", "bee/0", "bee/1", "bee/2")])
    assert torch.equal(shown, normalized(torch.from_numpy(wanted), data.mean, data.std))
    assert data.identity() != whole.identity()
    assert load("folder", place, image_size=12, skip_broken=True, test_limit=4).test_labels.tolist() == [
        0,
        0,
        1,
        1,
    ]


def test_nothing_is_left_out_of_a_whole_set(tmp_path):
    write_set(tmp_path)
    plain, asked = (load("folder", tmp_path, image_size=12, skip_broken=skip) for skip in (False, True))
    assert plain.fingerprint() == asked.fingerprint()
    assert (asked.skipped, asked.notes) == ((), ())
    with pytest.raises(ValueError, match="digits is no set of picture files"):
        load("digits", skip_broken=True)


# Classes by name


def test_labels_are_numbered_as_a_network_knows_the_classes(tmp_path):
    write_set(tmp_path / "three", classes=("ape", "bee", "cow"))
    write_set(tmp_path / "two", classes=("bee", "cow"))
    three, two = (load("folder", tmp_path / name, image_size=12) for name in ("three", "two"))
    numbered = two.numbered(three.classes)
    assert numbered.classes == three.classes
    assert numbered.test_labels.tolist() == [1, 1, 1, 2, 2, 2]
    assert torch.equal(numbered.test_images, two.test_images)
    assert two.numbered(("cow", "bee")).train_labels.tolist() == [1, 1, 1, 0, 0, 0]
    with pytest.raises(DataError, match="not know: cow; it knows ape, bee"):
        three.numbered(("ape", "bee"))
