"""The papers' networks by name: how each is made, for what images, and where its definition comes from."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from ..errors import UsageError
from . import imagenet
from .cells import IMAGENET, CellNetwork
from .genotypes import GENOTYPES
from .mobilenet import MobileNetV2
from .nasbench import NASBench201, NASBenchMacro
from .proxyless import LAYOUTS, Proxyless
from .resnet import ResNet
from .tree import ProxylessTree
from .vgg import VGG


@dataclass(frozen=True)
class Definition:
    """A network that can be built by name.

    Attributes:
        name: the name; of a family ("nasbench201:CELL") what stands before the colon.
        make: its constructor; of a family the text after the colon is its first argument.
        image_size: height and width in pixels of the images that it is meant for.
        source: where the definition comes from.
        family: what the text after the colon is, with an example; empty for a single network.
        modes: the modes in which it can be transformed.
        torchvision: the name under which torchvision publishes weights for it.
        genotype: the name of the published genotype that its cells have.
    """

    name: str
    make: Callable[..., nn.Module]
    image_size: int
    source: str
    family: str = ""
    modes: tuple[str, ...] = ("full", "cell")
    torchvision: str = ""
    genotype: str = ""


_HE = "He et al. 2016, section 4.2 (option A)"
_CHAINS = "Cai et al. 2019; han-cai/files, proxyless_{}.config"
_ALONE = ("full",)  # every block was searched apart: the paper has no Cell mode for it


def _hand_made() -> list[Definition]:
    small = functools.partial(MobileNetV2, num_classes=10)
    large = functools.partial(MobileNetV2, small=False, num_classes=1000)
    return [
        Definition("resnet8", functools.partial(ResNet, 1), 32, f"{_HE}, one block a stage"),
        Definition("resnet20", functools.partial(ResNet, 3), 32, _HE),
        Definition("resnet32", functools.partial(ResNet, 5), 32, _HE),
        Definition("resnet44", functools.partial(ResNet, 7), 32, _HE),
        Definition("resnet56", functools.partial(ResNet, 9), 32, _HE),
        Definition("vgg16", VGG, 32, "Simonyan & Zisserman 2015, batch norms, head 512-512-classes"),
        Definition("mobilenet_v2", small, 32, "Sandler et al. 2018; kuangliu/pytorch-cifar's variant"),
        Definition(
            "resnet18_imagenet", imagenet.resnet18, 224, "He et al. 2016; torchvision", torchvision="resnet18"
        ),
        Definition(
            "resnet50_imagenet", imagenet.resnet50, 224, "He et al. 2016; torchvision", torchvision="resnet50"
        ),
        Definition(
            "vgg16_imagenet", imagenet.vgg16, 224, "Simonyan & Zisserman 2015; torchvision", torchvision="vgg16"
        ),
        Definition("mobilenet_v2_imagenet", large, 224, "Sandler et al. 2018, table 2"),
    ]


def _proxyless() -> list[Definition]:
    found = []
    for layout in LAYOUTS:
        for ending, small, classes, size, note in (
            ("", True, 10, 32, "; MobileNetV2's convention for small images"),
            ("_imagenet", False, 1000, 224, ""),
        ):
            make = functools.partial(Proxyless, layout, small=small, num_classes=classes)
            source = _CHAINS.format(layout) + note
            found.append(Definition(f"proxyless_{layout}{ending}", make, size, source, modes=_ALONE))
    tree = "Cai et al. 2019; han-cai/files, proxyless_cifar.config"
    return [*found, Definition("proxyless_cifar", ProxylessTree, 32, tree, modes=_ALONE)]


def _cells() -> list[Definition]:
    # The papers say DARTS and mean what its authors call DARTS_V2.
    named = {"darts": "darts_v2"} | {name: name for name in GENOTYPES}
    found = []
    for ending, size, sizes in (("", 32, {}), ("_imagenet", 224, IMAGENET)):
        for name, genotype in named.items():
            source = GENOTYPES[genotype].source if name == genotype else f"the same as {genotype}"
            make = functools.partial(CellNetwork, genotype, **sizes)
            found.append(Definition(f"{name}{ending}", make, size, source, genotype=genotype))
    return found


def _families() -> list[Definition]:
    large = functools.partial(CellNetwork, **IMAGENET)
    cell = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|"
    return [
        Definition("nasbench201", NASBench201, 32, "Dong & Yang 2020", f"a cell: 301420, or {cell}"),
        Definition(
            "nasbench_macro",
            NASBenchMacro,
            32,
            "Su et al. 2021; xiusu/NAS-Bench-Macro",
            "eight digits 0-2: 01201210",
        ),
        Definition("genotype", CellNetwork, 32, "a file of yours, in JSON", "FILE.json: see `Genotype`"),
        Definition("genotype_imagenet", large, 224, "a file of yours, in JSON", "FILE.json"),
    ]


NETWORKS: Mapping[str, Definition] = MappingProxyType(
    {d.name: d for d in (*_hand_made(), *_proxyless(), *_cells())}
)
"""The single networks by name."""
FAMILIES: Mapping[str, Definition] = MappingProxyType({d.name: d for d in _families()})
"""Families of networks, "NAME:TEXT"."""


def usual_size(name: str) -> int:
    """Height and width in pixels of the images that a network is meant for; 224 if it is not one of ours."""
    known = definition(name)
    return known.image_size if known else 224


def check_mode(name: str, mode: str) -> None:
    """Find out whether a network has a mode, as far as its name tells.

    Raises:
        ValueError: it does not.
    """
    known = definition(name)
    if known is not None and mode not in known.modes:
        raise UsageError(
            f"{name} has no mode {mode!r}: none of its blocks is repeated (as in the paper); "
            f"use mode {known.modes[0]!r}"
        )


def definition(name: str) -> Definition | None:
    """The definition behind a network's name; None where it is not one of ours."""
    family, colon, _ = name.partition(":")
    return FAMILIES.get(family) if colon else NETWORKS.get(name)
