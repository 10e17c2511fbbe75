"""Forwards as people write them: sizes that are unpacked, wrapped forwards, tuples and keywords handed on."""

import copy
import functools

import pytest
import torch
from torch import nn

import dnat
from dnat.budget import Costs


def wrapped(forward):
    """As transformers wraps its forwards: the wrapper's own code knows none of the arguments' names."""

    @functools.wraps(forward)
    def wrapper(self, *args, **kwargs):
        kwargs.pop("return_dict", None)
        return forward(self, *args, **kwargs)

    return wrapper


class SelfAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x, positions, mask=None):
        *sizes, _ = x.shape
        shape = (*sizes, self.heads, -1)
        cos, sin = positions
        q, k, v = (part(x).view(shape).transpose(1, 2) for part in (self.query, self.key, self.value))
        q = q * cos + q.flip(-1) * sin
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out.transpose(1, 2).reshape(*sizes, -1), None


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.self = SelfAttention(width, heads)  # a module that is called self, as BERT has it
        self.output = nn.Linear(width, width)

    @wrapped
    def forward(self, x, positions=None, *, mask=None, **further):
        attended, weights = self.self(x, positions, mask)
        return self.output(attended), weights


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attention = Attention(width, heads)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    @wrapped
    def forward(self, x, positions, mask=None, **further):
        y, _ = self.attention(self.norm1(x), positions, mask=mask, **further)
        x = x + y
        return x + self.down(torch.relu(self.up(self.norm2(x))))


class Model(nn.Module):
    def __init__(self, width=16, heads=4, layers=3):
        super().__init__()
        self.embedding = nn.Embedding(30, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.head = nn.Linear(width, 5)

    def forward(self, ids, mask=None):
        x = self.embedding(ids)
        steps = torch.arange(ids.shape[1], dtype=x.dtype)[:, None] / 10
        positions = (steps.cos(), steps.sin())
        for layer in self.layers:
            x = layer(x, positions, mask=mask, flash=False, return_dict=True)
        return self.head(x.mean(1))


def ids(batch=2, length=7):
    return torch.randint(0, 30, (batch, length), generator=torch.Generator().manual_seed(batch * length))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Model().eval()


def test_a_budget_is_kept_by_the_network_that_comes_out(model):
    edges = dnat.find_edges(dnat.trace(model, ids()))
    assert {f"layers.{i}.{e}" for i in range(3) for e in ("attention", "down")} <= {
        e.key for e in edges if "none" in e.choices
    }
    relaxed = dnat.relax(model, edges)
    before = dnat.cost(model, ids()).madds
    for budget in (0.9, 0.7, 0.5, 0.3):
        choices = dnat.select(relaxed, budget=budget)
        assert dnat.cost(dnat.discretize(model, choices, ids()), ids()).madds <= budget * before


def test_attention_goes_with_all_that_feeds_it_and_at_any_length(model):
    choices = {"layers.0.attention": "none", "layers.2.down": "none"}
    compact = dnat.discretize(model, choices, ids()).eval()
    names = {name for name, _ in compact.named_modules()}
    assert not any(name.startswith(("layers.0.attention", "layers.2.up", "layers.0.norm1")) for name in names)
    relaxed = dnat.relax(model, dnat.find_edges(dnat.trace(model, ids()))).eval()
    relaxed.set_one_hot(choices)
    for batch, length in ((2, 7), (1, 3), (5, 11)):
        assert torch.allclose(compact(ids(batch, length)), relaxed(ids(batch, length)), rtol=1e-5, atol=1e-6)


def test_what_was_fixed_when_the_network_was_transformed_may_not_be_given_otherwise(model):
    compact = dnat.discretize(model, {"layers.0.attention": "none"}, ids())
    layer, x = compact.layers[0], torch.randn(2, 7, 16)
    positions = (torch.ones(7, 1), torch.zeros(7, 1))
    assert layer(x, positions, mask=None, flash=False, return_dict=True).shape == x.shape
    with pytest.raises(AssertionError, match="mask was None when the network was transformed"):
        layer(x, positions, mask=torch.zeros(7, 7), flash=False, return_dict=True)
    with pytest.raises(AssertionError, match=r"further\['flash'\] was False"):
        layer(x, positions, mask=None, flash=True, return_dict=True)


small = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
tokens = {"vocab_size": 99, **small}
HUGGING_FACE = {
    "Bert": ("ForSequenceClassification", tokens),
    "Roberta": ("ForSequenceClassification", tokens | {"max_position_embeddings": 40}),
    "DistilBert": (
        "ForSequenceClassification",
        {"vocab_size": 99, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64},
    ),
    "GPT2": (
        "LMHeadModel",
        {"vocab_size": 99, "n_embd": 32, "n_layer": 4, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0},
    ),
    "Llama": ("ForCausalLM", tokens | {"num_key_value_heads": 4}),
    "T5": (
        "ForConditionalGeneration",
        {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
    ),
    "ViT": ("ForImageClassification", small | {"image_size": 32, "patch_size": 8}),
    "Swin": (
        "ForImageClassification",
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
    ),
    "Wav2Vec2": (
        "ForSequenceClassification",
        small
        | {"vocab_size": 32, "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3)}
        | {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16},
    ),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", HUGGING_FACE)
def test_networks_of_transformers_keep_a_budget(family):
    from dnat.networks.torchvision import import_torchvision

    import_torchvision()  # transformers wants it, and it must find its operators
    transformers = pytest.importorskip("transformers")
    kind, options = HUGGING_FACE[family]
    torch.manual_seed(0)
    network = getattr(transformers, family + kind)(getattr(transformers, f"{family}Config")(**options)).eval()
    example = {"input_ids": ids(2, 12)}
    if family in ("ViT", "Swin"):
        example = {"pixel_values": torch.randn(2, 3, 32, 32)}
    elif family == "Wav2Vec2":
        example = {"input_values": torch.randn(2, 800)}
    elif family == "T5":
        example |= {"decoder_input_ids": ids(2, 12)}
    relaxed = dnat.relax(network, dnat.find_edges(dnat.trace(network, example)))
    choices = dnat.select(relaxed, budget=0.7)
    compact = dnat.discretize(network, choices, example)
    assert dnat.cost(compact, example).madds <= 0.7 * dnat.cost(network, example).madds


def test_an_identity_inside_of_another_is_tried_by_itself():
    """The block needs its convolution's weight; where the block is an identity, nobody does."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.two(torch.relu(self.one(x))) * self.one.weight.mean()

    network = nn.Sequential(nn.Conv2d(3, 4, 1), Block(), nn.Conv2d(4, 5, 1))
    program = dnat.trace(network, torch.randn(2, 3, 8, 8))
    edges = {e.key: e for e in dnat.find_edges(program, everything=True)}
    assert {k: e.choices for k, e in edges.items() if k.startswith("1")} == {
        "1": ("original", "identity"),
        "1.one": ("original",),
        "1.two": ("original", "identity"),
    }
    assert "other code needs what it has" in dict(edges["1.one"].refused)["identity"]


class Telling(nn.Module):
    """A block that gives its attention weights, too, which nobody reads."""

    def __init__(self, width=8):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.mlp = nn.Linear(width, width)

    def forward(self, x):
        weights = torch.softmax(self.query(x) @ self.key(x).transpose(1, 2), -1)
        return x + self.out(weights @ self.value(x)) + self.mlp(x), weights


class Told(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.blocks = nn.Embedding(30, 8), nn.ModuleList(Telling() for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.embedding(x)
        for block in self.blocks:
            x, _ = block(x)
        return self.head(x.mean(1))


def test_what_is_given_and_never_read_goes_with_what_it_was_made_for():
    network = Told()
    edges = dnat.find_edges(dnat.trace(network, ids()))
    costs = Costs(edges)
    before = dnat.cost(network, ids()).madds
    for edge in edges:
        if "none" in edge.choices:
            made = dnat.discretize(network, {edge.key: "none"}, ids())
            assert before - dnat.cost(made, ids()).madds == costs.total - costs.of({edge: "none"}), edge.key
    # It stays where it costs nothing beside.
    made = dnat.discretize(network, {"blocks.0.mlp": "none"}, ids())
    assert made.blocks[0](torch.randn(2, 7, 8))[1].shape == (2, 7, 7)
    made = dnat.discretize(network, {"blocks.0.out": "none"}, ids())
    assert made.blocks[0](torch.randn(2, 7, 8))[1] is None


def hooked(hook):
    network = nn.Sequential(Twice(), nn.Flatten(), nn.Linear(3 * 64, 5))
    network[0].register_forward_hook(hook)
    return network


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        x = x + self.one(x)
        return x + self.two(x)


@pytest.mark.parametrize("hook", [lambda m, args, out: None, lambda m, args, out: 2 * out])
def test_a_module_with_hooks_is_left_as_it_is(hook):
    edges = dnat.find_edges(dnat.trace(hooked(hook), torch.randn(2, 3, 8, 8)), everything=True)
    assert {e.key: dict(e.refused).get("none") for e in edges if e.key.startswith("0.")} == {
        "0.one": "0 has hooks",
        "0.two": "0 has hooks",
    }


def test_a_mask_that_decides_is_guarded():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x, mask):
            if not mask.all():
                x = x * mask[..., None]
            return x + self.down(torch.relu(self.up(x)))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.masked, self.head = nn.Embedding(30, 8), Masked(), nn.Linear(8, 3)

        def forward(self, x, mask):
            return self.head(self.masked(self.embedding(x), mask))

    example = (ids(), torch.ones(2, 7, dtype=torch.bool))
    made = dnat.discretize(Model(), {"masked.down": "none"}, example)
    assert not list(made.masked.children())
    made(*example)
    with pytest.raises(AssertionError, match="other masks"):
        made(ids(), torch.zeros(2, 7, dtype=torch.bool))


def test_what_is_given_twice_may_be_two_things_another_time():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.branch = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x, y):
            return self.one(x) + self.two(y) + self.branch(y)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.both, self.head = Both(), nn.Conv2d(3, 5, 1)

        def forward(self, x):
            return self.head(self.both(x, x))

    network = Outer()
    made = dnat.discretize(network, {"both.branch": "none"}, torch.randn(2, 3, 8, 8))
    x, y = torch.randn(2, 2, 3, 8, 8)
    assert torch.equal(made.both(x, y), network.both.one(x) + network.both.two(y))


class Sized(nn.Module):
    """A branch in a forward that asks for sizes."""

    def __init__(self, way):
        super().__init__()
        self.way, self.branch = way, nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.way(x) + self.branch(x)


@pytest.mark.parametrize(
    ("way", "why"),
    [
        (lambda x: x.view(len(x), -1).view(x.shape), None),
        (lambda x: x.reshape(x.shape[0], x.shape[1], -1).view_as(x), None),
        (lambda x: x * 1.0 if int(x.shape[0]) else x, "the batch decides"),
        (lambda x: sum(x[i].mean() for i in range(x.shape[0])) + x, "the batch decides"),
        (lambda x: sum(x[..., i : i + 1] for i in range(x.shape[-1])) + x, "sizes decide"),
    ],
)
def test_what_sizes_decide_is_not_fixed_to_the_example(way, why):
    network = nn.Sequential(Sized(way), nn.Conv2d(3, 5, 1))
    example = torch.randn(2, 3, 8, 8)
    edges = {e.key: e for e in dnat.find_edges(dnat.trace(network, example), everything=True)}
    if why:
        assert why in dict(edges["0.branch"].refused)["none"]
        return
    made = dnat.discretize(network, {"0.branch": "none"}, example)
    relaxed = dnat.relax(network, [edges["0.branch"]])
    relaxed.set_one_hot({"0.branch": "none"})
    for batch, size in ((1, 8), (5, 12)):
        x = torch.randn(batch, 3, size, size)
        assert torch.equal(made.eval()(x), relaxed.eval()(x))


def test_a_branch_that_cannot_go_keeps_no_other_from_going():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.sized, self.plain = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            y, z = self.plain(x), self.sized(x)
            return x + y + z.view(z.shape)

    network = nn.Sequential(Both(), nn.Conv2d(3, 5, 1))
    told = dnat.discretize(network, {"0.sized": "none", "0.plain": "none"}, torch.randn(2, 3, 8, 8), report=True)
    assert set(told.undone) == {"0.sized"}
    assert told.choices["0.plain"] == "none"
    assert [name for name, _ in told.network[0].named_children()] == ["sized"]


# --- activations in place


class InPlace(nn.Module):
    """Activations in place, of which the second may not be once `conv` is an identity: its input is `x` then."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu, self.last = nn.ReLU(inplace=True), nn.ReLU(inplace=True)
        self.other = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x)
        x = self.last(x + self.other(self.relu(self.norm(self.conv(x)))))
        return self.head(x.mean((2, 3)))


def test_activations_write_in_place_again_where_nobody_else_reads():
    torch.manual_seed(0)
    network, x = InPlace(), torch.randn(4, 3, 8, 8)
    found = {}
    for choice in ("identity", "none"):
        key = {"identity": "conv>norm", "none": "other.0>other.1"}[choice]
        compact = dnat.discretize(network, {key: choice}, x)
        found[choice] = {name for name, m in compact.named_modules() if getattr(m, "inplace", False)}
        twin = copy.deepcopy(compact)
        for module in twin.modules():
            if hasattr(module, "inplace"):
                module.inplace = False
        for part in (compact, twin):
            part.train()(x).square().sum().backward()
        assert torch.equal(compact(x), twin(x))
        for p, q in zip(compact.parameters(), twin.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad)
    assert found["identity"] == {"stem.2", "last"}  # `relu` would write into what the sum reads, too
    assert found["none"] == {"stem.2"}  # `last` would write into what nothing but a ReLU made
