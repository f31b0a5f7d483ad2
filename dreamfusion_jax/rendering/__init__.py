"""Rendering of a scene to images and films, as arrays."""
