"""The papers' own numbers, for a look beside ours. They take no part in any statistics.

Accuracies are on the test images in percent, hours on the papers' GPUs (search and training together).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One number of a paper.

    Attributes:
        source: where it stands.
        data, network, method: by our names.
        accuracy: in percent; a mean where there is a deviation.
        std: sample standard deviation over `n` runs; None where the paper has none.
        hours: GPU-hours of a run; None where the paper has none.
        n: number of runs; None where the paper does not say.
    """

    source: str
    data: str
    network: str
    method: str
    accuracy: float
    std: float | None = None
    hours: float | None = None
    n: int | None = None


DNAT = "Kim & Lee 2020 (arXiv 2006.08231), tables of results"
NAT = "Guo et al. 2019 (NAT), slides, table of the learned policies"
NAT_MAIN = "Guo et al. 2019 (NAT), slides, main table"

_KIM_LEE: dict[tuple[str, str], dict[str, tuple[float, float, float]]] = {
    # (data, network): method: mean, deviation, GPU-hours
    ("cifar10", "resnet20"): {
        "original": (91.66, 0.16, 8.0),
        "nat": (55.78, 42.34, 14.0),
        "dnat-cell": (93.29, 0.11, 11.2),
        "dnat-full": (93.12, 0.12, 8.7),
    },
    ("cifar10", "mobilenet_v2"): {
        "original": (93.91, 0.12, 20.5),
        "nat": (91.97, 5.10, 27.8),
        "dnat-cell": (95.02, 0.31, 24.8),
        "dnat-full": (94.93, 0.13, 22.1),
    },
    ("cifar10", "darts_v2"): {
        "original": (96.75, 0.11, 38.3),
        "nat": (96.95, 0.09, 47.0),
        "dnat-cell": (96.97, 0.15, 45.0),
        "dnat-full": (96.82, 0.13, 41.1),
    },
    ("cifar10", "proxyless_mobile"): {
        "original": (94.19, 1.08, 15.3),
        "dnat-full": (95.09, 0.23, 19.8),
    },
    ("tiny_imagenet", "resnet20"): {
        "original": (50.72, 0.41, 16.1),
        "dnat-cell": (52.86, 0.49, 22.0),
        "dnat-full": (52.71, 0.23, 17.5),
    },
    ("tiny_imagenet", "mobilenet_v2"): {
        "original": (51.57, 0.76, 20.3),
        "dnat-cell": (53.17, 1.03, 25.5),
        "dnat-full": (52.92, 0.50, 23.7),
    },
    ("tiny_imagenet", "darts_v2"): {
        "original": (59.25, 0.44, 39.2),
        "dnat-cell": (60.24, 0.35, 47.0),
        "dnat-full": (60.63, 0.50, 43.8),
    },
}

_POLICIES = ("original", "random", "lstm", "max-gcn", "nat")
_GUO: dict[str, tuple[float, float, float, float, float]] = {
    "vgg16": (93.56, 93.17, 94.45, 94.37, 95.93),
    "resnet20": (91.37, 91.56, 92.19, 92.57, 92.97),
    "mobilenet_v2": (94.47, 94.38, 95.01, 94.87, 95.13),
    "enas": (97.11, 96.58, 97.05, 96.92, 97.21),
    "darts_v2": (97.06, 95.17, 97.05, 97.00, 97.26),
    "naonet": (97.89, 96.31, 97.93, 97.90, 97.99),
}
_GUO_MAIN = {
    "vgg16": (93.56, 96.04),
    "resnet20": (91.37, 92.95),
    "resnet56": (93.21, 95.40),
    "mobilenet_v2": (94.47, 95.17),
    "enas": (97.11, 97.24),
    "darts_v2": (97.06, 97.28),
    "naonet": (97.89, 98.01),
}

NAMES = {
    "resblock": "resnet20",
    "vgg_cell": "vgg16",
    "mobilenetv2_cell": "mobilenet_v2",
    "darts": "darts_v2",
}
"""Our networks that stand for a paper's row by another name: the cells of NAT's genotypes."""

PUBLISHED: tuple[Published, ...] = (
    *(
        Published(DNAT, data, network, method, mean, std, hours, n=5)
        for (data, network), methods in _KIM_LEE.items()
        for method, (mean, std, hours) in methods.items()
    ),
    *(
        Published(NAT, "cifar10", network, method, accuracy)
        for network, accuracies in _GUO.items()
        for method, accuracy in zip(_POLICIES, accuracies, strict=True)
    ),
    *(
        Published(NAT_MAIN, "cifar10", network, method, accuracy)
        for network, accuracies in _GUO_MAIN.items()
        for method, accuracy in zip(("original", "nat"), accuracies, strict=True)
    ),
)


def published(data: str, network: str) -> tuple[Published, ...]:
    """The papers' numbers for a network on a data set, by source; none where the papers have none.

    >>> [p.method for p in published("cifar10", "proxyless_mobile")]
    ['original', 'dnat-full']
    """
    name = NAMES.get(network, network)
    return tuple(p for p in PUBLISHED if (p.data, p.network) == (data, name))
