"""One count of multiply-adds, the same for `dnat.cost`, `dnat.trace` and all that is built on them.

A network is run and each operator that reaches torch's dispatcher is counted by its formula: convolutions, matrix
products, attention and recurrent layers, whichever kernel a device or a mode takes for them. Biases, norms,
activations, pools and products of elements do not count, as in the papers. What may multiply and has no formula
counts as nothing, but is named in `Counter.uncounted`. For operators of one's own torch has a place:
`torch.utils.flop_counter.register_flop_formula`.
"""

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .errors import UsageError

Formula: TypeAlias = Callable[[Sequence[Any], Any], int | None]
"""Positional arguments and result of an operator -> multiply-adds; None where they are not known."""


def _product(left: int, right: int) -> Formula:
    """A matrix, or a batch of them, times another: the arguments at these places."""

    def formula(args: Sequence[Any], out: Any) -> int | None:
        a, b = args[left], args[right]
        sparse = [t.layout is not torch.strided for t in (a, b)]
        if all(sparse):
            return None  # it depends on where the elements meet
        return _elements(b) * a.shape[-2] if sparse[1] else _elements(a) * int(out.shape[-1])

    return formula


def _elements(tensor: Tensor) -> int:
    if tensor.layout is torch.strided:
        return tensor.numel()
    return (tensor._values() if tensor.layout is torch.sparse_coo else tensor.values()).numel()


def _grouped(args: Sequence[Any], out: Any) -> int:
    a, b = args[:2]
    groups = a.shape[0] if a.dim() == b.dim() == 3 else 1
    return int(groups * math.prod(a.shape[-2:]) * b.shape[-1])


def _vector(place: int) -> Formula:
    """Each element of the argument at this place is multiplied once: a matrix times a vector, or two vectors."""
    return lambda args, out: _elements(args[place])


def _convolution(transposed: bool | None) -> Formula:
    def formula(args: Sequence[Any], out: Any) -> int:
        x, weight = args[:2]
        whole = x if (args[6] if transposed is None else transposed) else out
        return int(whole.numel() * math.prod(weight.shape[1:]))

    return formula


def _conv_tbc(args: Sequence[Any], out: Any) -> int:
    return int(out.numel() * math.prod(args[1].shape[:2]))


def _attention(args: Sequence[Any], out: Any) -> int:
    """Queries times keys, and weights times values, masked or not; all heads of the queries."""
    query, key = args[:2]
    out = out[0] if isinstance(out, tuple) else out
    return int(math.prod(out.shape[:-1]) * key.shape[-2] * (query.shape[-1] + out.shape[-1]))


def _multi_head(args: Sequence[Any], out: Any) -> int:
    query, key, width = args[0], args[1], args[3]
    (batch, queries), keys = query.shape[:2], key.shape[1]
    return int(batch * width * (2 * (queries + keys) * width + 2 * queries * keys))


def _encoder_layer(args: Sequence[Any], out: Any) -> int:
    x, width = args[:2]
    batch, length = x.shape[:2]
    weights = sum(args[i].numel() for i in (3, 5, 14, 16))  # of the projections and of the two linear layers
    return int(batch * length * (weights + 2 * length * width))


def _recurrent(place: int) -> Formula:
    """Each weight matrix, of all layers and directions, is used once for each step of each row."""

    def formula(args: Sequence[Any], out: Any) -> int:
        weights = args[place] if isinstance(args[place], Sequence) else args[place : place + 2]
        return math.prod(args[0].shape[:-1]) * sum(w.numel() for w in weights if w.dim() == 2)

    return formula


def _trilinear(args: Sequence[Any], out: Any) -> int:
    """Three tensors with new axes of size 1 at the places that follow, multiplied and summed."""
    shapes = []
    for tensor, new in zip(args[:3], args[3:6], strict=True):
        shape = list(tensor.shape)
        for axis in sorted(new):
            shape.insert(axis, 1)
        shapes.append(shape)
    return math.prod(torch.broadcast_shapes(*shapes))


_KERNELS: dict[str, Formula] = {
    "mm bmm _int_mm _scaled_mm _scaled_mm_v2 _mixed_dtypes_linear mkldnn_linear": _product(0, 1),
    "_weight_int8pack_mm _weight_int4pack_mm _weight_int4pack_mm_for_cpu": _product(0, 1),
    "addmm baddbmm addbmm _addmm_activation _sparse_addmm": _product(1, 2),
    "_grouped_mm _scaled_grouped_mm": _grouped,
    "mv dot vdot": _vector(0),
    "addmv": _vector(1),
    "addr": lambda args, out: args[1].numel() * args[2].numel(),
    "convolution _convolution convolution_overrideable": _convolution(None),
    "cudnn_convolution cudnn_convolution_relu cudnn_convolution_add_relu": _convolution(False),
    "miopen_convolution miopen_convolution_relu miopen_convolution_add_relu": _convolution(False),
    "miopen_depthwise_convolution mkldnn_convolution _mps_convolution": _convolution(False),
    "_nnpack_spatial_convolution _slow_conv2d_forward slow_conv3d_forward": _convolution(False),
    "slow_conv_dilated2d slow_conv_dilated3d _conv_depthwise2d conv_depthwise3d": _convolution(False),
    "cudnn_convolution_transpose miopen_convolution_transpose": _convolution(True),
    "_mps_convolution_transpose slow_conv_transpose2d slow_conv_transpose3d": _convolution(True),
    "conv_tbc": _conv_tbc,
    "_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention": _attention,
    "_scaled_dot_product_fused_attention_overrideable": _attention,
    "_scaled_dot_product_attention_math_for_mps": _attention,
    "_native_multi_head_attention": _multi_head,
    "_transformer_encoder_layer_fwd": _encoder_layer,
    "mkldnn_rnn_layer _cudnn_rnn miopen_rnn": _recurrent(1),
    "_lstm_mps": _recurrent(2),
    "_trilinear": _trilinear,
}
_FORMULAS = {name: formula for names, formula in _KERNELS.items() for name in names.split()}
"""By the name of an operator of torch's; those that torch takes apart, such as `einsum`, need none."""

_NESTED: dict[str, Formula] = {"linear": lambda args, out: args[0].numel() * args[1].shape[0]}
"""The same for tensors of torch's that hold rows of several lengths; no more is counted of them."""

_WHOLE: dict[str, Formula] = {
    # Some kernels take heads that are filled up to a multiple of eight.
    "scaled_dot_product_attention": _attention,
    "outer": lambda args, out: out.numel(),
    "ger": lambda args, out: out.numel(),
    "linalg_vecdot": lambda args, out: math.prod(torch.broadcast_shapes(args[0].shape, args[1].shape)),
}
"""By the name of a function: what cannot be told from the operators that it is made of."""

_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
_AXES = {
    **{f"conv{kind}{n}d": n + 2 for kind in ("", "_transpose") for n in (1, 2, 3)},
    **dict.fromkeys(_RECURRENT, 3),
    "linear": 2,
    "multi_head_attention_forward": 3,
}
"""How many axes a function's first argument has with a batch, at least."""

_MULTIPLIES = re.compile(
    r"""(?: \w*mm | \w*mv | v?dot | conv(?:[123]d)? | convolution | attention | matmul | \w*linear | layer
    | rnn | lstm | gru | [cp]dist | euclidean | fft | linalg | cholesky | \w*solve | svd | qr | geqrf | ormqr
    | \w*einsum | matrix )""",
    re.VERBOSE,
)
_FREE = re.compile(
    "layer_norm|vector_norm|fused_(gru|lstm)_cell|flatten_weight|reorder|prepack|unpack|fftfreq|powsum|cross"
    "|check_errors|mm_search|matrix_H"
)
_TORCHS = frozenset({"aten", "prims", "quantized", "mkldnn", "mkl", "mkldnn_prepacked", "prepacked", "xnnpack"})
_HARMLESS = frozenset({"prim", "profiler", "c10d", "_c10d_functional"})
_KNOWN = frozenset(f"torchvision::{n}" for n in ("nms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"))


class Counter(TorchDispatchMode):
    """Counts what runs within, on this thread.

    Attributes:
        madds: multiply-adds so far.
        uncounted: names of operators that may multiply and of which no formula is known.
    """

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch imports its compiler, a second of work, to keep it out of here

    def __init__(self) -> None:
        super().__init__()
        self.madds = 0
        self.uncounted: dict[str, None] = {}
        self._lone: set[int] = set()
        self._sequences: set[tuple[int, int]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(map(_wraps, types)):
            return NotImplemented  # a tensor that wraps others: what it does with them comes by here again
        if not isinstance(func, OpOverload):
            out = func(*args, **kwargs)
            self._add(f"higher_order::{func}", func, args, kwargs, out)
            return out
        name = func._schema.name
        space, _, plain = name.partition("::")
        if space == "aten" and plain not in _FORMULAS and not _is_nested(args):
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        self._add(name, func.overloadpacket, args, kwargs, out)
        return out

    def call(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call a torch function; it is counted as a whole where its operators do not tell enough."""
        name = getattr(func, "__name__", "")
        self._look(name, args, kwargs)
        before, named = self.madds, dict(self.uncounted)
        out = func(*args, **kwargs)
        if name in _WHOLE and isinstance(out, Tensor) and not out.is_nested:
            operands = [*args, *(kwargs[k] for k in ("query", "key", "x", "y") if k in kwargs)]
            self.madds, self.uncounted = before + (_WHOLE[name](operands, out) or 0), named
        return out

    def _add(self, name: str, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        space, _, plain = name.partition("::")
        formulas = _NESTED if _is_nested(args) else _FORMULAS
        formula = formulas.get(plain.removesuffix("_")) if space == "aten" else None
        madds = None
        with torch._C.DisableTorchFunction():
            if formula:
                madds = formula(args, out)
            elif func in flop_registry and not _is_nested(args):
                madds = flop_registry[func](*args, **kwargs, out_val=out) // 2
        if madds is not None:
            self.madds += int(madds)
        elif _may_multiply(name):
            self.uncounted[name] = None

    def _look(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Note where an argument has no batch, or not in front."""
        x = args[0] if args else kwargs.get("input", kwargs.get("query"))
        if not isinstance(x, Tensor) or x.is_nested or name not in _AXES:
            return
        if x.dim() < _AXES[name]:
            self._lone.update(x.shape[:1])
        elif name == "multi_head_attention_forward":
            self._sequences.add((x.shape[0], x.shape[1]))
        elif name in _RECURRENT and len(args) == 9:
            batch_first = args[8]
            self._sequences.add((x.shape[1], x.shape[0]) if batch_first else (x.shape[0], x.shape[1]))

    def batch(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int | None:
        """How many images a run was given, where that is certain; else None.

        All outputs have the same first dimension, which is also that of an input, and no layer took it for
        channels or for time. Where all outputs are single numbers, at least two inputs have to agree. Or all
        recurrent and attention layers had the same batch, which is in one of the two first dimensions everywhere.

        Args:
            inputs: the inputs of the network that was counted.
            outputs: its outputs.
        """
        shapes_in, shapes_out = ([tuple(t.shape[:2]) for t in tensors if t.dim()] for tensors in (inputs, outputs))
        first, firsts = {s[0] for s in shapes_in}, {s[0] for s in shapes_out}
        if first <= {1}:
            return 1
        if not firsts and len(shapes_in) > 1:
            firsts = first
        if len(firsts) == 1 and firsts <= first and not firsts & self._lone:
            (rows,) = firsts
            if not any(time == rows != batch for time, batch in self._sequences):
                return max(rows, 1)
        told = {batch for _, batch in self._sequences}
        if len(told) == 1 and shapes_out and all(told & set(s) for s in shapes_in + shapes_out):
            return told.pop()
        return None


class Functions(TorchFunctionMode):
    """Within, each torch function is called by a counter."""

    def __init__(self, counter: Counter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.counter.call(func, args, kwargs or {})


def checked_batch(batch: int | None) -> int | None:
    """The number of images that a caller told, if any.

    Raises:
        UsageError: it is no whole number above 0.
    """
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise UsageError(f"batch must be a whole number of at least 1 (the images of the example), not {batch!r}")
    return batch


def warn_of_batch(inputs: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]) -> None:
    """Warn that multiply-adds are those of a whole example, since these shapes do not tell its batch."""
    told = [", ".join(str(tuple(shape)) for shape in shapes) or "none" for shapes in (inputs, outputs)]
    warnings.warn(
        f"how many images the example holds is not certain (inputs {told[0]}; outputs {told[1]}): "
        "multiply-adds are those of the whole example; tell their number with batch=",
        stacklevel=2,
    )


def warn_of_uncounted(names: Sequence[str]) -> None:
    """Warn that some operators are missing in the multiply-adds."""
    if names:
        warnings.warn(
            f"not among the multiply-adds, since no formula is known: {', '.join(names)}; tell one with "
            "torch.utils.flop_counter.register_flop_formula",
            stacklevel=2,
        )


def _wraps(kind: type) -> bool:
    plain = (Tensor.__torch_dispatch__, FakeTensor.__torch_dispatch__)
    return getattr(kind, "__torch_dispatch__", plain[0]) not in plain


def _is_nested(args: Sequence[Any]) -> bool:
    return any(
        a.is_nested if isinstance(a, Tensor) else isinstance(a, list | tuple) and _is_nested(a) for a in args
    )


def _may_multiply(name: str) -> bool:
    """Whether an operator may be more than a product of elements, by its name."""
    space, _, plain = name.partition("::")
    if space not in _TORCHS:
        return space not in _HARMLESS and name not in _KNOWN
    words = plain.strip("_").split("_")
    return any(_MULTIPLIES.fullmatch(w) for w in words) and not _FREE.search(plain)
