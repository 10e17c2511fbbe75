"""How good an architecture is with shared weights: on images that those were not trained on."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...data import Data
from ...settings import Config
from ...training import Evaluation, evaluate, frozen_statistics, measured, take_statistics


@contextmanager
def recalibrated(network: nn.Module, batches: Iterable[Tensor]) -> Iterator[None]:
    """Within, batch norms hold the statistics of what the network computes now; then what they held before.

    Shared weights are trained under many architectures, and the running statistics are those of the mixture.

    Args:
        network: left as it was, afterwards.
        batches: of training images (N, C, H, W); their mean counts.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [{k: v.clone() for k, v in m.named_buffers()} for m in norms]
    try:
        take_statistics(network, batches)
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            for name, value in norm.named_buffers():
                value.copy_(buffers[name])


def judge(network: nn.Module, training: Data, held_out: Data, config: Config) -> Evaluation:
    """Loss and accuracy on the test split of `held_out`, in eval mode.

    Batch norms take their statistics from the first `search.calibration` batches of training images.
    """
    with recalibrated(network, _some(training, config)):
        return evaluate(network, held_out, config)


def _some(training: Data, config: Config) -> Iterator[Tensor]:
    batches = training.train_batches(config.seed, 0, config.search.batch_size)
    for _, (images, _) in zip(range(config.search.calibration), batches, strict=False):
        if len(images) > 1 or config.search.batch_size == 1:
            yield images
    batches.close()


@torch.no_grad()
def judge_as_released(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], config: Config) -> Evaluation:
    """As the code of NAT and NAT++ judges: in train mode, by each batch's statistics (docs/methods.md A8)."""
    network.train()
    with frozen_statistics(network):
        return measured(network, batches, config)
