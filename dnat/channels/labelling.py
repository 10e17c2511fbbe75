"""The labels of channels, and how they become one."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arrays import NOTHING, distinct, first, is_constant, pairs


class UnknownError(Exception):
    """It cannot be told what a function does to channels."""


class Classes:
    """Labels, and which of them have become one (union-find)."""

    def __init__(self) -> None:
        self.parents: list[int] = []
        self.makers: list[str] = []
        self.fixed: set[int] = set()

    def new(self, count: int, maker: str) -> np.ndarray:
        """So many new labels, of what a weight makes."""
        first = len(self.parents)
        self.parents.extend(range(first, first + count))
        self.makers.extend([maker] * count)
        return np.arange(first, first + count)

    def root(self, label: int) -> int:
        """The one that stands for all that have become one with a label."""
        while self.parents[label] != label:
            self.parents[label] = self.parents[self.parents[label]]
            label = self.parents[label]
        return label

    def unite(self, pairs: np.ndarray) -> None:
        """Make the labels of each row one."""
        for one, other in pairs.tolist():
            a, b = self.root(one), self.root(other)
            if a != b:
                self.parents[max(a, b)] = min(a, b)

    def roots(self, labels: Iterable[int]) -> list[int]:
        """The same of several."""
        return [NOTHING if label == NOTHING else self.root(label) for label in labels]


class Labelling:
    """The labels of all tensors of a run, and what layers make and read them.

    Attributes:
        names: of parameters and buffers, by the tensor's id.
        classes: which labels have become one.
        labels: of each tensor, by its id.
        cuts: {(parameter or buffer, dimension): to which label each index belongs}.
        makers, readers: {weight: its dimension that makes, or reads, channels}.
        axes: {weight: along which dimension of its input it reads them}.
    """

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self.classes = Classes()
        self.labels: dict[int, Tensor] = {}
        self.cuts: dict[tuple[str, int], np.ndarray] = {}
        self.makers: dict[str, int] = {}
        self.readers: dict[str, int] = {}
        self.axes: dict[str, int] = {}

    def fix(self, tensors: Iterable[Tensor]) -> None:
        """The channels of some tensors cannot go."""
        for tensor in tensors:
            labels = self.labels.get(id(tensor))
            if labels is not None:
                self.classes.fixed.update(distinct(labels))

    def put(self, tensor: Tensor, labels: Tensor) -> None:
        """Give a tensor its labels."""
        if labels.shape != tensor.shape:
            raise UnknownError
        self.labels[id(tensor)] = labels

    def of(self, tensor: Any) -> Tensor | None:
        """The labels of a tensor; None where it has none."""
        return self.labels.get(id(tensor)) if isinstance(tensor, Tensor) else None

    def summed(self, known: Sequence[Tensor]) -> None:
        """Sums of what different layers made are a residual stream."""
        first = known[0]
        for other in known[1:]:
            for one, two in pairs(first, other).tolist():
                apart = NOTHING not in (one, two) and self.classes.root(one) != self.classes.root(two)
                if apart and self.classes.makers[one] != self.classes.makers[two]:
                    self.classes.fixed.update((one, two))

    def joined(self, known: Sequence[Tensor]) -> Tensor:
        """The labels of what several labelled tensors of one shape make together."""
        joined = known[0]
        for other in known[1:]:
            if other is not joined:
                self.unite(joined, other)
                joined = torch.where(joined == NOTHING, other, joined) if (joined == NOTHING).any() else joined
        return joined

    def unite(self, some: Tensor, others: Tensor) -> None:
        """Make labels that stand at the same place one."""
        rows = pairs(some, others)
        bare = (rows == NOTHING).any(1)
        self.classes.fixed.update(rows[bare].ravel().tolist())
        self.classes.fixed.discard(NOTHING)
        self.classes.unite(rows[~bare])

    def unite_arrays(self, some: np.ndarray, others: np.ndarray) -> None:
        """The same of arrays."""
        self.unite(torch.from_numpy(np.ascontiguousarray(some)), torch.from_numpy(np.ascontiguousarray(others)))

    def tied(self, labels: Tensor, dims: Iterable[int]) -> Tensor:
        """The labels, those that lie along some dimensions being one."""
        dims = list(dims)
        if not is_constant(labels, dims):
            self.unite(first(labels, dims).expand(labels.shape), labels)
            return first(labels, dims).expand(labels.shape)
        return labels

    def vector(self, labels: Tensor, dim: int) -> np.ndarray:
        """The labels along a dimension, those that lie along all others being one."""
        dim %= labels.dim()
        others = [d for d in range(labels.dim()) if d != dim]
        return first(self.tied(labels, others), others).flatten().numpy().copy()

    def cut(self, name: str, dim: int, labels: np.ndarray) -> None:
        """Note to whom the slices of a tensor belong."""
        if (name, dim) in self.cuts:
            self.unite_arrays(self.cuts[name, dim], labels)
        else:
            self.cuts[name, dim] = labels
