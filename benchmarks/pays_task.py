"""Tasks of question (c), and the base on whose kept features heads are trained for them."""

from dataclasses import dataclass, replace

import pays_heads as heads
import torch
from pays_features import as_heads
from pays_heads import Statistics
from torch import Tensor, nn

from bend_ray import seeds
from bend_ray.data.images import Split
from bend_ray.ensemble import laplace
from bend_ray.models.subset import choose
from bend_ray.report.flops import STEP
from bend_ray.run import Run
from bend_ray.snapshots.chains import run_chains, starts
from bend_ray.snapshots.features import Tails

COLLECT = {
    "subset": "head",
    "chains": 4,
    "held_out": 1,
    "snapshots_per_chain": 1,
    "features": "float32",
    "lr": 0.03,
    "epochs": 4,
}
LEAST = 0.02
"""Share below which a class's logarithm does not follow."""
KINDS = ("label shift", "class subset")


@dataclass(frozen=True)
class Task:
    """A distribution over classes; of a subset it is even."""

    kind: str
    share_K: Tensor

    @staticmethod
    def of(kind: str, K: int, seed: int, number: int) -> "Task":
        stream = seeds.generator_for(seed, "task", kind, number)
        if kind == "class subset":
            chosen = torch.randperm(K, generator=stream)[: K // 2]
            return Task(kind, torch.zeros(K).index_fill(0, chosen, 1 / len(chosen)))
        log_K = 1.5 * torch.randn(K, generator=stream)
        return Task(kind, log_K.softmax(0))

    @property
    def condition_G(self) -> Tensor:
        """Logarithms of shares, and which classes there are."""
        return torch.cat([(self.share_K * len(self.share_K)).clamp_min(LEAST).log(), (self.share_K > 0).float()])

    def draw(self, label_B: Tensor, seed: int, name: str) -> Tensor:
        """Row numbers: of a subset all of its rows, else as many as there are, drawn with replacement."""
        if self.kind == "class subset":
            return (self.share_K[label_B] > 0).nonzero()[:, 0]
        present_K = torch.bincount(label_B, minlength=len(self.share_K)).clamp_min(1)
        weight_B = (self.share_K / present_K)[label_B]
        stream = seeds.generator_for(seed, "rows", name, *(f"{share:.6f}" for share in self.share_K))
        return torch.multinomial(weight_B, len(label_B), replacement=True, generator=stream)

    def masked(self, logits_MBK: Tensor) -> Tensor:
        """Classes that there are not are not answered."""
        return logits_MBK.masked_fill(self.share_K == 0, -1e4)

    def correction_K(self, label_B: Tensor) -> Tensor:
        """Logarithm of how much likelier each class is than among the training rows (Saerens et al. 2002)."""
        present_K = torch.bincount(label_B, minlength=len(self.share_K)).float() / len(label_B)
        return (self.share_K.clamp_min(1e-4) / present_K).log()


@dataclass(frozen=True)
class Base:
    """Kept features of all rows, and what trains heads on them."""

    phi: tuple[Tensor, Tensor, Tensor]
    """Of training, validation and test rows."""
    tails: Tails
    start_CD: Tensor
    w_KP: Tensor
    run: Run

    @staticmethod
    def of(module: nn.Module, run: Run) -> "Base":
        run = run.but(config=run.config.with_keys({f"collect.{key}": value for key, value in COLLECT.items()}))
        dataset = run.dataset
        layer = laplace.last_linear(module, dataset.preprocess(dataset.train.images[:2]))
        assert layer is not None

        def of_rows(rows: Split) -> Tensor:
            parts = [laplace.features(module, layer, dataset.preprocess(part)) for part in rows.images.split(500)]
            return torch.cat(parts)[:, :-1].float()

        phi = (of_rows(dataset.train), of_rows(dataset.val), of_rows(dataset.test))
        w_KP = torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach().clone()
        subset = choose(module, "head")
        start_CD = starts(module, subset, run, range(run.config.collect.chains))
        return Base(phi, Tails.of(module, subset, run), start_CD, w_KP, run)

    def chains(self, task: Task) -> Tensor:
        """``w_SKP`` of chains from the base's head, on rows of the task."""
        dataset = self.run.dataset
        rows_B = task.draw(dataset.train.labels, self.run.seed, "train")
        train = Split(dataset.train.images[rows_B], dataset.train.labels[rows_B])
        val_B = task.draw(dataset.val.labels, self.run.seed, "val")
        val = Split(dataset.val.images[val_B], dataset.val.labels[val_B])
        tails = replace(
            self.tails,
            train=lambda index, draws: self.tails.train(rows_B[index], draws),
            val=lambda index, draws: self.tails.val(val_B[index], draws),
        )
        of_task = self.run.but(loaded=replace(dataset, train=train, val=val))
        snapshots = run_chains(tails, self.start_CD.clone(), of_task, range(len(self.start_CD)))
        return as_heads(torch.cat([theta_SD for theta_SD, _ in snapshots]), self.w_KP).reshape(-1, *self.w_KP.shape)

    def logistic(self, train_B: Tensor, val_B: Tensor) -> Tensor:
        """``w_KP`` of logistic regression on such rows, from the base's head."""
        labels = (self.run.dataset.train.labels[train_B], self.run.dataset.val.labels[val_B])
        train, val = (self.phi[0][train_B], labels[0]), (self.phi[1][val_B], labels[1])
        statistics = Statistics.of(*train, len(self.w_KP))
        return heads.best_logistic(train, val, self.w_KP, statistics)

    def cost(self, task: Task, chains: int = 1) -> float:
        """FLOPs of chains for it."""
        rows = len(task.draw(self.run.dataset.train.labels, self.run.seed, "train"))
        return chains * STEP * self.run.config.collect.epochs * rows * 2.0 * self.w_KP.numel()
