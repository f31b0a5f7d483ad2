"""How good assets are: what is shown of them, who judges it, and how it is told."""
