"""Data sets of pictures in folders or zip archives, one folder a class: a user's own, ImageNet, Tiny ImageNet.

All of them come back as files (`ImageFiles`), with no picture read yet. Classes are numbered in the order of
their folders' names, pictures within a class in the order of theirs. Pixels are normalized by the means and
deviations of ImageNet that everyone uses: they fit published weights, and do not depend on which part of the
pictures is at hand.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..errors import DataError
from .files import Tree
from .images import Augmentation, Data
from .pictures import SUFFIXES

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels, from 0 to 1, each channel."""
TRAINS = ("train", "training")
"""Names that a folder of training images may have, in small letters or others."""
TESTS = ("val", "valid", "validation", "test", "testing")
"""Names that a folder of test images may have, in small letters or others; the first that is there counts."""
_LIKE_A_SPLIT = re.compile("train|test|val|dev|eval|holdout|split|fold")
MARGIN = 256 / 224
"""Where training images are resized crops, the short side of test images is so much longer than what is taken."""
ARCHIVES = {
    "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
    "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
    "ILSVRC2012_devkit_t12.tar.gz": "fa75699e90414af021442c21a62c3abf",
}
"""ImageNet as it is published, with MD5 sums."""
TINY = "tiny-imagenet-200"

Classes = Mapping[str, Sequence[str]]
"""A class's name -> its pictures, relative to the tree in which they were found."""


def folder(root: Path, side: int, augmentation: Augmentation | None = None) -> Data:
    """Any pictures: ROOT/train/CLASS/** and ROOT/val/CLASS/** (other names: `TRAINS`, `TESTS`); or ROOT/CLASS/**.

    Without a folder of training images every fifth picture of each class, from the second on, is a test image.

    Args:
        root: a folder or zip archive; a single folder around the rest does not matter.
        side: of the images in pixels: the short side of a picture is resized to it, and the centre is taken.
        augmentation: by default crops with 1/8 of the side as padding, and flips.

    Raises:
        DataError: no such folder, no classes, one without pictures, splits with different classes, or folders of
            which it cannot be told whether they are classes.
    """
    tree = Tree.open(root).inner((*TRAINS, *TESTS))
    tops = tree.folders()
    trains, tests = _splits(tree, TRAINS), _splits(tree, TESTS)
    if len(trains) > 1:
        raise DataError(f"{tree} holds {' and '.join(trains)}: only one folder may hold the training images")
    if trains and (tests or tree.below(trains[0]).folders()):  # else a class of trains
        if not tests:
            raise DataError(f"{tree} holds {trains[0]}, but none of {', '.join(TESTS)} for the test images")
        train, test = _classes(tree, trains[0]), _classes(tree, tests[0])
        notes = [f"{tree}: test images are those of {tests[0]}, not of {name}" for name in tests[1:]]
        notes += _strays(tree.below(trains[0])) + _strays(tree.below(tests[0]))
    elif tests and len(tests) == len(tops):
        raise DataError(f"{tree} holds {', '.join(tests)}, but no train")
    else:
        alike = _alike(tree)
        everything = _classes(tree, "")
        train = {c: [name for i, name in enumerate(names) if i % 5 != 1] for c, names in everything.items()}
        test = {c: [name for i, name in enumerate(names) if i % 5 == 1] for c, names in everything.items()}
        notes = [f"{tree} has no train: every fifth picture of each class, from the second on, is a test image"]
        notes += alike + _strays(tree)
    return _data("folder", tree, (train, test), side, augmentation or Augmentation(side // 8, True), notes)


def imagenet(root: Path, side: int, augmentation: Augmentation | None = None) -> Data:
    """ImageNet (ILSVRC 2012) as torchvision lays it out: `root`/train/WNID/*.JPEG and `root`/val/WNID/*.JPEG.

    Args:
        root: the folder that holds train and val, or a folder around it named imagenet.
        side: of the images in pixels.
        augmentation: by default resized crops and flips; test images are then the centre of the short side.

    Raises:
        DataError: a split is missing or not laid out in classes; the message says what to do.
    """
    root = root / "imagenet" if (root / "imagenet" / "train").is_dir() else root
    tree = Tree.open(root, ("train/", "val/"))
    missing = [split for split in ("train", "val") if not tree.below(split).folders()]
    if missing:
        raise DataError(_how_to_lay_out(root, missing))
    train, test = _classes(tree, "train"), _classes(tree, "val")
    notes = _incomplete("ImageNet", (train, test), 1_281_167, 50_000)
    notes += _strays(tree.below("train")) + _strays(tree.below("val"))
    return _data("imagenet", tree, (train, test), side, augmentation or Augmentation(0, True, resized=True), notes)


def tiny_imagenet(root: Path, side: int, augmentation: Augmentation | None = None) -> Data:
    """Tiny ImageNet in its own layout, from its folder or its zip archive; its validation split is the test split.

    Args:
        root: the folder or archive, or a folder that holds either.
        side: of the images in pixels.
        augmentation: by default crops with 1/8 of the side as padding, and flips.

    Raises:
        DataError: files are missing, or do not fit one another.
    """
    tree = Tree.open(_find_tiny(root)).inner(("train", "val"))
    wnids = sorted(tree.text("wnids.txt").split())
    found = _classes(tree, "train")
    _compare(f"{tree}/wnids.txt", wnids, f"{tree}/train", found)
    test = _annotated(tree, wnids)
    words = dict(line.split("\t", 1) for line in tree.text("words.txt").splitlines() if "\t" in line)
    times = Counter(words.get(wnid, wnid) for wnid in wnids)
    titles = {w: words.get(w, w) if times[words.get(w, w)] == 1 else f"{words[w]} ({w})" for w in wnids}
    splits = tuple({titles[wnid]: names[wnid] for wnid in wnids} for names in (found, test))
    notes = _incomplete("Tiny ImageNet", splits, 100_000, 10_000)
    return _data("tiny_imagenet", tree, splits, side, augmentation or Augmentation(side // 8, True), notes)


def _data(
    name: str,
    tree: Tree,
    splits: Sequence[Classes],
    side: int,
    augmentation: Augmentation,
    notes: Sequence[str],
) -> Data:
    train, test = splits
    _compare(f"the training images in {tree}", train, "the test images", test)
    if len(train) < 2:
        raise DataError(f"{tree} holds {len(train)} class(es) ({', '.join(train)}); at least 2 folders are needed")
    (train_names, train_labels), (test_names, test_labels) = _listed(train), _listed(test)
    return Data(
        name=name,
        classes=tuple(train),
        train_images=tree.files(train_names, side),
        train_labels=train_labels,
        train_index=torch.arange(len(train_labels)),
        test_images=tree.files(test_names, side, MARGIN if augmentation.resized else 1.0),
        test_labels=test_labels,
        mean=MEAN,
        std=STD,
        augmentation=augmentation,
        notes=tuple(notes),
    )


def _listed(classes: Classes) -> tuple[list[str], torch.Tensor]:
    names = [name for members in classes.values() for name in members]
    labels = [label for label, members in enumerate(classes.values()) for _ in members]
    return names, torch.tensor(labels, dtype=torch.int64)


def _classes(tree: Tree, split: str) -> dict[str, list[str]]:
    """Each class's pictures in a split ("" for the whole tree); names are relative to the tree."""
    part = tree.below(split) if split else tree
    start = f"{split}/" if split else ""
    found: dict[str, list[str]] = {name: [] for name in part.folders()}
    for name in part.pictures():
        if "/" in name:
            found[name.split("/", 1)[0]].append(start + name)
    if not found:
        raise DataError(f"{part} holds no folders: there must be one for each class, with its pictures")
    empty = [name for name, members in found.items() if not members]
    if empty:
        instead = [name for name in part.others() if name.split("/", 1)[0] in empty]
        there = f"; there is {_some(instead)}" if instead else ""
        raise DataError(f"{part}: no pictures ({' '.join(SUFFIXES)}) in {_some(empty)}{there}")
    return found


def _splits(tree: Tree, names: Sequence[str]) -> list[str]:
    """The folders at the top that have one of the names, whatever letters are large, in the order of the names."""
    tops = tree.folders()
    found = [[top for top in tops if top.lower() == name] for name in names]
    for same in found:
        if len(same) > 1:
            raise DataError(f"{tree} holds {' and '.join(same)}, which differ in large letters alone: rename one")
    return [top for same in found for top in same]


def _alike(tree: Tree) -> list[str]:
    """What is worth knowing of folders that are taken for classes and hold the same folders, as splits would.

    Raises:
        DataError: their names are like those of splits.
    """
    inside = {top: tree.below(top).folders() for top in tree.folders()}
    shared = [name for name, times in Counter(sum(inside.values(), ())).items() if times > 1]
    alike = [top for top, folders in inside.items() if {*folders} & {*shared}]
    if not alike:
        return []
    holding = f"{tree}: {_some(alike)} hold folders of the same names ({_some(shared)})"
    if any(_LIKE_A_SPLIT.search(top.lower()) for top in alike):
        raise DataError(f"{holding}: name the training images' folder train, and the test images' val or test")
    return [f"{holding} and are taken for the classes"]


def _strays(tree: Tree) -> list[str]:
    """What lies in a split and is not used: pictures outside of the classes, files with other endings."""
    outside, others = [name for name in tree.pictures() if "/" not in name], tree.others()
    notes = [f"{tree}: {_some(outside)} lie in no class's folder and are not used"] if outside else []
    if others:
        notes.append(
            f"{tree}: {len(others):,} file(s) whose names end as no picture's are not used: {_some(others)}"
        )
    return notes


def _compare(what: str, names: Sequence[str] | Classes, other: str, others: Sequence[str] | Classes) -> None:
    """Refuse two lists of classes that are not the same."""
    for a, b, missing in ((what, other, set(names) - set(others)), (other, what, set(others) - set(names))):
        if missing:
            raise DataError(f"{a} and {b} have different classes: {_some(sorted(missing))} stands only in {a}")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _incomplete(title: str, splits: Sequence[Classes], train: int, test: int) -> list[str]:
    counts = [sum(map(len, split.values())) for split in splits]
    if counts == [train, test]:
        return []
    found = f"{counts[0]:,} of {train:,} training images and {counts[1]:,} of {test:,} test images"
    return [f"this is not the whole of {title}: {found} are here"]


def _annotated(tree: Tree, wnids: Sequence[str]) -> dict[str, list[str]]:
    """Tiny ImageNet's validation images of each class, by val/val_annotations.txt."""
    where = f"{tree}/val/val_annotations.txt"
    lines = [line.split("\t") for line in tree.text("val/val_annotations.txt").splitlines() if line.strip()]
    wrong = [line for line in lines if len(line) < 2 or line[1] not in wnids]
    if wrong:
        raise DataError(f"{where}: {' '.join(wrong[0])!r} does not name a picture and a class of wnids.txt")
    class_of = {line[0]: line[1] for line in lines}
    pictures = tree.below("val/images").pictures()
    _compare(where, class_of, f"{tree}/val/images", pictures)
    found: dict[str, list[str]] = {wnid: [] for wnid in wnids}
    for name in pictures:
        found[class_of[name]].append(f"val/images/{name}")
    return found


def _find_tiny(root: Path) -> Path:
    if root.is_file():
        return root
    for place in (root, root / TINY):
        if (place / "wnids.txt").is_file():
            return place
    archives = [root / f"{TINY}.zip"] if (root / f"{TINY}.zip").is_file() else sorted(root.glob(f"{TINY}*.zip"))
    if len(archives) == 1:
        return archives[0]
    if archives:
        raise DataError(f"{root.absolute()} holds {_some([a.name for a in archives])}: name one with --data-root")
    raise DataError(
        f"Tiny ImageNet: {root.absolute()} holds neither {TINY}/wnids.txt nor {TINY}.zip; name the folder or "
        f"archive with --data-root or DNAT_DATA (the archive is http://cs231n.stanford.edu/{TINY}.zip)"
    )


def _how_to_lay_out(root: Path, missing: Sequence[str]) -> str:
    found = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    where = root.absolute()
    lacking = " and no ".join(f"{split}/WNID/*.JPEG" for split in missing)
    expected = ", ".join(f"{name} (MD5 {md5})" for name, md5 in ARCHIVES.items())
    return (
        f"ImageNet: {where} holds no {lacking}; there is {_some(found) or 'nothing'}. Get {expected} from "
        f"image-net.org, then unpack them into one folder a class: torchvision.datasets.ImageNet({str(where)!r}, "
        "split) does so for split 'train' and 'val'"
    )
