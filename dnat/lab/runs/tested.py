"""What a run's networks take each test image for, in a file that compares them image by image."""

import hashlib
from collections.abc import Iterator
from contextlib import closing

import torch
from torch import Tensor, nn

from ...answers import autocast, call
from ...data import Data, Source
from ...networks.weights import tensor_file
from ...session import reproducible
from ...settings import Config
from ...tasks import Classification, Task
from ...tracing import add_bits, copied, in_mode, kept_buffers
from ...training import laid_out

FORMAT = "1"
"""Of the file's metadata."""


def write_predictions(
    before: nn.Module, after: nn.Module, data: Source, config: Config, task: Task
) -> bytes | None:
    """The labels of the test examples and the classes that two networks give them, as a safetensors file.

    Its tensors are `labels`, `before` and `after`, (N,) in the data's order and the smallest type of integers that
    holds all; its metadata tell the format, and a SHA-256 of the test examples. The networks stay as they are.

    Args:
        before: the network as it was given to the run.
        after: the result, on the device of the run.
        data: of the run.
        config: of the run; numbers are computed as there.
        task: of the run.

    Returns:
        The file's bytes; None where examples have no one class each.
    """
    if not isinstance(task, Classification):
        return None
    device = next((t.device for t in after.parameters()), torch.device("cpu"))
    given, data = laid_out(copied(before).to(device), config.machine, device), data.to(device)
    with reproducible(config):
        tested = [list(_classes(network, data, config, task)) for network in (given, after)]
    labels = torch.cat([target for _, target in tested[0]])
    table = {"labels": labels} | {
        name: torch.cat([classes for classes, _ in rows])
        for name, rows in zip(("before", "after"), tested, strict=True)
    }
    largest = max(int(values.max()) for values in table.values())
    kind = torch.uint8 if largest < 2**8 else torch.int16 if largest < 2**15 else torch.int32
    told = {"format": FORMAT, "test": _digest(data, labels)}
    return tensor_file({name: values.to(kind).contiguous() for name, values in table.items()}, told)


def _classes(network: nn.Module, data: Source, config: Config, task: Task) -> Iterator[tuple[Tensor, Tensor]]:
    """The class of each example by the network, and its label, batch after batch, as `evaluate` tests them."""
    with (
        in_mode(network, False),
        kept_buffers(network.modules()),
        torch.inference_mode(),
        closing(data.test_batches(data.usual_batch)) as batches,
    ):
        for inputs, target in batches:
            with autocast(config.training, target.device):
                output = call(network, inputs)
            yield task.logits(output).argmax(1).cpu(), target.cpu()


def _digest(data: Source, labels: Tensor) -> str:
    """A SHA-256 that is equal where the test examples are, whatever networks are trained on."""
    digest = hashlib.sha256(data.name.encode())
    add_bits(digest, labels)
    if not isinstance(data, Data):
        digest.update(data.fingerprint().encode())
    elif isinstance(data.test_images, Tensor):
        digest.update(repr(data.classes).encode())
        add_bits(digest, data.test_images)
    else:
        digest.update(f"{data.classes} {data.test_images.digest()}".encode())
    return digest.hexdigest()
