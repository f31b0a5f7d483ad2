"""Fields: position to density and albedo."""
