"""A run's page: index.html, one file that shows all outputs of a run."""
