"""What functions do to the labels of channels, by the function's name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from .arrays import NOTHING, first, is_constant, spread
from .labelling import Labelling, UnknownError


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


POINTWISE = _names(
    """relu relu6 leaky_relu elu selu celu gelu silu mish tanh hardtanh hardswish hardsigmoid sigmoid
    softsign softplus logsigmoid tanhshrink threshold rrelu hardshrink softshrink dropout dropout1d
    dropout2d dropout3d alpha_dropout feature_dropout add iadd sub isub rsub mul imul multiply div
    divide true_divide truediv itruediv pow neg abs exp log sqrt rsqrt square clamp clip minimum maximum
    where lerp sin cos erf reciprocal nan_to_num masked_fill"""
)
"""Functions of one or several tensors that broadcast and work element by element."""

SUMS = _names("add iadd sub isub rsub where lerp minimum maximum")
"""Those of them that join what two layers made in one width: a residual stream."""

SAME = _names("to type type_as float half bfloat16 double clone detach contiguous alias_update requires_grad")
"""Functions whose result has the elements of their first argument, where they were."""

RESHAPING = _names("view reshape flatten unflatten squeeze unsqueeze view_as reshape_as")
"""Functions that keep all elements in their order."""

MOVING = _names(
    """permute transpose t T mT movedim moveaxis swapaxes swapdims chunk split tensor_split unbind getitem narrow
    select index_select flip roll expand expand_as repeat repeat_interleave tile cat concat concatenate stack
    pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle"""
)
"""Functions that move elements, which they do to labels just so."""

JOINING = _names("cat concat concatenate stack")

POOLS = _names(
    """boolean_dispatch max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    interpolate upsample"""
)
"""Functions that mix pixels, all dimensions behind the first two."""

ALONG = _names("softmax log_softmax softmin cumsum normalize")
"""Functions that mix along one dimension and keep the shape."""

REDUCING = _names("mean sum amax amin var std norm logsumexp nansum prod")

MAKING = _names(
    """zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty new_full
    bernoulli"""
)
"""Functions that take no more than a shape from what they are given."""


@dataclass(frozen=True)
class FunctionCall:
    """A call of a torch function: its name without the underscores around it, and what it gave."""

    func: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """An argument by its place or its name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)


def _linear(labelling: Labelling, call: FunctionCall) -> None:
    x, weight, bias = (*call.args, *[None] * 3)[:3]
    _dense(labelling, x, weight, call.kwargs.get("bias", bias), call.result, axis=-1, reads=1)


def _addmm(labelling: Labelling, call: FunctionCall) -> None:
    bias, x, weight = call.args
    _dense(labelling, x, weight, bias, call.result, axis=-1, reads=0)


def _convolution(labelling: Labelling, call: FunctionCall) -> None:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    named = dict(zip(names, call.args, strict=False)) | dict(call.kwargs)
    axis = -1 - int(call.name[4])
    if named.get("groups", 1) == 1:
        _dense(labelling, named["input"], named["weight"], named.get("bias"), call.result, axis=axis, reads=1)
    else:
        _grouped(labelling, named["input"], named["weight"], named.get("bias"), call.result, axis, named["groups"])


def _dense(
    labelling: Labelling, x: Tensor, weight: Tensor, bias: Any, result: Tensor, *, axis: int, reads: int
) -> None:
    """A layer that reads all channels of its input and makes new ones."""
    known = labelling.of(x)
    name = labelling.names.get(id(weight))
    if name is None:
        raise UnknownError  # a weight that is computed cannot be cut
    if known is not None:
        labelling.cut(name, reads, labelling.vector(known, axis))
        labelling.readers[name], labelling.axes[name] = reads, axis
    makes = 1 - reads
    if name not in labelling.makers:
        labelling.cut(name, makes, labelling.classes.new(weight.shape[makes], name))
        labelling.makers[name] = makes
    outputs = labelling.cuts[name, makes]
    if isinstance(bias, Tensor):
        if id(bias) not in labelling.names:
            raise UnknownError
        labelling.cut(labelling.names[id(bias)], 0, outputs)
    labelling.put(result, spread(outputs, axis, result.shape))


def _grouped(
    labelling: Labelling, x: Tensor, weight: Tensor, bias: Any, result: Tensor, axis: int, groups: int
) -> None:
    """A grouped convolution hands its groups on, each as a whole; a depthwise one has a group a channel."""
    known = labelling.of(x)
    if known is None:
        return
    if id(weight) not in labelling.names:
        raise UnknownError
    rows = labelling.vector(known, axis).reshape(groups, -1)
    labelling.unite_arrays(rows[:, :1].repeat(rows.shape[1], 1), rows)
    outputs = rows[:, 0].repeat(weight.shape[0] // groups)
    for tensor in (weight, bias):
        if isinstance(tensor, Tensor):
            labelling.cut(labelling.names[id(tensor)], 0, outputs)
    labelling.put(result, spread(outputs, axis, result.shape))


def _norm(labelling: Labelling, call: FunctionCall) -> None:
    x = call.args[0]
    known = labelling.of(x)
    assert known is not None
    vector = labelling.vector(known, 1)
    for tensor in [
        *call.args[1:5],
        *(call.kwargs.get(k) for k in ("running_mean", "running_var", "weight", "bias")),
    ]:
        if isinstance(tensor, Tensor):
            if id(tensor) not in labelling.names:
                raise UnknownError
            labelling.cut(labelling.names[id(tensor)], 0, vector)
    labelling.put(call.result, known)


def _prelu(labelling: Labelling, call: FunctionCall) -> None:
    """A slope for each channel, or one for all."""
    x, slopes = call.args
    known = labelling.of(x)
    if known is None or id(slopes) not in labelling.names:
        raise UnknownError
    if slopes.numel() > 1:
        labelling.cut(labelling.names[id(slopes)], 0, labelling.vector(known, 1))
    labelling.put(call.result, known)


def _layer_norm(labelling: Labelling, call: FunctionCall) -> None:
    known = labelling.of(call.args[0])
    if known is None:
        raise UnknownError
    shape = call.argument(1, "normalized_shape")
    labelling.put(call.result, labelling.tied(known, range(-len(shape), 0)))


def _unmoved(labelling: Labelling, call: FunctionCall) -> None:
    known = labelling.of(call.args[0])
    if known is not None:
        labelling.put(call.result, known)


def _reshaped(labelling: Labelling, call: FunctionCall) -> None:
    known = labelling.of(call.args[0])
    if known is None or known.numel() != call.result.numel():
        raise UnknownError
    labelling.put(call.result, known.reshape(call.result.shape))


def _moved(labelling: Labelling, call: FunctionCall) -> None:
    joins = call.name in JOINING

    def label(tensor: Tensor) -> Tensor:
        known = labelling.of(tensor)
        if known is None and joins:
            return torch.tensor(NOTHING).expand(tensor.shape)
        return tensor if known is None else known

    moved = call.func(*tree_map_only(Tensor, label, call.args), **tree_map_only(Tensor, label, dict(call.kwargs)))
    for tensor, labels in zip(tree_leaves(call.result), tree_leaves(moved), strict=True):
        if isinstance(tensor, Tensor):
            labelling.put(tensor, labels)


def _pad(labelling: Labelling, call: FunctionCall) -> None:
    known = labelling.of(call.args[0])
    assert known is not None
    pad = call.argument(1, "pad")
    mode = call.argument(2, "mode", "constant")
    padded = range(known.dim() - len(pad) // 2, known.dim())
    if mode != "constant":
        labelling.put(call.result, torch.nn.functional.pad(known.double(), pad, mode).long())
    elif padded.start > 1 and is_constant(known, padded):  # zeros around an image belong to its channels
        labelling.put(call.result, first(known, padded).expand(call.result.shape))
    else:
        labelling.put(call.result, torch.nn.functional.pad(known, pad, value=NOTHING))


def _pooled(labelling: Labelling, call: FunctionCall) -> None:
    known = labelling.of(call.args[0])
    if known is None or not isinstance(call.result, Tensor) or call.result.dim() != known.dim():
        raise UnknownError
    tied = labelling.tied(known, range(2, known.dim()))
    labelling.put(call.result, first(tied, range(2, known.dim())).expand(call.result.shape))


def _along(labelling: Labelling, call: FunctionCall) -> None:
    known = labelling.of(call.args[0])
    dim = call.argument(2, "dim", 1) if call.name == "normalize" else call.argument(1, "dim")
    if known is None or dim is None:
        raise UnknownError
    labelling.put(call.result, labelling.tied(known, [dim]))


def _reduced(labelling: Labelling, call: FunctionCall) -> None:
    known = labelling.of(call.args[0])
    dim = call.argument(1, "dim")
    if known is None or (call.name == "norm" and "dim" not in call.kwargs):
        raise UnknownError
    dims = list(range(known.dim())) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    reduced = first(labelling.tied(known, dims), dims)
    labelling.put(call.result, reduced.reshape(call.result.shape))


def _matmul(labelling: Labelling, call: FunctionCall) -> None:
    a, b = call.args
    if any(id(t) in labelling.names for t in call.args):
        raise UnknownError  # a layer of somebody's own
    _product(labelling, a, b, call.result)


def _baddbmm(labelling: Labelling, call: FunctionCall) -> None:
    bias, a, b = call.args
    if labelling.of(bias) is not None:
        raise UnknownError
    _product(labelling, a, b, call.result)


def _product(labelling: Labelling, a: Tensor, b: Tensor, result: Tensor) -> None:
    """Each row of one meets each column of the other, over all that the product sums over."""
    if min(a.dim(), b.dim(), result.dim()) < 2:
        raise UnknownError
    rows, columns = labelling.of(a), labelling.of(b)
    factors = []
    for known, dim in ((rows, -1), (columns, -2)):
        if known is not None:
            factors.append(first(labelling.tied(known, [dim]), [dim]).expand(result.shape))
    labelling.put(result, labelling.joined(factors))


def _attention(labelling: Labelling, call: FunctionCall) -> None:
    named = dict(zip(("query", "key", "value"), call.args, strict=False)) | dict(call.kwargs)
    known = [labelling.of(named[k]) for k in ("query", "key", "value")]
    if any(k is None for k in known):
        raise UnknownError
    tied = [first(labelling.tied(k, [-1, -2]), [-1, -2]) for k in known if k is not None]
    labelling.put(call.result, labelling.joined([t.expand(call.result.shape) for t in tied]))


def _pointwise(labelling: Labelling, call: FunctionCall) -> None:
    tensors = [t for t in tree_leaves((call.args, dict(call.kwargs))) if isinstance(t, Tensor)]
    known = [k.expand(call.result.shape) for k in map(labelling.of, tensors) if k is not None]
    if call.name in SUMS and len(known) > 1:
        labelling.summed(known)
    labels = labelling.joined(known)
    for tensor in tensors:
        if labelling.of(tensor) is not None or tensor.numel() == 1:
            continue
        shape = [1] * (call.result.dim() - tensor.dim()) + list(tensor.shape)
        wide = [d for d, size in enumerate(shape) if size > 1 and not is_constant(labels, [d])]
        elsewhere = [d for d in range(call.result.dim()) if d not in wide and not is_constant(labels, [d])]
        if id(tensor) in labelling.names and len(wide) == 1 and not elsewhere:
            own = wide[0] - (call.result.dim() - tensor.dim())
            labelling.cut(labelling.names[id(tensor)], own, labelling.vector(labels, wide[0]))
        elif wide:  # it is not cut along, so that nothing can be cut along these
            labels = labelling.tied(labels, wide)
    labelling.put(call.result, labels)


Rule: TypeAlias = Callable[[Labelling, FunctionCall], None]

RULES: dict[str, Rule] = {
    "linear": _linear,
    "addmm": _addmm,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("batch_norm", "instance_norm"), _norm),
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
    "prelu": _prelu,
    "pad": _pad,
    **dict.fromkeys(("matmul", "bmm", "mm"), _matmul),
    "baddbmm": _baddbmm,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(POINTWISE, _pointwise),
    **dict.fromkeys(SAME, _unmoved),
    **dict.fromkeys(RESHAPING, _reshaped),
    **dict.fromkeys(MOVING, _moved),
    **dict.fromkeys(POOLS, _pooled),
    **dict.fromkeys(ALONG, _along),
    **dict.fromkeys(REDUCING, _reduced),
    **dict.fromkeys(MAKING, lambda labelling, call: None),
}
"""Raises `UnknownError` where it cannot be told what becomes of the labels."""
