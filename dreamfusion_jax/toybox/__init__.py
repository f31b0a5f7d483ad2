"""The embedded prior: a miniature Stable Diffusion trained by the package on procedural objects."""
