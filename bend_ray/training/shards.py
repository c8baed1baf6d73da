"""What the shards of a step leave: loss, gradients and buffers, exchanged between workers and added in one order.

All of a shard is one row of bytes, in which tensors of one type lie end to end. So each tensor keeps its type, a row
goes to other workers as it is, and what is done with values is done once for each type.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bend_ray.errors import ModelError
from bend_ray.training import trained

ALIGNED = 64
"""Bytes of which each block's first byte is a multiple."""


@dataclass(frozen=True)
class _Block:
    """Tensors of one type, end to end in each row."""

    value_SN: Tensor
    index: tuple[int, ...]
    """Which of the parameters, or buffers, they are."""
    shapes: tuple[torch.Size, ...]

    def split(self, value_N: Tensor) -> list[tuple[int, Tensor]]:
        """Number and value of each tensor, as views of ``value_N``."""
        parts = value_N.split([shape.numel() for shape in self.shapes])
        return [(i, part.view(shape)) for i, part, shape in zip(self.index, parts, self.shapes, strict=True)]

    def joined(self, tensors: list[Tensor], out: Tensor | None = None) -> Tensor:
        """The inverse, of all parameters or buffers."""
        device = self.value_SN.device
        return torch.cat([tensors[i].detach().to_dense().to(device).reshape(-1) for i in self.index], out=out)


class Shards:
    """Of each of S shards of a step of ``module``: loss, gradients, buffers, and which parameters had a gradient."""

    def __init__(self, module: nn.Module, S: int, device: torch.device) -> None:
        self.module, self.parameters = module, trained.parameters(module)
        self.like = {name: (buffer.dtype, buffer.shape) for name, buffer in module.named_buffers()}
        parts: list[list[Tensor]] = [
            [torch.zeros(1, dtype=torch.float64)],
            [torch.zeros(len(self.parameters), dtype=torch.bool)],
            [*self.parameters],
            [*module.buffers()],
        ]
        places = [  # (part, type, first byte, which of the part)
            (part, dtype, [i for i, tensor in enumerate(tensors) if tensor.dtype == dtype])
            for part, tensors in enumerate(parts)
            for dtype in dict.fromkeys(tensor.dtype for tensor in tensors)
        ]
        sizes = [sum(parts[part][i].nbytes for i in index) for part, _, index in places]
        starts = [0]
        for size in sizes:
            starts.append(starts[-1] + -(-size // ALIGNED) * ALIGNED)
        self.row_SX = torch.zeros(S, starts[-1], dtype=torch.uint8, device=device)
        blocks: list[list[_Block]] = [[] for _ in parts]
        for (part, dtype, index), size, start in zip(places, sizes, starts, strict=False):
            value_SN = self.row_SX[:, start : start + size].view(dtype)
            blocks[part].append(_Block(value_SN, tuple(index), tuple(parts[part][i].shape for i in index)))
        self.loss_S = blocks[0][0].value_SN[:, 0]
        self.had_SP = blocks[1][0].value_SN
        self.gradients, self.buffers = blocks[2:]
        self.sums = [torch.zeros_like(block.value_SN[0]) for block in self.gradients]
        self.starts = [block.joined([*module.buffers()]) for block in self.buffers]

    def begin(self) -> None:
        """A step begins: each of its shards will begin with the buffers as they are."""
        buffers = [*self.module.buffers()]
        for block, start_N in zip(self.buffers, self.starts, strict=True):
            block.joined(buffers, out=start_N)

    def begin_shard(self) -> None:
        self._write(self.starts)

    def end_shard(self, shard: int, loss: Tensor) -> None:
        """Take loss, gradients and buffers as a shard leaves them. Raises ModelError where a buffer's shape is new."""
        like = {name: (buffer.dtype, buffer.shape) for name, buffer in self.module.named_buffers()}
        if wrong := sorted(name for name in like.keys() | self.like.keys() if like.get(name) != self.like.get(name)):
            raise ModelError(
                f"the classifier's buffer {wrong[0]!r} changes its type or shape as it trains; give it one that stays"
            )
        self.loss_S[shard] = loss
        given = [parameter.grad for parameter in self.parameters]
        self.had_SP[shard] = torch.tensor([gradient is not None for gradient in given])
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, given, strict=True)]
        for block in self.gradients:
            block.joined(gradients, out=block.value_SN[shard])
        buffers = [*self.module.buffers()]
        for block in self.buffers:
            block.joined(buffers, out=block.value_SN[shard])

    def exchange(self, world: int) -> None:
        """Give each of so many ranks all shards: number i is that of rank i modulo ``world``."""
        works = [torch.distributed.broadcast(row, i % world, async_op=True) for i, row in enumerate(self.row_SX)]
        for work in works:
            work.wait()

    def add(self) -> None:
        """Leave the sum of gradients in the parameters, and in buffers the mean, or (counters) the first shard's.

        A parameter that had a gradient in no shard has none, and a value of a buffer that no shard has changed stays.
        """
        had_P = self.had_SP.any(0).tolist()
        for block, sum_N in zip(self.gradients, self.sums, strict=True):
            torch.sum(block.value_SN, 0, out=sum_N)
            for i, gradient in block.split(sum_N):
                parameter = self.parameters[i]
                parameter.grad = gradient.to(parameter.device) if had_P[i] else None
        values = []
        for block, start_N in zip(self.buffers, self.starts, strict=True):
            value_SN = block.value_SN
            if trained.is_averaged(value_SN):
                moved_N = (value_SN != start_N).any(0)
                values.append(torch.where(moved_N, value_SN.mean(0), start_N))
            else:
                values.append(value_SN[0])
        self._write(values)

    def _write(self, values: list[Tensor]) -> None:
        buffers = [*self.module.buffers()]
        for block, value_N in zip(self.buffers, values, strict=True):
            for i, value in block.split(value_N):
                buffers[i].data.copy_(value)  # .data: a buffer may be needed by no graph any more
