"""Text-to-image diffusion models: networks, loading, priors. Imports nothing of NeRF."""
