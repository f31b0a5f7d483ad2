"""The optimisation itself: state, the pmapped step, the loop, checkpoints and metrics."""
