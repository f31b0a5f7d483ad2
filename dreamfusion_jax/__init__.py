"""DreamFusion in JAX: text-to-3D by Score Distillation Sampling (Poole et al., ICLR 2023)."""

__version__ = "0.1.0"
