"""A part of the training examples, set aside so that choices can be made without a look at the test examples."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import UsageError
from ..seeds import Stream, numpy_generator
from .files import ImageFiles
from .images import Data, taken
from .keyed import Items
from .loaders import LoaderData

Held = TypeVar("Held", Data, LoaderData)


def validation_split(data: Held, share: float, seed: int = 0) -> Held:
    """The same data without the test examples: some of the training examples stand in for them.

    Where labels are class numbers, each class gives its share. The rest of the training examples keep their draws
    and keys of augmentation. Of a user's own data set (`from_loaders`), examples of the validation part are made
    by the same code as those of the training part, augmentation and all, the same each time.

    Args:
        data: whose training part is divided.
        share: of the training examples, from 0 to 1; 0 for data that have a validation part of their own.
        seed: which ones.

    Raises:
        ValueError: a share that leaves a part empty, or data that cannot be divided.

    >>> x, y = torch.rand(10, 1, 4, 4), torch.arange(10) % 2
    >>> data = validation_split(Data.from_tensors("mine", (x, y), (x, y)), 0.2)
    >>> len(data.train_labels), data.test_labels.tolist()
    (8, [0, 1])
    """
    own = isinstance(data, LoaderData) and data.validation is not None
    if own and share:
        raise UsageError(f"{data.name} has validation data of its own, but a share {share:g} is asked for")
    if not own and not 0 < share < 1:
        raise UsageError(f"the share of the validation part must lie between 0 and 1, not {share!r}")
    made: Any = _of_images(data, share, seed) if isinstance(data, Data) else _of_examples(data, share, seed)
    return made


def _of_images(data: Data, share: float, seed: int) -> Data:
    rest, aside = divided(data.train_labels.cpu(), len(data.train_labels), share, seed)
    images = taken(data.train_images, aside)
    if isinstance(images, ImageFiles) and isinstance(data.test_images, ImageFiles):
        images = replace(images, margin=data.test_images.margin)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when the data were made
        return replace(
            data,
            train_images=taken(data.train_images, rest),
            train_labels=taken(data.train_labels, rest),
            train_index=taken(data.train_index, rest),
            test_images=images,
            test_labels=taken(data.train_labels, aside),
            notes=(*data.notes, _note(len(aside), len(data.train_labels), "images")),
        )


def _of_examples(data: LoaderData, share: float, seed: int) -> LoaderData:
    train = data.train
    if data.validation is not None:
        return replace(data, test=data.validation, validation=None)
    if not isinstance(train, Items) or train.sampler is not None or train.single:
        raise UsageError(
            f"the training data of {data.name} cannot be divided (their batches or order are made by code of "
            "yours): give validation data to from_loaders"
        )
    labels = _labels(train)
    rest, aside = (
        tuple(train.positions[int(i)] for i in part) for part in divided(labels, len(train.positions), share, seed)
    )
    note = _note(len(aside), len(train.positions), "examples")
    return replace(
        data,
        train=replace(train, positions=rest),
        test=replace(train, what="validation data", positions=aside, shuffled=False, drop_last=False),
        notes=(*data.notes, note),
    )


def _note(aside: int, count: int, what: str) -> str:
    return f"{aside} of {count} training {what} are set aside for validation"


def _labels(part: Items) -> Tensor | None:
    """Class numbers of a data set that can tell them without making its examples; None where it cannot."""
    held = next((getattr(part.dataset, n) for n in ("targets", "labels") if hasattr(part.dataset, n)), None)
    tensors = getattr(part.dataset, "tensors", None)
    held = tensors[-1] if held is None and isinstance(tensors, Sequence) and tensors else held
    try:
        labels = torch.as_tensor(held)
    except (TypeError, ValueError, RuntimeError):
        return None
    if labels.dim() != 1 or labels.is_floating_point() or len(labels) != len(part.dataset):
        return None
    return labels.cpu()[list(part.positions)]


def divided(labels: Tensor | None, count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Positions of what stays and of what is set aside, each ascending.

    Args:
        labels: (count,) class numbers, of each of which about the share is set aside, never all; None for none.
        count: of examples.
        share: from 0 to 1.
        seed: which ones.

    Raises:
        ValueError: one of the two is empty.
    """
    labels = torch.zeros(count, dtype=torch.long) if labels is None else labels
    order = torch.from_numpy(numpy_generator(seed, Stream.ORDER, "validation").permutation(count))
    chosen, seen = [], 0
    for label in labels.unique():
        mine = order[labels[order] == label]
        # Rounded sums, so that small shares of many classes do not all round to nothing.
        wanted = round(share * (seen + len(mine))) - round(share * seen)
        seen += len(mine)
        chosen.append(mine[: min(wanted, len(mine) - 1)])
    aside = torch.cat(chosen).sort().values
    keep = torch.ones(count, dtype=torch.bool)
    keep[aside] = False
    if not len(aside) or not keep.any():
        raise UsageError(f"a share of {share:g} of {count} training examples leaves a part without any")
    return keep.nonzero().flatten(), aside
