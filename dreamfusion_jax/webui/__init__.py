"""The studio: runs are started, watched and kept in a browser."""
