"""A batch of a user's data -> inputs of a network and a target, as nested structures of tensors."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..errors import UsageError
from ..tracing import tensors_of
from .source import Inputs, Target

Batch: TypeAlias = tuple[Inputs, Target]
"""Inputs and a target."""

LABELS = ("labels", "label")
"""Under these names a dict holds the target, as batches of Hugging Face do."""


def parted(batch: Any, what: str, rows: tuple[int, int] = (0, 1)) -> Batch:
    """Inputs and target of a batch.

    Args:
        batch: a pair (inputs, target), or a dict with the target among its values (`LABELS`).
        what: has it, for messages.
        rows: (which, of how many) parts of its examples are wanted.

    Raises:
        ValueError: it is no such, has no tensors, or sizes that differ.

    >>> parted({"x": torch.zeros(4, 2), "labels": torch.arange(4)}, "training data", (1, 2))[1]
    tensor([2, 3])
    """
    if isinstance(batch, Mapping):
        name = next((name for name in LABELS if name in batch), None)
        if name is None:
            raise UsageError(
                f"a batch of the {what} is a dict without 'labels': it has {', '.join(map(str, batch))}"
            )
        inputs, target = {k: v for k, v in batch.items() if k != name}, batch[name]
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        inputs, target = batch
    else:
        kind = f"{type(batch).__name__}{f' of {len(batch)}' if isinstance(batch, tuple | list) else ''}"
        raise UsageError(
            f"a batch of the {what} must be a pair (inputs, target) or a dict with 'labels', not a {kind}; a "
            "collate_fn of a DataLoader can make one"
        )
    inputs, target = _arguments(inputs), _tensors(target)
    _check_sizes(inputs, target, what)
    if rows == (0, 1):
        return inputs, target
    between = rows_between(count_of(inputs), *rows)
    here = slice(between.start, between.stop)
    return taken_rows(inputs, here), taken_rows(target, here)


def _arguments(inputs: Any) -> Inputs:
    if isinstance(inputs, Mapping):
        return {str(k): _tensors(v) for k, v in inputs.items()}
    if isinstance(inputs, list):  # as torch's default_collate makes of tuples
        inputs = tuple(inputs)
    return _tensors(inputs)


def _tensors(tree: Any) -> Any:
    return tree_map_only(np.ndarray, torch.as_tensor, tree)


def _check_sizes(inputs: Inputs, target: Target, what: str) -> None:
    for part, tree in (("inputs", inputs), ("target", target)):
        if not any(t.dim() for t in tensors_of(tree)):
            raise UsageError(
                f"the {part} of a batch of the {what} hold no tensors of examples: {type(tree).__name__}"
            )
    sizes = list(dict.fromkeys(len(t) for t in tensors_of((inputs, target)) if t.dim()))
    if len(sizes) > 1:
        shown = ", ".join(map(str, sizes))
        raise UsageError(
            f"the tensors of a batch of the {what} have different first dimensions ({shown}): "
            "it must count the examples in all of them"
        )
    if sizes == [0]:
        raise UsageError(f"a batch of the {what} has no examples")


def count_of(tree: Any) -> int:
    """How many examples inputs or a target are of."""
    return next(len(t) for t in tensors_of(tree) if t.dim())


def taken_rows(tree: Any, where: slice | Tensor) -> Any:
    """Some examples of inputs or a target."""
    return tree_map_only(Tensor, lambda t: t[where] if t.dim() else t, tree)


def moved(tree: Any, device: torch.device) -> Any:
    """Inputs or a target on a device."""
    return tree_map_only(Tensor, lambda t: t.to(device, non_blocking=device.type == "cuda"), tree)


def rows_between(n: int, which: int, parts: int) -> range:
    """One of equal parts of so many examples; all of them where there are fewer than parts.

    >>> [rows_between(5, i, 2) for i in range(2)], rows_between(1, 1, 2)
    ([range(0, 2), range(2, 5)], range(0, 1))
    """
    return range(n) if n < parts else range(n * which // parts, n * (which + 1) // parts)
