"""Methods against ground truth: what became of an architecture, looked up in a table of accuracies of yours.

NAS-Bench-201 and NAS-Bench-Macro publish the accuracy of every architecture of a small space. A method transforms
architectures of such a space; its choices are read back as an architecture, which is looked up and compared with
all that could have been reached within its budget, and with a choice among those at random (`compare_with_table`).
Without a budget the result's own cost stands for it.

An architecture of NAS-Bench-201 is written as six digits, one of NAS-Bench-Macro as eight (`networks.nasbench`).
Those of NAS-Bench-201 come in their live form: an operation that lies on no path from the cell's input to its
output is none, since it has no part in the output, and dnat removes it. A cell without any path is dead: dnat
never makes one, so none counts as reachable.

What is legal:

    NAS-Bench-201    each operation may stay, become skip_connect, or none; none may become skip_connect. In the
                     space "nat++" also what NAT++'s table allows within the five operations: conv_3x3 may become
                     conv_1x1 or avg_pool_3x3. Every cell is the same (mode "cell").
    NAS-Bench-Macro  each layer that keeps its shape may become the identity (mode "full").

What can be reached from an architecture are all that such changes of its places make, whatever else a method asks
of choices. dnat itself offers some of them to no edge: none where that edge alone is what a node has.
"""

import csv
import functools
import itertools
import json
import lzma
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ..budget import InfeasibleError
from ..config import Config, parse_amount
from ..costs import cost
from ..data import Data, load
from ..edges import IDENTITY, NONE, ORIGINAL
from ..errors import UsageError, WrongTypeError
from ..moves import read_transitions, transitions
from ..naming import unknown
from ..networks import build
from ..networks.nasbench import EDGES, LAYERS, NAMES, OPERATIONS, Cell201, NASBenchMacro, parse_cell, parse_layers
from ..networks.proxyless import MBConv
from ..operations import CellOperation
from ..results import Transformation

SPACES = ("nasbench201", "nasbench_macro")
"""The spaces that tables are known of; also the families of their networks, for `dnat.build`."""

Method = Callable[[nn.Module, Data, Config], Transformation]
Moves = str | Mapping[str, Sequence[str]]
"""The space of choices: "dnat", "nat++", or a table of yours (`transitions.read_transitions`)."""

_FIELD = tuple(NAMES[name] for name in OPERATIONS)
"""What the digits of NAS-Bench-201 mean, by the names that choices have."""
_NULL, _SKIP = _FIELD.index("null"), _FIELD.index("skip_connect")
_KEPT = tuple(i for i, (_, stride) in enumerate(LAYERS) if stride == 1)
"""NAS-Bench-Macro's layers that keep their shape."""


def read_architecture(space: str, text: str) -> str:
    """An architecture as digits, from any form that the space has.

    Args:
        space: one of `SPACES`.
        text: of NAS-Bench-201 "|nor_conv_3x3~0|+..." or six digits; of NAS-Bench-Macro eight digits.

    Raises:
        ValueError: an unknown space, or a text that is none of its architectures; the message says where.

    >>> read_architecture("nasbench201", "|nor_conv_3x3~0|+|none~0|none~1|+|none~0|skip_connect~1|none~2|")
    '300010'
    """
    _check_space(space)
    if space == "nasbench201":
        return "".join(str(OPERATIONS.index(name)) for name in parse_cell(text))
    return "".join(map(str, parse_layers(text)))


def live_form(space: str, architecture: str) -> str:
    """The architecture without operations that have no part in its output; see the module.

    Args:
        space: one of `SPACES`.
        architecture: in any form.

    Raises:
        ValueError: a cell in which no path leads from the input to the output; or see `read_architecture`.

    >>> live_form("nasbench201", "333300")  # nothing reads nodes 1 and 2
    '000300'
    """
    digits = read_architecture(space, architecture)
    found = _live(space, digits)
    if found is None:
        raise UsageError(f"{architecture!r} is a dead cell: no path leads from its input to its output")
    return found


def _live(space: str, digits: str) -> str | None:
    """The live form of digits; None of a dead cell."""
    if space != "nasbench201":
        return digits
    present = [edge for edge, digit in zip(EDGES, digits, strict=True) if int(digit) != _NULL]
    heard, read = {0}, {3}
    for source, target in sorted(present):  # an edge leads to a later node, so one pass each way will do
        if source in heard:
            heard.add(target)
    for source, target in sorted(present, reverse=True):
        if target in read:
            read.add(source)
    if 3 not in heard:
        return None
    pairs = zip(EDGES, digits, strict=True)
    return "".join(digit if s in heard and t in read else str(_NULL) for (s, t), digit in pairs)


def _others(moves: Moves) -> dict[str, tuple[str, ...]]:
    """What each of NAS-Bench-201's operations may become beside skip_connect and none, within the five."""
    own = not isinstance(moves, str)
    if isinstance(moves, str) and moves not in ("dnat", "nat++"):
        raise unknown("space of choices", moves, ["dnat", "nat++"])
    table = transitions(moves) if isinstance(moves, str) else read_transitions(moves)
    found = {}
    for name in _FIELD:
        targets = [t for t in table[name] if t not in (name, "skip_connect", "null")]
        outside = [t for t in targets if t not in _FIELD]
        if own and outside:
            raise UsageError(
                f"the table of transitions lets {name} become {outside[0]}, which is none of NAS-Bench-201's "
                f"operations ({', '.join(_FIELD)})"
            )
        found[name] = tuple(t for t in targets if t in _FIELD)
    return found


def reachable(space: str, architecture: str, moves: Moves = "dnat") -> tuple[str, ...]:
    """All architectures that legal moves make of one, itself among them, in the order of their digits.

    Args:
        space: one of `SPACES`.
        architecture: where to begin, in any form; its live form counts.
        moves: what choices there are; NAS-Bench-Macro has "dnat" alone.

    Returns:
        Architectures as digits, in their live form.

    Raises:
        ValueError: see `live_form`; or moves that the space does not have.

    >>> reachable("nasbench_macro", "12100120")
    ('10100100', '10100120', '12100100', '12100120')
    >>> reachable("nasbench201", "000300")[-2:], len(reachable("nasbench201", "333333"))
    (('111301', '111311'), 290)
    """
    start = live_form(space, architecture)
    options: list[tuple[str, ...]]
    if space == "nasbench_macro":
        if moves != "dnat":
            raise UsageError(f"nasbench_macro has the moves of the space 'dnat' alone, not {moves!r}")
        options = [(d, "0") if i in _KEPT else (d,) for i, d in enumerate(start)]
    else:
        others = _others(moves)
        options = [
            (d, str(_SKIP), str(_NULL), *(str(_FIELD.index(name)) for name in others[_FIELD[int(d)]]))
            for d in start
        ]
    found = {_live(space, "".join(digits)) for digits in itertools.product(*options)}
    return tuple(sorted(f for f in found if f is not None))


@dataclass(frozen=True)
class Prices:
    """Multiply-adds of every architecture of a space, as a sum over its places.

    Attributes:
        fixed: what an architecture of zeros costs, for one image.
        places: for each digit's place, what each digit adds to that.
    """

    fixed: int
    places: tuple[tuple[int, ...], ...]

    def of(self, architecture: str) -> int:
        """Multiply-adds of one image; of an architecture as digits, with all its operations."""
        return self.fixed + sum(place[int(d)] for place, d in zip(self.places, architecture, strict=True))


def prices(space: str, pixels: Sequence[int], **options: Any) -> Prices:
    """Count the multiply-adds of a space's networks, by building some of them without weights.

    Args:
        space: one of `SPACES`.
        pixels: channels, height and width of an image.
        options: arguments of the network's constructor, such as width=4.
    """
    _check_space(space)
    options = {"in_channels": pixels[0], **options}

    def count(architecture: str) -> int:
        with torch.device("meta"):
            return cost(build(f"{space}:{architecture}", **options), torch.zeros(2, *pixels)).madds

    length, kinds = (len(EDGES), len(OPERATIONS)) if space == "nasbench201" else (len(LAYERS), 3)
    fixed = count("0" * length)

    @functools.cache
    def place(i: int) -> tuple[int, ...]:
        zeros = "0" * length
        return (0, *(count(zeros[:i] + str(d) + zeros[i + 1 :]) - fixed for d in range(1, kinds)))

    # Every edge of a cell has the same channels and the same resolution.
    return Prices(fixed, tuple(place(0 if space == "nasbench201" else i) for i in range(length)))


def read_table(path: str | Path, space: str) -> dict[str, float]:
    """A table of accuracies from a file.

    Args:
        path: a CSV file with the header `architecture,accuracy`, or a JSON file with an object {architecture:
            accuracy}; accuracies are in percent. In place of an accuracy an object with a number "mean_acc" will
            do, as in NAS-Bench-Macro's own file. Either file may be packed (.xz).
        space: one of `SPACES`.

    Returns:
        {architecture as digits: accuracy in percent}.

    Raises:
        ValueError: a file that cannot be read, or is no such table; the message names the line or the key.
    """
    _check_space(space)
    path = Path(path)
    packed = path.suffix.lower() == ".xz"
    kind = (path.with_suffix("") if packed else path).suffix.lower()
    if kind not in (".csv", ".json"):
        raise UsageError(f"{path}: a table is a file .csv or .json, not {path.suffix or 'one without a suffix'!r}")
    try:
        read = path.read_bytes()
        text = (lzma.decompress(read) if packed else read).decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except lzma.LZMAError as error:
        raise UsageError(f"{path}: is no file of xz: {error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text: {error}") from error
    return _checked(_rows_of_json(path, text) if kind == ".json" else _rows_of_csv(path, text), space)


def _rows_of_csv(path: Path, text: str) -> list[tuple[str, str, Any]]:
    """(where, architecture, accuracy) of each line."""
    lines = csv.reader(text.splitlines())
    header = [cell.strip() for cell in next(lines, [])]
    if header != ["architecture", "accuracy"]:
        raise UsageError(f"{path}, line 1: the header must be 'architecture,accuracy', not {','.join(header)!r}")
    rows: list[tuple[str, str, Any]] = []
    for cells in lines:
        where = f"{path}, line {lines.line_num}"
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != 2:
            raise UsageError(f"{where}: an architecture and an accuracy are needed, not {len(cells)} cells")
        try:
            accuracy = float(cells[1])
        except ValueError:
            raise UsageError(f"{where}: the accuracy must be a number, not {cells[1]!r}") from None
        rows.append((where, cells[0].strip(), accuracy))
    return rows


def _rows_of_json(path: Path, text: str) -> list[tuple[str, str, Any]]:
    """(where, architecture, accuracy) of each key; a key that is there twice comes twice."""
    try:
        table = json.loads(text, object_pairs_hook=list)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON: {error}") from error
    if not text.lstrip().startswith("{"):
        raise UsageError(f"{path}: must be an object {{architecture: accuracy}}, not {type(table).__name__}")
    return [(f"{path}, key {key!r}", key, _mean(value)) for key, value in table]


def _mean(value: Any) -> Any:
    """An accuracy as NAS-Bench-Macro publishes it: several runs, their mean, and what the network costs."""
    names = [name for name, _ in value] if _is_object(value) else []
    return dict(value)["mean_acc"] if names.count("mean_acc") == 1 else value


def _is_object(value: Any) -> bool:
    """Whether a value was an object of JSON, which is read as a list of pairs."""
    return isinstance(value, list) and all(isinstance(pair, tuple) for pair in value)


def _checked(rows: Iterable[tuple[str, Any, Any]], space: str) -> dict[str, float]:
    """A table from (where, architecture, accuracy)."""
    found: dict[str, float] = {}
    first: dict[str, str] = {}
    for where, text, accuracy in rows:
        if not isinstance(text, str):
            raise WrongTypeError(f"{where}: an architecture is a text, not {type(text).__name__}")
        try:
            architecture = read_architecture(space, text)
        except ValueError as error:
            raise UsageError(f"{where}: {error}") from None
        if architecture in found:
            raise UsageError(f"{where}: {architecture} is there already ({first[architecture]})")
        number = isinstance(accuracy, int | float) and not isinstance(accuracy, bool)
        if not number or not 0 <= accuracy <= 100:
            raise UsageError(f"{where}: the accuracy must be a number of percent, from 0 to 100, not {accuracy!r}")
        found[architecture], first[architecture] = float(accuracy), where
    if not found:
        raise UsageError("the table of accuracies is empty")
    if max(found.values()) <= 1:
        largest = max(found.values())
        raise UsageError(f"accuracies must be in percent, but the largest is {largest:g}: multiply them by 100")
    return found


@dataclass(frozen=True)
class Known:
    """An architecture as digits, its accuracy in percent, from the table, and multiply-adds of one image."""

    architecture: str
    accuracy: float
    madds: int


@dataclass(frozen=True)
class Standing:
    """What else could have been reached. Only architectures that the table has are counted.

    Attributes:
        allowed: multiply-adds that were allowed: the budget; without one, or where the result costs more than the
            budget, what the result costs.
        best: the most accurate of those that cost no more than that.
        best_anywhere: the most accurate of all, whatever it costs.
        rank: of the result among those that cost no more, 1 being the best; of equals each has the best rank.
        among: how many those are, the result included.
        mean, std: of their accuracies: what one drawn at random, each as likely, is expected to have, and how far
            such a draw lies from that (the standard deviation of the whole set, not of a sample).
        better: the share of them that are better than `mean`: the chance of a random draw to be.
        reachable: how many architectures can be reached, whatever they cost.
        missing: how many more could be, but are not in the table.
    """

    allowed: float
    best: Known
    best_anywhere: Known
    rank: int
    among: int
    mean: float
    std: float
    better: float
    reachable: int
    missing: int


@dataclass(frozen=True)
class Outcome:
    """What became of one architecture.

    Attributes:
        before: the architecture that was given, in its live form.
        after: what the method made of it; None where that cannot be told.
        standing: beside what else could have been reached; None where `after` is.
        problem: why there is no result; empty where there is one.
    """

    before: Known
    after: Known | None = None
    standing: Standing | None = None
    problem: str = ""

    @property
    def regret(self) -> float:
        """By how many percent the best that was allowed is better than the result; NaN without a result."""
        return self.standing.best.accuracy - self.after.accuracy if self.standing and self.after else math.nan

    @property
    def regret_anywhere(self) -> float:
        """The same beside the best of all, whatever it costs; NaN without a result."""
        if not (self.standing and self.after):
            return math.nan
        return self.standing.best_anywhere.accuracy - self.after.accuracy

    @property
    def control_regret(self) -> float:
        """The expected regret of a random draw among what was allowed; NaN without a result."""
        return self.standing.best.accuracy - self.standing.mean if self.standing else math.nan

    @property
    def used(self) -> float:
        """The share of the multiply-adds that were allowed which the result has; NaN without a result."""
        return self.after.madds / self.standing.allowed if self.standing and self.after else math.nan


class _UnreadableError(Exception):
    """What a method returned is no architecture of the space."""


def compare_with_table(
    method: Method,
    space: str,
    table: Mapping[str, float],
    inputs: Iterable[str],
    data: Data | str,
    config: Config | None = None,
    *,
    network_options: Mapping[str, Any] | None = None,
) -> tuple[Outcome, ...]:
    """Transform architectures by a method, and look up in a table what became of them.

    Each architecture's network is built with weights from the configuration's seed, and given to the method. That
    must change nothing but what is legal in the space (see the module): in NAS-Bench-201 the mode is set to
    "cell", and in its space "nat++" the table of transitions to what stays within the five operations; where that
    offers an architecture nothing beyond identity and none, the space is set to "dnat". Everything is checked
    before anything is trained.

    Args:
        method: `dnat.transform`, `dnat.train`, or any function with their signature.
        space: one of `SPACES`.
        table: {architecture in any form: accuracy in percent}, as from `read_table`.
        inputs: architectures to transform, in any form; see `live_form`.
        data: images to train on, or the name of a data set.
        config: the method's settings; `Config()` by default.
        network_options: arguments of the networks' constructor, such as {"width": 4, "cells": 1}.

    Returns:
        An outcome for each of the inputs, in their order. Where the budget cannot be kept, or what the method
        returns is no architecture of the space, cannot be reached, or is not in the table, `Outcome.problem` says
        so.

    Raises:
        ValueError: a table, inputs or settings that cannot be used; or what the method itself raises.
        TypeError: a table or inputs of the wrong type.
    """
    _check_space(space)
    config = config or Config()
    data = load(data) if isinstance(data, str) else data
    if not isinstance(table, Mapping):
        raise WrongTypeError(
            f"a table must be a mapping of accuracies (see read_table), not {type(table).__name__}"
        )
    accuracies = _checked(((f"key {key!r}", key, value) for key, value in table.items()), space)
    starts = _starts(space, inputs, accuracies)
    settings = [_settings(config, space, start) for start in starts]
    options = {"num_classes": data.num_classes, "in_channels": data.channels, **(network_options or {})}
    price = prices(space, tuple(data.example(1).shape[1:]), **options)

    outcomes = []
    for start, setting in zip(starts, settings, strict=True):
        before = Known(start, accuracies[start], price.of(start))
        try:
            network = _network(space, start, config.seed, options)
            after = _read(space, start, method(network, data, setting), network, price)
            allowed = 0.0 if config.budget is None else parse_amount(config.budget).of(before.madds)
            outcomes.append(_outcome(space, before, after, accuracies, price, config.operation_moves, allowed))
        except (_UnreadableError, InfeasibleError) as error:
            outcomes.append(Outcome(before, problem=str(error)))
    return tuple(outcomes)


def _check_space(space: str) -> None:
    if space not in SPACES:
        raise unknown("space of architectures", space, SPACES)


def _starts(space: str, inputs: Iterable[str], table: Mapping[str, float]) -> list[str]:
    """The inputs' live forms, all of which the table has."""
    if isinstance(inputs, str):
        raise WrongTypeError(f"inputs must be a list of architectures, not the text {inputs!r}")
    found: dict[str, str] = {}
    for text in inputs:
        start = live_form(space, text)
        form = "" if start == text else f", in its live form {start},"
        if start in found:
            raise UsageError(f"the input {text!r}{form} is there already ({found[start]!r})")
        if start not in table:
            raise UsageError(f"the input {text!r}{form} is not in the table of accuracies")
        if len(reachable(space, start)) < 2:
            raise UsageError(f"the input {text!r} has nothing that may change: no layer that keeps its shape")
        found[start] = text
    if not found:
        raise UsageError("no inputs are given: name at least one architecture to transform")
    return list(found)


def _settings(config: Config, space: str, start: str) -> Config:
    """The configuration under which a method changes only what is legal."""
    if config.edges is not None:
        raise UsageError(f"edges must not be set here, but is {config.edges!r}: {space} says what may change")
    if space == "nasbench_macro":
        if config.mode != "full":
            raise UsageError(
                f"nasbench_macro needs mode 'full', not {config.mode!r}: each layer changes by itself"
            )
        if config.names_operations:
            raise UsageError(
                f"nasbench_macro needs space 'dnat', not {config.space!r}: layers have no other moves"
            )
        return config
    config = replace(config, mode="cell")
    if not config.names_operations:
        return config
    present = {_FIELD[int(d)] for d in start}
    table = {
        name: list(targets)
        for name, targets in _others(config.operation_moves).items()
        if targets and name in present
    }
    return replace(config, transitions=table) if table else replace(config, space="dnat", transitions=None)


def _network(space: str, architecture: str, seed: int, options: Mapping[str, Any]) -> nn.Module:
    """The network of an architecture, whose edges are what may change in the space."""
    network = build(f"{space}:{architecture}", seed=seed, **options)
    if isinstance(network, NASBenchMacro):
        # Edges of their own, as the operations of a searched cell: what is inside a layer is no edge then, and the
        # identity is that of the whole layer, with its shortcut.
        for i in _KEPT:
            layer = network.layers[i]
            if isinstance(layer, MBConv):
                channels = cast(nn.BatchNorm2d, layer.layers[-1]).num_features
                name = "mbconv_3x3" if architecture[i] == "1" else "mbconv_5x5"
                network.layers[i] = CellOperation(name, layer, channels)
    return network


def _read(space: str, start: str, result: Transformation, network: nn.Module, price: Prices) -> str:
    """The architecture that a method's choices make of one, in its live form."""
    if space == "nasbench201":
        cells = [path for path, module in network.named_modules() if isinstance(module, Cell201)]
        digits = _read_cells(start, dict(result.choices), cells, _reasons(result))
    else:
        digits = _read_layers(start, dict(result.choices))
    found = _live(space, digits)
    if found is None:
        raise _UnreadableError("the choices make a dead cell: no path leads from its input to its output")
    if result.cost_after.madds != price.of(found):
        raise _UnreadableError(
            f"the choices make {found}, which costs {price.of(found)} multiply-adds, but the network that came "
            f"back costs {result.cost_after.madds}: it is another one"
        )
    return found


def _reasons(result: Transformation) -> dict[str, str]:
    """{edge key: why its choice is not another one}, where there is a reason."""
    edges = result.commitment.edges if result.commitment else ()
    return {edge.key: edge.reason for edge in edges if edge.reason}


def _read_cells(start: str, choices: dict[str, str], cells: Iterable[str], reasons: Mapping[str, str]) -> str:
    """The digits of cells that began as `start`; `choices` is used up."""
    found: list[dict[str, str]] = [{} for _ in start]
    for cell in cells:
        for i, digit in enumerate(start):
            key = f"{cell}.edges.{i}"
            found[i].setdefault(_digit(key, digit, choices.pop(key, ORIGINAL)), key)
    _refuse_rest(choices)
    for by_digit in found:
        if len(by_digit) > 1:
            ways = (f"{key} is {_FIELD[int(digit)]}" for digit, key in by_digit.items())
            whys = (f" ({key}: {reasons[key]})" for key in by_digit.values() if key in reasons)
            raise _UnreadableError(f"the cells differ: {', '.join(ways)}{''.join(whys)}")
    return "".join(next(iter(by_digit)) for by_digit in found)


def _digit(key: str, digit: str, choice: str) -> str:
    if choice == ORIGINAL:
        return digit
    name = {IDENTITY: "skip_connect", NONE: "null"}.get(choice, choice)
    if name not in _FIELD:
        raise _UnreadableError(f"{key} became {choice}, which is none of NAS-Bench-201's operations")
    return str(_FIELD.index(name))


def _read_layers(start: str, choices: dict[str, str]) -> str:
    """The digits of layers that began as `start`; `choices` is used up."""
    digits = list(start)
    for i in _KEPT:
        choice = choices.pop(f"layers.{i}", ORIGINAL)
        if choice not in (ORIGINAL, IDENTITY):
            raise _UnreadableError(f"layers.{i} became {choice}, which is none of NAS-Bench-Macro's layers")
        if choice == IDENTITY:
            digits[i] = "0"
    _refuse_rest(choices)
    return "".join(digits)


def _refuse_rest(choices: Mapping[str, str]) -> None:
    for key, choice in choices.items():
        if choice != ORIGINAL:
            raise _UnreadableError(f"{key} became {choice}, but it is no edge of the space")


def _outcome(
    space: str,
    before: Known,
    after: str,
    table: Mapping[str, float],
    price: Prices,
    moves: Moves,
    allowed: float,
) -> Outcome:
    """A result beside all that could have been reached."""
    reached = reachable(space, before.architecture, moves)
    if after not in reached:
        named = repr(moves) if isinstance(moves, str) else "of that table"
        raise _UnreadableError(f"{before.architecture} cannot become {after} by the moves of the space {named}")
    if after not in table:
        raise _UnreadableError(f"the result {after} is not in the table of accuracies")
    known = [Known(a, table[a], price.of(a)) for a in reached if a in table]
    result = next(k for k in known if k.architecture == after)
    allowed = max(allowed, result.madds)
    within = [k for k in known if k.madds <= allowed]
    accuracies = [k.accuracy for k in within]
    mean = statistics.fmean(accuracies)
    standing = Standing(
        allowed=allowed,
        # Of equals the cheapest, then the first by its digits.
        best=min(within, key=lambda k: (-k.accuracy, k.madds)),
        best_anywhere=min(known, key=lambda k: (-k.accuracy, k.madds)),
        rank=1 + sum(a > result.accuracy for a in accuracies),
        among=len(within),
        mean=mean,
        std=statistics.pstdev(accuracies),
        better=sum(_above(a, mean) for a in accuracies) / len(accuracies),
        reachable=len(known),
        missing=len(reached) - len(known),
    )
    return Outcome(before, result, standing)


def _above(accuracy: float, mean: float) -> bool:
    """Whether an accuracy is above a mean by more than rounding."""
    return accuracy > mean and not math.isclose(accuracy, mean, rel_tol=1e-12)


@dataclass(frozen=True)
class Summary:
    """Many outcomes together; accuracies and regrets are means, in percent.

    Attributes:
        n: outcomes with a result; all the rest is of them.
        failed: outcomes without one.
        unchanged: results that are the architecture that was given. Doing nothing costs most, and beats random
            draws wherever changes do harm: look at the results that changed, too.
        before, after: accuracy of the architectures as they were given, and of what became of them.
        control: expected accuracy of random draws among what was allowed.
        regret, control_regret: of the results, and what is expected of random draws.
        regret_anywhere: of the results beside the best that could be reached at any cost.
        wins, losses, ties: how often the result was better than the mean of the random draw, worse, or equal.
        wins_by_chance: how many wins random draws are expected to have (that is not a half: a mean is no median).
        p_value: how likely random draws are to win as often or more often.
        used: the share of the multiply-adds that were allowed which the results have.
    """

    n: int
    failed: int
    unchanged: int
    before: float
    after: float
    control: float
    regret: float
    control_regret: float
    regret_anywhere: float
    wins: int
    losses: int
    ties: int
    wins_by_chance: float
    p_value: float
    used: float


def summary(outcomes: Iterable[Outcome]) -> Summary:
    """What outcomes are on average, and how often the method beat the random draw.

    Raises:
        ValueError: there is none with a result.
    """
    outcomes = list(outcomes)
    triples = [(o, o.after, o.standing) for o in outcomes]
    counted = [(o, after, standing) for o, after, standing in triples if after and standing]
    if not counted:
        first = f": {outcomes[0].problem}" if outcomes else ""
        raise UsageError(f"none of {len(outcomes)} outcomes has a result{first}")
    wins = sum(_above(after.accuracy, s.mean) for _, after, s in counted)
    losses = sum(_above(s.mean, after.accuracy) for _, after, s in counted)
    chances = [s.better for _, _, s in counted]
    mean = statistics.fmean
    return Summary(
        n=len(counted),
        failed=len(outcomes) - len(counted),
        unchanged=sum(after == o.before for o, after, _ in counted),
        before=mean(o.before.accuracy for o, _, _ in counted),
        after=mean(after.accuracy for _, after, _ in counted),
        control=mean(s.mean for _, _, s in counted),
        regret=mean(o.regret for o, _, _ in counted),
        control_regret=mean(o.control_regret for o, _, _ in counted),
        regret_anywhere=mean(o.regret_anywhere for o, _, _ in counted),
        wins=wins,
        losses=losses,
        ties=len(counted) - wins - losses,
        wins_by_chance=math.fsum(chances),
        p_value=_at_least(wins, chances),
        used=mean(o.used for o, _, _ in counted),
    )


def _at_least(wins: int, chances: Iterable[float]) -> float:
    """The probability of so many wins or more, of independent draws that each win with a chance of their own."""
    distribution = [1.0]
    for chance in chances:
        lost = [p * (1 - chance) for p in distribution] + [0.0]
        won = [0.0] + [p * chance for p in distribution]
        distribution = [a + b for a, b in zip(lost, won, strict=True)]
    return min(1.0, math.fsum(distribution[wins:]))
