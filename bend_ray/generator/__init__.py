"""From snapshots to new parameters: span, autoencoder, diffusion model, samplers, and the null models beside them."""
