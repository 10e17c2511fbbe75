import functools
import subprocess
import sys

import pytest
import torch
from reference import images

import dnat
from dnat.networks import import_torchvision


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_torchvision_is_imported_wherever_it_is_installed():
    code = """
from dnat.networks.torchvision import _declarations, import_torchvision
torchvision = import_torchvision()
assert torchvision is import_torchvision()
import torch, torchvision.models, torchvision.transforms.v2, torchvision.datasets
assert torchvision.models.resnet18(weights=None)(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
print(len(_declarations))
"""
    result = python(code)
    assert result.returncode == 0, result.stderr
    # Nothing is declared where torchvision imports by itself.
    alone = torchvision_fits()
    assert result.stdout.strip() == ("0" if alone else "1")


@functools.cache
def torchvision_fits():
    """Whether torchvision imports by itself here."""
    return python("import torchvision").returncode == 0


def test_the_operators_that_are_declared_still_fail_clearly():
    if torchvision_fits():
        pytest.skip("torchvision fits the installed torch here")
    ops = import_torchvision().ops
    with pytest.raises((NotImplementedError, RuntimeError)):
        ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)


def test_a_schema_that_is_there_already_is_left_alone():
    code = """
import torch
mine = torch.library.Library("torchvision", "FRAGMENT")
mine.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from dnat.networks import import_torchvision
import_torchvision()
"""
    if torchvision_fits():
        pytest.skip("torchvision fits the installed torch here")
    assert python(code).returncode == 0


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *(("resnet8", {"width": width}) for width in (0, -1, True, "8", float("nan"), float("inf"))),
        ("resnet8", {"num_classes": 0}),
        ("resnet8", {"in_channels": 1.5}),
        ("vgg16", {"width": 0.5}),
        ("mobilenet_v2", {"width": -0.25}),
        ("darts_v2", {"layers": 0}),
        ("nasbench201:301420", {"cells": -2}),
    ],
)
def test_a_size_that_is_none_is_refused_and_not_rounded_up(name, size):
    ((option, value),) = size.items()
    with pytest.raises(dnat.errors.UsageError, match=f"{option} of {name} must be a .* number.*, not {value!r}"):
        dnat.networks.build(name, **size)


def test_a_width_need_not_be_whole_where_channels_are_rounded():
    channels = [dnat.networks.build("resnet8", width=w).conv1.out_channels for w in (1.5, 2.4, 0.1)]
    assert channels == [2, 2, 1]


def test_networks_of_your_own(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def network(num_classes, width=4):\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 3), nn.Flatten(), nn.Linear(width * 36, num_classes))\n"
        "def number(): return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    network = dnat.build("mine:network", num_classes=7, seed=1)
    assert network(images()).shape == (4, 7)
    assert torch.equal(network[0].weight, dnat.build("mine:network", num_classes=7, seed=1)[0].weight)
    for name, error, words in (
        ("mine:number", TypeError, "must return a torch.nn.Module, not int"),
        ("mine:netwrok", ValueError, "cannot be imported"),
        ("nothing:network", ValueError, "cannot be imported"),
        ("torchvision:resnet81", ValueError, "did you mean 'resnet18'"),
    ):
        with pytest.raises(error, match=words):
            dnat.build(name)
    with pytest.raises(ValueError, match="unknown option of mine:network 'widht'; did you mean 'width'"):
        dnat.build("mine:network", widht=3)


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5", "efficientnet_b0", "swin_t"]
)
def test_torchvision_networks_attach_and_discretize(name):
    """Bit-equal at the start, and a random set of choices computes what its relaxed form does."""
    network = dnat.build(f"torchvision:{name}", num_classes=5, seed=0)
    x = images(2, 64)
    edges = dnat.find_edges(dnat.trace(network, x))
    assert edges
    relaxed = dnat.relax(network, edges)
    for training in (False, True):
        outputs = []
        for module in (network, relaxed):
            module.train(training)
            torch.manual_seed(0)
            outputs.append(module(x))
        assert torch.equal(*outputs)
    relaxed.architecture.theta.data.normal_(0.2, 1, generator=torch.Generator().manual_seed(1))
    choices = dnat.select(relaxed)
    # The passes above moved running statistics: both sides start from the same fresh network.
    network = dnat.build(f"torchvision:{name}", num_classes=5, seed=0)
    compact = dnat.discretize(network, choices, x)
    one_hot = dnat.relax(network, edges)
    one_hot.set_one_hot(choices)
    assert torch.allclose(compact.eval()(x), one_hot.eval()(x), rtol=1e-4, atol=1e-6)
    assert dnat.cost(compact, x).madds < dnat.cost(network, x).madds
    assert compact.state_dict().keys() <= network.state_dict().keys()
