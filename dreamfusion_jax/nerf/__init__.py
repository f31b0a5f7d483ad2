"""What is in the scene and how it looks. Knows nothing of diffusion."""
