"""(c) Heads for a task that the generator has not seen: another share of each class, or some of the classes alone.

On the kept features of one base a few chains of heads are trained for each of many tasks. A task is a distribution over
classes, from which rows are drawn; of a class subset only its classes can be answered. Generators learn heads from the
tasks' logarithms of shares: as what is left by a ridge regression, and by a network that was trained on random tasks.
Beside them stand what needs no training: logits of the other classes masked, and the logarithm of how much likelier a
class has become added; and chains for the task itself.

Costs are those of one unseen task: work there, and its share of what was learnt once. The base, and one pass of all
rows through it, are left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pays_heads as heads
import torch
from pays_common import (
    MEMBERS,
    OURS,
    Judged,
    Labels,
    fit_cost,
    gaussian,
    generator_of,
    judged,
    mean_of,
    rows_of,
    sampled,
)
from pays_frames import regression
from pays_task import KINDS, Base, Task
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bend_ray import seeds
from bend_ray.report.flops import STEP
from bend_ray.run import Run

SEEN, UNSEEN = 40, 8
"""Tasks of both kinds together that are learnt from, and of each kind that are judged."""
ITERATIONS = 1500
"""Of the network from a task to its head."""


def measured(
    module: nn.Module, run: Run, seen: int = SEEN, unseen: int = UNSEEN, iterations: int = ITERATIONS
) -> list[dict[str, Any]]:
    """All rows of one seed; ``module`` is the base."""
    base = Base.of(module, run)
    K, seed = len(base.w_KP), base.run.seed
    learnt_from = [Task.of(KINDS[i % 2], K, seed, i) for i in range(seen)]
    learnt = learn(base, learnt_from, iterations)
    even = torch.arange(len(base.phi[0]))
    everything_KP = base.logistic(even, torch.arange(len(base.phi[1])))
    plain = base.chains(Task("label shift", torch.full((K,), 1 / K)))
    rows = []
    for kind in KINDS:
        tasks = [Task.of(kind, K, seed, seen + i) for i in range(unseen)]
        by_task = [_judged(base, learnt, (plain, everything_KP), task, len(KINDS) * unseen) for task in tasks]
        rows += rows_of([mean_of(ways) for ways in zip(*by_task, strict=True)], seed, setting=kind)
    return rows


@dataclass(frozen=True)
class Learnt:
    """From a task's condition to heads."""

    expected: dict[str, Callable[[Tensor], Tensor]]
    """``theta_D`` from a condition: of the ridge regression, and of the network."""
    left: dict[str, Tensor]
    """What each leaves of the seen tasks' heads, ``theta_SD``."""
    drawn: dict[str, Tensor]
    """What generators fitted to that make, ``theta_MD``: no condition is left in it."""
    cost: dict[str, float]
    """FLOPs of learning each, and (`fit`) of a generator's fit and sampling."""


def learn(base: Base, tasks: Sequence[Task], iterations: int) -> Learnt:
    """All from chains of the seen tasks, but for the network, which draws tasks of its own."""
    run, shape = base.run, base.w_KP.shape
    theta_TSD = torch.stack([base.chains(task).flatten(1) for task in tasks]) - base.w_KP.flatten()
    condition_TG = torch.stack([task.condition_G for task in tasks])
    predict, left_TD = regression(condition_TG, theta_TSD.mean(1))
    network, network_cost = network_of(base, iterations)
    within_TSD = theta_TSD - theta_TSD.mean(1, keepdim=True)
    left = {"regression": (within_TSD + left_TD[:, None]).flatten(0, 1), "network": within_TSD.flatten(0, 1)}
    numbers = [number for number in range(len(tasks)) for _ in range(theta_TSD.shape[1])]
    generators = {name: generator_of(base.tails.trunk.subset, left_SD, numbers, run) for name, left_SD in left.items()}
    drawn = {name: sampled(generator, run) for name, generator in generators.items()}
    chains = sum(base.cost(task, theta_TSD.shape[1]) for task in tasks)
    fit = fit_cost(generators["network"], run, len(numbers), MEMBERS)
    expected: dict[str, Callable[[Tensor], Tensor]] = {
        "regression": lambda condition_G: predict(condition_G[None])[0],
        "network": lambda condition_G: network(condition_G),
    }
    assert theta_TSD.shape[2] == shape.numel()
    return Learnt(expected, left, drawn, {"regression": chains, "network": network_cost, "fit": fit, "chains": chains})


def network_of(base: Base, iterations: int, hidden: int = 128, rows: int = 256) -> tuple[nn.Module, float]:
    """A hypernetwork: from a condition to what is added to the base's head, trained on the NLL of rows of random
    tasks of both kinds. And the FLOPs of that."""
    run, (K, P) = base.run, base.w_KP.shape
    with seeds.seeded(run.seed, "task network"):
        network = nn.Sequential(
            nn.Linear(2 * K, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, K * P)
        )
    last = network[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    stream, label_B = seeds.generator_for(run.seed, "task network", "batches"), run.dataset.train.labels
    present_K = torch.bincount(label_B, minlength=K).clamp_min(1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for step in range(iterations):
        task = Task.of(KINDS[step % 2], K, run.seed, 1_000_000 + step)
        index_B = torch.multinomial((task.share_K / present_K)[label_B], rows, replacement=True, generator=stream)
        w_KP = base.w_KP + network(task.condition_G).reshape(K, P)
        logits_BK = task.masked(heads.logits(base.phi[0][index_B], w_KP[None]))[0]
        loss = F.cross_entropy(logits_BK, label_B[index_B])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with FlopCounterMode(display=False) as counter:
        network(task.condition_G[None])
    return network.eval().requires_grad_(False), STEP * iterations * (counter.get_total_flops() + 2.0 * rows * K * P)


def _judged(base: Base, learnt: Learnt, plain: tuple[Tensor, Tensor], task: Task, share: int) -> list[Judged]:
    """All ways on one unseen task; of what was learnt once each of ``share`` tasks bears a part. ``plain``: chains and
    logistic regression of all rows."""
    dataset, seed = base.run.dataset, base.run.seed
    rows = [task.draw(split.labels, seed, name) for split, name in ((dataset.val, "val"), (dataset.test, "test"))]
    train_B = task.draw(dataset.train.labels, seed, "train")
    (plain_SKP, everything_KP), retrained_SKP = plain, base.chains(task)
    chain, passes = base.cost(task), heads.EVALUATIONS * len(heads.PENALTIES) * STEP * 2.0 * base.w_KP.numel()
    correction_KP = torch.zeros_like(base.w_KP)
    if task.kind == "label shift":
        correction_KP[:, -1] = task.correction_K(dataset.train.labels)
    ways: dict[str, tuple[Tensor, float]] = {}
    for name, of_condition in learnt.expected.items():
        centre_D = base.w_KP.flatten() + of_condition(task.condition_G)
        once, with_chains = learnt.cost[name] / share, learnt.cost["chains"] / share if name == "network" else 0.0
        of_left = gaussian(learnt.left[name], seed)
        made = {
            OURS if name == "network" else f"BEND around the {name}": (
                learnt.drawn[name],
                once + with_chains + learnt.cost["fit"] / share,
            ),
            f"Gaussian around the {name}": (of_left, once + with_chains),
            f"{name} from the task": (torch.zeros(1, len(centre_D)), once),
        }
        ways |= {
            what: ((centre_D + left_MD).reshape(-1, *base.w_KP.shape), cost) for what, (left_MD, cost) in made.items()
        }
    of_plain = len(plain_SKP) * STEP * base.run.config.collect.epochs * len(dataset.train) * 2.0 * base.w_KP.numel()
    ways |= {
        "base as it is": (base.w_KP[None], 0.0),
        "base, prior corrected": ((base.w_KP + correction_KP)[None], 0.0),
        "chains of all rows, prior corrected": (plain_SKP + correction_KP, of_plain / share),
        "logistic regression of all rows, prior corrected": (
            (everything_KP + correction_KP)[None],
            passes * len(dataset.train) / share,
        ),
        "logistic regression for the task": (base.logistic(train_B, rows[0])[None], passes * len(train_B)),
        "one chain for the task": (retrained_SKP[:1], chain),
        f"{len(retrained_SKP)} chains for the task": (retrained_SKP, chain * len(retrained_SKP)),
    }
    labels = Labels(dataset.val.labels[rows[0]], dataset.test.labels[rows[1]])
    scored = []
    for what, (w_MKP, cost) in ways.items():
        val_MBK, test_MBK = (
            task.masked(heads.logits(phi[index], w_MKP)) for phi, index in zip(base.phi[1:], rows, strict=True)
        )
        scored.append(judged(what, cost / 1e9, val_MBK, test_MBK, labels))
    return scored
