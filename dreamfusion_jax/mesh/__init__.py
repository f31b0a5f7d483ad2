"""Densities to a textured triangle mesh, in numpy; a scene is known only as its field."""
