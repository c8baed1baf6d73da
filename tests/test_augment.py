"""Random changes of images against a loop over single images: seeded, whole pixels, the shape kept."""

import pytest
import torch
from torch import Tensor

from bend_ray.config import Augment
from bend_ray.errors import ConfigError
from bend_ray.training.augment import augment, check

SETTINGS = [
    Augment(crop=2),
    Augment(flip=True),
    Augment(cutout=3),
    Augment(cutout=4),
    Augment(crop=3, flip=True, cutout=5),
]


def images(B: int = 40, C: int = 3, H: int = 8, W: int = 8) -> Tensor:
    return torch.randint(1, 256, (B, C, H, W), dtype=torch.uint8, generator=seeded(1))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow(images_BCHW: Tensor, settings: Augment, generator: torch.Generator) -> Tensor:
    """Pixel by pixel, from the same draws."""
    B, _, H, W = images_BCHW.shape
    shifts = torch.randint(2 * settings.crop + 1, (2, B), generator=generator) if settings.crop else torch.zeros(2, B)
    flips = torch.rand(B, generator=generator) if settings.flip else torch.ones(B)
    tops = torch.randint(H, (B,), generator=generator) if settings.cutout else None
    lefts = torch.randint(W, (B,), generator=generator) if settings.cutout else None
    found = []
    for i, image in enumerate(images_BCHW.tolist()):
        down, right = (int(shift[i]) - settings.crop for shift in shifts)
        planes = []
        for plane in image:
            moved = [
                [plane[y + down][x + right] if 0 <= y + down < H and 0 <= x + right < W else 0 for x in range(W)]
                for y in range(H)
            ]
            if flips[i] < 0.5:
                moved = [row[::-1] for row in moved]
            if tops is not None and lefts is not None:
                mean = int(sum(map(sum, moved)) / (H * W) + 0.5)
                top, left = (int(at[i]) - settings.cutout // 2 for at in (tops, lefts))
                for y in range(max(top, 0), min(top + settings.cutout, H)):
                    for x in range(max(left, 0), min(left + settings.cutout, W)):
                        moved[y][x] = mean
            planes.append(moved)
        found.append(planes)
    return torch.tensor(found, dtype=torch.uint8)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("shape", [(40, 3, 8, 8), (1, 1, 28, 28), (7, 1, 9, 6)])
def test_same_as_pixel_by_pixel(settings: Augment, shape: tuple[int, ...]) -> None:
    before = images(*shape)
    found = augment(before, settings, seeded())
    assert found.dtype == torch.uint8 and torch.equal(found, slow(before, settings, seeded()))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_depends_on_the_generator_alone_and_leaves_its_input(settings: Augment) -> None:
    given = images()
    first = augment(given, settings, seeded())
    torch.rand(7)
    assert torch.equal(first, augment(images(), settings, seeded()))
    assert not torch.equal(first, augment(images(), settings, seeded(5)))
    assert torch.equal(given, images()) and not torch.equal(first, given)


def test_off_is_the_same_image_and_draws_nothing() -> None:
    generator = seeded()
    assert torch.equal(augment(images(), Augment(), generator), images())
    assert torch.equal(generator.get_state(), seeded().get_state())


def test_values_are_the_images_own_or_the_fill() -> None:
    before = images()
    cut = augment(before, Augment(cutout=3), seeded())
    mean_BC = before.double().mean((2, 3)).add(0.5).floor()
    changed = cut != before
    assert 0 < changed[:, 0].sum((1, 2)).max() <= 9
    assert torch.equal(cut[changed].double(), mean_BC[:, :, None, None].expand(before.shape)[changed])
    shifted = augment(before, Augment(crop=2), seeded())
    assert all(set(a.tolist()) <= {0, *b.tolist()} for a, b in zip(shifted.flatten(1), before.flatten(1), strict=True))


def test_every_shift_both_sides_and_any_square_comes_up() -> None:
    one = images(B=1).expand(2000, -1, -1, -1)
    assert len(augment(one, Augment(crop=2), seeded()).flatten(1).unique(dim=0)) == 25
    flipped = (augment(one, Augment(flip=True), seeded()) != one).flatten(1).any(1).float().mean()
    assert 0.45 < flipped < 0.55  # 4.5 standard deviations
    assert len(augment(one, Augment(cutout=4), seeded()).flatten(1).unique(dim=0)) == 64


@pytest.mark.parametrize("key", ["crop", "cutout"])
def test_more_than_the_image_is_refused(key: str) -> None:
    check(Augment(**{key: 7}), 8)
    for size in (8, 9):
        with pytest.raises(ConfigError, match=rf"augment\.{key}: {size} pixels of images of 8x8"):
            augment(images(), Augment(**{key: size}), seeded())
