"""Random changes of training images: shifted, mirrored, a square cut out. Whole pixels move, none is interpolated."""

import torch
from torch import Tensor
from torch.nn import functional as F

from bend_ray.config import Augment
from bend_ray.errors import ConfigError


def augment(images_BCHW: Tensor, settings: Augment, generator: torch.Generator) -> Tensor:
    """uint8 images to new ones of the same shape, each changed by draws of its own, in this order:

    crop    shifted by -crop to crop pixels along each axis; what comes in is black (0), as is usual
    flip    mirrored, with probability 1/2
    cutout  a square, its middle at any pixel and cut off at the border, takes the mean of its channel in this image
            (rounded): in a batch, statistics of batch norms then hardly move, as black squares would move them

    ``generator`` is a CPU one, so that the bits do not depend on the images' device. Raises ConfigError as `check`.
    """
    B, C, H, W = images_BCHW.shape
    check(settings, min(H, W))
    device, every_B = images_BCHW.device, torch.arange(B)
    row_H, column_W = torch.arange(H), torch.arange(W)
    if settings.crop:
        down_B, right_B = torch.randint(2 * settings.crop + 1, (2, B), generator=generator)
        padded = F.pad(images_BCHW, [settings.crop] * 4)
        row_BH, column_BW = down_B[:, None] + row_H, right_B[:, None] + column_W
        index = (every_B[:, None, None, None], torch.arange(C)[:, None, None], row_BH[:, None, :, None])
        images_BCHW = padded[tuple(i.to(device) for i in (*index, column_BW[:, None, None, :]))]
    if settings.flip:
        flip_B = torch.rand(B, generator=generator) < 0.5
        images_BCHW = torch.where(flip_B.to(device)[:, None, None, None], images_BCHW.flip(3), images_BCHW)
    if settings.cutout:
        top_B = torch.randint(H, (B,), generator=generator) - settings.cutout // 2
        left_B = torch.randint(W, (B,), generator=generator) - settings.cutout // 2
        in_BH = (row_H >= top_B[:, None]) & (row_H < top_B[:, None] + settings.cutout)
        in_BW = (column_W >= left_B[:, None]) & (column_W < left_B[:, None] + settings.cutout)
        cut_BHW = (in_BH[:, :, None] & in_BW[:, None, :]).to(device)
        sum_BC = images_BCHW.sum((2, 3), dtype=torch.int64)  # whole numbers: the same bits anywhere
        mean_BC = ((sum_BC + H * W // 2) // (H * W)).to(torch.uint8)
        images_BCHW = torch.where(cut_BHW[:, None], mean_BC[:, :, None, None], images_BCHW)
    return images_BCHW


def check(settings: Augment, size: int) -> None:
    """Raises ConfigError, which names the key, where nothing of an image of ``size`` pixels might be left."""
    for key in ("crop", "cutout"):
        if (pixels := getattr(settings, key)) >= size:
            raise ConfigError(f"augment.{key}: {pixels} pixels of images of {size}x{size}; give fewer than {size}")
