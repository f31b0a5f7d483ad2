"""A scene in a browser, to turn it; `python -m dreamfusion_jax.view` joins the parts."""
