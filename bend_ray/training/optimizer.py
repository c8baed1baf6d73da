"""How weights move in training: AdamW, its learning rates, precision, the moving average; and all of it as tensors."""

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from bend_ray.config import Base
from bend_ray.training import trained


def adamw(module: nn.Module, base: Base) -> torch.optim.AdamW:
    """AdamW of what is trained, with the state that it would otherwise make at its first step, so that a checkpoint has
    where to go."""
    parameters = trained.parameters(module)
    optimizer = torch.optim.AdamW(parameters, lr=base.lr, weight_decay=base.weight_decay)
    for parameter in parameters:
        zeros = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.tensor(0.0), **zeros}
    return optimizer


def schedule(optimizer: torch.optim.Optimizer, base: Base, steps: int, done: int = 0) -> lr_scheduler.LRScheduler:
    """The learning rates of so many steps, after those that are ``done``.

    onecycle moves AdamW's beta1 as well, as torch does unless told otherwise: from 0.95 to 0.85 and back.

    cosine   lr (i + 1) / (w + 1) in the first w = max(1, steps // 20) steps, then
             lr (1 + cos(pi (i - w) / (steps - w))) / 2
    falling  the same without the first w steps: lr (1 + cos(pi i / steps)) / 2
    """
    rates: lr_scheduler.LRScheduler
    if base.schedule == "onecycle":
        rates = lr_scheduler.OneCycleLR(optimizer, base.lr, total_steps=steps + 1)
    elif base.schedule == "falling":
        rates = lr_scheduler.CosineAnnealingLR(optimizer, steps)
    else:
        warm = max(1, steps // 20)
        up = lr_scheduler.LinearLR(optimizer, 1 / (warm + 1), total_iters=warm)
        down = lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warm))
        rates = lr_scheduler.SequentialLR(optimizer, [up, down], [warm])
    if done:  # a schedule works out a rate from the one before, so only its own way there gives the same bits
        optimizer.zero_grad()
        optimizer.step()  # no gradients, nothing moves; without it schedules warn
    for _ in range(done):
        rates.step()
    return rates


def precision(base: Base, device: torch.device) -> torch.autocast:
    """The network runs in it; its loss is taken in float32 (float64 where logits are); weights keep their types."""
    able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    low = base.precision == "bfloat16" or (base.precision == "auto" and able)
    return torch.autocast(device.type, torch.bfloat16, enabled=low)


def named(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, to be read and written."""
    return {key: value.detach() for key, value in (*module.named_parameters(), *module.named_buffers())}


def moving(module: nn.Module) -> dict[str, Tensor]:
    """Copies of what training moves: parameters that are not frozen, and buffers."""
    moves = {key for key, parameter in module.named_parameters() if parameter.requires_grad}
    moves |= {key for key, _ in module.named_buffers()}
    return {key: value.clone() for key, value in named(module).items() if key in moves}


def ema_update(average: dict[str, Tensor], module: nn.Module, weight: float) -> None:
    """The moving average goes so much of the way to the module as it is; counters go all of it, and what is where the
    average is stays (a mask's infinities).

    Statistics of batch norms are averaged as weights are: they are moving averages themselves, and counting them anew
    would take passes over the data that decide the bits, too.
    """
    values = named(module)
    for key, mean in average.items():
        value = values[key]
        if trained.is_averaged(value):
            mean.copy_(torch.where(mean == value, mean, mean.lerp(value, weight)))
        else:
            mean.copy_(value)


def training_state(
    module: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor], spent: Tensor
) -> dict[str, Tensor]:
    """All that the next step depends on but its number, to be read and written."""
    moments = {i: optimizer.state[p] for i, p in enumerate(module.parameters()) if p.requires_grad}
    return {
        **{f"module.{key}": value for key, value in named(module).items()},
        **{f"average.{key}": value for key, value in average.items()},
        **{f"optimizer.{i}.{key}": value for i, moment in moments.items() for key, value in moment.items()},
        "seconds": spent,
    }
