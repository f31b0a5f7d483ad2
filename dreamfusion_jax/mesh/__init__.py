"""From densities to triangles with a texture. Plain numpy; knows a scene only as its field."""
