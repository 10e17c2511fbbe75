"""Batch norms that go into the layers before them, for use in eval mode."""

import pytest
import torch
from reference import SMALL, images, small
from test_export import compact, imported
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import dnat
from dnat.exports import export, fold
from dnat.networks import import_torchvision

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def lived_in(network, seed=0):
    """A network whose norms have statistics and weights, so that each does something of its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, NORMS) and module.running_var is not None:
                for tensor, low in ((module.running_mean, -1), (module.running_var, 0.5)):
                    tensor.copy_(low + torch.rand(tensor.shape, generator=generator))
                if module.affine:
                    module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
                    module.bias.copy_(torch.rand(module.bias.shape, generator=generator))
    return network.eval()


def check(network, example):
    """Fold; compare with the network in double precision, on inputs that folding has not seen; count the norms."""
    before = {k: v.clone() for k, v in network.state_dict().items()}
    folding = fold(network, example)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    norms = {p for p, m in network.named_modules() if isinstance(m, NORMS)}
    assert folding.norms.keys() | folding.kept.keys() == norms
    left = {p for p, m in folding.network.named_modules() if isinstance(m, NORMS)}
    assert left == folding.kept.keys()
    x = torch.randn(3, *example.shape[1:], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = folding.network(x), network(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
    return folding


def test_a_norm_by_hand():
    """(2 x + 1 - 3) / sqrt(4) * 5 + 7 = 5 x + 2."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0))
    for tensor, value in zip(
        (
            network[0].weight,
            network[0].bias,
            network[1].running_mean,
            network[1].running_var,
            *network[1].parameters(),
        ),
        (2, 1, 3, 4, 5, 7),
        strict=True,
    ):
        tensor.data.fill_(value)
    folded = fold(network, torch.zeros(2, 1, 2, 2)).network
    assert folded[0].weight.item() == 5
    assert folded[0].bias.item() == 2
    assert type(folded[1]) is nn.Identity


LAYERS = {
    "conv1d": (lambda: (nn.Conv1d(4, 6, 3, bias=False), nn.BatchNorm1d(6)), (4, 9)),
    "grouped": (lambda: (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6, affine=False)), (4, 8, 8)),
    "depthwise": (lambda: (nn.Conv2d(4, 8, 3, 1, 1, 1, 4, True, "reflect"), nn.BatchNorm2d(8)), (4, 8, 8)),
    "conv3d": (lambda: (nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3)), (2, 4, 4, 4)),
    "transposed": (lambda: (nn.ConvTranspose2d(4, 6, 3, stride=2), nn.BatchNorm2d(6)), (4, 5, 5)),
    "linear": (lambda: (nn.Linear(4, 6), nn.BatchNorm1d(6)), (4,)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_norms_go_into(name):
    made, shape = LAYERS[name]
    torch.manual_seed(0)
    network = lived_in(nn.Sequential(*made(), nn.ReLU(inplace=True)))
    assert check(network, torch.zeros(2, *shape)).norms == {"1": "0"}


class Shared(nn.Module):
    """One norm behind two convolutions, and one convolution in front of two norms."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.norm, self.one, self.other = (nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, x):
        x = self.norm(self.a(x)) + self.norm(self.b(x))
        return self.one(self.c(x)) * self.other(self.c(x))


class Read(nn.Module):
    """Convolutions whose output or weights are used by others, too."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.d, self.e, self.f = (nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, x):
        y = self.a(x)
        x = self.d(y) + y
        x = self.e(self.b(x)) + F.conv2d(x, self.b.weight)
        return self.f(F.relu(self.c(x)))


class Pair(nn.Module):
    """One convolution and one norm, called twice, each time one after the other."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.unused = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(torch.relu(self.norm(self.conv(x)))))


class Scaled(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked():
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    network[0].register_forward_hook(lambda module, args, output: output + 1)
    return network


REFUSED = {
    "shared": (Shared, (3, 4, 4), {"norm": "shared", "one": "read by others", "other": "read by others"}),
    "read": (Read, (3, 4, 4), {"d": "a gives is read", "e": "weights of b are used", "f": "no convolution"}),
    "pair": (Pair, (3, 4, 4), {"unused": "not called"}),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)),
        (4, 5, 5),
        {"1": "in groups"},
    ),
    "first": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)), (3, 4, 4), {"0": "no convolution"}),
    "own": (lambda: nn.Sequential(nn.Conv2d(3, 3, 1), Scaled(3)), (3, 4, 4), {"1": "Scaled does more"}),
    "no statistics": (
        lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
        (3, 4, 4),
        {"1": "no running statistics"},
    ),
    "hooks": (hooked, (3, 4, 4), {"1": "hooks|no convolution"}),
    "parametrized": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3)),
        (3, 4, 4),
        {"1": "no plain convolution"},
    ),
    "other features": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(5)), (5, 4), {"1": "not the features of 0"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_norms_that_stay_and_why(name):
    made, shape, reasons = REFUSED[name]
    torch.manual_seed(0)
    folding = check(lived_in(made()), torch.zeros(2, *shape))
    assert folding.kept.keys() == reasons.keys()
    for path, words in reasons.items():
        assert any(word in folding.kept[path] for word in words.split("|")), folding.kept[path]


@pytest.mark.parametrize("name", [name for name in SMALL if name != "data dependent"])
def test_small_networks(name):
    check(lived_in(small(name)), images())


def test_folding_is_for_eval_mode_only_and_of_trained_weights():
    network = lived_in(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    network[0].requires_grad_(False)
    folding = fold(network.train(), images())
    assert network.training
    assert not folding.network.training
    assert not any(p.requires_grad for p in folding.network.parameters())


@pytest.mark.parametrize(("name", "norms"), [("resnet18", 20), ("mobilenet_v2", 52)])
def test_torchvision_networks(name, norms, tmp_path):
    torch.manual_seed(0)
    network = lived_in(getattr(import_torchvision().models, name)(weights=None))
    x = torch.randn(2, 3, 64, 64)
    folding = check(network, x)
    assert (len(folding.norms), folding.kept) == (norms, {})
    written = export(network, x, "py", tmp_path / "folded", fold=True, verify=False)
    source = written.files[0].read_text()
    assert "BatchNorm" not in source
    assert "Identity" not in source
    assert "it is for eval mode only" in source
    torch.testing.assert_close(imported(written.files[0]).load()(x), network(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("form", ["py", "pt2", "safetensors"])
def test_a_transformed_network_is_folded_in_every_form(form, tmp_path):
    """The file is compared with the network as it was given: norms and all."""
    network, x = lived_in(compact("residual")), images()
    norms = [m for m in network.modules() if isinstance(m, NORMS)]
    written = export(network, x, form, tmp_path / "small", fold=True)
    (told,) = [note for note in written.notes if "folded, outputs differ by at most" in note]
    refused = [note for note in written.notes if "is not folded: " in note]
    assert int(told.split()[0]) + len(refused) == len(norms)
    if form == "py":
        again = imported(written.files[0]).load()
        assert sum(1 for _ in again.modules()) == sum(1 for _ in network.modules()) - int(told.split()[0])
        torch.testing.assert_close(again(x), network(x))


def test_norms_in_lists_keep_their_place(tmp_path):
    """A list is called by position, so that what stands in it stays where it is."""

    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.steps = nn.ModuleList([nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)])

        def forward(self, x):
            for step in self.steps:
                x = step(x)
            return x

    network, x = lived_in(Listed()), images()
    written = export(network, x, "py", tmp_path / "listed", fold=True, verify=False)
    torch.testing.assert_close(imported(written.files[0]).load()(x), network(x))


def test_what_has_no_norms_says_so(tmp_path):
    written = export(nn.Linear(3, 2), torch.randn(2, 3), "py", tmp_path / "x", fold=True, verify=False)
    assert written.notes == ("no batch norm is folded",)
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, not str"):
        fold("resnet8", images())


def test_a_network_of_the_papers_by_the_number_of_its_norms():
    network = lived_in(dnat.build("resnet20", seed=0))
    folding = check(network, torch.zeros(2, 3, 32, 32))
    assert len(folding.norms) == 19
    assert folding.kept == {}


def test_timms_norms_leave_their_activation(timm, tmp_path):
    torch.manual_seed(0)
    network = lived_in(timm.create_model("mobilenetv4_conv_small", num_classes=10))
    x = torch.randn(2, 3, 64, 64)
    folding = check(network, x)
    assert (len(folding.norms), folding.kept) == (46, {})
    activations = [m for m in network.modules() if isinstance(m, nn.ReLU)]
    assert len([m for m in folding.network.modules() if isinstance(m, nn.ReLU)]) == len(activations) > 20
    written = export(network, x, "py", tmp_path / "folded", fold=True, verify=False)
    torch.testing.assert_close(imported(written.files[0]).load()(x), network(x), rtol=1e-3, atol=1e-3)
