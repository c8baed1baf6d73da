"""A classifier as a graph: exported, with its parameters as inputs, and run node by node."""

import contextlib
import copy
import functools
import io
import math
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn

from bend_ray import seeds
from bend_ray.models import private
from bend_ray.models.output import logits
from bend_ray.models.subset import Subset


class _Logits(nn.Module):
    """The classifier, returning its logits whatever it returns them in."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return logits(self.module(x))


@dataclass(frozen=True)
class Graph:
    """A classifier from inputs to logits."""

    nodes: list[fx.Node]
    """In an order in which they can run."""
    lifted: dict[str, str]
    """Parameters and buffers by the name of the node that stands for each."""
    constants: dict[str, Any]
    """Values, by name of node, that do not depend on the input: parameters, buffers, branches of torch.cond."""
    x: fx.Node
    result: fx.Node

    @property
    def batch(self) -> torch.SymInt:
        """Rows of the input."""
        rows: torch.SymInt = self.x.meta["val"].shape[0]
        return rows


@seeds.seeded(0, "graph")
def export(module: nn.Module, example_x: Tensor) -> Graph:
    """``module`` as a graph in which no operation writes in place: members would see it in what they share.

    What the module draws of Python or numpy as it is traced becomes a constant, the same each time. The graph is that
    of the CPU on any device, for a GPU's may be another one, or none: some of its operations fix the
    number of rows while they are traced.
    """
    batch, device = torch.export.Dim("batch", min=1), example_x.device
    traced = module if device.type == "cpu" else on_cpu(module)
    # For a module it cannot export, torch prints the unfinished graph; the reason it raises is enough.
    with (
        torch.no_grad(),
        contextlib.redirect_stderr(io.StringIO()),
        private.silent_guards(),
        warnings.catch_warnings(),
    ):
        program = _program(_Logits(traced), example_x.cpu(), {"x": {0: batch}})
        if not all(_pure(node) for node in program.graph.nodes):
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, from a deprecated part of its pytree
            program = program.run_decompositions({})
        if device.type != "cpu":
            program = private.moved(program, device)
    originals = {f"module.{name}": value for name, value in _values(module, every=True)}
    signature, fixed = program.graph_signature, {**program.state_dict, **program.constants}
    fixed = {name: originals.get(name, value) for name, value in fixed.items()}
    lifted = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    nodes = {node.name: node for node in program.graph.nodes}

    def value_of(node: fx.Node) -> Any | None:
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(program.graph_module)
        return fixed.get(lifted.get(node.name) or signature.inputs_to_lifted_tensor_constants.get(node.name))

    (x,) = (nodes[name] for name in signature.user_inputs if isinstance(name, str))
    (result,) = (nodes[name] for name in signature.user_outputs if isinstance(name, str))
    return Graph(
        nodes=list(nodes.values()),
        lifted={name: target.removeprefix("module.") for name, target in lifted.items()},
        constants={name: value for name, node in nodes.items() if (value := value_of(node)) is not None},
        x=x,
        result=result,
    )


def _program(module: nn.Module, x: Tensor, shapes: dict[str, Any]) -> torch.export.ExportedProgram:
    """Python itself traces ``module``; where that fixes the number of rows, as len(x) does, torch's own reading of its
    code (strict) does, which takes longer and understands less else."""
    export = functools.partial(torch.export.export, module, (x,), dynamic_shapes=shapes)
    try:
        return export(strict=False)
    except Exception as error:
        if not private.fixed_rows(error):
            raise
        plain = error
    try:
        warnings.simplefilter("ignore", UserWarning)  # of buffers that it writes to, which is no news
        return export(strict=True)
    except Exception as error:
        raise (error if private.fixed_rows(error) else plain) from None


def on_cpu(module: nn.Module) -> nn.Module:
    """A copy of ``module`` on the CPU; of tensors that are there already, and of results that a module keeps as plain
    attributes, which a deep copy refuses, the values alone."""
    plain = [value for child in module.modules() for value in vars(child).values() if isinstance(value, Tensor)]
    copies: dict[int, Any] = {}
    for value in [*(value for _, value in _values(module)), *plain]:
        copied = value.detach().cpu()
        copies[id(value)] = nn.Parameter(copied, value.requires_grad) if isinstance(value, nn.Parameter) else copied
    return copy.deepcopy(module, copies)


def _pure(node: fx.Node) -> bool:
    """Whether it writes nothing in place, nor runs a graph within the graph, which may."""
    schema = private.schema(node)
    return node.op != "get_attr" and not (schema is not None and schema.is_mutable)


def dependents(nodes: list[fx.Node], names: set[str]) -> set[fx.Node]:
    """The nodes of these ``names`` and all that depend on them."""
    dependent: set[fx.Node] = set()
    for node in nodes:
        if node.name in names or any(parent in dependent for parent in node.all_input_nodes):
            dependent.add(node)
    return dependent


def aliases_of(module: nn.Module, subset: Subset) -> dict[str, str]:
    """Every name of a chosen parameter (a tied one has several) to its name in the subset."""
    by_id = {id(value): name for name, value in _values(module) if name in subset.names}
    return {name: by_id[id(value)] for name, value in _values(module, every=True) if id(value) in by_id}


def _values(module: nn.Module, every: bool = False) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=not every)
    yield from module.named_buffers(remove_duplicate=not every)


def as_function(
    nodes: list[fx.Node],
    inputs: Sequence[str],
    outputs: Sequence[str],
    instead: Mapping[fx.Node, Callable[..., Any]] = MappingProxyType({}),
) -> Callable[..., tuple[Any, ...]]:
    """``nodes`` as one function of the values of those named ``inputs``: gives those named ``outputs``, and lets go of
    any other after its last use. ``instead``: what to call for some nodes in place of their own operation."""
    graph = fx.Graph()
    copies = {name: graph.placeholder(name) for name in inputs}
    for node in nodes:
        copies[node.name] = graph.node_copy(node, lambda n: copies[n.name])
        copies[node.name].target = instead.get(node, node.target)
    graph.output(tuple(copies[name] for name in outputs))
    return fx.GraphModule(nn.Module(), graph)


BATCH_NORMS = (torch.ops.aten.batch_norm.default, private.BATCH_NORM_WITH_STATISTICS)


def batch_norms(nodes: Iterable[fx.Node], lifted: Mapping[str, str]) -> dict[fx.Node, tuple[str, str]]:
    """Those of ``nodes`` that normalise by running statistics, with the buffers' names: mean and variance."""
    norms = {}
    for node in nodes:
        buffers = [value for value in node.args[3:5] if isinstance(value, fx.Node)]
        if node.target in BATCH_NORMS and len(buffers) == 2:
            norms[node] = (lifted[buffers[0].name], lifted[buffers[1].name])
    return norms


def observed_batch_norm(node: fx.Node, seen: Sequence[list[Tensor]]) -> Callable[..., Any]:
    """What ``node`` would do in training mode; the batch's mean and unbiased variance are put into ``seen``."""
    alone = node.target is torch.ops.aten.batch_norm.default  # the other kind gives the statistics too
    place_of_eps = 7 if alone else 6

    def batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any) -> Any:
        var_C, mean_C = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
        rows = x.numel() // x.shape[1]
        for into, value in zip(seen, (mean_C, var_C * (rows / max(rows - 1, 1))), strict=True):
            into.append(value)
        scale_C = (var_C + rest[place_of_eps - 3]).rsqrt()
        scale_C = scale_C if weight is None else scale_C * weight
        shift_C = -mean_C * scale_C if bias is None else bias - mean_C * scale_C
        shape = (1, -1, *[1] * (x.ndim - 2))
        normalised = x * scale_C.reshape(shape) + shift_C.reshape(shape)
        return normalised if alone else (normalised, mean_C, var_C)

    return batch_norm


def kind_of(value: Any, batch: torch.SymInt) -> str | None:
    """See `SharedTrunk.kinds`; ``value`` is the exporter's stand-in for what the node gives."""
    symbols = [
        size for size in (value.shape if isinstance(value, Tensor) else (value,)) if isinstance(size, torch.SymInt)
    ]
    if not symbols:
        return "fixed" if isinstance(value, Tensor | int | float | bool) else None
    if len(symbols) > 1 or private.expression(symbols[0]) != private.expression(batch):
        return None
    if not isinstance(value, Tensor):
        return "size"
    return "rows" if isinstance(value.shape[0], torch.SymInt) else None


def peak_bytes(nodes: list[fx.Node], batch: torch.SymInt, rows: int) -> int:
    """The most that the values of ``nodes`` take at once, bytes, if the batch has so many rows: each is let go of after
    its last use, but for what no node reads."""

    def number(size: torch.SymInt) -> int:
        return int(private.expression(size).subs(private.expression(batch), rows))

    def size(node: fx.Node) -> int:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return 0
        axes = [number(n) if isinstance(n, torch.SymInt) else n for n in value.shape]
        return math.prod(axes) * value.element_size()

    last = {parent: node for node in nodes for parent in node.all_input_nodes}
    held: dict[fx.Node, int] = {}
    peak = 0
    for node in nodes:
        held[node] = size(node)
        peak = max(peak, sum(held.values()))
        for parent in node.all_input_nodes:
            if last[parent] is node:
                held.pop(parent, None)
    return peak
