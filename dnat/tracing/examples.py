"""Example batches, and the tensors that stand in what is given to a network or comes out of it."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from ..errors import WrongTypeError

Example: TypeAlias = Any
"""A tensor, a tuple (positional arguments), a dict (keyword arguments), or an iterable of such."""


def examples_of(example: Example) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Positional and keyword arguments of each example; see `Example`.

    Raises:
        TypeError: nothing that a network could be called with.
    """
    if isinstance(example, Tensor):
        return [((example,), {})]
    if isinstance(example, tuple):
        return [(example, {})]
    if isinstance(example, Mapping):
        return [((), dict(example))]
    if isinstance(example, Iterable) and not isinstance(example, str | bytes):
        examples = [arguments for item in example for arguments in examples_of(item)]
        if examples:
            return examples
        raise WrongTypeError("the example is empty: at least one batch is needed")
    raise WrongTypeError(
        f"an example must be a tensor, a tuple, a dict or an iterable of such, not {type(example).__name__}"
    )


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors of a nested structure, in order; objects with `to_tuple` (transformers) are opened."""
    return tensor_leaves(tree.to_tuple() if hasattr(tree, "to_tuple") else tree)


def tensor_leaves(tree: Any) -> list[Tensor]:
    """The tensors among the leaves of a structure, as torch's pytrees have them."""
    # Most of what is asked for is this plain, and pytrees take ten times as long.
    if isinstance(tree, Tensor):
        return [tree]
    if tree is None or type(tree) in (bool, int, float, str, torch.dtype, torch.device):
        return []
    if type(tree) in (tuple, list):
        return [tensor for item in tree for tensor in tensor_leaves(item)]
    if type(tree) is dict:
        return [tensor for item in tree.values() for tensor in tensor_leaves(item)]
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def add_bits(digest: Any, tensor: Tensor) -> None:
    """Add a tensor's shape, type and bits to a digest of `hashlib`."""
    digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def batch_size(arguments: Any) -> int | None:
    """The first size of the first tensor."""
    return next((t.shape[0] for t in tree_leaves(arguments) if isinstance(t, Tensor) and t.dim()), None)


def doubled(arguments: Any) -> Any:
    """Arguments with every image twice: tensors whose first size is the batch's are repeated."""
    n = batch_size(arguments)
    return tree_map_only(
        Tensor, lambda t: t.repeat_interleave(2, 0) if t.dim() and t.shape[0] == n else t, arguments
    )


def enlarged(arguments: Any) -> Any:
    """Arguments of another size: images with 32 more pixels each way, sequences of whole numbers with 2 more."""

    def larger(t: Tensor) -> Tensor:
        if t.dim() >= 4:
            return t.new_zeros(*t.shape[:2], *(n + 32 for n in t.shape[2:]))
        return torch.cat([t, t[:, :2]], 1) if t.dim() == 2 and not t.is_floating_point() else t

    return tree_map_only(Tensor, larger, arguments)
