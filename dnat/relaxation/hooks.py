"""The hooks that make an edge of a network a relaxed one."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from ..distributed import SyncedNorms
from ..edges import IDENTITY, ORIGINAL, Edge
from ..tracing import kept_buffers
from .mixing import added, distance, mix, value_of
from .passes import ForwardPasses
from .theta import CHOICES


class EdgeHooks:
    """The hooks of one edge: the entry's stash the input, the exit's mixes it in. Can be copied and pickled.

    Where an edge ends at another module than it begins, a norm, calls of the two may interleave (`a, b = conv(x),
    conv(y)`, then `norm(a), norm(b)`): what the norm is given tells which input belongs to it.

    Args:
        passes: with the gates.
        row: of the edge's group.
        edge: the edge.
        modules: {choice: module} of the choices that have one.
    """

    def __init__(self, passes: ForwardPasses, row: int, edge: Edge, modules: Mapping[str, nn.Module]) -> None:
        self.passes, self.row = passes, row
        self.reduction = modules.get(IDENTITY)
        self.others = {passes.theta.columns.index(name): m for name, m in modules.items() if name != IDENTITY}
        self.has_identity = IDENTITY in edge.choices
        self.is_null = edge.kind == "skip"
        self.inputs: list[Tensor] = []
        self.part = edge.part
        self.is_pair = edge.entry != edge.exit
        self.waiting: list[tuple[Tensor, Tensor]] = []
        self.most = edge.interleaved()
        self.unweighed: tuple[Tensor, Tensor, Sequence[Tensor]] | None = None
        """The norm's own weight and bias, while it has weighed ones, and the gates."""

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the edge's first module: note what it is given."""
        self.inputs.append(args[0] if self.part is None else torch.empty(0))  # only an identity would ask for it

    def between(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        """After the first module of an edge that ends at another: note what it made of its input."""
        self.waiting.append((output, self._input()))
        del self.waiting[: -self.most]  # left behind by a forward that raised

    def _input(self) -> Tensor:
        x = self.inputs.pop()
        self.inputs.clear()  # left behind by a forward that raised
        return x

    def weigh(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Before the norm that ends an edge: let its weight and bias be weighed, in place of its output.

        It is the same number for a fraction of the work: the output is neither multiplied, nor kept to find the
        gate's gradient. A gate of 0 would not silence inf and NaN that way, and where other operations take part
        the norm's own output is asked for.
        """
        weight, bias = module._parameters["weight"], module._parameters["bias"]
        gates = self.passes.row(self.row)
        gate = gates[CHOICES.index(ORIGINAL)]
        if not isinstance(weight, nn.Parameter) or bias is None or not value_of(gate) or self._needed():
            return
        self.unweighed = weight, bias, gates
        module._parameters["weight"], module._parameters["bias"] = (  # type: ignore[assignment]
            p * gate.to(p.dtype) for p in (weight, bias)
        )

    def restore(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After that norm, also when it failed: give it its own weight and bias again."""
        if self.unweighed is not None:
            module._parameters["weight"], module._parameters["bias"], _ = self.unweighed  # type: ignore[assignment]
            self.unweighed = None

    def _needed(self) -> list[int]:
        """The columns of other operations that take part."""
        return [column for column in self.passes.needed(self.row) if column in self.others]

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """After the edge's last module: what the relaxed edge makes of it, or of the part that is read."""
        if self.part is None:
            only_ours = len(module._forward_hooks) == 2
            return self._relaxed(args, output, in_place=only_ours)
        leaves, structure = tree_flatten(output)
        place = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)][self.part]
        leaves[place] = self._relaxed(args, leaves[place])
        return tree_unflatten(leaves, structure)

    def _relaxed(self, args: tuple[Any, ...], output: Tensor, *, in_place: bool = False) -> Tensor:
        if self.is_pair:
            # Where a block around the first module is an edge of its own, its mixture is what comes in here.
            places = (i for i, (begun, _) in enumerate(self.waiting) if begun is args[0])
            _, x = self.waiting.pop(next(places, -1))
        else:
            x = self._input()
        if self.unweighed is not None:
            _, *others = self._own(output, x, self.unweighed[-1])
            return added(output, *others[0], in_place=in_place) if others else output
        gates = self.passes.row(self.row)
        needed = self._needed()
        if not needed:
            return mix(self._own(output, x, gates))
        mixed = self._taught if self.passes.teaches() else self._mixed
        if torch.is_grad_enabled():
            # What the operations compute is computed again when it is needed: as long as it would wait, only the
            # edge's input and the original's output are kept.
            modules = [self.others[column] for column in needed]
            modules += [self.reduction] if self.reduction is not None else []
            out, distances = checkpoint(
                mixed,
                *(output, x, needed, *gates),
                use_reentrant=False,
                preserve_rng_state=False,
                context_fn=functools.partial(_twice, modules, SyncedNorms.present()),
            )
        else:
            out, distances = mixed(output, x, needed, *gates)
        self.passes.collect(self.row, needed, distances)
        return out

    def _own(self, y: Tensor, x: Tensor, gates: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The terms of the edge's DNAT choices, for its input x and its operation's output y."""
        identity, original = gates[CHOICES.index(IDENTITY)], gates[CHOICES.index(ORIGINAL)]
        if not self.has_identity:
            return [(y, original)]
        passed = x if self.reduction is None else self.reduction(x), identity
        return [passed] if self.is_null else [(y, original), passed]  # a null edge's operation gives zeros

    def _mixed(self, y: Tensor, x: Tensor, columns: list[int], *gates: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The edge with all that has a say."""
        others = [(self.others[column](x), gates[column]) for column in columns]
        return mix([*self._own(y, x, gates), *others]), []

    def _taught(self, y: Tensor, x: Tensor, columns: list[int], *gates: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The same, while other operations learn: see `ForwardPasses.taught`."""
        before, target = x.detach(), y.detach()
        outputs = [self.others[column](before) for column in columns]
        distances = [distance(output, target) for output in outputs]
        others = [(output, gates[column]) for output, column in zip(outputs, columns, strict=True)]
        slope = sum((gates[column] for column in columns), start=gates[CHOICES.index(ORIGINAL)])
        return mix([*self._own(y, x, gates), *others], slope), distances

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"inputs": [], "waiting": [], "unweighed": None}


class WidthHooks:
    """The hooks of a width: each layer that reads its channels is given them weighed.

    A channel has the sum of the gates of the original and of all widths that keep it. So at one-hot theta a layer
    reads zeros where a narrower network has nothing, and the original's own input where theta says "original".

    Args:
        passes: with the gates.
        row: of the edge's group.
        edge: the width.
        order: its channels (classes), those that matter most first.
    """

    def __init__(self, passes: ForwardPasses, row: int, edge: Edge, order: Sequence[int]) -> None:
        assert edge.place
        self.passes, self.row = passes, row
        self.columns = [
            CHOICES.index(ORIGINAL),
            *(passes.theta.columns.index(choice) for choice in edge.choices[1:]),
        ]
        rank = torch.empty(len(order), dtype=torch.long)
        rank[torch.tensor(order)] = torch.arange(len(order))
        kept = torch.tensor([edge.kept(choice) for choice in edge.choices])
        keeps = (rank[None, :] < kept[:, None]).float()
        rows = {name: torch.tensor(row) for name, _, row in edge.place.cuts}
        self.keeps = {name: keeps[:, rows[name]] for name in edge.place.readers}
        """For each reader which of the choices keep which of its channels, (choices, channels)."""

    def enter(self, name: str, axis: int, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Before a layer that reads the channels along an axis of its first argument."""
        gates = [self.passes.row(self.row)[column] for column in self.columns]
        if not torch.is_grad_enabled() and [value_of(gate) for gate in gates] == [1.0] + [0.0] * (len(gates) - 1):
            return None  # as it is in the network itself
        x = args[0]
        weights = torch.stack(gates)
        keeps = self.keeps[name] = self.keeps[name].to(weights)
        mask = (weights @ keeps).to(x.dtype)
        mask = mask.view(-1, *[1] * (-1 - axis))
        product = x * mask
        if x.device.type != "cpu" or not bool(mask.all()):
            product = torch.where(mask == 0, torch.zeros((), dtype=x.dtype, device=x.device), product)
        return (product, *args[1:])


def _twice(
    modules: Sequence[nn.Module], norms: AbstractContextManager[object]
) -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
    """What to compute within the first time and again: norms as they are now, which then write no buffers."""
    return nullcontext(), _forgotten(modules, norms)


@contextmanager
def _forgotten(modules: Sequence[nn.Module], norms: AbstractContextManager[object]) -> Iterator[None]:
    """Within, what modules write into their buffers (norms their statistics) is lost at the end."""
    with kept_buffers(m for module in modules for m in module.modules()), norms:
        yield
