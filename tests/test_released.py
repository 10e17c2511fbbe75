"""Numbers that were recorded when networks, policies and searches were found equal to the authors' code.

docs/methods.md E1 has the commits of that code, E2 what was compared: with the same weights, to the rounding of
the outputs. The weights here are those of `seeded`, in double precision, so that every machine has the same.
"""

import numpy as np
import pytest
import torch
from torch import nn

import dnat
from dnat.lab.baselines import LEARNERS
from dnat.lab.baselines import search as searching
from dnat.lab.baselines.policies import Reinforce, judged, make_policy
from dnat.lab.baselines.search import SearchRun
from dnat.lab.baselines.spaces import GenotypeSpace
from dnat.lab.baselines.supernet import Supernet
from dnat.moves import transitions
from dnat.networks.cells import CellNetwork
from dnat.networks.genotypes import CellEdge, CellGenotype, Genotype, published, transformed
from dnat.settings import Config, Search

pytestmark = pytest.mark.usefixtures("quiet")

CELLS = {"channels": 4, "layers": 5, "auxiliary": True}


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and running statistics by a generator that never changes, in the order of the state."""
    random = np.random.RandomState(seed)
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        values = torch.from_numpy(random.standard_normal(tuple(tensor.shape)))
        if name.endswith("running_var"):
            values = (0.2 * values).exp()
        elif tensor.dim() > 1:
            values = values / tensor[0].numel() ** 0.5
        else:
            values = 0.2 * values + name.endswith("weight")
        tensor.copy_(values)
    return module


def pictures(count: int, side: int, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal((count, 3, side, side)))


NETWORKS = [
    ("darts_v1", CELLS, 32, 421800, [5.298872, 1.781621], [0.06709935, 0.7319625]),
    ("darts_v2", CELLS, 32, 422444, [0.6435277, -0.3990505], [0.08894113, -0.002244333]),
    ("nasnet", CELLS, 32, 432792, [-0.4584853, 0.5222938], [0.01691231, -0.7400299]),
    ("amoebanet", CELLS, 32, 431472, [1.267387, -0.1368553], [0.3897891, 0.9377013]),
    ("pnasnet", CELLS, 32, 440928, [0.1148066, -0.3651169], [-1.05171, 1.066258]),
    ("snas_mild", CELLS, 32, 420836, [-4.69549, 2.150016], [-0.04070347, -0.1832624]),
    ("snas_moderate", CELLS, 32, 430768, [-1.41515, 0.6899479], [0.1135558, -0.6656731]),
    ("snas_aggressive", CELLS, 32, 423600, [0.07043875, -0.2340133], [0.02779172, 0.0877439]),
    ("enas", CELLS, 32, 430888, [0.03479948, 0.6435374], [0.1944311, -0.8347411]),
    ("naonet_a", CELLS, 32, 445936, [-0.2947584, 0.5437002], [-0.2184515, 1.20448]),
    ("naonet", CELLS, 32, 445936, [-0.2338956, 0.3126836], [-0.2739409, -0.244572]),
    ("resblock", CELLS, 32, 418816, [-0.04362923, -0.7975717], [0.5358622, -0.6659835]),
    ("vgg_cell", CELLS, 32, 418816, [0.2720417, -0.05968486], [0.1056798, -0.9903262]),
    ("mobilenetv2_cell", CELLS, 32, 410408, [0.4452588, 0.4413481], [-0.454664, -0.8222556]),
    ("nat_darts", CELLS, 32, 420604, [0.6033675, -0.1252471], [0.4074558, 0.2625305]),
    ("nat_enas", CELLS, 32, 430888, [-0.08711416, 0.8696959], [0.1221889, -0.3486851]),
    ("nat_naonet", CELLS, 32, 436848, [0.07594826, -0.4423039], [0.2068195, 0.2557348]),
    ("nat_resblock", CELLS, 32, 419552, [0.6117218, -1.298046], [-0.3997271, 0.528922]),
    ("nat_vgg_cell", CELLS, 32, 419552, [-0.2774572, 0.487353], [-0.1689342, -0.4226177]),
    ("nat_mobilenetv2_cell", CELLS, 32, 410776, [1.798557, 0.6432154], [0.8760398, 0.03593677]),
    ("natv2_darts", CELLS, 32, 419592, [-1.425954, -0.8667452], [-0.3866862, -0.03445574]),
    ("natv2_enas", CELLS, 32, 426888, [-0.6637897, 0.6872369], [-0.3634161, 0.07597963]),
    ("natv2_naonet", CELLS, 32, 438752, [1.696299, -0.2102114], [0.6501801, -0.2662939]),
    ("natv2_resblock", CELLS, 32, 418160, [-2.113111, -1.187627], [0.2749668, 0.4285244]),
    ("natv2_vgg_cell", CELLS, 32, 416368, [-0.4277796, 0.2159974], [-0.03549014, -0.7258447]),
    ("natv2_mobilenetv2_cell", CELLS, 32, 410776, [1.798557, 0.6432154], [0.8760398, 0.03593677]),
    ("darts_v2", CELLS | {"stem_stride": 8}, 224, 420722, [-0.04804181, -0.2710874], [0.3456244, -1.485673]),
    ("resnet20", {"skips": True}, 32, 269722, [-0.2979685, -1.657408], [-0.7490223]),
    ("resnet56", {"width": 4}, 32, 54286, [14.39246, 20.74585], [2.224351]),
    ("vgg16", {"width": 8, "skips": False}, 32, 240594, [0.253858, -0.5704344], [0.2075859]),
    ("mobilenet_v2", {"width": 0.25}, 32, 164750, [0.5533075, -0.6816622], [0.6858871]),
    ("proxyless_mobile_imagenet", {"width": 0.25}, 64, 554174, [0.09114452, -0.1903645], [-0.5671729]),
    ("proxyless_gpu_imagenet", {"width": 0.25}, 64, 847088, [0.2335464, -0.4084167], [0.4139518]),
    ("proxyless_cpu_imagenet", {"width": 0.25}, 64, 572258, [-0.2895418, -0.3358436], [-0.6067255]),
    ("proxyless_cifar", {"width": 0.1}, 32, 117248, [116767300000.0, -3411097000.0], [0.3639488]),
    ("nasbench201:144124", {}, 32, 101306, [8526339.0, -1843217.0], [0.8293074]),
    ("nasbench201:340403", {}, 32, 559386, [-1.265472, -3.094051], [-0.2592251]),
    ("nasbench201:241134", {}, 32, 344346, [-5949.777, 47651.17], [-0.5857546]),
    ("nasbench201:433111", {}, 32, 559386, [-2913.861, -91675.47], [-0.2799253]),
    ("nasbench201:430014", {}, 32, 316346, [8.039613, -11.13979], [-0.8209927]),
    ("nasbench_macro:01201210", {}, 32, 1283434, [-1.167864, 0.1666959], [-1.164939]),
    ("nasbench_macro:20110212", {}, 32, 2064170, [-0.0193915, 0.2923231], [-0.2752866]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "side", "params", "evaluated", "trained"), NETWORKS)
@torch.no_grad()
def test_a_network_computes_what_the_authors_does(name, options, side, params, evaluated, trained):
    network = seeded(dnat.build(name, seed=0, **options)).double()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert sum(p.numel() for p in network.parameters()) == params
    images = pictures(4, side)
    assert network.eval()(images)[0, :2].tolist() == pytest.approx(evaluated, rel=1e-5)
    found = network.train()(images)
    heads = found if isinstance(found, tuple) else (found,)
    assert [float(scores[0, 0]) for scores in heads] == pytest.approx(trained, rel=1e-5)


def space(name, table=None, **search):
    """NAT's space of a published genotype, the supernet with the weights of `seeded`."""
    settings = Config(threads=1, search=Search(channels=4, layers=5, epochs=1, batch_size=8, **search))
    network = CellNetwork(name, channels=2, layers=3, num_classes=5)
    found = GenotypeSpace(network, table and transitions(table), settings, (3, 8, 8), 5)
    seeded(found.network)
    found.network.double()
    return found, settings


POLICIES = [
    ("darts_v2", None, 320330, [-0.2901742, 0.4008268, 0.2364356, 0.06812197], -12.57537, 15.1928, 12.48307),
    ("resblock", None, 320330, [-0.6419575, -0.04266962, 0.3726347, -1.244828], -8.822285, 12.82394, 14.31286),
    ("enas", None, 320330, [-0.2901742, 0.4008268, 0.2364356, 0.06812197], -20.3608, 20.35184, 13.45573),
    ("darts_v2", "nat++", 322750, [-0.2826147, 0.2819278, 0.2535005, 0.1922071], -25.23574, 17.9398, 21.29039),
    ("resblock", "nat++", 322750, [-1.151406, -0.1937588, -0.495553, -0.2147047], -20.98982, 12.81074, 29.93512),
]  # fmt: skip


@pytest.mark.parametrize(("name", "table", "params", "logits", "log_p", "entropy", "slope"), POLICIES)
def test_the_policy_is_that_of_the_released_code(name, table, params, logits, log_p, entropy, slope):
    """NAT's and NATv2's ArchTransformer: logits, log p of drawn moves, entropy and the gradient of the loss."""
    found, settings = space(name, table, official=True)
    graph = found.graph(found.given)
    policy = seeded(make_policy("gcn", graph, found.operations, settings.search, 0))
    assert sum(p.numel() for p in policy.parameters()) == params
    assert policy(graph)[0, 4:6, :2].flatten().tolist() == pytest.approx(logits, rel=1e-5)
    probabilities = Reinforce(policy, settings.search).probabilities(graph)
    # The last legal move of every second edge, the first of the others.
    columns = torch.arange(graph.mask.shape[2])
    last = torch.where(graph.mask, columns, -1).amax(2)
    first = torch.where(graph.mask, columns, 99).amin(2)
    drawn = judged(probabilities, torch.where(torch.arange(last.shape[1]) % 2 == 0, last, first))
    assert drawn.log_probability.item() == pytest.approx(log_p, rel=1e-5)
    assert drawn.entropy.item() == pytest.approx(entropy, rel=1e-5)
    (-drawn.log_probability * 0.25 - 0.003 * drawn.entropy).backward()
    squares = sum(p.grad.double().square().sum() for p in policy.parameters())
    assert float(squares.sqrt()) == pytest.approx(slope, rel=1e-5)


def loose(*nodes):
    """A cell whose output is the nodes that no other reads."""
    edges = tuple(tuple(CellEdge(*edge) for edge in node) for node in nodes)
    read = {edge.input for node in edges for edge in node}
    return CellGenotype(edges, tuple(i for i in range(2, len(edges) + 2) if i not in read))


# A random genotype for ENAS's supernet: both cells by the rule of loose ends.
RANDOM = Genotype(
    loose(
        (("conv_5x5", 0), ("max_pool_3x3", 1)),
        (("sep_conv_5x5", 2), ("conv_1x1", 2)),
        (("skip_connect", 0), ("avg_pool_3x3", 1)),
        (("conv_3x3", 4), ("sep_conv_3x3", 0)),
        (("conv_1x1", 1), ("skip_connect", 5)),
    ),
    loose(
        (("avg_pool_3x3", 0), ("conv_3x3", 0)),
        (("skip_connect", 1), ("null", 2)),
        (("conv_5x5", 3), ("skip_connect", 0)),
        (("max_pool_3x3", 1), ("sep_conv_3x3", 3)),
        (("conv_3x3", 5), ("skip_connect", 0)),
    ),
)
GIVEN = published("darts_v2")
MOVED = transformed(GIVEN, {("normal", 0, 0): "none", ("normal", 2, 1): "identity", ("reduce", 1, 0): "none"})

SUPERNETS = [
    ("darts_v2", GIVEN, 218513, [0.05078792, 0.4098634], [2.321851, -0.5511644]),
    ("darts_v2", MOVED, 218513, [0.35679, 0.04624139], [2.754222, -0.2394776]),
    ("enas", published("enas"), 590385, [0.4937024, 0.7433095], [0.3232871, 0.239068]),
    ("enas", RANDOM, 590385, [0.1252084, -0.07779089], [-0.08755282, 0.06603149]),
    ("resblock", published("resblock"), 414177, [-0.3104225, 0.1313853], [0.09905975, -0.1322433]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "genotype", "params", "trained", "evaluated"), SUPERNETS)
@torch.no_grad()
def test_the_supernet_computes_what_the_released_one_does(name, genotype, params, trained, evaluated):
    found, _ = space(name, official=True)
    network: Supernet = found.network
    assert sum(p.numel() for p in network.parameters()) == params
    found.choose(genotype)
    images = pictures(4, 16)
    assert network.eval()(images)[0, :2].tolist() == pytest.approx(evaluated, rel=1e-5)
    assert network.train()(images)[0, :2].tolist() == pytest.approx(trained, rel=1e-5)


STEPS = {
    "totals": [117.1886, 13, 64],  # summed loss, right answers, images
    "rewards": [-0.125, -0.25, -0.375, 0.0],
    "entropies": [15.19280, 13.61462, 12.23956, 11.00643],
    "baseline": -0.007252490,
    "moved": [0.3374245, 0.5445601],  # lengths: all weights, the policy
}


def test_steps_of_a_search_are_those_of_the_released_code(monkeypatch):
    """Four steps of the weights and four of the policy in turn, under genotypes and moves that are given.

    Compared with NAT's `NASNetwork.step` and `Transformer.step` under torch 2, where unused weights rest.
    """
    found, settings = space("darts_v2", official=True, unused_weights="rest")
    data = dnat.Data.from_tensors(
        "none", *[(torch.zeros(40, 3, 8, 8, dtype=torch.uint8), torch.arange(40) % 5)] * 2
    )
    run = SearchRun(found, LEARNERS["nat"], data, settings, "")
    seeded(run.reinforce.policy)
    genotypes = (GIVEN, MOVED, GIVEN, transformed(MOVED, {("reduce", 0, 0): "conv_3x3"}))
    moves = torch.from_numpy(np.random.RandomState(3).randint(3, size=(4, 2, 8)))
    before = [[p.detach().clone() for p in m.parameters()] for m in (run.shared.network, run.reinforce.policy)]
    for step, genotype in enumerate(genotypes):
        images, labels = pictures(16, 8, seed=10 + step), torch.arange(16) % 5
        monkeypatch.setattr(found, "sample", lambda random, genotype=genotype: genotype)
        monkeypatch.setattr(searching, "draw", lambda p, generator, step=step: judged(p, moves[step]))
        run._train_weights(images, labels)
        run._train_policy(images, labels)
    after = [[p.detach() for p in m.parameters()] for m in (run.shared.network, run.reinforce.policy)]
    moved = [
        float(sum((a - b).double().square().sum() for a, b in zip(one, two, strict=True)).sqrt())
        for one, two in zip(before, after, strict=True)
    ]
    loss, correct, count = STEPS["totals"]
    assert run.state.progress.totals.tolist() == pytest.approx([loss, count, correct], rel=1e-5)
    assert run.state.rewards == pytest.approx(STEPS["rewards"], abs=1e-9)
    assert run.state.entropies == pytest.approx(STEPS["entropies"], rel=1e-5)
    assert run.reinforce.baseline == pytest.approx(STEPS["baseline"], rel=1e-5)
    assert moved == pytest.approx(STEPS["moved"], rel=1e-4)
