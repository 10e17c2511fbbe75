"""What each choice of each edge does to a network's answers, found by trying every one; nothing is trained.

The damage of a choice is

    D = mean over images of KL(answers of the network || answers with the choice made)

with the answers' probabilities p = softmax(scores); of outputs that are no class scores, the mean squared
difference as a share of the outputs' variance. Batch norms use the statistics of the images that are shown: with
those that the network recorded, a choice is blamed for what any step of training would mend (FastNAS and NNCF
re-estimate norms, too, before they judge). What norms alone do to the answers is taken off. No label is needed.

Damages of choices that are made together are nearly their sum where each is small, so that the set with the least
sum within a budget (`dnat.budget.best`) is a good one to begin with; `improved` exchanges choices while the damage
of the whole set falls.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from .budget import Costs, Groups, best, by_edge
from .data import Data
from .edges import ORIGINAL, Edge, problems
from .relaxation import RelaxedNetwork
from .seeds import Stream, numpy_generator
from .tracing import in_mode, kept_buffers, tensors_of

MEMORY = 1 << 30
"""Bytes that outputs of modules may take which are remembered while choices behind them are tried."""

EXCHANGES = 400
"""Sets that are judged as a whole, at the most, while a set is improved."""


@dataclass(frozen=True)
class Sensitivity:
    """The damage of every choice, alone.

    Attributes:
        damages: {group: {choice: damage}}; 0 for "original".
        images: how many were shown.
    """

    damages: dict[str, dict[str, float]]
    images: int

    def without(self, ruled_out: Mapping[str, str], relaxed: RelaxedNetwork) -> "Sensitivity":
        """The same without choices that cannot be made: {edge key: choice}."""
        barred = {(g, ruled_out[e.key]) for g, m in relaxed.by_group().items() for e in m if e.key in ruled_out}
        rows = {g: {c: d for c, d in row.items() if (g, c) not in barred} for g, row in self.damages.items()}
        return Sensitivity(rows, self.images)

    def sum_of(self, choices: Mapping[str, str]) -> float:
        """The sum of the damages of groups' choices, each alone."""
        return math.fsum(self.damages[group][choice] for group, choice in choices.items())


def shown_images(data: Data, images: int, seed: int) -> Tensor:
    """Training images as they are, without augmentation, to be shown: (N, C, H, W), of all classes alike likely.

    Args:
        data: which has them.
        images: how many, at most.
        seed: which ones.
    """
    order = numpy_generator(seed, Stream.ORDER, "sensitivity").permutation(len(data.train_labels))
    return data.train_batch(torch.from_numpy(order[:images]).long(), None)[0]


def batch_size(relaxed: RelaxedNetwork) -> int:
    """How many images can be shown at once, so that what is remembered of them takes no more than `MEMORY`."""
    trace = relaxed.edges[0].program.traces[0]
    outputs = (trace.values[v] for call in trace.calls for v in call.outputs)
    each = sum(math.prod(value.shape) * value.dtype.itemsize for value in outputs) // max(trace.batch, 1)
    return max(8, min(250, MEMORY // max(each, 1)))


class Judge:
    """Compares what a relaxed network answers with choices made to what the network answered as it was given.

    Args:
        relaxed: with theta as `relax` makes it; it is left as it is.
        batches: arguments of its forward, each a tensor or a tuple.
    """

    def __init__(self, relaxed: RelaxedNetwork, batches: Sequence[Any]) -> None:
        self.relaxed = relaxed
        self.batches = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
        with torch.no_grad(), in_mode(relaxed, False), kept_buffers(relaxed.modules()):
            self.own = [_floats(relaxed(*batch)) for batch in self.batches]
        self.sizes = [len(batch[0]) for batch in self.batches]

    def damage(self, choices: Mapping[str, str]) -> float:
        """The damage of a set of choices as a whole: {edge key: choice}; edges that are missing stay original."""
        return max(self._distance(choices) - self._untouched, 0.0)

    @functools.cached_property
    def _untouched(self) -> float:
        """What the images' own statistics alone do to the answers."""
        return self._distance({})

    def _distance(self, choices: Mapping[str, str]) -> float:
        chosen = {e.key: choices.get(e.key, ORIGINAL) for e in self.relaxed.edges}
        with _one_hot(self.relaxed, chosen), torch.no_grad(), restated(self.relaxed):
            parts = [_apart(own, _floats(self.relaxed(*b))) for own, b in zip(self.own, self.batches, strict=True)]
        return self._mean(parts)

    def _mean(self, parts: Sequence[float]) -> float:
        return math.fsum(p * n for p, n in zip(parts, self.sizes, strict=True)) / sum(self.sizes)

    def alone(self, tell: Callable[[int, int], None] | None = None) -> Sensitivity:
        """The damage of every choice of every group, the others being original.

        What runs before a group's first edge is computed once for all choices.

        Args:
            tell: is told how many choices of how many have been tried.
        """
        relaxed = self.relaxed
        trials = [
            (row, g, c) for row, g in enumerate(relaxed.groups) for c in relaxed.choices_of(g) if c != ORIGINAL
        ]
        parts: dict[tuple[str, str], list[float]] = {(g, c): [] for _, g, c in trials}
        untouched, done = [], 0
        before = {g: modules_before(relaxed.members(g)) for g in relaxed.groups}
        with _one_hot(relaxed, {}), torch.no_grad(), restated(relaxed):
            for own, batch in zip(self.own, self.batches, strict=True):
                with Memory(relaxed.network, set().union(*before.values())) as memory:
                    untouched.append(_apart(own, _floats(relaxed(*batch))))
                    for row, group, choice in trials:
                        with memory.of(before[group]), relaxed.architecture.trying(row, choice):
                            parts[group, choice].append(_apart(own, _floats(relaxed(*batch))))
                        done += 1
                        if tell:
                            tell(done, len(trials) * len(self.batches))
        norms = self._mean(untouched)
        damages: dict[str, dict[str, float]] = {g: {ORIGINAL: 0.0} for g in relaxed.groups}
        for (group, choice), found in parts.items():
            damages[group][choice] = max(self._mean(found) - norms, 0.0)
        return Sensitivity(damages, sum(self.sizes))


@contextmanager
def _one_hot(relaxed: RelaxedNetwork, choices: Mapping[str, str]) -> Iterator[None]:
    """Within, theta is that of choices, {edge key: choice}; edges that are missing are original."""
    theta = relaxed.architecture.theta
    before = theta.detach().clone()
    relaxed.set_one_hot({edge.key: choices.get(edge.key, ORIGINAL) for edge in relaxed.edges})
    try:
        yield
    finally:
        with torch.no_grad():
            theta.copy_(before)


@contextmanager
def restated(network: nn.Module) -> Iterator[None]:
    """Within, the network is in eval mode, but for norms with recorded statistics: they use those of the batch."""
    norms = [m for m in network.modules() if isinstance(getattr(m, "running_mean", None), Tensor)]
    with in_mode(network, False), kept_buffers(network.modules()):
        for norm in norms:
            norm.training = True
        yield


def modules_before(edges: Sequence[Edge]) -> frozenset[str]:
    """Paths of modules whose only call has ended before the first of the edges begins; outermost ones alone."""
    trace = edges[0].program.traces[0]
    first = min(trace.calls_of(edge.entry)[0] for edge in edges)
    around = {None, *trace.calls[first].scope[:-1]}
    return frozenset(
        call.path
        for call in trace.calls[:first]
        if call.parent in around and call.scope[-1] not in around and len(trace.calls_of(call.path)) == 1
    )


class Memory:
    """Within, modules remember what their first call gave, and `of` lets some of them give it again uncomputed.

    Args:
        network: which holds them.
        paths: of the modules.
    """

    def __init__(self, network: nn.Module, paths: set[str]) -> None:
        self.modules = {path: network.get_submodule(path) for path in sorted(paths)}
        self.known: dict[str, Any] = {}
        self.ready: frozenset[str] = frozenset()

    def __enter__(self) -> "Memory":
        for path, module in self.modules.items():
            # In the instance, where it stands before the method of the class.
            module.__dict__["forward"] = functools.partial(self._forward, path, module.forward)
        return self

    def __exit__(self, *error: object) -> None:
        for module in self.modules.values():
            del module.__dict__["forward"]
        self.known.clear()

    @contextmanager
    def of(self, paths: frozenset[str]) -> Iterator[None]:
        """Within, these modules give what they gave first."""
        self.ready = paths
        try:
            yield
        finally:
            self.ready = frozenset()

    def _forward(self, path: str, compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if path in self.ready and path in self.known:
            return self.known[path].clone()  # other code may write into it
        result = compute(*args, **kwargs)
        if path not in self.known and isinstance(result, Tensor):
            self.known[path] = result.clone()
        return result


def _floats(output: Any) -> list[Tensor]:
    """The tensors of an output that hold numbers, in float32 at least."""
    tensors = [t for t in tensors_of(output) if t.is_floating_point()]
    return [t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]


def _apart(own: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """How far answers are from a network's own, mean over the images of a batch; infinite where none is finite."""
    if len(own) == 1 and own[0].dim() == 2 and own[0].shape[1] > 1:  # class scores
        found = kl_div(log_softmax(other[0], 1), log_softmax(own[0], 1), reduction="batchmean", log_target=True)
    else:
        sizes = [
            (a - b).square().mean() / (a.var(unbiased=False) + 1e-12) for a, b in zip(own, other, strict=True)
        ]
        found = torch.stack(sizes).mean()
    value = float(found)
    return value if math.isfinite(value) else math.inf


def least_damage(groups: Groups, sensitivity: Sensitivity, costs: Costs, limit: float) -> dict[str, str]:
    """The legal choices of groups with the least sum of damages that cost at most `limit`.

    Where damages are equal, originals are kept as far as the limit goes.

    Raises:
        InfeasibleError: no legal set is so cheap.
    """
    worst = max((d for row in sensitivity.damages.values() for d in row.values() if math.isfinite(d)), default=1.0)
    small = 1e-6 * (worst or 1.0)

    def score(group: str, choice: str, damage: float) -> float:
        saved = costs.total - costs.of(dict.fromkeys(groups[group], choice))
        return -(min(damage, 1e3 * (worst or 1.0)) + small * saved / max(costs.total, 1e-30))

    scores = {g: {c: score(g, c, d) for c, d in row.items()} for g, row in sensitivity.damages.items()}
    return best(groups, scores, costs, limit)


def improved(
    judge: Judge, sensitivity: Sensitivity, choices: Mapping[str, str], costs: Costs, limit: float
) -> tuple[dict[str, str], float]:
    """Exchange choices of groups while the damage of the whole set falls; returns the set and its damage.

    Tried are sets in which one changed group is original again and at most one other changed, those with the least
    sum of damages first, `EXCHANGES` at the most.
    """
    groups = judge.relaxed.by_group()

    def keys(chosen: Mapping[str, str]) -> dict[str, str]:
        return {edge.key: choice for edge, choice in by_edge(groups, chosen).items()}

    best_set, least = dict(choices), judge.damage(keys(choices))
    tried = {tuple(best_set.items())}
    while len(tried) <= EXCHANGES:
        neighbours = (n for n in _neighbours(best_set, sensitivity) if tuple(n.items()) not in tried)
        for neighbour in sorted(neighbours, key=sensitivity.sum_of):
            chosen = by_edge(groups, neighbour)
            tried.add(tuple(neighbour.items()))
            if costs.of(chosen) <= limit and not problems(chosen):
                damage = judge.damage(keys(neighbour))
                if damage < least:
                    best_set, least = neighbour, damage
                    break
            if len(tried) > EXCHANGES:
                return best_set, least
        else:
            return best_set, least
    return best_set, least


def _neighbours(choices: Mapping[str, str], sensitivity: Sensitivity) -> Iterator[dict[str, str]]:
    changed = [g for g, c in choices.items() if c != ORIGINAL]
    for back in changed:
        restored = {**choices, back: ORIGINAL}
        yield restored
        for group, row in sensitivity.damages.items():
            yield from ({**restored, group: c} for c in row if c not in (choices[group], ORIGINAL))
