"""What each choice of each edge does to a network's answers, found by trying every one; nothing is trained.

The damage of a choice is

    D = mean over images of KL(answers of the network || answers with the choice made)

with the answers' probabilities p = softmax(scores); of outputs that are no class scores, the mean squared
difference as a share of the outputs' variance. Batch norms use the statistics of the images that are shown: with
those that the network recorded, a choice is blamed for what any step of training would mend (FastNAS and NNCF
re-estimate norms, too, before they judge); norms that are frozen keep theirs. So do those of the network that is
compared to: taken off afterwards, what norms alone do hid small damages, and half of ResNet56's choices had none
(docs/log.md). No label is needed. A network that draws at random draws the same in every pass.

The set for a budget is the one with the least sum of damages, exactly (`least_damage`). What a set does as a whole
(`Judge.damage`) is a worse guide: where that is much, it tells which answers are left in pieces, and not what
training mends. Held against every set of blocks of a trained ResNet20, the sum is nearly always right, and to
exchange choices while the damage of the whole fell cost up to 12 points (docs/log.md).
"""

import functools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax
from torch.utils._pytree import tree_map_only

from .budget import Costs, Groups, best
from .config import Config
from .data import Data
from .edges import ORIGINAL, Edge, replacements
from .errors import UsageError, users_code
from .relaxation import RelaxedNetwork
from .seeds import Stream, numpy_generator
from .tracing import (
    Example,
    Trace,
    examples_of,
    fixed_randomness,
    frozen_modules,
    in_mode,
    kept_buffers,
    tensors_of,
)
from .training import take_statistics, usual_batch

MEMORY = 1 << 30
"""Bytes that outputs of modules may take which are remembered while choices behind them are tried."""

SHOWN_AT_ONCE = 125
"""Images of a batch, at the most."""

MOST_IMAGES, LEAST_IMAGES = 1000, 64
"""How many images are shown where their number is not given, at most and at least."""

EFFORT = 2.5e12
"""Multiply-adds that trying all choices may take where the number of images is not given."""

NORM_IMAGES = 500
"""Images on which norms are re-estimated once choices are made."""

Distances = dict[str, dict[str, float]]
"""How far the answers to one batch are from the network's own, by group and choice; with those of "original"."""


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


def affordable_images(relaxed: RelaxedNetwork, madds: float) -> int:
    """How many images to show where their number is not given: fewer to a network that takes long.

    Args:
        relaxed: with all choices that are tried.
        madds: of the network, for one image.
    """
    trials = sum(len(relaxed.choices_of(group)) - 1 for group in relaxed.groups)
    each = madds * trials / 2  # half of it is remembered
    return max(LEAST_IMAGES, min(MOST_IMAGES, 50 * int(EFFORT / max(each, 1.0) / 50)))


def retake_statistics(network: nn.Module, data: Data, config: Config) -> None:
    """Let norms record the statistics of training images as they are (`training.take_statistics`)."""
    images = shown_images(data, NORM_IMAGES, config.seed)
    take_statistics(network, images.split(min(SHOWN_AT_ONCE, usual_batch(data.image_size))))


def batch_size(relaxed: RelaxedNetwork) -> int:
    """How many images can be shown at once, so that what is remembered of them takes no more than `MEMORY`."""
    sizes = _sizes(relaxed)
    before = [modules_before(relaxed.members(group)) for group in relaxed.groups]
    each = max(sum(sizes[path] for path in paths) for paths in before)
    return max(8, min(125, int(MEMORY / max(each, 1.0))))


def rows_of(batch: Example) -> int | None:
    """How many images a batch holds, where all its tensors agree in their first dimension; else None."""
    lengths = {len(t) for t in tensors_of(batch) if t.dim()}
    return lengths.pop() if len(lengths) == 1 else None


def divided(batch: Example, most: int) -> list[Example]:
    """A batch in parts of nearly equal size, each of at most so many images."""
    here = rows_of(batch)
    if not here or here <= most:
        return [batch]
    bounds = [(int(p[0]), int(p[-1]) + 1) for p in torch.arange(here).tensor_split(math.ceil(here / most))]

    def part(first: int, last: int) -> Example:
        return tree_map_only(Tensor, lambda t: t[first:last] if t.dim() else t, batch)

    return [part(first, last) for first, last in bounds]


def _sizes(relaxed: RelaxedNetwork) -> dict[str, float]:
    """How many bytes what each module gives for one image takes, by its path."""
    trace = relaxed.edges.trace
    outputs = {call.path: [trace.values[v] for v in call.outputs] for call in trace.calls}
    return {
        path: sum(math.prod(v.shape) * v.dtype.itemsize for v in values) / max(trace.batch, 1)
        for path, values in outputs.items()
    }


class Judge:
    """Compares what a relaxed network answers with choices made to what the network itself answers.

    Args:
        relaxed: with theta as `relax` makes it; it is left as it is.
        batches: arguments of its forward, each a tensor, a tuple, or a dict of keyword arguments.

    Raises:
        ValueError: no batches, or answers without numbers, or with some that are not finite.
    """

    def __init__(self, relaxed: RelaxedNetwork, batches: Sequence[Example]) -> None:
        self.relaxed = relaxed
        self.batches = [arguments for batch in batches for arguments in examples_of(batch)]
        self.devices = sorted({p.device.index for p in relaxed.parameters() if p.device.type == "cuda"})
        self.draws = False
        if not self.batches:
            raise UsageError("nothing is shown: at least one batch is needed")
        with self._changed({}):
            self.own = [self._answers(i) for i in range(len(self.batches))]
        name = type(relaxed.network).__name__
        if not all(self.own):
            raise UsageError(f"the answers of {name} hold no floating-point numbers that could be compared")
        if not all(bool(torch.isfinite(answer).all()) for own in self.own for answer in own):
            raise UsageError(
                f"the answers of {name} to these inputs are not finite, where norms use the statistics of what is "
                "shown: nothing compares to them"
            )
        self.sizes = [_rows(*arguments) for arguments in self.batches]

    @property
    def sees_classes(self) -> bool:
        """Whether answers are compared as class scores (one tensor: images x classes), by KL."""
        return all(map(_are_scores, self.own))

    def damage(self, choices: Mapping[str, str]) -> float:
        """The damage of a set of choices as a whole: {edge key: choice}; edges that are missing stay original."""
        with self._changed(choices):
            return self._mean([self._apart(number) for number in range(len(self.batches))])

    @contextmanager
    def _changed(self, choices: Mapping[str, str]) -> Iterator[None]:
        """Within, choices are made and norms re-estimated; afterwards all is as it was."""
        chosen = {e.key: choices.get(e.key, ORIGINAL) for e in self.relaxed.edges}
        with _one_hot(self.relaxed, chosen), torch.no_grad(), restated(self.relaxed):
            yield

    def _answers(self, number: int) -> list[Tensor]:
        args, kwargs = self.batches[number]
        name = type(self.relaxed.network).__name__
        with fixed_randomness(self.devices), users_code(f"{name}'s forward failed", alone=False):
            before = _generators(self.devices)
            try:
                answers = _floats(self.relaxed(*args, **kwargs))
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise UsageError(
                    "a batch is too small to re-estimate norms with (one value per channel): show larger batches"
                ) from error
            self.draws = self.draws or _generators(self.devices) != before
        return answers

    def _apart(self, number: int) -> float:
        return _apart(self.own[number], self._answers(number))

    def _mean(self, parts: Sequence[float]) -> float:
        """The mean over the images of the first batches."""
        sizes = self.sizes[: len(parts)]
        return math.fsum(p * n for p, n in zip(parts, sizes, strict=True)) / sum(sizes)

    def alone(
        self,
        tell: Callable[[int, int], None] | None = None,
        *,
        known: Sequence[Distances] = (),
        keep: Callable[[list[Distances]], None] | None = None,
    ) -> Sensitivity:
        """The damage of every choice of every group, the others being original.

        What runs before a group's first edge is computed once for all its choices.

        Args:
            tell: is told how many choices of how many have been tried.
            known: of the first batches, what an earlier call gave to `keep`: they are not shown again.
            keep: is given what was found so far, whenever a batch is done.
        """
        trials = sum(len(self.relaxed.choices_of(group)) - 1 for group in self.relaxed.groups)
        found = list(known)
        for number in range(len(found), len(self.batches)):
            done = number * trials
            found.append(self._distances(number, lambda n: tell and tell(done + n, trials * len(self.batches))))  # noqa: B023
            if keep:
                keep(found)
        if tell:
            tell(trials * len(self.batches), trials * len(self.batches))
        return self.sensitivity(found)

    def sensitivity(self, found: Sequence[Distances]) -> Sensitivity:
        """What the distances on the first batches (see `alone`) come to."""
        damages = {
            group: {choice: self._mean([part[group][choice] for part in found]) for choice in row}
            for group, row in found[0].items()
        }
        return Sensitivity(damages, sum(self.sizes[: len(found)]))

    def _distances(self, number: int, tell: Callable[[int], None]) -> Distances:
        """How far every choice alone takes the answers to one batch."""
        relaxed, count = self.relaxed, 0
        found: Distances = {group: {} for group in relaxed.groups}
        with self._changed({}):
            before = {group: self.before(relaxed.members(group)) for group in relaxed.groups}
            entries = {group: _entries(relaxed.members(group)) for group in relaxed.groups}
            with Memory(relaxed.network, self.parts.union(*before.values(), *entries.values())) as memory:
                for group in relaxed.groups:
                    memory.keep(before[group])
                    for choice in relaxed.choices_of(group):
                        if choice == ORIGINAL:
                            found[group][choice] = 0.0
                            continue
                        idle, vain = self.needless(dict.fromkeys(relaxed.members(group), choice))
                        with (
                            memory.of(before[group] - vain, entries[group], idle),
                            relaxed.trying(group, choice),
                        ):
                            found[group][choice] = self._apart(number)
                        count += 1
                        tell(count)
        return found

    def before(self, edges: Sequence[Edge]) -> frozenset[str]:
        """`modules_before`; none where what they give is drawn at random."""
        return frozenset() if self.draws else modules_before(edges)

    def needless(self, choices: Mapping[Edge, str]) -> tuple[frozenset[str], frozenset[str]]:
        """Modules that compute only what choices make needless, and those that give such; none where it draws.

        The first need not be computed, and what the others give may come of that: it must not be remembered.
        """
        idle, vain = (set(), set()) if self.draws else (set(self.parts), set[str]())
        for trace, inside, needed in self._inside if idle else ():
            values, operations = trace.needed(*replacements(trace, choices))
            idle = {path for path in idle if inside[path] <= needed - operations}
            vain |= {call.path for call in trace.calls if not values.issuperset(call.outputs)}
        return frozenset(idle), frozenset(vain)

    @functools.cached_property
    def parts(self) -> frozenset[str]:
        """Modules that are called once, and in which no edge begins or ends that is not the module itself."""
        ends = {path for edge in self.relaxed.edges for path in (edge.entry, edge.exit)}
        around = {path[:i] for path in ends for i, letter in enumerate(path) if letter == "."}
        return frozenset.intersection(*(frozenset(inside) for _, inside, _ in self._inside)) - around - {""}

    @functools.cached_property
    def _inside(self) -> list[tuple[Trace, dict[str, frozenset[int]], frozenset[int]]]:
        """Of each trace the operations inside of modules that are called once, and those that outputs need."""
        found = []
        for trace in self.relaxed.edges.program.traces:
            inside = {
                path: trace.within(calls[0]) for path, calls in trace.calls_by_path.items() if len(calls) == 1
            }
            found.append((trace, {path: ops for path, ops in inside.items() if ops}, trace.live()))
        return found


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
    """Within, the network is in eval mode, but for norms with recorded statistics: they use those of the batch.

    Norms that are frozen (in eval mode within a network in train mode) use what they recorded.
    """
    still = frozen_modules(network)
    norms = [
        m for m in network.modules() if isinstance(getattr(m, "running_mean", None), Tensor) and m not in still
    ]
    with in_mode(network, False), kept_buffers(network.modules()):
        for norm in norms:
            norm.training = True
        yield


def _entries(edges: Iterable[Edge]) -> frozenset[str]:
    return frozenset(edge.entry for edge in edges)


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
    """Within, modules can remember what they gave, and give it again uncomputed until a pass comes to an edge.

    What is computed before an edge is entered is the same whatever the edge becomes, also where a network goes
    other ways than in its trace. What nothing needs is not computed, either: zeros stand in its place.

    Args:
        network: which holds them.
        paths: of modules that may remember or be idle, and of those at which edges begin.
    """

    def __init__(self, network: nn.Module, paths: Set[str]) -> None:
        found = {path: network.get_submodule(path) for path in sorted(paths)}
        # A scripted module takes no other forward.
        self.modules = {p: m for p, m in found.items() if not isinstance(m, torch.jit.ScriptModule)}
        self.complete = len(self.modules) == len(found)
        self.known: dict[str, Tensor] = {}
        self.shapes: dict[str, tuple[Tensor, torch.device]] = {}
        self.active = False
        self.ready: set[str] = set()
        self.idle: set[str] = set()
        self.entries: frozenset[str] = frozenset()

    def __enter__(self) -> "Memory":
        self.before = {path: module.__dict__.get("forward") for path, module in self.modules.items()}
        for path, module in self.modules.items():
            # In the instance, where it stands before the method of the class.
            module.__dict__["forward"] = functools.partial(self._forward, path, module.forward)
        return self

    def __exit__(self, *error: object) -> None:
        for path, module in self.modules.items():
            del module.__dict__["forward"]
            if self.before[path] is not None:
                module.__dict__["forward"] = self.before[path]
        self.known.clear()

    def keep(self, paths: frozenset[str]) -> None:
        """Forget what other modules gave."""
        self.known = {key: output for key, output in self.known.items() if key in paths}

    @contextmanager
    def of(self, paths: frozenset[str], entries: frozenset[str], idle: frozenset[str]) -> Iterator[None]:
        """Within, for one pass, the first calls of these modules are remembered, until it comes to the entries.

        Args:
            paths: of the modules.
            entries: of edges that are not what they were.
            idle: modules whose first calls nothing needs.
        """
        self.ready, self.entries, self.idle = set(paths) if self.complete else set(), entries, set(idle)
        self.active = True
        try:
            yield
        finally:
            self.ready, self.entries, self.idle, self.active = set(), frozenset(), set(), False

    def _forward(self, path: str, compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self.active:
            return compute(*args, **kwargs)
        if path in self.entries:
            self.ready.clear()
        if path in self.idle:
            self.idle.remove(path)  # a second call may be needed
            if path in self.shapes:
                shape, device = self.shapes[path]
                return torch.zeros_like(shape, device=device)
        if path not in self.ready:
            result = compute(*args, **kwargs)
            if isinstance(result, Tensor) and path not in self.shapes:
                self.shapes[path] = result.to("meta"), result.device
            return result
        self.ready.remove(path)  # a second call may give something else
        if path in self.known:
            return self.known[path].clone()  # other code may write into it
        between, self.ready = self.ready, set()  # what is inside is not needed any more
        result = compute(*args, **kwargs)
        self.ready = between
        if isinstance(result, Tensor):
            self.known[path] = result.clone()
        return result


def _floats(output: Any) -> list[Tensor]:
    """The tensors of an output that hold numbers, in float32 at least."""
    tensors = [t for t in tensors_of(output) if t.is_floating_point()]
    return [t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]


def _generators(devices: Sequence[int]) -> tuple[Any, ...]:
    """The states of all generators that a network may draw from."""
    own = np.random.get_state(legacy=False)  # noqa: NPY002 -- what networks may use
    assert isinstance(own, dict)
    numpy_state = own["state"]["pos"], own["state"]["key"].tobytes(), own["has_gauss"]
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
    return (random.getstate(), numpy_state, *(state.numpy().tobytes() for state in states))


def _rows(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """How many images (or rows) the arguments of a forward hold: the first tensor's first dimension."""
    return next((len(t) for t in tensors_of((args, kwargs)) if t.dim()), 1)


def _are_scores(answers: Sequence[Tensor]) -> bool:
    return len(answers) == 1 and answers[0].dim() == 2 and answers[0].shape[1] > 1


def _apart(own: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """How far answers are from a network's own, mean over the images of a batch; infinite where none is finite."""
    if _are_scores(own):
        found = kl_div(log_softmax(other[0], 1), log_softmax(own[0], 1), reduction="batchmean", log_target=True)
    else:
        sizes = [
            (a - b).square().mean() / (a.var(unbiased=False) + 1e-12) for a, b in zip(own, other, strict=True)
        ]
        found = torch.stack(sizes).mean()
    value = float(found)
    return value if math.isfinite(value) else math.inf


def least_damage(
    groups: Groups, sensitivity: Sensitivity, costs: Costs, limit: float, floor: float = 0.0
) -> dict[str, str]:
    """The legal choices of groups with the least sum of damages that cost at most `limit`, and at least `floor`.

    Where none cost as much as the floor, it is what those do that cost most within the limit.

    Where damages are equal, originals are kept as far as the limit goes: no changed group could be original again
    within it.

    Raises:
        InfeasibleError: no legal set is so cheap.
    """
    worst = max((d for row in sensitivity.damages.values() for d in row.values() if math.isfinite(d)), default=1.0)
    worst = worst or 1.0

    def score(group: str, choice: str, damage: float) -> float:
        if choice == ORIGINAL:
            return 0.0
        saved = max(costs.total - costs.of(dict.fromkeys(groups[group], choice)), 0.0)
        # The solver takes what differs by 1e-6 for equal: ties are to differ by more.
        return -1e4 * (min(damage / worst, 1e3) + 1e-6 * (0.01 + saved / max(costs.total, 1e-30)))

    scores = {g: {c: score(g, c, d) for c, d in row.items()} for g, row in sensitivity.damages.items()}
    return best(groups, scores, costs, limit, floor)
