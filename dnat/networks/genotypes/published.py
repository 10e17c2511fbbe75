"""The published genotypes by name, and where each was read."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ...naming import unknown
from .genotype import CellEdge, CellGenotype, Genotype, concat_nodes


@dataclass(frozen=True)
class Published:
    """A genotype from the literature, and where it was read."""

    genotype: Genotype
    source: str


# The short names of the table below; a size stands for itself: sep3 is sep_conv_3x3.
_SHORT = {
    "null": "null",
    "skip": "skip_connect",
    "c1x3": "conv_1x3_3x1",
    "c1x7": "conv_1x7_7x1",
    "c7x1": "conv_7x1_1x7",
    **{f"{kind}{k}": f"{kind}_pool_{k}x{k}" for kind in ("max", "avg") for k in (2, 3, 5)},
    **{f"{kind}{k}": f"{kind}_conv_{k}x{k}" for kind in ("sep", "dil") for k in (1, 3, 5, 7)},
    **{f"conv{k}": f"conv_{k}x{k}" for k in (1, 3, 5)},
}


def _cell(text: str) -> CellGenotype:
    """A cell from short names: nodes between bars, `sep3.0` for a 3x3 separable convolution of node 0.

    Behind `>` stand the nodes that make its output, where they are not all.
    """
    listed, _, concat = text.partition(" > ")
    nodes = []
    for node in listed.split("|"):
        pairs = (edge.split(".") for edge in node.split())
        nodes.append(tuple(CellEdge(_SHORT[name], int(source)) for name, source in pairs))
    return CellGenotype(tuple(nodes), tuple(map(int, concat)) or concat_nodes(nodes, "all"))


_DARTS = "quark0/darts, cnn/genotypes.py"
_SNAS = "SNAS-Series/SNAS-Series, SNAS/genotypes.py"
_NAT = "guoyongcs/NAT, genotypes.py"
_NAT2 = "guoyongcs/NATv2, genotypes.py"
_NAO = "renqianluo/NAO_pytorch, NAO_V1/train_NAONet_A_*.sh"

_NAONET = "conv3.0 avg5.1 | conv3.1 c1x3.2 | conv1.0 conv3.1 | c1x3.0 conv3.4 | conv3.0 skip.1 > 356"
_ENAS_REDUCE = "sep5.0 avg3.1 | sep3.1 avg3.1 | avg3.1 sep3.1 | {} sep5.4 | sep5.0 sep3.5 > 236"
_NAT_MOBILENET = (
    "null.0 conv1.1 | null.0 sep3.2 | skip.0 conv1.3 | skip.1 skip.4 > 5",
    "null.0 skip.1 | skip.0 sep3.2 | null.0 conv1.3 | null.0 skip.4 > 5",
)

# Name: the normal cell, the reducing one (empty: the same), the source.
# Not there: GHN, whose cell was never published, and the random cells of NAT's code.
_TABLE: dict[str, tuple[str, str, str]] = {
    "darts_v1": (
        "sep3.1 sep3.0 | skip.0 sep3.1 | skip.0 sep3.1 | sep3.0 skip.2",
        "max3.0 max3.1 | skip.2 max3.0 | max3.0 skip.2 | skip.2 avg3.0",
        f"DARTS, first order; {_DARTS}",
    ),
    "darts_v2": (
        "sep3.0 sep3.1 | sep3.0 sep3.1 | sep3.1 skip.0 | skip.0 dil3.2",
        "max3.0 max3.1 | skip.2 max3.1 | max3.0 skip.2 | skip.2 max3.1",
        f"DARTS, second order; {_DARTS}; the same as DARTS in NAT's code",
    ),
    "nasnet": (
        "sep5.1 sep3.0 | sep5.0 sep3.0 | avg3.1 skip.0 | avg3.0 avg3.0 | sep3.1 skip.1",
        "sep5.1 sep7.0 | max3.1 sep7.0 | avg3.1 sep5.0 | skip.3 avg3.2 | sep3.2 max3.1 > 456",
        f"NASNet-A; {_DARTS}",
    ),
    "amoebanet": (
        "avg3.0 max3.1 | sep3.0 sep5.2 | sep3.0 avg3.3 | sep3.1 skip.1 | skip.0 avg3.1 > 456",
        "avg3.0 sep3.1 | max3.0 sep7.2 | sep7.0 avg3.1 | max3.0 max3.1 | c7x1.0 sep3.5 > 346",
        f"AmoebaNet-A; {_DARTS}",
    ),
    "pnasnet": (
        "sep5.0 max3.0 | sep7.1 max3.1 | sep5.1 sep3.1 | sep3.4 max3.1 | sep3.0 skip.1",
        "",
        "PNASNet-5; chenxi116/PNASNet.pytorch, genotypes.py",
    ),
    "snas_mild": (
        "sep3.0 sep3.1 | skip.0 dil3.1 | skip.0 skip.1 | skip.0 sep3.1",
        "max3.0 max3.1 | max3.1 skip.2 | max3.1 skip.2 | max3.0 dil5.2",
        f"SNAS, mild constraint; {_SNAS}",
    ),
    "snas_moderate": (
        "dil5.0 skip.1 | sep3.0 skip.1 | skip.0 skip.1 | sep3.0 dil5.1",
        "max3.0 max3.1 | sep5.0 dil5.1 | sep5.0 sep5.1 | sep5.0 sep5.1",
        f"SNAS, moderate constraint; {_SNAS}",
    ),
    "snas_aggressive": (
        "sep5.0 skip.1 | skip.0 skip.1 | dil5.1 skip.0 | skip.0 dil5.1",
        "sep5.0 null.1 | sep5.0 null.1 | null.1 null.0 | null.1 null.0",
        f"SNAS, aggressive constraint; {_SNAS} (its `none` is `null` here)",
    ),
    "enas": (
        "sep3.1 skip.1 | skip.0 sep5.1 | avg3.0 sep3.1 | sep3.0 avg3.1 | avg3.0 sep5.1",
        _ENAS_REDUCE.format("avg3.1"),
        f"ENAS, as in {_NAT}; another cell than melodyguan/enas, scripts/cifar10_micro_final.sh",
    ),
    "naonet_a": (
        _NAONET,
        "conv3.0 avg2.1 | conv1.0 avg3.0 | c1x7.0 max2.1 | avg3.0 conv1.2 | max3.1 conv3.0 > 3456",
        f"NAONet-A; {_NAO}",
    ),
    "naonet": (
        _NAONET,
        "conv3.0 avg2.1 | conv1.0 avg3.0 | max2.0 c1x7.1 | avg3.0 conv1.2 | conv3.0 max3.1 > 3456",
        f"NAONet, as in {_NAT2}: NAONet-A with the inputs of the reducing cell's node 4 swapped",
    ),
    "resblock": (
        "null.0 skip.1 | null.0 conv3.2 | null.0 conv3.3 | skip.2 skip.4 > 5",
        "",
        f"ResNet's block as a cell; {_NAT}",
    ),
    "vgg_cell": (
        "null.0 skip.1 | null.0 conv3.2 | null.0 conv3.3 | null.0 skip.4 > 5",
        "null.0 skip.1 | null.0 conv3.2 | null.0 conv3.3 | null.0 max3.4 > 5",
        f"VGG's layers as a cell; {_NAT}",
    ),
    "mobilenetv2_cell": (
        "null.0 conv1.1 | null.0 sep3.2 | null.0 conv1.3 | skip.1 skip.4 > 5",
        "null.0 conv1.1 | null.0 sep3.2 | null.0 conv1.3 | null.0 skip.4 > 5",
        f"MobileNetV2's block as a cell, without its expansion; {_NAT2}",
    ),
    "nat_darts": (
        "sep3.0 sep3.1 | skip.0 sep3.1 | skip.1 skip.0 | skip.0 dil3.2",
        "max3.0 skip.1 | skip.2 skip.1 | max3.0 null.2 | skip.2 max3.1",
        f"NAT's transformation of darts_v2; {_NAT}",
    ),
    "nat_enas": (
        "sep3.1 skip.1 | skip.0 sep5.1 | null.0 sep3.1 | sep3.0 avg3.1 | avg3.0 sep5.1",
        _ENAS_REDUCE.format("null.1"),
        f"NAT's transformation of enas; {_NAT}",
    ),
    "nat_naonet": (
        "conv3.0 avg5.1 | null.1 c1x3.2 | conv1.0 skip.1 | c1x3.0 conv3.4 | conv3.0 skip.1 > 356",
        "null.0 avg3.1 | conv1.0 avg3.0 | skip.0 c1x7.1 | avg3.0 skip.2 | conv3.0 max3.1 > 3456",
        f"NAT's transformation of naonet; {_NAT2}; its avg_pool_2x2 -> avg_pool_3x3 is no action of NAT",
    ),
    "nat_resblock": (
        "null.0 skip.1 | skip.0 conv3.2 | skip.0 conv3.3 | skip.2 skip.4 > 5",
        "",
        f"NAT's transformation of resblock; {_NAT}",
    ),
    "nat_vgg_cell": (
        "skip.0 skip.1 | null.0 conv3.2 | null.0 conv3.3 | skip.0 skip.4 > 5",
        "",
        f"NAT's transformation of vgg_cell; {_NAT}",
    ),
    "nat_mobilenetv2_cell": (*_NAT_MOBILENET, f"NAT's transformation of mobilenetv2_cell; {_NAT2}"),
    "natv2_darts": (
        "sep3.0 sep3.1 | null.0 skip.1 | dil3.1 skip.0 | skip.0 dil3.2",
        "avg3.0 max3.1 | skip.2 skip.1 | avg3.0 skip.2 | skip.2 max3.1",
        f"NAT++'s transformation of darts_v2; {_NAT2}",
    ),
    "natv2_enas": (
        "sep3.1 null.1 | skip.0 sep5.1 | avg3.0 sep3.1 | sep3.0 avg3.1 | skip.0 sep3.1",
        "sep3.0 avg3.1 | sep3.1 avg3.1 | avg3.1 avg3.1 | avg3.1 sep5.4 | sep5.0 max3.5 > 236",
        f"NAT++'s transformation of enas; {_NAT2}",
    ),
    "natv2_naonet": (
        "conv3.0 avg5.1 | conv3.1 c1x3.2 | max3.0 conv3.1 | max3.0 conv3.4 | sep3.0 skip.1 > 356",
        "conv3.0 skip.1 | avg3.0 avg3.0 | max2.0 c1x7.1 | skip.0 skip.2 | max3.0 max3.1 > 3456",
        f"NAT++'s transformation of naonet; {_NAT2}; not all of its changes are legal ones of NAT++",
    ),
    "natv2_resblock": (
        "skip.0 skip.1 | skip.0 conv3.2 | skip.0 conv3.3 | skip.2 skip.4 > 5",
        "skip.0 skip.1 | skip.0 conv3.2 | skip.0 sep3.3 | skip.2 skip.4 > 5",
        f"NAT++'s transformation of resblock; {_NAT2}",
    ),
    "natv2_vgg_cell": (
        "skip.0 skip.1 | skip.0 conv3.2 | null.0 sep3.3 | skip.0 skip.4 > 5",
        "skip.0 skip.1 | skip.0 conv3.2 | null.0 sep3.3 | skip.0 max3.4 > 5",
        f"NAT++'s transformation of vgg_cell; {_NAT2}",
    ),
    "natv2_mobilenetv2_cell": (
        *_NAT_MOBILENET,
        f"NAT++'s transformation of mobilenetv2_cell, the same as NAT's; {_NAT2}",
    ),
}

GENOTYPES: Mapping[str, Published] = MappingProxyType(
    {
        name: Published(Genotype(_cell(normal), _cell(reduce or normal)), source)
        for name, (normal, reduce, source) in _TABLE.items()
    }
)


def read_genotype(text: str) -> Genotype:
    """A genotype from its JSON, or a published one from its name.

    Raises:
        ValueError: an unknown name, or JSON that is no genotype.

    >>> read_genotype(published("enas").to_json()) == published("enas")
    True
    """
    return Genotype.from_json(text) if text.lstrip().startswith("{") else published(text)


def published(name: str) -> Genotype:
    """A published genotype by name.

    Raises:
        ValueError: an unknown name.
    """
    if name not in GENOTYPES:
        raise unknown("genotype", name, GENOTYPES)
    return GENOTYPES[name].genotype
