"""The identity of an edge whose ends differ in resolution or channels."""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from .layouts import subsampled, with_dense_gradients


class FactorizedReduce(nn.Module):
    """The "identity" of an edge whose output has half the resolution or other channels.

    ReLU, then two 1x1 convolutions with the edge's stride, the second on the input shifted by one pixel so that
    no pixel is ignored, their outputs side by side, and a batch norm. It has weights and costs
    `C_out * C_in * H_out * W_out` multiply-adds. With stride 1 it is one plain 1x1 convolution.

    Source: DARTS's FactorizedReduce, which NAT uses for `skip_connect` on reducing edges (docs/methods.md A2).

    Shape:
        - Input: (N, C_in, H, W)
        - Output: (N, C_out, ceil(H / stride), ceil(W / stride))

    >>> FactorizedReduce(4, 8, stride=2)(torch.zeros(1, 4, 8, 8)).shape
    torch.Size([1, 8, 4, 4])
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.relu = nn.ReLU()
        shifted = channels_out // 2 if stride > 1 else 0
        self.conv1 = nn.Conv2d(channels_in, channels_out - shifted, 1, stride, bias=False)
        self.conv2 = nn.Conv2d(channels_in, shifted, 1, stride, bias=False) if shifted else None
        self.bn = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the reduction; see the class."""
        if self.conv2 is None:
            return self.bn(self.conv1(self.relu(x)))
        if self.stride == 2 and _is_trained_here(x, self.conv1, self.conv2):
            first, second = (self.relu(part) for part in subsampled(x))
            pairs = ((first, self.conv1), (second, self.conv2))
            parts = [conv2d(part, conv.weight, conv.bias) for part, conv in pairs]
        else:
            x = self.relu(x)
            # Zeros stand in for the row and column that the shift leaves empty, so that any size works. One
            # padding cuts and pads: the gradient of a slice would lose the memory layout, and so its speed.
            parts = [self.conv1(x), self.conv2(pad(x, (-1, 1, -1, 1)))]
        return self.bn(with_dense_gradients(torch.cat(parts, dim=1)))


def _is_trained_here(x: Tensor, *convolutions: nn.Module) -> bool:
    """Whether nobody but the gradients is interested in how a reduction's output comes about.

    Then half of the work does, in a way that has no steps to be recorded or compiled, and calls no convolution as
    a module. From 16 images of even sides on its numbers are the same to the bit (`tests/test_layouts.py` has the
    sizes); of fewer the gradients of weights would be summed in another order.
    """
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and type(x) is Tensor
        and x.dim() == 4
        and len(x) >= 16
        and x.shape[2] % 2 == x.shape[3] % 2 == 0
        and x.device.type == "cpu"
        and not torch._C._len_torch_function_stack()
        and all(type(conv) is nn.Conv2d and not has_hooks(conv) for conv in convolutions)
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether other code runs before or after a module's forward."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind, None) for kind in kinds)
