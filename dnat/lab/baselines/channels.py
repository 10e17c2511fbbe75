"""Networks with fewer channels: built anew, or pruned.

A network by name is built narrower by the argument of its constructor that says how wide it is. Torch-Pruning
(Fang et al. 2023) ranks the channels of a network that is there, and takes the least of them out of all that
share them.
"""

import importlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...answers import scores
from ...budget import InfeasibleError
from ...costs import cost
from ...data import Data
from ...errors import UsageError
from ...networks import arguments
from ...seeds import Stream, numpy_generator
from ...settings import Config, Control
from ...tracing import copied

OPTIONS = ("width", "channels", "width_mult", "width_multiplier", "channel_multiplier")
"""Arguments of constructors that make a network narrower, as ours, torchvision's and timm's networks have them."""

STEPS = 256
"""Into so many steps a width is divided that need not be whole."""

Widths = Mapping[str, tuple[int, int]]
"""{path of a layer: (channels in, channels out)}."""

Conv = nn.modules.conv._ConvNd
Norm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Family:
    """How a network is made anew with fewer channels.

    Attributes:
        option: the argument of its constructor that says how wide it is.
        usual: its value in the network that is narrowed.
        whole: whether it must be whole.
        build: makes the network, with fresh weights; takes the option by its name.
    """

    option: str
    usual: float
    whole: bool
    build: Callable[..., nn.Module]

    def values(self) -> list[float]:
        """The values that make it narrower, from the narrowest to the widest."""
        if self.whole:
            return [float(value) for value in range(1, math.ceil(self.usual))]
        return [round(self.usual * step / STEPS, 6) for step in range(1, STEPS)]

    def made(self, value: float) -> nn.Module:
        """The network with a value of the option."""
        return self.build(**{self.option: int(value) if self.whole else value})


def family_of(name: str, options: Mapping[str, Any], build: Callable[..., nn.Module]) -> Family:
    """The family of a network by name.

    Args:
        name: of the network.
        options: arguments of its constructor that were given.
        build: makes the network; takes the option of the width by its name.

    Raises:
        ValueError: its constructor has no argument for its width, as far as can be told.
    """
    known = arguments(name)
    for option in OPTIONS:
        usual = options.get(option, known[option].default if option in known else None)
        if isinstance(usual, int | float) and not isinstance(usual, bool):
            parameter = known.get(option)
            whole = isinstance(usual, int) and (parameter is None or parameter.annotation not in (float, "float"))
            return Family(option, usual, whole, build)
    raise UsageError(
        f"control-narrow makes {name} anew with fewer channels, and its constructor has no argument for that "
        f"({', '.join(OPTIONS)}); where it takes one that cannot be seen, give its usual value: "
        "--set network.width_mult=1.0"
    )


def widest(family: Family, example: Tensor, limit: float) -> float:
    """The width of the widest network of a family that costs at most the limit.

    Args:
        family: how it is made.
        example: images.
        limit: multiply-adds of one image.

    Raises:
        InfeasibleError: the narrowest one costs more.
    """
    values = family.values()
    here = example.cpu()

    def fits(place: int) -> bool:
        return cost(family.made(values[place]), here, batch=len(here)).madds <= limit

    place = _last_fitting(fits, len(values))
    if place is None:
        least = values[0] if values else family.usual
        raise InfeasibleError(
            f"the budget cannot be kept: {family.option} {least:g} is the least, and costs more than {limit:.6g} "
            "multiply-adds"
        )
    return values[place]


def _last_fitting(fits: Callable[[int], bool], count: int) -> int | None:
    """The last number below the count that fits, where all before one that fits do; None where none does."""
    low, high = -1, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low if low >= 0 else None


def torch_pruning() -> Any:
    """The package Torch-Pruning.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module("torch_pruning")
    except ImportError as error:
        raise UsageError(f"control-prune needs Torch-Pruning: pip install 'dnat[prune]' ({error})") from error


def pruned(network: nn.Module, data: Data, config: Config, limit: float) -> tuple[nn.Module, dict[str, Any]]:
    """A copy of a network from which Torch-Pruning took channels until it costs no more than the limit.

    Only channels within blocks go: those that one layer makes and others read, with nothing between but what works
    channel by channel. What is added to a residual stream stays, and so do the answers. In all layers the same
    share goes (`pruning_global`: the channels that are worth least in the whole network), to within one
    channel, so that the cost lies as near below the limit as the sizes allow.

    Args:
        network: left as it is.
        data: whose training images judge channels where `config.control.pruning` is "taylor".
        config: the run's settings.
        limit: multiply-adds of one image.

    Returns:
        The network, and (channels in, channels out) of each layer that has fewer, by its path.

    Raises:
        InfeasibleError: too few of its channels lie within blocks.
        ValueError: Torch-Pruning is missing, or fails on this network.
    """
    example = data.example(2)
    pruning = _Pruning(network, example, _gradients(network, data, config), config.control)
    if not pruning.layers:
        raise UsageError(
            f"Torch-Pruning finds no channels in {type(network).__name__} that only layers of one block read"
        )
    found: dict[int, nn.Module] = {}

    def fits(step: int) -> bool:
        """Counted backwards: whether the network is cheap enough after all but so many steps."""
        found[step] = pruning.after(pruning.steps - step)
        return cost(found[step], example, batch=len(example)).madds <= limit

    kept = _last_fitting(fits, pruning.steps)
    if kept is None:
        least = cost(found[0], example, batch=len(example)).madds
        raise InfeasibleError(
            f"the budget cannot be kept: with one channel in each of the {len(pruning.layers)} layers that may "
            f"lose some it costs {least:.6g} multiply-adds, above {limit:.6g}"
        )
    widths = {path: size for path, size in _sizes(found[kept]).items() if size != _sizes(network)[path]}
    made = resized(network, widths)  # of its own modules: only numbers are taken over
    made.load_state_dict(found[kept].state_dict())
    return made, widths


class _Pruning:
    """A network, and what is left of it after each of some steps, each of which takes a channel or a few."""

    def __init__(
        self, network: nn.Module, example: Tensor, gradients: Mapping[str, Tensor], settings: Control
    ) -> None:
        self.network, self.example, self.gradients, self.settings = network, example, gradients, settings
        self.package = torch_pruning()
        twin = self._twin()
        inner = set(self._inner(twin))
        self.layers = {path: size for path, (_, size) in _sizes(twin).items() if path in inner}
        self.levels = max(self.layers.values(), default=1)

    @property
    def steps(self) -> int:
        """How many there are."""
        globally = self.settings.pruning_global
        return sum(self.layers.values()) if globally else self.levels * len(self.layers)

    def after(self, step: int) -> nn.Module:
        """What is left after so many steps: a copy."""
        twin = self._twin()
        modules = {path: twin.get_submodule(path) for path in self.layers}
        others = [m for m in twin.modules() if isinstance(m, Conv | nn.Linear) and m not in modules.values()]
        ratio = min(step / self.steps, 1 - 0.5 / self.steps)
        ratios = None if self.settings.pruning_global else self._ratios(modules, step)
        pruner = self.package.pruner.BasePruner(
            twin,
            self.example,
            importance=self._importance(),
            global_pruning=self.settings.pruning_global,
            pruning_ratio=ratio,
            pruning_ratio_dict=ratios,
            ignored_layers=others,
        )
        pruner.step()
        return twin

    def _ratios(self, modules: Mapping[str, nn.Module], step: int) -> dict[nn.Module, float]:
        """The share of each layer that goes: level by level, and within a level layer by layer."""
        level, place = divmod(step, len(modules))
        found = {}
        for number, (path, module) in enumerate(modules.items()):
            size = self.layers[path]
            left = max(size * (self.levels - level - (number < place)) // self.levels, 1)
            found[module] = 1 - (left + 0.5) / size if left < size else 0.0
        return found

    def _importance(self) -> Any:
        kinds = self.package.importance
        if self.settings.pruning == "taylor":
            return kinds.GroupTaylorImportance()
        return kinds.GroupMagnitudeImportance(p={"l1": 1, "l2": 2}[self.settings.pruning])

    def _twin(self) -> nn.Module:
        twin = copied(self.network).requires_grad_(True)  # it looks for dependencies among gradients
        for name, parameter in twin.named_parameters():
            parameter.grad = self.gradients.get(name)
        return twin

    def _inner(self, twin: nn.Module) -> Iterable[str]:
        """The layers whose outputs nothing but layers of the same block reads."""
        graph = self.package.DependencyGraph().build_dependency(twin, example_inputs=self.example)
        for path, module in twin.named_modules():
            if not isinstance(module, Conv | nn.Linear) or is_depthwise(module):
                continue
            function = graph.get_pruner_of_module(module).prune_out_channels
            group = [(dep.target.module, dep.handler) for dep, _ in graph.get_pruning_group(module, function, [0])]
            if not all(map(_is_known, (m for m, _ in group))):
                continue
            layers = [(m, h) for m, h in group if isinstance(m, Conv | nn.Linear)]
            makers = {m for m, h in layers if graph.is_out_channel_pruning_fn(h) and not is_depthwise(m)}
            readers = {m for m, h in layers if not graph.is_out_channel_pruning_fn(h)}
            if makers == {module} and readers:
                yield path


def is_depthwise(module: nn.Module) -> bool:
    """Whether a module is a convolution that works channel by channel."""
    return isinstance(module, Conv) and module.groups == module.in_channels == module.out_channels > 1


def _is_known(module: object) -> bool:
    """Whether `resized` knows how to make a module narrower, or nothing need be done."""
    if isinstance(module, Conv):
        return (module.groups == 1 and not module.transposed) or is_depthwise(module)
    if isinstance(module, nn.Linear | Norm):
        return True
    return isinstance(module, nn.Module) and next(module.parameters(), None) is None


def _gradients(network: nn.Module, data: Data, config: Config) -> dict[str, Tensor]:
    """Gradients of the loss on `trial_batches` batches, where channels are judged by them; else none."""
    if config.control.pruning != "taylor":
        return {}
    twin = copied(network).eval().requires_grad_(True)
    order = numpy_generator(config.seed, Stream.ORDER, "pruning").permutation(len(data.train_labels))
    for first in range(0, config.training.batch_size * config.limit.trial_batches, config.training.batch_size):
        chosen = torch.from_numpy(order[first : first + config.training.batch_size]).long()
        if len(chosen):
            images, labels = data.train_batch(chosen, None)
            cross_entropy(scores(twin(images)), labels).backward()
    return {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}


def _sizes(network: nn.Module) -> dict[str, tuple[int, int]]:
    """Channels in and out of each layer, by its path."""
    found = {}
    for path, module in network.named_modules():
        if isinstance(module, Conv):
            found[path] = module.in_channels, module.out_channels
        elif isinstance(module, nn.Linear):
            found[path] = module.in_features, module.out_features
        elif isinstance(module, Norm):
            found[path] = module.num_features, module.num_features
    return found


def resized(network: nn.Module, widths: Widths) -> nn.Module:
    """A copy of a network in which layers have fewer channels: of each the first ones.

    Args:
        network: left as it is.
        widths: of each layer that has fewer.

    >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> resized(network, {"0": (3, 5), "1": (5, 5)})[0]
    Conv2d(3, 5, kernel_size=(3, 3), stride=(1, 1))
    """
    twin = copied(network)
    for path, (channels_in, channels_out) in widths.items():
        module = twin.get_submodule(path)
        sizes = [channels_out, channels_in]
        if isinstance(module, Conv):
            module.groups = channels_out if is_depthwise(module) else module.groups
            module.in_channels, module.out_channels = channels_in, channels_out
            sizes = [channels_out, channels_in // module.groups]
        elif isinstance(module, nn.Linear):
            module.in_features, module.out_features = channels_in, channels_out
        else:
            module.num_features = channels_out  # type: ignore[assignment]
        _cut(module, sizes)
    return twin


def _cut(module: nn.Module, sizes: list[int]) -> None:
    """Keep the first rows, and columns, of a module's own tensors."""

    def first(tensor: Tensor) -> Tensor:
        for dimension, size in enumerate(sizes[: tensor.dim()]):
            tensor = tensor.narrow(dimension, 0, size)
        return tensor.detach().clone()

    for name, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, name, nn.Parameter(first(parameter), parameter.requires_grad))
    for name, buffer in list(module.named_buffers(recurse=False)):
        setattr(module, name, first(buffer))
