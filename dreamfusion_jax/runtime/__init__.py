"""Errors, files, progress, devices: what knows nothing of the field."""
