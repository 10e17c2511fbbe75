import copy
import random

import pytest
import torch
from reference import SMALL, images, small
from torch import nn

import dnat
from dnat.tracing import State, change_of, changed_states, copied, losses


@pytest.mark.parametrize("name", SMALL)
def test_tracing_leaves_everything_as_it_was(name):
    network = small(name).train()
    before, rng = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    program = dnat.trace(network, images())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), network.state_dict().values(), strict=True))
    assert torch.equal(rng, torch.get_rng_state())
    assert all(m.training for m in network.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert [t.training for t in program.traces] == [False, True]


def test_traces_are_equal_where_the_networks_do_the_same():
    one, other, third = (dnat.trace(small(n), images()) for n in ("residual", "residual", "two branches"))
    assert one == other != third


def test_multiply_adds_are_those_of_the_layers():
    network, x = small("residual"), images()
    trace = dnat.trace(network, x).traces[0]
    by_hand = 8 * 8 * (3 * 4 * 9 + 4 * 4 * 9 + 4 * 4) + 4 * 5
    assert sum(op.madds for op in trace.operations) == by_hand * len(x)


def test_in_place_writes_reach_every_view():
    class Views(nn.Module):
        def forward(self, x):
            y = x.clone()
            half = y[:, :2]
            half.zero_()
            half += 1
            return y

    trace = dnat.trace(Views(), images()).traces[0]
    # The output is the value that y has after the writes, not the one that clone made.
    made_by = trace.operations[trace.values[trace.outputs[0]].producer]
    assert made_by.name == "alias_update"


def test_zero_is_followed_through_a_network():
    trace = dnat.trace(small("residual"), images()).traces[0]
    out = {c.path: c.outputs[0] for c in trace.calls if c.path}
    assert trace.propagate()[trace.outputs[0]] is State.DATA
    assert not losses(trace, {out["conv2"]})  # the sum loses an operand
    assert losses(trace, {out["norm1"]})  # conv2 has a bias: a constant would be left
    assert losses(trace, {out["stem_norm"]})  # nothing would be left


def test_calls_with_keywords_dicts_and_several_examples():
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, a, *, b):
            return {"sum": self.fc(a) + b}

    x = torch.ones(2, 3)
    program = dnat.trace(Keywords(), [{"a": x, "b": x}, {"a": x[:1], "b": x[:1]}])
    assert len(program.traces) == 4
    assert all(len(t.outputs) == 1 and len(t.inputs) == 2 for t in program.traces)


def test_the_fingerprint_is_stable_and_tells_networks_apart():
    prints = [dnat.trace(small(n), images()).fingerprint for n in ("residual", "residual", "two branches")]
    assert prints[0] == prints[1] != prints[2]
    # A known value: the fingerprint must be the same in every process and on every day.
    assert dnat.trace(nn.Linear(2, 2), torch.ones(1, 2)).fingerprint == "6faa8afe112197ea"


@pytest.mark.parametrize(
    ("network", "example", "error", "words"),
    [
        (42, torch.ones(1), TypeError, "must be a torch.nn.Module, not int"),
        (nn.Linear(2, 2), [], TypeError, "the example is empty"),
        (nn.Linear(2, 2), 3.0, TypeError, "must be a tensor, a tuple, a dict"),
        (
            nn.Linear(2, 2),
            torch.ones(1, 3),
            ValueError,
            r"Linear's forward failed on the example of shape \[\(1, 3\)\]",
        ),
        (nn.LazyLinear(2), torch.ones(1, 3), ValueError, "not initialized yet"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_errors_say_what_was_wrong(network, example, error, words):
    with pytest.raises(error, match=words):
        dnat.trace(network, example)


def test_one_image_is_doubled_where_batch_norm_needs_two():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    assert [t.batch for t in dnat.trace(network, images(1)).traces] == [1, 2]


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_no_hook_stays_behind():
    """Not on all modules either, where a scripted one needs that: torch.compile would warn of it."""
    network = nn.Sequential(nn.Linear(3, 3), torch.jit.trace(nn.Linear(3, 3), torch.rand(2, 3)))
    dnat.trace(network, torch.rand(2, 3))
    assert not torch.nn.modules.module._has_any_global_hook()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def _replacements(trace, draw):
    """Values that become zero, and values that become an earlier one, at random: legal or not."""
    values = range(len(trace.values))
    zero = draw.sample(values, draw.choice([0, 1, 1, 2, 5]))
    later = {*draw.sample(values[1:], draw.choice([0, 0, 1, 3])), *(v for v in trace.nulls if draw.random() < 0.3)}
    return set(zero), {value: draw.randrange(value) for value in sorted(later)}


@pytest.mark.parametrize("name", [*SMALL, "cells"])
def test_a_change_is_what_whole_passes_differ_in(name):
    network = dnat.build("darts_v2", layers=2, channels=4) if name == "cells" else small(name)
    draw = random.Random(name)
    for trace in dnat.trace(network, images()).traces:
        assert trace.states == trace.propagate()
        values, operations = trace.needed()
        sets = [_replacements(trace, draw) for _ in range(100)]
        for zero, same in [*sets, *(({value}, {}) for value in range(len(trace.values)))]:
            states, (read, live) = trace.propagate(zero, same), trace.needed(zero, same)
            change = change_of(trace, zero, same)
            different = {
                i: after
                for i, (before, after) in enumerate(zip(trace.states, states, strict=True))
                if before is not after
            }
            assert change.states == different == changed_states(trace, zero, same)
            assert change.values == {i: i in read for i in read ^ values}
            assert (change.dead, change.revived) == (operations - live, live - operations)
            last = draw.randrange(len(states))
            assert changed_states(trace, zero, same, last=last) == {
                i: s for i, s in different.items() if i <= last
            }


@pytest.mark.parametrize("name", SMALL)
def test_a_call_holds_the_operations_with_it_in_their_scope(name):
    for trace in dnat.trace(small(name), images()).traces:
        for call in range(len(trace.calls)):
            inside = [i for i, op in enumerate(trace.operations) if call in op.scope]
            assert [*trace.within(call)] == inside
            assert trace.live_within[call] == len(trace.needed()[1].intersection(inside))


def test_a_network_that_keeps_what_it_computed_can_be_copied():
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.cache = nn.Parameter(torch.ones(3)), {}

        def forward(self, x):
            self.cache["double"] = 2 * self.weight
            return x * self.cache["double"]

    network = Keeping()
    network(torch.ones(2, 3))
    twin = copied(network)
    assert torch.equal(twin.cache["double"], network.cache["double"])
    assert twin.weight is not network.weight
    assert dnat.trace(network, torch.ones(2, 3)).traces[0].operations
