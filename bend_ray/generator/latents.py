"""What all autoencoders have in common: latents that leave and enter normalised."""

from torch import Tensor, nn, ones, zeros


class Normalised(nn.Module):
    """``c_SR -> z_SZ -> c_SR``, with ``z_SZ`` of mean 0 and standard deviation 1 over the snapshots. Subclasses say how
    coordinates become raw latents, and back."""

    mean_Z: Tensor
    std_Z: Tensor

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.register_buffer("mean_Z", zeros(latent))
        self.register_buffer("std_Z", ones(latent))

    def encode(self, c_SR: Tensor) -> Tensor:
        """Latents ``z_SZ``, normalised."""
        return (self._raw(c_SR) - self.mean_Z) / self.std_Z

    def decode(self, z_SZ: Tensor) -> Tensor:
        """Coordinates ``c_SR`` of normalised latents."""
        return self._coordinates(z_SZ * self.std_Z + self.mean_Z)

    def _raw(self, c_SR: Tensor) -> Tensor:
        raise NotImplementedError

    def _coordinates(self, raw_SZ: Tensor) -> Tensor:
        raise NotImplementedError
