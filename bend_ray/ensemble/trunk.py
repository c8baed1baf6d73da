"""The shared trunk: what all members have in common is computed once for a batch.

``torch.export`` turns a classifier into a graph in which parameters are inputs. Nodes that depend on no parameter of
the subset are the trunk; the rest is the tail, run for every member.
"""

import contextlib
import operator
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bend_ray.config import Ensemble as Settings
from bend_ray.data.classifiers import logits
from bend_ray.ensemble.graph import (
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
from bend_ray.errors import BendError, ModelError
from bend_ray.weights.subset import Subset

CHECKS = (torch.ops.aten._assert_tensor_metadata.default,)
"""Operations of a graph that only check that it runs as it was exported: with reduced precision it does not."""
CHUNK = Settings().chunk
"""Members that run at once unless a plan says otherwise: fixed, so that bits do not depend on the machine's mood."""
MAX_MEMORY = int(Settings().max_memory * 2**30)
"""Bytes that the tails of members that run at once may take."""


Plan = Literal["vmap", "loop", "whole model"]


@dataclass(frozen=True)
class SharedTrunk:
    """A classifier cut at the parameters of ``subset``."""

    subset: Subset
    plan: Plan
    """`vmap`: all members of a chunk at once; `loop`: the tail, member by member; `whole model`: not cut at all."""
    trunk: Callable[[Tensor], tuple[Any, ...]]
    tail: Callable[..., Tensor]
    """(theta by name, *what the trunk gave) -> logits_BK of one member."""
    trunk_share: float
    """Share of the graph's operations that run once for all members."""
    kinds: tuple[str | None, ...]
    """How each of the trunk's values depends on the batch: `rows` (its first axis), `size` (its number of rows),
    `fixed` (not at all), or None, some other way."""
    tail_bytes: Callable[[int], int]
    """Peak memory of one member's tail under vmap, bytes, for so many rows: as the graph says, nothing is measured."""
    statistics: tuple[str, ...]
    """Buffers of the batch norms whose input depends on the subset: running means and variances."""
    observe: Callable[..., Tensor]
    """As ``tail``, but these batch norms normalise by the batch; gives its statistics, flattened, in that order."""
    chunk: int = CHUNK
    """Members that run at once."""
    max_memory: int = MAX_MEMORY
    """Bytes that the tails of a chunk may take under vmap; one member's may take more."""
    precision: torch.dtype = torch.float32
    """Of all that is computed; logits come out as float32."""
    compiled: Callable[..., Tensor] | None = None
    """`chunk_of_tails` (under a loop, ``tail``), compiled; the trunk then is too."""

    def describe(self) -> str:
        return f"{self.plan}: {self.trunk_share:.0%} of operations once for all members, D = {self.subset.D}"

    @torch.no_grad()
    def logits(self, theta_MD: Tensor, x: Tensor) -> Tensor:
        """``logits_MBK`` for inputs x (B, C, H, W) and members theta_MD (M, D).

        A member's logits depend on the others of its chunk of 16 no further than float rounding. Raises ModelError
        where shapes do not fit the classifier.
        """
        return torch.cat(list(self.chunks(theta_MD, x)))

    @torch.no_grad()
    def chunks(self, theta_MD: Tensor, x: Tensor) -> Iterator[Tensor]:
        """`logits` of one chunk of members after another, so that those of all need not exist at once."""
        with self.running(theta_MD, x):
            shared = self.trunk(x)
            for chunk_MD in theta_MD.split(self.at_once(len(x))):
                yield self.members(chunk_MD, shared)

    def at_once(self, rows: int) -> int:
        """Members that run at once on so many rows."""
        fitting = self.max_memory // max(1, self.tail_bytes(rows)) if self.plan == "vmap" else self.chunk
        return max(1, min(self.chunk, fitting))

    def members(self, theta_MD: Tensor, shared: tuple[Any, ...]) -> Tensor:
        """``logits_MBK`` of all these members at once, from what ``trunk`` gave."""
        if self.plan == "vmap":
            run = self.compiled or self.chunk_of_tails
            return run(self.subset.split(theta_MD), *shared).float()
        run = self.compiled or self.tail
        return torch.stack([run(self.subset.split(theta_D), *shared) for theta_D in theta_MD]).float()

    def chunk_of_tails(self, theta: dict[str, Tensor], *shared: Any) -> Tensor:
        """``logits_MBK``: ``tail`` with one more axis, of members, on each tensor of ``theta``."""
        found: Tensor = torch.func.vmap(self.tail, in_dims=(0, *[None] * len(shared)))(theta, *shared)
        return found

    def rows(self, shared: tuple[Any, ...], row_b: Tensor) -> tuple[Any, ...] | None:
        """What ``trunk`` gave, of these rows alone; None where it cannot be told apart by rows."""
        if None in self.kinds:
            return None
        change: dict[str | None, Callable[[Any], Any]] = {
            "rows": lambda value: value[row_b],
            "size": lambda value: len(row_b),
            "fixed": lambda value: value,
        }
        return tuple(change[kind](value) for kind, value in zip(self.kinds, shared, strict=True))

    @contextlib.contextmanager
    def running(self, theta_MD: Tensor, x: Tensor) -> Iterator[None]:
        """Where ``trunk`` and ``members`` are called: what goes wrong inside (run whole, the classifier is the user's
        code) is a ModelError that says on what, and why."""
        if theta_MD.ndim != 2 or len(theta_MD) == 0:
            raise ModelError(f"parameters of shape {tuple(theta_MD.shape)}; expected (members, {self.subset.D})")
        try:
            yield
        except BendError:
            raise
        except Exception as error:
            raise ModelError(
                f"the classifier fails on inputs of shape {tuple(x.shape)} with {len(theta_MD)} members ({error})"
            ) from error


def split(module: nn.Module, subset: Subset, example_x: Tensor, precision: torch.dtype = torch.float32) -> SharedTrunk:
    """Cut ``module`` (put in eval mode) at ``subset``; ``example_x`` (2 or more, C, H, W) shows what inputs look like.

    A module that cannot be exported is run whole for every member, and one that fails in a reduced ``precision`` runs
    in float32, with one warning that says why.
    """
    module.eval()
    # Where vmap has no rule for an operation it loops over it, and says so on stderr every time; plans are for that.
    torch._C._functorch._set_vmap_fallback_warning_enabled(False)  # type: ignore[attr-defined]
    try:
        graph = export(module, example_x)
        if precision != torch.float32:
            try:
                return _cut(graph, module, subset, example_x, precision)
            except ModelError as error:
                warnings.warn(f"ensemble.precision: float32 is used instead of {precision}: {error}", stacklevel=2)
        return _cut(graph, module, subset, example_x, torch.float32)
    except Exception as error:
        why = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        warnings.warn(f"torch.export cannot cut this classifier, so every member runs it whole: {why}", stacklevel=2)
        return whole(module, subset)


def whole(module: nn.Module, subset: Subset) -> SharedTrunk:
    """``module`` not cut at all: the trunk gives its input."""
    norms = {
        path: child
        for path, child in module.named_modules()
        if isinstance(child, nn.modules.batchnorm._BatchNorm) and child.running_mean is not None
    }
    statistics = tuple(f"{path}.{name}" for path in norms for name in ("running_mean", "running_var"))

    def tail(theta: dict[str, Tensor], x: Tensor) -> Tensor:
        # A copy: members must not see what one of them writes into its input.
        return logits(torch.func.functional_call(module, theta, (x.clone(),)))

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


def _cut(graph: Graph, module: nn.Module, subset: Subset, example_x: Tensor, precision: torch.dtype) -> SharedTrunk:
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
    calls = [node for node in graph.nodes if node.op == "call_function" and node.target not in CHECKS]
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
        (found,) = run_tail(*values, *(rounded(theta[name]) for name in names), *shared)
        return found

    # A batch norm with a generated scale on the trunk's values sees the same batch whoever the member is.
    norms = batch_norms([node for node in calls_tail if node.args and node.args[0] in tail_nodes], graph.lifted)
    statistics = tuple(dict.fromkeys(name for pair in norms.values() for name in pair))

    def observe(theta: dict[str, Tensor], *shared: Any) -> Tensor:
        seen: dict[str, list[Tensor]] = {name: [] for name in statistics}
        watched = {node: observed_batch_norm(node, [seen[name] for name in pair]) for node, pair in norms.items()}
        run = as_function(calls_tail, tail_inputs, [], watched)
        run(*values, *(rounded(theta[name]) for name in names), *shared)
        return torch.cat([torch.stack(found).mean(0) for found in seen.values()])

    counted = [node for node in calls if node.target is not operator.getitem]
    share = sum(node not in tail_nodes for node in counted) / max(len(counted), 1)
    # Convolutions under vmap become grouped ones, slower on every CPU we tried than one member after another.
    heavy = any("conv" in str(node.target) for node in calls_tail)
    kinds = tuple(kind_of(node.meta.get("val"), graph.batch) for node in border)

    def tail_bytes(rows: int) -> int:
        return peak_bytes(calls_tail, graph.batch, rows)

    plan: Plan = "loop" if heavy else "vmap"
    cut = SharedTrunk(subset, plan, trunk, tail, share, kinds, tail_bytes, statistics, observe, precision=precision)
    return _tried(cut, subset.take(module).to(example_x.device).expand(2, -1), example_x)


def _tried(cut: SharedTrunk, theta_MD: Tensor, x: Tensor) -> SharedTrunk:
    """``cut``, once it has run; with a loop where vmap has no rule for one of its operations."""
    try:
        cut.logits(theta_MD, x)
    except ModelError:
        if cut.plan == "loop":
            raise
        return _tried(replace(cut, plan="loop"), theta_MD, x)
    return cut
