"""Steps a second of the base's training beside those of the way before: all through one float32 vector.

ResNet-18 in float32 on the digits (8x8 pixels, 64 rows a step in 2 shards), or with ``--size 32`` on the same rows as
colour images of 32 pixels; two workers of one thread each. Both ways train in one process group, in turn; what counts
is the median step. Prints the ratio, whether both end with the same bits, and whether 1, 2 and 3 workers do. Writes
benchmarks/training.json.

    python benchmarks/training.py [--steps 12] [--rounds 3] [--size 8]
"""

import argparse
import hashlib
import itertools
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import colours, rows
from torch import Tensor, nn

from bend_ray import seeds
from bend_ray.config import loads
from bend_ray.data.datasets import load_dataset
from bend_ray.models.base import ModelSpec
from bend_ray.run import Run
from bend_ray.training import loop
from bend_ray.training import optimizer as optimizers

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import ranks

RESULT = Path("benchmarks/training.json")
CONFIG = "data: {name: digits}\nclassifier: {name: resnet18}\nbase: {cycles: 0, precision: float32}\n"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--steps", type=int, default=12)
    arguments.add_argument("--rounds", type=int, default=3, help="how often both ways train, in turn")
    arguments.add_argument("--size", type=int, choices=(8, 32), default=8, help="of images, in pixels")
    args = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        of_world = {}
        for world in (1, 2, 3):
            rounds = args.rounds if world == 2 else 0
            ranks.spawn(_rank, world, Path(folder), world, args.steps, rounds, args.size)
            of_world[world] = [json.loads((Path(folder) / f"{world}-{rank}.json").read_text()) for rank in range(world)]
    first, digests = of_world[2][0], {told["digest"] for told in itertools.chain(*of_world.values())}
    before, now = (statistics.median(seconds) for seconds in (first["before"], first["now"]))
    result = {
        "size": args.size,
        "steps": args.steps,
        "seconds_before": before,
        "seconds_now": now,
        "ratio": before / now,
        "ratios_of_rounds": first["ratios"],
        "same_bits_as_before": first["digest"] == first["digest_before"],
        "same_bits_on_1_2_3_workers": len(digests) == 1,
    }
    of_sizes = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    RESULT.write_text(json.dumps(of_sizes | {str(args.size): result}, indent=1) + "\n")
    print(f"{args.size} pixels: {1 / before:.2f} steps/s before, {1 / now:.2f} now: {result['ratio']:.2f} times")
    print(f"the bits of before: {result['same_bits_as_before']}; of 1, 2, 3 workers: {len(digests) == 1}")


def _rank(rank: int, folder: Path, world: int, steps: int, rounds: int, size: int) -> None:
    """Train both ways in turn; without rounds the one of now alone, once."""
    torch.set_num_threads(1)
    run = _run(steps, size)
    told: dict[str, Any] = {"before": [], "now": [], "ratios": []}
    for _ in range(max(1, rounds)):
        medians = {}
        for way, train in {"before": _train_before, "now": _train_now}.items():
            if not rounds and way == "before":
                continue
            module = ModelSpec.of(run.config.classifier, run.dataset).build(0)
            seconds = train(module, run)[1:]  # the first step makes what others use
            told[way] += seconds
            medians[way] = statistics.median(seconds)
            told["digest" if way == "now" else "digest_before"] = _digest(module)
        if rounds:
            told["ratios"].append(medians["before"] / medians["now"])
    (folder / f"{world}-{rank}.json").write_text(json.dumps(told))


def _run(steps: int, size: int) -> Run:
    digits = load_dataset(loads(CONFIG, "benchmark").data, 0)
    if size == 32:
        digits = replace(digits, train=rows(digits.train), preprocess=colours(digits))
    epochs = steps / (len(digits.train) // 64)
    config = loads(CONFIG, "benchmark")
    base = config.base.model_copy(update={"epochs": epochs})
    return Run(config.model_copy(update={"base": base}), loaded=digits)


def _digest(module: nn.Module) -> str:
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in module.state_dict().values())).hexdigest()


def _train_now(module: nn.Module, run: Run) -> list[float]:
    """Seconds of each step."""
    at = [time.perf_counter()]
    loop.train(module, run.but(progress=lambda done, total: at.append(time.perf_counter())))
    return [after - before for before, after in itertools.pairwise(at)]


def _train_before(module: nn.Module, run: Run) -> list[float]:
    """Seconds of each step of the way before: every tensor through one float32 vector of each shard."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    base, train_rows = run.config.base, run.dataset.train
    steps = loop.steps_of(base, len(train_rows))
    optimizer = optimizers.adamw(module, base)
    schedule = optimizers.schedule(optimizer, base, steps)
    module.train()
    order = loop.batches(len(train_rows), base.batch_size, seeds.generator_for(run.seed, "base", "batches"))
    at = [time.perf_counter()]
    for step, index in enumerate(itertools.islice(order, steps)):
        start = _buffers(module)
        pieces = torch.zeros(base.shards, 1 + sum(p.numel() for p in module.parameters()) + start.numel())
        for shard, part in enumerate(index.tensor_split(base.shards)):
            if shard % world != rank:
                continue
            _write_buffers(module, start)
            images, y = train_rows.images[part], train_rows.labels[part]
            module.zero_grad(set_to_none=False)
            with seeds.seeded(run.seed, "base", "step", step, shard):
                output = module(run.dataset.preprocess(images))
            loss = nn.functional.cross_entropy(output, y, reduction="sum") / base.batch_size
            loss.backward()
            pieces[shard] = torch.cat([loss.detach().reshape(1), _gradients(module), _buffers(module)])
        if world > 1:
            torch.distributed.all_reduce(pieces)
        _apply(module, pieces, optimizer)
        schedule.step()
        assert torch.isfinite(pieces[:, 0]).all()
        at.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(at)]


def _gradients(module: nn.Module) -> Tensor:
    return torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).reshape(-1) for p in module.parameters()])


def _buffers(module: nn.Module) -> Tensor:
    return torch.cat([b.detach().reshape(-1).to(torch.float32) for b in module.buffers()])


def _write_buffers(module: nn.Module, flat: Tensor) -> None:
    for buffer, piece in zip(module.buffers(), flat.split([b.numel() for b in module.buffers()]), strict=True):
        buffer.data.copy_(piece.reshape(buffer.shape))


def _apply(module: nn.Module, pieces: Tensor, optimizer: torch.optim.Optimizer) -> None:
    parameters = list(module.parameters())
    counts = [p.numel() for p in parameters]
    gradient, buffers = pieces[:, 1 : 1 + sum(counts)].sum(0), pieces[:, 1 + sum(counts) :]
    for parameter, piece in zip(parameters, gradient.split(counts), strict=True):
        parameter.grad = piece.reshape(parameter.shape)
    optimizer.step()
    whole = [not b.is_floating_point() for b in module.buffers() for _ in range(b.numel())]
    _write_buffers(module, torch.where(torch.tensor(whole, dtype=torch.bool), buffers[0], buffers.mean(0)))


if __name__ == "__main__":
    main()
