"""Frozen diffusion models as pure functions."""
