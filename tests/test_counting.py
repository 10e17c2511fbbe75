"""Multiply-adds against counts by hand and published ones: one in costs and traces, modes, devices, kernels."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import flop_registry, register_flop_formula

import dnat
from dnat.counting import Counter
from dnat.networks.torchvision import import_torchvision


class Of(nn.Module):
    """A function of modules and inputs, as a network."""

    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, *inputs):
        return self.function(*self.parts, *inputs)


def counts(network, example, **told):
    """Per image: by `cost`, and by the traces in eval and in train mode."""
    traces = dnat.trace(network, example, **told).traces
    return [
        dnat.cost(network, example, **told).madds,
        *(sum(op.madds for op in t.operations) / t.batch for t in traces),
    ]


def rand(*shape, **options):
    return torch.randn(2, *shape, **options)


def scripted(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(module)


T, D, H = 7, 12, 5
ATTENTION = 4 * T * D * D + 2 * T * T * D
GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}


def recurrent(kind, layers=1, directions=1, projected=0):
    """By hand: each gate of each layer, step and direction multiplies the input and what came out before."""
    out = projected or H
    widths = [D] + [out * directions] * (layers - 1)
    return T * directions * sum(GATES[kind] * H * (w + out) + projected * H for w in widths)


def sequence(kind, **options):
    return Of(lambda m, x: m(x)[0], kind(D, H, batch_first=True, **options)), rand(T, D)


def first_in_time(convolution, x):
    weight = convolution.weight.permute(2, 1, 0)
    return torch.conv_tbc(x.transpose(0, 1).contiguous(), weight, convolution.bias).transpose(0, 1)


LAYERS = {
    "linear": (nn.Linear(6, 5), rand(6), 30),
    "linear, of tokens": (nn.Linear(6, 5), rand(7, 6), 210),
    "F.linear": (Of(lambda m, x: F.linear(x, m.weight), nn.Linear(6, 5)), rand(6), 30),
    "conv1d": (nn.Conv1d(8, 16, 5), rand(8, 20), 16 * 16 * 8 * 5),
    "conv2d": (nn.Conv2d(3, 4, 3, padding=1), rand(3, 6, 7), 42 * 4 * 27),
    "conv2d, same": (nn.Conv2d(3, 4, 3, padding="same"), rand(3, 6, 7), 42 * 4 * 27),
    "conv2d, circular": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), rand(3, 6, 7), 42 * 4 * 27),
    "conv2d, strided and dilated": (nn.Conv2d(3, 4, 3, stride=2, dilation=2), rand(3, 9, 11), 3 * 4 * 4 * 27),
    "conv2d, grouped": (nn.Conv2d(8, 16, 3, groups=4), rand(8, 10, 12), 80 * 16 * 2 * 9),
    "conv2d, depthwise": (nn.Conv2d(8, 8, 3, groups=8, padding=1), rand(8, 10, 12), 120 * 8 * 9),
    "conv3d": (nn.Conv3d(3, 4, 3), rand(3, 5, 6, 7), 60 * 4 * 81),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3, stride=2), rand(4, 9), 9 * 4 * 6 * 3),
    "transposed 2d": (nn.ConvTranspose2d(8, 4, 3, stride=2), rand(8, 5, 6), 30 * 8 * 4 * 9),
    "transposed 2d, grouped": (nn.ConvTranspose2d(8, 4, 3, groups=2), rand(8, 5, 6), 30 * 8 * 2 * 9),
    "transposed 3d": (nn.ConvTranspose3d(2, 3, 2), rand(2, 3, 4, 5), 60 * 2 * 3 * 8),
    "F.conv2d": (Of(lambda m, x: F.conv2d(x, m.weight, stride=2), nn.Conv2d(3, 4, 2)), rand(3, 6, 8), 12 * 4 * 12),
    "F.conv_transpose2d": (
        Of(lambda m, x: F.conv_transpose2d(x, m.weight), nn.ConvTranspose2d(3, 4, 2)),
        rand(3, 6, 8),
        48 * 3 * 4 * 4,
    ),
    "conv_tbc": (Of(first_in_time, nn.Conv1d(4, 6, 3)), rand(9, 4), 7 * 6 * 4 * 3),
    "bilinear": (Of(lambda m, x: m(x, x), nn.Bilinear(6, 6, 5)), rand(6), 5 * 36),
    "F.bilinear": (Of(lambda m, x, y: F.bilinear(x, y, m.weight), nn.Bilinear(6, 3, 5)), (rand(6), rand(3)), 90),
    "matmul": (Of(lambda x, y: x @ y), (rand(4, 5, 6), rand(4, 6, 3)), 4 * 5 * 6 * 3),
    "matmul with a vector": (Of(lambda m, x: x @ m.weight[0], nn.Linear(6, 1)), rand(5, 6), 30),
    "mv": (Of(lambda m, x: torch.mv(x, m.weight[0]), nn.Linear(6, 1)), rand(6), 6),
    "addmv": (Of(lambda m, x: torch.addmv(x[:, 0], x, m.weight[0]), nn.Linear(6, 1)), rand(6), 6),
    "dot": (Of(lambda x: x + torch.dot(x[0], x[1])), rand(6), 3),
    "vdot": (Of(lambda x: x + torch.vdot(x[0], x[1])), rand(6), 3),
    "inner": (Of(lambda m, x: torch.inner(x, m.weight), nn.Linear(6, 5)), rand(6), 30),
    "vecdot": (Of(lambda x: torch.linalg.vecdot(x, x)), rand(5, 6), 30),
    "outer": (Of(lambda x: x + torch.outer(x[0], x[1]).sum()), rand(6), 18),
    "ger": (Of(lambda x: x + x[0].ger(x[1]).sum()), rand(6), 18),
    "addr": (Of(lambda x: x + torch.addr(x.new_zeros(6, 4), x[0], x[1, :4]).sum()), rand(6), 12),
    "bmm": (Of(torch.bmm), (rand(5, 6), rand(6, 3)), 90),
    "baddbmm": (Of(lambda x, y: torch.baddbmm(x[:, :, :1], x, y)), (rand(5, 6), rand(6, 3)), 90),
    "addbmm": (Of(lambda x, y: x + torch.addbmm(x.new_zeros(5, 3), x, y).sum()), (rand(5, 6), rand(6, 3)), 90),
    "addmm": (Of(lambda m, x: torch.addmm(m.bias, x, m.weight.T), nn.Linear(6, 5)), rand(6), 30),
    "einsum": (Of(lambda x, y: torch.einsum("bik,bkj->bij", x, y)), (rand(5, 6), rand(6, 3)), 90),
    "einsum of three": (
        Of(lambda m, x: torch.einsum("bi,oij,bj->bo", x, m.weight, x), nn.Bilinear(6, 6, 5)),
        rand(6),
        180 + 30,
    ),
    "tensordot": (Of(lambda m, x: torch.tensordot(x, m.weight, ([2], [1])), nn.Linear(6, 5)), rand(7, 6), 210),
    "multi_dot": (
        Of(lambda a, b, x: torch.linalg.multi_dot([x, a.weight.T, b.weight.T]), nn.Linear(6, 5), nn.Linear(5, 4)),
        rand(6),
        30 + 20,
    ),
    "sparse": (Of(lambda x: x + torch.sparse.mm(torch.eye(6).to_sparse(), x.T).T), rand(6), 6),
    "attention, of heads": (
        Of(F.scaled_dot_product_attention),
        tuple(rand(4, n, 3) for n in (6, 9, 9)),
        4 * 6 * 9 * (3 + 3),
    ),
    "attention, causal": (
        Of(lambda q: F.scaled_dot_product_attention(q, key=q, value=q, is_causal=True)),
        rand(4, 6, 3),
        4 * 36 * 6,
    ),
    "attention, grouped queries": (
        Of(lambda q, k: F.scaled_dot_product_attention(q, k, k, enable_gqa=True)),
        (rand(4, 6, 3), rand(2, 9, 3)),
        4 * 6 * 9 * 6,
    ),
    "MultiheadAttention": (
        Of(lambda m, x: m(x, x, x)[0], nn.MultiheadAttention(D, 3, batch_first=True)),
        rand(T, D),
        ATTENTION,
    ),
    "MultiheadAttention without weights": (
        Of(lambda m, x: m(x, x, x, need_weights=False)[0], nn.MultiheadAttention(D, 3, batch_first=True)),
        rand(T, D),
        ATTENTION,
    ),
    "MultiheadAttention of other keys": (
        Of(lambda m, x, y: m(x, y, y)[0], nn.MultiheadAttention(D, 3, batch_first=True, kdim=8, vdim=8)),
        (rand(T, D), rand(9, 8)),
        T * D * D * 2 + 9 * 8 * D * 2 + 2 * T * 9 * D,
    ),
    "TransformerEncoderLayer": (
        nn.TransformerEncoderLayer(D, 3, 20, batch_first=True),
        rand(T, D),
        ATTENTION + 2 * T * D * 20,
    ),
    "TransformerEncoder with padding": (
        Of(
            lambda m, x: m(x, src_key_padding_mask=torch.arange(T).expand(2, T) > 4),
            nn.TransformerEncoder(nn.TransformerEncoderLayer(D, 2, 20, batch_first=True), 2),
        ),
        rand(T, D),
        2 * (ATTENTION + 2 * T * D * 20),
    ),
    "TransformerDecoderLayer": (
        nn.TransformerDecoderLayer(D, 3, 20, batch_first=True),
        (rand(T, D), rand(T, D)),
        2 * ATTENTION + 2 * T * D * 20,
    ),
    **{kind.__name__: (*sequence(kind), recurrent(kind)) for kind in GATES},
    **{
        f"{kind.__name__}, two layers, both directions": (
            *sequence(kind, num_layers=2, bidirectional=True),
            recurrent(kind, 2, 2),
        )
        for kind in GATES
    },
    "LSTM, projected": (*sequence(nn.LSTM, proj_size=3, num_layers=2), recurrent(nn.LSTM, 2, 1, 3)),
    "LSTMCell": (Of(lambda m, x: m(x)[0], nn.LSTMCell(D, H)), rand(D), 4 * H * (D + H)),
    "GRUCell": (nn.GRUCell(D, H), rand(D), 3 * H * (D + H)),
    "LSTM with its states": (nn.LSTM(D, H, batch_first=True), rand(T, D), recurrent(nn.LSTM)),
    "scripted": (
        scripted(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))),
        rand(3, 8, 8),
        36 * 4 * 27 + 720,
    ),
    "scripted, inside": (
        nn.Sequential(scripted(nn.Conv2d(3, 4, 3)), nn.Flatten(), nn.Linear(144, 5)),
        rand(3, 8, 8),
        36 * 4 * 27 + 720,
    ),
    "scripted attention": (
        Of(lambda m, x: m(x, x, x)[0], scripted(nn.MultiheadAttention(D, 2, batch_first=True))),
        rand(T, D),
        ATTENTION,
    ),
    "scripted encoder": (
        scripted(nn.TransformerEncoderLayer(D, 2, 20, batch_first=True)),
        rand(T, D),
        ATTENTION + 2 * T * D * 20,
    ),
    "what does not count": (
        nn.Sequential(
            nn.BatchNorm2d(3),
            nn.GELU(),
            nn.MaxPool2d(2),
            nn.Upsample(scale_factor=2),
            nn.GroupNorm(1, 3),
            nn.Softmax(1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.LayerNorm(3),
        ),
        rand(3, 8, 8),
        0,
    ),
}
ON_META = [n for n in LAYERS if "script" not in n and n not in ("sparse", "TransformerEncoder with padding")]


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_layers_by_hand(name):
    network, example, by_hand = LAYERS[name]
    assert counts(network, example) == [by_hand] * 3


@pytest.mark.parametrize("name", ON_META)
def test_without_data_the_counts_are_the_same(name):
    network, example, by_hand = LAYERS[name]
    with torch.device("meta"):
        empty = torch.utils._pytree.tree_map(lambda t: t.to("meta"), example)
        assert counts(dnat.tracing.copied(network).to("meta"), empty) == [by_hand] * 3


def test_packed_sequences_count_their_steps():
    def packed(lstm, x):
        return lstm(pack_padded_sequence(x, torch.tensor([7, 3]), batch_first=True))[1][0][0]

    steps = (7 + 3) / 2
    assert counts(Of(packed, nn.LSTM(D, H, batch_first=True)), rand(T, D)) == [steps * 4 * H * (D + H)] * 3


def test_rows_of_several_lengths():
    def nested(linear, x):
        return linear(torch.nested.as_nested_tensor([x[0, :3], x[1, :5]], layout=torch.jagged)).to_padded_tensor(
            0.0
        )

    assert dnat.cost(Of(nested, nn.Linear(4, 6)), rand(7, 4)).madds == (3 + 5) * 24 / 2


def test_inference_mode_inside():
    inside = torch.inference_mode()(lambda m, lstm, x: lstm(m(x))[0])
    network = Of(inside, nn.Linear(6, D), nn.LSTM(D, H, batch_first=True))
    assert dnat.cost(network, rand(T, 6)).madds == T * 6 * D + recurrent(nn.LSTM)


def test_kernels_of_other_devices_by_their_formulas():
    """Called by name, most on tensors without data, since the devices are not here."""
    aten = torch.ops.aten
    q, k = (torch.empty(2, 4, n, 8, device="meta", dtype=torch.float16) for n in (6, 9))
    x = torch.empty(T, 2, D, device="meta")
    weights = [p.detach() for p in nn.LSTM(D, H, 2, bidirectional=True, device="meta").parameters()]
    state = torch.empty(4, 2, H, device="meta")
    image, kernel = torch.zeros(2, 8, 10, 12), torch.zeros(16, 2, 3, 3)
    attention, rnn = 2 * 4 * 6 * 9 * 16, 2 * recurrent(nn.LSTM, 2, 2)
    cases = [
        (lambda: aten._scaled_dot_product_flash_attention(q, k, k), attention),
        (lambda: aten._scaled_dot_product_efficient_attention(q, k, k, None, False), attention),
        (lambda: aten._scaled_dot_product_cudnn_attention(q, k, k, None, False), attention),
        (
            lambda: aten._cudnn_rnn(
                x, weights, 4, None, state, state, 2, H, 0, 2, False, 0.0, False, True, [], None
            ),
            rnn,
        ),
        (
            lambda: aten.mkldnn_convolution(image, kernel, None, [0, 0], [1, 1], [1, 1], 4),
            2 * 80 * 16 * 2 * 9,
        ),
        (
            lambda: aten._slow_conv2d_forward(
                image, kernel[:, :1].expand(16, 8, 3, 3).contiguous(), [3, 3], None, [1, 1], [0, 0]
            ),
            2 * 80 * 16 * 8 * 9,
        ),
        (lambda: aten.slow_conv_transpose2d(image, kernel[:8].contiguous(), [3, 3]), 2 * 120 * 8 * 2 * 9),
        (
            lambda: aten._int_mm(torch.ones(32, 16, dtype=torch.int8), torch.ones(16, 8, dtype=torch.int8)),
            32 * 16 * 8,
        ),
    ]
    for run, by_hand in cases:
        with Counter() as counter:
            run()
        assert (counter.madds, list(counter.uncounted)) == (by_hand, [])


def test_the_fused_kernels_of_eval_mode():
    """Modules that are called outside of any trace take them."""
    attention, encoder = (
        nn.MultiheadAttention(D, 2, batch_first=True).eval(),
        nn.TransformerEncoderLayer(D, 2, 20, batch_first=True).eval(),
    )
    x = rand(T, D)
    for run, by_hand in (
        (lambda: attention(x, x, x), 2 * ATTENTION),
        (lambda: encoder(x), 2 * (ATTENTION + 2 * T * D * 20)),
    ):
        with torch.no_grad(), Counter() as counter:
            run()
        assert counter.madds == by_hand


# Published by torchvision with its weights, in G, for images of 224 x 224 if not said otherwise.
PUBLISHED = {
    "alexnet": (0.714,),
    "convnext_tiny": (4.456,),
    "densenet121": (2.834,),
    "efficientnet_b0": (0.386,),
    "googlenet": (1.498,),
    "inception_v3": (5.713, 299),
    "maxvit_t": (5.558,),
    "mnasnet1_0": (0.314,),
    "mobilenet_v2": (0.301,),
    "mobilenet_v3_large": (0.217,),
    "resnet18": (1.814,),
    "resnet50": (4.089,),
    "resnext50_32x4d": (4.230,),
    "shufflenet_v2_x1_0": (0.145,),
    "squeezenet1_1": (0.349,),
    "swin_t": (4.491,),
    "vgg16": (15.470,),
    "vit_b_16": (17.564,),
    "vit_b_32": (4.409,),
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
def test_networks_as_published(name):
    published, size = (*PUBLISHED[name], 224)[:2]
    models = import_torchvision().models
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        network, example = models.get_model(name, weights=None, **options), torch.zeros(2, 3, size, size)
        cost, *traces = counts(network, example)
    assert round(cost / 1e9, 3) == published
    assert traces[0] == cost
    assert traces[1] >= cost  # heads that only train


@pytest.mark.parametrize(("name", "published"), [("resnet18", 1.814), ("vit_b_32", 4.409)])
def test_networks_as_published_with_data(name, published):
    models = import_torchvision().models
    found = counts(models.get_model(name, weights=None), torch.zeros(2, 3, 224, 224))
    assert [round(n / 1e9, 3) for n in found] == [published] * 3


def test_a_transformer_by_hand():
    """Of torch's own: two layers to encode, two to decode."""
    network = nn.Transformer(D, 2, 2, 2, 20, batch_first=True)
    cross = 2 * D * D * (5 + T) + 2 * 5 * T * D
    encode = ATTENTION + 2 * T * D * 20
    decode = 4 * 5 * D * D + 2 * 5 * 5 * D + cross + 2 * 5 * D * 20
    assert counts(network, (rand(T, D), rand(5, D))) == [2 * (encode + decode)] * 3


def test_table_cost_and_trace_are_one_number():
    from dnat.lab.runs import sized

    network, example = dnat.build("resnet8"), torch.zeros(2, 3, 32, 32)
    assert counts(network, example)[:2] == [sized("resnet8", {}).madds] * 2


@pytest.fixture
def library():
    made = torch.library.Library("dnat_test", "DEF")
    made.define("cube(Tensor x) -> Tensor")
    made.impl("cube", lambda x: x @ x @ x, "CPU")
    yield torch.ops.dnat_test.cube
    made._destroy()


NAMED = {
    "fft": (lambda x: torch.fft.rfft2(x).abs(), "aten::_fft_r2c"),
    "solve": (lambda x: torch.linalg.solve(x, x), "aten::_linalg_solve_ex"),
    "cdist": (lambda x: torch.cdist(x, x), "aten::_cdist_forward"),
    "inverse": (torch.linalg.inv, "aten::linalg_inv_ex"),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_multiplies_and_is_not_known_is_named(name):
    function, operator = NAMED[name]
    with pytest.warns(UserWarning, match=f"not among the multiply-adds.*{operator}"):
        found = dnat.cost(Of(function), rand(6, 6))
    assert found.uncounted == (operator,)
    assert operator in str(found)
    assert operator in repr(found)
    with pytest.warns(UserWarning, match=operator):
        assert dnat.trace(Of(function), rand(6, 6)).traces[0].uncounted == (operator,)


def test_operators_of_ones_own_are_named_until_torch_is_told(library):
    network, example = Of(lambda m, x: m(torch.ops.dnat_test.cube(x)), nn.Linear(6, 5)), rand(6, 6)
    with pytest.warns(UserWarning, match="dnat_test::cube"):
        assert dnat.cost(network, example) == dnat.Cost(35, 180, ("dnat_test::cube",))
    try:
        register_flop_formula(library)(lambda shape, **_: 2 * 2 * math.prod(shape) * shape[-1])
        assert dnat.cost(network, example) == dnat.Cost(35, 180 + 2 * 216)
    finally:
        flop_registry.pop(library)


def test_a_cost_reads_as_before():
    assert repr(dnat.Cost(55, 50)) == "Cost(params=55, madds=50)"
    assert dnat.Cost(params=55, madds=50) == dnat.Cost(55, 50)


class Output(dict):
    """As transformers' networks answer: a dictionary that can be a tuple."""

    def to_tuple(self):
        return tuple(self.values())


CERTAIN = {
    "a dictionary": (Of(lambda m, x: {"a": m(x), "b": [x]}, nn.Linear(6, 5)), rand(6), 30),
    "an output of transformers": (Of(lambda m, x: Output(a=m(x), b=x), nn.Linear(6, 5)), rand(6), 30),
    "with a loss": (Of(lambda m, x: (m(x), x.mean()), nn.Linear(6, 5)), rand(6), 30),
    "only a loss, of two": (Of(lambda m, x, y: (m(x) - y).mean(), nn.Linear(6, 5)), (rand(6), rand(5)), 30),
    "after a mask": (Of(lambda m, mask, x: m(x), nn.Linear(6, 5)), (torch.ones(4, 4), rand(6)), 30),
    "after a time step": (Of(lambda m, t, x: m(x) * t, nn.Linear(6, 5)), (torch.ones(1), rand(6)), 30),
    "time first, as the layers say": (nn.LSTM(D, H), torch.randn(T, 2, D), recurrent(nn.LSTM)),
    "attention, time first": (
        Of(lambda m, x: m(x, x, x)[0], nn.MultiheadAttention(D, 3)),
        torch.randn(T, 2, D),
        ATTENTION,
    ),
    "one image": (Of(lambda m, x: m(x)[0], nn.Linear(6, 5)), torch.zeros(1, 6), 30),
}


@pytest.mark.parametrize("name", CERTAIN)
def test_batches_that_are_certain(name):
    network, example, by_hand = CERTAIN[name]
    assert counts(network, example) == [by_hand] * 3


CONVOLUTIONS = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))
UNCERTAIN = {
    "no batch": (nn.Conv2d(3, 4, 3), torch.randn(3, 8, 8), 1, 36 * 4 * 27),
    "no batch, the same channels": (CONVOLUTIONS, torch.randn(3, 8, 8), 1, 64 * 2 * 108),
    "one row": (nn.Linear(5, 5), torch.randn(5), 1, 25),
    "one sequence": (nn.TransformerEncoderLayer(D, 3, 20), torch.randn(T, D), 1, ATTENTION + 2 * T * D * 20),
    "only a loss": (Of(lambda m, x: m(x).mean(), nn.Linear(6, 5)), rand(6), 2, 30),
    "rows that are gathered": (Of(lambda m, x: m(x).flatten(), nn.Linear(6, 5)), rand(6), 2, 30),
    "outputs that differ": (Of(lambda m, x: (m(x), m.weight), nn.Linear(6, 5)), rand(6), 2, 30),
    "a list of images": (
        Of(lambda m, x: [m(i[None])[0] for i in x], nn.Conv2d(3, 4, 3)),
        ([*rand(3, 8, 8)],),
        2,
        36 * 4 * 27,
    ),
}


@pytest.mark.parametrize("name", UNCERTAIN)
def test_batches_that_must_be_told(name):
    """The whole example is counted, and that is said."""
    network, example, batch, by_hand = UNCERTAIN[name]
    with pytest.warns(UserWarning, match=r"how many images .*not certain \(inputs .*batch="):
        assert dnat.cost(network, example).madds == batch * by_hand
    with pytest.warns(UserWarning, match="batch="):
        assert [t.batch for t in dnat.trace(network, example).traces] == [1, 1]
    assert counts(network, example, batch=batch) == [by_hand] * 3


def test_the_warning_names_the_shapes():
    with pytest.warns(UserWarning, match=r"inputs \(3, 8, 8\); outputs \(4, 6, 6\)"):
        dnat.cost(nn.Conv2d(3, 4, 3), torch.randn(3, 8, 8))


@pytest.mark.parametrize("batch", [0, -1, 1.0, True, "2"])
def test_batches_that_are_none(batch):
    for count in (dnat.cost, dnat.trace):
        with pytest.raises(ValueError, match="batch must be a whole number"):
            count(nn.Linear(2, 2), torch.ones(2, 2), batch=batch)


def test_edges_and_budgets_are_of_one_image():
    class Gathering(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.branch = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            x = self.first(x)
            return (x + self.branch(x)).flatten()

    from dnat.budget import Costs

    edges = dnat.find_edges(dnat.trace(Gathering(), rand(3, 8, 8), batch=2))
    assert {e.key: e.madds for e in edges} == {"branch": 64 * 4 * 36}
    costs = Costs(edges)
    assert costs.total == dnat.cost(Gathering(), rand(3, 8, 8), batch=2).madds == 64 * 4 * (27 + 36)
    assert costs.of({edges[0]: "none"}) == 64 * 4 * 27


def test_counting_leaves_torch_as_it_was():
    torch.backends.mha.set_fastpath_enabled(True)
    network = nn.TransformerEncoderLayer(D, 2, 20, batch_first=True).eval()
    x = rand(T, D)
    with torch.no_grad():
        before = network(x)
        dnat.cost(network, x)
        dnat.trace(network, x)
        assert torch.equal(before, network(x))
    assert torch.backends.mha.get_fastpath_enabled()
