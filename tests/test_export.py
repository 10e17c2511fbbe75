import ast
import collections
import importlib.util
import json
import random
import re
import sys

import pytest
import torch
from reference import SMALL, images, legal_sets, small
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint

import dnat
from dnat.exports import Exported, export, layout, verification
from dnat.exports.construction import NotConstructibleError, construction
from dnat.networks import import_torchvision
from dnat.tracing import examples_of

TRACEABLE = [name for name in SMALL if name != "data dependent"]


def imported(path):
    spec = importlib.util.spec_from_file_location("written", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compact(name, seed=0):
    """A small network with a random legal set of choices made in it."""
    network = small(name)
    edges = dnat.find_edges(dnat.trace(network, images()))
    sets = legal_sets(edges[:5])
    return dnat.discretize(network, random.Random(seed).choice(sets), images())


def run(network, example, training):
    """Outputs, gradients and buffers of one step."""
    args, kwargs = examples_of(example)[0]
    network.train(training)
    network.zero_grad()
    torch.manual_seed(1)
    outputs = [t for t in tree_leaves(network(*args, **kwargs)) if isinstance(t, torch.Tensor)]
    loss = sum((t.float() ** 2).sum() for t in outputs)
    if loss.requires_grad:
        loss.backward()
    return outputs, [p.grad for p in network.parameters()], list(network.state_dict().values())


def check_py(network, example, folder, exact=True):
    """Export to one file, import it here, and compare everything; returns the source and the notes."""
    made = export(network, example, "py", folder / "made", verify=False)
    source = made.files[0].read_text()
    assert "dnat" not in source
    allowed = {"json", "math", "os", "collections", "torch"}
    for node in ast.walk(ast.parse(source)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert {n.split(".")[0] for n in names} <= allowed
    again = imported(made.files[0]).load()
    assert not again.training
    assert list(again.state_dict()) == list(network.state_dict())
    assert [n for n, _ in again.named_parameters()] == [n for n, _ in network.named_parameters()]
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in network.parameters()]
    assert [p.dtype for p in again.parameters()] == [p.dtype for p in network.parameters()]
    same = torch.equal if exact else torch.allclose
    for training in (False, True):
        for ours, theirs in zip(run(network, example, training), run(again, example, training), strict=True):
            assert len(ours) == len(theirs)
            for a, b in zip(ours, theirs, strict=True):
                assert (a is None and b is None) or same(a, b), training
    return source, made.notes


# Every form, read by a fresh process


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("safetensors", "shared"),
        ("safetensors", "data dependent"),
        ("py", "residual"),
        ("py", "resnet8 with skips"),
        ("pt2", "resnet8"),
        ("pt2", "in place"),
        ("onnx", "resnet8"),
        ("onnx", "two branches"),
    ],
)
def test_a_transformed_network_is_the_same_in_a_fresh_process(form, name, tmp_path):
    network = compact(name, seed=1).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    made = export(network, images(), form, tmp_path / "deep" / "net")
    assert made.format == form
    assert made.files[0] == tmp_path / "deep" / f"net.{form}"
    assert made.difference < 1e-5
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == sorted(p.name for p in made.files)
    assert network.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_stochastic_layers_agree_in_train_mode_in_a_fresh_process(tmp_path):
    torchvision = import_torchvision()
    network = torchvision.models.SwinTransformer([4, 4], 8, [2, 1], [1, 2], [7, 7], num_classes=5)
    made = export(network, images(2, 32), "py", tmp_path / "swin")
    note = "sizes decide what the forward does: the file refuses those that would go another way"
    assert made == Exported("py", (tmp_path / "swin.py", tmp_path / "swin.safetensors"), 0.0, (note,))
    source = made.files[0].read_text()
    assert "class StochasticDepth(nn.Module):" in source
    assert "expect(" in source  # windows are shifted only where there is more than one


# The file of Python


@pytest.mark.parametrize("name", TRACEABLE)
@pytest.mark.parametrize("seed", range(3))
def test_py_of_small_networks_with_random_choices(name, seed, tmp_path):
    check_py(compact(name, seed), images(), tmp_path)


def small_torchvision(name):
    models = import_torchvision().models
    torch.manual_seed(0)
    if name == "vit":
        return models.VisionTransformer(32, 16, 2, 2, 8, 16, dropout=0.1, attention_dropout=0.1, num_classes=5)
    if name == "convnext":
        settings = [models.convnext.CNBlockConfig(8, 16, 2), models.convnext.CNBlockConfig(16, None, 1)]
        return models.ConvNeXt(settings, stochastic_depth_prob=0.5, num_classes=5)
    if name == "swin":
        return models.SwinTransformer([4, 4], 8, [2, 1], [1, 2], [7, 7], num_classes=5)
    options = {"init_weights": False} if name == "googlenet" else {}
    return dnat.build(f"torchvision:{name}", seed=0, num_classes=5, **options)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenet_v3_small",
        "efficientnet_b0",
        "shufflenet_v2_x0_5",
        "googlenet",
        "vit",
        "convnext",
        "swin",
    ],
)
def test_py_of_torchvision_networks(name, tmp_path):
    source, notes = check_py(small_torchvision(name), images(2, 32 if name in ("vit", "swin") else 64), tmp_path)
    assert len(notes) == (name in ("vit", "swin"))
    classes = re.findall(r"^class (\w+)\(", source, re.M)
    if name == "resnet18":
        assert classes == ["Parts", "BasicBlock", "BasicBlock2", "ResNet"]
        assert "        y = self.conv1(x)\n        y = self.bn1(y)\n        y = self.relu(y)\n" in source
    if name == "googlenet":
        assert (
            'GoogLeNetOutputs = namedtuple("GoogLeNetOutputs", ["logits", "aux_logits2", "aux_logits1"])' in source
        )


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vit"])
def test_py_of_transformed_torchvision_networks(name, tmp_path):
    network, example = small_torchvision(name), images(2, 32)
    edges = [e for e in dnat.find_edges(dnat.trace(network, example)) if "identity" in e.choices]
    skips = [e for e in edges if "none" in e.choices]
    choices = {edges[1].key: "identity"} | ({skips[-1].key: "none"} if skips[-1] != edges[1] else {})
    check_py(dnat.discretize(network, choices, example), example, tmp_path)


def test_rewritten_blocks_keep_their_class_name(tmp_path):
    network = dnat.discretize(small("resnet8"), {"layer2.0.conv2>layer2.0.bn2": "none"}, images())
    source, _ = check_py(network, images(), tmp_path)
    assert "layer2=nn.ModuleList([BasicBlock2(relu=nn.ReLU(), shortcut=Shortcut(padding_0=2))])" in source
    assert "F.pad(x, (0, 0, 0, 0, self.padding_0, self.padding_0))" in source


def test_a_whole_graph_module(tmp_path):
    network = torch.fx.symbolic_trace(small("residual"))
    source, _ = check_py(network, images(), tmp_path)
    assert "return self.head(x)" in source


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(3, 4, 3, padding=1)
        self.l = nn.Linear(4, 5)


class DictIO(Base):
    def forward(self, image, scale=None, *, flag=True):
        x = self.c(image)
        x = x if scale is None else x * scale
        return {"map": x, "scores": self.l(x.mean((2, 3)))} if flag else x


Out = collections.namedtuple("Out", ["logits", "maps"])


class NamedOutputs(Base):
    def forward(self, x):
        x = self.c(x)
        scores = self.l(x.mean((2, 3)))
        return Out(scores, (x, x + 1)) if self.training else scores


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(4, 4, 1)

    def forward(self, x, twice=False):
        return self.c(self.c(x)) if twice else self.c(x)


class TwoWays(Base):
    def __init__(self):
        super().__init__()
        self.block = Twice()

    def forward(self, x):
        return self.block(self.block(self.c(x)), twice=True)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.embedding(tokens))


class Tensors(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("kept", torch.randn(4, 1, 1))
        self.register_buffer("lost", torch.randn(4, 1, 1), persistent=False)
        self.plain = torch.randn(4, 1, 1)
        self.listed = [torch.tensor([1.0, 2.0, 3.0, 4.0])]
        self.gamma = nn.Parameter(torch.randn(4, 1, 1))
        self.token = nn.Parameter(torch.randn(1, 1, 4), requires_grad=False)

    def forward(self, x):
        x = self.c(x) * self.kept + self.lost * self.plain + self.listed[0][:, None, None] * self.gamma
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        return x / x.shape[0]


class Gradients(Base):
    def forward(self, x):
        x = self.c(x)
        with torch.no_grad():
            m = x.mean()
            m = m * 2
        return F.dropout(x - m, 0.3, self.training) + x.detach()


class Views(Base):
    def forward(self, x):
        x = self.c(x)
        x[:, 0] = 0
        x[..., 1:] += 1
        y = x.clone()
        y[:, 1:].mul_(2)
        y.add_(x)
        z = y
        z += 1
        a, b = y.chunk(2, 1)
        return 1 - a * b + z.sum() + (-x).max(1, keepdim=True)[0]


class Unchanged(Base):
    def __init__(self):
        super().__init__()
        self.identity = nn.Identity()
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        x = self.c(x)
        y = self.identity(x)
        z = self.dropout(y)
        return x + z


class Keeper(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        self.kept = self.c(x)
        return x * 2


class Reader(nn.Module):
    def __init__(self, keeper):
        super().__init__()
        self.l = nn.Linear(4, 4)
        self.keepers = [keeper]

    def forward(self, x):
        return self.l(self.keepers[0].kept.mean((2, 3))) + x.mean((2, 3))


class BehindTheScenes(Base):
    def __init__(self):
        super().__init__()
        self.keeper = Keeper()
        self.reader = Reader(self.keeper)

    def forward(self, x):
        return self.reader(self.keeper(self.c(x)))


class Containers(nn.Module):
    def __init__(self):
        super().__init__()
        self.named = nn.ModuleDict({"a b": nn.Conv2d(3, 4, 1), "z": nn.ReLU()})
        self.list = nn.ParameterList([nn.Parameter(torch.randn(4, 1, 1)) for _ in range(2)])
        self.dict = nn.ParameterDict({"x": nn.Parameter(torch.randn(4, 1, 1))})
        self.sequence = nn.Sequential(
            collections.OrderedDict([("0", nn.Conv2d(4, 4, 1)), ("2", nn.Conv2d(4, 4, 1))])
        )
        self.add_module("weird-name", nn.Conv2d(4, 4, 1))
        self.add_module("self", nn.Conv2d(4, 4, 1))
        self.register_module("gone", None)
        self.unused = Twice()

    def forward(self, x):
        x = self.named["z"](self.named["a b"](x))
        for p in self.list:
            x = x * p
        x = self.sequence(x) + self.dict["x"]
        return getattr(self, "weird-name")(x) + self.sequence.get_submodule("2")(x)


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8, padding_idx=0)
        self.lstm = nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(12, 5, batch_first=True)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True, dropout=0.1, bias=False)
        self.layer = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True, activation="gelu")

    def forward(self, tokens):
        x, (_, c) = self.lstm(self.embedding(tokens))
        x = self.layer(x)
        y, weights = self.attention(x, x, x)
        _, h = self.gru(x + y)
        return h + c.sum(), weights


class Checkpointed(Base):
    def forward(self, x):
        return checkpoint(lambda v: torch.relu(self.c(v)), x, use_reentrant=False)


class Shapes(Base):
    def forward(self, x):
        n, _, h, w = x.shape
        x = self.c(x).reshape(n, -1, h * w).mean(-1)
        noise = torch.arange(4, device=x.device, dtype=x.dtype).expand(len(x), -1)
        return self.l(x + noise * (h // 2) ** -0.5)


TOKENS = torch.randint(0, 7, (2, 5), generator=torch.Generator().manual_seed(0))
CASES = {
    "dict": (DictIO, {"image": images(), "scale": torch.tensor(2.0)}),
    "constant": (DictIO, {"image": images(), "flag": False}),
    "named tuple": (NamedOutputs, images()),
    "two ways": (TwoWays, images()),
    "tied": (Tied, TOKENS),
    "tensors": (Tensors, images()),
    "gradients": (Gradients, images()),
    "views": (Views, images()),
    "unchanged": (Unchanged, images()),
    "behind the scenes": (BehindTheScenes, images()),
    "containers": (Containers, images()),
    "text": (Text, TOKENS),
    "checkpointed": (Checkpointed, images()),
    "shapes": (Shapes, images()),
}


@pytest.mark.parametrize("name", CASES)
def test_py_of_unusual_networks(name, tmp_path):
    make, example = CASES[name]
    torch.manual_seed(0)
    check_py(make(), example, tmp_path)


def test_py_refuses_other_constants_than_the_example_gave(tmp_path):
    make, example = CASES["constant"]
    again = imported(export(make(), example, "py", tmp_path / "net", verify=False).files[0]).load()
    again(images())
    with pytest.raises(ValueError, match="this file was made for flag=False"):
        again(images(), flag=True)


def test_py_of_timm_networks(tmp_path, timm):
    network = timm.create_model("convnext_atto", num_classes=5, depths=(1, 1, 2, 1), drop_path_rate=0.5)
    source, notes = check_py(network, images(2, 32), tmp_path)
    assert 'StochasticDepth(0.5, "row")' in source
    assert notes == ()


def test_py_keeps_types_and_frozen_weights(tmp_path):
    network = small("resnet8").double()
    network.layer1.requires_grad_(False)
    check_py(network, images(dtype=torch.float64), tmp_path)
    check_py(small("two branches").bfloat16(), images(dtype=torch.bfloat16), tmp_path)


def test_py_takes_any_batch_and_any_size_that_the_network_takes(tmp_path):
    network = small("resnet8").eval()
    made = export(network, images(1), "py", tmp_path / "net", verify=False)
    again = imported(made.files[0]).load()
    for x in (images(1), images(3), images(2, 20)):
        assert torch.equal(again(x), network(x))


@pytest.mark.parametrize("name", ["shapes", "dict"])
def test_py_moves_to_another_device(name, tmp_path):
    make, example = CASES[name]
    made = export(make(), example, "py", tmp_path / "net", verify=False)
    assert made.notes == ()
    args, kwargs = tree_map_only(torch.Tensor, lambda t: t.to("meta"), examples_of(example)[0])
    again = imported(made.files[0]).load().to("meta")
    assert all(t.is_meta for t in tree_leaves(again(*args, **kwargs)))


def test_py_refuses_other_sizes_where_they_would_go_another_way(tmp_path):
    class Decides(Base):
        def forward(self, x):
            return self.c(x) if x.shape[2] > 6 else self.c(x) * 2

    class Loops(Base):
        def forward(self, x):
            x = self.c(x)
            for i in range(x.shape[2]):
                x = x + i
            return x

    class Inside(nn.Module):
        def forward(self, x):
            return x if self.sizes[0] > 6 else x * 2

    class Hands(Base):
        def __init__(self):
            super().__init__()
            self.inside = Inside()

        def forward(self, x):
            self.inside.sizes = [x.shape[2]]
            return self.inside(self.c(x))

    class Batch(Base):
        def forward(self, x):
            return torch.stack([self.c(image) for image in x])

    for make, fine, wrong, note in (
        (Decides, images(2, 12), images(2, 5), "sizes decide what the forward does: the file refuses those"),
        (Hands, images(2, 12), images(2, 5), "sizes decide what the forward does: the file refuses those"),
        (Loops, images(2), images(2, 9), "sizes decide what the forward does: the file takes"),
        (Batch, images(4), images(2), "the batch decides what the forward does"),
    ):
        made = export(make(), images(4), "py", tmp_path / "net", verify=False)
        (said,) = made.notes
        assert said.startswith(note)
        again = imported(made.files[0]).load()
        again(fine)
        with pytest.raises(ValueError, match="this file was made for"):
            again(wrong)


def test_constants_that_differ_between_blocks_are_named_as_the_network_names_them(tmp_path):
    class Scaled(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale, self.c = scale, nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.c(x) * self.scale + len(str(self.scale))

    source, _ = check_py(nn.Sequential(Scaled(2), Scaled(0.25), Scaled(2)), images(), tmp_path)
    assert source.count("class Scaled(") == 1
    assert "Scaled(scale=0.25, constant1=4, c=nn.Conv2d(3, 3, 1))" in source


# Layers


LAYERS = [
    nn.Conv2d(3, 8, 3, padding="same", padding_mode="circular", bias=False),
    nn.Conv1d(4, 8, (3,), stride=2, dilation=3, groups=2),
    nn.Conv3d(2, 2, (1, 2, 3)),
    nn.ConvTranspose2d(8, 8, 3, 2, 1, 1, groups=2),
    nn.Linear(3, 4, dtype=torch.float64),
    nn.Bilinear(2, 3, 4, bias=False),
    nn.BatchNorm2d(8, affine=False, momentum=None),
    nn.BatchNorm1d(8, eps=1e-3, track_running_stats=False),
    nn.InstanceNorm2d(8, affine=True),
    nn.GroupNorm(2, 8, affine=False),
    nn.LayerNorm((4, 8), bias=False),
    nn.LayerNorm(8, elementwise_affine=False),
    nn.RMSNorm(8, eps=1e-4),
    nn.LocalResponseNorm(2),
    nn.PReLU(8, init=0.1),
    nn.LeakyReLU(0.2, inplace=True),
    nn.Hardtanh(-2, 2),
    nn.GELU("tanh"),
    nn.Softmax(dim=1),
    nn.Threshold(0.1, 20),
    nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
    nn.PixelUnshuffle(2),
    nn.ConstantPad2d((1, 0, 0, 1), 0.5),
    nn.ReflectionPad2d(2),
    nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    nn.MaxPool2d((2, 3)),
    nn.AvgPool2d((3, 1), 1, count_include_pad=False),
    nn.AdaptiveAvgPool2d((1, None)),
    nn.Flatten(2),
    nn.Unflatten(1, (2, -1)),
    nn.Dropout2d(0.3),
    nn.Identity(3, unused=True),
    nn.Embedding(5, 3, padding_idx=-1, max_norm=2.0),
    nn.MultiheadAttention(8, 2, kdim=4, vdim=6, add_bias_kv=True, add_zero_attn=True),
    nn.MultiheadAttention(8, 2, bias=False, batch_first=True),
    nn.LSTM(4, 6, 2, bidirectional=True, proj_size=3, dropout=0.1),
    nn.RNN(4, 6, nonlinearity="relu", bias=False),
    nn.GRUCell(3, 4),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_a_constructor_makes_the_same_layer(layer):
    call = construction(layer)
    source = f"{call.name}({', '.join(call.arguments)}){call.suffix}"
    namespace = {"nn": nn, "torch": torch}
    again = eval(source, namespace)
    assert repr(again) == repr(layer)
    assert {k: (v.shape, v.dtype) for k, v in again.state_dict().items()} == {
        k: (v.shape, v.dtype) for k, v in layer.state_dict().items()
    }
    again.load_state_dict(layer.state_dict())
    assert (call.name, len(again.state_dict())) == (f"nn.{type(layer).__name__}", len(layer.state_dict()))


def test_constructors_are_short():
    assert construction(nn.Conv2d(3, 8, 3, padding=1)).arguments == ("3", "8", "3", "padding=1")
    assert construction(nn.MaxPool2d(2)).arguments == ("2",)
    assert construction(nn.BatchNorm2d(8)).arguments == ("8",)
    assert construction(nn.Linear(2, 3).requires_grad_(False)).suffix == ".requires_grad_(False)"


def test_a_layer_that_is_not_what_its_constructor_makes_is_none():
    changed = nn.Conv2d(3, 8, 3)
    changed.stride = (2, 3)
    assert "stride=(2, 3)" in construction(changed).arguments
    changed._reversed_padding_repeated_twice = [1, 1, 1, 1]
    with pytest.raises(NotConstructibleError, match="another _reversed_padding_repeated_twice"):
        construction(changed)
    with pytest.raises(NotConstructibleError):
        construction(parametrizations.weight_norm(nn.Linear(2, 2)))


def test_py_of_changed_layers_writes_their_forward(tmp_path):
    class Loud(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    class Quiet(nn.Linear):
        def extra_repr(self):
            return "quiet"

    network = nn.Sequential(Loud(4, 4), Quiet(4, 4), parametrizations.weight_norm(nn.Linear(4, 3)))
    source, _ = check_py(network, torch.randn(2, 4), tmp_path, exact=False)
    assert "class Loud(Parts):" in source
    assert "Quiet" not in source


def test_long_calls_get_a_line_for_each_argument():
    made = layout.call("f", ["a" * 60, layout.call("g", ["b" * 60], opening="([")])
    assert layout.laid_out(made, 4) == f"f(\n        {'a' * 60},\n        g([{'b' * 60}]),\n    )"


# What cannot be


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 3


def autocast(x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return x @ x.mT


def refusing(name, block):
    """A network with a block that cannot be written."""

    class Refused(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = nn.Conv2d(3, 4, 1)
            self.hidden = [nn.Conv2d(4, 4, 1)]

        def forward(self, x):
            return block(self, self.c(x))

    Refused.__name__ = name
    return nn.Sequential(collections.OrderedDict(stem=nn.Identity(), block=Refused()))


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (lambda self, x: x * x.mean().item(), r"block \(Refused\): it lets values of tensors decide .*\(item\)"),
        (lambda self, x: x if x.sum() > 0 else -x, r"\(__bool__\)"),
        (lambda self, x: x + torch.from_numpy(x.detach().numpy()), r"\(numpy\)"),
        (lambda self, x: autocast(x), r"it switches autocast on or off"),
        (lambda self, x: Doubling.apply(x), r"torch.autograd.Function"),
        (
            lambda self, x: self.hidden[0](x),
            r"neither torch's Python functions made nor a registered module holds",
        ),
        (lambda self, x: x if random.random() < 2 else -x, r"random numbers of Python"),
        (lambda self, x: x.reshape(1, 7), r"its forward fails on the example in eval mode: .*invalid for input"),
    ],
)
def test_py_names_what_it_refuses(block, words, tmp_path):
    with pytest.raises(ValueError, match=words) as caught:
        export(refusing("Refused", block), images(), "py", tmp_path / "net")
    assert "cannot be written as one Python file" in str(caught.value)
    assert "'pt2', 'onnx' and 'safetensors' may do" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_py_refuses_hooks_and_foreign_functions(tmp_path):
    hooked = small("residual")
    hooked.conv1.register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(ValueError, match="conv1 has hooks"):
        export(hooked, images(), "py", tmp_path / "net")
    library = torch.library.Library("exporttest", "DEF")
    library.define("double(Tensor x) -> Tensor")
    library.impl("double", lambda x: x * 2, "CompositeImplicitAutograd")
    foreign = refusing("Refused", lambda self, x: torch.ops.exporttest.double(x))
    with pytest.raises(ValueError, match=r"it calls torch.ops.exporttest.double, which torch alone does not have"):
        export(foreign, images(), "py", tmp_path / "net")


def test_graphs_refuse_what_torch_cannot_export(tmp_path):
    with pytest.raises(ValueError, match=r"torch.export cannot export DataDependent: "):
        export(small("data dependent"), images(), "pt2", tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_a_fixed_batch_is_said(tmp_path):
    class Fixed(Base):
        def forward(self, x):
            return self.c(x).view(4, -1)

    made = export(Fixed(), images(4), "pt2", tmp_path / "net", verify=False)
    assert made.notes == ("the batch is fixed to the example's: torch.export found it in the graph",)


def test_onnx_says_what_to_install(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnxscript" else find(name, *rest)
    )
    with pytest.raises(ValueError, match=r"needs onnxscript: pip install dnat\[onnx\]"):
        export(small("residual"), images(), "onnx", tmp_path / "net")


def test_wrong_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown form 'onxn'; did you mean 'onnx'"):
        export(small("residual"), images(), "onxn", tmp_path / "net")
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module, not str"):
        export("resnet8", images(), "py", tmp_path / "net")
    relaxed = dnat.relax(small("residual"), dnat.find_edges(dnat.trace(small("residual"), images())))
    with pytest.raises(ValueError, match=r"make its choices with dnat.discretize first"):
        export(relaxed, images(), "py", tmp_path / "net")
    (tmp_path / "net.py").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        export(small("residual"), images(), "py", tmp_path / "net")


# Files


def test_safetensors_stores_shared_tensors_once_and_describes_the_network(tmp_path):
    made = export(small("shared"), images(), "safetensors", tmp_path / "net.safetensors", verify=False)
    assert [p.name for p in made.files] == ["net.safetensors", "net.json"]
    assert made.notes[0] == "alias.weight is conv.weight, and stored once"
    from safetensors import safe_open

    with safe_open(made.files[0], "pt") as file:
        assert "alias.weight" not in file.keys()  # noqa: SIM118
        assert file.metadata() == {"format": "pt", "alias.weight": "conv.weight", "alias.bias": "conv.bias"}
    described = json.loads(made.files[1].read_text())
    assert described["inputs"] == [{"shape": [4, 3, 8, 8], "dtype": "torch.float32"}]
    assert {"path": "head", "class": "torch.nn.modules.linear.Linear", "repr": repr(nn.Linear(4, 5))} in described[
        "modules"
    ]
    assert described["tensors"]["head.bias"] == {"shape": [5], "dtype": "torch.float32"}


class Versioned(nn.Module):
    """Adds to its state dict what is no tensor, and what is one."""

    class Part(nn.Linear):
        def __init__(self, extra):
            super().__init__(4, 4)
            self.extra = extra

        def get_extra_state(self):
            return self.extra

        def set_extra_state(self, state):
            self.extra = state

    def __init__(self):
        super().__init__()
        self.one, self.two = self.Part({"version": 3}), self.Part(torch.ones(2))

    def forward(self, x):
        return self.two(self.one(x))


@pytest.mark.parametrize("form", ["safetensors", "py", "pt2"])
def test_what_modules_add_to_the_state_dict_is_left_out_and_said(form, tmp_path):
    network = Versioned()
    written = export(network, torch.randn(2, 4), form, tmp_path / "network")
    keys = {"one._extra_state", "two._extra_state"}
    if form != "pt2":
        weights = load_file(tmp_path / "network.safetensors")
        assert set(weights) == set(network.state_dict()) - keys
        assert {note.split()[0] for note in written.notes} == keys
    if form == "safetensors":
        assert set(json.loads((tmp_path / "network.json").read_text())["tensors"]) == set(weights)


def test_forms_of_one_name_do_not_disturb_one_another(tmp_path):
    torch.manual_seed(0)
    network = Tensors().eval()
    made = export(network, images(), "py", tmp_path / "net", verify=False)
    assert [p.name for p in made.files] == ["net.py", "net.safetensors", "net.constants.safetensors"]
    before = made.files[1].read_bytes()
    export(network, images(), "safetensors", tmp_path / "net", verify=False)
    assert made.files[1].read_bytes() == before
    assert torch.equal(imported(made.files[0]).load()(images()), network(images()))


def test_views_of_one_tensor_are_stored_each(tmp_path):
    network = nn.Module()
    whole = torch.arange(6.0)
    network.register_buffer("all", whole)
    network.register_buffer("some", whole[::2])
    made = export(network, images(), "safetensors", tmp_path / "net")
    assert made.notes == ()


def test_files_are_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    made = export(small("residual"), images(), "py", tmp_path / "net", verify=False)
    before = [p.read_bytes() for p in made.files]
    package = sys.modules["dnat.exports"]
    written = package.source

    def wrong(*args, **how):
        return written(*args, **how).replace("return self.head(x)", "return self.head(x) + 1")

    monkeypatch.setattr(package, "source", wrong)
    with pytest.raises(RuntimeError, match="computes something else in eval mode"):
        export(small("residual"), images(), "py", tmp_path / "net")
    monkeypatch.setattr(package, "source", lambda *args, **how: "raise OSError('broken')")
    with pytest.raises(RuntimeError, match=r"cannot be used in a fresh process: OSError: broken"):
        export(small("residual"), images(), "py", tmp_path / "net")
    assert [p.read_bytes() for p in made.files] == before
    assert sorted(tmp_path.iterdir()) == sorted(made.files)
    monkeypatch.undo()
    export(small("two branches"), images(), "py", tmp_path / "net.py", verify=False)
    assert [p.read_bytes() for p in made.files] != before


def test_the_fresh_process_has_no_dnat(tmp_path):
    (tmp_path / "net.py").write_text("import dnat\n")
    with pytest.raises(RuntimeError, match="import of dnat halted"):
        verification.read_again("py", tmp_path / "net.py")


class ComparesItself(Base):
    """Gives two things that are made of one tensor that is given three times."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        x = self.c(x).flatten(2).transpose(1, 2)
        y, weights = self.attention(x, x, x)
        return self.l(y.mean(1)), weights


def test_py_keeps_apart_what_is_made_of_one_thing(tmp_path):
    check_py(ComparesItself(), images(), tmp_path)


def test_py_refuses_what_a_cache_keeps(tmp_path):
    """Nothing tells whether such a tensor was made of the input."""
    kept = {}

    class Cached(Base):
        def forward(self, x):
            x = self.c(x)
            size = x.shape[-1]
            if size not in kept:
                kept[size] = torch.arange(int(size), dtype=torch.float32)
            return self.l((x * kept[size]).mean((2, 3)))

    network = Cached()
    network(images())
    with pytest.raises(ValueError, match="neither torch's Python functions made nor"):
        export(network, images(), "py", tmp_path / "x")


def test_py_of_a_single_layer(tmp_path):
    source, _ = check_py(nn.Linear(2, 3), torch.randn(4, 2), tmp_path)
    assert "F.linear(" in source
