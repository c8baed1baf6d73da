"""Training one whole classifier, to the same bits on any number of workers.

A step's batch is cut into ``shards`` fixed pieces. A worker computes gradient and buffers (batch-norm statistics) of
its pieces, all pieces are exchanged, and every worker sums them in the same order. Averaging over workers, as PyTorch's
DistributedDataParallel does, would add the same numbers in an order that depends on how many workers there are.
"""

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bend_ray import seeds
from bend_ray.config import Base
from bend_ray.data.classifiers import logits
from bend_ray.data.datasets import Preprocess, Split
from bend_ray.errors import ConfigError, TrainingError

Progress = Callable[[int, int], None]


def train(
    module: nn.Module,
    rows: Split,
    preprocess: Preprocess,
    base: Base,
    seed: int,
    name: str = "base",
    bootstrap: bool = False,
    progress: Progress | None = None,
) -> float:
    """Train all parameters of ``module`` in place: AdamW, one-cycle learning rate, cross-entropy. Returns the seconds
    that one process would take for it: waiting for other ranks does not count, and their shards count as its own.

    With a ``torch.distributed`` process group the shards of each step are shared out over its ranks (further ranks
    than shards idle), without one this process computes all of them: the bits are the same. All randomness follows
    from ``(seed, name)``. ``bootstrap`` draws as many rows with replacement first.
    Raises ConfigError where a shard would have fewer than two rows, TrainingError where the loss is not finite.
    """
    rank, world = _place()
    batch_size = min(base.batch_size, len(rows))
    if batch_size < 2 * base.shards:
        raise ConfigError(f"base.shards: {base.shards} pieces of {batch_size} rows; each needs 2, use fewer shards")
    generator = seeds.generator_for(seed, name, "batches")
    pool = torch.randint(len(rows), (len(rows),), generator=generator) if bootstrap else torch.arange(len(rows))
    steps = base.epochs * (len(pool) // batch_size)
    device = next(module.parameters()).device
    optimizer = torch.optim.AdamW(module.parameters(), lr=base.lr, weight_decay=base.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, base.lr, total_steps=steps + 1)
    module.train()
    seconds, own = 0.0, len(range(rank, base.shards, world))
    for step, index in zip(range(steps), batches(pool, batch_size, generator), strict=False):
        began, start = time.perf_counter(), _buffers(module)
        size = 1 + sum(p.numel() for p in module.parameters()) + start.numel()
        pieces = torch.zeros(base.shards, size, device=device)
        for shard, part in enumerate(index.tensor_split(base.shards)):
            if shard % world != rank:
                continue
            x, y = preprocess(rows.images[part].to(device)), rows.labels[part].to(device)
            _write_buffers(module, start)
            module.zero_grad(set_to_none=False)
            with seeds.seeded(seed, name, "step", step, shard):
                output = logits(module(x))
            loss = F.cross_entropy(output, y, label_smoothing=base.label_smoothing, reduction="sum") / batch_size
            loss.backward()
            pieces[shard] = torch.cat([loss.detach().reshape(1), _gradients(module), _buffers(module)])
        seconds += (time.perf_counter() - began) * base.shards / max(own, 1)
        if world > 1:
            torch.distributed.all_reduce(pieces)  # one worker's numbers and zeros: exact in any order
        began = time.perf_counter()
        _apply(module, pieces, optimizer)
        schedule.step()
        if not torch.isfinite(pieces[:, 0]).all():
            raise TrainingError(f"training the {name} classifier: the loss is not finite at step {step}; lower base.lr")
        if progress is not None:
            progress(step + 1, steps)
        seconds += time.perf_counter() - began
    module.eval()
    return seconds


def batches(pool: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Row numbers of batches, for ever: ``pool`` in a new order each pass, a short last batch left out."""
    size = min(size, len(pool))
    while True:
        order = pool[torch.randperm(len(pool), generator=generator)]
        yield from order[: len(order) // size * size].split(size)


@torch.no_grad()
def validate(module: nn.Module, rows: Split, preprocess: Preprocess, batch_size: int = 1024) -> tuple[float, float]:
    """Mean cross-entropy (nats) and accuracy of ``module`` in eval mode."""
    module.eval()
    device = next(module.parameters()).device
    loss, right = 0.0, 0
    for images, labels in zip(rows.images.split(batch_size), rows.labels.split(batch_size), strict=True):
        output, y = logits(module(preprocess(images.to(device)))), labels.to(device)
        loss += F.cross_entropy(output, y, reduction="sum").item()
        right += int((output.argmax(1) == y).sum())
    return loss / len(rows), right / len(rows)


def _place() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _gradients(module: nn.Module) -> Tensor:
    flat = [(p.grad if p.grad is not None else torch.zeros_like(p)).reshape(-1) for p in module.parameters()]
    return torch.cat(flat)


def _buffers(module: nn.Module) -> Tensor:
    flat = [b.detach().reshape(-1).to(torch.float32) for b in module.buffers()]
    return torch.cat(flat) if flat else next(module.parameters()).new_zeros(0)


def _write_buffers(module: nn.Module, flat: Tensor) -> None:
    for buffer, piece in zip(module.buffers(), flat.split([b.numel() for b in module.buffers()]), strict=True):
        buffer.data.copy_(piece.reshape(buffer.shape))  # .data: a buffer may be needed by no graph any more


def _apply(module: nn.Module, pieces: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One optimiser step from all shards: gradients summed, floating buffers averaged, counters as any shard's."""
    parameters = list(module.parameters())
    counts = [p.numel() for p in parameters]
    gradient, buffers = pieces[:, 1 : 1 + sum(counts)].sum(0), pieces[:, 1 + sum(counts) :]
    for parameter, piece in zip(parameters, gradient.split(counts), strict=True):
        parameter.grad = piece.reshape(parameter.shape)
    optimizer.step()
    whole = [not b.is_floating_point() for b in module.buffers() for _ in range(b.numel())]
    _write_buffers(
        module, torch.where(torch.tensor(whole, dtype=torch.bool, device=buffers.device), buffers[0], buffers.mean(0))
    )
