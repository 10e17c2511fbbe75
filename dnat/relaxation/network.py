"""The network with theta on its edges."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..edges import NONE, ORIGINAL, Edge, EdgeSet, common_choices
from ..errors import UsageError
from ..narrowing import Orders, by_weights
from ..seeds import Stream, numpy_generator, torch_seed
from ..tracing import copied
from .attaching import attach, attach_width, module_name
from .passes import ForwardPasses
from .theta import CHOICES, Theta


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
        columns: the choices that theta has columns for; see `CHOICES`.
        passes: what the edges share in a forward pass.
    """

    def __init__(
        self,
        network: nn.Module,
        edges: EdgeSet,
        mode: str,
        gate: str,
        *,
        warm_start: bool = True,
        orders: Orders | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.edges = edges
        self.mode = mode
        self._members = edges.groups(mode)
        self.groups = tuple(self._members)
        self._rows = {group: row for row, group in enumerate(self.groups)}
        self.columns = (*CHOICES, *dict.fromkeys(name for e in edges for name in e.beside))
        choices = [self.choices_of(group) for group in self.groups]
        widths = [self.members(group)[0].place is not None for group in self.groups]
        self.architecture = Theta(choices, gate, self.columns, widths)
        self.passes = ForwardPasses(self.architecture)
        orders = orders or {}
        missing = [e for e in edges if e.place and e.key not in orders]
        self.orders = {**by_weights(network, missing), **orders}
        self.theta_key = "architecture.theta" if "theta" in network.state_dict() else "theta"
        self._handles: list[RemovableHandle] = []
        for edge in edges:
            if edge.place:
                self._handles += attach_width(network, edge, self.passes, self.row(edge), self.orders[edge.key])
            else:
                self._handles += attach(network, edge, self.passes, self.row(edge), warm_start=warm_start)
        self.register_state_dict_post_hook(_strip_prefix)
        self.register_load_state_dict_pre_hook(_add_prefix)

    def sample(self, seed: int, step: int) -> None:
        """Let one other operation of each group take part in a step, all alike likely; `sample_all` undoes it.

        Draws depend on the seed and the step alone.
        """
        draws = numpy_generator(seed, Stream.CANDIDATES, step).random(len(self.groups))
        # Of a group without any, one that it does not have.
        self.architecture.sample(
            [
                row[int(draw * len(row))] if row else 0
                for row, draw in zip(self.architecture.alternatives, draws, strict=True)
            ]
        )

    def sample_all(self) -> None:
        """Let all operations take part."""
        self.architecture.sample(None)

    def sample_chosen(self, choices: Mapping[str, str]) -> None:
        """Set theta to choices (`set_one_hot`), and let no other operation take part than they name.

        Args:
            choices: {edge key: choice} for every edge; edges of a group have one choice.
        """
        self.set_one_hot(choices)
        if len(self.columns) > len(CHOICES):
            places = []
            for row, members in zip(self.architecture.alternatives, self._members.values(), strict=True):
                choice = choices[members[0].key]
                # Of a group whose choice is no other operation, the first: its share is 0.
                places.append((row or [0])[0] if choice in CHOICES else self.columns.index(choice) - len(CHOICES))
            self.architecture.sample(places)

    def trying(self, group: str, choice: str) -> AbstractContextManager[None]:
        """Within, a group computes what it would if a choice were made; all others what they did before."""
        return self.architecture.trying(self._rows[group], choice)

    def added_parameters(self) -> Iterator[nn.Parameter]:
        """The weights of the operations that may take others' places; a part of `weights()`."""
        for edge in self.edges:
            for choice, _ in edge.others:
                yield from self.network.get_submodule(f"{edge.entry}.{module_name(choice)}").parameters()

    def row(self, edge: Edge) -> int:
        """The row of theta that weighs an edge."""
        return self._rows[edge.key if self.mode == "full" else edge.group]

    def choices_of(self, group: str) -> tuple[str, ...]:
        """What a group may become: what all its edges may become."""
        return common_choices(self.members(group))

    def by_group(self) -> dict[str, list[Edge]]:
        """The edges of every group, in the order of theta's rows."""
        return {group: list(members) for group, members in self._members.items()}

    def members(self, group: str) -> list[Edge]:
        """The edges of a group."""
        return self._members[group]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network computes with its edges relaxed."""
        with self.passes.whole():
            return self.network(*args, **kwargs)

    def weights(self) -> Iterator[nn.Parameter]:
        """The network's own parameters; with `thetas()` they partition `parameters()`."""
        return self.network.parameters()

    def thetas(self) -> Iterator[nn.Parameter]:
        """The architecture parameters: one tensor (groups, columns), the first none, identity, original."""
        return self.architecture.parameters()

    def settle(self, choices: Mapping[str, str]) -> None:
        """Let the gates go from where they are to those of the choices, where they are one-hot (none: all 0).

        `settle_to` says how far they are. At the end the network computes what the plain one does.

        Args:
            choices: {edge key: choice} for every edge; edges of a group have one choice.
        """
        end = torch.zeros(len(self.groups), len(self.columns))
        for edge in self.edges:
            if choices[edge.key] != NONE:
                end[self.row(edge), self.columns.index(choices[edge.key])] = 1.0
        self.architecture.settle(end)

    @property
    def is_settling(self) -> bool:
        """Whether `settle` was called: theta does not count any more."""
        return self.architecture.is_settling

    def settle_to(self, progress: float) -> None:
        """Put the gates at a share of the way to their end, from 0 to 1."""
        self.architecture.settle_to(progress)

    def gates(self) -> Tensor:
        """What each choice is weighed by now, (groups, columns)."""
        return self.architecture.gates()

    def worths(self) -> Tensor:
        """What each choice is worth, as theta stands: (groups, columns); see `Theta.worths`."""
        return self.architecture.worths()

    def taught(self) -> AbstractContextManager[dict[tuple[int, int], list[Tensor]]]:
        """Within, a forward pass teaches other operations what the originals compute: `ForwardPasses.taught`."""
        return self.passes.taught()

    @torch.no_grad()
    def set_one_hot(self, choices: Mapping[str, str]) -> None:
        """Set theta so that the network computes what it would with these choices (none: all 0).

        Args:
            choices: {edge key: choice}; edges that are missing keep theta.
        """
        theta = self.architecture.theta
        rows = theta.detach().clone()
        for edge in self.edges:
            if edge.key in choices:
                choice = choices[edge.key]
                # Another operation stands in the original's place: that is open then, too.
                open_ = {choice, *({ORIGINAL} if choice not in CHOICES else ())} - {NONE}
                rows[self.row(edge)] = rows.new_tensor([float(c in open_) for c in self.columns])
        theta.copy_(rows)

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
    edges = EdgeSet(edges)
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


def _check_edges(network: nn.Module, edges: EdgeSet) -> None:
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
