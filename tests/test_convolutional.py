"""The convolutional autoencoder: any number of parameters, no row that sees its neighbours, and one that learns."""

import pytest
import torch
from torch import Tensor, nn

from bend_ray.generator.convolutional import ConvAutoencoder


def rows(S: int, D: int, rank: int = 4) -> Tensor:
    stream = torch.Generator().manual_seed(0)
    return torch.randn(S, rank, generator=stream) @ torch.randn(rank, D, generator=stream) / rank**0.5


def made(size: int, latent: int = 4, channels: int = 8) -> ConvAutoencoder:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return ConvAutoencoder(size, latent, channels)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("D", [1, 7, 32, 100, 2048, 5001])
def test_any_number_of_parameters(D: int) -> None:
    model, x_SD = made(D), rows(3, D)
    z_SZ = model.encode(x_SD)
    assert z_SZ.shape == (3, 4) and model.decode(z_SZ).shape == (3, D)


@pytest.mark.parametrize("training", [True, False])
@torch.no_grad()
def test_row_does_not_depend_on_its_neighbours(training: bool) -> None:
    model, x_SD = made(100).train(training), rows(5, 100)
    z_SZ = model.encode(x_SD)
    torch.testing.assert_close(torch.cat([model.encode(x_1D) for x_1D in x_SD.split(1)]), z_SZ, atol=1e-6, rtol=1e-5)
    alone_SD = torch.cat([model.decode(z_1Z) for z_1Z in z_SZ.split(1)])
    torch.testing.assert_close(alone_SD, model.decode(z_SZ), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_latents_leave_and_enter_normalised() -> None:
    model, x_SD = made(100), rows(16, 100)
    before_SD, raw_SZ = model.decode(model.encode(x_SD)), model._raw(x_SD)
    model.mean_Z.copy_(raw_SZ.mean(0))
    model.std_Z.copy_(raw_SZ.std(0, correction=0))
    z_SZ = model.encode(x_SD)
    torch.testing.assert_close(z_SZ.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(z_SZ.std(0, correction=0), torch.ones(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(model.decode(z_SZ), before_SD, atol=1e-5, rtol=1e-4)


def test_signal_is_filled_with_zeros_and_cut() -> None:
    """With the same weights, 100 parameters are the first of 128 whose others are zero."""
    short, long = made(100), made(128)
    x_SD = rows(3, 100)
    z_SZ = short.encode(x_SD)
    assert torch.equal(z_SZ, long.encode(nn.functional.pad(x_SD, (0, 28))))
    assert torch.equal(short.decode(z_SZ), long.decode(z_SZ)[:, :100])


def test_literature_s_convolutions() -> None:
    """Width 7, at least four each way, as many down as up; and no norm of a batch."""
    model = made(2048, 128, 64)
    down = [part for part in model.modules() if isinstance(part, nn.Conv1d)]
    up = [part for part in model.modules() if isinstance(part, nn.ConvTranspose1d)]
    assert len(down) == len(up) and len(down) + len(up) >= 8
    assert all(part.kernel_size == (7,) and part.stride == (2,) for part in down + up)
    assert [part.out_channels for part in down] == [64, 128, 256, 256, 32]
    assert not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules())


def test_size_grows_as_expected() -> None:
    """The convolutions with the square of the channels, the linear maps with D and Z; convolutions know neither."""
    convolutions = count(made(1).encode_convs)
    assert convolutions == count(made(5001).encode_convs)
    assert 3.5 < count(made(1, channels=64).encode_convs) / count(made(1, channels=32).encode_convs) < 4
    model = made(2048, 128, 64)
    assert isinstance(model.encode_last, nn.Linear) and model.encode_last.weight.shape == (128, 2048)
    assert count(made(4096, 128, 64)) - count(model) == 2 * 128 * 2048 + 2048


def test_learns_what_has_few_dimensions() -> None:
    x_SD, model = rows(32, 100), made(100, latent=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(100):
        loss = (model.decode(model.encode(x_SD)) - x_SD).square().mean() / x_SD.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5
