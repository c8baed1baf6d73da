"""What each operation of a graph does to axes: which it unites, which it pins, and the axes of what it gives.

A rule is a function of an operation's arguments by name, tensors as their axes, and of the shape of what it gives. It
returns None where it does not know.
"""

import re
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from bend_ray.alignment.axes import Places, Shape, Value, broadcast, count, fresh, pin, regroup, unite


def _contracted(a: Value, b: Value) -> Value | None:
    if min(len(a), len(b)) < 2:
        return None
    unite(a[-1], b[-2])
    return [*broadcast([a[:-2], b[:-2]]), a[-2], b[-1]]


def _linear(a: Any, out: Shape) -> Value:
    unite(a.input[-1], a.weight[1])
    return broadcast([[*a.input[:-1], a.weight[0]], a.bias or []])


def _convolution(a: Any, out: Shape) -> Value | None:
    x, weight, groups = a.input, a.weight, a.groups
    if getattr(a, "transposed", False) or len(x) != len(weight):
        return None
    inputs, outputs = (regroup(axis, (groups, count(axis) // groups)) for axis in (x[1], weight[0]))
    if inputs is None or outputs is None:
        return None
    unite(inputs[0], outputs[0])
    unite(inputs[1], weight[1])
    if a.bias:
        unite(a.bias[0], weight[0])
    return windowed([*x[:1], weight[0], *x[2:]], out, len(x) - 2, weight[2:])


def windowed(x: Value, out: Shape, n: int, kernel: Sequence[Places] = ()) -> Value:
    """The last ``n`` axes are those of an image: their places have neighbours."""
    for axis in (*x[-n:], *kernel):
        pin(axis)
    return x[:-n] + fresh(out[-n:], "")


def _layer_norm(a: Any, out: Shape) -> Value:
    """Mean and variance are the same in any order; so is a root mean square."""
    return broadcast([a.input, a.weight or [], getattr(a, "bias", None) or []])


def _group_norm(a: Any, out: Shape) -> Value | None:
    if regroup(a.input[1], (a.num_groups, count(a.input[1]) // a.num_groups)) is None:
        return None
    return channelwise(a.input, a.weight, a.bias)


def channelwise(x: Value, *parameters: Value | None) -> Value:
    for parameter in parameters:
        if parameter:
            unite(parameter[0], x[1])
    return x


def _reduced(a: Any, out: Shape) -> Value:
    """Sums, means and the like are the same in any order."""
    x, dims, keep = a.self, getattr(a, "dim", None), getattr(a, "keepdim", False)
    chosen = [dims] if isinstance(dims, int) else dims or range(len(x))
    gone = {dim % len(x) for dim in chosen}
    return [() if k in gone else axis for k, axis in enumerate(x) if keep or k not in gone]


def _attention(a: Any, out: Shape) -> Value | None:
    if a.enable_gqa:
        return None
    *batch, queries, inner = a.query
    if a.is_causal:
        pin(queries)
        pin(a.key[-2])
    unite(inner, a.key[-1])
    unite(a.key[-2], a.value[-2])
    batch = broadcast([batch, a.key[:-2], a.value[:-2]])
    broadcast([[*batch, queries, a.key[-2]], a.attn_mask or []])
    return [*batch, queries, a.value[-1]]


def _transposed(a: Any, out: Shape) -> Value:
    order = list(range(len(a.self)))
    one, other = getattr(a, "dim0", 0), getattr(a, "dim1", -1)
    if order:
        order[one], order[other] = order[other], order[one]
    return [a.self[k] for k in order]


def _expanded(a: Any, out: Shape) -> Value:
    """Copies along an axis are alike, and may change places."""
    x = [()] * (len(out) - len(a.self)) + a.self
    return [axis or new for axis, new in zip(x, fresh(out), strict=True)]


def selected(a: Any, out: Shape) -> Value:
    x = list(a.self)
    pin(x.pop(a.dim), "it is indexed")
    return x


def part(x: Value, dim: int, size: int, start: Any) -> Value:
    """``size`` places of an axis from ``start`` on: if such parts fill it, units may move alike in each of them."""
    dim, whole, x = dim % len(x), count(x[dim]), list(x)
    even = isinstance(start, int) and size > 0 and start % size == 0 and whole % size == 0
    parts = regroup(x[dim], (whole // size, size)) if even else None
    if parts is None:
        parts = [(), *fresh([size], pin(x[dim], "it is cut unevenly"))]
    pin(parts[0], "")
    x[dim] = parts[1]
    return x


def _slice(a: Any, out: Shape) -> Value:
    whole = count(a.self[a.dim])
    start = a.start or 0
    if out[a.dim] == whole:
        return a.self
    even = a.step == 1 and isinstance(start, int)
    return part(a.self, a.dim, out[a.dim], start % whole if even else None)


def _joined(a: Any, out: Shape) -> Value:
    values = [list(value) for value in a.tensors]
    dim = a.dim % len(out)
    joined = [value[dim] for value in values]
    for value in values:
        value[dim] = ()
    united = broadcast(values)
    if len({count(axis) for axis in joined}) == 1:
        broadcast([[axis] for axis in joined])
        united[dim] = (*fresh([len(joined)], "")[0], *joined[0])
    else:
        why = min([pin(axis, "it is joined to others") for axis in joined], key=len)
        (united[dim],) = fresh([out[dim]], why)
    return united


def _stacked(a: Any, out: Shape) -> Value:
    dim = a.dim % len(out)
    united = broadcast(a.tensors)
    return [*united[:dim], *fresh([out[dim]], ""), *united[dim:]]


def _indexed(a: Any, out: Shape) -> Value | None:
    at = [k for k, index in enumerate(a.indices) if index is not None]
    if len(at) != 1:
        return None
    index = a.indices[at[0]]
    for axis in (a.self[at[0]], *index):
        pin(axis, "it is indexed")
    return [*a.self[: at[0]], *fresh(map(count, index), ""), *a.self[at[0] + 1 :]]


def _viewed(a: Any, out: Shape) -> Value | None:
    return regroup(tuple(factor for axis in a.self for factor in axis), out)


def same(a: Any, out: Shape) -> Value:
    """What works place by place, or, like softmax, in any order of them."""
    value: Value = next(iter(vars(a).values()))
    return value


Rule = Callable[[Any, Shape], Value | None]
RULES: dict[str, Rule] = {
    **dict.fromkeys(("clone", "contiguous", "to", "_to_copy", "alias", "detach", "hardswish", "log_sigmoid"), same),
    **dict.fromkeys(("dropout", "feature_dropout", "softmax", "_softmax", "log_softmax", "_log_softmax"), same),
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"), _viewed),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "var", "std", "logsumexp"), _reduced),
    **dict.fromkeys(("full", "zeros", "ones", "full_like", "zeros_like", "ones_like"), lambda a, out: fresh(out)),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _convolution),
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
    **dict.fromkeys(("mm", "bmm"), lambda a, out: _contracted(a.self, a.mat2)),
    **dict.fromkeys(("transpose", "t"), _transposed),
    "matmul": lambda a, out: _contracted(a.self, a.other),
    "addmm": lambda a, out: broadcast([_contracted(a.mat1, a.mat2) or [], a.self]),
    "baddbmm": lambda a, out: broadcast([_contracted(a.batch1, a.batch2) or [], a.self]),
    "linear": _linear,
    "group_norm": _group_norm,
    "prelu": lambda a, out: channelwise(a.self, a.weight),
    "scaled_dot_product_attention": _attention,
    "permute": lambda a, out: [a.self[dim] for dim in a.dims],
    "expand": _expanded,
    "constant_pad_nd": lambda a, out: windowed(a.self, out, len(a.pad) // 2),
    "pad": lambda a, out: windowed(a.self, out, len(a.pad) // 2),
    "embedding": lambda a, out: _indexed(SimpleNamespace(self=a.weight, indices=[a.indices]), out),
    "glu": lambda a, out: part(a.self, a.dim, out[a.dim], 0),
    "select": selected,
    "slice": _slice,
    "cat": _joined,
    "stack": _stacked,
    "index": _indexed,
}
WINDOWS = re.compile(r"_?(?:adaptive_)?(?:max|avg)_pool(\d)d\w*|upsample_\w+?(\d)d\w*")
SIZES = ("sym_size", "_assert_tensor_metadata", "_assert_scalar")
"""Operations that read no values."""
