"""How functions treat zeros: what becomes of a result when operands are zero."""

from collections.abc import Mapping
from typing import Any, Literal

Behaviour = Literal["add", "multiply", "gather", "homogeneous", "other"]
"""How an operation treats zeros.

add: a zero operand is neutral. multiply: a zero operand makes the result zero. gather: operands stand side by
side, each of them may be zero. homogeneous: all operands zero make the result zero. other: nothing is known.
"""

_ADD = {"add", "iadd"}
_MULTIPLY = {"mul", "imul", "multiply", "matmul", "bmm", "mm"}
GATHERING = {"cat", "concat", "concatenate", "stack"}
"""Functions that put tensors side by side."""
_HOMOGENEOUS = set(
    """relu relu6 leaky_relu prelu elu selu celu gelu silu mish tanh hardtanh hardswish softsign tanhshrink
    dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool2d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    boolean_dispatch view view_as reshape reshape_as flatten
    unflatten permute transpose contiguous to clone float half bfloat16
    double type type_as squeeze unsqueeze expand expand_as repeat repeat_interleave chunk split unbind getitem
    narrow select index_select movedim moveaxis swapaxes flip roll mean sum neg
    abs detach pixel_shuffle pixel_unshuffle channel_shuffle interpolate upsample unfold fold T mT
    alias_update""".split()  # noqa: SIM905
)
# With a bias of None these map zero to zero; `_behaviour` looks at the arguments.
_AFFINE = {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear"}


def behaviour(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], is_value: Any) -> Behaviour:
    """How a function treats zeros, for a call seen by the tracer or a node of an fx graph.

    Args:
        name: the function's name; underscores around it (in-place and operator forms) do not matter.
        args: its positional arguments.
        kwargs: its keyword arguments.
        is_value: tells whether an argument is a value of the trace (and not a weight, a number or None).
    """
    name = name.strip("_")
    if name in _ADD:
        both = len(args) == 2 and all(map(is_value, args)) and not kwargs
        return "add" if both else "other"
    if name in _MULTIPLY:
        return "multiply"
    if name in ("div", "divide", "true_divide", "truediv"):  # 0 / x is 0, x / 0 is not
        return "homogeneous" if args and is_value(args[0]) and not is_value(args[1]) else "other"
    if name in _AFFINE:
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        return "homogeneous" if bias is None else "other"
    if name == "pad":
        value = args[3] if len(args) > 3 else kwargs.get("value")
        return "homogeneous" if not value else "other"
    if name in GATHERING:
        return "gather"
    return "homogeneous" if name in _HOMOGENEOUS else "other"
