"""The recipes that `recipe.py` tries, each as what it changes in the plain one."""

from typing import Any

LONG = {"base.epochs": 24, "base.label_smoothing": 0.05}
RIVALS: dict[str, dict[str, Any]] = {"deep ensemble": {}, "deep ensemble, twice as long, label smoothing 0.05": LONG}
PLAIN: dict[str, Any] = {
    "base.epochs": 12,
    "base.label_smoothing": 0.0,
    "collect.chains": 24,
    "collect.held_out": 2,
    "collect.snapshots_per_chain": 2,
    "collect.lr": 0.01,
}
HEAD = {"collect.subset": "head", "collect.lr": 0.03}
CYCLIC = {"collect.schedule": "cyclic", "collect.lr": 0.03, "collect.epochs": 4, "collect.snapshots_per_chain": 1}
CYCLES = CYCLIC | {"collect.chains": 8, "collect.epochs": 8, "collect.snapshots_per_chain": 4}
IDEAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "chains: cyclic, 0.03, 4 epochs": CYCLIC,
    "chains: cyclic, 0.1, 4 epochs": CYCLIC | {"collect.lr": 0.1},
    "chains: cyclic, 0.1, 8 epochs": CYCLIC | {"collect.lr": 0.1, "collect.epochs": 8},
    "chains: 8 of 4 cycles of 2 epochs": CYCLES,
    "chains: 48": {"collect.chains": 48},
    "chains: SGD, 0.03": {"collect.optimizer": "sgd", "collect.lr": 0.03},
    "chains: no bootstrap": {"collect.bootstrap": False},
    "chains: average of 8 points of each": {"collect.epochs": 4, "collect.snapshots_per_chain": 8, "averages": True},
    "chains: head": HEAD,
    "chains: last block, cyclic, 0.003": CYCLIC | {"collect.subset": "last_block", "collect.lr": 0.003},
    "chains: all parameters, cyclic, 0.003": CYCLIC | {"collect.subset": "regex:.", "collect.lr": 0.003},
    "chains: all parameters, the same, aligned": CYCLIC
    | {"collect.subset": "regex:.", "collect.lr": 0.003, "collect.align": True},
    "chains: last block anew, cyclic, 0.01, 8 epochs": CYCLIC
    | {"collect.subset": "last_block", "collect.lr": 0.01, "collect.epochs": 8, "collect.init": "fresh"},
    "base: label smoothing 0.1": {"base.label_smoothing": 0.1},
    "base: moving average 0.99": {"base.ema": 0.99},
    "base: cosine": {"base.schedule": "cosine"},
    "base: twice as long": {"base.epochs": 24},
    "base: four times as long": {"base.epochs": 48},
    "base: twice as long, weight decay 0.1": {"base.epochs": 24, "base.weight_decay": 0.1},
    "base: twice as long, label smoothing 0.05": LONG,
    "base: changed images, chains not": {"augment.crop": 2, "augment.flip": True, "collect.augment": False},
    "base and chains: changed images": {"augment.crop": 2, "augment.flip": True},
    "bases: 2": {"bases": 2},
    "bases: 4": {"bases": 4},
    "bases: 2, half as long": {"bases": 2, "base.epochs": 6},
    "bases: 4, chains: head": HEAD | {"bases": 4},
    "base long and smoothed, chains: head": LONG | HEAD,
    "base long and smoothed, chains: 12": LONG | {"collect.chains": 12},
    "base long and smoothed, chains: 8 of 4 cycles of 2 epochs": LONG | CYCLES,
    "bases: 2, long and smoothed": LONG | {"bases": 2},
    "bases: 2, long and smoothed, chains: head": LONG | HEAD | {"bases": 2},
    "bases: 4, long and smoothed, chains: head": LONG | HEAD | {"bases": 4},
    "generator: all latents": {"autoencoder.latent": 1000},
    "generator: 8 latents": {"autoencoder.latent": 8},
    "generator: 3,000 iterations": {"diffusion.iterations": 3000},
    "generator: asked for low loss": {"diffusion.condition": "[val_loss]", "sample.wanted_loss": -1},
    "members: spread 0.7": {"sample.spread": 0.7},
    "members: spread 1.4": {"sample.spread": 1.4},
    "members: the best of 256": {"sample.keep": "best"},
    "members: greedy of 256": {"sample.keep": "greedy"},
    "members: batch norms re-estimated": {"sample.reestimate_batch_norm": 4},
}
EVERY = [*RIVALS, *IDEAS]
OWN = ("bases", "averages")
"""Ideas that are no keys: several bases with their share of the chains and members each; one snapshot of each chain,
the mean of what it passed through."""
