"""Symmetries: the permutations of a classifier's hidden units that change no function, read off its exported graph.

Members share all that lies outside the subset, so whatever meets it stays.
"""

import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx, nn

from bend_ray.alignment.axes import BATCH, Factor, Shape, Value, broadcast, count, fresh, leaves, pin
from bend_ray.alignment.rules import RULES, SIZES, WINDOWS, channelwise, part, same, selected, windowed
from bend_ray.models import private
from bend_ray.models.graph import BATCH_NORMS, Graph, aliases_of, export
from bend_ray.models.subset import Subset


@dataclass(frozen=True)
class Axis:
    """Where the units of a group stand in a parameter: flattened, it is (outer, units, inner)."""

    name: str
    axis: int
    outer: int
    inner: int


@dataclass(frozen=True, eq=False)
class Norm:
    """A batch norm with statistics that all members share: its weight and bias take up a move of its units."""

    weight: str
    bias: str
    mean_C: Tensor
    rms_C: Tensor
    """sqrt(variance + eps)"""


@dataclass(frozen=True)
class Group:
    """Hidden units (channels, heads, ...) that may change places, all these axes at once."""

    size: int
    axes: tuple[Axis, ...]
    norms: tuple[Norm, ...]

    def permute(self, values: dict[str, Tensor], permutation: Tensor) -> dict[str, Tensor]:
        """The parameters that change, flattened (..., n): unit i becomes unit ``permutation[i]`` of ``values``."""
        moved: dict[str, Tensor] = {}
        for axis in self.axes:
            value = moved.get(axis.name, values[axis.name])
            units = value.reshape(*value.shape[:-1], axis.outer, self.size, axis.inner)
            moved[axis.name] = units.index_select(-2, permutation).reshape(value.shape)
        return moved

    def permute_with_norms(self, values: dict[str, Tensor], permutation: Tensor) -> dict[str, Tensor]:
        """`permute`, and what batch norms must do for their statistics to stay: with rms r and mean m, unit i from p,

        weight'_i = weight_p r_i / r_p,   bias'_i = bias_p + weight_p (m_i - m_p) / r_p.
        """
        moved = self.permute(values, permutation)
        for norm in self.norms:
            statistics = {norm.weight: norm.rms_C, norm.bias: norm.mean_C}
            old = self.permute({**values, **statistics}, permutation)
            weight, rms_C, mean_C = moved[norm.weight].double(), old[norm.weight], old[norm.bias]
            bias = moved[norm.bias].double() + weight * (norm.mean_C - mean_C) / rms_C
            moved[norm.weight] = (weight * (norm.rms_C / rms_C)).to(moved[norm.weight].dtype)
            moved[norm.bias] = bias.to(moved[norm.bias].dtype)
        return moved


@dataclass(frozen=True)
class Symmetry:
    """The permutations of hidden units that change parameters of ``subset`` alone and leave the function as it is."""

    subset: Subset
    groups: tuple[Group, ...]
    left: tuple[str, ...]
    """Which hidden axes stay as they are, and why."""

    @staticmethod
    def of(module: nn.Module, subset: Subset, example_x: Tensor) -> "Symmetry":
        """Those of ``module`` (put in eval mode); ``example_x`` (2 or more, C, H, W) shows what inputs look like. A
        module that cannot be exported has none."""
        try:
            graph = export(module.eval(), example_x)
        except Exception as error:
            why = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            return Symmetry(subset, (), (f"torch.export cannot read this classifier: {why}",))
        return _Reading(module, subset, graph).symmetry()

    def permuted(self, theta_SD: Tensor, permutations: Sequence[Tensor]) -> Tensor:
        """``theta_SD`` (or theta_D) with new unit i of each group its old unit p[i]. The same bits where p[i] is i."""
        values = self.flat(theta_SD)
        for group, permutation in zip(self.groups, permutations, strict=True):
            values |= group.permute_with_norms(values, permutation)
        return torch.cat(list(values.values()), dim=-1)

    def flat(self, theta: Tensor) -> dict[str, Tensor]:
        """Parameters by name, each flattened: (..., D) becomes one (..., n) for each."""
        return {name: value.reshape(*theta.shape[:-1], -1) for name, value in self.subset.split(theta).items()}


class _Reading:
    """A graph, read node by node: the axes of every value, and so of every parameter of the subset."""

    def __init__(self, module: nn.Module, subset: Subset, graph: Graph) -> None:
        aliases = aliases_of(module, subset)  # the graph may know a tied parameter by any of its names
        self.subset, self.graph = subset, graph
        self.names = {name: aliases.get(target, target) for name, target in graph.lifted.items()}
        self.parameters = dict(zip(subset.names, map(fresh, subset.shapes), strict=True))
        self.norms: dict[str, Norm] = {}
        self.values: dict[fx.Node, Any] = {}
        """Of a node that gives several tensors, a list."""
        for node in graph.nodes:
            self.values[node] = self._read(node)
        used = {self.names.get(node.name) for node in graph.nodes if node.users}
        self._pin([self.values[graph.result], *(v for name, v in self.parameters.items() if name not in used)])

    def symmetry(self) -> Symmetry:
        axes: dict[Factor, list[Axis]] = {}
        left: dict[str, list[str]] = {}
        for (name, value), shape in zip(self.parameters.items(), self.subset.shapes, strict=True):
            for k, places in enumerate(map(leaves, value)):
                outer, rest = math.prod(shape[:k]), math.prod(shape[k:])
                for factor in places:
                    rest //= factor.size
                    if factor.why is None:
                        axes.setdefault(factor, []).append(Axis(name, k, outer, rest))
                    outer *= factor.size
                whys = {factor.why for factor in places}
                for why in sorted(whys - {""}, key=str) if None not in whys else ():
                    left.setdefault(str(why), []).append(f"axis {k} of {name}")
        groups = []
        for factor, of_factor in axes.items():
            norms = (self.norms.get(name) for name in dict.fromkeys(axis.name for axis in of_factor))
            groups.append(Group(factor.size, tuple(of_factor), tuple(norm for norm in norms if norm)))
        reasons = tuple(f"{', '.join(names)}: {why}" for why, names in left.items())
        return Symmetry(self.subset, tuple(groups), reasons)

    def _read(self, node: fx.Node) -> Any:
        """Axes of the tensor that ``node`` gives; a list of such where it gives several; itself where it gives none."""
        given = node.meta.get("val")
        if node.op != "call_function":
            name = self.names.get(node.name, "a constant")
            why = "" if node is self.graph.x else f"it meets {name}, which all members share"
            axes = self.parameters.get(name) or fresh(_shape(given), why)
            return axes if isinstance(given, Tensor) else node
        if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
            return self.values[node.args[0]][node.args[1]]
        shapes = list(map(_shape, given if isinstance(given, tuple | list) else [given]))
        try:
            several = self._ruled(node, shapes)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            several = None  # a rule is for the arguments that it was written for
        if several is None or [tuple(map(count, value)) for value in several] != shapes:
            why = f"it meets {node.target}, an operation without a rule"
            for parent in node.all_input_nodes:
                self._pin(self.values[parent], why)
            several = [fresh(shape, why) for shape in shapes]
        return several if isinstance(given, tuple | list) else several[0] if isinstance(given, Tensor) else node

    def _pin(self, value: Any, why: str = "") -> None:
        for axis in value if isinstance(value, list) else ():
            self._pin(axis, why) if isinstance(axis, list) else pin(axis, why)

    def _ruled(self, node: fx.Node, shapes: list[Shape]) -> list[Value] | None:
        """Axes of all that the operation gives; None where no rule fits."""
        schema = private.schema(node)
        empty = any(0 in _shape(parent.meta.get("val")) for parent in node.all_input_nodes)
        if schema is None or empty:
            return None
        name = schema.name.removeprefix("aten::")
        if name in SIZES:
            return [[]]
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.values.__getitem__)
        defaults = {argument.name: argument.default_value for argument in schema.arguments}
        a = SimpleNamespace(**{**defaults, **dict(zip(defaults, args, strict=False)), **kwargs})
        window = WINDOWS.fullmatch(name)
        axes: Value | None = None
        if torch.Tag.pointwise in getattr(node.target, "tags", ()):
            values = map(self.values.__getitem__, node.all_input_nodes)
            axes = broadcast([value for value in values if isinstance(value, list)])
        elif node.target in BATCH_NORMS:
            axes = self._batch_norm(node, a)
        elif window:
            axes = windowed(same(a, shapes[0]), shapes[0], int(window[1] or window[2]))
        elif name in ("split", "split_with_sizes", "chunk"):
            starts = itertools.accumulate((shape[a.dim] for shape in shapes), initial=0)
            return [part(a.self, a.dim, shape[a.dim], start) for shape, start in zip(shapes, starts, strict=False)]
        elif name == "unbind":
            return [selected(a, shape) for shape in shapes]
        elif name in RULES:
            axes = RULES[name](a, shapes[0])
        # The others of several (indices, statistics) are not described, so nobody may read them.
        if axes is None or (len(shapes) > 1 and any(user.args[1] != 0 for user in node.users)):
            return None
        return [axes, *(fresh(shape, "") for shape in shapes[1:])]

    def _batch_norm(self, node: fx.Node, a: Any) -> Value | None:
        x = channelwise(a.input, a.weight, a.bias)
        if a.running_mean is None and a.running_var is None:  # it goes by the batch's own
            return x
        if getattr(a, "training", False):
            return None
        weight, bias, mean, var = names = self._named(node)
        if mean in self.parameters and var in self.parameters:
            return channelwise(x, a.running_mean, a.running_var)
        # Nothing else may read a weight and bias that are to take up the move.
        may_absorb = weight in self.parameters and bias in self.parameters and weight != bias
        holders = [parent for parent in self.graph.nodes if self.names.get(parent.name) in (weight, bias)]
        uses = [(user.target, self._named(user), user.args[5:]) for parent in holders for user in parent.users]
        may_absorb = may_absorb and all(use == (node.target, names, node.args[5:]) for use in uses)
        if may_absorb and {mean, var} <= set(self.graph.lifted.values()) - set(self.parameters):
            buffers = [self.graph.constants[n.name] for n in node.args[3:5] if isinstance(n, fx.Node)]
            mean_C, var_C = (buffer.detach().to("cpu", torch.float64) for buffer in buffers)
            self.norms[weight] = Norm(weight, bias, mean_C, (var_C + a.eps).sqrt())
        else:
            pin(x[1], f"it meets {mean or 'statistics'}, which all members share")
        return x

    def _named(self, node: fx.Node) -> list[str]:
        """Weight, bias, mean and variance of a batch norm."""
        return [self.names.get(getattr(value, "name", ""), "") for value in node.args[1:5]]


def _shape(value: Any) -> Shape:
    return tuple(
        n if isinstance(n, int) else _of_batch(private.expression(n))
        for n in (value.shape if isinstance(value, Tensor) else ())
    )


def _of_batch(expression: Any) -> int:
    """The size where each of its symbols is BATCH."""
    return int(expression.subs(dict.fromkeys(expression.free_symbols, BATCH)))
