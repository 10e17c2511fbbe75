"""A recorded network -> which of its channels belong together: what a narrower layer takes along.

Each output channel of each dense layer has a label, and labels are carried through the run beside the values.
What works channel by channel (norms, activations, pools, depthwise convolutions) hands them on; views and
transposes move them as they move the values; a product of two labelled values, such as a gate, or queries and
keys, makes their labels one; so does all that mixes channels without weights that could be cut (softmax, layer
norm). A dense layer reads labels and gives new ones. So no class of a layer or network needs to be known.

Channels whose labels have become one form a class: they stay or go together (a head of attention with its
queries, keys and values; the two halves of a gated unit; a group of a grouped convolution). A `Place` is all
classes that the same layers make and the same layers read. What is summed with other layers' channels, a residual
stream, keeps its width, and so does all that anything else reads: outputs, and functions of which it is not known
what they do.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from .tracing import Program, observed


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


POINTWISE = _names(
    """relu relu6 leaky_relu elu selu celu gelu silu mish tanh hardtanh hardswish hardsigmoid sigmoid
    softsign softplus logsigmoid tanhshrink threshold rrelu hardshrink softshrink dropout dropout1d
    dropout2d dropout3d alpha_dropout feature_dropout add iadd sub isub rsub mul imul multiply div
    divide true_divide truediv itruediv pow neg abs exp log sqrt rsqrt square clamp clip minimum maximum
    where lerp sin cos erf reciprocal nan_to_num masked_fill"""
)
"""Functions of one or several tensors that broadcast and work element by element."""

SUMS = _names("add iadd sub isub rsub where lerp minimum maximum")
"""Those of them that join what two layers made in one width: a residual stream."""

SAME = _names("to type type_as float half bfloat16 double clone detach contiguous alias_update requires_grad")
"""Functions whose result has the elements of their first argument, where they were."""

RESHAPING = _names("view reshape flatten unflatten squeeze unsqueeze view_as reshape_as")
"""Functions that keep all elements in their order."""

MOVING = _names(
    """permute transpose t T mT movedim moveaxis swapaxes swapdims chunk split tensor_split unbind getitem narrow
    select index_select flip roll expand expand_as repeat repeat_interleave tile cat concat concatenate stack
    pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle"""
)
"""Functions that move elements, which they do to labels just so."""

JOINING = _names("cat concat concatenate stack")

POOLS = _names(
    """boolean_dispatch max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    interpolate upsample"""
)
"""Functions that mix pixels, all dimensions behind the first two."""

ALONG = _names("softmax log_softmax softmin cumsum normalize")
"""Functions that mix along one dimension and keep the shape."""

REDUCING = _names("mean sum amax amin var std norm logsumexp nansum prod")

MAKING = _names(
    """zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty new_full
    bernoulli"""
)
"""Functions that take no more than a shape from what they are given."""

NOTHING = -1
"""The label of what has none."""


@dataclass(frozen=True)
class Place:
    """Channels that can go one by one, each with all that belongs to it.

    Attributes:
        classes: how many there are.
        cuts: (name of a parameter or buffer, dimension, the class of each index along it).
        makers, readers: names of the weights that give and that read the channels, in order of execution.
        axes: along which dimension of its input, counted from the end, each reader has them.
        operations: those of the program's first trace that work on the channels.
        values: those that hold them.
    """

    classes: int
    cuts: tuple[tuple[str, int, tuple[int, ...]], ...]
    makers: tuple[str, ...]
    readers: tuple[str, ...]
    axes: tuple[int, ...]
    operations: frozenset[int]
    values: frozenset[int]


def places(program: Program) -> tuple[Place, ...]:
    """The places of a network at which its width may change, in order of execution."""
    if "places" not in program.analyses:
        labels = _Labels(program)
        outputs = observed(program, labels.note)
        labels.finish(outputs)
        program.analyses["places"] = tuple(labels.places()) if outputs else ()
    found: tuple[Place, ...] = program.analyses["places"]
    return found


class _Classes:
    """Labels, and which of them have become one (union-find)."""

    def __init__(self) -> None:
        self.parents: list[int] = []
        self.makers: list[str] = []
        self.fixed: set[int] = set()

    def new(self, count: int, maker: str) -> np.ndarray:
        first = len(self.parents)
        self.parents.extend(range(first, first + count))
        self.makers.extend([maker] * count)
        return np.arange(first, first + count)

    def root(self, label: int) -> int:
        while self.parents[label] != label:
            self.parents[label] = self.parents[self.parents[label]]
            label = self.parents[label]
        return label

    def unite(self, pairs: np.ndarray) -> None:
        """Make the labels of each row one."""
        for one, other in pairs.tolist():
            a, b = self.root(one), self.root(other)
            if a != b:
                self.parents[max(a, b)] = min(a, b)

    def roots(self, labels: Iterable[int]) -> list[int]:
        return [NOTHING if label == NOTHING else self.root(label) for label in labels]


class _Labels:
    """Carries labels through a run; `note` is told of each operation."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.names: dict[int, str] = {}
        self.classes = _Classes()
        self.labels: dict[int, Tensor] = {}
        self.cuts: dict[tuple[str, int], np.ndarray] = {}
        self.makers: dict[str, int] = {}
        self.readers: dict[str, int] = {}
        self.axes: dict[str, int] = {}
        self.of_value: dict[int, set[int]] = {}
        self.handlers: dict[str, Callable[..., None]] = {
            "linear": self._linear,
            "addmm": self._addmm,
            "batch_norm": self._norm,
            "instance_norm": self._norm,
            "layer_norm": self._layer_norm,
            "rms_norm": self._layer_norm,
            "prelu": self._prelu,
            "pad": self._pad,
            "matmul": self._matmul,
            "bmm": self._matmul,
            "mm": self._matmul,
            "baddbmm": self._baddbmm,
            "scaled_dot_product_attention": self._attention,
        }
        for names, handler in (
            (POINTWISE, self._pointwise),
            (SAME, self._same),
            (RESHAPING, self._reshaped),
            (MOVING, self._moved),
            (POOLS, self._pooled),
            (ALONG, self._along),
            (REDUCING, self._reduced),
            (MAKING, lambda *_: None),
        ):
            self.handlers |= dict.fromkeys(names, handler)
        for n in (1, 2, 3):
            self.handlers[f"conv{n}d"] = self._convolution

    def note(
        self,
        func: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any,
        values: Mapping[int, int],
    ) -> None:
        """Carry labels through an operation.

        Args:
            func, name, args, kwargs, result: what was called, and what it gave.
            values: the number of each tensor's value in the trace, by its id.
        """
        if not self.names:  # not before: buffers are others while a network runs
            network = self.program.network
            self.names = {id(t): n for n, t in [*network.named_parameters(), *network.named_buffers()]}
        given = [t for t in tree_leaves((args, dict(kwargs))) if isinstance(t, Tensor)]
        if not any(id(t) in self.labels for t in given) and not self._begins(name):
            return
        handler = self.handlers.get(name.strip("_"))
        if handler is None or kwargs.get("out") is not None:
            self._fix(given)
        else:
            try:
                handler(func, name.strip("_"), args, kwargs, result)
            except _UnknownError:
                self._fix(given)
        for tensor in [*given, *(t for t in tree_leaves(result) if isinstance(t, Tensor))]:
            labels = self.labels.get(id(tensor))
            if labels is not None and id(tensor) in values:
                found = self.of_value.setdefault(values[id(tensor)], set())
                found.update(_distinct(labels))

    @staticmethod
    def _begins(name: str) -> bool:
        return name in ("linear", "addmm", "conv1d", "conv2d", "conv3d")

    def finish(self, outputs: Iterable[Tensor]) -> None:
        """What the network gives keeps its width."""
        self._fix(outputs)

    def _fix(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            labels = self.labels.get(id(tensor))
            if labels is not None:
                self.classes.fixed.update(_distinct(labels))

    def _put(self, tensor: Tensor, labels: Tensor) -> None:
        if labels.shape != tensor.shape:
            raise _UnknownError
        self.labels[id(tensor)] = labels

    def _of(self, tensor: Any) -> Tensor | None:
        return self.labels.get(id(tensor)) if isinstance(tensor, Tensor) else None

    # What functions do to labels.

    def _linear(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> None:
        x, weight, bias = (*args, *[None] * 3)[:3]
        self._dense(x, weight, kwargs.get("bias", bias), result, axis=-1, reads=1)

    def _addmm(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> None:
        bias, x, weight = args
        self._dense(x, weight, bias, result, axis=-1, reads=0)

    def _convolution(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> None:
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        named = dict(zip(names, args, strict=False)) | kwargs
        axis = -1 - int(name[4])
        if named.get("groups", 1) == 1:
            self._dense(named["input"], named["weight"], named.get("bias"), result, axis=axis, reads=1)
        else:
            self._grouped(named["input"], named["weight"], named.get("bias"), result, axis, named["groups"])

    def _dense(self, x: Tensor, weight: Tensor, bias: Any, result: Tensor, *, axis: int, reads: int) -> None:
        """A layer that reads all channels of its input and makes new ones."""
        known = self._of(x)
        name = self.names.get(id(weight))
        if name is None:
            raise _UnknownError  # a weight that is computed cannot be cut
        if known is not None:
            self._cut(name, reads, self._vector(known, axis))
            self.readers[name], self.axes[name] = reads, axis
        makes = 1 - reads
        if name not in self.makers:
            self._cut(name, makes, self.classes.new(weight.shape[makes], name))
            self.makers[name] = makes
        made = self.cuts[name, makes]
        if isinstance(bias, Tensor):
            if id(bias) not in self.names:
                raise _UnknownError
            self._cut(self.names[id(bias)], 0, made)
        self._put(result, _along(made, axis, result.shape))

    def _grouped(self, x: Tensor, weight: Tensor, bias: Any, result: Tensor, axis: int, groups: int) -> None:
        """A grouped convolution hands its groups on, each as a whole; a depthwise one has a group a channel."""
        known = self._of(x)
        if known is None:
            return
        if id(weight) not in self.names:
            raise _UnknownError
        rows = self._vector(known, axis).reshape(groups, -1)
        self._unite_arrays(rows[:, :1].repeat(rows.shape[1], 1), rows)
        made = rows[:, 0].repeat(weight.shape[0] // groups)
        for tensor in (weight, bias):
            if isinstance(tensor, Tensor):
                self._cut(self.names[id(tensor)], 0, made)
        self._put(result, _along(made, axis, result.shape))

    def _norm(self, func: Any, name: str, args: Any, kwargs: Any, result: Tensor) -> None:
        x = args[0]
        known = self._of(x)
        assert known is not None
        vector = self._vector(known, 1)
        for tensor in [*args[1:5], *(kwargs.get(k) for k in ("running_mean", "running_var", "weight", "bias"))]:
            if isinstance(tensor, Tensor):
                if id(tensor) not in self.names:
                    raise _UnknownError
                self._cut(self.names[id(tensor)], 0, vector)
        self._put(result, known)

    def _prelu(self, func: Any, name: str, args: Any, kwargs: Any, result: Tensor) -> None:
        """A slope for each channel, or one for all."""
        x, slopes = args
        known = self._of(x)
        if known is None or id(slopes) not in self.names:
            raise _UnknownError
        if slopes.numel() > 1:
            self._cut(self.names[id(slopes)], 0, self._vector(known, 1))
        self._put(result, known)

    def _layer_norm(self, func: Any, name: str, args: Any, kwargs: Any, result: Tensor) -> None:
        known = self._of(args[0])
        if known is None:
            raise _UnknownError
        shape = args[1] if len(args) > 1 else kwargs["normalized_shape"]
        self._put(result, self._tied(known, range(-len(shape), 0)))

    def _same(self, func: Any, name: str, args: Any, kwargs: Any, result: Tensor) -> None:
        known = self._of(args[0])
        if known is not None:
            self._put(result, known)

    def _reshaped(self, func: Any, name: str, args: Any, kwargs: Any, result: Tensor) -> None:
        known = self._of(args[0])
        if known is None or known.numel() != result.numel():
            raise _UnknownError
        self._put(result, known.reshape(result.shape))

    def _moved(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> None:
        joins = name in JOINING

        def label(tensor: Tensor) -> Tensor:
            known = self._of(tensor)
            if known is None and joins:
                return torch.tensor(NOTHING).expand(tensor.shape)
            return tensor if known is None else known

        moved = func(*tree_map_only(Tensor, label, args), **tree_map_only(Tensor, label, dict(kwargs)))
        for made, labels in zip(tree_leaves(result), tree_leaves(moved), strict=True):
            if isinstance(made, Tensor):
                self._put(made, labels)

    def _pad(self, func: Any, name: str, args: Any, kwargs: Any, result: Tensor) -> None:
        known = self._of(args[0])
        assert known is not None
        pad = args[1] if len(args) > 1 else kwargs["pad"]
        mode = args[2] if len(args) > 2 else kwargs.get("mode", "constant")
        padded = range(known.dim() - len(pad) // 2, known.dim())
        if mode != "constant":
            self._put(result, torch.nn.functional.pad(known.double(), pad, mode).long())
        elif padded.start > 1 and _is_constant(known, padded):  # zeros around an image belong to its channels
            self._put(result, _first(known, padded).expand(result.shape))
        else:
            self._put(result, torch.nn.functional.pad(known, pad, value=NOTHING))

    def _pooled(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> None:
        known = self._of(args[0])
        if known is None or not isinstance(result, Tensor) or result.dim() != known.dim():
            raise _UnknownError
        tied = self._tied(known, range(2, known.dim()))
        self._put(result, _first(tied, range(2, known.dim())).expand(result.shape))

    def _along(self, func: Any, name: str, args: Any, kwargs: Any, result: Tensor) -> None:
        known = self._of(args[0])
        at = 2 if name == "normalize" else 1
        dim = kwargs.get("dim", args[at] if len(args) > at else (1 if name == "normalize" else None))
        if known is None or dim is None:
            raise _UnknownError
        self._put(result, self._tied(known, [dim]))

    def _reduced(self, func: Any, name: str, args: Any, kwargs: Any, result: Tensor) -> None:
        known = self._of(args[0])
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if known is None or (name == "norm" and "dim" not in kwargs):
            raise _UnknownError
        dims = list(range(known.dim())) if dim is None else [dim] if isinstance(dim, int) else list(dim)
        reduced = _first(self._tied(known, dims), dims)
        self._put(result, reduced.reshape(result.shape))

    def _matmul(self, func: Any, name: str, args: Any, kwargs: Any, result: Tensor) -> None:
        a, b = args
        if any(id(t) in self.names for t in args):
            raise _UnknownError  # a layer of somebody's own
        self._product(a, b, result)

    def _baddbmm(self, func: Any, name: str, args: Any, kwargs: Any, result: Tensor) -> None:
        bias, a, b = args
        if self._of(bias) is not None:
            raise _UnknownError
        self._product(a, b, result)

    def _product(self, a: Tensor, b: Tensor, result: Tensor) -> None:
        """Each row of one meets each column of the other, over all that the product sums over."""
        if min(a.dim(), b.dim(), result.dim()) < 2:
            raise _UnknownError
        rows, columns = self._of(a), self._of(b)
        found = []
        for known, dim in ((rows, -1), (columns, -2)):
            if known is not None:
                found.append(_first(self._tied(known, [dim]), [dim]).expand(result.shape))
        self._put(result, self._joined(found))

    def _attention(self, func: Any, name: str, args: Any, kwargs: Any, result: Tensor) -> None:
        named = dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs)
        known = [self._of(named[k]) for k in ("query", "key", "value")]
        if any(k is None for k in known):
            raise _UnknownError
        tied = [_first(self._tied(k, [-1, -2]), [-1, -2]) for k in known if k is not None]
        self._put(result, self._joined([t.expand(result.shape) for t in tied]))

    def _pointwise(self, func: Any, name: str, args: Any, kwargs: Any, result: Tensor) -> None:
        tensors = [t for t in tree_leaves((args, dict(kwargs))) if isinstance(t, Tensor)]
        known = [k.expand(result.shape) for k in map(self._of, tensors) if k is not None]
        if name in SUMS and len(known) > 1:
            self._summed(known)
        labels = self._joined(known)
        for tensor in tensors:
            if self._of(tensor) is not None or tensor.numel() == 1:
                continue
            shape = [1] * (result.dim() - tensor.dim()) + list(tensor.shape)
            wide = [d for d, size in enumerate(shape) if size > 1 and not _is_constant(labels, [d])]
            elsewhere = [d for d in range(result.dim()) if d not in wide and not _is_constant(labels, [d])]
            if id(tensor) in self.names and len(wide) == 1 and not elsewhere:
                own = wide[0] - (result.dim() - tensor.dim())
                self._cut(self.names[id(tensor)], own, self._vector(labels, wide[0]))
            elif wide:  # it is not cut along, so that nothing can be cut along these
                labels = self._tied(labels, wide)
        self._put(result, labels)

    # How labels become one.

    def _summed(self, known: Sequence[Tensor]) -> None:
        """Sums of what different layers made are a residual stream."""
        first = known[0]
        for other in known[1:]:
            for one, two in _pairs(first, other).tolist():
                apart = NOTHING not in (one, two) and self.classes.root(one) != self.classes.root(two)
                if apart and self.classes.makers[one] != self.classes.makers[two]:
                    self.classes.fixed.update((one, two))

    def _joined(self, known: Sequence[Tensor]) -> Tensor:
        """The labels of what several labelled tensors of one shape make together."""
        joined = known[0]
        for other in known[1:]:
            if other is not joined:
                self._unite(joined, other)
                joined = torch.where(joined == NOTHING, other, joined) if (joined == NOTHING).any() else joined
        return joined

    def _unite(self, some: Tensor, others: Tensor) -> None:
        pairs = _pairs(some, others)
        bare = (pairs == NOTHING).any(1)
        self.classes.fixed.update(pairs[bare].ravel().tolist())
        self.classes.fixed.discard(NOTHING)
        self.classes.unite(pairs[~bare])

    def _unite_arrays(self, some: np.ndarray, others: np.ndarray) -> None:
        self._unite(torch.from_numpy(np.ascontiguousarray(some)), torch.from_numpy(np.ascontiguousarray(others)))

    def _tied(self, labels: Tensor, dims: Iterable[int]) -> Tensor:
        """The labels, those that lie along some dimensions being one."""
        dims = list(dims)
        if not _is_constant(labels, dims):
            self._unite(_first(labels, dims).expand(labels.shape), labels)
            return _first(labels, dims).expand(labels.shape)
        return labels

    def _vector(self, labels: Tensor, dim: int) -> np.ndarray:
        """The labels along a dimension, those that lie along all others being one."""
        dim %= labels.dim()
        others = [d for d in range(labels.dim()) if d != dim]
        return _first(self._tied(labels, others), others).flatten().numpy().copy()

    def _cut(self, name: str, dim: int, labels: np.ndarray) -> None:
        """Note to whom the slices of a tensor belong."""
        if (name, dim) in self.cuts:
            self._unite_arrays(self.cuts[name, dim], labels)
        else:
            self.cuts[name, dim] = labels

    # What has been found.

    def places(self) -> Iterator[Place]:
        """All places, in order of execution."""
        classes = self.classes
        roots = {key: classes.roots(labels.tolist()) for key, labels in self.cuts.items()}
        touched: defaultdict[int, set[tuple[str, int]]] = defaultdict(set)
        for key, row in roots.items():
            for root in set(row):
                touched[root].add(key)
        alike = {root: frozenset(keys) for root, keys in touched.items()}
        fixed = {NOTHING, *(classes.root(label) for label in classes.fixed), *_partly(roots.values(), alike)}
        groups: defaultdict[frozenset[tuple[str, int]], list[int]] = defaultdict(list)
        for root in sorted(alike.keys() - fixed):
            groups[alike[root]].append(root)
        holders: defaultdict[int, set[int]] = defaultdict(set)
        for value, labels in self.of_value.items():
            for root in set(classes.roots(labels)):
                holders[root].add(value)
        for keys, members in groups.items():
            place = self._place(keys, members, roots, set().union(*(holders[root] for root in members)))
            if place is not None:
                yield place

    def _place(
        self,
        keys: frozenset[tuple[str, int]],
        members: Sequence[int],
        roots: Mapping[tuple[str, int], Sequence[int]],
        values: set[int],
    ) -> Place | None:
        number = {root: i for i, root in enumerate(members)}
        cuts = tuple((*key, tuple(number[r] for r in roots[key])) for key in self.cuts if key in keys)
        # Who reads what it makes itself, or has more of one class than of another, is no layer with a width.
        uneven = any(len(set(np.bincount(row, minlength=len(members)).tolist())) > 1 for _, _, row in cuts)
        again = len({name for name, _, _ in cuts}) < len(cuts)
        makers = tuple(name for name, dim in self.makers.items() if (name, dim) in keys)
        readers = tuple(name for name, dim in self.readers.items() if (name, dim) in keys)
        if len(members) < 2 or uneven or again or not makers or not readers:
            return None
        trace = self.program.traces[0]
        operations = {
            i for i, op in enumerate(trace.operations) if not values.isdisjoint((*op.inputs, *op.outputs))
        }
        axes = tuple(self.axes[name] for name in readers)
        return Place(len(members), cuts, makers, readers, axes, frozenset(operations), frozenset(values))


class _UnknownError(Exception):
    """What a function does to channels cannot be told."""


def _partly(rows: Iterable[Sequence[int]], alike: Mapping[int, frozenset[tuple[str, int]]]) -> set[int]:
    """Classes that lie beside something else in what they are cut from: in other cuts, or in none."""
    found: set[int] = set()
    for row in rows:
        every, first = set(row), alike[row[0]]
        if NOTHING in every or any(alike[root] is not first and alike[root] != first for root in every):
            found |= every
    return found


def _along(labels: np.ndarray, axis: int, shape: Sequence[int]) -> Tensor:
    """Labels along one dimension, all others being alike."""
    sizes = [1] * len(shape)
    sizes[axis] = -1
    return torch.from_numpy(labels).view(sizes).expand(tuple(shape))


def _thin(labels: Tensor) -> Tensor:
    """The labels without what is only repeated."""
    for dim, step in enumerate(labels.stride()):
        if step == 0 and labels.shape[dim] > 1:
            labels = labels.narrow(dim, 0, 1)
    return labels


def _distinct(labels: Tensor) -> list[int]:
    return [label for label in torch.unique(_thin(labels)).tolist() if label != NOTHING]


def _is_constant(labels: Tensor, dims: Iterable[int]) -> bool:
    """Whether labels are alike along each of some dimensions."""
    thin = _thin(labels)
    return all(thin.shape[d] == 1 or bool((thin == thin.narrow(d, 0, 1)).all()) for d in dims)


def _first(labels: Tensor, dims: Iterable[int]) -> Tensor:
    """The first along some dimensions, which stay with size 1."""
    for dim in dims:
        labels = labels.narrow(dim, 0, 1)
    return labels


def _pairs(some: Tensor, others: Tensor) -> np.ndarray:
    """The distinct pairs of labels that stand at the same place, (pairs, 2)."""
    for dim, (a, b) in enumerate(zip(some.stride(), others.stride(), strict=True)):
        if a == b == 0 and some.shape[dim] > 1:
            some, others = some.narrow(dim, 0, 1), others.narrow(dim, 0, 1)
    apart = some != others
    pairs = (some[apart] + 1 << 32) + others[apart] + 1  # as one number: torch sorts rows slowly
    both = torch.unique(pairs).numpy()
    return np.stack([(both >> 32) - 1, (both & 0xFFFFFFFF) - 1], 1)
