import copy
import itertools
import math
import subprocess
import sys

import pytest
import torch
from reference import images, small
from torch import nn
from torch.nn.functional import cross_entropy

import dnat
from dnat.answers import scores
from dnat.budget import Costs
from dnat.data import steps_of
from dnat.relaxation import relax
from dnat.seeds import check_seed
from dnat.training import (
    ArchitectureLoss,
    NonFiniteError,
    Progress,
    Trainer,
    evaluate,
    frozen,
    frozen_statistics,
    images_last,
    learning_rate,
    usual_batch,
)


def tiny_data(n=24, size=8, classes=5):
    generator = torch.Generator().manual_seed(5)
    x = torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8)
    y = torch.arange(n) % classes
    return dnat.Data.from_tensors("tiny", (x, y), (x[:10], y[:10]))


def config(**options):
    defaults = {"epochs": 4, "architecture_epochs": 2, "batch_size": 8, "threads": 1, "lr_theta": 0.05}
    return dnat.Config(**(defaults | options))


def relaxed_trainer(name="residual", **options):
    network = small(name)
    c = config(**options)
    relaxed = relax(network, dnat.find_edges(dnat.trace(network, images())), gate=c.relaxation.gate)
    return Trainer(relaxed.train(), tiny_data(), c, Progress())


def test_one_joint_step_by_hand():
    """Weights first, then theta at the new weights, on the same batch: written out with plain torch."""
    trainer = relaxed_trainer(preset="paper", lr=0.1, lr_theta=0.01, grad_clip=0.0)
    twin = copy.deepcopy(trainer.network)
    next(twin.thetas()).requires_grad_(True)
    x, y = images(), torch.tensor([0, 1, 2, 3])
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.1
    trainer.step(x, y)

    weights, theta = list(twin.weights()), next(twin.thetas())
    for w, g in zip(weights, torch.autograd.grad(cross_entropy(twin(x), y), weights), strict=True):
        w.data -= 0.1 * (g + 3e-4 * w.data)  # first step of SGD: the momentum is the gradient
    buffers = {k: v.clone() for k, v in twin.named_buffers()}
    (g,) = torch.autograd.grad(cross_entropy(twin(x), y), theta)
    theta.data -= 0.01 * g / (g.abs() + 1e-8)  # first step of Adam: the sign
    for name, buffer in twin.named_buffers():
        buffer.copy_(buffers[name])
    for (name, ours), (_, theirs) in zip(
        trainer.network.state_dict().items(), twin.state_dict().items(), strict=True
    ):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("gate", ["raw", "sigmoid"])
def test_theta_gradient_of_a_joint_step_by_finite_differences(gate):
    trainer = relaxed_trainer(gate=gate, cost_weight=0.7, zero_one_weight=0.3)
    relaxed = trainer.network.double()
    trainer.stage.loss = ArchitectureLoss(relaxed, trainer.config.relaxation)
    relaxed.architecture.theta.data += torch.tensor([[0.0, 0.3, -0.2], [0.0, -0.1, 0.1]], dtype=torch.float64)
    x, y = images(dtype=torch.float64), torch.tensor([0, 1, 2, 3])

    def loss():
        with torch.no_grad(), frozen_statistics(relaxed):
            return (cross_entropy(relaxed(x), y) + trainer.stage.loss()).item()

    relaxed.zero_grad()
    trainer.stage.gradient(lambda net: cross_entropy(net(x), y))
    theta = next(relaxed.thetas())
    for i in range(theta.numel()):
        flat, eps = theta.data.view(-1), 1e-5
        value = flat[i].item()
        flat[i] = value + eps
        up = loss()
        flat[i] = value - eps
        down = loss()
        flat[i] = value
        assert theta.grad.view(-1)[i].item() == pytest.approx((up - down) / (2 * eps), rel=1e-4, abs=1e-8)


def test_the_theta_pass_touches_neither_weights_nor_statistics():
    trainer = relaxed_trainer()
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    trainer.network.zero_grad(set_to_none=True)
    trainer.stage.gradient(lambda net: cross_entropy(net(images()), torch.tensor([0, 1, 2, 3])))
    assert all(p.grad is None for p in trainer.network.weights())
    assert all(p.requires_grad for p in trainer.network.weights())
    assert all(torch.equal(before[k], v) for k, v in trainer.network.state_dict().items())
    assert next(trainer.network.thetas()).grad is not None


def test_a_single_pass_has_the_gradients_of_one_backward():
    trainer = relaxed_trainer(single_pass=True, grad_clip=0.0)
    twin = copy.deepcopy(trainer.network)
    next(twin.thetas()).requires_grad_(True)
    x, y = images(), torch.tensor([0, 1, 2, 3])
    loss = cross_entropy(twin(x), y) + ArchitectureLoss(twin, trainer.config.relaxation)()
    loss.backward()
    trainer.step(x, y)
    wanted = dict(twin.named_parameters())
    for name, parameter in trainer.network.named_parameters():
        assert torch.allclose(parameter.grad, wanted[name].grad, rtol=1e-5, atol=1e-8), name


def test_theta_has_no_weight_decay():
    trainer = relaxed_trainer(weight_decay=0.5)
    assert all(group["weight_decay"] == 0 for group in trainer.stage.optimizer.param_groups)
    shared = {id(p) for g in trainer.optimizer.param_groups for p in g["params"]}
    assert not shared & {id(p) for p in trainer.network.thetas()}


@pytest.mark.parametrize("name", ["residual", "sequential", "resnet8 with skips", "concatenating"])
def test_the_expected_cost_is_the_mean_over_all_choices(name):
    """Each group chooses by a softmax of its own; the mean is written out over all sets of choices."""
    trainer = relaxed_trainer(name, gate="sigmoid")
    relaxed = trainer.network
    if name == "resnet8 with skips":  # all edges together have too many sets to write out
        kinds = [[e for e in relaxed.edges if (e.kind == "skip") is skip] for skip in (True, False)]
        relaxed = relax(small(name), [*kinds[0][2:6], *kinds[1][1:4]], gate="sigmoid")
        trainer.stage.loss = ArchitectureLoss(relaxed, trainer.config.relaxation)
    relaxed.architecture.theta.data.uniform_(0, 1, generator=torch.Generator().manual_seed(5))
    gates = relaxed.architecture.gates().tolist()
    chances = []
    for edge, (_, identity, original) in zip(relaxed.edges, gates, strict=True):
        values = {"original": 0.5 if edge.kind == "skip" else original, "identity": identity, "none": 0.5}
        weights = {c: math.exp(values[c] / 0.25) for c in edge.choices}
        chances.append({c: w / sum(weights.values()) for c, w in weights.items()})
    costs = Costs(relaxed.edges)
    single = (costs.removed({e: c}) for e in relaxed.edges for c in e.choices)
    changeable = sum(costs.weights[i] for i in set().union(*single))
    wanted = 0.0
    for choices in itertools.product(*(e.choices for e in relaxed.edges)):
        chance = math.prod(p[c] for p, c in zip(chances, choices, strict=True))
        alone = [costs.removed({e: c}) for e, c in zip(relaxed.edges, choices, strict=True)]
        removed = sum(costs.weights[i] for i in set().union(*alone))
        added = sum(costs.added.get((e, c), 0) for e, c in zip(relaxed.edges, choices, strict=True))
        wanted += chance * (changeable - removed + added) / changeable
    assert trainer.stage.loss.expected_cost().item() == pytest.approx(wanted, rel=1e-5)


def test_with_a_limit_only_what_lies_above_it_is_charged():
    trainer = relaxed_trainer(cost_weight=2.0, zero_one_weight=0.0)
    relaxed = trainer.network
    costs = Costs(relaxed.edges)
    free = ArchitectureLoss(relaxed, trainer.config.relaxation, costs, costs.total)
    assert free().item() == 0.0
    half = costs.total - 0.5 * sum(costs.weights[i] for i in costs.removed({relaxed.edges[-1]: "none"}))
    charged = ArchitectureLoss(relaxed, trainer.config.relaxation, costs, half)
    assert charged().item() == pytest.approx(2.0 * (charged.expected_cost().item() - 0.5))


def test_one_cosine_over_both_stages():
    c = config(lr=0.4, epochs=10)
    rates = [learning_rate(c.training, step, 100) for step in range(101)]
    assert rates[0] == 0.4
    assert rates[50] == pytest.approx(0.2)
    assert rates[100] == pytest.approx(0.0)
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(("images_", "size", "steps"), [(24, 8, 3), (25, 8, 3), (26, 8, 4), (8, 8, 1), (3, 1, 3)])
def test_batches_of_an_epoch(images_, size, steps):
    assert steps_of(images_, size) == steps


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="batch_size 32 is larger than the 24 training images"):
        steps_of(24, 32)


def test_evaluation_is_exact_and_leaves_no_trace():
    network, data = small("residual"), tiny_data()
    network.conv1.eval()
    state = copy.deepcopy(network.state_dict())
    found = evaluate(network, data, batch_size=3)
    twin = copy.deepcopy(network).eval()
    output = twin(data.example(10))
    assert found.loss == pytest.approx(cross_entropy(output, data.test_labels).item(), rel=1e-5)
    assert found.accuracy == (output.argmax(1) == data.test_labels).double().mean().item()
    assert all(torch.equal(state[k], v) for k, v in network.state_dict().items())
    assert network.training
    assert not network.conv1.training


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_training(value):
    trainer = relaxed_trainer()
    trainer.network.network.head.bias.data[0] = value
    with pytest.raises(NonFiniteError, match=r"the loss is not finite any more \(epoch 1"):
        list(trainer.epoch())


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ({"a": 1}, "returns dict"),
        (torch.zeros(2, 3, 4), r"a tensor of shape \(2, 3, 4\)"),
        (None, "returns NoneType"),
    ],
)
def test_outputs_that_are_no_scores(output, words):
    with pytest.raises(TypeError, match=words):
        scores(output)


def test_a_frozen_network_is_refused():
    network = small("residual").requires_grad_(False)
    with pytest.raises(ValueError, match="Residual has no parameters to train"):
        Trainer(network, tiny_data(), config(), Progress())


def test_what_was_frozen_before_is_so_afterwards():
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    with frozen(layer.parameters()):
        assert not layer.weight.requires_grad
    assert layer.weight.requires_grad
    assert not layer.bias.requires_grad


def test_partly_frozen_weights_stay():
    network = small("residual")
    network.stem.requires_grad_(False)
    before = network.stem.weight.clone()
    trainer = Trainer(network, tiny_data(), config(), Progress())
    list(trainer.epoch())
    assert torch.equal(network.stem.weight, before)
    assert not network.stem.weight.requires_grad
    assert isinstance(network.head, nn.Linear)


def test_reductions_of_few_channels_do_not_end_the_process():
    """With channels last oneDNN writes past its memory in them; see `images_last`."""
    code = """if True:
        import dnat, dnat.lab.methods
        network = dnat.build("resnet8", seed=0, width=8, skips=True)
        data = dnat.load("digits", train_limit=100, test_limit=20)
        search = dnat.settings.Search(epochs=2, samples=1, batch_size=25)
        config = dnat.Config(epochs=3, architecture_epochs=2, batch_size=25, threads=2, settle=0, search=search)
        print(dnat.lab.methods.METHODS['nat'](network, data, config).dead)
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=200
    )
    assert done.stdout.strip() in ("True", "False"), (done.returncode, done.stderr[-500:])


@pytest.mark.parametrize(
    ("stride", "channels", "threads", "expected"),
    [(2, 15, 2, False), (2, 16, 2, True), (1, 8, 2, True), (2, 8, 1, False), (2, 16, 1, True)],
)
def test_images_lie_channels_last_where_it_is_safe(stride, channels, threads, expected):
    network = nn.Sequential(nn.Conv2d(channels, 4, 1, stride=stride))
    assert images_last(network, dnat.Config(threads=threads).machine, torch.device("cpu")) is expected
    assert not images_last(network, dnat.Config(threads=threads, channels_last=False).machine, torch.device("cpu"))
    assert images_last(network, dnat.Config(threads=threads).machine, torch.device("cuda"))


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64, 1.5, 1.0, "1", None, True])
def test_what_is_no_seed_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be an integer from 0 to 4294967295, not "):
        check_seed(seed)
    assert [check_seed(s) for s in (0, 2**32 - 1)] == [0, 2**32 - 1]


@pytest.mark.parametrize(
    ("size", "batch"),
    [((8, 8), 500), ((32, 32), 100), ((64, 64), 98), ((224, 224), 8), ((448, 224), 4), ((9999, 9999), 1)],
)
def test_the_batches_of_a_test_hold_about_as_many_pixels(size, batch):
    assert usual_batch(size) == batch
