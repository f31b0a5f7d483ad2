"""Errors, files, progress, devices: nothing here is about 3D or diffusion."""
