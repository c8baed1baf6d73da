"""A classifier as a graph: exported, with its parameters as inputs, and run node by node."""

import contextlib
import io
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn

from bend_ray.data.classifiers import logits
from bend_ray.weights.subset import Subset


class _Logits(nn.Module):
    """The classifier, returning its logits whatever it returns them in."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return logits(self.module(x))


def export(module: nn.Module, example_x: Tensor) -> torch.export.ExportedProgram:
    """``module`` as a graph in which no operation writes in place: members would see it in what they share."""
    batch = torch.export.Dim("batch", min=1)
    # For a module it cannot export, torch prints the unfinished graph; the reason it raises is enough.
    with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        program = torch.export.export(_Logits(module), (example_x,), dynamic_shapes={"x": {0: batch}}, strict=False)
        if not all(_pure(node) for node in program.graph.nodes):
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, from a deprecated part of its pytree
            program = program.run_decompositions({})
    return program


def _pure(node: fx.Node) -> bool:
    """Whether it writes nothing in place, nor runs a graph within the graph, which may."""
    schema = getattr(node.target, "_schema", None)
    return node.op != "get_attr" and not (schema is not None and schema.is_mutable)


def dependents(graph: fx.Graph, names: set[str]) -> set[fx.Node]:
    """The nodes of these ``names`` and all that depend on them."""
    found: set[fx.Node] = set()
    for node in graph.nodes:  # in topological order
        if node.name in names or any(parent in found for parent in node.all_input_nodes):
            found.add(node)
    return found


def aliases_of(module: nn.Module, subset: Subset) -> dict[str, str]:
    """Every name of a chosen parameter (a tied one has several) to its name in the subset."""
    by_id = {id(value): name for name, value in _values(module) if name in subset.names}
    return {name: by_id[id(value)] for name, value in _values(module, every=True) if id(value) in by_id}


def _values(module: nn.Module, every: bool = False) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=not every)
    yield from module.named_buffers(remove_duplicate=not every)


Step = tuple[fx.Node, list[str]]
"""A node, and the names of those that nobody reads after it."""


def steps_of(nodes: list[fx.Node], kept: set[str]) -> list[Step]:
    """``nodes`` in order, each with what may be let go of after it; what is ``kept`` is not."""
    last: dict[str, int] = {}
    for i, node in enumerate(nodes):
        last |= dict.fromkeys([node.name, *(parent.name for parent in node.all_input_nodes)], i)
    over: list[list[str]] = [[] for _ in nodes]
    for name, i in last.items():
        if name not in kept:
            over[i].append(name)
    return list(zip(nodes, over, strict=True))


def run_steps(
    steps: list[Step], values: dict[str, Any], instead: Mapping[str, Callable[..., Any]] = MappingProxyType({})
) -> dict[str, Any]:
    """Execute graph nodes in order on ``values`` by node name; returns those that were kept.

    ``instead``: other functions for some nodes, by name.
    """
    for node, over in steps:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n.name])
        values[node.name] = instead.get(node.name, node.target)(*args, **kwargs)  # type: ignore[operator]
        for name in over:
            del values[name]
    return values


def batch_norms(nodes: Iterable[fx.Node], buffers: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Names of the buffers (running mean and variance) of each of ``nodes`` that normalises by them.

    ``buffers``: names by those of the graph's inputs.
    """
    aten = torch.ops.aten
    kinds = (aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default)
    return {
        node.name: (buffers[node.args[3].name], buffers[node.args[4].name])
        for node in nodes
        if node.target in kinds and isinstance(node.args[3], fx.Node) and isinstance(node.args[4], fx.Node)
    }


def observed_batch_norm(node: fx.Node, into: Callable[[Tensor, Tensor], None]) -> Callable[..., Any]:
    """What ``node`` would do in training mode; ``into`` is told mean and (unbiased) variance of the batch."""
    alone = node.target is torch.ops.aten.batch_norm.default
    place_of_eps = 7 if alone else 6

    def run(x: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any) -> Any:
        axes = [0, *range(2, x.ndim)]
        rows = x.numel() // x.shape[1]
        var_C, mean_C = torch.var_mean(x, axes, correction=0)
        into(mean_C, var_C * (rows / max(rows - 1, 1)))
        shape = (1, -1, *[1] * (x.ndim - 2))
        scale_C = (var_C + rest[place_of_eps - 3]).rsqrt()
        scale_C = scale_C if weight is None else scale_C * weight
        shift_C = -mean_C * scale_C if bias is None else bias - mean_C * scale_C
        found = x * scale_C.reshape(shape) + shift_C.reshape(shape)
        return found if alone else (found, mean_C, scale_C)

    return run


def kind_of(value: Any, batch: torch.SymInt) -> str | None:
    """See `SharedTrunk.kinds`; ``value`` is the exporter's stand-in for what the node gives."""
    symbols = [
        size for size in (value.shape if isinstance(value, Tensor) else (value,)) if isinstance(size, torch.SymInt)
    ]
    if not symbols:
        return "fixed" if isinstance(value, Tensor | int | float | bool) else None
    if len(symbols) > 1 or symbols[0].node.expr != batch.node.expr:
        return None
    if not isinstance(value, Tensor):
        return "size"
    return "rows" if isinstance(value.shape[0], torch.SymInt) else None


def peak_bytes(steps: list[Step], batch: torch.SymInt, rows: int) -> int:
    """The most that the values of ``steps`` take at once, bytes, if the batch has so many rows."""

    def size(node: fx.Node) -> int:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return 0
        axes = [int(n.node.expr.subs(batch.node.expr, rows)) if isinstance(n, torch.SymInt) else n for n in value.shape]
        return math.prod(axes) * value.element_size()

    held: dict[str, int] = {}
    peak = 0
    for node, over in steps:
        held[node.name] = size(node)
        peak = max(peak, sum(held.values()))
        for name in over:
            held.pop(name, None)
    return peak
