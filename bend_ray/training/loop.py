"""Training one whole classifier, to the same bits on any number of workers.

A step's batch is cut into ``shards`` fixed pieces. A worker computes gradient and buffers (batch-norm statistics) of
its pieces, all pieces are exchanged, and every worker sums them in the same order. Averaging over workers, as PyTorch's
DistributedDataParallel does, would add the same numbers in an order that depends on how many workers there are.

All that a training goes on from is tensors by name; with a `Checkpoint` they are a file after each epoch.
"""

import itertools
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bend_ray import seeds
from bend_ray.config import Base
from bend_ray.data.datasets import Preprocess
from bend_ray.data.images import Split
from bend_ray.errors import ConfigError, TrainingError
from bend_ray.models.classifiers import logits
from bend_ray.run import Run
from bend_ray.training import optimizer as optimizers
from bend_ray.training.augment import augment, check
from bend_ray.training.checkpoint import Checkpoint


def train(
    module: nn.Module, run: Run, name: str = "base", bootstrap: bool = False, checkpoint: Checkpoint | None = None
) -> float:
    """Train all parameters of ``module`` in place on the training rows of ``run``: AdamW, cross-entropy, images with
    the random changes of ``augment``. Returns the seconds that one process would take for it: waiting for other ranks
    does not count, and their shards count as its own.

    With a ``torch.distributed`` process group the shards of each step are shared out over its ranks (further ranks
    than shards idle), without one this process computes all of them: the bits are the same. All randomness follows
    from ``(run.seed, name)``. ``bootstrap`` draws as many rows with replacement first. With a ``checkpoint`` (rank
    0's is everybody's) training goes on after its last epoch, to the bits of one that was never broken off.
    Raises ConfigError where a shard would have fewer than two rows, TrainingError where the loss is not finite.
    """
    (rank, world), rows, base = _place(), run.dataset.train, run.config.base
    batch_size = min(base.batch_size, len(rows))
    if batch_size < 2 * base.shards:
        raise ConfigError(f"base.shards: {base.shards} pieces of {batch_size} rows; each needs 2, use fewer shards")
    check(run.config.augment, run.dataset.image_size)
    epoch, steps = len(rows) // batch_size, steps_of(base, len(rows))
    device = next(module.parameters()).device
    optimizer = optimizers.adamw(module, base)
    average = {key: value.clone() for key, value in optimizers.named(module).items()} if base.ema else {}
    spent = torch.zeros((), dtype=torch.float64)  # seconds
    done = epoch * _go_on(checkpoint, optimizers.training_state(module, optimizer, average, spent), device)
    schedule = optimizers.schedule(optimizer, base, steps, done)
    module.train()
    own_shards = len(range(rank, base.shards, world))
    order = batches(len(rows), batch_size, seeds.generator_for(run.seed, name, "batches"), bootstrap)
    for step, index in enumerate(itertools.islice(order, done, steps), done):
        began, start = time.perf_counter(), _buffers(module)
        size = 1 + sum(p.numel() for p in module.parameters()) + start.numel()
        pieces = torch.zeros(base.shards, size, device=device)
        for shard, part in enumerate(index.tensor_split(base.shards)):
            if shard % world != rank:
                continue
            _write_buffers(module, start)
            loss = _backward(module, run, part, batch_size, (name, step, shard))
            pieces[shard] = torch.cat([loss.reshape(1), _gradients(module), _buffers(module)])
        spent += (time.perf_counter() - began) * base.shards / max(own_shards, 1)
        if world > 1:
            torch.distributed.all_reduce(pieces)  # one worker's numbers and zeros: exact in any order
        began = time.perf_counter()
        _apply(module, pieces, optimizer)
        schedule.step()
        if not torch.isfinite(pieces[:, 0]).all():
            raise TrainingError(
                f"training the {name} classifier: the loss is not finite at step {step}; lower base.lr (of cycles:"
                " base.cycle_lr)"
            )
        optimizers.ema_update(average, module, 1 - base.ema if step else 1.0)
        spent += time.perf_counter() - began
        if checkpoint is not None and rank == 0 and (step + 1) % epoch == 0 and step + 1 < steps:
            checkpoint.save((step + 1) // epoch, optimizers.training_state(module, optimizer, average, spent))
        if run.progress is not None:
            run.progress(step + 1, steps)
    for key, value in optimizers.named(module).items() if average else ():
        value.copy_(average[key])
    module.eval()
    return float(spent)


def _backward(module: nn.Module, run: Run, index: Tensor, batch_size: int, unit: tuple[str, int, int]) -> Tensor:
    """Loss of the training rows ``index``, as their share of a whole batch's mean, its gradients left in ``module``.
    ``unit``: the training, the step and the shard, from which all randomness follows."""
    name, step, shard = unit
    rows, base, device = run.dataset.train, run.config.base, next(module.parameters()).device
    images, y = rows.images[index].to(device), rows.labels[index].to(device)
    x = run.dataset.preprocess(
        augment(images, run.config.augment, seeds.generator_for(run.seed, name, "augment", step, shard))
    )
    module.zero_grad(set_to_none=False)
    with seeds.seeded(run.seed, name, "step", step, shard), optimizers.precision(base, device):
        output = logits(module(x))
    loss = F.cross_entropy(output.float(), y, label_smoothing=base.label_smoothing, reduction="sum") / batch_size
    loss.backward()
    return loss.detach()


def steps_of(base: Base, rows: int) -> int:
    """Steps of a training on so many rows."""
    return max(1, round(base.epochs * (rows // min(base.batch_size, rows))))


def batches(rows: int, size: int, generator: torch.Generator, bootstrap: bool = False) -> Iterator[Tensor]:
    """Row numbers of batches, for ever: all ``rows``, or with ``bootstrap`` as many drawn with replacement, in a new
    order each pass, a short last batch left out."""
    pool = torch.randint(rows, (rows,), generator=generator) if bootstrap else torch.arange(rows)
    size = min(size, rows)
    while True:
        order = pool[torch.randperm(rows, generator=generator)]
        yield from order[: rows // size * size].split(size)


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


def _go_on(checkpoint: Checkpoint | None, tensors: dict[str, Tensor], device: torch.device) -> int:
    """Epochs that are behind, ``tensors`` being as they were then on all ranks: what one has read, it tells."""
    rank, world = _place()
    epochs = checkpoint.load(tensors) if checkpoint is not None and rank == 0 else 0
    if world == 1:
        return epochs
    epochs_of_all = torch.tensor(epochs, device=device)
    torch.distributed.broadcast(epochs_of_all, 0)
    for tensor in tensors.values() if int(epochs_of_all) else ():
        buffer = tensor.to(device).reshape(-1).contiguous()
        torch.distributed.broadcast(buffer.view(torch.uint8), 0)  # as bytes: of any type
        tensor.copy_(buffer.reshape(tensor.shape))
    return int(epochs_of_all)


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
