"""What a network costs: parameters, multiply-adds, and time on this device."""

import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .counting import Counter, Functions, checked_batch, warn_of_batch, warn_of_uncounted
from .errors import UsageError
from .tracing import Example, Program, examples_of, in_mode, tensors_of, timed


@dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-adds of one image (or one row of whatever the batch holds).

    `uncounted` names the operators that may multiply and are not among them, since no formula is known.
    """

    params: int
    madds: int
    uncounted: tuple[str, ...] = ()

    def __str__(self) -> str:
        less = f" (without {', '.join(self.uncounted)})" if self.uncounted else ""
        return f"{self.params / 1e6:.3f} M parameters, {self.madds / 1e6:.2f} M MAdds{less}"

    def table(self) -> dict[str, Any]:
        """As it stands in a record; `uncounted` only where there is something."""
        counted = {"params": self.params, "madds": self.madds}
        return counted | ({"uncounted": list(self.uncounted)} if self.uncounted else {})

    def __repr__(self) -> str:
        less = f", uncounted={self.uncounted}" if self.uncounted else ""
        return f"Cost(params={self.params}, madds={self.madds}{less})"


def cost(network: nn.Module, example: Example, *, batch: int | None = None) -> Cost:
    """Count a network's parameters and multiply-adds.

    Multiply-adds are those of convolutions, linear layers, matrix products, attention and recurrent layers, found
    by running the network in eval mode; the operations of `dnat.trace` sum up to the same. Biases, norms,
    activations and pools do not count, as in the papers. Nor do the parameters of modules with a true attribute
    `training_only`, such as the auxiliary heads of our networks of cells. Of several examples the first is used.
    The network is left as it was.

    Args:
        network: any module.
        example: see `dnat.trace`.
        batch: how many images the example holds. By default the first dimension that all outputs share with an
            input; where there is none, the whole example is counted, with a warning.

    Raises:
        ValueError: `batch` is no whole number above 0.

    Warns:
        UserWarning: the batch is not certain, or something that may multiply was not counted.

    >>> print(cost(nn.Linear(10, 5), torch.zeros(2, 10)))
    0.000 M parameters, 0.00 M MAdds
    >>> cost(nn.Linear(10, 5), torch.zeros(2, 10))
    Cost(params=55, madds=50)
    """
    args, kwargs = examples_of(example)[0]
    rows, counter = checked_batch(batch), Counter()
    with torch.no_grad(), in_mode(network, False), counter, Functions(counter):
        result = network(*args, **kwargs)
    given, made = tensors_of((args, kwargs)), tensors_of(result)
    rows = rows or counter.batch(given, made)
    if rows is None and counter.madds:
        warn_of_batch([t.shape for t in given], [t.shape for t in made])
    uncounted = tuple(counter.uncounted)
    warn_of_uncounted(uncounted)
    extra = {p for m in network.modules() if getattr(m, "training_only", False) is True for p in m.parameters()}
    params = sum(p.numel() for p in network.parameters() if p not in extra)
    return Cost(params, counter.madds // (rows or 1), uncounted)


@dataclass(frozen=True)
class Memory:
    """Bytes of a network.

    Attributes:
        weights: of its state: parameters and buffers, as a file holds them.
        activations: the most that is held at once, beside weights and inputs, while it runs in eval mode without
            gradients; what kernels need within one operation is not known.
    """

    weights: int
    activations: int


class _Held(TorchDispatchMode):
    """Notes the most bytes that tensors hold which were made within."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # see `dnat.counting.Counter`

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = function(*args, **(kwargs or {}))
        self.storages = {key: held for key, held in self.storages.items() if not held[0].expired()}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given:  # a view, or what was given, takes nothing more
                    self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.most = max(self.most, sum(size for _, size in self.storages.values()))
        return result


def memory(network: nn.Module, example: Example) -> Memory:
    """Count the bytes of a network's weights, and of its activations at their most; of several examples the first.

    >>> memory(nn.Sequential(nn.Linear(10, 5), nn.ReLU()), torch.zeros(2, 10))
    Memory(weights=220, activations=80)
    """
    args, kwargs = examples_of(example)[0]
    with torch.no_grad(), in_mode(network, False), _Held() as held:
        network(*args, **kwargs)
    state = {t.untyped_storage()._cdata: t for t in (*network.parameters(), *network.buffers())}
    return Memory(sum(t.numel() * t.element_size() for t in state.values()), held.most)


@dataclass(frozen=True)
class Latency:
    """The time that a network takes for a batch, in eval mode, as measured.

    Attributes:
        seconds: median over runs.
        spread: distance of the upper from the lower quartile.
        runs: number of runs.
        batch: images of the batch.
        device: where it ran.
    """

    seconds: float
    spread: float
    runs: int
    batch: int
    device: str

    def __str__(self) -> str:
        return f"{self.seconds * 1e3:.2f} ms (+- {self.spread * 5e2:.2f}) for {self.batch} on {self.device}"


def latency(network: nn.Module, example: Example, *, least_runs: int = 20, least_seconds: float = 0.2) -> Latency:
    """Measure how long a network takes in eval mode: runs to warm up, then the median of many.

    Args:
        network: any module; its buffers are left as they were.
        example: the batch; of several examples the first is used.
        least_runs: measure at least so many runs,
        least_seconds: and at least for so long.
    """
    return latencies([network], example, least_runs=least_runs, least_seconds=least_seconds)[0]


def latencies(
    networks: Sequence[nn.Module], example: Example, *, least_runs: int = 20, least_seconds: float = 0.2
) -> list[Latency]:
    """Measure how long networks take, in turns: a machine that is slower for a while is slower for all of them.

    Args:
        networks: on one device.
        example, least_runs, least_seconds: see `latency`; for each.
    """
    args, kwargs = examples_of(example)[0]
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    device = next((p.device for network in networks for p in network.parameters()), torch.device("cpu"))
    rounds: list[list[float]] = []

    def seconds(network: nn.Module) -> float:
        _wait(device)
        start = time.perf_counter()
        network(*args, **kwargs)
        _wait(device)
        return time.perf_counter() - start

    with torch.inference_mode(), ExitStack() as modes:
        for network in networks:
            modes.enter_context(in_mode(network, False))
        for least, wait in ((3, least_seconds / 5), (least_runs, least_seconds)):  # the first to warm up
            rounds.clear()
            begun = time.perf_counter()
            while len(rounds) < least or time.perf_counter() - begun < wait * len(networks):
                rounds.append([seconds(network) for network in networks])
    batch = next((t.shape[0] for t in tensors if t.dim()), 1)
    quartiles = (statistics.quantiles(taken, n=4) for taken in zip(*rounds, strict=True))
    return [Latency(q[1], q[2] - q[0], len(rounds), batch, str(device)) for q in quartiles]


def seconds_beside(network: nn.Module, original: nn.Module, seconds: float, example: Example) -> float:
    """What a network takes where the original takes so many seconds, as was measured before: they run in turns.

    So a machine that is busy for a while neither uses a budget of time up nor widens it.
    """
    whole, own = latencies([original, network], example)
    return seconds * own.seconds / whole.seconds


def operation_seconds(network: nn.Module, example: Example, program: Program, *, repeats: int = 15) -> list[float]:
    """The share of each operation in the time that a network takes, in seconds.

    Each operation's median is measured apart; together they are scaled to what the whole network takes.

    Args:
        network: the network of the program.
        example: the batch whose time counts; it may be of another size than the program's.
        program: from `dnat.trace`.
        repeats: runs in which operations are timed.

    Raises:
        ValueError: on this example the network does other operations than in its first trace.
    """
    names, runs = timed(network, example, repeats)
    if names != tuple(op.name for op in program.traces[0].operations):
        raise UsageError(
            "on a batch of this size the network does other operations than on the example that was traced: "
            "trace it with that batch"
        )
    medians = [statistics.median(column) for column in zip(*runs, strict=True)]
    total = latency(network, example).seconds
    return [m * total / max(sum(medians), 1e-12) for m in medians]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
