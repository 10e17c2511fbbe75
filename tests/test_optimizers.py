"""Optimizers against torch's own, averages against slow twins, and states that go on in a smaller network."""

import copy

import pytest
import torch
from reference import images, small
from torch import nn
from torch.nn.functional import cross_entropy

import dnat
from dnat.narrowing import by_weights, cut, slices, staying
from dnat.optimizers import EMA, carried_state, optimizer_of
from dnat.rewriting import submodule

KINDS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    "plain": lambda p: torch.optim.SGD(p, 0.05),
    "adam": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
}


def step(network, optimizer, gradients=None):
    optimizer.zero_grad()
    if gradients is None:
        cross_entropy(network(images()), torch.tensor([0, 1, 2, 3])).backward()
    for name, parameter in network.named_parameters():
        if gradients is not None:
            parameter.grad = gradients[name].clone()
    optimizer.step()


def narrowed_pair():
    """A network, the same with half of the channels of one width, and how tensors are cut."""
    network = small("residual").train()
    edges = dnat.find_edges(dnat.trace(network, images()), "width")
    edge = next(e for e in edges if e.place)
    choice = edge.choices[-1]
    compact = dnat.discretize(network, {edge.key: choice}, images())
    rows = slices(edge, staying(edge, choice, by_weights(network, [edge])[edge.key]))
    assert rows
    return network, compact.train(), lambda name, tensor: cut(tensor, *rows[name]) if name in rows else tensor


@pytest.mark.parametrize("kind", KINDS)
def test_kept_parameters_go_on_with_equal_state(kind):
    """A step of the large network, cut afterwards, is to the bit one of the small: steps are elementwise."""
    network, compact, cutting = narrowed_pair()
    old = KINDS[kind](network.parameters())
    step(network, old)
    step(network, old)
    with torch.no_grad():  # what the compact network would hold now
        for name, parameter in compact.named_parameters():
            parameter.copy_(cutting(name, dict(network.named_parameters())[name]))
    new = KINDS[kind](compact.parameters())
    carried_state(old.state, network, new, compact, cutting)
    gradients = {name: torch.randn_like(p) for name, p in network.named_parameters()}
    step(network, old, gradients)
    step(compact, new, {name: cutting(name, gradient) for name, gradient in gradients.items()})
    changed = 0
    large = dict(network.named_parameters())
    for name, parameter in compact.named_parameters():
        changed += parameter.shape != large[name].shape
        assert torch.equal(parameter, cutting(name, large[name])), name
        for key, value in new.state[parameter].items():
            before = old.state[large[name]][key]
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, cutting(name, before) if value.dim() else before)
    assert changed
    tensors = [{id(v) for s in o.state.values() for v in s.values() if torch.is_tensor(v)} for o in (old, new)]
    assert not tensors[0] & tensors[1]


def test_what_is_new_or_not_of_the_shape_begins_anew():
    old, new = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), nn.Sequential(nn.Linear(3, 4), nn.Linear(2, 2))
    new.add_module("more", nn.Linear(2, 2))
    first, second = torch.optim.Adafactor(old.parameters()), torch.optim.Adafactor(new.parameters())
    old(torch.ones(1, 3)).sum().backward()
    first.step()
    carried_state(first.state, old, second, new, lambda name, tensor: tensor)
    named = dict(new.named_parameters())
    assert {name for name, p in named.items() if second.state.get(p)} == {"0.weight", "0.bias", "1.bias"}
    factor = second.state[named["0.weight"]]["row_var"]
    assert torch.equal(factor, first.state[old[0].weight]["row_var"])
    third = torch.optim.Adafactor([new[0].weight])
    carried_state(first.state, old, third, new, lambda name, tensor: tensor)
    assert set(third.state) == {new[0].weight}


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_optimizers_are_torchs(kind):
    one, two = small("residual").train(), small("residual").train()
    ours = optimizer_of(kind, one.parameters(), 0.05, 0.8, 0.01)
    if kind == "sgd":
        theirs = torch.optim.SGD(two.parameters(), lr=0.05, momentum=0.8, weight_decay=0.01)
        assert len(ours.param_groups) == 1
    else:
        still = [p for n, p in two.named_parameters() if n.endswith("bias") or p.dim() == 1]
        decaying = [p for p in two.parameters() if all(p is not s for s in still)]
        groups = [{"params": decaying}, {"params": still, "weight_decay": 0}]
        theirs = torch.optim.AdamW(groups, lr=0.05, betas=(0.8, 0.999), weight_decay=0.01)
        assert still
        assert decaying
    for _ in range(3):
        step(one, ours)
        step(two, theirs)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_an_optimizer_that_is_not_known():
    with pytest.raises(ValueError, match="unknown optimizer 'adam'; did you mean 'adamw'"):
        optimizer_of("adam", nn.Linear(1, 1).parameters(), 0.1, 0.9, 0)
    with pytest.raises(ValueError, match="no parameters to train"):
        optimizer_of("sgd", [], 0.1, 0.9, 0)


def test_the_average_is_what_its_formula_says():
    network, decay = small("residual").train(), 0.3
    average = EMA(network, decay)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    twin = {k: v.double() for k, v in network.state_dict().items() if v.is_floating_point()}
    for t in range(6):
        step(network, optimizer)
        average.update(network)
        d = min(decay, (1 + t) / (10 + t))
        twin = {k: d * e + (1 - d) * network.state_dict()[k].double() for k, e in twin.items()}
    assert decay < 7 / 15  # both of the two were the smaller one
    assert any("running_mean" in name for name in twin)
    assert set(average.tensors) == set(twin)
    for name, tensor in average.tensors.items():
        torch.testing.assert_close(tensor.double(), twin[name], rtol=1e-5, atol=1e-6)


def test_averages_are_swapped_in_and_out_and_kept():
    network = small("residual").train()
    average = EMA(network, 0.9)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    step(network, optimizer)
    average.update(network)
    kept = copy.deepcopy(average.state_dict())
    own = copy.deepcopy(network.state_dict())

    def look():
        with average.swapped(network):
            inside = network.state_dict()
            assert all(torch.equal(inside[k], v) for k, v in average.tensors.items())
            assert any(not torch.equal(inside[k], own[k]) for k in average.tensors)
            raise KeyError

    with pytest.raises(KeyError):
        look()
    assert all(torch.equal(v, own[k]) for k, v in network.state_dict().items())
    step(network, optimizer)
    average.update(network)
    other = EMA(small("residual"), 0.5)
    other.load_state_dict(kept)
    other.update(network)
    assert (other.updates, other.decay) == (2, 0.9)
    assert all(torch.equal(v, other.tensors[k]) for k, v in average.tensors.items())
    assert kept["updates"] == 1
    with pytest.raises(ValueError, match="another network"):
        EMA(nn.Linear(1, 1), 0.5).load_state_dict(kept)
    with pytest.raises(ValueError, match=r"0 to below 1, not 1\.0"):
        EMA(network, 1.0)


def test_averages_go_on_in_a_narrower_network():
    network, compact, cutting = narrowed_pair()
    average = EMA(network, 0.9)
    step(network, torch.optim.SGD(network.parameters(), 0.5))
    average.update(network)
    made = average.carried(compact, cutting)
    assert made.updates == 1
    assert {k: t.shape for k, t in made.tensors.items()} == {
        k: t.shape for k, t in compact.state_dict().items() if t.is_floating_point()
    }
    for name, tensor in made.tensors.items():
        assert torch.equal(tensor, cutting(name, average.tensors[name])), name
    compact.add_module("more", nn.Linear(2, 2))
    more = average.carried(compact, cutting)
    assert torch.equal(more.tensors["more.weight"], submodule(compact, "more").weight)
    more.update(compact)
