"""A run's page: index.html, one file that shows all that a run left."""
