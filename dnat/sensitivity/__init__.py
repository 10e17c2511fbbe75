"""What each choice of each edge does to a network's answers, found by trying every one; nothing is trained.

The damage of a choice is

    D = mean over images of KL(answers of the network || answers with the choice made)

with the answers' probabilities p = softmax(scores); of outputs that are no class scores, the mean squared
difference as a share of the outputs' variance. Batch norms use the statistics of the images that are shown: with
those that the network recorded, a choice is blamed for what any step of training would mend (FastNAS and NNCF
re-estimate norms, too, before they judge); norms that are frozen keep theirs. So do those of the network that is
compared to: taken off afterwards, what norms alone do hid small damages, and half of ResNet56's choices had none
(docs/log.md). No label is needed. A network that draws at random draws the same in every pass.

The set for a budget is the one with the least sum of damages, exactly (`least_damage`). What a set does as a whole
(`Judge.damage`) is a worse guide: where that is much, it tells which answers are left in pieces, and not what
training mends. Held against every set of blocks of a trained ResNet20, the sum is nearly always right, and to
exchange choices while the damage of the whole fell cost up to 12 points (docs/log.md).
"""

import itertools
import math

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..data import Augmentation, Data, Source
from ..relaxation import RelaxedNetwork
from ..tracing import Example, tensors_of
from ..training import take_statistics
from .damages import Distances as Distances
from .damages import Sensitivity as Sensitivity
from .damages import least_damage as least_damage
from .judge import Judge as Judge
from .memory import modules_before as modules_before

MEMORY = 1 << 30
"""Bytes that outputs of modules may take which are remembered while choices behind them are tried."""

SHOWN_AT_ONCE = 125
"""Images of a batch, at the most."""

MOST_IMAGES, LEAST_IMAGES = 1000, 64
"""How many images are shown where their number is not given, at most and at least."""

EFFORT = 2.5e12
"""Multiply-adds that trying all choices may take where the number of images is not given."""

VIEWS = 8
"""How often images are shown again, where they are few: cropped and flipped, as training varies them."""

NORM_IMAGES = 500
"""Images on which norms are re-estimated once choices are made."""


def shown_batches(data: Source, count: int, most: int, seed: int) -> list[Example]:
    """Training inputs to be shown: batches of at most so many examples, of `count` in all.

    Images of which there are so few that they can be shown more than once are: as they are, and up to `VIEWS`
    times as training varies them. Sets chosen from 50 do a tenth less damage by it (docs/log.md).

    Args:
        data: which has them.
        count: how many, at most; each view counts.
        most: examples of a batch.
        seed: which ones.
    """
    batches = [*data.train_inputs(count, seed), *_views(data, count, seed)]
    return [part for batch in batches for part in divided(batch, most)]


def _views(data: Source, count: int, seed: int) -> list[Tensor]:
    """All training images once more and again, up to `count` and to `MOST_IMAGES` in all.

    None where nothing varies them, or what does leaves a small part of them.
    """
    if not isinstance(data, Data) or data.augmentation.resized or data.augmentation == Augmentation(0, flip=False):
        return []
    images = data.train_count
    again = min(min(count, MOST_IMAGES) // images - 1, VIEWS)
    return [shown for epoch in range(again) for shown, _ in data.train_batches(seed, epoch, images)]


def affordable_images(relaxed: RelaxedNetwork, madds: float) -> int:
    """How many images to show where their number is not given: fewer to a network that takes long.

    Args:
        relaxed: with all choices that are tried.
        madds: of the network, for one image.
    """
    trials = sum(len(relaxed.choices_of(group)) - 1 for group in relaxed.groups)
    each = madds * trials / 2  # half of it is remembered
    return max(LEAST_IMAGES, min(MOST_IMAGES, 50 * int(EFFORT / max(each, 1.0) / 50)))


def retake_statistics(network: nn.Module, data: Source, seed: int) -> None:
    """Let norms record the statistics of training inputs as they are (`training.take_statistics`)."""
    most = min(SHOWN_AT_ONCE, data.usual_batch)
    for_all = data.train_inputs(NORM_IMAGES, seed)
    parts = (batch.split(most) if isinstance(batch, Tensor) else divided(batch, most) for batch in for_all)
    take_statistics(network, itertools.chain.from_iterable(parts))


def batch_size(relaxed: RelaxedNetwork) -> int:
    """How many images can be shown at once, so that what is remembered of them takes no more than `MEMORY`."""
    sizes = _sizes(relaxed)
    before = [modules_before(relaxed.members(group)) for group in relaxed.groups]
    each = max(sum(sizes[path] for path in paths) for paths in before)
    return max(8, min(125, int(MEMORY / max(each, 1.0))))


def rows_of(batch: Example) -> int | None:
    """How many images a batch holds, where all its tensors agree in their first dimension; else None."""
    lengths = {len(t) for t in tensors_of(batch) if t.dim()}
    return lengths.pop() if len(lengths) == 1 else None


def divided(batch: Example, most: int) -> list[Example]:
    """A batch in parts of nearly equal size, each of at most so many images."""
    here = rows_of(batch)
    if not here or here <= most:
        return [batch]
    bounds = [(int(p[0]), int(p[-1]) + 1) for p in torch.arange(here).tensor_split(math.ceil(here / most))]

    def part(first: int, last: int) -> Example:
        return tree_map_only(Tensor, lambda t: t[first:last] if t.dim() else t, batch)

    return [part(first, last) for first, last in bounds]


def _sizes(relaxed: RelaxedNetwork) -> dict[str, float]:
    """How many bytes what each module gives for one image takes, by its path."""
    trace = relaxed.edges.trace
    outputs = {call.path: [trace.values[v] for v in call.outputs] for call in trace.calls}
    return {
        path: sum(math.prod(v.shape) * v.dtype.itemsize for v in values) / max(trace.batch, 1)
        for path, values in outputs.items()
    }
