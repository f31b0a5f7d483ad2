"""What a picture should look like. Knows nothing of NeRF."""
