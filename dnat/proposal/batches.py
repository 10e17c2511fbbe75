"""Batches of whatever a network takes: cut, moved."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..data import Source
from ..errors import UsageError, WrongTypeError
from ..sensitivity import rows_of
from ..tracing import Example


def first_batch(data: Any) -> tuple[Example, Iterable[Any]]:
    """One batch, for the trace, and all of them."""
    if isinstance(data, Source):
        return data.example(2), ()
    if isinstance(data, Tensor | tuple | Mapping):
        return data, [data]
    if isinstance(data, str) or not isinstance(data, Iterable):
        raise WrongTypeError(
            f"data must be a dnat.Data or batches of what the network takes, not {type(data).__name__}"
        )
    batches = iter(data)
    first = next(batches, None)
    if first is None:
        raise UsageError("data is empty: at least one batch is needed")
    checked_batch(first)
    return first, _chained(first, batches)


def _chained(first: Any, others: Iterable[Any]) -> Iterable[Any]:
    yield first
    yield from others


def checked_batch(batch: Any) -> None:
    """Refuse a batch that is no tensor, tuple or dict.

    Raises:
        TypeError: it is none.
    """
    if isinstance(batch, Tensor | tuple | Mapping):
        return
    hint = (
        ": of a loader with labels give (images for images, labels in loader)" if isinstance(batch, list) else ""
    )
    raise WrongTypeError(f"a batch must be a tensor, a tuple or a dict, not {type(batch).__name__}{hint}")


def resized(batch: Example, rows: int) -> Example:
    """A batch of so many of its images, over and over again; as it is where it is not certain what an image is."""
    here = rows_of(batch)
    if not here:
        return batch
    index = torch.arange(rows) % here
    return tree_map_only(Tensor, lambda t: t[index.to(t.device)] if t.dim() else t, batch)


def on_device(batch: Example, device: torch.device | None) -> Example:
    """A batch on a device."""
    return tree_map_only(Tensor, lambda t: t.to(device), batch)


def so_many(batches: Iterable[Any], most: int) -> Iterable[Example]:
    """Batches until so many images were seen; the last one is cut."""
    seen = 0
    for batch in batches:
        checked_batch(batch)
        here = rows_of(batch) or 1
        if here + seen > most and rows_of(batch):
            batch = tree_map_only(Tensor, lambda t: t[: most - seen] if t.dim() else t, batch)  # noqa: B023
        yield batch
        seen += here
        if seen >= most:
            return
