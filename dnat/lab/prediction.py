"""What a finished run's network takes pictures for, which are prepared as its test images were."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..answers import autocast, scores
from ..data import DataError, Preprocess, decoded, found_below, normalized
from ..errors import UsageError
from ..settings import Training
from ..training import usual_batch
from .runs import preprocess_of, restore


@dataclass(frozen=True)
class Prediction:
    """What a network takes one picture for.

    Attributes:
        file: the picture.
        classes: (name, probability) of the likeliest classes, the likeliest first; none where there is a problem.
        problem: why the picture could not be read, with its name; empty where it was.
    """

    file: Path
    classes: tuple[tuple[str, float], ...] = ()
    problem: str = ""

    def table(self) -> dict[str, Any]:
        """It as JSON holds it."""
        if self.problem:
            return {"file": str(self.file), "problem": self.problem}
        ranked = [{"class": name, "probability": probability} for name, probability in self.classes]
        return {"file": str(self.file), "classes": ranked}


def found_in(places: Iterable[str | Path]) -> list[Path]:
    """Pictures to be predicted: files as they are named, and all pictures below folders, sorted.

    Raises:
        DataError: a folder that cannot be read, or has no pictures.
    """
    found: list[Path] = []
    for place in map(Path, places):
        if not place.is_dir():
            found.append(place)
            continue
        inside = found_below(place)
        if not inside:
            raise DataError(f"{place} holds no pictures")
        found += inside
    return found


def predicted(
    directory: str | Path,
    files: Sequence[str | Path],
    top: int = 5,
    accept: Callable[[str], None] | None = None,
) -> Iterator[Prediction]:
    """Run a finished run's network on pictures.

    They are decoded and normalized as the run's test images were, and the network computes as in its test: the
    likeliest classes of a data set's test pictures are those that its test accuracy counts.

    Args:
        directory: of the run.
        files: pictures.
        top: so many classes of each, or as many as there are.
        accept: see `RunFiles`.

    Yields:
        A prediction for each file, in their order.

    Raises:
        ValueError: no run directory, a run that is not finished, or one of an older dnat, which did not note how
            images are prepared.
    """
    preprocess = preprocess_of(directory, accept)
    if preprocess is None:
        raise UsageError(
            f"{directory} was written by an older dnat, which did not note how images are prepared; train it again"
        )
    network, job, _ = restore(directory, accept)
    paths, step = [Path(file) for file in files], usual_batch(preprocess.size)
    for start in range(0, len(paths), step):
        some = paths[start : start + step]
        pictures, problems = _read(some, preprocess.size[0], preprocess.margin)
        ranked = iter(_ranked(network, pictures, preprocess, job.config.training, top))
        for file, problem in zip(some, problems, strict=True):
            yield Prediction(file, problem=problem) if problem else Prediction(file, next(ranked))


def _ranked(
    network: nn.Module, pictures: list[np.ndarray], preprocess: Preprocess, training: Training, top: int
) -> list[tuple[tuple[str, float], ...]]:
    """The likeliest classes of each picture."""
    if not pictures:
        return []
    images = normalized(torch.from_numpy(np.stack(pictures)), preprocess.mean, preprocess.std)
    with torch.inference_mode(), autocast(training, images.device):
        found = scores(network(images)).float()
    # By the scores: two of them may round to one probability.
    order = found.argsort(dim=1, descending=True, stable=True)[:, :top]
    shares = found.softmax(1).gather(1, order)
    names = preprocess.classes
    return [
        tuple((names[i], share) for i, share in zip(row, of_row, strict=True) if i < len(names))
        for row, of_row in zip(order.tolist(), shares.tolist(), strict=True)
    ]


def _read(files: Iterable[Path], side: int, margin: float) -> tuple[list[np.ndarray], list[str]]:
    """The pixels of those that can be read, and for each file what is wrong with it."""
    pictures, problems = [], []
    for file in files:
        try:
            pictures.append(decoded(file, side, margin))
            problems.append("")
        except DataError as error:
            problems.append(str(error))
    return pictures, problems
