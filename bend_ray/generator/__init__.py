"""From snapshots to new parameters: span, autoencoder, diffusion model, samplers, and the baselines beside them."""
