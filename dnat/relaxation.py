"""Network + edges -> `RelaxedNetwork`: theta on every edge, the function unchanged at the start.

A relaxed edge computes, for its input x and its operation op,

    o(x) = g(theta_original) * op(x) + g(theta_identity) * x          (DNAT, section 3.1)

The third term of the paper, theta_none * 0, is always zero and so is its gradient: theta_none never moves and acts
as a threshold. On a null edge op(x) is zero, and the identity is a reduction where x does not fit.

Where other operations op_k may be chosen, they stand in the original's place, each with a share s_k of it:

    g(theta_original) * ((1 - sum of s_k) * op(x) + sum of s_k * op_k(x)) + g(theta_identity) * x

with s_k = g(theta_k), divided by their sum where that exceeds 1. So theta_k's gradient says what would become of
the loss if op_k came for op, and theta_original's what if both were gone. In a step one of them can be sampled for
each group (`RelaxedNetwork.sample`); the others' shares are the original's then.

Two forms of the gate g: "raw" is g(theta) = theta, as in the paper. "sigmoid" is the logistic function moved and
scaled so that g(0) = 0 and g(1) = 1 exactly; it flattens beyond both ends. Theta starts at (none 0, identity 0,
original 1), where every output equals the original network's bit for bit, in eval and in train mode.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import mse_loss
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from .candidates import begin, candidate
from .edges import IDENTITY, NONE, ORIGINAL, Edge
from .naming import unknown
from .networks.cells import operation
from .operations import CellOperation, NullEdge
from .seeds import Stream, numpy_generator, torch_seed
from .tracing import copied

CHOICES = (NONE, IDENTITY, ORIGINAL)
"""The first columns of theta; those of other operations follow by name."""

IDENTITY_NAME = "identity_operation"
"""The name under which a null edge holds the operation that connects it."""

FORGETTING = 0.1
"""Share of the newest distance in the mean of an operation's distances from the original."""

STEEPNESS = 8.0
"""Slope of the sigmoid gate's exponent: g lies in (-0.019, 1.019), its slope is 2.1 at 1/2 and 0.15 at 0 and 1."""


class _Mix(torch.autograd.Function):
    """The sum of `scale * tensor` over pairs of tensors and 0-dim scales; a scale of 0 also silences inf and NaN.

    Arguments: what stands in the first scale's place in the backward pass, or None; the tensors; their scales.
    Keeps only these for the backward pass. The operation's output comes first, so that the sum takes its memory
    layout: with the input first later kernels see other strides and round differently.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(slope: Tensor | None, *given: Tensor) -> Tensor:
        n = len(given) // 2
        out = None
        for x, scale in zip(given[:n], given[n:], strict=True):
            number = _number(scale)
            if number is None or out is None:
                part = _scaled(x, scale, number)
                out = part if out is None else out + part
            elif number != 0:
                out.add_(x, alpha=number)
        assert out is not None
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        slope, *given = ctx.saved_tensors
        n, (gradient,) = len(given) // 2, gradients
        tensors, scales = given[:n], given[n:]
        slopes = [scales[0] if slope is None else slope, *scales[1:]]
        needs = ctx.needs_input_grad[1:]
        found: list[Tensor | None] = [None]
        for scale, needed in zip(slopes, needs[:n], strict=True):
            # A second derivative depends on the scale even where its value does not matter to the first.
            number = None if needed and torch.is_grad_enabled() else _number(scale) if needed else 0
            found.append(gradient if number == 1 else gradient * scale if number != 0 else None)
        for x, scale, needed in zip(tensors, scales, needs[n:], strict=True):
            found.append(_inner(gradient, x, scale) if needed else None)
        return tuple(found)


def _number(scale: Tensor) -> float | None:
    """The value of a scale where it costs nothing to know it; None where a device would have to be waited for."""
    if scale.device.type != "cpu":
        return None
    try:
        return float(scale.detach())
    except RuntimeError:  # under vmap it has no one value
        return None


def _scaled(x: Tensor, scale: Tensor, number: float | None) -> Tensor:
    if number is not None:
        return x * scale if number != 0 else torch.zeros_like(x)
    # 0 * inf would be NaN, and where(scale == 0, 0, x) alone would not stop it: the product is masked.
    return torch.where(scale == 0, torch.zeros((), dtype=x.dtype, device=x.device), x * scale)


def _inner(gradient: Tensor, x: Tensor, scale: Tensor) -> Tensor:
    """The gradient of a scale: the inner product over finite elements, summed in at least float32."""
    wide = torch.promote_types(scale.dtype, torch.float32)
    product = (gradient * x).to(wide)
    number = _number(total := product.sum())
    if number is None or not math.isfinite(number):
        total = torch.where(torch.isfinite(x), product, torch.zeros_like(product)).sum()
    return total.to(scale.dtype)


def mix(terms: Sequence[tuple[Tensor, Tensor]], slope: Tensor | None = None) -> Tensor:
    """The relaxed edge: the sum of `gate * x` over terms (x, gate).

    Args:
        terms: tensors of one shape, the operation's output first, each with its gate, 0-dim. The sum has the first
            one's type and memory layout.
        slope: in the backward pass, the first one's gate.
    """
    like = terms[0][0].dtype
    slope = None if slope is None else slope.detach().to(like)
    return _Mix.apply(slope, *(x.to(like) for x, _ in terms), *(gate.to(like) for _, gate in terms))


def _distance(made: Tensor, target: Tensor) -> Tensor:
    """How far an operation's output is from what it was to be; see `Theta.taught`."""
    made, target = made.float(), target.float()
    size = _variance(made.detach()) + _variance(target)
    return mse_loss(made, target) / (size + 1e-6)


def _variance(x: Tensor) -> Tensor:
    """The mean over channels of the variance over all else, 0-dim."""
    means = x.mean([d for d in range(x.dim()) if d != 1])
    # Two plain sums: torch.var takes ten times as long on a CPU.
    return (torch.linalg.vector_norm(x).square() / x.numel() - means.square().mean()).clamp(min=0)


def _as_it_is(x: Tensor) -> Tensor:
    return x


class Theta(nn.Module):
    """The architecture parameters of a relaxed network: a row (none, identity, original, ...) for each group.

    Args:
        rows: the choices of each group.
        gate: "raw" or "sigmoid"; see the module.
        columns: all choices; see `CHOICES`.
    """

    def __init__(self, rows: Sequence[Sequence[str]], gate: str, columns: tuple[str, ...] = CHOICES) -> None:
        super().__init__()
        if gate not in ("raw", "sigmoid"):
            raise unknown("gate", gate, ["raw", "sigmoid"])
        self.gate, self.columns = gate, columns
        start = torch.tensor([float(choice == ORIGINAL) for choice in columns])
        self.theta = nn.Parameter(start.repeat(len(rows), 1))
        offered = torch.tensor([[name in row for name in columns[len(CHOICES) :]] for row in rows])
        self.register_buffer("offered", offered, persistent=False)
        self.offered: Tensor
        # How far other operations are from the originals, as `learned` found it; 1 before it was measured.
        shape = offered.shape if offered.numel() else (0,)
        self.register_buffer("distance", torch.ones(shape), persistent=bool(offered.numel()))
        self.register_buffer("measured", torch.zeros(shape, dtype=torch.bool), persistent=bool(offered.numel()))
        self.distance: Tensor
        self.measured: Tensor
        # The other operation of each group that takes part in the present step; None: all of them.
        self.sampled: list[int] | None = None
        self.tried: tuple[int, int] | None = None
        # While choices are being settled: the gates at its beginning, and those that are its end.
        self.register_buffer("start_gates", None, persistent=False)
        self.register_buffer("end_gates", None, persistent=False)
        self.settled = 0.0
        # The gates of the forward pass that runs now: computed once for all edges, forgotten at its end.
        self._now: list[tuple[Tensor, ...]] | None = None
        # Distances of other operations, by row and column; collected while `taught` is open.
        self.distances: dict[tuple[int, int], list[Tensor]] | None = None
        self._needed: list[list[int]] | None = None
        self._teaches = False

    def settle(self, end: Tensor) -> None:
        """Leave theta alone from now on: the gates go straight from where they are to others.

        `settled` says how far they are, from 0 to 1.

        Args:
            end: the gates at the end (groups, columns).
        """
        self.start_gates, self.end_gates = self.gates().detach().clone(), end.to(self.theta)
        self.settled = 0.0

    @property
    def is_settling(self) -> bool:
        """Whether `settle` was called."""
        return self.end_gates is not None

    def gates(self) -> Tensor:
        """What each choice is weighed by now: (groups, columns), the first being none, identity, original."""
        if self.end_gates is None:
            gates = self._weighed(self._shares())
        else:
            assert isinstance(self.start_gates, Tensor)
            gates = torch.lerp(self.start_gates, self.end_gates, self.settled)
        if self.tried is None:
            return gates
        row, column = self.tried
        one_hot = torch.arange(gates.shape[1], device=gates.device) == column
        return torch.where(
            torch.arange(len(gates), device=gates.device)[:, None] == row,
            (one_hot & (column != CHOICES.index(NONE))).to(gates),
            gates,
        )

    @contextmanager
    def trying(self, row: int, choice: str) -> Iterator[None]:
        """Within, a group computes what it would if a choice were made; all others what theta says."""
        self.tried = (row, self.columns.index(choice))
        try:
            yield
        finally:
            self.tried = None

    def _weighed(self, shares: Tensor | None) -> Tensor:
        gates, n = self.open_gates(), len(CHOICES)
        if shares is None:
            return gates
        slot = gates[:, n - 1 : n]
        return torch.cat([gates[:, : n - 1], slot * (1 - shares.sum(1, keepdim=True)), slot * shares], 1)

    def _shares(self) -> Tensor | None:
        """The shares of other operations (groups, operations); None where there are none."""
        if not self.offered.numel():
            return None
        shares = self.open_gates()[:, len(CHOICES) :] * self.offered
        return shares / shares.sum(1, keepdim=True).clamp(min=1)

    @torch.no_grad()
    def confine(self) -> None:
        """Keep the theta of other operations between 0 and 1, where their shares are: call it after a step."""
        self.theta[:, len(CHOICES) :].clamp_(0, 1)

    def scores(self) -> Tensor:
        """What each choice is worth, as theta stands: (groups, columns). The largest is chosen.

        Of none, identity and original it is the gate. Where other operations stand beside the original, what
        choosing one of them would change is taken off: with distances d_j of the operations from the original
        (see `taught`: 0 of one that computes the same, 1 of one that has nothing in common with it) choice c is
        worth

            g(theta_original) * (1 - sum over j of (s_j - [j = c])^2 * d_j)

        which is the gate, less the distance of op_c from what the edge computes now, if the operations' errors
        are uncorrelated. Without a charge or a budget an operation wins when its share exceeds 1/2; and one that
        computes what the original does costs nothing to choose, whatever its share.
        """
        shares, gates = self._shares(), self.open_gates()
        if shares is None:
            return gates
        slot = gates[:, len(CHOICES) - 1 : len(CHOICES)]
        mixture = (shares**2 * self.distance).sum(1, keepdim=True)
        others = 1 - mixture - self.distance * (1 - 2 * shares)
        return torch.cat([gates[:, : len(CHOICES) - 1], slot * (1 - mixture), slot * others], 1)

    def open_gates(self) -> Tensor:
        """g(theta)."""
        if self.gate == "raw":
            return self.theta
        half = torch.full_like(self.theta, STEEPNESS / 2)
        low = torch.sigmoid(-half)
        # The denominator is computed as the numerator is, so that theta = 1 gives exactly 1.
        return (torch.sigmoid(STEEPNESS * self.theta - half) - low) / (torch.sigmoid(half) - low)

    def rows(self) -> list[tuple[Tensor, ...]]:
        """What each choice of every group is weighed by in a forward pass: 0-dim, a 1-element tensor would promote
        bfloat16."""
        gates = self.gates()
        shares = None if self.is_settling or self.sampled is None else self._shares()
        if shares is not None:
            assert self.sampled is not None
            taken = torch.arange(shares.shape[1]) == torch.tensor(self.sampled)[:, None]
            gates = self._weighed(shares * taken.to(shares.device))
        flat, n = gates.flatten().unbind(), len(self.columns)
        return [flat[i * n : (i + 1) * n] for i in range(len(self.theta))]

    def needed(self, row: int) -> list[int]:
        """The columns of other operations that have a say in the present forward pass, or are to learn from it."""
        needed = self._weighing() if self._now is None else self._needed
        if needed is not None:
            return needed[row]
        every = [len(CHOICES) + i for i in range(self.offered.shape[1])]
        return every if self.sampled is None else every[self.sampled[row] :][:1]

    @contextmanager
    def taught(self) -> Iterator[dict[tuple[int, int], list[Tensor]]]:
        """Within, a forward pass teaches other operations what those compute that they may replace.

        A closed gate passes no gradient on to an operation's weights (reference: methods C2.5). This does: it
        collects, by group and operation, the mean squared difference of its output from the original's, both for
        the same input, as a share of the sum of their variances (over images and pixels, mean over channels).
        With equal means and variances, which norms see to, that is 1 - their correlation. Nothing before an
        operation learns from it, or through it: to what lies before, the edge looks as if its original had
        computed all that the two did, so that one forward pass of the operation serves both.
        """
        found: dict[tuple[int, int], list[Tensor]] = {}
        self.distances = found
        try:
            yield found
        finally:
            self.distances = None

    @torch.no_grad()
    def learned(self, found: Mapping[tuple[int, int], Sequence[Tensor]]) -> None:
        """Add what `taught` found to the running means of the distances."""
        if not found:
            return
        rows, columns = torch.tensor(list(found)).to(self.distance.device).T
        columns = columns - len(CHOICES)
        newest = torch.stack([torch.stack(list(d)).mean() for d in found.values()]).to(self.distance)
        newest = newest.nan_to_num(nan=torch.finfo(newest.dtype).max)
        old = self.distance[rows, columns]
        mean = torch.where(self.measured[rows, columns], torch.lerp(old, newest, FORGETTING), newest)
        self.distance[rows, columns] = mean
        self.measured[rows, columns] = True

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """Within, all edges share one computation of the gates."""
        self._now, self._needed = self.rows(), self._weighing()
        if torch.is_grad_enabled():
            self._teaches = self.distances is not None
        try:
            yield
        finally:
            self._now = self._needed = None

    def _weighing(self) -> list[list[int]] | None:
        """The columns of operations that have weight, of each row; None where the others are to learn, too."""
        if len(self.columns) == len(CHOICES) or not (self.is_settling or not torch.is_grad_enabled()):
            return None
        weights = self.gates().abs()
        if self.is_settling and self.tried is None:
            weights = self.end_gates.abs() + self.start_gates.abs()
        others = (weights != 0)[:, len(CHOICES) :].tolist()
        return [[len(CHOICES) + i for i, has in enumerate(row) if has] for row in others]

    def teaches(self) -> bool:
        """Whether the present forward pass of an edge is one within `taught`, or the recomputation of one."""
        return self._teaches if self._now is None else self.distances is not None

    def collect(self, row: int, columns: Sequence[int], distances: Sequence[Tensor]) -> None:
        """Note what `taught` gives; not again what is computed again."""
        if self.distances is not None and self._now is not None:
            for column, distance in zip(columns, distances, strict=True):
                self.distances.setdefault((row, column), []).append(distance)

    def row(self, row: int) -> tuple[Tensor, ...]:
        """The gates of one group in the order of the columns."""
        if self._now is not None:
            return self._now[row]
        # Outside of a forward pass of the whole (a block called alone, recomputation by activation
        # checkpointing) they are computed afresh. Hooks of its own: a checkpoint expects what was kept within it
        # the first time, when the gates were there already.
        with saved_tensors_hooks(_as_it_is, _as_it_is):
            return self.rows()[row]


class _EdgeHooks:
    """The hooks of one edge: the entry's stashes the input, the exit's mixes it in. Can be copied and pickled.

    Args:
        theta: with the gates.
        row: of the edge's group.
        edge: the edge.
        modules: {choice: module} of the choices that have one.
    """

    def __init__(self, theta: Theta, row: int, edge: Edge, modules: Mapping[str, nn.Module]) -> None:
        self.theta, self.row = theta, row
        self.reduction = modules.get(IDENTITY)
        self.others = {theta.columns.index(name): m for name, m in modules.items() if name != IDENTITY}
        self.has_identity = IDENTITY in edge.choices
        self.is_null = edge.kind == "skip"
        self.inputs: list[Tensor] = []

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.inputs.append(args[0])

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        x = self.inputs.pop()
        self.inputs.clear()  # left behind by a forward that raised
        gates = self.theta.row(self.row)
        needed = [column for column in self.theta.needed(self.row) if column in self.others]
        if not needed:
            return mix(self._own(output, x, gates))
        mixed = self._taught if self.theta.teaches() else self._mixed
        if torch.is_grad_enabled():
            # What the operations compute is computed again when it is needed: as long as it would wait, only the
            # edge's input and the original's output are kept.
            modules = [self.others[column] for column in needed]
            modules += [self.reduction] if self.reduction is not None else []
            found = checkpoint(
                mixed,
                *(output, x, needed, *gates),
                use_reentrant=False,
                preserve_rng_state=False,
                context_fn=lambda: (nullcontext(), _forgotten(modules)),
            )
        else:
            found = mixed(output, x, needed, *gates)
        out, distances = found
        self.theta.collect(self.row, needed, distances)
        return out

    def _own(self, y: Tensor, x: Tensor, gates: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The terms of the edge's DNAT choices, for its input x and its operation's output y."""
        identity, original = gates[CHOICES.index(IDENTITY)], gates[CHOICES.index(ORIGINAL)]
        if self.is_null:
            original = torch.zeros_like(original)  # the operation gives zeros, so that only the identity counts
        if not self.has_identity:
            return [(y, original)]
        return [(y, original), (x if self.reduction is None else self.reduction(x), identity)]

    def _mixed(self, y: Tensor, x: Tensor, columns: list[int], *gates: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The edge with all that has a say."""
        others = [(self.others[column](x), gates[column]) for column in columns]
        return mix([*self._own(y, x, gates), *others]), []

    def _taught(self, y: Tensor, x: Tensor, columns: list[int], *gates: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The same, while other operations learn: see `Theta.taught`."""
        before, target = x.detach(), y.detach()
        made = [self.others[column](before) for column in columns]
        distances = [_distance(other, target) for other in made]
        others = [(other, gates[column]) for other, column in zip(made, columns, strict=True)]
        slope = sum((gates[column] for column in columns), start=gates[CHOICES.index(ORIGINAL)])
        return mix([*self._own(y, x, gates), *others], slope), distances

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"inputs": []}


@contextmanager
def _forgotten(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within, what modules write into their buffers (norms their statistics) is lost at the end."""
    every = [m for module in modules for m in module.modules()]
    kept = [(m, name, b) for m in every for name, b in m.named_buffers(recurse=False)]
    for module, name, buffer in kept:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in kept:
            setattr(module, name, buffer)


class RelaxedNetwork(nn.Module):
    """A copy of a network whose edges are weighed by theta. Made by `relax`.

    Its `state_dict` holds the original's keys unchanged, and `theta` beside them (`architecture.theta` where the
    original has a `theta` of its own; and with other operations their weights and distances). Calls go to
    `network`, which keeps its class and its names; only hooks were added.

    Attributes:
        network: the hooked copy.
        edges: the edges, in order.
        groups: name of the group of each row of theta.
        architecture: the `Theta` module.
    """

    def __init__(
        self, network: nn.Module, edges: tuple[Edge, ...], mode: str, gate: str, *, warm_start: bool = True
    ) -> None:
        super().__init__()
        if mode not in ("full", "cell"):
            raise unknown("mode", mode, ["full", "cell"])
        self.network = network
        self.edges = edges
        self.mode = mode
        self.groups = tuple(dict.fromkeys(e.key if mode == "full" else e.group for e in edges))
        names = dict.fromkeys(name for e in edges for name, _ in e.others)
        rows = [self.choices_of(group) for group in self.groups]
        self.architecture = Theta(rows, gate, (*CHOICES, *names))
        self.theta_key = "architecture.theta" if "theta" in network.state_dict() else "theta"
        self._handles: list[RemovableHandle] = []
        for edge in edges:
            self._attach(edge, warm_start)
        self.register_state_dict_post_hook(_strip_prefix)
        self.register_load_state_dict_pre_hook(_add_prefix)

    def _attach(self, edge: Edge, warm_start: bool) -> None:
        entry, exit = self.network.get_submodule(edge.entry), self.network.get_submodule(edge.exit)
        modules = {}
        for choice in edge.modules:
            # Registered on the edge's module, so that its weights train and are saved with the network's.
            modules[choice] = _module(choice, entry, None if exit is entry else exit, warm_start)
        for choice, module in modules.items():
            entry.add_module(module_name(choice), module)
        hooks = _EdgeHooks(self.architecture, self.row(edge), edge, modules)
        self._handles.append(entry.register_forward_pre_hook(hooks.enter, with_kwargs=True, prepend=True))
        self._handles.append(exit.register_forward_hook(hooks.leave, with_kwargs=True))

    def sample(self, seed: int, step: int) -> None:
        """Let one other operation of each group take part in a step, all alike likely; `sample_all` undoes it.

        Draws depend on the seed and the step alone.
        """
        draws = numpy_generator(seed, Stream.CANDIDATES, step).random(len(self.groups))
        offered = [[i for i, has in enumerate(row) if has] for row in self.architecture.offered.tolist()]
        # Of a group without any, one that it does not have.
        self.architecture.sampled = [
            row[int(draw * len(row))] if row else 0 for row, draw in zip(offered, draws, strict=True)
        ]

    def sample_all(self) -> None:
        """Let all operations take part."""
        self.architecture.sampled = None

    def others(self) -> Iterator[nn.Parameter]:
        """The weights of the operations that may take others' places; a part of `weights()`."""
        for edge in self.edges:
            for choice, _ in edge.others:
                yield from self.network.get_submodule(f"{edge.entry}.{module_name(choice)}").parameters()

    def row(self, edge: Edge) -> int:
        """The row of theta that weighs an edge."""
        return self.groups.index(edge.key if self.mode == "full" else edge.group)

    def choices_of(self, group: str) -> tuple[str, ...]:
        """What a group may become: what all its edges may become."""
        members = self.members(group)
        return tuple(c for c in members[0].choices if all(c in edge.choices for edge in members))

    def by_group(self) -> dict[str, list[Edge]]:
        """The edges of every group, in the order of theta's rows."""
        return {group: self.members(group) for group in self.groups}

    def members(self, group: str) -> list[Edge]:
        """The edges of a group."""
        return [e for e in self.edges if group == (e.key if self.mode == "full" else e.group)]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network computes with its edges relaxed."""
        with self.architecture.fixed():
            return self.network(*args, **kwargs)

    def weights(self) -> Iterator[nn.Parameter]:
        """The network's own parameters; with `thetas()` they partition `parameters()`."""
        return self.network.parameters()

    def thetas(self) -> Iterator[nn.Parameter]:
        """The architecture parameters: one tensor (groups, columns), the first none, identity, original."""
        return self.architecture.parameters()

    def settle(self, choices: Mapping[str, str]) -> None:
        """Let the gates go from where they are to those of the choices, where they are one-hot (none: all 0).

        `architecture.settled` says how far they are. At the end the network computes what the plain one does.

        Args:
            choices: {edge key: choice} for every edge; edges of a group have one choice.
        """
        columns = self.architecture.columns
        end = torch.zeros(len(self.groups), len(columns))
        for edge in self.edges:
            if choices[edge.key] != NONE:
                end[self.row(edge), columns.index(choices[edge.key])] = 1.0
        self.architecture.settle(end)

    @torch.no_grad()
    def set_one_hot(self, choices: Mapping[str, str]) -> None:
        """Set theta so that the network computes what it would with these choices (none: all 0).

        Args:
            choices: {edge key: choice}; edges that are missing keep theta.
        """
        for edge in self.edges:
            if edge.key in choices:
                choice = choices[edge.key]
                # Another operation stands in the original's place: that is open then, too.
                open_ = {choice, *({ORIGINAL} if choice not in CHOICES else ())} - {NONE}
                row = [float(c in open_) for c in self.architecture.columns]
                self.architecture.theta[self.row(edge)] = self.architecture.theta.new_tensor(row)

    def detached(self) -> nn.Module:
        """A copy of the network with its present weights and without hooks, theta and added operations."""
        twin = copied(self)
        assert isinstance(twin, RelaxedNetwork)
        for handle in twin._handles:
            handle.remove()
        for edge in twin.edges:
            for choice in edge.modules:
                delattr(twin.network.get_submodule(edge.entry), module_name(choice))
        return twin.network


def module_name(choice: str) -> str:
    """Under which name a choice's own module stands in the edge's first module while the network is relaxed."""
    return IDENTITY_NAME if choice == IDENTITY else choice


def _module(choice: str, entry: nn.Module, norm: nn.Module | None, warm_start: bool) -> nn.Module:
    """A module for a choice of an edge that begins at a module and ends, if at another, at a norm."""
    if not isinstance(entry, NullEdge | CellOperation):
        return candidate(choice, entry, norm, warm_start=warm_start)
    if choice == IDENTITY:
        return entry.identity()
    assert isinstance(entry, CellOperation)
    made = operation(choice, entry.channels, entry.stride)
    if warm_start:
        begin(made, entry.op)
    return made


def relax(
    network: nn.Module,
    edges: Iterable[Edge],
    mode: str = "full",
    gate: str = "raw",
    seed: int = 0,
    *,
    warm_start: bool = True,
) -> RelaxedNetwork:
    """Put theta on the edges of a copy of a network.

    Args:
        network: the network in which the edges were found. It is left unchanged.
        edges: from `find_edges`; any subset will do.
        mode: "full": every edge its own theta; "cell": the edges of a group share one.
        gate: "raw" or "sigmoid"; see the module.
        seed: for the initial weights of operations that are added.
        warm_start: whether other operations begin close to the originals; see `dnat.candidates`.

    Raises:
        ValueError: no edges, an edge that the network does not have, or an unknown mode or gate.

    >>> import dnat
    >>> network, x = dnat.build("resnet8"), torch.randn(2, 3, 32, 32)
    >>> relaxed = relax(network, dnat.find_edges(dnat.trace(network, x)))
    >>> torch.equal(relaxed(x), network(x)), sum(p.numel() for p in relaxed.thetas())
    (True, 12)
    """
    edges = tuple(edges)
    _check_edges(network, edges)
    twin = copied(network)
    devices = sorted({p.device.index for p in network.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(torch_seed(seed, Stream.CANDIDATES))
        relaxed = RelaxedNetwork(twin, edges, mode, gate, warm_start=warm_start)
    like = next((p for p in network.parameters() if p.is_floating_point()), None)
    if like is not None:
        for edge in edges:
            for choice in edge.modules if edge.kind != "unit" else ():  # a unit's have its own type already
                module = relaxed.network.get_submodule(f"{edge.entry}.{module_name(choice)}")
                module.to(device=like.device, dtype=like.dtype)
        wide = torch.promote_types(like.dtype, torch.float32)
        relaxed.architecture.to(device=like.device, dtype=wide)
    return relaxed.train(network.training)


def _check_edges(network: nn.Module, edges: Sequence[Edge]) -> None:
    if not edges:
        raise ValueError(f"no edges to relax: {type(network).__name__} has no operation that could change")
    if len({e.key for e in edges}) < len(edges):
        raise ValueError("an edge is listed twice")
    paths = {path for path, _ in network.named_modules(remove_duplicate=False)}
    for edge in edges:
        if edge.entry not in paths or edge.exit not in paths:
            raise ValueError(
                f"{type(network).__name__} has no {edge.key}: were the edges found in another network?"
            )


def _strip_prefix(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    assert isinstance(module, RelaxedNetwork)
    theta = state.pop(prefix + "architecture.theta")
    for key in [k for k in state if k.startswith(prefix + "network.")]:
        state[prefix + key[len(prefix + "network.") :]] = state.pop(key)
    state[prefix + module.theta_key] = theta


def _add_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *args: Any) -> None:
    assert isinstance(module, RelaxedNetwork)
    theta = state.pop(prefix + module.theta_key, None)
    own = {f"{prefix}architecture.{name}" for name, _ in module.architecture.named_buffers()}
    for key in [k for k in state if k.startswith(prefix) and k not in own]:
        state[prefix + "network." + key[len(prefix) :]] = state.pop(key)
    if theta is not None:
        state[prefix + "architecture.theta"] = theta
