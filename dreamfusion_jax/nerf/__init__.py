"""Scenes and their rendering; independent of diffusion."""
