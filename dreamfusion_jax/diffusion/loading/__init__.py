"""A directory, a hub id or a file -> networks and params."""
