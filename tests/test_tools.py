"""Relaxed and compact networks in the hands of torch's own tools."""

import copy
import io
import pickle

import pytest
import torch
from reference import images, small
from torch import distributed, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import dnat

NAMES = ["residual", "in place", "shared", "data dependent", "resnet8 with skips"]


def relaxed(name):
    """A relaxed network whose theta is nothing special."""
    network = small(name)
    made = dnat.relax(network, dnat.find_edges(dnat.trace(network, images())), gate="sigmoid")
    with torch.no_grad():
        made.architecture.theta.uniform_(0.1, 0.9, generator=torch.Generator().manual_seed(5))
    return made


def compact(name):
    """A compact network: every second edge is changed, if that can be."""
    network = small(name)
    choices = {}
    for edge in dnat.find_edges(dnat.trace(network, images()))[::2]:
        choices[edge.key] = edge.choices[-1]
    try:
        return dnat.discretize(network, choices, images())
    except ValueError:  # not together
        return dnat.discretize(network, dict(list(choices.items())[:1]), images())


def step(network, x):
    """Output, and gradients of every parameter."""
    network.zero_grad()
    out = network(x)
    out.square().sum().backward()
    return [out.detach(), *(p.grad for p in network.parameters())]


def agree(some, others):
    assert len(some) == len(others)
    for a, b in zip(some, others, strict=True):
        assert (a is None and b is None) or torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.fixture(params=[relaxed, compact], ids=["relaxed", "compact"])
def make(request):
    return request.param


@pytest.mark.parametrize("name", NAMES)
def test_copies_are_the_same_and_apart(make, name):
    network = make(name).train()
    expected = step(copy.deepcopy(network), images())
    stored = io.BytesIO()
    torch.save(network, stored)
    stored.seek(0)
    twins = [
        copy.deepcopy(network),
        pickle.loads(pickle.dumps(network)),
        torch.load(stored, weights_only=False),
        copy.deepcopy(pickle.loads(pickle.dumps(network))),
    ]
    before = {k: v.clone() for k, v in network.state_dict().items()}
    for twin in twins:
        assert twin.state_dict().keys() == network.state_dict().keys()
        agree(step(twin, images()), expected)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(1)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    agree(step(network, images()), expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_has_a_theta_of_its_own(name):
    network = relaxed(name).eval()
    twin = copy.deepcopy(network)
    with torch.no_grad():
        twin.architecture.theta.fill_(0.5)
    assert not torch.equal(twin(images()), network(images()))


@pytest.mark.parametrize("name", NAMES)
def test_weights_can_be_handed_to_a_call(make, name):
    network = make(name).eval()
    moved = {k: v + 0.1 for k, v in network.named_parameters()}
    twin = copy.deepcopy(network)
    out = torch.func.functional_call(network, moved | dict(network.named_buffers()), (images(),))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    agree([out], [twin(images())])


@pytest.mark.parametrize("name", NAMES)
def test_autocast_trains(make, name):
    network = make(name).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(images())
    out.float().square().mean().backward()
    assert all(
        p.grad is None or (p.grad.dtype == p.dtype and p.grad.isfinite().all()) for p in network.parameters()
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_compile_computes_the_same(make, name):
    network = make(name).train()
    expected = step(copy.deepcopy(network), images())
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(network), backend="aot_eager")
    agree(step(compiled, images()), expected)
    agree([compiled.eval()(images())], [_trained(network).eval()(images())])


def _trained(network):
    """The network after one forward in train mode, which moves the statistics of its norms."""
    twin = copy.deepcopy(network).train()
    twin(images())
    return twin


@pytest.fixture
def group(tmp_path):
    """A group of one process."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("name", NAMES)
def test_distributed_training_takes_the_same_step(make, name, group):
    results = []
    for wrap in (lambda m: m, nn.parallel.DistributedDataParallel):
        network = make(name).train()
        outer = wrap(network)
        optimizer = torch.optim.SGD(outer.parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            optimizer.zero_grad()
            outer(images()).square().mean().backward()
            optimizer.step()
        results.append(list(network.state_dict().values()))
    agree(*results)


@pytest.mark.parametrize("name", NAMES)
def test_averages_of_weights(make, name):
    network = make(name).train()
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    expected = None
    for _ in range(3):
        optimizer.zero_grad()
        network(images()).square().mean().backward()
        optimizer.step()
        average.update_parameters(network)
        now = [p.detach().clone() for p in network.parameters()]
        expected = now if expected is None else [a * 0.5 + b * 0.5 for a, b in zip(expected, now, strict=True)]
    agree(list(average.module.parameters()), expected)
    assert average.module.state_dict().keys() == network.state_dict().keys()
    torch.optim.swa_utils.update_bn([images()], average)
    again = AveragedModel(make(name), use_buffers=True)
    again.load_state_dict(average.state_dict())
    assert torch.equal(again.eval()(images()), average.eval()(images()))
