"""Two networks on the same test images, image by image: McNemar's test, and a bootstrap over seeds and images.

McNemar's exact test (McNemar 1947; Dietterich 1998) asks whether two *networks* are right equally
often on images like these: of the images that one alone has right, each network should have half. It knows nothing
of other seeds. The bootstrap over both asks about two *methods*, on new seeds and new images: it draws seeds and,
apart from them, images, with which all seeds are tested alike (the pigeonhole bootstrap of Owen 2007, which is
rather too wide than too narrow).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import UsageError
from ...rundir import PREDICTIONS, RunFiles
from ...seeds import check_seed
from .statistics import Interval, check_confidence

RESAMPLES = 2000
"""How often the bootstrap draws: each draw looks at all images."""

_AT_ONCE = 1 << 22
"""Numbers that are drawn at a time."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """What the networks of a run take each test image for.

    Attributes:
        labels, before, after: (N,) integers: the truth, by the network as it was given, by the result.
        test: a digest that is equal where the test images are.
    """

    labels: np.ndarray
    before: np.ndarray
    after: np.ndarray
    test: str

    def right(self, which: str = "after") -> np.ndarray:
        """(N,) truth values: whether the network "before" or "after" has each image right."""
        return np.asarray(getattr(self, which) == self.labels)


def read_predictions(directory: str | Path) -> Predictions:
    """The predictions of a finished run.

    Raises:
        ValueError: it has none, or a file that cannot be read, or is not what the run wrote.
    """
    file = Path(directory) / PREDICTIONS
    if not file.exists():
        raise UsageError(
            f"{directory} has no {PREDICTIONS}: it is not finished, its task has no classes, or an older dnat "
            "wrote it, which kept none"
        )
    if RunFiles(directory).is_done():
        RunFiles(directory).check(PREDICTIONS)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as opened:
            table = {name: opened.get_tensor(name) for name in ("labels", "before", "after")}
            test = str((opened.metadata() or {})["test"])
    except (SafetensorError, KeyError, OSError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from error
    if len({values.shape for values in table.values()}) > 1 or table["labels"].ndim != 1:
        raise UsageError(f"{file} cannot be read: its tensors are of different lengths")
    return Predictions(**table, test=test)


@dataclass(frozen=True)
class Discordance:
    """Two networks on the same images.

    Attributes:
        both, first, second, neither: images that both have right, one of them alone, none.
        p: of McNemar's exact test, two-sided; 1 where no image tells them apart.
    """

    both: int
    first: int
    second: int
    neither: int
    p: float

    @property
    def images(self) -> int:
        """Of the test."""
        return self.both + self.first + self.second + self.neither

    @property
    def shares(self) -> tuple[float, float]:
        """The accuracy of each, from 0 to 1."""
        return (self.both + self.first) / self.images, (self.both + self.second) / self.images


def discordance(first: np.ndarray, second: np.ndarray) -> Discordance:
    """What tells two networks apart.

    Args:
        first, second: (N,) truth values: whether each has an image right.

    >>> discordance(np.array([1, 1, 1, 0], dtype=bool), np.array([1, 0, 0, 0], dtype=bool))
    Discordance(both=1, first=2, second=0, neither=1, p=0.5)
    """
    if first.shape != second.shape or not len(first):
        raise UsageError(f"two networks are compared on the same images, not on {len(first)} and {len(second)}")
    alone = int((first & ~second).sum()), int((second & ~first).sum())
    both = int((first & second).sum())
    return Discordance(both, *alone, len(first) - both - sum(alone), _binomial(*alone))


def _binomial(a: int, b: int) -> float:
    """p that a fair coin falls as unevenly as a to b, two-sided: McNemar's, exact."""
    if a == b:
        return 1.0
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(a, b), a + b, 0.5)))


def two_level_interval(
    differences: np.ndarray, confidence: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """The percentile bootstrap's interval for the mean over seeds and images, both drawn anew.

    Args:
        differences: (seeds, images): of each, how much better the second network is. Of one seed images alone are
            drawn.
        confidence: between 0 and 1.
        seed: of the draws.
        resamples: number of draws.
    """
    seeds, images = differences.shape
    tail = (1 - check_confidence(confidence)) / 2
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(check_seed(seed))))
    numbers, means = differences.astype(float), []
    for count in _portions(resamples, max(1, _AT_ONCE // images)):
        of_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=count)
        drawn = generator.integers(0, images, (count, images))
        rows = of_seeds @ numbers / seeds
        means.append(np.take_along_axis(rows, drawn, axis=1).mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def _portions(total: int, most: int) -> list[int]:
    parts = math.ceil(total / most)
    return [total // parts + (i < total % parts) for i in range(parts)]


@dataclass(frozen=True)
class Paired:
    """Two methods on the same test images, at seeds that both have.

    Attributes:
        names: of both.
        seeds: of the pairs: one number, or two where they are of different seeds.
        tables: of each pair of networks.
        difference: of accuracy, second less first, in points, mean over seeds.
        interval: the bootstrap's, over images and, with more than one pair, seeds.
    """

    names: tuple[str, str]
    seeds: tuple[tuple[int, ...], ...]
    tables: tuple[Discordance, ...]
    difference: float
    interval: Interval


def paired(
    names: tuple[str, str],
    seeds: Sequence[tuple[int, ...]],
    rights: Sequence[tuple[np.ndarray, np.ndarray]],
    confidence: float = 0.95,
) -> Paired:
    """Two methods whose networks have images right or not.

    Args:
        names: of both.
        seeds: of each pair.
        rights: of each pair, (N,) truth values of the first and of the second network, on the same images.
        confidence: of the interval.
    """
    gains = 100.0 * np.array([second.astype(int) - first.astype(int) for first, second in rights])
    return Paired(
        names=names,
        seeds=tuple(seeds),
        tables=tuple(discordance(first, second) for first, second in rights),
        difference=float(gains.mean()),
        interval=two_level_interval(gains, confidence),
    )
