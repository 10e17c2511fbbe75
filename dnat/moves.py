"""What an operation of a cell may become: the tables of NAT and NAT++, and tables of your own.

A table says for each operation what it may become, itself first: {"conv_1x1": ("conv_1x1", "skip_connect"), ...}.
Sources: NAT (docs/methods.md A4) and NAT++ (docs/methods.md B1 to B6; guoyongcs/NATv2).
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from .errors import UsageError
from .naming import unknown
from .networks.genotypes import OPERATIONS, CellGenotype, Genotype

Table = Mapping[str, tuple[str, ...]]

# NAT++'s thirteen, in its order (docs/methods.md B1).
PRIMITIVES: tuple[str, ...] = (
    *("max_pool_3x3", "max_pool_5x5", "avg_pool_3x3", "avg_pool_5x5", "skip_connect"),
    *("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"),
    *("conv_1x1", "conv_3x3", "conv_5x5", "null"),
)

# Convolutions that other networks have and no genotype names.
LAYERS: tuple[str, ...] = (
    *("conv_7x7", "conv_9x9", "conv_11x11"),
    *("dwconv_3x3", "dwconv_5x5", "dwconv_7x7", "dwconv_9x9", "dwconv_11x11"),
)
_KNOWN = (*OPERATIONS, *LAYERS)

# NAT++'s order of types, in which a change goes down. A "pair", such as conv_1x3_3x1, is no operation of NAT++;
# it is cheaper than the convolution of its size, so it stands behind that.
_RANKS = {"conv": 0, "pair": 1, "sep_conv": 2, "dil_conv": 3, "dwconv": 4, "max_pool": 5, "avg_pool": 5}
_NAME = re.compile(r"(conv|sep_conv|dil_conv|dwconv|max_pool|avg_pool)_(\d+)x(\d+)(_\dx\d)?")
_SPACES = ("nat", "dnat", "nat++")


def _anatomy(operation: str) -> tuple[str, int] | None:
    """The type of an operation and its kernel's longer side; None of skip_connect and null, which have neither."""
    match = _NAME.fullmatch(operation)
    return match and ("pair" if match[4] else match[1], max(int(match[2]), int(match[3])))


@dataclass(frozen=True)
class OperationCost:
    """Multiply-adds of one image, and weights, as NAT++'s figure counts them; see `cost_of`."""

    madds: int
    params: int


def cost_of(
    operation: str, channels: int, height: int, width: int, channels_out: int | None = None, *, stride: int = 1
) -> OperationCost:
    """What an operation costs, as NAT++ ranks them (docs/methods.md B3).

    With C channels in, D out, and an output of H x W pixels, the multiply-adds are

        conv_kxk      C D k^2 H W
        dwconv_kxk    C k^2 H W
        sep_conv_kxk  (2 C k^2 + C^2 + C D) H W, which is 2 (C k^2 + C^2) H W where C = D
        dil_conv_kxk  (C k^2 + C D) H W
        a pool        C k^2 H W
        skip_connect  C H W
        null          0

    and the weights the same without H W, but none in pools and skip_connect. Norms and biases do not count. Ours,
    beside the figure: conv_1xk_kx1 has (stride C^2 + C D) k H W (half way it has its input's height, taken to be
    stride H), and a skip_connect that changes the shape is a reduction with C D H W.

    `dnat.cost` counts the convolutions, linear layers and matrix products that a network runs: what papers report
    and budgets limit. Pools and skips are free there, so it cannot tell them apart, or from nothing. This count
    is the one by which transitions go down.

    Args:
        operation: one of `genotypes.OPERATIONS` or `LAYERS`.
        channels, channels_out: of the input and of the output; None: as many as the input has.
        height, width: of the output: a stride is in them.
        stride: of the edge. Only skip_connect and pairs cost more for it.

    Raises:
        ValueError: an unknown operation, a size below 1, or a pool or a depthwise convolution that should change
            the channels.

    >>> cost_of("sep_conv_3x3", 128, 32, 32)
    OperationCost(madds=35913728, params=35072)
    """
    if operation not in _KNOWN:
        raise unknown("operation", operation, _KNOWN)
    c, d = channels, channels if channels_out is None else channels_out
    if min(c, d, height, width, stride) < 1:
        raise UsageError(f"channels, sizes and stride must be at least 1, not {(c, d, height, width, stride)}")
    kind, k = _anatomy(operation) or (operation, 1)
    if (kind.endswith("pool") or kind == "dwconv") and c != d:
        raise UsageError(f"{operation} keeps the channels: {c} cannot become {d}")
    reduces = kind == "skip_connect" and (c != d or stride > 1)  # it is an operations.FactorizedReduce
    weights = {
        "conv": c * d * k * k,
        "pair": (c * c + c * d) * k,
        "sep_conv": 2 * c * k * k + c * c + c * d,
        "dil_conv": c * k * k + c * d,
        "dwconv": c * k * k,
        "skip_connect": c * d if reduces else 0,
    }.get(kind, 0)
    without = 0 if weights or kind == "null" else c * k * k  # of pools, and of skips that copy
    again = (stride - 1) * c * c * k if kind == "pair" else 0
    return OperationCost((weights + without + again) * height * width, weights)


def _follows_rule(source: str, target: str) -> bool:
    """Whether NAT++'s rule allows a change of one operation into another (docs/methods.md B2)."""
    before, after = _anatomy(source), _anatomy(target)
    if before is None or after is None:
        return target in ("skip_connect", "null")
    if after[0] == "dwconv" != before[0]:
        return False  # it mixes no channels: what does cannot become one
    return _RANKS[after[0]] >= _RANKS[before[0]] and after[1] <= before[1]


@functools.cache
def transitions(space: str) -> Table:
    """The table of a method: for every operation what it may become, itself first, then by falling cost.

    "nat", and "dnat", which has the same: everything may stay or become skip_connect or null
    (docs/methods.md A4: the code has three actions on skip_connect and null, too, of which two are one).

    "nat++": by the rule of its table (docs/methods.md B2). The type goes down conv > sep_conv > dil_conv > pools,
    where max and avg stand together; the kernel never grows; everything may become skip_connect or null, and null
    only skip_connect. Nothing becomes an operation outside NAT++'s thirteen (`PRIMITIVES`),
    but for depthwise convolutions. So conv_1x1 becomes
    skip_connect or null only: no later type of them has a kernel of 1x1.

    Ours is what "nat++" says of operations outside the thirteen: the same rule, with the longer side as the
    kernel, and pairs (conv_1x3_3x1, conv_1x7_7x1, conv_7x1_1x7) as a type between conv and sep_conv. So
    sep_conv_7x7 may become a sep_conv, a dil_conv or a pool of 5x5 or 3x3, while sep_conv_1x1, dil_conv_1x1 and
    pools of 2x2 have only skip_connect and null. A depthwise convolution (dwconv) stands between dil_conv and the
    pools: it becomes one with a smaller kernel, or a pool, and nothing else becomes one.

    With at least 3 channels (5, with pairs) nothing but null becomes an operation with more multiply-adds
    (`cost_of`), unless a pool with a stride becomes a skip_connect, which is a reduction then.

    Raises:
        ValueError: an unknown space.

    >>> transitions("nat++")["conv_3x3"][:4], transitions("nat")["conv_3x3"]
    (('conv_3x3', 'sep_conv_3x3', 'dil_conv_3x3', 'conv_1x1'), ('conv_3x3', 'skip_connect', 'null'))
    """
    if space not in _SPACES:
        raise unknown("space", space, _SPACES)
    depthwise = [name for name in LAYERS if name.startswith("dwconv")]
    targets = (*PRIMITIVES, *depthwise) if space == "nat++" else ("skip_connect", "null")

    # The size is that of NAT++'s figure; of two that cost the same, pools stand behind, and max before avg.
    def place(name: str) -> tuple[int, bool, int]:
        return -cost_of(name, 128, 32, 32).madds, "pool" in name, _KNOWN.index(name)

    falling = sorted(targets, key=place)
    return _table({a: [b for b in falling if _follows_rule(a, b)] for a in _KNOWN})


def _table(rows: Mapping[str, Sequence[str]]) -> Table:
    """A table for all operations, frozen, each with itself first."""
    return MappingProxyType({name: tuple(dict.fromkeys((name, *rows.get(name, ())))) for name in _KNOWN})


def read_transitions(data: str | Mapping[str, Sequence[str]]) -> Table:
    """Check a table of your own: JSON like {"conv_3x3": ["conv_1x1", "skip_connect"]}, or such a mapping.

    Every operation may stay, whether its list says so or not; one that is not named can do nothing else. The
    order is kept, but the operation itself comes first. An operation may become a dearer one, but null only
    skip_connect, without exception: where nothing is connected, a network would grow layers that nobody gave it.

    Raises:
        ValueError: text that is not JSON, or no such table, with the JSON path of the place.

    >>> table = read_transitions('{"conv_3x3": ["conv_1x1", "skip_connect"]}')
    >>> table["conv_3x3"], table["conv_5x5"]
    (('conv_3x3', 'conv_1x1', 'skip_connect'), ('conv_5x5',))
    """
    if isinstance(data, str):
        try:
            data = json.loads(data, object_pairs_hook=_once)
        except UsageError:
            raise
        except (ValueError, RecursionError) as error:
            raise UsageError(f"a table of transitions must be JSON: {error}") from error
    if not isinstance(data, Mapping):
        raise UsageError(f"a table of transitions must be an object of lists, not {type(data).__name__}")
    for operation, targets in data.items():
        _check_row(operation, targets)
    return _table(data)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are all different: json itself would keep the last and say nothing."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise UsageError(f"{name} is there already")
        found[name] = value
    return found


def _check_row(operation: object, targets: object) -> None:
    if operation not in _KNOWN:
        raise UsageError(f"{operation}: {unknown('operation', operation, _KNOWN)}")
    if not isinstance(targets, list | tuple):
        raise UsageError(
            f"{operation} must be a list of operations, not {type(targets).__name__} ({targets!r:.40})"
        )
    for i, target in enumerate(targets):
        path = f"{operation}[{i}]"
        if target not in _KNOWN:
            raise UsageError(f"{path}: {unknown('operation', target, _KNOWN)}")
        if target in targets[:i]:
            raise UsageError(f"{path}: {target} is there already")
        if operation == "null" and target not in ("skip_connect", "null"):
            raise UsageError(f"{path}: null may become skip_connect and nothing else, not {target}")


def mask_of(current: str | Sequence[str], table: Table, operations: Sequence[str] = PRIMITIVES) -> Tensor:
    """Which operations may come in the place of one: booleans of shape (K,), the mask of `masked_softmax`.

    Args:
        current: the operation that is there now; or N of them, for a mask of shape (N, K).
        table: what may become what. What it allows beyond `operations` is not offered.
        operations: what the K columns stand for.

    Raises:
        ValueError: an operation that the table does not have, or that could not stay, having no column.

    >>> mask_of("conv_1x1", transitions("nat++"), ("conv_1x1", "conv_3x3", "skip_connect", "null"))
    tensor([ True, False,  True,  True])
    """
    names = [current] if isinstance(current, str) else list(current)
    for name in names:
        if name not in table:
            raise unknown("operation", name, table)
        if name not in operations:
            raise UsageError(f"{name} could not stay: it is not among {', '.join(operations)}")
    rows = [[operation in table[name] for operation in operations] for name in names]
    mask = torch.tensor(rows, dtype=torch.bool).reshape(len(names), len(operations))
    return mask[0] if isinstance(current, str) else mask


def masked_softmax(logits: Tensor, mask: Tensor, dim: int = -1, *, official: bool = False) -> Tensor:
    """Probabilities of the legal operations: p_k = m_k exp(z_k) / sum_j m_j exp(z_j) (docs/methods.md B4).

    Where m_k = 0, p_k and the gradient of z_k are exactly 0, whatever z_k and the gradient of p_k are (that of
    `torch.special.entr` is infinite). Large logits do not overflow; a legal p_k may underflow to 0: mind its log.

    Args:
        logits: z, of any floating type.
        mask: m, booleans or 0 and 1, that broadcast to the shape of the logits.
        dim: the operations' dimension.
        official: add 1e-5 to each legal one and do not divide by the new sum, as the code of NAT and NAT++ does.

    Raises:
        ValueError: a place where nothing is legal.
        RuntimeError: a mask that does not broadcast to the logits.

    >>> masked_softmax(torch.zeros(3), torch.tensor([True, False, True]))
    tensor([0.5000, 0.0000, 0.5000])
    """
    illegal = ~mask.bool().expand_as(logits)
    if illegal.all(dim).any():
        raise UsageError("the mask has a place where no operation is legal")
    p = logits.masked_fill(illegal, -torch.inf).softmax(dim)
    # These zeros are there already: filled in, they keep an infinite gradient from becoming 0 * inf.
    return (p + 1e-5 if official else p).masked_fill(illegal, 0.0)


@dataclass(frozen=True)
class Violation:
    """A difference between two genotypes that a table does not allow: where (a JSON path), what, and why."""

    path: str
    before: str
    after: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.before} -> {self.after}: {self.reason}"


def legal(before: Genotype, after: Genotype, table: Table) -> tuple[Violation, ...]:
    """What keeps a genotype from being a transformation of another: nothing, if it is one (docs/methods.md B6).

    Operations may change as the table says, edge by edge; nodes, inputs and outputs must stay.

    >>> from dnat.networks.genotypes import published
    >>> print(*legal(published("naonet"), published("nat_naonet"), transitions("nat")))
    reduce.nodes[0][1].operation: avg_pool_2x2 -> avg_pool_3x3: it may become only skip_connect, null
    """
    cells = (("normal", before.normal, after.normal), ("reduce", before.reduce, after.reduce))
    return tuple(violation for cell in cells for violation in _cell_violations(*cell, table))


def _cell_violations(path: str, before: CellGenotype, after: CellGenotype, table: Table) -> list[Violation]:
    counts = [[len(node) for node in cell.nodes] for cell in (before, after)]
    found = []
    for name, a, b in (("nodes", *counts), ("concat", list(before.concat), list(after.concat))):
        if a != b:
            what = "the numbers of edges" if name == "nodes" else "the nodes of the output"
            found.append(Violation(f"{path}.{name}", str(a), str(b), f"{what} must stay"))
    for i, nodes in enumerate(zip(before.nodes, after.nodes, strict=False)):
        for j, (x, y) in enumerate(zip(*nodes, strict=False)):
            place = f"{path}.nodes[{i}][{j}]"
            if x.input != y.input:
                found.append(Violation(f"{place}.input", str(x.input), str(y.input), "inputs must stay"))
            if y.operation not in (allowed := table.get(x.operation, (x.operation,))):
                reason = f"it may become only {', '.join(allowed[1:])}" if allowed[1:] else "it must stay"
                found.append(Violation(f"{place}.operation", x.operation, y.operation, reason))
    return found
