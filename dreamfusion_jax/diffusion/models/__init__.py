"""The networks, with diffusers' and transformers' names."""
