"""A classifier's forward pass as steps from parameters to logits: read by `torch.export`, else from autograd."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.graph import Node

from bend_ray import seeds
from bend_ray.models import private
from bend_ray.models.graph import Graph, export
from bend_ray.models.output import logits
from bend_ray.models.reach import Reach, Shape, Step, by_definition, reach
from bend_ray.models.subject import in_eval_mode
from bend_ray.models.subset import first_names


def reach_of(module: nn.Module, example_x: Tensor) -> tuple[Reach, Graph | None]:
    """How the parameters of ``module`` in eval mode reach its logits, and the graph that tells it; ``example_x``: two
    rows or more.

    A module that `torch.export` cannot read is run once, and read from what autograd has seen. Where that fails too,
    the order of definition stands for it.
    """
    with in_eval_mode(module):
        try:
            graph = export(module, example_x)
            return of_graph(module, graph), graph
        except Exception as error:
            why = f"torch.export cannot read this classifier: {private.fixed_rows(error) or _first_line(error)}"
        try:
            return of_autograd(module, example_x, why), None
        except Exception as error:
            return by_definition(module, f"{why}; nor can autograd: {_first_line(error)}"), None


def of_graph(module: nn.Module, graph: Graph) -> Reach:
    """By the exported ``graph`` of ``module``."""
    parameters, first = dict(module.named_parameters(remove_duplicate=False)), first_names(module)
    steps: dict[fx.Node, Step] = {}
    for node in graph.nodes:
        name = graph.lifted.get(node.name, "")
        if node is graph.x:
            steps[node] = Step("x", (), _shape(node))
        elif name in parameters:
            steps[node] = Step("parameter", (), tuple(parameters[name].shape), first[name])
        else:
            kind = _plain(_operation(node))
            parents = () if _takes_no_value(node, kind) else tuple(steps[one] for one in node.all_input_nodes)
            steps[node] = Step(kind, parents, _shape(node))
    return reach(list(steps.values()), steps[graph.result])


def _takes_no_value(node: fx.Node, kind: str) -> bool:
    """Whether it asks for no more than sizes: how many rows there are is no value of theirs."""
    is_size = isinstance(node.meta.get("val"), torch.SymInt | torch.SymBool | torch.SymFloat)
    return is_size or kind.startswith(("new", "empty", "zeros", "ones", "rand"))


def _operation(node: fx.Node) -> str:
    target = getattr(node.target, "overloadpacket", node.target)
    return str(getattr(target, "__name__", target))


def _shape(node: fx.Node) -> Shape:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return ()
    return tuple(size if isinstance(size, int) else None for size in value.shape)


@seeds.seeded(0, "graph")
def of_autograd(module: nn.Module, example_x: Tensor, why: str = "") -> Reach:
    """By what autograd has seen of one forward pass: no more than what gradients go through. Raises whatever the
    forward pass does."""
    first, names = first_names(module), {id(value): name for name, value in module.named_parameters()}
    x = example_x.clone().requires_grad_()
    with torch.enable_grad(), _all_with_gradients(module), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = logits(module(x.clone())).grad_fn
    if result is None:
        raise ValueError("no gradient reaches the logits")
    steps: dict[Node, Step] = {}
    waiting: list[tuple[Node, bool]] = [(result, False)]
    while waiting:  # parents before children, without recursion: networks are deep
        node, has_parents = waiting.pop()
        if node in steps:
            continue
        parents = [parent for parent, _ in node.next_functions if parent is not None]
        variable: Any = getattr(node, "variable", None)
        if not has_parents:
            waiting += [(node, True), *((parent, False) for parent in reversed(parents) if parent not in steps)]
        elif variable is x:
            steps[node] = Step("x", (), (None, *x.shape[1:]))
        elif id(variable) in names:
            steps[node] = Step("parameter", (), tuple(variable.shape), first[names[id(variable)]])
        else:
            made = tuple(steps[parent] for parent in parents)
            steps[node] = Step(_plain(node.name()), made, (None, *private.shape_of(node)[1:]))
    return reach(list(steps.values()), steps[result], why)


@contextlib.contextmanager
def _all_with_gradients(module: nn.Module) -> Iterator[None]:
    """Frozen parameters as well, for these are on the way too."""
    frozen = [value for value in module.parameters() if not value.requires_grad and value.is_floating_point()]
    try:
        for value in frozen:
            value.requires_grad_(True)
        yield
    finally:
        for value in frozen:
            value.requires_grad_(False)


def _plain(name: str) -> str:
    """Without underscores and what says which form of an operation it is."""
    return name.partition(".")[0].partition("Backward")[0].replace("_", "").lower()


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
