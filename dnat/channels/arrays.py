"""Tensors of labels, in which most of what stands along most dimensions is only repeated."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

NOTHING = -1
"""The label of what has none."""


def spread(labels: np.ndarray, axis: int, shape: Sequence[int]) -> Tensor:
    """Labels along one dimension, all others being alike."""
    sizes = [1] * len(shape)
    sizes[axis] = -1
    return torch.from_numpy(labels).view(sizes).expand(tuple(shape))


def thin(labels: Tensor) -> Tensor:
    """The labels without what is only repeated."""
    for dim, step in enumerate(labels.stride()):
        if step == 0 and labels.shape[dim] > 1:
            labels = labels.narrow(dim, 0, 1)
    return labels


def distinct(labels: Tensor) -> list[int]:
    """The labels that occur, each once."""
    return [label for label in torch.unique(thin(labels)).tolist() if label != NOTHING]


def is_constant(labels: Tensor, dims: Iterable[int]) -> bool:
    """Whether labels are alike along each of some dimensions."""
    bare = thin(labels)
    return all(bare.shape[d] == 1 or bool((bare == bare.narrow(d, 0, 1)).all()) for d in dims)


def first(labels: Tensor, dims: Iterable[int]) -> Tensor:
    """The first along some dimensions, which stay with size 1."""
    for dim in dims:
        labels = labels.narrow(dim, 0, 1)
    return labels


def pairs(some: Tensor, others: Tensor) -> np.ndarray:
    """The distinct pairs of labels that stand at the same place, (pairs, 2)."""
    for dim, (a, b) in enumerate(zip(some.stride(), others.stride(), strict=True)):
        if a == b == 0 and some.shape[dim] > 1:
            some, others = some.narrow(dim, 0, 1), others.narrow(dim, 0, 1)
    apart = some != others
    keys = (some[apart] + 1 << 32) + others[apart] + 1  # as one number: torch sorts rows slowly
    both = torch.unique(keys).numpy()
    return np.stack([(both >> 32) - 1, (both & 0xFFFFFFFF) - 1], 1)
