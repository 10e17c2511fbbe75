"""More than fifty networks to try dnat on: torchvision's, timm's, Hugging Face's, and awkward ones written here.

`ZOO` is the table, name -> (constructor, example), and `SETS` has it beside the whole families of `libraries`;
`build(name)` gives a network whose weights are nothing special (drawn from a fixed seed, nothing exactly 0 or 1,
norm statistics of their own). Images of the zoo have 96 x 96 pixels and batches hold 2, except where the table
says otherwise. Nothing is downloaded.

dnat, timm and transformers are imported only where a network needs them: a network of this file that was saved
whole can be loaded where dnat is not installed. `serve` is a process that does that, and `Elsewhere` asks it;
`apart` checks each of many networks in a process of its own.
"""

# ruff: noqa: D102  (a forward needs no docstring where the class has one)

import functools
import importlib.util
import json
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from libraries import (
    TIMM,
    TORCHVISION,
    TRANSFORMERS,
    Entry,
    Example,
    from_timm,
    from_torchvision,
    images,
    import_torchvision,
    of_size,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

# Examples


def both_signs(seed: int) -> list[Tensor]:
    """Two batches: one with a positive, one with a negative mean."""
    return [images(seed, 32) + 0.5, images(seed + 1000, 32) - 0.5]


def two_sizes(seed: int) -> list[Tensor]:
    """Two batches of images of different sizes."""
    return [images(seed, 48), images(seed + 1000, 24)]


def in_a_dict(seed: int) -> tuple[dict[str, Tensor]]:
    """One positional argument, which is a dict."""
    return ({"image": images(seed, 32), "scale": 1 + images(seed + 1000, 1)[:, :1].abs()},)


def two_images(seed: int) -> tuple[Tensor, Tensor]:
    """Two positional arguments."""
    return images(seed, 32), images(seed + 1000, 32)


def optional_mask(seed: int) -> list[Example]:
    """One call with and one without the optional argument."""
    mask = (images(seed + 1000, 32)[:, :1] > 0).float()
    return [(images(seed, 32), mask), {"x": images(seed + 1, 32), "mask": None, "scale": 0.5}]


# Awkward networks


class Block(nn.Module):
    """A residual block."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(y)))


class Small(nn.Module):
    """A stem, three residual blocks and a classifier: what the awkward networks are made of."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.ModuleList(Block(channels) for _ in range(3))
        self.head = nn.Linear(channels, 5)

    def classify(self, x: Tensor) -> Tensor:
        """Logits of a feature map."""
        return self.head(x.mean((2, 3)))


class DataBranch(Small):
    """Which block is used depends on the image."""

    def forward(self, x: Tensor) -> Tensor:
        positive = bool(x.mean() > 0)
        x = self.blocks[0](self.stem(x))
        x = self.blocks[1](x) if positive else self.blocks[2](x)
        return self.classify(x)


class ShapeBranch(Small):
    """What is done depends on the image's size."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if x.shape[-1] > 32:
            x = functional.avg_pool2d(self.blocks[0](x), 2)
        return self.classify(self.blocks[2](self.blocks[1](x)))


class RandomDepth(Small):
    """Blocks are left out at random in training, by Python's generator."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            if not self.training or random.random() < 0.5:
                x = block(x)
        return self.classify(x)


class SharedModule(Small):
    """One block is called three times."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = self.blocks[0](x)
        return self.classify(x)


class AliasedModule(Small):
    """One block stands under two names, and two norms share their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.again = self.blocks[0]
        self.blocks[1].norm1.weight = self.blocks[1].norm2.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[1](self.blocks[0](self.stem(x)))
        return self.classify(self.again(x))


class DictInOut(Small):
    """A dict goes in, and a nested dict comes out."""

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        x = self.stem(batch["image"]) * batch["scale"]
        features = []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        return {"logits": self.classify(x), "features": {"all": tuple(features[:2])}}


class FunctionalParameters(nn.Module):
    """Convolutions without modules."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = nn.ParameterList(torch.randn(8, c, 3, 3) / (9 * c) ** 0.5 for c in (3, 8, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.kernels
        x = functional.conv2d(x, first, padding=1)
        for kernel in others:
            x = x + torch.relu(functional.conv2d(x, kernel, padding=1))
        return self.head(x.mean((2, 3)))


class InPlaceBlock(nn.Module):
    """A residual block that writes wherever it can, with one activation for all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.act(self.conv1(x)))
        y += x
        return self.act(y)


class InPlaceSkip(Small):
    """In-place sums and activations, a write into a slice and one through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(InPlaceBlock() for _ in range(3))
        self.patch = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu_(self.stem(x))
        for block in self.blocks:
            x = block(x)
        x = x.clone()
        x[:, :4] += self.patch(x[:, 4:].clone())
        x.view(len(x), -1).mul_(0.5)
        return self.classify(x)


class WhileLoop(Small):
    """A loop whose length depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        steps = 0
        while steps < 2 or (x.abs().mean() < 1.5 and steps < 4):
            x = self.blocks[0](x)
            steps += 1
        return self.classify(self.blocks[1](x))


class Checkpointed(Small):
    """Activations are computed again for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return self.classify(x)


class ItemScale(Small):
    """A number is taken out of a tensor and used."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks[:2]:
            size = x.abs().max().item()
            x = block(x / size) * size
        return self.classify(self.blocks[2](x))


class Cell(nn.Module):
    """Two inputs by keyword, two outputs as a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(8, 8, 3, padding=1)
        self.right = nn.Conv2d(8, 8, 1)

    def forward(self, *, old: Tensor, new: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        return new, torch.tanh(self.left(old) * scale + self.right(new) + new)


class KeywordTuple(Small):
    """Children that take keywords and give back tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList(Cell() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        old, new = x.new_zeros(()), self.stem(x)
        old = old + new
        for i, cell in enumerate(self.cells):
            old, new = cell(new=new, old=old, scale=1 / (i + 1))
        return self.classify(self.blocks[0](old + new))


class NumpyMix(Small):
    """Statistics are computed by NumPy, in the middle of the network."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](self.stem(x))
        size = np.percentile(np.abs(x.detach().numpy()), 90, axis=(1, 2, 3), keepdims=True)
        x = x / torch.from_numpy(size.astype(np.float64)).to(x.dtype)
        return self.classify(self.blocks[2](self.blocks[1](x)))


class ConcatSkips(nn.Module):
    """A small U-Net: connections across, by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.down = nn.ModuleList([nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 2, 1)])
        self.middle = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, 16, 3, padding=1))
        self.up = nn.ModuleList([nn.Conv2d(32, 16, 3, padding=1), nn.Conv2d(24, 8, 3, padding=1)])
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = [self.stem(x)]
        for layer in self.down:
            seen.append(torch.relu(layer(seen[-1])))
        x = self.middle(seen.pop())
        for layer in self.up:
            x = functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = torch.relu(layer(torch.cat([x, seen.pop()], dim=1)))
        return self.head(x)


class Gated(Small):
    """Squeeze-and-excitation, a learned gate on every branch, and a difference of two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8), nn.Sigmoid())
        self.gates = nn.Parameter(torch.rand(3) + 0.5)
        self.plus, self.minus = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.gates[0] * self.blocks[0](x) * self.squeeze(x.mean((2, 3)))[:, :, None, None]
        x = x + self.gates[1] * self.plus(x) - self.minus(x)
        return self.classify(x * torch.sigmoid(self.gates[2]))


class OddSums(Small):
    """Sums as people write them: `sum`, `torch.add` with a factor, a stack, a method, a mean of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.paths = nn.ModuleList(nn.Conv2d(8, 8, 2 * i + 1, padding=i) for i in range(3))
        self.heads = nn.ModuleList(nn.Linear(8, 5) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(sum(path(x) for path in self.paths))
        x = torch.add(x, self.blocks[0].conv1(x), alpha=0.5)
        x = x.add(self.blocks[1].conv1(x))
        x = torch.stack([x, self.blocks[1].conv2(x), self.blocks[2].conv1(x)]).sum(0)
        x = 1 + x + self.blocks[2].conv2(x)
        x = torch.relu(x).mean((2, 3))
        return torch.stack([head(x) for head in [*self.heads, self.head]]).mean(0)


class WeightNorm(Small):
    """Convolutions with reparametrized weights."""

    def __init__(self) -> None:
        super().__init__()
        for block in self.blocks:
            nn.utils.parametrizations.weight_norm(block.conv1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.classify(x)


class Recurrent(nn.Module):
    """A recurrent layer over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(96, 16)
        self.mixer = nn.GRU(16, 16, batch_first=True)
        self.after = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.transpose(1, 2).flatten(2))
        mixed, last = self.mixer(x)
        x = x + mixed
        x = x + self.after(self.norm(x))
        return self.head(x[:, -1] + last[0])


class OptionalArguments(Small):
    """An argument that may be None, and a keyword with a number."""

    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        x = self.stem(x)
        if mask is not None:
            x = x * mask
        for block in self.blocks:
            x = x + block(x) * scale
        return self.classify(x)


class TwoInputs(Small):
    """Two images through the same blocks, compared."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = (self.blocks[1](self.blocks[0](self.stem(t))) for t in (a, b))
        return self.classify(self.blocks[2](a) - b) + torch.cosine_similarity(a.flatten(1), b.flatten(1))[:, None]


def double_output(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """A forward hook as users write them."""
    return output * 2


class Hooked(Small):
    """The user's own forward hooks change what some modules give."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks[0].conv2.register_forward_hook(double_output)
        self.blocks[1].register_forward_hook(double_output)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.classify(x)


class Features(Small):
    """All feature maps come out, as a list, the blocks' inner ones, too."""

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [self.stem(x)]
        for block in self.blocks:
            inner = block.norm2(block.conv2(block.conv1(features[-1])))
            features += [inner, features[-1] + inner]
        return [*features, self.classify(features[-1])]


class Attention(nn.Module):
    """torch's own attention module, with a mask, and the weights come out, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 8, 8)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(2))
        self.attention = nn.ModuleList(nn.MultiheadAttention(16, 4, batch_first=True) for _ in range(2))
        self.query, self.key = nn.Linear(16, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(x).flatten(2).transpose(1, 2)
        for norm, attention in zip(self.norms, self.attention, strict=True):
            y = norm(x)
            y, weights = attention(y, y, y)
            x = x + y
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        x = x + torch.softmax(scores / 4, -1) @ x
        return self.head(x.mean(1)), weights


class MixedOperations(Small):
    """An edge of a search space: weighted candidates, their weights from a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.candidates = nn.ModuleDict(
            {"wide": nn.Conv2d(8, 8, 5, padding=2), "narrow": nn.Conv2d(8, 8, 1), "pool": nn.AvgPool2d(3, 1, 1)}
        )
        self.alpha = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        weights = self.alpha.softmax(0)
        x = sum(w * candidate(x) for w, candidate in zip(weights, self.candidates.values(), strict=True))
        return self.classify(self.blocks[0](x))


class Stateful(Small):
    """Buffers that the forward pass updates."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("average", torch.full((8, 1, 1), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](self.stem(x))
        if self.training:
            self.seen += len(x)
            self.average.lerp_(x.detach().mean((0, 2, 3))[:, None, None], 0.1)
        return self.classify(self.blocks[1](x - self.average))


class Spectral(Small):
    """A detour over complex numbers."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](self.stem(x))
        spectrum = torch.fft.rfft2(x)
        low = torch.fft.irfft2(spectrum * (spectrum.abs() > 1), s=x.shape[-2:])
        return self.classify(self.blocks[1](x + self.blocks[2].conv1(low)))


class FunctionalDropout(Small):
    """Dropout without a module, in one branch."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + functional.dropout(block.norm1(block.conv1(x)), 0.2, self.training)
        return self.classify(x)


class FrozenStem(Small):
    """A part that is not trained, under `no_grad`, and whose norms stay in eval mode."""

    def train(self, mode: bool = True) -> "FrozenStem":
        super().train(mode)
        self.blocks[0].eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.blocks[0](self.stem(x))
        return self.classify(self.blocks[2](self.blocks[1](x)))


class ForwardBatches(Small):
    """The batch is split and each part goes through the network by itself."""

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for part in x.chunk(2):
            part = self.stem(part)
            for block in self.blocks:
                part = block(part)
            parts.append(self.classify(part))
        return torch.cat(parts)


class AttributeBlock(Block):
    """A block with a number and a method that the network around it uses."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = 0.5

    def prepare(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm1(x))


class ReadAttributes(Small):
    """The network reads its children's attributes, calls another of their methods, and asks for their class."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(AttributeBlock() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x) * block.factor
            if isinstance(block, AttributeBlock):
                x = block.prepare(x)
        return self.classify(x)


class FrozenBlock(Block):
    """A block of which one half is not trained, and some is only looked at."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.norm1(self.conv1(x))
        return torch.relu(x.detach() + y + self.norm2(self.conv2(x)))


class FrozenInside(Small):
    """`no_grad` in the middle of every block."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(FrozenBlock() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.classify(x)


class CountingBlock(Block):
    """A block that counts its calls and remembers a moving average."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("average", torch.full((8,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.average.lerp_(x.detach().mean((0, 2, 3)), 0.1)
        return super().forward(x)


class CountingBlocks(Small):
    """Every block updates buffers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(CountingBlock() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.classify(x)


class OverwritingBlock(Block):
    """A block that writes in place without modules, and uses nothing of what the writing functions give."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x))
        y.clamp_(-1)
        y = self.norm2(self.conv2(functional.relu(y, inplace=True)))
        y += x
        y *= 0.7
        y.add_(0.1)
        return y + x


class Overwriting(Small):
    """Writes in place, statement by statement, while others still read."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(OverwritingBlock() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.classify(x)


class DropoutBlock(Block):
    """A dropout of either kind, and one that also drops in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.dropout(x, 0.1, self.training)
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        y = functional.dropout(y, 0.05, training=True)
        return self.dropout(x) + y


class TwoDropouts(Small):
    """Dropouts as module and as function, under the same name."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(DropoutBlock() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.classify(x)


class TiedWeights(Small):
    """Kernels that a module owns and others borrow."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x) + functional.conv2d(x, self.blocks[0].conv1.weight, padding=1)
        return x.mean((2, 3)) @ self.head.weight.t() + self.head.bias


class PartialBlock(nn.Module):
    """A block that also tells a number, a shape and a text about its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.gate = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor, *others: Tensor, mode: str = "sum", **rest: Any) -> tuple[Any, ...]:
        y = self.conv(x)
        for other in others:
            y = y + other
        if mode == "gate":
            y = y * torch.sigmoid(self.gate(x)) + x
        return y, tuple(x.shape), rest.get("note", "none")


class VariableArguments(Small):
    """Children with `*args` and `**kwargs`, texts and numbers among what comes in and goes out."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(PartialBlock() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        old = x
        for i, part in enumerate(self.parts):
            new, shape, note = part(x, old, *([x] * i), mode=("sum", "gate")[i % 2], note="some")
            old, x = x, new.view(shape) if note == "some" else x
        return self.classify(self.blocks[0](x))


_TORCHVISION = """
    resnet18 resnet50 vgg16_bn mobilenet_v2 mobilenet_v3_large densenet121 efficientnet_b0 regnet_y_400mf
    convnext_tiny shufflenet_v2_x1_0 squeezenet1_1 swin_t mnasnet0_5
"""
_TIMM = """
    resnetv2_50 mobilenetv4_conv_small repvgg_a0 hrnet_w18_small res2net50_26w_4s dla34 ese_vovnet19b_dw
    cspresnet50 convmixer_768_32 ghostnet_100 resnest14d nf_resnet26 poolformer_s12
"""
_AWKWARD: Sequence[tuple[type[nn.Module], Callable[[int], Example]]] = (
    (DataBranch, both_signs),
    (ShapeBranch, two_sizes),
    (RandomDepth, of_size(32)),
    (SharedModule, of_size(32)),
    (AliasedModule, of_size(32)),
    (DictInOut, in_a_dict),
    (FunctionalParameters, of_size(32)),
    (InPlaceSkip, of_size(32)),
    (WhileLoop, of_size(32)),
    (Checkpointed, of_size(32)),
    (ItemScale, of_size(32)),
    (KeywordTuple, of_size(32)),
    (NumpyMix, of_size(32)),
    (ConcatSkips, of_size(32)),
    (Gated, of_size(32)),
    (OddSums, of_size(32)),
    (WeightNorm, of_size(32)),
    (Recurrent, of_size(32)),
    (OptionalArguments, optional_mask),
    (TwoInputs, two_images),
    (Hooked, of_size(32)),
    (Features, of_size(32)),
    (Attention, of_size(32)),
    (MixedOperations, of_size(32)),
    (Stateful, of_size(32)),
    (Spectral, of_size(32)),
    (FunctionalDropout, of_size(32)),
    (FrozenStem, of_size(32)),
    (ForwardBatches, of_size(32)),
    (ReadAttributes, of_size(32)),
    (FrozenInside, of_size(32)),
    (CountingBlocks, of_size(32)),
    (Overwriting, of_size(32)),
    (TwoDropouts, of_size(32)),
    (TiedWeights, of_size(32)),
    (VariableArguments, of_size(32)),
)

_LARGE = {
    "googlenet": Entry(functools.partial(from_torchvision, "googlenet", init_weights=False), images),
    # Its second classifier needs 299 pixels, and the transformers were made for 224.
    "inception_v3": Entry(functools.partial(from_torchvision, "inception_v3", init_weights=False), of_size(299)),
    "vit_b_16": Entry(functools.partial(from_torchvision, "vit_b_16"), of_size(224)),
}

ZOO: dict[str, Entry] = {
    **{n: Entry(functools.partial(from_torchvision, n), images) for n in _TORCHVISION.split()},
    **_LARGE,
    **{n: Entry(functools.partial(from_timm, n), images) for n in _TIMM.split()},
    **{
        n: Entry(functools.partial(from_timm, n), of_size(224))
        for n in ("efficientformer_l1", "mixer_s32_224", "deit_tiny_patch16_224")
    },
    **{f"hf_{n}": TRANSFORMERS[f"hf_{n}"] for n in ("resnet", "vit", "mobilenet_v2", "segformer", "bert", "gpt2")},
    **{kind.__name__: Entry(kind, example) for kind, example in _AWKWARD},
}

SETS: dict[str, dict[str, Entry]] = {
    "zoo": ZOO,
    "torchvision": TORCHVISION,
    "timm": TIMM,
    "transformers": TRANSFORMERS,
}
"""All networks that there are, by set and name."""

ENTRIES = {name: entry for entries in SETS.values() for name, entry in entries.items()}


def build(name: str, seed: int = 0) -> nn.Module:
    """A network of any set, in eval mode, with weights that are nothing special."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return randomized(ENTRIES[name].make(), ENTRIES[name].example(99)).eval()


@torch.no_grad()
def randomized(network: nn.Module, example: Example) -> nn.Module:
    """The network, with noise on every weight that is the same everywhere, and with norm statistics of its own.

    The statistics are those of an example, and some noise: with the usual 0 and 1 the signal dies out in many
    networks in eval mode, so that the output hardly depends on the input and no error would be seen there.
    """
    for parameter in network.parameters():
        # Norms begin at 1 and 0, layer scales at 1e-6, gates at 0: an error would not be seen there, either.
        if (
            parameter.is_floating_point()
            and parameter.numel()
            and bool((parameter == parameter.flatten()[0]).all())
        ):
            near = float(parameter.flatten()[0] > 0.5)
            parameter.copy_(near + 0.1 * torch.randn_like(parameter))
    norms = [m for m in network.modules() if isinstance(getattr(m, "running_var", None), Tensor)]
    norms = [norm for norm in norms if hasattr(norm, "momentum")]  # others are frozen
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    for args, kwargs in calls(example):
        seeded()
        network.train()(*args, **kwargs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        spread = norm.running_var.mean()
        norm.running_var.mul_(0.9 * torch.empty_like(norm.running_var).uniform_(0.7, 1.4)).add_(0.1 * spread)
        norm.running_mean.add_(0.1 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean))
    return network


def calls(example: Example) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The positional and keyword arguments of each call that an example stands for."""
    if isinstance(example, list):
        return [call for item in example for call in calls(item)]
    if isinstance(example, Mapping):
        return [((), dict(example))]
    return [(example if isinstance(example, tuple) else (example,), {})]


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of a nested structure, in order."""
    if hasattr(tree, "to_tuple"):
        tree = tree.to_tuple()
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def seeded() -> None:
    """All random generators that a network may use, at their starts."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002


# Processes


def apart(
    reports: Sequence[Any],
    check: Callable[[Any, Callable[[], None]], None],
    *,
    jobs: int,
    seconds: float,
    memory: float,
) -> Iterator[Any]:
    """Check networks, each in a process of its own, which is forked: what is imported here it need not import.

    Args:
        reports: of what is to be checked, empty: dataclasses with a name, `seconds`, `finished` and `failures`.
        check: is called with a report, and with what writes it, which it may do whenever it got further.
        jobs: processes at a time; each has one thread.
        seconds: for each.
        memory: GiB for each.

    Yields:
        The reports, as processes end, and as far as those got.
    """
    waiting, running = deque(reports), dict[int, Any]()
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            while waiting and len(running) < jobs:
                report = waiting.popleft()
                place = Path(tempfile.mkdtemp(dir=folder))
                process = multiprocessing.get_context("fork").Process(
                    target=alone, args=(report, place, check, memory)
                )
                process.start()
                running[process.sentinel] = process, report, place, time.perf_counter()
            connection.wait(list(running), timeout=1)
            for sentinel, (process, report, place, start) in list(running.items()):
                taken = time.perf_counter() - start
                if process.is_alive() and taken < seconds:
                    continue
                reason = f"the process ended with {process.exitcode}: {_last(place / 'stderr')}"
                if process.is_alive():
                    process.kill()
                    reason = f"not done after {seconds:g} s"
                process.join()
                del running[sentinel]
                file = place / "report.json"
                ended = type(report)(**json.loads(file.read_text())) if file.exists() else report
                ended.seconds = round(taken, 1)
                if not ended.finished:
                    ended.failures.append(reason)
                shutil.rmtree(place)
                told = "; ".join(ended.failures) or "passed"
                print(f"{ended.name}: {told} ({ended.seconds} s)", file=sys.stderr, flush=True)
                yield ended


def alone(report: Any, folder: Path, check: Callable[[Any, Callable[[], None]], None], memory: float) -> None:
    """Check one network with one thread and within a limit on memory, and write its report, after each step."""
    with (folder / "stderr").open("w") as file:
        os.dup2(file.fileno(), 2)
    tempfile.tempdir = str(folder)  # so that nothing is left of a process that is ended
    limit = int(memory * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")

    def save() -> None:
        write(folder / "report.json", json.dumps(asdict(report)))

    save()
    guarded(report.failures, "check", check, report, save)
    report.finished = True
    save()


def _last(file: Path) -> str:
    return file.read_text(errors="replace").strip()[-300:] if file.exists() else ""


def write(file: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    partial = file.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(file)


class Checked(Protocol):
    """What was found out about a network."""

    name: str
    failures: list[str]


def told(rows: Sequence[Checked], table: str, summary: str) -> int:
    """Print what was found out, with all failures; 1 if there are any, as an exit code."""
    print(table)
    for row in rows:
        for failure in row.failures:
            print(f"\n{row.name}: {failure}")
    print(f"\n{summary}")
    return int(any(row.failures for row in rows))


def guarded(failures: list[str], what: str, function: Callable[..., Any], *args: Any) -> Any:
    """What a check gives; None where it raises, which is noted."""
    try:
        return function(*args)
    except AssertionError as error:
        failures.append(f"{what}: {error}")
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        failures.append(f"{what}: {type(error).__name__}: {str(error)[:300]} ({place})")
    return None


class Elsewhere:
    """A process that loads and runs saved networks (`serve`), and in which some libraries cannot be imported.

    Args:
        folder: for files.
        example: what networks are called with.
        blocked: the libraries.
    """

    def __init__(self, folder: Path, example: Example, blocked: Sequence[str] = ("dnat",)) -> None:
        self.network, self.arguments, self.outputs = (
            folder / f"{n}.pt" for n in ("network", "arguments", "outputs")
        )
        torch.save(calls(example), self.arguments)
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", "import zoo; zoo.serve()", *blocked],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        )

    def run(self, network: nn.Module | Path, *, training: bool = False) -> list[list[Tensor]]:
        """What a network, or an exported Python file, gives there for each call.

        Raises:
            RuntimeError: it cannot be saved, loaded or run.
        """
        assert self.process.stdin
        assert self.process.stdout
        file = network
        if isinstance(network, nn.Module):
            file = self.network
            torch.save(network, file)
        self.process.stdin.write(json.dumps([*map(str, (file, self.arguments, self.outputs)), training]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        error = json.loads(answer) if answer else "the process ended"
        if error:
            raise RuntimeError(f"not loaded without dnat: {error}")
        return torch.load(self.outputs, weights_only=False)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(60)


def serve() -> None:
    """Load saved networks and run them, as an endless process without the libraries that its arguments name.

    Each line of the standard input has three files and a mode: the network and its arguments to load, the outputs
    (one list of tensors for each call) to save, and whether the network runs in train mode. A network is a pickle,
    or a Python file of `dnat.export`. Each line of the standard output is what went wrong, or empty.
    """
    for library in sys.argv[1:]:
        sys.modules[library] = None  # type: ignore[assignment]  # importing it raises from now on
    torch.set_num_threads(1)
    if "torchvision" not in sys.modules:
        import_torchvision()
    for line in sys.stdin:
        network_file, arguments_file, outputs_file, training = json.loads(line)
        try:
            outputs = []
            for args, kwargs in torch.load(arguments_file, weights_only=False):
                network = loaded(network_file).train(training)
                seeded()
                with torch.no_grad():
                    outputs.append(tensors(network(*args, **kwargs)))
            torch.save(outputs, outputs_file)
            print(json.dumps(""), flush=True)
        except Exception as error:
            print(json.dumps(f"{type(error).__name__}: {error}"), flush=True)


def loaded(file: str) -> nn.Module:
    """The network of a pickle, or of a Python file of `dnat.export`."""
    if not file.endswith(".py"):
        return torch.load(file, weights_only=False)
    spec = importlib.util.spec_from_file_location("network", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load()
