"""Shows a scene in a browser; `python -m dreamfusion_jax.view` joins the parts."""
