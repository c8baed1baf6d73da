"""How a classifier becomes a shared trunk: it is traced, and its graph cut at the parameters of the subset.

``torch.export`` turns a classifier into a graph in which parameters are inputs. Nodes that depend on no parameter of
the subset are the trunk; the rest is the tail, run for every member.
"""

import operator
import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from bend_ray.errors import ModelError
from bend_ray.models import private
from bend_ray.models.faithful import settle
from bend_ray.models.graph import (
    Graph,
    aliases_of,
    as_function,
    batch_norms,
    dependents,
    export,
    kind_of,
    observed_batch_norm,
    peak_bytes,
)
from bend_ray.models.output import logits
from bend_ray.models.subset import Subset
from bend_ray.models.subset_rules import BATCH_NORMS
from bend_ray.models.trunk import Plan, SharedTrunk


def partition(
    module: nn.Module,
    subset: Subset,
    example_x: Tensor,
    precision: torch.dtype = torch.float32,
    graph: Graph | None = None,
) -> SharedTrunk:
    """Cut ``module`` (put in eval mode) at ``subset``; ``example_x`` (2 or more, C, H, W) shows what inputs look like,
    and ``graph`` is what it exports to, where that was done before.

    A module that cannot be exported is run whole for every member, and one that fails in a reduced ``precision`` runs
    in float32, with one warning that says why.
    """
    settle(module)
    private.silence_vmap_fallback()  # plans are for that
    try:
        graph = export(module, example_x) if graph is None else graph
        if precision != torch.float32:
            try:
                return _partition(graph, module, subset, example_x, precision)
            except ModelError as error:
                warnings.warn(f"ensemble.precision: float32 is used instead of {precision}: {error}", stacklevel=2)
        return _partition(graph, module, subset, example_x, torch.float32)
    except Exception as error:
        why = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if rows := private.fixed_rows(error):
            why = f"its forward pass is another one for another number of rows ({rows})"
        warnings.warn(f"torch.export cannot cut this classifier, so every member runs it whole: {why}", stacklevel=2)
        return unpartitioned(module, subset)


def unpartitioned(module: nn.Module, subset: Subset) -> SharedTrunk:
    """``module`` not cut at all: the trunk gives its input."""
    norms = {
        path: child
        for path, child in module.named_modules()
        if isinstance(child, BATCH_NORMS) and child.running_mean is not None
    }
    statistics = tuple(f"{path}.{name}" for path in norms for name in ("running_mean", "running_var"))
    places = _places(module)

    def tail(theta: dict[str, Tensor], x: Tensor) -> Tensor:
        given = {place: value for name, value in theta.items() for place in places[name]}
        # A copy: members must not see what one of them writes into its input.
        return logits(torch.func.functional_call(module, given, (x.clone(),), tie_weights=False))

    def observe(theta: dict[str, Tensor], x: Tensor) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        before = {norm: norm.momentum for norm in norms.values()}
        try:
            for norm in before:
                norm.training, norm.momentum = True, 1.0  # it then leaves the batch's own statistics behind
            tail({**theta, **buffers}, x)
        finally:
            for norm, momentum in before.items():
                norm.training, norm.momentum = False, momentum
        return torch.cat([buffers[name].reshape(-1) for name in statistics])

    return SharedTrunk(subset, "whole model", lambda x: (x,), tail, 0.0, ("rows",), lambda rows: 0, statistics, observe)


def _places(module: nn.Module) -> dict[str, list[str]]:
    """Of each parameter and buffer, by its first name: where it is to be put for a call, each place once. By all names,
    as torch ties weights, a module that has two keeps what was put there: its own values are lost."""
    places: dict[int, list[str]] = {}
    for path, child in module.named_modules():
        direct = {"recurse": False, "remove_duplicate": False}
        for key, value in [*child.named_parameters(**direct), *child.named_buffers(**direct)]:
            places.setdefault(id(value), []).append(f"{path}.{key}".removeprefix("."))
    return {names[0]: names for names in places.values()}


def _partition(
    graph: Graph, module: nn.Module, subset: Subset, example_x: Tensor, precision: torch.dtype
) -> SharedTrunk:
    aliases = aliases_of(module, subset)  # the graph may know a tied parameter by any of its names
    given = {name: aliases[target] for name, target in graph.lifted.items() if target in aliases}
    constants = {name: value for name, value in graph.constants.items() if name not in given}
    tail_nodes = dependents(graph.nodes, set(given))
    if graph.result not in tail_nodes:
        raise ModelError("its logits do not depend on the chosen parameters")
    # What the tail reads of the trunk, without the constants: those both parts hold.
    border = [
        node
        for node in graph.nodes
        if node not in tail_nodes and node.name not in constants and any(user in tail_nodes for user in node.users)
    ]
    calls = [node for node in graph.nodes if node.op == "call_function" and node.target not in private.CHECKS]
    calls_trunk, calls_tail = ([n for n in calls if (n in tail_nodes) == tail] for tail in (False, True))
    run_trunk = as_function(calls_trunk, [*constants, graph.x.name], [node.name for node in border])
    tail_inputs = [*constants, *given, *(node.name for node in border)]
    run_tail = as_function(calls_tail, tail_inputs, [graph.result.name])

    def rounded(value: Any) -> Any:
        single = isinstance(value, Tensor) and value.dtype == torch.float32
        return value.to(precision) if single else value

    values, names = tuple(map(rounded, constants.values())), tuple(given.values())

    def trunk(x: Tensor) -> tuple[Any, ...]:
        return run_trunk(*values, rounded(x))

    def tail(theta: dict[str, Tensor], *shared: Any) -> Tensor:
        (logits_BK,) = run_tail(*values, *(rounded(theta[name]) for name in names), *shared)
        return logits_BK

    # A batch norm with a generated scale on the trunk's values sees the same batch whoever the member is.
    norms = batch_norms([node for node in calls_tail if node.args and node.args[0] in tail_nodes], graph.lifted)
    statistics = tuple(dict.fromkeys(name for pair in norms.values() for name in pair))

    def observe(theta: dict[str, Tensor], *shared: Any) -> Tensor:
        given_values = (*values, *(rounded(theta[name]) for name in names), *shared)
        return _observed(calls_tail, tail_inputs, norms, given_values)

    counted = [node for node in calls if node.target is not operator.getitem]
    share = sum(node not in tail_nodes for node in counted) / max(len(counted), 1)
    # Convolutions under vmap become grouped ones, slower on every CPU we tried than one member after another.
    heavy = any("conv" in str(node.target) for node in calls_tail)
    kinds = tuple(kind_of(node.meta.get("val"), graph.batch) for node in border)
    tail_bytes = partial(peak_bytes, calls_tail, graph.batch)
    plan: Plan = "loop" if heavy else "vmap"
    cut = SharedTrunk(subset, plan, trunk, tail, share, kinds, tail_bytes, statistics, observe, precision=precision)
    return _tried(cut, subset.take(module).to(example_x.device).expand(2, -1), example_x)


def _observed(
    nodes: list[fx.Node], inputs: list[str], norms: dict[fx.Node, tuple[str, str]], values: tuple[Any, ...]
) -> Tensor:
    """See `SharedTrunk.observe`: the statistics of ``norms`` where ``nodes`` run on ``values`` of ``inputs``; of a norm
    that runs more than once, their mean."""
    seen: dict[str, list[Tensor]] = {name: [] for pair in norms.values() for name in pair}
    watched = {node: observed_batch_norm(node, [seen[name] for name in pair]) for node, pair in norms.items()}
    as_function(nodes, inputs, [], watched)(*values)
    return torch.cat([torch.stack(batches).mean(0) for batches in seen.values()])


def _tried(cut: SharedTrunk, theta_MD: Tensor, x: Tensor) -> SharedTrunk:
    """``cut``, once it has run; with a loop where vmap has no rule for one of its operations."""
    try:
        cut.logits(theta_MD, x)
    except ModelError:
        if cut.plan == "loop":
            raise
        return _tried(replace(cut, plan="loop"), theta_MD, x)
    return cut
