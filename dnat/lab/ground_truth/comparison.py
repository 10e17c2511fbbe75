"""A method's choices, read back as an architecture and looked up in a table."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from torch import nn

from ...budget import InfeasibleError
from ...data import Data, load
from ...edges import IDENTITY, NONE, ORIGINAL
from ...errors import UsageError, WrongTypeError
from ...networks import build
from ...networks.nasbench import Cell201, NASBenchMacro
from ...networks.proxyless import MBConv
from ...operations import CellOperation
from ...results import Transformation
from ...settings import Config, parse_amount
from .ranking import Known, Lookup, UnreadableError, lookup
from .spaces import FIELD, KEPT, Prices, check_space, live_form, live_or_none, other_operations, prices, reachable
from .tables import checked_table

Method = Callable[[nn.Module, Data, Config], Transformation]


def compare_with_table(
    method: Method,
    space: str,
    table: Mapping[str, float],
    inputs: Iterable[str],
    data: Data | str,
    config: Config | None = None,
    *,
    network_options: Mapping[str, Any] | None = None,
) -> tuple[Lookup, ...]:
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
        A lookup for each of the inputs, in their order. Where the budget cannot be kept, or what the method
        returns is no architecture of the space, cannot be reached, or is not in the table, `Lookup.problem` says
        so.

    Raises:
        ValueError: a table, inputs or settings that cannot be used; or what the method itself raises.
        TypeError: a table or inputs of the wrong type.
    """
    check_space(space)
    config = config or Config()
    data = load(data) if isinstance(data, str) else data
    if not isinstance(table, Mapping):
        raise WrongTypeError(
            f"a table must be a mapping of accuracies (see read_table), not {type(table).__name__}"
        )
    accuracies = checked_table(((f"key {key!r}", key, value) for key, value in table.items()), space)
    starts = _starts(space, inputs, accuracies)
    settings = [_settings(config, space, start) for start in starts]
    options = {"num_classes": data.num_classes, "in_channels": data.channels, **(network_options or {})}
    price = prices(space, tuple(data.example(1).shape[1:]), **options)

    lookups = []
    for start, setting in zip(starts, settings, strict=True):
        before = Known(start, accuracies[start], price.of(start))
        try:
            network = _network(space, start, config.seed, options)
            after = _read(space, start, method(network, data, setting), network, price)
            allowed = 0.0 if config.limit.budget is None else parse_amount(config.limit.budget).of(before.madds)
            lookups.append(
                lookup(space, before, after, accuracies, price, config.relaxation.operation_moves, allowed)
            )
        except (UnreadableError, InfeasibleError) as error:
            lookups.append(Lookup(before, problem=str(error)))
    return tuple(lookups)


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
    if config.relaxation.edges is not None:
        raise UsageError(
            f"edges must not be set here, but is {config.relaxation.edges!r}: {space} says what may change"
        )
    if space == "nasbench_macro":
        if config.relaxation.mode != "full":
            raise UsageError(
                f"nasbench_macro needs mode 'full', not {config.relaxation.mode!r}: each layer changes by itself"
            )
        if config.relaxation.names_operations:
            raise UsageError(
                f"nasbench_macro needs space 'dnat', not {config.relaxation.space!r}: layers have no other moves"
            )
        return config
    config = config.but(mode="cell")
    if not config.relaxation.names_operations:
        return config
    present = {FIELD[int(d)] for d in start}
    table = {
        name: list(targets)
        for name, targets in other_operations(config.relaxation.operation_moves).items()
        if targets and name in present
    }
    return config.but(transitions=table) if table else config.but(space="dnat", transitions=None)


def _network(space: str, architecture: str, seed: int, options: Mapping[str, Any]) -> nn.Module:
    """The network of an architecture, whose edges are what may change in the space."""
    network = build(f"{space}:{architecture}", seed=seed, **options)
    if isinstance(network, NASBenchMacro):
        # Edges of their own, as the operations of a searched cell: what is inside a layer is no edge then, and the
        # identity is that of the whole layer, with its shortcut.
        for i in KEPT:
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
    found = live_or_none(space, digits)
    if found is None:
        raise UnreadableError("the choices make a dead cell: no path leads from its input to its output")
    if result.cost_after.madds != price.of(found):
        raise UnreadableError(
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
            ways = (f"{key} is {FIELD[int(digit)]}" for digit, key in by_digit.items())
            whys = (f" ({key}: {reasons[key]})" for key in by_digit.values() if key in reasons)
            raise UnreadableError(f"the cells differ: {', '.join(ways)}{''.join(whys)}")
    return "".join(next(iter(by_digit)) for by_digit in found)


def _digit(key: str, digit: str, choice: str) -> str:
    if choice == ORIGINAL:
        return digit
    name = {IDENTITY: "skip_connect", NONE: "null"}.get(choice, choice)
    if name not in FIELD:
        raise UnreadableError(f"{key} became {choice}, which is none of NAS-Bench-201's operations")
    return str(FIELD.index(name))


def _read_layers(start: str, choices: dict[str, str]) -> str:
    """The digits of layers that began as `start`; `choices` is used up."""
    digits = list(start)
    for i in KEPT:
        choice = choices.pop(f"layers.{i}", ORIGINAL)
        if choice not in (ORIGINAL, IDENTITY):
            raise UnreadableError(f"layers.{i} became {choice}, which is none of NAS-Bench-Macro's layers")
        if choice == IDENTITY:
            digits[i] = "0"
    _refuse_rest(choices)
    return "".join(digits)


def _refuse_rest(choices: Mapping[str, str]) -> None:
    for key, choice in choices.items():
        if choice != ORIGINAL:
            raise UnreadableError(f"{key} became {choice}, but it is no edge of the space")
