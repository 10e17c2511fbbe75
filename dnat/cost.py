"""What a network costs: parameters and multiply-adds."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from .tracing import Example, examples_of, in_mode


@dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-adds of one image (or one row of whatever the batch holds)."""

    params: int
    madds: int

    def __str__(self) -> str:
        return f"{self.params / 1e6:.3f} M parameters, {self.madds / 1e6:.2f} M MAdds"


def cost(network: nn.Module, example: Example) -> Cost:
    """Count a network's parameters and multiply-adds.

    Multiply-adds are those of convolutions, linear layers and matrix products, found by running the network in
    eval mode under torch's `FlopCounterMode` (its figure halved); biases, norms, activations and pools do not
    count, as in the papers. Of several examples the first is used. The network is left as it was.

    Args:
        network: any module.
        example: see `dnat.trace`.

    >>> print(cost(nn.Linear(10, 5), torch.zeros(2, 10)))
    0.000 M parameters, 0.00 M MAdds
    >>> cost(nn.Linear(10, 5), torch.zeros(2, 10))
    Cost(params=55, madds=50)
    """
    args, kwargs = examples_of(example)[0]
    rows = next((t.shape[0] for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.dim()), 1)
    with torch.no_grad(), in_mode(network, False), FlopCounterMode(display=False) as counter:
        network(*args, **kwargs)
    params = sum(p.numel() for p in network.parameters())
    return Cost(params, counter.get_total_flops() // 2 // max(rows, 1))
