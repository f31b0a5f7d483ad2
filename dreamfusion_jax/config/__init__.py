"""Settings, flags, presets, and how commands start and end."""
