"""The network with theta on its edges."""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..candidates import begin, candidate
from ..edges import IDENTITY, NONE, ORIGINAL, Edge
from ..errors import UsageError
from ..naming import unknown
from ..narrowing import Orders, by_weights
from ..networks.cells import operation
from ..operations import CellOperation, NullEdge
from ..seeds import Stream, numpy_generator, torch_seed
from ..tracing import copied
from .hooks import EdgeHooks, WidthHooks
from .theta import CHOICES, Theta

IDENTITY_NAME = "identity_operation"
"""The name under which a null edge holds the operation that connects it."""


class RelaxedNetwork(nn.Module):
    """A copy of a network whose edges are weighed by theta. Made by `relax`.

    Its `state_dict` holds the original's keys unchanged, and `theta` beside them (`architecture.theta` where the
    original has a `theta` of its own; and with other operations their weights and distances). Calls go to
    `network`, which keeps its class and its names; only hooks were added.

    Attributes:
        network: the hooked copy.
        edges: the edges, in order.
        groups: name of the group of each row of theta.
        orders: of the channels of widths, see `dnat.narrowing`.
        architecture: the `Theta` module.
    """

    def __init__(
        self,
        network: nn.Module,
        edges: tuple[Edge, ...],
        mode: str,
        gate: str,
        *,
        warm_start: bool = True,
        orders: Orders | None = None,
    ) -> None:
        super().__init__()
        if mode not in ("full", "cell"):
            raise unknown("mode", mode, ["full", "cell"])
        self.network = network
        self.edges = edges
        self.mode = mode
        self.groups = tuple(dict.fromkeys(e.key if mode == "full" else e.group for e in edges))
        names = dict.fromkeys(name for e in edges for name in e.beside)
        rows = [self.choices_of(group) for group in self.groups]
        widths = [self.members(group)[0].place is not None for group in self.groups]
        self.architecture = Theta(rows, gate, (*CHOICES, *names), widths)
        given = orders or {}
        missing = [e for e in edges if e.place and e.key not in given]
        self.orders = {**by_weights(network, missing), **given}
        self.theta_key = "architecture.theta" if "theta" in network.state_dict() else "theta"
        self._handles: list[RemovableHandle] = []
        for edge in edges:
            if edge.place:
                self._narrow(edge)
            else:
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
        hooks = EdgeHooks(self.architecture, self.row(edge), edge, modules)
        self._handles.append(entry.register_forward_pre_hook(hooks.enter, with_kwargs=True, prepend=True))
        if exit is not entry:
            self._handles.append(entry.register_forward_hook(hooks.between, with_kwargs=True))
        self._handles.append(exit.register_forward_hook(hooks.leave, with_kwargs=True))

    def _narrow(self, edge: Edge) -> None:
        assert edge.place
        hooks = WidthHooks(self.architecture, self.row(edge), edge, self.orders[edge.key])
        for name, axis in zip(edge.place.readers, edge.place.axes, strict=True):
            reader = self.network.get_submodule(name.rpartition(".")[0])
            self._handles.append(reader.register_forward_pre_hook(functools.partial(hooks.enter, name, axis)))

    def sample(self, seed: int, step: int) -> None:
        """Let one other operation of each group take part in a step, all alike likely; `sample_all` undoes it.

        Draws depend on the seed and the step alone.
        """
        draws = numpy_generator(seed, Stream.CANDIDATES, step).random(len(self.groups))
        # Of a group without any, one that it does not have.
        self.architecture.sampled = [
            row[int(draw * len(row))] if row else 0
            for row, draw in zip(self.architecture.alternatives, draws, strict=True)
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
    orders: Orders | None = None,
) -> RelaxedNetwork:
    """Put theta on the edges of a copy of a network.

    Args:
        network: the network in which the edges were found. It is left unchanged.
        edges: from `find_edges`; any subset will do.
        mode: "full": every edge its own theta; "cell": the edges of a group share one.
        gate: "raw" or "sigmoid"; see the module.
        seed: for the initial weights of operations that are added.
        warm_start: whether other operations begin close to the originals; see `dnat.candidates`.
        orders: of the channels of widths, those that matter most first; by default `narrowing.by_weights`.

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
        relaxed = RelaxedNetwork(twin, edges, mode, gate, warm_start=warm_start, orders=orders)
    like = next((p for p in network.parameters() if p.is_floating_point()), None)
    if like is not None:
        for edge in edges:
            for choice in edge.modules if edge.kind != "unit" else ():  # a unit's have its own type already
                module = relaxed.network.get_submodule(f"{edge.entry}.{module_name(choice)}")
                module.to(device=like.device, dtype=like.dtype)
        wide = torch.promote_types(like.dtype, torch.float32)
        relaxed.architecture.to(device=like.device, dtype=wide)
    # Everything is in the mode in which it was; what was added, in that of the edge that it belongs to.
    relaxed.training = relaxed.architecture.training = network.training
    for edge in edges:
        entry = relaxed.network.get_submodule(edge.entry)
        for choice in edge.modules:
            entry.get_submodule(module_name(choice)).train(entry.training)
    return relaxed


def _check_edges(network: nn.Module, edges: Sequence[Edge]) -> None:
    if not edges:
        raise UsageError(f"no edges to relax: {type(network).__name__} has no operation that could change")
    if len({e.key for e in edges}) < len(edges):
        raise UsageError("an edge is listed twice")
    paths = {path for path, _ in network.named_modules(remove_duplicate=False)}
    for edge in edges:
        if edge.entry not in paths or edge.exit not in paths:
            raise UsageError(
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
