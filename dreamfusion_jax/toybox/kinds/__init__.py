"""The builders of the toybox's kinds, a module for each sort of thing."""
