"""The whole trainings that `paper.py` compares with, made many at a time on a GPU.

As `bend-ray run` trains them, from the same draws, in float32: a run that finds them under runs/paper/*/rivals trains
none itself. Small classifiers leave a GPU waiting for its next kernel, so what a training sees lies on the GPU before
it starts, one step of it is captured as a CUDA graph, and the graphs of one run's trainings are replayed side by side,
a stream each. Without a GPU the same steps run one by one: slower than `bend-ray run`, for trying it.

    python benchmarks/rivals.py --settings cifar-resnet --seeds 0 1 2 [--device cuda] [--epochs 1]
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import torch
from common import spread
from paper import RUNS, SETTINGS, configuration
from torch import Tensor, nn
from torch.nn import functional as F

from bend_ray import seeds
from bend_ray.config import Base, Config, load
from bend_ray.data.datasets import Dataset, load_dataset
from bend_ray.data.images import Split
from bend_ray.models.base import ModelSpec
from bend_ray.models.output import logits
from bend_ray.store.artifacts import recipe
from bend_ray.store.folders import Folder
from bend_ray.training import loop
from bend_ray.training import optimizer as optimizers
from bend_ray.training.augment import augment
from bend_ray.training.rivals import Rival
from bend_ray.training.rivals import requested as rivals_asked

WARM = 3
"""Steps before one is captured, on a copy of the start."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--epochs", type=int, help="fewer than the setting's, for trying it; nothing is written")
    args = arguments.parse_args()
    torch.backends.cudnn.allow_tf32 = False
    for name in args.settings:
        for seed in args.seeds:
            given = {"seed": str(seed)} | ({"base.epochs": str(args.epochs)} if args.epochs else {})
            config = load(configuration(name), given)
            dataset = load_dataset(config.data, seed)
            for of_kind in rivals_asked(config).values():
                make(name, of_kind, config, dataset, torch.device(args.device), keep=not args.epochs)


def make(name: str, rivals: list[Rival], config: Config, dataset: Dataset, device: torch.device, keep: bool) -> None:
    """One run's whole trainings of a kind, those that are not there."""
    run_folder, made_by = Folder(RUNS / f"{name}-{config.seed}"), recipe("base", config, {"data": dataset.digest()})
    todo = [rival for rival in rivals if not (keep and rival.is_kept(run_folder, made_by))]
    if not todo:
        return
    start = time.monotonic()
    trainings = [Training.begin(config, dataset, rival, device) for rival in todo]
    ready = time.monotonic()
    run([one.step for one in trainings], trainings[0].steps, device)
    done = time.monotonic()
    losses, right = [], []
    for rival, one in zip(todo, trainings, strict=True):
        one.module.eval()
        loss, accuracy = loop.validate(one.module, dataset.val, dataset.preprocess)
        losses.append(loss)
        right.append(accuracy)
        if keep:
            rival.save(run_folder, one.module.cpu(), made_by)
    count, took = trainings[0].steps, done - ready
    rate = f"{count * len(todo) / took:.0f} steps/s, ready after {ready - start:.1f} s"
    print(f"{name}-{config.seed}: {len(todo)} {todo[0].kind} trainings of {count} steps in {took:.1f} s ({rate})")
    print(f"  on validation rows: accuracy {spread(right, 100)} %, NLL {spread(losses, digits=3)}", flush=True)


def run(steps: list[Callable[[], None]], count: int, device: torch.device) -> None:
    """Call each of ``steps`` so often; on a GPU captured, side by side."""
    if device.type != "cuda":
        for step in steps:
            for _ in range(count):
                step()
        return
    streams = [torch.cuda.Stream(device) for _ in steps]
    graphs = []
    for step, stream in zip(steps, streams, strict=True):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            step()
        graphs.append(graph)
    torch.cuda.synchronize(device)
    for _ in range(count):
        for graph, stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
    torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Training:
    """`bend_ray.training.loop.train` with all that changes from step to step in tensors on the device: so a step can
    be captured. AdamW as torch has it, on all parameters end to end; no moving average, for no setting has one."""

    module: nn.Module
    base: Base
    x_SBCHW: Tensor
    y_SB: Tensor
    rates_S4: Tensor
    """Learning rate, first beta, and what the two moments are divided by, of each step."""
    at: Tensor
    """The step to come, of shape (1,)."""
    theta_D: Tensor
    moments_2D: Tensor

    @staticmethod
    def begin(config: Config, dataset: Dataset, rival: Rival, device: torch.device) -> "Training":
        module = ModelSpec.of(config.classifier, dataset).build(rival.seed(config)).train()
        rates = rates_of(module, config.base, len(dataset.train))
        seen_SBCHW, y_SB = fed(config, dataset.train, rival, len(rates))
        module = module.to(device)
        parameters = list(module.parameters())
        theta_D = torch.cat([p.detach().reshape(-1) for p in parameters])
        for parameter, part in zip(parameters, theta_D.split([p.numel() for p in parameters]), strict=True):
            parameter.data = part.view(parameter.shape)
        moments_2D = torch.zeros(2, len(theta_D), device=device)
        x_SBCHW = dataset.preprocess(seen_SBCHW.to(device).flatten(0, 1)).unflatten(0, y_SB.shape)
        at = torch.zeros(1, dtype=torch.long, device=device)
        new = Training(module, config.base, x_SBCHW, y_SB.to(device), rates.to(device), at, theta_D, moments_2D)
        if device.type == "cuda":
            new.warm()
        return new

    @property
    def steps(self) -> int:
        return len(self.x_SBCHW)

    def warm(self) -> None:
        """A few steps, and back to the start: libraries make at their first call what must not be made in a capture."""
        state = [self.at, self.theta_D, self.moments_2D, *self.module.buffers()]
        kept = [tensor.clone() for tensor in state]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        for tensor, value in zip(state, kept, strict=True):
            tensor.copy_(value)

    def step(self) -> None:
        parameters, buffers = list(self.module.parameters()), list(self.module.buffers())
        x_BCHW, y_B = self.x_SBCHW.index_select(0, self.at)[0], self.y_SB.index_select(0, self.at)[0]
        lr, beta1, divisor1, divisor2 = self.rates_S4.index_select(0, self.at)[0]
        start, gradients, after = [b.clone() for b in buffers], [], []
        for x, y in zip(x_BCHW.tensor_split(self.base.shards), y_B.tensor_split(self.base.shards), strict=True):
            for buffer, value in zip(buffers, start, strict=True):
                buffer.data.copy_(value)
            output = logits(self.module(x))
            loss = F.cross_entropy(output, y, label_smoothing=self.base.label_smoothing, reduction="sum") / len(y_B)
            gradients.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)]))
            after.append([b.clone() for b in buffers])
        with torch.no_grad():
            for buffer, *values in zip(buffers, *after, strict=True):
                buffer.copy_(torch.stack(values).mean(0) if buffer.is_floating_point() else values[0])
            gradient_D, (m_D, v_D) = torch.stack(gradients).sum(0), self.moments_2D
            self.theta_D.mul_(1 - lr * self.base.weight_decay)
            m_D.lerp_(gradient_D, 1 - beta1)
            v_D.mul_(BETA2).addcmul_(gradient_D, gradient_D, value=1 - BETA2)
            self.theta_D.sub_(lr / divisor1 * m_D / (v_D.sqrt() / divisor2.sqrt() + EPS))
            self.at.add_(1)


BETA2, EPS = 0.999, 1e-8
"""AdamW's, as torch sets them."""


def rates_of(module: nn.Module, base: Base, rows: int) -> Tensor:
    """(steps, 4): `Training.rates_S4`."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=base.lr, weight_decay=base.weight_decay)
    steps = loop.steps_of(base, rows)
    schedule, factors = optimizers.schedule(optimizer, base, steps), []
    for i in range(1, steps + 1):
        (group,) = optimizer.param_groups
        beta1, beta2 = group["betas"]
        factors.append((group["lr"], beta1, 1 - beta1**i, 1 - beta2**i))
        optimizer.step()  # no gradients: nothing moves
        schedule.step()
    return torch.tensor(factors)


def fed(config: Config, rows: Split, rival: Rival, steps: int) -> tuple[Tensor, Tensor]:
    """Images and labels of every step, in order."""
    base, draws = config.base, (rival.seed(config), rival.name)
    generator = seeds.generator_for(*draws, "batches")
    order = list(islice(loop.batches(len(rows), base.batch_size, generator, rival.bootstrap), steps))
    images = [
        augment(rows.images[part], config.augment, seeds.generator_for(*draws, "augment", step, shard))
        for step, index in enumerate(order)
        for shard, part in enumerate(index.tensor_split(base.shards))
    ]
    return torch.cat(images).unflatten(0, (len(order), -1)), rows.labels[torch.stack(order)]


if __name__ == "__main__":
    main()
