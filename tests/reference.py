"""Slow, obvious oracles and small networks for the tests. Never imported by dnat."""

import itertools

import torch
from torch import Tensor, nn

import dnat
from dnat.edges import NONE, problems
from dnat.tracing import State, Trace


class Residual(nn.Module):
    """A stem, one residual block with a convolution too many, and a classifier; out of place throughout."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 1)
        self.head = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem_norm(self.stem(x)))
        y = torch.relu(self.norm1(self.conv1(x)))
        x = x + self.conv2(y)
        return self.head(x.mean((2, 3)))


class TwoBranches(nn.Module):
    """Two branches of a sum and nothing else: each may go, both may not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.left = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.right = nn.Conv2d(4, 4, 1, bias=False)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.left(x) + self.right(x))
        return self.head(x.mean((2, 3)))


class InPlace(nn.Module):
    """In-place activations and an in-place sum, as torchvision writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        y += x
        return self.head(self.relu(y).mean((2, 3)))


class Shared(nn.Module):
    """One convolution that is called twice, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.alias = self.conv
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + torch.relu(self.conv(x))
        x = x + torch.relu(self.alias(x))
        return self.head(x.mean((2, 3)))


class DataDependent(nn.Module):
    """Control flow that no symbolic tracer can follow, around a block that one can."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.block = Residual(4)
        self.block.stem = nn.Conv2d(4, 4, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if float(x.detach().sum()) > 1e9:
            x = x * 2
        return self.block(x)


class Concatenating(nn.Module):
    """Branches that stand side by side, as in DenseNet and Inception, one of them behind an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.left = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.right = nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 1))
        self.join = nn.Conv2d(14, 4, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.join(torch.cat([x, torch.relu(self.left(x)), self.right(x)], 1)))
        return self.head(torch.stack([x, self.left(x)], 1).flatten(1, 2).mean((2, 3)))


class Gated(nn.Module):
    """Squeeze and excitation: a product that is no shortcut."""

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.squeeze = nn.Conv2d(4, 2, 1)
            self.excite = nn.Conv2d(2, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.gate = self.Gate()
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gate(self.stem(x)).mean((2, 3)))


class Masked(nn.Module):
    """Layers that are called with a mask of None and a switch, and drop out by a function."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixing = nn.Conv2d(4, 4, 3, padding=1)
            self.inner = Masked.Inner()

        def forward(self, x: Tensor, mask: Tensor | None = None, scaled: bool = False) -> Tensor:
            if mask is not None:
                x = x * mask
            y = self.inner(torch.relu(self.mixing(x)), mask)
            return x + nn.functional.dropout(y, 0.0, self.training) if scaled else x

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv2d(4, 4, 1)
            self.two = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
            return self.two(torch.relu(self.one(x)))

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layers = nn.ModuleList(self.Layer() for _ in range(2))
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x, None, scaled=True)
        return self.head(x.mean((2, 3)))


SMALL = {
    "concatenating": Concatenating,
    "gated": Gated,
    "masked": Masked,
    "residual": Residual,
    "two branches": TwoBranches,
    "in place": InPlace,
    "shared": Shared,
    "data dependent": DataDependent,
    "resnet8": lambda: dnat.build("resnet8", width=4, seed=3),
    "resnet8 with skips": lambda: dnat.build("resnet8", width=4, skips=True, seed=3),
    "sequential": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)),
        nn.Flatten(),
        nn.Linear(4 * 64, 5),
    ),
}


def small(name: str) -> nn.Module:
    """A small network with weights and norm statistics that are nothing special."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = SMALL[name]()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1, 0.3)
                nn.init.normal_(module.bias, 0, 0.3)
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    return network


def images(n: int = 4, size: int = 8, dtype: torch.dtype = torch.float32) -> Tensor:
    """Some images that are nothing special."""
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)


def legal_sets(edges: tuple[dnat.Edge, ...]) -> list[dict[str, str]]:
    """Every set of choices that can be made together, by trying them all."""
    sets = itertools.product(*(edge.choices for edge in edges))
    by_edge = (dict(zip(edges, choices, strict=True)) for choices in sets)
    return [{e.key: c for e, c in choices.items()} for choices in by_edge if not problems(choices)]


def losses_by_hand(trace: Trace, zero: set[int], same: dict[int, int]) -> list[str]:
    """Where replacements cannot be made exactly (`tracing.losses`), by two passes over all that a network does."""
    before, after = trace.propagate(), trace.propagate(zero, same)
    lost = [was is State.DATA and now is not State.DATA for was, now in zip(before, after, strict=True)]
    where = ["output" for i in trace.outputs if lost[i]]
    for number, op in enumerate(trace.operations):
        gone = [i for i in op.inputs if lost[i]]
        if gone and all(lost[i] or before[i] is not State.DATA for i in op.inputs):
            readers = [reader for reader in trace.operations if set(op.outputs) & set(reader.inputs)]
            ends = not readers or any(reader.behaviour != "add" for reader in readers)
            if op.behaviour in ("add", "gather") and len(op.inputs) > 1 and ends:
                where.append(f"every input of {number}")
        elif gone:
            wide = all(
                trace.values[i].shape == trace.values[op.outputs[0]].shape for i in op.inputs if not lost[i]
            )
            exact = op.behaviour in ("gather", "multiply") or (op.behaviour == "add" and wide)
            if not exact or any(after[i] is not State.ZERO for i in gone):
                where.append(f"data with a constant in {number}")
    return where


def nones_by_hand(edges: list[dnat.Edge]) -> dict[str, str]:
    """{edge: the other whose none does the same and more}, by whole passes for all pairs of nones."""
    effects = {}
    for edge in edges:
        if NONE in edge.choices:
            outs = [{out for _, out in edge.values(trace)} for trace in edge.program.traces]
            passes = [(t.propagate(o), t.needed(o)[1]) for t, o in zip(edge.program.traces, outs, strict=True)]
            effects[edge.key] = [(o, states, live) for o, (states, live) in zip(outs, passes, strict=True)]

    def covers(outer: str, inner: str) -> bool:
        return all(
            all(states[out] is State.ZERO for out in outs) and live_outer <= live
            for (outs, _, live_outer), (_, states, live) in zip(effects[outer], effects[inner], strict=True)
        )

    keys = list(effects)
    once = {}
    for key in keys:
        others = (o for o in keys if o != key and covers(o, key))
        first = next((o for o in others if not covers(key, o) or keys.index(o) < keys.index(key)), None)
        if first is not None:
            once[key] = first
    return once


def relaxed_by_hand(
    network: nn.Module, edges: tuple[dnat.Edge, ...], gates: dict[str, tuple[float, float]]
) -> nn.Module:
    """The relaxed network in the most obvious way: a hook for each edge, gates as Python numbers."""
    for edge in edges:
        seen: list[Tensor] = []
        original, identity = gates[edge.key]
        network.get_submodule(edge.entry).register_forward_pre_hook(lambda m, a, s=seen: s.append(a[0].clone()))
        network.get_submodule(edge.exit).register_forward_hook(
            lambda m, a, out, s=seen, o=original, i=identity: out * o + (s.pop() * i if i else 0)
        )
    return network


def unsealed(record):
    """A record without digests of its files and of itself, as of an older dnat, which a test may edit."""
    return {key: value for key, value in record.items() if key not in ("files", "sha256")}
