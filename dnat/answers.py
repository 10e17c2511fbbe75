"""How a network is called, and what it answers: class scores, however they are wrapped, and in which precision."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .data import count_of as count_of
from .data import moved as moved
from .errors import WrongTypeError, users_code
from .settings import Training
from .tracing import Example, examples_of, tensors_of


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
    heads = [getattr(output, name) for name in names if name.startswith("aux")]
    return [t for t in heads if isinstance(t, Tensor)]


def call(network: Callable[..., Any], inputs: Example) -> Any:
    """What a network answers to a batch: a tensor, a tuple of positional, or a dict of keyword arguments.

    >>> double = nn.Upsample(scale_factor=2)
    >>> call(double, torch.ones(1, 1, 2)).shape == call(double, {"input": torch.ones(1, 1, 2)}).shape
    True
    """
    ((args, kwargs),) = examples_of(inputs)
    return network(*args, **kwargs)


def device_of(inputs: Example) -> torch.device:
    """Where the first tensor of a batch lies."""
    return tensors_of(inputs)[0].device


def in_forward(network: nn.Module, inputs: Example) -> AbstractContextManager[None]:
    """Within, what a network's own code raises for a batch is told as its error."""
    mode = "train" if network.training else "eval"
    shapes = [tuple(t.shape) for t in tensors_of(inputs)]
    shown = f"images of shape {shapes[0]}" if isinstance(inputs, Tensor) else f"inputs of shapes {shapes}"
    return users_code(f"{type(network).__name__}'s forward failed on {shown} in {mode} mode", alone=False)


def wide(output: Tensor) -> Tensor:
    """Scores in float32 at least, in which a loss is computed."""
    return output.float() if output.dtype != torch.float64 else output


@contextmanager
def autocast(training: Training, device: torch.device) -> Iterator[None]:
    """Automatic mixed precision, where the configuration asks for it."""
    with torch.autocast(device.type, torch.bfloat16, enabled=training.amp == "bf16"):
        yield
