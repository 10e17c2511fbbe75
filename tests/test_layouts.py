"""Gradients keep the memory layout of their values; what is computed is what the obvious code computes."""

import warnings

import pytest
import torch
from torch import nn

from dnat.layouts import subsampled, with_dense_gradients
from dnat.networks.resnet import Shortcut
from dnat.operations import FactorizedReduce

LAYOUTS = (torch.contiguous_format, torch.channels_last)


def parts(layout, count=3):
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(2, c + 2, 5, 4, generator=generator).to(memory_format=layout) for c in range(count)]
    return [part.requires_grad_() for part in made]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_of_what_is_joined_get_dense_gradients(layout):
    own, other = parts(layout), parts(layout)
    joined, plain = with_dense_gradients(torch.cat(own, dim=1)), torch.cat(other, dim=1)
    assert torch.equal(joined, plain)
    weights = torch.randn(joined.shape).to(memory_format=layout)
    seen = {}
    for i, part in enumerate(own):
        part.register_hook(lambda g, i=i: seen.update({i: (g.is_contiguous(memory_format=layout), g.stride())}))
    (joined * weights).sum().backward()
    (plain * weights).sum().backward()
    for i, (part, twin) in enumerate(zip(own, other, strict=True)):
        assert seen[i][0], seen[i][1]
        assert torch.equal(part.grad, twin.grad)


def test_what_needs_no_gradient_is_left_alone():
    x = torch.ones(1, 2, 3, 3)
    joined = torch.cat([x, x], dim=1)
    assert with_dense_gradients(joined) is joined
    first, second = parts(torch.contiguous_format, 2)
    with_dense_gradients(torch.cat([first, second.detach()], dim=1)).sum().backward()
    assert torch.equal(first.grad, torch.ones_like(first))


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_shortcut_takes_every_second_pixel(layout, size):
    x = torch.randn(2, 4, *size).to(memory_format=layout).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    out = Shortcut(4, 8, 2)(x)
    wanted = nn.functional.pad(twin[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
    assert torch.equal(out, wanted)
    weights = torch.randn(out.shape)
    (out * weights).sum().backward()
    (wanted * weights).sum().backward()
    assert torch.equal(x.grad, twin.grad)
    assert x.grad.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1)])
def test_a_reduction_looks_at_the_pixels_between(size):
    reduction = FactorizedReduce(4, 6, 2).train()
    x = torch.randn(2, 4, *size)
    relu = x.relu()
    shifted = torch.zeros(2, 4, size[0] + 1, size[1] + 1)
    shifted[:, :, :-1, :-1] = relu
    both = [reduction.conv1(relu), reduction.conv2(shifted[:, :, 1:, 1:])]
    if size != (1, 1):  # a norm needs more than one value
        with torch.no_grad():
            out = reduction(x)
        assert torch.equal(out, nn.functional.batch_norm(torch.cat(both, 1), None, None, training=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(16, 32, 8, 8), (17, 16, 4, 6), (64, 16, 32, 32), (15, 16, 8, 8), (16, 16, 7, 5)]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_reduction_that_is_trained_computes_what_one_that_is_watched_does(layout, shape, dtype):
    """With its gradients; a hook on a convolution asks for that to be called. Few images are computed one way."""
    reduction = FactorizedReduce(shape[1], 32, 2).to(dtype=dtype, memory_format=layout).train()
    x = torch.randn(shape).to(dtype=dtype, memory_format=layout)
    weights = torch.randn(len(x), 32, *((side + 1) // 2 for side in shape[2:])).to(dtype)
    made, called, few = [], [], len(x) < 16 or bool(shape[2] % 2)
    for watched in (False, True):
        handle = reduction.conv2.register_forward_hook(lambda *_: called.append(1)) if watched else None
        own = x.clone().requires_grad_()
        reduction.zero_grad()
        out = reduction(own)
        assert ("Subsampling" in str(graph_of(out))) is not (watched or few)
        (out * weights).sum().backward()
        assert own.grad.is_contiguous(memory_format=layout)
        made.append([out.detach(), own.grad, *(p.grad.clone() for p in reduction.parameters())])
        if handle:
            handle.remove()
    assert called == [1]
    for one, other in zip(*made, strict=True):
        torch.testing.assert_close(one, other)


def test_a_reduction_whose_convolutions_were_changed_is_what_they_are():
    reduction, x = FactorizedReduce(16, 32, 2).train(), torch.randn(16, 16, 8, 8)
    reduction.bn = nn.Identity()  # a norm would take the bias out again
    before = reduction(x)
    reduction.conv1.bias = nn.Parameter(torch.ones(16))
    reduction.conv2 = nn.Sequential(reduction.conv2, nn.Tanh())
    torch.testing.assert_close(reduction(x), torch.cat([before[:, :16] + 1, before[:, 16:].tanh()], dim=1))


def graph_of(out):
    """The names of all that a gradient goes through."""
    names, rest = [], [out.grad_fn]
    while rest:
        node = rest.pop()
        names.append(type(node).__name__)
        rest += [following for following, _ in node.next_functions if following is not None]
    return names


@pytest.mark.parametrize("size", [(4, 4), (6, 2)])
def test_subsampling_is_slicing_in_every_derivative(size):
    def sliced(x):
        return x[:, :, ::2, ::2], x[:, :, 1::2, 1::2]

    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    assert all(map(torch.equal, subsampled(x), sliced(x)))
    assert torch.autograd.gradcheck(subsampled, (x,))
    assert torch.autograd.gradgradcheck(subsampled, (x,))
    many = torch.randn(4, 2, 3, *size, dtype=torch.float64)
    assert all(map(torch.equal, torch.func.vmap(subsampled)(many), torch.func.vmap(sliced)(many)))
    with warnings.catch_warnings(action="ignore"):  # torch's own, of torch.jit
        own, other = (torch.func.jvp(f, (x.detach(),), (many[0],))[1] for f in (subsampled, sliced))
    assert all(map(torch.equal, own, other))
