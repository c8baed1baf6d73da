"""Training one whole classifier, to the same bits on any number of workers.

A step's batch is cut into ``shards`` fixed pieces. A worker computes gradients and buffers (batch-norm statistics) of
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
from bend_ray.data.images import Split
from bend_ray.data.preprocess import Preprocess
from bend_ray.errors import ConfigError, TrainingError
from bend_ray.models import faults
from bend_ray.models.output import logits
from bend_ray.run import Run
from bend_ray.training import augment as augmenting
from bend_ray.training import class_weights, trained
from bend_ray.training import optimizer as optimizers
from bend_ray.training.checkpoint import Checkpoint
from bend_ray.training.shards import Shards


def train(
    module: nn.Module, run: Run, name: str = "base", bootstrap: bool = False, checkpoint: Checkpoint | None = None
) -> float:
    """Train all parameters of ``module`` that are not frozen in place on the training rows of ``run``: AdamW,
    cross-entropy, images with the random changes of ``augment``. A step moves those that had a gradient in it. Returns
    the seconds that one process would take for it: waiting for other ranks does not count, and their shards count as
    its own.

    With a ``torch.distributed`` process group the shards of each step are shared out over its ranks (further ranks
    than shards idle), without one this process computes all of them: the bits are the same. All randomness follows
    from ``(run.seed, name)``. ``bootstrap`` draws as many rows with replacement first. With a ``checkpoint`` (rank
    0's is everybody's) training goes on after its last epoch, to the bits of one that was never broken off.
    Raises ConfigError where a shard would have fewer than two rows, as `class_weights.of` and `trained.check`, and
    TrainingError where the loss is not finite.
    """
    (rank, world), rows, base = _place(), run.dataset.train, run.config.base
    batch_size = min(base.batch_size, len(rows))
    if batch_size < 2 * base.shards:
        raise ConfigError(f"base.shards: {base.shards} pieces of {batch_size} rows; each needs 2, use fewer shards")
    augmenting.check(run.config.augment, run.dataset.image_size)
    trained.check(module)
    weight_K = class_weights.of(base.class_weights, run.dataset)
    epoch, steps = len(rows) // batch_size, steps_of(base, len(rows))
    device = next(module.parameters()).device
    optimizer, spent = optimizers.adamw(module, base), torch.zeros((), dtype=torch.float64)  # seconds
    average = optimizers.moving(module) if base.ema else {}
    done = epoch * _go_on(checkpoint, optimizers.training_state(module, optimizer, average, spent), device)
    schedule = optimizers.schedule(optimizer, base, steps, done)
    trained.begin(module, base)
    shards, own_shards = Shards(module, base.shards, device), range(rank, base.shards, world)
    order = batches(len(rows), batch_size, seeds.generator_for(run.seed, name, "batches"), bootstrap)
    for step, index in enumerate(itertools.islice(order, done, steps), done):
        began = time.perf_counter()
        shards.begin()
        for shard in own_shards:
            shards.begin_shard()
            shards.end_shard(shard, backward(module, run, index, weight_K, (name, step, shard)))
        spent += (time.perf_counter() - began) * base.shards / max(len(own_shards), 1)
        if world > 1:
            shards.exchange(world)
        began = time.perf_counter()
        shards.add()
        optimizer.step()
        schedule.step()
        if not torch.isfinite(shards.loss_S).all():
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
    values = optimizers.named(module)
    for key, value in average.items():
        values[key].copy_(value)
    module.eval()
    return float(spent)


def backward(module: nn.Module, run: Run, batch: Tensor, weight_K: Tensor | None, unit: tuple[str, int, int]) -> Tensor:
    """Loss of one shard of the training rows ``batch``, as its share of the batch's (weighted) mean, its gradients left
    in ``module``.
    ``unit``: the training, the step and the shard, from which all randomness follows. Raises ModelError where the
    classifier's own code fails."""
    name, step, shard = unit
    rows, base, device = run.dataset.train, run.config.base, next(module.parameters()).device
    index = batch.tensor_split(base.shards)[shard]
    total = len(batch) if weight_K is None else float(weight_K[rows.labels[batch].long()].sum())
    images, y = rows.images[index].to(device), rows.labels[index].to(device)
    x = run.dataset.preprocess(
        augmenting.augment(images, run.config.augment, seeds.generator_for(run.seed, name, "augment", step, shard))
    )
    module.zero_grad()
    said = faults.said(f"training the {name} classifier, step {step}")
    with said, seeds.seeded(run.seed, name, "step", step, shard):  # what is run backward may draw, too
        with optimizers.precision(base, device):
            output = logits(module(x))
        exact = output if output.dtype == torch.float64 else output.float()
        weight_K = None if weight_K is None else weight_K.to(exact)
        loss = F.cross_entropy(exact, y, weight_K, label_smoothing=base.label_smoothing, reduction="sum") / total
        if loss.requires_grad:  # a step may use nothing that is trained
            loss.backward()
    return loss.detach()


def steps_of(base: Base, rows: int) -> int:
    """Steps of a training on so many rows."""
    return max(1, round(base.epochs * (rows // min(base.batch_size, rows))))


def batches(rows: int, size: int, generator: torch.Generator, bootstrap: bool = False) -> Iterator[Tensor]:
    """Row numbers of batches, for ever: all ``rows``, or with ``bootstrap`` as many drawn with replacement, in a new
    order each pass, a short last batch left out."""
    pool = torch.randint(rows, (rows,), generator=generator) if bootstrap else torch.arange(rows)
    return batches_of(pool, size, generator)


def batches_of(pool: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of the row numbers in ``pool``, likewise."""
    rows = len(pool)
    size = min(size, rows)
    while True:
        order = pool[torch.randperm(rows, generator=generator)]
        yield from order[: rows // size * size].split(size)


@seeds.seeded(0, "validate")
@torch.no_grad()
def validate(module: nn.Module, rows: Split, preprocess: Preprocess, batch_size: int = 1024) -> tuple[float, float]:
    """Mean cross-entropy (nats) and accuracy of ``module`` in eval mode."""
    module.eval()
    device = next(module.parameters()).device
    loss, right = 0.0, 0
    for images, labels in zip(rows.images.split(batch_size), rows.labels.split(batch_size), strict=True):
        x, y = preprocess(images.to(device)), labels.to(device)
        with faults.said("validation"):
            output = logits(module(x))
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
