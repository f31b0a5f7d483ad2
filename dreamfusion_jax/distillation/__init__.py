"""Where a scene and a prior meet: from a noised render to a gradient."""
