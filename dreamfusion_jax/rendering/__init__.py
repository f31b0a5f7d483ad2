"""A scene -> images and films, as arrays."""
