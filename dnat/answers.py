"""What a network answers to images: class scores, however they are wrapped, and in which precision they come."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from .config import Config
from .errors import WrongTypeError, users_code


def scores(output: object) -> Tensor:
    """The class scores (N, classes) in a network's output.

    Raises:
        TypeError: the output holds no scores, with what it is.
    """
    output = getattr(output, "logits", output)
    if isinstance(output, Tensor) and output.dim() == 2:
        return output
    what = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    raise WrongTypeError(f"the network must return class scores, a tensor (images, classes), but returns {what}")


def auxiliary_scores(output: object) -> list[Tensor]:
    """The class scores of auxiliary heads in a network's output: a named tuple's fields that begin with "aux".

    >>> from collections import namedtuple
    >>> both = namedtuple("Output", ["logits", "aux_logits"])(torch.zeros(2, 3), torch.ones(2, 3))
    >>> [tuple(t.shape) for t in auxiliary_scores(both)], auxiliary_scores(both.logits)
    ([(2, 3)], [])
    """
    names = getattr(output, "_fields", ())
    found = [getattr(output, name) for name in names if name.startswith("aux")]
    return [t for t in found if isinstance(t, Tensor)]


def call(network: Callable[..., Any], inputs: Any) -> Any:
    """What a network gives for inputs: a tensor, a tuple of positional arguments, or a dict of keyword ones."""
    if isinstance(inputs, tuple):
        return network(*inputs)
    return network(**inputs) if isinstance(inputs, Mapping) else network(inputs)


def count_of(inputs: Any) -> int:
    """How many examples inputs, or targets, are of."""
    return len(next(t for t in tree_leaves(inputs) if isinstance(t, Tensor)))


def moved(inputs: Any, device: torch.device) -> Any:
    """Inputs on a device."""
    return tree_map_only(Tensor, lambda t: t.to(device), inputs)


def in_forward(network: nn.Module, images: Any) -> AbstractContextManager[None]:
    """Within, what a network's own code raises for a batch of images is told as its error."""
    mode = "train" if network.training else "eval"
    shape = f"images of shape {tuple(images.shape)}" if isinstance(images, Tensor) else "its inputs"
    what = f"{type(network).__name__}'s forward failed on {shape} in {mode} mode"
    return users_code(what, alone=False)


def wide(output: Tensor) -> Tensor:
    """Scores in float32 at least, in which a loss is computed."""
    return output.float() if output.dtype != torch.float64 else output


@contextmanager
def autocast(config: Config, device: torch.device) -> Iterator[None]:
    """Automatic mixed precision, where the configuration asks for it."""
    with torch.autocast(device.type, torch.bfloat16, enabled=config.amp == "bf16"):
        yield
