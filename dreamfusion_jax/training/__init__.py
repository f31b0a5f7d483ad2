"""The optimization itself: state, the pmapped step, the loop, checkpoints and metrics."""
